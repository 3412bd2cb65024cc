"""Loading a BERT tokenizer from either of its forms, and where its tokens stand in the text."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from random_models import tiny_config, vocabulary, write_model
from tokenizers import models, processors

from minibert.errors import InputError, MinibertError, ModelNotFoundError, TokenizerError
from minibert.tokenizer import load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNCASED = [*SPECIAL, "a", "b", "e", "the", "##s", "ship", "船", "é", "."]
CASED = [*UNCASED, "A", "The"]


def write_vocab(folder, words=UNCASED, settings=None, end="\n"):
    """A tokenizer as old checkpoints have it."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_bytes("".join(word + end for word in words).encode())
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_json(folder, words=UNCASED, change=None, settings=None, **options):
    """A tokenizer as new checkpoints have it; `change` gets its JSON and may alter it."""
    folder.mkdir(exist_ok=True)
    backend = tokenizers.BertWordPieceTokenizer(
        {word: i for i, word in enumerate(words)}, **options
    )
    backend.add_special_tokens(SPECIAL)
    raw = json.loads(backend.to_str())
    if change is not None:
        change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def problem(folder, kind=TokenizerError):
    with pytest.raises(kind) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def pieces(tokenizer, text):
    """The tokens of a text, as words of the vocabulary."""
    return [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(text).ids.tolist()]


def slices(tokenizer, text):
    """What the tokens stand for in the text."""
    return [text[begin:end] for begin, end in tokenizer.encode(text).offsets.tolist()]


# --- the two forms ---------------------------------------------------------------------------


@pytest.mark.parametrize("lowercase", [True, False])
@given(text=st.text(alphabet="Aa Bb Éé\u0301 .,船ship the😀\n\t\u200b[SEP]xİß", max_size=30))
@example(text="The ships. THE SHIPS. É 船船 \u0301")
def test_both_forms_give_equal_tokens(tmp_path_factory, lowercase, text):
    folder = tmp_path_factory.mktemp("forms")
    words = UNCASED if lowercase else CASED
    old = load_tokenizer(write_vocab(folder / "old", words, {"do_lower_case": lowercase}))
    new = load_tokenizer(write_json(folder / "new", words, lowercase=lowercase))
    one, two = old.encode(text), new.encode(text)
    assert one.ids.tolist() == two.ids.tolist()
    assert one.offsets.tolist() == two.offsets.tolist()
    assert one.words.tolist() == two.words.tolist()
    assert (old.pair, old.vocab_size) == (new.pair, new.vocab_size)


def test_tokenizer_json_is_preferred_to_vocab_txt(tmp_path):
    write_vocab(tmp_path, UNCASED)
    write_json(tmp_path, CASED, lowercase=False)
    assert load_tokenizer(tmp_path).vocab_size == len(CASED)


def test_an_uncased_tokenizer_lowers_letters_and_drops_accents(tmp_path):
    tokenizer = load_tokenizer(write_vocab(tmp_path, UNCASED, {"do_lower_case": True}))
    assert pieces(tokenizer, "THE Ships É") == ["the", "ship", "##s", "e"]


def test_a_cased_tokenizer_keeps_letters_and_accents(tmp_path):
    tokenizer = load_tokenizer(write_vocab(tmp_path, CASED, {"do_lower_case": False}))
    assert pieces(tokenizer, "The the THE é") == ["The", "the", "[UNK]", "é"]


@pytest.mark.parametrize("settings", [None, {}, {"do_lower_case": None}])
def test_case_is_guessed_from_the_vocabulary_where_nothing_is_said(tmp_path, settings):
    uncased = load_tokenizer(write_vocab(tmp_path / "uncased", UNCASED, settings))
    cased = load_tokenizer(write_vocab(tmp_path / "cased", CASED, settings))
    assert pieces(uncased, "A The") == ["a", "the"]
    assert pieces(cased, "A The a the") == ["A", "The", "a", "the"]


def test_what_tokenizer_config_says_beats_the_guess(tmp_path):
    tokenizer = load_tokenizer(write_vocab(tmp_path, CASED, {"do_lower_case": True}))
    assert pieces(tokenizer, "A The") == ["a", "the"]


def test_what_tokenizer_config_says_beats_tokenizer_json(tmp_path):
    write_json(tmp_path, CASED, lowercase=True, settings={"do_lower_case": False})
    assert pieces(load_tokenizer(tmp_path), "A The a") == ["A", "The", "a"]


@pytest.mark.parametrize("write", [write_vocab, write_json])
def test_accents_and_chinese_characters_are_treated_as_the_settings_say(tmp_path, write):
    settings = {"strip_accents": False, "tokenize_chinese_chars": False, "do_lower_case": True}
    tokenizer = load_tokenizer(write(tmp_path / "kept", settings=settings))
    assert pieces(tokenizer, "é 船a") == ["é", "[UNK]"]
    assert pieces(load_tokenizer(write(tmp_path / "usual")), "é 船a") == ["e", "船", "a"]


@pytest.mark.parametrize("write", [write_vocab, write_json])
@pytest.mark.parametrize("option", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_an_option_that_is_neither_true_nor_false_is_named(tmp_path, write, option):
    message = problem(write(tmp_path, settings={option: "yes"}))
    assert f"{option} must be true or false, got 'yes'" in message


@pytest.mark.parametrize("write", [write_vocab, write_json])
def test_special_tokens_may_be_objects(tmp_path, write):
    words = ["<pad>", "[UNK]", "<s>", "</s>", *UNCASED]
    settings = {
        "cls_token": {"content": "<s>", "lstrip": False, "__type": "AddedToken"},
        "sep_token": {"content": "</s>"},
        "pad_token": "<pad>",
    }
    if write is write_vocab:
        words.remove("[UNK]")

    def no_layout(raw):
        raw["post_processor"] = None

    more = {"change": no_layout} if write is write_json else {}
    words = list(dict.fromkeys(words))
    tokenizer = load_tokenizer(write(tmp_path, words, settings=settings, **more))
    assert (tokenizer.pair.cls_id, tokenizer.pair.sep_id) == (
        words.index("<s>"),
        words.index("</s>"),
    )


def test_special_tokens_that_are_null_are_the_usual_ones(tmp_path):
    tokenizer = load_tokenizer(write_vocab(tmp_path, settings={"cls_token": None}))
    assert tokenizer.cls_id == UNCASED.index("[CLS]")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (None, None),
        ({"model_max_length": 512}, 512),
        ({"model_max_length": 256.0}, 256),
        ({"model_max_length": 1000000000000000019884624838656}, None),
        ({"model_max_length": None}, None),
        ({"model_max_length": -1}, None),
        ({"model_max_length": "512"}, None),
    ],
)
def test_the_longest_window_is_taken_where_it_says_something(tmp_path, settings, expected):
    assert load_tokenizer(write_vocab(tmp_path, settings=settings)).model_max_length == expected


# --- vocab.txt -------------------------------------------------------------------------------


def test_lines_may_end_as_on_windows(tmp_path):
    unix = load_tokenizer(write_vocab(tmp_path / "unix"))
    windows = load_tokenizer(write_vocab(tmp_path / "windows", end="\r\n"))
    assert windows.backend.get_vocab() == unix.backend.get_vocab()


def test_the_last_line_may_be_unfinished(tmp_path):
    folder = write_vocab(tmp_path)
    (folder / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes()[:-1])
    assert load_tokenizer(folder).vocab_size == len(UNCASED)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_token_that_stands_there_twice_is_named(tmp_path, end):
    message = problem(write_vocab(tmp_path, [*UNCASED, "ship"], end=end))
    assert "vocab.txt" in message
    assert "'ship' stands there twice" in message


@pytest.mark.parametrize("token", ["[UNK]", "[CLS]", "[SEP]"])
def test_a_missing_special_token_is_named(tmp_path, token):
    words = [word for word in UNCASED if word != token]
    message = problem(write_vocab(tmp_path, words))
    assert "vocab.txt" in message
    assert f"no {token!r} token" in message


def test_an_empty_vocabulary_is_refused(tmp_path):
    assert "[UNK]" in problem(write_vocab(tmp_path, []))


def test_a_vocabulary_that_is_not_utf_8_is_refused_with_the_place(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xe9\n")
    message = problem(tmp_path)
    assert "vocab.txt" in message
    assert "is not UTF-8" in message
    assert "byte 6" in message


def test_a_folder_without_either_form_is_not_found(tmp_path):
    assert "neither tokenizer.json nor vocab.txt" in problem(tmp_path, ModelNotFoundError)


@pytest.mark.parametrize("content", ["{", "[]", '"x"'])
def test_a_damaged_tokenizer_config_is_refused(tmp_path, content):
    (write_vocab(tmp_path) / "tokenizer_config.json").write_text(content)
    assert "tokenizer_config.json" in problem(tmp_path)


# --- tokenizer.json --------------------------------------------------------------------------


def test_a_truncated_tokenizer_json_is_refused(tmp_path):
    path = write_json(tmp_path) / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-20])
    assert "tokenizer.json: is not a tokenizer file" in problem(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"version": "1.0"}'])
def test_a_tokenizer_json_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert "is not a tokenizer file" in problem(tmp_path)


def test_a_tokenizer_of_whole_words_is_refused_by_its_kind(tmp_path):
    tokenizers.Tokenizer(models.WordLevel({"a": 0})).save(str(tmp_path / "tokenizer.json"))
    assert "holds a WordLevel tokenizer, expected BERT's WordPiece" in problem(tmp_path)


@pytest.mark.parametrize("token", ["[CLS]", "[SEP]"])
def test_a_tokenizer_json_without_a_special_token_is_refused(tmp_path, token):
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "b": 2}))
    other = {"[CLS]": "[SEP]", "[SEP]": "[CLS]"}[token]
    backend.add_special_tokens([other])
    backend.save(str(tmp_path / "tokenizer.json"))
    message = problem(tmp_path)
    assert "tokenizer.json" in message
    assert f"no {token!r} token" in message


@pytest.mark.parametrize(
    "pair",
    [
        "[CLS] $A [SEP] [SEP] $B:1 [SEP]:1",  # RoBERTa's knows no types
        "[CLS] $A [SEP] $B:0 [SEP]:0",  # one token type
        "[CLS] $B [SEP] $A:1 [SEP]:1",
        "$A [SEP] $B:1 [SEP]:1",
    ],
)
def test_another_layout_of_question_and_text_is_refused(tmp_path, pair):
    folder = write_json(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=ids
    )
    backend.save(str(folder / "tokenizer.json"))
    message = problem(folder)
    assert "tokenizer.json: the tokenizer joins a question and a text as" in message
    assert "[CLS] question [SEP] text [SEP]" in message


def test_truncation_and_padding_inside_tokenizer_json_are_ignored(tmp_path):
    def add(raw):
        raw["truncation"] = {
            "direction": "Right",
            "max_length": 5,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        raw["padding"] = {
            "strategy": {"Fixed": 12},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }

    text = "the ship the ship the ship the ship"
    plain = load_tokenizer(write_json(tmp_path / "plain")).encode(text)
    limited = load_tokenizer(write_json(tmp_path / "limited", change=add))
    assert limited.encode(text).ids.tolist() == plain.ids.tolist()
    assert len(plain) == 8
    assert len(limited.encode("a")) == 1


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
    tokenizer = load_tokenizer(write_vocab(tmp_path))
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


# --- transformers ----------------------------------------------------------------------------

TEXTS = st.text(max_size=40) | st.lists(
    st.sampled_from([*vocabulary(), "Ships", "É", "e\u0301", "東京", "½", "ﬁ", "\xa0", "\u2028"]),
    max_size=12,
).map(" ".join)


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def theirs_and_ours(request, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = write_model(tmp_path_factory.mktemp("parity") / "model")
    settings = {"do_lower_case": request.param, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return transformers.BertTokenizer.from_pretrained(folder), load_tokenizer(folder)


@pytest.mark.parity
@given(text=TEXTS)
@example(text="The shipS' [SEP] É 東京 \u200b 😀")
def test_the_ids_are_those_of_transformers(theirs_and_ours, text):
    theirs, ours = theirs_and_ours
    expected = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = ours.encode(text)
    assert tokens.ids.tolist() == expected["input_ids"]
    assert tokens.offsets.tolist() == [list(pair) for pair in expected["offset_mapping"]]


@pytest.mark.parity
def test_a_tokenizer_json_that_transformers_wrote_gives_the_same_tokens(theirs_and_ours, tmp_path):
    theirs, ours = theirs_and_ours
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    text = "The ships were LOST in 1843, É 東京."
    assert load_tokenizer(tmp_path).encode(text).ids.tolist() == ours.encode(text).ids.tolist()


# --- tokens that stand beside the vocabulary -------------------------------------------------


def added(folder, name, content):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return load_tokenizer(folder)


@pytest.mark.parametrize("form", ["added_tokens.json", "tokenizer_config.json"])
def test_added_tokens_come_behind_the_vocabulary(tmp_path, form):
    write_vocab(tmp_path)
    size = len(UNCASED)
    content = {"harbourmaster": size + 1, "[X]": size}
    if form == "tokenizer_config.json":
        content = {"added_tokens_decoder": {i: {"content": t} for t, i in content.items()}}
    tokenizer = added(tmp_path, form, content)
    tokens = tokenizer.encode("the harbourmaster")
    assert tokens.ids.tolist()[-1] == size + 1
    assert tokens.offsets.tolist()[-1] == [4, 17]


@pytest.mark.parametrize(
    "content",
    [{"x": 999}, {"x": "y"}, {"x": None}, {"x": [1]}],
    ids=["gap", "text", "null", "list"],
)
def test_added_tokens_that_do_not_follow_are_refused(tmp_path, content):
    write_vocab(tmp_path)
    with pytest.raises(TokenizerError, match="added token"):
        added(tmp_path, "added_tokens.json", content)


def test_special_tokens_may_be_named_in_their_map_alone(tmp_path):
    words = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", "the", "ship"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    names = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    content = {f"{name}_token": token for name, token in names.items()}
    content["cls_token"] = {"content": "<s>", "lstrip": False}
    tokenizer = added(tmp_path, "special_tokens_map.json", content)
    assert (tokenizer.pair.cls_id, tokenizer.pair.sep_id) == (2, 3)
    assert tokenizer.encode("the ship x").ids.tolist() == [5, 6, 1]
