"""BERT as it is trained: forward, as minibert/encoder.py tells it, and backward.

`backward` is `forward` read from the bottom up, and `layer_backward` is `encoder_layer` so: what
flowed from x to y flows back as gradient from d_y to d_x.  Each line calls one function of the
chosen kernels; kernels/gradients.py says what it means.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from minibert.arrays import Floats, Ints
from minibert.batches import Batch
from minibert.config import BertConfig
from minibert.kernels.training import Dropout, TrainingKernels
from minibert.parameters import Dense, Layer, Norm, Parameters, Weights


@dataclass(frozen=True)
class Dropouts:
    """What is dropped in one step of training, everywhere in a model.

    The numbers that are dropped follow from the seed, the step and the place, and from nothing
    else: so a step may be cut into batches in any way, and repeated.
    """

    hidden: float  # the rate of hidden states: after the embeddings and after each half of a layer
    attention: float  # the rate of attention's probabilities
    seed: int
    step: int  # of the optimizer
    first_token: int = 0  # number of the batch's first token in the step

    def at(self, where: str, rate: float) -> Dropout | None:
        """The dropout of one place in the model, with a key of its own; None at rate 0."""
        if not rate:
            return None
        key = hashlib.sha256(f"{self.seed} {self.step} {where}".encode()).digest()
        return Dropout(rate, int.from_bytes(key[:4], "little"), self.first_token)


class LayerDropouts(NamedTuple):
    """The dropouts of one layer."""

    attention: Dropout | None = None
    attention_output: Dropout | None = None
    output: Dropout | None = None


def dropouts_of_layer(dropouts: Dropouts | None, i: int) -> LayerDropouts:
    """The dropouts of layer i."""
    if dropouts is None:
        return LayerDropouts()
    return LayerDropouts(
        attention=dropouts.at(f"layer.{i}.attention", dropouts.attention),
        attention_output=dropouts.at(f"layer.{i}.attention.output", dropouts.hidden),
        output=dropouts.at(f"layer.{i}.output", dropouts.hidden),
    )


class KeptLayer(NamedTuple):
    """What one layer keeps: the record of each of its steps, and of what it took."""

    x: Any
    qkv: Any
    context: Any
    attended: Any
    inner: Any
    output: Any
    dropouts: LayerDropouts


class Kept(NamedTuple):
    """What a batch keeps until its gradient is computed; valid until the kernels' next `begin`."""

    batch: Batch
    embedded: Any
    projected: Any  # the same, where there is no projection
    layers: list[KeptLayer]
    start_logits: Floats  # [T]
    end_logits: Floats  # [T]
    dropout: Dropout | None  # of the embeddings


def forward(
    batch: Batch,
    weights: Parameters[Any, Any, Any, Any],
    config: BertConfig,
    kernels: TrainingKernels,
    dropout: Dropouts | None = None,
) -> Kept:
    """Run BERT and its head on a packed batch, and keep what `backward` needs.

    Args:
        batch: T tokens of B windows.
        weights: prepared by `kernels.prepare`.
        config: shape of the model.
        kernels: from `get_training_kernels`.
        dropout: what is dropped; None: nothing.

    Returns:
        start_logits and end_logits [T], and what was kept.
    """
    kernels.begin()
    dropped = dropout.at("embeddings", dropout.hidden) if dropout else None
    embedded = kernels.embed(
        batch.input_ids,
        batch.token_type_ids,
        batch.position_ids,
        weights.tables,
        config.layer_norm_eps,
        dropped,
    )  # [T, D], or [T, E] before a projection
    x = projected = (
        embedded if weights.projection is None else kernels.project(embedded, weights.projection)
    )  # [T, D]
    layers = []
    for i, layer in enumerate(weights.layers):
        dropouts = dropouts_of_layer(dropout, i)
        layers.append(layer_forward(x, batch.cu_seqlens, layer, config, kernels, dropouts))
        x = layers[-1].output
    start, end = kernels.span_logits(x, weights.qa_outputs)
    return Kept(batch, embedded, projected, layers, start, end, dropped)


def layer_forward(
    x: Any,
    cu_seqlens: Ints,
    layer: Layer[Any, Any],
    config: BertConfig,
    kernels: TrainingKernels,
    dropouts: LayerDropouts,
) -> KeptLayer:
    """Attention, then feed-forward, each added to its input and normalised: [T, D] -> [T, D]."""
    eps, heads = config.layer_norm_eps, config.num_attention_heads

    qkv = kernels.linear(x, layer.qkv)  # [T, 3D]
    context = kernels.attention(qkv, cu_seqlens, heads, dropouts.attention)  # [T, D]
    attended = kernels.linear_add_norm(
        context, layer.attention_output, x, layer.attention_norm, eps, dropouts.attention_output
    )
    inner = kernels.linear_activation(attended, layer.intermediate, config.activation)  # [T, F]
    output = kernels.linear_add_norm(
        inner, layer.output, attended, layer.output_norm, eps, dropouts.output
    )  # [T, D]
    return KeptLayer(x, qkv, context, attended, inner, output, dropouts)


def backward(
    kept: Kept,
    d_start: Floats,
    d_end: Floats,
    weights: Parameters[Any, Any, Any, Any],
    gradient: Weights,
    config: BertConfig,
    kernels: TrainingKernels,
    d_layers: Mapping[int, Floats] = MappingProxyType({}),
) -> None:
    """Add the gradient of the loss with respect to each weight to `gradient`.

    Args:
        kept: from `forward`.
        d_start: [T], gradient of the loss with respect to the start logits; see loss.py.
        d_end: [T], of the end logits.
        weights: as in `forward`.
        gradient: float arrays laid out as the weights are; see flat.py.
        config: shape of the model.
        kernels: as in `forward`.
        d_layers: the gradient [T, D] of a loss with respect to what some layers return, by the
            layer's number; it comes on top.
    """
    batch = kept.batch
    d_x = kernels.span_logits_backward(
        d_start, d_end, kept.layers[-1].output, weights.qa_outputs, gradient.qa_outputs
    )  # [T, D]
    for i in reversed(range(len(weights.layers))):
        if i in d_layers:
            d_x = kernels.add_gradient(d_x, d_layers[i])
        d_x = layer_backward(
            d_x,
            kept.layers[i],
            batch.cu_seqlens,
            weights.layers[i],
            gradient.layers[i],
            config,
            kernels,
        )
    if gradient.projection is not None:
        d_x = kernels.project_backward(d_x, kept.embedded, weights.projection, gradient.projection)
    kernels.embed_backward(
        d_x,
        kept.embedded,
        batch.input_ids,
        batch.token_type_ids,
        batch.position_ids,
        weights.tables,
        gradient.tables,
        kept.dropout,
    )


def layer_backward(
    d_output: Any,
    kept: KeptLayer,
    cu_seqlens: Ints,
    layer: Layer[Any, Any],
    gradient: Layer[Dense, Norm],
    config: BertConfig,
    kernels: TrainingKernels,
) -> Any:
    """`layer_forward` from the bottom up: d_output [T, D] -> d_x [T, D].

    Where x went two ways, into a step and past it, its gradient is the sum of both: the second
    result of `linear_add_norm_backward` is added to what comes back through the step.
    """
    d_inner, d_past = kernels.linear_add_norm_backward(
        d_output,
        kept.output,
        kept.inner,
        layer.output,
        layer.output_norm,
        gradient.output,
        gradient.output_norm,
        kept.dropouts.output,
    )  # [T, F], [T, D]
    d_attended = kernels.linear_activation_backward(
        d_inner,
        kept.inner,
        kept.attended,
        layer.intermediate,
        config.activation,
        gradient.intermediate,
        d_past,
    )  # [T, D]
    d_context, d_past = kernels.linear_add_norm_backward(
        d_attended,
        kept.attended,
        kept.context,
        layer.attention_output,
        layer.attention_norm,
        gradient.attention_output,
        gradient.attention_norm,
        kept.dropouts.attention_output,
    )  # [T, D], [T, D]
    d_qkv = kernels.attention_backward(
        d_context,
        kept.context,
        kept.qkv,
        cu_seqlens,
        config.num_attention_heads,
        kept.dropouts.attention,
    )  # [T, 3D]
    return kernels.linear_backward(d_qkv, kept.x, layer.qkv, gradient.qkv, d_past)
