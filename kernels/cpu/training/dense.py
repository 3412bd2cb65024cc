"""Gradients of what stands between two attentions.

Matrix products are the tiles of gemm.py, forward and backward.  For y = x W^T, with d for the
gradient of the loss with respect to what follows it:

    d_x = d_y W         rows of d_y, with W packed the other way round
    d_W = d_y^T x       rows of d_y^T (rows.transpose), with x packed as attention packs values

Measured in a step of 12/384/12 in bfloat16 on two Zen 5 cores (`tools/bench.py train --profile`):
both products with a norm or an activation around them reach 76 to 81 % of the processor's peak, at
384 to 384 only 67 %; in float32 77 % and more.
"""

from __future__ import annotations

from typing import Any

from .. import attention as heads
from .. import gemm
from ..pointers import address_of, at
from ..records import TILE_TASK
from ..rows import clear as clear_rows
from ..schedule import row_task_at
from ..simd import jit
from ..steps import kernel, padded, rows_of, write_multiply
from ..targets import SIZES, Target
from ..threads import enter, leave, next_stage, next_task, task_number
from . import activations, rows

tile_task_at = at(TILE_TASK)


def write_drop(target: Target, kind: str, to: str) -> Any:
    """Dropout of hidden states that are kept as `kind`: drop(x, first row, width, dropout, out)."""
    panel = target.panel
    drop_rows = kernel(f"drop_{kind}_{to}", rows.drop, target, kind=kind, to=to)

    @jit
    def drop(x, begin, width, dropout, out):
        place = (dropout.first_token + begin) * width
        drop_rows(
            x.address, x.stride, x.count, padded(width, panel), out.address, out.stride, place,
            width, 1, address_of(dropout, "on"),
        )  # fmt: skip

    return drop


STEPS = 256  # of a block: its part of a panel stays in L1 while the task's rows pass by


def write_weight_gradient(dtype: str, target: Target) -> Any:
    """The gradient of a dense layer's weights and bias: what follows the input's, for all threads.

    Two stages: both operands in the order in which tiles read them; the products.
    """
    operand, panel, high = target.operand(dtype), target.panel, target.tile_rows[0]
    size = SIZES[operand]
    packed = "bfloat16" if size == 2 else "float32"
    transpose = kernel("transpose", rows.transpose, target, kind=packed)
    pack = kernel("pack_tokens", heads.pack_values, target, dtype=packed)
    product = kernel("gradient", gemm.product, target, name="gradient_tile", operand=operand)
    add_columns = kernel("add_columns", rows.add_columns, target)
    clear = kernel("clear", clear_rows, target)

    @jit
    def operands(job, thread, d_out):
        """The first stage."""
        weight = job.weight
        next_stage(thread, weight.column_task_count + weight.input_task_count)
        while next_task(job, thread):
            i = task_number(thread)
            if i < weight.column_task_count:
                some = row_task_at(weight.column_tasks, i)
                across = rows_of(weight.across, some.begin, some.count)
                transpose(
                    d_out.address + some.begin * size, d_out.stride, job.tokens, some.count,
                    across.address, across.stride, weight.sums + some.begin * 4,
                )  # fmt: skip
            else:
                some = row_task_at(weight.input_tasks, i - weight.column_task_count)
                x = job.x.address + some.begin * size
                to = weight.panels + some.begin // panel * weight.panel_bytes
                pack(x, job.x.stride, job.tokens, some.count, to)

    @jit
    def tiles(job, thread):
        """The second stage."""
        weight = job.weight
        next_stage(thread, weight.tile_task_count)
        while next_task(job, thread):
            some = tile_task_at(weight.tile_tasks, task_number(thread))
            across = rows_of(weight.across, some.begin, some.count)
            # Bytes of a panel's sums; the last tile may reach beyond the last row.
            each = padded(some.count, high) * panel * 4
            clear(thread.sums, panel * 4, padded(some.count, high) * some.panels, panel)
            done = 0
            while done < weight.steps:
                steps = min(STEPS, weight.steps - done)
                for p in range(some.panels):
                    sums = thread.sums + p * each
                    product(
                        across.address + done * 4, across.stride, some.count,
                        weight.panels + (some.first_panel + p) * weight.panel_bytes
                        + done * panel * 4,
                        sums, panel * 4, steps, sums, panel * 4, 0,
                    )  # fmt: skip
                done += steps
            gradient = rows_of(weight.gradient, some.begin, some.count)
            for p in range(some.panels):
                column = (some.first_panel + p) * panel
                add_columns(
                    thread.sums + p * each, some.count, min(panel, weight.into - column),
                    gradient.address + column * 4, gradient.stride,
                )  # fmt: skip

    @jit
    def weight_gradient(job, thread, d_out):
        """Both stages; d_out is a records.ROWS."""
        operands(job, thread, d_out)
        tiles(job, thread)

    return weight_gradient


def write_backward(dtype: str, target: Target) -> dict[str, Any]:
    """The gradients of what stands between two attentions."""
    panel, kind, operand = target.panel, target.attention(dtype), target.operand(dtype)
    multiply = write_multiply(dtype, target)
    weight_gradient = write_weight_gradient(dtype, target)
    activate_backward = kernel(
        "activate_backward", activations.activate_backward, target, kind=kind, to=operand
    )
    layer_norm_backward = kernel(
        "layer_norm_backward", rows.layer_norm_backward, target, to=operand
    )
    drop = write_drop(target, "float32", operand)
    score_backward = kernel("span_logits_backward", rows.span_logits_backward, target)

    @jit
    def input_gradient(job, block, thread):
        """The gradient of a dense layer's input, for some rows."""
        d_out = rows_of(job.d_out, block.begin, block.count)
        residual = rows_of(job.residual, block.begin, block.count)
        out = rows_of(job.out, block.begin, block.count)
        multiply(d_out, job.dense, job.ending, residual, out, thread)

    @jit
    def linear_backward(job, slot):
        thread = enter(job, slot)
        next_stage(thread, job.row_task_count)
        while next_task(job, thread):
            input_gradient(job, row_task_at(job.row_tasks, task_number(thread)), thread)
        weight_gradient(job, thread, job.d_out)
        leave(job, thread, slot)

    @jit
    def linear_activation_backward(job, slot):
        thread = enter(job, slot)
        next_stage(thread, job.row_task_count)
        while next_task(job, thread):
            block = row_task_at(job.row_tasks, task_number(thread))
            d_out = rows_of(job.d_out, block.begin, block.count)
            before = rows_of(job.before, block.begin, block.count)
            activate_backward(
                job.activation, d_out.address, d_out.stride, before.address, before.stride,
                block.count, padded(job.dense.into, panel),
            )  # fmt: skip
            input_gradient(job, block, thread)
        weight_gradient(job, thread, job.d_out)
        leave(job, thread, slot)

    @jit
    def linear_add_norm_backward(job, slot):
        thread = enter(job, slot)
        next_stage(thread, job.row_task_count)
        while next_task(job, thread):
            i = task_number(thread)
            block = row_task_at(job.row_tasks, i)
            width = job.dense.into
            d_out = rows_of(job.d_out, block.begin, block.count)
            norm_backward(job, block, i, width, d_out)
            if job.dropout.on:
                d_sum = rows_of(job.d_sum, block.begin, block.count)
                drop(d_sum, block.begin, width, job.dropout, d_out)
            input_gradient(job, block, thread)
        weight_gradient(job, thread, job.d_out)
        leave(job, thread, slot)

    @jit
    def norm_backward(job, block, i, width, operand):
        """Through the norm, for some rows, in place; as products read it, into `operand`."""
        d = rows_of(job.d_sum, block.begin, block.count)
        normal = rows_of(job.normal, block.begin, block.count)
        layer_norm_backward(
            d.address, d.stride, d.count, width, job.norm, normal.address, normal.stride,
            job.deviations + block.begin * 4, operand.address, operand.stride,
            job.sums + i * padded(width, panel) * 8,
        )  # fmt: skip

    @jit
    def span_logits_backward(job, slot):
        thread = enter(job, slot)
        next_stage(thread, job.row_task_count)
        width = padded(job.hidden, panel)
        while next_task(job, thread):
            i = task_number(thread)
            block = row_task_at(job.row_tasks, i)
            x = rows_of(job.x, block.begin, block.count)
            out = rows_of(job.out, block.begin, block.count)
            score_backward(
                x.address, x.stride, x.count, width, job.head, job.d_start + block.begin * 4,
                job.d_end + block.begin * 4, out.address, out.stride, job.sums + i * width * 8,
            )  # fmt: skip
        leave(job, thread, slot)

    return {
        "linear_backward": linear_backward,
        "linear_activation_backward": linear_activation_backward,
        "linear_add_norm_backward": linear_add_norm_backward,
        "span_logits_backward": span_logits_backward,
    }
