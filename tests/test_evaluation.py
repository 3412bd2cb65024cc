"""A model is measured: predictions, files, interrupted runs, thresholds, tables."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from squad_files import EXAMPLE, squad_file

from minibert import InputError, pipeline
from minibert.answering import QuestionAnswerer
from minibert.cli import main
from minibert.decoders import SquadSettings
from minibert.evaluation import (
    Evaluation,
    compare,
    evaluate,
    predict,
    spread,
    tune_null,
)
from minibert.files import check_output
from minibert.journal import OUTPUTS, UNFINISHED, journal
from minibert.metrics import squad_evaluate
from minibert.squad import read_null_odds, read_predictions, read_squad

NUMBERS = (
    "exact f1 total HasAns_exact HasAns_f1 HasAns_total NoAns_exact NoAns_f1 NoAns_total "
    "best_exact best_exact_thresh best_f1 best_f1_thresh"
).split()


@pytest.fixture(scope="module")
def data():
    return read_squad(EXAMPLE)


@pytest.fixture(scope="module")
def finished(embedded, data, tmp_path_factory):
    """A whole run, and the folder of its files."""
    folder = tmp_path_factory.mktemp("run") / "out"
    return evaluate(embedded, data, output_dir=folder), folder


def output_of(capsys, *args):
    status = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def error_of(capsys, *args):
    assert main([str(arg) for arg in args]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minibert: error: ")
    assert err.count("\n") == 1
    return err


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


def test_predictions_stand_at_their_places(finished, data):
    evaluation, _ = finished
    for question in data.questions:
        if evaluation.predictions[question.id]:
            start, end = evaluation.places[question.id]
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
        assert (answer.text, answer.place) == (want.text, (want.start, want.end))
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


# ---------------------------------------------------------------- interrupted runs


def interrupted(model, data, folder, after, overwrite=False):
    """Begin a run and break it off after a few questions, as Ctrl-C does."""

    def run():
        with journal(folder, model, data, SquadSettings(), overwrite) as (_, keep):
            for question, answer in predict(model, data.questions[:after], SquadSettings()):
                keep(question.id, answer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()


def test_an_interrupted_run_goes_on_where_it_was(embedded, data, finished, tmp_path, capsys):
    interrupted(embedded, data, tmp_path, after=5)
    lines = (tmp_path / UNFINISHED).read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 5
    # As if the machine had gone down while a line was written, and answers were still the same.
    changed = [line.replace(b'"Ingrid', b'"INGRID') for line in lines]
    (tmp_path / UNFINISHED).write_bytes(b"".join(changed)[:-9])
    evaluation = evaluate(embedded, data, output_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(OUTPUTS)
    expected = dict(finished[0].predictions) | {"example-01": "INGRID Sætre"}
    assert list(evaluation.predictions.items()) == list(expected.items())


def test_a_run_with_other_settings_is_not_gone_on_with(embedded, data, tmp_path):
    interrupted(embedded, data, tmp_path, after=3)
    before = (tmp_path / UNFINISHED).read_bytes()
    with pytest.raises(InputError, match=r"other settings: null_threshold was 0\.0 and is 1\.5"):
        evaluate(embedded, data, SquadSettings(null_threshold=1.5), output_dir=tmp_path)
    fewer = replace(data, questions=data.questions[:4])
    with pytest.raises(InputError, match="questions was 14 and is 4"):
        evaluate(embedded, fewer, SquadSettings(), output_dir=tmp_path)
    other = replace(data, digest="0")
    with pytest.raises(InputError, match="data was "):
        evaluate(embedded, other, SquadSettings(), output_dir=tmp_path)
    assert (tmp_path / UNFINISHED).read_bytes() == before
    evaluate(embedded, fewer, SquadSettings(), output_dir=tmp_path, overwrite=True)
    assert len(read_predictions(tmp_path / "predictions.json")) == 4


@pytest.mark.parametrize(
    "content", [b"hello\n", b"my precious notes", b"[]\n", b"\xff\n", b"[" * 100_000 + b"\n"]
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_of_another_kind_is_kept(embedded, data, tmp_path, content, overwrite):
    path = tmp_path / UNFINISHED
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not the file of an earlier run"):
        evaluate(embedded, data, output_dir=tmp_path, overwrite=overwrite)
    assert path.read_bytes() == content


def test_a_link_is_not_followed(embedded, data, tmp_path):
    (tmp_path / "precious").write_text("")
    (tmp_path / UNFINISHED).symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="is not a file of an earlier run"):
        evaluate(embedded, data, output_dir=tmp_path, overwrite=True)


DAMAGES = {
    "id": [None, 5, "unknown", "example-02"],
    "text": [None, 5, ["x"]],
    "best_text": [None, 5],
    "null_odds": [None, "1", float("nan"), True],
    "probability": [None, "0.5", float("nan"), -1, 1e9],
    "place": [None, [], [1], [1, 2, 3], [0.5, 1], [-1, 2], [5, 2], "ab"],
    "n_best": [None, "x", [1], [{"text": "x"}], [{"text": 5, "probability": 0.5}]],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in DAMAGES.items() for value in values]
)
def test_a_damaged_answer_is_refused_and_kept(tiny, data, tmp_path, field, value):
    interrupted(tiny, data, tmp_path, after=2)
    path = tmp_path / UNFINISHED
    header, first, second = path.read_bytes().splitlines()
    broken = json.dumps(json.loads(first) | {field: value}).encode()
    content = b"".join(line + b"\n" for line in (header, broken, second))
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"line [23]: is damaged. Begin again with --overwrite"):
        evaluate(tiny, data, SquadSettings(), output_dir=tmp_path)
    assert path.read_bytes() == content
    evaluate(tiny, data, SquadSettings(), output_dir=tmp_path, overwrite=True)
    assert not path.exists()


@pytest.mark.parametrize("broken", [b'{"id": "example-01", "te', b"{}", b"[" * 100_000, b"\xff"])
def test_a_damaged_line_is_refused(tiny, data, tmp_path, broken):
    interrupted(tiny, data, tmp_path, after=1)
    path = tmp_path / UNFINISHED
    path.write_bytes(path.read_bytes() + broken + b"\n")
    with pytest.raises(InputError, match="line 3: is damaged"):
        evaluate(tiny, data, SquadSettings(), output_dir=tmp_path)


def test_a_run_that_overwrites_goes_on_too(tiny, data, tmp_path):
    (tmp_path / "predictions.json").write_text("old")
    interrupted(tiny, data, tmp_path, after=2, overwrite=True)
    path = tmp_path / UNFINISHED
    path.write_bytes(path.read_bytes().replace(b'"text": "', b'"text": "mark ', 1))
    evaluation = evaluate(tiny, data, SquadSettings(), output_dir=tmp_path, overwrite=True)
    assert any(text.startswith("mark ") for text in evaluation.predictions.values())


def test_a_run_with_another_tokenizer_is_not_gone_on_with(tiny, embedded, data, tmp_path):
    interrupted(tiny, data, tmp_path, after=1)
    other = replace(tiny, tokenizer=embedded.tokenizer)
    with pytest.raises(InputError, match="other settings: tokenizer was"):
        evaluate(other, data, SquadSettings(), output_dir=tmp_path)


def test_settings_from_numpy_can_be_kept(tiny, data, tmp_path):
    settings = SquadSettings(n_best_size=np.int64(3), null_threshold=np.float32(0.5))
    evaluate(tiny, data, settings, output_dir=tmp_path)
    assert (tmp_path / "predictions.json").exists()


@pytest.mark.parametrize("decoder", ["pipeline", "answerer"])
def test_empty_texts_are_named_before_anything_runs(tiny, tmp_path, decoder):
    path = squad_file(tmp_path / "d", [("Who?", "Ann.", []), ("", "Ann.", []), ("Who?", "", [])])
    with pytest.raises(InputError, match="2 of 3 questions have an empty .* the first is 'q1'"):
        evaluate(tiny, read_squad(path), SquadSettings(decoder))


def test_an_empty_file_of_a_run_that_hardly_began_is_no_hindrance(embedded, data, tmp_path):
    (tmp_path / UNFINISHED).write_bytes(b'{"minib')
    evaluate(embedded, data, output_dir=tmp_path)
    assert (tmp_path / "predictions.json").exists()


def test_finished_results_are_not_overwritten_by_accident(embedded, data, tmp_path):
    (tmp_path / "predictions.json").write_text("precious")
    with pytest.raises(InputError, match=r"holds predictions\.json already"):
        evaluate(embedded, data, output_dir=tmp_path)
    assert (tmp_path / "predictions.json").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="the system cannot tell")
def test_two_runs_do_not_write_in_one_folder(embedded, data, tmp_path):
    import fcntl

    with (tmp_path / UNFINISHED).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is writing there"):
            evaluate(embedded, data, output_dir=tmp_path)


def test_a_device_is_written_to_wherever_it_is(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)  # as for everybody but root
    check_output(os.devnull)
    with pytest.raises(InputError, match="is read-only"):
        check_output("numbers.json")


def test_a_folder_that_cannot_be_made_is_refused(embedded, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        evaluate(embedded, data, output_dir=tmp_path / "file" / "out")
    with pytest.raises(InputError, match="file: is not a folder"):
        evaluate(embedded, data, output_dir=tmp_path / "file")
    for folder, expected in (
        (tmp_path / ("x" * 300), "cannot be written: File name too long"),
        ("a\0b", "no folder can have that name"),
        (5, "must be a folder's name"),
    ):
        with pytest.raises(InputError, match=expected):
            evaluate(embedded, data, output_dir=folder)


def test_what_is_no_model_no_data_and_no_settings_is_refused(tiny, data):
    with pytest.raises(InputError, match="model must be a Model"):
        evaluate("embedded", data)
    with pytest.raises(InputError, match="data must be a SquadData"):
        evaluate(tiny, str(EXAMPLE))
    with pytest.raises(InputError, match="settings must be SquadSettings"):
        evaluate(tiny, data, {"decoder": "pipeline"})


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
    with pytest.raises(InputError, match="measure must be 'exact' or 'f1'"):
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


# ---------------------------------------------------------------- the command line


def test_the_command_prints_the_numbers(capsys, finished):
    shown = output_of(capsys, "evaluate", "--data", EXAMPLE)
    assert list(shown) == NUMBERS
    assert shown == finished[0].metrics


def test_the_command_scores_predictions(capsys, finished, tmp_path):
    evaluation, folder = finished
    files = ["--predictions", folder / "predictions.json"]
    shown = output_of(capsys, "evaluate", "--data", EXAMPLE, *files)
    assert list(shown) == NUMBERS
    assert shown["exact"] == evaluation.metrics["exact"]
    assert shown["best_exact_thresh"] == 0.0
    files += ["--null-odds", folder / "null_odds.json"]
    assert output_of(capsys, "evaluate", "--data", EXAMPLE, *files) == evaluation.metrics
    tuned = output_of(capsys, "evaluate", "--data", EXAMPLE, *files, "--tune-null", "exact")
    assert tuned["tuned_null"]["best"] == "exact"
    strict = output_of(capsys, "evaluate", "--data", EXAMPLE, *files, "--null-threshold=-99")
    assert (strict["HasAns_exact"], strict["NoAns_exact"]) == (0.0, 100.0)


def test_the_command_writes_its_files(capsys, tmp_path):
    out, report, folder = tmp_path / "numbers.json", tmp_path / "report.html", tmp_path / "run"
    options = ["--output", out, "--report", report, "--output-dir", folder]
    options += ["--limit", "6", "--decoder", "pipeline"]
    assert main(["evaluate", "--data", str(EXAMPLE), *map(str, options)]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(out.read_text())["total"] == 6
    assert report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in folder.iterdir()) == sorted(OUTPUTS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "missing.json"], "missing.json: cannot be read: No such file"),
        (["--report", "no/such/folder/report.html"], "there is no folder"),
        (["--report", "."], "it is a folder"),
        (["--report", "x" * 300], "File name too long"),
        (["--output", "."], "it is a folder"),
        (["--report=~nobody-of-that-name/report.html"], "there is no folder"),
        (["--data", "~nobody-of-that-name/data.json"], "cannot be read: No such file"),
        (["--output", "no/such/folder/numbers.json"], "there is no folder"),
        (["--predictions", "missing.json"], "missing.json: cannot be read"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--max-seq-length", "513"], "beyond the 512 positions"),
        (["--squad-version", "1.1", "--tune-null"], "only be tuned with null odds"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, arguments, expected):
    if "--data" not in arguments:
        arguments = ["--data", EXAMPLE, *arguments]
    assert expected in error_of(capsys, "evaluate", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--data", "x", "--null-odds", "y"],
        ["--data", "x", "--nbest", "y"],
        ["--data", "x", "--overwrite"],
        ["--data", "x", "--predictions", "y", "--model", "z"],
        ["--data", "x", "--predictions", "y", "--output-dir", "z"],
        ["--data", "x", "--predictions", "y", "--tune-null"],
        ["--data", "x", "--null-threshold", "nan"],
        ["--data", "x", "--limit", "0"],
        ["--data", ""],
        ["--data", "x", "--predictions", ""],
        ["--data", "x", "--report", ""],
        ["--data", "x", "--output-dir", ""],
        ["--data", "x", "--report", "y", "--output", "./y"],
        ["--data", EXAMPLE, "--output", EXAMPLE],
        ["--data", "x", "--predictions", "y", "--device", "cpu"],
        ["--data", "x", "--predictions", "y", "--decoder", "pipeline"],
        ["--data", "x", "--decoder", "best"],
    ],
)
def test_wrong_usage_ends_with_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *map(str, arguments)])
    assert caught.value.code == 2


def test_models_are_compared_in_a_table(capsys, tiny_folder):
    arguments = ["compare", "--data", str(EXAMPLE), "embedded", str(tiny_folder)]
    assert main([*arguments, "--dtype", "float32", "--dtype", "int8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| model | dtype | exact | F1 | weights, MB | questions/s |"
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| embedded", "float32"],
        ["| embedded", "int8"],
        [f"| {tiny_folder}", "float32"],
        [f"| {tiny_folder}", "int8"],
    ]
    rows = output_of(capsys, *arguments[:3], str(tiny_folder), "--format", "json", "--limit", "5")
    assert [row["model"] for row in rows] == [str(tiny_folder)]
    assert list(rows[0]) == ("model device dtype exact f1 megabytes questions_per_second".split())


def test_a_missing_model_and_a_wrong_dtype_are_said_before_any_runs(capsys, tiny_folder):
    arguments = ["compare", "--data", EXAMPLE, tiny_folder, "no/such/model"]
    assert "no/such/model" in error_of(capsys, *arguments)
    arguments = [*arguments[:4], "--device", "reference", "--dtype", "float32", "--dtype", "int8"]
    assert "float32 only" in error_of(capsys, *arguments)


def test_models_that_were_measured_are_shown_if_a_later_one_fails(capsys, tiny_folder):
    arguments = ["compare", "--data", str(EXAMPLE), "embedded", str(tiny_folder)]
    assert main([*arguments, "--limit", "2", "--max-seq-length", "400"]) == 1
    out, err = capsys.readouterr()
    assert [line.split(" | ")[0] for line in out.splitlines()[2:]] == ["| embedded"]
    assert "beyond the" in err.splitlines()[-1]


def test_the_version_is_that_of_the_file_and_not_of_the_part_that_is_looked_at(capsys, tmp_path):
    options = ["--limit", "1", "--output-dir", tmp_path, "--null-threshold=-inf"]
    assert output_of(capsys, "evaluate", "--data", EXAMPLE, *options)["exact"] == 0.0
    assert (tmp_path / "null_odds.json").exists()


def test_infinite_thresholds_are_texts_in_json(capsys, data, tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({q.id: "wrong" for q in data.questions}))
    odds = tmp_path / "odds.json"
    odds.write_text(json.dumps({q.id: float("-inf") for q in data.questions}))
    files = ["--predictions", wrong, "--null-odds", odds, "--tune-null"]
    shown = output_of(capsys, "evaluate", "--data", EXAMPLE, *files)
    assert shown["tuned_null"]["threshold"] == "-inf"


def shell(command, tmp_path, tiny_folder):
    """Run a command line of `minibert`, with {m} for the program and its model."""
    program = f"{sys.executable} -m minibert"
    command = command.format(m=program, options=f"--data {EXAMPLE} --model {tiny_folder}")
    return subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "2> >(exec true)"])
def test_results_do_not_depend_on_standard_error(tmp_path, tiny_folder, redirected):
    done = shell(
        "{m} evaluate {options} --output-dir out --output n.json --report r.html " + redirected,
        tmp_path,
        tiny_folder,
    )
    assert done.returncode == 0
    assert list(json.loads((tmp_path / "n.json").read_text())) == NUMBERS
    assert (tmp_path / "r.html").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(OUTPUTS)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_standard_output_that_takes_nothing_is_one_line(tmp_path, tiny_folder):
    done = shell("{m} evaluate {options} > /dev/full", tmp_path, tiny_folder)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == ("minibert: error: standard output: cannot be written: No space left on device")
    assert "Traceback" not in done.stderr
    done = shell("{m} evaluate {options} >&-", tmp_path, tiny_folder)
    assert done.returncode == 1
    assert done.stderr == "minibert: error: standard output is closed; give --output FILE\n"
    done = shell("{m} evaluate --data nosuch 2>&-", tmp_path, tiny_folder)
    assert (done.returncode, done.stdout) == (1, "")


def test_ctrl_c_says_that_the_run_can_go_on(tmp_path):
    path = squad_file(
        tmp_path / "long.json", [(f"Who wrote {n}?", "Ann wrote it. " * 90, []) for n in range(40)]
    )
    command = [sys.executable, "-m", "minibert", "evaluate", "--data", str(path)]
    command += ["--output-dir", str(tmp_path / "out"), "--threads", "1"]
    code = (
        "import os, signal, subprocess, sys, time\n"
        f"run = subprocess.Popen({command!r}, stderr=subprocess.PIPE, text=True)\n"
        f"path = {str(tmp_path / 'out' / UNFINISHED)!r}\n"
        "while run.poll() is None and not (os.path.exists(path) and "
        "open(path).read().count(chr(10)) > 3): time.sleep(0.02)\n"
        "run.send_signal(signal.SIGINT)\n"
        "print(run.communicate()[1], run.returncode)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "the same command goes on from there" in done.stdout
    assert done.stdout.endswith("minibert: interrupted\n 130\n")
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "of 40 questions were answered before" in again.stderr
    assert json.loads(again.stdout)["total"] == 40
