"""The steps of device "cuda": which kernel runs for each, on how many blocks.

`Kernels` has the functions of reference.py, which copy their input to the GPU and their result
back: for tests, traces and teaching.  They are made of `Steps`, which put the same launches on the
stream for arrays that stay on the GPU; program.py makes the whole pass of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats, Ints
from minibert.errors import BackendError
from minibert.parameters import Dense, Norm, Tables, Weights

from .driver import Address, Device, Function, Memory
from .language import HEAD_SIZES, QUERIES, TILE_FIELDS
from .recipes import LEAST_CAPABILITY, Built, Recipe, built_kernel
from .upload import (
    STORED,
    DeviceDense,
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
    from collections.abc import Callable

    from minibert.batches import Batch
    from minibert.config import BertConfig


MOST_SPLITS = 8  # parts that a product's sums are split into

# Sizes of a block's tile, the largest first: rows, columns and further options of the factory.
TILES: dict[str, tuple[tuple[Any, ...], ...]] = {
    "float32": ((128, 128), (64, 64)),
    "float16": ((128, 128, (2, 2), 4), (64, 64, (2, 2), 4)),
}
TILES["bfloat16"] = TILES["float16"]


def attention_tiles(cu_seqlens: Ints) -> Ints:
    """The list of attention's tiles: each window, cut into groups of 64 queries.

    Args:
        cu_seqlens: [B + 1].

    Returns:
        [tiles, 4] int32: the window's first row, its length, the tile's first query, 0.  Longest
        windows first, so that the last blocks to begin are short.

    Example:
        >>> attention_tiles(np.array([0, 3, 73], np.int32)).tolist()
        [[3, 70, 0, 0], [3, 70, 64, 0], [0, 3, 0, 0]]
    """
    lengths = np.diff(cu_seqlens)
    order = np.argsort(-lengths, kind="stable")
    counts = -(-lengths[order] // QUERIES)
    windows = np.repeat(order, counts)
    tiles = np.zeros((len(windows), TILE_FIELDS), np.int32)
    tiles[:, 0] = cu_seqlens[:-1][windows]
    tiles[:, 1] = lengths[windows]
    first = np.cumsum(counts) - counts
    tiles[:, 2] = (np.arange(len(windows)) - np.repeat(first, counts)) * QUERIES
    return tiles


def check_heads(hidden: int, heads: int) -> int:
    """Size of a head.

    Raises:
        BackendError: attention has no kernel for it.
    """
    size = hidden // heads
    if size not in HEAD_SIZES or size * heads != hidden:
        raise BackendError(
            f"the CUDA kernels take heads of {' or '.join(map(str, HEAD_SIZES))} numbers, and this "
            f"model has {heads} heads in a hidden size of {hidden}. Use device='cpu'."
        )
    return size


def recipes_of(config: BertConfig, dtype: str) -> list[Recipe]:
    """Every kernel that may run for models of this shape, on any GPU and for any batch."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_size = check_heads(hidden, heads)
    ends = ("store", ""), ("store", config.activation), ("residual", "")
    return [
        rows_recipe("embed", dtype, hidden),
        attention_recipe(dtype, heads, head_size),
        *(gemm_recipe(dtype, *end, tile) for end in ends for tile in TILES[dtype]),
        # Sums are only split where there are few blocks, even of the smallest tile.
        gemm_recipe(dtype, "partial", "", TILES[dtype][-1]),
        rows_recipe("norm", dtype, hidden),
        rows_recipe("add_norm", dtype, hidden),
        rows_recipe("span_logits", dtype, hidden),
    ]


def gemm_recipe(dtype: str, end: str, activation: str, tile: tuple[Any, ...]) -> Recipe:
    """Recipe of a GEMM."""
    if dtype == "float32":
        return Recipe("gemm_float32", "gemm", (end, activation, *tile))
    return Recipe("gemm", "gemm", (dtype, end, activation, *tile))


def attention_recipe(dtype: str, heads: int, head_size: int) -> Recipe:
    """Recipe of attention."""
    if dtype == "float32":
        return Recipe("attention_float32", "attention", (heads, head_size))
    return Recipe("attention", "attention", (dtype, heads, head_size))


def rows_recipe(factory: str, dtype: str, width: int) -> Recipe:
    """Recipe of a kernel of rows.py.

    Raises:
        BackendError: there is none for this width.
    """
    if width % 8:
        raise BackendError(
            f"the CUDA kernels take hidden sizes that are multiples of 8, got {width}. "
            "Use device='cpu'."
        )
    return Recipe("rows", factory, (dtype, width))


class Steps:
    """Launches of kernels on arrays in the GPU's memory.

    Args:
        device: the GPU.
        dtype: 'float32', 'float16' or 'bfloat16', of activations and matrices.
        build: gives a recipe's compiled kernel.
    """

    def __init__(
        self,
        device: Device,
        dtype: str,
        build: Callable[[Recipe, tuple[int, int]], Built] = built_kernel,
    ):
        least = LEAST_CAPABILITY[dtype]
        gpu = device.gpu
        if gpu.capability < least:
            raise BackendError(
                f"{dtype} needs a GPU of compute capability {least[0]}.{least[1]} or more, and "
                f"{gpu.name} has {gpu.capability[0]}.{gpu.capability[1]}. "
                + ("Use dtype='float32'." if dtype != "float32" else "Use device='cpu'.")
            )
        self.device, self.dtype, self.build = device, dtype, build
        self.bytes = 4 if dtype == "float32" else 2  # of an activation
        self.functions: dict[Recipe, tuple[Function, Built]] = {}

    def function(self, recipe: Recipe) -> tuple[Function, Built]:
        """A recipe's kernel, loaded."""
        if recipe not in self.functions:
            built = self.build(recipe, self.device.gpu.capability)
            gpu = self.device.gpu
            if built.shared_bytes > (most := gpu.most_shared_bytes):
                raise BackendError(
                    f"{gpu.name} gives a block at most {most} bytes of shared memory, and "
                    f"{recipe} needs {built.shared_bytes}. Use device='cpu'."
                )
            function = Function(
                self.device,
                built.cubin,
                built.entry,
                built.arguments,
                built.threads,
                built.shared_bytes,
            )
            self.functions[recipe] = function, built
        return self.functions[recipe]

    # ------------------------------------------------------------ which kernel

    def tile(self, capacity: int, width: int) -> tuple[Any, ...]:
        """The tile of a GEMM: the largest of which there are two for each multiprocessor."""
        for tile in TILES[self.dtype]:
            blocks = -(-capacity // tile[0]) * -(-width // tile[1])
            if blocks >= 2 * self.device.gpu.multiprocessors:
                return tile
        return TILES[self.dtype][-1]

    def splits(self, capacity: int, dense: DeviceDense) -> int:
        """In how many parts the sums of a product are split, so that all multiprocessors work."""
        tile = self.tile(capacity, dense.width)
        blocks = -(-capacity // tile[0]) * -(-dense.width // tile[1])
        wanted = -(-self.device.gpu.multiprocessors // max(1, blocks))
        return max(1, min(MOST_SPLITS, wanted, dense.depth // 128))

    # ------------------------------------------------------------ the steps

    def _product(
        self,
        recipe: Recipe,
        counts: Address,
        x: Memory,
        dense: DeviceDense,
        residual: Memory | None,
        y: Memory,
        capacity: int,
        splits: int,
    ) -> None:
        function, built = self.function(recipe)
        grid = -(-dense.width // built.columns), -(-capacity // built.rows), splits
        function.launch(
            grid, counts, x, dense.weight, dense.bias, residual or 0, y,
            dense.width, dense.depth, capacity,
        )  # fmt: skip

    def _rows(self, recipe: Recipe, capacity: int, *arguments: Any) -> None:
        function, built = self.function(recipe)
        function.launch((-(-capacity // built.rows), 1, 1), *arguments)

    def embed(
        self,
        counts: Address,
        ids: tuple[Address, Address, Address],
        tables: DeviceTables,
        y: Memory,
        eps: float,
        capacity: int,
    ) -> None:
        """Put on the stream: y [capacity, D], embeddings of input ids, token types, positions."""
        self._rows(
            rows_recipe("embed", self.dtype, tables.width), capacity, counts, *ids, tables.words,
            tables.token_types, tables.positions, tables.norm.gain, tables.norm.bias, y, eps,
        )  # fmt: skip

    def linear(
        self,
        counts: Address,
        x: Memory,
        dense: DeviceDense,
        y: Memory,
        capacity: int,
        activation: str = "",
    ) -> None:
        """Put on the stream: y [capacity, width] = activation(x @ weight.T + bias)."""
        recipe = gemm_recipe(self.dtype, "store", activation, self.tile(capacity, dense.width))
        self._product(recipe, counts, x, dense, None, y, capacity, 1)

    def sums_size(self, dense: DeviceDense, capacity: int) -> int:
        """Bytes that `linear_add_norm` needs for its sums."""
        splits = self.splits(capacity, dense)
        return capacity * dense.width * (4 * splits if splits > 1 else self.bytes)

    def linear_add_norm(
        self,
        counts: Address,
        x: Memory,
        dense: DeviceDense,
        residual: Memory,
        norm: DeviceNorm,
        sums: Memory,
        y: Memory,
        eps: float,
        capacity: int,
    ) -> None:
        """Put on the stream: y [capacity, D] = layer_norm(x @ weight.T + bias + residual).

        `sums`, with room for `sums_size`, is overwritten.
        """
        splits = self.splits(capacity, dense)
        end = "partial" if splits > 1 else "residual"
        recipe = gemm_recipe(self.dtype, end, "", self.tile(capacity, dense.width))
        self._product(recipe, counts, x, dense, residual, sums, capacity, splits)
        if splits > 1:
            recipe = rows_recipe("add_norm", self.dtype, dense.out)
            self._rows(
                recipe, capacity, counts, sums, splits, capacity, dense.bias, residual, norm.gain,
                norm.bias, y, eps,
            )  # fmt: skip
        else:
            recipe = rows_recipe("norm", self.dtype, dense.out)
            self._rows(recipe, capacity, counts, sums, norm.gain, norm.bias, y, eps)

    def attention(
        self,
        counts: Address,
        tiles: Address,
        qkv: Memory,
        y: Memory,
        heads: int,
        head_size: int,
        most_tiles: int,
    ) -> None:
        """Put on the stream: y [T, D], what each token reads from its window.

        At most `most_tiles` are in the list of tiles.
        """
        recipe = attention_recipe(self.dtype, heads, head_size)
        # At most three blocks fit on a multiprocessor (min_blocks); more would only wait.
        blocks = max(1, min(most_tiles * heads, 3 * self.device.gpu.multiprocessors))
        self.function(recipe)[0].launch((blocks, 1, 1), counts, tiles, qkv, y)

    def span_logits(
        self, counts: Address, x: Memory, head: DeviceDense, logits: Memory, capacity: int
    ) -> None:
        """Put on the stream: logits [2, capacity] float32, start, then end."""
        recipe = rows_recipe("span_logits", self.dtype, head.depth)
        self._rows(recipe, capacity, counts, x, head.weight, head.bias, logits, capacity)


class Kernels:
    """The functions of reference.py on a GPU, and the whole pass.

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
        self.steps = Steps(device, dtype, build)

    def prepare(self, weights: Weights) -> DeviceWeights:
        """Bring a checkpoint's weights to the GPU; done once, when a model is loaded."""
        return upload_weights(self.device, weights, self.dtype)

    # ------------------------------------------------------------ single steps

    def _counts(self, tokens: int, tiles: int = 0) -> Memory:
        return self.device.upload(np.array([tokens, tiles, 0, 0], np.int32))

    def _up(self, x: Floats, columns: int) -> Memory:
        """An array [T, n] on the GPU as [T, columns]; at least one row, so that there is memory."""
        return self.device.upload(narrow(padded(x, max(1, len(x)), columns), self.dtype))

    def _room(self, tokens: int, columns: int, size: int = 0) -> Memory:
        return Memory(self.device, max(1, tokens) * columns * (size or self.steps.bytes))

    def _down(self, y: Memory, tokens: int, columns: int, width: int) -> Floats:
        """The first `columns` of [T, width] as float32."""
        numbers: NDArray[Any] = self.device.download(y, STORED[self.dtype], tokens * width)
        return np.ascontiguousarray(widen(numbers.reshape(tokens, width), self.dtype)[:, :columns])

    def embed(
        self,
        input_ids: Ints,
        token_type_ids: Ints,
        position_ids: Ints,
        tables: Tables,
        eps: float,
    ) -> Floats:
        """See reference.embed."""
        tokens = len(input_ids)
        device_tables = upload_tables(self.device, tables, self.dtype)
        ids = [
            self.device.upload(np.asarray(x, np.int32))
            for x in (input_ids, token_type_ids, position_ids)
        ]
        width = device_tables.width
        y, counts = self._room(tokens, width), self._counts(tokens)
        places = ids[0].address, ids[1].address, ids[2].address
        self.steps.embed(counts.address, places, device_tables, y, eps, max(1, tokens))
        return self._down(y, tokens, width, width)

    def _linear(self, x: Floats, dense: Dense, activation: str) -> Floats:
        tokens = len(x)
        layer = upload_dense(self.device, dense, self.dtype)
        on_device, y = self._up(x, layer.depth), self._room(tokens, layer.width)
        counts = self._counts(tokens)
        self.steps.linear(counts.address, on_device, layer, y, max(1, tokens), activation)
        return self._down(y, tokens, layer.out, layer.width)

    def linear(self, x: Floats, dense: Dense) -> Floats:
        """See reference.linear."""
        return self._linear(x, dense, "")

    def linear_activation(self, x: Floats, dense: Dense, activation: str) -> Floats:
        """See reference.linear_activation."""
        return self._linear(x, dense, activation)

    def linear_add_norm(
        self, x: Floats, dense: Dense, residual: Floats, norm: Norm, eps: float
    ) -> Floats:
        """See reference.linear_add_norm."""
        tokens, capacity = len(x), max(1, len(x))
        layer = upload_dense(self.device, dense, self.dtype)
        gains = upload_norm(self.device, norm)
        on_device, other = self._up(x, layer.depth), self._up(residual, layer.width)
        sums = Memory(self.device, self.steps.sums_size(layer, capacity))
        y, counts = self._room(tokens, layer.width), self._counts(tokens)
        self.steps.linear_add_norm(
            counts.address, on_device, layer, other, gains, sums, y, eps, capacity
        )
        return self._down(y, tokens, layer.out, layer.width)

    def attention(self, qkv: Floats, cu_seqlens: Ints, num_heads: int) -> Floats:
        """See reference.attention."""
        tokens, width = len(qkv), qkv.shape[1] // 3
        size = check_heads(width, num_heads)
        tiles = attention_tiles(cu_seqlens)
        on_device, y = self._up(qkv, 3 * width), self._room(tokens, width)
        places, counts = self.device.upload(tiles), self._counts(tokens, len(tiles))
        self.steps.attention(
            counts.address, places.address, on_device, y, num_heads, size, len(tiles)
        )
        return self._down(y, tokens, width, width)

    def span_logits(self, x: Floats, dense: Dense) -> tuple[Floats, Floats]:
        """See reference.span_logits."""
        tokens, capacity = len(x), max(1, len(x))
        head = upload_head(self.device, dense)
        on_device, logits = self._up(x, head.depth), self._room(capacity, 2, 4)
        counts = self._counts(tokens)
        self.steps.span_logits(counts.address, on_device, head, logits, capacity)
        both = self.device.download(logits, np.float32, 2 * capacity).reshape(2, capacity)
        return both[0, :tokens].copy(), both[1, :tokens].copy()

    # ------------------------------------------------------------ the whole pass

    def launch(
        self, batch: Batch, weights: Weights, config: BertConfig
    ) -> Callable[[], tuple[Floats, Floats]]:
        """Begin a pass; the function that comes back waits for its start and end logits [T]."""
        from .program import Program

        if not isinstance(weights, DeviceWeights):
            weights = self.prepare(weights)
        if not weights.programs:
            weights.programs.append(Program(self.steps, weights, config))
        return weights.programs[0].launch(batch)

    def forward(self, batch: Batch, weights: Weights, config: BertConfig) -> tuple[Floats, Floats]:
        """Start and end logits [T] of a packed batch."""
        return self.launch(batch, weights, config)()
