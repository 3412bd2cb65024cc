"""What sections share: folded code as it stands in the definition, tables, signed numbers."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from minibert.lessons.catalogue import LESSONS

CUT = 120  # characters of a span that are shown
# What lessons say of the functions that they are about.
FORMULAS = {step.function.__name__: each.formula for each in LESSONS for step in each.steps}


def folded(*functions: Callable[..., Any]) -> Iterator[str]:
    """The source of functions, to be unfolded: the file in which each stands, and its formula."""
    for function in functions:
        source = textwrap.dedent(inspect.getsource(function)).rstrip()
        file = Path(inspect.getsourcefile(function) or "")
        where = "/".join(file.parts[-2:])
        formula = FORMULAS.get(function.__name__)
        told = f"\n<p>{escape(formula)}</p>" if formula else ""
        yield (
            f"<details><summary>The code of this step: <code>{escape(function.__name__)}</code> in "
            f"{escape(where)}</summary>{told}\n<pre>{escape(source)}</pre></details>"
        )


def unfolded_later(summary: str, text: str) -> str:
    """A text of many lines, folded under a summary."""
    return f"<details><summary>{escape(summary)}</summary>\n<pre>{escape(text)}</pre></details>"


def listing(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of texts, the first of each row its name; wide ones can be scrolled."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    yield (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{names}</tr>'
        "</thead><tbody>"
    )
    for first, *others in rows:
        cells = "".join(f'<td dir="auto">{escape(cell)}</td>' for cell in others)
        yield f'<tr><th scope="row" dir="auto">{escape(first)}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def signed(value: float) -> str:
    """A number with its sign, in two digits.

    Example:
        >>> signed(1.5), signed(-0.25), signed(-0.001)
        ('+1.50', '−0.25', '0.00')
    """
    text = decimal(value)
    return text if value <= 0 or float(text) == 0 else f"+{text}"


def decimal(value: float, digits: int = 2) -> str:
    """A number with so many digits after the point, and a true minus.

    Example:
        >>> decimal(1.5), decimal(-0.25), decimal(-0.001)
        ('1.50', '−0.25', '0.00')
    """
    text = f"{value:.{digits}f}"
    return text.replace("-", "" if float(text) == 0 else "−")


def cut(text: str) -> str:
    """A text of one line, shortened."""
    text = " ".join(text.split())
    return text if len(text) <= CUT else f"{text[:CUT]} …"
