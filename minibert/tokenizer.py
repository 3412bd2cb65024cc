"""Step 1 of 6: text -> tokens.

A text becomes word pieces: ids of the vocabulary, each with its place in the text.  The splitting
itself is done by the `tokenizers` package; this file loads it from either form of a BERT
checkpoint, checks that it fits, and keeps what the later steps need as arrays.

In: a question or a text.  Out: `Tokens`.  Next: minibert/windows.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from minibert.arrays import Ints
from minibert.config import BertConfig, read_json_object
from minibert.errors import ConfigError, InputError, ModelNotFoundError, TokenizerError

# Texts whose tokens are kept, so that a text that is asked many questions is tokenised once.
CACHED_TEXTS = 64


@dataclass(frozen=True, eq=False)
class Tokens:
    """The word pieces of one text.

    N is the number of tokens, which may be 0 (white space has none).
    """

    text: str
    ids: Ints  # [N] rows of the vocabulary
    offsets: Ints  # [N, 2] text[start:end] is what the token stands for; code points
    words: Ints  # [N] number of the word the token belongs to; -1 for none

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> Tokens:
        """The first `count` tokens."""
        return Tokens(self.text, self.ids[:count], self.offsets[:count], self.words[:count])


class Tokenizer:
    """Splits text into the word pieces of one model.

    Args:
        backend: the loaded splitter.
        cls_token: token that begins a window.
        sep_token: token that ends the question and the text.
        model_max_length: longest window the checkpoint was made for, in tokens; None if not said.

    Raises:
        TokenizerError: the vocabulary lacks one of the two tokens, or the splitter builds its
            windows in another way than BERT.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        cls_token: str = "[CLS]",
        sep_token: str = "[SEP]",
        model_max_length: int | None = None,
    ) -> None:
        backend.no_truncation()  # windows.py cuts long texts itself
        backend.no_padding()
        self.backend = backend
        self.cls_id, self.sep_id = (_special_id(backend, t) for t in (cls_token, sep_token))
        self.model_max_length = model_max_length
        self.encode = lru_cache(CACHED_TEXTS)(self._encode)
        self._names: dict[int, str] | None = None  # made when first asked for
        self._arguments = (backend, cls_token, sep_token, model_max_length)
        self._check_layout()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of: a cache cannot travel to another process."""
        return Tokenizer, self._arguments

    @property
    def vocab_size(self) -> int:
        """Rows of the vocabulary, added tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def _encode(self, text: str) -> Tokens:
        """Split `text`; no special tokens are added.

        Raises:
            InputError: the text holds half of a surrogate pair, which is no character.
        """
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        except (UnicodeError, TypeError) as error:
            at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
            reason = (
                f"character {at} is the lone surrogate {text[at]!r}" if at is not None else error
            )
            raise InputError(f"the text cannot be split into tokens: {reason}") from None
        words = [-1 if word is None else word for word in encoding.word_ids]
        return Tokens(
            text=text,
            ids=np.array(encoding.ids, np.int32),
            offsets=np.array(encoding.offsets, np.int32).reshape(-1, 2),
            words=np.array(words, np.int32),
        )

    def basic_words(self, text: str) -> list[str]:
        """The words and punctuation marks of `text`, before words are split into pieces.

        In lower case and without accents, if the model's tokens are.

        Source: `BasicTokenizer` in google-research/bert tokenization.py.
        """
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        if self.backend.pre_tokenizer is None:
            return text.split()
        return [word for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(text)]

    def names(self, ids: Ints) -> list[str]:
        """The vocabulary's names of tokens: "##" begins what continues a word."""
        if self._names is None:
            vocabulary = self.backend.get_vocab(with_added_tokens=True)
            self._names = {token: name for name, token in vocabulary.items()}
        return [self._names[token] for token in ids.tolist()]

    def _check_layout(self) -> None:
        """Refuse a splitter that does not build [CLS] question [SEP] text [SEP]."""
        if self.backend.post_processor is None:
            return
        pair = self.backend.encode("a", "b")
        part = [
            [i for i, seq in zip(pair.ids, pair.sequence_ids, strict=True) if seq == n]
            for n in (0, 1)
        ]
        want = [self.cls_id, *part[0], self.sep_id, *part[1], self.sep_id]
        types = [0] * (len(part[0]) + 2) + [1] * (len(part[1]) + 1)
        if pair.ids != want or pair.type_ids != types:
            raise TokenizerError(
                "the tokenizer joins a question and a text as "
                f"{' '.join(pair.tokens)} (token types {pair.type_ids}), "
                "and BERT as [CLS] question [SEP] text [SEP] (token types 0 and 1)"
            )

    def check_fits(self, config: BertConfig) -> None:
        """Compare the vocabulary with the model's embedding table.

        Raises:
            TokenizerError: they belong to different models.
        """
        rows, tokens = config.vocab_size, self.vocab_size
        # Some trainers round the table up for the GPU; those rows belong to no token.
        rounded = {-(-tokens // multiple) * multiple for multiple in (1, 8, 16, 32, 64, 128)}
        if rows not in rounded:
            raise TokenizerError(
                f"the vocabulary has {tokens} tokens, {'more' if tokens > rows else 'fewer'} than "
                f"the {rows} rows of the model's word embeddings. "
                "Is the tokenizer from the same model?"
            )
        highest = max(self.backend.get_vocab(with_added_tokens=True).values())
        if highest >= rows:
            raise TokenizerError(
                f"the vocabulary has a token with id {highest}, beyond the {rows} rows of the "
                "model's word embeddings"
            )


def _special_id(backend: tokenizers.Tokenizer, token: str) -> int:
    """The id of a token that every BERT vocabulary has."""
    found = backend.token_to_id(token)
    if found is None:
        raise TokenizerError(f"the vocabulary has no {token!r} token, which BERT needs")
    return int(found)


# ---------------------------------------------------------------- loading


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a tokenizer from tokenizer.json, or from vocab.txt; tokenizer_config.json adds to both.

    Args:
        folder: the model's folder.

    Raises:
        ModelNotFoundError: neither file is there.
        TokenizerError: a file is damaged, or is not a BERT WordPiece tokenizer.
    """
    settings = _settings(folder / "tokenizer_config.json")
    if (file := folder / "tokenizer.json").is_file():
        backend = _from_tokenizer_json(file, settings)
    elif (file := folder / "vocab.txt").is_file():
        backend = _from_vocab_txt(file, settings)
    else:
        raise ModelNotFoundError(f"{folder}: holds neither tokenizer.json nor vocab.txt")
    longest = settings.get("model_max_length")
    # transformers writes 1e30 for "no limit".
    limit = int(longest) if isinstance(longest, int | float) and 0 < longest < 1e9 else None
    try:
        return Tokenizer(
            backend,
            _content(settings.get("cls_token", "[CLS]")),
            _content(settings.get("sep_token", "[SEP]")),
            limit,
        )
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from None


def _settings(file: Path) -> dict[str, Any]:
    """What tokenizer_config.json says; nothing if it is not there."""
    try:
        raw = read_json_object(file) if file.is_file() else {}
    except ConfigError as error:
        raise TokenizerError(f"{file}: {error}") from None
    # null says nothing, but for strip_accents, where it means "together with lower-casing".
    said = {key: value for key, value in raw.items() if value is not None or key == "strip_accents"}
    wrong = [
        f"{option} must be true or false, got {said[option]!r}"
        for option in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
        if not isinstance(said.get(option), bool | None)
    ]
    if wrong:
        raise TokenizerError(f"{file}: {'; '.join(wrong)}")
    return said


def _content(token: Any) -> str:
    """The text of a special token, which older files store as an object."""
    return str(token["content"]) if isinstance(token, dict) and "content" in token else str(token)


def _from_tokenizer_json(file: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """Load tokenizer.json; normalising options said in tokenizer_config.json win, as in BERT's."""
    try:
        backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the Rust side raises plain Exception for every bad file
        raise TokenizerError(f"{file}: is not a tokenizer file: {error}") from None
    if not isinstance(backend.model, models.WordPiece):
        raise TokenizerError(
            f"{file}: holds a {type(backend.model).__name__} tokenizer, expected BERT's WordPiece"
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


def _from_vocab_txt(file: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """Build the tokenizer of BERT from a list of its word pieces, one a line."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{file}: is not UTF-8: {error.reason} at byte {error.start}"
        ) from None
    except OSError as error:
        raise ModelNotFoundError(f"{file}: cannot be read: {error.strerror}") from None
    if lines[-1] == "":
        lines.pop()
    vocab = {line.rstrip("\r"): i for i, line in enumerate(lines)}
    if len(vocab) < len(lines):
        seen: set[str] = set()
        twice = next(line for line in lines if line in seen or seen.add(line))  # type: ignore[func-returns-value]
        raise TokenizerError(f"{file}: the token {twice!r} stands there twice; each may stand once")
    special = {
        name: _content(settings.get(f"{name}_token", f"[{name.upper()}]"))
        for name in ("unk", "cls", "sep", "pad", "mask")
    }
    for token in (special["unk"], special["cls"], special["sep"]):
        if token not in vocab:
            raise TokenizerError(f"{file}: has no {token!r} token, which BERT needs")
    # Said nowhere: a vocabulary without a single capital letter is an uncased one.
    cased = any(c != c.lower() for token in vocab if not token.startswith("[") for c in token)
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=special["unk"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents"),
        lowercase=bool(settings.get("do_lower_case", not cased)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in special.values() if t in vocab]
    )
    return backend
