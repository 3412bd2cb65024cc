"""The schedule: minibert/encoder.py's `bert` once more, for all threads of the processor at once.

The steps are the same, in the same order and with the same names; a comment says which line of
encoder.py each of them is.  But all that lies between two attentions concerns one row at a time, so
a block of rows goes through all of it (four products, two norms, an activation) while it lies in
the cache, and threads need to meet only twice a layer:

    embeddings; queries, keys and values for the first layer    a task: a block of rows
    for each layer:
        attention                                               a task: some queries of a head
        the rest of the layer; queries, keys and values for     a task: a block of rows
        the next layer, or the logits

Threads take tasks one after another, those of a stage after all of the stage before: threads.py.
"""

from __future__ import annotations

from typing import Any

from .pointers import address_of, at
from .records import ATTENTION_TASK, LAYER, ROW_TASK
from .simd import jit
from .steps import Steps, rows_of
from .threads import enter, leave, next_stage, next_task, task_number

layer_at, row_task_at, attention_task_at = at(LAYER), at(ROW_TASK), at(ATTENTION_TASK)


def write_forward(steps: Steps) -> Any:
    """The entry `forward`: the whole pass.  Its job is described in records.py."""

    @jit
    def forward(job, slot):
        thread = enter(job, slot)
        next_stage(thread, job.row_task_count)
        while next_task(job, thread):
            block = row_task_at(job.row_tasks, task_number(thread))
            embeddings(job, block, thread)
        for i in range(job.layer_count):
            next_stage(thread, job.attention_task_count)
            while next_task(job, thread):
                queries = attention_task_at(job.attention_tasks, task_number(thread))
                # context = kernels.attention(qkv, cu_seqlens, config.num_attention_heads)
                steps.attention(
                    job.qkv, queries, job.hidden, job.head_size, job.context, 0, 0, 0, thread
                )
            next_stage(thread, job.row_task_count)
            while next_task(job, thread):
                block = row_task_at(job.row_tasks, task_number(thread))
                rest_of_layer(job, block, i, thread)
        leave(job, thread, slot)

    @jit
    def embeddings(job, block, thread):
        """What comes before the first attention, for some rows."""
        x = rows_of(job.x, block.begin, block.count)
        ids, projects = block.begin * 4, job.projection.panels > 0
        y = rows_of(thread.y, 0, block.count) if projects else x
        # x = kernels.embed(input_ids, token_type_ids, position_ids, weights.tables, eps)
        steps.embed(
            job.input_ids + ids, job.token_type_ids + ids, job.position_ids + ids,
            job.tables, address_of(job, "eps"), y, thread,
        )  # fmt: skip
        if projects:
            # x = kernels.linear(x, weights.projection)
            steps.linear(y, job.projection, x, thread)
            steps.narrow(x, layer_at(job.layers, 0).qkv, thread)
        what_follows(job, block, 0, x, thread)

    @jit
    def rest_of_layer(job, block, i, thread):
        """What comes after attention in layer i, for some rows."""
        layer, eps = layer_at(job.layers, i), address_of(job, "eps")
        x = rows_of(job.x, block.begin, block.count)
        context = rows_of(job.context, block.begin, block.count)
        y, inner = rows_of(thread.y, 0, block.count), rows_of(thread.inner, 0, block.count)
        # x = kernels.linear_add_norm(context, layer.attention_output, x, layer.attention_norm, eps)
        steps.linear_add_norm(
            context, layer.attention_output, x, layer.attention_norm, eps, y, thread
        )
        # inner = kernels.linear_activation(x, layer.intermediate, config.activation)
        steps.linear_activation(y, layer.intermediate, job.activation, inner, thread)
        # return kernels.linear_add_norm(inner, layer.output, x, layer.output_norm, eps)
        steps.linear_add_norm(inner, layer.output, y, layer.output_norm, eps, x, thread)
        what_follows(job, block, i + 1, x, thread)

    @jit
    def what_follows(job, block, i, x, thread):
        """The beginning of layer i, or the logits if there is no such layer, for some rows."""
        if i < job.layer_count:
            # qkv = kernels.linear(x, layer.qkv)
            qkv = rows_of(job.qkv, block.begin, block.count)
            steps.linear_qkv(x, layer_at(job.layers, i).qkv, qkv, thread)
        else:
            # return kernels.span_logits(x, weights.qa_outputs)
            start, end = job.start_logits + block.begin * 4, job.end_logits + block.begin * 4
            steps.span_logits(x, job.hidden, job.head, start, end)

    return forward
