"""BertConfig: the numbers that fix a BERT model's shape, read from config.json.

What only minibert uses stands there too, in an object "minibert":

    "minibert": {"null_threshold": -0.4, "temperature": 1.3}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibert.errors import ConfigError, InputError, ModelNotFoundError
from minibert.families import FAMILIES, why_not
from minibert.files import LARGEST_JSON, json_value, read_file
from minibert.options import is_one_of, path_text
from minibert.reprs import shown

# Sizes beyond these are a damaged file, not a model.
LARGEST = {"num_hidden_layers": 1000, "num_hidden_groups": 1000, "inner_group_num": 1000}
LARGEST_SIZE = 10**8

# hidden_act in config.json -> the function's name in kernels/reference.py.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


# Fields of BertConfig that config.json has.
FIELDS = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "hidden_act",
)
SHARING_FIELDS = ("num_hidden_groups", "inner_group_num")  # of families that share layers
# Those in its object "minibert", and the least and the largest number that each may be.
OWN_FIELDS = {"null_threshold": (-1e6, 1e6), "temperature": (0.01, 100.0)}


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Shape of a BERT encoder.  Field names and defaults are those of transformers' BertConfig.

    Letters in brackets are the ones used for array shapes all over the code.

    Raises:
        ConfigError: a value is of the wrong kind or does not fit the others.
    """

    vocab_size: int = 30522  # [V] rows of the word-embedding table
    embedding_size: int | None = None  # [E] numbers per row of the tables; None: hidden_size
    hidden_size: int = 768  # [D] numbers per token
    num_hidden_layers: int = 12  # [L]
    num_hidden_groups: int = 1  # where layers are shared: how many groups of them there are
    inner_group_num: int = 1  # and layers in each
    num_attention_heads: int = 12  # [H]
    intermediate_size: int = 3072  # [F] inner width of the feed-forward part
    max_position_embeddings: int = 512  # [P] longest window, in tokens
    type_vocab_size: int = 2  # 0 = question, 1 = text
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    family: str = "bert"  # model_type in config.json, a key of `FAMILIES`
    first_position: int = 0  # row of the position table for the first token of a window
    null_threshold: float = 0.0  # QuestionAnswerer's null_score_diff_threshold, if nobody says
    temperature: float = 1.0  # scores are divided by it before they become probabilities

    def __post_init__(self) -> None:
        """Reject shapes the encoder cannot run; all problems at once."""
        problems = []
        if not is_one_of(self.family, tuple(FAMILIES)):
            raise ConfigError(why_not(self.family))
        family = FAMILIES[self.family]
        for name in (
            "vocab_size",
            *(["embedding_size"] if self.embedding_size is not None else []),
            "hidden_size",
            "num_hidden_layers",
            *(SHARING_FIELDS if family.shares_layers else []),
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            largest = LARGEST.get(name, LARGEST_SIZE)
            if type(value) is not int or not 1 <= value <= largest:
                problems.append(
                    f"{name} must be a whole number of at least 1 and at most {largest}, "
                    f"got {shown(value)}"
                )
        types, least = self.type_vocab_size, max(1, family.token_types)
        if type(types) is not int or not least <= types <= LARGEST_SIZE:
            why = " (question and text)" if least == 2 else ""
            problems.append(f"type_vocab_size must be at least {least}{why}, got {shown(types)}")
        first, positions = self.first_position, self.max_position_embeddings
        if not problems and (type(first) is not int or not 0 <= first < positions):
            problems.append(
                f"the first position, pad_token_id + 1, must be below {positions}, "
                f"got {shown(first)}"
            )
        eps = self.layer_norm_eps
        if type(eps) not in (int, float) or not 0 <= eps <= 1:
            problems.append(f"layer_norm_eps must be a number from 0 to 1, got {shown(eps)}")
        for name, (lowest, highest) in OWN_FIELDS.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not lowest <= value <= highest:
                problems.append(
                    f"{name} must be a number from {lowest} to {highest}, got {shown(value)}"
                )
        if not is_one_of(self.hidden_act, tuple(ACTIVATIONS)):
            problems.append(
                f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {shown(self.hidden_act)}"
            )
        if not problems and self.hidden_size % self.num_attention_heads:
            problems.append(
                "hidden_size must be a multiple of num_attention_heads, "
                f"got {self.hidden_size} and {self.num_attention_heads}"
            )
        groups, layers = self.num_hidden_groups, self.num_hidden_layers
        if not problems and family.shares_layers and groups > layers:
            problems.append(
                f"num_hidden_groups must be at most num_hidden_layers, got {groups} and {layers}"
            )
        most = LARGEST["num_hidden_layers"]
        if not problems and family.shares_layers and layers * self.inner_group_num > most:
            problems.append(
                f"num_hidden_layers times inner_group_num must be at most {most}, "
                f"got {layers} and {self.inner_group_num}"
            )
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def table_width(self) -> int:
        """Numbers in a row of the embedding tables, E in shapes where it is not D."""
        return self.embedding_size or self.hidden_size

    @property
    def projects(self) -> bool:
        """Whether a dense layer [D, E] stands between the embeddings and the first layer."""
        return self.table_width != self.hidden_size or FAMILIES[self.family].always_projects

    @property
    def longest_window(self) -> int:
        """Tokens of a window for which there are positions."""
        return self.max_position_embeddings - self.first_position

    @property
    def activation(self) -> str:
        """The function that `hidden_act` names: 'gelu', 'gelu_tanh', 'relu' or 'silu'."""
        return ACTIVATIONS[self.hidden_act]

    @property
    def head_size(self) -> int:
        """Width of one attention head, Dh in shapes."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> BertConfig:
        """Take the fields minibert knows from config.json's content; ignore the others.

        Raises:
            ConfigError: minibert does not run such a model, or a value is wrong.
        """
        if not isinstance(raw, Mapping):
            raise ConfigError(f"must be an object, got {shown(raw)}")
        reasons = []
        model_type = raw.get("model_type", "bert")  # Google's bert_config.json has none
        family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
        if family is None:
            reasons.append(why_not(model_type))
            family = FAMILIES["bert"]
        position = raw.get("position_embedding_type", "absolute")
        if position != "absolute":
            reasons.append(f"position_embedding_type is {shown(position)}, expected 'absolute'")
        for flag in ("is_decoder", "is_encoder_decoder", "add_cross_attention"):
            if raw.get(flag):
                reasons.append(f"{flag} is true, expected an encoder")
        values = dict(family.defaults)
        for name in FIELDS:
            if (key := family.keys.get(name, name)) in raw:
                values[name] = raw[key]
        if family.shares_layers:
            values |= {name: raw[name] for name in SHARING_FIELDS if name in raw}
        width, hidden = values.get("embedding_size"), values.get("hidden_size", cls.hidden_size)
        if not family.own_embedding_size and width not in (None, hidden):
            able = ", ".join(name for name, each in FAMILIES.items() if each.own_embedding_size)
            reasons.append(
                f"embedding_size {shown(width)} differs from hidden_size, which it may in {able} "
                "only"
            )
        if reasons:
            raise ConfigError("minibert does not run this model: " + "; ".join(reasons))
        if not family.token_types:
            values["type_vocab_size"] = 1  # every token is of the same type
        if family.positions_after_padding:
            padding = raw.get("pad_token_id", 1)
            values["first_position"] = padding + 1 if type(padding) is int else padding
        own = raw.get("minibert", {})
        if not isinstance(own, dict):
            raise ConfigError(f"minibert must be an object, got {shown(own)}")
        values |= {name: own[name] for name in OWN_FIELDS if name in own}
        return cls(family=str(model_type), **values)

    @classmethod
    def from_json(cls, path: Path) -> BertConfig:
        """Read config.json.

        Raises:
            ModelNotFoundError: there is no such file.
            ConfigError: it is not JSON, or describes a model that minibert cannot run.
        """
        if not path_text(path):
            raise InputError(f"a file's name is a text, got {type(path).__name__}: {shown(path)}")
        try:
            return cls.from_dict(read_json_object(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def read_json_object(path: Path, at_most: int = LARGEST_JSON) -> dict[str, Any]:
    """Read a file of at most so many bytes that holds one JSON object.

    Raises:
        ModelNotFoundError: it cannot be opened.
        ConfigError: it holds something else.
    """
    try:
        raw = json_value(read_file(path, at_most=at_most).decode("utf-8-sig"))
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"must hold a JSON object, found {type(raw).__name__}")
    return raw
