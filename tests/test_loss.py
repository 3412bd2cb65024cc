"""The loss of spans: against the sum of its definition, and against central differences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibert import InputError
from minibert.training.loss import span_loss


def chance(logits, right):
    """The chance that the softmax of the logits gives to the right tokens."""
    exp = np.exp(logits - logits.max())
    return exp[list(set(right))].sum() / exp.sum()


@st.composite
def batches(draw):
    """Logits [T] twice, cu_seqlens, right starts and ends, weights."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    logits = st.lists(st.floats(-20, 20), min_size=sum(lengths), max_size=sum(lengths))
    right = [
        [draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3)) for n in lengths]
        for _ in range(2)
    ]
    weights = draw(st.lists(st.floats(0, 3), min_size=len(lengths), max_size=len(lengths)))
    borders = np.cumsum([0, *lengths], dtype=np.int32)
    return np.array(draw(logits)), np.array(draw(logits)), borders, *right, weights


@given(batches())
def test_it_is_the_mean_of_minus_the_logarithms(batch):
    start, end, borders, starts, ends, weights = batch
    truth = 0.0
    for b, weight in enumerate(weights):
        part = slice(borders[b], borders[b + 1])
        truth -= weight * np.log(chance(start[part], starts[b])) / 2
        truth -= weight * np.log(chance(end[part], ends[b])) / 2
    assert span_loss(*batch).loss == pytest.approx(truth, rel=1e-9, abs=1e-9)
    plain, ones = span_loss(*batch[:-1]), span_loss(*batch[:-1], [1.0] * len(weights))
    assert plain.loss == ones.loss
    assert (plain.d_start == ones.d_start).all()


@given(batches())
def test_its_gradient_is_that_of_central_differences(batch):
    result, step = span_loss(*batch), 1e-5
    for logits, gradient in zip(batch[:2], result[1:], strict=True):
        for t in range(len(logits)):
            kept = logits[t]
            logits[t] = kept + step
            up = span_loss(*batch).loss
            logits[t] = kept - step
            slope = (up - span_loss(*batch).loss) / (2 * step)
            logits[t] = kept
            assert gradient[t] == pytest.approx(slope, abs=1e-7)


def test_float32_logits_get_a_float32_gradient_and_a_float64_loss():
    logits, borders = np.array([1, 2, 3], np.float32), np.array([0, 2, 3], np.int32)
    loss, d_start, d_end = span_loss(logits, logits, borders, [[0], [0]], [[1], [0]])
    assert type(loss) is float
    assert (d_start.dtype, d_end.dtype) == (np.float32, np.float32)
    assert loss == pytest.approx((np.log(1 + np.e) + np.log(1 + 1 / np.e)) / 2)
    assert d_start[2] == 0  # a window of one token has nothing to choose


def test_hopeless_logits_have_a_finite_loss():
    logits, borders = np.array([1e4, 0, -1e4], np.float32), np.array([0, 3], np.int32)
    loss, d_start, d_end = span_loss(logits, logits, borders, [[2, 1]], [[2]])
    assert loss == pytest.approx((1e4 + 2e4) / 2)
    assert d_start.tolist() == [0.5, -0.5, 0.0]
    assert d_end.tolist() == [0.5, 0.0, -0.5]


@pytest.mark.parametrize("right", [[], [3], [-1], [0, 3]])
def test_right_positions_outside_of_the_window_are_refused(right):
    logits, borders = np.zeros(5), np.array([0, 2, 5], np.int32)
    with pytest.raises(InputError, match=r"window 1 of the batch has 3 tokens.*got \["):
        span_loss(logits, logits, borders, [[0], [1]], [[0], right])
