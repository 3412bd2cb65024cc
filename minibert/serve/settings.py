"""What the server allows: how much, how many, how long."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The limits of a server.  Whatever is beyond them is refused before it costs much."""

    # Of one request.
    max_body: int = 4 * MEGABYTE  # bytes; a text of `max_characters` fits, however it is escaped
    max_characters: int = 200_000  # in its questions and texts
    max_texts: int = 64  # pairs of a question and a text, or texts that are searched together
    max_tokens: int = 400_000  # in its windows: 200,000 letters of English have 85,000
    max_answers: int = 100  # top_k and n

    # Of all requests together.
    queue: int = 256  # questions and texts that are read, wait, or run
    max_connections: int = 1000
    max_bodies: int = 64 * MEGABYTE  # bytes of bodies that are held

    # In seconds.
    head_seconds: float = 10.0  # until the headers of a request are there
    body_seconds: float = 10.0  # until its body is there
    answer_seconds: float = 30.0  # until it is answered
    idle_seconds: float = 15.0  # that a connection without a request is kept
    stop_seconds: float = 60.0  # until the last answers are out when the server is told to stop

    # How requests are joined.
    join_seconds: float = 0.002  # that a busy server waits for more requests to fill a batch
    readers: int = 2  # threads that split texts and choose answers at the same time, and one more
    long_body: int = 32_768  # bytes; longer ones are read by that one
    long_requests: int = 4  # such ones that are under way at the same time; others wait
