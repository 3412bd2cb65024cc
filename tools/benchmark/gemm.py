"""How near our matrix multiplication comes to what the processor or the GPU can do.

The peak of a dtype is what a processor's dot product instruction reaches on numbers in registers,
and on a GPU what torch's cuBLAS reaches with large square matrices; it is measured in turn with the
multiplications, so that both see the same clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np

from benchmark.results import Results
from benchmark.tables import NOTHING, markdown
from benchmark.workload import Shape

ROUNDS = 5
LENGTHS = (384, 128)  # tokens, on a processor
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}  # of a number in the inputs; outputs are float32
# What one thread copies, to and fro: in its cache, and far beyond all caches.
COPIED = {"cache": 1 << 18, "memory": 1 << 27}
SIDE, PRODUCTS = 8192, 10  # of torch's matrices, and how many are multiplied in a row

Size: TypeAlias = "tuple[int, int, int] | None"  # T, in, out; None for the peak
# Of each dtype, the peak first; None for what could not be measured.
Rates: TypeAlias = "dict[str, list[tuple[Size, float | None]]]"

# ---------------------------------------------------------------- in a process of its own


def answer_gemm(device: str, threads: int) -> Callable[[Mapping[str, Any]], dict[str, float]]:
    """What answers messages about multiplications.

    They have a `do`: "rate", of a `dtype` and `shape`, in operations per second; or "bandwidth" of
    `size` bytes, per second.

    Args:
        device: 'cpu'; 'cuda'; or 'torch', which knows a GPU's peak.
        threads: of a processor.
    """

    def answer(message: Mapping[str, Any]) -> dict[str, float]:
        if message["do"] == "bandwidth":
            return {"rate": bandwidth(message["size"], threads)}
        dtype, shape = message["dtype"], message["shape"]
        if device == "torch":
            return {"rate": torch_peak(dtype)}
        if device == "cuda":
            from minibert.kernels.cuda import measure as gpu

            return {"rate": gpu.rate(dtype, tuple(shape))}
        from minibert.kernels.cpu.measure import rate

        return {"rate": rate(dtype, threads, shape and tuple(shape))}

    return answer


def torch_peak(dtype: str) -> float:
    """Operations per second of torch's product of large matrices."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    x, y = torch.randn(2, SIDE, SIDE, device="cuda", dtype=getattr(torch, dtype))
    torch.matmul(x, y)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(PRODUCTS):
        torch.matmul(x, y)
    last.record()
    last.synchronize()
    return 2 * SIDE**3 * PRODUCTS / (first.elapsed_time(last) / 1000)


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


# ---------------------------------------------------------------- sums and tables


def gemm_shapes(
    shapes: Sequence[Shape], lengths: Sequence[int] = LENGTHS
) -> list[tuple[int, int, int]]:
    """T, in and out of every multiplication in models of these shapes, each once.

    Example:
        >>> gemm_shapes([Shape.parse("1/8/2")])[:3]
        [(384, 8, 24), (384, 8, 8), (384, 8, 32)]
    """
    found = [(t, *matrix) for t in lengths for shape in shapes for matrix in shape.matrices]
    return list(dict.fromkeys(found))


def gemm_rates(
    rate: Callable[[str, Size], float],
    dtypes: Iterable[str],
    shapes: Sequence[tuple[int, int, int]],
    results: Results,
) -> Rates:
    """Measure the peak and every multiplication, in turn.

    Args:
        rate: operations per second of a dtype and a size.
        dtypes: precisions.
        shapes: as `gemm_shapes` gives them.
        results: where to note what cannot be measured.

    Returns:
        Medians, for each dtype that this machine can.
    """
    asked: list[Size] = [None, *shapes]
    seen: dict[tuple[str, Size], list[float]] = {}
    going = [(dtype, size) for dtype in dtypes for size in asked]
    for _ in range(ROUNDS):
        for case in list(going):
            going.remove(case)
            with results.going_on():
                seen.setdefault(case, []).append(rate(*case))
                going.append(case)
    found: Rates = {
        dtype: [(s, statistics.median(seen[dtype, s]) if seen[dtype, s] else None) for s in asked]
        for dtype in dtypes
    }
    return {dtype: pairs for dtype, pairs in found.items() if any(rate for _, rate in pairs)}


def intensity(dtype: str, shape: Sequence[int]) -> float:
    """Operations per byte that has to move at least once.

    Example:
        >>> round(intensity("float32", (384, 384, 1536)), 1)
        85.3
    """
    t, into, out = shape
    moved = BYTES[dtype] * (t * into + into * out) + 4 * t * out
    return 2 * t * into * out / moved


def gemm_table(
    rates: Rates,
    dtypes: Sequence[str],
    unit: tuple[str, float] = ("G/s", 1e9),
    peak: str = "peak, registers only",
) -> str:
    """A Markdown table: operations per second, and their share of the peak of the same dtype.

    Args:
        rates: what `gemm_rates` found.
        dtypes: the columns.
        unit: of operations per second, and how many it is.
        peak: what the peak is, in words.
    """
    by_dtype = {dtype: dict(rates.get(dtype, ())) for dtype in dtypes}
    rows = []
    for size in dict.fromkeys(size for pairs in rates.values() for size, _ in pairs):
        row = [peak if size is None else " x ".join(map(str, size))]
        for found in by_dtype.values():
            rate, most = found.get(size), found.get(None)
            row.append(f"{rate / unit[1]:.0f}" if rate else NOTHING)
            row.append(f"{rate / most:.0%}" if rate and most else NOTHING)
        rows.append(row)
    head = [cell for dtype in dtypes for cell in (f"{dtype}, {unit[0]}", "of peak")]
    return markdown(["tokens x in x out", *head], rows, left=1)
