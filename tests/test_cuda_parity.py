"""On CUDA, logits and answers stay as close to transformers' as each dtype allows.

test_parity.py compares float32 with the same goldens, stage by stage; here are the whole pass in
every dtype and the answers to real questions.  Without a GPU, the goldens of the small models run
in the emulator.
"""

import json
from itertools import pairwise

import numpy as np
import pytest
from builders import batch_of, random_weights
from emulated_gpu import EmulatedGpu, build
from random_models import random_batch
from safetensors import safe_open
from squad_files import SQUAD
from test_parity import GOLDENS

from minibert import QuestionAnswerer, load_model
from minibert.config import BertConfig
from minibert.encoder import qa_logits
from minibert.kernels.backend import get_backend, table
from minibert.kernels.cuda.functions import Kernels
from minibert.kernels.cuda.language import DTYPES
from minibert.squad.evaluation import spread
from minibert.squad.files import read_squad

# Largest difference from the goldens' logits, which reach 2 to 9.  Measured on all goldens, with
# NumPy rounding wherever the kernels round: float16 0.0037 to 0.0089, bfloat16 0.031 to 0.068.
LIMITS = {"float32": 2e-5, "float16": 0.02, "bfloat16": 0.15}

DEV = SQUAD / "dev-v2.0.json.xz"


def differences(path, kernels, folder):
    """The largest difference from a golden's logits."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        theirs = {key: file.get_tensor(key) for key in file.keys() if "logits" in key}  # noqa: SIM118
    config = BertConfig(**json.loads(metadata["config"]))
    seed, lengths = int(metadata["seed"]), json.loads(metadata["lengths"])
    weights = kernels.prepare(random_weights(config, seed, folder))
    batch = batch_of(random_batch(config, lengths, seed))
    start, end = qa_logits(batch, weights, config, kernels)
    off = []
    for number, (a, b) in enumerate(pairwise(batch.cu_seqlens)):
        off.append(np.abs(start[a:b] - theirs[f"{number}/start_logits"]).max())
        off.append(np.abs(end[a:b] - theirs[f"{number}/end_logits"]).max())
    return max(off)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gelu_pytorch_tanh", "float32"),
        ("relu", "float32"),
        ("gelu_new", "float16"),
        ("silu", "bfloat16"),
    ],
)
@pytest.mark.slow
def test_small_goldens_in_the_emulator(name, dtype, tmp_path):
    path = next(path for path in GOLDENS if path.stem == name)
    kernels = table("cuda", dtype, Kernels(EmulatedGpu(races=False).device(), dtype, build))
    assert differences(path, kernels, tmp_path) <= LIMITS[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_all_goldens_on_a_gpu(path, dtype, tmp_path):
    assert differences(path, get_backend("cuda", dtype), tmp_path) <= LIMITS[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not DEV.exists(), reason=f"{DEV} is not there")
@pytest.mark.parametrize("dtype", DTYPES)
def test_answers_to_real_questions_are_those_of_the_processor(dtype):
    """The same text for at least 99.5 % of 500 questions.

    With NumPy rounding wherever the kernels round, all 500 were the same in both 16-bit dtypes.
    """
    questions = [(each.question, each.context) for each in spread(read_squad(DEV).questions, 500)]
    theirs = QuestionAnswerer(load_model(device="cpu")).answer_many(questions)
    ours = QuestionAnswerer(load_model(device="cuda", dtype=dtype)).answer_many(questions)
    same = sum(a.text == b.text for a, b in zip(ours, theirs, strict=True))
    assert same >= 498
