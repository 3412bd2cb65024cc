"""minibert gives the answers of transformers 5.2.0, both running in this process.

Two comparisons.  On the same made-up logits, everything from the tokenizer to the answer must be
equal: thousands of random cases, with ties, unicode and long texts.  With real weights, logits
must be within the limit of the goldens, and answers to real questions the same.
"""

import json
import lzma
import random
import re
import unicodedata
import zlib
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

from minibert import InputError, MinibertError, Model
from minibert.checkpoints.hub import EMBEDDED
from minibert.model import load_model
from minibert.parameters import Int8, full
from minibert.pipelines import QuestionAnsweringPipeline

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.2.0")
if transformers.__version__ != "5.2.0":
    pytest.skip("compares with transformers 5.2.0 only", allow_module_level=True)

from transformers.pipelines import question_answering  # noqa: E402

pytestmark = pytest.mark.parity

CASES = 2800
SQUAD = Path(__file__).resolve().parents[2] / "shared/data/squad/dev-v2.0.json.xz"
LOGIT_LIMIT = 2e-5

WORDS = (
    "the river crossed Ada Lovelace program's well-known 1843 3.14 U.S. e-mail (see below) naïve "
    "cafe\u0301 A\u030angstro\u0308m İstanbul STRASSE straße ﬁnance 😀 👩‍👩‍👧 🇩🇪 "
    "東京都 船長 です 안녕 שלום עולם "
    "مرحبا بالعالم Ελλάδα Привет ½ \u00ad \u200b … — "
    "“quoted” 'tis [SEP] [MASK] [UNK] [CLS] ## @#$% "
    "internationalisation antidisestablishmentarianism zzzqqq a A THE The berlin Berlin BERLIN"
).split(" ")
SPACES = [" "] * 12 + ["\n", "\t", "  ", "\u00a0", "\u3000", "", ". ", ", "]


def made_up_text(rng, count, words=WORDS):
    return "".join(rng.choice(words) + rng.choice(SPACES) for _ in range(count))


def made_up_logits(ids, seed, coarse):
    """Start and end logits [S] that depend on the window's tokens only."""
    source = np.random.default_rng([zlib.crc32(np.asarray(ids, np.int64).tobytes()), seed])
    start, end = source.normal(0, source.choice([0.5, 2, 8]), (2, len(ids))).astype(np.float32)
    return (np.round(start), np.round(end)) if coarse else (start, end)


class MadeUp(Model):
    """The embedded model with made-up logits."""

    def __init__(self, model, seed, coarse):
        super().__init__("made up", model.config, model.tokenizer, model.kernels, model.weights)
        object.__setattr__(self, "how", (seed, coarse))

    def logits(self, windows, trace=None):
        return [made_up_logits(w.input_ids, *self.how) for w in windows]

    def begin(self, windows):
        return lambda: self.logits(windows)


def torch_model(folder=None):
    """transformers' model with the weights of a folder, as the definition reads them."""
    model = load_model(folder, device="reference")
    weights, config = model.weights, model.config
    theirs = transformers.BertConfig(**asdict(config), attn_implementation="eager")
    model = transformers.BertForQuestionAnswering(theirs).eval()
    state = {}

    def put(name, part):
        for field in fields(part):
            value = getattr(part, field.name)
            key = f"{name}.{'weight' if field.name == 'gain' else field.name}"
            state[key] = full(value) if isinstance(value, Int8) else value

    tables = weights.tables
    for name, table in (
        ("word", tables.words),
        ("position", tables.positions),
        ("token_type", tables.token_types),
    ):
        state[f"bert.embeddings.{name}_embeddings.weight"] = full(table.matrix)
    put("bert.embeddings.LayerNorm", tables.norm)
    for i, layer in enumerate(weights.layers):
        at = f"bert.encoder.layer.{i}."
        matrices, biases = np.split(full(layer.qkv.weight), 3), np.split(layer.qkv.bias, 3)
        for name, matrix, bias in zip(("query", "key", "value"), matrices, biases, strict=True):
            state[f"{at}attention.self.{name}.weight"] = matrix
            state[f"{at}attention.self.{name}.bias"] = bias
        put(at + "attention.output.dense", layer.attention_output)
        put(at + "attention.output.LayerNorm", layer.attention_norm)
        put(at + "intermediate.dense", layer.intermediate)
        put(at + "output.dense", layer.output)
        put(at + "output.LayerNorm", layer.output_norm)
    put("qa_outputs", weights.qa_outputs)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all("position_ids" in name for name in missing)
    return model


@pytest.fixture(scope="module")
def their_tokenizer():
    return transformers.AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.fixture
def no_fillers(monkeypatch):
    """Take candidates of probability 0 out of transformers' lists: the README's table has them."""
    original = question_answering.decode_spans

    def decode_spans(*args):
        starts, ends, scores = original(*args)
        return starts[scores > 0], ends[scores > 0], scores[scores > 0]

    monkeypatch.setattr(question_answering, "decode_spans", decode_spans)


def as_list(result):
    return result if isinstance(result, list) else [result]


def assert_same(ours, theirs, note, limit=1e-6):
    if theirs == [] and isinstance(ours, dict):  # our answer when there is none at all
        theirs = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    assert type(ours) is type(theirs), note
    ours, theirs = as_list(ours), as_list(theirs)
    places = [[(a["answer"], a["start"], a["end"]) for a in side] for side in (ours, theirs)]
    assert places[0] == places[1], note
    for a, b in zip(ours, theirs, strict=True):
        assert abs(a["score"] - b["score"]) <= limit, note
        assert list(a) == list(b), note


def test_equal_answers_on_equal_logits(embedded, their_tokenizer, no_fillers):
    shape = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    stub = transformers.BertForQuestionAnswering(shape).eval()
    theirs = transformers.pipeline(
        "question-answering", model=stub, tokenizer=their_tokenizer, device="cpu"
    )
    kinds = {"answers": 0, "errors": 0, "several windows": 0, "ties": 0}
    for case in range(CASES):
        rng = random.Random(case)
        words = rng.choice([WORDS, WORDS, WORDS[:20], ["a", "A", "b"], ["berlin", "Berlin"]])
        texts = [w for w in WORDS if w != "[CLS]"]  # in a question it is allowed there, by accident
        question = made_up_text(rng, rng.choice([1, 4, 12, 30]), texts)
        context = made_up_text(rng, rng.choice([1, 2, 5, 30, 120, 300]), words)
        length = rng.choice([None, None, 16, 40, 64, 128, 384])
        options = {
            "top_k": rng.choice([1, 1, 2, 3, 5, 20, 60]),
            "max_answer_len": rng.choice([1, 2, 5, 15, 15, 30]),
            "handle_impossible_answer": rng.random() < 0.5,
            "align_to_words": rng.random() < 0.6,
            "max_seq_len": length,
            "doc_stride": rng.choice([None, None, 0, 1, 4, 8, 20, 60, 128]),
        }
        options = {k: v for k, v in options.items() if v is not None}
        coarse = rng.random() < 0.4
        ours = QuestionAnsweringPipeline(MadeUp(embedded, case, coarse))
        stub.forward = lambda input_ids, case=case, coarse=coarse, **_: tuple(
            torch.from_numpy(a)[None] for a in made_up_logits(input_ids[0].numpy(), case, coarse)
        )
        note = (case, question, context[:200], options)
        try:
            want = theirs(question=question, context=context, **options)
        except BaseException as error:
            if "kth" in str(error):  # theirs fails on tiny inputs; ours answers
                ours(question=question, context=context, **options)
                continue
            assert type(error).__name__ in ("Exception", "ValueError", "PanicException"), note
            with pytest.raises(InputError):
                ours(question=question, context=context, **options)
            kinds["errors"] += 1
            continue
        got = ours(question=question, context=context, **options)
        assert_same(got, want, note)
        kinds["answers"] += 1
        kinds["ties"] += coarse
        kinds["several windows"] += len(context) > 4 * (length or 384)
    assert kinds["answers"] >= 2000, kinds
    assert min(kinds.values()) >= 50, kinds


# ---------------------------------------------------------------- with real weights


def paragraphs():
    """Real questions and texts: SQuAD's where it is, otherwise a few of our own."""
    if not SQUAD.is_file():
        text = (
            "Ada Lovelace wrote the first published program in 1843, for a machine that Charles "
            "Babbage had designed and never finished. Her notes were three times as long as the "
            "article that she translated. "
        )
        asked = ("Who designed the machine?", "When was it written?", "What did she translate?")
        return [(q, text * n) for q in asked for n in (1, 12)]
    with lzma.open(SQUAD, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    chosen = random.Random(0)
    pairs = [
        (q["question"], p["context"]) for a in articles for p in a["paragraphs"] for q in p["qas"]
    ]
    return chosen.sample(pairs, 60)


def largest_difference(model, theirs, windows):
    off = 0.0
    for window, (start, end) in zip(windows, model.logits(windows), strict=True):
        with torch.no_grad():
            out = theirs(
                input_ids=torch.from_numpy(window.input_ids).long()[None],
                token_type_ids=torch.from_numpy(window.token_type_ids).long()[None],
            )
        off = max(off, np.abs(out.start_logits[0].numpy() - start).max())
        off = max(off, np.abs(out.end_logits[0].numpy() - end).max())
    return off


@pytest.mark.parametrize("which", ["embedded", "tiny"])
def test_logits_are_within_the_limit(which, request):
    model = request.getfixturevalue(which)
    theirs = torch_model(None if which == "embedded" else request.getfixturevalue("tiny_folder"))
    windows = []
    for question, text in paragraphs()[:20]:
        windows += model.windows(question, [text], doc_stride=8, max_question_length=10)
    assert largest_difference(model, theirs, windows) <= LOGIT_LIMIT


def test_answers_to_real_questions_are_the_same(embedded, their_tokenizer, no_fillers):
    model = torch_model()
    theirs = transformers.pipeline(
        "question-answering", model=model, tokenizer=their_tokenizer, device="cpu"
    )
    ours = QuestionAnsweringPipeline(embedded)
    for number, (question, text) in enumerate(paragraphs()[:30]):
        example = {"question": question, "context": text}
        for options in (
            {},
            {"top_k": 3, "handle_impossible_answer": number % 2 == 0},
            {"max_seq_len": 100, "doc_stride": 30, "align_to_words": False},
        ):
            # The forward passes differ in the last bits, so the scores may too.
            assert_same(ours(**example, **options), theirs(**example, **options), example, 2e-5)


def test_a_list_of_questions_gives_the_same_list(embedded, their_tokenizer, no_fillers):
    model = torch_model()
    theirs = transformers.pipeline(
        "question-answering", model=model, tokenizer=their_tokenizer, device="cpu"
    )
    ours = QuestionAnsweringPipeline(embedded)
    questions, texts = map(list, zip(*paragraphs()[:4], strict=True))
    for arguments in (
        {"question": questions, "context": texts},
        {"question": questions, "context": texts[0]},
        {"question": questions[:1], "context": texts[:1]},
    ):
        for a, b in zip(as_list(ours(**arguments)), as_list(theirs(**arguments)), strict=True):
            assert_same(a, b, arguments, 2e-5)


def test_tokens_and_windows_are_the_same(embedded, their_tokenizer):
    for case in range(300):
        rng = random.Random(case)
        question, text = made_up_text(rng, 8), made_up_text(rng, rng.choice([1, 60, 200]))
        text = unicodedata.normalize(rng.choice(["NFC", "NFD"]), text)
        length, stride = rng.choice([(384, 128), (128, 20), (96, 0)])
        try:
            windows = embedded.windows(question, [text], max_seq_length=length, doc_stride=stride)
        except MinibertError:
            continue
        want = their_tokenizer(
            question, text, truncation="only_second", max_length=length, stride=stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        assert want["input_ids"] == [w.input_ids.tolist() for w in windows]
        assert want["token_type_ids"] == [w.token_type_ids.tolist() for w in windows]
        for w, offsets in zip(windows, want["offset_mapping"], strict=True):
            shown = w.context.offsets[w.begin : w.end].tolist()
            assert [list(pair) for pair in offsets[w.offset : -1]] == shown


# ---------------------------------------------------------------- run_squad


@pytest.fixture(scope="module")
def slow_tokenizer(tmp_path_factory):
    """The tokenizer in Python, the only one whose features transformers can still make."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    vocab = json.loads((EMBEDDED / "tokenizer.json").read_text())["model"]["vocab"]
    file = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    file.write_text("".join(f"{token}\n" for token in sorted(vocab, key=vocab.get)))
    return BertTokenizerLegacy(str(file), do_lower_case=True, model_max_length=512)


def their_features(tokenizer, question, context, length, stride):
    """transformers' windows of one question, unpadded."""
    from transformers.data.processors import squad

    example = squad.SquadExample("id", question, context, None, None, "", is_impossible=True)
    # Each Chinese character a word, as BERT's scripts for Chinese have it.
    example.doc_tokens = [
        word
        for token in example.doc_tokens
        for word in re.findall(r"[東京都船長]|[^東京都船長]+", token)
    ]
    squad.squad_convert_example_to_features_init(tokenizer)
    features = squad.squad_convert_example_to_features(
        example, length, stride, 64, "do_not_pad", False
    )
    for number, feature in enumerate(features):
        feature.unique_id = number
    return example, features


def their_answers(tokenizer, example, features, logits, folder, n, longest, with_null, threshold):
    """What transformers writes: the text, the n best, the null odds."""
    from transformers.data.metrics.squad_metrics import compute_predictions_logits
    from transformers.data.processors.squad import SquadResult

    results = [SquadResult(i, *(part.tolist() for part in pair)) for i, pair in enumerate(logits)]
    files = [str(folder / name) for name in ("predictions", "nbest", "odds")]
    texts = compute_predictions_logits(
        [example], features, results, n, longest, True, *files, False, with_null, threshold,
        tokenizer,
    )  # fmt: skip
    nbest = json.loads((folder / "nbest").read_text())["id"]
    odds = json.loads((folder / "odds").read_text())["id"] if with_null else None
    return texts["id"], nbest, odds


def packed(text):
    """A text without spaces: theirs has one between any two words, ours only where the text has."""
    return "".join(text.split(" "))


def test_run_squad_windows_and_answers_on_equal_logits(embedded, slow_tokenizer, tmp_path):
    from minibert.squad.decoders import RunSquad, SquadSettings

    kinds = {"several windows": 0, "no answer": 0, "ties": 0, "cut at a word's end": 0}
    kinds["scripts without spaces"] = 0
    known = ["kana" if word == "です" else word for word in WORDS]  # whole words in those scripts
    for case in range(600):
        rng = random.Random(case)
        words = rng.choice([known, known, WORDS[:20], ["a", "A.", "b's"]])
        question = "what " + made_up_text(rng, rng.choice([1, 4, 12, 80]), words)  # not empty there
        context = made_up_text(rng, rng.choice([1, 2, 5, 30, 120, 300]), words)
        length, stride = rng.choice([(384, 128), (384, 128), (128, 32), (100, 20), (384, 50)])
        coarse = rng.random() < 0.4
        with_null = rng.random() < 0.8
        threshold = rng.choice([0.0, 0.0, -2.0, 3.5])
        n, longest = rng.choice([(20, 30), (20, 30), (1, 5), (5, 2)])
        settings = SquadSettings(
            max_seq_length=length, doc_stride=stride, max_answer_length=longest, n_best_size=n,
            null_threshold=threshold, with_null=with_null,
        )  # fmt: skip
        decoder = RunSquad(embedded, settings)
        note = (case, question[:100], context[:200], settings)
        example, features = their_features(slow_tokenizer, question, context, length, stride)
        windows = decoder.windows(question, context)
        assert [f.input_ids for f in features] == [w.input_ids.tolist() for w in windows], note
        assert [f.token_type_ids for f in features] == [
            w.token_type_ids.tolist() for w in windows
        ], note
        logits = [made_up_logits(w.input_ids, case, coarse) for w in windows]
        text, nbest, odds = their_answers(
            slow_tokenizer, example, features, logits, tmp_path, n, longest, with_null, threshold
        )
        ours = decoder.decode(context, windows, logits)
        if not re.search("[東京都船長]", context):
            assert (ours.text, ours.null_odds) == (text, odds), note
            assert ours.n_best == nbest, note
        assert (packed(ours.text), ours.null_odds) == (packed(text), odds), note
        assert [{**entry, "text": packed(entry["text"])} for entry in ours.n_best] == [
            {**entry, "text": packed(entry["text"])} for entry in nbest
        ], note
        kinds["scripts without spaces"] += any(
            re.search("[東京都船長]", entry["text"]) for entry in nbest
        )
        kinds["several windows"] += len(windows) > 1
        kinds["no answer"] += not text
        kinds["ties"] += coarse
        kinds["cut at a word's end"] += text not in context.split() and text in context
    assert min(kinds.values()) >= 50, kinds


def test_predictions_for_real_questions_are_those_of_run_squad(embedded, slow_tokenizer, tmp_path):
    from minibert.squad.decoders import RunSquad, SquadSettings

    theirs, decoder = torch_model(), RunSquad(embedded, SquadSettings())
    for question, context in paragraphs()[:30]:
        example, features = their_features(slow_tokenizer, question, context, 384, 128)
        logits = []
        for feature in features:
            with torch.no_grad():
                out = theirs(
                    input_ids=torch.tensor([feature.input_ids]),
                    token_type_ids=torch.tensor([feature.token_type_ids]),
                )
            logits.append((out.start_logits[0].numpy(), out.end_logits[0].numpy()))
        text, _, odds = their_answers(
            slow_tokenizer, example, features, logits, tmp_path, 20, 30, True, 0.0
        )
        windows = decoder.windows(question, context)
        ours = decoder.decode(context, windows, embedded.logits(windows))
        assert ours.text == text, question
        assert ours.null_odds == pytest.approx(odds, abs=4 * LOGIT_LIMIT), question
