"""Reads the tensors of an old pytorch_model.bin, without PyTorch and without running anything.

Such a file is a pickle (which tensors there are, and which part of which storage each one is) and
the storages' bytes.  A pickle is a program for a small stack machine, and that program may call
any function in Python: to load a stranger's pickle is to run a stranger's code.  So nothing here
unpickles.  `_run` steps through the program itself and knows only the instructions that build
numbers, texts, tuples, lists and dicts.  A function that the program names becomes a `_Name`,
which is only a text; the few on the list have their effect described here, all others are
refused by name.

Two formats: since PyTorch 1.6 a zip archive with the pickle and one entry a storage, and before
that five pickles in a row and then the storages.

Source: torch/serialization.py, `_load` and `_legacy_load`; torch/_utils.py, `_rebuild_tensor_v2`.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from minibert.checkpoints.safetensors import DTYPES, MAX_DIMENSIONS, map_file, quote, widen_bfloat16
from minibert.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# What zipfile and pickletools raise for damaged files.  Below, a ValueError says what is wrong.
DAMAGE = (ValueError, OSError, EOFError, RuntimeError, OverflowError, struct.error, zlib.error,
          zipfile.BadZipFile)  # fmt: skip
MAX_PICKLE_BYTES = 100_000_000  # the pickle of BERT-large has about 60,000

STORAGE_DTYPES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}
TENSOR_NAMES = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETER_NAMES = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
DTYPE_NAMES = (
    *("torch.float64", "torch.float32", "torch.float16", "torch.bfloat16", "torch.int64"),
    *("torch.int32", "torch.int16", "torch.int8", "torch.uint8", "torch.bool"),
)
ALLOWED_NAMES = frozenset(
    {"collections.OrderedDict", "torch.Size"}.union(
        STORAGE_DTYPES, TENSOR_NAMES, PARAMETER_NAMES, DTYPE_NAMES
    )
)


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names: a text, never the thing itself."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A row of numbers in the file; `begin` and `size` say which part of it is meant."""

    key: str
    dtype: str  # a key of DTYPES
    count: int
    begin: int
    size: int


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor's numbers lie in its storage; lengths and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: Path) -> dict[str, NDArray[Any]]:
    """Read the state dict that `torch.save` wrote, on its own or under "state_dict" or "model".

    Returns:
        Name -> array.  bfloat16 becomes float32, every other dtype stays.  The arrays are
        read-only, not always contiguous, and share memory where the tensors shared a storage.

    Raises:
        ModelNotFoundError: there is no such file.
        CheckpointError: the file is damaged, holds no tensors, or wants more than tensors.
    """
    path = Path(path)
    content = map_file(path)
    try:
        if content[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                return _read_zip(archive, len(content))
        if content[:1] == b"\x80":
            return _read_legacy(content)
        if content[257:262] == b"ustar":
            raise ValueError("it is a tar archive, the format of PyTorch's first versions")
        raise ValueError(f"expected a zip archive or a pickle, but it begins with {content[:8]!r}")
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch state dict: {error}.\n"
            "Download the file again, take the model's .safetensors file, or save the weights "
            "alone, with torch.save(model.state_dict(), path)."
        ) from error


def _read_zip(archive: zipfile.ZipFile, file_size: int) -> dict[str, NDArray[Any]]:
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
        if info.compress_type != zipfile.ZIP_STORED:  # else a small entry could fill the memory
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
    state, _ = _run(io.BytesIO(read(programs[0], 0, MAX_PICKLE_BYTES)))

    def read_storage(storage: _Storage) -> bytes:
        size = storage.count * np.dtype(DTYPES[storage.dtype]).itemsize
        return read(f"{prefix}data/{storage.key}", size, size)

    return _arrays(state, read_storage, file_size)


def _read_legacy(content: mmap.mmap) -> dict[str, NDArray[Any]]:
    """Read the pickles one after another; the storages follow in the order of the last one."""
    magic, _ = _run(content)
    if magic != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one that torch.save wrote")
    version, _ = _run(content)
    if version != LEGACY_PROTOCOL:
        raise ValueError(f"its protocol is {quote(version)}, expected {LEGACY_PROTOCOL}")
    system, _ = _run(content)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine, expected little-endian numbers")
    state, storages = _run(content)
    keys, _ = _run(content)
    if not isinstance(keys, list):
        raise ValueError(f"expected the list of storages, found {quote(keys)}")

    ranges: dict[str, tuple[int, int]] = {}
    position = content.tell()
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in ranges:
            raise ValueError(f"storage {quote(key)} is listed twice, or belongs to no tensor")
        storage = storages[key]
        begin = position + 8  # after the number of its elements
        end = begin + storage.count * np.dtype(DTYPES[storage.dtype]).itemsize
        if end > len(content):
            missing = end - len(content)
            raise ValueError(f"it ends in storage {quote(key)}, {missing} bytes too early")
        count = int.from_bytes(content[position:begin], "little", signed=True)
        if count != storage.count:
            raise ValueError(f"storage {quote(key)} has {count} elements, expected {storage.count}")
        ranges[key] = begin, end
        position = end

    def read_storage(storage: _Storage) -> bytes:
        if storage.key not in ranges:
            raise ValueError(f"storage {quote(storage.key)} is missing")
        begin, end = ranges[storage.key]
        return content[begin:end]

    return _arrays(state, read_storage, len(content))


def _arrays(
    state: object, read_storage: Callable[[_Storage], bytes], file_size: int
) -> dict[str, NDArray[Any]]:
    """Read the storages that the state dict needs, each once, and cut its tensors out of them."""
    rows: dict[str, NDArray[Any]] = {}
    arrays = {}
    for name, tensor in _state_dict(state).items():
        storage = tensor.storage
        if storage.key not in rows:
            row = np.frombuffer(read_storage(storage), DTYPES[storage.dtype])
            if storage.dtype == "BF16":
                row = widen_bfloat16(row)
            elif storage.dtype == "BOOL":
                row = row != 0
            row.flags.writeable = False  # tied weights share it
            rows[storage.key] = row
        # With stride 0 a few bytes can pose as any number of elements.
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


def _state_dict(value: object) -> dict[str, _Tensor]:
    """Find the tensors in what was saved: a state dict, or a training script's dict around it."""
    if isinstance(value, dict):
        for candidate in (value.get("state_dict"), value.get("model"), value):
            entries = candidate.items() if isinstance(candidate, dict) else ()
            tensors = {
                name: tensor
                for name, tensor in entries
                if isinstance(name, str) and isinstance(tensor, _Tensor)
            }
            if tensors:
                return tensors
    raise ValueError(f"expected a dict with tensors by name, found {_kind(value)} without")


def _run(program: io.BytesIO | mmap.mmap) -> tuple[Any, dict[str, _Storage]]:
    """Step through one pickle, from where the file stands to behind its STOP instruction.

    Returns:
        What the pickle describes, with `_Tensor` for a tensor, and all storages by their key.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below each MARK
    memo: dict[Any, Any] = {}
    storages: dict[str, _Storage] = {}
    try:
        for opcode, argument, position in pickletools.genops(cast(IO[bytes], program)):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop(), storages
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                    stack.append(argument)
                case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                    stack.append(argument)
                case "SHORT_BINSTRING" | "BINSTRING":  # texts of Python 2
                    stack.append(argument)
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "MARK":
                    outer.append(stack)
                    stack = []
                case "TUPLE":
                    items, stack = stack, outer.pop()
                    stack.append(tuple(items))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                    stack.append(tuple(reversed(items)))
                case "APPEND" | "SETITEM":
                    size = 1 if opcode.name == "APPEND" else 2
                    items = [stack.pop() for _ in range(size)]
                    _fill(stack[-1], items[::-1], opcode.name)
                case "APPENDS" | "SETITEMS":
                    items, stack = stack, outer.pop()
                    _fill(stack[-1], items, opcode.name)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    if argument not in memo:
                        raise ValueError(f"the pickle uses memo {argument} before it is there")
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_name(str(argument).replace(" ", ".", 1)))
                case "STACK_GLOBAL":
                    items = [stack.pop(), stack.pop()]
                    stack.append(_name(f"{_text(items[1])}.{_text(items[0])}"))
                case "BINPERSID":
                    storage = _storage(stack.pop())
                    known = storages.setdefault(storage.key, storage)
                    if (storage.dtype, storage.count) != (known.dtype, known.count):
                        raise ValueError(f"storage {quote(storage.key)} is described twice")
                    stack.append(storage)
                case "REDUCE":
                    arguments = stack.pop()
                    stack.append(_call(stack.pop(), arguments))
                case "BUILD":
                    stack.pop()  # attributes, as a state dict's _metadata: nothing we need
                    if not isinstance(stack[-1], OrderedDict):
                        raise ValueError(f"refuses to give attributes to {_kind(stack[-1])}")
                case other:
                    raise ValueError(f"refuses the pickle instruction {other} at byte {position}")
    except IndexError:  # pop() or [-1] of an empty list
        raise ValueError("the pickle takes more from its stack than is there") from None
    raise ValueError("the pickle has no end")


def _kind(value: object) -> str:
    return f"'{value.name}'" if isinstance(value, _Name) else f"a {type(value).__name__}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the pickle names something with {_kind(value)}, expected a text")
    return value


def _name(name: str) -> _Name:
    if name not in ALLOWED_NAMES:
        raise ValueError(
            f"refuses to load {quote(name)}: only tensors in plain dicts and lists are read, "
            "because a pickle that may use anything else can run any code"
        )
    return _Name(name)


def _fill(target: object, items: list[Any], instruction: str) -> None:
    """Put items into a list, or keys and values in turn into a dict."""
    if isinstance(target, list) and instruction.startswith("APPEND"):
        target.extend(items)
    elif isinstance(target, dict) and instruction.startswith("SETITEM") and len(items) % 2 == 0:
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No tensor is named by a tuple, and to hash a deep one overflows the C stack.
            if isinstance(key, (str, int, float)):
                target[key] = value
    else:
        raise ValueError(f"the pickle cannot {instruction} {len(items)} items to {_kind(target)}")


def _call(function: object, arguments: object) -> object:
    """What a call of one of the allowed names gives, without calling it."""
    name = function.name if isinstance(function, _Name) else ""
    if isinstance(arguments, tuple):
        if name in TENSOR_NAMES:
            return _tensor(arguments)
        if name in PARAMETER_NAMES and arguments and isinstance(arguments[0], _Tensor):
            return arguments[0]
        if name == "torch.Size" and len(arguments) == 1 and isinstance(arguments[0], tuple):
            return arguments[0]
        if name == "collections.OrderedDict" and not arguments:
            return OrderedDict()
        if name == "collections.OrderedDict" and isinstance(arguments[0], list):
            return _ordered_dict(arguments[0])  # Python 2 wrote [[key, value], ...]
    raise ValueError(f"refuses to call {_kind(function)} with {_kind(arguments)}")


def _ordered_dict(pairs: list[Any]) -> OrderedDict[Any, Any]:
    result: OrderedDict[Any, Any] = OrderedDict()
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"expected pairs of key and value, found {_kind(pair)}")
        _fill(result, list(pair), "SETITEM")
    pairs.clear()  # used up, so that a short pickle cannot copy it again and again
    return result


def _are_sizes(values: object) -> bool:
    """Whether these are integers from 0 to 2**62; True and False are none."""
    return isinstance(values, tuple) and all(type(n) is int and 0 <= n <= 2**62 for n in values)


def _storage(identity: object) -> _Storage:
    """Read ("storage", type, key, device, count), with a sixth item in the older format."""
    if isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage":
        _, kind, key, _, count, *rest = identity
        view = rest[0] if rest and rest[0] is not None else ("", 0, count)
        if (
            isinstance(kind, _Name)
            and kind.name in STORAGE_DTYPES
            and isinstance(key, str)
            and isinstance(view, tuple)
            and len(view) == 3
            and _are_sizes((count, *view[1:]))
            and view[1] + view[2] <= count
        ):
            return _Storage(key, STORAGE_DTYPES[kind.name], count, view[1], view[2])
    raise ValueError(f"expected the description of a storage, found {quote(identity)}")


def _tensor(arguments: tuple[Any, ...]) -> _Tensor:
    """Read (storage, offset, shape, strides, ...), and check that it stays in the storage."""
    if len(arguments) < 4 or not isinstance(arguments[0], _Storage):
        raise ValueError("a tensor without storage, offset, shape and strides")
    storage, offset, shape, strides = arguments[:4]
    if (
        not (_are_sizes((offset,)) and _are_sizes(shape) and _are_sizes(strides))
        or len(shape) != len(strides)
        or len(shape) > MAX_DIMENSIONS
    ):
        found = f"offset {quote(offset)}, shape {quote(shape)}, strides {quote(strides)}"
        raise ValueError(f"a tensor with {found}, expected sizes in elements")
    if len(arguments) > 6 and arguments[6]:
        raise ValueError("a tensor stored as the negative of its numbers is not supported")
    # A stride along a single element says nothing, and may be any number.
    strides = tuple(stride if n > 1 else 0 for n, stride in zip(shape, strides, strict=True))
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise ValueError(
            f"a tensor of shape {quote(list(shape))} reaches to element {last} of storage "
            f"{quote(storage.key)}, which has {storage.size}"
        )
    return _Tensor(storage, offset, shape, strides)
