"""pipeline("question-answering") takes and gives what transformers' did."""

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minibert import (
    BackendError,
    InputError,
    MinibertError,
    QuestionAnswerer,
    TokenizerError,
    load_model,
    pipeline,
)
from minibert.pipelines import (
    RENAMED,
    TAKEN,
    PipelineOptions,
    device_name,
    dtype_name,
    explain_once,
)

ROOT = Path(__file__).resolve().parents[1]

TEXT = "My name is Wolfgang and I live in Berlin. The river is called Spree."
WHERE = "Where do I live?"
NAME = "What is my name?"


@pytest.fixture(scope="module")
def qa(embedded):
    return pipeline("question-answering", model=embedded)


def test_the_embedded_model_answers_with_no_model_named(qa):
    answer = pipeline()(question=WHERE, context=TEXT)
    assert list(answer) == ["score", "start", "end", "answer"]
    assert answer["answer"] == TEXT[answer["start"] : answer["end"]] == "Berlin"
    assert 0 < answer["score"] <= 1
    assert answer == qa(question=WHERE, context=TEXT)


def test_every_form_of_one_question_gives_the_same_dict(qa):
    example = {"question": WHERE, "context": TEXT}
    want = qa(**example)
    squad_example = SimpleNamespace(question_text=WHERE, context_text=TEXT)
    for form in (example, [example], (example,), squad_example, [squad_example]):
        assert qa(form) == want
    assert qa(WHERE, TEXT) == want
    assert qa(question=[WHERE], context=[TEXT]) == want
    assert qa(question=[WHERE], context=TEXT) == want


def test_many_questions_come_back_in_their_order(qa):
    examples = [{"question": q, "context": TEXT * n} for n in (1, 30, 2) for q in (WHERE, NAME)]
    alone = [qa(example) for example in examples]
    together = qa(examples)
    assert [a["answer"] for a in together] == [a["answer"] for a in alone]
    for a, b in zip(together, alone, strict=True):
        assert a["start"] == b["start"]
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)
    assert qa(*examples[:2]) == together[:2] or qa(*examples[:2])[0]["answer"] == "Berlin"
    lists = qa(question=[WHERE, NAME], context=[TEXT, TEXT])
    assert lists == qa(question=[WHERE, NAME], context=TEXT)


def test_a_generator_gives_an_iterator_and_is_read_as_needed(qa):
    taken = []

    def examples():
        for number in itertools.count():
            taken.append(number)
            yield {"question": (WHERE, NAME)[number % 2], "context": TEXT}

    results = qa(examples(), batch_size=2)
    assert not taken
    assert [next(results)["answer"] for _ in range(4)] == ["Berlin", "Wolfgang"] * 2
    assert len(taken) <= 4


def test_the_answers_before_a_bad_example_come_before_its_error(qa):
    good, bad = {"question": WHERE, "context": TEXT}, {"question": WHERE}
    results = qa(iter([good, good, bad, good]))
    assert [next(results)["answer"] for _ in range(2)] == ["Berlin"] * 2
    with pytest.raises(InputError, match="example 3: the example has no 'context'"):
        next(results)


class Column:
    """A column of texts as pyarrow or polars has it: it knows how to become a list."""

    def __init__(self, method, values):
        setattr(self, method, lambda: list(values))


class Lazy(Sequence):
    """A column as Hugging Face's datasets have it: rows are made when they are asked for."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        return self.values[i]


class Rows:
    """A Dataset of torch, which cannot be iterated over but by numbers."""

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return {"question": [WHERE, NAME][i], "context": TEXT}


@pytest.mark.parametrize(
    "column",
    [
        tuple,
        np.array,
        lambda values: np.array(values, object),
        lambda values: Column("tolist", values),
        lambda values: Column("to_pylist", values),
        lambda values: Column("to_list", values),
        Lazy,
    ],
)
def test_columns_of_any_program_are_taken_as_lists(qa, column):
    expected = qa(question=[WHERE, NAME], context=[TEXT, TEXT])
    assert qa(question=column([WHERE, NAME]), context=column([TEXT, TEXT])) == expected
    assert qa(question=column([WHERE, NAME]), context=TEXT) == expected
    assert qa(question=column([WHERE]), context=column([TEXT])) == expected[0]
    assert qa(question=column([]), context=column([])) == []
    with pytest.raises(InputError, match="there are 1 questions and 2 contexts"):
        qa(question=column([WHERE]), context=column([TEXT, TEXT]))
    with pytest.raises(InputError, match="one question about a list of contexts"):
        qa(question=WHERE, context=column([TEXT]))


def test_texts_of_numpy_are_texts(qa):
    expected = qa(question=WHERE, context=TEXT)
    assert qa(question=np.str_(WHERE), context=np.str_(TEXT)) == expected
    assert qa(question=np.array(WHERE), context=np.array(TEXT)) == expected
    assert qa(np.str_(WHERE), np.str_(TEXT)) == expected
    assert qa({"question": np.str_(WHERE), "context": np.str_(TEXT)}) == expected


@pytest.mark.parametrize(
    ("row", "found"),
    [(float("nan"), "float: nan"), (None, "NoneType: None"), ([NAME], "list: "), (b"a", "bytes")],
)
def test_a_row_that_is_no_text_is_named(qa, row, found):
    column = np.array([WHERE, NAME, None], object)
    column[2] = row
    with pytest.raises(InputError, match=f"example 3: question must be a string, got {found}"):
        qa(question=column, context=TEXT)
    with pytest.raises(InputError, match="example 1: question must be a string, got int: 0"):
        qa(question=np.arange(3), context=TEXT)
    with pytest.raises(InputError, match="example 2: context cannot be empty"):
        qa(question=(WHERE, WHERE), context=(TEXT, ""))


def test_a_dataset_of_torch_is_read_as_needed(qa):
    answers = qa(Rows())
    assert isinstance(answers, Iterator)
    assert list(answers) == qa(question=[WHERE, NAME], context=TEXT)


def test_empty_lists_give_an_empty_list(qa):
    assert qa([]) == []
    assert qa(question=[], context=[]) == []


def test_a_text_asked_twice_is_tokenised_once(qa, monkeypatch):
    backend, texts = qa.tokenizer.backend, []

    class Counted:
        def encode(self, text, **options):
            texts.append(text)
            return backend.encode(text, **options)

    qa.tokenizer.encode.clear()
    monkeypatch.setattr(qa.tokenizer, "backend", Counted())
    qa(question=[WHERE, NAME, WHERE], context=TEXT)
    assert sorted(texts) == sorted([WHERE, NAME, TEXT])


@pytest.mark.parametrize(("null", "score"), [(False, 0.0), (True, 1.0)])
def test_white_space_holds_no_answer(qa, null, score):
    empty = {"score": score, "start": 0, "end": 0, "answer": ""}
    assert qa(question=WHERE, context=" \n", handle_impossible_answer=null) == empty


def test_no_fillers_when_more_answers_are_asked_than_there_are(qa):
    answers = qa(question=WHERE, context="Berlin, Berlin", top_k=30)
    assert [a["answer"] for a in answers] != []
    assert all(a["score"] > 0 and a["start"] < a["end"] for a in answers)


def test_options_given_at_the_start_are_the_defaults(embedded):
    qa = pipeline(model=embedded, top_k=3, align_to_words=False)
    assert len(qa(question=WHERE, context=TEXT)) == 3
    assert isinstance(qa(question=WHERE, context=TEXT, top_k=1), dict)
    assert len(qa(question=WHERE, context=TEXT, top_k=None)) == 3


def test_a_question_is_cut_only_when_asked_and_needed(qa):
    long = "where " * 600 + "do I live?"
    with pytest.raises(InputError, match="the question has 60. tokens and leaves no room"):
        qa(question=long, context=TEXT)
    assert qa(question=long, context=TEXT, max_question_len=64)["answer"]
    assert qa(question=WHERE, context=TEXT, max_question_len=2) == qa(question=WHERE, context=TEXT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"question": "", "context": TEXT}, "question cannot be empty"),
        ({"question": WHERE, "context": ""}, "context cannot be empty"),
        ({"question": WHERE}, "context missing"),
        ({}, "question and context missing"),
        ({"question": WHERE, "context": None}, "context missing"),
        ({"question": 5, "context": TEXT}, "int and str"),
        ({"question": [WHERE, 5], "context": TEXT}, "question must be a string, got int: 5"),
        ({"question": [WHERE], "context": [None]}, "context must be a string, got NoneType"),
        ({"question": [WHERE, NAME], "context": [TEXT]}, "2 questions and 1 contexts"),
        ({"question": WHERE, "context": [TEXT]}, "one question about a list of contexts"),
        ({"question": WHERE, "context": TEXT, "top_k": 0}, "top_k must be .* at least 1, got 0"),
        ({"question": WHERE, "context": TEXT, "top_k": 1.5}, "top_k must be"),
        ({"question": WHERE, "context": TEXT, "max_answer_len": 0}, "max_answer_len must be"),
        ({"question": WHERE, "context": TEXT, "doc_stride": -1}, "doc_stride must be"),
        ({"question": WHERE, "context": TEXT, "batch_size": 0}, "batch_size must be"),
        ({"question": WHERE, "context": TEXT, "align_to_words": "no"}, "align_to_words must be"),
        ({"question": WHERE, "context": TEXT, "max_seq_len": 513}, "beyond the 512 positions"),
        (
            {"question": WHERE, "context": TEXT, "max_seq_len": 32, "doc_stride": 40},
            "doc_stride 40 cannot advance",
        ),
        ({"question": WHERE, "context": TEXT, "top_n": 2}, "unknown option 'top_n'.*'top_k'"),
        ({"question": WHERE, "context": "a\ud800"}, "character 1 is the lone surrogate"),
    ],
)
def test_bad_input_is_named(qa, arguments, message):
    with pytest.raises(InputError, match=message):
        qa(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5,), "must be a dict with 'question' and 'context', got int"),
        (("only a question",), "must be a dict"),
        (([WHERE, TEXT],), "example 1: an example must be a dict"),
        ((np.array(3),), "an example must be a dict .*got ndarray"),
        ((SimpleNamespace(columns=["question"]),), "a table: give question=table"),
        (({"question": WHERE},), "the example has no 'context'"),
        (
            ([{"question": WHERE, "context": TEXT}, {}],),
            "example 2: the example has no 'question' and no",
        ),
    ],
)
def test_bad_positional_input_is_named(qa, arguments, message):
    with pytest.raises(InputError, match=message):
        qa(*arguments)


def test_position_and_name_together_are_refused(qa):
    with pytest.raises(InputError, match="not both"):
        qa({"question": WHERE, "context": TEXT}, question=WHERE)


def test_other_tasks_and_devices_are_refused(embedded, no_gpu):
    with pytest.raises(InputError, match="must be 'question-answering', got 'summarization'"):
        pipeline("summarization")
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        pipeline(device="cuda")
    with pytest.raises(BackendError, match="unknown device 'tpu'"):
        pipeline(device="tpu", dtype="float16")


# --- arguments of transformers' pipeline -----------------------------------------------------


class Printed:
    """An object that prints as a text, as those of torch do."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


@pytest.fixture
def warned():
    """What is warned of, as texts; nothing has been explained before."""
    explain_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(warning.message) for warning in caught]
    explain_once.cache_clear()


@pytest.mark.parametrize(
    "options",
    [
        {"task": None},
        {"framework": "pt"},
        {"use_fast": True, "trust_remote_code": True},
        {"use_auth_token": True},
        {"torch_dtype": "auto", "device": -1},
        {"dtype": Printed("torch.float32"), "device": Printed("cpu")},
        {name: None for name in (*TAKEN, *RENAMED)},
        {"model_kwargs": {}, "config": None, "device_map": None},
    ],
)
def test_what_asks_for_nothing_special_is_taken_silently(tiny_folder, warned, options):
    qa = pipeline(model=tiny_folder, **options)
    assert (qa.device, qa.model.dtype) == ("cpu", "float32")
    assert warned() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device_map", "auto"),
        ("model_kwargs", {"load_in_8bit": True}),
        ("config", "org/other"),
        ("feature_extractor", "org/other"),
        ("image_processor", "org/other"),
        ("processor", "org/other"),
        ("pipeline_class", dict),
    ],
)
def test_what_asks_for_more_is_explained_once(tiny_folder, warned, name, value):
    for _ in range(2):
        pipeline(model=tiny_folder, **{name: value})
    (text,) = warned()
    assert text.startswith(f"{name} is ignored: ")


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
def test_the_dtypes_of_torch_are_ours(tiny_folder, warned, argument):
    options = {argument: Printed("torch.bfloat16")}
    assert pipeline(model=tiny_folder, **options).model.dtype == "bfloat16"
    assert warned() == []
    for half in (Printed("torch.float16"), "float16"):
        assert pipeline(model=tiny_folder, **{argument: half}).model.dtype == "float32"
    (text,) = warned()
    assert text.startswith("dtype float16 is ignored, float32 is used: 'cpu' computes in float32,")
    with pytest.raises(BackendError, match="unknown dtype 'complex64'"):
        pipeline(model=tiny_folder, **{argument: Printed("torch.complex64")})
    assert dtype_name("torch.float16", "cuda:1") == "float16"


def test_a_number_of_a_gpu_means_the_processor_where_there_is_none(tiny_folder, warned, no_gpu):
    for number in (0, np.int64(0)):
        assert pipeline(model=tiny_folder, device=number).device == "cpu"
    (text,) = warned()
    assert text.startswith("device=0 is ignored, the processor computes: there is no NVIDIA driver")
    assert [device_name(d) for d in (None, -1, "cuda:1")] == ["auto", "cpu", "cuda:1"]


def test_topk_is_top_k_and_warns_where_it_is_written(tiny_folder, warned):
    qa = pipeline(model=tiny_folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answers = qa("who ?", "the old captain sailed north", topk=2)
        assert qa("who ?", "the old captain sailed north", topk=2, top_k=None) == answers
    assert len(answers) == 2
    assert [(w.filename, str(w.message)) for w in caught] == [
        (__file__, "topk is deprecated; write top_k")
    ]


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("devise", "device"), ("tokeniser", "tokenizer"), ("framwork", "framework"), ("k", None)],
)
def test_unknown_arguments_are_refused_before_a_model_is_loaded(option, nearest):
    hint = f"did you mean '{nearest}'" if nearest else "there are top_k, max_answer_len"
    with pytest.raises(InputError, match=f"unknown option '{option}'; {hint}"):
        pipeline(model="./nowhere", **{option: 1})


def test_a_tokenizer_is_a_folder_a_file_in_it_a_name_or_a_loaded_one(tiny, tiny_folder, qa):
    for tokenizer in (tiny_folder, str(tiny_folder), tiny_folder / "vocab.txt", tiny.tokenizer):
        made = pipeline(model=tiny_folder, tokenizer=tokenizer)
        assert made.tokenizer.vocab_size == tiny.tokenizer.vocab_size
    assert made.tokenizer is tiny.tokenizer
    for model in (None, "embedded"):
        made = pipeline(model=model, tokenizer="embedded")
        assert made.tokenizer.vocab_size == qa.tokenizer.vocab_size
    assert QuestionAnswerer(tiny, tokenizer=tiny_folder).model.weights is tiny.weights
    for model in (tiny, tiny_folder):
        with pytest.raises(TokenizerError, match="Is the tokenizer from the same model"):
            load_model(model, tokenizer="embedded")
    with pytest.raises(MinibertError, match="nowhere: there is no such folder or file"):
        load_model(tokenizer="./nowhere")


def test_one_error_in_a_stream_comes_at_its_place(qa):
    good = {"question": WHERE, "context": TEXT}
    results = qa(iter([good, good, {"question": WHERE, "context": ""}]), batch_size=1)
    assert next(results)["answer"] == next(results)["answer"] == "Berlin"
    with pytest.raises(MinibertError, match="context cannot be empty"):
        next(results)


def test_defaults_are_those_of_transformers():
    options = PipelineOptions()
    assert (options.top_k, options.max_answer_len, options.max_question_len) == (1, 15, None)
    assert options.align_to_words
    assert not options.handle_impossible_answer


def test_scores_of_several_windows_can_exceed_one_and_probabilities_cannot(qa):
    document = (ROOT / "minibert" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    score, probability = map(float, re.findall(r"# ([\d.]+)$", code, re.MULTILINE))
    text = "Ada Lovelace wrote the first program. "
    text = (text + "The ship sailed past the harbour in the rain. " * 32) * 3
    asked = {"question": "Who wrote the first program?", "context": text}
    found = qa(**asked)
    assert found["answer"] == "Ada Lovelace"
    assert found["score"] == pytest.approx(score, abs=0.01)
    assert score > 1
    best = QuestionAnswerer(qa.model).answer(**asked)
    assert best.probability == pytest.approx(probability, abs=0.01)
