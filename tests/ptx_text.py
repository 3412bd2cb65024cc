"""The text of a compiled kernel: its parameters, registers, shared variables and instructions.

It is read as far as numba.cuda writes it: one entry, without functions, and no braces inside but
those of vector operands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod


class MachineError(AssertionError):
    """A kernel did what it must not, or uses PTX that the machine does not know.

    Attributes:
        thread: which did it, counted over all blocks that run together; None if all.
        address: where, in bytes.
    """

    def __init__(self, what: str, thread: int | None = None, address: int | None = None) -> None:
        super().__init__(what)
        self.thread, self.address = thread, address


@dataclass(frozen=True)
class Instruction:
    """An instruction: its line, all of it, and its guard ("" if none), opcode and operands."""

    line: int
    text: str
    guard: str
    opcode: str
    operands: tuple[str, ...]


@dataclass
class Entry:
    """A kernel: the types of parameters and registers by name, in order, and what it executes."""

    name: str
    max_threads: int
    parameters: dict[str, str] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, int] = field(default_factory=dict)  # alignment of dynamic shared memory
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # places in `code`


COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{(.*)\}", re.S)
THREADS = re.compile(r"\.(?:maxntid|reqntid)\s+(\d[\d\s,]*)")
SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\s*\[\s*\]")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
LABEL = re.compile(r"\s*([\w$]+)\s*:(?!:)")
INSTRUCTION = re.compile(r"(?:@(!?[\w$%]+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?$")
COMMA = re.compile(r"\s*,\s*(?![^{]*\})")  # one that stands in no braces


@lru_cache(maxsize=32)
def parse(text: str) -> Entry:
    """Read the only entry of a PTX text.

    Raises:
        MachineError: the text has a form that this reader does not know.
    """
    text = COMMENT.sub(lambda found: " " + "\n" * found.group().count("\n"), text)
    found = ENTRY.search(text)
    if not found:
        raise MachineError("no entry in the PTX text")
    name, parameters, limits, body = found.groups()
    threads = THREADS.search(limits)
    entry = Entry(name, prod(map(int, threads[1].split(","))) if threads else 1024)
    for words in (parameter.split() for parameter in parameters.split(",") if parameter.strip()):
        entry.parameters[words[-1]] = words[1][1:]
    for align, variable in SHARED.findall(text):
        entry.variables[variable] = int(align)
    line = 1 + text.count("\n", 0, found.start(4))
    for statement in body.split(";"):
        line = _read_statement(entry, statement, line)
    entry.code.append(Instruction(line, "}", "", "ret", ()))  # where a label may stand
    return entry


def _read_statement(entry: Entry, statement: str, line: int) -> int:
    """Add a statement, which may have labels before it, to the entry; the line it ends on."""
    while found := LABEL.match(statement):
        entry.labels[found[1]] = len(entry.code)
        line += found.group().count("\n")
        statement = statement[found.end() :]
    end = line + statement.count("\n")
    start = end - statement.lstrip().count("\n")
    text = " ".join(statement.split())
    if found := REGISTERS.match(text):
        for name in found[2].split(","):
            prefix, _, count = name.strip().rstrip(">").partition("<")
            names = [f"{prefix}{i}" for i in range(int(count))] if count else [prefix]
            entry.registers |= dict.fromkeys(names, found[1])
    elif found := INSTRUCTION.match(text):
        guard, opcode, operands = found.groups()
        split = tuple(COMMA.split(operands)) if operands else ()
        entry.code.append(Instruction(start, text, guard or "", opcode, split))
    elif text and not text.startswith(".pragma"):
        raise MachineError(f"PTX line {start}: cannot read `{text[:160]}`")
    return end
