"""`bench.py squad`: answering a SQuAD file, minibert beside ONNX Runtime, in one run.

Each side and precision is a process of its own that does the whole job, from the questions' text to
run_squad's predictions (squad_side.py).  They take turns in random order, never two at a time, so
that a ratio is of two times that lie close together.  What they predict is compared, too.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.machine import count_cores, versions
from benchmark.measure import model_folder, prepare_embedded, visit_all
from benchmark.options import add_names, add_option, listed, positive, thread_count
from benchmark.peers import LIBRARIES, OURS, Peer, choose_peers
from benchmark.processes import BenchError, Worker, say
from benchmark.results import Case, Results, Series, thread_label
from benchmark.tables import NOTHING, markdown, quartiles, ratio_of_rounds, three_digits

if TYPE_CHECKING:
    from minibert.config import BertConfig
    from minibert.squad.files import SquadData, SquadQuestion

PEER = "onnxruntime"
DTYPES = tuple(LIBRARIES[PEER][3])  # those in which there is a peer
PACKAGES = ("minibert", "numpy", "numba", "tokenizers", PEER)
QUESTIONS = 1000
ROUNDS = 5
THREADS = 2
SIZES = (8, 32)  # windows of the peer's padded batches; the fastest size counts
WARM_UP = 32  # questions before the first round: more than one packed batch
DIFFERENT = 1 / 500  # of the texts at most, in float32: sums in another order turn near ties


@dataclass
class Found:
    """Everything that the report needs."""

    data: SquadData
    questions: list[SquadQuestion]  # those that were answered
    config: BertConfig
    attention: Mapping[str, str]  # dtype of a model -> the dtype in which its attention multiplies
    threads: int
    series: list[Series] = field(default_factory=list)
    peaks: list[dict[str, float]] = field(default_factory=list)  # by dtype, one a round
    texts: dict[Series, list[str]] = field(default_factory=dict)  # predicted
    lengths: list[int] = field(default_factory=list)  # tokens of each window

    def by_dtype(self) -> dict[str, list[Series]]:
        """Of each precision ours, and then the peer's, the fastest first."""
        seen = [one for one in self.series if one.seconds]
        order = sorted(seen, key=lambda one: (not one.side.ours, one.median))
        found = {dtype: [one for one in order if one.side.dtype == dtype] for dtype in DTYPES}
        return {dtype: series for dtype, series in found.items() if series and series[0].side.ours}

    def counted(self) -> list[Series]:
        """Ours and the fastest of the peer's, of each precision."""
        return [one for series in self.by_dtype().values() for one in series[:2]]


# ---------------------------------------------------------------- sums


def operations(config: BertConfig, lengths: Sequence[int]) -> tuple[int, int]:
    """Operations of all passes; a multiplication with its addition counts as two.

    Args:
        config: of the model.
        lengths: tokens of each window.

    Returns:
        Those of the dense layers, and those of attention: queries times keys, and probabilities
        times values.
    """
    layers, d, f = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    dense = layers * (4 * d * d + 2 * d * f) + 2 * d  # q, k, v, output; to F and back; the head
    squares = sum(length * length for length in lengths)
    return 2 * sum(lengths) * dense, 2 * layers * 2 * d * squares


def floors(found: Found, dtype: str) -> list[float]:
    """Seconds of the multiplications alone at the processor's peak, one number a round.

    Returns:
        Nothing if the processor has no products of that dtype.
    """
    attention = found.attention[dtype]
    dense, products = operations(found.config, found.lengths)
    return [
        dense / peak[dtype] + products / peak[attention]
        for peak in found.peaks
        if dtype in peak and attention in peak
    ]


def count_different(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """How many texts are not the same."""
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


def score(questions: Sequence[SquadQuestion], texts: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 in percent."""
    from minibert.squad.metrics import squad_evaluate

    numbers = squad_evaluate(questions, {q.id: t for q, t in zip(questions, texts, strict=True)})
    return {name: numbers[name] for name in ("exact", "f1")}


# ---------------------------------------------------------------- tables

TIME_HEAD = (
    *("precision", "side", "seconds", "questions/s", "in the encoder, s", "outside it, s"),
    *("cores busy", "tokens", "computed", "ratio"),
)
WHOLE_HEAD = ("precision", "side", "seconds", "floor, s")
FLOOR_HEAD = ("precision", "side", "G operations", "floor, s", "of the encoder", "of the job")
TEXT_HEAD = ("precision", "side", "exact match", "F1", "texts unlike minibert's")


def row_of(one: Series) -> list[str]:
    """How a row begins: precision, library, and how its batches are made."""
    return [one.side.dtype, LIBRARIES[one.side.library][0] + (one.suffix or ", packed")]


def time_rows(found: Found) -> list[list[str]]:
    """A row a precision and side: how long it took."""
    rows = []
    for one in found.counted():
        outside = [a - b for a, b in zip(one.seconds, one.get("encoder"), strict=True)]
        peers = found.by_dtype()[one.side.dtype][1:2] if one.side.ours else ()
        ratios = [str(ratio_of_rounds(peer.seconds, one.seconds)) for peer in peers]
        rows.append(
            [
                *row_of(one),
                str(quartiles(one.seconds)),
                str(quartiles([len(found.questions) / seconds for seconds in one.seconds])),
                three_digits(one.middle("encoder")),
                three_digits(statistics.median(outside)),
                f"{one.middle('cores'):.1f}",
                f"{sum(found.lengths):,}",
                f"{one.facts['computed']:,}",
                *(ratios or [NOTHING]),
            ]
        )
    return rows


def whole_rows(found: Found) -> list[list[str]]:
    """A row a precision and side: how long the whole file takes, and at least has to take."""
    times = len(found.data.questions) / len(found.questions)
    rows = []
    for one in found.counted():
        known = floors(found, one.side.dtype)
        floor = three_digits(statistics.median(known) * times) if known else NOTHING
        rows.append([*row_of(one), three_digits(one.median * times), floor])
    return rows


def floor_rows(found: Found) -> list[list[str]]:
    """A row a precision and side: how near it comes to what the processor can do."""
    rows = []
    total = sum(operations(found.config, found.lengths))
    for one in found.counted():
        row = [*row_of(one), f"{total / 1e9:,.0f}", NOTHING, NOTHING, NOTHING]
        if known := floors(found, one.side.dtype):
            row[-3] = three_digits(statistics.median(known))
            row[-2] = f"{ratio_of_rounds(known, one.get('encoder')).median:.0%}"
            row[-1] = f"{ratio_of_rounds(known, one.seconds).median:.0%}"
        rows.append(row)
    return rows


def text_rows(found: Found) -> list[list[str]]:
    """A row a precision and series: what its predictions are worth."""
    rows = []
    for ours, *peers in found.by_dtype().values():
        for one in (ours, *peers):
            texts = found.texts[one]
            one.facts |= score(found.questions, texts)
            one.facts["different"] = count_different(found.texts[ours], texts)
            shown = [f"{one.facts[name]:.2f}" for name in ("exact", "f1")]
            different = NOTHING if one is ours else str(one.facts["different"])
            rows.append([*row_of(one), *shown, different])
    return rows


def wrong_texts(found: Found) -> list[str]:
    """Which float32 peers predict too often what minibert does not."""
    wrong = []
    series = found.by_dtype().get("float32", [])
    for one in series[1:]:
        different = count_different(found.texts[series[0]], found.texts[one])
        if different > DIFFERENT * len(found.questions):
            label = row_of(one)[1]
            wrong.append(
                f"{different} of {len(found.questions)} texts of {label} differ in float32"
            )
    return wrong


def peak_label(peaks: Sequence[Mapping[str, float]]) -> str:
    """The median peak of each dtype in words.

    Example:
        >>> peak_label([{"float32": 1e11, "int8": 3e11}, {"float32": 2e11, "int8": 3e11}])
        'float32 150 G/s, int8 300 G/s'
    """
    medians = {dtype: statistics.median(peak[dtype] for peak in peaks) for dtype in peaks[0]}
    return ", ".join(f"{dtype} {median / 1e9:.0f} G/s" for dtype, median in medians.items())


def paragraphs(found: Found, results: Results) -> Iterator[str]:
    """The report."""
    whole, asked, rounds = len(found.data.questions), len(found.questions), len(found.peaks)
    results.facts = {
        "data": found.data.name,
        "whole": whole,
        "questions": asked,
        "tokens": sum(found.lengths),
        "operations": operations(found.config, found.lengths),
        "peaks": found.peaks,
    }
    yield markdown(TIME_HEAD, time_rows(found), left=2)
    said = (
        f"{asked:,} of the {whole:,} questions of {found.data.name}, from text to run_squad's "
        f"predictions, {thread_label(found.threads)}; medians (quartiles) of {rounds} "
        f"round{'s' * (rounds != 1)} in random order. minibert packs windows as they come."
    )
    if not all(one.side.ours for one in found.series):
        said += (
            "\nThe peer gets all windows sorted by length, in padded batches; of their sizes the "
            "faster one counts. Ratio: its seconds over minibert's, round by round."
        )
    yield said
    how = "measured" if asked == whole else f"extrapolated from {asked:,}"
    yield f"The whole file, {whole:,} questions, {how}:"
    yield markdown(WHOLE_HEAD, whole_rows(found), left=2)
    yield (
        "The floor is the time of the multiplications alone, without padding, at the processor's "
        f"peak: {peak_label(found.peaks)}, measured in every round. Its share of the "
        f"{asked:,} questions' time:"
    )
    yield markdown(FLOOR_HEAD, floor_rows(found), left=2)
    yield f"The predictions:\n\n{markdown(TEXT_HEAD, text_rows(found), left=2)}"
    for dtype, (_, *peers) in found.by_dtype().items():
        for one in peers[1:]:
            slower, faster = (three_digits(x.median) for x in (one, peers[0]))
            label = row_of(one)[1]
            results.note(f"{dtype}, {label}: {slower} s; by {peers[0].size}: {faster} s.")


# ---------------------------------------------------------------- measuring


def load_sides(
    stack: contextlib.ExitStack, peers: Sequence[Peer], args: argparse.Namespace, results: Results
) -> dict[Peer, Worker]:
    """Start a process for each side, and have it load the model and the questions.

    Returns:
        Those that could.

    Raises:
        BenchError: minibert cannot.
    """
    folder = stack.enter_context(model_folder(args.keep))
    folder = prepare_embedded(folder, peers, results)
    workers = {}
    for peer in peers:
        if not (folder / peer.file).exists():
            continue
        worker = Worker(peer.label, args.threads, "squad", peer.library, peer.dtype, args.threads)
        stack.callback(worker.close)
        # Without minibert nothing can be measured.
        with contextlib.nullcontext() if peer.ours else results.going_on():
            worker.ask(do="load", folder=str(folder), data=str(args.data))
            workers[peer] = worker
    return workers


def measure(
    found: Found, workers: Mapping[Peer, Worker], args: argparse.Namespace, results: Results
) -> None:
    """Warm every side up, then have all answer the questions, round by round."""
    case = Case("squad", threads=args.threads)
    sizes = dict.fromkeys(args.sizes)
    going = [Series(case, peer, n) for peer in workers for n in ((0,) if peer.ours else sizes)]
    ours = next(worker for peer, worker in workers.items() if peer.ours)
    order = random.Random(0)
    for number in range(args.rounds + 1):
        say(f"round {number} of {args.rounds}" if number else "warm-up")
        count = len(found.questions) if number else min(WARM_UP, len(found.questions))

        def visit(one: Series, count: int = count) -> dict[str, float]:
            answer = workers[one.side].ask(do="answer", count=count, size=one.size)
            found.texts[one], found.lengths = answer["texts"], answer["lengths"]
            one.facts["computed"] = answer["computed"]
            say(f"{one.label}: {three_digits(answer['seconds'])} s")
            return {name: answer[name] for name in ("seconds", "encoder", "cores")}

        peak = ours.ask(do="peak")
        going = visit_all(going, visit, order, results)
        if not any(one.side.ours for one in going):
            raise BenchError("there is nothing to compare with: minibert failed")
        found.series = results.series = going  # the others failed
        if number:
            found.peaks.append(peak)
        else:
            for one in going:
                one.numbers.clear()


# ---------------------------------------------------------------- the command


def read_questions(args: argparse.Namespace) -> Found:
    """Read the file, and choose the questions.

    Raises:
        BenchError: it cannot be read.
    """
    from minibert.checkpoints.hub import find_model
    from minibert.config import BertConfig
    from minibert.errors import MinibertError
    from minibert.kernels.cpu.targets import find_target
    from minibert.squad.evaluation import spread
    from minibert.squad.files import read_squad

    try:
        data = read_squad(args.data)
        target = find_target()
        return Found(
            data=data,
            questions=spread(data.questions, args.questions or len(data.questions)),
            config=BertConfig.from_json(find_model(None).folder / "config.json"),
            attention={dtype: target.attention(dtype) for dtype in DTYPES},
            threads=args.threads,
        )
    except MinibertError as error:
        raise BenchError(str(error)) from None


def command_squad(args: argparse.Namespace) -> None:
    """Run `bench.py squad`.

    Raises:
        BenchError: the file or minibert cannot be used, or float32 predictions differ.
    """
    args.data = args.data.expanduser().resolve()
    results = Results([versions(PACKAGES)], args.json)
    peers = choose_peers((OURS, PEER), args.dtypes, results)
    found = read_questions(args)
    with results.reported(partial(paragraphs, found, results)), contextlib.ExitStack() as stack:
        measure(found, load_sides(stack, peers, args, results), args, results)
        results.wrong += wrong_texts(found)
    if results.wrong:
        raise BenchError("; ".join(results.wrong))


def question_count(text: str) -> int | None:
    """An argparse type: a number of questions, or None for 'all'."""
    return None if text == "all" else positive(text)


def add_command(commands: Any) -> None:
    """Describe `squad` and its options."""
    parser = commands.add_parser("squad", help="answering a SQuAD file, beside ONNX Runtime")
    parser.set_defaults(run=command_squad)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="SQuAD file: .json, .gz or .xz"
    )
    add_option(
        parser,
        "--questions",
        QUESTIONS,
        type=question_count,
        metavar="N",
        help="so many, evenly spread over the file, or 'all'",
    )
    add_option(parser, "--rounds", ROUNDS)
    add_names(parser, "--dtypes", DTYPES, "precisions")
    threads = min(THREADS, count_cores())
    add_option(
        parser,
        "--threads",
        threads,
        type=thread_count,
        metavar="N",
        help="threads of each side",
    )
    add_option(
        parser,
        "--sizes",
        list(SIZES),
        type=listed(positive),
        metavar="N,...",
        help="windows in the peer's batches",
    )
    add_option(parser, "--keep")
    add_option(parser, "--json")
