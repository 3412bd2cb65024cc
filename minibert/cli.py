"""minibert: answer questions from a text with BERT, on this machine.

Examples:
  minibert answer "Who wrote it?" "The play was written by Ann Lee in 1990."
  minibert answer "Who wrote it?" --file play.txt --file notes.txt --top-k 3
  cat play.txt | minibert answer "Who wrote it?" --json
  minibert answer --jsonl questions.jsonl > answers.jsonl
  minibert evaluate --data dev-v2.0.json --report report.html
  minibert convert old_model_folder new_folder
  minibert doctor
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from minibert import __version__
from minibert import progress as progress_module
from minibert.commands import answer, compare, convert, doctor, evaluate, warmup
from minibert.errors import MinibertError
from minibert.progress import say

COMMANDS = (answer, evaluate, compare, convert, doctor, warmup)


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands and their options."""
    parser = argparse.ArgumentParser(
        prog="minibert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minibert {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 for bad input, said in one line on stderr; wrong usage exits with 2.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if hasattr(args, "check"):
        args.check(args.parser, args)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Windows and LANG=C would choke on an answer in Greek
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    progress_module.speaking = True  # say so when kernels are compiled
    try:
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
    except KeyboardInterrupt:
        say("minibert: interrupted\n")
        return 130
    except OSError as error:
        place = error.filename
        if place is None:  # it is standard output
            forget_output()
            place = "standard output: cannot be written"
        say(f"minibert: error: {place}: {error.strerror or error}\n")
        return 1
    return 0


def forget_output() -> None:
    """Drop what is left to be written to standard output, or Python complains when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
