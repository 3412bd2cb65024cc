"""The README.md of a trained model: what it was made from, how, and what it scores."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from minibert import __version__

SHOWN_SCORES = ("exact", "f1", "HasAns_f1", "NoAns_f1", "best_f1", "best_f1_thresh", "total")


def model_card(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Write the card.

    Args:
        facts: title, base, data, teachers, windows, trained, command (or None), held_out (what was
            measured on), and measurement (or None).
        settings: names and values.
    """
    lines = [
        "---",
        "library_name: minibert",
        "pipeline_tag: question-answering",
        "---",
        "",
        f"# {facts['title']}",
        "",
        f"{facts['base']}, fine-tuned for extractive question answering with minibert "
        f"{__version__}.",
        "",
        f"- Data: {facts['data']}",
        *(f"- Teacher: {name}" for name in facts["teachers"]),
        f"- Windows: {facts['windows']}",
        f"- Trained: {facts['trained']}",
        f"- Made with: minibert {__version__}, NumPy {np.__version__}, Python "
        f"{platform.python_version()}",
        "",
    ]
    if facts["command"]:
        lines += ["```sh", facts["command"], "```", ""]
    if measured := facts["measurement"]:
        lines += [f"## Scores on {facts['held_out']}", ""]
        lines += ["| | |", "|---|---:|"]
        lines += [f"| {name} | {measured[name]:.2f} |" for name in SHOWN_SCORES if name in measured]
        lines.append("")
    lines += ["## Settings", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in settings.items()]
    return "\n".join(lines) + "\n"
