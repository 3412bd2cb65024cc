"""One page that shows how a question was answered, from its tokens to the answer's rivals.

Each section draws this question's own numbers: opening.py (tokens, windows, embeddings, layers),
heads.py (attention), spans.py (logits, spans, rivals), words.py (which words made it).  script.js
decides anew when a slider moves; data.py writes what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from minibert.explaining.explanation import Explanation
from minibert.explaining.learner import Learnt, named, named_step
from minibert.pages.explanation.code import cut, decimal, listing
from minibert.pages.explanation.data import script_data
from minibert.pages.explanation.heads import attention_section
from minibert.pages.explanation.opening import (
    embeddings_section,
    layers_section,
    tokens_section,
    windows_section,
)
from minibert.pages.explanation.spans import (
    logits_figure,
    logits_section,
    matrix_section,
    rivals_section,
    rivals_table,
)
from minibert.pages.explanation.words import words_section
from minibert.pages.page import page

SECTIONS = (
    tokens_section,
    windows_section,
    embeddings_section,
    layers_section,
    attention_section,
    logits_section,
    matrix_section,
    rivals_section,
    words_section,
)

AROUND = 120  # characters of the text that are shown before and after the answer

STYLE = """
.answer { font-size: 1.3rem; padding: .6rem .9rem; background: var(--panel);
  border-left: 4px solid var(--c2); max-width: none }
.tokens, .shares { max-width: none; line-height: 2 }
details { margin: .8rem 0 } summary { cursor: pointer; color: var(--c0) }
pre { overflow-x: auto; background: var(--panel); padding: .7rem; font-size: .85em }
.chart .thin { stroke-width: .8 }
.for, .against { padding: .1rem .15rem; border-radius: .2rem;
  -webkit-print-color-adjust: exact; print-color-adjust: exact }
.for { background: rgb(230 120 0 / calc(var(--a) * .6)); border-bottom: 2px solid var(--c1) }
.against { background: rgb(0 114 178 / calc(var(--a) * .45)); border-bottom: 2px dashed var(--c0) }
.wide { overflow-x: auto } .wide td, .wide th { padding: .2rem .5rem }
.wide tbody th { font-weight: 400 } .wide td { overflow-wrap: normal }
.pairs td { text-align: right; border-radius: 0 }
#heads td { text-align: center; min-width: 1.6rem; cursor: pointer; border: 1px solid var(--page);
  -webkit-print-color-adjust: exact; print-color-adjust: exact }
#heads td[aria-selected=true] { outline: 2px solid #000; box-shadow: inset 0 0 0 2px #fff }
canvas { width: 100%; max-width: 32rem; image-rendering: pixelated; border: 1px solid var(--muted) }
#decided td { white-space: nowrap }
#decided td:nth-child(2) { white-space: normal; min-width: 10rem }
.whole { white-space: nowrap }
.grey { display: inline-block; width: 1em; height: 1em; border: 1px solid #000 }
mark, .answer, .grey { -webkit-print-color-adjust: exact; print-color-adjust: exact }
.maps { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)) }
.sliders { display: grid; gap: .5rem; max-width: 45rem }
.sliders input[type=range] { width: 100% }
.departure { padding: .6rem .9rem; background: var(--panel); border-left: 4px solid var(--c1) }
.beside { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)) }
"""


def explanation_page(e: Explanation) -> str:
    """The whole page."""
    body = ["<main>", *opening(e)]
    if e.learnt is not None:
        body += learnt_lines(e.learnt)
    if e.other is not None:
        body += compared(e, e.other)
    for number, section in enumerate(SECTIONS, 1):
        heading, *lines = section(e)
        body += [heading, *departs_here(e.learnt, number), *lines]
    body += [
        f'<p class="note">{escape(e.model)}, {e.config.family}, {e.config.num_hidden_layers} '
        f"layers x {e.config.hidden_size}; computed in {e.seconds:.1f} s. Sections 3 to "
        "5, and 9, are of the definition in NumPy, float32; the others of the model as it "
        "runs.</p>",
        "</main>",
        f'<script type="application/json" id="data">{script_data(e)}</script>',
    ]
    script = Path(__file__).with_name("script.js").read_text(encoding="utf-8")
    return page(f"How minibert answers: {e.question}", body, STYLE, script)


def opening(e: Explanation) -> Iterator[str]:
    """The answer, and the way of the data."""
    first = e.answers[0]
    several = len(e.titles) > 1
    yield f'<p class="answer" dir="auto">{escape(str(first)) or "<i>no answer</i>"}</p>'
    if first.is_null:
        yield (
            "<p>The model says that the text holds no answer, with probability "
            f"{first.probability:.2f}.</p>"
        )
    else:
        text = {s.window.document: s.window.context.text for s in e.seen}[first.document]
        before, after = text[: first.start], text[first.end :]
        if len(before) > AROUND:
            before = f"… {before[-AROUND:].partition(' ')[2]}"
        if len(after) > AROUND:
            after = f"{after[:AROUND].rpartition(' ')[0]} …"
        yield (
            f'<p dir="auto">{escape(before)}<mark>{escape(first.text)}</mark>'
            f"{escape(after)}</p><p>Probability {first.probability:.2f}, score "
            f"{decimal(first.score)}; “no answer” has {decimal(first.null_score)}"
            f"{f', in {escape(e.titles[first.document])}' * several}.</p>"
        )
    many = len(e.seen) > 1
    yield (
        "<p>This is the way there, step by step, with this question’s own numbers: text, tokens, "
        f"{len(e.seen)} window{'s' * many}, {len(e.names)} vectors{' of one of them' * many}, "
        f"{e.config.num_hidden_layers} layers, logits, spans, answer.</p>"
    )


def learnt_lines(found: Learnt) -> Iterator[str]:
    """Whose functions ran, and the first step that is not the definition's."""
    yield "<h2>Your functions</h2>"
    yield (
        f"<p>These ran in the place of the definition's: {escape(named(found.functions))}. "
        "Logits, attention and how far layers move tokens are theirs. Windows, the choice among "
        "spans, and gradients are the library's"
        + (f", so these did not run: {escape(named(found.others))}" if found.others else "")
        + ".</p>"
    )
    if found.departure is None:
        yield "<p><b>Every step gives what the definition gives.</b></p>"
        return
    step, what = named_step(found.departure.step), found.departure.what
    yield (
        f'<p class="departure"><b>The first step that departs is {escape(step)}:</b> '
        f"{escape(what)}.</p>"
    )


def departs_here(found: Learnt | None, number: int) -> Iterator[str]:
    """In the section that shows it, a word on the first step that departs."""
    if found is None or found.departure is None:
        return
    step = found.departure.step
    if step in ("embeddings", "projection"):
        section = 3
    elif step == "logits":
        section = 6
    else:
        section = 5 if ".attention." in step or step.endswith(".qkv") else 4
    if number == section:
        yield f'<p class="departure">Here yours departs: {escape(named_step(step))}.</p>'


def compared(e: Explanation, other: Explanation) -> Iterator[str]:
    """Answers, scores and rivals of two questions or texts, side by side."""
    yield "<h2>Side by side</h2>"
    yield '<div class="beside">'
    for each, name in ((e, "This one"), (other, "The other")):
        text = each.seen[0].window.context.text
        yield f"<section><h3>{name}: {escape(each.question)}</h3>"
        if other.question == e.question:
            yield f'<p dir="auto">Text: {escape(cut(text))}</p>'
        yield from listing(
            "Answers",
            ("answer", "score", "probability"),
            [
                (cut(str(a)) or "(no answer)", decimal(a.score), decimal(a.probability, 3))
                for a in each.answers
            ],
        )
        yield logits_figure(each)
        yield from rivals_table(each)
        yield "</section>"
    yield "</div>"
