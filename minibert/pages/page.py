"""The frame of a page: its style, figures and tables.

Colours are classes which `STYLE` sets for light pages, dark pages and paper.  They are those of
Okabe and Ito, which colour-blind people can tell apart, a little darker or lighter where the page
needs it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from html import escape

CONTROLS = {code: "\ufffd" for code in [*range(32), 127] if chr(code) not in "\t\n\r"}

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fff; --panel: #f5f7f9; --text: #1f2328; --muted: #57606a; --rule: #d5dbe1;
  --c0: #0072b2; --c1: #c9560b; --c2: #00805e; --c3: #57606a; --shade: #b7d8eb;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --panel: #1d232a; --text: #e6e9ec; --muted: #a3acb6; --rule: #363e47;
    --c0: #56b4e9; --c1: #f0a041; --c2: #3fc79d; --c3: #a3acb6; --shade: #2c4c61;
  }
}
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--page);
  color: var(--text); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem }
h2 { margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--rule) }
p { max-width: 45rem; margin: .6rem 0 }
a { color: var(--c0) }
table { border-collapse: collapse; margin: 1.2rem 0; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--muted); padding-bottom: .3rem }
th, td { padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--rule); text-align: left;
  overflow-wrap: break-word }
th { font-weight: 600 }
.number { text-align: right } td.number { white-space: nowrap }
.charts { display: grid; gap: 1.5rem 2.5rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)) }
figure { margin: 0; max-width: 36rem; break-inside: avoid }
figcaption { font-weight: 600; margin-bottom: .2rem }
figure p, .note { color: var(--muted); font-size: .9em }
code { white-space: nowrap }
@media print {
  :root { color-scheme: light }
  body { padding: 0; font-size: 10pt }
  .charts { grid-template-columns: 1fr 1fr }
  h2, h3, caption { break-after: avoid } tr { break-inside: avoid }
}
.chart { display: block; width: 100%; height: auto }
.chart text { font: 13px system-ui, sans-serif; fill: var(--text) }
.chart .small { font-size: 12px; fill: var(--muted) }
.chart .grid { stroke: var(--rule) }
.chart .error { stroke: var(--text); stroke-width: 1.2 }
.chart .bar { fill: var(--c); fill-opacity: .7 }
.chart .line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round }
.chart .block { stroke: var(--c); stroke-width: 11; stroke-opacity: .7 }
.chart .dashed { stroke-width: 1.5; stroke-dasharray: 6 4 }
.chart .mark { fill: var(--c); stroke: var(--page) }
.c0 { --c: var(--c0) } .c1 { --c: var(--c1) } .c2 { --c: var(--c2) } .c3 { --c: var(--c3) }
"""


def page(title: str, body: Iterable[str], style: str = "", script: str = "") -> str:
    """A whole HTML page that may load nothing, not even an icon, and run nothing but `script`.

    Args:
        title: text of the heading.
        body: lines of HTML under it.
        style: CSS besides `STYLE`.
        script: JavaScript that runs when all of it is there; the policy names its hash.
    """
    allowed = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed = f"script-src 'sha256-{digest}'; "
        script = f"<script>{script}</script>\n"
    lines = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"{allowed}style-src 'unsafe-inline'; img-src data:\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        '<link rel="icon" href="data:,">',
        f"<style>{STYLE}{style}</style>\n</head>\n<body>",
        f'<h1 dir="auto">{escape(title)}</h1>',
        *body,
        f"{script}</body>\n</html>\n",
    ]
    return writable("\n".join(lines))


def writable(text: str) -> str:
    """A text without what no file can hold, half of a surrogate pair, or no page may."""
    return text.encode("utf-8", "replace").decode("utf-8").translate(CONTROLS)


def figure(caption: str, chart: str, note: str = "") -> str:
    """A chart with its caption, and perhaps a note under it; all are HTML."""
    below = f"\n<p>{note}</p>" if note else ""
    return f"<figure>\n<figcaption>{caption}</figcaption>\n{chart}{below}\n</figure>"


def table(
    caption: str, rows: Iterable[tuple[str, Sequence[str]]], head: Sequence[str] = ()
) -> Iterator[str]:
    """A table, or nothing if there are no rows.

    Args:
        caption: what it holds.
        rows: pairs of a name and the texts after it.
        head: names of the columns, for a table of numbers.
    """
    kind = ' class="number"' if head else ' dir="auto"'
    lines = []
    for name, cells in rows:
        shown = "".join(f"<td{kind}>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row" dir="auto">{escape(name)}</th>{shown}</tr>')
    if lines:
        yield f"<table>\n<caption>{escape(caption)}</caption>"
        if head:
            first, *others = map(escape, head)
            names = "".join(f'<th scope="col"{kind}>{name}</th>' for name in others)
            yield f'<thead><tr><th scope="col">{first}</th>{names}</tr></thead>'
        yield from ["<tbody>", *lines, "</tbody>\n</table>"]
