"""Processes that run cases, and that a case may bring down.

Everything is loaded before the first is forked, so a new one costs milliseconds.  A worker takes
numbers of cases, one at a time, and says what came of each.  One that dies or hangs is replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fuzzing.kinds import Case
from fuzzing.running import Overtime, Verdict, clear, judge

SECONDS = 5.0  # of the processor that a case may take
HANGS = 30.0  # seconds by the clock
MEMORY = 128 << 20  # bytes that a case may take, beside
TIMES = 16  # so many times the size of its files
ADDRESSES = 3 << 30  # bytes of addresses beyond those that the program has anyway

# What a file may not bring about, by the names of Python's audit events.
ACTIONS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
           "pickle.find_class", "socket.connect", "socket.getaddrinfo")  # fmt: skip
# Kinds whose arguments name no files: what is opened there, a file of the case brought about.
WATCHED = ("weights", "index", "config", "tokenizer", "settings", "vocabularies", "pickles",
           "bundle", "texts")  # fmt: skip


class Watch:
    """Notes what a case opens outside of its folder, and what it starts."""

    def __init__(self, folder: Path) -> None:
        self.inside = (str(folder), "/proc/", "/sys/", sys.prefix, sys.base_prefix, "/dev/null")
        self.files = False  # whether files are looked at
        self.seen: list[str] = []
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python is about to do something."""
        if event in ACTIONS:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and self.files and isinstance(arguments[0], str | bytes):
            name = os.fsdecode(arguments[0])
            path = os.path.abspath(name)
            if not path.startswith(self.inside) and not path.endswith((".py", ".pyc")):
                self.seen.append(f"open {name!r:.200}")


def watched(case: Case, folder: Path, watch: Watch) -> Verdict:
    """Run a case and judge what it took, too."""
    size = sum(map(len, case.files.values()))
    rss = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begin = time.process_time()
    watch.seen, watch.files = [], case.kind in WATCHED
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        verdict = judge(case, folder)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        watch.files = False
    seconds = time.process_time() - begin
    taken = memory("VmHWM") - rss
    if watch.seen or (folder / "ran").exists():
        seen = watch.seen or ["a file that a program would have made is there"]
        return Verdict("escape", seen[0][:40], "\n".join(seen), seconds)
    if verdict.good and taken > MEMORY + TIMES * size:
        said = f"{taken / 1e6:.0f} MB for {size / 1e6:.2f} MB of files"
        return Verdict("memory", case.kind, said, seconds)
    if verdict.good and seconds > SECONDS:
        return Verdict("slow", case.kind, f"{seconds:.1f} s", seconds)
    return replace(verdict, seconds=seconds)


def memory(name: str) -> int:
    """A figure of this process in bytes, as 'VmRSS' or its peak, 'VmHWM'."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"this system does not say {name}")


def work(connection: Connection, make: Callable[[Any], Case]) -> None:
    """What a worker does, until there is nothing more to do."""

    def stop(*_: Any) -> None:
        raise Overtime

    signal.signal(signal.SIGVTALRM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="minibert-fuzz-") as name:
        place = Path(name).resolve()
        folder, scratch = place / "case", place / "scratch"
        folder.mkdir()
        scratch.mkdir()
        os.chdir(folder)
        tempfile.tempdir = str(scratch)
        os.environ |= {"HOME": str(scratch), "TMPDIR": str(scratch), "HF_HOME": str(scratch)}
        quiet = os.open(place / "said", os.O_RDWR | os.O_CREAT)  # panics are printed
        for number in (1, 2):
            os.dup2(quiet, number)
        limit = memory("VmSize") + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        watch = Watch(place)
        while (order := connection.recv()) is not None:
            os.ftruncate(quiet, 0)
            connection.send(watched(make(order), folder, watch))
            os.chdir(folder)
            clear(folder)


class Worker:
    """One process, and what it is at."""

    def __init__(self, make: Callable[[Any], Case]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, make), daemon=True)
        self.process.start()
        theirs.close()
        self.order: Any = None
        self.since = 0.0

    def give(self, order: Any) -> None:
        """Begin a case."""
        self.order, self.since = order, time.monotonic()
        self.connection.send(order)

    def take(self) -> Verdict | None:
        """What came of the case; of one that is dead, its signal."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            name = signal.Signals(-code).name if code < 0 else f"status {code}"
            return Verdict("crash", name, f"the process ended: {name}")

    def end(self) -> None:
        """Stop the process, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_all(
    orders: Iterable[Any], make: Callable[[Any], Case], jobs: int
) -> Iterator[tuple[Any, Verdict]]:
    """Run cases in several processes.

    Args:
        orders: what `make` takes.
        make: gives a case; runs in the worker.
        jobs: how many processes.

    Yields:
        An order and what came of it, as they are finished.
    """
    waiting = iter(orders)
    workers: list[Worker] = []
    try:
        for order in waiting:
            workers.append(Worker(make))
            workers[-1].give(order)
            if len(workers) == jobs:
                break
        while workers:
            ready = wait([worker.connection for worker in workers], timeout=1.0)
            for worker in list(workers):
                late = time.monotonic() - worker.since > HANGS
                if worker.connection in ready:
                    verdict = worker.take()
                elif late:
                    verdict = Verdict("hang", "", f"no end in {HANGS:.0f} s")
                else:
                    continue
                assert verdict is not None
                yield worker.order, verdict
                if verdict.outcome in ("hang", "crash", "memory", "slow"):
                    worker.end()
                    workers.remove(worker)
                    worker = Worker(make)
                    workers.append(worker)
                order = next(waiting, None)
                if order is None:
                    worker.end()
                    workers.remove(worker)
                else:
                    worker.give(order)
    finally:
        for worker in workers:
            worker.end()
