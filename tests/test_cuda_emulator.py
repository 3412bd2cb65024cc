"""The emulator runs right kernels right, and reports each kind of mistake.

Each word of the language is compared with its definition in NumPy, with threads, warps and blocks
run in both orders.  The kernels with mistakes are as small as they can be.
"""

import math

import numpy as np
import pytest
from cuda_emulator import launch
from emulator_numbers import EmulatorError, from_halves, to_halves
from numba import cuda, float32, int32, uint16, uint32, uint64

from minibert.kernels.cuda.language import (
    Kernel,
    commit_copies,
    copy16,
    device,
    exp2,
    fill,
    global_address,
    load,
    load4,
    load_fragments,
    multiply_fragments,
    multiply_tile,
    pack2,
    pack_fragments,
    shared_address,
    store,
    store4,
    store_fragments,
    store_tile,
    unpack2,
    wait_copies,
)

ALL_LANES = np.uint32(0xFFFFFFFF)
ONE, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)
KINDS = {"float32": "float32*", "uint16": "uint16*", "uint32": "uint32*", "int32": "int32*"}
PAIRS = ("float16", "bfloat16")  # dtypes of which a word holds two
wait_all = wait_copies(0)


@pytest.fixture(params=[False, True], ids=["forward", "reverse"])
def reverse(request):
    """The order of blocks, warps and lanes."""
    return request.param


def run(function, *arguments, threads=32, shared_bytes=0, grid=1, null="float32*", **options):
    """Launch a function as a kernel; its arguments say what they are."""

    def kind(value):
        if value is None:
            return null
        if isinstance(value, np.ndarray):
            return KINDS[value.dtype.name]
        return "int32" if isinstance(value, int) else "float32"

    kernel = Kernel("small", function, tuple(map(kind, arguments)), threads, shared_bytes)
    return launch(kernel, grid, arguments, **options)


def normal(*shape, seed=0):
    """Random float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(x, dtype):
    """Float32, rounded to 16 bits, and these bits in a flat array."""
    bits = to_halves(np.ascontiguousarray(x).ravel(), dtype)
    return from_halves(bits, dtype).reshape(x.shape), bits


# ---------------------------------------------------------------- memory, blocks and threads


def test_each_thread_of_each_block_runs_once(reverse):
    def kernel(x, y, count, factor):
        i = int32(cuda.blockIdx.x) * int32(cuda.blockDim.x) + int32(cuda.threadIdx.x)
        if i < count:
            store(y, i, load(x, i) * factor + float32(cuda.gridDim.x))

    x, y = normal(200), np.zeros(200, np.float32)
    statistics = run(kernel, x, y, 200, 0.5, threads=64, grid=4, reverse=reverse)
    assert (y == x * HALF + np.float32(4)).all()
    assert statistics.blocks == 4


def test_blocks_have_three_indices_and_some_can_be_chosen():
    def kernel(y):
        place = (int32(cuda.blockIdx.z) * int32(cuda.gridDim.y) + int32(cuda.blockIdx.y)) * int32(
            cuda.gridDim.x
        ) + int32(cuda.blockIdx.x)
        if cuda.threadIdx.x == 0:
            store(y, place, load(y, place) + int32(1))

    y = np.zeros(24, np.int32)
    assert run(kernel, y, grid=(2, 3, 4)).blocks == 24
    assert (y == 1).all()
    assert run(kernel, y, grid=(2, 3, 4), blocks=[1, (1, 2, 3)]).blocks == 2
    assert np.flatnonzero(y == 2).tolist() == [1, 23]


def test_order_can_be_reversed(reverse):
    def kernel(y):
        store(y, int32(0), int32(cuda.grid(1)))

    y = np.zeros(1, np.int32)
    run(kernel, y, grid=3, reverse=reverse)
    assert y[0] == (0 if reverse else 95)


@pytest.mark.parametrize("dtype", [np.float32, np.uint32])
def test_four_numbers_are_loaded_and_stored_at_once(dtype, reverse):
    def kernel(x, y):
        shared = cuda.shared.array(0, float32 if dtype is np.float32 else uint32, 128)
        i = int32(4) * int32(cuda.threadIdx.x)
        store4(shared, i, load4(x, i))
        cuda.syncwarp()
        a, b, c, d = load4(shared, int32(124) - i)
        store4(y, i, (d, c, b, a))

    x, y = normal(128).view(dtype), np.zeros(128, dtype)
    run(kernel, x, y, shared_bytes=512, reverse=reverse)
    assert (y == x[::-1]).all()


def test_a_view_into_a_larger_array_ends_where_it_ends():
    def kernel(x, i):
        store(x, i, ONE)

    whole = np.zeros(16, np.float32)
    run(kernel, whole[4:8], 3)
    assert np.flatnonzero(whole).tolist() == [7]
    with pytest.raises(EmulatorError, match=r"write to x\[4\]: out of bounds, it has 4"):
        run(kernel, whole[4:8], 4)


def test_shared_arrays_are_shared_and_apart(reverse):
    def kernel(x, y):
        a = cuda.shared.array(0, float32, alignment=128)
        b = cuda.shared.array(64, float32)
        i = int32(cuda.threadIdx.x)
        store(a, i, load(x, i))
        b[i] = x[i] + ONE
        cuda.syncthreads()
        store(y, i, a[int32(63) - i] * load(b, int32(63) - i))

    x, y = normal(64), np.zeros(64, np.float32)
    statistics = run(kernel, x, y, threads=64, shared_bytes=256, grid=2, reverse=reverse)
    assert (y == (x * (x + ONE))[::-1]).all()
    assert statistics.barriers == 2


def test_numbers_of_two_bytes_may_be_neighbours_of_another_warps(reverse):
    def kernel(y):
        halves = cuda.shared.array(64, uint16)
        i = int32(cuda.threadIdx.x)
        place = int32(2) * (i % int32(32)) + i // int32(32)  # the warps take turns
        store(halves, place, int32(7) + place)
        cuda.syncthreads()
        words = load(halves, i)
        store(y, i, words)

    y = np.zeros(64, np.uint16)
    run(kernel, y, threads=64, reverse=reverse)
    assert (y == 7 + np.arange(64)).all()


def test_copies_arrive_when_they_are_waited_for(reverse):
    wait_older = wait_copies(1)

    def kernel(x, y, early):
        shared = cuda.shared.array(0, float32, alignment=128)
        i = int32(cuda.threadIdx.x)
        to = shared_address(shared, int32(4) * i)
        copy16(to, global_address(x, uint64(4) * uint64(i)), uint32(16))
        commit_copies()
        inside = i < int32(8)
        outside = global_address(x, uint64(1 << 30))
        source = global_address(x, int32(4) * i) if inside else outside
        copy16(to + uint32(512), source, uint32(16) if inside else uint32(0))
        commit_copies()
        wait_older()
        cuda.syncthreads()
        store4(y, int32(4) * i, load4(shared, int32(4) * (i ^ int32(1))))
        if early:
            store(y, i, load(shared, int32(128) + i))
        wait_all()
        cuda.syncthreads()
        store4(y, int32(4) * (i + int32(32)), load4(shared, int32(128) + int32(4) * i))

    x, y = normal(128), np.zeros(256, np.float32)
    run(kernel, x, y, 0, shared_bytes=1024, reverse=reverse)
    swapped = x.reshape(-1, 2, 4)[:, ::-1].ravel()
    zeroed = np.where(np.arange(128) < 32, x, 0)
    assert (y == np.concatenate([swapped, zeroed])).all()
    with pytest.raises(EmulatorError, match="a copy to them was not waited for"):
        run(kernel, x, y, 1, shared_bytes=1024, reverse=reverse)


# ---------------------------------------------------------------- warps


def test_shuffles(reverse):
    def kernel(x, y):
        i = int32(cuda.threadIdx.x)
        value = load(x, i)
        store(y, i, cuda.shfl_xor_sync(ALL_LANES, value, 5))
        store(y, int32(32) + i, cuda.shfl_sync(ALL_LANES, value, i // int32(2)))
        store(y, int32(64) + i, cuda.shfl_up_sync(ALL_LANES, value, 3))
        store(y, int32(96) + i, cuda.shfl_down_sync(ALL_LANES, value, 3))

    x, y, lane = normal(32), np.zeros(128, np.float32), np.arange(32)
    run(kernel, x, y, reverse=reverse)
    up, down = np.where(lane < 3, lane, lane - 3), np.where(lane > 28, lane, lane + 3)
    assert (y == x[np.concatenate([lane ^ 5, lane // 2, up, down])]).all()


@device
def sum_of_lanes(x):
    x += cuda.shfl_xor_sync(ALL_LANES, x, 16)
    for distance in (8, 4, 2, 1):
        x += cuda.shfl_xor_sync(ALL_LANES, x, distance)
    return x


@device
def doubled(x):
    return TWO * x


def test_device_functions_may_wait_for_others(reverse):
    @device
    def sums_of_both(x, y):
        return sum_of_lanes(doubled(x)), sum_of_lanes(y)

    def kernel(x, y):
        i: int32 = int32(cuda.threadIdx.x)
        a, b = sums_of_both(load(x, i), ONE)
        store(y, i, a + b)

    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    run(kernel, x, y, threads=64, reverse=reverse)
    assert (y == np.repeat(2 * x.reshape(2, 32).sum(1) + 32, 32)).all()


# ---------------------------------------------------------------- tensor cores


@device
def copy_all(x, shared, count):
    """Copy `count` bytes to the beginning of shared memory."""
    i = int32(cuda.threadIdx.x)
    while i < count // int32(16):
        to = shared_address(shared, int32(0)) + uint32(16) * uint32(i)
        copy16(to, global_address(x, int32(8) * i), uint32(16))
        i += int32(32)
    commit_copies()
    wait_all()
    cuda.syncthreads()


@pytest.mark.parametrize("xor", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_fragments_are_loaded(xor, transposed, reverse):
    read = load_fragments(2, 32, xor=xor, transposed=transposed)

    def kernel(x, y, stride):
        shared = cuda.shared.array(0, uint16, alignment=128)
        words = cuda.local.array(8, uint32)
        copy_all(x, shared, int32(4096))
        lane = int32(cuda.threadIdx.x)
        read(words, shared_address(shared, lane * stride))
        for i in range(8):
            store(y, lane * int32(8) + int32(i), words[i])

    x, y = np.arange(2048, dtype=np.uint16), np.zeros(256, np.uint32)
    statistics = run(kernel, x, y, 40, shared_bytes=4096, reverse=reverse)
    got = y.view(np.uint16).reshape(32, 2, 4, 2)
    for tile in range(2):
        start = [80 * lane ^ 32 * tile if xor else 80 * lane + 32 * tile for lane in range(32)]
        rows = np.array([x[s // 2 : s // 2 + 8] for s in start]).reshape(4, 8, 8)
        matrices = rows.swapaxes(1, 2) if transposed else rows
        for lane in range(32):
            column = 2 * (lane % 4)
            expected = matrices[:, lane // 4, column : column + 2]
            assert (got[lane, tile] == expected).all()
    assert statistics.fragment_loads == 8
    assert statistics.bank_conflicts == 0


def test_bank_conflicts_are_counted():
    read = load_fragments(1, 16)

    def kernel(x, stride):
        shared = cuda.shared.array(0, uint16, alignment=128)
        words = cuda.local.array(4, uint32)
        copy_all(x, shared, int32(4096))
        read(words, shared_address(shared, int32(cuda.threadIdx.x) * stride))

    x = np.zeros(2048, np.uint16)
    for stride, lost in ((8, 0), (16, 4 * 4), (64, 4 * 7)):
        assert run(kernel, x, stride, shared_bytes=4096).bank_conflicts == lost


def product(dtype, transposed):
    """y [32, 16] = a [32, 16] @ b, where b is [16, 16], or given as its transpose."""
    load_a, load_b = load_fragments(2, 16 * 32), load_fragments(1, 32, transposed=not transposed)
    multiply = multiply_fragments(2, 2, dtype)
    write, clear = store_fragments(2, 2), fill(16)

    def kernel(ab, y, held):
        shared = cuda.shared.array(0, uint16, alignment=128)
        sums = cuda.local.array(16, float32)
        a = cuda.local.array(8, uint32)
        b = cuda.local.array(4, uint32)
        lane = uint32(cuda.threadIdx.x)
        copy_all(ab, shared, int32(1536))
        start = shared_address(shared, int32(0))
        clear(sums, ONE)
        load_a(a, start + (lane & uint32(15)) * uint32(32) + (lane >> uint32(4)) * uint32(16))
        row, half = lane & uint32(15), lane >> uint32(4)
        if transposed:
            row = (lane & uint32(7)) + ((lane >> uint32(4)) << uint32(3))
            half = (lane >> uint32(3)) & uint32(1)
        load_b(b, start + uint32(1024) + row * uint32(32) + half * uint32(16))
        multiply(sums, a, b)
        for i in range(16):
            store(held, int32(lane) * int32(16) + int32(i), load(sums, int32(i)))
        cuda.syncthreads()
        matrix = cuda.shared.array(0, float32, alignment=128)
        write(sums, matrix, int32(2), int32(18), int32(lane))
        cuda.syncthreads()
        for r in range(16):
            place = int32(2 * r) + int32(lane // uint32(16))
            column = int32(lane % uint32(16))
            value = load(matrix, int32(2) + place * int32(18) + column)
            store(y, place * int32(16) + column, value)

    return kernel


@pytest.mark.parametrize("dtype", PAIRS)
@pytest.mark.parametrize("transposed", [False, True])
def test_fragments_are_multiplied(dtype, transposed, reverse):
    a, a_bits = rounded(normal(32, 16), dtype)
    b, b_bits = rounded(normal(16, 16, seed=1), dtype)
    y, held = np.zeros(512, np.float32), np.zeros(512, np.float32)
    ab = np.concatenate([a_bits, b_bits])
    run(product(dtype, transposed), ab, y, held, shared_bytes=2368, reverse=reverse)
    exact = a.astype(np.float64) @ (b.T if transposed else b)
    expected = exact.astype(np.float32) + ONE
    assert (y.reshape(32, 16) == expected).all()
    for lane, sums in enumerate(held.reshape(32, 2, 2, 4)):  # [m, n, number]
        row, column = lane // 4, 2 * (lane % 4)
        for m, n, i in np.ndindex(2, 2, 4):
            place = 16 * m + row + 8 * (i // 2), 8 * n + column + i % 2
            assert sums[m, n, i] == expected[place]


@pytest.mark.parametrize("dtype", PAIRS)
def test_sums_can_be_packed_as_the_next_left_operand(dtype, reverse):
    """With a unit matrix as the right operand, the second product gives its left one back."""
    pack, write = pack_fragments(4, dtype), store_fragments(1, 2)
    first, second = multiply_fragments(1, 2, dtype), multiply_fragments(1, 2, dtype, 4)
    clear, pair = fill(8), pack2(dtype)

    def kernel(x, y):
        shared = cuda.shared.array(0, float32, alignment=128)
        sums = cuda.local.array(16, float32)
        words = cuda.local.array(8, uint32)
        unit = cuda.local.array(4, uint32)
        result = cuda.local.array(8, float32)
        lane = int32(cuda.threadIdx.x)
        for i in range(16):
            store(sums, int32(i), load(x, lane * int32(16) + int32(i)))
        pack(sums, words)
        # Column g, rows 2t and 2t + 1, then 2t + 8 and 2t + 9: ones where they are the same.
        for i in range(4):
            g = lane // int32(4) + int32(8 * (i // 2))
            t = int32(2) * (lane % int32(4)) + int32(8 * (i % 2))
            low = ONE if g == t else float32(0)
            high = ONE if g == t + int32(1) else float32(0)
            store(unit, int32(i), pair(low, high))
        for which in range(2):
            clear(result, float32(0))
            if which == 0:
                first(result, words, unit)
            else:
                second(result, words, unit)
            write(result, shared, int32(256 * which), int32(16), lane)
        cuda.syncwarp()
        for i in range(16):
            place = int32(32 * i) + lane
            store(y, place, load(shared, place))

    x, y = normal(32, 2, 2, 4), np.zeros((2, 16, 16), np.float32)  # [lane, half, n, number]
    run(kernel, x.ravel(), y.ravel(), shared_bytes=2048, reverse=reverse)
    kept, _ = rounded(x, dtype)
    for lane, half, n, i in np.ndindex(x.shape):
        place = lane // 4 + 8 * (i // 2), 8 * n + 2 * (lane % 4) + i % 2
        assert y[half][place] == kept[lane, half, n, i]


# ---------------------------------------------------------------- float32 tiles


@pytest.mark.parametrize("threads", [32, 24])
def test_tiles_are_multiplied(threads, reverse):
    """`threads` of a warp compute a tile each, 8 x 4; the others nothing."""
    multiply = multiply_tile(3, 8, 4, (64, 36, 32, 0))
    upper, lower = store_tile(4, 0, 4, 4), store_tile(4, 4, 4, 4)
    clear = fill(32)

    def kernel(ab, y):
        shared = cuda.shared.array(0, float32, alignment=128)
        sums = cuda.local.array(32, float32)
        lane = int32(cuda.threadIdx.x)
        for i in range(10):
            if int32(32 * i) + lane < int32(300):
                store(shared, int32(32 * i) + lane, load(ab, int32(32 * i) + lane))
        cuda.syncthreads()
        i, j = lane // int32(8) * int32(4), lane % int32(8) * int32(4)
        clear(sums, float32(1))
        if lane < int32(threads):
            multiply(sums, shared, i, int32(192) + j)
            multiply(sums, shared, i, int32(192) + j)
        cuda.syncthreads()
        upper(sums, shared, i * int32(32) + j, int32(32))
        lower(sums, shared, (i + int32(16)) * int32(32) + j, int32(32))
        cuda.syncthreads()
        for i in range(32):
            store(y, int32(32 * i) + lane, load(shared, int32(32 * i) + lane))

    ab, y = normal(300), np.zeros((32, 32), np.float32)
    run(kernel, ab, y.ravel(), shared_bytes=4096, reverse=reverse)
    a = ab[:192].reshape(3, 2, 32)[:, :, :16].reshape(3, 32)  # rows 0-15 and, 32 on, 16-31
    b = ab[192:300].reshape(3, 36)[:, :32]
    expected = 1 + 2 * (a.T.astype(np.float64) @ b)
    computed = np.arange(32) % 16 < threads // 2
    assert (y[~computed] == 1).all()
    assert np.allclose(y[computed], expected[computed], rtol=0, atol=2e-6)


def test_each_sum_of_a_tile_is_rounded_once():
    multiply = multiply_tile(1, 4, 4, (4, 4, 0, 0))
    clear = fill(16)

    def kernel(x, y):
        shared = cuda.shared.array(0, float32, alignment=128)
        sums = cuda.local.array(16, float32)
        lane = int32(cuda.threadIdx.x)
        store(shared, lane, load(x, int32(0)))
        cuda.syncwarp()
        clear(sums, float32(-1))
        multiply(sums, shared, int32(0), int32(4))
        store(y, lane, load(sums, int32(15)))

    x, y = np.array([1 + 2.0**-12], np.float32), np.zeros(32, np.float32)
    run(kernel, x, y, shared_bytes=128)
    assert (y == np.float32(2.0**-11 + 2.0**-24)).all()


# ---------------------------------------------------------------- numbers

# float32 -> its bits in float16 and bfloat16: exact, ties both ways, just past one, largest.
HALVES = [
    (1.0, 0x3C00, 0x3F80),
    (-2.0, 0xC000, 0xC000),
    (1 + 2.0**-11, 0x3C00, 0x3F80),
    (1 + 3 * 2.0**-11, 0x3C02, 0x3F80),
    (1 + 2.0**-8, 0x3C04, 0x3F80),
    (1 + 3 * 2.0**-8, 0x3C0C, 0x3F82),
    (1 + 2.0**-8 + 2.0**-20, 0x3C04, 0x3F81),
    (65520.0, 0x7C00, 0x4780),
    (3.4e38, 0x7C00, 0x7F80),
    (math.inf, 0x7C00, 0x7F80),
    (2.0**-24, 0x0001, 0x3380),
]


@pytest.mark.parametrize("dtype", PAIRS)
def test_numbers_are_packed_in_pairs(dtype):
    pack, unpack = pack2(dtype), unpack2(dtype)

    def kernel(x, words, y, count):
        i = int32(cuda.threadIdx.x)
        if i < count:
            word = pack(load(x, i), load(x, int32(0)))
            store(words, i, word)
            low, high = unpack(word)
            store(y, int32(2) * i, low)
            store(y, int32(2) * i + int32(1), high)

    numbers, bits = np.array(HALVES).T[0], np.array(HALVES).T[1 + PAIRS.index(dtype)]
    x, n = numbers.astype(np.float32), len(HALVES)
    words, y = np.zeros(n, np.uint32), np.zeros(2 * n, np.float32)
    run(kernel, x, words, y, n)
    assert (words & 0xFFFF == bits).all()
    assert (words >> 16 == bits[0]).all()
    assert (y[1::2] == 1).all()
    assert (y[::2] == from_halves(bits.astype(np.uint16), dtype)).all()


@pytest.mark.parametrize("dtype", PAIRS)
def test_what_is_no_number_stays_so(dtype):
    patterns = np.array([0x7FC00000, 0xFFFFFFFF, 0x7F800001, 0x7FFF8000], np.uint32)
    bits = to_halves(patterns.view(np.float32), dtype)
    assert np.isnan(from_halves(bits, dtype)).all()


def test_powers_of_two():
    def kernel(x, y):
        i = int32(cuda.threadIdx.x)
        store(y, i, exp2(load(x, i)))

    x, y = np.linspace(-140, 140, 32, dtype=np.float32), np.zeros(32, np.float32)
    run(kernel, x, y)
    exact = np.exp2(x.astype(np.float64))
    exact[exact < 2.0**-126], exact[exact >= 2.0**128] = 0, np.inf
    assert (y == exact.astype(np.float32)).all()


def test_math_gives_float32():
    def kernel(x, y):
        i = int32(cuda.threadIdx.x)
        z = load(x, i)
        store(y, i, ONE / math.sqrt(z) + math.erf(z) * math.exp(-z))

    x, y = abs(normal(32)) + ONE, np.zeros(32, np.float32)
    run(kernel, x, y)
    erf = np.array([math.erf(z) for z in x], np.float32)
    assert (y == ONE / np.sqrt(x) + erf * np.exp(-x.astype(np.float64)).astype(np.float32)).all()


def test_unsigned_numbers_wrap_and_what_is_between_casts_is_exact():
    def kernel(y):
        big = int32(2_000_000_000)
        store(y, int32(0), uint32(-1))
        store(y, int32(1), uint32(uint64(-1) >> uint64(40)))
        store(y, int32(2), int32(big * big // big))
        store(y, int32(3), uint32(ALL_LANES + ALL_LANES) ^ uint32(1))

    y = np.zeros(4, np.uint32)
    run(kernel, y)
    assert y.tolist() == [2**32 - 1, 2**24 - 1, 2_000_000_000, 2**32 - 1]


def test_memory_is_poisoned():
    def kernel(y, words):
        a = cuda.local.array(1, float32)
        b = cuda.local.array(1, uint32)
        c = cuda.shared.array(1, float32)
        store(y, int32(0), load(a, int32(0)))
        store(y, int32(1), load(c, int32(0)))
        store(words, int32(0), load(b, int32(0)))

    y, words = np.zeros(2, np.float32), np.zeros(1, np.uint32)
    run(kernel, y, words, races=False)
    assert np.isnan(y).all()
    assert words[0] == 0xFFFFFFFF


# ---------------------------------------------------------------- mistakes
#
# Each takes an array of 64 float32 and an int32 that is 0, and is run by two warps.


@device
def filled(shared):
    """Write all of 256 numbers, so that what follows reads nothing uninitialised."""
    for j in range(4):
        store(shared, int32(64 * j) + int32(cuda.threadIdx.x), ONE)
    cuda.syncthreads()


def missing_barrier(x, zero):
    shared = cuda.shared.array(256, float32)
    filled(shared)
    i = int32(cuda.threadIdx.x)
    store(shared, i, TWO)
    store(x, i, load(shared, i ^ int32(32)))


def missing_second_barrier(x, zero):
    shared = cuda.shared.array(64, float32)
    i = int32(cuda.threadIdx.x)
    store(shared, i, ONE)
    cuda.syncthreads()
    store(x, i, load(shared, i ^ int32(32)))
    store(shared, i, TWO)


def write_after_read(x, zero):
    shared = cuda.shared.array(256, float32)
    filled(shared)
    i = int32(cuda.threadIdx.x)
    if i < 32:
        load(shared, i)
    else:
        store(shared, i - int32(32), TWO)


def write_after_both_warps_read(x, zero):
    shared = cuda.shared.array(256, float32)
    filled(shared)
    i = int32(cuda.threadIdx.x)
    if i % 32 == 0:
        load(shared, int32(0))
    cuda.syncwarp()
    if i == 32:
        store(shared, int32(0), TWO)


def write_after_two_lanes_read(x, zero):
    shared = cuda.shared.array(256, float32)
    filled(shared)
    if cuda.threadIdx.x < 2:
        load(shared, int32(0))
    if cuda.threadIdx.x == 1:
        store(shared, int32(0), TWO)


def both_write(x, zero):
    shared = cuda.shared.array(64, float32)
    store(shared, int32(cuda.threadIdx.x) % int32(32), ONE)


def missing_barrier_of_the_warp(x, zero):
    shared = cuda.shared.array(256, float32)
    filled(shared)
    i = int32(cuda.threadIdx.x)
    store(shared, i, ONE)
    store(x, i, load(shared, i ^ int32(1)))


def missing_barrier_before_a_tile(x, zero):
    shared = cuda.shared.array(256, float32)
    filled(shared)
    sums = cuda.local.array(16, float32)
    store(shared, int32(cuda.threadIdx.x), ONE)
    multiply_4(sums, shared, int32(0), int32(0))


def missing_barrier_before_fragments(x, zero):
    shared = cuda.shared.array(256, float32)
    words = cuda.local.array(4, uint32)
    filled(shared)
    lane = int32(cuda.threadIdx.x) % int32(32)
    if cuda.threadIdx.x < 32:
        store(shared, int32(4) * lane, TWO)  # of the row whose address the lane itself gives
        load_4(words, shared_address(shared, int32(4) * lane))


def missing_barrier_after_a_tile(x, zero):
    shared = cuda.shared.array(64, float32)
    sums = cuda.local.array(16, float32)
    store(shared, int32(cuda.threadIdx.x), ONE)
    cuda.syncthreads()
    multiply_4(sums, shared, int32(0), int32(0))
    store(shared, int32(cuda.threadIdx.x), ONE)


def tiles_on_top_of_each_other(x, zero):
    shared = cuda.shared.array(64, float32)
    sums = cuda.local.array(16, float32)
    store_4(sums, shared, int32(cuda.threadIdx.x) // int32(32) * int32(16), int32(4))


def fragments_over_what_was_read(x, zero):
    shared = cuda.shared.array(256, float32)
    sums = cuda.local.array(8, float32)
    filled(shared)
    i = int32(cuda.threadIdx.x)
    load(shared, i ^ int32(32))
    if i < 32:
        store_8(sums, shared, int32(0), int32(16), i)


def fragments_over_what_was_written(x, zero):
    shared = cuda.shared.array(256, float32)
    sums = cuda.local.array(8, float32)
    filled(shared)
    i = int32(cuda.threadIdx.x)
    if i < 32:
        store(shared, i, TWO)
    else:
        store_8(sums, shared, int32(0), int32(16), i - int32(32))


def uninitialised(x, zero):
    shared = cuda.shared.array(64, float32)
    if cuda.threadIdx.x < 32:
        store(shared, int32(cuda.threadIdx.x), ONE)
    cuda.syncthreads()
    store(x, int32(0), load(shared, int32(40)))


def missing_wait(x, zero):
    shared = cuda.shared.array(256, float32)
    i = int32(4) * (int32(cuda.threadIdx.x) % int32(16))
    to = shared_address(shared, int32(4) * int32(cuda.threadIdx.x))
    copy16(to, global_address(x, i), uint32(16))
    commit_copies()
    cuda.syncthreads()
    store(x, i, load(shared, i))


def missing_commit(x, zero):
    shared = cuda.shared.array(256, float32)
    i = int32(4) * int32(cuda.threadIdx.x)
    copy16(shared_address(shared, i), global_address(x, zero), uint32(16))
    wait_all()
    cuda.syncthreads()
    load4(shared, i)


def missing_barrier_after_a_copy(x, zero):
    shared = cuda.shared.array(256, float32)
    filled(shared)
    i = int32(4) * int32(cuda.threadIdx.x)
    copy16(shared_address(shared, i), global_address(x, zero), uint32(16))
    commit_copies()
    wait_all()
    load4(shared, i ^ int32(4))


def copy_from_outside(x, zero):
    shared = cuda.shared.array(64, float32)
    copy16(shared_address(shared, int32(0)), global_address(x, int32(64)), uint32(16))


def copy_to_outside(x, zero):
    shared = cuda.shared.array(64, float32)
    copy16(shared_address(shared, int32(64)), global_address(x, int32(0)), uint32(16))


def copy_of_a_few(x, zero):
    shared = cuda.shared.array(64, float32)
    copy16(shared_address(shared, int32(0)), global_address(x, int32(0)), uint32(8))


def misaligned_copy(x, zero):
    shared = cuda.shared.array(64, float32)
    copy16(shared_address(shared, int32(0)), global_address(x, int32(2)), uint32(16))


def misaligned_copy_target(x, zero):
    shared = cuda.shared.array(64, float32)
    copy16(shared_address(shared, int32(2)), global_address(x, int32(0)), uint32(16))


def read_outside(x, zero):
    store(x, int32(0), load(x, int32(cuda.threadIdx.x) + int32(1)))


def write_outside(x, zero):
    store(x, int32(cuda.threadIdx.x) - int32(1), ONE)


def shared_outside(x, zero):
    shared = cuda.shared.array(32, float32)
    store(shared, int32(cuda.threadIdx.x), ONE)


def local_outside(x, zero):
    local = cuda.local.array(4, float32)
    local[zero - int32(1)] = ONE


def four_outside(x, zero):
    load4(x, int32(64))


def misaligned_load4(x, zero):
    load4(x, int32(2))


def misaligned_store4(x, zero):
    store4(cuda.shared.array(64, float32), int32(1), (ONE, ONE, ONE, ONE))


def misaligned_tile(x, zero):
    shared = cuda.shared.array(64, float32)
    sums = cuda.local.array(16, float32)
    store(shared, int32(cuda.threadIdx.x), ONE)
    cuda.syncthreads()
    multiply_4(sums, shared, int32(0), int32(2))


def tile_outside(x, zero):
    sums = cuda.local.array(16, float32)
    shared = cuda.shared.array(256, float32)
    filled(shared)
    multiply_4(sums, shared, int32(0), int32(256))


def fragments_outside(x, zero):
    words = cuda.local.array(4, uint32)
    shared = cuda.shared.array(64, float32)
    load_4(words, shared_address(shared, int32(4) * int32(cuda.threadIdx.x)))


def too_few_words(x, zero):
    words = cuda.local.array(2, uint32)
    shared = cuda.shared.array(256, float32)
    filled(shared)
    lane = int32(cuda.threadIdx.x) % int32(32)
    load_4(words, shared_address(shared, int32(4) * lane))


def shuffle_of_some(x, zero):
    if cuda.threadIdx.x % 2 == 0:
        cuda.shfl_xor_sync(ALL_LANES, ONE, 1)


def shuffle_at_two_places(x, zero):
    if cuda.threadIdx.x < 16:
        cuda.shfl_xor_sync(ALL_LANES, ONE, 1)
    else:
        cuda.shfl_xor_sync(ALL_LANES, ONE, 1)


def shuffle_and_barrier(x, zero):
    if cuda.threadIdx.x < 16:
        cuda.syncwarp()
    else:
        cuda.syncthreads()


def barrier_of_one_warp(x, zero):
    if cuda.threadIdx.x >= 32:
        return
    cuda.syncthreads()


def barrier_after_end(x, zero):
    if cuda.threadIdx.x == 0:
        return
    cuda.syncthreads()


def shuffle_with_a_mask(x, zero):
    cuda.shfl_xor_sync(uint32(0xFFFF), ONE, 1)


def overflow(x, zero):
    int32(int32(65536) * int32(cuda.threadIdx.x + 32767))


def overflow_of_a_store(x, zero):
    store(cuda.local.array(1, int32), int32(0), int32(2_000_000_000) + int32(2_000_000_000))


def float64(x, zero):
    store(x, int32(0), 0.1 * load(x, int32(0)))


def float64_constant(x, zero):
    store(x, int32(0), TENTH * load(x, int32(0)))


def float64_from_math(x, zero):
    store(x, int32(0), math.sqrt(zero + int32(2)))


def division_by_zero(x, zero):
    int32(1) // zero


def unknown_word(x, zero):
    cuda.atomic.add(x, 0, ONE)


multiply_4 = multiply_tile(2, 4, 4, (4, 4, 0, 0))
store_4, store_8 = store_tile(4, 0, 4, 4), store_fragments(1, 2)
TENTH = 0.1
load_4 = load_fragments(1, 16)

RACE = r"race, (written|read) by lane \d+ of warp [01] since the last"
MISTAKES = [
    (missing_barrier, f"{RACE} barrier"),
    (missing_second_barrier, "read of .*: race, written by lane .* since the last barrier"),
    (write_after_read, f"{RACE} barrier"),
    (write_after_both_warps_read, "race, (read by several warps|written by lane 0 of warp 1)"),
    (write_after_two_lanes_read, "race, (read by several lanes|written by lane 1) of warp 0"),
    (both_write, "write to the shared bytes from .*race, written by"),
    (missing_barrier_of_the_warp, f"{RACE} collective"),
    (missing_barrier_before_a_tile, r"race, (written|read) by .* since the last \w+"),
    (missing_barrier_before_fragments, r"race, (written|read) by .* since the last \w+"),
    (missing_barrier_after_a_tile, "write to the shared .*: race, read by several (lanes|warps)"),
    (tiles_on_top_of_each_other, "store_tile at .*race, written by lane 31 of warp"),
    (fragments_over_what_was_read, "store_fragments at .*: race, read by lane"),
    (fragments_over_what_was_written, "race, written by lane .* since the last barrier"),
    (uninitialised, "read of the shared bytes from 160: uninitialised shared memory"),
    (missing_wait, "a copy to them was not waited for"),
    (missing_commit, "a copy to them was not waited for"),
    (missing_barrier_after_a_copy, f"{RACE} collective"),
    (copy_from_outside, r"copy16 from x\[64\]: out of bounds, it has 64"),
    (copy_to_outside, "shared address 256 of 256 bytes: out of bounds"),
    (copy_of_a_few, "copy16 of 8 bytes"),
    (misaligned_copy, "copy16 from x: misaligned, byte 8"),
    (misaligned_copy_target, "shared address 8: misaligned"),
    (read_outside, r"thread 63, test_cuda_emulator.py:\d+: read of x\[64\]: out of bounds"),
    (write_outside, r"thread 0, test_cuda_emulator.py:\d+: write to x\[-1\]: out of bounds"),
    (shared_outside, r"write to shared float32\[\d+\]: out of bounds, it has 32"),
    (local_outside, r"write to a local array\[-1\]: out of bounds, it has 4"),
    (four_outside, r"read of x\[64\]: out of bounds"),
    (misaligned_load4, r"read of x\[2\]: misaligned"),
    (misaligned_store4, r"write to shared float32\[1\]: misaligned"),
    (misaligned_tile, r"multiply_tile at .*: read of shared float32\[2\]: misaligned"),
    (tile_outside, r"multiply_tile at .*: read of shared float32\[256\]: out of bounds"),
    (fragments_outside, "load_fragments at .*: shared address .* of 256 bytes: out of bounds"),
    (too_few_words, r"use of a local array\[3\]: out of bounds, it has 2"),
    (shuffle_of_some, r"divergent, threads .*shuffle at test_cuda_emulator.py:\d+.*ended"),
    (shuffle_at_two_places, "divergent, threads 0-15: shuffle at .*; 16-31: shuffle at"),
    (shuffle_and_barrier, "divergent, threads 0-15: syncwarp at .*; 16-31: syncthreads at"),
    (barrier_of_one_warp, "divergent, threads 0-31: syncthreads at .*; 32-63: ended"),
    (barrier_after_end, "divergent, threads 0: ended; 1-31: syncthreads"),
    (shuffle_with_a_mask, "a mask of 0xffff"),
    (overflow, "does not fit into int32"),
    (overflow_of_a_store, "4000000000 does not fit into int32"),
    (float64, "a float64 where float32 is expected"),
    (float64_constant, "a float64 where float32 is expected"),
    (float64_from_math, "a float64 where float32 is expected"),
    (division_by_zero, "ZeroDivisionError"),
    (unknown_word, "AttributeError.*atomic"),
]


@pytest.mark.parametrize(
    ("function", "message"), MISTAKES, ids=lambda x: getattr(x, "__name__", "")
)
def test_mistakes_are_reported(function, message, reverse):
    with pytest.raises(EmulatorError, match=message) as caught:
        run(function, np.ones(64, np.float32), 0, threads=64, reverse=reverse)
    assert str(caught.value).startswith("small: block (0, 0, 0)")


def test_a_null_pointer_must_not_be_touched():
    def kernel(x, y, touch):
        if touch == int32(1):
            store(y, int32(0), load(x, int32(0)))
        if touch == int32(2):
            shared = cuda.shared.array(64, float32)
            copy16(shared_address(shared, int32(0)), global_address(x, int32(0)), uint32(16))

    y = np.zeros(1, np.float32)
    run(kernel, None, y, 0)
    for touch in (1, 2):
        with pytest.raises(EmulatorError, match="x, a null pointer|in no argument"):
            run(kernel, None, y, touch)


def test_what_lies_behind_an_array_is_in_no_other():
    def kernel(x, y):
        shared = cuda.shared.array(64, float32)
        copy16(shared_address(shared, int32(0)), global_address(x, int32(8)), uint32(16))

    both = np.zeros(16, np.float32)
    with pytest.raises(EmulatorError, match=r"copy16 from x\[8\]: out of bounds"):
        run(kernel, both[:8], both[8:])


def test_arguments_must_be_as_declared():
    def kernel(x, count):
        pass

    declared = Kernel("small", kernel, ("float32*", "int32"), 32)
    good = np.zeros(4, np.float32)
    for arguments, message in (
        ((good,), "1 arguments"),
        ((good.astype(np.float64), 1), "not a flat array of float32"),
        ((good.reshape(2, 2), 1), "not a flat array of float32"),
        ((good[::2], 1), "not contiguous"),
        ((1.0, 1), "not a flat array of float32"),
        ((good, 1 << 31), "2147483648 does not fit into int32"),
    ):
        with pytest.raises(EmulatorError, match=f"small: .*{message}"):
            launch(declared, 1, arguments)
    with pytest.raises(EmulatorError, match="33 threads"):
        launch(Kernel("small", kernel, ("float32*", "int32"), 33), 1, (good, 1))


def test_races_need_not_be_checked():
    y = np.zeros(64, np.float32)
    run(missing_barrier_of_the_warp, y, 0, threads=64, races=False)
    assert (y[1::2] == 1).all()


def test_a_collective_orders_the_lanes_of_its_warp_only(reverse):
    def kernel(y, distance):
        shared = cuda.shared.array(64, float32)
        i = int32(cuda.threadIdx.x)
        store(shared, i, float32(i))
        cuda.syncwarp()
        store(y, i, load(shared, i ^ distance))

    y = np.zeros(64, np.float32)
    run(kernel, y, 31, threads=64, reverse=reverse)
    assert (y == (np.arange(64) ^ 31)).all()
    with pytest.raises(EmulatorError, match="since the last barrier|uninitialised"):
        run(kernel, y, 32, threads=64, reverse=reverse)


def test_a_thread_may_read_again_and_then_write(reverse):
    def kernel(y):
        shared = cuda.shared.array(64, float32)
        i = int32(cuda.threadIdx.x)
        store(shared, i, ONE)
        value = load(shared, i)
        cuda.syncwarp()
        store(shared, i, value + load(shared, i))
        value = load(shared, i)
        cuda.syncthreads()
        if i < 32:
            store(y, i, load(shared, i + int32(32)) + value)
        cuda.syncthreads()
        store(shared, i ^ int32(32), ONE)

    y = np.zeros(32, np.float32)
    run(kernel, y, threads=64, reverse=reverse)
    assert (y == 4).all()
