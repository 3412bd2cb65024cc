"""Measure minibert next to transformers, the same way and in the same interleaved run.

    python tools/bench.py startup --peer-python /path/to/env/bin/python
    python tools/bench.py startup --install

Results go to stdout as Markdown, progress to stderr.  The peer is a Python that has
transformers 5.2.0 and torch; without one only minibert is measured, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import IO, Any, cast

ROOT = Path(__file__).resolve().parents[1]
PEER_REQUIREMENTS = "torch==2.13.0 transformers==5.2.0"
INSTALLED = ("pyproject.toml", "README.md", "LICENSE", "minibert", "kernels")  # what pip needs
MB = 1e6
NOTHING = "-"

QUESTIONS = ("Who designed the Eiffel Tower?", "When did the tower open?")
CONTEXT = (
    "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris. It is named "
    "after the engineer Gustave Eiffel, whose company built it from 1887 to 1889, but it was "
    "designed by Maurice Koechlin and Emile Nouguier, two senior engineers of the company, with "
    "the architect Stephen Sauvestre. It was the centrepiece of the 1889 World's Fair and opened "
    "on 31 March 1889. Although some of France's leading artists and intellectuals criticised it "
    "at first, it has since become a symbol of the country: 5.9 million people went up in 2022. "
    "The tower is 330 metres tall, about as tall as a building of 81 storeys."
)


class BenchError(Exception):
    """A measurement that could not be made; the message is one line."""


# ---------------------------------------------------------------- this machine


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name, from Linux's /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def load() -> str:
    """How busy the machine was in the last minutes, ours included: others spoil timings."""
    return f", load average {os.getloadavg()[1]:.1f}" if hasattr(os, "getloadavg") else ""


def environment() -> dict[str, str]:
    """The environment of every measured process: all cores for each library, no network, no GPU."""
    threads = ("OMP", "MKL", "OPENBLAS", "NUMBA", "RAYON", "VECLIB")
    counts = {f"{name}_NUM_THREADS": str(count_cores()) for name in threads}
    counts["VECLIB_MAXIMUM_THREADS"] = counts.pop("VECLIB_NUM_THREADS")
    return {**os.environ, **counts, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


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


def header(sides: Sequence[Side]) -> str:
    """One line: date, machine, Python, versions."""
    cores = count_cores()
    parts = [f"{date.today()}", f"{cpu_model()}, {cores} core{'s' * (cores != 1)}{load()}"]
    for side in sides:
        versions = [f"{name} {version}" for name, version in side.versions.items()]
        parts.append(", ".join(versions).replace("python", "Python", 1))
    return "; ".join(parts)


# ---------------------------------------------------------------- processes


@dataclass(frozen=True)
class Finished:
    """What a process printed, and when, in seconds since before it was started."""

    output: str
    first_line: float
    end: float


def run_process(
    command: Sequence[str | Path], name: str, *, env: dict[str, str] | None = None
) -> Finished:
    """Run a process to its end, in a folder that holds no code of ours.

    Args:
        command: the program and its arguments.
        name: whose process it is, for errors.
        env: its environment; None: the one of every measured process.

    Raises:
        BenchError: it cannot be started, or fails; with the last line of its stderr.
    """
    with tempfile.TemporaryFile() as errors:  # a file: a full pipe would block the process
        begin = time.perf_counter()
        try:
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=tempfile.gettempdir(),
                env=environment() if env is None else env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        except OSError as error:
            raise BenchError(f"{name}: cannot run {command[0]}: {error.strerror}") from None
        with process:
            stdout = cast(IO[bytes], process.stdout)  # it is a pipe
            output = stdout.readline()
            first_line = time.perf_counter() - begin
            output += stdout.read()
        end = time.perf_counter() - begin
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode("utf-8", "replace").strip().splitlines()
            last = lines[-1] if lines else "nothing on stderr"
            raise BenchError(f"{name}: failed with status {process.returncode}: {last}")
    return Finished(output.decode("utf-8", "replace"), first_line, end)


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class Row:
    """One line of a table: what was measured, in which unit, and the numbers of each side."""

    label: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float] = ()


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


def ratio(row: Row) -> str:
    """The peer's median over ours."""
    if not row.ours or not row.theirs or not statistics.median(row.ours):
        return NOTHING
    return f"{three_digits(statistics.median(row.theirs) / statistics.median(row.ours))}x"


def markdown(rows: Sequence[Row], ours: str, theirs: str) -> str:
    """The rows as a Markdown table."""
    lines = [f"| | unit | {ours} | {theirs} | ratio |", "|:--|:--|--:|--:|--:|"]
    for row in rows:
        cells = (row.label, row.unit, figures(row.ours), figures(row.theirs), ratio(row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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


def peer_model(model: str | None, folder: Path) -> str:
    """A folder with our weights that transformers can read.

    Args:
        model: as given by --model; None for the embedded model.
        folder: where a float32 copy may be written.

    Returns:
        The model's own folder, or `folder` if its weights are int8.

    Raises:
        BenchError: there is no such model.
    """
    from safetensors.numpy import save_file

    from minibert.checkpoint import open_checkpoint
    from minibert.errors import MinibertError
    from minibert.hub import find_model

    try:
        files = find_model(model)
        checkpoint = open_checkpoint(files.weights)
        names = checkpoint.names()
        scaled = {name for name in names if f"{name}.scale" in checkpoint}
        if not scaled:
            return str(files.folder.resolve())
        tensors = {}
        for name in names:
            if name in scaled:
                tensors[name] = checkpoint.read(name) * checkpoint.read(f"{name}.scale")[:, None]
            elif name.removesuffix(".scale") not in scaled:
                tensors[name] = checkpoint.read(name).copy()
    except MinibertError as error:
        raise BenchError(f"the peer's copy of the model: {error}") from None
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for path in files.folder.iterdir():
        if path.suffix in (".json", ".txt") and not path.name.startswith("model."):
            shutil.copy(path, folder)
    return str(folder)


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
            peer = peer_side(peer_python, peer_model(args.model, folder / "float32-copy"))
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
    print(header(sides) + "\n")
    theirs = f"{peer.name}, torch {peer.versions['torch']}" if peer else "transformers: no peer"
    print(markdown(startup_rows(ours, peer, sizes), ours.name, theirs) + "\n")
    for note in startup_notes(ours, peer, args):
        print(f"- {note}")


# ---------------------------------------------------------------- the command line


def existing_folder(text: str) -> str:
    """An argparse type: a folder that is there, as a full path, for processes run elsewhere."""
    path = Path(text).expanduser().resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return str(path)


def program(text: str) -> str:
    """An argparse type: a program that is there, as a full path; links stay, as venvs need them."""
    found = shutil.which(os.path.expanduser(text))
    if found is None:
        raise argparse.ArgumentTypeError(f"there is no program {text!r}")
    return os.path.abspath(found)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_startup(commands: Any) -> None:
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 if a measurement could not be made or the answers differ; wrong usage exits with 2.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_startup(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except BenchError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
