"""A learner's attention kernel beside NumPy and beside ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minibert.kernels.backend import REFERENCE, get_backend
from minibert.lessons.models import Random
from minibert.lessons.outcomes import compare_arrays
from minibert.lessons.reading import Unusable

TOKENS, HEADS, WIDTH = 384, 12, 384  # a whole window of the embedded model
ENOUGH = 0.5  # seconds for which each is repeated


def race(names: Mapping[str, Any], function: Callable[..., Any]) -> str:
    """Time a learner's kernel.

    Args:
        names: of the learner's file.
        function: the kernel.

    Returns:
        One line.

    Raises:
        Unusable: Numba compiled nothing of it, or it is wrong at this size.
    """
    if not any(hasattr(value, "py_func") for value in names.values()):
        raise Unusable("wrong", "nothing in it is compiled: put @numba.njit above the function")
    qkv = Random(1, np.float32).normal(TOKENS, 3 * WIDTH)
    borders = np.array([0, TOKENS], np.int32)
    right = REFERENCE.attention(qkv, borders, HEADS)
    if found := compare_arrays(function(qkv, borders, HEADS), right, "the result"):
        raise Unusable("wrong", f"{TOKENS} tokens: {found.text}")
    ours = get_backend("cpu", num_threads=1).attention
    times = [milliseconds(f, qkv, borders) for f in (REFERENCE.attention, function, ours)]
    numpy, yours, best = (f"{each:.3g} ms" for each in times)
    return (
        f"{TOKENS} tokens, {HEADS} heads, one thread: NumPy {numpy}, yours {yours}, ours {best}. "
        "What ours does beyond loops: kernels/cpu/attention.py"
    )


def compile_ours() -> None:
    """See to it that our kernel is compiled, which may take longer than a learner's code may."""
    qkv = np.zeros((2, 3 * 32), np.float32)
    get_backend("cpu", num_threads=1).attention(qkv, np.array([0, 2], np.int32), 1)


def milliseconds(function: Callable[..., Any], *arguments: Any) -> float:
    """The shortest of several calls."""
    begin, best = time.perf_counter(), float("inf")
    while time.perf_counter() - begin < ENOUGH:
        start = time.perf_counter()
        function(*arguments, HEADS)
        best = min(best, time.perf_counter() - start)
    return 1000 * best
