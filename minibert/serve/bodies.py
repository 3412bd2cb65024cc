"""How a request's body is read: not too much of it, not too slowly, not too many at once."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from minibert.serve.refusals import Refusal, too_large
from minibert.serve.service import Service


class Body:
    """The body of a request, which counts as held until `close`."""

    def __init__(self, service: Service) -> None:
        self.service, self.held = service, 0  # bytes

    async def read(self, request: Request) -> bytes:
        """All of it.

        Raises:
            Refusal: it is too long, comes too slowly, or others hold too much.
            ClientDisconnect: the client left before its end.
        """
        settings = self.service.settings
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > settings.max_body:
            raise self._too_long()
        try:
            return await asyncio.wait_for(self._receive(request), settings.body_seconds)
        except asyncio.TimeoutError:
            raise Refusal(
                408, f"the body was not there within {settings.body_seconds:g} seconds"
            ) from None

    async def _receive(self, request: Request) -> bytes:
        """Gather what comes."""
        parts = []
        async for part in request.stream():
            if self.held + len(part) > self.service.settings.max_body:
                raise self._too_long()
            if not self.service.bodies.take(len(part)):
                raise self.service.busy()
            self.held += len(part)
            parts.append(part)
        return b"".join(parts)

    def _too_long(self) -> Refusal:
        return too_large(f"the body is longer than {self.service.settings.max_body} bytes")

    def close(self) -> None:
        """Let others have the room."""
        self.service.bodies.give(self.held)
        self.held = 0
