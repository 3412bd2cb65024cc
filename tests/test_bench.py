"""The benchmark's arithmetic, tables, inputs and processes.  Nothing here looks at a time."""

import argparse
import doctest
import importlib.util
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bench
from benchmark import (
    cpu,
    cuda_kernels,
    cuda_results,
    cuda_side,
    cuda_sums,
    gemm,
    options,
    peers,
    results,
    roofline,
    squad,
    tables,
    worker,
    workload,
)
from benchmark import squad_side as side
from benchmark.processes import BenchError, Worker, run_process

from minibert.config import BertConfig
from minibert.encoder import qa_logits
from minibert.model import load_model
from minibert.squad.decoders import SquadSettings
from minibert.squad.evaluation import predict
from minibert.squad.files import Gold, SquadData, SquadQuestion
from minibert.tokenizer import Tokens
from minibert.windows import Window

CASE = results.Case("6/384/12", "384", 2)


def series(library, dtype, seconds, case=CASE, size=1):
    found = results.Series(case, peers.peer_of(library, dtype), size, 0.0)
    found.seconds = list(seconds)
    found.cores = [1.0 for _ in seconds]
    return found


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["gpu"], "invalid choice: 'gpu'"),
        (["cpu", "--shapes", "6/384"], "'6/384'"),
        (["cpu", "--shapes", "6/384/11"], "no shape: '6/384/11'"),
        (["cpu", "--work", "squad"], "'squad'"),
        (["cpu", "--work", "513"], "no length of a window: '513'"),
        (["cpu", "--dtypes", "float16"], "must be of float32, bfloat16, int8"),
        (
            ["cpu", "--peers", "openvino,jax"],
            "must be of openvino, onnxruntime,",
        ),
        (["cpu", "--threads", "0"], "this process may use"),
        (["cpu", "--rounds", "0"], "must be at least 1"),
        (["startup", "--runs", "0"], "must be at least 1"),
        (["startup", "--model", "no/such/folder"], "there is no folder"),
        (["squad"], "--data"),
        (["squad", "--data", "x", "--questions", "0"], "must be at least 1"),
        (["squad", "--data", "x", "--questions", "few"], "'few'"),
        (["squad", "--data", "x", "--rounds", "0"], "must be at least 1"),
        (["squad", "--data", "x", "--dtypes", "bfloat16"], "must be of float32, int8"),
        (["squad", "--data", "x", "--threads", "0"], "this process may use"),
        (["squad", "--data", "x", "--sizes", "8,all"], "'8,all'"),
        (["cuda", "--shapes", "base,huge"], "'base,huge'"),
        (["cuda", "--shapes", "2/128/3"], "no shape: '2/128/3'"),
        (["cuda", "--dtypes", "int8"], "must be of float32, float16, bfloat16"),
        (["cuda", "--work", "gemm"], "must be of kernels, start, models"),
        (["cuda", "--rounds", "0"], "must be at least 1"),
        (["cuda", "--seconds", "0"], "must be at least 1"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_lists_of_options_are_read_one_by_one():
    assert options.listed(cpu.work_name)("384,mixed8,start") == ["384", "mixed8", "start"]
    with pytest.raises(argparse.ArgumentTypeError, match="'1,two'"):
        options.listed(int)("1,two")


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("cpu", "shapes work dtypes threads peers rounds json keep quick"),
        ("squad", "data questions rounds dtypes threads sizes keep json"),
        ("cuda", "shapes dtypes work rounds seconds no-compile compile-seconds quick keep json"),
    ],
)
def test_every_option_is_in_the_help(command, names, capsys):
    with pytest.raises(SystemExit):
        bench.main([command, "--help"])
    shown = capsys.readouterr().out
    for name in names.split():
        assert f"--{name}" in shown


# ---------------------------------------------------------------- numbers and tables


@pytest.mark.parametrize(
    "room",
    [
        *(gemm, options, roofline, squad, tables, workload),
        *(cuda_kernels, cuda_results, cuda_side, cuda_sums),
    ],
)
def test_examples_in_docstrings_run(room):
    found = doctest.testmod(room)
    assert found.attempted
    assert not found.failed


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    ratio = tables.ratio_of_rounds([2.0, 30.0, 4.0, 3.0, 2.0], [1.0, 10.0, 2.0, 2.0, 2.0])
    assert (ratio.low, ratio.median, ratio.high) == (1.5, 2.0, 2.0)
    assert str(ratio) == "2.00 (1.50-2.00)"
    assert str(tables.ratio_of_rounds([3.0], [2.0])) == "1.50 (1.50-1.50)"
    with pytest.raises(ValueError, match="zip"):
        tables.ratio_of_rounds([1.0, 2.0], [1.0])


def test_figures_have_three_digits_and_a_range():
    assert tables.figures([0.012345]) == "0.0123"
    assert tables.figures([3.0, 1.0, 1000.0]) == "3.00 (1.00-1000)"
    assert tables.figures([]) == tables.NOTHING


def test_a_row_names_the_fastest_peer_of_the_same_precision_and_the_goal():
    measured = [
        series("minibert", "float32", [0.020, 0.020, 0.020]),
        series("openvino", "float32", [0.022, 0.024, 0.026]),
        series("torch", "float32", [0.050, 0.050, 0.050]),
        series("openvino", "int8", [0.001, 0.001, 0.001]),
    ]
    first, second = results.ratio_rows(measured, peers.DTYPES)
    assert first[2:] == [
        *("float32", "OpenVINO float32", "2", "24.0", "20.0"),
        *("1.20 (1.15-1.25)", "1.15", "yes"),
    ]
    assert second[2:] == ["int8", "OpenVINO int8", "2", "1.00", "-", "-", "1.35", "-"]
    assert len(results.RATIO_HEAD) == len(first)


def test_a_peer_that_failed_half_way_is_not_the_best():
    measured = [
        series("minibert", "float32", [0.020, 0.020, 0.020]),
        series("openvino", "float32", [0.010, 0.010]),
        series("torch", "float32", [0.050, 0.050, 0.050]),
    ]
    [row] = results.ratio_rows(measured, peers.DTYPES)
    assert row[3] == "torch float32"


def test_rows_stand_by_shape_and_work_then_threads():
    cases = [
        results.Case(shape, work, threads)
        for threads in (1, 2)
        for shape in ("6/384/12", "2/128/2")
        for work in ("384", "128")
    ]
    shown = results.cases_of([series("torch", "float32", [1.0], case) for case in cases])
    assert shown == [cases[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]


def test_goals_depend_on_the_number_of_threads():
    assert results.goal_of(CASE, "int8") == 1.35
    assert results.goal_of(results.Case("6/384/12", "384", 1), "int8") == 1.3
    assert results.goal_of(results.Case("4/256/4", "384", 1), "int8") is None


def test_all_times_show_the_best_batches_of_each_library():
    case = results.Case("6/384/12", "mixed", 1)
    shown = results.time_table(
        [
            series("minibert", "int8", [0.5], case),
            series("openvino", "int8", [0.7], case, size=8),
            series("openvino", "int8", [0.6], case, size=32),
        ]
    )
    assert shown.splitlines()[-1] == ("| 6/384/12 | 64 mixed windows | 1 | 500 | 600, by 32 |")


def test_only_hopeless_peers_leave_after_the_trial():
    ours = series("minibert", "float32", [9.0, 9.0])
    fast = series("openvino", "float32", [1.0, 5.0])
    near = series("onnxruntime", "float32", [1.2, 1.3])
    slow = series("torch", "float32", [1.3, 1.3])
    other = series("torch", "bfloat16", [8.0, 8.0])
    assert cpu.contenders([ours, fast, near, slow, other]) == [ours, fast, near, other]


def test_differing_answers_are_shown_with_their_libraries():
    notes = list(results.answer_notes({"a": ["x", "y"], "b": ["x", "y"], "c": ["x", "z"]}))
    assert notes == ["Answers of a, b: 'x' and 'y'.", "Answers of c: 'x' and 'z'."]
    assert list(results.answer_notes({"a": ["x"], "b": ["x"]})) == ["Answers of all: 'x'."]


# ---------------------------------------------------------------- inputs


def test_mixed_lengths_are_as_in_squad_and_always_the_same():
    lengths = workload.window_lengths("mixed")
    assert len(lengths) == 64
    assert min(lengths) >= 40
    assert max(lengths) <= 384
    assert 150 < np.mean(lengths) < 170
    assert 45 < np.std(lengths) < 70
    assert workload.window_lengths("mixed8") == lengths[:8]
    assert [len(window.ids) for window in workload.make_windows("mixed")] == lengths


def test_padded_batches_hold_every_window_once_beside_others_of_its_length():
    windows = workload.make_windows("mixed")
    batches = list(workload.pad_sorted(windows, 8))
    assert sorted(row for rows, _ in batches for row in rows) == list(range(64))
    longest = [batch[0].shape[1] for _, batch in batches]
    assert longest == sorted(longest, reverse=True)
    for rows, (ids, mask, types) in batches:
        for place, row in enumerate(rows):
            n = len(windows[row].ids)
            assert mask[place].sum() == n
            assert np.array_equal(ids[place, :n], windows[row].ids)
            assert np.array_equal(types[place, :n], windows[row].types)
            assert not ids[place, n:].any()


def test_packed_batches_hold_the_windows_in_order():
    windows = workload.make_windows("mixed")
    batches = list(workload.pack_in_order(windows))
    assert [row for rows, _ in batches for row in rows] == list(range(64))
    ids = np.concatenate([batch.input_ids for _, batch in batches])
    assert np.array_equal(ids, np.concatenate([window.ids for window in windows]))
    for _, batch in batches:
        assert batch.cu_seqlens[-1] == len(batch.input_ids) == len(batch.position_ids)
        assert not batch.position_ids[batch.cu_seqlens[:-1]].any()


@pytest.mark.parametrize("size", [1, 3, 64])
def test_logits_come_back_in_the_order_of_the_windows(size):
    windows = workload.make_windows("mixed10")
    lengths = [len(window.ids) for window in windows]
    for peer, run in (
        (peers.peer_of("torch", "float32"), lambda batch: (batch[0], batch[2])),
        (
            peers.peer_of("minibert", "float32"),
            lambda batch: (batch.input_ids, batch.token_type_ids),
        ),
    ):
        batches = worker.make_batches(peer, windows, size)
        found = worker.window_logits(run, peer, batches, lengths)
        for window, (start, end) in zip(windows, found, strict=True):
            assert np.array_equal(start, window.ids)
            assert np.array_equal(end, window.types)


# ---------------------------------------------------------------- GEMM and the roofline


def fake_measure(dtype, num_threads, shape=None):
    if dtype == "bfloat16":
        raise ValueError("this processor has no such instruction")
    peak = {"float32": 2.0e11, "int8": 8.0e11}[dtype] * num_threads
    return peak if shape is None else peak * (0.9 if shape[0] == 384 else 0.5)


@pytest.fixture
def measured():
    shapes = [workload.Shape.parse("2/128/2"), workload.Shape.parse("6/384/12")]
    rates = gemm.gemm_rates(fake_measure, 2, shapes)
    return {"rates": rates, "bandwidths": {"cache": 2e11, "memory": 3e10}}


def test_shares_are_of_the_peak_of_the_same_dtype(measured):
    lines = gemm.gemm_shares(measured).splitlines()
    assert lines[2] == "| peak, registers only | 400 | 100% | - | - | 1600 | 100% |"
    assert lines[3] == "| 384 x 128 x 384 | 360 | 90% | - | - | 1440 | 90% |"
    assert len(lines) == 2 + 1 + 16


def test_the_roofline_is_well_formed_and_every_point_is_inside(measured):
    root = ElementTree.fromstring(roofline.roofline(measured, 'A "fast" <machine> & 2 threads'))
    name = "{http://www.w3.org/2000/svg}"
    points = root.findall(f"{name}circle")
    assert len(points) == 2 * 16
    for point in points:
        assert roofline.LEFT <= float(point.get("cx")) <= roofline.WIDTH - roofline.RIGHT
        assert roofline.TOP <= float(point.get("cy")) <= roofline.HEIGHT - roofline.BOTTOM
    assert root.find(f"{name}title").text == 'A "fast" <machine> & 2 threads'
    assert "prefers-color-scheme: dark" in root.find(f"{name}style").text


# ---------------------------------------------------------------- processes


def test_a_failed_process_is_told_with_its_last_line():
    with pytest.raises(BenchError, match=r"it: failed with status 1: KeyError: 'x'"):
        run_process([sys.executable, "-c", "{}['x']"], "it")


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """A folder with a random model of one narrow layer, as the benchmark writes it."""
    folder = tmp_path_factory.mktemp("bench") / "1-32-2"
    workload.write_model(folder, workload.Shape.parse("1/32/2"))
    return folder


def test_a_worker_loads_checks_and_times_minibert(smallest):
    process = Worker("ours", 1, "serve", "minibert", "float32", 1)
    try:
        with pytest.raises(BenchError, match="ours: ValueError: no model is loaded"):
            process.ask(do="time", work="16", size=1, budget=0)
        assert process.ask(do="load", folder=str(smallest)) == {}
        case = results.Case("1/32/2", "mixed4", 1)
        assert cpu.check(case, smallest, process, 1) < cpu.TOLERANCE
        found = process.ask(do="time", work="mixed4", size=1, budget=0)
        assert set(found) == {"seconds", "waited", "cores"}
        process.process.kill()
        with pytest.raises(BenchError, match="ours: ended with status"):
            process.ask(do="load", folder=str(smallest))
    finally:
        process.close()


# ---------------------------------------------------------------- answering a SQuAD file

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


def squad_series(library, dtype, seconds, texts, size=1):
    return squad.Series(
        peers.peer_of(library, dtype),
        size,
        seconds=list(seconds),
        encoder=[0.5 * value for value in seconds],
        cores=[2.0 for _ in seconds],
        computed=8 * size,
        lengths=[3, 1],
        texts=list(texts),
    )


def found_of(series, whole=4, threads=2):
    return squad.Found(
        data=SquadData("dev.json", "", questions_of(whole), with_null=True),
        questions=questions_of(2),
        config=CONFIG,
        attention={"float32": "float32", "int8": "float32"},
        threads=threads,
        series=list(series),
        peaks=[{"float32": 296.0}, {"float32": 592.0}],
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
    assert list(squad.slower_notes(squad_found)) == [
        "float32, ONNX Runtime, by 8: 6.00 s; by 32: 4.50 s."
    ]


@pytest.mark.parametrize(("seconds", "reached"), [(0.020, "yes"), (0.021, "no")])
def test_the_goal_is_for_the_whole_dev_set_in_float32_on_two_cores(seconds, reached):
    ours = squad_series("minibert", "float32", [seconds], ["no", "no"])
    small = squad_series("minibert", "int8", [seconds], ["no", "no"])
    first, second = squad.whole_rows(found_of([ours, small], whole=11_873))
    assert first[-2:] == ["120", reached]
    assert second[-2:] == ["-", "-"]
    assert first[2] == second[2] == tables.three_digits(seconds / 2 * 11_873)
    for other in (found_of([ours], whole=10_570), found_of([ours], whole=11_873, threads=4)):
        assert squad.whole_rows(other)[0][-2:] == ["-", "-"]


def test_the_floor_is_the_time_of_the_multiplications_at_the_peak_of_each_round(squad_found):
    assert sum(squad.operations(CONFIG, [3, 1])) == 336
    [series] = squad_found.by_dtype()["int8"]
    assert squad.floors(squad_found, series) == []
    # Attention of int8 models multiplies in float32 here.
    squad_found.peaks = [{"float32": 8.0, "int8": 16.0}, {"float32": 8.0, "int8": 32.0}]
    assert squad.floors(squad_found, series) == [256 / 16 + 80 / 8, 256 / 32 + 80 / 8]
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


@pytest.mark.parametrize("size", [1, 3, 64])
def test_padded_batches_give_each_window_its_own_logits(size):
    nothing = Tokens("", *(np.zeros(0, np.int32),) * 3)
    windows = [
        Window(inputs.ids, inputs.types, nothing, 0, 0, 0)
        for inputs in workload.make_windows("mixed10")
    ]

    def run(batch):
        ids, mask, types = batch
        return ids * mask.sum(1, keepdims=True), types + mask

    meter = side.Meter()
    logits = side.padded_logits(side.metered_run(run, meter), windows, size)
    for window, (start, end) in zip(windows, logits, strict=True):
        assert np.array_equal(start, window.input_ids * len(window))
        assert np.array_equal(end, window.token_type_ids + 1)
    lengths = sorted(map(len, windows), reverse=True)
    assert meter.lengths == lengths
    groups = [lengths[at : at + size] for at in range(0, len(lengths), size)]
    assert meter.computed == sum(len(group) * max(group) for group in groups)


@pytest.mark.slow
def test_a_metered_model_predicts_the_same_and_pads_nothing():
    model = load_model(device="reference")
    golds = (Gold("x"),)
    asked = [SquadQuestion(question, question, text, golds, 0) for text, question, _ in ASKED]
    meter = side.Meter()
    measured = list(predict(side.metered_model(model, meter), asked, SquadSettings()))
    assert measured == list(predict(model, asked, SquadSettings()))
    assert measured[0][1].text == "Gustave Eiffel"
    assert len(meter.lengths) == len(asked)
    assert meter.computed == sum(meter.lengths)
    assert meter.seconds > 0

    def run(batch):  # the same model as a peer: one window after the other
        ids, mask, types = batch
        logits = np.zeros((2, *ids.shape), np.float32)
        for row, n in enumerate(mask.sum(1)):
            window = workload.Window(ids[row, :n], types[row, :n])
            [(_, packed)] = workload.pack_in_order([window])
            logits[:, row, :n] = qa_logits(packed, model.weights, model.config, model.kernels)
        return tuple(logits)

    texts = side.predict_padded(model, run, asked, SquadSettings(), 2)
    assert texts == [answer.text for _, answer in measured]


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


def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(squad_file, capsys):
    wanted = ["--json", "no/such/folder/numbers.json"]
    assert bench.main(["squad", "--data", str(squad_file), *wanted]) == 1
    assert "there is no folder 'no/such/folder'" in capsys.readouterr().err


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
        for name in ("windows", "tokens", "operations", "exact", "f1"):
            assert one[name] == ours[name]
        padded = one["batch"] == 2
        assert one["computed"] > one["tokens"] if padded else one["computed"] == one["tokens"]
