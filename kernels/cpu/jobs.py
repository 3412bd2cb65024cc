"""Jobs: one call of the compiled program, with its tasks, its memory, and the record of both.

job = Job("linear", program, num_threads, tokens, sizes, buffers, row_tasks(...))
job.record["dense"] = dense.record
with POOL.lock:
    job.work_in(POOL.reserve)
    job.put("x", x)
    POOL.run(job)
    y = job.get("out")
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats, Ints
from minibert.errors import InputError
from minibert.kernels.numbers import from_bfloat16, round_up, to_bfloat16

from .compiler import Program
from .packing import Record, address, aligned
from .pool import YIELD
from .records import ATTENTION_TASK, JOBS, ROW_TASK, THREAD
from .targets import SIZES, Target

# Rows of a block: enough that the weights, which every block reads once from L3 or memory, are
# used often; few enough that a block's activations stay in L2 and every thread gets several.
BLOCK_ROWS = 48

# ---------------------------------------------------------------- tasks


@functools.lru_cache(maxsize=256)
def row_tasks(tokens: int, threads: int, target: Target) -> Record:
    """Blocks of rows, about equal, as many for each thread: records.ROW_TASK [n]."""
    unit = target.tile_rows[-1]
    threads = max(1, min(threads, -(-tokens // unit)))
    count = threads * -(-tokens // (threads * BLOCK_ROWS))
    starts = np.arange(count + 1) * tokens // max(1, count) // unit * unit
    starts[-1] = tokens
    counts = np.diff(starts)
    tasks = np.empty(np.count_nonzero(counts), ROW_TASK)
    tasks["begin"], tasks["count"] = starts[:-1][counts > 0], counts[counts > 0]
    tasks.flags.writeable = False
    return tasks


def attention_tasks(cu_seqlens: Ints, heads: int, threads: int, target: Target) -> Record:
    """Some queries of each head of each window: records.ATTENTION_TASK [n].

    The longest windows come first, so that what is left for the end is short.
    """
    windows = [(begin, end - begin) for begin, end in pairwise(cu_seqlens.tolist()) if end > begin]
    windows.sort(key=lambda window: -window[1])
    parts = -(-4 * threads // max(1, len(windows) * heads)) if threads > 1 else 1
    of_a_head = []
    for begin, length in windows:
        step = round_up(-(-length // parts), target.tile_rows[0])
        of_a_head += [
            (begin, length, 0, first, min(step, length - first)) for first in range(0, length, step)
        ]
    # As plain numbers, of which NumPy makes arrays faster than of records.
    width = ATTENTION_TASK.itemsize // 8
    numbers = np.empty((len(of_a_head), heads, width), np.int64)
    numbers[:] = np.array(of_a_head, np.int64).reshape(-1, 1, width)
    numbers[:, :, 2] = np.arange(heads)
    return numbers.view(ATTENTION_TASK).reshape(-1)


# ---------------------------------------------------------------- memory


def stride(width: int, size: int) -> int:
    """Bytes from row to row: an odd number of cache lines, so that rows share no cache set."""
    return (-(-width * size // 64) | 1) * 64


@dataclass(frozen=True)
class Sizes:
    """Sizes that decide how much scratch memory a thread needs."""

    hidden: int = 1  # D, or the columns of a single product
    inner: int = 1  # F
    head: int = 1  # Dh
    longest: int = 0  # tokens of the longest window


Buffer = tuple[int, str]  # columns of a matrix [T, columns], and how its numbers are kept


@dataclass(frozen=True)
class Layout:
    """Where everything lies in the pool's memory; addresses are bytes from its beginning."""

    buffers: dict[str, tuple[int, int]]  # name -> address and bytes from row to row
    threads: NDArray[np.int64]  # [threads, N]: a records.THREAD of N numbers for each
    addresses: NDArray[np.int64]  # [threads, N]: 1 for each number that is an address, else 0
    size: int  # bytes


class Room:
    """Memory that is given away piece by piece, each beginning at a cache line."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, count: int) -> int:
        """Where so many bytes begin; a vector may be read at the last one."""
        begin = self.size
        self.size = round_up(begin + count + 64, 64)
        return begin


@functools.lru_cache(maxsize=256)
def lay_out(
    buffers: tuple[tuple[str, Buffer], ...],
    sizes: Sizes,
    tokens: int,
    threads: int,
    dtype: str,
    target: Target,
) -> Layout:
    """Lay out a job's memory: buffers of all rows, then each thread's scratch memory.

    Args:
        buffers: names, which are fields of the job, and what they hold.
        sizes: of the model.
        tokens: T.
        threads: how many need scratch memory.
        dtype: of the products.
        target: the processor.
    """
    room, placed = Room(), {}
    for name, (width, kind) in buffers:
        each = stride(round_up(width, target.panel), SIZES[kind])
        # A tile reads as many rows as it is high, also beyond the last.
        placed[name] = (room.take((tokens + target.tile_rows[0]) * each), each)
    begin = room.size
    thread, is_address = scratch(room, sizes, dtype, target)
    addresses = np.tile(is_address.view(np.int64), (threads, 1))
    size = room.size - begin
    each_thread = thread.view(np.int64) + addresses * size * np.arange(threads)[:, None]
    return Layout(placed, each_thread, addresses, begin + threads * size)


def scratch(room: Room, sizes: Sizes, dtype: str, target: Target) -> tuple[Record, Record]:
    """One thread's scratch memory, as a records.THREAD; and one with 1 in place of addresses."""
    panel, high = target.panel, target.tile_rows[0]
    thread, is_address = np.zeros(1, THREAD), np.zeros(1, THREAD)
    rows = round_up(BLOCK_ROWS + high, high)

    def take(name: str, count: int) -> None:
        thread[name], is_address[name] = room.take(count), 1

    def take_rows(name: str, width: int, size: int) -> None:
        each = stride(round_up(width, panel), size)
        thread[name], is_address[name] = (room.take(rows * each), each), (1, 0)

    take("sums", rows * panel * 4)
    take("row_scales", rows * 8)
    take_rows("y", sizes.hidden, 4)
    take_rows("operand", max(sizes.hidden, sizes.inner), SIZES[target.operand(dtype)])
    take_rows("inner", sizes.inner, SIZES[target.inner(dtype)])
    tokens, deep = round_up(sizes.longest, panel), round_up(sizes.head, 2 * panel)
    take("keys", tokens * deep * 4)
    take("values", tokens * deep * 4)
    take("scores", tokens * high * 4)
    if target.attention(dtype) == "float32":  # probabilities replace the scores
        thread["probs"], is_address["probs"] = thread["scores"], 1
    else:
        take("probs", tokens * high * 4)
    take("shifts", high * 4)
    take("inverses", high * 4)
    return thread, is_address


# ---------------------------------------------------------------- one call


class Job:
    """One call of an entry of the program.

    Args:
        entry: its name in records.JOBS.
        program: which it belongs to.
        num_threads: how many take part, at most.
        tokens: T.
        sizes: of the model.
        buffers: matrices that the job reads or writes, by its fields.
        rows: the tasks that are blocks of rows, see `row_tasks`.
    """

    def __init__(
        self,
        entry: str,
        program: Program,
        num_threads: int,
        tokens: int,
        sizes: Sizes,
        buffers: dict[str, Buffer],
        rows: Record,
    ):
        self.entry, self.program, self.num_threads = entry, program, num_threads
        self.tokens, self.sizes, self.buffers = tokens, sizes, buffers
        record = aligned((1,), JOBS[entry])
        self.address, self.record = address(record), record[0]
        self.record["yield_function"] = YIELD
        self.arrays: list[NDArray[Any]] = []
        self.refer("row_tasks", rows)
        self.record["row_task_count"] = len(rows)
        self.tasks = len(rows)  # of the stage that has most

    def refer(self, name: str, array: NDArray[Any]) -> None:
        """Let a field point to an array, which lives as long as the job."""
        self.record[name] = address(array)
        self.arrays.append(array)

    def set_queries(self, queries: Record) -> None:
        """Add the tasks of attention, see `attention_tasks`."""
        self.refer("attention_tasks", queries)
        self.record["attention_task_count"] = len(queries)
        self.tasks = max(self.tasks, len(queries))

    @property
    def threads(self) -> int:
        """How many take part, at most."""
        return max(1, min(self.num_threads, self.tasks))

    def work_in(self, reserve: Callable[[int], NDArray[Any]]) -> None:
        """Work in memory of so many bytes as the job needs."""
        dtype, target = self.program.dtype, self.program.target
        buffers = tuple(self.buffers.items())
        layout = lay_out(buffers, self.sizes, self.tokens, self.threads, dtype, target)
        self.layout, self.memory = layout, reserve(layout.size)
        begin = address(self.memory)
        for name, (offset, each) in layout.buffers.items():
            self.record[name] = (begin + offset, each)
        self.refer("threads", layout.threads + begin * layout.addresses)

    def view(self, name: str, columns: int) -> NDArray[Any]:
        """A buffer as an array [T, columns]."""
        dtype = np.dtype(np.uint16 if self.buffers[name][1] == "bfloat16" else np.float32)
        offset, each = self.layout.buffers[name]
        shape, strides = (self.tokens, columns), (each, dtype.itemsize)
        return np.ndarray(shape, dtype, self.memory, offset, strides)

    def put(self, name: str, x: Floats) -> None:
        """Fill a buffer, and the columns behind it with zeros."""
        width, kind = self.buffers[name]
        if x.shape != (self.tokens, width):
            raise InputError(
                f"{self.entry}: {name} must be [{self.tokens}, {width}], got {list(x.shape)}"
            )
        whole = self.view(name, round_up(width, self.program.target.panel))
        whole[:, width:] = 0
        if kind == "rounded":
            x = from_bfloat16(to_bfloat16(x))
        whole[:, :width] = to_bfloat16(x) if kind == "bfloat16" else x

    def get(self, name: str) -> Floats:
        """A copy of a buffer, in float32."""
        found = self.view(name, self.buffers[name][0])
        return found.copy() if found.dtype == np.float32 else from_bfloat16(found)

    def run(self, slot: int) -> None:
        """Take tasks until none is left, as the thread of this slot."""
        self.program.run(self.entry, self.address, slot)
