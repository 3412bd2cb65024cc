"""What a case does, and what must hold.

Bad input ends in a MinibertError, or in status 1 or 2 of the command.  Of what is taken, answers
stand where they say, their numbers are finite, both devices and both times give the same, and JSON
is JSON.  No file outside of the case's folder is opened on behalf of a file in it.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing import seeds, values
from fuzzing.kinds import Case
from minibert.answering import QuestionAnswerer
from minibert.checkpoints.conversion import convert
from minibert.checkpoints.safetensors import open_checkpoint
from minibert.cli import main
from minibert.errors import MinibertError
from minibert.model import Model, load_model
from minibert.pipelines import pipeline
from minibert.squad.decoders import SquadSettings
from minibert.squad.evaluation import evaluate
from minibert.squad.files import read_squad

OUTCOMES = "ok refused exception slow memory hang crash nan escape wrong".split()
GOOD = ("ok", "refused")

LARGEST_WEIGHT = 100.0  # beyond it, roundings of two devices may grow to anything
LOGITS_APART = 1e-3  # of the largest logit, and at least of 1: what two devices may differ by


@dataclass(frozen=True)
class Verdict:
    """What came of a case."""

    outcome: str  # one of OUTCOMES
    where: str = ""  # what two failures of one cause have in common
    detail: str = ""  # for people
    seconds: float = 0.0  # of the processor

    @property
    def good(self) -> bool:
        """Whether all is as promised."""
        return self.outcome in GOOD


class Overtime(BaseException):
    """A case takes too long; no `except Exception` may stop it."""


class Broken(Exception):
    """What must hold does not."""

    def __init__(self, outcome: str, what: str) -> None:
        super().__init__(what)
        self.outcome = outcome


def judge(case: Case, folder: Path) -> Verdict:
    """Run a case in its folder, which is empty and the current one."""
    try:
        lay_out(case, folder)
        return RUNS.get(case.kind, run_model)(case, folder) or Verdict("ok")
    except MinibertError as error:
        return check_message(error)
    except Broken as error:
        return Verdict(error.outcome, place_of(error), str(error))
    except values.Own:
        return Verdict("refused")  # the error of an object that was passed in
    except MemoryError as error:
        return Verdict("memory", place_of(error), traceback.format_exc())
    except Overtime as error:
        return Verdict("slow", place_of(error), traceback.format_exc())
    except BaseException as error:  # SystemExit and panics of native code, too
        where = f"{type(error).__name__} {place_of(error)}"
        return Verdict("exception", where, traceback.format_exc())


def place_of(error: BaseException) -> str:
    """The last line of minibert's that an error came through."""
    frames = [
        f"{Path(frame.filename).name}:{frame.name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if f"{os.sep}minibert{os.sep}" in frame.filename or f"{os.sep}kernels{os.sep}" in frame.filename
    ]
    return frames[-1] if frames else traceback.format_exception_only(error)[-1][:80]


def check_message(error: MinibertError) -> Verdict:
    """An error says something that can be read and printed."""
    try:
        text = str(error)
    except Exception as problem:
        return Verdict("exception", place_of(problem), traceback.format_exc())
    if not text.strip() or len(text) > 20_000:
        return Verdict("wrong", place_of(error), f"a message of {len(text)} characters: {text:.300}")
    return Verdict("refused", detail=text)


def lay_out(case: Case, folder: Path) -> None:
    """Write the files of a case."""
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    for name, what in case.call.get("places", {}).items():
        path = folder / name
        path.unlink(missing_ok=True)
        match what:
            case "fifo":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "dangling":
                path.symlink_to("nowhere")
            case "loop":
                path.symlink_to(name)
            case "null" | "zero":
                path.symlink_to(f"/dev/{what}")
            case "unreadable":
                path.symlink_to("/proc/self/mem")
            case "lfs":
                path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
            case _:
                path.write_bytes(b"")


# ---------------------------------------------------------------- models


def run_model(case: Case, folder: Path) -> Verdict | None:
    """Load a folder on both devices, answer, and compare."""
    call = case.call
    reference = load_model(folder, device="reference")
    try:
        fast = load_model(folder, device="cpu", num_threads=1)
    except MinibertError as error:
        raise Broken("wrong", f"loads on the reference, not on the processor: {error}") from None
    question, texts, options = call["question"], call["texts"], call["options"]
    faces = [QuestionAnswerer(model, **options) for model in (reference, fast)]
    found = faces[0].n_best(question, texts, 5)
    for face in faces:
        answers = face.n_best(question, texts, 5)
        for answer in answers:
            check_answer(asdict(answer), texts)
        if face is faces[0] and answers != found:
            raise Broken("wrong", f"not the same twice: {found} and {answers}")
    if comparable(reference):
        compare(reference, fast, question, texts, options)
    piped = pipeline("question-answering", model=fast)
    results = piped(question=question, context=texts[0], top_k=3, max_answer_len=10)
    check_results(results, texts[0])
    return None


def comparable(model: Model) -> bool:
    """Whether two devices must come to the same, but for rounding."""
    if model.files is None or not model.files.weights.name.endswith((".safetensors", ".json")):
        return True
    checkpoint = open_checkpoint(model.files.weights)
    with np.errstate(over="ignore"):
        return all(
            np.abs(checkpoint.read(name)).max(initial=0) <= LARGEST_WEIGHT for name in checkpoint
        )


def compare(
    reference: Model, fast: Model, question: str, texts: list[str], options: dict[str, Any]
) -> None:
    """Both devices give the same logits, but for rounding."""
    names = ("max_seq_length", "doc_stride", "max_question_length")
    chosen = {name: options[name] for name in names if name in options}
    windows = reference.windows(question, texts, **chosen)[:8]
    pairs = zip(reference.logits(windows), fast.logits(windows), strict=True)
    for ours, theirs in pairs:
        apart = np.abs(np.subtract(ours, theirs)).max()
        if not apart <= LOGITS_APART * max(1.0, np.abs(ours).max()):
            raise Broken("wrong", f"logits of the two devices differ by {apart}")


def check_answer(answer: dict[str, Any], texts: list[str]) -> None:
    """An answer of QuestionAnswerer stands where it says."""
    for name in ("score", "probability", "null_score"):
        if not math.isfinite(answer[name]):
            raise Broken("nan", f"{name} is {answer[name]}")
    if not 0 <= answer["probability"] <= 1 + 1e-6:
        raise Broken("wrong", f"probability {answer['probability']}")
    if answer["text"] and answer["text"] != texts[answer["document"]][answer["start"] : answer["end"]]:
        raise Broken("wrong", f"the text is not where it says: {answer}")
    if not answer["text"] and (answer["start"], answer["end"]) != (0, 0):
        raise Broken("wrong", f"no answer, at {answer['start']} to {answer['end']}")


def check_results(results: Any, text: str | None = None) -> None:
    """What the pipeline gives is JSON, and stands where it says."""
    try:
        json.dumps(results, allow_nan=False)
    except ValueError as error:
        raise Broken("nan", f"{error}: {results}") from None
    for result in results if isinstance(results, list) else [results]:
        if isinstance(result, list):
            check_results(result, text)
        elif not result["score"] >= 0:
            raise Broken("wrong", f"a score of {result['score']}")
        elif text is not None and result["answer"] != text[result["start"] : result["end"]]:
            raise Broken("wrong", f"the text is not where it says: {result}")


def run_conversion(case: Case, folder: Path) -> Verdict | None:
    """Convert a model of another format, and load what came of it."""
    target = folder / "out"
    try:
        convert(folder, target)
    except MinibertError:
        if target.exists() or list(folder.glob(".out*")):
            raise Broken("wrong", "a conversion that failed left something behind") from None
        raise
    load_model(target, device="reference")
    return None


def run_squad(case: Case, folder: Path) -> Verdict | None:
    """Read a SQuAD file; if it is small, answer it."""
    data = read_squad(folder / "squad.json")
    if sum(len(each.context) + len(each.question) for each in data.questions) > 20_000:
        return None
    settings = SquadSettings(decoder=case.call["decoder"], max_seq_length=96, doc_stride=30)
    run = evaluate(loaded("bert"), data, settings)
    check_json(json.dumps(run.metrics).encode())
    return None


# ---------------------------------------------------------------- arguments


_LOADED: dict[str, Model] = {}


def loaded(family: str) -> Model:
    """The unchanged tiny model of a family; made before processes are forked."""
    return _LOADED[family]


def load_all(folder: Path) -> None:
    """Load every family's model once."""
    for family in seeds.FAMILIES:
        place = folder / family
        place.mkdir()
        for name, content in seeds.model(family).items():
            (place / name).write_bytes(content)
        _LOADED[family] = load_model(place, device="cpu", num_threads=1)
        _LOADED[family].logits(_LOADED[family].windows("who?", ["ada"]))


def evaluated(case: Case, folder: Path) -> tuple[Any, ...]:
    """The arguments of a case: of the making, the question, the text, of the call."""
    family = json.loads(case.files["config.json"])["model_type"]
    names = {**values.NAMES, "loaded": loaded(family), "folder": folder}

    def value(text: str) -> Any:
        return eval(text, dict(names))  # our own expressions

    make, call = ({k: value(v) for k, v in case.call[part].items()} for part in ("make", "call"))
    return make, value(case.call["question"]), value(case.call["context"]), call


def run_answerer(case: Case, folder: Path) -> Verdict | None:
    """QuestionAnswerer with odd arguments."""
    make, question, context, call = evaluated(case, folder)
    face = QuestionAnswerer(make.pop("model", None), **make)
    repr(face)
    method = case.call["method"]
    if method.endswith("many"):
        found = list(getattr(face, method)([(question, context)], **call))
    else:
        found = [getattr(face, method)(question, context, **call)]
    texts = context if isinstance(context, list) else [context]
    known = all(type(text) is str for text in texts)
    for answers in found:
        for answer in answers if isinstance(answers, list) else [answers]:
            check_answer(asdict(answer), texts if known else [""] * 9) if known else None
            json.dumps(asdict(answer), allow_nan=False)
    return None


def run_pipeline(case: Case, folder: Path) -> Verdict | None:
    """The pipeline with odd arguments."""
    make, question, context, call = evaluated(case, folder)
    face = pipeline(make.pop("task", "question-answering"), make.pop("model", None), **make)
    repr(face)
    match case.call["form"]:
        case "names":
            results = face(question=question, context=context, **call)
        case "positions":
            results = face(question, context, **call)
        case "dict":
            results = face({"question": question, "context": context}, **call)
        case "list":
            results = face([{"question": question, "context": context}] * 2, **call)
        case _:
            results = face(question, **call)
    check_results(list(results) if isinstance(results, Iterator) else results)
    return None


# ---------------------------------------------------------------- the command line


def run_command(case: Case, folder: Path) -> Verdict | None:
    """The command line, in this process."""
    argv = list(case.call["argv"])
    for name in ("null", "zero", "full"):
        (folder / name).symlink_to(f"/dev/{name}")
    os.mkfifo(folder / "pipe")
    given = folder / ".stdin"
    given.write_text(case.call["stdin"], encoding="utf-8", errors="surrogatepass")
    with standard_streams(given, folder / ".stdout", folder / ".stderr"):
        try:
            status: Any = main(argv)
        except SystemExit as end:
            status = end.code
    said = (folder / ".stderr").read_text(encoding="utf-8", errors="replace")
    printed = (folder / ".stdout").read_bytes()
    if status not in (0, 1, 2):
        raise Broken("exception", f"status {status!r}: {said[-2000:]}")
    if "Traceback (most" in said or "panicked" in said:
        raise Broken("exception", said[-2000:])
    if status == 1 and not said.rpartition("\n\0")[2].count("minibert: error: "):
        raise Broken("wrong", f"status 1 without an error: {said[-2000:]}")
    helping = {"-h", "--help", "--version"} & {*argv}
    if status != 2 and not helping and ("--json" in argv or "--jsonl" in argv or argv[:1] in (["evaluate"],)):
        for line in printed.splitlines() if "--jsonl" in argv else [printed]:
            check_json(line)
    written = folder / "answers.jsonl"
    if status == 0 and "--jsonl" in argv and written.is_file():
        for line in written.read_bytes().splitlines():
            check_json(line)
    return Verdict("refused", detail=said) if status else None


def check_json(content: bytes) -> None:
    """It is JSON in which no number is NaN or infinite."""

    def no(constant: str) -> Any:
        raise Broken("nan", f"{constant} in JSON: {content[:300]!r}")

    if content.strip():
        try:
            json.loads(content, parse_constant=no)
        except ValueError as error:
            raise Broken("wrong", f"no JSON: {error}: {content[:300]!r}") from None


@contextmanager
def standard_streams(given: Path, out: Path, err: Path) -> Iterator[None]:
    """Standard input from a file, standard output and standard error into files."""
    before = sys.stdin, sys.stdout, sys.stderr
    kept = [os.dup(number) for number in range(3)]
    modes = os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT
    try:
        for number, (path, mode) in enumerate(zip((given, out, err), modes, strict=True)):
            opened = os.open(path, mode)
            os.dup2(opened, number)
            os.close(opened)
        sys.stdin, sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.open(number, mode, closefd=False), encoding="utf-8")  # type: ignore
            for number, mode in enumerate(("rb", "wb", "wb"))
        )
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
            os.close(copy)


RUNS: dict[str, Callable[[Case, Path], Verdict | None]] = {
    "pickles": run_conversion,
    "bundle": run_conversion,
    "squad": run_squad,
    "answerer": run_answerer,
    "pipelines": run_pipeline,
    "predictions": run_command,
    "lines": run_command,
    "commands": run_command,
}


def clear(folder: Path) -> None:
    """Empty the folder of a case."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
