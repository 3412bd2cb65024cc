"""What each side of `bench.py squad` does in its process: from questions to their predictions.

Both read questions, lay out windows and decide on answers with minibert's code, in run_squad's way,
and have the whole job to do.  They differ in the encoder, and in its batches: minibert packs
windows as they come, without padding; the peer gets all windows sorted by length, in padded
batches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmark.peers import DTYPES, Peer, Run
from benchmark.workload import Inputs, Padded, pad_sorted, unpad
from minibert.kernels.cpu.measure import rate
from minibert.model import Model, load_model
from minibert.spans import Logits
from minibert.squad.decoders import SquadSettings, make_decoder
from minibert.squad.evaluation import predict, spread
from minibert.squad.files import SquadQuestion, read_squad
from minibert.windows import Window

T = TypeVar("T")
PEAKS = 5  # measurements of a peak

# ---------------------------------------------------------------- what the encoder does


@dataclass
class Meter:
    """What an encoder was given, and how long it took."""

    seconds: float = 0.0
    computed: int = 0  # tokens, those of the padding too
    lengths: list[int] = field(default_factory=list)  # tokens of each window

    def measure(self, encode: Callable[[], T], computed: int, lengths: NDArray[Any]) -> T:
        """Run one batch.

        Args:
            encode: what runs it.
            computed: tokens of the batch, those of the padding too.
            lengths: tokens of each window, without padding.
        """
        self.computed += int(computed)
        self.lengths += lengths.tolist()
        begin = time.perf_counter()
        logits = encode()
        self.seconds += time.perf_counter() - begin
        return logits


@dataclass(frozen=True, eq=False)
class MeteredModel(Model):
    """A model whose batches a meter sees."""

    meter: Meter = field(default_factory=Meter)

    def begin(self, windows: list[Window]) -> Callable[[], list[Logits]]:
        """See Model."""
        lengths = np.array([len(window) for window in windows])
        finish = super().begin(windows)
        return lambda: self.meter.measure(finish, lengths.sum(), lengths)


def metered_run(run: Run, meter: Meter) -> Run:
    """The same peer, whose passes a meter sees."""

    def measured(batch: Padded) -> Any:
        ids, mask, _ = batch
        return meter.measure(partial(run, batch), ids.size, mask.sum(1))

    return measured


# ---------------------------------------------------------------- from questions to predictions


def predict_padded(
    model: Model, run: Run, questions: Sequence[SquadQuestion], settings: SquadSettings, size: int
) -> list[str]:
    """What `minibert.squad.evaluation.predict` does, with a peer as encoder.

    Args:
        model: for its tokenizer.
        run: the peer.
        questions: all that are to be answered: the windows of all are sorted together.
        settings: how to read and decide.
        size: windows of a padded batch.

    Returns:
        The predicted text for each question.
    """
    decoder = make_decoder(model, settings)
    examples = [decoder.windows(question.question, question.context) for question in questions]
    windows = [
        Inputs("", "", window.input_ids, window.token_type_ids)
        for example in examples
        for window in example
    ]
    batches = list(pad_sorted(windows, size))
    lengths = [len(window.ids) for window in windows]
    logits = iter(unpad(batches, [run(batch) for _, batch in batches], lengths))
    return [
        decoder.decode(question.context, example, [tuple(next(logits)) for _ in example]).text
        for question, example in zip(questions, examples, strict=True)
    ]


# ---------------------------------------------------------------- the process


def peaks(threads: int) -> Iterator[tuple[str, float]]:
    """Each dtype of which this processor has products, and its operations per second."""
    for dtype in DTYPES:
        with suppress(ValueError):
            yield dtype, statistics.median(rate(dtype, threads) for _ in range(PEAKS))


class Side:
    """One library in one precision, which answers messages.

    They have a `do`: "load" the embedded model, for a peer from a `folder`, and the questions of
    a `data` file; "answer" `count` of them, spread evenly over the file, a peer in padded batches
    of `size`; or measure the "peak": operations per second of each dtype that this processor can.
    """

    def __init__(self, peer: Peer, threads: int) -> None:
        self.peer = peer
        self.threads = threads

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Do what a message says."""
        if message["do"] == "load":
            return self.load(message)
        if message["do"] == "peak":
            return dict(peaks(self.threads))
        return self.predict(spread(self.questions, message["count"]), message["size"])

    def load(self, message: dict[str, Any]) -> dict[str, Any]:
        """Load the model and the questions."""
        peer, threads = self.peer, self.threads
        data = read_squad(message["data"])
        self.questions = data.questions
        self.settings = SquadSettings(with_null=data.with_null)
        if peer.packed:
            self.model = load_model(device="cpu", dtype=peer.dtype, num_threads=threads)
        else:
            self.model = load_model(device="reference")
            # All texts are tokenised before the first is decided on: it keeps all till then.
            tokenizer = self.model.tokenizer
            tokenizer.encode = lru_cache(None)(tokenizer.encode.__wrapped__)
            self.run = peer.load(Path(message["folder"]) / peer.file, peer.dtype, threads)
        return {}

    def predict(self, questions: Sequence[SquadQuestion], size: int) -> dict[str, Any]:
        """Answer questions.

        Returns:
            seconds in all; encoder, those of them inside the encoder; cores, how many were busy;
            computed, tokens with padding; lengths, tokens of each window; the predicted texts.
        """
        self.model.tokenizer.encode.cache_clear()  # every round tokenises all texts
        meter = Meter()
        begin, busy = time.perf_counter(), time.process_time()
        if self.peer.packed:
            model = MeteredModel(**vars(self.model), meter=meter)
            texts = [answer.text for _, answer in predict(model, questions, self.settings)]
        else:
            run = metered_run(self.run, meter)
            texts = predict_padded(self.model, run, questions, self.settings, size)
        seconds = time.perf_counter() - begin
        return {
            "seconds": seconds,
            "encoder": meter.seconds,
            "cores": (time.process_time() - busy) / seconds,
            "computed": meter.computed,
            "lengths": meter.lengths,
            "texts": texts,
        }
