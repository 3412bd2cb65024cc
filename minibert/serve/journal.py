"""The access log: one line a request on standard error, written by a thread of its own."""

from __future__ import annotations

import queue
import threading
from datetime import datetime, timezone

from minibert.progress import say

LINES = 10_000  # that may wait for a slow reader of standard error; beyond them lines are lost


class AccessLog:
    """Writes lines without holding up whoever has them."""

    def __init__(self) -> None:
        self.lines: queue.Queue[str | None] = queue.Queue(LINES)
        self.lost = 0
        self.thread = threading.Thread(target=self._write, name="minibert log", daemon=True)
        self.thread.start()

    def add(self, line: str) -> None:
        """Write a line, soon."""
        try:
            self.lines.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        try:
            self.lines.put(None, timeout=1)
        except queue.Full:
            return
        self.thread.join(1)

    def _write(self) -> None:
        while (line := self.lines.get()) is not None:
            if self.lost:
                lost, self.lost = self.lost, 0
                say(f"minibert: {lost} lines of the access log were lost\n")
            say(f"{line}\n")


def access_line(
    client: str, method: str, target: str, status: int, size: int, seconds: float, texts: int
) -> str:
    r"""A line of the access log.

    What a client chose is escaped and cut, so that no request can write lines of its own, or move
    the cursor of a terminal.

    Example:
        >>> access_line("127.0.0.1", "GET", "/a\n200\x1b[2J", 404, 22, 0.0012, 0)[25:]
        '127.0.0.1 "GET /a\\n200\\x1b[2J" 404 22 bytes 1.2 ms 0 texts'
    """
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    asked = ascii(f"{method[:20]} {target[:200]}")[1:-1].replace('"', "\\x22")
    return f'{now} {client} "{asked}" {status} {size} bytes {1e3 * seconds:.1f} ms {texts} texts'
