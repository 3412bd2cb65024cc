"""What the characters of a text say about its words, in every script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Ints
from minibert.recent import Recent

# First and last character of the blocks of scripts that do not part words with spaces.
WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x1AAF),  # Tai Le, New Tai Lue, Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x2FDF),  # radicals of Chinese characters
    (0x3005, 0x3007),  # signs among Chinese characters: repetition, closing, zero
    (0x3021, 0x30FF),  # numerals of Hangzhou, Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),  # Katakana, small
    (0x3400, 0x4DBF),  # Chinese characters
    (0x4E00, 0x9FFF),
    (0xA980, 0xA9FF),  # Javanese; Burmese, continued
    (0xAA60, 0xAADF),  # Burmese, continued; Tai Viet
    (0xF900, 0xFAFF),  # Chinese characters for compatibility
    (0xFF66, 0xFF9F),  # Katakana, halfwidth
    (0x1AFF0, 0x1B16F),  # kana, continued
    (0x20000, 0x3FFFF),  # Chinese characters, continued
)
# Korean has spaces, but writes its particles, which are no part of an answer, without one.
HANGUL = ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFFA0, 0xFFDC))
# Characters that belong to the one before them without being marks, as Unicode's categories go.
JOINING = (
    (0x0E33, 0x0E33),  # a vowel of Thai
    (0x0EB3, 0x0EB3),  # and of Lao
    (0x1160, 0x11FF),  # vowels and finals of Hangul that is taken apart
    (0x200C, 0x200D),  # what keeps letters from joining, or joins them
    (0xD7B0, 0xD7FF),  # vowels and finals of Hangul, continued
    (0xFF9E, 0xFF9F),  # sound marks of Katakana, halfwidth
    (0x1F3FB, 0x1F3FF),  # colours of skin
    (0xE0020, 0xE007F),  # tags, of which flags are made
)
# Two characters that make one: pictures that are joined, and letters that make a flag.
PICTURES = re.compile("\u200d.|[\U0001f1e6-\U0001f1ff]{2}")


def is_mark(char: str) -> bool:
    """Whether a character belongs to the one before it: an accent, a vowel sign, a variant.

    Example:
        >>> [is_mark(char) for char in ("\\u0301", "\\ufe0f", "e")]
        [True, True, False]
    """
    return unicodedata.category(char).startswith("M") or _within(char, JOINING)


def without_spaces(char: str) -> bool:
    """Whether a character is a letter of a script that does not part words with spaces.

    Example:
        >>> [without_spaces(char) for char in "港なไ한a。"]
        [True, True, True, False, False, False]
    """
    category = unicodedata.category(char)
    return _within(char, WITHOUT_SPACES) and (category[0] in "LM" or category == "Nl")


def may_end_within_words(char: str) -> bool:
    """Whether an answer may begin or end beside this letter without a space or punctuation.

    So it is in scripts without spaces, and in Korean.
    """
    return without_spaces(char) or _within(char, HANGUL)


def split_script(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Split text[begin:end] so that each character of a script without spaces is alone.

    Yields:
        First character of each part, and one past its last; what is between them stays together,
        and marks stay with what they are on.

    Example:
        >>> text = "在Norhaven港。"
        >>> [text[a:b] for a, b in split_script(text, 0, len(text))]
        ['在', 'Norhaven', '港', '。']
    """
    if not text.isascii():
        for at in range(begin + 1, end):
            if (without_spaces(text[at]) or without_spaces(text[begin])) and not is_mark(text[at]):
                yield begin, at
                begin = at
    yield begin, end


OTHER, LETTER, LONE_LETTER, MARK, SPACE = range(5)


class Borders(NamedTuple):
    """Of a text of N characters: before the first, between two, and behind the last.

    Arrays of N + 1 elements.
    """

    begin: Ints  # where an answer begins whose first token begins there
    end: Ints  # where an answer ends whose last token ends there
    between_words: NDArray[np.bool_]  # whether a word may begin or end there


def find_borders(text: str) -> Borders:
    """Where answers may begin and end, for their text to be made of whole characters or words.

    A mark belongs to the character before it, unless that is a space, as does the second of two
    characters that make one picture.  A word is a run of letters
    and digits with their marks; where spaces do not part words, each letter is one.

    Example:
        >>> find_borders("Jose\\u0301 won").end.tolist()
        [0, 1, 2, 3, 5, 5, 5, 7, 8, 9]
    """
    size = len(text)
    kind = {char: kind_of(char) for char in set(text)}
    kinds = np.array([*map(kind.__getitem__, text), OTHER], np.int8)  # and one behind the last
    for pair in () if text.isascii() else PICTURES.finditer(text):
        if unicodedata.category(text[pair.end() - 1]) == "So":
            kinds[pair.end() - 1] = MARK
    index = np.arange(size + 1, dtype=np.int32)
    base = np.maximum.accumulate(np.where(kinds == MARK, 0, index))  # what a mark belongs to
    mark = (kinds == MARK) & (kinds[base] != SPACE) & (kinds[base] != MARK)
    space = kinds == SPACE
    behind = np.minimum.accumulate(np.where(mark, size, index)[::-1])[::-1]  # no mark there
    filled = np.minimum.accumulate(np.where(space, size, index)[::-1])[::-1]  # no space there
    emptied = np.zeros(size + 1, np.int32)  # no space before it
    emptied[1:] = np.maximum.accumulate(np.where(space[:-1], 0, index[1:]))
    letter = np.where(mark, kinds[base], kinds) == LETTER
    between = ~mark
    between[1:] &= ~(letter[1:] & letter[:-1])
    return Borders(
        begin=np.where(mark, base, filled),
        end=np.where(space[np.maximum(behind - 1, 0)], emptied, behind),
        between_words=between,
    )


borders = Recent(find_borders, lambda found: len(found.begin))  # many questions share a text


def kind_of(char: str) -> int:
    """What a character is to the words of a text."""
    if is_mark(char):
        return MARK
    if char.isspace():
        return SPACE
    if may_end_within_words(char):
        return LONE_LETTER
    return LETTER if char.isalnum() else OTHER


@lru_cache(4096)
def _within(char: str, blocks: tuple[tuple[int, int], ...]) -> bool:
    """Whether a character is in one of some blocks."""
    return any(first <= ord(char) <= last for first, last in blocks)
