"""Families beside BERT: the same arrays under other names give the same logits.

test_families_live.py compares them with transformers.
"""

import json
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
from builders import batch_of, random_weights
from random_models import random_batch, random_tensors, tiny_config, write_model
from safetensors.numpy import load_file, save_file
from tokenizers import processors
from torch_files import write_torch_file

from minibert import QuestionAnswerer, convert, pipeline
from minibert.config import BertConfig
from minibert.encoder import qa_logits
from minibert.errors import CheckpointError, ConfigError, InputError
from minibert.families import FAMILIES, bert_name, family_name
from minibert.kernels.backend import get_backend
from minibert.kernels.numbers import round_rows
from minibert.model import load_model
from minibert.squad.decoders import SquadSettings, make_decoder
from minibert.trace import Trace
from minibert.weights import expected_shapes, layer_names

CONFIG = tiny_config()
OTHERS = [name for name in FAMILIES if name != "bert"]
POSITIONS = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"
TEXT = "ada lee sailed from berlin to paris in 1843 . the ship was lost ."


def plain_tensors():
    """A BERT's arrays; both token types are the same, so that it does not tell them apart."""
    tensors = {name.removeprefix("bert."): x for name, x in random_tensors(CONFIG, 0).items()}
    tensors[TYPES][1] = tensors[TYPES][0]
    return tensors


def write_family(folder, model_type):
    """The same model as BERT and as the family has it, in two folders."""
    tensors, family = plain_tensors(), FAMILIES[model_type]
    if not family.token_types:
        tensors[TYPES][:] = 0
    if family.shares_layers:
        for name, x in tensors.items():
            x[...] = tensors[name.replace(".layer.1.", ".layer.0.")]
    write_model(folder / "bert", CONFIG)
    save_file(tensors, folder / "bert" / "model.safetensors")
    if family.positions_after_padding:
        garbage = np.full((2, CONFIG.hidden_size), 7, np.float32)
        tensors[POSITIONS] = np.concatenate([garbage, tensors[POSITIONS]])
    if not family.token_types:
        del tensors[TYPES]
    elif family.token_types == 1:
        tensors[TYPES] = tensors[TYPES][:1].copy()
    if family.shares_layers:
        first = {name for name in tensors if ".layer.1." not in name}
        tensors = {n.replace(".layer.0.", ".layer.0.inner.0."): tensors[n] for n in first}
    if family.always_projects:
        tensors["embeddings_project.weight"] = np.eye(CONFIG.hidden_size, dtype=np.float32)
        tensors["embeddings_project.bias"] = np.zeros(CONFIG.hidden_size, np.float32)
    write_model(folder / "other", CONFIG)
    renamed = {family_name(name, family): x for name, x in tensors.items()}
    save_file(renamed, folder / "other" / "model.safetensors")
    raw = {"model_type": model_type, "pad_token_id": 1}
    for name, value in vars(CONFIG).items():
        raw[family.keys.get(name, name)] = value
    raw["embedding_size"] = CONFIG.hidden_size
    raw["max_position_embeddings"] = len(tensors[POSITIONS])
    raw["type_vocab_size"] = len(tensors.get(TYPES, "x"))
    (folder / "other" / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder / "bert", folder / "other"


@pytest.fixture(params=OTHERS)
def folders(request, tmp_path):
    return write_family(tmp_path, request.param)


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_the_same_arrays_under_other_names_give_the_same_logits(folders, device):
    bert, other = (load_model(folder, device=device) for folder in folders)
    assert other.usual_seq_length == bert.usual_seq_length == CONFIG.max_position_embeddings
    ours, theirs = (
        model.logits(model.windows("who sailed ?", [TEXT], max_seq_length=16, doc_stride=4))
        for model in (other, bert)
    )
    assert len(ours) > 1
    for mine, yours in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, yours)


def test_both_faces_answer_alike(folders):
    answers = [QuestionAnswerer(folder).answer("who sailed ?", TEXT) for folder in folders]
    assert answers[0] == answers[1]
    results = [pipeline(model=folder)(question="who sailed ?", context=TEXT) for folder in folders]
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_converted_model_keeps_its_names_and_its_answers(folders, tmp_path, dtype):
    _, other = folders
    new = convert(other, tmp_path / "new", dtype=dtype)
    before, after = (load_file(each / "model.safetensors") for each in (other, new))
    assert set(before) == {name for name in after if not name.endswith(".scale")}
    windows = load_model(other).windows("who sailed ?", [TEXT])
    for ours, theirs in zip(
        load_model(new).logits(windows)[0], load_model(other).logits(windows)[0], strict=True
    ):
        assert np.abs(ours - theirs).max() <= (0 if dtype == "float32" else 0.2)


def test_a_model_in_few_bits_has_the_logits_of_the_rounded_numbers(folders, tmp_path):
    _, other = folders
    small = convert(other, tmp_path / "small", bits=(5, 6, 4))
    before, after = (load_file(each / "model.safetensors") for each in (other, small))
    assert set(before) == {name for name in after if not name.endswith(".scale")}
    rounded = {}
    for name, array in before.items():
        plain = bert_name(name, FAMILIES[load_model(other).config.family])
        kinds = {"embeddings.word_": 5, "embeddings": 8, ".attention.": 6, "encoder.": 4}
        bits = next((count for part, count in kinds.items() if part in plain), None)
        rounded[name] = array if bits is None or array.ndim == 1 else round_rows(array, bits)
    save_file(rounded, other / "model.safetensors")
    windows = load_model(other).windows("who sailed ?", [TEXT])
    for ours, theirs in zip(
        load_model(small).logits(windows)[0], load_model(other).logits(windows)[0], strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_names_go_there_and_back():
    for model_type, family in FAMILIES.items():
        shapes = expected_shapes(tiny_config(family=model_type))
        names = [family_name(name, family) for name in shapes]
        assert len(set(names)) == len(names)
        assert [bert_name(name, family) for name in names] == list(shapes)


@pytest.mark.parametrize("before", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_what_training_programs_put_before_every_name_is_taken_off(tmp_path, before):
    bert, other = write_family(tmp_path, "distilbert")
    for folder in (bert, other):
        whole = load_model(folder)
        tensors = load_file(folder / "model.safetensors")
        save_file({before + name: x for name, x in tensors.items()}, folder / "model.safetensors")
        windows = whole.windows("who sailed ?", [TEXT])
        np.testing.assert_array_equal(load_model(folder).logits(windows), whole.logits(windows))
        assert load_file(convert(folder, tmp_path / f"new-{folder.name}") / "model.safetensors")


def test_what_is_missing_is_named_as_in_the_file(tmp_path):
    _, other = write_family(tmp_path, "distilbert")
    tensors = load_file(other / "model.safetensors")
    del tensors["distilbert.transformer.layer.1.ffn.lin1.bias"]
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: distilbert\.transformer\.layer\.1\.ffn"):
        load_model(other)


def test_a_window_may_be_as_long_as_there_are_positions_behind_padding(tmp_path):
    _, other = write_family(tmp_path, "roberta")
    model = load_model(other)
    assert model.config.max_position_embeddings == 66
    assert len(model.windows("who ?", [TEXT * 9], max_seq_length=64)[0]) == 64
    with pytest.raises(InputError, match="65 is beyond the 64 positions"):
        model.windows("who ?", [TEXT], max_seq_length=65)


def test_defaults_are_those_of_the_family():
    small = BertConfig.from_dict({"model_type": "distilbert"})
    assert (small.num_hidden_layers, small.hidden_size, small.type_vocab_size) == (6, 768, 1)
    assert BertConfig.from_dict({"model_type": "roberta"}).vocab_size == 50265


@pytest.mark.parametrize("padding", [-2, 511, "1", None, 1.5])
def test_a_padding_token_that_leaves_no_positions_is_refused(padding):
    with pytest.raises(ConfigError, match="pad_token_id"):
        BertConfig.from_dict({"model_type": "roberta", "pad_token_id": padding})


# ---------------------------------------------------------------- projections and shared layers


def random_logits(config, device, folder):
    """Logits, and the stages of a trace, of a random model on a few windows."""
    kernels = get_backend(device)
    weights = kernels.prepare(random_weights(config, 3, folder))
    batch, trace = batch_of(random_batch(config, [9, 1, 30], 4)), Trace()
    logits = qa_logits(batch, weights, config, kernels, trace)
    np.testing.assert_array_equal(logits, qa_logits(batch, weights, config, kernels))
    return np.array(logits), trace, weights


@pytest.mark.parametrize("family", ["electra", "albert"])
@pytest.mark.parametrize("width", [1, 20, 36, 70])
def test_tables_of_any_width_are_projected(family, width, tmp_path):
    config = tiny_config(family=family, embedding_size=width, hidden_size=36, num_attention_heads=3)
    shapes = expected_shapes(config)
    assert shapes["embeddings.position_embeddings.weight"] == (64, width)
    assert shapes["embeddings.LayerNorm.bias"] == (width,)
    assert ("embeddings_project.weight" in shapes) == (family == "albert" or width != 36)
    truth, trace, weights = random_logits(config, "reference", tmp_path)
    assert trace["embeddings"].shape == (40, width)
    if config.projects:
        by_hand = trace["embeddings"] @ weights.projection.weight.T + weights.projection.bias
        np.testing.assert_array_equal(trace["projection"], by_hand)
    ours, _, _ = random_logits(config, "cpu", tmp_path)
    assert np.abs(ours - truth).max() <= 2e-5


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_groups_of_layers_run_one_after_the_other_and_are_prepared_once(device, tmp_path):
    config = tiny_config(
        family="albert", num_hidden_layers=5, num_hidden_groups=2, inner_group_num=2
    )
    _, _, weights = random_logits(config, device, tmp_path)
    layers = weights.layers
    order = [0, 1, 0, 1, 0, 1, 2, 3, 2, 3]  # layers of a group, of 2 groups in 5 turns
    assert len(layers) == 10
    distinct = [layers[order.index(i)] for i in range(4)]
    assert all(layer is distinct[i] for layer, i in zip(layers, order, strict=True))
    assert len({id(layer) for layer in layers}) == 4
    alike = tiny_config(num_hidden_layers=10, embedding_size=config.hidden_size)
    theirs = random_weights(config, 3, tmp_path)
    kernels, batch = get_backend(device), batch_of(random_batch(config, [9, 1, 30], 4))
    apart = replace(theirs, layers=tuple(copy(layer) for layer in theirs.layers))
    np.testing.assert_array_equal(
        qa_logits(batch, kernels.prepare(apart), alike, kernels),
        qa_logits(batch, weights, config, kernels),
    )


@pytest.mark.parametrize("family", ["electra", "albert"])
def test_a_projection_is_converted_from_a_pickle_and_to_int8(family, tmp_path):
    folder = write_model(tmp_path / "model", tiny_config(family=family, embedding_size=20))
    model = load_model(folder, device="reference")
    windows = model.windows("who sailed ?", [TEXT])
    want = model.logits(windows)
    new = convert(folder, tmp_path / "int8", dtype="int8")
    assert "int8" in {str(x.dtype) for x in load_file(new / "model.safetensors").values()}
    assert np.abs(np.subtract(load_model(new).logits(windows), want)).max() <= 0.2
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_torch_file(folder / "pytorch_model.bin", tensors)
    again = convert(folder, tmp_path / "again")
    np.testing.assert_array_equal(load_model(again, device="reference").logits(windows), want)
    assert load_file(again / "model.safetensors").keys() == tensors.keys()


def test_defaults_of_electra_and_albert():
    small = BertConfig.from_dict({"model_type": "electra"})
    assert (small.table_width, small.hidden_size, small.projects) == (128, 256, True)
    base = BertConfig.from_dict({"model_type": "electra", "embedding_size": 256})
    assert not base.projects
    albert = BertConfig.from_dict({"model_type": "albert"})
    assert (albert.table_width, albert.hidden_size, albert.activation) == (128, 4096, "gelu_tanh")
    assert len(set(layer_names(albert))) == 1
    assert len(layer_names(albert)) == 12


@pytest.mark.parametrize("name", ["embedding_size", "num_hidden_groups", "inner_group_num"])
@pytest.mark.parametrize("value", [0, -1, True, "2", 1.0, 10**9])
def test_sizes_of_albert_are_checked(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be a whole number"):
        BertConfig.from_dict({"model_type": "albert", name: value})


def test_there_are_no_more_groups_than_layers():
    raw = {"model_type": "albert", "num_hidden_groups": 13}
    with pytest.raises(ConfigError, match="at most num_hidden_layers, got 13 and 12"):
        BertConfig.from_dict(raw)
    raw["model_type"] = "bert"  # where the word means nothing
    assert BertConfig.from_dict(raw) == BertConfig()


def test_a_missing_projection_is_named_as_in_the_file(tmp_path):
    _, other = write_family(tmp_path, "albert")
    tensors = load_file(other / "model.safetensors")
    del tensors["albert.encoder.embedding_hidden_mapping_in.bias"]
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"missing: albert\.encoder\.embedding_hidden_mapping_in\.bias \[32\]"
    ):
        load_model(other)


# ---------------------------------------------------------------- RoBERTa's tokenizer


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A RoBERTa with byte-level BPE of its own, as vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("roberta")
    _, other = write_family(folder, "roberta")
    bpe = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator([TEXT] * 3, vocab_size=300, special_tokens=special)
    bpe.save_model(str(other))
    raw = json.loads((other / "config.json").read_text())
    raw["vocab_size"] = size = bpe.get_vocab_size()
    (other / "config.json").write_text(json.dumps(raw))
    tensors = load_file(other / "model.safetensors")
    name = "roberta.embeddings.word_embeddings.weight"
    tensors[name] = np.resize(tensors[name], (size, CONFIG.hidden_size))
    save_file(tensors, other / "model.safetensors")
    (other / "vocab.txt").unlink()
    (other / "tokenizer_config.json").unlink()
    return other


def test_robertas_windows_have_two_separators_and_one_type(roberta):
    model = load_model(roberta)
    (window,) = model.windows("who sailed", ["ada lee"])
    cls, sep = (model.tokenizer.backend.token_to_id(token) for token in ("<s>", "</s>"))
    question, text = (model.tokenizer.encode(x).ids.tolist() for x in ("who sailed", "ada lee"))
    assert window.input_ids.tolist() == [cls, *question, sep, sep, *text, sep]
    assert not window.token_type_ids.any()
    assert window.offset == len(question) + 3


def test_a_blank_page_has_tokens_of_bytes_and_is_passed_over_all_the_same(roberta):
    model = load_model(roberta)
    assert len(model.tokenizer.encode(" \n\n"))
    windows = model.windows("who sailed", [" \n\n", "ada lee", ""])
    assert [window.document for window in windows] == [1]


def test_tokens_of_bytes_stand_for_whole_characters_without_the_space_before(roberta):
    text = "ada  lée 東"
    tokens = load_model(roberta).tokenizer.encode(text)
    pieces = [text[a:b] for a, b in tokens.offsets.tolist()]
    assert not any(piece.startswith(" ") for piece in pieces if piece.strip())
    assert {"ada", "東"} <= set(pieces)


def test_a_tokenizer_json_with_robertas_layout_is_taken(roberta, tmp_path):
    model = load_model(roberta)
    backend = model.tokenizer.backend
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    other = load_model(roberta, tokenizer=tmp_path)
    assert other.tokenizer.pair == model.tokenizer.pair


def test_run_squads_words_are_split_as_if_a_space_stood_before_each(roberta):
    tokenizer = load_model(roberta).tokenizer
    text = "ada  (l\u00e9e)\n\u00a0\u6771\u4eac"
    tokens = tokenizer.encode_words(text)
    for number, part in enumerate((" ada", " (l\u00e9e)", "\u00a0\u6771\u4eac")):
        assert tokens.ids[tokens.words == number].tolist() == tokenizer.encode(part).ids.tolist()
    assert tokens.words.tolist() == sorted(tokens.words.tolist())
    assert tokens.offsets[0, 0] == 0
    assert text[slice(*tokens.offsets[tokens.words == 1][[0, -1], [0, 1]])] == "(l\u00e9e)"
    assert tokenizer.plain_text(tokens.ids) == "ada (l\u00e9e) \u6771\u4eac"
    assert len(tokenizer.encode_words(" \n")) == 0
    with pytest.raises(InputError, match="character 1 is the lone surrogate"):
        tokenizer.encode_words("a\ud800")


def test_run_squads_decoder_cuts_words_of_tokens_of_bytes(roberta):
    model = load_model(roberta)
    decoder = make_decoder(model, SquadSettings(decoder="run_squad", with_null=False))
    text = "It was Ada's (l\u00e9e). So"
    (window,) = windows = decoder.windows("who?", text)
    begins, ends = window.context.offsets.T.tolist()
    # The last cannot be told: its punctuation has spaces around it where it is looked for.
    for wanted, expected in (
        ("Ada", "Ada"),
        ("l\u00e9e", "l\u00e9e"),
        ("s (l\u00e9e", "Ada's (l\u00e9e)."),
    ):
        start, end = np.full((2, len(window)), -9, np.float32)
        start[window.offset + begins.index(text.index(wanted))] = 9
        past = text.index(wanted) + len(wanted)
        end[window.offset + max(i for i, at in enumerate(ends) if at == past)] = 9
        found = decoder.decode(text, windows, [(start, end)])
        assert found.text == text[slice(*found.span)] == expected


def test_a_vocabulary_without_merges_is_no_tokenizer(roberta, tmp_path):
    (tmp_path / "vocab.json").write_bytes((roberta / "vocab.json").read_bytes())
    with pytest.raises(OSError, match="neither tokenizer.json nor vocab.txt"):
        load_model(roberta, tokenizer=tmp_path)
