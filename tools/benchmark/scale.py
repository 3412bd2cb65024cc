"""`bench.py scale`: tables, on the engines that are installed, and what a billion rows need.

Each engine answers the same table of Parquet into another, in processes of its own, in each round.
Rows are texts as long as SQuAD has them.  A job's seconds are those of all of it, reading and
writing too, in an engine that has started.  The second table is of one thread: rows of several
lengths, in seconds of processor time, which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.machine import count_cores, header, versions
from benchmark.options import add_names, add_option, listed, positive, program
from benchmark.processes import BenchError, run_process, say, worker_environment
from benchmark.tables import NOTHING, figures, markdown, three_digits

MB = 1e6
PARTS = ("engines", "core")
DTYPES = ("float32", "int8")
BILLION = 1e9
HOUR = 3600.0
PRICE = 0.04  # dollars for an hour of a core
PAGE = 2_500  # characters


@dataclass(frozen=True)
class Engine:
    """One row of the table."""

    label: str
    job: str  # its name in scale_side
    needs: tuple[str, ...]  # packages, its own first
    workers: int  # processes with a thread each; 0: one process, a thread a core


ENGINES = {
    "pandas": Engine("pandas", "pandas", ("pandas", "pyarrow"), 0),
    "polars": Engine("polars", "polars", ("polars", "pyarrow"), 0),
    "pyarrow": Engine("pyarrow", "pyarrow", ("pyarrow",), 0),
    "dask": Engine("Dask, threads", "dask", ("dask", "pandas", "pyarrow"), 0),
    "datasets": Engine("datasets, num_proc=2", "datasets", ("datasets",), 2),
    "spark": Engine("Spark, local[2]", "spark", ("pyspark", "pandas", "pyarrow"), 2),
    "ray1": Engine("Ray, 1 actor", "ray", ("ray", "pandas", "pyarrow"), 1),
    "ray2": Engine("Ray, 2 actors", "ray", ("ray", "pandas", "pyarrow"), 2),
}


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    parser = commands.add_parser(
        "scale", help="tables: rows a second on each engine, and of a core", description=__doc__
    )
    parser.set_defaults(run=command_scale)
    add_names(parser, "--parts", PARTS, "what is measured")
    add_names(parser, "--engines", tuple(ENGINES), "of these, those that are installed")
    add_option(
        parser,
        "--python",
        [sys.executable],
        type=listed(program),
        metavar="PYTHON,...",
        help="environments to look for engines in, each with minibert",
    )
    add_option(parser, "--rows", 2000, type=positive, metavar="N", help="of the table")
    add_option(parser, "--rounds", 3)


def command_scale(args: argparse.Namespace) -> None:
    """Run `bench.py scale`."""
    print(header([versions(("minibert-qa", "numba"))]))
    if "engines" in args.parts:
        found, missing = found_engines(args.engines, args.python)
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
        for number in range(args.rounds):
            for name, (python, _) in found.items():
                say(f"round {number + 1}: {ENGINES[name].label}")
                seen[name].append(side(name, args.rows, python))
        print("\n" + engines_table(seen, {name: version for name, (_, version) in found.items()}))
        digests = {job["answers"] for jobs in seen.values() for job in jobs}
        print(f"\n{args.rows:,} rows; answers are {'equal' if len(digests) < 2 else 'NOT equal'}.")
        if missing:
            print(f"Left out: {'; '.join(missing)}.")
    if "core" in args.parts:
        cores = {}
        for dtype in DTYPES:
            say(f"one core, {dtype}")
            cores[dtype] = run_side((dtype, 0, 0), sys.executable, 1)
        print("\n" + core_table(cores))
        print("\n" + "\n".join(billion(cores)))


def found_engines(
    names: Sequence[str], pythons: Sequence[str]
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """The engines that are installed.

    Returns:
        For each, the Python that has it, and its version; and of the others, why they are not here.
    """
    found, missing = {}, []
    packages = {python: packages_of(python) for python in pythons}
    for name in names:
        engine = ENGINES[name]
        able = [python for python in pythons if set(engine.needs) <= set(packages[python])]
        if not able:
            missing.append(f"{engine.label}, no {' and '.join(engine.needs)}")
        elif name == "spark" and shutil.which("java") is None:
            missing.append(f"{engine.label}, no Java")
        else:
            found[name] = able[0], packages[able[0]][engine.needs[0]]
    return found, missing


def packages_of(python: str) -> dict[str, str]:
    """The packages of engines that a Python has, with their versions.

    Raises:
        BenchError: it has no minibert.
    """
    wanted = ["minibert-qa", *{package for each in ENGINES.values() for package in each.needs}]
    code = (
        "import json, sys; from benchmark.machine import versions; "
        "print(json.dumps(versions(sys.argv[1:])))"
    )
    env = worker_environment(1, python=python)
    known = json.loads(run_process([python, "-c", code, *wanted], python, env=env).output)
    if "minibert-qa" not in known:
        raise BenchError(f"{python} has no minibert: pip install it first")
    return dict(known)


def side(name: str, rows: int, python: str) -> dict[str, Any]:
    """One job of an engine."""
    engine = ENGINES[name]
    threads = 1 if engine.workers else count_cores()
    return dict(run_side((engine.job, rows, engine.workers), python, threads))


def run_side(arguments: Sequence[object], python: str, threads: int) -> Any:
    """What scale_side prints last; engines print what they like before."""
    command = [python, "-m", "benchmark.scale_side", *map(str, arguments)]
    more = {"PYSPARK_PYTHON": python, "RAY_DEDUP_LOGS": "0", "HF_DATASETS_OFFLINE": "1"}
    env = {**worker_environment(threads, python=python), **more}
    return json.loads(run_process(command, str(arguments[0]), env=env).output.splitlines()[-1])


def engines_table(seen: Mapping[str, Sequence[dict[str, Any]]], versions: Mapping[str, str]) -> str:
    """The figures of the engines in Markdown."""
    rows = []
    for name, jobs in seen.items():
        workers = ENGINES[name].workers
        rss, own = (max(max(job[key]) for job in jobs) / MB for key in ("rss", "own"))
        rows.append(
            (
                f"{ENGINES[name].label} ({versions[name]})",
                f"{workers} x 1" if workers else f"1 x {count_cores()}",
                figures([job["seconds"] for job in jobs]),
                three_digits(statistics.median(sum(job["rows"]) / job["seconds"] for job in jobs)),
                three_digits(statistics.median(sum(job["rows"]) / sum(job["cpu"]) for job in jobs)),
                f"{rss:.0f}" if rss else NOTHING,
                f"{own:.0f}" if own else NOTHING,
            )
        )
    head = (
        "engine",
        "processes x threads",
        "seconds",
        "rows a second",
        "rows a second of processor time",
        "MB a process",
        "of these its own",
    )
    return markdown(head, rows, left=2)


def core_table(cores: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """What a core does, in Markdown."""
    rows = []
    for each in zip(*cores.values(), strict=True):
        first = each[0]
        rates = [three_digits(1 / length["whole"]) for length in each]
        hours = [f"{hours_of(length):,.0f}" for length in each]
        parts = [f"{share(length, 'tokeniser')}, {share(length, 'encoder')}" for length in each]
        size = (f"{first[key]:,.0f}" for key in ("tokens", "characters", "windows"))
        rows.append((*size, *rates, *hours, *parts))
    head = ["tokens a row", "characters", "windows"]
    head += [f"{dtype}, rows a second a core" for dtype in cores]
    head += [f"{dtype}, core hours for 10⁹ rows" for dtype in cores]
    head += [f"{dtype}: tokeniser, encoder" for dtype in cores]
    return markdown(head, rows, left=0)


def share(length: Mapping[str, float], part: str) -> str:
    """How much of a row's time goes into a part.

    Example:
        >>> share({"whole": 4.0, "encoder": 3.0}, "encoder")
        '75 %'
    """
    return f"{100 * length[part] / length['whole']:.0f} %"


def hours_of(length: Mapping[str, float]) -> float:
    """Hours of a core for a billion rows."""
    return length["whole"] * BILLION / HOUR


def billion(cores: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """What a billion rows of a page need, a line a dtype."""
    lines = []
    for dtype, lengths in cores.items():
        page = next(length for length in lengths if length["characters"] == PAGE)
        hours = hours_of(page)
        lines.append(
            f"{dtype}: a billion pages of {page['tokens']:.0f} tokens are {hours:,.0f} core hours: "
            f"{hours / 1000:.1f} hours on 1,000 cores, {hours * PRICE:,.0f} dollars at {PRICE} a "
            f"core hour; a core takes {page['tokens'] / page['whole']:,.0f} tokens and "
            f"{page['characters'] / page['whole'] / 1000:.0f} KB of text a second, its tokeniser "
            f"{page['tokens'] / page['tokeniser']:,.0f} tokens; 100,000 rows take it "
            f"{page['whole'] * 1e5 / 60:.0f} minutes"
        )
    return lines
