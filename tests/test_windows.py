import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibert.batches import pack
from minibert.errors import InputError, MinibertError
from minibert.tokenizer import Pair, Tokens
from minibert.windows import make_windows, text_parts


def tokens(count: int) -> Tokens:
    ids = np.arange(10, 10 + count, dtype=np.int32)
    offsets = np.stack([ids, ids + 1], axis=1)
    return Tokens("x" * (count + 20), ids, offsets, np.arange(count, dtype=np.int32))


def windows(question=3, context=20, length=12, stride=2):
    return make_windows(
        tokens(question),
        tokens(context),
        pair=Pair(1, 2),
        max_seq_length=length,
        doc_stride=stride,
    )


@given(length=st.integers(0, 60), room=st.integers(1, 20), overlap=st.integers(0, 19))
def test_parts_cover_the_text_in_order_and_overlap_as_asked(length, room, overlap):
    overlap = min(overlap, room - 1)
    parts = text_parts(length, room, room - overlap)
    assert parts[0][0] == 0
    assert parts[-1][1] == length
    assert all(0 <= end - begin <= room for begin, end in parts)
    for (_, end), (begin, _) in itertools.pairwise(parts):
        assert end - begin == overlap
    assert all(end < length for _, end in parts[:-1])  # no window after the one that ends the text


def test_a_window_is_cls_question_sep_text_sep():
    (window,) = windows(question=2, context=3, length=12)
    assert window.input_ids.tolist() == [1, 10, 11, 2, 10, 11, 12, 2]
    assert window.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert window.offset == 4
    assert window.input_ids.dtype == window.token_type_ids.dtype == np.int32


def test_no_window_is_longer_than_asked():
    assert [len(w) for w in windows()] == [12, 12, 12, 12, 10]


def test_a_text_without_tokens_has_one_window():
    (window,) = windows(context=0)
    assert window.input_ids.tolist() == [1, 10, 11, 12, 2, 2]


def test_a_question_that_leaves_no_room_is_named_with_its_length():
    with pytest.raises(InputError, match="question has 9 tokens and leaves no room"):
        windows(question=9)


def test_a_question_that_does_not_fit_even_without_text_is_refused():
    with pytest.raises(InputError, match="10 tokens and leaves no room"):
        windows(question=10, context=0)


@pytest.mark.parametrize("stride", [6, 7, 100])
def test_a_stride_that_cannot_advance_is_refused(stride):
    with pytest.raises(InputError, match=f"doc_stride {stride} cannot advance"):
        windows(stride=stride)


def test_a_stride_longer_than_the_room_does_not_matter_when_the_text_fits():
    (window,) = windows(context=6, stride=8)
    assert (window.begin, window.end) == (0, 6)


def test_input_errors_are_value_errors_of_the_family():
    assert issubclass(InputError, ValueError)
    assert issubclass(InputError, MinibertError)


def test_a_batch_has_no_padding_and_says_where_windows_begin():
    parts = windows()
    batch = pack(parts)
    assert batch.cu_seqlens.tolist() == [0, 12, 24, 36, 48, 58]
    assert batch.position_ids[:13].tolist() == [*range(12), 0]
    assert np.array_equal(batch.input_ids, np.concatenate([w.input_ids for w in parts]))
    assert {a.dtype for a in vars(batch).values()} == {np.dtype("int32")}


def test_an_empty_batch_is_a_batch():
    batch = pack([])
    assert batch.input_ids.shape == (0,)
    assert batch.cu_seqlens.tolist() == [0]
