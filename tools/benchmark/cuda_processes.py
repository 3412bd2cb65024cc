"""The processes of `bench.py cuda`: each can fail, hang or be lost, and the run goes on."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.cuda_results import Found, Series, Timed, write_json
from benchmark.processes import TOOLS, BenchError, Worker, say

# Of an answer, unless another limit is given: no measurement takes a quarter of it.
ANSWER_SECONDS = 25
TORCH_SECONDS = 60  # of torch, which is slow to import and to begin
RESTARTS = 20  # of a process
HANG = 5  # restarts that an answer counts for that did not come in time


class Clock:
    """How much time is left."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def limit(self, seconds: float) -> float:
        """At most so many seconds, and no more than are left.

        Raises:
            BenchError: none are left.
        """
        if self.left() <= 0:
            raise BenchError("no time was left")
        return min(seconds, self.left() + 1)


def gpu_environment() -> dict[str, str]:
    """The environment of a process on the GPU: as ours, and these rooms can be imported."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(TOOLS), *(os.path.abspath(path) for path in paths if path)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # there is a process for each model instead
    }


class Side(Worker):
    """A process on the GPU that answers in time, or is ended.

    It is started when it is first asked, and again when it was lost, with the model it had.

    Args:
        name: for errors.
        clock: time that is left.
        args: of benchmark/cuda_side.py.
    """

    def __init__(self, name: str, clock: Clock, *args: str) -> None:
        self.name, self.clock, self.args = name, clock, args
        self.patience = TORCH_SECONDS if "torch" in args else ANSWER_SECONDS
        self.starts = 0
        self.running = False
        self.reason = ""  # why it was lost last
        self.loaded: dict[str, Any] | None = None  # the last message that asked for a model

    @property
    def command(self) -> list[str]:
        """What is started."""
        return [sys.executable, "-m", "benchmark.cuda_side", *self.args]

    def start(self) -> None:
        """Start the process.

        Raises:
            BenchError: it was lost too often.
        """
        if self.starts > RESTARTS:
            raise BenchError(f"given up: {self.reason}")
        self.starts += 1
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `stop`)
        self.process = subprocess.Popen(
            self.command,
            cwd=tempfile.gettempdir(),
            env=gpu_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            encoding="utf-8",
            start_new_session=True,  # so that all that it starts can be ended with it
        )
        self.running = True

    def kill(self) -> None:
        """End the process and all that it started, whatever they do."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def answer(self, limit: float, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message, within some seconds; the process is lost if that fails badly."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            return self.ask(**message)
        except BenchError as error:
            reason = str(error).removeprefix(f"{self.name}: ")
            if late.is_set():
                reason = f"no answer within {limit:.0f} s"
                self.starts += HANG
            say(f"{self.name}: {message}: {reason}\n{self.tail()}")
            # After such an error nothing works any more in that process.
            if late.is_set() or self.process.poll() is not None or "CUDA error" in reason:
                self.reason = reason
                self.stop()
            raise BenchError(reason) from None
        finally:
            timer.cancel()

    def tail(self, lines: int = 12) -> str:
        """The last lines of what the process wrote to its stderr."""
        self.errors.seek(0)
        text = self.errors.read().decode("utf-8", "replace")
        return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])

    def get(self, limit: float | None = None, **message: Any) -> dict[str, Any]:
        """The answer to a message.

        Raises:
            BenchError: an error was the answer, or none came in time, or no time is left.
        """
        if message["do"] == "load":
            self.loaded = message  # at once: if it fails, no other model may stand in
        self.clock.limit(0)
        if not self.running:
            self.start()
            if self.loaded not in (None, message):
                self.answer(self.clock.limit(self.patience), self.loaded)
        return self.answer(self.clock.limit(limit or self.patience), message)

    def stop(self) -> None:
        """End the process; the next message starts another."""
        if self.running:
            self.running = False
            self.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            for pipe in (self.process.stdin, self.process.stdout, self.errors):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]


@dataclass
class Bench:
    """What all parts of a run share."""

    args: argparse.Namespace
    clock: Clock
    folder: Path
    found: Found
    stack: contextlib.ExitStack
    torch: bool = True  # whether it is there
    torch_device: str = "cuda"
    opened: list[Side] = field(default_factory=list)
    sides: dict[str, Side] = field(default_factory=dict)  # those by name
    compiled: dict[tuple[str, str], Side] = field(default_factory=dict)  # shape, dtype
    failed: dict[tuple[str, str], str] = field(default_factory=dict)  # why one of them is not there

    def side(self, name: str) -> Side:
        """A process by its name."""
        if name not in self.sides:
            self.sides[name] = self.open(name, name)
        return self.sides[name]

    def open(self, name: str, label: str) -> Side:
        """Another process of that name."""
        more = [self.torch_device] if name == "torch" else []
        side = Side(label, self.clock, name, *more)
        self.opened.append(side)
        self.stack.callback(side.stop)
        return side

    def model(self, shape: str) -> Path:
        """Where the model of a shape is."""
        return self.folder / shape.replace("/", "-")

    def show(self, text: str) -> None:
        """Print a part of the report, and keep all numbers so far."""
        print(text, flush=True)
        if self.args.json:
            settings = {name: value for name, value in vars(self.args).items() if name != "run"}
            write_json(self.args.json, self.found, settings)

    @property
    def many(self) -> str:
        """The work of throughput."""
        return f"mixed{self.args.windows}"


@contextlib.contextmanager
def failing(one: Series | Timed) -> Iterator[None]:
    """Keep the reason of a failure in the series that it belongs to, and go on."""
    try:
        yield
    except BenchError as error:
        one.failure = str(error)


def request(one: Series, do: str, **more: Any) -> dict[str, Any]:
    """The message that asks for a series."""
    names = ("kind", "dtype", "work", "batches")
    return {"do": do, **{name: getattr(one, name) for name in names}, **more}
