"""BERT extractive question answering in NumPy and Numba, without a deep-learning framework.

The names below are loaded when first used, so that `import minibert` costs next to nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minibert.answering import Options, QuestionAnswerer
    from minibert.checkpoints.conversion import convert
    from minibert.config import BertConfig
    from minibert.errors import (
        BackendError,
        CheckpointError,
        ConfigError,
        InputError,
        MinibertError,
        ModelNotFoundError,
        TokenizerError,
    )
    from minibert.files import without_bounds
    from minibert.model import Model, load_model
    from minibert.pipelines import QuestionAnsweringPipeline, pipeline
    from minibert.scale.answerer import BatchAnswerer
    from minibert.spans import Answer
    from minibert.squad.decoders import SquadSettings
    from minibert.squad.evaluation import Evaluation, evaluate
    from minibert.squad.files import Gold, SquadData, SquadQuestion, read_squad
    from minibert.squad.metrics import squad_evaluate
    from minibert.trace import Trace
    from minibert.training.run import train
    from minibert.training.settings import TrainingSettings
    from minibert.training.trainer import TrainingResult

__version__ = "0.1.0"

# In a checkout that Python was started in, kernels/ lies beside this folder, not in it.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_ROOT, "kernels", "reference.py")):
    __path__.append(_ROOT)

__all__ = [
    "Answer",
    "BackendError",
    "BatchAnswerer",
    "BertConfig",
    "CheckpointError",
    "ConfigError",
    "Evaluation",
    "Gold",
    "InputError",
    "MinibertError",
    "Model",
    "ModelNotFoundError",
    "Options",
    "QuestionAnswerer",
    "QuestionAnsweringPipeline",
    "SquadData",
    "SquadQuestion",
    "SquadSettings",
    "TokenizerError",
    "Trace",
    "TrainingResult",
    "TrainingSettings",
    "convert",
    "evaluate",
    "load_model",
    "pipeline",
    "read_squad",
    "squad_evaluate",
    "train",
    "without_bounds",
]

_HOMES = {
    "answering": ("Options", "QuestionAnswerer"),
    "config": ("BertConfig",),
    "checkpoints.conversion": ("convert",),
    "squad.decoders": ("SquadSettings",),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "squad.evaluation": ("Evaluation", "evaluate"),
    "files": ("without_bounds",),
    "squad.metrics": ("squad_evaluate",),
    "model": ("Model", "load_model"),
    "pipelines": ("QuestionAnsweringPipeline", "pipeline"),
    "scale.answerer": ("BatchAnswerer",),
    "spans": ("Answer",),
    "squad.files": ("Gold", "SquadData", "SquadQuestion", "read_squad"),
    "trace": ("Trace",),
    "training.settings": ("TrainingSettings",),
    "training.run": ("train",),
    "training.trainer": ("TrainingResult",),
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    import importlib

    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
