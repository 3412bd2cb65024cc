"""Reads SentencePiece models (spiece.model, sentencepiece.bpe.model), without their library.

Such a file is a message of Protocol Buffers: fields, each a number, a kind and a value.  Only the
fields that a tokenizer is made of are looked at.

Source: sentencepiece_model.proto, and "Encoding" in the documentation of Protocol Buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minibert.errors import ModelNotFoundError, TokenizerError
from minibert.files import LARGEST_VOCABULARY, LIFTED_BY, bound, read_file

# Kinds of a piece that are not plain.
CONTROL, USER_DEFINED = 3, 4
UNIGRAM = 1  # kind of a model
LONGEST_VARINT = 10  # bytes of a number of 64 bits, 7 bits in each
MOST_PIECES = 2**20  # models of a hundred languages have a quarter of that
# What reading bytes that are no such message may raise.
DAMAGES = (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error)


class Piece(NamedTuple):
    """One line of the vocabulary."""

    text: str  # "▁" stands for a space
    score: float  # logarithm of its probability
    kind: int


@dataclass(frozen=True)
class SentencePieces:
    """What a SentencePiece model says."""

    pieces: list[Piece]
    unknown: int  # number of the piece for what no piece stands for
    kind: int  # UNIGRAM, or another way to choose among pieces
    normalizer: bytes  # characters and what becomes of them, as `Precompiled` reads it; or b""


def read_sentencepiece(file: Path) -> SentencePieces:
    """Read a SentencePiece model.

    Raises:
        ModelNotFoundError: the file cannot be read.
        TokenizerError: it is damaged, or of another kind.
    """
    try:
        message = read_file(file, at_most=LARGEST_VOCABULARY)
    except OSError as error:
        raise ModelNotFoundError(f"{file}: cannot be read: {error.strerror}") from None
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for field, value in _fields(message):
            if field == 1:
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                if len(pieces) == bound(MOST_PIECES):
                    raise ValueError(f"it has more than {MOST_PIECES} pieces; {LIFTED_BY}")
                pieces.append(Piece(piece[1].decode(), score, piece.get(3, 1)))
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
        unknown, kind = trainer.get(40, 0), trainer.get(3, UNIGRAM)
        if not 0 <= unknown < len(pieces):
            raise ValueError(f"of its {len(pieces)} pieces none stands for what is unknown")
        if not isinstance(kind, int):
            raise TypeError("its kind is no number")
        return SentencePieces(pieces, unknown, kind, b"".join([normalizer.get(2, b"")]))
    except DAMAGES as error:
        raise TokenizerError(f"{file}: is not a SentencePiece model: {error}") from None


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: number, and an int or what stands there as bytes.

    Raises:
        ValueError, IndexError: it is none.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"a field of {size} bytes at byte {at} of {len(message)}")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first, and where it ends."""
    number = shift = 0
    while (byte := message[at]) > 127:
        if shift == 7 * LONGEST_VARINT:
            raise ValueError(f"a number of more than {LONGEST_VARINT} bytes before byte {at}")
        number |= (byte & 127) << shift
        shift += 7
        at += 1
    return number | byte << shift, at + 1


def longest_replacement(rules: bytes) -> int:
    """Check the rules by which a model replaces characters, as `Precompiled` follows them.

    They are a trie of what is replaced, which begins with its size in bytes, and the texts that
    replace it, each ended by a zero.  `Precompiled` follows every link without a look at where it
    leads.

    Args:
        rules: a model's `precompiled_charsmap`.

    Returns:
        Characters of the longest text; at least 1.

    Raises:
        ValueError: a link leads out of the trie, or out of the texts, or into a character.

    Source: `DoubleArrayUnit` in darts-clone.
    """
    size = int.from_bytes(rules[:4], "little")
    if len(rules) < 8 or size % 4 or not 0 < size <= len(rules) - 4:
        raise ValueError(f"a trie of {size} bytes in rules of {len(rules)}")
    units = np.frombuffer(rules, "<u4", size // 4, offset=4).astype(np.int64)
    texts = rules[4 + size :]
    longest = max(map(len, texts.decode().split("\0")))
    # The root, and what is no leaf, lead to 256 units, one for each letter that may follow.
    inner = np.flatnonzero((units >> 31 == 0) | (np.arange(len(units)) == 0))
    links = inner ^ (units[inner] >> 10 << (units[inner] >> 6 & 8))
    if ((links | 255) >= len(units)).any():
        raise ValueError("a link of the trie leads out of it")
    starts = units[links[units[inner] >> 8 & 1 == 1]] & 0x7FFFFFFF
    begins = np.flatnonzero(np.frombuffer(texts, np.uint8) & 0xC0 != 0x80)
    if not np.isin(starts, begins).all():
        raise ValueError("a link of the trie leads to no text")
    return max(1, longest)
