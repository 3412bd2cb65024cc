"""What a person sees while a model is trained: one line, which says where the run is."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from minibert import progress
from minibert.arrays import Ints
from minibert.config import BertConfig
from minibert.kernels.training import TrainingKernels
from minibert.progress import EVERY, notice, on_terminal, say

MEASUREMENTS = 5  # of the processor's peak


def operations(config: BertConfig, lengths: Sequence[int] | Ints) -> float:
    """Operations that training on windows takes; a multiplication with its addition counts as two.

    Those of matrices, forward once and backward twice; what is computed again is not counted.

    Args:
        config: shape of the model.
        lengths: tokens of each window.
    """
    d, f = config.hidden_size, config.intermediate_size
    tokens = sum(map(float, lengths))
    pairs = sum(float(length) ** 2 for length in lengths)
    layer = 2 * tokens * (4 * d * d + 2 * d * f) + 4 * pairs * d
    return 3 * config.num_hidden_layers * layer


def peak(kernels: TrainingKernels) -> float | None:
    """Operations a second that the processor can do; None where nobody knows.

    The best of several measurements: others may be at work beside this program.
    """
    if kernels.name != "cpu":
        return None
    from minibert.kernels.cpu.measure import rate

    threads = kernels.num_threads or 1
    try:
        return max(rate(kernels.dtype, threads) for _ in range(MEASUREMENTS))
    except ValueError:
        return None


def duration(seconds: float) -> str:
    """A time for people.

    Example:
        >>> duration(59), duration(3700), duration(90000)
        ('0:59', '1:01:40', '25:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressLine:
    """Draws over one line on a terminal; elsewhere the command says a line for each of the log.

    Args:
        steps: of the whole run.
        kernels: which compute.
    """

    def __init__(self, steps: int, kernels: TrainingKernels) -> None:
        self.steps = steps
        self.seconds = 0.0  # that steps of this process took
        self.measuring = 0.0  # and its measurements
        self.counted = 0  # its steps
        self.since_logged = (
            0,
            0.0,
            0.0,
        )  # tokens, seconds and operations since the log's last line
        self.drawn = 0.0
        self.terminal = on_terminal(sys.stderr)
        # Measured only if somebody is told: it takes a second.
        self.peak = peak(kernels) if self.terminal or progress.speaking else None

    def stepped(self, tokens: int, seconds: float, work: float) -> tuple[int, float, float]:
        """Note what a step did; tokens, seconds and operations since the log's last line."""
        self.seconds += seconds
        self.counted += 1
        before = self.since_logged
        self.since_logged = (before[0] + tokens, before[1] + seconds, before[2] + work)
        return self.since_logged

    def begin_again(self) -> None:
        """A line of the log was written."""
        self.since_logged = (0, 0.0, 0.0)

    def left(self, step: int) -> str:
        """How long the rest of the run takes, if it goes on as before."""
        if not self.counted:
            return ""
        rate = (self.seconds + self.measuring) / self.counted
        return f", {duration(rate * (self.steps - step))} left"

    def show(self, record: Mapping[str, Any], f1: float | None, logged: bool) -> None:
        """Say where the run is.

        Args:
            record: of the last step.
            f1: of the last measurement.
            logged: whether the record is one of the log, too.
        """
        rate = record["operations_per_second"]
        share = f" ({rate / self.peak:.0%} of peak)" if self.peak else ""
        loss = "none" if record["loss"] is None else f"{record['loss']:.3f}"
        score = "" if f1 is None else f", F1 {f1:.1f}"
        line = (
            f"step {record['step']}/{self.steps}, epoch {record['epoch']:.2f}, "
            f"loss {loss}, lr {record['learning_rate']:.1e}{score}, "
            f"{record['tokens_per_second']:,.0f} tokens/s, {rate / 1e9:.0f} GFLOP/s{share}"
            f"{self.left(record['step'])}"
        )
        if self.terminal:
            self.draw(line)
        elif logged:
            notice(line)

    def show_measuring(self, step: int, done: int, count: int) -> None:
        """Say how far a measurement is."""
        line = f"step {step}/{self.steps}, measuring: {done}/{count} questions{self.left(step)}"
        if self.terminal and (done == count or time.monotonic() - self.drawn >= EVERY):
            self.draw(line)

    def draw(self, line: str) -> None:
        """Overwrite the line."""
        self.drawn = time.monotonic()
        say(line, clear=True)

    def say(self, line: str) -> None:
        """Say something that stays."""
        if self.terminal:
            say(f"{line}\n", clear=True)
        else:
            notice(line)

    def end(self) -> None:
        """Leave the line as it is."""
        if self.terminal:
            say("\n")
