"""What `bench.py cuda` found: Markdown tables, goals, and all numbers as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.cuda_sums import useful_operations
from benchmark.processes import say
from benchmark.tables import NOTHING, Spread, figures, ratio_of_rounds, three_digits
from benchmark.workload import window_lengths

if TYPE_CHECKING:
    pass

DTYPES = ("float32", "float16", "bfloat16")
KERNELS, START, MODELS = "kernels", "start", "models"  # what --work takes
ONE = "384"  # the work of latency: one window of so many tokens
OURS, READ, EAGER, SDPA, COMPILED = "minibert", "read", "eager", "sdpa", "compile"
LABELS = {
    OURS: "minibert",
    READ: "minibert, Model.read",
    EAGER: "torch eager",
    SDPA: "torch sdpa",
    COMPILED: "torch.compile",
}
PADDING = (EAGER, SDPA)  # kinds that are given padded batches
# The largest difference of logits from the truth at which a result still counts as right.
LIMITS = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
# The largest relative error of a single kernel.
KERNEL_LIMITS = {"float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}
LONGEST_REASON = 70  # characters of a failure in a cell

GOAL_PADDED = 1.5  # times torch's best padded throughput, in float16
GOAL_RATES = {"float16": 350.0, "float32": 35.0}  # TFLOP/s of the GEMMs
GOAL_START = 1.0  # seconds


@dataclass
class Series:
    """One side in one piece of work: its times, or why there are none."""

    shape: str
    work: str
    kind: str
    dtype: str
    batches: str = ""  # how they are made: "packed", "sorted by 32" ...
    seconds: list[float] = field(default_factory=list)  # one number a round
    difference: float | None = None  # the largest, of its logits from the truth
    failure: str = ""

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def good(self) -> bool:
        """Whether it was measured and did not fail."""
        return bool(self.seconds) and not self.failure


@dataclass
class Timed:
    """One single kernel, or what torch has in its place."""

    kind: str  # "gemm", "attention" or "rows"
    dtype: str
    what: str  # the row of the table
    side: str  # a tile, "minibert" or "torch"
    amount: float  # operations, or bytes, of a launch
    default: bool = False  # whether minibert takes this tile
    seconds: list[float] = field(default_factory=list)
    difference: float | None = None
    failure: str = ""

    @property
    def good(self) -> bool:
        """Whether it was measured and did not fail."""
        return bool(self.seconds) and not self.failure

    @property
    def rates(self) -> list[float]:
        """Operations or bytes a second, one number a round."""
        return [self.amount / seconds for seconds in self.seconds]

    @property
    def rate(self) -> float:
        """Their median."""
        return statistics.median(self.rates)


@dataclass
class Found:
    """All that was measured."""

    header: str = ""
    series: list[Series] = field(default_factory=list)
    kernels: list[Timed] = field(default_factory=list)
    ceilings: dict[str, list[float]] = field(default_factory=dict)  # bytes/s or operations/s
    starts: dict[str, list[float]] = field(default_factory=dict)  # dtype -> seconds
    notes: dict[str, None] = field(default_factory=dict)  # in order, each once
    wrong: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep something for the end, and say it now if it is new."""
        if text not in self.notes:
            self.notes[text] = None
            say(text)

    def of(self, shape: str, work: str, dtype: str) -> list[Series]:
        """The series of one case in one precision."""
        return [
            one for one in self.series if (one.shape, one.work, one.dtype) == (shape, work, dtype)
        ]

    def ceiling(self, name: str) -> float | None:
        """The median of a ceiling; None if it was not measured."""
        values = self.ceilings.get(name)
        return statistics.median(values) if values else None


# ---------------------------------------------------------------- cells


def reason_cell(reason: str) -> str:
    """A failure as a cell of a table.

    Example:
        >>> reason_cell("no | here")
        'no / here'
    """
    text = " ".join(reason.split()).replace("|", "/")
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."


def cell(one: Series | Timed | None, scale: float = 1.0) -> str:
    """Its seconds times a factor, median (min-max); or why there are none."""
    if one is None:
        return NOTHING
    if one.failure:
        return reason_cell(one.failure)
    return figures([scale * seconds for seconds in one.seconds])


def share(rate: float, ceiling: float | None) -> str:
    """A rate as a share of a ceiling.

    Example:
        >>> share(3e14, 6e14), share(3e14, None)
        ('50%', 'not measured')
    """
    return "not measured" if ceiling is None else f"{rate / ceiling:.0%}"


def ratio(peer: Series | None, ours: Series | None) -> Spread | None:
    """How many times as long the peer took, round by round, over the rounds that both saw."""
    if peer is None or ours is None or not (peer.good and ours.good):
        return None
    rounds = min(len(peer.seconds), len(ours.seconds))
    return ratio_of_rounds(peer.seconds[:rounds], ours.seconds[:rounds])


def ratio_cell(peer: Series | None, ours: Series | None) -> str:
    """The ratio, median (quartiles)."""
    return str(ratio(peer, ours) or NOTHING)


def pick(series: Sequence[Series], kind: str) -> Series | None:
    """The series of a kind: the fastest of those that saw most rounds, else one that failed."""
    mine = [one for one in series if one.kind == kind]
    good = [one for one in mine if one.good]
    if not good:
        return next(iter(mine), None)
    rounds = max(len(one.seconds) for one in good)
    return min((o for o in good if len(o.seconds) == rounds), key=lambda one: one.median)


# ---------------------------------------------------------------- tables

LATENCY_KINDS = (OURS, EAGER, SDPA, COMPILED)
LATENCY_HEAD = (
    *("precision", *(f"{LABELS[kind]}, us" for kind in LATENCY_KINDS)),
    *("eager / ours", "sdpa / ours", "compile / ours", "off by"),
)
THROUGHPUT_KINDS = (OURS, READ, EAGER, SDPA)
THROUGHPUT_HEAD = (
    *("precision", "side", "batches", "windows/s", "tokens/s", "TFLOP/s", "of the ceiling"),
    *("its time / ours", "off by"),
)
CEILING_HEAD = ("ceiling", "measured")
ROWS_HEAD = ("kernel", "precision", "us", "GB/s", "of the copy")
ATTENTION_HEAD = ("windows", "precision", "minibert TFLOP/s", "of the ceiling", "torch sdpa")
START_HEAD = ("precision", "process start to first logits, s")
GOAL_HEAD = ("goal", "where", "figure", "met")


def off(one: Series | None) -> str:
    """The largest difference of a series' logits."""
    return NOTHING if one is None or one.difference is None else f"{one.difference:.1g}"


def latency_rows(found: Found, shape: str, dtypes: Sequence[str]) -> list[list[str]]:
    """A row a precision: one window, all sides."""
    rows = []
    for dtype in dtypes:
        here = found.of(shape, ONE, dtype)
        ours, *peers = (pick(here, kind) for kind in LATENCY_KINDS)
        rows.append(
            [
                dtype,
                *(cell(one, 1e6) for one in (ours, *peers)),
                *(ratio_cell(peer, ours) for peer in peers),
                off(ours),
            ]
        )
    return rows


def throughput_rows(found: Found, shape: str, work: str, dtypes: Sequence[str]) -> list[list[str]]:
    """A row a precision and side: many windows, torch with its best batches."""
    lengths, useful = window_lengths(work), useful_operations(shape, work)
    rows = []
    for dtype in dtypes:
        here = found.of(shape, work, dtype)
        ours = pick(here, OURS)
        for kind in THROUGHPUT_KINDS:
            one = pick(here, kind)
            if one is None:
                continue
            row = [dtype, LABELS[kind], one.batches, *[NOTHING] * 5, off(one)]
            if one.failure:
                row[3] = reason_cell(one.failure)
            elif one.seconds:
                rate = useful / one.median
                row[3:7] = [
                    figures([len(lengths) / seconds for seconds in one.seconds]),
                    three_digits(sum(lengths) / one.median),
                    three_digits(rate / 1e12),
                    share(rate, found.ceiling(dtype)),
                ]
            if one is not ours:
                row[7] = ratio_cell(one, ours)
            rows.append(row)
    return rows


def batch_notes(found: Found, shape: str, work: str) -> Iterator[str]:
    """All ways to make torch's batches that were tried, a line a side and precision."""
    for dtype in DTYPES:
        for kind in PADDING:
            tried = [one for one in found.of(shape, work, dtype) if one.kind == kind]
            shown = [f"{one.batches} {cell(one, 1e3)}" for one in tried if one.seconds]
            if len(shown) > 1:
                yield f"{LABELS[kind]} {dtype}, ms: {'; '.join(shown)}."


def ceiling_rows(found: Found, dtypes: Sequence[str]) -> list[list[str]]:
    """The copy and the products."""

    def shown(name: str, unit: float) -> str:
        values = found.ceilings.get(name, [])
        return figures([value / unit for value in values]) if values else "not measured"

    rows = [["copy of the GPU's memory, GB/s read and written", shown("copy", 1e9)]]
    for dtype in dtypes:
        rows.append([f"torch's product 8192 x 8192 x 8192, {dtype}, TFLOP/s", shown(dtype, 1e12)])
    return rows


def kernels_of(found: Found, kind: str, dtype: str) -> dict[str, list[Timed]]:
    """The timed kernels of a table by row."""
    rows: dict[str, list[Timed]] = {}
    for one in found.kernels:
        if (one.kind, one.dtype) == (kind, dtype):
            rows.setdefault(one.what, []).append(one)
    return rows


def rate_cell(one: Timed | None, ceiling: float | None) -> str:
    """TFLOP/s and the share of the ceiling; '*' at the tile that minibert takes."""
    if one is None:
        return NOTHING
    if one.failure:
        return reason_cell(one.failure)
    if not one.seconds:
        return NOTHING
    percent = "" if ceiling is None else f", {one.rate / ceiling:.0%}"
    return f"{figures([rate / 1e12 for rate in one.rates])}{percent}{' *' * one.default}"


def gemm_table(found: Found, dtype: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row a product, a column a tile, and torch beside them."""
    rows = kernels_of(found, "gemm", dtype)
    sides = list(dict.fromkeys(one.side for timed in rows.values() for one in timed))
    table = []
    for what, timed in rows.items():
        by_side = {one.side: one for one in timed}
        cells = [rate_cell(by_side.get(side), found.ceiling(dtype)) for side in sides]
        table.append([what, *cells])
    return [dtype, *sides], table


def attention_rows(found: Found, dtypes: Sequence[str]) -> list[list[str]]:
    """A row a length and precision."""
    rows = []
    for dtype in dtypes:
        for what, timed in kernels_of(found, "attention", dtype).items():
            by_side = {one.side: one for one in timed}
            ours = by_side.get(OURS)
            part = share(ours.rate, found.ceiling(dtype)) if ours and ours.good else NOTHING
            cells = [rate_cell(by_side.get(side), None) for side in (OURS, "torch")]
            rows.append([what, dtype, cells[0], part, cells[1]])
    return rows


def row_rows(found: Found, dtypes: Sequence[str]) -> list[list[str]]:
    """A row a kernel of rows.py and precision."""
    rows = []
    for dtype in dtypes:
        for what, [one, *_] in kernels_of(found, "rows", dtype).items():
            row = [what, dtype, cell(one, 1e6), NOTHING, NOTHING]
            if one.good:
                row[3:] = three_digits(one.rate / 1e9), share(one.rate, found.ceiling("copy"))
            rows.append(row)
    return rows


# ---------------------------------------------------------------- goals


def met(reached: bool) -> str:
    """In words."""
    return "met" if reached else "missed"


def goal_rows(found: Found, shapes: Sequence[str], work: str) -> list[list[str]]:
    """A row a goal and place: the figure, and whether it is met."""
    rows = []
    missing = "not measured"
    for shape in shapes:
        for dtype in ("float32", "float16"):
            here = found.of(shape, ONE, dtype)
            if not here:
                continue
            ours, peer = pick(here, OURS), pick(here, COMPILED)
            goal, where = "latency at or below torch.compile's", f"{shape}, {dtype}"
            if reached := ratio(peer, ours):
                rows.append([goal, where, f"{reached} times as fast", met(reached.median >= 1)])
            else:
                rows.append([goal, where, missing, NOTHING])
    for shape in shapes:
        here = found.of(shape, work, "float16")
        if not here:
            continue
        ours = pick(here, OURS)
        peers = [one for one in (pick(here, kind) for kind in PADDING) if one and one.good]
        best = min(peers, key=lambda one: one.median, default=None)
        goal, where = (
            f"packed throughput {GOAL_PADDED} times torch's best padded",
            f"{shape}, float16",
        )
        if best and (reached := ratio(best, ours)):
            shown = f"{reached} times {LABELS[best.kind]}, {best.batches}"
            rows.append([goal, where, shown, met(reached.median >= GOAL_PADDED)])
        else:
            rows.append([goal, where, missing, NOTHING])
    for dtype, least in GOAL_RATES.items():
        for what, timed in kernels_of(found, "gemm", dtype).items():
            rows.append(gemm_goal(what, dtype, least, [o for o in timed if o.side != "torch"]))
    for dtype, seconds in found.starts.items():
        if seconds:
            shown = f"{figures(seconds)} s"
            reached_goal = met(statistics.median(seconds) < GOAL_START)
            rows.append(["start in less than a second", dtype, shown, reached_goal])
    return rows


def gemm_goal(what: str, dtype: str, least: float, tiles: Sequence[Timed]) -> list[str]:
    """The goal of one product: judged by the tile that minibert takes, beside the best one."""
    goal, where = f"GEMM at least {least:.0f} TFLOP/s", f"{what}, {dtype}"
    good = [one for one in tiles if one.good]
    default = next((one for one in good if one.default), None)
    if default is None:
        return [goal, where, "not measured", NOTHING]
    best = max(good, key=lambda one: one.rate)
    shown = f"{three_digits(default.rate / 1e12)} with {default.side}"
    if best is not default:
        shown += f" (best: {three_digits(best.rate / 1e12)} with {best.side})"
    return [goal, where, shown, met(default.rate >= least * 1e12)]


def write_json(file: Path, found: Found, settings: Mapping[str, Any]) -> None:
    """Write every number; called after each part, so that a run that is cut off leaves some."""
    numbers = {
        **asdict(found),
        "notes": list(found.notes),
        "settings": dict(settings),
    }
    file.write_text(json.dumps(numbers, indent=1, default=str) + "\n", encoding="utf-8")
