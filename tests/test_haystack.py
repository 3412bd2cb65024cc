"""The reader for Haystack: in a pipeline behind BM25, without torch."""

import inspect
import subprocess
import sys

import pytest

from minibert import InputError, QuestionAnswerer

haystack = pytest.importorskip("haystack")

from haystack import Document, Pipeline  # noqa: E402 (after the skip)
from haystack.components.retrievers import InMemoryBM25Retriever  # noqa: E402
from haystack.document_stores.in_memory import InMemoryDocumentStore  # noqa: E402
from haystack.utils import Secret  # noqa: E402

from minibert.scale.haystack import MinibertReader  # noqa: E402

QUESTION = "Who wrote the first program?"
TEXTS = [
    "It rained in 1842, and nobody wrote anything.",
    "Ada Lovelace wrote the first program in 1843. It was never run.",
    "Wolfgang lives in Berlin. He wrote the second program.",
]


@pytest.fixture
def documents():
    return [Document(content=text, meta={"number": n}) for n, text in enumerate(TEXTS)]


@pytest.fixture
def reader(tiny_folder):
    """With the tiny model, whose answers are at random, and as many as there can be."""
    return MinibertReader(tiny_folder, device="reference", max_seq_length=None, stride=None)


def shown(answers):
    return [(each.data, round(each.score, 5)) for each in answers]


def test_it_answers_behind_a_retriever_and_a_pipeline_keeps_it(documents):
    store = InMemoryDocumentStore()
    store.write_documents(documents)
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store))
    pipeline.add_component("reader", MinibertReader(top_k=3))
    pipeline.connect("retriever.documents", "reader.documents")
    inputs = {"retriever": {"query": QUESTION}, "reader": {"query": QUESTION}}
    best, *others = pipeline.run(inputs)["reader"]["answers"]
    assert best.data == "Ada Lovelace"
    assert best.document.meta["number"] == 1
    offset = best.document_offset
    assert best.document.content[offset.start : offset.end] == best.data
    assert best.query == QUESTION
    assert len(others) == 3
    (nothing,) = (each for each in others if each.data is None)
    assert nothing.document is nothing.document_offset is None
    scores = [each.score for each in (best, *others)]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) < 1.0001
    # A pipeline's file holds no documents, so what was loaded gets some to search.
    trusted = {"allowed_modules": [MinibertReader.__module__]}  # Haystack 3 asks for it
    if "allowed_modules" not in inspect.signature(Pipeline.loads).parameters:
        trusted = {}
    again = Pipeline.loads(pipeline.dumps(), **trusted)
    found = again.get_component("reader").run(QUESTION, documents)["answers"]
    assert shown(found) == shown([best, *others])


def test_scores_are_the_probabilities_of_n_best(reader, documents, tiny_folder):
    qa = QuestionAnswerer(tiny_folder, device="reference", max_overlap=0.01)
    expected = {a.text or None: a.probability for a in qa.n_best(QUESTION, TEXTS, 6)}
    for each in reader.run(QUESTION, documents, top_k=5)["answers"]:
        if each.data in expected:
            assert each.score == pytest.approx(expected[each.data], abs=1e-6)


def test_documents_without_text_are_passed_over(reader, documents):
    blank = [Document(content=None), Document(content=""), Document(content=" \n")]
    expected = reader.run(QUESTION, documents)["answers"]
    found = reader.run(QUESTION, [blank[0], documents[0], *blank, *documents[1:]])["answers"]
    assert shown(found) == shown(expected)
    assert reader.run(QUESTION, blank) == reader.run(QUESTION, []) == {"answers": []}


def test_arguments_of_a_call_go_before_those_of_the_reader(reader, documents):
    answers = reader.run(QUESTION, documents, top_k=4)["answers"]
    assert [each.data is None for each in answers].count(True) == 1
    assert len(answers) == 5
    plain = reader.run(QUESTION, documents, top_k=4, no_answer=False)["answers"]
    assert shown(plain) == shown([each for each in answers if each.data])
    middle = plain[1].score
    above = reader.run(QUESTION, documents, top_k=4, score_threshold=middle)["answers"]
    assert shown(above) == shown([each for each in answers if each.score >= middle])
    short = reader.run(QUESTION, documents, max_seq_length=24, stride=2, no_answer=False)
    assert short["answers"]


def test_answers_overlap_no_more_than_they_may(reader, documents):
    def overlaps(answers):
        spans = [(each.document.id, each.document_offset) for each in answers]
        return [
            min(a.end, b.end) - max(a.start, b.start)
            for n, (document, a) in enumerate(spans)
            for other, b in spans[:n]
            if document == other
        ]

    options = {"top_k": 30, "no_answer": False}
    apart = reader.run(QUESTION, documents, overlap_threshold=0.0, **options)["answers"]
    assert max(overlaps(apart)) <= 0
    reader.overlap_threshold = None
    assert max(overlaps(reader.run(QUESTION, documents, **options)["answers"])) > 0


def test_a_window_gives_only_so_many_answers(reader, documents):
    options = {"top_k": 30, "no_answer": False}
    found = reader.run(QUESTION, documents, answers_per_seq=2, **options)["answers"]
    numbers = [each.document.meta["number"] for each in found]
    assert sorted(numbers) == [0, 0, 1, 1, 2, 2]


def test_the_page_of_an_answer_is_told_where_that_of_the_document_is_known(reader):
    pages = Document(content="ada lee wrote it.\fthe ship was lost.\fnobody came.")
    pages.meta["page_number"] = 7
    for each in reader.run(QUESTION, [pages], no_answer=False)["answers"]:
        before = pages.content[: each.document_offset.start]
        assert each.meta == {"answer_page_number": 7 + before.count("\f")}


def test_it_is_written_and_read_as_it_was(tiny_folder):
    given = MinibertReader(
        tiny_folder, token=Secret.from_env_var("MY_TOKEN"), top_k=3, dtype="int8", num_threads=1
    )
    data = given.to_dict()
    assert data["type"] == "minibert.scale.haystack.MinibertReader"
    assert "MY_TOKEN" in str(data)
    again = MinibertReader.from_dict(data)
    assert again.to_dict() == given.to_dict()
    assert MinibertReader.from_dict(MinibertReader(token=None).to_dict()).token is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"top_k": 0}, "top_k must be a whole number of at least 1"),
        ({"answers_per_seq": 0}, "answers_per_seq must be a whole number of at least 1"),
        ({"overlap_threshold": 2.0}, "max_overlap must be from 0 to 1"),
        ({"max_seq_length": 10_000}, "max_seq_length 10000 is beyond"),
    ],
)
def test_wrong_arguments_are_refused(reader, documents, arguments, words):
    with pytest.raises(InputError, match=words):
        reader.run(QUESTION, documents, **arguments)


def test_readers_with_the_same_settings_share_a_model(tiny_folder):
    first, second = (MinibertReader(tiny_folder, device="reference", top_k=k) for k in (1, 2))
    first.warm_up()
    assert first._answerer() is second._answerer()


def test_torch_is_not_needed():
    code = "import sys, minibert.scale.haystack; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"
