"""Many callers at once, forks, other processes, other users of threads: the numbers stay right.

What could hang or kill a process runs in a process of its own, with a limit on its patience.
"""

import copy
import math
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

from minibert.answering import QuestionAnswerer
from minibert.commands.doctor import examine_processor
from minibert.kernels.cpu.functions import Kernels
from minibert.kernels.cpu.jobs import BLOCK_ROWS, row_tasks
from minibert.kernels.cpu.pool import (
    MOST_THREADS,
    POOL,
    available_cores,
    default_threads,
    group_cores,
    wished_threads,
)
from minibert.kernels.cpu.targets import find_target
from minibert.model import load_model
from minibert.pipelines import pipeline

PATIENCE = 120  # seconds; only something that hangs takes so long

QUESTION = "who sailed from berlin ?"
TEXTS = [
    ("ada lee sailed from berlin to paris in 1843 . the old ship was lost . " * n) for n in (1, 4)
]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system has no affinity"
)


def load(folder, dtype="float32", num_threads=2):
    return load_model(folder, device="cpu", dtype=dtype, num_threads=num_threads)


def logits(model):
    """Of a few windows, [2, T]."""
    pairs = model.logits(model.windows(QUESTION, TEXTS, doc_stride=10))
    return np.concatenate([np.array(pair) for pair in pairs], axis=1)


# Begins every script: a model of two threads, how to run it, and what comes out.
BEGINNING = f"""
import os, sys, threading
import numpy as np
from minibert.model import load_model

def load(dtype="float32"):
    return load_model(sys.argv[1], device="cpu", dtype=dtype, num_threads=2)

def logits(model):
    pairs = model.logits(model.windows({QUESTION!r}, {TEXTS!r}, doc_stride=10))
    return np.concatenate([np.array(pair) for pair in pairs], axis=1)

def right(model):
    return np.array_equal(logits(model), np.load(sys.argv[2]))

"""


@pytest.fixture
def run_script(tmp_path, tiny_folder):
    """Function: run a script that begins with BEGINNING; it must end well and in time."""
    np.save(tmp_path / "wanted.npy", logits(load(tiny_folder)))

    def run(script, **variables):
        path = tmp_path / "script.py"
        path.write_text(BEGINNING + script, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(path), str(tiny_folder), str(tmp_path / "wanted.npy")],
            env=os.environ | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


# ---------------------------------------------------------------- threads of one process


@contextmanager
def constant_switches():
    """Python gives another thread its turn as often as it can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def at_once(count, work):
    """Results of work(i) in so many threads, which begin together."""
    barrier, results = threading.Barrier(count), {}

    def begin(number):
        barrier.wait(PATIENCE)
        results[number] = work(number)

    threads = [threading.Thread(target=begin, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(results) == count
    return [results[number] for number in range(count)]


@pytest.mark.parametrize("switches", [nullcontext, constant_switches])
def test_eight_threads_may_call_one_model(tiny_folder, switches):
    wanted, model = logits(load(tiny_folder)), load(tiny_folder, num_threads=3)

    def work(_):
        return [logits(model) for _ in range(10)]

    with switches():
        found = at_once(8, work)
    for result in (each for results in found for each in results):
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("switches", [nullcontext, constant_switches])
def test_models_of_all_dtypes_may_run_at_once(tiny_folder, switches):
    models = [load(tiny_folder, dtype) for dtype in ("float32", "bfloat16", "int8")]
    wanted = [logits(model) for model in models]

    def work(number):
        return [logits(models[number % 3]) for _ in range(10)]

    with switches():
        found = at_once(6, work)
    for number, results in enumerate(found):
        for result in results:
            np.testing.assert_array_equal(result, wanted[number % 3])


def test_batches_of_all_sizes_may_run_at_once(embedded):
    # Large and small jobs take turns in one memory, which grows on the way.
    questions = ["Who wrote it?", "Who wrote the first program?" * 10, "Why?" * 100]
    texts = ["Ada Lovelace wrote it.", "Ada Lovelace wrote the first program in 1843. " * 20]
    batches = [embedded.windows(q, [text]) for q in questions for text in texts]
    wanted = [embedded.logits(batch) for batch in batches]
    with POOL.lock:
        POOL.memory = POOL.memory[:0]
    for results in at_once(4, lambda _: [embedded.logits(batch) for batch in batches]):
        for result, right in zip(results, wanted, strict=True):
            np.testing.assert_array_equal(np.hstack(result), np.hstack(right))


def test_more_threads_than_cores_and_tasks_are_no_harm(tiny_folder):
    wanted = logits(load(tiny_folder, num_threads=1))
    for threads in (available_cores() + 1, 40, 1000):
        np.testing.assert_array_equal(logits(load(tiny_folder, num_threads=threads)), wanted)


def test_a_job_ends_even_if_no_helper_comes(tiny_folder):
    model = load(tiny_folder, num_threads=4)
    wanted = logits(model)  # now the helpers exist
    released = threading.Event()

    class Busy:
        """A job that keeps a helper from everything else."""

        def run(self, slot):
            released.wait(PATIENCE)

    with POOL.lock:
        for helper in POOL.helpers:
            helper.jobs.put(Busy())
    try:
        np.testing.assert_array_equal(logits(model), wanted)
    finally:
        released.set()
    for _ in range(5):  # while helpers find jobs that ended long ago
        np.testing.assert_array_equal(logits(model), wanted)


def test_first_calls_that_come_at_once_agree_on_where_the_weights_lie(tiny_folder):
    weights = load(tiny_folder).weights
    with constant_switches():
        for _ in range(30):
            fresh = copy.deepcopy(weights)
            first, *others = at_once(8, lambda _, fresh=fresh: fresh.records)
            for each in others:
                assert all((a == b).all() for a, b in zip(each, first, strict=True))


def test_a_signal_in_the_middle_of_a_call_leaves_no_job_behind(tiny_folder, monkeypatch):
    model = load(tiny_folder)
    wanted, jobs = logits(model), []

    class Interrupted:
        """What a helper gets its jobs from; Ctrl-C comes right after it got one."""

        def __init__(self, jobs):
            self.jobs, self.get = jobs, jobs.get

        def put(self, job):
            self.jobs.put(job)
            jobs.append(job)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(POOL.helpers[0], "jobs", Interrupted(POOL.helpers[0].jobs))
        with pytest.raises(KeyboardInterrupt):
            logits(model)
        (job,) = jobs
        record = job.record
        of_a_layer = record["row_task_count"] + record["attention_task_count"]
        all_tasks = record["row_task_count"] + record["layer_count"] * of_a_layer
        assert record["done"]["count"] == all_tasks
    np.testing.assert_array_equal(logits(model), wanted)


def test_a_process_may_end_while_a_thread_is_at_work(run_script):
    printed = run_script("""
model = load()
begun = threading.Event()

def work():
    while True:
        logits(model)
        begun.set()

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
print("end")
""")
    assert printed == ["end"]


def test_an_answer_needs_nothing_that_daemon_threads_may_not_be_in_at_the_end(
    embedded, monkeypatch
):
    # np.unique takes the interpreter back in a C++ destructor; a daemon thread that does so while
    # Python ends is unwound by pthread_exit, and C++ ends the process instead.
    def unique(*_, **__):
        raise AssertionError("np.unique was called")

    monkeypatch.setattr(np, "unique", unique)
    for top_k in (1, 3):
        pipeline(model=embedded)(question=QUESTION, context=TEXTS[1], top_k=top_k)
    QuestionAnswerer(embedded).answer(QUESTION, TEXTS)


# ---------------------------------------------------------------- forks and other processes

FORK = """
import signal

def child():
    signal.alarm(30)  # a child that hangs ends too
    try:
        os._exit(0 if right(model) and right(load("float32")) else 1)
    finally:
        os._exit(2)

def fork(times):
    children = []
    for _ in range(times):
        pid = os.fork()
        if pid == 0:
            child()
        children.append(pid)
        assert right(model)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]

model = load()
assert right(model)
"""


@needs_fork
def test_a_child_of_a_fork_can_compute(run_script):
    assert run_script(FORK + "print(*fork(3))") == ["0"] * 3


@needs_fork
def test_a_fork_may_come_while_another_thread_computes(run_script):
    printed = run_script(
        FORK
        + """
stop, wrong = threading.Event(), []

def work():
    while not stop.is_set():
        if not right(model):
            wrong.append(1)

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
codes = fork(10)
stop.set()
for thread in threads:
    thread.join()
print(len(wrong), *codes)
"""
    )
    assert printed == ["0"] * 11


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.slow
def test_pools_of_processes_can_compute(run_script, method):
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    printed = run_script(
        f"""
import multiprocessing

model = None

def work(number):
    global model
    model = model or load()
    return right(model)

def work_with(sent):  # a model that was pickled
    return right(sent)

if __name__ == "__main__":
    mine = load()
    assert right(mine)
    if {method!r} == "fork":
        model = mine
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        print(all(pool.map(work, range(6))), all(pool.map(work_with, [mine] * 2)))
"""
    )
    assert printed == ["True", "True"]


@pytest.mark.slow
def test_numbas_own_threads_may_be_busy_meanwhile(run_script):
    printed = run_script("""
import numba

@numba.njit(parallel=True)
def total(x):
    y = 0.0
    for i in numba.prange(len(x)):
        y += np.sqrt(x[i])
    return y

x = np.ones(200_000)
assert total(x) == len(x)
model, stop, turns = load(), threading.Event(), []

def work():
    while not stop.is_set():
        assert total(x) == len(x)
        turns.append(1)

thread = threading.Thread(target=work)
thread.start()
results = [right(model) for _ in range(50)]
while not turns:
    pass
stop.set()
thread.join()
print(all(results))
""")
    assert printed == ["True"]


# ---------------------------------------------------------------- cores


@needs_affinity
def test_only_cores_that_the_process_may_use_are_counted(run_script):
    printed = run_script("""
from minibert.kernels.backend import get_backend
from minibert.kernels.cpu.pool import available_cores

before = available_cores()
os.environ.pop("OMP_NUM_THREADS", None)
cores = sorted(os.sched_getaffinity(0))
assert 1 <= before <= len(cores)
os.sched_setaffinity(0, cores[:1])
asked = [get_backend("cpu", num_threads=n).num_threads for n in (None, 5)]
print(available_cores(), *asked)
""")
    assert printed == ["1", "1", "5"]


def write_group(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("latin-1"))


QUOTA, PERIOD = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, math.inf),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "0 100000\n"}, math.inf),
        ({"cpu.max": "100000 0\n"}, math.inf),
        ({"cpu.max": ""}, math.inf),
        ({"cpu.max": "nonsense\n"}, math.inf),
        ({"cpu.max": "one two\n"}, math.inf),
        ({"cpu.max": "1 2 3\n"}, math.inf),
        ({"cpu.max": "\xff\xfe"}, math.inf),
        ({QUOTA: "50000\n", PERIOD: "100000\n"}, 0.5),
        ({QUOTA: "-1\n", PERIOD: "100000\n"}, math.inf),
        ({QUOTA: "50000\n"}, math.inf),
        ({PERIOD: "100000\n"}, math.inf),
        ({QUOTA: "", PERIOD: ""}, math.inf),
        ({QUOTA: "\xff", PERIOD: "\xff"}, math.inf),
        ({"cpu.max": "300000 100000\n", QUOTA: "50000\n", PERIOD: "100000\n"}, 3),
    ],
)
def test_the_share_of_the_control_group_is_read(tmp_path, files, cores):
    write_group(tmp_path, files)
    assert group_cores(tmp_path) == cores


def test_there_is_no_control_group_below_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert group_cores(tmp_path / "file") == math.inf


@pytest.mark.parametrize("tokens", [0, 1, 47, 48, 49, 384, 511])
def test_row_tasks_cover_all_rows_and_are_not_more_than_there_are(tokens):
    for threads in (1, 2, 3, 64, 10**12):
        tasks = row_tasks(tokens, threads, find_target())
        starts = np.concatenate([[0], np.cumsum(tasks["count"])])
        np.testing.assert_array_equal(tasks["begin"], starts[:-1])
        assert starts[-1] == tokens
        assert (tasks["count"] > 0).all()
        assert tasks["count"].max(initial=0) <= BLOCK_ROWS + find_target().tile_rows[-1]


def test_a_backend_without_a_number_of_threads_takes_all_cores(tiny_folder, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    model = load_model(tiny_folder, device="cpu")
    assert model.kernels.num_threads == available_cores()
    assert Kernels("float32", find_target(), 3).num_threads == 3


@pytest.mark.parametrize(
    ("variable", "wish"),
    [
        ("1", 1),
        (" 3 ", 3),
        ("+2", 2),
        ("007", 7),
        ("4,2", 4),
        ("4 , 2, 1", 4),
        ("10" * 9, int("10" * 9)),
        *((nonsense, None) for nonsense in ("", " ", "0", "-1", "two", "1.5", "1e2", "1_0")),
        *((nonsense, None) for nonsense in ("4,", ",4", "4,0", "4,x", "4;2", "٣", "1" * 5000)),
    ],
)
def test_openmps_variable_is_read_as_openmp_reads_it(variable, wish):
    assert wished_threads(variable) == wish


def test_openmps_variable_lowers_the_default_and_nothing_else(tiny_folder, monkeypatch):
    monkeypatch.setattr("minibert.kernels.cpu.pool.available_cores", lambda: 4)
    for variable, threads in (("1", 1), ("3,2", 3), ("5", 4), ("none", 4), ("", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
        assert default_threads() == threads
        assert load_model(tiny_folder, device="cpu").kernels.num_threads == threads
        assert load(tiny_folder, num_threads=7).kernels.num_threads == 7
        assert examine_processor()["cores"] == "4"
        lowered = f" (OMP_NUM_THREADS={variable})" if threads < 4 else ""
        assert examine_processor()["threads"] == f"{threads}{lowered}"


def test_more_threads_than_anybody_needs_are_not_started(tiny_folder):
    model = load_model(tiny_folder, device="cpu", num_threads=np.int64(10**12))
    assert model.kernels.num_threads == MOST_THREADS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_waits_until_nobody_compiles(run_script):
    printed = run_script("""
from minibert.kernels.cpu.compiler import _PROGRAMS
compiling, forking = threading.Event(), threading.Event()

def compile_slowly():
    with _PROGRAMS.lock:
        compiling.set()
        forking.wait()
        threading.Event().wait(0.3)
        print("compiled", flush=True)

thread = threading.Thread(target=compile_slowly)
thread.start()
compiling.wait()
forking.set()
if not os.fork():
    with _PROGRAMS.lock:
        print("child", flush=True)
    os._exit(0)
os.wait()
thread.join()
with _PROGRAMS.lock:
    print("parent")
""")
    assert printed == ["compiled", "child", "parent"]
