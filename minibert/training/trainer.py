"""A run, step by step.

It is a chain of steps.  Between two of them it is a `State`, and a few rows of numbers; all that
a step does follows from them and from the settings.  So a run that was interrupted goes on from its
last checkpoint and ends in the same weights, bit for bit.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minibert.arrays import Floats
from minibert.batches import Batch
from minibert.errors import BackendError, InputError
from minibert.kernels.backend import get_backend
from minibert.kernels.training import TrainingKernels
from minibert.pages.training import render_training
from minibert.progress import notice
from minibert.squad.files import SquadQuestion
from minibert.training.base import Base
from minibert.training.card import model_card
from minibert.training.distillation import Teachers, hidden_loss, soft_loss
from minibert.training.examples import Examples
from minibert.training.flat import Flat, flatten, zeros_like
from minibert.training.held_out import measure, scoring
from minibert.training.interruption import Interruption
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
from minibert.training.run_folder import RunFolder, State
from minibert.training.schedule import learning_rate
from minibert.training.settings import TrainingSettings

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


@dataclass(frozen=True)
class About:
    """What people are told of a run."""

    trained_on: str
    measured_on: str
    teachers: tuple[str, ...]  # their names
    command: str | None


class Trainer:
    """A run that goes on: its arrays, its state, and what it needs to take a step."""

    def __init__(
        self,
        base: Base,
        examples: Examples,
        about: About,
        held: Sequence[SquadQuestion],
        teachers: Teachers | None,
        settings: TrainingSettings,
        kernels: TrainingKernels,
        files: RunFolder,
        callbacks: Sequence[Callback],
    ) -> None:
        self.base, self.settings, self.kernels, self.files = base, settings, kernels, files
        self.examples, self.about, self.held, self.teachers = examples, about, held, teachers
        self.callbacks = callbacks
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
        self.line = ProgressLine(self.steps, kernels)
        self.order: tuple[int, Indices, list[int]] | None = None  # of an epoch

    def arrays(self) -> dict[str, Any]:
        """The rows of numbers that a checkpoint holds."""
        found = {"weights": self.flat, "first": self.first, "second": self.second}
        if self.average is not None:
            found["average"] = self.average
        return {name: flat.array for name, flat in found.items()}

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
            apart, d_layers = self.distance(kept, batch)
            backward(
                kept,
                loss.d_start,
                loss.d_end,
                self.prepared,
                self.gradient.weights,
                self.base.config,
                self.kernels,
                d_layers,
            )
            total += loss.loss + apart
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

    def distance(self, kept: Kept, batch: Batch) -> tuple[float, dict[int, Floats]]:
        """How far hidden states are from the teacher's, if that counts, and in which direction.

        Returns:
            The loss, and its gradient with respect to what each layer returns.
        """
        weight = self.settings.match_layers
        if self.teachers is None or not weight:
            return 0.0, {}
        total, gradients, count = 0.0, {}, len(kept.layers)
        for i, theirs in enumerate(self.teachers.hidden_states(batch, count)):
            ours = self.kernels.hidden_states(kept.layers[i].output)
            loss, gradients[i] = hidden_loss(ours, theirs, batch.cu_seqlens, weight / count)
            total += loss
        return total, gradients

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
            "data": self.about.trained_on,
            "measured on": self.about.measured_on,
            "steps": f"{state.step} of {self.steps}",
            "skipped": str(state.skipped),
        }
        self.files.write_page(render_training(self.files.records(), about, self.steps))

    def measure_if_due(self, stop: Interruption) -> str | None:
        """Measure the model on the held-out questions, if it is time; keep it if it is the best.

        Returns:
            Why the run is to be interrupted; None if it goes on.
        """
        state, questions = self.state, self.held
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
        if not self.state.updates:
            raise InputError(
                f"{self.files.run}: none of {self.state.step} steps changed the weights, so there "
                "is no model to write. Take more steps, or see why they were skipped."
            )
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
                "data": self.about.trained_on,
                "teachers": self.about.teachers,
                "windows": f"{len(lengths)} of {int(lengths.sum())} tokens in all, "
                f"{self.examples.with_answer} with an answer",
                "trained": f"{state.step} of {self.steps} steps, {state.skipped} of them skipped",
                "command": self.about.command,
                "held_out": self.about.measured_on,
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
