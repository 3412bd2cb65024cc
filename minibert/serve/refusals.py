"""Why a request gets no answer: the status and the words that are sent instead."""

from __future__ import annotations

from minibert.errors import MinibertError


class Refusal(MinibertError, RuntimeError):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        retry_after: seconds after which it may go better; None: it never will.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


def too_large(message: str) -> Refusal:
    """A request that is beyond a limit of its own size."""
    return Refusal(413, message)


def too_busy(retry_after: int) -> Refusal:
    """A request that may be taken when others are done."""
    return Refusal(429, "the server is busy; send the request again a little later", retry_after)


def stopping() -> Refusal:
    """A request that came when the server had been told to stop."""
    return Refusal(503, "the server is stopping", 5)


def too_slow(seconds: float) -> Refusal:
    """A request that could not be answered in time."""
    return Refusal(503, f"no answer was found within {seconds:g} seconds; send less text", 5)
