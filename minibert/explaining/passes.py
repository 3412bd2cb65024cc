"""One window through the definition, forward and backward, with everything written down.

The steps are those of training (minibert/training/passes.py) on the definition's kernels.  Two of
the kernels are replaced by ones that note what they see on the way: attention's gradient is asked
for that of the probabilities, and the embeddings' for that of what they gave.  Gradients of the
weights, half of the work, are not made: see `without_results`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minibert.arrays import Floats, Ints
from minibert.batches import Batch, pack
from minibert.checkpoints.safetensors import open_checkpoint
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.kernels import gradients, reference
from minibert.kernels.training import REFERENCE, Dropout, TrainingKernels
from minibert.model import Model
from minibert.parameters import Dense, Norm, Parameters, Weights, map_layers
from minibert.training.passes import Kept, backward, forward
from minibert.weights import load_weights
from minibert.windows import Window


@dataclass(frozen=True, eq=False)
class Target:
    """A sum of logits whose making is explained: each logit times a factor."""

    name: str
    start: Floats  # [S]
    end: Floats  # [S]


@dataclass(frozen=True, eq=False)
class Gradients:
    """How a target would change: all in the shapes of what the pass computed."""

    embeddings: Floats  # [S, D], with respect to what the embeddings gave
    probs: list[Floats]  # of each layer [H, S, S], with respect to the attention probabilities


class Passes:
    """Runs windows of one model through the definition.

    Args:
        model: loaded from files; its weights are read once more, as the definition has them.

    Raises:
        InputError: the model was not loaded from files.
    """

    def __init__(self, model: Model) -> None:
        if model.files is None:
            raise InputError(f"{model.name}: cannot be explained, as it was not loaded from files")
        self.config: BertConfig = model.config
        loaded = load_weights(open_checkpoint(model.files.weights), model.config)
        self.weights = gradients.prepare(loaded)
        self.nowhere = nowhere(self.weights)

    def forward(self, window: Window) -> Kept:
        """What every step of a window computes."""
        return forward(pack([window]), self.weights, self.config, REFERENCE)

    def from_embeddings(self, kept: Kept, embedded: Floats) -> Kept:
        """The same window, but from other embeddings [S, D]."""

        def given(*_: Any) -> gradients.Normalised:
            return kept.embedded._replace(out=embedded)

        return forward(kept.batch, self.weights, self.config, replace(REFERENCE, embed=given))

    def backward(self, kept: Kept, target: Target) -> Gradients:
        """The gradients of a target, with respect to embeddings and attention probabilities."""
        embeddings: list[Floats] = []
        probs: list[Floats] = []
        heads = self.config.num_attention_heads

        def attention_backward(
            d_out: Floats,
            attended: gradients.Attended,
            qkv: gradients.Record,
            cu_seqlens: Ints,
            num_heads: int,
            dropout: Dropout | None,
        ) -> Floats:
            value = np.split(qkv.out, 3, axis=-1)[2]
            d_context, value = (reference.split_heads(part, heads) for part in (d_out, value))
            probs.append(d_context @ value.swapaxes(-1, -2))  # [H, S, S]
            return gradients.attention_backward(
                d_out, attended, qkv, cu_seqlens, num_heads, dropout
            )

        def embed_backward(d_out: Floats, *_: Any) -> None:
            embeddings.append(d_out)

        noting: TrainingKernels = replace(
            REFERENCE, attention_backward=attention_backward, embed_backward=embed_backward
        )
        d_logits = target.start, target.end
        bare = without_results(kept)
        backward(bare, *d_logits, self.weights, self.nowhere, self.config, noting)
        return Gradients(embeddings[0], probs[::-1])

    def value(self, kept: Kept, target: Target) -> float:
        """The target itself."""
        start, end = kept.start_logits @ target.start, kept.end_logits @ target.end
        return float(start + end)


def nowhere(weights: Weights) -> Weights:
    """Where the gradients of weights go, which nobody wants here: matrices without columns.

    One layer's room is for all; see `without_results`.
    """

    def zeros(dense: Dense) -> Dense:
        return Dense(np.zeros((len(dense.bias), 0), np.float32), np.zeros_like(dense.bias))

    def norm(of: Norm) -> Norm:
        return Norm(np.zeros_like(of.gain), np.zeros_like(of.bias))

    layers = map_layers(weights.layers[:1], zeros, norm) * len(weights.layers)
    return Parameters(
        tables=weights.tables,  # never written to: embeddings have a gradient of their own
        projection=None if weights.projection is None else zeros(weights.projection),
        layers=layers,
        qa_outputs=zeros(weights.qa_outputs),
    )


def without_results(kept: Kept) -> Kept:
    """The same pass, but results that only gradients of weights are made of have no columns.

    The gradient of a weight is d_out^T x [out, in]: with x [T, 0] it is [out, 0] and costs nothing.
    """

    def bare(record: Any) -> Any:
        return record._replace(out=record.out[:, :0])

    return kept._replace(
        embedded=bare(kept.embedded),
        projected=bare(kept.projected),
        layers=[
            layer._replace(  # qkv stays: attention's own gradient is made of it
                x=bare(layer.x),
                context=bare(layer.context),
                attended=bare(layer.attended),
                inner=bare(layer.inner),
                output=bare(layer.output),
            )
            for layer in kept.layers
        ],
    )


def attention_probs(kept: Kept, config: BertConfig) -> list[Floats]:
    """How much each token reads from every other: of each layer [H, S, S]."""
    heads = config.num_attention_heads
    return [reference.attention_probs(layer.qkv.out, heads) for layer in kept.layers]


def embedding_parts(batch: Batch, weights: Weights) -> dict[str, Floats]:
    """The three vectors [S, D] whose sum the first norm takes."""
    tables = weights.tables
    return {
        "word": tables.words.rows(batch.input_ids),
        "position": tables.positions.rows(batch.position_ids),
        "token type": tables.token_types.rows(batch.token_type_ids),
    }


def similarity(a: Floats, b: Floats) -> Floats:
    """Cosine of the angle between the rows of two arrays [S, D]: [S]."""
    products = np.einsum("sd,sd->s", a, b)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return products / np.maximum(lengths, math.sqrt(np.finfo(np.float32).tiny))
