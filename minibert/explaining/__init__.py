"""What happened inside a model when it answered one question.

Read in this order: passes.py (one traced pass and its gradients), attention.py (who reads from
whom), words.py (which words made the answer), explanation.py (all of it, gathered).
The page that draws it is minibert/pages/explanation.py.
"""
