"""Small files that would fill the memory are refused, and what is read takes a stated multiple.

What tracemalloc counts is the memory of Python and of NumPy.
"""

import gzip
import json
import lzma
import os
import struct
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
from random_models import random_tensors, tiny_config, write_model
from safetensors.numpy import save_file
from squad_files import EXAMPLE
from tensor_bundles import MAGIC as BUNDLE_MAGIC
from tensor_bundles import block, entry, field, number, table
from torch_files import write_torch_file

from minibert.checkpoints.conversion import convert, open_any
from minibert.checkpoints.hub import find_model
from minibert.checkpoints.safetensors import open_checkpoint
from minibert.checkpoints.tensor_bundle import read_tensor_bundle
from minibert.checkpoints.torch_pickle import read_torch_file
from minibert.cli import main
from minibert.commands.stream import without_doubles
from minibert.errors import CheckpointError, InputError, MinibertError, ModelNotFoundError
from minibert.files import LARGEST_JSON, without_bounds
from minibert.model import load_model
from minibert.squad.files import read_squad
from minibert.squad.predictions import read_predictions

MULTIPLE, MORE = 20, 30_000_000  # as minibert/checkpoints/README.md says


@contextmanager
def memory_below(limit):
    """What is done here takes at most so many bytes at any time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes, expected less than {limit:,}"


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_file_that_grows_beyond_reason_is_not_unpacked(tmp_path, pack):
    path = tmp_path / "data.json"
    path.write_bytes(pack(bytes(40_000_000)))
    with memory_below(30_000_000), pytest.raises(InputError, match="more than 100 times as many"):
        read_squad(path)


def test_millions_of_problems_are_counted_and_not_kept(tmp_path):
    path = tmp_path / "data.json"
    start = '{"data": [{"title": "t", "paragraphs": [{"context": "a", "qas": ['
    many = "{}," * 100_000
    path.write_text(f"{start}{many}{{}}]}}]}}]}}")
    with memory_below(40_000_000), pytest.raises(InputError, match=r"[123]0000\d problems"):
        read_squad(path)
    path.write_text(json.dumps({"x" * 3_000_000: 3}))
    with pytest.raises(InputError) as error:
        read_predictions(path)
    assert len(str(error.value)) < 5000


def test_bounds_are_lifted_where_that_is_asked_for(tmp_path, capsys):
    path = tmp_path / "data.json"
    path.write_bytes(gzip.compress(b"[]" + b" " * 20_000_000))
    assert main(["evaluate", "--data", str(path)]) == 1
    assert "--no-bounds lifts this bound" in capsys.readouterr().err
    assert main(["evaluate", "--data", str(path), "--no-bounds"]) == 1
    assert "unpacked" not in capsys.readouterr().err  # but that there are no questions
    with pytest.raises(InputError, match="unpacked"):
        read_squad(path)
    with without_bounds(), pytest.raises(InputError) as error:
        read_squad(path)
    assert "unpacked" not in str(error.value)


def test_parts_of_a_file_count_together(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(gzip.compress(bytes(2_000_000)) * 6)
    with memory_below(30_000_000), pytest.raises(InputError, match="name what comes out"):
        read_predictions(path)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_small_file_may_grow_as_it_likes_and_have_several_parts(tmp_path, pack):
    content = EXAMPLE.read_bytes()
    path = tmp_path / "data.json"
    path.write_bytes(pack(content + b" " * 5_000_000) + pack(b" " * 1_000_000))
    assert read_squad(path).questions == read_squad(EXAMPLE).questions


# ---------------------------------------------------------------- pickles


@pytest.mark.parametrize("copies", [1, 2, 4, 5, 600])
def test_tensors_that_share_their_numbers_may_be_four_times_the_file(tmp_path, copies):
    array = np.zeros((500, 600), np.float32)  # 1.2 MB
    path = write_torch_file(tmp_path / "x.bin", {"x": array})
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    program = entries["archive/data.pkl"]
    begin, end = program.index(b"X\x01\x00\x00\x00x"), len(program) - len(b"u.")
    body = b"".join(
        program[begin:end].replace(b"X\x01\x00\x00\x00x", b"X\x04\x00\x00\x00%04d" % i)
        for i in range(copies)
    )
    entries["archive/data.pkl"] = program[:begin] + body + program[end:]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    if copies <= 4:
        assert len(read_torch_file(path)) == copies
    else:
        with memory_below(10_000_000), pytest.raises(CheckpointError, match="more than 4 times"):
            open_any(path)


OPCODES = {
    "lists": b"]" * 1_000_000,
    "sets": b"\x8f" * 1_000_000,
    "objects": b"cx\ny\n" + b")\x81" * 500_000,
    "memo": b"]" + b"\x94" * 1_000_000,
    "tuples": b"N" + b"\x85" * 1_000_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("kind", OPCODES)
def test_what_a_pickle_leaves_in_memory_is_bounded(tmp_path, form, kind):
    path = write_torch_file(
        tmp_path / "pytorch_model.bin", {"x": np.zeros(1, np.float32)}, form, OPCODES[kind]
    )
    with (
        memory_below(MULTIPLE * path.stat().st_size + MORE),
        pytest.raises(CheckpointError, match="more than 100000 instructions"),
    ):
        read_torch_file(path)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_pickle_of_a_million_instructions_is_not_stepped_through(tmp_path, form):
    tensors = {"x": np.zeros(1, np.float32)}
    path = write_torch_file(tmp_path / "pytorch_model.bin", tensors, form, OPCODES["lists"])
    with pytest.raises(CheckpointError, match="more than 100000 instructions"):
        read_torch_file(path)


# ---------------------------------------------------------------- safetensors


@pytest.mark.parametrize("item", ["[],", "{},", '{"a":[]},', "1,"])
@pytest.mark.parametrize("size", [900_000, 3_000_000])
def test_a_header_takes_a_stated_multiple(tmp_path, item, size):
    path = tmp_path / "model.safetensors"
    header = b'{"x": [' + item.encode() * (size // len(item)) + b"0]}"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with memory_below(MULTIPLE * size + MORE), pytest.raises(CheckpointError):
        open_checkpoint(path)


def test_a_large_file_may_have_a_long_header(tmp_path):
    names = {f"{i:0500}": np.zeros(6000, np.int8) for i in range(5000)}
    save_file(names, tmp_path / "model.safetensors")
    assert len(open_checkpoint(tmp_path / "model.safetensors")) == 5000


def test_an_index_names_at_most_a_thousand_files(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    files = {str(i): f"{i}.safetensors" for i in range(1001)}
    path.write_text(json.dumps({"weight_map": files}))
    with pytest.raises(CheckpointError, match="names 1001 files, expected at most 1000"):
        open_checkpoint(path)
    path.write_bytes(b" " * (LARGEST_JSON + 1))
    with memory_below(2 * LARGEST_JSON), pytest.raises(CheckpointError, match="more than 4000000"):
        open_checkpoint(path)


# ---------------------------------------------------------------- Google's checkpoints


def test_variables_of_a_bundle_take_no_more_than_the_file(tmp_path):
    array = np.zeros((1000, 1000), np.float32)
    entries = [(b"", field(1, 1))]
    entries += [(b"v%03d" % i, entry(array, 0)) for i in range(600)]
    (tmp_path / "model.ckpt.index").write_bytes(table(entries))
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(array.tobytes())
    with memory_below(10_000_000), pytest.raises(CheckpointError, match="more than the 4000000"):
        read_tensor_bundle(tmp_path / "model.ckpt.index")


def test_an_index_of_a_bundle_has_at_most_a_megabyte(tmp_path):
    (tmp_path / "model.ckpt.index").write_bytes(bytes(1_000_001))
    with pytest.raises(CheckpointError, match="1000001 bytes, expected at most 1000000"):
        read_tensor_bundle(tmp_path / "model.ckpt.index")


def test_names_of_a_bundle_cannot_grow_from_a_few_bytes(tmp_path):
    name, grown = b"x" * 990, (number(990) + number(0) + number(0)) * 150_000
    long = number(0) + number(len(name)) + number(0) + name + grown + struct.pack("<2I", 0, 1)
    first = block([(b"", field(1, 1))])
    content = first + long + bytes(5)
    handles = block(
        [
            (b"a", number(0) + number(len(first) - 5)),
            (b"b", number(len(first)) + number(len(long))),
        ]
    )
    places = number(0) * 2 + number(len(content)) + number(len(handles) - 5)
    path = tmp_path / "model.ckpt.index"
    path.write_bytes(
        content + handles + places.ljust(40, b"\0") + BUNDLE_MAGIC.to_bytes(8, "little")
    )
    with (
        memory_below(MULTIPLE * path.stat().st_size),
        pytest.raises(CheckpointError, match="room for"),
    ):
        read_tensor_bundle(path)


def test_an_archive_of_many_entries_takes_a_stated_multiple(tmp_path):
    count = 60_000
    local = b"PK\3\4" + bytes(26)
    entry = b"PK\1\2" + bytes([20, 0, 20]) + bytes(21) + struct.pack("<H", 4) + bytes(16)
    entries = b"".join(entry + b"%04x" % i for i in range(count))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(entries), len(local), 0)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(local + entries + end)
    with (
        memory_below(MULTIPLE * path.stat().st_size),
        pytest.raises(CheckpointError, match="data.pkl"),
    ):
        read_torch_file(path)


# ---------------------------------------------------------------- what is honest


@pytest.mark.filterwarnings("ignore:the vocabulary has 159 tokens")
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", 4, "zip", "legacy"])
@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_loading_takes_a_stated_multiple_of_the_file(tmp_path, dtype, device):
    config = tiny_config(vocab_size=20_000, hidden_size=64)
    folder = write_model(tmp_path / "model", config)
    if dtype in ("zip", "legacy"):
        (folder / "model.safetensors").unlink()
        path = write_torch_file(folder / "pytorch_model.bin", random_tensors(config, 0), dtype)
        with memory_below(MULTIPLE * path.stat().st_size + MORE):
            open_any(path)
        return
    bits = {"bits": dtype} if isinstance(dtype, int) else {"dtype": dtype}
    folder = convert(folder, tmp_path / "new", **bits)
    load_model(folder, device=device)  # compiled code is no part of a checkpoint
    with memory_below(MULTIPLE * (folder / "model.safetensors").stat().st_size + MORE):
        load_model(folder, device=device)


# ---------------------------------------------------------------- depth


DEEP = [b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"]


@pytest.mark.parametrize("text", DEEP, ids=["lists", "objects", "closed"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"],
)
def test_files_of_a_model_that_are_nested_deeply_are_refused(tmp_path, name, text):
    folder = write_model(tmp_path / "model")
    (folder / name).write_bytes(text)
    with pytest.raises(MinibertError):
        load_model(folder, device="reference")


@pytest.mark.parametrize("text", DEEP, ids=["lists", "objects", "closed"])
def test_an_index_that_is_nested_deeply_is_refused(tmp_path, text):
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(text)
    files = find_model(folder)
    for use in (files.parts, files.digest, lambda: files.size, lambda: open_any(files.weights)):
        with pytest.raises(MinibertError):
            use()


@pytest.mark.parametrize("text", DEEP, ids=["lists", "objects", "closed"])
@pytest.mark.parametrize("read", [read_squad, read_predictions])
def test_data_that_are_nested_deeply_are_refused(tmp_path, text, read):
    (tmp_path / "data.json").write_bytes(text)
    with pytest.raises(InputError):
        read(tmp_path / "data.json")


# ---------------------------------------------------------------- what is gone


def test_a_model_whose_files_are_gone_after_a_look_at_them_says_so(tmp_path):
    folder = write_model(tmp_path / "model")
    os.rename(folder / "model.safetensors", folder / "one.safetensors")
    index = folder / "model.safetensors.index.json"
    files = dict.fromkeys(random_tensors(tiny_config(), 0), "one.safetensors")
    index.write_text(json.dumps({"weight_map": files}))
    files = find_model(folder)
    assert files.size == (folder / "one.safetensors").stat().st_size
    assert len(files.digest()) == 64
    (folder / "one.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="one.safetensors"):
        files.digest()
    index.unlink()
    for use in (files.parts, files.digest, lambda: files.size, lambda: open_any(files.weights)):
        with pytest.raises(ModelNotFoundError, match="no index"):
            use()


def test_modules_that_share_their_parameters_are_bounded(tmp_path):
    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def module(part, content):
        return b"cx\ny\n)\x81}" + text(part) + content + b"sb"

    shared = b"}(" + b"".join(text(f"{n}") + b"N" for n in range(2000)) + b"uq\x000"
    parts = b"".join(text(f"m{n}") + module("_parameters", b"h\x00") for n in range(2000))
    whole = shared + module("_modules", b"}(" + parts + b"u")
    path = write_torch_file(tmp_path / "x.bin", {}, "zip", whole, "model")
    with memory_below(60_000_000), pytest.raises(CheckpointError, match="more than 100000 entries"):
        read_torch_file(path)


def test_keys_that_have_one_hash_are_passed_over(tmp_path):
    keys = b"".join(
        b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(40_000)
    )
    array = np.zeros(1, np.float32)
    path = write_torch_file(tmp_path / "x.bin", {"x": array}, "zip", b"}(" + keys + b"u")
    assert list(read_torch_file(path)) == ["x"]


def test_problems_of_a_header_are_counted_and_not_kept(tmp_path):
    header = b"{" + b",".join(b'"%06d":{}' % n for n in range(80_000)) + b"}"
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with memory_below(MORE + 20_000_000), pytest.raises(CheckpointError, match="240000 problems"):
        open_checkpoint(path)


def test_problems_of_added_tokens_are_not_kept(tmp_path):
    write_model(tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    path.write_text(json.dumps({"added_tokens": [0] * 300_000, "model": {"type": "WordPiece"}}))
    with memory_below(MORE), pytest.raises(MinibertError, match="added_tokens must be objects"):
        load_model(tmp_path / "model")


def test_a_long_object_with_a_key_twice_is_found_at_once():
    pairs = [(f"{n}", 0) for n in range(100_000)] + [("99999", 1)]
    with pytest.raises(ValueError, match="'99999' stands twice"):
        without_doubles(pairs)
