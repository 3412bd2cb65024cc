"""Loading a BERT tokenizer from either of its forms, and what the small files beside it say."""

import base64
import json
import zlib

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from random_models import tiny_config
from tokenizer_files import (
    CASED,
    SPECIAL,
    UNCASED,
    pieces,
    slices,
    write_json,
    write_sentencepiece,
    write_vocab,
)
from tokenizers import models, processors

from minibert.checkpoints.vocabularies import load_tokenizer
from minibert.errors import ModelNotFoundError, TokenizerError


def problem(folder, kind=TokenizerError):
    with pytest.raises(kind) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


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


@pytest.mark.parametrize("write", [write_vocab, write_json])
@pytest.mark.parametrize("place", ["added_tokens.json", "added_tokens_decoder", "additional"])
def test_tokens_that_were_added_are_never_split(tmp_path, write, place):
    number, token = len(UNCASED), "the_ships"
    decoder = {str(number): {"content": token, "special": False, "normalized": False}}
    settings = {
        "added_tokens.json": {},
        "added_tokens_decoder": {"added_tokens_decoder": decoder},
        "additional": {"additional_special_tokens": [token]},
    }[place]
    write(tmp_path, UNCASED, settings=settings | {"do_lower_case": True})
    if place == "added_tokens.json":
        (tmp_path / place).write_text(json.dumps({token: number}))
    tokenizer = load_tokenizer(tmp_path)
    assert number in tokenizer.encode("the the_ships").ids
    assert tokenizer.vocab_size == number + 1


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
    usual = write(tmp_path / "usual", settings={"do_lower_case": True})
    assert pieces(load_tokenizer(usual), "é 船a") == ["e", "船", "a"]


@pytest.mark.parametrize("write", [write_vocab, write_json])
@pytest.mark.parametrize("option", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_an_option_that_is_neither_true_nor_false_is_named(tmp_path, write, option):
    message = problem(write(tmp_path, settings={option: "yes"}))
    assert f"{option} must be true or false, got 'yes'" in message


@pytest.mark.parametrize("write", [write_vocab, write_json])
@pytest.mark.parametrize("option", ["true", "True", "false"])
def test_true_and_false_may_be_written_as_texts(tmp_path, write, option):
    tokenizer = load_tokenizer(write(tmp_path, CASED, settings={"do_lower_case": option}))
    assert pieces(tokenizer, "The A") == (["The", "A"] if option == "false" else ["the", "a"])


@pytest.mark.parametrize("letters", ["각", "が", "й", "ü", "नु", "é", "e\u0301", "ế"])
def test_marks_that_the_vocabulary_holds_are_kept_where_nothing_is_said(tmp_path, letters):
    words = [*SPECIAL, "the", letters]
    assert pieces(load_tokenizer(write_vocab(tmp_path, words)), f"THE {letters}") == [
        "the",
        letters,
    ]


def test_marks_are_dropped_where_the_vocabulary_holds_none(tmp_path):
    tokenizer = load_tokenizer(write_vocab(tmp_path, [*SPECIAL, "the", "cafe", "ß", "港"]))
    assert pieces(tokenizer, "The Café ß 港") == ["the", "cafe", "ß", "港"]


@pytest.mark.parametrize("settings", [{"do_lower_case": True}, {"strip_accents": True}])
def test_marks_are_dropped_where_the_settings_say_so(tmp_path, settings):
    tokenizer = load_tokenizer(write_vocab(tmp_path, [*SPECIAL, "cafe", "café"], settings))
    assert pieces(tokenizer, "café") == ["cafe"]


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
        ({"model_max_length": True}, None),
        ({"model_max_length": 0.5}, None),
        ({"model_max_length": float("nan")}, None),
        ({"model_max_length": float("inf")}, None),
        ({"model_max_length": 10**4000}, None),
        ({"model_max_length": [512]}, None),
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


def test_of_a_token_that_stands_there_twice_the_last_counts(tmp_path):
    tokenizer = load_tokenizer(write_vocab(tmp_path, [*UNCASED, "ship", "x"]))
    assert tokenizer.encode("the ship x").ids.tolist()[1:] == [len(UNCASED), len(UNCASED) + 1]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_have_numbers_and_are_no_tokens(tmp_path, end):
    words = ["", *UNCASED[:8], "", *UNCASED[8:], "", ""]
    tokenizer = load_tokenizer(write_vocab(tmp_path, words, end=end))
    assert tokenizer.encode("the  ship").ids.tolist() == [words.index("the"), words.index("ship")]
    tokenizer.check_fits(tiny_config(vocab_size=len(words) - 2))


def test_a_byte_order_mark_is_no_part_of_the_first_token(tmp_path):
    plain = load_tokenizer(write_vocab(tmp_path, UNCASED))
    marked = load_tokenizer(write_vocab(tmp_path, ["\ufeff" + UNCASED[0], *UNCASED[1:]]))
    assert marked.backend.get_vocab() == plain.backend.get_vocab()


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
    [
        *(
            {"x": 999},
            {"x": "y"},
            {"x": None},
            {"x": [1]},
            {"x": float("inf")},
            {"x": float("nan")},
        ),
        *({"x": -1}, {"\ud800": 14}, {"x" * 10**6: 14}, {"x" * 10**6: 15}),
    ],
    ids="gap text null list infinity nan negative surrogate long far".split(),
)
def test_added_tokens_that_do_not_follow_are_refused(tmp_path, content):
    write_vocab(tmp_path)
    with pytest.raises(TokenizerError, match="added token") as caught:
        added(tmp_path, "added_tokens.json", content)
    assert len(str(caught.value)) < 1000


def test_special_tokens_may_be_named_in_their_map_alone(tmp_path):
    words = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", "the", "ship"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    names = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    content = {f"{name}_token": token for name, token in names.items()}
    content["cls_token"] = {"content": "<s>", "lstrip": False}
    tokenizer = added(tmp_path, "special_tokens_map.json", content)
    assert (tokenizer.pair.cls_id, tokenizer.pair.sep_id) == (2, 3)
    assert tokenizer.encode("the ship x").ids.tolist() == [5, 6, 1]


def test_additional_special_tokens_are_found_before_a_text_is_split(tmp_path):
    words = [*UNCASED, "[E1]", "<e2>"]
    names = ["[E1]", {"content": "<e2>", "lstrip": True}, "<new>"]
    write_vocab(tmp_path, words, settings={"additional_special_tokens": names})
    tokenizer = load_tokenizer(tmp_path)
    assert pieces(tokenizer, "the[E1]ship <e2>a<new>") == [
        "the",
        "[E1]",
        "ship",
        "<e2>",
        "a",
        "<new>",
    ]
    assert slices(tokenizer, "the <e2>") == ["the", " <e2>"]
    assert tokenizer.vocab_size == len(words) + 1


def test_tokens_of_the_vocabulary_may_be_named_as_added(tmp_path):
    words = [*UNCASED, "[e1]"]
    settings = {"added_tokens_decoder": {str(len(UNCASED)): {"content": "[e1]", "special": True}}}
    tokenizer = load_tokenizer(write_vocab(tmp_path, words, settings))
    assert pieces(tokenizer, "the[e1]") == ["the", "[e1]"]


def test_no_token_is_called_none(tmp_path):
    tokenizer = load_tokenizer(write_vocab(tmp_path, [*CASED, "None"]))
    assert tokenizer.backend.encode("xNone", add_special_tokens=False).tokens == ["[UNK]"]


@pytest.mark.parametrize("more", ["[E1]", {"a": 1}, [1, {"lstrip": True}]])
def test_damaged_additional_special_tokens_do_no_harm(tmp_path, more):
    write_vocab(tmp_path, settings={"additional_special_tokens": more})
    if isinstance(more, list):
        assert len(load_tokenizer(tmp_path).encode("the")) == 1
    else:
        assert "additional_special_tokens must be a list" in problem(tmp_path)


ODD = [True, 5, ["[CLS]"], {"lstrip": True}, {"content": None}, "\ud800", "x" * 10**6, {}]


@pytest.mark.parametrize("token", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("role", ["cls", "sep", "unk", "pad", "mask", "bos"])
@pytest.mark.parametrize("write", [write_vocab, write_json])
def test_a_special_token_that_is_none_is_named(tmp_path, write, role, token):
    message = problem(write(tmp_path, settings={f"{role}_token": token}))
    assert f"{role}_token must be a text of at most 1000 characters" in message
    assert len(message) < 1000
    message.encode()


@pytest.mark.parametrize("where", ["additional_special_tokens", "added_tokens_decoder"])
@pytest.mark.parametrize("token", ["\ud800", "x" * 10**6], ids=["surrogate", "long"])
def test_other_special_tokens_that_are_none_are_refused(tmp_path, where, token):
    said = [token] if where == "additional_special_tokens" else {"14": {"content": token}}
    message = problem(write_vocab(tmp_path, settings={where: said}))
    assert "its added tokens cannot be read" in message
    assert len(message) < 1000


def test_thousands_of_added_tokens_are_added_at_once(tmp_path):
    size, many = len(UNCASED), 5000
    decoder = {size + i: {"content": f"<{i}>"} for i in range(many)}
    write_vocab(tmp_path, settings={"added_tokens_decoder": decoder})
    assert load_tokenizer(tmp_path).encode("<4999>").ids.tolist() == [size + many - 1]


# --- tokenizers that are not what they seem ------------------------------------------------------

OTHERS = {
    "KoBertTokenizer": {"tokenizer_class": "KoBertTokenizer"},
    "BertJapaneseTokenizer": {"tokenizer_class": "BertJapaneseTokenizer"},
    "BertJapaneseTokenizer by its settings": {"word_tokenizer_type": "mecab"},
    "BertJapaneseTokenizer by characters": {"subword_tokenizer_type": "character"},
    "BertGenerationTokenizer": {"tokenizer_class": "BertGenerationTokenizer"},
    "PhobertTokenizer": {"tokenizer_class": "PhobertTokenizerFast"},
    "RoFormerTokenizer": {"tokenizer_class": "RoFormerTokenizer"},
    "XLMRobertaTokenizer": {"tokenizer_class": "XLMRobertaTokenizer"},
    "KoTokenizer": {"auto_map": {"AutoTokenizer": ["tokenization_ko.KoTokenizer", None]}},
    "['BertTokenizer', None]": {"tokenizer_class": ["BertTokenizer", None]},
    "{}": {"auto_map": {"AutoTokenizer": {}}},
    "KoTokenizerFast": {"auto_map": [None, "tokenization_ko.KoTokenizerFast"]},
}


@pytest.mark.parametrize("name", ["x" * 10**6, ["x" * 10**6], 10**4000, {"a": "\ud800"}])
def test_the_name_of_a_class_may_be_anything(tmp_path, name):
    for settings in ({"tokenizer_class": name}, {"auto_map": {"AutoTokenizer": name}}):
        message = problem(write_vocab(tmp_path, settings=settings))
        assert "which minibert does not know" in message
        assert len(message) < 1000
        message.encode()


@pytest.mark.parametrize("name", OTHERS)
def test_a_tokenizer_of_another_kind_is_refused_by_name(tmp_path, name):
    write_vocab(tmp_path, settings=OTHERS[name])
    assert f"its tokenizer is a {name.split(' by ')[0]}" in problem(tmp_path)


def test_a_tokenizer_of_another_kind_may_be_named_in_config_json(tmp_path):
    write_vocab(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(OTHERS["BertJapaneseTokenizer"]))
    assert "its tokenizer is a BertJapaneseTokenizer" in problem(tmp_path)


@pytest.mark.parametrize(
    "name", ["BertTokenizer", "BertTokenizerFast", "ElectraTokenizer", "PreTrainedTokenizerFast"]
)
def test_the_known_kinds_of_tokenizers_are_accepted(tmp_path, name):
    settings = {
        "tokenizer_class": name,
        "auto_map": ["x.Own", None],
        "word_tokenizer_type": "mecab",
    }
    assert len(load_tokenizer(write_vocab(tmp_path, settings=settings)).encode("the ship")) == 2


def test_a_tokenizer_json_says_what_a_class_of_its_own_does(tmp_path):
    write_json(tmp_path, settings={"tokenizer_class": "KoBertTokenizer"})
    assert pieces(load_tokenizer(tmp_path), "the ship") == ["the", "ship"]


@pytest.mark.parametrize("name", ["BertJapaneseTokenizer", "RoFormerTokenizerFast"])
def test_a_tokenizer_json_cannot_say_what_other_programs_do(tmp_path, name):
    write_json(tmp_path, settings={"tokenizer_class": name})
    assert "before the vocabulary is used" in problem(tmp_path)


def test_a_vocab_txt_of_sentence_pieces_is_refused(tmp_path):
    words = [*SPECIAL, "▁the", "▁ship", "s"]
    assert "2 of its tokens begin with '▁'" in problem(write_vocab(tmp_path, words))
    assert load_tokenizer(write_vocab(tmp_path, [*UNCASED, "▁"])).vocab_size == len(UNCASED) + 1


# --- SentencePiece models ------------------------------------------------------------------------

# What SentencePiece makes of two rules: "ﬁ" -> "fi", U+3000 -> a space.
CHARSMAP = zlib.decompress(
    base64.b85decode(
        "c-kG)WssHy5CGtJ4wyMwN<g|KBt+@%?naPOx<Nqtj&6>U?p9h#1!)kaJCr&=B}KY<K6d7r-Pu3;V|Rm?K@g0J5k$"
        "ue3nF5YCJ05us_?KNGFA|Tsbgz|6PGx|=YCXJkWfxQB0eAqiAhFMlJg-cNkJ+;A~Yg3=}1ck(vyjdWFa$I`Iziv;"
        "}dd_i=5;kH+lJ#&-sk}<f9-3C`=)WQiS3Zqa-CLO)1J!hVqo7A{D4iC8|<|>Qtj9HK<K3>QaaL)T1E{XiOuT@C9G"
        "el;$*}B`x@hR<!18+R}#hw4);(=u9WN(uMAHqbEJ+#W(b!H+}h*{`6xY0~pL8B0~#jC_@;|Fh(+h(V-JzEMpkYI3"
        "_ZINklP)$xLG^)A^2>%wRUNn9CgIGmnKVU@?nW$`Y2djFqh52fk-Dt60k#*0YWu*}x_?vW3n3#8!UcXSTDA9sJ5J"
        "cCv@v>|-wn*v~<J;}3r4Fo!tG5sq_=lbql*r#Q<Q&U227T;MPM<T97I$`zuy#tp9XH#hm0f4I#p?s6yegWTf*|M8"
        "IjdCVi8@`UF+<0UV6%`4vW=Kb%rX&<};w2FqR"
    )
)
PIECES = [
    ("<unk>", 0, 2),
    ("<s>", 0, 3),
    ("</s>", 0, 3),
    ("▁", -3, 1),
    ("▁ship", -2, 1),
    ("s", -3, 1),
]
PIECES += [("fi", -3, 1), ("9,", -3, 1), ("9", -4, 1), (",", -4, 1)]
ALBERT = [("<pad>", 0, 3), ("<unk>", 0, 2), ("[CLS]", 0, 3), ("[SEP]", 0, 3), ("[MASK]", 0, 3)]
ALBERT += [("(", 0, 4), *PIECES[3:]]


@pytest.mark.parametrize(
    ("kind", "shift", "separators"), [("xlm-roberta", 1, 2), ("camembert", 4, 2)]
)
def test_the_pieces_of_xlmr_and_camembert_are_numbered_anew(tmp_path, kind, shift, separators):
    write_sentencepiece(tmp_path / "sentencepiece.bpe.model", PIECES, CHARSMAP)
    tokenizer = load_tokenizer(tmp_path, kind)
    assert pieces(tokenizer, "ship ships\u3000 ﬁ") == ["▁ship", "▁ship", "s", "▁", "fi"]
    assert slices(tokenizer, "ships ﬁ")[-1] == "ﬁ"
    assert tokenizer.encode("ship").ids.tolist() == [4 + shift]
    assert tokenizer.encode("?").ids.tolist() == [3 + shift, 3]  # a space, and <unk>
    names = tokenizer.names(np.arange(tokenizer.vocab_size))
    first = ["<s>", "<pad>", "</s>", "<unk>", "▁"]
    if kind == "camembert":
        first = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "▁"]
    assert names[: len(first)] == first
    assert names[-1] == "<mask>"
    assert tokenizer.pair.separators == separators
    assert tokenizer.pair.text_type == 0
    assert names[tokenizer.cls_id] == "<s>"


def test_words_that_no_piece_stands_for_are_warned_of_where_each_is_split_by_itself(tmp_path):
    write_sentencepiece(tmp_path / "sentencepiece.bpe.model", PIECES, CHARSMAP)
    tokenizer = load_tokenizer(tmp_path, "xlm-roberta")
    with pytest.warns(UserWarning, match="10 of the 20 tokens"):
        assert len(tokenizer.encode_words("? " * 10)) == 20


def test_the_pieces_of_albert_have_the_numbers_of_their_model(tmp_path):
    write_sentencepiece(tmp_path / "spiece.model", ALBERT, CHARSMAP, unknown=1)
    tokenizer = load_tokenizer(tmp_path, "albert")
    assert pieces(tokenizer, "Ship (SHÍPS ﬁ9,") == [
        "▁ship",
        "▁",
        "(",
        "▁ship",
        "s",
        "▁",
        "fi",
        "9",
        ",",
    ]
    assert tokenizer.names(np.arange(tokenizer.vocab_size)) == [text for text, *_ in ALBERT]
    assert (tokenizer.cls_id, tokenizer.pair.sep_id) == (2, 3)
    assert (tokenizer.pair.separators, tokenizer.pair.text_type) == (1, 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["▁ship", "s"]),
        ({"do_lower_case": False}, ["▁", "<unk>", "s"]),
        ({"keep_accents": True}, ["▁", "s", "<unk>", "s"]),
    ],
)
def test_capitals_and_accents_of_albert_are_treated_as_the_settings_say(
    tmp_path, settings, expected
):
    write_sentencepiece(tmp_path / "spiece.model", ALBERT, CHARSMAP, unknown=1)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert pieces(load_tokenizer(tmp_path, "albert"), "SHÍPs") == expected


def test_the_class_says_how_pieces_are_numbered_and_which_file_is_read(tmp_path):
    write_vocab(tmp_path, settings={"tokenizer_class": "AlbertTokenizerFast"})
    write_sentencepiece(tmp_path / "spiece.model", ALBERT, CHARSMAP, unknown=1)
    assert load_tokenizer(tmp_path, "bert").vocab_size == len(ALBERT)


def test_a_sentencepiece_model_of_which_nobody_says_how_it_is_numbered_is_refused(tmp_path):
    write_sentencepiece(tmp_path / "spiece.model", PIECES)
    assert "nothing says how its pieces are numbered" in problem(tmp_path)


def test_a_sentencepiece_model_that_is_no_unigram_is_refused(tmp_path):
    write_sentencepiece(tmp_path / "spiece.model", ALBERT, unknown=1, kind=2)
    with pytest.raises(TokenizerError, match=r"is no Unigram \(its kind is 2\)"):
        load_tokenizer(tmp_path, "albert")


def test_a_sentencepiece_model_without_a_token_that_joins_is_refused(tmp_path):
    write_sentencepiece(tmp_path / "spiece.model", PIECES)
    with pytest.raises(TokenizerError, match=r"has no '\[CLS\]' token"):
        load_tokenizer(tmp_path, "albert")


# --- vocab.json and merges.txt -------------------------------------------------------------------

LETTERS = ["<s>", "</s>", "<unk>", "a", "b", "ab"]


def write_pairs(folder, vocab=None, merges="#version: 0.2\na b\n"):
    vocab = {letter: i for i, letter in enumerate(LETTERS)} if vocab is None else vocab
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_bytes(merges if isinstance(merges, bytes) else merges.encode())
    return folder


@pytest.mark.parametrize("merges", ["#version: 0.2\na b\n", "a b", "a b\r\n"])
def test_merges_may_have_a_version_and_end_as_on_windows(tmp_path, merges):
    assert pieces(load_tokenizer(write_pairs(tmp_path, merges=merges), "roberta"), "ab") == ["ab"]


WRONG_PAIRS = {
    "a list": ([], "\n", "vocab.json: is not a vocabulary of a BPE"),
    "no tokens": ({}, "", "its vocabulary must be an object"),
    "texts": ({"a": "0"}, "", "the ids of its vocabulary"),
    "fractions": ({"a": 0.5}, "", "the ids of its vocabulary"),
    "below zero": ({"a": -1}, "", "the ids of its vocabulary"),
    "huge": ({"a": 2**32 - 1}, "", "the ids of its vocabulary"),
    "half a character": ({"<s>": 0, "</s>": 1, "\ud800": 2}, "", "is not a vocabulary of a BPE"),
    "one": (None, "ab\n", "merges.txt: a merge must be two tokens, got 'ab'"),
    "three": (None, "a b a\n", "merges.txt: a merge must be two tokens"),
    "a gap": (None, "a b\n\na b\n", "merges.txt: a merge must be two tokens, got ''"),
    "unknown": (None, "a x\n", "merges.txt: the merge 'a x'"),
    "into unknown": (None, "b a\n", "merges.txt: the merge 'b a'"),
    "a megabyte": (None, "a" * 10**6, "merges.txt: a merge must be two tokens, got 'aaa"),
    "not UTF-8": (None, b"a \xff\n", "merges.txt: is not UTF-8"),
}


@pytest.mark.parametrize("name", WRONG_PAIRS)
def test_a_damaged_vocabulary_of_pairs_is_refused_by_name(tmp_path, name):
    vocab, merges, expected = WRONG_PAIRS[name]
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(write_pairs(tmp_path, vocab, merges), "roberta")
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 1000


# --- damaged SentencePiece models ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (([*PIECES[:3], ("a", float("nan"), 1)], CHARSMAP), "scores of its pieces"),
        (([*PIECES[:3], ("a", float("inf"), 1)], CHARSMAP), "scores of its pieces"),
        (([*PIECES[:3], ("a" * 257, 0, 1)], CHARSMAP), "at most 256 characters"),
        ((PIECES, b"\xff\xff\xff\xff"), "a trie of 4294967295 bytes"),
        ((PIECES, CHARSMAP[:-200]), "is not a SentencePiece model: a trie"),
    ],
    ids=["nan", "infinity", "long", "no trie", "cut off"],
)
def test_a_sentencepiece_model_with_odd_values_is_refused(tmp_path, changed, expected):
    write_sentencepiece(tmp_path / "sentencepiece.bpe.model", *changed)
    with pytest.raises(TokenizerError, match=expected):
        load_tokenizer(tmp_path, "xlm-roberta")


def test_of_equal_pieces_each_has_a_number(tmp_path):
    write_sentencepiece(tmp_path / "sentencepiece.bpe.model", [*PIECES, *PIECES[3:]], CHARSMAP)
    tokenizer = load_tokenizer(tmp_path, "xlm-roberta")
    assert pieces(tokenizer, "ship") == ["▁ship"]
