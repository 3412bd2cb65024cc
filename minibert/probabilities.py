"""Start and end logits -> spans -> answers, exactly as in transformers' pipeline.

There the score of a span is the product of two probabilities, that of its first token and that of
its last; spans.py, in its place, has sums of logits.

In: the windows of one question, and their logits.  Out: answers, best first.
Next: minibert/pipelines.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats
from minibert.spans import Logits, Span, span_band
from minibert.windows import Window

MASKED = np.float32(-10000.0)  # transformers' logit for a token that may not be in an answer


def masked_softmax(logits: Floats, allowed: NDArray[np.bool_]) -> Floats:
    """Probabilities [S] over the allowed tokens of one window; the same float32 steps as there."""
    exp = np.where(allowed, logits, MASKED)
    exp = np.exp(exp - exp.max(axis=-1, keepdims=True))
    return exp / exp.sum()


def probable_spans(start: Floats, end: Floats, longest: int, k: int) -> list[Span]:
    """The k most probable spans of a window, in the order in which transformers has them.

    That order is NumPy's: argpartition and argsort over the [S, S] matrix of all pairs, both
    unstable, so ties come in an order of their own.  Without ties there is only one order, and the
    narrow band gives it at a tenth of the cost; only with ties is the matrix built.
    Spans of probability 0 are left out.
    """
    band = span_band(start, end, longest, np.multiply, 0.0)
    flat = band.ravel()
    if k == 1:
        chosen = flat.argmax(axis=0, keepdims=True)  # the first of equals, as there
    else:
        chosen = np.argpartition(-flat, k)[: k + 1] if k < flat.size else np.arange(flat.size)
        chosen = chosen[np.argsort(-flat[chosen])]
        values = flat[chosen][flat[chosen] > 0]
        if (values[1:] == values[:-1]).any():  # they are sorted
            return _spans_in_matrix_order(start, end, longest, k)
        chosen = chosen[:k]
    chosen = chosen[flat[chosen] > 0]
    starts, lengths = np.divmod(chosen, band.shape[1])
    return [
        Span(int(i), int(i + length), float(flat[at]))
        for i, length, at in zip(starts, lengths, chosen, strict=True)
    ]


def _spans_in_matrix_order(start: Floats, end: Floats, longest: int, k: int) -> list[Span]:
    """As probable_spans, with ties in NumPy's order over the [S, S] matrix."""
    matrix = np.tril(np.triu(np.multiply.outer(start, end)), longest - 1)
    flat = matrix.ravel()
    if flat.size <= k:
        chosen = np.argsort(-flat)
    else:
        chosen = np.argpartition(-flat, k)[:k]
        chosen = chosen[np.argsort(-flat[chosen])]
    chosen = chosen[flat[chosen] > 0]
    starts, ends = np.unravel_index(chosen, matrix.shape)
    return [Span(int(i), int(j), float(matrix[i, j])) for i, j in zip(starts, ends, strict=True)]


def characters(window: Window, span: Span, align_to_words: bool) -> tuple[int, int]:
    """Where a span of text tokens stands in the text: first character, one past the last.

    With align_to_words it is widened to whole words, as far as this window shows them.
    """
    first, last = (window.begin + token - window.offset for token in (span.start, span.end))
    if align_to_words:
        words = window.context.words[window.begin : window.end]
        start_word, end_word = window.context.words[first], window.context.words[last]
        if start_word >= 0 and end_word >= 0:
            first = window.begin + int(np.searchsorted(words, start_word, side="left"))
            last = window.begin + int(np.searchsorted(words, end_word, side="right")) - 1
    offsets = window.context.offsets
    return int(offsets[first, 0]), int(offsets[last, 1])


def decode_probabilities(
    windows: Sequence[Window],
    logits: Sequence[Logits],
    *,
    cls_id: int,
    top_k: int,
    max_answer_len: int,
    handle_impossible_answer: bool,
    align_to_words: bool,
) -> list[dict[str, Any]]:
    """Rank answers as transformers' question-answering pipeline does.

    The score of a span is the product of two probabilities within its window; equal answer texts
    (ignoring case), from anywhere, are merged and their scores added.  Left out, unlike there:
    candidates of probability 0 and candidates in the question.

    Args:
        windows: all windows of one question and one text.
        logits: start and end logits [S] of each window.
        cls_id: id of [CLS]; every such token may hold probability.
        top_k: how many answers to give.
        max_answer_len: longest answer, in tokens.
        handle_impossible_answer: whether "no answer" competes.
        align_to_words: widen answers to whole words.

    Returns:
        Up to top_k dicts with score, start, end and answer, best first.

    Source: `QuestionAnsweringPipeline.postprocess` of transformers 5.2.0.
    """
    answers, null_score = rank_probabilities(
        windows,
        logits,
        cls_id=cls_id,
        # Widening to words makes some candidates equal, so more of them are looked at.
        k=2 * top_k + 10 if align_to_words else top_k,
        max_answer_len=max_answer_len,
        align_to_words=align_to_words,
    )
    if handle_impossible_answer:
        answers.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]


def rank_probabilities(
    windows: Sequence[Window],
    logits: Sequence[Logits],
    *,
    cls_id: int,
    k: int,
    max_answer_len: int,
    align_to_words: bool,
) -> tuple[list[dict[str, Any]], float]:
    """The k most probable spans of each window, equal texts merged; and the null score.

    Returns:
        Dicts as decode_probabilities gives them, in the order in which their texts were found; and
        the probability of "no answer", the lowest of all windows.
    """
    null_score = 1000000.0
    answers: dict[str, dict[str, Any]] = {}
    for window, (start_logits, end_logits) in zip(windows, logits, strict=True):
        allowed = window.input_ids == cls_id
        first, stop = window.offset, window.offset + window.end - window.begin
        allowed[first:stop] = True
        start, end = masked_softmax(start_logits, allowed), masked_softmax(end_logits, allowed)
        null_score = min(null_score, float(start[0] * end[0]))
        start[0] = end[0] = 0.0
        for span in probable_spans(start, end, max_answer_len, k):
            if not (first <= span.start and span.end < stop):
                continue
            i, j = characters(window, span, align_to_words)
            text = window.context.text[i:j]
            if (same := answers.get(text.lower())) is not None:
                same["score"] += span.score
            else:
                answers[text.lower()] = {"score": span.score, "start": i, "end": j, "answer": text}
    return list(answers.values()), null_score
