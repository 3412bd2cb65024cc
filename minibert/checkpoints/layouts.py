"""How a weights file keeps matrices in few bits: the layouts "int8-1" and "rows-2".

The name of the layout is `minibert_layout` in the metadata of the safetensors file.  In both, any
2-D array NAME [out, in] may be kept as integers, with one scale a row in NAME.scale (F32, [out]):
number [i, j] is integer [i, j] * NAME.scale[i].  All other arrays are floats.

int8-1: NAME (I8, [out, in]) holds the integers.

rows-2: it may also be of type U8 and shape [b, n, in], with n = out / 8, rounded up.  Then the
integers are of b = 4, 5, 6 or 7 bits, and eight of them, n rows apart, share b bytes.  With

    k, r = i // n, i % n
    word = sum(NAME[p, r, j] * 256**p for p in range(b))

integer [i, j] is bits k * b to k * b + b - 1 of the word, counted from the lowest, less 2**(b - 1).
What the bytes say of rows from `out` on means nothing.

minibert writes rows-2 with the scales that `row_scales` (kernels/numbers.py) chooses, no integer
2**(b - 1) below zero, and the span head in F32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LAYOUT_KEY = "minibert_layout"  # in the file's metadata
INT8, ROWS = LAYOUTS = ("int8-1", "rows-2")
PACKED_BITS = range(4, 8)  # 8 bits are an int8


def packed_shape(shape: tuple[int, ...], bits: int) -> tuple[int, int, int]:
    """The shape of a matrix [out, in] whose integers of 4 to 7 bits share bytes.

    Example:
        >>> packed_shape((30522, 384), 5)
        (5, 3816, 384)
    """
    return bits, -(-shape[0] // 8), shape[1]


def pack_integers(values: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Integers [out, in] of `bits` bits, 4 to 7, in shared bytes; see above.

    Example:
        >>> pack_integers(np.array([[-7], [7], [1]], np.int8), 4).tolist()
        [[[241]], [[9]], [[0]], [[0]]]
    """
    packed = np.zeros(packed_shape(values.shape, bits), np.uint8)
    step = packed.shape[1]
    for k in range(8):
        rows = (values[k * step : (k + 1) * step] + np.int8(2 ** (bits - 1))).view(np.uint8)
        byte, shift = divmod(k * bits, 8)
        packed[byte, : len(rows)] |= rows << np.uint8(shift)
        if shift + bits > 8:  # the upper bits lie in the next byte
            packed[byte + 1, : len(rows)] |= rows >> np.uint8(8 - shift)
    return packed


def unpack_integers(packed: NDArray[np.uint8], out: int) -> NDArray[np.int8]:
    """The integers [out, in] that pack_integers packed."""
    bits, step, into = packed.shape
    values = np.empty((8, step, into), np.uint8)
    for k, rows in enumerate(values):
        byte, shift = divmod(k * bits, 8)
        np.right_shift(packed[byte], np.uint8(shift), out=rows)
        if shift + bits > 8:
            rows |= packed[byte + 1] << np.uint8(8 - shift)
        rows &= np.uint8(2**bits - 1)
        rows -= np.uint8(2 ** (bits - 1))
    return values.view(np.int8).reshape(8 * step, into)[:out]
