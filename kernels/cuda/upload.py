"""A model's weights in the GPU's memory, in the form in which the kernels read them.

Matrices and tables are kept in the dtype of the backend, biases, gains and the question-answering
head in float32.  A matrix [out, in] is padded with zeros to a multiple of 8 rows and 32 columns,
which the GEMMs need; zeros add nothing, so the results are the same.  (Every activation is 0 at 0.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats
from minibert.kernels.numbers import from_bfloat16, round_up, to_bfloat16
from minibert.parameters import (
    Dense,
    Norm,
    Parameters,
    Table,
    TableRows,
    Tables,
    Weights,
    full,
    map_layers,
)

from .driver import Device, Memory

# Outputs and inputs of a dense layer are padded to multiples of so many.
WIDTH, DEPTH = 8, 32
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def narrow(x: Floats, dtype: str) -> NDArray[Any]:
    """Numbers as they lie in the GPU's memory; bfloat16 as the upper halves of float32."""
    return to_bfloat16(x) if dtype == "bfloat16" else x.astype(STORED[dtype])


def widen(x: NDArray[Any], dtype: str) -> Floats:
    """The inverse of `narrow`."""
    return from_bfloat16(x) if dtype == "bfloat16" else x.astype(np.float32)


def padded(x: Floats, rows: int, columns: int) -> Floats:
    """A matrix with zeros to the right and below."""
    if x.shape == (rows, columns):
        return x
    whole = np.zeros((rows, columns), np.float32)
    whole[: x.shape[0], : x.shape[1]] = x
    return whole


@dataclass(frozen=True, eq=False)
class DeviceDense:
    """A dense layer on the GPU."""

    weight: Memory  # [width, depth]
    bias: Memory  # [width] float32
    out: int  # as in the file
    width: int  # out, padded
    depth: int  # in, padded


@dataclass(frozen=True, eq=False)
class DeviceHead:
    """The question-answering head on the GPU, in float32."""

    weight: Memory  # [2, width]
    bias: Memory  # [2]
    width: int  # D


@dataclass(frozen=True, eq=False)
class DeviceNorm:
    """A norm on the GPU, in float32."""

    gain: Memory  # [D]
    bias: Memory  # [D]


@dataclass(frozen=True, eq=False)
class DeviceTables:
    """The embedding tables on the GPU."""

    words: Memory  # [V, D]
    positions: Memory  # [P, D]
    token_types: Memory  # [2, D]
    norm: DeviceNorm
    width: int  # D, or E where a projection follows
    rows: TableRows


@dataclass(frozen=True, eq=False, repr=False)
class DeviceWeights(Parameters[DeviceTables, DeviceDense, DeviceNorm, DeviceHead]):
    """A model on the GPU."""

    # The pass of these weights, once it has been made.
    programs: list[Any] = field(default_factory=list)


def upload_dense(device: Device, dense: Dense, dtype: str) -> DeviceDense:
    """Bring a dense layer to the GPU."""
    weight = full(dense.weight)
    out, into = weight.shape
    width, depth = round_up(out, WIDTH), round_up(into, DEPTH)
    return DeviceDense(
        device.upload(narrow(padded(weight, width, depth), dtype)),
        device.upload(padded(dense.bias[None], 1, width).astype(np.float32)),
        out,
        width,
        depth,
    )


def upload_head(device: Device, dense: Dense) -> DeviceHead:
    """Bring the question-answering head to the GPU."""
    weight = full(dense.weight).astype(np.float32)
    bias = device.upload(dense.bias.astype(np.float32))
    return DeviceHead(device.upload(weight), bias, weight.shape[1])


def upload_norm(device: Device, norm: Norm) -> DeviceNorm:
    """Bring a norm to the GPU."""
    gain, bias = (device.upload(each.astype(np.float32)) for each in (norm.gain, norm.bias))
    return DeviceNorm(gain, bias)


def upload_tables(device: Device, tables: Tables, dtype: str) -> DeviceTables:
    """Bring the embedding tables to the GPU."""

    def table(each: Table) -> Memory:
        return device.upload(narrow(full(each.matrix), dtype))

    return DeviceTables(
        words=table(tables.words),
        positions=table(tables.positions),
        token_types=table(tables.token_types),
        norm=upload_norm(device, tables.norm),
        width=len(tables.norm.gain),
        rows=tables.rows,
    )


def upload_weights(device: Device, weights: Weights, dtype: str) -> DeviceWeights:
    """Bring a whole model to the GPU."""

    def dense(dense: Dense) -> DeviceDense:
        return upload_dense(device, dense, dtype)

    return DeviceWeights(
        upload_tables(device, weights.tables, dtype),
        map_layers(
            weights.layers,
            dense,
            lambda norm: upload_norm(device, norm),
            # Its outputs are the inputs of the next, number for number: padded alike.
            intermediate=lambda each: dense(more_outputs(each)),
        ),
        upload_head(device, weights.qa_outputs),
        projection=dense(weights.projection) if weights.projection else None,
    )


def more_outputs(dense: Dense) -> Dense:
    """The layer with outputs that are 0 behind its own, up to a multiple of `DEPTH`."""
    weight = full(dense.weight)
    width = round_up(len(weight), DEPTH)
    return Dense(padded(weight, width, weight.shape[1]), padded(dense.bias[None], 1, width)[0])
