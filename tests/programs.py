"""The command line in a process of its own, and what it reads and writes."""

import json
import os
import sys


def command(*arguments):
    """The words that start `minibert`."""
    return [sys.executable, "-m", "minibert", *map(str, arguments)]


def lines_of(path, rows):
    """Write a JSON-lines file; its name."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(content, encoding="utf-8")
    return str(path)


def rows_of(text):
    """What a JSON-lines text holds."""
    return [json.loads(line) for line in text.splitlines()]


def read_terminal(leader):
    """All that a program wrote to a terminal, once it has ended."""
    content = b""
    while True:
        try:
            part = os.read(leader, 10_000)
        except OSError:  # how Linux says that the other end is closed
            part = b""
        if not part:
            os.close(leader)
            return content.decode()
        content += part
