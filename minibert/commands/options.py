"""What several commands share: options, and how JSON is printed."""

from __future__ import annotations

import argparse
from typing import Any

from minibert.documents import to_json
from minibert.options import DEVICES, DTYPES, gpu_index, may_be_named
from minibert.progress import notice
from minibert.reprs import shown

DECODING = {
    "--max-seq-length": "longest window (default: 384, or the model's limit)",
    "--doc-stride": "from one window to the next (run_squad), or shared by neighbouring windows "
    "(default: 128)",
    "--max-query-length": "cut longer questions (default: 64 in run_squad, else no limit)",
    "--max-answer-length": "longest answer (default: 30, in the pipeline 15)",
}


class HelpFormatter(argparse.HelpFormatter):
    """Fills the lines of a help text, but leaves its examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)


EXAMPLES = "examples:\n"


def examples(*lines: str) -> dict[str, Any]:
    """What a parser is made with for its help to end with examples."""
    return {
        "epilog": EXAMPLES + "\n".join(f"  {line}" for line in lines),
        "formatter_class": HelpFormatter,
    }


def dump(value: Any) -> str:
    """One line of JSON, in plain UTF-8, which steers no terminal."""
    return to_json(value, plain=True)


def at_least(least: int) -> Any:
    """An argparse type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value < 2**63:
            end = f"at least {least}" if value < least else "below 2**63"
            raise argparse.ArgumentTypeError(f"must be {end}, got {shown(value)}")
        return value

    parse.__name__ = "whole number"
    return parse


def file_name(text: str) -> str:
    """An argparse type: the name of a file or folder, which an unset shell variable is not."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    if not may_be_named(text):
        raise argparse.ArgumentTypeError(f"no file can have that name: {text!r}")
    return text


def device(text: str) -> str:
    """An argparse type: one of `DEVICES`, or 'cuda:1' for the second GPU."""
    if text not in DEVICES and gpu_index(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(DEVICES)}, cuda:1 ...")
    return text


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which model runs, and how."""
    parser.add_argument(
        "--model",
        help="folder, .safetensors file, or name on the Hugging Face Hub; 'embedded' for the model "
        "that comes along (default: embedded)",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    add_running_options(parser)


def add_running_options(parser: argparse.ArgumentParser, several_dtypes: bool = False) -> None:
    """The options that say how a model runs."""
    parser.add_argument(
        "--device",
        type=device,
        metavar="{" + ",".join(DEVICES) + "}",
        help="what to run on; cuda:1 is the second GPU (default: auto, the processor)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        action="append" if several_dtypes else "store",
        help="in which numbers to multiply: float32 gives transformers' answers; int8 (processor), "
        "float16 (GPU) and bfloat16 are faster and differ now and then"
        f"{'; repeat it for several' if several_dtypes else ''} (default: float32)",
    )
    parser.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="cores to use (default: all that this process may)",
    )


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which questions are read, and where results go."""
    parser.add_argument(
        "--data",
        type=file_name,
        required=True,
        metavar="FILE",
        help="questions in SQuAD's format, 1.1 or 2.0: .json, .json.gz or .json.xz; or as rows "
        "with question, context and answers, in a list or one a line",
    )
    parser.add_argument(
        "--f1",
        choices=["words", "characters"],
        default="words",
        help="what answers are compared by; characters for languages that do not part words with "
        "spaces (default: words, as SQuAD does)",
    )
    parser.add_argument(
        "--output",
        type=file_name,
        metavar="FILE",
        help="write there instead of standard output",
    )


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how SQuAD questions are read and answered."""
    parser.add_argument(
        "--decoder",
        choices=["run_squad", "pipeline", "answerer"],
        help="how an answer is chosen: as in Google's run_squad.py, which scores on model cards "
        "are made with; as in transformers' pipeline; or as by QuestionAnswerer (default: "
        "run_squad)",
    )
    for option, meaning in DECODING.items():
        least = 0 if option == "--doc-stride" else 1
        parser.add_argument(option, type=at_least(least), metavar="TOKENS", help=meaning)
    parser.add_argument(
        "--n-best-size",
        type=at_least(1),
        metavar="N",
        help="first tokens, last tokens and answers that are looked at (default: 20)",
    )
    parser.add_argument(
        "--squad-version",
        choices=["auto", "1.1", "2.0"],
        help="1.1: every question has an answer; auto: 2.0 if the file holds one without "
        "(default: auto)",
    )
    parser.add_argument(
        "--limit",
        type=at_least(1),
        metavar="N",
        help="only N questions, evenly spread over the file",
    )


def read_data(args: argparse.Namespace) -> Any:
    """The questions that --data and --limit name: a SquadData.

    Says so if --f1 does not suit their language.
    """
    from dataclasses import replace

    from minibert.squad.evaluation import spread
    from minibert.squad.files import read_squad
    from minibert.squad.metrics import mostly_without_spaces

    data = read_squad(args.data)
    if args.limit:
        data = replace(data, questions=spread(data.questions, args.limit))
    if args.f1 == "words" and mostly_without_spaces(data.questions):
        notice(
            f"minibert: {args.data}: most answers are in a script without spaces between words, of "
            "which F1 over words says little; --f1 characters compares their characters"
        )
    return data


def decoding_settings(args: argparse.Namespace, data: Any, null_threshold: float) -> Any:
    """The SquadSettings that the options describe."""
    from minibert.squad.decoders import SquadSettings

    with_null = {"1.1": False, "2.0": True}.get(args.squad_version, data.with_null)
    return SquadSettings(
        decoder=args.decoder or "run_squad",
        max_seq_length=args.max_seq_length,
        doc_stride=args.doc_stride,
        max_query_length=args.max_query_length,
        max_answer_length=args.max_answer_length,
        n_best_size=args.n_best_size or 20,
        null_threshold=null_threshold,
        with_null=with_null,
    )
