"""Numbers for people: medians, ratios, Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NOTHING = "-"


def figures(values: Sequence[float]) -> str:
    """Median, and the range if there are several values.

    Example:
        >>> figures([0.5, 0.25, 2.0]), figures([88.5]), figures([])
        ('0.500 (0.250-2.00)', '88.5', '-')
    """
    if not values:
        return NOTHING
    median = three_digits(statistics.median(values))
    if len(values) == 1:
        return median
    return f"{median} ({three_digits(min(values))}-{three_digits(max(values))})"


def three_digits(value: float) -> str:
    """A number with three significant digits, and none cut off before the point.

    Example:
        >>> [three_digits(x) for x in (0.00012345, 0.5, 12.345, 1234.5, 0.0)]
        ['0.00012', '0.500', '12.3', '1234', '0.00000']
    """
    for limit, digits in ((100, 0), (10, 1), (1, 2), (0.1, 3), (0.01, 4)):
        if value >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.5f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose first `left` columns hold words, and the others numbers.

    Example:
        >>> print(markdown(("", "ms"), [("minibert", "1.2")], left=1))
        | | ms |
        |:--|--:|
        | minibert | 1.2 |
    """
    lines = [f"| {' | '.join(head)} |".replace("|  |", "| |", 1)]
    lines.append("|" + ":--|" * left + "--:|" * (len(head) - left))
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        """Two decimals, as ratios need them."""
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def quartiles(values: Sequence[float]) -> Spread:
    """The median and the quartiles of one value or more.

    Example:
        >>> str(quartiles([1.0, 2.0, 3.0])), str(quartiles([2.0]))
        ('2.00 (1.50-2.50)', '2.00 (2.00-2.00)')
    """
    if len(values) == 1:
        return Spread(*[values[0]] * 3)
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def ratio_of_rounds(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times as long the peer took, round by round: each ratio is of neighbours in time.

    Args:
        theirs: the peer's seconds, one number a round.
        ours: ours, in the same rounds.

    Example:
        >>> str(ratio_of_rounds([2.0, 3.0, 2.2], [2.0, 2.0, 2.0]))
        '1.10 (1.05-1.30)'
    """
    return quartiles([a / b for a, b in zip(theirs, ours, strict=True)])
