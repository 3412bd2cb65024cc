"""Windows and answers as in run_squad.py, against brute force.

test_parity_live.py compares them with transformers.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibert.errors import InputError
from minibert.spans import max_context_tokens
from minibert.squad.run_squad import (
    NOTHING,
    WordSplitter,
    answer_text,
    n_best,
    run_squad_windows,
)

TEXT = "The U.S. Army's café (est. 1843)\tsold  naïve\u00a0tea. " * 3


def windows_of(model, question, text, length=48, stride=16, query=64):
    return run_squad_windows(
        model, question, text, max_seq_length=length, doc_stride=stride, max_query_length=query
    )


# ---------------------------------------------------------------- windows


def test_windows_begin_a_stride_apart(embedded):
    text = "word " * 100
    windows = windows_of(embedded, "Who?", text)
    room = 48 - 2 - 3  # "who" and "?", and three special tokens
    assert [w.begin for w in windows] == [0, 16, 32, 48, 64]
    assert [w.end for w in windows] == [room, 16 + room, 32 + room, 48 + room, 100]


def test_a_stride_beyond_the_window_leaves_nothing_out(embedded):
    windows = windows_of(embedded, "Who?", "word " * 100, length=24, stride=128)
    covered = [token for w in windows for token in range(w.begin, w.end)]
    assert covered == list(range(100))


def test_long_questions_are_cut(embedded):
    (window,) = windows_of(embedded, "who " * 100, "A word.", length=384)
    assert window.offset == 64 + 2


def test_a_text_without_tokens_has_no_windows(embedded):
    assert windows_of(embedded, "Who?", " \n\t") == []
    assert len(windows_of(embedded, "", "text")) == 1


def test_windows_that_cannot_be_made_are_refused(embedded):
    with pytest.raises(InputError, match="beyond the 512 positions"):
        windows_of(embedded, "Who?", TEXT, length=513)
    with pytest.raises(InputError, match="leaves no room"):
        windows_of(embedded, "who " * 60, TEXT, length=48)


# ---------------------------------------------------------------- texts


def test_words_are_split_at_the_white_space_of_run_squad_only(embedded):
    words = WordSplitter(embedded.tokenizer).split("one\u00a0two\u202fthree \r\n\tfour\u3000five ")
    texts = [words.text[a:b] for a, b in words.offsets]
    assert texts == ["one\u00a0two", "three", "four\u3000five"]
    assert words.first.tolist() == words.last.tolist() == [0, 0, 1, 2, 2]
    assert words.basic == ["one two", "three", "four five"]


def test_each_character_is_a_word_where_scripts_have_no_spaces(embedded):
    words = WordSplitter(embedded.tokenizer).split("在 Norhaven港，カ\u3099ทำ 서울에서")
    texts = [words.text[a:b] for a, b in words.offsets]
    assert texts == ["在", "Norhaven", "港", "，", "カ\u3099", "ทำ", "서울에서"]
    assert words.join(slice(0, 4)) == "在 Norhaven港，"


def unknown(tokenizer, text):
    """Which tokens of a text are [UNK]."""
    encoded = tokenizer.encode(text)
    return [i for i, name in enumerate(tokenizer.names(encoded.ids)) if name == "[UNK]"]


@pytest.mark.parametrize("text", ["北港的面包店由玛拉开设。", "王さんは𠮷野家で北港の船を見た。"])
def test_an_unknown_character_does_not_make_a_paragraph_the_answer(embedded, text):
    words = WordSplitter(embedded.tokenizer).split(text)
    (window,) = windows = windows_of(embedded, "Who?", text)
    tokens = unknown(embedded.tokenizer, text)
    assert tokens
    for token in tokens:
        start = np.full(len(window), -9, np.float32)
        start[window.offset + token] = 9
        (best, *_) = n_best(
            windows, [(start, start)], words, embedded.tokenizer,
            n=1, max_answer_length=30, with_null=False,
        ).entries  # fmt: skip
        a, b = window.context.offsets[token].tolist()
        assert best.text == text[a:b] == text[best.start : best.end]


@given(st.text(alphabet="ab. \t\n\u00a0\u202fé", max_size=30))
def test_every_token_belongs_to_the_word_that_holds_it(embedded, text):
    words = WordSplitter(embedded.tokenizer).split(text)
    assert words.first.tolist() == words.last.tolist()
    for (start, end), word in zip(
        embedded.tokenizer.encode(text).offsets.tolist(), words.first.tolist(), strict=True
    ):
        a, b = words.offsets[word]
        assert a <= start < end <= b


@given(st.text(alphabet="ab.， 港カ\u3099\u0301บ้", max_size=30))
def test_every_token_stands_from_its_first_to_its_last_word(embedded, text):
    words = WordSplitter(embedded.tokenizer).split(text)
    assert "".join(text[a:b] for a, b in words.offsets) == text.replace(" ", "")
    for (start, end), first, last in zip(
        embedded.tokenizer.encode(text).offsets.tolist(), words.first, words.last, strict=True
    ):
        assert words.offsets[first][0] <= start < words.offsets[first][1]
        assert words.offsets[last][0] < end <= words.offsets[last][1]


@pytest.mark.parametrize(
    ("names", "words", "basic", "expected"),
    [
        (["smith"], ["Smith's"], ["smith ' s"], "Smith"),
        (["smith", "'", "s"], ["Smith's"], ["smith ' s"], "Smith's"),
        (["s"], ["Smith's"], ["smith ' s"], "S"),  # the first "s", as there
        (["(", "est", ".", "1843"], ["(est.", "1843)."], ["( est .", "1843 ) ."], "(est. 1843"),
        (["cafe"], ["Café,"], ["cafe ,"], "Café"),
        (["cafe"], ["Cafe\u0301,"], ["cafe ,"], "Cafe\u0301,"),  # a character more: all of it
        (["##ing"], ["sing."], ["sing ."], "sing."),  # the middle of a word: all of it
        (["s", "##ing"], ["sing."], ["sing ."], "sing"),
        (["[UNK]"], ["船."], ["船 ."], "船."),  # the name is not in the text: all of it
        (["two"], ["one\u00a0two!"], ["one two !"], "one\u00a0two!"),
        (["."], ["\u200b", "."], ["", "."], "\u200b ."),
    ],
)
def test_texts_of_answers(names, words, basic, expected):
    wanted = " ".join(names).replace(" ##", "")
    assert answer_text(wanted, " ".join(words), basic) == expected


# ---------------------------------------------------------------- the n best


def brute_force(windows, logits, words, tokenizer, n, longest, with_null):
    """Every span of every window, as the definition says it: text -> sum of logits."""
    spans, null = [], min((float(s[0]) + float(e[0]) for s, e in logits), default=1000000.0)
    for w, (window, mine, (start, end)) in enumerate(
        zip(windows, max_context_tokens(windows), logits, strict=True)
    ):
        firsts = sorted(range(len(window)), key=lambda i: (-start[i], i))[:n]
        lasts = sorted(range(len(window)), key=lambda i: (-end[i], i))[:n]
        text = range(window.offset, window.offset + window.end - window.begin)
        for a, i in enumerate(firsts):
            for b, j in enumerate(lasts):
                if i in text and j in text and mine[i - window.offset] and i <= j < i + longest:
                    spans.append((-(float(start[i]) + float(end[j])), w, a, b, i, j))
    if with_null:
        spans.append((-null if windows else 0.0, math.inf, 0, 0, 0, 0))
    texts = {}
    for score, w, _, _, i, j in sorted(spans):
        if len(texts) == n:
            break
        text = ""
        if w < math.inf:
            window = windows[w]
            tokens = [window.begin + t - window.offset for t in (i, j)]
            a, b = int(words.first[tokens[0]]), int(words.last[tokens[1]])
            wanted = tokenizer.plain_text(window.input_ids[i : j + 1])
            text = answer_text(wanted, words.join(slice(a, b + 1)), words.basic[a : b + 1])
        texts.setdefault(text, -score)
    if with_null:
        texts.setdefault("", null if windows else 0.0)
    if set(texts) <= {""}:
        texts = {NOTHING: 0.0, **texts}
    best = next(text for text in texts if text)
    return texts, null - texts[best] if with_null else None


@pytest.mark.parametrize("with_null", [True, False])
@given(
    seed=st.integers(0, 1000),
    n=st.sampled_from([1, 3, 20]),
    longest=st.sampled_from([1, 4, 30]),
    coarse=st.booleans(),
    stride=st.sampled_from([5, 16]),
)
def test_the_n_best_are_those_of_all_spans(embedded, with_null, seed, n, longest, coarse, stride):
    windows = windows_of(embedded, "Who sold it?", TEXT, length=40, stride=stride)
    random = np.random.default_rng(seed)
    logits = [tuple(random.normal(0, 3, (2, len(w))).astype(np.float32)) for w in windows]
    if coarse:  # ties
        logits = [(np.round(start), np.round(end)) for start, end in logits]
    words = WordSplitter(embedded.tokenizer).split(TEXT)
    found = n_best(
        windows, logits, words, embedded.tokenizer,
        n=n, max_answer_length=longest, with_null=with_null,
    )  # fmt: skip
    texts, odds = brute_force(windows, logits, words, embedded.tokenizer, n, longest, with_null)
    assert [entry.text for entry in found.entries] == list(texts)
    assert [entry.score for entry in found.entries] == list(texts.values())
    assert found.null_odds == (odds if odds is None else pytest.approx(odds, abs=1e-12))
    assert sum(entry.probability for entry in found.entries) == pytest.approx(1)
    for entry in found.entries:
        if entry.text not in ("", NOTHING):
            shown = " ".join(TEXT[entry.start : entry.end].split())
            assert shown in " ".join(entry.text.split()) or entry.text in shown


def test_odds_at_the_threshold_are_an_answer_and_odds_above_it_are_none(embedded):
    text = "Ann wrote it."
    (window,) = windows = windows_of(embedded, "Who?", text)
    start = np.full(len(window), -9, np.float32)
    start[[0, window.offset]] = 1, 1
    words = WordSplitter(embedded.tokenizer).split(text)
    found = n_best(
        windows, [(start, start)], words, embedded.tokenizer,
        n=20, max_answer_length=30, with_null=True,
    )  # fmt: skip
    assert found.null_odds == 0
    assert found.prediction(0.0).text == "Ann"
    assert found.prediction(-0.1).text == ""
    assert found.prediction(math.inf).text == "Ann"


def test_a_text_without_windows_has_no_answer(embedded):
    words = WordSplitter(embedded.tokenizer).split(" ")
    found = n_best([], [], words, embedded.tokenizer, n=20, max_answer_length=30, with_null=True)
    assert [entry.text for entry in found.entries] == [NOTHING, ""]
    assert found.prediction(0.0).text == ""
