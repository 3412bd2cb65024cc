"""minibert lessons: BERT, written by whoever wants to understand it; the definition checks it.

Read in this order:

    lesson.py, forward.py, backward.py, catalogue.py   the lessons
    definitions.py, choice.py                          where their text and their code come from
    borrowed.py, models.py, folder.py                  the files that are written
    inputs.py, outcomes.py                             what functions are tried on, what is compared
    mistakes.py, forward_mistakes.py, backward_mistakes.py    what is known to go wrong
    reading.py, learner.py, watching.py                a learner's files, and the functions in them
    trial.py, race.py, whole.py, processes.py          what runs in a process of its own
    checking.py                                        all of it, for the command line
"""
