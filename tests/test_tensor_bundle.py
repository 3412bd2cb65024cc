"""The reader of Google's bert_model.ckpt.  Its files are put together byte by byte."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_tensors, tiny_config, write_model
from tensor_bundles import MAGIC, block, entry, field, number, table, write_tensor_bundle

from minibert.checkpoints.conversion import convert
from minibert.checkpoints.tensor_bundle import read_tensor_bundle
from minibert.errors import CheckpointError, MinibertError, ModelNotFoundError
from minibert.model import load_model

QUERY = "bert/encoder/layer_0/attention/self/query/kernel"


def google_name(name):
    """Transformers' name for an array -> Google's."""
    if name.startswith("qa_outputs."):
        return name.replace("qa_outputs.", "cls/squad/output_").replace("weight", "weights")
    for ours, theirs in (
        ("_embeddings.weight", "_embeddings"),
        ("LayerNorm.weight", "LayerNorm.gamma"),
        ("LayerNorm.bias", "LayerNorm.beta"),
        (".weight", ".kernel"),
        ("layer.", "layer_"),
    ):
        name = name.replace(ours, theirs)
    return name.replace(".", "/")


def google_variables(seed=0):
    """A tiny model as Google's run_squad.py saves it, with what its optimizer keeps."""
    variables = {"global_step": np.array(7, np.int64)}
    for name, array in random_tensors(tiny_config(), seed).items():
        named = google_name(name)
        array = np.ascontiguousarray(array.T) if named.endswith("/kernel") else array
        variables |= {named: array, f"{named}/adam_m": array + 1, f"{named}/adam_v": array + 2}
    return variables


def write_google(folder, variables=None, shards=1):
    """A folder of Google's: bert_config.json, vocab.txt, and a checkpoint."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    raw = json.loads((folder / "config.json").read_text())
    for key in ("model_type", "layer_norm_eps", "architectures"):
        raw.pop(key, None)
    (folder / "bert_config.json").write_text(json.dumps(raw))
    (folder / "config.json").unlink()
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7"\n')
    (folder / "model.ckpt-7.meta").write_bytes(b"a graph")
    variables = google_variables() if variables is None else variables
    write_tensor_bundle(folder / "model.ckpt-7", variables, shards)
    return folder


def logits(folder):
    model = load_model(folder, device="reference")
    windows = model.windows("who wrote it?", ["ada lee wrote the book."])
    return np.concatenate([array for pair in model.logits(windows) for array in pair])


def problem(path, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        read_tensor_bundle(path)
    return str(caught.value)


def write_entries(folder, *entries, header=b"", data=bytes(100)):
    """An index with these entries, behind a header."""
    (folder / "x.ckpt.data-00000-of-00001").write_bytes(data)
    (folder / "x.ckpt.index").write_bytes(table([(b"", header), *entries]))
    return folder / "x.ckpt.index"


@pytest.mark.parametrize("shards", [1, 3])
def test_a_checkpoint_of_google_s_run_squad_becomes_a_model_with_the_same_logits(
    tmp_path, tiny_folder, shards
):
    source = write_google(tmp_path / "old", shards=shards)
    folder = convert(source, tmp_path / "new")
    np.testing.assert_array_equal(logits(folder), logits(tiny_folder))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    assert not (folder / "bert_config.json").exists()
    named = convert(source / "model.ckpt-7.index", tmp_path / "named")
    np.testing.assert_array_equal(logits(named), logits(tiny_folder))


def test_a_pretrained_checkpoint_of_google_s_has_no_head(tmp_path):
    variables = {name: v for name, v in google_variables().items() if "squad" not in name}
    source = write_google(tmp_path / "old", variables)
    with pytest.raises(CheckpointError, match="this BERT has no question-answering head"):
        convert(source, tmp_path / "new")


def test_a_folder_of_google_s_is_said_to_need_converting(tmp_path):
    source = write_google(tmp_path / "old")
    with pytest.raises(ModelNotFoundError) as caught:
        load_model(source)
    assert "only model.ckpt-7.index. Run `minibert convert" in str(caught.value)


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", "<i4", "<i8"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2)])
def test_every_dtype_and_shape_is_read(tmp_path, dtype, shape):
    array = (np.arange(np.prod(shape, dtype=int)).reshape(shape) + 1).astype(dtype)
    path = write_tensor_bundle(
        tmp_path / "x.ckpt", {"a": array, "b/kernel": array, "c": np.ones(1)}
    )
    read = read_tensor_bundle(path)
    np.testing.assert_array_equal(read["a"], array)
    np.testing.assert_array_equal(read["b.weight"], array.T)
    assert read["a"].dtype == array.dtype


def test_what_is_no_number_and_what_the_optimizer_keeps_is_passed_over(tmp_path):
    text = field(1, 7) + field(2, b"") + field(5, 3)
    slot = entry(np.zeros(2, np.float32), 0)
    one = entry(np.zeros(1, np.float32), 0)
    path = write_entries(tmp_path, (b"a", text), (b"b", one), (b"c/adam_m", slot))
    assert list(read_tensor_bundle(path)) == ["b"]


def test_a_checkpoint_of_tensorflow_2_is_told_as_such(tmp_path):
    graph = field(1, 7) + field(2, b"") + field(5, 3)
    path = write_entries(tmp_path, (b"_CHECKPOINTABLE_OBJECT_GRAPH", graph))
    assert "objects of TensorFlow 2" in problem(path)


def test_a_part_that_is_not_there_is_named(tmp_path):
    source = write_google(tmp_path / "old", shards=2)
    (source / "model.ckpt-7.data-00001-of-00002").unlink()
    message = problem(source / "model.ckpt-7.index", ModelNotFoundError)
    assert "model.ckpt-7.data-00001-of-00002" in message


def test_files_of_other_kinds_and_sizes_that_do_not_fit_are_told(tmp_path):
    path = tmp_path / "x.ckpt.index"
    path.write_bytes(b"x" * 100)
    assert "is no table of LevelDB's" in problem(path)
    path.write_bytes(MAGIC.to_bytes(8, "little"))
    assert "is no table of LevelDB's" in problem(path)
    array = np.zeros(25, np.float32)
    outside = entry(array, 4)
    assert "'a' ends at 104 of 100 bytes" in problem(write_entries(tmp_path, (b"a", outside)))
    short = field(1, 1) + field(2, field(2, field(1, 3))) + field(5, 8)
    assert "'a' of shape [3] has 8 bytes" in problem(write_entries(tmp_path, (b"a", short)))
    huge = field(1, 1) + field(2, field(2, field(1, 2**63)) * 40) + field(5, 8)
    assert "has 8 bytes" in problem(write_entries(tmp_path, (b"a", huge)))


@pytest.mark.parametrize(
    "value",
    [
        field(1, 1) + field(2, 3),
        field(1, 1) + field(2, b"\xff"),
        field(1, 1) + field(3, b"x") + field(5, 4),
        field(1, 1) + field(4, b"x") + field(5, 4),
        b"\xff" * 20,
        b"\x80",
        number(1 << 3 | 3),
    ],
)
def test_an_entry_that_is_no_description_is_an_error(tmp_path, value):
    assert "TensorFlow" in problem(write_entries(tmp_path, (b"a", value)))


def test_a_small_index_cannot_make_large_keys_or_the_same_entries_again_and_again(tmp_path):
    key = b"k" * 2000
    assert "longer than its block" in problem(write_entries(tmp_path, (key, b"")))
    inner = block([(b"", b"")] + [(b"k", b"")] * 50)
    handles = block([(b"z", number(0) + number(len(inner) - 5))] * 200)
    places = number(0) * 2 + number(len(inner)) + number(len(handles) - 5)
    path = tmp_path / "x.ckpt.index"
    path.write_bytes(inner + handles + places.ljust(40, b"\0") + MAGIC.to_bytes(8, "little"))
    assert "room for" in problem(path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_index_gives_arrays_or_an_error_of_ours(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    variables = {f"bert/layer_{i}/kernel": np.ones((2, 3), np.float32) for i in range(8)}
    path = write_tensor_bundle(folder / "x.ckpt", variables)
    damaged = bytearray(path.read_bytes())
    places = st.integers(0, len(damaged) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=3)):
        damaged[place] = data.draw(st.integers(0, 255))
    begin, length = data.draw(st.tuples(places, st.integers(0, 3)))
    del damaged[begin : begin + length]
    path.write_bytes(damaged)
    try:
        arrays = read_tensor_bundle(path)
    except MinibertError as error:
        assert "x.ckpt" in str(error)
    else:
        assert all(np.asarray(array).size < 1000 for array in arrays.values())
