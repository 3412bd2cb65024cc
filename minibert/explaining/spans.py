"""Which pairs of a start and an end may be an answer, and what forbids the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats
from minibert.scripts import borders
from minibert.spans import Ends, Logits, answer_ends, max_context_tokens
from minibert.windows import Window

# What may forbid a pair; the first that applies is the one that is named.
RULES = (
    "allowed",
    "not in the text",
    "ends before it starts",
    "too long",
    "seen better by another window",
    "within a character, or only spaces",
    "not whole words",
)
ALLOWED, NOT_TEXT, BACKWARD, TOO_LONG, ELSEWHERE, WITHIN, PART_OF_WORD = range(len(RULES))


class Pair(NamedTuple):
    """A start and an end in one window, as numbers of tokens; the end included."""

    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Seen:
    """What decides about spans in one window, token by token: each array is [S]."""

    window: Window
    start: Floats  # logits
    end: Floats
    text: NDArray[np.bool_]  # whether it is of the text
    mine: NDArray[np.bool_]  # whether this window sees it best
    ends: Ends  # False and 0 outside the text

    def scores(self) -> Floats:
        """The sum of logits of each pair, [S, S] float32."""
        return self.start[:, None] + self.end[None, :]

    def rules(self, max_answer_length: int, align_to_words: bool) -> NDArray[np.uint8]:
        """What forbids each pair, [S, S]: places in `RULES`."""
        tokens = np.arange(len(self.window))
        start, end = tokens[:, None], tokens[None, :]
        ends = self.ends
        whole = ends.begins_word[:, None] & ends.ends_word[None, :]
        found = np.zeros((len(tokens), len(tokens)), np.uint8)
        for rule, broken in (  # the first of RULES last, so that it stays
            (PART_OF_WORD, ~whole & align_to_words),
            (WITHIN, ~(ends.may_start[:, None] & ends.may_end[None, :])),
            (ELSEWHERE, np.broadcast_to(~self.mine[:, None], found.shape)),
            (TOO_LONG, end - start >= max_answer_length),
            (BACKWARD, end < start),
            (NOT_TEXT, ~(self.text[:, None] & self.text[None, :])),
        ):
            found[broken] = rule
        return found

    def characters(self, pair: Pair) -> str:
        """The text of a pair whose end is not before its start, both in the text."""
        begin, end = int(self.ends.starts[pair.start]), int(self.ends.ends[pair.end])
        return self.window.context.text[begin:end]


def see(windows: Sequence[Window], logits: Sequence[Logits]) -> list[Seen]:
    """What decides about spans in each window of a question."""
    borders_of = {window.document: borders(window.context.text) for window in windows}
    owners = max_context_tokens(windows)
    found = []
    for window, mine, (start, end) in zip(windows, owners, logits, strict=True):
        size, first = len(window), window.offset
        text = np.zeros(size, bool)
        text[first : first + len(mine)] = True
        owned = np.zeros(size, bool)
        owned[first : first + len(mine)] = mine
        ends = Ends(*np.zeros((4, size), bool), *np.zeros((2, size), np.int32))
        if len(mine):
            for whole, part in zip(
                ends, answer_ends(window, borders_of[window.document]), strict=True
            ):
                whole[first : first + len(mine)] = part
        found.append(Seen(window, start, end, text, owned, ends))
    return found


def best_pair(scores: Floats, allowed: NDArray[np.bool_]) -> Pair | None:
    """The pair with the highest score of those that are allowed; of equals, the first."""
    if not allowed.any():
        return None
    at = int(np.argmax(np.where(allowed, scores, -np.inf)))
    return Pair(*divmod(at, scores.shape[1]))
