"""Runs CUDA kernels without a GPU, unmodified, and reports what is wrong with them.

`launch` translates the kernel's source so that each CUDA thread is a generator: a call of a barrier
or of an instruction of the whole warp becomes a `yield`, answered when all lanes have arrived.
Blocks run one after the other; the warps of a block one at a time, each until all of its lanes wait
at a barrier of the block.  So little runs beside each other, and a result may be right by luck.
That is why accesses are checked instead (see SharedMemory): that barriers are missing is reported
whatever the order of the threads, and copies arrive as late as they may.

Numbers: int32 that overflow are an error, unsigned numbers wrap, and between two casts integers
are exact, as in numba's 64 bits.  A Python float is a float64, as it is for numba, and must not be
stored as a float32.  Not seen: an integer that makes a float32 a float64 (numba's rule), races in
global memory, and integers that need more than 64 bits.
"""

from __future__ import annotations

import inspect
import itertools
import math
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from emulator_lanes import OPERATIONS
from emulator_memory import Array, GlobalArray, LocalArray, SharedArray, SharedMemory
from emulator_numbers import (
    CASTS,
    DTYPES,
    LANES,
    EmulatorError,
    Fault,
    Math,
    Statistics,
    exp2,
    pack2,
    stored_float32,
    uint32,
    uint64,
    unpack2,
)
from emulator_source import FUNCTION, Operation, translate
from numba import cuda as numba_cuda

from minibert.kernels.cuda.language import Instruction, Kernel

# Collectives after which a lane may rely on what other lanes of its warp did before.  By the letter
# of CUDA's manual only barriers order memory; shuffles and matrix instructions do in practice.
ORDERING = ("syncwarp", "shuffle", "load_fragments", "multiply_fragments")


# ---------------------------------------------------------------- threads


@dataclass(frozen=True)
class Three:
    """A position or a size."""

    x: int
    y: int = 1
    z: int = 1

    def __str__(self) -> str:
        return f"({self.x}, {self.y}, {self.z})"


@dataclass(eq=False)
class Thread:
    """A thread of the running block.

    Attributes:
        request: (operation, operands...) that the thread waits for; None: it has ended.
        answer: what the operation gave.
        copies: begun since the last commit_copies, as (shared address, bytes).
        groups: of copies, the oldest first.
        locals: how many local arrays it has made.
    """

    number: int
    index: Three
    run: Any = None
    request: tuple[Any, ...] | None = ()
    answer: Any = None
    copies: list[Any] = field(default_factory=list)
    groups: list[list[Any]] = field(default_factory=list)
    locals: int = 0

    @property
    def lane(self) -> int:
        return self.number % LANES


class Machine:
    """What runs one launch: the state that the words of the language work on.

    Args:
        kernel: to run.
        arguments: the arrays among its arguments, by their number, from 1.
        races: whether accesses to shared memory are checked.
    """

    def __init__(self, kernel: Kernel, arguments: dict[int, GlobalArray], races: bool) -> None:
        self.kernel, self.arguments = kernel, arguments
        self.warps = kernel.threads // LANES
        self.memory = SharedMemory(kernel.shared_bytes, self.warps, races)
        self.statistics = Statistics()
        self.cuda = Cuda(self)
        self.bound: dict[FunctionType, FunctionType] = {}
        self.codes: set[Any] = set()  # of the translated functions
        self.thread = Thread(0, Three(0, 0, 0))
        self.blocks_of_locals: dict[Any, np.ndarray] = {}

    # Words of the language

    def shared_address(self, array: Array, index: int) -> int:
        if not isinstance(array, SharedArray):
            raise Fault(f"shared_address of {array.name}")
        return uint32(array.offset + index * array.itemsize)

    def global_address(self, array: Array, index: int) -> int:
        if not isinstance(array, GlobalArray):
            raise Fault(f"global_address of {array.name}")
        return uint64(array.address + index * array.itemsize)

    def copy16(self, shared: int, source: int, count: int) -> None:
        self.memory.expect_place(shared)
        if count not in (0, 16):
            raise Fault(f"copy16 of {count} bytes")
        data = self.global_bytes(source) if count else np.zeros(16, np.uint8)
        self.memory.begin_copy(shared)
        self.thread.copies.append((shared, data))

    def global_bytes(self, address: int) -> np.ndarray:
        """The 16 bytes at an address of global memory."""
        array = self.arguments.get(((address >> (ADDRESS_BITS - 1)) + 1) >> 1)
        if array is None:
            raise Fault(f"copy16 from address {address}: out of bounds, in no argument")
        start = address - array.address
        if not 0 <= start <= array.bytes.size - 16:
            raise array.outside("copy16 from", start // array.itemsize)
        if address % 16:
            raise Fault(f"copy16 from {array.name}: misaligned, byte {start} of it")
        return array.bytes[start : start + 16]

    def commit_copies(self) -> None:
        self.thread.groups.append(self.thread.copies)
        self.thread.copies = []

    def wait_copies(self, pending: int) -> None:
        groups = self.thread.groups
        while len(groups) > pending:
            for shared, data in groups.pop(0):
                self.memory.end_copy(shared, data)

    # cuda.shared.array and cuda.local.array

    def shared_array(self, count: int, cast: Any, alignment: int = 128) -> SharedArray:
        if count == 0:
            return self.memory.array(cast, 0, DTYPES[cast])
        frame = sys._getframe(1)
        return self.memory.array((frame.f_code, frame.f_lasti), count, DTYPES[cast])

    def local_array(self, count: int, cast: Any) -> LocalArray:
        thread = self.thread
        key = thread.number // LANES, thread.locals, count, cast
        thread.locals += 1
        if key not in self.blocks_of_locals:
            self.blocks_of_locals[key] = np.empty((LANES, count), DTYPES[cast])
        return LocalArray(self.blocks_of_locals[key], thread.lane)

    # Running

    def run_block(self, position: Three, arguments: Sequence[Any], reverse: bool) -> None:
        """Run one block to its end."""
        self.statistics.blocks += 1
        self.cuda.blockIdx = position
        self.memory.clear()
        self.blocks_of_locals.clear()
        function = self.bind(self.kernel.function)
        threads = [Thread(i, Three(i, 0, 0)) for i in range(self.kernel.threads)]
        for thread in threads:
            thread.run = function(*arguments)
        warps = [threads[i : i + LANES] for i in range(0, len(threads), LANES)]
        while threads[0].request is not None:
            for warp in reversed(warps) if reverse else warps:
                self.run_warp(warp, reverse)
            if any(thread.request is not None for thread in threads):
                self.agreed(threads)
                self.statistics.barriers += 1
                self.memory.set_epoch(self.memory.epoch + 1)

    def run_warp(self, warp: list[Thread], reverse: bool) -> None:
        """Run a warp until its lanes wait for the block or have ended."""
        self.memory.enter(warp[0].number // LANES)
        while True:
            self.advance(warp[::-1] if reverse else warp)
            if all(thread.request is None for thread in warp):
                return
            operation = self.agreed(warp)
            if operation.kind == "block":
                return
            self.perform(operation, warp)
            if operation.name in ORDERING:
                self.memory.end_phase()

    def advance(self, threads: list[Thread]) -> None:
        """Run threads until each waits for others or has ended."""
        while threads:
            for thread in threads:
                self.resume(thread)
            threads = [t for t in threads if t.request and t.request[0].kind == "thread"]
            together: dict[Operation, list[Thread]] = {}
            for thread in sorted(threads, key=lambda thread: thread.number):
                together.setdefault(thread.request[0], []).append(thread)
            for operation, those in together.items():
                self.perform(operation, those)

    def resume(self, thread: Thread) -> None:
        """Run a thread until its next request."""
        self.thread = thread
        self.cuda.threadIdx = thread.index
        self.memory.stamp = self.memory.phase_base + thread.lane
        try:
            thread.request = thread.run.send(thread.answer)
        except StopIteration:
            thread.request = None
        except Exception as error:
            raise self.error(error, thread) from error
        thread.answer = None

    def perform(self, operation: Operation, threads: list[Thread]) -> None:
        """Run what threads of a warp, in the order of their lanes, wait for."""
        operands = list(zip(*(thread.request[1:] for thread in threads), strict=True))
        stamps = self.memory.phase_base + np.array([thread.lane for thread in threads])
        try:
            answers = operation.perform(self, stamps, *operands)
        except Exception as error:
            thread = threads[getattr(error, "row", None) or 0]
            raise self.error(error, thread, operation) from error
        if answers is not None:
            for thread, answer in zip(threads, answers, strict=True):
                thread.answer = answer

    def agreed(self, threads: list[Thread]) -> Operation:
        """What all threads wait for; an error if they do not wait for the same."""
        waiting = [thread.request[0] if thread.request else None for thread in threads]
        first = waiting[0]
        if first is not None and waiting.count(first) == len(waiting):
            return first
        groups = {name: [] for name in waiting}
        for thread, name in zip(threads, waiting, strict=True):
            groups[name].append(thread.number)
        parts = [f"{spans(them)}: {name or 'ended'}" for name, them in groups.items()]
        block = self.cuda.blockIdx
        raise EmulatorError(
            f"{self.kernel.name}: block {block}: divergent, threads {'; '.join(parts)}"
        )

    def error(
        self, error: Exception, thread: Thread, operation: Operation | None = None
    ) -> EmulatorError:
        """What to raise when a thread fails."""
        place = str(operation) if operation else self.position(error)
        what = str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}"
        block = self.cuda.blockIdx
        return EmulatorError(
            f"{self.kernel.name}: block {block}, thread {thread.number}, {place}: {what}"
        )

    def position(self, error: Exception) -> str:
        """File and line of a kernel where an exception comes from."""
        place, step = "?", error.__traceback__
        while step is not None:
            code = step.tb_frame.f_code
            if code in self.codes:
                place = f"{Path(code.co_filename).name}:{step.tb_lineno}"
            step = step.tb_next
        return place

    # Binding names

    def bind(self, function: FunctionType) -> FunctionType:
        """The translated function, its names bound to this machine's."""
        if function not in self.bound:
            translation = translate(function)
            namespace = {name: self.value(x) for name, x in translation.names.items()}
            exec(translation.code, namespace)
            found = namespace[FUNCTION]
            found.__defaults__ = function.__defaults__
            self.bound[function] = found
            self.codes.add(found.__code__)
        return self.bound[function]

    def value(self, value: Any) -> Any:
        """What stands for an object in kernels."""
        if isinstance(value, Instruction):
            return self.word(value)
        if value is numba_cuda:
            return self.cuda
        if value is math:
            return Math
        if isinstance(value, numba.types.Number):
            return CASTS.get(str(value), value)
        if getattr(value, "is_device_function", False):
            return self.bind(value)
        if isinstance(value, np.integer):
            return int(value)
        return np.float64(value) if type(value) is float else value

    def word(self, instruction: Instruction) -> Any:
        """What an instruction that needs no other thread does."""
        name, parameters = instruction.name, instruction.parameters
        if name in OPERATIONS:
            return instruction  # calls are translated; anything else raises
        plain = {
            "load": operator.getitem,
            "store": operator.setitem,
            "load4": lambda array, index: array.load4(index),
            "store4": lambda array, index, values: array.store4(index, values),
            "exp2": exp2,
            "fill": lambda array, value: fill(array, value, *parameters),
            "pack2": lambda low, high: pack2(*parameters, low, high),
            "unpack2": lambda word: unpack2(*parameters, word),
            "wait_copies": lambda: self.wait_copies(*parameters),
        }
        return plain[name] if name in plain else getattr(self, name)


class Cuda:
    """Stands for numba.cuda in kernels; what waits for others is not here but translated."""

    warpsize = LANES

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.threadIdx = self.blockIdx = Three(0, 0, 0)
        self.blockDim = Three(machine.kernel.threads)
        self.gridDim = Three(1)
        self.shared, self.local = Space(machine.shared_array), Space(machine.local_array)

    @property
    def laneid(self) -> int:
        return self.machine.thread.lane

    def grid(self, dimensions: int) -> int:
        if dimensions != 1:
            raise Fault("blocks have one dimension only")
        return self.blockIdx.x * self.blockDim.x + self.threadIdx.x


@dataclass(frozen=True)
class Space:
    """cuda.shared and cuda.local."""

    array: Callable[..., Array]


def fill(array: Array, value: Any, count: int) -> None:
    if not isinstance(array, LocalArray):
        raise Fault(f"fill of {array.name}")
    if count > array.size:
        raise array.outside("write to", count - 1)
    array.data[:count] = array.cast(value)


def spans(numbers: list[int]) -> str:
    """Ascending numbers, as people write them: 0-3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


# ---------------------------------------------------------------- launching

# Each array argument has addresses of its own, so that what lies behind its end is in no other.
# The lowest bits are those of its true address: alignment is checked.
ADDRESS_BITS = 40
TRUE_BITS = 12


def launch(
    kernel: Kernel,
    grid: int | tuple[int, ...],
    arguments: Sequence[Any],
    *,
    reverse: bool = False,
    blocks: Iterable[int | tuple[int, ...]] | None = None,
    races: bool = True,
) -> Statistics:
    """Run a kernel on NumPy arrays.

    Args:
        kernel: to run; its number of threads is a multiple of 32.
        grid: numbers of blocks, up to 3.
        arguments: as kernel.arguments says: contiguous arrays [n] for pointers, or None for a
            null pointer; numbers.
        reverse: run blocks, warps and lanes from the last to the first.
        blocks: indices of those to run; None: all.
        races: whether accesses to shared memory are checked for order and initialisation.

    Raises:
        EmulatorError: at the first mistake that is found.
    """
    if kernel.threads % LANES:
        raise EmulatorError(f"{kernel.name}: {kernel.threads} threads are not whole warps")
    values = arguments_of(kernel, arguments)
    pointers = {i + 1: x for i, x in enumerate(values) if isinstance(x, GlobalArray)}
    machine = Machine(kernel, pointers, races)
    size = Three(*(grid if isinstance(grid, tuple) else (grid,)))
    machine.cuda.gridDim = size
    positions = list(selected(size, blocks))
    with np.errstate(all="ignore"):
        for position in reversed(positions) if reverse else positions:
            machine.run_block(position, values, reverse)
    return machine.statistics


def selected(size: Three, blocks: Iterable[int | tuple[int, ...]] | None) -> Iterable[Three]:
    """Positions of the blocks to run."""
    if blocks is None:
        blocks = (p[::-1] for p in itertools.product(*map(range, (size.z, size.y, size.x))))
    for block in blocks:
        x, y, z = ((*block, 0, 0) if isinstance(block, tuple) else (block, 0, 0))[:3]
        yield Three(x, y, z)


def arguments_of(kernel: Kernel, arguments: Sequence[Any]) -> list[Any]:
    """Arguments as the kernel sees them."""
    names = list(inspect.signature(kernel.function).parameters)
    if not len(names) == len(arguments) == len(kernel.arguments):
        raise EmulatorError(
            f"{kernel.name}: {len(arguments)} arguments, but {len(kernel.arguments)} are declared "
            f"and the function has {len(names)}"
        )
    everything = zip(names, kernel.arguments, arguments, strict=True)
    try:
        return [argument_of(i, *each) for i, each in enumerate(everything)]
    except Fault as fault:
        raise EmulatorError(f"{kernel.name}: {fault}") from fault


def argument_of(position: int, name: str, kind: str, value: Any) -> Any:
    """One argument as the kernel sees it."""
    if not kind.endswith("*"):
        return stored_float32(np.float32(value)) if kind == "float32" else CASTS[kind](value)
    dtype = np.dtype(kind[:-1])
    if value is None:
        return GlobalArray(f"{name}, a null pointer", np.empty(0, dtype), 0)
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 1:
        found = getattr(value, "dtype", type(value).__name__), getattr(value, "shape", ())
        raise Fault(f"{name} is {found}, not a flat array of {dtype}")
    if not value.flags.c_contiguous:
        raise Fault(f"{name} is not contiguous")
    start = (position + 1) << ADDRESS_BITS
    return GlobalArray(name, value, start + value.ctypes.data % (1 << TRUE_BITS))
