"""A learner's functions, in the place of the library's.

A `World` is a copy of the modules that lessons are about.  In it, some functions are others, also
where the library's own functions call them: so a layer norm of one's own runs within the library's
embeddings, and the library's softmax within attention of one's own.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from minibert import encoder, windows
from minibert.batches import Batch
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.kernels import gradients, reference
from minibert.kernels.backend import Backend, Logits, table
from minibert.kernels.training import TrainingKernels, training_table
from minibert.lessons import borrowed, choice
from minibert.lessons.catalogue import LESSONS, file_name
from minibert.lessons.lesson import Lesson
from minibert.lessons.outcomes import attempt, compare
from minibert.lessons.reading import Unusable, line_of, read_lesson
from minibert.options import expanded
from minibert.parameters import Parameters
from minibert.reprs import shown
from minibert.trace import Trace
from minibert.training import loss

MODULES = (reference, gradients, windows, encoder, loss, choice)
Functions: TypeAlias = Mapping[str, Callable[..., Any]]


class Traced(NamedTuple):
    """A run, as far as it went."""

    trace: Trace
    logits: Logits | None
    error: BaseException | None  # with which a learner's function ended it


class World:
    """Copies of the library's modules in which some functions are others.

    Args:
        functions: these, by name.
    """

    def __init__(self, functions: Functions | None = None) -> None:
        self._copies = {module.__name__: _copy(module) for module in MODULES}
        for copy in self._copies.values():
            if hasattr(copy, "reference"):
                vars(copy)["reference"] = self._copies[reference.__name__]
        self.put(
            {
                step.name: step.definition.made_in(self.names(step.function))
                for lesson in LESSONS
                for step in lesson.steps
            }
        )
        self.put(functions or {})

    def names(self, definition: Callable[..., Any]) -> dict[str, Any]:
        """What names mean where a definition stands."""
        return vars(self._copies[definition.__module__])

    def put(self, functions: Functions) -> None:
        """From now on, let these functions be called where the library's were."""
        for lesson in LESSONS:
            for step in lesson.steps:
                if step.name in functions:
                    self._replace(step.function, functions[step.name])

    def _replace(self, definition: Callable[..., Any], function: Callable[..., Any]) -> None:
        """Let a function be found under every name under which one of the library's was."""
        before = self.function(definition)
        for copy in self._copies.values():
            for names in (vars(copy), vars(copy).get("ACTIVATIONS", {})):
                for name, value in names.items():
                    if value is before or value is definition:
                        names[name] = function

    def function(self, definition: Callable[..., Any]) -> Callable[..., Any]:
        """What is called here where the library calls that definition."""
        found: Callable[..., Any] = self.names(definition)[definition.__name__]
        return found

    def meaning(self, name: str, lesson: Lesson) -> Any:
        """What a name of `borrowed` means in a lesson: what its definitions mean by it."""
        for step in lesson.steps:
            if name in step.definition.names and name in self.names(step.function):
                return self.names(step.function)[name]
        return getattr(borrowed, name)

    @property
    def backend(self) -> Backend:
        """The table of kernels with these functions."""
        return table("lessons", "float32", self._copies[reference.__name__])

    def traced(
        self, batch: Batch, weights: Parameters[Any, Any, Any, Any], config: BertConfig
    ) -> Traced:
        """Run BERT on a batch, and note every step.

        Its order is the library's, as only that notes its steps; what it calls are these functions,
        for attention's probabilities too.
        """
        order, trace = _copy(encoder), Trace()
        vars(order)["reference"] = self._copies[reference.__name__]
        logits, error = attempt(lambda: order.bert(batch, weights, config, self.backend, trace))
        return Traced(trace, logits, error)

    @property
    def training(self) -> TrainingKernels:
        """The table of training kernels with them."""
        return training_table("lessons", "float32", self._copies[gradients.__name__])


def _copy(module: ModuleType) -> ModuleType:
    """A module of its own, of the same source."""
    spec = importlib.util.find_spec(module.__name__)
    if spec is None or spec.loader is None:
        raise ImportError(f"{module.__name__} cannot be found once more")
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def departure(mine: Traced, right: Traced) -> str | None:
    """The first step at which a run departs from the definition's by more than rounding.

    Args:
        mine: with a learner's functions.
        right: `World().traced(...)` on the same batch.

    Returns:
        Its name in the trace; 'logits' for the last one; None if there is none.
    """
    for name, array in right.trace.items():
        if name not in mine.trace or compare(mine.trace[name], array, name):
            return name
    return "logits" if compare(mine.logits, right.logits, "logits") else None


def run_file(path: Path, code: Any, written: Collection[str]) -> dict[str, Any]:
    """Run a learner's file.

    Args:
        path: the file.
        code: of it.
        written: names of functions that it should then hold.

    Returns:
        What its names mean.

    Raises:
        Unusable: it ends with an error, or without these functions.
    """
    names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    _, error = attempt(lambda: exec(code, names))
    if error is not None:
        raise Unusable("broken", said(error, path))
    for name in written:
        if not callable(names.get(name)):
            raise Unusable("broken", f"when the file has run, {name!r} is no function in it")
    return names


def said(error: BaseException, path: Path) -> str:
    """An error of a learner's file in one line."""
    line = line_of(error, path)
    where = f"line {line}: " if line else ""
    if isinstance(error, SystemExit):
        return f"{where}it ends the program (SystemExit)"
    if isinstance(error, MemoryError):
        return f"{where}it asks for more memory than there is for it"
    if isinstance(error, RecursionError):
        return f"{where}it calls itself without end"
    text = " ".join(str(error).split())[:200]
    if isinstance(error, FrozenInstanceError):
        text += ". Take the array first, as in w = gradient.weight; then w += ... changes it"
    return f"{where}{type(error).__name__}: {text}"


def bind(names: dict[str, Any], lesson: Lesson, world: World) -> None:
    """Let what a file borrowed be the functions of a world."""
    meanings = [(getattr(borrowed, name), world.meaning(name, lesson)) for name in borrowed.__all__]
    for name, value in names.items():
        for original, meaning in meanings:
            if value is original:
                names[name] = meaning


def load_learner(
    folder: str | Path, only: Collection[str] | None = None
) -> dict[str, Callable[..., Any]]:
    """The functions that a learner has written, right or wrong, by name.

    They run in this process, so an endless loop of theirs is one of the caller's.  `World` puts
    them in the library's place.

    Args:
        folder: of `minibert lessons`.
        only: names of functions; files without any of them are not run.  None: all.

    Raises:
        InputError: there is no such folder, or a file in it cannot be read or run.
    """
    here = Path(expanded(str(folder)))
    functions: dict[str, Callable[..., Any]] = {}
    loaded = []
    for lesson in LESSONS:
        path = here / file_name(lesson)
        if lesson.part == 3 or not os.path.exists(path):  # which takes any name
            continue
        try:
            code, written = read_lesson(path, lesson)
            written = [name for name in written if only is None or name in only]
            names = run_file(path, code, written) if written else {}
        except Unusable as problem:
            raise InputError(f"{path}: {problem.text}") from None
        functions |= {name: names[name] for name in written}
        loaded.append((names, lesson))
    if not loaded:
        raise InputError(
            f"{shown(str(folder))}: holds no lessons; `minibert lessons {folder}` writes them"
        )
    world = World(functions)
    for names, lesson in loaded:
        bind(names, lesson, world)
    return functions
