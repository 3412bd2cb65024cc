"""A model measured on a SQuAD file: its predictions, and SQuAD's numbers for them.

A long run can be interrupted: with an output folder, each answer is written down as it comes, and
the same call goes on where the last one stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from time import perf_counter
from typing import IO, Any

from minibert import __version__
from minibert.decoders import Prediction, SquadSettings, make_decoder
from minibert.errors import InputError
from minibert.files import writing
from minibert.metrics import (
    DEFAULT_THRESHOLD,
    require,
    score_answers,
    squad_evaluate,
    tune_threshold,
)
from minibert.model import Model
from minibert.progress import notice, progress
from minibert.squad import (
    SquadData,
    SquadQuestion,
    is_answer,
    is_number,
    read_nbest,
    read_null_odds,
    read_predictions,
)

UNFINISHED = "unfinished.jsonl"  # what a run writes down while it runs
OUTPUTS = ("predictions.json", "nbest_predictions.json", "null_odds.json")
ANY_ODDS = float("inf")  # threshold for predictions that are "" already where they should be


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a SQuAD file, and what they are worth.

    Everything by the id of the question.
    """

    questions: Sequence[SquadQuestion]
    predictions: Mapping[str, str]  # "" for "no answer"
    metrics: Mapping[str, float]  # as squad_evaluate gives them
    # How unanswerable each question looks: the null score minus that of the best answer.
    null_odds: Mapping[str, float] | None = None
    # The best answer that is not "no answer", also where that was predicted.
    best_texts: Mapping[str, str] | None = None
    # Of each prediction, by the decoder that made it, "no answer" too: from 0 to 1.
    probabilities: Mapping[str, float] | None = None
    # Where each predicted text stands in its context: context[start:end], in characters.
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)  # model, dtype ...: name -> value
    null_threshold: float | None = None  # odds above it are "no answer"
    questions_per_second: float | None = None  # of those that this run answered


# ---------------------------------------------------------------- running a model


def predict(
    model: Model, questions: Sequence[SquadQuestion], settings: SquadSettings
) -> Iterator[tuple[SquadQuestion, Prediction]]:
    """Answer questions, in their order, in packed batches.

    Raises:
        InputError: a question cannot be read; naming it.
    """
    decoder = make_decoder(model, settings)

    def examples() -> Iterator[tuple[SquadQuestion, list[Any]]]:
        for question in questions:
            try:
                yield question, decoder.windows(question.question, question.context)
            except InputError as error:
                raise InputError(f"question {question.id!r}: {error}") from None

    for question, windows, logits in model.read(examples()):
        yield question, decoder.decode(question.context, windows, logits)


def evaluate(
    model: Model,
    data: SquadData,
    settings: SquadSettings | None = None,
    *,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """Run a model over a SQuAD file and score its answers.

    Args:
        model: a loaded model.
        data: the questions.
        settings: how to read and decide; None for run_squad's way, with "no answer" if the file
            holds questions without one.
        output_dir: a folder for predictions.json, nbest_predictions.json and null_odds.json, in
            run_squad's form.  An interrupted run leaves unfinished.jsonl there, and the next one
            goes on from it.
        overwrite: replace what an earlier run left there.

    Raises:
        InputError: a question cannot be read; the folder cannot be written, or holds other results.
    """
    for name, value, kind in (("model", model, Model), ("data", data, SquadData)):
        if not isinstance(value, kind):
            raise InputError(
                f"{name} must be a {kind.__name__}, as load_model and read_squad give them, got "
                f"{value!r:.80}"
            )
    if settings is None:
        settings = SquadSettings(with_null=data.with_null)
    if not isinstance(settings, SquadSettings):
        raise InputError(f"settings must be SquadSettings, got {settings!r:.80}")
    questions = data.questions
    found: dict[str, Prediction] = {}
    with journal(output_dir, model, data, settings, overwrite) as (kept, keep):
        found |= kept
        rest = [question for question in questions if question.id not in found]
        if kept:
            notice(f"{len(kept)} of {len(questions)} questions were answered before")
        for _ in predict(model, rest[:1], settings):
            pass  # kernels that have to be compiled would spoil the rate
        begin = perf_counter()
        answers = predict(model, rest, settings)
        for question, answer in progress(answers, len(questions), "questions", done=len(kept)):
            found[question.id] = answer
            keep(question.id, answer)
        seconds = perf_counter() - begin
        found = {question.id: found[question.id] for question in questions}
        if output_dir is not None:
            write_outputs(Path(os.path.expanduser(output_dir)), found)
    predictions = {key: answer.text for key, answer in found.items()}
    odds = {key: a.null_odds for key, a in found.items() if a.null_odds is not None} or None
    return Evaluation(
        questions=questions,
        predictions=predictions,
        metrics=squad_evaluate(questions, predictions, odds, ANY_ODDS),
        null_odds=odds,
        best_texts={key: answer.best_text for key, answer in found.items()},
        probabilities={key: answer.probability for key, answer in found.items()},
        places={key: answer.place for key, answer in found.items() if answer.text},
        about=describe(model, data, settings),
        null_threshold=settings.null_threshold,
        questions_per_second=len(rest) / seconds if rest else None,
    )


def score_predictions(
    data: SquadData,
    predictions: str | Path,
    null_odds: str | Path | None = None,
    nbest: str | Path | None = None,
    null_threshold: float = DEFAULT_THRESHOLD,
) -> Evaluation:
    """Score predictions that were made elsewhere.

    Args:
        data: the questions.
        predictions: file of an object that maps ids to texts, "" for "no answer".
        null_odds: file of an object that maps ids to numbers.
        nbest: file of an object that maps ids to the n best answers with their probabilities.
        null_threshold: an answer with odds above it counts as "no answer".

    Raises:
        InputError: a file cannot be read or leaves questions out.
    """
    texts = read_predictions(predictions)
    odds = None if null_odds is None else read_null_odds(null_odds)
    metrics = squad_evaluate(data.questions, texts, odds, null_threshold)
    chosen = {q.id: texts[q.id] for q in data.questions}
    if odds is not None:
        chosen = {key: "" if odds[key] > null_threshold else t for key, t in chosen.items()}
    entries = {} if nbest is None else read_nbest(nbest)
    if nbest is not None:
        require(data.questions, entries, "list of n best")
    return Evaluation(
        questions=data.questions,
        predictions=chosen,
        metrics=metrics,
        null_odds=odds,
        best_texts={
            key: next((text for text, _ in entries.get(key, ()) if text), texts[key])
            for key in chosen
        },
        probabilities={
            key: next((p for text, p in entries[key] if text == chosen[key]), 0.0) for key in chosen
        }
        if entries
        else None,
        about={
            "predictions": str(predictions),
            "data": f"{data.name}, {len(data.questions)} questions",
            "null threshold": str(null_threshold),
        },
        null_threshold=null_threshold,
    )


def compare(model: Model, data: SquadData, settings: SquadSettings) -> dict[str, Any]:
    """A row of a table of models: how good, how large, how fast.

    Returns:
        model, device, dtype, exact, f1, megabytes (of the weights on disk; 0 if they came from no
        file), questions_per_second (without loading).
    """
    evaluation = evaluate(model, data, settings)
    return {
        "model": model.name,
        "device": model.device,
        "dtype": model.dtype,
        "exact": evaluation.metrics["exact"],
        "f1": evaluation.metrics["f1"],
        "megabytes": model.files.size / 1e6 if model.files else 0.0,
        "questions_per_second": evaluation.questions_per_second,
    }


def describe(model: Model, data: SquadData, settings: SquadSettings) -> dict[str, str]:
    """What was measured, for people."""
    said = {
        "model": model.name,
        "device": model.device,
        "dtype": model.dtype,
        "data": f"{data.name}, {len(data.questions)} questions",
        "decoder": settings.decoder,
    }
    for name, value in asdict(settings).items():
        if name not in ("decoder", "with_null") and value is not None:
            said[name.replace("_", " ")] = str(value)
    return said


# ---------------------------------------------------------------- files of a run


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
    folder = Path(os.path.expanduser(output_dir))
    path = folder / UNFINISHED
    check_folder(folder, overwrite)
    header = {"minibert": __version__, "data": data.digest, **asdict(settings)}
    header |= {"questions": len(data.questions), "device": model.device, "dtype": model.dtype}
    header |= {"model": model.files.digest() if model.files else model.name}
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
            if os.name != "nt":  # while nobody else can take it up; Windows keeps open files
                path.unlink()
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse an output folder that cannot be one, or holds the results of a finished run.

    Raises:
        InputError: it is none, or they are there and may not be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; name another for the output")
    path = folder / UNFINISHED
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path}: is not a file of an earlier run; remove it")
    present = [name for name in OUTPUTS if (folder / name).exists()]
    if present and not overwrite and not path.exists():
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
        start, end = values["place"]
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
            return record["id"], Prediction(**values | {"place": (start, end)})
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise damaged(path, number)


def damaged(path: Path, number: int) -> InputError:
    """What there is to say of a line that no run has written."""
    return InputError(
        f"{path}, line {number}: is damaged. Begin again with --overwrite, or in another folder."
    )


# ---------------------------------------------------------------- tuning the null threshold


NO_ODDS = (
    "the null threshold can only be tuned with null odds; a run in which no question is "
    "unanswerable has none"
)


def articles_for_tuning(questions: Sequence[SquadQuestion]) -> tuple[set[int], set[int]]:
    """Every second article, from the first on, and the others.

    Raises:
        InputError: there is only one.
    """
    articles = sorted({question.article for question in questions})
    if len(articles) < 2:
        raise InputError("the null threshold is tuned on half of the articles: one is not enough")
    return set(articles[::2]), set(articles[1::2])


def tune_null(evaluation: Evaluation, measure: str = "f1") -> dict[str, Any]:
    """Find the best null threshold on half of the articles, and score the other half with it.

    See articles_for_tuning for which half is which.

    Args:
        evaluation: with null odds.
        measure: what is to be best: "exact" or "f1".

    Returns:
        threshold; tuned_on and scored_on, how many articles and questions; before and after,
        SQuAD's numbers of the other half with the threshold of the run and with the new one.

    Raises:
        InputError: there are no null odds, or fewer than two articles.
    """
    if evaluation.null_odds is None:
        raise InputError(NO_ODDS)
    chosen, others = articles_for_tuning(evaluation.questions)
    tuning = [q for q in evaluation.questions if q.article in chosen]
    scoring = [q for q in evaluation.questions if q.article not in chosen]
    odds = evaluation.null_odds
    texts = evaluation.best_texts or evaluation.predictions
    scores = {key: getattr(s, measure) for key, s in score_answers(tuning, texts).items()}
    threshold = tune_threshold(tuning, texts, scores, odds)

    def numbers(predictions: Mapping[str, str]) -> dict[str, float]:
        part = {question.id: odds[question.id] for question in scoring}
        return squad_evaluate(scoring, predictions, part, ANY_ODDS)

    tuned = {q.id: "" if odds[q.id] > threshold else texts[q.id] for q in scoring}
    return {
        "threshold": threshold,
        "best": measure,
        "tuned_on": {"articles": len(chosen), "questions": len(tuning)},
        "scored_on": {"articles": len(others), "questions": len(scoring)},
        "before": numbers(evaluation.predictions),
        "after": numbers(tuned),
    }


def spread(questions: Sequence[SquadQuestion], count: int) -> list[SquadQuestion]:
    """`count` of the questions, evenly spread over all; all if there are fewer.

    Example:
        >>> spread(list(range(10)), 4)
        [0, 2, 5, 7]
    """
    if count >= len(questions):
        return list(questions)
    return [questions[i * len(questions) // count] for i in range(count)]
