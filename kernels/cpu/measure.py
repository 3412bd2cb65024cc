"""How fast this processor multiplies matrices with these kernels, and how fast it could.

`tools/bench.py cpu` prints the share of the peak that each shape reaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from minibert.parameters import Dense

from .compiler import Program, load_program
from .functions import done
from .jobs import Job, Sizes, row_tasks
from .packing import pack_dense
from .records import ROW_TASK
from .targets import SIZES, find_target

SECONDS = 0.05  # that a measurement lasts, at least
TURNS = 100_000  # of the loop that only multiplies


def rate(dtype: str, num_threads: int, shape: tuple[int, int, int] | None = None) -> float:
    """Operations per second; a multiplication with its addition counts as two.

    Args:
        dtype: of the inputs: 'float32', 'bfloat16' or 'int8'.
        num_threads: how many run.
        shape: T, in and out of y [T, out] = x [T, in] @ w [in, out], with w packed and the bias
            added; None for the peak: the same multiplications on numbers in registers.

    Raises:
        ValueError: this processor has no instruction for products of that dtype.
    """
    target = find_target()
    if getattr(target, dtype, "") in ("rounded", "widened"):
        raise ValueError(f"{target.name} has no products of {dtype}")
    program = load_program(dtype, target)
    if shape is None:
        job_of, work = multiplications(program, num_threads)
    else:
        job_of, work = products(program, num_threads, shape)

    def run(repeats: int) -> float:
        job = job_of(repeats)
        begin = time.perf_counter()
        with done(job):
            return time.perf_counter() - begin

    run(1)
    repeats = max(2, int(SECONDS / (run(4) / 4)))
    # The difference leaves out what a call costs besides.
    return work * repeats / (run(repeats + 1) - run(1))


def multiplications(program: Program, num_threads: int) -> tuple[Callable[[int], Job], int]:
    """Jobs that only multiply, as often as one says; and operations of each time."""
    target = program.target
    vectors = TURNS * 2 * target.tile_rows[0] * num_threads
    work = 2 * vectors * target.lanes * 4 // SIZES[target.operand(program.dtype)]

    def job_of(repeats: int) -> Job:
        rows = np.zeros(repeats * num_threads, ROW_TASK)
        job = Job("multiply", program, num_threads, 0, Sizes(), {}, rows)
        job.record["turns"] = TURNS
        return job

    return job_of, work


def products(
    program: Program, num_threads: int, shape: tuple[int, int, int]
) -> tuple[Callable[[int], Job], int]:
    """Jobs that do one product, as often as one says; and operations of each time.

    Of an input of zeros: how long it takes does not depend on the numbers.
    """
    dtype, target = program.dtype, program.target
    tokens, into, out = shape
    weight = np.random.default_rng(0).standard_normal((out, into), np.float32)
    packed = pack_dense(Dense(weight, np.zeros(out, np.float32)), dtype, target)
    buffers = {"x": (into, "float32"), "out": (out, "float32")}
    rows = row_tasks(tokens, num_threads, target)

    def job_of(repeats: int) -> Job:
        every = np.tile(rows, repeats)
        job = Job("linear", program, num_threads, tokens, Sizes(max(out, into)), buffers, every)
        job.record["dense"] = packed.record
        return job

    return job_of, 2 * tokens * into * out
