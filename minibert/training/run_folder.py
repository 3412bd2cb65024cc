"""What a run writes down, so that it can be killed at any moment and go on.

    DIR/                    model.safetensors and the rest of the model, when the run is complete
        best/               the model that scored best so far, whole
        run/
            run.json        what runs: all that the weights depend on
            log.jsonl       a line for every so many steps and for every measurement
            training.html   the same as curves
            checkpoint-N/   the run after N steps; the last two are kept

A checkpoint is written under another name, brought to the disk and then renamed, so it is whole or
not there.  A run that goes on forgets what the log says of later steps: they are done again, and
give the same numbers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minibert import files
from minibert.arrays import Floats
from minibert.documents import to_json
from minibert.drafts import put_back, sweep, synchronise, whole_folder
from minibert.errors import InputError, MinibertError
from minibert.files import json_value, read_file, remedy, unwritable
from minibert.progress import notice
from minibert.training.result import WEIGHTS
from minibert.training.saved_arrays import read_array
from minibert.unfinished import differences, lock

RUN, BEST, HEADER, LOG, PAGE = "run", "best", "run.json", "log.jsonl", "training.html"
STATE = "state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
BLOCK = 2**22  # bytes that are summed at once
LARGEST = 2**63  # of a number in the log


@dataclass
class State:
    """A run between two steps, but for its arrays."""

    step: int = 0  # how many are done
    epoch: int = 0
    place: int = 0  # how many windows of the epoch are done
    updates: int = 0  # steps that changed the weights
    skipped: int = 0  # and that did not
    skipped_in_a_row: int = 0
    norms: list[float] = field(default_factory=list)  # of the last gradients
    losses: list[float] = field(default_factory=list)  # since the last line of the log
    measurement: dict[str, Any] | None = None  # the last one: its step, and SQuAD's numbers
    best: dict[str, Any] | None = None  # the measurement with the highest F1
    since_best: int = 0  # measurements after it
    log_size: int = 0  # bytes of log.jsonl


class RunFolder:
    """The files of a run, while no other process uses them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / RUN
        self.best = folder / BEST

    # ------------------------------------------------------------ the log

    def cut_log(self, size: int) -> None:
        """Forget what the log says beyond its first bytes."""
        with self.writing(self.run / LOG), (self.run / LOG).open("ab") as file:
            file.truncate(min(size, file.tell()))

    def log(self, record: Mapping[str, Any]) -> int:
        """Add a line; the size of the log."""
        with self.writing(self.run / LOG), (self.run / LOG).open("ab") as file:
            file.write(to_json(record).encode() + b"\n")
            return file.tell()

    def records(self) -> list[dict[str, Any]]:
        """All lines of the log but damaged ones: the run does not depend on them."""
        with self.writing(self.run / LOG):
            lines = read_file(self.run / LOG).splitlines()
        found = []
        for line in lines:
            with suppress(ValueError):
                found.append(json_value(line.decode()))
        return list(filter(is_record, found))

    def write_page(self, page: str) -> None:
        """Write training.html."""
        with self.writing(self.run / PAGE), files.writing(str(self.run / PAGE)) as out:
            out.write(page)

    # ------------------------------------------------------------ checkpoints

    def checkpoints(self) -> list[int]:
        """The steps after which there are checkpoints, the last one first."""
        found = (CHECKPOINT.fullmatch(path.name) for path in self.run.iterdir())
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def save(self, state: State, arrays: Mapping[str, Floats], keep: int) -> None:
        """Write a checkpoint, unless there is one of this step; remove the oldest ones.

        Raises:
            InputError: it cannot be written; those before are as they were.
        """
        if state.step in self.checkpoints():
            return
        target = self.run / f"checkpoint-{state.step}"
        with self.writing(target):
            if (self.run / LOG).exists():
                synchronise(self.run / LOG)
            with whole_folder(target) as draft:
                for name, array in arrays.items():
                    np.save(draft / f"{name}.npy", array)
                sums = {name: checksum(array) for name, array in arrays.items()}
                sums[STATE] = checksum_of(state)
                document = json.dumps(asdict(state) | {"checksums": sums})
                (draft / STATE).write_text(document, encoding="utf-8")
        for step in self.checkpoints()[keep:]:
            shutil.rmtree(self.run / f"checkpoint-{step}", ignore_errors=True)

    def restore(self, arrays: Mapping[str, Floats]) -> State | None:
        """Read the last checkpoint that is whole.

        Args:
            arrays: are filled.

        Returns:
            None if there is no checkpoint.

        Raises:
            InputError: all are damaged.
        """
        found = self.checkpoints()
        problems = []
        for step in found:
            path = self.run / f"checkpoint-{step}"
            try:
                return self.read(path, arrays)
            except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
                problems.append(f"{path}: is damaged: {error}")
                notice(f"minibert: {problems[-1]}")
        if found:
            raise InputError(
                "; ".join(problems) + ". Begin again in another folder, or remove this one."
            )
        return None

    def read(self, path: Path, arrays: Mapping[str, Floats]) -> State:
        """Read one checkpoint.

        Raises:
            OSError, EOFError, ValueError, KeyError, TypeError: it is damaged.
        """
        document = json_value(read_file(path / STATE).decode())
        known = [each.name for each in fields(State) if each.name in document]
        state, sums = State(**{name: document[name] for name in known}), document["checksums"]
        # A minibert that knew fewer things of a run wrote another sum, or none.
        if len(known) == len(fields(State)) and sums.get(STATE) not in (None, checksum_of(state)):
            raise ValueError(f"{STATE} is not what was written")
        for name, array in arrays.items():
            read_array(path / f"{name}.npy", array)
            if checksum(array) != sums[name]:
                raise ValueError(f"{name}.npy is not what was written")
        return state

    # ------------------------------------------------------------ the best model

    @contextmanager
    def new_best(self) -> Iterator[Path]:
        """A folder for the best model, which takes the place of the one before."""
        with self.writing(self.best), whole_folder(self.best) as draft:
            yield draft

    def complete(self) -> None:
        """Remove what only an unfinished run needs."""
        for step in self.checkpoints():
            shutil.rmtree(self.run / f"checkpoint-{step}", ignore_errors=True)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Say what cannot be written, and that nothing is lost.

        Raises:
            InputError: an OSError came.
        """
        try:
            yield
        except OSError as error:
            found = self.checkpoints() if self.run.is_dir() else []
            kept = f"The run is kept as it was after {found[0]} steps. " if found else ""
            raise InputError(
                f"{unwritable(path, error)}. {kept}{remedy(error)}, then the same command goes on."
            ) from None


@contextmanager
def run_folder(
    folder: Path, header: Mapping[str, Any], usual: Mapping[str, Any]
) -> Iterator[RunFolder]:
    """Open the folder of a run, a new one or one that was interrupted.

    Args:
        folder: of the run and of its result.
        header: what its result depends on.
        usual: what it means where the header of an older minibert lacks a name.

    Raises:
        InputError: the folder holds something else, a finished model or a run with another header;
            or another process is training there.
    """
    check_folder(folder)
    found = RunFolder(folder)
    with found.writing(found.run):
        found.run.mkdir(parents=True, exist_ok=True)
    path = found.run / HEADER
    try:
        file = path.open("a+b")
    except OSError as error:
        raise unwritable(path, error) from None
    with file:
        lock(file, path)
        write_header(file, path, header, usual, found)
        put_back(found.best)
        for place in (folder, found.run):
            sweep(place)
        try:
            yield found
        except MinibertError:
            log = found.run / LOG
            if not found.checkpoints() and not (log.exists() and log.stat().st_size):
                file.truncate(0)  # nothing was done, so nothing stands in the way of other data
            raise


def write_header(
    file: BinaryIO,
    path: Path,
    header: Mapping[str, Any],
    usual: Mapping[str, Any],
    found: RunFolder,
) -> None:
    """Write what runs, or compare it with what ran before.

    Raises:
        InputError: they differ.
    """
    file.seek(0)
    before = file.read()
    line = json.dumps(header).encode() + b"\n"
    if before and not line.startswith(before):
        with suppress(ValueError):
            if isinstance(document := json_value(before.decode()), dict):
                before = json.dumps({**usual, **document}).encode()
        if different := differences(path, before, header):
            raise InputError(
                f"{path}: a run with other settings: {'; '.join(different)}. Give the same to go "
                "on with it, or choose another output folder."
            )
    elif before != line:
        with found.writing(path):
            file.truncate(0)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def check_folder(folder: Path) -> None:
    """Refuse a folder that is none, or that holds something else than a run.

    Raises:
        InputError: saying what it holds.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; name another for the output")
    if (folder / WEIGHTS).exists():
        raise InputError(
            f"{folder}: holds a finished model, which is never overwritten. Choose another folder."
        )
    with suppress(OSError):
        names = sorted(path.name for path in folder.iterdir())
        if names and not (folder / RUN / HEADER).exists() and names != [RUN]:
            raise InputError(
                f"{folder}: holds {names[0]!r}, and no run to go on with. Choose another folder, "
                "or an empty one."
            )


def is_record(value: Any) -> bool:
    """Whether a value of JSON is a line of a log: its kind, its step, and numbers of the run.

    Example:
        >>> is_record({"kind": "step", "step": 3, "loss": 0.5}), is_record({"kind": "step"})
        (True, False)
    """
    if not isinstance(value, dict) or value.get("kind") not in ("step", "measurement"):
        return False
    if value["kind"] == "measurement" and value.get("f1") is None:
        return False
    numbers = [part for name, part in value.items() if name != "kind" and part is not None]
    return type(value.get("step")) is int and all(
        isinstance(part, int | float) and abs(part) < LARGEST for part in numbers
    )


def checksum_of(state: State) -> int:
    """A number that changes when a state does."""
    return zlib.crc32(json.dumps(asdict(state)).encode())


def checksum(array: Floats) -> int:
    """CRC-32 of an array's bytes."""
    view = np.ascontiguousarray(array).view(np.uint8)
    total = 0
    for begin in range(0, len(view), BLOCK):
        total = zlib.crc32(view[begin : begin + BLOCK].data, total)
    return total
