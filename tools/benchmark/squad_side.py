"""What each side of `bench.py squad` does in its process: from questions to their predictions.

Both read questions, lay out windows and decide on answers with minibert's code, in run_squad's way,
and have the whole job to do.  They differ in the encoder, and in its batches: minibert packs
windows as they come, without padding; the peer gets all windows sorted by length, in padded
batches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from benchmark.peers import DTYPES, Peer, Run
from benchmark.workload import Inputs, pad_sorted, unpad
from minibert.checkpoints.vocabularies import load_tokenizer
from minibert.kernels.cpu.measure import rate
from minibert.model import Model, load_model
from minibert.spans import Logits
from minibert.squad.decoders import SquadSettings
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

    def measure(self, encode: Callable[[], T], computed: int, lengths: Sequence[int]) -> T:
        """Run one batch.

        Args:
            encode: what runs it.
            computed: tokens of the batch, those of the padding too.
            lengths: tokens of each window, without padding.
        """
        self.computed += computed
        self.lengths += lengths
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
        lengths = [len(window) for window in windows]
        return partial(self.meter.measure, super().begin(windows), sum(lengths), lengths)


@dataclass(frozen=True, eq=False)
class PeerModel(Model):
    """A model whose windows a peer runs, all of them sorted by length, in padded batches."""

    meter: Meter = field(default_factory=Meter)
    run: Run | None = None
    size: int = 1  # windows of a batch

    def read(self, examples: Iterable[Any], **options: Any) -> Iterator[tuple[Any, Any, Any]]:
        """See Model."""
        kept = list(examples)
        windows = [Inputs("", "", w.input_ids, w.token_type_ids) for _, ws in kept for w in ws]
        lengths = [len(window.ids) for window in windows]
        batches = list(pad_sorted(windows, self.size))
        found = [
            self.meter.measure(partial(self.run, batch), batch[0].size, [lengths[i] for i in rows])
            for rows, batch in batches
        ]
        logits = iter(unpad(batches, found, lengths))
        for key, ws in kept:
            yield key, ws, [tuple(next(logits)) for _ in ws]


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

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a message says."""
        if message["do"] == "load":
            return self.load(message)
        if message["do"] == "peak":
            return dict(peaks(self.threads))
        return self.predict(spread(self.questions, message["count"]), message["size"])

    def load(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Load the model and the questions."""
        peer, threads = self.peer, self.threads
        data = read_squad(message["data"])
        self.questions = data.questions
        self.settings = SquadSettings(with_null=data.with_null)
        if peer.packed:
            self.model = load_model(device="cpu", dtype=peer.dtype, num_threads=threads)
        else:
            self.model = load_model(device="reference")
            self.run = peer.load(Path(message["folder"]) / peer.file, peer.dtype, threads)
        return {}

    def predict(self, questions: Sequence[SquadQuestion], size: int) -> dict[str, Any]:
        """Answer questions.

        Returns:
            seconds in all; encoder, those of them inside the encoder; cores, how many were busy;
            computed, tokens with padding; lengths, tokens of each window; the predicted texts.
        """
        meter = Meter()
        # Every round has a new tokenizer: an old one remembers texts.
        parts = vars(self.model) | {"tokenizer": load_tokenizer(self.model.files.folder)}
        if self.peer.packed:
            model: Model = MeteredModel(**parts, meter=meter)
        else:
            model = PeerModel(**parts, meter=meter, run=self.run, size=size)
            # All texts are tokenised before the first is decided on: they are kept all till then.
            model.tokenizer.encode = lru_cache(None)(model.tokenizer.encode)
        begin, busy = time.perf_counter(), time.process_time()
        texts = [answer.text for _, answer in predict(model, questions, self.settings)]
        seconds = time.perf_counter() - begin
        return {
            "seconds": seconds,
            "encoder": meter.seconds,
            "cores": (time.process_time() - busy) / seconds,
            "computed": meter.computed,
            "lengths": meter.lengths,
            "texts": texts,
        }
