"""minibert train: fine-tune a model on questions with answers."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields
from typing import Any

from minibert.commands.options import (
    add_running_options,
    at_least,
    examples,
    file_name,
)
from minibert.documents import to_json
from minibert.errors import BackendError

# Options of a number, a share or a choice: name, metavar or choices, meaning.
COUNTS = {
    "--max-steps": (1, "so many steps, instead of --num-train-epochs"),
    "--per-device-train-batch-size": (1, "windows of a pass (default: 32)"),
    "--batch-tokens": (1, "at most so many tokens a pass, instead of a count of windows"),
    "--gradient-accumulation-steps": (1, "passes of a step (default: 1)"),
    "--max-tokens-per-pass": (
        1,
        "a pass with more is cut, to save memory; the result is the same but for rounding "
        "(default: 8192)",
    ),
    "--warmup-steps": (0, "steps in which the learning rate rises (default: 0)"),
    "--freeze-layers": (0, "do not train the first N layers (default: 0)"),
    "--max-seq-length": (1, "tokens of a window (default: 384, or the model's limit)"),
    "--doc-stride": (0, "tokens that neighbouring windows share (default: 128)"),
    "--max-query-length": (1, "tokens; longer questions are cut (default: 64)"),
    "--limit": (1, "train on N questions only, evenly spread over the file"),
    "--seed": (0, "of the order, dropout, held-out articles and a new head (default: 42)"),
    "--logging-steps": (1, "steps for each line of the log (default: 10)"),
    "--save-steps": (1, "steps between two checkpoints (default: 500)"),
    "--save-total-limit": (1, "checkpoints that are kept (default: 2)"),
    "--eval-steps": (1, "steps between two measurements (default: 500)"),
    "--eval-limit": (
        1,
        "measure on N of the held-out questions, evenly spread (default: 1500)",
    ),
    "--early-stopping": (1, "stop when F1 has not risen in N measurements"),
}
NUMBERS = {
    "--num-train-epochs": "times that all windows are read (default: 3)",
    "--learning-rate": "the highest (default: 5e-5)",
    "--warmup-ratio": "share of the steps in which the learning rate rises (default: 0)",
    "--weight-decay": "of matrices (default: 0)",
    "--adam-beta1": "of AdamW (default: 0.9)",
    "--adam-beta2": "of AdamW (default: 0.999)",
    "--adam-epsilon": "of AdamW (default: 1e-8)",
    "--max-grad-norm": "the gradient is scaled down to this length; 0: never (default: 1)",
    "--layerwise-decay": "learning rate of a layer, as a share of that of the one above "
    "(default: 1)",
    "--hidden-dropout-prob": "dropout in hidden states (default: as config.json says)",
    "--attention-probs-dropout-prob": "dropout in attention (default: as config.json says)",
    "--teacher-weight": "share of the loss that teachers have; the answers have the rest "
    "(default: 0.5)",
    "--match-layers": "weight of the mean squared difference of hidden states, where student and "
    "teacher are as wide (default: 0)",
    "--temperature": "the higher, the more the teachers' doubts count (default: 1)",
    "--ema": "average the weights, of which X is kept in each step, and keep the average",
    "--held-out": "share of the articles that are kept apart to measure the model with "
    "(default: 0.05)",
    "--time-limit": "minutes after which the run is interrupted; the same command goes on",
}


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    parser = commands.add_parser(
        "train",
        help="fine-tune a model on questions with answers",
        description="Train a BERT to answer questions. The model is written to DIR when it is "
        "complete; DIR/run holds checkpoints and the log, DIR/best the model that scored best on "
        "questions that were kept apart. A run that was interrupted goes on by the same command, "
        "and ends in the same weights.",
        **examples(
            "minibert train --data train-v2.0.json --model base_folder --output-dir trained "
            "--dtype bfloat16 --learning-rate 1e-4 --warmup-ratio 0.1",
            "minibert train --check --dtype bfloat16",
        ),
    )
    parser.set_defaults(run=command_train, check=check_usage, parser=parser)
    parser.add_argument(
        "--data",
        type=file_name,
        metavar="FILE",
        help="questions with answers, in any form that minibert evaluate reads; 1.1 or 2.0 is seen "
        "from the data",
    )
    parser.add_argument(
        "--model",
        help="the model to begin with, with or without a question-answering head: a folder, a "
        "weights file (of old formats too), or a name on the Hugging Face Hub (default: embedded)",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--output-dir",
        type=file_name,
        metavar="DIR",
        help="a new folder, or that of an interrupted run, which goes on",
    )
    parser.add_argument(
        "--eval-data",
        type=file_name,
        metavar="FILE",
        help="measure the model on these questions (default: on articles kept apart, --held-out)",
    )
    for option, (least, meaning) in COUNTS.items():
        parser.add_argument(option, type=at_least(least), metavar="N", help=meaning)
    for option, meaning in NUMBERS.items():
        parser.add_argument(option, type=float, metavar="X", help=meaning)
    parser.add_argument(
        "--dropout",
        type=float,
        metavar="X",
        help="both dropout rates at once: --dropout 0 switches dropout off",
    )
    parser.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="MODEL",
        help="learn from the logits of this model too, which must read the same tokens; repeat it "
        "for the mean of several",
    )
    parser.add_argument(
        "--teacher-cache",
        type=file_name,
        metavar="DIR",
        help="keep the teachers' logits there, for later epochs and other runs",
    )
    parser.add_argument(
        "--layers",
        type=layer_numbers,
        metavar="N,N,...",
        help="begin with these layers of the model only, as 0,2,4",
    )
    parser.add_argument(
        "--lr-scheduler-type",
        choices=["linear", "cosine"],
        help="how the learning rate falls to 0 (default: linear)",
    )
    parser.add_argument(
        "--freeze-embeddings", action="store_true", default=None, help="do not train the embeddings"
    )
    parser.add_argument(
        "--all-occurrences",
        action="store_true",
        default=None,
        help="an answer is right wherever its text stands between the borders of tokens",
    )
    parser.add_argument(
        "--check",
        dest="check_only",
        action="store_true",
        help="train nothing: compare the device's gradients with the definition's, and learn one "
        "batch by heart; takes a minute, for those who changed a kernel",
    )
    add_running_options(parser)


def layer_numbers(text: str) -> tuple[int, ...]:
    """An argparse type: numbers of layers between commas."""
    return tuple(int(number) for number in text.split(","))


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with status 2 if options contradict each other."""
    for name in ("data", "output_dir"):
        given, option = getattr(args, name) is not None, f"--{name.replace('_', '-')}"
        if given == args.check_only:
            parser.error(
                f"{option} means nothing beside --check"
                if given
                else f"the following arguments are required: {option}"
            )
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if args.dropout is not None and getattr(args, name) is not None:
            parser.error(f"--dropout sets --{name.replace('_', '-')} too: give one of them")
    if args.max_steps is not None and args.num_train_epochs is not None:
        parser.error("--max-steps takes the place of --num-train-epochs: give one of them")
    if args.batch_tokens is not None and args.per_device_train_batch_size is not None:
        parser.error(
            "--batch-tokens takes the place of --per-device-train-batch-size: give one of them"
        )
    for name in ("teacher_cache", "teacher_weight", "temperature", "match_layers"):
        if getattr(args, name) is not None and not args.teacher:
            parser.error(f"--{name.replace('_', '-')} needs --teacher")
    if args.eval_data is not None and args.held_out is not None:
        parser.error("--eval-data takes the place of --held-out: give one of them")


def command_train(args: argparse.Namespace) -> None:
    """Run `minibert train`."""
    if args.check_only:
        check(args)
        return
    from minibert.training.run import train
    from minibert.training.settings import TrainingSettings

    given = vars(args) | {"num_threads": args.threads}
    if args.dropout is not None:
        given["hidden_dropout_prob"] = given["attention_probs_dropout_prob"] = args.dropout
    names = [field.name for field in fields(TrainingSettings)]
    settings = TrainingSettings(
        **{name: given[name] for name in names if given.get(name) is not None}
    )
    result = train(
        args.data,
        args.model,
        args.output_dir,
        settings,
        eval_data=args.eval_data,
        command=shlex.join(["minibert", *sys.argv[1:]]),
        teachers=args.teacher,
        teacher_cache=args.teacher_cache,
        revision=args.revision,
    )
    print(
        to_json(
            {
                "folder": str(result.folder),
                "finished": result.finished,
                "reason": result.reason,
                "step": result.step,
                "steps": result.steps,
                "skipped": result.skipped,
                "measurement": result.measurement,
                "best": result.best,
            },
            indent=2,
        )
    )


def check(args: argparse.Namespace) -> None:
    """Print whether training computes the right numbers.

    Raises:
        BackendError: it does not.
    """
    from minibert.kernels.training import get_training_kernels
    from minibert.training.base import load_base
    from minibert.training.checking import check_training
    from minibert.training.settings import TrainingSettings

    kernels = get_training_kernels(args.device or "auto", args.dtype, args.threads)
    base = load_base(args.model, TrainingSettings(), args.revision)
    found = check_training(base, kernels)
    for finding in found:
        print(f"{finding.what}: {'ok' if finding.good else 'wrong'}, {finding.fact}")
    if bad := [finding.what for finding in found if not finding.good]:
        raise BackendError(f"the check of {', '.join(bad)} did not go well, see above")
