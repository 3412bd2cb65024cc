"""What comes slowly, what never ends, and what comes in thousands."""

from __future__ import annotations

import resource
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

from attacking.wire import CLOSED, HUNG, PATIENCE, Outcomes, asked, connect, head, outcome, request

SPARE_FILES = 200  # of this process, beside its connections
MEGABYTE = 10**6
FULL = "503"


def large_bodies(port: int, megabytes: int) -> Outcomes:
    """Bodies of so many megabytes: with their length, without one, and in one chunk."""
    block = b"a" * MEGABYTE

    def blocks() -> Iterator[bytes]:
        return (block for _ in range(megabytes))

    size = megabytes * MEGABYTE
    ways = (
        (head(headers={"Content-Length": size}), blocks()),
        (
            head(headers={"Transfer-Encoding": "chunked"}),
            (b"%x\r\n%s\r\n" % (MEGABYTE, each) for each in blocks()),
        ),
        (head(headers={"Transfer-Encoding": "chunked"}) + b"%x\r\n" % size, blocks()),
        (head(headers={"Content-Length": 10**18}), ()),
        (head(headers={"Content-Length": size, "Expect": "100-continue"}), ()),
    )
    found = Outcomes()
    for begin, rest in ways:
        with connect(port) as connection:
            try:
                connection.sendall(begin)
                for each in rest:
                    connection.sendall(each)
            except ConnectionError:
                pass
            found[outcome(connection)] += 1
    return found


def trickling(port: int, begin: bytes, more: bytes, count: int) -> Outcomes:
    """Connections that send a beginning, and then a few bytes a second for ever.

    Args:
        port: of the server.
        begin: what is sent at once.
        more: what is sent again and again; nothing: they wait.
        count: how many do it at the same time.
    """
    waiting = []
    for _ in range(count):
        connection = connect(port)
        connection.sendall(begin)
        waiting.append(connection)
    found, end = Outcomes(), time.monotonic() + PATIENCE
    while waiting and time.monotonic() < end:
        time.sleep(0.5)
        for connection in list(waiting):
            if readable(connection):
                found[outcome(connection)] += 1
                waiting.remove(connection)
                connection.close()
            elif more:
                with suppress(ConnectionError):  # it is readable then
                    connection.sendall(more)
    found[HUNG] += len(waiting)
    for connection in waiting:
        connection.close()
    return +found


def readable(connection: socket.socket) -> bool:
    """Whether something came, or the end."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return bool(selector.select(0))


def half_and_gone(port: int, count: int) -> Outcomes:
    """Bodies of which half comes, then the end of all that this side sends."""
    found = Outcomes()
    for number in range(count):
        with connect(port) as connection:
            connection.sendall(request()[: -1 - number % 20])
            connection.shutdown(socket.SHUT_WR)
            found[outcome(connection)] += 1
    return found


def deaf(port: int, count: int) -> Outcomes:
    """Clients that ask for pages and take none of them."""
    page = head("GET", "/", {"Accept": "text/html"}).replace(b"Connection: close\r\n", b"")
    waiting = []
    for _ in range(count):
        connection = connect(port)
        connection.setblocking(False)
        waiting.append(connection)
    found, end = Outcomes(), time.monotonic() + PATIENCE
    while waiting and time.monotonic() < end:
        time.sleep(0.1)
        for connection in list(waiting):
            try:
                connection.send(page * 100)
            except BlockingIOError:
                continue  # both ends are full
            except ConnectionError:
                found[CLOSED] += 1
                waiting.remove(connection)
                connection.close()
    found[HUNG] += len(waiting)
    for connection in waiting:
        connection.close()
    return +found


def crowd(port: int, count: int) -> tuple[Outcomes, str]:
    """So many connections at once, each with half a head; and what an honest client gets.

    Returns:
        What came of the connections, and of the honest client while they were there and after.
    """
    hers = Outcomes()
    waiting = []
    begin = time.monotonic()
    for number in range(count):
        connection = connect(port)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        waiting.append(connection)
        if number % 1000 == 999:
            hers[asked(port)] += 1
    opened = time.monotonic() - begin
    found = Outcomes(outcome(connection) for connection in waiting)
    for connection in waiting:
        connection.close()
    while (last := asked(port)) == FULL and time.monotonic() - begin < PATIENCE:
        time.sleep(0.1)
    asking = ", ".join(f"{status} ({times})" for status, times in hers.items())
    return found, (
        f"opened within {opened:.0f} s; honest requests meanwhile: {asking or 'none'}; then {last} "
        f"at {time.monotonic() - begin:.0f} s"
    )


def most_connections(wanted: int) -> int:
    """So many, or fewer if this process may not have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < most:
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - SPARE_FILES)
