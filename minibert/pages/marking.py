"""A text as HTML with right answers and a prediction marked, shortened to what is around them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import TypeAlias

from minibert.squad.files import SquadQuestion

CharSpan: TypeAlias = tuple[int, int]  # context[start:end], in characters
LISTED = 10  # right answers of a mistake that are shown
WHOLE = 700  # characters of a context that is shown whole
MARGIN = 200  # characters of a longer one that are shown around each end of a span
SPACE = 40  # where such a part ends at a space, if there is one within so many characters
CUT = '<span class="cut"> […] </span>'


def find(context: str, text: str) -> CharSpan | None:
    """Where a text stands first in its context, whatever white space is between its words.

    Example:
        >>> find("It is a red  house.", "red house")
        (8, 18)
    """
    found = re.search(r"\s+".join(map(re.escape, text.split())), context)
    return found.span() if found and found[0] else None


def gold_spans(question: SquadQuestion) -> list[CharSpan]:
    """Where the first right answers stand, those that are in the context."""
    spans = []
    for text, start in dict.fromkeys((gold.text, gold.start) for gold in question.answers[:LISTED]):
        if text and start is not None and question.context.startswith(text, start):
            spans.append((start, start + len(text)))
        elif span := find(question.context, text):
            spans.append(span)
    return spans


def marked(context: str, golds: Sequence[CharSpan], predicted: CharSpan | None) -> str:
    """A context as HTML, the right answers in <mark> and the prediction in <ins>.

    It is taken apart wherever a span begins or ends, as spans may overlap and elements may not.

    Example:
        >>> marked("one two", [(0, 3)], (0, 7))
        '<mark><ins>one</ins></mark><ins> two</ins>'
    """
    spans = [*golds, predicted] if predicted else list(golds)
    parts, shown = [], 0
    for begin, end in excerpts(context, spans):
        parts.append(CUT * (begin > shown))
        inner = {edge for span in spans for edge in span if begin < edge < end}
        for first, last in pairwise(sorted({begin, end} | inner)):
            piece = escape(context[first:last])
            if predicted and predicted[0] <= first < predicted[1]:
                piece = f"<ins>{piece}</ins>"
            if any(start <= first < stop for start, stop in golds):
                piece = f"<mark>{piece}</mark>"
            parts.append(piece)
        shown = end
    return "".join(parts) + CUT * (shown < len(context))


def excerpts(context: str, spans: Sequence[CharSpan]) -> list[CharSpan]:
    """The parts of a context to show: all if it is short, else what is around the ends of spans."""
    if len(context) <= WHOLE:
        return [(0, len(context))]
    parts: list[CharSpan] = []
    for edge in sorted(edge for span in spans or [(0, MARGIN)] for edge in span):
        begin, end = max(edge - MARGIN, 0), min(edge + MARGIN, len(context))
        if begin:  # behind a space and before one, where one is near
            begin = context.find(" ", begin, begin + SPACE) + 1 or begin
        if end < len(context):
            end = max(context.rfind(" ", end - SPACE, end), 0) or end
        if parts and begin <= parts[-1][1]:
            begin = parts.pop()[0]
        parts.append((begin, end))
    return parts
