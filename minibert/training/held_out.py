"""Questions that are kept apart, and what a model that is being trained scores on them.

Whole articles are kept apart: questions about the same paragraph are too alike to be a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minibert.errors import InputError
from minibert.model import Model
from minibert.squad.decoders import Prediction, SquadSettings
from minibert.squad.evaluation import ANY_ODDS, predict
from minibert.squad.files import SquadQuestion
from minibert.squad.metrics import squad_evaluate
from minibert.training.order import shuffled
from minibert.training.settings import TrainingSettings

ARTICLES = 2**32  # what the order of articles is drawn with in the place of an epoch


def keep_apart(
    questions: Sequence[SquadQuestion], share: float, seed: int
) -> tuple[list[SquadQuestion], list[SquadQuestion]]:
    """The questions to train on, and those of the articles that are kept apart.

    Args:
        questions: of a file.
        share: of its articles, at least one; 0: none.
        seed: chooses them.

    Raises:
        InputError: there is only one article.
    """
    if not share:
        return list(questions), []
    articles = sorted({question.article for question in questions})
    if len(articles) < 2:
        raise InputError(
            "all questions are of one article, so none can be kept apart to measure the model "
            "with. Name a file for that with eval_data (--eval-data), or measure nothing with "
            "held_out=0 (--held-out 0)."
        )
    count = min(max(1, round(share * len(articles))), len(articles) - 1)
    order = shuffled(len(articles), seed, ARTICLES)
    chosen = {articles[place] for place in order[:count]}
    return (
        [question for question in questions if question.article not in chosen],
        [question for question in questions if question.article in chosen],
    )


def scoring(questions: Sequence[SquadQuestion], settings: TrainingSettings) -> SquadSettings:
    """How held-out questions are answered: as minibert evaluate does, with the run's windows."""
    return SquadSettings(
        max_seq_length=settings.max_seq_length,
        max_query_length=settings.max_query_length,
        with_null=not all(question.answerable for question in questions),
    )


def measure(
    model: Model,
    questions: Sequence[SquadQuestion],
    settings: SquadSettings,
    answered: Callable[[int], bool],
) -> dict[str, float] | None:
    """SQuAD's numbers of a model.

    Args:
        model: prepared to run.
        questions: at least one.
        settings: how they are answered.
        answered: called with the number of questions that are answered; False stops.

    Returns:
        As squad_evaluate; None if it was stopped.
    """
    found: dict[str, Prediction] = {}
    for question, answer in predict(model, questions, settings):
        found[question.id] = answer
        if not answered(len(found)):
            return None
    predictions = {key: answer.text for key, answer in found.items()}
    odds = {key: a.null_odds for key, a in found.items() if a.null_odds is not None} or None
    return squad_evaluate(questions, predictions, odds, ANY_ODDS)
