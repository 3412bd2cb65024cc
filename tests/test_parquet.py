"""minibert answer --parquet: a table with its answers, whole, whatever happens on the way."""

import os
import signal
import subprocess
import sys

import pytest
from programs import lines_of, rows_of

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

import minibert.commands.parquet as command  # noqa: E402 (after the skip)
from minibert.scale.answerer import FIELDS  # noqa: E402

QUESTION = "who wrote it?"
TEXT = "ada lee wrote the old book in 1843. the ship was lost north of berlin. nobody came."
ROWS = [
    {"id": 7, "question": QUESTION, "context": TEXT, "note": {"é": [1]}},
    {"id": None, "question": "when?", "context": None, "note": None},
    {"id": 9, "question": "who was lost?", "context": "the ship was lost.", "note": {"é": []}},
    {"id": 3, "question": "", "context": TEXT, "note": None},
    {"id": 1, "question": "when?", "context": "1843", "note": {"é": None}},
]
GOOD = [row for row in ROWS if row["question"] and row["context"]]
ADDED = [f"answer_{name}" for name in FIELDS]


@pytest.fixture
def files(tmp_path):
    """Write a table: files(rows) -> the options that answer it."""

    def write(rows=ROWS, table=None, **options):
        table = pyarrow.Table.from_pylist(rows) if table is None else table
        parquet.write_table(table, tmp_path / "in", **options)
        return ["--parquet", str(tmp_path / "in"), "--output", str(tmp_path / "out")]

    return write


@pytest.fixture
def answers(run, tmp_path):
    """What --jsonl gives for rows: lists of the values of `FIELDS`."""

    def of(rows):
        rows = [{name: row[name] for name in ("question", "context")} for row in rows]
        found = rows_of(run("--jsonl", lines_of(tmp_path / "lines", rows))[1])
        rows = [row.get("answer", {}) | {"error": row.get("error")} for row in found]
        return [[row.get(name) for name in FIELDS] for row in rows]

    return of


def values(table):
    return [[row[name] for name in ADDED] for row in table.to_pylist()]


def test_a_table_gets_its_answers_and_keeps_all_else(run, files, answers, tmp_path):
    code, out, err = run(*files())
    assert (code, out) == (1, "")
    assert err == (
        f"minibert: error: {tmp_path / 'in'}: rows with an error instead of an answer: 2\n"
    )
    given, found = (parquet.read_table(tmp_path / name) for name in ("in", "out"))
    assert found.schema.names == [*given.schema.names, *ADDED]
    assert found.select(given.schema.names).equals(given, check_metadata=True)
    for row, other in zip(values(found), answers(ROWS), strict=True):
        if other[-1] is None:
            assert row == [
                v if isinstance(v, int | str) else pytest.approx(v, abs=1e-4) for v in other[:-1]
            ] + [None]
        else:
            assert row[:-1] == [None] * (len(FIELDS) - 1)
            assert row[-1] == other[-1].replace("lines, line", "in, row")
    assert [row["answer_error"] is None for row in found.to_pylist()] == [1, 0, 1, 0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "lines", "out"]


def test_columns_may_have_other_names(run, files, tmp_path):
    rows = [{"q": QUESTION, "passage": TEXT, "question": 1, "answer_text": "old"}]
    options = ["--question-column", "q", "--context-column", "passage", "--prefix", "new_"]
    assert run(*files(rows), *options) == (0, "", "")
    (row,) = parquet.read_table(tmp_path / "out").to_pylist()
    assert list(row) == [*rows[0], *(f"new_{name}" for name in FIELDS)]
    assert (row["new_error"], row["answer_text"]) == (None, "old")


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_texts_of_every_type_are_read(run, files, tmp_path, kind):
    if kind == "dictionary":
        text = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    elif hasattr(pyarrow, kind):
        text = getattr(pyarrow, kind)()
    else:
        pytest.skip(f"pyarrow {pyarrow.__version__} has no {kind}")
    columns = {"question": [QUESTION, None] * 3, "context": [TEXT] * 6}
    schema = pyarrow.schema([("question", text), ("context", text)])
    table = pyarrow.table(columns, schema=schema)
    assert run(*files(table=table))[0] == 1
    found = parquet.read_table(tmp_path / "out")
    assert found.column("answer_text").null_count == 3


@pytest.mark.parametrize("rows", [0, 1])
def test_a_table_of_few_rows_has_the_same_columns(run, files, tmp_path, rows):
    table = pyarrow.Table.from_pylist(GOOD)
    run(*files(table=table))
    schema = parquet.read_schema(tmp_path / "out")
    assert run(*files(table=table.slice(0, rows)))[0] == 0
    found = parquet.read_table(tmp_path / "out")
    assert (found.num_rows, found.schema) == (rows, schema)


def test_only_a_part_of_a_table_is_in_memory(run, files, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PART_ROWS", 30)
    monkeypatch.setattr(command, "GROUP_BYTES", 1000)
    table = pyarrow.Table.from_pylist([row | {"id": n} for n, row in enumerate(GOOD * 40)])
    for size in (7, 1000):  # row groups of the input, shorter and longer than what is read
        assert run(*files(table=table, row_group_size=size, compression="none"))[0] == 0
        found = parquet.ParquetFile(tmp_path / "out")
        assert found.read(["id"]).column("id").to_pylist() == list(range(120))
        sizes = [found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)]
        assert max(sizes) < 60
        assert len({row[0] for row in values(found.read())[::3]}) == 1


# --- runs that are interrupted ---------------------------------------------------------------


def test_an_interrupted_run_goes_on_where_it_was(run, files, tmp_path):
    rows = [{"question": QUESTION, "context": TEXT}] * 3
    bad = {"question": QUESTION, "context": None}
    table = pyarrow.Table.from_pylist([*rows, bad, *rows])
    code, out, err = run(*files(table=table), "--strict", "--batch-size", "1")
    assert (code, out) == (1, "")
    kept = tmp_path / "out.unfinished"
    assert err.startswith(f"minibert: error: {tmp_path / 'in'}, row 4: context must be a string")
    assert err.endswith(f"(what is finished is kept in {kept})\n")
    assert not (tmp_path / "out").exists()
    lines = kept.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    kept.write_bytes(b"".join(lines).replace(b'"text": "', b'"text": "before '))
    code, out, err = run(*files(table=table))
    assert (code, err.splitlines()[0]) == (1, "rows answered before: 3")
    texts = parquet.read_table(tmp_path / "out").column("answer_text").to_pylist()
    assert texts == [f"before {texts[4]}"] * 3 + [None] + [texts[4]] * 3
    assert not kept.exists()


# What is done to a run before it begins: it kills itself where it has read so many rows, or has
# begun to write the table.
KILLED = {
    "reading": """
whole = command.read_rows
def some(*args):
    for number, row in whole(*args):
        if number == 301:
            os.kill(os.getpid(), signal.SIGKILL)
        yield number, row
command.read_rows = some
""",
    "writing": """
whole = command.table_of
def some(part):
    if part.num_rows and part.column("id")[0].as_py() > 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(part)
command.table_of = some
""",
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("moment", KILLED)
def test_a_run_that_was_killed_goes_on_by_the_same_command(
    run, files, tiny_folder, tmp_path, moment
):
    rows = [GOOD[0] | {"id": n, "context": f"{TEXT} {n % 7}"} for n in range(600)]
    options = files(rows)
    assert run(*options)[0] == 0
    out = tmp_path / "out"
    expected = parquet.read_table(out)
    out.write_text("of an earlier run")
    code = f"""
import os, signal, sys
from minibert.cli import main
import minibert.commands.parquet as command
{KILLED[moment]}
main(sys.argv[1:])
"""
    model = ["--model", str(tiny_folder), "--device", "reference"]
    command = [sys.executable, "-c", code, "answer", *options, *model, "--batch-size", "1"]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert out.read_text() == "of an earlier run"
    done = (tmp_path / "out.unfinished").read_bytes().count(b"\n") - 1
    assert done == 600 if moment == "writing" else 200 < done <= 300
    again = run(*options)
    assert again == (0, "", f"rows answered before: {done}\n")
    found = parquet.read_table(out)
    assert found.select(["id", "answer_text"]).equals(expected.select(["id", "answer_text"]))
    assert found.column("answer_error").null_count == found.num_rows == 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_run_over_another_table_is_not_gone_on_with(run, fails, files, tmp_path):
    table = pyarrow.Table.from_pylist([GOOD[0], ROWS[1], GOOD[1]])
    assert run(*files(table=table), "--strict", "--batch-size", "1")[0] == 1
    changed = files([GOOD[1], *GOOD])
    assert "an unfinished run over a file with another row 1. " in fails(*changed)
    assert run(*changed, "--overwrite") == (0, "", "")
    assert parquet.read_metadata(tmp_path / "out").num_rows == 4


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "a"}], "in has no column 'context'; its columns are question"),
        ([{"question": 1, "context": "a"}], "column 'question' must hold texts, its type is int64"),
        ([{"question": "a", "context": ["a"]}], "'context' must hold texts, its type is list<"),
        ([{"question": "a", "context": b"a"}], "'context' must hold texts, its type is binary"),
        ([{"question": "a", "context": None}], "'context' must hold texts, its type is null"),
        ([GOOD[0] | {"answer_end": 1}], "in has a column 'answer_end' already; drop it, or choose"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_before_a_model_is_loaded(
    fails, files, tmp_path, rows, words
):
    assert words in fails(*files(rows), "--model", str(tmp_path / "none"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("damage", ["no table", "empty", "head", "end", "page", "missing"])
def test_a_damaged_table_is_refused_and_nothing_is_written(fails, files, tmp_path, damage):
    rows = [{"question": f"who wrote {n}?", "context": f"{TEXT} {n}"} for n in range(300)]
    options = files(rows, compression="none", use_dictionary=False)
    path = tmp_path / "in"
    content = path.read_bytes()
    middle = content.index(b"who wrote 7?")
    path.write_bytes(
        {
            "no table": b"hello " * 100,
            "empty": b"",
            "head": content[: len(content) // 2],
            "end": content[:-3],
            "page": content[: middle - 60] + b"\xff" * 100 + content[middle + 40 :],
            "missing": content,
        }[damage]
    )
    if damage == "missing":
        path.unlink()
    message = fails(*options)
    assert message.startswith(f"minibert: error: {path}: cannot be read: ")
    assert not (tmp_path / "out").exists()


def test_input_and_output_must_be_two_files(fails, files):
    options = files(GOOD)
    assert "is an input too" in fails(*options[:2], "--output", options[1])


def test_the_command_line_says_what_parquet_goes_with(run, files, tmp_path):
    options = files(GOOD)
    for arguments, words in (
        (options[:2], "--parquet needs --output"),
        ([*options, "--top-k", "2"], "--parquet gives one answer a row"),
        ([QUESTION, *options], "with --parquet the questions come from the file"),
        ([*options, "--jsonl", "x"], "give the text once"),
    ):
        code, _, err = run(*arguments)
        assert code == 2
        assert words in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_or_an_address_is_no_table(fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    assert "it is a pipe" in fails("--parquet", "pipe", "--output", "out")
    assert "s3://bucket/in" in fails("--parquet", "s3://bucket/in", "--output", "out")


def test_a_text_that_is_no_utf_8_is_named_as_what_cannot_be_read(run, files, tmp_path):
    bad = pyarrow.array([TEXT.encode(), b"ada \xff"]).view(pyarrow.string())
    table = pyarrow.table({"question": [QUESTION] * 2, "context": bad})
    code, out, err = run(*files(table=table))
    assert (code, out) == (1, "")
    assert err.startswith(f"minibert: error: {tmp_path / 'in'}: cannot be read: 'utf-8' codec")
    assert not (tmp_path / "out").exists()
