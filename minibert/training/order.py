"""Which windows make up which step: a matter of the seed and of counting, nothing else.

The windows of an epoch are sorted by a hash of (seed, epoch, window), so an epoch's order can be
made again at any time, on any machine and with any version of NumPy.  Steps take them in that
order; the last step of an epoch may be smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Ints
from minibert.training.settings import TrainingSettings

Indices = NDArray[np.int64]


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each number.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014; the
    output function of SplitMix64.
    """
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_of(*numbers: int) -> int:
    """64 random bits that depend on all the numbers and on their order.

    Example:
        >>> hash_of(42, 0) == hash_of(42, 0), hash_of(42, 0) == hash_of(0, 42)
        (True, False)
    """
    state = np.zeros(1, np.uint64)
    for number in numbers:
        with np.errstate(over="ignore"):
            state = mix(state + np.uint64(number) + np.uint64(0x9E3779B97F4A7C15))
    return int(state[0])


def shuffled(count: int, seed: int, epoch: int) -> Indices:
    """The numbers below `count` in the order of an epoch."""
    keys = np.uint64(hash_of(seed, epoch)) + np.arange(count, dtype=np.uint64)
    return np.argsort(mix(mix(keys)), kind="stable")


@dataclass(frozen=True)
class Plan:
    """The steps of a whole run."""

    lengths: Ints  # tokens of each window
    settings: TrainingSettings

    def bounds(self, order: Indices) -> list[int]:
        """Where in an epoch's order each step begins, and the end of the last.

        Args:
            order: of the epoch.
        """
        settings, count = self.settings, len(order)
        if settings.batch_tokens is None:
            windows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
            return [*range(0, count, windows), count]
        tokens = settings.batch_tokens * settings.gradient_accumulation_steps
        ends = np.cumsum(self.lengths[order], dtype=np.int64)
        bounds = [0]
        while bounds[-1] < count:
            before = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
            fitting = int(np.searchsorted(ends, before + tokens, "right"))
            bounds.append(max(fitting, bounds[-1] + 1))  # a longer window is a step of its own
        return bounds

    def order(self, epoch: int) -> Indices:
        """The windows of an epoch in their order."""
        return shuffled(len(self.lengths), self.settings.seed, epoch)

    def steps(self) -> int:
        """How many steps the run has."""
        if self.settings.max_steps is not None:
            return self.settings.max_steps
        epochs = self.settings.num_train_epochs
        whole = int(epochs)
        if self.settings.batch_tokens is None:  # each epoch has as many
            counts = [whole * (len(self.bounds(self.order(0))) - 1)]
        else:
            counts = [len(self.bounds(self.order(epoch))) - 1 for epoch in range(whole)]
        if epochs > whole:
            last = len(self.bounds(self.order(whole))) - 1
            counts.append(int(np.ceil(round((epochs - whole) * last, 6))))
        return sum(counts)

    def passes(self, windows: Indices) -> list[Indices]:
        """The windows of a step, cut into packed batches of a size that memory allows."""
        settings = self.settings
        most = len(windows) if settings.batch_tokens else settings.per_device_train_batch_size
        tokens = min(settings.max_tokens_per_pass, settings.batch_tokens or 2**62)
        return cut(windows, self.lengths[windows], most, tokens)


def cut(windows: Indices, lengths: Sequence[int] | Ints, most: int, tokens: int) -> list[Indices]:
    """Windows in parts of at most so many windows and tokens; a longer window is its own part.

    Example:
        >>> [part.tolist() for part in cut(np.arange(5), [3, 3, 9, 1, 1], 2, 6)]
        [[0, 1], [2], [3, 4]]
    """
    parts, begin, held = [], 0, 0
    for place, length in enumerate(lengths):
        if place > begin and (place - begin == most or held + length > tokens):
            parts.append(windows[begin:place])
            begin, held = place, 0
        held += int(length)
    return [*parts, windows[begin:]]
