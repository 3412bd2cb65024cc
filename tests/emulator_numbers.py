"""Numbers as a GPU has them, for the CUDA emulator; its errors and counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

LANES = 32
STATIC_BYTES = 48 * 1024  # of shared arrays with a size of their own, in a block
LARGEST_WORD = 0xFFFFFFFF


class EmulatorError(AssertionError):
    """A kernel did what no kernel may do; the message says where and what."""


class Fault(Exception):
    """A mistake, before it is known which thread makes it.

    Args:
        message: what is wrong.
        row: which of the threads that ran the instruction together; None: the running one.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


@dataclass
class Statistics:
    """What a launch did, summed over its blocks."""

    blocks: int = 0
    barriers: int = 0  # of blocks
    fragment_loads: int = 0  # phases of load_fragments: 8 rows of 16 bytes each
    bank_conflicts: int = 0  # rows of a phase that wait because of others: 8 - different banks


# ---------------------------------------------------------------- numbers


def unsigned(bits: int) -> Callable[[Any], int]:
    """The cast to an unsigned integer: wraps."""
    mask = (1 << bits) - 1
    return lambda value: (value if type(value) is int else int(value)) & mask


def signed(bits: int) -> Callable[[Any], int]:
    """The cast to a signed integer: must fit."""
    limit = 1 << (bits - 1)

    def cast(value: Any) -> int:
        number = value if type(value) is int else int(value)
        if -limit <= number < limit:
            return number
        raise Fault(f"{number} does not fit into int{bits}")

    return cast


CASTS: dict[str, Callable[[Any], Any]] = {
    **{f"uint{bits}": unsigned(bits) for bits in (8, 16, 32, 64)},
    **{f"int{bits}": signed(bits) for bits in (8, 16, 32, 64)},
    "float32": np.float32,
    "float64": np.float64,
}
DTYPES = {cast: np.dtype(name) for name, cast in CASTS.items()}
int32, uint32, uint64 = CASTS["int32"], CASTS["uint32"], CASTS["uint64"]


def stored_float32(value: Any) -> np.float32:
    """What an assignment to a float32 does; a float64 there is a mistake."""
    if type(value) is np.float32:
        return value
    if isinstance(value, int | np.integer):
        return np.float32(value)
    raise Fault(f"a {type(value).__name__} where float32 is expected")


def rounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of math that gives a float32 for float32, rounded once."""

    def call(*numbers: Any) -> Any:
        kind = np.float32 if all(type(x) is np.float32 for x in numbers) else np.float64
        return kind(function(*map(np.float64, numbers)))

    return call


class Math:
    """Stands for the module math in kernels."""

    erf = staticmethod(rounded(math.erf))
    erfc = staticmethod(rounded(math.erfc))
    sqrt = staticmethod(rounded(np.sqrt))
    exp = staticmethod(rounded(np.exp))
    log = staticmethod(rounded(np.log))
    tanh = staticmethod(rounded(np.tanh))
    fabs = staticmethod(rounded(np.fabs))
    pow = staticmethod(rounded(np.power))
    floor = staticmethod(math.floor)
    ceil = staticmethod(math.ceil)
    isnan = staticmethod(math.isnan)
    isinf = staticmethod(math.isinf)
    inf, nan, pi, e = map(np.float64, (math.inf, math.nan, math.pi, math.e))


def to_halves(x: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 -> the bits of float16 or bfloat16, uint16, rounded to nearest even."""
    if dtype == "float16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), nearest).astype(np.uint16)


def from_halves(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The bits of float16 or bfloat16, uint16 -> float32."""
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def pack2(dtype: str, low: Any, high: Any) -> int:
    pair = np.array([stored_float32(low), stored_float32(high)])
    return to_halves(pair, dtype).view(np.uint32).item()


def unpack2(dtype: str, word: int) -> tuple[np.float32, np.float32]:
    pair = from_halves(np.array([word], np.uint32).view(np.uint16), dtype)
    return pair[0], pair[1]


def exp2(x: Any) -> np.float32:
    try:
        power = 2.0 ** float(stored_float32(x))
    except OverflowError:
        power = math.inf
    return np.float32(0 if power < 2.0**-126 else power)
