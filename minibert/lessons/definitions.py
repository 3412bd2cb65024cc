"""A function of the library as lessons tell it: its own text, without guards and traces.

Nothing here is written down a second time.  Header, docstring and body are cut out of the source;
what is left out is what a lesson has no use for: checks of the input, and the trace.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

MADE = "<minibert"  # how the file names begin of what is made from a definition's text
GUARDS = ("check", "checked_ids", "check_windows", "note")  # calls that compute nothing


@dataclass(frozen=True)
class Definition:
    """One function, as text and as what that text means."""

    name: str
    module: ModuleType
    header: str  # from "def" to the colon
    docstring: str  # not indented
    body: str  # indented by four
    line: int  # in its file
    names: tuple[str, ...]  # that header and body read, in alphabetical order

    @property
    def place(self) -> str:
        """Its file and line, as in 'kernels/reference.py:142'."""
        parts = Path(inspect.getfile(self.module)).parts[-3:]
        begin = next(i for i, part in enumerate(parts) if part in ("minibert", "kernels"))
        return f"{'/'.join(parts[begin:])}:{self.line}"

    @property
    def code(self) -> str:
        """The function without its docstring."""
        return f"{self.header}\n{self.body}"

    @property
    def digest(self) -> str:
        """Eight letters that change when the body does."""
        return hashlib.sha256(self.body.encode()).hexdigest()[:8]

    def made_in(self, names: dict[str, Any], code: str = "") -> Callable[..., Any]:
        """The function that `code`, or its own, describes, where names mean `names`."""
        made: dict[str, Any] = {}
        text = f"from __future__ import annotations\n{code or self.code}"
        exec(compile(text, f"{MADE} {self.name}>", "exec"), names, made)
        function: Callable[..., Any] = made[self.name]
        return function


def definition(function: Callable[..., Any]) -> Definition:
    """What lessons tell of a function."""
    module = inspect.getmodule(function)
    if module is None:
        raise TypeError(f"{function!r} stands in no module")
    source = textwrap.dedent(inspect.getsource(function)).encode()
    whole = _function(source)
    dropped = _dropped_arguments(whole)
    source = _without(source, list(_cuts(whole)))
    node = _function(source)
    lines = source.decode().splitlines()
    first = node.body[0]
    return Definition(
        name=node.name,
        module=module,
        header="\n".join(lines[: first.lineno - 1]),
        docstring=_without_arguments(ast.get_docstring(node) or "", dropped),
        body="\n".join(lines[first.end_lineno :]).strip("\n"),
        line=inspect.getsourcelines(function)[1],
        names=tuple(sorted(names_in(node) - {node.name})),
    )


def names_in(tree: ast.AST) -> set[str]:
    """All names that a piece of code reads."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _function(source: bytes) -> ast.FunctionDef:
    """The one function of a text."""
    (node,) = ast.parse(source).body
    if not isinstance(node, ast.FunctionDef):
        raise TypeError("a lesson is about a function")
    return node


# A cut: first and last place, as (line, column); column -1 stands for whole lines.
Cut = tuple[tuple[int, int], tuple[int, int]]


def _cuts(whole: ast.FunctionDef) -> Iterator[Cut]:
    """What a lesson leaves out of a function."""
    if dropped := _dropped_arguments(whole):
        arguments = whole.args.args
        before = arguments[len(arguments) - len(dropped) - 1]
        yield _end(before), _end(whole.args.defaults[-1])
    for node in ast.walk(whole):
        if isinstance(node, ast.stmt) and _is_guard(node):
            yield (node.lineno, -1), (_end(node)[0], -1)
        elif isinstance(node, ast.Call) and "trace" in map(_name, node.args):
            at = [_name(argument) for argument in node.args].index("trace")
            if at:
                yield _end(node.args[at - 1]), _end(node.args[-1])
            else:  # note(trace, name, value): the value
                yield (node.lineno, node.col_offset), (node.args[2].lineno, node.args[2].col_offset)
                yield _end(node.args[2]), _end(node)


def _is_guard(node: ast.stmt) -> bool:
    """Whether a statement only checks, or only writes a trace."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return _name(node.value.func) in GUARDS
    if isinstance(node, ast.If):
        return isinstance(node.body[0], ast.Raise) or ast.unparse(node.test) == "trace is not None"
    return False


def _dropped_arguments(whole: ast.FunctionDef) -> list[str]:
    """The argument `trace` and what stands behind it."""
    names = [argument.arg for argument in whole.args.args]
    return names[names.index("trace") :] if "trace" in names else []


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _end(node: ast.expr | ast.arg | ast.stmt) -> tuple[int, int]:
    return node.end_lineno or node.lineno, node.end_col_offset or 0


def _without(source: bytes, cuts: list[Cut]) -> bytes:
    """A text without some of its parts; those that lie in others go with them."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def offset(place: tuple[int, int], last: bool) -> int:
        line, column = place
        return starts[line - 1 + last] if column < 0 else starts[line - 1] + column

    kept, at = b"", 0
    for begin, end in sorted((offset(a, False), offset(b, True)) for a, b in cuts):
        if begin >= at:
            kept, at = kept + source[at:begin], end
    return kept + source[at:]


def _without_arguments(docstring: str, dropped: list[str]) -> str:
    """A docstring that says nothing of some arguments."""
    kept, skipping = [], False
    for line in docstring.splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            skipping = line.strip().partition(":")[0] in dropped
        elif not line.startswith("     "):
            skipping = False
        if not skipping:
            kept.append(line)
    return "\n".join(kept)
