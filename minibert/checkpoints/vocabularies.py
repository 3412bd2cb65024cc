"""Sets up a model's tokenizer from the files that lie beside it, as transformers does.

Three kinds of vocabulary, each in its own file: word pieces (BERT's vocab.txt), byte-level BPE
(RoBERTa's vocab.json and merges.txt) and SentencePiece (XLM-R's, CamemBERT's and ALBERT's .model);
or all that there is to say in tokenizer.json.  What tokenizer_config.json, special_tokens_map.json
and added_tokens.json say is added.

Source: transformers 4.57.6, convert_slow_tokenizer.py and tokenization_utils_fast.py; for BERT
5.2.0, which does the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from minibert.checkpoints.sentencepiece import (
    CONTROL,
    UNIGRAM,
    USER_DEFINED,
    SentencePieces,
    read_sentencepiece,
)
from minibert.config import read_json_object
from minibert.errors import ConfigError, ModelNotFoundError, TokenizerError
from minibert.families import FAMILIES
from minibert.tokenizer import Tokenizer

# Special tokens where no file names them.
BERT_TOKENS = {
    "unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]",
}  # fmt: skip
ROBERTA_TOKENS = {"unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
ALBERT_TOKENS = {**BERT_TOKENS, "unk": "<unk>", "pad": "<pad>"}
# Settings that are true or false.
OPTIONS = {
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars"),
    *("add_prefix_space", "trim_offsets", "keep_accents"),
}


class Form(NamedTuple):
    """A form that a vocabulary may have."""

    files: tuple[str, ...]
    classes: frozenset[str]  # of transformers, without Fast, that read it


WORD_PIECES = Form(
    ("vocab.txt",),
    frozenset(
        f"{name}Tokenizer"
        for name in (
            *(
                "Bert",
                "DistilBert",
                "Electra",
                "ConvBert",
                "MobileBert",
                "SqueezeBert",
                "RetriBert",
            ),
            *("Funnel", "Lxmert", "LayoutLM", "DPRQuestionEncoder", "DPRContextEncoder"),
            "DPRReader",
        )
    ),
)
BYTE_PAIRS = Form(
    ("vocab.json", "merges.txt"),
    frozenset(f"{name}Tokenizer" for name in ("Roberta", "GPT2", "Longformer", "Bart", "LED")),
)
# Class of transformers -> model_type whose numbering of the pieces it has.
SENTENCE_PIECE_CLASSES = {
    "XLMRobertaTokenizer": "xlm-roberta",
    "CamembertTokenizer": "camembert",
    "AlbertTokenizer": "albert",
}
XLMR_PIECES = Form(("sentencepiece.bpe.model",), frozenset(SENTENCE_PIECE_CLASSES))
ALBERT_PIECES = Form(("spiece.model",), frozenset(SENTENCE_PIECE_CLASSES))
FORMS = (WORD_PIECES, BYTE_PAIRS, XLMR_PIECES, ALBERT_PIECES)
# Classes that leave it to the files.
ANY_FORM = {"AutoTokenizer", "PreTrainedTokenizer", "TokenizersBackend"}
# Classes that split texts by a program of their own, of which no file of a vocabulary tells.
OTHER_SPLITTERS = {
    "BertJapaneseTokenizer": "MeCab, Sudachi or Juman++ splits Japanese into words",
    "RoFormerTokenizer": "jieba splits Chinese into words",
}


def load_tokenizer(folder: Path, family: str = "bert") -> Tokenizer:
    """Load a tokenizer from tokenizer.json, or from the files of its vocabulary.

    Args:
        folder: the model's folder.
        family: of the model, its model_type; says how the pieces of a SentencePiece model are
            numbered, and names [CLS] and [SEP], where no file does.

    Raises:
        ModelNotFoundError: no file is there.
        TokenizerError: a file is damaged, is of a kind that minibert would misread, or joins
            questions and texts as no known family does.
    """
    settings = _settings(folder)
    file = folder / "tokenizer.json"
    form = None if file.is_file() else _find_form(folder, settings)
    _check_class(folder, settings, form)
    if form is None:
        usual = FAMILIES.get(family, FAMILIES["bert"])
        tokens = {"cls": usual.cls_token, "sep": usual.sep_token, "unk": "<unk>"}
        backend = _from_tokenizer_json(file, settings)
    else:
        file = folder / form.files[0]
        if form is WORD_PIECES:
            tokens, backend = BERT_TOKENS, _from_vocab_txt(file, settings)
        elif form is BYTE_PAIRS:
            tokens, backend = ROBERTA_TOKENS, _from_merges(file, folder / form.files[1], settings)
        else:
            kind = SENTENCE_PIECE_CLASSES.get(settings.get("tokenizer_class", ""), family)
            tokens = ALBERT_TOKENS if kind == "albert" else ROBERTA_TOKENS
            backend = _from_sentencepiece(file, kind, settings)
        _add_tokens(backend, folder, settings, tokens)
    longest = settings.get("model_max_length")
    said = isinstance(longest, int | float) and not isinstance(longest, bool)
    # transformers writes 1e30 for "no limit".
    limit = int(longest or 0) if said and 0 < (longest or 0) < 1e9 else None
    cls_token, sep_token, unk_token = (
        _content(settings.get(f"{name}_token", tokens[name])) for name in ("cls", "sep", "unk")
    )
    try:
        return Tokenizer(
            backend,
            cls_token,
            sep_token,
            limit,
            unk_token=getattr(backend.model, "unk_token", None) or unk_token,
            name=str(folder),
        )
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from None


# ---------------------------------------------------------------- what the small files say


def _read(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing if it is not there."""
    try:
        return read_json_object(file) if file.is_file() else {}
    except ConfigError as error:
        raise TokenizerError(f"{file}: {error}") from None


def _settings(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json says; of special tokens, special_tokens_map.json too.

    The map wins, but where added_tokens_decoder says more than it could.  `tokenizer_class` is
    without Fast, and may stand in config.json.
    """
    file = folder / "tokenizer_config.json"
    said = _read(file)
    special = _read(folder / "special_tokens_map.json")
    named = {
        key: value
        for key, value in special.items()
        if value and (key.endswith("_token") or key == "additional_special_tokens")
    }
    raw = {**named, **said} if "added_tokens_decoder" in said else {**said, **named}
    for key, value in named.items():
        if not raw[key]:
            raw[key] = value
    # null says nothing, but for strip_accents, where it means "together with lower-casing".
    settings = {key: raw[key] for key in raw if raw[key] is not None or key == "strip_accents"}
    wrong = []
    for option in OPTIONS & settings.keys():
        value = settings[option]
        if isinstance(value, str) and value.lower() in ("true", "false"):
            settings[option] = value.lower() == "true"
        elif not isinstance(value, bool | None):
            wrong.append(f"{option} must be true or false, got {value!r:.80}")
    if wrong:
        raise TokenizerError(f"{file}: {'; '.join(sorted(wrong))}")
    config = _read(folder / "config.json")
    for key in ("tokenizer_class", "auto_map"):
        settings.setdefault(key, config.get(key))
    if isinstance(settings["tokenizer_class"], str):
        settings["tokenizer_class"] = settings["tokenizer_class"].removesuffix("Fast")
    return settings


def _content(token: Any) -> str:
    """The text of a special token, which older files store as an object."""
    return str(token["content"]) if isinstance(token, dict) and "content" in token else str(token)


def _added_token(said: Any, **usual: bool) -> AddedToken:
    """A token that is looked for before a text is split; files may say how."""
    flags = ("lstrip", "rstrip", "normalized", "single_word", "special")
    if isinstance(said, Mapping):
        usual |= {name: bool(said[name]) for name in flags if name in said}
    return AddedToken(_content(said), **usual)


# ---------------------------------------------------------------- which kind of tokenizer


def _find_form(folder: Path, settings: Mapping[str, Any]) -> Form:
    """The form of the vocabulary in a folder; of several, the one that tokenizer_class reads.

    Raises:
        ModelNotFoundError: there is none.
    """
    there = [form for form in FORMS if all((folder / name).is_file() for name in form.files)]
    if not there:
        known = ", ".join(" and ".join(form.files) for form in FORMS)
        raise ModelNotFoundError(f"{folder}: holds neither tokenizer.json nor {known}")
    fitting = [form for form in there if settings["tokenizer_class"] in form.classes]
    return (fitting or there)[0]


def _check_class(folder: Path, settings: Mapping[str, Any], form: Form | None) -> None:
    """Refuse a tokenizer that is not what its files look like.

    A tokenizer.json (no form) says all that there is to say, unless a program splits texts first.

    Raises:
        TokenizerError: the class that the model was trained with is another.
    """
    name, program = settings["tokenizer_class"], _program(settings["auto_map"])
    if name is None and {"word_tokenizer_type", "subword_tokenizer_type"} & settings.keys():
        name = "BertJapaneseTokenizer"
    advice = (
        "Take a model whose tokenizer is one of transformers' fast ones, and lies beside it as "
        "tokenizer.json."
    )
    if name in OTHER_SPLITTERS:
        raise TokenizerError(
            f"{folder}: its tokenizer is a {name}: {OTHER_SPLITTERS[name]} before the vocabulary "
            f"is used, and without that its tokens would make no sense. {advice}"
        )
    if form is None or name in ANY_FORM or name in form.classes:
        return
    if name is None and program is None:
        return
    known = {kind for each in FORMS for kind in each.classes}
    if name in known:
        reads = next(each for each in FORMS if name in each.classes)
        raise TokenizerError(
            f"{folder}: its tokenizer is a {name}, which reads {' and '.join(reads.files)}, and "
            f"here lies {' and '.join(form.files)}. Fetch all files of the model again, or "
            "correct tokenizer_class in tokenizer_config.json or config.json."
        )
    raise TokenizerError(
        f"{folder}: its tokenizer is a {name or program}, which minibert does not know: it would "
        f"split texts in another way than the model was trained with. {advice}"
    )


def _program(auto_map: Any) -> str | None:
    """The class of a model's own that is its tokenizer, as its `auto_map` says."""
    if isinstance(auto_map, Mapping):
        auto_map = auto_map.get("AutoTokenizer")
    if isinstance(auto_map, list | tuple):
        auto_map = next((each for each in auto_map if each), None)
    return None if auto_map is None else str(auto_map).rpartition(".")[2]


# ---------------------------------------------------------------- tokenizer.json


def _from_tokenizer_json(file: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Load tokenizer.json; normalising options said in tokenizer_config.json win, as in BERT's."""
    try:
        backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the Rust side raises plain Exception for every bad file
        raise TokenizerError(f"{file}: is not a tokenizer file: {error}") from None
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


# ---------------------------------------------------------------- tokens beside the vocabulary


def _add_tokens(
    backend: tokenizers.Tokenizer,
    folder: Path,
    settings: Mapping[str, Any],
    usual: Mapping[str, str],
) -> None:
    """Add the tokens that are looked for before a text is split.

    First those of added_tokens.json or of added_tokens_decoder in tokenizer_config.json, in the
    order of their ids; then the special ones, of which `usual` names those that no file does.

    Raises:
        TokenizerError: they are damaged, or have other ids than those behind the vocabulary.
    """
    special = {
        name: settings.get(f"{name}_token", usual.get(name))
        for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    }
    more = settings.get("additional_special_tokens", [])
    try:
        if not isinstance(more, list):
            raise TypeError(f"additional_special_tokens must be a list, got {more!r:.80}")
        extra = [_added_token(token, special=True) for token in more]
        if "added_tokens_decoder" in settings:
            decoder = settings["added_tokens_decoder"]
            added = {int(number): _added_token(said) for number, said in decoder.items()}
        else:
            names = {*map(_content, special.values()), *map(_content, more)}
            added = {
                int(number): AddedToken(t, special=t in names, normalized=t not in names)
                for t, number in _read(folder / "added_tokens.json").items()
            }
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise TokenizerError(f"{folder}: its added tokens cannot be read: {error}") from None
    for number, token in sorted(added.items()):
        backend.add_tokens([token])
        if (found := backend.token_to_id(token.content)) != number:
            raise TokenizerError(
                f"{folder}: the added token {token.content!r} has id {number}, and as the tokens "
                f"before it are numbered it would have {found}"
            )
    known = {token.content for token in added.values()}
    for name, said in special.items():
        content = _content(said)
        if said and content not in known and backend.token_to_id(content) is not None:
            # What stands for a missing word takes the space before it, but in BERT.
            space = name == "mask" and usual is not BERT_TOKENS
            backend.add_tokens([_added_token(said, special=True, lstrip=space)])
    backend.add_tokens([token for token in extra if token.content not in known])


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


# ---------------------------------------------------------------- BERT's vocab.txt


def _from_vocab_txt(file: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Set up the tokenizer of BERT from a list of its word pieces, one a line.

    Of equal lines the last counts; each line has its number.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{file}: is not UTF-8: {error.reason} at byte {error.start}"
        ) from None
    except OSError as error:
        raise ModelNotFoundError(f"{file}: cannot be read: {error.strerror}") from None
    if lines[-1] == "":
        lines.pop()
    vocab = {line: number for number, line in enumerate(lines)}
    names = ("unk", "cls", "sep")
    unknown, *others = (_content(settings.get(f"{n}_token", BERT_TOKENS[n])) for n in names)
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


def _from_merges(file: Path, merges: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Set up the tokenizer of RoBERTa, byte-level BPE, from its vocabulary and its merges."""
    try:
        backend = tokenizers.Tokenizer(models.BPE.from_file(str(file), str(merges)))
    except Exception as error:  # the Rust side raises plain Exception for every bad file
        raise TokenizerError(f"{file}: is not a vocabulary of a BPE: {error}") from None
    space = settings.get("add_prefix_space", False)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    ends = (
        _content(settings.get(f"{name}_token", ROBERTA_TOKENS[name])) for name in ("sep", "cls")
    )
    sep, cls = _numbered(backend, file, ends)
    trim = settings.get("trim_offsets", True)
    backend.post_processor = processors.RobertaProcessing(
        sep, cls, trim_offsets=trim, add_prefix_space=space
    )
    return backend


# ---------------------------------------------------------------- SentencePiece models


def _from_sentencepiece(file: Path, kind: str, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
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
    try:
        backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unknown, False))
        charsmap = [normalizers.Precompiled(model.normalizer)] if model.normalizer else []
    except Exception as error:  # the Rust side raises plain Exception for every bad value
        raise TokenizerError(f"{file}: is not a SentencePiece model: {error}") from None
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
