"""Questions become windows that point at their answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import tiny_config, vocabulary

from minibert import InputError
from minibert.checkpoints.vocabularies import load_tokenizer
from minibert.model import Model
from minibert.squad.files import Gold, SquadQuestion
from minibert.training import examples as module
from minibert.training.examples import (
    ELSEWHERE,
    NO_ROOM,
    NO_TOKENS,
    NOT_THERE,
    TOO_LONG,
    WITHIN,
    answer_spans,
    make_examples,
    occurrences,
    split_all,
)
from minibert.windows import make_windows

TEXT = "Ada found the old ship in Berlin. The captain of the ship was Lee, from Paris."


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return load_tokenizer(Path(tiny_folder))


def question(text=TEXT, answers=(), identifier="q", asked="Who found the ship?"):
    golds = tuple(Gold(part, start) for part, start in answers)
    return SquadQuestion(identifier, asked, text, golds, 0)


def examples_of(tokenizer, *questions, length=18, stride=6, **options):
    return make_examples(
        questions,
        tokenizer,
        tokenizer.pair,
        max_seq_length=length,
        doc_stride=stride,
        max_query_length=64,
        **options,
    )


def pointed_at(tokenizer, examples, index, text=TEXT):
    """The texts that a window points at; None for [CLS]."""
    _, _, begin, end = examples.windows[index].tolist()
    offsets = tokenizer.encode(text).offsets
    window = examples.window(index)
    found = []
    for a, b in zip(examples.starts[index].tolist(), examples.ends[index].tolist(), strict=True):
        if a == b == 0:
            found.append(None)
            continue
        first, last = a - window.offset + begin, b - window.offset + begin
        assert begin <= first <= last < end
        found.append(text[offsets[first, 0] : offsets[last, 1]])
    return found


def test_windows_are_those_that_the_model_reads(tokenizer):
    each = question(answers=[("ship", TEXT.index("ship"))])
    found, _ = examples_of(tokenizer, each)
    expected = make_windows(
        tokenizer.encode(each.question),
        tokenizer.encode(TEXT),
        pair=tokenizer.pair,
        max_seq_length=18,
        doc_stride=6,
    )
    assert len(found) == len(expected) > 2
    assert found.lengths.tolist() == [len(window) for window in expected]
    batch = found.batch(np.arange(len(found)))
    assert batch.input_ids.tolist() == np.concatenate([w.input_ids for w in expected]).tolist()
    types = np.concatenate([w.token_type_ids for w in expected])
    assert batch.token_type_ids.tolist() == types.tolist()


def test_a_window_points_at_the_answer_if_it_holds_all_of_it_and_else_at_cls(tokenizer):
    found, report = examples_of(tokenizer, question(answers=[("Lee", TEXT.index("Lee"))]))
    said = [pointed_at(tokenizer, found, index) for index in range(len(found))]
    assert [None] in said
    assert ["Lee"] in said
    assert found.with_answer == said.count(["Lee"]) == len(said) - said.count([None])
    assert list(report.lines()) == []


def test_an_answer_that_is_cut_off_is_not_pointed_at(tokenizer):
    answer = "old ship in Berlin. The captain"
    found, _ = examples_of(tokenizer, question(answers=[(answer, TEXT.index(answer))]))
    said = [pointed_at(tokenizer, found, index) for index in range(len(found))]
    assert said.count([answer]) == 1
    assert said.count([None]) == len(said) - 1


def test_unanswerable_questions_point_at_cls(tokenizer):
    unanswerable = question(identifier="n")
    found, _ = examples_of(
        tokenizer, unanswerable, question(answers=[("Ada", 0)], identifier="a"), length=64
    )
    assert [found.starts[0].tolist(), found.ends[0].tolist()] == [[0], [0]]
    assert found.with_answer == 1


def test_the_first_answer_counts(tokenizer):
    golds = [("Lee", TEXT.index("Lee")), ("Ada", 0)]
    found, _ = examples_of(tokenizer, question(answers=golds), length=64)
    assert pointed_at(tokenizer, found, 0) == ["Lee"]


def test_all_occurrences_are_right_if_that_is_asked_for(tokenizer):
    each = question(answers=[("ship", TEXT.index("ship"))])
    one, _ = examples_of(tokenizer, each, length=64)
    both, _ = examples_of(tokenizer, each, length=64, all_occurrences=True)
    assert len(one.starts[0]) == 1
    assert pointed_at(tokenizer, both, 0) == ["ship", "ship"]
    assert len(set(both.starts[0].tolist())) == 2


def test_an_occurrence_within_a_word_piece_is_none(tokenizer):
    text = "the moon, an old moonж"  # whose last word is one token, [UNK]
    each = question(text, [("moon", 4)])
    found, _ = examples_of(tokenizer, each, length=64, all_occurrences=True)
    assert pointed_at(tokenizer, found, 0, text) == ["moon"]


@pytest.mark.parametrize(
    ("each", "kind", "kept"),
    [
        (question(answers=[("Hamburg", 3)]), NOT_THERE, False),
        (question(answers=[("ship", 3)]), ELSEWHERE, True),
        (question("the shipж 12", answers=[("ship", 4)]), WITHIN, True),
        (question(answers=[("Ada", 0)], asked=" "), NO_TOKENS, False),
        (question(" \n", answers=[]), NO_TOKENS, False),
        (question(answers=[(TEXT, 0)]), TOO_LONG, False),
        (question(asked="who " * 20), NO_ROOM, False),
    ],
)
def test_wrong_rows_are_counted_and_named(tokenizer, each, kind, kept):
    good = question("Ada found Lee.", answers=[("Ada", 0)], identifier="good")
    found, report = examples_of(tokenizer, replace(each, id="bad"), good)
    assert (report.kept if kept else report.left_out) == {kind: ["bad"]}
    assert [line for line in report.lines() if "1 question is" in line and "(bad)" in line]
    assert set(found.windows[:, 0].tolist()) == ({0, 1} if kept else {1})


def test_an_answer_without_a_place_is_looked_for(tokenizer):
    found, report = examples_of(tokenizer, question(answers=[("Paris", None)]), length=64)
    assert pointed_at(tokenizer, found, 0) == ["Paris"]
    assert not report.kept


def test_of_several_occurrences_the_nearest_is_taken(tokenizer):
    second = TEXT.rindex("ship")
    found, _ = examples_of(tokenizer, question(answers=[("ship", second + 2)]), length=64)
    first, _ = examples_of(tokenizer, question(answers=[("ship", second)]), length=64)
    assert found.starts[0].tolist() == first.starts[0].tolist()


def test_if_no_question_is_left_the_error_says_why(tokenizer):
    with pytest.raises(InputError, match=r"no question to train on; 1 question is left out.*\(q\)"):
        examples_of(tokenizer, question(answers=[("Hamburg", 0)]))


def test_texts_are_split_together_as_one_by_one(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 3)
    texts = [TEXT, "", "é 船 東京", "  a\tb ", "18 43"] * 2
    for (ids, offsets), text in zip(split_all(tokenizer, texts), texts, strict=True):
        one = tokenizer.encode(text)
        assert ids.tolist() == one.ids.tolist()
        assert offsets.tolist() == one.offsets.tolist()


@given(st.data())
def test_answers_come_back_from_the_tokens_that_they_point_at(tokenizer, data):
    words = data.draw(st.lists(st.sampled_from(vocabulary()[5:60]), min_size=1, max_size=30))
    text = " ".join(word for word in words if not word.startswith("##")) or "a"
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    answer = text[start:end]
    if not answer.strip():
        return
    each = question(text, [(answer, start)])
    offsets = tokenizer.encode(text).offsets
    spans = answer_spans(each, offsets, False, module.Report())
    ((first, last),) = spans
    touched = [i for i, (a, b) in enumerate(offsets.tolist()) if a < end and b > start]
    assert (first, last) == (touched[0], touched[-1])


def test_occurrences_may_overlap():
    assert occurrences("aaa", "aa") == [0, 1]
    assert occurrences("abc", "d") == []


def test_a_model_with_one_token_type_gets_zeros(tokenizer, tiny):
    one = replace(tiny, config=tiny_config(type_vocab_size=2))
    assert isinstance(one, Model)
    pair = replace(tokenizer.pair, text_type=0)
    found, _ = make_examples(
        [question(answers=[("Ada", 0)])],
        tokenizer,
        pair,
        max_seq_length=64,
        doc_stride=8,
        max_query_length=64,
    )
    assert not found.batch(np.array([0])).token_type_ids.any()
