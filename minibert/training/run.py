"""`train`: from a model and questions to a model that answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from minibert.errors import InputError
from minibert.kernels.training import get_training_kernels
from minibert.model import Model
from minibert.options import check_path
from minibert.reprs import shown
from minibert.squad.files import SquadData
from minibert.training.base import load_base
from minibert.training.distillation import Teachers, load_teachers, teacher_digests
from minibert.training.inputs import header, questions_of, read_examples, settled
from minibert.training.interruption import interruption
from minibert.training.run_folder import check_folder, run_folder
from minibert.training.settings import TrainingSettings
from minibert.training.trainer import About, Callback, Trainer, TrainingResult


def train(
    data: SquadData | str | Path,
    model: str | Path | Model | None,
    output_dir: str | Path,
    settings: TrainingSettings | None = None,
    *,
    eval_data: SquadData | str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    command: str | None = None,
    teachers: Sequence[str | Path | Model] = (),
    teacher_cache: str | Path | None = None,
    revision: str | None = None,
) -> TrainingResult:
    """Fine-tune a model, or go on with a run that was interrupted.

    Args:
        data: questions with their answers, as read_squad gives them, or their file.
        model: None or "embedded" for the embedded one; a folder; a weights file, old ones too, as
            `convert` reads them; a name on the Hugging Face Hub.  One without a question-answering
            head gets a new one.
        output_dir: a folder for the run and for the model; a new one, or that of the same run,
            which goes on.
        settings: how to train; None for the defaults.
        eval_data: questions to measure the model on; None for a share of the articles of `data`,
            which are then not trained on.
        callbacks: functions of a line of the log, which is called with each; the run is
            interrupted when one returns False.
        command: for the model's card.
        teachers: models whose logits are learnt as well as the answers; of several, their mean.
        teacher_cache: a folder where these logits are kept, for later epochs and other runs.
        revision: of the model: branch, tag or commit on the Hub.

    Raises:
        MinibertError: something cannot be read or written, or the run diverges.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    if settings is None:
        settings = TrainingSettings()
    if not isinstance(settings, TrainingSettings):
        raise InputError(f"settings must be TrainingSettings, got {shown(settings)}")
    if not isinstance(teachers, list | tuple):
        raise InputError(f"teachers must be a list of models, got {shown(teachers)}")
    if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
        raise InputError(f"callbacks must be a list of functions, got {shown(callbacks)}")
    if not isinstance(command, str | None):
        raise InputError(f"command must be a text for the model's card, got {shown(command)}")
    folder = check_path("output_dir", output_dir)
    cache = None if teacher_cache is None else check_path("teacher_cache", teacher_cache)
    check_folder(folder)
    kernels = get_training_kernels(settings.device, settings.dtype, settings.num_threads)
    base = load_base(model, settings, revision)
    settings = settled(settings, base, kernels)
    training, held = questions_of(data, eval_data, settings)
    models = load_teachers(teachers, base, settings)
    what = header(base, training, held, settings, teacher_digests(models))
    usual = asdict(TrainingSettings()) | {"teachers": []}
    names = tuple(each.name for each in models)
    about = About(training.source, held.source, names, command)
    with interruption() as stop, run_folder(folder, what, usual) as files:
        examples = read_examples(base, training, settings)
        training = replace(training, questions=())  # which take more memory than the examples
        taught = Teachers(models, examples, cache) if models else None
        return Trainer(
            base, examples, about, held.questions, taught, settings, kernels, files, callbacks
        ).run(stop)
