"""minibert lessons: BERT, written by whoever wants to understand it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from minibert.commands.options import examples, file_name
from minibert.progress import harmless


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    lessons = commands.add_parser(
        "lessons",
        usage="%(prog)s [-h] DIR\n       %(prog)s check DIR [--only NAME] [--reveal NAME]",
        help="write BERT yourself, in short lessons that check themselves",
        description="Write a folder of short Python files, one for each step from tokens to an "
        "answer, whose functions are yours to fill in; files that are there stay as they are. "
        "With 'check', compare those functions with the definition, each file in a process of its "
        "own, and answer a question with them. The status is 1 if one is not right.",
        **examples(
            "minibert lessons my_bert",
            "minibert lessons check my_bert --only layer_norm",
        ),
    )
    lessons.set_defaults(run=command_lessons, check=check, parser=lessons)
    lessons.add_argument("words", nargs="+", metavar="DIR", type=file_name, help="the folder")
    lessons.add_argument("--only", metavar="NAME", help="check one lesson, by name or number")
    lessons.add_argument("--reveal", metavar="NAME", help="show the code of the definition")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    args.checks = args.words[0] == "check"
    if len(args.words) != 1 + args.checks:
        parser.error("give a folder: minibert lessons DIR, or minibert lessons check DIR")
    if not args.checks and (args.only or args.reveal):
        parser.error("--only and --reveal go with minibert lessons check DIR")


def command_lessons(args: argparse.Namespace) -> None:
    """Run `minibert lessons`."""
    folder = args.words[-1]
    if not args.checks:
        from minibert.lessons.folder import write_lessons

        written = write_lessons(folder)
        place = harmless(folder, sys.stdout)
        print(f"{place}: {len(written)} files written" if written else f"{place}: all there")
        print(f"Begin with README.md and 00_answer.py; then: minibert lessons check {place}")
        return
    from minibert.lessons.checking import check_lessons, revealed

    lines = revealed(folder, args.reveal) if args.reveal else check_lessons(folder, args.only)
    for line in lines:
        print(harmless(line, sys.stdout), flush=True)
