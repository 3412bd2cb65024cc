"""Settings, the order of windows, the learning rate, and what a step does to the weights."""

import math
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest

from minibert import InputError
from minibert.kernels.training import get_training_kernels
from minibert.training.flat import Part
from minibert.training.line import duration, operations
from minibert.training.optimizer import (
    LEAST_REMEMBERED,
    average,
    clipping,
    gradient_norm,
    objection,
    trained_groups,
)
from minibert.training.order import Plan, cut, hash_of, shuffled
from minibert.training.schedule import learning_rate
from minibert.training.settings import TrainingSettings

LENGTHS = np.random.default_rng(0).integers(5, 60, 101).astype(np.int32)


def plan(**settings):
    return Plan(LENGTHS, TrainingSettings(**settings))


# ---------------------------------------------------------------- settings


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(InputError) as caught:
        TrainingSettings(learning_rate=-1, seed=1.5, ema=1, dtype="float8", freeze_layers=True)
    for name in ("learning_rate", "seed", "ema", "dtype", "freeze_layers"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_train_epochs": 0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"learning_rate": "1e-4"},
        {"warmup_ratio": 1.5},
        {"layerwise_decay": 0},
        {"hidden_dropout_prob": 1},
        {"held_out": -0.1},
        {"lr_scheduler_type": "constant"},
        {"device": "tpu"},
        {"device": 3},
        {"num_threads": 0},
        {"time_limit": 0},
        {"seed": 2**64},
        {"all_occurrences": 1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TrainingSettings(**wrong)


def test_numbers_of_numpy_become_plain_ones():
    found = TrainingSettings(seed=np.int64(3), learning_rate=np.float32(0.5), ema=0)
    assert [type(x) for x in (found.seed, found.learning_rate, found.ema)] == [int, float, float]
    assert repr(TrainingSettings(seed=1)) == "TrainingSettings(seed=1)"


def test_every_setting_has_an_option():
    from minibert.cli import build_parser

    parser = build_parser()[1]["train"]
    options = {action.dest for action in parser._actions} | {"num_threads"}
    assert {field.name for field in fields(TrainingSettings)} <= options


# ---------------------------------------------------------------- order


def test_every_epoch_reads_each_window_once_in_its_own_order():
    orders = [plan().order(epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(101)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert orders[1] == plan(learning_rate=1.0).order(1).tolist()
    assert orders[1] != plan(seed=1).order(1).tolist()


def test_the_order_is_the_same_for_good():
    assert shuffled(8, 42, 0).tolist() == [1, 7, 4, 3, 5, 2, 0, 6]
    assert hash_of(1, 2, 3) == 7702586659592502839


def test_shuffling_is_fair():
    firsts = np.array([shuffled(10, seed, 0) for seed in range(2000)])
    counts = np.array([np.bincount(firsts[:, place], minlength=10) for place in range(10)])
    assert abs(counts / 2000 - 0.1).max() < 0.03  # four standard deviations


def test_a_step_has_so_many_windows_and_the_last_of_an_epoch_the_rest():
    chosen = plan(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    bounds = chosen.bounds(chosen.order(0))
    assert np.diff(bounds).tolist() == [16] * 6 + [5]
    assert [len(part) for part in chosen.passes(chosen.order(0)[:16])] == [8, 8]


def test_a_step_has_at_most_so_many_tokens_and_nearly_as_many():
    chosen = plan(batch_tokens=200)
    order = chosen.order(0)
    bounds = chosen.bounds(order)
    sums = [int(LENGTHS[order[a:b]].sum()) for a, b in pairwise(bounds)]
    assert max(sums) <= 200
    assert min(sums[:-1]) > 200 - 60
    assert bounds[0] == 0
    assert bounds[-1] == 101


def test_a_window_longer_than_a_step_is_a_step_of_its_own():
    chosen = plan(batch_tokens=6)
    assert chosen.bounds(chosen.order(0)) == list(range(102))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"num_train_epochs": 3}, 12),
        ({"num_train_epochs": 0.5}, 2),
        ({"num_train_epochs": 1.1}, 5),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 2}, 4),
        ({"max_steps": 7}, 7),
    ],
)
def test_steps_of_a_run(settings, steps):
    assert plan(**settings).steps() == steps


def test_passes_hold_at_most_so_many_tokens():
    chosen = plan(max_tokens_per_pass=100)
    windows = chosen.order(0)[:32]
    passes = chosen.passes(windows)
    assert np.concatenate(passes).tolist() == windows.tolist()
    assert max(int(LENGTHS[part].sum()) for part in passes) <= 100
    assert cut(windows[:2], [9, 9], 2, 4)[0].tolist() == windows[:1].tolist()


# ---------------------------------------------------------------- learning rate


def test_the_learning_rate_rises_and_falls():
    linear = TrainingSettings(learning_rate=2.0, warmup_ratio=0.2)
    rates = [learning_rate(linear, step, 10) for step in range(10)]
    assert rates == pytest.approx([0, 1, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25])
    cosine = TrainingSettings(learning_rate=2.0, lr_scheduler_type="cosine")
    assert [learning_rate(cosine, step, 4) for step in (0, 2)] == pytest.approx([2, 1])
    assert learning_rate(TrainingSettings(warmup_steps=3), 2, 3) < 5e-5


# ---------------------------------------------------------------- optimizer

PARTS = (
    Part("embeddings.word_embeddings.weight", 0, 10, 0, True),
    Part("embeddings.LayerNorm.bias", 16, 20, 0, False),
    Part("encoder.layer.0.output.dense.weight", 32, 40, 1, True),
    Part("encoder.layer.1.output.dense.weight", 48, 50, 2, True),
    Part("qa_outputs.weight", 64, 66, 3, True),
)


def stretches(**settings):
    return [
        (group.begin, group.end, group.share, group.weight_decay)
        for group in trained_groups(PARTS, TrainingSettings(**settings))
    ]


def test_what_is_trained_alike_is_one_stretch():
    assert stretches() == [(0, 66, 1.0, 0.0)]
    assert stretches(weight_decay=0.5) == [(0, 10, 1, 0.5), (16, 20, 1, 0), (32, 66, 1, 0.5)]


def test_lower_layers_learn_more_slowly():
    found = stretches(layerwise_decay=0.5)
    assert found == [(0, 20, 0.125, 0), (32, 40, 0.25, 0), (48, 50, 0.5, 0), (64, 66, 1, 0)]


def test_what_is_frozen_is_in_no_stretch():
    assert stretches(freeze_embeddings=True) == [(32, 66, 1, 0)]
    assert stretches(freeze_layers=1) == [(0, 20, 1, 0), (48, 66, 1, 0)]
    assert stretches(freeze_embeddings=True, freeze_layers=2) == [(64, 66, 1, 0)]


def test_the_length_of_the_gradient_leaves_out_what_is_frozen():
    gradient = np.zeros(70, np.float32)
    gradient[[1, 33, 65]] = 100, 3, 4
    kernels = get_training_kernels("reference")
    groups = trained_groups(PARTS, TrainingSettings(freeze_embeddings=True))
    assert gradient_norm(gradient, groups, kernels) == pytest.approx(5)
    gradient[64] = np.nan
    assert math.isnan(gradient_norm(gradient, groups, kernels))


def test_truth_values_of_numpy_are_settings():
    settings = TrainingSettings(freeze_embeddings=np.True_, all_occurrences=np.False_)
    assert (settings.freeze_embeddings, settings.all_occurrences) == (True, False)
    with pytest.raises(InputError, match="freeze_embeddings must be True or False, got 1"):
        TrainingSettings(freeze_embeddings=1)


def test_clipping_shortens_what_is_too_long():
    assert clipping(4.0, TrainingSettings(max_grad_norm=1.0)) == pytest.approx(0.25)
    assert clipping(0.5, TrainingSettings(max_grad_norm=1.0)) == 1
    assert clipping(1e9, TrainingSettings(max_grad_norm=0)) == 1


def test_steps_that_would_do_harm_are_objected_to():
    usual = [1.0] * LEAST_REMEMBERED
    assert objection(2.0, 3.0, usual) is None
    assert objection(2.0, 1e6, usual[1:]) is None
    assert objection(math.nan, 1.0, []) == "the loss is nan"
    assert objection(1.0, math.inf, []) == "the length of the gradient is inf"
    assert objection(1.0, 30.0, usual) == "the gradient is 30 times as long as usual"


def test_the_average_of_the_weights_follows_them():
    mean, weights = np.zeros(3, np.float32), np.ones(3, np.float32)
    average(mean, weights, 0.9, 1)
    assert mean == pytest.approx(1 - 2 / 11)  # faster in the beginning
    for step in range(2, 300):
        average(mean, weights, 0.9, step)
    assert mean == pytest.approx(1)
    average(mean, np.full(3, 2, np.float32), 0.9, 1000)
    assert mean == pytest.approx(1.1)


# ---------------------------------------------------------------- progress


def test_operations_are_those_of_the_matrices():
    from random_models import tiny_config

    config = tiny_config(num_hidden_layers=1, hidden_size=4, intermediate_size=8)
    # 4 matrices of 4 x 4 and 2 of 4 x 8 on 3 tokens, scores and context of 3 x 3 pairs
    assert operations(config, [3]) == 3 * (2 * 3 * (4 * 16 + 2 * 32) + 2 * 2 * 9 * 4)


def test_durations_are_readable():
    assert [duration(x) for x in (0, 61.4, 3600)] == ["0:00", "1:01", "1:00:00"]
