"""A progress line on standard error, shown only when that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

EVERY = 0.1  # seconds between two drawings


def progress(items: Iterable[Item], total: int | None, unit: str) -> Iterator[Item]:
    """Pass `items` on and draw how many have passed, how fast, and how long the rest will take.

    Args:
        items: anything that can be iterated.
        total: how many there will be; None if nobody knows.
        unit: what they are, in the plural.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    begin = drawn = time.monotonic()
    count = 0
    try:
        for count, item in enumerate(items, 1):
            if drawn > begin and sys.stdout is not None and sys.stdout.isatty():
                sys.stderr.write("\r\x1b[K")  # results go to the same screen: make room
                sys.stderr.flush()
            yield item
            if (now := time.monotonic()) - drawn >= EVERY:
                drawn = now
                _draw(count, total, unit, now - begin)
    finally:
        if count:
            _draw(count, total, unit, time.monotonic() - begin)
            sys.stderr.write("\n")
            sys.stderr.flush()


def _draw(count: int, total: int | None, unit: str, seconds: float) -> None:
    """Overwrite the line."""
    rate = count / max(seconds, 1e-9)
    if total:
        filled = min(20, 20 * count // total)
        bar = f"[{'#' * filled}{'.' * (20 - filled)}] {count}/{total} {unit}"
        left = f", {(total - count) / rate:.0f} s left" if count < total else f", {seconds:.0f} s"
    else:
        bar, left = f"{count} {unit}", ""
    sys.stderr.write(f"\r\x1b[K{bar}, {rate:.1f}/s{left}")
    sys.stderr.flush()
