"""Matrices in few bits: how they are rounded, how they lie in a file, and what is refused."""

import json
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from random_models import tiny_config, write_model
from safetensors.numpy import load_file, save_file
from test_conversion import logits, refused, write_pickle

from minibert import convert, load_model
from minibert.checkpoints.layouts import pack_integers, packed_shape, unpack_integers
from minibert.checkpoints.safetensors import open_checkpoint
from minibert.cli import main
from minibert.errors import CheckpointError, InputError
from minibert.kernels.numbers import (
    CLIPS,
    largest_integer,
    quantise_rows,
    round_rows,
    row_scales,
    to_integers,
)
from minibert.parameters import Int8, full
from minibert.weights import expected_shapes, load_weights

CONFIG = tiny_config()
WORDS = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"
UP = "bert.encoder.layer.0.intermediate.dense.weight"
BITS = (4, 5, 6, 7, 8)


def stored(folder):
    return load_file(folder / "model.safetensors")


def assert_same(one, two):
    """Two models are stored alike, integer by integer."""
    one, two = stored(one), stored(two)
    assert sorted(one) == sorted(two)
    for name, array in one.items():
        assert array.dtype == two[name].dtype
        np.testing.assert_array_equal(array, two[name])


def strangers_matrix(tensors, name):
    """A matrix, number by number, from nothing but the text of layouts.py."""
    found, scales = tensors[name], tensors[f"{name}.scale"]
    if found.dtype == np.int8:
        return found * scales[:, None]
    b, n, into = found.shape
    matrix = np.zeros((len(scales), into), np.float32)
    for i in range(len(scales)):
        k, r = i // n, i % n
        for j in range(into):
            word = sum(int(found[p, r, j]) * 256**p for p in range(b))
            integer = (word >> k * b) % 2**b - 2 ** (b - 1)
            matrix[i, j] = np.float32(integer) * scales[i]
    return matrix


def change(folder, names, metadata=None):
    """Write some arrays of a stored model anew; None removes one."""
    path = folder / "model.safetensors"
    tensors = {k: v for k, v in (load_file(path) | names).items() if v is not None}
    save_file(tensors, path, metadata or {"minibert_layout": "rows-2"})
    return path


def problem(folder):
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, device="reference")
    return str(caught.value)


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """A tiny model in 5, 6 and 7 bits."""
    return convert(tiny_folder, tmp_path / "small", bits=(5, 6, 7))


# --- rounding --------------------------------------------------------------------------------

MATRICES = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=7),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)
HARD = np.array([[0, 0], [1e-44, 3e-45], [2e-38, -1e-38], [3e38, -1], [1e-30, 1]], np.float32)


@given(matrix=MATRICES, bits=st.sampled_from(BITS))
@example(matrix=HARD, bits=4)
@example(matrix=HARD, bits=8)
def test_what_is_stored_and_loaded_is_what_training_rounds_to(matrix, bits):
    scales = row_scales(matrix, bits)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    integers = to_integers(matrix, scales, bits)
    assert np.abs(integers.values.astype(int)).max() <= largest_integer(bits)
    if bits < 8:
        unpacked = unpack_integers(pack_integers(integers.values, bits), len(matrix))
        np.testing.assert_array_equal(unpacked, integers.values)
    np.testing.assert_array_equal(round_rows(matrix, bits), full(integers))
    np.testing.assert_array_equal(round_rows(matrix, bits, scales), full(integers))


@given(matrix=MATRICES, bits=st.sampled_from(BITS))
@example(matrix=HARD, bits=4)
def test_what_was_rounded_once_stays_as_it_is(matrix, bits):
    once = round_rows(matrix, bits)
    np.testing.assert_array_equal(round_rows(once, bits), once)
    exact = to_integers(matrix, row_scales(matrix, bits), bits)
    np.testing.assert_array_equal(once, exact.values * exact.scales[:, None].astype(float))


@pytest.mark.parametrize("bits", BITS)
def test_each_row_takes_the_scale_with_the_least_error_of_all_clips(bits):
    matrix = np.random.default_rng(0).standard_normal((12, 300)).astype(np.float32)
    matrix[3, 7], matrix[4] = 40, 0  # an outlier; a row of zeros
    chosen = row_scales(matrix, bits)
    largest = np.abs(matrix).max(axis=1)
    errors = []
    for clip in CLIPS:
        scales = np.where(largest > 0, largest * clip / largest_integer(bits), 1)
        errors.append(np.square(round_rows(matrix, bits, scales.astype("f4")) - matrix).sum(axis=1))
    error = np.square(round_rows(matrix, bits) - matrix).sum(axis=1)
    np.testing.assert_allclose(error, np.min(errors, axis=0), rtol=1e-3)
    assert chosen[4] == 1
    assert (error <= errors[0] * 1.001).all()
    if bits == 4:  # where cutting off pays
        assert error[5:].sum() < 0.9 * errors[0][5:].sum()


def test_rows_are_rounded_by_themselves_whatever_block_they_are_in():
    matrix = np.random.default_rng(1).standard_normal((700, 200)).astype(np.float32)
    some = [0, 1, 326, 327, 328, 655, 699]
    np.testing.assert_array_equal(row_scales(matrix, 5)[some], row_scales(matrix[some], 5))
    np.testing.assert_array_equal(round_rows(matrix, 5)[some], round_rows(matrix[some], 5))


# --- files -----------------------------------------------------------------------------------


@given(rows=st.integers(1, 40), columns=st.integers(1, 5), bits=st.integers(4, 7))
def test_every_integer_comes_back_from_bytes_that_are_shared(rows, columns, bits):
    values = np.random.default_rng(rows).integers(
        -(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), np.int8
    )
    packed = pack_integers(values, bits)
    assert packed.shape == packed_shape(values.shape, bits)
    np.testing.assert_array_equal(unpack_integers(packed, rows), values)
    tensors = {"x": packed, "x.scale": np.ones(rows, np.float32)}
    np.testing.assert_array_equal(strangers_matrix(tensors, "x"), values)


@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8, (5, 6, 7), (8, 4, 6)])
def test_a_stored_model_is_the_rounded_one_and_a_stranger_can_read_it(tmp_path, tiny_folder, bits):
    folder = convert(tiny_folder, tmp_path / "small", bits=bits)
    words, attention, feed_forward = (bits,) * 3 if isinstance(bits, int) else bits
    tensors, original = stored(folder), stored(tiny_folder)
    rounded = {}
    for name, array in original.items():
        if array.ndim == 1 or name.startswith("qa_outputs"):
            assert tensors[name].dtype == np.float32
            np.testing.assert_array_equal(tensors[name], array)
            rounded[name] = array
            continue
        count = attention if ".attention." in name else feed_forward if "layer" in name else 8
        count = words if name == WORDS else count
        shape = array.shape if count == 8 else packed_shape(array.shape, count)
        assert tensors[name].shape == shape
        rounded[name] = round_rows(array, count)
        np.testing.assert_array_equal(strangers_matrix(tensors, name), rounded[name])
    assert open_checkpoint(folder / "model.safetensors").metadata == {
        "format": "pt",
        "minibert_layout": "rows-2",
    }
    wide = write_model(tmp_path / "wide")
    save_file(rounded, wide / "model.safetensors")
    np.testing.assert_array_equal(logits(folder), logits(wide))
    back = convert(folder, tmp_path / "back")
    for name, array in rounded.items():
        np.testing.assert_array_equal(stored(back)[name], array)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_processor_computes_with_the_integers_that_are_stored(tmp_path, folder, dtype):
    """As with the same integers in int8-1, bit by bit: nothing is rounded a second time."""
    int8 = convert(folder, tmp_path / "int8", dtype="int8")
    weights = load_weights(open_checkpoint(int8 / "model.safetensors"), CONFIG)
    small = load_weights(open_checkpoint(folder / "model.safetensors"), CONFIG)
    for one, two in zip(weights.layers, small.layers, strict=True):
        for name in ("qkv", "attention_output", "intermediate", "output"):
            ours, theirs = getattr(one, name).weight, getattr(two, name).weight
            assert isinstance(theirs, Int8)
            np.testing.assert_array_equal(ours.values, theirs.values)
            np.testing.assert_array_equal(ours.scales, theirs.scales)
    found = []
    for each in (folder, int8):
        model = load_model(each, device="cpu", dtype=dtype, num_threads=1)
        windows = model.windows("who wrote it?", ["ada lee wrote the book."], max_seq_length=32)
        found.append(np.concatenate(model.logits(windows)[0]))
    np.testing.assert_array_equal(*found)


def test_a_pickle_can_be_stored_in_few_bits(tmp_path, tiny_folder, folder):
    small = convert(write_pickle(tmp_path / "old"), tmp_path / "new", bits=(5, 6, 7))
    assert_same(small, folder)


def test_integers_that_fit_are_kept_as_they_are(tmp_path, tiny_folder, folder):
    int8 = convert(tiny_folder, tmp_path / "int8", dtype="int8")
    again = stored(convert(int8, tmp_path / "again", bits=8))
    for name, array in stored(int8).items():
        np.testing.assert_array_equal(again[name], array)
    same = convert(folder, tmp_path / "same", bits=(5, 6, 7))
    assert_same(same, folder)
    fewer = stored(convert(folder, tmp_path / "fewer", bits=4))
    expected = round_rows(strangers_matrix(stored(folder), UP), 4)
    np.testing.assert_array_equal(strangers_matrix(fewer, UP), expected)
    np.testing.assert_array_equal(
        logits(convert(folder, tmp_path / "bytes", dtype="int8")), logits(folder)
    )


# --- what the rounding costs -----------------------------------------------------------------


def test_the_error_of_each_matrix_and_of_its_worst_row_is_reported(tmp_path, tiny_folder):
    found = {}

    def keep(rounding):
        found[rounding.name] = rounding

    convert(tiny_folder, tmp_path / "small", bits=(4, 6, 8), report=keep)
    original = stored(tiny_folder)
    matrices = [n for n, a in original.items() if a.ndim == 2 and not n.startswith("qa_outputs")]
    assert sorted(found) == sorted(matrices)
    for name, rounding in found.items():
        matrix = original[name].astype(float)
        difference = np.square(round_rows(original[name], rounding.bits) - matrix)
        squares = np.square(matrix)
        rows = np.sqrt(difference.sum(axis=1) / squares.sum(axis=1))
        assert rounding.error == pytest.approx(np.sqrt(difference.sum() / squares.sum()), rel=1e-4)
        assert rounding.worst_row == rows.argmax()
        assert rounding.worst_error == pytest.approx(rows.max(), rel=1e-4)
    assert {(r.kind, r.bits) for r in found.values()} == {
        ("embeddings", 4),
        ("attention", 6),
        ("feed-forward", 8),
        ("others", 8),
    }


def test_the_command_tells_the_size_and_the_errors(capsys, tmp_path, tiny_folder):
    output = tmp_path / "small"
    assert main(["convert", str(tiny_folder), str(output), "--bits", "5,6,6"]) == 0
    out = capsys.readouterr().out
    size = (output / "model.safetensors").stat().st_size
    assert f"the weights are {size:,} bytes" in out
    assert re.search(r"embeddings, 5 bits: relative error \d\.\d\d%, at most", out)
    assert re.search(r"feed-forward, 6 bits: .* in a matrix \(bert\.encoder", out)
    assert main(["convert", str(tiny_folder), str(output), "--bits", "8", "--overwrite"]) == 0
    assert "attention, 8 bits" in capsys.readouterr().out


def test_a_matrix_of_zeros_has_no_error(tmp_path, tiny_folder):
    source = write_model(tmp_path / "zeros")
    tensors = stored(source)
    save_file(tensors | {UP: np.zeros_like(tensors[UP])}, source / "model.safetensors")
    found = []
    convert(source, tmp_path / "small", bits=5, report=found.append)
    assert next(rounding.error for rounding in found if rounding.name == UP) == 0


def test_twelve_layers_in_5_6_and_6_bits_take_24_megabytes():
    config = tiny_config(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=12,
        intermediate_size=1536,
        max_position_embeddings=512,
    )
    size = 0
    for name, shape in expected_shapes(config).items():
        if len(shape) == 1 or name.startswith("qa_outputs"):
            size += 4 * int(np.prod(shape))
            continue
        bits = 5 if "word_embeddings" in name else 6 if "layer" in name else 8
        size += int(np.prod(packed_shape(shape, bits))) + 4 * shape[0]
    assert 23.7e6 < size < 24.1e6


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bits", [3, 9, 0, -5, True, 5.0, "5,6,6", (5, 6), (5, 6, 6, 6), (), (5, 6, 9), (5, 6, None)]
)
def test_bits_that_cannot_be_are_refused(tmp_path, tiny_folder, bits):
    message = refused(tiny_folder, tmp_path / "new", InputError, bits=bits)
    assert "from 4 to 8" in message
    assert repr(bits) in message


def test_bits_and_a_dtype_are_one_too_many(tmp_path, tiny_folder):
    message = refused(tiny_folder, tmp_path / "new", InputError, bits=5, dtype="int8")
    assert "either dtype or bits" in message


@pytest.mark.parametrize("text", ["3", "9", "5,6", "5,6,7,8", "five", "", "5;6;6", "5,,6"])
def test_the_command_refuses_bits_that_cannot_be(capsys, tmp_path, text):
    with pytest.raises(SystemExit) as end:
        main(["convert", "embedded", str(tmp_path / "new"), "--bits", text])
    assert end.value.code == 2
    assert "--bits" in capsys.readouterr().err


def test_the_command_takes_either_a_dtype_or_bits(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["convert", "embedded", str(tmp_path / "new"), "--bits", "5", "--dtype", "int8"])
    assert end.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "shape", [(5, 12, 31), (5, 11, 32), (3, 12, 32), (8, 12, 32), (12, 32), (5, 12, 32, 1), (1,)]
)
def test_packed_bytes_of_another_size_are_named(folder, shape):
    change(folder, {UP: np.zeros(shape, np.uint8)})
    message = problem(folder)
    assert f"wrong shape: {UP} is {list(shape)}" in message
    assert "[64, 32] in 4 to 7 bits is [bits, 8, 32]" in message


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (None, f"missing: {UP}.scale [64]"),
        (np.ones(63, np.float32), f"wrong scale: {UP}.scale is F32 [63], expected F32 [64]"),
        (np.ones(64, np.float16), f"wrong scale: {UP}.scale is F16 [64], expected F32 [64]"),
        (np.full(64, np.nan, np.float32), f"{UP}.scale"),
    ],
)
def test_scales_that_do_not_fit_are_named(folder, scale, said):
    change(folder, {f"{UP}.scale": scale})
    assert said in problem(folder)


def test_only_matrices_may_be_packed(folder):
    change(folder, {"qa_outputs.bias": np.zeros(2, np.uint8)})
    assert "wrong dtype: qa_outputs.bias is U8" in problem(folder)


@pytest.mark.parametrize("layout", ["rows-3", "int4-1", "", "x" * 500])
def test_a_later_layout_is_refused_by_name(folder, layout):
    change(folder, {}, {"minibert_layout": layout})
    message = problem(folder)
    assert repr(layout)[:70] in message
    assert "reads 'int8-1' and 'rows-2'. Install a newer minibert." in message
    assert len(message) < 500


def test_packed_bytes_are_no_matrix_in_the_older_layout(folder):
    change(folder, {}, {"minibert_layout": "int8-1"})
    assert f"wrong dtype: {WORDS} is U8" in problem(folder)


def test_shards_keep_their_layout(tmp_path, folder):
    expected = logits(folder)
    tensors = stored(folder)
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        part = {name: array for name, array in tensors.items() if files[name] == file}
        save_file(part, folder / file, {"minibert_layout": "rows-2"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    np.testing.assert_array_equal(logits(folder), expected)


def test_rounding_to_eight_bits_is_at_least_as_good_as_the_largest_number_at_127():
    matrix = np.random.default_rng(2).standard_normal((50, 400)).astype(np.float32)
    plain = np.square(full(quantise_rows(matrix)) - matrix).sum()
    assert np.square(round_rows(matrix, 8) - matrix).sum() <= plain * 1.001
