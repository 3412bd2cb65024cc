"""What a run is made of: its settings in full, its questions, and how it is told from others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minibert import __version__
from minibert.errors import InputError
from minibert.kernels.training import TrainingKernels
from minibert.progress import notice
from minibert.squad.evaluation import spread
from minibert.squad.files import SquadData, SquadQuestion, read_squad
from minibert.training.base import Base, dropout_rates
from minibert.training.examples import Examples, make_examples
from minibert.training.held_out import keep_apart
from minibert.training.settings import FREE, TrainingSettings


def settled(settings: TrainingSettings, base: Base, kernels: TrainingKernels) -> TrainingSettings:
    """The settings with what the model says where they say nothing.

    Raises:
        InputError: they do not fit the model.
    """
    longest = base.config.longest_window
    length = settings.max_seq_length or base.runner(None, None).usual_seq_length
    if length > longest:
        raise InputError(
            f"max_seq_length {length} is beyond the {longest} positions of this model. Lower it."
        )
    if settings.doc_stride >= length - 2:
        raise InputError(
            f"doc_stride {settings.doc_stride} leaves windows of max_seq_length {length} no way to "
            "advance. Lower it."
        )
    if settings.freeze_layers > base.config.num_hidden_layers:
        raise InputError(
            f"freeze_layers {settings.freeze_layers} is more than the "
            f"{base.config.num_hidden_layers} layers of this model"
        )
    hidden, attention = dropout_rates(settings, base.document)
    return replace(
        settings,
        max_seq_length=length,
        hidden_dropout_prob=hidden,
        attention_probs_dropout_prob=attention,
        device=kernels.name,
        dtype=kernels.dtype,
    )


@dataclass(frozen=True)
class Questions:
    """Questions, and where they came from."""

    source: str  # for people
    digest: str  # of the file
    questions: Sequence[SquadQuestion]


def questions_of(
    data: SquadData | str | Path,
    eval_data: SquadData | str | Path | None,
    settings: TrainingSettings,
) -> tuple[Questions, Questions]:
    """What is trained on, and what is measured on, of which there may be nothing.

    Raises:
        InputError: a file cannot be read, or does not say the right answers.
    """

    def opened(name: str, value: Any) -> SquadData:
        found = value if isinstance(value, SquadData) else read_squad(value)
        if not found.labelled:
            raise InputError(f"{found.name}: holds no right answers, so it is no {name}")
        return found

    source = opened("training data", data)
    chosen = source.questions
    if settings.limit is not None:
        chosen = spread(chosen, settings.limit)
    if eval_data is not None:
        measured = opened("data to measure on", eval_data)
        held = measured.questions
        said = f"{measured.name}"
        digest = measured.digest
    else:
        chosen, held = keep_apart(chosen, settings.held_out, settings.seed)
        articles = len({question.article for question in held})
        said = f"{articles} articles of {source.name} that were not trained on"
        digest = source.digest
    if settings.early_stopping is not None and not held:
        raise InputError("early_stopping needs questions to measure on: raise held_out")
    if settings.eval_limit is not None:
        held = spread(held, settings.eval_limit)
    return (
        Questions(f"{source.name}, {len(chosen)} questions", source.digest, chosen),
        Questions(f"{len(held)} questions of {said}", digest, held),
    )


def header(
    base: Base,
    training: Questions,
    held: Questions,
    settings: TrainingSettings,
    teachers: Sequence[str],
) -> dict[str, Any]:
    """All that the weights at the end depend on, as JSON has it."""
    chosen = {name: value for name, value in asdict(settings).items() if name not in FREE}
    if settings.layers is not None:
        chosen["layers"] = list(settings.layers)
    return {
        "minibert": __version__,
        "model": base.files.digest(),
        "data": training.digest,
        "questions": len(training.questions),
        "measured on": held.digest,
        "teachers": list(teachers),
        **chosen,
    }


def read_examples(base: Base, training: Questions, settings: TrainingSettings) -> Examples:
    """The windows of all training questions; says what is worth knowing.

    Raises:
        InputError: none of them holds an answer.
    """
    begin = time.perf_counter()
    examples, report = make_examples(
        training.questions,
        base.tokenizer,
        base.runner(None, None).pair,
        max_seq_length=settings.max_seq_length or 0,
        doc_stride=settings.doc_stride,
        max_query_length=settings.max_query_length,
        all_occurrences=settings.all_occurrences,
    )
    for line in report.lines():
        notice(f"minibert: {line}")
    if not examples.with_answer:
        raise InputError(
            f"{training.source}: no window holds an answer, so there is nothing to learn"
        )
    notice(
        f"minibert: {training.source}: {len(examples)} windows, {examples.with_answer} of them "
        f"with an answer, {int(examples.lengths.sum())} tokens, read in "
        f"{time.perf_counter() - begin:.1f} s"
    )
    if not base.has_head:
        notice(
            f"minibert: {base.name} has no question-answering head; a new one is made, from seed "
            f"{settings.seed}"
        )
    return examples
