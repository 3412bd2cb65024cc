"""The functions of device "cpu": those of kernels/reference.py, and the whole pass in one call.

Each makes a job, and the pool's threads do it.  `forward` is what runs; the single steps exist for
tests, for traces and for teaching, and are made of the same kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from minibert.arrays import Floats, Ints
from minibert.batches import Batch
from minibert.config import BertConfig
from minibert.kernels import reference
from minibert.kernels.bounds import check_windows, checked_ids
from minibert.parameters import Dense, Norm, TableRows, Tables, Weights

from .compiler import load_program
from .jobs import Buffer, Job, Sizes, attention_tasks, row_tasks
from .packing import (
    PackedDense,
    PackedTables,
    PackedWeights,
    pack_dense,
    pack_head,
    pack_norm,
    pack_tables,
    pack_weights,
)
from .pool import POOL
from .targets import Target

if TYPE_CHECKING:
    from .training.calls import Call

ACTIVATIONS = tuple(reference.ACTIVATIONS)  # in the order of their numbers


class Kernels:
    """The CPU's kernels for one dtype and number of threads.

    Args:
        dtype: 'float32', 'bfloat16' or 'int8', of the matrix products.
        target: the processor.
        num_threads: how many work on a batch, at most.
    """

    def __init__(self, dtype: str, target: Target, num_threads: int):
        self.dtype, self.target, self.num_threads = dtype, target, num_threads
        self.qkv = target.attention(dtype)  # how queries, keys and values are kept
        self.inner = target.inner(dtype)  # how context and inner rows are kept

    # ------------------------------------------------------------ weights, see packing.py

    def prepare(self, weights: Weights) -> PackedWeights:
        """Pack a checkpoint's weights."""
        return pack_weights(weights, self.dtype, self.target)

    def prepare_tables(self, tables: Tables) -> PackedTables:
        """Pack the embedding tables."""
        return pack_tables(tables, self.target)

    def prepare_dense(self, dense: Dense) -> PackedDense:
        """Pack a dense layer."""
        return pack_dense(dense, self.dtype, self.target)

    def prepare_norm(self, norm: Norm) -> Floats:
        """Pack a norm."""
        return pack_norm(norm, self.target)

    def prepare_head(self, dense: Dense) -> Floats:
        """Pack the question-answering head."""
        return pack_head(dense, self.target)

    # ------------------------------------------------------------ the whole pass

    def forward(
        self, batch: Batch, weights: PackedWeights, config: BertConfig
    ) -> tuple[Floats, Floats]:
        """Start and end logits [T] of a packed batch."""
        check_windows(batch.cu_seqlens, len(batch.input_ids))
        hidden, heads = config.hidden_size, config.num_attention_heads
        widest, inner = max(hidden, weights.tables.hidden), config.intermediate_size
        job = self._job(
            "forward",
            len(batch.input_ids),
            Sizes(widest, inner, hidden // heads, longest(batch.cu_seqlens)),
            x=(hidden, "float32"),
            qkv=(3 * hidden, self.qkv),
            context=(hidden, self.inner),
        )
        job.set_queries(attention_tasks(batch.cu_seqlens, heads, self.num_threads, self.target))
        ids = batch.input_ids, batch.token_type_ids, batch.position_ids
        set_ids(job, *ids, weights.tables.rows)
        tables, projection, layers = weights.records
        job.record["tables"] = tables
        job.record["projection"] = projection
        job.refer("layers", layers)
        job.record["layer_count"] = len(layers)
        job.refer("head", weights.qa_outputs)
        job.record["hidden"], job.record["head_size"] = hidden, hidden // heads
        job.record["activation"] = ACTIVATIONS.index(config.activation)
        job.record["eps"] = config.layer_norm_eps
        logits = set_logits(job)
        with done(job):
            return logits

    # ------------------------------------------------------------ single steps

    def embed(
        self,
        input_ids: Ints,
        token_type_ids: Ints,
        position_ids: Ints,
        tables: PackedTables,
        eps: float,
    ) -> Floats:
        """See reference.embed."""
        hidden = tables.hidden
        job = self._job("embed", len(input_ids), Sizes(hidden), x=(hidden, "float32"))
        set_ids(job, input_ids, token_type_ids, position_ids, tables.rows)
        job.record["tables"] = tables.record
        job.record["eps"] = eps
        with done(job):
            return job.get("x")

    def linear(self, x: Floats, dense: PackedDense) -> Floats:
        """See reference.linear."""
        job = self._linear_job("linear", len(x), dense, "float32", "float32")
        with done(job, x=x):
            return job.get("out")

    def linear_activation(self, x: Floats, dense: PackedDense, activation: str) -> Floats:
        """See reference.linear_activation."""
        job = self._linear_job("linear_activation", len(x), dense, "float32", self.inner)
        job.record["activation"] = ACTIVATIONS.index(activation)
        with done(job, x=x):
            return job.get("out")

    def linear_add_norm(
        self, x: Floats, dense: PackedDense, residual: Floats, norm: Floats, eps: float
    ) -> Floats:
        """See reference.linear_add_norm."""
        buffers = {"residual": (dense.out, "float32")}
        job = self._linear_job("linear_add_norm", len(x), dense, self.inner, "float32", **buffers)
        job.refer("norm", norm)
        job.record["eps"] = eps
        with done(job, x=x, residual=residual):
            return job.get("out")

    def attention(self, qkv: Floats, cu_seqlens: Ints, num_heads: int) -> Floats:
        """See reference.attention."""
        check_windows(cu_seqlens, len(qkv))
        hidden = qkv.shape[1] // 3
        head_size = hidden // num_heads
        job = self._job(
            "attention",
            len(qkv),
            Sizes(hidden, 1, head_size, longest(cu_seqlens)),
            qkv=(3 * hidden, self.qkv),
            context=(hidden, self.inner),
        )
        job.set_queries(attention_tasks(cu_seqlens, num_heads, self.num_threads, self.target))
        job.record["hidden"], job.record["head_size"] = hidden, head_size
        with done(job, qkv=qkv):
            return job.get("context")

    def span_logits(self, x: Floats, head: Floats) -> tuple[Floats, Floats]:
        """See reference.span_logits."""
        hidden = x.shape[1]
        job = self._job("span_logits", len(x), Sizes(hidden), x=(hidden, "float32"))
        job.record["hidden"] = hidden
        job.refer("head", head)
        logits = set_logits(job)
        with done(job, x=x):
            return logits

    # ------------------------------------------------------------ jobs

    def _job(self, entry: str, tokens: int, sizes: Sizes, **buffers: Buffer) -> Job:
        """A job that goes by blocks of rows."""
        program = load_program(self.dtype, self.target)
        rows = row_tasks(tokens, self.num_threads, self.target)
        return Job(entry, program, self.num_threads, tokens, sizes, buffers, rows)

    def _linear_job(
        self, entry: str, tokens: int, dense: PackedDense, kind: str, to: str, **buffers: Buffer
    ) -> Job:
        """A job of one dense layer, whose input and output are kept so."""
        buffers |= {"x": (dense.into, kind), "out": (dense.out, to)}
        job = self._job(entry, tokens, Sizes(max(dense.out, dense.into)), **buffers)
        job.record["dense"] = dense.record
        return job


def longest(cu_seqlens: Ints) -> int:
    """Tokens of the longest window."""
    return int((cu_seqlens[1:] - cu_seqlens[:-1]).max(initial=0))


def set_ids(
    job: Job | Call, input_ids: Ints, token_type_ids: Ints, position_ids: Ints, rows: TableRows
) -> None:
    """Tell a job what to look up, in tables of so many rows."""
    checked = checked_ids(input_ids, token_type_ids, position_ids, rows)
    for name, ids in zip(rows._fields, checked, strict=True):
        job.refer(name, ids)


def set_logits(job: Job) -> tuple[Floats, Floats]:
    """Give a job arrays [T] to write start and end logits to."""
    start, end = np.empty(job.tokens, np.float32), np.empty(job.tokens, np.float32)
    job.refer("start_logits", start)
    job.refer("end_logits", end)
    return start, end


@contextmanager
def done(job: Job, **inputs: Floats) -> Iterator[None]:
    """Fill a job's buffers and do it; what it wrote can be read from them while this lasts."""
    with POOL.lock:
        job.work_in(POOL.reserve)
        for name, x in inputs.items():
            job.put(name, x)
        POOL.run(job)
        yield
