"""Writes pytorch_model.bin files without PyTorch, byte by byte, in both of its formats.

Source: torch/serialization.py, `_save` and `_legacy_save`.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

STORAGES = {"f8": "Double", "f4": "Float", "f2": "Half", "i8": "Long", "i4": "Int", "i1": "Char"}
MAGIC = 0x1950A86A20F9469CFC6C


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _number(value: int) -> bytes:
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def _program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def _tensor(array: NDArray[np.generic], key: str, form: str) -> bytes:
    kind = STORAGES[array.dtype.str[1:]]
    storage = _tuple(
        _text("storage"),
        _name("torch", f"{kind}Storage"),
        _text(key),
        _text("cpu"),
        _number(array.size),
        *([b"N"] if form == "legacy" else []),  # a view of another storage: none
    )
    strides = [stride // array.itemsize for stride in array.strides]
    arguments = _tuple(
        storage + b"Q",
        _number(0),
        _tuple(*map(_number, array.shape)),
        _tuple(*map(_number, strides)),
        b"\x89",  # requires_grad: False
        _name("collections", "OrderedDict") + b")R",  # no hooks
    )
    return _name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def write_torch_file(
    path: Path,
    tensors: Mapping[str, NDArray[np.generic]],
    form: str = "zip",
    extra: bytes = b"",
    extra_name: str = "extra",
) -> Path:
    """Write a state dict.

    Args:
        path: the file.
        tensors: name -> array.
        form: 'zip', or 'legacy' for the format of PyTorch before 1.6.
        extra: pickle instructions that leave one value, which becomes an entry of its own.
        extra_name: of that entry.
    """
    rows = {str(i): np.ascontiguousarray(array) for i, array in enumerate(tensors.values())}
    body = _name("collections", "OrderedDict") + b")R("
    for name, (key, array) in zip(tensors, rows.items(), strict=True):
        body += _text(name) + _tensor(array, key, form)
    if extra:
        body += _text(extra_name) + extra
    body += b"u"
    if form == "zip":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", _program(body))
            archive.writestr("archive/version", b"3\n")
            for key, array in rows.items():
                archive.writestr(f"archive/data/{key}", array.tobytes())
        path.write_bytes(stream.getvalue())
        return path
    system = b"}" + _text("little_endian") + b"\x88s"
    keys = b"](" + b"".join(map(_text, rows)) + b"e"
    pickles = [_number(MAGIC), _number(1001), system, body, keys]
    data = [struct.pack("<q", array.size) + array.tobytes() for array in rows.values()]
    path.write_bytes(b"".join([*map(_program, pickles), *data]))
    return path
