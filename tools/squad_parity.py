"""Compare minibert's predictions on SQuAD with transformers 5.2.0, question by question.

    minibert convert embedded model
    python tools/squad_parity.py predict --data dev-v2.0.json.xz --model model --output-dir theirs
    minibert evaluate --data dev-v2.0.json.xz --model model --output-dir ours
    python tools/squad_parity.py compare theirs ours

`predict` is transformers' own code from the text to the answer: its features (with the tokenizer
in Python, since its fast one cannot make them any more), BertForQuestionAnswering in float32, its
decoder.  It needs `pip install 'minibert-qa[parity]'`.  `compare` needs nothing.

transformers pads windows, and [PAD] tokens can be among the 20 best first or last tokens of a
window and leave others out; minibert has no such tokens.  So the ends of the lists of n best are
often different, and once in a while the null odds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import sys
import time
from pathlib import Path
from typing import Any

BATCH = 16  # windows at once; all are padded to MAX_SEQ_LENGTH, as run_squad.py does
MAX_SEQ_LENGTH = 384
DOC_STRIDE = 128  # tokens from one window to the next
MAX_QUERY_LENGTH = 64
N_BEST = 20
MAX_ANSWER_LENGTH = 30
TIE = 1e-4  # two sums of logits closer than this may change places by rounding

Json = dict[str, Any]


def predict(args: argparse.Namespace) -> None:
    """Write transformers' predictions.json, nbest_predictions.json and null_odds.json."""
    import torch
    import transformers
    from transformers.data.metrics.squad_metrics import compute_predictions_logits
    from transformers.data.processors import squad
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    if transformers.__version__ != "5.2.0":
        raise SystemExit(f"needs transformers 5.2.0, found {transformers.__version__}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = BertTokenizerLegacy(
        vocabulary(args.model, args.output_dir),
        do_lower_case=args.do_lower_case,
        model_max_length=512,
    )
    model = transformers.BertForQuestionAnswering.from_pretrained(args.model, dtype=torch.float32)
    model.eval()

    articles = read(args.data)["data"]
    examples = squad.SquadV2Processor()._create_examples(articles, "dev")[: args.limit]
    squad.squad_convert_example_to_features_init(tokenizer)
    features: list[Any] = []
    for number, example in enumerate(examples):
        for feature in squad.squad_convert_example_to_features(
            example, MAX_SEQ_LENGTH, DOC_STRIDE, MAX_QUERY_LENGTH, "max_length", False
        ):
            feature.example_index, feature.unique_id = number, len(features)
            features.append(feature)
    print(f"{len(examples)} questions, {len(features)} windows", file=sys.stderr)

    results, begin = [], time.perf_counter()
    for at in range(0, len(features), BATCH):
        batch = features[at : at + BATCH]
        with torch.inference_mode():
            output = model(
                input_ids=torch.tensor([f.input_ids for f in batch]),
                attention_mask=torch.tensor([f.attention_mask for f in batch]),
                token_type_ids=torch.tensor([f.token_type_ids for f in batch]),
            )
        results += [
            squad.SquadResult(f.unique_id, start, end)
            for f, start, end in zip(
                batch, output.start_logits.tolist(), output.end_logits.tolist(), strict=True
            )
        ]
        rate = len(results) / (time.perf_counter() - begin)
        print(f"\r{len(results)} windows, {rate:.1f}/s ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    compute_predictions_logits(
        examples,
        features,
        results,
        N_BEST,
        MAX_ANSWER_LENGTH,
        args.do_lower_case,
        str(args.output_dir / "predictions.json"),
        str(args.output_dir / "nbest_predictions.json"),
        str(args.output_dir / "null_odds.json"),
        False,
        True,
        0.0,
        tokenizer,
    )


def read(file: Path) -> Json:
    """A JSON file, perhaps compressed."""
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(file.suffix, open)
    with opener(file, "rt", encoding="utf-8") as text:
        found: Json = json.load(text)
    return found


def vocabulary(model: Path, folder: Path) -> str:
    """Write the vocabulary of a tokenizer.json as vocab.txt, one token a line."""
    tokens = read(model / "tokenizer.json")["model"]["vocab"]
    file = folder / "vocab.txt"
    file.write_text("".join(f"{token}\n" for token in sorted(tokens, key=tokens.get)), "utf-8")
    return str(file)


def compare(args: argparse.Namespace) -> int:
    """Print every question with different texts, and how close its candidates were."""
    theirs, ours = (read(folder / "predictions.json") for folder in (args.theirs, args.ours))
    their_best, our_best = (
        read(folder / "nbest_predictions.json") for folder in (args.theirs, args.ours)
    )
    their_odds, our_odds = (read(folder / "null_odds.json") for folder in (args.theirs, args.ours))
    if list(theirs) != list(ours):
        raise SystemExit("the two folders answer different questions")
    different = [key for key in theirs if theirs[key] != ours[key]]
    unexplained = []
    for key in different:
        close = tie(their_best[key], their_odds[key], theirs[key], ours[key])
        if not close:
            unexplained.append(key)
        print(f"{key}: {theirs[key]!r} and {ours[key]!r}, {'a tie' if close else 'NOT a tie'}")
    n_best = sum(
        [entry["text"] for entry in their_best[key]] != [entry["text"] for entry in our_best[key]]
        for key in theirs
    )
    odds = [abs(their_odds[key] - our_odds[key]) for key in theirs]
    far = sum(difference > TIE for difference in odds)
    same = len(theirs) - len(different)
    print(f"{same} of {len(theirs)} texts equal; {len(unexplained)} of the others are no ties")
    print(f"{len(theirs) - n_best} lists of n best equal in text and order")
    print(f"null odds differ by at most {max(odds):.2g}, by more than {TIE:g} in {far} questions")
    return bool(unexplained)


def tie(candidates: list[Json], odds: float, one: str, other: str) -> bool:
    """Whether two answers were within TIE of each other, by transformers' logits."""
    if not one or not other:
        return abs(odds) <= TIE
    sums = {c["text"]: c["start_logit"] + c["end_logit"] for c in candidates}
    return one in sums and other in sums and abs(sums[one] - sums[other]) <= TIE


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("predict", help="with transformers")
    one.set_defaults(run=predict)
    one.add_argument("--data", type=Path, required=True, help=".json, .json.gz or .json.xz")
    one.add_argument("--model", type=Path, required=True, help="a folder with float weights")
    one.add_argument("--output-dir", type=Path, required=True)
    one.add_argument("--limit", type=int, help="only the first questions")
    one.add_argument("--cased", dest="do_lower_case", action="store_false")
    two = commands.add_parser("compare", help="two folders of predictions")
    two.set_defaults(run=compare)
    two.add_argument("theirs", type=Path)
    two.add_argument("ours", type=Path)
    args = parser.parse_args()
    return args.run(args) or 0


if __name__ == "__main__":
    sys.exit(main())
