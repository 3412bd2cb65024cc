"""Random models that are the same on every machine, for goldens and tests.

The numbers come from NumPy's RandomState, whose stream is frozen for good, so a golden file
stores a seed instead of weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from minibert.config import BertConfig
from minibert.families import FAMILIES, family_name
from minibert.weights import expected_shapes

# Standard deviation of a matrix [out, in], times sqrt(in): attention that chooses, halves of a
# layer that add to their input without drowning it.  With one width for all, deep models either
# amplify rounding a thousandfold or give every token the same hidden state.
GAINS = {
    "query.weight": 2.0,
    "key.weight": 2.0,
    "attention.output.dense.weight": 0.4,
    "output.dense.weight": 0.7,
    "qa_outputs.weight": 2.0,
    "embeddings.weight": 1.0,
}


# name -> layers, hidden size, heads: the fine-tuned BERTs this project starts from, then two more.
SHAPES = {
    "tiny": (2, 128, 2),
    "tiny-5": (12, 128, 2),
    "mini": (4, 256, 4),
    "mini-5": (12, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "minilm": (6, 384, 12),
    "base": (12, 768, 12),
}

# What a matrix or the biases are multiplied by where gradients are compared: so tokens stay apart
# in twelve layers.  Where they become alike, gradients are small differences of large numbers.
CALM = {"attention.output.dense.weight": 0.5, "bias": 0.3}


def random_tensors(config: BertConfig, seed: int, calm: bool = False) -> dict[str, np.ndarray]:
    """Weights with the names of the family's checkpoints: wide, with random biases and gains.

    With BERT's own initialisation (std 0.02, biases 0, gains 1) a tanh GELU or a swapped query and
    key would be invisible.
    """
    random = np.random.RandomState(seed)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        std = 0.2
        if len(shape) == 2:
            gain = next((g for end, g in GAINS.items() if name.endswith(end)), 1.2)
            std = gain if name.endswith("embeddings.weight") else gain / shape[1] ** 0.5
        mean = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        if calm:
            std *= next((factor for end, factor in CALM.items() if name.endswith(end)), 1.0)
        array = (mean + std * random.standard_normal(shape)).astype(np.float32)
        tensors[family_name(name, FAMILIES[config.family])] = array
    return tensors


def random_batch(config: BertConfig, lengths: list[int], seed: int) -> list[tuple]:
    """Windows of random tokens: [(input_ids [S], token_type_ids [S]), ...]."""
    random = np.random.RandomState(seed)
    windows = []
    for length in lengths:
        ids = random.randint(0, config.vocab_size, length).astype(np.int32)
        types = (np.arange(length) >= length // 3).astype(np.int32)
        windows.append((ids, types))
    return windows


def random_spans(lengths: list[int], seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Right first and last tokens for windows of these lengths: one a window, or two."""
    random = np.random.RandomState(seed)
    starts, ends = [], []
    for i, length in enumerate(lengths):
        found = np.sort(random.randint(0, length, (1 + i % 2, 2)))
        starts.append(found[:, 0].tolist())
        ends.append(found[:, 1].tolist())
    return starts, ends


def sampled(array: np.ndarray) -> np.ndarray:
    """32 numbers of an array, from the first to the last: what a golden keeps of a large one."""
    return array.reshape(-1)[np.linspace(0, array.size - 1, 32).astype(int)]


WORDS = (
    "the a an and or of in at on to with by for from her his river ship captain old young new city "
    "moon book wrote found sailed built lost crossed named first last year ada lee berlin paris "
    "north south who what when where why which how many did does was is are it they was 1 2 3 18 "
    "43 19 90 2024 ##s ##ed ##ing ##er ##ly ##a ##e ##i ##o ##u ##n ##t b c d e f g h i j k l m n "
    "o p q r s t u v w x y z , . ? ! ' \" ( ) - : ; $ % é ü 船 東 京 α β א ב ع ر 😀 ##b ##c ##d "
    "##f ##g ##h ##j ##k ##l ##m ##p ##q ##r ##v ##w ##x ##y ##z ##0 ##1 ##2 4 5 6 7 8 9 0"
)


def vocabulary() -> list[str]:
    """A small uncased BERT vocabulary."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return special + list(dict.fromkeys(WORDS.split()))


def tiny_config(**changes: object) -> BertConfig:
    """A model small enough to make and run in milliseconds."""
    numbers: dict[str, object] = {
        "vocab_size": len(vocabulary()),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    return BertConfig(**(numbers | changes))  # type: ignore[arg-type]


def write_model(folder: Path, config: BertConfig | None = None, seed: int = 0) -> Path:
    """A model folder as a user has it: config.json, model.safetensors, vocab.txt."""
    config = config or tiny_config()
    folder.mkdir(parents=True, exist_ok=True)
    raw = {"model_type": config.family, "architectures": ["BertForQuestionAnswering"]}
    raw |= vars(config)
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    save_file(random_tensors(config, seed), folder / "model.safetensors", {"format": "pt"})
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    settings = {"do_lower_case": True, "model_max_length": config.max_position_embeddings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def answer_with_the_embedded_model(question: str, text: str) -> str:
    """For worker processes, which can import this module but no test module."""
    from minibert import QuestionAnswerer

    return QuestionAnswerer().answer(question, text).text
