"""Runs PTX text on NumPy arrays, to test compiled CUDA kernels without a GPU.

A register is an array over all threads of the blocks that run together; each block has its own
shared memory. Threads have their own program counters; the smallest one among the threads that
can run is executed next, for all threads that are there, which brings divergent threads together
again at the end of a branch.

What a GPU would let pass is an error here: reading a register or shared memory never written, an
address outside the arrays given or not aligned, a warp instruction without all its lanes, and a
race in shared memory. A race is two accesses to a word, one of them a write, by threads of two
warps without a `bar.sync` between them, or by two lanes of a warp without a `.sync` instruction
between them. A copy of `cp.async` is made when its thread waits for it, never earlier. Not seen:
races in global memory, between blocks or not, and an address that strays into another array.

The rooms: ptx_text.py reads, ptx_arithmetic.py computes, ptx_memory.py checks accesses,
ptx_instructions.py decodes; this file executes. It knows the instructions of our kernels and their
close relatives; any other is an error that names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ptx_arithmetic import F32, KINDS, WARP, Array, integer
from ptx_instructions import Lanes, Register, Step, decode
from ptx_memory import AsyncCopies, GlobalMemory, SharedMemory
from ptx_text import Entry, MachineError, parse

STEP_LIMIT = 5_000_000  # jumps and waits; beyond it the kernel is taken to hang
TOGETHER = 4096  # threads of the blocks that run together; more would leave the caches
RESERVED = 1024  # bytes of shared memory that sm_90 keeps, so address 0 is never the right one
RUNNING, WAITING, DONE = 0, 1, 2


@dataclass
class Statistics:
    """What a launch executed.

    Attributes:
        by_opcode: instructions times the warps that executed them, as of "ld.shared.v4.f32".
        shared_bank_conflicts: extra cycles of `ldmatrix`, over all blocks.
    """

    by_opcode: Counter[str] = field(default_factory=Counter)
    shared_bank_conflicts: int = 0


class Machine:
    """A launch: registers, memories and decoded code for some blocks at a time."""

    def __init__(
        self,
        entry: Entry,
        grid: tuple[int, int, int],
        block: int,
        dynamic_shared: int,
        arrays: Sequence[Array],
        parameters: dict[str, Array],
    ) -> None:
        self.entry, self.block, self.parameters = entry, block, parameters
        self.grid = np.argwhere(np.ones(grid[::-1]))[:, ::-1]  # [blocks, 3]
        rounds = -(-len(self.grid) * block // TOGETHER)
        self.blocks, self.first = -(-len(self.grid) // rounds), 0  # that run together, from which
        self.threads = self.blocks * block
        self.at = 0  # the instruction that is executed
        self.statistics = Statistics()
        self.registers: dict[str, Register] = {}
        self.masks: dict[bytes, Lanes] = {}
        self.everyone = self.lanes(np.ones(self.threads, bool))
        self.memory = GlobalMemory(arrays)
        align = max(entry.variables.values(), default=16)
        start = (RESERVED // align + 1 | 1) * align  # aligned as declared and not better
        self.shared = SharedMemory(start, dynamic_shared, self.blocks, block // WARP)
        self.copies = AsyncCopies(self.memory, self.shared, self.threads)
        thread = np.arange(self.threads, dtype=np.uint32) % block
        sizes = {"%dynamic_smem_size": dynamic_shared, "%ntid.x": block}
        for axis, count in zip("xyz", grid, strict=True):
            sizes |= {f"%nctaid.{axis}": count, f"%ctaid.{axis}": 0}
        self.special = {n: np.full(self.threads, size, np.uint32) for n, size in sizes.items()}
        self.special |= {"%tid.x": thread, "%laneid": thread % WARP}

    # What instructions ask

    def register(self, name: str) -> Register:
        """A register by its name."""
        if name not in self.registers:
            dtype = KINDS[self.entry.registers[name]]
            dtype = dtype if dtype.kind == "b" else np.dtype(f"u{dtype.itemsize}")
            self.registers[name] = Register(np.zeros(self.threads, dtype), len(self.registers))
        return self.registers[name]

    def lanes(self, where: Array) -> Lanes:
        """The lanes of a mask, one and the same object whenever they are the same."""
        key = where.tobytes()
        if key not in self.masks:
            self.masks[key] = Lanes(where.copy())
        return self.masks[key]

    def count_conflicts(self, address: Array) -> None:
        """Count the cycles a matrix access needs beyond one for eight rows of 16 bytes."""
        rows = np.sort(address.reshape(-1, 8) // 16, axis=1)
        fresh = np.diff(rows, axis=1, prepend=-1) != 0
        banks = (rows[:, :, None] % 8 == np.arange(8)) & fresh[:, :, None]
        self.statistics.shared_bank_conflicts += int((banks.sum(1).max(1) - 1).sum())

    # Running

    def run(self) -> Statistics:
        """Execute all blocks, as many at a time as run together."""
        try:
            self.steps: list[Step] = []
            for instruction in self.entry.code:
                self.at = len(self.steps)
                self.steps.append(decode(self, instruction))
            self.counts = [0] * len(self.steps)
            with np.errstate(all="ignore"):
                while self.first < len(self.grid):
                    self._run_blocks(self.grid[self.first : self.first + self.blocks])
                    self.first += self.blocks
        except MachineError as error:
            raise MachineError(self._locate(error), error.thread, error.address) from error
        for count, instruction in zip(self.counts, self.entry.code, strict=True):
            self.statistics.by_opcode[instruction.opcode] += count
        return self.statistics

    def _locate(self, error: MachineError) -> str:
        """An error's text with the kernel, the instruction and who did it."""
        instruction = self.entry.code[self.at]
        text = f"{self.entry.name[:60]}, PTX line {instruction.line}, `{instruction.text[:160]}`: "
        if error.thread is None:
            return f"{text}{error}"
        block = tuple(self.grid[self.first + error.thread // self.block].tolist())
        place = "" if error.address is None else f", address {error.address:#x}"
        return f"{text}{error} (block {block}, thread {error.thread % self.block}{place})"

    def _run_blocks(self, indices: Array) -> None:
        present = len(indices) * self.block
        for axis, places in zip("xyz", indices.T, strict=True):
            self.special[f"%ctaid.{axis}"][:present] = np.repeat(places, self.block)
        self.shared.reset()
        self.copies.reset()
        self.written = np.zeros((len(self.registers), self.threads), bool)
        # For each register the lanes last seen to have written it, to look it up only once.
        self.known: list[Lanes | None] = [None] * len(self.registers)
        self.counter = np.zeros(self.threads, np.int64)
        self.state = np.where(np.arange(self.threads) < present, RUNNING, DONE)
        self.jumps = 0
        while self._advance():
            pass

    def _advance(self) -> bool:
        """Execute from the smallest program counter on until threads part or meet."""
        running = self.state == RUNNING
        if not running.any():
            return self._release()
        counters = self.counter[running]
        first = int(counters.min())
        later = counters[counters > first]
        stop = int(later.min()) if later.size else len(self.steps)
        self._execute(first, self.lanes(running & (self.counter == first)), stop)
        return True

    def _release(self) -> bool:
        """Let the threads at a barrier go on, as no other can; false when all have ended."""
        waiting = self.state == WAITING
        self.state[waiting] = RUNNING
        self.shared.barrier()
        return bool(waiting.any())

    def _execute(self, pc: int, lanes: Lanes, stop: int) -> None:
        """Execute from `pc` on until `stop` or until these lanes part or wait."""
        steps, counts, known, everyone = self.steps, self.counts, self.known, self.everyone
        while pc >= 0:
            step = steps[pc]
            self.at = pc
            counts[pc] += len(lanes.warps)
            now = lanes if step.guard is None else self._guarded(step, lanes)
            if step.control:
                pc = self._control(step, pc, lanes, now)
            else:
                if len(now.threads):
                    for slot in step.reads:
                        if known[slot] is not now and known[slot] is not everyone:
                            self._check_written(slot, now)
                    if step.meets:
                        self._meet(step, now)
                    step.execute(now)
                    if step.meets:
                        self.shared.warp_sync(now.warps)
                    for slot in step.writes:
                        if known[slot] is not now and known[slot] is not everyone:
                            self.written[slot] |= now.where
                            known[slot] = now
                pc += 1
            if pc >= stop:
                self.counter[lanes.threads] = pc
                return

    def _meet(self, step: Step, lanes: Lanes) -> None:
        """Forbid that a lane of a warp is missing where they must all be together."""
        if lanes.missing is not None:
            raise MachineError("divergent collective: lane is missing", lanes.missing)
        if step.members is not None and (step.members[lanes.threads] != 0xFFFFFFFF).any():
            raise MachineError("a warp instruction of some lanes only is not known")

    def _guarded(self, step: Step, lanes: Lanes) -> Lanes:
        """Those of the lanes whose guard holds."""
        assert step.guard
        self._check_written(step.guard.slot, lanes)
        return self.lanes((step.guard.array ^ step.negate) & lanes.where)

    def _check_written(self, slot: int, lanes: Lanes) -> None:
        unwritten = lanes.where & ~self.written[slot]
        if unwritten.any():
            name = next(name for name, r in self.registers.items() if r.slot == slot)
            what = f"register {name} read before it was written"
            raise MachineError(what, int(unwritten.argmax()))
        self.known[slot] = lanes

    def _control(self, step: Step, pc: int, lanes: Lanes, now: Lanes) -> int:
        """The next program counter of all lanes, or -1 when they part or wait."""
        self.jumps += 1
        if self.jumps > STEP_LIMIT:
            raise MachineError(f"not ended after {STEP_LIMIT} jumps and waits")
        if not len(now.threads):
            return pc + 1
        if step.control == "branch" and now is lanes:
            return step.goal
        self.counter[lanes.threads] = pc + 1
        if step.control == "branch":
            self.counter[now.threads] = step.goal
        elif step.control == "end":
            self.state[now.threads] = DONE
        else:
            self._arrive(now)
        return -1

    def _arrive(self, lanes: Lanes) -> None:
        """Wait at a barrier, at which the lanes of a warp that have not ended must be together."""
        missing = ((self.state != DONE) & ~lanes.where).reshape(-1, WARP)
        missing &= lanes.where.reshape(-1, WARP).any(1)[:, None]
        if missing.any():
            raise MachineError("divergent barrier: lane is missing", int(missing.argmax()))
        self.state[lanes.threads] = WAITING


def _argument(kind: str, value: Any) -> Array:
    """An argument as a number of a parameter's type: an array gives its address."""
    if isinstance(value, np.ndarray):
        value = value.ctypes.data
    return np.array(value, F32) if kind == "f32" else integer(int(value), KINDS[kind])


def run(
    ptx: str,
    grid: tuple[int, int, int],
    block: int,
    arguments: Sequence[Any],
    *,
    memory: Sequence[Array] = (),
    dynamic_shared: int = 0,
) -> Statistics:
    """Execute the kernel of a PTX text.

    Args:
        ptx: the text.
        grid: blocks along x, y and z.
        block: threads of a block, a multiple of 32.
        arguments: one for each parameter: an array, whose address the kernel gets, or a number. A
            number for a 64-bit parameter may be an address in one of `memory`. Arrays are
            C-contiguous, and read-only for the kernel if they are for NumPy.
        memory: further arrays the kernel may touch.
        dynamic_shared: bytes of shared memory of the variables without a size.

    Returns:
        What was executed.

    Raises:
        MachineError: the kernel did something wrong, or uses PTX that the machine does not know.
        ValueError: the arguments do not fit the kernel.
    """
    entry = parse(ptx)
    if block % WARP or block < WARP:
        raise ValueError(f"blocks of {block} threads, expected a multiple of {WARP}")
    if block > entry.max_threads:
        raise MachineError(f"{entry.name[:60]}: {block} threads, declared {entry.max_threads}")
    if len(arguments) != len(entry.parameters):
        raise ValueError(f"{len(arguments)} arguments for {len(entry.parameters)} parameters")
    parameters = {
        name: _argument(kind, value)
        for (name, kind), value in zip(entry.parameters.items(), arguments, strict=True)
    }
    arrays = [*(value for value in arguments if isinstance(value, np.ndarray)), *memory]
    return Machine(entry, grid, block, dynamic_shared, arrays, parameters).run()
