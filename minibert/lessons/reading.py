"""What can be said of a learner's file without running it."""

from __future__ import annotations

import ast
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

from minibert.files import read_file
from minibert.lessons.lesson import Lesson

DOOR = "minibert.lessons.borrowed"

_PARSING = threading.Lock()  # CPython 3.11 counts how deep a tree is for all threads together


class Unusable(Exception):
    """A file, or a function in it, that cannot be judged by its results."""

    def __init__(self, state: str, text: str) -> None:
        super().__init__(text)
        self.state = state  # as in Verdict
        self.text = text


def read_lesson(path: Path, lesson: Lesson) -> tuple[CodeType, list[str]]:
    """Read the file of a lesson.

    Returns:
        Its code, and the names of the functions in it that are written.

    Raises:
        Unusable: it is not there, is no Python, lacks a function, or takes from the library what it
            should write.
    """
    try:
        source = read_file(path)
    except FileNotFoundError:
        raise Unusable(
            "missing", f"{path.name} is not there; `minibert lessons` adds files that are missing"
        ) from None
    except OSError as error:
        raise Unusable("broken", f"{path.name} cannot be read: {error.strerror}") from None
    try:
        with _PARSING:
            tree = ast.parse(source, str(path))
            code = compile(tree, str(path), "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: a NUL
        line = getattr(error, "lineno", None)
        where = f"line {line}: " if line else ""
        raise Unusable("broken", f"{where}no Python: {getattr(error, 'msg', error)}") from None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    made = {  # otherwise than by def, such as by lambda
        target.id
        for node in tree.body
        for target in getattr(node, "targets", ())
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name)
    }
    for step in lesson.steps:
        if step.name not in made | set(functions):
            raise Unusable(
                "missing",
                f"it holds no function {step.name!r} any more. To get it back, give the file "
                "another name: `minibert lessons` then writes it anew",
            )
    for line, text in _taken(tree, lesson):
        raise Unusable("taken", f"line {line} {text}; it is yours to write")
    names = [step.name for step in lesson.steps]
    return code, [name for name in names if name in made or _is_written(functions[name])]


def _is_written(function: ast.FunctionDef) -> bool:
    """Whether anything stands in a function but its docstring and `raise NotImplementedError`."""
    for node in function.body:
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node):
            continue
        plain = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not plain and not isinstance(node, ast.Pass):
            return True
    return False


def _taken(tree: ast.AST, lesson: Lesson) -> Iterator[tuple[int, str]]:
    """Imports of the library, but of what may be borrowed: the line, and what it does."""
    own = [step.name for step in lesson.steps]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "minibert" and alias.name != DOOR:
                    yield node.lineno, f"imports the library's {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.split(".")[0] == "minibert" and module != DOOR:
                yield node.lineno, f"imports from the library's {module}"
            for alias in node.names:
                if module == DOOR and alias.name in own:
                    yield node.lineno, f"borrows the library's {alias.name!r}"


def line_of(error: BaseException, path: Path) -> int | None:
    """The last line of a file that an error came through."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return lines[-1] if lines else None
