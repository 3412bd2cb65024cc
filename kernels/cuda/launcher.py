"""Which compiled kernel runs for each step, on how many blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minibert.errors import BackendError

from .driver import Device, Function
from .language import HEAD_SIZES
from .recipes import LEAST_CAPABILITY, Built, Recipe, built_kernel
from .upload import DEPTH

if TYPE_CHECKING:
    from minibert.config import BertConfig

MOST_SPLITS = 8  # parts that a product's sums are split into

# Sizes of a block's tile, the largest first: rows, columns and further options of the factory.
TILES: dict[str, tuple[tuple[Any, ...], ...]] = {
    "float32": ((128, 128), (64, 64)),
    "float16": ((128, 128, (2, 2), 4), (64, 64, (2, 2), 4)),
}
TILES["bfloat16"] = TILES["float16"]


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


def check_embeddings(config: BertConfig) -> None:
    """Refuse tables from which no product can read.

    Raises:
        BackendError: they are projected, and their width is no multiple of `DEPTH`.
    """
    if config.projects and config.table_width % DEPTH:
        raise BackendError(
            f"the CUDA kernels project embeddings whose width is a multiple of {DEPTH}, and this "
            f"model's is {config.table_width}. Use device='cpu'."
        )


def recipes_of(config: BertConfig, dtype: str) -> list[Recipe]:
    """Every kernel that may run for models of this shape, on any GPU and for any batch."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    check_heads(hidden, heads)
    check_embeddings(config)
    ends = ("store", ""), ("store", config.activation), ("residual", "")
    return [
        rows_recipe("embed", dtype, config.table_width),
        attention_recipe(dtype, hidden, heads),
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


def attention_recipe(dtype: str, hidden: int, heads: int) -> Recipe:
    """Recipe of attention.

    Raises:
        BackendError: there is none for heads of this size.
    """
    head_size = check_heads(hidden, heads)
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


class Launcher:
    """The kernels of one GPU and dtype, loaded when they first run.

    Args:
        device: the GPU.
        dtype: 'float32', 'float16' or 'bfloat16', of activations and matrices.
        build: gives a recipe's compiled kernel.

    Raises:
        BackendError: the GPU cannot compute in this dtype.
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

    def rows(self, recipe: Recipe, capacity: int, *arguments: Any) -> None:
        """Put a kernel of rows.py on the stream, with blocks for `capacity` rows."""
        function, built = self.function(recipe)
        function.launch((-(-capacity // built.rows), 1, 1), *arguments)

    def tile(self, capacity: int, width: int) -> tuple[Any, ...]:
        """The tile of a GEMM: the largest of which there are two for each multiprocessor."""
        for tile in TILES[self.dtype]:
            blocks = -(-capacity // tile[0]) * -(-width // tile[1])
            if blocks >= 2 * self.device.gpu.multiprocessors:
                return tile
        return TILES[self.dtype][-1]

    def splits(self, capacity: int, width: int, depth: int) -> int:
        """In how many parts the sums of a product are split, so that all multiprocessors work.

        Args:
            capacity: rows of the result.
            width: columns of the result.
            depth: numbers that are summed.
        """
        tile = self.tile(capacity, width)
        blocks = -(-capacity // tile[0]) * -(-width // tile[1])
        wanted = -(-self.device.gpu.multiprocessors // max(1, blocks))
        return max(1, min(MOST_SPLITS, wanted, depth // 128))
