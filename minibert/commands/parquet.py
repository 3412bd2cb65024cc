"""minibert answer --parquet: the questions of a Parquet file, answers in columns beside them.

Rows are answered as stream.py answers lines, and kept in FILE.unfinished as there.  When all are
there the table is read once more, and written with its new columns.  Nothing of this takes more
memory for a longer file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, TextIO

from minibert.answering import QuestionAnswerer
from minibert.commands.stream import Line, Source, write_file
from minibert.errors import InputError
from minibert.files import is_device, open_file
from minibert.scale.answerer import FIELDS, check_names
from minibert.scale.tables import Column, table_of

PART_ROWS = 256  # that are read at a time
BUFFER_BYTES = 1 << 20  # of each column
GROUP_BYTES = 64 << 20  # of a row group that is written, before it is compressed


def open_parquet(args: argparse.Namespace) -> Any:
    """Open a Parquet file: a ParquetFile of pyarrow.

    Args:
        args: what `minibert answer` was given.

    Raises:
        InputError: it cannot be read, lacks columns of texts, or has a column that would be hidden;
            the output is no file; pyarrow is not installed.
    """
    if is_device(args.output):
        raise InputError(f"{args.output}: a table cannot be written there, only to a file")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            "--parquet needs the package pyarrow: pip install 'minibert-qa[tables]'"
        ) from None
    try:
        with open_file(args.parquet):  # nothing else than a file here, which pyarrow may open then
            pass
        # With a buffer it is read as it goes, without one a whole column of a row group at once.
        file = pyarrow.parquet.ParquetFile(args.parquet, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise unreadable(args.parquet, error) from None
    names = (args.question_column, args.context_column)
    added = [args.prefix + name for name in FIELDS]
    check_names(args.parquet, file.schema_arrow.names, names, added)
    for name in names:
        kind = file.schema_arrow.field(name).type
        values = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if not str(values).endswith(("string", "string_view", "utf8")):
            raise InputError(f"{args.parquet}: column {name!r} must hold texts, its type is {kind}")
    return file


def unreadable(path: str, error: Exception) -> InputError:
    """What there is to say of a file that pyarrow cannot read."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return InputError(f"{path}: cannot be read: {reason}")


def answer_parquet(qa: QuestionAnswerer, file: Any, args: argparse.Namespace) -> None:
    """Answer the questions of a Parquet file into another one.

    Args:
        qa: answers the questions.
        file: as `open_parquet` gives it.
        args: what `minibert answer` was given.

    Raises:
        InputError: some rows hold an error, once all are written; with --strict, the first of them;
            a file cannot be read or written, or belongs to another run that is not finished.
    """
    rows = Source(args.parquet, "row", read_rows(file, args), lambda: file.metadata.num_rows)

    def finish(out: TextIO, answers: Iterator[bytes]) -> None:
        write_table(file, args, out.buffer, map(json.loads, answers))

    write_file(qa, rows, args, finish)


def read_rows(file: Any, args: argparse.Namespace) -> Iterator[Line]:
    """The questions of a Parquet file, in the form of lines of JSON.

    Raises:
        InputError: it is damaged.
    """
    names = [args.question_column, args.context_column]
    number = 0
    for part in read_parts(file, args, names):
        try:
            columns = [part.column(name).to_pylist() for name in names]
        except UnicodeDecodeError as error:  # which pyarrow does not look at before
            raise unreadable(args.parquet, error) from None
        for pair in zip(*columns, strict=True):
            number += 1
            yield number, json.dumps(dict(zip(("question", "context"), pair, strict=True))).encode()


def read_parts(file: Any, args: argparse.Namespace, columns: list[str] | None) -> Iterator[Any]:
    """A Parquet file in parts of some rows: a RecordBatch each.

    Args:
        file: as `open_parquet` gives it.
        args: what `minibert answer` was given.
        columns: names of those to read; None: all.

    Raises:
        InputError: it is damaged.
    """
    from pyarrow import ArrowException

    try:
        yield from file.iter_batches(PART_ROWS, columns=columns)
    except (OSError, ValueError, ArrowException) as error:
        raise unreadable(args.parquet, error) from None


def write_table(file: Any, args: argparse.Namespace, out: Any, answers: Iterator[Any]) -> None:
    """Write a Parquet file with columns for the answers.

    Args:
        file: the questions, as `open_parquet` gives it.
        args: what `minibert answer` was given.
        out: a file to write to, in bytes.
        answers: for each row of the table, an object with an `answer` or an `error`.
    """
    import pyarrow
    import pyarrow.parquet

    def extended(part: Any) -> Any:
        rows = [row.get("answer", {}) | row for row in islice(answers, part.num_rows)]
        columns = [
            Column(args.prefix + name, kind, [row.get(name) for row in rows])
            for name, kind in FIELDS.items()
        ]
        return table_of(part).extended(columns)

    schema = extended(pyarrow.RecordBatch.from_pylist([], file.schema_arrow)).schema
    with pyarrow.parquet.ParquetWriter(out, schema) as writer:
        group: list[Any] = []
        size = 0
        for part in read_parts(file, args, None):
            group.append(extended(part))
            size += group[-1].nbytes
            if size >= GROUP_BYTES:
                writer.write_table(pyarrow.Table.from_batches(group))
                group, size = [], 0
        if group:
            writer.write_table(pyarrow.Table.from_batches(group))
