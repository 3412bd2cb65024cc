"""SQuAD's numbers are the official ones, to the last digit."""

import random
import re
import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from squad_files import SQUAD

from minibert.errors import InputError
from minibert.squad.files import Gold, SquadData, SquadQuestion, read_squad
from minibert.squad.metrics import (
    characters,
    mostly_without_spaces,
    normalise,
    score_answer,
    score_answers,
    squad_evaluate,
    tune_threshold,
)
from minibert.squad.predictions import read_predictions

# ---------------------------------------------------------------- one answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S. Army's  answer", "us armys answer"),
        ("A", ""),
        ("an-the", "anthe"),  # punctuation goes before articles
        ("theatre a theme", "theatre theme"),
        ("the\u00a0house", "house"),
        ("THE İstanbul", "i̇stanbul"),
        ("“the” house…", "“ ” house…"),  # only ASCII's punctuation goes
        ("1,000 (one thousand)", "1000 one thousand"),
        ("a\nb", "b"),
        ("", ""),
    ],
)
def test_texts_are_normalised(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("golds", "predicted", "exact", "f1"),
    [
        (["red house"], "The Red House.", 1, 1),
        (["red house"], "big red house", 0, 0.8),
        (["red house", "house"], "house", 1, 1),
        (["red red house"], "red", 0, 0.5),
        (["house"], "", 0, 0),
        ([], "", 1, 1),
        ([], "house", 0, 0),
        ([], "the", 1, 1),  # nothing is left of it
        (["the"], "", 1, 1),
        (["the"], "house", 0, 0),
        (["the", "house"], "", 0, 0),  # a right answer is left, so nothing is wrong
    ],
)
def test_answers_are_scored(golds, predicted, exact, f1):
    assert score_answer(golds, predicted) == (exact, pytest.approx(f1, rel=1e-15))


# ---------------------------------------------------------------- published predictions

# ../shared/data/squad/README.md: what evaluate-v2.0.py gives for them.
PUBLISHED = {
    ("bert-single-v2.0", "dev-v2.0"): {
        "exact": 78.74168280973637,
        "f1": 81.77528052374723,
        "HasAns_exact": 74.10593792172739,
        "HasAns_f1": 80.18183293833508,
        "NoAns_exact": 83.36417157275021,
    },
    ("bidaf-elmo-v2.0", "dev-v2.0"): {
        "exact": 65.70369746483618,
        "f1": 67.87648921451334,
        "HasAns_exact": 61.42037786774629,
        "HasAns_f1": 65.77219238257676,
        "NoAns_exact": 69.97476871320437,
    },
    ("bert-ensemble-v1.1", "dev-v1.1"): {"exact": 86.20624408703878, "f1": 92.19557978351145},
}


@pytest.mark.skipif(not SQUAD.is_dir(), reason="SQuAD is not beside this checkout")
@pytest.mark.parametrize(("predictions", "data"), PUBLISHED)
@pytest.mark.slow
def test_published_predictions_score_as_published(predictions, data):
    questions = read_squad(SQUAD / f"{data}.json.xz").questions
    texts = read_predictions(SQUAD / "predictions" / f"{predictions}.json.xz")
    result = squad_evaluate(questions, texts)
    assert {key: result[key] for key in PUBLISHED[predictions, data]} == PUBLISHED[
        predictions, data
    ]
    assert result["total"] == len(questions)


# ---------------------------------------------------------------- many answers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("于1931年、在 Norhaven。", ["于", "1931", "年", "在", "norhaven"]),
        ("維生素 A", ["維", "生", "素", "a"]),  # an article in English, and none here
        ("U.S. 陸軍", ["u", "s", "陸", "軍"]),
        ("《红》，“黑”！", ["红", "黑"]),
        ("カ\u3099ス", ["カ\u3099", "ス"]),  # a mark is part of its letter
        ("葛\U000e0100城", ["葛\U000e0100", "城"]),
        ("\u0301a", ["\u0301a"]),  # a mark without a letter before it
        ("ที่บ้าน", ["ที่", "บ้", "า", "น"]),
        ("서울에서", ["서", "울", "에", "서"]),
        ("𠮷野家々〇", ["𠮷", "野", "家", "々", "〇"]),
        ("Cafe\u0301 noir", ["cafe\u0301", "noir"]),
        ("₽5 $5", ["₽5", "5"]),
        ("", []),
        ("。", []),
    ],
)
def test_characters_count_where_spaces_do_not_part_words(text, expected):
    assert characters(text) == expected


@pytest.mark.parametrize(
    ("golds", "predicted", "exact", "f1"),
    [
        (["一九三一年"], "于一九三一年。", 0, 10 / 11),
        (["一九三一年"], "一九三一年。", 1, 1),
        (["北港", "南港的船"], "南港", 0, 2 / 3),
        (["1931年"], "1932年", 0, 0.5),  # a number is right or wrong
        (["红红"], "红", 0, 2 / 3),
        (["红"], "", 0, 0),
        ([], "", 1, 1),
        (["。"], "", 1, 1),  # nothing is left of it
        (["a house"], "house", 0, 2 / 3),  # articles stay
    ],
)
def test_answers_are_scored_over_characters(golds, predicted, exact, f1):
    assert score_answer(golds, predicted, "characters") == (exact, pytest.approx(f1))


@given(st.text(alphabet="ab 1.,", max_size=12), st.text(alphabet="ab 1.,", max_size=12))
def test_over_characters_texts_with_spaces_are_compared_by_their_words(gold, predicted):
    plain = [" ".join(re.sub("[.,]", " ", text).split()) for text in (gold, predicted)]
    plain = [re.sub(r"\ba\b", "x", text) for text in plain]  # as SQuAD would drop it
    expected = score_answer([plain[0]], plain[1])
    assert score_answer([gold], predicted, "characters") == expected


def test_numbers_are_over_characters_when_asked():
    questions = [question("a", "一九三一年"), question("b")]
    predictions = {"a": "于一九三一年", "b": ""}
    assert squad_evaluate(questions, predictions)["HasAns_f1"] == 0.0
    found = squad_evaluate(questions, predictions, f1="characters")
    assert found["HasAns_f1"] == found["best_f1"] * 2 - 100 == pytest.approx(1000 / 11)
    with pytest.raises(InputError, match="f1 must be one of words, characters, got 'letters'"):
        squad_evaluate(questions, predictions, f1="letters")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["北港", "東京タワー", "cafe"], True),
        (["บ้าน"], True),
        (["北港", "cafe"], False),
        (["서울에서"], False),  # Korean has spaces
        (["1931 。、"], False),
        ([], False),
    ],
)
def test_most_answers_say_whether_spaces_part_words(answers, expected):
    assert mostly_without_spaces([question("a", *answers), question("b")]) == expected


def test_questions_without_right_answers_cannot_be_scored():
    unknown = replace(question("b"), labelled=False)
    with pytest.raises(InputError, match="1 of 2 questions come without their right answers"):
        squad_evaluate([question("a", "x"), unknown], {"a": "x", "b": ""})


def question(key, *golds):
    return SquadQuestion(key, "?", "a text", tuple(map(Gold, golds)), 0)


def test_the_numbers_and_their_order():
    questions = [question("a", "red house"), question("b", "dog"), question("c"), question("d")]
    predictions = {"a": "house", "b": "dog", "c": "", "d": "cat"}
    odds = {"a": -1.0, "b": -2.0, "c": 3.0, "d": 0.5}
    assert list(squad_evaluate(questions, predictions, odds).items()) == [
        ("exact", 50.0),
        ("f1", 100 * (2 / 3 + 1 + 1 + 0) / 4),
        ("total", 4),
        ("HasAns_exact", 50.0),
        ("HasAns_f1", 100 * (2 / 3 + 1) / 2),
        ("HasAns_total", 2),
        ("NoAns_exact", 50.0),
        ("NoAns_f1", 50.0),
        ("NoAns_total", 2),
        ("best_exact", 75.0),  # b is answered, nothing else
        ("best_exact_thresh", -2.0),
        ("best_f1", pytest.approx(100 * (2 + 1 + 2 / 3) / 4)),  # a is answered too
        ("best_f1_thresh", -1.0),
    ]


def test_odds_above_the_threshold_say_no_answer_and_odds_at_it_do_not():
    questions = [question("a", "x"), question("b")]
    predictions = {"a": "x", "b": "y"}
    for threshold, answerable in ((1.0, 100.0), (0.99, 0.0), (2.0, 100.0)):
        result = squad_evaluate(questions, predictions, {"a": 1, "b": 1}, threshold)
        assert (result["HasAns_exact"], result["NoAns_exact"]) == (answerable, 100 - answerable)
    result = squad_evaluate(questions, predictions, {"a": 1.0, "b": 1.5})
    assert (result["HasAns_exact"], result["NoAns_exact"]) == (100.0, 100.0)
    result = squad_evaluate(questions, predictions, {"a": 1.5, "b": 1.0})
    assert (result["HasAns_exact"], result["NoAns_exact"]) == (0.0, 0.0)


def test_kinds_of_questions_that_are_not_there_are_left_out():
    result = squad_evaluate([question("a", "x")], {"a": "x"})
    assert not [key for key in result if key.startswith("NoAns")]
    result = squad_evaluate([question("a")], {"a": "x"})
    assert not [key for key in result if key.startswith("HasAns")]


def test_predictions_for_other_questions_do_not_count():
    result = squad_evaluate([question("a", "x")], {"z": "", "a": "x"}, {"z": -9.0, "a": 0.0})
    assert result["exact"] == result["best_exact"] == 100.0


def test_missing_predictions_and_odds_are_named():
    questions = [question("a", "x"), question("b"), question("c")]
    with pytest.raises(InputError, match="2 of 3 questions have no prediction, the first is 'b'"):
        squad_evaluate(questions, {"a": "x"})
    with pytest.raises(InputError, match="1 of 3 questions have no null odds, the first is 'c'"):
        squad_evaluate(questions, dict.fromkeys("abc", ""), {"a": 0.0, "b": 0.0})
    with pytest.raises(InputError, match="no questions"):
        squad_evaluate([], {})


@pytest.mark.parametrize(
    ("predictions", "odds", "expected"),
    [
        ({"a": None}, None, "the prediction of question 'a' cannot be None"),
        (["a"], None, "each prediction must be in a dict"),
        ({"a": "x"}, {"a": "1"}, "the null odds of question 'a' cannot be '1'"),
        ({"a": "x"}, {"a": float("nan")}, "the null odds of question 'a' cannot be nan"),
    ],
)
def test_values_of_other_kinds_are_refused(predictions, odds, expected):
    with pytest.raises(InputError, match=expected):
        squad_evaluate([question("a", "x")], predictions, odds)


def test_what_are_no_questions_and_equal_ids_are_refused():
    with pytest.raises(InputError, match="must be a list of SquadQuestion"):
        squad_evaluate(["a"], {"a": "x"})
    with pytest.raises(InputError, match="must be a list, got SquadData"):
        squad_evaluate(SquadData("", "", [question("a")], True), {"a": "x"})
    with pytest.raises(InputError, match="null_threshold must be a number"):
        squad_evaluate([question("a")], {"a": "x"}, null_threshold=None)
    with pytest.raises(InputError, match="two questions have the same id"):
        squad_evaluate([question("a", "x"), question("a")], {"a": "x"})


# ---------------------------------------------------------------- thresholds

ODDS = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 7.0])  # few values: many ties
TEXTS = st.sampled_from(["", "x", "y z", "the x", "x y"])


@st.composite
def answered(draw):
    count = draw(st.integers(1, 8))
    questions = [
        question(f"q{n}", *draw(st.lists(TEXTS.filter(bool), max_size=2))) for n in range(count)
    ]
    ids = [q.id for q in questions]
    order = draw(st.permutations(ids))  # the file of predictions has an order of its own
    predictions = {key: draw(TEXTS) for key in order}
    odds = {key: draw(ODDS) for key in draw(st.permutations(ids))}
    return questions, predictions, odds


@given(answered())
def test_the_tuned_threshold_is_the_best_of_all(case):
    questions, predictions, odds = case
    predictions = {key: text or "z" for key, text in predictions.items()}
    scores = {key: score.f1 for key, score in score_answers(questions, predictions).items()}

    def total(threshold):
        cut = {key: "" if odds[key] > threshold else predictions[key] for key in predictions}
        return sum(score.f1 for score in score_answers(questions, cut).values())

    found = tune_threshold(questions, predictions, scores, odds)
    everything = [-float("inf"), *odds.values()]
    assert total(found) == pytest.approx(max(map(total, everything)))
    assert found in everything


# ---------------------------------------------------------------- beside transformers 5.2.0


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    if transformers.__version__ != "5.2.0":
        pytest.skip("compares with transformers 5.2.0 only")
    from transformers.data.metrics import squad_metrics

    return squad_metrics


PIECES = [
    *("the", "a", "an", "The", "A", "theatre", "and", "x", "Berlin", "berlin", "U.S.", "O'Neil"),
    *("naïve", "cafe\u0301", "café", "İ", "ß", "東京", "😀", "½", "1,000", "—", "“q”", "a-b"),
    *(string.punctuation, "\u00a0", "\u3000", "\n", "\t", "\u200b", "\x1f", "", ".", "'s", "_"),
]


def made_up(rng, count):
    return "".join(rng.choice(PIECES) + rng.choice([" ", " ", "", "  "]) for _ in range(count))


@pytest.mark.parity
def test_texts_are_scored_as_in_transformers(theirs):
    rng = random.Random(0)
    for _ in range(3000):
        a, b = (made_up(rng, rng.choice([0, 1, 2, 3, 6])) for _ in range(2))
        assert normalise(a) == theirs.normalize_answer(a)
        golds = [gold for gold in (a,) if theirs.normalize_answer(gold)] or [""]
        assert score_answer([a], b) == (
            max(theirs.compute_exact(gold, b) for gold in golds),
            max(theirs.compute_f1(gold, b) for gold in golds),
        )


@pytest.mark.parity
@given(answered(), st.sampled_from([-1.0, 0.0, 0.5, 1.0]), st.booleans())
def test_the_numbers_are_those_of_transformers(theirs, case, threshold, with_odds):
    questions, predictions, odds = case

    class Example:
        def __init__(self, mine):
            self.qas_id = mine.id
            self.answers = [{"text": gold.text} for gold in mine.answers]

    want = theirs.squad_evaluate(
        [Example(q) for q in questions], predictions, odds if with_odds else None, threshold
    )
    got = squad_evaluate(questions, predictions, odds if with_odds else None, threshold)
    assert list(got) == list(want)
    # Since Python 3.12 its sums round otherwise than when the scores were published.
    for key in want:
        assert got[key] == pytest.approx(want[key], rel=1e-14, abs=1e-12), key
