"""`bench.py startup`: size, import, first answer and memory, minibert beside transformers.

Every measurement is a fresh process; both libraries run the very same lines.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.machine import count_cores, header
from benchmark.options import existing_folder, positive, program
from benchmark.processes import BenchError, run_process, say
from benchmark.tables import NOTHING, figures, markdown, three_digits
from benchmark.workload import CONTEXT, QUESTIONS, float32_model

ROOT = Path(__file__).resolve().parents[2]
PEER_REQUIREMENTS = "torch==2.13.0 transformers==5.2.0"
INSTALLED = ("pyproject.toml", "README.md", "LICENSE", "minibert", "kernels")  # what pip needs
MB = 1e6

VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


def read_versions(side: Side) -> dict[str, str]:
    """The versions of Python and of the packages that matter, in one environment.

    Raises:
        BenchError: the library itself is not installed there.
    """
    output = run_process([side.python, "-c", VERSIONS, *side.packages], side.name).output
    versions: dict[str, str | None] = json.loads(output)
    missing = [name for name in side.needs if versions[name] is None]
    if missing:
        raise BenchError(f"{side.name}: {side.python} has no {' and no '.join(missing)}")
    return {name: version for name, version in versions.items() if version is not None}


@dataclass(frozen=True)
class Row:
    """One line of a table: what was measured, in which unit, and the numbers of each side."""

    label: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float] = ()


def ratio(row: Row) -> str:
    """The peer's median over ours."""
    if not row.ours or not row.theirs or not statistics.median(row.ours):
        return NOTHING
    return f"{three_digits(statistics.median(row.theirs) / statistics.median(row.ours))}x"


def row_table(rows: Sequence[Row], ours: str, theirs: str) -> str:
    """The rows as a Markdown table."""
    cells = [
        (row.label, row.unit, figures(row.ours), figures(row.theirs), ratio(row)) for row in rows
    ]
    return markdown(("", "unit", ours, theirs, "ratio"), cells, left=2)


# ---------------------------------------------------------------- the two sides


@dataclass
class Side:
    """One library, the Python that has it, and what was measured of it."""

    library: str
    python: Path | str
    model: str | None  # a folder; None: the library's own
    options: dict[str, Any]  # more arguments of `pipeline`
    packages: tuple[str, ...]  # whose versions are shown
    needs: tuple[str, ...]  # which of them must be there
    versions: dict[str, str] = field(default_factory=dict)
    measured: dict[str, list[float]] = field(default_factory=dict)
    answers: set[tuple[str, ...]] = field(default_factory=set)
    imported: dict[str, list[str]] = field(default_factory=dict)
    device: str = ""  # the one that it says it used

    @property
    def name(self) -> str:
        """The library, with its version once that is known."""
        return " ".join([self.library, self.versions.get(self.library, "")]).strip()

    def add(self, values: dict[str, float]) -> None:
        """Keep the numbers of one run."""
        for key, value in values.items():
            self.measured.setdefault(key, []).append(value)

    def get(self, key: str) -> list[float]:
        """The numbers of all runs."""
        return self.measured.get(key, [])


def our_side(python: Path | str, model: str | None, device: str) -> Side:
    """Describe minibert."""
    return Side(
        library="minibert",
        python=python,
        model=model,
        options={"device": device},
        packages=("minibert", "numpy", "numba", "tokenizers", "safetensors"),
        needs=("minibert",),
    )


def peer_side(python: Path | str, model: str) -> Side:
    """Describe transformers: in float32, as minibert computes, whatever the config says."""
    return Side(
        library="transformers",
        python=python,
        model=model,
        options={"device": -1, "dtype": "float32"},
        packages=("transformers", "torch", "numpy", "tokenizers"),
        needs=("transformers", "torch"),
    )


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- fresh environments


SITE_PACKAGES = """
import sysconfig
for path in {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}:
    print(path)
"""


def make_environment(folder: Path, name: str, requirements: Sequence[str | Path]) -> dict[str, Any]:
    """Make a virtual environment, and install packages in it with pip.

    Returns:
        python: its interpreter; megabytes: what its site-packages grew by; seconds: how long pip
        took, with downloads where pip had nothing in its cache.

    Raises:
        BenchError: pip failed.
    """
    say(f"{name}: making a fresh environment: pip install {' '.join(map(str, requirements))}")
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run_process([sys.executable, "-m", "venv", folder], name, env=env)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    places = run_process([python, "-c", SITE_PACKAGES], name, env=env).output.splitlines()

    def megabytes() -> float:
        return sum(folder_size(Path(place)) for place in places) / MB

    before = megabytes()  # pip itself
    command = [python, "-m", "pip", "install", "--quiet", *requirements]
    seconds = run_process(command, name, env=env).end
    return {"python": python, "megabytes": megabytes() - before, "seconds": seconds}


def copy_checkout(folder: Path) -> Path:
    """Copy what pip needs of this checkout: a build inside it would leave files behind."""
    folder.mkdir()
    for name in INSTALLED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder / name)
    return folder


# ---------------------------------------------------------------- startup

# LIBRARY stands for minibert or transformers: both run the very same lines.
IMPORT = """
import sys, time
begin = time.perf_counter()
import LIBRARY
bare = time.perf_counter() - begin
loaded = [name for name in ("numpy", "numba", "torch") if name in sys.modules]
from LIBRARY import pipeline
whole = time.perf_counter() - begin
later = [name for name in ("numpy", "numba", "torch") if name in sys.modules]
import json
print(json.dumps({"bare": bare, "whole": whole, "loaded": loaded, "later": later}))
"""

ANSWER = """
import json, sys, time
from LIBRARY import pipeline
model, options, (first, second), context = json.loads(sys.argv[1])
times = [time.perf_counter()]
qa = pipeline("question-answering", model=model, **options)
times.append(time.perf_counter())
answers = [qa(question=first, context=context)["answer"]]
times.append(time.perf_counter())
print(answers[0].encode("unicode_escape").decode(), flush=True)
memory = {}
try:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(("VmRSS:", "VmHWM:")):
                memory[line[2:5].lower()] = int(line.split()[1]) * 1024 / 1e6
except OSError:
    pass
times.append(time.perf_counter())
answers.append(qa(question=second, context=context)["answer"])
times.append(time.perf_counter())
seconds = {"load": times[1] - times[0], "first": times[2] - times[1], "second": times[4] - times[3]}
loaded = [name for name in ("numpy", "numba", "torch") if name in sys.modules]
found = {"values": seconds | memory, "answers": answers, "device": str(qa.device), "loaded": loaded}
print(json.dumps(found))
"""


def measure_import(side: Side) -> dict[str, float]:
    """Import the library in a fresh process, timed inside."""
    found = json.loads(run_python(side, IMPORT))
    side.imported |= {"bare": found["loaded"], "pipeline": found["later"]}
    return {"import": found["bare"], "import pipeline": found["whole"]}


def run_python(side: Side, code: str) -> str:
    """Run code in a fresh process of one side."""
    command = [side.python, "-c", code.replace("LIBRARY", side.library)]
    return run_process(command, side.name).output


def measure_answer(side: Side) -> dict[str, float]:
    """Answer two questions in a fresh process; the first answer is timed from outside too."""
    inputs = json.dumps([side.model, side.options, QUESTIONS, CONTEXT])
    command = [side.python, "-c", ANSWER.replace("LIBRARY", side.library), inputs]
    done = run_process(command, side.name)
    found = json.loads(done.output.splitlines()[-1])
    side.answers.add(tuple(found["answers"]))
    side.device = found["device"]
    side.imported["answer"] = found["loaded"]
    return {"process": done.first_line, **found["values"]}


def measure_command(side: Side) -> dict[str, float]:
    """Run `python -m minibert answer`, from start to end."""
    options = ["--device", side.options["device"]]
    options += ["--model", side.model] if side.model else []
    command = [side.python, "-m", "minibert", "answer", *options, QUESTIONS[0], CONTEXT]
    return {"command": run_process(command, "minibert's command line").end}


Measurement = tuple[Side, Callable[[Side], dict[str, float]]]


def measure_interleaved(measurements: list[Measurement], runs: int) -> None:
    """Run all measurements in turn, `runs` times, after a round that is not counted.

    Every second round goes backwards, so that none is always the one that follows a heavy one.
    """
    for run in range(runs + 1):
        say(f"run {run} of {runs}" if run else "warm-up")
        for side, measure in measurements[:: -1 if run % 2 else 1]:
            values = measure(side)
            if run:
                side.add(values)
            elif "process" in values:
                side.add({"warm-up": values["process"]})


def startup_rows(ours: Side, peer: Side | None, sizes: list[dict[str, Any]]) -> list[Row]:
    """The table's rows; `sizes`, of minibert and the peer, is empty without --install."""

    def row(label: str, unit: str, key: str) -> Row:
        return Row(label, unit, ours.get(key), peer.get(key) if peer else ())

    installed = [
        Row(label, unit, *([size[key]] for size in sizes))
        for label, unit, key in (
            ("site-packages of a fresh environment, without pip", "MB", "megabytes"),
            ("`pip install` into it", "s", "seconds"),
        )
        if sizes
    ]
    return [
        *installed,
        row("`import LIBRARY`", "s", "import"),
        row("... and `from LIBRARY import pipeline`", "s", "import pipeline"),
        row("process start -> first answer printed", "s", "process"),
        row("load the model, inside", "s", "load"),
        row("first answer, inside", "s", "first"),
        row("second answer, inside", "s", "second"),
        row("resident memory after the first answer (VmRSS)", "MB", "rss"),
        row("most resident memory until then (VmHWM)", "MB", "hwm"),
        row("`python -m minibert answer ...`, start to end", "s", "command"),
    ]


def startup_notes(ours: Side, peer: Side | None, args: argparse.Namespace) -> list[str]:
    """What a reader has to know beside the table."""
    sides = [ours, peer] if peer else [ours]
    notes = [
        f"Medians of {args.runs} interleaved runs (min-max), each in a fresh process, after one "
        f"that is not counted; ratio: transformers over minibert. {count_cores()} threads for "
        "both, no GPU, HF_HUB_OFFLINE=1, float32 arithmetic.",
        "Weights: "
        + (f"{args.model}" if args.model else "minibert's embedded model, int8 in its file")
        + (f"; transformers reads {model_note(peer)}." if peer else "."),
        "The uncounted first process took "
        + " and ".join(f"{figures(side.get('warm-up'))} s ({side.library})" for side in sides)
        + ": files may not be in memory yet, nor kernels compiled.",
    ]
    for side in sides:
        bare, pipeline, answered = (
            ", ".join(side.imported[key]) or "none" for key in ("bare", "pipeline", "answer")
        )
        notes.append(
            f"Of numpy, numba and torch, `import {side.library}` loads {bare}; with `pipeline` it "
            f"is {pipeline}; after the answers {answered}. Its device: {side.device}."
        )
    answers = " and ".join(f"{answer!r}" for answer in min(ours.answers))
    if peer is None:
        notes.append(f"transformers: not measured (no --peer-python). Answers: {answers}.")
    elif not different_answers(ours, peer):
        notes.append(f"Answers, the same on both: {answers}.")
    return notes


def model_note(peer: Side) -> str:
    """What the peer loads, in words."""
    weights = Path(str(peer.model)) / "model.safetensors"
    size = f", {weights.stat().st_size / MB:.0f} MB" if weights.is_file() else ""
    return f"them from {Path(str(peer.model)).name}/{size}"


def different_answers(ours: Side, peer: Side) -> str:
    """How the answers differ, between the sides or between runs; '' if they do not."""
    if len(ours.answers | peer.answers) == 1:
        return ""
    return f"minibert answers {sorted(ours.answers)}, transformers {sorted(peer.answers)}"


def command_startup(args: argparse.Namespace) -> None:
    """Run `bench.py startup`."""
    with tempfile.TemporaryDirectory(prefix="minibert-bench-") as name:
        folder = Path(name)
        python: Path | str = sys.executable
        peer_python: Path | str | None = args.peer_python
        sizes: list[dict[str, Any]] = []
        if args.install:
            requirements = args.peer_requirements.split()
            checkout = copy_checkout(folder / "checkout")
            sizes = [
                make_environment(folder / "minibert", "minibert", [checkout]),
                make_environment(folder / "peer", "transformers", requirements),
            ]
            if peer_python is None:
                python, peer_python = (size["python"] for size in sizes)
        ours = our_side(python, args.model, args.device)
        sides = [ours]
        peer = None
        if peer_python:
            peer = peer_side(peer_python, float32_model(args.model, folder / "float32-copy"))
            sides.append(peer)
        for side in sides:
            side.versions = read_versions(side)
        print_startup(ours, peer, sizes, args)
    if peer and (difference := different_answers(ours, peer)):
        raise BenchError(f"the answers differ: {difference}")
    if len(ours.answers) > 1:
        raise BenchError(f"minibert's answers differ between runs: {sorted(ours.answers)}")


def print_startup(
    ours: Side, peer: Side | None, sizes: list[dict[str, Any]], args: argparse.Namespace
) -> None:
    """Measure, and print the table and its notes."""
    sides = [ours, peer] if peer else [ours]
    measurements: list[Measurement] = [(side, measure_import) for side in sides]
    measurements += [(side, measure_answer) for side in sides]
    measurements.append((ours, measure_command))
    measure_interleaved(measurements, args.runs)
    print(header([side.versions for side in sides]) + "\n")
    theirs = f"{peer.name}, torch {peer.versions['torch']}" if peer else "transformers: no peer"
    print(row_table(startup_rows(ours, peer, sizes), ours.name, theirs) + "\n")
    for note in startup_notes(ours, peer, args):
        print(f"- {note}")


def add_command(commands: Any) -> None:
    """Describe `startup` and its options."""
    parser = commands.add_parser("startup", help="size, import, first answer, memory")
    parser.set_defaults(run=command_startup)
    parser.add_argument(
        "--peer-python",
        type=program,
        metavar="PATH",
        help="a Python with transformers and torch to measure beside minibert",
    )
    parser.add_argument(
        "--model",
        type=existing_folder,
        metavar="FOLDER",
        help="the model for both (default: the embedded one)",
    )
    parser.add_argument(
        "--device", default="auto", help="minibert's device (default: auto; no GPU is visible)"
    )
    parser.add_argument(
        "--runs", type=positive, default=7, metavar="N", help="runs that count (default: 7)"
    )
    parser.add_argument(
        "--install",
        action="store_true",
        help="also install both in fresh environments and report their sizes; "
        "without --peer-python these environments are the ones measured",
    )
    parser.add_argument(
        "--peer-requirements",
        default=PEER_REQUIREMENTS,
        metavar="TEXT",
        help=f"what --install gives the peer (default: {PEER_REQUIREMENTS!r})",
    )
