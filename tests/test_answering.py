"""QuestionAnswerer, and the model behind it."""

import itertools
import math
import multiprocessing
import pickle
import random
import shutil
import unicodedata
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from random_models import answer_with_the_embedded_model, tiny_config, write_model
from safetensors.numpy import load_file, save_file

from minibert import (
    Answer,
    BackendError,
    Evaluation,
    Gold,
    InputError,
    MinibertError,
    Options,
    QuestionAnswerer,
    SquadData,
    SquadQuestion,
    Trace,
    convert,
    load_model,
    pipeline,
)
from minibert.batches import pack

TEXT = (
    "Ada Lovelace wrote the first program in 1843. The machine was designed by Charles Babbage, "
    "who never finished it. "
)
WHO = "Who wrote the first program?"


@pytest.fixture(scope="module")
def qa(embedded):
    return QuestionAnswerer(embedded)


def test_an_answer_says_where_it_stands(qa):
    answer = qa.answer(WHO, TEXT)
    assert isinstance(answer, Answer)
    assert str(answer) == answer.text == TEXT[answer.start : answer.end] == "Ada Lovelace"
    assert answer.score > answer.null_score
    assert 0 < answer.probability < 1
    assert not answer.is_null


def test_offsets_are_code_points(qa):
    text = "😀 e\u0301 שלום 船. " + TEXT
    answer = qa.answer(WHO, text)
    assert text[answer.start : answer.end] == "Ada Lovelace"


def test_no_answer_is_an_answer(qa):
    answer = qa.answer("What colour was the ship?", TEXT)
    assert answer.is_null
    assert (answer.text, answer.start, answer.end) == ("", 0, 0)
    assert answer.score == answer.null_score
    forced = qa.answer("What colour was the ship?", TEXT, null_score_diff_threshold=math.inf)
    assert not forced.is_null


def test_a_null_threshold_of_the_model_is_the_default(embedded):
    config = replace(embedded.config, null_threshold=-1000.0)
    model = replace(embedded, config=config)
    silent = QuestionAnswerer(model)
    assert silent.options.null_score_diff_threshold == -1000
    assert repr(silent).endswith(", null_score_diff_threshold=-1000.0)")
    assert silent.answer(WHO, TEXT).is_null
    assert not silent.answer(WHO, TEXT, null_score_diff_threshold=0).is_null
    usual = QuestionAnswerer(model, null_score_diff_threshold=0.0)
    assert usual.answer(WHO, TEXT) == QuestionAnswerer(embedded).answer(WHO, TEXT)
    ours, theirs = (
        pipeline(model=each)(question=WHO, context=TEXT, handle_impossible_answer=True)
        for each in (model, embedded)
    )
    assert ours == theirs  # it stays as it is in transformers


def test_a_temperature_of_the_model_changes_probabilities_alone(embedded):
    config = replace(embedded.config, temperature=3.0)
    cooler = QuestionAnswerer(replace(embedded, config=config)).answer(WHO, TEXT)
    answer = QuestionAnswerer(embedded).answer(WHO, TEXT)
    assert 0 < cooler.probability < 0.9 * answer.probability
    assert replace(cooler, probability=answer.probability) == answer


def test_several_texts_are_searched_together(qa):
    other = "Berlin lies on the Spree. "
    answer = qa.answer(WHO, [other, other * 40, TEXT])
    assert (answer.text, answer.document, answer.window) == ("Ada Lovelace", 2, 0)
    answers = qa.n_best(WHO, [TEXT, other, TEXT], 5, null_score_diff_threshold=math.inf)
    assert {a.document for a in answers[:2]} == {0, 2}
    assert answers[0].score == pytest.approx(answers[1].score, abs=1e-4)
    assert answers[0].probability < 0.5


@pytest.mark.parametrize("blank", ["", " \n\f", "\u200b"])
def test_a_blank_page_among_several_is_passed_over(qa, blank):
    answers = qa.n_best(WHO, [blank, "It rained.", blank, TEXT, blank], 5)
    expected = qa.n_best(WHO, ["It rained.", TEXT], 5)
    assert [a.score for a in answers] == [a.score for a in expected]
    assert [a.null_score for a in answers] == [a.null_score for a in expected]
    assert answers[0].document == 3
    assert qa.answer(WHO, [blank, TEXT]).document == 1


def test_scores_do_not_depend_on_the_other_texts(qa):
    alone = qa.answer(WHO, TEXT)
    together = qa.answer(WHO, [TEXT, "Berlin lies on the Spree."])
    assert together.score == pytest.approx(alone.score, abs=1e-5)
    assert together.null_score <= alone.null_score


def test_a_long_text_is_read_through_windows(qa):
    text = "Berlin lies on the Spree. " * 150 + TEXT + "Berlin lies on the Spree. " * 50
    answer = qa.answer(WHO, text)
    assert text[answer.start : answer.end] == answer.text == "Ada Lovelace"
    assert answer.window > 0


def test_probabilities_sum_to_one_over_all(tiny):
    qa = QuestionAnswerer(tiny, align_to_words=False)
    answers = qa.n_best("who ?", "the old captain sailed the moon", 10_000)
    assert sum(a.probability for a in answers) == pytest.approx(1, abs=1e-6)
    assert sum(a.is_null for a in answers) == 1


def test_only_whole_words_unless_asked(qa):
    text = "The antidisestablishmentarianism of Wolfgangsson was known."

    def cut(answer):
        return any(at and text[at - 1 : at + 1].isalnum() for at in (answer.start, answer.end))

    assert not any(map(cut, qa.n_best("Whose?", text, 200)))
    assert any(map(cut, qa.n_best("Whose?", text, 200, align_to_words=False)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("José", "The winner of the prize was José and nobody else."),
        ("Brontë", "The winner of the prize was Brontë."),
        ("Huế", "The winner of the prize was Huế, in May."),
    ],
)
@pytest.mark.parametrize("aligned", [True, False])
def test_accents_that_stand_apart_belong_to_their_letters(qa, name, text, aligned):
    text = unicodedata.normalize("NFD", text)
    answers = qa.n_best("Who won the prize?", text, 50, align_to_words=aligned)
    assert unicodedata.normalize("NFD", name) in [answer.text for answer in answers]
    for answer in answers:
        assert not unicodedata.combining((text + " ")[answer.end])


def test_words_without_spaces_are_no_sentences(qa):
    text = "北港的面包店由玛拉于一九三一年开设。"
    answers = qa.n_best("何时?", text, 100, null_score_diff_threshold=math.inf)
    assert min(len(answer.text) for answer in answers if not answer.is_null) == 1


def test_arrays_of_texts_and_pairs_are_taken(qa):
    texts = np.array(["It rained.", TEXT])
    expected = qa.answer(WHO, list(texts))
    assert qa.answer(WHO, texts) == qa.answer(np.array(WHO)[()], tuple(texts)) == expected
    pairs = np.array([[WHO, TEXT], ["When?", TEXT]], object)
    assert list(qa.answer_many(pairs)) == list(qa.answer_many(pairs.tolist()))
    assert qa.answer(np.array(WHO), np.array(TEXT)) == qa.answer(WHO, TEXT)


def test_a_bad_row_of_many_is_named(qa):
    rows = zip(np.array([WHO, WHO]), np.array([TEXT, float("nan")], object), strict=True)
    with pytest.raises(InputError, match="example 2: context must be .* got float: nan"):
        list(qa.answer_many(rows))


def test_the_best_answers_can_be_kept_apart(qa):
    answers = [a for a in qa.n_best(WHO, TEXT, 5, max_overlap=0) if not a.is_null]
    assert len(answers) > 2
    for a, b in itertools.combinations(answers, 2):
        assert a.end <= b.start or b.end <= a.start
    assert answers[0] == qa.answer(WHO, TEXT)


def test_below_the_least_score_there_is_no_answer(qa):
    best = qa.answer(WHO, TEXT, null_score_diff_threshold=math.inf)
    forced = {"null_score_diff_threshold": math.inf}
    assert qa.answer(WHO, TEXT, min_score=best.score, **forced) == best
    assert qa.answer(WHO, TEXT, min_score=best.score + 0.01, **forced).is_null


def test_many_are_answered_in_order_and_taken_as_needed(qa):
    taken = []

    def examples():
        for number in itertools.count():
            taken.append(number)
            yield WHO, TEXT * (1 + number % 2)

    answers = qa.answer_many(examples(), batch_size=3)
    assert [next(answers).text for _ in range(5)] == ["Ada Lovelace"] * 5
    assert len(taken) <= 6


def test_batches_do_not_change_the_answers(tiny):
    rng = random.Random(0)
    words = "the old captain sailed north and found a new river in 1843 .".split()
    examples = [
        ("who ?", " ".join(rng.choices(words, k=rng.choice([1, 5, 60, 200])))) for _ in range(30)
    ]
    qa = QuestionAnswerer(tiny)
    alone = [qa.answer(*example) for example in examples]
    for size in (None, 1, 7):
        together = list(qa.answer_many(examples, batch_size=size))
        assert [(a.text, a.start) for a in together] == [(a.text, a.start) for a in alone]
        assert [a.score for a in together] == pytest.approx([a.score for a in alone], abs=2e-5)


def test_reading_in_small_batches_gives_the_same_logits(tiny):
    windows = tiny.windows("who ?", ["the old captain sailed north . " * 60])
    assert len(windows) > 5
    many = list(tiny.read([(n, windows[: n + 1]) for n in range(5)], batch_tokens=100))
    assert [key for key, _, _ in many] == list(range(5))
    for _, shown, logits in many:
        for (start, end), (a, b) in zip(tiny.logits(shown), logits, strict=True):
            np.testing.assert_allclose(start, a, atol=2e-5)
            np.testing.assert_allclose(end, b, atol=2e-5)


def test_a_trace_notes_every_stage_and_changes_nothing(tiny):
    windows = tiny.windows("who ?", ["the old captain sailed north"])
    trace = Trace()
    traced = tiny.logits(windows, trace)
    assert all(
        np.array_equal(a, b) for a, b in zip(traced[0], tiny.logits(windows)[0], strict=True)
    )
    tokens = len(windows[0])
    assert trace["embeddings"].shape == (tokens, 32)
    assert trace["layer.1.attention.probs.0"].shape == (4, tokens, tokens)
    np.testing.assert_allclose(trace["layer.0.attention.probs.0"].sum(-1), 1, atol=1e-5)


BAD_PAIRS = [("", TEXT), (WHO, None), WHO, (WHO + " really" * 500, TEXT), (WHO, "\ud800")]


@pytest.mark.parametrize("bad", BAD_PAIRS)
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_the_answers_before_a_bad_pair_come_before_its_error(qa, bad, batch_size):
    answers = qa.answer_many([(WHO, TEXT)] * 3 + [bad, (WHO, TEXT)], batch_size=batch_size)
    assert [next(answers).text for _ in range(3)] == ["Ada Lovelace"] * 3
    with pytest.raises(InputError):
        next(answers)


def test_errors_may_come_in_the_places_of_their_pairs(qa):
    unreadable = InputError("line 9 is torn")
    examples = [(WHO, TEXT), *BAD_PAIRS, unreadable, (WHO, TEXT)]
    first, *errors, last = qa.n_best_or_error(examples, 2)
    assert first[0].text == last[0].text == "Ada Lovelace"
    assert len(first) == len(last) == 2
    assert all(isinstance(error, InputError) for error in errors)
    assert str(errors[0]) == "question cannot be empty"
    assert errors[-1] is unreadable
    with pytest.raises(InputError, match="line 9 is torn"):
        list(qa.n_best_many([unreadable]))


def test_threads_may_share_a_model(qa):
    examples = [(WHO, TEXT), ("Who designed the machine?", TEXT)] * 8
    want = [qa.answer(*example).text for example in examples]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda example: qa.answer(*example).text, examples)) == want


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.slow
def test_worker_processes_may_load_and_run_the_model(qa, method):
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(answer_with_the_embedded_model, WHO, TEXT).result() == "Ada Lovelace"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("", TEXT), {}, "question cannot be empty"),
        ((WHO, ""), {}, "context cannot be empty"),
        ((WHO, []), {}, "non-empty list"),
        ((WHO, ["", " \n", "\u200b"]), {}, "none of its 3 texts holds a word"),
        ((WHO, [TEXT, 3]), {}, r"context\[1\] must be a string, got int: 3"),
        ((WHO, np.array([TEXT, None])), {}, r"context\[1\] must be a string, got NoneType"),
        ((WHO, np.array([[TEXT]])), {}, "context must be a string, got list"),
        ((WHO, np.arange(3)), {}, r"context\[0\] must be a string, got int: 0"),
        ((WHO, None), {}, "context must be a string or a non-empty list"),
        ((WHO, b"bytes"), {}, "got bytes"),
        ((3, TEXT), {}, "question must be a string, got int"),
        ((WHO, TEXT), {"max_answer_length": 0}, "max_answer_length must be"),
        ((WHO, TEXT), {"max_seq_length": 1000}, "beyond the 512 positions"),
        ((WHO, TEXT), {"max_seq_length": 10, "doc_stride": 8}, "cannot advance"),
        ((WHO, TEXT), {"max_seq_length": 5, "doc_stride": 0}, "leaves no room"),
        ((WHO, TEXT), {"null_score_diff_threshold": math.nan}, "must be a number, got nan"),
        ((WHO, TEXT), {"min_score": "2"}, "min_score must be a number, got '2'"),
        ((WHO, TEXT), {"max_overlap": True}, "max_overlap must be a number, got True"),
        ((WHO, TEXT), {"max_overlap": 1.5}, "max_overlap must be from 0 to 1, got 1.5"),
        ((WHO, TEXT), {"max_overlap": -0.1}, "max_overlap must be from 0 to 1"),
        ((WHO, TEXT), {"nbest": 3}, "unknown option nbest; the options are max_seq_length"),
    ],
)
def test_bad_input_is_named(qa, arguments, options, message):
    with pytest.raises(InputError, match=message):
        qa.answer(*arguments, **options)


def test_a_question_is_cut_when_asked(qa):
    long = WHO + " really" * 500
    with pytest.raises(InputError, match="leaves no room"):
        qa.answer(long, TEXT)
    assert qa.answer(long, TEXT, max_question_length=6).text == "Ada Lovelace"


def test_bad_counts_and_pairs_are_named(qa):
    with pytest.raises(InputError, match="n must be a whole number of at least 1, got 0"):
        qa.n_best(WHO, TEXT, 0)
    with pytest.raises(InputError, match="batch_size must be"):
        qa.answer_many([], batch_size=0)
    with pytest.raises(InputError, match="example 2: it must be a .question, context. pair"):
        list(qa.answer_many([(WHO, TEXT), WHO]))


def test_options_are_checked_before_the_model_is_loaded():
    with pytest.raises(InputError, match="doc_stride"):
        QuestionAnswerer("there is no such model", doc_stride=-1)
    assert Options().max_answer_length == 30


def test_except_exception_catches_every_error():
    for kind in MinibertError.__subclasses__():
        assert issubclass(kind, (ValueError, OSError, RuntimeError))
    with pytest.raises(OSError, match="no such folder or file"):
        load_model("./nowhere")


def test_arguments_of_the_wrong_type_are_named(qa, tmp_path):
    with pytest.raises(InputError, match="a model is a folder, a file or a name, got int: 5"):
        load_model(5)
    with pytest.raises(InputError, match="must be a folder, a name or a Tokenizer .* got int: 3"):
        load_model(tokenizer=3)
    with pytest.raises(BackendError, match="device must be one of auto, cpu.* got None"):
        load_model(device=None)
    with pytest.raises(InputError, match="pairs, got ndarray"):
        list(qa.answer_many(np.array(3)))
    with pytest.raises(InputError, match="pairs, got NoneType"):
        list(qa.answer_many(None))
    with pytest.raises(InputError, match="the output must be a folder's name, got 7"):
        convert(tmp_path, 7)


def test_what_a_notebook_shows_of_a_model_is_a_line(embedded):
    qa = QuestionAnswerer(embedded, null_score_diff_threshold=1.5)
    threads = f"{embedded.kernels.num_threads} threads"
    model = f"Model('minilm-l12-squad2', bert, 12 layers x 384, cpu, float32, {threads})"
    assert repr(embedded) == model
    assert repr(qa) == f"QuestionAnswerer({model}, null_score_diff_threshold=1.5)"
    assert repr(pipeline(model=embedded, top_k=3)) == f"QuestionAnsweringPipeline({model}, top_k=3)"
    assert repr(embedded.tokenizer) == "Tokenizer(WordPiece, 30522 tokens)"
    on_reference = load_model(device="reference")
    assert repr(on_reference).endswith("12 layers x 384, reference, float32)")


def test_what_a_notebook_shows_of_anything_else_is_short(embedded):
    windows = embedded.windows(WHO, [TEXT * 100])
    trace = Trace()
    embedded.logits(windows[:1], trace)
    batch = pack(windows)
    gold = Gold(TEXT * 10, 0)
    question = SquadQuestion("1", WHO * 10, TEXT * 100, (gold,) * 5, 0)
    data = SquadData("dev.json", "0" * 64, [question] * 20_000, True)
    many = {str(n): TEXT for n in range(20_000)}
    evaluation = Evaluation(data.questions, many, {"exact": 1.0}, many, many, many)
    answer = QuestionAnswerer(embedded).answer(WHO, TEXT)
    shown = [
        *(windows[0], windows[0].context, batch, trace, Trace(), embedded.files, embedded.config),
        *(gold, question, data, evaluation, answer, replace(answer, text=TEXT * 10), Options()),
    ]
    for device in ("cpu", "reference"):
        weights = load_model(device=device).weights
        shown += [weights, weights.layers[0], weights.tables]
    plain = weights
    shown += [plain.tables.words, plain.tables.words.matrix, plain.layers[0].qkv, plain.tables.norm]
    for each in shown:
        assert len(repr(each)) < 600, repr(each)[:1000]
        assert "..." not in repr(each).replace("'...", ""), "numbers of an array"
    assert repr(plain.layers[0].qkv) == "Dense(weight=float32[1152, 384], bias=float32[1152])"
    assert repr(trace) == f"Trace({len(trace)} arrays, 'embeddings' to 'layer.11')"
    assert "questions=list of 20000" in repr(data)
    assert repr(answer).startswith("Answer(text='Ada Lovelace', start=0, end=12, score=")


def test_numbers_of_numpy_are_numbers(qa):
    assert len(qa.n_best(WHO, TEXT, np.int64(2), null_score_diff_threshold=np.float32(1))) == 2


def test_a_question_answerer_can_be_pickled(tiny):
    question, text = "who ?", "the old captain sailed north"
    qa = pickle.loads(pickle.dumps(QuestionAnswerer(tiny)))
    assert qa.answer(question, text) == QuestionAnswerer(tiny).answer(question, text)


def spoilt(tiny_folder, folder, name, factor):
    """The tiny model with one array so many times as large."""
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: tensors[name] * np.float32(factor)}, folder / "model.safetensors")
    return folder


DEVICES = {"device": "reference"}, *({"dtype": d} for d in ("float32", "bfloat16", "int8"))


@pytest.mark.parametrize("how", DEVICES, ids=str)
@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("qa_outputs.weight", 1e38),
        ("qa_outputs.weight", 1e33),  # finite, but no sum of two is
        ("bert.embeddings.LayerNorm.weight", 1e20),
        ("bert.embeddings.LayerNorm.bias", 1e20),
        ("bert.encoder.layer.1.output.LayerNorm.bias", 1e35),
        ("bert.embeddings.word_embeddings.weight", 3e37),
    ],
)
def test_logits_that_are_not_finite_are_an_error(tiny_folder, tmp_path, name, factor, how):
    folder = spoilt(tiny_folder, tmp_path / "model", name, factor)
    qa = QuestionAnswerer(folder, **how)
    with pytest.raises(BackendError, match="not finite numbers") as no:
        qa.answer("who sailed?", "ada lee sailed")
    assert f"too large for {qa.model.dtype}" in str(no.value)
    assert ("Use dtype='float32'" in str(no.value)) == (qa.model.dtype != "float32")


@pytest.mark.parametrize("how", DEVICES, ids=str)
def test_a_norm_without_an_epsilon_is_named_where_it_divides_by_zero(tmp_path, how):
    folder = write_model(tmp_path / "model", tiny_config(layer_norm_eps=0.0))
    tensors = load_file(folder / "model.safetensors")
    tables = {name: tensors[name] * 0 for name in tensors if "_embeddings." in name}
    save_file(tensors | tables, folder / "model.safetensors")
    with pytest.raises(BackendError, match="layer_norm_eps 0.0 divides"):
        QuestionAnswerer(folder, **how).answer("who sailed?", "ada lee sailed")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("factor", [1e10, 1e20, 1e30])
@pytest.mark.parametrize("name", ["self.query.weight", "self.key.weight", "output.dense.weight"])
def test_weights_beyond_all_sense_give_the_definition_s_answers(
    tiny_folder, tmp_path, name, factor, dtype
):
    folder = spoilt(tiny_folder, tmp_path / "m", f"bert.encoder.layer.0.attention.{name}", factor)
    truth, ours = (
        QuestionAnswerer(folder, device=device, dtype=kind).model
        for device, kind in (("reference", None), ("cpu", dtype))
    )
    windows = ours.windows("who sailed?", ["the old captain and ada lee sailed north last year"])
    expected = np.concatenate(truth.logits(windows)[0])
    off = np.abs(np.concatenate(ours.logits(windows)[0]) - expected)
    assert off.max() < (1e-4 if dtype == "float32" else 0.5)


@pytest.mark.parametrize("option", [{"n": 3}, {"examples": 3}, {"options": 3}, {"batch_size": 3}])
def test_what_is_no_option_of_one_answer_is_named(qa, option):
    with pytest.raises(InputError, match=f"unknown option {next(iter(option))}"):
        qa.answer(WHO, TEXT, **option)


@pytest.mark.parametrize("value", ["no", 1, None])
def test_aligning_to_words_is_true_or_false(tiny, value):
    with pytest.raises(InputError, match="align_to_words must be True or False"):
        QuestionAnswerer(tiny, align_to_words=value)
