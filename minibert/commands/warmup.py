"""minibert warmup: compile kernels ahead of use."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minibert.commands.options import examples
from minibert.errors import BackendError
from minibert.options import DEVICE_DTYPES, DTYPES


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    warmup = commands.add_parser(
        "warmup",
        help="compile the kernels now, for instance while an image is built",
        description="Compile the kernels that are not in the cache yet. Without this they are "
        "compiled when they first run. The cache is $MINIBERT_CACHE_DIR, or a folder 'minibert' in "
        "the user's cache folder; whoever runs the kernels must be able to read it, and it must "
        "belong to that user or to root. For GPUs, kernels are compiled for one model's shape; "
        "with --arch no GPU is needed.",
        **examples(
            "minibert warmup --dtype float32 --dtype int8",
            "minibert warmup --device cuda --arch 9.0 --model my_model",
        ),
    )
    warmup.set_defaults(run=command_warmup)
    warmup.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="whose kernels (default: cpu)",
    )
    warmup.add_argument(
        "--dtype",
        action="append",
        choices=DTYPES,
        help="for this dtype; repeat it for several (default: all of the device)",
    )
    warmup.add_argument(
        "--model",
        help="with --device cuda: for models of this one's shape (default: embedded)",
    )
    warmup.add_argument(
        "--arch",
        type=architecture,
        metavar="M.N",
        help="with --device cuda: compute capability to compile for, e.g. 8.6 (default: that of "
        "the GPU that is there)",
    )


def architecture(text: str) -> tuple[int, int]:
    """An argparse type: a compute capability such as 9.0."""
    major, _, minor = text.partition(".")
    if (
        not (text.isascii() and major.isdigit() and len(major) < 4 and minor.isdigit())
        or minor > "9"
    ):
        raise argparse.ArgumentTypeError(f"must be a compute capability such as 8.6, got {text!r}")
    return int(major), int(minor)


def command_warmup(args: argparse.Namespace) -> None:
    """Run `minibert warmup`."""
    known = DEVICE_DTYPES[args.device]
    if wrong := set(args.dtype or ()) - set(known):
        raise BackendError(
            f"device {args.device!r} computes in {', '.join(known)} only, got --dtype "
            f"{', '.join(sorted(wrong))}"
        )
    dtypes = args.dtype or known
    if args.device == "cpu" and (args.model or args.arch):
        raise BackendError("--model and --arch are for --device cuda")
    lines = warm_up(dtypes) if args.device == "cpu" else warm_up_cuda(dtypes, args.model, args.arch)
    for line in lines:
        print(line, flush=True)


def warm_up(dtypes: Sequence[str]) -> Iterator[str]:
    """Compile the kernels for each dtype, unless that is done, and say where they are.

    Raises:
        BackendError: the cache cannot be written, so that compiling was in vain.
    """
    from minibert.kernels.cache import cache_folder, read_cache
    from minibert.kernels.cpu.compiler import cache_name, load_program
    from minibert.kernels.cpu.targets import find_target

    target = find_target()
    for dtype in dict.fromkeys(dtypes):
        path = cache_folder() / cache_name(dtype, target)
        load_program(dtype, target)
        if read_cache(path) is None:
            raise not_kept(path)
        yield f"{dtype} for {target.name}: {path}"


def warm_up_cuda(
    dtypes: Sequence[str], model: str | None, capability: tuple[int, int] | None
) -> Iterator[str]:
    """Compile the kernels of a model's shape for GPUs, unless that is done; say where they are.

    Args:
        dtypes: to compile for.
        model: as for load_model.
        capability: compute capability; None: that of the first GPU here.

    Raises:
        BackendError: no GPU and no capability, a dtype is beyond it, kernels cannot be compiled, or
            not be kept.
    """
    from minibert.checkpoints.hub import find_model
    from minibert.config import BertConfig
    from minibert.kernels.cuda.detect import find_gpus
    from minibert.kernels.cuda.launcher import recipes_of
    from minibert.kernels.cuda.recipes import LEAST_CAPABILITY, built_kernel, cache_path, is_built

    if capability is None:
        found = find_gpus()
        if not found.gpus:
            raise BackendError(
                f"no GPU says what to compile for: {found.problem} Or name its compute capability "
                "with --arch."
            )
        capability = found.gpus[0].capability
    config = BertConfig.from_json(find_model(model).folder / "config.json")
    for dtype in dict.fromkeys(dtypes):
        if capability < (least := LEAST_CAPABILITY[dtype]):
            raise BackendError(
                f"{dtype} needs compute capability {least[0]}.{least[1]} or more, and this is for "
                f"{capability[0]}.{capability[1]}. Name other dtypes with --dtype."
            )
        recipes = recipes_of(config, dtype)
        for number, recipe in enumerate(recipes, 1):
            built_kernel(recipe, capability)
            path = cache_path(recipe, capability)
            if not is_built(recipe, capability):
                raise not_kept(path)
            yield f"{dtype}, {number} of {len(recipes)}: {path}"


def not_kept(path: Path) -> BackendError:
    """What there is to say of kernels that were compiled in vain."""
    from minibert.kernels.cache import distrusted

    reason = distrusted(path.parent) or f"{path.parent} cannot be written"
    return BackendError(
        f"the kernels were compiled, but not kept: {reason}. Mend that, or set MINIBERT_CACHE_DIR "
        "to another folder."
    )
