"""One lesson's file, tried in a process of its own: `python -m minibert.lessons.trial`.

The process may be lost: to an endless loop, to memory, to a crash.  checking.py starts it, and
says what became of it.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minibert.kernels.backend import Backend
from minibert.kernels.reference import ACTIVATIONS
from minibert.lessons import borrowed
from minibert.lessons.catalogue import file_name, find
from minibert.lessons.inputs import Case, cases
from minibert.lessons.learner import World, bind, run_file, said
from minibert.lessons.lesson import Lesson, Step
from minibert.lessons.mistakes import codes
from minibert.lessons.outcomes import Outcome, Raised, attempt, compare, difference, outcome, same
from minibert.lessons.processes import report
from minibert.lessons.race import race
from minibert.lessons.reading import Unusable, read_lesson
from minibert.lessons.watching import Watch
from minibert.reprs import short

LONG = 90  # characters of an argument that says more than its shape
PRINTED = 2000  # characters of what it prints that are kept


@dataclass
class Verdict:
    """What became of one file."""

    # "right", "wrong", "unwritten", "missing", "broken" (no result), "taken" (from the library)
    state: str
    text: str = ""
    hint: str = ""
    printed: str = ""
    written: list[str] = field(default_factory=list)  # functions that gave results


class Printed(io.StringIO):
    """Keeps the beginning of what is printed."""

    def write(self, text: str) -> int:
        """Write, as far as there is room."""
        super().write(text[: max(0, PRINTED - self.tell())])
        return len(text)


def try_lesson(path: Path, lesson: Lesson) -> Verdict:
    """Judge one file; in this process, so it may not come back."""
    verdict = Verdict("right")
    with contextlib.redirect_stdout(Printed()) as out, contextlib.redirect_stderr(out):
        try:
            code, written = read_lesson(path, lesson)
            if not written:
                raise Unusable("unwritten", "")
            world = World()
            right = {step.name: _right(step, world) for step in lesson.steps}
            names = run_file(path, code, written)
            world.put({name: names[name] for name in written})
            bind(names, lesson, world)
            for step in lesson.steps:
                if step.name not in written:
                    raise Unusable("unwritten", f"{step.name} is not written yet")
                _try_step(path, lesson, step, names, world, right[step.name], verdict)
            if lesson.part == 3:
                verdict.text = race(names, names[lesson.steps[0].name])
        except Unusable as problem:
            verdict.state, verdict.text = problem.state, problem.text
    verdict.printed = out.getvalue()
    return verdict


def _right(step: Step, world: World) -> list[Outcome]:
    """What the definition gives."""
    function = world.function(step.function)
    return [outcome(function, _lent(case, world), step.changed) for case in cases(step.name)]


def _lent(case: Case, world: World) -> list[Any]:
    """The arguments of a case; where they hold a table of kernels, it is this world's."""
    return [world.backend if isinstance(each, Backend) else each for each in case.arguments]


def _try_step(
    path: Path,
    lesson: Lesson,
    step: Step,
    names: Mapping[str, Any],
    world: World,
    right: Sequence[Outcome],
    verdict: Verdict,
) -> None:
    """Judge one function.

    Raises:
        Unusable: it is not right.
    """
    used = {name for each in lesson.steps for name in each.definition.names}
    lent = [world.meaning(name, lesson) for name in used & set(borrowed.__all__)]
    lent += [*vars(world.backend).values(), *ACTIVATIONS.values()]
    function, yours, first = names[step.name], [], None
    for case, expected in zip(cases(step.name), right, strict=True):
        watch = Watch(path, lent)
        arguments = _lent(case, world)
        given = copy.deepcopy(arguments)
        with watch if lesson.part < 3 else contextlib.nullcontext():
            value = _called(path, function, given)
        if lesson.part == 3 and not isinstance(value, Raised):
            with watch:  # once more: while Numba compiles there are thousands of calls
                _called(path, function, copy.deepcopy(arguments))
            watch.seen = watch.seen or watch.held(names)
        mine = Outcome(value, tuple(given[i] for i in step.changed))
        yours.append(mine)
        if watch.seen:
            raise Unusable(
                "taken", f"{step.name} calls the library's {watch.seen!r}; it is yours to write"
            )
        found = difference(mine, expected, step.changes)
        first = first or (found and _told(step, case, found.text, value, found.rung))
        if not found and (name := _touched(step, arguments, given)):
            raise Unusable(
                "wrong",
                f"{step.name}: it changes its argument {name!r}, which its caller still needs. "
                "Make a new array: x = x + 1 rather than x += 1",
            )
    if not any(isinstance(each.value, Raised) for each in yours):
        verdict.written.append(step.name)
    if first:
        verdict.hint = _hint(step, yours, world)
        raise Unusable("broken" if isinstance(yours[0].value, Raised) else "wrong", first)


def _called(path: Path, function: Callable[..., Any], given: Sequence[Any]) -> Any:
    """What a learner's function returns, or Raised.

    Raises:
        Unusable: it is not written after all.
    """
    value, error = attempt(lambda: function(*given))
    if isinstance(error, NotImplementedError):
        raise Unusable("unwritten", "")
    if error is None:
        return value
    return Raised(type(error).__name__, str(error), said(error, path))


def _told(step: Step, case: Case, text: str, value: Any, rung: str) -> str:
    """The first thing that is wrong, in one line or two."""
    where = f"{step.name}, {case.about}: "
    if isinstance(value, Raised):
        text = value.said
    elif value is None and "None" in text:
        text += ". Is a `return` missing?"
    if rung == "value" and not isinstance(value, Raised):
        return where + text
    given = [f"{n} {short(v)}" for n, v in zip(step.arguments, case.arguments, strict=False)]
    return f"{where}{text}\ngiven: {', '.join(each for each in given if len(each) < LONG)}"


def _touched(step: Step, before: Sequence[Any], after: Sequence[Any]) -> str | None:
    """The first argument that was changed and should not have been."""
    for name, old, new in zip(step.arguments, before, after, strict=False):
        if name not in step.changes and not isinstance(old, Backend) and compare(new, old, name):
            return name
    return None


def _hint(step: Step, yours: Sequence[Outcome], world: World) -> str:
    """The known mistake, or the two together, that give the very same results; '' if none do."""
    told, names = step.definition, world.names(step.function)
    tries = [_lent(case, world) for case in cases(step.name)]
    for hints, code in codes(step):
        function = told.made_in(names, code)
        if same(yours, [outcome(function, arguments, step.changed) for arguments in tries]):
            one = f"It looks as if {hints[0]}."
            return one if len(hints) == 1 else f"It looks as if two things were so.\n{_list(hints)}"
    return ""


def _list(hints: Sequence[str]) -> str:
    """Two mistakes, one after the other."""
    return "\n".join(f"{i}. {hint}" for i, hint in enumerate(hints, 1))


def main(folder: Path, name: str) -> dict[str, Any]:
    """Try the file of a lesson."""
    lesson = find(name)
    return asdict(try_lesson(folder / file_name(lesson), lesson))


if __name__ == "__main__":
    report(main)
