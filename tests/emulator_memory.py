"""Memory of the CUDA emulator: every access is checked, shared memory for races too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from emulator_numbers import CASTS, STATIC_BYTES, Fault, stored_float32

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
