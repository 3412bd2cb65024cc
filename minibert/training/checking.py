"""Whether a device's training kernels compute the right numbers, found out in about a minute.

Gradients of a batch are laid beside the definition's, and a model is trained on that one batch
until it knows it by heart: with a gradient that is wrong it learns slowly or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minibert.batches import Batch, pack
from minibert.kernels.training import AdamW, TrainingKernels, get_training_kernels
from minibert.training.base import Base
from minibert.training.flat import Flat, flatten, zeros_like
from minibert.training.loss import span_loss
from minibert.training.order import hash_of
from minibert.training.passes import Dropouts, backward, forward
from minibert.windows import make_windows

QUESTIONS = (
    "Who wrote the first program?",
    "When was it written?",
    "What did the engine never do?",
    "Which ship was lost in the storm off the northern coast?",
)
TEXTS = (
    "Ada Lovelace wrote the first program in 1843. It was never run, for the engine was not built.",
    "The captain sailed from Bergen in May, and in a storm off the northern coast his ship was "
    "lost; eleven of the crew came home over the ice, the last of them in October.",
)
MOST_TOKENS = 64  # of a window

# Largest difference from the definition's gradient, of any array, as a share of its length.
# Measured on three models: float32 1.1e-5, bfloat16 0.024.
LIMITS = {"float32": 1e-4, "bfloat16": 0.1}
LEAST_LENGTH = 1e-3  # of the whole gradient: what is shorter counts as so long
RATE = 1e-3  # a learning rate for a single batch
STEPS = 150  # within which it is to be known
KNOWN = 0.05  # the loss of a batch that is
DROPPED = 0.1  # rate of dropout of the second comparison

Positions = list[list[int]]


@dataclass(frozen=True)
class Finding:
    """One part of the check."""

    what: str
    fact: str
    good: bool


def check_training(base: Base, kernels: TrainingKernels) -> list[Finding]:
    """Compare gradients with the definition's, without and with dropout; then learn one batch.

    Args:
        base: a model.
        kernels: of the device to check.
    """
    batch, starts, ends = one_batch(base)
    found = []
    for what, dropouts in (
        ("gradients", None),
        ("gradients with dropout", Dropouts(DROPPED, DROPPED, seed=1, step=1)),
    ):
        (loss, ours), (truth, theirs) = (
            gradient_of(base, each, batch, starts, ends, dropouts)
            for each in (kernels, get_training_kernels("reference"))
        )
        name, off = worst_difference(ours, theirs)
        limit = LIMITS[kernels.dtype]
        fact = (
            f"loss {loss:.4f} and {truth:.4f}; the worst is {name}, off by {off:.1e} of its length"
        )
        found.append(Finding(what, fact, off <= limit))  # NaN is not
    losses = learn(base, kernels, batch, starts, ends)
    fact = f"the loss fell from {losses[0]:.2f} to {losses[-1]:.3f} in {len(losses) - 1} steps"
    return [*found, Finding("learning one batch", fact, losses[-1] <= KNOWN)]


def one_batch(base: Base) -> tuple[Batch, Positions, Positions]:
    """A batch, and answers at random: no model knows them beforehand."""
    model = base.runner(None, None)
    length = min(MOST_TOKENS, model.usual_seq_length)
    windows = []
    for question in QUESTIONS:
        for text in TEXTS:
            windows += make_windows(
                base.tokenizer.encode(question).first(length // 4),
                base.tokenizer.encode(text),
                pair=model.pair,
                max_seq_length=length,
                doc_stride=0,
            )[:1]
    starts, ends = [], []
    for number, window in enumerate(windows):
        room = len(window) - 1 - window.offset
        first, last = sorted(window.offset + hash_of(number, end) % room for end in (0, 1))
        starts.append([first])
        ends.append([last])
    return pack(windows), starts, ends


def gradient_of(
    base: Base,
    kernels: TrainingKernels,
    batch: Batch,
    starts: Positions,
    ends: Positions,
    dropouts: Dropouts | None,
    flat: Flat | None = None,
    prepared: Any = None,
) -> tuple[float, Flat]:
    """The mean loss of a batch, and the gradient of its sum.

    Args:
        base: the model.
        kernels: of a device.
        batch: of B windows.
        starts: their right first tokens.
        ends: and last ones.
        dropouts: what is dropped.
        flat: other weights than the model's.
        prepared: the same for the kernels.
    """
    if flat is None:
        flat = flatten(base.weights, base.fixed)
        prepared = kernels.prepare(flat.weights)
    gradient = zeros_like(flat)
    kept = forward(batch, prepared, base.config, kernels, dropouts)
    loss, d_start, d_end = span_loss(
        kept.start_logits, kept.end_logits, batch.cu_seqlens, starts, ends
    )
    backward(kept, d_start, d_end, prepared, gradient.weights, base.config, kernels)
    return loss / len(starts), gradient


def worst_difference(ours: Flat, theirs: Flat) -> tuple[str, float]:
    """The array whose gradients differ most, and by what share of its length."""
    # Some gradients are 0 but for roundings: the loss does not see what is added to all logits.
    least = LEAST_LENGTH * float(np.linalg.norm(theirs.array))
    worst = "", -1.0
    for part in ours.parts:
        place = slice(part.begin, part.end)
        truth = theirs.array[place].astype(np.float64)
        difference = float(np.linalg.norm(ours.array[place] - truth))
        share = difference / max(float(np.linalg.norm(truth)), least)
        if not share <= worst[1]:  # NaN is the worst
            worst = part.name, share
            if np.isnan(share):
                break
    return worst


def learn(
    base: Base, kernels: TrainingKernels, batch: Batch, starts: Positions, ends: Positions
) -> list[float]:
    """The losses of a model that is trained on one batch until it knows it."""
    flat = flatten(base.weights, base.fixed)
    prepared = kernels.prepare(flat.weights)
    first, second = zeros_like(flat), zeros_like(flat)
    losses: list[float] = []
    while True:
        loss, gradient = gradient_of(base, kernels, batch, starts, ends, None, flat, prepared)
        losses.append(loss)
        if not loss > KNOWN / 2 or len(losses) > STEPS:
            return losses
        numbers = AdamW(RATE, 0.9, 0.999, 1e-8, 0.0, len(losses), 1 / len(starts))
        kernels.adamw(flat.array, gradient.array, first.array, second.array, numbers)
        kernels.refresh(prepared, flat.weights)
