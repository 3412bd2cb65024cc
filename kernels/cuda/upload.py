"""A model's weights in the GPU's memory, in the form in which the kernels read them.

Matrices and tables are kept in the dtype of the backend, biases, gains and the question-answering
head in float32.  A matrix [out, in] is padded with zeros to a multiple of 8 rows and 32 columns,
which the GEMMs need; zeros add nothing, so the results are the same.  (Every activation is 0 at 0.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats
from minibert.kernels.numbers import from_bfloat16, round_up, to_bfloat16
from minibert.parameters import Dense, LayerWeights, Norm, Table, Tables, Weights, full

from .driver import Device

DEPTH = 32  # inputs of a dense layer are padded to a multiple of so many
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
class DeviceDense(Dense):
    """A dense layer on the GPU; `weight` and `bias` are Memory."""

    out: int  # as in the file
    width: int  # out, padded
    depth: int  # in, padded


@dataclass(frozen=True, eq=False)
class DeviceNorm(Norm):
    """A norm on the GPU; `gain` and `bias` are Memory."""


@dataclass(frozen=True, eq=False)
class DeviceTables(Tables):
    """The embedding tables on the GPU; the tables are Memory."""

    width: int


@dataclass(frozen=True, eq=False)
class DeviceWeights(Weights):
    """A model on the GPU."""

    programs: list[Any]  # the pass of these weights, once it has been made


def upload_dense(device: Device, dense: Dense, dtype: str, multiple: int = 8) -> DeviceDense:
    """Bring a dense layer to the GPU, with its outputs padded to a multiple of so many."""
    if isinstance(dense, DeviceDense):
        return dense
    weight = full(dense.weight)
    out, into = weight.shape
    width, depth = round_up(out, multiple), round_up(into, DEPTH)
    bias = padded(dense.bias[None], 1, width)
    matrix: Any = device.upload(narrow(padded(weight, width, depth), dtype))
    start: Any = device.upload(bias.astype(np.float32))
    return DeviceDense(matrix, start, out, width, depth)


def upload_norm(device: Device, norm: Norm) -> DeviceNorm:
    """Bring a norm to the GPU."""
    if isinstance(norm, DeviceNorm):
        return norm
    gain: Any = device.upload(norm.gain.astype(np.float32))
    bias: Any = device.upload(norm.bias.astype(np.float32))
    return DeviceNorm(gain, bias)


def upload_head(device: Device, dense: Dense) -> DeviceDense:
    """Bring the question-answering head to the GPU, in float32 and not padded."""
    if isinstance(dense, DeviceDense):
        return dense
    weight = full(dense.weight).astype(np.float32)
    matrix: Any = device.upload(weight)
    bias: Any = device.upload(dense.bias.astype(np.float32))
    return DeviceDense(matrix, bias, 2, 2, weight.shape[1])


def upload_tables(device: Device, tables: Tables, dtype: str) -> DeviceTables:
    """Bring the embedding tables to the GPU."""
    if isinstance(tables, DeviceTables):
        return tables

    def table(each: Table) -> Any:
        return device.upload(narrow(full(each.matrix), dtype))

    return DeviceTables(
        words=table(tables.words),
        positions=table(tables.positions),
        token_types=table(tables.token_types),
        norm=upload_norm(device, tables.norm),
        width=len(tables.norm.gain),
    )


def upload_weights(device: Device, weights: Weights, dtype: str) -> DeviceWeights:
    """Bring a whole model to the GPU."""

    def dense(each: Dense) -> DeviceDense:
        return upload_dense(device, each, dtype)

    layers = tuple(
        LayerWeights(
            qkv=dense(layer.qkv),
            attention_output=dense(layer.attention_output),
            attention_norm=upload_norm(device, layer.attention_norm),
            # Its outputs are the inputs of the next, row for row.
            intermediate=upload_dense(device, layer.intermediate, dtype, DEPTH),
            output=dense(layer.output),
            output_norm=upload_norm(device, layer.output_norm),
        )
        for layer in weights.layers
    )
    return DeviceWeights(
        tables=upload_tables(device, weights.tables, dtype),
        layers=layers,
        qa_outputs=upload_head(device, weights.qa_outputs),
        programs=[],
    )
