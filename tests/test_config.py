"""config.json: what is taken from it, and what is said about models that minibert cannot run."""

import json

import pytest
from random_models import tiny_config

from minibert.config import ACTIVATIONS, BertConfig
from minibert.errors import ConfigError, MinibertError, ModelNotFoundError
from minibert.families import FAMILIES, OTHERS
from minibert.reprs import shown

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


def problem(raw):
    with pytest.raises(ConfigError) as caught:
        BertConfig.from_dict(raw)
    return str(caught.value)


def file_problem(path, kind=ConfigError):
    with pytest.raises(kind) as caught:
        BertConfig.from_json(path)
    message = str(caught.value)
    assert message.count(str(path)) == 1
    return message


# --- configs that are fine -------------------------------------------------------------------


def test_an_empty_config_is_bert_base():
    config = BertConfig.from_dict({})
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (30522, 768, 12)
    assert config.layer_norm_eps == 1e-12
    assert config.head_size == 64


def test_fields_that_minibert_does_not_use_are_ignored():
    raw = {"hidden_size": 24, "torch_dtype": "float16", "pad_token_id": 0, "id2label": {"0": "a"}}
    assert BertConfig.from_dict(raw) == BertConfig(hidden_size=24)


def test_a_config_without_model_type_is_bert():
    assert BertConfig.from_dict({"hidden_size": 24}) == BertConfig.from_dict(
        {"hidden_size": 24, "model_type": "bert"}
    )


def test_what_makes_a_bert_an_encoder_may_be_said_out_loud():
    raw = {
        "model_type": "bert",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "is_encoder_decoder": False,
        "add_cross_attention": False,
        "hidden_size": 24,
        "embedding_size": 24,
    }
    assert BertConfig.from_dict(raw).hidden_size == 24


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_known_activation_is_accepted(name):
    assert BertConfig(hidden_act=name).hidden_act == name


@pytest.mark.parametrize("eps", [0, 0.0, 1, 1e-5])
def test_eps_may_be_zero_or_a_whole_number(eps):
    assert BertConfig(layer_norm_eps=eps).layer_norm_eps == eps


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        tiny_config().hidden_size = 8


# --- models that minibert does not run -------------------------------------------------------


@pytest.mark.parametrize("name", ["deberta-v2", "mpnet", "BERT", "", None, 1, ["bert"]])
def test_another_model_type_is_named(name):
    assert f"model_type is {name!r}" in problem({"model_type": name})


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_does_not_run_has_a_reason_and_the_nearest_that_runs(name):
    message = problem({"model_type": name})
    reason, instead = OTHERS[name]
    assert f"model_type is {name!r}: {reason}. The nearest that runs: {instead}" in message
    assert name not in FAMILIES
    named = ("RoBERTa", "DistilBERT", "XLM-R", "CamemBERT", "ELECTRA")
    assert any(word in instead for word in named)


def test_what_is_not_known_at_all_is_told_which_families_run():
    message = problem({"model_type": "mystery"})
    assert f"model_type is 'mystery', and minibert runs {', '.join(FAMILIES)}" in message


@pytest.mark.parametrize("name", ["relative_key", "relative_key_query", None])
def test_other_positions_than_absolute_are_named(name):
    assert f"position_embedding_type is {name!r}" in problem({"position_embedding_type": name})


@pytest.mark.parametrize("flag", ["is_decoder", "is_encoder_decoder", "add_cross_attention"])
def test_a_decoder_is_named(flag):
    assert f"{flag} is true" in problem({flag: True})


def test_a_factored_embedding_is_named():
    message = problem({"embedding_size": 128, "hidden_size": 768})
    assert "embedding_size 128 differs from hidden_size" in message


def test_all_reasons_against_a_model_are_given_at_once():
    message = problem(
        {
            "model_type": "longformer",
            "position_embedding_type": "relative_key",
            "is_decoder": True,
            "add_cross_attention": True,
            "embedding_size": 8,
        }
    )
    for word in (
        "model_type",
        "position_embedding_type",
        "is_decoder",
        "add_cross_attention",
        "embedding_size",
    ):
        assert word in message


# --- values that are wrong -------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [True, 0, -1, 12.0, "12", None, [12], float("inf")])
def test_a_size_that_is_no_positive_whole_number_is_named_with_its_value(name, value):
    message = problem({name: value})
    assert name in message
    assert f"got {value!r}" in message


def test_one_token_type_is_too_few():
    assert "type_vocab_size must be at least 2" in problem({"type_vocab_size": 1})


@pytest.mark.parametrize(
    "eps", [float("nan"), float("inf"), 10**400, 1.5, -1e-12, "1e-12", None, True, [0.1]]
)
def test_an_eps_that_is_no_number_from_0_to_1_is_named(eps):
    message = problem({"layer_norm_eps": eps})
    assert "layer_norm_eps" in message
    assert f"got {shown(eps)}" in message


@pytest.mark.parametrize("name", ["geluu", "GELU", "", None, 3, ["gelu"]])
def test_an_unknown_activation_is_named_and_the_known_ones_are_listed(name):
    message = problem({"hidden_act": name})
    assert f"got {name!r}" in message
    for known in ACTIVATIONS:
        assert known in message


ODD = {
    "long": "x" * 10**6,
    "huge": 10**5000,
    "far below zero": -(10**5000),
    "many": [1] * 10**5,
    "nan": float("nan"),
    "half a character": "\ud800",
}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "name",
    [
        *SIZES,
        *("embedding_size", "hidden_act", "layer_norm_eps", "model_type", "minibert"),
        *("position_embedding_type", "pad_token_id"),
    ],
)
def test_whatever_a_value_is_the_message_is_short(name, value):
    message = problem({"model_type": "roberta"} | {name: value})
    assert len(message) < 1000
    message.encode()


@pytest.mark.parametrize("family", ["x", None, ["bert"], "x" * 10**6])
def test_a_family_that_is_none_is_named(family):
    with pytest.raises(ConfigError, match="model_type is .* and minibert runs bert"):
        BertConfig(family=family)


def test_heads_that_do_not_divide_the_hidden_size_are_named():
    message = problem({"hidden_size": 30, "num_attention_heads": 4})
    assert "hidden_size must be a multiple of num_attention_heads, got 30 and 4" in message


def test_all_wrong_values_are_reported_at_once():
    raw = dict.fromkeys(SIZES, 0) | {"layer_norm_eps": float("nan"), "hidden_act": "no"}
    message = problem(raw)
    assert len(message.split("; ")) == len(raw)
    for name in raw:
        assert name in message


def test_a_config_made_by_hand_is_checked_too():
    with pytest.raises(ConfigError, match="hidden_size"):
        BertConfig(hidden_size=0)


# --- the file --------------------------------------------------------------------------------


def test_a_file_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(vars(tiny_config())), encoding="utf-8")
    assert BertConfig.from_json(path) == tiny_config()


def test_a_byte_order_mark_is_accepted(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"hidden_size": 24}')
    assert BertConfig.from_json(path).hidden_size == 24


def test_a_wrong_value_in_a_file_is_reported_with_the_path(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"vocab_size": -3}')
    assert "got -3" in file_problem(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b'{"a": 1} x',
        b"\xff\xfe{}",
        b'{"vocab_size": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
    ids=["empty", "truncated", "Python", "two values", "not UTF-8", "endless digits", "deep"],
)
def test_a_file_that_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert "is not JSON" in file_problem(path)


@pytest.mark.parametrize(("content", "kind"), [("[]", "list"), ("3", "int"), ("null", "NoneType")])
def test_json_that_is_no_object_is_refused(tmp_path, content, kind):
    path = tmp_path / "config.json"
    path.write_text(content)
    assert f"must hold a JSON object, found {kind}" in file_problem(path)


def test_a_missing_file_is_not_found(tmp_path):
    path = tmp_path / "config.json"
    assert "No such file" in file_problem(path, ModelNotFoundError)


def test_a_folder_in_place_of_the_file_is_not_found(tmp_path):
    file_problem(tmp_path, ModelNotFoundError)


def test_the_errors_are_python_s_own_kinds_too(tmp_path):
    with pytest.raises(ValueError, match="model_type") as caught:
        BertConfig.from_dict({"model_type": "gpt2"})
    assert isinstance(caught.value, MinibertError)
    with pytest.raises(OSError, match="cannot be read"):
        BertConfig.from_json(tmp_path / "config.json")


def test_sizes_of_no_model_are_refused_before_memory_is_taken():
    with pytest.raises(ConfigError, match="num_hidden_layers must be .* at most 1000"):
        BertConfig(num_hidden_layers=10**9)
    with pytest.raises(ConfigError, match="max_position_embeddings must be"):
        BertConfig(max_position_embeddings=10**30)


# --- what minibert alone uses ----------------------------------------------------------------


def test_a_null_threshold_and_a_temperature_stand_in_an_object_of_their_own():
    own = {"null_threshold": -0.4, "temperature": 2, "of a later minibert": [1]}
    config = BertConfig.from_dict({"minibert": own, "null_threshold": 7, "temperature": 7})
    assert (config.null_threshold, config.temperature) == (-0.4, 2)
    config = BertConfig.from_dict({"null_threshold": 7, "temperature": 7})
    assert (config.null_threshold, config.temperature) == (0, 1)


@pytest.mark.parametrize("bad", [None, "1", True, [1], float("nan"), float("inf"), 10**400])
@pytest.mark.parametrize("name", ["null_threshold", "temperature"])
def test_they_are_numbers(name, bad):
    assert f"{name} must be a number from" in problem({"minibert": {name: bad}})


@pytest.mark.parametrize("bad", [0, -1, 1e-300, 101])
def test_a_temperature_is_neither_zero_nor_without_bounds(bad):
    assert "temperature must be a number from 0.01 to 100.0" in problem(
        {"minibert": {"temperature": bad}}
    )


@pytest.mark.parametrize("bad", [None, [], "x", 1])
def test_they_stand_in_an_object(bad):
    assert "minibert must be an object, got " in problem({"minibert": bad})
