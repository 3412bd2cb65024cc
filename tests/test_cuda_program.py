"""The whole pass on a GPU: recorded once a bucket, two batches in flight, halves without memory.

On an emulated GPU, which does what is put on the stream as late as it may.  The models are tiny.
"""

import copy
import gc
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import batch_of, random_weights
from emulated_gpu import EmulatedGpu, build
from random_models import random_batch, tiny_config, write_model

from minibert.checkpoints.safetensors import open_checkpoint
from minibert.encoder import bert, qa_logits
from minibert.errors import BackendError
from minibert.kernels.backend import REFERENCE, table
from minibert.kernels.cuda.driver import CudaError, Driver, OutOfMemoryError
from minibert.kernels.cuda.functions import Kernels
from minibert.kernels.cuda.launcher import recipes_of
from minibert.kernels.cuda.program import (
    TOKENS_PER_TILE,
    Program,
    attention_tiles,
    bucket_size,
    halves,
)
from minibert.model import load_model
from minibert.reading import GPU_BATCH_TOKENS
from minibert.weights import load_weights

CONFIG = tiny_config(
    hidden_size=32, num_attention_heads=1, intermediate_size=100, num_hidden_layers=1
)


def gpu_of(**options):
    """An emulated GPU; races are looked for in test_cuda_kernels.py."""
    return EmulatedGpu(races=False, **options)


def packed(lengths, seed=0, config=CONFIG):
    return batch_of(random_batch(config, lengths, seed))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_weights(CONFIG, 0, tmp_path_factory.mktemp("weights"))


def program(weights, gpu, dtype="float32"):
    kernels = Kernels(gpu.device(), dtype, build)
    return Program(kernels.launcher, bert, kernels.prepare(weights), CONFIG)


def truth(batch, weights):
    return qa_logits(batch, weights, CONFIG, REFERENCE)


def assert_close(ours, theirs, limit=2e-5):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == np.float32
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= limit


@pytest.mark.parametrize("lengths", [[], [1], [5, 1, 17], [64, 64], [60, 61, 62]], ids=str)
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [
        ("float32", 2e-5),
        pytest.param("float16", 2e-2, marks=pytest.mark.slow),
        pytest.param("bfloat16", 2e-1, marks=pytest.mark.slow),
    ],
)
def test_a_pass_gives_the_logits_of_the_reference(weights, lengths, dtype, limit):
    batch = packed(lengths)
    ours = program(weights, gpu_of(), dtype).launch(batch)()
    assert_close(ours, truth(batch, weights), limit)


@pytest.mark.slow
def test_a_pass_is_recorded_once_and_replayed(weights):
    gpu = gpu_of()
    pass_ = program(weights, gpu)
    batches = [packed(lengths, seed) for seed, lengths in enumerate([[9], [3, 30], [50], [9]])]
    pass_.launch(batches[0])()
    loaded, graphs = len(gpu.functions), len(gpu.executables)
    for batch in batches:
        assert_close(pass_.launch(batch)(), truth(batch, weights))
    assert len(gpu.functions) == loaded
    assert len(gpu.executables) == graphs == 2
    assert not gpu.graphs, "the recording is not needed once it is instantiated"


def test_recording_does_no_work(weights):
    gpu = gpu_of()
    pass_ = program(weights, gpu)
    pass_._bucket(128)
    once = len(gpu.launches)  # the launches for no tokens that load the kernels
    pass_.launch(packed([9]))()
    assert gpu.launches[once:] == gpu.launches[:once]


@pytest.mark.slow
def test_buckets_are_made_when_needed(weights):
    gpu = gpu_of()
    pass_ = program(weights, gpu)
    for lengths in ([9], [64, 64, 1], [1] * 9):
        batch = packed(lengths)
        assert_close(pass_.launch(batch)(), truth(batch, weights))
    # Nine windows of one token have nine tiles, for which the smallest bucket has no room.
    assert sorted(pass_.buckets) == [128, 256]


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 256, 257, 384, 385, 513, 4099])
@pytest.mark.parametrize("tiles", [0, 1, 9, 300])
def test_a_bucket_has_room(tokens, tiles):
    size = bucket_size(tokens, tiles)
    assert size >= tokens
    assert size // TOKENS_PER_TILE >= tiles
    assert size % 128 == 0
    assert size <= max(128, 2 * max(tokens, TOKENS_PER_TILE * tiles))


def test_bucket_sizes():
    assert sorted({bucket_size(n) for n in range(1, 1025)}) == [128, 256, 384, 512, 768, 1024]


# ---------------------------------------------------------------- several batches at once


@pytest.mark.slow
def test_two_batches_are_in_flight(weights):
    gpu = gpu_of()
    pass_ = program(weights, gpu)
    pass_.launch(packed([5]))()
    done = gpu.finished
    first, second = packed([9, 3], 1), packed([20], 2)
    waits = [pass_.launch(first), pass_.launch(second)]
    assert gpu.finished == done, "nothing waits before it is asked to"
    assert_close(waits[1](), truth(second, weights))
    assert_close(waits[0](), truth(first, weights))
    assert_close(waits[1](), truth(second, weights))  # asked again


@pytest.mark.slow
def test_a_third_batch_waits_for_the_first_and_loses_nothing(weights):
    pass_ = program(weights, gpu_of())
    batches = [packed([5 + seed, 3], seed) for seed in range(5)]
    waits = [pass_.launch(batch) for batch in batches]
    for wait, batch in zip(waits, batches, strict=True):
        assert_close(wait(), truth(batch, weights))


def test_the_caller_may_change_its_arrays_after_the_launch(weights):
    pass_ = program(weights, gpu_of())
    batch = packed([9, 3])
    expected = truth(batch, weights)
    wait = pass_.launch(batch)
    for array in vars(batch).values():
        array[:] = 0
    assert_close(wait(), expected)


@pytest.mark.slow
def test_results_are_the_callers_own(weights):
    pass_ = program(weights, gpu_of())
    batch = packed([9, 3])
    start, _ = pass_.launch(batch)()
    kept = start.copy()
    for seed in range(3):
        pass_.launch(packed([12], seed))()
    assert (start == kept).all()


@pytest.mark.slow
def test_threads_share_a_program(weights):
    pass_ = program(weights, gpu_of())
    batches = [packed([seed % 7 + 1, 3], seed) for seed in range(6)]
    results: dict[int, tuple] = {}

    def work(begin):
        for i in range(begin, 6, 2):
            results[i] = pass_.launch(batches[i])()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, batch in enumerate(batches):
        assert_close(results[i], truth(batch, weights))


# ---------------------------------------------------------------- memory


def used(gpu):
    return sum(map(len, gpu.memory.values()))


@pytest.mark.slow
def test_without_memory_a_batch_is_done_in_halves(weights):
    roomy = gpu_of()
    pass_ = program(weights, roomy)
    pass_.launch(packed([60]))()
    small = used(roomy)
    pass_.launch(packed([64, 64, 1]))()
    large = used(roomy) - small  # what the bucket of 256 takes

    gpu = gpu_of(memory_size=small + large // 4)
    pass_ = program(weights, gpu)
    batch = packed([60, 1, 40, 30, 17])  # 148 tokens
    wait = pass_.launch(batch)
    assert sorted(pass_.buckets) == [128]
    assert_close(wait(), truth(batch, weights))
    assert pass_.limit == 128
    allocations = gpu.allocations
    assert_close(pass_.launch(batch)(), truth(batch, weights))
    assert gpu.allocations == allocations, "what cannot be had is not asked for again"


@pytest.mark.slow
def test_buckets_out_of_use_make_room(weights):
    roomy = gpu_of()
    pass_ = program(weights, roomy)
    pass_.launch(packed([64, 64, 1]))()
    gpu = gpu_of(memory_size=used(roomy) + 1000)
    pass_ = program(weights, gpu)
    early = packed([60])
    wait = pass_.launch(early)
    late = packed([64, 64, 1])
    assert_close(pass_.launch(late)(), truth(late, weights))
    assert pass_.limit is None
    assert sorted(pass_.buckets) == [256]
    assert_close(wait(), truth(early, weights))


@pytest.mark.slow
def test_one_window_too_many_is_an_error_and_later_ones_run(weights):
    roomy = gpu_of()
    pass_ = program(weights, roomy)
    pass_.launch(packed([60]))()
    gpu = gpu_of(memory_size=used(roomy) + 1000)
    pass_ = program(weights, gpu)
    long = packed([64, 64, 1])
    long = replace(long, cu_seqlens=long.cu_seqlens[[0, -1]])
    with pytest.raises(OutOfMemoryError, match="out of memory.*smaller batches"):
        pass_.launch(long)
    batch = packed([60])
    assert_close(pass_.launch(batch)(), truth(batch, weights))


def test_memory_is_given_back(weights):
    gpu = gpu_of()
    device = gpu.device()
    kernels = Kernels(device, "float32", build)
    model = kernels.prepare(weights)
    pass_ = Program(kernels.launcher, bert, model, CONFIG)
    pass_.launch(packed([9]))()
    assert gpu.memory
    assert gpu.host
    del pass_, model
    gc.collect()
    assert not gpu.memory
    assert not gpu.host
    assert not gpu.executables


@pytest.mark.parametrize("lengths", [[1, 1], [5, 1, 1], [1, 1, 5], [3, 4, 5, 6, 7], [9, 0, 0, 1]])
def test_halves_are_cut_between_windows(lengths):
    batch = packed(lengths)
    parts = halves(batch)
    for name in ("input_ids", "token_type_ids", "position_ids"):
        whole = np.concatenate([getattr(part, name) for part in parts])
        assert (whole == getattr(batch, name)).all()
    counts = [np.diff(part.cu_seqlens) for part in parts]
    assert np.concatenate(counts).tolist() == lengths
    assert all(len(count) for count in counts)
    assert all(part.cu_seqlens[0] == 0 for part in parts)


# ---------------------------------------------------------------- the driver


def test_an_old_driver_lacks_functions():
    gpu = gpu_of()
    del gpu.cuGraphLaunch
    with pytest.raises(BackendError, match="lacks cuGraphLaunch: it is too old"):
        Driver(gpu)


def test_errors_of_the_driver_have_their_names():
    device = gpu_of().device()
    with pytest.raises(OutOfMemoryError, match="cuMemAlloc_v2 failed with CUDA error 2"):
        device.upload(np.zeros(1 << 30, np.float32))
    device.driver.library.cuStreamSynchronize.function = lambda stream: 700
    with pytest.raises(CudaError, match="cuStreamSynchronize failed with CUDA error 700") as error:
        device.synchronize()
    assert error.value.code == 700


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_says_that_cuda_does_not_survive_it():
    device = gpu_of().device()
    device.driver.pid += 1  # as in the child
    with pytest.raises(BackendError, match="does not survive a fork.*'spawn'"):
        device.synchronize()


def test_a_device_cannot_be_copied():
    with pytest.raises(BackendError, match="cannot be copied or sent to another process"):
        copy.deepcopy(EmulatedGpu().device())


@pytest.mark.slow
def test_two_models_on_one_gpu_do_not_disturb_each_other(weights):
    """While one records its pass, another thread's launches wait, or they become part of it."""
    gpu = gpu_of()
    kernels = Kernels(gpu.device(), "float32", build)
    first, second = (
        Program(kernels.launcher, bert, kernels.prepare(weights), CONFIG) for _ in range(2)
    )
    batches = [packed([7, 3], 1), packed([5], 2)]
    second.launch(batches[1])()
    results = []
    thread = threading.Thread(target=lambda: results.append(second.launch(batches[1])()))
    put_pass = first.put_pass

    def slowly(*arguments):
        if gpu.recording is not None and not thread.ident:
            thread.start()
            thread.join(0.2)  # it cannot get in
        return put_pass(*arguments)

    first.put_pass = slowly
    assert_close(first.launch(batches[0])(), truth(batches[0], weights))
    thread.join()
    assert_close(results[0], truth(batches[1], weights))
    assert len({len(work) for work in gpu.executables.values()}) == 1


def test_logits_that_are_not_finite_are_an_error(weights):
    gpu = gpu_of()
    pass_ = program(weights, gpu)
    wait = pass_.launch(packed([5]))
    gpu.run_until(gpu.put)
    pass_.buckets[128][-1].output[0, 3] = np.inf
    with pytest.raises(BackendError, match="not finite.*Use dtype='bfloat16'"):
        wait()


def test_a_failed_recording_leaves_the_stream_usable(weights):
    gpu = gpu_of()
    device = gpu.device()

    def work():
        raise KeyError("planted")

    with pytest.raises(KeyError):
        device.record(work)
    assert gpu.recording is None
    batch = packed([5])
    kernels = Kernels(device, "float32", build)
    pass_ = Program(kernels.launcher, bert, kernels.prepare(weights), CONFIG)
    assert_close(pass_.launch(batch)(), truth(batch, weights))


# ---------------------------------------------------------------- a model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("gpu") / "model", CONFIG)


def on_gpu(model, gpu, dtype="float32"):
    """A loaded model, moved to an emulated GPU."""
    kernels = table("cuda", dtype, Kernels(gpu.device(), dtype, build))
    weights = load_weights(open_checkpoint(model.files.weights), model.config)
    return replace(model, kernels=kernels, weights=kernels.prepare(weights))


def questions(model, count):
    text = "The ship was built in Berlin in 1843. " * 2
    for number in range(count):
        yield number, model.windows("Who built the ship?", [text], max_seq_length=20, doc_stride=5)


@pytest.mark.slow
def test_a_model_reads_the_same_on_both_devices(folder):
    model = load_model(folder, device="reference")
    ours = on_gpu(model, gpu_of()).read(questions(model, 5), batch_tokens=100)
    theirs = model.read(questions(model, 5))
    for (key, windows, mine), (their_key, _, logits) in zip(ours, theirs, strict=True):
        assert key == their_key
        assert len(windows) == len(mine) > 1
        for pair, their_pair in zip(mine, logits, strict=True):
            assert_close(pair, their_pair)


@pytest.mark.slow
def test_questions_are_tokenised_while_the_gpu_works(folder):
    """The second batch is on its way before the first is waited for, and no more than two are."""
    model = load_model(folder, device="reference")
    gpu = gpu_of()
    on_it = on_gpu(model, gpu)
    taken = []

    def examples():
        for number, windows in questions(model, 8):
            taken.append(number)
            yield number, windows

    results = on_it.read(examples(), batch_tokens=100)
    first, windows, _ = next(results)
    each = sum(map(len, windows))
    batch = 100 // each  # examples in a batch
    assert first == 0
    assert len(taken) == 2 * batch + 1  # the last of them did not fit any more
    assert gpu.put > gpu.finished, "the second batch is still on its way"
    assert [first, *(key for key, _, _ in results)] == list(range(8))


@pytest.mark.slow
def test_batches_are_full(folder):
    """An example that does not fit begins the next batch; none is cut off into one of its own."""
    model = load_model(folder, device="reference")
    sizes = []
    on_it = on_gpu(model, gpu_of())
    launch = on_it.kernels.launch

    def noting(steps, batch, *arguments):
        sizes.append(len(batch.input_ids))
        return launch(steps, batch, *arguments)

    on_it = replace(on_it, kernels=replace(on_it.kernels, launch=noting))
    examples = list(questions(model, 5))
    each = sum(map(len, examples[0][1]))
    assert len(list(on_it.read(examples, batch_tokens=3 * each - 1))) == 5
    assert sizes == [2 * each, 2 * each, each]


@pytest.mark.slow
def test_with_a_batch_size_nothing_more_is_taken(folder):
    model = load_model(folder, device="reference")
    taken = []

    def examples():
        for number, windows in questions(model, 4):
            taken.append(number)
            yield number, windows

    results = on_gpu(model, gpu_of()).read(examples(), batch_size=1)
    for number in range(4):
        assert next(results)[0] == number
        assert taken == list(range(number + 1))


def test_a_traced_pass_gives_the_same_logits(folder):
    from minibert.trace import Trace

    model = on_gpu(load_model(folder, device="reference"), gpu_of())
    windows = next(questions(model, 1))[1][:1]
    trace = Trace()
    for pair, other in zip(model.logits(windows, trace), model.logits(windows), strict=True):
        assert_close(pair, other)
    assert trace["layer.0"].shape == (len(windows[0]), 32)


PROJECTED = replace(CONFIG, family="albert", embedding_size=64, num_hidden_layers=2)


def test_embeddings_are_projected_and_a_shared_layer_is_there_once(tmp_path):
    weights, batch = random_weights(PROJECTED, 0, tmp_path), packed([5, 30])
    kernels = Kernels(gpu_of().device(), "float32", build)
    prepared = kernels.prepare(weights)
    first, second = prepared.layers
    assert first is second
    ours = kernels.launch(bert, batch, prepared, PROJECTED)()
    assert_close(ours, qa_logits(batch, weights, PROJECTED, REFERENCE))
    assert set(kernels.launcher.functions) <= set(recipes_of(PROJECTED, "float32"))


def test_tables_from_which_no_product_can_read_are_refused(tmp_path):
    config = replace(PROJECTED, embedding_size=40)
    kernels = Kernels(gpu_of().device(), "float32", build)
    prepared = kernels.prepare(random_weights(config, 0, tmp_path))
    with pytest.raises(BackendError, match=r"multiple of 32, and this model's is 40\. Use device="):
        kernels.launch(bert, packed([5]), prepared, config)
    with pytest.raises(BackendError, match="multiple of 32"):
        recipes_of(config, "float32")


def test_all_recipes_of_a_model_are_known_ahead(weights):
    """What warmup compiles is what runs, whatever the GPU and the batch."""
    known = set(recipes_of(CONFIG, "float16"))
    seen = set()
    for multiprocessors in (1, 4, 500):
        gpu = gpu_of(multiprocessors=multiprocessors)
        kernels = Kernels(gpu.device(), "float16", build)
        pass_ = Program(kernels.launcher, bert, kernels.prepare(weights), CONFIG)
        pass_._bucket(128)
        seen |= set(kernels.launcher.functions)
    assert seen <= known


def test_a_gpu_batch_has_room_for_its_tiles():
    lengths = [384] * (GPU_BATCH_TOKENS // 384)
    tiles = attention_tiles(np.cumsum([0, *lengths], dtype=np.int32))
    assert bucket_size(sum(lengths), len(tiles)) == GPU_BATCH_TOKENS
