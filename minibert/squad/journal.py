"""The files of an evaluation: what it writes down while it runs, and what it leaves.

Each answer is kept in unfinished.jsonl as it comes, after a first line that says what runs.  A run
that was interrupted goes on from there; a finished one leaves run_squad's three files instead.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

from minibert import __version__
from minibert.errors import InputError
from minibert.files import writing
from minibert.model import Model
from minibert.progress import notice
from minibert.squad.decoders import Prediction, SquadSettings
from minibert.squad.files import SquadData, SquadQuestion, is_answer, is_number

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
                json.dump(content, file, indent=4)
                file.write("\n")


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
    if not isinstance(output_dir, str | os.PathLike):
        raise InputError(f"output_dir must be a folder's name, got {output_dir!r:.80}")
    folder = Path(os.path.expanduser(output_dir))
    path = folder / UNFINISHED
    check_folder(folder, overwrite)
    header = {"minibert": __version__, "data": data.digest, **asdict(settings)}
    header |= {"questions": len(data.questions), "device": model.device, "dtype": model.dtype}
    header |= {"model": model.files.digest() if model.files else model.name}
    header |= {"tokenizer": hashlib.sha256(model.tokenizer.backend.to_str().encode()).hexdigest()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            lock(file, path)
            file.seek(0)
            before = file.read()
            kept, length = read_journal(path, before, header, data.questions, overwrite)
            file.truncate(length)

            def write(record: dict[str, Any]) -> None:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()

            def keep(key: str, answer: Prediction) -> None:
                write({"id": key, **asdict(answer)})

            if not length:
                write(header)
            try:
                yield kept, keep
            except KeyboardInterrupt:
                notice(f"what was answered is kept in {path}; the same command goes on from there")
                raise
            if os.name != "nt":  # while it is locked; Windows cannot remove what is open
                path.unlink()
        if os.name == "nt":
            path.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse an output folder that cannot be one, or holds the results of a finished run.

    Raises:
        InputError: it is none, or they are there and may not be overwritten.
    """
    if "\0" in str(folder):
        raise InputError(f"{str(folder)!r}: no folder can have that name")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder}: is not a folder; name another for the output")
    path = folder / UNFINISHED
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
        raise InputError(f"{path}: is not a file of an earlier run; remove it")
    present = [name for name in OUTPUTS if os.path.exists(folder / name)]
    if present and not overwrite and not os.path.exists(path):
        raise InputError(
            f"{folder}: holds {' and '.join(present)} already. Choose another folder, or overwrite "
            "them (--overwrite)."
        )


def read_journal(
    path: Path,
    content: bytes,
    header: dict[str, Any],
    questions: Sequence[SquadQuestion],
    overwrite: bool,
) -> tuple[dict[str, Prediction], int]:
    """What an interrupted run has left.

    Args:
        path: of its file, for messages.
        content: of the file.
        header: of the run that wants to go on.
        questions: of that run.
        overwrite: begin again, rather than refuse what cannot be gone on with.

    Returns:
        The answers, and how many bytes of the file hold them: a last line that was cut off does not
        count.

    Raises:
        InputError: the file is damaged, or of a run with other settings.
    """
    length = content.rfind(b"\n") + 1
    try:
        if not length:
            if not json.dumps(header).encode().startswith(content):
                raise InputError(f"{path}: is not the file of an earlier run; remove it")
            return {}, 0
        first, *rest = content[:length].split(b"\n")[:-1]
        check_header(path, first, header)
        known = {question.id for question in questions}
        kept: dict[str, Prediction] = {}
        for number, line in enumerate(rest, 2):
            key, answer = read_record(path, number, line)
            fits = (answer.null_odds is not None) == header["with_null"]
            if key not in known or key in kept or not fits:
                raise damaged(path, number)
            kept[key] = answer
    except InputError:
        if not overwrite or not length or b'"minibert"' not in content[:length].split(b"\n")[0]:
            raise
        return {}, 0
    return kept, length


def lock(file: IO[bytes], path: Path) -> None:
    """Refuse a second run in the same folder, where the system can tell.

    Raises:
        InputError: another process is writing there.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path}: another run is writing there") from None
    except OSError:  # this file system has no locks
        return


def check_header(path: Path, line: bytes, header: dict[str, Any]) -> None:
    """Refuse to go on with a run that was begun with other settings.

    Raises:
        InputError: naming what differs.
    """
    try:
        before = json.loads(line)
    except (ValueError, RecursionError):
        before = None
    if not isinstance(before, dict) or "minibert" not in before:
        raise InputError(f"{path}: is not the file of an earlier run; remove it")
    different = [
        f"{name} was {before.get(name)!r:.40} and is {value!r:.40}"
        for name, value in header.items()
        if before.get(name) != value
    ]
    if different:
        raise InputError(
            f"{path}: an unfinished run with other settings: {'; '.join(different)}. Give the same "
            "to go on with it, choose another folder, or begin again with --overwrite."
        )


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
