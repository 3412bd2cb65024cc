"""Tokens and their places in a text, and whether a tokenizer fits a model."""

import pickle
import warnings

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from random_models import tiny_config, vocabulary
from tokenizer_files import UNCASED, pieces, slices, write_json, write_vocab
from tokenizers import models, normalizers

from minibert.checkpoints.vocabularies import load_tokenizer
from minibert.errors import InputError, MinibertError, TokenizerError
from minibert.tokenizer import Tokenizer, reporting

# --- fitting the model -----------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [1, 8, 16, 32, 64, 128])
def test_a_table_rounded_up_for_the_gpu_fits(tiny, multiple):
    rows = -(-len(vocabulary()) // multiple) * multiple
    tiny.tokenizer.check_fits(tiny_config(vocab_size=rows))


@pytest.mark.parametrize("change", [1, 100])
def test_a_vocabulary_of_more_tokens_than_rows_does_not_fit(tiny, change):
    tokens = len(vocabulary())
    with pytest.raises(TokenizerError) as caught:
        tiny.tokenizer.check_fits(tiny_config(vocab_size=tokens - change))
    message = str(caught.value)
    assert f"has {tokens} tokens, more than the {tokens - change} rows" in message


def test_a_table_with_many_rows_to_spare_fits_with_a_warning(tiny):
    tokens = len(vocabulary())
    with pytest.warns(UserWarning, match=f"{tokens} tokens .* {tokens + 1000} rows"):
        tiny.tokenizer.check_fits(tiny_config(vocab_size=tokens + 1000))


def test_a_token_with_an_id_beyond_the_table_is_named(tmp_path):
    def move(raw):
        raw["model"]["vocab"]["ship"] = 99

    tokenizer = load_tokenizer(write_json(tmp_path, change=move))
    with pytest.raises(TokenizerError, match="id 99"):
        tokenizer.check_fits(tiny_config(vocab_size=len(UNCASED)))


# --- tokens and their places -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the ship", ["the", "ship"]),
        ("😀 the 😀 ship", ["😀", "the", "😀", "ship"]),
        ("\U0001f468\u200d\U0001f469 ship", ["\U0001f468\u200d\U0001f469", "ship"]),
        ("船東 ship", ["船", "東", "ship"]),
        ("שלום עולם the", ["שלום", "עולם", "the"]),
        ("كتب كتاب.", ["كتب", "كتاب", "."]),
        ("\u200bthe\u200b ship", ["the", "ship"]),
        ("  the\tship\n", ["the", "ship"]),
        ("\x00the", ["the"]),
        ("𝔘 the", ["𝔘", "the"]),
    ],
)
def test_offsets_are_code_points_of_the_text(tmp_path, text, expected):
    tokenizer = load_tokenizer(write_vocab(tmp_path))
    assert [part.strip("\u200b") for part in slices(tokenizer, text)] == expected


def test_a_letter_with_a_combining_accent_is_found_again(tmp_path):
    tokenizer = load_tokenizer(write_vocab(tmp_path, settings={"do_lower_case": True}))
    text = "the e\u0301 ship"
    begin, end = tokenizer.encode(text).offsets.tolist()[1]
    assert pieces(tokenizer, text) == ["the", "e", "ship"]
    assert begin == text.index("e\u0301")
    assert text[begin:end] in ("e", "e\u0301")
    assert slices(tokenizer, text)[2] == "ship"


def test_pieces_of_a_word_share_its_number(tiny):
    tokens = tiny.tokenizer.encode("the shipped, ship")
    assert tokens.words.tolist() == sorted(tokens.words.tolist())
    for number, word in [(0, "the"), (1, "shipped"), (2, ","), (3, "ship")]:
        begin = tokens.offsets[tokens.words == number][0, 0]
        end = tokens.offsets[tokens.words == number][-1, 1]
        assert tokens.text[begin:end] == word


@given(text=st.text(max_size=40))
@example(text="İ ß ﬁ e\u0301\u0302 각 각")
def test_tokens_follow_each_other_inside_the_text(tiny, text):
    tokens = tiny.tokenizer.encode(text)
    assert tokens.text == text
    assert tokens.ids.dtype == tokens.offsets.dtype == tokens.words.dtype == np.int32
    assert tokens.offsets.shape == (len(tokens), 2)
    assert len(tokens.ids) == len(tokens.words) == len(tokens)
    begins, ends = tokens.offsets.T
    assert (begins >= 0).all()
    assert (ends <= len(text)).all()
    assert (begins <= ends).all()
    assert (np.diff(begins) >= 0).all()
    assert (np.diff(ends) >= 0).all()


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b", "\x00"])
def test_a_text_without_words_has_no_tokens(tiny, text):
    tokens = tiny.tokenizer.encode(text)
    assert len(tokens) == 0
    assert tokens.offsets.shape == (0, 2)


def test_the_first_tokens_can_be_cut_off(tiny):
    tokens = tiny.tokenizer.encode("the ship was old")
    first = tokens.first(2)
    assert len(first) == len(first.words) == len(first.offsets) == 2
    assert first.ids.tolist() == tokens.ids[:2].tolist()
    assert first.text == tokens.text


def test_no_special_tokens_are_added(tiny):
    ids = tiny.tokenizer.encode("the ship").ids.tolist()
    assert ids == [vocabulary().index("the"), vocabulary().index("ship")]


@pytest.mark.parametrize(("text", "place"), [("\ud800", 0), ("ab\udc00c", 2), ("😀\udfff", 1)])
def test_a_lone_surrogate_is_an_input_error_that_names_its_place(tiny, text, place):
    with pytest.raises(InputError) as caught:
        tiny.tokenizer.encode(text)
    assert f"character {place} is the lone surrogate {text[place]!r}" in str(caught.value)
    assert isinstance(caught.value, MinibertError)


# --- what the vocabulary does not know -----------------------------------------------------------


def test_a_text_of_unknown_words_is_warned_of_once(tmp_path):
    tokenizer = load_tokenizer(write_vocab(tmp_path))
    with pytest.warns(UserWarning, match=f"{tmp_path}: 20 of the 30 tokens of a text are unknown"):
        tokenizer.encode("ship xx yy " * 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode("xx " * 30)


@pytest.mark.parametrize("text", ["xx " * 19, "xx the ship the " * 9, "the " * 40, ""])
def test_short_texts_and_those_with_few_unknown_words_bring_no_warning(tmp_path, text):
    tokenizer = load_tokenizer(write_vocab(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode(text)


def test_a_copy_in_another_process_warns_of_the_same_model(tmp_path):
    tokenizer = pickle.loads(pickle.dumps(load_tokenizer(write_vocab(tmp_path))))
    with pytest.warns(UserWarning, match=str(tmp_path)):
        tokenizer.encode("xx " * 20)


# --- what the package raises ---------------------------------------------------------------------


@pytest.fixture
def panicking():
    """A tokenizer that was made by hand, of parts that no file may hold."""
    words = {word: number for number, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "a"])}
    backend = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.normalizer = normalizers.Precompiled(b"\x04\0\0\0\xff\xff\xff\xff")
    return Tokenizer(backend, name="a model")


@pytest.mark.parametrize("use", ["encode", "encode_words", "basic_words", "normalized"])
def test_a_panic_of_the_package_is_an_error_like_others(panicking, use):
    with pytest.raises(
        TokenizerError, match=r"a model: its tokenizer cannot .* index out of bounds"
    ):
        getattr(panicking, use)("a")


def test_a_tokenizer_that_cannot_split_what_is_unknown_is_an_error_like_others():
    words = {"[CLS]": 0, "[SEP]": 1, "a": 2}
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]")))
    with pytest.raises(TokenizerError, match=r"cannot split a text: .*\[UNK\]"):
        tokenizer.encode("b")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, InputError])
def test_what_others_raise_passes(kind):
    with pytest.raises(kind), reporting("a model"):
        raise kind("it")
