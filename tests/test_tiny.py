"""The whole library in two seconds, on a tiny random model: what to run first after a change.

One question goes from text to answer, step by step; then both faces, conversion, evaluation and
the command line.  What is wrong in detail, the other files say.
"""

import json

import numpy as np
import pytest
from random_models import write_model
from squad_files import EXAMPLE

from minibert import (
    QuestionAnswerer,
    SquadSettings,
    Trace,
    convert,
    evaluate,
    load_model,
    pipeline,
    read_squad,
)
from minibert.batches import pack
from minibert.cli import main
from minibert.encoder import qa_logits

QUESTION = "who wrote the book?"
TEXT = "ada lee wrote the old book in 1843. the ship was lost north of berlin. nobody came."
NO_NULL = float("inf")


def test_a_question_goes_from_text_to_logits_on_every_device(tiny_folder):
    results = {}
    for device in ("reference", "cpu"):
        model = load_model(tiny_folder, device=device)
        tokens = model.tokenizer.encode(TEXT)
        words = [TEXT[begin:end] for begin, end in tokens.offsets]
        assert words[:3] == ["ada", "lee", "wrote"]
        windows = model.windows(QUESTION, [TEXT], max_seq_length=20, doc_stride=4)
        assert len(windows) > 1
        assert {len(window) for window in windows[:-1]} == {20}
        batch = pack(windows)
        assert batch.cu_seqlens[-1] == len(batch.input_ids) == sum(map(len, windows))
        trace = Trace()
        traced = qa_logits(batch, model.weights, model.config, model.kernels, trace)
        whole = qa_logits(batch, model.weights, model.config, model.kernels)
        assert np.abs(np.subtract(traced, whole)).max() < 2e-5
        assert trace["layer.1"].shape == (len(batch.input_ids), model.config.hidden_size)
        results[device] = whole
    assert np.abs(np.subtract(results["reference"], results["cpu"])).max() < 2e-5


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_both_faces_answer_with_words_of_the_text(tiny_folder, device):
    answerer = QuestionAnswerer(tiny_folder, device=device, null_score_diff_threshold=NO_NULL)
    answer = answerer.answer(QUESTION, TEXT)
    assert not answer.is_null
    assert answer.text == TEXT[answer.start : answer.end]
    assert [each.text for each in answerer.answer_many([(QUESTION, TEXT)] * 3)] == [answer.text] * 3
    assert sum(each.probability for each in answerer.n_best(QUESTION, [TEXT], n=3)) <= 1
    found = pipeline("question-answering", model=str(tiny_folder), device=device)(
        question=QUESTION, context=TEXT
    )
    assert found["answer"] == TEXT[found["start"] : found["end"]]
    assert 0 < found["score"] <= 1


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 0), ("float16", 0.01), ("int8", 0.1)])
def test_a_converted_model_answers_as_before(tiny_folder, tmp_path, dtype, limit):
    convert(tiny_folder, tmp_path / "new", dtype=dtype)
    before, after = (
        load_model(folder, device="reference") for folder in (tiny_folder, tmp_path / "new")
    )
    pairs = [each.logits(each.windows(QUESTION, [TEXT]))[0] for each in (before, after)]
    assert np.abs(np.subtract(*pairs)).max() <= limit


def test_a_squad_file_is_evaluated(tiny):
    data = read_squad(EXAMPLE)
    for decoder in ("run_squad", "pipeline", "answerer"):
        run = evaluate(tiny, data, SquadSettings(decoder=decoder, doc_stride=16))
        assert run.metrics["total"] == len(data.questions) == len(run.predictions)
        assert 0 <= run.metrics["exact"] <= run.metrics["f1"] <= 100


def test_the_commands_run(tiny_folder, tmp_path, capsys):
    model = ["--model", str(tiny_folder)]
    assert main(["answer", QUESTION, TEXT, *model, "--json", "--null-threshold", "inf"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] in TEXT
    report = tmp_path / "report.html"
    arguments = ["--data", str(EXAMPLE), "--report", str(report)]
    assert main(["evaluate", *model, *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 14
    assert "<svg" in report.read_text(encoding="utf-8")
    assert main(["convert", str(tiny_folder), str(tmp_path / "new"), "--dtype", "int8"]) == 0
    assert (tmp_path / "new" / "model.safetensors").exists()


def test_an_error_says_what_to_do(tmp_path, capsys):
    write_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    assert main(["answer", QUESTION, TEXT, "--model", str(tmp_path / "model")]) == 1
    assert "config.json" in capsys.readouterr().err
