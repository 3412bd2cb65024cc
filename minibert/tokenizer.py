"""Step 1 of 6: text -> tokens.

A text becomes word pieces: ids of the vocabulary, each with its place in the text.  The splitting
itself is done by the `tokenizers` package; this file loads it from either form of a BERT
checkpoint, checks that it fits, and keeps what the later steps need as arrays.

In: a question or a text.  Out: `Tokens`.  Next: minibert/windows.py.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

from minibert.arrays import Ints
from minibert.config import BertConfig, read_json_object
from minibert.errors import ConfigError, InputError, ModelNotFoundError, TokenizerError
from minibert.families import FAMILIES
from minibert.recent import Recent
from minibert.reprs import short_repr

MOST_ROUNDING = 128  # trainers round embedding tables up to a multiple of so many rows


@dataclass(frozen=True, eq=False)
class Tokens:
    """The word pieces of one text.

    N is the number of tokens, which may be 0 (white space has none).
    """

    text: str
    ids: Ints  # [N] rows of the vocabulary
    offsets: Ints  # [N, 2] text[start:end] is what the token stands for; code points
    words: Ints  # [N] number of the word the token belongs to; -1 for none

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> Tokens:
        """The first `count` tokens."""
        return Tokens(self.text, self.ids[:count], self.offsets[:count], self.words[:count])


@dataclass(frozen=True)
class Pair:
    """How a model joins a question and a text: [CLS] question [SEP] text [SEP].

    RoBERTa has two [SEP] between them, and writes <s> and </s>.
    """

    cls_id: int
    sep_id: int
    separators: int = 1  # [SEP] between the question and the text
    text_type: int = 1  # token type of the text; 0 where a model does not tell it from the question

    def text_room(self, question: Tokens, max_seq_length: int) -> int:
        """Tokens of a window left for the text, beside the question, [CLS] and all [SEP]."""
        return max_seq_length - len(question) - self.separators - 2


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
        self.pair = find_pair(backend, *(_special_id(backend, t) for t in (cls_token, sep_token)))
        self.model_max_length = model_max_length
        self.encode = Recent(self._encode, len)
        self._names: dict[int, str] | None = None  # made when first asked for
        self._arguments = (backend, cls_token, sep_token, model_max_length)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of: a cache cannot travel to another process."""
        return Tokenizer, self._arguments

    def __repr__(self) -> str:
        kind = type(self.backend.model).__name__
        return f"Tokenizer({kind}, {self.vocab_size} tokens)"

    @property
    def cls_id(self) -> int:
        """Id of the token that begins a window."""
        return self.pair.cls_id

    @property
    def has_word_pieces(self) -> bool:
        """Whether the tokens are BERT's: parts of words, of which the later ones begin with ##."""
        return isinstance(self.backend.model, models.WordPiece)

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

    def check_fits(self, config: BertConfig) -> None:
        """Compare the vocabulary with the model's embedding table.

        A table may have more rows: some trainers round it up for the GPU, others leave room.

        Raises:
            TokenizerError: there are more tokens than rows: they belong to different models.
        """
        rows, tokens = config.vocab_size, self.vocab_size
        if tokens > rows:
            raise TokenizerError(
                f"the vocabulary has {tokens} tokens, more than the {rows} rows of the model's "
                "word embeddings. Is the tokenizer from the same model?"
            )
        highest = max(self.backend.get_vocab(with_added_tokens=True).values())
        if highest >= rows:
            raise TokenizerError(
                f"the vocabulary has a token with id {highest}, beyond the {rows} rows of the "
                "model's word embeddings"
            )
        if rows > -(-tokens // MOST_ROUNDING) * MOST_ROUNDING:
            warnings.warn(
                f"the vocabulary has {tokens} tokens and the model's word embeddings {rows} rows. "
                "If answers make no sense, is the tokenizer from the same model?",
                stacklevel=2,
            )


def find_pair(backend: tokenizers.Tokenizer, cls_id: int, sep_id: int) -> Pair:
    """How a splitter joins a question and a text; as BERT does, if it does not say.

    Raises:
        TokenizerError: neither as BERT nor as RoBERTa.
    """
    if backend.post_processor is None:
        return Pair(cls_id, sep_id)
    both = backend.encode("a", "b")
    question, text = (
        [i for i, part in zip(both.ids, both.sequence_ids, strict=True) if part == n]
        for n in (0, 1)
    )
    for separators, text_type in ((1, 1), (2, 0)):
        between = [sep_id] * separators
        ids = [cls_id, *question, *between, *text, sep_id]
        types = [0] * (len(question) + separators + 1) + [text_type] * (len(text) + 1)
        if both.ids == ids and both.type_ids == types:
            return Pair(cls_id, sep_id, separators, text_type)
    raise TokenizerError(
        f"the tokenizer joins a question and a text as {' '.join(both.tokens)} (token types "
        f"{both.type_ids}), and BERT as [CLS] question [SEP] text [SEP] (token types 0 and 1), "
        "RoBERTa as <s> question </s></s> text </s>"
    )


def _special_id(backend: tokenizers.Tokenizer, token: str) -> int:
    """The id of a token that every BERT vocabulary has."""
    found = backend.token_to_id(token)
    if found is None:
        raise TokenizerError(f"the vocabulary has no {token!r} token, which BERT needs")
    return int(found)


# ---------------------------------------------------------------- loading


def load_tokenizer(folder: Path, family: str = "bert") -> Tokenizer:
    """Load a tokenizer from tokenizer.json, or from vocab.txt; tokenizer_config.json adds to both.

    Args:
        folder: the model's folder.
        family: of the model, a key of `FAMILIES`; names [CLS] and [SEP] where no file does.

    Raises:
        ModelNotFoundError: no file is there.
        TokenizerError: a file is damaged, or joins questions and texts as no known family does.
    """
    settings = _settings(folder)
    if (file := folder / "tokenizer.json").is_file():
        backend = _from_tokenizer_json(file, settings)
    elif (file := folder / "vocab.txt").is_file():
        backend = _from_vocab_txt(file, settings)
        _add_tokens(backend, folder, settings)
    elif (file := folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _from_merges(file, folder / "merges.txt", settings)
        _add_tokens(backend, folder, settings)
    else:
        raise ModelNotFoundError(
            f"{folder}: holds neither tokenizer.json nor vocab.txt, nor vocab.json and merges.txt"
        )
    # A vocab.txt is BERT's, whatever model it lies beside.
    usual = FAMILIES["bert" if file.name == "vocab.txt" else family]
    longest = settings.get("model_max_length")
    said = isinstance(longest, int | float) and not isinstance(longest, bool)
    # transformers writes 1e30 for "no limit".
    limit = int(longest or 0) if said and 0 < (longest or 0) < 1e9 else None
    try:
        return Tokenizer(
            backend,
            _content(settings.get("cls_token", usual.cls_token)),
            _content(settings.get("sep_token", usual.sep_token)),
            limit,
        )
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from None


def _read(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing if it is not there."""
    try:
        return read_json_object(file) if file.is_file() else {}
    except ConfigError as error:
        raise TokenizerError(f"{file}: {error}") from None


def _settings(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json says, and special_tokens_map.json of special tokens."""
    file = folder / "tokenizer_config.json"
    special = _read(folder / "special_tokens_map.json")
    named = {key: value for key, value in special.items() if key.endswith("_token")}
    raw = named | {key: value for key, value in _read(file).items() if value or key not in named}
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


def _add_tokens(backend: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any]) -> None:
    """Add the tokens that a checkpoint has besides its vocabulary, in the order of their ids.

    They stand in added_tokens.json, or under added_tokens_decoder in tokenizer_config.json.

    Raises:
        TokenizerError: they are damaged, or have other ids than those behind the vocabulary.
    """
    file = folder / "added_tokens.json"
    try:
        added = {int(number): AddedToken(token) for token, number in _read(file).items()}
        for number, said in settings.get("added_tokens_decoder", {}).items():
            flags = ("lstrip", "rstrip", "normalized", "single_word", "special")
            flag = {name: bool(said[name]) for name in flags if name in said}
            added[int(number)] = AddedToken(str(said["content"]), **flag)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise TokenizerError(f"{folder}: its added tokens cannot be read: {error}") from None
    for number, token in sorted(added.items()):
        if backend.token_to_id(token.content) is None:
            backend.add_tokens([token])
        if (found := backend.token_to_id(token.content)) != number:
            raise TokenizerError(
                f"{folder}: the added token {token.content!r} has id {number}, and as the tokens "
                f"before it are numbered it would have {found}"
            )


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


def _from_merges(file: Path, merges: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """Build the tokenizer of RoBERTa, byte-level BPE, from its vocabulary and its merges."""
    try:
        backend = tokenizers.Tokenizer(models.BPE.from_file(str(file), str(merges)))
    except Exception as error:  # the Rust side raises plain Exception for every bad file
        raise TokenizerError(f"{file}: is not a vocabulary of a BPE: {error}") from None
    special = {
        name: _content(settings.get(f"{name}_token", default))
        for name, default in (
            ("cls", "<s>"), ("sep", "</s>"), ("unk", "<unk>"), ("pad", "<pad>"), ("mask", "<mask>"),
        )
    }  # fmt: skip
    space = bool(settings.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, lstrip=name == "mask")
            for name, token in special.items()
            if backend.token_to_id(token) is not None
        ]
    )
    sep, cls = ((special[name], _special_id(backend, special[name])) for name in ("sep", "cls"))
    trim = bool(settings.get("trim_offsets", True))
    backend.post_processor = processors.RobertaProcessing(
        sep, cls, trim_offsets=trim, add_prefix_space=space
    )
    return backend
