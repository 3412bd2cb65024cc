"""What a lesson is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minibert.lessons.definitions import Definition, definition


@dataclass(frozen=True)
class Step:
    """One function to write."""

    function: Callable[..., Any]  # the definition
    seen: str  # digest of its body when the text was last read beside it; a test compares
    example: str = ""  # statements; what the last one gives is computed when the file is made
    changes: tuple[str, ...] = ()  # arguments that it is meant to change

    @property
    def name(self) -> str:
        """Of the function."""
        return str(self.function.__name__)

    @functools.cached_property
    def arguments(self) -> tuple[str, ...]:
        """Names of what it takes."""
        return tuple(inspect.signature(self.function).parameters)

    @property
    def changed(self) -> list[int]:
        """Which of them it is meant to change."""
        return [self.arguments.index(name) for name in self.changes]

    @functools.cached_property
    def definition(self) -> Definition:
        """Its text."""
        return definition(self.function)


@dataclass(frozen=True)
class Lesson:
    """One file."""

    name: str
    title: str
    before: str  # what must be known
    idea: str  # the one new thing
    formula: str
    paper: str
    steps: tuple[Step, ...]
    hand: str = ""  # what is there to be used
    part: int = 1
