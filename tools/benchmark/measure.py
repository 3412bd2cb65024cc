"""How models are measured, on a processor and on a GPU: who runs, in which order, what counts.

Each library and precision is a process of its own.  All load the same random weights; their logits
are compared with those of our NumPy definition before anything is timed; and every round visits
them all, in random order, so that a ratio is of two times that lie close together.
"""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from benchmark.machine import count_cores
from benchmark.peers import Peer, files_for
from benchmark.processes import Worker, say
from benchmark.results import Case, Results, Series
from benchmark.tables import three_digits
from benchmark.worker import CHECKED, packed_job
from benchmark.workload import (
    MIXED,
    Floats,
    Shape,
    float32_model,
    make_inputs,
    write_model,
)

TRIAL = 2  # rounds that all see; after them only those go on that could still be the best,
HOPELESS = 1.25  # which is not if the best of the same precision was so many times as fast
BUDGET = 0.1  # seconds of a visit: short, so that a round sees one state of the machine
WAITED = 0.03  # share of a visit: if threads waited longer for cores, it is made again
VISITS = 2  # at most
TOLERANCE = 1e-3  # of float32 logits; the differences of other precisions are shown

# ---------------------------------------------------------------- models


@contextlib.contextmanager
def model_folder(keep: Path | None) -> Iterator[Path]:
    """Where models are written: a folder that stays, or one that is removed."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="minibert-bench-") as name:
        yield Path(name)


def prepare_model(folder: Path, shape: str, peers: Sequence[Peer], results: Results) -> Path:
    """A folder with a random model in it, and with the files that the peers read."""
    path = folder / shape.replace("/", "-")
    if not (path / "model.safetensors").exists():
        write_model(path, Shape.parse(shape))
    build_files(path, peers, results)
    return path


def prepare_embedded(folder: Path, peers: Sequence[Peer], results: Results) -> Path:
    """A folder with the embedded model in float32, and with the files that the peers read."""
    path = folder / "embedded"
    if not path.exists() and (source := float32_model(None, path)) != str(path):
        shutil.copytree(source, path)
    build_files(path, peers, results)
    return path


def build_files(folder: Path, peers: Sequence[Peer], results: Results) -> None:
    """Make the files that peers read beside a model's, and note which cannot be made."""
    if all((folder / peer.file).exists() for peer in peers):
        return
    say(f"{folder.name}: building the peers' models")
    worker = Worker("the peers' models", count_cores(), "build")
    with contextlib.closing(worker):
        failed = worker.ask(do="build", folder=str(folder), names=files_for(peers))
    for name, reason in failed.items():
        results.note(f"{name} could not be built: {reason}")


@lru_cache
def expected_logits(folder: Path, work: str) -> Floats:
    """Start and end logits [2, T] of the windows that are checked, by the definition in NumPy."""
    from minibert import load_model

    model = load_model(folder, device="reference")
    return np.hstack(packed_job(model, make_inputs(work)[:CHECKED])())


# ---------------------------------------------------------------- rounds


def load_all(
    workers: Mapping[Peer, Worker], folder: Path, work: str, results: Results
) -> dict[Peer, Worker]:
    """Have all libraries load a model, and run some work, at the same time.

    Returns:
        Those that could.
    """
    asked, ready = {}, {}
    for peer, worker in workers.items():
        if (folder / peer.file).exists():
            with results.going_on():
                worker.send(do="load", folder=str(folder), work=work)
                asked[peer] = worker
    for peer, worker in asked.items():
        with results.going_on():
            worker.receive()
            ready[peer] = worker
    return ready


def measure_case(
    case: Case,
    folder: Path,
    workers: Mapping[Peer, Worker],
    rounds: int,
    results: Results,
    sizes: Sequence[int],
) -> None:
    """Check every library's logits, then time all of them, round by round.

    Args:
        case: what they do.
        folder: the model's.
        workers: processes that have loaded it.
        rounds: that count.
        results: where the series of those go that compute the right thing.
        sizes: windows of the padded batches, where there are several windows.
    """
    going = []
    several = case.work.startswith(MIXED)
    for peer, worker in workers.items():
        for size in sizes if several and not peer.packed else (0,):
            one = Series(case, peer, size)
            with results.going_on():
                if check(one, folder, worker, results):
                    going.append(one)
    measured = list(going)
    results.series += measured
    order = random.Random(0)
    for number in range(rounds):
        if number == TRIAL:
            going = contenders(going)
        going = visit_all(going, lambda one: visit(one, workers[one.side]), order, results)
    times = (f"{one.label} {three_digits(one.median * 1e3)}" for one in measured if one.seconds)
    say(f"{case}, ms: {'; '.join(times)}")


def visit_all(
    going: Sequence[Series],
    visit: Callable[[Series], dict[str, float]],
    order: random.Random,
    results: Results,
) -> list[Series]:
    """One round: every series is visited once, in random order.

    The numbers are kept when all have come, so that a run that is cut off has whole rounds only.

    Returns:
        Those that did not fail.
    """
    found: dict[Series, dict[str, float]] = {}
    for one in order.sample(going, len(going)):
        with results.going_on():
            found[one] = visit(one)
    for one, numbers in found.items():
        one.add(numbers)
    results.save()
    return [one for one in going if one in found]


def contenders(series: Sequence[Series]) -> list[Series]:
    """minibert's, and those peers that may turn out to be the best of their precision."""
    fastest: dict[str, float] = {}
    for one in series:
        if not one.side.packed:
            dtype = one.side.dtype
            fastest[dtype] = min(fastest.get(dtype, math.inf), *one.seconds)
    return [
        one
        for one in series
        if one.side.packed or min(one.seconds) <= HOPELESS * fastest[one.side.dtype]
    ]


def check(series: Series, folder: Path, worker: Worker, results: Results) -> bool:
    """Whether logits are right; their largest difference from the definition's is kept."""
    case = series.case
    logits = worker.ask(do="check", work=case.work, size=series.size)["logits"]
    difference = float(np.abs(np.array(logits) - expected_logits(folder, case.work)).max())
    series.facts["difference"] = difference
    limit = TOLERANCE if series.side.dtype == "float32" else math.inf
    if difference <= limit:  # NaN is not
        return True
    results.wrong.append(f"{worker.name} in {case}: logits off by {difference:.2g}")
    return False


def visit(series: Series, worker: Worker) -> dict[str, float]:
    """Time a library once, and again if others kept it from the cores; the calmest visit counts."""
    visits = []
    for _ in range(VISITS):
        visits.append(worker.ask(do="time", work=series.case.work, size=series.size, budget=BUDGET))
        if visits[-1]["waited"] <= WAITED:
            break
    calmest = min(visits, key=lambda one: one["waited"])
    return {name: calmest[name] for name in ("seconds", "cores")} | {"visits": len(visits)}


def noise_notes(results: Results) -> None:
    """Note what disturbed the times, if anything did."""
    visits = sum(sum(one.get("visits")) for one in results.series)
    rounds = sum(len(one.get("visits")) for one in results.series)
    if visits > rounds:
        results.note(
            f"{visits - rounds:.0f} of {visits:.0f} visits were made again because other processes "
            f"held the cores for more than {WAITED:.0%} of the time."
        )
    for one in results.series:
        if one.case.threads and one.get("cores"):
            cores = statistics.median(one.get("cores"))
            if cores > one.case.threads + 0.2:
                results.note(f"{one.label} kept {cores:.1f} cores busy in {one.case}.")
