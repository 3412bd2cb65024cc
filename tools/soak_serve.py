"""Let `minibert serve` answer at full load for a long time; some of its clients are rude.

    python tools/soak_serve.py                                  a hundred thousand requests
    python tools/soak_serve.py --seconds 3600 --clients 32
    python tools/soak_serve.py --seconds 3600 --model FOLDER    not a tiny model

The server is the command, in a process of its own, at a port that is free.  Clients ask as fast as
they are answered: one question or a list, about short texts and long ones, at `/predict` and at
`/answer`, on connections that stay open and on new ones.  A few requests come slowly, a few cannot
be answered, and a few clients leave in the middle of a body or before their answer.  Every answer
is compared with what the library gave before.

The memory of the server may not grow by more than `GROWTH` of soak.py from the first third of the
time on, and when all clients have left it must have as many files open as before they came.  At the
end it is told to stop, and has to end well.  What is asked depends on the seed; which request
comes when does not.  The last line says whether all held, and so does the status.  For Linux.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import soak
from serving import PATIENCE, Server, files_at_rest, served
from soak import (
    FEWEST,
    GROWTH,
    INTERVAL,
    KNOWN,
    Faces,
    differ,
    growth,
    questions,
    report,
    resources,
    say,
)

sys.path.insert(0, str(soak.ROOT / "tests"))

from random_models import write_model

DTYPE = "float32"
PAUSE = 0.3  # seconds that a slow client takes between two parts of its body
WRONG = (  # requests that cannot be answered, and the status that they get
    (b"{", 400),
    (b'{"inputs": {"question": "who?"}}', 422),
    (b'{"inputs": {"question": "", "context": "ada ."}}', 422),
    (b'{"inputs": {"question": "who?", "context": "ada ."}, "parameters": {"top_k": 0}}', 422),
)

Row = tuple[Any, ...]  # an answer, as soak.row gives it


@dataclass(frozen=True)
class Request:
    """What is asked, and the answers that are right."""

    path: str
    body: bytes
    right: list[list[Row]]


@dataclass
class Seen:
    """What one client has seen."""

    answered: int = 0
    seconds: array[float] = field(default_factory=lambda: array("f"))  # of those not asked slowly
    turned_away: int = 0  # told to come again later
    left: int = 0  # before it had its answer
    faults: list[str] = field(default_factory=list)


# ---------------------------------------------------------------- what is asked


def requests(folder: str, seed: int) -> tuple[list[Request], list[Request]]:
    """Every question of the soak to `/predict` and to `/answer`, with the right answers."""
    faces = Faces(Path(folder), DTYPE, soak.THREADS_OF_MODEL)
    predict, answer = [], []
    for asked in questions(seed):
        question, context = asked
        first = context if isinstance(context, str) else context[0]
        pair = {"inputs": {"question": question, "context": first}}
        several = {"question": question, "context": context, "n": 3}
        predict.append(Request("/predict", encoded(pair), [faces.from_pipeline(asked)]))
        answer.append(Request("/answer", encoded(several), [faces.best(asked)]))
    return predict, answer


def encoded(value: Any) -> bytes:
    """A body."""
    return json.dumps(value).encode()


def together(several: Sequence[Request]) -> Request:
    """Requests to `/predict` as one with a list."""
    inputs = b", ".join(each.body.removeprefix(b'{"inputs": ')[:-1] for each in several)
    right = [answers for each in several for answers in each.right]
    return Request("/", b'{"inputs": [%s]}' % inputs, right)


def rows(path: str, value: Any) -> list[list[Row]]:
    """The answers that a body holds, to each question."""
    if path == "/answer":
        names = ("text", "start", "end", "document", "score")
        return [[tuple(each[name] for name in names) for each in value["answers"]]]
    several = value if isinstance(value, list) else [value]
    return [[(one["answer"], one["start"], one["end"], 0, one["score"])] for one in several]


class Client:
    """Asks until it is told to stop, now and then in bad manners.

    Args:
        port: of the server.
        known: what `requests` gave.
        random: decides what it does.
    """

    def __init__(
        self, port: int, known: tuple[list[Request], list[Request]], random: Random
    ) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.known, self.random, self.seen = known, random, Seen()

    def run(self, stopping: threading.Event) -> None:
        """Ask."""
        while not stopping.is_set() and not self.seen.faults:
            try:
                self.step()
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                self.seen.faults.append(f"no answer: {error!r}")
            if self.random.random() < 0.3:
                self.connection.close()
        self.connection.close()

    def step(self) -> None:
        """One request of some kind."""
        chance = self.random.random()
        if chance < 0.03:
            self.leave()
        elif chance < 0.05:
            body, status = self.random.choice(WRONG)
            self.expect(Request("/predict", body, []), status)
        else:
            predict, answer = self.known
            number = self.random.randrange(KNOWN)
            asked = predict[number] if self.random.random() < 0.6 else answer[number]
            if chance < 0.1:
                asked = together(self.random.choices(predict, k=self.random.randrange(8)))
            self.expect(asked, 200, slowly=chance > 0.98)

    def expect(self, asked: Request, status: int, slowly: bool = False) -> None:
        """Ask, and look at what comes."""
        begin = time.perf_counter()
        got, headers, body = self.ask(asked, slowly)
        if got == 429 and "retry-after" in headers:
            self.seen.turned_away += 1
            time.sleep(PAUSE)  # not the seconds that it names: this is full load
            return
        if got != status:
            self.seen.faults.append(f"{got} for {asked.body[:200]!r}: {body[:200]!r}")
            return
        if status == 200:
            self.seen.answered += 1
            if not slowly:
                self.seen.seconds.append(time.perf_counter() - begin)
            found = rows(asked.path, json.loads(body))
            if len(found) != len(asked.right) or any(map(differ, found, asked.right)):
                self.seen.faults.append(f"{found} for {asked.body[:200]!r}, expected {asked.right}")

    def ask(self, asked: Request, slowly: bool) -> tuple[int, dict[str, str], bytes]:
        """One answer: status, headers, body."""
        kept = self.connection.sock is not None
        try:
            self.send(asked, len(asked.body) // 2 if slowly else None)
            response = self.connection.getresponse()
        except (ConnectionError, http.client.RemoteDisconnected):
            if not kept:
                raise
            self.connection.close()  # it was closed because it was idle; the next one is new
            return self.ask(asked, slowly)
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, headers, response.read()

    def send(self, asked: Request, pause_at: int | None = None) -> None:
        """Send a request, with a pause after so many bytes of its body."""
        self.connection.putrequest("POST", asked.path)
        self.connection.putheader("content-length", str(len(asked.body)))
        self.connection.endheaders(asked.body[:pause_at])
        if pause_at is not None:
            time.sleep(PAUSE)
            self.connection.send(asked.body[pause_at:])

    def leave(self) -> None:
        """Begin a request and cut the connection, before its answer or before its body is out."""
        self.connection.close()
        asked = self.random.choice(self.random.choice(self.known))
        sent = self.random.choice((0, len(asked.body) // 2, len(asked.body)))
        self.connection.putrequest("POST", asked.path)
        self.connection.putheader("content-length", str(len(asked.body)))
        self.connection.endheaders(asked.body[:sent])
        if self.random.random() < 0.5:
            time.sleep(self.random.random() * PAUSE)
        linger = struct.pack("ii", 1, 0)  # no goodbye, a reset
        self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.seen.left += 1


# ---------------------------------------------------------------- the run


@dataclass
class Totals:
    """What came of the whole run."""

    seen: list[Seen]
    samples: list[tuple[float, int, int]] = field(default_factory=list)  # time, memory, files
    files: tuple[int, int] = (0, 0)  # open before the clients came, and after they left
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """How many requests got their answer."""
        return sum(each.answered for each in self.seen)

    def so_far(self) -> str:
        """How far it is."""
        memory = f", {self.samples[-1][1] / 1e6:.0f} MB" if self.samples else ""
        return f"{self.answered} answers, {self.seconds:.0f} s{memory}"

    def verdict(self) -> str:
        """One line."""
        times = sorted(second for each in self.seen for second in each.seconds) or [0.0]
        half, most = (1e3 * times[len(times) * percent // 100] for percent in (50, 99))
        grew = "not measured, the run was too short"
        if len(self.samples) >= FEWEST:
            third, last = (self.samples[at][1] for at in (len(self.samples) // 3, -1))
            line = growth(self.samples)[0]
            grew = f"{third / 1e6:.1f} MB after a third, {last / 1e6:.1f} MB at the end"
            grew += f", by a line {line / 1e6:+.1f} MB"
        return (
            f"{'fault' if self.faults else 'ok'}: {self.answered} answers, "
            f"{len(self.faults)} faults, {self.answered / max(self.seconds, 1e-9):.0f} a second, "
            f"p50 {half:.0f} ms, p99 {most:.0f} ms; "
            f"{sum(each.turned_away for each in self.seen)} turned away, "
            f"{sum(each.left for each in self.seen)} left; memory {grew}; "
            f"{self.files[0]} files before, {self.files[1]} after"
        )


def soak_server(folder: str, args: argparse.Namespace) -> Totals:
    """Run until so many requests are answered, or so many seconds are over."""
    known = requests(folder, args.seed)
    options = ["--dtype", DTYPE, "--threads", str(args.threads), "--timeout", f"{PATIENCE:g}"]
    with served(folder, *options) as server:
        clients = [
            Client(server.port, known, Random(f"{args.seed} {number}"))
            for number in range(args.clients)
        ]
        totals = Totals([each.seen for each in clients])
        server.number("minibert_connections")  # it has its own files open as soon as it answers
        time.sleep(INTERVAL)
        before = resources(server.process.pid)[1]
        stopping = threading.Event()
        threads = [
            threading.Thread(target=each.run, args=(stopping,), daemon=True) for each in clients
        ]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            while (
                totals.answered < args.requests
                and totals.seconds < args.seconds
                and not any(each.faults for each in totals.seen)
                and server.process.poll() is None
            ):
                time.sleep(INTERVAL)
                totals.samples.append((time.monotonic(), *resources(server.process.pid)))
                totals.seconds = time.monotonic() - begin
                say(totals.so_far())
        finally:
            stopping.set()
        for thread in threads:
            thread.join(2 * PATIENCE)
            if thread.is_alive():
                totals.faults.append("a client has hung")
        totals.faults += [fault for each in totals.seen for fault in each.faults]
        if server.process.poll() is None:
            totals.files = before, files_at_rest(server.process.pid, before)
            totals.faults += faults_at_rest(server)
            server.process.send_signal(signal.SIGTERM)
        totals.faults += faults_at_the_end(server)
    if totals.files[1] > before:
        totals.faults.append(f"{totals.files[1] - before} files were left open")
    if len(totals.samples) >= FEWEST and growth(totals.samples)[0] > GROWTH:
        totals.faults.append(f"grew by {growth(totals.samples)[0] / 1e6:.1f} MB")
    return totals


def faults_at_rest(server: Server) -> list[str]:
    """What the server's own numbers say when nobody asks any more."""
    failed = server.failures()
    waiting = server.number("minibert_waiting_texts") + server.number("minibert_waiting_tokens")
    faults = [f"{failed} requests failed"] if failed else []
    return [*faults, f"{waiting} texts and tokens wait for ever"] if waiting else faults


def faults_at_the_end(server: Server) -> list[str]:
    """Whether it ended as it should, told to stop."""
    try:
        status = server.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        return ["the server did not stop"]
    return [f"the server ended with {status}: " + " | ".join(server.lines)] if status else []


def main(argv: Sequence[str] | None = None) -> int:
    """Run it.

    Returns:
        0 if all held, 1 if not, 130 if it was interrupted; wrong usage exits with 2.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, metavar="N", help="end after so many (100,000)")
    parser.add_argument("--seconds", type=float, metavar="X", help="end after so long")
    parser.add_argument("--clients", type=int, default=16, metavar="N", help="at a time (16)")
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="of the server's model (2)"
    )
    parser.add_argument("--model", metavar="FOLDER", help="of the server, not a tiny one")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the questions (0)")
    args = parser.parse_args(argv)
    if args.requests is None:
        args.requests = 10**5 if args.seconds is None else sys.maxsize
    if args.seconds is None:
        args.seconds = float("inf")
    try:
        with tempfile.TemporaryDirectory(prefix="minibert-soak-") as name:
            folder = args.model or str(write_model(Path(name) / "model"))
            totals = soak_server(folder, args)
    except KeyboardInterrupt:
        print("\nsoak_serve: interrupted", file=sys.stderr)
        return 130
    return report(totals.verdict(), totals.faults)


if __name__ == "__main__":
    sys.exit(main())
