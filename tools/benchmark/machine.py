"""This machine: its name, its cores, what is installed, and the environment of processes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name, from Linux's /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def load() -> str:
    """How busy the machine was in the last minutes, ours included: others spoil timings."""
    return f", load average {os.getloadavg()[1]:.1f}" if hasattr(os, "getloadavg") else ""


def environment(threads: int | None = None, gpu: bool = False) -> dict[str, str]:
    """The environment of a measured process: threads of each library, no network.

    Args:
        threads: how many; None: one a core.
        gpu: whether it may see the GPUs.
    """
    names = ("OMP", "MKL", "OPENBLAS", "NUMBA", "RAYON", "VECLIB")
    counts = {f"{name}_NUM_THREADS": str(threads or count_cores()) for name in names}
    counts["VECLIB_MAXIMUM_THREADS"] = counts.pop("VECLIB_NUM_THREADS")
    # torch.compile starts no helpers: each of the models that it compiles has a process already.
    more = {"TORCHINDUCTOR_COMPILE_THREADS": "1"} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **counts, **more, "HF_HUB_OFFLINE": "1"}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of Python and of those packages that this Python has."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def header(sides: Sequence[Mapping[str, str]]) -> str:
    """One line: date, machine, and the versions of each side."""
    cores = count_cores()
    parts = [f"{date.today()}", f"{cpu_model()}, {cores} core{'s' * (cores != 1)}{load()}"]
    for side in sides:
        names = [f"{name} {version}" for name, version in side.items()]
        parts.append(", ".join(names).replace("python", "Python", 1))
    return "; ".join(parts)
