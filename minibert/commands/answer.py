"""minibert answer: one question, or a file of them."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from minibert.commands.options import add_model_options, at_least, dump
from minibert.errors import InputError
from minibert.files import writing
from minibert.progress import progress

if TYPE_CHECKING:
    from minibert.spans import Answer


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    answer = commands.add_parser(
        "answer",
        help="answer a question from a text",
        description="Find the words of a text that answer a question, or say that none do.",
    )
    answer.set_defaults(run=command_answer, check=check_usage, parser=answer)
    answer.add_argument("question", nargs="?", help="the question")
    answer.add_argument(
        "text",
        nargs="?",
        help="the text itself; without it and without --file, standard input is read",
    )
    answer.add_argument(
        "--file",
        action="append",
        metavar="FILE",
        help="read the text from a file (- for standard input); repeat it to "
        "search several texts together",
    )
    answer.add_argument(
        "--jsonl",
        metavar="FILE",
        help="answer many: each line an object with 'question' and 'context' (a "
        "text or a list of texts); other fields are passed on; - for standard "
        "input",
    )
    answer.add_argument("--output", metavar="FILE", help="write there instead of standard output")
    answer.add_argument("--json", action="store_true", help="print JSON instead of prose")
    answer.add_argument(
        "--top-k",
        type=at_least(1),
        default=1,
        metavar="N",
        help="how many answers to give (default: 1)",
    )
    answer.add_argument(
        "--null-threshold",
        type=float,
        default=0.0,
        metavar="X",
        help="say 'no answer' only if its score exceeds the best answer's by more "
        "than X; inf: only if there is nothing else; write --null-threshold=-1 for negative "
        "numbers (default: 0)",
    )
    answer.add_argument(
        "--max-answer-length",
        type=at_least(1),
        default=30,
        metavar="N",
        help="longest answer, in tokens (default: 30)",
    )
    answer.add_argument(
        "--max-seq-length",
        type=at_least(1),
        metavar="N",
        help="longest window, in tokens (default: 384, or the model's limit)",
    )
    answer.add_argument(
        "--doc-stride",
        type=at_least(0),
        metavar="N",
        help="tokens that neighbouring windows share (default: 128, or half a window)",
    )
    answer.add_argument(
        "--align-to-words", action="store_true", help="only answers made of whole words"
    )
    add_model_options(answer)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with status 2 if options contradict each other."""
    sources = [name for name in ("text", "file", "jsonl") if getattr(args, name) is not None]
    if args.jsonl is not None and args.question is not None:
        parser.error("with --jsonl the questions come from the file: give no QUESTION")
    if args.jsonl is None and args.question is None:
        parser.error("a QUESTION is needed, or --jsonl FILE")
    if len(sources) > 1:
        parser.error("give the text once: as TEXT, with --file, or with --jsonl")
    if args.null_threshold != args.null_threshold:
        parser.error("argument --null-threshold: must be a number, got nan")


def command_answer(args: argparse.Namespace) -> None:
    """Run `minibert answer`."""
    if args.jsonl is not None:
        with writing(args.output) as out:
            for line in answer_lines(args):
                out.write(line + "\n")
                if args.output is None:
                    out.flush()
        return
    names, texts = read_texts(args)
    answers = load_answerer(args).n_best(args.question, texts, args.top_k)
    with writing(args.output) as out:
        if args.json:
            shown = [as_json(answer) for answer in answers]
            out.write(dump(shown[0] if args.top_k == 1 else shown) + "\n")
        else:
            marks = marks_for(out)
            blocks = [describe(a, texts[a.document], names[a.document], marks) for a in answers]
            out.write("\n\n".join(blocks) + "\n")


def load_answerer(args: argparse.Namespace) -> Any:
    """The QuestionAnswerer that the options describe."""
    from minibert.answering import QuestionAnswerer  # here: --help needs no NumPy

    return QuestionAnswerer(
        args.model,
        device=args.device or "auto",
        dtype=args.dtype,
        num_threads=args.threads,
        revision=args.revision,
        null_score_diff_threshold=args.null_threshold,
        max_answer_length=args.max_answer_length,
        max_seq_length=args.max_seq_length,
        doc_stride=args.doc_stride,
        align_to_words=args.align_to_words,
    )


def read_texts(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The texts to search, and a name to show for each."""
    if args.text is not None:
        return [""], [args.text]
    if args.file:
        return args.file, [read_file(path) for path in args.file]
    if sys.stdin.isatty():
        print("Type or paste the text, then Ctrl-D:", file=sys.stderr)
    return [""], [read_file("-")]


def read_file(path: str) -> str:
    """A whole UTF-8 file, or standard input for '-'.

    Raises:
        InputError: it cannot be read, is not UTF-8, or is empty.
    """
    shown = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{shown}: is not UTF-8 text: byte {error.start}") from None
    if not text:
        raise InputError(f"{shown}: is empty; the text to search cannot be")
    return text


def as_json(answer: Answer) -> dict[str, Any]:
    """An answer's fields, in their order."""
    return asdict(answer)


def marks_for(out: TextIO) -> tuple[str, str]:
    """What to put around the answer: bold on a terminal, brackets elsewhere."""
    if out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
        return "\x1b[1;4m", "\x1b[0m"
    return "[", "]"


def describe(answer: Answer, text: str, name: str, marks: tuple[str, str]) -> str:
    """An answer for people: its text, its sentence with the span marked, and the figures."""
    figures = f"score {answer.score:.2f}, probability {answer.probability:.2f}"
    if answer.is_null:
        return f"(no answer)\n  {figures}: the text does not seem to say"
    begin, end = sentence_around(text, answer.start, answer.end)
    before, after = text[begin : answer.start], text[answer.end : end]
    sentence = " ".join(f"{before}{marks[0]}{answer.text}{marks[1]}{after}".split())
    place = f"characters {answer.start} to {answer.end}" + (f" of {name}" if name else "")
    return f"{answer.text}\n  {sentence}\n  {figures}, {place}"


# A sentence ends at . ! or ? before white space, at their CJK forms, or at an empty line.
SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)|[。！？]|\n\s*\n")
LONGEST_SENTENCE = 300  # characters shown on each side of the answer, at most


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """First character, and one past the last, of the sentence that holds text[start:end].

    Example:
        >>> text = "It rained. Ann Lee wrote it. Nobody came."
        >>> text[slice(*sentence_around(text, 11, 18))]
        ' Ann Lee wrote it.'
    """
    first, last = max(0, start - LONGEST_SENTENCE), min(len(text), end + LONGEST_SENTENCE)
    for match in SENTENCE_END.finditer(text, first, start):
        first = match.end()
    following = SENTENCE_END.search(text, max(start, end - 1), last)
    return first, following.end() if following else last


def answer_lines(args: argparse.Namespace) -> Iterator[str]:
    """Answer a JSON-lines file: one line out for each line in, in the same order."""
    qa = load_answerer(args)
    rows: list[dict[str, Any]] = []  # those whose answers are still to come
    number = 0  # of the line that was read last

    def examples() -> Iterator[tuple[str, Any]]:
        nonlocal number
        for number, line in enumerate(open_lines(args.jsonl), 1):
            if not line.strip():
                continue
            row = parse_row(line, f"{args.jsonl}, line {number}")
            rows.append(row)
            yield row["question"], row["context"]

    results = qa.n_best_many(examples(), args.top_k)
    try:
        for answers in progress(results, count_lines(args.jsonl), "questions", with_results=True):
            row = rows.pop(0)
            kept = {key: value for key, value in row.items() if key != "context"}
            found = [as_json(answer) for answer in answers]
            yield dump(kept | ({"answer": found[0]} if args.top_k == 1 else {"answers": found}))
    except InputError as error:
        if str(error).startswith(args.jsonl):  # it says already where it happened
            raise
        raise InputError(f"{args.jsonl}, line {number}: {error}") from None


def open_lines(path: str) -> Iterator[str]:
    """The lines of a UTF-8 file, or of standard input for '-', as they come.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        with open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise InputError(f"{path}, line {number}: is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def count_lines(path: str) -> int | None:
    """How many questions a file holds; None for what can be read only once."""
    if not Path(path).is_file():
        return None
    return sum(1 for line in open_lines(path) if line.strip())


def parse_row(line: str, where: str) -> dict[str, Any]:
    """One question of a JSON-lines file.

    Raises:
        InputError: it is not an object with a question and a context.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: must be an object, found {type(row).__name__}")
    for key in ("question", "context"):
        if key not in row:
            raise InputError(f"{where}: has no {key!r}; found {', '.join(row) or 'nothing'}")
    texts = row["context"] if isinstance(row["context"], list) else [row["context"]]
    for key, text in [("question", row["question"]), *(("context", t) for t in texts)]:
        if not isinstance(text, str) or not text:
            raise InputError(f"{where}: {key!r} must be a non-empty string, got {text!r:.60}")
    if not texts:
        raise InputError(f"{where}: 'context' is an empty list")
    return row
