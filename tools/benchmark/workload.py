"""What is run: models and inputs, the same for every library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmark.processes import BenchError

if TYPE_CHECKING:
    from minibert.config import BertConfig

QUESTIONS = ("Who designed the Eiffel Tower?", "When did the tower open?")
CONTEXT = (
    "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris. It is named "
    "after the engineer Gustave Eiffel, whose company built it from 1887 to 1889, but it was "
    "designed by Maurice Koechlin and Emile Nouguier, two senior engineers of the company, with "
    "the architect Stephen Sauvestre. It was the centrepiece of the 1889 World's Fair and opened "
    "on 31 March 1889. Although some of France's leading artists and intellectuals criticised it "
    "at first, it has since become a symbol of the country: 5.9 million people went up in 2022. "
    "The tower is 330 metres tall, about as tall as a building of 81 storeys."
)

# ---------------------------------------------------------------- models

SHAPES = ("2/128/2", "4/256/4", "4/512/8", "8/512/8", "6/384/12", "12/768/12")
SEED = 0
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = 30522  # of BERT's English models


# Of other families: what their models usually have beside the numbers of a shape.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"vocab_size": VOCABULARY},
    "distilbert": {"vocab_size": VOCABULARY, "type_vocab_size": 1},
    "roberta": {
        "vocab_size": 50265,
        "type_vocab_size": 1,
        "max_position_embeddings": 514,
        "first_position": 2,
        "layer_norm_eps": 1e-5,
    },
}


@dataclass(frozen=True)
class Shape:
    """The size of a BERT, written layers/hidden/heads; another family's name may stand before."""

    layers: int
    hidden: int
    heads: int
    family: str = "bert"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read it.

        Raises:
            ValueError: it is no such shape.

        Example:
            >>> Shape.parse("6/384/12")
            Shape(layers=6, hidden=384, heads=12, family='bert')
            >>> Shape.parse("distilbert/6/768/12").family
            'distilbert'
        """
        family, *sizes = text.split("/") if text[:1].isalpha() else ("bert", *text.split("/"))
        layers, hidden, heads = map(int, sizes)
        if family not in FAMILIES or min(layers, hidden, heads) < 1 or hidden % heads:
            raise ValueError(f"no shape: {text!r}")
        return cls(layers, hidden, heads, family)

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """The matrices of a layer, [in, out]: query, key and value together, and so on."""
        d = self.hidden
        return ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d))


def config_of(shape: Shape) -> BertConfig:
    """The config of the model with that shape."""
    from minibert.config import BertConfig

    return BertConfig(
        family=shape.family,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        **FAMILIES[shape.family],
    )


def write_model(folder: Path, shape: Shape) -> None:
    """Write a random model as transformers has it: config.json, model.safetensors, vocab.txt.

    The weights are wide, with biases and gains, so that a wrong formula shows in the logits.
    """
    from safetensors.numpy import save_file

    from minibert.families import FAMILIES as KNOWN
    from minibert.families import family_name
    from minibert.weights import expected_shapes

    config, family = config_of(shape), KNOWN[shape.family]
    random = np.random.default_rng(SEED)
    tensors = {}
    for name, size in expected_shapes(config).items():
        array = random.standard_normal(size, np.float32)
        if len(size) == 1:
            array *= np.float32(0.1)  # biases
            if name.endswith("LayerNorm.weight"):
                array += np.float32(1)
        elif "embeddings" not in name:
            array /= np.float32(size[1] ** 0.5)  # keeps the size of what it multiplies
        tensors[family_name(name, family)] = array
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {k: x for k, x in vars(config).items() if x is not None}
    raw = {"model_type": shape.family, **{family.keys.get(k, k): x for k, x in sizes.items()}}
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    words = [*SPECIAL, *(f"word{i}" for i in range(config.vocab_size - len(SPECIAL)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def float32_model(model: str | None, folder: Path) -> str:
    """A folder with a model's weights that peers can read.

    Args:
        model: as given by --model; None for the embedded model.
        folder: where a float32 copy may be written.

    Returns:
        The model's own folder, or `folder` if its weights are integers with scales.

    Raises:
        BenchError: there is no such model.
    """
    from safetensors.numpy import save_file

    from minibert.checkpoints.hub import find_model
    from minibert.checkpoints.safetensors import open_checkpoint
    from minibert.errors import MinibertError
    from minibert.parameters import full
    from minibert.weights import read_matrix

    try:
        files = find_model(model)
        checkpoint = open_checkpoint(files.weights)
        names = checkpoint.names()
        scaled = {name for name in names if f"{name}.scale" in checkpoint}
        if not scaled:
            return str(files.folder.resolve())
        tensors = {}
        for name in names:
            if name in scaled:
                tensors[name] = full(read_matrix(checkpoint, name))
            elif name.removesuffix(".scale") not in scaled:
                tensors[name] = checkpoint.read(name).copy()
    except MinibertError as error:
        raise BenchError(f"the peer's copy of the model: {error}") from None
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for path in files.folder.iterdir():
        if path.suffix in (".json", ".txt") and not path.name.startswith("model."):
            shutil.copy(path, folder)
    return str(folder)


# ---------------------------------------------------------------- inputs

Floats = NDArray[np.float32]
Padded = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # ids, mask, types [B, S]

MIXED = "mixed"
MIXED_WINDOWS = 64
QUESTION_WORDS = 12
WORD_TOKENS = 1.25  # tokens that a word of CONTEXT has, about
AROUND = 3  # special tokens of a window: [CLS] question [SEP] text [SEP]


class Inputs(NamedTuple):
    """The input of one pass, S tokens: a question and a text of the model's own words."""

    question: str
    text: str
    ids: NDArray[np.int64]  # [S]
    types: NDArray[np.int64]  # [S] 0 for the question, 1 for the text


def window_lengths(work: str) -> list[int]:
    """The lengths in tokens of the windows of a piece of work.

    Args:
        work: a number, one window of so many tokens; or "mixed", 64 windows with lengths as
            SQuAD has them; or "mixed8", the first 8 of these.

    Raises:
        ValueError: it is neither.

    Example:
        >>> window_lengths("384"), window_lengths("mixed4")
        ([384], [168, 152, 198, 166])
    """
    if not work.startswith(MIXED):
        if not AROUND + 2 <= int(work) <= 512:
            raise ValueError(f"no length of a window: {work!r}")
        return [int(work)]
    count = int(work.removeprefix(MIXED) or MIXED_WINDOWS)
    if count < 1:
        raise ValueError(f"no windows: {work!r}")
    lengths = np.random.default_rng(SEED).normal(160, 60, count).round()
    return [int(length) for length in np.clip(lengths, 40, 384)]


def pairs(count: int) -> list[tuple[str, str]]:
    """Questions, each about a text of its own, that make windows as long as `window_lengths`."""
    words = CONTEXT.split()
    made = []
    for number, length in enumerate(window_lengths(f"{MIXED}{count}")):
        size = max(8, round((length - QUESTION_WORDS) / WORD_TOKENS))
        begin = 7 * number % len(words)
        turned = (words[begin:] + words[:begin]) * (1 + size // len(words))
        text = f"{number}. {' '.join(turned[:size])}"  # no two are the same
        made.append((QUESTIONS[number % len(QUESTIONS)], text))
    return made


def work_label(work: str) -> str:
    """A piece of work in words.

    Example:
        >>> work_label("384"), work_label("mixed8"), work_label("training")
        ('384 tokens', '8 mixed windows', 'training')
    """
    if work.startswith(MIXED):
        return f"{len(window_lengths(work)):,} mixed windows"
    return f"{work} tokens" if work.isdigit() else work


def make_inputs(work: str) -> list[Inputs]:
    """Random words for the windows of a piece of work."""
    random = np.random.default_rng(SEED + 1)
    cls_id, sep_id = map(SPECIAL.index, ("[CLS]", "[SEP]"))
    made = []
    for length in window_lengths(work):
        words = random.integers(len(SPECIAL), VOCABULARY, length - AROUND)
        asked, read = np.split(words, [min(QUESTION_WORDS, len(words) - 1)])
        question, text = (" ".join(f"word{i - len(SPECIAL)}" for i in ids) for ids in (asked, read))
        ids = np.concatenate([[cls_id], asked, [sep_id], read, [sep_id]])
        made.append(Inputs(question, text, ids, (np.arange(length) > len(asked) + 1).astype(int)))
    return made


def pad(windows: Sequence[Any]) -> Padded:
    """One padded batch, as peers want it, of windows that have `ids` and `types`."""
    longest = max(len(window.ids) for window in windows)
    ids, mask, types = (np.zeros((len(windows), longest), np.int64) for _ in range(3))
    for row, window in enumerate(windows):
        n = len(window.ids)
        ids[row, :n], mask[row, :n], types[row, :n] = window.ids, 1, window.types
    return ids, mask, types


def pad_sorted(windows: Sequence[Any], size: int) -> Iterator[tuple[list[int], Padded]]:
    """Padded batches of windows of about the same length, the longest first.

    Yields:
        Which windows are in the batch, and the batch.
    """
    order = sorted(range(len(windows)), key=lambda i: len(windows[i].ids), reverse=True)
    for begin in range(0, len(windows), size):
        rows = order[begin : begin + size]
        yield rows, pad([windows[i] for i in rows])


def unpad(
    batches: Sequence[tuple[list[int], Any]], logits: Sequence[Any], lengths: Sequence[int]
) -> list[Floats]:
    """The logits of each window, in the windows' order.

    Args:
        batches: as `pad_sorted` made them.
        logits: start and end logits [2, B, S] of each.
        lengths: tokens of each window.
    """
    found: dict[int, Floats] = {}
    for (rows, _), both in zip(batches, logits, strict=True):
        found |= {i: np.stack([x[row, : lengths[i]] for x in both]) for row, i in enumerate(rows)}
    return [found[i] for i in range(len(lengths))]
