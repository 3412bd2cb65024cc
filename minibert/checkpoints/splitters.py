"""Sets up the splitter of texts from each form that a vocabulary may have, as transformers does.

Word pieces in BERT's vocab.txt, byte-level BPE in RoBERTa's vocab.json and merges.txt, and
SentencePiece models of XLM-R, CamemBERT and ALBERT; or all that there is to say in tokenizer.json.

Source: transformers 4.57.6, convert_slow_tokenizer.py; for BERT 5.2.0, which does the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from minibert.checkpoints.sentencepiece import (
    CONTROL,
    UNIGRAM,
    USER_DEFINED,
    SentencePieces,
    read_sentencepiece,
)
from minibert.errors import ModelNotFoundError, TokenizerError
from minibert.files import LARGEST_TOKENIZER, LARGEST_VOCABULARY, json_value, read_file
from minibert.reprs import shown

# Special tokens where no file names them.
BERT_TOKENS = {
    "unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]",
}  # fmt: skip
ROBERTA_TOKENS = {"unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
ALBERT_TOKENS = {**BERT_TOKENS, "unk": "<unk>", "pad": "<pad>"}
# Class of transformers -> model_type whose numbering of the pieces it has.
SENTENCE_PIECE_CLASSES = {
    "XLMRobertaTokenizer": "xlm-roberta",
    "CamembertTokenizer": "camembert",
    "AlbertTokenizer": "albert",
}


def content(token: Any) -> str:
    """The text of a special token, which older files store as an object."""
    return str(token["content"]) if isinstance(token, dict) and "content" in token else str(token)


@contextmanager
def _read_as(problem: str) -> Iterator[None]:
    """What the Rust side of `tokenizers` refuses, as a TokenizerError that says so."""
    try:
        yield
    except Exception as error:  # it raises nothing narrower
        raise TokenizerError(f"{problem}: {error}") from None


def _numbered(
    backend: tokenizers.Tokenizer, file: Path, tokens: Iterable[str]
) -> list[tuple[str, int]]:
    """Tokens that a window is joined with, and their ids.

    Raises:
        TokenizerError: the vocabulary lacks one.
    """
    found = []
    for token in tokens:
        if (number := backend.token_to_id(token)) is None:
            raise TokenizerError(f"{file}: has no {token!r} token, which the model needs")
        found.append((token, number))
    return found


def _bytes_of(file: Path, at_most: int) -> bytes:
    """The bytes of a file.

    Raises:
        ModelNotFoundError: it cannot be read, or has more of them.
    """
    try:
        return read_file(file, at_most=at_most)
    except OSError as error:
        raise ModelNotFoundError(f"{file}: cannot be read: {error.strerror}") from None


def _text(file: Path) -> str:
    """The text of a file.

    Raises:
        ModelNotFoundError: it cannot be read.
        TokenizerError: it is not UTF-8.
    """
    try:
        return _bytes_of(file, LARGEST_VOCABULARY).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{file}: is not UTF-8: {error.reason} at byte {error.start}"
        ) from None


def _lines(file: Path) -> list[str]:
    """The lines of a text file, whichever system wrote it."""
    return _text(file).replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


# ---------------------------------------------------------------- tokenizer.json


def from_tokenizer_json(file: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Load tokenizer.json; normalising options said in tokenizer_config.json win, as in BERT's."""
    content = _bytes_of(file, LARGEST_TOKENIZER)
    with _read_as(f"{file}: is not a tokenizer file"):
        backend = tokenizers.Tokenizer.from_buffer(content)
    if isinstance(backend.model, models.WordLevel):
        raise TokenizerError(
            f"{file}: holds a {type(backend.model).__name__} tokenizer, expected BERT's WordPiece, "
            "RoBERTa's BPE or XLM-R's Unigram"
        )
    normalizer = backend.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        for option, attribute in (
            ("do_lower_case", "lowercase"),
            ("strip_accents", "strip_accents"),
            ("tokenize_chinese_chars", "handle_chinese_chars"),
        ):
            if option in settings:
                setattr(normalizer, attribute, settings[option])
        backend.normalizer = normalizer
    return backend


# ---------------------------------------------------------------- BERT's vocab.txt


def from_vocab_txt(file: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Set up the tokenizer of BERT from a list of its word pieces, one a line.

    Of equal lines the last counts; each line has its number.
    """
    vocab = {line: number for number, line in enumerate(_lines(file))}
    names = ("unk", "cls", "sep")
    unknown, *others = (content(settings.get(f"{n}_token", BERT_TOKENS[n])) for n in names)
    for token in (unknown, *others):
        if token not in vocab:
            raise TokenizerError(f"{file}: has no {token!r} token, which the model needs")
    spaced = sum(token.startswith("▁") and len(token) > 1 for token in vocab)
    if spaced > sum(token.startswith("##") for token in vocab):
        raise TokenizerError(
            f"{file}: {spaced} of its tokens begin with '▁': it lists the pieces of a "
            "SentencePiece model, and not BERT's word pieces, whose later parts begin with '##'. "
            "Take a model that has a tokenizer.json."
        )
    lowercase, strip_accents = _letters(vocab, settings)
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _letters(vocab: Mapping[str, int], settings: Mapping[str, Any]) -> tuple[bool, bool | None]:
    """Whether texts are lower-cased, and whether accents are dropped: None where they are lowered.

    Said nowhere: a vocabulary without a single capital letter is an uncased one; and one that
    holds letters with accents, syllables of Hangul or other letters that dropping accents would
    take apart, keeps them.
    """
    strip_accents = settings.get("strip_accents")
    if "do_lower_case" in settings:
        return settings["do_lower_case"], strip_accents
    plain = [token for token in vocab if not token.startswith("[")]
    lowercase = all(token == token.lower() for token in plain)
    if strip_accents is None and lowercase and any(map(_has_marks, plain)):
        strip_accents = False
    return lowercase, strip_accents


def _has_marks(token: str) -> bool:
    """Whether dropping accents would alter a token."""
    parts = unicodedata.normalize("NFD", token)
    return parts != token or any(unicodedata.category(char) == "Mn" for char in parts)


# ---------------------------------------------------------------- RoBERTa's vocab.json, merges.txt


def from_merges(file: Path, merges: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Set up the tokenizer of RoBERTa, byte-level BPE, from its vocabulary and its merges."""
    problem = f"{file}: is not a vocabulary of a BPE"
    try:
        vocab = json_value(_text(file))
        if not isinstance(vocab, dict) or any(type(number) is not int for number in vocab.values()):
            raise ValueError("expected an object of tokens with their numbers")
    except ValueError as error:
        raise TokenizerError(f"{problem}: {error}") from None
    pairs = []
    for number, line in enumerate(_lines(merges), 1):
        first, *others = line.split(" ")
        if line.startswith("#version"):
            continue
        if len(others) != 1:
            raise TokenizerError(f"{merges}, line {number}: expected 2 tokens, got {shown(line)}")
        pairs.append((first, others[0]))
    with _read_as(problem):
        backend = tokenizers.Tokenizer(models.BPE(vocab, pairs))
    space = settings.get("add_prefix_space", False)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    ends = (content(settings.get(f"{name}_token", ROBERTA_TOKENS[name])) for name in ("sep", "cls"))
    sep, cls = _numbered(backend, file, ends)
    trim = settings.get("trim_offsets", True)
    backend.post_processor = processors.RobertaProcessing(
        sep, cls, trim_offsets=trim, add_prefix_space=space
    )
    return backend


# ---------------------------------------------------------------- SentencePiece models


def from_sentencepiece(file: Path, kind: str, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Set up the tokenizer of XLM-R, CamemBERT or ALBERT from a SentencePiece model.

    Args:
        file: spiece.model or sentencepiece.bpe.model.
        kind: whose numbering of the pieces the model has: a value of SENTENCE_PIECE_CLASSES.
        settings: from the small files.
    """
    if kind not in SENTENCE_PIECE_CLASSES.values():
        raise TokenizerError(
            f"{file}: is a SentencePiece model, and nothing says how its pieces are numbered: "
            "tokenizer_class in tokenizer_config.json may be one of "
            f"{', '.join(SENTENCE_PIECE_CLASSES)}"
        )
    model = read_sentencepiece(file)
    if model.kind != UNIGRAM:
        raise TokenizerError(
            f"{file}: holds a SentencePiece model that is no Unigram (its kind is {model.kind}). "
            "Take a model that has a tokenizer.json."
        )
    numberings = {"xlm-roberta": _xlmr_pieces, "camembert": _camembert_pieces}
    vocabulary, unknown = numberings.get(kind, _albert_pieces)(model)
    with _read_as(f"{file}: is not a SentencePiece model"):
        backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unknown, False))
        charsmap = [normalizers.Precompiled(model.normalizer)] if model.normalizer else []
    steps: list[normalizers.Normalizer]
    if kind == "albert":
        steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        if not settings.get("keep_accents", False):
            steps += [normalizers.NFKD(), normalizers.StripAccents()]
        if settings.get("do_lower_case", True):
            steps.append(normalizers.Lowercase())
        steps += [*charsmap, normalizers.Replace(Regex(" {2,}"), " ")]
        pair, ends = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", ("[CLS]", "[SEP]")
    else:
        spaces = normalizers.Replace(Regex(" {2,}"), "▁")
        steps = [*charsmap, normalizers.Strip(left=False, right=True), spaces]
        pair, ends = "<s> $A </s> </s> $B </s>", ("<s>", "</s>")
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.kind == CONTROL)
            for piece in model.pieces
            if piece.kind in (CONTROL, USER_DEFINED)
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}",
        pair=pair,
        special_tokens=_numbered(backend, file, ends),
    )
    return backend


# Each: pieces with their scores, in the order of their ids, and which of them is the unknown one.


def _xlmr_pieces(model: SentencePieces) -> tuple[list[tuple[str, float]], int]:
    """XLM-R's numbering: fairseq's four tokens for the first three pieces, and the mask behind."""
    first = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    rest = [(piece.text, piece.score) for piece in model.pieces[3:]]
    return [*first, *rest, ("<mask>", 0.0)], 3


def _camembert_pieces(model: SentencePieces) -> tuple[list[tuple[str, float]], int]:
    """CamemBERT's numbering: five tokens for the first piece, and the mask behind."""
    first = [(token, 0.0) for token in ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>")]
    rest = [(piece.text, piece.score) for piece in model.pieces[1:]]
    return [*first, ("<unk>NOTUSED", -100.0), *rest, ("<mask>", 0.0)], 3


def _albert_pieces(model: SentencePieces) -> tuple[list[tuple[str, float]], int]:
    """ALBERT's numbering: the pieces as they are; those of a number and a comma are avoided."""
    return [
        (text, score - 100 if text[-2:-1].isdigit() and text.endswith(",") else score)
        for text, score, _ in model.pieces
    ], model.unknown
