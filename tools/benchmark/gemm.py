"""How near our matrix multiplication comes to what the processor can do.

The peak of a dtype is what its dot product instruction reaches on numbers in registers, on the same
cores, measured in turn with the multiplications, so that both see the same clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np

from benchmark.peers import DTYPES
from benchmark.tables import NOTHING, markdown
from benchmark.workload import Shape

ROUNDS = 5
LENGTHS = (384, 128)  # tokens
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}  # of a number in the inputs; outputs are float32
# What one thread copies, to and fro: in its cache, and far beyond all caches.
COPIED = {"cache": 1 << 18, "memory": 1 << 27}

# As minibert.kernels.cpu.measure.rate.
Rate: TypeAlias = "Callable[[str, int, tuple[int, int, int] | None], float]"


def gemm_shapes(shapes: Iterable[Shape]) -> list[tuple[int, int, int]]:
    """T, in and out of every multiplication in models of these shapes, each once.

    Example:
        >>> gemm_shapes([Shape.parse("1/8/2")])[:3]
        [(384, 8, 24), (384, 8, 8), (384, 8, 32)]
    """
    found = [(t, *matrix) for t in LENGTHS for shape in shapes for matrix in shape.matrices]
    return list(dict.fromkeys(found))


def gemm_rates(
    rate: Rate, threads: int, shapes: Sequence[Shape]
) -> dict[str, list[tuple[tuple[int, int, int] | None, float]]]:
    """Measure the peak and every multiplication, in turn.

    Returns:
        For each dtype that this machine can, pairs of a shape and its operations per second; the
        first pair is the peak, with None as its shape.
    """
    asked: list[tuple[int, int, int] | None] = [None, *gemm_shapes(shapes)]
    seen: dict[str, list[list[float]]] = {dtype: [[] for _ in asked] for dtype in DTYPES}
    for _ in range(ROUNDS):
        for dtype in list(seen):
            try:
                for values, shape in zip(seen[dtype], asked, strict=True):
                    values.append(rate(dtype, threads, shape))
            except ValueError:
                del seen[dtype]
    return {
        dtype: list(zip(asked, map(statistics.median, values), strict=True))
        for dtype, values in seen.items()
    }


def measure_gemm(threads: int, shapes: Sequence[Shape]) -> dict[str, Any]:
    """Measure everything that shares and the roofline need.

    Returns:
        rates: as `gemm_rates` has them; bandwidths: bytes per second of each level.
    """
    from minibert.kernels.cpu.measure import rate

    return {
        "rates": gemm_rates(rate, threads, shapes),
        "bandwidths": {level: bandwidth(size, threads) for level, size in COPIED.items()},
    }


def bandwidth(size: int, threads: int) -> float:
    """Bytes per second, read and written, of threads that copy `size` bytes each; the best try."""
    pairs = [(np.ones(size, np.uint8), np.ones(size, np.uint8)) for _ in range(threads)]
    times = max(1, (1 << 26) // size)

    def copy(pair: tuple[Any, Any]) -> None:
        for _ in range(times):
            np.copyto(*pair)  # lets other threads run

    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(2 * ROUNDS):
            begin = time.perf_counter()
            list(pool.map(copy, pairs))
            seconds.append(time.perf_counter() - begin)
    return 2 * size * times * threads / min(seconds)


def intensity(dtype: str, shape: Sequence[int]) -> float:
    """Operations per byte that has to move at least once.

    Example:
        >>> round(intensity("float32", (384, 384, 1536)), 1)
        85.3
    """
    t, into, out = shape
    moved = BYTES[dtype] * (t * into + into * out) + 4 * t * out
    return 2 * t * into * out / moved


def gemm_shares(measured: dict[str, Any]) -> str:
    """A Markdown table of what `measure_gemm` found: GFLOP/s and share of the peak."""
    rates: dict[str, list[tuple[list[int] | None, float]]] = measured["rates"]
    rows = []
    for i, (shape, _) in enumerate(next(iter(rates.values()))):
        label = "peak, registers only" if shape is None else " x ".join(map(str, shape))
        cells = [label]
        for dtype in DTYPES:
            if dtype not in rates:
                cells += [NOTHING, NOTHING]
                continue
            rate, peak = rates[dtype][i][1], rates[dtype][0][1]
            cells += [f"{rate / 1e9:.0f}", f"{rate / peak:.0%}"]
        rows.append(cells)
    head = ["tokens x in x out"]
    for dtype in DTYPES:
        head += [f"{dtype}, G/s", "of peak"]
    return markdown(head, rows, left=1)
