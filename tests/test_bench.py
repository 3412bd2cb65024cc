"""The benchmark's arithmetic, tables, inputs and processes.  Nothing here looks at a time."""

import argparse
import doctest
import importlib.util
import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bench
import emulated_gpu
from benchmark import (
    cpu,
    cuda,
    cuda_compile,
    cuda_kernels,
    cuda_models,
    cuda_processes,
    cuda_results,
    cuda_side,
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
from minibert.decoders import SquadSettings
from minibert.encoder import qa_logits
from minibert.evaluation import predict
from minibert.kernels.backend import table
from minibert.kernels.cuda.functions import Kernels, gemm_recipe
from minibert.model import load_model
from minibert.squad import Gold, SquadData, SquadQuestion
from minibert.tokenizer import Tokens
from minibert.weights import expected_shapes
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
        *(cuda_kernels, cuda_results, cuda_side),
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


# ---------------------------------------------------------------- GPUs: sums


def test_operations_of_a_model_are_those_of_its_matrices_and_of_every_pair_of_tokens():
    shape, lengths = workload.Shape.parse("2/8/2"), workload.window_lengths("mixed3")
    config = cuda_results.config_of(shape)
    matrices = [
        size
        for name, size in expected_shapes(config).items()
        if len(size) == 2 and "embeddings" not in name
    ]
    adds = sum(sum(lengths) * out * into for out, into in matrices)
    for n in lengths:
        for _layer in range(shape.layers):
            for _head in range(shape.heads):
                scores = [shape.hidden // shape.heads for _query in range(n) for _key in range(n)]
                adds += 2 * sum(scores)  # and as many to weigh the values
    assert cuda_results.useful_operations("2/8/2", "mixed3") == 2 * adds


def test_operations_of_single_kernels_are_counted_one_by_one():
    tokens, into, out = 3, 4, 5
    adds = sum(1 for _ in np.ndindex(tokens, into, out))
    assert cuda_results.product_operations(tokens, into, out) == 2 * adds
    lengths, width = [3, 2], 6
    scores = sum(1 for n in lengths for _ in np.ndindex(n, n, width))
    values = sum(1 for n in lengths for _ in np.ndindex(n, width, n))
    assert cuda_results.attention_operations(lengths, width) == 2 * (scores + values)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 4), (np.float16, 2)])
def test_bytes_of_row_kernels_are_those_of_their_arrays(dtype, size):
    tokens, width, splits = 7, 16, 3
    x = np.zeros((tokens, width), dtype)
    ids, logits = np.zeros((3, tokens), np.int32), np.zeros((2, tokens), np.float32)
    parts = np.zeros((splits, tokens, width), np.float32)
    moved = {
        "embed": ids.nbytes + 2 * x.nbytes,
        "norm": 2 * x.nbytes,
        "add_norm": parts.nbytes + 2 * x.nbytes,
        "span_logits": x.nbytes + logits.nbytes,
    }
    assert tuple(moved) == cuda_kernels.ROWS
    for name, count in moved.items():
        assert cuda_results.row_bytes(name, tokens, width, size, splits) == count


# ---------------------------------------------------------------- GPUs: tables and goals


def gpu_series(kind, dtype, seconds, work="384", batches="", **more):
    return cuda_results.Series("tiny", work, kind, dtype, batches, list(seconds), **more)


def gemm_timed(side, rate, **more):
    found = cuda_results.Timed("gemm", "float16", "768 -> 768", side, 1.0, **more)
    found.seconds = [1 / rate]
    return found


@pytest.fixture
def gpu_found():
    many = "mixed4"  # 684 tokens
    return cuda_results.Found(
        series=[
            gpu_series("minibert", "float16", [1e-4, 1e-4], difference=0.0012),
            gpu_series("eager", "float16", [4e-4, 6e-4]),
            gpu_series("sdpa", "float16", [], failure="CUDA error | too bad " + 99 * "."),
            gpu_series("compile", "float16", [0.99e-4, 1.00e-4]),
            gpu_series("minibert", "float16", [1.0, 1.0], many, "packed"),
            gpu_series("read", "float16", [1.0, 1.5], many, "read"),
            gpu_series("sdpa", "float16", [2.0, 2.0], many, "sorted by 32"),
            gpu_series("sdpa", "float16", [1.0], many, "unsorted by 32"),
            gpu_series("eager", "float16", [4.0, 4.0], many, "sorted by 128"),
        ],
        ceilings={"float16": [2e12], "copy": [1e12]},
    )


def test_a_row_of_latencies_has_the_reason_of_a_failure_in_its_cell(gpu_found):
    [row] = cuda_results.latency_rows(gpu_found, "tiny", ["float16"])
    assert len(row) == len(cuda_results.LATENCY_HEAD)
    assert row[:3] == ["float16", "100 (100-100)", "500 (400-600)"]
    assert row[3].startswith("CUDA error / too bad ...")
    assert len(row[3]) == cuda_results.LONGEST_REASON
    assert row[5:] == ["5.00 (4.50-5.50)", "-", "0.99 (0.99-1.00)", "0.001"]


def test_a_row_of_throughput_counts_real_tokens_and_shows_the_best_batches(gpu_found):
    rows = cuda_results.throughput_rows(gpu_found, "tiny", "mixed4", ["float16", "float32"])
    assert [row[1:3] for row in rows] == [
        ["minibert", "packed"],
        ["minibert, Model.read", "read"],
        ["torch eager", "sorted by 128"],
        ["torch sdpa", "sorted by 32"],  # not the one that left after the first round
    ]
    ours, read, _, sdpa = rows
    assert len(ours) == len(cuda_results.THROUGHPUT_HEAD)
    useful = cuda_results.useful_operations("tiny", "mixed4")
    assert ours[3:] == [
        *("4.00 (4.00-4.00)", "684", tables.three_digits(useful / 1e12), f"{useful / 2e12:.0%}"),
        *("-", "-"),
    ]
    assert (read[7], sdpa[7]) == ("1.25 (1.12-1.38)", "2.00 (2.00-2.00)")
    assert list(cuda_results.batch_notes(gpu_found, "tiny", "mixed4")) == [
        "torch sdpa float16, ms: sorted by 32 2000 (2000-2000); unsorted by 32 1000."
    ]


def test_without_a_ceiling_there_is_no_share():
    rows = cuda_results.ceiling_rows(cuda_results.Found(), ["float16"])
    assert [row[1] for row in rows] == ["not measured", "not measured"]
    one = gemm_timed("128x128", 0.5e12)
    assert cuda_results.rate_cell(one, None) == "0.500"
    assert cuda_results.rate_cell(one, 1e12) == "0.500, 50%"


def test_a_table_of_products_has_a_column_a_tile_and_a_star_at_the_default(gpu_found):
    gpu_found.kernels = [
        gemm_timed("128x128", 3.6e14, default=True),
        gemm_timed("128x256", 1.0, failure="too much shared memory"),
        gemm_timed("torch", 7e14),
    ]
    gpu_found.ceilings["float16"] = [7.2e14]
    head, rows = cuda_results.gemm_table(gpu_found, "float16")
    assert head == ["float16", "128x128", "128x256", "torch"]
    assert rows == [["768 -> 768", "360, 50% *", "too much shared memory", "700, 97%"]]


def test_row_kernels_are_measured_by_the_copy(gpu_found):
    gpu_found.kernels = [
        cuda_results.Timed("rows", "float16", "norm", "minibert", 5e8, seconds=[1e-3])
    ]
    assert cuda_results.row_rows(gpu_found, ["float16"]) == [
        ["norm", "float16", "1000", "500", "50%"]
    ]


def test_every_goal_has_its_figure(gpu_found):
    gpu_found.kernels = [
        gemm_timed("128x128", 3.4e14, default=True),
        gemm_timed("128x256", 3.6e14),
        gemm_timed("torch", 7e14),
    ]
    gpu_found.starts = {"float16": [0.5, 0.7, 0.6]}
    rows = cuda_results.goal_rows(gpu_found, ["tiny", "base"], "mixed4")
    assert [row[2:] for row in rows] == [
        ["0.99 (0.99-1.00) times as fast", "missed"],  # 0.995
        ["2.00 (2.00-2.00) times torch sdpa, sorted by 32", "met"],
        ["340 with 128x128 (best: 360 with 128x256)", "missed"],
        ["0.600 (0.500-0.700) s", "met"],
    ]
    assert {len(row) for row in rows} == {len(cuda_results.GOAL_HEAD)}
    gpu_found.series[3].failure = gpu_found.series[4].failure = "lost"
    gpu_found.kernels[0].failure = "lost"
    rows = cuda_results.goal_rows(gpu_found, ["tiny"], "mixed4")
    assert [row[2:] for row in rows[:3]] == 3 * [["not measured", "-"]]


def test_only_the_fastest_batches_of_torch_stay_after_the_trial():
    series = [
        gpu_series("minibert", "float16", [9.0], "mixed4", "packed"),
        gpu_series("sdpa", "float16", [2.0], "mixed4", "sorted by 32"),
        gpu_series("sdpa", "float16", [1.0], "mixed4", "unsorted by 32"),
        gpu_series("sdpa", "float32", [3.0], "mixed4", "sorted by 32"),
        gpu_series("eager", "float32", [1.0], "mixed4", "sorted by 32", failure="lost"),
    ]
    assert cuda_models.contenders(series) == [series[0], series[2], series[3]]


def test_all_numbers_of_a_gpu_are_written(gpu_found, tmp_path):
    cuda_results.write_json(tmp_path / "n.json", gpu_found, {"keep": tmp_path})
    written = json.loads((tmp_path / "n.json").read_text())
    assert written["series"][1]["seconds"] == [4e-4, 6e-4]
    assert written["settings"] == {"keep": str(tmp_path)}


# ---------------------------------------------------------------- GPUs: the command


def test_without_a_gpu_the_command_says_why_in_one_line(monkeypatch, capsys):
    def missing():
        raise OSError("libcuda.so.1 is not here")

    monkeypatch.setattr("minibert.kernels.cuda.driver.find_library", missing)
    assert bench.main(["cuda", "--quick"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    assert line.startswith("bench: error: there is no NVIDIA driver (libcuda.so.1 is not here)")


def test_all_kernels_of_the_tables_and_of_the_models_are_compiled_ahead():
    tables_ = cuda_compile.recipes_of_tables(cuda_results.DTYPES)
    base = cuda_compile.recipes_of_models([cuda_results.shape_of("base")], cuda_results.DTYPES)
    assert set(base) < set(tables_)
    assert len(set(tables_)) == len(tables_)
    wanted = {gemm_recipe("float16", *end, (128, 256, (2, 4), 4)) for end in ENDS}
    assert wanted < set(tables_)


ENDS = [("store", ""), ("store", "gelu"), ("residual", "")]


class FakeSide(cuda_processes.Side):
    """A process that answers with the number of its messages, fails, or sleeps."""

    code = """
import json, sys, time
for number, line in enumerate(sys.stdin):
    message = json.loads(line)
    answer = {"number": number, "error": message["say"]} if "say" in message else {"number": number}
    time.sleep(message.get("sleep", 0))
    if message["do"] == "die":
        raise SystemExit("it was too much")
    print(json.dumps(answer), flush=True)
"""

    @property
    def command(self):
        return [sys.executable, "-c", self.code]


@pytest.fixture
def fake():
    process = FakeSide("fake", cuda_processes.Clock(100))
    yield process
    process.stop()


def test_a_process_goes_on_after_an_error_and_is_started_anew_when_its_gpu_is_lost(fake):
    assert fake.get(do="load", folder="x") == {"number": 0}
    with pytest.raises(BenchError, match=r"^no such kernel$"):
        fake.get(do="time", say="no such kernel")
    assert fake.get(do="time") == {"number": 2}
    with pytest.raises(BenchError, match="CUDA error 700"):
        fake.get(do="time", say="cuX failed with CUDA error 700")
    assert fake.get(do="time") == {"number": 1}  # after the model, which it was given again
    with pytest.raises(BenchError, match="ended with status 1: it was too much"):
        fake.get(do="die")
    assert fake.get(do="load", folder="y") == {"number": 0}
    assert fake.starts == 3


def test_a_process_that_hangs_is_ended_and_given_up_after_a_few_times(fake):
    with pytest.raises(BenchError, match="no answer within 0 s"):
        fake.get(0.3, do="time", sleep=100)
    assert not fake.running
    fake.starts = cuda_processes.RESTARTS + 1
    with pytest.raises(BenchError, match="given up: no answer within 0 s"):
        fake.get(do="time")


def test_nothing_begins_when_no_time_is_left(fake):
    fake.clock = cuda_processes.Clock(0)
    with pytest.raises(BenchError, match="no time was left"):
        fake.get(do="time")
    assert fake.starts == 0


def test_a_compiler_process_answers_with_its_error():
    process = cuda_processes.Side("compiler", cuda_processes.Clock(100), "build")
    try:
        with pytest.raises(BenchError, match="no_such|numba-cuda is missing"):
            process.get(do="build", recipe=["no_such", "gemm", []], capability=[9, 0])
        assert process.running
    finally:
        process.stop()


# ---------------------------------------------------------------- GPUs: what the processes do


def ask_logits(models, folder, tmp_path, kind, dtype, work, batches=""):
    file = tmp_path / "logits.npy"
    models.answer({"do": "load", "folder": str(folder)})
    question = {"kind": kind, "dtype": dtype, "work": work, "batches": batches}
    assert models.answer({"do": "check", **question, "save": str(file)}) == {}
    assert models.answer({"do": "time", **question, "budget": 0})["seconds"] > 0
    return np.load(file)


def on_reference(folder, dtype):
    return load_model(folder, device="reference")


@pytest.mark.parametrize(
    ("kind", "work"), [("minibert", "9"), ("minibert", "mixed4"), ("read", "mixed4")]
)
def test_our_side_gives_the_logits_of_all_windows_in_order(smallest, tmp_path, kind, work):
    models = cuda_side.Ours(on_reference)
    with pytest.raises(ValueError, match="no model is loaded"):
        models.answer({"do": "time", "kind": kind, "dtype": "", "work": "9", "batches": ""})
    found = ask_logits(models, smallest, tmp_path, kind, "float32", work)
    assert np.abs(found - cpu.expected_logits(smallest, work)).max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "work", "batches"),
    [
        *(("eager", "9", ""), ("sdpa", "9", "")),
        *(("sdpa", "mixed4", "sorted by 32"), ("eager", "mixed4", "unsorted by 32")),
    ],
)
def test_torchs_side_gives_the_same_logits(smallest, tmp_path, kind, work, batches):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    models = cuda_side.Peers("cpu")
    found = ask_logits(models, smallest, tmp_path, kind, "float32", work, batches)
    assert np.abs(found - cpu.expected_logits(smallest, work)).max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("copy", [64]), ("product", [2, 3, 4]), ("linear", [2, 3, 4]), ("attention", [1, 2, 3, 4])],
)
def test_torchs_side_times_single_kernels(kind, sizes):
    pytest.importorskip("torch")
    models = cuda_side.Peers("cpu")
    kernel = {"kind": kind, "dtype": "float32", "sizes": sizes, "sets": 2}
    assert models.answer({"do": "single", "kernel": kernel, "times": 3})["seconds"] > 0
    assert models.answer({"do": "clear"}) == {}


def test_a_batch_is_begun_before_the_one_before_it_is_waited_for():
    seen = []

    def begin(group):
        seen.append(f"begin {group}")

        def wait():
            seen.append(f"wait {group}")
            return [group]

        return wait

    assert cuda_side.two_in_flight(begin, [1, 2, 3]) == [1, 2, 3]
    assert seen == ["begin 1", "begin 2", "wait 1", "begin 3", "wait 2", "wait 3"]
    assert cuda_side.two_in_flight(begin, []) == []


@pytest.fixture(scope="module")
def emulated():
    return emulated_gpu.EmulatedGpu(races=False).device()


def test_our_side_runs_a_whole_model_on_a_gpu(emulated, tmp_path):
    folder = tmp_path / "1-64-1"
    workload.write_model(folder, workload.Shape.parse("1/64/1"))

    def on_gpu(folder, dtype):
        backend = table("cuda", Kernels(emulated, dtype, emulated_gpu.build))
        model = load_model(folder, device="reference")
        return replace(model, kernels=backend, weights=backend.prepare(model.weights))

    found = ask_logits(cuda_side.Ours(on_gpu), folder, tmp_path, "minibert", "float16", "5")
    difference = np.abs(found - cpu.expected_logits(folder, "5")).max()
    assert 0 < difference < 0.02


@pytest.mark.parametrize(
    "kernel",
    [
        {
            **{"kind": "gemm", "dtype": "float16", "tile": [64, 64, [2, 2], 4], "tokens": 3},
            **{"into": 32, "out": 8, "end": "residual", "activation": ""},
        },
        {
            **{"kind": "gemm", "dtype": "bfloat16", "tile": [64, 64, [2, 2], 4], "tokens": 3},
            **{"into": 32, "out": 8, "end": "store", "activation": "gelu"},
        },
        {
            **{"kind": "attention", "dtype": "float16", "tokens": 5, "length": 3},
            **{"heads": 1, "size": 32},
        },
        *(
            {"kind": "rows", "dtype": "float16", "name": name, "tokens": 3, "width": 8, "table": 9}
            for name in cuda_kernels.ROWS
        ),
    ],
    ids=str,
)
def test_single_kernels_are_right_before_they_are_timed(emulated, kernel):
    singles = cuda_kernels.Singles(emulated, emulated_gpu.build, cache=1)
    answer = singles.answer({"do": "time", "kernel": json.loads(json.dumps(kernel))})
    assert answer["seconds"] > 0
    if kernel["kind"] == "rows":
        assert answer["difference"] is None
    else:
        assert 0 < answer["difference"] < cuda_results.KERNEL_LIMITS[kernel["dtype"]]
    assert singles.answer({"do": "clear"}) == {}
    assert not singles.ready


def test_a_wrong_kernel_is_seen():
    truth = np.ones((4, 4), np.float32)
    assert cuda_kernels.relative_error(truth, truth) == 0
    unwritten = truth.copy()
    unwritten[3, 3] = np.nan
    found = cuda_results.Found()
    args = argparse.Namespace(rounds=2, json=None)

    class Answers:
        def get(self, **message):
            return {"seconds": 1.0, "difference": cuda_kernels.relative_error(unwritten, truth)}

    part = cuda_processes.Bench(args, None, None, found, None, sides={"kernels": Answers()})
    one = gemm_timed("128x128", 1.0)
    cuda.time_together(part, [(one, "kernels", {"do": "time"})])
    assert one.failure == "WRONG, off by nan"
    assert found.wrong == ["768 -> 768 float16, 128x128: WRONG, off by nan"]
