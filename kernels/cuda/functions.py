"""The functions of device "cuda": those of kernels/reference.py, and the whole pass.

`launch` is what runs.  The single steps copy their input to the GPU and their result back: for
tests, traces and teaching.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats, Ints
from minibert.kernels.bounds import check_windows, checked_ids
from minibert.parameters import Dense, Norm, Tables, Weights

from .driver import Device, Memory
from .launcher import Launcher
from .program import Program, attention_tiles
from .recipes import Built, Recipe, built_kernel
from .steps import Array, Steps
from .upload import (
    STORED,
    DeviceDense,
    DeviceHead,
    DeviceNorm,
    DeviceTables,
    DeviceWeights,
    narrow,
    padded,
    upload_dense,
    upload_head,
    upload_norm,
    upload_tables,
    upload_weights,
    widen,
)

if TYPE_CHECKING:
    from minibert.batches import Batch
    from minibert.config import BertConfig


class Kernels:
    """The GPU's kernels for one dtype.

    Args:
        device: the GPU.
        dtype: 'float32', 'float16' or 'bfloat16'.
        build: gives a recipe's compiled kernel.
    """

    def __init__(
        self,
        device: Device,
        dtype: str,
        build: Callable[[Recipe, tuple[int, int]], Built] = built_kernel,
    ):
        self.device, self.dtype = device, dtype
        self.launcher = Launcher(device, dtype, build)

    # ------------------------------------------------------------ weights, see upload.py

    def prepare(self, weights: Weights) -> DeviceWeights:
        """Bring a checkpoint's weights to the GPU; done once, when a model is loaded."""
        return upload_weights(self.device, weights, self.dtype)

    def prepare_tables(self, tables: Tables) -> DeviceTables:
        """Bring the embedding tables to the GPU."""
        return upload_tables(self.device, tables, self.dtype)

    def prepare_dense(self, dense: Dense) -> DeviceDense:
        """Bring a dense layer to the GPU."""
        return upload_dense(self.device, dense, self.dtype)

    def prepare_norm(self, norm: Norm) -> DeviceNorm:
        """Bring a norm to the GPU."""
        return upload_norm(self.device, norm)

    def prepare_head(self, dense: Dense) -> DeviceHead:
        """Bring the question-answering head to the GPU."""
        return upload_head(self.device, dense)

    # ------------------------------------------------------------ single steps

    def _steps(self, tokens: int, tiles: int = 0) -> Steps:
        """Steps on so many tokens, with memory of its own for each result."""
        counts = self.device.upload(np.array([tokens, tiles, 0, 0], np.int32))
        return Steps(
            self.launcher, counts, max(1, tokens), tiles, lambda _, size: Memory(self.device, size)
        )

    def _up(self, x: Floats, width: int) -> Array:
        """[T, n] on the GPU as [T, width]; at least one row, so that there is memory."""
        numbers = narrow(padded(x, max(1, len(x)), width), self.dtype)
        return Array(self.device.upload(numbers), width)

    def _down(self, y: Array, tokens: int, columns: int) -> Floats:
        """The first columns of an array on the GPU, [T, columns] float32."""
        count = tokens * y.width
        numbers: NDArray[Any] = self.device.download(y.memory, STORED[self.dtype], count)
        rows = widen(numbers.reshape(tokens, y.width), self.dtype)
        return np.ascontiguousarray(rows[:, :columns])

    def embed(
        self,
        input_ids: Ints,
        token_type_ids: Ints,
        position_ids: Ints,
        tables: DeviceTables,
        eps: float,
    ) -> Floats:
        """See reference.embed."""
        tokens = len(input_ids)
        checked = checked_ids(input_ids, token_type_ids, position_ids, tables.rows)
        ids = [self.device.upload(x) for x in checked]
        first, second, third = (each.address for each in ids)
        y = self._steps(tokens).embed(first, second, third, tables, eps)
        return self._down(y, tokens, tables.width)

    def linear(self, x: Floats, dense: DeviceDense) -> Floats:
        """See reference.linear."""
        y = self._steps(len(x)).linear(self._up(x, dense.depth), dense)
        return self._down(y, len(x), dense.out)

    def linear_activation(self, x: Floats, dense: DeviceDense, activation: str) -> Floats:
        """See reference.linear_activation."""
        inputs = self._up(x, dense.depth)
        y = self._steps(len(x)).linear_activation(inputs, dense, activation)
        return self._down(y, len(x), dense.out)

    def linear_add_norm(
        self, x: Floats, dense: DeviceDense, residual: Floats, norm: DeviceNorm, eps: float
    ) -> Floats:
        """See reference.linear_add_norm."""
        inputs, other = self._up(x, dense.depth), self._up(residual, dense.width)
        y = self._steps(len(x)).linear_add_norm(inputs, dense, other, norm, eps)
        return self._down(y, len(x), dense.out)

    def attention(self, qkv: Floats, cu_seqlens: Ints, num_heads: int) -> Floats:
        """See reference.attention."""
        check_windows(cu_seqlens, len(qkv))
        tokens, tiles = len(qkv), attention_tiles(cu_seqlens)
        inputs, listed = self._up(qkv, qkv.shape[1]), self.device.upload(tiles)
        y = self._steps(tokens, len(tiles)).attention(inputs, listed.address, num_heads)
        return self._down(y, tokens, y.width)

    def span_logits(self, x: Floats, head: DeviceHead) -> tuple[Floats, Floats]:
        """See reference.span_logits."""
        tokens, capacity = len(x), max(1, len(x))
        logits = self._steps(tokens).span_logits(self._up(x, head.width), head)
        both = self.device.download(logits, np.float32, 2 * capacity).reshape(2, capacity)
        return both[0, :tokens].copy(), both[1, :tokens].copy()

    # ------------------------------------------------------------ the whole pass

    def launch(
        self, bert: Any, batch: Batch, weights: DeviceWeights, config: BertConfig
    ) -> Callable[[], tuple[Floats, Floats]]:
        """Begin a pass; the function that comes back waits for its start and end logits [T].

        Args:
            bert: of minibert/encoder.py: the steps of the pass, in order.
            batch: T tokens.
            weights: as `prepare` returned them.
            config: shape of the model.
        """
        if not weights.programs:
            weights.programs.append(Program(self.launcher, bert, weights, config))
        return weights.programs[0].launch(batch)
