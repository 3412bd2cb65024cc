"""What `bench.py cuda` does before it measures: models are written, and everything is compiled.

Our kernels and torch's models are compiled in many processes at once, so that it takes as long as
the slowest and not as all together.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from benchmark.cuda_kernels import PRODUCTS, tiles_of
from benchmark.cuda_processes import RESTARTS, Bench, Side, request
from benchmark.cuda_results import COMPILED, KERNELS, MODELS, ONE, Series
from benchmark.cuda_sums import config_of, shape_of
from benchmark.machine import count_cores
from benchmark.processes import BenchError, say
from benchmark.workload import Shape, write_model

if TYPE_CHECKING:
    from minibert.kernels.cuda.recipes import Recipe

COMPILED_DTYPES = ("float32", "float16")
BUILD_SECONDS = 60  # of one of our kernels
BUILDERS = 8  # processes that compile our kernels

# ---------------------------------------------------------------- which kernels


def recipes_of_models(shapes: Sequence[Shape], dtypes: Sequence[str]) -> list[Recipe]:
    """Every kernel that models of these shapes may launch, each once."""
    from minibert.kernels.cuda.functions import recipes_of

    found = [recipe for s in shapes for d in dtypes for recipe in recipes_of(config_of(s), d)]
    return list(dict.fromkeys(found))


def recipes_of_tables(dtypes: Sequence[str]) -> list[Recipe]:
    """Every kernel that the tables of single kernels launch: the base model's, and all tiles."""
    from minibert.kernels.cuda.launcher import gemm_recipe

    ends = dict.fromkeys(product[2:] for product in PRODUCTS)
    tiles = [gemm_recipe(d, *end, tile) for d in dtypes for tile in tiles_of(d) for end in ends]
    return list(dict.fromkeys([*tiles, *recipes_of_models([shape_of("base")], dtypes)]))


# ---------------------------------------------------------------- compiling


def prepare(bench: Bench, gpu: Any) -> None:
    """Write the models; compile our kernels and torch's models, as many at once as there are cores.

    Args:
        bench: the run.
        gpu: driver.Gpu.
    """
    args = bench.args
    shapes = [shape_of(shape) for shape in args.shapes] if MODELS in args.work else []
    recipes = recipes_of_models(shapes, args.dtypes)
    if KERNELS in args.work:
        recipes = list(dict.fromkeys([*recipes_of_tables(args.dtypes), *recipes]))
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for recipe in recipes:
        waiting.put(recipe)
    builders = min(BUILDERS, count_cores(), max(1, len(recipes)))
    wanted = []
    if MODELS in args.work and bench.torch and not args.no_compile:
        dtypes = [dtype for dtype in COMPILED_DTYPES if dtype in args.dtypes]
        wanted = [(shape, dtype) for shape in args.shapes for dtype in dtypes]
    begin = time.monotonic()
    futures = []
    with ThreadPoolExecutor(builders) as pool, ThreadPoolExecutor(count_cores()) as torch_pool:
        for number in range(builders):
            side = bench.open("build", f"compiler {number + 1}")
            futures.append(pool.submit(build_kernels, bench, side, waiting, gpu.capability))
        for shape in args.shapes if MODELS in args.work else ():
            write_model(bench.model(shape), shape_of(shape))
            for case in wanted:
                if case[0] == shape:
                    futures.append(torch_pool.submit(compile_model, bench, *case))
    for future in futures:
        future.result()  # raises what was unexpected
    for case, reason in bench.failed.items():
        bench.found.note(f"torch.compile of {' in '.join(case)}: {reason}")
    say(
        f"{len(recipes)} kernels, {len(bench.compiled)} of torch's models compiled in "
        f"{time.monotonic() - begin:.0f} s"
    )


def build_kernels(
    bench: Bench, side: Side, waiting: queue.SimpleQueue[Any], capability: tuple[int, int]
) -> None:
    """Have one process compile kernels until none is left."""
    while True:
        try:
            recipe = waiting.get_nowait()
        except queue.Empty:
            break
        message = [recipe.module, recipe.factory, recipe.options]
        try:
            side.get(BUILD_SECONDS, do="build", recipe=message, capability=capability)
        except BenchError as error:
            bench.found.note(f"kernel {recipe}: {error}")
    side.stop()


def compile_model(bench: Bench, shape: str, dtype: str) -> None:
    """Have a process of its own compile a model, and keep it."""
    side = bench.open("torch", f"torch.compile {shape} {dtype}")
    side.starts = RESTARTS  # it is not tried again
    begin = time.monotonic()
    try:
        side.get(bench.args.compile_seconds, do="load", folder=str(bench.model(shape)))
        side.get(
            bench.args.compile_seconds,
            **request(Series(shape, ONE, COMPILED, dtype), "check"),
            save=str(bench.model(shape) / f"{COMPILED}-{dtype}.npy"),
        )
    except BenchError as error:
        bench.failed[shape, dtype] = str(error)
        side.stop()
    else:
        say(f"torch.compile {shape} {dtype}: {time.monotonic() - begin:.0f} s")
        bench.compiled[shape, dtype] = side
