"""How objects show themselves in a notebook: in a line or two, whatever they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

LONGEST = 100  # characters of one value; beyond it texts are cut, and collections are counted
MESSAGE = 80  # characters of a value in a message


def short(value: object) -> str:
    """A value in a few words.

    Example:
        >>> import numpy as np
        >>> short(np.zeros((2, 3), np.float32)), short([1, 2]), short(range(5)), short([0] * 1000)
        ('float32[2, 3]', '[1, 2]', 'range(0, 5)', 'list of 1000')
        >>> short("ab" * 1000)[-18:]
        "ababab'... of 2000"
    """
    if (shape := getattr(value, "shape", ())) and (dtype := getattr(value, "dtype", None)):
        return f"{dtype}{list(shape)}"
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]!r}... of {len(value)}"
    # The first length spares the second one, which may take long to find.
    if isinstance(value, list | tuple | Mapping) and (
        len(value) > LONGEST or len(written(value, repr)) > LONGEST
    ):
        return f"{type(value).__name__} of {len(value)}"
    return written(value, repr)


def shown(value: object) -> str:
    """A value for a message: its repr, cut to 80 characters, whatever the value is.

    Example:
        >>> shown("a" * 100)[-5:], shown(10**5000), shown(type("Odd", (), {"__repr__": None})())
        ('aaaaa', 'an integer of 16610 bits', 'an object of type Odd')
    """
    if isinstance(value, int) and value.bit_length() > 256:  # too long to be turned into digits
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str):
        value = value[:MESSAGE]  # before it is escaped, which takes time for a book
    return written(value, repr)[:MESSAGE]


def spelled(value: object) -> str:
    """A name that a program keeps in an object of its own, as torch does: its str, as `shown`."""
    return written(value, str)[:MESSAGE]


def written(value: object, how: Callable[[object], str]) -> str:
    """What `repr` or `str` make of a value, or its type where they cannot."""
    try:
        return how(value)
    except Exception:  # whatever a stranger's class raises
        return f"an object of type {type(value).__name__}"


def short_repr(record: Any) -> str:
    """A dataclass with its values in a few words: `__repr__ = short_repr`."""
    listed = [field.name for field in fields(record) if field.repr]
    shown = (f"{name}={short(getattr(record, name))}" for name in listed)
    return f"{type(record).__name__}({', '.join(shown)})"


def changed_fields(record: Any) -> list[str]:
    """The fields of a dataclass that are not as they are by default, each as 'name=value'."""
    usual = type(record)()
    return [
        f"{field.name}={short(getattr(record, field.name))}"
        for field in fields(record)
        if field.repr and getattr(record, field.name) != getattr(usual, field.name)
    ]
