"""Step 5 of 6: start and end logits -> spans -> answers.

A span is a pair of tokens (start, end), the end included.  Scores are sums of logits here, as
SQuAD 2.0 defines them.  probabilities.py decodes as transformers' pipeline does.

In: the windows of one question, and their logits.  Out: answers, best first.
Next: minibert/answering.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats, Ints
from minibert.reprs import short_repr
from minibert.scripts import Borders, borders
from minibert.sentences import LONGEST_SENTENCE
from minibert.windows import Window

# What a window's logits are: (start_logits [S], end_logits [S]), both float32.
Logits = tuple[Floats, Floats]


@dataclass(frozen=True)
class Answer:
    """An answer and where it stands: context[start:end] == text.

    "No answer" is an Answer too: its text is empty, and start and end are 0.
    """

    text: str
    start: int  # in characters (code points) of the text
    end: int  # one past the last character
    score: float  # start logit + end logit; of "no answer": the null score
    probability: float  # among all spans of all windows, and "no answer"; they sum to 1
    null_score: float  # logit sum of [CLS], the lowest over all windows: how unanswerable it looks
    document: int = 0  # which text, if the question was asked of several
    window: int = 0  # which window of that text
    # What stands before and after it, as much as is needed to show its sentence.
    around: tuple[str, str] = field(default=("", ""), repr=False, compare=False)

    __repr__ = short_repr

    @property
    def is_null(self) -> bool:
        """Whether this says that the text holds no answer."""
        return not self.text

    def to_dict(self) -> dict[str, Any]:
        """Its fields but `around`, as `minibert answer --json` prints them."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.repr}

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from minibert.pages.answers import answer_html  # here: only notebooks ask for it

        return answer_html(self)


class Answers(list[Answer]):
    """The answers to a question, best first: a list that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        from minibert.pages.answers import answers_html

        return answers_html(self)


class Span(NamedTuple):
    """A candidate inside one window; tokens are counted from the window's first."""

    start: int
    end: int  # included
    score: float


def span_band(
    start: Floats, end: Floats, longest: int, combine: np.ufunc, nothing: float
) -> Floats:
    """Score every span of at most `longest` tokens.

    Args:
        start: [S] float32, score of each token as the first of the span.
        end: [S] float32, as the last.
        longest: in tokens, at least 1.
        combine: np.add for logits, np.multiply for probabilities.
        nothing: value that makes a span impossible: -inf for logits, 0 for probabilities.

    Returns:
        [S, min(longest, S)]: row i, column n is the span of tokens i to i + n.

    Example:
        >>> start, end = np.array([1, 5, 0], "f4"), np.array([9, 2, 3], "f4")
        >>> span_band(start, end, 2, np.add, -np.inf)
        array([[ 10.,   3.],
               [  7.,   8.],
               [  3., -inf]], dtype=float32)
    """
    longest = min(longest, len(start))
    beyond = np.full(longest - 1, nothing, np.float32)
    ends = np.lib.stride_tricks.sliding_window_view(np.append(end, beyond), longest)  # [S, longest]
    return combine(start[:, None], ends)


def max_context_tokens(windows: Sequence[Window]) -> list[NDArray[np.bool_]]:
    """For each window, which of its text tokens it sees with the most text on both sides.

    Windows overlap; a token counts where min(tokens before, tokens after) + 0.01 * tokens of the
    window is largest, the first window of equals.  So every token counts exactly once.

    Source: `_check_is_max_context` in google-research/bert run_squad.py.
    """
    best: dict[int, NDArray[np.float64]] = {}
    owner: dict[int, NDArray[np.int64]] = {}
    for number, window in enumerate(windows):
        count = len(window.context)
        scores = best.setdefault(window.document, np.full(count, -1.0))
        owners = owner.setdefault(window.document, np.zeros(count, np.int64))
        token = np.arange(window.begin, window.end)
        around = np.minimum(token - window.begin, window.end - 1 - token)
        score = around + 0.01 * (window.end - window.begin)
        better = token[score > scores[token]]
        scores[better] = score[better - window.begin]
        owners[better] = number
    return [
        owner[window.document][window.begin : window.end] == number
        for number, window in enumerate(windows)
    ]


class Ends(NamedTuple):
    """What an answer would be that begins or ends with each of the S text tokens of a window."""

    may_start: NDArray[np.bool_]  # [S]
    may_end: NDArray[np.bool_]  # [S]
    begins_word: NDArray[np.bool_]  # [S]
    ends_word: NDArray[np.bool_]  # [S]
    starts: Ints  # [S] its first character
    ends: Ints  # [S] one past its last


def answer_ends(window: Window, borders_of: Borders) -> Ends:
    """Where answers may begin and end.

    Never within a character: a letter stays with its accents, which some tokenizers drop, and of
    several tokens that are parts of one character only the first may start and the last may end.
    Spaces at the ends of tokens are left out.

    Args:
        window: with tokens of its text.
        borders_of: that text.
    """
    before, after = max(window.begin - 1, 0), min(window.end + 1, len(window.context))
    mine = slice(window.begin - before, window.end - before)
    offsets = window.context.offsets[before:after]
    starts, ends = borders_of.begin[offsets[:, 0]], borders_of.end[offsets[:, 1]]
    shown = starts < ends  # not those of nothing but spaces
    may_start, may_end = shown.copy(), shown.copy()
    may_start[1:] &= (starts[1:] != starts[:-1]) | ~shown[:-1]
    may_end[:-1] &= (ends[:-1] != ends[1:]) | ~shown[1:]
    return Ends(
        may_start=may_start[mine],
        may_end=may_end[mine],
        begins_word=borders_of.between_words[starts[mine]],
        ends_word=borders_of.between_words[ends[mine]],
        starts=starts[mine],
        ends=ends[mine],
    )


def best_spans(band: Floats, n: int) -> list[Span]:
    """The n best spans of a band of logit sums; of equals, the earlier start, then the earlier end.

    Spans of -inf are left out.
    """
    flat = band.ravel()
    if n < flat.size:
        nth = np.partition(flat, -n)[-n]
        chosen = np.flatnonzero((flat >= nth) & (flat > -np.inf))
    else:
        chosen = np.flatnonzero(flat > -np.inf)
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")][:n]
    starts, lengths = np.divmod(chosen, max(1, band.shape[1]))
    return [
        Span(int(i), int(i + length), float(flat[at]))
        for i, length, at in zip(starts, lengths, chosen, strict=True)
    ]


def best_spans_apart(
    bands: Sequence[Floats], ends: Sequence[Ends], documents: Sequence[int], n: int, most: float
) -> list[tuple[Span, int]]:
    """The n best spans of several bands of which no two share too much.

    Args:
        bands: one for each window; they are used up.
        ends: where the spans of each begin and end in its text.
        documents: which text each window is of.
        n: how many spans.
        most: the share of the shorter of two spans, in characters, that both may hold.

    Returns:
        Spans, and the number of the band of each.
    """
    best = [float(band.max()) for band in bands]
    found: list[tuple[Span, int]] = []
    while len(found) < n and best and (top := max(best)) > -np.inf:
        number = best.index(top)
        band = bands[number]
        i, length = divmod(int(band.argmax()), band.shape[1])
        found.append((Span(i, i + length, top), number))
        band[i, length] = -np.inf
        first, past = ends[number].starts[i], ends[number].ends[i + length]
        for other, (band, (*_, starts, stops)) in enumerate(zip(bands, ends, strict=True)):
            near = documents[other] == documents[number]
            if not near or starts[0] >= past or stops[-1] <= first:
                continue
            stops = np.append(stops, np.full(band.shape[1] - 1, stops[-1]))
            stops = np.lib.stride_tricks.sliding_window_view(stops, band.shape[1])  # [S, longest]
            starts = starts[:, None]
            shared = np.minimum(stops, past) - np.maximum(starts, first)
            band[shared > most * np.minimum(stops - starts, past - first)] = -np.inf
            best[other] = float(band.max())
    return found


def decode_answers(
    windows: Sequence[Window],
    logits: Sequence[Logits],
    *,
    n: int,
    max_answer_length: int,
    null_score_diff_threshold: float,
    align_to_words: bool,
    max_overlap: float | None = None,
    min_score: float | None = None,
    temperature: float = 1.0,
) -> Answers:
    """Rank all spans of all windows, and "no answer", by their logit sums.

    A span is a candidate in the one window that sees its first token with the most context.
    "No answer" is the sum at [CLS], the lowest of all windows; it comes before every span whose
    score it exceeds by more than the threshold.

    Args:
        windows: all windows of one question, of one or several texts.
        logits: start and end logits [S] of each window.
        n: how many answers to give.
        max_answer_length: longest answer, in tokens.
        null_score_diff_threshold: as in SQuAD 2.0; inf puts "no answer" last, -inf first.
        align_to_words: only spans of whole words; if no word of the texts is short enough, parts
            of words are taken.
        max_overlap: the share of the shorter of two answers that both may hold, from 0 to 1; None
            for any.  Of two that share more, the better one stays.
        min_score: answers below it are left out, but "no answer"; None for none.
        temperature: scores are divided by it before they become probabilities; above 1, the best
            answer gets less.

    Returns:
        Up to n answers, best first.  Probabilities are over all spans, so they depend neither on n
        nor on which spans are left out.

    Source: `write_predictions` in google-research/bert run_squad.py; there the candidates are the
    20 best starts times the 20 best ends of a window, here they are all spans.
    """
    null_scores = [float(start[0] + end[0]) for start, end in logits]
    null_window = int(np.argmin(null_scores))
    null_score = null_scores[null_window]

    found: list[tuple[Span, int]] = []
    texts = {window.document: window.context.text for window in windows}
    borders_in = {document: borders(text) for document, text in texts.items()}
    bands: dict[int, Floats] = {}  # by the number of the window
    ends_of: dict[int, Ends] = {}
    log_total = null_score / temperature  # log of the sum of exp(score / temperature), all spans
    for number, (window, mine) in enumerate(zip(windows, max_context_tokens(windows), strict=True)):
        if not mine.any():  # no text in it, or all of it is seen better elsewhere
            continue
        ends_of[number] = ends = answer_ends(window, borders_in[window.document])
        text = slice(window.offset, window.offset + len(mine))
        start, end = (part[text] for part in logits[number])
        impossible = np.float32(-np.inf)
        start = np.where(mine & ends.may_start, start, impossible)
        end = np.where(ends.may_end, end, impossible)
        band = span_band(start, end, max_answer_length, np.add, -np.inf)
        top = band.max()
        if top == -np.inf:
            continue
        total = np.exp((band - top) / np.float32(temperature), dtype=np.float64).sum()
        total = top / np.float32(temperature) + np.log(total)
        log_total = float(np.logaddexp(log_total, total))
        if align_to_words:
            start = np.where(ends.begins_word, start, impossible)
            end = np.where(ends.ends_word, end, impossible)
            band = span_band(start, end, max_answer_length, np.add, -np.inf)
        bands[number] = band
        found += [(span, number) for span in best_spans(band, n)]
    if align_to_words and not found:
        return decode_answers(
            windows,
            logits,
            n=n,
            max_answer_length=max_answer_length,
            null_score_diff_threshold=null_score_diff_threshold,
            align_to_words=False,
            max_overlap=max_overlap,
            min_score=min_score,
            temperature=temperature,
        )
    if max_overlap is not None:
        numbers = list(bands)
        apart = best_spans_apart(
            list(bands.values()),
            [ends_of[number] for number in numbers],
            [windows[number].document for number in numbers],
            n,
            max_overlap,
        )
        found = [(span, numbers[at]) for span, at in apart]
    if min_score is not None:
        found = [candidate for candidate in found if candidate[0].score >= min_score]
    found.sort(
        key=lambda candidate: -candidate[0].score
    )  # stable: of equals, the first in the text

    first_window = {w.document: i for i, w in reversed(list(enumerate(windows)))}

    def answer(start: int, end: int, score: float, number: int) -> Answer:
        document, text = windows[number].document, windows[number].context.text
        around = text[max(0, start - LONGEST_SENTENCE) : start], text[end : end + LONGEST_SENTENCE]
        return Answer(
            text=text[start:end],
            start=start,
            end=end,
            score=score,
            probability=float(np.exp(score / temperature - log_total)),
            null_score=null_score,
            document=document,
            window=number - first_window[document],
            around=around if end else ("", ""),
        )

    answers = Answers()
    for span, number in found[:n]:
        ends = ends_of[number]
        first, past = int(ends.starts[span.start]), int(ends.ends[span.end])
        answers.append(answer(first, past, span.score, number))
    rank = sum(not null_score - a.score > null_score_diff_threshold for a in answers)
    answers.insert(rank, answer(0, 0, null_score, null_window))
    del answers[n:]
    return answers
