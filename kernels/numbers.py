"""Number formats that NumPy does not have: bfloat16, and integers with a scale for each row.

A model may be stored in integers of 4 to 8 bits.  `row_scales` chooses the scales, `to_integers`
rounds to them, and `round_rows` gives the floats that are left when such a matrix is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator

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


# Shares of a row's largest number that may become the largest integer; what is larger is cut off.
CLIPS = np.arange(50, 9, -1, dtype=np.float32) / np.float32(50)  # 1, 0.98 ... 0.2


def largest_integer(bits: int) -> int:
    """The largest integer of `bits` bits that has its negative beside it.

    Example:
        >>> largest_integer(4), largest_integer(8)
        (7, 127)
    """
    return 2 ** (bits - 1) - 1


def row_scales(matrix: NDArray[np.floating], bits: int) -> Floats:
    """The scale of each row with which rounding it to integers of `bits` bits costs least.

    Of all shares in `CLIPS` the one with the least sum of squared errors is taken.  A scale has 16
    significant bits, so integer times scale is exact in float32; and rows that have been rounded
    get the same scales again.

    Args:
        matrix: [out, in], finite.
        bits: 4 to 8.

    Returns:
        [out] float32; 1 for a row that holds nothing but zeros, or numbers so small that a scale
        would lose digits.
    """
    largest = np.abs(matrix).max(axis=1, initial=0.0).astype(np.float32)
    small = largest < 1024 * np.finfo(np.float32).tiny
    largest[small] = 1.0
    clips = np.ones(len(matrix), np.float32)
    for rows in _blocks(matrix):
        unit = np.asarray(matrix[rows] / largest[rows, None], np.float32)  # -1 to 1
        least = np.full(len(unit), np.inf, np.float32)
        for clip in CLIPS:
            scale = clip / np.float32(largest_integer(bits))
            error = _rounded(unit, scale, bits)
            error *= scale
            error -= unit
            squares = np.einsum("ij,ij->i", error, error)
            clips[rows][squares < least] = clip
            np.minimum(least, squares, out=least)
    scales = largest * clips / np.float32(largest_integer(bits))
    scales = ((scales.view(np.uint32) + np.uint32(0x80)) & np.uint32(0xFFFFFF00)).view(np.float32)
    return np.where(small, np.float32(1), scales)


def to_integers(matrix: NDArray[np.floating], scales: Floats, bits: int) -> Int8:
    """Round each row to integers of `bits` bits times its scale; what is too large is cut off.

    Example:
        >>> to_integers(np.array([[1.0, -2.0, 40.0]]), np.array([0.5], np.float32), 4).values
        array([[ 2, -4,  7]], dtype=int8)
    """
    values = np.empty(matrix.shape, np.int8)
    for rows in _blocks(matrix):
        values[rows] = _rounded(matrix[rows], scales[rows, None], bits)
    return Int8(values, scales)


def round_rows(matrix: Floats, bits: int, scales: Floats | None = None) -> Floats:
    """The floats that are left of a matrix when it was stored in `bits` bits a number, and loaded.

    For training: the forward pass takes the rounded matrix, the gradient is that of the matrix.

    Args:
        matrix: [out, in] float32, finite.
        bits: 4 to 8.
        scales: [out] float32 of an earlier `row_scales`, which takes ten times as long as the
            rounding; None to choose them anew, as storing does.

    Returns:
        [out, in] float32, a new array.

    Example:
        >>> round_rows(np.array([[0.7, 0.24, -0.31]], np.float32), 4).round(3)
        array([[ 0.7,  0.2, -0.3]], dtype=float32)
    """
    if scales is None:
        scales = row_scales(matrix, bits)
    rounded = np.empty(matrix.shape, np.float32)
    for rows in _blocks(matrix):
        np.multiply(
            _rounded(matrix[rows], scales[rows, None], bits), scales[rows, None], out=rounded[rows]
        )
    return rounded


def _rounded(matrix: NDArray[np.floating], scale: Floats | np.float32, bits: int) -> Floats:
    """The nearest integers to matrix / scale, as floats."""
    largest = np.float32(largest_integer(bits))
    quotient = matrix / scale
    np.rint(quotient, out=quotient)
    return np.clip(quotient, -largest, largest, out=quotient)


def _blocks(matrix: NDArray[np.floating]) -> Iterator[slice]:
    """Rows of about 64k numbers at a time, which stay in a core's cache."""
    step = max(1, 2**16 // max(1, matrix.shape[1]))
    for begin in range(0, len(matrix), step):
        yield slice(begin, begin + step)
