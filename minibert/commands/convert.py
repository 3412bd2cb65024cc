"""minibert convert: old checkpoints become folders of safetensors."""

from __future__ import annotations

import argparse
from typing import Any

from minibert.commands.options import examples
from minibert.options import STORED_DTYPES


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
            "minibert convert embedded folder --dtype float32",
        ),
    )
    convert.set_defaults(run=command_convert)
    convert.add_argument(
        "model",
        help="folder, weights file, or name on the Hugging Face Hub; 'embedded' for the model that "
        "comes along",
    )
    convert.add_argument("output", help="the folder to write")
    convert.add_argument(
        "--dtype",
        choices=STORED_DTYPES,
        default="float32",
        help="how to store the numbers; a model in int8 becomes floats of the same values, which "
        "other programs can read (default: float32)",
    )
    convert.add_argument("--revision", help="branch, tag or commit on the Hub")
    convert.add_argument(
        "--overwrite", action="store_true", help="replace the folder if it holds a model"
    )


def command_convert(args: argparse.Namespace) -> None:
    """Run `minibert convert`."""
    from minibert.checkpoints.conversion import convert

    folder = convert(
        args.model,
        args.output,
        dtype=args.dtype,
        revision=args.revision,
        overwrite=args.overwrite,
    )
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB, {args.dtype}")
