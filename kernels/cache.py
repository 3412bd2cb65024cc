"""Compiled code on disk, for both kinds of kernels.

What lies in the folder is run, so only what this user or root wrote is read: the folder and the
file must be theirs, and nobody else may be able to write them.  A folder that is made here is for
its user alone.  Windows has owners and rights of another kind, and keeps each user's folder apart.

A file begins with a hash of its name and its code, so one that is damaged, or was made for another
kernel or by another version, is compiled again.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from minibert.drafts import whole_file
from minibert.files import open_file

LARGEST = 2**28  # bytes that are read; the kernels of a program take 2**18

# Numbers of processors in ELF, the format of machine code on Linux.
PROCESSORS = {"x86_64": 62, "aarch64": 183, "cuda": 190}

_warned: set[str] = set()


def cache_folder() -> Path:
    """Where compiled kernels are kept: MINIBERT_CACHE_DIR, or the user's cache folder."""
    if not (folder := os.environ.get("MINIBERT_CACHE_DIR")):
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
        elif sys.platform == "darwin":
            base = "~/Library/Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = os.path.join(base, "minibert")
    folder = os.path.expanduser(folder)
    # A home that the system does not know is a place where nothing can be kept, not one named "~".
    return Path(os.devnull if folder.startswith("~") else "", folder)


def read_cache(path: Path) -> bytes | None:
    """The machine code in a file, or None.

    None if there is no file, if it is damaged, or if others than this user and root may have
    written it, of which a warning tells.
    """
    if (reason := distrusted(path.parent)) is not None:
        _warn(reason)
        return None
    try:
        with open_file(path) as file:
            if (reason := _others(path, os.fstat(file.fileno()))) is not None:
                _warn(reason)
                return None
            content = file.read(LARGEST)
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if _digest(path.name, code) == digest else None


def write_cache(path: Path, code: bytes) -> bool:
    """Keep machine code; False if the folder cannot be written, which only costs time."""
    with suppress(OSError, ValueError):
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(0o700, exist_ok=True)
        if distrusted(path.parent) is None:
            with whole_file(path) as file:
                file.write(_digest(path.name, code) + code)
            return True
    return False


def distrusted(folder: Path) -> str | None:
    """Why nothing in a folder is used, which may be a link to one; None if it may be.

    Who may write to the folder around it can put another folder in its place, but not one of ours.
    """
    try:
        return _others(folder, os.stat(folder))
    except (OSError, ValueError):
        return None  # there is none


def sound_elf(code: bytes, processor: str) -> bool:
    """Whether machine code is in the format that loaders expect, which trust it.

    Args:
        code: of an object file or of a CUDA module.
        processor: in PROCESSORS.

    Returns:
        Whether it is a whole ELF file with 64 bits for this processor, all of its sections in it.
    """
    header = code[:64]
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        return False
    begin, size, count = _number(header, 40, 8), _number(header, 58, 2), _number(header, 60, 2)
    if _number(header, 18, 2) != PROCESSORS[processor] or size != 64 or not count:
        return False
    if begin + count * size > len(code):
        return False
    for at in range(begin, begin + count * size, size):
        kind, offset = _number(code, at + 4, 4), _number(code, at + 24, 8)
        length, alignment = _number(code, at + 32, 8), _number(code, at + 48, 8)
        inside = kind == 8 or offset + length <= len(code)  # 8: takes no room in the file
        if not inside or alignment & (alignment - 1):
            return False
    return True


def _number(content: bytes, at: int, size: int) -> int:
    """An unsigned number of so many bytes."""
    return int.from_bytes(content[at : at + size], "little")


def _digest(name: str, code: bytes) -> bytes:
    """What a file begins with, whose name says what its code was made from."""
    return hashlib.sha256(name.encode() + b"\0" + code).digest()


def _others(path: Path, facts: os.stat_result) -> str | None:
    """Why others than this user and root may have written a file or a folder; None if not."""
    if not hasattr(os, "geteuid"):  # Windows
        return None
    if facts.st_uid not in (os.geteuid(), 0):
        return f"{path}: belongs to another user (number {facts.st_uid})"
    if facts.st_mode & 0o022:
        return f"{path}: others may write it (mode {stat.S_IMODE(facts.st_mode):o})"
    return None


def _warn(reason: str) -> None:
    """Say once why kernels are compiled anew."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"{reason}, so kernels in it are not used, and are compiled anew. Remove it, take "
            "others their rights (chmod go-w), or name another folder in MINIBERT_CACHE_DIR.",
            UserWarning,
            stacklevel=3,
        )
