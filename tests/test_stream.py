"""Many questions: a row for each, errors in their places, and nothing lost on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from itertools import cycle, islice

import numpy as np
import pytest
from programs import command, lines_of, read_terminal, rows_of
from safetensors.numpy import load_file, save_file

from minibert import QuestionAnswerer
from minibert.cli import main
from minibert.commands.stream import Source, answer_lines, digest
from minibert.reading import BATCH_TOKENS, groups

QUESTION = "who wrote it?"
TEXT = "ada lee wrote the old book in 1843. the ship was lost north of berlin. nobody came."
ROWS = [
    {"id": 7, "question": QUESTION, "context": TEXT},
    {"question": "who was lost?", "context": ["the ship was lost.", TEXT], "note": {"é": [1]}},
    {"question": "when?", "context": "1843", "id": None},
]
GOOD = json.dumps({"question": QUESTION, "context": TEXT}).encode()
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals, pipes or limits")


@pytest.fixture
def program(tiny_folder, tmp_path):
    """Start `minibert answer` in a process of its own, where signals are as in a shell."""
    started = []

    def start(*arguments, before=""):
        code = (
            f"import signal, sys\n{before}\n"
            "from minibert.cli import main\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
            "sys.exit(main())\n"
        )
        options = ["--model", tiny_folder, "--device", "reference", *arguments]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-c", code, "answer", *map(str, options)]
        started.append(subprocess.Popen(command, cwd=tmp_path, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


# --- rows ------------------------------------------------------------------------------------


def test_each_line_gets_its_answer_in_the_same_order(run, tmp_path):
    code, out, err = run("--jsonl", lines_of(tmp_path / "in", ROWS), "--null-threshold=inf")
    assert (code, err) == (0, "")
    rows = rows_of(out)
    assert len(rows) == len(ROWS)
    for given_row, row in zip(ROWS, rows, strict=True):
        answer = row.pop("answer")
        assert row == {key: value for key, value in given_row.items() if key != "context"}
        texts = given_row["context"]
        text = texts if isinstance(texts, str) else texts[answer["document"]]
        assert text[answer["start"] : answer["end"]] == answer["text"] != ""
    single = json.loads(run(QUESTION, TEXT, "--json", "--null-threshold=inf")[1])
    answer = json.loads(out.splitlines()[0])["answer"]
    assert (answer["start"], answer["end"]) == (single["start"], single["end"])
    assert answer["score"] == pytest.approx(single["score"], abs=1e-4)


def test_top_k_of_many_questions_gives_lists(run, tmp_path):
    _, out, _ = run("--jsonl", lines_of(tmp_path / "in", ROWS), "--top-k", "2")
    rows = rows_of(out)
    assert [len(row["answers"]) for row in rows] == [2, 2, 2]
    assert "answer" not in rows[0]


def test_lines_come_from_standard_input_too(run, tmp_path, stdin):
    expected = run("--jsonl", lines_of(tmp_path / "in", ROWS))
    stdin((tmp_path / "in").read_bytes())
    assert run("--jsonl", "-") == expected


def test_empty_lines_a_byte_order_mark_and_windows_line_ends_are_fine(run, tmp_path):
    expected = run("--jsonl", lines_of(tmp_path / "in", ROWS))
    content = (tmp_path / "in").read_bytes().replace(b"\n", b"\r\n\r\n")
    (tmp_path / "in").write_bytes(b"\xef\xbb\xbf" + content + b"  \n")
    assert run("--jsonl", str(tmp_path / "in")) == expected


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n\t"])
def test_a_file_without_questions_gives_no_answers(run, tmp_path, content):
    (tmp_path / "in").write_bytes(content)
    assert run("--jsonl", str(tmp_path / "in")) == (0, "", "")
    assert run("--jsonl", str(tmp_path / "in"), "--output", str(tmp_path / "out")) == (0, "", "")
    assert (tmp_path / "out").read_bytes() == b""


def test_numbers_that_json_does_not_have_are_null_in_the_output(run, tmp_path):
    row = b'{"a": NaN, "b": [-Infinity], "c": 1e999, "d": 1.5, "question": "a", "context": "b"}'
    (tmp_path / "in").write_bytes(row)
    code, out, _ = run("--jsonl", str(tmp_path / "in"))
    (row,) = rows_of(out)
    assert (code, row["a"], row["b"], row["c"], row["d"]) == (0, None, [None], None, 1.5)


def test_half_a_surrogate_pair_in_another_field_is_written_as_an_escape(run, tmp_path):
    (tmp_path / "in").write_text(r'{"question": "a", "context": "b", "id": "\ud800"}')
    code, out, err = run("--jsonl", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert (code, out, err) == (0, "", "")
    assert json.loads((tmp_path / "out").read_text(encoding="utf-8"))["id"] == "\ud800"


# --- rows that cannot be answered ------------------------------------------------------------

BAD_LINES = [
    (b"{", "is not JSON"),
    (b"who wrote it?", "is not JSON"),
    (b"[" * 100_000, "is not JSON"),
    (b'{"id": ' + b"[" * 100_000, "is not JSON"),
    (b'{"id": ' + b"9" * 10_000 + b"}", "is not JSON"),
    (b'{"question": "a", "context": "b", "question": "c"}', "the key 'question' stands twice"),
    (b"[1]", "must be an object, found list"),
    (b"{}", "has no 'question'; found nothing"),
    (b'{"question": "a"}', "has no 'context'; found question"),
    (b'{"context": "a"}', "has no 'question'; found context"),
    (b'{"question": "", "context": "a"}', "question cannot be empty"),
    (b'{"question": 3, "context": "a"}', "question must be a string, got int: 3"),
    (b'{"question": "a", "context": ""}', "context cannot be empty"),
    (b'{"question": "a", "context": null}', "list of strings, got NoneType: None"),
    (b'{"question": "a", "context": NaN}', "list of strings, got NoneType: None"),
    (b'{"question": "a", "context": {"a": "b"}}', "list of strings, got dict"),
    (b'{"question": "a", "context": []}', "non-empty list of strings, got list: []"),
    (b'{"question": "a", "context": ["a", 1]}', "context[1] must be a string, got int: 1"),
    (b'{"question": "a", "context": ["", " "]}', "none of its 2 texts holds a word"),
    (b'{"question": "\\ud800", "context": "a"}', "character 0 is the lone surrogate"),
    (b'{"question": "a", "context": "b\\udfff"}', "character 1 is the lone surrogate"),
    (json.dumps({"question": "a " * 99, "context": "a"}).encode(), "99 tokens"),
    (b'{"question": "caf\xe9", "context": "a"}', "is not UTF-8"),
]


@pytest.mark.parametrize(("line", "words"), BAD_LINES)
def test_a_bad_line_becomes_an_error_in_its_place(run, tmp_path, line, words):
    path = tmp_path / "in"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD)
    code, out, err = run("--jsonl", str(path))
    first, bad, last = rows_of(out)
    assert code == 1
    assert err == f"minibert: error: {path}: rows with an error instead of an answer: 1\n"
    assert first["answer"]["score"] == pytest.approx(last["answer"]["score"], abs=1e-5)
    assert bad["error"].startswith(f"{path}, line 3: ")
    assert words in bad["error"]
    assert "answer" not in bad


def test_a_bad_row_keeps_its_other_fields(run, tmp_path):
    rows = [{"id": 5, "question": "when?", "context": "", "note": [1]}, {"id": "x", "context": "a"}]
    code, out, err = run("--jsonl", lines_of(tmp_path / "in", rows))
    assert (code, err.count("\n")) == (1, 1)
    assert err.endswith("in: rows with an error instead of an answer: 2\n")
    first, second = rows_of(out)
    assert first.pop("error").endswith("line 1: context cannot be empty")
    assert first == {"id": 5, "question": "when?", "note": [1]}
    assert list(second) == ["id", "error"]


def test_many_bad_rows_leave_the_others_alone(run, tmp_path):
    content = b"".join(line + b"\n" + GOOD + b"\n" for line, _ in BAD_LINES)
    (tmp_path / "in").write_bytes(content)
    code, out, err = run("--jsonl", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert (code, out) == (1, "")
    assert err.endswith(f"in: rows with an error instead of an answer: {len(BAD_LINES)}\n")
    rows = rows_of((tmp_path / "out").read_text(encoding="utf-8"))
    assert ["error" in row for row in rows] == [True, False] * len(BAD_LINES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_logits_that_are_no_numbers_end_the_run(capsys, tiny_folder, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["qa_outputs.weight"] *= np.float32(1e38)
    save_file(tensors, folder / "model.safetensors")
    (tmp_path / "in").write_bytes(GOOD + b"\n" + GOOD)
    for options in ([], ["--output", str(out)]):
        assert main(["answer", "--jsonl", str(tmp_path / "in"), *options, "--model", str(folder)])
        printed, err = capsys.readouterr()
        assert printed == ""
        assert "its logits are not finite numbers" in err
    assert not out.exists()


def test_strict_stops_at_the_first_bad_row_and_what_is_finished_is_written(run, tmp_path):
    path = tmp_path / "in"
    path.write_bytes(GOOD + b"\n{\n" + GOOD)
    code, out, err = run("--jsonl", str(path), "--strict")
    assert (code, len(rows_of(out)), err.count("\n")) == (1, 1, 1)
    assert err.startswith(f"minibert: error: {path}, line 2: is not JSON: ")
    options = ["--jsonl", str(path), "--strict", "--output", str(tmp_path / "out")]
    code, out, err = run(*options)
    assert (code, out) == (1, "")
    assert f"(what is finished is kept in {tmp_path / 'out'}.unfinished)" in err
    path.write_bytes(GOOD + b"\n" + GOOD)  # the line is mended
    code, out, err = run(*options)
    assert (code, out, err) == (0, "", "rows answered before: 1\n")
    assert len(rows_of((tmp_path / "out").read_text())) == 2


def test_settings_that_suit_no_row_are_refused_at_once(fails, tmp_path):
    path = lines_of(tmp_path / "in", ROWS)
    options = ["--jsonl", path, "--output", str(tmp_path / "out")]
    assert "beyond the 64 positions" in fails(*options, "--max-seq-length", "65")
    assert "cannot advance" in fails(*options, "--max-seq-length", "9", "--doc-stride", "8")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("contents", [[GOOD], [b"{"], [GOOD, b"{", b"[]"]])
def test_rows_are_taken_as_needed(tiny, contents):
    taken = []

    def lines():
        for number, content in enumerate(islice(cycle(contents), 20_000), 1):
            taken.append(number)
            yield number, content

    args = Namespace(top_k=1, batch_size=None)
    rows = answer_lines(QuestionAnswerer(tiny), Source("in", "line", lines(), lambda: None), args)
    for number, row in enumerate(islice(rows, 6_000), 1):
        assert row.digest == digest(contents[(number - 1) % len(contents)])
        assert len(taken) < number + 5_000


# --- runs that are interrupted ---------------------------------------------------------------


def unfinished_rows(path):
    """How many rows a run has kept so far."""
    try:
        return path.read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return -1


@POSIX
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_an_interrupted_run_goes_on_where_it_was(run, program, tiny, tmp_path, number):
    rows = [
        {"id": n, "question": "" if n % 50 == 9 else QUESTION, "context": TEXT} for n in range(400)
    ]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    content = b"".join(lines)
    out, kept = tmp_path / "out", tmp_path / "out.unfinished"
    out.write_text("of an earlier run")
    first = program("--jsonl", "-", "--output", "out")
    first.stdin.write(b"".join(lines[:300]))
    first.stdin.flush()
    read = ((n, tiny.windows(QUESTION, [TEXT]) if n % 50 != 9 else []) for n in range(300))
    *batches, _ = groups(read, None, BATCH_TOKENS)  # the last waits for more rows
    done = sum(map(len, batches))
    deadline = time.monotonic() + 60
    while unfinished_rows(kept) < done and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(getattr(signal, number))
    _, err = first.communicate(timeout=60)
    codes = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}
    assert first.returncode == codes[number]
    if number != "SIGKILL":
        assert err.decode() == (
            "minibert: interrupted: what is finished is kept in out.unfinished; the same command "
            "goes on from there\n"
        )
    assert out.read_text() == "of an earlier run"
    assert unfinished_rows(kept) == done  # and nothing waited in a buffer
    header, *records = kept.read_bytes().splitlines(keepends=True)
    marked = [record.replace(b'"text": "', b'"text": "from before ') for record in records]
    kept.write_bytes(header + b"".join(marked) + b"0123456789abcdef ok {half")
    second = program("--jsonl", "-", "--output", "out")
    _, err = second.communicate(content, timeout=60)
    assert second.returncode == 1
    assert err.decode() == (
        f"rows answered before: {done}\n"
        "minibert: error: -: rows with an error instead of an answer: 8\n"
    )
    found = rows_of(out.read_text())
    (tmp_path / "in").write_bytes(content)
    expected = rows_of(run("--jsonl", str(tmp_path / "in"))[1])
    for number, (row, other) in enumerate(zip(found, expected, strict=True)):
        assert row["id"] == other["id"] == number
        if "error" in other:
            assert row["error"].replace("-, ", f"{tmp_path / 'in'}, ", 1) == other["error"]
        else:
            before = "from before " if number < done else ""
            assert row["answer"]["text"] == before + other["answer"]["text"]
    assert not kept.exists()


@POSIX
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_rows_on_standard_output_are_not_lost_when_a_run_is_interrupted(program, number, code):
    process = program("--jsonl", "-")
    process.stdin.write((GOOD + b"\n") * 400)
    process.stdin.flush()
    shown = [process.stdout.readline() for _ in range(60)]
    process.send_signal(getattr(signal, number))
    shown += process.stdout.readlines()
    assert process.wait(60) == code
    assert all("answer" in row for row in rows_of(b"".join(shown).decode()))
    assert process.stderr.read().decode() == (
        "minibert: interrupted: what is finished is written; with --output FILE, the same command "
        "would go on\n"
    )


@pytest.fixture
def interrupted(run, tmp_path):
    """What a run leaves that was stopped after two of three rows: the options of that run."""
    content = [json.dumps(row).encode() for row in ROWS]
    (tmp_path / "in").write_bytes(b"\n".join([*content[:2], b"{", content[2]]))
    options = ["--jsonl", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert run(*options, "--strict")[0] == 1
    (tmp_path / "in").write_bytes(b"\n".join(content))
    return options


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--top-k", "2"], "top_k was 1 and is 2"),
        (["--null-threshold", "2"], "null_score_diff_threshold was 0.0 and is 2.0"),
        (["--max-answer-length", "3"], "max_answer_length was 30 and is 3"),
        (["--no-align-to-words"], "align_to_words was True and is False"),
        (["--max-overlap", "0"], "max_overlap was None and is 0.0"),
        (["--min-score", "2"], "min_score was None and is 2.0"),
    ],
)
def test_a_run_with_other_settings_is_not_gone_on_with(
    run, fails, interrupted, tmp_path, change, words
):
    before = (tmp_path / "out.unfinished").read_bytes()
    message = fails(*interrupted, *change)
    assert f"an unfinished run with other settings: {words}. " in message
    assert "--overwrite" in message
    assert (tmp_path / "out.unfinished").read_bytes() == before
    assert run(*interrupted, *change, "--overwrite") == (0, "", "")
    assert run("--jsonl", str(tmp_path / "in"), *change)[1] == (tmp_path / "out").read_text()


def test_a_run_over_other_lines_is_not_gone_on_with(run, fails, interrupted, tmp_path):
    source = tmp_path / "in"
    lines = source.read_bytes().splitlines()
    before = (tmp_path / "out.unfinished").read_bytes()
    for changed, words in (
        ([lines[0], GOOD, lines[2]], "an unfinished run over a file with another line 2. "),
        ([b"", GOOD, *lines], "an unfinished run over a file with another line 2. "),
        (lines[:1], "an unfinished run over more rows than the 1 of "),
    ):
        source.write_bytes(b"\n".join(changed))
        assert words in fails(*interrupted)
        assert (tmp_path / "out.unfinished").read_bytes() == before
    source.write_bytes(b"\r\n".join([b"", *lines, GOOD, b""]))  # white space and more at the end
    assert run(*interrupted) == (0, "", "rows answered before: 2\n")
    assert len(rows_of((tmp_path / "out").read_text())) == 4


@pytest.mark.parametrize("place", [0, 1, 2])
def test_with_overwrite_what_fits_is_kept(run, interrupted, tmp_path, place):
    source, kept = tmp_path / "in", tmp_path / "out.unfinished"
    lines = source.read_bytes().splitlines()
    source.write_bytes(b"\n".join([*lines[:place], GOOD, *lines[place:]]))
    kept.write_bytes(kept.read_bytes().replace(b'"text": "', b'"text": "before '))
    code, _, err = run(*interrupted, "--overwrite")
    assert (code, err) == (0, f"rows answered before: {place}\n" if place else "")
    found = rows_of((tmp_path / "out").read_text())
    assert [row["answer"]["text"].startswith("before ") for row in found] == [
        n < place for n in range(4)
    ]


@pytest.mark.parametrize(
    "damage",
    [
        *(b"hello", b"", b"0123456789abcdef ok [1]", b"\xff\x00", b'DIGEST ok {"a": "\x89"}'),
        *(b'DIGEST ok {"a": 1ore: {}}', b'DIGEST ok {"score": NaN}'),
    ],
)
def test_a_damaged_row_is_refused(run, fails, interrupted, tmp_path, damage):
    kept = tmp_path / "out.unfinished"
    header, first, second = kept.read_bytes().splitlines()
    damage = damage.replace(b"DIGEST", second[:16])
    kept.write_bytes(b"\n".join([header, first, damage, b""]))
    assert f"{kept}, line 3: is damaged. " in fails(*interrupted)
    assert run(*interrupted, "--overwrite")[0] == 0
    assert len(rows_of((tmp_path / "out").read_text())) == 3


@pytest.mark.parametrize("content", [b"hello\n", b"my precious notes", b"[]\n"])
def test_a_file_of_another_kind_is_kept(fails, tmp_path, content):
    kept = tmp_path / "out.unfinished"
    kept.write_bytes(content)
    options = ["--jsonl", lines_of(tmp_path / "in", ROWS), "--output", str(tmp_path / "out")]
    for more in ([], ["--overwrite"]):
        assert f"{kept}: is not the file of an earlier run" in fails(*options, *more)
        assert kept.read_bytes() == content


def test_a_run_that_had_finished_nothing_hinders_nobody(run, tmp_path):
    (tmp_path / "in").write_bytes(b"{\n" + GOOD)
    options = ["--jsonl", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert run(*options, "--strict")[0] == 1
    code, _, err = run(*options, "--top-k", "2")
    assert (code, err.count("\n")) == (1, 1)
    assert len(rows_of((tmp_path / "out").read_text())) == 2


@POSIX
def test_two_runs_do_not_write_one_file(fails, tmp_path):
    import fcntl

    with (tmp_path / "out.unfinished").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        options = ["--jsonl", lines_of(tmp_path / "in", ROWS), "--output", str(tmp_path / "out")]
        assert "another run is writing there" in fails(*options)


# --- where rows go ---------------------------------------------------------------------------


def test_output_goes_to_a_file_alone_and_replaces_what_was_there(run, tmp_path):
    path = lines_of(tmp_path / "in", ROWS)
    _, expected, _ = run("--jsonl", path)
    (tmp_path / "out").write_text("old")
    assert run("--jsonl", path, "--output", str(tmp_path / "out")) == (0, "", "")
    assert (tmp_path / "out").read_text(encoding="utf-8") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_link_stays_a_link(run, tmp_path):
    path = lines_of(tmp_path / "in", ROWS)
    (tmp_path / "folder").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "folder" / "real")
    for _ in range(2):
        assert run("--jsonl", path, "--output", str(tmp_path / "out")) == (0, "", "")
    assert (tmp_path / "out").is_symlink()
    assert len(rows_of((tmp_path / "folder" / "real").read_text())) == 3
    assert run(QUESTION, TEXT, "--output", str(tmp_path / "out")) == (0, "", "")
    assert (tmp_path / "out").is_symlink()


def test_the_input_is_not_overwritten(run, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = lines_of(tmp_path / "in", ROWS)
    before = (tmp_path / "in").read_bytes()
    (tmp_path / "link").symlink_to("in")
    for output in ("in", "./in", path, "link"):
        assert "is an input too" in fails("--jsonl", path, "--output", output)
        assert "is an input too" in fails(QUESTION, "--file", path, "--output", output)
    assert (tmp_path / "in").read_bytes() == before


@POSIX
def test_rows_do_not_run_in_circles(tiny_folder, tmp_path):
    path = lines_of(tmp_path / "in", ROWS)
    before = (tmp_path / "in").read_bytes()
    line = f'"{sys.executable}" -m minibert answer --jsonl - --model "{tiny_folder}"'
    done = subprocess.run(
        f'{line} < "{path}" >> "{path}"', shell=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr == (
        "minibert: error: standard output: is an input too; choose another output\n"
    )
    assert (tmp_path / "in").read_bytes() == before


def test_a_missing_model_is_not_blamed_on_the_output(capsys, tmp_path):
    (tmp_path / "in").write_bytes(GOOD)
    options = ["--jsonl", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(["answer", *options, "--model", str(tmp_path / "a" / "b" / "c")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "there is no such folder or file" in err
    assert "written" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_input_and_output_are_looked_at_before_the_model_is_loaded(capsys, tmp_path):
    path = lines_of(tmp_path / "in", ROWS)
    for options, words in (
        (["--jsonl", str(tmp_path / "missing")], "missing: cannot be read: No such file"),
        (["--jsonl", str(tmp_path)], f"{tmp_path}: cannot be read: "),
        (["--jsonl", "a\0b"], "cannot be read: "),
        (["--jsonl", path, "--output", str(tmp_path)], "cannot be written: it is a folder"),
        (["--jsonl", path, "--output", str(tmp_path / "no" / "out")], "there is no folder"),
    ):
        assert main(["answer", *options, "--model", "no such model"]) == 1
        assert words in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("ending", ["> /dev/full", "--output /dev/full"])
def test_a_full_disk_is_one_line(tiny_folder, tmp_path, ending):
    path = lines_of(tmp_path / "in", ROWS)
    line = (
        f'"{sys.executable}" -m minibert answer --jsonl "{path}" --model "{tiny_folder}" {ending}'
    )
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path)
    name = "/dev/full" if "--output" in ending else "standard output"
    assert done.returncode == 1
    assert done.stderr == (f"minibert: error: {name}: cannot be written: No space left on device\n")


@POSIX
def test_a_disk_that_fills_up_loses_nothing(program, run, tmp_path):
    path = lines_of(
        tmp_path / "in", [{"id": n, "question": QUESTION, "context": TEXT} for n in range(99)]
    )
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))"
    first = program("--jsonl", path, "--output", "out", before=limit)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1
    assert err.decode() == ("minibert: error: out.unfinished: cannot be written: File too large\n")
    done = unfinished_rows(tmp_path / "out.unfinished")
    assert done > 9
    second = program("--jsonl", path, "--output", "out")
    _, err = second.communicate(timeout=60)
    assert (second.returncode, err.decode()) == (0, f"rows answered before: {done}\n")
    found, expected = rows_of((tmp_path / "out").read_text()), rows_of(run("--jsonl", path)[1])
    assert [row["id"] for row in found] == list(range(99))
    assert {row["answer"]["text"] for row in found} == {expected[0]["answer"]["text"]}


@POSIX
def test_a_reader_that_has_seen_enough_ends_it_quietly(program, tmp_path):
    rows = [{"id": "x" * 2000, "question": "who?", "context": "ada lee"}] * 1000
    path = lines_of(tmp_path / "in", rows)  # more answers than a pipe holds
    process = program("--jsonl", path)
    assert json.loads(process.stdout.readline())["question"] == "who?"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


@POSIX
def test_a_closed_standard_input_is_one_line(tiny_folder, tmp_path):
    for arguments in ("--jsonl -", "who", "who --file -"):
        line = f'"{sys.executable}" -m minibert answer {arguments} --model "{tiny_folder}" <&-'
        done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr == "minibert: error: standard input is closed; name a file\n"


@POSIX
def test_progress_is_drawn_on_a_terminal_and_answers_stay_clean(tiny_folder, tmp_path):
    import pty

    leader, follower = pty.openpty()
    path = lines_of(tmp_path / "in", ROWS)
    run = subprocess.run(
        command("answer", "--jsonl", path, "--model", tiny_folder, "--device", "reference"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    drawn = read_terminal(leader)
    assert run.returncode == 0
    assert len(rows_of(run.stdout.decode())) == len(ROWS)
    assert f"[{'#' * 20}] 3/3 questions" in drawn
    assert "/s" in drawn
    assert drawn.endswith("\n")


def test_fields_whose_names_an_answer_takes_are_passed_on_under_others(run, tmp_path):
    rows = [
        {"question": QUESTION, "context": TEXT, "answer": "Ann", "error": "none"},
        {"question": "", "context": TEXT, "answers": ["Ann"]},
    ]
    code, out, _ = run("--jsonl", lines_of(tmp_path / "in", rows), "--batch-size", "1")
    good, bad = rows_of(out)
    assert code == 1
    assert (good["input_answer"], good["input_error"]) == ("Ann", "none")
    assert "error" not in good
    assert good["answer"]["score"]
    assert bad["input_answers"] == ["Ann"]
    assert "question" in bad["error"]


def test_with_a_batch_of_one_each_line_is_answered_as_it_comes(program):
    process = program("--jsonl", "-", "--batch-size", "1")
    for _ in range(2):
        process.stdin.write(GOOD + b"\n")
        process.stdin.flush()
        assert b"answer" in process.stdout.readline()
