"""Progress on standard error: a line for long loops, and what a slow first time is spent on."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO, TypeVar

Item = TypeVar("Item")

EVERY = 0.1  # seconds between two drawings

# What steers a terminal: control characters of both sets but tabs and ends of lines, and those
# that turn the direction of writing.
STEERING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
CLEAR = "\r\x1b[K"  # go to the beginning of the line, and empty it

# Nothing here may spoil a result: where standard error is closed, full, or read by nobody any
# more, there is just no progress to be seen.


def say(text: str, clear: bool = False) -> None:
    """Write to standard error, if that can be done; with `clear`, over what stands on the line."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(CLEAR * clear + harmless(text, sys.stderr))
            sys.stderr.flush()
    except (OSError, ValueError):  # ValueError: it was closed by Python
        if speaking:
            forget(sys.stderr)


def forget(stream: TextIO) -> None:
    """Drop what a stream did not take: Python would try again at its end, and exit with 120."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def on_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at a stream."""
    with suppress(ValueError):
        return stream is not None and stream.isatty()
    return False


def harmless(text: str, stream: TextIO | None) -> str:
    r"""A text as it is; on a terminal, with escapes such as \x1b in place of what would steer it.

    Texts, names of files and messages go through here before they are written for people: what
    is in them may move the cursor, change colours and titles, or turn the order of letters around.
    """
    if not on_terminal(stream):
        return text
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# Whether `stages` and `notice` say anything: the command line sets it, a library stays silent.
speaking = False


def progress(
    items: Iterable[Item],
    total: int | None,
    unit: str,
    *,
    done: int = 0,
    with_results: bool = False,
) -> Iterator[Item]:
    """Pass `items` on; on a terminal, draw how many have passed, how fast, how long it will take.

    Args:
        items: anything that can be iterated.
        total: how many there will be; None if nobody knows.
        unit: what they are, in the plural.
        done: how many of the total were done before; `items` are the others.
        with_results: whether the items' results are printed as they come.
    """
    if not on_terminal(sys.stderr):
        yield from items
        return
    begin = drawn = time.monotonic()
    count = 0
    try:
        for count, item in enumerate(items, 1):
            if with_results and drawn > begin and on_terminal(sys.stdout):
                say("", clear=True)  # results go to the same screen: make room
            yield item
            if (now := time.monotonic()) - drawn >= EVERY:
                drawn = now
                _draw(count, total, unit, now - begin, done)
    finally:
        if count:
            _draw(count, total, unit, time.monotonic() - begin, done)
            say("\n")


def _draw(count: int, total: int | None, unit: str, seconds: float, done: int) -> None:
    """Overwrite the line."""
    rate = count / max(seconds, 1e-9)
    count += done
    if total:
        filled = min(20, 20 * count // total)
        bar = f"[{'#' * filled}{'.' * (20 - filled)}] {count}/{total} {unit}"
        left = f", {(total - count) / rate:.0f} s left" if count < total else f", {seconds:.0f} s"
    else:
        bar, left = f"{count} {unit}", ""
    say(f"{bar}, {rate:.1f}/s{left}", clear=True)


def notice(text: str) -> None:
    """Say one line that is no error."""
    if speaking:
        say(f"{text}\n")


@contextmanager
def stages(title: str, names: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Say what a slow piece of work is at: its title, then each stage, then how long it took.

    Args:
        title: of the work.
        names: of the stages, in order.

    Yields:
        A function to call at the beginning of each stage.
    """
    if not speaking:
        yield lambda: None
        return
    begin, terminal, number = time.monotonic(), on_terminal(sys.stderr), 0

    def following() -> None:
        nonlocal number
        number += 1
        if terminal:
            bar = "#" * number + "." * (len(names) - number)
            say(f"{title} [{bar}] {names[number - 1]}", clear=True)

    if not terminal:
        say(f"{title} ...\n")
    yield following
    seconds = time.monotonic() - begin
    say(f"{title}: {seconds:.1f} s\n", clear=terminal)
