"""Arrays, layers and batches for tests, the same in every run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from random_models import random_tensors
from safetensors.numpy import save_file

from minibert.arrays import Floats
from minibert.batches import Batch
from minibert.checkpoints.safetensors import open_checkpoint
from minibert.config import BertConfig
from minibert.parameters import Dense, Norm, Weights
from minibert.weights import load_weights


def normal(seed: int, *shape: int, std: float = 1.0) -> Floats:
    """Random float32 numbers about zero."""
    return np.random.default_rng(seed).normal(0, std, shape).astype(np.float32)


def dense(seed: int, out: int, into: int) -> Dense:
    """A dense layer whose results are as wide as its input."""
    return Dense(normal(seed, out, into, std=into**-0.5), normal(seed + 1, out, std=0.2))


def norm(seed: int, width: int) -> Norm:
    """A layer norm that changes what it gets."""
    return Norm(1 + normal(seed, width, std=0.2), normal(seed + 1, width, std=0.2))


def batch_of(windows: list[tuple]) -> Batch:
    """Windows [(input_ids [S], token_type_ids [S]), ...], one after the other."""
    none = [np.zeros(0, np.int32)]
    lengths = [len(ids) for ids, _ in windows]
    return Batch(
        input_ids=np.concatenate(none + [ids for ids, _ in windows]),
        token_type_ids=np.concatenate(none + [types for _, types in windows]),
        position_ids=np.concatenate(none + [np.arange(n, dtype=np.int32) for n in lengths]),
        cu_seqlens=np.cumsum([0, *lengths], dtype=np.int32),
    )


def random_weights(config: BertConfig, seed: int, folder: Path, calm: bool = False) -> Weights:
    """The weights of a random model, from a new folder in `folder`.

    They are mapped from their file, so no other model may be written to it.
    """
    path = Path(tempfile.mkdtemp(dir=folder)) / "model.safetensors"
    save_file(random_tensors(config, seed, calm), path)
    return load_weights(open_checkpoint(path), config)


def elf(processor: int) -> bytes:
    """The smallest file in the format of machine code, with one section and nothing in it."""
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    for at, size, value in ((18, 2, processor), (40, 8, 64), (58, 2, 64), (60, 2, 1)):
        header[at : at + size] = value.to_bytes(size, "little")
    return bytes(header) + bytes(64)
