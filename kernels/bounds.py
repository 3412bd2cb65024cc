"""Bounds of a batch: beyond them compiled code would read memory of something else.

Every backend checks them before its kernels see a batch, whatever has made it.
"""

from __future__ import annotations

import numpy as np

from minibert.arrays import Ints
from minibert.errors import InputError
from minibert.parameters import TableRows
from minibert.reprs import short

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # by bytes of a number


def checked_ids(
    input_ids: Ints, token_type_ids: Ints, position_ids: Ints, rows: TableRows
) -> tuple[Ints, Ints, Ints]:
    """What to look up for each token of a batch: each [T] int32, in one piece.

    Args:
        input_ids: [T] integers, rows of the word table.
        token_type_ids: [T], of the table of token types.
        position_ids: [T], of the table of positions.
        rows: of the three tables.

    Raises:
        InputError: the three are not as many, or one points beyond its table.
    """
    found = []
    tokens = len(input_ids)
    given = (input_ids, token_type_ids, position_ids)
    for name, ids, count in zip(TableRows._fields, given, rows, strict=True):
        ids = np.ascontiguousarray(ids)
        if ids.shape != (tokens,) or ids.dtype.kind not in "iu":
            raise InputError(
                f"{name} of a batch must be as many whole numbers as input_ids, {tokens}, got "
                f"{short(ids)}"
            )
        # Without the sign, negative numbers are the largest: one look at each array is enough.
        if tokens and ids.view(UNSIGNED[ids.dtype.itemsize]).max() >= count:
            raise InputError(
                f"{name} of a batch must be from 0 to {count - 1}, the last row of the model's "
                f"table, got {ids.min()} to {ids.max()}"
            )
        found.append(ids.astype(np.int32, copy=False))
    return found[0], found[1], found[2]


def check_windows(cu_seqlens: Ints, tokens: int) -> None:
    """Refuse borders that do not cut a batch of so many tokens into windows.

    Args:
        cu_seqlens: [B + 1] integers, where each window begins, and T.
        tokens: T.

    Raises:
        InputError: they do not go up from 0 to T.
    """
    borders = np.asarray(cu_seqlens)
    if (
        borders.ndim != 1
        or borders.dtype.kind not in "iu"
        or not len(borders)
        or borders[0] != 0
        or borders[-1] != tokens
        or (listed := borders.tolist()) != sorted(listed)
    ):
        raise InputError(
            f"cu_seqlens must go up from 0 to {tokens}, the tokens of the batch, got "
            f"{short(cu_seqlens)}: {np.array2string(borders, threshold=8, edgeitems=3)}"
        )
