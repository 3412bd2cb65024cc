"""Step 1 of 6: text -> tokens.

A text becomes word pieces: ids of the vocabulary, each with its place in the text.  The splitting
itself is done by the `tokenizers` package, which checkpoints/vocabularies.py sets up from a model's
files; this file checks that it fits, and keeps what the later steps need as arrays.

In: a question or a text.  Out: `Tokens`.  Next: minibert/windows.py.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from minibert.arrays import Ints
from minibert.config import BertConfig
from minibert.errors import InputError, MinibertError, TokenizerError
from minibert.recent import Recent
from minibert.reprs import short_repr, shown

MOST_ROUNDING = 128  # trainers round embedding tables up to a multiple of so many rows
WORD = re.compile("[^ \t\r\n\u202f]+")  # what run_squad.py takes for a word
MOST_UNKNOWN = 3  # one token in so many may be unknown before there is a warning
FEWEST_TOKENS = 20  # of a text whose unknown tokens are counted; a name or two prove nothing


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
        unk_token: token for what the vocabulary has no pieces for; it may lack it.
        name: of the model, for warnings.

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
        unk_token: str = "[UNK]",
        name: str = "the model",
    ) -> None:
        backend.no_truncation()  # windows.py cuts long texts itself
        backend.no_padding()
        self.backend = backend
        self.pair = find_pair(backend, *(_special_id(backend, t) for t in (cls_token, sep_token)))
        self.model_max_length = model_max_length
        self.name = name
        self.unknown_id = backend.token_to_id(unk_token)
        self.warned = False
        self.encode = Recent(self._encode, len)
        self.encode_words = Recent(self._encode_words, len)
        self._names: dict[int, str] | None = None  # made when first asked for
        self._arguments = (backend, cls_token, sep_token, model_max_length, unk_token, name)

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
    def vocab_size(self) -> int:
        """Rows of the vocabulary, added tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def _encode(self, text: str) -> Tokens:
        """Split `text`; no special tokens are added.

        Raises:
            InputError: the text holds half of a surrogate pair, which is no character.
        """
        encoding = self._split(text, text)
        words = [-1 if word is None else word for word in encoding.word_ids]
        tokens = Tokens(
            text=text,
            ids=np.array(encoding.ids, np.int32),
            offsets=np.array(encoding.offsets, np.int32).reshape(-1, 2),
            words=np.array(words, np.int32),
        )
        self._check_known(tokens.ids)
        return tokens

    def _encode_words(self, text: str) -> Tokens:
        """Split each word of `text` by itself, as if a space stood before it.

        So run_squad.py does it.  It differs from `encode` where tokens hold spaces: "Ada" at the
        beginning of a text is then the same token as behind another word.

        Raises:
            InputError: the text holds half of a surrogate pair, which is no character.

        Source: `squad_convert_example_to_features` in transformers 4.57.6.
        """
        if isinstance(self.backend.model, models.WordPiece):  # it looks at words one by one
            return self.encode(text)
        places = [match.span() for match in WORD.finditer(text)]
        spaces = ["" if text[begin].isspace() else " " for begin, _ in places]
        parts = [f"{space}{text[a:b]}" for space, (a, b) in zip(spaces, places, strict=True)]
        encoding = self._split(text, parts)
        words = np.array(encoding.word_ids, np.int32)
        begins = np.array([begin for begin, _ in places], np.int32)
        shifts = begins - np.array([len(space) for space in spaces], np.int32)
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2) + shifts[words][:, None]
        ids = np.array(encoding.ids, np.int32)
        self._check_known(ids)
        return Tokens(
            text=text,
            ids=ids,
            offsets=np.maximum(offsets, begins[words][:, None]),
            words=words,
        )

    def _split(self, text: str, given: str | Sequence[str]) -> tokenizers.Encoding:
        """The tokens of a text, given whole or as its words."""
        with reporting(f"{self.name}: its tokenizer cannot split a text"):
            try:
                return self.backend.encode(
                    given, is_pretokenized=not isinstance(given, str), add_special_tokens=False
                )
            except (UnicodeError, TypeError) as error:
                at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
                reason = (
                    f"character {at} is the lone surrogate {text[at]!r}"
                    if at is not None
                    else error
                )
                raise InputError(f"the text cannot be split into tokens: {reason}") from None

    def _check_known(self, ids: Ints) -> None:
        """Warn, once a tokenizer, of a text that the vocabulary mostly knows nothing of."""
        if self.warned or self.unknown_id is None or len(ids) < FEWEST_TOKENS:
            return
        unknown = np.count_nonzero(ids == self.unknown_id)
        if unknown * MOST_UNKNOWN < len(ids):
            return
        self.warned = True
        warnings.warn(
            f"{self.name}: {unknown} of the {len(ids)} tokens of a text are unknown to the "
            "vocabulary, and answers may make no sense. Is the text in a language and script of "
            "the model, and is the tokenizer the model's own?",
            stacklevel=2,
        )

    def basic_words(self, text: str) -> list[str]:
        """The words and punctuation marks of `text`, as BERT has them before it makes word pieces.

        In lower case and without accents, if the model's tokens are.

        Source: `BasicTokenizer` in google-research/bert tokenization.py; where the model has other
        tokens than word pieces, as in transformers 4.57.6.
        """
        normalizer, splitter = self.backend.normalizer, self.backend.pre_tokenizer
        if not isinstance(self.backend.model, models.WordPiece):
            normalizer = normalizers.BertNormalizer(lowercase=self.normalized("A") == "a")
            splitter = pre_tokenizers.BertPreTokenizer()
            text = unicodedata.normalize("NFC", text)
        with reporting(f"{self.name}: its tokenizer cannot split a text"):
            if normalizer is not None:
                text = normalizer.normalize_str(text)
            if splitter is None:
                return text.split()
            return [word for word, _ in splitter.pre_tokenize_str(text)]

    def normalized(self, text: str) -> str:
        """A text as it is before it is split."""
        normalizer = self.backend.normalizer
        with reporting(f"{self.name}: its tokenizer cannot normalise a text"):
            return text if normalizer is None else str(normalizer.normalize_str(text))

    def plain_text(self, ids: Ints) -> str:
        """What tokens stand for, as far as their names tell, with one space between words."""
        names = self.names(ids)
        decoder = self.backend.decoder
        if isinstance(self.backend.model, models.WordPiece):
            return " ".join(" ".join(names).replace(" ##", "").split())
        if decoder is None:
            spaces = isinstance(self.backend.model, models.Unigram)
            decoder = decoders.Metaspace() if spaces else decoders.ByteLevel()
        with reporting(f"{self.name}: its tokenizer cannot join tokens"):
            return " ".join(decoder.decode(names).split())

    def names(self, ids: Ints) -> list[str]:
        """The vocabulary's names of tokens: "##" begins what continues a word.

        Raises:
            InputError: these are no ids of the vocabulary.
        """
        if self._names is None:
            vocabulary = self.backend.get_vocab(with_added_tokens=True)
            self._names = {token: name for name, token in vocabulary.items()}
        if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InputError(f"ids must be whole numbers in an array [N], got {shown(ids)}")
        if unknown := {*ids.tolist()} - self._names.keys():
            raise InputError(f"the vocabulary has no token with the id {min(unknown)}")
        return [self._names[token] for token in ids.tolist()]

    def check_fits(self, config: BertConfig) -> None:
        """Compare the vocabulary with the model's embedding table.

        A table may have more rows: some trainers round it up for the GPU, others leave room.

        Raises:
            TokenizerError: there are more tokens than rows: they belong to different models.
        """
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        vocabulary.pop("", None)  # a blank line of vocab.txt, which stands for no text
        rows, tokens = config.vocab_size, len(vocabulary)
        if tokens > rows:
            raise TokenizerError(
                f"the vocabulary has {tokens} tokens, more than the {rows} rows of the model's "
                "word embeddings. Is the tokenizer from the same model?"
            )
        highest = max(vocabulary.values())
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
    with reporting("the tokenizer cannot join a question and a text"):
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
        f"the tokenizer joins a question and a text as {' '.join(both.tokens):.200} (token types "
        f"{shown(both.type_ids)}), and BERT as [CLS] question [SEP] text [SEP] (types 0 and 1), "
        "RoBERTa as <s> question </s></s> text </s>"
    )


def _special_id(backend: tokenizers.Tokenizer, token: str) -> int:
    """The id of a token that every BERT vocabulary has."""
    found = backend.token_to_id(token)
    if found is None:
        raise TokenizerError(f"the vocabulary has no {shown(token)} token, which BERT needs")
    return int(found)


@contextmanager
def reporting(problem: str) -> Iterator[None]:
    """What the `tokenizers` package raises, as a TokenizerError that begins with `problem`."""
    try:
        yield
    except MinibertError:
        raise
    except BaseException as error:  # of all kinds; and a panic of its Rust is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{problem}: {error!s:.200}") from None
