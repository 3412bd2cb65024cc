"""Files that are read and written, and what is said where that cannot be done."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from minibert.drafts import whole_file
from minibert.errors import InputError, ModelNotFoundError


def check_output(path: str | None) -> None:
    """Refuse an output that cannot be written, before hours are spent on what goes into it.

    Args:
        path: a file; None for standard output.

    Raises:
        InputError: its folder is not there or is not ours to write, it is a folder itself, or
            standard output is closed.
    """
    if path is None:
        if sys.stdout is None:
            raise InputError("standard output is closed; give --output FILE")
        return
    target = os.path.expanduser(path)
    folder = os.path.dirname(target) or "."
    if not os.path.isdir(folder):
        raise InputError(f"{path}: cannot be written: there is no folder {str(folder)!r}")
    try:
        os.stat(target)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name that the system does not allow
        raise unwritable(path, error) from None
    if os.path.isdir(target):
        raise InputError(f"{path}: cannot be written: it is a folder")
    if is_device(path):
        return  # its folder need not be ours
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written: the folder {str(folder)!r} is read-only")


def check_apart(inputs: Sequence[str], output: str | None) -> None:
    """Refuse an output that is an input too: it would be lost, or be read while it is written.

    Args:
        inputs: names of files; '-' for standard input.
        output: a file; None for standard output.

    Raises:
        InputError: the two are one file.
    """
    target = 1 if output is None else os.path.expanduser(output)
    same = False
    for name in inputs:
        with suppress(OSError, ValueError):  # one of them is not there, or no file can be named so
            same |= os.path.isfile(target) and os.path.samefile(0 if name == "-" else name, target)
    if same:
        raise InputError(f"{output or 'standard output'}: is an input too; choose another output")


def real_file(path: str) -> Path:
    """The file that a name stands for: not a link to it, which is left as it is."""
    target = os.path.expanduser(path)
    return Path(os.path.realpath(target) if os.path.islink(target) else target)


def is_device(path: str) -> bool:
    """Whether a name is that of a pipe or a device, which is written to and not replaced."""
    target = os.path.expanduser(path)
    return os.path.exists(target) and not os.path.isfile(target)


@contextmanager
def writing(path: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears only when it is complete.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        check_output(path)
        yield sys.stdout
        return
    encoding, errors = "utf-8", "backslashreplace"
    with naming(path):
        if is_device(path):
            with open(os.path.expanduser(path), "w", encoding=encoding, errors=errors) as out:
                yield out
            return
        with whole_file(real_file(path)) as file:
            out = io.TextIOWrapper(file, encoding, errors)
            try:
                yield out
            finally:
                out.detach()  # which writes what is waiting, and leaves the file open


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Say what it is that cannot be written.

    Raises:
        InputError: the system said so, or no file can have that name.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(os.path.expanduser(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unwritable(path, error) from None
    try:
        yield
    except ModelNotFoundError:  # an OSError too
        raise
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: str | Path, error: OSError | ValueError) -> InputError:
    """What there is to say of something that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{path}: cannot be written: {reason}")


def remedy(error: OSError) -> str:
    """What can be done so that something can be written the next time.

    Example:
        >>> remedy(OSError(errno.ENOSPC, "No space left on device"))
        'Make room'
        >>> remedy(PermissionError(errno.EACCES, "Permission denied"))
        'Mend that'
    """
    return "Make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Mend that"
