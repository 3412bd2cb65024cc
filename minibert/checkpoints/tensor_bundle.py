"""Reads the checkpoints of Google's own BERT, bert_model.ckpt, without TensorFlow.

NAME.index is a table of LevelDB's: blocks of entries, each of which shares the beginning of its
key with the one before.  A key is a variable's name, its value a small protobuf: dtype, shape, and
where in NAME.data-00000-of-00001 the numbers lie.  The first entry, which has no key, says how many
such files there are.  Sizes and ranges are checked; checksums (CRC-32C) are not.

Source: tensorflow/core/protobuf/tensor_bundle.proto, and table_format.txt of LevelDB.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.checkpoints.safetensors import MAX_DIMENSIONS, WeightsFile, quote
from minibert.errors import CheckpointError
from minibert.files import LIFTED_BY, bound

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: where the blocks are listed, and the magic number
LONGEST_NAME = 1000
# The entries of an index, unpacked, take at most so many times its size, and each at least so many
# bytes; names of BERT are three times as long as what is said of them.
LONGER, ENTRY = 16, 100
MAX_INDEX_BYTES = 1_000_000  # that of BERT-large with its optimizer has about 60,000
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # TensorFlow's numbers -> NumPy's
SLOTS = ("adam_m", "adam_v")  # what the optimizer keeps of each variable
# Parts of names there -> in transformers.
NAMES = (
    (r"^cls/squad/output_", "qa_outputs/"),
    ("qa_outputs/weights$", "qa_outputs/weight"),
    (r"/layer_(\d+)/", r"/layer/\1/"),
    ("/kernel$", "/weight"),
    ("_embeddings$", "_embeddings/weight"),
    ("/", "."),
)


def read_tensor_bundle(path: Path) -> dict[str, NDArray[Any]]:
    """Read the variables of a model, without those of the optimizer.

    Args:
        path: the file that ends in .index.

    Returns:
        transformers' name -> array, matrices as [out, in].

    Raises:
        ModelNotFoundError: a file is not there.
        CheckpointError: a file is damaged.
    """
    try:
        index = WeightsFile(path)
        if index.size > bound(MAX_INDEX_BYTES):
            raise ValueError(
                f"its index has {index.size} bytes, expected at most {MAX_INDEX_BYTES}; {LIFTED_BY}"
            )
        header, *entries = _table(index.read(0, index.size).tobytes())
        shards = _message(header[1]).get(1, [1])[-1]
        data: dict[int, WeightsFile] = {}
        taken: Counter[int] = Counter()  # bytes of each shard
        arrays = {}
        for key, value in entries:
            entry = _message(value)
            kind, shard, begin, size = (entry.get(field, [0])[-1] for field in (1, 3, 4, 5))
            name = key.decode()
            if name == "_CHECKPOINTABLE_OBJECT_GRAPH":
                raise ValueError(
                    "it names weights by objects of TensorFlow 2, and not as BERT does"
                )
            if name.endswith(SLOTS) or kind not in DTYPES:
                continue
            sizes = _message(entry.get(2, [b""])[-1]).get(2, [])
            shape = [_message(each).get(1, [0])[-1] for each in sizes]
            count = math.prod(shape)
            if len(shape) > MAX_DIMENSIONS or size != count * np.dtype(DTYPES[kind]).itemsize:
                raise ValueError(f"{quote(name)} of shape {quote(shape)} has {size} bytes")
            if shard not in data:
                file = f"{path.name.removesuffix('.index')}.data-{shard:05}-of-{shards:05}"
                data[shard] = WeightsFile(path.parent / file)
            there = data[shard].size
            if begin + size > there:
                raise ValueError(f"{quote(name)} ends at {begin + size} of {there} bytes")
            taken[shard] += size
            if taken[shard] > there:
                raise ValueError(f"its variables take more than the {there} bytes that are there")
            array = data[shard].read(begin, size).view(DTYPES[kind]).reshape(shape)
            # A dense layer multiplies from the other side there.
            arrays[torch_name(name)] = array.T if name.endswith("/kernel") else array
        return arrays
    except CheckpointError:  # of a file that cannot be read; a ValueError too
        raise
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        # The last three: a number where bytes should be, or the other way round, or nothing.
        reason = error if isinstance(error, ValueError) else "its index is damaged"
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of TensorFlow: {reason}.\n"
            "Is the download complete? Download it and its .data file again."
        ) from None


def torch_name(name: str) -> str:
    """A variable's name in Google's BERT -> transformers'.

    Example:
        >>> torch_name("bert/encoder/layer_0/attention/self/query/kernel")
        'bert.encoder.layer.0.attention.self.query.weight'
        >>> torch_name("cls/squad/output_weights"), torch_name("cls/squad/output_bias")
        ('qa_outputs.weight', 'qa_outputs.bias')
    """
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name


def _table(index: bytes) -> list[tuple[bytes, bytes]]:
    """All keys and values of a table."""
    if len(index) < FOOTER or int.from_bytes(index[-8:], "little") != MAGIC:
        raise ValueError("its index is no table of LevelDB's")
    _, _, begin, size, _ = _numbers(index, len(index) - FOOTER, 4)
    entries: list[tuple[bytes, bytes]] = []
    left = LONGER * len(index)
    for _, handle in _entries(index, begin, size):
        for key, value in _entries(index, *_numbers(handle, 0, 2)[:2]):
            entries.append((key, value))
            left -= ENTRY + len(key) + len(value)
            if left < 0:  # the same block again and again, or long names of which little is said
                raise ValueError("its index names more than it has room for")
    if not entries or entries[0][0]:
        raise ValueError("its index does not begin with a header")
    return entries


def _entries(index: bytes, begin: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block."""
    if begin + size >= len(index) or index[begin + size]:
        raise ValueError(f"its index has no block of {size} bytes at {begin}, or a compressed one")
    block = index[begin : begin + size]
    block = block[: -4 - 4 * int.from_bytes(block[-4:], "little")]  # without its restarts
    at, key = 0, b""
    while at < len(block):
        shared, added, length, at = _numbers(block, at, 3)
        key = key[:shared] + block[at : at + added]
        at += added + length
        if at > len(block) or len(key) > LONGEST_NAME:
            raise ValueError("an entry of its index is longer than its block")
        yield key, block[at - length : at]


def _message(content: bytes) -> dict[int, list[Any]]:
    """The fields of a protobuf: number -> whole numbers or bytes, as often as they stand there."""
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(content):
        tag, at = _numbers(content, at, 1)
        if tag & 7 in (1, 5):  # of 8 or 4 bytes: checksums
            at += 8 if tag & 7 == 1 else 4
            continue
        value, at = _numbers(content, at, 1)
        found: int | bytes = value
        if tag & 7 == 2:  # bytes, and how many
            found, at = content[at : at + value], at + value
        fields.setdefault(tag >> 3, []).append(found)
    return fields


def _numbers(content: bytes, at: int, count: int) -> list[int]:
    """Whole numbers of seven bits a byte, the lowest first; and where they end."""
    found = []
    for _ in range(count):
        end = at
        while content[end] & 128 and end - at < 10:
            end += 1
        found.append(sum((byte & 127) << 7 * i for i, byte in enumerate(content[at : end + 1])))
        at = end + 1
    return [*found, at]
