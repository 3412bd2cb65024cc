"""What each instruction does: its text becomes a function of the lanes that execute it.

Arithmetic stands in a table (ptx_arithmetic.py); here are the instructions that access memory or
change what is executed next.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ptx_arithmetic import KINDS, OPERATIONS, WARP, Array, Operation, number
from ptx_memory import ELEMENTS, Access
from ptx_text import Instruction, MachineError


class Lanes:
    """Threads that execute together.

    Attributes:
        where: whether each thread is one of them.
        threads: their numbers.
        warps: the numbers of their warps.
        all: whether they are all threads.
        missing: a thread of these warps that is not among them, or None.
    """

    def __init__(self, where: Array) -> None:
        self.where, self.threads = where, np.flatnonzero(where)
        self.all = len(self.threads) == len(where)
        by_warp = where.reshape(-1, WARP)
        some = by_warp.any(1)
        self.warps = np.flatnonzero(some)
        missing = np.flatnonzero(some[:, None] & ~by_warp)
        self.missing = int(missing[0]) if len(missing) else None


Execute = Callable[[Lanes], None]


@dataclass
class Register:
    """A value for every thread, and its place in the machine's record of what was written."""

    array: Array
    slot: int


class Step:
    """An instruction with its operands as arrays over all threads.

    Attributes:
        execute: does it, but for what `control` says.
        reads: slots of the registers it reads; `writes` likewise.
        guard: only lanes where this is true, or false if `negate`, execute it.
        meets: whether all lanes of a warp execute it together.
        members: masks of the lanes that meet, if the instruction has them.
        control: 'branch' to the instruction number `goal`, 'barrier', 'end', or "" for none.
    """

    def __init__(self, machine: Any, instruction: Instruction) -> None:
        self.machine, self.operands = machine, instruction.operands
        self.execute: Execute = lambda lanes: None
        self.reads: list[int] = []
        self.writes: list[int] = []
        guard, opcode = instruction.guard, instruction.opcode
        self.negate = guard.startswith("!")
        self.guard = machine.register(guard.lstrip("!")) if guard else None
        self.meets = opcode.startswith(("bar.warp.", "shfl.", "ldmatrix.", "mma."))
        self.members: Array | None = None
        if opcode.startswith(("bar.warp.", "shfl.")):
            self.members = self.source(self.operands[-1], "u32")
            self.operands = self.operands[:-1]
        self.control = CONTROL.get(opcode, "")
        self.goal = machine.entry.labels[self.operands[0]] if self.control == "branch" else 0
        if self.control == "barrier" and self.operands != ("0",):
            raise ValueError("only barrier 0 of all threads is known")

    def source(self, text: str, kind: str) -> Array:
        """The array of a register, or of a number or address that all threads have."""
        machine, dtype = self.machine, KINDS[kind]
        if text in machine.entry.registers:
            register = machine.register(text)
            self.reads.append(register.slot)
            array = register.array
        elif text in machine.special:
            array = machine.special[text]
        else:
            shared = text in machine.entry.variables
            value = np.array(machine.shared.start, dtype) if shared else number(text, kind)
            return np.broadcast_to(value, machine.threads)
        if array.itemsize < dtype.itemsize or (array.dtype.kind == "b") != (kind == "pred"):
            raise ValueError(f"{text} is no .{kind}")
        return array.view(dtype)[:: array.itemsize // dtype.itemsize]  # the lower part

    def target(self, text: str, kind: str) -> Array:
        """The array to assign results of a type to; a wider register extends them."""
        if text == "_":
            return np.empty(self.machine.threads, KINDS[kind])
        register, dtype = self.machine.register(text), KINDS[kind]
        self.writes.append(register.slot)
        wide = register.array.itemsize
        if wide < dtype.itemsize or (register.array.dtype.kind == "b") != (kind == "pred"):
            raise ValueError(f"{text} is no .{kind}")
        if wide > dtype.itemsize:
            dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{wide}")
        return register.array.view(dtype)

    def access(self, text: str, size: int) -> Callable[[Array], Access]:
        """A function from thread numbers to their accesses of an address operand."""
        base, _, offset = text.strip("[ ]").replace(" ", "").partition("+")
        array = self.source(base, self.machine.entry.registers.get(base, "b64").replace("b", "u"))
        step = int(offset or "0", 0)
        return lambda threads: Access(threads, array[threads].astype(np.int64) + step, size)


def decode(machine: Any, instruction: Instruction) -> Step:
    """The step of an instruction.

    Raises:
        MachineError: the opcode or the form of the operands is not known.
    """
    opcode = instruction.opcode
    try:
        step = Step(machine, instruction)
        packs = opcode.startswith("mov.b") and any(x.startswith("{") for x in step.operands)
        if step.control:
            return step
        if opcode in OPERATIONS and not packs:
            step.execute = _calculate(step, OPERATIONS[opcode])
            return step
        for pattern, make in FAMILIES.items():
            if found := re.fullmatch(pattern, opcode):
                step.execute = make(step, *found.groups())
                return step
    except (KeyError, ValueError) as error:
        raise MachineError(f"cannot read the operands of {opcode}: {error}") from error
    raise MachineError(f"unknown opcode {opcode}")


def _assign(out: Array, value: Array, lanes: Lanes) -> None:
    if lanes.all:
        out[...] = value
    else:
        np.copyto(out, value, where=lanes.where, casting="unsafe")


def _names(text: str) -> list[str]:
    """The parts of a vector in braces or of a pair with a bar; else the one name."""
    return re.split(r"\s*[,|]\s*", text.strip("{} "))


def _calculate(step: Step, operation: Operation) -> Execute:
    texts = [name for text in step.operands[1:] for name in _names(text)]
    sources = [step.source(*pair) for pair in zip(texts, operation.sources, strict=True)]
    pairs = list(zip(_names(step.operands[0]), operation.results, strict=False))
    outs = [(step.target(name, kind), KINDS[kind]) for name, kind in pairs]
    function, several = operation.function, len(operation.results) > 1

    def execute(lanes: Lanes) -> None:
        values = function(*sources)
        for (out, dtype), value in zip(outs, values if several else (values,), strict=False):
            extends = out.itemsize > dtype.itemsize
            _assign(out, value.astype(dtype) if extends else value, lanes)

    return execute


def _pack(step: Step, bits: str) -> Execute:
    """`mov` of a vector of parts to a register, or the reverse."""
    into, of = (
        (f"b{int(bits) // len(names)}",) * len(names) for names in map(_names, step.operands)
    )

    def repack(*parts: Array) -> Array:
        pieces = np.stack(parts, axis=1).view(KINDS[into[0]]).T
        return pieces if len(into) > 1 else pieces[0]

    return _calculate(step, Operation(repack, into, of))


def _load_parameter(step: Step, kind: str) -> Execute:
    value = step.machine.parameters[step.operands[1].strip("[ ]")].view(KINDS[kind])
    out = step.target(step.operands[0], kind)
    return lambda lanes: _assign(out, value, lanes)


def _memory(step: Step, space: str, vector: str | None, kind: str) -> tuple[Any, int]:
    """The memory of a load or store, and the size of an access."""
    size = int(vector or 1) * KINDS[kind].itemsize
    if size > 16 or (space == "shared" and size < 4):
        raise ValueError(f"an access of {size} bytes")
    return step.machine.shared if space == "shared" else step.machine.memory, size


def _load(step: Step, *form: str) -> Execute:
    memory, size = _memory(step, *form)
    outs = [step.target(name, form[2]) for name in _names(step.operands[0])]
    access, dtype = step.access(step.operands[1], size), KINDS[form[2]]

    def execute(lanes: Lanes) -> None:
        values = memory.load(access(lanes.threads)).view(dtype).reshape(-1, len(outs))
        for k, out in enumerate(outs):
            out[lanes.threads] = values[:, k]

    return execute


def _store(step: Step, *form: str) -> Execute:
    memory, size = _memory(step, *form)
    sources = [step.source(name, form[2]) for name in _names(step.operands[1])]
    access = step.access(step.operands[0], size)

    def execute(lanes: Lanes) -> None:
        values = np.stack([source[lanes.threads] for source in sources], axis=1)
        memory.store(access(lanes.threads), values.view(ELEMENTS[size])[:, 0])

    return execute


def _copy(step: Step) -> Execute:
    size = int(step.operands[2])
    to, source = (step.access(text, size) for text in step.operands[:2])
    bytes_read = step.source((*step.operands, str(size))[3], "u32")

    def execute(lanes: Lanes) -> None:
        threads, used = lanes.threads, bytes_read[lanes.threads]
        some = (used != 0) & (used != size)
        to(threads).forbid(some, f"cp.async that reads neither 0 nor {size} bytes")
        step.machine.copies.begin(to(threads), source(threads), used != 0)

    return execute


def _wait(step: Step) -> Execute:
    kept = int(step.operands[0]) if step.operands else -1  # wait_all: the open group too
    return lambda lanes: step.machine.copies.wait(kept, lanes.where)


def _load_matrices(step: Step, count: str, transposed: str | None) -> Execute:
    outs = [step.target(name, "b32") for name in _names(step.operands[0])]
    access, matrices = step.access(step.operands[1], 16), int(count)
    if len(outs) != matrices:
        raise ValueError(f"{len(outs)} registers for {matrices} matrices")

    def execute(lanes: Lanes) -> None:
        rows = access(lanes.threads[lanes.threads % WARP < 8 * matrices])
        step.machine.count_conflicts(rows.address)
        tiles = step.machine.shared.load(rows, for_warp=True).view(np.uint16)
        tiles = tiles.reshape(-1, matrices, 8, 8)  # [warps, matrices, row, column]
        if transposed:
            tiles = tiles.swapaxes(2, 3)
        words = np.ascontiguousarray(tiles).view(np.uint32)  # [warps, matrices, 8, 4]
        for k, out in enumerate(outs):
            out[lanes.threads] = words[:, k].reshape(-1)

    return execute


# Opcodes that are not in the table of arithmetic; groups are arguments of the function.
ACCESS = r"\.(global|shared)(?:\.nc|\.ca|\.cg|\.cs)?(?:\.v([24]))?\.([busf]\d+)"
SHARED = r"\.shared(?:::cta)?"
FAMILIES: dict[str, Callable[..., Execute]] = {
    r"mov\.b(32|64)": _pack,
    r"ld\.param\.([busf]\d+)": _load_parameter,
    "ld" + ACCESS: _load,
    "st" + ACCESS: _store,
    rf"cp\.async\.c[ag]{SHARED}\.global(?:\.L2::\d+B)?": _copy,
    r"cp\.async\.commit_group": lambda step: (
        lambda lanes: step.machine.copies.commit(lanes.threads)
    ),
    r"cp\.async\.wait_(?:group|all)": _wait,
    rf"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?{SHARED}\.b16": _load_matrices,
    r"bar\.warp\.sync": lambda step: lambda lanes: None,
}
CONTROL = {
    **dict.fromkeys(("bra", "bra.uni"), "branch"),
    **dict.fromkeys(("bar.sync", "barrier.sync.aligned", "barrier.cta.sync.aligned"), "barrier"),
    **dict.fromkeys(("ret", "ret.uni", "exit"), "end"),
}
