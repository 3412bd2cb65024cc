"""Files of predictions: what a model answered, and how sure it was.

run_squad's three files map ids to values; Hugging Face's metrics take a list of objects instead.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minibert.errors import InputError
from minibert.files import Problems
from minibert.squad.files import parse_json, read_compressed, refuse, rows_of


def check_values(path: str | Path, found: Any, name: str, right: Callable[[Any], bool]) -> Any:
    """Check that a JSON document maps ids to values of one kind.

    Args:
        path: for the message.
        found: the document.
        name: of the kind.
        right: whether a value is of it.

    Raises:
        InputError: it does not.
    """
    if not isinstance(found, dict):
        raise InputError(f"{path}: must hold an object of ids, found {type(found).__name__}")
    for key, value in found.items():
        if not right(value):
            raise InputError(f"{path}: {key!r} must be {name}, found {value!r:.60}")
    return found


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold, perhaps infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == value and (isinstance(value, float) or abs(value) < 10**300)


def is_answer(entry: Any) -> bool:
    """Whether a value is one of n best answers: a text and a probability.

    The pipeline adds up the probabilities of equal texts, so they can be above 1.
    """
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("text"), str)
        and is_number(entry.get("probability"))
        and 0 <= entry["probability"] < float("inf")
    )


def read_predictions(path: str | Path) -> dict[str, str]:
    """Read predictions: an object that maps the id of each question to a text, "" for none.

    Hugging Face's list of objects with `id` and `prediction_text` is one, too.

    Raises:
        InputError: it cannot be read, or is of another form.
    """
    document = parse_json(path, read_compressed(path))
    if (rows := rows_of(document)) is not None:
        document = column_of(path, rows, "prediction_text")
    texts: dict[str, str] = check_values(
        path, document, "a string", lambda value: isinstance(value, str)
    )
    return texts


def read_null_odds(path: str | Path) -> dict[str, float]:
    """Read how unanswerable each question looks: an object that maps ids to numbers.

    Hugging Face's list of objects with `id` and `no_answer_probability` is one, too.

    Raises:
        InputError: it cannot be read, or is of another form.
    """
    document = parse_json(path, read_compressed(path))
    if (rows := rows_of(document)) is not None:
        document = column_of(path, rows, "no_answer_probability")
    odds: dict[str, float] = check_values(path, document, "a number", is_number)
    return odds


def has_null_odds(path: str | Path) -> bool:
    """Whether a file of predictions also says how unanswerable each question looks.

    Raises:
        InputError: it cannot be read.
    """
    rows = rows_of(parse_json(path, read_compressed(path))) or []
    return any(isinstance(row, dict) and "no_answer_probability" in row for _, row in rows)


def column_of(path: str | Path, rows: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    """One value of each row, by the row's id.

    Raises:
        InputError: a row has none, or two have the same id; with where each problem is.
    """
    values: dict[str, Any] = {}
    problems = Problems()
    for where, row in rows:
        key = row.get("id") if isinstance(row, dict) else None
        if type(key) is int:  # read_squad makes them texts as well
            key = str(key)
        if not isinstance(key, str) or name not in row:
            problems.append(f"{where} must be an object with 'id' and {name!r}")
        elif key in values:
            problems.append(f"{where}: the id {key!r} stands there twice")
        else:
            values[key] = row[name]
    refuse(path, "is no list of predictions", problems)
    return values


def read_nbest(path: str | Path) -> dict[str, list[tuple[str, float]]]:
    """Read n best answers: an object that maps ids to lists of objects with text and probability.

    Returns:
        Text and probability of each answer, by id.

    Raises:
        InputError: it cannot be read, or is of another form.
    """
    document = parse_json(path, read_compressed(path))
    check_values(
        path,
        document,
        "a list of objects with a text and a probability",
        lambda value: isinstance(value, list) and all(map(is_answer, value)),
    )
    return {
        key: [(entry["text"], min(1.0, entry["probability"])) for entry in entries]
        for key, entries in document.items()
    }
