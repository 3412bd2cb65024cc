"""minibert: answer questions from a text with BERT, on this machine.

Examples:
  minibert answer "Who wrote the play?" "The play was written by Ann Lee in 1990."
  minibert answer "Who wrote it?" --file play.txt notes.txt --top-k 3
  cat play.txt | minibert answer "Who wrote it?" --json
  minibert answer --jsonl questions.jsonl --output answers.jsonl
  minibert evaluate --data dev-v2.0.json --report report.html
  minibert train --data train-v2.0.json --model base_folder --output-dir trained
  minibert convert old_model_folder new_folder
  minibert serve --model my_model --port 8000
  minibert lessons my_bert
  minibert doctor
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn, TextIO, cast

from minibert import __version__
from minibert import progress as progress_module
from minibert.commands import (
    answer,
    compare,
    completion,
    convert,
    doctor,
    evaluate,
    explain,
    lessons,
    serve,
    train,
    warmup,
)
from minibert.errors import MinibertError
from minibert.files import without_bounds
from minibert.progress import forget, harmless, say
from minibert.signals import STATUS, heeding

COMMANDS = (
    answer,
    explain,
    evaluate,
    compare,
    train,
    convert,
    serve,
    lessons,
    doctor,
    warmup,
    completion,
)
# Those that read models and data, of which some may be hostile.
READERS = ("answer", "explain", "evaluate", "compare", "train", "convert", "serve", "doctor")


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors, which repeat what was given, steer no terminal."""

    def error(self, message: str) -> NoReturn:
        """End with status 2, and say why."""
        super().error(harmless(message, sys.stderr))

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """The value of an argument; before Python 3.13, --model=-- had none and was no error."""
        values = super()._get_values(action, arg_strings)
        if values == [] and action.nargs is None:
            raise argparse.ArgumentError(action, "expected one argument")
        return values


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Understand a command line.

    Positional arguments may stand among options.  argparse can do that (parse_intermixed_args), but
    not for a parser with commands; so the command is looked up first, which is easy: before its
    name there is nothing but --help and --version, which need none.
    """
    parser, commands = build_parser()
    if not argv:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if argv[0] not in commands:
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
    parser = Parser(
        prog="minibert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minibert {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add_command(commands)
    for name in READERS:
        commands.choices[name].add_argument(
            "--no-bounds",
            action="store_true",
            help="read files too that take far more memory than honest ones do",
        )
    return parser, dict(commands.choices)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 for bad input, said in one line on stderr; 130, 143 and 129 after Ctrl-C, SIGTERM and
        SIGHUP; wrong usage exits with 2.
    """
    try:
        with heeding(), own_output(), saying_warnings():
            return run_command(sys.argv[1:] if argv is None else argv)
    except OutputError as error:
        if sys.stdout is not None:
            forget(sys.stdout)
        if isinstance(error.cause, BrokenPipeError):
            return 0  # `minibert ... | head`: the reader has seen enough
        say(f"minibert: error: standard output: cannot be written: {error}\n")
        return 1
    except KeyboardInterrupt as stop:
        # Some of Python's decoders wrap what comes while they are at work into words of their own.
        said = "" if stop.__cause__ else str(stop)
        say(f"minibert: interrupted{': ' * bool(said)}{said}\n")
        return STATUS.get(type(stop), 130)


def run_command(argv: Sequence[str]) -> int:
    """Run one command; 1 if it fails, which is said in one line on stderr, and 0 otherwise."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Windows and LANG=C would choke on an answer in Greek
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    args = parse(argv)
    progress_module.speaking = True  # say so when kernels are compiled
    try:
        with without_bounds() if getattr(args, "no_bounds", False) else nullcontext():
            args.run(args)
    except MinibertError as error:
        line = " ".join(part.strip() for part in str(error).splitlines())
        say(f"minibert: error: {line}\n")
        return 1
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        say(f"minibert: error: {place}{error.strerror or error}\n")
        return 1
    return 0


class OutputError(Exception):
    """Standard output does not take what is written: no other file is to be blamed for that."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror or str(cause))
        self.cause = cause


class Output:
    """Standard output, with errors of its own; in everything else as it is."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return self.stream.write(text)
        except OSError as error:
            raise OutputError(error) from None

    def flush(self) -> None:
        """Write what is waiting."""
        try:
            self.stream.flush()
        except OSError as error:
            raise OutputError(error) from None


@contextmanager
def own_output() -> Iterator[None]:
    """Let standard output have errors of its own, and write all of it in the end.

    Raises:
        OutputError: it does not take that.
    """
    stream = sys.stdout
    if stream is None:  # it is closed
        yield
        return
    output = Output(stream)
    sys.stdout = cast(TextIO, output)
    try:
        yield
    finally:
        sys.stdout = stream
        output.flush()


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
