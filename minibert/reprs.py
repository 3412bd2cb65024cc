"""How objects show themselves in a notebook: in a line or two, whatever they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

LONGEST = 100  # characters of one value; beyond it texts are cut, and collections are counted


def short(value: object) -> str:
    """A value in a few words.

    Example:
        >>> short(np.zeros((2, 3), np.float32)), short([1, 2]), short(range(5)), short([0] * 1000)
        ('float32[2, 3]', '[1, 2]', 'range(0, 5)', 'list of 1000')
        >>> short("ab" * 1000)[-18:]
        "ababab'... of 2000"
    """
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]!r}... of {len(value)}"
    # The first length spares the second one, which may take long to find.
    if isinstance(value, list | tuple | Mapping) and (
        len(value) > LONGEST or len(repr(value)) > LONGEST
    ):
        return f"{type(value).__name__} of {len(value)}"
    return repr(value)


def short_repr(record: Any) -> str:
    """A dataclass with its values in a few words: `__repr__ = short_repr`."""
    shown = (f"{field.name}={short(getattr(record, field.name))}" for field in fields(record))
    return f"{type(record).__name__}({', '.join(shown)})"


def changed_fields(record: Any) -> list[str]:
    """The fields of a dataclass that are not as they are by default, each as 'name=value'."""
    usual = type(record)()
    return [
        f"{field.name}={short(getattr(record, field.name))}"
        for field in fields(record)
        if getattr(record, field.name) != getattr(usual, field.name)
    ]
