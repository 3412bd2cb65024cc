"""Makes the three models that choose the tokens of a word, of vocabularies that were checked.

WordPiece is BERT's, BPE is RoBERTa's, Unigram is that of XLM-R, CamemBERT and ALBERT.  The
`tokenizers` package panics over some wrong vocabularies, and takes others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import models

from minibert.config import LARGEST_SIZE
from minibert.errors import TokenizerError
from minibert.reprs import shown

# Pieces are looked for from each letter on: the longest one bounds the time.  SentencePiece makes
# them of up to 16 characters, but for those that its user wanted.
LONGEST_PIECE = 256
LARGEST_SCORE = 10**9  # scores are logarithms of probabilities: families have -1 to -20


def _check_vocabulary(file: Path, vocab: Any, unknown: str | None) -> None:
    """Refuse what is no vocabulary: tokens and their numbers, the unknown one among them."""
    if not isinstance(vocab, dict) or not vocab:
        raise TokenizerError(f"{file}: its vocabulary must be an object of tokens and their ids")
    numbers = vocab.values()
    if set(map(type, numbers)) != {int} or min(numbers) < 0 or max(numbers) >= LARGEST_SIZE:
        raise TokenizerError(
            f"{file}: the ids of its vocabulary must be whole numbers from 0 to {LARGEST_SIZE - 1}"
        )
    if unknown is not None and unknown not in vocab:
        raise TokenizerError(
            f"{file}: its vocabulary has no {shown(unknown)}, which stands for what is unknown"
        )


def word_pieces(file: Path, vocab: Any, options: Mapping[str, Any]) -> models.WordPiece:
    """BERT's model."""
    _check_vocabulary(file, vocab, options.get("unk_token", "[UNK]"))
    return models.WordPiece(vocab, **options)


def byte_pairs(
    file: Path, vocab: Any, merges: Any, options: Mapping[str, Any] | None = None
) -> models.BPE:
    """RoBERTa's model; each merge is a text of two tokens with a space between, or a pair.

    Raises:
        TokenizerError: a merge names a token that the vocabulary lacks, or would make one.
    """
    options = options or {}
    _check_vocabulary(file, vocab, options.get("unk_token"))
    if not isinstance(merges, list):
        raise TokenizerError(f"{file}: its merges must be a list, got {shown(merges)}")
    prefix = options.get("continuing_subword_prefix", "")
    pairs = []
    for merge in merges:
        if isinstance(merge, str) and merge.startswith("#version"):
            continue
        parts = merge.split(" ") if isinstance(merge, str) else merge
        pair = tuple(parts) if isinstance(parts, list) else ()
        if list(map(type, pair)) != [str, str]:
            raise TokenizerError(f"{file}: a merge must be two tokens, got {shown(merge)}")
        first, second = pair
        made = first + second[len(prefix) :] if second.startswith(prefix) else ""
        if not (first in vocab and second in vocab and made in vocab):
            raise TokenizerError(
                f"{file}: the merge {shown(merge)} needs or makes a token that the vocabulary lacks"
            )
        pairs.append(pair)
    return models.BPE(vocab, pairs, **options)


def unigram(file: Path, pieces: Any, unknown: Any, byte_fallback: bool = False) -> models.Unigram:
    """XLM-R's model.

    Args:
        file: where it comes from.
        pieces: of which each must be a text and the logarithm of its probability.
        unknown: must be the number of the piece for what is unknown.
        byte_fallback: whether bytes stand for what is unknown.
    """
    are_pairs = isinstance(pieces, list) and set(map(type, pieces)) <= {list, tuple}
    if not are_pairs or set(map(len, pieces)) != {2}:
        raise TokenizerError(f"{file}: its vocabulary must be a list of pieces and their scores")
    pairs = list(map(tuple, pieces))
    texts, scores = [text for text, _ in pairs], [score for _, score in pairs]
    if set(map(type, texts)) != {str} or max(map(len, texts)) > LONGEST_PIECE:
        raise TokenizerError(
            f"{file}: its pieces must be texts of at most {LONGEST_PIECE} characters"
        )
    numbers = set(map(type, scores)) <= {int, float}
    if not (numbers and max(map(abs, scores)) <= LARGEST_SCORE) or any(map(math.isnan, scores)):
        raise TokenizerError(
            f"{file}: the scores of its pieces must be numbers from {-LARGEST_SCORE} to "
            f"{LARGEST_SCORE}"
        )
    if type(unknown) is not int or not 0 <= unknown < len(pieces):
        raise TokenizerError(
            f"{file}: the number of the piece for what is unknown must be one of its "
            f"{len(pieces)} pieces, got {shown(unknown)}"
        )
    return models.Unigram(pairs, unknown, byte_fallback)
