"""What runs in processes of its own: one library, so that none disturbs another.

    python -m benchmark.worker serve LIBRARY DTYPE THREADS          runs models
    python -m benchmark.worker squad LIBRARY DTYPE THREADS          answers the questions of a file
    python -m benchmark.worker train LIBRARY DTYPE THREADS          trains models
    python -m benchmark.worker gemm DEVICE THREADS                  measures multiplications
    python -m benchmark.worker build                                makes the peers' files
    python -m benchmark.worker start LIBRARY DTYPE THREADS FOLDER   answers two questions, and ends

All but the last answer JSON lines on stdin; answers are JSON lines on stdout.  Whatever the
libraries print goes to stderr.  `before` runs this file with an older minibert, so nothing here
imports another part of it than `load_model`, but where `squad`, `train` and `gemm` need it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmark.peers import Peer, build, peer_of
from benchmark.workload import (
    CONTEXT,
    QUESTIONS,
    Floats,
    Inputs,
    make_inputs,
    pad,
    pad_sorted,
    unpad,
)

TASKS = Path("/proc/self/task")  # Linux: what each thread of this process waited for
LONGEST_ANSWER = 30  # tokens
PAUSE = 0.02  # seconds: idle threads of the library before may still spin
WARM_UPS = 3  # runs after loading: kernels are compiled, and graphs recorded
CHECKED = 64  # windows of a piece of work whose logits are looked at

Answer: TypeAlias = "Mapping[str, Any]"
Job: TypeAlias = "Callable[[], list[Floats]]"  # start and end logits [2, S] of each window

# ---------------------------------------------------------------- models


def packed_job(model: Any, inputs: list[Inputs]) -> Job:
    """What minibert does with windows: one batch of one, or many in batches of its own.

    It uses no more of a Model than its public functions.
    """
    windows = [
        window
        for one in inputs
        for window in model.windows(one.question, [one.text], max_seq_length=len(one.ids))
    ]
    if len(windows) == 1:
        return lambda: [np.stack(pair) for pair in model.logits(windows)]
    examples = list(enumerate([window] for window in windows))
    return lambda: [np.stack(pair) for _, _, [pair] in model.read(examples)]


def padded_job(run: Callable[[Any], Any], inputs: list[Inputs], size: int) -> Job:
    """What a peer does with windows: they come to it sorted by length, padded in batches."""
    batches = list(pad_sorted(inputs, size))
    lengths = [len(one.ids) for one in inputs]

    def job() -> list[Floats]:
        logits = [run(batch) for _, batch in batches]  # on a GPU, nothing waits for another
        return unpad(batches, [to_host(both) for both in logits], lengths)

    return job


def to_host(array: Any) -> Any:
    """An array as it is, or from the GPU where torch left it."""
    return array.cpu().numpy() if hasattr(array, "cpu") else array


# ---------------------------------------------------------------- timing


def waited() -> float:
    """Seconds that threads of this process were ready to run while others had the cores."""
    nanoseconds = 0
    for task in TASKS.glob("*/schedstat"):
        try:
            nanoseconds += int(task.read_text().split()[1])
        except OSError:  # that thread has just ended
            continue
    return nanoseconds / 1e9


def time_runs(run: Callable[[], object], budget: float) -> dict[str, float]:
    """Run for `budget` seconds, after a first run that warms the caches.

    A first run that takes longer than that is cold for a small part only: it counts, alone.

    Returns:
        seconds: median of the runs; waited: share of the time that threads of ours waited for
        cores; cores: how many were busy with this process.
    """

    def clock() -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    def now() -> tuple[float, float, float]:
        return time.perf_counter(), waited(), time.process_time()

    time.sleep(PAUSE)
    begin = now()
    times = [clock()]
    if times[0] < budget:
        begin, times = now(), []
        while sum(times) < budget:
            times.append(clock())
    wall, waiting, busy = (b - a for a, b in zip(begin, now(), strict=True))
    return {"seconds": statistics.median(times), "waited": waiting / wall, "cores": busy / wall}


# ---------------------------------------------------------------- what answers messages


class Serve:
    """Answers about one library's models.

    Messages have a `do`: "load" a `folder` and run some `work`, so that all is compiled; "check"
    the logits of the first windows of some `work`, in padded batches of `size`; or "time" it for
    `budget` seconds.
    """

    def __init__(self, peer: Peer, threads: int) -> None:
        self.peer, self.threads = peer, threads
        self.run: Any = None
        self.jobs: dict[tuple[str, int], Job] = {}

    def job(self, work: str, size: int) -> Job:
        """A piece of work, laid out once.

        Raises:
            ValueError: no model is loaded.
        """
        if self.run is None:
            raise ValueError("no model is loaded")
        if (work, size) not in self.jobs:
            inputs = make_inputs(work)
            packed = self.peer.packed
            self.jobs[work, size] = (
                packed_job(self.run, inputs) if packed else padded_job(self.run, inputs, size or 1)
            )
        return self.jobs[work, size]

    def answer(self, message: Mapping[str, Any]) -> Answer:
        """Do what a message says."""
        if message["do"] == "load":
            self.run, self.jobs = None, {}  # frees the model before
            file = Path(message["folder"]) / self.peer.file
            self.run = self.peer.load(file, self.peer.dtype, self.threads)
            job = self.job(message["work"], 0)
            for _ in range(WARM_UPS):
                job()
            return {}
        job = self.job(message["work"], message["size"])
        if message["do"] == "check":
            return {"logits": np.hstack(job()[:CHECKED]).astype(float).tolist()}
        return time_runs(job, message["budget"])


def answer_build(message: Mapping[str, Any]) -> Answer:
    """Make some files, by their `names`, that peers need of the model in a `folder`."""
    return build(Path(message["folder"]), message["names"])


def answerer(role: str, arguments: list[str]) -> Callable[[Mapping[str, Any]], Answer]:
    """What answers the messages of a process."""
    if role == "build":
        return answer_build
    if role == "gemm":
        from benchmark.gemm import answer_gemm

        return answer_gemm(arguments[0], int(arguments[1]))
    library, dtype, threads = arguments
    peer = peer_of(library, dtype)
    if role == "squad":
        from benchmark.squad_side import Side

        return Side(peer, int(threads)).answer
    if role == "train":
        from benchmark.train_side import TrainSide

        return TrainSide(peer, int(threads)).answer
    return Serve(peer, int(threads)).answer


# ---------------------------------------------------------------- cold starts


def start(peer: Peer, threads: int, folder: Path) -> Iterator[Answer]:
    """Load a model and answer two questions, each time with a line of what was seen."""
    from tokenizers import Tokenizer

    begin = time.perf_counter()
    run = peer.load(folder / peer.file, peer.dtype, threads)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded = time.perf_counter() - begin
    for question in QUESTIONS:
        begin = time.perf_counter()
        text = answer_question(run, peer, tokenizer, question)
        seconds = time.perf_counter() - begin
        yield {"answer": text, "load": loaded, "seconds": seconds, **resident_memory()}


def resident_memory() -> dict[str, float]:
    """Megabytes in memory now (rss) and at most until now (hwm), where Linux tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.split() for line in lines if line.startswith(("VmRSS:", "VmHWM:"))]
    return {name[2:5].lower(): int(kilobytes) * 1024 / 1e6 for name, kilobytes, _ in pairs}


def answer_question(run: Any, peer: Peer, tokenizer: Any, question: str) -> str:
    """The span of the text with the highest sum of logits."""
    tokens = tokenizer.encode(question, CONTEXT)
    types = np.array(tokens.type_ids)
    if peer.packed:
        [(starts, ends)] = run.logits(run.windows(question, [CONTEXT]))
    else:
        batch = pad([Inputs(question, CONTEXT, np.array(tokens.ids), types)])
        starts, ends = (logits[0] for logits in run(batch))
    text = (types == 1) & (np.array(tokens.special_tokens_mask) == 0)
    allowed = np.triu(text[:, None] & text) & ~np.triu(
        np.ones(2 * text.shape, bool), LONGEST_ANSWER
    )
    scores = np.where(allowed, starts[:, None] + ends, -np.inf)  # [S, S]: first token, last token
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return CONTEXT[tokens.offsets[first][0] : tokens.offsets[last][1]]


def main(role: str, *arguments: str) -> None:
    """Answer until stdin ends; a failure is an answer, too, and its traceback goes to stderr."""
    # Libraries print to file 1 as they like: that is stderr from now on, and answers go elsewhere.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: Answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    if role == "start":
        library, dtype, threads, folder = arguments
        for seen in start(peer_of(library, dtype), int(threads), Path(folder)):
            say(seen)
        return
    answer = None
    for line in sys.stdin:
        try:
            if answer is None:  # here: a failure to begin is an answer as well
                answer = answerer(role, list(arguments))
            say(answer(json.loads(line)))
        except Exception as error:  # peers fail in their own ways
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            say({"error": text})


if __name__ == "__main__":
    main(*sys.argv[1:])
