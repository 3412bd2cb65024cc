"""minibert train --check finds kernels that compute wrong numbers; the page shows a run."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from minibert.cli import main
from minibert.kernels.training import get_training_kernels
from minibert.pages.training import render_training
from minibert.training.base import load_base
from minibert.training.checking import check_training, one_batch
from minibert.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def base(tiny_folder):
    return load_base(tiny_folder, TrainingSettings())


def verdicts(base, kernels):
    return {finding.what: finding.good for finding in check_training(base, kernels)}


def test_the_definition_agrees_with_itself(base):
    found = check_training(base, get_training_kernels("reference"))
    assert [finding.good for finding in found] == [True] * 3
    assert "off by 0.0e+00" in found[0].fact


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_processor_agrees_with_the_definition(base, dtype):
    assert all(verdicts(base, get_training_kernels("cpu", dtype)).values())


def test_a_gradient_that_is_forgotten_is_found(base):
    right = get_training_kernels("reference")

    def wrong(d_out, x, dense, gradient, plus):
        d_x = right.linear_backward(d_out, x, dense, gradient, plus)
        gradient.bias[:] = 0
        return d_x

    found = check_training(base, replace(right, linear_backward=wrong))
    assert [finding.good for finding in found[:2]] == [False, False]
    assert "attention.self.qkv.bias" in found[0].fact


def test_numbers_that_are_none_are_found(base):
    right = get_training_kernels("reference")

    def wrong(d_out, x, dense, gradient, plus):
        return right.linear_backward(d_out, x, dense, gradient, plus) * float("nan")

    assert not any(verdicts(base, replace(right, linear_backward=wrong)).values())


def test_an_optimizer_that_does_nothing_does_not_learn(base):
    kernels = replace(get_training_kernels("reference"), adamw=lambda *arguments: None)
    found = verdicts(base, kernels)
    assert found == {
        "gradients": True,
        "gradients with dropout": True,
        "learning one batch": False,
    }


def test_answers_of_the_batch_stand_in_its_windows(base):
    batch, starts, ends = one_batch(base)
    lengths = (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).tolist()
    for (start,), (end,), length in zip(starts, ends, lengths, strict=True):
        assert 0 < start <= end < length - 1


def test_the_command_says_what_it_found(capsys, tiny_folder):
    arguments = ["train", "--check", "--model", str(tiny_folder), "--device", "reference"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count(": ok, ") == 3
    for wrong in (["--data", "x"], ["--output-dir", "x"]):
        with pytest.raises(SystemExit) as end:
            main(arguments + wrong)
        assert end.value.code == 2


# ---------------------------------------------------------------- the page


def records(count):
    for step in range(10, 10 * count + 1, 10):
        yield {
            "kind": "step",
            "step": step,
            "loss": 5 / step,
            "learning_rate": 1e-4,
            "gradient_norm": 1.0 + step % 7,
            "skipped": 0,
        }
        if step % 50 == 0:
            yield {"kind": "measurement", "step": step, "exact": step / 10, "f1": 1 + step / 10} | {
                "best_f1": 2 + step / 10
            }


def test_the_page_has_a_curve_for_everything():
    page = render_training(records(30), {"model": "<tiny>"}, 400)
    assert page.startswith("<!DOCTYPE html>")
    assert "&lt;tiny&gt;" in page
    assert page.count("<svg") == 4
    assert "The best F1 is 31.00, after step 300." in page
    for part in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>")


@pytest.mark.parametrize("some", [[], list(records(1))])
def test_the_page_of_a_run_that_has_just_begun(some):
    assert "<h1" in render_training(some, {"model": "tiny"}, 400)


def test_the_page_shows_what_there_is_of_a_step_that_was_skipped():
    skipped = [{**next(records(1)), "loss": None, "gradient_norm": None}]
    assert "Learning rate" in render_training(skipped, {}, 10)
