"""A model is measured: predictions, scores, thresholds, tables."""

import json
from dataclasses import replace

import numpy as np
import pytest
from squad_files import EXAMPLE, NUMBERS, squad_file

from minibert import InputError, pipeline
from minibert.answering import QuestionAnswerer
from minibert.squad.decoders import SquadSettings
from minibert.squad.evaluation import (
    Evaluation,
    compare,
    evaluate,
    predict,
    score_predictions,
    spread,
    tune_null,
)
from minibert.squad.files import read_squad
from minibert.squad.journal import OUTPUTS
from minibert.squad.metrics import squad_evaluate
from minibert.squad.predictions import read_null_odds, read_predictions


@pytest.fixture(scope="module")
def data():
    return read_squad(EXAMPLE)


@pytest.fixture(scope="module")
def finished(embedded, data, tmp_path_factory):
    """A whole run, and the folder of its files."""
    folder = tmp_path_factory.mktemp("run") / "out"
    return evaluate(embedded, data, output_dir=folder), folder


# ---------------------------------------------------------------- a whole run


def test_the_embedded_model_answers_the_example(finished):
    evaluation, _ = finished
    assert evaluation.predictions["example-01"] == "Ingrid Sætre"
    assert evaluation.predictions["example-12"] == "1441"
    assert evaluation.predictions["example-14"] == ""
    assert evaluation.metrics["exact"] > 70
    assert list(evaluation.metrics) == NUMBERS


def test_the_files_hold_what_was_scored(finished, data):
    evaluation, folder = finished
    assert sorted(path.name for path in folder.iterdir()) == sorted(OUTPUTS)
    predictions = read_predictions(folder / "predictions.json")
    odds = read_null_odds(folder / "null_odds.json")
    assert list(predictions) == [question.id for question in data.questions]
    assert predictions == evaluation.predictions
    assert squad_evaluate(data.questions, predictions, odds) == evaluation.metrics
    nbest = json.loads((folder / "nbest_predictions.json").read_text())
    for key, entries in nbest.items():
        assert list(entries[0]) == ["text", "probability", "start_logit", "end_logit"]
        best = next(entry for entry in entries if entry["text"])
        assert predictions[key] in ("", best["text"])
        assert (predictions[key] == "") == (odds[key] > 0)


def test_predictions_stand_where_they_are_said_to(finished, data):
    evaluation, _ = finished
    for question in data.questions:
        if evaluation.predictions[question.id]:
            start, end = evaluation.spans[question.id]
            assert question.context[start:end] == evaluation.predictions[question.id]


def test_the_pipeline_decoder_gives_the_pipelines_answers(embedded, data):
    qa = pipeline(model=embedded)
    for question, answer in predict(embedded, data.questions, SquadSettings("pipeline")):
        want = qa(
            question=question.question, context=question.context, handle_impossible_answer=True
        )
        assert answer.text == want["answer"]
        assert answer.probability == pytest.approx(min(1.0, want["score"]))
        assert (answer.null_odds > 0) == (answer.text == "")
        assert len(answer.n_best) <= 20


def test_the_answerer_decoder_gives_the_answers_of_questionanswerer(embedded, data):
    qa = QuestionAnswerer(embedded)
    for question, answer in predict(embedded, data.questions, SquadSettings("answerer")):
        want = qa.answer(question.question, question.context)
        assert (answer.text, answer.span) == (want.text, (want.start, want.end))
        assert answer.probability == pytest.approx(want.probability)
        assert (answer.null_odds > 0) == want.is_null


@pytest.mark.parametrize("decoder", ["run_squad", "pipeline", "answerer"])
def test_thresholds_move_answers_to_no_answer(embedded, data, decoder):
    def nothings(threshold):
        settings = SquadSettings(decoder, null_threshold=threshold)
        return sum(not answer.text for _, answer in predict(embedded, data.questions, settings))

    assert nothings(float("inf")) == 0
    assert nothings(float("-inf")) == len(data.questions)
    assert 0 < nothings(0.0) < len(data.questions)


@pytest.mark.parametrize("decoder", ["run_squad", "pipeline", "answerer"])
def test_without_unanswerable_questions_every_question_gets_an_answer(embedded, data, decoder):
    answerable = replace(data, questions=[q for q in data.questions if q.answerable])
    evaluation = evaluate(embedded, answerable, SquadSettings(decoder, with_null=False))
    assert all(evaluation.predictions.values())
    assert evaluation.null_odds is None
    assert not [name for name in evaluation.metrics if name.startswith("NoAns")]


def test_a_file_without_unanswerable_questions_is_read_as_squad_1(embedded, data, tmp_path):
    answerable = [(q.question, q.context, [q.answers[0].text]) for q in data.questions if q.answers]
    evaluate(embedded, read_squad(squad_file(tmp_path / "1.1", answerable)), output_dir=tmp_path)
    (tmp_path / "1.1").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(OUTPUTS[:2])


def test_odd_questions_are_answered(embedded, tmp_path):
    path = squad_file(
        tmp_path / "odd.json",
        [("", "A text.", ["text"]), ("Who?", " \n", []), ("Who? " * 300, "Ann. " * 900, ["Ann"])],
    )
    evaluation = evaluate(embedded, read_squad(path))
    assert evaluation.predictions["q1"] == ""


def test_a_question_that_cannot_be_read_is_named(embedded, tmp_path):
    path = squad_file(tmp_path / "odd.json", [("who " * 30, "word " * 40, [])])
    with pytest.raises(InputError, match=r"question 'q0': the question has 30 tokens"):
        evaluate(embedded, read_squad(path), SquadSettings(max_seq_length=20))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"decoder": "best"}, "decoder must be one of run_squad, pipeline, answerer"),
        ({"n_best_size": 0}, "n_best_size must be a whole number of at least 1"),
        ({"doc_stride": 0}, "doc_stride must be a whole number of at least 1"),
        ({"max_answer_length": 2.5}, "max_answer_length must be a whole number"),
        ({"null_threshold": float("nan")}, "null_threshold must be a number"),
        ({"null_threshold": "0"}, "null_threshold must be a number"),
        ({"with_null": "yes"}, "with_null must be True or False"),
    ],
)
def test_wrong_settings_are_refused(settings, expected):
    with pytest.raises(InputError, match=expected):
        SquadSettings(**settings)


def test_settings_from_numpy_can_be_kept(tiny, data, tmp_path):
    settings = SquadSettings(n_best_size=np.int64(3), null_threshold=np.float32(0.5))
    evaluate(tiny, data, settings, output_dir=tmp_path)
    assert (tmp_path / "predictions.json").exists()


@pytest.mark.parametrize("decoder", ["pipeline", "answerer"])
def test_empty_texts_are_named_before_anything_runs(tiny, tmp_path, decoder):
    path = squad_file(tmp_path / "d", [("Who?", "Ann.", []), ("", "Ann.", []), ("Who?", "", [])])
    with pytest.raises(InputError, match="2 of 3 questions have an empty .* the first is 'q1'"):
        evaluate(tiny, read_squad(path), SquadSettings(decoder))


def test_what_is_no_model_no_data_and_no_settings_is_refused(tiny, data):
    with pytest.raises(InputError, match="model must be a Model"):
        evaluate("embedded", data)
    with pytest.raises(InputError, match="data must be a SquadData"):
        evaluate(tiny, str(EXAMPLE))
    with pytest.raises(InputError, match="settings must be SquadSettings"):
        evaluate(tiny, data, {"decoder": "pipeline"})
    with pytest.raises(InputError, match="overwrite must be True or False, got 'yes'"):
        evaluate(tiny, data, overwrite="yes")
    with pytest.raises(InputError, match="data must be a SquadData"):
        score_predictions(EXAMPLE, "predictions.json")


# ---------------------------------------------------------------- thresholds and tables


def test_the_threshold_is_tuned_on_one_half_and_scored_on_the_other(data):
    best = {q.id: q.answers[0].text if q.answerable else "wrong" for q in data.questions}
    # Articles 0 and 2 say that 2 is the best threshold; article 1 alone would say 5.
    odds = {q.id: (5.0 if q.article == 1 else 2.0) if q.answerable else 6.0 for q in data.questions}
    predictions = {key: "" if odds[key] > 0 else best[key] for key in best}
    metrics = squad_evaluate(data.questions, predictions, odds, 9.0)
    evaluation = Evaluation(data.questions, predictions, metrics, odds, best)
    tuned = tune_null(evaluation)
    assert tuned["threshold"] == 2.0
    assert tuned["tuned_on"] == {"articles": 2, "questions": 11}
    assert tuned["scored_on"] == {"articles": 1, "questions": 3}
    assert tuned["before"]["exact"] == tuned["after"]["exact"] == pytest.approx(100 / 3)
    assert list(tuned["after"]) == NUMBERS


def test_tuning_needs_odds_and_two_articles(data):
    predictions = {q.id: "" for q in data.questions}
    metrics = squad_evaluate(data.questions, predictions)
    with pytest.raises(InputError, match="only be tuned with null odds"):
        tune_null(Evaluation(data.questions, predictions, metrics))
    odds = dict.fromkeys(predictions, 0.0)
    with pytest.raises(InputError, match="measure must be one of exact, f1"):
        tune_null(Evaluation(data.questions, predictions, metrics, odds), "F1")
    with pytest.raises(InputError, match="one is not enough"):
        tune_null(Evaluation(data.questions[:3], predictions, metrics, odds))


def test_questions_are_spread_evenly():
    assert spread(list(range(100)), 10) == list(range(0, 100, 10))
    assert spread([1, 2], 5) == [1, 2]
    assert len(spread(list(range(11873)), 1000)) == 1000


def test_a_row_of_a_comparison(tiny, tiny_folder, data):
    row = compare(tiny, data, SquadSettings())
    assert row["megabytes"] == (tiny_folder / "model.safetensors").stat().st_size / 1e6
    assert row["questions_per_second"] > 0
    assert row["exact"] <= row["f1"]
