"""The files of an evaluation: what it writes down while it runs, and what it leaves.

Each answer is kept in unfinished.jsonl as it comes, so that a run that was interrupted goes on from
there; a finished one leaves run_squad's three files instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO

from minibert.documents import to_json
from minibert.errors import InputError, MinibertError
from minibert.files import writing
from minibert.model import Model
from minibert.options import check_path
from minibert.squad.decoders import Prediction, SquadSettings
from minibert.squad.files import SquadData, SquadQuestion
from minibert.squad.predictions import is_answer, is_number
from minibert.unfinished import begin_again, header_of, keeper, lines_of, unfinished

UNFINISHED = "unfinished.jsonl"
OUTPUTS = ("predictions.json", "nbest_predictions.json", "null_odds.json")


def write_outputs(folder: Path, found: Mapping[str, Prediction]) -> None:
    """Write all files of a run; each appears when it is complete.

    Raises:
        InputError: they cannot be written.
    """
    contents: list[dict[str, Any]] = [
        {key: answer.text for key, answer in found.items()},
        {key: answer.n_best for key, answer in found.items()},
        {key: a.null_odds for key, a in found.items() if a.null_odds is not None},
    ]
    with ExitStack() as stack:
        for name, content in zip(OUTPUTS, contents, strict=True):
            if not content:  # what an earlier run left would not belong to the others
                (folder / name).unlink(missing_ok=True)
            else:
                file = stack.enter_context(writing(str(folder / name)))
                file.write(to_json(content, indent=4) + "\n")


@contextmanager
def journal(
    output_dir: str | Path | None,
    model: Model,
    data: SquadData,
    settings: SquadSettings,
    overwrite: bool,
) -> Iterator[tuple[dict[str, Prediction], Any]]:
    """Keep each answer of a run as it comes, in unfinished.jsonl.

    Yields:
        The answers of an interrupted run, and a function that keeps one more.

    Raises:
        InputError: the folder cannot be written, another run is writing there, or it holds results
            of a finished run or an unfinished one with other settings.
    """
    if output_dir is None:
        yield {}, lambda key, answer: None
        return
    folder = check_path("output_dir", output_dir)
    path = folder / UNFINISHED
    check_folder(folder, overwrite)
    settings_of_run = {"data": data.digest, "questions": len(data.questions), **asdict(settings)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    header = header_of(model, settings_of_run)
    with unfinished(path, header, overwrite) as file:
        try:
            kept = read_records(path, file, data.questions, settings.with_null)
        except InputError:
            if not overwrite:
                raise
            begin_again(file, header)
            kept = {}

        keep_line = keeper(file)

        def keep(key: str, answer: Prediction) -> None:
            keep_line(to_json({"id": key, **asdict(answer)}).encode())

        try:
            yield kept, keep
        except MinibertError as error:
            raise type(error)(f"{error} (what is finished is kept in {path})") from None


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse an output folder that cannot be one, or holds the results of a finished run.

    Raises:
        InputError: it is none, or they are there and may not be overwritten.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder}: is not a folder; name another for the output")
    present = [name for name in OUTPUTS if os.path.exists(folder / name)]
    if present and not overwrite and not os.path.exists(folder / UNFINISHED):
        raise InputError(
            f"{folder}: holds {' and '.join(present)} already. Choose another folder, or overwrite "
            "them (--overwrite)."
        )


def read_records(
    path: Path, file: BinaryIO, questions: Sequence[SquadQuestion], with_null: bool
) -> dict[str, Prediction]:
    """The answers that an interrupted run has left.

    Args:
        path: of its file, for messages.
        file: at the line after its header.
        questions: of the run that wants to go on.
        with_null: whether answers of that run have null odds.

    Raises:
        InputError: the file is damaged.
    """
    known = {question.id for question in questions}
    kept: dict[str, Prediction] = {}
    for number, line in enumerate(lines_of(file), 2):
        key, answer = read_record(path, number, line)
        fits = (answer.null_odds is not None) == with_null
        if key not in known or key in kept or not fits:
            raise damaged(path, number)
        kept[key] = answer
    return kept


def read_record(path: Path, number: int, line: bytes) -> tuple[str, Prediction]:
    """One answer of an interrupted run.

    Raises:
        InputError: the line is damaged.
    """
    try:
        record = json.loads(line)
        values = {f.name: record[f.name] for f in fields(Prediction)}
        start, end = values["span"]
        odds, probability = values["null_odds"], values["probability"]
        if (
            all(isinstance(value, str) for value in (record["id"], values["text"]))
            and isinstance(values["best_text"], str)
            and (odds is None or is_number(odds))
            and is_number(probability)
            and 0 <= probability < 1.001  # sums of roundings
            and type(start) is type(end) is int
            and 0 <= start <= end
            and isinstance(values["n_best"], list)
            and all(map(is_answer, values["n_best"]))
        ):
            return record["id"], Prediction(**values | {"span": (start, end)})
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise damaged(path, number)


def damaged(path: Path, number: int) -> InputError:
    """What there is to say of a line that no run has written."""
    return InputError(
        f"{path}, line {number}: is damaged. Begin again with --overwrite, or in another folder."
    )
