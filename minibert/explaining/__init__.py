"""What happened inside a model when it answered one question.

Read in this order: passes.py (one traced pass and its gradients), attention.py (who reads from
whom), words.py (which words made the answer), spans.py (what forbids other answers), explanation.py
(all of it, gathered).  learner.py runs a learner's functions beside the definition.
The page that draws it is minibert/pages/explanation/.
"""
