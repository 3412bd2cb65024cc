"""minibert explain: a page that shows how one question was answered."""

from __future__ import annotations

import argparse
import os
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Any

from minibert.commands.answer import add_deciding_options, load_answerer, read_texts
from minibert.commands.options import add_model_options, at_least, examples, file_name
from minibert.errors import InputError
from minibert.files import check_apart, check_output
from minibert.progress import notice


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    explain = commands.add_parser(
        "explain",
        help="a page that shows how a question is answered, step by step",
        description="Write a page that shows how the model answers a question: tokens, windows, "
        "vectors, layers, attention, logits, every span and its rivals, and which words made the "
        "answer. It is one file that needs no network.",
        **examples(
            'minibert explain "Who wrote it?" --file play.txt --output page.html --open',
            'minibert explain "Who won?" "Ann won in May." --compare "When?" --output page.html',
        ),
    )
    explain.set_defaults(run=command_explain, check=check_usage, parser=explain)
    explain.add_argument("question", help="the question")
    explain.add_argument(
        "text", nargs="?", help="the text itself; without it and without --file, standard input"
    )
    explain.add_argument(
        "--file",
        action="append",
        nargs="+",
        metavar="FILE",
        help="read the text from a file (- for standard input); several are searched together",
    )
    explain.add_argument(
        "--output",
        type=file_name,
        metavar="FILE",
        required=True,
        help="the page to write; a file of that name is replaced",
    )
    explain.add_argument("--open", action="store_true", help="show it in the browser")
    explain.add_argument(
        "--thorough",
        action="store_true",
        help="add integrated gradients, words left out, and a check of the words' shares; says how "
        "long it takes",
    )
    explain.add_argument(
        "--compare",
        metavar="TEXT",
        help="set the answer beside that to another question (what ends in ?) or from another text",
    )
    explain.add_argument(
        "--lessons",
        metavar="DIR",
        help="run the functions that you wrote there, of minibert lessons, and mark the first step "
        "that departs from the definition",
    )
    explain.add_argument(
        "--window",
        type=at_least(0),
        metavar="N",
        help="which window of a long text to show, from 0 (default: that of the answer)",
    )
    add_deciding_options(explain)
    add_model_options(explain)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with status 2 if options contradict each other."""
    if args.text is not None and args.file is not None:
        parser.error("give the text once: as TEXT or with --file")
    if args.compare is not None and not args.compare.strip():
        parser.error("--compare is empty: give another question, which ends in ?, or another text")


def command_explain(args: argparse.Namespace) -> None:
    """Run `minibert explain`."""
    # NumPy's products here are small, and its threads wait for each other on a busy computer.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy reads it when it is imported
    from minibert.explaining.explanation import is_question  # here: --help needs no NumPy
    from minibert.explaining.learner import named_step

    check_output(args.output)
    names, texts = read_texts(args)
    check_apart(names, args.output)
    qa = load_answerer(args)
    found = qa.explain(
        args.question,
        texts,
        window=args.window,
        thorough=args.thorough,
        lessons=args.lessons,
        compare=args.compare,
    )
    found = replace(found, titles=[name or f"text {n}" for n, name in enumerate(names)])
    if found.other is not None:
        asks = is_question(args.compare)
        notice(f"minibert: compared with another {'question' if asks else 'text'}")
    if found.learnt is not None and found.learnt.departure is not None:
        first = found.learnt.departure
        notice(f"minibert: the first step that departs is {named_step(first.step)}: {first.what}")
    found.save(args.output)
    path = Path(args.output).resolve()
    notice(f"minibert: {args.output}: {path.stat().st_size / 1e6:.1f} MB, in {found.seconds:.1f} s")
    if args.open and not webbrowser.open(path.as_uri()):
        raise InputError(f"{args.output}: is written, but no browser could be opened here")
