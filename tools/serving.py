"""`minibert serve` as a process that is watched."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from soak import INTERVAL, resources

COMMAND = [sys.executable, "-m", "minibert"]
PATIENCE = 120.0  # seconds; what takes longer has hung
MOMENT = 60.0  # seconds, in which a server misses a client that has left
SERVING = re.compile(r"^minibert: serving .* at http://127\.0\.0\.1:(\d+)$")


class Server:
    """The command, while it runs."""

    def __init__(self, process: subprocess.Popen[str], port: int, lines: deque[str]) -> None:
        self.process, self.port, self.lines = process, port, lines

    def number(self, name: str) -> int:
        """The sum of a number of `/metrics` over its labels that match."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return sum(int(each) for each in re.findall(rf"^{name} (\d+)$", text, re.MULTILINE))

    def failures(self) -> int:
        """How many requests failed, by the server's own count; the client may have left."""
        return self.number(r'minibert_requests_total\{path="[^"]*",status="500"\}')


@contextmanager
def served(
    folder: str, *more: str, port: int = 0, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run `minibert serve` inside the `with` block; it is killed at its end.

    Args:
        folder: the model.
        more: options.
        port: 0 for one that is free.
        environment: all variables; None: those of this process.

    Raises:
        RuntimeError: it does not start.
    """
    options = ["--port", str(port), "--model", folder, "--device", "cpu", *more]
    process = subprocess.Popen(
        [*COMMAND, "serve", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=None if environment is None else dict(environment),
        start_new_session=True,  # Ctrl-C is for this program
    )
    lines: deque[str] = deque(maxlen=10)
    ports: list[int] = []
    started = threading.Event()

    def listen() -> None:
        """Take what it says; the access log would fill a pipe that nobody reads."""
        for line in process.stderr or ():
            lines.append(line.rstrip())
            if not ports and (found := SERVING.match(lines[-1])):
                ports.append(int(found[1]))
                started.set()
        started.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        started.wait()
        if not ports:
            raise RuntimeError("the server did not start: " + " | ".join(lines))
        yield Server(process, ports[0], lines)
    finally:
        process.kill()
        process.wait()
        listener.join()


def files_at_rest(process: int, before: int) -> int:
    """How many files are open when all clients have left; they may take a moment to be missed."""
    end = time.monotonic() + MOMENT
    while (files := resources(process)[1]) > before and time.monotonic() < end:
        time.sleep(INTERVAL)
    return files


def peak(process: int) -> int:
    """The most memory in bytes that a process has had since `begin_peak`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return 1024 * int(found[1]) if found else 0


def begin_peak(process: int) -> None:
    """Measure the most memory of a process from now on."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


def without_key(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables with which any may ask."""
    return {name: value for name, value in environment.items() if name != "MINIBERT_API_KEY"}
