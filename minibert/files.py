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


@contextmanager
def writing(path: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears only when it is complete.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        if sys.stdout is None:
            raise InputError("standard output is closed; give --output FILE")
        yield sys.stdout
        return
    target = Path(path)
    if target.exists() and not target.is_file():  # a pipe or /dev/null is no file to be replaced
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
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
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
