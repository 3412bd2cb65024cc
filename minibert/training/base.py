"""The model that a run begins with: any encoder that minibert loads, with or without a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minibert.arrays import Floats
from minibert.checkpoints.conversion import config_file, open_any
from minibert.checkpoints.hub import ModelFiles, find_model
from minibert.checkpoints.vocabularies import load_tokenizer
from minibert.config import BertConfig, read_json_object
from minibert.errors import ConfigError, InputError
from minibert.families import FAMILIES
from minibert.model import Model
from minibert.parameters import Dense, Weights, full
from minibert.reprs import shown
from minibert.tokenizer import Tokenizer
from minibert.training.order import hash_of
from minibert.training.settings import TrainingSettings
from minibert.weights import HEAD, check_weights, load_weights, read_matrix

POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
INITIALIZER_RANGE = 0.02  # standard deviation of a new head, where config.json says nothing
DROPOUT = 0.1  # where it says nothing; both are BERT's

# Names of a dropout rate in config.json: BERT's, then DistilBERT's.
DROPOUT_KEYS = {
    "hidden_dropout_prob": ("hidden_dropout_prob", "dropout"),
    "attention_probs_dropout_prob": ("attention_probs_dropout_prob", "attention_dropout"),
}


@dataclass(frozen=True, eq=False)
class Base:
    """A model as it lies on disk."""

    name: str
    files: ModelFiles
    config: BertConfig
    document: dict[str, Any]  # config.json
    tokenizer: Tokenizer
    weights: Weights
    has_head: bool  # whether the question-answering head came with it
    padding: Floats  # rows of the position table for padding: no window reads them, a file has them

    @property
    def fixed(self) -> tuple[str, ...]:
        """Arrays that are not trained: token types of a family that has no table of them."""
        return () if FAMILIES[self.config.family].token_types else (TOKEN_TYPES,)

    def runner(self, kernels: Any, weights: Any) -> Model:
        """A model like this one with other weights, as `kernels` prepared them."""
        return Model(self.name, self.config, self.tokenizer, kernels, weights)


def load_base(
    model: str | Path | Model | None, settings: TrainingSettings, revision: str | None = None
) -> Base:
    """Load the model that a run begins with.

    Args:
        model: None or "embedded" for the embedded one; a folder; a weights file, old ones too, as
            `convert` reads them; a name on the Hugging Face Hub; or a loaded Model, which is read
            from its files again.
        settings: the seed of a head that is made, and which layers are taken.
        revision: branch, tag or commit on the Hub.

    Raises:
        MinibertError: it cannot be loaded.
    """
    if isinstance(model, Model):
        if model.files is None:
            raise InputError(f"{model!r} came from no file; give the folder of the model to train")
        files, name = model.files, model.name
    else:
        files = find_model(model, revision=revision, accept_pickles=True, check=_small_files)
        name = files.folder.name if model is None else str(model)
    config, tokenizer, document = _small_files(files.folder)
    tokenizer.check_fits(config)
    head = new_head(config, document, settings.seed)
    checkpoint = open_any(files.weights)
    weights = load_weights(checkpoint, config, head)
    has_head = weights.qa_outputs is not head
    positions = check_weights(checkpoint, config, needs_head=False)[POSITIONS]
    padding = full(read_matrix(checkpoint, positions))[: config.first_position]
    base = Base(name, files, config, document, tokenizer, weights, has_head, padding.copy())
    return base if settings.layers is None else with_layers(base, settings.layers)


def _small_files(folder: Path) -> tuple[BertConfig, Tokenizer, dict[str, Any]]:
    """Config and tokenizer, which can refuse a model before its weights are fetched."""
    path = config_file(folder)
    try:
        document = read_json_object(path)
        config = BertConfig.from_dict(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config, load_tokenizer(folder, config.family), document


def new_head(config: BertConfig, document: dict[str, Any], seed: int) -> Dense:
    """A question-answering head as BERT begins with: small normal numbers, biases of 0.

    The numbers come from NumPy's RandomState, whose stream is frozen for good.
    """
    std = document.get("initializer_range", INITIALIZER_RANGE)
    if isinstance(std, bool) or not isinstance(std, int | float) or not 0 < std < 10:
        raise ConfigError(f"initializer_range must be a number above 0, got {shown(std)}")
    random = np.random.RandomState(hash_of(seed, len(HEAD)) % 2**32)
    weight = (std * random.standard_normal((2, config.hidden_size))).astype(np.float32)
    return Dense(weight, np.zeros(2, np.float32))


def dropout_rates(settings: TrainingSettings, document: dict[str, Any]) -> tuple[float, float]:
    """The chance of a number to be dropped in hidden states, and of a probability in attention.

    Raises:
        ConfigError: config.json says something else than a chance.
    """
    rates = []
    for name, keys in DROPOUT_KEYS.items():
        rate = getattr(settings, name)
        if rate is None:
            rate = next((document[key] for key in keys if document.get(key) is not None), DROPOUT)
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise ConfigError(
                    f"{name} must be from 0 to below 1, config.json says {shown(rate)}"
                )
        rates.append(float(rate))
    return rates[0], rates[1]


def with_layers(base: Base, layers: Sequence[int]) -> Base:
    """A model that begins with some of the layers of another.

    Args:
        base: the other model.
        layers: their numbers, which rise, from 0.

    Raises:
        InputError: it has no such layer, or its layers are shared.
    """
    count, family = base.config.num_hidden_layers, FAMILIES[base.config.family]
    if family.shares_layers:
        raise InputError(f"{base.name}: its layers are shared, so none of them can be chosen")
    if layers[-1] >= count:
        raise InputError(
            f"layers: {base.name} has {count}, from 0 to {count - 1}, got {layers[-1]}"
        )
    key = family.keys.get("num_hidden_layers", "num_hidden_layers")
    return replace(
        base,
        config=replace(base.config, num_hidden_layers=len(layers)),
        document=base.document | {key: len(layers)},
        weights=replace(base.weights, layers=tuple(base.weights.layers[i] for i in layers)),
    )
