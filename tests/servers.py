"""A server of minibert's in a thread of this process, and a client that sends what it likes."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time

from minibert.serve.app import create_app
from minibert.serve.server import listen, make_server
from minibert.serve.service import Service
from minibert.serve.settings import Settings

PATIENCE = 30.0  # seconds; only a fault takes so long


class Served:
    """Serves a model inside the `with` block.

    Args:
        model: a loaded one.
        key: the API key.
        batch_tokens: tokens of a batch.
        **settings: fields of Settings.
    """

    def __init__(self, model, *, key=None, batch_tokens=None, **settings):
        self.service = Service(model, Settings(**settings), batch_tokens)
        self.lines: list[str] = []  # of the access log
        self.app = create_app(self.service, key=key, log=self.lines.append)
        self.server = make_server(self.app, self.service)
        self.socket = listen("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True
        )

    def __enter__(self):
        self.thread.start()
        until(lambda: self.server.started)
        return self

    def __exit__(self, *error):
        self.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def stop(self):
        """What SIGTERM does."""
        self.server.handle_exit(signal.SIGTERM, None)

    def ask(self, method, path, body=None, headers=None):
        """One request on a connection of its own: status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def post(self, path, value, headers=None):
        """A request with a value as JSON: status and the answer's value."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        status, _, answer = self.ask("POST", path, body, headers)
        return status, json.loads(answer)

    def connect(self):
        """A connection, for bytes."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)


def until(so):
    """Wait for something that happens soon, or never."""
    end = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < end
        time.sleep(0.005)


def received(connection):
    """All bytes until the server closes the connection, or cuts it."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)
