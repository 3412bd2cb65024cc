"""Every CUDA kernel, unmodified, computes what the definition computes in float64.

Without a GPU the kernels run in the emulator, which checks addresses, races and divergence; memory
begins as NaN, so that what is not written shows.  With one, the same tests run on it.
"""

from itertools import pairwise

import numpy as np
import pytest
from builders import dense, norm, normal
from cuda_emulator import launch
from emulated_gpu import EmulatedGpu, build
from unprepared import Unprepared

from minibert.errors import BackendError
from minibert.kernels import reference
from minibert.kernels.cuda import attention, gemm, gemm_float32, rows, vectors
from minibert.kernels.cuda.functions import Kernels
from minibert.kernels.cuda.language import DTYPES
from minibert.kernels.cuda.launcher import Launcher
from minibert.kernels.cuda.program import attention_tiles
from minibert.kernels.cuda.upload import narrow, widen
from minibert.parameters import Dense, Norm, Table, Tables

EPS = 1e-12
# Distance to the next number, relative: results are rounded once to the dtype.
STEP = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

LONG = ("float32", 513), ("float16", 511), ("bfloat16", 513)  # every dtype, and both odd sizes

real = pytest.param("real", marks=pytest.mark.gpu)


@pytest.fixture(params=["forward", pytest.param("reverse", marks=pytest.mark.slow), real])
def order(request):
    """In which order warps and blocks run; 'real': as the GPU likes."""
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def kernels(order, dtype, multiprocessors=4):
    if order == "real":
        from minibert.kernels.cuda.detect import open_device

        return Unprepared(Kernels(open_device(0), dtype))
    gpu = EmulatedGpu(reverse=order == "reverse", multiprocessors=multiprocessors)
    return Unprepared(Kernels(gpu.device(), dtype, build))


def stored(x, dtype):
    """What the kernels get of an array, in float64."""
    return widen(narrow(x, dtype), dtype).astype("f8")


def wide(layer, dtype):
    """A dense layer as the kernels get it, in float64: the matrix is rounded, the bias is not."""
    return Dense(stored(layer.weight, dtype), layer.bias.astype("f8"))


def wide_norm(each):
    return Norm(each.gain.astype("f8"), each.bias.astype("f8"))


def close(ours, truth, dtype, steps=0.52, small=4e-6):
    """Within so many steps of the dtype, beside the error of sums in float32."""
    assert ours.dtype == np.float32
    assert ours.shape == truth.shape
    limit = small + steps * STEP[dtype] * np.abs(truth)
    assert (np.abs(ours - truth) <= limit).all(), np.abs(ours - truth).max()


# ---------------------------------------------------------------- matrix products


@pytest.mark.parametrize("tokens", [0, 1, 17, 65])
@pytest.mark.parametrize(("out", "into"), [(72, 96), (8, 32), (100, 200)])
def test_linear(order, dtype, tokens, out, into):
    x, layer = normal(0, tokens, into), dense(1, out, into)
    ours = kernels(order, dtype).linear(x, layer)
    close(ours, reference.linear(stored(x, dtype), wide(layer, dtype)), dtype)


@pytest.mark.parametrize(("dtype", "tokens"), LONG)
@pytest.mark.slow
def test_linear_of_many_tokens(dtype, tokens):
    x, layer = normal(0, tokens, 64), dense(1, 40, 64)
    ours = kernels("forward", dtype).linear(x, layer)
    close(ours, reference.linear(stored(x, dtype), wide(layer, dtype)), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [511, 512, 513, 4099])
@pytest.mark.parametrize(("out", "into"), [(768, 768), (1000, 3072), (384, 1536)])
def test_linear_on_a_gpu(dtype, tokens, out, into):
    x, layer = normal(0, tokens, into), dense(1, out, into)
    ours = kernels("real", dtype).linear(x, layer)
    close(ours, reference.linear(stored(x, dtype), wide(layer, dtype)), dtype, small=3e-5)


@pytest.mark.parametrize("activation", sorted(reference.ACTIVATIONS))
def test_linear_activation(order, dtype, activation):
    x, layer = normal(0, 9, 32, std=3), dense(1, 40, 32)
    ours = kernels(order, dtype).linear_activation(x, layer, activation)
    truth = reference.linear_activation(stored(x, dtype), wide(layer, dtype), activation)
    close(ours, truth, dtype)


def test_there_is_an_activation_for_every_one_of_the_reference():
    assert vectors.ACTIVATIONS.keys() == reference.ACTIVATIONS.keys() | {""}


@pytest.mark.parametrize(
    ("dtype", "tile", "tokens", "out", "into"),
    [
        ("float16", (128, 128, (2, 2), 4), 131, 136, 160),
        ("float16", (128, 128, (2, 4), 4), 131, 136, 160),
        ("bfloat16", (128, 256, (2, 4), 4), 129, 264, 64),
        ("float16", (64, 64, (2, 2), 3), 70, 72, 160),
        ("float16", (64, 64, (2, 2), 2), 70, 72, 160),
        ("float32", (128, 128), 131, 136, 48),
        ("float32", (64, 64), 70, 72, 16),
    ],
)
@pytest.mark.parametrize("end", ["store", "residual"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.slow
def test_every_tile_of_a_gemm(dtype, tile, tokens, out, into, end, reverse):
    """Also: it writes its own rows and columns and no others, and no banks conflict."""
    if dtype == "float32":
        kernel, kind = gemm_float32.gemm(end, "", *tile), np.float32
    else:
        kernel, kind = gemm.gemm(dtype, end, "", *tile), np.uint32
    x, layer, other = normal(0, tokens, into), dense(1, out, into), normal(3, tokens, out)
    matrix = np.float32 if dtype == "float32" else np.uint16
    below = 3  # rows of y after the last
    y = np.full((tokens + below) * out * (4 if dtype == "float32" else 2), 0xFF, np.uint8)
    arguments = [
        np.array([tokens, 0], np.int32),
        narrow(x, dtype).view(matrix).ravel(),
        narrow(layer.weight, dtype).view(matrix).ravel(),
        layer.bias,
        narrow(other, dtype).ravel().view(kind),
        y.view(kind),
        out, into, tokens + below,
    ]  # fmt: skip
    grid = -(-out // kernel.columns), -(-(tokens + below) // kernel.rows), 1
    statistics = launch(kernel, grid, arguments, reverse=reverse)
    numbers = np.float16 if dtype == "float16" else matrix
    result = y.view(numbers).reshape(-1, out)
    truth = reference.linear(stored(x, dtype), wide(layer, dtype))
    close(
        widen(result[:tokens], dtype),
        truth + stored(other, dtype) if end == "residual" else truth,
        dtype,
    )
    assert (result[tokens:].view(np.uint8) == 0xFF).all()
    assert statistics.bank_conflicts == 0


@pytest.mark.parametrize("splits", [2, 3, 8])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_product_in_parts_adds_up(dtype, splits):
    """5 steps of 32: with 8 parts some have nothing to do, and write zeros."""
    tokens, out, into, capacity = 21, 40, 160, 30
    x, layer = normal(0, tokens, into), dense(1, out, into)
    if dtype == "float32":
        kernel, matrix = gemm_float32.gemm("partial", "", 64, 64), np.float32
    else:
        kernel, matrix = gemm.gemm(dtype, "partial", "", 64, 64), np.uint16
    parts = np.full(splits * capacity * out, np.nan, np.float32)
    arguments = [
        np.array([tokens, 0], np.int32),
        narrow(x, dtype).view(matrix).ravel(),
        narrow(layer.weight, dtype).view(matrix).ravel(),
        layer.bias, None, parts, out, into, capacity,
    ]  # fmt: skip
    launch(kernel, (1, 1, splits), arguments)
    parts = parts.reshape(splits, capacity, out)
    assert np.isnan(parts[:, tokens:]).all()
    truth = stored(x, dtype) @ stored(layer.weight, dtype).T
    close(parts[:, :tokens].sum(axis=0), truth, "float32", steps=4)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("multiprocessors", [1, 64], ids=["whole", "in parts"])
@pytest.mark.parametrize("tokens", [0, 21])
@pytest.mark.parametrize(("out", "into"), [(96, 256), (264, 256)])
def test_linear_add_norm(order, dtype, multiprocessors, tokens, out, into):
    x, layer, other = normal(0, tokens, into), dense(1, out, into), normal(3, tokens, out)
    gains = norm(4, out)
    on_it = kernels(order, dtype, multiprocessors)
    if order != "real":
        splits = on_it.launcher.splits(max(1, tokens), out, into)
        assert (splits > 1) == (multiprocessors > 1)
    ours = on_it.linear_add_norm(x, layer, other, gains, EPS)
    args = stored(x, dtype), wide(layer, dtype), stored(other, dtype), wide_norm(gains)
    truth = reference.linear_add_norm(*args, EPS)
    # In one piece, the sum before the norm, of size 4 at most, is rounded too.
    rounding = 0.0 if multiprocessors > 1 or dtype == "float32" else 2 * STEP[dtype]
    close(ours, truth, dtype, small=8e-6 + rounding)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_parts_are_used_where_multiprocessors_would_idle(dtype):
    many, few = (kernels("forward", dtype, n) for n in (64, 1))
    for each, expected in ((many, 8), (few, 1)):
        assert each.launcher.splits(100, 128, 1024) == expected


def test_layer_norm_by_hand(order, dtype):
    x = np.array([[1, 3] * 4], np.float32)  # mean 2, variance 1
    nothing = Dense(np.zeros((8, 8), np.float32), np.zeros(8, np.float32))
    plain = Norm(np.ones(8, np.float32), np.zeros(8, np.float32))
    ours = kernels(order, dtype).linear_add_norm(x, nothing, x, plain, 0.0)
    np.testing.assert_allclose(ours, [[-1, 1] * 4], rtol=1e-6)
    ours = kernels(order, dtype).linear_add_norm(x, nothing, x, plain, 3.0)  # 1 / sqrt(1 + 3)
    np.testing.assert_allclose(ours, [[-0.5, 0.5] * 4], rtol=1e-6)


@pytest.mark.parametrize("tokens", [0, 1, 21])
@pytest.mark.parametrize("width", [96, 256, 264, 768])
def test_embed(order, dtype, tokens, width):
    random = np.random.default_rng(0)
    counts = 50, 600, 2
    words, places, kinds = (normal(i, rows_, width) for i, rows_ in enumerate(counts))
    gains = norm(9, width)
    ids = [random.integers(0, rows_, tokens).astype(np.int32) for rows_ in (50, 2, 600)]
    tables = Tables(Table(words), Table(places), Table(kinds), gains)
    ours = kernels(order, dtype).embed(*ids, tables, EPS)
    h = stored(words, dtype)[ids[0]] + stored(kinds, dtype)[ids[1]] + stored(places, dtype)[ids[2]]
    close(ours, reference.layer_norm(h, wide_norm(gains), EPS), dtype)


@pytest.mark.parametrize("tokens", [0, 1, 21])
@pytest.mark.parametrize("width", [96, 264])
def test_span_logits(order, dtype, tokens, width):
    x, head = normal(0, tokens, width), dense(1, 2, width)
    truth = stored(x, dtype) @ head.weight.astype("f8").T + head.bias
    start, end = kernels(order, dtype).span_logits(x, head)
    close(start, truth[:, 0], "float32")
    close(end, truth[:, 1], "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_past_the_last_are_left_alone(dtype):
    tokens, width = 5, 96
    kind = np.float32 if dtype == "float32" else np.uint32
    size = (tokens + 4) * width * (4 if dtype == "float32" else 2)
    x, y = np.zeros(size, np.uint8), np.full(size, 0xFF, np.uint8)
    gains = norm(0, width)
    arguments = [np.array([tokens], np.int32), x.view(kind), gains.gain, gains.bias, y.view(kind)]
    launch(rows.norm(dtype, width), 3, [*arguments, EPS])
    cut = tokens * size // (tokens + 4)
    assert (y[cut:] == 0xFF).all()
    assert np.isfinite(y[:cut].view(np.float32 if dtype == "float32" else np.float16)).all()


# ---------------------------------------------------------------- attention


def attention_truth(qkv, borders, heads):
    width = qkv.shape[1] // 3
    truth = np.zeros((len(qkv), width))
    for a, b in pairwise(borders):
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            q, k, v = (m[a:b, part] for m in np.split(qkv[:], 3, axis=1))
            truth[a:b, part] = reference.softmax(q @ k.T / np.sqrt(width // heads)) @ v
    return truth


@pytest.mark.parametrize("lengths", [[], [1, 17, 66, 2]], ids=str)
@pytest.mark.parametrize(("heads", "size"), [(2, 32), (1, 64)])
def test_attention_stays_in_its_window(order, dtype, lengths, heads, size):
    borders = np.cumsum([0, *lengths], dtype=np.int32)
    qkv = normal(0, int(borders[-1]), 3 * heads * size)
    ours = kernels(order, dtype).attention(qkv, borders, heads)
    truth = attention_truth(stored(qkv, dtype), borders, heads)
    # The weights are rounded too, relative to the largest.
    rounding = 0.0 if dtype == "float32" else 2 * STEP[dtype]
    close(ours, truth, dtype, small=3e-6 + rounding)


@pytest.mark.parametrize(("dtype", "length"), LONG)
@pytest.mark.slow
def test_attention_in_a_long_window(dtype, length):
    borders = np.array([0, length], np.int32)
    qkv = normal(0, length, 96)
    ours = kernels("forward", dtype, multiprocessors=1).attention(qkv, borders, 1)
    rounding = 0.0 if dtype == "float32" else STEP[dtype]
    close(ours, attention_truth(stored(qkv, dtype), borders, 1), dtype, small=3e-6 + rounding)


def test_attention_survives_large_scores(order, dtype):
    qkv = normal(0, 70, 192, std=60.0)
    qkv[:, 128:] = 1
    borders = np.array([0, 3, 70], np.int32)
    np.testing.assert_allclose(kernels(order, dtype).attention(qkv, borders, 1), 1, rtol=1e-2)


def test_attention_survives_scores_that_are_all_low(order, dtype):
    """Relative to anything but the largest, all exponentials would be 0."""
    qkv = normal(0, 70, 192)
    qkv[:, :64], qkv[:, 64:128] = 10, -10
    borders = np.array([0, 3, 70], np.int32)
    ours = kernels(order, dtype).attention(qkv, borders, 1)
    mean = np.stack([stored(qkv, dtype)[a:b, 128:].mean(axis=0) for a, b in pairwise(borders)])
    np.testing.assert_allclose(ours, mean[[0] * 3 + [1] * 67], atol=2 * STEP[dtype])


def test_attention_has_no_bank_conflicts():
    for size in (32, 64):
        kernel = attention.attention("float16", 1, size)
        qkv = narrow(normal(0, 130, 3 * size), "float16").view(np.uint16).ravel()
        tiles = attention_tiles(np.array([0, 130], np.int32))
        y = np.zeros(130 * size // 2, np.uint32)
        counts = np.array([130, len(tiles)], np.int32)
        assert launch(kernel, 2, [counts, tiles.ravel(), qkv, y]).bank_conflicts == 0


@pytest.mark.parametrize("lengths", [[], [1], [64], [65], [5, 200, 0, 64]], ids=str)
def test_the_tiles_cover_every_query_once(lengths):
    borders = np.cumsum([0, *lengths], dtype=np.int32)
    seen = []
    for begin, length, first, _ in attention_tiles(borders):
        assert (begin, begin + length) in set(pairwise(borders))
        seen += range(begin + first, begin + min(first + attention.QUERIES, length))
    assert sorted(seen) == list(range(borders[-1]))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("width", "heads"), [(48, 3), (100, 4), (96, 2)])
def test_other_heads_are_refused(width, heads):
    with pytest.raises(BackendError, match=f"{heads} heads in a hidden size of {width}"):
        kernels("forward", "float16").attention(
            normal(0, 5, 3 * width), np.array([0, 5], np.int32), heads
        )


def test_widths_that_are_no_multiple_of_8_are_refused():
    with pytest.raises(BackendError, match=r"multiples of 8, got 100.*device='cpu'"):
        kernels("forward", "float32").span_logits(normal(0, 5, 100), dense(1, 2, 100))


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 0), "float32"), ((7, 5), "float16"), ((7, 5), "bfloat16")]
)
def test_old_gpus_are_refused(capability, dtype):
    device = EmulatedGpu(capability=capability).device()
    with pytest.raises(BackendError, match=f"{dtype} needs .*capability"):
        Launcher(device, dtype, build)


def test_a_kernel_that_needs_more_shared_memory_than_there_is_is_refused():
    gpu = EmulatedGpu()
    gpu.attributes[97] = 30000  # attention of heads of 64 takes 32768
    with pytest.raises(BackendError, match="Emulated GPU gives a block at most 30000 bytes"):
        Kernels(gpu.device(), "float16", build).attention(
            normal(0, 5, 192), np.array([0, 5], np.int32), 1
        )


def test_turing_computes_in_float32():
    Launcher(EmulatedGpu(capability=(7, 5)).device(), "float32", build)


# ---------------------------------------------------------------- 16-bit numbers


def test_bfloat16_is_rounded_to_the_nearest_even():
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0xC0490FDB], np.uint32)
    want = [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xC049]
    assert narrow(bits.view(np.float32), "bfloat16").tolist() == want
    x = np.arange(-300, 300, 0.5, dtype=np.float32) / 64
    assert (widen(narrow(x, "float16"), "float16") == x).all()
