"""Number formats that NumPy does not have: bfloat16, and int8 with a scale for each row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats
from minibert.parameters import Int8


def round_up(n: int, multiple: int) -> int:
    """The next multiple of a number, or `n` itself.

    Example:
        >>> round_up(5, 4), round_up(8, 4), round_up(0, 4)
        (8, 8, 0)
    """
    return -(-n // multiple) * multiple


def to_bfloat16(x: Floats) -> NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16 (to the even one if two are as near), as its bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> Floats:
    """Widen bfloat16 bits to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def quantise_rows(matrix: NDArray[np.floating]) -> Int8:
    """Store each row in int8, with the scale that maps its largest number to 127.

    Example:
        >>> int8 = quantise_rows(np.array([[1.0, -2.0], [0.0, 0.0]], np.float32))
        >>> int8.values.tolist(), [round(scale, 4) for scale in int8.scales.tolist()]
        ([[64, -127], [0, 0]], [0.0157, 1.0])
    """
    largest = np.abs(matrix).max(axis=1, initial=0.0).astype(np.float32)
    # A row of zeros stays so; one of numbers so small that a scale would lose digits becomes so.
    small = largest < 127 * np.finfo(np.float32).tiny
    scales = np.where(small, np.float32(1), largest / np.float32(127)).astype(np.float32)
    return Int8(np.rint(matrix / scales[:, None]).astype(np.int8), scales)
