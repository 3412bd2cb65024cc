"""Processes: run one to its end, or keep one that answers questions; none can hold up the run.

Whatever is measured runs in a process of its own.  One that fails, dies, hangs or says nonsense
costs the measurement that it was asked for, and is started anew for the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from benchmark.machine import environment

TOOLS = Path(__file__).resolve().parents[1]
PATIENCE = 900.0  # seconds that an answer may take
STARTS = 4  # of a process that is lost again and again
LINES = 12  # of a lost process's stderr are shown


class BenchError(Exception):
    """A measurement that could not be made; the message is one line."""


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


class Clock:
    """How much time is left.

    Args:
        seconds: of the whole run; None: as much as it takes.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.end = None if seconds is None else time.monotonic() + seconds

    def limit(self, seconds: float) -> float:
        """At most so many seconds, and no more than are left.

        Raises:
            BenchError: none are left.
        """
        if self.end is None:
            return seconds
        left = self.end - time.monotonic()
        if left <= 0:
            raise BenchError("the time was up before everything was measured")
        return min(seconds, left)


def end(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it started, whatever they do."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # the driver of a GPU may hold it
        process.wait(10)


def last_lines(errors: IO[bytes], count: int = 1) -> str:
    """The last lines that a process wrote to its stderr: of a traceback, the error itself."""
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return "\n".join(lines[-count:]) or "nothing on stderr"


# ---------------------------------------------------------------- to its end


@dataclass(frozen=True)
class Finished:
    """What a process printed, and when, in seconds since before it was started."""

    output: str
    first_line: float
    end: float


def run_process(
    command: Sequence[str | Path], name: str, *, env: dict[str, str] | None = None
) -> Finished:
    """Run a process to its end, in a folder that holds no code of ours.

    Args:
        command: the program and its arguments.
        name: whose process it is, for errors.
        env: its environment; None: the one of every measured process.

    Raises:
        BenchError: it cannot be started, fails, or takes too long; with the last line of its
            stderr.
    """
    with tempfile.TemporaryFile() as errors:  # a file: a full pipe would block the process
        begin = time.perf_counter()
        try:
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=tempfile.gettempdir(),
                env=environment() if env is None else env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise BenchError(f"{name}: cannot run {command[0]}: {error.strerror}") from None
        guard = threading.Timer(PATIENCE, end, [process])
        guard.start()
        try:
            with process:
                stdout = cast(IO[bytes], process.stdout)  # it is a pipe
                output = stdout.readline()
                first_line = time.perf_counter() - begin
                output += stdout.read()
        finally:
            guard.cancel()
            end(process)
        seconds = time.perf_counter() - begin
        if process.returncode:
            raise BenchError(
                f"{name}: failed with status {process.returncode}: {last_lines(errors)}"
            )
    return Finished(output.decode("utf-8", "replace"), first_line, seconds)


# ---------------------------------------------------------------- workers


def worker_command(*args: object, python: str = sys.executable) -> list[str]:
    """The command that runs benchmark/worker.py in a process of its own."""
    return [python, "-m", "benchmark.worker", *map(str, args)]


def worker_environment(
    threads: int, *, gpu: bool = False, python: str = sys.executable
) -> dict[str, str]:
    """A worker's environment, in which Python also finds these rooms.

    Args:
        threads: how many it may use.
        gpu: whether it may see the GPUs.
        python: what runs it; another one than ours does not look where ours does.
    """
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep) if python == sys.executable else []
    paths = [str(TOOLS), *(os.path.abspath(path) for path in paths if path)]
    return {**environment(threads, gpu), "PYTHONPATH": os.pathsep.join(paths)}


class Worker:
    """A process that stays, and answers each JSON line with one.

    It is started when it is first asked, and again after it was lost, with what it had loaded.

    Args:
        name: whose process it is, for errors.
        threads: how many it may use.
        args: the arguments of benchmark/worker.py.
        gpu: whether it may see the GPUs.
        python: what runs it.
        clock: time that is left.
        patience: seconds that an answer may take.
        loading: seconds that loading may take, and compiling with it.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        *args: object,
        gpu: bool = False,
        python: str = sys.executable,
        clock: Clock | None = None,
        patience: float = PATIENCE,
        loading: float = PATIENCE,
    ) -> None:
        self.name = name
        self.command = worker_command(*args, python=python)
        self.env = worker_environment(threads, gpu=gpu, python=python)
        self.clock, self.patience, self.loading = clock or Clock(), patience, loading
        self.process: subprocess.Popen[str] | None = None
        self.starts = 0
        self.reason = ""  # why it was lost last
        self.loaded: dict[str, Any] | None = None  # the last message that had it load something

    def ask(self, **message: Any) -> dict[str, Any]:
        """Ask, and wait for the answer.

        Raises:
            BenchError: the process reports an error, or was lost, or no time is left.
        """
        self.send(**message)
        return self.receive()

    def send(self, **message: Any) -> None:
        """Ask something; `receive` has the answer.

        Raises:
            BenchError: the process was lost too often, or no time is left.
        """
        self.clock.limit(self.patience)
        if message["do"] == "load":
            self.loaded = None  # if this fails, nothing that was loaded before may stand in
        if self.process is None:
            self.start()
            if self.loaded is not None:
                self.write(self.loaded)
                self.receive()
        if message["do"] == "load":
            self.loaded = message
        self.write(message)

    def start(self) -> None:
        """Start the process, and a thread that takes its lines, so that waiting can end.

        Raises:
            BenchError: it was lost too often.
        """
        if self.starts == STARTS:
            raise BenchError(f"{self.name}: given up: {self.reason}")
        self.starts += 1
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            self.command,
            cwd=tempfile.gettempdir(),
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that all that it starts can be ended with it
        )
        threading.Thread(target=take, args=(self.process.stdout, self.lines), daemon=True).start()

    def write(self, message: dict[str, Any]) -> None:
        """Put a line into the process's stdin."""
        self.limit = self.loading if message["do"] == "load" else self.patience
        process = cast("subprocess.Popen[str]", self.process)
        stdin = cast(IO[str], process.stdin)
        with contextlib.suppress(OSError):  # it ended: `receive` says why
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for the answer.

        Raises:
            BenchError: it is an error, or none came in time, or it is nonsense.
        """
        seconds = self.clock.limit(self.limit)
        if self.process is None:
            raise BenchError(f"{self.name}: {self.reason}")
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise self.lost(f"no answer within {seconds:.0f} s") from None
        if not line:
            end(self.process)
            status = self.process.returncode
            raise self.lost(f"ended with status {status}: {last_lines(self.errors)}")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self.lost(f"no answer but {line.strip()!r:.60}")
        if "error" in answer:
            # After an error of CUDA, nothing works any more in that process.
            if "CUDA error" in answer["error"]:
                raise self.lost(answer["error"])
            raise BenchError(f"{self.name}: {answer['error']}")
        return answer

    def lost(self, reason: str) -> BenchError:
        """End the process; the next message starts another."""
        say(f"{self.name}: lost, {reason}\n{last_lines(self.errors, LINES)}")
        self.reason = reason
        self.close()
        return BenchError(f"{self.name}: {reason}")

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            end(self.process)
            with contextlib.suppress(OSError):
                cast(IO[str], self.process.stdin).close()
            self.errors.close()
            self.process = None


def take(stdout: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Take the lines of a process as they come; at its end an empty one."""
    with stdout:
        for line in stdout:
            lines.put(line)
    lines.put("")
