"""How answers show themselves in a notebook."""

from html.parser import HTMLParser

import pytest

from minibert import QuestionAnswerer
from minibert.sentences import LONGEST_SENTENCE
from minibert.spans import Answer, Answers

pytestmark = pytest.mark.usefixtures("compiled_before")
TEXT = "It rained. The play was written by Ann Lee in 1990. Nobody came."


@pytest.fixture(scope="module")
def qa(embedded):
    return QuestionAnswerer(embedded)


class Balanced(HTMLParser):
    """Notes the texts in <mark>, and whether every element is closed in its turn."""

    def __init__(self, html):
        super().__init__()
        self.open, self.marked, self.texts = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if "mark" in self.open:
            self.marked.append(data)


def test_an_answer_is_marked_in_its_sentence(qa):
    answer = qa.answer("Who wrote the play?", TEXT)
    shown = answer._repr_html_()
    assert '<div dir="auto">The play was written by <mark>Ann Lee</mark> in 1990.</div>' in shown
    assert f"probability {answer.probability:.2f}, score {answer.score:.2f}" in shown
    assert "characters 35 to 42" in shown
    assert Balanced(shown).marked == ["Ann Lee"]


def test_a_list_of_answers_is_a_table_with_the_best_first(qa):
    answers = qa.n_best("Who wrote the play?", ["Nothing.", TEXT], n=3)
    page = Balanced(answers._repr_html_())
    assert answers._repr_html_().count("<tr>") == 1 + 3
    assert page.marked == [answer.text for answer in answers if not answer.is_null]
    assert any("text 1, characters 35 to 42" in text for text in page.texts)
    assert isinstance(answers, list)


def test_no_answer_says_so():
    assert "<i>no answer</i>" in Answer("", 0, 0, 1.0, 0.5, 1.0)._repr_html_()
    assert "<i>no answer</i>" in Answers([Answer("", 0, 0, 1.0, 0.5, 1.0)])._repr_html_()


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "a & b", "\x1b[31m\x00", "\ud800"]
)
def test_texts_are_escaped_and_can_be_written(hostile):
    answer = Answer(hostile, 5, 9, 1.0, 0.5, 0.0, around=(hostile, hostile))
    for shown in (answer._repr_html_(), Answers([answer])._repr_html_()):
        page = Balanced(shown)
        assert "script" not in shown.replace("&lt;script&gt;", "").replace("&lt;/script&gt;", "")
        assert not set("\x1b\x00") & set(shown)
        assert page.marked
        shown.encode()


def test_an_answer_keeps_no_more_of_its_text_than_its_sentence_needs(qa):
    text = "word " * 200 + "The play was written by Ann Lee in 1990. " + "word " * 200
    answer = qa.answer("Who wrote the play?", text)
    before, after = answer.around
    assert len(before) == len(after) == LONGEST_SENTENCE
    assert (
        text[answer.start - len(before) : answer.end + len(after)] == before + answer.text + after
    )


def test_what_is_around_an_answer_is_neither_printed_nor_compared(qa):
    answer = qa.answer("Who wrote the play?", TEXT)
    assert "around" not in repr(answer)
    assert answer == Answer(**answer.to_dict())
    assert list(answer.to_dict()) == [
        *("text", "start", "end", "score", "probability", "null_score", "document", "window")
    ]
