"""The roofline: a picture of how fast each multiplication is, and what holds it back.

To the right, operations per byte of data; upwards, operations per second; both logarithmic.
A slope is a bandwidth, a flat roof the peak of a dtype; a point under the roof is a multiplication.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any

from benchmark.gemm import intensity

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 50, 60  # margins
COLOURS = {
    "float32": "#3b82f6",
    "bfloat16": "#e08a00",
    "int8": "#12a150",
}  # seen on black and white

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #333 }
.title { font-size: 16px; font-weight: 600 }
.grid { stroke: #ddd; stroke-width: 1 }
.roof { fill: none; stroke-width: 2 }
.slope { stroke: #888; stroke-width: 1.5; stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd }
  .grid { stroke: #444 }
}
"""


class Axis:
    """A logarithmic axis.

    Args:
        low: smallest value to show.
        high: largest.
        begin: where the axis begins, in pixels.
        end: where it ends.

    Example:
        >>> axis = Axis(1, 100, 0, 200)
        >>> axis(10), axis.ticks
        (100.0, [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0])
    """

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        self.low, self.high = low, high
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        """Pixels of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    @property
    def ticks(self) -> list[float]:
        """1, 2 and 5 times the powers of ten."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        round_values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        return [value for value in round_values if self.low <= value <= self.high]


def roofline(measured: dict[str, Any], title: str) -> str:
    """Draw what `measure_gemm` found.

    Args:
        measured: rates and bandwidths, not empty.
        title: names the machine.

    Returns:
        An SVG file that follows the reader's choice of a light or a dark page.
    """
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            *draw(measured, title),
            "</svg>\n",
        ]
    )


def draw(measured: dict[str, Any], title: str) -> Iterator[str]:
    """The elements of the picture, the lowest first."""
    rates, bandwidths = measured["rates"], measured["bandwidths"]
    points = [
        (dtype, shape, intensity(dtype, shape), rate)
        for dtype, pairs in rates.items()
        for shape, rate in pairs
        if shape is not None
    ]
    peaks = {dtype: pairs[0][1] for dtype, pairs in rates.items()}
    ridges = [max(peaks.values()) / bandwidth for bandwidth in bandwidths.values()]
    widest = max([*ridges, *(point[2] for point in points)])
    lowest = min([*peaks.values(), *(point[3] for point in points)])
    x = Axis(1, 1.2 * widest, LEFT, WIDTH - RIGHT)
    y = Axis(lowest / 2, 1.2 * max(peaks.values()), HEIGHT - BOTTOM, TOP)

    yield text(LEFT, 24, title, "title")
    for tick in x.ticks:
        yield line("grid", x(tick), y.begin, x(tick), y.end)
        yield text(x(tick), y.begin + 20, f"{tick:g}", anchor="middle")
    for tick in y.ticks:
        yield line("grid", x.begin, y(tick), x.end, y(tick))
        yield text(x.begin - 8, y(tick) + 4, f"{tick / 1e9:g}", anchor="end")
    yield text((x.begin + x.end) / 2, HEIGHT - 14, "operations per byte", anchor="middle")
    yield text(8, TOP - 8, "G operations/s")

    top = max(peaks.values())
    for level, bandwidth in bandwidths.items():
        left = max(x.low, y.low / bandwidth)
        yield line("slope", x(left), y(left * bandwidth), x(top / bandwidth), y(top))
        label = f"{level} {bandwidth / 1e9:.0f} GB/s"
        yield text(x(left) + 14, y(left * bandwidth) - 4, label)
    best = max(bandwidths.values())
    for dtype, peak in peaks.items():
        colour = COLOURS[dtype]
        corner = max(peak / best, x.low)
        yield line("roof", x(corner), y(peak), x.end, y(peak), f' stroke="{colour}"')
        yield text(x.end + 8, y(peak) + 4, f"{dtype} {peak / 1e9:.0f}")
    for dtype, shape, operations, rate in points:
        label = f"{dtype} {' x '.join(map(str, shape))}: {rate / 1e9:.0f} G/s"
        yield (
            f'<circle cx="{x(operations):.1f}" cy="{y(rate):.1f}" r="4" fill="{COLOURS[dtype]}" '
            f'fill-opacity="0.75"><title>{escape(label)}</title></circle>'
        )


def line(kind: str, x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    """A straight line of a class in `STYLE`."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{more}/>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text."""
    chosen = f' class="{kind}"' if kind else ""
    return f'<text{chosen} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
