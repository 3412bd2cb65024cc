"""Matrix products in 16 bits on the tensor cores: y = x @ weight.T, with what follows fused in.

A block computes a tile of `rows` x `columns` of y.  It walks along K in steps of 32: copies the
step's part of x and of the weight from global to shared memory (cp.async, several steps ahead, so
that the copies hide behind the multiplications), and each warp loads its fragments (ldmatrix) and
multiplies them (mma.sync m16n8k16, sums in float32).  For 16 of K, a warp's tile of 64 x 64 needs
8 ldmatrix for 32 mma.

A row of 32 numbers is 64 bytes, four chunks of 16.  Chunk c of row r lies as chunk
c ^ (r >> 1 & 3) of its row (a swizzle; two rows fill the 32 banks), so that the eight rows that
ldmatrix reads at once lie in eight different groups of banks.  Chunks 2 and 3, the second 16 of K,
are then where chunks 0 and 1 are, but for bit 5 of the address.

Rows past the last token and columns past the width are read as zeros and not written.  K must be
a multiple of 32 and the width one of 8; upload.py pads the weights to that.

Measured share of the hardware's limit: none yet, see README.md, section CUDA.
"""

from __future__ import annotations

import numpy as np
from numba import cuda, float32, int32, uint16, uint32, uint64

from .epilogue import finish
from .language import (
    POINTERS,
    Kernel,
    commit_copies,
    copy16,
    fill,
    global_address,
    load,
    load_fragments,
    multiply_fragments,
    shared_address,
    store_fragments,
    wait_copies,
)

DEPTH = 32  # numbers of K in a step
ROW_BYTES = 2 * DEPTH
CHUNKS = ROW_BYTES // 16  # of a row


def gemm(
    dtype: str,
    end: str = "store",
    activation: str = "",
    rows: int = 128,
    columns: int = 128,
    warps: tuple[int, int] = (2, 2),
    stages: int = 4,
) -> Kernel:
    """A kernel for one dtype, one end (epilogue.py) and one size of tile.

    Kernel arguments: counts [2] (number of tokens first), x [T, K], weight [width, K], bias
    [width], residual [T, width], y [T, width] (or [splits, capacity, width] for 'partial'), width,
    K, capacity (rows of y).  Grid: columns of tiles, rows of tiles, splits of K.

    Args:
        dtype: 'float16' or 'bfloat16'.
        end: 'store', 'residual' or 'partial'.
        activation: of 'store'.
        rows: of a block's tile.
        columns: of a block's tile.
        warps: down and across the tile.
        stages: steps of K in shared memory at once.
    """
    across = warps[1]
    warp_rows, warp_columns = rows // warps[0], columns // across
    m_tiles, n_tiles = warp_rows // 16, warp_columns // 8
    threads = 32 * warps[0] * across
    lines = threads // CHUNKS  # rows that the block copies at once, one chunk a thread
    x_copies, weight_copies = rows // lines, columns // lines
    x_bytes = rows * ROW_BYTES
    stage = x_bytes + columns * ROW_BYTES
    stride = columns + 8  # of the sums in shared memory: no two lanes of a store share a bank
    sums_count = m_tiles * n_tiles * 4
    a_count, b_count = m_tiles * 4, n_tiles * 2
    ahead = stages - 1
    partial = end == "partial"

    load_a = load_fragments(m_tiles, 16 * ROW_BYTES)
    load_b = load_fragments(n_tiles // 2, 16 * ROW_BYTES)
    multiply = multiply_fragments(m_tiles, n_tiles, dtype)
    write_sums = store_fragments(m_tiles, n_tiles)
    clear = fill(sums_count)
    wait = wait_copies(stages - 2)
    wait_all = wait_copies(0)
    end_with = finish(dtype, end, activation, rows, columns, stride, threads)
    zero = np.float32(0)

    def kernel(counts, x, weight, bias, residual, y, width, depth, capacity):
        height = load(counts, int32(0))
        row = int32(cuda.blockIdx.y) * int32(rows)
        column = int32(cuda.blockIdx.x) * int32(columns)
        if row >= height:
            return
        shared = cuda.shared.array(0, uint16, alignment=128)
        sums = cuda.local.array(sums_count, float32)
        a = cuda.local.array(a_count, uint32)
        b = cuda.local.array(b_count, uint32)
        thread = uint32(cuda.threadIdx.x)
        lane = thread & uint32(31)
        warp = thread >> uint32(5)
        warp_row = warp // uint32(across) * uint32(warp_rows)
        warp_column = warp % uint32(across) * uint32(warp_columns)
        start = shared_address(shared, int32(0))

        # The steps of K that this block takes: all, or every so many.
        steps = int32(depth // int32(DEPTH))
        first = int32(0)
        every = int32(1)
        shift = int32(0)
        if partial:
            first = int32(cuda.blockIdx.z)
            every = int32(cuda.gridDim.z)
            shift = first * capacity  # the parts of y stand one after the other
        lead = every * int32(ahead)

        # What this thread copies: a chunk of every `lines`-th row of x and of the weight.
        line = thread // uint32(CHUNKS)
        chunk = thread % uint32(CHUNKS)
        own_bytes = line * uint32(ROW_BYTES) + (
            (chunk ^ ((line >> uint32(1)) & uint32(3))) << uint32(4)
        )
        offset = uint64(first) * uint64(DEPTH) + uint64(chunk * uint32(8))
        x_from = global_address(x, uint64(row + int32(line)) * uint64(depth) + offset)
        weight_from = global_address(weight, uint64(column + int32(line)) * uint64(depth) + offset)
        jump = uint64(depth) * uint64(2 * lines)  # bytes
        advance = uint64(every) * uint64(ROW_BYTES)

        # Where this lane's rows of the fragments lie in a stage.
        a_row = warp_row + (lane & uint32(15))
        a_from = a_row * uint32(ROW_BYTES) + (
            ((lane >> uint32(4)) ^ ((a_row >> uint32(1)) & uint32(3))) << uint32(4)
        )
        b_row = warp_column + (lane & uint32(7)) + ((lane >> uint32(4)) << uint32(3))
        b_from = (
            uint32(x_bytes)
            + b_row * uint32(ROW_BYTES)
            + (
                (((lane >> uint32(3)) & uint32(1)) ^ ((b_row >> uint32(1)) & uint32(3)))
                << uint32(4)
            )
        )

        clear(sums, zero)
        step = first
        write_stage = uint32(0)
        read_stage = uint32(0)
        while step < steps + lead:
            if step >= first + lead:
                # The oldest stage has arrived, and all warps are done with the one before it,
                # which the copies below overwrite.
                wait()
                cuda.syncthreads()
            if step < steps:
                to = start + write_stage * uint32(stage) + own_bytes
                for i in range(x_copies):
                    inside = row + int32(line) + int32(i * lines) < height
                    count = uint32(16) if inside else uint32(0)
                    copy16(to + uint32(i * lines * ROW_BYTES), x_from + uint64(i) * jump, count)
                for i in range(weight_copies):
                    inside = column + int32(line) + int32(i * lines) < width
                    count = uint32(16) if inside else uint32(0)
                    copy16(
                        to + uint32(x_bytes + i * lines * ROW_BYTES),
                        weight_from + uint64(i) * jump,
                        count,
                    )
                x_from += advance
                weight_from += advance
            commit_copies()  # an empty group at the end keeps the count of groups
            write_stage = (
                uint32(0) if write_stage == uint32(stages - 1) else write_stage + uint32(1)
            )
            if step >= first + lead:
                base = start + read_stage * uint32(stage)
                for k in range(DEPTH // 16):
                    load_a(a, (base + a_from) ^ uint32(32 * k))
                    load_b(b, (base + b_from) ^ uint32(32 * k))
                    multiply(sums, a, b)
                read_stage = (
                    uint32(0) if read_stage == uint32(stages - 1) else read_stage + uint32(1)
                )
            step += every

        wait_all()
        cuda.syncthreads()
        # The same memory as `shared`: the stages are no longer needed.
        matrix = cuda.shared.array(0, float32, alignment=128)
        write_sums(
            sums,
            matrix,
            int32(warp_row) * int32(stride) + int32(warp_column),
            int32(stride),
            int32(lane),
        )
        cuda.syncthreads()
        end_with(matrix, bias, residual, y, row, column, height, width, int32(thread), shift)

    size = "x".join(map(str, (rows, columns, *warps, stages)))
    return Kernel(
        name=f"gemm_{dtype}_{end}_{activation or 'none'}_{size}",
        function=kernel,
        arguments=(
            "int32*",
            "uint16*",
            "uint16*",
            "float32*",
            POINTERS[dtype],
            "float32*" if partial else POINTERS[dtype],
            "int32",
            "int32",
            "int32",
        ),
        threads=threads,
        shared_bytes=max(stage * stages, 4 * rows * stride),
        rows=rows,
        columns=columns,
        min_blocks={128: 3, 256: 2}.get(threads, 1) if columns < 256 else 1,
    )
