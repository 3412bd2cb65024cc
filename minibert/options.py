"""What options and inputs have in common: checks of values, columns, devices and dtypes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Rational, Real
from pathlib import Path
from typing import Any

from minibert.errors import InputError
from minibert.reprs import shown

DEVICES = ("auto", "cpu", "cuda", "reference")
DTYPES = ("float32", "bfloat16", "float16", "int8")  # in which matrices are multiplied
# Those in which each device can compute, the default first.
DEVICE_DTYPES = {
    "cpu": ("float32", "bfloat16", "int8"),
    "cuda": ("float32", "float16", "bfloat16"),
    "reference": ("float32",),
}
# What turns a column into a list: of NumPy, pandas and torch; of pyarrow; of polars.
LISTERS = ("tolist", "to_pylist", "to_list")
STORED_DTYPES = ("float32", "float16", "int8")  # in which `convert` writes numbers
STORED_BITS = range(4, 9)  # of an integer that it writes


def check_count(name: str, value: object, least: int, bits: int = 63) -> int:
    """A whole number of at least `least` as Python's own: those of NumPy wrap around.

    Args:
        name: of the option, for the message.
        value: a whole number of any program's; no truth value.
        least: what it may be at least.
        bits: how many it may have at most; larger ones are a mistake, and cannot be printed.

    Raises:
        InputError: naming the option and the value.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        count = int(value)
        if least <= count < 2**bits:
            return count
    beyond = f" and below 2**{bits}" if isinstance(value, Integral) and value >= 2**bits else ""
    raise InputError(
        f"{name} must be a whole number of at least {least}{beyond}, got {shown(value)}"
    )


def check_number(name: str, value: object) -> float:
    """A number of any program's as a float, also an infinite one; no truth value and no NaN.

    Raises:
        InputError: naming the option and the value.
    """
    if (number := as_float(value)) is None:
        large = isinstance(value, Rational) and not isinstance(value, bool)
        kind = "a number that a float can hold" if large else "a number"
        raise InputError(f"{name} must be {kind}, got {shown(value)}")
    return number


def as_float(value: object) -> float | None:
    """A number as a float; None for what is none, for NaN, and for what no float can hold.

    Example:
        >>> import numpy as np
        >>> as_float(np.float32(0.5)), as_float(10**400), as_float(True), as_float("1")
        (0.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number or a fraction of hundreds of digits
        return None
    return None if math.isnan(number) else number


def check_flag(name: str, value: object) -> bool:
    """True or False, also as NumPy has them.

    Raises:
        InputError: naming the option and the value.
    """
    import numpy as np  # here: --help needs no NumPy

    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def path_text(value: object) -> str | None:
    """The name of a file or folder as a text; None if the value is no name."""
    try:
        return os.fsdecode(value) if isinstance(value, str | os.PathLike) else None
    except TypeError:  # what an object gives as its path is no text
        return None


def expanded(text: str) -> str:
    """The name of a file or folder with what ~ stands for; as it is, if no file can have it."""
    try:
        return os.path.expanduser(text)
    except ValueError:  # a NUL or half of a surrogate pair in the name of a user
        return text


def check_path(name: str, value: object) -> Path:
    """The name of a folder as a path, with what ~ stands for.

    Raises:
        InputError: it is none, or none that a folder can have.
    """
    text = path_text(value)
    if not text:
        raise InputError(f"{name} must be a folder's name, got {shown(value)}")
    if not may_be_named(text):
        raise InputError(f"{shown(text)}: no folder can have that name")
    return Path(expanded(text))


def may_be_named(text: str) -> bool:
    r"""Whether a file may have such a name; where the system ends a name at \0, and takes bytes.

    Example:
        >>> may_be_named("a\n"), may_be_named("a\0"), may_be_named("\ud800")
        (True, False, False)
    """
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a character
        return False


def check_column(name: str, value: object) -> str:
    """The name of a column of a table, or the beginning of some.

    Raises:
        InputError: it is no text, or holds half of a character, which tables cannot.
    """
    if not isinstance(value, str):
        raise InputError(f"{name} must be the name of a column, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} must be UTF-8, got {shown(value)}") from None
    return value


def is_one_of(value: object, choices: Sequence[str]) -> bool:
    """Whether a value is one of some texts; arrays, which `in` cannot compare, are none."""
    return isinstance(value, str) and value in choices


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is not one of some texts.

    Raises:
        InputError: naming the option and the value.
    """
    if not is_one_of(value, choices):
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")


def settle(record: Any, name: str, value: object) -> None:
    """Keep in a frozen record, while it is made, what a check made of one of its fields."""
    object.__setattr__(record, name, value)


def listed(values: Any) -> Any:
    """A column as a list, whatever program it comes from; everything else as it is.

    Example:
        >>> import numpy as np
        >>> listed(np.array(["a", "b"])), listed(("a", "b")), listed(np.str_("a")), listed("ab")
        (['a', 'b'], ['a', 'b'], 'a', 'ab')
    """
    if not isinstance(values, type | list | Mapping):
        for name in LISTERS:
            if callable(lister := getattr(values, name, None)):
                return lister()
        if isinstance(values, Sequence) and not isinstance(values, str | bytes | bytearray):
            return list(values)
    return values


def check_bits(bits: int | Sequence[int]) -> tuple[int, int, int]:
    """The bits of word embeddings, of attention and of the feed-forward part; one number for all.

    Example:
        >>> check_bits(6), check_bits([5, 6, 6])
        ((6, 6, 6), (5, 6, 6))

    Raises:
        InputError: it is neither one number nor three, or one is not among `STORED_BITS`.
    """
    each = list(bits) if isinstance(bits, Sequence) and not isinstance(bits, str) else [bits] * 3
    if len(each) != 3 or not all(
        isinstance(count, Integral) and not isinstance(count, bool) and count in STORED_BITS
        for count in each
    ):
        raise InputError(
            "bits must be a whole number from 4 to 8, or three of them, for word embeddings, "
            f"attention and feed-forward; got {shown(bits)}"
        )
    return int(each[0]), int(each[1]), int(each[2])


def gpu_index(device: str) -> int | None:
    """The number in 'cuda' or 'cuda:1'; None for another device.

    Example:
        >>> [gpu_index(device) for device in ("cuda", "cuda:1", "cpu", "cuda:x")]
        [0, 1, None, None]
    """
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (
        colon and not (number.isascii() and number.isdigit() and len(number) < 4)
    ):
        return None
    return int(number or 0)
