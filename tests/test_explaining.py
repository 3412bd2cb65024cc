"""What an explanation is made of: gradients, attention, spans, shares of words."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from learners import with_body

from minibert import InputError, QuestionAnswerer, progress
from minibert.explaining import attention
from minibert.explaining.passes import Passes, Target, attention_probs
from minibert.explaining.spans import ALLOWED, BACKWARD, ELSEWHERE, NOT_TEXT, TOO_LONG, see
from minibert.explaining.words import (
    baselines,
    by_word,
    check,
    gradient_x_input,
    integrated_gradients,
    left_out,
    words_of,
)
from minibert.kernels import gradients, reference
from minibert.kernels.training import REFERENCE
from minibert.lessons.folder import write_lessons
from minibert.parameters import map_layers
from minibert.training.passes import forward

QUESTION = "Who wrote the play?"
TEXT = "It rained. The play was written by Ann Lee in 1990. Nobody came to see it."


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return QuestionAnswerer(tiny_folder, device="reference")


@pytest.fixture(scope="module")
def passes(qa):
    return Passes(qa.model)


@pytest.fixture(scope="module")
def window(qa):
    [window] = qa.windows(QUESTION, TEXT, qa.options)
    return window


def a_target(window, start=9, end=11):
    """A difference of logits."""
    factors = np.zeros((2, len(window)), np.float32)
    factors[:, 0] = -1
    factors[0, start] += 1
    factors[1, end] += 1
    return Target("no answer", *factors)


def in_float64(passes):
    """The same passes, with weights in float64."""

    def wide(part):
        return type(part)(*(np.asarray(value, np.float64) for value in vars(part).values()))

    weights = passes.weights
    other = object.__new__(Passes)
    other.config = passes.config
    other.weights = replace(
        weights,
        layers=map_layers(weights.layers, wide, wide),
        qa_outputs=wide(weights.qa_outputs),
        tables=replace(weights.tables, norm=wide(weights.tables.norm)),
    )
    other.nowhere = replace(
        passes.nowhere,
        layers=map_layers(passes.nowhere.layers, wide, wide),
        qa_outputs=wide(passes.nowhere.qa_outputs),
    )
    return other


def test_gradients_of_embeddings_are_central_differences(passes, window):
    wide = in_float64(passes)
    kept = wide.forward(window)
    target = a_target(window)
    found = wide.backward(kept, target).embeddings
    random = np.random.default_rng(0)
    for _ in range(4):
        way = random.normal(size=found.shape)
        step = 1e-5 * way
        ahead, back = (
            wide.value(wide.from_embeddings(kept, kept.embedded.out + sign * step), target)
            for sign in (1, -1)
        )
        assert (ahead - back) / 2e-5 == pytest.approx((found * way).sum(), rel=1e-5)


def test_gradients_of_attention_are_central_differences(passes, window):
    wide = in_float64(passes)
    kept = wide.forward(window)
    target = a_target(window)
    found = wide.backward(kept, target).probs
    heads = wide.config.num_attention_heads
    random = np.random.default_rng(1)
    for layer in range(len(found)):
        way = random.normal(size=found[layer].shape)

        def moved(size, layer=layer, way=way):
            """The target, with the probabilities of one layer moved along `way`."""
            calls = iter(range(len(found)))

            def one(qkv, cu_seqlens, num_heads, dropout):
                given = gradients.attention(qkv, cu_seqlens, num_heads, dropout)
                if next(calls) != layer:
                    return given
                value = reference.split_heads(np.split(qkv.out, 3, axis=-1)[2], heads)
                return given._replace(out=given.out + size * gradients.join_heads(way @ value))

            kernels = replace(REFERENCE, attention=one)
            return wide.value(forward(kept.batch, wide.weights, wide.config, kernels), target)

        difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert difference == pytest.approx((found[layer] * way).sum(), rel=1e-5)


def test_the_definition_gives_the_logits_of_the_model(qa, passes, window):
    kept = passes.forward(window)
    [(start, end)] = qa.model.logits([window])
    np.testing.assert_allclose(kept.start_logits, start, atol=2e-5)
    np.testing.assert_allclose(kept.end_logits, end, atol=2e-5)


# ---------------------------------------------------------------- attention


def test_kinds_of_reading_are_means_over_those_who_read(passes, window):
    probs = attention_probs(passes.forward(window), passes.config)
    groups = attention.groups_of(window)
    shares = attention.shares(probs, groups)
    asking = probs[0][1][groups == attention.QUESTION]
    assert shares[0, 1, 1] == pytest.approx(asking[:, groups == attention.TEXT].sum(1).mean())
    special = groups >= attention.CLS
    np.testing.assert_allclose(
        shares[0, 1, :2].sum() + asking[:, special].sum(1).mean(), 1, atol=1e-5
    )
    readers = np.isin(groups, (attention.QUESTION, attention.TEXT))
    to_cls = probs[0][1][readers][:, groups == attention.CLS].sum() / readers.sum()
    assert shares[0, 1, 4] == pytest.approx(to_cls, rel=1e-5)


def test_groups_are_those_of_the_window(window):
    groups = attention.groups_of(window)
    assert groups[0] == attention.CLS
    assert set(groups[1 : window.offset - 1]) == {attention.QUESTION}
    assert groups[window.offset - 1] == groups[-1] == attention.SEP
    assert set(groups[window.offset : -1]) == {attention.TEXT}


def test_the_strongest_are_those_of_a_full_sort(passes, window):
    probs = attention_probs(passes.forward(window), passes.config)
    found = attention.strongest(probs)
    by_hand = -np.sort(-np.stack(probs), axis=-1)[..., : attention.STRONGEST]
    np.testing.assert_array_equal(found.weights, by_hand)
    np.testing.assert_array_equal(
        np.take_along_axis(np.stack(probs), found.keys.astype(int), axis=-1), found.weights
    )
    assert ((found.covered > 0) & (found.covered <= 1 + 1e-6)).all()


def test_importance_and_flow_sum_the_same_products(passes, window):
    kept = passes.forward(window)
    probs = attention_probs(kept, passes.config)
    d_probs = passes.backward(kept, a_target(window)).probs
    products = [p * d for p, d in zip(probs, d_probs, strict=True)]
    np.testing.assert_allclose(
        attention.importance(probs, d_probs),
        np.abs(np.stack(products)).sum(axis=(2, 3)),
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        attention.flow(probs, d_probs), np.stack(products).sum(axis=(0, 1)), atol=1e-5
    )


# ---------------------------------------------------------------- spans


def test_the_best_allowed_pair_is_the_answer(qa):
    for question, align, longest in product((QUESTION, "When?"), (True, False), (1, 5, 30)):
        found = qa.explain(question, TEXT, align_to_words=align, max_answer_length=longest)
        answer = next(answer for answer in found.answers if not answer.is_null)
        assert found.window.characters(found.best) == answer.text
        assert float(found.window.scores()[found.best]) == answer.score


def test_of_windows_the_one_of_the_answer_is_shown_and_owns_its_start(qa):
    text = " ".join(f"Word {n} of a long text was written by nobody." for n in range(30))
    found = qa.explain(QUESTION, text, max_seq_length=32, doc_stride=8)
    assert len(found.seen) > 3
    answer = next(answer for answer in found.answers if not answer.is_null)
    assert found.shown == answer.window
    assert sum(int(seen.mine.sum()) for seen in found.seen) == len(found.seen[0].window.context)
    rules = found.window.rules(5, True)
    assert (rules[0] == NOT_TEXT).all()
    first = found.window.window.offset
    assert rules[first + 1, first] == BACKWARD
    assert rules[first, first + 5] == TOO_LONG
    assert (rules == ELSEWHERE).any()
    other = qa.explain(QUESTION, text, max_seq_length=32, doc_stride=8, window=0)
    assert other.shown == 0
    with pytest.raises(InputError, match="there are"):
        qa.explain(QUESTION, text, max_seq_length=32, doc_stride=8, window=len(found.seen))


def test_rivals_say_what_they_lack(qa):
    found = qa.explain(QUESTION, TEXT)
    best = found.rivals[0] if found.rivals[0].rule == ALLOWED else None
    for rival in found.rivals:
        if rival.rule == ALLOWED:
            lack = rival.start + rival.end
            top = float(found.window.scores()[found.best])
            assert top - rival.score == pytest.approx(lack, abs=1e-4)
            best = best or rival
        else:
            assert rival.score > float(found.window.scores()[found.best])
    assert best.start == best.end == 0


def test_what_decides_is_as_long_as_each_window(qa):
    windows = qa.windows(QUESTION, TEXT * 9, replace(qa.options, max_seq_length=40))
    logits = qa.model.logits(windows)
    for seen in see(windows, logits):
        lengths = {len(each) for each in (seen.start, seen.end, seen.text, seen.mine, *seen.ends)}
        assert lengths == {len(seen.window)}


# ---------------------------------------------------------------- words


def test_words_hold_every_token_of_question_and_text_once(qa, window):
    words = words_of(window, qa.model.tokenizer.encode(QUESTION))
    covered = [token for word in words for token in range(word.begin, word.end)]
    groups = attention.groups_of(window)
    assert covered == np.flatnonzero(np.isin(groups, (attention.QUESTION, attention.TEXT))).tolist()
    assert [word.text for word in words][:5] == ["Who", "wrote", "the", "play", "?"]


def test_shares_of_words_sum_those_of_tokens(qa, passes, window):
    kept = passes.forward(window)
    shares = gradient_x_input(kept, passes.backward(kept, a_target(window)))
    words = words_of(window, qa.model.tokenizer.encode(QUESTION))
    special = shares[attention.groups_of(window) >= attention.CLS].sum()
    assert by_word(shares, words).sum() + special == pytest.approx(shares.sum())


def test_a_path_that_converges_is_complete(passes, window):
    kept = passes.forward(window)
    target = a_target(window)
    baseline = 0.8 * kept.embedded.out
    *_, path = integrated_gradients(passes, kept, target, "near", baseline)
    assert path.converged
    start = passes.value(passes.from_embeddings(kept, baseline), target)
    assert path.difference == pytest.approx(passes.value(kept, target) - start, rel=1e-4)
    assert path.shares.sum() == pytest.approx(path.difference, rel=0.05)


def test_the_baseline_of_padding_keeps_what_frames_the_window(passes, window):
    kept = passes.forward(window)
    found = baselines(kept, passes, window, pad_id=0)
    assert list(found) == ["zero", "[PAD]"]
    special = attention.groups_of(window) >= attention.CLS
    np.testing.assert_allclose(found["[PAD]"][special], kept.embedded.out[special], atol=1e-6)
    assert not np.allclose(found["[PAD]"][~special], kept.embedded.out[~special])
    assert list(baselines(kept, passes, window, pad_id=None)) == ["zero"]


def test_a_word_replaced_by_itself_changes_nothing(qa, passes, window):
    kept = passes.forward(window)
    words = words_of(window, qa.model.tokenizer.encode(QUESTION))
    falls = left_out(passes, kept, a_target(window), words[:3], kept.embedded.out)
    np.testing.assert_allclose(falls, 0, atol=1e-5)


def test_the_check_passes_for_the_words_that_matter_and_fails_for_those_that_do_not(
    qa, passes, window
):
    kept = passes.forward(window)
    target = a_target(window)
    words = words_of(window, qa.model.tokenizer.encode(QUESTION))
    blank = np.zeros_like(kept.embedded.out)
    falls = left_out(passes, kept, target, words, blank)

    def checked(shares):
        return check(passes, kept, target, words, shares, blank, lambda word: False)

    assert checked(falls).top > np.mean(checked(falls).random)
    assert not checked(-falls).passed
    assert check(passes, kept, target, words[:2], falls, blank, lambda word: False) is None


def test_one_forward_pass_and_one_backward_pass_a_target(qa, monkeypatch):
    made = []
    for name in ("forward", "backward"):
        usual = getattr(Passes, name)

        def noted(*arguments, name=name, usual=usual):
            made.append(name)
            return usual(*arguments)

        monkeypatch.setattr(Passes, name, noted)
    found = qa.explain(QUESTION, TEXT)
    assert made == ["forward", *["backward"] * len(found.shares)]


def test_a_thorough_explanation_has_all_of_it(qa, capsys, monkeypatch):
    monkeypatch.setattr(progress, "speaking", True)
    whole = qa.explain(QUESTION, TEXT, thorough=True)
    assert re.search(r"the thorough part takes \d+ s at most", capsys.readouterr().err)
    page, found = whole.html(), whole.thorough
    for words in ("Integrated gradients from zero: ", "converged", "left out", "Check: without"):
        assert words in page
    assert [path.baseline for path in found.paths] == ["zero", "[PAD]"]
    assert -1 <= found.agreement <= 1
    assert len(found.check.random) == 16


def test_it_compares_with_another_question_or_another_text(qa):
    other = qa.explain(QUESTION, TEXT, compare="Who sailed?").other
    assert (other.question, len(other.seen), other.other) == ("Who sailed?", 1, None)
    assert qa.explain(QUESTION, TEXT, compare="谁写的？").other.question == "谁写的？"
    assert qa.explain(QUESTION, TEXT, compare="Another text.").other.question == QUESTION
    for wrong in ("", " ", 7, ["Who?"]):
        with pytest.raises(InputError, match="compare must be another question"):
            qa.explain(QUESTION, TEXT, compare=wrong)


def test_an_unknown_option_is_told_of_all_that_there_are(qa):
    with pytest.raises(InputError, match="unknown option top.*max_answer_length.*window.*compare"):
        qa.explain(QUESTION, TEXT, top=3)


def test_a_model_that_comes_from_no_files_cannot_be_explained(qa):
    other = QuestionAnswerer(replace(qa.model, files=None))
    with pytest.raises(InputError, match="not loaded from files"):
        other.explain(QUESTION, TEXT)


# ---------------------------------------------------------------- a learner's functions


@pytest.fixture
def lessons(tmp_path):
    """A folder of lessons."""
    write_lessons(tmp_path / "lessons")
    return tmp_path / "lessons"


def body(*lines):
    """The body of a function."""
    return "\n".join(f"    {line}" for line in lines)


SOFTMAX = ("exp = np.exp(scores - scores.max(axis=-1, keepdims=True))", "return exp / exp.sum({})")


def test_a_right_function_departs_nowhere(qa, lessons):
    with_body(lessons, "softmax", body(*SOFTMAX).format("axis=-1, keepdims=True"))
    found = qa.explain(QUESTION, TEXT, lessons=lessons)
    assert found.learnt.functions == ["softmax"]
    assert found.learnt.departure is None
    assert "Every step gives what the definition gives" in found.html()
    usual = qa.explain(QUESTION, TEXT)
    np.testing.assert_allclose(found.moves, usual.moves, atol=1e-5)
    np.testing.assert_allclose(found.strongest.weights, usual.strongest.weights, atol=1e-5)


def test_the_first_step_that_departs_is_marked(qa, lessons):
    with_body(lessons, "softmax", body(*SOFTMAX).format("axis=-2, keepdims=True"))
    found = qa.explain(QUESTION, TEXT, lessons=lessons)
    assert found.learnt.departure.step == "layer.0.attention.probs.0"
    assert "The first step that departs is attention&#x27;s probabilities" in found.html()


@pytest.mark.parametrize("name", ["encoder_layer", "bert"])
def test_a_wrong_order_of_the_steps_shows_in_the_answers_too(qa, lessons, name):
    lines = {
        "encoder_layer": body("return x"),
        "bert": body("x = kernels.embed(batch.input_ids, batch.token_type_ids, batch.position_ids,",
                     "    weights.tables, config.layer_norm_eps)",
                     "logits = kernels.span_logits(x, weights.qa_outputs)",
                     "return logits[0], logits[1]"),
    }  # fmt: skip
    with_body(lessons, name, lines[name])
    found = qa.explain(QUESTION, TEXT, lessons=lessons)
    assert found.learnt.departure.step == "logits"
    assert "Here yours departs: the logits" in found.html()
    right = qa.explain(QUESTION, TEXT)
    assert not np.allclose(found.window.start, right.window.start, atol=1e-3)


def test_functions_that_the_page_does_not_run_are_told_apart(qa, lessons):
    with_body(lessons, "softmax", body(*SOFTMAX).format("axis=-1, keepdims=True"))
    with_body(lessons, "best_span", body("return None"))
    found = qa.explain(QUESTION, TEXT, lessons=lessons)
    assert (found.learnt.functions, found.learnt.others) == (["softmax"], ["best_span"])
    assert "so these did not run: best_span" in found.html()


def test_a_function_that_fails_is_an_error_that_says_where(qa, lessons):
    with_body(lessons, "layer_norm", body("raise ValueError('no idea')"))
    with pytest.raises(
        InputError,
        match=r"03_layer_norm.py, line \d+, in layer_norm: .*ValueError: no idea",
    ):
        qa.explain(QUESTION, TEXT, lessons=lessons)
    with_body(lessons, "layer_norm", body("return x[:1]"))
    with pytest.raises(InputError, match="lessons check"):
        qa.explain(QUESTION, TEXT, lessons=lessons)
    with pytest.raises(InputError, match="holds no lessons"):
        qa.explain(QUESTION, TEXT, lessons=lessons.parent)


def test_a_question_without_a_word_is_explained(tiny):
    found = QuestionAnswerer(tiny).explain(" ", "ada lee wrote it.")
    assert len({word.group for word in found.words}) == 1  # those of the text
    assert "<h2>9. " in found.html()
