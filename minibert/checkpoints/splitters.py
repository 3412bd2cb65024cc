"""Sets up the splitter of texts from each form that a vocabulary may have, as transformers does.

Word pieces in BERT's vocab.txt, byte-level BPE in RoBERTa's vocab.json and merges.txt, and
SentencePiece models of XLM-R, CamemBERT and ALBERT; or all that there is to say in tokenizer.json.

Source: transformers 4.57.6, convert_slow_tokenizer.py; for BERT 5.2.0, which does the same.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from minibert.checkpoints.components import (
    ADDED,
    LONGEST_TOKEN,
    MODELS,
    MOST_GROWTH,
    PARTS,
    added_problems,
    option_problems,
    problems,
)
from minibert.checkpoints.sentencepiece import (
    CONTROL,
    UNIGRAM,
    USER_DEFINED,
    SentencePieces,
    longest_replacement,
    read_sentencepiece,
)
from minibert.checkpoints.subwords import byte_pairs, unigram, word_pieces
from minibert.config import read_json_object
from minibert.errors import ConfigError, ModelNotFoundError, TokenizerError
from minibert.files import LARGEST_VOCABULARY, read_file
from minibert.reprs import shown
from minibert.tokenizer import reporting

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
SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which JSON may hold


def content(token: Any) -> str:
    """The text of a special token, which older files store as an object."""
    return str(token["content"]) if isinstance(token, dict) and "content" in token else str(token)


def is_token(said: Any) -> bool:
    """Whether a special token that a file names is one: a text, or an object with its text."""
    text = said.get("content") if isinstance(said, dict) else said
    return isinstance(text, str) and len(text) <= LONGEST_TOKEN and not SURROGATES.search(text)


def add_numbered(
    backend: tokenizers.Tokenizer, where: Path, tokens: Sequence[tuple[int, AddedToken]]
) -> None:
    """Add tokens, which are numbered in turn but for those that the vocabulary has.

    Raises:
        TokenizerError: one gets another id than the file says.
    """
    backend.add_tokens([token for _, token in tokens])
    for number, token in tokens:
        found = backend.token_to_id(token.content)
        if token.content and found != number:
            raise TokenizerError(
                f"{where}: the added token {shown(token.content)} has id {number}, and as the "
                f"tokens before it are numbered it would have {found}"
            )


def check_added(backend: tokenizers.Tokenizer, where: Path) -> None:
    """Refuse added tokens of which normalising leaves nothing: they would be found everywhere.

    Raises:
        TokenizerError: there is one.
    """
    normalizer = backend.normalizer
    if normalizer is None:
        return
    for token in backend.get_added_tokens_decoder().values():
        with reporting(f"{where}: its added tokens cannot be normalised"):
            left = normalizer.normalize_str(token.content) if token.normalized else token.content
        if not left:
            raise TokenizerError(
                f"{where}: the added token {shown(token.content)} is an empty text once it is "
                'normalised, and would be found everywhere. Set its "normalized" to false'
            )


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
            raise TokenizerError(f"{file}: has no {shown(token)} token, which the model needs")
        found.append((token, number))
    return found


def _lines(file: Path) -> list[str]:
    """The lines of a text file, whichever system wrote it.

    Raises:
        ModelNotFoundError: it cannot be read.
        TokenizerError: it is not UTF-8.
    """
    try:
        text = read_file(file, at_most=LARGEST_VOCABULARY).decode("utf-8-sig")
    except OSError as error:
        raise ModelNotFoundError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{file}: is not UTF-8: {error.reason} at byte {error.start}"
        ) from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines


# ---------------------------------------------------------------- tokenizer.json


def from_tokenizer_json(file: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Load tokenizer.json; normalising options said in tokenizer_config.json win, as in BERT's.

    Nothing reaches `tokenizers` that was not checked.  How it cuts and pads is left out: windows.py
    does that.

    Raises:
        TokenizerError: it is damaged, or has a part that no tokenizer of the known families has.
    """
    raw = _json(file, "a tokenizer file")
    model, added = raw.get("model"), raw.get("added_tokens") or []
    if not isinstance(model, dict) or raw.get("version", "1.0") != "1.0":
        raise TokenizerError(f"{file}: is not a tokenizer file of version 1.0 that has a model")
    kind = _model_kind(model)
    if kind not in MODELS:
        raise TokenizerError(
            f"{file}: holds a {kind:.80} tokenizer, expected BERT's WordPiece, "
            "RoBERTa's BPE or XLM-R's Unigram"
        )
    wrong = [*problems(raw), *added_problems(added)]
    options = {key: model[key] for key in model.keys() - {"type", "vocab", "merges", "unk_id"}}
    wrong += option_problems(f"the {kind} model", options, MODELS[kind])
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise TokenizerError(
            f"{file}: {'; '.join(wrong[:5])}{more}. No tokenizer of the families that minibert "
            "runs is so: fetch the file again, or take another model"
        )
    options = {key: options[key] for key in MODELS[kind] if options.get(key) is not None}
    parts = {part: raw.get(part) for part in PARTS}
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    with reporting(f"{file}: is not a tokenizer file"):
        backend = tokenizers.Tokenizer.from_str(
            json.dumps({"version": "1.0", "added_tokens": [], **parts, "model": empty})
        )
        if kind == "WordPiece":
            backend.model = word_pieces(file, model.get("vocab"), options)
        elif kind == "BPE":
            backend.model = byte_pairs(file, model.get("vocab"), model.get("merges"), options)
        else:
            backend.model = unigram(
                file, model.get("vocab"), model.get("unk_id"), bool(options.get("byte_fallback"))
            )
        add_numbered(backend, file, [(token["id"], _added_token(token)) for token in added])
        check_added(backend, file)
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


def _json(file: Path, kind: str) -> dict[str, Any]:
    """What a JSON file says.

    Raises:
        TokenizerError: it holds no JSON object.
    """
    try:
        return read_json_object(file, LARGEST_VOCABULARY)
    except ConfigError as error:
        raise TokenizerError(f"{file}: is not {kind}: {error}") from None


def _added_token(said: Mapping[str, Any]) -> AddedToken:
    """An added token as tokenizer.json describes it."""
    return AddedToken(**{key: said[key] for key in (ADDED.keys() & said.keys()) - {"id"}})


def _model_kind(model: Mapping[str, Any]) -> str:
    """The kind of a model; the first versions of tokenizer.json do not name it."""
    if "type" in model:
        return str(model["type"])
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


# ---------------------------------------------------------------- BERT's vocab.txt


def from_vocab_txt(file: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Set up the tokenizer of BERT from a list of its word pieces, one a line.

    Of equal lines the last counts; each line has its number.
    """
    lines = _lines(file)
    vocab = {line: number for number, line in enumerate(lines)}
    names = ("unk", "cls", "sep")
    unknown, *others = (content(settings.get(f"{n}_token", BERT_TOKENS[n])) for n in names)
    for token in (unknown, *others):
        if token not in vocab:
            raise TokenizerError(f"{file}: has no {shown(token)} token, which the model needs")
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
    vocab = _json(file, "a vocabulary of a BPE")
    with reporting(f"{file}: is not a vocabulary of a BPE"):
        backend = tokenizers.Tokenizer(byte_pairs(merges, vocab, _lines(merges)))
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
    with reporting(f"{file}: is not a SentencePiece model"):
        backend = tokenizers.Tokenizer(unigram(file, vocabulary, unknown))
        if model.normalizer:
            longest = longest_replacement(model.normalizer)  # or it would not be safe to follow
            if longest > MOST_GROWTH:
                raise ValueError(
                    f"it may make a text {longest} times as long, more than {MOST_GROWTH} times"
                )
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
