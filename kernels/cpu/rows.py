"""What happens to rows between the matrix products: sums, norms, activations, narrowing.

All of it runs on the rows of one block right after the product that made them, while they are in
L1 or L2.  Rows are float32 and as wide as whole panels; the columns behind the last true one are
zero and stay zero, so loops need no masks, except where a norm counts columns.

Formulas: layer norm and the steps of kernels/reference.py.  A row in int8 is
u = round(x / s) + z, with s = (max - min) / 255 and z = round(-min / s), over max >= 0 >= min
(127 in place of 255 on some targets).
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from .activations import ACTIVATIONS, ROUND
from .records import ENDINGS
from .simd import F32, I8, I16, I32, I64, BFloat, Code, Value
from .targets import SIZES


def nearest_even(code: Code, x: Value) -> Value:
    """Bits of float32, whose upper half is the nearest bfloat16; the even one of two as near."""
    bits = code.int_bits(x)
    return bits + (bits.shift_unsigned(16) & 1) + 0x7FFF


def to_bfloat16(code: Code, x: Value) -> Value:
    """Round float32 to bfloat16, as int16 bits; to the nearest, ties to even."""
    if code.target.bfloat16 == "dot" and isinstance(x.type, ir.VectorType):
        pairs = ir.VectorType(BFloat(), code.lanes)
        name = f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * code.lanes}"
        return code.bits(code.call(name, pairs, x), code.vector_type(I16))
    return code.cast("trunc", nearest_even(code, x).shift_unsigned(16), I16)


def store_as(code: Code, x: Value, address: Value, kind: str) -> None:
    """Store float32 as it is, as 'bfloat16', or 'rounded' to what bfloat16 could hold."""
    if kind == "bfloat16":
        x = to_bfloat16(code, x)
    elif kind == "rounded":
        x = code.float_bits(nearest_even(code, x) & -0x10000)
    code.store(x, address)


def panel_end(
    code: Code,
    ending: Value,
    panel: Value,
    sums: Value,
    rows: Value,
    row_scales: Value,
    columns: Value,
    residual: Value,
    residual_stride: Value,
    out: Value,
    out_stride: Value,
    *,
    dtype: str,
    qkv: str,
    inner: str,
) -> None:
    """out[rows, panel] = what an ending makes of the sums: what follows the product of one panel.

    Args:
        code: where to write.
        ending: number of the ending in records.ENDINGS.
        panel: which, counted from the left.
        sums: address of the tiles' result, [rows, panel], bias included except in int8.
        rows: how many.
        row_scales: int8 only: scale and zero point of each row.
        columns: int8 only: address of the layer's columns, [panels, 3, panel] float32: scale,
            scale * sum(w), bias.
        residual: address of the block's first row; float32.
        residual_stride: bytes from row to row.
        out: address of the block's first row.
        out_stride: bytes from row to row.
        dtype: of the product.
        qkv: how queries, keys and values are kept: 'float32' or 'bfloat16'.
        inner: how the results of an activation are kept: 'float32', 'bfloat16' or 'rounded'.
    """
    width = 4 * code.lanes
    first = panel * (2 * width)
    columns = columns + first * 3

    def total(i: Value, offset: int) -> Value:
        if dtype != "int8":
            return code.load(sums + i * (2 * width) + offset)
        integers = code.load(sums + i * (2 * width) + offset, I32)
        scale = code.broadcast(row_scales + i * 8)
        zero = code.broadcast(row_scales + i * 8 + 4)
        w_scale = code.load(columns + offset)
        w_sum = code.load(columns + 2 * width + offset)
        bias = code.load(columns + 4 * width + offset)
        x = code.cast("sitofp", integers, F32) * w_scale - zero * w_sum
        return code.fma(x, scale, bias)

    def case(kind: str) -> Callable[[], None]:
        to = {"plain": "float32", "qkv": qkv, "residual": "float32"}.get(kind, inner)
        begin = out + panel * (2 * code.lanes * SIZES[to])

        def row(i: Value, _: list[Value]) -> None:
            for j in range(2):
                x = total(i, width * j)
                if kind in ACTIVATIONS:
                    x = ACTIVATIONS[kind](code, x)
                if kind == "residual":
                    x = x + code.load(residual + first + i * residual_stride + width * j)
                store_as(code, x, begin + i * out_stride + SIZES[to] * code.lanes * j, to)

        def all_rows() -> None:
            code.loop(0, rows, 1, row)

        return all_rows

    code.switch(ending, [case(kind) for kind in ENDINGS])


def moments(code: Code, begin: Value, count: Value, epsilon: Value) -> tuple[Value, Value]:
    """Mean of a row, in every lane, and one over its deviation: 1 / sqrt(variance + epsilon).

    Args:
        code: where to write.
        begin: address of the row, float32; columns behind `count` are zero, up to a whole panel.
        count: D, the columns that count.
        epsilon: a number.
    """
    lanes = code.lanes
    panel = 2 * lanes
    width, whole = (count + (panel - 1)) & -panel, count & -lanes
    inverse = 1.0 / code.cast("sitofp", count, F32)

    def add(k: Value, sums: list[Value]) -> list[Value]:
        a, b = (code.load(begin + k * 4 + 4 * lanes * j) for j in range(2))
        return [sums[0] + a, sums[1] + b]

    zero = code.vector(0.0)
    a, b = code.loop(0, width, panel, add, [zero, zero])
    mean = code.splat(code.reduce(a + b, Value.__add__) * inverse)

    def squares(k: Value, sums: list[Value]) -> list[Value]:
        centred = code.load(begin + k * 4) - mean
        return [code.fma(centred, centred, sums[0])]

    def last_squares(k: Value, sums: list[Value]) -> list[Value]:
        centred = code.select(code.mask(count - k), code.load(begin + k * 4) - mean, 0.0)
        return [code.fma(centred, centred, sums[0])]

    square = code.loop(0, whole, lanes, squares, [zero])
    square = code.loop(whole, count, lanes, last_squares, square)
    variance = code.reduce(square[0], Value.__add__) * inverse
    return mean, 1.0 / code.sqrt(variance + epsilon)


def layer_norm(
    code: Code,
    x: Value,
    x_stride: Value,
    rows: Value,
    count: Value,
    norm: Value,
    eps: Value,
    narrow: Value,
    narrow_stride: Value,
    *,
    to: str,
) -> None:
    """Normalise rows in place; for bfloat16 also write them narrowed.

    Args:
        code: where to write.
        x: address of the first row, float32.
        x_stride: bytes from row to row.
        rows: how many.
        count: D, the columns that count.
        norm: address of the gain, then the bias, each as wide as a padded row.
        eps: address of the number to add to the variance, float32.
        narrow: where the narrowed rows go.
        narrow_stride: bytes from row to row.
        to: how they are kept: 'bfloat16' or 'rounded'; 'float32' for none.
    """
    lanes = code.lanes
    width = (count + (2 * lanes - 1)) & -(2 * lanes)  # of a padded row
    epsilon = code.load_one(eps)

    def row(i: Value, _: list[Value]) -> None:
        begin = x + i * x_stride
        mean, scale = moments(code, begin, count, epsilon)
        factor = code.splat(scale)

        def normalise(k: Value, _: list[Value]) -> None:
            centred = code.load(begin + k * 4) - mean
            gain = code.load(norm + k * 4)
            y = code.fma(centred * factor, gain, code.load(norm + (width + k) * 4))
            code.store(y, begin + k * 4)
            if to != "float32":
                store_as(code, y, narrow + i * narrow_stride + k * SIZES[to], to)

        code.loop(0, width, lanes, normalise)

    code.loop(0, rows, 1, row)


def quantise(
    code: Code,
    x: Value,
    x_stride: Value,
    rows: Value,
    width: Value,
    out: Value,
    out_stride: Value,
    row_scales: Value,
    *,
    to: str,
) -> None:
    """Turn float32 rows into integers of 8 or 7 bits, kept as `to`: 'int8', no sign, or 'int16'.

    Their scales and zero points go to `row_scales`.
    """
    lanes, largest = code.lanes, float(code.target.largest)

    def row(i: Value, _: list[Value]) -> None:
        begin = x + i * x_stride

        def range_(k: Value, ends: list[Value]) -> list[Value]:
            a, b = (code.load(begin + k * 4 + 4 * lanes * j) for j in range(2))
            low, high, low2, high2, odd, odd2 = ends
            return [
                code.minimum(low, a),
                code.maximum(high, a),
                code.minimum(low2, b),
                code.maximum(high2, b),
                code.fma(a, 0.0, odd),
                code.fma(b, 0.0, odd2),
            ]

        zeros = [code.vector(0.0)] * 6
        low, high, low2, high2, odd, odd2 = code.loop(0, width, 2 * lanes, range_, zeros)
        smallest = code.reduce(code.minimum(low, low2), code.minimum)
        span = code.reduce(code.maximum(high, high2), code.maximum) - smallest
        # A row of zeros, or as good as that, gets scale 1, which keeps the inverse finite.
        scale = code.select(span > 1e-30, span * (1 / largest), 1.0)
        # NaN, which integers cannot be, goes into the scale: 0 times it or infinity is NaN, too.
        scale = scale + code.reduce(odd + odd2, Value.__add__)
        inverse = 1.0 / scale
        zero = (smallest * inverse * -1.0 + ROUND) - ROUND
        code.store(scale, row_scales + i * 8)
        code.store(zero, row_scales + i * 8 + 4)
        factor, shift = code.splat(inverse), code.splat(zero)

        def narrow(k: Value, _: list[Value]) -> None:
            y = code.fma(code.load(begin + k * 4), factor, shift)
            y = code.minimum(code.maximum(y, 0.0), largest) + ROUND
            integers = code.cast("trunc", code.int_bits(y), I8 if to == "int8" else I16)
            code.store(integers, out + i * out_stride + k * SIZES[to])

        code.loop(0, width, lanes, narrow)

    code.loop(0, rows, 1, row)


def narrow(
    code: Code,
    x: Value,
    x_stride: Value,
    rows: Value,
    width: Value,
    out: Value,
    out_stride: Value,
    *,
    to: str,
) -> None:
    """Turn float32 rows into 'bfloat16' or 'rounded' ones."""

    def row(i: Value, _: list[Value]) -> None:
        def some(k: Value, _: list[Value]) -> None:
            y = code.load(x + i * x_stride + k * 4)
            store_as(code, y, out + i * out_stride + k * SIZES[to], to)

        code.loop(0, width, code.lanes, some)

    code.loop(0, rows, 1, row)


def add_table_row(
    code: Code,
    table: Value,
    scales: Value,
    ids: Value,
    rows: Value,
    count: Value,
    out: Value,
    out_stride: Value,
    *,
    int8: bool,
) -> None:
    """Add the rows of an embedding table to float32 rows.

    Args:
        code: where to write.
        table: address of [V, D], float32 or int8.
        scales: int8 only: address of [V] float32.
        ids: address of the first token's, int32.
        rows: how many tokens.
        count: D.
        out: address of the block's first row.
        out_stride: bytes from row to row.
        int8: what the table holds.
    """

    def row(i: Value, _: list[Value]) -> None:
        number = code.cast("sext", code.load_one(ids + i * 4, I32), I64)
        begin, to = table + number * count * (1 if int8 else 4), out + i * out_stride

        def some(k: Value, load: Callable[..., Value]) -> None:
            if int8:
                x = code.cast("sitofp", load(begin + k, I8), F32)
                x = x * code.like(code.load_one(scales + number * 4), x)
            else:
                x = load(begin + k * 4)
            code.store(load(to + k * 4) + x, to + k * 4)

        code.elements(count, some)

    code.loop(0, rows, 1, row)


def clear(code: Code, out: Value, out_stride: Value, rows: Value, width: Value) -> None:
    """Set float32 rows to zero."""

    def row(i: Value, _: list[Value]) -> None:
        def some(k: Value, _: list[Value]) -> None:
            code.store(code.vector(0.0), out + i * out_stride + k * 4)

        code.loop(0, width, code.lanes, some)

    code.loop(0, rows, 1, row)


def clear_columns(
    code: Code, out: Value, out_stride: Value, rows: Value, begin: Value, end: Value
) -> None:
    """Set bytes [begin, end) of each row to zero, two at a time."""

    def row(i: Value, _: list[Value]) -> None:
        zero = code.constant(0, I16)
        code.loop(begin, end, 2, lambda k, _: code.store(zero, out + i * out_stride + k))

    code.loop(0, rows, 1, row)


def span_logits(
    code: Code,
    x: Value,
    x_stride: Value,
    rows: Value,
    width: Value,
    head: Value,
    start: Value,
    end: Value,
) -> None:
    """Score each row as the start and the end of the answer.

    Args:
        code: where to write.
        x: address of the first row, float32.
        x_stride: bytes from row to row.
        rows: how many.
        width: of a padded row.
        head: address of the start's weights, the end's weights, each a padded row, and two biases.
        start: where the start logits go, 4 bytes a row.
        end: where the end logits go.
    """

    def row(i: Value, _: list[Value]) -> None:
        begin = x + i * x_stride

        def add(k: Value, sums: list[Value]) -> list[Value]:
            number = code.load(begin + k * 4)
            return [
                code.fma(number, code.load(head + k * 4), sums[0]),
                code.fma(number, code.load(head + (width + k) * 4), sums[1]),
            ]

        zero = code.vector(0.0)
        sums = code.loop(0, width, code.lanes, add, [zero, zero])
        for j, to in enumerate((start, end)):
            bias = code.load_one(head + width * 8 + 4 * j)
            code.store(code.reduce(sums[j], Value.__add__) + bias, to + i * 4)

    code.loop(0, rows, 1, row)
