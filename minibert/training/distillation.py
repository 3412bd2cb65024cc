"""Distillation: a model learns from the logits of others as well as from the right answers.

Where a teacher wavers between two answers, that tells more than the one that the file has.  Student
and teachers read the same windows, so their tokens must be the same.

Source: Hinton, Vinyals and Dean 2015 (arXiv:1503.02531).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minibert import __version__
from minibert.arrays import Floats, Ints
from minibert.batches import Batch
from minibert.drafts import sweep, whole_file
from minibert.encoder import embed, encoder_layer, qa_logits
from minibert.errors import InputError
from minibert.files import read_file
from minibert.model import Model, load_model
from minibert.spans import Logits
from minibert.training.base import Base
from minibert.training.examples import Examples
from minibert.training.loss import Loss
from minibert.training.order import Indices
from minibert.training.saved_arrays import Table, new_table, read_array
from minibert.training.settings import TrainingSettings
from minibert.unfinished import differences

HEADER, LOGITS, KNOWN = "teacher.json", "logits.npy", "known.npy"
# Texts that different vocabularies or splitters take apart differently.
SAMPLE = "Élan vital: naïve Cafés, 1,843 UNBELIEVABLE re-elections; 東京 and Straße."


def soft_loss(
    ours: Logits, theirs: Logits, cu_seqlens: Ints, temperature: float, weight: float
) -> Loss:
    """How far the student's probabilities are from the teachers', and in which direction to move.

    For each window, half for the start and half for the end: t^2 KL(p, q) with p and q the softmax
    of the teachers' and of the student's logits divided by the temperature t.  The derivative with
    respect to the student's logits is t (q - p); t^2 keeps it about as long whatever t is.

    Args:
        ours: the student's start and end logits [T].
        theirs: the teachers'.
        cu_seqlens: [B + 1], where each window begins, and T.
        temperature: the higher, the more the teachers' doubts count.
        weight: of the result.

    Returns:
        The loss, summed over windows in float64, and its gradient.
    """
    total, gradients = 0.0, []
    for student, teacher in zip(ours, theirs, strict=True):
        gradient = np.empty_like(student)
        for begin, end in pairwise(cu_seqlens.tolist()):
            p, q = (log_softmax(x[begin:end] / temperature) for x in (teacher, student))
            total += weight / 2 * temperature**2 * float((np.exp(p) * (p - q)).sum())
            gradient[begin:end] = weight / 2 * temperature * (np.exp(q) - np.exp(p))
        gradients.append(gradient)
    return Loss(total, gradients[0], gradients[1])


def hidden_loss(ours: Floats, theirs: Floats, cu_seqlens: Ints, weight: float) -> tuple[float, Any]:
    """The mean squared difference of hidden states, summed over windows, and its gradient.

    Args:
        ours: the student's, [T, D].
        theirs: the teacher's.
        cu_seqlens: [B + 1], where each window begins, and T.
        weight: of the result.

    Returns:
        The loss, and its gradient with respect to `ours`, [T, D].
    """
    difference = ours - theirs
    lengths = np.diff(cu_seqlens)
    shares = np.repeat(weight / (lengths * ours.shape[1]), lengths)[:, None]  # [T, 1]
    total = float((shares * np.square(difference, dtype=np.float64)).sum())
    return total, (2 * shares * difference).astype(ours.dtype)


def matched(student_layers: int, teacher_layers: int) -> list[int]:
    """The layer of the teacher that each layer of the student is to be like.

    The last is like the last, and the others are evenly spread.

    Example:
        >>> matched(3, 12)
        [3, 7, 11]
    """
    return [(i + 1) * teacher_layers // student_layers - 1 for i in range(student_layers)]


def log_softmax(logits: Floats) -> Any:
    """The logarithms of the probabilities that logits stand for, float64."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    return scores - np.log(np.exp(scores).sum())


def load_teachers(
    names: Sequence[str | Path | Model], base: Base, settings: TrainingSettings
) -> list[Model]:
    """Load the teachers.

    Args:
        names: as load_model takes them.
        base: the student.
        settings: in which dtype they run, and how long windows are.

    Raises:
        MinibertError: one cannot be loaded, reads other tokens than the student, or shorter
            windows.
    """
    teachers = []
    for name in names:
        teacher = load_model(
            name, device=settings.device, dtype=settings.dtype, num_threads=settings.num_threads
        )
        if reason := other_tokens(teacher, base):
            raise InputError(
                f"{teacher.name}: cannot teach {base.name}: {reason}. Teacher and student must "
                "read the same tokens."
            )
        if (longest := teacher.config.longest_window) < (settings.max_seq_length or 0):
            raise InputError(
                f"{teacher.name}: reads windows of at most {longest} tokens, and max_seq_length is "
                f"{settings.max_seq_length}. Lower it."
            )
        teachers.append(teacher)
    if settings.match_layers:
        check_widths(teachers, base)
    return teachers


def check_widths(teachers: Sequence[Model], base: Base) -> None:
    """Refuse teachers whose hidden states cannot be compared with the student's.

    Raises:
        InputError: there is not just one, or it is of another width, or has fewer layers.
    """
    if len(teachers) != 1:
        raise InputError(f"match_layers needs one teacher, got {len(teachers)}")
    ours, theirs = base.config, teachers[0].config
    if ours.hidden_size != theirs.hidden_size or ours.num_hidden_layers > theirs.num_hidden_layers:
        raise InputError(
            f"match_layers needs a teacher as wide as the student and at least as deep: "
            f"{teachers[0].name} has {theirs.num_hidden_layers} layers x {theirs.hidden_size}, "
            f"{base.name} {ours.num_hidden_layers} x {ours.hidden_size}"
        )


def other_tokens(teacher: Model, base: Base) -> str | None:
    """How a teacher's tokens differ from the student's; None if they are the same."""
    ours, theirs = base.tokenizer, teacher.tokenizer
    pairs = base.runner(None, None).pair, teacher.pair
    vocabularies = [each.backend.get_vocab(with_added_tokens=True) for each in (ours, theirs)]
    if vocabularies[0] != vocabularies[1]:
        sizes = [len(vocabulary) for vocabulary in vocabularies]
        return f"it has another vocabulary, of {sizes[1]} tokens, the student's has {sizes[0]}"
    if pairs[0] != pairs[1]:
        return f"it joins question and text as {pairs[1]}, the student as {pairs[0]}"
    if not np.array_equal(ours.encode(SAMPLE).ids, theirs.encode(SAMPLE).ids):
        return "it splits texts in another way"
    return None


class Teachers:
    """The logits of teachers for the windows of a run: their mean, if there are several.

    Args:
        models: loaded, with the tokens of the student.
        examples: the windows.
        cache: a folder where logits are kept, so that each window is read once; None: nowhere.

    Raises:
        InputError: the folder cannot be written, or holds logits of others or for other windows.
    """

    def __init__(self, models: Sequence[Model], examples: Examples, cache: Path | None) -> None:
        self.models, self.examples, self.cache = models, examples, cache
        self.bounds = np.cumsum([0, *examples.lengths], dtype=np.int64)
        self.known = np.zeros(len(examples), bool)
        self.kept: Table | None = None  # [2, tokens of all windows]
        if cache is not None:
            self.open(cache)

    def open(self, cache: Path) -> None:
        """Open the folder with what is known already, or make it."""
        path = cache / HEADER
        header = cache_header(self.models, self.examples)
        shape = (2, int(self.bounds[-1]))
        try:
            cache.mkdir(parents=True, exist_ok=True)
            sweep(cache)
            if path.exists():
                if different := differences(path, read_file(path), header):
                    raise InputError(
                        f"{path}: logits of other teachers or for other windows: "
                        f"{'; '.join(different)}. Choose another folder."
                    )
                read_array(cache / KNOWN, self.known)
                self.kept = Table(cache / LOGITS, shape)
                return
            if others := sorted(set(os.listdir(cache)) - {LOGITS, KNOWN}):
                raise InputError(f"{cache}: holds {others[0]!r}, and no logits of teachers")
            self.kept = new_table(cache / LOGITS, shape)
            self.keep()
            with whole_file(path) as file:
                file.write(json.dumps(header).encode())
        except (OSError, EOFError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{cache}: cannot be used: {error}") from None

    def logits(self, chosen: Indices, batch: Batch) -> Logits:
        """The mean start and end logits [T] for a batch.

        Args:
            chosen: its windows.
            batch: the same, packed.
        """
        if self.kept is not None and self.known[chosen].all():
            places = [self.bounds[index : index + 2].tolist() for index in chosen]
            kept = (np.concatenate([self.kept.read(row, *at) for at in places]) for row in (0, 1))
            start, end = kept
            return start, end
        found = np.array(
            [
                model.checked(qa_logits(batch, model.weights, model.config, model.kernels))
                for model in self.models
            ]
        )
        start, end = found.mean(axis=0, dtype=np.float32)  # [2, T]
        if self.kept is not None:
            for index, (a, b) in zip(chosen, pairwise(batch.cu_seqlens), strict=True):
                for row, values in enumerate((start, end)):
                    self.kept.write(row, int(self.bounds[index]), values[a:b])
            self.known[chosen] = True
        return start, end

    def hidden_states(self, batch: Batch, layers: int) -> list[Floats]:
        """What the only teacher's layers return that a student's layers are to be like, [T, D]."""
        (model,) = self.models
        kernels, weights, config = model.kernels, model.weights, model.config
        x = embed(batch, weights, config, kernels)
        states = []
        for layer in weights.layers:
            x = encoder_layer(x, batch.cu_seqlens, layer, config, kernels)
            states.append(x)
        return [states[i] for i in matched(layers, len(states))]

    def keep(self) -> None:
        """Bring what is known to the disk.

        Raises:
            OSError: it is full.
        """
        if self.cache is not None and self.kept is not None:
            self.kept.keep()  # before it is said to be known
            with whole_file(self.cache / KNOWN) as file:
                np.save(file, self.known)


def cache_header(models: Sequence[Model], examples: Examples) -> dict[str, Any]:
    """What kept logits depend on."""
    windows = hashlib.sha256()
    for array in (examples.questions.values, examples.texts.values, examples.windows):
        windows.update(np.ascontiguousarray(array).tobytes())
    return {
        "minibert": __version__,
        "teachers": teacher_digests(models),
        "windows": windows.hexdigest(),
    }


def teacher_digests(models: Sequence[Model]) -> list[str]:
    """What tells teachers from others: their files, and how they run."""
    return [
        f"{model.files.digest() if model.files else model.name} {model.device} {model.dtype}"
        for model in models
    ]
