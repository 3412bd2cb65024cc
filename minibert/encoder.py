"""Step 4 of 6: packed batch -> embeddings -> L layers -> start and end logits.

`bert` is the whole of BERT for question answering.  Each line calls one function of the chosen
backend; kernels/reference.py says what it means.  The reference runs these lines, and so does
every backend when a trace is asked for; a GPU records them once and replays the record
(kernels/cuda/program.py).  The processor alone has a second telling, in the same order, which goes
through all of it by blocks of rows (kernels/cpu/schedule.py).

In: a `Batch` of T tokens.  Out: start and end logits, both [T].  Next: minibert/spans.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from minibert.arrays import Floats, Ints
from minibert.batches import Batch
from minibert.config import BertConfig
from minibert.kernels import reference
from minibert.kernels.backend import Backend, Logits
from minibert.parameters import Layer, Parameters
from minibert.trace import Trace, note


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # it shows in the logits
def bert(
    batch: Batch,
    weights: Parameters[Any, Any, Any, Any],
    config: BertConfig,
    kernels: Backend,
    trace: Trace | None = None,
) -> Logits:
    """Run BERT and its question-answering head on a packed batch.

    Args:
        batch: T tokens of B windows.
        weights: prepared by `kernels.prepare`.
        config: shape of the model.
        kernels: the backend.
        trace: where to note 'embeddings', 'projection' if there is one, 'layer.<i>' (all [T, D])
            and what lies between.

    Returns:
        start_logits [T] and end_logits [T], float32.

    Source: `BertModel` in google-research/bert modeling.py, `create_model` in its run_squad.py.
    """
    x = embed(batch, weights, config, kernels, trace)  # [T, D]
    for i, layer in enumerate(weights.layers):
        x = encoder_layer(x, batch.cu_seqlens, layer, config, kernels, trace, f"layer.{i}")
        note(trace, f"layer.{i}", x)
    return kernels.span_logits(x, weights.qa_outputs)


def embed(
    batch: Batch,
    weights: Parameters[Any, Any, Any, Any],
    config: BertConfig,
    kernels: Backend,
    trace: Trace | None = None,
) -> Floats:
    """The hidden states that the first layer reads, [T, D]: embeddings, projected if need be."""
    x = kernels.embed(
        batch.input_ids,
        batch.token_type_ids,
        batch.position_ids,
        weights.tables,
        config.layer_norm_eps,
    )  # [T, D], or [T, E] before a projection
    note(trace, "embeddings", x)
    if weights.projection is not None:
        x = note(trace, "projection", kernels.linear(x, weights.projection))  # [T, D]
    return x


def encoder_layer(
    x: Floats,
    cu_seqlens: Ints,
    layer: Layer[Any, Any],
    config: BertConfig,
    kernels: Backend,
    trace: Trace | None = None,
    name: str = "layer",
) -> Floats:
    """Attention, then feed-forward, each added to its input and normalised: [T, D] -> [T, D].

    Source: `transformer_model` in google-research/bert modeling.py.
    """
    eps = config.layer_norm_eps

    qkv = note(trace, f"{name}.qkv", kernels.linear(x, layer.qkv))  # [T, 3D]
    context = kernels.attention(qkv, cu_seqlens, config.num_attention_heads)  # [T, D]
    if trace is not None:  # fast kernels never write the probabilities down
        for b, (begin, end) in enumerate(pairwise(cu_seqlens)):
            probs = reference.attention_probs(qkv[begin:end], config.num_attention_heads)
            note(trace, f"{name}.attention.probs.{b}", probs)  # [H, S, S]
    note(trace, f"{name}.attention.context", context)
    x = kernels.linear_add_norm(context, layer.attention_output, x, layer.attention_norm, eps)
    note(trace, f"{name}.attention.output", x)

    inner = kernels.linear_activation(x, layer.intermediate, config.activation)  # [T, F]
    note(trace, f"{name}.intermediate", inner)
    return kernels.linear_add_norm(inner, layer.output, x, layer.output_norm, eps)  # [T, D]


def qa_logits(
    batch: Batch,
    weights: Parameters[Any, Any, Any, Any],
    config: BertConfig,
    kernels: Backend,
    trace: Trace | None = None,
) -> Logits:
    """What `bert` gives, in the fastest way that the backend has; with a trace, step by step."""
    if trace is not None:
        return bert(batch, weights, config, kernels, trace)
    return begin_logits(batch, weights, config, kernels)()


def begin_logits(
    batch: Batch, weights: Parameters[Any, Any, Any, Any], config: BertConfig, kernels: Backend
) -> Callable[[], Logits]:
    """Begin a batch, where the device works beside this one; what comes back waits for `bert`'s.

    Elsewhere the batch runs when that function is called.
    """
    if kernels.launch is not None:
        return kernels.launch(bert, batch, weights, config)
    run = kernels.forward
    if run is not None:
        return lambda: run(batch, weights, config)
    return lambda: bert(batch, weights, config, kernels)
