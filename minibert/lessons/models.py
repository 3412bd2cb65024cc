"""A BERT so small that its numbers can be looked at: for examples, and for what lessons try."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from minibert.arrays import Floats
from minibert.batches import Batch
from minibert.config import BertConfig
from minibert.kernels.backend import REFERENCE, Backend
from minibert.parameters import Dense, Layer, Norm, Parameters, Table, Tables, Weights


class SmallModel(NamedTuple):
    """Random weights, their shape, and the functions that compute with them."""

    weights: Parameters[Any, Any, Any, Any]
    config: BertConfig
    kernels: Backend


class Random:
    """Random numbers of one dtype, the same in every run."""

    def __init__(self, seed: int, dtype: DTypeLike = np.float64) -> None:
        self.numbers = np.random.default_rng(seed)
        self.dtype = dtype

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> Floats:
        """Numbers about the mean."""
        return self.numbers.normal(mean, std, shape).astype(self.dtype)

    def dense(self, out: int, into: int) -> Dense:
        """A dense layer whose results are as wide as what it takes."""
        return Dense(self.normal(out, into, std=into**-0.5), self.normal(out, std=0.5))

    def norm(self, width: int) -> Norm:
        """A layer norm with a gain and a bias that show."""
        return Norm(self.normal(width, std=0.4, mean=1), self.normal(width, std=0.4))

    def tables(self, words: int, positions: int, width: int) -> Tables:
        """The three embedding tables and their norm."""
        words_table, positions_table, types = (
            Table(self.normal(rows, width)) for rows in (words, positions, 2)
        )
        return Tables(words_table, positions_table, types, self.norm(width))

    def layer(self, width: int, inner: int) -> Layer[Dense, Norm]:
        """An encoder layer."""
        return Layer(
            qkv=self.dense(3 * width, width),
            attention_output=self.dense(width, width),
            attention_norm=self.norm(width),
            intermediate=self.dense(inner, width),
            output=self.dense(width, inner),
            output_norm=self.norm(width),
        )


def small_model(dtype: DTypeLike = np.float32, activation: str = "gelu") -> SmallModel:
    """Three layers, three heads, twelve numbers a token, nineteen words.

    Example:
        >>> weights, config, kernels = small_model()
        >>> len(weights.layers), config.num_attention_heads, config.hidden_size, kernels.name
        (3, 3, 12, 'reference')
    """
    config = BertConfig(
        vocab_size=19,
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
        layer_norm_eps=1e-3,
        hidden_act=activation,
    )
    random = Random(7, dtype)
    weights: Weights = Parameters(
        tables=random.tables(19, 16, 12),
        layers=tuple(random.layer(12, 20) for _ in range(3)),
        qa_outputs=random.dense(2, 12),
    )
    return SmallModel(weights, config, REFERENCE)


def small_batch(*lengths: int) -> Batch:
    """Windows of some lengths, at most 16, of random words; a third of each is the question."""
    numbers = np.random.default_rng(sum(lengths))
    windows = lengths or (5,)
    return Batch(
        input_ids=numbers.integers(0, 19, sum(windows)).astype(np.int32),
        token_type_ids=np.concatenate([(np.arange(n) >= n // 3).astype(np.int32) for n in windows]),
        position_ids=np.concatenate([np.arange(n, dtype=np.int32) for n in windows]),
        cu_seqlens=np.cumsum([0, *windows], dtype=np.int32),
    )
