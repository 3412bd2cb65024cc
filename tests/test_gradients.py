"""Every gradient of the definition agrees with central differences, in float64."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from builders import batch_of, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_batch

from minibert.config import BertConfig
from minibert.encoder import bert
from minibert.errors import BackendError
from minibert.kernels import gradients, reference
from minibert.kernels import training as tables_of_kernels
from minibert.kernels.backend import REFERENCE
from minibert.kernels.training import AdamW, Dropout, get_training_kernels
from minibert.parameters import Dense, Norm, Table, Tables, full
from minibert.training.flat import map_arrays, named_arrays
from minibert.training.loss import span_loss
from minibert.training.passes import Dropouts, backward, dropouts_of_layer, forward

EPS = 1e-12
STEP = 1e-6  # of central differences: its square and rounding divided by it are about as large
LIMIT = 1e-6  # largest difference, of the largest number; measured: 2e-8, that of erf
DROPOUTS = [None, Dropout(0.0, 1), Dropout(0.4, 0x89ABCDEF, first_token=2**32 - 3)]
ids_of_dropouts = ["none", "rate 0", "rate 0.4"]
dropped = pytest.mark.parametrize("dropout", DROPOUTS, ids=ids_of_dropouts)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def dense(seed, out, into):
    return Dense(normal(seed, out, into), normal(seed + 1, out))


def norm(seed, width):
    return Norm(1 + 0.3 * normal(seed, width), normal(seed + 1, width))


def zeros(part):
    """Zeros laid out as a layer, a norm or tables are."""
    if isinstance(part, Dense):
        return Dense(np.zeros_like(part.weight), np.zeros_like(part.bias))
    return Norm(np.zeros_like(part.gain), np.zeros_like(part.bias))


def record(array):
    """What a step before would have returned."""
    return gradients.Linear(array)


def differences(loss, array):
    """Central differences: move each number of `array` a little up and down."""
    found = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + STEP
        up = loss()
        array[index] = kept - STEP
        found[index] = (up - loss()) / (2 * STEP)
        array[index] = kept
    return found


def agree(loss, *pairs):
    """Each gradient is that of the loss with respect to the array beside it."""
    for gradient, array in pairs:
        truth = differences(loss, array)
        assert gradient.shape == truth.shape
        assert gradient.dtype == np.float64
        assert np.abs(gradient - truth).max() <= LIMIT * max(1, np.abs(truth).max())


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_slopes_of_activations(activation):
    x = np.concatenate([np.linspace(-9, 9, 37) + 1e-3, [-50.0, 50.0]])
    truth = np.diagonal(
        [
            (reference.ACTIVATIONS[activation](x + d) - reference.ACTIVATIONS[activation](x - d))
            / (2 * STEP)
            for d in STEP * np.eye(len(x))
        ]
    )
    assert np.abs(gradients.SLOPES[activation](x) - truth).max() <= 1e-7
    assert gradients.SLOPES.keys() == reference.ACTIVATIONS.keys()


def test_layer_norm():
    x, gains, d_out = normal(0, 3, 7), norm(1, 7), normal(3, 3, 7)
    for eps in (EPS, 0.1):
        gradient = zeros(gains)
        kept = gradients.layer_norm(x, gains, eps)
        d_x = gradients.layer_norm_backward(d_out, kept, gains, gradient)
        agree(
            lambda eps=eps: (d_out * reference.layer_norm(x, gains, eps)).sum(),
            (d_x, x),
            (gradient.gain, gains.gain),
            (gradient.bias, gains.bias),
        )


@dropped
def test_embed(dropout):
    ids = np.array([[3, 0, 3, 4], [0, 0, 1, 1], [0, 1, 2, 0]], np.int32)  # 3 twice, 1 and 2 never
    parts = [Table(normal(seed, rows, 7)) for seed, rows in enumerate((5, 4, 2))]
    tables = Tables(*parts, norm(5, 7))
    gradient = Tables(*(Table(np.zeros_like(t.matrix)) for t in parts), zeros(tables.norm))
    d_out = normal(7, 4, 7)
    kept = gradients.embed(*ids, tables, EPS, dropout)
    gradients.embed_backward(d_out, kept, *ids, tables, gradient, dropout)
    agree(
        lambda: (d_out * gradients.embed(*ids, tables, EPS, dropout).out).sum(),
        (gradient.words.matrix, tables.words.matrix),
        (gradient.positions.matrix, tables.positions.matrix),
        (gradient.token_types.matrix, tables.token_types.matrix),
        (gradient.norm.gain, tables.norm.gain),
        (gradient.norm.bias, tables.norm.bias),
    )


@pytest.mark.parametrize("tokens", [1, 5])
def test_linear(tokens):
    x, layer, d_out, plus = normal(0, tokens, 3), dense(1, 7, 3), normal(3, tokens, 7), 2.0
    gradient = zeros(layer)
    d_x = gradients.linear_backward(d_out, record(x), layer, gradient, np.full_like(x, plus))
    agree(
        lambda: (d_out * gradients.linear(record(x), layer).out).sum() + plus * x.sum(),
        (d_x, x),
        (gradient.weight, layer.weight),
        (gradient.bias, layer.bias),
    )
    alone = gradients.linear_backward(d_out, record(x), layer, zeros(layer), None)
    assert np.allclose(alone + plus, d_x)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_linear_activation(activation):
    x, layer, d_out, plus = normal(0, 4, 3), dense(1, 5, 3), normal(3, 4, 5), normal(4, 4, 3)
    gradient = zeros(layer)
    kept = gradients.linear_activation(record(x), layer, activation)
    d_x = gradients.linear_activation_backward(
        d_out, kept, record(x), layer, activation, gradient, plus
    )
    agree(
        lambda: (
            (d_out * gradients.linear_activation(record(x), layer, activation).out).sum()
            + (plus * x).sum()
        ),
        (d_x, x),
        (gradient.weight, layer.weight),
        (gradient.bias, layer.bias),
    )


@dropped
def test_linear_add_norm(dropout):
    x, layer, residual, gains = normal(0, 4, 3), dense(1, 7, 3), normal(3, 4, 7), norm(4, 7)
    d_out, gradient, of_norm = normal(6, 4, 7), zeros(layer), zeros(gains)

    def step():
        return gradients.linear_add_norm(record(x), layer, record(residual), gains, EPS, dropout)

    d_x, d_residual = gradients.linear_add_norm_backward(
        d_out, step(), record(x), layer, gains, gradient, of_norm, dropout
    )
    agree(
        lambda: (d_out * step().out).sum(),
        (d_x, x),
        (d_residual, residual),
        (gradient.weight, layer.weight),
        (gradient.bias, layer.bias),
        (of_norm.gain, gains.gain),
        (of_norm.bias, gains.bias),
    )


def check_attention(lengths, heads, size, dropout, seed=0):
    borders = np.cumsum([0, *lengths], dtype=np.int32)
    tokens, width = int(borders[-1]), heads * size
    qkv, d_out = normal(seed, tokens, 3 * width), normal(seed + 1, tokens, width)

    def step():
        return gradients.attention(record(qkv), borders, heads, dropout)

    d_qkv = gradients.attention_backward(d_out, step(), record(qkv), borders, heads, dropout)
    agree(lambda: (d_out * step().out).sum(), (d_qkv, qkv))


@dropped
def test_attention(dropout):
    check_attention([3, 1, 4], 2, 3, dropout)


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    heads=st.integers(1, 3),
    size=st.integers(1, 3),
    rate=st.sampled_from([0.0, 0.5]),
    key=st.integers(0, 2**32 - 1),
)
def test_attention_of_any_shape(lengths, heads, size, rate, key):
    check_attention(lengths, heads, size, Dropout(rate, key), seed=key % 1000)


def test_attention_survives_large_scores():
    qkv, borders = record(normal(0, 7, 96) * 60), np.array([0, 7], np.int32)
    kept = gradients.attention(qkv, borders, 2, None)
    d_qkv = gradients.attention_backward(normal(1, 7, 32), kept, qkv, borders, 2, None)
    assert np.isfinite(d_qkv).all()


def test_span_logits():
    x, head = normal(0, 5, 3), dense(1, 2, 3)
    d_start, d_end, gradient = normal(3, 5), normal(4, 5), zeros(head)
    d_x = gradients.span_logits_backward(d_start, d_end, record(x), head, gradient)

    def loss():
        start, end = gradients.span_logits(record(x), head)
        return (d_start * start).sum() + (d_end * end).sum()

    agree(loss, (d_x, x), (gradient.weight, head.weight), (gradient.bias, head.bias))


# ---------------------------------------------------------------- a whole model

LENGTHS = [5, 1, 3]
STARTS, ENDS = [[2], [0], [0, 2]], [[4], [0], [1, 2]]


def model(tmp_path, **changes):
    """Config, float64 weights and a batch of a small model of odd sizes."""
    numbers = {
        "vocab_size": 11,
        "hidden_size": 6,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 7,
        "max_position_embeddings": 9,
    }
    config = BertConfig(**(numbers | changes))
    weights = map_arrays(
        random_weights(config, 5, tmp_path), lambda name, depth, m: full(m).astype("f8")
    )
    return config, weights, batch_of(random_batch(config, LENGTHS, 6))


def zeros_of(weights):
    return map_arrays(weights, lambda name, depth, m: np.zeros_like(m))


def loss_of(batch, weights, config, dropout):
    kept = forward(batch, weights, config, tables_of_kernels.REFERENCE, dropout)
    return span_loss(kept.start_logits, kept.end_logits, batch.cu_seqlens, STARTS, ENDS), kept


def gradient_of(batch, weights, config, dropout):
    gradient = zeros_of(weights)
    (_, d_start, d_end), kept = loss_of(batch, weights, config, dropout)
    backward(kept, d_start, d_end, weights, gradient, config, tables_of_kernels.REFERENCE)
    return gradient


def agree_along_directions(batch, weights, config, dropout):
    """The gradient times a random direction is the loss's slope in it, for each array."""
    gradient = named_arrays(gradient_of(batch, weights, config, dropout))
    for seed, (name, array) in enumerate(named_arrays(weights).items()):
        direction, kept = normal(seed, *array.shape), array.copy()
        losses = []
        for sign in (1, -1):
            array += sign * STEP * direction
            losses.append(loss_of(batch, weights, config, dropout)[0].loss)
            array[...] = kept
        slope = (losses[0] - losses[1]) / (2 * STEP)
        assert (gradient[name] * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize(
    "dropout", [None, Dropouts(0.3, 0.0, 1, 1), Dropouts(0.0, 0.3, 1, 1), Dropouts(0.3, 0.2, 7, 9)]
)
def test_the_loss_of_a_whole_model(tmp_path, activation, dropout):
    config, weights, batch = model(tmp_path, hidden_act=activation)
    agree_along_directions(batch, weights, config, dropout)


def test_layers_that_share_their_weights(tmp_path):
    config, weights, batch = model(tmp_path)
    shared = replace(weights, layers=weights.layers[:1] * 3)
    gradient = zeros_of(shared)
    assert gradient.layers[0].qkv.weight is gradient.layers[2].qkv.weight
    agree_along_directions(batch, shared, replace(config, num_hidden_layers=3), None)


FAMILIES = [
    {"family": "electra", "embedding_size": 4},
    {"family": "albert", "embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2},
]


@pytest.mark.parametrize("changes", FAMILIES, ids=lambda changes: changes["family"])
def test_tables_that_are_projected_and_layers_that_are_shared(tmp_path, changes):
    config, weights, batch = model(tmp_path, **changes)
    assert weights.projection is not None
    agree_along_directions(batch, weights, config, Dropouts(0.3, 0.2, 7, 9))


@pytest.mark.parametrize("changes", [{}, *FAMILIES])
def test_forward_is_what_inference_computes(tmp_path, changes):
    config, weights, batch = model(tmp_path, **changes)
    kept = forward(batch, weights, config, tables_of_kernels.REFERENCE)
    start, end = bert(batch, weights, config, REFERENCE)
    assert np.abs(kept.start_logits - start).max() <= 1e-12
    assert np.abs(kept.end_logits - end).max() <= 1e-12


def test_float32_stays_float32(tmp_path):
    config, weights, batch = model(tmp_path)
    weights = map_arrays(weights, lambda name, depth, m: m.astype(np.float32))
    gradient = gradient_of(batch, weights, config, Dropouts(0.3, 0.2, 7, 9))
    assert {array.dtype for array in named_arrays(gradient).values()} == {np.dtype(np.float32)}
    kept = forward(batch, weights, config, tables_of_kernels.REFERENCE, Dropouts(0.3, 0.2, 7, 9))
    for step in [kept.embedded, *(s for layer in kept.layers for s in layer[:6])]:
        assert {array.dtype for array in step} == {np.dtype(np.float32)}


def test_gradients_are_added(tmp_path):
    config, weights, batch = model(tmp_path)
    once = gradient_of(batch, weights, config, None)
    gradient = zeros_of(weights)
    for _ in range(2):
        (_, d_start, d_end), kept = loss_of(batch, weights, config, None)
        backward(kept, d_start, d_end, weights, gradient, config, tables_of_kernels.REFERENCE)
    twice = named_arrays(gradient)
    for name, array in named_arrays(once).items():
        assert np.allclose(twice[name], 2 * array, rtol=1e-12, atol=1e-12), name


def test_how_a_step_is_cut_into_batches_changes_nothing(tmp_path):
    config, weights, batch = model(tmp_path)
    windows = random_batch(config, LENGTHS, 6)
    dropout = Dropouts(0.4, 0.4, 3, 5, first_token=100)
    whole = named_arrays(gradient_of(batch, weights, config, dropout))
    gradient = zeros_of(weights)
    for i, (begin, _) in enumerate(pairwise(batch.cu_seqlens.tolist())):
        part = batch_of([windows[i]])
        kept = forward(
            part, weights, config, tables_of_kernels.REFERENCE,
            replace(dropout, first_token=100 + begin),
        )  # fmt: skip
        _, d_start, d_end = span_loss(
            kept.start_logits, kept.end_logits, part.cu_seqlens, STARTS[i : i + 1], ENDS[i : i + 1]
        )
        backward(kept, d_start, d_end, weights, gradient, config, tables_of_kernels.REFERENCE)
    for name, array in named_arrays(gradient).items():
        assert np.allclose(array, whole[name], rtol=1e-10, atol=1e-12), name


# ---------------------------------------------------------------- dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_share_of_the_numbers_is_dropped_and_the_mean_stays(rate):
    x = np.ones((500, 200))
    dropout = Dropout(rate, 12345)
    out = gradients.drop(x, gradients.hidden_places(x.shape, dropout), dropout)
    assert set(np.unique(out)) == {0.0, 1 / (1 - rate)}
    assert np.mean(out == 0) == pytest.approx(rate, abs=0.005)
    for axis in (0, 1):  # no row and no column is favoured
        off = np.abs((out == 0).mean(axis=axis) - rate)
        assert off.max() <= 5 * np.sqrt(rate * (1 - rate) / x.shape[axis])
    assert np.corrcoef(out[:-1].ravel(), out[1:].ravel())[0, 1] == pytest.approx(0, abs=0.01)
    assert np.corrcoef(out[:, :-1].ravel(), out[:, 1:].ravel())[0, 1] == pytest.approx(0, abs=0.01)


def test_another_key_drops_others():
    x = np.ones((100, 100))
    first, second = (
        gradients.drop(x, gradients.hidden_places(x.shape, d), d) == 0
        for d in (Dropout(0.5, 1), Dropout(0.5, 0x80000001))
    )
    assert np.mean(first == second) == pytest.approx(0.5, abs=0.03)


def test_places_of_probabilities_are_those_of_the_docstring():
    dropout = Dropout(0.1, 0, first_token=2**23)
    places = gradients.pair_places(5, 8, 4, dropout)
    assert places.shape == (4, 3, 3)
    assert places[3, 1, 2] == (((2**23 + 5 + 1) * 4 + 3) * 512 + 2) % 2**32
    hidden = gradients.hidden_places((3, 7), dropout)
    assert hidden[2, 6] == (2**23 + 2) * 7 + 6


def test_every_place_of_a_model_has_a_key_of_its_own():
    keys = {
        dropout.key
        for seed in (0, 1)
        for step in (1, 2)
        for layer in range(12)
        for dropout in dropouts_of_layer(Dropouts(0.1, 0.1, seed, step), layer)
    }
    assert len(keys) == 2 * 2 * 12 * 3
    assert all(0 <= key < 2**32 for key in keys)
    nothing = dropouts_of_layer(Dropouts(0.0, 0.1, 0, 1), 3)
    assert nothing.attention is not None
    assert (nothing.attention_output, nothing.output) == (None, None)
    assert list(dropouts_of_layer(None, 0)) == [None] * 3


# ---------------------------------------------------------------- the optimizer


def test_adamw_by_hand():
    weights, gradient = np.array([2.0, -1.0]), np.array([4.0, 0.0])
    first, second = np.array([0.5, 0.0]), np.array([0.25, 0.0])
    settings = AdamW(0.1, 0.9, 0.99, 1e-3, weight_decay=0.5, step=2, scale=0.25)
    gradients.adamw(weights, gradient, first, second, settings)
    m = (0.9 * 0.5 + 0.1 * 1.0) / (1 - 0.9**2)
    v = (0.99 * 0.25 + 0.01 * 1.0) / (1 - 0.99**2)
    assert weights[0] == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * m / (v**0.5 + 1e-3))
    assert weights[1] == pytest.approx(-0.95)  # decay alone
    assert first.tolist() == pytest.approx([0.55, 0.0])
    assert second.tolist() == pytest.approx([0.2575, 0.0])
    assert gradient.tolist() == [4.0, 0.0]


@given(scale=st.floats(1e-3, 1e3))
def test_the_first_step_does_not_depend_on_the_size_of_the_gradient(scale):
    weights, gradient = np.zeros(4, np.float32), np.array([1, -1, 1, 1], np.float32)
    settings = AdamW(0.1, 0.9, 0.999, 0.0, weight_decay=0.0, step=1, scale=scale)
    gradients.adamw(weights, gradient, np.zeros_like(weights), np.zeros_like(weights), settings)
    assert weights.dtype == np.float32
    assert np.abs(weights + 0.1 * gradient).max() <= 1e-6


def test_sums_of_squares_are_of_64_bits():
    x = np.full(10_000_000, 0.1, np.float32)
    assert gradients.sum_of_squares(x) == pytest.approx(10_000_000 * float(x[0]) ** 2, rel=1e-9)
    assert gradients.sum_of_squares(x[:0]) == 0


# ---------------------------------------------------------------- the table


def test_the_reference_trains():
    kernels = get_training_kernels("reference")
    assert (kernels.name, kernels.dtype) == ("reference", "float32")
    assert kernels.adamw is gradients.adamw


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("cuda", None, "processor for now.*device='cpu'"),
        ("cuda:1", "float32", "processor for now"),
        ("cpu", "int8", "float32 or bfloat16.*convert"),
        ("reference", "int8", "float32 or bfloat16"),
        ("reference", "bfloat16", "float32 only"),
        ("reference", "float8", "unknown dtype"),
        ("tpu", None, "unknown device"),
        (3, None, "must be one of"),
    ],
)
def test_what_does_not_train_is_refused(device, dtype, message):
    with pytest.raises(BackendError, match=message):
        get_training_kernels(device, dtype)


def test_the_reference_takes_no_number_of_threads():
    with pytest.raises(BackendError, match="OPENBLAS"):
        get_training_kernels("reference", num_threads=2)
