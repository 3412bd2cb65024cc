"""Interrupted runs go on where they were; whatever else lies there is kept."""

import json
import os
import sys
from dataclasses import replace

import pytest
from squad_files import EXAMPLE

from minibert import InputError, unfinished
from minibert.squad.decoders import SquadSettings
from minibert.squad.evaluation import (
    evaluate,
    predict,
)
from minibert.squad.files import read_squad
from minibert.squad.journal import OUTPUTS, UNFINISHED, journal
from minibert.squad.predictions import read_predictions


@pytest.fixture(scope="module")
def data():
    return read_squad(EXAMPLE)


def interrupted(model, data, folder, after, overwrite=False):
    """Begin a run and break it off after a few questions, as Ctrl-C does."""

    def run():
        with journal(folder, model, data, SquadSettings(), overwrite) as (_, keep):
            for question, answer in predict(model, data.questions[:after], SquadSettings()):
                keep(question.id, answer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()


def test_an_interrupted_run_goes_on_where_it_was(embedded, data, tmp_path):
    interrupted(embedded, data, tmp_path, after=5)
    lines = (tmp_path / UNFINISHED).read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 5
    # As if the machine had gone down while a line was written, and answers were still the same.
    changed = [line.replace(b'"Ingrid', b'"INGRID') for line in lines]
    (tmp_path / UNFINISHED).write_bytes(b"".join(changed)[:-9])
    evaluation = evaluate(embedded, data, output_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(OUTPUTS)
    expected = dict(evaluate(embedded, data).predictions) | {"example-01": "INGRID Sætre"}
    assert list(evaluation.predictions.items()) == list(expected.items())


def test_answers_are_brought_to_the_disk_once_a_second_and_when_the_run_ends(
    embedded, data, tmp_path, monkeypatch
):
    now, brought = [0.0], []
    monkeypatch.setattr(unfinished.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "fsync", lambda handle: brought.append(os.fstat(handle).st_size))
    sizes = []

    def run():
        with journal(tmp_path, embedded, data, SquadSettings(), overwrite=False) as (_, keep):
            brought.clear()  # of the header, and of the folder
            for question, answer in predict(embedded, data.questions[:6], SquadSettings()):
                now[0] += 0.4
                keep(question.id, answer)
                sizes.append((tmp_path / UNFINISHED).stat().st_size)
            raise MemoryError

    with pytest.raises(MemoryError):
        run()
    assert brought == [sizes[2], sizes[5], sizes[5]]


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
    "span": [None, [], [1], [1, 2, 3], [0.5, 1], [-1, 2], [5, 2], "ab"],
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
