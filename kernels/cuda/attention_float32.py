"""Attention over packed windows in float32, without tensor cores; the plan is attention.py's.

    y = softmax(query @ key.T / sqrt(head size)) @ value, for each head of each window

A block of 128 threads takes 64 queries of one window, for one head, and walks over its keys and
values in steps of 64.  Thread (i, j) of 16 x 8 computes 4 queries x 8 keys of the scores, and
4 queries x (head size / 8) numbers of the result.  Queries and keys lie in shared memory with the
head's numbers as rows, weights with the keys as rows, so that each product is a sum of outer
products (multiply_tile).  The weights take the place of the keys, which are done with by then.

Measured share of the hardware's limit: none yet, see README.md, section CUDA.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32, int32

from .language import (
    ALL_LANES,
    QUERIES,
    TILE_FIELDS,
    Kernel,
    exp2,
    fill,
    load,
    load4,
    multiply_tile,
    store,
    store4,
)

KEYS = 64
DEPTH = 8  # outer products without a loop
ZERO, ONE, NEVER = np.float32(0), np.float32(1), np.float32(-1e30)


def attention(heads: int, head_size: int) -> Kernel:
    """A kernel for one shape of heads; arguments and grid as attention.py's, in float32."""
    width = heads * head_size
    row_numbers = 3 * width
    threads, across = 128, 8
    value_columns = head_size // across  # of the result, a thread
    groups = value_columns // 4
    chunks = head_size // 4  # of 16 bytes in a head's row
    quads = chunks // 4  # what a thread copies of a row: every fourth chunk
    key_stride = KEYS + 4  # of queries, keys and weights
    value_stride = head_size + 4
    # Keys, or weights in their place; a head of 32 has half as many rows of keys as of weights.
    key_size = KEYS * key_stride
    keys_at = head_size * key_stride
    values_at = keys_at + key_size
    size = values_at + KEYS * value_stride
    scale = np.float32(math.log2(math.e) / math.sqrt(head_size))

    # Outer products in groups of DEPTH: all at once would need more registers than there are.
    score = multiply_tile(DEPTH, 4, 8, (key_stride, key_stride, 0, KEYS // 2))
    read = multiply_tile(DEPTH, 4, value_columns, (key_stride, value_stride, 0, head_size // 2))
    value_count = 4 * value_columns
    clear_scores, clear_sums = fill(32), fill(value_count)

    def kernel(counts, tiles, qkv, y):
        shared = cuda.shared.array(0, float32, alignment=128)
        scores = cuda.local.array(32, float32)
        sums = cuda.local.array(value_count, float32)
        top = cuda.local.array(4, float32)
        total = cuda.local.array(4, float32)
        thread = int32(cuda.threadIdx.x)
        i = int32(thread // int32(across)) * int32(4)  # first query
        j = int32(thread % int32(across)) * int32(4)  # first key, and first number of the result
        # What this thread copies: four lanes read 64 bytes of a row, a warp of eight rows.
        line = int32(thread // int32(4))
        chunk = int32(thread % int32(4)) * int32(4)

        items = load(counts, int32(1)) * int32(heads)
        item = int32(cuda.blockIdx.x)
        while item < items:
            tile = int32(item // int32(heads)) * int32(TILE_FIELDS)
            head = int32(item % int32(heads)) * int32(head_size)
            begin = load(tiles, tile)
            length = load(tiles, tile + int32(1))
            first = load(tiles, tile + int32(2))

            for half in range(2):
                r = first + line + int32(32 * half)
                row = (begin + (r if r < length else int32(0))) * int32(row_numbers) + head
                for q in range(quads):
                    column = chunk + int32(16 * q)
                    four = load4(qkv, row + column)
                    for e in range(4):
                        index = (column + int32(e)) * int32(key_stride) + line + int32(32 * half)
                        store(shared, index, four[e])

            clear_sums(sums, ZERO)
            for r in range(4):
                store(top, int32(r), NEVER)
                store(total, int32(r), ZERO)
            step = int32(0)
            while step < length:
                for half in range(2):
                    # Rows past the window's end repeat its first; their scores are masked below.
                    line_now = line + int32(32 * half)
                    r = step + line_now
                    row = (begin + (r if r < length else int32(0))) * int32(row_numbers) + head
                    for q in range(quads):
                        column = chunk + int32(16 * q)
                        four = load4(qkv, row + int32(width) + column)
                        for e in range(4):
                            index = int32(keys_at) + (column + int32(e)) * int32(key_stride)
                            store(shared, index + line_now, four[e])
                        store4(
                            shared,
                            int32(values_at) + line_now * int32(value_stride) + column,
                            load4(qkv, row + int32(2 * width) + column),
                        )
                cuda.syncthreads()
                clear_scores(scores, ZERO)
                k = int32(0)
                while k < int32(head_size * key_stride):
                    score(scores, shared, k + i, int32(keys_at) + k + j)
                    k += int32(DEPTH * key_stride)
                cuda.syncthreads()  # all are done with the keys

                for r in range(4):
                    most = load(top, int32(r))
                    for c in range(8):
                        key = step + j + int32(c % 4 + 32 * (c // 4))
                        if key >= length:
                            store(scores, int32(8 * r + c), NEVER)
                        most = max(most, load(scores, int32(8 * r + c)))
                    most = max(most, cuda.shfl_xor_sync(ALL_LANES, most, 1))
                    most = max(most, cuda.shfl_xor_sync(ALL_LANES, most, 2))
                    most = max(most, cuda.shfl_xor_sync(ALL_LANES, most, 4))
                    shrink = exp2((load(top, int32(r)) - most) * scale)
                    store(top, int32(r), most)
                    sum_of_row = load(total, int32(r)) * shrink
                    for c in range(8):
                        p = exp2((load(scores, int32(8 * r + c)) - most) * scale)
                        sum_of_row += p
                        store(scores, int32(8 * r + c), p)
                    store(total, int32(r), sum_of_row)
                    for c in range(value_columns):
                        index = int32(value_columns * r + c)
                        store(sums, index, load(sums, index) * shrink)
                for c in range(8):
                    key = j + int32(c % 4 + 32 * (c // 4))
                    store4(
                        shared,
                        int32(keys_at) + key * int32(key_stride) + i,
                        (
                            load(scores, int32(c)),
                            load(scores, int32(8 + c)),
                            load(scores, int32(16 + c)),
                            load(scores, int32(24 + c)),
                        ),
                    )
                cuda.syncthreads()
                k = int32(0)
                while k < int32(KEYS):
                    left = int32(keys_at) + k * int32(key_stride) + i
                    read(sums, shared, left, int32(values_at) + k * int32(value_stride) + j)
                    k += int32(DEPTH)
                cuda.syncthreads()  # before the next keys and values, or the next tile's queries
                step += int32(KEYS)

            for r in range(4):
                sum_of_row = load(total, int32(r))
                sum_of_row += cuda.shfl_xor_sync(ALL_LANES, sum_of_row, 1)
                sum_of_row += cuda.shfl_xor_sync(ALL_LANES, sum_of_row, 2)
                sum_of_row += cuda.shfl_xor_sync(ALL_LANES, sum_of_row, 4)
                share = ONE / sum_of_row
                at = first + i + int32(r)
                if at < length:
                    for g in range(groups):
                        index = int32(value_columns * r + 4 * g)
                        store4(
                            y,
                            (begin + at) * int32(width) + head + int32(g * head_size // 2) + j,
                            (
                                load(sums, index) * share,
                                load(sums, index + int32(1)) * share,
                                load(sums, index + int32(2)) * share,
                                load(sums, index + int32(3)) * share,
                            ),
                        )
            item += int32(cuda.gridDim.x)

    return Kernel(
        name=f"attention_float32_{heads}x{head_size}",
        function=kernel,
        arguments=("int32*", "int32*", "float32*", "float32*"),
        threads=threads,
        shared_bytes=4 * size,
        rows=QUERIES,
        min_blocks=3,
    )
