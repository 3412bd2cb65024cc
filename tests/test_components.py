"""What a tokenizer.json may consist of; what would panic, abort or never end is refused."""

import base64
import json
import struct
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from test_vocabularies import CHARSMAP
from tokenizer_files import UNCASED, write_json

from minibert.checkpoints.components import KNOWN_REGEXES, MOST_GROWTH, is_simple
from minibert.checkpoints.splitters import from_tokenizer_json
from minibert.checkpoints.vocabularies import load_tokenizer
from minibert.errors import TokenizerError

TEXT = "ab ab zz é 東京 ab"


def base64_of(data):
    return base64.b64encode(data).decode()


def precompiled(data):
    return {"type": "Precompiled", "precompiled_charsmap": data}


def replace(pattern, content="x", kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def sequence(steps, name="normalizers"):
    return {"type": "Sequence", name: steps}


def nested(step, name, times):
    for _ in range(times):
        step = sequence([step], name)
    return step


def added(**said):
    usual = {"id": 9, "content": "new", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [usual | flags | said]


def template(**said):
    usual = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}},
    }
    return usual | said


WORDS = "[PAD] [UNK] [CLS] [SEP] a b ##a ##b ab".split()
NUMBERS = {word: number for number, word in enumerate(WORDS)}
WORD_PIECE = {
    "type": "WordPiece",
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
    "vocab": NUMBERS,
}
BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a", -1.5], ["▁", -2]]}
LONG = "x" * 10**6
BOMB = sequence([replace("a", "a" * 10)] * 9)

# What is changed in a tokenizer.json -> what the error names.
HOSTILE = {
    "no rules": ({"normalizer": precompiled("")}, "precompiled_charsmap"),
    "null for rules": ({"normalizer": precompiled(None)}, "precompiled_charsmap"),
    "rules that are no base 64": ({"normalizer": precompiled("!!")}, "precompiled_charsmap"),
    "rules without a trie": ({"normalizer": precompiled("AAAAAA==")}, "precompiled_charsmap"),
    "rules whose trie takes 4 GB": ({"normalizer": precompiled("/////w==")}, "'/////w=='"),
    "rules that lead out": (
        {"normalizer": precompiled(base64_of(struct.pack("<2I", 4, 2**32 - 1)))},
        "precompiled_charsmap",
    ),
    "nothing to replace by": (
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}}},
        "the normalizer Replace has no content",
    ),
    "nothing that is put before": ({"normalizer": {"type": "Prepend"}}, "has no prepend"),
    "no rules at all": ({"normalizer": {"type": "Precompiled"}}, "has no precompiled_charsmap"),
    "an empty text to replace": ({"normalizer": replace("")}, "pattern of the normalizer"),
    "an empty regex to replace": ({"normalizer": replace("", kind="Regex")}, "{'Regex': ''}"),
    "a regex of nothing": ({"normalizer": replace("a*", kind="Regex")}, "{'Regex': 'a*'}"),
    "an open regex": ({"pre_tokenizer": split("(")}, "pattern of the pre_tokenizer Split"),
    "a regex without end": ({"pre_tokenizer": split("(a+)+$")}, "(a+)+$"),
    "a regex of depth": ({"pre_tokenizer": split("(" * 9999 + ")" * 9999)}, "pattern"),
    "a long replacement": ({"normalizer": replace("a", LONG)}, "content of the normalizer"),
    "replacements of replacements": ({"normalizer": BOMB}, f"more than {MOST_GROWTH} times"),
    "bytes of bytes": (
        {"normalizer": sequence([{"type": "ByteLevel"}] * 9)},
        f"more than {MOST_GROWTH} times",
    ),
    "many steps": ({"normalizer": sequence([{"type": "NFC"}] * 101)}, "101 steps"),
    "a long text before": ({"normalizer": {"type": "Prepend", "prepend": LONG}}, "prepend"),
    "nothing before": ({"normalizer": {"type": "Prepend", "prepend": ""}}, "prepend of the norm"),
    "more cut than there is": (
        {"decoder": {"type": "Strip", "content": " ", "start": 0, "stop": 1}},
        "stop of the decoder Strip must be 0, got 1",
    ),
    "pieces of no length": (
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        "length of the pre_tokenizer FixedLength must be a whole number from 1 to 1000, got 0",
    ),
    "no character": ({"pre_tokenizer": {"type": "Metaspace", "replacement": ""}}, "replacement"),
    "a flag that is a text": (
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": "no"}},
        "add_prefix_space of the pre_tokenizer ByteLevel must be true or false, got 'no'",
    ),
    "an option of the future": (
        {"pre_tokenizer": {"type": "Whitespace", "speed": 1}},
        "has an option 'speed', which is not known and not off",
    ),
    "a step of the future": ({"pre_tokenizer": {"type": "Magic"}}, "pre_tokenizer is 'Magic'"),
    "a step that is none": ({"normalizer": [1]}, "normalizer is [1]"),
    "a step without a name": ({"normalizer": {"type": None}}, "normalizer is None"),
    "a sequence of nothing": ({"normalizer": {"type": "Sequence"}}, "a Sequence without"),
    "a name of a megabyte": ({"decoder": {"type": LONG}}, "decoder is 'xxx"),
    "special tokens that nothing says": ({"post_processor": template(special_tokens={})}, "[CLS]"),
    "special tokens without a name": (
        {"post_processor": template(single=[{"SpecialToken": 1}])},
        "special_tokens of the post_processor TemplateProcessing lack None",
    ),
    "a template that is none": ({"post_processor": template(pair=5)}, "pair of the post_processor"),
    "ends without ids": ({"post_processor": {"type": "BertProcessing", "sep": "x"}}, "sep of the"),
    "added tokens that are none": ({"added_tokens": {"a": 1}}, "added_tokens must be a list"),
    "an added token that is none": ({"added_tokens": ["a"]}, "added_tokens must be objects"),
    "an added token of a megabyte": ({"added_tokens": added(content=LONG)}, "content of the added"),
    "an added token far behind": ({"added_tokens": added(id=2**32 - 1)}, "it would have 9"),
    "an added token beyond": ({"added_tokens": added(id=2**40)}, "id of the added token 'new'"),
    "half a character": ({"added_tokens": added(content="\ud800")}, "not a tokenizer file"),
    "no model": ({"model": 3}, "not a tokenizer file"),
    "another version": ({"version": "2.0"}, "version 1.0"),
    "a model of a strange kind": ({"model": {"type": [LONG]}}, "holds a ['xxx"),
    "no vocabulary": ({"model": WORD_PIECE | {"vocab": []}}, "its vocabulary must be an object"),
    "ids that are texts": ({"model": WORD_PIECE | {"vocab": {"[UNK]": "0"}}}, "the ids of its"),
    "ids that are true": ({"model": WORD_PIECE | {"vocab": {"[UNK]": True}}}, "the ids of its"),
    "huge ids": ({"model": WORD_PIECE | {"vocab": NUMBERS | {"x": 2**32 - 1}}}, "the ids of its"),
    "ids below zero": ({"model": WORD_PIECE | {"vocab": NUMBERS | {"x": -1}}}, "the ids of its"),
    "nothing unknown": ({"model": WORD_PIECE | {"unk_token": "[X]"}}, "has no '[X]'"),
    "words without end": (
        {"model": WORD_PIECE | {"max_input_chars_per_word": 10**9}},
        "max_input_chars_per_word of the WordPiece model must be",
    ),
    "merges that are none": ({"model": BPE | {"merges": {"a": "b"}}}, "merges must be a list"),
    "a merge of one": ({"model": BPE | {"merges": ["ab"]}}, "must be two tokens, got 'ab'"),
    "a merge of numbers": ({"model": BPE | {"merges": [5]}}, "must be two tokens, got 5"),
    "a merge of three": ({"model": BPE | {"merges": [["a", "b", "a"]]}}, "must be two tokens"),
    "a merge of the unknown": ({"model": BPE | {"merges": ["a q"]}}, "the merge 'a q'"),
    "a merge into the unknown": ({"model": BPE | {"merges": ["b a"]}}, "the merge 'b a'"),
    "a merge without its prefix": (
        {"model": BPE | {"continuing_subword_prefix": "##"}},
        "the merge 'a b'",
    ),
    "merges by chance": ({"model": BPE | {"dropout": 0.5}}, "dropout of the BPE model"),
    "no unknown pair": ({"model": BPE | {"unk_token": "[X]"}}, "has no '[X]'"),
    "no pieces": ({"model": UNIGRAM | {"vocab": []}}, "must be a list of pieces"),
    "pieces of three": ({"model": UNIGRAM | {"vocab": [["a", 0, 1]]}}, "must be a list of pieces"),
    "pieces that are none": ({"model": UNIGRAM | {"vocab": ["a"]}}, "must be a list of pieces"),
    "a long piece": ({"model": UNIGRAM | {"vocab": [["a" * 257, 0]]}}, "at most 256 characters"),
    "no score": ({"model": UNIGRAM | {"vocab": [["a", float("nan")]]}}, "scores of its pieces"),
    "a huge score": ({"model": UNIGRAM | {"vocab": [["a", 10**400]]}}, "scores of its pieces"),
    "a score of a text": ({"model": UNIGRAM | {"vocab": [["a", "0"]]}}, "scores of its pieces"),
    "nothing for the unknown": ({"model": UNIGRAM | {"unk_id": None}}, "3 pieces, got None"),
    "the unknown behind the end": ({"model": UNIGRAM | {"unk_id": 3}}, "3 pieces, got 3"),
} | {
    f"depth of the {part}": ({part: nested(step, name, 6)}, f"{part} has a Sequence")
    for part, step, name in (
        ("normalizer", {"type": "NFC"}, "normalizers"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pretokenizers"),
        ("post_processor", template(), "processors"),
        ("decoder", {"type": "Fuse"}, "decoders"),
    )
}


def write(folder, changes):
    raw = {"version": "1.0", "model": WORD_PIECE, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    (folder / "tokenizer.json").write_text(json.dumps(raw | changes))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_tokenizer_of_the_families_has_is_refused_by_name(tmp_path, name):
    changes, expected = HOSTILE[name]
    file = write(tmp_path, changes)
    with pytest.raises(TokenizerError) as caught:
        from_tokenizer_json(file, {})
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert expected in message
    assert len(message) < 1000


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    wrong = {"normalizer": replace(""), "decoder": {"type": "Magic"}, "added_tokens": [0] * 9}
    with pytest.raises(TokenizerError) as caught:
        from_tokenizer_json(write(tmp_path, wrong), {})
    assert "normalizer Replace" in str(caught.value)
    assert "decoder is 'Magic'" in str(caught.value)
    assert "; and 6 more" in str(caught.value)


HARMLESS = {
    "zero for no dropout": {"model": BPE | {"dropout": 0.0}},
    "merges in the new form": {"model": BPE | {"merges": [["a", "b"]]}},
    "the first line of merges.txt": {"model": BPE | {"merges": ["#version: 0.2", "a b"]}},
    "a BPE that is not named": {"model": {k: v for k, v in BPE.items() if k != "type"}},
    "a Unigram that is not named": {"model": {k: v for k, v in UNIGRAM.items() if k != "type"}},
    "words that are not named": {"model": {k: v for k, v in WORD_PIECE.items() if k != "type"}},
    "an added token of nothing": {"added_tokens": added(content="")},
    "bytes": {
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    },
    "spaces as they were stored once": {
        "pre_tokenizer": sequence(
            [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": True},
            ],
            "pretokenizers",
        )
    },
    "spaces as they are stored now": {
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True,
        }
    },
    "XLM-R's rules": {
        "normalizer": sequence(
            [
                precompiled(base64_of(CHARSMAP)),
                {"type": "Strip", "strip_left": False, "strip_right": True},
                replace(" {2,}", "▁", "Regex"),
            ]
        )
    },
    "ALBERT's rules": {
        "normalizer": sequence(
            [
                replace("``", '"'),
                replace("''", '"'),
                {"type": "NFKD"},
                {"type": "StripAccents"},
                {"type": "Lowercase"},
                precompiled(base64_of(CHARSMAP)),
                replace(" {2,}", " ", "Regex"),
            ]
        )
    },
    "options of the future that are off": {
        "pre_tokenizer": {"type": "WhitespaceSplit", "fast": False, "how": None},
        "model": WORD_PIECE | {"fuse_unk": False},
        "added_tokens": added(content="ab ", id=9, blue=False),
    },
    "punctuation": {
        "pre_tokenizer": sequence(
            [
                {"type": "Whitespace"},
                {"type": "Punctuation", "behavior": "Isolated"},
                {"type": "Punctuation"},
                {"type": "Digits", "individual_digits": True},
                {"type": "CharDelimiterSplit", "delimiter": "b"},
                {"type": "UnicodeScripts"},
                split(r"\d|[.,!?]+"),
            ],
            "pretokenizers",
        )
    },
    "GPT's splitting": {"pre_tokenizer": split(max(KNOWN_REGEXES, key=len))},
    "a decoder of steps": {
        "decoder": sequence(
            [
                replace("▁", " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
            "decoders",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_tokenizers_of_the_families_have_is_loaded_as_the_package_loads_it(tmp_path, name):
    file = write(tmp_path, HARMLESS[name])
    theirs, ours = tokenizers.Tokenizer.from_file(str(file)), from_tokenizer_json(file, {})
    assert json.loads(ours.to_str()) == json.loads(theirs.to_str())
    one, two = (each.encode("ab  ﬁ 12, `` ab", add_special_tokens=False) for each in (ours, theirs))
    assert (one.ids, one.offsets) == (two.ids, two.offsets)


@pytest.mark.parametrize(
    "regex",
    [
        " {2,}",
        r"\s+",
        r"\s{2,}|[\n\r\t]",
        r"'s|'t| ?\p{L}+| ?[^\s\p{L}\p{N}]+",
        r"[^\]]",
        r"[0-9]{1,3}",
        r"\.",
        "é",
    ],
)
def test_rows_of_letters_are_simple(regex):
    assert is_simple(regex)


@pytest.mark.parametrize(
    "regex",
    [
        *("", "|", "a|", "|a", "a*", "a?", "a+b", "a+?", "a{2}{3}", "a{0,3}", "a{1,3}b", "a{,3}"),
        *("(a)", "(?=a)", "^a", "a$", r"\b", r"\1", r"\G", "[[a]]", "[a", "a)", "a**", "\\"),
        "a?b?c?d?e",
    ],
)
def test_what_may_take_long_or_match_nothing_is_not_simple(regex):
    assert not is_simple(regex)


@given(regex=st.text("ab?*+{2,}|[^]\\.", max_size=12), text=st.text("ab", max_size=60))
def test_a_simple_regex_finds_something_and_always_ends(tmp_path_factory, regex, text):
    if not is_simple(regex):
        return
    try:
        pattern = tokenizers.Regex(regex)
    except Exception:
        return
    splitter = tokenizers.pre_tokenizers.Split(pattern, "isolated")
    assert "".join(part for part, _ in splitter.pre_tokenize_str(text)) == text


@pytest.mark.parametrize("content", ["\ufffd", "\u0301", "\x00"])
def test_an_added_token_of_which_nothing_is_left_is_refused(tmp_path, content):
    def add(raw):
        token = {"content": content, "special": False, "normalized": True}
        raw["added_tokens"] += added(id=len(UNCASED), **token)

    with pytest.raises(TokenizerError, match="is an empty text once it is normalised"):
        load_tokenizer(write_json(tmp_path, change=add, lowercase=True))


# What ends the process in the package itself, with a bound on its memory that is not ours.
ABORTING = {
    "rules whose trie takes 4 GB": ({"normalizer": precompiled("/////w==")}, ""),
    "replacements of replacements": ({"normalizer": BOMB}, "a" * 100),
}
PROGRAM = """
import resource, sys
from pathlib import Path
from minibert.checkpoints.splitters import from_tokenizer_json
from minibert.errors import TokenizerError
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
try:
    from_tokenizer_json(Path(sys.argv[1]), {}).encode(sys.argv[2])
except TokenizerError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ABORTING)
def test_what_would_abort_the_process_never_reaches_the_package(tmp_path, name):
    changes, text = ABORTING[name]
    command = [sys.executable, "-c", PROGRAM, str(write(tmp_path, changes)), text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "normalizer" in done.stdout
