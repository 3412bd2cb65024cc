"""minibert answer --jsonl: many questions, an object of JSON a line, read and written as they come.

parquet.py gives its rows the same form.

A row that cannot be answered becomes a row with an error, in its place.  With an output file, rows
are kept in FILE.unfinished until all are there, each after the digest of the line that it answers:
so a run that was interrupted knows what is done, wherever its questions come from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeAlias

from minibert.answering import Context, QuestionAnswerer
from minibert.commands.options import dump
from minibert.errors import InputError, MinibertError
from minibert.files import is_device, json_value, open_file, real_file, writing
from minibert.progress import notice, on_terminal, progress
from minibert.unfinished import header_of, keeper, lines_of, unfinished

Line: TypeAlias = tuple[int, bytes]  # its number in the file, from 1, and what stands on it

RECORD = re.compile(rb"([0-9a-f]{16}) (ok|bad) (\{.*\})")  # a line of FILE.unfinished


@dataclass(frozen=True)
class Source:
    """Many questions, and where they come from."""

    name: str  # of the file
    unit: str  # what a question stands on: a line, a row
    lines: Iterator[Line]
    count: Callable[[], int | None]  # how many questions there are, if that can be known


@dataclass(frozen=True)
class Row:
    """A row of the output."""

    digest: bytes  # of the line that it answers
    text: str  # one line of JSON
    error: str | None  # that it holds instead of an answer


def answer_rows(qa: QuestionAnswerer, source: BinaryIO, args: argparse.Namespace) -> None:
    """Answer a JSON-lines file: a row out for each row in, in the same order.

    Args:
        qa: answers the questions.
        source: the file, open.
        args: what `minibert answer` was given.

    Raises:
        InputError: some rows hold an error, once all are written; with --strict, the first of them;
            the output cannot be written, or belongs to another run that is not finished.
    """
    lines = read_lines(source, args.jsonl)
    questions = Source(args.jsonl, "line", lines, lambda: count_lines(args.jsonl))
    if args.output is None or is_device(args.output):
        check_lengths(qa, args)
        with writing(args.output) as out:

            def write(row: Row) -> None:
                out.write(row.text + "\n")
                out.flush()

            bad = write_rows(qa, questions, args, write)
        complain(questions, bad)
    else:

        def finish(out: TextIO, rows: Iterator[bytes]) -> None:
            for row in rows:
                out.write(row.decode() + "\n")

        write_file(qa, questions, args, finish)


def check_lengths(qa: QuestionAnswerer, args: argparse.Namespace) -> None:
    """Refuse lengths that leave no room for the shortest question: no row is at fault.

    Raises:
        InputError: they do not.
    """
    qa.model.windows("?", ["?"], max_seq_length=args.max_seq_length, doc_stride=args.doc_stride)


def complain(source: Source, bad: int) -> None:
    """Say how many rows hold an error, once all are written.

    Raises:
        InputError: some do.
    """
    if bad:
        raise InputError(f"{source.name}: rows with an error instead of an answer: {bad}")


def write_rows(
    qa: QuestionAnswerer,
    source: Source,
    args: argparse.Namespace,
    write: Callable[[Row], None],
    done: int = 0,
) -> int:
    """Answer questions and write a row for each, as soon as it is there.

    Args:
        qa: answers the questions.
        source: with the lines that are still to be answered.
        args: what `minibert answer` was given.
        write: writes a row.
        done: how many lines were answered before.

    Returns:
        How many rows hold an error.

    Raises:
        InputError: with --strict, the first bad row.
        KeyboardInterrupt: as it came, and saying what can be done.
    """
    total = source.count() if on_terminal(sys.stderr) else None
    rows = answer_lines(qa, source, args)
    bad = 0
    try:
        for row in progress(rows, total, "questions", done=done, with_results=args.output is None):
            if row.error and args.strict:
                raise InputError(row.error)
            write(row)
            bad += row.error is not None
    except KeyboardInterrupt as stop:
        raise type(stop)(
            "what is finished is written; with --output FILE, the same command would go on"
        ) from None
    return bad


def write_file(
    qa: QuestionAnswerer,
    source: Source,
    args: argparse.Namespace,
    finish: Callable[[TextIO, Iterator[bytes]], None],
) -> None:
    """Answer questions into a file that appears when all rows are there.

    Args:
        qa: answers the questions.
        source: the questions, all of them.
        args: what `minibert answer` was given.
        finish: writes the file, from all rows in their order, each an object of JSON.

    Raises:
        InputError: as write_rows; some rows hold an error, once all are written; or the file
            belongs to another run that is not finished.
    """
    check_lengths(qa, args)
    target = real_file(args.output)
    path = target.with_name(f"{target.name}.unfinished")
    settings = {"top_k": args.top_k, **asdict(qa.options)}
    header = header_of(qa.model, settings)
    with unfinished(path, header, args.overwrite) as file:
        done, bad, rest = skip_answered(file, path, source, args)
        if done:
            notice(f"rows answered before: {done}")

        keep = keeper(file)

        def write(row: Row) -> None:
            text = row.text.encode("utf-8", "backslashreplace")
            keep(b"%s %s %s" % (row.digest, b"bad" if row.error else b"ok", text))

        try:
            bad += write_rows(qa, replace(source, lines=rest), args, write, done)
        except MinibertError as error:
            raise type(error)(f"{error} (what is finished is kept in {path})") from None
        file.seek(0)
        file.readline()
        with writing(args.output) as out:
            finish(out, (record.split(b" ", 2)[2] for record in lines_of(file)))
    complain(source, bad)


def skip_answered(
    file: BinaryIO, path: Path, source: Source, args: argparse.Namespace
) -> tuple[int, int, Iterator[Line]]:
    """Pass over the lines that an interrupted run has answered.

    Args:
        file: of that run, at the line after its header.
        path: of the file, for messages.
        source: the questions, all of them.
        args: what `minibert answer` was given; with --overwrite, rows are dropped from the first
            on that does not fit.

    Returns:
        How many lines are answered, how many of them with an error, and the other lines.

    Raises:
        InputError: the file is damaged, or answers other lines.
    """
    done = bad = 0
    lines = source.lines
    for record in lines_of(file):
        line = next(lines, None)
        match = RECORD.fullmatch(record)
        if match is None or not is_object(match[3]):
            problem = f"{path}, line {done + 2}: is damaged"
        elif line is None:
            problem = f"{path}: an unfinished run over more rows than the {done} of {source.name}"
        elif match[1] != digest(line[1]):
            problem = f"{path}: an unfinished run over a file with another {source.unit} {line[0]}"
        else:
            done += 1
            bad += match[2] == b"bad"
            continue
        if not args.overwrite:
            raise InputError(
                f"{problem}. Give the same {source.name} to go on with it, choose another output, "
                "or let what fits be kept and the others be answered again with --overwrite."
            )
        file.truncate(file.tell() - len(record) - 1)
        return done, bad, lines if line is None else chain([line], lines)
    return done, bad, lines


def is_object(text: bytes) -> bool:
    """Whether this is an object of JSON, so that a row may be written as it stands here.

    Example:
        >>> is_object(b'{"score": 1.5}'), is_object(b'{"score": NaN}'), is_object(b'{"sco": 1.5')
        (True, False, False)
    """
    try:  # of the constants NaN and Infinity, int makes a ValueError
        return isinstance(json_value(text.decode(), parse_constant=int), dict)
    except ValueError:
        return False


def digest(content: bytes) -> bytes:
    """What tells a line from others: 16 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=8).hexdigest().encode()


def answer_lines(qa: QuestionAnswerer, source: Source, args: argparse.Namespace) -> Iterator[Row]:
    """Answer lines together, in packed batches; a row for each, in their order."""
    waiting: deque[tuple[int, bytes, dict[str, Any]]] = deque()  # answers are still to come

    def examples() -> Iterator[tuple[str, Context] | InputError]:
        for number, content in source.lines:
            fields, example = parse_line(content)
            waiting.append((number, digest(content), fields))
            yield example

    for answers in qa.n_best_or_error(examples(), args.top_k, batch_size=args.batch_size):
        number, of_line, fields = waiting.popleft()
        if isinstance(answers, InputError):
            error = f"{source.name}, {source.unit} {number}: {answers}"
            yield Row(of_line, dump(fields | {"error": error}), error)
        else:
            found = [answer.to_dict() for answer in answers]
            shown = {"answer": found[0]} if args.top_k == 1 else {"answers": found}
            yield Row(of_line, dump(fields | shown), None)


def parse_line(content: bytes) -> tuple[dict[str, Any], tuple[str, Context] | InputError]:
    """One question of a JSON-lines file.

    Returns:
        All fields but the context, as far as they can be read, with another name where the answer
        would take theirs; and the question and its context, still unchecked, or why there are none.
    """
    try:
        row = json.loads(
            content.decode(),
            parse_float=finite,
            parse_constant=finite,
            object_pairs_hook=without_doubles,
        )
    except UnicodeDecodeError:
        return {}, InputError("is not UTF-8 text")
    except InputError as error:  # of without_doubles
        return {}, error
    except (ValueError, RecursionError) as error:
        return {}, InputError(f"is not JSON: {error}")
    if not isinstance(row, dict):
        return {}, InputError(f"must be an object, found {type(row).__name__}")
    fields = {
        f"input_{key}" if key in ("answer", "answers", "error") else key: value
        for key, value in row.items()
        if key != "context"
    }
    for key in ("question", "context"):
        if key not in row:
            return fields, InputError(f"has no {key!r}; found {', '.join(row) or 'nothing'}")
    return fields, (row["question"], row["context"])


def finite(text: str) -> float | None:
    """A number of JSON; None for NaN and infinities, which JSON does not have, but Python writes.

    Example:
        >>> finite("1.5"), finite("NaN"), finite("1e999")
        (1.5, None, None)
    """
    number = float(text)
    return number if math.isfinite(number) else None


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        InputError: a key stands twice, so that one of its values would be lost.
    """
    row = dict(pairs)
    if len(row) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        double = next(key for key, count in counts.items() if count > 1)
        raise InputError(f"the key {double!r} stands twice")
    return row


def read_lines(source: BinaryIO, path: str) -> Iterator[Line]:
    """The lines of a file that are not blank, as they come.

    Raises:
        InputError: it cannot be read.
    """
    try:
        for number, line in enumerate(source, 1):
            content = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
            if content:
                yield number, content
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def count_lines(path: str) -> int | None:
    """How many questions a file holds; None for what can be read only once."""
    try:
        with open_file(path) as file:
            return sum(1 for _ in read_lines(file, path))
    except OSError:
        return None
