"""The functions that train on the processor: those of kernels/gradients.py, fast.

Each makes one job of the training program (program.py).  What a step keeps lies in memory that the
workspace gives away in the order in which it is asked for, and again after `begin`: so a step of
the optimizer allocates nothing that the one before had not.

The gradient of the hidden states is one buffer [T, D] of float32, changed in place from the last
layer to the first.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from minibert.arrays import Floats, Ints
from minibert.kernels.bounds import check_windows
from minibert.kernels.numbers import round_up
from minibert.kernels.training import AdamW, Dropout
from minibert.parameters import Dense, Norm, Tables, Weights, full

from ..compiler import Program, load_program
from ..functions import ACTIVATIONS, longest, set_ids
from ..jobs import BLOCK_ROWS, attention_tasks
from ..packing import address
from ..pool import POOL
from ..records import CHUNK, PLAIN, QKV, RESIDUAL, WEIGHT_GRADIENT
from ..targets import SIZES, Target
from .calls import Active, Attended, Call, Linear, Normal, Projected
from .memory import COLUMNS, NUMBERS, Buffer, Threads, Workspace, blocks, tiles
from .weights import TrainedDense, TrainedWeights, copy_rest, make_room


class Kernels:
    """The processor's kernels for training, in one dtype and with so many threads.

    Args:
        dtype: 'float32' or 'bfloat16', of the matrix products.
        target: the processor.
        num_threads: how many work on a step, at most.
    """

    def __init__(self, dtype: str, target: Target, num_threads: int):
        self.dtype, self.target, self.num_threads = dtype, target, num_threads
        self.kind = target.attention(dtype)  # of queries, keys, values, and what is kept of them
        self.operand = target.operand(dtype)
        self.workspace = Workspace(target)
        self.begin = self.workspace.begin
        self.scratch = Threads(self.kind, target, num_threads)

    @cached_property
    def program(self) -> Program:
        """The compiled program."""
        return load_program(self.dtype, self.target, training=True)

    # ------------------------------------------------------------ weights, see weights.py

    def prepare(self, weights: Weights) -> TrainedWeights:
        """Weights packed for both directions."""
        prepared = make_room(weights, self.operand, self.target)
        self.refresh(prepared, weights)
        return prepared

    def refresh(self, prepared: TrainedWeights, weights: Weights) -> None:
        """Pack the weights anew, after the optimizer has changed them."""
        for dense, to in copy_rest(weights, prepared, self.target):
            weight = np.ascontiguousarray(full(dense.weight), np.float32)
            call = self._call("pack")
            call.arrays.append(weight)
            call.record["weights"] = (address(weight), weight.strides[0])
            call.put(narrow=to.narrow)
            call.record["out"], call.record["into"] = to.out, to.into
            for name in ("forward", "backward"):
                panels = getattr(to, name)
                call.refer(name, panels)
                call.record[f"{name}_bytes"] = panels.shape[1]
                call.record[f"{name}_count"] = len(panels)
            call.set_tasks("row", blocks(to.out, BLOCK_ROWS))
            self._run(call)

    # ------------------------------------------------------------ forward

    def embed(
        self,
        input_ids: Ints,
        token_type_ids: Ints,
        position_ids: Ints,
        tables: Any,
        eps: float,
        dropout: Dropout | None = None,
    ) -> Normal:
        """See gradients.embed."""
        kept = self._normal(len(input_ids), tables.hidden)
        call = self._call("embed")
        call.record["tables"] = tables.record
        set_ids(call, input_ids, token_type_ids, position_ids, tables.rows)
        self._set_norm(call, kept, tables.norm, eps)
        call.put(out=kept.out, operand=kept.operand)
        call.set_dropout(dropout)
        return self._by_rows(call, len(input_ids), kept)

    def project(self, x: Normal, dense: TrainedDense) -> Projected:
        """See gradients.project."""
        tokens = len(x.out)
        out = self.workspace.keep(tokens, dense.out, "float32")
        operand = self.workspace.keep(tokens, dense.out, self.operand)
        call = self._call("project")
        call.record["dense"] = dense.record
        call.put(x=x.operand, out=out, operand=operand)
        return self._by_rows(call, tokens, Projected(out, operand))

    def linear(self, x: Any, dense: TrainedDense) -> Linear:
        """See gradients.linear."""
        out = self.workspace.keep(len(x.operand), dense.out, self.kind)
        call = self._call("linear")
        call.record["dense"] = dense.record
        call.put(x=x.operand, out=out)
        return self._by_rows(call, len(out), Linear(out))

    def linear_activation(self, x: Any, dense: TrainedDense, activation: str) -> Active:
        """See gradients.linear_activation."""
        tokens = len(x.operand)
        out = self.workspace.keep(tokens, dense.out, self.operand)
        before = self.workspace.keep(tokens, dense.out, self.kind)
        call = self._call("linear_activation")
        call.record["dense"] = dense.record
        call.record["activation"] = ACTIVATIONS.index(activation)
        call.put(x=x.operand, out=out, before=before)
        return self._by_rows(call, tokens, Active(out, before))

    def linear_add_norm(
        self,
        x: Any,
        dense: TrainedDense,
        residual: Normal,
        norm: Floats,
        eps: float,
        dropout: Dropout | None = None,
    ) -> Normal:
        """See gradients.linear_add_norm."""
        tokens = len(x.operand)
        kept = self._normal(tokens, dense.out)
        call = self._call("linear_add_norm")
        call.record["dense"] = dense.record
        self._set_norm(call, kept, norm, eps)
        call.put(x=x.operand, residual=residual.out, out=kept.out, operand=kept.operand)
        call.set_dropout(dropout)
        return self._by_rows(call, tokens, kept)

    def attention(
        self, qkv: Linear, cu_seqlens: Ints, num_heads: int, dropout: Dropout | None = None
    ) -> Attended:
        """See gradients.attention."""
        tokens, hidden = len(qkv.operand), qkv.operand.width // 3
        out = self.workspace.keep(tokens, hidden, self.operand)
        # Vectors of them are read beyond the last token, too.
        rows = self.workspace.keep(1, 2 * num_heads * tokens + 64, "float32")
        call = self._attention("attention", qkv, out, rows, cu_seqlens, num_heads)
        call.set_dropout(dropout, num_heads)
        self._run(call, longest(cu_seqlens), hidden // num_heads)
        return Attended(out, rows)

    def span_logits(self, x: Normal, head: Floats) -> tuple[Floats, Floats]:
        """See gradients.span_logits."""
        tokens = len(x.out)
        start, end = np.empty(tokens, np.float32), np.empty(tokens, np.float32)
        call = self._call("span_logits")
        call.refer("head", head)
        call.record["hidden"] = x.out.width
        call.put(x=x.out)
        call.refer("start_logits", start)
        call.refer("end_logits", end)
        return self._by_rows(call, tokens, (start, end))

    # ------------------------------------------------------------ backward

    def hidden_states(self, x: Normal) -> Floats:
        """See gradients.hidden_states."""
        return x.out.array

    def add_gradient(self, d_x: Buffer, more: Floats) -> Buffer:
        """See gradients.add_gradient; d_x is changed."""
        d_x.array[:] += more
        return d_x

    def span_logits_backward(
        self, d_start: Floats, d_end: Floats, x: Normal, head: Floats, gradient: Dense
    ) -> Buffer:
        """See gradients.span_logits_backward."""
        tokens, hidden = len(x.out), x.out.width
        out = self.workspace.borrow("d_x", tokens, hidden, "float32")
        call = self._call("span_logits_backward")
        call.refer("head", head)
        call.record["hidden"] = hidden
        call.put(x=x.out, out=out)
        call.refer("d_start", np.ascontiguousarray(d_start, np.float32))
        call.refer("d_end", np.ascontiguousarray(d_end, np.float32))
        sums = self._set_sums(call, tokens, hidden)
        self._by_rows(call, tokens, None)
        full(gradient.weight)[:] += sums.sum(axis=0)[:, :hidden]
        gradient.bias[0] += np.sum(d_start, dtype=np.float32)
        gradient.bias[1] += np.sum(d_end, dtype=np.float32)
        return out

    def linear_add_norm_backward(
        self,
        d_out: Buffer,
        kept: Normal,
        x: Any,
        dense: TrainedDense,
        norm: Floats,
        gradient: Dense,
        norm_gradient: Norm,
        dropout: Dropout | None = None,
    ) -> tuple[Buffer, Buffer]:
        """See gradients.linear_add_norm_backward; what is returned second is d_out, changed."""
        tokens, hidden = len(d_out), dense.out
        d_sum = d_out
        if self.operand != "float32" or dropout is not None:
            d_sum = self.workspace.borrow("d_sum", tokens, hidden, self.operand)
        d_x = self.workspace.borrow("d_inner", tokens, dense.into, self.kind)
        call = self._call("linear_add_norm_backward")
        self._set_norm(call, kept, norm)
        call.put(d_sum=d_out)
        call.set_dropout(dropout)
        sums = self._set_sums(call, tokens, hidden)
        self._dense_backward(call, d_sum, x, dense, gradient, QKV, d_x, d_x)
        add_norm(sums, norm_gradient)
        return d_x, d_out

    def linear_activation_backward(
        self,
        d_out: Buffer,
        kept: Active,
        x: Any,
        dense: TrainedDense,
        activation: str,
        gradient: Dense,
        plus: Buffer,
    ) -> Buffer:
        """See gradients.linear_activation_backward; the result is `plus`, changed."""
        call = self._call("linear_activation_backward")
        call.record["activation"] = ACTIVATIONS.index(activation)
        call.put(before=kept.before)
        self._dense_backward(call, d_out, x, dense, gradient, RESIDUAL, plus, plus)
        return plus

    def attention_backward(
        self,
        d_out: Buffer,
        kept: Attended,
        qkv: Linear,
        cu_seqlens: Ints,
        num_heads: int,
        dropout: Dropout | None = None,
    ) -> Buffer:
        """See gradients.attention_backward."""
        tokens, hidden = len(d_out), d_out.width
        out = self.workspace.borrow("d_qkv", tokens, 3 * hidden, self.operand)
        call = self._attention(
            "attention_backward", qkv, kept.operand, kept.rows, cu_seqlens, num_heads
        )
        call.put(d_context=d_out, out=out)
        call.set_dropout(dropout, num_heads)
        self._run(call, longest(cu_seqlens), hidden // num_heads)
        return out

    def linear_backward(
        self, d_out: Buffer, x: Any, dense: TrainedDense, gradient: Dense, plus: Buffer | None
    ) -> Buffer:
        """See gradients.linear_backward; the result is `plus`, changed, if that is there."""
        ending = RESIDUAL
        if plus is None:
            plus = self.workspace.borrow("d_linear", len(d_out), dense.into, "float32")
            ending = PLAIN
        call = self._call("linear_backward")
        self._dense_backward(call, d_out, x, dense, gradient, ending, plus, plus)
        return plus

    def project_backward(
        self, d_out: Buffer, x: Normal, dense: TrainedDense, gradient: Dense
    ) -> Buffer:
        """See gradients.project_backward."""
        operand = self.workspace.borrow("d_sum", len(d_out), dense.out, self.operand)
        call = self._call("narrow")
        call.record["width"] = dense.out
        call.put(x=d_out, operand=operand)
        self._by_rows(call, len(d_out), None)
        return self.linear_backward(operand, x, dense, gradient, None)

    def embed_backward(
        self,
        d_out: Buffer,
        kept: Normal,
        input_ids: Ints,
        token_type_ids: Ints,
        position_ids: Ints,
        tables: Any,
        gradient: Tables,
        dropout: Dropout | None = None,
    ) -> None:
        """See gradients.embed_backward; changes d_out."""
        tokens, hidden = len(d_out), tables.hidden
        call = self._call("embed_backward")
        set_ids(call, input_ids, token_type_ids, position_ids, tables.rows)
        self._set_norm(call, kept, tables.norm)
        call.put(d_sum=d_out)
        call.set_dropout(dropout)
        call.record["hidden"], call.record["tokens"] = hidden, tokens
        sums = self._set_sums(call, tokens, hidden)
        call.set_tasks("column", blocks(hidden, COLUMNS))
        for name in ("words", "token_types", "positions"):
            call.refer(name, getattr(gradient, name).matrix)
        self._by_rows(call, tokens, None)
        add_norm(sums, gradient.norm)

    # ------------------------------------------------------------ the optimizer

    def adamw(
        self, weights: Floats, gradient: Floats, first: Floats, second: Floats, settings: AdamW
    ) -> None:
        """See gradients.adamw."""
        s = settings
        numbers = np.array(
            [
                s.scale,
                s.beta1,
                1 - s.beta1,
                s.beta2,
                1 - s.beta2,
                1 - s.learning_rate * s.weight_decay,
                s.learning_rate / (1 - s.beta1**s.step),
                1 / math.sqrt(1 - s.beta2**s.step),
                s.eps,
            ],
            np.float32,
        )
        call = self._call("adamw")
        for name, array in zip(
            ("weights", "gradient", "first", "second", "settings"),
            (weights, gradient, first, second, numbers),
            strict=True,
        ):
            call.refer(name, array)
        call.set_tasks("row", blocks(len(weights), NUMBERS))
        self._run(call)

    def sum_of_squares(self, x: Floats) -> float:
        """See gradients.sum_of_squares."""
        tasks = blocks(len(x), CHUNK)
        sums = np.zeros(len(tasks), np.float32)
        call = self._call("sum_of_squares")
        call.refer("x", x)
        call.refer("sums", sums)
        call.set_tasks("row", tasks)
        self._run(call)
        return float(sums.sum(dtype=np.float64))

    # ------------------------------------------------------------ calls

    def _call(self, entry: str) -> Call:
        return Call(self.program, self.num_threads, entry)

    def _normal(self, tokens: int, width: int) -> Normal:
        keep = self.workspace.keep
        out = keep(tokens, width, "float32")
        operand = out if self.operand == "float32" else keep(tokens, width, self.operand)
        return Normal(out, operand, keep(tokens, width, "float32"), keep(1, tokens, "float32"))

    def _set_norm(self, call: Call, kept: Normal, norm: Floats, eps: float | None = None) -> None:
        call.refer("norm", norm)
        call.put(normal=kept.normal)
        call.record["deviations"] = kept.deviations.record[0]
        call.arrays.append(kept.deviations)
        if eps is not None:
            call.record["eps"] = eps

    def _set_sums(self, call: Call, tokens: int, width: int) -> Floats:
        """Room for two sums of columns for each block of rows: [blocks, 2, width padded]."""
        padded = round_up(width, self.target.panel)
        count = -(-tokens // BLOCK_ROWS)
        sums = self.workspace.numbers("sums", count * 2 * padded).reshape(count, 2, padded)
        call.refer("sums", sums)
        return sums

    def _attention(
        self, entry: str, qkv: Linear, context: Buffer, rows: Buffer, cu_seqlens: Ints, heads: int
    ) -> Call:
        check_windows(cu_seqlens, len(context))
        hidden = context.width
        call = self._call(entry)
        call.record["hidden"], call.record["head_size"] = hidden, hidden // heads
        call.record["tokens"] = len(context)
        call.put(qkv=qkv.operand, context=context)
        call.record["kept"] = rows.record[0]
        call.arrays.append(rows)
        # Backward a task is all of a head, whatever the number of threads.
        threads = self.num_threads if entry == "attention" else 1
        call.set_tasks("attention", attention_tasks(cu_seqlens, heads, threads, self.target))
        return call

    def _dense_backward(
        self,
        call: Call,
        d_out: Buffer,
        x: Any,
        dense: TrainedDense,
        gradient: Dense,
        ending: int,
        residual: Buffer,
        out: Buffer,
    ) -> None:
        """Both halves of a dense layer's gradient."""
        tokens, panel = len(d_out), self.target.panel
        padded = round_up(tokens, panel)
        size = SIZES[self.operand]
        across = self.workspace.borrow("across", round_up(dense.out, panel), padded, self.operand)
        panel_bytes = padded * panel * size
        panels = self.workspace.numbers("panels", -(-dense.into // panel) * panel_bytes // 4)
        sums = self.workspace.numbers("column sums", round_up(dense.out, panel))
        weight = np.zeros((), WEIGHT_GRADIENT)
        weight["across"] = across.record
        weight["sums"], weight["panels"] = address(sums), address(panels)
        weight["panel_bytes"], weight["steps"] = panel_bytes, padded * size // 4
        to = full(gradient.weight)  # gradients are floats
        weight["gradient"] = (address(to), to.strides[0])
        weight["out"], weight["into"] = dense.out, dense.into
        for name, tasks in (
            ("column", blocks(dense.out, COLUMNS)),
            ("input", blocks(dense.into, COLUMNS)),
            ("tile", tiles(dense.out, dense.into, panel)),
        ):
            weight[f"{name}_tasks"], weight[f"{name}_task_count"] = address(tasks), len(tasks)
            call.arrays.append(tasks)
        call.arrays += [across, panels, sums, to]
        call.record["weight"] = weight
        call.record["tokens"], call.record["ending"] = tokens, ending
        call.record["dense"] = dense.turned
        call.put(d_out=d_out, x=x.operand, residual=residual, out=out)
        self._by_rows(call, tokens, None)
        gradient.bias[:] += sums[: dense.out]

    def _by_rows(self, call: Call, tokens: int, result: Any) -> Any:
        call.set_tasks("row", blocks(tokens, BLOCK_ROWS))
        self._run(call)
        return result

    def _run(self, call: Call, length: int = 0, head_size: int = 0) -> None:
        call.refer("threads", self.scratch.fit(length, head_size))
        with POOL.lock:
            POOL.run(call)


def add_norm(sums: Floats, gradient: Norm) -> None:
    """Add sums of blocks [blocks, 2, width padded] to the gradient of gain and bias."""
    total = sums.sum(axis=0)
    gradient.gain[:] += total[0, : len(gradient.gain)]
    gradient.bias[:] += total[1, : len(gradient.bias)]
