import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibert import probabilities, spans
from minibert.tokenizer import Pair, Tokens
from minibert.windows import make_windows

CLS, SEP = 1, 2


def text_tokens(words):
    """A text whose tokens are given as (word number, piece) pairs, 'ab' for each piece."""
    text, offsets = "", []
    for i, word in enumerate(words):
        if i and word != words[i - 1]:
            text += " "
        offsets.append((len(text), len(text) + 2))
        text += chr(97 + i % 26) + str(i % 10)
    ids = np.arange(10, 10 + len(words), dtype=np.int32)
    offsets = np.array(offsets, np.int32).reshape(-1, 2)
    return Tokens(text, ids, offsets, np.array(words, np.int32))


@st.composite
def cases(draw, max_tokens=14, whole_numbers=False):
    """Windows of one or two texts, and logits."""
    question = text_tokens(list(range(draw(st.integers(1, 3)))))
    length = len(question) + 3 + draw(st.integers(2, 8))
    windows = []
    for document in range(draw(st.integers(1, 2))):
        steps = draw(st.lists(st.integers(0, 1), min_size=1, max_size=max_tokens))
        windows += make_windows(
            question,
            text_tokens(list(np.cumsum(steps))),
            pair=Pair(CLS, SEP),
            max_seq_length=length,
            doc_stride=draw(st.integers(0, length - len(question) - 4)),
            document=document,
        )
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = [tuple(random.normal(0, 3, (2, len(w))).astype(np.float32)) for w in windows]
    if whole_numbers:
        logits = [(np.round(a), np.round(b)) for a, b in logits]
    return windows, logits


def decode(windows, logits, **changes):
    options = {
        "n": 1000,
        "max_answer_length": 4,
        "null_score_diff_threshold": 0.0,
        "align_to_words": False,
    }
    return spans.decode_answers(windows, logits, **(options | changes))


def brute_force(windows, logits, longest, aligned):
    """All spans the slow way: {(document, first token, last token): score} and the null score."""
    found = {}
    for number, window in enumerate(windows):
        words = window.context.words
        for i, j in itertools.product(range(window.begin, window.end), repeat=2):
            if not i <= j < i + longest:
                continue

            def around(w, token, window=window):
                if not (w.document == window.document and w.begin <= token < w.end):
                    return -1.0
                return min(token - w.begin, w.end - 1 - token) + 0.01 * (w.end - w.begin)

            owner = max(range(len(windows)), key=lambda n: around(windows[n], i))
            if owner != number:
                continue
            begins = i == 0 or words[i - 1] != words[i]
            ends = j == len(words) - 1 or words[j + 1] != words[j]
            if aligned and not (begins and ends):
                continue
            start, end = logits[number]
            at = window.offset - window.begin
            found[window.document, i, j] = float(start[at + i] + end[at + j])
    return found, min(float(s[0] + e[0]) for s, e in logits)


@given(cases(), st.integers(1, 6), st.booleans())
def test_answers_are_all_spans_and_null_in_the_order_of_their_scores(case, longest, aligned):
    windows, logits = case
    answers = decode(windows, logits, max_answer_length=longest, align_to_words=aligned)
    found, null = brute_force(windows, logits, longest, aligned)
    if not found:  # no word is short enough
        found, null = brute_force(windows, logits, longest, aligned=False)
    assert len(answers) == len(found) + 1
    assert sorted([*found.values(), null], reverse=True) == [a.score for a in answers]
    texts = {w.document: w.context for w in windows}
    for answer in answers:
        assert answer.null_score == null
        if not answer.is_null:
            assert texts[answer.document].text[answer.start : answer.end] == answer.text
            first = texts[answer.document].offsets[:, 0].tolist().index(answer.start)
            last = texts[answer.document].offsets[:, 1].tolist().index(answer.end)
            assert found[answer.document, first, last] == answer.score


@given(cases(), st.integers(1, 5))
def test_probabilities_sum_to_one_and_do_not_depend_on_n(case, n):
    answers = decode(*case)
    assert math.isclose(sum(a.probability for a in answers), 1, rel_tol=1e-6)
    assert decode(*case, n=n) == answers[:n]


@given(cases(whole_numbers=True), st.sampled_from([-math.inf, -2.0, 0.0, 1.0, math.inf]))
def test_null_comes_first_exactly_when_it_wins_by_more_than_the_threshold(case, threshold):
    answers = decode(*case, null_score_diff_threshold=threshold)
    others = [a for a in answers if not a.is_null]
    (null,) = [a for a in answers if a.is_null]
    wins = not others or null.score - others[0].score > threshold
    assert answers[0].is_null == wins
    assert (null.text, null.start, null.end) == ("", 0, 0)


@given(cases(whole_numbers=True))
def test_of_equal_spans_the_first_in_the_text_comes_first(case):
    answers = [a for a in decode(*case) if not a.is_null]
    for a, b in itertools.pairwise(answers):
        if a.score == b.score:
            order = [(x.document, x.window, x.start, x.end) for x in (a, b)]
            assert order == sorted(order)


@given(cases(), st.integers(-8, 8))
def test_shifting_all_logits_changes_no_probability(case, shift):
    windows, logits = case
    before = decode(windows, logits, n=5)
    after = decode(windows, [(s + np.float32(shift), e) for s, e in logits], n=5)
    for a, b in zip(before, after, strict=True):
        assert math.isclose(a.probability, b.probability, rel_tol=1e-4)


def tokens_of(text, *parts):
    """A text whose tokens are the given parts of it, in their order."""
    offsets, at = [], 0
    for part in parts:
        at = text.index(part, at)
        offsets.append((at, at + len(part)))
        at += len(part)
    size = len(parts)
    offsets = np.array(offsets, np.int32).reshape(-1, 2)
    return Tokens(text, np.arange(10, 10 + size, dtype=np.int32), offsets, np.zeros(size, np.int32))


def texts_of(tokens, **changes):
    """All answers from one window over these tokens."""
    windows = make_windows(
        text_tokens([0]), tokens, pair=Pair(CLS, SEP), max_seq_length=99, doc_stride=1
    )
    (window,) = windows
    random = np.random.default_rng(0)
    logits = [tuple(random.normal(0, 3, (2, len(window))).astype(np.float32))]
    answers = decode(windows, logits, max_answer_length=30, **changes)
    for answer in answers:
        assert tokens.text[answer.start : answer.end] == answer.text
    return [answer.text for answer in answers if not answer.is_null]


@pytest.mark.parametrize(
    ("text", "parts", "expected"),
    [
        ("Jose\u0301 won", ["Jose", "won"], {"Jose\u0301", "won", "Jose\u0301 won"}),
        ("Hue\u0302\u0301.", ["Hue"], {"Hue\u0302\u0301"}),
        ("葛\U000e0100城", ["葛", "城"], {"葛\U000e0100", "城", "葛\U000e0100城"}),
        ("❤\ufe0f x", ["❤", "x"], {"❤\ufe0f", "x", "❤\ufe0f x"}),
        ("हिद\u094d", ["ह", "द"], {"हि", "द\u094d", "हिद\u094d"}),
        ("e\u0301 b", ["e", "\u0301", "b"], {"e\u0301", "b", "e\u0301 b"}),  # the mark a token
        (" \u0301b", ["\u0301b"], {"\u0301b"}),  # it belongs to nothing
        ("a b", ["a ", "b"], {"a", "b", "a b"}),  # a space in a token
        ("a b", ["a", " b"], {"a", "b", "a b"}),
        ("a  b", ["a", " ", " b"], {"a", "b", "a  b"}),  # a token of nothing else
    ],
)
def test_answers_are_made_of_whole_characters(text, parts, expected):
    found = texts_of(tokens_of(text, *parts))
    assert sorted(found) == sorted(expected)


def test_of_tokens_that_are_parts_of_one_character_only_one_can_be_an_answers_end():
    tokens = tokens_of("船x", "船", "x")
    offsets = np.array([(0, 1), (0, 1), (0, 1), (1, 2)], np.int32)
    tokens = Tokens(tokens.text, np.arange(10, 14, dtype=np.int32), offsets, np.zeros(4, np.int32))
    assert sorted(texts_of(tokens)) == ["x", "船", "船x"]


@pytest.mark.parametrize(
    ("text", "parts", "expected"),
    [
        ("Mara Quill", ["Mara", "Qui", "ll"], {"Mara", "Quill", "Mara Quill"}),
        ("Quill's", ["Quill", "'", "s"], {"Quill", "'", "s", "Quill'", "'s", "Quill's"}),
        ("北港Ada", ["北", "港", "Ad", "a"], {"北", "港", "北港", "港Ada", "北港Ada", "Ada"}),
        ("บ้าน", ["บ้", "าน"], {"บ้", "าน", "บ้าน"}),
        ("서울에서", ["서울", "에서"], {"서울", "에서", "서울에서"}),
        ("Jose\u0301s", ["Jose", "s"], {"Jose\u0301s"}),
        ("x.", ["x."], {"x."}),
        ("(Bern", ["(", "Ber", "n"], {"(", "Bern", "(Bern"}),
    ],
)
def test_whole_words_are_what_spaces_and_punctuation_part(text, parts, expected):
    assert sorted(texts_of(tokens_of(text, *parts), align_to_words=True)) == sorted(expected)


def test_parts_of_words_are_taken_if_no_word_is_short_enough():
    windows = make_windows(
        text_tokens([0]), text_tokens([0] * 5), pair=Pair(CLS, SEP), max_seq_length=99, doc_stride=1
    )
    logits = [(np.zeros(9, np.float32), np.arange(9, dtype=np.float32))]
    aligned = decode(windows, logits, align_to_words=True, max_answer_length=4)
    assert aligned == decode(windows, logits, align_to_words=False, max_answer_length=4)
    assert len(aligned) > 1


@given(cases(), st.booleans())
def test_what_is_left_out_changes_no_probability(case, aligned):
    before = {(a.document, a.start, a.end): a.probability for a in decode(*case)}
    for changes in ({"align_to_words": aligned}, {"max_overlap": 0.3}, {"min_score": 0.5}):
        for answer in decode(*case, **changes):
            probability = before[answer.document, answer.start, answer.end]
            assert math.isclose(answer.probability, probability, rel_tol=1e-6)


def overlap(a, b):
    """The share of the shorter of two answers that both hold."""
    if a.document != b.document:
        return 0.0
    shared = min(a.end, b.end) - max(a.start, b.start)
    return max(0, shared) / min(a.end - a.start, b.end - b.start)


@given(
    cases(whole_numbers=True),
    st.sampled_from([0, 0.25, 0.5, 0.9, 1]),
    st.integers(1, 6),
    st.booleans(),
)
def test_answers_that_share_too_much_with_better_ones_are_left_out(case, most, n, aligned):
    kept = []
    for answer in decode(*case, align_to_words=aligned):
        if answer.is_null or all(overlap(answer, k) <= most for k in kept if not k.is_null):
            kept.append(answer)
    found = decode(*case, align_to_words=aligned, max_overlap=most)
    assert [(a.text, a.start, a.document) for a in found] == [
        (a.text, a.start, a.document) for a in kept
    ]
    assert decode(*case, align_to_words=aligned, max_overlap=most, n=n) == found[:n]
    if most == 1:
        assert found == decode(*case, align_to_words=aligned)


@given(cases(), st.floats(-10, 10), st.integers(1, 5))
def test_answers_below_the_least_score_are_left_out_and_no_answer_stays(case, least, n):
    everything = decode(*case, null_score_diff_threshold=math.inf)
    kept = [a for a in everything if a.is_null or a.score >= least]
    found = decode(*case, null_score_diff_threshold=math.inf, min_score=least)
    assert found == kept
    assert decode(*case, null_score_diff_threshold=math.inf, min_score=least, n=n) == kept[:n]


def test_a_text_of_white_space_has_no_answer():
    windows = make_windows(
        text_tokens([0]), text_tokens([]), pair=Pair(1, 2), max_seq_length=9, doc_stride=1
    )
    (answer,) = decode(windows, [(np.ones(4, np.float32), np.ones(4, np.float32))])
    assert answer.is_null
    assert answer.probability == 1


# ---------------------------------------------------------------- as transformers


def as_the_pipeline(windows, logits, **changes):
    options = {
        "cls_id": CLS,
        "top_k": 5,
        "max_answer_len": 4,
        "handle_impossible_answer": True,
        "align_to_words": True,
    }
    return probabilities.decode_probabilities(windows, logits, **(options | changes))


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_band_and_matrix_give_the_same_spans(size, k, longest, coarse, seed):
    random = np.random.default_rng(seed)
    start, end = random.uniform(0, 1, (2, size)).astype(np.float32)
    if coarse:  # many ties, and zeros
        start, end = np.round(start * 3) / np.float32(3), np.round(end * 3) / np.float32(3)
    matrix = probabilities._spans_in_matrix_order(start, end, longest, k)
    if k > 1:
        assert probabilities.probable_spans(start, end, longest, k) == matrix
    else:
        band = probabilities.probable_spans(start, end, longest, 1)
        best = max(start[i] * end[j] for i in range(size) for j in range(i, min(size, i + longest)))
        assert [s.score for s in band] == ([best] if best > 0 else [])


@given(cases(max_tokens=10))
def test_equal_answers_are_merged_and_their_scores_added(case):
    windows, logits = [[part for part in parts] for parts in case]
    answers = as_the_pipeline(windows, logits, top_k=50)
    texts = [a["answer"].lower() for a in answers]
    assert len(set(texts)) == len(texts)
    assert all(a["score"] > 0 for a in answers)
    assert [a["score"] for a in answers] == sorted((a["score"] for a in answers), reverse=True)


def test_the_null_score_is_the_smallest_of_all_windows():
    windows = make_windows(
        text_tokens([0]), text_tokens([0, 1, 2]), pair=Pair(1, 2), max_seq_length=6, doc_stride=1
    )
    assert len(windows) == 2
    flat = np.zeros(6, np.float32)  # [CLS] and two text tokens allowed: a third each
    sure = np.array([9, 0, 0, 0, 0, 0], np.float32)
    (null,) = [
        a
        for a in as_the_pipeline(windows, [(flat, flat), (sure, sure)], top_k=50)
        if not a["answer"]
    ]
    assert math.isclose(null["score"], 1 / 9, rel_tol=1e-6)


@pytest.mark.parametrize("aligned", [True, False])
def test_answers_are_widened_to_words_only_when_asked(aligned):
    windows = make_windows(
        text_tokens([0]), text_tokens([0, 0, 1]), pair=Pair(1, 2), max_seq_length=9, doc_stride=1
    )
    logits = np.zeros(7, np.float32)
    logits[windows[0].offset + 1] = 20  # the second piece of the first word
    (best,) = as_the_pipeline(windows, [(logits, logits)], align_to_words=aligned, top_k=1)
    assert best["answer"] == ("a0b1" if aligned else "b1")


def test_answers_that_differ_in_case_only_are_one_answer():
    offsets = np.array([(0, 2), (3, 5)], np.int32)
    words = np.array([0, 1], np.int32)
    text = Tokens("Ab aB", np.array([10, 11], np.int32), offsets, words)
    windows = make_windows(text_tokens([0]), text, pair=Pair(1, 2), max_seq_length=9, doc_stride=1)
    logits = np.zeros(6, np.float32)  # [CLS] and both words: nearly a third each
    logits[3] = 1e-3
    first, *others = as_the_pipeline(windows, [(logits, logits)], max_answer_len=1, top_k=9)
    assert (first["answer"], first["start"]) == ("Ab", 0)
    assert math.isclose(first["score"], 2 / 9, rel_tol=1e-2)
    assert [a["answer"] for a in others] == [""]


@given(case=cases(), temperature=st.sampled_from([0.01, 0.3, 1.0, 2.5, 100.0]))
def test_a_temperature_changes_probabilities_and_nothing_else(case, temperature):
    windows, logits = case
    plain = decode(windows, logits)
    answers = decode(windows, logits, temperature=temperature)
    assert [replace(a, probability=0) for a in answers] == [
        replace(a, probability=0) for a in plain
    ]
    scores = np.array([answer.score for answer in answers]) / temperature
    shares = np.exp(scores - scores.max())
    found = [answer.probability for answer in answers]
    np.testing.assert_allclose(found, shares / shares.sum(), rtol=1e-4, atol=1e-12)
    if temperature == 1:
        assert answers == plain


def test_at_the_threshold_itself_the_span_wins():
    windows = make_windows(
        text_tokens([0]), text_tokens([0]), pair=Pair(1, 2), max_seq_length=9, doc_stride=1
    )
    logits = np.array([2, 0, 0, 1, 0], np.float32)  # null score 4, the only span 2
    best = [
        decode(windows, [(logits, logits)], n=1, null_score_diff_threshold=threshold)[0]
        for threshold in (1.9, 2.0)
    ]
    assert [answer.is_null for answer in best] == [True, False]
