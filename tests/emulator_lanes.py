"""What instructions of several lanes do, in NumPy, for the CUDA emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from emulator_memory import Array, LocalArray, SharedArray
from emulator_numbers import LANES, LARGEST_WORD, Fault, Statistics, from_halves, to_halves

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
