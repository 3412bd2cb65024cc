"""minibert's gradients are those of torch, both running in this process.

Whole gradients of every shape this project starts from, with the loss that transformers' own model
computes; torch runs in float64.
"""

import shutil
from dataclasses import asdict

import numpy as np
import pytest
from builders import batch_of, random_weights
from random_models import SHAPES as ALL_SHAPES
from random_models import random_batch, random_tensors

from minibert.config import BertConfig
from minibert.training.flat import flatten, named_arrays, zeros_like
from minibert.training.loss import span_loss
from minibert.training.passes import backward, forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.2.0")
if transformers.__version__ != "5.2.0":
    pytest.skip("compares with transformers 5.2.0 only", allow_module_level=True)

pytestmark = pytest.mark.parity

LENGTHS = [129, 1, 64, 7]
STARTS, ENDS = [5, 0, 63, 2], [128, 0, 63, 4]
# Of each array, relative to its largest number.
LIMIT = 1e-4
SHAPES = {name: shape for name, shape in ALL_SHAPES.items() if name != "base"}


def their_gradient(config, windows):
    """The loss, summed over windows, and BERT's name -> the gradient, by torch in float64."""
    raw = asdict(config) | {"pad_token_id": None}  # with it, torch trains all rows but [PAD]'s
    theirs = transformers.BertConfig(**raw, attn_implementation="eager")
    model = transformers.BertForQuestionAnswering(theirs).eval()
    state = {name: torch.from_numpy(x) for name, x in random_tensors(config, 1, calm=True).items()}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    model, loss = model.double(), 0.0
    for (ids, types), start, end in zip(windows, STARTS, ENDS, strict=True):
        out = model(
            input_ids=torch.from_numpy(ids).long()[None],
            token_type_ids=torch.from_numpy(types).long()[None],
            start_positions=torch.tensor([start]),
            end_positions=torch.tensor([end]),
        )
        out.loss.backward()
        loss += out.loss.item()
    weights = model.named_parameters()
    return loss, {name.removeprefix("bert."): w.grad.numpy() for name, w in weights}


@pytest.fixture(
    scope="module",
    params=[pytest.param(s, marks=[pytest.mark.slow] if s != "tiny" else []) for s in SHAPES],
)
def theirs(request):
    """(config, windows, loss, gradient) of one shape."""
    layers, hidden, heads = SHAPES[request.param]
    config = BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    windows = random_batch(config, LENGTHS, 1)
    return config, windows, *their_gradient(config, windows)


def test_whole_gradients_are_those_of_torch(theirs, trainer, tmp_path):
    config, windows, their_loss, truth = theirs
    flat, batch = flatten(random_weights(config, 1, tmp_path, calm=True)), batch_of(windows)
    shutil.rmtree(tmp_path)
    gradient, weights = zeros_like(flat), trainer.prepare(flat.weights)
    kept = forward(batch, weights, config, trainer)
    loss, d_start, d_end = span_loss(
        kept.start_logits,
        kept.end_logits,
        batch.cu_seqlens,
        [[start] for start in STARTS],
        [[end] for end in ENDS],
    )
    backward(kept, d_start, d_end, weights, gradient.weights, config, trainer)
    assert loss == pytest.approx(their_loss, rel=LIMIT)
    ours = named_arrays(gradient.weights)
    assert ours.keys() == truth.keys()
    norm = np.sqrt(sum(np.sum(array * array) for array in truth.values()))
    for name, array in truth.items():
        # Rounding alone where the softmax loses what is added: keys' biases, the last two biases.
        largest = np.abs(array).max()
        assert np.abs(ours[name] - array).max() <= LIMIT * (largest if largest > 1e-12 else norm), (
            name
        )
