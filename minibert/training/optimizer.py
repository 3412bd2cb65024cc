"""What a step does to the weights: clipping, AdamW, an average; and steps that are not taken.

The weights, their gradient and the optimizer's averages are rows of numbers (flat.py), and a group
is a stretch of them with the same learning rate and weight decay.

Source: Loshchilov and Hutter 2019 (arXiv:1711.05101) for AdamW; Clark et al. 2020
(arXiv:2003.10555) for the layer-wise decay; Pascanu et al. 2013 (arXiv:1211.5063) for clipping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from minibert.arrays import Floats
from minibert.kernels.training import AdamW, TrainingKernels
from minibert.training.flat import Part
from minibert.training.settings import TrainingSettings

# A gradient so many times longer than usual comes from a damaged example, or the run diverges.
OUTLIER = 20.0
REMEMBERED = 128  # lengths of gradients that say what is usual
LEAST_REMEMBERED = 32  # before so many, nothing is
MOST_SKIPPED = 20  # steps in a row that are not taken, before the run is given up

# Numbers that are averaged at once: they stay in the cache, and what lies between needs no new
# memory from the system (33 million take 12 ms on Zen 4, and 110 ms four times as many at once).
BLOCK = 2**16


@dataclass(frozen=True)
class Group:
    """A stretch of the weights that are trained alike."""

    begin: int
    end: int
    share: float  # of the learning rate
    weight_decay: float


def trained_groups(parts: Iterable[Part], settings: TrainingSettings) -> list[Group]:
    """The weights that are trained, in stretches as long as can be.

    Between two parts there may be zeros, which stay zeros.

    Args:
        parts: of all weights, in their order.
        settings: which learn how.
    """
    parts = list(parts)
    top = max(part.depth for part in parts)
    groups: list[Group] = []
    before = None  # the part before, if it is trained
    for part in parts:
        frozen = part.depth <= settings.freeze_layers if part.depth else settings.freeze_embeddings
        group = Group(
            part.begin,
            part.end,
            settings.layerwise_decay ** (top - part.depth),
            settings.weight_decay if part.decays else 0.0,
        )
        if frozen:
            before = None
            continue
        if before and (before.share, before.weight_decay) == (group.share, group.weight_decay):
            group = replace(group, begin=groups.pop().begin)
        groups.append(group)
        before = group
    return groups


def gradient_norm(gradient: Floats, groups: Sequence[Group], kernels: TrainingKernels) -> float:
    """The length of the gradient of what is trained; NaN or infinite if a number of it is."""
    total = sum(kernels.sum_of_squares(gradient[group.begin : group.end]) for group in groups)
    return math.sqrt(total) if total >= 0 else math.nan


def objection(loss: float, norm: float, norms: Sequence[float]) -> str | None:
    """Why a step should not be taken; None if it should.

    Args:
        loss: of the step.
        norm: length of its gradient.
        norms: lengths of those before it.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the length of the gradient is {norm}"
    if len(norms) >= LEAST_REMEMBERED and norm > OUTLIER * (usual := median(norms)):
        return f"the gradient is {norm / usual:.0f} times as long as usual"
    return None


def take_step(
    weights: Floats,
    gradient: Floats,
    first: Floats,
    second: Floats,
    groups: Sequence[Group],
    kernels: TrainingKernels,
    settings: TrainingSettings,
    *,
    learning_rate: float,
    update: int,
    scale: float,
) -> None:
    """Change the weights and the optimizer's averages.

    Args:
        weights: [N].
        gradient: [N], of the sum of the windows' losses.
        first: [N] average of the gradient.
        second: [N] average of its squares.
        groups: what is trained.
        kernels: of the device.
        settings: the optimizer's numbers.
        learning_rate: of this step.
        update: how many steps have been taken, with this one.
        scale: of the gradient: one over the number of windows, and clipping.
    """
    for group in groups:
        part = slice(group.begin, group.end)
        numbers = AdamW(
            learning_rate=learning_rate * group.share,
            beta1=settings.adam_beta1,
            beta2=settings.adam_beta2,
            eps=settings.adam_epsilon,
            weight_decay=group.weight_decay,
            step=update,
            scale=scale,
        )
        kernels.adamw(weights[part], gradient[part], first[part], second[part], numbers)


def clipping(norm: float, settings: TrainingSettings) -> float:
    """What the gradient is multiplied by, so that it is no longer than it may be.

    Source: `clip_grad_norm_` of torch.
    """
    most = settings.max_grad_norm
    return min(1.0, most / (norm + 1e-6)) if most else 1.0


def average(mean: Floats, weights: Floats, ema: float, update: int) -> None:
    """Move the average of the weights towards them.

    It moves faster in the first steps, or it would be about the weights that the run began with.

    Args:
        mean: [N], is changed.
        weights: [N].
        ema: share of itself that it keeps.
        update: how many steps have been taken.

    Source: `ExponentialMovingAverage` of TensorFlow, with `num_updates`.
    """
    share = np.float32(1.0 - min(ema, (1 + update) / (10 + update)))
    for begin in range(0, len(mean), BLOCK):
        part = slice(begin, begin + BLOCK)
        mean[part] += share * (weights[part] - mean[part])
