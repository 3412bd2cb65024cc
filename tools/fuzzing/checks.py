"""What must hold of answers, whatever was asked of whatever model."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from fuzzing.verdicts import Broken
from minibert.checkpoints.safetensors import open_checkpoint
from minibert.model import Model

LARGEST_WEIGHT = 100.0  # beyond it, the roundings of two devices may grow to anything
APART = 1e-3  # by which logits of two devices may differ, in the largest logit and at least 1


def check_answer(answer: dict[str, Any], texts: list[str] | None) -> None:
    """An answer of QuestionAnswerer has finite numbers and stands where it says.

    Args:
        answer: its fields.
        texts: that it comes from; None if it is not known what they are.
    """
    for name in ("score", "probability", "null_score"):
        if not math.isfinite(answer[name]):
            raise Broken("nan", f"{name} is {answer[name]}")
    if not 0 <= answer["probability"] <= 1 + 1e-6:
        raise Broken("wrong", f"probability {answer['probability']}")
    begin, end = answer["start"], answer["end"]
    if not answer["text"] and (begin, end) != (0, 0):
        raise Broken("wrong", f"no answer from {begin} to {end}")
    if texts is not None and answer["text"]:
        check_place(answer["text"], texts[answer["document"]], begin, end)


def check_results(results: Any, text: str | None = None) -> None:
    """What the pipeline gives is JSON, and stands where it says in the text, if that is known."""
    if isinstance(results, list):
        for result in results:
            check_results(result, text)
        return
    if not math.isfinite(results["score"]):
        raise Broken("nan", f"score is {results['score']}")
    if results["score"] < 0:
        raise Broken("wrong", f"score {results['score']}")
    if text is not None:
        check_place(results["answer"], text, results["start"], results["end"])


def check_place(answer: str, text: str, begin: int, end: int) -> None:
    """An answer is text[begin:end], of places that are in the text."""
    if not 0 <= begin <= end <= len(text) or text[begin:end] != answer:
        found = f"{answer!r:.200} is not from {begin} to {end} of {len(text)} characters"
        raise Broken("wrong", f"the answer is not where it says: {found}")


def check_json(content: bytes | str) -> None:
    """It is JSON in which no number is NaN or infinite; nothing at all is, too."""

    def refuse(constant: str) -> Any:
        raise Broken("nan", f"{constant} in JSON: {content[:300]!r}")

    if content.strip():
        try:
            json.loads(content, parse_constant=refuse)
        except ValueError as error:
            raise Broken("wrong", f"no JSON: {error}: {content[:300]!r}") from None


def comparable(model: Model) -> bool:
    """Whether two devices must come to the same, but for rounding."""
    if model.files is None:
        return True
    checkpoint = open_checkpoint(model.files.weights)
    return all(
        np.abs(checkpoint.read(name)).max(initial=0) <= LARGEST_WEIGHT
        for name in checkpoint
        if checkpoint.dtype(name).startswith(("F", "BF"))
    )


def compare(
    reference: Model, fast: Model, question: str, texts: list[str], options: dict[str, Any]
) -> None:
    """Both devices give the same logits, but for rounding."""
    names = ("max_seq_length", "doc_stride", "max_question_length")
    chosen = {name: options[name] for name in names if name in options}
    windows = reference.windows(question, texts, **chosen)[:8]
    pairs = zip(reference.logits(windows), fast.logits(windows), strict=True)
    for ours, theirs in pairs:
        apart = np.abs(np.subtract(ours, theirs)).max()
        if not apart <= APART * max(1.0, np.abs(ours).max()):
            raise Broken("wrong", f"logits of the two devices differ by {apart}")
