"""The whole pass on a GPU: one copy in, some eighty launches, one copy out, in one call.

The pass is `bert` of minibert/encoder.py, run with the functions of steps.py.  It is recorded once
for each *bucket*, a number of tokens that memory is made for, as a CUDA graph, and then only
replayed: the GPU gets all launches in one call.  Its grids and addresses are fixed; how many tokens
and tiles there are stands at the head of the input, and blocks that find nothing to do end at once.

    input   tokens and tiles, then input ids, token types and positions [capacity], the tiles of
            attention [capacity / 16, 4]; int32, one copy from page-locked memory
    output  start and end logits [2, capacity] float32, one copy to page-locked memory

Each bucket has two slots, each with its input, its output and its graph, so that a batch can be
packed, or its logits read, while the GPU works on another.  All work is on one stream: the buffers
between are shared.

Where memory does not suffice for a bucket, buckets that are not in use are given up, and if that
is not enough the batch is done in two halves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minibert.arrays import Floats, Ints
from minibert.errors import BackendError
from minibert.kernels.bounds import check_windows, checked_ids

from .driver import Address, Event, Graph, HostMemory, Memory, OutOfMemoryError
from .language import QUERIES, TILE_FIELDS
from .launcher import Launcher, check_embeddings, check_heads
from .steps import Steps
from .upload import DeviceWeights

if TYPE_CHECKING:
    from minibert.batches import Batch
    from minibert.config import BertConfig

Logits = tuple[Floats, Floats]

SMALLEST = 128  # tokens of the smallest bucket
TOKENS_PER_TILE = 16  # a bucket has room for one tile of attention for so many tokens
HEADER = 4  # numbers before the input ids
SLOTS = 2


def bucket_size(tokens: int, tiles: int = 0) -> int:
    """Tokens of the bucket for a batch: 128, 256, 384, 512, 768, 1024, 1536 and so on.

    Args:
        tokens: of the batch.
        tiles: of its attention.
    """
    needed = max(SMALLEST, tokens, TOKENS_PER_TILE * tiles)
    size = SMALLEST
    while size < needed:
        size *= 2
    between = size // 4 * 3
    return between if between >= needed and between % SMALLEST == 0 else size


def input_numbers(capacity: int) -> int:
    """Numbers in a bucket's input."""
    return HEADER + 3 * capacity + TILE_FIELDS * (capacity // TOKENS_PER_TILE)


def smaller_bucket(size: int) -> int:
    """The next bucket below; the smallest for the smallest.

    Example:
        >>> [smaller_bucket(size) for size in (1024, 768, 512, 384, 256, 128)]
        [768, 512, 384, 256, 128, 128]
    """
    power = size & (size - 1) == 0
    below = (size // 4 * 3 if size >= 4 * SMALLEST else size // 2) if power else size // 3 * 2
    return max(SMALLEST, below)


def attention_tiles(cu_seqlens: Ints) -> Ints:
    """The list of attention's tiles: each window, cut into groups of 64 queries.

    Args:
        cu_seqlens: [B + 1].

    Returns:
        [tiles, 4] int32: the window's first row, its length, the tile's first query, 0.  Longest
        windows first, so that the last blocks to begin are short.

    Example:
        >>> attention_tiles(np.array([0, 3, 73], np.int32)).tolist()
        [[3, 70, 0, 0], [3, 70, 64, 0], [0, 3, 0, 0]]
    """
    lengths = np.diff(cu_seqlens)
    order = np.argsort(-lengths, kind="stable")
    counts = -(-lengths[order] // QUERIES)
    windows = np.repeat(order, counts)
    tiles = np.zeros((len(windows), TILE_FIELDS), np.int32)
    tiles[:, 0] = cu_seqlens[:-1][windows]
    tiles[:, 1] = lengths[windows]
    first = np.cumsum(counts) - counts
    tiles[:, 2] = (np.arange(len(windows)) - np.repeat(first, counts)) * QUERIES
    return tiles


class Slot:
    """Room for one batch: its input and output, and the recorded pass between them."""

    def __init__(self, program: Program, capacity: int, steps: Steps):
        device = program.device
        numbers = input_numbers(capacity)
        # The graph holds only addresses: what it reads must live as long.
        self.capacity, self.steps, self.weights = capacity, steps, program.weights
        self.host_in = HostMemory(device, 4 * numbers)
        self.host_out = HostMemory(device, 8 * capacity)
        self.input = self.host_in.view(np.int32, 0, numbers)
        self.output = self.host_out.view(np.float32, 0, 2 * capacity).reshape(2, capacity)
        self.input[:] = 0
        self.done = Event(device)
        self.flight: Flight | None = None
        self.graph: Graph = device.record(lambda: program.put(self, steps))

    def fill(self, batch: Batch, tiles: Any) -> None:
        """Write a batch into the input."""
        tokens, capacity = len(batch.input_ids), self.capacity
        self.input[:2] = tokens, len(tiles)
        for i, ids in enumerate((batch.input_ids, batch.token_type_ids, batch.position_ids)):
            begin = HEADER + i * capacity
            self.input[begin : begin + tokens] = ids
        begin = HEADER + 3 * capacity
        self.input[begin : begin + tiles.size] = tiles.ravel()


class Inputs(NamedTuple):
    """What `bert` reads of a batch, as addresses in the GPU's memory."""

    input_ids: Address
    token_type_ids: Address
    position_ids: Address
    cu_seqlens: Address  # of attention's tiles, which are made of them


class Flight:
    """A batch on its way: `wait` gives its logits, as often as it is called."""

    def __init__(self, slot: Slot, tokens: int):
        self.slot: Slot | None = slot  # until the logits have been taken out
        self.tokens = tokens
        self.lock = threading.Lock()
        self.logits: Logits | None = None

    def take(self) -> None:
        """Wait for the logits and take them out of the slot."""
        with self.lock:
            if self.slot is not None:
                self.slot.done.wait()
                start, end = self.slot.output[:, : self.tokens]
                self.logits, self.slot = (start.copy(), end.copy()), None

    def wait(self) -> Logits:
        """Start and end logits [T].

        Raises:
            BackendError: they are not finite, or the GPU failed.
        """
        self.take()
        if self.logits is None or not all(np.isfinite(part).all() for part in self.logits):
            raise BackendError(
                "the GPU's logits are not finite: numbers became too large for the dtype, as they "
                "may in float16. Use dtype='bfloat16' or 'float32'."
            )
        return self.logits


class Program:
    """The pass of one model.

    Args:
        launcher: the kernels.
        bert: of minibert/encoder.py: the steps of the pass, in order.
        weights: on the GPU.
        config: shape of the model.
    """

    def __init__(self, launcher: Launcher, bert: Any, weights: DeviceWeights, config: BertConfig):
        self.launcher, self.device = launcher, launcher.device
        self.bert, self.weights, self.config = bert, weights, config
        check_heads(config.hidden_size, config.num_attention_heads)
        check_embeddings(config)
        self.buckets: dict[int, list[Slot]] = {}  # the slot that was used last comes last
        self.limit: int | None = None  # tokens of the largest bucket that memory suffices for
        self.lock = self.device.lock  # all models on the GPU share its stream

    # ------------------------------------------------------------ one batch

    def launch(self, batch: Batch) -> Callable[[], Logits]:
        """Begin a pass; the function that comes back waits for it.

        Raises:
            OutOfMemoryError: the GPU's memory does not suffice even for one window.
        """
        tokens = len(batch.input_ids)
        ids = batch.input_ids, batch.token_type_ids, batch.position_ids
        checked_ids(*ids, self.weights.tables.rows)
        check_windows(batch.cu_seqlens, tokens)
        if tokens == 0:
            nothing = np.zeros(0, np.float32)
            return lambda: (nothing, nothing.copy())
        tiles = attention_tiles(batch.cu_seqlens)
        capacity = bucket_size(tokens, len(tiles))
        with self.lock:
            if self.limit is None or capacity <= self.limit or len(batch.cu_seqlens) <= 2:
                try:
                    return self._start(batch, tiles, capacity)
                except OutOfMemoryError:
                    if len(batch.cu_seqlens) <= 2:
                        raise
                    self.limit = smaller_bucket(min(capacity, self.limit or capacity))
            first, second = (self.launch(half) for half in halves(batch))
        return lambda: joined(first(), second())

    def _start(self, batch: Batch, tiles: Any, capacity: int) -> Callable[[], Logits]:
        slots = self._bucket(capacity)
        slots.append(slot := slots.pop(0))
        if slot.flight is not None:
            slot.flight.take()  # before they are overwritten
        slot.fill(batch, tiles)
        slot.graph.launch()
        slot.done.record()
        slot.flight = Flight(slot, len(batch.input_ids))
        return slot.flight.wait

    def _bucket(self, capacity: int) -> list[Slot]:
        if capacity not in self.buckets:
            with suppress(OutOfMemoryError):
                self.buckets[capacity] = self._make_bucket(capacity)
        if capacity not in self.buckets:
            self._give_up_buckets()
            self.buckets[capacity] = self._make_bucket(capacity)
        return self.buckets[capacity]

    def _give_up_buckets(self) -> None:
        for slots in self.buckets.values():
            for slot in slots:
                if slot.flight is not None:
                    slot.flight.take()  # keeps the logits, and lets go of the slot
        self.buckets.clear()

    def _make_bucket(self, capacity: int) -> list[Slot]:
        memory: dict[tuple[str, int], Memory] = {}

        def room(name: str, size: int) -> Memory:
            if (name, size) not in memory:
                memory[name, size] = Memory(self.device, size)
            return memory[name, size]

        counts = self.device.upload(np.zeros(input_numbers(capacity), np.int32))
        steps = Steps(self.launcher, counts, capacity, capacity // TOKENS_PER_TILE, room)
        # Once without recording, for no tokens: neither memory nor kernels can be had later.
        self.put_pass(steps)
        self.device.synchronize()
        return [Slot(self, capacity, steps) for _ in range(SLOTS)]

    # ------------------------------------------------------------ what is recorded

    def put(self, slot: Slot, steps: Steps) -> None:
        """Put a slot's copy in, the pass, and its copy out on the stream."""
        self.device.copy_in(steps.counts, slot.host_in, 4 * len(slot.input))
        logits = self.put_pass(steps)
        self.device.copy_out(slot.host_out, logits, 8 * slot.capacity)

    def put_pass(self, steps: Steps) -> Memory:
        """Put all launches on the stream; what comes back is where the logits will be."""
        ids = [
            steps.counts.address + 4 * (HEADER + i * steps.capacity)
            for i in range(4)  # input ids, token types, positions, then attention's tiles
        ]
        logits: Memory = self.bert(Inputs(*ids), self.weights, self.config, steps)
        return logits


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """A batch of two windows or more as two, cut between windows near the middle."""
    borders = batch.cu_seqlens
    middle = int(np.argmin(np.abs(borders[1:-1] - borders[-1] / 2))) + 1
    cut = int(borders[middle])
    parts = []
    for begin, end, cu_seqlens in (
        (0, cut, borders[: middle + 1]),
        (cut, int(borders[-1]), borders[middle:] - cut),
    ):
        parts.append(
            replace(
                batch,
                input_ids=batch.input_ids[begin:end],
                token_type_ids=batch.token_type_ids[begin:end],
                position_ids=batch.position_ids[begin:end],
                cu_seqlens=cu_seqlens,
            )
        )
    return parts[0], parts[1]


def joined(first: Logits, second: Logits) -> Logits:
    """The logits of two halves as those of the whole."""
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])
