"""`bench.py train`: minibert's steps of training beside torch's, on the same batches.

A round is one step with each of some batches.  Each side and precision is a process of its own
(train_side.py), and they take turns in random order.  Before anything is timed, the loss of the
first step and the norm of its gradient are compared with those of our NumPy definition.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.gemm import COPIED
from benchmark.machine import count_cores, versions
from benchmark.measure import WAITED, model_folder, prepare_model, visit_all
from benchmark.options import add_names, add_option, listed, one_of, thread_count
from benchmark.peers import (
    LIBRARIES,
    TRAIN,
    TRAIN_COMPILED,
    TRAIN_DTYPES,
    TRAIN_TORCH,
    Peer,
    choose_peers,
)
from benchmark.processes import BenchError, Worker, say
from benchmark.results import Case, Results, Series, thread_label
from benchmark.tables import NOTHING, figures, markdown, ratio_of_rounds, three_digits
from benchmark.train_side import MEMORY, Example, MinibertTrainer
from benchmark.workload import MIXED, Shape, config_of, make_inputs

PACKAGES = ("minibert", "numpy", "numba", "torch", "transformers")
PEERS = {"torch": TRAIN_TORCH, "compile": TRAIN_COMPILED}
NONE = "none"  # for --peers
SHAPES = ["2/128/2", "6/384/12", "12/384/12", "8/512/8"]
ROUNDS = 5
WINDOWS, BATCHES = 32, 10  # of a batch, and batches of a group that is sorted by length
STEPS = 4  # of a round: so many of the group's batches, evenly spread
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}  # of first losses and norms, relative
PEAKS = 3  # measurements of a peak; the median counts

# ---------------------------------------------------------------- batches


def choose_examples(data: Path | None) -> list[Example]:
    """A group of windows: of random words, or of questions spread over a SQuAD file.

    Their answers are anywhere: no time depends on them.

    Raises:
        BenchError: the file cannot be used.
    """
    from minibert.errors import MinibertError
    from minibert.model import load_model
    from minibert.squad.evaluation import spread
    from minibert.squad.files import read_squad

    count = WINDOWS * BATCHES
    if data is None:
        found = [(one.ids, one.types) for one in make_inputs(f"{MIXED}{count}")]
    else:
        try:
            model = load_model(device="reference")
            questions = spread(read_squad(data).questions, count)
            windows = [w for one in questions for w in model.windows(one.question, [one.context])]
        except MinibertError as error:
            raise BenchError(str(error)) from None
        if len(windows) < count:
            raise BenchError(f"{data} has {len(windows)} windows, and {count} are needed")
        found = [(one.input_ids, one.token_type_ids) for one in spread(windows, count)]
    random = np.random.default_rng(0)
    spans = [sorted(random.integers(0, len(ids), 2).tolist()) for ids, _ in found]
    return [
        Example(ids.tolist(), types.tolist(), *span)
        for (ids, types), span in zip(found, spans, strict=True)
    ]


def cut(examples: Sequence[Example], steps: int) -> list[list[Example]]:
    """So many batches of windows of about the same length, evenly spread over all lengths."""
    order = sorted(examples, key=lambda one: len(one.ids))
    batches = [order[begin : begin + WINDOWS] for begin in range(0, len(order), WINDOWS)]
    chosen = [batches[(2 * i + 1) * len(batches) // (2 * steps)] for i in range(steps)]
    return random.Random(0).sample(chosen, steps)


# ---------------------------------------------------------------- measuring


def measure_shape(
    case: Case,
    folder: Path,
    batches: Sequence[Sequence[Example]],
    peers: Sequence[Peer],
    args: argparse.Namespace,
    results: Results,
) -> None:
    """Check every side's first step, then time all of them round by round, each precision alone."""
    from minibert.training.line import operations

    say(f"{case}: the first step of the definition")
    trainer = MinibertTrainer(folder, "float32", 0)
    expected = trainer.step(trainer.lay_out(batches[0]), False)
    lengths = [len(one.ids) for batch in batches for one in batch]
    work = operations(config_of(Shape.parse(case.shape)), lengths)
    for dtype in args.dtypes:
        with contextlib.ExitStack() as stack:
            meter = Worker("peaks", case.threads, "gemm", "cpu", case.threads)
            stack.callback(meter.close)
            workers, going = {}, []
            for peer in (peer for peer in peers if peer.dtype == dtype):
                say(f"{case}: {peer.label} begins")
                one = Series(case, peer, facts={"tokens": sum(lengths), "operations": work})
                command = ("train", peer.library, dtype, case.threads)
                workers[peer] = worker = Worker(peer.label, case.threads, *command)
                stack.callback(worker.close)
                with results.going_on():
                    message = {"folder": str(folder), "batches": batches, "dropout": args.dropout}
                    one.facts |= worker.ask(do="load", **message)
                    if check(one, expected, results):
                        going.append(one)
                if peer.ours:  # it may have compiled; the next need not, and takes less memory
                    worker.close()
            results.series += going
            order = random.Random(0)
            for number in range(args.rounds):
                say(f"{case}, {dtype}: round {number + 1} of {args.rounds}")
                peaks = measure_peaks(dtype, meter, results)
                going = visit_all(going, partial(visit, workers, peaks), order, results)


def check(one: Series, expected: Sequence[float], results: Results) -> bool:
    """Whether the loss of the first step is right, and the norm of its gradient."""
    found = [one.facts[name] for name in ("loss", "norm")]
    difference = float(np.abs(np.divide(found, expected) - 1).max())
    one.facts["difference"] = difference
    if difference <= TOLERANCES[one.side.dtype]:  # NaN is not
        return True
    a, b = (" and ".join(f"{number:.6g}" for number in pair) for pair in (found, expected))
    results.wrong.append(f"{one.label} in {one.case}: loss and norm are {a}, not {b}")
    return False


def measure_peaks(dtype: str, worker: Worker, results: Results) -> dict[str, float]:
    """Operations per second of the dtype, if the processor has them, and bytes per second."""
    messages: dict[str, dict[str, Any]] = {
        dtype: {"do": "rate", "dtype": dtype, "shape": None},
        MEMORY: {"do": "bandwidth", "size": COPIED[MEMORY]},
    }
    found = {}
    for bound, message in messages.items():
        with results.going_on():
            rates = [worker.ask(**message)["rate"] for _ in range(PEAKS)]
            found[f"peak, {bound}"] = statistics.median(rates)
    return found


def visit(workers: Mapping[Peer, Worker], peaks: dict[str, float], one: Series) -> dict[str, float]:
    """Time a side; the seconds of each part are kept under the part's name."""
    numbers = workers[one.side].ask(do="time")
    say(f"{one.label}: {three_digits(numbers['seconds'])} s")
    one.facts["parts"] = parts = numbers.pop("parts")
    return {**numbers, **peaks, **{name: seconds for name, (_, seconds, *_) in parts.items()}}


# ---------------------------------------------------------------- tables

HEAD = (
    *("shape", "precision", "side", "tokens/s", "GFLOP/s", "of the peak"),
    *("resident, MB", "at most, MB", "ratio"),
)
PART_HEAD = ("", "calls", "ms", "of all", "floor, ms", "reached")


def time_rows(series: Sequence[Series]) -> list[list[str]]:
    """A row a shape, precision and side."""
    rows, ours = [], {(x.case, x.side.dtype): x for x in series if x.side.ours}
    for one in series:
        work, base = one.facts["operations"], ours.get((one.case, one.side.dtype), one)
        floors = [work / peak for peak in one.get(f"peak, {one.side.dtype}")]
        compared = base is not one and len(base.seconds) == len(one.seconds)
        rows.append(
            [
                *(one.case.shape, one.side.dtype, LIBRARIES[one.side.library][0]),
                f"{one.facts['tokens'] / one.median:,.0f}",
                three_digits(work / one.median / 1e9),
                f"{ratio_of_rounds(floors, one.seconds).median:.0%}" if floors else NOTHING,
                *(figures(one.get(name)[-1:]) for name in ("rss", "hwm")),
                str(ratio_of_rounds(one.seconds, base.seconds)) if compared else NOTHING,
            ]
        )
    return rows


def part_rows(one: Series) -> list[list[str]]:
    """A row a part of a round's time, as medians, and what is left."""
    rows, rest = [], one.median
    for name, (bound, _, calls, work) in one.facts["parts"].items():
        seconds, floor, reached = one.middle(name), NOTHING, NOTHING
        rest -= seconds
        if peaks := one.get(f"peak, {bound}"):
            least = work / statistics.median(peaks)
            floor, reached = three_digits(1e3 * least), f"{least / seconds:.0%}"
        times = [three_digits(1e3 * seconds), f"{seconds / one.median:.1%}"]
        rows.append([name, str(calls), *times, floor, reached])
    rest = max(rest, 0.0)
    times = [three_digits(1e3 * rest), f"{rest / one.median:.1%}"]
    return [*rows, ["between them, in Python", NOTHING, *times, NOTHING, NOTHING]]


def paragraphs(args: argparse.Namespace, results: Results) -> Iterator[str]:
    """The report."""
    series = results.series
    yield markdown(HEAD, time_rows(series), left=3)
    yield (
        f"Medians of {args.rounds} rounds in random order, {thread_label(args.threads)}; a round "
        f"is a step with each of {args.steps} x {WINDOWS} windows. Tokens are those that are not "
        "padding, and operations three times those of the forward pass on them; the peak is of "
        "the same precision, memory of the process. Ratio: its seconds over minibert's, round by "
        "round, median (quartiles)."
    )
    worst: dict[str, float] = {}
    for one in series:
        worst[one.label] = max(worst.get(one.label, 0.0), one.facts["difference"])
        if one.middle("waited") > WAITED:
            share = f"{one.middle('waited'):.0%}"
            results.note(f"{one.label} in {one.case} waited for cores {share} of the time.")
    shown = ", ".join(f"{label} {difference:.1g}" for label, difference in worst.items())
    yield f"Loss and gradient norm of the first step beside the definition's, relative: {shown}."
    for one in series:
        if args.profile and one.facts["parts"]:
            table = markdown(PART_HEAD, part_rows(one), left=1)
            yield f"Where a round's time goes, {one.case.shape}, {one.label}:\n\n{table}"


# ---------------------------------------------------------------- the command


def command_train(args: argparse.Namespace) -> None:
    """Run `bench.py train`.

    Raises:
        BenchError: the data or minibert cannot be used, or a first step is wrong.
    """
    results = Results([versions(PACKAGES)], args.json)
    libraries = [TRAIN, *(PEERS[name] for name in args.peers if name != NONE)]
    peers = choose_peers(libraries, args.dtypes, results)
    batches = cut(choose_examples(args.data), args.steps)
    with results.reported(partial(paragraphs, args, results)), model_folder(args.keep) as folder:
        for shape in args.shapes:
            path = prepare_model(folder, shape, (), results)
            case = Case("training", shape, args.threads)
            measure_shape(case, path, batches, peers, args, results)
    if results.wrong:
        raise BenchError("wrong first steps: " + "; ".join(results.wrong))


def add_command(commands: Any) -> None:
    """Describe `train` and its options."""
    parser = commands.add_parser("train", help="steps of training, beside torch")
    parser.set_defaults(run=command_train)
    what = "SQuAD file to take windows from; else they have random words and lengths as in SQuAD"
    parser.add_argument("--data", type=Path, metavar="FILE", help=what)
    add_option(parser, "--shapes", SHAPES)
    add_names(parser, "--dtypes", TRAIN_DTYPES, "precisions")
    known, what = one_of(*PEERS, NONE), "torch as it is, torch.compile, or none"
    add_option(parser, "--peers", list(PEERS), type=listed(known), metavar="NAME,...", help=what)
    what = "threads of each side"
    add_option(parser, "--threads", count_cores(), type=thread_count, metavar="N", help=what)
    add_option(parser, "--rounds", ROUNDS)
    steps, what = range(1, BATCHES + 1), f"steps of a round, at most {BATCHES}"
    add_option(parser, "--steps", STEPS, type=int, choices=steps, metavar="N", help=what)
    parser.add_argument("--dropout", action="store_true", help="drop a tenth, as BERT's authors")
    parser.add_argument("--profile", action="store_true", help="show where our time goes, too")
    add_option(parser, "--keep")
    add_option(parser, "--json")
