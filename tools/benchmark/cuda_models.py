"""The models of `bench.py cuda`: fresh processes, one window, many windows."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmark.cpu import expected_logits
from benchmark.cuda_compile import COMPILED_DTYPES
from benchmark.cuda_processes import ANSWER_SECONDS, Bench, Side, failing, gpu_environment, request
from benchmark.cuda_results import (
    COMPILED,
    EAGER,
    LABELS,
    LATENCY_HEAD,
    LIMITS,
    ONE,
    OURS,
    PADDING,
    READ,
    SDPA,
    START_HEAD,
    THROUGHPUT_HEAD,
    Series,
    batch_notes,
    latency_rows,
    throughput_rows,
)
from benchmark.cuda_side import BATCHES
from benchmark.cuda_sums import shape_of
from benchmark.processes import BenchError, say
from benchmark.tables import figures, markdown

START_DTYPES = ("float16", "float32")
BUDGET = 0.05  # seconds of a visit
CASE_SECONDS = 8.0  # of a model's throughput: after it, no more rounds than LEAST_ROUNDS
LEAST_ROUNDS = 3

START_CODE = """
import sys
from minibert.model import load_model
model = load_model(device="cuda", dtype=sys.argv[1])
[(start, end)] = model.logits(model.windows("Who wrote it?", ["Ada wrote it in 1843."]))
print(float(start.max() + end.max()), flush=True)
"""

# ---------------------------------------------------------------- starts


def measure_starts(bench: Bench) -> None:
    """Time fresh processes up to the first logits of the embedded model, but for the first."""
    for dtype in (dtype for dtype in START_DTYPES if dtype in bench.args.dtypes):
        try:
            for number in range(bench.args.rounds + 1):
                seconds = start_once(dtype, bench.clock.limit(ANSWER_SECONDS))
                if number:
                    bench.found.starts.setdefault(dtype, []).append(seconds)
        except BenchError as error:
            bench.found.note(f"start in {dtype}: {error}")
    rows = [[dtype, figures(seconds)] for dtype, seconds in bench.found.starts.items()]
    bench.show(f"{markdown(START_HEAD, rows, left=1)}\n")


def start_once(dtype: str, limit: float) -> float:
    """Seconds from the start of a process to its first logits.

    Raises:
        BenchError: it failed.
    """
    command = [sys.executable, "-c", START_CODE, dtype]
    begin = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=tempfile.gettempdir(),
        env=gpu_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limit, end)
    timer.start()
    with process:
        line = process.stdout.readline()  # type: ignore[union-attr]
        seconds = time.perf_counter() - begin
        _, errors = process.communicate()
        timer.cancel()
    if late.is_set():
        raise BenchError(f"no logits within {limit:.0f} s")
    if process.returncode or not line:
        last = (errors.strip().splitlines() or ["nothing on stderr"])[-1]
        raise BenchError(f"status {process.returncode}: {last}")
    return seconds


# ---------------------------------------------------------------- models


def side_of(bench: Bench, one: Series) -> Side:
    """The process that measures a series.

    Raises:
        BenchError: there is none.
    """
    if one.kind == COMPILED:
        case = one.shape, one.dtype
        if case not in bench.compiled:
            raise BenchError(bench.failed.get(case, "not compiled"))
        return bench.compiled[case]
    return bench.side(OURS if one.kind in (OURS, READ) else "torch")


def check(bench: Bench, one: Series, truth: Any) -> Any:
    """Run a series once and compare its logits with the truth.

    Args:
        bench: the run.
        one: the series.
        truth: logits [2, T]; None if there is none.

    Returns:
        Its logits; None if it failed.
    """
    file = bench.model(one.shape) / f"{one.kind}-{one.dtype}.npy"
    with failing(one):
        side_of(bench, one).get(**request(one, "check", save=str(file)))
        logits = np.load(file)
        if truth is not None:
            one.difference = float(np.abs(logits - truth).max())
            if not one.difference <= LIMITS[one.dtype]:  # NaN is not, either
                text = f"logits off by {one.difference:.1g}"
                where = f"{one.shape}, {one.work}, {LABELS[one.kind]} {one.dtype}"
                if one.dtype == "float32" or not np.isfinite(one.difference):
                    one.failure = f"WRONG, {text}"
                    bench.found.wrong.append(f"{where}: {text}")
                else:  # rounding of 16 bits in a random model: worth a look
                    bench.found.note(f"{where}: {text}")
        return logits
    return None


def visit(bench: Bench, series: Sequence[Series], order: random.Random) -> None:
    """Time each once, in random order."""
    going = [one for one in series if not one.failure]
    for one in order.sample(going, len(going)):
        with failing(one):
            answer = side_of(bench, one).get(**request(one, "time", budget=BUDGET))
            one.seconds.append(answer["seconds"])


def measure_latency(bench: Bench, shape: str) -> None:
    """One window, all sides, round by round."""
    kinds = [OURS, EAGER, SDPA] if bench.torch else [OURS]
    series = [Series(shape, ONE, kind, dtype) for dtype in bench.args.dtypes for kind in kinds]
    if bench.torch and not bench.args.no_compile:
        dtypes = [dtype for dtype in COMPILED_DTYPES if dtype in bench.args.dtypes]
        series += [Series(shape, ONE, COMPILED, dtype) for dtype in dtypes]
    bench.found.series += series
    truth = expected_logits(bench.model(shape), ONE)
    for one in series:
        check(bench, one, truth)
    order = random.Random(0)
    for _ in range(bench.args.rounds):
        visit(bench, series, order)


def measure_throughput(bench: Bench, shape: str) -> None:
    """Many windows, all sides; after the first round torch goes on with its best batches."""
    work, dtypes = bench.many, bench.args.dtypes
    truth = None
    trial: list[Series] = []
    for dtype in sorted(dtypes, key=lambda dtype: dtype != "float32"):  # the truth comes first
        if bench.torch:
            padded = [
                Series(shape, work, kind, dtype, batches)
                for kind in reversed(PADDING)
                for batches in BATCHES
            ]
            for one in padded:
                logits = check(bench, one, truth)
                if truth is None and dtype == "float32":
                    truth = logits
            trial += padded
        ours = [
            Series(shape, work, OURS, dtype, "packed"),
            Series(shape, work, READ, dtype, "read"),
        ]
        for one in ours:
            check(bench, one, truth)
        trial += ours
    bench.found.series += trial
    order = random.Random(0)
    begin = time.monotonic()
    going = trial
    for number in range(bench.args.rounds):
        if number >= LEAST_ROUNDS and time.monotonic() - begin > CASE_SECONDS:
            break
        visit(bench, going, order)
        if number == 0:
            going = contenders(trial)


def contenders(series: Sequence[Series]) -> list[Series]:
    """Ours, and of each of torch's kinds and precisions the fastest batches."""
    best: dict[tuple[str, str, str], Series] = {}
    for one in series:
        key = one.kind, one.dtype, "" if one.kind in PADDING else one.batches
        if one.good and (key not in best or one.median < best[key].median):
            best[key] = one
    return list(best.values())


def measure_models(bench: Bench) -> None:
    """Measure every shape, and print it."""
    found, dtypes = bench.found, bench.args.dtypes
    for shape in bench.args.shapes:
        say(f"{shape}: {bench.clock.left():.0f} s left")
        size = shape_of(shape)
        title = f"## {shape}: {size.layers} x {size.hidden}, {size.heads} heads\n"
        for side in (OURS, "torch") if bench.torch else (OURS,):
            try:
                bench.side(side).get(do="load", folder=str(bench.model(shape)))
            except BenchError as error:
                found.note(f"{shape}, {side}: {error}")
        measure_latency(bench, shape)
        for case in [case for case in bench.compiled if case[0] == shape]:
            bench.compiled[case].stop()
        rows = latency_rows(found, shape, dtypes)
        bench.show(
            f"{title}\nOne window of {ONE} tokens:\n\n{markdown(LATENCY_HEAD, rows, left=1)}\n"
        )
        measure_throughput(bench, shape)
        rows = throughput_rows(found, shape, bench.many, dtypes)
        bench.show(
            f"{bench.args.windows} windows of SQuAD-like lengths:\n\n"
            f"{markdown(THROUGHPUT_HEAD, rows, left=3)}\n"
        )
        for note in batch_notes(found, shape, bench.many):
            print(f"- {note}", flush=True)
        print(flush=True)
