import itertools
import math
import random
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import load, needs_browser
from hypothesis import given
from hypothesis import strategies as st

from minibert.errors import InputError
from minibert.pages import marking, report
from minibert.pages.report import render_report
from minibert.squad.evaluation import Evaluation
from minibert.squad.files import Gold, SquadQuestion
from minibert.squad.metrics import score_answers, squad_evaluate, tune_threshold

HOSTILE = [
    "<script>alert('1')</script>",
    "</title></style><img src=x onerror=alert(1)>",
    "a & b &amp; c",
    "\"double\" and 'single' quotes",
    "👩‍👩‍👧 🦊",
    "‏מי כתב את זה? \u202e",
    "]]> --> <!-- <svg>",
]
WORDS = "the red fox ate a small house In 1990, Who which Paris. & < > 🦊 שלום".split()
TAGS = set(
    "html head meta title link style body h1 h2 h3 nav a main section p b i code table caption "
    "thead tbody tr th td div figure figcaption svg desc text line rect polyline circle article "
    "span mark ins dl dt dd bdi".split()
)
VOID = {"meta", "link"}


def make(count=40, seed=0, kinds=(True, False), **changes):
    """A random evaluation with everything in it."""
    random_ = random.Random(seed)
    questions, predictions, best, spans = [], {}, {}, {}
    for number in range(count):
        words = random_.choices(WORDS, k=random_.choice([3, 30, 300]))
        context = " ".join(words)
        golds = []
        for _ in range(random_.randint(1, 3) if random_.choice(kinds) else 0):
            begin = random_.randrange(len(words))
            text = " ".join(words[begin : begin + random_.randint(1, 4)])
            start = len(" ".join(words[:begin])) + (begin > 0)
            golds.append(Gold(text, random_.choice([start, None, 10**6])))
        head = random_.choice(["What", "In how many", "how", "Whose", ""])
        question = SquadQuestion(
            f"q{number}", f"{head} fox?", context, tuple(golds), 0, random_.choice(["", "A & B"])
        )
        questions.append(question)
        start = random_.randrange(len(context) - 2)
        span = (start, start + random_.randint(1, 30))
        best[question.id] = (
            golds[0].text if golds and random_.random() < 0.5 else context[slice(*span)]
        )
        predictions[question.id] = random_.choice([best[question.id], ""])
        if random_.random() < 0.5 and predictions[question.id] == context[slice(*span)]:
            spans[question.id] = span
    odds = {q.id: random_.choice([random_.gauss(0, 4), 0.0]) for q in questions}
    evaluation = Evaluation(
        questions,
        predictions,
        squad_evaluate(questions, predictions, odds, math.inf),
        odds,
        best,
        {q.id: random_.random() for q in questions},
        spans,
        {"model": "some <model>", "dtype": "float32"},
        0.5,
    )
    return replace(evaluation, **changes)


class Page(HTMLParser):
    """A page taken apart, with every error in its nesting or its attributes."""

    def __init__(self, html):
        super().__init__()
        self.open, self.errors, self.tags, self.ids = [], [], set(), []
        self.texts = []
        self.feed(html)
        self.close()
        self.errors += [f"{tag} is never closed" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        names = [name for name, _ in attributes]
        self.errors += [f"{tag}: {name}" for name in names if name.startswith("on")]
        self.errors += [f"{tag}: twice {name}" for name in set(names) if names.count(name) > 1]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> closes something else at {self.getpos()}")

    def handle_comment(self, data):
        self.errors.append(f"a comment {data!r}")

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def check(html):
    """Check what is so for every report, and return its text."""
    page = Page(html)
    assert page.errors == []
    assert page.tags <= TAGS
    assert len(set(page.ids)) == len(page.ids)
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)
        assert not re.search(r"\b(nan|inf)\b", svg)
    html.encode("utf-8")
    return "".join(page.texts)


def plain(html):
    return unescape(re.sub(r"<[^>]*>", "", html))


def tips(html, tag):
    """What the bars or dots say under the pointer."""
    found = re.findall(rf"<{tag} [^>]*><title>(.*?)</title>", html)
    return [unescape(tip) for tip in found]


# ---------------------------------------------------------------- the page


def test_the_page_shows_everything_that_was_asked_for():
    html = render_report(make(), "My & title")
    text = check(html)
    assert "<title>My &amp; title</title>" in html
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Kinds of questions",
        "No answer",
        "Calibration",
        "Mistakes",
    ]
    assert len(re.findall("<svg", html)) == 7
    assert 'class="missing"' not in html
    for words in ("some <model>", "Exact match is", "F1 also", "Average precision", "diagonal"):
        assert words in text


def test_the_table_shows_squads_numbers():
    evaluation = make()
    rows = re.findall(r"<tr>(.*?)</tr>", render_report(evaluation))
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    metrics = evaluation.metrics
    for name, prefix in (("all", ""), ("answerable", "HasAns_"), ("without answer", "NoAns_")):
        wanted = [f"{metrics[prefix + 'total']}"]
        wanted += [f"{metrics[prefix + key]:.2f}" for key in ("exact", "f1")]
        assert [name, *wanted] in cells
    best = [f"{metrics[key]:.2f}" for key in ("best_exact", "best_f1")]
    assert ["all, best thresholds", str(metrics["total"]), *best] in cells


def test_a_table_of_other_predictions_than_those_shown_says_so():
    evaluation = make()
    other = squad_evaluate(
        evaluation.questions, evaluation.predictions, evaluation.null_odds, -math.inf
    )
    assert "The table has another number" not in render_report(evaluation)
    assert "The table has another number" in render_report(replace(evaluation, metrics=other))


def test_nothing_can_be_loaded_or_run():
    html = render_report(make())
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html
    assert not re.search(r"http:|https:|//|src=|url\(|@import|<script|\son\w+=", html)
    assert re.findall(r'href="([^#].*?)"', html) == ["data:,"]


def test_hostile_texts_are_shown_as_they_are():
    evaluation = make(len(HOSTILE))
    questions = [
        replace(
            question, question=text, context=f"x {text} y", answers=(Gold(text, 2),), title=text
        )
        for question, text in zip(evaluation.questions, HOSTILE, strict=True)
    ]
    predictions = {q.id: f"x {q.title}" for q in questions}
    about = {text: text for text in HOSTILE}
    html = render_report(
        replace(evaluation, questions=questions, predictions=predictions, about=about, spans={}),
        HOSTILE[1],
    )
    text = check(html)
    for each in HOSTILE:
        # Twice in the facts; as question, context, prediction, right answer and title.
        assert text.count(each) == 2 + 5 + 2 * (each == HOSTILE[1])


def test_half_a_surrogate_pair_can_be_written():
    evaluation = make(1)
    question = replace(evaluation.questions[0], question="\ud83e", context="\ud83e \udd8a")
    check(render_report(replace(evaluation, questions=[question])))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kinds", [(True, False), (True,), (False,)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 30])
def test_random_evaluations_are_rendered(count, kinds, seed):
    check(render_report(make(count, seed, kinds)))


@pytest.mark.parametrize(
    "missing", ["null_odds", "best_texts", "probabilities", "spans", "about", "metrics"]
)
def test_a_report_needs_no_more_than_predictions(missing):
    empty = None if missing in ("null_odds", "best_texts", "probabilities") else {}
    check(render_report(make(**{missing: empty})))


def test_a_section_without_data_says_what_would_give_them():
    evaluation = make()
    bare = Evaluation(evaluation.questions, evaluation.predictions, evaluation.metrics)
    html = render_report(bare)
    check(html)
    null, calibration = re.findall(r'<p class="missing">(.*?)</p>', html)
    assert "null odds" in null
    assert "--null-odds" in null
    assert "run a model" in null
    assert "probability" in calibration
    assert "--nbest" in calibration
    assert "best thresholds" not in html


def test_the_threshold_figure_says_how_many_best_answers_are_not_known():
    evaluation = make()
    predictions = evaluation.predictions
    unknown = sum(not text for text in predictions.values())
    for best in (None, predictions):
        text = plain(render_report(replace(evaluation, best_texts=best)))
        assert f"Of {unknown} questions no answer is known but “no answer”" in text
    assert all(evaluation.best_texts.values())
    assert "--nbest" not in render_report(evaluation)


@pytest.mark.parametrize(
    "odds",
    [
        [0.0],
        [math.inf],
        [-math.inf],
        [math.inf, -math.inf, 1.0],
        [1e308, -1e308],
        [5e-324, 0.0],
        [1e17, 1e17 + 16],
        [7, -0.0],
    ],
    ids=str,
)
@pytest.mark.parametrize("threshold", [0.0, math.inf, -math.inf, 1e300, None])
def test_strange_odds_and_thresholds_are_rendered(odds, threshold):
    evaluation = make(12, null_threshold=threshold)
    null_odds = {q.id: odds[n % len(odds)] for n, q in enumerate(evaluation.questions)}
    check(render_report(replace(evaluation, null_odds=null_odds)))


def test_empty_questions_and_answers_are_rendered():
    evaluation = make(2)
    questions = [
        replace(evaluation.questions[0], question="", context="", answers=(Gold("", 0), Gold("a"))),
        replace(evaluation.questions[1], question="?", answers=()),
    ]
    html = render_report(
        replace(evaluation, questions=questions, predictions={"q0": "b", "q1": "b"})
    )
    assert "(an empty question)" in check(html)


@pytest.mark.parametrize("what", ["predictions", "null_odds", "best_texts", "probabilities"])
def test_a_question_left_out_is_refused(what):
    evaluation = make()
    values = {key: v for key, v in getattr(evaluation, what).items() if key != "q7"}
    with pytest.raises(InputError, match="'q7'"):
        render_report(replace(evaluation, **{what: values}))


def test_no_questions_are_refused():
    with pytest.raises(InputError, match="no questions"):
        render_report(make(0, predictions={}, metrics={}))


@pytest.mark.slow
def test_the_page_stays_small_for_many_questions():
    random_ = np.random.default_rng(0)
    count = 40_000
    golds = (Gold("red", 4),)
    questions = [
        SquadQuestion(f"q{n}", "Which fox?", "The red fox", golds * (n % 2), 0)
        for n in range(count)
    ]
    predictions = {f"q{n}": ("red", "fox", "")[n % 3] for n in range(count)}
    odds = dict(zip(predictions, random_.normal(0, 5, count).tolist(), strict=True))
    sure = dict(zip(predictions, random_.random(count).tolist(), strict=True))
    html = render_report(Evaluation(questions, predictions, {}, odds, predictions, sure))
    check(html)
    assert len(html.encode()) < 100_000


@pytest.mark.slow
def test_the_page_stays_small_for_long_texts():
    long = "word " * 10_000
    answers = tuple(Gold(f"{n} {long}", n) for n in range(15))
    questions = [SquadQuestion(f"q{n}", "Which?", long, answers, 0) for n in range(3)]
    html = render_report(Evaluation(questions, {q.id: long[5:] for q in questions}, {}))
    assert "and 5 more" in check(html)
    assert len(html.encode()) < 60_000


# ---------------------------------------------------------------- kinds of questions


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What is it?", "what"),
        ("In WHICH year?", "which"),
        ("Who's there?", "who"),
        ("To whom was it sent?", "who"),
        ("Whose is it?", "who"),
        ("It was built when?", "when"),
        ("Where, and when?", "where"),
        ("why", "why"),
        ("How many are there?", "how many/much"),
        ("By how much?", "how many/much"),
        ("How long is it?", "how"),
        ("how", "how"),
        ("However, name one.", "other"),
        ("Whatever?", "other"),
        ("?", "other"),
        ("", "other"),
    ],
)
def test_a_question_is_of_the_kind_of_its_first_question_word(question, kind):
    assert report.question_word(question) == kind
    assert kind in report.KINDS


@pytest.mark.parametrize(
    "bins", [report.ANSWER_BINS, report.CONTEXT_BINS], ids=["answer", "context"]
)
def test_every_length_is_in_the_bin_that_names_it(bins):
    for length in range(bins[0], 2000):
        first, *last = map(int, re.findall(r"\d+", report.bin_of(length, bins)))
        if "more" in report.bin_of(length, bins):
            assert first == bins[-1] <= length
        else:
            assert first <= length <= (last or [first])[0]


def test_an_empty_right_answer_is_among_the_shortest():
    question = SquadQuestion("q", "", "", (Gold(""),), 0)
    assert report.bin_of(report.answer_length(question), report.ANSWER_BINS) == "1"


@pytest.mark.parametrize(("lengths", "median"), [([3], 3), ([1, 9, 2], 2), ([4, 2], 2)])
def test_of_several_right_answers_the_median_length_counts(lengths, median):
    golds = tuple(Gold("word  " * length) for length in lengths)
    assert report.answer_length(SquadQuestion("q", "", "", golds, 0)) == median


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_the_edges_of_an_interval_are_the_shares_that_just_allow_what_was_seen(count, share):
    low, high = report.wilson(share, count)
    assert 0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1
    for edge in (low, high):
        # A share of `edge` spreads so much in `count` draws; 1.96 of that is what was seen.
        spread = math.sqrt(edge * (1 - edge) / count)
        assert abs(share - edge) == pytest.approx(1.959964 * spread, abs=1e-7)


def test_the_bars_are_the_means_of_their_questions():
    evaluation = make(300)
    scores = score_answers(evaluation.questions, evaluation.predictions)
    kinds = {
        "what": lambda q: q.question.startswith("What"),
        "who": lambda q: q.question.startswith("Whose"),
        "how many/much": lambda q: q.question.startswith("In how many"),
        "how": lambda q: q.question.startswith("how"),
        "other": lambda q: q.question == " fox?",
        "answerable": lambda q: q.answers,
        "no answer": lambda q: not q.answers,
        "0 to 49": lambda q: len(q.context.split()) < 50,
        "300 to 499": lambda q: len(q.context.split()) >= 300,
    }
    shown = tips(render_report(evaluation), "rect")
    for name, belongs in kinds.items():
        some = [scores[q.id] for q in evaluation.questions if belongs(q)]
        for series in (0, 1):
            mean = 100 * sum(score[series] for score in some) / len(some)
            start = f"{name}: {('exact match', 'F1')[series]} {mean:.1f} %, "
            assert sum(tip.startswith(start) for tip in shown) == 1, start
        assert f"n = {len(some)}</text>" in render_report(evaluation)
    order = [tip.split(":")[0] for tip in shown[::2]]
    assert order[:5] == ["what", "who", "how many/much", "how", "other"]


# ---------------------------------------------------------------- no answer

some_odds = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.inf, -math.inf]))
cases = st.lists(st.tuples(some_odds, st.booleans()), min_size=1, max_size=12)


@given(cases.filter(lambda case: any(positive for _, positive in case)))
def test_the_precision_recall_curve_is_that_of_every_threshold(case):
    odds, unanswerable = map(np.array, zip(*case, strict=True))
    recall, precision = report.precision_recall(odds, unanswerable)
    wanted = []
    for value in sorted(set(odds), reverse=True):
        chosen = [positive for odd, positive in case if odd >= value]
        wanted.append((sum(chosen) / unanswerable.sum(), sum(chosen) / len(chosen)))
    np.testing.assert_allclose(np.transpose([recall, precision]), wanted)
    before = [0.0, *(r for r, _ in wanted)]
    area = sum((r - b) * p for b, (r, p) in zip(before, wanted, strict=False))
    assert report.average_precision(recall, precision) == pytest.approx(area)


def test_average_precision_is_1_for_perfect_odds_and_the_share_for_equal_ones():
    unanswerable = np.array([True, False, True, False, False])
    for odds, area in ((unanswerable * 1.0, 1.0), (np.zeros(5), 0.4)):
        curve = report.precision_recall(odds, unanswerable)
        assert report.average_precision(*curve) == pytest.approx(area)


def test_the_drawn_curve_is_the_one_whose_area_is_stated():
    evaluation = make(60, seed=3)
    html = render_report(evaluation)
    stated = float(re.search(r"area under the line: (\d\.\d+)", plain(html))[1])
    (svg,) = re.findall(r"<svg(?:(?!</svg>).)*by chance.*?</svg>", html, re.DOTALL)
    line, chance = re.findall(r'points="(.*?)"', svg)
    corners = [tuple(map(float, pair.split(","))) for pair in line.split()]
    (left, _), (right, _) = [tuple(map(float, pair.split(","))) for pair in chance.split()]
    grid = re.findall(r'<line class="grid" x1="(.*?)" y1="(.*?)" x2="(.*?)" y2="(.*?)"', svg)
    ys = [float(y1) for x1, y1, x2, y2 in grid if x1 != x2]
    bottom, top = max(ys), min(ys)
    area = sum((b[0] - a[0]) * (bottom - b[1]) for a, b in itertools.pairwise(corners[::-1]))
    assert area / (right - left) / (bottom - top) == pytest.approx(stated, abs=3e-3)


@given(
    st.lists(st.tuples(some_odds, st.integers(0, 4), st.booleans()), min_size=1, max_size=12),
    some_odds,
)
def test_the_threshold_curve_is_what_squad_evaluate_gives_at_every_threshold(case, between):
    texts = ["red fox", "red", "fox", "house", ""]
    golds = (Gold("red fox"),)
    questions = [
        SquadQuestion(f"q{n}", "", "red fox house", golds * answerable, 0)
        for n, (_, _, answerable) in enumerate(case)
    ]
    answers = {f"q{n}": texts[text] for n, (_, text, _) in enumerate(case)}
    odds = {f"q{n}": odd for n, (odd, _, _) in enumerate(case)}
    scores = score_answers(questions, answers)
    for series, name in enumerate(("exact", "f1")):
        answered = np.array([score[series] for score in scores.values()])
        silent = np.array([float(not question.answerable) for question in questions])
        curve = report.threshold_curve(np.array(list(odds.values())), answered, silent)
        assert curve[0][0] == -math.inf
        for threshold in {*curve[0].tolist(), between, between + 0.5}:
            wanted = squad_evaluate(questions, answers, odds, threshold)[name]
            at = np.searchsorted(curve[0], threshold, "right") - 1
            assert curve[1][at] == pytest.approx(wanted), threshold
        if min(odds.values()) > -math.inf:
            some = {key: score[series] for key, score in scores.items()}
            best = tune_threshold(questions, answers, some, odds)
            assert curve[0][np.argmax(np.round(curve[1], 9))] == best


@given(
    st.lists(st.integers(-5, 5), min_size=1, unique=True).map(sorted),
    st.floats(-6, 6) | st.integers(-6, 6),
    st.floats(0.1, 5) | st.integers(1, 5),
)
def test_a_cut_staircase_is_the_staircase_within_the_cut(inner, low, width):
    xs = np.array([-math.inf, *inner])
    ys = np.arange(len(xs)) ** 2.0
    corners = report.cut_steps(xs, ys, low, low + width)
    assert corners[0] == (low, ys[np.searchsorted(xs, low, "right") - 1])
    assert corners[-1][0] == low + width
    for x in np.linspace(low, low + width, 23):
        wanted = ys[np.searchsorted(xs, x, "right") - 1]
        assert wanted == [b for a, b in corners if a <= x][-1]


@pytest.mark.parametrize("used", [0.5, 0.0])  # half of the odds are 0
def test_the_threshold_figure_states_the_best_threshold_and_the_one_used(used):
    evaluation = make(200, null_threshold=used)
    at = {}
    for threshold in [*evaluation.null_odds.values(), used]:
        numbers = squad_evaluate(
            evaluation.questions, evaluation.best_texts, evaluation.null_odds, threshold
        )
        at[threshold] = numbers["exact"]
    dots = tips(render_report(evaluation), "circle")
    (stated,) = [tip for tip in dots if tip.startswith("best exact match")]
    best, place, here = re.fullmatch(
        r"best exact match: (\S+) at (\S+) \((\S+) at the threshold used\)", stated
    ).groups()
    assert best == f"{max(at.values()):.2f}"
    assert f"{at[min(at, key=lambda t: abs(t - float(place.replace('−', '-'))))]:.2f}" == best
    assert here == f"{at[used]:.2f}"


@given(st.lists(st.floats(-1e308, 1e308) | some_odds, min_size=1))
def test_outliers_do_not_squash_the_threshold_axis(odds):
    low, high = report.common_range(np.array([*odds, *np.linspace(-1, 1, 200 * len(odds))]))
    assert -1.01 <= low < high <= 1.01
    low, high = report.common_range(np.array(odds))
    assert math.isfinite(high - low)
    assert low < high


# ---------------------------------------------------------------- calibration


@given(
    st.lists(
        st.tuples(st.floats(0, 1) | st.integers(0, 10).map(lambda n: n / 10), st.booleans()),
        min_size=1,
    )
)
def test_calibration_bins_are_tenths_of_the_probabilities(case):
    probabilities, exact = (np.array(values, float) for values in zip(*case, strict=True))
    wanted = []
    for tenth in range(10):
        some = [
            (p, e) for p, e in case if tenth / 10 <= p < (tenth + 1) / 10 or (tenth == 9 and p == 1)
        ]
        if some:
            mean, right = (sum(values) / len(some) for values in zip(*some, strict=True))
            wanted.append((len(some), pytest.approx(mean), pytest.approx(right)))
    bins = report.calibration_bins(probabilities, exact)
    assert bins == wanted
    error = sum(
        n * abs(each.probability - each.exact)
        for n, each in zip((w[0] for w in wanted), bins, strict=True)
    )
    assert report.calibration_error(bins) == pytest.approx(error / len(case))


def test_the_calibration_curve_shows_its_bins_and_its_error():
    evaluation = make(200)
    scores = score_answers(evaluation.questions, evaluation.predictions)
    pairs = [(evaluation.probabilities[key], score.exact) for key, score in scores.items()]
    last = [(p, e) for p, e in pairs if p >= 0.9]
    p, e = (sum(values) / len(last) for values in zip(*last, strict=True))
    html = render_report(evaluation)
    assert f"probability {p:.3f}: {e:.3f} exact, n = {len(last)}" in tips(html, "circle")
    bins = report.calibration_bins(*map(np.array, zip(*pairs, strict=True)))
    assert f"diagonal, is\n{report.calibration_error(bins):.3f}" in plain(html)


# ---------------------------------------------------------------- mistakes


def articles(html):
    return re.findall(r"<article>.*?</article>", html, re.DOTALL)


@pytest.mark.parametrize("sure", ["probabilities", "null_odds", None])
def test_the_twenty_most_confident_mistakes_are_shown(sure):
    evaluation = make(150)
    questions = [replace(q, question=f"Which {q.id}?") for q in evaluation.questions]
    changes = {"probabilities": None, "null_odds": None}
    changes.pop(sure, None)
    evaluation = replace(evaluation, questions=questions, **changes)
    scores = score_answers(questions, evaluation.predictions)
    wrong = [key for key, score in scores.items() if score.exact == 0]
    if sure:
        wrong.sort(key=lambda key: abs(getattr(evaluation, sure)[key]), reverse=True)
    html = render_report(evaluation)
    shown = re.findall(r"<h3[^>]*>Which (.*?)\?</h3>", html)
    assert shown == wrong[:20]
    assert f"{len(wrong)} of 150 predictions" in plain(html)
    order = {"probabilities": "highest probability", "null_odds": "farthest from 0"}
    assert order.get(sure, "in the order of the file") in plain(html)


def test_a_mistake_shows_the_prediction_and_the_right_answers():
    evaluation = make(60)
    questions = [replace(question, question=question.id) for question in evaluation.questions]
    wanted = {question.id: question for question in questions}
    shown = articles(render_report(replace(evaluation, questions=questions)))
    for article in shown:
        found = wanted[re.search(r"<h3[^>]*>(.*?)</h3>", article)[1]]
        context = re.search(r'class="context"[^>]*>(.*?)</p>', article, re.DOTALL)[1]
        assert marking.CUT in context or plain(context) == found.context
        terms = re.findall(r"<d[td]>(.*?)</d[td]>", article, re.DOTALL)
        text = plain(terms[1])
        predicted = evaluation.predictions[found.id]
        assert text == (f"“{predicted}”" if predicted else "no answer")
        golds = [f"“{gold.text}”" for gold in found.answers] or ["no answer"]
        assert {plain(term) for term in terms} >= set(golds)
    assert len(shown) == 20


def test_no_mistakes_are_no_problem():
    evaluation = make(5, kinds=(False,))
    html = render_report(replace(evaluation, predictions=dict.fromkeys(evaluation.predictions, "")))
    assert "every prediction is an exact match" in check(html)


def test_a_prediction_without_a_place_is_searched_and_may_be_missing():
    question = SquadQuestion("q", "Who?", "It is the  red\nfox.", (Gold("It", 0),), 0)

    def shown(text, spans=None):
        (article,) = articles(
            render_report(Evaluation([question], {"q": text}, {}, spans=spans or {}))
        )
        return article

    assert "<ins>red\nfox</ins>" in shown("red fox")
    assert "<ins>fox</ins>" in shown("anything", {"q": (15, 18)})
    assert "<ins>" not in shown("blue")
    assert "not found in the text" in shown("blue")
    assert "<ins>" not in shown("")
    assert "<ins>" not in shown("  ")


@pytest.mark.parametrize("start", [None, 3, 0, 99])
def test_a_right_answer_is_where_the_file_says_or_where_it_can_be_found(start):
    question = SquadQuestion("q", "", "no fox, no fox", (Gold("fox", start), Gold("wolf", 0)), 0)
    assert report.gold_spans(question) == [(3, 6)]
    second = replace(question, answers=(Gold("fox", 11), Gold("fox", 11)))
    assert report.gold_spans(second) == [(11, 14)]


@st.composite
def marked_texts(draw, times=(1, 1, 50)):
    context = "".join(
        draw(st.lists(st.sampled_from([*"ab <>&\"' \n", "שלום", "🦊", "word "]), max_size=40))
    )
    context *= draw(st.sampled_from(times))
    places = st.integers(0, len(context))
    spans = st.tuples(places, places).map(sorted).filter(lambda span: span[0] < span[1]).map(tuple)
    if not context:
        return context, [], None
    return context, draw(st.lists(spans, max_size=4)), draw(st.none() | spans)


class Marks(HTMLParser):
    """The characters of a marked text, each with the elements that it stands in."""

    def __init__(self, html):
        super().__init__()
        self.open, self.found = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.found += [(character, set(self.open)) for character in data]


def belongs(golds, predicted, at):
    marks = {"mark"} if any(a <= at < b for a, b in golds) else set()
    return marks | ({"ins"} if predicted and predicted[0] <= at < predicted[1] else set())


@given(marked_texts())
def test_marks_are_where_the_spans_are_and_the_text_is_the_context(case):
    context, golds, predicted = case
    html = report.marked(context, golds, predicted)
    parts = marking.excerpts(context, [*golds, *[predicted] * (predicted is not None)])
    kept = [at for begin, end in parts for at in range(begin, end)]
    if len(context) <= marking.WHOLE:
        assert kept == list(range(len(context)))
    shown = Marks(html.replace(marking.CUT, "")).found
    assert shown == [(context[at], belongs(golds, predicted, at)) for at in kept]
    edges = [0, *(edge for part in parts for edge in part), len(context)]
    gaps = sum(a < b for a, b in zip(edges[::2], edges[1::2], strict=True))
    assert html.count(marking.CUT) == gaps


@given(marked_texts([200, 900]).filter(lambda case: len(case[0]) > marking.WHOLE))
def test_an_excerpt_shows_what_is_around_both_ends_of_every_span(case):
    context, golds, predicted = case
    spans = [*golds, *[predicted] * (predicted is not None)]
    parts = marking.excerpts(context, spans)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(parts))
    for edge in itertools.chain(*spans):
        wanted = range(max(edge - 150, 0), min(edge + 150, len(context)))
        assert any(begin <= wanted[0] and wanted[-1] < end for begin, end in parts)
    assert sum(end - begin for begin, end in parts) <= 2 * marking.MARGIN * max(2 * len(spans), 1)


def test_an_excerpt_does_not_cut_words():
    context = "elephant " * 400
    text = plain(report.marked(context, [(1800, 1808)], (900, 908)))
    assert set(text.split()) == {"elephant", "[…]"}


# ---------------------------------------------------------------- a browser


@needs_browser
def test_a_browser_shows_the_page_without_a_complaint(tmp_path):
    html = render_report(make(), "A report to look at")
    image = '<img src="https://example.invalid/a.png">'
    script = "<script>console.error('planted')</script>"
    pages = {
        "report": html,
        "image": html.replace("<main>", f"<main>{image}"),
        "script": f'<!DOCTYPE html><link rel="icon" href="data:,">{script}',
    }
    shown, complaints = {}, {}
    for name, text in pages.items():
        path = tmp_path / f"{name}.html"
        path.write_text(text, encoding="utf-8")
        shown[name], complaints[name] = load(path, tmp_path)
    for heading in ("A report to look at", "Kinds of questions", "Calibration", "Mistakes"):
        assert re.search(rf"<h[12][^>]*>{heading}</h[12]>", shown["report"])
    assert complaints["report"] == []
    # The same check finds what is wrong on other pages.
    assert "Content Security Policy" in " ".join(complaints["image"])
    assert "planted" in " ".join(complaints["script"])
