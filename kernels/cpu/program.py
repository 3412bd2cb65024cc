"""The program: what the object file of one dtype and target holds, each entry a compiled function.

`forward` is the whole pass (schedule.py).  The others do one step of kernels/reference.py alone,
for tests, traces and teaching, and `multiply` measures the peak.  All threads of a job call the
same entry, each with a slot of its own; slot 0 is the caller's, and returns when all is done.
"""

from __future__ import annotations

from typing import Any

from . import gemm
from .pointers import address_of
from .schedule import attention_task_at, row_task_at, write_forward
from .simd import jit
from .steps import Steps, kernel, rows_of, write_steps
from .targets import Target
from .threads import enter, leave, next_stage, next_task, task_number


def write_program(dtype: str, target: Target) -> dict[str, Any]:
    """Write all entries for one dtype and target; Numba compiles them when asked to.

    Args:
        dtype: 'float32', 'bfloat16' or 'int8', of the matrix products.
        target: what to write it for.

    Returns:
        Functions of a job and a slot, by the names in records.JOBS.
    """
    steps = write_steps(dtype, target)
    ends, products = write_single_ends(steps), write_single_products(steps)
    return {
        "forward": write_forward(steps),
        **{name: by_rows(step) for name, step in (ends | products).items()},
        "attention": write_single_attention(steps),
        "multiply": write_multiply(dtype, target),
    }


def by_rows(step: Any) -> Any:
    """The entry that does a step on every block of rows: step(job, block, thread)."""

    @jit
    def entry(job, slot):
        thread = enter(job, slot)
        next_stage(thread, job.row_task_count)
        while next_task(job, thread):
            step(job, row_task_at(job.row_tasks, task_number(thread)), thread)
        leave(job, thread, slot)

    return entry


def write_single_ends(steps: Steps) -> dict[str, Any]:
    """Embeddings, and logits."""

    @jit
    def embed(job, block, thread):
        ids = block.begin * 4
        steps.embed(
            job.input_ids + ids, job.token_type_ids + ids, job.position_ids + ids, job.tables,
            address_of(job, "eps"), rows_of(job.x, block.begin, block.count), thread,
        )  # fmt: skip

    @jit
    def span_logits(job, block, thread):
        x = rows_of(job.x, block.begin, block.count)
        start, end = job.start_logits + block.begin * 4, job.end_logits + block.begin * 4
        steps.span_logits(x, job.hidden, job.head, start, end)

    return {"embed": embed, "span_logits": span_logits}


def write_single_products(steps: Steps) -> dict[str, Any]:
    """Dense layers: no norm has written what the first two read."""

    @jit
    def linear(job, block, thread):
        x = rows_of(job.x, block.begin, block.count)
        steps.narrow(x, job.dense, thread)
        steps.linear(x, job.dense, rows_of(job.out, block.begin, block.count), thread)

    @jit
    def linear_activation(job, block, thread):
        x = rows_of(job.x, block.begin, block.count)
        out = rows_of(job.out, block.begin, block.count)
        steps.narrow(x, job.dense, thread)
        steps.linear_activation(x, job.dense, job.activation, out, thread)

    @jit
    def linear_add_norm(job, block, thread):
        x = rows_of(job.x, block.begin, block.count)
        residual = rows_of(job.residual, block.begin, block.count)
        out, eps = rows_of(job.out, block.begin, block.count), address_of(job, "eps")
        steps.linear_add_norm(x, job.dense, residual, job.norm, eps, out, thread)

    return {
        "linear": linear,
        "linear_activation": linear_activation,
        "linear_add_norm": linear_add_norm,
    }


def write_single_attention(steps: Steps) -> Any:
    """Attention."""

    @jit
    def attention(job, slot):
        thread = enter(job, slot)
        next_stage(thread, job.attention_task_count)
        while next_task(job, thread):
            queries = attention_task_at(job.attention_tasks, task_number(thread))
            steps.attention(
                job.qkv, queries, job.hidden, job.head_size, job.context, 0, 0, 0, thread
            )
        leave(job, thread, slot)

    return attention


def write_multiply(dtype: str, target: Target) -> Any:
    """Multiplications of numbers in registers, for each row task as many turns as the job says."""
    peak = kernel("peak", gemm.peak, target, operand=target.operand(dtype))

    @jit
    def multiply(job, block, thread):
        peak(job.turns, thread.sums)

    return by_rows(multiply)
