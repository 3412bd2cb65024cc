"""minibert compare: several models on one SQuAD file, as a table."""

from __future__ import annotations

import argparse
from typing import Any

from minibert.commands.options import (
    add_decoding_options,
    add_file_options,
    add_running_options,
    decoding_settings,
    examples,
    read_data,
)
from minibert.documents import to_json
from minibert.errors import InputError
from minibert.files import check_output, writing
from minibert.options import DTYPES
from minibert.progress import harmless, notice


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    parser = commands.add_parser(
        "compare",
        help="measure several models on one SQuAD file",
        description="Run models over the same questions, one after the other, and print a table: "
        "exact match, F1, size of the weights on disk, questions a second.",
        **examples(
            "minibert compare --data dev-v2.0.json embedded my_model",
            "minibert compare --data dev-v2.0.json --dtype float32 --dtype int8 --limit 1000",
        ),
    )
    parser.set_defaults(run=command_compare, check=check_usage, parser=parser)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="folder, .safetensors file, or name on the Hugging Face Hub; 'embedded' for the "
        "model that comes along (default: embedded)",
    )
    add_file_options(parser)
    parser.add_argument(
        "--format",
        choices=["markdown", "json"],
        default="markdown",
        help="json has all of SQuAD's numbers (default: markdown)",
    )
    parser.add_argument(
        "--null-threshold",
        type=float,
        default=0.0,
        metavar="X",
        help="'no answer' if the null odds are above X (default: 0)",
    )
    add_decoding_options(parser)
    add_running_options(parser, several_dtypes=True)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with status 2 if options contradict each other."""
    if args.null_threshold != args.null_threshold:
        parser.error("argument --null-threshold: must be a number, got nan")


def command_compare(args: argparse.Namespace) -> None:
    """Run `minibert compare`."""
    from minibert.model import load_model
    from minibert.squad.evaluation import compare

    check_output(args.output)
    data = read_data(args)
    if not data.labelled:
        raise InputError(f"{args.data}: holds no right answers, so models cannot be compared on it")
    settings = decoding_settings(args, data, args.null_threshold)
    names = args.models or ["embedded"]
    kinds = args.dtype or DTYPES[:1]
    wanted = [(name, dtype) for name in names for dtype in kinds]

    def load(name: str, dtype: str) -> Any:
        return load_model(
            name,
            device=args.device or "auto",
            dtype=dtype,
            num_threads=args.threads,
        )

    for one in wanted:  # what is wrong is said before the first one has run for minutes
        load(*one)
    rows: list[dict[str, Any]] = []
    try:
        for number, (name, dtype) in enumerate(wanted, 1):
            notice(f"{number} of {len(wanted)}: {name}, {dtype}")
            rows.append(compare(load(name, dtype), data, settings, args.f1))
    finally:
        if rows:  # those that were measured, also if a later one fails
            with writing(args.output) as out:
                markdown = args.format == "markdown"
                out.write(harmless(as_markdown(rows), out) if markdown else to_json(rows, indent=2))
                out.write("\n")


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, figures to the right."""
    head = ("model", "dtype", "exact", "F1", "weights, MB", "questions/s")
    lines = [head, ("---", "---", "---:", "---:", "---:", "---:")]
    for row in rows:
        name = row["model"].replace("|", "\\|")
        figures = (row["exact"], row["f1"], row["megabytes"])
        rate = f"{row['questions_per_second']:.1f}"
        lines.append((name, row["dtype"], *(f"{figure:.2f}" for figure in figures), rate))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
