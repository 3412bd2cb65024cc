"""A learner's BERT beside the definition: where the two part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minibert import encoder
from minibert.arrays import Floats
from minibert.errors import InputError
from minibert.explaining.passes import Passes
from minibert.kernels import reference
from minibert.kernels.backend import REFERENCE, Logits
from minibert.lessons.learner import World, load_learner
from minibert.lessons.outcomes import attempt
from minibert.model import Model
from minibert.trace import Trace
from minibert.training.passes import Kept

EQUAL = 1e-4  # largest difference, as a part of the largest number, of steps that are the same


@dataclass(frozen=True)
class Departure:
    """The first step of a learner's BERT that gives something else than the definition's."""

    step: str  # its name in a trace, such as layer.0.qkv
    what: str  # how it differs


@dataclass(frozen=True, eq=False)
class Learnt:
    """A learner's run of one window."""

    functions: list[str]  # that are the learner's
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

    def model(self, model: Model, passes: Passes) -> Model:
        """The same model, run by the learner's functions."""
        return replace(model, kernels=self.world.backend, weights=passes.weights)

    def run(self, passes: Passes, kept: Kept) -> Learnt:
        """One window through the learner's functions, with every step written down.

        Raises:
            InputError: they end with an error, which is named with the last step before it.
        """
        mine, theirs = Trace(), Trace()
        given = kept.batch, passes.weights, passes.config
        right = encoder.bert(*given, REFERENCE, theirs)

        def run() -> Logits:
            backend = self.world.backend
            encoder.bert(*given, backend, mine)
            probs = self.world.function(reference.attention_probs)
            for i in range(passes.config.num_hidden_layers):  # which the encoder takes from NumPy
                qkv = mine[f"layer.{i}.qkv"]
                mine[f"layer.{i}.attention.probs.0"] = probs(qkv, passes.config.num_attention_heads)
            whole: Logits = self.world.function(encoder.bert)(*given, backend)
            return whole

        logits, error = attempt(run)
        if error is not None:
            last = f"behind {next(reversed(mine))}" if mine else "in the first step"
            raise InputError(
                f"{self.folder}: {last}: {type(error).__name__}: "
                f"{' '.join(str(error).split()):.200}. `minibert lessons check "
                f"{self.folder}` helps."
            )
        shapes = [np.shape(part) for part in logits] if isinstance(logits, tuple) else []
        if shapes != [part.shape for part in right]:
            raise InputError(
                f"{self.folder}: the logits should be two arrays of {len(right[0])} numbers. "
                f"`minibert lessons check {self.folder}` helps."
            )
        last_step = Trace(start_logits=logits[0], end_logits=logits[1])
        first = departure(mine, theirs) or departure(
            last_step, Trace(start_logits=right[0], end_logits=right[1])
        )
        return Learnt(list(self.functions), first, mine)


def departure(mine: Trace, theirs: Trace) -> Departure | None:
    """The first step whose result is not the definition's."""
    for step, right in theirs.items():
        got = mine.get(step)
        if got is None:
            return Departure(step, "it is missing")
        if np.shape(got) != right.shape:
            return Departure(step, f"its shape is {list(np.shape(got))}, not {list(right.shape)}")
        away = np.abs(got - right)
        if not away.max(initial=0) <= EQUAL * max(1.0, float(np.abs(right).max(initial=0))):
            place = np.unravel_index(int(np.nanargmax(np.nan_to_num(away, nan=np.inf))), away.shape)
            numbers = ", ".join(str(int(i)) for i in place)
            return Departure(
                step, f"at [{numbers}] it has {got[place]:.5g}, the definition {right[place]:.5g}"
            )
    return None


def named(functions: Iterable[str]) -> str:
    """Names of functions in a row."""
    return ", ".join(functions) or "none yet"
