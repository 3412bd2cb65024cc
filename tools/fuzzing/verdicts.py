"""What came of a case.

Good are two outcomes: it was answered, and everything that must hold does; or it was refused, by a
MinibertError or by status 1 or 2 of the command.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzzing.values import Own
from minibert.errors import MinibertError

GOOD = ("ok", "refused")
BAD = (
    "exception",  # another error, a panic of native code, an end of the process by sys.exit
    "slow",
    "memory",
    "hang",
    "crash",  # the process is gone
    "nan",  # NaN or infinity in an answer or in JSON
    "escape",  # a file outside of the folder was opened, a program was started
    "wrong",  # an answer that is not so, two devices that disagree, a message that nobody reads
)
LONGEST_MESSAGE = 20_000  # characters


@dataclass(frozen=True)
class Verdict:
    """What came of a case."""

    outcome: str  # in GOOD or BAD
    where: str = ""  # what failures of one cause have in common
    detail: str = ""  # for people
    seconds: float = 0.0  # of the processor

    @property
    def good(self) -> bool:
        """Whether all is as promised."""
        return self.outcome in GOOD

    @property
    def cause(self) -> tuple[str, str]:
        """What is the same for failures of one cause."""
        return self.outcome, self.where


class Overtime(BaseException):
    """A case takes too long; no `except Exception` may stop it."""


class Broken(Exception):
    """What must hold does not.

    Args:
        outcome: one of BAD.
        what: for people.
    """

    def __init__(self, outcome: str, what: str) -> None:
        super().__init__(what)
        self.outcome = outcome


def judge(run: Callable[[], Verdict | None]) -> Verdict:
    """Call a function and say what came of it; nothing that it raises gets out."""
    try:
        return run() or Verdict("ok")
    except MinibertError as error:
        return read_message(error)
    except Broken as error:
        return Verdict(error.outcome, str(error)[:30], str(error))
    except Own:
        return Verdict("refused", detail="the error of an object that was passed in")
    except MemoryError as error:
        return Verdict("memory", last_place(error), traceback.format_exc())
    except Overtime as error:
        return Verdict("slow", first_place(error), traceback.format_exc())
    except BaseException as error:  # panics of native code and SystemExit, too
        where = f"{type(error).__name__} {last_place(error)}"
        return Verdict("exception", where, traceback.format_exc())


def read_message(error: MinibertError) -> Verdict:
    """Whether an error says something that can be read."""
    try:
        text = str(error)
    except Exception as problem:
        return Verdict("exception", last_place(problem), traceback.format_exc())
    if not text.strip() or len(text) > LONGEST_MESSAGE:
        said = f"a message of {len(text)} characters: {text:.1000}"
        return Verdict("wrong", last_place(error), said)
    return Verdict("refused", detail=text)


def places(error: BaseException) -> list[str]:
    """The lines of minibert's that an error came through."""
    return [
        f"{Path(frame.filename).name}:{frame.name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if {"minibert", "kernels"} & {*frame.filename.split(os.sep)[:-1]}
        and "fuzzing" not in frame.filename
    ]


def last_place(error: BaseException) -> str:
    """The last line of minibert's that an error came through."""
    return places(error)[-1] if places(error) else str(error)[:60]


def first_place(error: BaseException) -> str:
    """Where minibert was entered; where it was when the time was over depends on the machine."""
    return places(error)[0] if places(error) else ""
