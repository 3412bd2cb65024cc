"""Which GPUs there are, and if none can be used, the one reason and what to do about it.

Only the driver is asked, which takes a fraction of a millisecond where there is none; nothing of
Numba is imported.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from contextlib import suppress
from ctypes import byref, c_int, c_size_t, create_string_buffer
from dataclasses import dataclass
from typing import Any

from minibert.errors import BackendError

from . import driver
from .recipes import LEAST_CAPABILITY, missing_compiler

LEAST_DRIVER = 12000  # CUDA version as the driver writes it: 1000 * major + 10 * minor
ANYTHING = min(LEAST_CAPABILITY.values())

# What to do where the driver itself fails, by its error code.
REMEDIES = {
    driver.NO_DEVICE: "the driver sees no GPU. Is CUDA_VISIBLE_DEVICES set to hide it, or was the "
    "container started without its GPUs?",
    803: "the driver's library and its kernel module are of different versions. Restart the "
    "computer after an update of the driver.",
    804: "this GPU does not take the compatibility package that stands in for a newer driver. "
    "Install the newer driver itself.",
    999: "the driver does not answer. Restart the computer, or reload the module nvidia_uvm.",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver sees."""

    index: int
    name: str
    capability: tuple[int, int]  # compute capability, e.g. (9, 0)
    memory_size: int  # bytes
    multiprocessors: int


@dataclass(frozen=True)
class Found:
    """What was found out about CUDA."""

    driver_version: str = ""  # of CUDA, e.g. '13.0'; '' without a driver
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""  # why no GPU can be used, and what to do; '' if one can


def ask_driver(library: Any, name: str, *arguments: Any) -> int:
    """Call a function of the driver's library; its error code."""
    function = getattr(library, name)
    function.argtypes, function.restype = driver.FUNCTIONS[name], c_int
    return function(*arguments)


def describe(library: Any, index: int) -> Gpu:
    """What the driver says of one GPU."""
    handle, size = c_int(), c_size_t()
    ask_driver(library, "cuDeviceGet", byref(handle), index)
    name = create_string_buffer(256)
    ask_driver(library, "cuDeviceGetName", name, 256, handle.value)
    ask_driver(library, "cuDeviceTotalMem_v2", byref(size), handle.value)

    def attribute(number: int) -> int:
        result = c_int()
        ask_driver(library, "cuDeviceGetAttribute", byref(result), number, handle.value)
        return result.value

    return Gpu(
        index,
        name.value.decode(errors="replace"),
        (attribute(driver.CAPABILITY_MAJOR), attribute(driver.CAPABILITY_MINOR)),
        size.value,
        attribute(driver.MULTIPROCESSORS),
    )


def find_gpus() -> Found:
    """Ask the driver which GPUs there are."""
    try:
        library = driver.find_library()
    except OSError as error:
        return Found(
            problem=f"there is no NVIDIA driver ({error}). Install NVIDIA's driver for the GPU, "
            "or start the container with its GPUs."
        )
    code = ask_driver(library, "cuInit", 0)
    version, count = c_int(), c_int()
    ask_driver(library, "cuDriverGetVersion", byref(version))
    shown = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if not code:
        code = ask_driver(library, "cuDeviceGetCount", byref(count))
    if not code and not count.value:
        code = driver.NO_DEVICE
    if code:
        remedy = REMEDIES.get(code, "NVIDIA's documentation of CUresult says what it means.")
        return Found(shown, problem=f"NVIDIA's driver answers with error {code}: {remedy}")
    gpus = tuple(describe(library, index) for index in range(count.value))
    return Found(shown, gpus, driver_problem(version.value) or capability_problem(gpus))


def driver_problem(version: int) -> str:
    """What is wrong with the driver's version, or ''."""
    if version < LEAST_DRIVER:
        return (
            f"NVIDIA's driver is for CUDA {version // 1000}.{version % 1000 // 10}, and minibert "
            "needs 12.0 or newer. Update the driver."
        )
    with suppress(importlib.metadata.PackageNotFoundError):
        wheels = importlib.metadata.version("nvidia-nvjitlink")  # the wheels of CUDA 13 and later
        if int(wheels.split(".")[0]) > version // 1000:
            return (
                f"the installed compiler is for CUDA {wheels.split('.')[0]}, and NVIDIA's driver "
                f"for CUDA {version // 1000}. Install minibert[cuda{version // 1000}] in a fresh "
                "environment, or update the driver."
            )
    return ""


def capability_problem(gpus: tuple[Gpu, ...]) -> str:
    """What is wrong with the GPUs, or '' if one of them can be used."""
    if any(gpu.capability >= ANYTHING for gpu in gpus):
        return ""
    best = max(gpus, key=lambda gpu: gpu.capability)
    return (
        f"{best.name} has compute capability {best.capability[0]}.{best.capability[1]}, and "
        f"minibert needs {ANYTHING[0]}.{ANYTHING[1]} (Turing, 2018) or more."
    )


def why_not(found: Found) -> str:
    """Why device 'cuda' cannot be used here, and what to do; '' if it can."""
    return found.problem or missing_compiler()


def open_device(index: int) -> driver.Device:
    """The GPU with this index; the same object each time, in each process.

    Raises:
        BackendError: it cannot be used.
    """
    return opened(index, os.getpid())


@functools.cache
def opened(index: int, process: int) -> driver.Device:
    """The GPU with this index, opened by this process."""
    found = find_gpus()
    if problem := why_not(found):
        raise BackendError(f"device 'cuda' cannot be used: {problem}")
    if index >= len(found.gpus):
        several = f"0 to {len(found.gpus) - 1}" if len(found.gpus) > 1 else "only 0"
        raise BackendError(f"there is no GPU {index} here: {several}. Use device='cuda:0'.")
    calls = driver.Driver(driver.find_library())
    calls.cuInit(0)
    return driver.Device(calls, index)
