"""What each function is tried on: odd sizes, extreme values, both dtypes.

Most numbers are float64, in which a right result differs from the definition's in the fifteenth
digit and a small mistake in the fourth.  A case in float32 sees to it that dtypes are kept.  The
inputs tell every known mistake (mistakes.py) from every other, which a test holds them to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minibert.kernels.gradients import Linear, Normalised, layer_norm
from minibert.kernels.training import AdamW
from minibert.lessons.models import Random, small_batch, small_model
from minibert.parameters import Int8, Table
from minibert.tokenizer import Pair

EPS = 0.1  # large, so that it shows where it stands


class Case(NamedTuple):
    """One call."""

    about: str  # what is special about it
    arguments: tuple[Any, ...]


def cases(name: str) -> list[Case]:
    """The calls on which a function is tried, the plainest first."""
    return [Case(about, tuple(arguments)) for about, *arguments in CASES[name]()]


def _text_parts() -> Iterator[tuple[Any, ...]]:
    yield "ten tokens, parts of 4, one every 3", 10, 4, 3
    yield "no tokens", 0, 4, 3
    yield "a text that just fits", 4, 4, 1
    yield "one token too many", 5, 4, 4
    yield "neighbours that share all but one token", 9, 5, 1
    yield "the last part ends with the text", 11, 5, 3
    yield "a long text", 1000, 371, 243


def _join() -> Iterator[tuple[Any, ...]]:
    question, text = np.array([7, 8], np.int32), np.array([11, 12, 13], np.int32)
    nothing = np.zeros(0, np.int32)
    yield "two tokens and three", question, text, Pair(cls_id=1, sep_id=2)
    yield "RoBERTa: two [SEP] between, no types", question, text, Pair(1, 2, 2, 0)
    yield "no text", question, nothing, Pair(cls_id=101, sep_id=102)
    yield "another type", question, text, Pair(3, 4, 1, 5)


def _embed() -> Iterator[tuple[Any, ...]]:
    for about, dtype, seed in (("five tokens", np.float64, 1), ("float32", np.float32, 2)):
        random = Random(seed, dtype)
        ids = np.array([3, 0, 3, 10, 9], np.int32)
        types = np.array([0, 0, 1, 1, 1], np.int32)
        places = np.array([0, 1, 2, 0, 1], np.int32)
        yield f"{about}, two windows", ids, types, places, random.tables(11, 7, 9), EPS
    random = Random(3, np.float32)
    values = random.numbers.integers(-127, 128, (11, 9)).astype(np.int8)
    words = Table(Int8(values, random.normal(11, std=0.01, mean=0.02)))
    tables = replace(random.tables(11, 7, 9), words=words)
    yield "a table in int8, as in the model that comes along", ids, types, places, tables, EPS
    one = np.array([6], np.int32)
    yield "one token", one, one * 0 + 1, one, Random(4).tables(11, 7, 9), 1e-12


def _layer_norm() -> Iterator[tuple[Any, ...]]:
    random = Random(5)
    yield "three rows", random.normal(3, 7), random.norm(7), EPS
    yield "rows far from zero", random.normal(4, 5, mean=1000), random.norm(5), 1e-12
    yield "tiny numbers", random.normal(2, 5, std=1e-3), random.norm(5), 1e-5
    yield "a row of equal numbers", np.full((1, 5), 3.5), random.norm(5), EPS
    random = Random(6, np.float32)
    yield "float32", random.normal(5, 9, std=3), random.norm(9), EPS


def _linear() -> Iterator[tuple[Any, ...]]:
    random = Random(7)
    yield "five numbers to three", random.normal(4, 5), random.dense(3, 5)
    yield "as wide as before", random.normal(4, 5), random.dense(5, 5)
    yield "one token", random.normal(1, 3), random.dense(7, 3)
    random = Random(8, np.float32)
    yield "float32", random.normal(4, 5), random.dense(3, 5)


def _softmax() -> Iterator[tuple[Any, ...]]:
    random = Random(9)
    yield "three rows", random.normal(3, 5)
    yield "heads, queries and keys", random.normal(2, 3, 3)
    yield "scores of thousands", random.normal(3, 4, std=1000, mean=3000)
    yield "rows thousands apart", np.array([[5000.0, 5001.0], [-5000.0, -5002.0]])
    yield "one score", np.array([[-7.0]])
    yield "float32", Random(10, np.float32).normal(3, 5)


def _split_heads() -> Iterator[tuple[Any, ...]]:
    yield "five tokens, two heads of three", Random(11).normal(5, 6), 2
    yield "as many tokens as heads", Random(12).normal(3, 9), 3
    yield "one head", Random(13).normal(2, 3), 1
    yield "float32, one token", Random(14, np.float32).normal(1, 8), 4


def _attention_probs() -> Iterator[tuple[Any, ...]]:
    yield "four tokens, three heads of two", Random(15).normal(4, 18), 3
    yield "scores of hundreds", Random(16).normal(3, 12, std=20), 2
    yield "one token", Random(17).normal(1, 6), 1
    yield "float32", Random(18, np.float32).normal(5, 24), 2


def _attention() -> Iterator[tuple[Any, ...]]:
    yield "one window", Random(19).normal(4, 12), np.array([0, 4], np.int32), 2
    yield "windows of 3, 1 and 5", Random(20).normal(9, 18), np.array([0, 3, 4, 9], np.int32), 3
    yield "float32", Random(21, np.float32).normal(7, 12), np.array([0, 2, 7], np.int32), 2


def _gelu() -> Iterator[tuple[Any, ...]]:
    yield "from -3 to 3", np.linspace(-3, 3, 13)
    yield "large numbers", np.array([[-30.0, -5.0], [5.0, 30.0]])
    yield "float32", Random(22, np.float32).normal(3, 4)


def _linear_activation() -> Iterator[tuple[Any, ...]]:
    random = Random(23)
    for activation in ("gelu", "gelu_tanh", "relu", "silu"):
        yield activation, random.normal(3, 5), random.dense(7, 5), activation
    yield "as wide as before", random.normal(3, 5), random.dense(5, 5), "gelu"
    random = Random(24, np.float32)
    yield "float32", random.normal(2, 3), random.dense(5, 3), "gelu"


def _linear_add_norm() -> Iterator[tuple[Any, ...]]:
    random = Random(25)
    parts = (random.normal(4, 5), random.dense(3, 5), random.normal(4, 3), random.norm(3))
    yield "five numbers to three", *parts, EPS
    parts = (random.normal(4, 5), random.dense(5, 5), random.normal(4, 5), random.norm(5))
    yield "as wide as before", *parts, 1e-12
    random = Random(26, np.float32)
    parts = (random.normal(2, 7), random.dense(3, 7), random.normal(2, 3), random.norm(3))
    yield "float32", *parts, EPS


def _encoder_layer() -> Iterator[tuple[Any, ...]]:
    for about, dtype, activation in (("relu", np.float64, "relu"), ("float32", np.float32, "gelu")):
        weights, config, kernels = small_model(dtype, activation)
        random, borders = Random(27, dtype), np.array([0, 3, 8], np.int32)
        yield about, random.normal(8, 12), borders, weights.layers[1], config, kernels
    weights, config, kernels = small_model(np.float64)
    one = np.array([0, 1], np.int32)
    yield "one token", Random(28).normal(1, 12), one, weights.layers[0], config, kernels


def _span_logits() -> Iterator[tuple[Any, ...]]:
    yield "five tokens", Random(29).normal(5, 3), Random(30).dense(2, 3)
    yield "two tokens", Random(31).normal(2, 4), Random(32).dense(2, 4)
    yield "float32", Random(33, np.float32).normal(4, 3), Random(34, np.float32).dense(2, 3)


def _bert() -> Iterator[tuple[Any, ...]]:
    yield "one window", small_batch(5), *small_model(np.float64)
    yield "windows of 4, 1 and 7", small_batch(4, 1, 7), *small_model(np.float64)
    yield "float32", small_batch(3, 6), *small_model(np.float32)


def _best_span() -> Iterator[tuple[Any, ...]]:
    def at(*numbers: float) -> Any:
        return np.array(numbers, np.float32)

    question = at(1, 9, 0, 5, 2, 1), at(1, 0, 9, 2, 4, 3)
    crossed = at(0, 0, 0, 1, 2, 8, 1), at(0, 0, 0, 2, 7, 1, 3)
    long = at(0, 0, 0, 8, 2, 3, 1), at(0, 0, 0, 1, 2, 3, 9)
    better = at(6, 0, 0, 5, 2), at(4, 0, 0, 2, 4)  # by 1
    worse = at(2, 0, 0, 5, 2), at(4, 0, 0, 2, 4)  # by 3
    level = at(5, 0, 0, 5, 2), at(4, 0, 0, 2, 4)
    half = at(12, 0, 0, 5, 2), at(-9, 0, 0, 2, 4)
    yield "the question would win", *question, 3, 6, 30, 0.0
    yield "the best end stands before the best start", *crossed, 3, 7, 30, 0.0
    yield "the best span is one token too long", *long, 3, 7, 3, 0.0
    yield "the best span is as long as it may be", *long, 3, 7, 4, 0.0
    yield "longest answer of one token", *long, 3, 7, 1, 0.0
    yield "[CLS] is better", *better, 3, 5, 30, 0.0
    yield "[CLS] is better, but not by enough", *better, 3, 5, 30, 1.5
    yield "[CLS] is better, and need not be", *better, 3, 5, 30, -4.0
    yield "[CLS] is worse, but by little", *worse, 3, 5, 30, -4.0
    yield "[CLS] and the best are level", *level, 3, 5, 30, 0.0
    yield "only the start of [CLS] is high", *half, 3, 5, 30, 0.0
    yield "spans that are level", at(0, 0, 3, 3, 3), at(0, 0, 3, 3, 3), 2, 5, 2, 0.0
    yield "no text in the window", at(-5, 0, 0), at(-5, 0, 0), 2, 2, 30, 0.0


def _cross_entropy() -> Iterator[tuple[Any, ...]]:
    random = Random(35)
    two = np.array([0, 4, 9], np.int32)
    yield "two windows", random.normal(9, std=2), two, [[1], [0]], np.array([1.0, 0.5])
    yield "several right tokens", random.normal(9, std=2), two, [[1, 3], [4]], np.array([0.5, 0.25])
    hundreds = random.normal(9, std=300)
    yield "logits of hundreds", hundreds, two, [[2], [2]], np.array([0.5, 0.5])
    yield "float32", Random(36, np.float32).normal(9), two, [[0], [3]], np.array([0.5, 0.5])


def _linear_backward() -> Iterator[tuple[Any, ...]]:
    for about, dtype, out, plus in (
        ("four tokens, five numbers to three", np.float64, 3, None),
        ("as wide as before, and more flows back", np.float64, 5, 1.0),
        ("float32", np.float32, 3, 1.0),
    ):
        random = Random(37 + out, dtype)
        x, dense = Linear(random.normal(4, 5)), random.dense(out, 5)
        more = None if plus is None else random.normal(4, 5)
        yield about, random.normal(4, out), x, dense, random.dense(out, 5), more


def _layer_norm_backward() -> Iterator[tuple[Any, ...]]:
    for about, dtype, tokens in (("four tokens", np.float64, 4), ("float32", np.float32, 3)):
        random = Random(43 + tokens, dtype)
        norm = random.norm(5)
        kept = layer_norm(random.normal(tokens, 5, std=3), norm, EPS)
        yield about, random.normal(tokens, 5), Normalised(*kept), norm, random.norm(5)


def _adamw() -> Iterator[tuple[Any, ...]]:
    for about, dtype, step in (
        ("the third step", np.float64, 3),
        ("the first step", np.float64, 1),
        ("float32", np.float32, 2),
    ):
        random = Random(50 + step, dtype)
        settings = AdamW(
            learning_rate=0.1, beta1=0.8, beta2=0.9, eps=0.1, weight_decay=0.3, step=step, scale=0.5
        )
        first, second = random.normal(7), random.normal(7) ** 2
        if step == 1:
            first, second = first * 0, second * 0
        yield about, random.normal(7), random.normal(7), first, second, settings


CASES: dict[str, Callable[[], Iterator[tuple[Any, ...]]]] = {
    "text_parts": _text_parts,
    "join": _join,
    "embed": _embed,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "softmax": _softmax,
    "split_heads": _split_heads,
    "attention_probs": _attention_probs,
    "attention": _attention,
    "gelu": _gelu,
    "linear_activation": _linear_activation,
    "linear_add_norm": _linear_add_norm,
    "encoder_layer": _encoder_layer,
    "span_logits": _span_logits,
    "bert": _bert,
    "best_span": _best_span,
    "cross_entropy": _cross_entropy,
    "linear_backward": _linear_backward,
    "layer_norm_backward": _layer_norm_backward,
    "adamw": _adamw,
}
