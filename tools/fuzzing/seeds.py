"""Small models of every family and small files of every form, all of them right.

A seed is a folder: names of files -> what they hold.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import io
import json
import lzma
import sys
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors.numpy import load, save

from minibert.checkpoints.conversion import convert
from minibert.config import BertConfig

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from random_models import random_tensors, vocabulary  # noqa: E402
from tensor_bundles import write_tensor_bundle  # noqa: E402
from tokenizer_files import field, write_json, write_sentencepiece  # noqa: E402
from torch_files import write_torch_file  # noqa: E402

Folder: TypeAlias = dict[str, bytes]

GOLDENS = ROOT / "tests/goldens/families"
FAMILIES = ("bert", *sorted(path.name for path in GOLDENS.iterdir()))
WORD_PIECES = ("bert", "distilbert", "electra", "electra-small")
# Sizes in each family's words.
SIZES = {
    **dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24),
    **dict(dim=16, n_layers=2, n_heads=2, hidden_dim=24),
}
QUESTION = "who wrote the first program?"
CONTEXT = (
    "ada lovelace wrote the first program in 1843, in london. it was never run! the ship sailed "
    "from berlin to paris, 3,000 km away. 東京 is far."
)


@functools.cache
def model(family: str) -> Folder:
    """A tiny model: config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    if family == "bert":
        raw: dict[str, Any] = {"model_type": "bert", **SIZES, "max_position_embeddings": 100}
        raw |= {"vocab_size": len(vocabulary())}
        with tempfile.TemporaryDirectory() as name:
            folder = write_json(Path(name), vocabulary(), settings={"do_lower_case": True})
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
    else:
        files = {p.name: p.read_bytes() for p in (GOLDENS / family).glob("*.json")}
        raw = json.loads(files["config.json"])
    raw |= {name: size for name, size in SIZES.items() if name in raw}
    raw["embedding_size"] = {"albert": 8, "electra-small": 8, "electra": 16}.get(family)
    raw["vocab_size"] += 8  # so that a vocabulary in another form fits, too
    config = BertConfig.from_dict(raw)
    files["config.json"] = json.dumps(raw).encode()
    files["model.safetensors"] = save(random_tensors(config, 0), {"format": "pt"})
    return dict(sorted(files.items()))


@functools.cache
def vocabulary_files(family: str) -> Folder:
    """The same model with the tokenizer in the form that it had before tokenizer.json."""
    files = dict(model(family))
    raw = json.loads(files.pop("tokenizer.json"))["model"]
    if family in WORD_PIECES:
        words = sorted(raw["vocab"], key=raw["vocab"].__getitem__)
        files["vocab.txt"] = "".join(f"{word}\n" for word in words).encode()
    elif family == "roberta":
        files["vocab.json"] = json.dumps(raw["vocab"]).encode()
        merges = [each if isinstance(each, str) else " ".join(each) for each in raw["merges"]]
        files["merges.txt"] = "\n".join(["#version: 0.2", *merges]).encode() + b"\n"
    else:
        begin, end = ("[CLS]", "[SEP]") if family == "albert" else ("<s>", "</s>")
        first = [("<unk>", 0.0, 2), (begin, 0.0, 3), (end, 0.0, 3)]
        if family == "albert":
            first.insert(0, ("<pad>", 0.0, 3))
        known = {text for text, _, _ in first} | {"<mask>", "[MASK]", "<pad>"}
        pieces = [(text, score, 1) for text, score in raw["vocab"] if text not in known]
        name = "spiece.model" if family == "albert" else "sentencepiece.bpe.model"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write_sentencepiece(path, first + pieces, unknown=int(family == "albert"))
            files[name] = path.read_bytes()
        del files["tokenizer_config.json"]
    return dict(sorted(files.items()))


def normaliser(rules: bytes) -> bytes:
    """The end of a SentencePiece model: by which rules it replaces characters."""
    return field(3, field(2, rules))


@functools.cache
def shards(family: str) -> Folder:
    """The same model with its weights in two files and an index."""
    files = dict(model(family))
    tensors = load(files.pop("model.safetensors"))
    names = sorted(tensors)
    parts = names[::2], names[1::2]
    index = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        files[file] = save({name: tensors[name] for name in part}, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    document = {"metadata": {"total_size": 1}, "weight_map": index}
    files["model.safetensors.index.json"] = json.dumps(document).encode()
    return dict(sorted(files.items()))


@functools.cache
def packed(family: str, bits: int) -> Folder:
    """The same model in integers of a few bits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        for file, content in model(family).items():
            (folder / file).write_bytes(content)
        made = convert(folder, Path(name) / "packed", bits=bits)
        return {path.name: path.read_bytes() for path in sorted(made.iterdir())}


@functools.cache
def pickle(family: str, form: str) -> Folder:
    """The same model as torch.save writes it, 'zip' or 'legacy'."""
    files = dict(model(family))
    tensors = load(files.pop("model.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        path = write_torch_file(Path(folder) / "pytorch_model.bin", tensors, form)
        files["pytorch_model.bin"] = path.read_bytes()
    return dict(sorted(files.items()))


@functools.cache
def bundle() -> Folder:
    """The tiny BERT as TensorFlow writes it."""
    files = dict(model("bert"))
    tensors = load(files.pop("model.safetensors"))
    variables = {}
    for name, array in tensors.items():
        theirs = name.replace(".", "/").replace("layer/", "layer_")
        if theirs.startswith("qa_outputs"):
            theirs = f"cls/squad/output_{'bias' if array.ndim == 1 else 'weights'}"
        elif "LayerNorm" in theirs:
            theirs = theirs.replace("weight", "gamma").replace("bias", "beta")
        elif theirs.endswith("embeddings/weight"):
            theirs = theirs.removesuffix("/weight")
        elif theirs.endswith("weight"):
            theirs, array = theirs.replace("weight", "kernel"), np.ascontiguousarray(array.T)
        variables[theirs] = array
    with tempfile.TemporaryDirectory() as folder:
        write_tensor_bundle(Path(folder) / "bert_model.ckpt", variables)
        files |= {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return dict(sorted(files.items()))


@functools.cache
def squad(form: str = "plain") -> Folder:
    """A SQuAD file: 'plain', 'gz', 'xz', or 'rows' and 'lines' as data sets have them."""
    document = json.loads((ROOT / "tests/squad_example.json").read_bytes())
    questions = [
        {"id": qa["id"], "question": qa["question"], "context": part["context"],
         "answers": {"text": [each["text"] for each in qa["answers"]],
                     "answer_start": [each["answer_start"] for each in qa["answers"]]}}
        for article in document["data"] for part in article["paragraphs"] for qa in part["qas"]
    ]  # fmt: skip
    if form == "rows":
        return {"squad.json": json.dumps(questions).encode()}
    if form == "lines":
        return {"squad.json": b"".join(json.dumps(row).encode() + b"\n" for row in questions)}
    content = json.dumps(document).encode()
    if form == "gz":
        return {"squad.json": gzip.compress(content, mtime=0)}
    return {"squad.json": lzma.compress(content) if form == "xz" else content}


@functools.cache
def predictions() -> Folder:
    """Predictions for `squad`, and what belongs to them."""
    rows = [json.loads(line) for line in squad("lines")["squad.json"].splitlines()]
    texts = {row["id"]: (row["answers"]["text"] or [""])[0] for row in rows}
    nbest = {key: [{"text": text, "probability": 0.5}] for key, text in texts.items()}
    listed = [
        {"id": key, "prediction_text": text, "no_answer_probability": 0.25}
        for key, text in texts.items()
    ]
    return squad() | {
        "listed.json": json.dumps(listed).encode(),
        "nbest.json": json.dumps(nbest).encode(),
        "odds.json": json.dumps(dict.fromkeys(texts, 0.5)).encode(),
        "predictions.json": json.dumps(texts).encode(),
    }


def has_pyarrow() -> bool:
    """Whether there can be tables."""
    return importlib.util.find_spec("pyarrow") is not None


@functools.cache
def table(form: str = "plain") -> Folder:
    """A Parquet file of questions: 'plain', 'categories' or 'compressed'."""
    import pyarrow
    import pyarrow.parquet

    questions = [QUESTION, "where?" if form == "plain" else None, "when?"]
    contexts = [CONTEXT, CONTEXT, "in 1843 it rained."]
    columns = {
        "question": pyarrow.array(questions * 3),
        "context": pyarrow.array(contexts * 3),
        "more": pyarrow.array([[1, 2], None, []] * 3),
    }
    if form == "categories":
        columns["context"] = columns["context"].dictionary_encode()
    out = io.BytesIO()
    compression = "gzip" if form == "compressed" else "none"
    pyarrow.parquet.write_table(pyarrow.table(columns), out, 5, compression=compression)
    return {"rows.parquet": out.getvalue()}


def rows() -> Folder:
    """A file of questions for `minibert answer --jsonl`."""
    each = [
        {"question": QUESTION, "context": CONTEXT, "id": 1},
        {"question": "where is it?", "context": [CONTEXT, "it is in paris."], "score": None},
        {"question": "when?", "context": "in 1843 it rained."},
    ]
    return {"rows.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in each)}
