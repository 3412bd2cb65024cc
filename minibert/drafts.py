"""Files and folders that are written under another name until they are whole.

A draft lies beside what it is to become, is brought to the disk, and is then renamed.  So whoever
is killed, and whenever, leaves what was there before, or what was to be there.

What a killed process left is removed by the next one that writes in the same folder.  It must not
remove what another process is still writing: a draft is locked as long as whoever writes it lives,
and its name says on which machine that is, because not every network drive passes locks on.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

from minibert.progress import notice

NAME = re.compile(r"\.minibert-([0-9a-f]{8})-[a-z0-9_]{8}\.draft")
ASIDE = ".minibert-old"  # ends the name of a folder while another one takes its place
DAY = 24 * 60 * 60  # seconds; nobody writes a draft for so long
# What systems say that cannot bring a folder to the disk, or may not look at it.
NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Write a file that appears, or takes the place of the one before, when it is complete.

    Args:
        target: in a folder that is there.

    Yields:
        The file, under another name.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
        ValueError: no file can have the name.
    """
    sweep(target.parent)
    draft, handle = _begin(target.parent, folder=False)
    try:
        with os.fdopen(cast(int, handle), "wb") as file:
            yield file
            file.flush()
            os.chmod(draft, 0o644)  # mkstemp's files are for one user only
            os.fsync(file.fileno())
            if os.name != "nt":  # while it is locked; Windows renames nothing that is open
                os.replace(draft, target)
        if os.name == "nt":
            os.replace(draft, target)
        synchronise(target.parent)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Fill a folder that appears, or takes the place of the one before, when it is complete.

    Args:
        target: in a folder that is there.

    Yields:
        The folder, under another name, to be filled with files.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
        ValueError: no folder can have the name.
    """
    put_back(target)
    drop_aside(target)
    with draft_folder(target.parent) as draft:
        yield draft
        complete(draft)
        draft.chmod(0o755)  # mkdtemp's folders are for one user only
        _take_place(draft, target)
        synchronise(target.parent)


@contextmanager
def draft_folder(parent: Path) -> Iterator[Path]:
    """A folder under a draft's name, which is removed in the end with all that it then holds.

    Raises:
        OSError: it cannot be made.
    """
    sweep(parent)
    draft, handle = _begin(parent, folder=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if handle is not None:
            os.close(handle)
        if os.path.lexists(draft):  # what was there before, with files that are not ours to remove
            notice(f"minibert: {draft}: cannot be removed, and is not needed any more")


def complete(draft: Path) -> None:
    """Bring the files of a folder to the disk, readable for others.

    Raises:
        OSError: that cannot be done; a full disk may say so only now.
    """
    for path in draft.iterdir():
        path.chmod(0o644)
        synchronise(path)
    synchronise(draft)


def synchronise(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk.

    Raises:
        OSError: that cannot be done.
    """
    folder = path.is_dir()
    if os.name == "nt" and folder:  # Windows opens no folders
        return
    try:
        handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not folder or error.errno not in NO_FOLDERS:
            raise


# ---------------------------------------------------------------- one takes another's place


def _take_place(draft: Path, target: Path) -> None:
    """Rename a folder to where another one may be, which is then found under the draft's name.

    Raises:
        OSError: that cannot be done, and both are where they were.
    """
    if not os.path.lexists(target):
        os.replace(draft, target)
    elif not exchange(draft, target):
        aside = target.with_name(target.name + ASIDE)
        os.replace(target, aside)
        try:
            os.replace(draft, target)
        except BaseException:
            os.replace(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change their names in one step; False where the system cannot do that."""
    import ctypes  # here: few need it

    names = os.fsencode(one), os.fsencode(other)
    try:
        system = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(system.renamex_np(*names, 2) == 0)  # RENAME_SWAP
        here = -100  # AT_FDCWD
        return bool(system.renameat2(here, names[0], here, names[1], 2) == 0)  # RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return False


def put_back(target: Path) -> None:
    """Undo what a process left that was killed before a new folder was in the place of another."""
    with suppress(OSError, ValueError):
        aside = target.with_name(target.name + ASIDE)
        if aside.is_dir() and not os.path.lexists(target):
            os.replace(aside, target)


def drop_aside(target: Path) -> None:
    """Remove what a process of this user left that was killed after that."""
    with suppress(OSError, ValueError):
        aside = target.with_name(target.name + ASIDE)
        if aside.is_dir() and os.path.lexists(target) and _is_mine(aside.lstat()):
            shutil.rmtree(aside, ignore_errors=True)


# ---------------------------------------------------------------- drafts of others


def sweep(folder: Path) -> None:
    """Remove the drafts that killed processes of this user left in a folder."""
    with suppress(OSError, ValueError):
        names = os.listdir(folder)
        for name in names:
            if NAME.fullmatch(name):
                with suppress(OSError):
                    _remove_if_abandoned(folder / name)


def try_lock(handle: int) -> bool | None:
    """Lock an open file or folder, without waiting, until it is closed.

    Returns:
        Whether it is ours now, False: another process has it; None where there are no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has none
        return None
    return True


def _is_mine(facts: os.stat_result) -> bool:
    """Whether a file or folder is this user's."""
    return not hasattr(os, "geteuid") or facts.st_uid == os.geteuid()


def _remove_if_abandoned(draft: Path) -> None:
    """Remove a draft if nobody writes it any more.

    Raises:
        OSError: it is gone already, or cannot be looked at.
    """
    facts = draft.lstat()
    folder = stat.S_ISDIR(facts.st_mode)
    if not _is_mine(facts) or not (folder or stat.S_ISREG(facts.st_mode)):
        return
    old = time.time() - facts.st_mtime > DAY
    if os.name == "nt":
        handle, free = None, old
    else:
        flags = os.O_RDONLY if folder else os.O_RDWR  # a lock on a network drive has to write
        handle = os.open(draft, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
        got = try_lock(handle)
        here = draft.name.split("-")[1] == _machine()
        free = got is not False and (old or (here and got is True))
    try:
        if free and folder:
            shutil.rmtree(draft, ignore_errors=True)
        elif free:
            draft.unlink()
    finally:
        if handle is not None:
            os.close(handle)


def _begin(parent: Path, folder: bool) -> tuple[Path, int | None]:
    """Make a draft, a file or a folder, and lock it.

    Returns:
        Its name; and its handle, which is None for a folder on Windows.

    Raises:
        OSError: it cannot be made.
    """
    prefix, suffix = f".minibert-{_machine()}-", ".draft"
    while True:
        handle = None
        if folder:
            draft = Path(tempfile.mkdtemp(suffix, prefix, parent))
        else:
            handle, name = tempfile.mkstemp(suffix, prefix, parent)
            draft = Path(name)
        if os.name == "nt":
            return draft, handle
        # Another process that sweeps may see a draft before it is locked.
        with suppress(FileNotFoundError):
            handle = os.open(draft, os.O_RDONLY) if handle is None else handle
            if try_lock(handle) is not False and os.path.samestat(os.stat(draft), os.fstat(handle)):
                return draft, handle
        if handle is not None:
            os.close(handle)


@cache
def _machine() -> str:
    """What tells this machine from others."""
    return f"{zlib.crc32(platform.node().encode()):08x}"
