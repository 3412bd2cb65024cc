"""Odd command lines, from what minibert's own parser knows."""

from __future__ import annotations

import functools
from random import Random
from typing import Any

from fuzzing.mutations import for_command
from fuzzing.seeds import CONTEXT, QUESTION
from fuzzing.values import odd_text

MODEL = ["--model", ".", "--device", "reference"]
QUICKLY = ["--max-steps=1", "--doc-stride=30", "--held-out=0"]
# Right command lines, to begin with.
RIGHT = (
    ["answer", QUESTION, CONTEXT, *MODEL],
    ["answer", QUESTION, CONTEXT, *MODEL, "--json", "--top-k", "3"],
    ["answer", QUESTION, "--file", "text.txt", "rows.jsonl", *MODEL],
    ["answer", QUESTION, *MODEL, "--json"],
    ["answer", "--jsonl", "rows.jsonl", *MODEL],
    ["answer", "--jsonl", "-", "--output", "answers.jsonl", *MODEL],
    ["evaluate", "--data", "squad.json", *MODEL, "--limit", "3"],
    ["evaluate", "--data", "squad.json", *MODEL, "--output-dir", "run", "--report", "page.html"],
    ["evaluate", "--data", "squad.json", "--predictions", "predictions.json"],
    ["compare", "--data", "squad.json", ".", ".", "--device", "reference", "--limit", "2"],
    ["convert", ".", "new"],
    ["convert", ".", "new", "--dtype", "int8"],
    ["convert", ".", "new", "--bits", "5,6,6"],
    ["train", "--data", "squad.json", "--output-dir", "new", *MODEL, *QUICKLY],
    ["explain", QUESTION, CONTEXT, "--output", "page.html", *MODEL],
    ["doctor", "--model", "."],
)
COMMANDS = ("answer", "explain", "evaluate", "compare", "convert", "train", "doctor", "completion")
# Options that start a browser, or ask for hours of work, which is then done.
LEFT_OUT = {"-h", "--help", "--open", "--check", "--max-steps", "--num-train-epochs"}
VALUES = [
    *"0 -1 1 3 16 1000000 99999999999999999999 1e3 nan inf -inf 1e-400 0.5 1_0 １２ +3".split(),
    *"- -- --- -x . .. ~ ~nobody/x a/b a//b a/b/c text.txt rows.jsonl squad.json new".split(),
    *"predictions.json config.json model.safetensors pipe null zero full embedded 2.0".split(),
    *"cpu reference auto cuda cuda:1 float32 float16 int8 bfloat16 5,6,6 5,6 4 9 f1 words".split(),
    *("", " 3", "3 ", "9" * 5000, "a" * 5000),
]


@functools.cache
def options_of(command: str) -> list[str]:
    """The options that a command has."""
    from minibert.cli import build_parser

    _, commands = build_parser()
    found = [name for action in commands[command]._actions for name in action.option_strings]
    return sorted({*found} - LEFT_OUT) or ["--help"]


def odd_command(random: Random) -> dict[str, Any]:
    """A command line in which a few arguments are odd, and what stands on standard input."""
    argv = list(random.choice(RIGHT))
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        place = random.randrange(1, len(argv)) if len(argv) > 1 else 1
        value = random.choice([random.choice(VALUES), random.choice(VALUES), odd_text(random)])
        option = random.choice(options_of(argv[0])) if argv[:1] and argv[0] in COMMANDS else "-h"
        match random.randrange(9):
            case 0 if len(argv) > 1:
                del argv[place]
            case 1 if len(argv) > 1:
                argv[place] = value
            case 2:
                argv.insert(place, value)
            case 3:
                argv.append(option)
            case 4:
                argv.append(f"{option}={value}")
            case 5 if len(argv) > 1:
                argv.append(argv[place])
            case 6:
                argv[0:1] = [random.choice([*COMMANDS, value, "--version", "--help"])]
            case _:
                argv += [option, value]
    argv = list(map(for_command, argv))
    given = random.choice(["", "", CONTEXT, '{"question": "who?", "context": "ada"}\n', None])
    return {"argv": argv, "stdin": odd_text(random) if given is None else given}
