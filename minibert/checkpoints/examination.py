"""Says what a model's folder holds, how it is understood, and what keeps it from running.

Each part (config, tokenizer, weights) is looked at even where another one is bad, so that all
problems are told at once.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from minibert.checkpoints.conversion import config_file, open_any
from minibert.checkpoints.hub import ModelFiles, find_model
from minibert.checkpoints.safetensors import Checkpoint
from minibert.checkpoints.vocabularies import load_tokenizer
from minibert.config import BertConfig, read_json_object
from minibert.errors import MinibertError
from minibert.families import FAMILIES, wrapping
from minibert.files import present
from minibert.model import load_model
from minibert.reprs import short
from minibert.tokenizer import Pair, Tokenizer
from minibert.weights import check_weights, expected_shapes

Facts = dict[str, str]

QUESTION = "Who wrote the first program?"
TEXT = "Ada Lovelace wrote the first program in 1843. It was never run."

# Kind of the splitter -> what its tokens are, and the files that it is set up from.
KINDS = {
    "WordPiece": ("word pieces", ("vocab.txt",)),
    "BPE": ("byte pairs", ("vocab.json", "merges.txt")),
    "Unigram": ("pieces of a SentencePiece model", ("sentencepiece.bpe.model", "spiece.model")),
}


def examine_model(model: str, revision: str | None = None) -> tuple[dict[str, Facts], Facts]:
    """Look at a model, and run it.

    Args:
        model: a folder, a weights file, or a name on the Hub, whose weights are fetched.
        revision: branch, tag or commit on the Hub.

    Returns:
        What was found, by title and name; and the problems, by the part that has them: it runs if
        there are none.
    """
    problems: Facts = {}
    found: dict[str, Facts] = {"model": {"name": plain(model)}}
    with noting(problems, "files"):
        files = find_files(model, revision, problems)
        found["model"]["folder"] = plain(str(files.folder))
        config = tokenizer = None
        with noting(problems, "config"):
            config = BertConfig.from_json(config_file(files.folder))
            found["model"] |= describe_config(config, files.folder)
        with noting(problems, "tokenizer"):
            tokenizer = load_tokenizer(files.folder, config.family if config else "bert")
            found["tokenizer"] = describe_tokenizer(tokenizer, files.folder, config)
            if config:
                tokenizer.check_fits(config)
        if files.weights.is_file():
            with noting(problems, "weights"):
                found["weights"] = {
                    "file": f"{plain(files.weights.name)}, {files.size / 1e6:.1f} MB"
                }
                checkpoint = open_any(files.weights)
                found["weights"] |= describe_weights(checkpoint, config, tokenizer)
                if config:
                    check_weights(checkpoint, config)
    if not problems:
        with noting(problems, "running"):
            loaded = load_model(model, revision=revision, device="reference")
            loaded.logits(loaded.windows(QUESTION, [TEXT]))
    return found, problems


@contextmanager
def noting(problems: Facts, part: str) -> Iterator[None]:
    """Keep an error as the problem of a part, and go on; warnings say their part elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except MinibertError as error:
            problems[part] = str(error)
        except OSError as error:  # a folder that may not be read, a broken disk
            problems[part] = f"cannot be read: {error.strerror or error}"


def find_files(model: str, revision: str | None, problems: Facts) -> ModelFiles:
    """A model's files; of a local folder also where its weights cannot be read as they are."""
    try:
        return find_model(model, revision=revision)
    except MinibertError as error:
        path = Path(os.path.expanduser(model))
        if not os.path.exists(path):
            raise
        problems["weights"] = str(error)
    try:
        return find_model(path, accept_pickles=True)
    except MinibertError:
        folder = path if path.is_dir() else path.parent
        return ModelFiles(folder, folder / "model.safetensors")  # which is not there


def describe_config(config: BertConfig, folder: Path) -> Facts:
    """What config.json says."""
    classes = read_json_object(config_file(folder)).get("architectures")
    saved = f", saved as {plain(classes[0])}" if classes and isinstance(classes, list) else ""
    numbers = sum(math.prod(shape) for shape in expected_shapes(config).values())
    return {
        "family": config.family + saved,
        "shape": f"{config.num_hidden_layers} layers x {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {config.intermediate_size} inside, "
        f"{config.hidden_act}",
        "size": f"{numbers / 1e6:.1f} million numbers",
        "longest window": f"{config.longest_window} tokens",
    }


def describe_tokenizer(tokenizer: Tokenizer, folder: Path, config: BertConfig | None) -> Facts:
    """What a tokenizer does, and which file says so."""
    backend, pair = tokenizer.backend, tokenizer.pair
    tokens, files = KINDS.get(type(backend.model).__name__, ("tokens", ()))
    there = [name for name in ("tokenizer.json", *files) if present(folder / name)]
    # A tokenizer.json says all; else every file of the vocabulary counts.
    source = there[0] if there[:1] == ["tokenizer.json"] else " and ".join(there)
    said = folder / "tokenizer_config.json"
    settings = read_json_object(said) if present(said) else {}
    named = [
        name
        for name in ("special_tokens_map.json", "tokenizer_config.json")
        if present(folder / name)
        and any(key in read_json_object(folder / name) for key in ("cls_token", "sep_token"))
    ]
    lowered = tokenizer.normalized("A") == "a"
    why = (
        "tokenizer_config.json says so"
        if "do_lower_case" in settings
        else f"{source} says so"
        if source == "tokenizer.json"
        else f"{source} has {'no' if lowered else 'some'} capitals"
        if tokenizer_is_wordpiece(tokenizer)
        else "usual for this kind"
    )
    if config and config.type_vocab_size < 2:
        pair = replace(pair, text_type=0)
    limit = tokenizer.model_max_length
    return {
        "kind": f"{tokens}: {tokenizer.vocab_size} tokens, from {source}",
        "lower-casing": f"{'yes' if lowered else 'no'}: {why}",
        "accents": "dropped" if tokenizer.normalized("é").lower() == "e" else "kept",
        "special tokens": f"{joined(tokenizer, pair)}; named in "
        f"{' and '.join(named) or f'no file, so the usual ones of {source}'}",
        "pair": f"{'[CLS]'} question{' [SEP]' * pair.separators} text [SEP], token types "
        f"{'0 and 1' if pair.text_type else '0 alone'}",
        "windows": f"{limit} tokens at most" if limit else "no limit said",
    }


def plain(text: object) -> str:
    """A text from a file in one line, which cannot steer a terminal; without quotes."""
    return short(str(text))[1:-1]


def tokenizer_is_wordpiece(tokenizer: Tokenizer) -> bool:
    """Whether tokens are BERT's word pieces."""
    return type(tokenizer.backend.model).__name__ == "WordPiece"


def joined(tokenizer: Tokenizer, pair: Pair) -> str:
    """The tokens between which question and text stand, and their ids."""
    ids = {"[CLS]": pair.cls_id, "[SEP]": pair.sep_id}
    shown = []
    for role, number in ids.items():
        token = tokenizer.backend.id_to_token(number)
        shown.append(f"{plain(token)} {number}" + ("" if token == role else f" as {role}"))
    return ", ".join(shown)


def describe_weights(
    checkpoint: Checkpoint, config: BertConfig | None, tokenizer: Tokenizer | None
) -> Facts:
    """What a weights file holds, and what of it is left out."""
    dtypes = Counter(map(checkpoint.dtype, checkpoint))
    facts = {"numbers": ", ".join(f"{count} arrays {kind}" for kind, count in dtypes.most_common())}
    if config is None:
        return facts
    before = wrapping(checkpoint.names(), FAMILIES[config.family])
    if before:
        facts["before every name"] = plain(before)
    try:
        used = set(check_weights(checkpoint, config).values())
    except MinibertError:
        return facts  # examine_model tells
    spare = [name for name in checkpoint if name.removesuffix(".scale") not in used]
    if spare:
        more = f" and {len(spare) - 3} more" if len(spare) > 3 else ""
        facts["left out"] = ", ".join(map(plain, spare[:3])) + more
    if tokenizer and config.vocab_size > tokenizer.vocab_size:
        facts["spare rows"] = (
            f"{config.vocab_size - tokenizer.vocab_size} of the {config.vocab_size} word "
            "embeddings, which no token has"
        )
    return facts
