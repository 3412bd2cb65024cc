"""Which words made the answer, and what such pictures do not say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from minibert.explaining import words as definition
from minibert.explaining.attention import QUESTION, TEXT, flow
from minibert.explaining.explanation import Explanation, Share, Thorough
from minibert.explaining.words import Word
from minibert.pages.explanation.code import cut, decimal, folded, listing, signed

FEW = 8  # words that are listed
COLUMNS = 12  # words of the text in the table of pairs
ROWS = 16  # words of the question there
FAINT = 0.08  # shares below this part of the highest are not coloured

CAVEATS = (
    (
        "Attention is not explanation: weights can be large where nothing flows, and a head can "
        "suppress what it reads",
        "https://arxiv.org/abs/2201.12114",
    ),
    (
        "Methods that explain contradict each other; agreement of two is worth more than one",
        "https://arxiv.org/abs/2111.07367",
    ),
    (
        "Paths from a baseline lead through inputs that no text has",
        "https://arxiv.org/abs/2108.13654",
    ),
    (
        "Reading comprehension needs pairs of words, which a share for each word cannot show",
        "https://arxiv.org/abs/2104.04515",
    ),
)


def words_section(e: Explanation) -> Iterator[str]:
    """Signed shares of words, for two differences."""
    yield "<h2>9. Which words made it</h2>"
    if not e.shares:
        yield "<p>No span of this window is allowed, so there is nothing to explain.</p>"
        return
    answer = cut(e.window.characters(e.best)) if e.best else ""
    yield (
        "<p>Each word’s share of a difference of logits, for this start and this end: the gradient "
        "of the difference at the word’s embeddings times these embeddings. A share is how the "
        "difference would change, to first order, if the word’s embedding grew; shares need not "
        'sum to the difference. <span class="for" style="--a:.5">Orange, with a line</span>: for '
        'the answer; <span class="against" style="--a:.5">blue, with '
        "dashes</span>: against it.</p>"
    )
    for share in e.shares:
        yield from share_lines(e, share, answer)
    yield from pairs_lines(e, e.shares[0])
    if e.thorough is not None:
        yield from thorough_lines(e, e.thorough)
    yield "<h3>What these pictures do not mean</h3>"
    items = "".join(
        f'<li>{escape(text)} (<a href="{link}">{link[8:]}</a>).</li>' for text, link in CAVEATS
    )
    yield f"<ul>{items}</ul>"
    thorough = (definition.integrated_gradients, definition.left_out, definition.check)
    yield from folded(definition.gradient_x_input, flow, *thorough * (e.thorough is not None))


def share_lines(e: Explanation, share: Share, answer: str) -> Iterator[str]:
    """The words of one difference: coloured where they stand, and the first ones listed."""
    named = "“no answer”"
    if share is not e.shares[0] and e.best is not None and e.rival is not None:
        apart = e.rival.start > e.best.end or e.rival.end < e.best.start
        kind = "best rival that shares no token with it" if apart else "best rival"
        named = f"its {kind}, “{cut(share.target.name)}”"
    lead = "leads" if share.value >= 0 else "is behind"
    yield f"<h3>The answer minus {escape(named)}</h3>"
    order = np.argsort(-share.words)
    best = strongest_words(share.words, e.words, 1)
    worst = strongest_words(share.words, e.words, -1)
    yield (
        f"<p>“{escape(answer)}” {lead} by {decimal(abs(share.value))}. For it speak most {best}; "
        f"against it {worst}.</p>"
    )
    for group, title in ((QUESTION, "Question"), (TEXT, "Text")):
        marked = coloured(e.words, share.words, group)
        yield f'<p class="shares" dir="auto"><b>{title}:</b> {marked}</p>'
    rows = [
        (cut(e.words[i].text), part(e.words[i]), signed(share.words[i]))
        for i in dict.fromkeys([*order[:FEW].tolist(), *order[-FEW:].tolist()])
    ]
    yield from listing("The highest and the lowest shares", ("word", "of", "share"), rows)


def strongest_words(values: NDArray[np.float64], words: Sequence[Word], sign: int) -> str:
    """The three words with the highest shares of a sign."""
    order = np.argsort(-sign * values)[:3].tolist()
    found = [
        f"“{escape(cut(words[i].text))}” ({signed(values[i])})"
        for i in order
        if sign * values[i] > 0
    ]
    return ", ".join(found) or "nothing"


def part(word: Word) -> str:
    """What a word is of."""
    return "question" if word.group == QUESTION else "text"


def percent(part: float) -> str:
    """A part of something in percent, where that still means something."""
    return f"{part:.1%}" if part <= 1 else "more than the whole of it"


def coloured(words: Sequence[Word], values: NDArray[np.float64], group: int) -> str:
    """Words with those that matter on a ground of their sign: for orange, against blue.

    Those against are underlined with dashes too, so that nothing hangs on colour alone.
    """
    highest = float(np.abs(values).max()) or 1.0
    found = []
    for word, value in zip(words, values.tolist(), strict=True):
        if word.group != group:
            continue
        text = escape(cut(word.text))
        strength = abs(value) / highest
        if strength >= FAINT:
            kind = "for" if value > 0 else "against"
            text = f'<span class="{kind}" style="--a:{strength:.2f}">{text}</span>'
        found.append(text)
    return " ".join(found)


def pairs_lines(e: Explanation, share: Share) -> Iterator[str]:
    """Question word by text word: what their reading from each other adds."""
    questions = [cut(word.text) for word in e.words if word.group == QUESTION][:ROWS]
    texts = [cut(word.text) for word in e.words if word.group == TEXT]
    values = share.pairs[:ROWS]
    if not values.size:
        return
    chosen = np.sort(np.argsort(-np.abs(values).max(axis=0))[:COLUMNS])
    highest = float(np.abs(values).max()) or 1.0
    row, column = divmod(int(np.abs(values).argmax()), values.shape[1])
    yield "<h3>Question words with text words</h3>"
    yield (
        "<p>Attention probability times its gradient, both directions, summed over all layers and "
        f"heads. The strongest pair is “{escape(questions[row])}” with “{escape(texts[column])}” "
        f"({signed(values[row, column])}; below 0: against the answer).</p>"
    )
    head = "".join(f'<th scope="col">{escape(texts[at])}</th>' for at in chosen)
    yield (
        '<div class="wide"><table class="pairs"><caption>The dozen text words with the strongest '
        f"pairs, in their order</caption><thead><tr><td></td>{head}</tr></thead><tbody>"
    )
    for name, line in zip(questions, values[:, chosen].tolist(), strict=True):
        cells = "".join(
            f'<td class="{"for" if v > 0 else "against"}" style="--a:{abs(v) / highest:.2f}">'
            f"{signed(v)}</td>"
            for v in line
        )
        yield f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def thorough_lines(e: Explanation, found: Thorough) -> Iterator[str]:
    """Integrated gradients, words left out, and the check."""
    yield "<h3>More thoroughly</h3>"
    told = []
    for path in found.paths:
        verdict = "converged" if path.converged else "not converged"
        told.append(
            f"from {path.baseline}: {verdict}, the shares miss the difference of "
            f"{decimal(path.difference)} by {percent(path.error)} after {path.steps} steps"
        )
    yield f"<p>Integrated gradients {escape('; '.join(told))}.</p>"
    if len(found.paths) > 1:
        yield (
            f"<p>The shares of words of the two paths correlate by {decimal(found.agreement)}; "
            "where that is far from 1, the choice of the baseline decides.</p>"
        )
    columns = [definition.by_word(path.shares, e.words) for path in found.paths]
    order = np.argsort(-np.abs(found.left_out))[: 2 * FEW]
    rows = [
        (
            cut(e.words[i].text),
            part(e.words[i]),
            *(signed(value[i]) for value in (e.shares[0].words, *columns, found.left_out)),
        )
        for i in order
    ]
    names = (f"path from {path.baseline}" for path in found.paths)
    head = ("word", "of", "gradient × input", *names, "left out")
    yield from listing("The words whose leaving out changes most, by each method", head, rows)
    if found.check is not None:
        c = found.check
        above = sum(c.top > fall for fall in c.random)
        yield (
            f"<p>Check: without the {c.removed} words with the highest gradient × input, the "
            f"answer itself excepted, the lead falls by {decimal(c.top)}; without as many random "
            f"ones by {decimal(float(np.mean(c.random)))} on average; {above} of {len(c.random)} "
            f"random choices fall by less. So they {'matter' if c.passed else 'do not matter'} "
            "more than others; the order among them is not checked by this.</p>"
        )
    yield f'<p class="note">This part took {found.seconds:.1f} s.</p>'
