"""`bench.py cuda`: its sums, tables and processes, on an emulated GPU and torch on the CPU."""

import doctest
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulated_gpu import EmulatedGpu, build

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bench
from benchmark import cuda_kernels, cuda_results, cuda_side, workload
from benchmark.cpu import expected_logits
from benchmark.cuda_models import contenders
from benchmark.cuda_processes import Clock, Side
from benchmark.processes import BenchError

from minibert.checkpoint import open_checkpoint
from minibert.kernels.backend import table
from minibert.kernels.cuda.detect import find_gpus, why_not
from minibert.kernels.cuda.functions import Kernels
from minibert.model import load_model
from minibert.weights import load_weights

SHAPE = "1/64/2"
MANY = "mixed5"


def series(kind, seconds, dtype="float16", work=cuda_results.ONE, **options):
    return cuda_results.Series(SHAPE, work, kind, dtype, seconds=list(seconds), **options)


def timed(side, seconds, amount=1e12, dtype="float16", **options):
    return cuda_results.Timed(
        "gemm", dtype, "768 -> 768", side, amount, seconds=list(seconds), **options
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of one narrow layer, as the benchmark writes it."""
    path = tmp_path_factory.mktemp("bench") / "model"
    workload.write_model(path, workload.Shape.parse(SHAPE))
    return path


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "large"], "'large'"),
        (["--shapes", "6/384/11"], "no shape: '6/384/11'"),
        (["--dtypes", "int8"], "must be of float32, float16, bfloat16"),
        (["--work", "gemm"], "must be of kernels, start, models"),
        (["--rounds", "0"], "must be at least 1"),
        (["--seconds", "0"], "must be at least 1"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(["cuda", *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_every_option_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        bench.main(["cuda", "--help"])
    shown = capsys.readouterr().out
    for name in "shapes dtypes work rounds seconds no-compile quick keep json".split():
        assert f"--{name}" in shown


def test_without_a_gpu_one_line_says_why(no_gpu, capsys):
    assert bench.main(["cuda"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"bench: error: {why_not(find_gpus())}\n"
    assert "libcuda.so.1" in printed.err


# ---------------------------------------------------------------- sums


@pytest.mark.parametrize("room", [cuda_kernels, cuda_results, cuda_side])
def test_examples_in_docstrings_run(room):
    found = doctest.testmod(room)
    assert found.attempted
    assert not found.failed


def count(rows, inner, columns):
    """Multiply-adds of a matrix product, one by one."""
    return sum(1 for _ in range(rows) for _ in range(inner) for _ in range(columns))


def test_operations_are_those_counted_one_by_one():
    tokens, width, inner, heads = 3, 4, 16, 2  # of the shape 2/4/2
    dense = sum(
        count(tokens, a, b)
        for a, b in ((width, 3 * width), (width, width), (width, inner), (inner, width))
    )
    attention = heads * (count(tokens, width // heads, tokens) * 2)  # scores, and their use
    head = count(tokens, width, 2)
    found = cuda_results.useful_operations("2/4/2", str(tokens))
    assert found == 2 * (2 * (dense + attention) + head)
    assert cuda_results.attention_operations([tokens], width) == 2 * attention
    assert cuda_results.product_operations(tokens, width, inner) == 2 * count(tokens, width, inner)


def test_padding_is_not_counted():
    lengths = workload.window_lengths("mixed1024")
    assert cuda_results.useful_operations(SHAPE, "mixed1024") == sum(
        cuda_results.useful_operations(SHAPE, str(length)) for length in lengths
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


def test_two_batches_are_in_flight():
    events = []

    def begin(group):
        events.append(f"begin {group}")

        def wait():
            events.append(f"wait {group}")
            return [group]

        return wait

    assert cuda_side.two_in_flight(begin, [1, 2, 3]) == [1, 2, 3]
    assert events == ["begin 1", "begin 2", "wait 1", "begin 3", "wait 2", "wait 3"]


# ---------------------------------------------------------------- tables


def found_of(*series, kernels=(), **ceilings):
    return cuda_results.Found(series=list(series), kernels=list(kernels), ceilings=ceilings)


def test_a_failure_stands_in_its_cell_and_the_others_have_their_figures():
    found = found_of(
        series("minibert", [2e-4, 2e-4], difference=0.002),
        series("eager", [5e-4, 7e-4]),
        series("sdpa", [], failure="OutOfMemoryError: | no"),
    )
    [row] = cuda_results.latency_rows(found, SHAPE, ["float16"])
    assert row == [
        *("float16", "200 (200-200)", "600 (500-700)", "OutOfMemoryError: / no", "-"),
        *("3.00 (2.75-3.25)", "-", "-", "0.002"),
    ]
    assert len(row) == len(cuda_results.LATENCY_HEAD)


def test_throughput_shows_torchs_best_batches_and_the_share_of_the_ceiling():
    useful = cuda_results.useful_operations(SHAPE, MANY)
    found = found_of(
        series("minibert", [0.5], work=MANY, batches="packed"),
        series("sdpa", [2.0], work=MANY, batches="sorted by 32"),
        series("sdpa", [1.0], work=MANY, batches="sorted by 128"),
        float16=[4.0 * useful],
    )
    ours, peer = cuda_results.throughput_rows(found, SHAPE, MANY, ["float16"])
    assert ours[:4] == ["float16", "minibert", "packed", "10.0"]
    assert ours[6] == "50%"
    assert peer[2] == "sorted by 128"
    assert peer[6:8] == ["25%", "2.00 (2.00-2.00)"]
    assert len(ours) == len(cuda_results.THROUGHPUT_HEAD)
    [note] = cuda_results.batch_notes(found, SHAPE, MANY)
    assert note == "torch sdpa float16, ms: sorted by 32 2000; sorted by 128 1000."


def test_the_tile_that_is_taken_has_a_star():
    found = found_of(
        kernels=[
            timed("128x128", [0.002], default=True),
            timed("64x64", [0.004]),
            timed("256x128", [], failure="CudaError: refused"),
        ],
        float16=[1e15],
    )
    head, [row] = cuda_results.gemm_table(found, "float16")
    assert head == ["float16", "128x128", "64x64", "256x128"]
    assert row == ["768 -> 768", "500, 50% *", "250, 25%", "CudaError: refused"]
    found.ceilings.clear()
    assert cuda_results.gemm_table(found, "float16")[1][0][1] == "500 *"
    assert cuda_results.ceiling_rows(found, ["float16"])[1][1] == "not measured"


def test_goals_are_met_or_missed_with_the_figure():
    found = found_of(
        series("minibert", [2e-4]),
        series("compile", [1e-4]),
        series("minibert", [1.0], work=MANY, batches="packed"),
        series("sdpa", [2.0], work=MANY, batches="sorted by 32"),
        series("eager", [1.4], work=MANY, batches="sorted by 128"),
        kernels=[
            timed("128x128", [0.004], default=True),
            timed("64x64", [0.002]),
            timed("torch", [0.001]),
        ],
    )
    found.starts["float16"] = [0.9]
    latency, throughput, gemm, start = cuda_results.goal_rows(found, [SHAPE], MANY)
    assert latency[2:] == ["0.50 (0.50-0.50) times as fast", "missed"]
    assert throughput[2:] == [
        "1.40 (1.40-1.40) times torch eager, sorted by 128",
        "missed",
    ]
    assert gemm[2:] == ["250 with 128x128 (best: 500 with 64x64)", "missed"]
    assert start[2:] == ["0.900 s", "met"]


def test_after_the_trial_each_kind_goes_on_with_its_fastest_batches():
    ours = series("minibert", [9.0], work=MANY, batches="packed")
    read = series("read", [9.5], work=MANY, batches="read")
    slow, fast = (
        series("sdpa", [seconds], work=MANY, batches=batches)
        for seconds, batches in ((2.0, "sorted by 32"), (1.0, "sorted by 128"))
    )
    failed = series("eager", [0.5], work=MANY, failure="lost")
    assert contenders([ours, slow, fast, failed, read]) == [ours, fast, read]


def test_all_numbers_are_written(tmp_path):
    found = found_of(series("minibert", [2e-4]), kernels=[timed("64x64", [0.1])], copy=[3e12])
    found.note("torch is left out")
    cuda_results.write_json(tmp_path / "all.json", found, {"rounds": 5})
    raw = json.loads((tmp_path / "all.json").read_text())
    assert raw["series"][0]["seconds"] == [2e-4]
    assert raw["kernels"][0]["side"] == "64x64"
    assert raw["ceilings"] == {"copy": [3e12]}
    assert raw["notes"] == ["torch is left out"]


# ---------------------------------------------------------------- what is measured

PRODUCTS = [
    ("float16", (64, 64, (2, 2), 4), "residual", ""),
    ("float32", (64, 64), "store", "gelu"),
]


@pytest.fixture
def singles():
    return cuda_kernels.Singles(EmulatedGpu(races=False).device(), build, cache=1)


def time_kernel(singles, **kernel):
    message = json.loads(json.dumps({"do": "time", "kernel": kernel}))  # as through a pipe
    return singles.answer(message)


@pytest.mark.parametrize(("dtype", "tile", "end", "activation"), PRODUCTS)
def test_products_are_right_and_timed(singles, dtype, tile, end, activation):
    found = time_kernel(
        singles, kind="gemm", dtype=dtype, tile=tile, tokens=5, into=64, out=64, end=end,
        activation=activation,
    )  # fmt: skip
    assert found["seconds"] > 0
    assert 0 < found["difference"] <= cuda_results.KERNEL_LIMITS[dtype]


def test_attention_is_right_and_timed(singles):
    found = time_kernel(
        singles, kind="attention", dtype="float16", tokens=7, length=5, heads=1, size=32
    )
    assert found["seconds"] > 0
    assert 0 < found["difference"] <= cuda_results.KERNEL_LIMITS["float16"]


@pytest.mark.parametrize("name", cuda_kernels.ROWS)
def test_kernels_of_rows_are_timed(singles, name):
    found = time_kernel(
        singles, kind="rows", dtype="float16", name=name, tokens=5, width=64, table=11
    )
    assert found["seconds"] > 0
    assert singles.answer({"do": "clear"}) == {}


def question(do, kind, work, batches="", dtype="float32", **more):
    return {"do": do, "kind": kind, "work": work, "batches": batches, "dtype": dtype, **more}


def checked(side, folder, tmp_path, kind, work, batches="", dtype="float32"):
    """The largest difference of a side's logits from the definition's, and a time of it."""
    side.answer({"do": "load", "folder": str(folder)})
    file = str(tmp_path / "logits.npy")
    side.answer(question("check", kind, work, batches, dtype, save=file))
    answer = side.answer(question("time", kind, work, batches, dtype, budget=0))
    assert answer["seconds"] > 0
    return np.abs(np.load(file) - expected_logits(folder, work)).max()


def emulated_model(folder, dtype):
    """A model as device 'cuda' loads it, on an emulated GPU."""
    model = load_model(folder, device="reference")
    kernels = Kernels(EmulatedGpu(races=False).device(), dtype, build)
    weights = load_weights(open_checkpoint(folder / "model.safetensors"), model.config)
    return replace(model, kernels=table("cuda", kernels), weights=kernels.prepare(weights))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_window_on_an_emulated_gpu_has_the_logits_of_the_definition(folder, tmp_path, dtype):
    side = cuda_side.Ours(emulated_model)
    difference = checked(side, folder, tmp_path, "minibert", "5", dtype=dtype)
    assert difference <= cuda_results.LIMITS[dtype] / 10


@pytest.mark.parametrize("kind", ["minibert", "read"])
def test_many_windows_come_back_in_order(folder, tmp_path, kind):
    side = cuda_side.Ours(lambda path, dtype: load_model(path, device="reference"))
    assert checked(side, folder, tmp_path, kind, MANY) <= 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("work", "batches"), [("5", ""), *((MANY, name) for name in cuda_side.BATCHES)]
)
def test_torch_computes_the_same_logits(folder, tmp_path, kind, work, batches):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    side = cuda_side.Peers("cpu")
    assert checked(side, folder, tmp_path, kind, work, batches) <= 1e-4


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("copy", [100]),
        ("product", [4, 5, 6]),
        ("linear", [4, 5, 6]),
        ("attention", [2, 1, 3, 32]),
    ],
)
def test_torch_times_single_kernels(kind, sizes):
    pytest.importorskip("torch")
    side = cuda_side.Peers("cpu")
    kernel = {"kind": kind, "dtype": "float32", "sizes": sizes, "sets": 2}
    assert side.answer({"do": "single", "kernel": kernel, "times": 2})["seconds"] > 0
    assert side.answer({"do": "clear"}) == {}


# ---------------------------------------------------------------- processes


def test_a_process_that_gives_no_answer_in_time_is_ended_and_started_again():
    side = Side("compiler", Clock(600), "build")
    wrong = {"do": "build", "recipe": ["nothing", "gemm", []], "capability": [9, 0]}
    try:
        with pytest.raises(BenchError, match="no answer within 0 s"):
            side.get(1e-3, **wrong)
        assert not side.running
        with pytest.raises(BenchError, match=r"BackendError|ModuleNotFoundError"):
            side.get(**wrong)
        assert side.running  # an error is an answer
    finally:
        side.stop()
    assert not side.running


def test_when_no_time_is_left_nothing_is_asked():
    side = Side("torch", Clock(-1), "torch")
    with pytest.raises(BenchError, match="no time was left"):
        side.get(do="clear")
    assert not side.running
