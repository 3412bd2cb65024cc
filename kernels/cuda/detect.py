"""Which GPUs there are, and if none can be used, the one reason and what to do about it.

Only the driver is asked, which takes a fraction of a millisecond where there is none; nothing of
Numba is imported.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from contextlib import suppress
from dataclasses import dataclass

from minibert.errors import BackendError

from . import driver
from .recipes import LEAST_CAPABILITY, missing_compiler

LEAST_DRIVER = 12000  # CUDA version as the driver writes it: 1000 * major + 10 * minor
ANYTHING = min(LEAST_CAPABILITY.values())

# What to do where the driver itself fails, by its error code.
REMEDIES = {
    3: "this process was forked from one that used CUDA: start processes with the 'spawn' method.",
    46: "another process has the GPU for itself alone (nvidia-smi -c 0 lets others use it).",
    34: "the library that was found is the stub that the CUDA toolkit compiles with: take its "
    "folder 'stubs' off LD_LIBRARY_PATH.",
    35: "the driver is older than this program needs: update it.",
    driver.NO_DEVICE: "the driver sees no GPU: is CUDA_VISIBLE_DEVICES set to hide it, or was the "
    "container started without its GPUs?",
    802: "the GPUs of this system are still being started, or its fabric manager is not running.",
    803: "the driver's library and its kernel module are of different versions: restart the "
    "computer after an update of the driver.",
    804: "this GPU does not take the compatibility package that stands in for a newer driver: "
    "install the newer driver itself.",
    999: "the module nvidia_uvm hangs: restart the computer, or reload it.",
}


@dataclass(frozen=True)
class Found:
    """What was found out about CUDA."""

    driver_version: str = ""  # of CUDA, e.g. '13.0'; '' without a driver
    gpus: tuple[driver.Gpu, ...] = ()
    problem: str = ""  # why no GPU can be used, and what to do; '' if one can


def find_gpus() -> Found:
    """Ask the driver which GPUs there are."""
    try:
        library = driver.find_library()
    except OSError as error:
        return Found(
            problem=f"there is no NVIDIA driver ({error}). Install NVIDIA's driver for the GPU, "
            "or start the container with its GPUs."
        )
    shown = ""
    try:
        calls = driver.Driver(library)
        calls.cuInit(0)
        version = calls.number("cuDriverGetVersion")
        shown = f"{version // 1000}.{version % 1000 // 10}"
        gpus = tuple(
            driver.describe(calls, index) for index in range(calls.number("cuDeviceGetCount"))
        )
    except driver.CudaError as error:
        remedy = REMEDIES.get(error.code, "NVIDIA's documentation of CUresult says what it means.")
        return Found(shown, problem=f"NVIDIA's driver does not work: {error} Perhaps {remedy}")
    except BackendError as error:  # functions are missing
        return Found(shown, problem=str(error))
    if not gpus:
        return Found(shown, problem=f"NVIDIA's driver works, but {REMEDIES[driver.NO_DEVICE]}")
    return Found(shown, gpus, driver_problem(version) or capability_problem(gpus))


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
                f"for CUDA {version // 1000}. In a fresh environment install minibert with "
                f"its extra cuda{version // 1000}, or update the driver."
            )
    return ""


def capability_problem(gpus: tuple[driver.Gpu, ...]) -> str:
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
        raise BackendError(f"device 'cuda' cannot be used: {problem} Or use device='cpu'.")
    if index >= len(found.gpus):
        several = f"0 to {len(found.gpus) - 1}" if len(found.gpus) > 1 else "only 0"
        raise BackendError(f"there is no GPU {index} here: {several}. Use device='cuda:0'.")
    calls = driver.Driver(driver.find_library())
    calls.cuInit(0)
    return driver.Device(calls, index)
