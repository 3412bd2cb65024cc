"""Find a model's files: the embedded one, a folder, a weights file, or a name on the Hub.

Out: a `ModelFiles`, local paths only.  The Hub is reached through huggingface_hub, which the
tokenizers package brings along; it keeps its cache and obeys its settings (HF_HUB_OFFLINE, HF_HOME,
HF_TOKEN).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from minibert.errors import InputError, ModelNotFoundError

EMBEDDED = Path(__file__).parents[1] / "models" / "minilm-l6-squad2"

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLE = "pytorch_model.bin"  # what checkpoints were before safetensors

# organisation/name or name, of the characters that the Hub allows.
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies."""

    folder: Path  # config.json and the tokenizer's files
    weights: Path  # a .safetensors file, or the index of a sharded one

    def parts(self) -> list[Path]:
        """The files that hold the weights: one, or all shards."""
        if not self.weights.name.endswith(".index.json"):
            return [self.weights]
        index = json.loads(self.weights.read_text(encoding="utf-8"))
        return [self.weights.parent / name for name in sorted(set(index["weight_map"].values()))]

    @property
    def size(self) -> int:
        """Of the weights, in bytes."""
        return sum(path.stat().st_size for path in self.parts())

    def digest(self) -> str:
        """SHA-256 of the files that a model's answers depend on."""
        names = ("config.json", "tokenizer.json", "vocab.txt", "tokenizer_config.json")
        files = [self.folder / name for name in names] + self.parts()
        total = hashlib.sha256()
        for path in files:
            if path.is_file():
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        total.update(block)
            total.update(b"\0")  # so that no two lists of files look alike
        return total.hexdigest()


def find_model(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    accept_pickles: bool = False,
) -> ModelFiles:
    """Find a model.

    Args:
        model: None or "embedded" for the embedded one; a folder; a .safetensors file (config.json
            and the tokenizer lie beside it); or a name on the Hugging Face Hub.
        revision: branch, tag or commit on the Hub.
        token: for private models on the Hub; True for the one that is logged in.
        cache_dir: where the Hub's files are kept.
        accept_pickles: take a pytorch_model.bin too, which only `convert` can read.

    Raises:
        ModelNotFoundError: nothing is there, or the Hub cannot be reached.
        InputError: `model` is no path and no name.
    """
    if not isinstance(model, str | os.PathLike | None):
        raise InputError(
            f"a model is a folder, a file or a name, got {type(model).__name__}: {model!r:.80}"
        )
    if model is not None and not str(model):
        raise ModelNotFoundError("the model's name is empty; leave it out for the embedded model")
    names = (*WEIGHTS, PICKLE) if accept_pickles else WEIGHTS
    if model is None:
        return _in_folder(EMBEDDED, names)
    if model == "embedded" and not os.path.exists(model):
        return _in_folder(EMBEDDED, names)
    path = Path(os.path.expanduser(model))  # Path.expanduser fails where there is no such user
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name longer than the system allows
        return _in_folder(path, names)
    if os.path.isfile(path):
        if path.name.endswith((".safetensors", ".safetensors.index.json")) or accept_pickles:
            return ModelFiles(path.parent, path)
        raise ModelNotFoundError(
            f"{path}: is not a safetensors file. A model is a folder, a .safetensors file or a "
            "name on the Hub; `minibert convert` makes safetensors of an old pytorch_model.bin."
        )
    name = str(model)
    if not HUB_NAME.fullmatch(name) or name.startswith("."):
        raise ModelNotFoundError(f"{name}: there is no such folder or file")
    return _on_hub(name, names, revision=revision, token=token, cache_dir=cache_dir)


def _in_folder(folder: Path, names: tuple[str, ...]) -> ModelFiles:
    """The weights in a folder: the first of `names`, or else the only .safetensors file."""
    for name in names:
        if (folder / name).is_file():
            return ModelFiles(folder, folder / name)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(others) == 1:
        return ModelFiles(folder, folder / others[0])
    if (folder / PICKLE).is_file():
        hint = f", only {PICKLE}. Run `minibert convert {folder} NEW_FOLDER` and use NEW_FOLDER."
    elif others:
        hint = f"; name one of {', '.join(others)}"
    else:
        hint = ". A model's folder holds it, config.json and tokenizer.json or vocab.txt."
    raise ModelNotFoundError(f"{folder}: holds no model.safetensors{hint}")


def _on_hub(
    name: str,
    weights: tuple[str, ...],
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
) -> ModelFiles:
    """Fetch config, tokenizer and weights of a model on the Hub, or find them in its cache."""
    # Imported here: it takes longer than everything else, and most runs do not need it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(file: str) -> Path | None:
        """The local copy of a file; None if the model has none, or it cannot be had offline."""
        try:
            return Path(
                hf_hub_download(name, file, revision=revision, token=token, cache_dir=cache_dir)
            )
        except EntryNotFoundError:  # LocalEntryNotFoundError, what being offline gives, is one too
            if file == "config.json":
                raise
            return None

    at = f"{name}, revision {revision}" if revision else name
    try:
        folder = fetch("config.json").parent  # type: ignore[union-attr]
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            fetch(file)
        for file in weights:
            if (path := fetch(file)) is None:
                continue
            if file.endswith(".index.json"):
                index = json.loads(path.read_text(encoding="utf-8"))
                for shard in sorted(set(index["weight_map"].values())):
                    fetch(shard)
            return ModelFiles(folder, path)
        has_pickle = fetch(PICKLE) is not None
    except LocalEntryNotFoundError:
        raise ModelNotFoundError(
            f"{at}: is not a folder here, is not in the Hub's cache, and the Hub cannot be reached "
            "(no connection, or HF_HUB_OFFLINE is set). Check the name, or go online once."
        ) from None
    except EntryNotFoundError:
        raise ModelNotFoundError(f"{at}: this model on the Hub has no config.json") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        # What huggingface_hub raises (no such model, no such revision, not allowed) is an OSError
        # or a ValueError; the others come from a damaged index.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelNotFoundError(f"{at}: the Hub does not give this model: {reason}") from None
    hint = f", only {PICKLE}. Run `minibert convert {name} NEW_FOLDER` and use NEW_FOLDER."
    raise ModelNotFoundError(
        f"{at}: this model on the Hub has no model.safetensors{hint if has_pickle else ''}"
    )
