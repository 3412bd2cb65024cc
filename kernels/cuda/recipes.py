"""Compiled kernels on disk: what each is made from, where it is kept, how it is loaded.

A `Recipe` names a factory of one of the kernel files and its options.  Its cubin is kept in the
cache folder under a name that is a hash of everything that the code depends on: the sources of
the kernels, the recipe, the architecture, the versions of Numba and numba-cuda.  So a later process
neither compiles nor imports Numba, and after a change of a kernel nothing old is ever run.

The files are written and checked as ../cache.py says.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minibert.errors import BackendError
from minibert.kernels.cache import cache_folder, read_cache, sound_elf, write_cache
from minibert.progress import notice

from .language import Kernel

Capability = tuple[int, int]

COMPILERS = ("numba-cuda", "cuda-bindings")  # which compile kernels

# Packages whose version changes what is compiled; the wheels of CUDA 12 have names of their own.
WHEELS = (
    *COMPILERS,
    "numba",
    "llvmlite",
    "nvidia-nvvm",
    "nvidia-nvjitlink",
    "nvidia-cuda-nvcc-cu12",
    "nvidia-nvjitlink-cu12",
)

# Files of this folder that kernels are made from.
SOURCES = (
    "attention",
    "attention_float32",
    "compiler",
    "epilogue",
    "gemm",
    "gemm_float32",
    "language",
    "ptx",
    "recipes",
    "rows",
    "vectors",
)

LEAST_CAPABILITY: dict[str, Capability] = {
    "float32": (7, 5),
    "float16": (8, 0),
    "bfloat16": (8, 0),
}


@dataclass(frozen=True)
class Recipe:
    """How to make a kernel: `factory` of kernels/cuda/`module`.py, called with the options."""

    module: str
    factory: str
    options: tuple[Any, ...]

    def make(self) -> Kernel:
        """The kernel, not compiled."""
        module = importlib.import_module(f"{__package__}.{self.module}")
        return getattr(module, self.factory)(*self.options)

    def __str__(self) -> str:
        flat = str([self.module, self.factory, *(x or "none" for x in self.options)])
        return "-".join(re.findall(r"\w+", flat))


@dataclass(frozen=True)
class Built:
    """A compiled kernel and what is needed to launch it."""

    cubin: bytes
    entry: str  # its name in the cubin
    arguments: tuple[str, ...]
    threads: int
    shared_bytes: int
    rows: int
    columns: int


@functools.cache
def sources_digest() -> str:
    """A hash of all that any kernel's code is made from, but for its recipe."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    digest.update((Path(__file__).parent.parent / "reference.py").read_bytes())  # its constants
    for name in WHEELS:
        with suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{name} {importlib.metadata.version(name)}".encode())
    return digest.hexdigest()


def cache_path(recipe: Recipe, capability: Capability) -> Path:
    """Where the compiled kernel is kept."""
    digest = hashlib.sha256(f"{sources_digest()} {recipe!r} {capability}".encode()).hexdigest()
    name = f"cuda-sm_{capability[0]}{capability[1]}-{recipe}-{digest[:24]}.cubin"
    return cache_folder() / name


def encode(built: Built) -> bytes:
    """A compiled kernel as the content of a file: a line of JSON, then the cubin."""
    facts = asdict(built)
    cubin = facts.pop("cubin")
    return json.dumps(facts).encode() + b"\n" + cubin


def decode(content: bytes) -> Built:
    """The inverse of `encode`.

    Raises:
        ValueError, KeyError, TypeError: it is not what `encode` gives.
    """
    line, _, cubin = content.partition(b"\n")
    facts = json.loads(line)
    if not sound_elf(cubin, "cuda"):
        raise ValueError("no cubin")
    return Built(cubin=cubin, **facts | {"arguments": tuple(facts["arguments"])})


def compile_recipe(recipe: Recipe, capability: Capability) -> Built:
    """Compile a kernel.

    Raises:
        BackendError: numba-cuda is missing, or refuses the kernel.
    """
    missing = missing_compiler()
    if missing:
        raise BackendError(missing)
    from .compiler import compile_kernel

    kernel = recipe.make()
    code = compile_kernel(kernel, capability)
    return Built(
        code.cubin,
        code.entry,
        kernel.arguments,
        kernel.threads,
        kernel.shared_bytes,
        kernel.rows,
        kernel.columns,
    )


def missing_compiler() -> str:
    """Why kernels cannot be compiled here, and what to do; '' if they can.

    The packages' metadata is read, nothing is imported.
    """
    for package in COMPILERS:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return (
                f"the package {package} is missing, which compiles the CUDA kernels. Install it, "
                "pip install 'numba-cuda[cu13]>=0.30,<0.31', or with [cu12] if the driver is for "
                "CUDA 12; those are minibert's extras cuda13 and cuda12."
            )
    return ""


def built_kernel(
    recipe: Recipe,
    capability: Capability,
    compile_: Callable[[Recipe, Capability], Built] = compile_recipe,
) -> Built:
    """The compiled kernel: from the cache, or compiled now and kept.

    Raises:
        BackendError: it is not in the cache and cannot be compiled.
    """
    path = cache_path(recipe, capability)
    content = read_cache(path)
    if content is not None:
        with suppress(ValueError, KeyError, TypeError):
            return decode(content)
    notice(f"compiling {recipe} for sm_{capability[0]}{capability[1]}")
    built = compile_(recipe, capability)
    write_cache(path, encode(built))
    return built


def is_built(recipe: Recipe, capability: Capability) -> bool:
    """Whether the compiled kernel is in the cache."""
    return read_cache(cache_path(recipe, capability)) is not None
