"""The optimizer, and weights packed anew for both directions.

With the gradient g, scaled: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, and
w = w (1 - rate decay) - rate m' / (sqrt(v') + eps), where m' = m / (1 - b1^step), v' likewise
(Loshchilov and Hutter 2019, arXiv:1711.05101).  It moves 28 bytes a weight, so memory is the limit:
1 % of a step of 12/384/12, packing 0.8 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import attention as heads
from ..program import by_rows
from ..records import CHUNK
from ..schedule import row_task_at
from ..simd import Code, Value, jit
from ..steps import kernel, rows_of
from ..targets import SIZES, Target
from ..threads import enter, leave, next_stage, next_task, task_number
from . import rows

# ---------------------------------------------------------------- kernels


def sum_of_squares(code: Code, x: Value, count: Value, out: Value) -> None:
    """Out = the sum of x^2 over `count` numbers, float32."""
    whole = count & -code.lanes

    def some(k: Value, sums: list[Value]) -> list[Value]:
        number = code.load(x + k * 4)
        return [code.fma(number, number, sums[0])]

    def one(k: Value, sums: list[Value]) -> list[Value]:
        number = code.load_one(x + k * 4)
        return [code.fma(number, number, sums[0])]

    total = code.loop(0, whole, code.lanes, some, [code.vector(0.0)])[0]
    last = code.loop(whole, count, 1, one, [code.reduce(total, Value.__add__)])[0]
    code.store(last, out)


def adamw(
    code: Code,
    weights: Value,
    gradient: Value,
    first: Value,
    second: Value,
    count: Value,
    settings: Value,
) -> None:
    """One step of AdamW on `count` numbers.

    The settings are float32: scale of the gradient, beta1, 1 - beta1, beta2, 1 - beta2, the factor
    of weights (1 - rate * decay), rate / correction of the first moment, one over the root of the
    second's correction, eps.
    """
    scale, beta1, rest1, beta2, rest2, keep, rate, root, eps = (
        code.load_one(settings + 4 * i) for i in range(9)
    )

    def some(k: Value, load: Callable[..., Value]) -> None:
        at = k * 4
        g = load(gradient + at) * scale
        m = code.fma(load(first + at), beta1, g * rest1)
        v = code.fma(load(second + at), beta2, g * g * rest2)
        code.store(m, first + at)
        code.store(v, second + at)
        step = m * rate / code.fma(code.sqrt(v), root, eps)
        code.store(load(weights + at) * keep - step, weights + at)

    code.elements(count, some)


# ---------------------------------------------------------------- entries


def write_optimizer(dtype: str, target: Target) -> dict[str, Any]:
    """The optimizer, and weights packed anew for both directions."""
    operand, panel = target.operand(dtype), target.panel
    size = SIZES[operand]
    packed = "bfloat16" if size == 2 else "float32"
    narrow_rows = kernel("narrow_weights", rows.narrow_rows, target, to=operand)
    pack_keys = kernel("pack_weights", heads.pack_keys, target, dtype=packed)
    pack_values = kernel("pack_tokens", heads.pack_values, target, dtype=packed)
    step = kernel("adamw", adamw, target)
    squares = kernel("sum_of_squares", sum_of_squares, target)

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
    def take_step(job, block, thread):
        at = block.begin * 4
        step(
            job.weights + at, job.gradient + at, job.first + at, job.second + at, block.count,
            job.settings,
        )  # fmt: skip

    @jit
    def sum_chunk(job, block, thread):
        squares(job.x + block.begin * 4, block.count, job.sums + block.begin // CHUNK * 4)

    return {"pack": pack, "adamw": by_rows(take_step), "sum_of_squares": by_rows(sum_chunk)}
