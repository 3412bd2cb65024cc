"""minibert lessons: BERT, written by whoever wants to understand it; the definition checks it.

Read in this order: catalogue.py (the lessons), definitions.py (where their text comes from),
folder.py (the files), inputs.py and outcomes.py (what they are tried on, and what is compared),
mistakes.py (what is known to go wrong), trial.py (one file, in a process of its own), checking.py
(all of them), learner.py (a learner's functions in the library's place), whole.py (what they give
together).
"""
