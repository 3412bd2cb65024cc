"""SQuAD files are read in every form, and every problem of a file is named with its place."""

import gzip
import json
import lzma

import pytest
from squad_files import EXAMPLE, SQUAD, squad_file

from minibert.errors import InputError
from minibert.squad.files import Gold, read_squad
from minibert.squad.predictions import has_null_odds, read_nbest, read_null_odds, read_predictions


def refused(path, read=read_squad):
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


def write(tmp_path, document):
    path = tmp_path / "data.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_questions_come_in_the_order_of_the_file_with_everything_that_belongs_to_them():
    data = read_squad(EXAMPLE)
    assert data.name == "squad_example.json"
    assert [question.id for question in data.questions] == [f"example-{n:02}" for n in range(1, 15)]
    first = data.questions[0]
    assert first.question == "Who built the harbour of Kvalnes?"
    assert first.answers == (Gold("Ingrid Sætre", 57), Gold("the engineer Ingrid Sætre", 44))
    assert (first.article, first.title) == (0, "Harbour of Kvalnes")
    assert first.answerable
    assert not data.questions[3].answerable
    assert data.questions[-1].article == 2


def test_gold_answers_stand_where_the_file_says():
    for question in read_squad(EXAMPLE).questions:
        for gold in question.answers:
            assert question.context[gold.start : gold.start + len(gold.text)] == gold.text


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_compressed_files_are_the_same_whatever_their_name(tmp_path, pack):
    path = tmp_path / "data"
    path.write_bytes(pack(EXAMPLE.read_bytes()))
    plain, packed = read_squad(EXAMPLE), read_squad(path)
    assert packed.questions == plain.questions
    assert packed.digest == plain.digest
    path.write_bytes(pack(EXAMPLE.read_bytes())[:-20])
    assert "compressed data are damaged" in refused(path)


def test_damaged_bytes_within_compressed_data_are_refused(tmp_path):
    packed = bytearray(gzip.compress(EXAMPLE.read_bytes()))
    for place in range(30, 60):
        packed[place] ^= 0xFF
    (tmp_path / "data.gz").write_bytes(packed)
    assert "compressed data are damaged" in refused(tmp_path / "data.gz")


@pytest.mark.parametrize("path", [None, 5, b"x", ["x"]])
def test_what_is_no_file_name_is_refused(path):
    with pytest.raises(InputError, match="a file's name is a text"):
        read_squad(path)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("question", "qas[0].question holds half of a surrogate pair, character 1"),
        ("context", "paragraphs[0].context holds half of a surrogate pair"),
        ("id", "qas[0].id holds half of a surrogate pair"),
    ],
)
def test_half_a_surrogate_pair_is_found_before_anything_runs(tmp_path, place, expected):
    path = squad_file(tmp_path / "data.json", [("Who?", "Ann.", ["Ann"])])
    text = path.read_text().replace(f'"{place}": "', f'"{place}": "a\\ud800', 1)
    assert expected in refused(write(tmp_path, text))


@pytest.mark.parametrize(("value", "expected"), [(True, "found bool"), ("", "the id is empty")])
def test_ids_must_tell_questions_apart(tmp_path, value, expected):
    path = squad_file(tmp_path / "data.json", [("Who?", "Ann.", ["Ann"])], ids=[value])
    assert expected in refused(path)


def test_ids_that_are_numbers_become_texts(tmp_path):
    path = squad_file(tmp_path / "data.json", [("Who?", "Ann.", ["Ann"])], ids=[7])
    assert read_squad(path).questions[0].id == "7"


def test_impossible_questions_may_leave_their_answers_out(tmp_path):
    path = squad_file(tmp_path / "data.json", [("Who?", "Ann.", [])])
    document = json.loads(path.read_text())
    del document["data"][0]["paragraphs"][0]["qas"][0]["answers"]
    document["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = True
    data = read_squad(write(tmp_path, document))
    assert not data.questions[0].answerable
    assert data.labelled
    assert data.with_null


@pytest.mark.parametrize(
    "answers",
    [None, [], [""], ["Ann"], "nonsense"],
    ids=["null", "none", "empty", "plausible", "nonsense"],
)
def test_an_impossible_question_has_no_answer_whatever_else_is_listed(tmp_path, answers):
    path = squad_file(tmp_path / "data.json", [("Who?", "Ann.", ["Ann"])])
    document = json.loads(path.read_text())
    qa = document["data"][0]["paragraphs"][0]["qas"][0]
    listed = (
        answers if answers is None or isinstance(answers, str) else [{"text": t} for t in answers]
    )
    qa |= {"is_impossible": True, "answers": listed}
    data = read_squad(write(tmp_path, document))
    assert data.questions[0].answers == ()
    assert data.with_null
    assert data.labelled


@pytest.mark.parametrize(
    ("said", "impossible"),
    [(1, True), ("true", True), ("True", True), (0, False), ("False", False), (None, False)],
)
def test_is_impossible_may_be_written_as_tables_do(tmp_path, said, impossible):
    row = {"id": "1", "question": "Who?", "context": "Ada wrote.", "is_impossible": said}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{**row, "answers": {"text": ["Ada"], "answer_start": [0]}}]))
    (question,) = read_squad(path).questions
    assert question.answers == (() if impossible else (Gold("Ada", 0),))


@pytest.mark.parametrize("said", ["no", 2, [True], {}, "", 0.5])
def test_is_impossible_that_says_neither_is_a_problem(tmp_path, said):
    row = {"id": "1", "question": "Who?", "context": "Ada wrote.", "is_impossible": said}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{**row, "answers": []}]))
    with pytest.raises(InputError, match=r"\[0\].is_impossible must be true or false"):
        read_squad(path)


def test_an_answer_without_text_is_none(tmp_path):
    path = squad_file(
        tmp_path / "data.json", [("Who?", "Ann.", ["", " "]), ("?", "Ann.", ["", "Ann"])]
    )
    first, second = read_squad(path).questions
    assert not first.answerable
    assert second.answers == (Gold("Ann", 0),)


# ---------------------------------------------------------------- other forms

ROW = {"id": "1", "title": "t", "context": "Ann came.", "question": "Who?"}
ANSWERS = {"text": ["Ann", "Ann came"], "answer_start": [0, 0]}
GOLDS = (Gold("Ann", 0), Gold("Ann came", 0))


def forms(rows):
    """The same questions in every form that is read."""
    paragraphs = [{"context": row["context"], "qas": [row]} for row in rows]
    return {
        "rows": rows,
        "rows under data": {"data": rows, "version": "x"},
        "rows in lines": "".join(json.dumps(row) + "\n\n" for row in rows),
        "paragraphs": paragraphs,
        "paragraphs under data": {"data": paragraphs},
        "paragraphs in lines": "\r\n".join(map(json.dumps, paragraphs)),
        "articles": [{"title": "t", "paragraphs": paragraphs}],
        "SQuAD": {"data": [{"title": "t", "paragraphs": paragraphs}]},
    }


FORMS = list(forms([]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2])
def test_every_form_holds_the_same_questions(tmp_path, form, count):
    as_list = [{"text": text, "answer_start": 0} for text in ANSWERS["text"]]
    rows = [{**ROW, "answers": ANSWERS}, {**ROW, "id": 2, "answers": as_list}][:count]
    data = read_squad(write(tmp_path, forms(rows)[form]))
    assert [question.id for question in data.questions] == ["1", "2"][:count]
    assert {question.answers for question in data.questions} == {GOLDS}
    assert {(q.question, q.context) for q in data.questions} == {("Who?", "Ann came.")}
    assert not data.with_null


def test_rows_of_one_title_are_one_article_and_without_titles_those_of_one_context(tmp_path):
    titles = ["b", "a", "b", None, "", None]
    contexts = ["x", "x", "y", "x", "x", "z"]
    rows = [
        {**ROW, "id": str(n), "title": title, "context": context, "answers": []}
        for n, (title, context) in enumerate(zip(titles, contexts, strict=True))
    ]
    data = read_squad(write(tmp_path, rows))
    assert [question.article for question in data.questions] == [0, 1, 0, 2, 2, 3]


@pytest.mark.parametrize("form", FORMS)
def test_a_test_file_has_questions_whose_answers_are_not_known(tmp_path, form):
    data = read_squad(write(tmp_path, forms([ROW, {**ROW, "id": "2", "answers": None}])[form]))
    assert not data.labelled
    assert [question.labelled for question in data.questions] == [False, False]
    assert data.with_null


@pytest.mark.parametrize(
    ("version", "with_null"),
    [("1.1", False), ("v1.0", False), ("v2.0", True), (2, True), (None, True)],
)
def test_a_test_file_leaves_no_answer_open_unless_its_version_is_1(tmp_path, version, with_null):
    data = read_squad(write(tmp_path, {"version": version, "data": [ROW]}))
    assert data.with_null == with_null


def test_answers_are_missing_where_other_questions_have_them(tmp_path):
    rows = [ROW, {**ROW, "id": "2", "answers": []}, {**ROW, "id": "3", "answers": None}]
    message = refused(write(tmp_path, rows))
    assert "2 problems" in message
    assert "[0] has no 'answers'; [2] has no 'answers'" in message


def test_problems_of_other_forms_are_named_with_their_places(tmp_path):
    rows = [
        {**ROW, "answers": {"text": ["Ann"], "answer_start": [0, 1]}},
        {**ROW, "id": "2", "answers": {"answer_start": [0]}},
        {**ROW, "id": "3", "answers": {"text": ["Ann", 5]}},
        {"id": "4", "context": "c", "answers": []},
        {"id": "5", "question": "Who?", "answers": []},
        7,
    ]
    for text, where in ((json.dumps(rows), "[{}]"), ("\n".join(map(json.dumps, rows)), "line {}")):
        message = refused(write(tmp_path, text))
        first = where.startswith("line")
        for number, problem in enumerate(
            (
                ".answers.answer_start must be a list as long as text is",
                ".answers has no 'text'",
                ".answers[1].text must be a str, found int",
                " has no 'question'",
                " has no 'context'",
                " must be an object, found int",
            )
        ):
            assert where.format(number + first) + problem in message


def test_every_line_that_is_not_json_is_named(tmp_path):
    good = json.dumps({**ROW, "answers": []})
    message = refused(write(tmp_path, f"{good}\n{{\n\nx\n"))
    assert "is not JSON (2 problems): line 2: " in message
    assert "; line 4: " in message


def test_hugging_faces_lists_of_predictions_are_read(tmp_path):
    rows = [
        {"id": "a", "prediction_text": "Ann", "no_answer_probability": 0.25},
        {"id": 7, "prediction_text": "", "no_answer_probability": 1},
    ]
    for document in (rows, "\n".join(map(json.dumps, rows))):
        path = write(tmp_path, document)
        assert read_predictions(path) == {"a": "Ann", "7": ""}
        assert has_null_odds(path)
        assert read_null_odds(path) == {"a": 0.25, "7": 1}
    del rows[0]["no_answer_probability"], rows[1]["no_answer_probability"]
    assert not has_null_odds(write(tmp_path, rows))
    assert not has_null_odds(write(tmp_path, {"a": "Ann"}))


def test_all_problems_of_a_list_of_predictions_are_named(tmp_path):
    rows = [{"id": "a"}, 3, {"prediction_text": "x"}, *[{"id": "b", "prediction_text": "x"}] * 2]
    message = refused(write(tmp_path, rows), read_predictions)
    assert "(4 problems)" in message
    for number in range(3):
        assert f"[{number}] must be an object with 'id' and 'prediction_text'" in message
    assert "[4]: the id 'b' stands there twice" in message


def test_all_problems_are_reported_at_once_with_their_places(tmp_path):
    document = {
        "data": [
            {"title": "a"},
            {"paragraphs": [{"context": 5, "qas": [{"id": "x", "question": "?", "answers": "a"}]}]},
            {"paragraphs": [{"context": "c", "qas": [{"id": "x", "question": "?"}, 3]}]},
        ]
    }
    message = refused(write(tmp_path, document))
    for problem in (
        "data[0] has no 'paragraphs'",
        "data[1].paragraphs[0].context must be a str, found int",
        "data[1].paragraphs[0].qas[0].answers must be a list, or an object of lists, found str",
        "data[2].paragraphs[0].qas[0]: the id 'x' stands there twice",
        "data[2].paragraphs[0].qas[0] has no 'answers'",
        "data[2].paragraphs[0].qas[1] must be an object, found int",
    ):
        assert problem in message


def test_a_thousand_problems_are_not_all_listed(tmp_path):
    message = refused(write(tmp_path, {"data": [{}] * 1000}))
    assert "1000 problems" in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds no questions"),
        ('"data"', "must hold an object or a list, found str"),
        ("{}", "has no 'data'"),
        ('{"data": []}', "holds no questions"),
        ('{"data": [{"paragraphs": [{"context": "", "qas": []}]}]}', "holds no questions"),
    ],
)
def test_other_files_are_refused(tmp_path, document, expected):
    assert expected in refused(write(tmp_path, document))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    assert "No such file" in refused(tmp_path / "missing.json")
    assert "a folder" in refused(tmp_path)
    (tmp_path / "latin").write_bytes(b'{"data": "\xe9"}')
    assert "is not UTF-8" in refused(tmp_path / "latin")


@pytest.mark.parametrize(
    ("read", "document", "expected"),
    [
        (read_predictions, "5", "must hold an object of ids, found int"),
        (read_predictions, {"a": "x", "b": None}, "'b' must be a string, found None"),
        (read_null_odds, {"a": 1, "b": "2"}, "'b' must be a number, found '2'"),
        (read_null_odds, {"a": True}, "'a' must be a number"),
        (read_null_odds, '{"a": NaN}', "'a' must be a number, found nan"),
        (read_null_odds, {"a": 10**400}, "'a' must be a number"),
        (read_nbest, {"a": "x"}, "'a' must be a list of objects with a text and a probability"),
        *[
            (read_nbest, {"a": [entry]}, "'a' must be a list of objects with a text")
            for entry in (
                *(3, {"text": "x"}, {"text": 3, "probability": 0.5}),
                *({"text": "x", "probability": value} for value in ("0.5", -3, True, 10**400)),
                *({"text": "x", "probability": float(value)} for value in ("nan", "inf")),
            )
        ],
    ],
)
def test_files_of_predictions_are_checked(tmp_path, read, document, expected):
    assert expected in refused(write(tmp_path, document), read)


@pytest.mark.skipif(not SQUAD.is_dir(), reason="SQuAD is not beside this checkout")
@pytest.mark.parametrize(
    ("name", "articles", "total", "impossible"),
    [("dev-v1.1.json.xz", 48, 10570, 0), ("dev-v2.0.json.xz", 35, 11873, 5945)],
)
def test_the_published_sets_have_their_known_sizes(name, articles, total, impossible):
    questions = read_squad(SQUAD / name).questions
    assert len(questions) == total
    assert questions[-1].article == articles - 1
    assert sum(not question.answerable for question in questions) == impossible
