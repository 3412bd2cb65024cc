"""The program: a whole forward pass as one compiled function, which every thread runs at once.

The pass is a row of tasks, in stages; a task of one stage needs all tasks of the stages before it:

    embed rows and multiply to queries, keys, values     a task: some rows of the packed batch
    for each layer:
        attention                                        a task: a head of a window, some queries
        all the rest of the layer, and the next layer's  a task: some rows
        queries, keys and values, or the logits

Everything between two attentions concerns one row at a time, so a block of rows goes through all
of it (four matrix products, two norms, GELU) while it lies in the cache, and threads need to meet
only twice a layer.  A thread takes the next task's number from a counter, waits until the stages
before are done, does it, and counts it as done.  A thread that comes late, or is held up by
something else on its core, just does fewer tasks; the others wait at most for the one in its hands.

`job` is the address of a record (records.py); jobs.py lays out the buffers that it names.
No task allocates, and no number depends on which thread does it, nor on what else is in the batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from numba import njit

from . import attention, gemm, rows
from .activations import ACTIVATIONS
from .packing import UNROLL
from .records import (
    ATTENTION,
    ATTENTION_OUTPUT,
    DONE,
    FIRST_ACTIVATION,
    FORWARD,
    INTERMEDIATE,
    LAYER_SIZE,
    LINEAR,
    OUTPUT,
    PEAK,
    PLAIN,
    QKV,
    QKV_LAYER,
    RESIDUAL,
    SPAN,
    TICKET,
)
from .simd import function
from .targets import SIZES, Target
from .threads import count_up, field, read, wait_for


def build(dtype: str, target: Target) -> Any:
    """Write the program for one dtype and target; Numba compiles it when asked to.

    Args:
        dtype: 'float32', 'bfloat16' or 'int8', of the matrix products.
        target: what to write it for.

    Returns:
        run(job, slot): takes tasks of a job until none is left.  Slot 0 is the caller's and
        returns when all are done; every other thread has a slot of its own.
    """
    jit = partial(
        njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, nogil=True
    )

    def kernel(name: str, body: Any, **constants: Any) -> Any:
        return function(name, partial(body, **constants), target)

    panel = target.panel
    ahead_bytes = 64 * gemm.LINES // UNROLL
    operand_kind, inner = target.operand(dtype), target.inner(dtype)
    reading = target.attention(dtype)  # of queries, keys and values
    is_int8, is_bfloat16 = dtype == "int8", dtype == "bfloat16"
    inner_size, reading_size = SIZES[inner], SIZES[reading]
    high, middle, low = target.tile_rows

    block = gemm.BLOCK
    tile_high, tile_middle, tile_low = gemm.tiles("tile", operand_kind, target, gemm.LINES)
    read_high, read_middle, read_low = gemm.tiles("read", reading, target)
    end_plain = kernel("end_plain", rows.panel_end, dtype=dtype, to="float32")
    end_qkv = kernel("end_qkv", rows.panel_end, dtype=dtype, to=reading)
    end_residual = kernel("end_residual", rows.panel_end, dtype=dtype, to="float32", add=True)
    end_gelu, end_gelu_tanh, end_relu, end_silu = (
        kernel(f"end_{name}", rows.panel_end, dtype=dtype, to=inner, activation=activation)
        for name, activation in ACTIVATIONS.items()
    )
    multiply = kernel("multiply", gemm.peak, operand=operand_kind)
    layer_norm = kernel("layer_norm", rows.layer_norm, to=inner)
    quantise = kernel("quantise", rows.quantise, to=operand_kind)
    narrow = kernel("narrow", rows.narrow, to=inner)
    clear = kernel("clear", rows.clear)
    clear_columns = kernel("clear_columns", rows.clear_columns)
    add_float32 = kernel("add_float32", rows.add_table_row, int8=False)
    add_int8 = kernel("add_int8", rows.add_table_row, int8=True)
    score_spans = kernel("span_logits", rows.span_logits)
    pack_keys = kernel("pack_keys", attention.pack_keys, dtype=reading)
    pack_values = kernel("pack_values", attention.pack_values, dtype=reading)
    softmax = kernel("softmax", attention.softmax, dtype=reading)
    store_context = kernel("store_context", attention.store_context, to=inner)

    @jit()
    def dense(x, x_stride, count, layer, sums, quantised, ending, add, add_stride, out, out_stride):
        """out[count rows] = what `ending` says, of x @ weights."""
        panels, start, columns = (
            field(layer, "panels"),
            field(layer, "start"),
            field(layer, "columns"),
        )
        steps = field(layer, "steps")
        size = 4
        if ending == QKV:
            size = reading_size
        elif ending >= FIRST_ACTIVATION:
            size = inner_size
        for p in range(field(layer, "count")):
            # A block of steps at a time, whose weights stay in L1 while all rows pass by.
            start_at, start_stride, done = start + p * panel * 4, 0, 0
            while done < steps:
                some = min(block, steps - done)
                w = panels + (p * steps + done) * panel * 4
                ahead = w + some * panel * 4
                i = 0
                while i < count:
                    row, to = x + i * x_stride + done * 4, sums + i * panel * 4
                    first = start_at + i * start_stride
                    left = count - i
                    # The lowest tile has too few sums to keep the multipliers busy: 8 rows are
                    # better done as 4 and 4 than as 6 and 2.
                    if left > middle and not high < left <= high + low:
                        tile_high(row, x_stride, w, to, panel * 4, some, first, start_stride, ahead)
                        i += high
                    elif left > low:
                        tile_middle(
                            row, x_stride, w, to, panel * 4, some, first, start_stride, ahead
                        )
                        i += middle
                    else:
                        tile_low(row, x_stride, w, to, panel * 4, some, first, start_stride, ahead)
                        i += low
                    ahead += some * ahead_bytes
                start_at, start_stride = sums, panel * 4
                done += some
            column, beside, to = (
                columns + p * panel * 12,
                add + p * panel * 4,
                out + p * panel * size,
            )
            if ending == PLAIN:
                end_plain(sums, count, quantised, column, beside, add_stride, to, out_stride)
            elif ending == QKV:
                end_qkv(sums, count, quantised, column, beside, add_stride, to, out_stride)
            elif ending == RESIDUAL:
                end_residual(sums, count, quantised, column, beside, add_stride, to, out_stride)
            elif ending == FIRST_ACTIVATION:
                end_gelu(sums, count, quantised, column, beside, add_stride, to, out_stride)
            elif ending == FIRST_ACTIVATION + 1:
                end_gelu_tanh(sums, count, quantised, column, beside, add_stride, to, out_stride)
            elif ending == FIRST_ACTIVATION + 2:
                end_relu(sums, count, quantised, column, beside, add_stride, to, out_stride)
            else:
                end_silu(sums, count, quantised, column, beside, add_stride, to, out_stride)

    @jit()
    def padded(width):
        """Columns of a row that is as wide as whole panels."""
        return (width + panel - 1) // panel * panel

    @jit()
    def embed_rows(job, begin, count, scratch, x, x_stride):
        """Embeddings of some tokens, normalised; in bfloat16 also into the operand."""
        hidden = field(job, "hidden")
        clear(x, x_stride, count, padded(hidden))
        for table, scales, ids in (
            (field(job, "words"), field(job, "words_scales"), field(job, "input_ids")),
            (field(job, "types"), field(job, "types_scales"), field(job, "token_type_ids")),
            (field(job, "positions"), field(job, "positions_scales"), field(job, "position_ids")),
        ):
            if scales:
                add_int8(table, scales, ids, begin, count, hidden, x, x_stride)
            else:
                add_float32(table, scales, ids, begin, count, hidden, x, x_stride)
        layer_norm(
            x, x_stride, count, hidden, field(job, "norm"), field(job, "eps"),
            scratch + field(job, "operand"), field(job, "operand_stride"),
        )  # fmt: skip

    @jit()
    def normed_operand(job, x, x_stride, count, scratch):
        """Where the next product reads rows that were just normalised: address and stride."""
        operand, stride = scratch + field(job, "operand"), field(job, "operand_stride")
        if is_int8:
            width = padded(field(job, "hidden"))
            quantise(x, x_stride, count, width, operand, stride, scratch + field(job, "quantised"))
        if is_int8 or is_bfloat16:
            return operand, stride
        return x, x_stride

    @jit()
    def query_key_value(job, layer, begin, count, scratch, x, x_stride):
        """Queries, keys and values of some rows."""
        operand, stride = normed_operand(job, x, x_stride, count, scratch)
        qkv_stride = field(job, "qkv_stride")
        dense(
            operand, stride, count, layer + QKV_LAYER,
            scratch + field(job, "sums"), scratch + field(job, "quantised"),
            QKV, 0, 0, field(job, "qkv") + begin * qkv_stride, qkv_stride,
        )  # fmt: skip

    @jit()
    def layer_rows(job, layer, begin, count, scratch, x, x_stride):
        """All of an encoder layer that follows attention, for some rows; x changes in place."""
        hidden, eps = field(job, "hidden"), field(job, "eps")
        sums, quantised = scratch + field(job, "sums"), scratch + field(job, "quantised")
        y, y_stride = scratch + field(job, "y"), field(job, "y_stride")
        operand, operand_stride = scratch + field(job, "operand"), field(job, "operand_stride")

        stride = field(job, "context_stride")
        context = field(job, "context") + begin * stride
        if is_int8:
            quantise(context, stride, count, padded(hidden), operand, operand_stride, quantised)
            context, stride = operand, operand_stride
        dense(
            context, stride, count, layer + ATTENTION_OUTPUT, sums, quantised,
            RESIDUAL, x, x_stride, y, y_stride,
        )  # fmt: skip
        layer_norm(
            y, y_stride, count, hidden, field(layer, "attention_norm"), eps, operand, operand_stride
        )

        a, stride = normed_operand(job, y, y_stride, count, scratch)
        inner, inner_stride = scratch + field(job, "inner"), field(job, "inner_stride")
        dense(
            a, stride, count, layer + INTERMEDIATE, sums, quantised,
            FIRST_ACTIVATION + field(job, "activation"), 0, 0, inner, inner_stride,
        )  # fmt: skip
        if is_int8:
            width = field(layer + INTERMEDIATE, "count") * panel
            bytes_ = scratch + field(job, "inner_operand")
            bytes_stride = field(job, "inner_operand_stride")
            quantise(inner, inner_stride, count, width, bytes_, bytes_stride, quantised)
            inner, inner_stride = bytes_, bytes_stride
        dense(
            inner, inner_stride, count, layer + OUTPUT, sums, quantised,
            RESIDUAL, y, y_stride, x, x_stride,
        )  # fmt: skip
        layer_norm(
            x, x_stride, count, hidden, field(layer, "output_norm"), eps, operand, operand_stride
        )

    @jit()
    def attend(job, begin, length, head, query, last, scratch):
        """What the queries [query, last) of one head read from their window."""
        size, stride = field(job, "head_size"), field(job, "qkv_stride")
        keys, values = scratch + field(job, "keys"), scratch + field(job, "values")
        scores, probs = scratch + field(job, "scores"), scratch + field(job, "probs")
        sums, inverses = scratch + field(job, "sums"), scratch + field(job, "inverses")
        zeros = field(job, "zeros")
        part = field(job, "hidden") * reading_size
        q = field(job, "qkv") + begin * stride + head * size * reading_size
        pack_keys(q + part, stride, length, size, keys)
        pack_values(q + 2 * part, stride, length, size, values)
        per = 4 // reading_size
        lanes = panel // 2
        deep = (size + per * lanes - 1) // (per * lanes) * lanes  # steps of a packed key
        steps = (size + per * 4 - 1) // (per * 4) * 4  # those that are not all zero
        tokens = padded(length)
        context_stride = field(job, "context_stride")
        while query < last:
            count = min(high, last - query)
            row = q + query * stride
            for p in range(tokens // panel):
                w, to = keys + p * deep * panel * 4, scores + p * panel * 4
                if count > middle:
                    read_high(row, stride, w, to, tokens * 4, steps, zeros, 0, 0)
                elif count > low:
                    read_middle(row, stride, w, to, tokens * 4, steps, zeros, 0, 0)
                else:
                    read_low(row, stride, w, to, tokens * 4, steps, zeros, 0, 0)
            softmax(scores, count, length, size, probs, inverses)
            d = 0
            while d < size:
                w, step = values + d * tokens * reading_size, tokens * reading_size
                if count > middle:
                    read_high(probs, step, w, sums, panel * 4, tokens // per, zeros, 0, 0)
                elif count > low:
                    read_middle(probs, step, w, sums, panel * 4, tokens // per, zeros, 0, 0)
                else:
                    read_low(probs, step, w, sums, panel * 4, tokens // per, zeros, 0, 0)
                to = field(job, "context") + (begin + query) * context_stride
                to += (head * size + d) * inner_size
                store_context(sums, count, inverses, min(panel, size - d), to, context_stride)
                d += panel
            query += high

    @jit()
    def linear_rows(job, begin, count, scratch, x, x_stride):
        """One dense layer alone: narrow the input, multiply, and end as the job says."""
        width, hidden = field(job, "width"), field(job, "hidden")
        quantised, ending = scratch + field(job, "quantised"), field(job, "ending")
        operand, stride = scratch + field(job, "inner_operand"), field(job, "inner_operand_stride")
        if is_int8:
            quantise(x, x_stride, count, width, operand, stride, quantised)
        elif is_bfloat16:
            narrow(x, x_stride, count, width, operand, stride)
        else:
            operand, stride = x, x_stride
        residual_stride, out_stride = field(job, "context_stride"), field(job, "out_stride")
        residual = field(job, "context") + begin * residual_stride
        out = field(job, "out") + begin * out_stride
        dense(
            operand, stride, count, field(job, "dense"), scratch + field(job, "sums"), quantised,
            ending, residual, residual_stride, out, out_stride,
        )  # fmt: skip
        if ending == RESIDUAL:
            layer_norm(
                out, out_stride, count, hidden, field(job, "norm"), field(job, "eps"),
                scratch + field(job, "operand"), field(job, "operand_stride"),
            )  # fmt: skip

    @jit()
    def logits_of_rows(job, begin, count, x, x_stride):
        """Start and end logits of some rows."""
        start, end = field(job, "start_logits") + begin * 4, field(job, "end_logits") + begin * 4
        width = padded(field(job, "hidden"))
        score_spans(x, x_stride, count, width, field(job, "head"), start, end)

    @jit()
    def run(job, slot):
        """Take tasks of a job until none is left."""
        op, layers = field(job, "op"), field(job, "layers")
        row_tasks, attention_tasks = field(job, "row_tasks"), field(job, "attention_tasks")
        scratch = field(job, "scratch") + slot * field(job, "scratch_size")
        x_stride, records = field(job, "x_stride"), field(job, "layer_records")
        total = row_tasks
        if op == FORWARD:
            total += layers * (attention_tasks + row_tasks)
        elif op == ATTENTION:
            total = attention_tasks
        elif op in (LINEAR, PEAK):
            total *= field(job, "repeats")
        yield_function = field(job, "yield_function")
        while True:
            ticket = count_up(job + 8 * TICKET)
            if ticket >= total:
                break
            if op == PEAK:
                multiply(field(job, "width"), scratch)
                count_up(job + 8 * DONE)
                continue
            task, layer, before = ticket, -1, 0  # layer -1: the embeddings
            if op == LINEAR:
                task = ticket % row_tasks
            if op == FORWARD and ticket >= row_tasks:
                stage = attention_tasks + row_tasks
                layer = (ticket - row_tasks) // stage
                before = row_tasks + layer * stage
                task = ticket - before
            if op == ATTENTION or (layer >= 0 and task < attention_tasks):
                wait_for(job + 8 * DONE, before, yield_function)
                place = field(job, "attention_places") + task * 40
                attend(
                    job, read(place), read(place + 8), read(place + 16), read(place + 24),
                    read(place + 32), scratch,
                )  # fmt: skip
            else:
                if layer >= 0:
                    before += attention_tasks
                    task -= attention_tasks
                wait_for(job + 8 * DONE, before, yield_function)
                place = field(job, "row_starts") + task * 8
                begin = read(place)
                count = read(place + 8) - begin
                x = field(job, "x") + begin * x_stride
                if op == LINEAR:
                    linear_rows(job, begin, count, scratch, x, x_stride)
                elif op == SPAN:
                    logits_of_rows(job, begin, count, x, x_stride)
                else:
                    if layer < 0:
                        embed_rows(job, begin, count, scratch, x, x_stride)
                        if op == FORWARD:  # columns that attention never writes, but products read
                            stride, hidden = field(job, "context_stride"), field(job, "hidden")
                            clear_columns(
                                field(job, "context") + begin * stride, stride, count,
                                hidden * inner_size, padded(hidden) * inner_size,
                            )  # fmt: skip
                    else:
                        record = records + layer * 8 * LAYER_SIZE
                        layer_rows(job, record, begin, count, scratch, x, x_stride)
                    if op == FORWARD:
                        if layer + 1 < layers:
                            record = records + (layer + 1) * 8 * LAYER_SIZE
                            query_key_value(job, record, begin, count, scratch, x, x_stride)
                        else:
                            logits_of_rows(job, begin, count, x, x_stride)
            count_up(job + 8 * DONE)
        if slot == 0:
            wait_for(job + 8 * DONE, total, yield_function)

    return run
