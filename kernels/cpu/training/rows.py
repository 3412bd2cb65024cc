"""What happens to rows in training: dropout, slopes of activations, norms, sums over tokens.

Formulas: kernels/gradients.py.  Rows are as wide as whole panels.  Columns behind the last true one
are zero wherever a product or a sum reads them.
"""

from __future__ import annotations

from collections.abc import Callable

from ..attention import transpose as transpose_square
from ..records import DROPOUT
from ..rows import moments, store_as
from ..simd import F32, I16, I32, I64, Code, Value
from ..targets import SIZES

# ---------------------------------------------------------------- memory, and sums over tokens


def load_as(
    code: Code, address: Value, kind: str, load: Callable[..., Value] | None = None
) -> Value:
    """Load float32, 'rounded' or 'bfloat16' numbers as float32."""
    load = load or code.load
    if kind != "bfloat16":
        return load(address)
    return code.float_bits(code.cast("zext", load(address, I16), I32) << 16)


def transpose(
    code: Code,
    x: Value,
    x_stride: Value,
    tokens: Value,
    columns: Value,
    out: Value,
    out_stride: Value,
    sums: Value,
    *,
    kind: str,
) -> None:
    """out[c, t] = x[t, c], with zeros behind the last token; and the sum of each column.

    Args:
        code: where to write.
        x: address of the first token's first column.
        x_stride: bytes from token to token.
        tokens: T; out has whole panels of tokens.
        columns: how many; rounded up to whole vectors, here and there.
        out: address of the first column's row.
        out_stride: bytes from column to column.
        sums: where the columns' sums go, float32.
        kind: how numbers are kept, of x and of out.
    """
    lanes, size = code.lanes, SIZES[kind]
    per = 4 // size  # tokens in 4 bytes
    block = lanes * per
    whole = tokens - (tokens & (block - 1))
    padded = (tokens + (2 * lanes - 1)) & -(2 * lanes)

    def column(c: Value, _: list[Value]) -> None:
        def square(t: Value, carried: list[Value], last: bool) -> list[Value]:
            words, numbers = [], []
            for i in range(lanes):
                parts = []
                for j in range(per):
                    token = t + (i * per + j)
                    there = token < tokens
                    row = code.select(there, token, 0) if last else token
                    part = code.load(x + row * x_stride + c * size, I32 if per == 1 else I16)
                    part = part if per == 1 else code.cast("zext", part, I32)
                    if last:
                        part = code.select(there, part, code.constant(0, part.type))
                    parts.append(part)
                    numbers.append(code.float_bits(part if per == 1 else part << 16))
                words.append(parts[0] if per == 1 else parts[0] + (parts[1] << 16))
            for i, word in enumerate(transpose_square(code, words)):
                code.store(word, out + (c + i) * out_stride + t * size)
            while len(numbers) > 1:
                half = len(numbers) // 2
                numbers = [a + b for a, b in zip(numbers[:half], numbers[half:], strict=True)]
            return [carried[0] + numbers[0]]

        total = [code.vector(0.0)]
        total = code.loop(0, whole, block, lambda t, s: square(t, s, False), total)
        total = code.loop(whole, padded, block, lambda t, s: square(t, s, True), total)
        code.store(total[0], sums + c * 4)

    code.loop(0, columns, lanes, column)


def narrow_rows(
    code: Code,
    x: Value,
    x_stride: Value,
    rows: Value,
    count: Value,
    out: Value,
    out_stride: Value,
    *,
    to: str,
) -> None:
    """Turn `count` columns of float32 rows into 'bfloat16' or 'rounded' ones."""

    def row(i: Value, _: list[Value]) -> None:
        def some(k: Value, load: Callable[..., Value]) -> None:
            y = load(x + i * x_stride + k * 4)
            store_as(code, y, out + i * out_stride + k * SIZES[to], to)

        code.elements(count, some)

    code.loop(0, rows, 1, row)


def add_columns(
    code: Code,
    sums: Value,
    rows: Value,
    count: Value,
    out: Value,
    out_stride: Value,
) -> None:
    """Add a panel of sums [rows, panel] to `count` columns of float32 rows."""

    def row(i: Value, _: list[Value]) -> None:
        begin, to = sums + i * (8 * code.lanes), out + i * out_stride

        def some(k: Value, load: Callable[..., Value]) -> None:
            code.store(load(to + k * 4) + load(begin + k * 4), to + k * 4)

        code.elements(count, some)

    code.loop(0, rows, 1, row)


def scatter(
    code: Code,
    x: Value,
    x_stride: Value,
    ids: Value,
    tokens: Value,
    count: Value,
    table: Value,
    table_stride: Value,
) -> None:
    """table[ids[t]] += x[t] for each token in order, on `count` columns; ids are int32."""

    def row(t: Value, _: list[Value]) -> None:
        number = code.cast("sext", code.load_one(ids + t * 4, I32), I64)
        begin, to = x + t * x_stride, table + number * table_stride

        def some(k: Value, load: Callable[..., Value]) -> None:
            code.store(load(to + k * 4) + load(begin + k * 4), to + k * 4)

        code.elements(count, some)

    code.loop(0, tokens, 1, row)


# ---------------------------------------------------------------- dropout


def scramble(code: Code, x: Value) -> Value:
    """Turn int32 into others; see kernels/gradients.py."""
    x = (x ^ x.shift_unsigned(16)) * (0x85EBCA6B - 2**32)
    x = (x ^ x.shift_unsigned(13)) * (0xC2B2AE35 - 2**32)
    return x ^ x.shift_unsigned(16)


def drop(
    code: Code,
    x: Value,
    x_stride: Value,
    rows: Value,
    width: Value,
    out: Value,
    out_stride: Value,
    place: Value,
    row_step: Value,
    column_step: Value,
    dropout: Value,
    *,
    kind: str,
    to: str,
) -> None:
    """Set some numbers of each row to 0, and multiply the others; what is 0 stays 0.

    Args:
        code: where to write.
        x: address of the first row.
        x_stride: bytes from row to row.
        rows: how many.
        width: columns, whole vectors.
        out: where the result goes; may be x.
        out_stride: bytes from row to row.
        place: number of the first row's first place.
        row_step: how much the places of the next row are higher.
        column_step: how much that of the next column is higher.
        dropout: address of a records.DROPOUT.
        kind: how x is kept.
        to: how the result is kept.
    """
    key, bound, scale = (
        code.load_one(dropout + DROPOUT.fields[name][1], of)  # type: ignore[index]
        for name, of in (("key", I32), ("bound", I32), ("scale", F32))
    )
    lanes = code.constant(0, code.vector_type(I32))
    lanes = Value(code, type(lanes.llvm)(lanes.type, list(range(code.lanes))))
    steps = lanes * code.splat(code.cast("trunc", column_step, I32))

    def row(i: Value, _: list[Value]) -> None:
        first = place + i * row_step

        def some(k: Value, _: list[Value]) -> None:
            number = code.cast("trunc", first + k * column_step, I32) + key
            # The comparison is one of signed numbers, and so both are lowered by 2^31.
            mixed = scramble(code, steps + code.splat(number)) ^ -(2**31)
            y = load_as(code, x + i * x_stride + k * SIZES[kind], kind) * code.splat(scale)
            y = code.select(mixed < code.splat(bound), 0.0, y)
            store_as(code, y, out + i * out_stride + k * SIZES[to], to)

        code.loop(0, width, code.lanes, some)

    code.loop(0, rows, 1, row)


def add_rows(
    code: Code,
    x: Value,
    x_stride: Value,
    rows: Value,
    width: Value,
    other: Value,
    other_stride: Value,
) -> None:
    """Add float32 rows to others, in place: x += other."""

    def row(i: Value, _: list[Value]) -> None:
        def some(k: Value, _: list[Value]) -> None:
            at = x + i * x_stride + k * 4
            code.store(code.load(at) + code.load(other + i * other_stride + k * 4), at)

        code.loop(0, width, code.lanes, some)

    code.loop(0, rows, 1, row)


# ---------------------------------------------------------------- norms and the head


def columns(code: Code, count: Value, body: Callable[[Value, Value | None], None]) -> None:
    """Run over the columns of a padded row: vectors of true columns, then the mixed and empty ones.

    Args:
        code: where to write.
        count: true columns; the row is as wide as whole panels.
        body: writes one turn; gets the first column, and which lanes are true columns (None: all).
    """
    whole = count & -code.lanes
    width = (count + (2 * code.lanes - 1)) & -(2 * code.lanes)
    code.loop(0, whole, code.lanes, lambda k, _: body(k, None))
    code.loop(whole, width, code.lanes, lambda k, _: body(k, code.mask(count - k)))


def only(code: Code, mask: Value | None, x: Value) -> Value:
    """The true columns of x, with zeros for the others."""
    return x if mask is None else code.select(mask, x, 0.0)


def clear_numbers(code: Code, out: Value, count: Value) -> None:
    """Set so many float32 numbers, whole vectors, to zero."""
    code.loop(0, count, code.lanes, lambda k, _: code.store(code.vector(0.0), out + k * 4))


def layer_norm_kept(
    code: Code,
    x: Value,
    x_stride: Value,
    rows: Value,
    count: Value,
    norm: Value,
    eps: Value,
    out: Value,
    out_stride: Value,
    operand: Value,
    operand_stride: Value,
    inverses: Value,
    *,
    to: str,
) -> None:
    """Normalise rows in place, before gain and bias; with them they go to `out` and `operand`.

    Args:
        code: where to write.
        x: address of the first row, float32; becomes (x - mean) / deviation.
        x_stride: bytes from row to row.
        rows: how many.
        count: D.
        norm: address of the gain, then the bias, each as wide as a padded row.
        eps: address of the number to add to the variance, float32.
        out: where the result goes, float32.
        out_stride: bytes from row to row.
        operand: where it goes as products read it; not written in float32.
        operand_stride: bytes from row to row.
        inverses: where one over the deviation of each row goes, float32.
        to: how the operand is kept.
    """
    lanes = code.lanes
    width = (count + (2 * lanes - 1)) & -(2 * lanes)
    epsilon = code.load_one(eps)

    def row(i: Value, _: list[Value]) -> None:
        begin = x + i * x_stride
        mean, scale = moments(code, begin, count, epsilon)
        factor = code.splat(scale)
        code.store(scale, inverses + i * 4)

        def normalise(k: Value, mask: Value | None) -> None:
            normal = only(code, mask, (code.load(begin + k * 4) - mean) * factor)
            y = code.fma(normal, code.load(norm + k * 4), code.load(norm + (width + k) * 4))
            code.store(normal, begin + k * 4)
            code.store(y, out + i * out_stride + k * 4)
            if to != "float32":
                store_as(code, y, operand + i * operand_stride + k * SIZES[to], to)

        columns(code, count, normalise)

    code.loop(0, rows, 1, row)


def layer_norm_backward(
    code: Code,
    d: Value,
    d_stride: Value,
    rows: Value,
    count: Value,
    norm: Value,
    normal: Value,
    normal_stride: Value,
    inverses: Value,
    operand: Value,
    operand_stride: Value,
    sums: Value,
    *,
    to: str,
) -> None:
    """Gradient of a norm's input, in place of that of its output; and what gain and bias get.

    Args:
        code: where to write.
        d: address of the first row, float32.
        d_stride: bytes from row to row.
        rows: how many.
        count: D.
        norm: address of the gain, as wide as a padded row.
        normal: the normalised rows, see `layer_norm_kept`.
        normal_stride: bytes from row to row.
        inverses: one over the deviation of each row.
        operand: where the result goes as products read it; not written in float32.
        operand_stride: bytes from row to row.
        sums: where these rows' gradients of gain and bias go, each as wide as a padded row.
        to: how the operand is kept.
    """
    lanes = code.lanes
    width = (count + (2 * lanes - 1)) & -(2 * lanes)
    inverse = 1.0 / code.cast("sitofp", count, F32)

    clear_numbers(code, sums, width + width)

    def row(i: Value, _: list[Value]) -> None:
        begin, normals = d + i * d_stride, normal + i * normal_stride

        def add(k: Value, carried: list[Value]) -> list[Value]:
            of, x = code.load(begin + k * 4), code.load(normals + k * 4)
            scaled = of * code.load(norm + k * 4)
            gain, bias = sums + k * 4, sums + (width + k) * 4
            code.store(code.fma(of, x, code.load(gain)), gain)
            code.store(code.load(bias) + of, bias)
            return [carried[0] + scaled, code.fma(scaled, x, carried[1])]

        zero = code.vector(0.0)
        first, second = code.loop(0, width, lanes, add, [zero, zero])
        mean = code.splat(code.reduce(first, Value.__add__) * inverse)
        slope = code.splat(code.reduce(second, Value.__add__) * inverse)
        factor = code.broadcast(inverses + i * 4)

        def finish(k: Value, mask: Value | None) -> None:
            of, x = code.load(begin + k * 4), code.load(normals + k * 4)
            scaled = of * code.load(norm + k * 4)
            y = only(code, mask, (scaled - mean - x * slope) * factor)
            code.store(y, begin + k * 4)
            if to != "float32":
                store_as(code, y, operand + i * operand_stride + k * SIZES[to], to)

        columns(code, count, finish)

    code.loop(0, rows, 1, row)


def span_logits_backward(
    code: Code,
    x: Value,
    x_stride: Value,
    rows: Value,
    width: Value,
    head: Value,
    start: Value,
    end: Value,
    out: Value,
    out_stride: Value,
    sums: Value,
) -> None:
    """Gradients of the last layer's output and of the head's two rows.

    Args:
        code: where to write.
        x: address of the first row, float32.
        x_stride: bytes from row to row.
        rows: how many.
        width: of a padded row.
        head: address of the start's weights and the end's, each a padded row.
        start: gradient of the start logits, 4 bytes a row.
        end: gradient of the end logits.
        out: where the rows' gradient goes, float32.
        out_stride: bytes from row to row.
        sums: where these rows' gradients of the head's rows go, each a padded row.
    """
    lanes = code.lanes

    clear_numbers(code, sums, width + width)

    def row(i: Value, _: list[Value]) -> None:
        ds, de = code.broadcast(start + i * 4), code.broadcast(end + i * 4)

        def some(k: Value, _: list[Value]) -> None:
            number = code.load(x + i * x_stride + k * 4)
            first, second = sums + k * 4, sums + (width + k) * 4
            code.store(code.fma(number, ds, code.load(first)), first)
            code.store(code.fma(number, de, code.load(second)), second)
            y = ds * code.load(head + k * 4)
            y = code.fma(de, code.load(head + (width + k) * 4), y)
            code.store(y, out + i * out_stride + k * 4)

        code.loop(0, width, lanes, some)

    code.loop(0, rows, 1, row)
