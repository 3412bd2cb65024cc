"""The GPU part of the benchmark: sums, tables, goals and processes.  Nothing here looks at a time.

What the processes do runs on an emulated GPU, and torch's side on the processor.
"""

import argparse
import json
import sys
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
    cuda_sums,
    tables,
    workload,
)
from benchmark.processes import BenchError

from minibert.kernels.backend import table
from minibert.kernels.cuda.functions import Kernels
from minibert.kernels.cuda.launcher import gemm_recipe
from minibert.model import load_model
from minibert.weights import expected_shapes


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """A folder with a random model of one narrow layer, as the benchmark writes it."""
    folder = tmp_path_factory.mktemp("bench") / "1-32-2"
    workload.write_model(folder, workload.Shape.parse("1/32/2"))
    return folder


# ---------------------------------------------------------------- sums


def test_operations_of_a_model_are_those_of_its_matrices_and_of_every_pair_of_tokens():
    shape, lengths = workload.Shape.parse("2/8/2"), workload.window_lengths("mixed3")
    config = cuda_sums.config_of(shape)
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
    assert cuda_sums.useful_operations("2/8/2", "mixed3") == 2 * adds


def test_operations_of_single_kernels_are_counted_one_by_one():
    tokens, into, out = 3, 4, 5
    adds = sum(1 for _ in np.ndindex(tokens, into, out))
    assert cuda_sums.product_operations(tokens, into, out) == 2 * adds
    lengths, width = [3, 2], 6
    scores = sum(1 for n in lengths for _ in np.ndindex(n, n, width))
    values = sum(1 for n in lengths for _ in np.ndindex(n, width, n))
    assert cuda_sums.attention_operations(lengths, width) == 2 * (scores + values)


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
        assert cuda_sums.row_bytes(name, tokens, width, size, splits) == count


def test_padding_is_not_counted():
    lengths = workload.window_lengths("mixed1024")
    assert cuda_sums.useful_operations("tiny", "mixed1024") == sum(
        cuda_sums.useful_operations("tiny", str(length)) for length in lengths
    )


@pytest.mark.parametrize("most", [1, 384, 500, 8192])
def test_packed_batches_hold_every_window_in_order_and_are_full(most):
    lengths = workload.window_lengths("mixed64")
    batches = cuda_side.packed(lengths, most)
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in batch) for batch in batches]
    for number, batch in enumerate(batches):
        assert sizes[number] <= most or len(batch) == 1
        if number + 1 < len(batches):
            assert sizes[number] + lengths[batches[number + 1][0]] > most


# ---------------------------------------------------------------- tables and goals


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
    useful = cuda_sums.useful_operations("tiny", "mixed4")
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


# ---------------------------------------------------------------- the command


def test_without_a_gpu_the_command_says_why_in_one_line(no_gpu, capsys):
    assert bench.main(["cuda", "--quick"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    assert line.startswith("bench: error: there is no NVIDIA driver (libcuda.so.1: no such file)")


def test_all_kernels_of_the_tables_and_of_the_models_are_compiled_ahead():
    tables_ = cuda_compile.recipes_of_tables(cuda_results.DTYPES)
    base = cuda_compile.recipes_of_models([cuda_sums.shape_of("base")], cuda_results.DTYPES)
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


# ---------------------------------------------------------------- what the processes do


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


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("float16", 0.02)])
def test_our_side_runs_a_whole_model_on_a_gpu(emulated, tmp_path, dtype, limit):
    folder = tmp_path / "1-64-1"
    workload.write_model(folder, workload.Shape.parse("1/64/1"))

    def on_gpu(folder, dtype):
        backend = table("cuda", dtype, Kernels(emulated, dtype, emulated_gpu.build))
        model = load_model(folder, device="reference")
        return replace(model, kernels=backend, weights=backend.prepare(model.weights))

    found = ask_logits(cuda_side.Ours(on_gpu), folder, tmp_path, "minibert", dtype, "5")
    difference = np.abs(found - cpu.expected_logits(folder, "5")).max()
    assert 0 < difference < limit


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
            **{"kind": "gemm", "dtype": "float32", "tile": [64, 64], "tokens": 5},
            **{"into": 64, "out": 64, "end": "store", "activation": "gelu"},
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
