"""The mathematics of training in NumPy: each step as it is trained, and its gradient.

This is the definition of every function of `TrainingKernels` (training.py): fast backends are
tested against it.  A step forward computes what reference.py does, with dropout, and returns a
record: `out` is the result, the rest is what its gradient needs.  Steps and gradients take what
came before as such records.  Each `f_backward` stands below its `f` and says by which formula it
goes.

`d_x` is the gradient of the loss with respect to x, and has x's shape.  With y = f(x) the chain
rule gives d_x from d_y; a weight that is used at many tokens gets the sum over them.  Gradients of
weights are *added* to the arrays of `gradient`, so several batches, or layers that share their
weights, sum up by themselves.

Shapes are those of reference.py: T tokens of the batch, B windows, S tokens of one window, D hidden
size, H heads, Dh = D / H, F feed-forward size, V vocabulary.  The dtype given is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats, Ints
from minibert.parameters import Dense, Norm, Parameters, Tables, Weights, full

from . import reference
from .bounds import check_windows, checked_ids
from .reference import erf, split_heads

if TYPE_CHECKING:
    from .training import AdamW, Dropout

Numbers: TypeAlias = NDArray[np.uint32]


class Record(Protocol):
    """What any step forward returned."""

    @property
    def out(self) -> Floats:
        """The result."""


# ---------------------------------------------------------------- weights and batches


def prepare(weights: Weights) -> Parameters[Tables, Dense, Norm, Dense]:
    """Weights as products read them: here the arrays themselves, so that they stay up to date."""
    return reference.prepare(weights)


def refresh(prepared: Parameters[Tables, Dense, Norm, Dense], weights: Weights) -> None:
    """Bring what `prepare` made of these weights up to date: nothing to do, see there."""


def begin() -> None:
    """Give away what the last batch kept: NumPy does so by itself."""


# ---------------------------------------------------------------- activations


def gelu_slope(x: Floats) -> Floats:
    """Derivative of GELU, x P(x): P(x) + x p(x), with the normal distribution P and its density p.

    Source: Hendrycks and Gimpel 2016 (arXiv:1606.08415).

    Example:
        >>> gelu_slope(np.array([-1, 0, 1], dtype=np.float32)).round(4)
        array([-0.0833,  0.5   ,  1.0833], dtype=float32)
    """
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * density


def gelu_tanh_slope(x: Floats) -> Floats:
    """Derivative of x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3).

    (1 + tanh u) / 2 + x (1 - tanh^2 u) u' / 2.
    """
    factor = math.sqrt(2 / math.pi)
    tanh = np.tanh(factor * (x + 0.044715 * x**3))
    inner = factor * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * inner


def relu_slope(x: Floats) -> Floats:
    """1 where the input is positive, else 0; also at 0, as in torch."""
    return (x > 0).astype(x.dtype)


def silu_slope(x: Floats) -> Floats:
    """Derivative of x s(x) with the logistic function s: s + x s (1 - s)."""
    s = 0.5 * (1 + np.tanh(0.5 * x))
    return s + x * s * (1 - s)


# By the names of reference.ACTIVATIONS.
SLOPES: dict[str, Callable[[Floats], Floats]] = {
    "gelu": gelu_slope,
    "gelu_tanh": gelu_tanh_slope,
    "relu": relu_slope,
    "silu": silu_slope,
}

# ---------------------------------------------------------------- dropout


def scramble(x: Numbers) -> Numbers:
    """Turn numbers of 32 bits into others, such that neighbours have nothing in common.

    One to one.  Source: the finaliser of MurmurHash3 (Austin Appleby).

    Example:
        >>> scramble(np.array([0, 1, 2], np.uint32)).tolist()
        [0, 1364076727, 821347078]
    """
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def drop(x: Floats, places: Numbers, dropout: Dropout | None) -> Floats:
    """Set a share of the numbers to 0 and divide the others by the share that is left.

    Linear in x, so its gradient is the same function with the same places.

    Args:
        x: of any shape.
        places: of the same shape, the number of each place; see `hidden_places` and `pair_places`.
        dropout: how many, and the key that says which; None: x as it is.

    Source: Srivastava et al. 2014, with the division at training time.
    """
    if dropout is None or dropout.rate == 0:
        return x
    dropped = scramble(places + np.uint32(dropout.key)) < np.uint32(dropout.rate * 2**32)
    return np.where(dropped, x.dtype.type(0), x / x.dtype.type(1 - dropout.rate))


def token_numbers(dropout: Dropout | None, begin: int, end: int) -> Numbers:
    """The numbers of tokens `begin` to `end` of a batch, counted through the training step."""
    first = dropout.first_token if dropout else 0
    return np.arange(first + begin, first + end, dtype=np.int64).astype(np.uint32)


def hidden_places(shape: tuple[int, ...], dropout: Dropout | None) -> Numbers:
    """Places [T, D] of hidden states: the token's number times D, plus the column; modulo 2^32."""
    tokens, width = shape
    columns = np.arange(width, dtype=np.uint32)
    return token_numbers(dropout, 0, tokens)[:, None] * np.uint32(width) + columns


def pair_places(begin: int, end: int, num_heads: int, dropout: Dropout | None) -> Numbers:
    """Places [H, S, S] of a window's probabilities, for tokens `begin` to `end` of the batch.

    (The query's number * H + head) * 512 + the key's position in its window, modulo 2^32.
    """
    queries = token_numbers(dropout, begin, end)[None, :, None]
    heads = np.arange(num_heads, dtype=np.uint32)[:, None, None]
    keys = np.arange(end - begin, dtype=np.uint32)
    return (queries * np.uint32(num_heads) + heads) * np.uint32(512) + keys


# ---------------------------------------------------------------- norms


class Normalised(NamedTuple):
    """What a layer norm gave, and keeps."""

    out: Floats  # [T, D]
    normal: Floats  # [T, D], the rows with mean 0 and variance 1, before gain and bias
    deviation: Floats  # [T, 1], by which rows were divided


def layer_norm(x: Floats, norm: Norm, eps: float) -> Normalised:
    """reference.layer_norm, and what its gradient needs."""
    centred = x - x.mean(axis=-1, keepdims=True)  # [T, D]
    deviation = np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + eps)  # [T, 1]
    normal = centred / deviation
    return Normalised(normal * norm.gain + norm.bias, normal, deviation)


def layer_norm_backward(d_out: Floats, kept: Normalised, norm: Norm, gradient: Norm) -> Floats:
    """Gradients of a layer norm's input, gain and bias.

    With n = (x - mean) / deviation and out = n gain + bias: d_gain = sum of d_out n, d_bias = sum
    of d_out.  With d_n = d_out gain, as each number of a row moves the row's mean and deviation,
    d_x = (d_n - mean(d_n) - n mean(d_n n)) / deviation.

    Args:
        d_out: [T, D].
        kept: from `layer_norm`.
        norm: gain and bias [D].
        gradient: of gain and bias; added to.

    Returns:
        d_x [T, D].

    Source: Ba et al. 2016 (arXiv:1607.06450), by the chain rule.
    """
    d_gain, d_bias = gradient.gain, gradient.bias
    d_gain += (d_out * kept.normal).sum(axis=0)
    d_bias += d_out.sum(axis=0)
    d_normal = d_out * norm.gain
    along = np.mean(d_normal * kept.normal, axis=-1, keepdims=True)  # [T, 1]
    d_centred = d_normal - d_normal.mean(axis=-1, keepdims=True)
    return (d_centred - kept.normal * along) / kept.deviation


# ---------------------------------------------------------------- embeddings


def embed(
    input_ids: Ints,
    token_type_ids: Ints,
    position_ids: Ints,
    tables: Tables,
    eps: float,
    dropout: Dropout | None,
) -> Normalised:
    """reference.embed, then dropout: [T, D]."""
    checked_ids(input_ids, token_type_ids, position_ids, tables.rows)
    x = tables.words.rows(input_ids)  # [T, D]
    x += tables.token_types.rows(token_type_ids)
    x += tables.positions.rows(position_ids)
    kept = layer_norm(x, tables.norm, eps)
    return kept._replace(out=drop(kept.out, hidden_places(x.shape, dropout), dropout))


def embed_backward(
    d_out: Floats,
    kept: Normalised,
    input_ids: Ints,
    token_type_ids: Ints,
    position_ids: Ints,
    tables: Tables,
    gradient: Tables,
    dropout: Dropout | None,
) -> None:
    """Gradients of the tables and their norm.

    Each row of a table gets the sum of the gradients of all tokens that looked it up.

    Args:
        d_out: [T, D].
        kept: from `embed`.
        input_ids: [T], as in `embed`.
        token_type_ids: [T].
        position_ids: [T].
        tables: words [V, D], positions [P, D], token types [2, D] and the norm.
        gradient: of all of these; added to.
        dropout: as in `embed`.
    """
    d_norm = drop(d_out, hidden_places(d_out.shape, dropout), dropout)
    d_x = layer_norm_backward(d_norm, kept, tables.norm, gradient.norm)
    for table, ids in (
        (gradient.words, input_ids),
        (gradient.token_types, token_type_ids),
        (gradient.positions, position_ids),
    ):
        # Not `[ids] +=`, which adds a row once, however often it was looked up.
        np.add.at(full(table.matrix), ids, d_x)


# ---------------------------------------------------------------- dense layers


class Linear(NamedTuple):
    """What a dense layer gave; its gradient needs nothing but its input."""

    out: Floats  # [T, out]


def linear(x: Record, dense: Dense) -> Linear:
    """reference.linear: [T, in] -> [T, out]."""
    return Linear(reference.linear(x.out, dense))


def linear_backward(
    d_out: Floats, x: Record, dense: Dense, gradient: Dense, plus: Floats | None
) -> Floats:
    """Gradients of a dense layer's input, weight and bias.

    With out = x W^T + b: d_W = d_out^T x, d_b = sum of d_out over tokens, d_x = d_out W.

    Args:
        d_out: [T, out].
        x: what `linear` took, [T, in].
        dense: weight W [out, in] and bias [out].
        gradient: of weight and bias; added to.
        plus: [T, in], what else flows back to x; None: nothing.

    Returns:
        d_x + plus [T, in].
    """
    d_weight, d_bias = full(gradient.weight), gradient.bias
    d_weight += d_out.T @ x.out
    d_bias += d_out.sum(axis=0)
    d_x = d_out @ full(dense.weight)
    return d_x if plus is None else d_x + plus


def project(x: Record, dense: Dense) -> Linear:
    """From the width of the embedding tables to that of the layers, [T, E] -> [T, D]: `linear`."""
    return linear(x, dense)


def project_backward(d_out: Floats, x: Record, dense: Dense, gradient: Dense) -> Floats:
    """Gradients of what `project` took: `linear_backward`, [T, D] -> [T, E]."""
    return linear_backward(d_out, x, dense, gradient, None)


class Activated(NamedTuple):
    """What the first half of the feed-forward part gave, and keeps."""

    out: Floats  # [T, F]
    before: Floats  # [T, F], what the activation took


def linear_activation(x: Record, dense: Dense, activation: str) -> Activated:
    """reference.linear_activation: [T, D] -> [T, F]."""
    before = reference.linear(x.out, dense)
    return Activated(reference.ACTIVATIONS[activation](before), before)


def linear_activation_backward(
    d_out: Floats,
    kept: Activated,
    x: Record,
    dense: Dense,
    activation: str,
    gradient: Dense,
    plus: Floats | None,
) -> Floats:
    """Gradients of what `linear_activation` took.

    With out = f(z), z = linear(x): d_z = d_out f'(z), and then as `linear_backward`.

    Args:
        d_out: [T, F].
        kept: from `linear_activation`.
        x: what it took, [T, D].
        dense: weight [F, D] and bias [F].
        activation: as in `linear_activation`.
        gradient: of weight and bias; added to.
        plus: [T, D], what else flows back to x; None: nothing.

    Returns:
        d_x + plus [T, D].
    """
    d_before = d_out * SLOPES[activation](kept.before)
    return linear_backward(d_before, x, dense, gradient, plus)


def linear_add_norm(
    x: Record, dense: Dense, residual: Record, norm: Norm, eps: float, dropout: Dropout | None
) -> Normalised:
    """layer_norm(dropout(linear(x)) + residual): [T, in] -> [T, D]."""
    y = reference.linear(x.out, dense)  # [T, D]
    y = drop(y, hidden_places(y.shape, dropout), dropout)
    return layer_norm(y + residual.out, norm, eps)


def linear_add_norm_backward(
    d_out: Floats,
    kept: Normalised,
    x: Record,
    dense: Dense,
    norm: Norm,
    gradient: Dense,
    norm_gradient: Norm,
    dropout: Dropout | None,
) -> tuple[Floats, Floats]:
    """Gradients of what `linear_add_norm` took.

    That of the norm's input goes to the residual as it is, and through dropout to the dense layer.

    Args:
        d_out: [T, D].
        kept: from `linear_add_norm`.
        x: what it took, [T, in].
        dense: weight [D, in] and bias [D].
        norm: gain and bias [D].
        gradient: of weight and bias; added to.
        norm_gradient: of gain and bias; added to.
        dropout: as in `linear_add_norm`.

    Returns:
        d_x [T, in] and d_residual [T, D].
    """
    d_residual = layer_norm_backward(d_out, kept, norm, norm_gradient)
    d_y = drop(d_residual, hidden_places(d_residual.shape, dropout), dropout)
    return linear_backward(d_y, x, dense, gradient, None), d_residual


# ---------------------------------------------------------------- attention


class Attended(NamedTuple):
    """What attention gave, and keeps: of S numbers a query only the logarithm of their sum."""

    out: Floats  # [T, D]
    log_sums: Floats  # [T, H], log of the sum over keys of exp(score), for each query and head


def heads_of(window: Floats, num_heads: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Query, key and value of one window, [H, S, Dh], and the scores [H, S, S], scaled."""
    query, key, value = (split_heads(part, num_heads) for part in np.split(window, 3, axis=-1))
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    return query, key, value, scores


def join_heads(x: Floats) -> Floats:
    """Lay heads side by side, [H, S, Dh] -> [S, D]."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def attention(qkv: Record, cu_seqlens: Ints, num_heads: int, dropout: Dropout | None) -> Attended:
    """reference.attention, with dropout of the probabilities: [T, 3D] -> [T, D]."""
    tokens, width = qkv.out.shape
    check_windows(cu_seqlens, tokens)
    context = np.empty((tokens, width // 3), qkv.out.dtype)  # [T, D]
    log_sums = np.empty((tokens, num_heads), qkv.out.dtype)  # [T, H]
    for begin, end in pairwise(cu_seqlens.tolist()):
        _, _, value, scores = heads_of(qkv.out[begin:end], num_heads)
        highest = scores.max(axis=-1, keepdims=True)  # [H, S, 1]
        sums = np.exp(scores - highest).sum(axis=-1, keepdims=True)
        log_sum = highest + np.log(sums)  # [H, S, 1]
        probs = np.exp(scores - log_sum)  # [H, S, S]
        probs = drop(probs, pair_places(begin, end, num_heads, dropout), dropout)
        context[begin:end] = join_heads(probs @ value)
        log_sums[begin:end] = log_sum[:, :, 0].T
    return Attended(context, log_sums)


def attention_backward(
    d_out: Floats,
    kept: Attended,
    qkv: Record,
    cu_seqlens: Ints,
    num_heads: int,
    dropout: Dropout | None,
) -> Floats:
    """Gradients of queries, keys and values.

    For each head of a window, with scores A = Q K^T / sqrt(Dh), P = softmax(A), C = drop(P) V:

        d_V = drop(P)^T d_C        d_P = drop(d_C V^T)        d_A = P (d_P - sum over keys of P d_P)
        d_Q = d_A K / sqrt(Dh)     d_K = d_A^T Q / sqrt(Dh)

    P is computed once more, as exp(A - log of the sum), rather than kept.

    Args:
        d_out: [T, D].
        kept: from `attention`.
        qkv: what it took, [T, 3D].
        cu_seqlens: [B + 1] int32, where each window begins, and T.
        num_heads: H.
        dropout: as in `attention`.

    Returns:
        d_qkv [T, 3D].

    Source: Dao et al. 2022, appendix B (arXiv:2205.14135).
    """
    d_qkv = np.empty_like(qkv.out)
    for begin, end in pairwise(cu_seqlens.tolist()):
        query, key, value, scores = heads_of(qkv.out[begin:end], num_heads)
        places = pair_places(begin, end, num_heads, dropout)
        probs = np.exp(scores - kept.log_sums[begin:end].T[:, :, None])  # [H, S, S]
        d_context = split_heads(d_out[begin:end], num_heads)  # [H, S, Dh]

        d_value = drop(probs, places, dropout).swapaxes(-1, -2) @ d_context
        d_probs = drop(d_context @ value.swapaxes(-1, -2), places, dropout)
        d_scores = probs * (d_probs - (probs * d_probs).sum(axis=-1, keepdims=True))
        d_scores /= math.sqrt(query.shape[-1])
        d_query = d_scores @ key
        d_key = d_scores.swapaxes(-1, -2) @ query

        parts = [join_heads(part) for part in (d_query, d_key, d_value)]
        d_qkv[begin:end] = np.concatenate(parts, axis=1)  # [S, 3D]
    return d_qkv


# ---------------------------------------------------------------- the head


def span_logits(x: Record, head: Dense) -> tuple[Floats, Floats]:
    """reference.span_logits: [T, D] -> start and end logits [T]."""
    return reference.span_logits(x.out, head)


def hidden_states(x: Record) -> Floats:
    """What a step that ends in a norm has computed, [T, D]: for losses that look at it."""
    return x.out


def add_gradient(d_x: Floats, more: Floats) -> Floats:
    """The gradient with respect to hidden states and that of a loss that looks at them, [T, D]."""
    return d_x + more


def span_logits_backward(
    d_start: Floats, d_end: Floats, x: Record, head: Dense, gradient: Dense
) -> Floats:
    """Gradients of what `span_logits` took: as of any dense layer, the two logits side by side.

    Args:
        d_start: [T].
        d_end: [T].
        x: what `span_logits` took, [T, D].
        head: weight [2, D] and bias [2].
        gradient: of weight and bias; added to.

    Returns:
        d_x [T, D].
    """
    d_logits = np.stack([d_start, d_end], axis=1)  # [T, 2]
    return linear_backward(d_logits, x, head, gradient, None)


# ---------------------------------------------------------------- the optimizer


def adamw(
    weights: Floats, gradient: Floats, first: Floats, second: Floats, settings: AdamW
) -> None:
    """Step t of Adam with decoupled weight decay; changes all but the gradient.

    With g = gradient * scale:

        first = beta1 first + (1 - beta1) g             m = first / (1 - beta1^t)
        second = beta2 second + (1 - beta2) g^2         v = second / (1 - beta2^t)
        weights = weights (1 - learning_rate weight_decay) - learning_rate m / (sqrt(v) + eps)

    The divisions make up for both means' beginning at 0.

    Args:
        weights: [N].
        gradient: [N].
        first: [N], the running mean of gradients.
        second: [N], the running mean of their squares.
        settings: the numbers of this step.

    Source: Loshchilov and Hutter 2019, algorithm 2 (arXiv:1711.05101), with the decay multiplied
    by the learning rate as in torch.optim.AdamW.
    """
    s = settings
    g = gradient * s.scale
    first *= s.beta1
    first += (1 - s.beta1) * g
    second *= s.beta2
    second += (1 - s.beta2) * g * g
    m = first / (1 - s.beta1**s.step)
    v = second / (1 - s.beta2**s.step)
    weights *= 1 - s.learning_rate * s.weight_decay
    weights -= s.learning_rate * m / (np.sqrt(v) + s.eps)


def sum_of_squares(x: Floats) -> float:
    """The sum of x^2, summed in float64, for the norm of a gradient: [N] -> a number."""
    return float(np.einsum("i,i->", x, x, dtype=np.float64))
