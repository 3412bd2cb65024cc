"""The evaluation report: one HTML page that shows where a model is right, and where it is not.

It loads nothing and runs nothing, so that it can be mailed and printed.  Each section is a
function that yields lines of HTML; the numbers come from small functions that know no HTML.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from statistics import median_low

import numpy as np

from minibert.pages.charts import (
    Bar,
    Group,
    Line,
    Mark,
    bar_chart,
    line_chart,
    number,
    steps,
)
from minibert.pages.curves import (
    Bools,
    Floats,
    average_precision,
    calibration_bins,
    calibration_error,
    common_range,
    cut_steps,
    precision_recall,
    threshold_curve,
    wilson,
)
from minibert.pages.marking import CUT, LISTED, find, gold_spans, marked
from minibert.pages.page import figure, page, table
from minibert.squad.evaluation import Evaluation
from minibert.squad.files import SquadQuestion
from minibert.squad.metrics import Score, require, score_answers

TITLE = "Question answering: evaluation report"
SERIES = ("exact match", "F1")  # in the order of a Score

QUESTION_WORDS = {"what", "who", "whom", "whose", "when", "where", "why", "which", "how"}
KINDS = ["what", "who", "when", "where", "why", "which", "how many/much", "how", "other"]
ANSWER_BINS = [1, 2, 3, 4, 6, 11, 21]  # the shortest of each bin, in words
CONTEXT_BINS = [0, 50, 100, 150, 200, 300, 500, 1000]

MISTAKES = 20  # that are shown
LONGEST = 300  # characters of an answer that are shown

STYLE = """
nav a { margin-right: 1.2rem; white-space: nowrap }
.missing { padding: .6rem .9rem; background: var(--panel); border-left: 3px solid var(--rule) }
article { margin: 1.2rem 0; padding: .9rem 1.1rem; background: var(--panel); border-radius: .5rem;
  break-inside: avoid }
h3 { font-size: 1.05rem; margin: 0 0 .5rem }
.context { max-width: none; white-space: pre-wrap }
.cut { color: var(--muted) }
mark, ins { color: inherit; text-decoration: none; background: none;
  -webkit-print-color-adjust: exact; print-color-adjust: exact }
mark { background: var(--shade) }
ins { border-bottom: 3px solid var(--c1) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .6rem 0 0 }
dt { color: var(--muted); grid-column: 1 }
dd { margin: 0; grid-column: 2 }
"""


def render_report(evaluation: Evaluation, title: str | None = None) -> str:
    """Write the report on an evaluation.

    Args:
        evaluation: at least one question; sections without data say what would give them.
        title: heading of the page; None for a general one.

    Returns:
        A whole HTML page, of a size that hardly depends on the number of questions.

    Raises:
        InputError: there are no questions, some have no prediction, odds, text or probability, or
            their right answers are not known.
    """
    for values, what in (
        (evaluation.null_odds, "null odds"),
        (evaluation.best_texts, "best text"),
        (evaluation.probabilities, "probability"),
    ):
        if values is not None:
            require(evaluation.questions, values, what)
    scores = score_answers(evaluation.questions, evaluation.predictions, evaluation.f1)
    sections = [
        ("kinds", "Kinds of questions", kinds_section(evaluation, scores)),
        ("null", "No answer", null_section(evaluation)),
        ("calibration", "Calibration", calibration_section(evaluation, scores)),
        ("mistakes", "Mistakes", mistakes_section(evaluation, scores)),
    ]
    body = ["<nav>", *(f'<a href="#{key}">{name}</a>' for key, name, _ in sections), "</nav>"]
    body += ["<main>", *summary(evaluation, scores)]
    for key, name, lines in sections:
        body += [f'<section id="{key}">\n<h2>{name}</h2>', *lines, "</section>"]
    return page(title or TITLE, [*body, "</main>"], STYLE)


def missing(sentence: str) -> str:
    """What stands where data are missing."""
    return f'<p class="missing">{sentence}</p>'


# ---------------------------------------------------------------- SQuAD's numbers


def summary(evaluation: Evaluation, scores: Mapping[str, Score]) -> Iterator[str]:
    """What was measured, and SQuAD's numbers."""
    yield from table("What was measured", [(k, [str(v)]) for k, v in evaluation.about.items()])
    metrics = evaluation.metrics
    rows = {
        "all": ("total", "exact", "f1"),
        "answerable": ("HasAns_total", "HasAns_exact", "HasAns_f1"),
        "without answer": ("NoAns_total", "NoAns_exact", "NoAns_f1"),
    }
    if evaluation.null_odds is not None:
        rows["all, best thresholds"] = ("total", "best_exact", "best_f1")
    yield from table(
        "SQuAD’s numbers, in percent",
        [
            (name, [f"{metrics[n]:,.0f}", f"{metrics[exact]:.2f}", f"{metrics[f1]:.2f}"])
            for name, (n, exact, f1) in rows.items()
            if {n, exact, f1} <= metrics.keys()
        ],
        ["questions", "n", *SERIES],
    )
    yield "<p><b>Exact match</b> is the share of questions whose predicted text is one of the right"
    yield "answers, apart from capitals, punctuation, spaces and the words <i>a</i>, <i>an</i> and"
    yield "<i>the</i>. <b>F1</b> also counts an answer with a word too many or too few in part: it"
    yield "is the harmonic mean of two shares, of the predicted words that are right and of the"
    yield "right words that are predicted, for the best fitting of the right answers. Where the"
    yield "text holds no answer, both are 100 for “no answer” and 0 for everything else.</p>"
    if evaluation.f1 == "characters":
        yield "<p>Here the words that are compared are single characters where the script does not"
        yield "part words with spaces. Punctuation of every script is left out, and no article"
        yield "is.</p>"
    ours = 100 * math.fsum(score.exact for score in scores.values()) / len(scores)
    if abs(metrics.get("exact", ours) - ours) > 1e-6:
        yield f'<p class="note">The predictions as they are have an exact match of {ours:.2f}, and'
        yield "are what follows. The table has another number: it also takes predictions with null"
        yield "odds above its threshold as “no answer”.</p>"


# ---------------------------------------------------------------- kinds of questions


def kinds_section(evaluation: Evaluation, scores: Mapping[str, Score]) -> Iterator[str]:
    """Exact match and F1 by kinds of questions and texts."""

    def chart(
        by: str, kind: Callable[[SquadQuestion], str], kinds: Sequence[str], note: str
    ) -> str:
        # A question of no kind, "", is left out.
        groups = grouped(evaluation.questions, scores, kind, kinds)
        if not groups:
            return missing(f"No question here has an answer, so there is nothing by {by}.")
        bars = bar_chart(f"Exact match and F1 by {by}", SERIES, groups, " %")
        return figure(f"By {by}", bars, note)

    yield "<p>In percent, for the n questions of each kind. The thin lines are 95 % intervals by"
    yield "Wilson’s formula: few questions tell little. It is made for right or wrong; for F1,"
    yield "which also has values between, it is a little wider than needed.</p>"
    yield '<div class="charts">'
    yield chart(
        "question word",
        lambda question: question_word(question.question),
        KINDS,
        "The first of these words in the question, wherever it stands: “In which year …?” counts "
        "as which. Whom and whose count as who.",
    )
    yield chart(
        "length of the right answer",
        lambda question: bin_of(answer_length(question), ANSWER_BINS) if question.answers else "",
        bin_names(ANSWER_BINS),
        "In words, of several right answers the median; only questions with an answer.",
    )
    yield chart(
        "length of the context",
        lambda question: bin_of(len(question.context.split()), CONTEXT_BINS),
        bin_names(CONTEXT_BINS),
        "In words.",
    )
    yield chart(
        "whether there is an answer",
        lambda question: "answerable" if question.answerable else "no answer",
        ["answerable", "no answer"],
        "Without an answer, exact match and F1 are the same.",
    )
    yield "</div>"


def grouped(
    questions: Sequence[SquadQuestion],
    scores: Mapping[str, Score],
    kind: Callable[[SquadQuestion], str],
    kinds: Sequence[str],
) -> list[Group]:
    """Mean scores of the questions of each kind, in percent, for those kinds that occur."""
    found: dict[str, list[Score]] = {}
    for question in questions:
        found.setdefault(kind(question), []).append(scores[question.id])
    return [
        Group(name, len(some), [percent(values) for values in zip(*some, strict=True)])
        for name in kinds
        if (some := found.get(name))
    ]


def percent(values: Sequence[float]) -> Bar:
    """The mean of scores in percent, with its interval."""
    share = math.fsum(values) / len(values)
    low, high = wilson(share, len(values))
    return Bar(100 * share, 100 * low, 100 * high)


def question_word(question: str) -> str:
    """The first question word in a question, as one of KINDS.

    Example:
        >>> question_word("In what year?"), question_word("On how many days?")
        ('what', 'how many/much')
    """
    words = re.findall(r"\w+", question.lower())
    for word, following in pairwise([*words, ""]):
        if word == "how" and following in ("many", "much"):
            return "how many/much"
        if word in QUESTION_WORDS:
            return "who" if word in ("whom", "whose") else word
    return "other"


def answer_length(question: SquadQuestion) -> int:
    """Length of the right answer in words; of several the median."""
    return median_low(len(gold.text.split()) for gold in question.answers)


def bin_of(length: int, bins: Sequence[int]) -> str:
    """The name of the bin of a length; what is shorter than the first is in the first."""
    return bin_names(bins)[max(bisect_right(bins, length) - 1, 0)]


def bin_names(bins: Sequence[int]) -> list[str]:
    """What bins hold, from the smallest length of each.

    Example:
        >>> bin_names([1, 2, 4])
        ['1', '2 to 3', '4 or more']
    """
    names = [str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in pairwise(bins)]
    return [*names, f"{bins[-1]} or more"]


# ---------------------------------------------------------------- no answer


def null_section(evaluation: Evaluation) -> Iterator[str]:
    """How well the null odds tell which questions have no answer."""
    if evaluation.null_odds is None:
        yield missing(
            "This needs null odds, which say how unanswerable each question looks: give them with "
            "<code>--null-odds</code>, or run a model."
        )
        return
    odds = np.array([evaluation.null_odds[q.id] for q in evaluation.questions], np.float64)
    unanswerable = np.array([not question.answerable for question in evaluation.questions])
    used = evaluation.null_threshold
    yield "<p>The null odds of a question are the score of “no answer” minus that of the best"
    yield "answer. Where they are above a threshold, the model says “no answer”: the lower the"
    yield "threshold, the more often.</p>"
    yield '<div class="charts">'
    if unanswerable.all() or not unanswerable.any():
        yield missing(
            "A precision-recall curve needs questions with an answer and others without, as SQuAD "
            f"2.0 has them; here, {'none' if unanswerable.all() else 'all'} can be answered."
        )
    else:
        yield recall_figure(odds, unanswerable, used)
    yield threshold_figure(evaluation, odds, used)
    yield "</div>"


def recall_figure(odds: Floats, unanswerable: Bools, used: float | None) -> str:
    """The precision-recall curve; there are questions of both kinds."""
    recall, precision = precision_recall(odds, unanswerable)
    share = float(unanswerable.mean())
    # The precision at a recall holds back to the recall before it.
    corners = steps(zip(recall[::-1].tolist(), precision[::-1].tolist(), strict=True))
    lines = [
        Line("by null odds", [*corners, (0.0, float(precision[0]))]),
        Line(f"by chance: {share:.3f}", [(0.0, share), (1.0, share)], 3, dashed=True),
    ]
    marks = []
    note = f"Average precision, the area under the line: {average_precision(recall, precision):.3f}"
    if used is not None and (chosen := odds > used).any():
        found, right = float(chosen[unanswerable].mean()), float(unanswerable[chosen].mean())
        tip = f"at the threshold used, {number(used)}: precision {right:.3f}, recall {found:.3f}"
        marks.append(Mark(found, right, tip, 1, 6))
        note += f". The dot is {tip}"
    chart = line_chart(
        "Precision and recall of finding unanswerable questions",
        f"{note}.",
        lines,
        marks,
        x_label="recall: found, of all that are unanswerable",
        y_label="precision: unanswerable, of all that are found",
    )
    return figure("Finding the unanswerable questions", chart, f"{note}.")


def threshold_figure(evaluation: Evaluation, odds: Floats, used: float | None) -> str:
    """Exact match and F1 for every threshold."""
    known = evaluation.best_texts
    answers = evaluation.predictions if known is None else known
    scores = score_answers(evaluation.questions, answers, evaluation.f1)
    silent = np.array([float(not question.answerable) for question in evaluation.questions])
    low, high = common_range(odds)
    lines, marks, notes = [], [], []
    for colour, name in enumerate(SERIES):
        answered = np.array([scores[question.id][colour] for question in evaluation.questions])
        thresholds, values = threshold_curve(odds, answered, silent)
        lines.append(Line(name, cut_steps(thresholds, values, low, high), colour))
        best = int(np.argmax(values))
        tip = f"best {name}: {values[best]:.2f} at {number(thresholds[best], 4)}"
        if used is not None:
            value = values[np.searchsorted(thresholds, used, "right") - 1]
            tip += f" ({value:.2f} at the threshold used)"
        marks.append(Mark(float(thresholds[best]), float(values[best]), tip, colour))
        notes.append(tip)
    shown = [y for line in lines for _, y in line.points]
    bottom, top = math.floor(min(shown) / 10) * 10, math.floor(max(shown) / 10) * 10 + 10
    bottom, top = min(bottom, 90), min(top, 100)
    if used is not None:
        ends = [(used, float(bottom)), (used, float(top))]
        lines.append(Line(f"threshold used: {number(used)}", ends, 3, dashed=True))
    note = f"Dots: {'; '.join(notes)}. A threshold chosen on the questions it is measured on looks "
    note += "a little too good."
    if silences := sum(not answers[question.id] for question in evaluation.questions):
        note += (
            f" Of {silences:,} questions no answer is known but “no answer”, so the lines are too "
        )
        note += "low on the right; <code>--nbest</code> gives the best answers."
    chart = line_chart(
        "Exact match and F1 for every threshold for “no answer”",
        f"{'; '.join(notes)}.",
        lines,
        marks,
        x_label="threshold: null odds above it are “no answer”",
        y_label="percent of all questions",
        x_range=(low, high),
        y_range=(bottom, top),
    )
    return figure("Choosing the threshold", chart, note)


# ---------------------------------------------------------------- calibration


def calibration_section(evaluation: Evaluation, scores: Mapping[str, Score]) -> Iterator[str]:
    """Whether predictions are right as often as their probabilities say."""
    if evaluation.probabilities is None:
        yield missing(
            "This needs the probability of each prediction: give the best answers with "
            "<code>--nbest</code>, or run a model."
        )
        return
    ids = [question.id for question in evaluation.questions]
    probabilities = np.array([evaluation.probabilities[key] for key in ids], np.float64)
    exact = np.array([scores[key].exact for key in ids])
    bins = calibration_bins(probabilities, exact)
    error = calibration_error(bins)
    most = max(each.size for each in bins)
    marks = []
    for each in bins:
        tip = f"probability {each.probability:.3f}: {each.exact:.3f} exact, n = {each.size:,}"
        radius = 3 + 9 * math.sqrt(each.size / most)
        low, high = wilson(each.exact, each.size)
        marks.append(Mark(each.probability, each.exact, tip, 0, radius, low, high))
    lines = [
        Line("right as often as it says", [(0.0, 0.0), (1.0, 1.0)], 3, dashed=True),
        Line("predictions", [(each.probability, each.exact) for each in bins]),
    ]
    chart = line_chart(
        "Share of exact matches by the probability of the prediction",
        "; ".join(mark.tip for mark in marks) + ".",
        lines,
        marks,
        x_label="probability of the prediction",
        y_label="share of exact matches",
    )
    yield "<p>Does a prediction with a probability of 0.8 turn out right in 8 of 10 cases? Below"
    yield "the diagonal the model is too sure of itself, above it too modest. Each dot is a tenth"
    yield "of the scale of probabilities; the larger it is, the more predictions it stands for. The"
    yield "<b>expected calibration error</b>, their mean distance from the diagonal, is"
    yield f"{error:.3f} (0 is perfect).</p>"
    note = "Thin lines: 95 % intervals by Wilson’s formula. “No answer” is a prediction, too."
    yield f'<div class="charts">\n{figure("Calibration of the predictions", chart, note)}\n</div>'


# ---------------------------------------------------------------- mistakes


def mistakes_section(evaluation: Evaluation, scores: Mapping[str, Score]) -> Iterator[str]:
    """The wrong predictions of which the model was most sure."""
    wrong = [question for question in evaluation.questions if not scores[question.id].exact]
    if not wrong:
        yield "<p>There are none: every prediction is an exact match.</p>"
        return
    sure, name, order = evaluation.probabilities, "probability", "the highest probability first"
    if sure is None:
        sure, name, order = evaluation.null_odds, "null odds", "the null odds farthest from 0 first"
    if sure is None:
        order = "in the order of the file: no probabilities or null odds say how sure the model was"
    else:
        known = sure
        wrong.sort(key=lambda question: -abs(known[question.id]))
    yield f"<p>{len(wrong):,} of {len(scores):,} predictions are not an exact match. Below are at"
    yield f"most {MISTAKES}, {order}. Some are as good as the right answer; some right"
    yield "answers are wrong. In the text: <mark>right answer</mark>, <ins>prediction</ins>,"
    yield "<mark><ins>both</ins></mark>.</p>"
    for question in wrong[:MISTAKES]:
        details = {"F1": f"{100 * scores[question.id].f1:.0f} %"}
        if sure is not None:
            details[name] = number(sure[question.id], 4)
        yield from mistake(question, evaluation, details)


def mistake(
    question: SquadQuestion, evaluation: Evaluation, details: Mapping[str, str]
) -> Iterator[str]:
    """A question with its context, prediction and right answers."""
    predicted = evaluation.predictions[question.id]
    span = None
    if predicted:
        span = evaluation.spans.get(question.id) or find(question.context, predicted)
    answers = list(dict.fromkeys(gold.text for gold in question.answers))
    yield f'<article>\n<h3 dir="auto">{escape(question.question) or "(an empty question)"}</h3>'
    text = marked(question.context, gold_spans(question), span)
    yield f'<p class="context" dir="auto">{text}</p>\n<dl>'
    lost = " (not found in the text)" if predicted and span is None else ""
    yield f"<dt>predicted</dt><dd>{quoted(predicted)}{lost}</dd>\n<dt>right</dt>"
    yield from (f"<dd>{quoted(answer)}</dd>" for answer in answers[:LISTED] or [""])
    if len(answers) > LISTED:
        yield f"<dd>and {len(answers) - LISTED} more</dd>"
    yield from (f"<dt>{name}</dt><dd>{value}</dd>" for name, value in details.items())
    if question.title:
        yield f"<dt>article</dt><dd><bdi>{escape(question.title)}</bdi></dd>"
    yield "</dl>\n</article>"


def quoted(answer: str) -> str:
    """An answer as HTML, cut if it is very long."""
    if not answer:
        return "no answer"
    return f"“<bdi>{escape(answer[:LONGEST])}</bdi>”" + CUT * (len(answer) > LONGEST)
