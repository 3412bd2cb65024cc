"""What users give: numbers of other programs, numbers beyond all bounds, objects of any kind."""

import pickle
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from squad_files import EXAMPLE

from minibert import BatchAnswerer
from minibert.answering import Options, QuestionAnswerer
from minibert.checkpoints.conversion import convert
from minibert.commands.options import at_least
from minibert.config import BertConfig
from minibert.errors import BackendError, ConfigError, InputError, MinibertError, ModelNotFoundError
from minibert.kernels.backend import get_backend
from minibert.kernels.training import get_training_kernels
from minibert.model import load_model
from minibert.options import check_count, check_number, check_path
from minibert.pipelines import PipelineOptions, QuestionAnsweringPipeline, pipeline
from minibert.reprs import shown, spelled
from minibert.squad.decoders import SquadSettings
from minibert.squad.evaluation import evaluate
from minibert.squad.files import read_squad
from minibert.training.run import train
from minibert.training.settings import TrainingSettings

LONG = "The old ship sailed to the moon and Ada Lee wrote a book in Berlin. " * 30


class Odd:
    """An object of a stranger's class, which cannot be printed."""

    def __repr__(self):
        raise KeyError("no name")

    __str__ = __repr__


def type_of(value):
    """The name of a test with a value that cannot be printed."""
    return type(value).__name__


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int64, np.uint64])
def test_counts_of_numpy_become_those_of_python(kind):
    found = check_count("n", kind(40), 1)
    assert (found, type(found)) == (40, int)


def test_every_count_and_number_of_the_options_is_python_s_own():
    whole, real = np.uint8(7), np.float32(0.5)
    lengths = {"max_seq_length": whole, "doc_stride": whole, "max_answer_length": whole}
    for record in (
        Options(
            **lengths,
            max_question_length=whole,
            null_score_diff_threshold=real,
            max_overlap=real,
            min_score=real,
            align_to_words=np.True_,
        ),
        PipelineOptions(
            top_k=whole,
            max_answer_len=whole,
            max_seq_len=whole,
            doc_stride=whole,
            max_question_len=whole,
            batch_size=whole,
            align_to_words=np.True_,
        ),
        SquadSettings(**lengths, max_query_length=whole, n_best_size=whole, null_threshold=real),
        TrainingSettings(seed=np.uint64(7), limit=whole, weight_decay=real, layers=(np.int8(0),)),
    ):
        own = (int, float, bool, str, tuple, type(None))
        assert {type(value) for value in vars(record).values()} <= set(own)


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint64])
def test_numpy_s_lengths_make_the_same_windows(tiny_folder, device, kind):
    qa = QuestionAnswerer(tiny_folder, device=device)
    ours = qa.n_best("who sailed?", LONG, 5, max_seq_length=40, doc_stride=8, max_answer_length=9)
    theirs = qa.n_best(
        "who sailed?",
        LONG,
        kind(5),
        max_seq_length=kind(40),
        doc_stride=kind(8),
        max_answer_length=kind(9),
    )
    assert theirs == ours
    plain = QuestionAnsweringPipeline(qa.model)
    lengths = {"top_k": 200, "max_seq_len": 40, "doc_stride": 8}
    theirs = plain("who sailed?", LONG, **{name: kind(value) for name, value in lengths.items()})
    assert theirs == plain("who sailed?", LONG, **lengths)


def test_a_model_turns_lengths_into_its_own_integers(tiny):
    windows = tiny.windows("who?", [LONG], max_seq_length=np.uint16(40), doc_stride=np.uint8(8))
    assert max(map(len, windows)) == 40
    with pytest.raises(InputError, match="max_seq_length must be a whole number"):
        tiny.windows("who?", [LONG], max_seq_length=40.0)


@pytest.mark.parametrize(
    "value",
    [True, np.True_, 0, -1, 2**63, 10**5000, -(10**5000), 1.0, "1", np.ones(2), Odd(), None],
    ids=type_of,
)
def test_what_is_no_count_is_refused(value):
    with pytest.raises(InputError, match="n must be a whole number of at least 1"):
        check_count("n", value, 1)


@pytest.mark.parametrize(
    "value",
    [True, "1", np.nan, 10**400, Fraction(10**5000, 3), Decimal(1), np.ones(2), Odd(), None],
    ids=type_of,
)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(InputError, match="x must be a number"):
        check_number("x", value)


def test_numbers_become_floats():
    found = [check_number("x", value) for value in (1, Fraction(1, 2), np.float32(0.5), np.inf)]
    assert found == [1.0, 0.5, 0.5, np.inf]
    assert {type(number) for number in found} == {float}


@pytest.mark.parametrize(
    "value", [10**5000, Fraction(10**5000), Odd(), np.ones(3), ["cpu"]], ids=type_of
)
def test_no_value_of_an_option_is_a_traceback(tiny, value):
    qa, plain = QuestionAnswerer(tiny), QuestionAnsweringPipeline(tiny)
    for name in ("max_seq_length", "max_answer_length", "min_score", "align_to_words"):
        with pytest.raises(InputError, match=name):
            qa.answer("who?", "a ship", **{name: value})
    for name in ("top_k", "batch_size", "handle_impossible_answer"):
        with pytest.raises(InputError, match=name):
            plain("who?", "a ship", **{name: value})
    for bad in ((value, "a ship"), ("who?", [value]), ("who?", {"a": value})):
        with pytest.raises(InputError):
            qa.answer(*bad)
    windows = tiny.windows("who?", ["a ship"])
    for bad in (
        lambda: tiny.windows("who?", [value]),
        lambda: tiny.logits(value),
        lambda: tiny.logits(windows, value),
        lambda: tiny.begin([value]),
        lambda: list(tiny.read(value)),
        lambda: list(tiny.read([(1, value)])),
        lambda: list(tiny.read([(1, windows)], batch_size=value)),
        lambda: list(tiny.read([(1, windows)], batch_tokens=value)),
        lambda: tiny.tokenizer.encode(value),
        lambda: tiny.tokenizer.names(value),
        lambda: qa.explain("who?", "a ship", thorough=value),
        lambda: qa.explain("who?", "a ship", lessons=value),
    ):
        with pytest.raises(InputError):
            bad()
    for name in ("decoder", "n_best_size", "null_threshold", "with_null"):
        with pytest.raises(InputError, match=name):
            SquadSettings(**{name: value})
    for name in ("learning_rate", "seed", "dtype", "device", "lr_scheduler_type", "layers"):
        with pytest.raises(InputError, match=name):
            TrainingSettings(**{name: value})
    for name in ("device", "dtype"):
        with pytest.raises(BackendError, match=name):
            get_backend(**{name: value})
        with pytest.raises(BackendError, match=name):
            get_training_kernels(**{name: value})
    for name in ("device", "dtype", "task"):
        with pytest.raises(MinibertError):
            pipeline(model=tiny.name, **{name: value})


def test_arguments_that_are_passed_over_may_be_anything(tiny):
    for value in (np.zeros(3), Odd(), {}, {"a": 1}, 10**5000):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asked = pipeline(model=tiny, framework=value, device_map=value, padding=value)
        assert asked("who?", "a ship")
        assert "padding" not in repr(asked)


class Named:
    """A path whose name is what it was given."""

    def __init__(self, name):
        self.name = name

    def __fspath__(self):
        return self.name


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "", 5, b"a", None, Named(5), Named(b"a\0")])
def test_what_names_no_folder_is_refused(tiny, tiny_folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"must be a folder's name|no folder can have that name"):
        check_path("the output", name)
    data = read_squad(EXAMPLE)
    with pytest.raises(InputError):
        convert(tiny_folder, name)
    with pytest.raises(InputError):
        train(data, tiny_folder, name)
    if not isinstance(name, str | None):
        for opens in (read_squad, BatchAnswerer, load_model):
            with pytest.raises(MinibertError):
                opens(name)(["a row"])
    if name is not None:
        with pytest.raises(InputError):
            evaluate(tiny, data, output_dir=name)
        with pytest.raises(InputError):
            load_model("an/organisation", cache_dir=name)
    if not isinstance(name, str | None):
        with pytest.raises(InputError, match="revision must be"):
            load_model("an/organisation", revision=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [str, Path, Named, lambda name: Named(name.encode())])
def test_a_folder_s_name_may_be_an_object(tiny_folder, tmp_path, kind):
    assert convert(kind(str(tiny_folder)), kind(str(tmp_path / "out"))) == tmp_path / "out"
    assert load_model(kind(str(tmp_path / "out")), device="reference").windows("who?", ["a ship"])


@pytest.mark.parametrize("text", ["who\udc80?", "\ud800", "\udfff\ud800 ada"])
def test_halves_of_characters_are_refused(tiny, text):
    for question, context in ((text, "ada lee"), ("who?", text), ("who?", [text, "ada"])):
        with pytest.raises(InputError, match="lone surrogate"):
            QuestionAnswerer(tiny).answer(question, context)
    with pytest.raises(InputError, match="lone surrogate"):
        QuestionAnsweringPipeline(tiny)(text, "ada lee")


@pytest.mark.parametrize("text", ["who\0?", "\0", "a\x1b[31m \x7f ada", "\u202eada\u2066"])
def test_control_characters_are_characters(tiny, text):
    qa, plain = QuestionAnswerer(tiny), QuestionAnsweringPipeline(tiny)
    for question, context in ((text, "ada lee"), ("who?", text), ("who?", [text, "ada"])):
        answer = qa.answer(question, context, null_score_diff_threshold=np.inf)
        texts = [context] if isinstance(context, str) else context
        assert texts[answer.document][answer.start : answer.end] == answer.text
    assert plain(text, "ada lee")["answer"] in ("", "ada", "lee", "ada lee")


def test_numbers_of_a_command_line_have_an_end():
    parse = at_least(1)
    assert parse(str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(Exception, match=r"must be below 2\*\*63"):
        parse("9" * 4000)
    with pytest.raises(ValueError, match="limit"):
        parse("9" * 5000)


def test_whatever_is_in_a_message_is_short():
    for value in ("a" * 10**6, 10**5000, Odd(), [Odd()], {"a": 10**5000}, np.zeros(10**5)):
        assert len(shown(value)) <= 80
        assert len(spelled(value)) <= 80


@pytest.mark.parametrize("kind", [InputError, ModelNotFoundError])
def test_messages_can_be_printed_and_are_not_longer_than_a_screen(kind):
    error = kind("\ud800" + "x" * 10**6 + "the end")
    assert str(error).startswith("\\ud800x")
    assert str(error).endswith("the end")
    assert len(str(error)) < 5000
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_numpy_would_compare_and_what_cannot_be_hashed_is_refused_in_our_words(tiny_folder):
    both = np.array(["gelu", "relu"])
    for wrong in ({"hidden_act": both}, {"family": both}):
        with pytest.raises(ConfigError):
            BertConfig(**wrong)
    for raw in (5, None, [], "bert"):
        with pytest.raises(ConfigError, match="must be an object"):
            BertConfig.from_dict(raw)
    for wrong in ({"on_error": np.array(["null", "raise"])}, {"device": ["cpu"]}):
        with pytest.raises(InputError):
            BatchAnswerer(**wrong)
    with pytest.raises(InputError, match="must be a Model"):
        QuestionAnsweringPipeline(str(tiny_folder))


def test_layers_of_groups_are_bounded_together():
    shared = {"model_type": "albert", "num_hidden_layers": 12, "inner_group_num": 84}
    with pytest.raises(ConfigError, match="times inner_group_num must be at most 1000"):
        BertConfig.from_dict(shared)
