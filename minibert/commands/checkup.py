"""minibert doctor and minibert warmup: what runs here, and whether it is compiled."""

from __future__ import annotations

import argparse
from typing import Any

from minibert.commands.options import DTYPES, dump
from minibert.errors import BackendError


def add_command(commands: Any) -> None:
    """Describe both commands and their options."""
    doctor = commands.add_parser(
        "doctor",
        help="say what runs here, and check that it computes the right numbers",
        description="Print versions, the processor and the kernels that it gets, and run the "
        "embedded model in each dtype beside the definition in NumPy. The status is 1 if they "
        "differ.",
    )
    doctor.set_defaults(run=command_doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON instead of prose")

    warmup = commands.add_parser(
        "warmup",
        help="compile the kernels now, for instance while an image is built",
        description="Compile the kernels that are not in the cache yet. Without this they are "
        "compiled when they first run. The cache is $MINIBERT_CACHE_DIR, or a folder 'minibert' in "
        "the user's cache folder; it must be readable when the kernels run. For GPUs, kernels are "
        "compiled for one model's shape; with --arch no GPU is needed.",
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


def command_doctor(args: argparse.Namespace) -> None:
    """Run `minibert doctor`."""
    from minibert.doctor import examine

    findings = examine()
    if args.json:
        print(dump(findings))
    else:
        for title, facts in findings.items():
            print(title)
            width = max(map(len, facts))
            for name, fact in facts.items():
                print(f"  {name:{width}}  {fact}")
    bad = [name for name, fact in findings["check"].items() if not fact.startswith("ok")]
    if bad:
        raise BackendError(f"the check of {', '.join(bad)} did not go well, see above")


def command_warmup(args: argparse.Namespace) -> None:
    """Run `minibert warmup`."""
    from minibert.doctor import warm_up, warm_up_cuda
    from minibert.kernels.backend import DEVICE_DTYPES

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
