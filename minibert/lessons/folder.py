"""The folder of lessons: its files, made from the definitions, and what a learner made of them."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from typing import Any

from minibert.errors import InputError
from minibert.files import writing
from minibert.lessons import borrowed
from minibert.lessons.catalogue import LESSONS, file_name, number
from minibert.lessons.definitions import names_in
from minibert.lessons.lesson import Lesson, Step
from minibert.options import expanded

PARTS = {1: "12 lessons to an answer", 2: "4 on training", 3: "one of speed"}
QUESTION = "Who wrote the first program?"
TEXT = "Ada Lovelace wrote the first program in 1843. It was never run."
EMPTY = "raise NotImplementedError"
WIDTH = 88

# Imports by the name that they bring, where it does not come from `borrowed`.
PLAIN = {
    "math": "import math",
    "pairwise": "from itertools import pairwise",
    "numba": "import numba",
    "np": "import numpy as np",
}

ANSWER = f'''"""Lesson 0: an answer, with everything borrowed from the library.

Nothing to write yet. Run it, then change the question and the text:

    python 00_answer.py

In the lessons to come, each of these steps is taken apart and written by you.
"""

from minibert import load_model
from minibert.spans import decode_answers

question = "{QUESTION}"
text = "{TEXT}"

model = load_model()
windows = model.windows(question, [text])  # lesson 1
window = windows[0]
print("tokens:", *model.tokenizer.names(window.input_ids))

logits = model.logits(windows)  # lessons 2 to 11
start, end = logits[0]
print("best first tokens:", *model.tokenizer.names(window.input_ids[(-start).argsort()[:3]]))
print("best last tokens: ", *model.tokenizer.names(window.input_ids[(-end).argsort()[:3]]))

best, *others = decode_answers(  # lesson 12
    windows,
    logits,
    n=3,
    max_answer_length=30,
    null_score_diff_threshold=0,
    align_to_words=True,
)
print("answer:", best.text or "(no answer)")
for other in others:
    print("rather than:", other.text or "(no answer)")
'''


def lesson_text(lesson: Lesson) -> str:
    """The file of a lesson, with nothing written in it yet."""
    used: set[str] = set()
    functions = []
    for step in lesson.steps:
        used |= set(step.definition.names) | names_in(ast.parse(step.example))
        functions.append(function_text(step))
    if lesson.part == 3:
        used |= {"math", "numba"}
    used -= {step.name for step in lesson.steps}
    plain = [PLAIN[name] for name in sorted(used & set(PLAIN), key=str.lower)]
    return (
        "\n\n".join(
            [
                f'"""{heading(lesson)}"""\n',
                "\n".join(ordered(plain)) + "\n",
                imports(used & set(borrowed.__all__)) + "\n",
                *(f"{function}\n" for function in functions),
            ]
        )
        .replace('"""\n\n\n', '"""\n\n', 1)
        .replace("\n\n\nfrom minibert", "\n\nfrom minibert", 1)
    )


def ordered(lines: list[str]) -> list[str]:
    """Imports as everybody sorts them: Python's own, then others."""
    others = [line for line in lines if "num" in line]
    own = [line for line in lines if line not in others]
    return own + [""] * bool(own and others) + others


def heading(lesson: Lesson) -> str:
    """What stands at the top of a file."""
    paragraphs = [
        f"Lesson {number(lesson)}: {lesson.title}.",
        filled("Before: ", lesson.before),
        filled("New: ", lesson.idea),
        filled("Formula: ", lesson.formula),
        *([filled("At hand: ", lesson.hand)] if lesson.hand else []),
        filled("Paper: ", lesson.paper),
        f"Check: minibert lessons check . --only {lesson.name}\n",
    ]
    return "\n\n".join(paragraphs)


def filled(label: str, text: str) -> str:
    """A paragraph in lines of the usual length."""
    return textwrap.fill(label + text, WIDTH, break_on_hyphens=False, break_long_words=False)


def imports(names: set[str]) -> str:
    """The line that brings what a lesson may borrow."""
    line = f"from minibert.lessons.borrowed import {', '.join(sorted(names))}"
    if len(line) <= WIDTH:
        return line
    listed = textwrap.fill(
        ", ".join(sorted(names)), WIDTH, initial_indent="    ", subsequent_indent="    "
    )
    return f"from minibert.lessons.borrowed import (\n{listed},\n)"


def function_text(step: Step) -> str:
    """A function to write: header, docstring and worked example of the definition."""
    told = step.definition
    docstring = told.docstring
    if step.example:
        docstring += "\n\nExample:\n" + textwrap.indent(worked(step), "    ")
    lines = f'"""{docstring}'
    lines += '\n"""' if "\n" in docstring else '"""'
    return f"{told.header}\n{textwrap.indent(lines, '    ')}\n    {EMPTY}  # at most 15 lines"


def worked(step: Step) -> str:
    """The example of a step with what the definition gives, as Python would show it."""
    names: dict[str, Any] = {name: getattr(borrowed, name) for name in borrowed.__all__} | {
        "np": borrowed_numpy()
    }
    names[step.name] = step.definition.made_in(vars(step.definition.module) | names)
    shown = []
    for line in step.example.splitlines():
        shown.append(f">>> {line}")
        try:
            code = compile(line, "example", "eval")
        except SyntaxError:
            exec(line, names)
            continue
        value = eval(code, names)
        if value is not None:
            shown.append(repr(value))
    return "\n".join(shown)


def borrowed_numpy() -> Any:
    """NumPy, as examples name it."""
    import numpy

    return numpy


README = """\
# BERT, written by you

{parts}.
Each file says what must be known before, what is new, the formula, and what a function takes and
gives; its body is yours to write, in at most 15 lines. Begin by running 00_answer.py. Then, in this
folder and after each lesson:

    minibert lessons check .                       all of them
    minibert lessons check . --only layer_norm     one of them
    minibert lessons check . --reveal layer_norm   the code of the definition, when you are stuck
    python -m doctest 03_layer_norm.py             its example alone; no word: the example passes

A check first says what is wrong with a shape or a dtype, then the first number that differs, and
then which mistake gives just your numbers, if it knows one. At the end it answers a question with
the real model: with your functions where you have written them, with the library's elsewhere.

- T are the tokens of a batch, S those of one window, D the numbers of a token, H the heads,
  Dh = D / H, F the inner width of the feed-forward part; [T, D] is the shape of an array.
- Results have the dtype of what came in. The library computes in float32, most checks in float64,
  where a small mistake shows.
- Arguments stay as they are, where the text does not say that they are changed.
- You may use NumPy, and what a file imports from minibert.lessons.borrowed. Each file is tried with
  the library's other functions; with --only, the answer at the end is made with that file of yours.

{table}
"""


def folder_files() -> dict[str, str]:
    """All files of the folder by name."""
    table = "\n".join(f"    {file_name(each):27} {each.title}" for each in LESSONS)
    table = f"    {'00_answer.py':27} everything borrowed\n{table}"
    return {
        "README.md": README.format(parts=", ".join(PARTS.values()).capitalize(), table=table),
        "00_answer.py": ANSWER,
        **{file_name(lesson): lesson_text(lesson) for lesson in LESSONS},
    }


def write_lessons(path: str) -> list[str]:
    """Write the files of a folder that are not there yet; those that are stay as they are.

    Returns:
        The names of the files that were written.

    Raises:
        InputError: the folder holds other things, or cannot be written.
    """
    folder = Path(expanded(path))
    files = folder_files()
    try:
        there = {each.name for each in folder.iterdir()} if folder.exists() else set()
        if there and not there & (set(files) - {"README.md"}):
            raise InputError(
                f"{path}: holds other files, such as {sorted(there)[0]}. Lessons get a folder of "
                "their own: name one that is empty or new"
            )
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be written: {reason}") from None
    missing = [name for name in files if name not in there]
    for name in missing:
        with writing(str(folder / name)) as file:
            file.write(files[name])
    return missing
