"""Ctrl-C, SIGTERM and SIGHUP wait until a step is complete and a checkpoint is written."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from minibert import progress
from minibert.signals import ENDINGS


class Interruption:
    """Which signal came, if one did."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def pass_on(self, message: str) -> None:
        """Let the signal do now what it would have done when it came.

        Args:
            message: what the KeyboardInterrupt says, if that is what it does.
        """
        if self.signal is None:
            return
        try:
            signal.raise_signal(self.signal)
        except KeyboardInterrupt as stop:
            raise type(stop)(message) from None


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Note the first signal instead of ending the program; the second one does what it always does.

    Signals that are ignored stay so.  Only the main thread hears of signals; in another one nothing
    is changed.
    """
    found = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.getsignal(number) for number in ENDINGS}
    heeded = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, old in heeded.items():
            signal.signal(number, old)

    def note(number: int, _: Any) -> None:
        found.signal = number
        restore()
        if progress.speaking:  # past sys.stderr, which may be in the middle of something
            with suppress(OSError):
                os.write(2, b"minibert: a checkpoint is written after this step\n")

    for number in heeded:
        signal.signal(number, note)
    try:
        yield found
    finally:
        restore()
