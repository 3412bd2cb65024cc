"""The first steps: tokens, windows, embeddings, layers."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from minibert import batches, encoder, windows
from minibert.arrays import Floats
from minibert.explaining.attention import CLS, QUESTION, SEP, TEXT, groups_of
from minibert.explaining.explanation import Explanation
from minibert.kernels import reference
from minibert.pages.charts import Line, line_chart, number, straight, svg, words
from minibert.pages.explanation.code import cut, decimal, folded, listing, unfolded_later
from minibert.pages.page import figure

GROUP_NAMES = {QUESTION: "question", TEXT: "text", CLS: "special", SEP: "special"}
SHOWN_TOKENS = 60  # in the open; the others are folded
SHOWN_WINDOWS = 40


def tokens_section(e: Explanation) -> Iterator[str]:
    """The tokens of the window, and where they stand."""
    window = e.window.window
    groups = groups_of(window)
    count = len(window)
    yield "<h2>1. Text to tokens</h2>"
    yield (
        "<p>BERT reads word pieces of a fixed vocabulary: frequent words are one token, rare ones "
        f"several. {sizes(e)} Those of window {e.shown}, with what frames them, are {count}; "
        f"{int(e.unknown.sum())} of them stand for something that the vocabulary does not know.</p>"
    )
    shown = []
    for at, name in enumerate(e.names[:SHOWN_TOKENS]):
        mark = "<mark>", "</mark>"
        before, after = mark if e.unknown[at] else ("", "")
        shown.append(f"{before}{escape(name)}{after}")
    more = " …" if count > SHOWN_TOKENS else ""
    yield f'<p class="tokens" dir="auto">{" · ".join(shown)}{more}</p>'
    lines = ["place  id      characters   part      token"]
    for at, name in enumerate(e.names):
        inside = window.offset <= at < window.offset + window.end - window.begin
        place = ""
        if inside:
            begin, end = window.context.offsets[at - window.offset + window.begin]
            place = f"{begin} to {end}"
        unknown = "  (unknown)" if e.unknown[at] else ""
        part = GROUP_NAMES[int(groups[at])]
        lines.append(f"{at:5}  {window.input_ids[at]:6}  {place:11}  {part:8}  {name}{unknown}")
    yield unfolded_later(f"All {count} tokens with their ids and places", "\n".join(lines))


def sizes(e: Explanation) -> str:
    """How many tokens question and texts have."""
    texts = {seen.window.document: len(seen.window.context) for seen in e.seen}
    asked = int(np.count_nonzero(groups_of(e.window.window) == QUESTION))
    kind = "the text" if len(texts) == 1 else f"the {len(texts)} texts"
    return f"The question has {asked} tokens here, {kind} {sum(texts.values())}."


def windows_section(e: Explanation) -> Iterator[str]:
    """The text as a ribbon with its windows."""
    yield "<h2>2. Tokens to windows</h2>"
    several = len(e.seen) > 1
    yield (
        f"<p>The model could read {e.config.longest_window} tokens at once, and reads at most "
        f"{e.longest} here; a longer text is read through overlapping windows, each beside the "
        "question. "
        + (
            f"There are {len(e.seen)}; each token of a text counts in the one that sees most "
            f"around it. All that follows is about window {e.shown}; <code>--window N</code> shows "
            "another.</p>"
            if several
            else "This one fits into one window.</p>"
        )
    )
    if several:
        yield figure(
            "The windows, each from its text's beginning to its end",
            ribbon(e),
            "Thin: what a window shows. Thick: the tokens that count there. "
            f"The coloured one is window {e.shown}."
            + "".join(f" Text {n}: {escape(title)}." for n, title in enumerate(e.titles))
            * (len(e.titles) > 1),
        )
    yield from folded(windows.make_windows, batches.pack)


def ribbon(e: Explanation) -> str:
    """One line a window over the length of its text."""
    parts, y = [], 8.0
    first = max(0, min(e.shown - SHOWN_WINDOWS // 2, len(e.seen) - SHOWN_WINDOWS))
    seen = e.seen[first : first + SHOWN_WINDOWS]
    told = []
    for at, each in enumerate(seen, first):
        window = each.window
        length = max(1, len(window.context))
        colour = "c0" if at == e.shown else "c3"

        def x(token: int, length: int = length) -> float:
            return 70 + 320 * token / length

        mine = np.flatnonzero(each.mine) - window.offset + window.begin
        label = f"{at}, text {window.document}" if len(e.titles) > 1 else f"window {at}"
        parts.append(words(62, y + 5, label, "small", "end"))
        parts.append(straight(f"line {colour}", x(window.begin), y, x(window.end), y))
        if len(mine):
            parts.append(straight(f"block {colour}", x(int(mine[0])), y, x(int(mine[-1]) + 1), y))
        told.append(f"window {at}: tokens {window.begin} to {window.end}, {len(mine)} count")
        y += 18
    more = len(e.seen) - len(seen)
    if more:
        parts.append(words(70, y + 6, f"and {more} more", "small"))
        y += 18
    return svg("Windows over the text", "; ".join(told) + ".", y + 6, parts)


def chosen_tokens(e: Explanation) -> list[int]:
    """Three tokens to follow: [CLS], the question's first, the answer's first."""
    answer = e.best.start if e.best else min(e.window.window.offset, len(e.names) - 1)
    return list(dict.fromkeys((0, 1, answer)))


def embeddings_section(e: Explanation) -> Iterator[str]:
    """The sum of three vectors, for three tokens."""
    width = next(iter(e.parts.values())).shape[1]
    yield "<h2>3. Tokens to vectors</h2>"
    yield (
        f"<p>Each token becomes {width} numbers: the sum of a vector for the word, one for the "
        "place in the window and one that tells question from text. The sum is then brought to "
        "mean 0 and variance 1, and scaled by learned factors.</p>"
    )
    total: Floats = sum(e.parts.values())  # type: ignore[assignment]
    rows = {**e.parts, "sum": total, "after the norm": e.kept.embedded.out}
    for at in chosen_tokens(e):
        lengths = ", ".join(
            f"{name} {np.linalg.norm(vectors[at]):.2f}" for name, vectors in rows.items()
        )
        yield figure(
            f"Token {at}: {escape(e.names[at])}",
            strips(e.names[at], {name: vectors[at] for name, vectors in rows.items()}),
            f"Lengths: {lengths}.",
        )
    yield from folded(reference.embed, reference.layer_norm)


def strips(title: str, vectors: dict[str, Floats]) -> str:
    """One thin line of numbers under the other; all to one scale, but the last has its own."""
    *summed, _ = vectors.values()
    highest = max(float(np.abs(vector).max()) for vector in summed) or 1.0
    parts = []
    for row, (name, vector) in enumerate(vectors.items()):
        scale = highest if row < len(summed) else float(np.abs(vector).max()) or 1.0
        middle = 20 + 34 * row
        parts.append(words(4, middle + 4, name, "small"))
        parts.append(straight("grid", 120, middle, 396, middle))
        points = " ".join(
            f"{120 + 276 * n / max(1, len(vector) - 1):.1f},{middle - 15 * v / scale:.1f}"
            for n, v in enumerate(vector.tolist())
        )
        parts.append(f'<polyline class="line thin c0" points="{points}"/>')
    told = f"{len(vectors)} vectors, the first {len(summed)} up to {number(highest, 3)}."
    return svg(f"The numbers of token {title}", told, 20 + 34 * len(vectors), parts)


def layers_section(e: Explanation) -> Iterator[str]:
    """How far each layer moves tokens."""
    layers = len(e.moves)
    yield "<h2>4. Through the layers</h2>"
    mean = e.moves.mean(axis=1)
    yield (
        f"<p>Each of the {layers} layers lets tokens read from each other (attention), then "
        "changes each by itself (feed-forward). The cosine between a token before and after a "
        f"layer says how little it moved: {decimal(mean.min())} in layer {int(mean.argmin())}, "
        f"which moves tokens most, {decimal(mean.max())} in layer {int(mean.argmax())}.</p>"
    )
    lines = [Line("mean of all tokens", list(enumerate(mean.tolist())), 3, True)]
    for colour, at in enumerate(chosen_tokens(e)):
        lines.append(Line(e.names[at], list(enumerate(e.moves[:, at].tolist())), colour))
    low = min(0.0, float(e.moves.min()))
    yield figure(
        "Cosine between a token before and after each layer",
        line_chart(
            "Cosine by layer",
            f"Mean by layer: {', '.join(f'{value:.2f}' for value in mean)}.",
            lines,
            x_label="layer",
            y_label="cosine",
            x_range=(0, max(1, layers - 1)),
            y_range=(low, 1.0),
        ),
        "1: not moved at all.",
    )
    yield "<h3>If BERT stopped here</h3>"
    yield (
        "<p>The answer that the head would give if it read the result of an earlier layer. It was "
        "trained on the last layer only, so this shows where the answer becomes readable to it, "
        "not what a layer “knows”.</p>"
    )
    yield from listing(
        "The answer after each layer",
        ("layer", "answer", "score", "probability"),
        [
            (str(n), cut(str(a)) or "(no answer)", decimal(a.score), decimal(a.probability, 3))
            for n, a in enumerate(e.early)
        ],
    )
    yield from folded(
        encoder.encoder_layer,
        reference.linear,
        reference.linear_add_norm,
        reference.linear_activation,
        reference.gelu,
    )
