"""Training on the processor: each step forward and its gradient, compiled.

rows.py       what happens to rows: dropout, slopes, norms, sums over tokens
attention.py  attention's gradient
dense.py      gradients of dense layers: of the input by rows, of the weights by tiles
optimizer.py  AdamW, and weights packed anew
program.py    all that is compiled
memory.py     what steps keep, scratch of the threads, tasks
weights.py    master weights, packed for both directions
functions.py  the functions that train on device "cpu"
"""
