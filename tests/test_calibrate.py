"""The tool that finds a model's null threshold and temperature."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from squad_files import EXAMPLE

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import calibrate

from minibert import QuestionAnswerer
from minibert.squad.files import read_squad
from minibert.training.held_out import keep_apart


def logistic(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("true", [0.6, 1.0, 1.3, 3.0])
def test_the_temperature_that_answers_were_drawn_with_is_found(true):
    random = np.random.default_rng(0)
    scores = random.normal(0, 4, 40_000)
    right = (random.random(len(scores)) < logistic(scores / true)).astype(float)
    probabilities = logistic(scores / calibrate.TEMPERATURES[:, None])
    assert calibrate.best_temperature(probabilities, right) == pytest.approx(true, rel=0.03)


def test_a_temperature_beyond_those_that_are_tried_is_the_last_of_them():
    surely = logistic(np.full(100, 9.0) / calibrate.TEMPERATURES[:, None])
    assert calibrate.best_temperature(surely, np.zeros(100)) == calibrate.TEMPERATURES[-1]
    assert calibrate.best_temperature(surely, np.ones(100)) == calibrate.TEMPERATURES[0]


def test_its_probabilities_and_answers_are_those_of_question_answerer(embedded):
    questions = read_squad(EXAMPLE).questions
    model = replace(embedded, config=replace(embedded.config, temperature=1.0))
    found = calibrate.best_answers(model, questions)
    assert list(found) == [question.id for question in questions]
    at = list(calibrate.TEMPERATURES).index(1)
    qa = QuestionAnswerer(model)
    for question in questions:
        best = found[question.id]
        forced = qa.answer(question.question, question.context, null_score_diff_threshold=math.inf)
        nothing = qa.answer(
            question.question, question.context, null_score_diff_threshold=-math.inf
        )
        assert best.text == forced.text
        assert best.null_odds == pytest.approx(nothing.score - forced.score, abs=1e-4)
        assert best.probabilities[at] == pytest.approx(forced.probability, rel=1e-3, abs=1e-9)
        assert best.null_probabilities[at] == pytest.approx(nothing.probability, rel=1e-3, abs=1e-9)


def test_what_it_prints_goes_into_a_config(capsys, tmp_path, tiny_folder):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    calibrate.main(["--data", str(EXAMPLE), "--model", str(folder), "--limit", "6"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["questions"] == 6
    assert shown["numbers_at_the_threshold"]["f1"] >= shown["numbers_at_0"]["f1"]
    assert shown["cross_entropy"]["after"] <= shown["cross_entropy"]["before"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"minibert": shown["minibert"]}))
    model = QuestionAnswerer(folder).model
    errors = shown["expected_calibration_error"]
    better = errors["after"] < errors["before"]
    assert ("temperature" in shown["minibert"]) == better
    assert model.config.temperature == (shown["temperature"] if better else 1)
    assert model.config.null_threshold == shown["minibert"]["null_threshold"]


def test_the_questions_that_training_keeps_apart_can_be_taken(capsys, tiny_folder):
    held = keep_apart(read_squad(EXAMPLE).questions, 0.4, 7)[1]
    options = ["--model", str(tiny_folder), "--held-out", "0.4", "--seed", "7"]
    calibrate.main(["--data", str(EXAMPLE), *options])
    assert json.loads(capsys.readouterr().out)["questions"] == len(held)
