"""What was made of the last texts, so that a text that is asked many questions is made ready once.

Bounded by tokens and not by texts: a text may be a question or a book.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from minibert.errors import InputError
from minibert.reprs import shown

KEPT_TOKENS = 2**18  # in all; their arrays and texts take a few megabytes
# What an entry takes beside its tokens, in tokens: its objects and the heads of its arrays.
ENTRY_TOKENS = 32
# Characters that take as much memory as a token; a text may have many more of them: white space.
TOKEN_CHARACTERS = 8

Made = TypeVar("Made")

# One for all, held for less than a microsecond.  A fork waits for it, or the child would find it
# held by a thread that it does not have.
LOCK = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release
    )


class Recent(Generic[Made]):
    """A function of a text that remembers the last texts; several threads may call it.

    Args:
        make: the function.
        tokens: how many tokens a result holds.
    """

    def __init__(self, make: Callable[[str], Made], tokens: Callable[[Made], int]) -> None:
        self.make, self.tokens = make, tokens
        self.kept: OrderedDict[str, tuple[Made, int]] = (
            OrderedDict()
        )  # and its size; last used last
        self.size = 0  # of all that is kept, in tokens

    def __call__(self, text: str) -> Made:
        """What `make` gives for `text`.

        Raises:
            InputError: it is no text.
        """
        if not isinstance(text, str):
            raise InputError(f"a text must be a string, got {type(text).__name__}: {shown(text)}")
        with LOCK:
            if text in self.kept:
                self.kept.move_to_end(text)
                return self.kept[text][0]
        made = self.make(text)
        size = ENTRY_TOKENS + max(self.tokens(made), len(text) // TOKEN_CHARACTERS)
        with LOCK:
            if size <= KEPT_TOKENS and text not in self.kept:
                self.kept[text] = made, size
                self.size += size
            while self.size > KEPT_TOKENS:
                self.size -= self.kept.popitem(last=False)[1][1]
        return made

    def clear(self) -> None:
        """Forget all texts."""
        with LOCK:
            self.kept.clear()
            self.size = 0
