"""Small charts as SVG: bars with error bars, and lines.

A chart is `WIDTH` units wide and the page scales it; that is narrow, so that its words can still be
read on a phone.  Colours are classes which `STYLE` in page.py sets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

WIDTH = 400
CHARACTER = 6.8  # mean width of a character, a little generous
CLOSEST = 0.4  # points of a line nearer than this to the one before add nothing but bytes


class Axis(NamedTuple):
    """A linear axis.

    Example:
        >>> axis = Axis(0, 2, 0, 200)
        >>> axis(0.5), axis.ticks
        (50.0, [0.0, 0.5, 1.0, 1.5, 2.0])
    """

    low: float  # smallest value to show
    high: float  # largest, more than low
    begin: float  # where the axis begins, in pixels
    end: float  # where it ends

    def __call__(self, value: float) -> float:
        """Pixels of a value; of one outside, those of the nearer end."""
        value = min(max(value, self.low), self.high)
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    @property
    def ticks(self) -> list[float]:
        """Up to seven multiples of 1, 2 or 5 times a power of ten."""
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / 6))
        steps = (digit * power for digit in (1, 2, 5, 10))
        step = next(step for step in steps if (self.high - self.low) / step <= 6)
        numbers = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [number * step for number in numbers]


# ---------------------------------------------------------------- bars


class Bar(NamedTuple):
    """A value and its error bar."""

    value: float
    low: float
    high: float


class Group(NamedTuple):
    """The bars of one kind of things, one a series."""

    name: str
    size: int  # how many things
    bars: Sequence[Bar]


BAR = 13  # thickness
PITCH = 16  # from a bar to the next of its group
GAP = 14  # between groups


def bar_chart(title: str, series: Sequence[str], groups: Sequence[Group], unit: str) -> str:
    """Draw groups of lying bars, the name of each group and its count at its left.

    Args:
        title: what is shown, for those who hear the page.
        series: the names of the bars of every group, two or more.
        groups: at least one.
        unit: put behind values where they are spoken of; the axis goes from 0 to 100.
    """
    parts, y = legend([(name, f"block c{colour}") for colour, name in enumerate(series)])
    axis = Axis(0, 100, 124, WIDTH - 48)
    height = y + len(groups) * (len(series) * PITCH + GAP)
    for tick in axis.ticks:
        parts.append(straight("grid", axis(tick), y, axis(tick), height))
        parts.append(words(axis(tick), height + 17, number(tick), "small", "middle"))
    spoken = []
    for group in groups:
        y += GAP / 2
        parts.append(words(axis.begin - 8, y + 11, group.name, anchor="end"))
        parts.append(words(axis.begin - 8, y + PITCH + 11, f"n = {group.size:,}", "small", "end"))
        for colour, (name, bar) in enumerate(zip(series, group.bars, strict=True)):
            tip = f"{group.name}: {name} {bar.value:.1f}{unit}, {bar.low:.1f} to {bar.high:.1f}"
            middle = y + BAR / 2
            parts.append(
                f'<rect class="bar c{colour}" x="{axis.begin}" y="{y:.1f}" height="{BAR}" '
                f'width="{axis(bar.value) - axis.begin:.1f}"><title>{escape(tip)}</title></rect>'
            )
            parts.append(straight("error", axis(bar.low), middle, axis(bar.high), middle))
            parts.append(words(WIDTH - 4, y + 11, f"{bar.value:.1f}", "small", "end"))
            spoken.append(tip)
            y += PITCH
        y += GAP / 2
    return svg(title, "; ".join(spoken) + ".", height + 24, parts)


# ---------------------------------------------------------------- lines


class Line(NamedTuple):
    """A line through points, from the first to the last."""

    name: str  # for the legend
    points: Sequence[tuple[float, float]]
    colour: int = 0  # 0 to 3, the last is grey
    dashed: bool = False


class Mark(NamedTuple):
    """A dot, perhaps with an error bar from `low` to `high`."""

    x: float
    y: float
    tip: str  # shown under the pointer
    colour: int = 0
    radius: float = 4.5
    low: float | None = None
    high: float | None = None


def line_chart(
    title: str,
    description: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] = (0.0, 1.0),
    y_range: tuple[float, float] = (0.0, 1.0),
) -> str:
    """Draw lines and dots between two axes; what lies outside is moved to the edge.

    Args:
        title: what is shown.
        description: what one sees in it, for those who hear the page.
        lines: drawn in this order, and named in the legend.
        marks: drawn over them.
        x_label: name and unit of the x axis.
        y_label: of the y axis.
        x_range: smallest and largest x to show.
        y_range: smallest and largest y to show.
    """
    parts, y = legend(
        [(line.name, f"line c{line.colour}" + " dashed" * line.dashed) for line in lines]
    )
    x_axis = Axis(*x_range, 44, WIDTH - 14)
    y_axis = Axis(*y_range, y + 272, y + 22)
    parts.append(words(4, y + 10, y_label, "small"))
    for tick in x_axis.ticks:
        at = x_axis(tick)
        parts.append(straight("grid", at, y_axis.begin, at, y_axis.end))
        parts.append(words(at, y_axis.begin + 17, number(tick), "small", "middle"))
    for tick in y_axis.ticks:
        at = y_axis(tick)
        parts.append(straight("grid", x_axis.begin, at, x_axis.end, at))
        parts.append(words(x_axis.begin - 6, at + 4, number(tick), "small", "end"))
    parts.append(words(x_axis.end, y_axis.begin + 36, x_label, "small", "end"))
    for line in lines:
        pixels = thin((x_axis(a), y_axis(b)) for a, b in line.points)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in pixels)
        kind = f"line c{line.colour}" + " dashed" * line.dashed
        parts.append(f'<polyline class="{kind}" points="{points}"/>')
    for mark in marks:
        x, y = x_axis(mark.x), y_axis(mark.y)
        if mark.low is not None and mark.high is not None:
            parts.append(straight("error", x, y_axis(mark.low), x, y_axis(mark.high)))
        parts.append(
            f'<circle class="mark c{mark.colour}" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{mark.radius:.1f}"><title>{escape(mark.tip)}</title></circle>'
        )
    return svg(title, description, y_axis.begin + 44, parts)


def steps(points: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The corners of a staircase that keeps each y until the next x.

    Example:
        >>> list(steps([(0, 5), (1, 7)]))
        [(0, 5), (1, 5), (1, 7)]
    """
    before = None
    for x, y in points:
        if before is not None:
            yield x, before
        yield x, y
        before = y


def thin(points: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Leave out points too near to the one before to be seen, but not the last one."""
    kept = point = None
    for point in points:
        if kept is None or math.dist(kept, point) >= CLOSEST:
            yield point
            kept = point
    if point is not None and point != kept:
        yield point


# ---------------------------------------------------------------- elements


def svg(title: str, description: str, height: float, parts: Iterable[str]) -> str:
    """A whole picture, to stand within a page.

    Args:
        title: its name.
        description: what there is to see in it.
        height: in the units of WIDTH.
        parts: its elements, the lowest first.
    """
    return "\n".join(
        [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            *parts,
            "</svg>",
        ]
    )


def legend(entries: Iterable[tuple[str, str]]) -> tuple[list[str], float]:
    """Names with samples of their colours.

    Args:
        entries: pairs of a name and the class of its sample.

    Returns:
        The elements, in as many rows as they need, and where the last row ends.
    """
    parts, x, y = [], 4.0, 16.0
    for name, kind in entries:
        width = 26 + CHARACTER * len(name)
        if x > 4 and x + width > WIDTH:
            x, y = 4.0, y + 20
        parts.append(straight(kind, x, y - 4, x + 20, y - 4))
        parts.append(words(x + 26, y, name))
        x += width + 18
    return parts, y + 12


def number(value: float, digits: int = 6) -> str:
    """A number of so many digits at most, with a true minus.

    Example:
        >>> number(-1.25), number(2 / 3, 3), number(float("inf"))
        ('−1.25', '0.667', '∞')
    """
    return f"{value + 0.0:.{digits}g}".replace("-", "−").replace("inf", "∞")  # never "-0"


def straight(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line of a class in `STYLE`."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def words(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text."""
    chosen = f' class="{kind}"' if kind else ""
    return f'<text{chosen} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
