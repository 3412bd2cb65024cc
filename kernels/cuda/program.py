"""The whole pass on a GPU: one copy in, some eighty launches, one copy out, in one call.

A pass is recorded once for each *bucket*, a number of tokens that buffers are made for, as a CUDA
graph, and then only replayed: the GPU gets all launches in one call.  Its grids and addresses are
fixed; how many tokens and tiles there are stands at the head of the input, and blocks that find
nothing to do end at once.

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
from typing import TYPE_CHECKING, Any

import numpy as np

from minibert.arrays import Floats
from minibert.errors import BackendError
from minibert.kernels.numbers import round_up
from minibert.parameters import Weights

from .driver import Event, Graph, HostMemory, Memory, OutOfMemoryError
from .functions import Steps, attention_tiles, check_heads
from .language import TILE_FIELDS
from .upload import DEPTH

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


class Slot:
    """A place for one batch: its input and output, and the recorded pass between them."""

    def __init__(self, program: Program, capacity: int, buffers: dict[str, Memory]):
        device = program.steps.device
        numbers = input_numbers(capacity)
        # The graph holds only addresses: what it reads must live as long.
        self.capacity, self.buffers, self.weights = capacity, buffers, program.weights
        self.host_in = HostMemory(device, 4 * numbers)
        self.host_out = HostMemory(device, 8 * capacity)
        self.input = self.host_in.view(np.int32, 0, numbers)
        self.output = self.host_out.view(np.float32, 0, 2 * capacity).reshape(2, capacity)
        self.input[:] = 0
        self.done = Event(device)
        self.flight: Flight | None = None
        self.graph: Graph = device.record(lambda: program.put(self, buffers))

    def fill(self, batch: Batch, tiles: Any) -> None:
        """Write a batch into the input."""
        tokens, capacity = len(batch.input_ids), self.capacity
        self.input[:2] = tokens, len(tiles)
        for i, ids in enumerate((batch.input_ids, batch.token_type_ids, batch.position_ids)):
            begin = HEADER + i * capacity
            self.input[begin : begin + tokens] = ids
        begin = HEADER + 3 * capacity
        self.input[begin : begin + tiles.size] = tiles.ravel()


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
        steps: the kernels.
        weights: on the GPU.
        config: shape of the model.
    """

    def __init__(self, steps: Steps, weights: Weights, config: BertConfig):
        self.steps, self.weights, self.config = steps, weights, config
        self.head_size = check_heads(config.hidden_size, config.num_attention_heads)
        self.buckets: dict[int, list[Slot]] = {}  # the slot that was used last comes last
        self.limit: int | None = None  # tokens of the largest bucket that memory suffices for
        self.lock = steps.device.lock  # all models on the GPU share its stream

    # ------------------------------------------------------------ one batch

    def launch(self, batch: Batch) -> Callable[[], Logits]:
        """Begin a pass; the function that comes back waits for it.

        Raises:
            OutOfMemoryError: the GPU's memory does not suffice even for one window.
        """
        tokens = len(batch.input_ids)
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
        steps, config = self.steps, self.config
        hidden, size = config.hidden_size, steps.bytes
        layers = self.weights.layers
        inner = round_up(config.intermediate_size, DEPTH)
        sums = [
            steps.sums_size(dense, capacity)  # type: ignore[arg-type]
            for layer in layers
            for dense in (layer.attention_output, layer.output)
        ]
        sizes = {
            "x": capacity * hidden * size,
            "attended": capacity * hidden * size,
            "qkv": capacity * 3 * hidden * size,
            "context": capacity * hidden * size,
            "inner": capacity * inner * size,
            "sums": max(sums, default=0),
            "logits": capacity * 8,
        }
        buffers = {name: Memory(steps.device, bytes_) for name, bytes_ in sizes.items()}
        buffers["input"] = steps.device.upload(np.zeros(input_numbers(capacity), np.int32))
        # Once without recording, for no tokens: kernels cannot be loaded while recording.
        self.put_launches(buffers, capacity)
        steps.device.synchronize()
        return [Slot(self, capacity, buffers) for _ in range(SLOTS)]

    # ------------------------------------------------------------ what is recorded

    def put(self, slot: Slot, buffers: dict[str, Memory]) -> None:
        """Put a slot's copy in, all launches, and its copy out on the stream."""
        device = self.steps.device
        device.copy_in(buffers["input"], slot.host_in, 4 * len(slot.input))
        self.put_launches(buffers, slot.capacity)
        device.copy_out(slot.host_out, buffers["logits"], 8 * slot.capacity)

    def put_launches(self, buffers: dict[str, Memory], capacity: int) -> None:
        """Put the launches of a pass on the stream: BERT, in the order of encoder.py."""
        steps, config, weights = self.steps, self.config, self.weights
        eps = config.layer_norm_eps
        counts = buffers["input"].address
        ids = tuple(counts + 4 * (HEADER + i * capacity) for i in range(3))
        tiles = counts + 4 * (HEADER + 3 * capacity)
        x, attended, qkv, context, inner, sums = (
            buffers[name] for name in ("x", "attended", "qkv", "context", "inner", "sums")
        )
        heads, most_tiles = config.num_attention_heads, capacity // TOKENS_PER_TILE
        layers: Any = weights.layers
        tables: Any = weights.tables
        head: Any = weights.qa_outputs

        steps.embed(counts, ids, tables, x, eps, capacity)  # type: ignore[arg-type]
        for layer in layers:
            steps.linear(counts, x, layer.qkv, qkv, capacity)
            steps.attention(counts, tiles, qkv, context, heads, self.head_size, most_tiles)
            steps.linear_add_norm(
                counts, context, layer.attention_output, x, layer.attention_norm, sums, attended,
                eps, capacity,
            )  # fmt: skip
            steps.linear(counts, attended, layer.intermediate, inner, capacity, config.activation)
            steps.linear_add_norm(
                counts, inner, layer.output, attended, layer.output_norm, sums, x, eps, capacity
            )
        steps.span_logits(counts, x, head, buffers["logits"], capacity)


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
