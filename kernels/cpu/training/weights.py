"""Weights in training: master weights in float32, packed for both directions of every product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats
from minibert.kernels.numbers import round_up
from minibert.parameters import Dense, Parameters, Weights, full, map_layers

from ..packing import PackedTables, Record, address, aligned, pack_head, pack_norm, pack_tables
from ..records import DENSE
from ..targets import SIZES, Target
from .memory import Buffer, Workspace


@dataclass(frozen=True, eq=False, repr=False)
class TrainedDense:
    """A dense layer packed for both directions; the master weights stay where they are."""

    out: int
    into: int
    narrow: Buffer  # rows as products read them; shared by all layers of a shape
    forward: NDArray[np.uint8]  # panels of the columns of y
    backward: NDArray[np.uint8]  # panels of the columns of d_x
    forward_steps: int
    backward_steps: int
    bias: Floats
    nothing: Floats  # zeros, to begin the sums of d_x with

    @cached_property
    def record(self) -> Record:
        """A records.DENSE for y = x W^T + b."""
        return self._record(self.forward, self.bias, self.out, self.into, self.forward_steps)

    @cached_property
    def turned(self) -> Record:
        """A records.DENSE for d_x = d_y W."""
        return self._record(self.backward, self.nothing, self.into, self.out, self.backward_steps)

    def _record(
        self, panels: NDArray[np.uint8], start: Floats, out: int, into: int, steps: int
    ) -> Record:
        record = np.zeros((), DENSE)
        record["weights"], record["start"] = address(panels), address(start)
        record["out"], record["into"], record["steps"] = out, into, steps
        record["panels"] = len(panels)
        return record


TrainedWeights: TypeAlias = Parameters[PackedTables, TrainedDense, Floats, Floats]


def make_room(weights: Weights, operand: str, target: Target) -> TrainedWeights:
    """Room for a model's weights, packed for both directions; `copy_rest` and a job fill it.

    Args:
        weights: the master weights; the tables are not copied.
        operand: how products keep numbers.
        target: the processor.
    """
    narrow: dict[tuple[int, int], Buffer] = {}
    widest = max([0, *(full(dense.weight).shape[1] for dense, _ in pairs(weights, weights))])
    nothing = aligned((round_up(widest, target.panel),), np.float32)

    def dense(dense: Dense) -> TrainedDense:
        out, into = full(dense.weight).shape
        per = 4 // SIZES[operand]
        if (out, into) not in narrow:
            rows = round_up(out, target.panel)
            narrow[out, into] = Workspace(target).keep(rows, into, operand)
        forward_steps = round_up(into, per * target.lanes) // per
        backward_steps = round_up(out, target.panel) // per

        def panels(columns: int, steps: int) -> NDArray[np.uint8]:
            return aligned((-(-columns // target.panel), steps * target.panel * 4), np.uint8)

        return TrainedDense(
            out,
            into,
            narrow[out, into],
            forward=panels(out, forward_steps),
            backward=panels(into, backward_steps),
            forward_steps=forward_steps,
            backward_steps=backward_steps,
            bias=aligned((round_up(out, target.panel),), np.float32),
            nothing=nothing,
        )

    return Parameters(
        pack_tables(weights.tables, target),
        map_layers(weights.layers, dense, lambda norm: pack_norm(norm, target)),
        pack_head(weights.qa_outputs, target),
        projection=dense(weights.projection) if weights.projection else None,
    )


def pairs(
    weights: Parameters[Any, Any, Any, Any], others: Parameters[Any, Any, Any, Any]
) -> Iterator[tuple[Any, Any]]:
    """The dense layers of two models of one shape, two by two; a shared one comes once."""
    if weights.projection is not None:
        yield weights.projection, others.projection
    layers = zip(weights.layers, others.layers, strict=True)
    for one, other in {id(pair[0]): pair for pair in layers}.values():
        for name in ("qkv", "attention_output", "intermediate", "output"):
            yield getattr(one, name), getattr(other, name)


def copy_rest(
    weights: Weights, prepared: TrainedWeights, target: Target
) -> Iterator[tuple[Dense, TrainedDense]]:
    """Copy norms, biases and the head; give each dense layer, and where its matrix goes."""
    prepared.tables.norm[:] = pack_norm(weights.tables.norm, target)
    for layer, to in zip(weights.layers, prepared.layers, strict=True):
        to.attention_norm[:] = pack_norm(layer.attention_norm, target)
        to.output_norm[:] = pack_norm(layer.output_norm, target)
    prepared.qa_outputs[:] = pack_head(weights.qa_outputs, target)
    for dense, packed in pairs(weights, prepared):
        packed.bias[: packed.out] = dense.bias
        yield dense, packed
