"""What a learner's functions give together: an answer with the real weights, and a falling loss.

`python -m minibert.lessons.whole`, started by checking.py: it runs a learner's code.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minibert import encoder, windows
from minibert.arrays import Floats
from minibert.batches import pack
from minibert.kernels.training import AdamW
from minibert.lessons import choice
from minibert.lessons.catalogue import LESSONS
from minibert.lessons.folder import QUESTION, TEXT
from minibert.lessons.learner import Functions, World, load_learner, said
from minibert.lessons.models import small_batch, small_model
from minibert.lessons.outcomes import attempt
from minibert.lessons.processes import report
from minibert.model import Model, load_model
from minibert.parameters import full
from minibert.spans import Span
from minibert.training import loss, passes
from minibert.training.flat import flatten, map_arrays, zeros_like

LONGEST = 30  # tokens of an answer
STEPS = 30  # of the training run


class Read(NamedTuple):
    """What came of a question."""

    answer: str
    span: Span | None
    logits: Floats  # [2, T]


def read_with(world: World, model: Model, question: str, text: str) -> Read:
    """Answer a question with a world's functions, in one window; every step of part one runs."""
    tokens = model.tokenizer.encode(question), model.tokenizer.encode(text)
    make_windows = world.names(windows.text_parts)["make_windows"]
    (window, *_) = make_windows(
        *tokens, pair=model.pair, max_seq_length=model.usual_seq_length, doc_stride=128
    )
    batch = pack([window])
    bert = world.function(encoder.bert)
    start, end = bert(batch, model.weights, model.config, world.backend)
    begin = window.offset
    past = begin + window.end - window.begin
    span = world.function(choice.best_span)(start, end, begin, past, LONGEST, 0.0)
    if span is None:
        return Read("", None, np.stack([start, end]))
    first, last = (window.begin + place - begin for place in span[:2])
    offsets = tokens[1].offsets
    found = text[int(offsets[first, 0]) : int(offsets[last, 1])]
    return Read(found, Span(*span), np.stack([start, end]))


def answer_lines(functions: Functions) -> Iterator[str]:
    """The answer that a learner's functions give, and how far its logits are from the definition's.

    Those are compared in float64, where the order of sums does not show.
    """
    model = load_model(device="reference")
    mine = read_with(World(functions), model, QUESTION, TEXT)
    score = f", score {mine.span.score:.4f}" if mine.span else ""
    mixed = "yours, and the library's where there is no result of yours"
    yield f"{QUESTION} With {mixed if functions else 'the library alone'}:"
    yield f"    {mine.answer or '(no answer)'}{score}"
    if not functions:
        return
    wide = replace(model, weights=map_arrays(model.weights, lambda *of: full(of[2]).astype("f8")))
    yours, right = (read_with(World(f), wide, QUESTION, TEXT).logits for f in (functions, {}))
    off = float(np.abs(yours - right).max())
    if np.array_equal(yours.astype(np.float32), right.astype(np.float32)):
        yield "    logits equal to the definition's to the last digit of float32"
    else:
        largest = float(np.abs(right).max())
        yield f"    logits at most {off:.2g} from the definition's, which reach {largest:.3g}"
    part_one = {step.name for lesson in LESSONS if lesson.part == 1 for step in lesson.steps}
    if part_one <= set(functions) and off < 1e-6:
        yield "    The whole of BERT is yours."


def train_with(world: World, steps: int = STEPS) -> list[float]:
    """Teach a small random BERT where five answers stand; the loss before each step."""
    weights, config, _ = small_model(np.float32)
    kernels = world.training
    batch = small_batch(5, 6, 7, 5, 8)
    starts, ends = [[2], [3], [0], [4], [5]], [[3], [5], [0], [4], [6]]
    own = flatten(weights)
    gradient, first, second = (zeros_like(own) for _ in range(3))
    prepared = kernels.prepare(own.weights)
    span_loss = world.names(loss.cross_entropy)["span_loss"]
    losses = []
    for step in range(1, steps + 1):
        gradient.array[:] = 0
        kept = passes.forward(batch, prepared, config, kernels)
        found = span_loss(kept.start_logits, kept.end_logits, batch.cu_seqlens, starts, ends)
        losses.append(float(found.loss) / len(starts))
        passes.backward(
            kept, found.d_start, found.d_end, prepared, gradient.weights, config, kernels
        )
        settings = AdamW(0.01, 0.9, 0.999, 1e-8, 0.0, step, 1 / len(starts))
        kernels.adamw(own.array, gradient.array, first.array, second.array, settings)
    return losses


def training_lines(functions: Functions) -> Iterator[str]:
    """How the loss of a small model falls with a learner's functions."""
    losses = train_with(World(functions))
    shown = " ".join(f"{each:.2f}" for each in losses[:: max(1, len(losses) // 6)])
    yield f"A small random BERT learns five answers with your gradients; its loss: {shown}"


def main(folder: Path, names: str) -> dict[str, Any]:
    """Put the functions of these names together."""
    part_two = {step.name for lesson in LESSONS if lesson.part == 2 for step in lesson.steps}
    functions = load_learner(folder, names.split(","))
    lines: list[str] = []

    def put_together() -> None:
        lines.extend(answer_lines(functions))
        if part_two & set(functions):
            lines.extend(training_lines(functions))

    _, error = attempt(put_together)
    if error is not None:
        paths = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        path = next((path for path in reversed(paths) if path.parent == folder), folder)
        lines.append(f"    they end with an error: {path.name}: {said(error, path)}")
    return {"lines": lines}


if __name__ == "__main__":
    report(main)
