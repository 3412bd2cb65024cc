"""The routes: which address answers what, and what each request leaves in log and numbers."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from minibert.errors import InputError, MinibertError
from minibert.serve import contract, metrics
from minibert.serve.bodies import Body
from minibert.serve.journal import access_line
from minibert.serve.keys import has_key
from minibert.serve.page import security_policy, whole_page
from minibert.serve.refusals import Refusal, stopping
from minibert.serve.service import Answerer, Reader, Service

CLIENT_LEFT = 499  # as nginx says it in its log; nobody receives it
# The page and all answers are for one reader at a time, and are no other kind of file.
SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def create_app(
    service: Service, *, key: str | None = None, log: Callable[[str], None] | None = None
) -> Starlette:
    """The application, for any ASGI server.

    Args:
        service: what answers; it is closed when the application ends.
        key: that requests must have, but those for the page, its description and its health.
        log: takes the lines of the access log.
    """

    async def predict(request: Request) -> Response:
        return await answered(
            request,
            lambda body: contract.read_predict(body, request.query_params),
            contract.predict,
        )

    async def answer(request: Request) -> Response:
        return await answered(request, contract.read_answer, contract.answer)

    async def answered(request: Request, read: Reader, answer: Answerer) -> Response:
        check_key(request)
        service.check_open()
        body = Body(service)
        try:
            found, texts = await service.answer(request, await body.read(request), read, answer)
        except asyncio.CancelledError:  # by a server that ends at once
            raise stopping() from None
        finally:
            body.close()
        request.state.texts = texts
        return reply(found)

    async def root(request: Request) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse("Ok", headers={"vary": "accept"})
        headers = {**SAFE, "content-security-policy": security_policy(), "vary": "accept"}
        return HTMLResponse(whole_page(with_key=key is not None), headers=headers)

    async def health(request: Request) -> Response:
        alive = service.joiner.thread.is_alive()
        return PlainTextResponse(*(("Ok",) if alive else ("The model's thread has ended", 503)))

    async def ready(request: Request) -> Response:
        service.check_open()
        return await health(request)

    async def numbers(request: Request) -> Response:
        check_key(request)
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)

    async def description(request: Request) -> Response:
        return reply(openapi())

    def check_key(request: Request) -> None:
        if not has_key(request.headers.get("authorization"), key):
            raise Refusal(401, "this server needs its API key: 'Authorization: Bearer KEY'")

    @asynccontextmanager
    async def life(_: Starlette) -> Any:
        yield
        await asyncio.to_thread(service.close)  # meanwhile the last answers go out

    routes = [
        Route("/", root, methods=["GET"]),
        Route("/", predict, methods=["POST"]),
        Route("/predict", predict, methods=["POST"]),
        Route("/answer", answer, methods=["POST"]),
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/metrics", numbers, methods=["GET"]),
        Route("/openapi.json", description, methods=["GET"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            MinibertError: on_minibert_error,
            HTTPException: on_http_exception,
            ClientDisconnect: on_client_left,
            Exception: on_fault,
        },
        lifespan=life,
    )
    paths = {route.path for route in routes}
    app.router.redirect_slashes = False  # or the place of a redirect would be the client's choice
    recorded: Any = functools.partial(Recorded, service=service, paths=paths, log=log)
    app.add_middleware(recorded)
    return app


@functools.cache
def openapi() -> bytes:
    """The description of all routes, in OpenAPI's words."""
    return files("minibert.serve").joinpath("openapi.json").read_bytes()


# ---------------------------------------------------------------- errors
# What is made of them is made in the loop: a thread might not come to it before the end.


def reply(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON that is written already."""
    return Response(body, status, {**SAFE, **(headers or {})}, "application/json")


def error_reply(request: Request, status: int, message: str, headers: dict[str, str]) -> Response:
    """What is sent in place of an answer."""
    if "expect" in request.headers:  # the body that waits for a word will not come
        headers = {**headers, "connection": "close"}
    return reply(contract.written({"error": message}), status, headers)


async def on_minibert_error(request: Request, error: Exception) -> Response:
    """A request that cannot be answered, or, with status 500, a model that cannot run."""
    headers = {}
    status = 422 if isinstance(error, InputError) else 500
    if isinstance(error, Refusal):
        status = error.status
        if error.retry_after is not None:
            headers["retry-after"] = str(error.retry_after)
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        if status in (408, 503):
            headers["connection"] = "close"
    return error_reply(request, status, str(error), headers)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """An address or a method that there is not."""
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    return error_reply(request, error.status_code, error.detail, headers)


async def on_client_left(request: Request, error: Exception) -> Response:
    """Nobody reads this; it is for the log."""
    return Response(status_code=CLIENT_LEFT)


async def on_fault(request: Request, error: Exception) -> Response:
    """A fault of the server's own; the log has its traceback."""
    return error_reply(request, 500, "the server failed; its log says why", {})


# ---------------------------------------------------------------- what is seen of a request


class Recorded:
    """Counts requests and writes the access log.

    Args:
        app: the application.
        service: whose numbers they are.
        paths: of the routes; others share a name, or anybody could fill the memory with them.
        log: takes a line; None: there is no access log.
    """

    def __init__(
        self, app: Any, service: Service, paths: set[str], log: Callable[[str], None] | None
    ) -> None:
        self.app, self.service, self.paths, self.log = app, service, paths, log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status, size = 500, 0  # what a fault gets, outside of this

        async def sending(message: Any) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            size += len(message.get("body", b""))
            await send(message)

        self.service.open_requests += 1
        try:
            await self.app(scope, receive, sending)
        finally:
            self.service.open_requests -= 1
            self._record(scope, status, size, time.monotonic() - began)

    def _record(self, scope: Any, status: int, size: int, seconds: float) -> None:
        """Count it and write its line."""
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.service.metrics.requests.add(path, str(status))
        self.service.metrics.seconds.add(seconds)
        if self.log is not None:
            client = scope["client"][0] if scope.get("client") else "-"
            target = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
            texts = scope.get("state", {}).get("texts", 0)
            self.log(
                access_line(
                    client, scope["method"], target.decode("latin-1"), status, size, seconds, texts
                )
            )
