"""Every kernel of every backend computes what the definition computes in float64."""

import inspect
import math
from itertools import pairwise

import numpy as np
import pytest
from builders import dense, norm, normal
from hypothesis import given
from hypothesis import strategies as st
from unprepared import Unprepared

from minibert.errors import BackendError
from minibert.kernels import reference
from minibert.kernels.backend import REFERENCE, get_backend
from minibert.parameters import Dense, Int8, Norm, Table, Tables, full

TOKENS = [0, 1, 2, 17, 511, 513]
WIDTHS = [(32, 2), (48, 3), (100, 4)]  # hidden size, heads; 100 is no multiple of any tile
EPS = 1e-12


def wide(array):
    """The same numbers in float64."""
    if isinstance(array, Dense):
        return Dense(full(array.weight).astype("f8"), array.bias.astype("f8"))
    if isinstance(array, Norm):
        return Norm(array.gain.astype("f8"), array.bias.astype("f8"))
    return array.astype("f8")


def close(ours, truth, limit):
    assert ours.dtype == np.float32
    assert ours.shape == truth.shape
    assert np.abs(ours - truth).max(initial=0) <= limit


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("width", "heads"), WIDTHS)
def test_linear(processor, tokens, width, heads):
    x, layer = normal(0, tokens, width), dense(1, 3 * width, width)
    close(Unprepared(processor).linear(x, layer), reference.linear(wide(x), wide(layer)), 3e-6)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_linear_activation(processor, tokens, activation):
    x, layer = normal(0, tokens, 48), dense(1, 100, 48)
    ours = Unprepared(processor).linear_activation(x, layer, activation)
    close(ours, reference.linear_activation(wide(x), wide(layer), activation), 4e-6)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("width", "heads"), WIDTHS)
def test_linear_add_norm(processor, tokens, width, heads):
    args = normal(0, tokens, 2 * width), dense(1, width, 2 * width), normal(2, tokens, width)
    args += (norm(3, width),)
    ours = Unprepared(processor).linear_add_norm(*args, EPS)
    close(ours, reference.linear_add_norm(*map(wide, args), EPS), 5e-6)


@pytest.mark.parametrize("lengths", [[], [1], [511], [513], [1, 17, 2, 64]])
@pytest.mark.parametrize(("width", "heads"), WIDTHS)
def test_attention_stays_in_its_window(processor, lengths, width, heads):
    borders = np.cumsum([0, *lengths], dtype=np.int32)
    qkv = normal(0, int(borders[-1]), 3 * width)
    together = processor.attention(qkv, borders, heads)
    truth = np.zeros((borders[-1], width))
    for a, b in pairwise(borders):
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            q, k, v = (m[a:b, part] for m in np.split(qkv.astype("f8"), 3, axis=1))
            scores = np.exp(q @ k.T / math.sqrt(width // heads))
            truth[a:b, part] = scores / scores.sum(axis=1, keepdims=True) @ v
    close(together, truth, 5e-6)


def test_attention_survives_large_scores(processor):
    qkv = normal(0, 7, 96, std=60.0)
    assert np.isfinite(processor.attention(qkv, np.array([0, 7], np.int32), 2)).all()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("int8", [False, True])
def test_embed(processor, tokens, int8):
    random = np.random.default_rng(0)
    tables = []
    for rows in (50, 600, 2):
        values = random.integers(-127, 128, (rows, 48)).astype(np.int8)
        matrix = Int8(values, random.uniform(0.005, 0.02, rows).astype(np.float32))
        tables.append(Table(matrix if int8 else full(matrix)))
    gains = norm(9, 48)
    ids = [random.integers(0, rows, tokens).astype(np.int32) for rows in (50, 2, 600)]
    ours = Unprepared(processor).embed(*ids, Tables(tables[0], tables[1], tables[2], gains), EPS)
    words, places, kinds = (full(table.matrix).astype("f8") for table in tables)
    h = words[ids[0]] + kinds[ids[1]] + places[ids[2]]
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + EPS)
    close(ours, h * gains.gain + gains.bias, 3e-6)


@pytest.mark.parametrize("tokens", TOKENS)
def test_span_logits(processor, tokens):
    x, head = normal(0, tokens, 100), dense(1, 2, 100)
    truth = wide(x) @ wide(head).weight.T + head.bias
    start, end = Unprepared(processor).span_logits(x, head)
    close(start, truth[:, 0], 3e-6)
    close(end, truth[:, 1], 3e-6)


def test_layer_norm_by_hand(processor):
    x = np.array([[1, 3]], np.float32)  # mean 2, variance 1
    nothing = Dense(np.zeros((2, 2), np.float32), np.zeros(2, np.float32))
    plain = Norm(np.ones(2, np.float32), np.zeros(2, np.float32))
    np.testing.assert_allclose(
        Unprepared(processor).linear_add_norm(x, nothing, x, plain, 0.0), [[-1, 1]]
    )


def test_layer_norm_adds_eps_to_the_variance(processor):
    x = np.array([[1, 3]], np.float32)
    nothing = Dense(np.zeros((2, 2), np.float32), np.zeros(2, np.float32))
    plain = Norm(np.ones(2, np.float32), np.zeros(2, np.float32))
    ours = Unprepared(processor).linear_add_norm(x, nothing, x, plain, 3.0)  # 1 / sqrt(1 + 3)
    np.testing.assert_allclose(ours, [[-0.5, 0.5]])


@given(st.floats(-30, 30, width=32))
def test_erf_is_within_a_few_units_of_the_last_place(x):
    ours = reference.erf(np.array([x], np.float32))
    assert ours.dtype == np.float32
    assert abs(float(ours[0]) - math.erf(x)) < 5e-7
    assert abs(float(reference.erf(np.array([x]))[0]) - math.erf(x)) < 3e-8


def test_activations_by_hand():
    x = np.array([-1.0, 2.0])
    want = {
        "gelu": [-0.15865525, 1.95449974],
        "gelu_tanh": [-0.15880801, 1.95459769],
        "relu": [0, 2],
        "silu": [-0.26894142, 1.76159416],
    }
    for name, values in want.items():
        np.testing.assert_allclose(reference.ACTIVATIONS[name](x), values, atol=1e-7)


def test_silu_does_not_overflow():
    with np.errstate(all="raise"):
        assert reference.silu(np.array([-1000, 1000], np.float32)).tolist() == [0, 1000]


@pytest.mark.parametrize("name", [name for name in vars(REFERENCE) if hasattr(reference, name)])
def test_backends_have_the_arguments_of_the_reference(processor, name):
    ours, theirs = (inspect.signature(getattr(each, name)) for each in (processor, reference))
    assert list(ours.parameters) == list(theirs.parameters)


def test_devices_are_chosen_by_name(no_gpu):
    assert get_backend("auto").name == "cpu"
    assert get_backend("reference") is REFERENCE
    with pytest.raises(BackendError, match="unknown device 'tpu'; choose one of auto, cpu"):
        get_backend("tpu")
    for device in ("cuda", "cuda:0", "cuda:7"):
        with pytest.raises(BackendError, match="device 'cuda' cannot be used: there is no NVIDIA"):
            get_backend(device)
    for device in ("cuda:", "cuda:x", "cuda:-1", "cuda1"):
        with pytest.raises(BackendError, match=f"unknown device '{device}'"):
            get_backend(device)


@pytest.mark.parametrize(
    ("device", "options", "words"),
    [
        ("cpu", {"dtype": "float16"}, "computes in float32, bfloat16, int8 only.*device='cuda'"),
        ("auto", {"dtype": "float16"}, "device 'auto' computes in .*device='cuda'"),
        ("cuda", {"dtype": "int8"}, "computes in float32, float16, bfloat16 only.*device='cpu'"),
        ("reference", {"dtype": "bfloat16"}, "computes in float32 only.*'cpu' or 'cuda'"),
        ("cuda", {"num_threads": 2}, "device 'cuda' takes no num_threads: the GPU has its own"),
        ("reference", {"num_threads": 2}, "OPENBLAS_NUM_THREADS"),
    ],
)
def test_what_a_device_cannot_do_is_refused(device, options, words):
    with pytest.raises(BackendError, match=words):
        get_backend(device, **options)
