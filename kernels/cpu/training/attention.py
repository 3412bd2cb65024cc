"""Attention in training: what is kept of it, and its gradient.

The probabilities of a head and window are computed once more from its queries and keys, in the
cache, some keys at a time: P^T = exp(K Q^T / sqrt(Dh)), shifted and divided as they were forward.
With C = P V and d for gradients of the loss, and rows that are keys:

    d_V = P^T d_C        d_A^T = P^T (V d_C^T - sum over columns of C d_C) / sqrt(Dh)
    d_K = d_A^T Q        d_Q = d_A K, after all d_A^T are put across

Measured in a step of 12/384/12 on two Zen 5 cores (`tools/bench.py train --profile`): forward 30 %
of the peak in bfloat16 and 40 % in float32, backward 43 and 52 %.  Heads are 32 wide, so products
are short, and exponentials and packing weigh as much as they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .. import attention as heads
from .. import gemm
from ..activations import exp2
from ..pointers import address_of
from ..rows import store_as
from ..schedule import attention_task_at
from ..simd import F32, Code, Value, jit
from ..steps import Rows, kernel, padded, rows_of
from ..steps import write_attention as write_step
from ..targets import SIZES, Target
from ..threads import enter, leave, next_stage, next_task, task_number
from . import rows
from .rows import columns, load_as, only

# ---------------------------------------------------------------- kernels


def row_products(
    code: Code,
    a: Value,
    a_stride: Value,
    b: Value,
    b_stride: Value,
    rows: Value,
    count: Value,
    out: Value,
    *,
    kind: str,
    other: str,
) -> None:
    """out[i] = sum over the columns of a[i] b[i], float32; kept as `kind` and `other`."""

    def row(i: Value, _: list[Value]) -> None:
        code.store(code.constant(0.0, F32), out + i * 4)
        first, second = a + i * a_stride, b + i * b_stride

        def some(k: Value, load: Callable[..., Value]) -> None:
            x = load_as(code, first + k * SIZES[kind], kind, load)
            y = load_as(code, second + k * SIZES[other], other, load)
            product = x * y
            vector = hasattr(product.type, "count")
            total = code.reduce(product, Value.__add__) if vector else product
            code.store(code.load_one(out + i * 4) + total, out + i * 4)

        code.elements(count, some)

    code.loop(0, rows, 1, row)


def softmax_backward(
    code: Code,
    scores: Value,
    d_probs: Value,
    rows: Value,
    count: Value,
    size: Value,
    shifts: Value,
    inverses: Value,
    deltas: Value,
    probs: Value,
    d_scores: Value,
    d_stride: Value,
    *,
    dtype: str,
) -> None:
    """Probabilities once more, and the gradient of the scores; rows are keys, columns queries.

    Args:
        code: where to write.
        scores: address of [rows, S] float32, S rounded up to whole panels; without the scale.
        d_probs: gradient of the probabilities, in the same form.
        rows: how many keys.
        count: S.
        size: Dh, whose root divides the scores.
        shifts: of each query: the exponent's shift, see attention.softmax.
        inverses: of each query: one over the sum of its row.
        deltas: of each query: the sum of context times its gradient.
        probs: where probabilities [rows, S] of `dtype` go.
        d_scores: where the gradient of query times key goes, rows of `dtype`.
        d_stride: bytes from row to row of it.
        dtype: 'float32' or 'bfloat16'.
    """
    lanes = code.lanes
    width = (count + (2 * lanes - 1)) & -(2 * lanes)
    root = 1.0 / code.sqrt(code.cast("sitofp", size, F32))
    over_root, factor = code.splat(root), code.splat(root * math.log2(math.e))
    number = SIZES[dtype]

    def row(i: Value, _: list[Value]) -> None:
        begin, gradient = scores + i * width * 4, d_probs + i * width * 4
        to, d_to = probs + i * width * number, d_scores + i * d_stride

        def some(k: Value, mask: Value | None) -> None:
            x = code.fma(code.load(begin + k * 4), factor, code.load(shifts + k * 4))
            p = exp2(code, code.minimum(x, 1.0)) * code.load(inverses + k * 4)
            of = (code.load(gradient + k * 4) - code.load(deltas + k * 4)) * over_root
            store_as(code, only(code, mask, p), to + k * number, dtype)
            store_as(code, only(code, mask, p * of), d_to + k * number, dtype)

        columns(code, count, some)

    code.loop(0, rows, 1, row)


# ---------------------------------------------------------------- entries


def write_attention(dtype: str, target: Target) -> dict[str, Any]:
    """Attention, and its gradient: a task is a head of a window."""
    panel, high = target.panel, target.tile_rows[0]
    kind, inner = target.attention(dtype), target.operand(dtype)
    size, inner_size = SIZES[kind], SIZES[inner]
    per, lanes = 4 // size, target.lanes
    drop_numbers = kernel("drop_float32_float32", rows.drop, target, kind="float32", to="float32")
    drop_probs = kernel(f"drop_{kind}_{kind}", rows.drop, target, kind=kind, to=kind)

    @jit
    def drop_of_queries(probs, count, first, task, dropout):
        """Drop probabilities: rows are queries, columns keys; see gradients.pair_places."""
        if dropout.on:
            heads = dropout.heads
            place = (dropout.first_token + task.begin + first) * heads + task.head
            width = padded(task.length, panel)
            drop_probs(
                probs, width * size, count, width, probs, width * size, place * 512, heads * 512,
                1, address_of(dropout, "on"),
            )  # fmt: skip

    step_attention = write_step(dtype, target, drop_of_queries)
    product = kernel("read", gemm.product, target, name="read_tile", operand=kind, from_zero=True)
    pack_keys = kernel("pack_keys", heads.pack_keys, target, dtype=kind)
    pack_values = kernel("pack_values", heads.pack_values, target, dtype=kind)
    soften = kernel("softmax_backward", softmax_backward, target, dtype=kind)
    multiply_rows = kernel("row_products", row_products, target, kind=kind, other=inner)
    transpose = kernel("transpose_scores", rows.transpose, target, kind=kind)
    store = kernel("store_context", heads.store_context, target, to=inner)

    @jit
    def attention(job, slot):
        thread = enter(job, slot)
        next_stage(thread, job.attention_task_count)
        while next_task(job, thread):
            task = attention_task_at(job.attention_tasks, task_number(thread))
            step_attention(
                job.qkv,
                task,
                job.hidden,
                job.head_size,
                job.context,
                job.kept,
                job.tokens,
                job.dropout,
                thread,
            )
        leave(job, thread, slot)

    @jit
    def score(x, packed, width, length, out):
        """out[rows, S] = rows of one head times all packed rows of the window."""
        deep = padded(width, per * lanes) // per
        steps = padded(width, per * 4) // per
        step = padded(length, panel) * 4
        for p in range(step // (panel * 4)):
            product(
                x.address, x.stride, x.count, packed + p * deep * panel * 4,
                out + p * panel * 4, step, steps, 0, 0, 0,
            )  # fmt: skip

    @jit
    def read(x, packed, width, length, out, thread):
        """out[rows, Dh] = rows of S weights times all packed rows of the window."""
        step = padded(length, panel) * size
        d = 0
        while d < width:
            product(
                x.address, x.stride, x.count, packed + d * step, thread.sums, panel * 4,
                step // 4, 0, 0, 0,
            )  # fmt: skip
            store(
                thread.sums, x.count, thread.ones, min(panel, width - d),
                out.address + d * inner_size, out.stride,
            )  # fmt: skip
            d += panel

    @jit
    def head_backward(job, task, thread):
        """Gradients of one head's queries, keys and values in one window; see `attention`."""
        width, length = job.head_size, task.length
        across = job.head_size * task.head * size
        first = rows_of(job.qkv, task.begin, length)
        query, stride = first.address + across, first.stride
        key, value = query + job.hidden * size, query + 2 * job.hidden * size
        of = rows_of(job.d_context, task.begin, length)
        gradient = of.address + across
        context = rows_of(job.context, task.begin, length)
        to = rows_of(job.out, task.begin, length)
        d_query = to.address + task.head * width * inner_size
        d_key, d_value = d_query + job.hidden * inner_size, d_query + 2 * job.hidden * inner_size
        shifts = job.kept + (2 * task.head * job.tokens + task.begin) * 4

        pack_keys(query, stride, length, width, thread.packed_queries)
        pack_keys(gradient, of.stride, length, width, thread.packed_gradient)
        pack_values(query, stride, length, width, thread.queries)
        pack_values(gradient, of.stride, length, width, thread.gradient)
        pack_values(key, stride, length, width, thread.keys)
        multiply_rows(
            gradient, of.stride, context.address + task.head * width * inner_size, context.stride,
            length, width, thread.deltas,
        )  # fmt: skip

        # Rows are keys: probabilities, the gradient of scores, then of values and keys.
        done = 0
        while done < length:
            count = min(high, length - done)
            scores = rows_of(thread.d_scores, done, count)
            score(
                Rows(key + done * stride, stride, count),
                thread.packed_queries,
                width,
                length,
                thread.scores,
            )
            score(
                Rows(value + done * stride, stride, count),
                thread.packed_gradient,
                width,
                length,
                thread.d_probs,
            )
            # The places of pairs: rows are keys here, and columns queries.
            heads, columns = job.dropout.heads, padded(length, panel)
            place = (job.dropout.first_token + task.begin) * heads + task.head
            place = place * 512 + done
            if job.dropout.on:
                drop_numbers(
                    thread.d_probs, columns * 4, count, columns, thread.d_probs, columns * 4,
                    place, 1, heads * 512, address_of(job.dropout, "on"),
                )  # fmt: skip
            soften(
                thread.scores, thread.d_probs, count, length, width, shifts,
                shifts + job.tokens * 4, thread.deltas, thread.probs, scores.address,
                scores.stride,
            )  # fmt: skip
            if job.dropout.on:
                drop_probs(
                    thread.probs, columns * size, count, columns, thread.probs, columns * size,
                    place, 1, heads * 512, address_of(job.dropout, "on"),
                )  # fmt: skip
            probs = Rows(thread.probs, columns * size, count)
            read(
                probs,
                thread.gradient,
                width,
                length,
                Rows(d_value + done * to.stride, to.stride, count),
                thread,
            )
            read(
                scores,
                thread.queries,
                width,
                length,
                Rows(d_key + done * to.stride, to.stride, count),
                thread,
            )
            done += high

        # Rows are queries.
        turned = rows_of(thread.d_scores_across, 0, length)
        transpose(
            thread.d_scores.address, thread.d_scores.stride, length, length, turned.address,
            turned.stride, thread.scores,
        )  # fmt: skip
        done = 0
        while done < length:
            count = min(high, length - done)
            read(
                rows_of(thread.d_scores_across, done, count),
                thread.keys,
                width,
                length,
                Rows(d_query + done * to.stride, to.stride, count),
                thread,
            )
            done += high

    @jit
    def attention_backward(job, slot):
        thread = enter(job, slot)
        next_stage(thread, job.attention_task_count)
        while next_task(job, thread):
            task = attention_task_at(job.attention_tasks, task_number(thread))
            head_backward(job, task, thread)
        leave(job, thread, slot)

    return {"attention": attention, "attention_backward": attention_backward}
