"""A Hub of our own on this computer, well or ill, that notes what it is asked for."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from minibert.checkpoints.hub import SECONDS_IF_CACHED

COMMIT = "c" * 40


class Hub:
    """Serves folders as models of the Hub.

    Args:
        models: name on the Hub -> folder.
        ill: what it does with each request: None, it answers; 'drops', it closes the connection;
            'hangs', it says nothing; 'fails', status 503; 'wakes', it lets the first one wait.

    It is a context manager: it serves inside the `with` block.
    """

    def __init__(self, models: dict[str, Path], ill: str | None = None) -> None:
        self.models, self.ill = models, ill
        self.asked: list[tuple[str, str]] = []  # method and file, of those that are about a file
        self.ended = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self)

            def do_GET(self):
                hub.answer(self)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def fetched(self) -> list[str]:
        """The files whose content was asked for."""
        return [file for method, file in self.asked if method == "GET"]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request of /organisation/name/resolve/revision/file."""
        name, _, rest = request.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if rest:  # huggingface_hub has questions of its own
            self.asked.append((request.command, file))
        if self.ill == "hangs":
            self.ended.wait()
        if self.ill == "wakes":
            self.ill = None
            self.ended.wait(2 * SECONDS_IF_CACHED)
        if self.ill in ("drops", "hangs"):
            request.close_connection = True
            return
        content, headers = b"", {"X-Repo-Commit": COMMIT}
        folder = self.models.get(name)
        path = folder / file if folder is not None and file else None
        if self.ill == "fails":
            status = 503
        elif folder is None:
            status, headers["X-Error-Code"] = 401, "RepoNotFound"
        elif revision not in ("main", COMMIT):
            status, headers["X-Error-Code"] = 404, "RevisionNotFound"
        elif path is None or not path.is_file():
            status, headers["X-Error-Code"] = 404, "EntryNotFound"
        else:
            status, content = 200, path.read_bytes()
            headers["ETag"] = f'"{hashlib.sha1(file.encode() + content).hexdigest()}"'
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)
