"""Attention: who reads from whom, head by head."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from minibert.explaining.attention import KINDS, STRONGEST
from minibert.explaining.explanation import Explanation
from minibert.kernels import reference
from minibert.pages.explanation.code import folded

FIRST_KIND = 1  # question to text


def attention_section(e: Explanation) -> Iterator[str]:
    """A grid of heads, one head's readings, and the heads that matter most."""
    layers, heads, _ = e.shares_of_heads.shape
    mean = e.shares_of_heads.mean(axis=(0, 1))
    covered = e.strongest.covered
    yield "<h2>5. Attention</h2>"
    yield (
        f"<p>In each layer, {heads} heads let every token read from others, with weights that sum "
        f"to 1. Over all {layers * heads} heads, the question does {mean[1]:.0%} of its reading "
        f"in the text, the text {mean[2]:.0%} in the question; {mean[4]:.0%} go to [CLS], "
        f"{mean[5]:.0%} to [SEP].</p>"
    )
    first = next(iter(e.maps), (0, 0))
    numbers = "".join(f'<th scope="col">{head}</th>' for head in range(heads))
    kinds = "".join(
        f'<option value="{n}"{" selected" * (n == FIRST_KIND)}>{escape(name)}</option>'
        for n, (name, *_) in enumerate(KINDS)
    )
    yield (
        f'<p><label>Kind of reading <select id="kind">{kinds}</select></label> '
        '<label><input type="checkbox" id="no-specials"> leave [CLS] and [SEP] out</label></p>'
    )
    yield (
        '<div class="wide"><table id="heads" role="grid" aria-label="Heads by layer"><caption>'
        "Percent of the readers' reading that is of this kind; rows are layers, columns heads, "
        "both counted from 0. Arrow keys move, and choose the head that is drawn below.</caption>"
        f"<thead><tr><td></td>{numbers}</tr></thead><tbody>"
    )
    for layer in range(layers):
        cells = []
        for head in range(heads):
            chosen = (layer, head) == first
            share = e.shares_of_heads[layer, head, FIRST_KIND]
            cells.append(
                f'<td role="gridcell" tabindex="{0 if chosen else -1}" '
                f'aria-selected="{str(chosen).lower()}">{round(100 * share)}</td>'
            )
        yield f'<tr role="row"><th scope="row">{layer}</th>{"".join(cells)}</tr>'
    yield "</tbody></table></div>"
    yield (
        "<figure><figcaption>What tokens of question and answer read in one head</figcaption>"
        '<svg class="chart" id="lines" viewBox="0 0 400 20" role="img"></svg>'
        f'<p id="lines-note"></p><p>The {STRONGEST} strongest readings of each token, from 3% on, '
        "for the first 40 tokens of question and answer; the thicker a line, the more. "
        f"In the median head these {STRONGEST} are {np.median(covered):.0%} of what a token "
        f"reads, in the most scattered one {covered.min():.0%}.</p></figure>"
    )
    if not e.maps:
        return
    names = ", ".join(f"layer {layer} head {head}" for layer, head in e.maps)
    yield "<h3>The heads that matter most here</h3>"
    yield (
        "<p>Attention alone does not say what a head is for. Multiplied with the gradient of the "
        "answer's lead over “no answer” it says, to first order, what its readings are "
        f"worth. The first {len(e.maps)} by that measure: {names}.</p>"
    )
    yield '<div class="maps">'
    for n, (layer, head) in enumerate(e.maps):
        worth, does = e.importance[layer, head], reading(e, layer, head)
        yield (
            f'<figure><figcaption>Layer {layer}, head {head}</figcaption><canvas id="map-{n}" '
            f'role="img" aria-label="Attention of layer {layer}, head {head}: {does}"></canvas>'
            f"<p>worth {worth:.2f}; {does}</p></figure>"
        )
    yield (
        '</div><p class="note">Rows read, columns are read, both in the order of the window; the '
        "brighter, the more (square root of the probability).</p>"
    )
    yield from folded(reference.attention_probs, reference.attention)


def reading(e: Explanation, layer: int, head: int) -> str:
    """What a head does most, in words."""
    mine = e.shares_of_heads[layer, head]
    kind = int(np.argmax(mine))
    return f"mostly {KINDS[kind][0]} ({mine[kind]:.0%})"
