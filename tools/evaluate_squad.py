"""Measure a model on SQuAD: exact match and F1, as the official evaluate-v2.0.py defines them.

    python tools/evaluate_squad.py dev-v2.0.json.xz --model minibert/models/minilm-l6-squad2

The data set is not part of the repository.  Several --model give one line each, so that an
original and its int8 copy stand side by side.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import re
import string
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from minibert import QuestionAnswerer
from minibert.progress import progress


def read_squad(path: Path) -> list[dict[str, Any]]:
    """The questions of a SQuAD file: dicts with id, question, context and the gold answers."""
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    return [
        {
            "id": qa["id"],
            "question": qa["question"],
            "context": paragraph["context"],
            "golds": [answer["text"] for answer in qa["answers"]],
        }
        for article in articles
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def words(text: str) -> list[str]:
    """Lower case, without punctuation and articles, split at white space."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(gold: list[str], predicted: list[str]) -> float:
    """Harmonic mean of precision and recall over words; of two empty answers, 1."""
    if not gold or not predicted:
        return float(gold == predicted)
    same = sum((Counter(gold) & Counter(predicted)).values())
    return 2 * same / (len(gold) + len(predicted))


def scores(golds: list[str], predicted: str) -> tuple[float, float]:
    """(exact match, F1) against the best fitting of the gold answers."""
    normal = [tokens for gold in golds if (tokens := words(gold))] or [[]]
    mine = words(predicted)
    return max(float(g == mine) for g in normal), max(f1(g, mine) for g in normal)


def evaluate(model: str, questions: list[dict[str, Any]], **options: Any) -> dict[str, float]:
    """Answer all questions and average the scores, in percent."""
    qa = QuestionAnswerer(model, **options)
    begin = time.perf_counter()
    answers: Iterator[Any] = qa.answer_many((q["question"], q["context"]) for q in questions)
    results = [
        (bool(q["golds"]), *scores(q["golds"], answer.text))
        for q, answer in zip(questions, progress(answers, len(questions), "questions"), strict=True)
    ]
    seconds = time.perf_counter() - begin

    def mean(column: int, chosen: tuple[bool, ...]) -> float:
        values = [row[column] for row in results if row[0] in chosen]
        return 100 * sum(values) / max(1, len(values))

    return {
        "exact": mean(1, (True, False)),
        "f1": mean(2, (True, False)),
        "total": len(results),
        "HasAns_exact": mean(1, (True,)),
        "HasAns_f1": mean(2, (True,)),
        "NoAns_exact": mean(1, (False,)),
        "questions_per_second": len(results) / seconds,
    }


def main() -> int:
    """Run the models one after the other; print one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="a SQuAD file: .json, .json.gz or .json.xz")
    parser.add_argument("--model", action="append", help="default: the embedded model")
    parser.add_argument("--dtype", action="append", help="float32, bfloat16 or int8, or several")
    parser.add_argument("--limit", type=int, help="only the first questions")
    parser.add_argument("--align-to-words", action="store_true")
    args = parser.parse_args()
    questions = read_squad(args.data)[: args.limit]
    for model, dtype in product(args.model or [None], args.dtype or ["float32"]):
        result = evaluate(model, questions, dtype=dtype, align_to_words=args.align_to_words)
        about = {"model": str(model or "embedded"), "dtype": dtype}
        print(json.dumps(about | result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
