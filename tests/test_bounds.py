"""Batches that point beyond the tables, whatever has made them: no kernel sees them."""

from dataclasses import replace

import numpy as np
import pytest
from builders import batch_of, dense, normal, random_weights
from random_models import tiny_config

from minibert.encoder import qa_logits
from minibert.errors import InputError
from minibert.kernels.bounds import check_windows, checked_ids
from minibert.kernels.training import get_training_kernels
from minibert.parameters import TableRows
from minibert.trace import Trace
from minibert.training.passes import forward

CONFIG = tiny_config()
WORDS, POSITIONS = CONFIG.vocab_size, CONFIG.max_position_embeddings
GOOD = batch_of([(np.array([1, 2, 3], np.int32), np.array([0, 0, 1], np.int32))] * 2)

BAD = {
    "word": {"input_ids": [1, 2, 3, 1, 2, WORDS]},
    "negative word": {"input_ids": [1, 2, 3, -1, 2, 3]},
    "word of 64 bits": {"input_ids": np.array([1, 2, 3, 1, 2, 2**32], np.int64)},
    "word that is no integer": {"input_ids": [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]},
    "type": {"token_type_ids": [0, 0, 1, 0, 0, 2]},
    "negative type": {"token_type_ids": [0, 0, -1, 0, 0, 1]},
    "position": {"position_ids": [0, 1, 2, 0, 1, POSITIONS]},
    "negative position": {"position_ids": [0, 1, 2, 0, 1, -(2**31)]},
    "too few positions": {"position_ids": [0, 1, 2, 0, 1]},
    "two rows of types": {"token_type_ids": [[0] * 6] * 2},
    "window beyond the end": {"cu_seqlens": [0, 3, 7]},
    "end before the last token": {"cu_seqlens": [0, 3, 5]},
    "windows that go back": {"cu_seqlens": [0, 6, 3, 6]},
    "negative window": {"cu_seqlens": [0, -3, 6]},
    "no first window": {"cu_seqlens": [3, 6]},
    "no windows": {"cu_seqlens": []},
    "windows without a sign that go back": {"cu_seqlens": np.array([0, 6, 3, 6], np.uint32)},
    "borders between tokens": {"cu_seqlens": [0.0, 2.5, 6.0]},
}


def spoilt(changes):
    """The good batch with one bad array."""
    return replace(GOOD, **{name: np.asarray(value) for name, value in changes.items()})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of the tiny model."""
    return random_weights(CONFIG, 0, tmp_path_factory.mktemp("bounds"))


@pytest.mark.parametrize("name", BAD)
def test_no_kernel_sees_a_batch_beyond_the_tables(processor, weights, name):
    batch, prepared = spoilt(BAD[name]), processor.prepare(weights)
    assert len(qa_logits(GOOD, prepared, CONFIG, processor)[0]) == 6
    with pytest.raises(InputError, match="of a batch must be|cu_seqlens must go up"):
        qa_logits(batch, prepared, CONFIG, processor)
    with pytest.raises(InputError, match="of a batch must be|cu_seqlens must go up"):
        qa_logits(batch, prepared, CONFIG, processor, Trace())


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_training_sees_none_either(weights, device, name):
    kernels = get_training_kernels(device)
    prepared = kernels.prepare(weights)
    with pytest.raises(InputError, match="of a batch must be|cu_seqlens must go up"):
        forward(spoilt(BAD[name]), prepared, CONFIG, kernels)


def test_single_steps_take_arrays_of_the_right_width(processor):
    if processor.name != "cpu":
        pytest.skip("NumPy says so itself")
    layer = processor.prepare_dense(dense(0, 8, 4))
    for shape in ((3, 5), (3, 4000)):
        with pytest.raises(InputError, match=r"linear: x must be \[3, 4\]"):
            processor.linear(normal(0, *shape), layer)


def test_a_message_says_how_far_ids_may_go():
    rows = TableRows(10, 2, 5)
    ids = np.array([3, 12, -1], np.int32)
    with pytest.raises(InputError, match="input_ids of a batch must be from 0 to 9.* got -1 to 12"):
        checked_ids(ids, ids, ids, rows)
    with pytest.raises(InputError, match="from 0 to 3, the tokens of the batch"):
        check_windows(np.array([0, 4], np.int32), 3)


def test_empty_batches_and_windows_are_good():
    none = np.zeros(0, np.int32)
    assert [len(ids) for ids in checked_ids(none, none, none, TableRows(1, 1, 1))] == [0, 0, 0]
    for borders in ([0], [0, 0], [0, 3, 3, 3]):
        check_windows(np.array(borders, np.int32), borders[-1])
