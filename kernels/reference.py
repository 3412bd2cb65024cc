"""The mathematics of BERT in NumPy: the definition of every step.

Each fast backend is tested against these functions, and each takes the same arguments.  A batch
is *packed*: the tokens of all its windows stand in one row of length T, and `cu_seqlens` [B + 1]
says where each window begins, so window b is tokens cu_seqlens[b] to cu_seqlens[b + 1].  There is
no padding and no mask.  Dense steps run on all T tokens; only attention looks at windows.

Shapes: T tokens of the batch, B windows, S tokens of one window, D hidden size, H heads,
Dh = D / H, F feed-forward size, V vocabulary, E width of the embedding tables where it is not D.

The functions keep the dtype they are given: float32 in the library; tests use float64 for a truth.
Source: Devlin et al. 2019 (arXiv:1810.04805), modeling.py of google-research/bert.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from minibert.arrays import Floats, Ints
from minibert.parameters import Dense, Norm, Parameters, Tables, Weights, full, map_layers

from .bounds import check_windows, checked_ids

# ---------------------------------------------------------------- activations

# erf(x) / x = P(x^2) / Q(x^2) for |x| <= 4, fitted by weighted least squares (error 2e-9); beyond 4
# erf is 1 to eight digits.  NumPy has no erf, and math.erf one number at a time is too slow.
ERF_P = (
    1.12837918,
    1.84710868e-1,
    5.43325680e-2,
    3.83953770e-3,
    3.82688380e-4,
    4.78042299e-6,
    -1.36662098e-8,
)
ERF_Q = (1.0, 4.97029290e-1, 1.13826437e-1, 1.54535198e-2, 1.30957563e-3, 6.40081745e-5)


def polynomial(coefficients: tuple[float, ...], x: Floats) -> Floats:
    """c[0] + c[1] x + c[2] x^2 + ..., by Horner's rule; any shape, dtype of x."""
    y = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        y *= x
        y += x.dtype.type(c)
    return y


def erf(x: Floats) -> Floats:
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    x = np.clip(x, -4, 4)
    square = x * x
    return x * (polynomial(ERF_P, square) / polynomial(ERF_Q, square))


def gelu(x: Floats) -> Floats:
    """The input times the chance that a standard normal number is below x; exact, by erf.

    Source: Hendrycks and Gimpel 2016 (arXiv:1606.08415); `gelu` in google-research/bert.

    Example:
        >>> gelu(np.array([-1, 0, 1], dtype=np.float32)).round(4)
        array([-0.1587,  0.    ,  0.8413], dtype=float32)
    """
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Floats) -> Floats:
    """The tanh approximation of GELU, up to 5e-4 off; for checkpoints that were trained with it."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x: Floats) -> Floats:
    """The input where it is positive, else 0."""
    return np.maximum(x, 0)


def silu(x: Floats) -> Floats:
    """The input times the logistic function of x."""
    # tanh instead of exp(-x), which overflows for x below -88.
    return 0.5 * x * (1 + np.tanh(0.5 * x))


# By the names of `BertConfig.activation`.
ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
}

# ---------------------------------------------------------------- the steps, in order


def prepare_tables(tables: Tables) -> Tables:
    """Embedding tables as this backend keeps them: as they are."""
    return tables


def prepare_dense(dense: Dense) -> Dense:
    """A dense layer as this backend keeps it: float32, also where the file has int8."""
    return Dense(full(dense.weight), dense.bias)


def prepare_norm(norm: Norm) -> Norm:
    """A norm as this backend keeps it: as it is."""
    return norm


prepare_head = prepare_dense


def prepare(weights: Weights) -> Parameters[Tables, Dense, Norm, Dense]:
    """A model's weights as this backend keeps them: done once, when it is loaded."""
    layers = map_layers(weights.layers, prepare_dense, prepare_norm)
    return Parameters(
        prepare_tables(weights.tables),
        layers,
        prepare_head(weights.qa_outputs),
        projection=prepare_dense(weights.projection) if weights.projection else None,
    )


def layer_norm(x: Floats, norm: Norm, eps: float) -> Floats:
    """Shift and scale each row to mean 0 and variance 1, then by the learned gain and bias.

    Args:
        x: [T, D].
        norm: gain [D] and bias [D].
        eps: added to the variance; BERT has 1e-12.

    Returns:
        [T, D].

    Source: Ba et al. 2016 (arXiv:1607.06450).
    """
    centred = x - x.mean(axis=-1, keepdims=True)  # [T, D]
    variance = np.mean(centred * centred, axis=-1, keepdims=True)  # [T, 1], over D, not D - 1
    return centred / np.sqrt(variance + eps) * norm.gain + norm.bias


def embed(
    input_ids: Ints, token_type_ids: Ints, position_ids: Ints, tables: Tables, eps: float
) -> Floats:
    """Look up what each token is, which part it belongs to and where it stands; add; normalise.

    Args:
        input_ids: [T] int32, rows of the word table.
        token_type_ids: [T] int32, 0 in the question and 1 in the text.
        position_ids: [T] int32, each token's position in its own window, from 0.
        tables: word [V, D], position [P, D] and token type [2, D] embeddings, and their norm; in
            models that project them to D afterwards, E takes the place of D.
        eps: of the layer norm.

    Returns:
        [T, D] hidden states.
    """
    checked_ids(input_ids, token_type_ids, position_ids, tables.rows)
    x = tables.words.rows(input_ids)  # [T, D]
    x += tables.token_types.rows(token_type_ids)
    x += tables.positions.rows(position_ids)
    return layer_norm(x, tables.norm, eps)


def linear(x: Floats, dense: Dense) -> Floats:
    """A dense layer, x @ weight.T + bias: [T, in] -> [T, out]; the weight is [out, in]."""
    return x @ full(dense.weight).T + dense.bias


def linear_activation(x: Floats, dense: Dense, activation: str) -> Floats:
    """The first half of the feed-forward part: activation(linear(x)), [T, D] -> [T, F]."""
    return ACTIVATIONS[activation](linear(x, dense))


def linear_add_norm(x: Floats, dense: Dense, residual: Floats, norm: Norm, eps: float) -> Floats:
    """layer_norm(linear(x) + residual): how both halves of a layer end.

    Args:
        x: [T, in]; in is D after attention and F in the feed-forward part.
        dense: weight [D, in] and bias [D].
        residual: [T, D], the input of this half of the layer.
        norm: gain and bias [D].
        eps: of the layer norm.

    Returns:
        [T, D].
    """
    return layer_norm(linear(x, dense) + residual, norm, eps)


def softmax(scores: Floats) -> Floats:
    """Turn scores into weights that sum to 1 along the last axis."""
    exp = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def split_heads(x: Floats, num_heads: int) -> Floats:
    """Cut the last axis into heads: [S, D] -> [H, S, Dh]."""
    return x.reshape(len(x), num_heads, -1).transpose(1, 0, 2)


def attention_probs(qkv: Floats, num_heads: int) -> Floats:
    """How much each token of one window reads from every other: [S, 3D] -> [H, S, S]."""
    query, key, _ = (split_heads(part, num_heads) for part in np.split(qkv, 3, axis=-1))
    # math.sqrt gives a Python float, so float32 stays float32; np.sqrt would widen it.
    return softmax(query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1]))


def attention(qkv: Floats, cu_seqlens: Ints, num_heads: int) -> Floats:
    """Let every token read from every token of its own window.

    Args:
        qkv: [T, 3D], query, key and value side by side.
        cu_seqlens: [B + 1] int32, where each window begins, and T at the end.
        num_heads: H.

    Returns:
        [T, D], what each token read, its heads side by side.

    Source: Vaswani et al. 2017, section 3.2 (arXiv:1706.03762); `attention_layer` in
    google-research/bert.
    """
    check_windows(cu_seqlens, len(qkv))
    context = np.empty((len(qkv), qkv.shape[1] // 3), qkv.dtype)  # [T, D]
    for begin, end in pairwise(cu_seqlens):
        window = qkv[begin:end]  # [S, 3D]
        value = split_heads(np.split(window, 3, axis=-1)[2], num_heads)  # [H, S, Dh]
        read = attention_probs(window, num_heads) @ value  # [H, S, Dh]
        context[begin:end] = read.transpose(1, 0, 2).reshape(end - begin, -1)  # [S, D]
    return context


def span_logits(x: Floats, head: Dense) -> tuple[Floats, Floats]:
    """Score every token as the first and as the last of the answer.

    Args:
        x: [T, D], the last layer's output.
        head: the question-answering head, weight [2, D] and bias [2].

    Returns:
        start_logits [T] and end_logits [T].

    Source: section 4.2 of the BERT paper; `create_model` in google-research/bert run_squad.py.
    """
    logits = linear(x, head)  # [T, 2]
    return logits[:, 0], logits[:, 1]
