"""The roofline: a picture of how fast each multiplication is, and what holds it back.

To the right, operations per byte of data; upwards, operations per second; both logarithmic.
A slope is a bandwidth, a flat roof the peak of a dtype; a point under the roof is a multiplication.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

from benchmark.gemm import Rates, intensity
from minibert.pages.charts import straight, words

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 50, 60  # margins
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #333 }
.grid { stroke: #ddd }
.slope { stroke: #888; stroke-width: 1.5; stroke-dasharray: 5 4 }
.float32 { stroke: #3b82f6; fill: #3b82f6 }
.bfloat16 { stroke: #e08a00; fill: #e08a00 }
.int8 { stroke: #12a150; fill: #12a150 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd }
  .grid { stroke: #444 }
}
"""


class Axis(NamedTuple):
    """A logarithmic axis.

    Example:
        >>> axis = Axis(1, 100, 0, 200)
        >>> axis(10), axis.ticks
        (100.0, [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0])
    """

    low: float  # smallest value to show
    high: float  # largest
    begin: float  # where the axis begins, in pixels
    end: float  # where it ends

    def __call__(self, value: float) -> float:
        """Pixels of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    @property
    def ticks(self) -> list[float]:
        """1, 2 and 5 times the powers of ten."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        return [value for value in values if self.low <= value <= self.high]


def roofline(measured: dict[str, Any], title: str) -> str:
    """Draw rates and bandwidths.

    Args:
        measured: rates as `gemm_rates` gives them, and bytes per second of each level of memory;
            at least one peak and one multiplication.
        title: names the machine.

    Returns:
        An SVG file that follows the reader's choice of a light or a dark page.
    """
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            *draw(measured["rates"], measured["bandwidths"], title),
            "</svg>\n",
        ]
    )


def draw(rates: Rates, bandwidths: dict[str, float], title: str) -> Iterator[str]:
    """The elements of the picture, the lowest first."""
    peaks = {dtype: pairs[0][1] for dtype, pairs in rates.items() if pairs[0][1]}
    top, fastest = max(peaks.values()), max(bandwidths.values())
    points = [
        (dtype, size, intensity(dtype, size), rate)
        for dtype, pairs in rates.items()
        for size, rate in pairs[1:]
        if rate
    ]
    widest = max(top / min(bandwidths.values()), *(point[2] for point in points))
    lowest = min(*peaks.values(), *(point[3] for point in points))
    x = Axis(1, 1.2 * widest, LEFT, WIDTH - RIGHT)
    y = Axis(lowest / 2, 1.2 * top, HEIGHT - BOTTOM, TOP)
    yield words(LEFT, 24, title)
    for tick in x.ticks:
        yield straight("grid", x(tick), y.begin, x(tick), y.end)
        yield words(x(tick), y.begin + 20, f"{tick:g}", anchor="middle")
    for tick in y.ticks:
        yield straight("grid", x.begin, y(tick), x.end, y(tick))
        yield words(x.begin - 8, y(tick) + 4, f"{tick / 1e9:g}", anchor="end")
    yield words((x.begin + x.end) / 2, HEIGHT - 14, "operations per byte", anchor="middle")
    yield words(8, TOP - 8, "G operations/s")
    for level, bandwidth in bandwidths.items():
        left = max(x.low, y.low / bandwidth)
        yield straight("slope", x(left), y(left * bandwidth), x(top / bandwidth), y(top))
        label = f"{level} {bandwidth / 1e9:.0f} GB/s"
        yield words(x(left) + 14, y(left * bandwidth) - 4, label)
    for dtype, peak in peaks.items():
        yield straight(dtype, x(max(peak / fastest, x.low)), y(peak), x.end, y(peak))
        yield words(x.end + 8, y(peak) + 4, f"{dtype} {peak / 1e9:.0f}")
    for dtype, size, operations, rate in points:
        label = f"{dtype} {' x '.join(map(str, size))}: {rate / 1e9:.0f} G/s"
        yield (
            f'<circle class="{dtype}" cx="{x(operations):.1f}" cy="{y(rate):.1f}" r="4">'
            f"<title>{escape(label)}</title></circle>"
        )
