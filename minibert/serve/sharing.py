"""A model for one request, whose batches it shares with the others.

The two front doors of the library, `QuestionAnsweringPipeline` and `QuestionAnswerer`, run on it
unchanged, each request in a thread of its own; so a server's answers are the library's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

import tokenizers

from minibert.model import Model
from minibert.reading import Example, Key
from minibert.serve.joining import Joiner
from minibert.serve.refusals import too_large
from minibert.spans import Logits
from minibert.tokenizer import Tokenizer
from minibert.windows import Window


class Ticket:
    """One request: whether anybody still waits for it."""

    def __init__(self) -> None:
        self.logits: Future[list[Logits]] = Future()
        self.tokens = 0  # in the windows of its long texts

    def give_up(self) -> None:
        """Nobody waits any more: no work is to be done for it."""
        self.logits.cancel()

    def check(self) -> None:
        """End a thread that works for nobody.

        Raises:
            concurrent.futures.CancelledError: after `give_up`.
        """
        if self.logits.cancelled():
            raise CancelledError


@dataclass(frozen=True, eq=False, kw_only=True)
class SharedModel(Model):
    """A loaded model that runs its windows through a Joiner.

    Its user holds `turn`, which bounds how many threads split texts and choose answers at the same
    time; while it waits for logits, others have their turn.
    """

    joiner: Joiner
    ticket: Ticket
    turn: threading.Semaphore
    max_tokens: int  # in the windows of the request, of texts that need several

    def windows(self, question: str, texts: list[str], **options: Any) -> list[Window]:
        """As Model.windows, for a request that still waits, and not too many.

        Raises:
            Refusal: the windows would hold more than `max_tokens`, or the model has too much to do.
        """
        self.ticket.check()
        if isinstance(question, str) and all(isinstance(text, str) for text in texts):
            self._check_size(question, texts, **options)
        return super().windows(question, texts, **options)

    def _check_size(
        self,
        question: str,
        texts: list[str],
        *,
        max_seq_length: int | None = None,
        doc_stride: int | None = None,
        max_question_length: int | None = None,
        truncate_always: bool = True,
    ) -> None:
        """Refuse windows that hold too many tokens, before they are made.

        Neighbouring windows that share all tokens but one multiply a text by the length of a
        window.  Options that make no windows at all are left to Model.windows.
        """
        longest = max_seq_length or self.usual_seq_length
        shared = min(128, longest // 2) if doc_stride is None else doc_stride
        asked = self.tokenizer.encode(question)
        room = self.pair.text_room(asked, longest)
        if max_question_length is not None and (truncate_always or room < 1):
            room = self.pair.text_room(asked.first(max_question_length), longest)
        if room <= shared:
            return
        counts = (len(self.tokenizer.encode(text)) for text in texts)
        parts = (parts_of(count, room, room - shared) for count in counts)
        self.ticket.tokens += sum(longest * count for count in parts if count > 1)
        if self.ticket.tokens > self.max_tokens:
            raise too_large(
                f"the windows of the text hold {self.ticket.tokens} tokens, and the limit is "
                f"{self.max_tokens}; send less text or lower doc_stride"
            )
        self.joiner.check_room(self.ticket.tokens)

    def read(
        self,
        examples: Iterable[Example[Key]],
        *,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
    ) -> Iterator[tuple[Key, list[Window], list[Logits]]]:
        """As Model.read, but the windows wait for those of others, whatever the batch's size."""
        mine = list(examples)
        windows = [window for _, each in mine for window in each]
        self.turn.release()
        try:
            logits = iter(self.joiner.read(windows, self.ticket.logits))
        finally:
            self.turn.acquire()
        for key, each in mine:
            self.ticket.check()  # an answer is chosen between two of them
            yield key, each, [next(logits) for _ in each]


class Releasing:
    """A splitter that lets other threads run while it splits a text.

    Of the two ways that `tokenizers` has, only the one for many texts lets go of Python's lock;
    and a long text takes a second.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def encode(self, text: Any, **options: Any) -> tokenizers.Encoding:
        """See tokenizers.Tokenizer."""
        return self.backend.encode_batch([text], **options)[0]


def released(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer with the same tokens, whose splitter lets other threads run."""
    kind, arguments = tokenizer.__reduce__()
    made: Any = kind(*arguments)
    made.backend = Releasing(made.backend)
    return made


def parts_of(length: int, room: int, step: int) -> int:
    """How many parts `text_parts` cuts a text into.

    Example:
        >>> parts_of(10, room=4, step=3), parts_of(0, room=4, step=3)
        (3, 1)
    """
    return 1 if length <= room else 1 - (room - length) // step
