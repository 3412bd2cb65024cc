"""minibert evaluate and compare on the command line."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from squad_files import EXAMPLE, NUMBERS, squad_file

from minibert import InputError
from minibert.cli import main
from minibert.files import check_output
from minibert.squad.evaluation import (
    evaluate,
)
from minibert.squad.files import read_squad
from minibert.squad.journal import OUTPUTS, UNFINISHED

pytestmark = pytest.mark.usefixtures("compiled_before")


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


def test_a_device_is_written_to_wherever_it_is(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)  # as for everybody but root
    check_output(os.devnull)
    with pytest.raises(InputError, match="is read-only"):
        check_output("numbers.json")


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
    about = "model device dtype megabytes questions_per_second".split()
    assert list(rows[0]) == [*about, *(name for name in NUMBERS if name in rows[0])]
    assert {"exact", "f1", "HasAns_f1", "best_f1_thresh"} <= rows[0].keys()


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


def test_a_null_threshold_of_the_model_is_scored_beside_zero(capsys, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    options = ["evaluate", "--data", EXAMPLE, "--model", folder, "--doc-stride", "8"]
    before = output_of(capsys, *options)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"minibert": {"null_threshold": -30}}))
    shown = output_of(capsys, *options)
    own = shown.pop("own_null")
    assert shown == before
    assert list(own) == ["threshold", *NUMBERS]
    assert own["threshold"] == -30
    assert own["NoAns_f1"] > before["NoAns_f1"]
    at = output_of(capsys, *options, "--null-threshold=-30")
    assert at == {key: value for key, value in own.items() if key != "threshold"}
    for others in (["--decoder", "pipeline"], ["--squad-version", "1.1"]):
        assert "own_null" not in output_of(capsys, *options, *others)
    assert "own_null" in output_of(capsys, *options, "--decoder", "answerer")


def test_infinite_thresholds_are_texts_in_json(capsys, data, tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({q.id: "wrong" for q in data.questions}))
    odds = tmp_path / "odds.json"
    odds.write_text(json.dumps({q.id: float("-inf") for q in data.questions}))
    files = ["--predictions", wrong, "--null-odds", odds, "--tune-null"]
    shown = output_of(capsys, "evaluate", "--data", EXAMPLE, *files)
    assert shown["tuned_null"]["threshold"] == "-inf"


@pytest.fixture
def short_sighted(tiny_folder, tmp_path):
    """A model whose logits are no numbers where a window is longer than 40 tokens."""
    folder = tmp_path / "short-sighted"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.embeddings.position_embeddings.weight"][40:] *= np.float32(1e38)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_logits_that_are_no_numbers_end_a_run_which_keeps_what_is_finished(
    capsys, short_sighted, tmp_path
):
    long = "Ada Lee sailed north last year . " * 8
    texts = ["Ada Lee sailed north."] * 500 + [long] + ["Ada Lee sailed north."]
    path = squad_file(
        tmp_path / "data.json", [("Who sailed?", text, ["Ada Lee"]) for text in texts]
    )
    out = tmp_path / "out"
    command = ["evaluate", "--data", path, "--model", short_sighted, "--output-dir", out]
    message = error_of(capsys, *command, "--device", "reference")
    assert "logits are not finite numbers" in message
    assert f"(what is finished is kept in {out / UNFINISHED})" in message
    assert os.listdir(out) == [UNFINISHED]
    done = len((out / UNFINISHED).read_bytes().splitlines()) - 1
    assert 0 < done <= 500
    assert main([*map(str, command), "--device", "reference"]) == 1
    assert f"{done} of 502 questions were answered before" in capsys.readouterr().err
    assert len((out / UNFINISHED).read_bytes().splitlines()) - 1 >= done


def test_an_infinite_threshold_is_the_same_when_a_run_goes_on(capsys, short_sighted, tmp_path):
    texts = ["Ada Lee sailed north last year . " * 8]
    path = squad_file(tmp_path / "data.json", [("Who sailed?", text, ["Ada"]) for text in texts])
    command = ["evaluate", "--data", path, "--model", short_sighted, "--output-dir", tmp_path / "o"]
    command += ["--device", "reference", "--null-threshold", "inf"]
    for _ in range(2):
        assert "not finite" in error_of(capsys, *command)
    header = json.loads((tmp_path / "o" / UNFINISHED).read_bytes(), parse_constant=pytest.fail)
    assert header["null_threshold"] == "inf"


# ---------------------------------------------------------------- test files, other languages


@pytest.fixture
def unlabelled(tmp_path):
    """A file as those are whose answers only the organisers of a competition know."""
    path = squad_file(tmp_path / "test.json", [("Who came?", "Ann Vole came home in 1931.", [])])
    document = json.loads(path.read_text())
    del document["data"][0]["paragraphs"][0]["qas"][0]["answers"]
    path.write_text(json.dumps(document))
    return path


def test_a_test_file_gives_predictions_and_no_scores(capsys, unlabelled, tmp_path):
    folder = tmp_path / "out"
    arguments = [
        "evaluate",
        "--data",
        unlabelled,
        "--output-dir",
        folder,
        "--null-threshold",
        "inf",
    ]
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"total": 1}
    assert "holds no right answers; predictions are made, none is scored" in err
    assert json.loads((folder / "predictions.json").read_text()) == {"q0": "Ann Vole"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(OUTPUTS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Name a folder for them with --output-dir"),
        (["--output-dir", "out", "--report", "r.html"], "give no --report"),
        (["--output-dir", "out", "--tune-null"], "give no --tune-null"),
        (["--predictions", "p.json"], "give no --predictions"),
    ],
)
def test_what_needs_right_answers_is_refused_before_anything_runs(
    capsys, unlabelled, tmp_path, monkeypatch, arguments, expected
):
    monkeypatch.chdir(tmp_path)
    assert expected in error_of(capsys, "evaluate", "--data", unlabelled, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.json"]


def test_models_are_not_compared_on_a_test_file(capsys, unlabelled):
    error = error_of(capsys, "compare", "--data", unlabelled)
    assert "models cannot be compared on it" in error


def test_f1_over_characters_is_offered_where_spaces_do_not_part_words(capsys, tmp_path):
    text = "北港的面包店由玛拉于一九三一年开设。"
    path = squad_file(tmp_path / "zh.json", [("何时", text, ["一九三一年"])])
    predictions = tmp_path / "predictions.json"
    predictions.write_text(json.dumps([{"id": "q0", "prediction_text": "于一九三一年"}]))
    report = tmp_path / "report.html"
    arguments = ["evaluate", "--data", path, "--predictions", predictions]
    arguments = [str(argument) for argument in [*arguments, "--report", report]]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["f1"] == 0.0
    assert err.count("\n") == 1
    assert "--f1 characters compares their characters" in err
    assert "F1 over" not in report.read_text(encoding="utf-8")
    assert main([*arguments, "--f1", "characters"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["f1"] == pytest.approx(1000 / 11)
    assert err == ""
    assert "F1 over" in report.read_text(encoding="utf-8")


def test_odds_that_stand_beside_predictions_count(capsys, tmp_path):
    path = squad_file(tmp_path / "data.json", [("Who?", "Ann came.", ["Ann"]), ("?", "Ann.", [])])
    rows = [
        {"id": "q0", "prediction_text": "Ann", "no_answer_probability": 0.1},
        {"id": "q1", "prediction_text": "Ann", "no_answer_probability": 0.9},
    ]
    predictions = tmp_path / "predictions.json"
    predictions.write_text(json.dumps(rows))
    arguments = ["evaluate", "--data", path, "--predictions", predictions]
    shown = output_of(capsys, *arguments)
    assert (shown["exact"], shown["best_exact"], shown["best_exact_thresh"]) == (50.0, 100.0, 0.1)
    assert output_of(capsys, *arguments, "--null-threshold", "0.5")["exact"] == 100.0


# ---------------------------------------------------------------- streams


def shell(command, tmp_path, tiny_folder):
    """Run a command line of `minibert`, with {m} for the program and its model."""
    options = ["--data", str(EXAMPLE), "--model", str(tiny_folder)]
    command = command.format(
        m=shlex.join([sys.executable, "-m", "minibert"]), options=shlex.join(options)
    )
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


@pytest.mark.slow
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
    assert done.stdout.startswith("minibert: interrupted: ")
    assert done.stdout.endswith("from there\n 130\n")
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "of 40 questions were answered before" in again.stderr
    assert json.loads(again.stdout)["total"] == 40
