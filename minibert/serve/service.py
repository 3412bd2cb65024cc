"""What all requests share: the model, its Joiner, the threads, and how many may be under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any

from starlette.requests import ClientDisconnect, Request

from minibert.model import Model
from minibert.reading import BATCH_TOKENS, GPU_BATCH_TOKENS
from minibert.serve.contract import check_texts, written
from minibert.serve.joining import BatchSeen, Joiner
from minibert.serve.metrics import Metrics
from minibert.serve.refusals import Refusal, stopping, too_busy, too_slow
from minibert.serve.settings import Settings
from minibert.serve.sharing import SharedModel, Ticket, released

THREADS = 256  # requests that share batches; more of them wait for one of these

# Understands a body: the request, and how many texts it has.
Reader = Callable[[bytes], tuple[dict[str, Any], int]]
# Answers such a request: what is sent as JSON.
Answerer = Callable[[dict[str, Any], SharedModel, Settings], Any]


class Service:
    """Answers requests, each in a thread of its own, whose windows share batches.

    Args:
        model: a loaded one.
        settings: the limits.
        batch_tokens: tokens of a batch; None: what suits the device.
    """

    def __init__(self, model: Model, settings: Settings, batch_tokens: int | None = None) -> None:
        self.model = replace(model, tokenizer=released(model.tokenizer))
        self.settings, self.metrics = settings, Metrics()
        usual = GPU_BATCH_TOKENS if model.kernels.launch is not None else BATCH_TOKENS
        self.joiner = Joiner(
            model.logits,
            batch_tokens=batch_tokens or usual,
            join_seconds=settings.join_seconds,
            seen=self._see,
            patience=settings.answer_seconds,
        )
        # A thread for each request that is under way: most of them wait for logits.
        self.threads = ThreadPoolExecutor(min(settings.queue, THREADS), "minibert request")
        # Long texts have a lane of their own, or a few of them would hold up all others.  Only the
        # oldest few are under way: all at once would share the model until the time of all is up.
        self.turn = threading.Semaphore(settings.readers)
        self.long_turn = threading.Semaphore(1)
        self.long_under_way = threading.Semaphore(settings.long_requests)
        self.places = Places(settings.queue)
        self.bodies = Places(settings.max_bodies)
        self.stopping = False
        self.open_requests = 0  # whose answers are not out yet
        self.metrics.gauge("minibert_waiting_texts", "Texts under way.", lambda: self.places.taken)
        self.metrics.gauge(
            "minibert_waiting_tokens", "Tokens that wait for a batch.", lambda: self.joiner.tokens
        )

    def check_open(self) -> None:
        """Refuse what comes when the server has been told to stop.

        Raises:
            Refusal: it has been.
        """
        if self.stopping:
            raise stopping()

    def busy(self) -> Refusal:
        """The refusal of what there is no room for now."""
        return too_busy(self.joiner.seconds_to_wait())

    async def answer(
        self, request: Request, body: bytes, read: Reader, answer: Answerer
    ) -> tuple[bytes, int]:
        """Answer one request, unless its client leaves or its time is up.

        Args:
            request: whose connection is watched.
            body: of the request.
            read: understands the body.
            answer: answers what `read` understood.

        Returns:
            The body of the answer, and how many texts were searched.

        Raises:
            MinibertError: it cannot be answered.
            ClientDisconnect: nobody waits for the answer any more.
        """
        if not self.places.take(1):
            raise self.busy()
        ticket = Ticket()
        work = self.threads.submit(self._work, body, read, answer, ticket)
        work.add_done_callback(lambda _: self.places.give(1))
        result: asyncio.Future[Any] = asyncio.wrap_future(work)
        result.add_done_callback(_look_at)
        leaves: asyncio.Future[Any] = asyncio.ensure_future(_leaves(request))
        try:
            done, _ = await asyncio.wait(
                {result, leaves},
                timeout=self.settings.answer_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if result in done:
                return result.result()
            if leaves in done:
                raise ClientDisconnect
            raise too_slow(self.settings.answer_seconds)
        finally:
            leaves.cancel()
            ticket.give_up()

    def _work(
        self, body: bytes, read: Reader, answer: Answerer, ticket: Ticket
    ) -> tuple[bytes, int]:
        """Understand a request, answer it and write the answer, in a thread."""
        more = 0
        under_way: AbstractContextManager[Any]
        turn, under_way = self.turn, nullcontext()
        if len(body) >= self.settings.long_body:
            turn, under_way = self.long_turn, self.long_under_way
        try:
            with under_way, turn:
                ticket.check()
                request, count = read(body)
                check_texts(request, count, self.settings)
                if not self.places.take(max(0, count - 1)):
                    raise self.busy()
                more = max(0, count - 1)
                model = SharedModel(
                    **{each.name: getattr(self.model, each.name) for each in fields(Model)},
                    joiner=self.joiner,
                    ticket=ticket,
                    turn=turn,
                    max_tokens=self.settings.max_tokens,
                )
                found = written(answer(request, model, self.settings))
                self.metrics.texts.add(count=count)
                return found, count
        except RecursionError:
            raise Refusal(400, "the body is nested too deep") from None
        except CancelledError:  # nobody waits for what is returned
            return b"", 0
        finally:
            self.places.give(more)

    def _see(self, batch: BatchSeen) -> None:
        """Count a batch."""
        self.metrics.batch_seconds.add(batch.seconds)
        self.metrics.batch_tokens.add(batch.tokens)
        self.metrics.batch_requests.add(batch.requests)

    def close(self) -> None:
        """End the threads, when they have done what they have begun."""
        self.stopping = True
        self.threads.shutdown()
        self.joiner.close()


class Places:
    """So many of something may be taken at the same time, and no more."""

    def __init__(self, count: int) -> None:
        self.count, self.taken = count, 0
        self.lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Take some, if there are so many."""
        with self.lock:
            if self.taken + count > self.count:
                return False
            self.taken += count
            return True

    def give(self, count: int) -> None:
        """Give some back."""
        with self.lock:
            self.taken -= count


async def _leaves(request: Request) -> None:
    """Wait until the client of a request, whose body has been read, is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _look_at(result: asyncio.Future[Any]) -> None:
    """Take note of an error that comes when nobody waits any more; asyncio would complain."""
    if not result.cancelled():
        result.exception()
