"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

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
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be written: {reason}") from None
    if os.path.isdir(target):
        raise InputError(f"{path}: cannot be written: it is a folder")
    if os.path.exists(target) and not os.path.isfile(target):
        return  # a pipe or a device, whose folder need not be ours
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written: the folder {str(folder)!r} is read-only")


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
    target = Path(os.path.expanduser(path))
    if os.path.exists(target) and not os.path.isfile(target):  # a pipe or a device, not replaced
        try:
            with open(target, "w", encoding="utf-8", errors="backslashreplace") as out:
                yield out
        except ModelNotFoundError:  # an OSError too
            raise
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None
        return
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be written: {reason}") from None
    try:
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as out:
            yield out
        os.chmod(draft, 0o644)  # mkstemp's files are for one user only
        os.replace(draft, target)
    except ModelNotFoundError:  # an OSError too
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        Path(draft).unlink(missing_ok=True)
