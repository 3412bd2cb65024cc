"""Let minibert answer for a long time, from many threads, while processes fork and are killed.

    python tools/soak.py                              a million questions
    python tools/soak.py --seconds 600 --seed 3
    python tools/soak.py --seconds 10 --threads 4

Two processes answer questions of mixed lengths on a tiny model, one in float32 and one in int8,
each from several threads at once: one thread streams short ones, the others ask one at a time.
Every answer is compared with what a single thread gave before in the same dtype.  Meanwhile the
processes fork in turn, and the child must answer rightly, too.  In the first half of the run they
are also killed in turn, and others take their places; in the second half they live, so that it
shows what grows.  Neither memory nor open files may: not by more than `GROWTH` and `HANDLES` from
the first third of a process's life on.

What is asked depends on the seed; which thread comes when does not.  The last line says whether all
held, and so does the status.  For Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from random_models import vocabulary, write_model  # noqa: E402

from minibert import QuestionAnswerer, load_model, pipeline  # noqa: E402

GROWTH = 16 << 20  # bytes of memory that a process may come to need, by a line through its samples
HANDLES = 4  # and open files
FEWEST = 12  # samples of a process through which a line is laid
INTERVAL = 0.25  # seconds between samples
PATIENCE = 60.0  # seconds, after which a child or a process that says nothing has hung
SCORES_APART = 1e-4  # what scores may differ by: long texts are packed with others
KNOWN = 400  # different questions
THREADS_OF_MODEL = 2  # that work on one batch
DTYPES = ("float32", "int8")  # of the two processes
KILL = 3  # each third disturbance is a kill, the others are forks

Asked = tuple[str, Any]  # a question, and a text or several


@dataclass
class Life:
    """One process: what it has said of itself."""

    process: Any
    connection: Any
    answered: int = 0
    heard: float = field(default_factory=time.monotonic)
    samples: list[tuple[float, int, int]] = field(default_factory=list)  # time, memory, files


@dataclass
class Totals:
    """What came of the whole run."""

    answered: int = 0
    seconds: float = 0.0
    forks: int = 0
    kills: int = 0
    growth: float = -np.inf  # of the process that grew most, in bytes; -inf if none was measured
    handles: float = -np.inf
    faults: list[str] = field(default_factory=list)

    def verdict(self) -> str:
        """One line."""
        grew = "not measured, the run was too short"
        if self.growth > -np.inf:
            grew = f"{self.growth / 1e6:+.1f} MB, {self.handles:+.1f} files"
        rate = self.answered / max(self.seconds, 1e-9)
        return (
            f"{'fault' if self.faults else 'ok'}: {self.answered} answers in {self.seconds:.0f} s, "
            f"{rate:.0f} a second, {len(self.faults)} faults, {self.forks} forks, {self.kills} "
            f"kills, growth {grew}"
        )


def questions(seed: int) -> list[Asked]:
    """Questions about texts of mixed lengths: most short, some of dozens of windows."""
    random = Random(seed)
    words = [word for word in vocabulary() if word.isalnum() or word in ".,?"]

    def text(length: int) -> str:
        return " ".join(random.choice(words) for _ in range(length))

    made: list[Asked] = []
    for number in range(KNOWN):
        length = 1500 if number % 100 == 99 else 150 if number % 10 == 9 else 5 + number % 20
        context = [text(length), text(7)] if number % 7 == 6 else text(length)
        made.append((f"{text(1 + number % 8)} ?", context))
    return made


class Faces:
    """Both faces of one model, and what they say of a question.

    Args:
        folder: the model.
        dtype: in which matrices are multiplied.
        num_threads: that work on one batch.
    """

    def __init__(self, folder: Path, dtype: str, num_threads: int) -> None:
        model = load_model(folder, device="cpu", dtype=dtype, num_threads=num_threads)
        self.answerer, self.piped = QuestionAnswerer(model), pipeline(model=model)

    def best(self, asked: Asked) -> list[tuple[Any, ...]]:
        """The three best answers."""
        return [row(answer) for answer in self.answerer.n_best(*asked, 3)]

    def stream(self, several: Iterator[Asked]) -> Iterator[list[tuple[Any, ...]]]:
        """The three best answers to each."""
        found = self.answerer.n_best_many(several, 3)
        return ([row(answer) for answer in answers] for answers in found)

    def from_pipeline(self, asked: Asked) -> list[tuple[Any, ...]]:
        """What the pipeline answers."""
        question, context = asked
        text = context if isinstance(context, str) else context[0]
        found = self.piped(question=question, context=text)
        return [(found["answer"], found["start"], found["end"], 0, found["score"])]


def row(answer: Any) -> tuple[Any, ...]:
    """An answer: its text, where it stands, its score."""
    return answer.text, answer.start, answer.end, answer.document, answer.score


def differ(found: list[tuple[Any, ...]], right: list[tuple[Any, ...]]) -> bool:
    """Whether answers are others than those that are right."""
    if [each[:-1] for each in found] != [each[:-1] for each in right]:
        return True
    return any(
        not abs(ours[-1] - theirs[-1]) <= SCORES_APART
        for ours, theirs in zip(found, right, strict=True)
    )


# ---------------------------------------------------------------- in the processes


def serve(
    connection: Any, folder: Path, dtype: str, right: list[Any], seed: int, name: int, n: int
) -> None:
    """Answer from `n` threads until told to stop; say how it goes.

    Args:
        connection: orders come in, samples go out.
        folder: the model.
        dtype: in which it runs.
        right: what both faces answer to each question.
        seed: of the questions.
        name: number of this process.
        n: how many threads.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, for forks beside threads
    asked, faces = questions(seed), Faces(folder, dtype, THREADS_OF_MODEL)
    stopping, counts, faults = threading.Event(), [0] * n, []

    def check(number: int, found: list[tuple[Any, ...]], which: int) -> None:
        if differ(found, right[number][which]):
            faults.append(f"question {number}: {found}, expected {right[number][which]}")

    def ask(thread: int) -> None:
        random = Random(f"{seed} {name} {thread}")
        while not stopping.is_set():
            number = random.randrange(KNOWN)
            which = int(random.random() < 0.3)
            found = (faces.best, faces.from_pipeline)[which](asked[number])
            check(number, found, which)
            counts[thread] += 1

    def stream(thread: int) -> None:
        random = Random(f"{seed} {name} {thread}")
        given: deque[int] = deque()  # what is not answered yet

        def short() -> Iterator[Asked]:
            while not stopping.is_set():
                given.append(random.randrange(KNOWN // 10) * 10)  # of the short ones
                yield asked[given[-1]]

        for found in faces.stream(short()):
            check(given.popleft(), found, 0)
            counts[thread] += 1

    def guarded(work: Any, thread: int) -> None:
        try:
            work(thread)
        except BaseException as error:  # a thread that ends silently would look like a slow one
            faults.append(f"thread {thread}: {error!r}")

    threads = [
        threading.Thread(target=guarded, args=(ask if i else stream, i), daemon=True)
        for i in range(n)
    ]
    for thread in threads:
        thread.start()
    while not stopping.is_set():
        if connection.poll(INTERVAL):
            order = connection.recv()
            if order == "stop":
                stopping.set()
            else:
                faults.extend(fork_and_answer(faces, asked, right, number=order))
        connection.send((sum(counts), *resources(), faults[:3]))
    for thread in threads:
        thread.join(PATIENCE)
        if thread.is_alive():
            faults.append(f"{thread.name} has hung")
    connection.send((sum(counts), *resources(), faults[:3]))


def fork_and_answer(faces: Faces, asked: list[Asked], right: list[Any], number: int) -> list[str]:
    """Fork in the midst of everything; the child answers a question and ends.

    Returns:
        What was wrong with that.
    """
    child = os.fork()
    if not child:
        os._exit(3 if differ(faces.best(asked[number]), right[number][0]) else 0)
    begin = time.monotonic()
    while time.monotonic() - begin < PATIENCE:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return [f"a forked child ended with {code}"] if code else []
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return ["a forked child has hung"]


def resources(process: int | str = "self") -> tuple[int, int]:
    """The memory of a process in bytes, and how many files it has open."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{process}/fd"))


# ---------------------------------------------------------------- in the program


def soak(folder: Path, args: argparse.Namespace) -> Totals:
    """Run until so many questions are answered, or so many seconds are over."""
    context, totals = multiprocessing.get_context("spawn"), Totals()
    random, names, right = Random(args.seed), count(), {}
    for dtype in DTYPES:
        once = Faces(folder, dtype, 1)
        right[dtype] = [
            (once.best(asked), once.from_pipeline(asked)) for asked in questions(args.seed)
        ]

    def start(dtype: str) -> Life:
        ours, theirs = context.Pipe()
        arguments = (theirs, folder, dtype, right[dtype], args.seed, next(names), args.threads)
        process = context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return Life(process, ours)

    begin = time.monotonic()
    lives = [start(dtype) for dtype in DTYPES]
    disturb = begin + args.every
    try:
        while not totals.faults:
            for number, life in enumerate(lives):
                if not listen(life, totals):
                    totals.faults.append(f"process {number} has ended or hung")
            now, answered = time.monotonic(), totals.answered + sum(each.answered for each in lives)
            done = f"{answered} answers, {now - begin:.0f} s"
            say(f"{done}, {totals.forks} forks, {totals.kills} kills")
            if answered >= args.questions or now - begin >= args.seconds:
                break
            if now >= disturb and all(life.samples for life in lives):
                disturb = now + args.every * random.uniform(0.5, 1.5)
                early = answered < args.questions / 2 and now - begin < args.seconds / 2
                if early and (totals.forks + totals.kills) % KILL == KILL - 1:
                    victim = totals.kills % len(lives)
                    finish(lives[victim], totals)
                    totals.kills += 1
                    lives[victim] = start(DTYPES[victim])
                else:
                    lives[totals.forks % len(lives)].connection.send(random.randrange(KNOWN))
                    totals.forks += 1
        for life in lives:
            stop(life, totals)
    finally:
        totals.seconds = time.monotonic() - begin
        for life in lives:
            finish(life, totals)
    return totals


def listen(life: Life, totals: Totals) -> bool:
    """Take what a process says of itself; whether it is alive."""
    while life.connection.poll(INTERVAL if not life.samples else 0.05):
        try:
            life.answered, memory, files, faults = life.connection.recv()
        except (EOFError, ConnectionError):
            return False
        life.heard = time.monotonic()
        life.samples.append((life.heard, memory, files))
        totals.faults += faults
    return time.monotonic() - life.heard < PATIENCE


def stop(life: Life, totals: Totals) -> None:
    """Let a process finish what it is at, and hear the last of it."""
    life.connection.send("stop")
    begin = time.monotonic()
    while listen(life, totals) and time.monotonic() - begin < PATIENCE:
        pass
    life.process.join(PATIENCE)
    if life.process.exitcode != 0:
        totals.faults.append(f"a process did not stop: {life.process.exitcode}")


def finish(life: Life, totals: Totals) -> None:
    """Kill a process, and add up what it has done."""
    if life.process.is_alive():
        life.process.kill()
    life.process.join()
    life.connection.close()
    totals.answered += life.answered
    life.answered = 0
    if len(life.samples) >= FEWEST:
        grown = growth(life.samples)
        totals.growth, totals.handles = np.maximum((totals.growth, totals.handles), grown)
        if grown[0] > GROWTH or grown[1] > HANDLES:
            totals.faults.append(f"grew by {grown[0] / 1e6:.1f} MB and {grown[1]:.1f} open files")
        life.samples.clear()


def growth(samples: Sequence[tuple[float, int, int]]) -> list[float]:
    """How much memory and open files grew from the first third on, by a line through the rest."""
    moments, *figures = np.array(samples[len(samples) // 3 :], np.float64).T
    return [np.polyfit(moments - moments[0], each, 1)[0] * np.ptp(moments) for each in figures]


def say(text: str) -> None:
    """Replace the line of progress."""
    print(f"\r{text}", end="", file=sys.stderr, flush=True)


def report(verdict: str, faults: Sequence[str]) -> int:
    """Say what a soak came to, below the line of progress; its status."""
    print(file=sys.stderr)
    for fault in faults[:10]:
        print(fault)
    print(verdict)
    return int(bool(faults))


def main(argv: Sequence[str] | None = None) -> int:
    """Run it.

    Returns:
        0 if all held, 1 if not, 130 if it was interrupted; wrong usage exits with 2.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, metavar="N", help="end after so many (a million)")
    parser.add_argument("--seconds", type=float, metavar="X", help="end after so long")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the questions (0)")
    parser.add_argument("--threads", type=int, default=8, metavar="N", help="of a process (8)")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="X", help="seconds from fork to kill (2)"
    )
    args = parser.parse_args(argv)
    if args.questions is None:
        args.questions = 10**6 if args.seconds is None else sys.maxsize
    if args.seconds is None:
        args.seconds = float("inf")
    try:
        with tempfile.TemporaryDirectory(prefix="minibert-soak-") as name:
            totals = soak(write_model(Path(name) / "model"), args)
    except KeyboardInterrupt:
        print("\nsoak: interrupted", file=sys.stderr)
        return 130
    return report(totals.verdict(), totals.faults)


if __name__ == "__main__":
    sys.exit(main())
