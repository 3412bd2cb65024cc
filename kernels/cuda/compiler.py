"""Compile a kernel to machine code for one kind of GPU; no GPU is needed for that.

numba.cuda turns the Python function into PTX, and nvJitLink turns PTX into a cubin for one
architecture.  The language's instructions (language.py) are bound to numba.cuda intrinsics (ptx.py)
first: a copy of the function is made whose names mean those.

recipes.py keeps what comes out.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CellType, FunctionType
from typing import Any

import numpy as np

from minibert.errors import BackendError

from .language import Instruction, Kernel

NEWEST = (9, 0)  # architecture that PTX is made for
COMPILING = threading.Lock()  # `without_device` changes numba.cuda for a while


@dataclass(frozen=True)
class Code:
    """A compiled kernel."""

    cubin: bytes
    entry: str  # its name in the cubin
    ptx: str
    registers: int  # of a thread
    spilled: int  # bytes of registers that went to memory, of a thread


def bind(function: Callable[..., Any], known: dict[Any, Any]) -> Callable[..., Any]:
    """A copy of a kernel or device function in which every instruction is an intrinsic."""
    from numba import cuda

    from .ptx import intrinsic_for

    def meaning(value: Any) -> Any:
        if isinstance(value, Instruction):
            if value not in known:
                known[value] = intrinsic_for(value)
            return known[value]
        if getattr(value, "is_device_function", False):
            if value not in known:
                inner = bind(value, known)
                known[value] = cuda.jit(device=True, fastmath=True)(inner)
            return known[value]
        return value

    # Only the names that the code uses: meaning() would never come to an end with all of them.
    used = function.__globals__.keys() & set(function.__code__.co_names)
    names = function.__globals__ | {name: meaning(function.__globals__[name]) for name in used}
    cells = tuple(CellType(meaning(cell.cell_contents)) for cell in function.__closure__ or ())
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells)


@contextlib.contextmanager
def without_device(capability: tuple[int, int]) -> Iterator[None]:
    """Let numba.cuda compile device functions for a GPU that is not there.

    It asks the driver for the present GPU's capability and for nothing else (numba-cuda 0.30).
    """
    from numba.cuda import dispatcher

    present = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: type(
        "AbsentDevice", (), {"compute_capability": capability}
    )
    try:
        yield
    finally:
        dispatcher.get_current_device = present


def signature(kernel: Kernel) -> tuple[Any, ...]:
    """numba.cuda's types of a kernel's arguments."""
    from numba.cuda import types

    return tuple(
        types.CPointer(getattr(types, name[:-1])) if name.endswith("*") else getattr(types, name)
        for name in kernel.arguments
    )


def to_ptx(kernel: Kernel, capability: tuple[int, int]) -> str:
    """Compile to PTX for an architecture, e.g. (8, 0).

    Raises:
        BackendError: the compiler's libraries are missing, or do not know the architecture.
    """
    # numba-cuda 0.30 uses np.row_stack, which NumPy 2.5 removed; vstack is the same function.
    if not hasattr(np, "row_stack"):
        np.row_stack = np.vstack  # noqa: NPY201
    from numba.core.errors import NumbaError
    from numba.cuda import compile_ptx
    from numba.cuda.cudadrv.error import NvvmError

    bounds = (kernel.threads, kernel.min_blocks) if kernel.min_blocks > 1 else kernel.threads
    # Newer GPUs run code that was made for Hopper and assembled for them; NVVM's own code for them
    # (13.5, sm_100 and up) leaves the accumulators in memory.
    written_for = min(capability, NEWEST)
    try:
        with COMPILING, without_device(written_for):
            ptx, _ = compile_ptx(
                bind(kernel.function, {}),
                signature(kernel),
                cc=written_for,
                fastmath=True,
                launch_bounds=bounds,
            )
    except (ImportError, OSError, RuntimeError, ValueError, NvvmError, NumbaError) as error:
        name = f"sm_{capability[0]}{capability[1]}"
        raise BackendError(
            f"numba-cuda could not compile {kernel.name} for {name}: {type(error).__name__}: "
            f"{error}. If the compiler's libraries are missing, install numba-cuda[cu13] or "
            "numba-cuda[cu12] anew."
        ) from error
    return ptx


def assemble(ptx: str, capability: tuple[int, int]) -> tuple[bytes, str]:
    """PTX -> cubin and the assembler's report, through nvJitLink.

    Raises:
        BackendError: it refuses the code or does not know the architecture, or is missing.
    """
    from cuda.bindings import nvjitlink

    arch = f"sm_{capability[0]}{capability[1]}"
    options = [f"-arch={arch}", "-verbose", "-Xptxas=-v"]
    # The compiler writes its own, newest version of PTX, which an assembler from another package
    # may not know; nothing here needs more than 8.0.
    text = re.sub(r"(?m)^\.version [\d.]+", ".version 8.0", ptx).encode()
    log, handle = bytearray(), 0
    try:
        handle = nvjitlink.create(len(options), options)
        try:
            nvjitlink.add_data(handle, nvjitlink.InputType.PTX, text, len(text), "kernel")
            nvjitlink.complete(handle)
        except nvjitlink.nvJitLinkError:
            log = bytearray(nvjitlink.get_error_log_size(handle))
            nvjitlink.get_error_log(handle, log)
            raise
        report = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, report)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
    except (nvjitlink.nvJitLinkError, RuntimeError) as error:
        raise BackendError(
            f"the CUDA assembler (nvJitLink) refused a kernel for {arch}: {error}. Does the "
            f"installed one know {arch}?\n" + log.decode(errors="replace")
        ) from error
    finally:
        if handle:
            nvjitlink.destroy(handle)
    return bytes(cubin), report.decode(errors="replace")


def compile_kernel(kernel: Kernel, capability: tuple[int, int]) -> Code:
    """Compile a kernel for an architecture, e.g. (9, 0).

    Raises:
        BackendError: the assembler refuses it.
    """
    ptx = to_ptx(kernel, capability)
    cubin, report = assemble(ptx, capability)
    entry = re.findall(r"\.visible \.entry ([\w$]+)", ptx)[0]

    def number(pattern: str) -> int:
        found = re.search(pattern, report)
        return int(found.group(1)) if found else 0

    spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    stack = number(r"(\d+) bytes stack frame")
    return Code(cubin, entry, ptx, number(r"Used (\d+) registers"), max(spilled, stack))
