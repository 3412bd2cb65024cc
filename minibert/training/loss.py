"""How wrong the logits of a batch are, and in which direction they should move."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats, Ints
from minibert.errors import InputError


class Loss(NamedTuple):
    """The loss of a batch, and its gradient with respect to the logits."""

    loss: float  # summed over the windows
    d_start: Floats  # [T]
    d_end: Floats  # [T]


def span_loss(
    start_logits: Floats,
    end_logits: Floats,
    cu_seqlens: Ints,
    starts: Sequence[Sequence[int]],
    ends: Sequence[Sequence[int]],
    weights: Sequence[float] | None = None,
) -> Loss:
    """Cross entropy: minus the log of the chance that the logits give to the right tokens.

    For each window, half for the start and half for the end: -log(sum of p over right tokens) with
    p = softmax(logits of the window).  Its derivative is p - q, where q is p on the right tokens
    alone, brought to a sum of 1; so with one right token, q is 1 there.

    Args:
        start_logits: [T].
        end_logits: [T].
        cu_seqlens: [B + 1], where each window begins, and T.
        starts: for each window the positions in it, from 0, that are right as the first token of
            the answer: one or several; [0], which is [CLS], where there is no answer.
        ends: the same for the last token.
        weights: [B], by which each window's loss is multiplied; None: 1.

    Returns:
        The loss, summed over windows in float64, and its gradient in the logits' dtype.

    Raises:
        InputError: a window has no right position, or one that it does not have.

    Source: `compute_loss` in google-research/bert run_squad.py.
    """
    halves = np.full(len(cu_seqlens) - 1, 0.5) if weights is None else np.multiply(weights, 0.5)
    of_starts, d_start = cross_entropy(start_logits, cu_seqlens, starts, halves)
    of_ends, d_end = cross_entropy(end_logits, cu_seqlens, ends, halves)
    return Loss(of_starts + of_ends, d_start, d_end)


def cross_entropy(
    logits: Floats,
    cu_seqlens: Ints,
    right: Sequence[Sequence[int]],
    weights: NDArray[np.float64],
) -> tuple[float, Floats]:
    """The loss of one kind of logits [T], summed over windows, and its gradient [T]."""
    loss, gradient = 0.0, np.empty_like(logits)
    for b, (begin, end) in enumerate(pairwise(cu_seqlens.tolist())):
        places = sorted(set(right[b]))
        if not places or places[0] < 0 or places[-1] >= end - begin:
            raise InputError(
                f"window {b} of the batch has {end - begin} tokens, and its right positions must "
                f"be among them and at least one, got {list(right[b])}"
            )
        scores = logits[begin:end].astype(np.float64)  # [S]
        log_probs = scores - log_sum(scores)
        log_right = log_sum(log_probs[places])
        loss -= weights[b] * log_right
        difference = np.exp(log_probs)
        difference[places] -= np.exp(log_probs[places] - log_right)
        gradient[begin:end] = weights[b] * difference
    return float(loss), gradient


def log_sum(x: NDArray[np.float64]) -> np.float64:
    """log(sum(exp(x))), also where exp(x) has no numbers."""
    highest = x.max()
    return highest + np.log(np.exp(x - highest).sum())
