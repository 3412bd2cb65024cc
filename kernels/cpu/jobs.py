"""Jobs: how a batch is cut into tasks, and where everything lies in memory.

For each call the tasks are listed, the memory that all threads share is laid out, and one record
(records.py) tells the compiled program all of it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Ints
from minibert.kernels.numbers import round_up

from .packing import aligned
from .pool import YIELD, Job
from .records import FIELDS, JOB_SIZE
from .targets import SIZES, Target

# Rows of a block: enough that the weights, which every block reads once from L3 or memory, are
# used often; few enough that a block's activations stay in L2 and every thread gets several.
BLOCK_ROWS = 48


# ---------------------------------------------------------------- tasks


def row_blocks(tokens: int, threads: int, target: Target) -> NDArray[np.int64]:
    """Where each block of rows begins, and T: blocks about equal, as many for each thread."""
    unit = target.tile_rows[-1]
    threads = max(1, min(threads, -(-tokens // unit)))
    count = threads * -(-tokens // (threads * BLOCK_ROWS))
    starts = np.arange(count + 1) * tokens // max(1, count) // unit * unit
    starts[-1] = tokens
    # Not np.unique: it ends the process if a daemon thread is in it while Python ends.
    return starts[np.diff(starts, prepend=-1) > 0].astype(np.int64)


def attention_places(
    cu_seqlens: Ints, heads: int, threads: int, target: Target
) -> NDArray[np.int64]:
    """Attention's tasks [n, 5]: window's begin and length, head, first and last query.

    The longest windows come first, so that what is left for the end is short.
    """
    lengths = np.diff(cu_seqlens).astype(np.int64)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    parts = -(-4 * threads // max(1, len(order) * heads)) if threads > 1 else 1
    rows = []
    for window in order.tolist():
        begin, length = int(cu_seqlens[window]), int(lengths[window])
        unit = target.tile_rows[0]
        step = round_up(-(-length // parts), unit)
        rows += [
            (begin, length, 0, first, min(first + step, length)) for first in range(0, length, step)
        ]
    places = np.repeat(np.array(rows, np.int64).reshape(-1, 5), heads, axis=0)
    places[:, 2] = np.tile(np.arange(heads), len(rows))
    return places


# ---------------------------------------------------------------- memory


def stride(width: int, size: int) -> int:
    """Bytes from row to row: an odd number of cache lines, so that rows share no cache set."""
    return (-(-width * size // 64) | 1) * 64


@dataclass(frozen=True)
class Shape:
    """Sizes that decide how much memory a job needs; buffers are (columns, dtype) of [T, columns].

    Buffers that the job does not use are None.
    """

    hidden: int  # D
    inner: int = 1  # F, or the widest input of a single product
    heads: int = 1  # H
    x: tuple[int, str] | None = None
    qkv: tuple[int, str] | None = None
    context: tuple[int, str] | None = None
    out: tuple[int, str] | None = None

    @property
    def head_size(self) -> int:
        """Dh."""
        return self.hidden // self.heads

    @property
    def buffers(self) -> dict[str, tuple[int, str]]:
        """Name -> columns and dtype of each buffer that is used."""
        every = {"x": self.x, "qkv": self.qkv, "context": self.context, "out": self.out}
        return {name: buffer for name, buffer in every.items() if buffer is not None}


@dataclass(frozen=True)
class MemoryMap:
    """Where everything lies in the pool's memory."""

    places: dict[str, int]  # field -> bytes from the memory's beginning
    strides: dict[str, int]  # fields that are no addresses: bytes from row to row, scratch offsets
    size: int  # bytes


@functools.lru_cache(maxsize=256)
def lay_out(
    shape: Shape, tokens: int, longest: int, threads: int, dtype: str, target: Target
) -> MemoryMap:
    """Lay out a job's memory: buffers of all rows, then each thread's scratch memory.

    Args:
        shape: of the model.
        tokens: T.
        longest: tokens of the longest window.
        threads: how many need scratch memory.
        dtype: of the products.
        target: the processor.
    """
    panel, high = target.panel, target.tile_rows[0]
    size = 0

    def take(count: int) -> int:
        nonlocal size
        begin = size
        size = round_up(begin + count + 64, 64)  # a vector may be read at the last number
        return begin

    places, fields = {}, {}
    for name, (width, kind) in shape.buffers.items():
        fields[f"{name}_stride"] = stride(round_up(width, panel), SIZES[kind])
        # A tile reads as many rows as it is high, also beyond the last.
        places[name] = take((tokens + high) * fields[f"{name}_stride"])

    places["scratch"] = before = size
    rows = round_up(BLOCK_ROWS + high, high)
    operand, inner = SIZES[target.operand(dtype)], SIZES[target.inner(dtype)]
    fields["sums"] = take(rows * panel * 4) - before
    fields["quantised"] = take(rows * 8) - before
    for name, width, each in (
        ("y", shape.hidden, 4),
        ("operand", shape.hidden, operand),
        ("inner", shape.inner, inner),
        ("inner_operand", shape.inner, operand),
    ):
        fields[f"{name}_stride"] = stride(round_up(width, panel), each)
        fields[name] = take(rows * fields[f"{name}_stride"]) - before
    keys = round_up(longest, panel) * 4
    deep = round_up(shape.head_size, 2 * panel)
    fields["keys"] = take(keys * deep) - before
    fields["values"] = take(keys * deep) - before
    fields["scores"] = take(keys * high) - before
    narrow = target.attention(dtype) == "bfloat16"
    fields["probs"] = take(keys * high) - before if narrow else fields["scores"]
    fields["inverses"] = take(high * 4) - before
    fields["scratch_size"] = size - before
    return MemoryMap(places, fields, before + threads * (size - before))


def make_job(*parts: Mapping[str, int]) -> Job:
    """One record with these fields, at the beginning of a cache line."""
    job: Job = aligned((JOB_SIZE,), np.int64)
    job[FIELDS["yield_function"]] = YIELD
    for part in parts:
        for name, value in part.items():
            job[FIELDS[name]] = value
    return job


def set_places(job: Job, places: Mapping[str, int], begin: int) -> None:
    """Fill in the addresses of buffers, now that the memory's beginning is known."""
    for name, place in places.items():
        job[FIELDS[name]] = begin + place
