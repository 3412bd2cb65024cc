"""Types of command line options."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def existing_folder(text: str) -> str:
    """An argparse type: a folder that is there, as a full path, for processes run elsewhere."""
    path = Path(text).expanduser().resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return str(path)


def program(text: str) -> str:
    """An argparse type: a program that is there, as a full path; links stay, as venvs need them."""
    found = shutil.which(os.path.expanduser(text))
    if found is None:
        raise argparse.ArgumentTypeError(f"there is no program {text!r}")
    return os.path.abspath(found)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def listed(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Make an argparse type: values with commas between them, each read by `parse`.

    Args:
        parse: raises ValueError for what it does not know.

    Example:
        >>> listed(int)("1,2")
        [1, 2]
    """

    def values(text: str) -> list[T]:
        try:
            return [parse(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return values


def one_of(*known: str) -> Callable[[str], str]:
    """A parser for `listed`: one of a few names."""

    def name(text: str) -> str:
        if text not in known:
            raise ValueError(f"must be of {', '.join(known)}")
        return text

    return name
