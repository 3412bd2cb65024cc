import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("starlette", reason="minibert's extra 'serve' is not installed")

from servers import until

from minibert.errors import BackendError
from minibert.serve.joining import Joiner
from minibert.serve.refusals import Refusal
from minibert.tokenizer import Tokens
from minibert.windows import Window

NONE = Tokens("", *(np.zeros(0, np.int32),) * 3)


def window(first, length=10):
    """A window that can be told from others by its first token."""
    ids = np.full(length, first, np.int32)
    return Window(ids, np.zeros(length, np.int32), NONE, 0, 0, 0)


class Gate:
    """A model whose every batch waits until it is let through."""

    def __init__(self):
        self.batches, self.begun, self.open = [], threading.Semaphore(0), threading.Semaphore(0)
        self.failing = set()  # a batch with such a token fails

    def __call__(self, windows):
        tokens = [int(each.input_ids[0]) for each in windows]
        self.batches.append(tokens)
        self.begun.release()
        self.open.acquire()
        if self.failing & set(tokens):
            raise BackendError("the weights are damaged")
        return [(np.float32(token), np.float32(-token)) for token in tokens]

    def let_through(self, count=1000):
        self.open.release(count)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def joiner(gate):
    seen = []
    joiner = Joiner(gate, batch_tokens=30, join_seconds=0.0, seen=seen.append)
    joiner.seen_batches = seen
    yield joiner
    gate.let_through()
    joiner.close()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def ask(joiner, threads):
    """Let a request wait: ask(tokens) -> what its thread gives, and what cancels it."""

    def ask(*tokens, length=10):
        result, before = Future(), joiner.tokens
        windows = [window(token, length) for token in tokens]
        running = threads.submit(joiner.read, windows, result)
        if joiner_is_busy():
            until(lambda: joiner.tokens == before + length * len(tokens))
        return running, result

    def joiner_is_busy():
        return ask.busy

    ask.busy = False
    return ask


def first_of(found):
    return [int(start) for start, _ in found]


def test_each_gets_its_own_logits_in_order(gate, ask):
    gate.let_through()
    running = [ask(*range(first, first + 7))[0] for first in (100, 200, 300)]
    for first, each in zip((100, 200, 300), running, strict=True):
        assert first_of(each.result()) == list(range(first, first + 7))


def test_an_idle_model_runs_the_first_to_come_at_once(gate, ask):
    running, _ = ask(1)
    gate.begun.acquire()
    assert gate.batches == [[1]]
    gate.let_through()
    assert first_of(running.result()) == [1]


def test_those_who_come_while_a_batch_runs_share_the_next(gate, ask, joiner):
    ask(1)
    gate.begun.acquire()
    ask.busy = True
    others = [ask(token)[0] for token in (2, 3, 4, 5)]
    gate.let_through()
    assert [first_of(each.result()) for each in others] == [[2], [3], [4], [5]]
    assert gate.batches == [[1], [2, 3, 4], [5]]  # the oldest first; 30 tokens are a batch
    until(lambda: len(joiner.seen_batches) == 3)
    assert [(each.requests, each.tokens) for each in joiner.seen_batches] == [
        (1, 10),
        (3, 30),
        (1, 10),
    ]


def test_a_long_text_holds_up_a_short_one_for_one_batch(gate, ask):
    long, _ = ask(*range(100, 110))
    gate.begun.acquire()
    ask.busy = True
    short, _ = ask(1)
    other, _ = ask(2, 3)
    gate.let_through()
    assert first_of(short.result()) == [1]
    assert first_of(other.result()) == [2, 3]
    assert first_of(long.result()) == list(range(100, 110))
    assert gate.batches[:4] == [[100], [101, 1, 2], [102, 3], [103]]


def test_a_text_that_is_alone_fills_a_quarter_of_a_batch(gate, threads):
    joiner = Joiner(gate, batch_tokens=120, join_seconds=0.0, seen=lambda batch: None)
    gate.let_through()
    found = joiner.read([window(token) for token in range(7)], Future())
    assert first_of(found) == list(range(7))
    assert gate.batches == [[0, 1, 2], [3, 4, 5], [6]]
    joiner.close()


def test_short_ones_do_not_starve_a_long_text(gate, ask):
    first, _ = ask(0)
    gate.begun.acquire()
    ask.busy = True
    long, _ = ask(100, 101, 102)
    running = [ask(token)[0] for token in range(1, 7)]
    for _ in range(3):  # and more come all the time
        gate.open.release()
        gate.begun.acquire()
        running.append(ask(50 + len(running))[0])
    gate.let_through()
    assert first_of(long.result()) == [100, 101, 102]
    for each in (first, *running):
        each.result()
    place = [number for number, batch in enumerate(gate.batches) for one in batch if one >= 100]
    assert place == [1, 3, 4]  # one each time round


def test_a_window_longer_than_a_batch_runs_alone(gate, ask):
    ask(1)
    gate.begun.acquire()
    ask.busy = True
    for token in (2, 3):
        ask(token, length=50)
    gate.let_through()
    until(lambda: len(gate.batches) == 3)
    assert gate.batches == [[1], [2], [3]]


def test_nothing_runs_for_those_who_left(gate, ask, joiner):
    leaving, left = ask(*range(100, 110))
    gate.begun.acquire()
    ask.busy = True
    other, other_left = ask(1, 2)
    short, _ = ask(3)
    assert left.cancel()
    assert other_left.cancel()
    for each in (leaving, other):
        with pytest.raises(CancelledError):
            each.result()
    gate.let_through()
    assert first_of(short.result()) == [3]
    assert gate.batches == [[100], [3]]
    assert joiner.tokens == 0
    assert not joiner.waiting


def test_a_batch_that_fails_is_told_to_all_in_it_and_to_nobody_else(gate, ask, joiner):
    gate.failing = {3}
    ask(1)
    gate.begun.acquire()
    ask.busy = True
    failing = [ask(*tokens)[0] for tokens in ((2,), (3, 4, 5), (6,))]
    well, _ = ask(7)
    gate.let_through()
    for each in failing:
        with pytest.raises(BackendError, match="weights are damaged"):
            each.result()
    assert first_of(well.result()) == [7]
    assert gate.batches == [[1], [2, 3, 6], [7]]
    assert joiner.tokens == 0
    assert joiner.thread.is_alive()


def test_a_busy_model_waits_for_more_until_a_batch_is_full(gate, threads):
    seen = []
    joiner = Joiner(gate, batch_tokens=30, join_seconds=20.0, seen=seen.append)
    running = [threads.submit(joiner.read, [window(1)], Future())]
    gate.begun.acquire()
    running.append(threads.submit(joiner.read, [window(2)], Future()))
    until(lambda: joiner.tokens == 10)
    gate.let_through()
    until(lambda: seen)  # the first batch has ended, and the second waits
    running += [threads.submit(joiner.read, [window(token)], Future()) for token in (3, 4)]
    for each in running:
        each.result()
    assert sorted(gate.batches[1]) == [2, 3, 4]
    joiner.close()


def test_what_waits_is_answered_before_the_end_and_nothing_is_taken_after(gate, ask, joiner):
    running = [ask(1)[0]]
    gate.begun.acquire()
    ask.busy = True
    running += [ask(2, 3, 4, 5)[0], ask(6)[0]]
    closing = threading.Thread(target=joiner.close)
    closing.start()
    until(lambda: joiner.closed)
    with pytest.raises(Refusal, match="stopping"):
        joiner.read([window(7)], Future())
    gate.let_through()
    assert [len(each.result()) for each in running] == [1, 4, 1]
    closing.join()


def test_no_windows_need_no_batch(gate, joiner):
    assert joiner.read([], Future()) == []
    assert gate.batches == []


def test_a_long_text_that_would_cost_all_their_answers_is_refused(joiner):
    joiner.patience = 10.0
    joiner.check_room(10**6)  # nothing waits
    joiner.tokens = 700
    joiner.check_room(10**6)  # nothing is known yet
    joiner.rate = 100.0  # so three quarters of ten seconds are 750 tokens
    joiner.check_room(50)
    with pytest.raises(Refusal) as refused:
        joiner.check_room(51)
    assert (refused.value.status, refused.value.retry_after) == (429, 7)
    joiner.tokens = 10**6
    joiner.check_room(30)  # a batch; it has its turn
    joiner.tokens = 0


def test_waiting_takes_longer_when_more_waits(joiner):
    assert joiner.seconds_to_wait() == 1  # nothing is known yet
    joiner.rate = 100.0
    for tokens, seconds in ((0, 1), (500, 5), (10**6, 30)):
        joiner.tokens = tokens
        assert joiner.seconds_to_wait() == seconds
    joiner.tokens = 0
