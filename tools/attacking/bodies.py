"""Requests that are HTTP, with odd bodies, fields, addresses and methods."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

from attacking.wire import ASKED, PAIR, head, request

PARAMETERS = (
    "top_k doc_stride max_answer_len max_seq_len max_question_len handle_impossible_answer "
    "align_to_words"
).split()
OPTIONS = (
    "n max_seq_length doc_stride max_question_length max_answer_length null_score_diff_threshold "
    "align_to_words max_overlap min_score"
).split()
VALUES = [
    *(b"null", b"true", b"false", b"0", b"-1", b"1", b"7", b"1.5", b"-0.0", b"1e999", b"-1e999"),
    *(b"1e-999", b"9007199254740993", b"1" + b"0" * 30, b'""', b'"7"', b'"NaN"', b'"\\u0000"'),
    *(b"[]", b"[1]", b"[null]", b"[[]]", b'["ada ."]', b"{}", b'{"a": 1}', b'"\\ud800"'),
    b'{"question": "who", "context": "ada ."}',
]
METHODS = "GET HEAD PUT DELETE PATCH OPTIONS TRACE CONNECT PROPFIND get A".split()
PATHS = (
    "/ /predict /answer /health /ready /metrics /openapi.json /predict/ // /. /../../etc/passwd "
    "/%2e%2e/%2e%2e/etc/passwd /%00 /%ff /?top_k=x /?top_k=99999999999999999999 /?model=/etc "
    "/?top_k=2&top_k=3 /?%00=%00 /;a=b /predict#a * http://elsewhere/predict /\\..\\ /%"
).split()
WORDS = (
    "who ada . , \u2028 \u2029 \ufeff \u200b \u200d \u202e \u0000 \u0007 \u00ad \U0001f98a "
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U000e0041 \u5b8c\u4e86 \u05d0\u05d1 \u0627\u0644 "
    "e\u0301\u0301\u0301 \ufb01 \u0130 \u1e9e \ud7b0 \uffff \ufffe \uac00 \u1112\u1161\u11ab \ue000"
).split(" ")


def broken_json() -> Iterator[bytes]:
    """A right body cut at each byte, and others that are nearly JSON."""
    yield from (ASKED[:length] for length in range(len(ASKED)))
    yield from (
        *(
            b"nul",
            b"{'inputs': 1}",
            b'{"inputs": 1,}',
            b"{} {}",
            b"// a\n{}",
            b"\x00",
            b"\xff\xfe{",
        ),
        *(b'{"inputs": NaN}', b'{"inputs": -Infinity}', b'{"inputs": 0x1}', b'{"inputs": 01}'),
        *(b'{"inputs": "\n"}', b'{"inputs": "\\x41"}', b'{"inputs": "\\u12"}', b"7", b'"a"', b"[]"),
        *(b"<a/>", b"inputs=1", b'{"a":' * 3, b"\xc0\x80", b"\xed\xa0\x80", b"9" * 400_000),
    )


def deep_json() -> Iterator[bytes]:
    """Brackets in brackets, open and closed, wherever a value may stand."""
    for depth in (100, 990, 10_000, 1_000_000):
        yield b"[" * depth
        yield b'{"a":' * min(depth, 700_000)
        for deep in (b"[" * depth + b"]" * depth, b'{"a":' * 500 + b"1" + b"}" * 500):
            yield b'{"inputs": %s}' % deep
            yield b'{"inputs": {"question": %s, "context": "x"}}' % deep
            yield (
                b'{"inputs": {"question": "who", "context": "x"}, "parameters": {"top_k": %s}}'
                % deep
            )
            yield b'{"question": "who", "context": %s}' % deep


def wrong_types() -> Iterator[tuple[str, bytes]]:
    """Every value in every field: paths and bodies."""
    for value in VALUES:
        yield "/predict", value
        yield "/answer", value
        for field in ("inputs", "parameters", "options", "more"):
            whole = {"inputs": json.dumps(PAIR).encode(), field: value}
            yield "/predict", with_fields(whole)
        for field in ("question", "context", "more"):
            pair = with_fields({**fields(PAIR), field: value})
            yield "/predict", b'{"inputs": %s}' % pair
            yield "/predict", b'{"inputs": [%s, %s]}' % (json.dumps(PAIR).encode(), pair)
        for field in (*PARAMETERS, "more", "self", "model"):
            parameters = with_fields({field: value})
            yield "/predict", ASKED[:-1] + b', "parameters": %s}' % parameters
        for field in ("question", "context", *OPTIONS, "more", "self"):
            yield "/answer", with_fields({**fields(PAIR), field: value})


def fields(pair: dict[str, str]) -> dict[str, bytes]:
    """The fields of a pair as JSON."""
    return {name: json.dumps(value).encode() for name, value in pair.items()}


def with_fields(several: dict[str, bytes]) -> bytes:
    """An object whose values are JSON already."""
    return b"{%s}" % b", ".join(
        b'"%s": %s' % (name.encode(), value) for name, value in several.items()
    )


def strange_texts(seed: int = 0, count: int = 300) -> Iterator[tuple[dict[str, str], bytes]]:
    """Questions and texts of strange characters, and bodies that hold them, in either spelling."""
    random = Random(seed)
    for number in range(count):
        pair = {
            name: random.choice(("", " ")).join(random.choices(WORDS, k=random.randrange(1, 30)))
            for name in ("question", "context")
        }
        yield pair, json.dumps({"inputs": pair}, ensure_ascii=number % 2 == 0).encode()


def other_encodings() -> Iterator[bytes]:
    """JSON in other encodings, and what is none in UTF-8."""
    text = json.dumps(
        {"inputs": {"question": "wer?", "context": "Zoë Müller ."}}, ensure_ascii=False
    )
    for name in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037", "utf-7"):
        yield text.encode(name, "replace")
    for spelled in (
        b"\\ud800",
        b"\\udc00\\ud800",
        b"\xed\xa0\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xc3",
    ):
        yield b'{"inputs": {"question": "who", "context": "ada %s ."}}' % spelled


def heavy_texts() -> Iterator[bytes]:
    """What few bytes make dear: one word, spaces, accents, small steps, many inputs."""
    for text in (
        "a" * 190_000,
        " " * 190_000,
        "\u0301" * 190_000,
        "a " * 95_000,
        "\U0001f98a" * 90_000,
    ):
        yield json.dumps({"inputs": {"question": "who", "context": text}}).encode()
        yield json.dumps({"inputs": {"question": text, "context": "ada ."}}).encode()
    for parameters in ({"doc_stride": 40}, {"max_seq_len": 8, "doc_stride": 1}, {"top_k": 100}):
        pair = {"question": "who", "context": "ada wrote it . " * 10_000}
        yield json.dumps({"inputs": pair, "parameters": {"max_seq_len": 48, **parameters}}).encode()
    yield json.dumps({"inputs": [PAIR] * 65}).encode()
    yield json.dumps({"inputs": [{}] * 300_000}).encode()
    yield json.dumps({"question": "who", "context": [""] * 300_000}).encode()


def random_bytes(seed: int, count: int) -> Iterator[bytes]:
    """A right body in which some bytes are others, doubled, or gone."""
    random = Random(seed)
    for _ in range(count):
        body = bytearray(ASKED)
        for _ in range(random.randrange(1, 6)):
            at = random.randrange(len(body))
            body[at : at + random.randrange(3)] = random.randbytes(random.randrange(3))
        yield bytes(body)


def packed() -> Iterator[bytes]:
    """Compressed bodies, also one that would be 4 GB, and other kinds of content."""
    bomb = gzip.compress(b" " * 10**7, 9)
    for body in (gzip.compress(ASKED), bomb * 200):
        yield request(body, Content_Encoding="gzip", Content_Type="application/json")
    for name in ("br", "zstd", "deflate", "gzip, gzip", "x"):
        yield request(ASKED[::-1], Content_Encoding=name)
    for sort in (
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
        "text/xml",
    ):
        yield request(
            b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>&b;', Content_Type=sort
        )


def methods_and_paths() -> Iterator[bytes]:
    """Every method at every address."""
    yield from (head(method, path) for method in METHODS for path in PATHS)
    yield from (request(path=path) for path in PATHS if path not in ("*",))


def posts(several: Iterable[bytes], path: str = "/predict") -> Iterator[bytes]:
    """Bodies as requests."""
    return (request(body, path) for body in several)


def both(several: Iterable[bytes]) -> Iterator[bytes]:
    """Bodies as requests to either address."""
    for body in several:
        yield from (request(body, path) for path in ("/predict", "/answer"))


def right_span(pair: dict[str, str], answer: Any) -> bool:
    """Whether an answer stands where it says."""
    return pair["context"][answer["start"] : answer["end"]] == answer["answer"]
