"""The training program: each step forward and its gradient, compiled, each an entry of its own.

As in program.py, all threads of a job call the same entry; a step's stages meet in between.  Half
of a dense layer's gradient goes by rows, from the output's to the input's; the other half, that of
the weights, by tiles of the weights, and each sums over all tokens.  So no number depends on how
many threads there are.
"""

from __future__ import annotations

from typing import Any

from ..pointers import address_of
from ..program import by_rows
from ..records import PLAIN, QKV, RESIDUAL
from ..rows import narrow as narrow_rows
from ..schedule import row_task_at
from ..simd import jit
from ..steps import kernel, padded, rows_of, write_embed_sum, write_multiply, write_span_logits
from ..targets import Target
from ..threads import enter, leave, next_stage, next_task, task_number
from . import activations, rows
from .attention import write_attention
from .dense import write_backward, write_drop
from .optimizer import write_optimizer


def write_training_program(dtype: str, target: Target) -> dict[str, Any]:
    """Write all entries for one dtype and target; Numba compiles them when asked to.

    Args:
        dtype: 'float32' or 'bfloat16', of the matrix products.
        target: what to write it for.

    Returns:
        Functions of a job and a slot, by the names in records.TRAINING_JOBS.
    """
    return {
        **write_forward(dtype, target),
        **write_backward(dtype, target),
        **write_attention(dtype, target),
        **write_embed_backward(dtype, target),
        **write_optimizer(dtype, target),
    }


def write_forward(dtype: str, target: Target) -> dict[str, Any]:
    """The steps forward that go by rows."""
    panel, kind, operand = target.panel, target.attention(dtype), target.operand(dtype)
    multiply = write_multiply(dtype, target)
    embed_sum, score = write_embed_sum(target), write_span_logits(target)
    layer_norm = kernel("layer_norm_kept", rows.layer_norm_kept, target, to=operand)
    activate = kernel("activate", activations.activate, target, kind=kind, to=operand)
    drop = write_drop(target, "float32", "float32")
    narrow = kernel("narrow_rows", narrow_rows, target, to=operand)
    add_rows = kernel("add_rows", rows.add_rows, target)

    @jit
    def narrow_block(x, width, to):
        """Rows as products read them."""
        narrow(x.address, x.stride, x.count, padded(width, panel), to.address, to.stride)

    @jit
    def normalise(job, block, hidden):
        """Normalise the rows in `normal`, and write what follows."""
        z = rows_of(job.normal, block.begin, block.count)
        out = rows_of(job.out, block.begin, block.count)
        operand = rows_of(job.operand, block.begin, block.count)
        layer_norm(
            z.address, z.stride, z.count, hidden, job.norm, address_of(job, "eps"), out.address,
            out.stride, operand.address, operand.stride, job.deviations + block.begin * 4,
        )  # fmt: skip

    @jit
    def embed(job, block, thread):
        ids = block.begin * 4
        embed_sum(
            job.input_ids + ids, job.token_type_ids + ids, job.position_ids + ids, job.tables,
            rows_of(job.normal, block.begin, block.count),
        )  # fmt: skip
        hidden = job.tables.hidden
        normalise(job, block, hidden)
        if job.dropout.on:
            out = rows_of(job.out, block.begin, block.count)
            to = rows_of(job.operand, block.begin, block.count)
            drop(out, block.begin, hidden, job.dropout, out)
            narrow(out.address, out.stride, out.count, padded(hidden, panel), to.address, to.stride)

    @jit
    def project(job, block, thread):
        x = rows_of(job.x, block.begin, block.count)
        out = rows_of(job.out, block.begin, block.count)
        multiply(x, job.dense, PLAIN, x, out, thread)
        narrow_block(out, job.dense.out, rows_of(job.operand, block.begin, block.count))

    @jit
    def narrow_only(job, block, thread):
        x = rows_of(job.x, block.begin, block.count)
        narrow_block(x, job.width, rows_of(job.operand, block.begin, block.count))

    @jit
    def linear(job, block, thread):
        x = rows_of(job.x, block.begin, block.count)
        multiply(x, job.dense, QKV, x, rows_of(job.out, block.begin, block.count), thread)

    @jit
    def linear_activation(job, block, thread):
        x = rows_of(job.x, block.begin, block.count)
        before = rows_of(job.before, block.begin, block.count)
        out = rows_of(job.out, block.begin, block.count)
        multiply(x, job.dense, QKV, x, before, thread)
        activate(
            job.activation, before.address, before.stride, before.count,
            padded(job.dense.out, panel), out.address, out.stride,
        )  # fmt: skip

    @jit
    def linear_add_norm(job, block, thread):
        x = rows_of(job.x, block.begin, block.count)
        z = rows_of(job.normal, block.begin, block.count)
        residual = rows_of(job.residual, block.begin, block.count)
        if job.dropout.on:
            width = job.dense.out
            multiply(x, job.dense, PLAIN, residual, z, thread)
            drop(z, block.begin, width, job.dropout, z)
            add_rows(
                z.address, z.stride, z.count, padded(width, panel), residual.address,
                residual.stride,
            )  # fmt: skip
        else:
            multiply(x, job.dense, RESIDUAL, residual, z, thread)
        normalise(job, block, job.dense.out)

    @jit
    def span_logits(job, block, thread):
        x = rows_of(job.x, block.begin, block.count)
        start, end = job.start_logits + block.begin * 4, job.end_logits + block.begin * 4
        score(x, job.hidden, job.head, start, end)

    steps = {
        "embed": embed,
        "project": project,
        "narrow": narrow_only,
        "linear": linear,
        "linear_activation": linear_activation,
        "linear_add_norm": linear_add_norm,
        "span_logits": span_logits,
    }
    return {name: by_rows(step) for name, step in steps.items()}


# ---------------------------------------------------------------- embeddings, backward


def write_embed_backward(dtype: str, target: Target) -> dict[str, Any]:
    """The gradient of the embedding tables: through the norm by rows, then by columns."""
    panel = target.panel
    layer_norm_backward = kernel(
        "embed_norm_backward", rows.layer_norm_backward, target, to="float32"
    )
    scatter = kernel("scatter", rows.scatter, target)
    drop = write_drop(target, "float32", "float32")

    @jit
    def embed_backward(job, slot):
        thread = enter(job, slot)
        next_stage(thread, job.row_task_count)
        while next_task(job, thread):
            i = task_number(thread)
            block = row_task_at(job.row_tasks, i)
            d = rows_of(job.d_sum, block.begin, block.count)
            if job.dropout.on:
                drop(d, block.begin, job.hidden, job.dropout, d)
            normal = rows_of(job.normal, block.begin, block.count)
            layer_norm_backward(
                d.address, d.stride, d.count, job.hidden, job.norm, normal.address, normal.stride,
                job.deviations + block.begin * 4, 0, 0,
                job.sums + i * padded(job.hidden, panel) * 8,
            )  # fmt: skip
        next_stage(thread, job.column_task_count)
        while next_task(job, thread):
            some = row_task_at(job.column_tasks, task_number(thread))
            d, at, each = job.d_sum.address + some.begin * 4, some.begin * 4, job.hidden * 4
            stride, tokens, count = job.d_sum.stride, job.tokens, some.count
            scatter(d, stride, job.input_ids, tokens, count, job.words + at, each)
            scatter(d, stride, job.token_type_ids, tokens, count, job.token_types + at, each)
            scatter(d, stride, job.position_ids, tokens, count, job.positions + at, each)
        leave(job, thread, slot)

    return {"embed_backward": embed_backward}
