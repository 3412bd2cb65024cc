"""The command line: what goes to which stream, what it exits with, and what it leaves behind."""

import io
import json
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibert import __version__
from minibert.cli import main
from minibert.commands.answer import LONGEST_SENTENCE, sentence_around
from minibert.progress import progress

pytestmark = pytest.mark.usefixtures("compiled_before")

QUESTION = "who wrote it?"
TEXT = "ada lee wrote the old book in 1843. the ship was lost north of berlin. nobody came."
FIELDS = [
    "text",
    "start",
    "end",
    "score",
    "probability",
    "null_score",
    "document",
    "window",
]
NO_SUCH_TERMINAL = pytest.mark.skipif(os.name == "nt", reason="Windows has no pty")


@pytest.fixture
def run(capsys, tiny_folder):
    """Run `minibert answer` with the tiny model: run(*arguments) -> (exit code, stdout, stderr)."""

    def run(*arguments):
        options = ["--model", str(tiny_folder), "--device", "reference"]
        try:
            code = main(["answer", *arguments, *options])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def fails(run):
    """As `run`, for bad input: the message."""

    def fails(*arguments):
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("minibert: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err

    return fails


@pytest.fixture
def stdin(monkeypatch, tmp_path):
    """Put bytes on standard input."""
    path = tmp_path / "stdin"
    opened = []

    def put(content):
        path.write_bytes(content)
        opened.append(path.open(encoding="utf-8"))
        monkeypatch.setattr(sys, "stdin", opened[-1])

    yield put
    for file in opened:
        file.close()


def lines_of(path, rows):
    """A JSON-lines file."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(content, encoding="utf-8")
    return str(path)


def command(*arguments):
    return [sys.executable, "-m", "minibert", *map(str, arguments)]


# --- one question ----------------------------------------------------------------------------


def test_an_answer_is_its_text_its_sentence_and_its_figures(run):
    code, out, err = run(QUESTION, TEXT, "--null-threshold", "inf")
    assert (code, err) == (0, "")
    answer, sentence, figures, *rest = out.split("\n")
    assert rest == [""]
    assert answer in TEXT
    assert sentence.startswith("  ")
    assert f"[{answer}]" in sentence
    assert sentence.strip().replace("[", "").replace("]", "") in TEXT
    begin = int(figures.split("characters ")[1].split(" to ")[0])
    assert TEXT[begin : begin + len(answer)] == answer
    assert figures.startswith("  score ")


def test_json_has_the_fields_of_an_answer(run):
    code, out, err = run(QUESTION, TEXT, "--json", "--null-threshold", "inf")
    assert (code, err, out.count("\n")) == (0, "", 1)
    answer = json.loads(out)
    assert list(answer) == FIELDS
    assert TEXT[answer["start"] : answer["end"]] == answer["text"] != ""


def test_top_k_gives_the_best_answers_in_their_order(run):
    _, one, _ = run(QUESTION, TEXT, "--json")
    code, out, err = run(QUESTION, TEXT, "--json", "--top-k", "4")
    answers = json.loads(out)
    assert (code, err, len(answers)) == (0, "", 4)
    assert answers[0] == json.loads(one)
    assert len({(answer["start"], answer["end"]) for answer in answers}) == 4
    code, out, _ = run(QUESTION, TEXT, "--top-k", "4")
    blocks = out.rstrip("\n").split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == [
        answer["text"] or "(no answer)" for answer in answers
    ]


def test_several_files_are_searched_together_and_the_answer_names_its_file(run, tmp_path):
    paths = []
    for number, text in enumerate(TEXT.split(". ")):
        paths.append(str(tmp_path / f"{number}.txt"))
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    options = [option for path in paths for option in ("--file", path)]
    _, out, _ = run(QUESTION, *options, "--json", "--top-k", "20", "--null-threshold", "inf")
    answers = json.loads(out)
    assert {answer["document"] for answer in answers} > {0, 1}
    for answer in answers:
        text = TEXT.split(". ")[answer["document"]]
        assert text[answer["start"] : answer["end"]] == answer["text"]
    code, out, err = run(QUESTION, *options, "--null-threshold", "inf")
    assert (code, err) == (0, "")
    assert f" of {paths[answers[0]['document']]}\n" in out


def test_a_file_a_text_and_standard_input_give_the_same_answer(run, tmp_path, stdin):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8-sig")  # with the byte order mark of Windows' Notepad
    expected = run(QUESTION, TEXT, "--json")
    assert run(QUESTION, "--file", str(path), "--json") == expected
    stdin(TEXT.encode())
    assert run(QUESTION, "--json") == expected
    stdin(TEXT.encode())
    assert run(QUESTION, "--file", "-", "--json") == expected


def test_the_threshold_decides_about_no_answer(run):
    code, out, err = run(QUESTION, TEXT, "--null-threshold=-inf")
    assert (code, err) == (0, "")
    assert out.startswith("(no answer)\n  score ")
    _, out, _ = run(QUESTION, TEXT, "--null-threshold=-inf", "--json")
    answer = json.loads(out)
    assert (answer["text"], answer["start"], answer["end"]) == ("", 0, 0)
    _, out, _ = run(QUESTION, TEXT, "--null-threshold=inf", "--json")
    assert json.loads(out)["text"]


def test_the_length_options_reach_the_model(run):
    def answer(*options):
        code, out, err = run(QUESTION, TEXT, "--null-threshold=inf", "--json", *options)
        assert (code, err) == (0, "")
        return json.loads(out)

    assert " " not in answer("--max-answer-length", "1")["text"]
    parts = answer("--max-seq-length", "12", "--doc-stride", "1", "--top-k", "20")
    assert len({part["window"] for part in parts}) > 1


def test_other_letters_than_english_are_printed_as_they_are(run):
    code, out, _ = run(QUESTION, "船 東 京 😀 é", "--json", "--null-threshold=inf")
    assert code == 0
    assert "\\u" not in out
    assert json.loads(out)["text"] in "船 東 京 😀 é"


# --- many questions --------------------------------------------------------------------------

ROWS = [
    {"id": 7, "question": QUESTION, "context": TEXT},
    {"question": "who was lost?", "context": ["the ship was lost.", TEXT], "note": {"é": [1]}},
    {"question": "when?", "context": "1843", "id": None},
]


def test_each_line_gets_its_answer_in_the_same_order(run, tmp_path):
    code, out, err = run("--jsonl", lines_of(tmp_path / "in", ROWS), "--null-threshold=inf")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
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
    rows = [json.loads(line) for line in out.splitlines()]
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


def test_a_file_without_questions_gives_no_answers(run, tmp_path):
    (tmp_path / "in").write_text("\n\n")
    assert run("--jsonl", str(tmp_path / "in")) == (0, "", "")


GOOD = json.dumps({"question": QUESTION, "context": TEXT}).encode()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "is not JSON"),
        (b"who wrote it?", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "must be an object, found list"),
        (b"{}", "has no 'question'; found nothing"),
        (b'{"question": "a"}', "has no 'context'; found question"),
        (b'{"context": "a"}', "has no 'question'; found context"),
        (b'{"question": "", "context": "a"}', "'question' must be a non-empty string, got ''"),
        (b'{"question": 3, "context": "a"}', "'question' must be a non-empty string, got 3"),
        (b'{"question": "a", "context": ""}', "'context' must be a non-empty string, got ''"),
        (b'{"question": "a", "context": null}', "'context' must be a non-empty string, got None"),
        (b'{"question": "a", "context": []}', "'context' is an empty list"),
        (b'{"question": "a", "context": ["a", 1]}', "'context' must be a non-empty string, got 1"),
        (b'{"question": "\\ud800", "context": "a"}', "character 0 is the lone surrogate"),
        (b'{"question": "a", "context": "b\\udfff"}', "character 1 is the lone surrogate"),
        (json.dumps({"question": "a " * 99, "context": "a"}).encode(), "99 tokens"),
        (b'{"question": "caf\xe9", "context": "a"}', "is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(fails, tmp_path, line, words):
    path = tmp_path / "in"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD)
    message = fails("--jsonl", str(path))
    assert f"{path}, line 3: " in message
    assert message.count("line 3") == 1
    assert words in message


# --- output to a file ------------------------------------------------------------------------


def test_output_goes_to_a_file_alone(run, tmp_path):
    rows = lines_of(tmp_path / "in", ROWS)
    for arguments in ([QUESTION, TEXT], [QUESTION, TEXT, "--json"], ["--jsonl", rows]):
        _, expected, _ = run(*arguments)
        assert run(*arguments, "--output", str(tmp_path / "out")) == (0, "", "")
        assert (tmp_path / "out").read_text(encoding="utf-8") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_failed_run_leaves_the_old_output_and_no_draft(fails, tmp_path):
    (tmp_path / "in").write_bytes(GOOD + b"\n{\n")
    (tmp_path / "out").write_text("old")
    fails("--jsonl", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace a file that is open")
def test_the_old_output_is_replaced_at_once_and_not_written_over(run, tmp_path):
    (tmp_path / "out").write_text("old")
    with (tmp_path / "out").open() as reader:
        assert run(QUESTION, TEXT, "--output", str(tmp_path / "out"))[0] == 0
        assert reader.read() == "old"
    assert (tmp_path / "out").read_text() != "old"


def test_a_missing_model_is_not_blamed_on_the_output(capsys, tmp_path):
    (tmp_path / "in").write_bytes(GOOD)
    options = ["--jsonl", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(["answer", *options, "--model", str(tmp_path / "a" / "b" / "c")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "there is no such folder or file" in err
    assert "written" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_half_a_surrogate_pair_in_another_field_is_written_as_an_escape(run, tmp_path):
    (tmp_path / "in").write_text(r'{"question": "a", "context": "b", "id": "\ud800"}')
    code, out, err = run("--jsonl", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert (code, out, err) == (0, "", "")
    assert json.loads((tmp_path / "out").read_text(encoding="utf-8"))["id"] == "\ud800"


def test_an_output_that_cannot_be_written_is_named(fails, tmp_path):
    for path in (tmp_path / "missing" / "out", tmp_path):
        message = fails(QUESTION, TEXT, "--output", str(path))
        assert f"{path}: cannot be written" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_is_written_to_and_not_replaced(run, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run(QUESTION, TEXT, "--output", str(path)) == (0, "", "")
        assert os.read(reader, 10_000).decode() == run(QUESTION, TEXT)[1]
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_others_may_read_the_output(run, tmp_path):
    run(QUESTION, TEXT, "--output", str(tmp_path / "out"))
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o644


# --- what is wrong ---------------------------------------------------------------------------


def test_a_file_that_is_missing_empty_or_not_utf_8_is_named(fails, tmp_path):
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_bytes(b"")
    latin.write_bytes(b"abc caf\xe9")
    assert f"{empty}: is empty" in fails(QUESTION, "--file", str(empty))
    assert f"{latin}: is not UTF-8 text: byte 7" in fails(QUESTION, "--file", str(latin))
    for option in ("--file", "--jsonl"):
        words = [QUESTION] if option == "--file" else []
        missing = tmp_path / "missing.txt"
        assert f"{missing}: cannot be read: No such file" in fails(*words, option, str(missing))
        assert f"{tmp_path}: cannot be read: " in fails(*words, option, str(tmp_path))


def test_bad_standard_input_is_named(fails, stdin):
    stdin(b"")
    assert "standard input: is empty" in fails(QUESTION)
    stdin(b"\xff")
    assert "standard input: is not UTF-8 text: byte 0" in fails(QUESTION)


def test_an_empty_question_or_text_is_bad_input(fails):
    assert "question cannot be empty" in fails("", TEXT)
    assert "context cannot be empty" in fails(QUESTION, "")


def test_windows_that_cannot_be_made_are_bad_input(fails):
    assert "max_seq_length 65 is beyond the 64" in fails(QUESTION, TEXT, "--max-seq-length", "65")
    assert "leaves no room" in fails(QUESTION, TEXT, "--max-seq-length", "5")
    options = "--max-seq-length", "12", "--doc-stride", "12"
    assert "cannot advance" in fails(QUESTION, TEXT, *options)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_bad_input(capsys, tiny_folder, device, no_gpu):
    assert main(["answer", QUESTION, TEXT, "--model", str(tiny_folder), "--device", device]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minibert: error: device 'cuda'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a QUESTION is needed, or --jsonl FILE"),
        (["a", "--jsonl", "x"], "give no QUESTION"),
        (["a", "b", "--file", "x"], "give the text once"),
        (["--jsonl", "x", "--file", "y"], "give the text once"),
        (["a", "b", "c"], "unrecognized arguments"),
        (["a", "b", "--top-k", "0"], "must be at least 1, got 0"),
        (["a", "b", "--top-k", "two"], "invalid whole number value: 'two'"),
        (["a", "b", "--doc-stride", "-1"], "must be at least 0, got -1"),
        (["a", "b", "--max-answer-length", "0"], "must be at least 1"),
        (["a", "b", "--max-seq-length", "1.5"], "invalid whole number value"),
        (["a", "b", "--null-threshold", "nan"], "must be a number, got nan"),
        (["a", "b", "--null-threshold", "x"], "invalid float value"),
        (["a", "b", "--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: minibert")
    assert words in err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [[], ["translate"], ["convert"], ["convert", "a"]])
def test_a_missing_or_unknown_command_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: minibert")


@pytest.mark.parametrize("arguments", [["--help"], ["answer", "--help"], ["convert", "--help"]])
def test_help_goes_to_standard_output(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: minibert")
    assert err == ""


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"minibert {__version__}\n"


# --- convert ---------------------------------------------------------------------------------


def test_convert_writes_a_folder_that_answers(capsys, tiny_folder, tmp_path):
    folder = tmp_path / "int8"
    assert main(["convert", str(tiny_folder), str(folder), "--dtype", "int8"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{folder}: 0.")
    assert out.endswith(" MB, int8\n")
    assert err == ""
    assert main(["answer", QUESTION, TEXT, "--model", str(folder), "--device", "reference"]) == 0
    assert main(["convert", str(tiny_folder), str(folder)]) == 1
    assert "already there" in capsys.readouterr().err
    assert main(["convert", str(tiny_folder), str(folder), "--overwrite"]) == 0
    assert capsys.readouterr().out.endswith("float32\n")


# --- the program itself ----------------------------------------------------------------------


def test_the_module_answers_from_standard_input(tiny_folder, tmp_path):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run(
        command("answer", QUESTION, "--model", tiny_folder, "--null-threshold", "inf"),
        input="船 東 京".encode(),
        env=os.environ | plain,
        cwd=tmp_path,
        capture_output=True,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout.decode("utf-8").split("\n")[0] in "船 東 京"


def test_an_error_is_one_line_and_no_traceback(tmp_path):
    run = subprocess.run(
        command("answer", QUESTION, TEXT, "--model", tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith(f"minibert: error: {tmp_path}: holds no model.safetensors")
    assert run.stderr.count("\n") == 1


def test_a_reader_that_has_seen_enough_ends_it_quietly(tiny_folder, tmp_path):
    rows = [{"id": "x" * 2000, "question": "who?", "context": "ada lee"}] * 1000
    path = lines_of(tmp_path / "in", rows)  # more answers than a pipe holds
    program = subprocess.Popen(
        command("answer", "--jsonl", path, "--model", tiny_folder, "--device", "reference"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert json.loads(program.stdout.readline())["question"] == "who?"
    program.stdout.close()
    with program.stderr as stream:
        assert stream.read() == b""
    assert program.wait(60) == 0


def read_terminal(leader):
    """All that a program wrote to a terminal, once it has ended."""
    content = b""
    while True:
        try:
            part = os.read(leader, 10_000)
        except OSError:  # how Linux says that the other end is closed
            part = b""
        if not part:
            os.close(leader)
            return content.decode()
        content += part


@NO_SUCH_TERMINAL
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
    assert len([json.loads(line) for line in run.stdout.splitlines()]) == len(ROWS)
    assert f"[{'#' * 20}] 3/3 questions" in drawn
    assert "/s" in drawn
    assert drawn.endswith("\n")


@NO_SUCH_TERMINAL
@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_the_answer_is_marked_in_bold_on_a_terminal_that_can(tiny_folder, tmp_path, variables):
    import pty

    leader, follower = pty.openpty()
    kept = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    run = subprocess.run(
        command("answer", QUESTION, TEXT, "--model", tiny_folder, "--null-threshold", "inf"),
        cwd=tmp_path,
        env=kept | {"TERM": "xterm"} | variables,
        stdout=follower,
        stderr=subprocess.PIPE,
    )
    os.close(follower)
    shown = read_terminal(leader)
    assert (run.returncode, run.stderr) == (0, b"")
    assert ("\x1b[1;4m" in shown) == (variables == {})
    assert ("[" in shown.replace("\x1b[", "")) == (variables != {})


# --- progress --------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("total", [3, None, 0, 2])
def test_progress_passes_everything_on(monkeypatch, total):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress("abc", total, "letters")) == ["a", "b", "c"]
    drawn = sys.stderr.getvalue()
    assert drawn.endswith("\n")
    counted = f"3/{total} letters, " if total else "3 letters, "
    assert drawn.split("\x1b[K")[-1].split("] ")[-1].startswith(counted)


def test_progress_counts_what_was_done_before_but_not_in_the_rate(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    clock = iter([0.0, 1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert list(progress("ab", 100, "letters", done=90)) == ["a", "b"]
    assert "91/100 letters, 1.0/s, 9 s left" in sys.stderr.getvalue()
    assert "92/100 letters, 1.0/s, 8 s left" in sys.stderr.getvalue()


def test_progress_draws_nothing_off_a_terminal_or_of_nothing(monkeypatch, capsys):
    assert list(progress("abc", 3, "letters")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress("", 0, "letters")) == []
    assert sys.stderr.getvalue() == ""


def test_progress_ends_its_line_when_something_fails(monkeypatch):
    def broken():
        yield 1
        raise KeyError("x")

    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyError):
        list(progress(broken(), 9, "things"))
    assert "1/9 things" in sys.stderr.getvalue()
    assert sys.stderr.getvalue().endswith("\n")


# --- sentences -------------------------------------------------------------------------------

PIECES = ["a", "Ann Lee", " ", ". ", "!", '."', "?) ", "。", "\n", "\n \n", "3.5", "x" * 400, "é😀"]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=20).map("".join), st.data())
def test_the_sentence_contains_the_span(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    begin, stop = sentence_around(text, start, end)
    assert 0 <= begin <= start < end <= stop <= len(text)
    assert start - begin <= LONGEST_SENTENCE
    assert stop - end <= LONGEST_SENTENCE


@pytest.mark.parametrize(
    ("text", "span", "sentence"),
    [
        ("It rained. Ann wrote it. Nobody came.", "Ann", " Ann wrote it."),
        ("It rained. Ann wrote it. Nobody came.", "rained", "It rained."),
        ("It rained. Ann wrote it. Nobody came.", "came", " Nobody came."),
        ("It rained. Ann wrote it. Nobody came.", "rained. Ann", "It rained. Ann wrote it."),
        ("It rained. Ann wrote it. Nobody came.", "it.", " Ann wrote it."),
        ("It cost 3.5 pounds! He paid.", "3.5", "It cost 3.5 pounds!"),
        ('"Is it?" she asked. Yes.', "she", " she asked."),
        ("雨。安が書いた。誰も。", "安", "安が書いた。"),
        ("Title\n\nAnn wrote it", "Ann", "Ann wrote it"),
        ("Ann", "Ann", "Ann"),
    ],
)
def test_a_sentence_ends_where_one_ends(text, span, sentence):
    start = text.index(span)
    begin, stop = sentence_around(text, start, start + len(span))
    assert text[begin:stop] == sentence


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_closed_standard_output_is_one_line_on_stderr(tiny_folder):
    command = f'"{sys.executable}" -m minibert answer who "the captain" --model "{tiny_folder}" >&-'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ("minibert: error: standard output is closed; give --output FILE\n")
