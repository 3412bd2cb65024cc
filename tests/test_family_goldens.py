"""What transformers 4.57.6 computes and answers, minibert does for every family beside BERT.

The folders in tests/goldens/families come from tools/make_family_goldens.py: tokens, every stage,
logits, and what the pipeline answers.  The first stage that differs is the one with the mistake.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulated_gpu import EmulatedGpu, build
from random_models import random_tensors
from safetensors import safe_open
from safetensors.numpy import save_file

from minibert.checkpoints.safetensors import open_checkpoint
from minibert.config import BertConfig
from minibert.families import FAMILIES
from minibert.kernels.backend import table
from minibert.kernels.cuda.functions import Kernels
from minibert.model import load_model
from minibert.pipelines import pipeline
from minibert.trace import Trace
from minibert.weights import load_weights

GOLDENS = sorted((Path(__file__).parent / "goldens" / "families").iterdir())

# Largest absolute difference allowed, float32 against float32.
LIMITS = {"embeddings": 5e-6, "projection": 1e-5, "layer": 1e-5, "logits": 2e-5}


@pytest.fixture(scope="module", params=GOLDENS, ids=lambda path: path.name)
def golden(request, tmp_path_factory):
    """(stages of each window, what the golden says, the model's folder) of one golden."""
    with safe_open(request.param / "golden.safetensors", framework="numpy") as file:
        facts = {key: json.loads(value) for key, value in file.metadata().items()}
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    folder = tmp_path_factory.mktemp(request.param.name) / "model"
    shutil.copytree(request.param, folder)
    (folder / "golden.safetensors").unlink()
    config = BertConfig.from_json(folder / "config.json")
    save_file(random_tensors(config, facts["seed"]), folder / "model.safetensors")
    stages = [
        {key.split("/")[1]: x for key, x in arrays.items() if key.startswith(f"{number}/")}
        for number in range(len(facts["windows"]))
    ]
    return stages, facts, folder


def model_on(kernels, folder):
    """The model in a folder, with these kernels."""
    model = load_model(folder, device="reference")
    weights = load_weights(open_checkpoint(folder / "model.safetensors"), model.config)
    return replace(model, kernels=kernels, weights=kernels.prepare(weights))


def differences(model, golden, kind):
    """The largest difference of each stage of a kind, by window and stage."""
    stages, facts, _ = golden
    off = {}
    for number, (theirs, (question, text)) in enumerate(zip(stages, facts["windows"], strict=True)):
        (window,) = model.windows(question, [text])
        assert window.input_ids.tolist() == theirs["input_ids"].tolist()
        trace = Trace()
        ((start, end),) = model.logits([window], trace)
        ((fast_start, fast_end),) = model.logits([window])  # "cpu": all steps in one call
        ours = {key: x[::16, :: x.shape[1] // 16] for key, x in trace.items() if key in theirs}
        ours |= {"start_logits": start, "end_logits": end}
        for stage, array in theirs.items():
            if kind in stage:
                assert ours[stage].shape == array.shape, stage
                off[f"{number}/{stage}"] = np.abs(ours[stage] - array).max()
        if kind == "logits":
            off[f"{number}/untraced"] = max(
                np.abs(fast_start - theirs["start_logits"]).max(),
                np.abs(fast_end - theirs["end_logits"]).max(),
            )
    return off


@pytest.mark.parametrize("kind", LIMITS)
def test_every_stage_is_within_its_limit(golden, backend, kind):
    model = model_on(backend, golden[2])
    off = differences(model, golden, kind)
    assert bool(off) == (kind != "projection" or model.config.projects)
    wrong = {key: value for key, value in off.items() if value > LIMITS[kind]}
    assert not wrong


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_the_pipeline_gives_the_same_answers(golden, device):
    _, facts, folder = golden
    pipe = pipeline("question-answering", model=load_model(folder, device=device))
    assert facts["answers"]
    for case in facts["answers"]:
        got = pipe(question=case["question"], context=case["context"], **case["options"])
        want = case["results"]
        assert [(a["answer"], a["start"], a["end"]) for a in got] == [
            (a["answer"], a["start"], a["end"]) for a in want
        ], case
        for ours, theirs in zip(got, want, strict=True):
            assert abs(ours["score"] - theirs["score"]) <= 1e-5


@pytest.mark.slow
def test_the_whole_pass_on_an_emulated_gpu(golden):
    kernels = table("cuda", "float32", Kernels(EmulatedGpu(races=False).device(), "float32", build))
    stages, facts, folder = golden
    model = model_on(kernels, folder)
    question, text = facts["windows"][0]
    (window,) = model.windows(question, [text])
    for ours, name in zip(model.logits([window])[0], ("start_logits", "end_logits"), strict=True):
        assert np.abs(ours - stages[0][name]).max() <= LIMITS["logits"]


def test_every_family_has_a_golden():
    families = {BertConfig.from_json(path / "config.json").family for path in GOLDENS}
    assert families == FAMILIES.keys() - {"bert"}
