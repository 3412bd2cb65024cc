"""The libraries that are measured: how each loads a model folder, and which files it needs built.

Every loader pins the number of threads and asks for the lowest latency.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from benchmark.processes import BenchError
from benchmark.train_side import MinibertTrainer, TorchTrainer
from benchmark.workload import Padded, make_inputs, pad

if TYPE_CHECKING:
    from benchmark.results import Results

# What a loader gives: minibert's Model, or what turns a padded batch into start and end logits
# [B, S], or into both, [2, B, S].
Run: TypeAlias = "Callable[[Padded], Any]"

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
DTYPES = ("float32", "bfloat16", "int8")
GPU_DTYPES = ("float32", "float16", "bfloat16")
TRAIN_DTYPES = ("float32", "bfloat16")
OURS = "minibert"
BEFORE = "before"  # another minibert, of --against
CUDA, COMPILED, PADDED = "cuda-minibert", "cuda-compile", "cuda-torch"
TRAIN, TRAIN_TORCH, TRAIN_COMPILED = "train-minibert", "train-torch", "train-compile"


@dataclass(frozen=True)
class Peer:
    """One library in one precision; minibert is one of them."""

    library: str  # as --peers takes it
    dtype: str  # the precision it competes in
    label: str
    load: Callable[[Path, str, int], Any]  # of its file, in a dtype, with so many threads
    needs: tuple[str, ...]  # modules
    file: str  # inside the model's folder; "" for the folder itself

    @property
    def packed(self) -> bool:
        """Whether it is minibert, which lays out its own batches and pads nothing."""
        return self.library in (OURS, BEFORE, CUDA)

    @property
    def ours(self) -> bool:
        """Whether it is what all others are compared with."""
        return self.library in (OURS, CUDA, TRAIN)


def missing_modules(names: tuple[str, ...]) -> list[str]:
    """Those modules that cannot be imported here."""
    return [name for name in names if importlib.util.find_spec(name) is None]


# ---------------------------------------------------------------- loading


def load_minibert(folder: Path, dtype: str, threads: int) -> Any:
    """Ours, of this version or of another: only what every version has is used."""
    from minibert import load_model

    return load_model(folder, device="cpu", dtype=dtype, num_threads=threads)


def load_cuda(folder: Path, dtype: str, threads: int) -> Any:
    """Ours, on the GPU."""
    from minibert import load_model

    return load_model(folder, device="cuda", dtype=dtype)


def load_openvino(file: Path, dtype: str, threads: int) -> Run:
    """OpenVINO: float32, bfloat16, or int8 with bfloat16 for what is not quantised."""
    import openvino as ov

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32" if dtype == "float32" else "bf16",
    }
    model = ov.Core().compile_model(file, "CPU", options)
    request = model.create_infer_request()

    names = INPUTS[: len(model.inputs)]

    def run(batch: Padded) -> Any:
        outputs = request.infer(dict(zip(names, batch, strict=False)), share_inputs=True)
        return outputs[0].copy(), outputs[1].copy()

    return run


def load_onnxruntime(file: Path, dtype: str, threads: int) -> Run:
    """ONNX Runtime: the exported graph, which it optimises itself, or with int8 matrices."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    names = INPUTS[: len(session.get_inputs())]

    def run(batch: Padded) -> Any:
        start, end = session.run(None, dict(zip(names, batch, strict=False)))
        return start, end

    return run


def load_ctranslate2(folder: Path, dtype: str, threads: int) -> Run:
    """CTranslate2: its encoder; it has no question-answering head, so NumPy multiplies that."""
    import ctranslate2
    from safetensors.numpy import load_file

    encoder = ctranslate2.Encoder(
        str(folder), device="cpu", compute_type=dtype, intra_threads=threads, inter_threads=1
    )
    weights = load_file(folder.parent / "model.safetensors")
    weight, bias = (weights[f"qa_outputs.{name}"].astype(np.float32) for name in ("weight", "bias"))

    def run(batch: Padded) -> Any:
        ids, mask, types = (array.astype(np.int32) for array in batch)
        view = ctranslate2.StorageView.from_array
        outputs = encoder.forward_batch(
            view(ids), view(mask.sum(1, dtype=np.int32)), types.tolist()
        )
        logits = np.array(outputs.last_hidden_state) @ weight.T + bias  # [B, S, 2]
        return logits[..., 0], logits[..., 1]

    return run


def load_torch(folder: Path, dtype: str, threads: int) -> Run:
    """The model of transformers, attention by torch's fused kernel; bfloat16 by autocast."""
    import torch

    torch.set_num_threads(threads)
    model = torch_model(folder, "sdpa")
    names = input_names(model)

    def run(batch: Padded) -> Any:
        inputs = dict(zip(names, map(torch.from_numpy, batch), strict=False))
        half = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
        with torch.inference_mode(), half:
            outputs = model(**inputs)
        return outputs.start_logits.float().numpy(), outputs.end_logits.float().numpy()

    return run


def torch_model(folder: Path, attention: str) -> Any:
    """The folder's model in float32, as transformers loads it."""
    from transformers import AutoModelForQuestionAnswering
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    model = AutoModelForQuestionAnswering.from_pretrained(
        folder, attn_implementation=attention, dtype="float32"
    )
    return model.eval()


def input_names(model: Any) -> tuple[str, ...]:
    """Those of `INPUTS` that a model of transformers takes: no token types where it knows one."""
    return INPUTS if getattr(model.config, "type_vocab_size", 1) > 1 else INPUTS[:-1]


def load_compiled(folder: Path, dtype: str, threads: int) -> Run:
    """The same on the GPU, compiled, with CUDA graphs; for windows one by one, without a mask."""
    import torch

    model = gpu_model(folder, dtype)

    more = INPUTS[-1] in input_names(model)

    def forward(ids: Any, mask: Any, types: Any) -> Any:
        return both_logits(model(input_ids=ids, **({INPUTS[-1]: types} if more else {})))

    return gpu_run(torch.compile(forward, mode="reduce-overhead", dynamic=False))


def load_padded(folder: Path, dtype: str, threads: int) -> Run:
    """The same on the GPU, for padded batches; the processor goes on while the GPU works."""
    model = gpu_model(folder, dtype)

    names = input_names(model)

    def forward(*batch: Any) -> Any:
        return both_logits(model(**dict(zip(names, batch, strict=False))))

    return gpu_run(forward)


def both_logits(outputs: Any) -> Any:
    """Start and end logits [2, B, S] of a model of transformers."""
    import torch

    return torch.stack((outputs.start_logits, outputs.end_logits)).float()


def gpu_run(forward: Callable[[Any, Any, Any], Any]) -> Run:
    """What brings a batch to the GPU and runs it; the logits stay there."""
    import torch

    def run(batch: Padded) -> Any:
        with torch.no_grad():
            return forward(*torch.from_numpy(np.stack(batch)).to("cuda", non_blocking=True))

    return run


def gpu_model(folder: Path, dtype: str) -> Any:
    """The folder's model on the GPU; float32 is float32, without TF32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch_model(folder, "sdpa").to("cuda", getattr(torch, dtype))


TORCH = ("torch", "transformers")
CPU_FILES, GPU_FILES = dict.fromkeys(DTYPES, ""), dict.fromkeys(GPU_DTYPES, "")
TRAIN_FILES = dict.fromkeys(TRAIN_DTYPES, "")
OPENVINO_FILES = {
    "float32": "openvino.xml",
    "bfloat16": "openvino.xml",
    "int8": "openvino-int8.xml",
}
ONNX_FILES = {"float32": "model.onnx", "int8": "int8.onnx"}
CTRANSLATE2_FILES = {"float32": "ctranslate2-float32", "int8": "ctranslate2-int8"}
LIBRARIES: dict[str, tuple[str, Callable[[Path, str, int], Any], tuple[str, ...], dict[str, str]]]
LIBRARIES = {  # label, loader, modules, file of each precision
    OURS: ("minibert", load_minibert, ("minibert",), CPU_FILES),
    BEFORE: ("before", load_minibert, (), CPU_FILES),
    "openvino": ("OpenVINO", load_openvino, ("openvino",), OPENVINO_FILES),
    "onnxruntime": ("ONNX Runtime", load_onnxruntime, ("onnxruntime",), ONNX_FILES),
    "ctranslate2": ("CTranslate2", load_ctranslate2, ("ctranslate2",), CTRANSLATE2_FILES),
    "torch": ("torch", load_torch, TORCH, TRAIN_FILES),
    CUDA: ("minibert", load_cuda, ("minibert",), GPU_FILES),
    COMPILED: ("torch.compile", load_compiled, TORCH, GPU_FILES),
    PADDED: ("torch", load_padded, TORCH, GPU_FILES),
    TRAIN: ("minibert", MinibertTrainer, ("minibert",), TRAIN_FILES),
    TRAIN_TORCH: ("torch", TorchTrainer, TORCH, TRAIN_FILES),
    TRAIN_COMPILED: ("torch.compile", partial(TorchTrainer, compiled=True), TORCH, TRAIN_FILES),
}
RUNTIMES = ("openvino", "onnxruntime", "ctranslate2", "torch")  # beside minibert on a processor
PEERS = tuple(
    Peer(library, dtype, f"{label} {dtype}", load, needs, file)
    for library, (label, load, needs, files) in LIBRARIES.items()
    for dtype, file in files.items()
)


def choose_peers(libraries: Sequence[str], dtypes: Sequence[str], results: Results) -> list[Peer]:
    """The libraries that are asked for and installed; a note for each that is not.

    Raises:
        BenchError: minibert itself is not installed.
    """
    chosen = []
    for library in libraries:
        label, _, needs, _ = LIBRARIES[library]
        if missing := missing_modules(needs):
            if "minibert" in missing:
                raise BenchError(f"{sys.executable} has no minibert: pip install it first")
            results.note(f"{label} is left out: no {' and no '.join(missing)} here.")
            continue
        chosen += [peer for peer in PEERS if peer.library == library and peer.dtype in dtypes]
    return chosen


def peer_of(library: str, dtype: str) -> Peer:
    """One of `PEERS`."""
    return next(peer for peer in PEERS if (peer.library, peer.dtype) == (library, dtype))


# ---------------------------------------------------------------- building


def make_onnx(folder: Path) -> None:
    """Export the folder's model; attention written out, which both runtimes fuse best."""
    import torch

    model = torch_model(folder, "eager")
    model.config.return_dict = False  # plain tensors
    names, outputs = input_names(model), ("start_logits", "end_logits")
    example = pad(make_inputs("mixed2"))[: len(names)]
    torch.onnx.export(
        model,
        tuple(map(torch.from_numpy, example)),
        folder / "model.onnx",
        input_names=names,
        output_names=outputs,
        dynamic_axes={name: {0: "B", 1: "S"} for name in (*names, *outputs)},
        opset_version=17,
        dynamo=False,
    )


def make_onnx_int8(folder: Path) -> None:
    """Quantise the matrices once, and their inputs whenever they are multiplied."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it advises a preprocessing that changes nothing here
    quantize_dynamic(folder / "model.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)


def make_openvino(folder: Path) -> None:
    """Turn the exported graph into OpenVINO's own, which loads faster."""
    import openvino as ov

    model = ov.Core().read_model(folder / "model.onnx")
    ov.save_model(model, folder / "openvino.xml", compress_to_fp16=False)


def make_openvino_int8(folder: Path) -> None:
    """Quantise with its tool for transformers: scales of the inputs come from a few windows."""
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    batches = [pad([window]) for window in make_inputs("mixed4")]
    model = ov.Core().read_model(folder / "openvino.xml")
    names = INPUTS[: len(model.inputs)]
    model = nncf.quantize(
        model,
        nncf.Dataset([dict(zip(names, batch, strict=False)) for batch in batches]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
    )
    ov.save_model(model, folder / "openvino-int8.xml", compress_to_fp16=False)


def make_ctranslate2(folder: Path, dtype: str) -> None:
    """Convert the encoder alone.

    Raises:
        BenchError: it is no BERT's, which is what the loader runs.
    """
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    if kind != "bert":
        raise BenchError(f"only BERTs are converted here, and this is {kind!r}")
    from ctranslate2.converters import TransformersConverter
    from transformers import BertModel

    with tempfile.TemporaryDirectory() as name:
        encoder = Path(name)
        BertModel.from_pretrained(folder, dtype="float32").save_pretrained(encoder)
        for vocabulary in ("vocab.txt", "tokenizer.json"):
            if (folder / vocabulary).exists():
                shutil.copy(folder / vocabulary, encoder)
        config = json.loads((encoder / "config.json").read_text(encoding="utf-8"))
        config["position_embedding_type"] = "absolute"  # which transformers 5 no longer writes
        (encoder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        tokenizer = {"tokenizer_class": "BertTokenizer", "model_max_length": 512}
        (encoder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        converter = TransformersConverter(name)
        converter.convert(str(folder / CTRANSLATE2_FILES[dtype]), quantization=dtype)


# What makes each file, the modules for it, and the file that it is made of, which stands before it.
BUILT: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "model.onnx": (make_onnx, (*TORCH, "onnx"), ""),
    "int8.onnx": (make_onnx_int8, ("onnxruntime", "onnx"), "model.onnx"),
    "openvino.xml": (make_openvino, ("openvino",), "model.onnx"),
    "openvino-int8.xml": (make_openvino_int8, ("openvino", "nncf"), "openvino.xml"),
    **{
        file: (partial(make_ctranslate2, dtype=dtype), ("ctranslate2", *TORCH), "")
        for dtype, file in CTRANSLATE2_FILES.items()
    },
}


def files_for(peers: Sequence[Peer]) -> list[str]:
    """The files that peers read, and those that these are made of, in the order of making.

    Example:
        >>> files_for([peer_of("onnxruntime", "int8"), peer_of("torch", "float32")])
        ['model.onnx', 'int8.onnx']
    """
    wanted = {peer.file for peer in peers}
    for name in reversed(BUILT):
        if name in wanted:
            wanted.add(BUILT[name][2])
    return [name for name in BUILT if name in wanted]


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def build(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Make the files that peers need of a model and that are not there yet.

    Args:
        folder: the model's.
        names: of those files, in the order of making.

    Returns:
        Which files could not be made: name -> why.
    """
    warnings.filterwarnings("ignore")
    failed = {}
    for name in names:
        if (folder / name).exists():
            continue
        make, needs, _ = BUILT[name]
        if missing := missing_modules(needs):
            failed[name] = f"no {' and no '.join(missing)} here"
            continue
        try:
            make(folder)
        except Exception as error:  # peers fail in their own ways
            remove(folder / name)  # half a file
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return failed
