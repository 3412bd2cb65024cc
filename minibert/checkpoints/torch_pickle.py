"""Reads the tensors of an old pytorch_model.bin, without PyTorch and without running anything.

Such a file is a pickle (which tensors there are, and which part of which storage each one is; see
pickles.py) and the storages' bytes.  What a training program saved beside the weights (its options,
the optimizer, functions and classes) is passed over, and nothing of it is made or called.

Two formats: since PyTorch 1.6 a zip archive with the pickle and one entry a storage, and before
that five pickles in a row and then the storages.

Source: torch/serialization.py, `_load` and `_legacy_load`.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.checkpoints.pickles import Object, Storage, Tensor, kind, step_through
from minibert.checkpoints.safetensors import DTYPES, WeightsFile, quote, widen_bfloat16
from minibert.errors import CheckpointError
from minibert.files import LIFTED_BY, bound

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# What zipfile and pickletools raise for damaged files.  Below, a ValueError says what is wrong.
DAMAGE = (ValueError, OSError, EOFError, RuntimeError, OverflowError, struct.error, zlib.error,
          zipfile.BadZipFile)  # fmt: skip
MAX_PICKLE_BYTES = 100_000_000  # the pickle of BERT-large has about 60,000
# All tensors together may be so many times as large as the file, or have so many bytes: a table
# that is also the output of a language model stands there once, and counts twice.
SHARED = 4
SHARED_ALWAYS = 1_000_000
# Bytes of a file for each instruction of its pickle, beyond the first 100,000.  An instruction may
# leave 300 bytes in memory; BERT-base with its optimizer has 30,000 in 1,300,000,000 bytes.
BYTES_AN_INSTRUCTION = 100

# Under which of these a training program's dict holds the weights; the first that has tensors.
STATE_DICTS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
    *("weights", "model_weights"),
)
DEEPEST = 4  # dicts in dicts, above the weights
LONGEST_NAME = 300  # of a tensor in a module; BERT's have 60 characters
MOST_ENTRIES = 100_000  # tensors and modules of a module; BERT-large has 1,000


def read_torch_file(path: Path, unread: dict[str, str] | None = None) -> dict[str, NDArray[Any]]:
    """Read the weights in a file of `torch.save`.

    They are a state dict, or stand in the dict that a training program saved, or in a module that
    was saved whole.

    Args:
        path: the file.
        unread: filled with the names under which, among the weights, something else stands than
            a tensor that can be read, and what that is.

    Returns:
        Name -> array.  bfloat16 becomes float32, every other dtype stays.  The arrays are
        read-only, not always contiguous, and share memory where the tensors shared a storage.

    Raises:
        ModelNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or holds no tensors by name.
    """
    path = Path(path)
    unread = {} if unread is None else unread
    file = WeightsFile(path)
    first = file.read(0, min(file.size, 262)).tobytes()
    try:
        if first[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(file.file) as archive:
                return _read_zip(archive, file.size, unread)
        if first[:1] == b"\x80":
            return _read_legacy(file, unread)
        if first[257:262] == b"ustar":
            raise ValueError("it is a tar archive, the format of PyTorch's first versions")
        raise ValueError(f"expected a zip archive or a pickle, but it begins with {first[:8]!r}")
    except CheckpointError:  # that the file was changed; a ValueError too
        raise
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch state dict: {error}.\n"
            "Download the file again, take the model's .safetensors file, or save the weights "
            "alone, with torch.save(model.state_dict(), path)."
        ) from error


def instructions(file_size: int) -> int:
    """How many instructions a pickle in a file of so many bytes may have."""
    return bound(max(100_000, file_size // BYTES_AN_INSTRUCTION))


def _read_zip(
    archive: zipfile.ZipFile, file_size: int, unread: dict[str, str]
) -> dict[str, NDArray[Any]]:
    """Read an archive with <prefix>/data.pkl, and one entry <prefix>/data/<key> a storage."""
    entries = {info.filename: info for info in archive.infolist()}
    if len(entries) < len(archive.infolist()):
        raise ValueError("the archive has two entries of the same name")
    if sum(info.file_size for info in entries.values()) > file_size:
        raise ValueError("the archive's entries are larger than the file")

    def read(name: str, least: int, most: int) -> bytes:
        if name not in entries:
            raise ValueError(f"the archive has no entry {quote(name)}")
        info = entries[name]
        # Else a small entry could fill the memory, or one that says it is packed into more.
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size > file_size:
            raise ValueError(f"entry {quote(name)} is compressed, which torch.save never does")
        if not least <= info.file_size <= most:
            expected = f"{least}" if least == most else f"at most {most}"
            found = f"entry {quote(name)} has {info.file_size} bytes"
            raise ValueError(f"{found}, expected {expected}")
        content = archive.read(info)
        if len(content) != info.file_size:  # zipfile believes the packed size, and says nothing
            raise ValueError(f"entry {quote(name)} ends after {len(content)} bytes")
        return content

    programs = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(programs) != 1:
        raise ValueError(f"expected one entry data.pkl in a folder, found {quote(programs)}")
    prefix = programs[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in entries and read(f"{prefix}byteorder", 0, 16) != b"little":
        raise ValueError("it was written on a big-endian machine, expected little-endian numbers")
    program = io.BytesIO(read(programs[0], 0, bound(MAX_PICKLE_BYTES)))
    state, _ = step_through(program, instructions(file_size))

    def read_storage(storage: Storage) -> bytes:
        size = storage.count * np.dtype(DTYPES[storage.dtype]).itemsize
        return read(f"{prefix}data/{storage.key}", size, size)

    return _arrays(_tensors(state, unread), read_storage, file_size)


def _read_legacy(file: WeightsFile, unread: dict[str, str]) -> dict[str, NDArray[Any]]:
    """Read the pickles one after another; the storages follow in the order of the last one."""
    # Not the file itself: a pickle can ask for more bytes than there are, which are made room for.
    content = io.BytesIO(file.read(0, min(file.size, bound(MAX_PICKLE_BYTES))).tobytes())
    most = instructions(file.size)
    magic, _ = step_through(content, most)
    if magic != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one that torch.save wrote")
    version, _ = step_through(content, most)
    if version != LEGACY_PROTOCOL:
        raise ValueError(f"its protocol is {quote(version)}, expected {LEGACY_PROTOCOL}")
    system, _ = step_through(content, most)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine, expected little-endian numbers")
    state, storages = step_through(content, most)
    keys, _ = step_through(content, most)
    if not isinstance(keys, list):
        raise ValueError(f"expected the list of storages, found {quote(keys)}")

    ranges: dict[str, tuple[int, int]] = {}
    position = content.tell()
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in ranges:
            raise ValueError(f"storage {quote(key)} is listed twice, or of no known type")
        storage = storages[key]
        begin = position + 8  # after the number of its elements
        end = begin + storage.count * np.dtype(DTYPES[storage.dtype]).itemsize
        if end > file.size:
            missing = end - file.size
            raise ValueError(f"it ends in storage {quote(key)}, {missing} bytes too early")
        count = int.from_bytes(file.read(position, 8).tobytes(), "little", signed=True)
        if count != storage.count:
            raise ValueError(f"storage {quote(key)} has {count} elements, expected {storage.count}")
        ranges[key] = begin, end
        position = end

    def read_storage(storage: Storage) -> NDArray[np.uint8]:
        if storage.key not in ranges:
            raise ValueError(f"storage {quote(storage.key)} is missing")
        begin, end = ranges[storage.key]
        return file.read(begin, end - begin)

    return _arrays(_tensors(state, unread), read_storage, file.size)


def _arrays(
    tensors: dict[str, Tensor],
    read_storage: Callable[[Storage], bytes | NDArray[np.uint8]],
    file_size: int,
) -> dict[str, NDArray[Any]]:
    """Read the storages that tensors need, each once, and cut the tensors out of them."""
    rows: dict[str, NDArray[Any]] = {}
    arrays = {}
    # Tensors may share their numbers, and with stride 0 a few bytes pose as any number of them.
    total = sum(
        math.prod(tensor.shape) * np.dtype(DTYPES[tensor.storage.dtype]).itemsize
        for tensor in tensors.values()
    )
    if total > bound(max(SHARED * file_size, SHARED_ALWAYS)):
        raise ValueError(
            f"its tensors have {total} bytes, more than {SHARED} times the {file_size} of the "
            f"file; {LIFTED_BY}"
        )
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage.key not in rows:
            row = np.frombuffer(read_storage(storage), DTYPES[storage.dtype])
            if storage.dtype == "BF16":
                row = widen_bfloat16(row)
            elif storage.dtype == "BOOL":
                row = row != 0
            row.flags.writeable = False  # tied weights share it
            rows[storage.key] = row
        if math.prod(max(n, 1) for n in tensor.shape) > file_size:
            raise ValueError(
                f"tensor {quote(name)} of shape {list(tensor.shape)} is larger than the file"
            )
        row = rows[storage.key]
        if 0 in tensor.shape:
            arrays[name] = np.empty(tensor.shape, row.dtype)
        else:
            arrays[name] = np.ndarray(
                tensor.shape,
                row.dtype,
                buffer=row,
                offset=(storage.begin + tensor.offset) * row.itemsize,
                strides=[stride * row.itemsize for stride in tensor.strides],
            )
    return arrays


def _tensors(saved: object, unread: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of a model in what was saved; what else stands among them goes to `unread`.

    Raises:
        ValueError: there are none, or there are several models.
    """
    seen: set[int] = set()
    found = _named(saved, seen)
    if not found:
        inner = {name: _named(value, seen) for name, value in _fields(saved).items()}
        models = {str(name): named for name, named in inner.items() if named}
        if len(models) > 1:
            shown = ", ".join(quote(name) for name in models)
            raise ValueError(f"it holds several sets of tensors by name: {shown}")
        found = next(iter(models.values()), {})
    if not found:
        raise ValueError(f"expected a dict with tensors by name, found {kind(saved)} without")
    tensors = {}
    for name, value in found.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            unread[name] = value.name
    return tensors


def _named(value: object, seen: set[int], depth: int = 0) -> dict[str, Tensor | Object]:
    """The dict of tensors that a value is, or holds under one of the usual names; empty: none."""
    if id(value) in seen or depth > DEEPEST:
        return {}
    seen.add(id(value))
    fields = _fields(value)
    for name in STATE_DICTS:
        if found := _named(fields.get(name), seen, depth + 1):
            return found
    if isinstance(value, Object) and "_modules" in fields:
        fields = _of_module(value)
    named = {
        name: entry
        for name, entry in fields.items()
        if isinstance(name, str) and isinstance(entry, Tensor | Object)
    }
    return named if any(isinstance(entry, Tensor) for entry in named.values()) else {}


def _fields(value: object) -> dict[Any, Any]:
    """The entries of a dict, or of what would have been one; or an object's attributes."""
    if not isinstance(value, Object):
        return value if isinstance(value, dict) else {}
    # Attributes in __slots__ make the state a pair of dicts.
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    return value.items or (state if isinstance(state, dict) else {})


def _of_module(module: Object) -> dict[str, Any]:
    """The tensors of a module that was saved whole, under the names that its state dict has."""
    named: dict[str, Any] = {}
    waiting: list[tuple[str, object]] = [("", module)]
    seen: set[int] = set()
    count = 0
    for prefix, part in waiting:
        if id(part) in seen or len(prefix) > LONGEST_NAME:
            continue
        seen.add(id(part))
        fields = _fields(part)
        for among in ("_parameters", "_buffers", "_modules"):
            count += len(_fields(fields.get(among)))
            if count > bound(MOST_ENTRIES):  # a dict that many modules share counts each time
                raise ValueError(f"its modules have more than {MOST_ENTRIES} entries ({LIFTED_BY})")
            entries = [
                (prefix + name, entry)
                for name, entry in _fields(fields.get(among)).items()
                if isinstance(name, str) and len(name) <= LONGEST_NAME
            ]
            if among == "_modules":
                waiting += [(f"{name}.", entry) for name, entry in entries]
            else:
                named |= entries
    return named
