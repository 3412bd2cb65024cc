"""What lies in a folder that holds no weights that can be read, and the way on from there."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# How a model of another framework becomes one of these weights.
RESAVE = (
    "Save it anew, where {needs} and transformers 4 are installed: "
    'AutoModelForQuestionAnswering.from_pretrained("{folder}", {option}=True)'
    '.save_pretrained("NEW_FOLDER")'
)
ORIGINAL = "Take the model that it was made from."


@dataclass(frozen=True)
class Kind:
    """A kind of folder: files by which it is known, what they are, and the way on."""

    files: tuple[str, ...]  # names or patterns, all of which are there
    what: str
    way: str = ORIGINAL


# The telling ones first: some folders are of several kinds.
KINDS = (
    Kind(
        ("adapter_config.json",),
        "an adapter (PEFT), which is a change to the weights of another model",
        "Merge it into that model, where torch and peft are installed: "
        'AutoPeftModelForQuestionAnswering.from_pretrained("{folder}").merge_and_unload()'
        '.save_pretrained("NEW_FOLDER")',
    ),
    Kind(
        ("language_model.bin", "prediction_head_0.bin"),
        "a model of FARM",
        "Save it anew, where farm-haystack 1 is installed: "
        'AdaptiveModel.load("{folder}", "cpu").convert_to_transformers()[0]'
        '.save_pretrained("NEW_FOLDER")',
    ),
    Kind(
        ("tf_model.h5",),
        "weights of TensorFlow",
        RESAVE.replace("{needs}", "TensorFlow, torch").replace("{option}", "from_tf"),
    ),
    Kind(
        ("flax_model.msgpack",),
        "weights of Flax",
        RESAVE.replace("{needs}", "Flax, torch").replace("{option}", "from_flax"),
    ),
    Kind(("saved_model.pb",), "a graph of TensorFlow, in which weights have no names"),
    Kind(("rust_model.ot",), "weights of rust-bert"),
    Kind(("*.onnx",), "an ONNX graph, in which weights have no names"),
    Kind(("onnx/*.onnx",), "an ONNX graph, in which weights have no names"),
    Kind(("openvino_model.xml",), "an OpenVINO graph, in which weights have no names"),
    Kind(("*.gguf",), "weights of llama.cpp, which has no question-answering head"),
    Kind(("*.mlmodel",), "a model of Core ML, in which weights have no names"),
    Kind(("*.tflite",), "a model of TensorFlow Lite, in which weights have no names"),
    Kind(
        ("model-?????-of-?????.safetensors",),
        "parts of a model without their index",
        "Put its model.safetensors.index.json beside them.",
    ),
    Kind(
        ("pytorch_model-?????-of-?????.bin",),
        "parts of a model without their index",
        "Put its pytorch_model.bin.index.json beside them.",
    ),
    Kind(
        ("checkpoint-*",),
        "the checkpoints of a training run",
        "Name one of them.",
    ),
    Kind(
        ("*.ckpt.data-?????-of-?????",),
        "weights of TensorFlow without their index",
        "Put the file beside them whose name ends in .index.",
    ),
    Kind(
        ("modules.json",),
        "a model of sentence-transformers, which has no question-answering head",
        "Take a model that was fine-tuned on SQuAD or a similar data set.",
    ),
    Kind(
        ("training_args.bin",),
        "what a training run leaves beside its weights",
        "Take the folder into which the run saved its model.",
    ),
    Kind(
        ("optimizer.pt",),
        "what a training run leaves beside its weights",
        "Take the folder into which the run saved its model.",
    ),
)

# Files of torch.save, and of safetensors, that hold no model's weights.
NO_WEIGHTS = (
    *("training_args.bin", "optimizer.*", "scheduler.*", "scaler.pt", "rng_state*"),
    *("language_model.bin", "prediction_head_*.bin", "openvino_model.bin", "adapter_model.*"),
    *("random_states*", "*-?????-of-?????.*"),
)


def other_kind(names: Iterable[str], folder: str) -> str:
    """What lies in a folder of another kind, and the way on, in two sentences; '' if unknown.

    Args:
        names: of its files and folders.
        folder: how the user calls it.

    Example:
        >>> other_kind(["config.json", "rust_model.ot"], "x")
        'It holds weights of rust-bert (rust_model.ot). Take the model that it was made from.'
    """
    names = sorted(names)
    return _sentences(folder, lambda file: fnmatch.filter(names, file))


def kind_on_hub(has: Callable[[str], bool], name: str) -> str:
    """The same of a model on the Hub, which is asked for the files by which kinds are known.

    Args:
        has: whether the model has a file of a name.
        name: the model's.
    """
    return _sentences(name, lambda file: [file] if not set("*?") & set(file) and has(file) else [])


def _sentences(folder: str, find: Callable[[str], list[str]]) -> str:
    for kind in KINDS:
        found = [find(file) for file in kind.files]
        if all(found):
            files = ", ".join(names[0] for names in found)
            # Not str.format: a folder's name may have braces.
            return f"It holds {kind.what} ({files}). {kind.way.replace('{folder}', folder)}"
    return ""
