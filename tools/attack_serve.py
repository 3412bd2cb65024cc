"""Attack `minibert serve`, and say what came back.

    python tools/attack_serve.py                       all attacks, three minutes
    python tools/attack_serve.py --quick               those that need no waiting, 30 seconds
    python tools/attack_serve.py --model FOLDER        of a model that is not tiny

The server is the command, in a process of its own, at a port that is free.  After each attack an
honest question must get its answer.  A table in Markdown goes to stdout, progress to stderr.  A
status that the attack may not get, a 500, a connection that hangs, an answer that is not what it
says it is, or the end of the process is a fault: it is named below the table, and the status is 1.
For Linux.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import soak
from attacking import bodies, crowds, ends, heads
from attacking.wire import CLOSED, Outcomes, asked, each_of, head, request
from serving import Server, begin_peak, files_at_rest, peak, served

sys.path.insert(0, str(soak.ROOT / "tests"))

from random_models import write_model

CONNECTIONS = 10_000
OPTIONS = ["--max-connections", str(CONNECTIONS)]
GROWTH = 300 * 10**6  # bytes that one attack may need for its own time
REFUSED = ("400", "413", "422")
EITHER = ("200", *REFUSED)

Found = Outcomes | tuple[Outcomes, str]  # outcomes, and what else is to be said


@dataclass(frozen=True)
class Attack:
    """One row: what is sent, how, and which outcomes are right."""

    what: str
    run: Callable[[int], Found]  # at a port
    right: Sequence[str]


@dataclass
class Report:
    """The table, and what is wrong."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, what: str, found: Found, right: Sequence[str], seconds: float, more: str) -> None:
        """What came of one attack."""
        outcomes, note = found if isinstance(found, tuple) else (found, "")
        counted = ", ".join(
            status if outcomes.total() == 1 else f"{status} ({times:,})"
            for status, times in sorted(outcomes.items())
        )
        said = "; ".join(each for each in (counted, note, f"{seconds:.1f} s", more) if each)
        self.rows.append((what, said))
        if wrong := sorted(set(outcomes) - set(right)):
            self.faults.append(f"{what}: {', '.join(wrong)}, expected {' or '.join(right)}")

    def table(self) -> str:
        """In Markdown."""
        rows = [("What was sent", "What came back"), ("---", "---"), *self.rows]
        return "\n".join(f"| {what} | {said} |" for what, said in rows)


def quick_attacks() -> list[Attack]:
    """Those that need no waiting."""
    types = bodies.wrong_types
    return [
        Attack(
            "a body cut at each byte, and other broken JSON",
            lambda port: each_of(port, bodies.both(bodies.broken_json())),
            ("400",),
        ),
        Attack(
            "brackets in brackets, a hundred to a million deep, open and closed, in each field",
            lambda port: each_of(port, bodies.both(bodies.deep_json())),
            REFUSED,
        ),
        Attack(
            "26 values of wrong types in each field",
            lambda port: each_of(port, (request(body, path) for path, body in types())),
            EITHER,
        ),
        Attack("strange characters, and where answers stand", strange_characters, ("200", "422")),
        Attack(
            "other encodings, halves of surrogates",
            lambda port: each_of(port, bodies.posts(bodies.other_encodings())),
            EITHER,
        ),
        Attack(
            "2,000 bodies with random damage",
            lambda port: each_of(port, bodies.posts(bodies.random_bytes(0, 2000))),
            EITHER,
        ),
        Attack(
            "compressed bodies, one of 2 GB; forms; XML with an entity",
            lambda port: each_of(port, bodies.packed()),
            ("400",),
        ),
        Attack(
            f"{len(bodies.METHODS)} methods and POST at {len(bodies.PATHS)} addresses",
            lambda port: each_of(port, bodies.methods_and_paths()),
            ("200", "400", "404", "405", "422"),
        ),
        Attack(
            "lengths that are none; two; beside chunks",
            lambda port: each_of(port, heads.odd_lengths()),
            ("400", "408", "501"),
        ),
        Attack("damaged chunks", lambda port: each_of(port, heads.odd_chunks()), ("400", CLOSED)),
        Attack(
            "TLS, HTTP/2, SSH, damaged heads; lines and heads of 1 MB",
            lambda port: each_of(port, heads.odd_heads()),
            ("200", "400", "404", "417", CLOSED),
        ),
        Attack(
            "100 requests in one go, every other one wrong", heads.pipelined, ("200", "400", "404")
        ),
        Attack("six MB in chunks, and then a damaged one", heads.after_the_answer, ("413",)),
        Attack(
            "half a body, then the end of the stream, 20 times",
            lambda port: crowds.half_and_gone(port, 20),
            ("400", CLOSED),
        ),
    ]


def slow_attacks() -> list[Attack]:
    """Those that take their time, or much of everything."""
    count = crowds.most_connections(CONNECTIONS)
    begun = head(headers={"Content-Length": 1000})
    return [
        Attack(
            "bodies of 100 MB: with length, in chunks, in one chunk; lengths without a body",
            lambda port: crowds.large_bodies(port, 100),
            ("413",),
        ),
        Attack(
            "words of 190,000 letters, as many spaces, accents; steps of one token; 300,000 inputs",
            lambda port: each_of(port, bodies.posts(bodies.heavy_texts()), at_once=2),
            EITHER,
        ),
        Attack(
            "500 connections that send nothing",
            lambda port: crowds.trickling(port, b"", b"", 500),
            (CLOSED,),
        ),
        Attack(
            "500 heads that go on for ever, a line in half a second",
            lambda port: crowds.trickling(port, b"GET / HTTP/1.1\r\n", b"a: b\r\n", 500),
            (CLOSED,),
        ),
        Attack(
            "500 bodies that come a byte in half a second",
            lambda port: crowds.trickling(port, begun, b" ", 500),
            ("408", "429"),
        ),
        Attack(
            "500 bodies of which half comes",
            lambda port: crowds.trickling(port, begun + b"{", b"", 500),
            ("408", "429"),
        ),
        Attack(
            "20 clients that ask for pages and take none",
            lambda port: crowds.deaf(port, 20),
            (CLOSED,),
        ),
        Attack(
            f"{count:,} connections at once, each with half a head",
            lambda port: crowds.crowd(port, count),
            (CLOSED, "503"),
        ),
    ]


def strange_characters(port: int) -> Found:
    """Questions about strange characters; an answer must stand where it says."""
    found = Outcomes()
    for pair, body in bodies.strange_texts():
        status, answer = asked_for(port, body)
        if status == 200 and not bodies.right_span(pair, answer):
            found["200 with a wrong span"] += 1
        else:
            found[str(status)] += 1
    return found


def asked_for(port: int, body: bytes) -> tuple[int, object]:
    """Status and value of the answer to a body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", body)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def attack(server: Server, attacks: Sequence[Attack], report: Report) -> None:
    """Run attacks on one server; after each it must answer, and be as large as it was."""
    process = server.process.pid
    asked(server.port)
    time.sleep(soak.INTERVAL)
    memory, files = soak.resources(process)
    for each in attacks:
        say(each.what)
        begin_peak(process)
        begin, before = time.monotonic(), soak.resources(process)[0]
        found = each.run(server.port)
        seconds, grown = time.monotonic() - begin, peak(process) - before
        report.add(each.what, found, each.right, seconds, f"{max(0, grown) / 1e6:+.0f} MB at most")
        if grown > GROWTH:
            report.faults.append(f"{each.what}: it took {grown / 1e6:.0f} MB")
        if (honest := asked(server.port)) != "200":
            report.faults.append(f"{each.what}: after it an honest question got {honest}")
    left = files_at_rest(process, files)
    failures = server.failures()
    report.rows.append(
        (
            "afterwards, to the same process",
            f"{asked(server.port)}; memory {memory / 1e6:.0f} MB before, "
            f"{soak.resources(process)[0] / 1e6:.0f} MB now; files {files} before, {left} now; "
            f"{failures} requests got 500",
        )
    )
    if left > files:
        report.faults.append(f"{left - files} files are still open")
    if failures:
        report.faults.append(f"{failures} requests got 500")


def attack_ends(folder: str, report: Report) -> None:
    """Servers that are killed or told to stop, and one with a key."""
    for what, run, right in (
        (
            "kill -9 in the midst of an answer, then a start at the same port",
            ends.killed,
            (CLOSED, "200"),
        ),
        ("SIGTERM while 32 long texts are under way", told_to_stop, ("200",)),
        ("two SIGTERM while a long text is under way", ends.told_twice, ("503",)),
        ("no key, wrong keys, two keys, a key of 30 kB", ends.wrong_keys, ("401",)),
    ):
        say(what)
        begin = time.monotonic()
        report.add(what, run(folder, OPTIONS), right, time.monotonic() - begin, "")


def told_to_stop(folder: str, more: list[str]) -> Found:
    """See ends.told_to_stop."""
    return ends.told_to_stop(folder, more, 32)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it.

    Returns:
        0 if all is well, 1 if not, 130 if it was interrupted; wrong usage exits with 2.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only what needs no waiting")
    parser.add_argument("--model", metavar="FOLDER", help="of the server, not a tiny one")
    args = parser.parse_args(argv)
    report = Report()
    try:
        with tempfile.TemporaryDirectory(prefix="minibert-attack-") as name:
            folder = args.model or str(write_model(Path(name) / "model"))
            with served(folder, *OPTIONS) as server:
                attack(server, quick_attacks() + ([] if args.quick else slow_attacks()), report)
            if not args.quick:
                attack_ends(folder, report)
    except KeyboardInterrupt:
        print("attack_serve: interrupted", file=sys.stderr)
        return 130
    print(report.table())
    for fault in report.faults:
        print(f"fault: {fault}")
    return int(bool(report.faults))


if __name__ == "__main__":
    sys.exit(main())
