"""Which arrays of a file are a BERT for question answering, and what is said about the others."""

import json
import os
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from random_models import random_tensors, tiny_config, write_model
from safetensors.numpy import save_file

from minibert.checkpoints.safetensors import open_checkpoint
from minibert.errors import CheckpointError
from minibert.kernels.numbers import quantise_rows
from minibert.model import load_model
from minibert.parameters import Dense, Int8, full, map_layers
from minibert.weights import expected_shapes, load_weights, stack

CONFIG = tiny_config()
QUERY = "bert.encoder.layer.0.attention.self.query.weight"
WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture
def tensors():
    """The arrays of a tiny model, to be changed at will."""
    return random_tensors(CONFIG, 0)


def write(folder, tensors, metadata=None):
    path = folder / "model.safetensors"
    save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, path, metadata)
    return path


def write_raw(path, entries):
    """A safetensors file of (dtype, array of bits), for dtypes that NumPy does not have."""
    header, data = {}, b""
    for name, (dtype, array) in entries.items():
        content = array.tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def load(path, config=CONFIG):
    weights = load_weights(open_checkpoint(path), config)
    return replace(weights, layers=map_layers(weights.layers, lambda x: x, lambda x: x))


def problem(path, config=CONFIG):
    with pytest.raises(CheckpointError) as caught:
        load(path, config)
    assert path.name in str(caught.value)
    return str(caught.value)


def numbers(value):
    """Every array in some weights, one after another."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, Int8):
        return [full(value)]
    if value is None:
        return []
    parts = value if isinstance(value, tuple) else vars(value).values()
    return [array for part in parts for array in numbers(part)]


def assert_equal(one, two):
    one, two = numbers(one), numbers(two)
    assert len(one) == len(two) > 20
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def logits(folder):
    """Start and end logits of a question about a text of two windows."""
    model = load_model(folder, device="reference")
    text = "ada lee wrote the old book in paris. the ship was lost north of berlin."
    windows = model.windows("who wrote it?", [text], max_seq_length=20, doc_stride=4)
    assert len(windows) > 1
    return np.concatenate([array for pair in model.logits(windows) for array in pair])


# --- names -----------------------------------------------------------------------------------


def test_every_array_ends_up_in_its_place(tmp_path, tensors):
    weights = load(write(tmp_path, tensors))
    np.testing.assert_array_equal(weights.tables.words.matrix, tensors[WORDS])
    embeddings = "bert.embeddings."
    for table, name in [
        (weights.tables.positions, "position_embeddings"),
        (weights.tables.token_types, "token_type_embeddings"),
    ]:
        np.testing.assert_array_equal(table.matrix, tensors[f"{embeddings}{name}.weight"])
    norm = weights.tables.norm
    np.testing.assert_array_equal(norm.gain, tensors[f"{embeddings}LayerNorm.weight"])
    np.testing.assert_array_equal(norm.bias, tensors[f"{embeddings}LayerNorm.bias"])
    for i, layer in enumerate(weights.layers):
        prefix = f"bert.encoder.layer.{i}."
        for end, field in (("weight", "weight"), ("bias", "bias")):
            parts = [
                tensors[f"{prefix}attention.self.{x}.{end}"] for x in ("query", "key", "value")
            ]
            np.testing.assert_array_equal(getattr(layer.qkv, field), np.concatenate(parts))
            for dense, name in [
                (layer.attention_output, "attention.output.dense"),
                (layer.intermediate, "intermediate.dense"),
                (layer.output, "output.dense"),
            ]:
                np.testing.assert_array_equal(
                    getattr(dense, field), tensors[f"{prefix}{name}.{end}"]
                )
        for norm, name in [
            (layer.attention_norm, "attention.output.LayerNorm"),
            (layer.output_norm, "output.LayerNorm"),
        ]:
            np.testing.assert_array_equal(norm.gain, tensors[f"{prefix}{name}.weight"])
            np.testing.assert_array_equal(norm.bias, tensors[f"{prefix}{name}.bias"])
    np.testing.assert_array_equal(weights.qa_outputs.weight, tensors["qa_outputs.weight"])
    np.testing.assert_array_equal(weights.qa_outputs.bias, tensors["qa_outputs.bias"])
    used = sum(array.size for array in numbers(weights))
    assert used == sum(array.size for array in tensors.values())


def test_names_may_lack_the_prefix(tmp_path, tensors):
    (tmp_path / "bare").mkdir()
    bare = {name.removeprefix("bert."): array for name, array in tensors.items()}
    assert_equal(load(write(tmp_path / "bare", bare)), load(write(tmp_path, tensors)))


def test_gamma_and_beta_are_the_weight_and_bias_of_a_norm(tmp_path, tensors):
    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )

    (tmp_path / "old").mkdir()
    renamed = {old(name): array for name, array in tensors.items()}
    assert any(name.endswith("gamma") for name in renamed)
    assert_equal(load(write(tmp_path / "old", renamed)), load(write(tmp_path, tensors)))


def test_what_else_is_in_the_file_is_ignored(tmp_path, tensors):
    (tmp_path / "more").mkdir()
    more = tensors | {
        "bert.pooler.dense.weight": np.full((3, 3), np.nan, np.float32),
        "bert.embeddings.position_ids": np.arange(64)[None],
        "cls.predictions.bias": np.zeros(7, np.float32),
        "classifier.weight": np.zeros((5, 2), np.int32),
    }
    assert_equal(load(write(tmp_path / "more", more)), load(write(tmp_path, tensors)))


# --- number formats --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_other_floats_give_the_float32_numbers_rounded(tmp_path, tensors, dtype):
    entries, rounded = {}, {}
    for name, array in tensors.items():
        if dtype == "BF16":
            bits = (array.view(np.uint32) >> 16).astype(np.uint16)
            rounded[name] = (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
        else:
            bits = array.astype(f"<f{int(dtype[1:]) // 8}")
            rounded[name] = bits.astype(np.float32)
        entries[name] = (dtype, bits)
    (tmp_path / "rounded").mkdir()
    assert (rounded[WORDS] == tensors[WORDS]).all() == (dtype in ("F64", "F32"))
    weights = load(write_raw(tmp_path / "stored.safetensors", entries))
    assert_equal(weights, load(write(tmp_path / "rounded", rounded)))
    assert all(array.dtype == np.float32 for array in numbers(weights))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_array_with_nan_or_infinity_is_named(tmp_path, tensors, bad):
    tensors[QUERY][3, 5] = bad
    message = problem(write(tmp_path, tensors))
    assert QUERY in message
    assert "NaN or infinite" in message
    assert "[3, 5]" in message


def test_a_float64_beyond_float32_is_infinite(tmp_path, tensors):
    tensors[QUERY] = tensors[QUERY].astype(np.float64)
    tensors[QUERY][0, 0] = 1e300
    assert QUERY in problem(write(tmp_path, tensors))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, bool])
def test_an_array_that_is_no_float_is_refused(tmp_path, tensors, dtype):
    tensors[QUERY] = tensors[QUERY].astype(dtype)
    message = problem(write(tmp_path, tensors))
    assert f"wrong dtype: {QUERY} is " in message
    assert "expected one of F32, F16, BF16, F64" in message


# --- int8 ------------------------------------------------------------------------------------


def store_int8(tensors, name):
    int8 = quantise_rows(tensors[name])
    tensors[name] = int8.values
    tensors[f"{name}.scale"] = int8.scales
    return int8


def test_an_int8_matrix_is_its_values_times_the_scale_of_the_row(tmp_path, tensors):
    int8 = store_int8(tensors, WORDS)
    words = load(write(tmp_path, tensors)).tables.words
    expected = int8.values.astype(np.float32) * int8.scales[:, None]
    ids = np.array([7, 0, 7], np.int32)
    assert isinstance(words.matrix, Int8)
    np.testing.assert_array_equal(full(words.matrix), expected)
    np.testing.assert_array_equal(words.rows(ids), expected[ids])
    assert words.rows(ids).dtype == np.float32


def test_query_key_and_value_may_be_stored_in_different_ways(tmp_path, tensors):
    expected = [full(store_int8(tensors, QUERY))]
    expected += [tensors[QUERY.replace("query", other)] for other in ("key", "value")]
    qkv = load(write(tmp_path, tensors)).layers[0].qkv
    np.testing.assert_array_equal(full(qkv.weight), np.concatenate(expected))


def test_three_int8_matrices_stay_int8_when_stacked(tensors):
    parts = [Dense(quantise_rows(tensors[QUERY]), np.full(32, i, np.float32)) for i in range(3)]
    stacked = stack(parts)
    assert isinstance(stacked.weight, Int8)
    assert stacked.weight.values.shape == (96, 32)
    expected = np.concatenate([full(part.weight) for part in parts])
    np.testing.assert_array_equal(full(stacked.weight), expected)
    assert stacked.bias.tolist() == [0.0] * 32 + [1.0] * 32 + [2.0] * 32


def test_an_int8_matrix_without_its_scale_is_named(tmp_path, tensors):
    store_int8(tensors, QUERY)
    del tensors[f"{QUERY}.scale"]
    message = problem(write(tmp_path, tensors))
    assert "missing: bert.encoder.layer.0.attention.self.query.weight.scale [32]" in message


@pytest.mark.parametrize(
    ("scale", "found"),
    [
        (np.ones(31, np.float32), "F32 [31]"),
        (np.ones((32, 1), np.float32), "F32 [32, 1]"),
        (np.ones(32, np.float16), "F16 [32]"),
        (np.ones(1, np.float32), "F32 [1]"),
    ],
)
def test_a_scale_of_another_kind_is_named(tmp_path, tensors, scale, found):
    store_int8(tensors, QUERY)
    tensors[f"{QUERY}.scale"] = scale
    message = problem(write(tmp_path, tensors))
    assert f"wrong scale: {QUERY}.scale is {found}, expected F32 [32]" in message


def test_a_scale_that_is_not_finite_is_named(tmp_path, tensors):
    store_int8(tensors, QUERY)
    tensors[f"{QUERY}.scale"][1] = np.nan
    assert f"{QUERY}.scale" in problem(write(tmp_path, tensors))


def test_only_matrices_may_be_int8(tmp_path, tensors):
    tensors["qa_outputs.bias"] = np.zeros(2, np.int8)
    assert "wrong dtype: qa_outputs.bias is I8" in problem(write(tmp_path, tensors))


def test_an_unknown_layout_is_named_and_the_known_one_too(tmp_path, tensors):
    message = problem(write(tmp_path, tensors, {"minibert_layout": "int4-1"}))
    assert "'int4-1'" in message
    assert "'int8-1'" in message


def test_the_known_layout_is_read(tmp_path, tensors):
    store_int8(tensors, QUERY)
    load(write(tmp_path, tensors, {"minibert_layout": "int8-1"}))


# --- files that do not fit -------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_a_bert_without_a_head_for_question_answering_is_refused(tmp_path, tensors, prefix):
    body = {
        prefix + name.removeprefix("bert."): array
        for name, array in tensors.items()
        if not name.startswith("qa_outputs")
    }
    body["classifier.weight"] = np.zeros((2, 32), np.float32)
    message = problem(write(tmp_path, body))
    assert "no question-answering head ('qa_outputs.weight' is missing)" in message
    assert "fine-tuned on SQuAD" in message


@pytest.mark.parametrize("name", ["qa_outputs.weight", "qa_outputs.bias"])
def test_half_a_head_is_reported_as_a_missing_array(tmp_path, tensors, name):
    shape = list(tensors.pop(name).shape)
    assert f"missing: {name} {shape}" in problem(write(tmp_path, tensors))


def test_weights_of_another_architecture_are_all_missing(tmp_path):
    message = problem(write(tmp_path, {"roberta.x.weight": np.zeros(2, np.float32)}))
    assert f"({len(expected_shapes(CONFIG))} problems)" in message
    assert "missing: bert.embeddings.word_embeddings.weight" in message
    assert "..." in message
    assert len(message.splitlines()) < 15


def test_all_problems_are_reported_at_once(tmp_path, tensors):
    del tensors["bert.embeddings.LayerNorm.bias"]
    tensors[QUERY] = np.zeros((32, 31), np.float32)
    tensors["qa_outputs.bias"] = np.zeros(2, np.int64)
    message = problem(write(tmp_path, tensors))
    assert "(3 problems)" in message
    assert "missing: bert.embeddings.LayerNorm.bias [32]" in message
    assert f"wrong shape: {QUERY} is [32, 31], the config says [32, 32]" in message
    assert "wrong dtype: qa_outputs.bias is I64" in message
    assert "same model?" in message


def test_a_transposed_matrix_is_a_wrong_shape(tmp_path, tensors):
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    tensors[name] = tensors[name].T
    assert f"wrong shape: {name} is [32, 64]" in problem(write(tmp_path, tensors))


def test_a_config_with_more_layers_misses_them(tmp_path, tensors):
    message = problem(write(tmp_path, tensors), tiny_config(num_hidden_layers=3))
    assert "(16 problems)" in message
    assert "missing: bert.encoder.layer.2.attention.self.query.weight" in message


@pytest.mark.parametrize(
    "other",
    [
        "embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.gamma",
        "bert.embeddings.LayerNorm.gamma",
    ],
)
def test_the_same_array_under_two_names_is_refused(tmp_path, tensors, other):
    first = "bert.embeddings.LayerNorm.weight"
    tensors[other] = tensors[first]
    message = problem(write(tmp_path, tensors))
    assert "twice:" in message
    assert first in message
    assert other in message


# --- several files ---------------------------------------------------------------------------


def test_sharded_weights_give_the_same_logits(tmp_path):
    whole, sharded = write_model(tmp_path / "whole"), write_model(tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    tensors = random_tensors(CONFIG, 0)
    files = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        part = {name: array for name, array in tensors.items() if files[name] == file}
        save_file(part, sharded / file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(logits(sharded), logits(whole))


def test_the_logits_depend_on_every_array(tmp_path):
    expected = logits(write_model(tmp_path / "model"))
    random = np.random.default_rng(0)
    for number, name in enumerate(expected_shapes(CONFIG)):
        tensors = random_tensors(CONFIG, 0)
        key = name if name in tensors else f"bert.{name}"
        tensors[key] = tensors[key] + random.normal(size=tensors[key].shape).astype(np.float32)
        folder = write_model(tmp_path / str(number))
        write(folder, tensors)
        if name.endswith("self.key.bias"):  # adds the same to all scores of a query
            np.testing.assert_allclose(logits(folder), expected, atol=1e-4)
        else:
            assert np.abs(logits(folder) - expected).max() > 1e-3, name


# --- small parts -----------------------------------------------------------------------------


def test_map_layers_changes_every_dense_layer_and_every_norm(tiny_folder):
    weights = load_model(tiny_folder, device="reference").weights
    seen = []

    def dense(each):
        seen.append(each.weight.shape)
        return "dense"

    layers = map_layers(weights.layers, dense, lambda norm: "norm")
    d, f = weights.layers[0].output.weight.shape
    assert seen == [(3 * d, d), (d, d), (f, d), (d, f)] * len(weights.layers)
    for layer in layers:
        parts = layer.qkv, layer.attention_output, layer.intermediate, layer.output
        assert parts == ("dense",) * 4
        assert (layer.attention_norm, layer.output_norm) == ("norm", "norm")


def test_a_layer_too_many_means_another_config(tmp_path):
    folder = write_model(tmp_path / "model", tiny_config(num_hidden_layers=3))
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 2}), "utf-8")
    with pytest.raises(CheckpointError, match=r"unexpected: bert\.encoder\.layer\.2\."):
        load_model(folder)


def test_layers_are_read_one_after_the_other_so_a_model_is_never_there_twice(tmp_path):
    config = tiny_config(num_hidden_layers=40)
    path = write_model(tmp_path, config) / "model.safetensors"
    tracemalloc.start()
    try:
        weights = load_weights(open_checkpoint(path), config)
        layers = map_layers(weights.layers, lambda dense: None, lambda norm: None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(layers) == 40
    assert peak < path.stat().st_size / 2


def test_a_file_that_is_changed_before_its_layers_are_read_is_noticed(tmp_path):
    config = tiny_config()
    path = write_model(tmp_path, config) / "model.safetensors"
    layer = load_weights(open_checkpoint(path), config).layers[0]
    assert layer.qkv.bias.shape == (3 * config.hidden_size,)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        _ = layer.qkv
    with pytest.raises(AttributeError):
        _ = layer.missing


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("how", ["shortened", "written anew"])
def test_a_loaded_model_answers_the_same_whatever_becomes_of_its_file(tmp_path, device, how):
    folder = write_model(tmp_path)
    model = load_model(folder, device=device)
    windows = model.windows("who sailed ?", ["ann sailed the ship ."])
    before = model.logits(windows)
    path = folder / "model.safetensors"
    if how == "shortened":
        os.truncate(path, 0)
    else:
        path.write_bytes(b"\xff" * path.stat().st_size)
    for one, two in zip(before, model.logits(windows), strict=True):
        np.testing.assert_array_equal(one, two)
