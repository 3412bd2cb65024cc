"""What `bench.py cpu` found, as Markdown tables and as JSON, beside what we want to reach."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark import gemm
from benchmark.machine import count_cores, header, versions
from benchmark.peers import DTYPES, PEERS, Peer
from benchmark.processes import say
from benchmark.tables import NOTHING, figures, markdown, ratio_of_rounds, three_digits
from benchmark.workload import MIXED, window_lengths

PACKAGES = (
    "minibert",
    "numpy",
    "numba",
    *("openvino", "nncf", "onnxruntime", "ctranslate2", "torch"),
)
# How it is measured: cpu.py does so, and the notes say so.
PADDED = (1, 8, 32)  # sizes of the peers' batches of mixed windows; 1 pads nothing
TRIAL = 2  # rounds that all see; after them only those go on that could still be the best,
HOPELESS = 1.25  # which is not if the best of the same precision was so many times as fast
WAITED = 0.03  # share of a visit: if threads waited longer for cores, it is made again

# How many times as fast as the best peer of the same precision: with one thread, with all.
GOALS: dict[tuple[str, str], dict[str, tuple[float, float]]] = {
    ("6/384/12", "384"): {"float32": (1.15, 1.15), "bfloat16": (1.25, 1.25), "int8": (1.3, 1.35)},
    ("8/512/8", "384"): {"float32": (1.12, 1.12), "bfloat16": (1.2, 1.2), "int8": (1.25, 1.25)},
    ("12/768/12", "384"): {"float32": (1.0, 1.05), "bfloat16": (1.05, 1.12), "int8": (1.08, 1.15)},
    ("6/384/12", "128"): {"float32": (1.15, 1.15), "bfloat16": (1.25, 1.25), "int8": (1.35, 1.35)},
    ("2/128/2", "384"): dict.fromkeys(DTYPES, (1.0, 1.0)),
    ("2/128/2", "128"): dict.fromkeys(DTYPES, (1.0, 1.0)),
    ("6/384/12", MIXED): {"float32": (1.3, 1.3), "bfloat16": (1.4, 1.4), "int8": (1.5, 1.5)},
}


@dataclass(frozen=True)
class Case:
    """What all libraries are asked to do."""

    shape: str
    work: str
    threads: int

    def __str__(self) -> str:
        return f"{self.shape}, {work_label(self.work)}, {thread_label(self.threads)}"


@dataclass
class Series:
    """The times of one library in one case."""

    case: Case
    peer: Peer
    size: int  # of padded batches
    difference: float  # the largest, of its logits from those of the definition
    seconds: list[float] = field(default_factory=list)  # one number a round
    cores: list[float] = field(default_factory=list)
    repeated: int = 0  # visits, because the machine was busy

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def label(self) -> str:
        """The library, and how many windows its batches had where there was a choice."""
        return f"{self.peer.label}{self.suffix}"

    @property
    def suffix(self) -> str:
        """The size of its batches in words."""
        chosen = self.case.work.startswith(MIXED) and not self.peer.packed
        return f", by {self.size}" if chosen else ""


@dataclass
class Results:
    """All that was measured, and what the reader has to know."""

    series: list[Series] = field(default_factory=list)
    starts: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    gemm: dict[int, dict[str, Any]] = field(default_factory=dict)  # by threads
    notes: dict[str, None] = field(default_factory=dict)  # in order, each once
    wrong: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep something for the end, and say it now if it is new."""
        if text not in self.notes:
            self.notes[text] = None
            say(text)


def work_label(work: str) -> str:
    """A piece of work in words."""
    if work.startswith(MIXED):
        return f"{len(window_lengths(work))} mixed windows"
    return f"{work} tokens"


def thread_label(threads: int) -> str:
    """Their number in words."""
    return f"{threads} thread{'s' * (threads != 1)}"


# ---------------------------------------------------------------- tables


def best(series: Sequence[Series]) -> Series | None:
    """The fastest."""
    return min(series, key=lambda one: one.median, default=None)


def cases_of(series: Sequence[Series]) -> list[Case]:
    """The cases in the order of shapes and work, one thread beside more."""
    found = list(dict.fromkeys(one.case for one in series))
    shapes, works = ([getattr(case, name) for case in found] for name in ("shape", "work"))
    return sorted(
        found, key=lambda case: (shapes.index(case.shape), works.index(case.work), case.threads)
    )


def goal_of(case: Case, dtype: str) -> float | None:
    """How many times as fast as the best peer we want to be."""
    goals = GOALS.get((case.shape, case.work), {}).get(dtype)
    return goals and goals[case.threads > 1]


def ratio_rows(series: Sequence[Series], dtypes: Sequence[str]) -> list[list[str]]:
    """One row a case and precision: ours beside the best peer."""
    rows = []
    for case in cases_of(series):
        for dtype in dtypes:
            here = [one for one in series if one.case == case and one.peer.dtype == dtype]
            rounds = max((len(one.seconds) for one in here), default=0)
            here = [one for one in here if len(one.seconds) == rounds]  # saw every round
            ours = best([one for one in here if one.peer.packed])
            peer = best([one for one in here if not one.peer.packed])
            if ours is None and peer is None:
                continue
            row = [case.shape, work_label(case.work), dtype, peer.label if peer else NOTHING]
            row.append(str(case.threads))
            row += [three_digits(one.median * 1e3) if one else NOTHING for one in (peer, ours)]
            row += [NOTHING, NOTHING, NOTHING]
            goal = goal_of(case, dtype)
            if goal is not None:
                row[-2] = f"{goal:.2f}"
            if ours and peer:
                ratio = ratio_of_rounds(peer.seconds, ours.seconds)
                row[-3] = str(ratio)
                if goal is not None:
                    row[-1] = "yes" if ratio.median >= goal else "no"
            rows.append(row)
    return rows


RATIO_HEAD = (
    *("shape", "work", "precision", "best peer", "threads"),
    *("its ms", "minibert ms", "ratio", "goal", "reached"),
)


def time_table(series: Sequence[Series]) -> str:
    """Everything that was timed, in milliseconds: a row a case, a column a library."""
    peers = [peer for peer in PEERS if any(one.peer is peer for one in series)]
    rows = []
    for case in cases_of(series):
        row = [case.shape, work_label(case.work), str(case.threads)]
        for peer in peers:
            one = best([one for one in series if one.case == case and one.peer is peer])
            row.append(f"{three_digits(one.median * 1e3)}{one.suffix}" if one else NOTHING)
        rows.append(row)
    head = ("shape", "work", "threads", *(peer.label for peer in peers))
    return markdown(head, rows, left=2)


def agreement_table(series: Sequence[Series]) -> str:
    """The largest difference of each library's logits, and where it was."""
    rows = []
    for peer in PEERS:
        own = [one for one in series if one.peer is peer]
        if own:
            worst = max(own, key=lambda one: one.difference)
            where = f"{worst.case.shape}, {work_label(worst.case.work)}"
            rows.append((peer.label, where, f"{worst.difference:.2g}"))
    return markdown(("", "in", "largest difference"), rows, left=2)


def start_table(starts: dict[str, dict[str, list[float]]]) -> str:
    """Cold starts and memory."""
    columns = {
        "process": "process start to first answer, ms",
        "load": "of it import and load, ms",
        "second": "second answer, ms",
        "rss": "resident, MB",
        "hwm": "at most, MB",
    }
    rows = [
        (peer.label, *(figures(starts[peer.label].get(name, ())) for name in columns))
        for peer in PEERS
        if peer.label in starts
    ]
    return markdown(("", *columns.values()), rows, left=1)


def noise_notes(series: Sequence[Series]) -> Iterator[str]:
    """What disturbed the times, if anything did."""
    visits = sum(len(one.seconds) + one.repeated for one in series)
    if repeated := sum(one.repeated for one in series):
        yield (
            f"{repeated} of {visits} visits were made again because other processes held the cores "
            f"for more than {WAITED:.0%} of the time."
        )
    for one in series:
        if (cores := statistics.median(one.cores)) > one.case.threads + 0.2:
            yield f"{one.label} kept {cores:.1f} cores busy in {one.case}."


def print_results(results: Results, dtypes: Sequence[str], rounds: int) -> None:
    """Print everything as Markdown."""
    print(header([versions(PACKAGES)]) + "\n")
    if results.series:
        print(markdown(RATIO_HEAD, ratio_rows(results.series, dtypes), left=4) + "\n")
        print(
            f"Medians of {rounds} rounds in random order ({TRIAL} for peers that were over "
            f"{HOPELESS} times as slow as the best by then); ratio: the best peer of the same "
            "precision over minibert, round by round, median (quartiles). Peers get mixed windows "
            f"sorted by length, padded in batches of {' or '.join(map(str, PADDED))}.\n"
        )
        print(f"All times, ms:\n\n{time_table(results.series)}\n")
        print(f"Logits beside minibert's NumPy definition:\n\n{agreement_table(results.series)}\n")
    if results.starts:
        print(
            "Cold start: a fresh process loads the embedded model with "
            f"{thread_label(count_cores())} and answers; medians (min-max):\n\n"
            f"{start_table(results.starts)}\n"
        )
    for threads, measured in results.gemm.items():
        print(f"GEMM, {thread_label(threads)}:\n\n{gemm.gemm_shares(measured)}\n")
    for note in [*results.notes, *noise_notes(results.series), *answer_notes(results.answers)]:
        print(f"- {note}")


def answer_notes(answers: dict[str, list[str]]) -> Iterator[str]:
    """Whether the cold starts gave the same answers."""
    for found in dict.fromkeys(map(tuple, answers.values())):
        labels = [label for label, texts in answers.items() if tuple(texts) == found]
        who = "all" if len(labels) == len(answers) else ", ".join(labels)
        yield f"Answers of {who}: {' and '.join(map(repr, found))}."


def write_json(file: Path, results: Results) -> None:
    """Write every number."""
    series = [
        {
            **vars(one.case),
            "library": one.peer.library,
            "dtype": one.peer.dtype,
            "batch": NOTHING if one.peer.packed else one.size,
            "seconds": one.seconds,
            "cores": one.cores,
            "difference": one.difference,
        }
        for one in results.series
    ]
    found = {
        "header": header([versions(PACKAGES)]),
        "series": series,
        "starts": results.starts,
        "gemm": results.gemm,
        "notes": list(results.notes),
    }
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
