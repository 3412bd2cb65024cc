"""Windows and answers as Google's run_squad.py makes them: what scores on SQuAD are made with.

Differs from spans.py in what its numbers depend on: candidates are the 20 best first tokens times
the 20 best last tokens of a window, an answer's text is put together from words of the text, and
equal texts count once.  Words stand between white space; in scripts without spaces each character
is one, as BERT's scripts for Chinese have it: else a paragraph of them would be one word, and the
answer wherever a part of it cannot be told.

In: a question and its text; then the logits of its windows.  Out: the n best answers and the
null odds.

Source: `convert_examples_to_features`, `write_predictions` and `get_final_text` in
google-research/bert run_squad.py, as in transformers 5.2.0; where a model has other tokens than
word pieces, as in 4.57.6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Ints
from minibert.errors import InputError
from minibert.model import Model
from minibert.recent import Recent
from minibert.scripts import split_script
from minibert.spans import Logits, max_context_tokens
from minibert.tokenizer import Tokenizer
from minibert.windows import Window, make_windows

SPACE = re.compile("[ \t\r\n\u202f]+")  # what stands between words; other spaces are part of one
NOTHING = "empty"  # the answer where a window has no candidate at all
NO_WINDOW_SCORE = 1000000.0  # null score of a text without tokens, which has no windows
NULL = -1  # number of the window that stands for "no answer"

# ---------------------------------------------------------------- windows


def run_squad_windows(
    model: Model,
    question: str,
    text: str,
    *,
    max_seq_length: int,
    doc_stride: int,
    max_query_length: int,
) -> list[Window]:
    """Lay out a question and its text.

    Args:
        model: for its tokenizer.
        question: may be empty.
        text: may be empty.
        max_seq_length: longest window, in tokens.
        doc_stride: from the beginning of a window's text to that of the next, in tokens.  (In
            transformers' pipeline and in windows.py the word means how many they share.)
        max_query_length: longer questions are cut to so many tokens.

    Returns:
        One window or more; none if the text has no tokens.

    Raises:
        InputError: the question leaves no room for the text, or windows are too long for the model.
    """
    if max_seq_length > model.config.longest_window:
        raise InputError(
            f"max_seq_length {max_seq_length} is beyond the "
            f"{model.config.longest_window} positions of this model. Lower it."
        )
    tokenizer = model.tokenizer
    asked = tokenizer.encode(question).first(max_query_length)
    context = tokenizer.encode_words(text)
    if not len(context):
        return []
    return make_windows(
        asked,
        context,
        pair=model.pair,
        max_seq_length=max_seq_length,
        doc_stride=max(0, model.pair.text_room(asked, max_seq_length) - doc_stride),
    )


# ---------------------------------------------------------------- the text of an answer


@dataclass(frozen=True, eq=False)
class Words:
    """The words of a text, beside its N tokens."""

    text: str
    basic: list[str]  # each as the tokenizer sees it: lower case, spaces around punctuation
    offsets: list[tuple[int, int]]  # in characters of the text
    first: Ints  # [N] the word that each token begins in
    last: Ints  # [N] the word that it ends in: the same, but where each character is a word

    def join(self, chosen: slice) -> str:
        """The text from the first to the last of some words, one space for each gap."""
        begin, end = self.offsets[chosen][0][0], self.offsets[chosen][-1][1]
        return SPACE.sub(" ", self.text[begin:end])


class WordSplitter:
    """Splits texts into words, and keeps those of the last texts: many questions share one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.split = Recent(self._split, lambda words: len(words.first))

    def _split(self, text: str) -> Words:
        """Split a text."""
        gaps = [match.span() for match in SPACE.finditer(text)]
        begins, ends = [0, *(end for _, end in gaps)], [*(begin for begin, _ in gaps), len(text)]
        parts = [(a, b) for a, b in zip(begins, ends, strict=True) if a < b]
        offsets = [word for a, b in parts for word in split_script(text, a, b)]
        starts = np.array([a for a, _ in offsets], np.int32)
        tokens = self.tokenizer.encode_words(text).offsets  # [N, 2]
        first = np.searchsorted(starts, tokens[:, 0], side="right").astype(np.int32) - 1
        last = np.searchsorted(starts, tokens[:, 1], side="left").astype(np.int32) - 1
        return Words(
            text=text,
            basic=[" ".join(self.tokenizer.basic_words(text[a:b])) for a, b in offsets],
            offsets=offsets,
            first=first,
            last=np.maximum(first, last),
        )


def answer_text(wanted: str, whole: str, basic: list[str]) -> str:
    """The text of a span: its words, without what its tokens do not cover at both ends.

    Args:
        wanted: what its tokens stand for, with one space between words.
        whole: the words that it touches, as in the text, with one space for each gap.
        basic: each of these words as the tokenizer sees it.

    Returns:
        The part of the words that the tokens stand for; all of them if that cannot be told, because
        characters were added or removed.

    Example:
        >>> answer_text("steve smith", "Steve Smith's", ["steve", "smith ' s"])
        'Steve Smith'
    """
    seen = " ".join(part for part in basic if part)
    begin = seen.find(wanted)
    if begin < 0 or not wanted or wanted == seen:
        return whole
    shown = [i for i, char in enumerate(whole) if char != " "]
    if len(shown) != len(seen) - seen.count(" "):
        return whole
    first = begin - seen.count(" ", 0, begin)  # among the characters that are not spaces
    last = first + len(wanted) - wanted.count(" ") - 1
    return whole[shown[first] : shown[last] + 1]


# ---------------------------------------------------------------- the n best


class Entry(NamedTuple):
    """One of the n best answers; the empty text is "no answer"."""

    text: str
    probability: float  # among the n best
    start_logit: float
    end_logit: float
    start: int = 0  # where it stands, in characters of the text
    end: int = 0

    @property
    def score(self) -> float:
        """The sum of its logits."""
        return self.start_logit + self.end_logit


class NBest(NamedTuple):
    """What is known about the answer to one question."""

    entries: list[Entry]  # best first
    null_odds: float | None  # null score minus the best answer's; None without "no answer"

    @property
    def best(self) -> Entry:
        """The best that is not "no answer"."""
        return next(entry for entry in self.entries if entry.text)

    def prediction(self, null_score_diff_threshold: float) -> Entry:
        """The answer: "no answer" if the null odds are above the threshold."""
        if self.null_odds is None:
            return self.entries[0]
        if self.null_odds > null_score_diff_threshold:
            return next(entry for entry in self.entries if not entry.text)
        return self.best


def n_best(
    windows: Sequence[Window],
    logits: Sequence[Logits],
    words: Words,
    tokenizer: Tokenizer,
    *,
    n: int,
    max_answer_length: int,
    with_null: bool,
) -> NBest:
    """Rank the answers to one question.

    Args:
        windows: all its windows.
        logits: start and end logits [S] of each.
        words: of the text.
        tokenizer: for the names of tokens.
        n: how many first tokens, last tokens and answers are looked at; n_best_size there.
        max_answer_length: in tokens.
        with_null: whether "no answer" is one, as in SQuAD 2.0.

    Returns:
        Up to n answers with different texts, and "no answer" after them if it is not among them.
    """
    spans, sums = _candidates(windows, logits, n, max_answer_length)
    null_start, null_end = 0.0, 0.0
    null_score = NO_WINDOW_SCORE
    if with_null:
        for start, end in logits:
            if float(start[0]) + float(end[0]) < null_score:
                null_start, null_end = float(start[0]), float(end[0])
                null_score = null_start + null_end
        spans = np.append(spans, [(NULL, 0, 0)], axis=0)
        sums = np.append(sums, null_start + null_end)

    found: dict[str, Entry] = {}
    for window, first, last in spans[np.argsort(-sums, kind="stable")].tolist():
        if len(found) >= n:
            break
        if window == NULL:
            found.setdefault("", Entry("", 0.0, null_start, null_end))
            continue
        text, span = _text_of_span(windows[window], first, last, words, tokenizer)
        start, end = logits[window]
        entry = Entry(text, 0.0, float(start[first]), float(end[last]), *span)
        found.setdefault(text, entry)
    entries = list(found.values())
    if with_null and "" not in found:
        entries.append(Entry("", 0.0, null_start, null_end))
    if len(entries) == with_null:  # nothing, or nothing but "no answer"
        entries.insert(0, Entry(NOTHING, 0.0, 0.0, 0.0))
    weights = _softmax([entry.score for entry in entries])
    entries = [e._replace(probability=w) for e, w in zip(entries, weights, strict=True)]
    ranked = NBest(entries, None)
    if with_null:
        best = ranked.best
        ranked = NBest(entries, null_score - best.start_logit - best.end_logit)
    return ranked


def _candidates(
    windows: Sequence[Window], logits: Sequence[Logits], n: int, longest: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The spans from the n best first tokens to the n best last tokens of each window.

    Returns:
        [C, 3] window, first token, last token; and [C] the sums of their logits.
    """
    spans, sums = [np.zeros((0, 3), np.int64)], [np.zeros(0)]
    for number, (window, mine) in enumerate(zip(windows, max_context_tokens(windows), strict=True)):
        start, end = logits[number]
        in_text = np.zeros(len(window), bool)
        in_text[window.offset : window.offset + len(mine)] = True
        may_start = np.zeros(len(window), bool)
        may_start[window.offset : window.offset + len(mine)] = mine
        first, last = _best_tokens(start, n), _best_tokens(end, n)
        length = last[None, :] - first[:, None] + 1  # [n, n]
        allowed = may_start[first][:, None] & in_text[last][None, :]
        allowed &= (length >= 1) & (length <= longest)
        i, j = np.nonzero(allowed)  # the best first token with each last token, then the next
        i, j = first[i], last[j]
        spans.append(np.stack((np.full(len(i), number), i, j), axis=1))
        sums.append(start[i].astype(np.float64) + end[j].astype(np.float64))
    return np.concatenate(spans), np.concatenate(sums)


def _best_tokens(logits: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Where the n largest are, the largest first; of equals, the first."""
    return np.argsort(-logits, kind="stable")[:n]


def _text_of_span(
    window: Window, first: int, last: int, words: Words, tokenizer: Tokenizer
) -> tuple[str, tuple[int, int]]:
    """The text of a span, and where it stands in the context."""
    begin, end = (window.begin + token - window.offset for token in (first, last))
    chosen = slice(int(words.first[begin]), int(words.last[end]) + 1)
    wanted = tokenizer.plain_text(window.input_ids[first : last + 1])
    text = answer_text(wanted, words.join(chosen), words.basic[chosen])
    offsets = window.context.offsets
    span = int(offsets[begin, 0]), int(offsets[end, 1])
    if SPACE.sub(" ", window.context.text[slice(*span)]) != text:  # whole words, then
        span = words.offsets[chosen][0][0], words.offsets[chosen][-1][1]
    return text, span


def _softmax(scores: list[float]) -> list[float]:
    """Probabilities in float64, added one after the other."""
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = 0.0
    for weight in weights:
        total += weight
    return [weight / total for weight in weights]
