"""Compiled code on disk, for both kinds of kernels.

A file is written under another name and then renamed, so two processes that compile at once both
leave a whole one, and it begins with a hash of its contents, so a damaged one is compiled again.
That is no protection against somebody who may write to the folder: what lies there is run.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


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
    """The machine code in a file, or None if there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def write_cache(path: Path, code: bytes) -> bool:
    """Keep machine code; False if the folder cannot be written, which only costs time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.chmod(temporary, 0o644)  # mkstemp's files are for one user only
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C, too, leaves nothing behind
            with suppress(OSError):
                os.unlink(temporary)
            raise
        return True
    return False
