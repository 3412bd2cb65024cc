"""Files that are read without waiting, and written whole or not at all."""

from __future__ import annotations

import errno
import io
import json
import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from minibert.drafts import whole_file
from minibert.errors import InputError, ModelNotFoundError

# ---------------------------------------------------------------- reading

# Windows has other pipes, and does not turn line ends around if it is told so.
WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)

PATIENCE = 10.0  # seconds for somebody to write into a pipe that is to be read

# Bytes of a JSON file in a model's folder.  As Python's objects they take up to 50 times as much;
# config.json has 1,000, the index of a model in 200 parts 100,000, and 30,000 added tokens take
# 3,000,000.
LARGEST_JSON = 4_000_000
# And of a file with a vocabulary: XLM-R's 250,000 pieces fill a tokenizer.json of 17,000,000.
LARGEST_VOCABULARY = 100_000_000


_BOUNDED: ContextVar[bool] = ContextVar("bounded", default=True)
LIFTED_BY = "minibert.without_bounds() or --no-bounds lifts this bound"


@contextmanager
def without_bounds() -> Iterator[None]:
    """Within it, files are read that no honest file is like, whatever memory that takes.

    What is bounded stands in minibert/checkpoints/README.md; the error of a file that was refused
    names this function.  It is for files whose origin is known, and holds for one thread.

    Example:
        >>> with without_bounds():
        ...     bound(5) > 10**9
        True
    """
    before = _BOUNDED.set(False)
    try:
        yield
    finally:
        _BOUNDED.reset(before)


def bound(most: int) -> int:
    """The most that a file may take of something; no bound within `without_bounds`."""
    return most if _BOUNDED.get() else sys.maxsize


def present(path: str | os.PathLike[str]) -> bool:
    """Whether a file is there, or something that is refused when it is opened in its place.

    A file that may be missing is looked for so: a pipe, a folder or a broken link of its name is a
    mistake, and says so, rather than being passed over.
    """
    return os.path.lexists(path)


def open_file(path: str | os.PathLike[str], *, pipes: bool = False) -> io.BufferedReader:
    """Open a file for reading, without waiting for anybody.

    What opens as a file but is none (a folder, a pipe, a device) would be waited for, or have no
    end.  What was opened is looked at, and not what had that name a moment before.  A pipe that may
    be one has as long as `PATIENCE` for somebody to write into it.

    Args:
        path: of the file.
        pipes: whether a pipe or a terminal is as good: `<(command)` of a shell, or /dev/stdin.

    Raises:
        OSError: it cannot be opened, or is no file; its strerror says why.
    """
    try:
        handle = os.open(path, READ | WITHOUT_WAITING)
    except ValueError:  # a NUL in the name, or half of a surrogate pair
        raise OSError(errno.EINVAL, "no file can have such a name", path) from None
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "it is a socket or a device, not a file", path) from None
        if error.errno == errno.ENOENT and os.path.islink(path):
            raise OSError(errno.ENOENT, "it is a link to what is not there", path) from None
        raise
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", path)
        if not (stat.S_ISREG(mode) or (pipes and (stat.S_ISFIFO(mode) or os.isatty(handle)))):
            kind = "a pipe" if stat.S_ISFIFO(mode) else "a device"
            raise OSError(errno.EINVAL, f"it is {kind}, not a file", path)
        if stat.S_ISFIFO(mode) and not has_writer(handle):
            raise OSError(errno.EPIPE, "it is a pipe that nobody writes into", path)
        if WITHOUT_WAITING:
            os.set_blocking(handle, True)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def has_writer(pipe: int) -> bool:
    """Whether something comes out of a pipe, or may come: somebody has it open to write.

    Args:
        pipe: a handle that does not wait.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if poll.poll(PATIENCE * 1000):
        return True
    try:
        os.read(pipe, 1)
    except BlockingIOError:  # what a writer has not written yet
        return True
    return False


def read_file(
    path: str | os.PathLike[str], *, at_most: int | None = None, pipes: bool = False
) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        at_most: bytes; None: any number.
        pipes: as open_file takes it.

    Raises:
        OSError: it cannot be read, is no file, or is larger; its strerror says why.
    """
    with open_file(path, pipes=pipes) as file:
        if at_most is None:
            return file.read()
        content = io.BytesIO()
        while part := file.read(2**20):  # files that the system makes up do not say their size
            content.write(part)
            if content.tell() > bound(at_most):
                reason = f"it has more than {at_most} bytes ({LIFTED_BY})"
                raise OSError(errno.EFBIG, reason, path)
    return content.getvalue()


def json_value(text: str, **hooks: Any) -> Any:
    """What a JSON text says.

    Args:
        text: the document.
        hooks: as json.loads takes them.

    Raises:
        ValueError: it is not JSON, or nested deeper than Python goes.
    """
    try:
        return json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply in it") from None


# Of a file with problems.
SHOWN = 10  # that are listed
LONGEST_PROBLEM = 300  # characters of one


class Problems:
    """Problems of a file: how many, and the first ones; a hostile file has millions."""

    def __init__(self, problems: Iterable[str] = ()) -> None:
        self.first: list[str] = []
        self.count = 0
        self.extend(problems)

    def append(self, problem: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(problem[:LONGEST_PROBLEM])

    def extend(self, problems: Iterable[str]) -> None:
        """Count several more, as they come."""
        for problem in problems:
            self.append(problem)

    def shown(self) -> list[str]:
        """The first ones, and dots if there are others."""
        return self.first + ["..."] * (self.count > len(self.first))

    def __len__(self) -> int:
        return self.count


# ---------------------------------------------------------------- writing


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


def check_own_file(path: Path) -> None:
    """Refuse a pipe, a device, a folder or a link where a run keeps what it goes on with.

    Raises:
        InputError: something lies there that is no file.
    """
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
        raise InputError(f"{path}: is not a file of an earlier run; remove it")


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


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a small file of a model.

    Raises:
        ModelNotFoundError: it cannot be read.
        OSError: the copy cannot be written.
    """
    try:
        content = read_file(source)
    except OSError as error:
        raise ModelNotFoundError(f"{source}: cannot be read: {error.strerror}") from None
    target.write_bytes(content)


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
