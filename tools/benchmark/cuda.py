"""`bench.py cuda`: minibert on an NVIDIA GPU beside torch, in three tables.

    GEMM        the multiplications of a layer, as a share of what cuBLAS reaches
    latency     one window of 384 tokens, beside torch.compile with CUDA graphs
    throughput  1,024 windows of SQuAD-like lengths, beside torch with padded batches

Models are measured as `bench.py cpu` does it (measure.py), from windows on the host to logits on
the host.  All libraries load, and so compile, at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmark import gemm
from benchmark.machine import count_cores, versions
from benchmark.measure import load_all, measure_case, model_folder, prepare_model
from benchmark.options import add_names, add_option, positive
from benchmark.peers import COMPILED, CUDA, GPU_DTYPES, PADDED, Peer, choose_peers, missing_modules
from benchmark.processes import BenchError, Clock, Worker, say
from benchmark.results import Case, Results, Series, best, cases_of
from benchmark.squad import operations
from benchmark.tables import NOTHING, figures, markdown, ratio_of_rounds, three_digits
from benchmark.workload import MIXED, Shape, config_of, window_lengths

PACKAGES = ("minibert", "numpy", "numba", "numba-cuda", "torch", "triton", "transformers")
SHAPES = ["6/384/12", "12/768/12"]
GEMM, LATENCY, THROUGHPUT = "gemm", "latency", "throughput"
WORK = (GEMM, LATENCY, THROUGHPUT)
ROUNDS = 5
SECONDS = 540
ONE = "384"  # tokens of the window whose latency is measured
TOKENS = 8192  # of the multiplications: as many as a batch has
SIZES = (32, 128)  # windows of torch's padded batches
PATIENCE = 50.0  # seconds that an answer may take: torch is slow to begin
LOADING = 150.0  # seconds that loading may take: so are torch.compile, and Numba
GPU = "GPU"  # the key of its GEMM in the results

# ---------------------------------------------------------------- measuring


def find_gpu() -> str:
    """The first GPU and its driver, in words.

    Raises:
        BenchError: none can be used.
    """
    if missing_modules(("minibert",)):
        choose_peers((CUDA,), GPU_DTYPES, Results())  # which says so
    from minibert.kernels.cuda.detect import find_gpus, why_not

    found = find_gpus()
    if problem := why_not(found):
        raise BenchError(problem)
    gpu = found.gpus[0]
    return (
        f"{gpu.name}, compute capability {'.'.join(map(str, gpu.capability))}, "
        f"{gpu.multiprocessors} multiprocessors, driver for CUDA {found.driver_version}"
    )


def gpu_worker(stack: contextlib.ExitStack, clock: Clock, name: str, *command: object) -> Worker:
    """A process that sees the GPU, and is ended with `stack`."""
    limits: Any = {"clock": clock, "patience": PATIENCE, "loading": LOADING}
    worker = Worker(name, count_cores(), *command, gpu=True, **limits)
    stack.callback(worker.close)
    return worker


def measure_gemm(args: argparse.Namespace, clock: Clock, results: Results) -> None:
    """Measure our multiplications, and torch's large ones as the peak."""
    say("GEMM")
    shapes = gemm.gemm_shapes([*map(Shape.parse, args.shapes)], [TOKENS])
    with contextlib.ExitStack() as stack:
        workers = {}
        for side, dtype in itertools.product(("cuda", "torch"), args.dtypes):
            name = f"GEMM, {side} {dtype}"
            workers[side, dtype] = gpu_worker(stack, clock, name, GEMM, side, 0)

        def rate(dtype: str, size: gemm.Size) -> float:
            worker = workers["cuda" if size else "torch", dtype]
            return worker.ask(do="rate", dtype=dtype, shape=size)["rate"]

        results.gemm[GPU] = {"rates": gemm.gemm_rates(rate, args.dtypes, shapes, results)}
    results.save()


def measure_models(
    args: argparse.Namespace,
    work: str,
    peers: Sequence[Peer],
    folder: Path,
    clock: Clock,
    results: Results,
) -> None:
    """Measure one piece of work with every shape."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for peer in peers:
            command = ("serve", peer.library, peer.dtype, 0)
            workers[peer] = gpu_worker(stack, clock, peer.label, *command)
        for shape in args.shapes:
            path = prepare_model(folder, shape, peers, results)
            ready = load_all(workers, path, ONE, results)
            measure_case(Case(work, shape), path, ready, args.rounds, results, SIZES)


# ---------------------------------------------------------------- tables

LATENCY_HEAD = (
    *("shape", "precision", "minibert, us", "torch.compile, us", "its time / ours"),
    "minibert off by",
)
THROUGHPUT_HEAD = (
    *("shape", "precision", "side", "windows/s", "tokens/s", "TFLOP/s", "of the peak"),
    *("its time / ours", "off by"),
)


def off(one: Series | None) -> str:
    """The largest difference of a series' logits."""
    return f"{one.facts['difference']:.1g}" if one else NOTHING


def pair(series: Sequence[Series], case: Case, dtype: str) -> tuple[Series | None, Series | None]:
    """Ours and the fastest of torch's in one case, of those that saw every round."""
    here = [one for one in series if (one.case, one.side.dtype) == (case, dtype) and one.seconds]
    rounds = max((len(one.seconds) for one in here), default=0)
    here = [one for one in here if len(one.seconds) == rounds]
    ours = best(one for one in here if one.side.ours)
    return ours, best(one for one in here if not one.side.ours)


def ratio_cell(peer: Series | None, ours: Series | None) -> str:
    """How many times as long the peer took, median (quartiles)."""
    return str(ratio_of_rounds(peer.seconds, ours.seconds)) if peer and ours else NOTHING


def latency_rows(series: Sequence[Series], dtypes: Sequence[str]) -> list[list[str]]:
    """A row a shape and precision: one window."""
    rows = []
    for case in [case for case in cases_of(series) if case.work == ONE]:
        for dtype in dtypes:
            ours, peer = pair(series, case, dtype)
            times = [figures([1e6 * t for t in one.seconds] if one else ()) for one in (ours, peer)]
            rows.append([case.shape, dtype, *times, ratio_cell(peer, ours), off(ours)])
    return rows


def throughput_rows(
    series: Sequence[Series], dtypes: Sequence[str], rates: gemm.Rates
) -> list[list[str]]:
    """A row a shape, precision and side: many windows; operations are those of real tokens."""
    rows = []
    for case in [case for case in cases_of(series) if case.work.startswith(MIXED)]:
        lengths = window_lengths(case.work)
        useful = sum(operations(config_of(Shape.parse(case.shape)), lengths))
        for dtype in dtypes:
            ours, peer = pair(series, case, dtype)
            peak = dict(rates.get(dtype, ())).get(None)
            for one in (ours, peer):
                if one is None:
                    continue
                reached = useful / one.median
                rows.append(
                    [
                        case.shape,
                        dtype,
                        one.label.replace(f" {dtype}", ""),
                        figures([len(lengths) / seconds for seconds in one.seconds]),
                        three_digits(sum(lengths) / one.median),
                        three_digits(reached / 1e12),
                        f"{reached / peak:.0%}" if peak else NOTHING,
                        ratio_cell(one, ours) if one is peer else NOTHING,
                        off(one),
                    ]
                )
    return rows


def paragraphs(args: argparse.Namespace, results: Results) -> Iterator[str]:
    """The report."""
    rates: gemm.Rates = results.gemm.get(GPU, {}).get("rates", {})
    if rates:
        peak = f"torch, {gemm.SIDE} x {gemm.SIDE} x {gemm.SIDE}"
        table = gemm.gemm_table(rates, args.dtypes, ("T/s", 1e12), peak)
        yield f"GEMM with bias, by the GPU's clock:\n\n{table}"
    if rows := latency_rows(results.series, args.dtypes):
        yield f"One window of {ONE} tokens:\n\n{markdown(LATENCY_HEAD, rows, left=2)}"
    if rows := throughput_rows(results.series, args.dtypes, rates):
        count = len(window_lengths(f"{MIXED}{args.windows}"))
        yield (
            f"{count:,} windows of SQuAD-like lengths; torch gets them sorted by length, padded in "
            f"batches:\n\n{markdown(THROUGHPUT_HEAD, rows, left=3)}"
        )
    yield (
        f"Medians (min-max) of {args.rounds} rounds in random order; ratios round by round, median "
        "(quartiles). Off by: largest difference of logits from the NumPy definition, of the first "
        "64 windows at most."
    )


# ---------------------------------------------------------------- the command


def command_cuda(args: argparse.Namespace) -> None:
    """Run `bench.py cuda`.

    Raises:
        BenchError: there is no usable GPU, or some result is wrong.
    """
    gpu = find_gpu()
    clock = Clock(args.seconds)
    results = Results([versions(PACKAGES)], args.json, gpu=gpu)
    with results.reported(partial(paragraphs, args, results)), model_folder(args.keep) as folder:
        if GEMM in args.work:
            measure_gemm(args, clock, results)
        for work, name, rival in (
            (ONE, LATENCY, COMPILED),
            (f"{MIXED}{args.windows}", THROUGHPUT, PADDED),
        ):
            if name in args.work:
                peers = choose_peers((CUDA, rival), args.dtypes, results)
                measure_models(args, work, peers, folder, clock, results)
    if results.wrong:
        raise BenchError("wrong logits: " + "; ".join(results.wrong))


def add_command(commands: Any) -> None:
    """Describe `cuda` and its options."""
    parser = commands.add_parser("cuda", help="an NVIDIA GPU, beside torch")
    parser.set_defaults(run=command_cuda)
    add_option(parser, "--shapes", SHAPES)
    add_names(parser, "--dtypes", GPU_DTYPES, "precisions")
    add_names(parser, "--work", WORK, "tables")
    add_option(
        parser, "--windows", 1024, type=positive, metavar="N", help="windows of the throughput"
    )
    add_option(parser, "--rounds", ROUNDS)
    add_option(
        parser,
        "--seconds",
        SECONDS,
        type=positive,
        metavar="N",
        help="what is not measured after so many is left out",
    )
    add_option(parser, "--keep")
    add_option(parser, "--json")
