"""What was measured, and how it is kept: as JSON while a run goes on, as Markdown at its end."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.machine import header
from benchmark.processes import BenchError, say
from benchmark.workload import work_label


def thread_label(threads: int) -> str:
    """Their number in words."""
    return f"{threads} thread{'s' * (threads != 1)}"


@dataclass(frozen=True)
class Case:
    """What all sides are asked to do."""

    work: str
    shape: str = ""  # of the model; "" for the embedded one
    threads: int = 0  # 0 on a GPU

    def __str__(self) -> str:
        threads = thread_label(self.threads) if self.threads else ""
        return ", ".join(filter(None, [self.shape, work_label(self.work), threads]))


@dataclass(eq=False)
class Series:
    """The numbers of one side in one case, round by round."""

    case: Case
    side: Any  # who was measured: has a `library`, a `dtype` and a `label`
    size: int = 0  # windows of its padded batches; 0: it pads nothing
    numbers: dict[str, list[float]] = field(default_factory=dict)  # by name, one a round
    facts: dict[str, Any] = field(default_factory=dict)  # what is the same in every round

    def add(self, numbers: dict[str, float]) -> None:
        """Keep the numbers of a round."""
        for name, value in numbers.items():
            self.numbers.setdefault(name, []).append(value)

    def get(self, name: str) -> list[float]:
        """The numbers of a name; none if it was never measured."""
        return self.numbers.get(name, [])

    def middle(self, name: str) -> float:
        """The median of some numbers."""
        return statistics.median(self.numbers[name])

    @property
    def seconds(self) -> list[float]:
        """How long it took, one number a round."""
        return self.get("seconds")

    @property
    def median(self) -> float:
        """Seconds."""
        return self.middle("seconds")

    @property
    def label(self) -> str:
        """The side, and how many windows its batches have if it pads them."""
        return f"{self.side.label}{self.suffix}"

    @property
    def suffix(self) -> str:
        """The size of its batches in words."""
        return f", by {self.size}" if self.size else ""


def best(series: Iterable[Series]) -> Series | None:
    """The fastest."""
    return min(series, key=lambda one: one.median, default=None)


def cases_of(series: Sequence[Series]) -> list[Case]:
    """The cases in the order of shapes and work, one thread beside more."""
    found = list(dict.fromkeys(one.case for one in series))
    shapes, works = ([getattr(case, name) for case in found] for name in ("shape", "work"))
    return sorted(
        found, key=lambda case: (shapes.index(case.shape), works.index(case.work), case.threads)
    )


@dataclass
class Results:
    """All that was measured, and what the reader has to know."""

    versions: Sequence[Mapping[str, str]] = ()  # of the packages of each environment
    file: Path | None = None  # where everything is written whenever something is new
    gpu: str = ""  # the one that was measured
    series: list[Series] = field(default_factory=list)
    gemm: dict[str, dict[str, Any]] = field(default_factory=dict)  # by threads in words, or "GPU"
    facts: dict[str, Any] = field(default_factory=dict)  # other numbers, that JSON has
    notes: dict[str, None] = field(default_factory=dict)  # in order, each once
    wrong: list[str] = field(default_factory=list)

    @property
    def header(self) -> str:
        """One line: machine, date, versions."""
        return "; ".join([*filter(None, [self.gpu]), header(self.versions)])

    def note(self, text: str) -> None:
        """Keep something for the end, and say it now if it is new."""
        if text not in self.notes:
            self.notes[text] = None
            say(text)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Note that something could not be measured, and go on with the rest."""
        try:
            yield
        except BenchError as error:
            self.note(str(error))

    def save(self) -> None:
        """Write every number."""
        if self.file is None:
            return
        series = [
            {
                **vars(one.case),
                "library": one.side.library,
                "dtype": one.side.dtype,
                "batch": one.size or "-",
                **one.numbers,
                **one.facts,
            }
            for one in self.series
        ]
        found = {
            "header": self.header,
            "series": series,
            "gemm": self.gemm,
            **self.facts,
            "notes": list(self.notes),
            "wrong": self.wrong,
        }
        part = self.file.with_name(self.file.name + ".part")
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.file)

    @contextlib.contextmanager
    def reported(self, paragraphs: Callable[[], Iterable[str]]) -> Iterator[None]:
        """Print what was measured when the block ends, also if that is too early.

        Args:
            paragraphs: the tables and what is said about them.
        """
        try:
            yield
        except KeyboardInterrupt:
            self.note("The run was interrupted; this is what was measured until then.")
            raise
        finally:
            self.series = [one for one in self.series if one.numbers]
            self.save()
            if self.series or self.gemm:
                print("\n\n".join([self.header, *paragraphs()]) + "\n")
                for note in [*self.notes, *(f"WRONG: {text}" for text in self.wrong)]:
                    print(f"- {note}")
                self.save()  # with what the report added
