"""BatchAnswerer: the same answers for every kind of table, wherever it runs.

Engines have test_scale_engines.py.  A kind of table whose program is not installed is skipped.
"""

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections import UserDict

import numpy as np
import pytest

import minibert.scale.answerer as answerer_module
from minibert import BackendError, BatchAnswerer, InputError, ModelNotFoundError, QuestionAnswerer
from minibert.scale.answerer import FIELDS, MOST_MODELS, shared_answerer
from minibert.scale.offsets import offset_in
from minibert.scale.tables import table_of

QUESTION = "who wrote it?"
TEXT = "ada lee wrote the old book in 1843. the ship was lost north of berlin. nobody came."
NO_NULL = {"null_score_diff_threshold": float("inf")}
# Rows that can be answered, and in between those that cannot: what their errors say.
ROWS = [
    (QUESTION, TEXT, None),
    (None, TEXT, "'question' is null"),
    ("who was lost?", "the ship was lost.", None),
    (QUESTION, None, "'context' is null"),
    ("", TEXT, "'question' is empty"),
    (QUESTION, "", "'context' is empty"),
    ("a " * 99, TEXT, "99 tokens"),
    ("when?", "1843", None),
]
NAMES = [f"answer_{name}" for name in FIELDS]


def columns(rows=ROWS):
    return {
        "id": list(range(len(rows))),
        "question": [row[0] for row in rows],
        "context": [row[1] for row in rows],
    }


@pytest.fixture
def answerer(tiny_folder):
    return BatchAnswerer(tiny_folder, device="reference", **NO_NULL)


@pytest.fixture
def expected(tiny_folder):
    """The rows of `ROWS` with their answers: each a dict of `NAMES`."""
    qa = QuestionAnswerer(tiny_folder, device="reference", **NO_NULL)
    rows = []
    for question, text, error in ROWS:
        answer = None if error else qa.answer(question, text)
        row = {f"answer_{n}": getattr(answer, n, None) for n in FIELDS}
        rows.append(row | {"answer_error": error})
    return rows


def check(found, expected):
    """Rows of a table against the rows that are expected; numbers vary with the batch, a little."""
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        for name in NAMES:
            if name == "answer_error" and other[name]:
                assert other[name] in row[name]
            elif isinstance(other[name], float):
                assert row[name] == pytest.approx(other[name], abs=1e-4)
            else:
                assert row[name] == other[name], name


def rows_of(columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# --- kinds of tables -------------------------------------------------------------------------


def test_a_dict_of_lists_gets_lists(answerer, expected):
    given = columns()
    found = answerer(given)
    assert list(found) == [*given, *NAMES]
    assert list(given) == ["id", "question", "context"]
    assert all(type(values) is list for values in found.values())
    check(rows_of(found), expected)


def test_other_mappings_and_sequences_do_as_well(answerer, expected):
    given = UserDict({name: tuple(values) for name, values in columns().items()})
    found = answerer(given)
    assert type(found) is UserDict
    check(rows_of(found.data), expected)


def test_a_dict_of_arrays_gets_arrays_of_one_dtype_in_every_batch(answerer, expected):
    given = {name: np.array(values, object) for name, values in columns().items()}
    found = answerer(given)
    dtypes = {name: found[name].dtype for name in NAMES}
    assert [str(dtype) for dtype in dtypes.values()] == [
        *("object", "int64", "int64", "float64", "float64", "float64", "object")
    ]
    for row, other in zip(rows_of(found), expected, strict=True):
        if other["answer_text"] is None:
            assert (row["answer_start"], row["answer_end"]) == (-1, -1)
            assert np.isnan(row["answer_score"])
        else:
            check([row], [other])
    for part in (slice(0, 1), slice(1, 2), slice(0, 0)):
        batch = answerer({name: values[part] for name, values in given.items()})
        assert {name: batch[name].dtype for name in NAMES} == dtypes


def test_pandas(answerer, expected):
    pandas = pytest.importorskip("pandas")
    given = pandas.DataFrame(columns(), index=range(100, 100 + len(ROWS)))
    found = answerer(given)
    assert type(found) is pandas.DataFrame
    assert list(given) == ["id", "question", "context"]
    assert list(found.index) == list(given.index)
    kept = found[["id", "question", "context"]]
    pandas.testing.assert_frame_equal(kept, given)
    plain = found[NAMES].astype(object)
    check(plain.where(plain.notna(), None).to_dict("records"), expected)
    for part in (slice(0, 1), slice(1, 2), slice(0, 0)):
        assert answerer(given[part]).dtypes[NAMES].equals(found.dtypes[NAMES])


@pytest.mark.parametrize("dtype", ["object", "string", "category"])
def test_pandas_has_many_ways_to_hold_texts_and_nulls(answerer, expected, dtype):
    pandas = pytest.importorskip("pandas")
    given = pandas.DataFrame(columns()).astype({"question": dtype, "context": dtype})
    given = pandas.concat([given, given.iloc[1:2]])  # with an index that is not unique
    found = answerer(given)
    assert found["answer_error"].iloc[1] == "'question' is null"
    assert found["answer_text"].iloc[0] == expected[0]["answer_text"]
    assert len(found) == len(expected) + 1


@pytest.mark.parametrize("kind", ["Table", "RecordBatch"])
def test_pyarrow(answerer, expected, kind):
    pyarrow = pytest.importorskip("pyarrow")
    of_kind = getattr(pyarrow, kind)
    given = of_kind.from_pydict(columns()).replace_schema_metadata({"made": "by hand"})
    found = answerer(given)
    assert type(found) is of_kind
    assert found.schema.names == ["id", "question", "context", *NAMES]
    assert found.schema.metadata == {b"made": b"by hand"}
    found.validate(full=True)
    check(found.to_pylist(), expected)
    for part in (given.slice(0, 1), given.slice(1, 1), given.slice(0, 0)):
        assert answerer(part).schema == found.schema


def test_a_text_of_pyarrow_that_is_no_utf_8_is_refused(answerer):
    pyarrow = pytest.importorskip("pyarrow")
    bad = pyarrow.array([b"ada \xff"]).view(pyarrow.string())
    with pytest.raises(InputError, match="column 'context' holds a text that is no UTF-8"):
        answerer(pyarrow.table({"question": [QUESTION], "context": bad}))


def test_pyarrow_with_dictionaries_and_several_chunks(answerer, expected):
    pyarrow = pytest.importorskip("pyarrow")
    part = pyarrow.table(columns())
    large = part["question"].cast(pyarrow.large_string())
    part = part.set_column(part.schema.get_field_index("question"), "question", large)
    place = part.schema.get_field_index("context")
    part = part.set_column(place, "context", part["context"].dictionary_encode())
    given = pyarrow.concat_tables([part, part])
    check(answerer(given).to_pylist(), expected * 2)


def test_polars(answerer, expected):
    polars = pytest.importorskip("polars")
    given = polars.DataFrame(columns())
    found = answerer(given)
    assert type(found) is polars.DataFrame
    check(found.to_dicts(), expected)
    assert given.columns == ["id", "question", "context"]
    for part in (given[:1], given[1:2], given[:0]):
        assert answerer(part).schema == found.schema
    lazy = given.lazy().map_batches(answerer, schema=found.schema)
    check(lazy.collect().to_dicts(), expected)
    with pytest.raises(InputError, match="LazyFrame. Of an engine's own table, give its map_batch"):
        answerer(given.lazy())


def test_a_no_answer_is_an_answer(tiny_folder):
    answerer = BatchAnswerer(
        tiny_folder, device="reference", null_score_diff_threshold=float("-inf")
    )
    found = answerer(columns(ROWS[:1]))
    assert [found[name] for name in NAMES[:3]] == [[""], [0], [0]]
    assert found["answer_score"] == found["answer_null_score"]
    assert found["answer_error"] == [None]


def test_a_whole_batch_shares_packed_batches(answerer, monkeypatch):
    sizes = []
    model = shared_answerer(answerer.settings).model
    begin = type(model).begin

    def counting(self, windows):
        sizes.append(len(windows))
        return begin(self, windows)

    monkeypatch.setattr(type(model), "begin", counting)
    answerer({"question": [QUESTION] * 50, "context": [TEXT] * 50})
    assert sizes == [50]


# --- what is refused -------------------------------------------------------------------------

BAD_BATCHES = [
    ({"question": [QUESTION]}, "the batch has no column 'context'; its columns are question"),
    ({}, "the batch has no column 'question'; its columns are none"),
    ({"question": [QUESTION], "context": []}, "1 values of 'question', 0 of 'context'"),
    ({"question": QUESTION, "context": TEXT}, "this is a row, not a batch of rows"),
    (columns() | {"answer_end": []}, "the batch has a column 'answer_end' already"),
    ([(QUESTION, TEXT)], "got builtins.list"),
    (None, "got builtins.NoneType"),
]


@pytest.mark.parametrize(("batch", "words"), BAD_BATCHES)
def test_what_is_no_batch_of_questions_is_refused(answerer, batch, words):
    with pytest.raises(InputError, match="batch|columns") as caught:
        answerer(batch)
    assert words in str(caught.value)


def test_a_name_that_two_columns_have_is_refused(answerer):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table([[QUESTION], [TEXT], [TEXT]], names=["question", "context", "context"])
    with pytest.raises(InputError, match="has 2 columns 'context'"):
        answerer(table)


@pytest.mark.parametrize("value", [3, 2.5, b"ada", [TEXT], {"a": 1}, np.array([1, 2]), True])
def test_values_that_are_no_texts_become_errors(answerer, expected, value):
    found = answerer({"question": [QUESTION, QUESTION], "context": [value, TEXT]})
    kind = type(value).__name__
    assert f"'context' must hold texts, got {kind}: " in found["answer_error"][0]
    assert found["answer_text"] == [None, expected[0]["answer_text"]]


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_with_raise_the_first_bad_row_is_named(tiny_folder, row):
    answerer = BatchAnswerer(tiny_folder, device="reference", on_error="raise")
    rows = [ROWS[0], ROWS[2], ROWS[row]]
    if error := ROWS[row][2]:
        with pytest.raises(InputError, match="row 2 of the batch, counted from 0: ") as caught:
            answerer(columns(rows))
        assert error in str(caught.value)
    else:
        assert len(answerer(columns(rows))["answer_text"]) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"on_error": "ignore"}, "on_error must be 'null' or 'raise', got 'ignore'"),
        ({"question": 3}, "question must be the name of a column, got 3"),
        ({"prefix": "\udcff"}, "prefix must be UTF-8, got '\\udcff'"),
        ({"num_threads": 0}, "num_threads must be a whole number of at least 1"),
        ({"top_k": 2}, "unknown option top_k; the options are align_to_words"),
        ({"max_answer_length": 0}, "max_answer_length must be"),
        ({"model": 3}, "model must be a folder, a file or a name"),
        ({"tokenizer": object()}, "tokenizer must be a folder, a file or a name"),
        ({"token": []}, "token cannot be []"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; choose one of float32, "),
        ({"dtype": []}, "unknown dtype []"),
        ({"device": "tpu"}, "unknown device 'tpu'; choose one of auto, "),
        ({"device": "reference", "num_threads": 2}, "device 'reference' takes no num_threads"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent_to_a_worker(arguments, words):
    with pytest.raises((InputError, BackendError)) as caught:
        BatchAnswerer(**arguments)
    assert words in str(caught.value)


def test_a_loaded_model_is_refused_since_each_process_loads_its_own(tiny):
    with pytest.raises(InputError, match="which each process loads for itself, got Model"):
        BatchAnswerer(tiny)


def test_a_model_that_is_not_there_is_an_error_of_the_first_batch(tmp_path):
    answerer = BatchAnswerer(tmp_path)
    with pytest.raises(ModelNotFoundError):
        answerer(columns())


# --- processes and threads -------------------------------------------------------------------


def test_it_pickles_as_settings(answerer, expected):
    answerer(columns())
    content = pickle.dumps(answerer)
    assert len(content) < 1000
    check(rows_of(pickle.loads(content)(columns())), expected)


def test_a_relative_folder_is_found_from_anywhere(tiny_folder, tmp_path, monkeypatch, expected):
    monkeypatch.chdir(tiny_folder.parent)
    answerer = BatchAnswerer(tiny_folder.name, device="reference", **NO_NULL)
    monkeypatch.chdir(tmp_path)
    check(rows_of(answerer(columns())), expected)


def test_a_token_is_not_shown():
    assert "secret" not in repr(BatchAnswerer(token="secret"))


def test_answerers_with_the_same_settings_share_a_model(tiny_folder):
    first, second = (BatchAnswerer(tiny_folder, device="reference") for _ in range(2))
    other = BatchAnswerer(tiny_folder, device="reference", max_answer_length=3)
    assert shared_answerer(first.settings) is shared_answerer(second.settings)
    assert shared_answerer(first.settings) is not shared_answerer(other.settings)


def test_a_process_keeps_only_some_models(tiny_folder):
    for length in range(1, MOST_MODELS + 3):
        answerer = BatchAnswerer(tiny_folder, device="reference", max_answer_length=length)
        shared_answerer(answerer.settings)
    assert len(answerer_module._ANSWERERS.loaded) == MOST_MODELS
    assert answerer.settings in answerer_module._ANSWERERS.loaded


def test_many_threads_load_one_model_and_get_their_own_answers(tiny_folder, expected, monkeypatch):
    made = []
    whole = QuestionAnswerer.__init__

    def counting(self, *args, **options):
        made.append(1)
        whole(self, *args, **options)

    # Settings of which no other test has left a model.
    answerer = BatchAnswerer(tiny_folder, device="reference", max_question_length=40, **NO_NULL)
    monkeypatch.setattr(QuestionAnswerer, "__init__", counting)
    answerable = [n for n, row in enumerate(ROWS) if row[2] is None]
    found = {}

    def work(thread):
        found[thread] = rows_of(answerer(columns()))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 1
    assert len(found) == 8
    for rows in found.values():
        check([rows[n] for n in answerable], [expected[n] for n in answerable])


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("device", ["reference", pytest.param("cpu", marks=pytest.mark.slow)])
def test_it_works_in_processes_of_every_kind(tiny_folder, expected, method, loaded, device):
    answerer = BatchAnswerer(tiny_folder, device=device, **NO_NULL)
    if loaded:
        answerer(columns())
    with multiprocessing.get_context(method).Pool(2) as pool:
        for found in pool.map_async(answerer, [columns()] * 4).get(120):
            check(rows_of(found), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_while_a_thread_loads_leaves_a_child_that_can_load(tiny_folder):
    code = f"""
import os, signal, threading
from minibert.scale import answerer as module
answerer = module.BatchAnswerer({str(tiny_folder)!r}, device="reference")
another = module.BatchAnswerer({str(tiny_folder)!r}, device="reference", max_answer_length=3)
batch = {{"question": ["who?"], "context": ["ada lee wrote it."]}}
begun, whole = threading.Event(), module.QuestionAnswerer.__init__
def slowly(self, *args, **options):
    begun.set()
    whole(self, *args, **options)
module.QuestionAnswerer.__init__ = slowly
thread = threading.Thread(target=answerer, args=(batch,))
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends a child that waits without end
    other = threading.Thread(target=another, args=(batch,))
    other.start()
    other.join()
    os._exit(7)
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_workers_use_as_many_threads_as_they_are_told(tiny_folder):
    code = f"""
from minibert import BatchAnswerer
from minibert.scale.answerer import shared_answerer
for threads in (None, 1):
    answerer = BatchAnswerer({str(tiny_folder)!r}, num_threads=threads)
    print(shared_answerer(answerer.settings).model.kernels.num_threads)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout == "1\n1\n"


def test_no_engine_is_imported():
    code = (
        "import sys; from minibert import BatchAnswerer; BatchAnswerer(); "
        "import minibert.scale.tables, minibert.scale.offsets; "
        "print([m for m in sys.modules if m in ('pandas', 'pyarrow', 'polars', 'ray', 'dask', "
        "'datasets', 'pyspark', 'haystack')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"


# --- offsets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "ada", "é ä", "🙂 ada 🙂🙂 lee", "𝔘x", "a\u0301"])
def test_places_in_other_encodings_cut_the_same_words(text):
    units = {"utf-16": text.encode("utf-16-le"), "utf-8": text.encode()}
    for encoding, size in (("utf-16", 2), ("utf-8", 1)):
        places = [offset_in(encoding, text, n) for n in range(len(text) + 1)]
        for start in range(len(text) + 1):
            for end in range(start, len(text) + 1):
                part = units[encoding][places[start] * size : places[end] * size]
                name = "utf-16-le" if encoding == "utf-16" else encoding
                assert part.decode(name) == text[start:end]


@pytest.mark.parametrize("offset", [-1, 4])
def test_a_place_outside_of_the_text_is_refused(offset):
    with pytest.raises(InputError, match="offset must be from 0 to 3"):
        offset_in("utf-16", "ada", offset)
    with pytest.raises(InputError, match="encoding must be one of utf-16, utf-8, got 'latin1'"):
        offset_in("latin1", "ada", 0)


def test_the_columns_that_are_added_are_told_in_sparks_words(answerer):
    assert answerer.spark_columns == (
        "`answer_text` string, `answer_start` bigint, `answer_end` bigint, "
        "`answer_score` double, `answer_probability` double, `answer_null_score` double, "
        "`answer_error` string"
    )
    assert table_of(columns()).names == ["id", "question", "context"]
