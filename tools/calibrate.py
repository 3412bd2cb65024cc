"""Find the null threshold and the temperature that a model's config.json should hold.

    python tools/calibrate.py --model model --data train-v2.0.json --held-out 0.05 --seed 42

The questions must be new to the model, and must not be those that its published numbers come from.
With --held-out they are those that `minibert train` kept apart, with the same share and seed.

The threshold is the one with the best F1 of QuestionAnswerer's answers.  The temperature is the one
with which their probabilities tell best which of them match exactly (least cross-entropy).  Both
are printed as JSON, with what they change: "minibert" goes into config.json as it is.  It holds the
temperature only if that brings the probabilities nearer to the share of answers that are right.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.config import OWN_FIELDS
from minibert.model import Model, load_model
from minibert.options import DTYPES
from minibert.pages.curves import calibration_bins, calibration_error
from minibert.progress import progress
from minibert.spans import Answer, Logits, decode_answers
from minibert.squad.evaluation import spread
from minibert.squad.files import SquadQuestion, read_squad
from minibert.squad.metrics import score_answers, squad_evaluate, tune_threshold
from minibert.training.held_out import keep_apart
from minibert.windows import Window

STEPS = 6  # temperatures from one to its double
TEMPERATURES = 2.0 ** (np.arange(-STEPS, 2 * STEPS + 1) / STEPS)  # that are tried: 0.5 to 4
LEAST = 1e-6  # a probability as near to 0 or 1 counts as no nearer
LONGEST = 30  # tokens of an answer, as QuestionAnswerer has it


@dataclass(frozen=True)
class Best:
    """The best answer to a question, apart from "no answer"."""

    text: str
    null_odds: float  # how much better "no answer" is
    probabilities: NDArray[np.float64]  # with each of TEMPERATURES
    null_probabilities: NDArray[np.float64]  # those of "no answer"


def first_answer(
    windows: Sequence[Window], logits: Sequence[Logits], null_threshold: float, temperature: float
) -> Answer:
    """The answer that QuestionAnswerer gives."""
    return decode_answers(
        windows,
        logits,
        n=1,
        max_answer_length=LONGEST,
        null_score_diff_threshold=null_threshold,
        align_to_words=True,
        temperature=temperature,
    )[0]


def best_answers(model: Model, questions: Sequence[SquadQuestion]) -> dict[str, Best]:
    """What QuestionAnswerer would choose from, by the id of the question."""
    examples = ((q, model.windows(q.question, [q.context])) for q in questions)
    found = {}
    for question, *read in progress(model.read(examples), len(questions), "questions"):
        best = first_answer(*read, math.inf, 1.0)
        odds = best.null_score - best.score
        of_better = np.array([first_answer(*read, 0.0, float(t)).probability for t in TEMPERATURES])
        of_other = of_better * np.exp(-abs(odds) / TEMPERATURES)
        both = (of_other, of_better) if odds > 0 else (of_better, of_other)
        found[question.id] = Best(best.text, odds, *both)
    return found


def cross_entropy(probabilities: NDArray[np.floating], right: NDArray[np.floating]) -> Any:
    """How badly probabilities [..., N] tell what is right [N], 0 or 1 each: [...]."""
    p = np.clip(probabilities, LEAST, 1 - LEAST)
    return -(right * np.log(p) + (1 - right) * np.log(1 - p)).mean(axis=-1)


def best_temperature(probabilities: NDArray[np.floating], right: NDArray[np.floating]) -> float:
    """The temperature with the least cross-entropy, between those that were tried too.

    Args:
        probabilities: [temperatures, N], of each answer with each of TEMPERATURES.
        right: [N], 1 for an answer that is right, else 0.
    """
    losses = cross_entropy(probabilities, right)
    at = int(losses.argmin())
    shift = 0.0
    if 0 < at < len(losses) - 1:  # the lowest point of the parabola through three
        before, least, after = losses[at - 1 : at + 2]
        shift = (before - after) / (2 * (before - 2 * least + after) or 1.0)
    return float(2 ** (np.log2(TEMPERATURES[at]) + shift / STEPS))


def calibrate(questions: Sequence[SquadQuestion], found: dict[str, Best]) -> dict[str, Any]:
    """The threshold and the temperature, and what they change."""
    texts = {key: best.text for key, best in found.items()}
    odds = {key: best.null_odds for key, best in found.items()}
    scores = {key: score.f1 for key, score in score_answers(questions, texts).items()}
    lowest, _ = OWN_FIELDS["null_threshold"]
    threshold = max(lowest, tune_threshold(questions, texts, scores, odds))

    def chosen(threshold: float) -> dict[str, str]:
        return {key: "" if odds[key] > threshold else text for key, text in texts.items()}

    def numbers(threshold: float) -> dict[str, float]:
        metrics = squad_evaluate(questions, chosen(threshold))
        return {
            name: round(metrics[name], 2)
            for name in ("exact", "f1", "HasAns_f1", "NoAns_f1")
            if name in metrics
        }

    answers = chosen(threshold)
    right = np.array([score_answers(questions, answers)[q.id].exact for q in questions])
    each = [found[q.id] for q in questions]
    probabilities = np.array(
        [b.probabilities if b.null_odds <= threshold else b.null_probabilities for b in each]
    ).T
    temperature = best_temperature(probabilities, right)
    # Between two temperatures that were tried, the logarithm of a probability is almost straight.
    logs = np.log(np.maximum(probabilities, LEAST))
    after = np.exp(
        [np.interp(np.log(temperature), np.log(TEMPERATURES), column) for column in logs.T]
    )
    before = probabilities[list(TEMPERATURES).index(1)]
    was, is_now = (calibration_error(calibration_bins(p, right)) for p in (before, after))
    own = {"null_threshold": round(threshold, 3)}
    if is_now < was:
        own["temperature"] = round(temperature, 3)
    return {
        "minibert": own,
        "temperature": round(temperature, 3),
        "questions": len(questions),
        "numbers_at_0": numbers(0.0),
        "numbers_at_the_threshold": numbers(threshold),
        "expected_calibration_error": {"before": round(was, 4), "after": round(is_now, 4)},
        "cross_entropy": {
            "before": round(float(cross_entropy(before, right)), 4),
            "after": round(float(cross_entropy(after, right)), 4),
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a model over questions and print what suits it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, metavar="FILE", help="in SQuAD's format")
    parser.add_argument("--model", help="folder or file (default: the embedded model)")
    parser.add_argument("--dtype", choices=DTYPES, help="(default: float32)")
    parser.add_argument("--limit", type=int, metavar="N", help="only N questions, evenly spread")
    parser.add_argument(
        "--held-out", type=float, default=0.0, metavar="X", help="share of articles"
    )
    parser.add_argument("--seed", type=int, default=42, help="that chose them (default: 42)")
    args = parser.parse_args(arguments)
    questions = read_squad(args.data).questions
    if args.held_out:
        questions = keep_apart(questions, args.held_out, args.seed)[1]
    questions = spread(questions, args.limit or len(questions))
    model = load_model(args.model, dtype=args.dtype)
    print(json.dumps(calibrate(questions, best_answers(model, questions)), indent=2))


if __name__ == "__main__":
    main()
