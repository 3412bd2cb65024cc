"""`bench.py cuda`: minibert on an NVIDIA GPU beside torch, whole models and single kernels.

minibert, torch, each model that torch compiles, and minibert's single kernels are processes of
their own, of which one works at a time.  One that fails, hangs or spoils the GPU's context costs
its cells; it is started anew, a few times.  Everything is compiled first, on all cores.  Then come
the short parts (ceilings, single kernels, starts), then the models one by one, each printed when it
is measured.  After `--seconds` what is left is left out, and the goals are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmark.cpu import model_folder
from benchmark.cuda_compile import prepare
from benchmark.cuda_kernels import (
    HEADS,
    PRODUCTS,
    ROWS,
    SPLITS,
    TABLE_ROWS,
    TOKENS,
    WIDTH,
    WINDOWS,
    tile_name,
    tiles_of,
)
from benchmark.cuda_models import measure_models, measure_starts
from benchmark.cuda_processes import Bench, Clock, failing
from benchmark.cuda_results import (
    ATTENTION_HEAD,
    CEILING_HEAD,
    DTYPES,
    GOAL_HEAD,
    KERNEL_LIMITS,
    KERNELS,
    MODELS,
    OURS,
    ROWS_HEAD,
    START,
    Found,
    Timed,
    attention_rows,
    ceiling_rows,
    gemm_table,
    goal_rows,
    row_rows,
)
from benchmark.cuda_sums import (
    NAMES,
    attention_operations,
    product_operations,
    row_bytes,
    shape_of,
    window_split,
)
from benchmark.machine import header, versions
from benchmark.options import listed, one_of, positive
from benchmark.peers import missing_modules
from benchmark.processes import BenchError, say
from benchmark.tables import NOTHING, markdown

PACKAGES = ("minibert", "numpy", "numba", "numba-cuda", "torch", "triton", "transformers")
FULL = {
    "shapes": list(NAMES),
    "dtypes": list(DTYPES),
    "work": [KERNELS, START, MODELS],
    "rounds": 5,
    "windows": 1024,
}
QUICK = {
    "shapes": ["tiny", "minilm"],
    "dtypes": ["float32", "float16"],
    "work": [KERNELS, START, MODELS],
    "rounds": 2,
    "windows": 128,
}
SECONDS = 420  # after which the rest is left out; all of it should take about 300
GRACE = 60  # more, after which the command ends whatever happens
COMPILE_SECONDS = 120  # of one model, for torch.compile; many are compiled at once
COPIED = 1 << 28  # float32 numbers of the copy
SIDE = 8192  # of the square matrices
TIMES = 10  # calls of torch in one measurement of a kernel

# ---------------------------------------------------------------- ceilings and single kernels


def measure_ceilings(bench: Bench) -> None:
    """A large copy and large products, through torch."""
    wanted = [("copy", "copy", "float32", [COPIED], 8 * COPIED)]
    sides = [SIDE] * 3
    for dtype in bench.args.dtypes:
        wanted.append((dtype, "product", dtype, sides, product_operations(*sides)))
    for name, kind, dtype, sizes, amount in wanted if bench.torch else ():
        message = {"kind": kind, "dtype": dtype, "sizes": sizes, "sets": 2}
        try:
            for _ in range(bench.args.rounds):
                answer = bench.side("torch").get(do="single", kernel=message, times=TIMES)
                bench.found.ceilings.setdefault(name, []).append(amount / answer["seconds"])
        except BenchError as error:
            bench.found.note(f"ceiling {name}: {error}")
        with contextlib.suppress(BenchError):
            bench.side("torch").get(do="clear")
    bench.show(f"{markdown(CEILING_HEAD, ceiling_rows(bench.found, bench.args.dtypes), left=1)}\n")


def time_together(bench: Bench, messages: Sequence[tuple[Timed, str, dict[str, Any]]]) -> None:
    """Time kernels round by round, each in the process that has it.

    Args:
        bench: the run.
        messages: where the times go, the process, and the message.
    """
    bench.found.kernels += [one for one, _, _ in messages]
    for _ in range(bench.args.rounds):
        for one, side, message in messages:
            if one.failure:
                continue
            with failing(one):
                answer = bench.side(side).get(**message)
                one.seconds.append(answer["seconds"])
                one.difference = answer.get("difference")
                if one.difference is not None and not one.difference <= KERNEL_LIMITS[one.dtype]:
                    one.failure = f"WRONG, off by {one.difference:.1g}"
                    bench.found.wrong.append(f"{one.what} {one.dtype}, {one.side}: {one.failure}")
    for side in {side for _, side, _ in messages}:
        with contextlib.suppress(BenchError):
            bench.side(side).get(do="clear")


def measure_kernels(bench: Bench, processors: int, capability: tuple[int, int]) -> None:
    """Time the kernels of the base model one by one, and print their tables."""
    from minibert.kernels.cuda.functions import Steps

    device: Any = SimpleNamespace(name="", capability=capability, multiprocessors=processors)
    found, dtypes = bench.found, bench.args.dtypes
    for dtype in dtypes:
        steps = Steps(device, dtype)
        for into, out, end, activation in PRODUCTS:
            what = f"{into} -> {out}{', GELU' * bool(activation)}{', residual' * (end != 'store')}"
            amount = product_operations(TOKENS, into, out)
            say(f"GEMM {what}, {dtype}")
            messages = []
            for tile in tiles_of(dtype):
                one = Timed("gemm", dtype, what, tile_name(tile), amount)
                one.default = tile == steps.tile(TOKENS, out)
                kernel = {
                    **{"kind": "gemm", "dtype": dtype, "tile": tile, "tokens": TOKENS},
                    **{"into": into, "out": out, "end": end, "activation": activation},
                }
                messages.append((one, KERNELS, {"do": "time", "kernel": kernel}))
            if bench.torch:
                one = Timed("gemm", dtype, what, "torch", amount)
                messages.append((one, "torch", single("linear", dtype, [TOKENS, into, out])))
            time_together(bench, messages)
        head, rows = gemm_table(found, dtype)
        bench.show(
            f"GEMM of {TOKENS} tokens, TFLOP/s, share of the ceiling, * minibert's choice (torch: "
            f"F.linear, without GELU and residual):\n\n{markdown(head, rows, left=1)}\n"
        )
    for dtype in dtypes:
        for length in WINDOWS:
            lengths, what = window_split(TOKENS, length), f"of {length} tokens"
            one = Timed("attention", dtype, what, OURS, attention_operations(lengths, WIDTH))
            kernel = {"kind": "attention", "dtype": dtype, "tokens": TOKENS, "length": length}
            kernel |= {"heads": HEADS, "size": WIDTH // HEADS}
            messages = [(one, KERNELS, {"do": "time", "kernel": kernel})]
            if bench.torch:
                whole = TOKENS // length  # torch takes windows of one length only
                amount = attention_operations([length] * whole, WIDTH)
                sizes = [whole, HEADS, length, WIDTH // HEADS]
                other = Timed("attention", dtype, what, "torch", amount)
                messages.append((other, "torch", single("attention", dtype, sizes)))
            time_together(bench, messages)
    bench.show(
        f"Attention of {TOKENS} tokens, {HEADS} heads of {WIDTH // HEADS}:\n\n"
        f"{markdown(ATTENTION_HEAD, attention_rows(found, dtypes), left=2)}\n"
    )
    for dtype in dtypes:
        size = 4 if dtype == "float32" else 2
        for name in ROWS:
            amount = row_bytes(name, TOKENS, WIDTH, size, SPLITS)
            kernel = {"kind": "rows", "dtype": dtype, "name": name, "tokens": TOKENS}
            kernel |= {"width": WIDTH, "table": TABLE_ROWS}
            one = Timed("rows", dtype, name, OURS, amount)
            time_together(bench, [(one, KERNELS, {"do": "time", "kernel": kernel})])
    bench.side(KERNELS).stop()
    bench.show(
        f"Kernels of rows, {TOKENS} tokens of {WIDTH} numbers (add_norm adds {SPLITS} parts):\n\n"
        f"{markdown(ROWS_HEAD, row_rows(found, dtypes), left=2)}\n"
    )


def single(kind: str, dtype: str, sizes: Sequence[int]) -> dict[str, Any]:
    """The message for torch's side of a kernel."""
    kernel = {"kind": kind, "dtype": dtype, "sizes": list(sizes), "sets": 4}
    return {"do": "single", "kernel": kernel, "times": TIMES}


# ---------------------------------------------------------------- the command


def find_gpu() -> tuple[Any, str]:
    """The first GPU, and the driver's version.

    Raises:
        BenchError: none can be used.
    """
    if missing_modules(("minibert",)):
        raise BenchError(f"{sys.executable} has no minibert: pip install it first")
    from minibert.kernels.cuda.detect import find_gpus, why_not

    found = find_gpus()
    if problem := why_not(found):
        raise BenchError(problem)
    return found.gpus[0], found.driver_version


def keep_able(args: argparse.Namespace, gpu: Any, found: Found) -> None:
    """Leave out the precisions that the GPU does not have, with a line for each."""
    from minibert.kernels.cuda.recipes import LEAST_CAPABILITY

    for dtype in [dtype for dtype in args.dtypes if gpu.capability < LEAST_CAPABILITY[dtype]]:
        found.note(f"{dtype} is left out: {gpu.name} cannot compute in it.")
        args.dtypes.remove(dtype)


def command_cuda(args: argparse.Namespace) -> None:
    """Run `bench.py cuda`.

    Raises:
        BenchError: there is no usable GPU, or some result is wrong.
    """
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name, None) is None:
            setattr(args, name, copy.copy(value))
    if args.json and not args.json.parent.is_dir():
        raise BenchError(f"there is no folder {str(args.json.parent)!r}")
    gpu, driver = find_gpu()
    found = Found()
    keep_able(args, gpu, found)
    found.header = (
        f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, "
        f"{gpu.multiprocessors} multiprocessors, driver for CUDA {driver}; "
        f"{header([versions(PACKAGES)])}"
    )
    with model_folder(args.keep) as folder, contextlib.ExitStack() as stack:
        bench = Bench(args, Clock(args.seconds), folder, found, stack)
        guard = threading.Timer(args.seconds + GRACE, give_up, [bench])
        guard.daemon = True
        guard.start()
        stack.callback(guard.cancel)
        if missing := missing_modules(("torch", "transformers")):
            bench.torch = False
            found.note(f"torch is left out: no {' and no '.join(missing)} here.")
        bench.show(f"{found.header}\n")
        prepare(bench, gpu)
        measure_ceilings(bench)
        if KERNELS in args.work:
            measure_kernels(bench, gpu.multiprocessors, gpu.capability)
        if START in args.work:
            measure_starts(bench)
        if MODELS in args.work:
            measure_models(bench)
        print_end(bench)
    if found.wrong:
        raise BenchError("; ".join(found.wrong))


def give_up(bench: Bench) -> None:
    """End the command though something still hangs: print what there is, and leave."""
    bench.found.note("given up: a process could not be ended")
    print_end(bench)
    sys.stdout.flush()
    for side in bench.opened:
        if side.running:
            side.kill()
    os._exit(1)


def print_end(bench: Bench) -> None:
    """Print how it was measured, all notes, and the goals."""
    found = bench.found
    print(
        f"Medians (min-max) of {bench.args.rounds} rounds (of a slow model's throughput, of fewer) "
        "in random order; ratios round by round, median (quartiles). Latency: from ids on the host "
        "to logits on the host. TFLOP/s: multiply-adds of the matrix products and of attention on "
        "real tokens, times two. Off by: largest difference of logits from the NumPy definition "
        "(one window) or from torch's float32 (many).\n"
    )
    for note in [*found.notes, *(f"WRONG: {text}" for text in found.wrong)]:
        print(f"- {note}")
    rows = goal_rows(found, bench.args.shapes, bench.many)
    bench.show(f"\nGoals:\n\n{markdown(GOAL_HEAD, rows or [[NOTHING] * 4], left=3)}")


def shape_name(text: str) -> str:
    """A parser for `listed`: a name, or layers/hidden/heads."""
    shape_of(text)
    return text


def add_command(commands: Any) -> None:
    """Describe `cuda` and its options."""
    parser = commands.add_parser(
        "cuda", help="an NVIDIA GPU: whole models and kernels, beside torch"
    )
    parser.set_defaults(run=command_cuda)
    parser.add_argument(
        "--shapes",
        type=listed(shape_name),
        metavar="NAME,...",
        help=f"models: names, or layers/hidden/heads (default: {','.join(NAMES)})",
    )
    parser.add_argument(
        "--dtypes",
        type=listed(one_of(*DTYPES)),
        metavar="NAME,...",
        help=f"precisions (default: {','.join(DTYPES)})",
    )
    parser.add_argument(
        "--work",
        type=listed(one_of(KERNELS, START, MODELS)),
        metavar="NAME,...",
        help="kernels: tables of single ones; start: of fresh processes; models: latency and "
        "throughput (default: all)",
    )
    parser.add_argument(
        "--rounds", type=positive, metavar="N", help=f"rounds (default: {FULL['rounds']})"
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        default=SECONDS,
        metavar="N",
        help=f"what is not measured after so many is left out (default: {SECONDS})",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--compile-seconds",
        type=positive,
        default=COMPILE_SECONDS,
        metavar="N",
        help=f"of torch.compile, a model at most (default: {COMPILE_SECONDS})",
    )
    parser.add_argument(
        "--quick", action="store_true", help="two shapes, two precisions, few windows and rounds"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the models there for the next run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number there")
