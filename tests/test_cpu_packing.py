"""Weights in panels, in bfloat16 and in int8: what the CPU kernels read is what the model has."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
from builders import dense
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from minibert.batches import pack
from minibert.kernels.cpu.packing import (
    UNROLL,
    aligned,
    from_bfloat16,
    pack_dense,
    pack_head,
    pack_norm,
    pack_panels,
    quantise_rows,
    round_up,
    to_bfloat16,
)
from minibert.kernels.cpu.targets import TARGETS
from minibert.model import load_model
from minibert.parameters import Dense, Int8, Norm

WIDE = next(target for target in TARGETS if target.panel == 32)
NARROW = TARGETS[-1]
each_width = pytest.mark.parametrize("target", [WIDE, NARROW], ids=lambda target: target.name)

# ---------------------------------------------------------------- panels


def unpack(panels):
    """Panels [P, steps, panel, numbers a step] -> the matrix, with the zeros around it."""
    count, steps, panel, per = panels.shape
    return panels.transpose(0, 2, 1, 3).reshape(count * panel, steps * per)


@each_width
@pytest.mark.parametrize("dtype", ["float32", "uint16", "int8"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (8, 16), (33, 17), (64, 64), (100, 130)])
def test_panels_hold_the_matrix_and_zeros_around_it(target, dtype, shape):
    matrix = np.random.default_rng(0).integers(1, 120, shape).astype(dtype)
    panels = pack_panels(matrix, target)
    assert panels.dtype == matrix.dtype
    assert panels.shape[2:] == (target.panel, 4 // matrix.itemsize)  # a step has four bytes
    assert panels.shape[1] % UNROLL == 0
    whole = unpack(panels)
    assert whole.shape[0] - shape[0] < target.panel
    np.testing.assert_array_equal(whole[: shape[0], : shape[1]], matrix)
    assert np.count_nonzero(whole) == matrix.size


def test_a_panel_is_read_in_the_order_in_which_it_lies():
    matrix = np.arange(8 * 8, dtype=np.int8).reshape(8, 8)  # eight columns of y, two steps of four
    panels = pack_panels(matrix, NARROW)
    assert panels.ravel()[:12].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]
    assert panels.ravel()[32:36].tolist() == [4, 5, 6, 7]


@given(st.integers(0, 10**6), st.integers(1, 10**4))
def test_round_up_gives_the_next_multiple(n, multiple):
    assert 0 <= round_up(n, multiple) - n < multiple
    assert round_up(n, multiple) % multiple == 0


@pytest.mark.parametrize("shape", [(1,), (5, 7), (3, 1, 2)])
def test_aligned_memory_is_zero_and_begins_at_a_cache_line(shape):
    for dtype in (np.float32, np.int8):
        memory = aligned(shape, dtype)
        assert memory.shape == shape
        assert memory.dtype == dtype
        assert memory.ctypes.data % 64 == 0
        assert not memory.any()


# ---------------------------------------------------------------- bfloat16

LARGEST = (2 - 2.0**-7) * 2.0**127  # of bfloat16
floats = st.floats(-LARGEST, LARGEST, width=32)


def nearest_bfloat16(x):
    """The nearest number of 8 significant bits, in float64; the even one if two are as near."""
    _, exponent = math.frexp(x)
    unit = 2.0 ** max(exponent - 8, -133)  # numbers near zero are all multiples of the least
    return round(x / unit) * unit  # Python rounds ties to even


@given(floats)
def test_bfloat16_is_the_nearest_number(x):
    assert from_bfloat16(to_bfloat16(np.array([x], np.float32)))[0] == nearest_bfloat16(x)


@given(st.integers(0, 0x7F7F), st.booleans())
def test_halfway_between_two_bfloat16_the_even_one_is_taken(bits, negative):
    tie = np.array([(bits << 16) + 0x8000 + (negative << 31)], np.uint32).view(np.float32)
    even = bits + bits % 2 + (negative << 15)
    assert to_bfloat16(tie)[0] == even
    if bits < 0x7F7F:
        assert from_bfloat16(to_bfloat16(tie))[0] == nearest_bfloat16(float(tie[0]))


@given(st.integers(0, 0xFFFF).filter(lambda bits: bits & 0x7FFF <= 0x7F80))
def test_bfloat16_numbers_stay_as_they_are(bits):
    bits = np.array([bits], np.uint16)
    np.testing.assert_array_equal(to_bfloat16(from_bfloat16(bits)), bits)


def test_bfloat16_takes_arrays_that_are_not_contiguous():
    x = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    np.testing.assert_array_equal(to_bfloat16(x.T[::2]), to_bfloat16(x.T[::2].copy()))


# ---------------------------------------------------------------- int8

# Subnormal numbers have too few bits for what is claimed below.
numbers = st.floats(-(2.0**100), 2.0**100, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)
matrices = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=numbers
)


@given(matrices)
def test_a_quantised_number_is_at_most_half_a_scale_off(matrix):
    int8 = quantise_rows(matrix)
    values, scales = int8.values, int8.scales
    assert values.dtype == np.int8
    assert scales.dtype == np.float32
    assert scales.shape == matrix.shape[:1]
    assert np.abs(values.astype(int)).max() <= 127
    off = values * scales[:, None].astype("f8") - matrix
    assert (np.abs(off) <= 0.50001 * scales[:, None]).all()  # the quotient is rounded first


@given(matrices)
def test_the_largest_number_of_a_row_becomes_127(matrix):
    int8 = quantise_rows(matrix)
    values, scales = int8.values, int8.scales
    for row, original, scale in zip(values, matrix, scales, strict=True):
        if original.any():
            largest = np.abs(original).argmax()
            assert abs(int(row[largest])) == 127
            assert np.sign(row[largest]) == np.sign(original[largest])
        else:
            assert not row.any()
            assert scale == 1


def test_every_row_has_a_scale_of_its_own():
    int8 = quantise_rows(np.array([[1, -2], [100, 50], [0, 0]], np.float32))
    values, scales = int8.values, int8.scales
    assert values.tolist() == [[64, -127], [127, 64], [0, 0]]
    np.testing.assert_allclose(scales, [2 / 127, 100 / 127, 1])


# ---------------------------------------------------------------- layers


@each_width
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_packed_layer_has_all_that_the_kernels_read(target, dtype):
    layer = dense(0, 35, 21)
    packed = pack_dense(layer, dtype, target)
    assert (packed.out, packed.into) == (35, 21)
    whole = unpack(packed.panels)[:35, :21]
    if dtype == "float32":
        np.testing.assert_array_equal(whole, layer.weight)
    elif dtype == "bfloat16":
        rounded = to_bfloat16(layer.weight)
        wanted = rounded if target.bfloat16 == "dot" else from_bfloat16(rounded)
        np.testing.assert_array_equal(whole, wanted)
    else:
        int8 = quantise_rows(layer.weight)
        values, scales = int8.values, int8.scales
        assert packed.panels.dtype == (np.int8 if target.int8 == "vnni" else np.int16)
        np.testing.assert_array_equal(whole, values)
        scale, sums, bias = packed.columns.transpose(1, 0, 2).reshape(3, -1)
        np.testing.assert_array_equal(scale[:35], scales)
        np.testing.assert_allclose(sums[:35], scales * values.sum(axis=1, dtype=int), rtol=1e-6)
        np.testing.assert_array_equal(bias[:35], layer.bias)
        assert not np.concatenate([scale[35:], sums[35:], bias[35:]]).any()
        assert not packed.start.any()
        return
    np.testing.assert_array_equal(packed.start[:35], layer.bias)
    assert not packed.start[35:].any()


def test_where_bytes_are_multiplied_signed_the_sums_begin_with_what_that_leaves_out():
    sdot = next(target for target in TARGETS if target.int8 == "sdot")
    layer = dense(0, 35, 21)
    int8 = quantise_rows(layer.weight)
    values = int8.values
    start = pack_dense(layer, "int8", sdot).start
    np.testing.assert_array_equal(start[:35], 128 * values.sum(axis=1, dtype=int))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_weights_that_are_int8_in_the_file_are_not_rounded_again(dtype):
    random = np.random.default_rng(0)
    values = random.integers(-100, 101, (9, 30)).astype(np.int8)  # no row reaches 127
    scales = random.uniform(0.01, 0.02, 9).astype(np.float32)
    layer = Dense(Int8(values, scales), np.zeros(9, np.float32))
    packed = pack_dense(layer, dtype, WIDE)
    whole = unpack(packed.panels)[:9, :30]
    if dtype == "int8":
        np.testing.assert_array_equal(whole, values)
        np.testing.assert_array_equal(packed.columns[0, 0, :9], scales)
    elif dtype == "bfloat16":
        np.testing.assert_array_equal(whole, to_bfloat16(values * scales[:, None]))
    else:
        np.testing.assert_array_equal(whole, values * scales[:, None])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_weights_near_the_end_of_float32_are_packed_in_silence(dtype):
    layer = Dense(np.full((9, 30), 3e38, np.float32), np.zeros(9, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed = pack_dense(layer, dtype, WIDE)
    if dtype == "int8":  # 30 * 3e38: the logits show it
        assert np.isinf(packed.columns[0, 1, :9]).all()


@each_width
def test_norms_and_the_head_are_followed_by_zeros(target):
    layer = dense(0, 2, 21)
    norm = Norm(layer.weight[0], layer.weight[1])
    packed = pack_norm(norm, target)
    assert packed.shape == (2, round_up(21, target.panel))
    np.testing.assert_array_equal(packed[:, :21], layer.weight)
    assert not packed[:, 21:].any()
    head = pack_head(layer, target)
    np.testing.assert_array_equal(head[-2:], layer.bias)
    np.testing.assert_array_equal(head[:-2].reshape(2, -1), packed)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_copy_of_packed_weights_stands_alone(tiny_folder, dtype, duplicate):
    model = load_model(tiny_folder, device="cpu", dtype=dtype)
    batch = pack(model.windows("who sailed ?", ["ada lee sailed from berlin to paris in 1843 ."]))
    wanted = model.kernels.forward(batch, model.weights, model.config)
    weights = duplicate(model.weights)
    first = model.weights.layers[0].qkv.panels
    first[:] = 0  # what the copy must not read
    assert not np.array_equal(model.kernels.forward(batch, model.weights, model.config), wanted)
    np.testing.assert_array_equal(model.kernels.forward(batch, weights, model.config), wanted)
