"""Processes: run one to its end, or keep one that answers questions; and tell of progress."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from benchmark.machine import environment

TOOLS = Path(__file__).resolve().parents[1]


class BenchError(Exception):
    """A measurement that could not be made; the message is one line."""


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
        BenchError: it cannot be started, or fails; with the last line of its stderr.
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
            )
        except OSError as error:
            raise BenchError(f"{name}: cannot run {command[0]}: {error.strerror}") from None
        with process:
            stdout = cast(IO[bytes], process.stdout)  # it is a pipe
            output = stdout.readline()
            first_line = time.perf_counter() - begin
            output += stdout.read()
        end = time.perf_counter() - begin
        if process.returncode:
            raise BenchError(
                f"{name}: failed with status {process.returncode}: {last_line(errors)}"
            )
    return Finished(output.decode("utf-8", "replace"), first_line, end)


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def worker_command(*args: object) -> list[str]:
    """The command that runs benchmark/worker.py in a process of its own."""
    return [sys.executable, "-m", "benchmark.worker", *map(str, args)]


def worker_environment(threads: int) -> dict[str, str]:
    """A measured process's environment, in which Python also finds these rooms."""
    return {**environment(threads), "PYTHONPATH": str(TOOLS)}


class Worker:
    """A process that stays, and answers each JSON line with one.

    Args:
        name: whose process it is, for errors.
        threads: how many it may use.
        args: the arguments of benchmark/worker.py.
    """

    def __init__(self, name: str, threads: int, *args: object) -> None:
        self.name = name
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self.process = subprocess.Popen(
            worker_command(*args),
            cwd=tempfile.gettempdir(),
            env=worker_environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            encoding="utf-8",
        )

    def send(self, **message: Any) -> None:
        """Ask something; `receive` has the answer."""
        try:
            stdin = cast(IO[str], self.process.stdin)
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
        except OSError:
            pass  # it ended: `receive` says why

    def receive(self) -> dict[str, Any]:
        """Wait for the answer.

        Raises:
            BenchError: the process ended, or reports an error.
        """
        line = cast(IO[str], self.process.stdout).readline()
        if not line:
            status = self.process.wait()
            raise BenchError(f"{self.name}: ended with status {status}: {last_line(self.errors)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, **message: Any) -> dict[str, Any]:
        """Ask, and wait for the answer.

        Raises:
            BenchError: the process ended, or reports an error.
        """
        self.send(**message)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            cast(IO[str], self.process.stdin).close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        cast(IO[str], self.process.stdout).close()
        self.errors.close()


def last_line(errors: IO[bytes]) -> str:
    """The last line that a process wrote to its stderr: of a traceback, the error itself."""
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "nothing on stderr"
