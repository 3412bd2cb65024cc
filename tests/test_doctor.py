"""minibert doctor --model: what a folder is, how it is read, and what keeps it from running."""

import json
import os
import shutil

import numpy as np
import pytest
from random_models import random_tensors, tiny_config, write_model
from safetensors.numpy import save_file
from torch_files import write_torch_file

from minibert.checkpoints.examination import examine_model
from minibert.checkpoints.kinds import KINDS, NO_WEIGHTS, other_kind
from minibert.cli import main
from minibert.errors import ModelNotFoundError
from minibert.model import load_model


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


def change(folder, name, **fields):
    """Alter a JSON file of a model."""
    file = folder / name
    raw = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(raw | fields))


def examined(folder):
    return examine_model(str(folder))


def test_a_model_that_runs_is_described_and_the_status_is_0(folder, capsys):
    assert main(["doctor", "--model", str(folder)]) == 0
    out = capsys.readouterr().out
    for fact in (
        "family          bert",
        "shape           2 layers x 32, 4 heads, 64 inside, gelu",
        "longest window  64 tokens",
        "from vocab.txt",
        "[CLS] question [SEP] text [SEP], token types 0 and 1",
        "model.safetensors, 0.",
        "F32",
        "it runs",
    ):
        assert fact in out


def test_the_embedded_model_runs():
    found, problems = examined("embedded")
    assert not problems
    assert found["tokenizer"]["lower-casing"] == "yes: tokenizer_config.json says so"
    assert found["tokenizer"]["special tokens"].startswith("[CLS] 101, [SEP] 102; named in")
    assert "73 arrays U8" in found["weights"]["numbers"]


def test_json_holds_the_same(folder, capsys):
    assert main(["doctor", "--model", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["model", "tokenizer", "weights", "problems"]
    (folder / "config.json").write_text("{")
    assert main(["doctor", "--model", str(folder), "--json"]) == 1
    assert "config" in json.loads(capsys.readouterr().out)["problems"]


def test_what_is_left_out_and_what_stands_before_names_is_told(folder):
    tensors = {f"module.{n}": a for n, a in random_tensors(tiny_config(), 0).items()}
    tensors["module.bert.pooler.dense.bias"] = np.zeros(32, np.float32)
    save_file(tensors, folder / "model.safetensors")
    found, problems = examined(folder)
    assert not problems
    assert found["weights"]["before every name"] == "module."
    assert found["weights"]["left out"] == "module.bert.pooler.dense.bias"


def test_spare_rows_are_told_and_are_no_problem(folder):
    rows = tiny_config().vocab_size + 7
    tensors = random_tensors(tiny_config(), 0)
    words = "bert.embeddings.word_embeddings.weight"
    tensors[words] = np.concatenate([tensors[words], np.zeros((7, 32), np.float32)])
    save_file(tensors, folder / "model.safetensors")
    change(folder, "config.json", vocab_size=rows)
    found, problems = examined(folder)
    assert not problems
    assert found["weights"]["spare rows"].startswith(f"7 of the {rows} word embeddings")


def test_how_lower_casing_was_decided_is_told(folder):
    (folder / "tokenizer_config.json").unlink()
    assert examined(folder)[0]["tokenizer"]["lower-casing"] == "yes: vocab.txt has no capitals"
    change(folder, "tokenizer_config.json", do_lower_case=False)
    expected = "no: tokenizer_config.json says so"
    assert examined(folder)[0]["tokenizer"]["lower-casing"] == expected


def test_where_special_tokens_are_named_is_told(folder):
    (folder / "tokenizer_config.json").unlink()
    said = examined(folder)[0]["tokenizer"]["special tokens"]
    assert said.endswith("named in no file, so the usual ones of vocab.txt")
    change(folder, "special_tokens_map.json", cls_token="[CLS]", sep_token="[SEP]")
    said = examined(folder)[0]["tokenizer"]["special tokens"]
    assert said.endswith("named in special_tokens_map.json")


def test_all_problems_are_told_at_once_with_what_can_be_said(folder, capsys):
    change(folder, "config.json", hidden_act="quick_gelu")
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    _, problems = examined(folder)
    assert list(problems) == ["config", "tokenizer", "weights"]
    assert "hidden_act must be one of" in problems["config"]
    assert "has no '[UNK]' token" in problems["tokenizer"]
    assert "is it a safetensors file?" in problems["weights"]
    assert main(["doctor", "--model", str(folder)]) == 1
    assert "does not run: see its problems above" in capsys.readouterr().err


def test_a_pickle_is_looked_into_and_has_to_be_converted(folder):
    (folder / "model.safetensors").unlink()
    write_torch_file(folder / "pytorch_model.bin", random_tensors(tiny_config(), 0))
    found, problems = examined(folder)
    assert list(problems) == ["weights"]
    assert "Run `minibert convert" in problems["weights"]
    assert found["weights"]["numbers"] == "39 arrays F32"
    found, problems = examined(folder / "pytorch_model.bin")
    assert "is not a safetensors file" in problems["weights"]


def test_weights_without_a_head_are_told(folder):
    tensors = {n: a for n, a in random_tensors(tiny_config(), 0).items() if "qa_" not in n}
    save_file(tensors, folder / "model.safetensors")
    assert "no question-answering head" in examined(folder)[1]["weights"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_found_when_they_run(folder, bad):
    tensors = random_tensors(tiny_config(), 0)
    tensors["qa_outputs.bias"][0] = bad
    save_file(tensors, folder / "model.safetensors")
    assert "NaN or infinite" in examined(folder)[1]["running"]


@pytest.mark.parametrize(
    "name", ["nobody/here", "no such name", "", "/nowhere", "a\0b", "x" * 5000]
)
def test_a_name_that_is_nothing_is_a_problem_or_wrong_usage(name, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if name not in ("", "a\0b"):  # which the command line refuses
        assert main(["doctor", "--model", name]) == 1
        assert "Traceback" not in capsys.readouterr().err
        assert examine_model(name)[1]["files"]
        return
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "--model", name])


@pytest.mark.parametrize("part", ["config.json", "vocab.txt", "tokenizer_config.json"])
@pytest.mark.parametrize("how", ["gone", "empty", "cut", "bytes", "folder", "list", "numbers"])
def test_no_damage_is_a_traceback(folder, part, how, capsys):
    file = folder / part
    content = file.read_bytes()
    file.unlink()
    if how == "folder":
        file.mkdir()
    elif how != "gone":
        file.write_bytes(
            {
                "empty": b"",
                "cut": content[: len(content) // 2],
                "bytes": bytes(range(256)),
                "list": b"[]",
                "numbers": b'{"model_type": 1, "hidden_size": 1e400, "cls_token": 3}',
            }[how]
        )
    status = main(["doctor", "--model", str(folder)])
    out, err = capsys.readouterr()
    assert ("it runs" in out) == (status == 0)
    assert "Traceback" not in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
@pytest.mark.parametrize(
    "part",
    ["config.json", "vocab.txt", "tokenizer.json", "special_tokens_map.json", "model.safetensors"],
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder, part):
    (folder / part).unlink(missing_ok=True)
    os.mkfifo(folder / part)
    examined(folder)
    if part in ("config.json", "vocab.txt", "model.safetensors"):
        assert examined(folder)[1]


def test_what_a_file_says_cannot_steer_a_terminal(folder, capsys):
    tensors = random_tensors(tiny_config(), 0) | {"\x1b[2Jpooler": np.zeros(1, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    change(folder, "config.json", architectures=["\x1b[2J\x07"])
    assert main(["doctor", "--model", str(folder)]) == 0
    assert not {"\x1b", "\x07"} & set(capsys.readouterr().out)


# ---------------------------------------------------------------- folders of other kinds


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.files[0])
def test_a_folder_of_another_kind_is_named_with_the_way_on(folder, kind):
    (folder / "model.safetensors").unlink()
    names = [name.replace("?????", "00001").replace("*", "x") for name in kind.files]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with pytest.raises(ModelNotFoundError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert f"It holds {kind.what} ({', '.join(names)}). " in message
    assert kind.way.replace("{folder}", str(folder)) in message
    assert kind.what in examined(folder)[1]["weights"]


def test_braces_in_a_folder_s_name_are_left_alone():
    assert 'from_pretrained("{option}{x}", from_tf=True)' in other_kind(
        ["tf_model.h5"], "{option}{x}"
    )


def test_a_folder_of_an_unknown_kind_says_what_a_model_s_folder_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert other_kind(["notes.txt"], "x") == ""
    with pytest.raises(ModelNotFoundError, match="A model's folder holds it, config.json and"):
        load_model(tmp_path)


def test_an_adapter_is_no_model_though_it_is_the_only_file_of_safetensors(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match="an adapter"):
        load_model(folder)
    assert "adapter_model.*" in NO_WEIGHTS


def test_a_folder_with_a_model_and_other_things_is_a_model(folder):
    for kind in KINDS:
        for name in kind.files:
            name = name.replace("?????", "00001").replace("*", "x")
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x")
    assert not examined(folder)[1]
    shutil.rmtree(folder)
