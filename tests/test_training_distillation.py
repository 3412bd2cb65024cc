"""Models that learn from the logits of others."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from random_models import tiny_config, write_model
from safetensors.numpy import load_file
from squad_files import EXAMPLE
from test_training_run import Killed, content, killing, log_of, settings

from minibert import InputError, load_model
from minibert.cli import main
from minibert.training import distillation
from minibert.training.distillation import hidden_loss, matched, soft_loss
from minibert.training.run import train

CU = np.array([0, 3, 8], np.int32)


def logits(seed):
    random = np.random.default_rng(seed)
    return tuple(random.normal(0, 2, 8).astype(np.float32) for _ in range(2))


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """A larger model with the same tokens."""
    config = tiny_config(num_hidden_layers=3, hidden_size=48)
    return write_model(tmp_path_factory.mktemp("teacher") / "model", config, seed=3)


def test_nothing_is_to_be_learnt_from_oneself():
    found = soft_loss(logits(0), logits(0), CU, 2.0, 1.0)
    assert found.loss == pytest.approx(0, abs=1e-12)
    assert np.abs(found.d_start).max() < 1e-7


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_is_that_of_the_loss(temperature):
    ours, theirs = logits(0), logits(1)
    found = soft_loss(ours, theirs, CU, temperature, 0.7)
    assert found.loss > 0
    for which, gradient in enumerate((found.d_start, found.d_end)):
        for place in range(8):
            ends = []
            for change in (1e-5, -1e-5):
                moved = [part.astype(np.float64) for part in ours]
                moved[which][place] += change
                ends.append(soft_loss(tuple(moved), theirs, CU, temperature, 0.7).loss)
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-5)


def test_windows_are_compared_by_themselves():
    ours, theirs = logits(0), logits(1)
    whole = soft_loss(ours, theirs, CU, 1.0, 1.0)
    first = soft_loss(*[tuple(part[:3] for part in x) for x in (ours, theirs)], CU[:2], 1.0, 1.0)
    rest = [tuple(part[3:] for part in x) for x in (ours, theirs)]
    second = soft_loss(*rest, CU[1:] - 3, 1.0, 1.0)
    assert whole.loss == pytest.approx(first.loss + second.loss)


@pytest.mark.slow
def test_a_student_learns_its_teachers_logits(tiny_folder, teacher_folder, tmp_path):
    changes = {"num_train_epochs": 30, "teacher_weight": 1.0, "held_out": 0, "save_steps": 1000}
    changes |= {"learning_rate": 3e-3, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    train(EXAMPLE, tiny_folder, tmp_path / "out", settings(**changes), teachers=[teacher_folder])
    steps = [json.loads(line) for line in (tmp_path / "out/run/log.jsonl").open()]
    assert steps[-1]["loss"] < steps[0]["loss"] / 10


@pytest.fixture(scope="module")
def deeper_folder(tmp_path_factory):
    """A model as wide as the student, with more layers."""
    return write_model(tmp_path_factory.mktemp("deep") / "m", tiny_config(num_hidden_layers=4))


def test_the_gradient_of_hidden_states_is_that_of_their_loss():
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(2, 8, 4))
    loss, gradient = hidden_loss(ours, theirs, CU, 0.5)
    windows = [np.square(ours[a:b] - theirs[a:b]).mean() for a, b in ((0, 3), (3, 8))]
    assert loss == pytest.approx(0.5 * sum(windows))
    moved = ours.copy()
    moved[4, 2] += 1e-6
    slope = (hidden_loss(moved, theirs, CU, 0.5)[0] - loss) / 1e-6
    assert gradient[4, 2] == pytest.approx(slope, abs=1e-5)


def test_layers_are_matched_evenly_and_the_last_with_the_last():
    assert matched(2, 4) == [1, 3]
    assert matched(4, 6) == [0, 2, 3, 5]
    assert matched(3, 3) == [0, 1, 2]


@pytest.mark.slow
def test_a_student_learns_its_teachers_hidden_states_on_every_device(
    tiny_folder, deeper_folder, tmp_path
):
    changes = {"num_train_epochs": 6, "teacher_weight": 0.0, "held_out": 0, "save_steps": 1000}
    changes |= {"learning_rate": 3e-3, "match_layers": 100.0}
    changes |= {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    losses = {}
    for device in ("reference", "cpu"):
        chosen = settings(**changes | {"device": device})
        train(EXAMPLE, tiny_folder, tmp_path / device, chosen, teachers=[deeper_folder])
        log = [json.loads(line) for line in (tmp_path / device / "run/log.jsonl").open()]
        losses[device] = [record["loss"] for record in log]
    assert losses["reference"][-1] < losses["reference"][0] * 0.6
    np.testing.assert_allclose(losses["cpu"], losses["reference"], rtol=1e-3)


def test_a_gradient_of_a_layer_comes_on_top(tiny_folder, deeper_folder, tmp_path):
    weights = []
    for number, match in enumerate((0.0, 1.0)):
        changes = {"max_steps": 1, "held_out": 0, "match_layers": match, "adam_epsilon": 1.0}
        folder = tmp_path / str(number)
        train(EXAMPLE, tiny_folder, folder, settings(**changes), teachers=[deeper_folder])
        weights.append(load_file(folder / "model.safetensors"))
    name = "bert.encoder.layer.{}.output.LayerNorm.bias"
    for layer in (0, 1):
        assert (weights[0][name.format(layer)] != weights[1][name.format(layer)]).any()
    assert (weights[0]["qa_outputs.bias"] == weights[1]["qa_outputs.bias"]).all()


def test_hidden_states_of_another_width_are_refused(tiny_folder, teacher_folder, tmp_path):
    for teachers, reason in (
        ([teacher_folder], r"3 layers x 48, .* 2 x 32"),
        ([tiny_folder] * 2, "needs one teacher, got 2"),
    ):
        with pytest.raises(InputError, match=reason):
            train(
                EXAMPLE,
                tiny_folder,
                tmp_path / "out",
                settings(match_layers=1.0),
                teachers=teachers,
            )


def test_a_run_with_a_teacher_goes_on_and_its_logits_are_kept(
    tiny_folder, teacher_folder, tmp_path, monkeypatch
):
    def run(name, cache=None, **options):
        kept = {"teacher_cache": cache and tmp_path / cache}
        with_teacher = {"teachers": [teacher_folder]} | kept | options
        return train(EXAMPLE, tiny_folder, tmp_path / name, settings(), **with_teacher)

    for cache in (None, "cache"):
        whole, killed = f"whole {cache}", f"killed {cache}"
        run(whole, cache)
        with pytest.raises(Killed):
            run(killed, cache and "another", callbacks=[killing(3)])
        run(killed, cache and "another")
        assert content(tmp_path / killed) == content(tmp_path / whole)
    monkeypatch.setattr(distillation, "qa_logits", None)  # they are all known
    run("again", "cache")
    assert log_of(tmp_path / "again")[0] == log_of(tmp_path / "whole cache")[0]
    assert "- Teacher: " in (tmp_path / "again/README.md").read_text()


def test_another_teacher_or_other_windows_are_refused(tiny_folder, teacher_folder, tmp_path):
    def run(teacher, **changes):
        few = settings(max_steps=1, held_out=0, **changes)
        for_this = {"teachers": [teacher], "teacher_cache": tmp_path / "cache"}
        return train(EXAMPLE, tiny_folder, tmp_path / str(changes), few, **for_this)

    run(teacher_folder)
    with pytest.raises(InputError, match="logits of other teachers or for other windows"):
        run(tiny_folder, seed=1)
    with pytest.raises(InputError, match="other windows: windows was"):
        run(teacher_folder, doc_stride=8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes.txt'"):
        train(
            EXAMPLE,
            tiny_folder,
            tmp_path / "out",
            settings(),
            teachers=[teacher_folder],
            teacher_cache=tmp_path / "full",
        )


def test_the_mean_of_several_teachers_is_learnt(tiny_folder, teacher_folder, tmp_path):
    names = [tiny_folder, teacher_folder]
    changes = settings(max_steps=1, held_out=0)
    train(
        EXAMPLE,
        tiny_folder,
        tmp_path / "out",
        changes,
        teachers=names,
        teacher_cache=tmp_path / "cache",
    )
    kept, known = (np.load(tmp_path / "cache" / name) for name in ("logits.npy", "known.npy"))
    assert known.sum() == 16
    assert np.abs(kept).max() > 0
    for wrong in (np.zeros((3, 9), "f4"), kept.astype("f8")):
        np.save(tmp_path / "cache" / "logits.npy", wrong)
        with pytest.raises(InputError, match="logits.npy does not hold float32"):
            train(
                EXAMPLE,
                tiny_folder,
                tmp_path / "again",
                changes,
                teachers=names,
                teacher_cache=tmp_path / "cache",
            )
    models = [load_model(name, device="reference") for name in names]
    assert kept.shape[0] == 2
    assert len({model.config.hidden_size for model in models}) == 2


def test_kept_logits_that_are_cut_off_meanwhile_end_the_run_with_an_error(
    tiny_folder, teacher_folder, tmp_path
):
    logits = tmp_path / "cache/logits.npy"
    for_this = {"teachers": [teacher_folder], "teacher_cache": tmp_path / "cache"}
    train(EXAMPLE, tiny_folder, tmp_path / "first", settings(), **for_this)
    whole = logits.stat().st_size

    def cut(record):
        os.truncate(logits, 1000)  # which ends a process that has mapped it

    with pytest.raises(InputError, match=r"logits.npy: cannot be read: .* shorter .* begin again"):
        train(EXAMPLE, tiny_folder, tmp_path / "out", settings(), callbacks=[cut], **for_this)
    assert logits.stat().st_size == 1000 < whole
    with pytest.raises(InputError, match="cannot be used: logits.npy is shorter"):
        train(EXAMPLE, tiny_folder, tmp_path / "out", settings(), **for_this)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("vocab", "it has another vocabulary, of 158 tokens, the student's has 159"),
        ("case", "it splits texts in another way"),
        ("short", "reads windows of at most 32 tokens"),
    ],
)
def test_a_teacher_with_other_tokens_is_refused(tiny_folder, tmp_path, change, reason):
    positions = 32 if change == "short" else 64
    teacher = write_model(tmp_path / "teacher", tiny_config(max_position_embeddings=positions))
    if change == "vocab":
        words = (teacher / "vocab.txt").read_text().splitlines()
        (teacher / "vocab.txt").write_text("\n".join(words[:-1]) + "\n")
    if change == "case":
        (teacher / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(InputError, match=reason):
        train(EXAMPLE, tiny_folder, tmp_path / "out", settings(), teachers=[teacher])
    assert not (tmp_path / "out").exists()


def test_a_student_may_begin_with_some_layers_of_a_model(teacher_folder, tmp_path):
    chosen = settings(max_steps=1, warmup_steps=1, held_out=0, layers=[0, 2])
    train(EXAMPLE, teacher_folder, tmp_path / "out", chosen)
    before = load_file(Path(teacher_folder) / "model.safetensors")
    after = load_file(tmp_path / "out/model.safetensors")
    name = "bert.encoder.layer.{}.output.dense.weight"
    assert (after[name.format(0)] == before[name.format(0)]).all()
    assert (after[name.format(1)] == before[name.format(2)]).all()
    assert load_model(tmp_path / "out").config.num_hidden_layers == 2
    with pytest.raises(InputError, match="from 0 to 2, got 3"):
        train(EXAMPLE, teacher_folder, tmp_path / "more", settings(layers=(1, 3)))


@pytest.mark.parametrize("layers", [[], [1, 0], [0, 0], [-1], ["0"], "01", [True], 3])
def test_layers_are_numbers_that_rise(layers):
    with pytest.raises(InputError, match="layers must be numbers of layers that rise"):
        settings(layers=layers)


def test_options_of_teachers_need_one(capsys):
    for words in (["--temperature", "2"], ["--teacher-weight", "1"], ["--teacher-cache", "x"]):
        with pytest.raises(SystemExit) as end:
            main(["train", "--data", "x", "--output-dir", "y", *words])
        assert end.value.code == 2
    capsys.readouterr()
