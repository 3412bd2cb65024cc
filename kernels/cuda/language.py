"""The words in which the CUDA kernels are written, besides those of numba.cuda.

A kernel is a plain Python function.  It uses `cuda.threadIdx`, `cuda.shared.array`,
`cuda.syncthreads` and so on as every numba.cuda kernel does, and the *instructions* of this file
for what numba.cuda has no word for: tensor cores, asynchronous copies, 16-byte accesses.  An
`Instruction` here is only a name and some numbers.  ptx.py says what the compiler makes of it; the
emulator of the tests says what it means, in NumPy.  So a kernel can be read, and run, without a
GPU and without numba.cuda's compiler.

A *fragment* is the part of a small matrix that one thread (lane) of a warp holds for the tensor
cores.  With group g = lane // 4 and t = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16"):

    accumulator 16 x 8, float32, 4 numbers:  rows g, g + 8; columns 2t, 2t + 1
    A 16 x 16, four 32-bit pairs: (g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..)
    B 16 x 8, two pairs, down column g: from row 2t, from row 2t + 8
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES = ("float32", "float16", "bfloat16")  # in which activations and matrices are kept

# What kernels and those who launch them must agree on.
HEAD_SIZES = (32, 64)  # for which there is attention
QUERIES = 64  # of a tile of attention
TILE_FIELDS = 4  # numbers that describe a tile in the list of tiles; the last is unused

ALL_LANES = np.uint32(0xFFFFFFFF)  # of a warp, for shuffles

# How one number of each dtype lies in memory: 16-bit numbers in pairs, the first in the low half.
POINTERS = {"float32": "float32*", "float16": "uint32*", "bfloat16": "uint32*"}


@dataclass(frozen=True)
class Instruction:
    """A word of the language; only the compiler and the emulator can run it."""

    name: str
    parameters: tuple[Any, ...] = ()

    def __call__(self, *operands: Any) -> Any:
        """Stands in for the compiled word, so that type checkers see something to call."""
        raise TypeError(f"{self.name} only means something inside a CUDA kernel")


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel and all that must be known to compile and launch it."""

    name: str  # unlike that of any other kernel that may run in the same process
    function: Callable[..., None]
    arguments: tuple[str, ...]  # 'float32*', 'uint16*', 'uint32*', 'int32*', 'int32' or 'float32'
    threads: int  # of a block
    shared_bytes: int = 0  # of a block, allocated at launch
    rows: int = 1  # of the output that one block computes
    columns: int = 0  # of the output that one block computes; 0: all
    min_blocks: int = 1  # that shall fit on one multiprocessor: limits the registers of a thread


def device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function that kernels call; the compiler puts its code in their place."""
    function.is_device_function = True  # type: ignore[attr-defined]
    return function


# ---------------------------------------------------------------- memory

# load(array, i) is array[i], store(array, i, value) is array[i] = value: without the check for
# negative indices that numba's own indexing has.
load = Instruction("load")
store = Instruction("store")

# load4(array, i): the four 32-bit numbers array[i : i + 4] as a tuple, in one access of 16 bytes.
# store4(array, i, (a, b, c, d)) writes them.  The address must be a multiple of 16 bytes.
load4 = Instruction("load4")
store4 = Instruction("store4")

# Addresses of array[i], in bytes: uint32 in shared memory, uint64 in global memory.
shared_address = Instruction("shared_address")
global_address = Instruction("global_address")


def fill(count: int) -> Instruction:
    """Word (array, value): set the first `count` numbers of a local array."""
    return Instruction("fill", (count,))


# ---------------------------------------------------------------- copies that run beside the code

# copy16(shared, global, count): begin to copy 16 bytes between two addresses, both multiples of
# 16; with a count of 0 nothing is read and the 16 bytes become zero.
copy16 = Instruction("copy16")
# commit_copies(): the copies that this thread began since the last call are one group.
commit_copies = Instruction("commit_copies")


def wait_copies(pending: int) -> Instruction:
    """Word (): wait until at most `pending` groups of this thread are under way.

    Other threads see what was copied after the next barrier.
    """
    return Instruction("wait_copies", (pending,))


# ---------------------------------------------------------------- tensor cores


def load_fragments(
    tiles: int, step: int, *, xor: bool = False, transposed: bool = False
) -> Instruction:
    """Word (fragments, address): read 16-bit matrices from shared memory.

    The warp reads `tiles` times four matrices of 8 x 8.  Lane l gives the address of row l % 8 of
    matrix l // 8, and gets words 4 * tile + m: of matrix m, row g, columns 2t and 2t + 1 (of the
    transposed matrix, if so asked).

    Args:
        tiles: how many.
        step: bytes from one tile's address to the next's; a multiple of 16.
        xor: combine address and tile * step by exclusive or, as swizzled rows need.
        transposed: give each matrix transposed.
    """
    return Instruction("load_fragments", (tiles, step, xor, transposed))


def multiply_fragments(m_tiles: int, n_tiles: int, dtype: str, first_word: int = 0) -> Instruction:
    """Word (accumulators, a, b): accumulators += a @ b on tensor cores.

    Args:
        m_tiles: tiles of 16 rows; a holds 4 words for each.
        n_tiles: tiles of 8 columns; b holds 2 words for each.
        dtype: 'float16' or 'bfloat16' of a and b; products are summed in float32.
        first_word: of `a` that is used.

    Accumulators: 4 float32 for each (m, n), n fastest.
    """
    return Instruction("multiply_fragments", (m_tiles, n_tiles, dtype, first_word))


def store_fragments(m_tiles: int, n_tiles: int) -> Instruction:
    """Word (accumulators, shared, base, stride, lane): write them out.

    Row r, column c of the warp's 16 m_tiles x 8 n_tiles go to shared[base + r * stride + c];
    base and stride are even.
    """
    return Instruction("store_fragments", (m_tiles, n_tiles))


def pack_fragments(n_tiles: int, dtype: str) -> Instruction:
    """Word (accumulators, a): a product becomes the next one's left operand.

    16 x 8 n_tiles accumulators -> n_tiles / 2 matrices A of 16 x 16, rounded to `dtype`.
    """
    return Instruction("pack_fragments", (n_tiles, dtype))


# ---------------------------------------------------------------- float32 tiles


def multiply_tile(depth: int, rows: int, columns: int, strides: tuple[int, int, int, int]) -> Any:
    """Word (accumulators, shared, a, b): add `depth` outer products, in float32.

    For each k < depth, the thread reads `rows` numbers of column k of A, in groups of four, from
    shared[a + k * stride_a + group * group_a], and `columns` numbers of row k of B likewise, and
    adds their outer product to accumulators[row * columns + column].

    Args:
        depth: k's.
        rows: of the thread's tile, a multiple of 4.
        columns: of the thread's tile, a multiple of 4.
        strides: stride_a, stride_b, group_a, group_b, in numbers.
    """
    return Instruction("multiply_tile", (depth, rows, columns, strides))


def store_tile(columns: int, first_row: int, rows: int, group: int) -> Instruction:
    """Word (accumulators, shared, base, stride): write rows of a float32 tile out.

    Row r, column c of the thread's tile, for first_row <= r < first_row + rows, goes to
    shared[base + (r - first_row) * stride + c // 4 * group + c % 4]; 16 bytes at a time.
    """
    return Instruction("store_tile", (columns, first_row, rows, group))


# ---------------------------------------------------------------- numbers


def pack2(dtype: str) -> Instruction:
    """Word (low, high): two float32, rounded to nearest even, as one 32-bit word."""
    return Instruction("pack2", (dtype,))


def unpack2(dtype: str) -> Instruction:
    """Word (word): its two 16-bit numbers as float32, the low half first."""
    return Instruction("unpack2", (dtype,))


# exp2(x): 2 to the power of x, float32, off by at most 2 in the last place; very small results
# become 0.
exp2 = Instruction("exp2")
