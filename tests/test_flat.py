"""All weights in one array: the same numbers, each in its own place."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from builders import random_weights
from random_models import tiny_config

from minibert.config import BertConfig
from minibert.kernels.numbers import quantise_rows
from minibert.parameters import Table, full
from minibert.training.flat import flatten, named_arrays, zeros_like
from minibert.weights import expected_shapes

ODD = BertConfig(
    vocab_size=11,
    hidden_size=6,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=7,
    max_position_embeddings=9,
)


@pytest.fixture(scope="module", params=[tiny_config(), ODD], ids=["tiny", "odd"])
def config(request):
    return request.param


@pytest.fixture(scope="module")
def weights(config, tmp_path_factory):
    return random_weights(config, 0, tmp_path_factory.mktemp("flat"))


def test_the_views_hold_the_weights(config, weights):
    flat = flatten(weights)
    theirs, ours = named_arrays(weights), named_arrays(flat.weights)
    assert {name: array.shape for name, array in ours.items()} == expected_shapes(config)
    for name, array in theirs.items():
        assert np.array_equal(ours[name], array), name
        assert np.shares_memory(ours[name], flat.array), name
        assert not np.shares_memory(array, flat.array), name
    flat.array[:] = 3
    assert all((array == 3).all() for array in ours.values())


def test_parts_follow_each_other_and_begin_at_cache_lines(weights):
    flat = flatten(weights)
    assert flat.array.dtype == np.float32
    assert flat.array.ctypes.data % 64 == 0
    for part, after in pairwise(flat.parts):
        assert part.begin % 16 == after.begin % 16 == 0
        assert part.begin < part.end <= after.begin < part.end + 16
        assert (flat.array[part.end : after.begin] == 0).all()
        assert part.depth <= after.depth
    assert len(flat.array) % 16 == 0
    assert flat.parts[-1].end <= len(flat.array) < flat.parts[-1].end + 16
    used = sum(part.end - part.begin for part in flat.parts)
    assert used == sum(array.size for array in named_arrays(weights).values())


def test_parts_say_how_deep_they_lie_and_what_decays(config, weights):
    parts = {part.name: part for part in flatten(weights).parts}
    assert parts["embeddings.position_embeddings.weight"].depth == 0
    assert parts["encoder.layer.1.attention.self.qkv.weight"].depth == 2
    assert parts["qa_outputs.bias"].depth == config.num_hidden_layers + 1
    assert {part.depth for part in parts.values()} == set(range(config.num_hidden_layers + 2))
    for name, part in parts.items():
        assert part.decays == (len(named_shape(weights, name)) == 2), name


def named_shape(weights, name):
    return named_arrays(weights)[name.replace(".qkv.", ".query.")].shape


def test_zeros_have_the_same_layout(weights):
    flat = flatten(weights)
    gradient = zeros_like(flat)
    assert gradient.parts == flat.parts
    assert (gradient.array.shape, gradient.array.dtype) == (flat.array.shape, np.float32)
    assert gradient.array.ctypes.data % 64 == 0
    assert not gradient.array.any()
    gradient.weights.qa_outputs.weight[1, 2] = 5
    part = next(p for p in gradient.parts if p.name == "qa_outputs.weight")
    width = weights.qa_outputs.weight.shape[1]
    assert np.flatnonzero(gradient.array).tolist() == [part.begin + width + 2]


def test_int8_becomes_float32(weights):
    words = Table(quantise_rows(weights.tables.words.matrix))
    flat = flatten(replace(weights, tables=replace(weights.tables, words=words)))
    assert np.array_equal(flat.weights.tables.words.matrix, full(words.matrix))


def test_what_layers_share_is_there_once(weights):
    flat = flatten(replace(weights, layers=weights.layers[:1] * 4))
    assert len(flat.array) < len(flatten(weights).array)
    assert not any(part.name.startswith("encoder.layer.1.") for part in flat.parts)
    for each in (flat, zeros_like(flat)):
        assert len(each.weights.layers) == 4
        each.weights.layers[3].qkv.bias[0] = 7
        assert each.weights.layers[0].qkv.bias[0] == 7


def test_what_is_fixed_lies_outside(weights):
    name = "embeddings.token_type_embeddings.weight"
    flat = flatten(weights, fixed=[name])
    assert name not in [part.name for part in flat.parts]
    types = flat.weights.tables.token_types.matrix
    assert np.array_equal(types, weights.tables.token_types.matrix)
    assert not np.shares_memory(types, flat.array)
    gradient = zeros_like(flat)
    gradient.weights.tables.token_types.matrix[:] = 1
    assert not gradient.array.any()
    assert (types != 1).all()
