"""minibert convert: old checkpoints become folders of safetensors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minibert.commands.options import examples
from minibert.errors import InputError
from minibert.options import STORED_DTYPES, check_bits
from minibert.progress import harmless

if TYPE_CHECKING:
    from minibert.checkpoints.conversion import Rounding


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    convert = commands.add_parser(
        "convert",
        help="turn an old checkpoint into safetensors, or make it smaller",
        description="Write a model as a folder with model.safetensors, config.json and its "
        "tokenizer. Old pytorch_model.bin files are read without torch, and nothing in them is "
        "executed.",
        **examples(
            "minibert convert old_folder new_folder",
            "minibert convert folder small_folder --bits 5,6,6",
        ),
    )
    convert.set_defaults(run=command_convert)
    convert.add_argument(
        "model",
        help="folder, weights file, or name on the Hugging Face Hub; 'embedded' for the model that "
        "comes along",
    )
    convert.add_argument("output", help="the folder to write")
    stored = convert.add_mutually_exclusive_group()
    stored.add_argument(
        "--dtype",
        choices=STORED_DTYPES,
        default="float32",
        help="how to store the numbers; a model in int8 becomes floats of the same values, which "
        "other programs can read (default: float32)",
    )
    stored.add_argument(
        "--bits",
        type=bits,
        metavar="N,N,N",
        help="store matrices in integers of so many bits, 4 to 8, and say what the rounding costs: "
        "those of the word embeddings, of attention and of the feed-forward part, or one number "
        "for all; minibert alone reads them",
    )
    convert.add_argument("--revision", help="branch, tag or commit on the Hub")
    convert.add_argument(
        "--overwrite", action="store_true", help="replace the folder if it holds a model"
    )


def bits(text: str) -> tuple[int, int, int]:
    """An argparse type: one number of bits, or three."""
    each = [int(part) for part in text.split(",")]
    try:
        return check_bits(each if len(each) > 1 else each[0])
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def command_convert(args: argparse.Namespace) -> None:
    """Run `minibert convert`."""
    from minibert.checkpoints.conversion import convert

    roundings: list[Rounding] = []
    folder = convert(
        args.model,
        args.output,
        dtype=args.dtype,
        bits=args.bits,
        revision=args.revision,
        overwrite=args.overwrite,
        report=roundings.append,
    )
    named = harmless(str(folder), sys.stdout)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    if args.bits is None:
        print(f"{named}: {size:.1f} MB, {args.dtype}")
        return
    weights = (folder / "model.safetensors").stat().st_size
    print(f"{named}: {size:.1f} MB, of which the weights are {weights:,} bytes")
    print(harmless("\n".join(describe(roundings)), sys.stdout))


def describe(roundings: Sequence[Rounding]) -> list[str]:
    """What the rounding of matrices costs, a line for each kind.

    An error is the root of the sum of squared errors by the sum of squared numbers.
    """
    lines = []
    for kind in dict.fromkeys(rounding.kind for rounding in roundings):
        mine = [rounding for rounding in roundings if rounding.kind == kind]
        squares = sum(rounding.squares for rounding in mine)
        error = (sum(rounding.errors for rounding in mine) / squares) ** 0.5 if squares else 0.0
        worst = max(mine, key=lambda rounding: rounding.error)
        row = max(mine, key=lambda rounding: rounding.worst_error)
        line = f"  {kind}, {mine[0].bits} bits: relative error {error:.2%}"
        if len(mine) > 1:
            line += f", at most {worst.error:.2%} in a matrix ({worst.name})"
        lines.append(
            f"{line}, at most {row.worst_error:.2%} in a row ({row.worst_row} of {row.name})"
        )
    return lines
