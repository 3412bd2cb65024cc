"""The sentence around an answer, as far as one can tell without knowing the language."""

from __future__ import annotations

import re

# A sentence ends at . ! or ? before white space, at their CJK forms, or at an empty line.
SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)|[。！？]|\n\s*\n")
LONGEST_SENTENCE = 300  # characters shown on each side of the answer, at most


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """First character, and one past the last, of the sentence that holds text[start:end].

    Example:
        >>> text = "It rained. Ann Lee wrote it. Nobody came."
        >>> text[slice(*sentence_around(text, 11, 18))]
        ' Ann Lee wrote it.'
    """
    first, last = max(0, start - LONGEST_SENTENCE), min(len(text), end + LONGEST_SENTENCE)
    for match in SENTENCE_END.finditer(text, first, start):
        first = match.end()
    following = SENTENCE_END.search(text, max(start, end - 1), last)
    return first, following.end() if following else last
