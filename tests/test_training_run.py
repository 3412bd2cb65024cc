"""Whole runs: they end in the same weights however often they were interrupted."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_models import write_model
from safetensors.numpy import load_file, save_file
from squad_files import EXAMPLE, squad_file
from test_families import write_family
from torch_files import write_torch_file

from minibert import InputError, convert, drafts, load_model
from minibert.training import trainer as trainers
from minibert.training.run import train
from minibert.training.run_folder import RunFolder
from minibert.training.saved_arrays import read_array
from minibert.training.settings import TrainingSettings

SETTINGS = {
    "device": "reference",
    "per_device_train_batch_size": 16,
    "max_seq_length": 64,
    "doc_stride": 16,
    "learning_rate": 1e-3,
    "num_train_epochs": 2,
    "logging_steps": 1,
    "save_steps": 2,
    "eval_steps": 5,
    "eval_limit": 2,
}  # 6 steps an epoch
# What the log says of time, which no two runs share.
TIMES = ("seconds", "tokens_per_second", "operations_per_second")


class Killed(BaseException):
    """Ends a run at once, as SIGKILL would."""


def settings(**changes):
    return TrainingSettings(**(SETTINGS | changes))


def killing(at):
    """A callback that ends the run at a step."""

    def callback(record):
        if record["step"] == at and record["kind"] == "step":
            raise Killed

    return callback


def log_of(folder):
    lines = (folder / "run/log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def content(folder):
    """All that must be the same: weights, the best weights, the log but for times."""
    names = ("model.safetensors", "best/model.safetensors", "config.json")
    return [(folder / name).read_bytes() for name in names], log_of(folder)


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    result = train(EXAMPLE, tiny_folder, folder, settings())
    return result, folder


def test_a_run_leaves_a_model(whole, tiny_folder):
    result, folder = whole
    assert (result.finished, result.reason) == (True, "complete")
    assert (result.step, result.skipped) == (12, 0)
    model = ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt", "README.md"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*model, "best", "run"])
    assert result.measurement["step"] == 12
    trained, base = load_model(folder), load_model(tiny_folder)
    windows = base.windows("Who?", ["Ada Lee."])
    assert not np.allclose(trained.logits(windows)[0], base.logits(windows)[0])
    assert load_model(folder / "best").config == trained.config
    steps = [record["step"] for record in log_of(folder) if record["kind"] == "step"]
    assert steps == list(range(1, 13))


def test_training_lowers_the_loss(whole):
    losses = [record["loss"] for record in log_of(whole[1]) if record["kind"] == "step"]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.5


def test_the_model_has_a_card(whole):
    card = (whole[1] / "README.md").read_text()
    for part in ("fine-tuned", "squad_example.json", "| seed | 42 |", "| f1 |", "NumPy"):
        assert part in card


@pytest.mark.parametrize(
    "at", [pytest.param(1, marks=pytest.mark.slow), 5, 8, pytest.param(12, marks=pytest.mark.slow)]
)
def test_a_run_killed_at_any_step_goes_on_to_the_same_weights(whole, tiny_folder, tmp_path, at):
    folder = tmp_path / "out"
    with pytest.raises(Killed):
        train(EXAMPLE, tiny_folder, folder, settings(), callbacks=[killing(at)])
    assert not (folder / "model.safetensors").exists()
    assert train(EXAMPLE, tiny_folder, folder, settings()).finished
    assert content(folder) == content(whole[1])


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_in_the_same_weights(whole, tiny_folder, tmp_path):
    folder = tmp_path / "out"
    for at in (3, 4, 7, 9, 11):
        with pytest.raises(Killed):
            train(EXAMPLE, tiny_folder, folder, settings(), callbacks=[killing(at)])
    train(EXAMPLE, tiny_folder, folder, settings())
    assert content(folder) == content(whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("function", ["save", "synchronise", "replace", "fsync"])
def test_a_run_killed_while_it_writes_goes_on(whole, tiny_folder, tmp_path, monkeypatch, function):
    folder = tmp_path / "out"
    where, real = {
        "save": (np, np.save),
        "synchronise": (drafts, drafts.synchronise),
        "replace": (os, os.replace),
        "fsync": (os, os.fsync),
    }[function]
    calls = []
    while True:
        done, limit = 0, len(calls)

        def counting(*args, limit=limit, **options):
            nonlocal done
            done += 1
            if done > 3 * limit + 2:
                raise Killed
            return real(*args, **options)

        monkeypatch.setattr(where, function, counting)
        try:
            train(EXAMPLE, tiny_folder, folder, settings())
            break
        except Killed:
            calls.append(done)
            if (folder / "model.safetensors").exists():  # it was complete
                break
    assert calls
    assert content(folder) == content(whole[1])
    assert not list(folder.rglob("*.draft"))


def test_a_full_disk_ends_the_run_and_loses_nothing(whole, tiny_folder, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    real, calls = np.save, []

    def full(file, array):
        calls.append(file)
        if len(calls) > 8:  # in the middle of the third checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"No space left.*as it was after 4 steps.*same command"):
        train(EXAMPLE, tiny_folder, folder, settings())
    monkeypatch.setattr(np, "save", real)
    train(EXAMPLE, tiny_folder, folder, settings())
    assert content(folder) == content(whole[1])


def test_a_damaged_checkpoint_is_passed_over(whole, tiny_folder, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(Killed):
        train(EXAMPLE, tiny_folder, folder, settings(), callbacks=[killing(7)])
    assert sorted(path.name for path in (folder / "run").glob("checkpoint*")) == [
        "checkpoint-4",
        "checkpoint-6",
    ]
    path = folder / "run/checkpoint-6/first.npy"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 64
    path.write_bytes(damaged)
    train(EXAMPLE, tiny_folder, folder, settings())
    assert content(folder) == content(whole[1])
    with pytest.raises(Killed):
        train(EXAMPLE, tiny_folder, tmp_path / "other", settings(), callbacks=[killing(3)])
    (tmp_path / "other/run/checkpoint-2/state.json").write_text("{")
    with pytest.raises(InputError, match=r"checkpoint-2: is damaged"):
        train(EXAMPLE, tiny_folder, tmp_path / "other", settings())


def test_ctrl_c_finishes_the_step_and_keeps_it(whole, tiny_folder, tmp_path):
    folder = tmp_path / "out"

    def interrupt(record):
        if record["step"] == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="after step 7 of 12; a checkpoint is in"):
        train(EXAMPLE, tiny_folder, folder, settings(), callbacks=[interrupt])
    assert (folder / "run/checkpoint-7/state.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(EXAMPLE, tiny_folder, folder, settings())
    assert content(folder) == content(whole[1])


def test_ctrl_c_during_a_measurement_measures_again(whole, tiny_folder, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    real = trainers.measure

    def interrupted(model, questions, chosen, answered):
        signal.raise_signal(signal.SIGINT)
        return real(model, questions, chosen, answered)

    monkeypatch.setattr(trainers, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt, match="after step 5 of 12"):
        train(EXAMPLE, tiny_folder, folder, settings())
    monkeypatch.setattr(trainers, "measure", real)
    train(EXAMPLE, tiny_folder, folder, settings())
    assert content(folder) == content(whole[1])


def test_a_callback_stops_a_run_and_the_same_call_goes_on(whole, tiny_folder, tmp_path):
    folder = tmp_path / "out"
    seen = []
    stop_at = [lambda record: seen.append(record) or record["step"] < 3]
    result = train(EXAMPLE, tiny_folder, folder, settings(), callbacks=stop_at)
    assert (result.finished, result.reason, result.step) == (False, "stopped by a callback", 3)
    assert [record["step"] for record in seen] == [1, 2, 3]
    train(EXAMPLE, tiny_folder, folder, settings())
    assert content(folder) == content(whole[1])


@pytest.mark.slow
def test_a_time_limit_interrupts_a_run(whole, tiny_folder, tmp_path):
    folder = tmp_path / "out"
    results = []
    while not results or not results[-1].finished:
        results.append(train(EXAMPLE, tiny_folder, folder, settings(time_limit=1e-9)))
    assert [result.step for result in results] == [*range(1, 13)]
    assert results[0].reason == "1e-09 minutes are over"
    assert content(folder) == content(whole[1])


@pytest.mark.slow
def test_what_does_not_change_the_result_may_change_when_a_run_goes_on(
    whole, tiny_folder, tmp_path
):
    folder = tmp_path / "out"
    with pytest.raises(Killed):
        train(EXAMPLE, tiny_folder, folder, settings(), callbacks=[killing(5)])
    changed = settings(logging_steps=5, save_steps=1, eval_steps=3, save_total_limit=1)
    train(EXAMPLE, tiny_folder, folder, changed)
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (whole[1] / weights).read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 1e-4}, "learning_rate was 0.001 and is 0.0001"),
        ({"seed": 1}, "seed was 42 and is 1"),
        ({"limit": 10}, "questions was 11 and is"),
        ({"held_out": 0.5}, "held_out was 0.05 and is 0.5"),
    ],
)
def test_what_changes_the_result_is_refused_when_a_run_goes_on(
    tiny_folder, tmp_path, change, named
):
    folder = tmp_path / "out"
    with pytest.raises(Killed):
        train(EXAMPLE, tiny_folder, folder, settings(), callbacks=[killing(2)])
    with pytest.raises(InputError, match="other settings") as caught:
        train(EXAMPLE, tiny_folder, folder, settings(**change))
    assert named in str(caught.value)


@pytest.mark.slow
def test_a_setting_that_an_older_minibert_did_not_have_stood_at_its_default(
    whole, tiny_folder, tmp_path
):
    folder = tmp_path / "out"
    with pytest.raises(Killed):
        train(EXAMPLE, tiny_folder, folder, settings(), callbacks=[killing(5)])
    for path, name in (("run.json", "ema"), ("checkpoint-4/state.json", "since_best")):
        document = json.loads((folder / "run" / path).read_text())
        del document[name]
        (folder / "run" / path).write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"ema was 0\.0 and is 0\.5"):
        train(EXAMPLE, tiny_folder, folder, settings(ema=0.5))
    train(EXAMPLE, tiny_folder, folder, settings())
    assert content(folder) == content(whole[1])


def test_another_model_is_refused_when_a_run_goes_on(tiny_folder, tmp_path):
    with pytest.raises(Killed):
        train(EXAMPLE, tiny_folder, tmp_path / "out", settings(), callbacks=[killing(2)])
    other = write_model(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="model was"):
        train(EXAMPLE, other, tmp_path / "out", settings())


def test_a_finished_model_is_never_overwritten(whole, tiny_folder):
    before = content(whole[1])
    with pytest.raises(InputError, match="holds a finished model"):
        train(EXAMPLE, tiny_folder, whole[1], settings())
    assert content(whole[1]) == before


def test_a_folder_that_holds_something_else_is_refused(tiny_folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes.txt', and no run to go on with"):
        train(EXAMPLE, tiny_folder, tmp_path, settings())
    with pytest.raises(InputError, match="is not a folder"):
        train(EXAMPLE, tiny_folder, tmp_path / "notes.txt", settings())
    with pytest.raises(InputError, match="no folder can have that name"):
        train(EXAMPLE, tiny_folder, "a\0b", settings())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_two_runs_cannot_share_a_folder(tiny_folder, tmp_path):
    folder = tmp_path / "out"

    def second(record):
        with pytest.raises(InputError, match="another run is writing there"):
            train(EXAMPLE, tiny_folder, folder, settings())
        return False

    assert train(EXAMPLE, tiny_folder, folder, settings(), callbacks=[second]).step == 1


# ---------------------------------------------------------------- kinds of runs


def train_briefly(folder, model, data=EXAMPLE, **changes):
    return train(data, model, folder, settings(**({"max_steps": 2, "held_out": 0} | changes)))


def test_a_model_without_a_head_gets_one_from_the_seed(tiny_folder, tmp_path):
    base = write_model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    encoder = {
        name.removeprefix("bert."): a for name, a in tensors.items() if "qa_outputs" not in name
    }
    encoder["pooler.dense.weight"] = np.zeros((32, 32), np.float32)
    encoder["classifier.weight"] = np.zeros((1, 32), np.float32)
    save_file(encoder, base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"minibert": {"null_threshold": 2}}))
    heads = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        # of its learning rate, 0 in the first step, nothing is left of training
        train_briefly(folder, base, max_steps=1, warmup_steps=1, seed=seed)
        heads.append(load_file(folder / "model.safetensors")["qa_outputs.weight"])
    assert (heads[0] == heads[1]).all()
    assert (heads[0] != heads[2]).all()
    assert 0.01 < heads[0].std() < 0.03
    written = json.loads((tmp_path / "0/config.json").read_text())
    assert written["architectures"] == ["BertForQuestionAnswering"]
    assert "minibert" not in written  # another head's threshold


def test_an_old_pickle_without_a_head_is_trained_too(tmp_path):
    base = write_model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    encoder = {name: array for name, array in tensors.items() if "qa_outputs" not in name}
    write_torch_file(base / "pytorch_model.bin", encoder)
    train_briefly(tmp_path / "out", base, max_steps=1, warmup_steps=1)
    after = load_file(tmp_path / "out/model.safetensors")
    assert all((after[name] == array).all() for name, array in encoder.items())
    assert after.keys() == tensors.keys()


def test_what_is_frozen_stays_as_it_was(tiny_folder, tmp_path):
    train_briefly(tmp_path / "out", tiny_folder, freeze_embeddings=True, freeze_layers=1)
    before, after = (
        load_file(Path(folder) / "model.safetensors") for folder in (tiny_folder, tmp_path / "out")
    )
    changed = {name for name in before if not (before[name] == after[name]).all()}
    assert changed
    assert all("layer.1." in name or "qa_outputs" in name for name in changed)
    with pytest.raises(InputError, match="freeze_layers 3 is more than the 2 layers"):
        train_briefly(tmp_path / "more", tiny_folder, freeze_layers=3)


def test_how_a_step_is_cut_changes_only_roundings(tiny_folder, tmp_path):
    weights = []
    for number, cuts in enumerate(
        (
            {"per_device_train_batch_size": 12},
            {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
            {"per_device_train_batch_size": 12, "max_tokens_per_pass": 130},
        )
    ):
        folder = tmp_path / str(number)
        # SGD-like: with a large epsilon a rounding of the gradient stays a rounding
        train_briefly(folder, tiny_folder, adam_epsilon=1.0, learning_rate=0.1, **cuts)
        weights.append(load_file(folder / "model.safetensors"))
    for name, array in weights[0].items():
        for other in weights[1:]:
            np.testing.assert_allclose(other[name], array, atol=1e-6, err_msg=name)


def test_the_loss_of_a_step_is_the_mean_over_its_windows(tiny_folder, tmp_path):
    triples = [("Who?", "Ada found Lee.", ["Ada"]), ("Where?", "Lee is in Berlin.", ["Berlin"])]
    weights = []
    for times in (1, 3):
        data = squad_file(tmp_path / f"{times}.json", triples * times, list("abcdef"))
        folder = tmp_path / f"out-{times}"
        changes = {"adam_epsilon": 1.0, "learning_rate": 0.1, "max_grad_norm": 0, "max_steps": 1}
        dropout = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
        train_briefly(folder, tiny_folder, data, **changes, **dropout)
        weights.append(load_file(folder / "model.safetensors"))
    for name, array in weights[0].items():
        np.testing.assert_allclose(weights[1][name], array, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_with_an_average_that_is_what_is_kept(whole, tiny_folder, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(Killed):
        train(EXAMPLE, tiny_folder, folder, settings(ema=0.9), callbacks=[killing(7)])
    assert (folder / "run/checkpoint-6/average.npy").exists()
    train(EXAMPLE, tiny_folder, folder, settings(ema=0.9))
    train(EXAMPLE, tiny_folder, tmp_path / "again", settings(ema=0.9))
    assert content(folder) == content(tmp_path / "again")
    plain, mean = (load_file(f / "model.safetensors") for f in (whole[1], folder))
    assert any((plain[name] != mean[name]).any() for name in plain)


def test_a_run_that_does_not_get_better_stops_early(tiny_folder, tmp_path):
    changes = {"eval_steps": 1, "early_stopping": 2, "learning_rate": 1e-12}
    result = train(EXAMPLE, tiny_folder, tmp_path / "out", settings(**changes))
    assert result.finished
    assert (result.reason, result.step) == ("F1 has not risen in 2 measurements", 3)


def test_questions_to_measure_on_may_come_from_a_file(tiny_folder, tmp_path):
    data = squad_file(tmp_path / "dev.json", [("Who?", "Ada found Lee.", ["Ada"])])
    chosen = settings(max_steps=2)
    result = train(EXAMPLE, tiny_folder, tmp_path / "out", chosen, eval_data=data)
    assert result.measurement["total"] == 1
    assert "questions | 14" not in (tmp_path / "out/README.md").read_text()
    assert "14 questions" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("family", ["distilbert", "roberta", "electra", "albert"])
def test_every_family_comes_back_as_it_was_but_for_training(tmp_path, family):
    _, base = write_family(tmp_path, family)
    train_briefly(tmp_path / "out", base, max_steps=1, warmup_steps=1)
    before, after = (load_file(f / "model.safetensors") for f in (base, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)


@pytest.mark.parity
def test_transformers_loads_the_model_and_computes_the_same_logits(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    base = write_model(tmp_path / "base")
    document = json.loads((base / "config.json").read_text())
    # of a cross-encoder, which has one label
    document |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (base / "config.json").write_text(json.dumps(document))
    train_briefly(tmp_path / "out", base)
    ours = load_model(tmp_path / "out")
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    (window,) = ours.windows("Who found the ship?", ["Ada found the ship in Berlin."])
    with torch.no_grad():
        out = theirs(
            torch.tensor(window.input_ids[None].astype("int64")),
            token_type_ids=torch.tensor(window.token_type_ids[None].astype("int64")),
        )
    (start, end) = ours.logits([window])[0]
    np.testing.assert_allclose(start, out.start_logits[0].numpy(), atol=2e-5)
    np.testing.assert_allclose(end, out.end_logits[0].numpy(), atol=2e-5)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("triples", "message"),
    [
        ([("Who?", "Ada found Lee.", ["Paris"])] * 2, "the answer does not stand in the text"),
        ([("Who?", "Ada found Lee.", [])] * 2, "no window holds an answer"),
    ],
)
def test_data_that_teach_nothing_are_refused(tiny_folder, tmp_path, triples, message):
    data = squad_file(tmp_path / "data.json", triples)
    with pytest.raises(InputError, match=message):
        train_briefly(tmp_path / "out", tiny_folder, data)


def test_data_without_right_answers_are_refused(tiny_folder, tmp_path):
    rows = [{"id": "1", "question": "Who?", "context": "Ada."}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="holds no right answers, so it is no training data"):
        train_briefly(tmp_path / "out", tiny_folder, tmp_path / "data.json")


def test_one_article_cannot_be_trained_on_and_kept_apart(tiny_folder, tmp_path):
    data = squad_file(tmp_path / "data.json", [("Who?", "Ada found Lee.", ["Ada"])])
    with pytest.raises(InputError, match=r"--eval-data.*--held-out 0"):
        train(data, tiny_folder, tmp_path / "out", settings())
    assert train_briefly(tmp_path / "out", tiny_folder, data).finished


def test_a_run_that_diverges_says_what_to_do(tiny_folder, tmp_path):
    changes = {"learning_rate": 1e30, "num_train_epochs": 40, "max_grad_norm": 0}
    message = r"skipped, because the loss is nan: the run diverges.*lower learning rate than 1e\+30"
    with np.errstate(all="ignore"), pytest.raises(InputError, match=message):
        train(EXAMPLE, tiny_folder, tmp_path / "out", settings(held_out=0, **changes))
    assert log_of(tmp_path / "out")[-1]["skipped"] == 19
    with np.errstate(all="ignore"), pytest.raises(InputError, match="logits are not finite"):
        train(EXAMPLE, tiny_folder, tmp_path / "measured", settings(**changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_seq_length": 65}, "beyond the 64 positions"),
        ({"doc_stride": 62}, "no way to advance"),
        ({"device": "cuda"}, "training runs on the processor"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny_folder, tmp_path, change, message):
    with pytest.raises((InputError, RuntimeError), match=message):
        train(EXAMPLE, tiny_folder, tmp_path / "out", settings(**change))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the command

OPTIONS = ["--device", "reference", "--per-device-train-batch-size", "16", "--max-seq-length", "64"]
OPTIONS += ["--doc-stride", "16", "--learning-rate", "1e-3", "--num-train-epochs", "2"]
OPTIONS += ["--logging-steps", "1", "--save-steps", "2", "--eval-steps", "5", "--eval-limit", "2"]


def command(model, folder):
    words = ["-m", "minibert", "train", "--data", EXAMPLE, "--model", model, "--output-dir", folder]
    return [sys.executable, *map(str, words), *OPTIONS]


def test_the_command_trains(capsys, whole, tiny_folder, tmp_path):
    from minibert.cli import main

    assert main([str(word) for word in command(tiny_folder, tmp_path / "out")[3:]]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["finished"] is True
    assert "step 12/12, epoch 2.00, loss" in err
    assert content(tmp_path / "out") == content(whole[1])
    assert main([str(word) for word in command(tiny_folder, tmp_path / "out")[3:]]) == 1
    assert "holds a finished model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_ended_goes_on(whole, tiny_folder, tmp_path, number):
    folder = tmp_path / "out"
    with subprocess.Popen(
        command(tiny_folder, folder), stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as running:
        for line in running.stderr:
            if line.startswith("step 3/12"):
                running.send_signal(number)
                break
        rest = running.stderr.read()
    expected = {signal.SIGTERM: 143, signal.SIGKILL: -9, signal.SIGINT: 130}
    assert running.returncode == expected[number], rest
    if number != signal.SIGKILL:
        assert "a checkpoint is in" in rest
        assert "the same command goes on from there" in rest
    done = subprocess.run(
        command(tiny_folder, folder), capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stderr
    assert content(folder) == content(whole[1])


def test_contradictions_on_the_command_line_are_wrong_usage(capsys):
    from minibert.cli import main

    for words in (
        ["--dropout", "0", "--hidden-dropout-prob", "0"],
        ["--max-steps", "3", "--num-train-epochs", "1"],
        ["--batch-tokens", "3", "--per-device-train-batch-size", "1"],
        ["--eval-data", "x", "--held-out", "0.1"],
        [],
    ):
        needed = ["--data", "x", "--output-dir", "y"] if words else []
        with pytest.raises(SystemExit) as end:
            main(["train", *needed, *words])
        assert end.value.code == 2
    capsys.readouterr()


# ---------------------------------------------------------------- damage and accidents


def interrupted_run(tiny_folder, folder):
    """A run that was killed behind its second checkpoint."""
    with pytest.raises(Killed):
        train(EXAMPLE, tiny_folder, folder, settings(), callbacks=[killing(5)])
    return sorted(folder.glob("run/checkpoint-*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda last: (last / "weights.npy").write_bytes(b""),
        lambda last: (last / "state.json").write_text(
            (last / "state.json").read_text().replace('"step": 4', '"step": 400')
        ),
    ],
    ids=["empty array", "another digit"],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tiny_folder, tmp_path, whole, damage):
    last = interrupted_run(tiny_folder, tmp_path / "out")[-1]
    damage(last)
    assert train(EXAMPLE, tiny_folder, tmp_path / "out", settings()).finished
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "out", whole[1]))
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_a_run_goes_on_beside_what_was_left_of_the_best_model(tiny_folder, tmp_path):
    interrupted_run(tiny_folder, tmp_path / "out")
    (tmp_path / "out/best.minibert-old").mkdir()
    log = tmp_path / "out/run/log.jsonl"
    log.write_bytes(b"\xff\xfe{{" + log.read_bytes()[4:])
    assert train(EXAMPLE, tiny_folder, tmp_path / "out", settings()).finished
    assert not (tmp_path / "out/best.minibert-old").exists()


@pytest.mark.parametrize("header", ["(83}8320,)", "(", "(8,)) +", "\x00", "(8,), " + "-" * 40])
def test_a_damaged_header_of_an_array_is_a_value_error(tmp_path, header):
    np.save(tmp_path / "a.npy", np.zeros(8, np.float32))
    content = (tmp_path / "a.npy").read_bytes()
    damaged = content.replace(b"(8,), }", f"{header}, }}".encode().ljust(7))
    (tmp_path / "a.npy").write_bytes(damaged[: len(content)])
    with pytest.raises(ValueError, match=r"a\.npy is damaged"):
        read_array(tmp_path / "a.npy", np.zeros(8, np.float32))


def test_damaged_lines_of_a_log_are_passed_over(tmp_path):
    (tmp_path / "run").mkdir()
    lines = (
        *(b"\xff\xfe{{", b"[" * 100_000, b"5", b'{"kind": "step"}', b'{"kind": [], "step": 1}'),
        *(b'{"kind": "step", "step": 1, "loss": "x"}', b'{"kind": "step", "step": 1, "loss": NaN}'),
        *(b'{"kind": "measurement", "step": 1}', b'{"kind": "step", "step": 1%s}' % (b"0" * 400)),
        *(b'{"kind": "step", "step": 2, "loss": 0.5}', b""),
    )
    (tmp_path / "run/log.jsonl").write_bytes(b"\n".join(lines))
    assert RunFolder(tmp_path).records() == [{"kind": "step", "step": 2, "loss": 0.5}]


def test_a_header_that_is_none_is_refused(tiny_folder, tmp_path):
    interrupted_run(tiny_folder, tmp_path / "out")
    for damage in (b"[" * 100_000, b"5", b"\xff", b'{"minibert": 5'):
        (tmp_path / "out/run/run.json").write_bytes(damage)
        with pytest.raises(InputError, match=r"run\.json: is not the file of an earlier run"):
            train(EXAMPLE, tiny_folder, tmp_path / "out", settings())


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "Make room"), (errno.EDQUOT, "Make room"), (errno.EROFS, "Mend that")],
)
def test_what_cannot_be_written_is_said_with_its_cause(
    tiny_folder, tmp_path, monkeypatch, number, remedy
):
    def failing(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)  # a disk may say so only then
    cause = rf"cannot be written: {os.strerror(number)}"
    with pytest.raises(InputError, match=rf"{cause}\. {remedy}, then the same command goes on"):
        train(EXAMPLE, tiny_folder, tmp_path / "out", settings())
    with pytest.raises(InputError, match=rf"new: {cause}$"):
        convert(tiny_folder, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_many_epochs_are_counted_at_once(tiny_folder, tmp_path):
    chosen = settings(num_train_epochs=10000, early_stopping=1, learning_rate=1e-12, eval_steps=1)
    assert train(EXAMPLE, tiny_folder, tmp_path / "out", chosen).finished
    with pytest.raises(InputError, match="at most 10000"):
        settings(num_train_epochs=1e300)


def test_a_run_that_changed_nothing_is_no_model(tiny_folder, tmp_path):
    with pytest.raises(InputError, match="none of 0 steps changed the weights"):
        train(EXAMPLE, tiny_folder, tmp_path / "out", settings(num_train_epochs=1e-300))
    assert not (tmp_path / "out/model.safetensors").exists()


def test_data_that_were_refused_do_not_stand_in_the_way_of_others(tiny_folder, tmp_path):
    bad = squad_file(tmp_path / "bad.json", [("Who?", "Ada found Lee.", [])] * 2)
    with pytest.raises(InputError, match="no window holds an answer"):
        train(bad, tiny_folder, tmp_path / "out", settings(held_out=0.0))
    chosen = settings(max_steps=2)
    assert train(EXAMPLE, tiny_folder, tmp_path / "out", chosen).finished


@pytest.mark.parametrize("wrong", [{"callbacks": print}, {"callbacks": [5]}, {"teachers": None}])
def test_what_is_no_list_of_functions_or_models_is_named(tiny_folder, tmp_path, wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} must be a list of"):
        train(EXAMPLE, tiny_folder, tmp_path / "out", settings(), **wrong)


def test_a_model_is_written_whatever_the_names_of_its_files_are(tiny_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    raw = json.loads((base / "config.json").read_text())
    raw |= {"note": "\ud800", "rate": math.nan}
    (base / "config.json").write_text(json.dumps(raw))
    data = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff.json")
    shutil.copy(EXAMPLE, data)
    assert train(data, base, tmp_path / "out", settings()).finished
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rate"] is None
    assert "d\\udcff.json" in (tmp_path / "out" / "README.md").read_text()
