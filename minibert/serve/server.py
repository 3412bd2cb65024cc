"""The server as a program: a socket, uvicorn, and an end in good order."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

from minibert.errors import InputError
from minibert.serve.connections import guarded_protocol
from minibert.serve.service import Service
from minibert.serve.settings import Settings

SPARE_FILES = 64  # that a process has open beside its connections
BACKLOG = 1024  # connections that the system accepts before we do
HEAD_BYTES = 32 * 1024  # of a request's line and headers
EVERY = 0.05  # seconds between two looks at whether the last answer is out


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        InputError: it cannot; the message says why.
    """
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = places[0]
        opened = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # there it would let two programs share the port
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(place)
            opened.listen(BACKLOG)
        except OSError:
            opened.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {host}, port {port}: {reason}") from None
    return opened


def address(opened: socket.socket) -> str:
    """The address of a socket, as a browser takes it."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def most_connections(wanted: int) -> int:
    """So many, or fewer if this process may not open so many files."""
    try:
        import resource
    except ImportError:  # not on Windows
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted + SPARE_FILES and hard != soft:
        most = wanted + SPARE_FILES
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - SPARE_FILES))


class Server(uvicorn.Server):
    """uvicorn's server, which ends when all that it has taken is answered.

    Told to stop by SIGTERM or Ctrl-C it takes no more requests, says so at /ready, and answers
    those that it has; told once more, it ends at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal asks for the end."""
        if self.service.stopping:
            self.force_exit = self.should_exit = True
            return
        self.service.stopping = True
        self.loop.call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        self.ending = self.loop.create_task(self._end_when_done())

    async def _end_when_done(self) -> None:
        """End when the last answer is out, or it has taken too long."""
        left = self.service.settings.stop_seconds
        while self.service.open_requests and left > 0 and not self.force_exit:
            await asyncio.sleep(EVERY)
            left -= EVERY
        self.should_exit = True


def make_server(app: Callable[..., Any], service: Service) -> Server:
    """A server for an application; `run(sockets=[...])` serves until a signal ends it."""
    settings: Settings = service.settings
    config = uvicorn.Config(
        app,
        http=guarded_protocol(settings),
        loop="asyncio",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        log_level="error",  # what strangers send is no event
        access_log=False,  # ours has other lines
        server_header=False,
        proxy_headers=False,  # whom to trust, only a proxy's owner knows
        timeout_keep_alive=max(1, round(settings.idle_seconds)),
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    server = Server(config, service)
    service.metrics.gauge(
        "minibert_connections", "Open connections.", lambda: len(server.server_state.connections)
    )
    return server
