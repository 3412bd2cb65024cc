"""`bench.py squad`: answering a SQuAD file, minibert beside ONNX Runtime, in one run.

Each side and precision is a process of its own that does the whole job, from the questions' text to
run_squad's predictions (squad_side.py).  They take turns in random order, never two at a time, so
that a ratio is of two times that lie close together.  What they predict is compared, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.cpu import choose_peers, model_folder, prepare_embedded, thread_count
from benchmark.machine import count_cores, header, versions
from benchmark.options import listed, one_of, positive
from benchmark.peers import LIBRARIES, Peer
from benchmark.processes import BenchError, Worker, say
from benchmark.results import Results, thread_label
from benchmark.tables import NOTHING, markdown, quartiles, ratio_of_rounds, three_digits

if TYPE_CHECKING:
    from minibert.config import BertConfig
    from minibert.squad.files import SquadData, SquadQuestion

PEER = "onnxruntime"
DTYPES = tuple(LIBRARIES[PEER][3])  # those in which there is a peer
PACKAGES = ("minibert", "numpy", "numba", "tokenizers", PEER)
QUESTIONS = 1000
ROUNDS = 5
SIZES = (8, 32)  # windows of the peer's padded batches; the fastest size counts
WARM_UP = 32  # questions before the first round: more than one packed batch
# The goal: the whole dev set of SQuAD 2.0, on two cores, in this precision.
GOAL_QUESTIONS, GOAL_THREADS, GOAL_DTYPE, GOAL_SECONDS = 11_873, 2, "float32", 120.0
DIFFERENT = 1 / 500  # of the texts at most, in float32: sums in another order turn near ties


@dataclass
class Series:
    """The rounds of one side."""

    peer: Peer
    size: int  # windows of a padded batch; 1 of ours, which has none
    seconds: list[float] = field(default_factory=list)  # one number a round, as the next two
    encoder: list[float] = field(default_factory=list)  # seconds, of those, in the encoder
    cores: list[float] = field(default_factory=list)  # that were busy
    computed: int = 0  # tokens, those of padding too
    lengths: list[int] = field(default_factory=list)  # tokens of each window
    texts: list[str] = field(default_factory=list)  # predicted

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def label(self) -> str:
        """The library, and how its batches are made."""
        batches = "packed" if self.peer.packed else f"by {self.size}"
        return f"{LIBRARIES[self.peer.library][0]}, {batches}"

    @property
    def key(self) -> tuple[str, str]:
        """Precision and label: how rows begin."""
        return self.peer.dtype, self.label


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

    def by_dtype(self) -> dict[str, list[Series]]:
        """Of each precision ours, and then the peer's, the fastest first."""
        order = sorted(self.series, key=lambda one: (not one.peer.packed, one.median))
        found = {dtype: [one for one in order if one.peer.dtype == dtype] for dtype in DTYPES}
        return {dtype: series for dtype, series in found.items() if series}

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


def floors(found: Found, series: Series) -> list[float]:
    """Seconds of the multiplications alone at the processor's peak, one number a round.

    Returns:
        Nothing if the processor has no products of that dtype.
    """
    dtype, attention = series.peer.dtype, found.attention[series.peer.dtype]
    dense, products = operations(found.config, series.lengths)
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
WHOLE_HEAD = ("precision", "side", "seconds", "floor, s", "goal, s", "reached")
FLOOR_HEAD = ("precision", "side", "G operations", "floor, s", "of the encoder", "of the job")
TEXT_HEAD = ("precision", "side", "exact match", "F1", "texts unlike minibert's")


def time_rows(found: Found) -> list[list[str]]:
    """A row a precision and side: how long it took."""
    rows = []
    for one in found.counted():
        outside = [a - b for a, b in zip(one.seconds, one.encoder, strict=True)]
        ratio = NOTHING
        if one.peer.packed:
            for peer in found.by_dtype()[one.peer.dtype][1:2]:
                ratio = str(ratio_of_rounds(peer.seconds, one.seconds))
        rows.append(
            [
                *one.key,
                str(quartiles(one.seconds)),
                str(quartiles([len(found.questions) / seconds for seconds in one.seconds])),
                three_digits(statistics.median(one.encoder)),
                three_digits(statistics.median(outside)),
                f"{statistics.median(one.cores):.1f}",
                f"{sum(one.lengths):,}",
                f"{one.computed:,}",
                ratio,
            ]
        )
    return rows


def whole_rows(found: Found) -> list[list[str]]:
    """A row a precision and side: how long the whole file takes, and at least has to take."""
    whole = len(found.data.questions)
    times = whole / len(found.questions)
    rows = []
    for one in found.counted():
        seconds = one.median * times
        row = [*one.key, three_digits(seconds), NOTHING, NOTHING, NOTHING]
        if known := floors(found, one):
            row[-3] = three_digits(statistics.median(known) * times)
        at = (whole, found.threads, one.peer.dtype)
        if one.peer.packed and at == (GOAL_QUESTIONS, GOAL_THREADS, GOAL_DTYPE):
            row[-2:] = [f"{GOAL_SECONDS:.0f}", "yes" if seconds < GOAL_SECONDS else "no"]
        rows.append(row)
    return rows


def floor_rows(found: Found) -> list[list[str]]:
    """A row a precision and side: how near it comes to what the processor can do."""
    rows = []
    for one in found.counted():
        total = sum(operations(found.config, one.lengths))
        row = [*one.key, f"{total / 1e9:,.0f}", NOTHING, NOTHING, NOTHING]
        if known := floors(found, one):
            row[-3] = three_digits(statistics.median(known))
            for place, seconds in ((-2, one.encoder), (-1, one.seconds)):
                row[place] = f"{ratio_of_rounds(known, seconds).median:.0%}"
        rows.append(row)
    return rows


def text_rows(found: Found) -> list[list[str]]:
    """A row a precision and series: what its predictions are worth."""
    rows = []
    for ours, *peers in found.by_dtype().values():
        for one in (ours, *peers):
            numbers = score(found.questions, one.texts)
            different = NOTHING if one is ours else str(count_different(ours.texts, one.texts))
            rows.append([*one.key, *(f"{value:.2f}" for value in numbers.values()), different])
    return rows


def wrong_texts(found: Found) -> list[str]:
    """Which float32 peers predict too often what minibert does not."""
    wrong = []
    series = found.by_dtype().get("float32", [])
    for one in series[1:]:
        different = count_different(series[0].texts, one.texts)
        if different > DIFFERENT * len(one.texts):
            wrong.append(f"{different} of {len(one.texts)} texts of {one.label} differ in float32")
    return wrong


def print_found(found: Found, results: Results) -> None:
    """Print everything as Markdown."""
    whole, asked, rounds = len(found.data.questions), len(found.questions), len(found.peaks)
    print(header([versions(PACKAGES)]) + "\n")
    print(markdown(TIME_HEAD, time_rows(found), left=2) + "\n")
    print(
        f"{asked:,} of the {whole:,} questions of {found.data.name}, from text to run_squad's "
        f"predictions, {thread_label(found.threads)}; medians (quartiles) of {rounds} "
        f"round{'s' * (rounds != 1)} in random order. minibert packs windows as they come."
    )
    if not all(one.peer.packed for one in found.series):
        print(
            "The peer gets all windows sorted by length, in padded batches; of their sizes the "
            "faster one counts. Ratio: its seconds over minibert's, round by round."
        )
    how = "measured" if asked == whole else f"extrapolated from {asked:,}"
    print(f"\nThe whole file, {whole:,} questions, {how}:\n")
    print(markdown(WHOLE_HEAD, whole_rows(found), left=2) + "\n")
    print(
        "The floor is the time of the multiplications alone, without padding, at the processor's "
        f"peak: {peak_label(found.peaks)}, measured in every round. Its share of the "
        f"{asked:,} questions' time:\n"
    )
    print(markdown(FLOOR_HEAD, floor_rows(found), left=2) + "\n")
    print(f"The predictions:\n\n{markdown(TEXT_HEAD, text_rows(found), left=2)}\n")
    for note in [*results.notes, *slower_notes(found)]:
        print(f"- {note}")


def slower_notes(found: Found) -> Iterator[str]:
    """The batches that do not count."""
    for dtype, series in found.by_dtype().items():
        for one in series[2:]:
            slower, faster = (three_digits(x.median) for x in (one, series[1]))
            yield f"{dtype}, {one.label}: {slower} s; by {series[1].size}: {faster} s."


def peak_label(peaks: Sequence[Mapping[str, float]]) -> str:
    """The median peak of each dtype in words.

    Example:
        >>> peak_label([{"float32": 1e11, "int8": 3e11}, {"float32": 2e11, "int8": 3e11}])
        'float32 150 G/s, int8 300 G/s'
    """
    medians = {dtype: statistics.median(peak[dtype] for peak in peaks) for dtype in peaks[0]}
    return ", ".join(f"{dtype} {median / 1e9:.0f} G/s" for dtype, median in medians.items())


def write_json(file: Path, found: Found, results: Results) -> None:
    """Write every number; of the texts only what they are worth."""
    series = [
        {
            "library": one.peer.library,
            "dtype": one.peer.dtype,
            "batch": NOTHING if one.peer.packed else one.size,
            "seconds": one.seconds,
            "encoder": one.encoder,
            "cores": one.cores,
            "windows": len(one.lengths),
            "tokens": sum(one.lengths),
            "computed": one.computed,
            "operations": operations(found.config, one.lengths),
            **score(found.questions, one.texts),
            "different": count_different(ours.texts, one.texts),
        }
        for ours, *peers in found.by_dtype().values()
        for one in (ours, *peers)
    ]
    written = {
        "header": header([versions(PACKAGES)]),
        "data": found.data.name,
        "whole": len(found.data.questions),
        "questions": len(found.questions),
        "threads": found.threads,
        "series": series,
        "peaks": found.peaks,
        "notes": list(results.notes),
    }
    file.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


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
    if files := [peer.file for peer in peers if peer.file]:
        names = dict.fromkeys(["model.onnx", *files])  # the others are made of the first
        folder = prepare_embedded(folder, peers, results, tuple(names))
    workers = {}
    for peer in peers:
        if not (folder / peer.file).exists():
            continue
        worker = Worker(peer.label, args.threads, "squad", peer.library, peer.dtype, args.threads)
        stack.callback(worker.close)
        with going_on(peer, results):
            worker.ask(do="load", folder=str(folder), data=str(args.data))
            workers[peer] = worker
    return workers


@contextlib.contextmanager
def going_on(peer: Peer, results: Results) -> Iterator[None]:
    """Note a peer's failure, and go on without it; without minibert nothing can be measured."""
    try:
        yield
    except BenchError as error:
        if peer.packed:
            raise
        results.note(str(error))


def measure(
    found: Found, workers: Mapping[Peer, Worker], args: argparse.Namespace, results: Results
) -> None:
    """Warm every side up, then have all answer the questions, round by round."""
    count = len(found.questions)
    ours = next(worker for peer, worker in workers.items() if peer.packed)
    sizes = tuple(dict.fromkeys(args.sizes))
    going = [Series(peer, size) for peer in workers for size in ((1,) if peer.packed else sizes)]
    order = random.Random(0)
    for number in range(args.rounds + 1):
        say(f"round {number} of {args.rounds}" if number else "warm-up")
        peak = ours.ask(do="peak")
        if number:
            found.peaks.append(peak)
        for one in order.sample(going, len(going)):
            with going_on(one.peer, results):
                asked = count if number else min(WARM_UP, count)
                visit = workers[one.peer].ask(do="answer", count=asked, size=one.size)
                if number:
                    keep(one, visit)
        going = [one for one in going if len(one.seconds) == number]  # the others failed
    found.series = going


def keep(series: Series, visit: Mapping[str, Any]) -> None:
    """Add a round."""
    for name in ("seconds", "encoder", "cores"):
        getattr(series, name).append(visit[name])
    for name in ("computed", "lengths", "texts"):
        setattr(series, name, visit[name])
    say(f"{series.peer.dtype}, {series.label}: {three_digits(visit['seconds'])} s")


# ---------------------------------------------------------------- the command


def read_questions(args: argparse.Namespace) -> Found:
    """Read the file, and choose the questions.

    Raises:
        BenchError: it cannot be read, or the JSON could not be written.
    """
    from minibert.checkpoints.hub import find_model
    from minibert.config import BertConfig
    from minibert.errors import MinibertError
    from minibert.files import check_output
    from minibert.kernels.cpu.targets import find_target
    from minibert.squad.evaluation import spread
    from minibert.squad.files import read_squad

    try:
        if args.json:
            check_output(args.json)
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
    args.peers, args.data = [PEER], args.data.expanduser().resolve()
    results = Results()
    peers = choose_peers(args, results)
    found = read_questions(args)
    with contextlib.ExitStack() as stack:
        measure(found, load_sides(stack, peers, args, results), args, results)
    print_found(found, results)
    if args.json:
        write_json(args.json, found, results)
    if wrong := wrong_texts(found):
        raise BenchError("; ".join(wrong))


def question_count(text: str) -> int | None:
    """An argparse type: a number of questions, or None for 'all'."""
    return None if text == "all" else positive(text)


def threads(text: str) -> int:
    """An argparse type: a number of threads that this process may use."""
    [count] = listed(thread_count)(text)
    return count


def add_command(commands: Any) -> None:
    """Describe `squad` and its options."""
    parser = commands.add_parser("squad", help="answering a SQuAD file, beside ONNX Runtime")
    parser.set_defaults(run=command_squad)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="SQuAD file: .json, .gz or .xz"
    )
    parser.add_argument(
        "--questions",
        type=question_count,
        default=QUESTIONS,
        metavar="N",
        help=f"so many, evenly spread over the file, or 'all' (default: {QUESTIONS})",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        default=ROUNDS,
        metavar="N",
        help=f"rounds that count (default: {ROUNDS})",
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
        type=threads,
        default=min(GOAL_THREADS, count_cores()),
        metavar="N",
        help=f"threads of each side (default: {GOAL_THREADS}, as the goal has it)",
    )
    parser.add_argument(
        "--sizes",
        type=listed(positive),
        default=list(SIZES),
        metavar="N,...",
        help=f"windows in the peer's batches (default: {','.join(map(str, SIZES))})",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the peer's models there for the next run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number there")
