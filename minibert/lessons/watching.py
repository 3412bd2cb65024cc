"""Notices when a learner's function has the library compute what it should compute itself.

Whatever way leads there, by an import at run time or through an object: the interpreter reports
each call, and a call of the library's computing code that was not lent is seen.  Calls within
compiled code are not reported; what such code may call are names of its file, so these are looked
at.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import minibert
from minibert.kernels import reference
from minibert.lessons.definitions import MADE

PACKAGE = Path(minibert.__file__).parent
COMPUTING = (
    str(Path(inspect.getfile(reference)).parent),
    str(PACKAGE / "training"),
    *(str(PACKAGE / f"{name}.py") for name in ("encoder", "model", "spans", "windows")),
    str(PACKAGE / "lessons" / "choice.py"),
)


class Watch:
    """Watches while it is entered; `seen` is then the first function that was called.

    Args:
        path: the learner's file.
        lent: functions that may be called.
    """

    def __init__(self, path: Path, lent: Iterable[Any]) -> None:
        self.path = str(path)
        # Code is compared by what it says, so a copy of a lent function is lent, too.
        self.lent = {f.__code__ for f in lent if hasattr(f, "__code__")}
        self.seen: str | None = None
        self._before: Callable[..., Any] | None = None

    def __enter__(self) -> Watch:
        self._before = sys.getprofile()
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def held(self, names: Mapping[str, Any]) -> str | None:
        """The first of a file's names that stands for computing code that was not lent."""
        for name, value in names.items():
            if isinstance(value, ModuleType):
                code, file = None, getattr(value, "__file__", None)
            else:  # a function that Numba has compiled keeps that of Python
                code = getattr(getattr(value, "py_func", value), "__code__", None)
                file = getattr(code, "co_filename", None)
            if isinstance(file, str) and file.startswith(COMPUTING) and code not in self.lent:
                return name
        return None

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        """What the interpreter calls at each call and return."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(COMPUTING):
            return
        if code in self.lent or self.seen is not None:
            return
        caller = frame.f_back
        while caller is not None:  # whoever of the two called it, by whatever detour
            name = caller.f_code.co_filename
            if name == self.path:
                self.seen = code.co_name
                return
            if name.startswith((*COMPUTING, MADE)):
                return
            caller = caller.f_back
