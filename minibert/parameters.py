"""The arrays that kernels compute with: what a BERT for question answering holds.

Weights keep the file's orientation, [out, in].  A matrix is either a float array or `Int8`: one
byte a number and one float32 scale a row.  minibert/weights.py reads them from a checkpoint; a
backend then brings them into the form in which its kernels read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats, Ints


@dataclass(frozen=True)
class Int8:
    """A matrix in int8: the number at [i, j] is values[i, j] * scales[i]."""

    values: NDArray[np.int8]  # [out, in]
    scales: Floats  # [out]


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


@dataclass(frozen=True)
class Norm:
    """The learned part of a layer norm."""

    gain: Floats  # [D]
    bias: Floats  # [D]


@dataclass(frozen=True)
class Tables:
    """The three embedding tables, and the norm of their sum."""

    words: Table  # [V, D]
    positions: Table  # [P, D]
    token_types: Table  # [2, D]
    norm: Norm


@dataclass(frozen=True)
class LayerWeights:
    """One encoder layer."""

    qkv: Dense  # [3D, D]: query, key and value, which read the same input, stacked
    attention_output: Dense  # [D, D]
    attention_norm: Norm
    intermediate: Dense  # [F, D]
    output: Dense  # [D, F]
    output_norm: Norm


@dataclass(frozen=True)
class Weights:
    """A whole BERT for question answering."""

    tables: Tables
    layers: tuple[LayerWeights, ...]
    qa_outputs: Dense  # [2, D]; row 0 is the start, row 1 the end

    def map_dense(self, pack: Callable[[Dense], Dense]) -> Weights:
        """The same weights with every dense layer of the encoder packed by a backend."""
        layers = tuple(
            replace(
                layer,
                qkv=pack(layer.qkv),
                attention_output=pack(layer.attention_output),
                intermediate=pack(layer.intermediate),
                output=pack(layer.output),
            )
            for layer in self.layers
        )
        return replace(self, layers=layers)
