"""What kernels do with eight numbers at a time: read them, write them, apply an activation.

Activations lie in memory as float32 or in 16 bits, and are computed on in float32.  A thread reads
and writes eight neighbouring numbers at once: 16 bytes in 16 bits, the widest access there is.
All functions here are put into the kernels that call them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import int32

from minibert.kernels.reference import ERF_P, ERF_Q

from .language import device, exp2, load4, pack2, store4, unpack2

ZERO, HALF, ONE, TWO, FOUR = (np.float32(x) for x in (0, 0.5, 1, 2, 4))
SQRT_HALF = np.float32(math.sqrt(0.5))
P0, P1, P2, P3, P4, P5, P6 = (np.float32(c) for c in ERF_P)
Q0, Q1, Q2, Q3, Q4, Q5 = (np.float32(c) for c in ERF_Q)
TWO_LOG2E = np.float32(2 / math.log(2))
TANH_SCALE = np.float32(math.sqrt(2 / math.pi))
CUBIC = np.float32(0.044715)
LARGEST = np.float32(60)  # beyond, tanh is 1 and 2 ** (2 log2(e) x) is far from overflow


# ---------------------------------------------------------------- activations, as in reference.py


@device
def erf(x):
    """The error function; see reference.erf."""
    x = max(min(x, FOUR), -FOUR)
    s = x * x
    p = P0 + s * (P1 + s * (P2 + s * (P3 + s * (P4 + s * (P5 + s * P6)))))
    q = Q0 + s * (Q1 + s * (Q2 + s * (Q3 + s * (Q4 + s * Q5))))
    return x * (p / q)


@device
def tanh(x):
    """The hyperbolic tangent, by a power of two; off by 1e-7."""
    x = max(min(x, LARGEST), -LARGEST)
    return ONE - TWO / (ONE + exp2(x * TWO_LOG2E))


@device
def linear(x):
    """No activation."""
    return x


@device
def gelu(x):
    """See reference.gelu."""
    return HALF * x * (ONE + erf(x * SQRT_HALF))


@device
def gelu_tanh(x):
    """See reference.gelu_tanh."""
    return HALF * x * (ONE + tanh(TANH_SCALE * (x + CUBIC * x * x * x)))


@device
def relu(x):
    """See reference.relu."""
    return max(x, ZERO)


@device
def silu(x):
    """See reference.silu."""
    return HALF * x * (ONE + tanh(HALF * x))


# Those of kernels/reference.py; '' for none.
ACTIVATIONS: dict[str, Any] = {
    "": linear,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
}

# ---------------------------------------------------------------- eight numbers


@device
def read8_float32(array, i):
    """Numbers i to i + 7 of a float32 array, i a multiple of 4."""
    a = load4(array, i)
    b = load4(array, i + int32(4))
    return a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]


@device
def write8_float32(array, i, x):
    """Numbers i to i + 7 of a float32 array become those of the tuple x."""
    store4(array, i, (x[0], x[1], x[2], x[3]))
    store4(array, i + int32(4), (x[4], x[5], x[6], x[7]))


def read8(dtype: str) -> Any:
    """A function (array, i): numbers i to i + 7, i a multiple of 8, as float32."""
    if dtype == "float32":
        return read8_float32
    unpack = unpack2(dtype)

    @device
    def read8_pairs(array, i):
        words = load4(array, i >> int32(1))
        a = unpack(words[0])
        b = unpack(words[1])
        c = unpack(words[2])
        d = unpack(words[3])
        return a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]

    return read8_pairs


def write8(dtype: str) -> Any:
    """A function (array, i, x): numbers i to i + 7 become those of the tuple x, rounded."""
    if dtype == "float32":
        return write8_float32
    pack = pack2(dtype)

    @device
    def write8_pairs(array, i, x):
        words = (pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]))
        store4(array, i >> int32(1), words)

    return write8_pairs


@device
def add8(x, y):
    """The sums of eight pairs of numbers."""
    return (
        x[0] + y[0],
        x[1] + y[1],
        x[2] + y[2],
        x[3] + y[3],
        x[4] + y[4],
        x[5] + y[5],
        x[6] + y[6],
        x[7] + y[7],
    )


def map8(function: Any) -> Any:
    """A function (x): `function` of each of eight numbers."""

    @device
    def map8(x):
        return (
            function(x[0]),
            function(x[1]),
            function(x[2]),
            function(x[3]),
            function(x[4]),
            function(x[5]),
            function(x[6]),
            function(x[7]),
        )

    return map8
