"""Write tests/goldens/: what transformers and torch compute for BERTs of every shape that matters.

Models have random weights from a seed (tests/random_models.py), so a golden file is small: it
holds the seed, some rows and columns of every stage, and all logits.  Those in training/ hold ten
steps of AdamW in float64: losses, norms, the first gradient, and how far each weight went; of the
smallest models whole, of the others 32 numbers an array.  Run with the pinned versions of the
`parity` extra, which the tests themselves do not need:

    pip install -e '.[test,parity]'
    python tools/make_goldens.py [NAME ...]      # without a name, all; training/tiny is one
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from minibert.config import BertConfig
from minibert.weights import expected_shapes

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "goldens"
sys.path.insert(0, str(ROOT / "tests"))

from random_models import (  # noqa: E402
    SHAPES,
    random_batch,
    random_spans,
    random_tensors,
    sampled,
)

LENGTHS = [384, 1, 128, 513 - 2, 17, 5]  # 1 and 511 too: odd sizes go wrong first
VARIANTS = {  # small models, for what the shapes leave out; 200 is no multiple of any tile
    "gelu_new": {"hidden_act": "gelu_new"},
    "gelu_pytorch_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu", "layer_norm_eps": 1e-3},
    "silu": {"hidden_act": "silu", "type_vocab_size": 3, "intermediate_size": 80},
}
TRAINED_LENGTHS = [160, 1, 47, 5]
TRAINED_SHAPES = [name for name in SHAPES if name != "base"]
OPTIMIZER = {
    "steps": 10,
    "learning_rate": 2e-4,
    "beta1": 0.9,
    "beta2": 0.98,
    # Far above what rounding leaves where a gradient is 0 in truth, so that weights there rest.
    "eps": 1e-5,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
}


def stored(x: torch.Tensor) -> np.ndarray:
    """The part of [S, D] hidden states that a golden keeps: every 16th row, 16 columns."""
    array = x.numpy()
    return np.ascontiguousarray(array[::16, :: array.shape[1] // 16])


def random_model(config: BertConfig, seed: int, calm: bool = False) -> torch.nn.Module:
    """The model of transformers with random weights."""
    # Without padding, as torch never trains the row of [PAD], which may be among random tokens.
    raw = asdict(config) | {"pad_token_id": None}
    theirs = transformers.BertConfig(**raw, attn_implementation="eager")
    model = transformers.BertForQuestionAnswering(theirs).eval()
    tensors = random_tensors(config, seed, calm)
    state = {key: torch.from_numpy(value) for key, value in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any("position_ids" not in key for key in missing):
        raise SystemExit(f"names differ: {missing} {unexpected}")
    return model


def run(model: torch.nn.Module, window: tuple, **options: bool) -> Any:
    """Run transformers on one window (input_ids [S], token_type_ids [S])."""
    ids, types = (torch.from_numpy(part).long()[None] for part in window)
    return model(input_ids=ids, token_type_ids=types, **options)


def write(name: str, arrays: dict[str, np.ndarray], config: BertConfig, **facts: object) -> None:
    """Save a golden with what it was made from and with."""
    made = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    facts = {"config": asdict(config), "made_with": made} | facts
    path = GOLDENS / f"{name}.safetensors"
    save_file(arrays, path, {key: json.dumps(value) for key, value in facts.items()})
    print(f"{name}: {path.stat().st_size / 1e3:.0f} kB")


def golden(name: str, config: BertConfig, seed: int, lengths: list[int]) -> None:
    """Run transformers on each window and save what came out."""
    model = random_model(config, seed)
    stages: dict[str, np.ndarray] = {}
    for number, window in enumerate(random_batch(config, lengths, seed)):
        with torch.no_grad():
            out = run(model, window, output_hidden_states=True)
        for i, hidden in enumerate(out.hidden_states):
            stage = f"layer.{i - 1}" if i else "embeddings"
            stages[f"{number}/{stage}"] = stored(hidden[0])
        stages[f"{number}/start_logits"] = out.start_logits[0].numpy()
        stages[f"{number}/end_logits"] = out.end_logits[0].numpy()
    write(name, stages, config, seed=seed, lengths=lengths)


def loss_of(model: torch.nn.Module, windows: list, starts: list, ends: list) -> torch.Tensor:
    """Minus the log of the chance of the right tokens: half start, half end, mean over windows."""
    losses = []
    for window, *right in zip(windows, starts, ends, strict=True):
        out = run(model, window)
        for logits, places in zip((out.start_logits, out.end_logits), right, strict=True):
            chosen = logits[0].log_softmax(0)[sorted(set(places))]
            losses.append(-chosen.logsumexp(0) / 2)
    return torch.stack(losses).sum() / len(windows)


def training_golden(
    name: str, config: BertConfig, seed: int, lengths: list[int], whole: bool
) -> None:
    """Train for some steps, and save losses, norms, the first gradient and the weights' changes."""
    model = random_model(config, seed, calm=True).double()
    weights = {key.removeprefix("bert."): value for key, value in model.named_parameters()}
    before = {key: value.detach().numpy().copy() for key, value in weights.items()}
    plain = [key for key in weights if key.endswith("bias") or "LayerNorm" in key]
    optimizer = torch.optim.AdamW(
        [
            {"params": [weights[key] for key in plain], "weight_decay": 0.0},
            {"params": [value for key, value in weights.items() if key not in plain]},
        ],
        lr=OPTIMIZER["learning_rate"],
        betas=(OPTIMIZER["beta1"], OPTIMIZER["beta2"]),
        eps=OPTIMIZER["eps"],
        weight_decay=OPTIMIZER["weight_decay"],
    )
    losses, norms, gradients = [], [], {}
    for step in range(OPTIMIZER["steps"]):
        optimizer.zero_grad()
        windows = random_batch(config, lengths, 1000 * seed + step)
        loss = loss_of(model, windows, *random_spans(lengths, 1000 * seed + step))
        loss.backward()
        gradients = gradients or {key: value.grad.numpy().copy() for key, value in weights.items()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER["max_grad_norm"])
        losses.append(loss.item())
        norms.append(norm.item())
        optimizer.step()
    arrays = {"losses": np.array(losses), "norms": np.array(norms)}
    changes = {key: value.detach().numpy() - before[key] for key, value in weights.items()}
    for kind, found in (("gradient", gradients), ("change", changes)):
        ordered = [found[key] for key in expected_shapes(config)]
        kept = [array.reshape(-1) if whole else sampled(array) for array in ordered]
        arrays[kind] = np.concatenate(kept).astype(np.float32)
        arrays[f"{kind} norms"] = np.array([np.linalg.norm(array) for array in ordered])
        arrays[f"{kind} largest"] = np.array([np.abs(array).max() for array in ordered])
    write(name, arrays, config, seed=seed, lengths=lengths, whole=whole, optimizer=OPTIMIZER)


def main() -> None:
    """Write the goldens that the command line names, or all."""
    jobs = {}
    for seed, (name, (layers, hidden, heads)) in enumerate(SHAPES.items(), 1):
        config = BertConfig(
            vocab_size=1000,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
        )
        jobs[name] = (golden, config, seed, LENGTHS)
        if name in TRAINED_SHAPES:
            jobs[f"training/{name}"] = (training_golden, config, seed, TRAINED_LENGTHS, False)
    for seed, (name, changes) in enumerate(VARIANTS.items(), 101):
        numbers = {
            "vocab_size": 50,
            "hidden_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 200,
            "max_position_embeddings": 40,
        }
        config = BertConfig(**(numbers | changes))
        jobs[name] = (golden, config, seed, [40, 1, 9])
        smaller = replace(config, hidden_size=18, intermediate_size=28)
        jobs[f"training/{name}"] = (training_golden, smaller, seed, [40, 1, 9], True)
    wanted = set(sys.argv[1:]) or jobs.keys()
    if unknown := wanted - jobs.keys():
        raise SystemExit(f"no such golden: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    (GOLDENS / "training").mkdir(parents=True, exist_ok=True)
    for name in sorted(wanted):
        make, *arguments = jobs[name]
        make(name, *arguments)


if __name__ == "__main__":
    main()
