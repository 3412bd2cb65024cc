import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette", reason="minibert's extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="minibert's extra 'serve' is not installed")

from servers import PATIENCE, Served, received, until

from minibert.errors import InputError
from minibert.serve import journal
from minibert.serve.journal import AccessLog
from minibert.serve.keys import find_key
from minibert.serve.server import listen, most_connections

PAIR = {"question": "who wrote it", "context": "ada lovelace wrote it in 1843 ."}
ASKED = json.dumps({"inputs": PAIR}).encode()
SHORT = 0.2  # seconds


def request(body=ASKED, length=None, more=""):
    """A request to /predict as bytes."""
    length = len(body) if length is None else length
    return f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{more}\r\n".encode() + body


def status_of(answer):
    return int(answer.split()[1])


def lets_wait(served):
    """Let the model wait; the event that lets it run, and one that says that it waits."""
    begun, go = threading.Event(), threading.Event()
    run = served.service.joiner.run

    def waiting(windows):
        begun.set()
        assert go.wait(PATIENCE)
        return run(windows)

    served.service.joiner.run = waiting
    return begun, go


# ---------------------------------------------------------------- too much


def test_a_body_that_is_too_long_is_refused_before_it_is_read(tiny):
    with Served(tiny, max_body=1000, max_bodies=1000) as served:
        with served.connect() as connection:
            connection.sendall(request(b"", length=10**8))  # not a byte of it is sent
            answer = connection.recv(1000)
        assert status_of(answer) == 413
        with served.connect() as connection:
            connection.sendall(request(b"", length=10**8, more="Expect: 100-continue\r\n"))
            answer = received(connection)  # and the connection ends
        assert status_of(answer) == 413
        with served.connect() as connection:
            connection.sendall(request(b"", length=10**19))
            assert status_of(connection.recv(1000)) == 413
        assert served.ask("POST", "/", b"x" * 10**7)[0] == 413  # a client that sends all of it
        chunks = (b"x" * 10_000 for _ in range(100))  # its length is not said
        assert served.ask("POST", "/", chunks)[0] == 413
        assert served.post("/", {"inputs": PAIR})[0] == 200
        assert served.service.bodies.taken == 0


def test_a_connection_goes_on_after_a_body_that_was_too_long(tiny):
    with Served(tiny, max_body=1000) as served, served.connect() as connection:
        connection.sendall(request(b"x" * 100_000) + request(ASKED, more="Connection: close\r\n"))
        answers = received(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"413", b"200"]


def test_more_than_a_request_may_hold_is_refused(tiny):
    with Served(tiny, max_texts=3, max_characters=150, max_tokens=200, queue=4) as served:

        def predict(inputs, **parameters):
            status, answer = served.post("/", {"inputs": inputs, "parameters": parameters})
            return status, answer["error"] if status != 200 else ""

        small = {"question": "who", "context": "ada"}
        assert predict([small] * 3) == (200, "")
        assert predict([small] * 4) == (413, "the request holds 4 texts, and the limit is 3")
        assert predict({"question": "who", "context": "ada " * 36 + "ada"})[0] == 200
        assert predict({"question": "who", "context": "ada " * 37})[0] == 413
        body = {"question": "who", "context": ["ada"] * 4}
        assert served.post("/answer", body)[0] == 413
        text = "ada wrote it . " * 8  # 32 tokens
        assert predict({"question": "who", "context": text}, max_seq_len=20)[0] == 200
        status, words = predict({"question": "who", "context": text}, max_seq_len=20, doc_stride=15)
        assert status == 413
        assert "send less text or lower doc_stride" in words
        several = [{"question": "who", "context": text}] * 3  # each of them would do
        assert predict(several, max_seq_len=20)[0] == 413


def test_the_size_of_windows_is_known_before_they_are_made(tiny):
    with Served(tiny, max_tokens=300) as served:
        words = "ada wrote it . " * 25
        for long in (20, 30, 40):
            for stride in range(0, 30, 3):
                for cut in (None, 1, 4):
                    options = {
                        "max_seq_length": long,
                        "doc_stride": stride,
                        "max_question_length": cut,
                    }
                    question = "who was it that wrote the first of them"
                    try:
                        windows = tiny.windows(question, [words], **options)
                    except InputError:
                        expected = 422
                    else:
                        room = len(windows) * long > 300
                        expected = 413 if room else 200
                    body = {"question": question, "context": words, **options}
                    assert served.post("/answer", body)[0] == expected, options


def test_a_full_queue_sends_clients_away_for_a_while(tiny):
    with Served(tiny, queue=3) as served:
        begun, go = lets_wait(served)
        with ThreadPoolExecutor(4) as clients:
            first = [clients.submit(served.post, "/", {"inputs": PAIR}) for _ in range(2)]
            until(lambda: served.service.places.taken == 2)
            assert served.post("/", {"inputs": [PAIR] * 3})[0] == 429  # one place is left
            first.append(clients.submit(served.post, "/", {"inputs": PAIR}))
            until(lambda: served.service.places.taken == 3)
            status, headers, body = served.ask("POST", "/", ASKED)
            assert (status, list(json.loads(body))) == (429, ["error"])
            assert int(headers["retry-after"]) >= 1
            assert served.ask("GET", "/health")[0] == served.ask("GET", "/metrics")[0] == 200
            go.set()
            assert [each.result()[0] for each in first] == [200] * 3
        until(lambda: served.service.places.taken == 0)
        assert served.post("/", {"inputs": [PAIR] * 3})[0] == 200
        until(lambda: served.service.places.taken == 0)
        assert begun.is_set()


def test_long_bodies_and_short_ones_do_not_wait_for_each_other(tiny):
    long = {"question": "who wrote it", "context": "ada wrote it . " * 30}
    with Served(tiny, long_body=300, readers=1) as served, ThreadPoolExecutor(1) as client:
        for held, waiting, other in (
            (served.service.turn, PAIR, long),
            (served.service.long_turn, long, PAIR),
        ):
            with held:
                first = client.submit(served.post, "/", {"inputs": waiting})
                until(lambda: served.service.places.taken == 1)
                assert served.post("/", {"inputs": other})[0] == 200
                assert not first.done()
            assert first.result()[0] == 200
            until(lambda: served.service.places.taken == 0)


def test_a_long_text_is_done_before_the_next_one_is_begun(tiny):
    texts = ["ada wrote it . " * 30, "lee found it . " * 30]
    settings = {"long_body": 300, "long_requests": 1}
    with Served(tiny, batch_tokens=64, **settings) as served, ThreadPoolExecutor(2) as clients:
        first, second = (tiny.tokenizer.encode(name).ids[0] for name in ("ada", "lee"))
        begun, go = lets_wait(served)
        run, order = served.service.joiner.run, []

        def recorded(windows):
            order.extend(second if second in window.input_ids else first for window in windows)
            return run(windows)

        served.service.joiner.run = recorded
        pairs = [{"question": "who", "context": text} for text in texts]
        taken = [clients.submit(served.post, "/", {"inputs": pairs[0]})]
        assert begun.wait(PATIENCE)
        taken.append(clients.submit(served.post, "/", {"inputs": pairs[1]}))
        until(lambda: served.service.places.taken == 2)
        time.sleep(SHORT)  # in which it could be begun
        go.set()
        assert [each.result()[0] for each in taken] == [200, 200]
    assert first != second
    assert order == sorted(order, key=[first, second].index)
    assert set(order) == {first, second}


def test_bodies_that_others_send_leave_no_room(tiny):
    with Served(tiny, max_bodies=10_000) as served:
        with served.connect() as other:
            other.sendall(request(b"x" * 9_990, length=10_000))
            until(lambda: served.service.bodies.taken == 9_990)
            assert served.post("/", {"inputs": PAIR})[0] == 429
        until(lambda: served.service.bodies.taken == 0)
        assert served.post("/", {"inputs": PAIR})[0] == 200


# ---------------------------------------------------------------- too slow


def test_headers_that_trickle_in_do_not_hold_a_connection(tiny):
    with Served(tiny, head_seconds=SHORT) as served:
        for sent in (b"", b"POST / HTTP/1.1\r\nHost: a\r\n"):
            with served.connect() as connection:
                connection.sendall(sent)
                assert received(connection) == b""  # the server closes it
        stop = threading.Event()
        with served.connect() as connection:

            def trickle():
                while not stop.wait(SHORT / 10):
                    try:
                        connection.sendall(b"x: y\r\n")
                    except OSError:
                        return

            connection.sendall(b"GET / HTTP/1.1\r\n")
            threading.Thread(target=trickle, daemon=True).start()
            assert received(connection) == b""
            stop.set()
        until(lambda: not served.server.server_state.connections)


@pytest.mark.slow
def test_a_connection_that_waits_after_an_answer_is_closed(tiny):
    with Served(tiny, idle_seconds=SHORT, head_seconds=SHORT) as served:
        with served.connect() as connection:
            connection.sendall(request())
            assert status_of(received(connection)) == 200
        with served.connect() as connection:  # the beginning of another request saves it not
            connection.sendall(request() + b"GET / HT")
            assert received(connection).count(b"HTTP/1.1") == 1


def test_a_body_that_trickles_in_is_given_up(tiny):
    with Served(tiny, body_seconds=SHORT, head_seconds=SHORT, idle_seconds=SHORT) as served:
        with served.connect() as connection:
            connection.sendall(request(ASKED[:-1], length=len(ASKED)))
            assert status_of(received(connection)) == 408
        until(lambda: not served.server.server_state.connections)
        assert served.service.bodies.taken == 0


def test_a_body_whose_client_leaves_is_forgotten(tiny):
    with Served(tiny) as served:
        with served.connect() as connection:
            connection.sendall(request(ASKED[:-1], length=len(ASKED)))
            until(lambda: served.service.bodies.taken)
        until(lambda: served.service.bodies.taken == served.service.open_requests == 0)
        until(lambda: served.lines)
        assert '"POST /" 499' in served.lines[-1]


def test_an_answer_that_takes_too_long_is_given_up(tiny):
    with Served(tiny, answer_seconds=SHORT) as served:
        _, go = lets_wait(served)
        status, answer = served.post("/", {"inputs": PAIR})
        assert (status, answer["error"].partition(";")[0]) == (
            503,
            "no answer was found within 0.2 seconds",
        )
        go.set()
        until(lambda: served.service.places.taken == 0)


def test_nothing_is_run_for_a_client_that_left(tiny):
    with Served(tiny) as served:
        begun, go = lets_wait(served)
        with ThreadPoolExecutor(1) as other:
            first = other.submit(served.post, "/", {"inputs": PAIR})
            assert begun.wait(PATIENCE)
            with served.connect() as connection:
                connection.sendall(request())
                until(lambda: served.service.joiner.tokens)
            until(lambda: '"POST /" 499' in " ".join(served.lines))
            go.set()
            assert first.result()[0] == 200
        until(lambda: served.service.places.taken == 0)
        assert served.service.metrics.batch_requests.sum == 1


@pytest.mark.slow
def test_a_client_that_does_not_take_its_answer_is_cut(tiny):
    times = {"body_seconds": SHORT, "answer_seconds": SHORT, "head_seconds": SHORT}
    with Served(tiny, idle_seconds=SHORT, **times) as served, served.connect() as connection:
        page = b"GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n"
        connection.settimeout(SHORT)
        try:
            while True:  # until both ends have no more room
                connection.sendall(page * 1000)
        except OSError:
            pass
        until(lambda: not served.server.server_state.connections)


def test_connections_beyond_the_limit_are_told_so(tiny):
    with Served(tiny, max_connections=2) as served:
        first = [served.connect() for _ in range(2)]
        until(lambda: len(served.server.server_state.connections) == 2)
        with served.connect() as third:
            head, _, body = received(third).partition(b"\r\n\r\n")
        assert status_of(head) == 503
        assert f"content-length: {len(body)}".encode() in head
        assert list(json.loads(body)) == ["error"]
        assert served.service.metrics.refused.values == {(): 1}
        first[0].sendall(request(more="Connection: close\r\n"))
        assert status_of(received(first[0])) == 200
        until(lambda: len(served.server.server_state.connections) == 1)
        assert served.post("/", {"inputs": PAIR})[0] == 200
        for connection in first:
            connection.close()


def test_a_request_that_is_no_http_is_refused(tiny):
    with Served(tiny) as served:
        for sent in (b"\x16\x03\x01" + b"\0" * 200, b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
            with served.connect() as connection:
                connection.sendall(sent)
                answer = received(connection)
            assert status_of(answer) == 400
            assert list(json.loads(answer.partition(b"\r\n\r\n")[2])) == ["error"]
        with served.connect() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n" + b"a: " + b"x" * 10**6)
            assert received(connection)[:12] in (b"HTTP/1.1 400", b"")  # or it was cut at once
        twice = f"Content-Length: {len(ASKED) + 1}\r\n"
        with served.connect() as connection:
            connection.sendall(request(more=twice))
            assert status_of(received(connection)) == 400


def test_what_is_damaged_after_the_answer_ends_the_connection_and_nothing_else(tiny, caplog):
    begun = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Served(tiny, max_body=1000) as served:
        with served.connect() as connection:
            connection.sendall(begun + b"7d0\r\n" + b"x" * 2000 + b"\r\n")
            assert status_of(connection.recv(1000)) == 413
            connection.sendall(b"no number\r\n")
            assert b"HTTP/1.1" not in received(connection)
        assert served.post("/", {"inputs": PAIR})[0] == 200
    assert caplog.records == []


# ---------------------------------------------------------------- keys


def test_a_key_is_needed_where_there_is_one(tiny):
    with Served(tiny, key="the-key") as served:
        for given in ({}, {"authorization": "Bearer the-kez"}, {"authorization": "the-key"}):
            for path in ("/", "/predict", "/answer"):
                status, headers, body = served.ask("POST", path, ASKED, given)
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert list(json.loads(body)) == ["error"]
            assert served.ask("GET", "/metrics", headers=given)[0] == 401
        for path in ("/", "/health", "/ready", "/openapi.json"):
            assert served.ask("GET", path)[0] == 200
        right = {"authorization": "Bearer the-key"}
        assert served.ask("POST", "/", ASKED, right)[0] == 200
        assert served.ask("GET", "/metrics", headers=right)[0] == 200
        assert served.ask("POST", "/", ASKED, {"authorization": "Bearer \xe9"})[0] == 401
    assert "the-key" not in "".join(served.lines)


def test_a_key_comes_from_the_environment_or_a_file(monkeypatch, tmp_path):
    monkeypatch.delenv("MINIBERT_API_KEY", raising=False)
    assert find_key(None) is None
    monkeypatch.setenv("MINIBERT_API_KEY", "abc")
    assert find_key(None) == "abc"
    file = tmp_path / "key"
    file.write_text("def\r\n", encoding="utf-8")
    assert find_key(str(file)) == "def"
    for content, words in ((b"", "empty"), (b"\n", "empty"), (b"a b", "not"), (b"a\nb", "not")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"one line of letters.*this one is {words}"):
            find_key(str(file))
    for content in (b"\xff", "schlüssel".encode()):
        file.write_bytes(content)
        with pytest.raises(InputError, match="key"):
            find_key(str(file))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        find_key(str(tmp_path / "none"))
    monkeypatch.setenv("MINIBERT_API_KEY", "")
    with pytest.raises(InputError, match="MINIBERT_API_KEY: .* empty"):
        find_key(None)


# ---------------------------------------------------------------- the log


def test_a_line_of_the_log_cannot_be_forged(tiny):
    with Served(tiny) as served:
        served.ask("GET", "/a%0a127.0.0.1%20%1b[2J?key=secret")
        with served.connect() as connection:
            connection.sendall(b'GET /"\x1b[2J\xff HTTP/1.1\r\nHost: a\r\n\r\n')
            received(connection)
        until(lambda: served.lines)
    for line in served.lines:
        assert re.fullmatch(
            r'[\dT:.-]+Z 127\.0\.0\.1 "[A-Z]+ [!#-~]+" \d+ \d+ bytes [\d.]+ ms \d+ texts', line
        )
        assert "secret" not in line


def test_a_log_that_nobody_reads_holds_up_nobody(monkeypatch):
    go, said = threading.Event(), []

    def say(text):
        go.wait(PATIENCE)
        said.append(text)

    monkeypatch.setattr(journal, "say", say)
    log = AccessLog()
    for number in range(journal.LINES + 100):
        log.add(str(number))
    go.set()
    until(lambda: len(said) >= journal.LINES)
    log.add("more")
    log.close()
    assert any("lines of the access log were lost" in line for line in said)
    assert "more\n" in said


# ---------------------------------------------------------------- the end


def test_the_last_requests_are_answered_and_new_ones_are_not_taken(tiny):
    with Served(tiny) as served:
        begun, go = lets_wait(served)
        idle = served.connect()
        until(lambda: served.server.server_state.connections)
        with ThreadPoolExecutor(2) as clients:
            taken = [clients.submit(served.post, "/", {"inputs": PAIR}) for _ in range(2)]
            until(lambda: served.service.places.taken == 2 and begun.is_set())
            served.stop()
            assert served.ask("GET", "/ready")[0] == 503
            assert served.ask("GET", "/health")[0] == 200
            status, headers, _ = served.ask("POST", "/", ASKED)
            assert (status, headers["connection"]) == (503, "close")
            assert "retry-after" in headers
            go.set()
            assert [each.result()[0] for each in taken] == [200] * 2
        assert received(idle) == b""
        idle.close()
        served.thread.join(PATIENCE)
        assert not served.service.joiner.thread.is_alive()
        with pytest.raises(ConnectionRefusedError):
            served.connect()


def test_a_second_signal_ends_it_at_once(tiny):
    with Served(tiny) as served:
        begun, go = lets_wait(served)
        with served.connect() as connection:
            connection.sendall(request())
            assert begun.wait(PATIENCE)
            served.stop()
            served.stop()
            answer = received(connection)
            go.set()
        assert served.server.force_exit
    assert status_of(answer) == 503
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": "the server is stopping"}


@pytest.mark.slow
def test_answers_that_take_too_long_do_not_hold_up_the_end(tiny):
    with Served(tiny, stop_seconds=SHORT) as served:
        begun, go = lets_wait(served)
        with served.connect() as connection:
            connection.sendall(request())
            assert begun.wait(PATIENCE)
            served.stop()
            answer = received(connection)  # before the model has anything to say
            go.set()
        assert not served.server.force_exit
    assert status_of(answer) == 503
    until(lambda: not served.service.joiner.thread.is_alive())


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a program can heed")
def test_the_command_serves_until_it_is_told_to_stop(tiny_folder, tmp_path):
    key = tmp_path / "key"
    key.write_text("abc\n", encoding="utf-8")
    command = [sys.executable, "-m", "minibert", "serve", "--port", "0", "--model", tiny_folder]
    process = subprocess.Popen(
        [*map(str, command), "--api-key-file", str(key), "--device", "reference"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        line = process.stderr.readline()
        port = int(re.search(r"serving .* at http://127\.0\.0\.1:(\d+)\n", line)[1])
        import urllib.request

        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/", ASKED, {"authorization": "Bearer abc"}
        )
        with urllib.request.urlopen(asked, timeout=PATIENCE) as response:
            assert "answer" in json.load(response)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "")
    log, end = err.splitlines()
    assert '"POST /" 200' in log
    assert end == "minibert: stopped"


def test_a_port_that_is_taken_is_named():
    with listen("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1, port {port}: Address"):
            listen("127.0.0.1", port)
    for host in ("no.such.host.invalid", "a" * 300, ""):
        if host:
            with pytest.raises(InputError, match="cannot listen at"):
                listen(host, 0)


def test_no_more_connections_are_promised_than_files_can_be_opened(monkeypatch):
    resource = pytest.importorskip("resource", reason="only on Unix")
    limits = [100, 500]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.__setitem__(0, new[0]))
    assert most_connections(20) == 20
    assert limits[0] == 100
    assert most_connections(300) == 300
    assert limits[0] == 364
    assert most_connections(10**6) == 500 - 64
