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

from minibert.errors import ModelNotFoundError, TokenizerError
from minibert.files import LARGEST_VOCABULARY, read_file

# Kinds of a piece that are not plain.
CONTROL, USER_DEFINED = 3, 4
UNIGRAM = 1  # kind of a model
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
                pieces.append(Piece(piece[1].decode(), score, piece.get(3, 1)))
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
        unknown, kind = trainer.get(40, 0), trainer.get(3, UNIGRAM)
        if not 0 <= unknown < len(pieces):
            raise ValueError(f"of its {len(pieces)} pieces none stands for what is unknown")
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
        number |= (byte & 127) << shift
        shift += 7
        at += 1
    return number | byte << shift, at + 1
