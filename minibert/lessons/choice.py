"""The choice of an answer in one window, told by trying every span.

minibert/spans.py chooses so among all windows at once, without trying them one by one, and keeps
to whole words; a test holds the two together.
"""

from __future__ import annotations

from minibert.arrays import Floats
from minibert.spans import Span


def best_span(
    start_logits: Floats,
    end_logits: Floats,
    begin: int,
    end: int,
    longest: int,
    threshold: float,
) -> Span | None:
    """The span whose two logits have the highest sum; None if "no answer" is better.

    Start and end are chosen together: the best start and the best end by themselves may be no span.
    "No answer" is the sum at [CLS], the first token of the window.  It wins where it exceeds the
    best span's by more than the threshold.

    Args:
        start_logits: [S], of one window.
        end_logits: [S].
        begin: the window's first token of the text; those before it are [CLS] and the question.
        end: one past its last token of the text.
        longest: longest answer, in tokens.
        threshold: how much better "no answer" must be.

    Returns:
        Span(start, end, score), tokens counted from the window's first, the end included; of equals
        the earlier start, then the earlier end.  None: no answer.

    Source: Devlin et al. 2019, section 4.3 (arXiv:1810.04805).
    """
    null_score = float(start_logits[0] + end_logits[0])
    best = None
    for i in range(begin, end):
        for j in range(i, min(i + longest, end)):
            score = float(start_logits[i] + end_logits[j])
            if best is None or score > best.score:
                best = Span(i, j, score)
    if best is None or null_score - best.score > threshold:
        return None
    return best
