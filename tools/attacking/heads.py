"""Bytes that are no HTTP, or nearly, and requests that follow one another on one connection."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from attacking.wire import ASKED, Outcomes, connect, exchange, head, request

LONG = 10**6


def odd_lengths() -> Iterator[bytes]:
    """Lengths that are none, two lengths, and lengths beside chunks."""
    for length in ("abc", "-1", "+5", "0x10", "1.0", "1, 2", "", " ", "9" * 30, "\u0661"):
        yield head(headers={"Content-Length": length}) + ASKED
    for more in ("Content-Length: 5\r\n", "content-length: 99\r\n"):
        yield request().replace(b"\r\n\r\n", b"\r\n" + more.encode() + b"\r\n", 1)
    for coding in ("gzip, chunked", "identity", "chunked, chunked", "xchunked", "chunked\x0b", ""):
        yield head(headers={"Transfer-Encoding": coding}) + b"%x\r\n%s\r\n0\r\n\r\n" % (
            len(ASKED),
            ASKED,
        )
    both = {"Content-Length": 3, "Transfer-Encoding": "chunked"}
    yield head(headers=both) + b"0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n"


def odd_chunks() -> Iterator[bytes]:
    """Chunks whose sizes are none, too large, or wrong."""
    begin = head(headers={"Transfer-Encoding": "chunked"})
    for size in (b"zz", b"-1", b"f" * 400, b"", b"5;" + b"a" * LONG, b"0x5", b" 5"):
        yield begin + size + b"\r\nabcde\r\n0\r\n\r\n"
    yield begin + b"3\r\nabcde\r\n0\r\n\r\n"
    yield begin + b"0\r\n" + b"a: b\r\n" * 100_000 + b"\r\n"


def odd_heads() -> Iterator[bytes]:
    """Heads that are too long, damaged, or of something else."""
    yield from (
        b"\x16\x03\x01" + os.urandom(300),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n\r\n",
    )
    yield from (
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"\r\n\r\n\r\n\r\nA\r\n\r\n",
    )
    yield from (b"SSH-2.0-OpenSSH\r\n\r\n", b"\0" * 1000, b"GET  /  HTTP/1.1\r\nHost: a\r\n\r\n")
    begin = b"GET / HTTP/1.1\r\nHost: a\r\n"
    for line in (b"a : b", b" a: b", b"a\0: b", b"a: \0", b"a: b\rc: d", b":", b"a", b"\xff: \xff"):
        yield begin + line + b"\r\n\r\n"
    yield begin.replace(b"\r\n", b"\n") + b"Connection: close\n\n"
    yield begin + b"a: b\r\n c\r\nConnection: close\r\n\r\n"
    yield begin + b"Host: b\r\nConnection: close\r\n\r\n"
    yield begin + b"a: " + b"x" * LONG + b"\r\n\r\n"
    yield begin + b"a: b\r\n" * 100_000 + b"\r\n"
    yield b"A" * LONG
    yield b"GET /" + b"a" * LONG + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    yield b"GET /?" + b"a=b&" * 5_000 + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    yield head(
        "GET", "/", {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "a"}
    )
    yield head("GET", "/", {"Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"})
    yield request(Expect="100-continue")
    yield request(Expect="a miracle")


def pipelined(port: int) -> Outcomes:
    """A hundred requests in one go, every other one wrong; and what comes back, in order."""
    right, wrong = (request(body).replace(b"Connection: close\r\n", b"") for body in (ASKED, b"{"))
    with connect(port) as connection:
        connection.sendall((right + wrong) * 50 + head("GET", "/nothing"))
        answers = b"".join(iter(lambda: connection.recv(2**16), b""))
    found = [status.decode() for status in re.findall(rb"HTTP/1\.1 (\d+)", answers)]
    if found != ["200", "400"] * 50 + ["404"]:
        return Outcomes({"out of order": len(found)})
    return Outcomes(found)


def after_the_answer(port: int) -> Outcomes:
    """A body that is too long and gets its answer, and then a chunk that is damaged."""
    block = b"%x\r\n%s\r\n" % (LONG, b"a" * LONG)
    begun = head(headers={"Transfer-Encoding": "chunked"}).replace(b"Connection: close\r\n", b"")
    return Outcomes([exchange(port, begun + block * 6 + b"zz\r\n") for _ in range(3)])
