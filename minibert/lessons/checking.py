"""Checks a folder of lessons: each file by itself, then what they give together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minibert.errors import InputError
from minibert.lessons.catalogue import LESSONS, file_name, find, number
from minibert.lessons.folder import PARTS
from minibert.lessons.lesson import Lesson
from minibert.lessons.processes import SECONDS, run_apart
from minibert.lessons.race import compile_ours
from minibert.lessons.reading import Unusable, read_lesson
from minibert.lessons.trial import Verdict
from minibert.options import expanded

STATES = {
    "right": "right",
    "wrong": "not right yet",
    "unwritten": "not written yet",
    "missing": "missing",
    "broken": "gives no result",
    "taken": "is the library's",
}


AT_ONCE = min(4, os.cpu_count() or 1)  # processes


def check_lesson(folder: Path, lesson: Lesson, seconds: float = SECONDS) -> Verdict:
    """Try one file in a process of its own."""
    try:
        _, written = read_lesson(folder / file_name(lesson), lesson)
        if not written:
            return Verdict("unwritten")
        if lesson.part == 3:
            compile_ours()
            seconds *= 4  # Numba takes its time, too
        return Verdict(**run_apart("minibert.lessons.trial", folder, lesson.name, seconds))
    except Unusable as problem:
        return Verdict(problem.state, problem.text)


def check_lessons(path: str, only: str | None = None, seconds: float = SECONDS) -> Iterator[str]:
    """Check a folder.

    Args:
        path: of the folder.
        only: a lesson, by name, number or function; None: all.
        seconds: how long each file may take.

    Yields:
        Lines to show, as soon as each is known.

    Raises:
        InputError: there is no such folder or lesson; or, at the end, something is not right.
    """
    chosen = [find(only)] if only is not None else list(LESSONS)
    folder = folder_of(path)
    verdicts: dict[str, Verdict] = {}
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        tried = pool.map(lambda each: check_lesson(folder, each, seconds), chosen)
        for lesson, verdict in zip(chosen, tried, strict=True):
            verdicts[lesson.name] = verdict
            if only is None and verdict.state == "unwritten" and not verdict.text:
                continue
            yield from lines(lesson, verdict)
    finally:  # after Ctrl-C, too: start no more of them
        pool.shutdown(wait=False, cancel_futures=True)
    if only is None:
        yield from _counted(verdicts)
    elif verdicts[chosen[0].name].state == "right":
        yield "The definition has it so:"
        yield ""
        yield from definition_lines(chosen[0])
    yield from _together(folder, verdicts, seconds)
    bad = [name for name, each in verdicts.items() if each.state in ("wrong", "broken", "taken")]
    if bad:
        raise InputError(f"not right yet: {', '.join(bad)}; see above")


def folder_of(path: str) -> Path:
    """A folder of lessons.

    Raises:
        InputError: there is none.
    """
    folder = Path(expanded(path)).absolute()
    if not any((folder / file_name(lesson)).exists() for lesson in LESSONS):
        raise InputError(f"{path}: holds no lessons; `minibert lessons {path}` writes them")
    return folder


def lines(lesson: Lesson, verdict: Verdict) -> Iterator[str]:
    """What is said of one file."""
    yield f"{number(lesson):2} {lesson.name:20} {STATES[verdict.state]}"
    for text in (verdict.text, verdict.hint):
        for line in text.splitlines():
            yield f"   {line}"
    if verdict.printed:
        yield "   it printed:"
        yield from (f"   | {line}" for line in verdict.printed.splitlines()[:20])


def _counted(verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """How many are right."""
    for part in PARTS:
        mine = [lesson for lesson in LESSONS if lesson.part == part]
        right = sum(verdicts[lesson.name].state == "right" for lesson in mine)
        if part == 1 or right:
            yield f"part {part}: yours {right} of {len(mine)}"


def _together(folder: Path, verdicts: Mapping[str, Verdict], seconds: float) -> Iterator[str]:
    """What functions that give results give together with the library's, right or wrong."""
    usable = [
        name
        for lesson in LESSONS
        if lesson.part < 3 and lesson.name in verdicts
        for name in verdicts[lesson.name].written
    ]
    if not usable and len(verdicts) == 1:
        return
    try:
        found = run_apart("minibert.lessons.whole", folder, ",".join(usable), seconds)
        yield from found["lines"]
    except Unusable as problem:
        yield f"Together they give no answer: {problem.text}"


def revealed(path: str, name: str) -> Iterator[str]:
    """The last rung of help: the code of the definition.

    Raises:
        InputError: there is no such folder or lesson.
    """
    folder_of(path)
    return definition_lines(find(name))


def definition_lines(lesson: Lesson) -> Iterator[str]:
    """How the library has it."""
    if lesson.part == 3:
        yield "There is no code to show for this one: ours, in kernels/cpu/attention.py, works on"
        yield "blocks of rows and on vectors. What yours should compute, as NumPy has it:"
        yield ""
    for step in lesson.steps:
        yield f"# {step.definition.place}"
        yield from step.definition.code.splitlines()
        yield ""
