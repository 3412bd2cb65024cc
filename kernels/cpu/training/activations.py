"""Slopes of the activation functions, and activations that keep what they took.

Formulas: kernels/gradients.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from minibert.kernels.reference import ERF_P, ERF_Q

from ..activations import ACTIVATIONS, clip, exp2, logistic, polynomial
from ..rows import store_as
from ..simd import Code, Value
from ..targets import SIZES
from .rows import load_as


def gelu_slope(code: Code, x: Value) -> Value:
    """Chance that a normal number is below x, plus x times its density there."""
    z = clip(code, x * math.sqrt(0.5), -4.0, 4.0)
    square = z * z
    erf = z * polynomial(code, ERF_P, square) / polynomial(code, ERF_Q, square)
    density = exp2(code, x * x * (-0.5 * math.log2(math.e))) * (1 / math.sqrt(2 * math.pi))
    return code.fma(erf, 0.5, 0.5) + x * density


def gelu_tanh_slope(code: Code, x: Value) -> Value:
    """With s = logistic(2 y): s + x s (1 - s) 2 y'."""
    factor = 2 * math.sqrt(2 / math.pi)
    s = logistic(code, code.fma(x * x * x, 0.044715, x) * factor)
    slope = code.fma(x * x, 3 * 0.044715, 1.0) * factor
    return code.fma(x * s * (1.0 - s), slope, s)


def relu_slope(code: Code, x: Value) -> Value:
    """1 where the input is positive, else 0."""
    return code.select(x > 0.0, code.like(1.0, x), 0.0)


def silu_slope(code: Code, x: Value) -> Value:
    """With s = logistic(x): s + x s (1 - s)."""
    s = logistic(code, x)
    return code.fma(x * s, 1.0 - s, s)


SLOPES: dict[str, Callable[[Code, Value], Value]] = {
    "gelu": gelu_slope,
    "gelu_tanh": gelu_tanh_slope,
    "relu": relu_slope,
    "silu": silu_slope,
}


def activate(
    code: Code,
    number: Value,
    x: Value,
    x_stride: Value,
    rows: Value,
    width: Value,
    out: Value,
    out_stride: Value,
    *,
    kind: str,
    to: str,
) -> None:
    """The activation of this number, of rows kept as `kind`; the result is kept as `to`."""

    def case(name: str) -> Callable[[], None]:
        def row(i: Value, _: list[Value]) -> None:
            def some(k: Value, _: list[Value]) -> None:
                y = ACTIVATIONS[name](code, load_as(code, x + i * x_stride + k * SIZES[kind], kind))
                store_as(code, y, out + i * out_stride + k * SIZES[to], to)

            code.loop(0, width, code.lanes, some)

        def all_rows() -> None:
            code.loop(0, rows, 1, row)

        return all_rows

    code.switch(number, [case(name) for name in ACTIVATIONS])


def activate_backward(
    code: Code,
    number: Value,
    d: Value,
    d_stride: Value,
    x: Value,
    x_stride: Value,
    rows: Value,
    width: Value,
    *,
    kind: str,
    to: str,
) -> None:
    """D *= the activation's slope at x, in place; d and x are kept as `kind`, the result as `to`.

    Both have the same size, and what is zero in d stays zero.
    """

    def case(name: str) -> Callable[[], None]:
        def row(i: Value, _: list[Value]) -> None:
            def some(k: Value, _: list[Value]) -> None:
                at = d + i * d_stride + k * SIZES[kind]
                slope = SLOPES[name](code, load_as(code, x + i * x_stride + k * SIZES[kind], kind))
                store_as(code, load_as(code, at, kind) * slope, at, to)

            code.loop(0, width, code.lanes, some)

        def all_rows() -> None:
            code.loop(0, rows, 1, row)

        return all_rows

    code.switch(number, [case(name) for name in SLOPES])
