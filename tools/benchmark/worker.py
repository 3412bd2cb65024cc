"""What runs in processes of its own: one library, so that none disturbs another.

    python -m benchmark.worker serve LIBRARY DTYPE THREADS          answers JSON lines
    python -m benchmark.worker build FOLDER [NAME...]               makes the peers' files
    python -m benchmark.worker gemm THREADS SHAPE...                measures our GEMM
    python -m benchmark.worker start LIBRARY DTYPE THREADS FOLDER   answers two questions
    python -m benchmark.worker squad LIBRARY DTYPE THREADS          answers those of a file

Answers are JSON lines on stdout; whatever the libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmark.gemm import measure_gemm
from benchmark.peers import BUILT, Peer, Run, build, peer_of
from benchmark.workload import (
    CONTEXT,
    QUESTIONS,
    Floats,
    Shape,
    Window,
    make_windows,
    pack_in_order,
    pad_sorted,
)

TASKS = Path("/proc/self/task")  # Linux: what each thread of this process waited for
LONGEST_ANSWER = 30  # tokens
PAUSE = 0.02  # seconds: idle threads of the library before may still spin

Answer: TypeAlias = "Mapping[str, object]"
Say: TypeAlias = "Callable[[Answer], None]"
Batches: TypeAlias = list[tuple[list[int], Any]]  # which windows, and the batch that holds them


def make_batches(peer: Peer, windows: list[Window], size: int) -> Batches:
    """Batches as the library wants them; `size` is of padded ones."""
    return list(pack_in_order(windows) if peer.packed else pad_sorted(windows, size))


def window_logits(run: Run, peer: Peer, batches: Batches, lengths: list[int]) -> list[Floats]:
    """Start and end logits [2, S] of each window, in the windows' order."""
    found: dict[int, Floats] = {}
    for rows, batch in batches:
        logits = np.stack(run(batch))  # [2, T] or [2, B, S]
        if peer.packed:
            ends = np.cumsum([0, *(lengths[i] for i in rows)])
            parts = [logits[:, a:b] for a, b in pairwise(ends)]
        else:
            parts = [logits[:, row, : lengths[i]] for row, i in enumerate(rows)]
        found |= dict(zip(rows, parts, strict=True))
    return [found[i] for i in range(len(lengths))]


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


# ---------------------------------------------------------------- commands


def answer_lines(say: Say, answer: Callable[[dict[str, Any]], Answer]) -> None:
    """Answer the JSON lines of stdin, until it ends; a failure is an answer, too."""
    for line in sys.stdin:
        try:
            say(answer(json.loads(line)))
        except Exception as error:  # peers fail in their own ways
            say({"error": f"{type(error).__name__}: {error}".splitlines()[0]})


def serve(say: Say, peer: Peer, threads: int) -> None:
    """Answer questions about one library after the other, until stdin ends.

    Questions have a `do`: "load" a `folder`; "check" the logits of some `work`, in padded batches
    of `size`; or "time" it for `budget` seconds.
    """
    run: Run | None = None
    batches: dict[tuple[str, int], Batches] = {}

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        nonlocal run
        if question["do"] == "load":
            run = None  # frees the model before
            run = peer.load(Path(question["folder"]) / peer.file, peer.dtype, threads)
            return {}
        ready, work = run, (question["work"], question["size"])
        if ready is None:
            raise ValueError("no model is loaded")
        windows = make_windows(work[0])
        if work not in batches:
            batches[work] = make_batches(peer, windows, work[1])
        if question["do"] == "check":
            lengths = [len(window.ids) for window in windows]
            logits = np.hstack(window_logits(ready, peer, batches[work], lengths))
            return {"logits": logits.astype(float).tolist()}
        return time_runs(lambda: [ready(batch) for _, batch in batches[work]], question["budget"])

    answer_lines(say, answer)


def start(say: Say, peer: Peer, threads: int, folder: Path) -> None:
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
        say({"answer": text, "load": loaded, "seconds": seconds, **resident_memory()})


def resident_memory() -> dict[str, float]:
    """Megabytes in memory now (rss) and at most until now (hwm), where Linux tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.split() for line in lines if line.startswith(("VmRSS:", "VmHWM:"))]
    return {name[2:5].lower(): int(kilobytes) * 1024 / 1e6 for name, kilobytes, _ in pairs}


def answer_question(run: Run, peer: Peer, tokenizer: Any, question: str) -> str:
    """The span of the text with the highest sum of logits."""
    tokens = tokenizer.encode(question, CONTEXT)
    window = Window(np.array(tokens.ids, np.int32), np.array(tokens.type_ids, np.int32))
    batches = make_batches(peer, [window], 1)
    [(starts, ends)] = window_logits(run, peer, batches, [len(tokens.ids)])
    text = (window.types == 1) & (np.array(tokens.special_tokens_mask) == 0)
    allowed = np.triu(text[:, None] & text) & ~np.triu(
        np.ones(2 * text.shape, bool), LONGEST_ANSWER
    )
    scores = np.where(allowed, starts[:, None] + ends, -np.inf)  # [S, S]: first token, last token
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return CONTEXT[tokens.offsets[first][0] : tokens.offsets[last][1]]


def main(arguments: list[str]) -> None:
    """Run one command."""
    # Libraries print to file 1 as they like: that is stderr from now on, and answers go elsewhere.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: Answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    command, *rest = arguments
    if command == "build":
        say(build(Path(rest[0]), rest[1:] or tuple(BUILT)))
        return
    if command == "gemm":
        say(measure_gemm(int(rest[0]), [Shape.parse(text) for text in rest[1:]]))
        return
    library, dtype, threads, *more = rest
    peer = peer_of(library, dtype)
    if command == "serve":
        serve(say, peer, int(threads))
    elif command == "start":
        start(say, peer, int(threads), Path(more[0]))
    elif command == "squad":
        from benchmark.squad_side import Side  # here: imports would count in cold starts

        answer_lines(say, Side(peer, int(threads)).answer)


if __name__ == "__main__":
    main(sys.argv[1:])
