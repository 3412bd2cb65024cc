"""A model measured on a SQuAD file: its predictions, and SQuAD's numbers for them.

A long run can be interrupted: with an output folder, the same call goes on where the last one
stopped (journal.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from minibert.errors import InputError
from minibert.model import Model
from minibert.options import check_choice, check_flag, check_number, check_path
from minibert.progress import notice, progress
from minibert.reprs import short_repr, shown
from minibert.squad.decoders import Prediction, SquadSettings, make_decoder
from minibert.squad.files import (
    SquadData,
    SquadQuestion,
)
from minibert.squad.journal import journal, write_outputs
from minibert.squad.metrics import (
    DEFAULT_THRESHOLD,
    F1_OVER,
    require,
    score_answers,
    squad_evaluate,
    tune_threshold,
)
from minibert.squad.predictions import (
    has_null_odds,
    read_nbest,
    read_null_odds,
    read_predictions,
)

ANY_ODDS = float("inf")  # threshold for predictions that are "" already where they should be


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a SQuAD file, and what they are worth.

    Everything by the id of the question.
    """

    questions: Sequence[SquadQuestion]
    predictions: Mapping[str, str]  # "" for "no answer"
    # As squad_evaluate gives them; of questions whose right answers are not known only `total`.
    metrics: Mapping[str, float]
    # How unanswerable each question looks: the null score minus that of the best answer.
    null_odds: Mapping[str, float] | None = None
    # The best answer that is not "no answer", also where that was predicted.
    best_texts: Mapping[str, str] | None = None
    # Of each prediction, by the decoder that made it, "no answer" too: from 0 to 1.
    probabilities: Mapping[str, float] | None = None
    # Where each predicted text stands in its context: start and end, in characters.
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)  # model, dtype ...: name -> value
    null_threshold: float | None = None  # odds above it are "no answer"
    questions_per_second: float | None = None  # of those that this run answered
    f1: str = F1_OVER[0]  # what answers were compared by

    __repr__ = short_repr


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
    f1: str = F1_OVER[0],
) -> Evaluation:
    """Run a model over a SQuAD file and score its answers.

    Where the file does not hold the right answers, there are only predictions.

    Args:
        model: a loaded model.
        data: the questions.
        settings: how to read and decide; None for run_squad's way, with "no answer" if the file
            holds questions without one.
        output_dir: a folder for predictions.json, nbest_predictions.json and null_odds.json, in
            run_squad's form.  An interrupted run leaves unfinished.jsonl there, and the next one
            goes on from it.
        overwrite: replace the results of a finished run; an unfinished one with the same settings
            still goes on.
        f1: what answers are compared by: "words", or "characters" for languages without spaces.

    Raises:
        InputError: a question cannot be read; the folder cannot be written, or holds other results.
    """
    if not isinstance(model, Model):
        raise InputError(f"model must be a Model, as load_model gives it, got {shown(model)}")
    check_data(data)
    overwrite = check_flag("overwrite", overwrite)
    if settings is None:
        settings = SquadSettings(with_null=data.with_null)
    if not isinstance(settings, SquadSettings):
        raise InputError(f"settings must be SquadSettings, got {shown(settings)}")
    questions = data.questions
    check_texts(questions, settings)
    check_choice("f1", f1, F1_OVER)
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
            write_outputs(check_path("output_dir", output_dir), found)
    predictions = {key: answer.text for key, answer in found.items()}
    odds = {key: a.null_odds for key, a in found.items() if a.null_odds is not None} or None
    return Evaluation(
        questions=questions,
        predictions=predictions,
        metrics=squad_evaluate(questions, predictions, odds, ANY_ODDS, f1)
        if data.labelled
        else {"total": len(questions)},
        null_odds=odds,
        best_texts={key: answer.best_text for key, answer in found.items()},
        probabilities={key: answer.probability for key, answer in found.items()},
        spans={key: answer.span for key, answer in found.items() if any(answer.span)},
        about=describe(model, data, settings, f1),
        null_threshold=settings.null_threshold,
        questions_per_second=len(rest) / seconds if rest else None,
        f1=f1,
    )


def check_data(data: object) -> None:
    """Refuse what is no SquadData.

    Raises:
        InputError: saying what it is.
    """
    if not isinstance(data, SquadData):
        raise InputError(f"data must be a SquadData, as read_squad gives it, got {shown(data)}")


def check_texts(questions: Sequence[SquadQuestion], settings: SquadSettings) -> None:
    """Refuse empty texts, which only run_squad's way takes, before anything has run.

    Raises:
        InputError: naming how many, and the first.
    """
    empty = [q.id for q in questions if not (q.question and q.context)]
    if empty and settings.decoder != "run_squad":
        raise InputError(
            f"{len(empty)} of {len(questions)} questions have an empty question or context, the "
            f"first is {empty[0]!r}; the decoder {settings.decoder} takes none, run_squad does"
        )


def score_predictions(
    data: SquadData,
    predictions: str | Path,
    null_odds: str | Path | None = None,
    nbest: str | Path | None = None,
    null_threshold: float = DEFAULT_THRESHOLD,
    f1: str = F1_OVER[0],
) -> Evaluation:
    """Score predictions that were made elsewhere.

    Args:
        data: the questions.
        predictions: file of an object that maps ids to texts, "" for "no answer"; or Hugging
            Face's list of objects, which may hold the odds as well.
        null_odds: file of an object that maps ids to numbers, or such a list; None for the odds
            that stand beside the predictions, if they do.
        nbest: file of an object that maps ids to the n best answers with their probabilities.
        null_threshold: an answer with odds above it counts as "no answer".
        f1: what answers are compared by, "words" or "characters".

    Raises:
        InputError: a file cannot be read or leaves questions out.
    """
    check_data(data)
    null_threshold = check_number("null_threshold", null_threshold)
    texts = read_predictions(predictions)
    if null_odds is None and has_null_odds(predictions):
        null_odds = predictions
    odds = None if null_odds is None else read_null_odds(null_odds)
    metrics = squad_evaluate(data.questions, texts, odds, null_threshold, f1)
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
            **over(f1),
        },
        null_threshold=null_threshold,
        f1=f1,
    )


def compare(
    model: Model, data: SquadData, settings: SquadSettings, f1: str = F1_OVER[0]
) -> dict[str, Any]:
    """A row of a table of models: how good, how large, how fast.

    Returns:
        model, device, dtype, megabytes (of the weights on disk; 0 if they came from no file),
        questions_per_second (without loading), and the numbers that `evaluate` gives.
    """
    evaluation = evaluate(model, data, settings, f1=f1)
    return {
        "model": model.name,
        "device": model.device,
        "dtype": model.dtype,
        "megabytes": model.files.size / 1e6 if model.files else 0.0,
        "questions_per_second": evaluation.questions_per_second,
        **evaluation.metrics,
    }


def over(f1: str) -> dict[str, str]:
    """What is worth saying of how F1 is counted: nothing if it is SQuAD's."""
    return {} if f1 == F1_OVER[0] else {"F1 over": f1}


def describe(model: Model, data: SquadData, settings: SquadSettings, f1: str) -> dict[str, str]:
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
    return said | over(f1)


def score_at(evaluation: Evaluation, null_threshold: float) -> dict[str, float]:
    """SQuAD's numbers for the same answers with another null threshold.

    Raises:
        InputError: there are no null odds.
    """
    odds = evaluation.null_odds
    if odds is None:
        raise InputError(NO_ODDS)
    null_threshold = check_number("null_threshold", null_threshold)
    texts = evaluation.best_texts or evaluation.predictions
    chosen = {key: "" if odds[key] > null_threshold else text for key, text in texts.items()}
    return squad_evaluate(evaluation.questions, chosen, odds, ANY_ODDS, evaluation.f1)


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
        InputError: there are no null odds, fewer than two articles, or no such measure.
    """
    check_choice("measure", measure, ("exact", "f1"))
    if evaluation.null_odds is None:
        raise InputError(NO_ODDS)
    chosen, others = articles_for_tuning(evaluation.questions)
    tuning = [q for q in evaluation.questions if q.article in chosen]
    scoring = [q for q in evaluation.questions if q.article not in chosen]
    odds = evaluation.null_odds
    texts = evaluation.best_texts or evaluation.predictions
    scored = score_answers(tuning, texts, evaluation.f1)
    scores = {key: getattr(score, measure) for key, score in scored.items()}
    threshold = tune_threshold(tuning, texts, scores, odds)

    def numbers(predictions: Mapping[str, str]) -> dict[str, float]:
        part = {question.id: odds[question.id] for question in scoring}
        return squad_evaluate(scoring, predictions, part, ANY_ODDS, evaluation.f1)

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
