"""`train`: from a model and questions to a model that answers them.

A run is a chain of steps.  Between two of them it is a `State`, and a few rows of numbers; all that
a step does follows from them and from the settings.  So a run that was interrupted goes on from its
last checkpoint and ends in the same weights, bit for bit.
"""

from __future__ import annotations

import math
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minibert.batches import Batch
from minibert.errors import BackendError, InputError
from minibert.kernels.backend import get_backend
from minibert.kernels.training import TrainingKernels, get_training_kernels
from minibert.model import Model
from minibert.pages.training import render_training
from minibert.progress import notice
from minibert.squad.files import SquadData
from minibert.training.base import Base, load_base
from minibert.training.card import model_card
from minibert.training.distillation import (
    Teachers,
    load_teachers,
    soft_loss,
    teacher_digests,
)
from minibert.training.examples import Examples, make_examples
from minibert.training.flat import Flat, flatten, zeros_like
from minibert.training.held_out import measure, scoring
from minibert.training.inputs import Questions, header, questions_of, settled
from minibert.training.interruption import Interruption, interruption
from minibert.training.line import ProgressLine, operations
from minibert.training.loss import Loss, span_loss
from minibert.training.optimizer import (
    MOST_SKIPPED,
    REMEMBERED,
    average,
    clipping,
    gradient_norm,
    objection,
    take_step,
    trained_groups,
)
from minibert.training.order import Indices, Plan
from minibert.training.passes import Dropouts, Kept, backward, forward
from minibert.training.result import write_model
from minibert.training.run_folder import RunFolder, State, check_folder, run_folder
from minibert.training.schedule import learning_rate
from minibert.training.settings import TrainingSettings

MEASUREMENTS = 5  # of the processor's peak

Callback = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    folder: Path  # of the model, if it is finished
    finished: bool  # if not, the same call goes on
    reason: str  # why it ended
    step: int
    steps: int  # of the whole run
    skipped: int  # steps that were not taken
    measurement: Mapping[str, float] | None  # the last one
    best: Mapping[str, float] | None  # the one with the highest F1; its model lies in `best`


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
) -> TrainingResult:
    """Fine-tune a model, or go on with a run that was interrupted.

    Args:
        data: questions with their answers, as read_squad gives them, or their file.
        model: None or "embedded" for the embedded one; a folder; a .safetensors file; a name on the
            Hugging Face Hub.  One without a question-answering head gets a new one.
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

    Raises:
        MinibertError: something cannot be read or written, or the run diverges.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    if settings is None:
        settings = TrainingSettings()
    if not isinstance(settings, TrainingSettings):
        raise InputError(f"settings must be TrainingSettings, got {settings!r:.80}")
    if not isinstance(output_dir, str | os.PathLike) or not str(output_dir):
        raise InputError(f"output_dir must be a folder's name, got {output_dir!r:.80}")
    if not all(map(callable, callbacks)):
        raise InputError(f"callbacks must be functions of a record, got {callbacks!r:.80}")
    folder = Path(os.path.expanduser(output_dir))
    check_folder(folder)
    kernels = get_training_kernels(settings.device, settings.dtype, settings.num_threads)
    base = load_base(model, settings)
    settings = settled(settings, base, kernels)
    training, held = questions_of(data, eval_data, settings)
    models = load_teachers(teachers, base, settings)
    about = header(base, training, held, settings, teacher_digests(models))
    usual = asdict(TrainingSettings()) | {"teachers": []}
    with interruption() as stop, run_folder(folder, about, usual) as files:
        run = Trainer(base, training, held, settings, kernels, files, callbacks, command)
        if models:
            cache = None if teacher_cache is None else Path(os.path.expanduser(teacher_cache))
            run.teachers = Teachers(models, run.examples, cache)
        return run.run(stop)


class Trainer:
    """A run that goes on: its arrays, its state, and what it needs to take a step."""

    def __init__(
        self,
        base: Base,
        training: Questions,
        held: Questions,
        settings: TrainingSettings,
        kernels: TrainingKernels,
        files: RunFolder,
        callbacks: Sequence[Callback],
        command: str | None,
    ) -> None:
        self.base, self.settings, self.kernels, self.files = base, settings, kernels, files
        self.training, self.held = training, held
        self.callbacks, self.command = callbacks, command
        self.examples = self.read_examples()
        self.plan = Plan(self.examples.lengths, settings)
        self.steps = self.plan.steps()
        self.flat = flatten(base.weights, base.fixed)
        self.gradient, self.first, self.second = (zeros_like(self.flat) for _ in range(3))
        self.average: Flat | None = None
        if settings.ema:
            self.average = zeros_like(self.flat)
            self.average.array[:] = self.flat.array
        self.groups = trained_groups(self.flat.parts, settings)
        if not self.groups:
            raise InputError("everything is frozen, so there is nothing to train")
        found = files.restore(self.arrays())
        self.state = found or State()
        self.resumed = found is not None
        files.cut_log(self.state.log_size)
        self.prepared = kernels.prepare(self.flat.weights)
        self.line = ProgressLine(self.steps, self.peak())
        self.order: tuple[int, Indices, list[int]] | None = None  # of an epoch
        self.teachers: Teachers | None = None

    def arrays(self) -> dict[str, Any]:
        """The rows of numbers that a checkpoint holds."""
        found = {"weights": self.flat, "first": self.first, "second": self.second}
        if self.average is not None:
            found["average"] = self.average
        return {name: flat.array for name, flat in found.items()}

    def read_examples(self) -> Examples:
        """The windows of all training questions; says what is worth knowing."""
        base, settings = self.base, self.settings
        begin = time.perf_counter()
        examples, report = make_examples(
            self.training.questions,
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
                f"{self.training.source}: no window holds an answer, so there is nothing to learn"
            )
        notice(
            f"minibert: {self.training.source}: {len(examples)} windows, {examples.with_answer} of "
            f"them with an answer, {int(examples.lengths.sum())} tokens, read in "
            f"{time.perf_counter() - begin:.1f} s"
        )
        if not base.has_head:
            notice(
                f"minibert: {base.name} has no question-answering head; a new one is made, from "
                f"seed {settings.seed}"
            )
        return examples

    def peak(self) -> float | None:
        """Operations a second that the processor can do; None where nobody knows.

        The best of several measurements: others may be at work beside this program.
        """
        if self.kernels.name != "cpu":
            return None
        from minibert.kernels.cpu.measure import rate

        try:
            return max(
                rate(self.kernels.dtype, self.kernels.num_threads or 1) for _ in range(MEASUREMENTS)
            )
        except ValueError:
            return None

    # ------------------------------------------------------------ the run

    def run(self, stop: Interruption) -> TrainingResult:
        """Take steps until the run is complete or interrupted."""
        state, settings = self.state, self.settings
        begin = time.monotonic()
        if self.resumed:
            notice(f"minibert: going on after step {state.step} of {self.steps}")
        longest = 0.0  # seconds of a step
        while True:
            reason = self.measure_if_due(stop)
            if state.step % settings.save_steps == 0 and state.step and not reason:
                self.save()
            if stop.signal is not None:
                reason = "interrupted"
            if reason or self.complete():
                break
            if settings.time_limit is not None:
                spent = time.monotonic() - begin
                if longest and spent + longest > 60 * settings.time_limit:
                    reason = f"{settings.time_limit:g} minutes are over"
                    break
            now = time.monotonic()
            reason = self.step()
            longest = max(longest, time.monotonic() - now)
            if reason:
                break
        if reason is None:
            return self.finish(self.complete() or "complete")
        self.save()
        self.line.end()
        said = (
            f"{reason} after step {state.step} of {self.steps}; a checkpoint is in "
            f"{self.files.run}, and the same command goes on from there"
        )
        stop.pass_on(said)
        notice(f"minibert: {said}")
        return self.result(False, reason)

    def complete(self) -> str | None:
        """Why there is nothing more to do; None if there is."""
        patience = self.settings.early_stopping
        if self.state.step >= self.steps:
            return "complete"
        if patience is not None and self.state.since_best >= patience:
            return f"F1 has not risen in {patience} measurements"
        return None

    def step(self) -> str | None:
        """Take one step.

        Returns:
            Why the run is to be interrupted; None if it goes on.

        Raises:
            InputError: the run diverges.
        """
        state, settings, kernels = self.state, self.settings, self.kernels
        begin = time.perf_counter()
        windows, following = self.next_windows()
        loss = self.accumulate(windows)
        norm = gradient_norm(self.gradient.array, self.groups, kernels) / len(windows)
        rate = learning_rate(settings, state.step, self.steps)
        problem = objection(loss, norm, state.norms)
        if math.isfinite(norm):
            state.norms = [*state.norms, norm][-REMEMBERED:]
        if problem is None:
            state.updates += 1
            state.skipped_in_a_row = 0
            take_step(
                self.flat.array,
                self.gradient.array,
                self.first.array,
                self.second.array,
                self.groups,
                kernels,
                settings,
                learning_rate=rate,
                update=state.updates,
                scale=clipping(norm, settings) / len(windows),
            )
            kernels.refresh(self.prepared, self.flat.weights)
            if self.average is not None:
                average(self.average.array, self.flat.array, settings.ema, state.updates)
            state.losses.append(loss)
        else:
            state.skipped += 1
            state.skipped_in_a_row += 1
            self.line.say(f"minibert: step {state.step + 1} is skipped: {problem}")
            if state.skipped_in_a_row >= MOST_SKIPPED:
                raise self.diverged(
                    f"{MOST_SKIPPED} steps in a row were skipped, because {problem}"
                )
        state.step += 1
        state.epoch, state.place = following
        lengths = self.plan.lengths[windows]
        work = operations(self.base.config, lengths)
        tokens, seconds, work = self.line.stepped(
            int(lengths.sum()), time.perf_counter() - begin, work
        )
        record: dict[str, Any] = {
            "kind": "step",
            "step": state.step,
            "epoch": round(state.epoch + state.place / len(self.examples), 4),
            "loss": float(np.mean(state.losses)) if state.losses else None,
            "learning_rate": rate,
            "gradient_norm": norm if math.isfinite(norm) else None,
            "skipped": state.skipped,
            "tokens_per_second": tokens / seconds,
            "operations_per_second": work / seconds,
        }
        logged = state.step % settings.logging_steps == 0 or state.step == self.steps
        self.line.show(record, state.best["f1"] if state.best else None, logged)
        if not logged:
            return None
        state.losses = []
        self.line.begin_again()
        return self.note(record)

    def diverged(self, reason: str) -> InputError:
        """What there is to say of a run that leads nowhere."""
        return InputError(
            f"step {self.state.step}: {reason}: the run diverges. Begin again in another folder "
            f"with a lower learning rate than {self.settings.learning_rate:g}, or a longer warm-up."
        )

    def next_windows(self) -> tuple[Indices, tuple[int, int]]:
        """The windows of the next step, and the epoch and the place in it that follow."""
        epoch, place = self.state.epoch, self.state.place
        if self.order is None or self.order[0] != epoch:
            order = self.plan.order(epoch)
            self.order = epoch, order, self.plan.bounds(order)
        _, order, bounds = self.order
        end = bounds[bisect_right(bounds, place)]
        return order[place:end], (epoch + 1, 0) if end == len(order) else (epoch, end)

    def accumulate(self, windows: Indices) -> float:
        """The mean loss of a step's windows; leaves the gradient of their sum in `gradient`."""
        self.gradient.array[:] = 0
        total, tokens = 0.0, 0
        for part in self.plan.passes(windows):
            batch = self.examples.batch(part)
            dropouts = self.dropouts(tokens)
            kept = forward(batch, self.prepared, self.base.config, self.kernels, dropouts)
            loss = self.loss(kept, part, batch)
            backward(
                kept,
                loss.d_start,
                loss.d_end,
                self.prepared,
                self.gradient.weights,
                self.base.config,
                self.kernels,
            )
            total += loss.loss
            tokens += len(batch.input_ids)
        return total / len(windows)

    def loss(self, kept: Kept, part: Indices, batch: Batch) -> Loss:
        """The loss of a pass, by the right answers and by the teachers, if there are any."""
        starts, ends = self.examples.positions(part)
        ours = kept.start_logits, kept.end_logits
        if self.teachers is None:
            return span_loss(*ours, batch.cu_seqlens, starts, ends)
        weight, temperature = self.settings.teacher_weight, self.settings.temperature
        hard = span_loss(*ours, batch.cu_seqlens, starts, ends, [1 - weight] * len(part))
        theirs = self.teachers.logits(part, batch)
        soft = soft_loss(ours, theirs, batch.cu_seqlens, temperature, weight)
        return Loss(hard.loss + soft.loss, hard.d_start + soft.d_start, hard.d_end + soft.d_end)

    def dropouts(self, first_token: int) -> Dropouts | None:
        """What is dropped in a part of this step, which begins with so many tokens before it."""
        settings = self.settings
        hidden, attention = settings.hidden_dropout_prob, settings.attention_probs_dropout_prob
        if not hidden and not attention:
            return None
        return Dropouts(
            hidden or 0.0, attention or 0.0, settings.seed, self.state.step, first_token
        )

    # ------------------------------------------------------------ between steps

    def note(self, record: dict[str, Any]) -> str | None:
        """Write a line of the log and call the callbacks with it.

        Returns:
            Why the run is to be interrupted; None if it goes on.
        """
        self.state.log_size = self.files.log(record)
        answers = [callback(dict(record)) for callback in self.callbacks]
        return "stopped by a callback" if any(answer is False for answer in answers) else None

    def save(self) -> None:
        """Write a checkpoint, what is known of the teachers, and the page."""
        self.keep_logits()
        self.files.save(self.state, self.arrays(), self.settings.save_total_limit)
        self.write_page()

    def keep_logits(self) -> None:
        """Bring the teachers' logits to the disk."""
        if self.teachers is not None:
            with self.files.writing(self.teachers.cache or self.files.run):
                self.teachers.keep()

    def write_page(self) -> None:
        """Write the page with the run's curves."""
        state = self.state
        about = {
            "model": self.base.name,
            "data": self.training.source,
            "measured on": self.held.source,
            "steps": f"{state.step} of {self.steps}",
            "skipped": str(state.skipped),
        }
        self.files.write_page(render_training(self.files.records(), about, self.steps))

    def measure_if_due(self, stop: Interruption) -> str | None:
        """Measure the model on the held-out questions, if it is time; keep it if it is the best.

        Returns:
            Why the run is to be interrupted; None if it goes on.
        """
        state, questions = self.state, self.held.questions
        due = state.step % self.settings.eval_steps == 0 or state.step == self.steps
        if not questions or not state.step or not due or self.measured_at == state.step:
            return None
        begin = time.perf_counter()
        kernels = get_backend(self.kernels.name, self.kernels.dtype, self.kernels.num_threads)
        model = self.base.runner(kernels, kernels.prepare(self.chosen.weights))

        def answered(count: int) -> bool:
            self.line.show_measuring(state.step, count, len(questions))
            return stop.signal is None

        try:
            numbers = measure(model, questions, scoring(questions, self.settings), answered)
        except BackendError:  # logits that are no numbers
            raise self.diverged("the logits are not finite numbers") from None
        if numbers is None:
            return "interrupted"
        seconds = time.perf_counter() - begin
        self.line.measuring += seconds
        record = {"kind": "measurement", "step": state.step, "seconds": seconds, **numbers}
        state.measurement = {"step": state.step, **numbers}
        best = state.best
        if best is None or best["total"] != numbers["total"] or numbers["f1"] > best["f1"]:
            state.best, state.since_best = state.measurement, 0
            with self.files.new_best() as folder:
                write_model(folder, self.base, self.chosen.weights, self.card(numbers))
        else:
            state.since_best += 1
        self.line.say(f"step {state.step}: {spoken(numbers)}")
        answer = self.note(record)
        self.write_page()
        return answer

    @property
    def measured_at(self) -> int:
        """The step of the last measurement; 0 before the first."""
        return int(self.state.measurement["step"]) if self.state.measurement else 0

    @property
    def chosen(self) -> Flat:
        """The weights that are measured and kept: their average, if there is one."""
        return self.flat if self.average is None else self.average

    def finish(self, reason: str) -> TrainingResult:
        """Write the model and remove what only an unfinished run needs."""
        self.keep_logits()
        card = self.card(self.state.measurement)
        self.write_page()
        write_model(self.files.folder, self.base, self.chosen.weights, card)
        self.files.complete()
        self.line.end()
        return self.result(True, reason)

    def result(self, finished: bool, reason: str) -> TrainingResult:
        """How the run ended."""
        state = self.state
        return TrainingResult(
            folder=self.files.folder,
            finished=finished,
            reason=reason,
            step=state.step,
            steps=self.steps,
            skipped=state.skipped,
            measurement=state.measurement,
            best=state.best,
        )

    def card(self, measurement: Mapping[str, float] | None) -> str:
        """The model's README.md."""
        state, lengths = self.state, self.plan.lengths
        return model_card(
            {
                "title": self.files.folder.resolve().name,
                "base": self.base.name,
                "data": self.training.source,
                "teachers": [model.name for model in self.teachers.models] if self.teachers else [],
                "windows": f"{len(lengths)} of {int(lengths.sum())} tokens in all, "
                f"{self.examples.with_answer} with an answer",
                "trained": f"{state.step} of {self.steps} steps, {state.skipped} of them skipped",
                "command": self.command,
                "held_out": self.held.source,
                "measurement": measurement,
            },
            asdict(self.settings),
        )


def spoken(numbers: Mapping[str, float]) -> str:
    """SQuAD's numbers in a line."""
    parts = [
        f"{kind} F1 {numbers[f'{kind}_f1']:.2f}"
        for kind in ("HasAns", "NoAns")
        if f"{kind}_f1" in numbers
    ]
    best = f"best F1 {numbers['best_f1']:.2f} at threshold {numbers['best_f1_thresh']:.2f}"
    return f"EM {numbers['exact']:.2f}, F1 {numbers['f1']:.2f} ({', '.join([*parts, best])})"
