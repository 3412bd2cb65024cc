"""The threads that share a job, and the memory in which they work.

One job runs at a time: callers wait for each other, and the job itself uses all cores.  The calling
thread works too, as slot 0, and never waits for a helper to begin; helpers that wake up late find
less to do, or nothing.  So a job ends even if no helper ever comes.

Both survive a fork: the child begins with no threads and a free lock.
"""

from __future__ import annotations

import ctypes
import math
import os
import queue
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .packing import aligned

MOST_THREADS = 256  # more bring nothing to one batch, and each takes memory


def available_cores() -> int:
    """Cores that this process may use: its affinity, and its control group's share."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, group_cores(Path("/sys/fs/cgroup")))))


def group_cores(root: Path) -> float:
    """Processor time per time that the control group allows, in cores; infinite if no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()  # version 1; -1 is no limit
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        except (OSError, ValueError):
            return math.inf
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # 'max'
        return math.inf
    return cores if cores > 0 else math.inf


def default_threads() -> int:
    """Threads that work on a batch if nobody says how many: all cores, or OMP_NUM_THREADS if less.

    Ray, Slurm and others set that variable for each of the workers that share a machine.
    """
    wish = wished_threads(os.environ.get("OMP_NUM_THREADS", ""))
    return available_cores() if wish is None else min(wish, available_cores())


def wished_threads(variable: str) -> int | None:
    """What OMP_NUM_THREADS asks for; None if it says nothing, or what OpenMP would ignore.

    A list has a number for each level of nested parallel parts; the first level counts.

    Example:
        >>> wished_threads("4"), wished_threads("4,2"), wished_threads(""), wished_threads("0")
        (4, 4, None, None)
    """
    # Nobody means a number of more than 18 digits, and Python does not convert any.
    of_a_level = re.compile(r"\s*\+?[0-9]{1,18}\s*")
    levels = [int(x) if of_a_level.fullmatch(x) else 0 for x in variable.split(",")]
    return levels[0] if all(levels) else None


def find_yield() -> int:
    """Address of the system's function that lets another thread run; takes nothing, gives int."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


YIELD = find_yield()


class Work(Protocol):
    """What threads share: a job (jobs.py)."""

    @property
    def threads(self) -> int:
        """How many take part, at most."""

    def run(self, slot: int) -> None:
        """Take tasks until none is left; slot 0 waits until all are done."""


class Helper:
    """A thread that takes part in jobs."""

    def __init__(self, slot: int):
        self.slot = slot
        self.jobs: queue.SimpleQueue[Work] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"minibert-{slot}", daemon=True).start()

    def _work(self) -> None:
        while True:
            job = self.jobs.get()
            job.run(self.slot)
            del job  # until the next comes


class Pool:
    """Helpers, memory, and the lock that hands both to one job at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.helpers: list[Helper] = []
        self.memory: NDArray[Any] = aligned((0,), np.uint8)

    def reserve(self, size: int) -> NDArray[Any]:
        """Memory of so many bytes; the same as before if that was enough.  Hold the lock."""
        if self.memory.size < size:
            self.memory = aligned((0,), np.uint8)  # frees the old first
            self.memory = aligned((size,), np.uint8)
        return self.memory

    def run(self, job: Work) -> None:
        """Do a job, with this thread as one of those that take part.  Hold the lock."""
        with suppress(RuntimeError):  # no more threads to be had: fewer do it, too
            while len(self.helpers) < job.threads - 1:
                self.helpers.append(Helper(len(self.helpers) + 1))
        try:
            for helper in self.helpers[: job.threads - 1]:
                helper.jobs.put(job)
            job.run(0)
        except BaseException:  # Ctrl-C, while helpers are at work in memory that others will get:
            job.run(0)  # do what is left, and wait for them
            raise


POOL = Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.__init__)  # type: ignore[misc]
