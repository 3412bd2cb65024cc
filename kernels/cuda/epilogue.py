"""How a matrix product ends: from sums in shared memory to finished numbers in global memory.

Both kinds of GEMM leave a block's sums in shared memory as a float32 matrix.  Then all threads of
the block walk over it in rows, eight columns at a time, so that the bias, the residual and the
result are read and written in full 16-byte accesses by neighbouring threads.

    'store'     y = activation(sums + bias)
    'residual'  y = sums + bias + residual
    'partial'   y = sums, in float32: a part of the product, which rows.py adds up
"""

from __future__ import annotations

from typing import Any

from numba import int32

from .language import device
from .vectors import ACTIVATIONS, add8, map8, read8, read8_float32, write8, write8_float32


def ends(dtype: str, activation: str) -> dict[str, Any]:
    """By end: a function (x, bias, residual, y, column, index), what becomes of eight sums x."""
    activate = map8(ACTIVATIONS[activation])
    read, write = read8(dtype), write8(dtype)

    @device
    def store(x, bias, residual, y, column, index):
        write(y, index, activate(add8(x, read8_float32(bias, column))))

    @device
    def add_residual(x, bias, residual, y, column, index):
        write(y, index, add8(add8(x, read8_float32(bias, column)), read(residual, index)))

    @device
    def keep(x, bias, residual, y, column, index):
        write8_float32(y, index, x)

    return {"store": store, "residual": add_residual, "partial": keep}


def finish(
    dtype: str, end: str, activation: str, rows: int, columns: int, stride: int, threads: int
) -> Any:
    """A function (sums, bias, residual, y, row, column, height, width, thread, shift).

    The matrix of sums belongs at (row, column) of y [height, width]; what lies past its borders
    is left out.  `shift` rows of memory are skipped before y begins.

    Args:
        dtype: of the residual and the result.
        end: 'store', 'residual' or 'partial'.
        activation: for 'store'; '' for none.
        rows: of the matrix of sums in shared memory.
        columns: of it, a multiple of 8.
        stride: numbers from one row of it to the next, a multiple of 4.
        threads: of the block.
    """
    chunks = columns // 8
    items = rows * chunks
    conclude = ends(dtype, activation)[end]

    @device
    def finish(sums, bias, residual, y, row, column, height, width, thread, shift):
        for i in range(thread, int32(items), int32(threads)):
            r = int32(i // int32(chunks))
            c = int32(i % int32(chunks)) * int32(8)
            if row + r < height and column + c < width:
                x = read8_float32(sums, r * int32(stride) + c)
                index = (shift + row + r) * width + column + c
                conclude(x, bias, residual, y, column + c, index)

    return finish
