"""minibert: answer questions from a text with BERT, on this machine.

Examples:
  minibert answer "Who wrote it?" "The play was written by Ann Lee in 1990."
  minibert answer "Who wrote it?" --file play.txt --file notes.txt --top-k 3
  cat play.txt | minibert answer "Who wrote it?" --json
  minibert answer --jsonl questions.jsonl > answers.jsonl
  minibert convert old_model_folder new_folder
  minibert doctor
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from minibert import __version__
from minibert import progress as progress_module
from minibert.errors import BackendError, InputError, MinibertError, ModelNotFoundError
from minibert.progress import progress

if TYPE_CHECKING:
    from minibert.spans import Answer


# ---------------------------------------------------------------- answer


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
        device=args.device,
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


def dump(value: Any) -> str:
    """One line of JSON, in plain UTF-8."""
    return json.dumps(value, ensure_ascii=False)


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
        for answers in progress(results, count_lines(args.jsonl), "questions"):
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


@contextmanager
def writing(path: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears only when it is complete.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        if sys.stdout is None:
            raise InputError("standard output is closed; give --output FILE")
        yield sys.stdout
        return
    target = Path(path)
    if target.exists() and not target.is_file():  # a pipe or /dev/null is no file to be replaced
        try:
            with open(target, "w", encoding="utf-8", errors="backslashreplace") as out:
                yield out
        except ModelNotFoundError:  # an OSError too
            raise
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None
        return
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as out:
            yield out
        os.chmod(draft, 0o644)  # mkstemp's files are for one user only
        os.replace(draft, target)
    except ModelNotFoundError:  # an OSError too
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        Path(draft).unlink(missing_ok=True)


# ---------------------------------------------------------------- convert


def command_convert(args: argparse.Namespace) -> None:
    """Run `minibert convert`."""
    from minibert.conversion import convert

    folder = convert(
        args.model,
        args.output,
        dtype=args.dtype,
        revision=args.revision,
        overwrite=args.overwrite,
    )
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB, {args.dtype}")


# ---------------------------------------------------------------- doctor and warmup


def command_doctor(args: argparse.Namespace) -> None:
    """Run `minibert doctor`."""
    from minibert.doctor import examine

    findings = examine()
    if args.json:
        print(dump(findings))
    else:
        for title, facts in findings.items():
            print(title)
            width = max(map(len, facts))
            for name, fact in facts.items():
                print(f"  {name:{width}}  {fact}")
    bad = [name for name, fact in findings["check"].items() if not fact.startswith("ok")]
    if bad:
        raise BackendError(f"the kernels for {', '.join(bad)} do not compute what they should")


def command_warmup(args: argparse.Namespace) -> None:
    """Run `minibert warmup`."""
    from minibert.doctor import warm_up

    for line in warm_up(args.dtype or ["float32", "bfloat16", "int8"]):
        print(line, flush=True)


# ---------------------------------------------------------------- the command line


def at_least(least: int) -> Any:
    """An argparse type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    parse.__name__ = "whole number"
    return parse


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands and their options."""
    parser = argparse.ArgumentParser(
        prog="minibert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minibert {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    answer = commands.add_parser(
        "answer",
        help="answer a question from a text",
        description="Find the words of a text that answer a question, or say that none do.",
    )
    answer.set_defaults(run=command_answer)
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
    answer.add_argument(
        "--model",
        help="folder, .safetensors file, or name on the Hugging Face "
        "Hub (default: the embedded model)",
    )
    answer.add_argument("--revision", help="branch, tag or commit on the Hub")
    answer.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda", "reference"],
        default="auto",
        help="what to run on (default: auto)",
    )
    answer.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "int8"],
        help="in which numbers to multiply: float32 gives transformers' answers, int8 is about "
        "three times as fast and differs now and then (default: float32)",
    )
    answer.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="cores to use (default: all that this process may)",
    )

    convert = commands.add_parser(
        "convert",
        help="turn an old checkpoint into safetensors, or make it smaller",
        description="Write a model as a folder with model.safetensors, config.json and its "
        "tokenizer. Old pytorch_model.bin files are read without torch, and nothing in them is "
        "executed.",
    )
    convert.set_defaults(run=command_convert)
    convert.add_argument("model", help="folder, weights file, or name on the Hugging Face Hub")
    convert.add_argument("output", help="the folder to write")
    convert.add_argument(
        "--dtype",
        choices=["float32", "float16", "int8"],
        default="float32",
        help="how to store the numbers (default: float32)",
    )
    convert.add_argument("--revision", help="branch, tag or commit on the Hub")
    convert.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")

    doctor = commands.add_parser(
        "doctor",
        help="say what runs here, and check that it computes the right numbers",
        description="Print versions, the processor and the kernels that it gets, and run the "
        "embedded model in each dtype beside the definition in NumPy. The status is 1 if they "
        "differ.",
    )
    doctor.set_defaults(run=command_doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON instead of prose")

    warmup = commands.add_parser(
        "warmup",
        help="compile the kernels now, for instance while an image is built",
        description="Compile the CPU kernels that are not in the cache yet. Without this they "
        "are compiled when they first run. The cache is $MINIBERT_CACHE_DIR, or a folder "
        "'minibert' in the user's cache folder; it must be readable when the kernels run.",
    )
    warmup.set_defaults(run=command_warmup)
    warmup.add_argument(
        "--dtype",
        action="append",
        choices=["float32", "bfloat16", "int8"],
        help="for this dtype; repeat it for several (default: all)",
    )
    return parser


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with status 2 if options contradict each other."""
    if args.command != "answer":
        return
    sources = [name for name in ("text", "file", "jsonl") if getattr(args, name) is not None]
    if args.jsonl is not None and args.question is not None:
        parser.error("with --jsonl the questions come from the file: give no QUESTION")
    if args.jsonl is None and args.question is None:
        parser.error("a QUESTION is needed, or --jsonl FILE")
    if len(sources) > 1:
        parser.error("give the text once: as TEXT, with --file, or with --jsonl")
    if args.null_threshold != args.null_threshold:
        parser.error("argument --null-threshold: must be a number, got nan")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 for bad input, said in one line on stderr; wrong usage exits with 2.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    check_usage(parser, args)
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
        print(f"minibert: error: {line}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `minibert ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("minibert: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
