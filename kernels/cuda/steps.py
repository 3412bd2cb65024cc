"""The functions of reference.py on arrays in the GPU's memory.

Each puts its launches on the stream.  `bert` of minibert/encoder.py runs with them as it runs with
NumPy's: program.py records that.  How many rows are used stands in the GPU's memory, so a recorded
launch serves batches of any size up to its capacity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .driver import Address, Memory
from .launcher import Launcher, attention_recipe, gemm_recipe, rows_recipe
from .upload import DeviceDense, DeviceHead, DeviceNorm, DeviceTables


class Array(NamedTuple):
    """Rows of numbers in the GPU's memory, in the launcher's dtype."""

    memory: Memory
    width: int  # numbers from row to row


class Steps:
    """The steps of one pass.

    Args:
        launcher: the kernels.
        counts: how many tokens and tiles of attention there are; int32, in the GPU's memory.
        capacity: rows that arrays have room for.
        most_tiles: that the list of attention's tiles has room for.
        room: (name, bytes) -> memory for a result.  The same name and size may be the same memory
            again: a layer's results are not needed any more when the next one's are written.
    """

    def __init__(
        self,
        launcher: Launcher,
        counts: Memory,
        capacity: int,
        most_tiles: int,
        room: Callable[[str, int], Memory],
    ):
        self.launcher, self.counts, self.room = launcher, counts, room
        self.capacity, self.most_tiles = capacity, most_tiles

    def _array(self, name: str, width: int) -> Array:
        return Array(self.room(name, self.capacity * width * self.launcher.bytes), width)

    def _hidden_states(self, width: int, besides: Memory | None = None) -> Array:
        """Room for hidden states, other than the ones that are still needed."""
        array = self._array("hidden states", width)
        return array if array.memory is not besides else self._array("others", width)

    def _product(
        self,
        x: Array,
        dense: DeviceDense,
        y: Memory,
        end: str,
        activation: str = "",
        residual: Memory | None = None,
        splits: int = 1,
    ) -> None:
        launcher, capacity = self.launcher, self.capacity
        recipe = gemm_recipe(launcher.dtype, end, activation, launcher.tile(capacity, dense.width))
        function, built = launcher.function(recipe)
        grid = -(-dense.width // built.columns), -(-capacity // built.rows), splits
        function.launch(
            grid, self.counts, x.memory, dense.weight, dense.bias, residual or 0, y,
            dense.width, dense.depth, capacity,
        )  # fmt: skip

    def embed(
        self,
        input_ids: Address,
        token_type_ids: Address,
        position_ids: Address,
        tables: DeviceTables,
        eps: float,
    ) -> Array:
        """See reference.embed."""
        y = self._hidden_states(tables.width)
        self.launcher.rows(
            rows_recipe("embed", self.launcher.dtype, tables.width), self.capacity, self.counts,
            input_ids, token_type_ids, position_ids, tables.words, tables.token_types,
            tables.positions, tables.norm.gain, tables.norm.bias, y.memory, eps,
        )  # fmt: skip
        return y

    def linear(self, x: Array, dense: DeviceDense) -> Array:
        """See reference.linear."""
        y = self._array("linear", dense.width)
        self._product(x, dense, y.memory, "store")
        return y

    def linear_activation(self, x: Array, dense: DeviceDense, activation: str) -> Array:
        """See reference.linear_activation."""
        y = self._array("linear_activation", dense.width)
        self._product(x, dense, y.memory, "store", activation)
        return y

    def linear_add_norm(
        self, x: Array, dense: DeviceDense, residual: Array, norm: DeviceNorm, eps: float
    ) -> Array:
        """See reference.linear_add_norm.

        Where a product has too few blocks for the GPU, its sums are split: parts of it are summed
        by different blocks, and added up before the norm.
        """
        launcher, dtype, capacity = self.launcher, self.launcher.dtype, self.capacity
        y = self._hidden_states(dense.width, besides=residual.memory)
        splits = launcher.splits(capacity, dense.width, dense.depth)
        if splits > 1:
            sums = self.room("sums", 4 * splits * capacity * dense.width)
            self._product(x, dense, sums, "partial", splits=splits)
            launcher.rows(
                rows_recipe("add_norm", dtype, dense.out), capacity, self.counts, sums, splits,
                capacity, dense.bias, residual.memory, norm.gain, norm.bias, y.memory, eps,
            )  # fmt: skip
        else:
            sums = self.room("sums", launcher.bytes * capacity * dense.width)
            self._product(x, dense, sums, "residual", residual=residual.memory)
            launcher.rows(
                rows_recipe("norm", dtype, dense.out), capacity, self.counts, sums, norm.gain,
                norm.bias, y.memory, eps,
            )  # fmt: skip
        return y

    def attention(self, qkv: Array, tiles: Address, num_heads: int) -> Array:
        """See reference.attention; in place of cu_seqlens, the list of tiles made of them."""
        y = self._array("attention", qkv.width // 3)
        recipe = attention_recipe(self.launcher.dtype, y.width, num_heads)
        # At most three blocks fit on a multiprocessor (min_blocks); more would only wait.
        most = 3 * self.launcher.device.gpu.multiprocessors
        blocks = max(1, min(self.most_tiles * num_heads, most))
        function, _ = self.launcher.function(recipe)
        function.launch((blocks, 1, 1), self.counts, tiles, qkv.memory, y.memory)
        return y

    def span_logits(self, x: Array, head: DeviceHead) -> Any:
        """See reference.span_logits; both [capacity], one after the other, float32."""
        logits = self.room("logits", 8 * self.capacity)
        self.launcher.rows(
            rows_recipe("span_logits", self.launcher.dtype, head.width), self.capacity,
            self.counts, x.memory, head.weight, head.bias, logits, self.capacity,
        )  # fmt: skip
        return logits
