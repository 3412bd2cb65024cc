"""Memory of training: what steps keep, scratch of the threads, and how work is cut into tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats
from minibert.kernels.numbers import from_bfloat16, round_up

from ..jobs import BLOCK_ROWS, stride
from ..packing import Record, address, aligned
from ..records import CHUNK, ROW_TASK, THREAD, TILE_TASK
from ..targets import SIZES, Target

ROWS_OF_A_TILE = 192  # rows and panels of the weights whose gradient is one task
PANELS_OF_A_TILE = 4
COLUMNS = 64  # whose rows are put across in one task
NUMBERS = 16 * CHUNK  # of the optimizer's tasks

# ---------------------------------------------------------------- memory


@dataclass(frozen=True, eq=False)
class Buffer:
    """Rows [T, width] in memory that products can read: padded, with zeros behind."""

    memory: NDArray[np.uint8]
    rows: int
    width: int
    stride: int  # bytes from row to row
    kind: str

    @property
    def record(self) -> tuple[int, int]:
        """A records.ROWS."""
        return address(self.memory), self.stride

    @property
    def array(self) -> NDArray[Any]:
        """The numbers as they are kept, [T, width]."""
        dtype = np.dtype(np.uint16 if self.kind == "bfloat16" else np.float32)
        shape = (self.rows, self.width)
        return np.ndarray(shape, dtype, self.memory, strides=(self.stride, dtype.itemsize))

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        """A copy in float32, for NumPy."""
        found = self.array
        return from_bfloat16(found) if self.kind == "bfloat16" else found.copy()

    def __len__(self) -> int:
        return self.rows


NOTHING = (0, 0)  # a records.ROWS that is not read


class Workspace:
    """Memory for one batch: what steps keep, and what only lasts from one step to the next."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.kept: list[NDArray[np.uint8]] = []
        self.scratch: dict[tuple[Any, ...], NDArray[np.uint8]] = {}
        self.place = 0

    def begin(self) -> None:
        """What was kept is no longer needed."""
        self.place = 0

    def keep(self, rows: int, width: int, kind: str) -> Buffer:
        """Memory that lasts until `begin`."""
        size, each = self._size(rows, width, kind)
        if self.place == len(self.kept):
            self.kept.append(aligned((size,), np.uint8))
        elif self.kept[self.place].size < size or self.kept[self.place].size % each:
            self.kept[self.place] = aligned((size,), np.uint8)
        memory = self.kept[self.place]
        self.place += 1
        return Buffer(memory, rows, width, each, kind)

    def borrow(self, name: str, rows: int, width: int, kind: str) -> Buffer:
        """Memory that lasts until the next loan of the same name and width."""
        size, each = self._size(rows, width, kind)
        key = (name, width, kind)
        memory = self.scratch.get(key)
        if memory is None or memory.size < size:
            self.scratch[key] = memory = aligned((size,), np.uint8)
        return Buffer(memory, rows, width, each, kind)

    def numbers(self, name: str, count: int) -> Floats:
        """Scratch for so many float32 numbers."""
        key = (name,)
        memory = self.scratch.get(key)
        if memory is None or memory.size < 4 * count:
            self.scratch[key] = memory = aligned((4 * round_up(count, 4096),), np.uint8)
        return memory[: 4 * count].view(np.float32)

    def _size(self, rows: int, width: int, kind: str) -> tuple[int, int]:
        each = stride(round_up(width, self.target.panel), SIZES[kind])
        # A tile reads as many rows as it is high, also beyond the last.
        return round_up(rows + self.target.tile_rows[0], 256) * each, each


@lru_cache(maxsize=64)
def blocks(count: int, each: int) -> Record:
    """Tasks of so many rows each: records.ROW_TASK [n]; the same for any number of threads."""
    begin = np.arange(0, count, each)
    tasks = np.empty(len(begin), ROW_TASK)
    tasks["begin"], tasks["count"] = begin, np.minimum(each, count - begin)
    tasks.flags.writeable = False
    return tasks


@lru_cache(maxsize=64)
def tiles(out: int, into: int, panel: int) -> Record:
    """Tasks that cover a matrix [out, into]: records.TILE_TASK [n]."""
    panels = -(-into // panel)
    found = [
        (begin, min(ROWS_OF_A_TILE, out - begin), first, min(PANELS_OF_A_TILE, panels - first))
        for first in range(0, panels, PANELS_OF_A_TILE)
        for begin in range(0, out, ROWS_OF_A_TILE)
    ]
    tasks = np.array(found, TILE_TASK)
    tasks.flags.writeable = False
    return tasks


class Threads:
    """Each thread's scratch memory, which grows with the longest window and the widest head."""

    def __init__(self, kind: str, target: Target, count: int) -> None:
        self.kind, self.target, self.count = kind, target, count
        self.length, self.head_size = -1, -1
        self.records: Record = aligned((count,), THREAD)
        self.memory: NDArray[np.uint8] = aligned((0,), np.uint8)

    def fit(self, length: int = 0, head_size: int = 0) -> Record:
        """Records for windows and heads of at most this size: records.THREAD [count]."""
        length, head_size = round_up(length, 128), round_up(head_size, 32)
        if length > self.length or head_size > self.head_size:
            self.length = max(length, self.length)
            self.head_size = max(head_size, self.head_size)
            self._lay_out()
        return self.records

    def _lay_out(self) -> None:
        panel, high, size = self.target.panel, self.target.tile_rows[0], SIZES[self.kind]
        length, deep = self.length, round_up(self.head_size, 2 * panel)
        packed, strip = length * deep * 4, length * (high + 1) * 4
        each = stride(round_up(length, panel), size)
        matrix = (round_up(length, panel) + high) * each
        rows = max(
            round_up(BLOCK_ROWS + high, high), PANELS_OF_A_TILE * (ROWS_OF_A_TILE + 2 * high)
        )
        sizes = {
            "sums": rows * panel * 4,
            "row_scales": 8 * (BLOCK_ROWS + high),
            "keys": packed,
            "values": packed,
            "scores": max(strip, (length + panel) * 4),
            "probs": strip,
            "shifts": 4 * high,
            "inverses": 4 * high,
            "packed_queries": packed,
            "packed_gradient": packed,
            "queries": packed,
            "gradient": packed,
            "d_probs": strip,
            "d_scores": matrix,
            "d_scores_across": matrix,
            "ones": 4 * (high + panel),
            "deltas": 4 * (length + panel),
        }
        total = sum(round_up(size + 64, 64) for size in sizes.values())
        self.memory = aligned((self.count, total), np.uint8)
        for record, room in zip(self.records, self.memory, strict=True):
            begin = 0
            for name, size in sizes.items():
                at = address(room) + begin
                record[name] = (at, each) if name.startswith("d_scores") else at
                if name == "ones":
                    room[begin : begin + size].view(np.float32)[:] = 1
                begin += round_up(size + 64, 64)
