"""SQuAD files for tests: where the real ones are, if they are, and how to write small ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The real sets, which are not part of the repository.
SQUAD = Path(os.environ.get("MINIBERT_SQUAD", ROOT.parent / "shared/data/squad"))
EXAMPLE = ROOT / "tests/squad_example.json"  # a few paragraphs written for the tests

# What `minibert evaluate` prints, in its order.
NUMBERS = (
    "exact f1 total HasAns_exact HasAns_f1 HasAns_total NoAns_exact NoAns_f1 NoAns_total "
    "best_exact best_exact_thresh best_f1 best_f1_thresh"
).split()


def squad_file(path, triples, ids=None):
    """Write (question, context, answers) triples, each as an article of its own."""
    articles = [
        {
            "title": f"article {n}",
            "paragraphs": [
                {
                    "context": context,
                    "qas": [
                        {
                            "id": ids[n] if ids else f"q{n}",
                            "question": question,
                            "answers": [
                                {"text": text, "answer_start": max(0, context.find(text))}
                                for text in answers
                            ],
                        }
                    ],
                }
            ],
        }
        for n, (question, context, answers) in enumerate(triples)
    ]
    path.write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")
    return path
