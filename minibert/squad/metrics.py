"""SQuAD's measures: exact match, F1, and the threshold for "no answer".

Every number is that of the official evaluate-v2.0.py, to the last digit that it prints before
Python 3.12, and of `squad_evaluate` in transformers 5.2.0, which has the same sums in another form:
it gives the best thresholds also without odds, as if all were 0.

In scripts that do not part words with spaces, a whole answer is one word to SQuAD, right or wrong.
F1 over characters is there for them: `characters` says what they are.

Source: evaluate-v2.0.py on https://rajpurkar.github.io/SQuAD-explorer/; Rajpurkar et al. 2018.
"""

from __future__ import annotations

import operator
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from numbers import Real
from typing import NamedTuple

from minibert.errors import InputError
from minibert.options import check_choice, check_number
from minibert.reprs import shown
from minibert.scripts import is_mark, may_end_within_words, without_spaces
from minibert.squad.files import SquadQuestion

PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))  # that of ASCII only
ARTICLES = re.compile(r"\b(a|an|the)\b")

# What `squad_evaluate` calls no answer if nothing else is said: odds above this.
DEFAULT_THRESHOLD = 1.0

F1_OVER = ("words", "characters")  # what F1 can be counted over, the default first

# ---------------------------------------------------------------- one answer


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words.

    Example:
        >>> normalise("The  U.S. Army's  answer")
        'us armys answer'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def words(text: str) -> list[str]:
    """The words that SQuAD compares.

    Example:
        >>> words("The  U.S. Army's  answer")
        ['us', 'armys', 'answer']
    """
    return normalise(text).split()


def characters(text: str) -> list[str]:
    """What is compared instead in scripts that do not part words with spaces.

    Each character of such a script, and each Korean syllable, counts by itself, with the marks on
    it; Latin words, numbers and the like stay whole.  Punctuation of every script is left out, and
    articles are not: the A of "vitamin A" is none.

    Example:
        >>> characters("于1931年、在 Norhaven。")
        ['于', '1931', '年', '在', 'norhaven']

    Source: the mixed segmentation of mlqa_evaluation_v1.py in facebookresearch/MLQA, there for the
    ideographs of Chinese.  (Lewis et al. 2020.)
    """
    found: list[str] = []
    inside = False  # whether a word goes on
    for char in text.lower():
        if char.isspace() or is_punctuation(char):
            inside = False
        elif is_mark(char) and found:
            found[-1] += char
        elif may_end_within_words(char):
            found.append(char)
            inside = False
        elif inside:
            found[-1] += char
        else:
            found.append(char)
            inside = True
    return found


def is_punctuation(char: str) -> bool:
    """Whether a character is punctuation, as Unicode or ASCII has it."""
    return unicodedata.category(char).startswith("P") or ord(char) in PUNCTUATION


class Score(NamedTuple):
    """How good an answer is, from 0 to 1."""

    exact: float
    f1: float


def word_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words; of two empty answers, 1.

    Example:
        >>> word_f1(["red", "house"], ["big", "red", "house"])
        0.8
    """
    if not gold or not predicted:
        return float(gold == predicted)
    same = sum((Counter(gold) & Counter(predicted)).values())
    if not same:
        return 0.0
    precision, recall = same / len(predicted), same / len(gold)
    return (2 * precision * recall) / (precision + recall)


def score_answer(golds: Iterable[str], predicted: str, f1: str = F1_OVER[0]) -> Score:
    """Score an answer against the best fitting of the right ones.

    Right answers of which no word is left do not count; if no right answer is left, the empty text
    is right.

    Args:
        golds: the right answers.
        predicted: the answer.
        f1: what the answers are compared by, "words" or "characters".
    """
    parts = words if f1 == "words" else characters
    found = parts(predicted)
    right = [kept for gold in golds if (kept := parts(gold))] or [[]]
    return Score(
        float(max(gold == found for gold in right)), max(word_f1(gold, found) for gold in right)
    )


# ---------------------------------------------------------------- many answers


def score_answers(
    questions: Sequence[SquadQuestion], predictions: Mapping[str, str], f1: str = F1_OVER[0]
) -> dict[str, Score]:
    """Score the answer to each question.

    Raises:
        InputError: there are no questions, some have no prediction, or what is right is not known.
    """
    check_choice("f1", f1, F1_OVER)
    if not isinstance(questions, Sequence):
        raise InputError(f"the questions must be a list, got {type(questions).__name__}")
    if not questions:
        raise InputError("there are no questions to score")
    require(questions, predictions, "prediction", str)
    if unlabelled := [question.id for question in questions if not question.labelled]:
        raise InputError(
            f"{len(unlabelled)} of {len(questions)} questions come without their right answers, as "
            f"in a test file, the first is {unlabelled[0]!r}: there is nothing to score them with"
        )
    return {
        q.id: score_answer((gold.text for gold in q.answers), predictions[q.id], f1)
        for q in questions
    }


def mostly_without_spaces(questions: Iterable[SquadQuestion]) -> bool:
    """Whether most right answers are in a script that does not part words with spaces."""
    texts = [gold.text for question in questions for gold in question.answers]
    return 2 * sum(any(map(without_spaces, text)) for text in texts) > len(texts)


def require(
    questions: Sequence[SquadQuestion],
    values: Mapping[str, object],
    what: str,
    kind: type = object,
) -> None:
    """Refuse values that leave questions out, or are of another kind.

    Raises:
        InputError: naming how many, and the first.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"each {what} must be in a dict by id, got {type(values).__name__}")
    if not all(isinstance(question, SquadQuestion) for question in questions):
        raise InputError("the questions must be a list of SquadQuestion, as read_squad gives them")
    missing = [question.id for question in questions if question.id not in values]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(questions)} questions have no {what}, the first is "
            f"{missing[0]!r}. Do the files belong together?"
        )
    for question in questions:
        value = values[question.id]
        if not isinstance(value, kind) or value != value:
            raise InputError(f"the {what} of question {question.id!r} cannot be {shown(value)}")
    if len({question.id for question in questions}) < len(questions):
        raise InputError("two questions have the same id")


def squad_evaluate(
    questions: Sequence[SquadQuestion],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
    null_threshold: float = DEFAULT_THRESHOLD,
    f1: str = F1_OVER[0],
) -> dict[str, float]:
    """SQuAD 2.0's numbers for the answers to all questions.

    Args:
        questions: at least one.
        predictions: the answer to each, by id; the empty text for "no answer".
        null_odds: how unanswerable each looks, by id, on any scale; None for 0 everywhere.
        null_threshold: an answer with odds above it counts as "no answer".
        f1: what answers are compared by: "words", or "characters" for languages without spaces.

    Returns:
        In percent: exact, f1; of the answerable questions (HasAns_) and of the others (NoAns_),
        left out if there are none; counts (total); and the best that another threshold would give,
        with that threshold (best_exact, best_exact_thresh, best_f1, best_f1_thresh).

    Raises:
        InputError: there are no questions, some have no prediction or no odds, or their right
            answers are not known.
    """
    scores = score_answers(questions, predictions, f1)
    odds = dict.fromkeys(predictions, 0.0) if null_odds is None else null_odds
    require(questions, odds, "null odds", Real)
    null_threshold = check_number("null_threshold", null_threshold)
    kept = {
        question.id: scores[question.id]
        if not odds[question.id] > null_threshold
        else Score(*[float(not question.answerable)] * 2)
        for question in questions
    }
    result: dict[str, float] = {}
    for prefix, chosen in (
        ("", questions),
        ("HasAns_", [q for q in questions if q.answerable]),
        ("NoAns_", [q for q in questions if not q.answerable]),
    ):
        if chosen:
            result[f"{prefix}exact"] = mean([kept[q.id].exact for q in chosen])
            result[f"{prefix}f1"] = mean([kept[q.id].f1 for q in chosen])
            result[f"{prefix}total"] = len(chosen)
    for name in ("exact", "f1"):
        values = {key: getattr(score, name) for key, score in scores.items()}
        best, threshold = best_threshold(questions, predictions, values, odds)
        result[f"best_{name}"], result[f"best_{name}_thresh"] = best, threshold
    return result


def mean(values: Sequence[float]) -> float:
    """In percent.

    Added one after the other: `sum` rounds less since Python 3.12, and gives other last digits than
    those that were published.
    """
    return 100.0 * reduce(operator.add, values) / len(values)


def best_threshold(
    questions: Sequence[SquadQuestion],
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    null_odds: Mapping[str, float],
) -> tuple[float, float]:
    """The best score that a threshold could give, and that threshold, as the official script does.

    It goes from the surest question to the least sure, and sees what answering so far would be
    worth.  Of questions with equal odds it may count some, so that its best can be better than any
    threshold is: `tune_threshold` cannot be fooled so, but this is what is reported.

    Returns:
        The score in percent, and the threshold: 0 if answering nothing is best.
    """
    answerable = {question.id: question.answerable for question in questions}
    current = best = float(sum(not question.answerable for question in questions))
    threshold = 0.0
    for key in sorted(null_odds, key=lambda key: null_odds[key]):
        if key not in answerable:
            continue
        current += gain(answerable[key], predictions[key], scores[key])
        if current > best:
            best, threshold = current, null_odds[key]
    return 100.0 * best / len(questions), threshold


def gain(answerable: bool, prediction: str, score: float) -> float:
    """What answering a question adds, instead of saying that there is no answer."""
    if answerable:
        return score
    return -1.0 if prediction else 0.0


def tune_threshold(
    questions: Sequence[SquadQuestion],
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    null_odds: Mapping[str, float],
) -> float:
    """The threshold with the highest score: questions with odds above it get "no answer".

    Args:
        questions: at least one.
        predictions: answers, none of them empty where there is one to give.
        scores: of those answers.
        null_odds: how unanswerable each question looks.

    Returns:
        The odds of one of the questions, the lowest of equally good ones; -inf if answering
        nothing is best.
    """
    gains: dict[float, float] = {}
    for question in questions:
        key = question.id
        value = gain(question.answerable, predictions[key], scores[key])
        gains[null_odds[key]] = gains.get(null_odds[key], 0.0) + value
    current, best, threshold = 0.0, 0.0, float("-inf")
    for odds in sorted(gains):
        current += gains[odds]
        if current > best:
            best, threshold = current, odds
    return threshold
