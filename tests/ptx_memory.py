"""The memory of a launch, with a check of every access.

What an access reads or writes is one element of a type of its size: a vector of four words is one
element of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from ptx_arithmetic import WARP, Array
from ptx_text import MachineError

GRANULE = 4  # bytes of shared memory that share a record: the smallest access

ELEMENTS = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)} | {16: np.dtype("c16")}


@dataclass
class Access:
    """What some threads access together: `size` bytes each, at an address of its own."""

    threads: Array
    address: Array
    size: int

    def forbid(self, wrong: Array, what: str) -> None:
        """Raise for the first thread that is wrong; `wrong` is [threads, ...]."""
        if np.count_nonzero(wrong):
            first = int(wrong.reshape(len(self.threads), -1).any(1).argmax())
            raise MachineError(what, int(self.threads[first]), int(self.address[first]))

    def of(self, some: Array) -> Access:
        """The same for some of the threads."""
        return Access(self.threads[some], self.address[some], self.size)


class GlobalMemory:
    """The arrays that a kernel may touch, at their real addresses.

    Where the checks allow it, they are accessed as parts of one array from the beginning of the
    first to the end of the last.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        if not all(array.flags.c_contiguous for array in arrays):
            raise ValueError("an array given to a kernel must be C-contiguous")
        self.arrays = arrays  # which must live as long as this
        regions = [(0, 0, False)]
        for array in sorted(arrays, key=lambda x: (x.ctypes.data, -x.nbytes)):
            end = array.ctypes.data + array.nbytes
            if end > regions[-1][1]:  # else it is empty or a part of the last one
                regions.append((array.ctypes.data, end, array.flags.writeable))
        self.starts, self.ends, self.writeable = map(np.array, zip(*regions, strict=True))
        self.start = int(self.starts[min(1, len(regions) - 1)]) // 16 * 16
        self.elements = {size: self._everything(dtype) for size, dtype in ELEMENTS.items()}

    def _everything(self, dtype: np.dtype[Any]) -> Array:
        count = (int(self.ends[-1]) - self.start) // dtype.itemsize
        place = {"data": (self.start, False), "shape": (count,), "typestr": dtype.str, "version": 3}
        return np.asarray(SimpleNamespace(__array_interface__=place)) if count else np.empty(0)

    def check(self, access: Access) -> Array:
        """Forbid what is not aligned or not in one array; in which array each access is."""
        address, size = access.address, access.size
        access.forbid(address % size != 0, f"address not aligned to {size} bytes")
        region = np.searchsorted(self.starts, address, "right") - 1
        outside = (region < 1) | (address + size > self.ends[region])
        access.forbid(outside, f"global access of {size} bytes outside every array")
        return region

    def load(self, access: Access) -> Array:
        """What lies at the addresses."""
        self.check(access)
        return self.elements[access.size][(access.address - self.start) // access.size]

    def store(self, access: Access, values: Array) -> None:
        """Write elements; of threads with one address the last one wins."""
        access.forbid(~self.writeable[self.check(access)], "store to a read-only array")
        self.elements[access.size][(access.address - self.start) // access.size] = values


class SharedMemory:
    """Shared memory of some blocks, and who read and wrote each granule since when.

    A tick numbers the synchronisations. `epoch` is the tick of the blocks' last barrier,
    `warp_tick` that of each warp's last synchronisation. An access is stamped with its warp's tick:
    from `epoch` on no barrier lies between it and now, and at `warp_tick` no synchronisation of its
    warp does.

    Args:
        start: its address.
        size: bytes of a block.
        blocks: how many.
        warps: of a block.
    """

    NEVER, PENDING = -1, 2**31 - 1  # ticks: not written, and not written before a cp.async ends
    MANY = -1  # instead of a thread: several of the warp

    def __init__(self, start: int, size: int, blocks: int, warps: int) -> None:
        self.start, self.size, self.warps = start, size, warps
        self.stride = -(-size // 16) * 16
        granules = blocks * self.stride // GRANULE
        self.octets = np.empty(blocks * self.stride, np.uint8)
        self.write_tick, self.writer = np.zeros((2, 1, granules), np.int32)
        self.read_tick, self.reader = np.zeros((2, warps, granules), np.int32)
        self.warp_tick = np.zeros(blocks * warps, np.int32)

    def reset(self) -> None:
        """Nothing is written, as new blocks find it."""
        self.write_tick[:] = self.read_tick[:] = self.NEVER
        self.epoch = self.warp_tick[:] = self.tick = 0

    def barrier(self) -> None:
        """All threads of each block have met."""
        self.tick += 1
        self.epoch = self.warp_tick[:] = self.tick

    def warp_sync(self, warps: Array) -> None:
        """The lanes of each of these warps have met."""
        self.tick += 1
        self.warp_tick[warps] = self.tick

    def load(self, access: Access, for_warp: bool = False) -> Array:
        """What lies at the addresses; `for_warp`: every lane of the warp gets it."""
        place = self._place(access)
        ticks = self._view(self.write_tick, access)[0, place]
        access.forbid(ticks == self.NEVER, "read of shared memory never written")
        self._check_writer(access, place, "read", for_warp)
        self._note_read(access, place, for_warp)
        return self.octets.view(ELEMENTS[access.size])[place]

    def store(self, access: Access, values: Array) -> None:
        """Write elements."""
        self.finish_write(access, self.begin_write(access), values)

    def begin_write(self, access: Access) -> Array:
        """Check a write that has not ended when it returns; where it is, for `finish_write`."""
        place = self._place(access)
        self._check_writer(access, place, "write")
        self._check_readers(access, place)
        writer, threads = self._view(self.writer, access)[0], access.threads[:, None]
        writer[place] = threads
        access.forbid(writer[place] != threads, "race: write together with another thread")
        self._view(self.write_tick, access)[0, place] = self.PENDING
        return place

    def finish_write(self, access: Access, place: Array, values: Array) -> None:
        """End a write, with what it writes."""
        self.octets.view(values.dtype)[place] = values
        now = self.warp_tick[access.threads // WARP][:, None]
        self._view(self.write_tick, access)[0, place] = now

    def _place(self, access: Access) -> Array:
        """Where an access is, as indices of elements of its size."""
        offset, size = access.address - self.start, access.size
        access.forbid(access.address % size != 0, f"shared address not aligned to {size} bytes")
        outside = (offset < 0) | (offset + size > self.size)
        access.forbid(outside, f"shared access of {size} bytes outside its {self.size} bytes")
        return (offset + access.threads // (WARP * self.warps) * self.stride) // size

    @staticmethod
    def _view(record: Array, access: Access) -> Array:
        """A record of granules as [..., elements of an access's size, granules of each]."""
        return record.reshape(len(record), -1, access.size // GRANULE)

    def _check_writer(
        self, access: Access, place: Array, verb: str, for_warp: bool = False
    ) -> None:
        """The last write must be the thread's own or come before a synchronisation."""
        ticks = self._view(self.write_tick, access)[0, place]  # [n, granules]
        if ticks.max() < self.epoch:
            return
        pending = ticks == self.PENDING
        access.forbid(pending, f"{verb} of shared memory that a cp.async has not filled yet")
        writer = self._view(self.writer, access)[0, place]
        others = writer != (self.MANY if for_warp else access.threads[:, None])
        self._check_race(access, ticks, writer // WARP, others, f"{verb} of what {{}} wrote")

    def _check_readers(self, access: Access, place: Array) -> None:
        """All reads must be the thread's own or come before a synchronisation."""
        ticks = self._view(self.read_tick, access)[:, place]  # [warps, n, granules]
        readers = self._view(self.reader, access)[:, place]
        first = access.threads[:, None] // (WARP * self.warps) * self.warps
        for warp in np.flatnonzero((ticks >= self.epoch).any((1, 2))):
            others = readers[warp] != access.threads[:, None]
            self._check_race(access, ticks[warp], first + warp, others, "write over what {} read")

    def _check_race(
        self, access: Access, ticks: Array, warps: Array, others: Array, what: str
    ) -> None:
        """Forbid an access after earlier ones, of `warps` at `ticks`, without synchronisation.

        `others` is where they were of other threads, and {} in `what` stands for who they were.
        """
        warp = access.threads[:, None] // WARP
        recent = ticks >= self.epoch
        now = ticks == self.warp_tick[warp]
        far, near = what.format("another warp"), what.format("another lane of the warp")
        access.forbid(recent & (warps != warp), f"race: {far}, no bar.sync since")
        access.forbid(recent & (warps == warp) & now & others, f"race: {near}, no warp sync since")

    def _note_read(self, access: Access, place: Array, for_warp: bool) -> None:
        ticks, readers = self._view(self.read_tick, access), self._view(self.reader, access)
        warp, mine = access.threads // WARP, access.threads[:, None]
        where, now = (warp % self.warps, place), self.warp_tick[warp][:, None]
        again = (ticks[where] == now) & (readers[where] != mine)
        reader = self.MANY if for_warp else np.where(again, self.MANY, mine)
        readers[where] = reader
        again, granule = np.nonzero(readers[where] != reader)  # others read it in this instruction
        readers[where[0][again], where[1][again], granule] = self.MANY
        ticks[where] = now


class AsyncCopies:
    """Copies of `cp.async`: each is made when its thread waits for it, never earlier."""

    def __init__(self, memory: GlobalMemory, shared: SharedMemory, threads: int) -> None:
        self.memory, self.shared = memory, shared
        self.groups = np.zeros(threads, np.int64)  # that each thread has committed
        # Where to, the place there, where from, whether anything is read, and the group.
        self.pending: list[tuple[Access, Array, Access, Array, Array]] = []

    def reset(self) -> None:
        """Drop what is pending."""
        self.groups[:] = 0
        self.pending.clear()

    def begin(self, to: Access, source: Access, used: Array) -> None:
        """Begin copies, of zeros where nothing is `used`, in each thread's open group."""
        self.memory.check(source.of(used))
        groups = self.groups[to.threads]
        self.pending.append((to, self.shared.begin_write(to), source, used, groups))

    def commit(self, threads: Array) -> None:
        """Close each thread's open group."""
        self.groups[threads] += 1

    def wait(self, kept: int, waits: Array) -> None:
        """Make the copies of threads that wait but for those of their last `kept` groups."""
        pending, self.pending = self.pending, []
        for to, place, source, used, groups in pending:
            due = waits[to.threads] & (groups < self.groups[to.threads] - kept)
            values = np.zeros(len(used), ELEMENTS[to.size])
            values[due & used] = self.memory.load(source.of(due & used))
            self.shared.finish_write(to.of(due), place[due], values[due])
            if not due.all():
                copy = to.of(~due), place[~due], source.of(~due), used[~due], groups[~due]
                self.pending.append(copy)
