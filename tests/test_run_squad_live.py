"""run_squad's decoder with other tokens than word pieces, beside transformers 4.57.6.

Same windows, and on the same logits the same answers, n best and null odds.  With
`pip install -e '.[test,parity-4]'`, in an environment of its own; test_parity_live.py is about
BERT's word pieces.
"""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")
if not transformers.__version__.startswith("4.57."):
    pytest.skip("the reference for these families is transformers 4.57.6", allow_module_level=True)

import tokenizers  # noqa: E402
from tokenizer_files import write_sentencepiece  # noqa: E402
from transformers.data.metrics.squad_metrics import compute_predictions_logits  # noqa: E402
from transformers.data.processors import squad  # noqa: E402

from minibert.checkpoints.sentencepiece import read_sentencepiece  # noqa: E402
from minibert.checkpoints.vocabularies import load_tokenizer  # noqa: E402
from minibert.squad.decoders import RunSquad, SquadSettings  # noqa: E402
from minibert.squad.run_squad import NOTHING  # noqa: E402

WORDS = (
    "Ada Lovelace wrote the first program's code in 1843, (London). It was never run! Sa mère "
    "l'éleva près de Londres; 3,000 km U.S. e-mail \u201cquoted\u201d 'tis naïve A THE The "
    "cafe\u0301 ."
).split()
SPACES = [" "] * 8 + ["\n", "\t", "  ", "\u202f"]


@pytest.fixture(scope="module", params=["Roberta", "Camembert", "Albert"])
def both(request, tmp_path_factory):
    """Their tokenizer in Python, whose features alone transformers can make; and ours."""
    folder = tmp_path_factory.mktemp(request.param)
    text = [" ".join(WORDS)] * 30
    if request.param == "Roberta":
        bpe = tokenizers.ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        bpe.train_from_iterator(text, vocab_size=380, special_tokens=special)
        bpe.save_model(str(folder))
        files = [str(folder / name) for name in ("vocab.json", "merges.txt")]
    else:
        albert = request.param == "Albert"
        name = folder / ("spiece" if albert else "sentencepiece.bpe")
        special = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1} if albert else {}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(" ".join(text).split("!")), model_prefix=str(name),
            vocab_size=120, hard_vocab_limit=False, minloglevel=2,
            control_symbols=["[CLS]", "[SEP]", "[MASK]"] if albert else [], **special,
        )  # fmt: skip
        files = [f"{name}.model"]
        untie(Path(files[0]))
    slow = getattr(transformers, request.param + "Tokenizer")(*files, model_max_length=512)
    return slow, load_tokenizer(folder, request.param.lower()), request.param == "Albert"


def untie(file):
    """Part the scores of pieces: of equal ways to split a word, each library takes another."""
    model, rng = read_sentencepiece(file), random.Random(0)
    pieces = [(text, score + rng.uniform(0, 0.01), kind) for text, score, kind in model.pieces]
    write_sentencepiece(file, pieces, model.normalizer, model.unknown)


def their_features(tokenizer, question, context, length, stride):
    """transformers' windows of one question, unpadded."""
    example = squad.SquadExample("id", question, context, None, None, "", is_impossible=True)
    squad.squad_convert_example_to_features_init(tokenizer)
    features = squad.squad_convert_example_to_features(
        example, length, stride, 64, "do_not_pad", False
    )
    for number, feature in enumerate(features):
        feature.unique_id = number
    return example, features


def test_windows_and_answers_on_equal_logits(embedded, both, tmp_path):
    slow, tokenizer, lowers = both
    model = replace(embedded, tokenizer=tokenizer)
    if tokenizer.pair.separators == 2:  # whose models have one token type
        model = replace(model, config=replace(model.config, family="roberta", type_vocab_size=1))
    cut = several = 0
    for case in range(150):
        rng = random.Random(case)
        text = "".join(
            rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.choice([5, 40, 200]))
        )
        question = " ".join(rng.choice(WORDS) for _ in range(rng.choice([3, 8, 70])))
        length, stride = rng.choice([(384, 128), (160, 40), (100, 20)])
        n, longest, with_null = rng.choice([1, 5, 20]), rng.choice([5, 30]), rng.random() < 0.8
        settings = SquadSettings(
            max_seq_length=length, doc_stride=stride, max_answer_length=longest, n_best_size=n,
            with_null=with_null,
        )  # fmt: skip
        decoder = RunSquad(model, settings)
        note = (case, question, text, settings)
        example, features = their_features(slow, question, text, length, stride)
        windows = decoder.windows(question, text)
        assert [f.input_ids for f in features] == [w.input_ids.tolist() for w in windows], note
        source = np.random.default_rng(case)
        logits = [tuple(source.normal(0, 4, (2, len(w))).astype(np.float32)) for w in windows]
        results = [
            squad.SquadResult(i, *(part.tolist() for part in pair)) for i, pair in enumerate(logits)
        ]
        files = [str(tmp_path / name) for name in ("predictions", "nbest", "odds")]
        (answer,) = compute_predictions_logits(
            [example], features, results, n, longest, lowers, *files, False, with_null, 0.0, slow
        ).values()
        ours = decoder.decode(text, windows, logits)
        assert ours.n_best == json.loads((tmp_path / "nbest").read_text())["id"], note
        assert ours.text == answer, note
        if with_null:
            assert ours.null_odds == json.loads((tmp_path / "odds").read_text())["id"], note
        several += len(windows) > 1
        cut += answer not in text.split() and answer in text
        if answer != NOTHING:
            assert "".join(answer.split()) in "".join(text[slice(*ours.span)].split()), note
    assert several > 30
    assert cut > 10
