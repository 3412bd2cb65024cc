"""A learner's BERT beside the definition: where the two part."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minibert import encoder
from minibert.arrays import Floats
from minibert.batches import pack
from minibert.errors import InputError
from minibert.explaining.passes import Passes
from minibert.lessons.catalogue import LESSONS
from minibert.lessons.learner import World, departure, load_learner
from minibert.lessons.outcomes import attempt
from minibert.options import expanded
from minibert.spans import Logits
from minibert.trace import Trace
from minibert.training.passes import Kept
from minibert.windows import Window

# Windows, and the choice of a span, are the library's in a page; and nothing is trained in it.
RAN = {step.name for lesson in LESSONS if lesson.part == 1 for step in lesson.steps} - {
    *("text_parts", "join", "best_span")
}


@dataclass(frozen=True)
class Departure:
    """The first step of a learner's BERT that gives something else than the definition's."""

    step: str  # its name in a trace, such as layer.0.qkv
    what: str  # how it differs


@dataclass(frozen=True, eq=False)
class Learnt:
    """A learner's run of one window."""

    functions: list[str]  # of the learner's that ran
    others: list[str]  # of theirs that no answer of a page comes from
    departure: Departure | None  # None: all steps are the definition's
    trace: Trace

    def hidden(self, layers: int) -> list[Floats]:
        """What the first layer takes and what each gives, [S, D]."""
        first = self.trace.get("projection", self.trace["embeddings"])
        return [first, *(self.trace[f"layer.{i}"] for i in range(layers))]

    def probs(self, layers: int) -> list[Floats]:
        """The attention probabilities of each layer, [H, S, S]."""
        return [self.trace[f"layer.{i}.attention.probs.0"] for i in range(layers)]


class Learner:
    """The functions of a folder of lessons, in the place of the definition's.

    Raises:
        InputError: the folder holds no lessons, or a file in it cannot be run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)
        self.functions = load_learner(folder)
        self.world = World(self.functions)

    def logits(self, passes: Passes, window: Window) -> Logits:
        """What the learner's BERT gives for a window.

        Raises:
            InputError: it gives something else than finite logits, or ends with an error.
        """
        bert = self.world.function(encoder.bert)
        batch = pack([window])
        found, error = attempt(
            lambda: bert(batch, passes.weights, passes.config, self.world.backend)
        )
        if error is not None:
            raise self.failed(error, "in bert")
        return self.checked(found, len(window))

    def checked(self, logits: Any, size: int) -> Logits:
        """Logits as they should be.

        Raises:
            InputError: they are not.
        """
        right = isinstance(logits, tuple) and [np.shape(part) for part in logits] == [(size,)] * 2
        if not right or not np.isfinite(np.stack(logits)).all():
            raise InputError(
                f"{self.folder}: the logits should be two arrays of {size} finite numbers. "
                f"`minibert lessons check {self.folder}` helps."
            )
        start, end = logits
        return start.astype(np.float32), end.astype(np.float32)

    def failed(self, error: BaseException, where: str) -> InputError:
        """What is said of an error that a learner's function ends with."""
        return InputError(
            f"{self.folder}: {place_of(error, self.folder)}{where}: {type(error).__name__}: "
            f"{' '.join(str(error).split()):.200}. `minibert lessons check "
            f"{self.folder}` helps."
        )

    def run(self, passes: Passes, kept: Kept) -> Learnt:
        """One window through the learner's functions, with every step written down.

        Raises:
            InputError: they end with an error, which is named with the last step before it.
        """
        given = kept.batch, passes.weights, passes.config
        mine, right = self.world.traced(*given), World().traced(*given)
        logits, error = mine.logits, mine.error
        if error is None:  # bert itself may be the learner's too
            bert = self.world.function(encoder.bert)
            logits, error = attempt(lambda: bert(*given, self.world.backend))
        if error is not None:
            last = f"behind {next(reversed(mine.trace))}" if mine.trace else "in the first step"
            raise self.failed(error, last)
        theirs = np.stack(right.logits or ())  # [2, S]
        logits = self.checked(logits, theirs.shape[1])
        step = departure(mine._replace(logits=logits), right)
        first = None
        if step == "logits":
            first = Departure(step, difference(np.stack(logits), theirs))
        elif step is not None:
            first = Departure(step, difference(mine.trace.get(step), right.trace[step]))
        ran = [name for name in self.functions if name in RAN]
        return Learnt(ran, [name for name in self.functions if name not in RAN], first, mine.trace)


def difference(got: Floats | None, right: Floats) -> str:
    """How a step's result differs from the definition's."""
    if got is None:
        return "it is missing"
    if np.shape(got) != right.shape:
        return f"its shape is {list(np.shape(got))}, not {list(right.shape)}"
    away = np.nan_to_num(np.abs(got - right), nan=np.inf)
    place = np.unravel_index(int(away.argmax()), away.shape)
    numbers = ", ".join(str(int(i)) for i in place)
    return f"at [{numbers}] it has {got[place]:.5g}, the definition {right[place]:.5g}"


# The end of a step's name in a trace -> what it computes, with the lessons' functions.
STEPS = {
    "embeddings": "the embeddings (embed, layer_norm)",
    "projection": "the projection of the embeddings (linear)",
    "qkv": "queries, keys and values (linear)",
    "attention.probs.0": "attention's probabilities (split_heads, softmax, attention_probs)",
    "attention.context": "what attention reads (attention)",
    "attention.output": "the first half of the layer (linear, layer_norm)",
    "intermediate": "the inner numbers of the feed-forward part (linear, gelu)",
    "logits": "the logits (bert, encoder_layer, span_logits)",
}


def named_step(step: str) -> str:
    """A step of a trace in words.

    Example:
        >>> named_step("layer.3.qkv"), named_step("layer.3")
        ('queries, keys and values (linear) of layer 3', 'the result of layer 3')
    """
    if step in STEPS:
        return STEPS[step]
    _, layer, *rest = step.split(".", 2)
    return f"{STEPS[rest[0]] if rest else 'the result'} of layer {layer}"


def place_of(error: BaseException, folder: str) -> str:
    """In which function and line of a learner's file an error arose; '' if in none."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if Path(frame.filename).parent == Path(expanded(folder))]
    if not mine:
        return ""
    return f"{Path(mine[-1].filename).name}, line {mine[-1].lineno}, in {mine[-1].name}: "


def named(functions: Iterable[str]) -> str:
    """Names of functions in a row."""
    return ", ".join(functions) or "none yet"
