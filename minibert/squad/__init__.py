"""Measuring on SQuAD: files, predictions, and the official numbers.

files.py       SQuAD files
predictions.py files of predictions
metrics.py     exact match, F1, thresholds: SQuAD's numbers, to the last digit
run_squad.py   windows and n best answers as Google's run_squad.py makes them
decoders.py    three ways to decide on an answer: run_squad, pipeline, answerer
evaluation.py  minibert evaluate and compare: runs, scores, tuning
journal.py     the files of a run, and how an interrupted one goes on
"""
