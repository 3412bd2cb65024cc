"""Signals that ask the program to end: Ctrl-C, SIGTERM, and SIGHUP, when its terminal is closed.

Each becomes a KeyboardInterrupt, so that everything is cleaned up whichever it was.  One that comes
while a module is loaded waits until that is done, for no module is made to be broken off: some then
say that they are not installed, others print a traceback or are left half loaded.  The same goes
for argparse, which raises another error when it is broken off.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Modules that are not broken off: of Python, the one that loads the others, by both its names.
UNBROKEN = {"_frozen_importlib", "importlib._bootstrap", "argparse"}

EVERY = 0.01  # seconds after which a signal that waits looks again
PATIENCE = 5.0  # seconds that it waits at most
CLEANING = 2.0  # seconds after a signal in which another one does not break the cleaning up off


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


class HungUp(KeyboardInterrupt):
    """SIGHUP came."""


# The signals that this system has, what each raises, and the status with which programs then end.
ENDINGS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt}
ENDINGS[signal.SIGTERM] = Terminated
if hasattr(signal, "SIGHUP"):  # not on Windows
    ENDINGS[signal.SIGHUP] = HungUp
STATUS = {KeyboardInterrupt: 130, HungUp: 129, Terminated: 143}


def heed() -> list[int]:
    """Let signals end the program, unless somebody has other plans for one of them.

    Only the main thread hears of signals; in another one nothing is changed.

    Returns:
        The signals for which that is new.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    usual = signal.SIG_DFL, signal.default_int_handler
    heeded = [number for number in ENDINGS if signal.getsignal(number) in usual]
    waiting = Waiting()
    for number in heeded:
        signal.signal(number, waiting.end)
    return heeded


@contextmanager
def heeding() -> Iterator[None]:
    """Let signals end what follows; see `heed`."""
    heeded = heed()
    try:
        yield
    finally:
        for number in heeded:
            usual: Any = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)


def let_go() -> None:
    """Let signals end the program at once, when there is nothing more to clean up."""
    if threading.current_thread() is threading.main_thread():
        if hasattr(signal, "setitimer"):  # for one that still waits it is too late
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number in ENDINGS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)


class Waiting:
    """Since when a signal has been waiting, if one is."""

    def __init__(self) -> None:
        self.since: float | None = None
        self.ended: float | None = None  # when one has ended the program, which cleans up now

    def end(self, number: int, frame: FrameType | None) -> None:
        """Raise what stands for a signal, now or when nothing is hurt by it.

        Raises:
            KeyboardInterrupt: of the signal's kind.
        """
        now = time.monotonic()
        if self.ended is not None and now - self.ended < CLEANING:
            return  # a closed terminal says so twice, and Ctrl-C is pressed twice
        if hasattr(signal, "setitimer") and unbroken(frame):  # Windows has no such timers
            self.since = now if self.since is None else self.since
            if now - self.since < PATIENCE:
                # A thread could not do it: what is loaded may hold locks of threads.
                signal.signal(signal.SIGALRM, lambda _, frame: self.end(number, frame))
                signal.setitimer(signal.ITIMER_REAL, EVERY)
                return
        self.since, self.ended = None, now
        raise ENDINGS[number]


def unbroken(frame: FrameType | None) -> bool:
    """Whether a frame, or one that waits for it, is of a module that is not to be broken off."""
    while frame is not None:
        if frame.f_globals.get("__name__") in UNBROKEN:
            return True
        frame = frame.f_back
    return False
