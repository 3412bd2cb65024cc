"""Kernels for NVIDIA GPUs, written in Python through numba.cuda: no torch, no cuBLAS.

What a GPU is, as far as these files need it: some hundred *multiprocessors*, each with registers
and 64 to 228 KB of fast *shared memory*. A launch starts a *grid* of *blocks*; a block stays on
one multiprocessor, and its *threads* (128 or 256 here) share that memory. They run in *warps* of
32 *lanes*, which execute an instruction together. A *barrier* (cuda.syncthreads) makes the
threads of a block wait for each other; a *shuffle* passes numbers between the lanes of a warp.
Shared memory has 32 *banks* of 4 bytes: lanes that want different words of one bank wait. *Global
memory* is the large and slow one. *Tensor cores* multiply small matrices (mma), which all lanes
of a warp load together (ldmatrix). *PTX* is NVIDIA's portable assembly language, a *cubin* the
machine code made of it.

To read in this order:

    language.py           the words that kernels are written in, besides numba.cuda's own
    gemm.py               matrix products on tensor cores, in 16 bits
    gemm_float32.py       matrix products in float32
    epilogue.py           how both end: bias, activation, residual
    attention.py          attention on tensor cores
    attention_float32.py  attention in float32
    rows.py               embeddings, layer norm, span logits
    vectors.py            what these do with eight numbers at a time; the activations
    ptx.py                what the compiler makes of the words: all PTX
    compiler.py           kernel -> PTX -> machine code, without a GPU
    recipes.py            compiled kernels on disk
    driver.py             NVIDIA's driver: memory, launches, graphs
    detect.py             which GPUs there are, and why none can be used
    upload.py             weights in the GPU's memory
    launcher.py           which kernel runs for each step, on how many blocks
    steps.py              the functions of reference.py on arrays in the GPU's memory
    program.py            the whole pass, recorded as one graph
    functions.py          the functions of device "cuda"
    measure.py            how fast products are, for the benchmark

What runs needs none of Numba once the kernels are compiled: recipes.py and what follows it import
neither numba nor the files before.
"""
