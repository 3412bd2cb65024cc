"""The arrays that kernels compute with: what a BERT for question answering holds.

Weights keep the file's orientation, [out, in].  A matrix is either a float array or `Int8`: one
byte a number and one float32 scale a row.  minibert/weights.py reads them from a checkpoint; a
backend then brings them into the form in which its kernels read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats, Ints
from minibert.reprs import short_repr


@dataclass(frozen=True)
class Int8:
    """A matrix in int8: the number at [i, j] is values[i, j] * scales[i]."""

    values: NDArray[np.int8]  # [out, in]
    scales: Floats  # [out]

    __repr__ = short_repr


Matrix: TypeAlias = "Floats | Int8"


def full(matrix: Matrix) -> Floats:
    """The matrix as float32."""
    if isinstance(matrix, Int8):
        return matrix.values.astype(np.float32) * matrix.scales[:, None]
    return matrix


@dataclass(frozen=True)
class Table:
    """An embedding table, [rows, D]; in int8 only the rows that are looked up get widened."""

    matrix: Matrix

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.matrix.values if isinstance(self.matrix, Int8) else self.matrix)

    def rows(self, ids: Ints) -> Floats:
        """The rows `ids` [T] as a new array [T, D]."""
        if isinstance(self.matrix, Int8):
            return full(Int8(self.matrix.values[ids], self.matrix.scales[ids]))
        return self.matrix[ids]


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: y = x @ weight.T + bias."""

    weight: Matrix  # [out, in]
    bias: Floats  # [out]

    __repr__ = short_repr


@dataclass(frozen=True)
class Norm:
    """The learned part of a layer norm."""

    gain: Floats  # [D]
    bias: Floats  # [D]

    __repr__ = short_repr


class TableRows(NamedTuple):
    """How many rows the tables have that a batch's ids point to."""

    input_ids: int
    token_type_ids: int
    position_ids: int


@dataclass(frozen=True)
class Tables:
    """The three embedding tables, and the norm of their sum; as wide as the layers, or E."""

    words: Table  # [V, D]
    positions: Table  # [P, D]
    token_types: Table  # [2, D]
    norm: Norm

    @property
    def rows(self) -> TableRows:
        """How many rows each has."""
        return TableRows(len(self.words), len(self.token_types), len(self.positions))


# The parts of a model, as they come from a file or as a backend keeps them.
TablesT = TypeVar("TablesT")
DenseT = TypeVar("DenseT")
NormT = TypeVar("NormT")
HeadT = TypeVar("HeadT")


@dataclass(frozen=True)
class Layer(Generic[DenseT, NormT]):
    """The parameters of one encoder layer.  Shapes are those of the file."""

    qkv: DenseT  # [3D, D]: query, key and value, which read the same input, stacked
    attention_output: DenseT  # [D, D]
    attention_norm: NormT
    intermediate: DenseT  # [F, D]
    output: DenseT  # [D, F]
    output_norm: NormT

    __repr__ = short_repr


@dataclass(frozen=True)
class Parameters(Generic[TablesT, DenseT, NormT, HeadT]):
    """The parameters of a BERT for question answering, in the order in which they are used."""

    tables: TablesT
    # [D, E], where the tables are of another width than the layers; else None.
    projection: DenseT | None = field(default=None, kw_only=True)
    layers: tuple[Layer[DenseT, NormT], ...]  # those that share all weights are one object
    qa_outputs: HeadT  # [2, D]; row 0 is the start, row 1 the end

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.layers)} layers)"


# As they come from a file.
Weights: TypeAlias = Parameters[Tables, Dense, Norm, Dense]


def map_layers(
    layers: tuple[Layer[Dense, Norm], ...],
    dense: Callable[[Dense], DenseT],
    norm: Callable[[Norm], NormT],
    intermediate: Callable[[Dense], DenseT] | None = None,
) -> tuple[Layer[DenseT, NormT], ...]:
    """Layers with each dense layer and each norm as a backend keeps it.

    A layer that stands there several times is brought into that form once.

    Args:
        layers: as they come from a file, where each part may be read only when it is asked for.
        dense: brings a dense layer into that form.
        norm: brings a norm into it.
        intermediate: brings the intermediate layer into it; None: as every dense layer.
    """
    made = {
        id(layer): Layer(
            qkv=dense(layer.qkv),
            attention_output=dense(layer.attention_output),
            attention_norm=norm(layer.attention_norm),
            intermediate=(intermediate or dense)(layer.intermediate),
            output=dense(layer.output),
            output_norm=norm(layer.output_norm),
        )
        for layer in {id(layer): layer for layer in layers}.values()
    }
    return tuple(made[id(layer)] for layer in layers)
