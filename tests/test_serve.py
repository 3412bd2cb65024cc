import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("starlette", reason="minibert's extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="minibert's extra 'serve' is not installed")


from servers import Served

from minibert import Options, QuestionAnswerer, pipeline
from minibert.pipelines import PipelineOptions
from minibert.serve.app import openapi

QUESTION = "who wrote the first program"
TEXT = "ada lovelace wrote the first program in 1843 . it was never run . " * 3
PAIR = {"question": QUESTION, "context": TEXT}
OTHER = {"question": "when was it", "context": "it was never run before 1990 ."}


@pytest.fixture(scope="module")
def served(tiny):
    with Served(tiny) as server:
        yield server


@pytest.fixture(scope="module")
def pipe(tiny):
    return pipeline(model=tiny)


def nearly(value):
    """A value with its scores rounded: a packed batch changes the last digits of a float32."""
    if isinstance(value, dict):
        return {name: nearly(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [nearly(each) for each in value]
    return pytest.approx(value, rel=1e-4) if isinstance(value, float) else value


# ---------------------------------------------------------------- /predict


@pytest.mark.parametrize("path", ["/", "/predict"])
def test_an_answer_is_the_pipelines(served, pipe, path):
    status, answer = served.post(path, {"inputs": PAIR})
    assert (status, answer) == (200, nearly(pipe(**PAIR)))
    assert set(answer) == {"answer", "score", "start", "end"}


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 3},
        {"top_k": 4, "max_answer_len": 2, "align_to_words": False},
        {"doc_stride": 4, "max_seq_len": 24, "max_question_len": 8, "top_k": 2},
        {"handle_impossible_answer": True, "top_k": 3},
        {"top_k": None, "doc_stride": None},
        {"max_answer_len": None, "handle_impossible_answer": None, "align_to_words": None},
    ],
    ids=str,
)
def test_parameters_do_what_they_do_in_the_pipeline(served, pipe, parameters):
    expected = nearly(pipe(PAIR, **parameters))
    assert served.post("/", {"inputs": PAIR, "parameters": parameters}) == (200, expected)


def test_parameters_may_stand_in_the_address(served, pipe):
    status, answer = served.post(
        "/?top_k=2&align_to_words=false&max_answer_len=3", {"inputs": PAIR}
    )
    assert status == 200
    assert answer == nearly(pipe(PAIR, top_k=2, align_to_words=False, max_answer_len=3))
    # Those in the body come first.
    status, answer = served.post("/?top_k=3", {"inputs": PAIR, "parameters": {"top_k": 2}})
    assert len(answer) == 2
    assert served.post("/?top_k=x", {"inputs": PAIR})[0] == 422


def test_a_list_of_inputs_gives_a_list(served, pipe):
    expected = nearly([pipe(PAIR), pipe(OTHER)])
    assert served.post("/", {"inputs": [PAIR, OTHER]}) == (200, expected)
    assert served.post("/", {"inputs": [PAIR]}) == (200, expected[:1])
    assert served.post("/", {"inputs": []}) == (200, [])
    status, answers = served.post("/", {"inputs": [PAIR, OTHER], "parameters": {"top_k": 2}})
    assert (status, [len(each) for each in answers]) == (200, [2, 2])


def test_top_k_above_one_gives_a_list_even_of_one_answer(served):
    body = {"inputs": {"question": "who", "context": "ada"}, "parameters": {"top_k": 5}}
    status, answers = served.post("/", body)
    assert status == 200
    assert [each["answer"] for each in answers] == ["ada"]
    body["parameters"]["top_k"] = 1
    assert served.post("/", body)[1]["answer"] == "ada"


def test_a_long_text_is_split_while_other_threads_run(served, tiny):
    text = "ada wrote it . " * 4000  # 60,000 characters
    released = served.service.model.tokenizer
    for each in ("who", text, "\u0301 a  ", ""):
        ours, theirs = released.encode(each), tiny.tokenizer.encode(each)
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert ours.offsets.tolist() == theirs.offsets.tolist()
        assert ours.words.tolist() == theirs.words.tolist()
    assert type(released.backend).encode is not type(tiny.tokenizer.backend).encode
    pairs = [{"question": "who", "context": text}, PAIR]
    assert [served.post("/", {"inputs": pair})[0] for pair in pairs] == [200, 200]


def test_offsets_count_characters(served):
    text = "🦊 shalom שלום — ada"
    status, answer = served.post("/", {"inputs": {"question": "who 🦊", "context": text}})
    assert status == 200
    assert text[answer["start"] : answer["end"]] == answer["answer"]


CLIENT = """
import json, sys
from huggingface_hub import InferenceClient
url, pair = sys.argv[1], json.loads(sys.argv[2])
client = InferenceClient(model=url, token="secret")
one = client.question_answering(**pair)
two = client.question_answering(**pair, top_k=2, max_answer_len=3, align_to_words=False)
def plain(found):
    return {name: getattr(found, name) for name in ("answer", "score", "start", "end")}
print(json.dumps([plain(one), [plain(each) for each in two]]))
"""


@pytest.mark.slow
def test_an_unmodified_client_of_hugging_face_gets_its_answers(tiny, pipe):
    code = "from huggingface_hub import InferenceClient"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"no InferenceClient: {found.stderr.decode().strip().splitlines()[-1]}")
    with Served(tiny, key="secret") as served:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, served.url, json.dumps(PAIR)],
            env={**os.environ, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            encoding="utf-8",
        )
    assert done.returncode == 0, done.stderr
    more = {"top_k": 2, "max_answer_len": 3, "align_to_words": False}
    assert json.loads(done.stdout) == nearly([pipe(PAIR), pipe(PAIR, **more)])


# ---------------------------------------------------------------- /answer


def test_answer_gives_the_answerers_answers(served, tiny):
    qa = QuestionAnswerer(tiny)
    for context in (TEXT, [TEXT, "", OTHER["context"]]):
        body = {"question": QUESTION, "context": context, "n": 4, "max_answer_length": 6}
        status, found = served.post("/answer", body)
        expected = qa.n_best(QUESTION, context, 4, max_answer_length=6)
        assert status == 200
        assert found["answers"] == nearly([each.to_dict() for each in expected])
        everything = qa.n_best(QUESTION, context, 10**6, max_answer_length=6)
        none = next(each.probability for each in everything if each.is_null)
        assert found["null_probability"] == pytest.approx(none, rel=1e-3)
    assert len(served.post("/answer", PAIR)[1]["answers"]) == 1


def test_thresholds_may_be_infinite(served):
    never = served.post("/answer", {**PAIR, "null_score_diff_threshold": "1e999"})
    assert never[0] == 422  # a string is no number
    body = json.dumps({**PAIR, "null_score_diff_threshold": 0}).replace(": 0}", ": 1e999}")
    status, found = served.post("/answer", body.encode())
    assert status == 200
    assert found["answers"][0]["text"]
    status, found = served.post("/answer", body.replace("1e999", "-1e999").encode())
    assert not found["answers"][0]["text"]


# ---------------------------------------------------------------- what cannot be answered


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/", b"", 400, "not JSON"),
        ("/", b"{", 400, "not JSON"),
        ("/", b"\xff\xfe{", 400, "not JSON"),
        ("/", b"\x80", 400, "not JSON"),
        ("/", b"[" * 100_000, 400, "nested too deep"),
        ("/", b'{"a":' * 100_000, 400, "nested too deep"),
        ("/", b'{"inputs": NaN}', 400, "NaN is no number"),
        ("/", b'{"inputs": -Infinity}', 400, "no number"),
        ("/", b'{"inputs": ' + b"9" * 5000 + b"}", 400, "not JSON"),
        ("/", [PAIR], 400, "must be a JSON object"),
        ("/", "text", 400, "must be a JSON object"),
        ("/", PAIR, 400, "no 'inputs'"),
        ("/", {"inputs": None}, 422, "'inputs' must be"),
        ("/", {"inputs": "who"}, 422, "'inputs' must be"),
        ("/", {"inputs": PAIR, "paramters": {}}, 422, "unknown field 'paramters'"),
        ("/", {"inputs": PAIR, "parameters": [1]}, 422, "'parameters' must be"),
        ("/", {"inputs": {"question": "who"}}, 422, "no 'context'"),
        ("/", {"inputs": [1]}, 422, "must be a dict"),
        ("/", {"inputs": [PAIR, [PAIR]]}, 422, "example 2: "),
        ("/", {"inputs": {"question": "", "context": "x"}}, 422, "question cannot be empty"),
        ("/", {"inputs": {"question": "who", "context": 7}}, 422, "context must be a string"),
        ("/", {"inputs": {"question": ["who"], "context": "x"}}, 422, "must be a string"),
        ("/", {"inputs": {"question": "\ud800", "context": "x"}}, 422, "surrogate"),
        ("/", {"inputs": PAIR, "parameters": {"top_k": 101}}, 422, "at most 100"),
        ("/", {"inputs": PAIR, "parameters": {"top_k": 0}}, 422, "at least 1"),
        ("/", {"inputs": PAIR, "parameters": {"top_k": True}}, 422, "whole number"),
        ("/", {"inputs": PAIR, "parameters": {"top_k": 2.0}}, 422, "whole number"),
        ("/", {"inputs": PAIR, "parameters": {"top_q": 2}}, 422, "did you mean 'top_k'"),
        ("/", {"inputs": PAIR, "parameters": {"align_to_words": "no"}}, 422, "True or False"),
        ("/", {"inputs": PAIR, "parameters": {"max_seq_len": 10**9}}, 422, "positions"),
        ("/", {"inputs": PAIR, "parameters": {"doc_stride": 10**30}}, 422, "below 2**63"),
        ("/answer", {"question": "who"}, 400, "no 'context'"),
        ("/answer", {}, 400, "no 'question' and no 'context'"),
        ("/answer", {**PAIR, "n": 0}, 422, "n must be"),
        ("/answer", {**PAIR, "n": 10**6}, 422, "at most 100"),
        ("/answer", {**PAIR, "size": 1}, 422, "unknown option 'size'"),
        ("/answer", {**PAIR, "self": 1}, 422, "unknown option 'self'"),
        ("/answer", {**PAIR, "examples": 1}, 422, "unknown option 'examples'"),
        ("/", {"inputs": PAIR, "parameters": {"model": 1}}, 422, "unknown option 'model'"),
        ("/answer", {**PAIR, "context": []}, 422, "non-empty list"),
        ("/answer", {**PAIR, "context": [TEXT, 1]}, 422, "context[1] must be a string"),
        ("/answer", {**PAIR, "context": {"a": "b"}}, 422, "context must be"),
        ("/answer", {**PAIR, "question": ["who"]}, 422, "question must be a string"),
        ("/answer", {**PAIR, "max_overlap": 2}, 422, "from 0 to 1"),
        ("/answer", {**PAIR, "min_score": "low"}, 422, "must be a number"),
    ],
    ids=range(45),
)
def test_what_cannot_be_answered_is_told_why(served, path, body, status, words):
    got, answer = served.post(path, body)
    assert (got, list(answer)) == (status, ["error"])
    assert words in answer["error"]


def test_deep_values_are_refused_wherever_they_stand(served):
    for depth in (10, 100, 900, 980, 10_000):
        deep = b'{"a":' * depth + b"1" + b"}" * depth
        for body in (
            b'{"inputs": [%s]}' % deep,
            b'{"inputs": {"question": %s, "context": "x"}}' % deep,
            b'{"inputs": {"question": "who", "context": "x"}, "parameters": {"top_k": %s}}' % deep,
            b'{"inputs": {"question": "who", "context": "x"}, "parameters": [%s]}' % deep,
        ):
            assert served.post("/", body)[0] in (400, 422)
        assert served.post("/answer", b'{"question": "who", "context": [%s]}' % deep)[0] in (
            400,
            422,
        )
    assert served.post("/", {"inputs": PAIR})[0] == 200


def test_other_addresses_and_methods_are_told_in_json(served):
    for method, path, expected in (
        ("GET", "/nothing", 404),
        ("POST", "/predict/", 404),
        ("GET", "/predict", 405),
        ("DELETE", "/answer", 405),
        ("PUT", "/", 405),
    ):
        status, _, body = served.ask(method, path)
        assert (status, list(json.loads(body))) == (expected, ["error"])


# ---------------------------------------------------------------- beside the answers


def test_the_root_is_a_page_for_a_browser_and_ok_for_others(served):
    status, headers, body = served.ask("GET", "/", headers={"accept": "text/html,*/*;q=0.8"})
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert body.startswith(b"<!DOCTYPE html>")
    assert headers["vary"] == "accept"
    for path in ("/", "/health", "/ready"):
        assert served.ask("GET", path, headers={"accept": "*/*"})[::2] == (200, b"Ok")


def test_numbers_grow_with_requests(served):
    def numbers():
        lines = served.ask("GET", "/metrics")[2].decode().splitlines()
        assert len({line.split()[0] for line in lines if line[0] != "#"}) == sum(
            line[0] != "#" for line in lines
        )
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in lines
            if line[0] != "#"
        }

    before = numbers()
    served.post("/predict", {"inputs": [PAIR, OTHER]})
    served.post("/predict", b"{")
    served.ask("GET", "/no/such/place")
    after = numbers()

    def grew(name):
        return after[name] - before.get(name, 0)

    assert grew('minibert_requests_total{path="/predict",status="200"}') == 1
    assert grew('minibert_requests_total{path="/predict",status="400"}') == 1
    assert grew('minibert_requests_total{path="other",status="404"}') == 1
    assert grew("minibert_texts_total") == 2
    assert grew("minibert_request_seconds_count") == 4  # /metrics itself is one
    assert grew('minibert_request_seconds_bucket{le="+Inf"}') == 4
    assert grew("minibert_batch_requests_count") == 1
    assert grew("minibert_batch_requests_sum") == 1
    assert after["minibert_waiting_texts"] == after["minibert_waiting_tokens"] == 0
    assert after["minibert_connections"] >= 1


def test_the_description_names_every_route_and_every_field(served):
    document = json.loads(openapi())
    assert json.loads(served.ask("GET", "/openapi.json")[2]) == document
    described = {
        (path, method.upper()) for path, each in document["paths"].items() for method in each
    }
    routes = {
        (route.path, method) for route in served.app.routes for method in route.methods - {"HEAD"}
    }
    assert described == routes
    schemas = document["components"]["schemas"]
    parameters = set(PipelineOptions.__dataclass_fields__) - {
        "batch_size",
        "padding",
        "num_workers",
    }
    assert set(schemas["Parameters"]["properties"]) == parameters
    options = {"question", "context", "n", *Options.__dataclass_fields__}
    assert set(schemas["AnswerRequest"]["properties"]) == options
    answer = served.post("/answer", PAIR)[1]["answers"][0]
    assert set(schemas["Answer"]["properties"]) == set(answer)
    assert set(schemas["Span"]["properties"]) == set(served.post("/", {"inputs": PAIR})[1])


LIMITS = (("minimum", -0.5), ("maximum", 0.5))


def described_limits():
    """Fields of both requests, each with values that the description has and has not."""
    schemas = json.loads(openapi())["components"]["schemas"]
    for name in ("Parameters", "AnswerRequest"):
        for field, schema in schemas[name]["properties"].items():
            kinds = schema.get("type", [])
            if field in ("question", "context"):
                continue
            kinds = [kinds] if isinstance(kinds, str) else kinds
            wrong = ["7", [], {}, *([] if "null" in kinds else [None])]
            right = [None] if "null" in kinds else []
            if "boolean" in kinds:
                wrong.append(2)
                right += [True, False]
            elif "integer" in kinds:
                wrong += [1.5, True, schema["minimum"] - 1]
                right.append(max(schema["minimum"], 40 if "max_seq" in field else 0))
            else:
                wrong += [schema[end] + by for end, by in LIMITS if end in schema]
                right += [schema[end] for end, _ in LIMITS if end in schema] or [0.5, 1]
            yield from ((name, field, value, 422) for value in wrong)
            yield from ((name, field, value, 200) for value in right)


def test_what_the_description_allows_is_taken_and_nothing_else(served):
    for name, field, value, status in described_limits():
        given = {field: value}
        if name == "Parameters":
            found = served.post("/", {"inputs": PAIR, "parameters": given})
        else:
            found = served.post("/answer", {**PAIR, **given})
        assert found[0] == status, (name, given, found)


def test_the_description_refers_to_what_it_holds():
    document = json.loads(openapi())
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["responses"]  # an operation is no reference

    def references(value):
        if isinstance(value, dict):
            yield from [value["$ref"]] if "$ref" in value else []
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                yield from references(each)

    for reference in references(document):
        place = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name.replace("~1", "/")]
