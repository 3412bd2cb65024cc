"""All weights of a model in one array, so that an optimizer or a file sees numbers, not layers.

The gradient and the optimizer's means have the same layout; `zeros_like` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minibert.arrays import Floats
from minibert.kernels.numbers import round_up
from minibert.parameters import (
    Dense,
    Layer,
    Matrix,
    Norm,
    Parameters,
    Table,
    Tables,
    Weights,
    full,
)
from minibert.reprs import short_repr

LINE = 16  # numbers in a line of the cache, with which each array begins


class Part(NamedTuple):
    """Where one array lies.

    From `end` to the next part's `begin` are zeros, and every step of an optimizer leaves them so.
    """

    name: str  # BERT's, without a prefix; "...attention.self.qkv..." for the three in one
    begin: int
    end: int
    depth: int  # 0: embeddings; i + 1: layer i; L + 1: the head
    decays: bool  # whether weight decay is for it: not for biases and norms


@dataclass(frozen=True, eq=False)
class Flat:
    """A model's weights, or their gradient, in one array."""

    array: Floats  # [N] float32
    weights: Weights  # views of it
    parts: tuple[Part, ...]  # in the order of the array: embeddings, layers, head

    __repr__ = short_repr


def flatten(weights: Weights, fixed: Collection[str] = ()) -> Flat:
    """Copy a model's weights into one array; int8 becomes float32.

    An array that several layers share is there once, under its first name.

    Args:
        weights: of a model.
        fixed: BERT's names, as in `Part`, of arrays that are not trained: they are copied, too,
            but lie outside of `array`, so that no optimizer meets them.
    """
    parts: list[Part] = []

    def measure(name: str, depth: int, matrix: Matrix) -> Floats:
        array = full(matrix)
        if name not in fixed:
            begin = round_up(parts[-1].end, LINE) if parts else 0
            decays = name.endswith(".weight") and "LayerNorm" not in name
            parts.append(Part(name, begin, begin + array.size, depth, decays))
        return array

    map_arrays(weights, measure)
    return lay_out(weights, tuple(parts), copy=True)


def zeros_like(flat: Flat) -> Flat:
    """The same layout, full of zeros: for a gradient, or for the means of an optimizer."""
    return lay_out(flat.weights, flat.parts, copy=False)


def lay_out(weights: Weights, parts: tuple[Part, ...], copy: bool) -> Flat:
    """A new array with these parts, copied from the weights or zero."""
    count = round_up(parts[-1].end, LINE) if parts else 0
    raw = np.zeros(count + LINE, np.float32)
    first = -raw.ctypes.data % (4 * LINE) // 4
    array = raw[first : first + count]
    part_of = {part.name: part for part in parts}

    def place(name: str, depth: int, matrix: Matrix) -> Floats:
        source = full(matrix)
        part = part_of.get(name)
        room = array[part.begin : part.end] if part else np.zeros(source.size, np.float32)
        room = room.reshape(source.shape)
        if copy:
            room[...] = source
        return room

    return Flat(array, map_arrays(weights, place), parts)


def map_arrays(weights: Weights, place: Callable[[str, int, Matrix], Floats]) -> Weights:
    """Weights with another array in the place of each.

    Args:
        weights: of a model.
        place: called with BERT's name, the depth (see `Part`) and the array, from the embeddings to
            the head; gives the other array.  It is called once for an array that layers share.
    """
    placed: dict[int, tuple[Matrix, Floats]] = {}  # matrices too, so that no id comes twice

    def one(name: str, depth: int, matrix: Matrix) -> Floats:
        if id(matrix) not in placed:
            placed[id(matrix)] = matrix, place(name, depth, matrix)
        return placed[id(matrix)][1]

    def dense(name: str, depth: int, dense: Dense) -> Dense:
        weight = one(f"{name}.weight", depth, dense.weight)
        return Dense(weight, one(f"{name}.bias", depth, dense.bias))

    def norm(name: str, depth: int, norm: Norm) -> Norm:
        gain = one(f"{name}.weight", depth, norm.gain)
        return Norm(gain, one(f"{name}.bias", depth, norm.bias))

    def table(name: str, table: Table) -> Table:
        return Table(one(f"embeddings.{name}_embeddings.weight", 0, table.matrix))

    made: dict[int, Layer[Dense, Norm]] = {}  # a layer that stands there several times is one

    def layer(i: int, layer: Layer[Dense, Norm]) -> Layer[Dense, Norm]:
        if id(layer) in made:
            return made[id(layer)]
        at, depth = f"encoder.layer.{i}.", i + 1
        made[id(layer)] = Layer(
            qkv=dense(f"{at}attention.self.qkv", depth, layer.qkv),
            attention_output=dense(f"{at}attention.output.dense", depth, layer.attention_output),
            attention_norm=norm(f"{at}attention.output.LayerNorm", depth, layer.attention_norm),
            intermediate=dense(f"{at}intermediate.dense", depth, layer.intermediate),
            output=dense(f"{at}output.dense", depth, layer.output),
            output_norm=norm(f"{at}output.LayerNorm", depth, layer.output_norm),
        )
        return made[id(layer)]

    tables = weights.tables
    return Parameters(
        tables=Tables(
            words=table("word", tables.words),
            positions=table("position", tables.positions),
            token_types=table("token_type", tables.token_types),
            norm=norm("embeddings.LayerNorm", 0, tables.norm),
        ),
        projection=dense("embeddings_project", 0, weights.projection)
        if weights.projection
        else None,
        layers=tuple(layer(i, each) for i, each in enumerate(weights.layers)),
        qa_outputs=dense("qa_outputs", len(weights.layers) + 1, weights.qa_outputs),
    )


def named_arrays(weights: Weights) -> dict[str, Floats]:
    """BERT's name for each array, without a prefix -> the array, as a checkpoint has them.

    Query, key and value are views of the three in one.
    """
    found: dict[str, Floats] = {}

    def note(name: str, depth: int, matrix: Matrix) -> Floats:
        array = full(matrix)
        if ".qkv." in name:
            for part, third in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                found[name.replace(".qkv.", f".{part}.")] = third
        else:
            found[name] = array
        return array

    map_arrays(weights, note)
    return found
