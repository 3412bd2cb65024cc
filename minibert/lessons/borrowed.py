"""What a lesson may borrow from the library: kinds of arrays, and functions of other lessons.

Each file is tried with these, however far you are with the others.  For the answer at the end, your
own functions that give results, right or wrong, stand in their place.  The function that a lesson
is about cannot be borrowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from minibert.arrays import Floats, Ints
from minibert.batches import Batch
from minibert.config import BertConfig
from minibert.encoder import embed, encoder_layer
from minibert.kernels.backend import Backend, Logits
from minibert.kernels.gradients import Linear, Normalised, Record
from minibert.kernels.reference import (
    ACTIVATIONS,
    attention_probs,
    erf,
    gelu,
    layer_norm,
    linear,
    softmax,
    split_heads,
)
from minibert.kernels.training import AdamW
from minibert.lessons.models import small_batch, small_model
from minibert.parameters import Dense, Layer, Norm, Parameters, Table, Tables, full
from minibert.spans import Span
from minibert.tokenizer import Pair
from minibert.training.loss import log_sum

__all__ = [
    "ACTIVATIONS",
    "AdamW",
    "Any",
    "Backend",
    "Batch",
    "BertConfig",
    "Dense",
    "Floats",
    "Ints",
    "Layer",
    "Linear",
    "Logits",
    "NDArray",
    "Norm",
    "Normalised",
    "Pair",
    "Parameters",
    "Record",
    "Sequence",
    "Span",
    "Table",
    "Tables",
    "attention_probs",
    "embed",
    "encoder_layer",
    "erf",
    "full",
    "gelu",
    "layer_norm",
    "linear",
    "log_sum",
    "small_batch",
    "small_model",
    "softmax",
    "split_heads",
]
