"""The last steps: logits, spans, and why one of them won."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from minibert import spans
from minibert.explaining.explanation import Explanation, Rival
from minibert.explaining.spans import ALLOWED, RULES
from minibert.kernels import reference
from minibert.pages.charts import Line, line_chart
from minibert.pages.explanation.code import cut, decimal, folded, listing, signed
from minibert.pages.explanation.data import GREYS
from minibert.pages.page import figure


def logits_section(e: Explanation) -> Iterator[str]:
    """Start and end logits over the window."""
    seen = e.window
    best, end = e.picked
    yield "<h2>6. Vectors to logits</h2>"
    yield (
        "<p>The head turns each token's last vector into two numbers: how well an answer would "
        f"start there, and how well it would end there. The highest start is token {best} "
        f"({escape(e.names[best])}, {decimal(seen.start[best])}), the highest end token {end} "
        f"({escape(e.names[end])}, {decimal(seen.end[end])}).</p>"
    )
    yield logits_figure(e)
    yield from folded(reference.span_logits)


def logits_figure(e: Explanation) -> str:
    """Both logits of each token."""
    seen = e.window
    low = float(min(seen.start.min(), seen.end.min()))
    high = float(max(seen.start.max(), seen.end.max()))
    return figure(
        "Start and end logits",
        line_chart(
            "Logits by token",
            f"From {decimal(low, 1)} to {decimal(high, 1)}; [CLS], token 0, stands for no answer.",
            [
                Line("start", list(enumerate(seen.start.tolist())), 0),
                Line("end", list(enumerate(seen.end.tolist())), 1, True),
            ],
            x_label="token",
            y_label="logit",
            x_range=(0, max(1, len(e.names) - 1)),
            y_range=(low, max(high, low + 1e-3)),
        ),
        "Token 0 is [CLS], whose two logits are the score of “no answer”.",
    )


def matrix_section(e: Explanation) -> Iterator[str]:
    """Every start with every end, and what decides among them."""
    seen = e.window
    best = "no span is allowed" if e.best is None else f"“{cut(seen.characters(e.best))}”"
    apart = e.best is not None and e.best == e.picked
    yield "<h2>7. Logits to spans</h2>"
    yield (
        "<p>An answer is a start and an end; its score is the sum of their logits. Of all pairs "
        f"that are allowed in this window the best is {escape(best)}"
        + (
            ", which is also the best start with the best end.</p>"
            if apart
            else "; the best start and the best end, picked each by itself, are another pair.</p>"
        )
    )
    options = "".join(
        f'<option value="{n}"{" selected" * (n == e.shown)}>{n}</option>'
        for n in range(len(e.seen))
    )
    several = len(e.seen) > 1
    threshold = float(np.clip(e.options.null_score_diff_threshold, -20, 20))
    yield (
        '<form class="sliders"><label>Decoder <select id="decoder"><option value="sums">sums of '
        'logits (QuestionAnswerer)</option><option value="products">products of probabilities '
        "(transformers’ pipeline)</option></select></label>"
        '<label>Longest answer, in tokens: <output id="longest-value"></output> <input '
        f'type="range" id="longest" min="1" max="{max(60, e.options.max_answer_length)}" '
        f'value="{e.options.max_answer_length}"></label>'
        '<label>“No answer” must lead by: <output id="threshold-value"></output> '
        f'<input type="range" id="threshold" min="-20" max="20" step="0.25" value="{threshold:g}">'
        '</label><label><input type="checkbox" id="align"'
        f"{' checked' * e.options.align_to_words}> only whole words</label>"
        f'<label>Window that is drawn <select id="window">{options}</select></label></form>'
    )
    yield '<p id="decision" role="status"></p>'
    yield (
        '<div class="wide"><table><caption>What these settings give, best first</caption>'
        "<thead><tr>"
        + "".join(
            f'<th scope="col">{name}</th>'
            for name in ("", "answer", "score", "probability", "characters", "window")[
                : 5 + several
            ]
        )
        + '</tr></thead><tbody id="decided"></tbody></table></div>'
    )
    greys = ", ".join(
        '<span class="whole"><span class="grey" '
        f'style="background: rgb({grey} {grey} {grey})"></span> {rule}</span>'
        for rule, grey in zip(RULES[1:], GREYS, strict=True)
    )
    score = "" if e.best is None else f" Its score is {decimal(seen.scores()[e.best])}."
    label = f"Span matrix: rows are starts, columns ends. The best pair is {best}.{score}"
    yield (
        "<figure><figcaption>Every start (rows) with every end (columns)</figcaption>"
        f'<canvas id="matrix" role="img" aria-label="{escape(label)}"></canvas>'
        '<p id="matrix-note"></p><p>Coloured: allowed, the brighter the higher. Grey: forbidden, '
        f"for the reason that its grey stands for: {greys}. Circle: the best allowed pair. Square: "
        "best start and best end, each by itself.</p></figure>"
    )
    yield from folded(spans.span_band, spans.decode_answers)


def rivals_section(e: Explanation) -> Iterator[str]:
    """The answer among its rivals, and why each lost."""
    yield "<h2>8. The answer among its rivals</h2>"
    if e.best is None:
        yield "<p>No span of this window is allowed, so “no answer” has no rival here.</p>"
        return
    seen = e.window
    first = e.answers[0]
    null = float(seen.start[0] + seen.end[0])
    score = float(seen.scores()[e.best])
    lead = f"{abs(score - null):.2f} {'ahead of' if score > null else 'behind'} “no answer”"
    yield (
        f"<p>The answer given is “{escape(cut(str(first) or 'no answer'))}”, with "
        f"probability {first.probability:.2f}. In this window the best span is {lead} "
        f"({decimal(score)} and {decimal(null)}).</p>"
    )
    yield from rivals_table(e)


def rivals_table(e: Explanation) -> Iterator[str]:
    """The best spans of the window that is shown, and "no answer"."""
    if e.best is None:
        return
    seen = e.window
    null = float(seen.start[0] + seen.end[0])
    behind = null - float(seen.scores()[e.best])
    null_said = "it is the answer" if e.answers[0].is_null else f"its lead: {signed(behind)}"
    yield from listing(
        "The best spans of this window, and why each lost; and “no answer”",
        ("span", "score", "why it lost"),
        [
            (cut(rival.text) or "(not in the text)", decimal(rival.score), why_lost(rival, n))
            for n, rival in enumerate(e.rivals, 1)
        ]
        + [("(no answer)", decimal(null), null_said)],
    )


def why_lost(rival: Rival, place: int) -> str:
    """What keeps a rival from being the answer."""
    if rival.rule != ALLOWED:
        return f"forbidden: {RULES[rival.rule]}"
    if rival.start == rival.end == 0:
        return "the best span" if place == 1 else "equal, but later in the text"
    lacks = f"start {signed(-rival.start)}, end {signed(-rival.end)}"
    return lacks.replace(" ", "\u00a0")  # on one line
