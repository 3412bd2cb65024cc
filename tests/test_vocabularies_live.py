"""Tokenizers from the files of old checkpoints, beside those of transformers: ids and places.

BERT's beside any version; SentencePiece's beside transformers 4.57.6 with sentencepiece:
`pip install -e '.[test,parity-4]'`, in an environment of its own.
"""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*unknown to the vocab")]
transformers = pytest.importorskip("transformers")

from random_models import vocabulary  # noqa: E402

from minibert.checkpoints.vocabularies import load_tokenizer  # noqa: E402

LINES = [
    "Ada Lovelace wrote the first program in 1843. It was never run, they say.",
    "Who wrote the first program? (Ada Lovelace) – not Babbage!",
    "Où habite-t-il ? À Paris, près de l'école, 12 rue des Près; 3,000 km.",
    '"東京 is far", said Łukasz; он жил в Москве, 1999, 9,9.',
]
SPECIAL = "<mask> [MASK] <s> </s> [SEP] <pad> <unk> <new> [E1]".split()
ODD = ["ﬁ", "ｆｕｌｌ", "①", "\xa0", "  ", "\t\n", "e\u0301", "İ", "``", "''", "▁", "😀"]
TEXTS = st.text(max_size=40) | st.lists(
    st.sampled_from([*" ".join(LINES).split(), *ODD, *SPECIAL]), max_size=12
).map(" ".join)


def is_the_same(theirs, ours, text):
    expected = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = ours.encode(text)
    assert tokens.ids.tolist() == expected["input_ids"]
    assert tokens.offsets.tolist() == [list(pair) for pair in expected["offset_mapping"]]
    assert tokens.words.tolist() == [-1 if w is None else w for w in expected.word_ids()]


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


# --- SentencePiece ---------------------------------------------------------------------------

NEW = {"content": "<new>", "lstrip": True, "rstrip": False, "normalized": False, "special": True}
CASES = {
    "XLM-R": ("XLMRoberta", "xlm-roberta", {}, {}),
    "XLM-R with its mask as an object": (
        "XLMRoberta",
        "xlm-roberta",
        {"mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True}},
        {},
    ),
    "XLM-R with more tokens": (
        "XLMRoberta", "xlm-roberta", {}, {"added_tokens": ["<new>"]},
    ),
    "XLM-R with special tokens": (
        "XLMRoberta", "xlm-roberta", {"additional_special_tokens": ["<new>", "[E1]"]}, {},
    ),
    "CamemBERT": ("Camembert", "camembert", {}, {}),
    "CamemBERT with more tokens": ("Camembert", "camembert", {}, {"decoder": [NEW]}),
    "ALBERT": ("Albert", "albert", {}, {}),
    "ALBERT with capitals": ("Albert", "albert", {"do_lower_case": False}, {}),
    "ALBERT with accents": ("Albert", "albert", {"keep_accents": True}, {}),
    "ALBERT with spaces": ("Albert", "albert", {"remove_space": False}, {"rule": "nfkc"}),
    "ALBERT without rules": ("Albert", "albert", {}, {"rule": "identity"}),
    "XLM-R without rules": ("XLMRoberta", "xlm-roberta", {}, {"rule": "identity"}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def sentence_pieces(request, tmp_path_factory):
    """Their tokenizer and ours, from one SentencePiece model."""
    if not transformers.__version__.startswith("4.57."):
        pytest.skip("the reference for these families is transformers 4.57.6")
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    name, family, settings, more = CASES[request.param]
    folder = tmp_path_factory.mktemp(family)
    special = {}
    if family == "albert":
        special = {
            "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1,
            "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
            "user_defined_symbols": ["(", ")", '"', "-", ".", "–"],
        }  # fmt: skip
    prefix = folder / ("spiece" if family == "albert" else "sentencepiece.bpe")
    trainer.train(
        sentence_iterator=iter(LINES * 20), model_prefix=str(prefix), vocab_size=180, minloglevel=2,
        hard_vocab_limit=False, normalization_rule_name=more.get("rule", "nmt_nfkc"), **special,
    )  # fmt: skip
    theirs = getattr(transformers, name + "TokenizerFast")
    size = len(theirs.from_pretrained(folder))
    write(folder, tokenizer_config=settings, config={"model_type": family})
    if "added_tokens" in more:
        write(folder, added_tokens={t: size + i for i, t in enumerate(more["added_tokens"])})
    if "decoder" in more:
        settings["added_tokens_decoder"] = {size + i: t for i, t in enumerate(more["decoder"])}
        write(folder, tokenizer_config=settings)
    return theirs.from_pretrained(folder), load_tokenizer(folder, family)


@given(text=TEXTS)
@example(text=" ".join(LINES))
@example(text=" a <mask> <new> [MASK] b  c ")
def test_the_ids_of_sentence_pieces_are_those_of_transformers(sentence_pieces, text):
    is_the_same(*sentence_pieces, text)


def test_questions_and_texts_are_joined_as_in_transformers(sentence_pieces):
    theirs, ours = sentence_pieces
    pair = theirs("Who?", "Ada.")
    between, last = [ours.pair.sep_id] * ours.pair.separators, [ours.pair.sep_id]
    question, text = (ours.encode(each).ids.tolist() for each in ("Who?", "Ada."))
    assert pair["input_ids"] == [ours.cls_id, *question, *between, *text, *last]
    assert len(theirs) == ours.vocab_size


# --- BERT's vocab.txt ------------------------------------------------------------------------

WORDS = list(dict.fromkeys([*vocabulary(), "Ships", "é", "[E1]", "<new>", "ガ", "각"]))
DECODER = {
    "4": {"content": "[MASK]", "lstrip": True, "special": True},
    str(len(WORDS)): {"content": "<new>x", "normalized": True, "special": False},
}
VOCABULARIES = {
    "plain": ("\n".join(WORDS) + "\n", {}, {}),
    "unfinished": ("\n".join(WORDS), {"do_lower_case": False}, {}),
    "windows": ("\r\n".join(WORDS) + "\r\n", {}, {}),
    "blank lines": ("\n".join(WORDS[:9]) + "\n\n\n" + "\n".join(WORDS[9:]) + "\n\n", {}, {}),
    "repeated": ("\n".join(WORDS + WORDS[5:60:7]) + "\n", {}, {}),
    "accents kept": ("\n".join(WORDS), {"strip_accents": False}, {}),
    "characters joined": ("\n".join(WORDS), {"tokenize_chinese_chars": False}, {}),
    "additional": ("\n".join(WORDS), {"additional_special_tokens": ["[E1]"]}, {}),
    "map": ("\n".join(WORDS), {}, {"special_tokens_map": {"mask_token": "[E1]"}}),
    "map against config": (
        "\n".join(WORDS), {"mask_token": "[E1]"}, {"special_tokens_map": {"mask_token": "<new>"}},
    ),
    "objects": (
        "\n".join(WORDS), {"mask_token": {"__type": "AddedToken", "content": "[E1]", "lstrip": True,
        "rstrip": True, "normalized": False, "single_word": False}}, {},
    ),
    "added": (
        "\n".join(WORDS), {}, {"added_tokens": {"<new>x": len(WORDS), "Ship ": len(WORDS) + 1}},
    ),
    "decoder": ("\n".join(WORDS), {"added_tokens_decoder": DECODER}, {}),
    "known tokens in the decoder": (
        "\n".join(WORDS),
        {"added_tokens_decoder": {str(WORDS.index("[E1]")): {"content": "[E1]", "special": True}}},
        {},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=VOCABULARIES)
def word_pieces(request, tmp_path_factory):
    """Their tokenizer and ours, from one vocab.txt."""
    content, settings, files = VOCABULARIES[request.param]
    folder = tmp_path_factory.mktemp("vocab")
    (folder / "vocab.txt").write_bytes(content.encode())
    write(folder, tokenizer_config={"do_lower_case": True, **settings}, **files)
    theirs = getattr(transformers, "BertTokenizerFast", transformers.BertTokenizer)
    return theirs.from_pretrained(folder), load_tokenizer(folder)


PIECES = st.text(max_size=30) | st.lists(
    st.sampled_from([*WORDS, "É", "e\u0301", "東京", "<new>x", "ships", "[MASK]", "\n"]),
    max_size=12,
).map(" ".join)


@given(text=PIECES)
@example(text="the Ships é [E1]x <new>x [MASK] ガ 각 ship [SEP] ")
def test_the_ids_of_word_pieces_are_those_of_transformers(word_pieces, text):
    is_the_same(*word_pieces, text)


@pytest.mark.parametrize("cased", [True, False])
def test_a_tokenizer_json_that_transformers_wrote_gives_the_same_tokens(cased, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    write(tmp_path, tokenizer_config={"do_lower_case": not cased})
    ours = load_tokenizer(tmp_path)
    transformers.BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "new")
    text = "The ships were LOST in 1843, É 東京."
    theirs = load_tokenizer(tmp_path / "new")
    assert theirs.encode(text).ids.tolist() == ours.encode(text).ids.tolist()
