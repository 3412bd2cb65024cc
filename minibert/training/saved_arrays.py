"""Arrays of float32 or bool in files of np.save, which are read and never mapped into memory.

Whoever shortened a file that is mapped would end the process; here that is an error.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from minibert.arrays import Floats
from minibert.errors import InputError
from minibert.files import open_file, unwritable


def read_array(path: Path, array: Any) -> None:
    """Fill an array from the file of another one of its shape and dtype.

    Args:
        path: of the file.
        array: is filled; contiguous.

    Raises:
        OSError, EOFError, ValueError: the file cannot be read, is damaged, or holds another array.
    """
    with open_file(path) as file:
        find_numbers(file, path, array.shape, array.dtype)
        fill(file, path, array)


def find_numbers(file: BinaryIO, path: Path, shape: tuple[int, ...], dtype: Any) -> int:
    """Where the numbers begin in the file of an array; it is then read up to there.

    Raises:
        OSError, ValueError: the file cannot be read, is damaged, or holds another array.
    """
    try:
        version = npy.read_magic(file)
        found = npy.read_array_header_1_0(file) if version == (1, 0) else version
    # Of a damaged header, which Python's own parser reads, errors are of many kinds.
    except (ValueError, SyntaxError, TokenError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path.name} is damaged: {error!s:.200}") from None
    if found != (shape, False, dtype):
        raise ValueError(f"{path.name} does not hold {dtype} in the shape {list(shape)}")
    return file.tell()


def fill(file: BinaryIO, path: Path, array: Any) -> None:
    """Read as many bytes as an array has into it.

    Raises:
        OSError, EOFError: the file cannot be read, or ends before.
    """
    part = array.reshape(-1).view(np.uint8)
    if file.readinto(part.data) < part.size:  # type: ignore[attr-defined]
        raise EOFError(f"{path.name} is shorter than what it holds")


class Table:
    """Numbers of float32 in a file, of which parts are read and written.

    Args:
        path: of the file of an array, which is there.
        shape: of the array, [rows, columns].

    Raises:
        OSError, ValueError: it cannot be opened, or holds another array.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path, self.shape = path, shape
        self.file = path.open("r+b")
        weakref.finalize(self, self.file.close)
        self.begin = find_numbers(self.file, path, shape, np.dtype(np.float32))
        if os.fstat(self.file.fileno()).st_size < self.place(shape[0], 0):
            raise ValueError(f"{path.name} is shorter than what it holds")

    def place(self, row: int, column: int) -> int:
        """Where a number stands in the file."""
        return self.begin + 4 * (row * self.shape[1] + column)

    def read(self, row: int, begin: int, end: int) -> Floats:
        """The numbers of a row from one column to another.

        Raises:
            InputError: they cannot be read, or are not there any more.
        """
        array = np.empty(end - begin, np.float32)
        try:
            self.file.seek(self.place(row, begin))
            fill(self.file, self.path, array)
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{self.path}: cannot be read: {reason}. Remove its folder, and begin again."
            ) from None
        return array

    def write(self, row: int, begin: int, array: Floats) -> None:
        """Write numbers into a row from a column on.

        Raises:
            InputError: they cannot be written.
        """
        try:
            self.file.seek(self.place(row, begin))
            self.file.write(array.data)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def keep(self) -> None:
        """Bring what was written to the disk.

        Raises:
            OSError: it is full.
        """
        self.file.flush()
        os.fsync(self.file.fileno())


def new_table(path: Path, shape: tuple[int, int]) -> Table:
    """A table of zeros in a new file, for which the disk has room.

    Raises:
        OSError: it cannot be written, or there is too little room.
    """
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(file, header)
        size = file.tell() + 4 * shape[0] * shape[1]
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # now, rather than after hours
            os.posix_fallocate(file.fileno(), 0, size)
    return Table(path, shape)
