"""The part of the benchmark that answers a SQuAD file.  Nothing here looks at a time."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bench
from benchmark import peers, results, squad
from benchmark import squad_side as side

from minibert.config import BertConfig
from minibert.model import load_model
from minibert.squad.decoders import SquadSettings
from minibert.squad.evaluation import predict
from minibert.squad.files import Gold, SquadData, SquadQuestion

PARIS = "The Eiffel Tower stands in Paris. It was named after the engineer Gustave Eiffel."
RIVER = "The Nile is a river in Africa. It flows north into the Mediterranean Sea."
ASKED = [  # text, question, answer
    (PARIS, "Who was the tower named after?", "Gustave Eiffel"),
    (PARIS, "When was the tower painted?", None),
    (RIVER, "Where does the Nile flow?", "north into the Mediterranean Sea"),
]
CONFIG = BertConfig(
    vocab_size=9,
    hidden_size=2,
    num_hidden_layers=1,
    num_attention_heads=1,
    intermediate_size=3,
)


def questions_of(count):
    golds = (Gold("yes"),)
    return [SquadQuestion(str(i), "Is it?", "yes or no", golds, 0) for i in range(count)]


def squad_series(library, dtype, seconds, texts, size=0):
    numbers = {"encoder": [0.5 * t for t in seconds], "cores": [2.0 for _ in seconds]}
    case = results.Case("squad", threads=2)
    found = results.Series(case, peers.peer_of(library, dtype), size)
    found.numbers = {"seconds": list(seconds), **numbers}
    found.facts = {"computed": 8 * (size or 1)}
    return found, list(texts)


def found_of(measured):
    return squad.Found(
        data=SquadData("dev.json", "", questions_of(4), with_null=True),
        questions=questions_of(len(measured[0][1])),
        config=CONFIG,
        attention={"float32": "float32", "int8": "float32"},
        threads=2,
        series=[one for one, _ in measured],
        peaks=[{"float32": 296.0}, {"float32": 592.0}],
        texts=dict(measured),
        lengths=[3, 1],
    )


@pytest.fixture
def squad_found():
    return found_of(
        [
            squad_series("onnxruntime", "float32", [6.0, 6.0], ["yes", "no"], size=8),
            squad_series("minibert", "int8", [1.0, 1.0], ["no", "no"]),
            squad_series("onnxruntime", "float32", [4.0, 5.0], ["yes", "yes"], size=32),
            squad_series("minibert", "float32", [2.0, 4.0], ["yes", "no"]),
        ]
    )


def test_operations_are_those_counted_by_hand():
    # Of one token: query, key, value and output 2 x 2 each, 2 x 3 there and back, head 2 x 2.
    # Of a window of 3: 3 queries with 3 keys of 2 numbers; 3 rows of 3 with 3 values of 2 numbers.
    assert squad.operations(CONFIG, [3]) == (2 * 3 * (16 + 12 + 4), 2 * (18 + 18))
    assert squad.operations(CONFIG, [3, 1]) == (2 * 4 * 32, 2 * (36 + 4))
    two = BertConfig(**{**vars(CONFIG), "num_hidden_layers": 2})
    assert squad.operations(two, [3]) == (2 * 3 * (2 * 28 + 4), 2 * 2 * 36)


def test_a_row_has_the_faster_batches_and_the_ratio_of_the_rounds(squad_found):
    assert squad.time_rows(squad_found) == [
        [
            *("float32", "minibert, packed", "3.00 (2.50-3.50)", "0.75 (0.62-0.88)"),
            *("1.50", "1.50", "2.0", "4", "8", "1.62 (1.44-1.81)"),
        ],
        [
            *("float32", "ONNX Runtime, by 32", "4.50 (4.25-4.75)", "0.45 (0.43-0.47)"),
            *("2.25", "2.25", "2.0", "4", "256", "-"),
        ],
        [
            *("int8", "minibert, packed", "1.00 (1.00-1.00)", "2.00 (2.00-2.00)"),
            *("0.500", "0.500", "2.0", "4", "8", "-"),
        ],
    ]
    assert {len(row) for row in squad.time_rows(squad_found)} == {len(squad.TIME_HEAD)}
    found = results.Results()
    assert len(list(squad.paragraphs(squad_found, found))) == 7
    assert list(found.notes) == ["float32, ONNX Runtime, by 8: 6.00 s; by 32: 4.50 s."]


def test_the_floor_is_the_time_of_the_multiplications_at_the_peak_of_each_round(squad_found):
    assert sum(squad.operations(CONFIG, [3, 1])) == 336
    assert squad.floors(squad_found, "int8") == []
    # Attention of int8 models multiplies in float32 here.
    squad_found.peaks = [{"float32": 8.0, "int8": 16.0}, {"float32": 8.0, "int8": 32.0}]
    assert squad.floors(squad_found, "int8") == [256 / 16 + 80 / 8, 256 / 32 + 80 / 8]
    squad_found.peaks = [{"float32": 336.0}, {"float32": 168.0}]  # floors of 1 and 2 seconds
    ours, peer, small = squad.floor_rows(squad_found)
    assert ours[2:] == ["0", "1.50", "100%", "50%"]
    assert peer[3:] == ["1.50", "65%", "32%"]
    assert small[3:] == ["-", "-", "-"]  # no peak: the processor has no such products
    assert [row[3] for row in squad.whole_rows(squad_found)] == ["3.00", "3.00", "-"]


def test_predictions_are_scored_and_compared_for_every_size(squad_found):
    assert squad.text_rows(squad_found) == [
        ["float32", "minibert, packed", "50.00", "50.00", "-"],
        ["float32", "ONNX Runtime, by 32", "100.00", "100.00", "1"],
        ["float32", "ONNX Runtime, by 8", "50.00", "50.00", "0"],
        ["int8", "minibert, packed", "0.00", "0.00", "-"],
    ]


@pytest.mark.parametrize(("count", "wrong"), [(500, 0), (499, 1)])
def test_one_float32_text_in_500_may_differ(count, wrong):
    same = ["yes"] * (count - 1)
    found = found_of(
        [
            squad_series("minibert", "float32", [1.0], [*same, "yes"]),
            squad_series("onnxruntime", "float32", [1.0], [*same, "no"], size=8),
            squad_series("minibert", "int8", [1.0], ["yes"] * count),
            squad_series("onnxruntime", "int8", [1.0], ["no"] * count, size=8),
        ]
    )
    assert len(squad.wrong_texts(found)) == wrong


@pytest.mark.slow
def test_a_metered_model_predicts_the_same_and_pads_nothing():
    model = load_model(device="reference")
    golds = (Gold("x"),)
    asked = [SquadQuestion(question, question, text, golds, 0) for text, question, _ in ASKED]
    meter = side.Meter()
    metered = side.MeteredModel(**vars(model), meter=meter)
    measured = list(predict(metered, asked, SquadSettings()))
    assert measured == list(predict(model, asked, SquadSettings()))
    assert measured[0][1].text == "Gustave Eiffel"
    assert len(meter.lengths) == len(asked)
    assert meter.computed == sum(meter.lengths)
    assert meter.seconds > 0

    class Remembers(side.Model):  # the same model as a peer, which knows the windows' logits
        def begin(self, windows):
            found = self.logits(windows)
            for window, pair in zip(windows, found, strict=True):
                known[tuple(window.input_ids.tolist())] = np.stack(pair)
            return lambda: found

    def run(batch):
        ids, mask, _ = batch
        logits = np.zeros((2, *ids.shape), np.float32)
        for row, n in enumerate(mask.sum(1)):
            logits[:, row, :n] = known[tuple(ids[row, :n].tolist())]
        return logits

    known = {}
    list(predict(Remembers(**vars(model)), asked, SquadSettings()))
    padding = side.Meter()
    peer = side.PeerModel(**vars(model), meter=padding, run=run, size=2)
    assert list(predict(peer, asked, SquadSettings())) == measured
    lengths = sorted(meter.lengths, reverse=True)
    assert padding.lengths == lengths
    assert padding.computed == 2 * lengths[0] + lengths[2]


@pytest.fixture
def squad_file(tmp_path):
    """A SQuAD 2.0 file of three questions."""
    paragraphs = [
        {
            "context": text,
            "qas": [
                {
                    "id": question,
                    "question": question,
                    "is_impossible": answer is None,
                    "answers": [{"text": answer, "answer_start": text.index(answer)}]
                    if answer
                    else [],
                }
            ],
        }
        for text, question, answer in ASKED
    ]
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"data": [{"title": "", "paragraphs": paragraphs}]}))
    return path


def test_a_file_that_is_not_there_is_one_line(capsys):
    assert bench.main(["squad", "--data", "no/such.json"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bench: error: ")
    assert "no/such.json: cannot be read: No such file" in last


@pytest.mark.slow
def test_without_onnx_runtime_minibert_is_measured_alone(squad_file, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    arguments = ["--rounds", "1", "--dtypes", "float32", "--questions", "all", "--threads", "1"]
    assert bench.main(["squad", "--data", str(squad_file), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "3 of the 3 questions of small.json" in shown
    assert "The whole file, 3 questions, measured:" in shown
    assert "- ONNX Runtime is left out: no onnxruntime here." in shown
    assert "| float32 | minibert, packed |" in shown
    assert "ONNX Runtime, by" not in shown


@pytest.mark.slow
def test_a_peer_that_cannot_load_is_left_out(squad_file, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    model = tmp_path / "kept" / "embedded" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"no model")
    arguments = ["--rounds", "1", "--dtypes", "float32", "--keep", str(tmp_path / "kept")]
    assert bench.main(["squad", "--data", str(squad_file), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "- ONNX Runtime float32: " in shown
    assert "| float32 | minibert, packed |" in shown
    assert "ONNX Runtime, by" not in shown


@pytest.mark.slow
def test_other_predictions_in_float32_are_an_error_after_the_report(squad_file, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    make, kinds = onnx.helper, onnx.TensorProto
    logits = ("start_logits", "end_logits")
    graph = make.make_graph(  # the number of a token is its logit
        [make.make_node("Cast", ["input_ids"], [name], to=kinds.FLOAT) for name in logits],
        "wrong",
        [make.make_tensor_value_info(name, kinds.INT64, ["B", "S"]) for name in peers.INPUTS],
        [make.make_tensor_value_info(name, kinds.FLOAT, ["B", "S"]) for name in logits],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    file = tmp_path / "kept" / "embedded" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(model.SerializeToString())
    arguments = ["--rounds", "1", "--dtypes", "float32", "--sizes", "2", "--keep"]
    kept = str(tmp_path / "kept")
    assert bench.main(["squad", "--data", str(squad_file), *arguments, kept]) == 1
    shown = capsys.readouterr()
    assert "| float32 | ONNX Runtime, by 2 |" in shown.out
    last = shown.err.splitlines()[-1]
    assert last == "bench: error: 3 of 3 texts of ONNX Runtime, by 2 differ in float32"


@pytest.mark.slow
def test_both_sides_give_the_same_predictions(squad_file, tmp_path, capsys):
    needed = ("onnxruntime", "onnx", "torch", "transformers")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        pytest.skip(f"ONNX Runtime's model cannot be made here: no {', '.join(missing)}")
    file = tmp_path / "numbers.json"
    arguments = ["--rounds", "2", "--dtypes", "float32", "--questions", "2", "--sizes", "1,2"]
    assert bench.main(["squad", "--data", str(squad_file), *arguments, "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "2 of the 3 questions of small.json" in shown
    written = json.loads(file.read_text())
    ours, *others = written["series"]
    assert (ours["library"], ours["batch"]) == ("minibert", "-")
    assert sorted(one["batch"] for one in others) == [1, 2]
    assert len(written["peaks"]) == 2
    for one in written["series"]:
        assert one["different"] == 0
        assert len(one["seconds"]) == len(one["encoder"]) == 2
        assert all(a > b > 0 for a, b in zip(one["seconds"], one["encoder"], strict=True))
        assert (one["exact"], one["f1"]) == (ours["exact"], ours["f1"])
        padding = one["computed"] - written["tokens"]
        assert padding > 0 if one["batch"] == 2 else padding == 0
