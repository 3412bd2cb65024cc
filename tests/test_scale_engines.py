"""The recipes of minibert/scale/README.md, each as it stands there, on the engine itself.

Each runs in a process and a folder of its own, and is skipped where its engine is not installed.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minibert import QuestionAnswerer
from minibert.scale.offsets import offset_in

README = Path(__file__).resolve().parents[1] / "minibert" / "scale" / "README.md"
PATIENCE = 900  # seconds; only something that hangs takes so long
QUESTIONS = ("Who wrote the first program?", "When was the first program written?")

pytestmark = pytest.mark.slow


def recipe(heading, number=0):
    """A block of Python below a heading."""
    _, _, text = README.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    return re.findall(r"```py\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)[number]


def needs(*packages):
    """Skip where one of the packages is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def row(number):
    """A row of a table, with its number in the text, and every 200th without one."""
    text = f"Number {number} 🙂. Ada Lovelace wrote the first program in {1800 + number % 90}."
    return {
        "id": number,
        "question": QUESTIONS[number % 2],
        "context": None if number % 200 == 7 else text,
    }


def write_rows(path, numbers, group=100):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    text = pyarrow.string()
    schema = pyarrow.schema([("id", pyarrow.int64()), ("question", text), ("context", text)])
    table = pyarrow.Table.from_pylist([row(number) for number in numbers], schema)
    parquet.write_table(table, path, row_group_size=group)


@pytest.fixture(scope="module")
def expected():
    """The answer to a row: its text, start and end."""
    qa = QuestionAnswerer()
    known = {}

    def of(number):
        if number not in known:
            answer = qa.answer(row(number)["question"], row(number)["context"])
            known[number] = answer.text, answer.start, answer.end
        return known[number]

    return of


def check(paths, rows, expected):
    """Parquet files hold each row once, with its answer."""
    import pyarrow
    from pyarrow import parquet

    tables = [parquet.read_table(path) for path in paths]
    found = pyarrow.concat_tables(tables, promote_options="permissive").to_pylist()
    found.sort(key=lambda each: each["id"])
    assert [each["id"] for each in found] == list(range(rows))
    for number, each in enumerate(found):
        given = row(number)
        assert {name: each[name] for name in given} == given
        if given["context"] is None:
            assert each["answer_text"] is each["answer_start"] is each["answer_probability"] is None
            assert each["answer_error"] == "'context' is null"
        else:
            assert each["answer_error"] is None
            assert 0 < each["answer_probability"] <= 1
            assert (
                given["context"][each["answer_start"] : each["answer_end"]] == each["answer_text"]
            )
            if number % 50 == 0:
                place = each["answer_text"], each["answer_start"], each["answer_end"]
                assert place == expected(number)


def start(folder, code, *arguments, **variables):
    """Run a program in a folder."""
    (folder / "program.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "program.py", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = {
        **os.environ,
        "RAY_DEDUP_LOGS": "0",
        "PYSPARK_PYTHON": sys.executable,
        **variables,
    }
    return subprocess.Popen(command, cwd=folder, text=True, env=environment, **pipes)


def run(folder, code, *arguments, **variables):
    """Run a program to its end: what it printed."""
    process = start(folder, code, *arguments, **variables)
    try:
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, out
    return out


def files_in(folder):
    return sorted(path for path in folder.rglob("*.parquet") if path.is_file())


# --- one process -----------------------------------------------------------------------------


def test_pandas(tmp_path, expected):
    needs("pandas", "pyarrow")
    write_rows(tmp_path / "questions.parquet", range(300))
    run(tmp_path, recipe("pandas, polars, pyarrow"))
    check([tmp_path / "answers.parquet"], 300, expected)


def test_a_lazy_frame_of_polars(tmp_path, expected):
    needs("polars", "pyarrow")
    import polars

    from minibert import BatchAnswerer

    write_rows(tmp_path / "questions.parquet", range(300))
    frame, answerer = polars.scan_parquet(tmp_path / "questions.parquet"), BatchAnswerer()
    call = "frame.map_batches(answerer, schema=answerer(frame.limit(0).collect()).schema)"
    assert call in README.read_text(encoding="utf-8")
    answers = eval(call, {"frame": frame, "answerer": answerer})
    answers.collect().write_parquet(tmp_path / "answers.parquet")
    check([tmp_path / "answers.parquet"], 300, expected)


# --- several ---------------------------------------------------------------------------------


def test_datasets_in_two_processes(tmp_path, expected):
    needs("datasets")
    write_rows(tmp_path / "questions.parquet", range(400))
    run(tmp_path, recipe("Hugging Face datasets"), HF_DATASETS_CACHE=str(tmp_path / "cache"))
    check([tmp_path / "answers.parquet"], 400, expected)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask(tmp_path, expected, scheduler):
    needs("dask", "pyarrow", "pandas")
    write_rows(tmp_path / "questions.parquet", range(400))
    code = recipe("Dask").replace("BatchAnswerer()", "BatchAnswerer(num_threads=1)")
    lines = code.splitlines()
    body = "\n    ".join([f"dask.config.set(scheduler={scheduler!r})", *lines])
    run(tmp_path, f"if __name__ == '__main__':\n    import dask\n    {body}\n")
    check(files_in(tmp_path / "answers"), 400, expected)


SPARK = """
from pyspark.sql import SparkSession
SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").config(
    "spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1").config(
    "spark.sql.execution.arrow.maxRecordsPerBatch", "100").getOrCreate()
"""
# Spark's own characters, and Java's, at the places that minibert gives.
JVM = """
import json
rows = spark.read.parquet("answers").where("answer_text <> ''")
cut = "substring(context, answer_start + 1, answer_end - answer_start)"
print("cut otherwise:", rows.where(f"{cut} <> answer_text").count(), "of", rows.count())
for text, start, end in json.loads(open("places.json").read()):
    print("java:", spark._jvm.org.apache.commons.lang3.StringUtils.substring(text, start, end))
"""


@pytest.mark.parametrize("way", ["mapInArrow", "mapInPandas"])
def test_spark(tmp_path, expected, way):
    needs("pyspark", "pyarrow", "pandas")
    if shutil.which("java") is None:
        pytest.skip("Java is not installed")
    write_rows(tmp_path / "questions.parquet", range(400))
    text, start, end = row(0)["context"], *expected(0)[1:]
    places = f'[["{text}", {offset_in("utf-16", text, start)}, {offset_in("utf-16", text, end)}]]'
    (tmp_path / "places.json").write_text(places, encoding="utf-8")
    code = SPARK + recipe("Spark").replace("mapInArrow", way) + JVM
    out = run(tmp_path, code, SPARK_LOCAL_IP="127.0.0.1")
    check(files_in(tmp_path / "answers"), 400, expected)
    assert re.search("cut otherwise: 0 of 39[0-9]", out)
    assert f"java: {expected(0)[0]}\n" in out


@pytest.fixture
def ray_folder(tmp_path):
    """A folder for a program that starts Ray, whose own names must be short."""
    needs("ray", "pyarrow")
    return tmp_path


@pytest.mark.parametrize("form", ["pyarrow", "numpy", "pandas"])
def test_ray_data(ray_folder, expected, form):
    rows = 2000 if form == "pyarrow" else 400
    ray_of_four = "import ray\nray.init(num_cpus=4, include_dashboard=False)\n"
    write_rows(ray_folder / "questions.parquet", range(rows))
    code = recipe("Ray").replace('batch_format="pyarrow"', f'batch_format="{form}"')
    code = ray_of_four + code
    if form == "numpy":  # which has no null for an integer
        code = code.replace('fn_constructor_kwargs={"dtype": "float32"},', "")
        code += "\nstarts = ray.data.read_parquet('answers').take_all()\n"
        code += "print(sorted(x['answer_start'] for x in starts)[:3])\n"
        out = run(ray_folder, code)
        assert "[-1, -1, " in out
        return
    run(ray_folder, code)
    check(files_in(ray_folder / "answers"), rows, expected)


# A class for Ray's actors that notes who answers a batch, and kills one of them at its second.
KILLED = """
import contextlib, os, signal
from pathlib import Path

import ray
from minibert import BatchAnswerer
from minibert.scale.answerer import shared_answerer

NOTES = Path("notes").absolute()
NOTES.mkdir()


class Noting(BatchAnswerer):
    def __call__(self, batch):
        threads = shared_answerer(self.settings).model.kernels.num_threads
        note = NOTES / f"{os.getpid()}.{threads}.{os.environ['OMP_NUM_THREADS']}"
        if note.exists():
            with contextlib.suppress(FileExistsError):
                (NOTES / "killed").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        note.touch()
        return super().__call__(batch)


os.environ.pop("OMP_NUM_THREADS", None)  # which Ray would leave as it is
ray.init(num_cpus=4, include_dashboard=False)
"""


def test_an_actor_that_is_killed_between_batches_loses_no_row(ray_folder, expected):
    write_rows(ray_folder / "questions.parquet", range(2000))
    code = recipe("Ray").replace("    BatchAnswerer,", "    Noting,")
    assert "    Noting," in code
    run(ray_folder, KILLED + code)
    notes = {path.name for path in (ray_folder / "notes").iterdir()}
    assert "killed" in notes
    actors = [note.split(".") for note in notes - {"killed"}]
    assert len(actors) >= 2  # the killed one, and what came in its place
    assert all(threads == ["1", "1"] for _, *threads in actors)  # as num_cpus=1 has it
    check(files_in(ray_folder / "answers"), 2000, expected)


def draft_of(folder, process):
    """The first draft that an actor has begun in a folder: its path."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for path in folder.glob(".*.parquet.*") if folder.exists() else ():
            return path
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise TimeoutError(folder)


def test_an_actor_of_ray_that_is_killed_is_replaced_and_nothing_is_missing(ray_folder, expected):
    (ray_folder / "in").mkdir()
    for part in range(4):
        numbers = range(500 * part, 500 * (part + 1))
        write_rows(ray_folder / "in" / f"{part}.parquet", numbers)
    process = start(ray_folder, recipe("Ray", 1), "in", "out", 2)
    try:
        draft = draft_of(ray_folder / "out", process)
        os.kill(int(draft.name.rpartition(".")[2]), signal.SIGKILL)
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert "4 files are answered, 4 of them now" in out
    check(files_in(ray_folder / "out"), 2000, expected)


def test_a_run_on_ray_that_was_killed_goes_on_by_the_same_command(ray_folder, expected):
    (ray_folder / "in").mkdir()
    for part in range(4):
        write_rows(ray_folder / "in" / f"{part}.parquet", range(100 * part, 100 * (part + 1)))
    write_rows(ray_folder / "in" / "none.parquet", [])
    process = start(ray_folder, recipe("Ray", 1), "in", "out", 1)
    try:
        deadline = time.monotonic() + PATIENCE
        while not files_in(ray_folder / "out") and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    # Ray's workers end a moment after their driver, and may finish what they were at.
    done = {path.name: path.stat().st_mtime_ns for path in files_in(ray_folder / "out")}
    assert done
    out = run(ray_folder, recipe("Ray", 1), "in", "out", 2)
    assert re.search("5 files are answered, [0-4] of them now", out)
    for name, moment in done.items():
        assert (ray_folder / "out" / name).stat().st_mtime_ns == moment
    check(files_in(ray_folder / "out"), 400, expected)
    assert run(ray_folder, recipe("Ray", 1), "in", "out", 2).endswith("answered, 0 of them now\n")


# --- pipelines -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "package"),
    [
        ("Haystack", "haystack"),
        ("LangChain", "langchain_core"),
        ("LlamaIndex", "llama_index"),
        ("txtai", "txtai"),
    ],
)
def test_a_pipeline_finds_the_answer(tmp_path, heading, package):
    needs(package)
    assert "Ada Lovelace" in run(tmp_path, recipe(heading)).splitlines()[-1]
