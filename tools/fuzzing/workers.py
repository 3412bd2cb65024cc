"""Processes that run cases, and that a case may bring down.

Everything is loaded before the first is forked, so that a new one costs milliseconds.  A worker
takes cases one at a time and says what came of each; one that dies or hangs is replaced.
"""

from __future__ import annotations

import errno
import faulthandler
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from fuzzing.kinds import Case
from fuzzing.running import clear, run
from fuzzing.verdicts import Overtime, Verdict
from minibert.kernels.cache import cache_folder

SECONDS = 5.0  # of the processor that a case may take
HANGS = 60.0  # seconds by the clock, after which nobody waits any more
MEMORY = 64 << 20  # bytes that a case may take, whatever its size
EMBEDDED = 192 << 20  # and those of a call that may be about the embedded model
TIMES = 50  # and so many times the size of its files, as JSON may; see SECURITY.md
ADDRESSES = 3 << 30  # bytes of addresses beyond those that the program has anyway

# What no file may bring about, by the names of Python's audit events.
ACTIONS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
           "pickle.find_class", "socket.connect", "socket.getaddrinfo")  # fmt: skip
# What changes a folder, by the same names; the first argument says which.
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
# Kinds whose calls name no files: what is opened outside, a file of the case brought about.
WATCHED = ("weights", "index", "config", "tokenizer", "settings", "vocabularies", "pickles",
           "bundle", "texts")  # fmt: skip

# Kinds whose calls may leave out which model they mean.
LETTER = 600  # bytes for a character of a text, each of which may be a token; see SECURITY.md
TEXTS = ("lines", "resumed", "tables")  # files of texts
UNNAMED = ("commands", "conversions", "trainings", "batches")

Order = TypeVar("Order")


class Watch:
    """Notes what a case opens outside of its folder, and what it starts; lets it write only there.

    An odd name of an output may be one that matters to whoever runs this.
    """

    def __init__(self, folder: Path) -> None:
        kernels = str(cache_folder())
        self.inside = (str(folder), "/proc/", "/sys/", sys.prefix, sys.base_prefix, kernels)
        self.writable = (str(folder), "/proc/self/", "/dev/", kernels)
        self.files = False  # whether files are looked at
        self.seen: list[str] = []
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python is about to do something.

        Raises:
            PermissionError: it would change something outside.
        """
        if event in CHANGES or (event == "open" and is_writing(arguments[2])):
            name = arguments[0]
            if isinstance(name, str | bytes | Path):
                path = os.path.abspath(os.fsdecode(name))
                if not path.startswith(self.writable):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        if event in ACTIONS:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and self.files and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith(self.inside) and not path.endswith((".py", ".pyc")):
                self.seen.append(f"open {path!r:.200}")


def is_writing(flags: object) -> bool:
    """Whether a file is opened to be written."""
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def watched(case: Case, folder: Path, watch: Watch) -> Verdict:
    """Run a case, and judge by what it took and opened, too."""
    size = sum(map(len, case.files.values()))
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before, begin = memory("VmRSS"), time.process_time()
    watch.seen, watch.files = [], case.kind in WATCHED
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        verdict = run(case, folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
    except Overtime:  # on the way out
        verdict = Verdict("slow", case.kind)
    watch.files = False
    seconds = time.process_time() - begin
    taken = memory("VmHWM") - before
    if watch.seen or (folder / "ran").exists():  # see PROGRAMS in formats.py
        seen = watch.seen or ["a program of a pickle has run"]
        return Verdict("escape", seen[0][:40], "\n".join(seen), seconds)
    times = LETTER if case.kind in TEXTS else TIMES
    most = MEMORY + times * size + EMBEDDED * (case.kind in UNNAMED)
    if verdict.good and taken > most:
        said = f"{taken / 1e6:.0f} MB for {size / 1e6:.2f} MB of files; {verdict.detail}"
        return Verdict("memory", case.kind, said, seconds)
    if verdict.good and seconds > SECONDS:
        return Verdict("slow", case.kind, f"{seconds:.1f} s; {verdict.detail}", seconds)
    return replace(verdict, seconds=seconds)


def memory(name: str) -> int:
    """A figure of this process in bytes: 'VmSize', 'VmRSS' or its peak, 'VmHWM'."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"this system does not say {name}")


def work(connection: Any, make: Callable[[Any], Case], place: Path) -> None:
    """What a worker does until it is ended.

    Args:
        connection: orders come in, verdicts go out.
        make: gives the case of an order.
        place: an empty folder.
    """

    def stop(*_: Any) -> None:
        raise Overtime

    faulthandler.disable()  # tests have it write elsewhere than into `said`
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    folder, scratch = place / "case", place / "scratch"
    folder.mkdir()
    scratch.mkdir()
    os.chdir(folder)
    tempfile.tempdir = str(scratch)
    os.environ["MINIBERT_CACHE_DIR"] = str(cache_folder())  # as it was: to compile takes long
    os.environ |= dict.fromkeys(("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME"), str(scratch))
    quiet = os.open(place / "said", os.O_RDWR | os.O_CREAT)  # panics print
    for number in (1, 2):
        os.dup2(quiet, number)
    limit = memory("VmSize") + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch(place)
    while True:
        order = connection.recv()
        os.ftruncate(quiet, 0)
        connection.send(watched(make(order), folder, watch))
        os.chdir(folder)
        clear(folder)


class Worker(Generic[Order]):
    """One process at a time, and what it is at.

    Args:
        make: gives the case of an order; called in the process.
    """

    def __init__(self, make: Callable[[Order], Case]) -> None:
        self.make = make
        self.start()

    def start(self) -> None:
        """Start a process."""
        context = multiprocessing.get_context("fork")
        self.folder = Path(tempfile.mkdtemp(prefix="minibert-fuzz-")).resolve()
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.make, self.folder)
        self.process = context.Process(target=work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def end(self) -> None:
        """End the process, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def give(self, order: Order) -> None:
        """Begin a case."""
        self.order, self.since = order, time.monotonic()
        self.connection.send(order)

    def take(self) -> Verdict | None:
        """What came of the case; None if that is not known yet.

        A process that is dead, or took too much, is replaced.
        """
        if self.connection.poll():
            verdict = self.receive()
        elif time.monotonic() - self.since > HANGS:
            verdict = Verdict("hang", "", f"no end in {HANGS:.0f} s")
        else:
            return None
        if verdict.outcome in ("crash", "hang", "slow", "memory"):
            self.end()
            self.start()
        return verdict

    def receive(self) -> Verdict:
        """What the process says; or of what it died."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            name = signal.Signals(-code).name if code < 0 else f"status {code}"
            return Verdict("crash", name, f"the process ended: {name}")

    def ask(self, order: Order) -> Verdict:
        """Begin a case, and wait for what comes of it."""
        self.give(order)
        while (verdict := self.take()) is None:
            wait([self.connection], timeout=1.0)
        return verdict


def run_all(
    orders: Iterable[Order], make: Callable[[Order], Case], jobs: int
) -> Iterator[tuple[Order, Verdict]]:
    """Run cases in several processes.

    Args:
        orders: what `make` takes.
        make: gives the case of an order.
        jobs: how many processes.

    Yields:
        An order and what came of it, as they are finished.
    """
    left = iter(orders)
    workers: list[Worker[Order]] = []
    try:
        for order in islice(left, jobs):
            workers.append(Worker(make))
            workers[-1].give(order)
        while workers:
            wait([worker.connection for worker in workers], timeout=1.0)
            for worker in list(workers):
                if (verdict := worker.take()) is None:
                    continue
                yield worker.order, verdict
                if (order := next(left, None)) is not None:
                    worker.give(order)
                else:
                    worker.end()
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.end()
