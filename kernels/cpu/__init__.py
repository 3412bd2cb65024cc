"""Kernels for the processor, written as vector instructions and compiled by Numba and LLVM.

To read them in order:

    targets.py      which instructions a processor has
    simd.py         the language in which kernels are written
    gemm.py         matrix products on packed weights
    rows.py         norms, activations, quantising: what happens to rows between the products
    activations.py  GELU and its kin, and the exponential
    attention.py    attention over packed windows
    records.py      how Python speaks to the compiled program
    pointers.py     how compiled code reads records
    threads.py      how threads share a job: stages, tasks, who waits for whom
    steps.py        the steps of BERT on a block of rows
    schedule.py     the whole pass, which every thread runs at once
    program.py      all that is compiled: the pass, and each step alone
    compiler.py     compile it once and keep the machine code
    packing.py      weights in the order and dtype in which the kernels read them
    jobs.py         a batch cut into tasks, and where everything lies in memory
    pool.py         the threads
    functions.py    the functions of device "cpu"
    training/       each step forward and its gradient; its __init__.py says in which order to read
    measure.py      how fast the products are, and how fast they could be
"""
