"""Writes checkpoints of TensorFlow without TensorFlow, byte by byte.

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc, `BundleWriter`; LevelDB's
table_format.txt.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TYPES = {"<f4": 1, "<f8": 2, "<i4": 3, "<i8": 9, "<f2": 19}
MAGIC = 0xDB4775248B80FB57
BLOCK_ENTRIES = 5  # so that a small model has several blocks
RESTART = 3  # every third key stands in full


def number(value: int) -> bytes:
    """A whole number, seven bits a byte, the lowest first."""
    more = b""
    while value > 127:
        more += bytes([value & 127 | 128])
        value >>= 7
    return more + bytes([value])


def field(tag: int, value: int | bytes) -> bytes:
    """A field of a protobuf."""
    if isinstance(value, int):
        return number(tag << 3) + number(value)
    return number(tag << 3 | 2) + number(len(value)) + value


def entry(array: NDArray[np.generic], begin: int, shard: int = 0) -> bytes:
    """The description of a variable."""
    shape = b"".join(field(2, field(1, size)) for size in array.shape)
    parts = [field(1, TYPES[array.dtype.str]), field(2, shape)]
    parts += [field(3, shard)] if shard else []
    parts += [field(4, begin)] if begin else []
    return b"".join([*parts, field(5, array.nbytes), number(6 << 3 | 5), b"\xaa\xbb\xcc\xdd"])


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Keys and values, and where keys stand in full; then its kind and a checksum."""
    content, restarts, before = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % RESTART:
            pairs = zip(key, before, strict=False)
            shared = next((n for n, (a, b) in enumerate(pairs) if a != b), len(before))
        else:
            restarts.append(len(content))
        content += number(shared) + number(len(key) - shared) + number(len(value))
        content += key[shared:] + value
        before = key
    restarts = restarts or [0]
    return content + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts)) + bytes(5)


def table(entries: list[tuple[bytes, bytes]]) -> bytes:
    """An index file."""
    content, handles = b"", []
    for i in range(0, len(entries), BLOCK_ENTRIES):
        part = entries[i : i + BLOCK_ENTRIES]
        written = block(part)
        handles.append((part[-1][0], number(len(content)) + number(len(written) - 5)))
        content += written
    places = b""
    for written in (block([]), block(handles)):
        places += number(len(content)) + number(len(written) - 5)
        content += written
    return content + places.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def write_tensor_bundle(
    prefix: Path, variables: Mapping[str, NDArray[np.generic]], shards: int = 1
) -> Path:
    """Write PREFIX.index and PREFIX.data-..., which variables share in turn; the index's path."""
    data = [b""] * shards
    entries = [(b"", field(1, shards) + field(3, field(1, 1)))]
    for i, (name, array) in enumerate(sorted(variables.items())):
        shard = i % shards
        entries.append((name.encode(), entry(array, len(data[shard]), shard)))
        data[shard] += array.tobytes()
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05}-of-{shards:05}").write_bytes(content)
    index = prefix.with_name(f"{prefix.name}.index")
    index.write_bytes(table(entries))
    return index
