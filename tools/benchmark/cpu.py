"""`bench.py cpu`: our kernels beside the fastest libraries for the same work on the processor."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmark import gemm
from benchmark.machine import count_cores, cpu_model, versions
from benchmark.measure import (
    HOPELESS,
    TRIAL,
    load_all,
    measure_case,
    model_folder,
    noise_notes,
    prepare_embedded,
    prepare_model,
    visit_all,
)
from benchmark.options import add_names, add_option, listed, new_file, one_of, program, thread_count
from benchmark.peers import BEFORE, DTYPES, OURS, PEERS, RUNTIMES, Peer, choose_peers
from benchmark.processes import (
    BenchError,
    Worker,
    run_process,
    say,
    worker_command,
    worker_environment,
)
from benchmark.results import Case, Results, Series, best, cases_of, thread_label
from benchmark.roofline import roofline
from benchmark.tables import NOTHING, figures, markdown, ratio_of_rounds, three_digits
from benchmark.workload import MIXED, SHAPES, Shape, window_lengths, work_label

PACKAGES = (
    "minibert",
    "numpy",
    "numba",
    *("openvino", "nncf", "onnxruntime", "ctranslate2", "torch"),
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
SIZES = (1, 8, 32)  # of the peers' batches of mixed windows; 1 pads nothing
START_ROUNDS = 5  # at most, of cold starts
NONE = "none"  # for --peers

# ---------------------------------------------------------------- measuring


def measure_models(
    args: argparse.Namespace, peers: Sequence[Peer], folder: Path, results: Results
) -> None:
    """Measure every shape and piece of work with every number of threads."""
    for threads in args.threads:
        with contextlib.ExitStack() as stack:
            workers = {}
            for peer in peers:
                command = ("serve", peer.library, peer.dtype, threads)
                workers[peer] = Worker(peer.label, threads, *command, **python_of(peer, args))
                stack.callback(workers[peer].close)
            for shape in args.shapes:
                pieces = [work for work in args.work if work not in (START, GEMM)]
                if not args.shapes_given and shape != MIXED_SHAPE:
                    pieces = [work for work in pieces if not work.startswith(MIXED)]
                if not pieces:
                    continue
                path = prepare_model(folder, shape, peers, results)
                ready = load_all(workers, path, pieces[0], results)
                for work in pieces:
                    case = Case(work, shape, threads)
                    measure_case(case, path, ready, args.rounds, results, SIZES)


def python_of(peer: Peer, args: argparse.Namespace) -> dict[str, str]:
    """The Python that has a library, if it is not this one."""
    return {"python": args.against} if peer.library == BEFORE else {}


def measure_starts(
    args: argparse.Namespace, peers: Sequence[Peer], folder: Path, results: Results
) -> None:
    """Time fresh processes that load the embedded model and answer, in turn."""
    from minibert.checkpoints.hub import find_model

    path = prepare_embedded(folder, peers, results)
    threads = count_cores()

    def visit(one: Series) -> dict[str, float]:
        peer = one.side
        model = find_model(None).folder if peer.packed else path
        command = ("start", peer.library, peer.dtype, threads, model)
        python = python_of(peer, args)
        env = worker_environment(threads, **python)
        done = run_process(worker_command(*command, **python), peer.label, env=env)
        first, second = map(json.loads, done.output.splitlines())
        one.facts["answers"] = [first["answer"], second["answer"]]
        seconds = {"process": done.first_line, "load": first["load"], "second": second["seconds"]}
        values = {name: 1e3 * value for name, value in seconds.items()}
        return values | {name: first[name] for name in ("rss", "hwm") if name in first}  # MB

    going = [
        Series(Case(START, threads=threads), peer) for peer in peers if (path / peer.file).exists()
    ]
    order = random.Random(0)
    going = visit_all(going, visit, order, results)
    for one in going:
        one.numbers.clear()  # the first time, files may not be in memory yet
    results.series += going
    for number in range(min(args.rounds, START_ROUNDS)):
        say(f"cold starts: run {number + 1}")
        going = visit_all(going, visit, order, results)


def measure_gemm(args: argparse.Namespace, results: Results) -> None:
    """Measure our multiplications, in a process for each number of threads."""
    shapes = gemm.gemm_shapes([*map(Shape.parse, args.shapes)])
    for threads in args.threads:
        name = thread_label(threads)
        say(f"GEMM, {name}")
        worker = Worker("minibert's GEMM", threads, "gemm", "cpu", threads)

        def rate(dtype: str, size: gemm.Size, worker: Worker = worker) -> float:
            return worker.ask(do="rate", dtype=dtype, shape=size)["rate"]

        with contextlib.closing(worker):
            results.gemm[name] = {
                "rates": gemm.gemm_rates(rate, DTYPES, shapes, results),
                "bandwidths": {
                    level: worker.ask(do="bandwidth", size=size)["rate"]
                    for level, size in gemm.COPIED.items()
                },
            }
        results.save()


# ---------------------------------------------------------------- tables

RATIO_HEAD = (
    *("shape", "work", "precision", "best peer", "threads"),
    *("its ms", "minibert ms", "ratio"),
)
START_COLUMNS = {
    "process": "process start to first answer, ms",
    "load": "of it import and load, ms",
    "second": "second answer, ms",
    "rss": "resident, MB",
    "hwm": "at most, MB",
}


def ratio_rows(series: Sequence[Series], dtypes: Sequence[str]) -> list[list[str]]:
    """One row a case and precision: ours beside the best peer; and one beside what was before."""
    rows = []
    for case in cases_of(series):
        for dtype in dtypes:
            here = [one for one in series if one.case == case and one.side.dtype == dtype]
            rounds = max((len(one.seconds) for one in here), default=0)
            here = [one for one in here if len(one.seconds) == rounds]  # saw every round
            ours = best(one for one in here if one.side.ours)
            peer = best(one for one in here if not one.side.packed)
            before = best(one for one in here if one.side.library == BEFORE)
            for other in [one for one in (peer, before) if one] or [None]:
                if ours is None and other is None:
                    continue
                row = [case.shape, work_label(case.work), dtype, other.label if other else NOTHING]
                row.append(str(case.threads))
                row += [three_digits(one.median * 1e3) if one else NOTHING for one in (other, ours)]
                both = other and ours
                row.append(str(ratio_of_rounds(other.seconds, ours.seconds)) if both else NOTHING)
                rows.append(row)
    return rows


def time_table(series: Sequence[Series]) -> str:
    """Everything that was timed, in milliseconds: a row a case, a column a library."""
    peers = [peer for peer in PEERS if any(one.side is peer for one in series)]
    rows = []
    for case in cases_of(series):
        row = [case.shape, work_label(case.work), str(case.threads)]
        for peer in peers:
            one = best(one for one in series if one.case == case and one.side is peer)
            row.append(f"{three_digits(one.median * 1e3)}{one.suffix}" if one else NOTHING)
        rows.append(row)
    head = ("shape", "work", "threads", *(peer.label for peer in peers))
    return markdown(head, rows, left=2)


def agreement_table(series: Sequence[Series]) -> str:
    """The largest difference of each library's logits, and where it was."""
    rows = []
    for peer in PEERS:
        own = [one for one in series if one.side is peer]
        if own:
            worst = max(own, key=lambda one: one.facts["difference"])
            where = f"{worst.case.shape}, {work_label(worst.case.work)}"
            rows.append((peer.label, where, f"{worst.facts['difference']:.2g}"))
    return markdown(("", "in", "largest difference"), rows, left=2)


def start_table(starts: Sequence[Series]) -> str:
    """Cold starts and memory."""
    rows = [(one.label, *(figures(one.get(name)) for name in START_COLUMNS)) for one in starts]
    return markdown(("", *START_COLUMNS.values()), rows, left=1)


def answer_notes(answers: dict[str, list[str]]) -> Iterator[str]:
    """Whether the cold starts gave the same answers."""
    for found in dict.fromkeys(map(tuple, answers.values())):
        labels = [label for label, texts in answers.items() if tuple(texts) == found]
        who = "all" if len(labels) == len(answers) else ", ".join(labels)
        yield f"Answers of {who}: {' and '.join(map(repr, found))}."


def paragraphs(args: argparse.Namespace, results: Results) -> Iterator[str]:
    """The report."""
    starts = [one for one in results.series if one.case.work == START]
    series = [one for one in results.series if one.case.work != START]
    if series:
        yield markdown(RATIO_HEAD, ratio_rows(series, args.dtypes), left=4)
        yield (
            f"Medians of {args.rounds} rounds in random order ({TRIAL} for peers that were over "
            f"{HOPELESS} times as slow as the best by then); ratio: the best peer of the same "
            "precision over minibert, round by round, median (quartiles). Peers get mixed windows "
            f"sorted by length, padded in batches of {' or '.join(map(str, SIZES))}."
        )
        yield f"All times, ms:\n\n{time_table(series)}"
        yield f"Logits beside minibert's NumPy definition:\n\n{agreement_table(series)}"
    if starts:
        yield (
            "Cold start: a fresh process loads the embedded model with "
            f"{thread_label(count_cores())} and answers; medians (min-max):\n\n"
            f"{start_table(starts)}"
        )
    for threads, measured in results.gemm.items():
        yield f"GEMM, {threads}:\n\n{gemm.gemm_table(measured['rates'], DTYPES)}"
    noise_notes(results)
    for note in answer_notes({one.label: one.facts["answers"] for one in starts}):
        results.note(note)


# ---------------------------------------------------------------- the command


def command_cpu(args: argparse.Namespace) -> None:
    """Run `bench.py cpu`.

    Raises:
        BenchError: some float32 logits are wrong, or minibert cannot be measured at all.
    """
    args.shapes_given = args.shapes is not None
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.roofline and GEMM not in args.work:
        raise BenchError(f"no roofline: it shows the work {GEMM!r}, which was not asked for")
    results = Results([versions(PACKAGES)], args.json)
    libraries = [OURS, *([BEFORE] if args.against else [])]
    libraries += [library for library in RUNTIMES if library in args.peers]
    peers = choose_peers(libraries, args.dtypes, results)
    if args.against:
        results.note(f"before: the minibert of {args.against}.")
    with results.reported(partial(paragraphs, args, results)), model_folder(args.keep) as folder:
        measure_models(args, peers, folder, results)
        if START in args.work:
            measure_starts(args, peers, folder, results)
        if GEMM in args.work:
            measure_gemm(args, results)
    if args.roofline:
        most = thread_label(max(args.threads))
        picture = roofline(results.gemm[most], f"{cpu_model()}, {most}")
        args.roofline.write_text(picture, encoding="utf-8")
    if results.wrong:
        raise BenchError("wrong logits: " + "; ".join(results.wrong))


def work_name(text: str) -> str:
    """A parser for `listed`: a piece of work."""
    if text not in (START, GEMM):
        window_lengths(text)
    return text


def add_command(commands: Any) -> None:
    """Describe `cpu` and its options."""
    parser = commands.add_parser("cpu", help="the processor's kernels beside other runtimes")
    parser.set_defaults(run=command_cpu)
    unset = {"default": None}  # --quick says another
    add_option(parser, "--shapes", FULL["shapes"], **unset)
    add_option(
        parser,
        "--work",
        FULL["work"],
        **unset,
        type=listed(work_name),
        metavar="NAME,...",
        help="a number of tokens: one window; mixed: 64 windows with lengths as in SQuAD, for "
        f"{MIXED_SHAPE} unless --shapes is given; mixed8: 8 of them; start: cold starts and "
        "memory; gemm: share of the processor's peak",
    )
    add_names(parser, "--dtypes", DTYPES, "precisions")
    add_option(
        parser,
        "--threads",
        ["1", "all"],
        **unset,
        type=listed(thread_count),
        metavar="N,...",
        help="numbers of threads",
    )
    add_option(
        parser,
        "--peers",
        list(RUNTIMES),
        type=listed(one_of(*RUNTIMES, NONE)),
        metavar="NAME,...",
        help="libraries beside minibert, or none",
    )
    add_option(
        parser,
        "--against",
        type=program,
        metavar="PYTHON",
        help="the Python of an environment with another minibert, which is measured as 'before'",
    )
    add_option(parser, "--rounds", FULL["rounds"], **unset)
    parser.add_argument(
        "--quick", action="store_true", help="a try of a minute: fewer shapes, work and rounds"
    )
    add_option(parser, "--keep")
    add_option(parser, "--json")
    add_option(
        parser, "--roofline", type=new_file, metavar="FILE", help="also draw the GEMM, as SVG"
    )
