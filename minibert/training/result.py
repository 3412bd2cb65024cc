"""A trained model as a folder that minibert and transformers load.

Every file is complete before it appears, and model.safetensors appears last: a folder that holds it
holds a whole model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.checkpoints.hub import TOKENIZER_FILES
from minibert.checkpoints.safetensors import open_checkpoint, write_arrays
from minibert.documents import to_json
from minibert.drafts import complete, draft_folder, synchronise
from minibert.errors import InputError, ModelNotFoundError
from minibert.families import FAMILIES, family_name
from minibert.files import copy_file, present, remedy, unwritable
from minibert.parameters import Weights
from minibert.training.base import POSITIONS, Base
from minibert.training.flat import named_arrays
from minibert.weights import check_weights, layer_names

LAYER_NUMBER = re.compile(r"encoder\.layer\.(\d+)\.")
WEIGHTS, CARD = "model.safetensors", "README.md"

# What transformers calls a model of each family for question answering.
ARCHITECTURES = {
    "bert": "BertForQuestionAnswering",
    "distilbert": "DistilBertForQuestionAnswering",
    "roberta": "RobertaForQuestionAnswering",
    "xlm-roberta": "XLMRobertaForQuestionAnswering",
    "camembert": "CamembertForQuestionAnswering",
    "electra": "ElectraForQuestionAnswering",
    "albert": "AlbertForQuestionAnswering",
}
# What config.json says of another head, its answers too, and of numbers as they were stored.
DROPPED = (
    *(
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "_name_or_path",
        "torch_dtype",
        "dtype",
    ),
    *("transformers_version", "sentence_transformers", "minibert"),
)


def write_model(folder: Path, base: Base, weights: Weights, card: str) -> None:
    """Write a model's files into a folder that is there.

    Args:
        folder: may hold other things; files of a model in it are replaced.
        base: the model it was made from.
        weights: what it has become, float32.
        card: its README.md.

    Raises:
        InputError: they cannot be written.
        ModelNotFoundError: those of the base are not there any more.
    """
    try:
        with draft_folder(folder) as draft:
            for name in TOKENIZER_FILES:
                if present(base.files.folder / name):
                    copy_file(base.files.folder / name, draft / name)
            document = to_json(config_document(base), indent=2) + "\n"
            (draft / "config.json").write_text(document, encoding="utf-8")
            (draft / CARD).write_text(card, encoding="utf-8", errors="backslashreplace")
            write_arrays(draft / WEIGHTS, dict(file_arrays(base, weights)), {"format": "pt"})
            check_weights(open_checkpoint(draft / WEIGHTS), base.config)
            complete(draft)
            for path in sorted(draft.iterdir(), key=lambda path: path.name == WEIGHTS):
                os.replace(path, folder / path.name)
            synchronise(folder)
    except ModelNotFoundError:  # an OSError too
        raise
    except OSError as error:
        raise InputError(
            f"{unwritable(folder, error)}. {remedy(error)}, then the same command goes on."
        ) from None


def config_document(base: Base) -> dict[str, Any]:
    """config.json of the model for question answering."""
    kept = {key: value for key, value in base.document.items() if key not in DROPPED}
    family = base.config.family
    named = {"architectures": [ARCHITECTURES[family]]} if family in ARCHITECTURES else {}
    return kept | {"model_type": family, "dtype": "float32"} | named


def file_arrays(base: Base, weights: Weights) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The arrays of a checkpoint, with its family's names for them; `load_weights` backwards."""
    family, layers = FAMILIES[base.config.family], layer_names(base.config)
    for name, array in named_arrays(weights).items():
        if name == POSITIONS and base.config.first_position:
            array = np.concatenate([base.padding, array])
        if name in base.fixed:
            continue  # minibert's own zeros
        if (layer := LAYER_NUMBER.match(name)) and family.shares_layers:
            name = layers[int(layer[1])] + name[layer.end() :]
        yield family_name(name, family), np.ascontiguousarray(array)
