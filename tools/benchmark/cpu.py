"""`bench.py cpu`: our kernels beside the fastest libraries for the same work on the processor.

Each library and precision is a process of its own.  All load the same weights; their logits are
compared with those of our NumPy definition before anything is timed; and every round visits them
all, in random order, so that a ratio is of two times that lie close together.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.machine import count_cores, cpu_model
from benchmark.options import listed, one_of, positive
from benchmark.peers import DTYPES, LIBRARIES, OURS, PEERS, Peer, missing_modules
from benchmark.processes import (
    BenchError,
    Worker,
    run_process,
    say,
    worker_command,
    worker_environment,
)
from benchmark.results import (
    HOPELESS,
    PADDED,
    TRIAL,
    WAITED,
    Case,
    Results,
    Series,
    print_results,
    thread_label,
    write_json,
)
from benchmark.roofline import roofline
from benchmark.tables import three_digits
from benchmark.workload import (
    MIXED,
    SHAPES,
    Floats,
    Shape,
    float32_model,
    make_windows,
    pack_in_order,
    window_lengths,
    write_model,
)

START, GEMM = "start", "gemm"
FULL = {
    "shapes": list(SHAPES),
    "work": ["384", "128", MIXED, START, GEMM],
    "threads": sorted({1, count_cores()}),
    "rounds": 7,
}
QUICK = {
    "shapes": ["6/384/12"],
    "work": ["128", "mixed8", START, GEMM],
    "threads": [count_cores()],
    "rounds": 2,
}
MIXED_SHAPE = "6/384/12"  # the only one for mixed windows, unless shapes are asked for
START_ROUNDS = 5  # at most, of cold starts
BUDGET = 0.1  # seconds of a visit: short, so that a round sees one state of the machine
VISITS = 2  # at most, if other processes disturb the first
TOLERANCE = 1e-3  # of float32 logits; the differences of other precisions are shown

# ---------------------------------------------------------------- models


def build_peers(
    folder: Path, peers: Sequence[Peer], results: Results, names: Sequence[str] = ()
) -> None:
    """Make the files that peers read beside a model's, and note which cannot be made.

    Args:
        folder: the model's.
        peers: who will read them.
        results: where to note.
        names: files that will do, in the order of BUILT; none: all that there are.
    """
    needed = {peer.file for peer in peers if peer.file}
    if all((folder / name).exists() for name in needed):
        return
    say(f"{folder.name}: building the peers' models")
    command = worker_command("build", folder, *names)
    env = worker_environment(count_cores())
    failed = json.loads(run_process(command, "the peers' models", env=env).output)
    for name, reason in failed.items():
        results.note(f"{name} could not be built: {reason}")


def prepare_model(folder: Path, shape: str, peers: Sequence[Peer], results: Results) -> Path:
    """A folder with a random model in it, and with the files that the peers read."""
    path = folder / shape.replace("/", "-")
    if not (path / "model.safetensors").exists():
        write_model(path, Shape.parse(shape))
    build_peers(path, peers, results)
    return path


def prepare_embedded(
    folder: Path, peers: Sequence[Peer], results: Results, names: Sequence[str] = ()
) -> Path:
    """A folder with the embedded model in float32, and with the files that the peers read."""
    path = folder / "embedded"
    if not path.exists() and (source := float32_model(None, path)) != str(path):
        shutil.copytree(source, path)
    build_peers(path, peers, results, names)
    return path


@lru_cache
def expected_logits(folder: Path, work: str) -> Floats:
    """Start and end logits [2, T] of all windows, by the definition in NumPy."""
    from minibert.encoder import qa_logits
    from minibert.model import load_model

    model = load_model(folder, device="reference")
    batches = [batch for _, batch in pack_in_order(make_windows(work))]
    return np.hstack(
        [np.stack(qa_logits(b, model.weights, model.config, model.kernels)) for b in batches]
    )


# ---------------------------------------------------------------- times


def measure_cases(
    args: argparse.Namespace, peers: Sequence[Peer], folder: Path, results: Results
) -> None:
    """Measure every shape and piece of work with every number of threads."""
    for threads in args.threads:
        with contextlib.ExitStack() as stack:
            workers = {}
            for peer in peers:
                worker = Worker(peer.label, threads, "serve", peer.library, peer.dtype, threads)
                stack.callback(worker.close)
                workers[peer] = worker
            for shape in args.shapes:
                pieces = [work for work in args.work if work not in (START, GEMM)]
                if not args.shapes_given and shape != MIXED_SHAPE:
                    pieces = [work for work in pieces if not work.startswith(MIXED)]
                if not pieces:
                    continue
                path = prepare_model(folder, shape, peers, results)
                ready = load_workers(workers, path, results)
                for work in pieces:
                    case = Case(shape, work, threads)
                    results.series += measure_case(case, path, ready, args.rounds, results)


def load_workers(workers: dict[Peer, Worker], folder: Path, results: Results) -> dict[Peer, Worker]:
    """Have all libraries load a model.

    Returns:
        Those that could.
    """
    asked = {p: w for p, w in workers.items() if (folder / (p.file or ".")).exists()}
    for worker in asked.values():
        worker.send(do="load", folder=str(folder))
    ready = {}
    for peer, worker in asked.items():
        try:
            worker.receive()
        except BenchError as error:
            results.note(str(error))
        else:
            ready[peer] = worker
    return ready


def measure_case(
    case: Case, folder: Path, workers: dict[Peer, Worker], rounds: int, results: Results
) -> list[Series]:
    """Check every library's logits, then time all of them, round by round.

    Returns:
        The series of those that computed the right thing to the end.
    """
    sizes = PADDED if case.work.startswith(MIXED) else (1,)
    series = []
    for peer, worker in workers.items():
        for size in (1,) if peer.packed else sizes:
            with report(results):
                difference = check(case, folder, worker, size)
                limit = TOLERANCE if peer.dtype == "float32" else math.inf
                if not difference <= limit:  # NaN is not, either
                    results.wrong.append(f"{worker.name} in {case}: logits off by {difference:.2g}")
                    continue
                series.append(Series(case, peer, size, difference))
    order = random.Random(0)
    going = series
    for number in range(rounds):
        if number == TRIAL:
            going = contenders(going)
        for one in order.sample(going, len(going)):
            with report(results):
                visit(one, workers[one.peer])
        going = [one for one in going if len(one.seconds) == number + 1]  # the others failed
    series = [one for one in series if one in going or len(one.seconds) == TRIAL]
    times = (f"{one.label} {three_digits(one.median * 1e3)}" for one in series)
    say(f"{case}, ms: {'; '.join(times)}")
    return series


def contenders(series: Sequence[Series]) -> list[Series]:
    """Ours, and those peers that may turn out to be the best of their precision."""
    peers = [one for one in series if not one.peer.packed]
    fastest = {
        dtype: min(min(one.seconds) for one in peers if one.peer.dtype == dtype)
        for dtype in {one.peer.dtype for one in peers}
    }
    return [
        one
        for one in series
        if one.peer.packed or min(one.seconds) <= HOPELESS * fastest[one.peer.dtype]
    ]


@contextlib.contextmanager
def report(results: Results) -> Iterator[None]:
    """Note a library's failure, and go on with the others."""
    try:
        yield
    except BenchError as error:
        results.note(str(error))


def check(case: Case, folder: Path, worker: Worker, size: int) -> float:
    """The largest difference of a library's logits from the definition's."""
    logits = worker.ask(do="check", work=case.work, size=size)["logits"]
    return float(np.abs(np.array(logits) - expected_logits(folder, case.work)).max())


def visit(series: Series, worker: Worker) -> None:
    """Time a library once, and again if others kept it from the cores; the calmest visit counts."""
    visits = []
    for _ in range(VISITS):
        visits.append(worker.ask(do="time", work=series.case.work, size=series.size, budget=BUDGET))
        if visits[-1]["waited"] <= WAITED:
            break
    calmest = min(visits, key=lambda one: one["waited"])
    series.seconds.append(calmest["seconds"])
    series.cores.append(calmest["cores"])
    series.repeated += len(visits) - 1


# ---------------------------------------------------------------- cold starts


def measure_starts(peers: Sequence[Peer], folder: Path, rounds: int, results: Results) -> None:
    """Time fresh processes that load the embedded model and answer, in turn."""
    from minibert.checkpoints.hub import find_model

    path = prepare_embedded(folder, peers, results)
    threads = count_cores()
    left = [peer for peer in peers if (path / (peer.file or ".")).exists()]
    for number in range(rounds + 1):
        say(f"cold starts: run {number} of {rounds}" if number else "cold starts: warm-up")
        for peer in left[:: -1 if number % 2 else 1]:
            model = find_model(None).folder if peer.packed else path
            command = worker_command("start", peer.library, peer.dtype, threads, model)
            try:
                done = run_process(command, peer.label, env=worker_environment(threads))
            except BenchError as error:
                results.note(str(error))
                left = [other for other in left if other is not peer]
                continue
            first, second = map(json.loads, done.output.splitlines())
            results.answers[peer.label] = [first["answer"], second["answer"]]
            seconds = {"process": done.first_line, "load": first["load"]}
            seconds |= {"first": first["seconds"], "second": second["seconds"]}
            values = {name: 1e3 * value for name, value in seconds.items()}
            values |= {name: first[name] for name in ("rss", "hwm") if name in first}  # MB
            for name, value in values.items():
                if number:
                    kept = results.starts.setdefault(peer.label, {})
                    kept.setdefault(name, []).append(value)


# ---------------------------------------------------------------- the command


def choose_peers(args: argparse.Namespace, results: Results) -> list[Peer]:
    """The libraries that are asked for and installed; a line for each that is not.

    Raises:
        BenchError: minibert itself is not installed.
    """
    chosen = []
    for library, (label, _, needs, _) in LIBRARIES.items():
        if library not in (OURS, *args.peers):
            continue
        if missing := missing_modules(needs):
            if library == OURS:
                raise BenchError(f"{sys.executable} has no minibert: pip install it first")
            results.note(f"{label} is left out: no {' and no '.join(missing)} here.")
            continue
        chosen += [peer for peer in PEERS if peer.library == library and peer.dtype in args.dtypes]
    return chosen


@contextlib.contextmanager
def model_folder(keep: Path | None) -> Iterator[Path]:
    """Where models are written: a folder that stays, or one that is removed."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="minibert-bench-") as name:
        yield Path(name)


def measure_gemm(args: argparse.Namespace, results: Results) -> None:
    """Measure our multiplications, in a process for each number of threads."""
    for threads in args.threads:
        say(f"GEMM, {thread_label(threads)}")
        command = worker_command(GEMM, threads, *args.shapes)
        done = run_process(command, "minibert's GEMM", env=worker_environment(threads))
        results.gemm[threads] = json.loads(done.output)


def command_cpu(args: argparse.Namespace) -> None:
    """Run `bench.py cpu`.

    Raises:
        BenchError: some float32 logits are wrong, or minibert cannot be measured at all.
    """
    args.shapes_given = args.shapes is not None
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    results = Results()
    peers = choose_peers(args, results)
    with model_folder(args.keep) as folder:
        measure_cases(args, peers, folder, results)
        if START in args.work:
            measure_starts(peers, folder, min(args.rounds, START_ROUNDS), results)
    if GEMM in args.work:
        measure_gemm(args, results)
    print_results(results, args.dtypes, args.rounds)
    if args.json:
        write_json(args.json, results)
    if args.roofline:
        write_roofline(args.roofline, results)
    if results.wrong:
        raise BenchError("wrong logits: " + "; ".join(results.wrong))


def write_roofline(file: Path, results: Results) -> None:
    """Draw the GEMM of the most threads.

    Raises:
        BenchError: there is nothing to draw.
    """
    measured = results.gemm.get(max(results.gemm, default=0))
    if not measured:
        raise BenchError(f"no roofline: it shows the work {GEMM!r}, which was not asked for")
    title = f"{cpu_model()}, {thread_label(max(results.gemm))}"
    file.write_text(roofline(measured, title), encoding="utf-8")


def shape_name(text: str) -> str:
    """A parser for `listed`: the name of a shape."""
    Shape.parse(text)
    return text


def work_name(text: str) -> str:
    """A parser for `listed`: a piece of work."""
    if text not in (START, GEMM):
        window_lengths(text)
    return text


def thread_count(text: str) -> int:
    """A parser for `listed`: a number of threads, or 'all'."""
    threads = count_cores() if text == "all" else int(text)
    if not 1 <= threads <= count_cores():
        raise ValueError(f"this process may use {count_cores()} cores")
    return threads


def add_command(commands: Any) -> None:
    """Describe `cpu` and its options."""
    parser = commands.add_parser("cpu", help="the processor's kernels beside other runtimes")
    parser.set_defaults(run=command_cpu)
    peers = [library for library in LIBRARIES if library != OURS]
    parser.add_argument(
        "--shapes",
        type=listed(shape_name),
        metavar="L/D/H,...",
        help=f"layers/hidden/heads of random models (default: {','.join(SHAPES)})",
    )
    parser.add_argument(
        "--work",
        type=listed(work_name),
        metavar="NAME,...",
        help="a number of tokens: one window; mixed: 64 windows with lengths as in SQuAD, for "
        f"{MIXED_SHAPE} unless --shapes is given; mixed8: 8 of them; start: cold starts and "
        "memory; gemm: share of the processor's peak (default: 384,128,mixed,start,gemm)",
    )
    parser.add_argument(
        "--dtypes",
        type=listed(one_of(*DTYPES)),
        default=list(DTYPES),
        metavar="NAME,...",
        help=f"precisions (default: {','.join(DTYPES)})",
    )
    parser.add_argument(
        "--threads",
        type=listed(thread_count),
        metavar="N,...",
        help="numbers of threads (default: 1,all)",
    )
    parser.add_argument(
        "--peers",
        type=listed(one_of(*peers)),
        default=peers,
        metavar="NAME,...",
        help=f"libraries beside minibert (default: {','.join(peers)})",
    )
    parser.add_argument(
        "--rounds", type=positive, metavar="N", help="rounds that count (default: 7)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a try of a minute: fewer shapes, work and rounds"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the models there for the next run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number there")
    parser.add_argument(
        "--roofline", type=Path, metavar="FILE", help="also draw the GEMM there, as SVG"
    )
