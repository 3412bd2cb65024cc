"""Attention over packed windows in 16 bits, on the tensor cores, without writing scores down.

    y = softmax(query @ key.T / sqrt(head size)) @ value, for each head of each window

A block takes one *tile*: 64 queries of one window, for one head.  It walks over the window's keys
and values in steps of 64.  Each of its four warps multiplies its 16 queries with the keys, keeps
the largest score of each query seen so far and the sum of exponentials relative to it, scales what
it has summed down when a larger score comes ("online softmax"), and adds the weights times the
values.  The scores never leave registers: as accumulators of the first product they already lie as
the second product wants its left operand.

Exponentials are powers of two, with log2(e) / sqrt(head size) in one factor.  Tiles come from a
list made with the batch (functions.attention_tiles): each tile is a window's first row, its
length and the first query.  A fixed number of blocks walks over tiles x heads, so the launch does
not depend on the batch.  Nothing is padded: keys past the window's end get a score of -1e30.

Source: Milakov and Gimelshein 2018 (arXiv:1805.02867), Dao 2023 (arXiv:2307.08691).
Measured share of the hardware's limit: none yet, see README.md, section CUDA.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32, int32, uint16, uint32, uint64

from .language import (
    ALL_LANES,
    QUERIES,
    TILE_FIELDS,
    Kernel,
    commit_copies,
    copy16,
    exp2,
    fill,
    global_address,
    load,
    load_fragments,
    multiply_fragments,
    pack2,
    pack_fragments,
    shared_address,
    store,
    wait_copies,
)

WARPS = QUERIES // 16
KEYS = 64  # of a step
ZERO, ONE, NEVER = np.float32(0), np.float32(1), np.float32(-1e30)


def attention(dtype: str, heads: int, head_size: int) -> Kernel:
    """A kernel for one dtype and shape of heads.

    Kernel arguments: counts [2] (tokens, tiles), tiles [*, 4], qkv [T, 3 heads head_size], y
    [T, heads head_size].  Grid: any number of blocks.
    """
    width = heads * head_size
    row_numbers = 3 * width  # from one token's qkv to the next
    row_bytes = 2 * head_size  # of a token's key in shared memory
    chunks = row_bytes // 16
    # Chunk c of row r lies as chunk c ^ (r >> swizzle_shift & swizzle_mask), see gemm.py.
    swizzle_shift, swizzle_mask = (1, 3) if chunks == 4 else (0, 7)
    threads = 32 * WARPS
    lines = threads // chunks  # rows that the block copies at once
    key_copies, query_copies = KEYS // lines, QUERIES // lines
    block_bytes = KEYS * row_bytes  # the keys of a step; its values are as large
    score_tiles, value_tiles = KEYS // 8, head_size // 8
    score_count, value_count = 4 * score_tiles, 4 * value_tiles
    query_words, prob_words = head_size // 4, KEYS // 4
    key_words, value_words = 2 * score_tiles, 2 * value_tiles
    scale = np.float32(math.log2(math.e) / math.sqrt(head_size))
    wide = head_size == 64

    load_query = load_fragments(head_size // 16, 32, xor=True)
    load_keys = load_fragments(score_tiles // 2, 16 * row_bytes)
    load_values = load_fragments(value_tiles // 2, 32, xor=True, transposed=True)
    score0, score1, score2, score3 = (
        multiply_fragments(1, score_tiles, dtype, 4 * k) for k in range(4)
    )
    read0, read1, read2, read3 = (
        multiply_fragments(1, value_tiles, dtype, 4 * k) for k in range(4)
    )
    clear_scores, clear_values = fill(score_count), fill(value_count)
    probs_from = pack_fragments(score_tiles, dtype)
    pack = pack2(dtype)
    wait_all, wait_older = wait_copies(0), wait_copies(1)
    step_rows = 16 * row_bytes

    def kernel(counts, tiles, qkv, y):
        shared = cuda.shared.array(0, uint16, alignment=128)
        scores = cuda.local.array(score_count, float32)
        sums = cuda.local.array(value_count, float32)
        query = cuda.local.array(query_words, uint32)
        probs = cuda.local.array(prob_words, uint32)
        keys = cuda.local.array(key_words, uint32)
        values = cuda.local.array(value_words, uint32)
        thread = uint32(cuda.threadIdx.x)
        lane = thread & uint32(31)
        warp = thread >> uint32(5)
        start = shared_address(shared, int32(0))

        # What this thread copies: a chunk of every `lines`-th row.
        line = thread // uint32(chunks)
        chunk = thread % uint32(chunks)
        own_bytes = (
            start
            + line * uint32(row_bytes)
            + ((chunk ^ ((line >> uint32(swizzle_shift)) & uint32(swizzle_mask))) << uint32(4))
        )
        # Where this lane's rows of the fragments lie.
        row = lane & uint32(15)
        upper = lane >> uint32(4)
        value_from = (
            start
            + row * uint32(row_bytes)
            + ((upper ^ ((row >> uint32(swizzle_shift)) & uint32(swizzle_mask))) << uint32(4))
        )
        row = row + warp * uint32(16)
        query_from = (
            start
            + row * uint32(row_bytes)
            + ((upper ^ ((row >> uint32(swizzle_shift)) & uint32(swizzle_mask))) << uint32(4))
        )
        row = (lane & uint32(7)) + (upper << uint32(3))
        second = (lane >> uint32(3)) & uint32(1)
        key_from = (
            start
            + row * uint32(row_bytes)
            + ((second ^ ((row >> uint32(swizzle_shift)) & uint32(swizzle_mask))) << uint32(4))
        )
        pair = int32((lane & uint32(3)) << uint32(1))  # this lane's first column of a tile

        items = load(counts, int32(1)) * int32(heads)
        item = int32(cuda.blockIdx.x)
        while item < items:
            tile = int32(item // int32(heads)) * int32(TILE_FIELDS)
            head = int32(item % int32(heads))
            begin = load(tiles, tile)
            length = load(tiles, tile + int32(1))
            first = load(tiles, tile + int32(2))
            base = uint64(begin) * uint64(row_numbers) + uint64(
                uint32(head) * uint32(head_size) + chunk * uint32(8)
            )

            # The queries pass through the room of the first keys into registers.
            for i in range(query_copies):
                r = first + int32(line) + int32(i * lines)
                inside = r < length
                source = base + uint64(r if inside else int32(0)) * uint64(row_numbers)
                count = uint32(16) if inside else uint32(0)
                copy16(
                    own_bytes + uint32(i * lines * row_bytes), global_address(qkv, source), count
                )
            commit_copies()
            wait_all()
            cuda.syncthreads()
            load_query(query, query_from)
            cuda.syncthreads()

            clear_values(sums, ZERO)
            # Of this lane's two rows (g and g + 8): largest score, sum of exponentials.
            top0 = NEVER
            top1 = NEVER
            total0 = ZERO
            total1 = ZERO
            steps = int32((length + int32(KEYS - 1)) // int32(KEYS))
            buffer = uint32(0)
            step = int32(0)
            while step <= steps:
                # Copy the keys and values of step `step`, then work on those of the one before.
                if step < steps:
                    for i in range(key_copies):
                        r = step * int32(KEYS) + int32(line) + int32(i * lines)
                        inside = r < length
                        source = base + uint64(r if inside else int32(0)) * uint64(row_numbers)
                        count = uint32(16) if inside else uint32(0)
                        to = own_bytes + buffer + uint32(i * lines * row_bytes)
                        copy16(to, global_address(qkv, source + uint64(width)), count)
                        copy16(
                            to + uint32(block_bytes),
                            global_address(qkv, source + uint64(2 * width)),
                            count,
                        )
                commit_copies()
                buffer = uint32(2 * block_bytes) - buffer
                if step > int32(0):
                    wait_older()
                    cuda.syncthreads()
                    clear_scores(scores, ZERO)
                    keys_now = key_from + buffer
                    load_keys(keys, keys_now)
                    score0(scores, query, keys)
                    load_keys(keys, keys_now ^ uint32(32))
                    score1(scores, query, keys)
                    if wide:
                        load_keys(keys, keys_now ^ uint32(64))
                        score2(scores, query, keys)
                        load_keys(keys, keys_now ^ uint32(96))
                        score3(scores, query, keys)
                    past = step * int32(KEYS) - length  # keys of this step past the end
                    if past > int32(0):
                        limit = int32(KEYS) - past - pair
                        for j in range(score_tiles):
                            if int32(8 * j) >= limit:
                                store(scores, int32(4 * j), NEVER)
                                store(scores, int32(4 * j + 2), NEVER)
                            if int32(8 * j + 1) >= limit:
                                store(scores, int32(4 * j + 1), NEVER)
                                store(scores, int32(4 * j + 3), NEVER)

                    new0 = top0
                    new1 = top1
                    for j in range(score_tiles):
                        new0 = max(new0, load(scores, int32(4 * j)))
                        new0 = max(new0, load(scores, int32(4 * j + 1)))
                        new1 = max(new1, load(scores, int32(4 * j + 2)))
                        new1 = max(new1, load(scores, int32(4 * j + 3)))
                    # Four neighbouring lanes share a row.
                    new0 = max(new0, cuda.shfl_xor_sync(ALL_LANES, new0, 1))
                    new0 = max(new0, cuda.shfl_xor_sync(ALL_LANES, new0, 2))
                    new1 = max(new1, cuda.shfl_xor_sync(ALL_LANES, new1, 1))
                    new1 = max(new1, cuda.shfl_xor_sync(ALL_LANES, new1, 2))
                    shrink0 = exp2((top0 - new0) * scale)
                    shrink1 = exp2((top1 - new1) * scale)
                    top0 = new0
                    top1 = new1
                    total0 *= shrink0
                    total1 *= shrink1
                    for j in range(score_tiles):
                        p = exp2((load(scores, int32(4 * j)) - top0) * scale)
                        q = exp2((load(scores, int32(4 * j + 1)) - top0) * scale)
                        total0 += p + q
                        store(scores, int32(4 * j), p)
                        store(scores, int32(4 * j + 1), q)
                        p = exp2((load(scores, int32(4 * j + 2)) - top1) * scale)
                        q = exp2((load(scores, int32(4 * j + 3)) - top1) * scale)
                        total1 += p + q
                        store(scores, int32(4 * j + 2), p)
                        store(scores, int32(4 * j + 3), q)
                    for j in range(value_tiles):
                        store(sums, int32(4 * j), load(sums, int32(4 * j)) * shrink0)
                        store(sums, int32(4 * j + 1), load(sums, int32(4 * j + 1)) * shrink0)
                        store(sums, int32(4 * j + 2), load(sums, int32(4 * j + 2)) * shrink1)
                        store(sums, int32(4 * j + 3), load(sums, int32(4 * j + 3)) * shrink1)
                    probs_from(scores, probs)
                    values_now = value_from + buffer + uint32(block_bytes)
                    load_values(values, values_now)
                    read0(sums, probs, values)
                    load_values(values, values_now + uint32(step_rows))
                    read1(sums, probs, values)
                    load_values(values, values_now + uint32(2 * step_rows))
                    read2(sums, probs, values)
                    load_values(values, values_now + uint32(3 * step_rows))
                    read3(sums, probs, values)
                    cuda.syncthreads()  # before the next copies, or the next tile's queries
                step += int32(1)

            total0 += cuda.shfl_xor_sync(ALL_LANES, total0, 1)
            total0 += cuda.shfl_xor_sync(ALL_LANES, total0, 2)
            total1 += cuda.shfl_xor_sync(ALL_LANES, total1, 1)
            total1 += cuda.shfl_xor_sync(ALL_LANES, total1, 2)
            total0 = ONE / total0
            total1 = ONE / total1
            r = first + int32(warp * uint32(16) + (lane >> uint32(2)))
            to = ((begin + r) * int32(width) + head * int32(head_size) + pair) >> int32(1)
            below = to + int32(4 * width)  # eight rows on, in words of two numbers
            for j in range(value_tiles):
                if r < length:
                    word = pack(
                        load(sums, int32(4 * j)) * total0, load(sums, int32(4 * j + 1)) * total0
                    )
                    store(y, to + int32(4 * j), word)
                if r + int32(8) < length:
                    word = pack(
                        load(sums, int32(4 * j + 2)) * total1, load(sums, int32(4 * j + 3)) * total1
                    )
                    store(y, below + int32(4 * j), word)
            item += int32(cuda.gridDim.x)

    return Kernel(
        name=f"attention_{dtype}_{heads}x{head_size}",
        function=kernel,
        arguments=("int32*", "int32*", "uint16*", "uint32*"),
        threads=threads,
        shared_bytes=4 * block_bytes,
        rows=QUERIES,
        min_blocks=3,
    )
