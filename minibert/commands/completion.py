"""minibert completion: what makes a shell complete commands, options and file names."""

from __future__ import annotations

import argparse
from typing import Any

from minibert.commands.options import examples
from minibert.errors import InputError

SHELLS = ("bash", "zsh")
FILES = ("--model", "--teacher")  # options that take a file or folder, beside those that say so


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    completion = commands.add_parser(
        "completion",
        help="print what makes a shell complete minibert's commands and options",
        description="Print a script that makes a shell complete minibert's commands, options and "
        "file names. It needs the package shtab.",
        **examples(
            "minibert completion bash > ~/.local/share/bash-completion/completions/minibert",
            "minibert completion zsh > ~/.zfunc/_minibert",
        ),
    )
    completion.set_defaults(run=command_completion)
    completion.add_argument("shell", choices=SHELLS)


def command_completion(args: argparse.Namespace) -> None:
    """Run `minibert completion`."""
    try:
        import shtab
    except ImportError:
        raise InputError(
            "completion needs the package shtab: pip install 'minibert-qa[cli]'"
        ) from None
    from minibert.cli import build_parser  # here: it imports this module

    parser, commands = build_parser()
    for command in commands.values():
        for action in command._actions:
            if action.metavar == "FILE" or set(FILES) & set(action.option_strings):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar == "DIR":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
