"""Options of the command line: their types, and those that several commands have."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmark.machine import count_cores
from benchmark.workload import Shape

T = TypeVar("T")

# ---------------------------------------------------------------- types


def existing_folder(text: str) -> str:
    """An argparse type: a folder that is there, as a full path, for processes run elsewhere."""
    path = Path(text).expanduser().resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return str(path)


def new_file(text: str) -> Path:
    """An argparse type: a file that can be written, because its folder is there."""
    path = Path(text).expanduser()
    existing_folder(str(path.parent))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    return path


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


def thread_count(text: str) -> int:
    """An argparse type: a number of threads that this process may use, or 'all'."""
    threads = count_cores() if text == "all" else int(text)
    if not 1 <= threads <= count_cores():
        raise argparse.ArgumentTypeError(f"this process may use {count_cores()} cores")
    return threads


def listed(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Make an argparse type: values with commas between them, each read by `parse`.

    Args:
        parse: raises ValueError, or argparse's error, for what it does not know.

    Example:
        >>> listed(int)("1,2")
        [1, 2]
    """

    def values(text: str) -> list[T]:
        try:
            return [parse(part) for part in text.split(",")]
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return values


def one_of(*known: str) -> Callable[[str], str]:
    """A parser for `listed`: one of a few names."""

    def name(text: str) -> str:
        if text not in known:
            raise ValueError(f"must be of {', '.join(known)}")
        return text

    return name


def shape_name(text: str) -> str:
    """A parser for `listed`: the name of a shape."""
    Shape.parse(text)
    return text


# ---------------------------------------------------------------- options

SHARED: dict[str, dict[str, Any]] = {
    "--shapes": {
        "type": listed(shape_name),
        "metavar": "L/D/H,...",
        "help": "layers/hidden/heads of random models; of BERTs, or after a family's name, such as "
        "distilbert/6/768/12 and roberta/12/768/12",
    },
    "--rounds": {"type": positive, "metavar": "N", "help": "rounds that count"},
    "--keep": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "keep the models there for the next run",
    },
    "--json": {
        "type": new_file,
        "metavar": "FILE",
        "help": "also write every number there, as they come",
    },
}


def add_option(parser: argparse.ArgumentParser, name: str, usual: Any = None, **more: Any) -> None:
    """Add an option.

    Args:
        parser: of a command.
        name: with its dashes.
        usual: its default, as the help shows it; it is the default, too, unless `more` has one.
        more: what argparse takes, besides or instead of what SHARED says.
    """
    settings = {"default": usual, **SHARED.get(name, {}), **more}
    if usual is not None:
        shown = ",".join(map(str, usual)) if isinstance(usual, list) else usual
        settings["help"] += f" (default: {shown})"
    parser.add_argument(name, **settings)


def add_names(
    parser: argparse.ArgumentParser, name: str, known: tuple[str, ...], what: str
) -> None:
    """Add an option that takes some of the known names, and by default all."""
    add_option(
        parser, name, list(known), type=listed(one_of(*known)), metavar="NAME,...", help=what
    )
