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

import ast
import inspect
import itertools
import math
import operator
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba import cuda as numba_cuda

from minibert.kernels.cuda.language import Instruction, Kernel

LANES = 32
STATIC_BYTES = 48 * 1024  # of shared arrays with a size of their own, in a block
LARGEST_WORD = 0xFFFFFFFF

# Collectives after which a lane may rely on what other lanes of its warp did before.  By the letter
# of CUDA's manual only barriers order memory; shuffles and matrix instructions do in practice.
ORDERING = ("syncwarp", "shuffle", "load_fragments", "multiply_fragments")


class EmulatorError(AssertionError):
    """A kernel did what no kernel may do; the message says where and what."""


class Fault(Exception):
    """A mistake, before it is known which thread makes it.

    Args:
        message: what is wrong.
        row: which of the threads that ran the instruction together; None: the running one.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


@dataclass
class Statistics:
    """What a launch did, summed over its blocks."""

    blocks: int = 0
    barriers: int = 0  # of blocks
    fragment_loads: int = 0  # phases of load_fragments: 8 rows of 16 bytes each
    bank_conflicts: int = 0  # rows of a phase that wait because of others: 8 - different banks


# ---------------------------------------------------------------- numbers


def unsigned(bits: int) -> Callable[[Any], int]:
    """The cast to an unsigned integer: wraps."""
    mask = (1 << bits) - 1
    return lambda value: (value if type(value) is int else int(value)) & mask


def signed(bits: int) -> Callable[[Any], int]:
    """The cast to a signed integer: must fit."""
    limit = 1 << (bits - 1)

    def cast(value: Any) -> int:
        number = value if type(value) is int else int(value)
        if -limit <= number < limit:
            return number
        raise Fault(f"{number} does not fit into int{bits}")

    return cast


CASTS: dict[str, Callable[[Any], Any]] = {
    **{f"uint{bits}": unsigned(bits) for bits in (8, 16, 32, 64)},
    **{f"int{bits}": signed(bits) for bits in (8, 16, 32, 64)},
    "float32": np.float32,
    "float64": np.float64,
}
DTYPES = {cast: np.dtype(name) for name, cast in CASTS.items()}
int32, uint32, uint64 = CASTS["int32"], CASTS["uint32"], CASTS["uint64"]


def stored_float32(value: Any) -> np.float32:
    """What an assignment to a float32 does; a float64 there is a mistake."""
    if type(value) is np.float32:
        return value
    if isinstance(value, int | np.integer):
        return np.float32(value)
    raise Fault(f"a {type(value).__name__} where float32 is expected")


def rounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of math that gives a float32 for float32, rounded once."""

    def call(*numbers: Any) -> Any:
        kind = np.float32 if all(type(x) is np.float32 for x in numbers) else np.float64
        return kind(function(*map(np.float64, numbers)))

    return call


class Math:
    """Stands for the module math in kernels."""

    erf = staticmethod(rounded(math.erf))
    erfc = staticmethod(rounded(math.erfc))
    sqrt = staticmethod(rounded(np.sqrt))
    exp = staticmethod(rounded(np.exp))
    log = staticmethod(rounded(np.log))
    tanh = staticmethod(rounded(np.tanh))
    fabs = staticmethod(rounded(np.fabs))
    pow = staticmethod(rounded(np.power))
    floor = staticmethod(math.floor)
    ceil = staticmethod(math.ceil)
    isnan = staticmethod(math.isnan)
    isinf = staticmethod(math.isinf)
    inf, nan, pi, e = map(np.float64, (math.inf, math.nan, math.pi, math.e))


def to_halves(x: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 -> the bits of float16 or bfloat16, uint16, rounded to nearest even."""
    if dtype == "float16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), nearest).astype(np.uint16)


def from_halves(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The bits of float16 or bfloat16, uint16 -> float32."""
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def pack2(dtype: str, low: Any, high: Any) -> int:
    pair = np.array([stored_float32(low), stored_float32(high)])
    return to_halves(pair, dtype).view(np.uint32).item()


def unpack2(dtype: str, word: int) -> tuple[np.float32, np.float32]:
    pair = from_halves(np.array([word], np.uint32).view(np.uint16), dtype)
    return pair[0], pair[1]


def exp2(x: Any) -> np.float32:
    try:
        power = 2.0 ** float(stored_float32(x))
    except OverflowError:
        power = math.inf
    return np.float32(0 if power < 2.0**-126 else power)


# ---------------------------------------------------------------- shared memory


class SharedMemory:
    """The shared memory of a block, and who did what with it.

    For each cell of 4 bytes (of 2, once a kernel accesses 2 bytes) two stamps are kept: of the
    last write, and of the reads since then.  A stamp says epoch (barriers of the block so far),
    warp, phase (collectives of the warp in this epoch) and lane, from the highest bits to the
    lowest.  What has an earlier epoch, or the same warp and an earlier phase, or the same thread,
    happened before; anything else may happen at the same time, in whatever order the emulator runs.

    Args:
        size: bytes allocated at launch; arrays with a size of their own lie behind.
        warps: of a block.
        races: whether stamps are kept and checked at all.
    """

    UNWRITTEN, PENDING, NOBODY = -1, -2, -3
    LANE_BITS, PHASE_BITS = 6, 24
    SEVERAL_LANES = 32  # in place of the lane

    def __init__(self, size: int, warps: int, races: bool) -> None:
        self.dynamic_size, self.warps, self.races = size, warps, races
        self.capacity = -(-size // 128) * 128 + STATIC_BYTES
        raw = np.empty(self.capacity + 128, np.uint8)
        start = -raw.ctypes.data % 128
        self.bytes = raw[start : start + self.capacity]
        self.arrays: dict[Any, SharedArray] = {}
        self.clear()

    def clear(self) -> None:
        """A new block begins."""
        self.bytes.fill(0xFF)
        self.arrays.clear()
        self.top = self.dynamic_size
        self.cell = 4
        self.set_shadows(*(np.full(self.capacity // 4, self.UNWRITTEN) for _ in range(2)))
        self.set_epoch(0)

    def set_shadows(self, writes: np.ndarray, reads: np.ndarray) -> None:
        """Arrays for many cells at a time, memoryviews of them for single ones."""
        self.writes, self.reads = writes, reads
        self.write_of, self.read_of = memoryview(writes), memoryview(reads)

    def refine(self) -> None:
        """From now on a cell has 2 bytes."""
        self.cell = 2
        self.set_shadows(np.repeat(self.writes, 2), np.repeat(self.reads, 2))

    def array(self, key: Any, count: int, dtype: np.dtype) -> SharedArray:
        """The array that one `shared.array` of the source makes; count 0: the memory of launch."""
        if key not in self.arrays:
            first, size = 0, self.dynamic_size
            if count:
                first, size = -(-self.top // 128) * 128, count * dtype.itemsize
                self.top = first + size
            if self.top > self.capacity:
                raise Fault(f"more than {STATIC_BYTES} bytes of shared arrays")
            size -= size % dtype.itemsize
            self.arrays[key] = SharedArray(self, first, self.bytes[first : first + size], dtype)
        return self.arrays[key]

    # Who is running

    def set_epoch(self, epoch: int) -> None:
        """A barrier of the block was passed."""
        self.epoch = epoch
        self.warp_span = 1 << (self.LANE_BITS + self.PHASE_BITS)
        self.epoch_base = epoch * (self.warps + 1) * self.warp_span
        self.several_warps = self.epoch_base + self.warps * self.warp_span
        self.phases = [0] * self.warps
        self.enter(0)

    def enter(self, warp: int) -> None:
        """A warp goes on."""
        self.warp = warp
        self.warp_base = self.epoch_base + warp * self.warp_span
        self.phase_base = self.warp_base + (self.phases[warp] << self.LANE_BITS)
        self.stamp = self.phase_base

    def end_phase(self) -> None:
        """The running warp executed a collective that orders its lanes."""
        self.phases[self.warp] += 1
        self.enter(self.warp)

    def before(self, stamp: Any, own: Any) -> Any:
        """Whether what has this stamp is known to have happened before; `own`: the thread's."""
        earlier = (self.warp_base <= stamp) & (stamp < self.phase_base)
        return (stamp < self.epoch_base) | earlier | (stamp == own)

    # One thread's accesses to bytes that follow each other

    def cells(self, offset: int, size: int) -> range:
        """The cells of some bytes."""
        if size < self.cell:
            self.refine()
        return range(offset // self.cell, (offset + size - 1) // self.cell + 1)

    def read(self, offset: int, size: int) -> None:
        """The running thread reads `size` bytes."""
        if self.races:
            for cell in self.cells(offset, size):
                self.read_cell(cell)

    def write(self, offset: int, size: int) -> None:
        """The running thread writes `size` bytes."""
        if self.races:
            for cell in self.cells(offset, size):
                self.write_cell(cell)

    def read_cell(self, cell: int) -> None:
        stamp, wrote, read = self.stamp, self.write_of[cell], self.read_of[cell]
        if wrote != stamp and not 0 <= wrote < self.epoch_base:
            self.expect_readable(cell, wrote, stamp)
        if read != stamp:
            self.read_of[cell] = stamp if read < self.epoch_base else self.joint(read, stamp)

    def write_cell(self, cell: int) -> None:
        stamp, wrote, read = self.stamp, self.write_of[cell], self.read_of[cell]
        if wrote != stamp and not -1 <= wrote < self.epoch_base:
            self.expect_writable(cell, "written", wrote, stamp)
        if read != stamp and read >= self.epoch_base:
            self.expect_writable(cell, "read", read, stamp)
        self.write_of[cell] = stamp

    def joint(self, read: int, stamp: int) -> int:
        """The stamp of a cell that was read in this epoch before, and is again."""
        if not self.warp_base <= read < self.warp_base + self.warp_span:
            return self.several_warps
        return stamp if read < self.phase_base else self.phase_base + self.SEVERAL_LANES

    # Accesses of many threads of a warp at a time

    def many_cells(self, offsets: np.ndarray, size: int) -> np.ndarray:
        """Offsets of accesses of `size` bytes [L, n] -> their cells [L, n * cells]."""
        cells = offsets[:, :, None] // self.cell + np.arange(size // self.cell)
        return cells.reshape(len(offsets), -1)

    def read_many(self, offsets: np.ndarray, size: int, stamps: np.ndarray) -> None:
        """Threads with stamps [L] read `size` bytes, 4 or more, at each of offsets [L, n]."""
        if not self.races:
            return
        cells = self.many_cells(offsets, size)
        wrote, read = self.writes[cells], self.reads[cells]
        fine = (wrote >= 0) & self.before(wrote, stamps[:, None])
        if not fine.all():
            row, place = np.argwhere(~fine)[0]
            self.expect_readable(cells[row, place], wrote[row, place], stamps[row], row)
        elsewhere = (read >= self.epoch_base) & (read < self.warp_base)
        elsewhere |= read >= self.warp_base + self.warp_span
        together = self.phase_base + self.SEVERAL_LANES
        self.reads[cells] = np.where(elsewhere, self.several_warps, together)

    def write_many(self, offsets: np.ndarray, size: int, stamps: np.ndarray) -> None:
        """Threads with stamps [L] write `size` bytes, 4 or more, at each of offsets [L, n]."""
        if not self.races:
            return
        cells = self.many_cells(offsets, size)
        self.expect_all_writable(cells, "written", self.writes[cells], stamps)
        self.expect_all_writable(cells, "read", self.reads[cells], stamps)
        self.writes[cells] = stamps[:, None]
        self.expect_all_writable(cells, "written", self.writes[cells], stamps)

    def expect_all_writable(
        self, cells: np.ndarray, verb: str, found: np.ndarray, stamps: np.ndarray
    ) -> None:
        fine = self.before(found, stamps[:, None]) & (found != self.PENDING)
        if not fine.all():
            row, place = np.argwhere(~fine)[0]
            self.expect_writable(cells[row, place], verb, found[row, place], stamps[row], int(row))

    # Copies that run beside the code

    def begin_copy(self, offset: int) -> None:
        """From now on nobody may touch these 16 bytes."""
        if self.races:
            self.write(offset, 16)
            self.writes[offset // self.cell : (offset + 16) // self.cell] = self.PENDING

    def end_copy(self, offset: int, data: np.ndarray) -> None:
        """The running thread knows that its copy has arrived."""
        self.bytes[offset : offset + 16] = data
        if self.races:
            self.writes[offset // self.cell : (offset + 16) // self.cell] = self.stamp

    # Mistakes

    def expect_place(self, offset: int, row: int | None = None) -> None:
        """16 bytes must lie inside, at a multiple of 16."""
        if not 0 <= offset <= self.top - 16:
            raise Fault(f"shared address {offset} of {self.top} bytes: out of bounds", row)
        if offset % 16:
            raise Fault(f"shared address {offset}: misaligned, not a multiple of 16", row)

    def expect_readable(self, cell: int, wrote: int, own: int, row: int | None = None) -> None:
        place = f"read of the shared bytes from {cell * self.cell}"
        if wrote == self.UNWRITTEN:
            raise Fault(f"{place}: uninitialised shared memory", row)
        if wrote == self.PENDING:
            raise Fault(f"{place}: a copy to them was not waited for", row)
        if not self.before(wrote, own):
            raise Fault(f"{place}: race, written {self.culprit(wrote)}", row)

    def expect_writable(
        self, cell: int, verb: str, found: int, own: int, row: int | None = None
    ) -> None:
        place = f"write to the shared bytes from {cell * self.cell}"
        if found == self.PENDING:
            raise Fault(f"{place}: a copy to them was not waited for", row)
        if not self.before(found, own):
            raise Fault(f"{place}: race, {verb} {self.culprit(found)}", row)

    def culprit(self, stamp: int) -> str:
        """Who has this stamp, of the running epoch."""
        warp, rest = divmod(int(stamp) - self.epoch_base, self.warp_span)
        if warp == self.warps:
            return "by several warps since the last barrier"
        lane = rest % (1 << self.LANE_BITS)
        lanes = "several lanes" if lane == self.SEVERAL_LANES else f"lane {lane}"
        since = "collective" if warp == self.warp else "barrier"
        return f"by {lanes} of warp {warp} since the last {since}"


# ---------------------------------------------------------------- arrays


class Array:
    """Numbers that a kernel reads and writes by index.  load and store are array[i] here.

    Args:
        name: for messages.
        data: [n].
    """

    __slots__ = ("cast", "data", "get", "itemsize", "name", "size")

    def __init__(self, name: str, data: np.ndarray) -> None:
        self.name, self.data = name, data
        self.size, self.itemsize = data.size, data.itemsize
        self.get = data.__getitem__ if data.dtype.kind == "f" else data.item
        self.cast = stored_float32 if data.dtype == np.float32 else CASTS[data.dtype.name]

    def __getitem__(self, index: int) -> Any:
        if 0 <= index < self.size:
            return self.get(index)
        raise self.outside("read of", index)

    def __setitem__(self, index: int, value: Any) -> None:
        if not 0 <= index < self.size:
            raise self.outside("write to", index)
        self.data[index] = self.cast(value)

    def outside(self, access: str, index: int, row: int | None = None) -> Fault:
        return Fault(f"{access} {self.name}[{index}]: out of bounds, it has {self.size}", row)

    def four(self, access: str, index: int, address: int) -> slice:
        """Where the four numbers of a 16-byte access are."""
        if not 0 <= index <= self.size - 4:
            raise self.outside(access, index)
        if address % 16 or self.itemsize != 4:
            raise Fault(f"{access} {self.name}[{index}]: misaligned, not a multiple of 16 bytes")
        return slice(index, index + 4)

    def load4(self, index: int) -> tuple[Any, ...]:
        raise Fault(f"16-byte access to {self.name}")

    def store4(self, index: int, values: Sequence[Any]) -> None:
        raise Fault(f"16-byte access to {self.name}")


class GlobalArray(Array):
    """A pointer argument.

    Args:
        name: of the argument.
        data: [n]; n = 0 for a null pointer.
        address: of data[0], in bytes, see `arguments_of`.
    """

    __slots__ = ("address", "bytes")

    def __init__(self, name: str, data: np.ndarray, address: int) -> None:
        super().__init__(name, data)
        self.address, self.bytes = address, data.view(np.uint8)

    def load4(self, index: int) -> tuple[Any, ...]:
        numbers = self.data[self.four("read of", index, self.address + 4 * index)]
        return tuple(numbers if self.data.dtype.kind == "f" else numbers.tolist())

    def store4(self, index: int, values: Sequence[Any]) -> None:
        where = self.four("write to", index, self.address + 4 * index)
        self.data[where] = [self.cast(value) for value in values]


class LocalArray(Array):
    """An array of one thread: a row of `block` [32, n], that of all lanes of its warp."""

    __slots__ = ("block",)

    def __init__(self, block: np.ndarray, lane: int) -> None:
        super().__init__("a local array", block[lane])
        self.block = block
        self.data.view(np.uint8).fill(0xFF)


class SharedArray(Array):
    """Shared memory seen as numbers.

    Args:
        memory: whose part it is.
        offset: of the first number, in bytes.
        part: the bytes.
        dtype: of the numbers.
    """

    __slots__ = ("memory", "offset")

    def __init__(
        self, memory: SharedMemory, offset: int, part: np.ndarray, dtype: np.dtype
    ) -> None:
        super().__init__(f"shared {dtype}", part.view(dtype))
        self.memory, self.offset = memory, offset

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.size:
            raise self.outside("read of", index)
        memory, size = self.memory, self.itemsize
        if size != memory.cell:
            memory.read(self.offset + index * size, size)
        elif memory.races:
            memory.read_cell(self.offset // size + index)
        return self.get(index)

    def __setitem__(self, index: int, value: Any) -> None:
        if not 0 <= index < self.size:
            raise self.outside("write to", index)
        memory, size = self.memory, self.itemsize
        if size != memory.cell:
            memory.write(self.offset + index * size, size)
        elif memory.races:
            memory.write_cell(self.offset // size + index)
        self.data[index] = self.cast(value)

    def load4(self, index: int) -> tuple[Any, ...]:
        offset = self.offset + 4 * index
        numbers = self.data[self.four("read of", index, offset)]
        self.memory.read(offset, 16)
        return tuple(numbers if self.data.dtype.kind == "f" else numbers.tolist())

    def store4(self, index: int, values: Sequence[Any]) -> None:
        offset = self.offset + 4 * index
        where = self.four("write to", index, offset)
        self.memory.write(offset, 16)
        self.data[where] = [self.cast(value) for value in values]


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


# ---------------------------------------------------------------- operations of several lanes
#
# Each takes the machine, the stamps of the threads [L] and, per operand, a tuple of the L threads'
# values.  Collectives get all 32 lanes.  The others would need no other lane: they run together
# only because NumPy is then faster, and so their accesses are checked lane by lane.

LANE = np.arange(LANES)
GROUP, PAIR = LANE // 4, 2 * (LANE % 4)
# Row and column of what each lane holds, [32, words, 2]; of an accumulator [32, 4].
WORD, HALF, NUMBER = np.arange(4)[:, None], np.arange(2), np.arange(4)
A_ROW = GROUP[:, None, None] + 8 * (WORD % 2) + 0 * HALF
A_COLUMN = PAIR[:, None, None] + 8 * (WORD // 2) + HALF
B_ROW = PAIR[:, None, None] + 8 * WORD[:2] + HALF
B_COLUMN = GROUP[:, None, None] + 0 * B_ROW
C_ROW, C_COLUMN = GROUP[:, None] + 8 * (NUMBER // 2), PAIR[:, None] + NUMBER % 2


def gather(arrays: Sequence[Array], dtype: Any, first: int, count: int) -> np.ndarray:
    """Local arrays of L threads, from number `first` -> [L, count], not to be changed."""
    for row, array in enumerate(arrays):
        if not isinstance(array, LocalArray) or array.data.dtype != dtype:
            raise Fault(f"{array.name} where a local array of {dtype.__name__} is expected", row)
        if array.size < first + count:
            raise array.outside("use of", first + count - 1, row)
    block = common_block(arrays)
    if block is not None:
        return block[:, first : first + count]
    return np.stack([array.data[first : first + count] for array in arrays])


def common_block(arrays: Sequence[LocalArray]) -> np.ndarray | None:
    """The block of all 32 lanes' arrays, if these are its rows."""
    block = arrays[0].block
    whole = len(arrays) == LANES and all(array.block is block for array in arrays)
    return block if whole else None


def scatter(arrays: Sequence[Array], values: np.ndarray) -> None:
    """Write [L, n] to the beginning of the local arrays of L threads."""
    block = common_block(arrays)
    if block is not None:
        block[:, : values.shape[1]] = values
        return
    for array, row in zip(arrays, values, strict=True):
        array.data[: len(row)] = row


def common_float32(arrays: Sequence[Array]) -> SharedArray:
    """The shared array that all threads name."""
    first = arrays[0]
    if not isinstance(first, SharedArray) or first.data.dtype != np.float32:
        raise Fault(f"{first.name} where a shared array of float32 is expected", 0)
    if any(array is not first for array in arrays):
        raise Fault("lanes use different shared arrays")
    return first


def places(shared: SharedArray, index: np.ndarray, together: int, access: str) -> np.ndarray:
    """Indices [L, ...] -> byte offsets of the accesses of `together` numbers each [L, n]."""
    index = index.reshape(len(index), -1)
    outside = (index < 0) | (index >= shared.size)
    if outside.any():
        row, place = np.argwhere(outside)[0]
        raise shared.outside(access, index[row, place], int(row))
    offsets = shared.offset + 4 * index[:, ::together]
    if (offsets % (4 * together)).any():
        row, place = np.argwhere(offsets % (4 * together))[0]
        number = index[row, place * together]
        raise Fault(f"{access} {shared.name}[{number}]: misaligned", int(row))
    return offsets


def shuffle(source: Callable[[int, int], int]) -> Callable[..., list[Any]]:
    """A shuffle; source(lane, operand) is the lane whose value a lane gets."""

    def perform(machine, stamps, masks, values, operands):
        expect_full(masks)
        sources = [source(lane, int(operand)) for lane, operand in enumerate(operands)]
        return [values[s if 0 <= s < LANES else lane] for lane, s in enumerate(sources)]

    return perform


def expect_full(masks: Iterable[int]) -> None:
    """Only collectives of all lanes are emulated."""
    for row, mask in enumerate(masks):
        if int(mask) & LARGEST_WORD != LARGEST_WORD:
            raise Fault(f"a mask of {mask:#x}, but only whole warps are emulated", row)


def wait_for_warp(machine, stamps, masks=()):
    expect_full(masks)


def load_fragments(tiles: int, step: int, xor: bool, transposed: bool) -> Callable[..., None]:
    steps = np.arange(tiles)[:, None] * step

    def perform(machine, stamps, fragments, addresses):
        memory = machine.memory
        base = np.array(addresses, np.int64)
        place = (base ^ steps if xor else base + steps) & LARGEST_WORD  # [tiles, 32]
        for row in np.flatnonzero(((place % 16 > 0) | (place > memory.top - 16)).any(0)):
            for address in place[:, row]:
                memory.expect_place(int(address), int(row))
        memory.read_many(place.T, 16, np.full(LANES, memory.NOBODY))
        count_conflicts(machine.statistics, place.reshape(-1, 8))
        rows = memory.bytes[place[:, :, None] + np.arange(16)]  # [tiles, 32, 16]
        matrices = rows.view(np.uint16).reshape(tiles, 4, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        halves = matrices[:, :, GROUP[:, None], PAIR[:, None] + HALF]  # [tiles, 4, 32, 2]
        words = np.ascontiguousarray(halves).view(np.uint32)[..., 0]
        gather(fragments, np.uint32, 0, 4 * tiles)
        scatter(fragments, words.transpose(2, 0, 1).reshape(LANES, -1))

    return perform


def count_conflicts(statistics: Statistics, addresses: np.ndarray) -> None:
    """Add phases [n, 8] of load_fragments: 16-byte rows in the same of 8 bank groups wait."""
    banks = np.sort(addresses // 16 % 8, axis=1)
    statistics.fragment_loads += len(banks)
    statistics.bank_conflicts += int((np.diff(banks, axis=1) == 0).sum())


def multiply_fragments(
    m_tiles: int, n_tiles: int, dtype: str, first_word: int
) -> Callable[..., None]:
    count = 4 * m_tiles * n_tiles

    def perform(machine, stamps, accumulators, a, b):
        def halves(arrays, first, tiles, words):
            bits = np.ascontiguousarray(gather(arrays, np.uint32, first, tiles * words))
            numbers = from_halves(bits.view(np.uint16), dtype).reshape(LANES, tiles, words, 2)
            return numbers.swapaxes(0, 1)  # [tiles, 32, words, 2]

        left = np.empty((m_tiles, 16, 16))
        left[:, A_ROW, A_COLUMN] = halves(a, first_word, m_tiles, 4)
        right = np.empty((n_tiles, 16, 8))
        right[:, B_ROW, B_COLUMN] = halves(b, 0, n_tiles, 2)
        # Exact products, summed in float64 and rounded once, then added in float32.
        product = (left[:, None] @ right).astype(np.float32)  # [m, n, 16, 8]
        mine = product[:, :, C_ROW, C_COLUMN].transpose(2, 0, 1, 3).reshape(LANES, count)
        scatter(accumulators, gather(accumulators, np.float32, 0, count) + mine)

    return perform


def store_fragments(m_tiles: int, n_tiles: int) -> Callable[..., None]:
    rows = 16 * np.arange(m_tiles)[:, None] + 8 * HALF  # [m, 2]
    columns = 8 * np.arange(n_tiles)[:, None] + HALF  # [n, 2]

    def perform(machine, stamps, accumulators, arrays, bases, strides, lanes):
        shared, lane = common_float32(arrays), np.array(lanes)
        row = rows + (lane // 4)[:, None, None]  # [L, m, 2]
        column = columns + 2 * (lane % 4)[:, None, None]  # [L, n, 2]
        start = np.array(bases)[:, None, None] + row * np.array(strides)[:, None, None]
        index = start[..., None, None] + column[:, None, None]  # [L, m, 2, n, 2]
        machine.memory.write_many(places(shared, index, 2, "write to"), 8, stamps)
        numbers = gather(accumulators, np.float32, 0, 4 * m_tiles * n_tiles)
        numbers = numbers.reshape(len(lane), m_tiles, n_tiles, 2, 2)
        shared.data[index] = numbers.swapaxes(2, 3)

    return perform


def pack_fragments(n_tiles: int, dtype: str) -> Callable[..., None]:
    def perform(machine, stamps, accumulators, a):
        numbers = np.ascontiguousarray(gather(accumulators, np.float32, 0, 4 * n_tiles))
        gather(a, np.uint32, 0, 2 * n_tiles)
        scatter(a, to_halves(numbers, dtype).view(np.uint32))

    return perform


def multiply_tile(
    depth: int, rows: int, columns: int, strides: tuple[int, int, int, int]
) -> Callable[..., None]:
    stride_a, stride_b, group_a, group_b = strides

    def numbers_of(count, stride, group):
        number = np.arange(count)
        return np.arange(depth)[:, None] * stride + number // 4 * group + number % 4

    of_a = numbers_of(rows, stride_a, group_a)  # [depth, rows]
    of_b = numbers_of(columns, stride_b, group_b)  # [depth, columns]

    def perform(machine, stamps, accumulators, arrays, a, b):
        shared, operands = common_float32(arrays), []
        for start, numbers in ((a, of_a), (b, of_b)):
            index = np.array(start)[:, None, None] + numbers  # [L, depth, rows or columns]
            machine.memory.read_many(places(shared, index, 4, "read of"), 16, stamps)
            operands.append(shared.data[index].astype(np.float64))
        sums = gather(accumulators, np.float32, 0, rows * columns)
        sums = sums.reshape(-1, rows, columns).copy()  # float32: each sum is rounded to it
        left, right = operands[0][..., None], operands[1][:, :, None]
        total = np.empty(sums.shape)
        for k in range(depth):  # fused multiply and add: products are exact in float64
            np.multiply(left[:, k], right[:, k], out=total)
            np.add(total, sums, out=total)
            sums[...] = total
        scatter(accumulators, sums.reshape(len(sums), -1))

    return perform


def store_tile(columns: int, first_row: int, rows: int, group: int) -> Callable[..., None]:
    row, column = np.arange(rows)[:, None], np.arange(columns)

    def perform(machine, stamps, accumulators, arrays, bases, strides):
        shared = common_float32(arrays)
        base, stride = (np.array(x)[:, None, None] for x in (bases, strides))
        index = base + row * stride + column // 4 * group + column % 4  # [L, rows, columns]
        machine.memory.write_many(places(shared, index, 4, "write to"), 16, stamps)
        numbers = gather(accumulators, np.float32, first_row * columns, rows * columns)
        shared.data[index] = numbers.reshape(index.shape)

    return perform


# Kind: who must arrive before it runs.  For cuda's words there are no parameters.
OPERATIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "load_fragments": ("warp", load_fragments),
    "multiply_fragments": ("warp", multiply_fragments),
    "store_fragments": ("thread", store_fragments),
    "pack_fragments": ("thread", pack_fragments),
    "multiply_tile": ("thread", multiply_tile),
    "store_tile": ("thread", store_tile),
}
COLLECTIVES: dict[str, tuple[str, str, Any]] = {
    "syncthreads": ("block", "syncthreads", None),
    "syncwarp": ("warp", "syncwarp", wait_for_warp),
    "shfl_sync": ("warp", "shuffle", shuffle(lambda lane, source: source % LANES)),
    "shfl_xor_sync": ("warp", "shuffle", shuffle(lambda lane, mask: lane ^ mask)),
    "shfl_up_sync": ("warp", "shuffle", shuffle(lambda lane, delta: lane - delta)),
    "shfl_down_sync": ("warp", "shuffle", shuffle(lambda lane, delta: lane + delta)),
}


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
