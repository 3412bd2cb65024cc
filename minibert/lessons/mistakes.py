"""What is known to go wrong: for each function the definition with a piece of its text replaced.

Where a learner's results equal those of such a variant on every case, the hint names the mistake.
A replaced text that the definition no longer holds, or two variants that no case tells apart, turn
a test red.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations
from typing import NamedTuple

from minibert.lessons.backward_mistakes import BACKWARD_MISTAKES
from minibert.lessons.forward_mistakes import FORWARD_MISTAKES
from minibert.lessons.lesson import Step


class Mistake(NamedTuple):
    """One variant."""

    hint: str  # completes "it looks as if"
    changes: tuple[tuple[str, str], ...]  # text of the definition, and what stands there instead

    def put_into(self, code: str) -> str:
        """The code with the mistake in it.

        Raises:
            ValueError: it does not hold the text exactly once.
        """
        for old, new in self.changes:
            if code.count(old) != 1:
                raise ValueError(f"{old!r} stands there {code.count(old)} times")
            code = code.replace(old, new)
        return code


def mistakes(name: str) -> Iterator[Mistake]:
    """What is known to go wrong in a function."""
    for hint, *pairs in (FORWARD_MISTAKES | BACKWARD_MISTAKES)[name]:
        yield Mistake(hint, tuple(zip(pairs[::2], pairs[1::2], strict=True)))


def codes(step: Step) -> Iterator[tuple[list[str], str]]:
    """The definition with each known mistake in it, then with each two that go together.

    Yields:
        Their hints, and the code.
    """
    known = list(mistakes(step.name))
    right = step.definition.code
    for mistake in known:
        yield [mistake.hint], mistake.put_into(right)
    for one, other in combinations(known, 2):
        with suppress(ValueError):  # both change the same text
            yield [one.hint, other.hint], other.put_into(one.put_into(right))
