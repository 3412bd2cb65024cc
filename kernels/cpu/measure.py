"""How fast this processor multiplies matrices with these kernels, and how fast it could.

`tools/bench.py cpu` prints the share of the peak that each shape reaches.
"""

from __future__ import annotations

import time

import numpy as np

from minibert.kernels.numbers import round_up
from minibert.parameters import Dense

from . import records
from .functions import Kernels
from .jobs import Shape
from .packing import address, pack_dense
from .targets import SIZES, find_target

SECONDS = 0.05  # that a measurement lasts, at least


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
    kernels = Kernels(dtype, target, num_threads)
    turns = 100_000
    fields = {"repeats": 4 * num_threads, "width": turns}
    if shape is None:
        vectors = turns * 2 * target.tile_rows[0] * num_threads
        work = 2 * vectors * target.lanes * 4 // SIZES[target.operand(dtype)]
        inputs, sizes, tokens = {}, Shape(hidden=1), num_threads * 48
        op = records.PEAK
    else:
        tokens, into, out = shape
        work = 2 * tokens * into * out
        op = records.LINEAR
        random = np.random.default_rng(0)
        weight = random.standard_normal((out, into), np.float32)
        packed = pack_dense(Dense(weight, np.zeros(out, np.float32)), dtype, target)
        record = np.array(packed.record, np.int64)
        inputs = {"x": random.standard_normal((tokens, into), np.float32)}
        sizes = Shape(hidden=out, inner=max(out, into), x=(into, "float32"), out=(out, "float32"))
        fields |= {
            "width": round_up(into, target.panel),
            "dense": address(record),
            "ending": records.PLAIN,
        }

    def run(repeats: int) -> float:
        begin = time.perf_counter()
        kernels._run(op, tokens, sizes, fields | {"repeats": repeats}, inputs=inputs)
        return time.perf_counter() - begin

    run(1)
    repeats = max(2, int(SECONDS / (run(4) / 4)))
    # The difference leaves out what a call costs besides.
    return work * repeats / (run(repeats + 1) - run(1))
