"""Targets: which vector instructions the kernels are written with, and the size of their tiles.

A matrix product keeps a tile of its result in registers: some rows by two vectors.  Each step
loads two vectors of weights, broadcasts one number of each row, and updates every register of the
tile; the more registers there are, the fewer loads a multiplication costs.

    target        lanes  registers  tile         float32   bfloat16   int8
    avx512-bf16   16     32         12 x 2 x 16  fma       vdpbf16ps  vpdpbusd
    avx512-vnni   16     32         12 x 2 x 16  fma       rounded    vpdpbusd
    avx512        16     32         12 x 2 x 16  fma       rounded    vpmaddubsw
    avx2-vnni     8      16          6 x 2 x 8   fma       rounded    vpdpbusd
    avx2          8      16          6 x 2 x 8   fma       rounded    vpmaddubsw
    neon-dot      4      32         12 x 2 x 4   fmla      rounded    sdot
    neon          4      32         12 x 2 x 4   fmla      rounded    widened
    plain         4      16          6 x 2 x 4   mul, add  rounded    widened

"Rounded": to bfloat16, but kept and multiplied as float32: the same numbers, no faster.
"Widened": numbers in int8 are kept as int16.  vpmaddubsw adds two products in int16, which holds
them only if activations have 7 bits.  So every dtype gives the right answer on every processor.

MINIBERT_CPU=avx2 (or any other name above) chooses a lesser target than the processor's own.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import llvmlite.binding as llvm

from minibert.errors import BackendError


@dataclass(frozen=True)
class Target:
    """What the kernels are compiled for."""

    name: str
    lanes: int  # float32 numbers in a vector
    tile_rows: tuple[int, ...]  # heights of the tile, the largest first
    int8: str = "widened"  # or 'vnni', 'maddubs', 'sdot'
    bfloat16: str = "rounded"  # or 'dot'
    fma: bool = True
    arch: str = ""  # the only architecture that has it; empty for any
    cpu: str = ""  # LLVM's name of the processor
    features: str = ""  # LLVM's names of the features; the host must have them all

    @property
    def panel(self) -> int:
        """Columns of a tile, and of a panel of packed weights: two vectors."""
        return 2 * self.lanes

    @property
    def largest(self) -> int:
        """The largest integer that activations are quantised to; weights go from -127 to 127."""
        return 127 if self.int8 == "maddubs" else 255

    def operand(self, dtype: str) -> str:
        """How the numbers of a product in this dtype are kept; see SIZES."""
        if dtype == "bfloat16" and self.bfloat16 == "rounded":
            return "rounded"
        if dtype == "int8" and self.int8 == "widened":
            return "int16"
        return dtype

    def inner(self, dtype: str) -> str:
        """How context and inner rows are kept, which are inputs of products, too."""
        operand = self.operand(dtype)
        return operand if operand in ("bfloat16", "rounded") else "float32"

    def attention(self, dtype: str) -> str:
        """How queries, keys and values are kept, in a model of this dtype."""
        return "bfloat16" if dtype != "float32" and self.bfloat16 == "dot" else "float32"


# Bytes of a number, in each way of keeping it.  "rounded" is float32 that bfloat16 could hold.
SIZES = {"float32": 4, "rounded": 4, "bfloat16": 2, "int16": 2, "int8": 1}

LARGE, SMALL = (12, 8, 4), (6, 4, 2)  # tiles for 32 and for 16 registers
X86, V4, V3 = "x86_64", "x86-64-v4", "x86-64-v3"
HAVE_V3 = "avx2 bmi bmi2 f16c fma lzcnt movbe"  # what LLVM may use for them
HAVE_V4 = f"{HAVE_V3} avx512f avx512bw avx512cd avx512dq avx512vl"

# The best first: a host runs the first that it can.
TARGETS = (
    Target(
        "avx512-bf16", 16, LARGE, "vnni", "dot", True, X86, V4, f"{HAVE_V4} avx512vnni avx512bf16"
    ),
    Target("avx512-vnni", 16, LARGE, "vnni", "rounded", True, X86, V4, f"{HAVE_V4} avx512vnni"),
    Target("avx512", 16, LARGE, "maddubs", "rounded", True, X86, V4, HAVE_V4),
    Target("avx2-vnni", 8, SMALL, "vnni", "rounded", True, X86, V3, f"{HAVE_V3} avxvnni"),
    Target("avx2", 8, SMALL, "maddubs", "rounded", True, X86, V3, HAVE_V3),
    Target("neon-dot", 4, LARGE, "sdot", "rounded", True, "aarch64", "generic", "dotprod"),
    Target("neon", 4, LARGE, "widened", "rounded", True, "aarch64", "generic"),
    Target("plain", 4, SMALL, fma=False),
)


def host_arch() -> str:
    """Name of this machine's architecture, as LLVM writes it."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def host_targets() -> list[Target]:
    """The targets that this machine can run, the best first."""
    try:
        found = {name for name, there in llvm.get_host_cpu_features().items() if there}
    except RuntimeError:  # LLVM does not know how to ask this system
        found = set()
    return [
        target
        for target in TARGETS
        if target.arch in ("", host_arch()) and found.issuperset(target.features.split())
    ]


def find_target() -> Target:
    """The best target of this machine, or the one that MINIBERT_CPU names.

    Raises:
        BackendError: MINIBERT_CPU names no target, or one that this machine cannot run.
    """
    able = host_targets()
    wish = os.environ.get("MINIBERT_CPU") or able[0].name
    for target in able:
        if target.name == wish:
            return target
    raise BackendError(
        f"MINIBERT_CPU={wish!r}: choose one that this processor can run "
        f"({', '.join(target.name for target in able)}), or unset it for the best."
    )
