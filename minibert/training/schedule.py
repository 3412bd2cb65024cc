"""The learning rate of each step: it rises to its highest, then falls to 0.

Source: `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup` in transformers'
optimization.py.
"""

from __future__ import annotations

import math

from minibert.training.settings import TrainingSettings


def warmup_steps(settings: TrainingSettings, steps: int) -> int:
    """In how many of all steps the learning rate rises."""
    return settings.warmup_steps or math.ceil(settings.warmup_ratio * steps)


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """The learning rate of a step.

    Args:
        settings: the highest, how many steps it rises, and the form in which it falls.
        step: its number, from 0.
        steps: of the whole run.

    Example:
        >>> chosen = TrainingSettings(learning_rate=1.0, warmup_steps=2)
        >>> [learning_rate(chosen, step, 6) for step in range(6)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    """
    rising = warmup_steps(settings, steps)
    if step < rising:
        return settings.learning_rate * step / rising
    done = (step - rising) / max(1, steps - rising)  # from 0 to 1
    if settings.lr_scheduler_type == "cosine":
        return settings.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
    return settings.learning_rate * max(0.0, 1.0 - done)
