"""Step 3 of 6: windows -> packed batches.

Windows of different lengths are laid end to end in one row of T tokens.  Nothing is padded, so
no time is spent on tokens that are not there.

In: windows.  Out: `Batch`es.  Next: minibert/encoder.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from minibert.arrays import Floats, Ints
from minibert.reprs import short_repr
from minibert.windows import Window


@dataclass(frozen=True, eq=False)
class Batch:
    """The tokens of B windows in one row, T in all."""

    input_ids: Ints  # [T]
    token_type_ids: Ints  # [T]
    position_ids: Ints  # [T] where each token stands in its window, from 0
    cu_seqlens: Ints  # [B + 1] where each window begins, and T

    __repr__ = short_repr

    def split(self, logits: tuple[Floats, Floats]) -> list[tuple[Floats, Floats]]:
        """Start and end logits [T] of the batch as those of each window, [S]."""
        start, end = logits
        return [(start[a:b], end[a:b]) for a, b in pairwise(self.cu_seqlens)]


def pack(windows: Sequence[Window]) -> Batch:
    """Lay windows end to end.

    Example:
        >>> import numpy as np
        >>> from minibert.tokenizer import Tokens
        >>> none = Tokens("", *(np.zeros(0, np.int32),) * 3)
        >>> two = [Window(np.arange(n), np.zeros(n, np.int32), none, 0, 0, n) for n in (3, 2)]
        >>> batch = pack(two)
        >>> batch.input_ids.tolist(), batch.position_ids.tolist(), batch.cu_seqlens.tolist()
        ([0, 1, 2, 0, 1], [0, 1, 2, 0, 1], [0, 3, 5])
    """
    empty = [np.zeros(0, np.int32)]
    lengths = [len(window) for window in windows]
    return Batch(
        input_ids=np.concatenate(empty + [w.input_ids for w in windows]),
        token_type_ids=np.concatenate(empty + [w.token_type_ids for w in windows]),
        position_ids=np.concatenate(empty + [np.arange(n, dtype=np.int32) for n in lengths]),
        cu_seqlens=np.cumsum([0, *lengths], dtype=np.int32),
    )
