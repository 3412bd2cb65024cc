"""One request, in whatever bytes, and what comes back: a status, or a word for what else did."""

from __future__ import annotations

import http.client
import json
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PATIENCE = 90.0  # seconds; all deadlines of the server are shorter

PAIR = {"question": "who wrote it", "context": "ada lee wrote it in 1843 ."}
ASKED = json.dumps({"inputs": PAIR}).encode()

CLOSED = "closed"  # the connection, without an answer
HUNG = "hung"
Outcomes = Counter[str]


def connect(port: int) -> socket.socket:
    """A connection."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def head(
    method: str = "POST", path: str = "/predict", headers: Mapping[str, Any] | None = None
) -> bytes:
    """The head of a request; the connection is to end after its answer."""
    lines = [f"{method} {path} HTTP/1.1", "Host: a", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join((*lines, "", "")).encode("utf-8", "surrogateescape")


def request(body: bytes = ASKED, path: str = "/predict", **headers: Any) -> bytes:
    """A whole request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return head("POST", path, {"Content-Length": len(body), **named}) + body


def exchange(port: int, sent: bytes) -> str:
    """Send bytes on a connection of their own, whatever comes; the outcome."""
    with connect(port) as connection:
        try:
            connection.sendall(sent)
        except ConnectionError:
            pass  # it was told off before it was done; the answer says why
        except TimeoutError:
            return HUNG
        return outcome(connection, sent)


def outcome(connection: socket.socket, sent: bytes = b"") -> str:
    """What comes back to what was sent: the status, and what is wrong with the rest if it is."""
    method = "HEAD" if sent.startswith(b"HEAD ") else "POST"
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        body = response.read()
    except TimeoutError:
        return HUNG
    except http.client.IncompleteRead:
        return "half an answer"
    except (ConnectionError, http.client.HTTPException):
        return CLOSED
    sort = response.getheader("content-type", "")
    if response.status >= 400 and method != "HEAD" and not is_error(body):
        return f"{response.status} without words"
    if sort == "application/json" and method != "HEAD" and not is_json(body):
        return f"{response.status} with what is no JSON"
    return str(response.status)


def is_json(body: bytes) -> bool:
    """Whether a body is JSON in UTF-8, as every program reads it."""
    try:
        json.loads(body.decode(), parse_constant=_refuse)
    except ValueError:
        return False
    return True


def _refuse(name: str) -> Any:
    """NaN and Infinity are no JSON."""
    raise ValueError(name)


def is_error(body: bytes) -> bool:
    """Whether a body says what was wrong."""
    found = json.loads(body) if is_json(body) else None
    return isinstance(found, dict) and list(found) == ["error"] and bool(found["error"])


def each_of(port: int, requests: Iterable[bytes], at_once: int = 8) -> Outcomes:
    """The outcomes of requests, each on a connection of its own."""
    with ThreadPoolExecutor(at_once) as clients:
        return Counter(clients.map(lambda sent: exchange(port, sent), requests))


def asked(port: int) -> str:
    """What an honest question gets."""
    return exchange(port, request())
