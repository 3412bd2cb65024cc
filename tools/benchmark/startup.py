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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.machine import count_cores
from benchmark.options import add_option, existing_folder, positive, program
from benchmark.processes import BenchError, run_process, say
from benchmark.results import Case, Results, Series
from benchmark.tables import NOTHING, figures, markdown, three_digits
from benchmark.workload import CONTEXT, QUESTIONS, float32_model

ROOT = Path(__file__).resolve().parents[2]
PEER_REQUIREMENTS = "torch==2.13.0 transformers==5.2.0"
INSTALLED = ("pyproject.toml", "README.md", "LICENSE", "minibert", "kernels")  # what pip needs
EMBEDDED = "minibert's embedded model, 5 and 6 bits in its file"
MB = 1e6
# What is measured: its name, its row in the table, and the unit.
ROWS = (
    ("megabytes", "site-packages of a fresh environment, without pip", "MB"),
    ("install", "`pip install` into it", "s"),
    ("import", "`import LIBRARY`", "s"),
    ("pipeline", "... and `from LIBRARY import pipeline`", "s"),
    ("process", "process start -> first answer printed", "s"),
    ("load", "load the model, inside", "s"),
    ("first", "first answer, inside", "s"),
    ("second", "second answer, inside", "s"),
    ("rss", "resident memory after the first answer (VmRSS)", "MB"),
    ("hwm", "most resident memory until then (VmHWM)", "MB"),
    ("command", "`python -m minibert answer ...`, start to end", "s"),
)
# What each side runs; LIBRARY stands for its name.
CODE = """
import sys, time
def seen():
    return [name for name in ("numpy", "numba", "torch") if name in sys.modules]
times = [time.perf_counter()]
def lap():
    times.append(time.perf_counter())
    return times[-1] - times[-2]
import LIBRARY
seconds, loaded = {"import": lap()}, [seen()]
from LIBRARY import pipeline
seconds["pipeline"] = seconds["import"] + lap()
loaded.append(seen())
import json
model, options, packages, (first, second), context = json.loads(sys.argv[1])
lap()
qa = pipeline("question-answering", model=model, **options)
seconds["load"] = lap()
answers = [qa(question=first, context=context)["answer"]]
seconds["first"] = lap()
print(answers[0].encode("unicode_escape").decode(), flush=True)
memory = {}
try:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(("VmRSS:", "VmHWM:")):
                memory[line[2:5].lower()] = int(line.split()[1]) * 1024 / 1e6
except OSError:
    pass
lap()
answers.append(qa(question=second, context=context)["answer"])
seconds["second"] = lap()
loaded.append(seen())
import importlib.metadata, platform
versions = {"python": platform.python_version()}
versions |= {name: importlib.metadata.version(name) for name in packages}
print(json.dumps([seconds | memory, answers, str(qa.device), loaded, versions]))
"""
SITE_PACKAGES = """
import sysconfig
for path in {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}:
    print(path)
"""


@dataclass
class Side:
    """One library, the Python that has it, and what was seen of it."""

    library: str
    python: Path | str
    model: str | None  # a folder; None: the library's own
    options: dict[str, Any]  # more arguments of `pipeline`
    packages: tuple[str, ...]  # whose versions are shown
    dtype: str = "float32"
    versions: dict[str, str] = field(default_factory=dict)
    answers: set[tuple[str, ...]] = field(default_factory=set)
    loaded: Sequence[list[str]] = ()  # by `import`, with `pipeline`, after the answers
    device: str = ""  # the one that it says it used

    @property
    def label(self) -> str:
        """The library, and torch where it is used, with their versions."""
        names = [name for name in (self.library, "torch") if name in self.versions]
        return ", ".join(f"{name} {self.versions[name]}" for name in names)


# ---------------------------------------------------------------- fresh environments


def make_environment(folder: Path, name: str, requirements: Sequence[str | Path]) -> dict[str, Any]:
    """Make a virtual environment, and install packages in it with pip.

    Returns:
        python: its interpreter; megabytes: what its site-packages grew by; install: seconds that
        pip took, with downloads where pip had nothing in its cache.

    Raises:
        BenchError: pip failed.
    """
    say(f"{name}: making a fresh environment: pip install {' '.join(map(str, requirements))}")
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run_process([sys.executable, "-m", "venv", folder], name, env=env)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    places = run_process([python, "-c", SITE_PACKAGES], name, env=env).output.splitlines()

    def megabytes() -> float:
        files = (path for place in places for path in Path(place).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files) / MB

    before = megabytes()  # pip itself
    command = [python, "-m", "pip", "install", "--quiet", *requirements]
    seconds = run_process(command, name, env=env).end
    return {"python": python, "megabytes": megabytes() - before, "install": seconds}


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


# ---------------------------------------------------------------- measuring


def measure_once(side: Side) -> dict[str, float]:
    """Import the library and answer two questions, in a fresh process; then our command line."""
    inputs = json.dumps([side.model, side.options, side.packages, QUESTIONS, CONTEXT])
    code = CODE.replace("LIBRARY", side.library)
    done = run_process([side.python, "-c", code, inputs], side.library)
    values, answers, side.device, side.loaded, side.versions = json.loads(
        done.output.splitlines()[-1]
    )
    side.answers.add(tuple(answers))
    values["process"] = done.first_line
    if side.library == "minibert":
        options = ["--device", side.options["device"]]
        options += ["--model", side.model] if side.model else []
        command = [side.python, "-m", "minibert", "answer", *options, QUESTIONS[0], CONTEXT]
        values["command"] = run_process(command, "minibert's command line").end
    return values


def different_answers(ours: Side, peer: Side) -> str:
    """How the answers differ, between the sides or between runs; '' if they do not."""
    if len(ours.answers | peer.answers) == 1:
        return ""
    return f"minibert answers {sorted(ours.answers)}, transformers {sorted(peer.answers)}"


# ---------------------------------------------------------------- the report


def startup_table(ours: Series, peer: Series | None) -> str:
    """What was measured, as Markdown; fresh environments only if there are any."""
    rows = []
    for name, label, unit in ROWS:
        own, theirs = ours.get(name), peer.get(name) if peer else []
        if not own and name in ("megabytes", "install"):
            continue
        ratio = NOTHING
        if own and theirs and statistics.median(own):
            ratio = f"{three_digits(statistics.median(theirs) / statistics.median(own))}x"
        rows.append((label, unit, figures(own), figures(theirs), ratio))
    heads = ours.label, peer.label if peer else "transformers: no peer"
    return markdown(("", "unit", *heads, "ratio"), rows, left=2)


def startup_notes(ours: Series, peer: Series | None, model: str | None) -> Iterator[str]:
    """What a reader has to know beside the table."""
    measured = [ours, peer] if peer else [ours]
    yield (
        f"Medians of {len(ours.get('process'))} interleaved runs (min-max), each in a fresh "
        "process, after one that is not counted; ratio: transformers over minibert. "
        f"{count_cores()} threads for both, no GPU, HF_HUB_OFFLINE=1, float32 arithmetic."
    )
    weights = f"Weights: {model or EMBEDDED}"
    if peer:
        file = Path(peer.side.model) / "model.safetensors"
        size = f", {file.stat().st_size / MB:.0f} MB" if file.is_file() else ""
        weights += f"; transformers reads them from {file.parent.name}/{size}"
    yield f"{weights}."
    first = (f"{figures(one.get('warm-up'))} s ({one.side.library})" for one in measured)
    yield (
        f"The uncounted first process took {' and '.join(first)}: files may not be in memory yet, "
        "nor kernels compiled."
    )
    for side in (one.side for one in measured):
        bare, pipeline, answered = (", ".join(names) or "none" for names in side.loaded)
        yield (
            f"Of numpy, numba and torch, `import {side.library}` loads {bare}; with `pipeline` it "
            f"is {pipeline}; after the answers {answered}. Its device: {side.device}."
        )
    answers = " and ".join(f"{answer!r}" for answer in min(ours.side.answers))
    if peer is None:
        yield f"transformers: not measured (no --peer-python). Answers: {answers}."
    elif not different_answers(ours.side, peer.side):
        yield f"Answers, the same on both: {answers}."


def paragraphs(series: Sequence[Series], model: str | None, results: Results) -> Iterator[str]:
    """The report."""
    ours, peer, *_ = *series, None
    yield startup_table(ours, peer)
    for note in startup_notes(ours, peer, model):
        results.note(note)


# ---------------------------------------------------------------- the command


def make_sides(args: argparse.Namespace, folder: Path) -> list[Series]:
    """Both sides, or minibert alone, in fresh environments if these are asked for."""
    pythons, sizes = [sys.executable, args.peer_python], []
    if args.install:
        requirements = args.peer_requirements.split()
        sizes = [
            make_environment(folder / "minibert", "minibert", [copy_checkout(folder / "checkout")]),
            make_environment(folder / "peer", "transformers", requirements),
        ]
        if args.peer_python is None:
            pythons = [size["python"] for size in sizes]
    packages = ("minibert", "numpy", "numba", "tokenizers", "safetensors")
    sides = [Side("minibert", pythons[0], args.model, {"device": args.device}, packages)]
    if pythons[1]:
        model = float32_model(args.model, folder / "float32-copy")
        # In float32, as minibert computes, whatever the config says.
        options = {"device": -1, "dtype": "float32"}
        packages = ("transformers", "torch", "numpy", "tokenizers")
        sides.append(Side("transformers", pythons[1], model, options, packages))
    series = [Series(Case("startup", threads=count_cores()), side) for side in sides]
    for one, size in zip(series, sizes, strict=False):
        one.add({name: size[name] for name in ("megabytes", "install")})
    return series


def command_startup(args: argparse.Namespace) -> None:
    """Run `bench.py startup`.

    Raises:
        BenchError: something could not be measured, or the answers differ.
    """
    with tempfile.TemporaryDirectory(prefix="minibert-bench-") as name:
        series = make_sides(args, Path(name))
        say("warm-up")
        for one in series:
            one.add({"warm-up": measure_once(one.side)["process"]})
        results = Results([one.side.versions for one in series], args.json, series=series)
        with results.reported(partial(paragraphs, series, args.model, results)):
            for number in range(1, args.runs + 1):
                say(f"run {number} of {args.runs}")
                for one in series[:: -1 if number % 2 else 1]:
                    one.add(measure_once(one.side))
                results.save()
    ours, *peers = (one.side for one in series)
    if peers and (difference := different_answers(ours, peers[0])):
        raise BenchError(f"the answers differ: {difference}")
    if len(ours.answers) > 1:
        raise BenchError(f"minibert's answers differ between runs: {sorted(ours.answers)}")


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
    add_option(parser, "--runs", 7, type=positive, metavar="N", help="runs that count")
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
    add_option(parser, "--json")
