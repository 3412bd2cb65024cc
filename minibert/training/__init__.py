"""Training: gradients of a whole model, and what is made of them.

passes.py      forward, keeping what the gradient needs, and backward
loss.py        how wrong a batch's logits are, and in which direction
flat.py        all weights of a model in one array
"""
