"""Write tests/goldens/families/: what transformers computes and answers for families beside BERT.

As tools/make_goldens.py: random weights from a seed, so that a golden holds no weights.  A folder
a model: config.json, the tokenizer, and golden.safetensors with tokens, stages and logits of some
windows and the answers of the pipeline.  Their reference is transformers 4.57.6, in an environment
of its own:

    pip install -e '.[test,parity-4]'
    python tools/make_family_goldens.py [NAME ...]      # without a name, all
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from make_goldens import GOLDENS, ROOT, stored
from safetensors.numpy import save_file

from minibert.config import BertConfig

sys.path.insert(0, str(ROOT / "tests"))

from family_models import LONGEST, TEXT, make_tokenizer
from random_models import random_tensors

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 80,
}
ROBERTA = {**SIZES, "layer_norm_eps": 1e-5, "type_vocab_size": 1}
# name -> how transformers' classes begin, the config
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "distilbert": ("DistilBert", {"dim": 64, "n_layers": 3, "n_heads": 2, "hidden_dim": 80}),
    "roberta": ("Roberta", ROBERTA),
    "xlm-roberta": ("XLMRoberta", ROBERTA),
    "camembert": ("Camembert", ROBERTA),
    "electra": ("Electra", {**SIZES, "embedding_size": 64}),
    "electra-small": ("Electra", {**SIZES, "embedding_size": 32}),
    "albert": ("Albert", {**SIZES, "embedding_size": 32, "num_hidden_groups": 2}),
}
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")  # of a folder, that are kept
QUESTIONS = ("Who wrote the first program?", "Où habite-t-elle ?", "where did the ship sail from")
OPTIONS = (
    {"top_k": 3},
    {"top_k": 2, "align_to_words": False, "handle_impossible_answer": True},
    {"top_k": 3, "max_seq_len": 64, "doc_stride": 16, "handle_impossible_answer": True},
)


def run(model: Any, inputs: Any) -> dict[str, np.ndarray]:
    """Tokens, stages and logits of one window."""
    embedded: list[torch.Tensor] = []
    embeddings = getattr(model, model.base_model_prefix).embeddings
    hook = embeddings.register_forward_hook(lambda module, args, out: embedded.append(out))
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    hook.remove()
    stages = {"embeddings": stored(embedded[0][0])}
    if not torch.equal(first := out.hidden_states[0], embedded[0]):
        stages["projection"] = stored(first[0])
    for i, hidden in enumerate(out.hidden_states[1:]):
        stages[f"layer.{i}"] = stored(hidden[0])
    stages["start_logits"] = out.start_logits[0].numpy()
    stages["end_logits"] = out.end_logits[0].numpy()
    stages["input_ids"] = inputs["input_ids"][0].numpy().astype(np.int32)
    return stages


def answers(model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """What the pipeline answers."""
    pipe = transformers.pipeline("question-answering", model=model, tokenizer=tokenizer)
    found = []
    for question in QUESTIONS:
        for text in (TEXT, " Ada  wrote\n it. "):
            for options in OPTIONS:
                results = pipe(question=question, context=text, **options)
                case = {"question": question, "context": text, "options": options}
                found.append(case | {"results": [each for each in results if each["score"] > 0]})
    return found


def golden(name: str, seed: int) -> None:
    """Make a model, run it, and save what came out."""
    kind, numbers = FAMILIES[name]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tokenizer = make_tokenizer(folder, kind)
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=len(tokenizer), max_position_embeddings=LONGEST + 4,
            pad_token_id=tokenizer.pad_token_id, attn_implementation="eager", **numbers,
        )  # fmt: skip
        model = getattr(transformers, f"{kind}ForQuestionAnswering")(config).eval()
        config.save_pretrained(folder)
        tensors = random_tensors(BertConfig.from_json(folder / "config.json"), seed)
        state = {key: torch.from_numpy(value) for key, value in tensors.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        if unexpected or any("position_ids" not in key for key in missing):
            raise SystemExit(f"{name}: names differ: {missing} {unexpected}")
        stages = {
            f"{number}/{stage}": array
            for number, question in enumerate(QUESTIONS)
            for stage, array in run(
                model, tokenizer(question, TEXT[:60], return_tensors="pt")
            ).items()
        }
        versions = {each.__name__: each.__version__ for each in (transformers, torch, np)}
        facts = {
            "seed": seed,
            "windows": [[question, TEXT[:60]] for question in QUESTIONS],
            "answers": answers(model, tokenizer),
            "made_with": versions,
        }
        target = GOLDENS / "families" / name
        target.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            shutil.copyfile(folder / file, target / file)
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
    save_file(stages, target / "golden.safetensors", metadata)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{name}: {size / 1e3:.0f} kB")


def main() -> None:
    """Write the goldens that the command line names, or all."""
    wanted = set(sys.argv[1:]) or FAMILIES.keys()
    if unknown := wanted - FAMILIES.keys():
        raise SystemExit(f"no such golden: {', '.join(sorted(unknown))}")
    if not transformers.__version__.startswith("4.57."):
        raise SystemExit(f"needs transformers 4.57.6, found {transformers.__version__}")
    torch.set_num_threads(1)
    for seed, name in enumerate(FAMILIES, 201):
        if name in wanted:
            golden(name, seed)


if __name__ == "__main__":
    main()
