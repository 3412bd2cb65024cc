"""Finding a model's files: folders, single files, and the Hub's cache, which is built by hand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_models import random_tensors, tiny_config, write_model
from safetensors.numpy import save_file
from torch_files import write_torch_file

from minibert.checkpoints.conversion import convert
from minibert.checkpoints.hub import EMBEDDED, find_model, find_tokenizer
from minibert.checkpoints.safetensors import open_checkpoint
from minibert.errors import CheckpointError, MinibertError, ModelNotFoundError
from minibert.model import load_model
from minibert.pipelines import pipeline

COMMIT, OTHER = "a" * 40, "b" * 40


def put_in_cache(cache, folder, name="org/tiny", commit=COMMIT, ref="main"):
    """Add a model's files to a Hub cache, as huggingface_hub lays it out."""
    home = cache / ("models--" + name.replace("/", "--"))
    snapshot = home / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / ref).write_text(commit)
    return snapshot


def problem(model, kind=ModelNotFoundError, load=find_model, **options):
    with pytest.raises(kind) as caught:
        load(model, **options)
    assert isinstance(caught.value, MinibertError)
    return str(caught.value)


def qa_weight(model):
    return np.asarray(open_checkpoint(find_model(model).weights).read("qa_outputs.weight"))


def shard(folder):
    """Split a model's weights over two files."""
    (folder / "model.safetensors").unlink()
    tensors = random_tensors(tiny_config(), 0)
    files = {name: f"model-{i % 2 + 1}-of-2.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({n: a for n, a in tensors.items() if files[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def use_pickle(folder):
    """Store a model's weights as they were before safetensors."""
    (folder / "model.safetensors").unlink()
    write_torch_file(folder / "pytorch_model.bin", random_tensors(tiny_config(), 0))
    return folder


@pytest.fixture
def folder(tmp_path):
    """A model folder that a test may change."""
    return write_model(tmp_path / "model")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


# --- folders and files -----------------------------------------------------------------------


def test_nothing_means_the_embedded_model():
    files = find_model()
    assert files.folder == EMBEDDED
    assert files.weights.is_file()


def test_a_folder_of_that_name_does_not_take_the_place_of_the_embedded_model(folder, monkeypatch):
    folder.rename(folder.parent / "embedded")
    monkeypatch.chdir(folder.parent)
    assert find_model("embedded") == find_model()
    assert find_tokenizer("embedded") == EMBEDDED
    assert find_model("./embedded").folder.samefile("embedded")


def test_a_folder_is_found_by_text_and_by_path(folder):
    assert find_model(str(folder)) == find_model(folder)
    assert find_model(folder).weights == folder / "model.safetensors"
    assert find_model(folder).folder == folder


def test_a_relative_folder_and_the_home_folder_are_found(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    for name in ("model", "./model", "~/model", "model/"):
        assert find_model(name).weights.samefile(folder / "model.safetensors")


def test_a_folder_is_preferred_to_a_name_on_the_hub(folder, cache, monkeypatch):
    put_in_cache(cache, folder)
    (folder.parent / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(folder.parent)
    assert "holds no model.safetensors" in problem("org/tiny", cache_dir=cache)


def test_a_weights_file_is_found_and_the_rest_beside_it(folder):
    (folder / "model.safetensors").rename(folder / "best.safetensors")
    files = find_model(folder / "best.safetensors")
    assert (files.folder, files.weights) == (folder, folder / "best.safetensors")
    assert load_model(str(folder / "best.safetensors")).config == tiny_config()


def test_the_only_safetensors_file_of_a_folder_is_taken(folder):
    (folder / "model.safetensors").rename(folder / "best.safetensors")
    assert find_model(folder).weights == folder / "best.safetensors"


def test_model_safetensors_is_preferred_to_others(folder):
    shutil.copy(folder / "model.safetensors", folder / "a.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text("{}")
    assert find_model(folder, accept_pickles=True).weights == folder / "model.safetensors"


def test_a_folder_with_two_safetensors_files_lists_them(folder):
    (folder / "model.safetensors").rename(folder / "b.safetensors")
    shutil.copy(folder / "b.safetensors", folder / "a.safetensors")
    message = problem(folder)
    assert str(folder) in message
    assert "name one of a.safetensors, b.safetensors" in message


def test_an_index_is_found(folder):
    shard(folder)
    index = folder / "model.safetensors.index.json"
    assert find_model(folder).weights == find_model(index).weights == index
    assert load_model(folder).config == tiny_config()


def test_a_folder_with_a_pickle_alone_names_minibert_convert(folder):
    use_pickle(folder)
    message = problem(folder)
    assert "only pytorch_model.bin" in message
    assert f"`minibert convert {folder} NEW_FOLDER`" in message
    assert find_model(folder, accept_pickles=True).weights == folder / "pytorch_model.bin"


def test_a_folder_without_weights_says_what_belongs_into_it(folder):
    (folder / "model.safetensors").unlink()
    message = problem(folder)
    for part in (str(folder), "model.safetensors", "config.json", "tokenizer.json", "vocab.txt"):
        assert part in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "config.json", "model.onnx"])
def test_a_file_that_is_no_safetensors_names_minibert_convert(folder, name):
    (folder / name).write_text("{}")
    message = problem(folder / name)
    assert str(folder / name) in message
    assert "is not a safetensors file" in message
    assert "minibert convert" in message


def test_a_text_called_safetensors_is_refused(folder):
    (folder / "model.safetensors").write_text("I am a text, not a file of weights.")
    assert "is it a safetensors file?" in problem(folder, CheckpointError, load_model)


def test_a_folder_without_its_config_or_tokenizer_is_not_found(folder):
    (folder / "vocab.txt").unlink()
    assert "neither tokenizer.json nor vocab.txt" in problem(folder, load=load_model)
    (folder / "config.json").unlink()
    assert "config.json" in problem(folder, load=load_model)


@pytest.mark.parametrize(
    "name",
    [
        "./missing",
        "../missing",
        "/missing/folder",
        "a/b/c",
        "a//b",
        "a b",
        "C:\\models\\bert",
        "https://huggingface.co/org/name",
        "~minibert_no_such_user/model",
        "nul\0character",
        "modèle",
        "x" * 5000 + "/" * 2,
    ],
)
def test_what_cannot_be_a_name_on_the_hub_is_a_missing_path(name):
    assert "no such folder or file" in problem(name)


@pytest.mark.parametrize("name", ["x" * 300, "org/..", "-org/name", "org/name.", "a--b"])
def test_a_name_that_the_hub_does_not_allow_is_not_found(name, cache):
    assert name in problem(name, cache_dir=cache)


# --- the Hub's cache -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["org/tiny", "tiny", "o.r-g_1/Tiny.2"])
def test_a_model_in_the_cache_is_loaded_offline(folder, cache, name):
    snapshot = put_in_cache(cache, folder, name)
    model = load_model(name, cache_dir=cache)
    assert model.name == name
    assert model.config == tiny_config()
    files = find_model(name, cache_dir=str(cache))
    assert files.folder == snapshot
    assert files.weights == snapshot / "model.safetensors"


def test_a_revision_is_a_branch_a_tag_or_a_commit(folder, cache, tmp_path):
    main = put_in_cache(cache, folder)
    other = put_in_cache(cache, write_model(tmp_path / "two", seed=1), commit=OTHER, ref="v2")
    assert find_model("org/tiny", cache_dir=cache).folder == main
    assert find_model("org/tiny", cache_dir=cache, revision="main").folder == main
    assert find_model("org/tiny", cache_dir=cache, revision="v2").folder == other
    assert find_model("org/tiny", cache_dir=cache, revision=OTHER).folder == other
    one, two = (
        load_model(
            "org/tiny", device="reference", cache_dir=cache, revision=r
        ).weights.qa_outputs.weight
        for r in ("main", "v2")
    )
    assert not np.array_equal(one, two)


def test_a_model_and_its_tokenizer_may_be_named_alike(folder, cache):
    put_in_cache(cache, folder)
    qa = pipeline(
        "question-answering", model="org/tiny", tokenizer="org/tiny", model_kwargs={},
        framework="pt", cache_dir=cache,
    )  # fmt: skip
    assert qa("who ?", "the old captain sailed north")["answer"]


def test_a_tokenizer_of_another_name_needs_no_model(folder, cache, tmp_path):
    words = write_model(tmp_path / "words")
    for file in ("model.safetensors", "config.json"):
        (words / file).unlink()
    snapshot = put_in_cache(cache, words, "org/words", ref="v2")
    assert find_tokenizer("org/words", cache_dir=cache, revision="v2") == snapshot
    model = load_model(folder, tokenizer="org/words", cache_dir=cache, revision="v2")
    assert model.tokenizer.vocab_size == load_model(folder).tokenizer.vocab_size
    for missing, revision in (("org/words", None), ("org/missing", "v2")):
        message = problem(missing, load=find_tokenizer, cache_dir=cache, revision=revision)
        assert missing in message
        assert "not in the Hub's cache" in message


def test_a_revision_that_is_not_there_is_named(folder, cache):
    put_in_cache(cache, folder)
    message = problem("org/tiny", cache_dir=cache, revision="v9")
    assert "org/tiny, revision v9" in message
    assert "HF_HUB_OFFLINE" in message


def test_a_model_that_is_not_in_the_cache_is_not_found(cache):
    message = problem("org/missing", cache_dir=cache)
    for part in ("org/missing", "not a folder here", "cannot be reached", "HF_HUB_OFFLINE"):
        assert part in message
    assert "\n" not in message


def test_shards_in_the_cache_are_loaded(folder, cache):
    snapshot = put_in_cache(cache, shard(folder))
    files = find_model("org/tiny", cache_dir=cache)
    assert files.weights == snapshot / "model.safetensors.index.json"
    assert load_model("org/tiny", cache_dir=cache).config == tiny_config()


def test_a_shard_that_is_not_in_the_cache_is_named(folder, cache):
    snapshot = put_in_cache(cache, shard(folder))
    (snapshot / "model-2-of-2.safetensors").unlink()
    assert "model-2-of-2.safetensors" in problem("org/tiny", load=load_model, cache_dir=cache)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "/b"}}']
)
def test_a_damaged_index_in_the_cache_is_an_error(folder, cache, content):
    snapshot = put_in_cache(cache, shard(folder))
    (snapshot / "model.safetensors.index.json").write_text(content)
    message = problem("org/tiny", MinibertError, load_model, cache_dir=cache)
    assert "org/tiny" in message


def test_a_tokenizer_that_is_not_in_the_cache_is_not_found(folder, cache):
    snapshot = put_in_cache(cache, folder)
    (snapshot / "vocab.txt").unlink()
    message = problem("org/tiny", load=load_model, cache_dir=cache)
    assert "neither tokenizer.json nor vocab.txt" in message


def test_a_config_that_is_not_in_the_cache_is_not_found(folder, cache):
    snapshot = put_in_cache(cache, folder)
    (snapshot / "config.json").unlink()
    assert "org/tiny" in problem("org/tiny", cache_dir=cache)


def test_a_pickle_alone_in_the_cache_names_minibert_convert(folder, cache):
    put_in_cache(cache, use_pickle(folder))
    message = problem("org/tiny", cache_dir=cache)
    assert "no model.safetensors, only pytorch_model.bin" in message
    assert "`minibert convert org/tiny NEW_FOLDER`" in message


def test_no_weights_at_all_in_the_cache_is_an_error(folder, cache):
    (folder / "model.safetensors").unlink()
    put_in_cache(cache, folder)
    message = problem("org/tiny", cache_dir=cache)
    assert message.endswith("has no model.safetensors")


def test_a_pickle_in_the_cache_is_converted(folder, cache, tmp_path):
    put_in_cache(cache, use_pickle(folder))
    new = convert("org/tiny", tmp_path / "new", cache_dir=cache)
    np.testing.assert_array_equal(
        qa_weight(new), random_tensors(tiny_config(), 0)["qa_outputs.weight"]
    )
    assert not any(path.is_symlink() for path in new.iterdir())
    assert load_model(new).config == tiny_config()


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_the_cache_is_where_the_environment_says(folder, tmp_path, variable):
    home = tmp_path / "home"
    put_in_cache(home if variable == "HF_HUB_CACHE" else home / "hub", folder)
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HOME", "HF_HUB_CACHE")}
    program = "from minibert import load_model; print(load_model('org/tiny').config.vocab_size)"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | {variable: str(home), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip() == str(tiny_config().vocab_size)


def test_local_models_do_not_load_the_hub_client(folder):
    program = (
        "import sys; from minibert import load_model; load_model(sys.argv[1]); "
        "print('huggingface_hub' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=Path(folder).parent,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "False", "")
