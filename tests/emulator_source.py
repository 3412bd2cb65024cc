"""Translates a kernel's source into a generator, for the CUDA emulator."""

from __future__ import annotations

import ast
import inspect
import textwrap
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from emulator_lanes import COLLECTIVES, OPERATIONS
from emulator_numbers import EmulatorError
from numba import cuda as numba_cuda

from minibert.kernels.cuda.language import Instruction

# ---------------------------------------------------------------- translation of the source


@dataclass(frozen=True, eq=False)
class Operation:
    """One place of the source that waits for other threads, or runs together with them."""

    kind: str  # 'block', 'warp' or 'thread': who must arrive
    name: str
    perform: Any
    place: str

    def __str__(self) -> str:
        return f"{self.name} at {self.place}"


@dataclass(frozen=True)
class Translation:
    """The source of a function, translated.

    Args:
        code: of a module that defines the function.
        names: what it uses: objects as the kernel has them, and operations.
        waits: whether it is a generator.
    """

    code: Any
    names: dict[str, Any]
    waits: bool


FUNCTION = "emulator_function"  # what a translated function is called
TRANSLATIONS: weakref.WeakKeyDictionary[FunctionType, Translation] = weakref.WeakKeyDictionary()


def translate(function: FunctionType) -> Translation:
    """Turn calls that wait into yields.  A kernel becomes a generator in any case."""
    if function not in TRANSLATIONS:
        TRANSLATIONS[function] = Translator(function).translation()
    return TRANSLATIONS[function]


class Translator(ast.NodeTransformer):
    """Translates one function."""

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        self.file = function.__code__.co_filename
        self.waits = not getattr(function, "is_device_function", False)
        self.made: dict[str, Any] = {}
        self.found = visible_names(function)

    def translation(self) -> Translation:
        tree = ast.parse(textwrap.dedent(inspect.getsource(self.function)))
        ast.increment_lineno(tree, self.function.__code__.co_firstlineno - 1)
        head = tree.body[0]
        if not isinstance(head, ast.FunctionDef):
            raise EmulatorError(f"{self.function.__name__} is not made by def")
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        head.body = [self.visit(node) for node in head.body]
        head.name, head.decorator_list, head.returns = FUNCTION, [], None
        head.args.defaults = [ast.Constant(None) for _ in head.args.defaults]
        for argument in (*head.args.posonlyargs, *head.args.args, *head.args.kwonlyargs):
            argument.annotation = None
        if self.waits:
            head.body += ast.parse("if False:\n    yield").body
        code = compile(ast.fix_missing_locations(tree), self.file, "exec")
        used = {name: self.found[name] for name in names & self.found.keys()}
        return Translation(code, used | self.made, self.waits)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """`x: T = value` -> `x = value`, so that T need not be known."""
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        plain = ast.Assign([node.target], node.value)
        return self.visit(ast.copy_location(plain, node))

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """A Python float is a float64."""
        return self.name_for(np.float64(node.value), node) if type(node.value) is float else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        callee = self.callee(node.func)
        if isinstance(callee, numba.types.Integer) and self.fits(node.args[0], callee.bitwidth):
            return node.args[0]
        operation = self.operation(callee, node)
        if operation is not None:
            if node.keywords:
                raise EmulatorError(f"{operation}: operands must not have names")
            request = ast.Tuple([self.name_for(operation, node), *node.args], ast.Load())
            waiting: ast.AST = ast.Yield(ast.copy_location(request, node))
        elif getattr(callee, "is_device_function", False) and translate(callee).waits:
            waiting = ast.YieldFrom(node)
        else:
            return node
        self.waits = True
        return ast.copy_location(waiting, node)

    def fits(self, node: ast.AST, bits: int) -> bool:
        """Whether an expression is a constant that casts to integers do not change."""
        found = self.found.get(node.id) if isinstance(node, ast.Name) else None
        value = node.value if isinstance(node, ast.Constant) else found
        return isinstance(value, int | np.integer) and 0 <= value < 1 << (bits - 1)

    def callee(self, node: ast.AST) -> Any:
        """What is called: an object, or the name of a word of numba.cuda."""
        if isinstance(node, ast.Name):
            return self.found.get(node.id)
        is_word = isinstance(node, ast.Attribute) and self.callee(node.value) is numba_cuda
        return node.attr if is_word else None

    def operation(self, callee: Any, node: ast.Call) -> Operation | None:
        """What a call waits for; None: nothing."""
        place = f"{Path(self.file).name}:{node.lineno}"
        if isinstance(callee, str) and callee in COLLECTIVES:
            kind, name, perform = COLLECTIVES[callee]
            return Operation(kind, name, perform, place)
        if isinstance(callee, Instruction) and callee.name in OPERATIONS:
            kind, make = OPERATIONS[callee.name]
            return Operation(kind, callee.name, make(*callee.parameters), place)
        return None

    def name_for(self, value: Any, node: ast.AST) -> ast.Name:
        """A name by which the translated source finds an object."""
        name = f"emulator_{len(self.made)}"
        self.made[name] = value
        return ast.copy_location(ast.Name(name, ast.Load()), node)


def visible_names(function: FunctionType) -> dict[str, Any]:
    """What the names of a function mean that are not its own variables."""
    code, names = function.__code__, dict(function.__globals__)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        names[name] = cell.cell_contents
    for name in (*code.co_varnames, *code.co_cellvars):
        names.pop(name, None)
    return names
