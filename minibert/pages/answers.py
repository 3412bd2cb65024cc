"""Answers as they show themselves in a notebook: each marked in its sentence.

A piece of HTML without a style of its own, so that it has the notebook's colours, light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from minibert.pages.page import writable
from minibert.sentences import sentence_around
from minibert.spans import Answer

NOTHING = "<i>no answer</i>"


def answer_html(answer: Answer) -> str:
    """One answer: its sentence, and the figures under it."""
    place = "" if answer.is_null else f", {place_of(answer)}"
    figures = f"probability {answer.probability:.2f}, score {answer.score:.2f}{place}"
    return writable(
        f'<div dir="auto">{in_sentence(answer)}</div>\n<div><small>{figures}</small></div>'
    )


def answers_html(answers: Sequence[Answer]) -> str:
    """Several answers, the best first: a table."""
    rows = [
        f'<tr><td dir="auto" style="text-align: start">{in_sentence(answer)}</td>'
        f"<td>{answer.probability:.3f}</td><td>{answer.score:.2f}</td>"
        f'<td style="text-align: start">{"" if answer.is_null else place_of(answer)}</td></tr>'
        for answer in answers
    ]
    names = ("answer", "probability", "score", "where")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    lines = [f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>", *rows, "</tbody>\n</table>"]
    return writable("\n".join(lines))


def in_sentence(answer: Answer) -> str:
    """The sentence of an answer, with the answer in <mark>.

    Example:
        >>> in_sentence(Answer("Lee", 4, 7, 1.0, 0.5, 0.0, around=("Ann ", " won. It rained.")))
        'Ann <mark>Lee</mark> won.'
    """
    if answer.is_null:
        return NOTHING
    before, after = answer.around
    start, end = len(before), len(before) + len(answer.text)
    first, last = sentence_around(f"{before}{answer.text}{after}", start, end)
    before, after = before[first:].lstrip(), after[: last - end].rstrip()
    return f"{escape(before)}<mark>{escape(answer.text)}</mark>{escape(after)}"


def place_of(answer: Answer) -> str:
    """Where an answer stands; which text only if it is not the first."""
    document = f"text {answer.document}, " if answer.document else ""
    return f"{document}characters {answer.start} to {answer.end}"
