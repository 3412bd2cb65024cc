"""minibert: answer questions from a text with BERT, on this machine.

Examples:
  minibert answer "Who wrote the play?" "The play was written by Ann Lee in 1990."
  minibert answer "Who wrote it?" --file play.txt notes.txt --top-k 3
  cat play.txt | minibert answer "Who wrote it?" --json
  minibert answer --jsonl questions.jsonl --output answers.jsonl
  minibert evaluate --data dev-v2.0.json --report report.html
  minibert train --data train-v2.0.json --model base_folder --output-dir trained
  minibert convert old_model_folder new_folder
  minibert lessons my_bert
  minibert doctor
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minibert import __version__
from minibert import progress as progress_module
from minibert.commands import (
    answer,
    compare,
    completion,
    convert,
    doctor,
    evaluate,
    lessons,
    train,
    warmup,
)
from minibert.errors import MinibertError
from minibert.progress import say

COMMANDS = (answer, evaluate, compare, train, convert, lessons, doctor, warmup, completion)


class Terminated(KeyboardInterrupt):
    """SIGTERM asks the program to end, which it does as after Ctrl-C."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Understand a command line.

    Positional arguments may stand among options.  argparse can do that (parse_intermixed_args), but
    not for a parser with commands; so the command is looked up first, which is easy: before its
    name there is nothing but --help and --version, which need none.
    """
    parser, commands = build_parser()
    if not argv or argv[0] not in commands:
        return parser.parse_args(argv)
    chosen, rest = commands[argv[0]], argv[1:]
    # What follows -- are no options, which intermixed parsing forgets.
    args = chosen.parse_args(rest) if "--" in rest else chosen.parse_intermixed_args(rest)
    if hasattr(args, "check"):
        args.check(args.parser, args)
    return args


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Describe the commands and their options.

    Returns:
        The parser of the whole, and those of the commands by name.
    """
    parser = argparse.ArgumentParser(
        prog="minibert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minibert {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add_command(commands)
    return parser, dict(commands.choices)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 for bad input, said in one line on stderr; 130 and 143 after Ctrl-C and SIGTERM; wrong
        usage exits with 2.
    """
    args = parse(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Windows and LANG=C would choke on an answer in Greek
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    progress_module.speaking = True  # say so when kernels are compiled
    try:
        with heeding_sigterm(), saying_warnings():
            args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except MinibertError as error:
        line = " ".join(part.strip() for part in str(error).splitlines())
        say(f"minibert: error: {line}\n")
        return 1
    except BrokenPipeError:  # `minibert ... | head`: the reader has seen enough
        forget_output()
        return 0
    except KeyboardInterrupt as stop:
        say(f"minibert: interrupted{': ' * bool(str(stop))}{stop}\n")
        return 143 if isinstance(stop, Terminated) else 130
    except OSError as error:
        place = error.filename
        if place is None:  # it is standard output
            forget_output()
            place = "standard output: cannot be written"
        say(f"minibert: error: {place}: {error.strerror or error}\n")
        return 1
    return 0


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, unless the caller has other plans for it."""

    def stop(*_: Any) -> None:
        raise Terminated

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def saying_warnings() -> Iterator[None]:
    """Say what the library warns of in one line on stderr, as errors are said."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, UserWarning):
            say(f"minibert: warning: {' '.join(str(message).split())}\n")
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        usual, warnings.showwarning = warnings.showwarning, show
        yield


def forget_output() -> None:
    """Drop what is left to be written to standard output, or Python complains when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
