"""minibert evaluate: SQuAD's numbers for a model, or for predictions made elsewhere."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from minibert.commands.options import (
    add_decoding_options,
    add_file_options,
    add_model_options,
    decoding_settings,
    examples,
    file_name,
    read_data,
)
from minibert.documents import to_json
from minibert.errors import InputError
from minibert.files import check_output, writing
from minibert.progress import notice

if TYPE_CHECKING:
    from minibert.squad.evaluation import Evaluation
    from minibert.squad.files import SquadData


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a model, or predictions, on a SQuAD file",
        description="Answer all questions of a SQuAD file and print exact match and F1 as JSON, "
        "as the official script computes them. With --predictions nothing is run. Of a test file, "
        "which holds no right answers, the predictions are written and nothing is scored.",
        **examples(
            "minibert evaluate --data dev-v2.0.json --output-dir run --report report.html",
            "minibert evaluate --data dev-v2.0.json --predictions run/predictions.json",
        ),
    )
    parser.set_defaults(run=command_evaluate, check=check_usage, parser=parser)
    add_file_options(parser)
    parser.add_argument(
        "--output-dir",
        type=file_name,
        metavar="DIR",
        help="write predictions.json, nbest_predictions.json and null_odds.json there; a run that "
        "was interrupted goes on where it was",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the results of a finished run in DIR; an unfinished one with the same "
        "settings still goes on",
    )
    parser.add_argument(
        "--predictions",
        type=file_name,
        metavar="FILE",
        help="score these: an object of ids and texts, '' for none; or Hugging Face's list of "
        "objects with id and prediction_text",
    )
    parser.add_argument(
        "--null-odds",
        type=file_name,
        metavar="FILE",
        help="with --predictions: an object of ids and numbers, higher for less answerable",
    )
    parser.add_argument(
        "--nbest",
        type=file_name,
        metavar="FILE",
        help="with --predictions: nbest_predictions.json, for the report's probabilities",
    )
    parser.add_argument(
        "--null-threshold",
        type=float,
        metavar="X",
        help="'no answer' if the null odds are above X; write --null-threshold=-1 for negative "
        "numbers (default: 0, and also the model's own as own_null, if it has one; with "
        "--predictions 1, as in the official script)",
    )
    parser.add_argument(
        "--tune-null",
        nargs="?",
        const="f1",
        choices=["f1", "exact"],
        metavar="MEASURE",
        help="also find the best null threshold on half of the articles, and score the other half "
        "with it; MEASURE is f1 or exact (default: f1)",
    )
    parser.add_argument(
        "--report",
        type=file_name,
        metavar="FILE",
        help="write a page with plots and the worst mistakes",
    )
    add_decoding_options(parser)
    add_model_options(parser)


# What only a run of a model needs.
RUNNING = (
    *("model", "revision", "device", "dtype", "threads", "output_dir", "decoder", "max_seq_length"),
    *("doc_stride", "max_query_length", "max_answer_length", "n_best_size", "squad_version"),
)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with status 2 if options contradict each other."""
    if args.predictions is None:
        for name in ("null_odds", "nbest"):
            if getattr(args, name) is not None:
                parser.error(f"--{name.replace('_', '-')} needs --predictions")
    elif args.tune_null and args.null_odds is None:
        parser.error("with --predictions, --tune-null needs --null-odds")
    elif given := [name for name in RUNNING if getattr(args, name) is not None]:
        parser.error(f"with --predictions no model runs: give no --{given[0].replace('_', '-')}")
    if args.overwrite and args.output_dir is None:
        parser.error("--overwrite needs --output-dir")
    files = [args.data, args.predictions, args.null_odds, args.nbest, args.output, args.report]
    written = [os.path.realpath(name) for name in files[-2:] if name]
    named = [os.path.realpath(name) for name in files if name]
    if any(named.count(name) > 1 and os.path.isfile(name) for name in written) or (
        len(set(written)) < len(written)
    ):
        parser.error("--report and --output must be files of their own")
    if args.null_threshold != args.null_threshold:
        parser.error("argument --null-threshold: must be a number, got nan")


def command_evaluate(args: argparse.Namespace) -> None:
    """Run `minibert evaluate`."""
    from minibert.squad.evaluation import articles_for_tuning, score_at, tune_null

    check_output(args.output)
    if args.report is not None:
        check_output(args.report)
    data = read_data(args)
    if not data.labelled:
        check_unlabelled(args)
    if args.tune_null:
        articles_for_tuning(data.questions)
    own = None  # the model's own null threshold, where it is another one
    if args.predictions is None:
        evaluation, own = run_model(args, data)
    else:
        evaluation = score_files(args, data)
    shown: dict[str, Any] = dict(evaluation.metrics)
    if own is not None:
        shown["own_null"] = {"threshold": own, **score_at(evaluation, own)}
    if args.tune_null:
        shown["tuned_null"] = tune_null(evaluation, args.tune_null)
    with writing(args.output) as out:
        out.write(to_json(shown, indent=2) + "\n")
    if args.report is not None:
        from minibert.pages.report import render_report

        page = render_report(evaluation)
        with writing(args.report) as out:
            out.write(page)


def check_unlabelled(args: argparse.Namespace) -> None:
    """Refuse options that need right answers, for a file that holds none; say so for the others.

    Raises:
        InputError: there is such an option, or no place for what else is left, the predictions.
    """
    for name in ("predictions", "report", "tune_null"):
        if getattr(args, name) is not None:
            raise InputError(
                f"{args.data}: holds no right answers, as a test file does: nothing can be scored, "
                f"so give no --{name.replace('_', '-')}"
            )
    if args.output_dir is None:
        raise InputError(
            f"{args.data}: holds no right answers, as a test file does: there will be predictions "
            "only. Name a folder for them with --output-dir."
        )
    notice(f"minibert: {args.data}: holds no right answers; predictions are made, none is scored")


def run_model(args: argparse.Namespace, data: SquadData) -> tuple[Evaluation, float | None]:
    """Load the model and answer all questions.

    Returns:
        The evaluation; and the null threshold that the model has of its own, if it has one and the
        answers can be scored with it.  The pipeline's odds are probabilities, not sums of logits.
    """
    from minibert.model import load_model
    from minibert.squad.evaluation import NO_ODDS, evaluate

    threshold = 0.0 if args.null_threshold is None else args.null_threshold
    settings = decoding_settings(args, data, threshold)
    if args.tune_null and not settings.with_null:
        raise InputError(NO_ODDS)
    model = load_model(
        args.model,
        device=args.device or "auto",
        dtype=args.dtype,
        num_threads=args.threads,
        revision=args.revision,
    )
    evaluation = evaluate(
        model, data, settings, output_dir=args.output_dir, overwrite=args.overwrite, f1=args.f1
    )
    if evaluation.questions_per_second:
        notice(f"{evaluation.questions_per_second:.1f} questions/s")
    own = model.config.null_threshold
    may_differ = args.null_threshold is None and own != threshold
    fits = data.labelled and settings.with_null and settings.decoder != "pipeline"
    return evaluation, own if may_differ and fits else None


def score_files(args: argparse.Namespace, data: SquadData) -> Evaluation:
    """Score predictions made elsewhere."""
    from minibert.squad.evaluation import score_predictions

    return score_predictions(
        data,
        args.predictions,
        args.null_odds,
        args.nbest,
        1.0 if args.null_threshold is None else args.null_threshold,
        args.f1,
    )
