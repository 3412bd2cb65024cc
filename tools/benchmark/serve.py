"""`bench.py serve`: requests a second, and how long they take, at some numbers of clients.

The same server runs with minibert's encoder and with ONNX Runtime's, each with requests that share
batches and with one window at a time.  All servers run in turn, in each round, on the same
requests: one question about one text, of lengths as SQuAD has them.  Clients are threads of this
process, each with a connection that stays open; each sends its next request when it has its answer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.machine import count_cores, environment, header, versions
from benchmark.options import add_option, existing_folder, listed, positive
from benchmark.peers import build, files_for, missing_modules, peer_of
from benchmark.processes import PATIENCE, TOOLS, BenchError, end, last_lines, say
from benchmark.tables import figures, markdown
from benchmark.workload import MIXED_WINDOWS, float32_model, pairs

SIDES = (
    ("minibert", "joined"),
    ("minibert", "single"),
    ("onnxruntime", "joined"),
    ("onnxruntime", "single"),
)
LABELS = {"minibert": "minibert", "onnxruntime": "ONNX Runtime"}
JOINING = {"joined": "requests share batches", "single": "one at a time"}


@dataclass
class Seen:
    """What the clients of one side saw with one number of them."""

    rates: list[float] = field(default_factory=list)  # requests a second, of each round
    seconds: list[float] = field(default_factory=list)  # of each request, of all rounds


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    parser = commands.add_parser(
        "serve", help="the server: requests a second and their latency", description=__doc__
    )
    parser.set_defaults(run=command_serve)
    add_option(
        parser,
        "--clients",
        [1, 16, 64],
        type=listed(positive),
        metavar="N,...",
        help="how many ask at the same time",
    )
    add_option(parser, "--rounds", 2)
    add_option(parser, "--seconds", 5, type=positive, metavar="S", help="of each measurement")
    add_option(
        parser,
        "--model",
        type=existing_folder,
        metavar="FOLDER",
        help="instead of the embedded one",
    )
    add_option(parser, "--keep")


def command_serve(args: argparse.Namespace) -> None:
    """Run `bench.py serve`."""
    if missing := missing_modules(("starlette", "uvicorn")):
        raise BenchError(f"no {' and no '.join(missing)} here: pip install 'minibert-qa[serve]'")
    bodies = requests()
    seen = {(side, clients): Seen() for side in SIDES for clients in args.clients}
    with ExitStack() as stack:
        kept = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder, file, problem = model_files(args.model, kept)
        sides = [side for side in SIDES if not (problem and side[0] == "onnxruntime")]
        ports = {side: stack.enter_context(served(side, folder, file)) for side in sides}
        answers = {side: [ask_once(port, body) for body in bodies] for side, port in ports.items()}
        for number in range(args.rounds):
            for clients in args.clients:
                for side in sides:
                    say(f"round {number + 1}: {label(side)}, {clients} clients")
                    rate, seconds = load(ports[side], bodies, clients, args.seconds)
                    seen[side, clients].rates.append(rate)
                    seen[side, clients].seconds += seconds
    print(header([versions(("minibert-qa", "onnxruntime", "starlette", "uvicorn"))]) + "\n")
    print(table(sides, args.clients, seen))
    first = answers[sides[0]]
    equal = all(texts(found) == texts(first) for found in answers.values())
    print(f"\nThe answers of all are {'equal' if equal else 'NOT equal'}.")
    if problem:
        print(f"\nONNX Runtime is left out: {problem}.")


def model_files(model: str | None, kept: Path) -> tuple[str, str, str | None]:
    """The model's folder, its ONNX file, and why there is none."""
    copy = kept / "float32"
    folder = str(copy) if copy.is_dir() else float32_model(model, copy)
    peer = peer_of("onnxruntime", "float32")
    if missing := missing_modules(peer.needs):
        return folder, "", f"no {' and no '.join(missing)} here"
    failed = build(Path(folder), files_for([peer]))
    return folder, str(Path(folder) / peer.file), failed.get(peer.file)


def requests() -> list[bytes]:
    """Bodies of requests, each a question about a text of its own."""
    return [
        json.dumps({"inputs": {"question": question, "context": context}}).encode()
        for question, context in pairs(MIXED_WINDOWS)
    ]


@contextmanager
def served(side: tuple[str, str], folder: str, file: str) -> Iterator[int]:
    """Run a server; its port."""
    command = [sys.executable, "-m", "benchmark.serve_side", *side, folder, file]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*command, str(count_cores())],
            cwd=TOOLS,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            if process.stdout is None or not (line := process.stdout.readline()):
                raise BenchError(f"{label(side)}: {last_lines(errors)}")
            yield int(line)
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
        finally:
            end(process)


def ask_once(port: int, body: bytes) -> Any:
    """One answer on a connection of its own."""
    return post(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE), body)


def post(connection: http.client.HTTPConnection, body: bytes) -> Any:
    """One answer.

    Raises:
        BenchError: there is none.
    """
    connection.request("POST", "/predict", body)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise BenchError(f"a server answered with {response.status}: {content[:80]!r}")
    return json.loads(content)


def load(
    port: int, bodies: Sequence[bytes], clients: int, seconds: float
) -> tuple[float, list[float]]:
    """Let clients ask for some seconds.

    Returns:
        Requests a second, and the seconds of each.
    """
    taken: list[float] = []
    failures: list[BaseException] = []
    ready = threading.Barrier(clients + 1)
    stop = threading.Event()

    def client(number: int) -> None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            connection.connect()
            ready.wait()
            at = 7 * number
            while not stop.is_set():
                begin = time.perf_counter()
                post(connection, bodies[at % len(bodies)])
                taken.append(time.perf_counter() - begin)
                at += 1
        except (BenchError, OSError, http.client.HTTPException) as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait(PATIENCE)
    begin = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    if failures:
        raise BenchError(f"a client failed: {failures[0]}")
    return len(taken) / (time.perf_counter() - begin), taken


def label(side: tuple[str, str]) -> str:
    """A side in words."""
    return f"{LABELS[side[0]]}, {JOINING[side[1]]}"


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which so many percent lie.

    Example:
        >>> percentile([4.0, 1.0, 2.0, 3.0], 50), percentile([1.0], 99)
        (2.0, 1.0)
    """
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def table(sides: Sequence[tuple[str, str]], counts: Sequence[int], seen: dict[Any, Seen]) -> str:
    """The figures in Markdown."""
    rows = []
    for clients in counts:
        for side in sides:
            found = seen[side, clients]
            rows.append(
                (
                    str(clients),
                    label(side),
                    figures(found.rates),
                    *(f"{1e3 * percentile(found.seconds, p):.0f}" for p in (50, 99)),
                )
            )
    return markdown(("clients", "server", "requests a second", "p50, ms", "p99, ms"), rows, left=2)


def texts(answers: Sequence[Any]) -> list[str]:
    """What was answered."""
    return [answer["answer"] for answer in answers]
