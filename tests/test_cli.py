"""The command line: what goes to which stream, what it exits with, and what it leaves behind."""

import io
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import command, read_terminal
from squad_files import EXAMPLE

from minibert import __version__
from minibert.cli import COMMANDS, main, parse
from minibert.progress import CLEAR, harmless, progress
from minibert.sentences import LONGEST_SENTENCE, sentence_around

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
        assert answer["file"] == paths[answer["document"]]
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
    _, out, _ = run(QUESTION, TEXT, "--null-threshold=inf", "--min-score", "1e9")
    assert out.endswith("the text does not seem to say, or no answer scores 1e+09 or more\n")


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


# --- output to a file ------------------------------------------------------------------------


def test_a_text_of_unknown_letters_is_warned_of_in_one_line(run, tiny_folder):
    code, out, err = run(QUESTION, "ꙮ" * 3 + TEXT + " ꙮ" * 30)
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith(f"minibert: warning: {tiny_folder}: ")
    assert "tokens of a text are unknown to the vocabulary" in err
    assert out


def test_output_goes_to_a_file_alone(run, tmp_path):
    for arguments in ([QUESTION, TEXT], [QUESTION, TEXT, "--json"]):
        _, expected, _ = run(*arguments)
        assert run(*arguments, "--output", str(tmp_path / "out")) == (0, "", "")
        assert (tmp_path / "out").read_text(encoding="utf-8") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace a file that is open")
def test_the_old_output_is_replaced_at_once_and_not_written_over(run, tmp_path):
    (tmp_path / "out").write_text("old")
    with (tmp_path / "out").open() as reader:
        assert run(QUESTION, TEXT, "--output", str(tmp_path / "out"))[0] == 0
        assert reader.read() == "old"
    assert (tmp_path / "out").read_text() != "old"


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
        (["--file", "x.txt", "y.txt"], "a QUESTION is needed; it goes before --file"),
        (["a", "b", "--strict"], "--strict needs --jsonl"),
        (["a", "b", "--overwrite"], "--overwrite needs --jsonl and --output"),
        (["--jsonl", "x", "--overwrite"], "--overwrite needs --jsonl and --output"),
        (["a", "b", "--output", ""], "argument --output: is empty"),
        (["a", "b", "--ma", "3"], "ambiguous option: --ma could match"),
        (["a", "--file"], "expected at least one argument"),
        (["a", "--", "b", "--json", "c"], "unrecognized arguments: --json c"),
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


def test_arguments_may_stand_among_options(run):
    expected = run(QUESTION, TEXT, "--json", "--top-k", "3")
    assert expected[0] == 0
    for arguments in (
        [QUESTION, "--top-k", "3", TEXT, "--json"],
        [QUESTION, "--json", TEXT, "--top=3"],
        ["--json", QUESTION, "--top-k", "3", TEXT],
    ):
        assert run(*arguments) == expected
    assert parse(["answer", "-5", "--top-k", "3", "-1"]).text == "-1"
    assert parse(["answer", "--", "-q", "-t"]).text == "-t"
    assert parse(["convert", "--dtype", "int8", "a", "--overwrite", "b"]).output == "b"
    assert parse(["compare", "a", "--data", "x", "b"]).models == ["a", "b"]


@pytest.mark.parametrize(
    "line",
    [
        "Who? --file a.txt b.txt c.txt",
        "Who? --file a.txt --file b.txt c.txt",
        "--file a.txt b.txt --top-k 2 Who? --file c.txt",
        "--file a.txt b.txt c.txt Who?",
        "--file a.txt b.txt Who? --file c.txt",
        "--file a.txt b.txt c.txt -- Who?",
    ],
)
def test_several_files_may_follow_one_option(line):
    args = parse(["answer", *line.split()])
    assert args.question == "Who?"
    assert [name for names in args.file for name in names] == ["a.txt", "b.txt", "c.txt"]


def test_a_blank_file_among_several_is_passed_over(run, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text(TEXT)
    (tmp_path / "c.txt").write_text("\n")
    code, out, err = run(QUESTION, "--file", "a.txt", "b.txt", "c.txt", "--null-threshold", "inf")
    assert (code, err) == (0, "")
    assert out.endswith(" of b.txt\n")
    assert "none of its 2 texts holds a word" in fails(QUESTION, "--file", "a.txt", "c.txt")
    assert "a.txt: is empty" in fails(QUESTION, "--file", "a.txt")


def test_a_text_that_is_the_name_of_a_file_gets_a_hint(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text(TEXT)
    for text in ("notes", "-", "missing.txt", "./folder/play.md"):
        code, out, err = run(QUESTION, text, "--json")
        assert code == 0
        assert json.loads(out)["null_score"]  # it is the text all the same
        assert err == (
            f"minibert: {text!r} is the text that is searched; did you mean --file {text}?\n"
        )
    for text in (TEXT, "1843", "Ada.", "It was in notes.txt", "e.g.", "x" * 5000, "a\0b"):
        assert run(QUESTION, text, "--json")[2] == ""


@pytest.mark.parametrize("arguments", [[], ["translate"], ["convert"], ["convert", "a"]])
def test_a_missing_or_unknown_command_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: minibert")


def help_of(capsys, *command):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(" ".join(["usage: minibert", *command]))
    assert err == ""
    return out


@pytest.mark.parametrize("command", [command.__name__.split(".")[-1] for command in COMMANDS])
def test_help_ends_with_two_examples_that_are_understood(capsys, command):
    title, *examples = help_of(capsys, command).splitlines()[-3:]
    assert title == "examples:"
    for line in examples:
        words = shlex.split(line.partition(" > ")[0])
        assert words[:2] == ["minibert", command]
        assert parse(words[1:]).run


def test_examples_of_the_whole_are_understood(capsys):
    shown = help_of(capsys)
    examples = [line for line in shown.splitlines() if line.startswith("  minibert ")]
    assert len(examples) > 4
    for line in examples:
        assert parse(shlex.split(line.partition(" > ")[0])[1:]).run


def test_descriptions_are_filled_and_examples_are_not(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    head, _, tail = help_of(capsys, "evaluate").partition("examples:")
    assert max(map(len, head.splitlines())) <= 70
    assert max(map(len, tail.splitlines())) > 70


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


@NO_SUCH_TERMINAL
@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": ""}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
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
    assert ("\x1b[1;4;32m" in shown) == (not any(variables.values()))
    assert ("[" in shown.replace("\x1b[", "")) == any(variables.values())


# --- what steers a terminal ------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


STEERING = "\x1b[31m \x07 \x9b2J \x7f \r \x08 \u202e \u2066 \x00"
ESCAPED = r"\x1b[31m \x07 \x9b2J \x7f \r \x08 \u202e \u2066 \x00"


def steers(text):
    """Whether a text holds what steers a terminal, beside the marks of an answer."""
    text = text.replace("\x1b[1;4;32m", "").replace("\x1b[0m", "")
    return any(each in text for each in STEERING.replace("[31m", "").replace("2J", "").split(" "))


def test_a_terminal_gets_escapes_and_everything_else_the_text_as_it_is():
    text = f"a {STEERING} b\tc\r\nd\nΩμέγα שלום 東京 é\u200d"
    assert harmless(text, Terminal()) == text.replace(STEERING, ESCAPED)
    assert harmless(text, io.StringIO()) == harmless(text, None) == text


@pytest.mark.parametrize("options", [[], ["--json"], ["--top-k", "3"]])
def test_no_text_steers_the_terminal(monkeypatch, tmp_path, tiny_folder, options):
    path = tmp_path / "a\x1b[31m.txt"
    path.write_text(f"Ada {STEERING} Lee".replace("\r", "") + "\r wrote it.\r\n", newline="")
    argv = ["answer", "Who wrote it?", "--file", str(path), "--model", str(tiny_folder)]
    argv += ["--null-threshold", "inf", "--device", "reference", *options]
    shown = {}
    for kind in (io.StringIO, Terminal):
        monkeypatch.setattr(sys, "stdout", kind())
        assert main(argv) == 0
        shown[kind] = sys.stdout.getvalue()
    assert not steers(shown[Terminal])
    if "--json" in options:
        assert shown[Terminal] == shown[io.StringIO]
    else:
        assert "\x1b[31m" in shown[io.StringIO]
        assert r"\x1b[31m" in shown[Terminal]


NAMED = STEERING.replace("\0", "")  # as a file can be
TINY = ["--device", "reference"]
QUICKLY = ["--max-steps", "2", "--doc-stride", "8"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [
        ["explain", f"Who {STEERING}?", f"Ada {STEERING} wrote.", "--model", "M", "--output", "O"],
        ["explain", "Who?", "--file", "F", "--model", "M", "--output", "O", "--compare", "When?"],
        ["compare", "--data", "D", "M", "--limit", "2"],
        ["train", "--data", "D", "--model", "M", "--output-dir", "O", *QUICKLY],
        ["lessons", "O"],
    ],
    ids=lambda argv: argv[0],
)
def test_no_name_and_no_text_steers_the_terminal(monkeypatch, tmp_path, tiny_folder, argv):
    places = {letter: tmp_path / f"{letter}{NAMED}" for letter in "DFMO"}
    shutil.copyfile(EXAMPLE, places["D"])
    places["F"].write_text(f"Ada {STEERING} wrote it.", newline="")
    shutil.copytree(tiny_folder, places["M"])
    argv = [str(places.get(word, word)) for word in argv]
    argv += TINY if argv[0] != "lessons" else []
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal())
    assert main(argv) == 0
    said = sys.stdout.getvalue(), sys.stderr.getvalue().replace(CLEAR, "")
    assert any(r"\x1b[31m" in text or "\\u001b[31m" in text for text in said), said
    assert not any(map(steers, said)), said


@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "--data", f"./{STEERING}".replace("\0", "")],
        ["answer", "Who?", "--file", f"/nowhere/{STEERING}"],
        ["answer", "Who?", "a text", "--model", f"./{STEERING}"],
        ["answer", "Who?", "a text", f"--{STEERING}"],
        ["answer", "Who?", "a text", "--top-k", STEERING],
        ["answer", "Who?", "a text", "--device", STEERING],
        [STEERING],
        ["evaluate", "--data", f"./{STEERING}"],
        ["doctor", "--model", f"./{STEERING}"],
        ["explain", "Who?", "a text", "--output", f"/nowhere/{STEERING}"],
        ["explain", "Who?", "a text", "--output", os.devnull, "--lessons", f"./{STEERING}"],
        ["compare", "--data", f"./{STEERING}", "."],
        ["train", "--data", f"./{STEERING}", "--output-dir", "new"],
        ["train", "--data", "questions.json", "--output-dir", f"/dev/null/{STEERING}"],
        ["convert", f"./{STEERING}", "new"],
        ["convert", ".", f"/dev/null/{STEERING}"],
        ["lessons", f"/dev/null/{STEERING}"],
        ["lessons", "check", f"./{STEERING}"],
        ["lessons", "check", ".", "--only", STEERING],
    ],
)
def test_no_message_steers_the_terminal(monkeypatch, argv):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal())
    try:
        assert main(argv) == 1
    except SystemExit as end:
        assert end.code == 2
    assert sys.stderr.getvalue()
    assert not steers(sys.stderr.getvalue() + sys.stdout.getvalue())


@pytest.mark.parametrize("option", ["--model=--", "--device=--", "--top-k=--"])
def test_an_option_is_never_two_dashes(capsys, option):
    with pytest.raises(SystemExit) as end:
        main(["answer", "Who?", "a text", option])
    assert end.value.code == 2
    assert "error: argument" in capsys.readouterr().err


def test_without_a_command_all_of_them_are_listed(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert "answer a question from a text" in err


def test_help_loads_no_numpy():
    code = "import sys, minibert.cli; minibert.cli.build_parser(); print('numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


# --- progress --------------------------------------------------------------------------------


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
