"""Attention over the windows of a packed batch, without the [S, S] matrix of probabilities.

    context = softmax(query key^T / sqrt(Dh)) value, for each window and head.

A task is one head of one window and some of its queries.  It packs the head's keys and values once
into panels for the tiles of gemm.py; then for each few queries (a tile's height) it makes their
scores against all keys, a strip of [12, S] float32 that stays in L1, turns them into probabilities,
and multiplies them with the values.  In bfloat16 and int8 models queries, keys, values and
probabilities are bfloat16 where the processor multiplies those (else float32); softmax is float32.

Measured on one core of a Zen 3 with a sampling profiler (6/384/12, 384 tokens, float32): the
products reach 87 % of the peak, softmax takes a quarter of their time, packing a sixteenth.

exp(s - max) is computed as 2^(c s - c max), with c = log2(e) / sqrt(Dh): one multiplication and
addition does both the scaling and the shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .activations import exp2
from .rows import store_as
from .simd import F32, I16, I32, Code, Value
from .targets import SIZES

NOTHING = -math.inf  # score of a key that is not there
HUGE = 2.0**20  # exponents beyond it are too coarse to be shifted as others are


def transpose(code: Code, rows: list[Value]) -> list[Value]:
    """Turn `lanes` vectors into their columns: halves are interleaved, log2(lanes) times."""
    n = len(rows)
    low = [lane // 2 + (lane % 2) * n for lane in range(n)]
    high = [lane + n // 2 for lane in low]
    for _ in range(n.bit_length() - 1):
        pairs = zip(rows[: n // 2], rows[n // 2 :], strict=True)
        rows = [code.shuffle(a, b, half) for a, b in pairs for half in (low, high)]
    return rows


def pack_keys(
    code: Code, keys: Value, stride: Value, count: Value, size: Value, out: Value, *, dtype: str
) -> None:
    """Lay the keys of a head out as panels [S / panel][steps][panel] of 4 bytes.

    Args:
        code: where to write.
        keys: address of the first key.
        stride: bytes from token to token.
        count: S; the panel's columns beyond it repeat the last key.
        size: Dh.
        out: where the panels go; steps are Dh rounded up to whole vectors, with zeros behind Dh,
            since there the query's row goes on with the next head.
        dtype: of the keys; a step is one float32 or two bfloat16.
    """
    lanes = code.lanes
    last = count - 1
    per = 1 if dtype == "float32" else 2
    full = size if per == 1 else size.shift_unsigned(1)  # steps that hold nothing but this head
    steps = (size + (per * lanes - 1)) & -(per * lanes)
    steps = steps if per == 1 else steps.shift_unsigned(1)

    def square(step: Value, _: list[Value]) -> None:
        keep = code.select(code.mask(full - step), code.constant(-1, code.vector_type(I32)), 0)
        if per == 2:  # half a step, if Dh is odd
            half = code.select(code.mask(full - step + (size & 1)), code.like(0xFFFF, keep), 0)
            keep = code.select(code.mask(full - step), keep, half)

        def some(key: Value, _: list[Value]) -> None:
            block = []
            for i in range(lanes):
                row = code.minimum(key + i, last)
                block.append(code.load(keys + row * stride + step * 4, I32) & keep)
            panel = out + ((key & -(2 * lanes)) * steps + (key & lanes)) * 4
            for i, column in enumerate(transpose(code, block)):
                code.store(column, panel + (step + i) * (8 * lanes))

        code.loop(0, (count + (2 * lanes - 1)) & -(2 * lanes), lanes, some)

    code.loop(0, steps, lanes, square)


def pack_values(
    code: Code, values: Value, stride: Value, count: Value, size: Value, out: Value, *, dtype: str
) -> None:
    """Lay the values of a head out as panels [Dh / panel][steps][panel] of 4 bytes.

    Args:
        code: where to write.
        values: address of the first value.
        stride: bytes from token to token.
        count: S, rounded up to whole panels in the steps, with zeros behind.
        size: Dh; what lies behind it in a panel is never used.
        out: where the panels go.
        dtype: of the values; a step is one token's float32 or two tokens' bfloat16.
    """
    lanes = code.lanes
    panel = 2 * lanes
    tokens = (count + (panel - 1)) & -panel
    per = 1 if dtype == "float32" else 2

    def column(d: Value, _: list[Value]) -> None:
        begin = out + d * tokens * (4 // per)

        def step(token: Value, _: list[Value]) -> None:
            for j in range(2):
                offset = (d + lanes * j) * (4 // per)
                halves = []
                for i in range(per):
                    there = token + i < count
                    row = code.select(there, token + i, 0)
                    x = code.load(values + row * stride + offset, I32 if per == 1 else I16)
                    x = x if per == 1 else code.cast("zext", x, I32)
                    zero = code.constant(0, x.type)
                    halves.append(code.select(there, x, zero))
                x = halves[0] if per == 1 else halves[0] + (halves[1] << 16)
                code.store(x, begin + token * (8 * lanes // per) + 4 * lanes * j)

        code.loop(0, tokens, per, step)

    code.loop(0, size, panel, column)


def softmax(
    code: Code,
    scores: Value,
    rows: Value,
    count: Value,
    size: Value,
    probs: Value,
    shifts: Value,
    inverses: Value,
    *,
    dtype: str,
) -> None:
    """Turn a strip of scores into exp(scores - max); the rows' sums are divided out later.

    Args:
        code: where to write.
        scores: address of [rows, S] float32, S rounded up to whole panels.
        rows: how many queries.
        count: S.
        size: Dh, whose root divides the scores.
        probs: where [rows, S] of `dtype` goes; may be `scores` in float32.
        shifts: where what each row's exponents are shifted by goes, float32.
        inverses: where one over the sum of each row goes, float32.
        dtype: of the probabilities.
    """
    lanes = code.lanes
    panel = 2 * lanes
    width = (count + (panel - 1)) & -panel
    scale = math.log2(math.e) / code.sqrt(code.cast("sitofp", size, F32))
    factor = code.splat(scale)
    number = 4 if dtype == "float32" else 2

    def row(i: Value, _: list[Value]) -> None:
        begin = scores + i * width * 4
        to = probs + i * width * number

        def cover(k: Value, _: list[Value]) -> None:
            x = code.load(begin + k * 4)
            code.store(code.select(code.mask(count - k), x, NOTHING), begin + k * 4)

        code.loop(count & -lanes, width, lanes, cover)

        def larger(k: Value, highest: list[Value]) -> list[Value]:
            a, b = (code.load(begin + k * 4 + 4 * lanes * j) for j in range(2))
            return [code.maximum(a, highest[0]), code.maximum(b, highest[1])]

        least = code.vector(NOTHING)
        highest = code.loop(0, width, panel, larger, [least, least])
        largest = code.reduce(code.maximum(*highest), code.maximum)
        highest_power = largest * scale
        code.store(highest_power * -1.0, shifts + i * 4)
        # Rounding c max is off by the same factor for all keys, until that leaves float32's range:
        # scores so large, of which no sound model has any, are shifted themselves.
        huge = highest_power * highest_power > HUGE**2

        def lower(k: Value, _: list[Value]) -> None:
            code.store(code.load(begin + k * 4) - code.splat(largest), begin + k * 4)

        code.loop(0, code.select(huge, width, 0), lanes, lower)
        shift = code.splat(code.select(huge, 0.0, highest_power * -1.0))

        def power(k: Value, sums: list[Value]) -> list[Value]:
            sums = list(sums)
            for j in range(2):
                x = code.load(begin + k * 4 + 4 * lanes * j)
                p = exp2(code, code.fma(x, factor, shift))
                store_as(code, p, to + k * number + number * lanes * j, dtype)
                sums[j] = sums[j] + p
            return sums

        zero = code.vector(0.0)
        sums = code.loop(0, width, panel, power, [zero, zero])
        total = code.reduce(sums[0] + sums[1], Value.__add__)
        code.store(1.0 / total, inverses + i * 4)

    code.loop(0, rows, 1, row)


def store_context(
    code: Code,
    sums: Value,
    rows: Value,
    inverses: Value,
    count: Value,
    out: Value,
    out_stride: Value,
    *,
    to: str,
) -> None:
    """Divide a tile of sums by the rows' totals and write it into the context.

    Args:
        code: where to write.
        sums: address of [rows, panel] float32.
        rows: how many queries.
        inverses: one over each row's total.
        count: columns that belong to this head, at most a panel.
        out: address of the first row's first column.
        out_stride: bytes from token to token.
        to: how the context is kept: 'float32', 'bfloat16' or 'rounded'.
    """
    number = SIZES[to]

    def row(i: Value, _: list[Value]) -> None:
        begin, to_row = sums + i * (8 * code.lanes), out + i * out_stride
        inverse = code.load_one(inverses + i * 4)

        def some(k: Value, load: Callable[..., Value]) -> None:
            x = load(begin + k * 4)
            store_as(code, x * code.like(inverse, x), to_row + k * number, to)

        code.elements(count, some)

    code.loop(0, rows, 1, row)
