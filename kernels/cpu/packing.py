"""Packing: a model's weights, in the order and the dtype in which the kernels read them.

A matrix [N, K] becomes panels [N / panel][steps][panel] of 4 bytes: a panel holds the columns of
one tile (gemm.py), a step is one float32, two bfloat16 or int16, or four int8 of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats
from minibert.kernels.numbers import from_bfloat16, quantise_rows, round_up, to_bfloat16
from minibert.parameters import (
    Dense,
    Int8,
    Norm,
    Parameters,
    Table,
    TableRows,
    Tables,
    Weights,
    full,
    map_layers,
)

from .records import DENSE, LAYER, TABLES
from .targets import Target

Record = NDArray[np.void]

UNROLL = 4  # steps a turn of the tile's loop; packed weights are padded to a multiple of it

# ---------------------------------------------------------------- panels


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that begin at a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size].view(dtype).reshape(shape)


def pack_panels(weight: NDArray[Any], target: Target, dtype: Any = None) -> NDArray[Any]:
    """[N, K] -> panels [N / panel, steps, panel, numbers a step], with zeros around.

    Args:
        weight: the matrix.
        target: whose panels.
        dtype: of the panels; None: the matrix's own.
    """
    n, k = weight.shape
    dtype = np.dtype(dtype or weight.dtype)
    per = 4 // dtype.itemsize
    panels, steps = -(-n // target.panel), round_up(-(-k // per), UNROLL)
    packed = aligned((panels, steps, target.panel, per), dtype)
    for p in range(panels):  # one panel at a time, so that no second copy of the matrix is made
        rows = weight[p * target.panel : (p + 1) * target.panel]
        padded = np.zeros((len(rows), steps * per), dtype)
        padded[:, :k] = rows
        packed[p, :, : len(rows)] = padded.reshape(len(rows), steps, per).transpose(1, 0, 2)
    return packed


def address(array: NDArray[Any]) -> int:
    """Where an array's first number lies."""
    return int(array.ctypes.data)


# ---------------------------------------------------------------- packed weights


@dataclass(frozen=True, eq=False, repr=False)
class PackedDense:
    """A dense layer in panels."""

    out: int
    into: int
    panels: NDArray[Any]  # see pack_panels
    start: NDArray[Any]  # [out rounded up] what sums begin with: the bias; in int8, integers
    columns: Floats  # int8 only: [panels, 3, panel], see rows.panel_end

    @property
    def record(self) -> Record:
        """A records.DENSE of it."""
        record = np.zeros((), DENSE)
        record["weights"], record["start"] = address(self.panels), address(self.start)
        record["columns"] = address(self.columns)
        record["out"], record["into"] = self.out, self.into
        record["panels"], record["steps"] = self.panels.shape[:2]
        return record


@dataclass(frozen=True, eq=False, repr=False)
class PackedTables:
    """The embedding tables, in memory that compiled code can walk through, and their norm."""

    words: Table
    positions: Table
    token_types: Table
    norm: Floats  # see pack_norm
    hidden: int  # D, or E where a projection follows

    @property
    def rows(self) -> TableRows:
        """How many rows each has."""
        return TableRows(len(self.words), len(self.token_types), len(self.positions))

    @property
    def record(self) -> Record:
        """A records.TABLES of them."""
        record = np.zeros((), TABLES)
        record["hidden"], record["norm"] = self.hidden, address(self.norm)
        for name in ("words", "token_types", "positions"):
            matrix = getattr(self, name).matrix
            if isinstance(matrix, Int8):
                record[name] = (address(matrix.values), address(matrix.scales))
            else:
                record[name] = (address(matrix), 0)
        return record


def pack_dense(dense: Dense, dtype: str, target: Target) -> PackedDense:
    """Bring a dense layer into panels of `dtype`."""
    out, into = (dense.weight.values if isinstance(dense.weight, Int8) else dense.weight).shape
    width = round_up(out, target.panel)
    bias = aligned((width,), np.float32)
    bias[:out] = dense.bias
    start: NDArray[Any] = bias
    columns = np.zeros((width // target.panel, 3, target.panel), np.float32)
    if dtype == "int8":
        int8 = dense.weight if isinstance(dense.weight, Int8) else quantise_rows(dense.weight)
        values, scales = int8.values, int8.scales
        weight = pack_panels(values, target, target.operand(dtype))
        sums = np.zeros(width, np.int32)
        sums[:out] = values.sum(axis=1, dtype=np.int32)
        scale = np.zeros(width, np.float32)
        scale[:out] = scales
        with np.errstate(over="ignore"):  # what is too large for float32 shows in the logits
            for i, column in enumerate((scale, scale * sums, bias)):
                columns[:, i] = column.reshape(-1, target.panel)
        start = aligned((width,), np.int32)
        if target.int8 == "sdot":  # which multiplies with u - 128
            start[:] = 128 * sums
    elif target.operand(dtype) == "bfloat16":
        weight = pack_panels(to_bfloat16(full(dense.weight)), target)
    else:
        weight = full(dense.weight)
        if dtype == "bfloat16":
            weight = from_bfloat16(to_bfloat16(weight))
        weight = pack_panels(weight, target)
    return PackedDense(out, into, weight, start, columns)


def pack_norm(norm: Norm, target: Target) -> Floats:
    """Gain and bias [2, D rounded up], with zeros behind."""
    count = len(norm.gain)
    packed = np.zeros((2, round_up(count, target.panel)), np.float32)
    packed[0, :count], packed[1, :count] = norm.gain, norm.bias
    return packed


def pack_head(dense: Dense, target: Target) -> Floats:
    """The two rows of the question-answering head, each rounded up, and its two biases."""
    weight = full(dense.weight)
    packed = np.zeros((2, round_up(weight.shape[1], target.panel)), np.float32)
    packed[:, : weight.shape[1]] = weight
    return np.concatenate([packed.ravel(), dense.bias]).astype(np.float32)


def contiguous(table: Table) -> Table:
    """The same table, in memory that compiled code can walk through."""
    if isinstance(table.matrix, Int8):
        values = np.ascontiguousarray(table.matrix.values)
        return Table(Int8(values, np.ascontiguousarray(table.matrix.scales, np.float32)))
    return Table(np.ascontiguousarray(table.matrix, np.float32))


def pack_tables(tables: Tables, target: Target) -> PackedTables:
    """Embedding tables; they stay as they are, unless they lie scattered in memory."""
    return PackedTables(
        contiguous(tables.words),
        contiguous(tables.positions),
        contiguous(tables.token_types),
        pack_norm(tables.norm, target),
        len(tables.norm.gain),
    )


@dataclass(frozen=True, eq=False, repr=False)
class PackedWeights(Parameters[PackedTables, PackedDense, Floats, Floats]):
    """A model ready to run."""

    @cached_property
    def records(self) -> tuple[Record, Record, Record]:
        """A records.TABLES, a records.DENSE, zero without a projection, and records.LAYER [L]."""
        layers = np.zeros(len(self.layers), LAYER)
        for record, layer in zip(layers, self.layers, strict=True):
            for name in ("qkv", "attention_output", "intermediate", "output"):
                record[name] = getattr(layer, name).record
            for name in ("attention_norm", "output_norm"):
                record[name] = address(getattr(layer, name))
        projection = self.projection.record if self.projection else np.zeros((), DENSE)
        return self.tables.record, projection, layers

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the records, whose addresses mean nothing to a copy or another process."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def pack_weights(weights: Weights, dtype: str, target: Target) -> PackedWeights:
    """Pack all layers of a model; done once, when it is loaded."""

    def dense(dense: Dense) -> PackedDense:
        return pack_dense(dense, dtype, target)

    return PackedWeights(
        pack_tables(weights.tables, target),
        map_layers(weights.layers, dense, lambda norm: pack_norm(norm, target)),
        pack_head(weights.qa_outputs, target),
        projection=dense(weights.projection) if weights.projection else None,
    )
