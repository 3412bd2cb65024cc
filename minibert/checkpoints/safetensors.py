"""Reads weights from safetensors files, lazily.

A file is 8 bytes with the length of its header, the header, and the data.  The header is JSON:
the name of every tensor -> its dtype, its shape, and where in the data its bytes begin and end.
A large model may lie in several such files, with an index that says which tensor is in which.

The header is checked when the file is opened, and of the data nothing is read before
`Checkpoint.read`.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import reprlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats
from minibert.errors import CheckpointError, MinibertError, ModelNotFoundError
from minibert.files import (
    LARGEST_JSON,
    LIFTED_BY,
    Problems,
    bound,
    json_value,
    open_file,
    read_file,
)

# How the bytes of each safetensors dtype lie in the file.  NumPy has no bfloat16, and not every
# byte is a valid NumPy bool: both are read as plain integers first.
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
CODES = {np.dtype(kind): code for code, kind in DTYPES.items() if code not in ("BF16", "BOOL")}
CODES[np.dtype(bool)] = "BOOL"
FLOAT_DTYPES = ("F32", "F16", "BF16", "F64")

# Bytes that a header may have: so many, or the tenth part of a larger file.  As Python's objects it
# takes up to 50 times as much; that of BERT-base, 440 million bytes, has 25,000.
MAX_HEADER_BYTES = 1_000_000
LARGEST_HEADER = 100_000_000  # of the format itself
MAX_ELEMENTS = 2**59  # NumPy counts bytes in an int64, and so do we, with room to spare
MAX_DIMENSIONS = 32  # NumPy 1's limit
MAX_SHARDS = 1000  # each is a file that stays open for a while; the largest models have 200
DOWNLOAD_AGAIN = "Is the download complete? Delete the file and download it again."

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120
quote = _short.repr  # like repr(), but neither long nor deep whatever a file holds


@dataclass(frozen=True)
class _Tensor:
    file: Path
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    read: Callable[[], NDArray[np.uint8]]  # its bytes


class Checkpoint:
    """The tensors of one model: names, shapes and dtypes at hand, values read when asked for.

    Attributes:
        path: the file that was opened, or the index of several.
        metadata: the free text in the files' headers, for example {"format": "pt"}.
    """

    def __init__(self, path: Path, tensors: dict[str, _Tensor], metadata: dict[str, str]) -> None:
        self.path = path
        self.metadata = metadata
        self._tensors = tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        """The names of all tensors, in the order of the file."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        return self._tensor(name).shape

    def dtype(self, name: str) -> str:
        """The dtype that a tensor has in the file, in safetensors' words: "F32", "BF16", "I8"."""
        return self._tensor(name).dtype

    def read(self, name: str) -> NDArray[Any]:
        """Read one tensor.

        Returns:
            float32 for every float dtype, NumPy's own type for integers and bool.

        Raises:
            CheckpointError: there is no such tensor, it holds NaN or infinity, or the file has
                changed since it was opened.
        """
        tensor = self._tensor(name)
        flat = tensor.read().view(DTYPES[tensor.dtype])
        if tensor.dtype not in FLOAT_DTYPES:
            return (flat != 0 if tensor.dtype == "BOOL" else flat).reshape(tensor.shape)

        if tensor.dtype == "BF16":
            flat = widen_bfloat16(flat)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, found below
            flat = flat.astype(np.float32, copy=False)
        if not np.isfinite(flat).all():
            bad = np.flatnonzero(~np.isfinite(flat))
            first = [int(i) for i in np.unravel_index(bad[0], tensor.shape)]
            found = f"{len(bad)} of {flat.size} values are NaN or infinite, the first at {first}"
            problem = f"{quote(name)}: in float32, {found}; weights are finite numbers"
            raise _error(tensor.file, [problem], "Take another checkpoint of this model.")
        return flat.reshape(tensor.shape)

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            found = f"it has {len(self)} tensors: {quote(self.names())}"
            raise CheckpointError(f"{self.path} has no tensor {quote(name)}; {found}")
        return self._tensors[name]


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file: for the same arrays and metadata, the same bytes.

    The package safetensors does not promise that, and on a full disk raises an error of its own.

    Args:
        path: of the file.
        arrays: name -> array, of a dtype that is in DTYPES.
        metadata: free text.

    Raises:
        OSError: it cannot be written.
    """
    # Wide numbers first, as the package does it, so that all are aligned.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    line = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    line += b" " * (-len(line) % 8)
    with path.open("wb") as file:
        file.write(len(line).to_bytes(8, "little") + line)
        for _, array in ordered:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a .safetensors file, or the .safetensors.index.json of a model in several files.

    Raises:
        ModelNotFoundError: the file, or a file that the index names, does not exist.
        CheckpointError: a file is damaged; the message lists everything that is wrong with it.
    """
    path = Path(path)
    return open_shards(path, _open_file) if path.name.endswith(".json") else _open_file(path)


def of_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any]], unread: Mapping[str, str] | None = None
) -> Checkpoint:
    """Arrays that were read from a file of another format, as a checkpoint.

    Args:
        path: where they come from.
        arrays: name -> array, of a dtype that is in DTYPES.
        unread: names under which something else stands, and what that is, in place of its dtype.
    """

    def read(array: NDArray[Any]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    nothing = partial(read, np.empty(0, np.uint8))
    tensors = {name: _Tensor(path, kind, (), nothing) for name, kind in (unread or {}).items()}
    for name, array in arrays.items():
        tensors[name] = _Tensor(path, CODES[array.dtype], array.shape, partial(read, array))
    return Checkpoint(path, tensors, {})


def widen_bfloat16(bits: NDArray[np.uint16]) -> Floats:
    """Turn bfloat16 numbers, given as their bits in one row, into the same numbers as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


class WeightsFile:
    """A weights file that is open, and from which bytes are read.

    It is not mapped into memory: whoever shortened a file would end each process that has mapped
    it, and whoever wrote into it would change numbers that were checked already.  Here the first
    is an error, and the second is noticed while a model is loaded, and means nothing after that.

    Args:
        path: of the file.

    Attributes:
        file: for those who read it in order.
        size: in bytes.

    Raises:
        ModelNotFoundError: there is no such file.
        CheckpointError: it cannot be opened, or is only Git LFS's pointer to a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = open_file(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            why = f": {error.strerror}" if os.path.islink(path) else ""
            raise ModelNotFoundError(f"there is no weights file {str(path)!r}{why}") from None
        except OSError as error:
            reason = f"cannot open it: {error.strerror}"
            raise _error(path, [reason], "Check the path and the file.") from None
        weakref.finalize(self, self.file.close)
        self._state = self._look()
        self.size = self._state[0]
        if not self.size:
            raise _error(path, ["it is empty"])
        if self.read(0, min(self.size, 23)).tobytes() == b"version https://git-lfs":
            advice = "Run `git lfs pull` in the repository, or download the file from the Hub."
            raise _error(path, ["it is a Git LFS pointer, a text that stands for the file"], advice)

    def _look(self) -> tuple[int, int]:
        """What changes when the file does: its size, and when it was written."""
        found = os.fstat(self.file.fileno())
        return found.st_size, found.st_mtime_ns

    def read(self, begin: int, size: int) -> NDArray[np.uint8]:
        """Read bytes of the file.

        Raises:
            CheckpointError: they are not there, or the file has changed since it was opened.
        """
        try:
            content = np.empty(size, np.uint8)
            self.file.seek(begin)
            found = self.file.readinto(content.data)
        except OSError as error:
            reason = f"cannot read it: {error.strerror}"
            raise _error(self.path, [reason], "Check the disk and the network.") from None
        except MemoryError:
            reason = f"there is not enough memory for {size} bytes of it"
            raise _error(
                self.path, [reason], "Take a smaller model, or a larger machine."
            ) from None
        if found < size or self._look() != self._state:
            raise _error(
                self.path,
                ["it was changed while it was read"],
                "Load it again. Replace a model by renaming a new one over it, which those who "
                "read the old one do not notice.",
            )
        return content


def _error(
    path: Path,
    problems: Iterable[str] | Problems,
    advice: str = DOWNLOAD_AGAIN,
    kind: type[MinibertError] = CheckpointError,
) -> MinibertError:
    """One error for all problems of a file."""
    found = problems if isinstance(problems, Problems) else Problems(problems)
    count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    told = [f"{path} cannot be used ({count}):", *found.shown()]
    return kind("\n  ".join(told) + f"\n{advice}")


def _parse_object(path: Path, text: bytes) -> dict[str, Any]:
    """Parse JSON that must be an object in which no key occurs twice."""
    problems = Problems()

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated = (quote(key) for key, count in counts.items() if count > 1)
            problems.extend(f"the name {key} occurs more than once" for key in repeated)
        return found

    try:
        value = json_value(text.decode("utf-8"), object_pairs_hook=build)
    except ValueError as error:  # bad UTF-8, bad JSON, 5000 digits
        raise _error(path, [f"expected JSON in UTF-8, but {error}"]) from error
    if not isinstance(value, dict):
        problems.append(f"expected a JSON object, found {quote(value)}")
    if problems:
        raise _error(path, problems)
    return value


def _open_file(path: Path) -> Checkpoint:
    """Open one safetensors file and check its header."""
    file = WeightsFile(path)
    start = 8 + int.from_bytes(file.read(0, min(file.size, 8)).tobytes(), "little")
    most = min(bound(max(MAX_HEADER_BYTES, file.size // 10)), LARGEST_HEADER)
    if start > min(file.size, 8 + most):
        found = f"the file has {file.size} bytes, its header should end at byte {start}"
        problem = f"{found} (and take at most {most}; {LIFTED_BY}): is it a safetensors file?"
        raise _error(path, [problem])
    header = _parse_object(path, file.read(8, start - 8).tobytes())
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata

    problems = Problems()
    if not isinstance(metadata, dict):
        problems.append(f"__metadata__: expected texts by name, found {quote(metadata)}")
    for name, entry in header.items():
        problems.extend(f"{quote(name)}: {problem}" for problem in _entry_problems(entry))
    problems = problems or Problems(_layout_problems(header, file.size - start))
    if problems:
        raise _error(path, problems)

    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        read = partial(file.read, start + begin, end - begin)
        tensors[name] = _Tensor(path, entry["dtype"], tuple(entry["shape"]), read)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    return Checkpoint(path, tensors, texts)


def _are_counts(value: Any) -> bool:
    """Whether a value from JSON is a list of integers >= 0; true and false are none."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _entry_problems(entry: Any) -> list[str]:
    """What is wrong with the header's description of one tensor, looked at alone."""
    if not isinstance(entry, dict):
        return [f"expected an object, found {quote(entry)}"]
    problems = []
    fields: list[Any] = [entry.get(field) for field in ("dtype", "shape", "data_offsets")]
    dtype, shape, offsets = fields
    if not isinstance(dtype, str) or dtype not in DTYPES:
        problems.append(f"dtype is {quote(dtype)}, minibert knows {', '.join(DTYPES)}")
    if not _are_counts(shape):
        problems.append(f"shape is {quote(shape)}, expected a list of sizes")
    elif len(shape) > MAX_DIMENSIONS or math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        problems.append(f"shape {quote(shape)} is larger than any array can be")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        problems.append(f"data_offsets is {quote(offsets)}, expected [begin, end]")
    if problems:
        return problems
    found = offsets[1] - offsets[0]
    expected = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if found != expected:
        problems.append(f"{dtype} {shape} takes {expected} bytes, data_offsets give {found}")
    return problems


def _layout_problems(header: dict[str, Any], size: int) -> Iterator[str]:
    """Check that the tensors fill the data from its first byte to its last, each byte once."""
    position, previous = 0, ""
    ranges = sorted((*entry["data_offsets"], name) for name, entry in header.items())
    for begin, end, name in ranges:
        if begin < position:
            yield f"{quote(name)} overlaps {quote(previous)}"
        elif begin > position:
            yield f"{quote(begin - position)} unused bytes before {quote(name)}"
        if end > position:
            position, previous = end, name
    if position > size:
        found = f"the tensors need {quote(position)} bytes, the file has {size} after its header"
        yield f"{found}: {quote(position - size)} bytes are missing"
    elif position < size:
        yield f"{size - position} unused bytes after the last tensor"


def open_shards(path: Path, open_file: Callable[[Path], Checkpoint]) -> Checkpoint:
    """Open every file that an index names, and check that they hold what the index says.

    Raises:
        ModelNotFoundError: the index, or a file that it names, does not exist.
        CheckpointError: one of them is damaged, or they do not belong together.
    """
    files = _read_index(path)
    tensors_of: dict[str, list[str]] = {}
    for name, file in files.items():
        tensors_of.setdefault(file, []).append(name)
    shards = sorted(tensors_of)
    missing = [f"there is no {name!r}" for name in shards if not os.path.exists(path.parent / name)]
    if missing:
        raise _error(path, missing, "Download these files too.", ModelNotFoundError)

    problems = Problems()
    metadata: dict[str, str] = {}
    tensors: dict[str, _Tensor] = {}
    for shard in shards:
        part = open_file(path.parent / shard)
        metadata.update(part.metadata)
        twice = (name for name in part if name in tensors)
        problems.extend(f"{quote(name)} is in two files, {shard!r} is one" for name in twice)
        tensors.update(part._tensors)
        absent = (name for name in tensors_of[shard] if name not in part)
        problems.extend(f"{quote(name)} is not in {shard!r}" for name in absent)
    if problems:
        raise _error(path, problems, "Are the index and the files from the same model?")
    return Checkpoint(path, tensors, metadata)


def shard_names(path: Path) -> list[str]:
    """The files that an index names, sorted.

    Raises:
        ModelNotFoundError: there is no such index.
        CheckpointError: it is damaged.
    """
    return sorted(set(_read_index(path).values()))


def _read_index(path: Path) -> dict[str, str]:
    """The file of each tensor, as an index says."""
    try:
        text = read_file(path, at_most=LARGEST_JSON)
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no index {str(path)!r} of a model in parts") from None
    except OSError as error:
        reason = f"cannot read it: {error.strerror}"
        raise _error(path, [reason], "Check the path and the file.") from None
    files: object = _parse_object(path, text).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise _error(path, [f"weight_map is {quote(files)}, expected tensor name -> file"])
    outside = [quote(file) for file in files.values() if not _is_below(file)]
    outside = [f"{file} is not the name of a file beside the index" for file in outside]
    if outside:
        raise _error(path, outside, "The index is damaged, or hostile.")
    if (count := len(set(files.values()))) > bound(MAX_SHARDS):
        problem = f"it names {count} files, expected at most {MAX_SHARDS}; {LIFTED_BY}"
        raise _error(path, [problem], "The index is damaged, or hostile.")
    return files


def _is_below(file: object) -> bool:
    """Whether a file name from an index stays in the index's folder, on Windows too.

    It must be the plain name: with "./" before it, one file would have thousands.
    """
    if not isinstance(file, str) or not file.isprintable():  # a NUL or a lone surrogate
        return False
    if posixpath.normpath(file) != file:
        return False
    parsed = PureWindowsPath(file)
    return bool(parsed.parts) and not parsed.anchor and ".." not in parsed.parts
