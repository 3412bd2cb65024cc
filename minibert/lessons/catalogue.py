"""All lessons, and how one is called."""

from __future__ import annotations

from minibert.errors import InputError
from minibert.lessons.backward import BACKWARD
from minibert.lessons.forward import FORWARD
from minibert.lessons.lesson import Lesson

LESSONS = (*FORWARD, *BACKWARD)


def number(lesson: Lesson) -> int:
    """Its number; lesson 0 is not among them, there is nothing to write in it."""
    return LESSONS.index(lesson) + 1


def file_name(lesson: Lesson) -> str:
    """Name of its file."""
    return f"{number(lesson):02}_{lesson.name}.py"


def find(name: str) -> Lesson:
    """The lesson of a name, a number, a file, or a function that is written in it.

    Raises:
        InputError: there is none.
    """
    for lesson in LESSONS:
        numbers = (str(number(lesson)), f"{number(lesson):02}")
        if name in (lesson.name, file_name(lesson), *numbers):
            return lesson
    for lesson in LESSONS:
        if name in [step.name for step in lesson.steps]:
            return lesson
    names = ", ".join(lesson.name for lesson in LESSONS)
    raise InputError(f"there is no lesson {name!r}; the lessons are {names}")
