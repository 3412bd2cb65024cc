"""SQuAD files are read in every form, and every problem of a file is named with its place."""

import gzip
import json
import lzma

import pytest
from squad_files import EXAMPLE, SQUAD, squad_file

from minibert.errors import InputError
from minibert.squad.files import Gold, read_nbest, read_null_odds, read_predictions, read_squad


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
    assert "has no 'answers'" in refused(write(tmp_path, document))
    document["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = True
    assert not read_squad(write(tmp_path, document)).questions[0].answerable


def test_all_problems_are_reported_at_once_with_their_places(tmp_path):
    document = {
        "data": [
            {"title": "a"},
            {"paragraphs": [{"context": 5, "qas": [{"id": "x", "question": "?", "answers": {}}]}]},
            {"paragraphs": [{"context": "c", "qas": [{"id": "x", "question": "?"}, 3]}]},
        ]
    }
    message = refused(write(tmp_path, document))
    for problem in (
        "data[0] has no 'paragraphs'",
        "data[1].paragraphs[0].context must be a str, found int",
        "data[1].paragraphs[0].qas[0].answers must be a list, found dict",
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
        ("[]", "must hold an object, found list"),
        ("{}", "has no 'data'"),
        ('{"data": []}', "holds no questions"),
        ('{"data": [{"paragraphs": [{"context": "", "qas": []}]}]}', "holds no questions"),
    ],
)
def test_other_files_are_refused(tmp_path, document, expected):
    assert expected in refused(write(tmp_path, document))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    assert "No such file" in refused(tmp_path / "missing.json")
    assert "directory" in refused(tmp_path)
    (tmp_path / "latin").write_bytes(b'{"data": "\xe9"}')
    assert "is not UTF-8" in refused(tmp_path / "latin")


@pytest.mark.parametrize(
    ("read", "document", "expected"),
    [
        (read_predictions, [], "must hold an object of ids, found list"),
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
