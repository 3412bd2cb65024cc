"""minibert answer: one question; stream.py and parquet.py answer a file of them."""

from __future__ import annotations

import argparse
import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from minibert.commands.options import add_model_options, at_least, dump, examples, file_name
from minibert.errors import InputError
from minibert.files import check_apart, check_output, open_file, writing
from minibert.progress import harmless, notice
from minibert.sentences import sentence_around

if TYPE_CHECKING:
    from minibert.answering import QuestionAnswerer
    from minibert.spans import Answer


# Options of a QuestionAnswerer that are options of a command too, by the same names.
ANSWERING = (
    "max_answer_length",
    "max_seq_length",
    "max_question_length",
    "doc_stride",
    "align_to_words",
    "max_overlap",
    "min_score",
)


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    answer = commands.add_parser(
        "answer",
        help="answer a question from a text",
        description="Find the words of a text that answer a question, or say that none do.",
        **examples(
            'minibert answer "Who wrote it?" --file play.txt notes.txt --top-k 3',
            "minibert answer --jsonl questions.jsonl --output answers.jsonl",
        ),
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
        nargs="+",
        metavar="FILE",
        help="read the text from a file (- for standard input); several are searched together",
    )
    answer.add_argument(
        "--jsonl",
        metavar="FILE",
        help="answer many: each line an object with 'question' and 'context' (a text or a list of "
        "texts); other fields are passed on (as 'input_answer' and so on, where an answer takes "
        "their name); a row that cannot be answered gets an 'error' instead; - for standard input",
    )
    answer.add_argument(
        "--parquet",
        type=file_name,
        metavar="FILE",
        help="answer the rows of a table (needs pyarrow): the output is the same table with "
        "columns answer_text, answer_start, answer_end, answer_score, answer_probability, "
        "answer_null_score and answer_error; a row that cannot be answered has nulls and an error",
    )
    answer.add_argument(
        "--question-column",
        default="question",
        metavar="NAME",
        help="with --parquet: the column with the questions (default: question)",
    )
    answer.add_argument(
        "--context-column",
        default="context",
        metavar="NAME",
        help="with --parquet: the column with the texts (default: context)",
    )
    answer.add_argument(
        "--prefix",
        default="answer_",
        metavar="TEXT",
        help="with --parquet: what names of new columns begin with (default: answer_)",
    )
    answer.add_argument(
        "--batch-size",
        type=at_least(1),
        metavar="N",
        help="with --jsonl or --parquet: at most so many questions wait for each other; 1 answers "
        "each as it comes (default: as many as fill a batch)",
    )
    answer.add_argument(
        "--strict",
        action="store_true",
        help="with --jsonl or --parquet: stop at the first row with an error",
    )
    answer.add_argument(
        "--output",
        type=file_name,
        metavar="FILE",
        help="write there instead of standard output; with --jsonl and --parquet, a run that was "
        "interrupted goes on where it was",
    )
    answer.add_argument(
        "--overwrite",
        action="store_true",
        help="with --jsonl or --parquet, and --output: drop what an unfinished run has left, as "
        "far as it does not fit this one",
    )
    answer.add_argument(
        "--json",
        action="store_true",
        help="print JSON instead of prose; of several files, it names that of the answer",
    )
    answer.add_argument(
        "--top-k",
        type=at_least(1),
        default=1,
        metavar="N",
        help="how many answers to give (default: 1)",
    )
    add_deciding_options(answer)
    answer.add_argument(
        "--max-question-length",
        type=at_least(1),
        metavar="N",
        help="cut longer questions to so many tokens (default: never)",
    )
    answer.add_argument(
        "--doc-stride",
        type=at_least(0),
        metavar="N",
        help="tokens that neighbouring windows share (default: 128, or half a window)",
    )
    answer.add_argument(
        "--align-to-words",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="only answers made of whole words, where spaces part words (default: yes)",
    )
    answer.add_argument(
        "--max-overlap",
        type=share,
        metavar="X",
        help="with --top-k: of two answers that share more than this part of the shorter one, from "
        "0 to 1, give the better one only (default: both)",
    )
    answer.add_argument(
        "--min-score",
        type=number,
        metavar="X",
        help="leave answers out whose score is below X, but not 'no answer'; write "
        "--min-score=-1 for negative numbers",
    )
    add_model_options(answer)


def add_deciding_options(parser: argparse.ArgumentParser) -> None:
    """The options of what an answer is, which other commands have too."""
    parser.add_argument(
        "--null-threshold",
        type=float,
        metavar="X",
        help="say 'no answer' only if its score exceeds the best answer's by more "
        "than X; inf: only if there is nothing else; write --null-threshold=-1 for negative "
        "numbers (default: the model's own, or 0)",
    )
    parser.add_argument(
        "--max-answer-length",
        type=at_least(1),
        default=30,
        metavar="N",
        help="longest answer, in tokens (default: 30)",
    )
    parser.add_argument(
        "--max-seq-length",
        type=at_least(1),
        metavar="N",
        help="longest window, in tokens (default: 384, or the model's limit)",
    )


def number(text: str) -> float:
    """An argparse type: a number."""
    value = float(text)
    if value != value:
        raise argparse.ArgumentTypeError(f"must be a number, got {text}")
    return value


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with status 2 if options contradict each other."""
    if args.question is None and args.file:
        args.question = take_question(args.file)
    given = ("text", "file", "jsonl", "parquet")
    sources = [name for name in given if getattr(args, name) is not None]
    many = next((f"--{name}" for name in sources if name in ("jsonl", "parquet")), None)
    if many and args.question is not None:
        parser.error(f"with {many} the questions come from the file: give no QUESTION")
    if not many and args.question is None:
        where = "; it goes before --file, which takes all that follows" if args.file else ""
        parser.error(f"a QUESTION is needed{where or ', or --jsonl FILE'}")
    if len(sources) > 1:
        parser.error("give the text once: as TEXT, with --file, --jsonl or --parquet")
    if args.strict and not many:
        parser.error("--strict needs --jsonl or --parquet")
    if args.batch_size is not None and not many:
        parser.error("--batch-size needs --jsonl or --parquet")
    if args.overwrite and (not many or args.output is None):
        parser.error("--overwrite needs --jsonl and --output, or --parquet")
    if args.parquet is not None and args.output is None:
        parser.error("--parquet needs --output")
    if args.parquet is not None and args.top_k > 1:
        parser.error("--parquet gives one answer a row: give no --top-k")
    if args.null_threshold != args.null_threshold:
        parser.error("argument --null-threshold: must be a number, got nan")


def take_question(groups: list[list[str]]) -> str | None:
    """Take out the question that stands behind names of files: --file takes all that follows it.

    Example:
        >>> groups = [["act1.txt", "act2.txt", "Who wrote it?"], ["notes.txt"]]
        >>> take_question(groups), groups
        ('Who wrote it?', [['act1.txt', 'act2.txt'], ['notes.txt']])
    """
    for names in groups:
        if len(names) > 1 and not looks_like_file(names[-1]):
            return names.pop()
    return None


FILE_NAME = re.compile(r"\S*[^\s.]\.[A-Za-z][A-Za-z0-9]{0,4}")  # no space, and an ending


def looks_like_file(text: str) -> bool:
    """Whether a text is the name of a file, as far as one can tell.

    Example:
        >>> [looks_like_file(text) for text in ("notes.txt", "-", "It was 3.5", "Who?", "e.g.")]
        [True, True, False, False, False]
    """
    there = os.path.exists(text) and not os.path.isdir(text)
    return text == "-" or there or bool(FILE_NAME.fullmatch(text))


def command_answer(args: argparse.Namespace) -> None:
    """Run `minibert answer`."""
    if args.jsonl is not None:
        check_output(args.output)
        check_apart([args.jsonl], args.output)
        with open_input(args.jsonl) as source:  # before the model, which may take longer
            from minibert.commands.stream import answer_rows

            answer_rows(load_answerer(args), source, args)
        return
    if args.parquet is not None:
        check_output(args.output)
        check_apart([args.parquet], args.output)
        from minibert.commands.parquet import answer_parquet, open_parquet

        table = open_parquet(args)
        answer_parquet(load_answerer(args), table, args)
        return
    names, texts = read_texts(args)
    if args.output is not None:
        check_apart(names, args.output)
    answers = load_answerer(args).n_best(args.question, texts, args.top_k)
    with writing(args.output) as out:
        if args.json:
            files = [{"file": name} if len(names) > 1 else {} for name in names]
            shown = [answer.to_dict() | files[answer.document] for answer in answers]
            out.write(dump(shown[0] if args.top_k == 1 else shown) + "\n")
        else:
            least = args.min_score
            blocks = [
                describe(a, texts[a.document], names[a.document], out, least) for a in answers
            ]
            out.write("\n\n".join(blocks) + "\n")


def load_answerer(args: argparse.Namespace) -> QuestionAnswerer:
    """The QuestionAnswerer that the options describe."""
    from minibert.answering import QuestionAnswerer  # here: --help needs no NumPy

    options = {name: getattr(args, name) for name in ANSWERING if hasattr(args, name)}
    if args.null_threshold is not None:
        options["null_score_diff_threshold"] = args.null_threshold
    return QuestionAnswerer(
        args.model,
        device=args.device or "auto",
        dtype=args.dtype,
        num_threads=args.threads,
        revision=args.revision,
        **options,
    )


def read_texts(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The texts to search, and a name to show for each."""
    if args.text is not None:
        if looks_like_file(args.text):
            name = args.text
            notice(f"minibert: {name!r} is the text that is searched; did you mean --file {name}?")
        return [""], [args.text]
    if args.file is not None:
        names = [name for group in args.file for name in group]
        return names, [read_file(name, may_be_empty=len(names) > 1) for name in names]
    if sys.stdin is not None and sys.stdin.isatty():
        print("Type or paste the text, then Ctrl-D:", file=sys.stderr)
    return [""], [read_file("-")]


def read_file(path: str, may_be_empty: bool = False) -> str:
    """A whole UTF-8 file, or standard input for '-'.

    Raises:
        InputError: it cannot be read, is not UTF-8, or is empty and may not be.
    """
    shown = "standard input" if path == "-" else path
    with open_input(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except OSError as error:
            raise InputError(f"{shown}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{shown}: is not UTF-8 text: byte {error.start}") from None
    if not text and not may_be_empty:
        raise InputError(f"{shown}: is empty; the text to search cannot be")
    return text


def open_input(path: str) -> AbstractContextManager[BinaryIO]:
    """Open a file for reading, or standard input for '-', which stays open.

    Raises:
        InputError: that cannot be done.
    """
    if path == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed; name a file")
        return nullcontext(sys.stdin.buffer)
    try:
        return open_file(path, pipes=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def marks_for(out: TextIO) -> tuple[str, str]:
    """What to put around the answer: on a terminal bold, underlined, green; else brackets."""
    if out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        return "\x1b[1;4;32m", "\x1b[0m"
    return "[", "]"


def describe(
    answer: Answer, text: str, name: str, out: TextIO, min_score: float | None = None
) -> str:
    """An answer for people: its text, its sentence with the span marked, and the figures.

    Args:
        answer: to show.
        text: that it stands in.
        name: of the text's file, or empty.
        out: where it will be written.
        min_score: answers below it were left out; None: none were.
    """
    figures = f"score {answer.score:.2f}, probability {answer.probability:.2f}"
    if answer.is_null:
        why = "the text does not seem to say"
        if min_score is not None:
            why = f"{why}, or no answer scores {min_score:g} or more"
        return f"(no answer)\n  {figures}: {why}"
    begin, end = sentence_around(text, answer.start, answer.end)
    before, found, after, name = (
        harmless(part, out)
        for part in (text[begin : answer.start], answer.text, text[answer.end : end], name)
    )
    mark, unmark = marks_for(out)
    sentence = " ".join(f"{before}{mark}{found}{unmark}{after}".split())
    place = f"characters {answer.start} to {answer.end}" + (f" of {name}" if name else "")
    return f"{found}\n  {sentence}\n  {figures}, {place}"
