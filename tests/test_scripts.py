"""What characters say about words: every place of a text, against the definition."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibert.scripts import borders, may_end_within_words, split_script, without_spaces

TEXTS = st.text(alphabet="ab1. \t\u3000\u0301\u0302港カ\u3099บ\u0e49한\ufe0f'", max_size=12)


def is_mark(char):
    return unicodedata.category(char)[0] == "M"


def characters(text):
    """The characters of a text, each with its marks; one that follows a space stands alone."""
    parts = []
    for char in text:
        if is_mark(char) and parts and not parts[-1][-1].isspace() and not is_mark(parts[-1][0]):
            parts[-1] += char
        else:
            parts.append(char)
    return parts


@given(TEXTS)
def test_places_are_those_of_whole_characters_without_spaces(text):
    found = borders(text)
    at = 0
    edges = [0]
    for part in characters(text):
        for inside in range(at + 1, at + len(part)):
            assert found.begin[inside] == at
            assert found.end[inside] == at + len(part)
        edges.append(at := at + len(part))
    for edge in edges:
        assert found.begin[edge] == len(text) - len(text[edge:].lstrip())
        assert found.end[edge] == len(text[:edge].rstrip())


@pytest.mark.parametrize(
    "character",
    [
        "e\u0301",
        "e\u0302\u0301",
        "שָׁ",
        "हि",
        "कि\u0902",
        "ழ்",
        "น้ำ",
        "ນ້ຳ",
        "각",
        "가",
        "ｶﾞ",
        "葛\U000e0100",
        "❤\ufe0f",
        "1\ufe0f\u20e3",
        "👍🏽",
        "👨\u200d👩\u200d👧",
        "👩🏽\u200d⚕\ufe0f",
        "🏴\U000e0067\U000e0062\U000e007f",
        "🇩🇪",
    ],
)
@pytest.mark.parametrize("around", ["{} b", "a {}", "(🇩🇪{}🇩🇪)"])
def test_a_character_of_several_code_points_is_one(character, around):
    text = around.format(character)
    begin = around.index("{")
    end = begin + len(character)
    found = borders(text)
    assert found.begin[begin:end].tolist() == [begin] * len(character)
    assert found.end[begin + 1 : end + 1].tolist() == [end] * len(character)


def test_letters_that_must_not_join_are_of_one_word():
    assert borders("می\u200cخواهم").between_words.sum() == 2


@given(TEXTS)
def test_words_end_wherever_there_are_not_letters_on_both_sides(text):
    found = borders(text)
    parts = characters(text)
    letters = [part[0].isalnum() and not may_end_within_words(part[0]) for part in parts]
    at = 0
    expected = [True]
    for number, part in enumerate(parts):
        inside = [False] * (len(part) - 1)
        both = letters[number : number + 2] == [True, True]
        expected += [*inside, not both]
        at += len(part)
    assert found.between_words.tolist() == expected


@given(TEXTS)
def test_splitting_loses_nothing_and_leaves_each_letter_without_spaces_alone(text):
    parts = [text[a:b] for a, b in split_script(text, 0, len(text))] if text else []
    assert "".join(parts) == text
    for part in parts:
        bases = [char for char in part if not is_mark(char)]
        assert len(bases) <= 1 or not any(map(without_spaces, bases))


@pytest.mark.parametrize("letter", "港々〇𠮷なガฟຟကខབ")
def test_letters_of_scripts_without_spaces_are_known(letter):
    assert without_spaces(letter)
    assert may_end_within_words(letter)


@pytest.mark.parametrize("other", "aéяאع한1。、・ ๏\u0301")
def test_other_characters_part_words_as_spaces_do_or_are_parts_of_them(other):
    assert not without_spaces(other)
