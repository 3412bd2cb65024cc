"""minibert explain: its options, its errors, and the file that it leaves."""

import re
import shutil
import webbrowser

import pytest
from learners import solve, with_body

from minibert.cli import main
from minibert.lessons.folder import write_lessons

QUESTION = "who wrote it?"
TEXT = "ada lee wrote the old book in 1843. the ship was lost north of berlin. nobody came."


@pytest.fixture
def page(tmp_path):
    """Where the page is written."""
    return tmp_path / "page.html"


@pytest.fixture
def explain(tiny_folder, page, capsys):
    """Run the command with the tiny model: (exit code, stderr); it prints nothing else."""

    def explain(*arguments, model=tiny_folder, output=page):
        options = ["--model", model, "--device", "reference", "--output", output]
        try:
            code = main(["explain", *map(str, arguments), *map(str, options)])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    return explain


def titles(page):
    """The names of the texts that the ribbon of windows tells."""
    return re.findall(r" Text \d+: ([^.]*\.\w+)\.", page.read_text(encoding="utf-8"))


def test_it_opens_the_page_when_it_is_written(explain, page, monkeypatch):
    opened = []

    def browse(address):
        opened.append((address, page.exists()))
        return True

    monkeypatch.setattr(webbrowser, "open", browse)
    assert explain(QUESTION, TEXT)[0] == 0
    assert opened == []
    assert explain(QUESTION, TEXT, "--open")[0] == 0
    assert opened == [(page.resolve().as_uri(), True)]


def test_without_a_browser_the_page_is_there_and_that_is_said(explain, page, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    code, err = explain(QUESTION, TEXT, "--open")
    assert code == 1
    assert err.endswith(f"{page}: is written, but no browser could be opened here\n")
    assert "</html>" in page.read_text(encoding="utf-8")


def test_several_files_are_searched_together_and_named(explain, page, tmp_path):
    names = ["first.txt", "second.txt", "third.txt"]
    for name in names:
        (tmp_path / name).write_text(f"{TEXT} {name}", encoding="utf-8")
    first, *others = (tmp_path / name for name in names)
    assert explain(QUESTION, "--file", first, "--file", *others)[0] == 0
    assert [name.rpartition("/")[2] for name in titles(page)] == names


def test_a_file_that_is_read_is_never_written(explain, page):
    page.write_text(TEXT, encoding="utf-8")
    code, err = explain(QUESTION, "--file", page)
    assert code == 1
    assert str(page) in err
    assert page.read_text(encoding="utf-8") == TEXT


def test_a_page_that_is_there_is_replaced_but_only_by_a_whole_one(explain, page):
    page.write_text("older", encoding="utf-8")
    assert explain("", TEXT)[0] == 1
    assert page.read_text(encoding="utf-8") == "older"
    assert explain(QUESTION, TEXT)[0] == 0
    assert page.read_text(encoding="utf-8").endswith("</html>\n")


def test_it_shows_the_window_that_is_asked_for(explain, page):
    assert explain(QUESTION, TEXT, "--max-seq-length", 30, "--window", 1)[0] == 0
    assert "All that follows is about window 1;" in page.read_text(encoding="utf-8")


def test_it_runs_a_learners_functions_and_says_what_departs(explain, page, tmp_path):
    folder = tmp_path / "mine"
    write_lessons(folder)
    solve(folder, "softmax")
    code, err = explain(QUESTION, TEXT, "--lessons", folder)
    assert (code, "departs" in err) == (0, False)
    assert "Every step gives what the definition gives." in page.read_text(encoding="utf-8")
    with_body(folder, "softmax", "    return scores / scores.sum(axis=-1, keepdims=True)")
    code, err = explain(QUESTION, TEXT, "--lessons", folder)
    assert code == 0
    assert "the first step that departs is attention's probabilities" in err
    assert "The first step that departs is" in page.read_text(encoding="utf-8")


def test_thorough_says_how_long_it_takes_and_adds_its_part(explain, page):
    code, err = explain(QUESTION, TEXT, "--thorough")
    assert code == 0
    assert re.search(r"the thorough part takes \d+ s at most", err)
    assert "by each method" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("other", "kind", "shown"),
    [
        ("when was it lost?", "question", "The other: when was it lost?"),
        ("bob lee wrote it.", "text", "Text: bob lee wrote it."),
    ],
)
def test_it_compares_with_another_question_or_text(other, kind, shown, explain, page):
    code, err = explain(QUESTION, TEXT, "--compare", other)
    assert code == 0
    assert f"compared with another {kind}\n" in err
    assert shown in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("question", ["\u200b", "  "], ids=["zero width", "spaces"])
def test_a_question_without_tokens_has_a_page(question, explain, page):
    assert explain(question, TEXT)[0] == 0
    assert "The question has 0 tokens here" in page.read_text(encoding="utf-8")


def test_a_text_without_tokens_has_a_page(explain, page):
    assert explain(QUESTION, "\u200b")[0] == 0
    assert "No span of this window is allowed" in page.read_text(encoding="utf-8")


def test_a_word_as_long_as_a_book_is_cut(explain, page):
    assert explain(QUESTION, f"{'x' * 100_000} ada", "--null-threshold=-1e9")[0] == 0  # no answer
    # Once whole, for the script to decide with.
    assert page.read_text(encoding="utf-8").count("x" * 1000) == 100


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("", TEXT), 1, "question cannot be empty"),
        ((QUESTION, ""), 1, "context cannot be empty"),
        ((QUESTION, TEXT, "--window", 7), 1, "window 7: there are 1, counted from 0"),
        ((QUESTION, TEXT, "--window", -1), 2, "must be at least 0, got -1"),
        ((QUESTION, TEXT, "--compare", " "), 2, "--compare is empty"),
        ((QUESTION, TEXT, "--file", "a.txt"), 2, "give the text once"),
        ((QUESTION, TEXT, "--lessons", "nowhere"), 1, "'nowhere': holds no lessons"),
        ((QUESTION, TEXT, "--max-seq-length", 5), 1, "leaves no room for the text"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_no_page(arguments, code, words, explain, page):
    done, err = explain(*arguments)
    assert done == code
    assert words in err.splitlines()[-1]
    assert err.startswith("minibert: error: " if code == 1 else "usage: ")
    assert err.count("\n") == 1 or code == 2
    assert not page.exists()


def test_a_model_of_another_kind_is_said_to_be_one(explain, page, tiny_folder, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(tiny_folder, folder)
    config = folder / "config.json"
    config.write_text(config.read_text("utf-8").replace('"bert"', '"gpt2"'), encoding="utf-8")
    code, err = explain(QUESTION, TEXT, model=folder)
    assert (code, err.count("\n")) == (1, 1)
    assert "gpt2" in err
    assert not page.exists()
