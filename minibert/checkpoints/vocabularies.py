"""Loads a model's tokenizer from the files that lie beside it, as transformers does.

The vocabulary is in one of the forms of splitters.py.  What tokenizer_config.json,
special_tokens_map.json and added_tokens.json say is added; and what they say of the tokenizer's
class decides whether it is what its files look like.

Source: transformers 4.57.6, tokenization_utils_base.py and tokenization_utils_fast.py; for BERT
5.2.0, which does the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken

from minibert.checkpoints.components import LONGEST_TOKEN
from minibert.checkpoints.splitters import (
    ALBERT_TOKENS,
    BERT_TOKENS,
    ROBERTA_TOKENS,
    SENTENCE_PIECE_CLASSES,
    add_numbered,
    check_added,
    content,
    from_merges,
    from_sentencepiece,
    from_tokenizer_json,
    from_vocab_txt,
    is_token,
)
from minibert.config import read_json_object
from minibert.errors import ConfigError, ModelNotFoundError, TokenizerError
from minibert.families import FAMILIES
from minibert.files import present
from minibert.reprs import shown
from minibert.tokenizer import Tokenizer, reporting

SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # roles of special tokens
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
            "Bert DistilBert Electra ConvBert MobileBert SqueezeBert RetriBert Funnel Lxmert "
            "LayoutLM DPRQuestionEncoder DPRContextEncoder DPRReader"
        ).split()
    ),
)
BYTE_PAIRS = Form(
    ("vocab.json", "merges.txt"),
    frozenset(f"{name}Tokenizer" for name in ("Roberta", "GPT2", "Longformer", "Bart", "LED")),
)
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
    form = None if present(file) else _find_form(folder, settings)
    _check_class(folder, settings, form)
    if form is None:
        usual = FAMILIES[family]
        tokens = {"cls": usual.cls_token, "sep": usual.sep_token, "unk": "<unk>"}
        backend = from_tokenizer_json(file, settings)
        with reporting(f"{file}: its added tokens cannot be read"):
            there = {token.content for token in backend.get_added_tokens_decoder().values()}
        _add_tokens(backend, folder, settings, tokens, there)
    else:
        file = folder / form.files[0]
        if form is WORD_PIECES:
            tokens, backend = BERT_TOKENS, from_vocab_txt(file, settings)
        elif form is BYTE_PAIRS:
            tokens, backend = ROBERTA_TOKENS, from_merges(file, folder / form.files[1], settings)
        else:
            kind = SENTENCE_PIECE_CLASSES.get(settings["tokenizer_class"], family)
            tokens = ALBERT_TOKENS if kind == "albert" else ROBERTA_TOKENS
            backend = from_sentencepiece(file, kind, settings)
        _add_tokens(backend, folder, settings, tokens)
    check_added(backend, folder)
    longest = settings.get("model_max_length")
    said = isinstance(longest, int | float) and not isinstance(longest, bool)
    # transformers writes 1e30 for "no limit".
    limit = int(longest or 0) if said and 1 <= (longest or 0) < 1e9 else None
    cls_token, sep_token, unk_token = (
        content(settings.get(f"{name}_token", tokens[name])) for name in ("cls", "sep", "unk")
    )
    try:
        with reporting("the tokenizer cannot be used"):
            unk_token = getattr(backend.model, "unk_token", None) or unk_token
            name = str(folder)
            return Tokenizer(backend, cls_token, sep_token, limit, unk_token=unk_token, name=name)
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from None


# ---------------------------------------------------------------- what the small files say


def _read(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing if it is not there."""
    try:
        return read_json_object(file) if present(file) else {}
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
            wrong.append(f"{option} must be true or false, got {shown(value)}")
    for role in SPECIAL:
        if (token := settings.get(f"{role}_token")) is not None and not is_token(token):
            wrong.append(
                f"{role}_token must be a text of at most {LONGEST_TOKEN} characters without halves "
                f"of surrogate pairs, got {shown(token)}"
            )
    if wrong:
        raise TokenizerError(f"{file}: {'; '.join(sorted(wrong))}")
    config = _read(folder / "config.json")
    for key in ("tokenizer_class", "auto_map"):
        settings.setdefault(key, config.get(key))
    if settings["tokenizer_class"] is not None:
        settings["tokenizer_class"] = str(settings["tokenizer_class"]).removesuffix("Fast")
    return settings


# ---------------------------------------------------------------- which kind of tokenizer


def _find_form(folder: Path, settings: Mapping[str, Any]) -> Form:
    """The form of the vocabulary in a folder; of several, the one that tokenizer_class reads.

    Raises:
        ModelNotFoundError: there is none.
    """
    there = [form for form in FORMS if all(present(folder / name) for name in form.files)]
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
        f"{folder}: its tokenizer is a {name or program or 'nameless one':.80}, which minibert "
        "does not know: it would split texts in another way than the model was trained with. "
        f"{advice}"
    )


def _program(auto_map: Any) -> str | None:
    """The class of a model's own that is its tokenizer, as its `auto_map` says."""
    if isinstance(auto_map, Mapping):
        auto_map = auto_map.get("AutoTokenizer")
    if isinstance(auto_map, list | tuple):
        auto_map = next((each for each in auto_map if each), None)
    return None if auto_map is None else str(auto_map).rpartition(".")[2]


# ---------------------------------------------------------------- tokens beside the vocabulary


def _added_token(said: Any, **usual: bool) -> AddedToken:
    """A token that is looked for before a text is split; files may say how."""
    flags = ("lstrip", "rstrip", "normalized", "single_word", "special")
    if isinstance(said, Mapping):
        usual |= {name: bool(said[name]) for name in flags if name in said}
    if not is_token(content(said)):
        raise ValueError(f"{shown(said)} is too long or holds half of a surrogate pair")
    return AddedToken(content(said), **usual)


def _add_tokens(
    backend: tokenizers.Tokenizer,
    folder: Path,
    settings: Mapping[str, Any],
    usual: Mapping[str, str],
    kept: Collection[str] = (),
) -> None:
    """Add the tokens that are looked for before a text is split.

    First those of added_tokens.json or of added_tokens_decoder in tokenizer_config.json, in the
    order of their ids; then the special ones, of which `usual` names those that no file does; but
    for those that are `kept` as they are.

    Source: `PreTrainedTokenizerFast.__init__` in transformers 4.57.6.

    Raises:
        TokenizerError: they are damaged, or have other ids than those behind the vocabulary.
    """
    special = {name: settings.get(f"{name}_token", usual.get(name)) for name in SPECIAL}
    more = settings.get("additional_special_tokens", [])
    try:
        if not isinstance(more, list):
            raise TypeError(f"additional_special_tokens must be a list, got {shown(more)}")
        extra = [_added_token(token, special=True) for token in more]
        if "added_tokens_decoder" in settings:
            decoder = settings["added_tokens_decoder"]
            added = {int(number): _added_token(said) for number, said in decoder.items()}
        else:
            names = {*map(content, special.values()), *map(content, more)}
            added = {
                int(number): _added_token(t, special=t in names, normalized=t not in names)
                for t, number in _read(folder / "added_tokens.json").items()
            }
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise TokenizerError(f"{folder}: its added tokens cannot be read: {error!s:.200}") from None
    add_numbered(backend, folder, sorted(added.items()))
    known = {*kept, *(token.content for token in added.values())}
    with reporting(f"{folder}: its added tokens cannot be used"):
        for name, said in special.items():
            token = content(said)
            if said and token not in known and backend.token_to_id(token) is not None:
                # What stands for a missing word takes the space before it, but in BERT.
                space = name == "mask" and usual is not BERT_TOKENS
                backend.add_tokens([_added_token(said, special=True, lstrip=space)])
        backend.add_tokens([token for token in extra if token.content not in known])
