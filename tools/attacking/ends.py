"""kill -9 and a new start, SIGTERM in the midst of work, and keys."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from serving import PATIENCE, Server, served, without_key

from attacking.wire import Outcomes, asked, connect, exchange, head, outcome, request

KEY = "a-key-of-this-attack"
LATER = 3  # clients who ask when the server has been told to stop


def killed(folder: str, more: list[str]) -> tuple[Outcomes, str]:
    """Kill -9 while it answers; then it starts again at the same port, and answers."""
    found = Outcomes()
    with served(folder, *more) as server, connect(server.port) as connection:
        connection.sendall(request(long_body(20_000)))
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(PATIENCE)
        found[outcome(connection)] += 1
    begin = time.monotonic()
    with served(folder, *more, port=server.port) as again:
        found[asked(again.port)] += 1
        return found, f"answers {time.monotonic() - begin:.1f} s after its start"


def told_to_stop(folder: str, more: list[str], clients: int) -> tuple[Outcomes, str]:
    """SIGTERM when requests are under way: they are answered, later ones are not taken."""
    body = long_body(40_000)
    with served(folder, *more) as server, ThreadPoolExecutor(clients) as pool:
        taken = [pool.submit(exchange, server.port, request(body)) for _ in range(clients)]
        while server.number("minibert_waiting_texts") < min(
            clients, sum(not each.done() for each in taken)
        ):
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        later = Outcomes(late(server) for _ in range(LATER))
        found = Outcomes(each.result() for each in taken)
        status = server.process.wait(PATIENCE)
    said = ", ".join(f"{each} ({times})" for each, times in later.items())
    return found, f"who comes later: {said}; it ends with status {status}"


def late(server: Server) -> str:
    """What a client gets who comes when the server has been told to stop."""
    try:
        return asked(server.port)
    except ConnectionError:
        return "refused"


def told_twice(folder: str, more: list[str]) -> tuple[Outcomes, str]:
    """Two SIGTERM: it ends at once, whatever is under way."""
    with served(folder, *more) as server:
        found: list[str] = []
        asking = threading.Thread(
            target=lambda: found.append(exchange(server.port, request(long_body(190_000))))
        )
        asking.start()
        while not server.number("minibert_waiting_texts") and asking.is_alive():
            time.sleep(0.01)
        begin = time.monotonic()
        for _ in range(2):
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        status = server.process.wait(PATIENCE)
        asking.join()
    return Outcomes(found), f"it ended with status {status}, {time.monotonic() - begin:.1f} s later"


def long_body(characters: int) -> bytes:
    """A request about a text that takes a while."""
    text = ("ada lee wrote it in 1843 . " * (1 + characters // 27))[:characters]
    return json.dumps({"inputs": {"question": "who wrote it", "context": text}}).encode()


def wrong_keys(folder: str, more: list[str]) -> tuple[Outcomes, str]:
    """A server with a key: without it, with others, and with the right one."""
    wrong = (
        "",
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Bearer x{KEY}",
        "Bearer",
    )
    wrong += (
        f"Bearer {KEY} {KEY}",
        "Bearer \u00e9",
        f"Bearer {'k' * 30_000}",
        f"Bearer {KEY.upper()}",
    )
    environment = {**without_key(os.environ), "MINIBERT_API_KEY": KEY}
    with served(folder, *more, environment=environment) as server:
        found = Outcomes(
            exchange(server.port, request(path=path, Authorization=given))
            for path in ("/", "/predict", "/answer")
            for given in wrong
        )
        found[exchange(server.port, head("GET", "/metrics"))] += 1
        twice = request(Authorization=f"Bearer x\r\nAuthorization: Bearer {KEY}")
        found[exchange(server.port, twice)] += 1
        right = exchange(server.port, request(Authorization=f"Bearer {KEY}"))
        return found, f"with the right one: {right}"
