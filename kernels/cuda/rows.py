"""What is done to each token's row by itself: embeddings, the layer norm, the span logits.

    embed        y = norm(words[id] + token_types[type] + positions[position])
    norm         y = (x - mean(x)) / sqrt(variance(x) + eps) * gain + bias
    add_norm     y = norm(sum of parts + bias of the product + residual)
    span_logits  start, end = x @ weight.T + bias

A warp takes a row: each lane holds eight neighbouring numbers of every 256, in registers, so a row
is read once.  Sums over a row are sums over the lanes (five shuffles).  The variance is the mean
square of what is left when the mean is taken off, as in reference.py, not the difference of two
large numbers.

These kernels move memory and hardly compute: the limit is the memory's bandwidth.
Measured share of it: none yet, see README.md, section CUDA.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32, int32, uint32

from .language import ALL_LANES, POINTERS, Kernel, device, load, store
from .vectors import add8, read8, read8_float32, write8

WARPS = 4  # rows that a block takes
PER_WARP = 256  # numbers that a warp reads at once: 32 lanes times 8
ZERO, ONE = np.float32(0), np.float32(1)


@device
def own_row():
    """Which lane of its warp this thread is, and which row the warp takes."""
    thread = uint32(cuda.threadIdx.x)
    row = int32(cuda.blockIdx.x) * int32(WARPS) + int32(thread >> uint32(5))
    return int32(thread & uint32(31)), row


@device
def sum_of_lanes(x):
    """The sum over the 32 lanes of a warp, in each of them."""
    x += cuda.shfl_xor_sync(ALL_LANES, x, 16)
    x += cuda.shfl_xor_sync(ALL_LANES, x, 8)
    x += cuda.shfl_xor_sync(ALL_LANES, x, 4)
    x += cuda.shfl_xor_sync(ALL_LANES, x, 2)
    x += cuda.shfl_xor_sync(ALL_LANES, x, 1)
    return x


def normalise(dtype: str, width: int) -> Any:
    """A function (x, total, gain, bias, y, row, lane, eps): the layer norm of a warp's row.

    x: the lane's numbers, float32; total: their sum; y: where row `row` is written.
    """
    chunks = -(-width // PER_WARP)
    write = write8(dtype)
    share = np.float32(1 / width)

    @device
    def normalise(x, total, gain, bias, y, row, lane, eps):
        mean = sum_of_lanes(total) * share
        squares = ZERO
        for c in range(chunks):
            if lane * int32(8) + int32(c * PER_WARP) < int32(width):
                for j in range(8):
                    centred = load(x, int32(8 * c + j)) - mean
                    squares += centred * centred
        scale = ONE / math.sqrt(sum_of_lanes(squares) * share + eps)
        for c in range(chunks):
            column = lane * int32(8) + int32(c * PER_WARP)
            if column < int32(width):
                g = read8_float32(gain, column)
                b = read8_float32(bias, column)
                write(
                    y,
                    row * int32(width) + column,
                    (
                        (load(x, int32(8 * c)) - mean) * scale * g[0] + b[0],
                        (load(x, int32(8 * c + 1)) - mean) * scale * g[1] + b[1],
                        (load(x, int32(8 * c + 2)) - mean) * scale * g[2] + b[2],
                        (load(x, int32(8 * c + 3)) - mean) * scale * g[3] + b[3],
                        (load(x, int32(8 * c + 4)) - mean) * scale * g[4] + b[4],
                        (load(x, int32(8 * c + 5)) - mean) * scale * g[5] + b[5],
                        (load(x, int32(8 * c + 6)) - mean) * scale * g[6] + b[6],
                        (load(x, int32(8 * c + 7)) - mean) * scale * g[7] + b[7],
                    ),
                )

    return normalise


@device
def keep8(x, chunk, values):
    """Put a lane's eight numbers into its registers; their sum."""
    for j in range(8):
        store(x, int32(8 * chunk + j), values[j])
    total = values[0] + values[1] + values[2] + values[3]
    return total + values[4] + values[5] + values[6] + values[7]


def embed(dtype: str, width: int) -> Kernel:
    """The sum of three embeddings of each token, and its layer norm.

    Kernel arguments: counts, input ids [T], token types [T], positions [T], the tables of words,
    token types and positions, gain, bias, y [T, width], eps.
    """
    chunks = -(-width // PER_WARP)
    held = 8 * chunks
    read = read8(dtype)
    finish_row = normalise(dtype, width)

    def kernel(
        counts, input_ids, token_type_ids, position_ids, words, token_types, positions, gain, bias,
        y, eps,
    ):  # fmt: skip
        lane, row = own_row()
        if row >= load(counts, int32(0)):
            return
        x = cuda.local.array(held, float32)
        word = load(input_ids, row) * int32(width)
        token_type = load(token_type_ids, row) * int32(width)
        position = load(position_ids, row) * int32(width)
        total = ZERO
        for c in range(chunks):
            column = lane * int32(8) + int32(c * PER_WARP)
            if column < int32(width):
                values = add8(read(words, word + column), read(token_types, token_type + column))
                total += keep8(x, c, add8(values, read(positions, position + column)))
        finish_row(x, total, gain, bias, y, row, lane, eps)

    tables = [POINTERS[dtype]] * 3
    return Kernel(
        name=f"embed_{dtype}_{width}",
        function=kernel,
        arguments=(
            *["int32*"] * 4, *tables, "float32*", "float32*", POINTERS[dtype], "float32",
        ),
        threads=32 * WARPS,
        rows=WARPS,
    )  # fmt: skip


def norm(dtype: str, width: int) -> Kernel:
    """The layer norm of each row.

    Kernel arguments: counts, x [T, width], gain, bias, y [T, width], eps.
    """
    chunks = -(-width // PER_WARP)
    held = 8 * chunks
    read = read8(dtype)
    finish_row = normalise(dtype, width)

    def kernel(counts, x, gain, bias, y, eps):
        lane, row = own_row()
        if row >= load(counts, int32(0)):
            return
        held_x = cuda.local.array(held, float32)
        total = ZERO
        for c in range(chunks):
            column = lane * int32(8) + int32(c * PER_WARP)
            if column < int32(width):
                total += keep8(held_x, c, read(x, row * int32(width) + column))
        finish_row(held_x, total, gain, bias, y, row, lane, eps)

    return Kernel(
        name=f"norm_{dtype}_{width}",
        function=kernel,
        arguments=("int32*", POINTERS[dtype], "float32*", "float32*", POINTERS[dtype], "float32"),
        threads=32 * WARPS,
        rows=WARPS,
    )


def add_norm(dtype: str, width: int) -> Kernel:
    """Add up the parts of a matrix product, its bias and the residual; then the layer norm.

    Kernel arguments: counts, parts [splits, capacity, width] float32, splits, capacity, bias of
    the product, residual [T, width], gain, bias, y [T, width], eps.
    """
    chunks = -(-width // PER_WARP)
    held = 8 * chunks
    read = read8(dtype)
    finish_row = normalise(dtype, width)

    def kernel(counts, parts, splits, capacity, product_bias, residual, gain, bias, y, eps):
        lane, row = own_row()
        if row >= load(counts, int32(0)):
            return
        x = cuda.local.array(held, float32)
        total = ZERO
        for c in range(chunks):
            column = lane * int32(8) + int32(c * PER_WARP)
            if column < int32(width):
                values = read8_float32(product_bias, column)
                for part in range(splits):
                    index = (int32(part) * capacity + row) * int32(width) + column
                    values = add8(values, read8_float32(parts, index))
                values = add8(values, read(residual, row * int32(width) + column))
                total += keep8(x, c, values)
        finish_row(x, total, gain, bias, y, row, lane, eps)

    return Kernel(
        name=f"add_norm_{dtype}_{width}",
        function=kernel,
        arguments=(
            "int32*", "float32*", "int32", "int32", "float32*", POINTERS[dtype], "float32*",
            "float32*", POINTERS[dtype], "float32",
        ),
        threads=32 * WARPS,
        rows=WARPS,
    )  # fmt: skip


def span_logits(dtype: str, width: int) -> Kernel:
    """Score each token as the first and as the last of the answer.

    Kernel arguments: counts, x [T, width], weight [2, width] and bias [2] in float32, logits
    [2, capacity] float32, capacity.
    """
    chunks = -(-width // PER_WARP)
    read = read8(dtype)

    @device
    def dot8(a, b):
        total = a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]
        return total + a[4] * b[4] + a[5] * b[5] + a[6] * b[6] + a[7] * b[7]

    def kernel(counts, x, weight, bias, logits, capacity):
        lane, row = own_row()
        if row >= load(counts, int32(0)):
            return
        start = ZERO
        end = ZERO
        for c in range(chunks):
            column = lane * int32(8) + int32(c * PER_WARP)
            if column < int32(width):
                values = read(x, row * int32(width) + column)
                start += dot8(values, read8_float32(weight, column))
                end += dot8(values, read8_float32(weight, int32(width) + column))
        start = sum_of_lanes(start)
        end = sum_of_lanes(end)
        if lane == int32(0):
            store(logits, row, start + load(bias, int32(0)))
            store(logits, capacity + row, end + load(bias, int32(1)))

    return Kernel(
        name=f"span_logits_{dtype}_{width}",
        function=kernel,
        arguments=("int32*", POINTERS[dtype], "float32*", "float32*", "float32*", "int32"),
        threads=32 * WARPS,
        rows=WARPS,
    )
