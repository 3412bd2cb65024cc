"""Write tests/goldens/: what transformers computes for BERTs of every shape that matters.

Models have random weights from a seed (tests/random_models.py), so a golden file is small: it
holds the seed, some rows and columns of every stage, and all logits.  Run with the pinned
versions of the `parity` extra, which the tests themselves do not need:

    pip install -e '.[test,parity]'
    python tools/make_goldens.py [NAME ...]      # without a name, all
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from minibert.config import BertConfig

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "goldens"
sys.path.insert(0, str(ROOT / "tests"))

from random_models import random_batch, random_tensors  # noqa: E402

LENGTHS = [384, 1, 128, 513 - 2, 17, 5]  # 1 and 511 too: odd sizes go wrong first
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
VARIANTS = {  # small models, for what the shapes leave out; 200 is no multiple of any tile
    "gelu_new": {"hidden_act": "gelu_new"},
    "gelu_pytorch_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu", "layer_norm_eps": 1e-3},
    "silu": {"hidden_act": "silu", "type_vocab_size": 3, "intermediate_size": 80},
}


def stored(x: torch.Tensor) -> np.ndarray:
    """The part of [S, D] hidden states that a golden keeps: every 16th row, 16 columns."""
    array = x.numpy()
    return np.ascontiguousarray(array[::16, :: array.shape[1] // 16])


def golden(name: str, config: BertConfig, seed: int, lengths: list[int]) -> None:
    """Run transformers on each window and save what came out."""
    raw = asdict(config)
    theirs = transformers.BertConfig(**raw, attn_implementation="eager")
    model = transformers.BertForQuestionAnswering(theirs).eval()
    tensors = random_tensors(config, seed)
    state = {key: torch.from_numpy(value) for key, value in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any("position_ids" not in key for key in missing):
        raise SystemExit(f"{name}: names differ: {missing} {unexpected}")
    stages: dict[str, np.ndarray] = {}
    for number, (ids, types) in enumerate(random_batch(config, lengths, seed)):
        with torch.no_grad():
            out = model(
                input_ids=torch.from_numpy(ids).long()[None],
                token_type_ids=torch.from_numpy(types).long()[None],
                output_hidden_states=True,
            )
        for i, hidden in enumerate(out.hidden_states):
            stage = f"layer.{i - 1}" if i else "embeddings"
            stages[f"{number}/{stage}"] = stored(hidden[0])
        stages[f"{number}/start_logits"] = out.start_logits[0].numpy()
        stages[f"{number}/end_logits"] = out.end_logits[0].numpy()
    made = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    metadata = {
        "config": json.dumps(raw),
        "seed": str(seed),
        "lengths": json.dumps(lengths),
        "made_with": json.dumps(made),
    }
    save_file(stages, GOLDENS / f"{name}.safetensors", metadata)
    size = (GOLDENS / f"{name}.safetensors").stat().st_size
    print(f"{name}: {size / 1e3:.0f} kB")


def main() -> None:
    """Write the goldens that the command line names, or all."""
    wanted = set(sys.argv[1:]) or SHAPES.keys() | VARIANTS.keys()
    if unknown := wanted - SHAPES.keys() - VARIANTS.keys():
        raise SystemExit(f"no such golden: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    GOLDENS.mkdir(exist_ok=True)
    for seed, (name, (layers, hidden, heads)) in enumerate(SHAPES.items(), 1):
        config = BertConfig(
            vocab_size=1000,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
        )
        if name in wanted:
            golden(name, config, seed, LENGTHS)
    for seed, (name, changes) in enumerate(VARIANTS.items(), 101):
        numbers = {
            "vocab_size": 50,
            "hidden_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 200,
            "max_position_embeddings": 40,
        }
        if name in wanted:
            golden(name, BertConfig(**(numbers | changes)), seed, [40, 1, 9])


if __name__ == "__main__":
    main()
