"""Connections that may not be held open for nothing.

uvicorn waits for ever for the first byte of a request, for the rest of its headers, and for a
client to read its answer; and it takes as many connections as there are.  Here each connection has
a deadline, which moves only when a request begins or ends, however many bytes trickle in.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from minibert.serve.contract import written
from minibert.serve.metrics import Counter
from minibert.serve.settings import Settings


def last_words(status: str, message: str, more: str = "") -> bytes:
    """An answer that needs no request, as bytes; the connection ends after it.

    Args:
        status: with its words.
        message: what is wrong.
        more: headers.
    """
    body = written({"error": message})
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{more}connection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


FULL = last_words(
    "503 Service Unavailable", "the server has too many connections", "retry-after: 1\r\n"
)
NO_HTTP = last_words("400 Bad Request", "this is no HTTP/1.1, or the head of a request is too long")
UNANSWERED = (h11.IDLE, h11.SEND_RESPONSE)


def guarded_protocol(settings: Settings, refused: Counter) -> type[asyncio.Protocol]:
    """HTTP/1.1 as uvicorn has it, with these deadlines and this many connections.

    Args:
        settings: the limits.
        refused: counts connections beyond those.
    """
    # A request that is under way has deadlines of its own, in sum less than this; what is left is
    # for a client to take its answer.
    longest = 2 * settings.body_seconds + settings.answer_seconds

    class GuardedProtocol(H11Protocol):
        """One connection."""

        deadline: asyncio.TimerHandle | None = None
        busy = False  # whether a request is under way

        def connection_made(self, transport: Any) -> None:
            """A client has connected."""
            super().connection_made(transport)
            self.set_deadline(settings.head_seconds)
            if len(self.connections) > settings.max_connections:
                refused.add()
                transport.write(FULL)
                transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            """It is gone."""
            super().connection_lost(exc)
            if self.deadline is not None:
                self.deadline.cancel()

        def data_received(self, data: bytes) -> None:
            """Some bytes have come."""
            super().data_received(data)
            if not self.busy and self.is_busy():
                self.busy = True
                self.set_deadline(longest)

        def on_response_complete(self) -> None:
            """An answer is out; the next request may have begun already."""
            super().on_response_complete()
            self.busy = self.is_busy()
            idle = settings.idle_seconds + settings.head_seconds
            self.set_deadline(longest if self.busy else idle)

        def send_400_response(self, msg: str) -> None:
            """What came cannot be read, nor can what follows; an answer may be out already."""
            if self.conn.our_state in UNANSWERED:
                self.transport.write(NO_HTTP)
            self.transport.close()

        def is_busy(self) -> bool:
            """Whether a request has begun that is not answered yet."""
            return self.cycle is not None and not self.cycle.response_complete

        def set_deadline(self, seconds: float) -> None:
            """Cut the connection so many seconds from now, unless this is called again."""
            if self.deadline is not None:
                self.deadline.cancel()
            self.deadline = self.loop.call_later(seconds, self.transport.abort)

    return GuardedProtocol
