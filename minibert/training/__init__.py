"""Fine-tuning: a BERT, SQuAD-like data, and the steps from one to a model that answers.

settings.py     what can be chosen
examples.py     questions -> windows with the right positions, in compact arrays
order.py        which windows make up which step
schedule.py     the learning rate of each step
passes.py       forward and backward through the encoder
distillation.py what is learnt from other models
loss.py         span loss and its gradient
flat.py         all weights, or their gradient, in one row of numbers
optimizer.py    clipping, AdamW, averages; steps that are skipped
inputs.py       settings in full, questions, what tells a run from others
base.py         the model that a run begins with
held_out.py     questions that are kept apart, and the scores on them
run_folder.py   what a run writes down so that it can go on
saved_arrays.py arrays in files that may change meanwhile
result.py       the finished model as a folder
line.py         what a person sees while it runs
interruption.py Ctrl-C and SIGTERM wait for the end of a step
card.py         the README.md of the model
checking.py     minibert train --check
trainer.py      a run, step by step
run.py          all of it together: `train`
"""
