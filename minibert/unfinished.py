"""The file of a run that can be interrupted, and goes on where it was.

Its first line says what runs: the model and the settings that results depend on.  Each result is a
line after it, written as it comes.  Whoever runs the same again finds them there; when the run is
complete the file goes away.  A killed process loses nothing that is written.  A power cut may lose
the last lines, since they are brought to the disk once a second; those are computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from minibert import __version__
from minibert.documents import to_json
from minibert.drafts import synchronise, try_lock
from minibert.errors import InputError, ModelNotFoundError
from minibert.files import unwritable
from minibert.model import Model

INTERVAL = 1.0  # seconds of results that a power cut may lose


def header_of(model: Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to go on: the model and how it runs, and the settings."""
    tokenizer = model.tokenizer.backend.to_str().encode()
    return {
        "minibert": __version__,
        **settings,
        "device": model.device,
        "dtype": model.dtype,
        "model": model.files.digest() if model.files else model.name,
        "tokenizer": hashlib.sha256(tokenizer).hexdigest(),
    }


@contextmanager
def unfinished(path: Path, header: Mapping[str, Any], overwrite: bool) -> Iterator[BinaryIO]:
    """Open the file of a run, a new one or one that was interrupted, until the run is complete.

    Args:
        path: of the file.
        header: of the run, as `header_of` gives it.
        overwrite: begin again where the run there had other settings, rather than refuse.

    Yields:
        The file, open for reading and appending, at the line after the header.  `lines_of` reads
        what is there, and has to, before anything is written.

    Raises:
        InputError: the file cannot be written, is of another kind or of a run with other settings,
            or another run is writing there.
        KeyboardInterrupt: as it came, and saying that the run can go on.
    """
    header = json.loads(to_json(header))  # as it reads when it comes back
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
        raise InputError(f"{path}: is not a file of an earlier run; remove it")
    try:
        with path.open("a+b") as file:
            lock(file, path)
            file.seek(0)
            first = file.readline()
            if not first.endswith(b"\n"):
                if not to_json(header).encode().startswith(first):
                    raise InputError(f"{path}: is not the file of an earlier run; remove it")
                begin_again(file, header)
                synchronise(path.parent)  # which names the file
            elif different := differences(path, first, header):
                if not overwrite and file.read(1):
                    raise InputError(
                        f"{path}: an unfinished run with other settings: {'; '.join(different)}. "
                        "Give the same to go on with it, choose another output, or begin again "
                        "with --overwrite."
                    )
                begin_again(file, header)
            try:
                yield file
            except BaseException as stop:
                with suppress(OSError):  # it may be the disk that fails
                    os.fsync(file.fileno())
                if not isinstance(stop, KeyboardInterrupt):
                    raise
                raise type(stop)(
                    f"what is finished is kept in {path}; the same command goes on from there"
                ) from None
            if os.name != "nt":  # while it is locked; Windows cannot remove what is open
                path.unlink()
        if os.name == "nt":
            path.unlink()
    except ModelNotFoundError:  # an OSError too
        raise
    except OSError as error:
        if error.filename not in (None, str(path)):  # of something else, in the midst of the run
            raise
        raise unwritable(path, error) from None


def begin_again(file: BinaryIO, header: Mapping[str, Any]) -> None:
    """Leave nothing but the header in the file of a run."""
    file.truncate(0)
    file.write(to_json(header).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def keeper(file: BinaryIO) -> Callable[[bytes], None]:
    """A function that adds a line to the file of a run, and brings it to the disk once a second."""
    brought = time.monotonic()

    def keep(line: bytes) -> None:
        nonlocal brought
        file.write(line + b"\n")
        file.flush()
        if time.monotonic() - brought >= INTERVAL:
            os.fsync(file.fileno())
            brought = time.monotonic()  # a slow disk gets its second, too

    return keep


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines that follow in the file of a run; one that was cut off at the end is dropped."""
    while line := file.readline():
        if not line.endswith(b"\n"):
            file.truncate(file.tell() - len(line))
            return
        yield line[:-1]


def lock(file: BinaryIO, path: Path) -> None:
    """Refuse a second run that writes the same file, where the system can tell.

    Raises:
        InputError: another process is writing there.
    """
    if try_lock(file.fileno()) is False:
        raise InputError(f"{path}: another run is writing there")


def differences(path: Path, line: bytes, header: Mapping[str, Any]) -> list[str]:
    """What a run that was begun before had other than the one that wants to go on.

    Args:
        path: of its file, for the message.
        line: the first of the file.
        header: of the run that wants to go on.

    Raises:
        InputError: the line is not the header of a run.
    """
    try:
        before = json.loads(line)
    except (ValueError, RecursionError):
        before = None
    if not isinstance(before, dict) or "minibert" not in before:
        raise InputError(f"{path}: is not the file of an earlier run; remove it")
    return [
        f"{name} was {before.get(name)!r:.40} and is {value!r:.40}"
        for name, value in header.items()
        if before.get(name) != value
    ]
