"""What is done with a case, in its folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzzing import seeds, values
from fuzzing.checks import check_answer, check_json, check_results, comparable, compare
from fuzzing.kinds import Case
from fuzzing.verdicts import Broken, Verdict, judge
from minibert.answering import QuestionAnswerer
from minibert.checkpoints.conversion import convert
from minibert.cli import main
from minibert.errors import MinibertError
from minibert.model import Model, load_model
from minibert.pipelines import pipeline
from minibert.scale import answerer as scale
from minibert.serve import contract
from minibert.serve.settings import Settings
from minibert.squad.decoders import SquadSettings
from minibert.squad.evaluation import evaluate, score_predictions
from minibert.squad.files import read_squad
from minibert.squad.metrics import squad_evaluate
from minibert.training.run import train
from minibert.training.settings import TrainingSettings

_MODELS: dict[str, Model] = {}  # by family: right ones, made before processes are forked


def load_all(folder: Path) -> None:
    """Load every family's model, and compile what they run."""
    for family in seeds.FAMILIES:
        place = folder / family
        place.mkdir()
        for name, content in seeds.model(family).items():
            (place / name).write_bytes(content)
        model = load_model(place, device="cpu", num_threads=1)
        model.logits(model.windows(seeds.QUESTION, [seeds.CONTEXT]))
        _MODELS[family] = model
    for dtype in ("int8", "bfloat16"):  # which a case may name, and then shall not compile
        other = load_model(folder / "bert", device="cpu", dtype=dtype)
        other.logits(other.windows(seeds.QUESTION, [seeds.CONTEXT]))


def run(case: Case, folder: Path) -> Verdict:
    """Run a case.

    Args:
        case: what to do.
        folder: an empty one, and the current one.
    """

    def laid_out() -> Verdict | None:
        lay_out(case, folder)
        return RUNS.get(case.kind, run_model)(case, folder)

    return judge(laid_out)


def lay_out(case: Case, folder: Path) -> None:
    """Write the files of a case, and what stands in their places."""
    for name, content in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for name, what in case.call.get("places", {}).items():
        path = folder / name
        path.unlink(missing_ok=True)
        match what:
            case "fifo":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "dangling" | "loop":
                path.symlink_to("nowhere" if what == "dangling" else name)
            case "null" | "zero":
                path.symlink_to(f"/dev/{what}")
            case "memory":  # a file to the system, which cannot be read
                path.symlink_to("/proc/self/mem")
            case "lfs":
                path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
            case _:
                path.write_bytes(b"")


def clear(folder: Path) -> None:
    """Empty the folder of a case."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


# ---------------------------------------------------------------- models


def run_model(case: Case, folder: Path) -> None:
    """Load a folder on both devices, answer, and compare."""
    question, texts, options = (case.call[name] for name in ("question", "texts", "options"))
    reference = load_model(folder, device="reference")
    try:
        fast = load_model(folder, device="cpu", num_threads=1)
    except MinibertError as error:
        raise Broken("wrong", f"the processor refuses what the reference takes: {error}") from None
    for model in (reference, fast):
        for answer in QuestionAnswerer(model, **options).n_best(question, texts, 5):
            check_answer(asdict(answer), texts)
    first, again = (QuestionAnswerer(fast, **options).n_best(question, texts, 5) for _ in range(2))
    if first != again:
        raise Broken("wrong", f"not the same twice: {first} and {again}")
    piped = pipeline("question-answering", model=fast)
    results = piped(question=question, context=texts[0], top_k=3, max_answer_len=10)
    check_results(results, texts[0])
    if comparable(reference):
        compare(reference, fast, question, texts, options)


def run_conversion(case: Case, folder: Path) -> None:
    """Convert a model of another format, and load what came of it."""
    target = folder / "out"
    before = {path.name for path in folder.iterdir()}
    try:
        convert(folder, target)
    except MinibertError:
        if left := {path.name for path in folder.iterdir()} - before:
            raise Broken("wrong", f"a conversion that failed left {left}") from None
        raise
    load_model(target, device="reference")


def run_squad(case: Case, folder: Path) -> None:
    """Read a SQuAD file; if it is small, answer it."""
    data = read_squad(folder / "squad.json")
    if sum(len(each.context) + len(each.question) for each in data.questions) < 20_000:
        settings = SquadSettings(decoder=case.call["decoder"], max_seq_length=96, doc_stride=30)
        found = evaluate(_MODELS["bert"], data, settings)
        check_json(json.dumps([found.metrics, found.null_odds]))


# ---------------------------------------------------------------- arguments


def evaluator(case: Case, folder: Path) -> Callable[[str], Any]:
    """What gives the values of a case's expressions."""
    family = json.loads(case.files["config.json"])["model_type"]
    names = {**values.NAMES, "loaded": _MODELS[family], "folder": folder, "read_squad": read_squad}
    if "predictions.json" in case.files:
        names["predictions"] = json.loads(case.files["predictions.json"])
    return lambda expression: eval(expression, dict(names))  # of values.py, no stranger's


def arguments(case: Case, folder: Path) -> tuple[dict[str, Any], Any, Any, dict[str, Any]]:
    """The arguments of a case: of the making, the question, the text, of the call."""
    value = evaluator(case, folder)
    make, call = (
        {name: value(text) for name, text in case.call[part].items()} for part in ("make", "call")
    )
    return make, value(case.call["question"]), value(case.call["context"]), call


def run_answerer(case: Case, folder: Path) -> None:
    """QuestionAnswerer with odd arguments."""
    make, question, context, call = arguments(case, folder)
    face = QuestionAnswerer(make.pop("model", None), **make)
    repr(face)
    method = getattr(face, case.call["method"])
    given = (
        ([(question, context)],) if case.call["method"].endswith("many") else (question, context)
    )
    found = method(*given, **call)
    if case.call["method"] == "explain":
        assert "<h2>9. " in found.html()
        found = list(found.answers)
    texts = context if type(context) is list else [context]
    known = all(type(text) is str for text in texts)
    for answer in flat(found):
        check_answer(asdict(answer), texts if known else None)
        check_json(json.dumps(asdict(answer)))


def flat(found: Any) -> Iterator[Any]:
    """The answers in lists of lists."""
    if isinstance(found, list | Iterator):
        for each in found:
            yield from flat(each)
    else:
        yield found


def run_pipeline(case: Case, folder: Path) -> None:
    """The pipeline with odd arguments."""
    make, question, context, call = arguments(case, folder)
    face = pipeline(make.pop("task", None), make.pop("model", None), **make)
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
    results = list(flat(results))
    check_results(results)
    check_json(json.dumps(results))


def run_call(case: Case, folder: Path) -> None:
    """A function with odd arguments, and what must hold of what it gives."""
    value = evaluator(case, folder)
    given = {name: value(text) for name, text in case.call["arguments"].items()}
    fields = {name: value(text) for name, text in case.call["settings"].items()}
    match case.call["function"]:
        case "convert":
            if callable(report := given.get("report")):
                given["report"] = owned(report)
            load_model(convert(**given), device="reference")
        case "evaluate":
            given.setdefault("settings", SquadSettings(**fields) if fields else None)
            found = evaluate(**given)
            check_json(json.dumps([found.metrics, found.predictions, found.null_odds]))
        case "score_predictions":
            check_json(json.dumps(score_predictions(**given).metrics))
        case "squad_evaluate":
            check_json(json.dumps(squad_evaluate(**given)))
        case "train":
            quickly = {"device": "reference", "max_steps": 2, "doc_stride": 30} | fields
            given.setdefault("settings", TrainingSettings(**quickly))
            if train(**given).finished:
                load_model(given["output_dir"], device="reference")
        case _:
            scale._ANSWERERS.loaded.clear()  # of other cases, whose folders had the same name
            check_batch(scale.BatchAnswerer(**given), value(case.call["batch"]))


def owned(function: Callable[..., Any]) -> Callable[..., None]:
    """A function of the caller's, whose errors are its own."""

    def called(*arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception:
            raise values.Own("the function has failed") from None

    return called


def check_batch(face: scale.BatchAnswerer, batch: Any) -> None:
    """A batch with answers has as many as it has rows, and what each holds is right."""
    repr(face)
    found = face(batch)
    columns = {name: list(found[face.prefix + name]) for name in scale.FIELDS}
    sizes = {len(column) for column in columns.values()}
    if sizes != {len(batch[face.question])}:
        raise Broken("wrong", f"columns of {sizes} rows")
    for number, error in enumerate(columns["error"]):
        if error is None:
            answer = {name: column[number] for name, column in columns.items()} | {"document": 0}
            check_answer(answer, [batch[face.context][number]])
        elif columns["text"][number] is not None:
            raise Broken("wrong", f"row {number} has an answer and the error {error}")


def run_request(case: Case, folder: Path) -> None:
    """A request to `minibert serve`, from its body to the body of the answer."""
    body, limits, model = case.files.get("body", b""), Settings(), _MODELS["bert"]
    if case.call["face"] == "predict":
        request, pairs = contract.read_predict(body, case.call["query"])
        contract.check_texts(request, pairs, limits)
        answers = contract.predict(request, model, limits)
    else:
        request, texts = contract.read_answer(body)
        contract.check_texts(request, texts, limits)
        answers = contract.answer(request, model, limits)
    check_json(contract.written(answers).decode("utf-8"))


# ---------------------------------------------------------------- the command line


def run_command(case: Case, folder: Path) -> Verdict | None:
    """The command line, in this process."""
    argv = list(case.call["argv"])
    for name in ("null", "zero", "full"):
        (folder / name).symlink_to(f"/dev/{name}")
    os.mkfifo(folder / "pipe")
    given, out, err = (folder / f".std{name}" for name in ("in", "out", "err"))
    given.write_text(case.call["stdin"], encoding="utf-8", errors="surrogatepass")
    with standard_streams(given, out, err):
        try:
            status: Any = main(argv)
        except SystemExit as end:
            status = end.code
    said = err.read_text(encoding="utf-8", errors="replace")
    if status not in (0, 1, 2):
        raise Broken("exception", f"status {status!r}: {said[-2000:]}")
    if "Traceback (most" in said or "panicked" in said:
        raise Broken("exception", said[-2000:])
    if status == 1 and "minibert: error: " not in said:
        raise Broken("wrong", f"status 1 without an error: {said[-2000:]}")
    check_printed(argv, status, out.read_bytes(), folder / "answers.jsonl")
    return Verdict("refused", detail=said) if status else None


def check_printed(argv: list[str], status: int, printed: bytes, file: Path) -> None:
    """What a command has printed or written as JSON is JSON."""
    if status == 2 or {"-h", "--help", "--version"} & {*argv}:
        return
    if "--jsonl" in argv:
        written = file.read_bytes() if status == 0 and file.is_file() else b""
        for line in [*printed.splitlines(), *written.splitlines()]:
            check_json(line)
    elif "--json" in argv or argv[:1] in (["evaluate"], ["train"]):
        check_json(printed)


@contextmanager
def standard_streams(given: Path, out: Path, err: Path) -> Iterator[None]:
    """Standard input from a file, standard output and standard error into files."""
    before = sys.stdin, sys.stdout, sys.stderr
    kept = [os.dup(number) for number in range(3)]
    try:
        for number, path in enumerate((given, out, err)):
            opened = os.open(path, os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY)
            os.dup2(opened, number)
            os.close(opened)
        sys.stdin, sys.stdout, sys.stderr = (  # of which the numbers are closed below
            open(number, mode, closefd=False, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
            for number, mode in enumerate("rww")
        )
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
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
    "tables": run_command,
    "lines": run_command,
    "commands": run_command,
    "requests": run_request,
    **dict.fromkeys(("conversions", "evaluations", "trainings", "batches"), run_call),
    "resumed": run_command,
}
