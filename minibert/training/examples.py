"""Questions with their answers -> the windows that training reads, and where each should point.

A window that holds the whole answer points at its first and last token, every other at [CLS].
Tokens are kept once for each text and each question, in rows of numbers, and a window is made when
its turn comes: SQuAD 2.0's 131,000 questions take some 30 MB.

Source: `prepare_train_features` in run_qa.py of transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Ints
from minibert.batches import Batch, pack
from minibert.errors import InputError
from minibert.files import SHOWN
from minibert.reprs import short_repr
from minibert.squad.files import SquadQuestion
from minibert.tokenizer import Pair, Tokenizer, Tokens, reporting
from minibert.training.order import Indices
from minibert.windows import Window, join, text_parts

AT_ONCE = 1000  # texts that are split together; their tokens as Python objects take a few megabytes
NO_TEXT = Tokens("", np.zeros(0, np.int32), np.zeros((0, 2), np.int32), np.zeros(0, np.int32))

Span = tuple[int, int]  # first and last token, or first character and the one after the last


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of different length in one array: row i is values[bounds[i] : bounds[i + 1]]."""

    values: Ints
    bounds: NDArray[np.int64]

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> Ints:
        return self.values[self.bounds[row] : self.bounds[row + 1]]

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | Ints]) -> Rows:
        """Copy rows, one after the other."""
        kept = [np.asarray(row, np.int32) for row in rows]
        bounds = np.cumsum([0, *map(len, kept)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *kept]), bounds)


@dataclass(frozen=True, eq=False)
class Examples:
    """The windows of all questions."""

    questions: Rows  # tokens
    texts: Rows  # tokens
    pair: Pair
    windows: Ints  # [n, 4] question, text, first token of the text that it shows, one past the last
    starts: Rows  # of each window the first tokens of right answers, counted from its beginning
    ends: Rows  # and the last ones

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def lengths(self) -> Ints:
        """Tokens of each window, [n]."""
        question, _, begin, end = self.windows.T
        asked = np.diff(self.questions.bounds)[question]
        return (asked + (end - begin) + self.pair.separators + 2).astype(np.int32)

    @property
    def with_answer(self) -> int:
        """How many windows hold an answer."""
        return int(np.count_nonzero(self.starts.values[self.starts.bounds[:-1]]))

    def batch(self, chosen: Indices) -> Batch:
        """A packed batch of some windows."""
        return pack([self.window(index) for index in chosen])

    def positions(self, chosen: Indices) -> tuple[list[list[int]], list[list[int]]]:
        """The first and the last tokens of the right answers of some windows."""
        rows = self.starts, self.ends
        starts, ends = ([each[index].tolist() for index in chosen] for each in rows)
        return starts, ends

    def window(self, index: int) -> Window:
        """One window, without its text."""
        question, text, begin, end = self.windows[index].tolist()
        joined = join(self.questions[question], self.texts[text][begin:end], self.pair)
        return Window(joined[0], joined[1], NO_TEXT, begin, end, joined[2])


@dataclass(frozen=True)
class Report:
    """What is worth knowing of the questions that were read: ids, by what is the matter."""

    left_out: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """What there is to say, a line for each kind."""
        for found, what in ((self.left_out, "left out"), (self.kept, "kept")):
            for kind, ids in found.items():
                named = ", ".join(ids[:SHOWN]) + ", ..." * (len(ids) > SHOWN)
                count = "1 question is" if len(ids) == 1 else f"{len(ids)} questions are"
                yield f"{count} {what}: {kind} ({named})"


NOT_THERE = "the answer does not stand in the text"
ELSEWHERE = "the answer stands elsewhere in the text than answer_start says"
WITHIN = "the answer begins or ends within a token, which is taken as a whole"
TOO_LONG = "no window holds the whole answer"
NO_TOKENS = "the question or the text has no token"
NO_ROOM = "the question leaves too little room for the text"


def make_examples(
    questions: Sequence[SquadQuestion],
    tokenizer: Tokenizer,
    pair: Pair,
    *,
    max_seq_length: int,
    doc_stride: int,
    max_query_length: int,
    all_occurrences: bool = False,
) -> tuple[Examples, Report]:
    """Split questions and texts, cut them into windows, find the answers.

    Args:
        questions: whose right answers are known.
        tokenizer: of the model.
        pair: how the model joins a question and a text.
        max_seq_length: tokens of a window.
        doc_stride: tokens that neighbouring windows share.
        max_query_length: tokens; longer questions are cut.
        all_occurrences: whether the answer is right wherever its text stands between the borders of
            tokens, and not only where the file says.

    Raises:
        InputError: nothing is left to train on.
    """
    numbers: dict[str, int] = {}  # text -> its number
    for each in questions:
        numbers.setdefault(each.context, len(numbers))
    texts, offsets = [], []
    for ids, places in split_all(tokenizer, list(numbers)):
        texts.append(ids)
        offsets.append(places)
    # run_qa does away with leading white space, which some questions of SQuAD have many of.
    asked = [
        ids[:max_query_length]
        for ids, _ in split_all(tokenizer, [each.question.lstrip() for each in questions], False)
    ]
    report = Report()
    windows: list[tuple[int, int, int, int]] = []
    starts: list[list[int]] = []
    ends: list[list[int]] = []
    for number, each in enumerate(questions):
        text = numbers[each.context]
        if not len(asked[number]) or not len(texts[text]):
            report.left_out.setdefault(NO_TOKENS, []).append(each.id)
            continue
        room = max_seq_length - len(asked[number]) - pair.separators - 2
        if len(texts[text]) > room and doc_stride >= room:
            report.left_out.setdefault(NO_ROOM, []).append(each.id)
            continue
        parts = text_parts(len(texts[text]), room, room - doc_stride)
        spans = answer_spans(each, offsets[text], all_occurrences, report)
        if spans is None:
            continue
        head = len(asked[number]) + pair.separators + 1
        inside = [[(a, b) for a, b in spans if begin <= a and b < end] for begin, end in parts]
        if spans and not any(inside):
            report.left_out.setdefault(TOO_LONG, []).append(each.id)
            continue
        for (begin, end), held in zip(parts, inside, strict=True):
            windows.append((number, text, begin, end))
            starts.append([head + a - begin for a, _ in held] or [0])
            ends.append([head + b - begin for _, b in held] or [0])
    if not windows:
        raise InputError("; ".join(["there is no question to train on", *report.lines()]))
    found = Examples(
        Rows.of(asked),
        Rows.of(texts),
        pair,
        np.array(windows, np.int32),
        Rows.of(starts),
        Rows.of(ends),
    )
    return found, report


def split_all(
    tokenizer: Tokenizer, texts: Sequence[str], with_offsets: bool = True
) -> Iterator[tuple[Ints, Ints]]:
    """The ids [N] and offsets [N, 2] of each text, as `Tokenizer.encode` gives them, on all cores.

    Without offsets, they are empty.
    """
    for begin in range(0, len(texts), AT_ONCE):
        part = texts[begin : begin + AT_ONCE]
        with reporting(f"{tokenizer.name}: its tokenizer cannot split a text"):
            encodings = tokenizer.backend.encode_batch(part, add_special_tokens=False)
        for encoding in encodings:
            offsets = encoding.offsets if with_offsets else []
            yield np.array(encoding.ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2)


def answer_spans(
    question: SquadQuestion, offsets: Ints, all_occurrences: bool, report: Report
) -> list[Span] | None:
    """The first and last tokens of right answers, in the text.

    Args:
        question: of its answers the first one counts, as in run_qa.
        offsets: of the tokens of its text, [N, 2].
        all_occurrences: whether others than the one that the file points at are right as well.
        report: gets what is worth knowing.

    Returns:
        None if the question is to be left out; no spans if it has no answer.
    """
    if not question.answers:
        return []
    text, said = question.answers[0].text, question.answers[0].start
    if said is not None and question.context.startswith(text, said):
        start = said
    else:
        places = occurrences(question.context, text)
        if not places:
            report.left_out.setdefault(NOT_THERE, []).append(question.id)
            return None
        start = min(places, key=lambda place: abs(place - (said or 0)))
        if said is not None:
            report.kept.setdefault(ELSEWHERE, []).append(question.id)
    span = tokens_of(offsets, start, start + len(text))
    if span is None:
        report.left_out.setdefault(NO_TOKENS, []).append(question.id)
        return None
    if not between_borders(offsets, span, start, start + len(text)):
        report.kept.setdefault(WITHIN, []).append(question.id)
    if not all_occurrences:
        return [span]
    spans = {span}
    for place in occurrences(question.context, text):
        other = tokens_of(offsets, place, place + len(text))
        if other and between_borders(offsets, other, place, place + len(text)):
            spans.add(other)
    return sorted(spans)


def occurrences(text: str, part: str) -> list[int]:
    """Where in a text a part of it begins.

    Example:
        >>> occurrences("banana", "ana")
        [1, 3]
    """
    places, place = [], text.find(part)
    while place >= 0:
        places.append(place)
        place = text.find(part, place + 1)
    return places


def tokens_of(offsets: Ints, start: int, end: int) -> Span | None:
    """The first and the last token that hold characters from `start` to before `end`, if any do.

    Example:
        >>> tokens_of(np.array([[0, 3], [4, 7], [7, 8]]), 4, 8)
        (1, 2)
    """
    first = int(np.searchsorted(offsets[:, 1], start, "right"))
    last = int(np.searchsorted(offsets[:, 0], end, "left")) - 1
    return (first, last) if first <= last else None


def between_borders(offsets: Ints, span: Span, start: int, end: int) -> bool:
    """Whether the characters from `start` to before `end` are those of whole tokens."""
    first, last = span
    return int(offsets[first, 0]) == start and int(offsets[last, 1]) == end
