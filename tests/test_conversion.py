"""Old checkpoints become folders that load, and hostile ones leave nothing behind."""

import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from random_models import random_tensors, tiny_config, write_model
from safetensors.numpy import load_file, save_file
from torch_files import write_torch_file

from minibert.checkpoints.conversion import convert
from minibert.checkpoints.safetensors import open_checkpoint
from minibert.cli import main
from minibert.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    MinibertError,
    ModelNotFoundError,
    TokenizerError,
)
from minibert.kernels.numbers import quantise_rows
from minibert.model import load_model
from minibert.parameters import full

QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def write_pickle(folder, tensors=None, form="zip", extra=b"", extra_name="extra"):
    """A model folder as it was before safetensors."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    tensors = random_tensors(tiny_config(), 0) if tensors is None else tensors
    write_torch_file(folder / "pytorch_model.bin", tensors, form, extra, extra_name)
    return folder


def write_shards(folder, tensors, shards=2):
    """A model folder with its weights in several files of torch.save, and their index."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    names = {}
    for i in range(shards):
        part = {name: tensors[name] for name in sorted(tensors)[i::shards]}
        file = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        write_torch_file(folder / file, part)
        names |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def logits(folder):
    model = load_model(folder, device="reference")
    windows = model.windows(
        "who wrote it?", ["ada lee wrote the book."], max_seq_length=64, doc_stride=8
    )
    return np.concatenate([array for pair in model.logits(windows) for array in pair])


def refused(source, output, kind=CheckpointError, **options):
    """The message of a conversion that fails and leaves nothing behind."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(kind) as caught:
        convert(source, output, **options)
    assert isinstance(caught.value, MinibertError)
    assert sorted(output.parent.iterdir()) == before
    return str(caught.value)


@pytest.fixture
def tensors():
    return random_tensors(tiny_config(), 0)


# --- what is written -------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_pickle_becomes_a_folder_with_the_same_logits(tmp_path, tiny_folder, form):
    source = write_pickle(tmp_path / "old", form=form)
    folder = convert(source, tmp_path / "new")
    assert folder == tmp_path / "new"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    np.testing.assert_array_equal(logits(folder), logits(tiny_folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_the_arrays_have_transformers_names_and_the_file_says_pt(tmp_path, tensors):
    old = {name.removeprefix("bert."): array for name, array in tensors.items()}
    old["cls.predictions.bias"] = np.zeros(3, np.float32)
    old["embeddings.LayerNorm.gamma"] = old.pop("embeddings.LayerNorm.weight")
    folder = convert(write_pickle(tmp_path / "old", old), tmp_path / "new")
    checkpoint = open_checkpoint(folder / "model.safetensors")
    assert sorted(checkpoint) == sorted(tensors)
    assert checkpoint.metadata == {"format": "pt"}
    for name, array in tensors.items():
        np.testing.assert_array_equal(checkpoint.read(name), array)


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_a_pickle_of_other_floats_is_converted(tmp_path, tensors, dtype):
    old = {name: array.astype(dtype) for name, array in tensors.items()}
    folder = convert(write_pickle(tmp_path / "old", old), tmp_path / "new")
    stored = load_file(folder / "model.safetensors")
    for name, array in old.items():
        assert stored[name].dtype == np.float32
        np.testing.assert_array_equal(stored[name], array.astype(np.float32))


def test_a_weights_file_can_be_named_itself(tmp_path, tiny_folder):
    source = write_pickle(tmp_path / "old")
    (source / "pytorch_model.bin").rename(source / "weights.bin")
    folder = convert(source / "weights.bin", tmp_path / "new")
    np.testing.assert_array_equal(logits(folder), logits(tiny_folder))


def test_safetensors_are_converted_too(tmp_path, tiny_folder):
    folder = convert(tiny_folder, tmp_path / "deep" / "new")
    np.testing.assert_array_equal(logits(folder), logits(tiny_folder))


def test_weights_in_several_pickles_become_one_file(tmp_path, tensors, tiny_folder):
    source = write_shards(tmp_path / "old", tensors, 3)
    np.testing.assert_array_equal(logits(convert(source, tmp_path / "new")), logits(tiny_folder))
    by_index = convert(source / "pytorch_model.bin.index.json", tmp_path / "by index")
    np.testing.assert_array_equal(logits(by_index), logits(tiny_folder))
    convert(source, source, overwrite=True)
    assert not list(source.glob("*.bin*"))


def test_a_part_that_is_missing_damaged_or_not_what_its_index_says_is_named(tmp_path, tensors):
    source = write_shards(tmp_path / "old", tensors)
    first, second = sorted(source.glob("*.bin"))
    kept = second.read_bytes()
    second.unlink()
    message = refused(source, tmp_path / "new", ModelNotFoundError)
    assert f"there is no '{second.name}'" in message
    second.write_bytes(kept[:-100])
    assert f"{second} cannot be read" in refused(source, tmp_path / "new")
    second.write_bytes(first.read_bytes())
    message = refused(source, tmp_path / "new")
    assert f"is in two files, '{second.name}' is one" in message
    second.write_bytes(kept)
    (source / "pytorch_model.bin.index.json").unlink()
    message = refused(source, tmp_path / "new", ModelNotFoundError)
    assert "parts of a model without their index" in message
    assert "Put its pytorch_model.bin.index.json beside them" in message


@pytest.mark.parametrize("name", ["weights.bin", "best.ckpt", "model_best.pth", "epoch=3.pt"])
def test_the_only_file_of_torch_in_a_folder_is_taken_whatever_its_name(
    tmp_path, tensors, tiny_folder, name
):
    source = write_pickle(tmp_path / "old")
    (source / "pytorch_model.bin").rename(source / name)
    for beside in ("training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt"):
        (source / beside).write_bytes(b"no weights")
    with pytest.raises(ModelNotFoundError, match=f"only {name}. Run `minibert convert"):
        load_model(source)
    np.testing.assert_array_equal(logits(convert(source, tmp_path / "new")), logits(tiny_folder))
    (source / "other.bin").write_bytes(b"")
    message = refused(source, tmp_path / "new2", ModelNotFoundError)
    assert f"name one of {', '.join(sorted([name, 'other.bin']))}" in message


def test_a_module_around_the_model_and_what_it_holds_besides_are_left_out(
    tmp_path, tensors, tiny_folder
):
    around = {f"net.bert_qa.{name}": array for name, array in tensors.items()}
    around |= {
        "encoder.loss.weight": np.ones(2, np.float32),
        "net.metric.total": np.ones(1, np.int64),
    }
    source = write_pickle(tmp_path / "old", around)
    np.testing.assert_array_equal(logits(convert(source, tmp_path / "new")), logits(tiny_folder))


def test_float16_rounds_every_number(tmp_path, tensors):
    folder = convert(write_pickle(tmp_path / "old"), tmp_path / "new", dtype="float16")
    stored = load_file(folder / "model.safetensors")
    assert sorted(stored) == sorted(tensors)
    for name, array in tensors.items():
        assert stored[name].dtype == np.float16
        np.testing.assert_array_equal(stored[name], array.astype(np.float16))
    size = (tmp_path / "old" / "pytorch_model.bin").stat().st_size
    assert (folder / "model.safetensors").stat().st_size < 0.6 * size
    assert np.isfinite(logits(folder)).all()


def test_int8_changes_a_number_by_at_most_half_a_scale(tmp_path, tensors, tiny_folder):
    folder = convert(write_pickle(tmp_path / "old"), tmp_path / "new", dtype="int8")
    stored = load_file(folder / "model.safetensors")
    for name, array in tensors.items():
        if array.ndim == 2 and not name.startswith("qa_outputs"):
            scales = stored[f"{name}.scale"]
            assert stored[name].dtype == np.int8
            assert scales.shape == array.shape[:1]
            error = np.abs(stored[name] * scales[:, None].astype(float) - array)
            assert (error <= scales[:, None] * 0.5001).all()
        else:
            np.testing.assert_array_equal(stored[name], array)
    assert open_checkpoint(folder / "model.safetensors").metadata["minibert_layout"] == "int8-1"
    exact = logits(tiny_folder)
    assert 0 < np.abs(logits(folder) - exact).max() < 0.3 * np.abs(exact).max()


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(matrix=arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=FLOATS))
@example(matrix=np.array([[0, 0], [1e-44, 3e-45], [2e-38, -1e-38]], np.float32))
def test_a_quantised_row_has_errors_of_at_most_half_its_scale(matrix):
    int8 = quantise_rows(matrix)
    assert int8.values.dtype == np.int8
    assert int8.scales.dtype == np.float32
    assert np.isfinite(int8.scales).all()
    assert (int8.scales > 0).all()
    assert np.abs(int8.values.astype(int)).max() <= 127
    exact = int8.values * int8.scales[:, None].astype(float)
    assert (np.abs(exact - matrix) <= int8.scales[:, None] * 0.5001).all()
    assert not full(int8)[(matrix == 0).all(axis=1)].any()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_others_may_read_the_folder(tmp_path, tiny_folder):
    folder = convert(tiny_folder, tmp_path / "new")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert all(path.stat().st_mode & stat.S_IROTH for path in folder.iterdir())


# --- an output that is there -----------------------------------------------------------------


def test_an_existing_output_is_refused_and_stays(tmp_path, tiny_folder):
    output = tmp_path / "new"
    output.mkdir()
    (output / "mine").write_text("precious")
    message = refused(tiny_folder, output, InputError)
    assert str(output) in message
    assert "already there" in message
    assert [path.name for path in output.iterdir()] == ["mine"]


@pytest.mark.parametrize("what", ["file", "link", "text", "subfolder"])
def test_only_a_model_is_overwritten(tmp_path, tiny_folder, what):
    output = tmp_path / "new"
    if what == "file":
        output.write_text("precious")
    elif what == "link":
        output.symlink_to(tiny_folder)
    else:
        (output / "sub" if what == "subfolder" else output).mkdir(parents=True)
        (output / "config.json").write_text("{}")
        if what == "text":
            (output / "thesis.txt").write_text("precious")
    message = refused(tiny_folder, output, InputError, overwrite=True)
    assert str(output) in message
    assert "not overwritten" in message
    assert os.path.lexists(output)


def test_overwrite_replaces_the_folder(tmp_path, tiny_folder):
    output = tmp_path / "new"
    output.mkdir()
    (output / "old.safetensors").write_text("")
    convert(tiny_folder, output, overwrite=True)
    assert not (output / "old.safetensors").exists()
    np.testing.assert_array_equal(logits(output), logits(tiny_folder))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_failed_overwrite_leaves_the_old_folder(tmp_path):
    output = convert(write_pickle(tmp_path / "old"), tmp_path / "new")
    before = logits(output)
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"damaged")
    refused(tmp_path / "old", output, overwrite=True)
    np.testing.assert_array_equal(logits(output), before)


def test_a_folder_can_be_converted_onto_itself(tmp_path, tiny_folder):
    folder = write_pickle(tmp_path / "model")
    convert(folder, folder, overwrite=True)
    np.testing.assert_array_equal(logits(folder), logits(tiny_folder))
    assert not (folder / "pytorch_model.bin").exists()


@pytest.mark.parametrize("wrong", [{"report": 1}, {"overwrite": "yes"}], ids=str)
def test_what_is_no_function_and_no_truth_value_is_refused(tiny_folder, tmp_path, wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name} must be "):
        convert(tiny_folder, tmp_path / "out", bits=(5, 6, 6), **wrong)
    assert not (tmp_path / "out").exists()


def test_a_refused_conversion_leaves_what_was_put_aside(tiny_folder, tmp_path):
    for name in ("new", "new.minibert-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    with pytest.raises(InputError):
        convert(tiny_folder, tmp_path / "new")
    assert (tmp_path / "new.minibert-old" / "mine").exists()


def test_an_output_that_cannot_be_written_is_named(tmp_path, tiny_folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        convert(tiny_folder, tmp_path / "file" / "new")
    message = str(caught.value)
    assert "cannot be written" in message
    assert str(tmp_path / "file" / "new") in message


CONVERT = """
import sys
from minibert import convert
convert(sys.argv[1], sys.argv[2], bits=[5, 6, 6])
"""


def test_the_same_model_gives_the_same_bytes_whatever_the_seed_of_hashes(tmp_path, tensors):
    source = write_pickle(tmp_path / "old", dict(reversed(tensors.items())))
    convert(source, tmp_path / "1", bits=[5, 6, 6])
    subprocess.run(
        [sys.executable, "-c", CONVERT, str(source), str(tmp_path / "2")],
        env=os.environ | {"PYTHONHASHSEED": "2"},
        check=True,
    )
    for path in (tmp_path / "1").iterdir():
        assert (tmp_path / "2" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_package_safetensors_reads_and_would_write_the_same_file(tmp_path, tiny_folder, dtype):
    folder = convert(tiny_folder, tmp_path / "new", dtype=dtype)
    ours = folder / "model.safetensors"
    arrays, metadata = load_file(ours), open_checkpoint(ours).metadata
    save_file(arrays, tmp_path / "theirs", metadata)
    if len(metadata) == 1:  # it writes several in any order
        assert (tmp_path / "theirs").read_bytes() == ours.read_bytes()
    for name, array in load_file(tmp_path / "theirs").items():
        np.testing.assert_array_equal(open_checkpoint(ours).read(name), array)


def test_a_disk_that_is_full_is_named_and_leaves_the_old_model(tmp_path, tiny_folder):
    limited = """
import resource, sys
from minibert.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
sys.exit(main(["convert", *sys.argv[1:], "--overwrite"]))
"""
    if os.name == "nt":
        pytest.skip("Windows has no such limit")
    target = convert(tiny_folder, tmp_path / "new", dtype="float16")
    before = logits(target)
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tiny_folder), str(target)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"minibert: error: {target}: cannot be written: File too large\n"
    np.testing.assert_array_equal(logits(target), before)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_a_name_that_no_folder_can_have_is_refused_before_anything_is_read(tmp_path, name):
    with pytest.raises(InputError, match="cannot be written|no folder can have that name"):
        convert("no such model", tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such folders")
@pytest.mark.parametrize("folder", ["/proc/new", "/sys/new"])
def test_a_folder_in_which_nothing_can_be_made_is_named(tiny_folder, folder):
    with pytest.raises(InputError, match=f"^{folder}: cannot be written: "):
        convert(tiny_folder, folder)


def test_the_current_folder_can_be_converted_onto(tmp_path, tiny_folder, monkeypatch):
    folder = convert(tiny_folder, tmp_path / "new", dtype="float16")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="already there"):
        convert(tiny_folder, ".")
    convert(tiny_folder, ".", overwrite=True)
    np.testing.assert_array_equal(logits(folder), logits(tiny_folder))
    with pytest.raises(InputError, match="no part of a model"):
        convert(tiny_folder, "/", overwrite=True)


def test_an_old_model_that_cannot_be_removed_is_named(capsys, tmp_path, tiny_folder, monkeypatch):
    folder = convert(tiny_folder, tmp_path / "new", dtype="float16")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    assert main(["convert", str(tiny_folder), str(folder), "--overwrite"]) == 0
    (left,) = [path for path in tmp_path.iterdir() if path != folder]
    said = f"minibert: {left}: cannot be removed, and is not needed any more\n"
    assert capsys.readouterr().err == said


# --- models that are refused -----------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_pickle_that_runs_a_command_runs_nothing_and_only_its_weights_are_taken(tmp_path, form):
    witness = tmp_path / "witness"
    command = f"echo > {witness}".encode()
    call = b"cos\nsystem\n(X" + len(command).to_bytes(4, "little") + command + b"tR"
    source = write_pickle(tmp_path / "old", form=form, extra=call)
    folder = convert(source, tmp_path / "new")
    assert not witness.exists()
    assert b"system" not in (folder / "model.safetensors").read_bytes()


def test_an_object_in_the_place_of_weights_is_named_and_not_made(tmp_path, tensors):
    witness = tmp_path / "witness"
    command = f"echo > {witness}".encode()
    call = b"cos\nsystem\n(X" + len(command).to_bytes(4, "little") + command + b"tR"
    del tensors[QUERY]
    source = write_pickle(tmp_path / "old", tensors, extra=call, extra_name=QUERY)
    message = refused(source, tmp_path / "new")
    assert f"wrong dtype: {QUERY} is os.system, expected one of F32" in message
    assert not witness.exists()


def test_a_pickle_without_a_head_for_question_answering_is_refused(tmp_path, tensors):
    body = {name: array for name, array in tensors.items() if "qa_outputs" not in name}
    message = refused(write_pickle(tmp_path / "old", body), tmp_path / "new")
    assert "pytorch_model.bin: this BERT has no question-answering head" in message
    wrapped = {f"module.{name}": array for name, array in body.items()}
    message = refused(write_pickle(tmp_path / "wrapped", wrapped), tmp_path / "new")
    assert "this BERT has no question-answering head" in message


def test_every_array_of_another_shape_or_missing_is_named(tmp_path, tensors):
    tensors[QUERY] = np.zeros((32, 31), np.float32)
    del tensors["bert.embeddings.LayerNorm.bias"]
    message = refused(write_pickle(tmp_path / "old", tensors), tmp_path / "new")
    assert f"wrong shape: {QUERY} is [32, 31], the config says [32, 32]" in message
    assert "missing: bert.embeddings.LayerNorm.bias [32]" in message


def test_a_long_list_of_problems_is_cut(tmp_path):
    tensors = {"qa_outputs.weight": np.zeros((2, 32), np.float32)}
    message = refused(write_pickle(tmp_path / "old", tensors), tmp_path / "new")
    assert "  ...\n" in message
    assert len(message.splitlines()) == 13


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_array_with_nan_or_infinity_is_named(tmp_path, tensors, bad):
    tensors[QUERY][1, 2] = bad
    message = refused(write_pickle(tmp_path / "old", tensors), tmp_path / "new")
    assert f"'{QUERY}': in float32, 1 of 1024 values are NaN or infinite" in message


def test_a_float64_beyond_float32_is_refused(tmp_path, tensors):
    tensors[QUERY] = tensors[QUERY].astype(np.float64)
    tensors[QUERY][0, 0] = 1e300
    message = refused(write_pickle(tmp_path / "old", tensors), tmp_path / "new")
    assert f"'{QUERY}': in float32, 1 of 1024 values are NaN or infinite" in message


@pytest.mark.parametrize("dtype", ["i1", "i4", "i8"])
def test_an_array_that_is_no_float_is_named(tmp_path, tensors, dtype):
    tensors[QUERY] = tensors[QUERY].astype(dtype)
    message = refused(write_pickle(tmp_path / "old", tensors), tmp_path / "new")
    assert QUERY in message
    assert {"i1": "which a matrix of integers needs", "i4": "is I32", "i8": "is I64"}[
        dtype
    ] in message


def test_numbers_beyond_float16_are_refused(tmp_path, tensors):
    tensors[QUERY][0, 0] = 1e5
    source = write_pickle(tmp_path / "old", tensors)
    message = refused(source, tmp_path / "new", dtype="float16")
    assert f"{QUERY} holds numbers beyond float16" in message
    convert(source, tmp_path / "new")


def test_int8_is_not_converted_again(tmp_path, tiny_folder):
    int8 = convert(tiny_folder, tmp_path / "int8", dtype="int8")
    assert "is int8 already" in refused(int8, tmp_path / "new", dtype="int8")


def test_int8_becomes_floats_of_the_same_values(tmp_path, tiny_folder):
    int8 = convert(tiny_folder, tmp_path / "int8", dtype="int8")
    floats = convert(int8, tmp_path / "floats")
    np.testing.assert_array_equal(logits(floats), logits(int8))
    assert "minibert_layout" not in open_checkpoint(floats / "model.safetensors").metadata


def test_a_missing_shard_is_not_found(tmp_path):
    source = write_model(tmp_path / "old")
    (source / "model.safetensors").unlink()
    index = {"weight_map": {"qa_outputs.bias": "model-1.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refused(source, tmp_path / "new", ModelNotFoundError)
    assert "model-1.safetensors" in message


def test_a_model_without_its_parts_is_refused_before_anything_is_written(tmp_path):
    source = write_pickle(tmp_path / "old")
    vocab, config = source / "vocab.txt", source / "config.json"
    kept = vocab.read_text(encoding="utf-8")
    vocab.unlink()
    assert "vocab.txt" in refused(source, tmp_path / "new", ModelNotFoundError)
    vocab.write_text(kept + "xyz\nzyx\n", encoding="utf-8")
    refused(source, tmp_path / "new", TokenizerError)
    config.write_text('{"model_type": "deberta"}')
    assert "deberta" in refused(source, tmp_path / "new", ConfigError)
    config.unlink()
    assert "config.json" in refused(source, tmp_path / "new", ModelNotFoundError)
    shutil.rmtree(source)
    refused(source, tmp_path / "new", ModelNotFoundError)


def test_an_unknown_dtype_is_named(tmp_path, tiny_folder):
    message = refused(tiny_folder, tmp_path / "new", InputError, dtype="bfloat16")
    assert "float32, float16, int8, got 'bfloat16'" in message


def test_the_same_array_under_two_names_is_refused(tmp_path, tensors):
    tensors["embeddings.LayerNorm.gamma"] = tensors["bert.embeddings.LayerNorm.weight"]
    message = refused(write_pickle(tmp_path / "old", tensors), tmp_path / "new")
    assert "embeddings.LayerNorm.gamma" in message


# --- torch itself ----------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_torch_wrote_is_converted(tmp_path, tensors, tiny_folder, zipped):
    torch = pytest.importorskip("torch")
    source = write_pickle(tmp_path / "old")
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    path = source / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    np.testing.assert_array_equal(logits(convert(source, tmp_path / "new")), logits(tiny_folder))


@pytest.mark.parity
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_the_files_of_these_tests_are_files_that_torch_reads(tmp_path, tensors, form):
    torch = pytest.importorskip("torch")
    path = write_torch_file(tmp_path / "model.bin", tensors, form)
    state = torch.load(path, weights_only=True)
    assert list(state) == list(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(state[name].numpy(), array)


def test_metadata_of_other_programs_is_not_copied(tmp_path, tensors):
    source = write_model(tmp_path / "old")
    save_file(tensors, source / "model.safetensors", {"format": "flax", "secret": "x"})
    folder = convert(source, tmp_path / "new")
    assert open_checkpoint(folder / "model.safetensors").metadata == {"format": "pt"}
