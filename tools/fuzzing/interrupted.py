"""Seeds: what runs have left that were interrupted, and the commands that go on with them."""

from __future__ import annotations

import functools
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

from fuzzing import seeds
from minibert.cli import main
from minibert.model import Model
from minibert.squad.decoders import Answerer
from minibert.training.trainer import Trainer

MODEL = ["--model", ".", "--device", "reference"]
DATA = ["--data", "squad.json", "--output-dir", "run"]
# name -> the command; and what is called again and again in it, until it is interrupted.
RUNS: dict[str, tuple[list[str], type, str]] = {
    "answers": (
        ["answer", "--jsonl", "rows.jsonl", "--output", "answers.jsonl", "--batch-size", "1"],
        *(Model, "begin"),
    ),
    "evaluation": (["evaluate", *DATA, "--decoder", "answerer"], *(Answerer, "decode")),
    "training": (
        ["train", *DATA, "--max-steps=4", "--save-steps=1", "--doc-stride=30", "--held-out=0"],
        *(Trainer, "step"),
    ),
}
LEFT = ("answers.jsonl.unfinished", "run/")  # how names begin of what a run has left


@functools.cache
def interrupted(run: str) -> seeds.Folder:
    """The files of a run that was interrupted: what it was given, and what it has left."""
    with tempfile.TemporaryDirectory() as name, inside(name):
        for file, content in (seeds.model("bert") | seeds.squad() | seeds.rows()).items():
            Path(file).write_bytes(content)
        command, kind, method = RUNS[run]
        with stopping(kind, method), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            status = main([*command, *MODEL])
        files = {
            path.relative_to(Path.cwd()).as_posix(): path.read_bytes()
            for path in sorted(Path.cwd().rglob("*"))
            if path.is_file()
        }
    if status != 130 or not any(file.startswith(LEFT) for file in files):
        raise RuntimeError(f"the run of {run} ended with {status} and left {sorted(files)}")
    return files


@contextmanager
def inside(folder: str) -> Iterator[None]:
    """With another current folder."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def stopping(kind: type, method: str) -> Iterator[None]:
    """Interrupt the program, as Ctrl-C does, when a method is called for the third time."""
    usual, calls = getattr(kind, method), count(1)

    def called(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return usual(*arguments, **options)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with mock.patch.object(kind, method, called):
            yield
    finally:
        signal.signal(signal.SIGINT, before)
