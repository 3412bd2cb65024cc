"""Activation functions and the exponential, on vectors; the formulas of kernels/reference.py.

exp2(x) = 2^n p(f), with n the nearest whole number and f = x - n between -1/2 and 1/2.  Adding
1.5 * 2^23 to a float32 leaves no bits for a fraction, so the sum's last bits are n, rounded; moved
to the place of the exponent they multiply p by 2^n.  About 12 instructions for a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from minibert.kernels.reference import ERF_P, ERF_Q

from .simd import Code, Number, Value

# 2^f for |f| <= 1/2, fitted for the least relative error: 7.5e-8.
EXP2 = (1.00000007, 0.693146967, 0.240221197, 0.0555071327, 0.00967554133, 0.00132764715)
ROUND = 1.5 * 2.0**23
LOG2_E = math.log2(math.e)


def polynomial(code: Code, coefficients: tuple[float, ...], x: Value) -> Value:
    """c[0] + c[1] x + c[2] x^2 + ..., by Horner's rule."""
    y = code.like(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        y = code.fma(y, x, c)
    return y


def exp2(code: Code, x: Value) -> Value:
    """2^x, for x up to 127; below -126 it is 2^-126."""
    x = code.maximum(x, -126.0)
    shifted = x + ROUND
    fraction = x - (shifted - ROUND)
    power = code.int_bits(polynomial(code, EXP2, fraction))
    return code.float_bits(power + (code.int_bits(shifted) << 23))


def clip(code: Code, x: Value, low: Number, high: Number) -> Value:
    """X, but at least `low` and at most `high`."""
    return code.minimum(code.maximum(x, low), high)


def gelu(code: Code, x: Value) -> Value:
    """The input times the chance that a standard normal number is below x; exact, by erf."""
    z = clip(code, x * math.sqrt(0.5), -4.0, 4.0)
    square = z * z
    erf = z * polynomial(code, ERF_P, square) / polynomial(code, ERF_Q, square)
    half = x * 0.5
    return code.fma(half, erf, half)


def logistic(code: Code, x: Value) -> Value:
    """1 / (1 + exp(-x))."""
    return 1.0 / (exp2(code, code.minimum(x * -LOG2_E, 126.0)) + 1.0)


def gelu_tanh(code: Code, x: Value) -> Value:
    """The tanh approximation of GELU; (1 + tanh(y)) / 2 is the logistic function of 2 y."""
    cube = code.fma(x * x * x, 0.044715, x)
    return x * logistic(code, cube * (2 * math.sqrt(2 / math.pi)))


def relu(code: Code, x: Value) -> Value:
    """The input where it is positive, else 0."""
    return code.maximum(x, 0.0)


def silu(code: Code, x: Value) -> Value:
    """The input times the logistic function of x."""
    return x * logistic(code, x)


# In the order of kernels/reference.py: compiled code knows them by their number in it.
ACTIVATIONS: dict[str, Callable[[Code, Value], Value]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
}
