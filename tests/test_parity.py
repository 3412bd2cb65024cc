"""minibert computes what transformers computes, stage by stage.

The numbers in tests/goldens come from tools/make_goldens.py, with transformers 5.2.0.  The first
stage that differs is the one with the mistake.
"""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from builders import batch_of, random_weights
from random_models import random_batch
from safetensors import safe_open

from minibert.config import BertConfig
from minibert.encoder import qa_logits
from minibert.trace import Trace

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("*.safetensors"))
SMALL = ("tiny", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")

# Largest absolute difference allowed, float32 against float32.
LIMITS = {"embeddings": 5e-6, "layer": 1e-5, "logits": 2e-5}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(path, marks=[] if path.stem in SMALL else [pytest.mark.slow], id=path.stem)
        for path in GOLDENS
    ],
)
def compared(request, backend, tmp_path_factory):
    """(their stages, ours) of one golden file on one backend, by window and stage."""
    with safe_open(request.param, framework="numpy") as file:
        metadata = file.metadata()
        theirs = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config = BertConfig(**json.loads(metadata["config"]))
    seed, lengths = int(metadata["seed"]), json.loads(metadata["lengths"])
    folder = tmp_path_factory.mktemp("golden")
    weights = backend.prepare(random_weights(config, seed, folder))
    batch = batch_of(random_batch(config, lengths, seed))
    trace = Trace()
    start, end = qa_logits(batch, weights, config, backend, trace)
    ours = {}
    for number, (a, b) in enumerate(pairwise(batch.cu_seqlens)):
        for stage in ["embeddings"] + [f"layer.{i}" for i in range(config.num_hidden_layers)]:
            x = trace[stage][a:b]
            ours[f"{number}/{stage}"] = x[::16, :: x.shape[1] // 16]
        ours[f"{number}/start_logits"], ours[f"{number}/end_logits"] = start[a:b], end[a:b]
    start, end = qa_logits(batch, weights, config, backend)  # "cpu": all steps in one call
    for number, (a, b) in enumerate(pairwise(batch.cu_seqlens)):
        ours[f"untraced {number}/start_logits"] = start[a:b]
        ours[f"untraced {number}/end_logits"] = end[a:b]
    shutil.rmtree(folder)  # half a gigabyte for the largest
    return theirs, ours


def differences(compared, kind):
    theirs, ours = compared
    chosen = [key for key in theirs if kind in key]
    assert chosen
    for key in chosen:
        assert ours[key].dtype == np.float32, key
        assert ours[key].shape == theirs[key].shape, key
    return {key: np.abs(ours[key] - theirs[key]).max() for key in chosen}


@pytest.mark.parametrize("kind", LIMITS)
def test_every_stage_is_within_its_limit(compared, kind):
    off = differences(compared, kind)
    assert max(off.values()) <= LIMITS[kind], {k: v for k, v in off.items() if v > LIMITS[kind]}


def test_the_logits_are_as_close_without_a_trace(compared):
    theirs, ours = compared
    chosen = [key for key in theirs if key.endswith("_logits")]
    assert chosen
    for key in chosen:
        assert np.abs(ours[f"untraced {key}"] - theirs[key]).max() <= LIMITS["logits"], key


def test_the_best_start_and_end_are_the_same(compared):
    theirs, ours = compared
    for key in theirs:
        if "logits" in key:
            assert theirs[key].argmax() == ours[key].argmax(), key


def test_every_shape_has_a_golden():
    shapes = {
        "tiny", "tiny-5", "mini", "mini-5", "small", "medium", "minilm", "base",
        "gelu_new", "gelu_pytorch_tanh", "relu", "silu",
    }  # fmt: skip
    assert {path.stem for path in GOLDENS} == shapes
