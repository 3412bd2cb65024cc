"""SQuAD files: questions about paragraphs of articles, with the answers that people gave.

Versions 1.1 and 2.0, and everything else of the same form; plain, or compressed by gzip or xz.

Source: https://rajpurkar.github.io/SQuAD-explorer/ (Rajpurkar et al. 2016 and 2018).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibert.errors import InputError
from minibert.reprs import short_repr

SHOWN = 10  # problems of a file that are listed


@dataclass(frozen=True)
class Gold:
    """An answer that a person gave."""

    text: str
    start: int | None = None  # in characters of the context; None if the file does not say

    __repr__ = short_repr


@dataclass(frozen=True)
class SquadQuestion:
    """A question, its paragraph, and the right answers; none if the paragraph holds none."""

    id: str
    question: str
    context: str
    answers: tuple[Gold, ...]
    article: int  # its number in the file, from 0
    title: str = ""  # of the article

    __repr__ = short_repr

    @property
    def answerable(self) -> bool:
        """Whether the paragraph holds an answer."""
        return bool(self.answers)


@dataclass(frozen=True)
class SquadData:
    """A SQuAD file."""

    name: str  # of the file
    digest: str  # SHA-256 of its JSON, before compression
    questions: list[SquadQuestion]
    with_null: bool  # whether the file has questions without an answer, as SQuAD 2.0 has

    __repr__ = short_repr


def read_squad(path: str | Path) -> SquadData:
    """Read a SQuAD file.

    Args:
        path: .json, .json.gz or .json.xz; what it is compressed with is seen from its first bytes.

    Raises:
        InputError: it cannot be read, is damaged, holds no question, or is of another form; with
            where each problem is.
    """
    text = read_compressed(path)
    document = parse_json(path, text)
    reader = _Reader()
    questions = reader.read(document)
    if reader.problems:
        shown = reader.problems[:SHOWN] + ["..."] * (len(reader.problems) > SHOWN)
        raise InputError(
            f"{path}: is not in SQuAD's format ({len(reader.problems)} problems): "
            + "; ".join(shown)
        )
    if not questions:
        raise InputError(f"{path}: holds no questions")
    with_null = not all(question.answerable for question in questions)
    return SquadData(Path(path).name, hashlib.sha256(text).hexdigest(), questions, with_null)


def read_compressed(path: str | Path) -> bytes:
    """The content of a file, unpacked if gzip or xz made it.

    Raises:
        InputError: it cannot be read or unpacked.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"a file's name is a text, got {type(path).__name__}: {path!r:.80}")
    try:
        data = Path(os.path.expanduser(path)).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from None
    try:
        if data.startswith(b"\x1f\x8b"):
            return gzip.decompress(data)
        if data.startswith(b"\xfd7zXZ\x00"):
            return lzma.decompress(data)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path}: its compressed data are damaged: {error}") from None
    return data


def parse_json(path: str | Path, data: bytes) -> Any:
    """Parse a JSON file.

    Raises:
        InputError: it is not JSON.
    """
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from None


class _Reader:
    """Walks through a SQuAD document and keeps every problem and where it is."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.ids: set[str] = set()

    def read(self, document: Any) -> list[SquadQuestion]:
        """All questions, in the order of the file."""
        if not isinstance(document, dict):
            self.problems.append(f"it must hold an object, found {type(document).__name__}")
            return []
        questions = []
        for number, article in enumerate(self.part(document, "data", list, "the file", [])):
            at = f"data[{number}]"
            title = article.get("title", "") if isinstance(article, dict) else ""
            for p, paragraph in enumerate(self.part(article, "paragraphs", list, at, [])):
                paragraph_at = f"{at}.paragraphs[{p}]"
                context = self.part(paragraph, "context", str, paragraph_at, "")
                for q, qa in enumerate(self.part(paragraph, "qas", list, paragraph_at, [])):
                    where = f"{paragraph_at}.qas[{q}]"
                    questions.append(
                        SquadQuestion(
                            self.identifier(qa, where),
                            self.part(qa, "question", str, where, ""),
                            context,
                            self.answers(qa, where),
                            number,
                            str(title),
                        )
                    )
        return questions

    def part(self, parent: Any, key: str, kind: type, where: str, otherwise: Any) -> Any:
        """parent[key], or `otherwise` and a problem."""
        if not isinstance(parent, dict):
            self.problems.append(f"{where} must be an object, found {type(parent).__name__}")
        elif key not in parent:
            self.problems.append(f"{where} has no {key!r}")
        elif not isinstance(parent[key], kind):
            found = type(parent[key]).__name__
            self.problems.append(f"{where}.{key} must be a {kind.__name__}, found {found}")
        elif kind is str and (index := half_surrogate(parent[key])) is not None:
            self.problems.append(f"{where}.{key} holds half of a surrogate pair, character {index}")
        else:
            return parent[key]
        return otherwise

    def identifier(self, qa: Any, where: str) -> str:
        """The id of a question; some data sets have numbers."""
        if isinstance(qa, dict) and type(qa.get("id")) is int:
            qa = {**qa, "id": str(qa["id"])}
        problems = len(self.problems)
        found: str = self.part(qa, "id", str, where, "")
        if not found and len(self.problems) == problems:
            self.problems.append(f"{where}: the id is empty")
        if found in self.ids:
            self.problems.append(f"{where}: the id {found!r} stands there twice")
        if found:
            self.ids.add(found)
        return found

    def answers(self, qa: Any, where: str) -> tuple[Gold, ...]:
        """The right answers of a question."""
        if isinstance(qa, dict) and qa.get("is_impossible") is True and "answers" not in qa:
            return ()
        golds = []
        for a, answer in enumerate(self.part(qa, "answers", list, where, [])):
            text = self.part(answer, "text", str, f"{where}.answers[{a}]", "")
            start = answer.get("answer_start") if isinstance(answer, dict) else None
            golds.append(Gold(text, start if isinstance(start, int) and start >= 0 else None))
        return tuple(golds)


def half_surrogate(text: str) -> int | None:
    """Where a text holds half of a surrogate pair, which is no character; None if nowhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


# ---------------------------------------------------------------- predictions


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

    Raises:
        InputError: it cannot be read, or is of another form.
    """
    document = parse_json(path, read_compressed(path))
    texts: dict[str, str] = check_values(
        path, document, "a string", lambda value: isinstance(value, str)
    )
    return texts


def read_null_odds(path: str | Path) -> dict[str, float]:
    """Read how unanswerable each question looks: an object that maps ids to numbers.

    Raises:
        InputError: it cannot be read, or is of another form.
    """
    document = parse_json(path, read_compressed(path))
    odds: dict[str, float] = check_values(path, document, "a number", is_number)
    return odds


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
