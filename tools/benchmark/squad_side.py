"""What each side of `bench.py squad` does in its process: from questions to their predictions.

Both read questions, lay out windows and decide on answers with minibert's code, in run_squad's way,
and have the whole job to do.  They differ in the encoder, and in its batches: minibert packs
windows as they come, without padding; the peer gets all windows sorted by length, in padded
batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmark.gemm import gemm_rates
from benchmark.peers import Peer, Run
from benchmark.workload import Floats, Padded, pad_sorted
from benchmark.workload import Window as Inputs
from minibert.batches import Batch
from minibert.config import BertConfig
from minibert.encoder import qa_logits
from minibert.kernels.cpu.measure import rate
from minibert.model import Model, load_model
from minibert.parameters import Weights
from minibert.spans import Logits
from minibert.squad.decoders import SquadSettings, make_decoder
from minibert.squad.evaluation import predict, spread
from minibert.squad.files import SquadQuestion, read_squad
from minibert.windows import Window

T = TypeVar("T")

# ---------------------------------------------------------------- what the encoder does


@dataclass
class Meter:
    """What an encoder was given, and how long it took."""

    seconds: float = 0.0
    computed: int = 0  # tokens, those of the padding too
    lengths: list[int] = field(default_factory=list)  # tokens of each window

    def measure(self, encode: Callable[[], T], ids: NDArray[Any], lengths: NDArray[Any]) -> T:
        """Run one batch.

        Args:
            encode: what runs it.
            ids: of all tokens in the batch.
            lengths: tokens of each window, without padding.
        """
        self.computed += ids.size
        self.lengths += lengths.tolist()
        begin = time.perf_counter()
        logits = encode()
        self.seconds += time.perf_counter() - begin
        return logits


def metered_model(model: Model, meter: Meter) -> Model:
    """The same model, whose passes a meter sees."""

    def forward(batch: Batch, weights: Weights, config: BertConfig) -> tuple[Floats, Floats]:
        encode = partial(qa_logits, batch, weights, config, model.kernels)
        return meter.measure(encode, batch.input_ids, np.diff(batch.cu_seqlens))

    return replace(model, kernels=replace(model.kernels, forward=forward))


def metered_run(run: Run, meter: Meter) -> Run:
    """The same peer, whose passes a meter sees."""

    def measured(batch: Padded) -> tuple[Floats, Floats]:
        ids, mask, _ = batch
        return meter.measure(partial(run, batch), ids, mask.sum(1))

    return measured


# ---------------------------------------------------------------- from questions to predictions


def padded_logits(run: Run, windows: Sequence[Window], size: int) -> list[Logits]:
    """Run a peer on windows sorted by length, in padded batches of `size`.

    Returns:
        Start and end logits [S] of each window, in the order of `windows`.
    """
    found: dict[int, Logits] = {}
    inputs = [Inputs(window.input_ids, window.token_type_ids) for window in windows]
    for rows, batch in pad_sorted(inputs, size):
        start, end = run(batch)  # [B, S]
        for row, i in enumerate(rows):
            n = len(windows[i])
            found[i] = start[row, :n], end[row, :n]
    return [found[i] for i in range(len(windows))]


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
    windows = [window for example in examples for window in example]
    logits = iter(padded_logits(run, windows, size))
    return [
        decoder.decode(question.context, example, [next(logits) for _ in example]).text
        for question, example in zip(questions, examples, strict=True)
    ]


# ---------------------------------------------------------------- the process


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
            rates = gemm_rates(rate, self.threads, ())
            return {dtype: peak for dtype, [(_, peak)] in rates.items()}
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
        self.model.tokenizer.encode.clear()  # every round tokenises all texts
        meter = Meter()
        begin, busy = time.perf_counter(), time.process_time()
        if self.peer.packed:
            model = metered_model(self.model, meter)
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
