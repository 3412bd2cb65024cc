"""The processor's training kernels give the gradients of the definition, for every target.

The truth is kernels/gradients.py in float64.  In bfloat16, operands of products are rounded to 8
bits of precision on the way, so there only the size of the difference is checked: its norm beside
that of the gradient.
"""

import functools

import numpy as np
import pytest
from builders import batch_of, normal, random_weights
from random_models import random_batch, random_spans
from test_cpu_kernels import targets_of

from minibert.config import BertConfig
from minibert.kernels.cpu.targets import host_targets
from minibert.kernels.cpu.training.functions import Kernels
from minibert.kernels.cpu.training.memory import Workspace
from minibert.kernels.training import REFERENCE, AdamW, training_table
from minibert.parameters import full
from minibert.training.flat import flatten, map_arrays, named_arrays, zeros_like
from minibert.training.loss import span_loss
from minibert.training.passes import Dropouts, backward, forward

FLOAT32 = 1e-5  # largest difference, of the largest number of an array; found: 4e-6
RELU = 0.06  # the same in bfloat16 for ReLU, whose slope jumps where a rounded number changes sign
BFLOAT16 = 0.03  # norm of the difference, of the norm of the gradient; found: 0.025
DROPOUTS = Dropouts(0.2, 0.3, seed=7, step=3, first_token=11)

BEST = host_targets()[0]


@functools.cache
def trains(target, dtype="float32", threads=2):
    """The table of a target's kernels."""
    return training_table("cpu", dtype, Kernels(dtype, target, threads), threads)


def config_of(**changes):
    numbers = {
        "vocab_size": 50,
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 50,
        "max_position_embeddings": 513,
    }
    return BertConfig(**(numbers | changes))


def gradient_of(kernels, weights, config, windows, dropout=None):
    """Gradient and logits of a model, over its whole batch."""
    batch = batch_of(windows)
    starts, ends = random_spans([len(ids) for ids, _ in windows], 3)
    prepared, gradient = kernels.prepare(weights), map_arrays(weights, lambda n, d, m: m * 0)
    kept = forward(batch, prepared, config, kernels, dropout)
    logits = np.concatenate([kept.start_logits, kept.end_logits])
    loss = span_loss(kept.start_logits, kept.end_logits, batch.cu_seqlens, starts, ends)
    backward(kept, loss.d_start, loss.d_end, prepared, gradient, config, kernels)
    return gradient, logits


def compare(kernels, config, lengths, tmp_path, dropout=None):
    """Compare a gradient with the definition's in float64; the limit is that of the dtype."""
    weights = random_weights(config, 5, tmp_path, calm=True)
    windows = random_batch(config, lengths, 6)
    ours, logits = gradient_of(kernels, weights, config, windows, dropout)
    wide = map_arrays(weights, lambda name, depth, m: full(m).astype(np.float64))
    truth, true_logits = gradient_of(REFERENCE, wide, config, windows, dropout)
    ours, truth = named_arrays(ours), named_arrays(truth)
    whole = np.sqrt(sum((array**2).sum() for array in truth.values()))
    if kernels.dtype == "bfloat16":
        apart = np.sqrt(sum(((ours[name] - truth[name]) ** 2).sum() for name in truth))
        assert apart <= (BFLOAT16 if config.activation != "relu" else RELU) * whole
        return
    assert np.abs(logits - true_logits).max() <= 2e-5
    for name, array in truth.items():
        # Some are zero in truth: of keys' biases, and of what moves all scores alike.
        limit = FLOAT32 * max(np.abs(array).max(), 1e-2 * whole)
        assert np.abs(ours[name] - array).max() <= limit, name


# ---------------------------------------------------------------- whole models


@pytest.mark.parametrize(
    ("dtype", "target"),
    [(dtype, target) for dtype in ("float32", "bfloat16") for target in targets_of(dtype)],
    ids=lambda each: getattr(each, "name", each),
)
def test_every_target(dtype, target, tmp_path):
    compare(trains(target, dtype), config_of(), [5, 33, 1, 64], tmp_path, DROPOUTS)


@pytest.mark.parametrize("lengths", [[1], [47], [48], [49], [511], [1, 512], [130, 383], [12] * 5])
def test_windows_of_every_length(lengths, tmp_path):
    compare(trains(BEST), config_of(), lengths, tmp_path, DROPOUTS)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_activation(activation, dtype, tmp_path):
    compare(trains(BEST, dtype), config_of(hidden_act=activation), [40, 9], tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512},
        {"hidden_size": 17, "num_attention_heads": 1, "intermediate_size": 1},
        {"hidden_size": 130, "num_attention_heads": 2, "intermediate_size": 300},
        {"family": "electra", "embedding_size": 20},
        {"family": "albert", "embedding_size": 20, "num_hidden_layers": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_shape(changes, dtype, tmp_path):
    compare(trains(BEST, dtype), config_of(**changes), [21, 60], tmp_path, DROPOUTS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_do_not_depend_on_the_threads(dtype, tmp_path):
    config = config_of(hidden_size=64, num_attention_heads=2, intermediate_size=200)
    weights = random_weights(config, 5, tmp_path)
    windows = random_batch(config, [100, 7, 300, 40], 6)
    found = [
        gradient_of(trains(BEST, dtype, threads), weights, config, windows, DROPOUTS)
        for threads in (1, 2, 5)
    ]
    for gradient, logits in found[1:]:
        np.testing.assert_array_equal(logits, found[0][1])
        for name, array in named_arrays(found[0][0]).items():
            np.testing.assert_array_equal(named_arrays(gradient)[name], array, err_msg=name)


def test_gradients_are_added_and_memory_is_used_again(tmp_path, monkeypatch):
    config, kernels = config_of(), trains(BEST)
    weights = random_weights(config, 5, tmp_path)
    batch = batch_of(random_batch(config, [30, 12], 6))
    starts, ends = random_spans([30, 12], 3)
    flat = flatten(weights)
    prepared, gradient = kernels.prepare(flat.weights), zeros_like(flat)
    arrays = []
    for turn in range(3):
        if turn:  # the second and third time, nothing may be allocated
            monkeypatch.setattr("minibert.kernels.cpu.training.memory.aligned", None)
        kept = forward(batch, prepared, config, kernels)
        loss = span_loss(kept.start_logits, kept.end_logits, batch.cu_seqlens, starts, ends)
        backward(kept, loss.d_start, loss.d_end, prepared, gradient.weights, config, kernels)
        arrays.append(gradient.array.copy())
    np.testing.assert_allclose(arrays[2], 3 * arrays[0], rtol=1e-5, atol=1e-6)


def test_refreshed_weights_are_those_of_a_new_preparation(tmp_path):
    config, kernels = config_of(), trains(BEST, "bfloat16")
    before, after = (random_weights(config, seed, tmp_path) for seed in (5, 6))
    windows = random_batch(config, [30, 12], 6)
    flat = flatten(before)
    prepared = kernels.prepare(flat.weights)
    flat.array[:] = flatten(after).array
    kernels.refresh(prepared, flat.weights)
    kept = forward(batch_of(windows), prepared, config, kernels)
    again = forward(batch_of(windows), kernels.prepare(after), config, kernels)
    np.testing.assert_array_equal(kept.start_logits, again.start_logits)


# ---------------------------------------------------------------- the optimizer, memory


@pytest.mark.parametrize("count", [1, 15, 16, 17, 4095, 4097, 70001])
def test_the_optimizer_on_any_number_of_weights(count):
    kernels = trains(BEST)
    arrays = [normal(i, count) for i in range(3)] + [normal(4, count) ** 2]
    ours, theirs = [a.copy() for a in arrays], [a.astype(np.float64) for a in arrays]
    for step in (1, 2, 3):
        settings = AdamW(1e-3, 0.9, 0.999, 1e-8, 0.01, step, 0.5)
        kernels.adamw(*ours, settings)
        REFERENCE.adamw(*theirs, settings)
    for found, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)
    truth = REFERENCE.sum_of_squares(theirs[1])
    assert kernels.sum_of_squares(ours[1]) == pytest.approx(truth, rel=1e-5)


def test_numbers_behind_the_weights_stay_as_they_are():
    kernels, size = trains(BEST), 21
    arrays = [np.ones(64, np.float32) for _ in range(4)]
    kernels.adamw(*(a[:size] for a in arrays), AdamW(1e-3, 0.9, 0.999, 1e-8, 0.01, 1))
    for array in arrays:
        assert (array[size:] == 1).all()


def test_memory_that_grows_is_zero_behind_the_last_column():
    room = Workspace(BEST)
    for rows in (3, 900, 5):
        room.begin()
        buffer = room.keep(rows, 21, "float32")
        buffer.array[:] = 1
        assert (buffer.array == 1).all()
        assert len(buffer) == rows
