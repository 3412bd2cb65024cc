"""What can be chosen for a training run.  Names and defaults are run_qa's where it has them.

Source: `TrainingArguments` of transformers 4.57.6, and its examples/pytorch/question-answering.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Any

from minibert.errors import InputError
from minibert.options import (
    DEVICES,
    DTYPES,
    as_float,
    check_count,
    check_flag,
    gpu_index,
    is_one_of,
    settle,
)
from minibert.reprs import changed_fields, shown

SCHEDULES = ("linear", "cosine")

# What may be another when an interrupted run goes on: its result does not depend on it.
FREE = (
    *("num_threads", "logging_steps", "save_steps", "save_total_limit", "eval_steps"),
    *("eval_limit", "time_limit"),
)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a model is trained.

    Raises:
        InputError: values are of the wrong kind or out of range; all are named.
    """

    num_train_epochs: float = 3.0
    max_steps: int | None = None  # so many steps, instead of num_train_epochs
    learning_rate: float = 5e-5  # its highest
    per_device_train_batch_size: int = 32  # windows of a pass; run_qa's default is 8
    batch_tokens: int | None = None  # at most so many tokens a step, instead of a count of windows
    gradient_accumulation_steps: int = 1  # passes of a step
    max_tokens_per_pass: int = 8192  # a step with more is cut into several passes, to save memory
    warmup_ratio: float = 0.0  # share of the steps in which the learning rate rises
    warmup_steps: int = 0  # or so many, if more than 0
    lr_scheduler_type: str = "linear"  # how it falls to 0 then: "linear" or "cosine"
    weight_decay: float = 0.0  # of matrices; biases and norms have none
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0  # the gradient is scaled down to this length; 0: never
    layerwise_decay: float = 1.0  # learning rate of a layer, as a share of that of the one above
    freeze_embeddings: bool = False
    freeze_layers: int = 0  # the first so many
    hidden_dropout_prob: float | None = None  # None: as config.json says, or 0.1
    attention_probs_dropout_prob: float | None = None  # the same
    ema: float = 0.0  # share of itself that the average of the weights keeps in a step; 0: none
    max_seq_length: int | None = None  # tokens of a window; None: 384, or the model's limit
    doc_stride: int = 128  # tokens that neighbouring windows share
    max_query_length: int = 64  # tokens; longer questions are cut
    layers: tuple[int, ...] | None = None  # begin with these layers of the model; None: with all
    teacher_weight: float = 0.5  # share of the loss that teachers have; the answers have the rest
    match_layers: float = 0.0  # weight of the difference of hidden states; 0: none
    temperature: float = 1.0  # the higher, the more the teachers' doubts count
    all_occurrences: bool = False  # whether the answer is right wherever it occurs in a window
    limit: int | None = None  # train on so many questions, evenly spread over the file
    seed: int = 42
    device: str = "auto"
    dtype: str | None = None  # in which matrices are multiplied; None: float32
    num_threads: int | None = None
    logging_steps: int = 10
    save_steps: int = 500
    save_total_limit: int = 2  # checkpoints that are kept
    held_out: float = 0.05  # share of the articles that are kept apart to measure the model with
    eval_steps: int = 500
    eval_limit: int | None = 1500  # measure on so many questions, evenly spread; None: on all
    early_stopping: int | None = None  # stop when F1 has not risen so many times
    time_limit: float | None = None  # minutes, after which the run is interrupted

    def __post_init__(self) -> None:
        problems: list[str] = []

        def check(name: str, test: Any, expected: str, may_be_none: bool = False) -> None:
            value = getattr(self, name)
            if not (may_be_none and value is None) and not test(value):
                problems.append(f"{name} must be {expected}, got {shown(value)}")

        for name, least, may_be_none in (
            ("max_steps", 1, True),
            ("per_device_train_batch_size", 1, False),
            ("batch_tokens", 1, True),
            ("gradient_accumulation_steps", 1, False),
            ("max_tokens_per_pass", 1, False),
            ("warmup_steps", 0, False),
            ("freeze_layers", 0, False),
            ("max_seq_length", 1, True),
            ("doc_stride", 0, False),
            ("max_query_length", 1, False),
            ("limit", 1, True),
            ("seed", 0, False),
            ("num_threads", 1, True),
            ("logging_steps", 1, False),
            ("save_steps", 1, False),
            ("save_total_limit", 1, False),
            ("eval_steps", 1, False),
            ("eval_limit", 1, True),
            ("early_stopping", 1, True),
        ):
            try:
                if not (may_be_none and getattr(self, name) is None):
                    bits = 64 if name == "seed" else 63
                    settle(self, name, check_count(name, getattr(self, name), least, bits))
            except InputError as error:
                problems.append(str(error))
        for field in fields(self):  # numbers of other programs cannot be written down
            if "float" in str(field.type):
                value = getattr(self, field.name)
                settle(self, field.name, value if as_float(value) is None else as_float(value))
        for name in ("num_train_epochs", "learning_rate", "adam_epsilon", "temperature"):
            check(name, lambda x: is_number(x) and x > 0, "a number above 0")
        check("num_train_epochs", lambda x: not is_number(x) or x <= 10000, "at most 10000")
        check("time_limit", lambda x: is_number(x) and x > 0, "a number above 0", True)
        for name in ("weight_decay", "max_grad_norm", "match_layers"):
            check(name, lambda x: is_number(x) and x >= 0, "a number of at least 0")
        for name in ("adam_beta1", "adam_beta2", "ema", "held_out"):
            check(name, lambda x: is_number(x) and 0 <= x < 1, "from 0 to below 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            check(name, lambda x: is_number(x) and 0 <= x < 1, "from 0 to below 1", True)
        check("teacher_weight", lambda x: is_number(x) and 0 <= x <= 1, "from 0 to 1")
        check("layers", is_layers, "numbers of layers that rise, from 0", True)
        check("warmup_ratio", lambda x: is_number(x) and 0 <= x <= 1, "from 0 to 1")
        check("layerwise_decay", lambda x: is_number(x) and 0 < x <= 1, "above 0, up to 1")
        for name in ("freeze_embeddings", "all_occurrences"):
            try:
                settle(self, name, check_flag(name, getattr(self, name)))
            except InputError as error:
                problems.append(str(error))
        for name, choices in (("lr_scheduler_type", SCHEDULES), ("dtype", DTYPES)):
            one = f"one of {', '.join(choices)}"
            check(name, partial(is_one_of, choices=choices), one, may_be_none=name == "dtype")
        check(
            "device",
            lambda x: is_one_of(x, DEVICES) or (isinstance(x, str) and gpu_index(x) is not None),
            f"one of {', '.join(DEVICES)}",
        )
        if problems:
            raise InputError("; ".join(problems))
        if self.layers is not None:
            settle(self, "layers", tuple(map(int, self.layers)))

    def __repr__(self) -> str:
        return f"TrainingSettings({', '.join(changed_fields(self))})"


def is_layers(value: object) -> bool:
    """Whether a value is a list of numbers of layers, each higher than the one before."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    if any(isinstance(x, bool) or not isinstance(x, Integral) for x in value):
        return False
    numbers = [-1, *map(int, value)]
    return all(a < b < 2**63 for a, b in pairwise(numbers))


def is_number(value: object) -> bool:
    """Whether a value is a finite float."""
    return isinstance(value, float) and math.isfinite(value)
