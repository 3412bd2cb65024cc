"""What options and inputs have in common: checks of values, columns, devices and dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from minibert.errors import InputError

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


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        InputError: naming the option and the value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


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
            f"attention and feed-forward; got {bits!r:.80}"
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
