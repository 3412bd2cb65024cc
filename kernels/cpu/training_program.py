"""The training program: each step forward and its gradient, compiled, each an entry of its own.

As in program.py, all threads of a job call the same entry; a step's stages meet in between.  Half
of a dense layer's gradient goes by rows, from the output's to the input's; the other half, that of
the weights, by tiles of the weights, and each sums over all tokens.  So no number depends on how
many threads there are.
"""

from __future__ import annotations

from typing import Any

from . import attention as heads
from . import gemm, gradients, rows
from .pointers import address_of, at
from .program import by_rows
from .records import CHUNK, PLAIN, QKV, RESIDUAL, TILE_TASK
from .schedule import attention_task_at, row_task_at
from .simd import jit
from .steps import (
    Rows,
    kernel,
    padded,
    rows_of,
    write_embed_sum,
    write_multiply,
    write_span_logits,
)
from .steps import (
    write_attention as write_attention_step,
)
from .targets import SIZES, Target
from .threads import enter, leave, next_stage, next_task, task_number

tile_task_at = at(TILE_TASK)


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


def write_drop(target: Target, kind: str, to: str) -> Any:
    """Dropout of hidden states that are kept as `kind`: drop(x, first row, width, dropout, out)."""
    panel = target.panel
    drop_rows = kernel(f"drop_{kind}_{to}", gradients.drop, target, kind=kind, to=to)

    @jit
    def drop(x, begin, width, dropout, out):
        place = (dropout.first_token + begin) * width
        drop_rows(
            x.address, x.stride, x.count, padded(width, panel), out.address, out.stride, place,
            width, 1, address_of(dropout, "on"),
        )  # fmt: skip

    return drop


def write_forward(dtype: str, target: Target) -> dict[str, Any]:
    """The steps forward that go by rows."""
    panel, kind, operand = target.panel, target.attention(dtype), target.operand(dtype)
    multiply = write_multiply(dtype, target)
    embed_sum, score = write_embed_sum(target), write_span_logits(target)
    layer_norm = kernel("layer_norm_kept", gradients.layer_norm_kept, target, to=operand)
    activate = kernel("activate", gradients.activate, target, kind=kind, to=operand)
    drop = write_drop(target, "float32", "float32")
    narrow = kernel("narrow_rows", rows.narrow, target, to=operand)
    add_rows = kernel("add_rows", gradients.add_rows, target)

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


# ---------------------------------------------------------------- dense layers, backward

STEPS = 256  # of a block: its part of a panel stays in L1 while the task's rows pass by


def write_weight_gradient(dtype: str, target: Target) -> Any:
    """The gradient of a dense layer's weights and bias: what follows the input's, for all threads.

    Two stages: both operands in the order in which tiles read them; the products.
    """
    operand, panel, high = target.operand(dtype), target.panel, target.tile_rows[0]
    size = SIZES[operand]
    packed = "bfloat16" if size == 2 else "float32"
    transpose = kernel("transpose", gradients.transpose, target, kind=packed)
    pack = kernel("pack_tokens", heads.pack_values, target, dtype=packed)
    product = kernel("gradient", gemm.product, target, name="gradient_tile", operand=operand)
    add_columns = kernel("add_columns", gradients.add_columns, target)
    clear = kernel("clear", rows.clear, target)

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
        "activate_backward", gradients.activate_backward, target, kind=kind, to=operand
    )
    layer_norm_backward = kernel(
        "layer_norm_backward", gradients.layer_norm_backward, target, to=operand
    )
    drop = write_drop(target, "float32", operand)
    score_backward = kernel("span_logits_backward", gradients.span_logits_backward, target)

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


# ---------------------------------------------------------------- embeddings, backward


def write_embed_backward(dtype: str, target: Target) -> dict[str, Any]:
    """The gradient of the embedding tables: through the norm by rows, then by columns."""
    panel = target.panel
    layer_norm_backward = kernel(
        "embed_norm_backward", gradients.layer_norm_backward, target, to="float32"
    )
    scatter = kernel("scatter", gradients.scatter, target)
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


# ---------------------------------------------------------------- attention


def write_attention(dtype: str, target: Target) -> dict[str, Any]:
    """Attention, and its gradient: a task is a head of a window."""
    panel, high = target.panel, target.tile_rows[0]
    kind, inner = target.attention(dtype), target.operand(dtype)
    size, inner_size = SIZES[kind], SIZES[inner]
    per, lanes = 4 // size, target.lanes
    drop_numbers = kernel(
        "drop_float32_float32", gradients.drop, target, kind="float32", to="float32"
    )
    drop_probs = kernel(f"drop_{kind}_{kind}", gradients.drop, target, kind=kind, to=kind)

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

    step_attention = write_attention_step(dtype, target, drop_of_queries)
    product = kernel("read", gemm.product, target, name="read_tile", operand=kind, from_zero=True)
    pack_keys = kernel("pack_keys", heads.pack_keys, target, dtype=kind)
    pack_values = kernel("pack_values", heads.pack_values, target, dtype=kind)
    softmax_backward = kernel("softmax_backward", gradients.softmax_backward, target, dtype=kind)
    row_products = kernel("row_products", gradients.row_products, target, kind=kind, other=inner)
    transpose = kernel("transpose_scores", gradients.transpose, target, kind=kind)
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
        row_products(
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
            softmax_backward(
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


# ---------------------------------------------------------------- weights


def write_optimizer(dtype: str, target: Target) -> dict[str, Any]:
    """The optimizer, and weights packed anew for both directions."""
    operand, panel = target.operand(dtype), target.panel
    size = SIZES[operand]
    packed = "bfloat16" if size == 2 else "float32"
    narrow_rows = kernel("narrow_weights", gradients.narrow_rows, target, to=operand)
    pack_keys = kernel("pack_weights", heads.pack_keys, target, dtype=packed)
    pack_values = kernel("pack_tokens", heads.pack_values, target, dtype=packed)
    step = kernel("adamw", gradients.adamw, target)
    squares = kernel("sum_of_squares", gradients.sum_of_squares, target)

    @jit
    def pack(job, slot):
        """Two stages: rows as products read them, with zeros around; both kinds of panels."""
        thread = enter(job, slot)
        next_stage(thread, job.row_task_count)
        while next_task(job, thread):
            block = row_task_at(job.row_tasks, task_number(thread))
            x = rows_of(job.weights, block.begin, block.count)
            to = rows_of(job.narrow, block.begin, block.count)
            narrow_rows(x.address, x.stride, x.count, job.into, to.address, to.stride)
        next_stage(thread, job.forward_count + job.backward_count)
        while next_task(job, thread):
            p = task_number(thread)
            if p < job.forward_count:
                some = rows_of(job.narrow, p * panel, panel)
                to = job.forward + p * job.forward_bytes
                pack_keys(some.address, some.stride, panel, job.into, to)
            else:
                p -= job.forward_count
                x = job.narrow.address + p * panel * size
                to = job.backward + p * job.backward_bytes
                pack_values(x, job.narrow.stride, job.out, panel, to)
        leave(job, thread, slot)

    @jit
    def adamw(job, block, thread):
        at = block.begin * 4
        step(
            job.weights + at, job.gradient + at, job.first + at, job.second + at, block.count,
            job.settings,
        )  # fmt: skip

    @jit
    def sum_of_squares(job, block, thread):
        squares(job.x + block.begin * 4, block.count, job.sums + block.begin // CHUNK * 4)

    return {"pack": pack, "adamw": by_rows(adamw), "sum_of_squares": by_rows(sum_of_squares)}
