"""Turn a checkpoint into a folder that minibert loads: safetensors, config.json, tokenizer.

Takes safetensors, old pytorch_model.bin files (read without torch, and without executing anything;
see torch_pickle.py) and the checkpoints of Google's BERT (tensor_bundle.py), and stores numbers as
float32, float16 or int8, or in 4 to 8 bits.  layouts.py describes how integers lie in the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minibert.checkpoints.hub import TOKENIZER_FILES, ModelFiles, find_model
from minibert.checkpoints.layouts import INT8, LAYOUT_KEY, ROWS, pack_integers
from minibert.checkpoints.safetensors import (
    Checkpoint,
    of_arrays,
    open_checkpoint,
    open_shards,
    write_arrays,
)
from minibert.checkpoints.tensor_bundle import read_tensor_bundle
from minibert.checkpoints.torch_pickle import read_torch_file
from minibert.checkpoints.vocabularies import load_tokenizer
from minibert.config import BertConfig, read_json_object
from minibert.documents import to_json
from minibert.drafts import put_back, whole_folder
from minibert.errors import CheckpointError, InputError
from minibert.families import FAMILIES, family_name
from minibert.files import copy_file, naming, present
from minibert.kernels.numbers import largest_integer, quantise_rows, row_scales, to_integers
from minibert.options import STORED_DTYPES, check_bits, check_choice, check_flag, check_path
from minibert.parameters import Int8, Matrix, full
from minibert.reprs import shown
from minibert.weights import HEAD, check_weights, read_matrix

GOOGLE_CONFIG = "bert_config.json"  # what stands for config.json beside Google's checkpoints

# How names of files end that a model's folder holds; only such a folder is overwritten.
MODEL_FILES = (
    *("config.json", ".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "special_tokens_map.json"),
    *("sentencepiece.bpe.model", "spiece.model", "added_tokens.json", "README.md"),
)


@dataclass(frozen=True)
class Rounding:
    """What it costs to store one matrix in few bits."""

    name: str  # as in transformers
    kind: str  # "embeddings", "attention", "feed-forward" or "others"
    bits: int
    squares: float  # sum of the squares of its numbers
    errors: float  # sum of the squares of the errors
    worst_row: int  # the row that changes most, by the error that follows
    worst_error: float  # of that row: root of the errors' squares by the numbers' squares

    @property
    def error(self) -> float:
        """Root of the errors' squares by the numbers' squares; 0 if there are only zeros."""
        return (self.errors / self.squares) ** 0.5 if self.squares else 0.0


def convert(
    model: str | Path,
    output: str | Path,
    *,
    dtype: str = "float32",
    bits: int | Sequence[int] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    report: Callable[[Rounding], None] | None = None,
) -> Path:
    """Write a model as a folder with model.safetensors, config.json and its tokenizer.

    The whole folder is written beside its final place and then renamed: it is complete or absent,
    or as it was before.  The same model gives the same bytes.

    Args:
        model: a folder; a file of safetensors or of torch.save, or the .index of a checkpoint of
            Google's BERT (the config and the tokenizer beside it); or a name on the Hugging Face
            Hub.
        output: the folder to write.
        dtype: how to store the numbers: 'float32', 'float16', or 'int8' (matrices in int8 with
            one scale a row, everything else float32).  A model in int8 becomes floats of the same
            values, which other programs can read.
        bits: store matrices in integers of so many bits, each 4 to 8, with one scale a row: one
            number for all, or three, for the word embeddings, for attention and for the
            feed-forward part.  The other matrices take 8 bits; what is no matrix stays float32, and
            so does the span head.
        revision: branch, tag or commit on the Hub.
        token: for private models on the Hub.
        cache_dir: where the Hub's files are kept.
        overwrite: replace `output` if it is there.
        report: with `bits`, called for each matrix with what its rounding costs.

    Returns:
        The folder.

    Raises:
        MinibertError: the model cannot be read, is no BERT for question answering, or the output
            is in the way.
    """
    check_choice("dtype", dtype, STORED_DTYPES)
    if report is not None and not callable(report):
        raise InputError(f"report must be a function of a Rounding, got {shown(report)}")
    overwrite = check_flag("overwrite", overwrite)
    if bits is not None:
        if dtype != "float32":
            raise InputError(
                f"give either dtype or bits: dtype is {dtype!r}, bits is {shown(bits)}"
            )
        bits = check_bits(bits)
    target = check_path("the output", output)
    if target.name in ("", ".."):  # as in '.', which has no name beside which a draft could lie
        target = Path(os.path.abspath(target))
    put_back(target)
    check_target(target, overwrite)
    files = find_model(
        model,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        accept_pickles=True,
        check=_small_files,
    )
    config = _small_files(files.folder)
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(target) as draft:
            _fill(draft, files, config, dtype, bits, report)
    return target


def _fill(
    draft: Path,
    files: ModelFiles,
    config: BertConfig,
    dtype: str,
    bits: tuple[int, int, int] | None,
    report: Callable[[Rounding], None] | None,
) -> None:
    """Write all files of a model into a folder.

    Raises:
        CheckpointError: the weights cannot be used.
        OSError: the files cannot be written.
    """
    arrays = _arrays(files, config, dtype)
    metadata = {"format": "pt"}
    if bits is not None:
        metadata[LAYOUT_KEY] = ROWS
        stored = _in_bits(arrays, bits, config.family, report)
    else:
        if dtype == "int8":
            metadata[LAYOUT_KEY] = INT8
        stored = _in_dtype(arrays, dtype, config.family)
    write_arrays(draft / "model.safetensors", dict(stored), metadata)
    check_weights(open_checkpoint(draft / "model.safetensors"), config)
    for name in ("config.json", *TOKENIZER_FILES):
        if present(files.folder / name):
            copy_file(files.folder / name, draft / name)
    if not (draft / "config.json").is_file():
        raw = {"model_type": "bert"} | read_json_object(files.folder / GOOGLE_CONFIG)
        (draft / "config.json").write_text(to_json(raw, indent=2) + "\n", encoding="utf-8")


def _small_files(folder: Path) -> BertConfig:
    """The config, which the tokenizer fits."""
    config = BertConfig.from_json(config_file(folder))
    load_tokenizer(folder, config.family).check_fits(config)
    return config


def config_file(folder: Path) -> Path:
    """The config in a folder, which beside Google's checkpoints has another name."""
    google = folder / GOOGLE_CONFIG
    only = present(google) and not present(folder / "config.json")
    return google if only else folder / "config.json"


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse an output that is in the way; only a model is overwritten.

    Raises:
        InputError: it is there, and may not be replaced.
    """
    with naming(target):
        there = os.path.lexists(target)
    if not there:
        return
    if not overwrite:
        raise InputError(
            f"{target}: is already there. Choose another folder, or replace it with "
            "overwrite=True (--overwrite)."
        )
    if target.is_symlink() or not target.is_dir():
        raise InputError(f"{target}: is not a folder, so it is not overwritten")
    with naming(target):
        others = [
            path.name
            for path in sorted(target.iterdir())
            if path.is_dir() or not path.name.endswith(MODEL_FILES)
        ]
    if others:
        raise InputError(
            f"{target}: holds {others[0]!r}, which is no part of a model, so it is not "
            "overwritten. Choose another folder, or remove that."
        )


def _arrays(files: ModelFiles, config: BertConfig, dtype: str) -> Iterator[tuple[str, Matrix]]:
    """The arrays that the config calls for, with BERT's names, in floats or integers."""
    checkpoint = open_any(files.weights)
    names = check_weights(checkpoint, config)
    dtypes = {checkpoint.dtype(name) for name in names.values()}
    if dtype == "int8" and "I8" in dtypes and "U8" not in dtypes:
        raise CheckpointError(f"{files.weights}: is int8 already")
    for plain, name in names.items():
        yield plain, read_matrix(checkpoint, name)


def open_any(path: Path) -> Checkpoint:
    """Open a weights file of any format that can be read, or the index of several.

    Raises:
        ModelNotFoundError: it, or a file that the index names, does not exist.
        CheckpointError: it is damaged.
    """
    if path.name.endswith((".safetensors", ".safetensors.index.json")):
        return open_checkpoint(path)
    if path.name.endswith(".index"):
        return of_arrays(path, read_tensor_bundle(path))
    return open_shards(path, _open_pickle) if path.name.endswith(".json") else _open_pickle(path)


def _open_pickle(path: Path) -> Checkpoint:
    """Open a file of torch.save."""
    unread: dict[str, str] = {}
    return of_arrays(path, read_torch_file(path, unread), unread)


def _in_dtype(
    arrays: Iterator[tuple[str, Matrix]], dtype: str, family: str
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """The arrays in float32, float16 or int8, with the names of their family."""
    for plain, matrix in arrays:
        name = family_name(plain, FAMILIES[family])
        if dtype == "int8" and plain not in HEAD and (isinstance(matrix, Int8) or matrix.ndim == 2):
            int8 = matrix if isinstance(matrix, Int8) else quantise_rows(matrix)
            yield name, int8.values
            yield f"{name}.scale", int8.scales
            continue
        array = full(matrix)
        if dtype == "float16":
            if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
                raise CheckpointError(f"{name} holds numbers beyond float16; use float32")
            yield name, np.ascontiguousarray(array, np.float16)
        else:
            yield name, np.ascontiguousarray(array, np.float32)


def _in_bits(
    arrays: Iterator[tuple[str, Matrix]],
    bits: tuple[int, int, int],
    family: str,
    report: Callable[[Rounding], None] | None,
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """The arrays in the layout rows-2, with the names of their family."""
    for plain, matrix in arrays:
        name = family_name(plain, FAMILIES[family])
        array = full(matrix)
        if array.ndim != 2 or plain in HEAD:
            yield name, np.ascontiguousarray(array, np.float32)
            continue
        kind, count = _kind(plain, bits)
        if isinstance(matrix, Int8) and np.abs(matrix.values.astype(np.int16)).max(
            initial=0
        ) <= largest_integer(count):
            integers = matrix  # which fits, with no error
        else:
            integers = to_integers(array, row_scales(array, count), count)
        if report is not None:
            report(_rounding(name, kind, count, array, full(integers)))
        yield name, integers.values if count == 8 else pack_integers(integers.values, count)
        yield f"{name}.scale", integers.scales


def _kind(plain: str, bits: tuple[int, int, int]) -> tuple[str, int]:
    """What kind of matrix a name of BERT's stands for, and its bits of those for each kind."""
    if plain == "embeddings.word_embeddings.weight":
        return "embeddings", bits[0]
    if not plain.startswith("encoder.layer."):  # small: few bits would save nothing
        return "others", 8
    return ("attention", bits[1]) if ".attention." in plain else ("feed-forward", bits[2])


def _rounding(
    name: str,
    kind: str,
    bits: int,
    array: NDArray[np.floating],
    rounded: NDArray[np.floating],
) -> Rounding:
    """Measure the difference of a matrix [out, in] from what it was rounded to."""
    squares = np.square(array, dtype=np.float64).sum(axis=1)
    errors = np.square(array - rounded, dtype=np.float64).sum(axis=1)
    of_rows = np.sqrt(errors / np.where(squares == 0, 1, squares))
    worst = int(of_rows.argmax())
    return Rounding(
        name=name,
        kind=kind,
        bits=bits,
        squares=float(squares.sum()),
        errors=float(errors.sum()),
        worst_row=worst,
        worst_error=float(of_rows[worst]),
    )
