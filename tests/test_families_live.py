"""Every family beside BERT next to transformers 4.57.6: logits and answers.

Their models are random, their vocabularies small but of the real kinds.  With
`pip install -e '.[test,parity-4]'`, in an environment of its own.
"""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
if not transformers.__version__.startswith("4.57."):
    pytest.skip("the reference for these families is transformers 4.57.6", allow_module_level=True)

from family_models import LONGEST, TEXT, make_tokenizer  # noqa: E402

from minibert import pipeline  # noqa: E402
from minibert.config import ACTIVATIONS  # noqa: E402
from minibert.kernels import reference  # noqa: E402
from minibert.model import load_model  # noqa: E402
from minibert.trace import Trace  # noqa: E402

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "distilbert": ("DistilBert", {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80}),
    "roberta": ("Roberta", {**SIZES, "layer_norm_eps": 1e-5, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", {**SIZES, "layer_norm_eps": 1e-5, "type_vocab_size": 1}),
    "camembert": ("Camembert", {**SIZES, "layer_norm_eps": 1e-5, "type_vocab_size": 1}),
    "electra": ("Electra", {**SIZES, "embedding_size": 48}),
    "electra-small": ("Electra", {**SIZES, "embedding_size": 20}),
    "albert": ("Albert", {**SIZES, "embedding_size": 20, "intermediate_size": 80}),
    "albert-groups": (
        "Albert",
        {
            **SIZES, "embedding_size": 48, "intermediate_size": 80, "num_hidden_layers": 5,
            "num_hidden_groups": 2, "inner_group_num": 2,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """A family's model in transformers, its tokenizer, and its folder."""
    kind = request.param
    name, sizes = KINDS[kind]
    folder = tmp_path_factory.mktemp(kind)
    tokenizer = make_tokenizer(folder, name)
    torch.manual_seed(0)
    padding = {"pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, name + "Config")(
        vocab_size=len(tokenizer), max_position_embeddings=LONGEST + 4, **padding, **sizes
    )
    model = getattr(transformers, name + "ForQuestionAnswering")(config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            gain = 1.0 if key.endswith("weight") and "orm" in key.rsplit(".", 2)[-2] else 0.0
            std = 0.2 if value.ndim == 1 or "embeddings" in key else 1.2 / value.shape[1] ** 0.5
            value.normal_(gain, std)
    model.save_pretrained(folder)
    return model, tokenizer, folder


QUESTIONS = ["Who wrote the first program?", "Où habite-t-elle ?", "where did the ship sail from"]


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_logits_are_equal(both, device):
    theirs, tokenizer, folder = both
    ours = load_model(folder, device=device)
    for question in QUESTIONS:
        (window,) = ours.windows(question, [TEXT[:60]], max_seq_length=96)
        pair = tokenizer(question, TEXT[:60], return_tensors="pt")
        assert pair["input_ids"][0].tolist() == window.input_ids.tolist()
        with torch.no_grad():
            want = theirs(**pair)
        ((start, end),) = ours.logits([window])
        assert np.abs(start - want.start_logits[0].numpy()).max() <= 2e-5
        assert np.abs(end - want.end_logits[0].numpy()).max() <= 2e-5


def test_embeddings_and_every_layer_are_equal(both):
    theirs, tokenizer, folder = both
    ours = load_model(folder, device="reference")
    for question in QUESTIONS:
        (window,) = ours.windows(question, [TEXT[:60]], max_seq_length=96)
        pair = tokenizer(question, TEXT[:60], return_tensors="pt")
        trace = Trace()
        ours.logits([window], trace)
        with torch.no_grad():
            want = theirs(**pair, output_hidden_states=True).hidden_states
        # transformers tells what comes after the last layer of a group.
        each = ours.config.inner_group_num
        names = [f"layer.{i}" for i in range(len(ours.weights.layers))][each - 1 :: each]
        names = ["projection" if ours.config.projects else "embeddings", *names]
        assert len(names) == 1 + ours.config.num_hidden_layers
        for name, states in zip(names, want, strict=True):
            limit = 5e-6 if name == "embeddings" else 1e-5
            assert np.abs(trace[name] - states[0].numpy()).max() <= limit, name


@pytest.mark.parametrize("top_k", [1, 3, 8])
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("null", [True, False])
def test_the_pipeline_gives_the_same_answers(both, top_k, align, null):
    model, tokenizer, folder = both
    theirs = transformers.pipeline("question-answering", model=model, tokenizer=tokenizer)
    ours = pipeline("question-answering", model=folder)
    for question in QUESTIONS:
        for text in (TEXT, TEXT * 3, " Ada  wrote\n it. "):
            options = {
                "top_k": top_k, "align_to_words": align, "handle_impossible_answer": null,
                "max_seq_len": 64, "doc_stride": 16,
            }  # fmt: skip
            want = theirs(question=question, context=text, **options)
            got = ours(question=question, context=text, **options)
            want, got = (x if isinstance(x, list) else [x] for x in (want, got))
            want = [each for each in want if each["score"] > 0][: len(got)]
            assert [(a["answer"], a["start"], a["end"]) for a in got] == [
                (a["answer"], a["start"], a["end"]) for a in want
            ], (question, text, options)
            for a, b in zip(got, want, strict=True):
                assert abs(a["score"] - b["score"]) <= 1e-4


def test_a_roberta_tokenizer_is_the_same_without_tokenizer_json(both, tmp_path):
    _, _, folder = both
    if not (folder / "merges.txt").exists():
        pytest.skip("another kind of tokenizer")
    whole = load_model(folder, device="reference")
    for path in folder.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    parts = load_model(tmp_path, device="reference")
    for text in (TEXT, " Ada  wrote\n it. ", "é 東 <mask> x", ""):
        ours, theirs = parts.tokenizer.encode(text), whole.tokenizer.encode(text)
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert ours.offsets.tolist() == theirs.offsets.tolist()
        assert ours.words.tolist() == theirs.words.tolist()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "roberta"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_name_of_an_activation_means_the_same_function(name):
    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    theirs = transformers.activations.ACT2FN[name](torch.from_numpy(x)).numpy()
    ours = reference.ACTIVATIONS[ACTIVATIONS[name]](x)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
