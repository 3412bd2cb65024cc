"""The numbers behind the curves of a report: intervals, thresholds, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minibert.pages.charts import steps

Floats: TypeAlias = "NDArray[np.float64]"
Bools: TypeAlias = "NDArray[np.bool_]"

CALIBRATION_BINS = 10
HUGE = 1e100  # larger odds are as good as infinite: no axis can show them beside the others


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share; it also holds for few things, and for none or all of them.

    Example:
        >>> [round(edge, 3) for edge in wilson(1.0, 10)]
        [0.722, 1.0]

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    z = 1.959964  # 95 % of a normal distribution lie so many standard deviations around its mean
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(max(share * (1 - share), 0.0) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def precision_recall(odds: Floats, unanswerable: Bools) -> tuple[Floats, Floats]:
    """How well high odds find unanswerable questions; there is at least one.

    Returns:
        Recall and precision of taking all odds from some value up, for each value, the highest
        first. Questions with equal odds are taken together.
    """
    order = np.argsort(-odds, kind="stable")
    found = np.cumsum(unanswerable[order])
    ends = np.flatnonzero(np.append(odds[order][1:] != odds[order][:-1], True))
    return found[ends] / found[-1], found[ends] / (ends + 1)


def average_precision(recall: Floats, precision: Floats) -> float:
    """The area under the steps of a precision-recall curve."""
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def threshold_curve(odds: Floats, answered: Floats, silent: Floats) -> tuple[Floats, Floats]:
    """The score of all questions for every threshold, as a staircase.

    Args:
        odds: null odds of each question.
        answered: score of its best answer.
        silent: score of "no answer" to it.

    Returns:
        Thresholds that rise from -inf, and for each the score, in percent, up to the next.
    """
    thresholds, inverse = np.unique(np.append(-np.inf, odds), return_inverse=True)
    gains = np.bincount(inverse[1:], answered - silent, len(thresholds))
    return thresholds, 100 * (silent.sum() + np.cumsum(gains)) / len(odds)


def common_range(odds: Floats) -> tuple[float, float]:
    """From the 1st to the 99th percentile of the odds, widened if that is about one point."""
    usual = odds[np.abs(odds) < HUGE]
    low, high = np.percentile(usual, (1, 99)).tolist() if len(usual) else (0.0, 0.0)
    wider = 0.0 if high - low > abs(low) / 1e6 + 1e-6 else max(1.0, abs(low) / 10)
    return low - wider, high + wider


def cut_steps(xs: Floats, ys: Floats, low: float, high: float) -> list[tuple[float, float]]:
    """The corners of the staircase between two x, of which the first is not before it begins."""
    first, last = np.searchsorted(xs, (low, high), "right") - 1
    inner = slice(first + 1, last + 1)
    points = [(low, ys[first]), *zip(xs[inner], ys[inner], strict=True), (high, ys[last])]
    return list(steps((float(x), float(y)) for x, y in points))


class Bin(NamedTuple):
    """Predictions of about equal probability."""

    size: int
    probability: float  # mean
    exact: float  # share of exact matches


def calibration_bins(probabilities: Floats, exact: Floats) -> list[Bin]:
    """Bins of equal width over the probabilities from 0 to 1; empty ones are left out."""
    edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    bin_of_each = np.searchsorted(edges, probabilities, "right")
    inside = [bin_of_each == which for which in range(CALIBRATION_BINS)]
    return [
        Bin(int(chosen.sum()), float(probabilities[chosen].mean()), float(exact[chosen].mean()))
        for chosen in inside
        if chosen.any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance of probability and share of exact matches, over all predictions."""
    total = sum(each.size for each in bins)
    return sum(each.size * abs(each.probability - each.exact) for each in bins) / total
