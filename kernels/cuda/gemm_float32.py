"""Matrix products in float32 without tensor cores, exact to rounding: y = x @ weight.T and an end.

A block of 256 threads computes 128 x 128 of y, each thread 8 x 8 in registers.  It walks along K
in steps of 16: while it multiplies one step from shared memory, the next is already on its way
from global memory into registers, and then goes into the other half of shared memory.  For each k
a thread reads 8 + 8 numbers and does 64 multiply-adds.

Both parts lie in shared memory with K as rows ([16, 128 + 4]), so that a thread's eight numbers of
one k are two accesses of 16 bytes.  A thread's rows are 4 i .. 4 i + 3 and 64 + 4 i .. (the columns
likewise), so that neighbouring threads read neighbouring groups of banks.

K must be a multiple of 16 and the width one of 8; upload.py pads the weights to 32 and 8.

Measured share of the hardware's limit: none yet, see README.md, section CUDA.
"""

from __future__ import annotations

import numpy as np
from numba import cuda, float32, int32

from .epilogue import finish
from .language import Kernel, fill, load, load4, multiply_tile, store, store_tile

TILE = 8  # rows and columns of y that a thread computes
DEPTH = 16  # numbers of K in a step


def gemm(end: str = "store", activation: str = "", rows: int = 128, columns: int = 128) -> Kernel:
    """A kernel for one end (epilogue.py) and one size of tile.

    Kernel arguments: as gemm.py's, all arrays in float32.

    Args:
        end: 'store', 'residual' or 'partial'.
        activation: of 'store'.
        rows: of a block's tile: 64 or 128.
        columns: of a block's tile: 64 or 128.
    """
    across, down = columns // TILE, rows // TILE  # threads
    threads = across * down
    chunks = DEPTH // 4  # of 16 bytes in a row of a step
    lines = threads // chunks  # rows that the block reads at once
    x_reads, weight_reads = rows // lines, columns // lines
    x_stride, weight_stride = rows + 4, columns + 4
    x_size = DEPTH * x_stride
    half = x_size + DEPTH * weight_stride  # of shared memory: one step
    x_next, weight_next = 4 * x_reads, 4 * weight_reads
    sums_count = TILE * TILE
    end_rows = rows // 2  # the sums leave in two halves: all would not fit in shared memory
    stride = columns + 4
    partial = end == "partial"

    strides = (x_stride, weight_stride, 4 * down, 4 * across)
    multiply = multiply_tile(DEPTH, TILE, TILE, strides)
    write_upper = store_tile(TILE, 0, 4, 4 * across)
    write_lower = store_tile(TILE, 4, 4, 4 * across)
    clear = fill(sums_count)
    end_with = finish("float32", end, activation, end_rows, columns, stride, threads)
    zero = np.float32(0)

    def kernel(counts, x, weight, bias, residual, y, width, depth, capacity):
        height = load(counts, int32(0))
        row = int32(cuda.blockIdx.y) * int32(rows)
        column = int32(cuda.blockIdx.x) * int32(columns)
        if row >= height:
            return
        shared = cuda.shared.array(0, float32, alignment=128)
        sums = cuda.local.array(sums_count, float32)
        next_x = cuda.local.array(x_next, float32)
        next_weight = cuda.local.array(weight_next, float32)
        thread = int32(cuda.threadIdx.x)
        i = int32(thread // int32(across)) * int32(4)  # the thread's first row and column
        j = int32(thread % int32(across)) * int32(4)

        # The steps of K that this block takes: all, or every so many.
        steps = int32(depth // int32(DEPTH))
        first = int32(0)
        every = int32(1)
        shift = int32(0)
        if partial:
            first = int32(cuda.blockIdx.z)
            every = int32(cuda.gridDim.z)
            shift = first * capacity  # the parts of y stand one after the other

        line = int32(thread // int32(chunks))
        chunk = int32(thread % int32(chunks)) * int32(4)
        clear(sums, zero)
        half_now = int32(0)
        step = first
        while step < steps + every:
            # Read step `step` ...
            if step < steps:
                k = step * int32(DEPTH) + chunk
                for r in range(x_reads):
                    # Rows past the last are read from row 0 and never written.
                    at = row + line + int32(r * lines)
                    four = load4(x, (at if at < height else int32(0)) * depth + k)
                    for e in range(4):
                        store(next_x, int32(4 * r + e), four[e])
                for r in range(weight_reads):
                    at = column + line + int32(r * lines)
                    four = load4(weight, (at if at < width else int32(0)) * depth + k)
                    for e in range(4):
                        store(next_weight, int32(4 * r + e), four[e])
            # ... multiply the one before ...
            if step > first:
                other = int32(half) - half_now
                multiply(sums, shared, other + i, other + int32(x_size) + j)
            # ... and put this one where the one before the last was.
            if step < steps:
                for r in range(x_reads):
                    for e in range(4):
                        index = half_now + (chunk + int32(e)) * int32(x_stride) + line
                        store(shared, index + int32(r * lines), load(next_x, int32(4 * r + e)))
                for r in range(weight_reads):
                    for e in range(4):
                        index = (
                            half_now
                            + int32(x_size)
                            + (chunk + int32(e)) * int32(weight_stride)
                            + line
                        )
                        store(shared, index + int32(r * lines), load(next_weight, int32(4 * r + e)))
            cuda.syncthreads()
            half_now = int32(half) - half_now
            step += every

        # The upper half of the tile holds each thread's first four rows, the lower its last four.
        write_upper(sums, shared, i * int32(stride) + j, int32(stride))
        cuda.syncthreads()
        end_with(shared, bias, residual, y, row, column, height, width, thread, shift)
        cuda.syncthreads()
        write_lower(sums, shared, i * int32(stride) + j, int32(stride))
        cuda.syncthreads()
        low = row + int32(end_rows)
        end_with(shared, bias, residual, y, low, column, height, width, thread, shift)

    return Kernel(
        name=f"gemm_float32_{end}_{activation or 'none'}_{rows}x{columns}",
        function=kernel,
        arguments=("int32*", *["float32*"] * 5, "int32", "int32", "int32"),
        threads=threads,
        shared_bytes=4 * max(2 * half, end_rows * stride),
        rows=rows,
        columns=columns,
    )
