"""Concurrent requests share packed batches.

One thread runs the model.  Each request brings windows and waits for their logits.  A batch takes
one window of each request in turn, those first that wait longest, while there is room.  It goes
round again only to be large enough to keep the processor busy: so a request of hundreds of windows
gets on when nobody else is there, and holds up a short one no longer than one small batch.

When a batch has ended and others wait already, the thread waits a few milliseconds more: those who
were just answered often come back at once, and a fuller batch is cheaper.  When nobody waits, the
first to come is run at once.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from minibert.serve.refusals import stopping, too_busy
from minibert.spans import Logits
from minibert.windows import Window

# The part of a batch that is filled with several windows of a request.  On two Zen 5 cores, windows
# of 384 tokens cost the same three at a time as eleven at a time.
FILLED = 4
# The part of the time for an answer that the model may need for all that waits; splitting texts and
# short requests need the rest.
MARGIN = 0.75


@dataclass(eq=False)
class Reading:
    """The windows of one request on their way through the model."""

    windows: list[Window]
    # The logits of all windows; who waits no more cancels it.
    result: Future[list[Logits]]
    begun: int = 0  # how many windows are in a batch
    logits: list[Logits] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Those that are in no batch yet."""
        return sum(map(len, self.windows[self.begun :]))


@dataclass(frozen=True)
class BatchSeen:
    """What one batch was, for whoever counts."""

    tokens: int
    requests: int
    seconds: float


class Joiner:
    """Runs the windows of many requests together.

    Args:
        run: a packed batch through the model: windows -> the logits of each.
        batch_tokens: tokens of a batch; a longer window is a batch of its own.
        join_seconds: that a busy server waits for more requests to fill a batch.
        seen: told of each batch.
        patience: seconds after which nobody waits for logits any more.
    """

    def __init__(
        self,
        run: Callable[[list[Window]], list[Logits]],
        *,
        batch_tokens: int,
        join_seconds: float,
        seen: Callable[[BatchSeen], None],
        patience: float = math.inf,
    ) -> None:
        self.run, self.batch_tokens, self.join_seconds = run, batch_tokens, join_seconds
        self.seen, self.patience = seen, patience
        self.changed = threading.Condition()  # guards the three below
        self.waiting: deque[Reading] = deque()
        self.tokens = 0  # of the windows that wait
        self.closed = False
        self.rate = 0.0  # tokens a second, of late
        self.thread = threading.Thread(target=self._work, name="minibert model", daemon=True)
        self.thread.start()

    def read(self, windows: list[Window], result: Future[list[Logits]]) -> list[Logits]:
        """The logits of each window; blocks until they are there.

        Args:
            windows: of one request.
            result: is cancelled by whoever does not want the logits any more.

        Raises:
            Refusal: the server is stopping.
            concurrent.futures.CancelledError: `result` was cancelled.
        """
        if not windows:
            return []
        reading = Reading(windows, result)
        with self.changed:
            if self.closed:
                raise stopping()
            self.waiting.append(reading)
            self.tokens += reading.tokens
            self.changed.notify()
        return result.result()

    def check_room(self, tokens: int) -> None:
        """Refuse a long text if those that wait and this one could not all be answered in time.

        They share the model, so that one too many would cost all of them their answers.  Texts of
        no more than a batch are not meant: they have their turn whoever else waits.

        Raises:
            Refusal: there is no room for so many tokens.
        """
        with self.changed:
            waiting, rate = self.tokens, self.rate
        if not waiting or not rate or tokens <= self.batch_tokens:
            return
        if waiting + tokens > MARGIN * rate * self.patience:
            raise too_busy(self.seconds_to_wait())

    def seconds_to_wait(self) -> int:
        """About how long what waits now will take, from 1 to 30."""
        with self.changed:
            tokens = self.tokens
        return max(1, min(30, round(tokens / self.rate))) if self.rate else 1

    def close(self) -> None:
        """End the thread when everything that waits was run."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        """Run batches until `close`."""
        while batch := self._next_batch():
            began = time.monotonic()
            try:
                logits = self.run([window for _, window in batch])
            except Exception as error:  # whatever it is, this thread has others to serve
                for reading in {reading for reading, _ in batch}:
                    self._drop(reading)
                    if reading.result.set_running_or_notify_cancel():
                        reading.result.set_exception(error)
                continue
            seconds = time.monotonic() - began
            for (reading, _), found in zip(batch, logits, strict=True):
                reading.logits.append(found)
                if len(reading.logits) == len(reading.windows) and (
                    reading.result.set_running_or_notify_cancel()
                ):
                    reading.result.set_result(reading.logits)
            tokens = sum(len(window) for _, window in batch)
            rate = tokens / max(seconds, 1e-6)
            self.rate = 0.8 * self.rate + 0.2 * rate if self.rate else rate
            self.seen(BatchSeen(tokens, len({reading for reading, _ in batch}), seconds))

    def _next_batch(self) -> list[tuple[Reading, Window]]:
        """The windows to run next, each with whose it is; none when all is done and closed."""
        batch: list[tuple[Reading, Window]] = []
        with self.changed:
            while not batch:
                if self.waiting:  # a batch was running when they came
                    self.changed.wait_for(self._is_full, self.join_seconds)
                else:
                    self.changed.wait_for(lambda: self.waiting or self.closed)
                if not self.waiting and self.closed:
                    return []
                batch = self._take()
        return batch

    def _is_full(self) -> bool:
        """Whether what waits fills a batch."""
        return self.closed or self.tokens >= self.batch_tokens

    def _take(self) -> list[tuple[Reading, Window]]:
        """A window of each who waits, in turn, until a batch is full.  The lock is held."""
        batch: list[tuple[Reading, Window]] = []
        room = self.batch_tokens
        served: set[Reading] = set()
        while self.waiting:
            reading = self.waiting[0]
            if reading.result.cancelled():
                self._forget(reading)
                continue
            window = reading.windows[reading.begun]
            if batch and len(window) > room:
                break
            if reading in served and room <= self.batch_tokens - self.batch_tokens // FILLED:
                break
            served.add(reading)
            self.waiting.popleft()
            batch.append((reading, window))
            room -= len(window)
            self.tokens -= len(window)
            reading.begun += 1
            if reading.begun < len(reading.windows):
                self.waiting.append(reading)  # behind those who have not had their turn
        return batch

    def _drop(self, reading: Reading) -> None:
        """Let a request wait no longer."""
        with self.changed:
            if reading in self.waiting:
                self._forget(reading)

    def _forget(self, reading: Reading) -> None:
        """Take a request from those who wait.  The lock is held."""
        self.waiting.remove(reading)
        self.tokens -= reading.tokens
