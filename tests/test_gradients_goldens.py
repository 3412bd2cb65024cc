"""minibert trains as torch does: losses, gradients, and ten steps of AdamW.

The numbers in tests/goldens/training come from tools/make_goldens.py, with transformers 5.2.0 and
torch in float64.  Large arrays are stored as 32 of their numbers, their norm and their largest.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from builders import batch_of, random_weights
from random_models import random_batch, random_spans, sampled
from safetensors import safe_open

from minibert.config import BertConfig
from minibert.kernels.training import AdamW
from minibert.training.flat import flatten, named_arrays, zeros_like
from minibert.training.loss import span_loss
from minibert.training.passes import backward, forward
from minibert.weights import expected_shapes

GOLDENS = sorted((Path(__file__).parent / "goldens" / "training").glob("*.safetensors"))
SMALL = ("gelu_new", "gelu_pytorch_tanh", "relu", "silu")

# Largest difference allowed: of an array, relative to its largest number; of losses and norms,
# relative to themselves.
LIMIT = 1e-4
# How far weights go in ten steps is a thousandth of their size, so it suffers from two roundings a
# step, which are allowed for.
ROUNDINGS = 2 * 10 * 2.0**-24


class Result(NamedTuple):
    """What ten steps gave: numbers by step, arrays by BERT's name."""

    losses: np.ndarray
    norms: np.ndarray
    gradient: dict
    before: dict
    change: dict


def in_order(flat, config):
    """BERT's name -> a copy of the array, in the order of a golden."""
    arrays = named_arrays(flat.weights)
    return {name: arrays[name].copy() for name in expected_shapes(config)}


def train(config, kernels, folder, seed, lengths, optimizer):
    """Ten steps of AdamW from random weights, as the tool takes them."""
    flat = flatten(random_weights(config, seed, folder, calm=True))
    before = in_order(flat, config)
    gradient, first, second = (zeros_like(flat) for _ in range(3))
    prepared = kernels.prepare(flat.weights)
    losses, norms, at_first = [], [], {}
    for step in range(optimizer["steps"]):
        batch = batch_of(random_batch(config, lengths, 1000 * seed + step))
        right = random_spans(lengths, 1000 * seed + step)
        gradient.array[:] = 0
        kept = forward(batch, prepared, config, kernels)
        loss, d_start, d_end = span_loss(
            kept.start_logits, kept.end_logits, batch.cu_seqlens, *right
        )
        backward(kept, d_start, d_end, prepared, gradient.weights, config, kernels)
        losses.append(loss / len(lengths))
        norms.append(kernels.sum_of_squares(gradient.array) ** 0.5 / len(lengths))
        at_first = at_first or in_order(gradient, config)
        scale = min(1, optimizer["max_grad_norm"] / (norms[-1] + 1e-6)) / len(lengths)
        ends = [part.begin for part in flat.parts[1:]] + [len(flat.array)]
        for part, end in zip(flat.parts, ends, strict=True):
            settings = AdamW(
                optimizer["learning_rate"],
                optimizer["beta1"],
                optimizer["beta2"],
                optimizer["eps"],
                optimizer["weight_decay"] if part.decays else 0.0,
                step + 1,
                scale,
            )
            of_all = (each.array[part.begin : end] for each in (flat, gradient, first, second))
            kernels.adamw(*of_all, settings)
        kernels.refresh(prepared, flat.weights)
    at_first = {name: array / len(lengths) for name, array in at_first.items()}
    change = {name: array - before[name] for name, array in in_order(flat, config).items()}
    return Result(np.array(losses), np.array(norms), at_first, before, change)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(path, marks=[] if path.stem in SMALL else [pytest.mark.slow], id=path.stem)
        for path in GOLDENS
    ],
)
def trained(request, trainer, tmp_path_factory):
    """(their arrays, our `Result`, whether arrays are whole) of one golden on one device."""
    with safe_open(request.param, framework="numpy") as file:
        facts = {key: json.loads(value) for key, value in file.metadata().items()}
        theirs = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config = BertConfig(**facts["config"])
    folder = tmp_path_factory.mktemp("golden")
    ours = train(config, trainer, folder, facts["seed"], facts["lengths"], facts["optimizer"])
    shutil.rmtree(folder)
    return theirs, ours, facts["whole"]


def zero_in_truth(names):
    """The arrays in whose gradient there is nothing but rounding.

    What is added to all logits, or to all scores of a query, is lost in the softmax.
    """
    last = [name for name in names if name.endswith("output.LayerNorm.bias")][-1]
    return {name for name in names if name.endswith(".key.bias")} | {last, "qa_outputs.bias"}


def compared(trained, kind):
    """(name, ours, theirs, their norm, their largest) of each array."""
    theirs, ours, whole = trained
    begin = 0
    for i, (name, array) in enumerate(getattr(ours, kind).items()):
        assert array.dtype == np.float32
        kept = array.reshape(-1) if whole else sampled(array)
        stored = theirs[kind][begin : begin + len(kept)]
        begin += len(kept)
        yield name, kept, stored, theirs[f"{kind} norms"][i], theirs[f"{kind} largest"][i]
    assert begin == len(theirs[kind])


def test_losses_of_ten_steps(trained):
    theirs, ours, _ = trained
    assert np.abs(ours.losses / theirs["losses"] - 1).max() <= LIMIT


def test_norms_of_the_gradient_in_ten_steps(trained):
    theirs, ours, _ = trained
    assert np.abs(ours.norms / theirs["norms"] - 1).max() <= LIMIT


def test_every_array_of_the_gradient(trained):
    _, ours, _ = trained
    for name, array, stored, norm, largest in compared(trained, "gradient"):
        if name in zero_in_truth(ours.gradient):
            assert largest <= 1e-12, name
            assert np.abs(ours.gradient[name]).max() <= LIMIT * ours.norms[0], name
            continue
        assert np.abs(array - stored).max() <= LIMIT * largest, name
        assert abs(np.linalg.norm(ours.gradient[name]) - norm) <= LIMIT * norm, name
        assert abs(np.abs(ours.gradient[name]).max() - largest) <= LIMIT * largest, name


def test_every_array_of_weights_after_ten_steps(trained):
    _, ours, _ = trained
    for name, array, stored, norm, largest in compared(trained, "change"):
        before = ours.before[name]
        off, width = np.abs(array - stored).max(), np.abs(before).max()
        assert off <= LIMIT * width, name
        if name not in zero_in_truth(ours.change):
            assert off <= LIMIT * largest + ROUNDINGS * width, name
            off = abs(np.linalg.norm(ours.change[name]) - norm)
            assert off <= LIMIT * norm + ROUNDINGS * np.linalg.norm(before), name


def test_every_shape_has_a_golden():
    assert {path.stem for path in GOLDENS} == {
        "tiny", "tiny-5", "mini", "mini-5", "small", "medium", "minilm",
        "gelu_new", "gelu_pytorch_tanh", "relu", "silu",
    }  # fmt: skip
