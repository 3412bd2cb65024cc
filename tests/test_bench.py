"""The benchmark's arithmetic, tables, inputs and processes.  Nothing here looks at a time."""

import contextlib
import doctest
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bench
import emulated_gpu
from benchmark import (
    cpu,
    cuda,
    gemm,
    measure,
    options,
    peers,
    results,
    roofline,
    scale,
    squad,
    tables,
    worker,
    workload,
)
from benchmark.processes import STARTS, BenchError, Clock, Worker, run_process

from minibert.kernels.cuda.measure import rate
from minibert.model import load_model

CASE = results.Case("384", "6/384/12", 2)


def series(library, dtype, seconds, case=CASE, size=0, **numbers):
    found = results.Series(case, peers.peer_of(library, dtype), size)
    found.numbers = {"seconds": list(seconds), **numbers}
    found.facts = {"difference": 0.0012}
    return found


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["gpu"], "invalid choice: 'gpu'"),
        (["cpu", "--shapes", "6/384"], "'6/384'"),
        (["cpu", "--shapes", "6/384/11"], "no shape: '6/384/11'"),
        (["cpu", "--shapes", "t5/6/384/12"], "no shape: 't5/6/384/12'"),
        (["cpu", "--work", "squad"], "'squad'"),
        (["cpu", "--work", "513"], "no length of a window: '513'"),
        (["cpu", "--dtypes", "float16"], "must be of float32, bfloat16, int8"),
        (
            ["cpu", "--peers", "openvino,jax"],
            "must be of openvino, onnxruntime,",
        ),
        (["cpu", "--threads", "0"], "this process may use"),
        (["cpu", "--against", "no/such/python"], "there is no program"),
        (["cpu", "--json", "no/such/folder/numbers.json"], "there is no folder 'no/such/folder'"),
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
        (["train", "--dtypes", "int8"], "must be of float32, bfloat16"),
        (["train", "--steps", "11"], "invalid choice: 11"),
        (["train", "--peers", "jax"], "must be of torch, compile, none"),
        (["cuda", "--dtypes", "int8"], "must be of float32, float16, bfloat16"),
        (["cuda", "--work", "start"], "must be of gemm, latency, throughput"),
        (["cuda", "--seconds", "0"], "must be at least 1"),
        (["scale", "--engines", "flink"], "must be of pandas, polars, pyarrow"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- numbers and tables


@pytest.mark.parametrize("room", [gemm, options, peers, roofline, scale, squad, tables, workload])
def test_examples_in_docstrings_run(room):
    found = doctest.testmod(room)
    assert found.attempted
    assert not found.failed


def test_what_a_billion_rows_need_is_worked_out_from_seconds_a_row():
    spent = {"whole": 0.036, "tokeniser": 0.00036, "encoder": 0.027}
    core = {"float32": [{"characters": 2500, "tokens": 360.0, "windows": 1.0, **spent}]}
    *_, row = scale.core_table(core).splitlines()
    assert row == "| 360 | 2,500 | 1 | 27.8 | 10,000 | 1 %, 75 % |"
    (line,) = scale.billion(core)
    for words in (
        "360 tokens are 10,000 core hours: 10.0 hours on 1,000 cores, 400 dollars at 0.04",
        "10,000 tokens and 69 KB of text a second, its tokeniser 1,000,000 tokens",
        "100,000 rows take it 60 minutes",
    ):
        assert words in line


def test_an_engine_that_is_not_here_is_left_out_and_said_so(monkeypatch, capsys):
    monkeypatch.setattr(scale, "packages_of", lambda python: {"minibert-qa": "0.1.0"})
    assert bench.main(["scale", "--parts", "engines", "--engines", "ray1"]) == 0
    assert "Left out: Ray, 1 actor, no ray and pandas and pyarrow." in capsys.readouterr().out


@pytest.mark.slow
def test_an_engine_answers_the_table_and_tells_who_did_it(capsys):
    pytest.importorskip("pyarrow")
    arguments = ["scale", "--parts", "engines", "--engines", "pyarrow", "--rows", "5"]
    assert bench.main([*arguments, "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert "| pyarrow (" in out
    assert "5 rows; answers are equal." in out


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    ratio = tables.ratio_of_rounds([2.0, 30.0, 4.0, 3.0, 2.0], [1.0, 10.0, 2.0, 2.0, 2.0])
    assert (ratio.low, ratio.median, ratio.high) == (1.5, 2.0, 2.0)
    assert str(ratio) == "2.00 (1.50-2.00)"
    assert str(tables.ratio_of_rounds([3.0], [2.0])) == "1.50 (1.50-1.50)"
    with pytest.raises(ValueError, match="zip"):
        tables.ratio_of_rounds([1.0, 2.0], [1.0])


def test_a_row_names_the_fastest_peer_of_the_same_precision():
    measured = [
        series("minibert", "float32", [0.020, 0.020, 0.020]),
        series("openvino", "float32", [0.022, 0.024, 0.026]),
        series("torch", "float32", [0.050, 0.050, 0.050]),
        series("openvino", "int8", [0.001, 0.001, 0.001]),
    ]
    first, second = cpu.ratio_rows(measured, peers.DTYPES)
    assert first[2:] == ["float32", "OpenVINO float32", "2", "24.0", "20.0", "1.20 (1.15-1.25)"]
    assert second[2:] == ["int8", "OpenVINO int8", "2", "1.00", "-", "-"]
    assert len(cpu.RATIO_HEAD) == len(first)


def test_another_minibert_has_a_row_of_its_own_and_is_never_the_best_peer():
    measured = [
        series("minibert", "float32", [0.020, 0.020]),
        series("before", "float32", [0.010, 0.030]),
        series("torch", "float32", [0.050, 0.050]),
    ]
    best, before = cpu.ratio_rows(measured, peers.DTYPES)
    assert best[3] == "torch float32"
    assert before[3:] == ["before float32", "2", "20.0", "20.0", "1.00 (0.75-1.25)"]
    [alone] = cpu.ratio_rows(measured[:2], peers.DTYPES)
    assert alone == before


def test_a_peer_that_failed_half_way_is_not_the_best():
    measured = [
        series("minibert", "float32", [0.020, 0.020, 0.020]),
        series("openvino", "float32", [0.010, 0.010]),
        series("torch", "float32", [0.050, 0.050, 0.050]),
    ]
    [row] = cpu.ratio_rows(measured, peers.DTYPES)
    assert row[3] == "torch float32"


def test_rows_stand_by_shape_and_work_then_threads():
    cases = [
        results.Case(work, shape, threads)
        for threads in (1, 2)
        for shape in ("6/384/12", "2/128/2")
        for work in ("384", "128")
    ]
    shown = results.cases_of([series("torch", "float32", [1.0], case) for case in cases])
    assert shown == [cases[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]


def test_all_times_show_the_best_batches_of_each_library():
    case = results.Case("mixed", "6/384/12", 1)
    shown = cpu.time_table(
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
    before = series("before", "float32", [9.0, 9.0])
    going = [ours, before, fast, near, slow, other]
    assert measure.contenders(going) == [ours, before, fast, near, other]


def test_differing_answers_are_shown_with_their_libraries():
    notes = list(cpu.answer_notes({"a": ["x", "y"], "b": ["x", "y"], "c": ["x", "z"]}))
    assert notes == ["Answers of a, b: 'x' and 'y'.", "Answers of c: 'x' and 'z'."]
    assert list(cpu.answer_notes({"a": ["x"], "b": ["x"]})) == ["Answers of all: 'x'."]


# ---------------------------------------------------------------- inputs


def test_mixed_lengths_are_as_in_squad_and_always_the_same():
    lengths = workload.window_lengths("mixed")
    assert len(lengths) == 64
    assert min(lengths) >= 40
    assert max(lengths) <= 384
    assert 150 < np.mean(lengths) < 170
    assert 45 < np.std(lengths) < 70
    assert workload.window_lengths("mixed8") == lengths[:8]
    assert [len(window.ids) for window in workload.make_inputs("mixed")] == lengths


def test_padded_batches_hold_every_window_once_beside_others_of_its_length():
    windows = workload.make_inputs("mixed")
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


@pytest.mark.parametrize("size", [1, 3, 64])
def test_logits_come_back_in_the_order_of_the_windows(size):
    inputs = workload.make_inputs("mixed10")
    found = worker.padded_job(lambda batch: (batch[0], batch[2]), inputs, size)()
    for window, (start, end) in zip(inputs, found, strict=True):
        assert np.array_equal(start, window.ids)
        assert np.array_equal(end, window.types)


@pytest.fixture(scope="module", params=["1/32/2", "distilbert/1/32/2", "roberta/1/32/2"])
def smallest(request, tmp_path_factory):
    """A folder with a random model of one narrow layer, as the benchmark writes it."""
    folder = tmp_path_factory.mktemp("bench") / request.param.replace("/", "-")
    workload.write_model(folder, workload.Shape.parse(request.param))
    return folder


@pytest.mark.parametrize("work", ["5", "9", "384", "512", "mixed3"])
def test_minibert_is_given_the_same_tokens_as_words(smallest, work):
    model = load_model(smallest, device="reference")
    for one in workload.make_inputs(work):
        [window] = model.windows(one.question, [one.text], max_seq_length=len(one.ids))
        assert np.array_equal(window.input_ids, one.ids)
        types = one.types if model.config.type_vocab_size > 1 else np.zeros_like(one.types)
        assert np.array_equal(window.token_type_ids, types)


# ---------------------------------------------------------------- GEMM and the roofline


def fake_rate(dtype, size):
    if dtype == "bfloat16":
        raise BenchError("this processor has no such instruction")
    peak = {"float32": 4.0e11, "int8": 16.0e11}[dtype]
    return peak if size is None else peak * (0.9 if size[0] == 384 else 0.5)


@pytest.fixture
def measured():
    shapes = gemm.gemm_shapes([workload.Shape.parse(shape) for shape in ("2/128/2", "6/384/12")])
    found = results.Results()
    rates = gemm.gemm_rates(fake_rate, peers.DTYPES, shapes, found)
    assert list(found.notes) == ["this processor has no such instruction"]
    return {"rates": rates, "bandwidths": {"cache": 2e11, "memory": 3e10}}


def test_shares_are_of_the_peak_of_the_same_dtype(measured):
    lines = gemm.gemm_table(measured["rates"], peers.DTYPES).splitlines()
    assert lines[2] == "| peak, registers only | 400 | 100% | - | - | 1600 | 100% |"
    assert lines[3] == "| 384 x 128 x 384 | 360 | 90% | - | - | 1440 | 90% |"
    assert len(lines) == 2 + 1 + 16


def test_without_a_peak_there_is_no_share():
    rates = {"float16": [((8192, 768, 768), 3.5e14)]}
    row = gemm.gemm_table(rates, ["float16"], ("T/s", 1e12)).splitlines()[-1]
    assert row == "| 8192 x 768 x 768 | 350 | - |"


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


def test_a_worker_loads_checks_and_times_minibert(smallest):
    found = results.Results()
    process = Worker("ours", 1, "serve", "minibert", "float32", 1)
    with contextlib.closing(process):
        with pytest.raises(BenchError, match="ours: ValueError: no model is loaded"):
            process.ask(do="time", work="16", size=0, budget=0)
        assert process.ask(do="load", folder=str(smallest), work="16") == {}
        one = series("minibert", "float32", [], results.Case("mixed4", "1/32/2", 1))
        assert measure.check(one, smallest, process, found)
        assert one.facts["difference"] < measure.TOLERANCE
        assert set(measure.visit(one, process)) == {"seconds", "cores", "visits"}
        process.process.kill()
        with pytest.raises(BenchError, match="ours: ended with status"):
            measure.visit(one, process)
        # The next measurement starts another, which is given the same model.
        assert set(measure.visit(one, process)) == {"seconds", "cores", "visits"}


def test_wrong_logits_are_told_and_never_timed(smallest):
    class Wrong:
        name = "torch float32"

        def ask(self, **message):
            logits = measure.expected_logits(smallest, message["work"]) + np.float32(0.002)
            return {"logits": logits.tolist()}

    found = results.Results()
    one = series("torch", "float32", [], results.Case("9", "1/32/2", 1))
    assert not measure.check(one, smallest, Wrong(), found)
    assert found.wrong == ["torch float32 in 1/32/2, 9 tokens, 1 thread: logits off by 0.002"]


class FakeWorker(Worker):
    """A process that answers with the number of its messages, fails, sleeps, or babbles."""

    code = """
import json, sys, time
for number, line in enumerate(sys.stdin):
    message = json.loads(line)
    answer = {"number": number, "error": message["say"]} if "say" in message else {"number": number}
    time.sleep(message.get("sleep", 0))
    if message["do"] == "die":
        raise SystemExit("it was too much")
    print("[1, 2" if message["do"] == "babble" else json.dumps(answer), flush=True)
"""

    def __init__(self, **more):
        super().__init__("fake", 1, **more)
        self.command = [sys.executable, "-c", self.code]


@pytest.fixture
def fake():
    with contextlib.closing(FakeWorker()) as process:
        yield process


def test_a_process_goes_on_after_an_error_and_is_started_anew_when_it_is_lost(fake):
    assert fake.ask(do="load", folder="x") == {"number": 0}
    with pytest.raises(BenchError, match="^fake: no such kernel$"):
        fake.ask(do="time", say="no such kernel")
    assert fake.ask(do="time") == {"number": 2}
    with pytest.raises(BenchError, match="CUDA error 700"):
        fake.ask(do="time", say="cuX failed with CUDA error 700")
    assert fake.ask(do="time") == {"number": 1}  # after the model, which it was given again
    with pytest.raises(BenchError, match="fake: ended with status 1: it was too much"):
        fake.ask(do="die")
    with pytest.raises(BenchError, match=r"fake: no answer but '\[1, 2'"):
        fake.ask(do="babble")
    assert fake.ask(do="load", folder="y") == {"number": 0}
    assert fake.starts == STARTS


def test_a_process_that_hangs_is_ended_and_given_up_after_a_few_times():
    with contextlib.closing(FakeWorker(patience=0.3)) as process:
        with pytest.raises(BenchError, match="fake: no answer within 0 s"):
            process.ask(do="time", sleep=100)
        assert process.process is None
        process.starts = STARTS
        with pytest.raises(BenchError, match="fake: given up: no answer within 0 s"):
            process.ask(do="time")


def test_nothing_begins_when_no_time_is_left():
    process = FakeWorker(clock=Clock(0))
    with pytest.raises(BenchError, match="the time was up"):
        process.ask(do="time")
    assert process.starts == 0


def test_what_fails_is_noted_and_the_others_go_on(tmp_path):
    found = results.Results(file=tmp_path / "numbers.json")
    found.series = [series("minibert", "int8", []), series("torch", "float32", [])]

    def visit(one):
        if one.side.library == "torch":
            raise BenchError("torch float32: no answer within 5 s")
        return {"seconds": 0.5}

    order = measure.random.Random(0)
    assert measure.visit_all(found.series, visit, order, found) == found.series[:1]
    written = json.loads(found.file.read_text())
    assert [one.get("seconds") for one in written["series"]] == [[0.5], []]
    assert written["notes"] == ["torch float32: no answer within 5 s"]


def test_an_interrupted_run_prints_and_keeps_what_was_measured(tmp_path, capsys):
    found = results.Results(file=tmp_path / "numbers.json")
    one = series("minibert", "float32", [])

    def visit(_):
        if one.seconds:
            raise KeyboardInterrupt
        return {"seconds": 0.25}

    def run():
        with found.reported(lambda: ["a table"]):
            found.series = [one]
            for _ in range(2):
                measure.visit_all([one], visit, measure.random.Random(0), found)

    with pytest.raises(KeyboardInterrupt):
        run()
    shown = capsys.readouterr().out
    assert "\n\na table\n" in shown
    assert "- The run was interrupted; this is what was measured until then." in shown
    assert json.loads(found.file.read_text())["series"][0]["seconds"] == [0.25]


# ---------------------------------------------------------------- the GPU


def test_without_a_gpu_the_command_says_why_in_one_line(no_gpu, capsys):
    assert bench.main(["cuda"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    assert line.startswith("bench: error: there is no NVIDIA driver (libcuda.so.1: no such file)")


ONE, MANY = results.Case("384", "2/128/2"), results.Case("mixed4", "2/128/2")


def test_a_row_of_latencies_has_the_ratio_beside_torch_compile():
    measured = [
        series("cuda-minibert", "float16", [1e-4, 1e-4], ONE),
        series("cuda-compile", "float16", [0.99e-4, 1.00e-4], ONE),
        series("cuda-minibert", "float32", [1e-4], ONE),
    ]
    first, second = cuda.latency_rows(measured, ["float16", "float32"])
    assert first == [
        *("2/128/2", "float16", "100 (100-100)", "99.5 (99.0-100)", "0.99 (0.99-1.00)", "0.001"),
    ]
    assert second[2:] == ["100", "-", "-", "0.001"]
    assert len(first) == len(cuda.LATENCY_HEAD)


def test_a_row_of_throughput_counts_real_tokens_and_shows_the_best_batches():
    measured = [
        series("cuda-minibert", "float16", [1.0, 1.0], MANY),
        series("cuda-torch", "float16", [2.0, 2.0], MANY, size=32),
        series("cuda-torch", "float16", [1.0], MANY, size=128),  # it failed after the first round
        series("cuda-torch", "float16", [4.0, 4.0], MANY, size=64),
    ]
    rates = {"float16": [(None, 2e12)]}
    ours, theirs = cuda.throughput_rows(measured, ["float16", "float32"], rates)
    useful = sum(
        squad.operations(
            workload.config_of(workload.Shape.parse("2/128/2")), workload.window_lengths("mixed4")
        )
    )
    assert ours == [
        *("2/128/2", "float16", "minibert", "4.00 (4.00-4.00)", "684"),
        *(tables.three_digits(useful / 1e12), f"{useful / 2e12:.0%}", "-", "0.001"),
    ]
    assert theirs[2:4] == ["torch, by 32", "2.00 (2.00-2.00)"]
    assert theirs[-2] == "2.00 (2.00-2.00)"
    assert len(ours) == len(cuda.THROUGHPUT_HEAD)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_products_are_timed_on_a_gpu(dtype):
    gpu = emulated_gpu.EmulatedGpu(races=False).device()
    assert rate(dtype, (3, 32, 8), gpu, emulated_gpu.build) > 0


def test_torchs_side_gives_the_same_logits(smallest, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for kind in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(kind, "to", on_processor(kind.to))
    inputs = workload.make_inputs("mixed4")
    found = worker.padded_job(peers.load_padded(smallest, "float32", 0), inputs, 3)()
    assert np.abs(np.hstack(found) - measure.expected_logits(smallest, "mixed4")).max() < 1e-5


def on_processor(to):
    """The method `to` of torch, which takes the processor for the GPU."""
    return lambda x, device, *more, **options: to(
        x, "cpu" if device == "cuda" else device, *more, **options
    )
