"""What requests say and what they get: the bodies of `POST /predict` and `POST /answer`.

`/predict` is the contract of Hugging Face's inference services for question answering, with the
answers of minibert's pipeline.  `/answer` is QuestionAnswerer: several texts, "no answer".
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from minibert.answering import Options, QuestionAnswerer
from minibert.errors import InputError
from minibert.pipelines import PipelineOptions, QuestionAnsweringPipeline
from minibert.reprs import shown
from minibert.serve.refusals import Refusal, too_large
from minibert.serve.settings import Settings
from minibert.serve.sharing import SharedModel
from minibert.spans import Answer

# Fields of a request to /predict beside "inputs": the last is what the old service was told about
# its cache, and changes no answer.
FIELDS = ("inputs", "parameters", "options")
FORM = '{"inputs": {"question": "...", "context": "..."}, "parameters": {...}}'
NUMBERS = ("top_k", "doc_stride", "max_answer_len", "max_seq_len", "max_question_len")
SWITCHES = {"true": True, "false": False, "1": True, "0": False}


def read_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        Refusal: it is no JSON, or another value.
    """
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise Refusal(400, "the body is nested too deep") from None
    except ValueError as error:  # json's own, an encoding's, a number of thousands of digits
        raise Refusal(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"the body must be a JSON object, got {shown(value)}")
    return value


def _refuse_constant(name: str) -> Any:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is no number of JSON")


def written(value: Any) -> bytes:
    """JSON in UTF-8.  Half of a surrogate pair, which UTF-8 cannot hold, is escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


# ---------------------------------------------------------------- /predict


def read_predict(body: bytes, query: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """Understand a request to /predict.

    Args:
        body: JSON.
        query: parameters that may stand in the address instead.

    Returns:
        The request, with its parameters complete; and how many pairs it has.

    Raises:
        Refusal: it has not this form.
    """
    request = read_json(body)
    if "inputs" not in request:
        raise Refusal(400, f"the body has no 'inputs'; send {FORM}")
    if unknown := sorted(set(request) - set(FIELDS)):
        raise Refusal(422, f"unknown field {shown(unknown[0])}; there are {', '.join(FIELDS)}")
    parameters = request.get("parameters")
    if not isinstance(parameters, dict | None):
        raise Refusal(422, f"'parameters' must be an object, got {shown(parameters)}")
    inputs = request["inputs"]
    if not isinstance(inputs, dict | list):
        raise Refusal(
            422,
            "'inputs' must be an object with 'question' and 'context', or a list of them, got "
            + shown(inputs),
        )
    return {
        "inputs": inputs,
        "parameters": {**_from_query(query), **(parameters or {})},
    }, len(inputs) if isinstance(inputs, list) else 1


def _from_query(query: Mapping[str, str]) -> dict[str, Any]:
    """Parameters as they stand in an address; what is no number there stays a string.

    Example:
        >>> _from_query({"top_k": "3", "align_to_words": "false", "doc_stride": "x"})
        {'top_k': 3, 'align_to_words': False, 'doc_stride': 'x'}
    """
    parameters: dict[str, Any] = {}
    for name, value in query.items():
        if name in NUMBERS and value.isascii() and value.isdigit() and len(value) < 19:
            parameters[name] = int(value)
        else:
            parameters[name] = value if name in NUMBERS else SWITCHES.get(value.lower(), value)
    return parameters


def predict(request: dict[str, Any], model: SharedModel, settings: Settings) -> Any:
    """Answer a request that `read_predict` understood.

    Returns:
        An answer; with top_k above 1 a list of them; for a list of inputs a list of such.

    Raises:
        InputError: a question, a text or a parameter cannot be used.
        Refusal: it asks for too much.
    """
    check_names(request["parameters"], [*PipelineOptions.__dataclass_fields__, "topk"])
    pipe = QuestionAnsweringPipeline(model, **request["parameters"])
    check_answers("top_k", pipe.options.top_k, settings)
    inputs = request["inputs"]
    if isinstance(inputs, dict):
        return _as_promised(pipe(inputs), pipe.options.top_k)
    results: Any = pipe(inputs)
    if len(inputs) == 1:  # which the pipeline gives bare, as transformers' did
        results = [results]
    return [_as_promised(each, pipe.options.top_k) for each in results]


def _as_promised(answers: Any, top_k: int) -> Any:
    """The answers to one question: a list if more than one was asked for, found or not."""
    return [answers] if top_k > 1 and isinstance(answers, dict) else answers


# ---------------------------------------------------------------- /answer


def read_answer(body: bytes) -> tuple[dict[str, Any], int]:
    """Understand a request to /answer.

    Returns:
        The request, and how many texts it has.

    Raises:
        Refusal: it has not this form.
    """
    request = read_json(body)
    if missing := [name for name in ("question", "context") if name not in request]:
        raise Refusal(400, f"the body has no {' and no '.join(map(repr, missing))}")
    context = request["context"]
    return request, len(context) if isinstance(context, list) else 1


def answer(request: dict[str, Any], model: SharedModel, settings: Settings) -> Any:
    """Answer a request that `read_answer` understood.

    Raises:
        InputError: the question, a text or an option cannot be used.
        Refusal: it asks for too much.
    """
    options = dict(request)
    question, context, n = options.pop("question"), options.pop("context"), options.pop("n", 1)
    if not isinstance(question, str):
        raise InputError(f"question must be a string, got {shown(question)}")
    check_names(options, Options.__dataclass_fields__)
    check_answers("n", n, settings)
    found = QuestionAnswerer(model).n_best(question, context, n, **options)
    return {
        "answers": [each.to_dict() for each in found],
        "null_probability": null_probability(found[0], model.config.temperature),
    }


def null_probability(answer: Answer, temperature: float) -> float:
    """The probability of "no answer", which need not be among the answers.

    Example:
        >>> from minibert import Answer
        >>> round(null_probability(Answer("Ann", 0, 3, 2.0, 0.6, null_score=1.0), 1.0), 3)
        0.221
    """
    if not answer.probability:
        return 0.0
    log = math.log(answer.probability) + (answer.null_score - answer.score) / temperature
    return min(1.0, math.exp(log))


# ---------------------------------------------------------------- limits


def check_names(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse names that are no options: to Python, some of them mean other arguments.

    Raises:
        InputError: there is one.
    """
    if unknown := next((name for name in options if name not in known), None):
        near = difflib.get_close_matches(unknown[:80], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"unknown option {shown(unknown)}; {hint}")


def check_answers(name: str, count: object, settings: Settings) -> None:
    """Refuse more answers than anybody reads: each costs memory here and there.

    Raises:
        InputError: there are too many.
    """
    if isinstance(count, int) and count > settings.max_answers:
        raise InputError(f"{name} must be at most {settings.max_answers} here, got {shown(count)}")


def check_texts(request: dict[str, Any], count: int, settings: Settings) -> None:
    """Refuse more texts, or more text, than one request may hold.

    Raises:
        Refusal: there is too much.
    """
    if count > settings.max_texts:
        raise too_large(f"the request holds {count} texts, and the limit is {settings.max_texts}")
    characters = count_characters(request)
    if characters > settings.max_characters:
        raise too_large(
            f"the request holds {characters} characters, and the limit is "
            f"{settings.max_characters}; send less text"
        )


def count_characters(value: Any) -> int:
    """Those of all strings in a value of JSON, wherever they stand.

    Example:
        >>> count_characters({"inputs": [{"question": "Who?", "context": "Ann."}, "Ann", 1]})
        11
    """
    count = 0
    values = [value]
    while values:
        value = values.pop()
        if isinstance(value, str):
            count += len(value)
        elif isinstance(value, dict):
            values.extend(value.values())
        elif isinstance(value, list):
            values.extend(value)
    return count
