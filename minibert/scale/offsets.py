"""Places in a text as other languages count them.

Here a place is a number of code points, as in Python and in SQL.  A String of Java, Scala, C# or
JavaScript is indexed by UTF-16 units, and one of Rust or Go by the bytes of UTF-8.
"""

from __future__ import annotations

from minibert.errors import InputError
from minibert.reprs import shown

# Encoding -> Python's name of it without a byte order mark, and the bytes of a unit.
UNITS = {"utf-16": ("utf-16-le", 2), "utf-8": ("utf-8", 1)}


def offset_in(encoding: str, text: str, offset: int) -> int:
    """How many units of an encoding stand before a character of a text.

    Args:
        encoding: 'utf-16' (units of two bytes: Java, Scala, C#, JavaScript) or 'utf-8' (bytes:
            Rust, Go).
        text: the text.
        offset: in code points, as `Answer.start` and `Answer.end` are.

    Raises:
        InputError: the encoding is another one, or the offset is not within the text.

    Example:
        >>> text = "🙂 Ada"
        >>> [offset_in(encoding, text, 2) for encoding in ("utf-16", "utf-8")]
        [3, 5]
    """
    if encoding not in UNITS:
        raise InputError(f"encoding must be one of {', '.join(UNITS)}, got {shown(encoding)}")
    if not 0 <= offset <= len(text):
        raise InputError(
            f"offset must be from 0 to {len(text)}, the length of the text, got {shown(offset)}"
        )
    name, size = UNITS[encoding]
    return len(text[:offset].encode(name, "surrogatepass")) // size
