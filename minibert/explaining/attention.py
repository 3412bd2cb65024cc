"""Who reads from whom: sums of attention probabilities that are few enough to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats, Ints
from minibert.windows import Window

QUESTION, TEXT, CLS, SEP = range(4)  # groups of tokens
# Kinds of reading: which group's tokens read from which group's.
KINDS = (
    ("question to question", (QUESTION,), (QUESTION,)),
    ("question to text", (QUESTION,), (TEXT,)),
    ("text to question", (TEXT,), (QUESTION,)),
    ("text to text", (TEXT,), (TEXT,)),
    ("to [CLS]", (QUESTION, TEXT), (CLS,)),
    ("to [SEP]", (QUESTION, TEXT), (SEP,)),
)
STRONGEST = 4  # tokens that are kept of those that one token reads from


def groups_of(window: Window) -> Ints:
    """The group of each token of a window, [S]."""
    first, past = window.offset, window.offset + window.end - window.begin
    groups = np.full(len(window), SEP, np.int32)
    groups[0] = CLS
    question = first - 1
    separator = window.input_ids[-1]
    while question > 0 and window.input_ids[question] == separator:
        question -= 1
    groups[1 : question + 1] = QUESTION
    groups[first:past] = TEXT
    return groups


def shares(probs: Sequence[Floats], groups: Ints) -> NDArray[np.float64]:
    """How much of their reading tokens do in each of `KINDS`, [L, H, K].

    Each token reads with weights that sum to 1; these are means over the tokens that a kind is of:
    of "question to text" over the question's.

    Args:
        probs: of each layer [H, S, S].
        groups: [S].
    """
    found = np.zeros((len(probs), len(probs[0]), len(KINDS)))
    for number, (_, of, to) in enumerate(KINDS):
        rows = np.isin(groups, of).astype(np.float32)
        columns = np.isin(groups, to).astype(np.float32)
        for i, layer in enumerate(probs):
            found[i, :, number] = (layer @ columns) @ rows / max(1.0, rows.sum())  # [H]
    return found


@dataclass(frozen=True, eq=False)
class Strongest:
    """The tokens that each token reads from most, best first."""

    keys: NDArray[np.uint16]  # [L, H, S, 4] places in the window
    weights: Floats  # [L, H, S, 4] the probabilities

    @property
    def covered(self) -> NDArray[np.float64]:
        """The share of its reading that a token does at these four, mean over tokens: [L, H]."""
        return self.weights.sum(axis=-1, dtype=np.float64).mean(axis=-1)


def strongest(probs: Sequence[Floats]) -> Strongest:
    """The four strongest of each row; of equals, any."""
    count = min(STRONGEST, probs[0].shape[-1])
    keys, weights = [], []
    for layer in probs:
        best = np.argpartition(-layer, count - 1, axis=-1)[..., :count]
        found = np.take_along_axis(layer, best, axis=-1)
        order = np.argsort(-found, axis=-1, kind="stable")
        keys.append(np.take_along_axis(best, order, axis=-1).astype(np.uint16))
        weights.append(np.take_along_axis(found, order, axis=-1))
    return Strongest(np.stack(keys), np.stack(weights))


def importance(probs: Sequence[Floats], d_probs: Sequence[Floats]) -> NDArray[np.float64]:
    """How much each head matters to a target, [L, H]: sum of |gradient times probability|.

    To first order, the target moves at most so far when the head's probabilities are changed by as
    much as they are; it has no sign.

    Source: Michel et al. 2019 (arXiv:1905.10650), with probabilities in place of a head's mask.
    """
    return np.array(
        [
            [np.abs(p * d).sum(dtype=np.float64) for p, d in zip(layer, d_layer, strict=True)]
            for layer, d_layer in zip(probs, d_probs, strict=True)
        ]
    )


def flow(probs: Sequence[Floats], d_probs: Sequence[Floats]) -> NDArray[np.float64]:
    """Gradient times probability, summed over all layers and heads: [S, S], signed.

    Row i, column j: what token i's reading from token j adds to the target, to first order.
    """
    total = np.zeros(probs[0].shape[1:])
    for layer, d_layer in zip(probs, d_probs, strict=True):
        total += np.einsum("hij,hij->ij", layer, d_layer, dtype=np.float64)
    return total
