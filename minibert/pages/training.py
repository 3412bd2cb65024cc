"""The page of a training run: where it is, and its curves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minibert.pages.charts import Line, Mark, line_chart, number
from minibert.pages.page import figure, page, table

Points = list[tuple[float, float]]

SMOOTHED = 20  # lines of the log of which a smooth line is the mean
# Of a gradient's lengths so many percent are shown; the few long ones would press down the others.
SHOWN_LENGTHS = 99


def render_training(
    records: Iterable[Mapping[str, Any]], about: Mapping[str, str], steps: int
) -> str:
    """Write the page.

    Args:
        records: the lines of a run's log.
        about: what there is to say of the run: name -> text.
        steps: of the whole run.

    Returns:
        A whole HTML page.
    """
    lines = list(records)
    taken = [record for record in lines if record["kind"] == "step"]
    measured = [record for record in lines if record["kind"] == "measurement"]
    body = [*table("The run", [(name, [text]) for name, text in about.items()])]
    body += ["<main>", '<div class="charts">', *step_figures(taken, steps)]
    body += [*score_figure(measured, steps), "</div>", *scores(measured), "</main>"]
    return page("Training", body)


def step_figures(taken: Sequence[Mapping[str, Any]], steps: int) -> Iterator[str]:
    """The curves of what each line of the log says of steps."""
    losses = points_of(taken, "loss")
    if losses:
        smooth = smoothed(losses)
        note = f"In the end {smooth[-1][1]:.3f}, as a mean of the last {SMOOTHED} lines of the log."
        yield chart(
            "Loss",
            note,
            [Line("each line of the log", losses, 3), Line("mean", smooth)],
            steps,
            "mean loss of a window",
        )
    rates = points_of(taken, "learning_rate")
    if rates:
        note = f"At most {number(max(y for _, y in rates), 3)}."
        yield chart("Learning rate", note, [Line("learning rate", rates)], steps, "learning rate")
    lengths = points_of(taken, "gradient_norm")
    if lengths:
        longest = max(y for _, y in lengths)
        skipped = taken[-1]["skipped"]
        note = f"The longest was {number(longest, 3)}; {skipped} steps were skipped."
        top = float(np.percentile([y for _, y in lengths], SHOWN_LENGTHS))
        yield chart(
            "Gradient",
            note,
            [Line("length", lengths, 3), Line("mean", smoothed(lengths))],
            steps,
            "length of the gradient",
            top,
        )


def score_figure(measured: Sequence[Mapping[str, Any]], steps: int) -> Iterator[str]:
    """Exact match and F1 of all measurements."""
    if not measured:
        return
    best = max(measured, key=lambda record: record["f1"])
    lines, marks = [], []
    series = (("exact", "exact match"), ("f1", "F1"), ("best_f1", "F1, best threshold"))
    for colour, (key, name) in enumerate(series):
        points = points_of(measured, key)
        lines.append(Line(name, points, colour, dashed=key == "best_f1"))
        if key != "best_f1":
            marks += [Mark(x, y, f"step {x:.0f}: {name} {y:.2f}", colour, 3) for x, y in points]
    note = f"The best F1 is {best['f1']:.2f}, after step {best['step']}."
    yield chart("Held-out questions", note, lines, steps, "percent", 100.0, marks)


def scores(measured: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table of the last measurements."""
    keys = ("exact", "f1", "HasAns_f1", "NoAns_f1", "best_f1")
    rows = [
        (f"{record['step']:,}", [f"{record[key]:.2f}" if key in record else "" for key in keys])
        for record in measured[-20:]
    ]
    head = ["after step", "exact match", "F1", "F1, answerable", "F1, others", "F1, best threshold"]
    yield from table("The last measurements, in percent", rows, head)


def chart(
    title: str,
    note: str,
    lines: Sequence[Line],
    steps: int,
    y_label: str,
    top: float | None = None,
    marks: Sequence[Mark] = (),
) -> str:
    """A figure with steps from left to right, from 0 up."""
    highest = max(y for line in lines for _, y in line.points) if top is None else top
    drawn = line_chart(
        title,
        note,
        lines,
        marks,
        x_label="step",
        y_label=y_label,
        x_range=(0.0, float(max(steps, 1))),
        y_range=(0.0, highest or 1.0),
    )
    return figure(title, drawn, note)


def points_of(records: Iterable[Mapping[str, Any]], key: str) -> Points:
    """Step and value of each record that has one."""
    return [(record["step"], record[key]) for record in records if record.get(key) is not None]


def smoothed(points: Points) -> Points:
    """Each y as the mean of the last ones."""
    sums = np.cumsum([0.0] + [y for _, y in points])
    ends = np.arange(1, len(points) + 1)
    begins = np.maximum(0, ends - SMOOTHED)
    means = (sums[ends] - sums[begins]) / (ends - begins)
    return [(x, float(mean)) for (x, _), mean in zip(points, means, strict=True)]
