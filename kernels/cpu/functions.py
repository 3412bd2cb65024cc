"""The functions of device "cpu": those of kernels/reference.py, and the whole pass in one call.

Each makes a job, and the pool's threads do it.  `forward` is what runs; the single steps exist for
tests, for traces and for teaching, and are made of the same kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats, Ints
from minibert.batches import Batch
from minibert.config import BertConfig
from minibert.kernels import reference
from minibert.kernels.numbers import from_bfloat16, round_up, to_bfloat16
from minibert.parameters import Dense, Norm, Tables, Weights

from . import records
from .compiler import load_program
from .jobs import Shape, attention_places, lay_out, make_job, row_blocks, set_places
from .packing import (
    PackedDense,
    PackedTables,
    PackedWeights,
    address,
    aligned,
    pack_dense,
    pack_head,
    pack_norm,
    pack_tables,
    pack_weights,
)
from .pool import POOL
from .targets import Target

ACTIVATIONS = tuple(reference.ACTIVATIONS)  # in the order of their numbers
NO_PLACES = np.zeros((0, 5), np.int64)
NOTHING = np.zeros((0, 0), np.float32)


class Kernels:
    """The CPU's kernels for one dtype and number of threads.

    Args:
        dtype: 'float32', 'bfloat16' or 'int8', of the matrix products.
        target: the processor.
        num_threads: how many work on a batch, at most.
    """

    def __init__(self, dtype: str, target: Target, num_threads: int):
        self.dtype, self.target, self.num_threads = dtype, target, num_threads
        self.reading = target.attention(dtype)  # of queries, keys and values
        self.inner = target.inner(dtype)  # of context and inner rows
        self.zeros = aligned((target.panel,), np.float32)

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

    # ------------------------------------------------------------ one job

    def _run(
        self,
        op: int,
        tokens: int,
        shape: Shape,
        fields: Mapping[str, int],
        *,
        inputs: Mapping[str, Floats] | None = None,
        output: str = "",
        cu_seqlens: Ints | None = None,
    ) -> Floats:
        """Lay out memory, fill it, do a job, and take the result out.

        Args:
            op: operation, from records.py.
            tokens: T.
            shape: sizes of the model, and the buffers that the job needs.
            fields: the job's fields that only the caller knows.
            inputs: buffer -> what to put in first.
            output: buffer to return.
            cu_seqlens: [B + 1], if there is attention.

        Returns:
            [T, columns] float32; empty without `output`.
        """
        row_starts = row_blocks(tokens, self.num_threads, self.target)
        places, longest = NO_PLACES, 0
        if cu_seqlens is not None:
            longest = int(np.diff(cu_seqlens).max(initial=0))
            places = attention_places(cu_seqlens, shape.heads, self.num_threads, self.target)
        tasks = max(len(places), len(row_starts) - 1)
        threads = max(1, min(self.num_threads, tasks))
        memory_map = lay_out(shape, tokens, longest, threads, self.dtype, self.target)

        def view(name: str, columns: int) -> NDArray[Any]:
            """A buffer as an array [T, columns]."""
            dtype = np.dtype(np.uint16 if shape.buffers[name][1] == "bfloat16" else np.float32)
            strides = (memory_map.strides[f"{name}_stride"], dtype.itemsize)
            place = memory_map.places[name]
            return np.ndarray((tokens, columns), dtype, memory, place, strides)

        program = load_program(self.dtype, self.target)
        job = make_job(
            memory_map.strides,
            {
                "op": op,
                "row_tasks": len(row_starts) - 1,
                "row_starts": address(row_starts),
                "attention_tasks": len(places),
                "attention_places": address(places),
                "hidden": shape.hidden,
                "head_size": shape.head_size,
                "zeros": address(self.zeros),
            },
            fields,
        )
        with POOL.lock:
            memory = POOL.reserve(memory_map.size)
            set_places(job, memory_map.places, address(memory))
            for name, x in (inputs or {}).items():
                whole = view(name, round_up(x.shape[1], self.target.panel))
                whole[:, x.shape[1] :] = 0
                narrow = shape.buffers[name][1] == "bfloat16"
                whole[:, : x.shape[1]] = to_bfloat16(x) if narrow else x
            POOL.run(program, job, threads)
            if not output:
                return NOTHING
            result = view(output, shape.buffers[output][0])
            return result.copy() if result.dtype == np.float32 else from_bfloat16(result)

    # ------------------------------------------------------------ the whole pass

    def forward(
        self, batch: Batch, weights: PackedWeights, config: BertConfig
    ) -> tuple[Floats, Floats]:
        """Start and end logits [T] of a packed batch."""
        tokens, hidden = len(batch.input_ids), config.hidden_size
        start, end = np.empty(tokens, np.float32), np.empty(tokens, np.float32)
        eps = np.array([config.layer_norm_eps], np.float32)
        ids = [
            np.ascontiguousarray(x, np.int32)
            for x in (batch.input_ids, batch.token_type_ids, batch.position_ids)
        ]
        self._run(
            records.FORWARD,
            tokens,
            Shape(
                hidden=hidden,
                inner=config.intermediate_size,
                heads=config.num_attention_heads,
                x=(hidden, "float32"),
                qkv=(3 * hidden, self.reading),
                context=(hidden, self.inner),
            ),
            weights.addresses
            | {
                "activation": ACTIVATIONS.index(config.activation),
                "eps": address(eps),
                "input_ids": address(ids[0]),
                "token_type_ids": address(ids[1]),
                "position_ids": address(ids[2]),
                "start_logits": address(start),
                "end_logits": address(end),
            },
            cu_seqlens=batch.cu_seqlens,
        )
        return start, end

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
        epsilon = np.array([eps], np.float32)
        ids = [np.ascontiguousarray(x, np.int32) for x in (input_ids, token_type_ids, position_ids)]
        hidden = tables.hidden
        return self._run(
            records.EMBED,
            len(input_ids),
            Shape(hidden=hidden, x=(hidden, "float32")),
            {
                "eps": address(epsilon),
                "input_ids": address(ids[0]),
                "token_type_ids": address(ids[1]),
                "position_ids": address(ids[2]),
            }
            | tables.fields,
            output="x",
        )

    def _linear(
        self,
        x: Floats,
        dense: PackedDense,
        ending: int,
        to: str = "float32",
        residual: Floats | None = None,
        fields: Mapping[str, int] | None = None,
    ) -> Floats:
        record = np.array(dense.record, np.int64)
        out, into = dense.out, dense.into
        return self._run(
            records.LINEAR,
            len(x),
            Shape(
                hidden=out,
                inner=max(out, into),
                x=(into, "float32"),
                context=(out, "float32"),
                out=(out, to),
            ),
            {
                "width": round_up(into, self.target.panel),
                "dense": address(record),
                "ending": ending,
                "repeats": 1,
                **(fields or {}),
            },
            inputs={"x": x} if residual is None else {"x": x, "context": residual},
            output="out",
        )

    def linear(self, x: Floats, dense: PackedDense) -> Floats:
        """See reference.linear."""
        return self._linear(x, dense, records.PLAIN)

    def linear_activation(self, x: Floats, dense: PackedDense, activation: str) -> Floats:
        """See reference.linear_activation."""
        number = ACTIVATIONS.index(activation)
        return self._linear(x, dense, records.FIRST_ACTIVATION + number, self.inner)

    def linear_add_norm(
        self, x: Floats, dense: PackedDense, residual: Floats, norm: Floats, eps: float
    ) -> Floats:
        """See reference.linear_add_norm."""
        epsilon = np.array([eps], np.float32)
        fields = {"norm": address(norm), "eps": address(epsilon)}
        return self._linear(x, dense, records.RESIDUAL, residual=residual, fields=fields)

    def attention(self, qkv: Floats, cu_seqlens: Ints, num_heads: int) -> Floats:
        """See reference.attention."""
        hidden = qkv.shape[1] // 3
        shape = Shape(
            hidden=hidden,
            heads=num_heads,
            qkv=(3 * hidden, self.reading),
            context=(hidden, self.inner),
        )
        return self._run(
            records.ATTENTION,
            len(qkv),
            shape,
            {},
            inputs={"qkv": qkv},
            output="context",
            cu_seqlens=cu_seqlens,
        )

    def span_logits(self, x: Floats, head: Floats) -> tuple[Floats, Floats]:
        """See reference.span_logits."""
        start, end = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
        self._run(
            records.SPAN,
            len(x),
            Shape(hidden=x.shape[1], x=(x.shape[1], "float32")),
            {
                "head": address(head),
                "start_logits": address(start),
                "end_logits": address(end),
            },
            inputs={"x": x},
        )
        return start, end
