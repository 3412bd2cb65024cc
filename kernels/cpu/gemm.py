"""Matrix products on packed weights: y[t, n] = sum over k of x[t, k] w[n, k].

The idea (Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication"): keep a
tile of y in registers for the whole sum.  One step of the sum loads two vectors of weights and, for
each row of the tile, broadcasts four bytes of x and multiplies:

                     w, one panel: 2 vectors wide, all k deep
                         |        |
      x[row, k] ->   [ acc 0 | acc 1 ]      12 rows x 2 vectors = 24 of 32 registers

- Weights are packed once into panels [N / panel][steps][panel] of 4 bytes, in the order in which
  the steps read them: from L2 the first time, mostly from L1 for the other tiles of a row block.
- A step is 4 bytes of a row: one float32, two bfloat16 or int16, or four int8.  Only the
  multiplication differs between the dtypes; tiles, panels and loops are the same.
- x is read where it lies, rows apart by their stride.

Loads a step: 12 broadcasts and 2 vectors for 24 multiplications, so the multipliers are the limit.
Measured on one core, widths 384 to 3072, by `tools/bench.py cpu`: on a Zen 5 (12 x 2 tiles) 253 to
261 GFLOP/s in float32, 467 to 553 in bfloat16, 958 to 1,076 GOP/s in int8; on a Zen 3 (AVX2, 6 x 2
tiles) 95 to 98 in float32 and 172 to 181 in int8, which is 92 to 95 and 90 to 95 % of the peaks.

int8: x is stored as u = x / s + z, with scale s and zero point z of its row, u from 0 to 255 (or to
127, see Target.largest); w as integers with one scale a column.  The integers are summed exactly:
    y = s * (scale[n] * sum(u w) - z * scale[n] * sum(w)) + bias[n].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from .packing import UNROLL
from .simd import F32, I8, I16, I32, BFloat, Code, Value

# ---------------------------------------------------------------- the tile, in instructions


def dot_float32(code: Code, total: Value, x: Value, w: Value) -> Value:
    """The total, plus x w."""
    return code.fma(code.float_bits(x), code.float_bits(w), total)


def dot_bfloat16(code: Code, total: Value, x: Value, w: Value) -> Value:
    """The total, plus x0 w0 + x1 w1 of the two bfloat16 in each lane; in float32."""
    pairs = ir.VectorType(BFloat(), 2 * code.lanes)
    a, b = code.bits(x, pairs), code.bits(w, pairs)
    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * code.lanes}"
    return code.call(name, total.type, total, a, b)


def dot_int16(code: Code, total: Value, x: Value, w: Value) -> Value:
    """The total, plus x0 w0 + x1 w1 of the two int16 in each lane; exact."""
    total = total + ((x << 16) >> 16) * ((w << 16) >> 16)
    return total + (x >> 16) * (w >> 16)


def dot_int8(code: Code, total: Value, x: Value, w: Value) -> Value:
    """The total, plus the sum of x_i w_i of the four unsigned x, signed w in each lane; exact."""
    bytes_ = ir.VectorType(I8, 4 * code.lanes)
    if code.target.int8 == "vnni":
        # LLVM 22 gave these operands their true type; before, they were int32.
        of = bytes_ if llvm.llvm_version_info[0] >= 22 else x.type
        name = f"llvm.x86.avx512.vpdpbusd.{32 * code.lanes}"
        return code.call(name, total.type, total, code.bits(x, of), code.bits(w, of))
    if code.target.int8 == "maddubs":
        # Neighbours' products in int16, at most 2 * 127 * 127; then the sums of neighbours.
        words = ir.VectorType(I16, 2 * code.lanes)
        first, second = {
            16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
            8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
        }[code.lanes]
        pairs = code.call(first, words, code.bits(x, bytes_), code.bits(w, bytes_))
        return code.opaque(total + code.call(second, total.type, pairs, code.constant(1, words)))
    # sdot takes signed x.  Flipping the top bit subtracts 128; the sums begin with it added again.
    x_bytes, w_bytes = code.bits(x ^ -0x7F7F7F80, bytes_), code.bits(w, bytes_)
    return code.call("llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, x_bytes, w_bytes)


# By how the numbers are kept.
DOTS = {
    "float32": dot_float32,
    "rounded": dot_float32,
    "bfloat16": dot_bfloat16,
    "int16": dot_int16,
    "int8": dot_int8,
}


def sum_type(operand: str) -> Any:
    """LLVM type of the sums of products."""
    return I32 if operand in ("int8", "int16") else F32


def tile(
    code: Code,
    x: Value,
    x_stride: Value,
    w: Value,
    y: Value,
    y_stride: Value,
    steps: Value,
    start: Value,
    start_stride: Value,
    ahead: Value,
    *,
    rows: int,
    operand: str,
    from_zero: bool = False,
    lines: int = 0,
) -> None:
    """y[rows, panel] = start[rows, panel] + x[rows, steps] w[steps, panel].

    Args:
        code: where to write.
        x: address of the first row.
        x_stride: bytes from row to row.
        w: address of one packed panel, or of a part of its steps.
        y: address of the result, 4 bytes a number.
        y_stride: bytes from row to row.
        steps: 4 bytes of x each; a multiple of UNROLL, not 0.
        start: address of what is added: the bias, or the sum of the steps before, `y`.
        start_stride: bytes from row to row; 0 for a bias.
        ahead: address of weights that will be needed soon.
        rows: height of the tile.
        operand: how x and w are kept.
        from_zero: there is no `start`.
        lines: cache lines of `ahead` that each turn of the loop asks for, so that they come from
            memory while this tile computes.
    """
    lanes = code.lanes
    result = sum_type(operand)
    x_rows = [x]
    for _ in range(1, rows):
        x_rows.append(x_rows[-1] + x_stride)

    def body(step: Value, sums: list[Value]) -> list[Value]:
        sums = list(sums)
        x_offset, panel = step * 4, w + step * (8 * lanes)
        for line in range(lines):
            code.prefetch(ahead + step * (64 * lines // UNROLL) + 64 * line)
        for u in range(UNROLL):
            vectors = [code.load(panel + 4 * lanes * (2 * u + j), I32) for j in range(2)]
            for i in range(rows):
                number = code.broadcast(x_rows[i] + x_offset + 4 * u, I32)
                for j in range(2):
                    at = 2 * i + j
                    sums[at] = DOTS[operand](code, sums[at], number, vectors[j])
        return sums

    # From zero: a long sum of float32 loses digits, since each step is rounded at the size of the
    # whole sum; so blocks are summed by themselves first.
    zeros = [code.constant(0, code.vector_type(result))] * (2 * rows)
    sums = code.loop(0, steps, UNROLL, body, zeros)
    for i in range(rows):
        for j in range(2):
            total = sums[2 * i + j]
            if not from_zero:
                total = code.load(start + start_stride * i + 4 * lanes * j, result) + total
            code.store(total, y + y_stride * i + 4 * lanes * j)


BLOCK = 512  # steps: their part of a panel, 64 KB at most, stays in the cache for all tiles of rows
LINES = 2  # cache lines asked for in a turn: four tiles ask for a whole panel


def product(
    code: Code,
    x: Value,
    x_stride: Value,
    rows: Value,
    w: Value,
    y: Value,
    y_stride: Value,
    steps: Value,
    start: Value,
    start_stride: Value,
    ahead: Value,
    *,
    name: str,
    operand: str,
    from_zero: bool = False,
    lines: int = 0,
) -> None:
    """As `tile`, for any number of rows: tile below tile, each as high as suits what is left.

    `name` is that of the tiles' functions, with their height behind it; `rows` is how many there
    are in all; everything else is as `tile` has it.
    """
    high, middle, low = code.target.tile_rows

    def below(i: Value, carried: list[Value]) -> list[Value]:
        left, asked = rows - i, carried[0]
        arguments = (
            x + i * x_stride, x_stride, w, y + i * y_stride, y_stride, steps,
            start + i * start_stride, start_stride, asked,
        )  # fmt: skip

        def of_height(height: int) -> Callable[[], None]:
            kernel = partial(tile, rows=height, operand=operand, from_zero=from_zero, lines=lines)
            return lambda: code.run(f"{name}_{height}", kernel, *arguments)

        # The lowest tile has too few sums to keep the multipliers busy: what is a little more than
        # a high one is better done as a middle one and another than as a high and a low one.
        zero, one, two = (code.integer(i) for i in range(3))
        above = code.select(left > high + low, zero, code.select(left > high, one, zero))
        number = code.select(left > middle, above, code.select(left > low, one, two))
        code.switch(number, [of_height(height) for height in (high, middle, low)])
        lower = code.select(number > 1, code.integer(low), middle)
        done = code.select(number > 0, lower, high)
        return [i + done, asked + steps * (64 * lines // UNROLL)]

    code.loop(0, rows, None, below, [ahead])


def peak(code: Code, turns: Value, out: Value, *, operand: str) -> None:
    """Multiply numbers that are already in registers: the most that any product could reach.

    Each sum is multiplied with a constant and added to itself: were the factors the same in each
    turn, LLVM would multiply them once.

    Args:
        code: where to write.
        turns: of the loop; each multiplies as many vectors as the largest tile has.
        out: address of a panel, which is read and written so that nothing is left out.
        operand: how the numbers are kept.
    """
    result = sum_type(operand)
    of = code.vector_type(result)
    w = code.load(out, I32)

    def body(_: Value, sums: list[Value]) -> list[Value]:
        return [DOTS[operand](code, total, code.int_bits(total), w) for total in sums]

    begin = [code.constant(i, of) for i in range(2 * code.target.tile_rows[0])]
    sums = code.loop(0, turns, 1, body, begin)
    total = sums[0]
    for other in sums[1:]:
        total = total + other
    code.store(total, out)
