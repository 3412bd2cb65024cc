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
        description="Compile the CPU kernels that are not in the cache yet. Without this they "
        "are compiled when they first run. The cache is $MINIBERT_CACHE_DIR, or a folder "
        "'minibert' in the user's cache folder; it must be readable when the kernels run.",
    )
    warmup.set_defaults(run=command_warmup)
    warmup.add_argument(
        "--dtype",
        action="append",
        choices=DTYPES,
        help="for this dtype; repeat it for several (default: all)",
    )


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
        raise BackendError(f"the kernels for {', '.join(bad)} do not compute what they should")


def command_warmup(args: argparse.Namespace) -> None:
    """Run `minibert warmup`."""
    from minibert.doctor import warm_up

    for line in warm_up(args.dtype or DTYPES):
        print(line, flush=True)
