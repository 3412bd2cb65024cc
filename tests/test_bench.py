"""The benchmark's arithmetic, tables, inputs and processes.  Nothing here looks at a time."""

import argparse
import doctest
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bench
from benchmark import cpu, gemm, options, peers, results, roofline, tables, worker, workload
from benchmark.processes import BenchError, Worker, run_process

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


def test_every_option_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        bench.main(["cpu", "--help"])
    shown = capsys.readouterr().out
    for name in ("shapes", "work", "dtypes", "threads", "peers", "rounds", "json", "keep", "quick"):
        assert f"--{name}" in shown


# ---------------------------------------------------------------- numbers and tables


@pytest.mark.parametrize("room", [gemm, options, roofline, tables, workload])
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
