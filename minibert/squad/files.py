"""SQuAD files: questions about paragraphs of articles, with the answers that people gave.

Versions 1.1 and 2.0, and everything else of the same form; plain, or compressed by gzip or xz.
The same questions are also found as a list of paragraphs, and as rows with a question and its
context each, as Hugging Face datasets has them: in a list, under `data`, or one a line.

Source: https://rajpurkar.github.io/SQuAD-explorer/ (Rajpurkar et al. 2016 and 2018).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibert.errors import InputError
from minibert.files import LIFTED_BY, Problems, bound, json_value, read_file
from minibert.options import expanded, path_text
from minibert.reprs import short_repr, shown

# A compressed file may become so many times as large, or so many bytes, and is hostile beyond
# both: gzip can make a thousand of one, xz seven thousand.  SQuAD 2.0 becomes 7 times as large, and
# 20 times as rows that repeat the text for each question.
UNPACKED_RATIO = 100
UNPACKED_ALWAYS = 10_000_000


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
    labelled: bool = True  # whether the right answers are known; in a test file they are not

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
    # Whether the file has questions without an answer, as SQuAD 2.0 has.  Where the right answers
    # are not known: whether its version leaves that open, as all but 1 do.
    with_null: bool

    @property
    def labelled(self) -> bool:
        """Whether the right answers are known, so that there is something to score."""
        return all(question.labelled for question in self.questions)

    __repr__ = short_repr


def read_squad(path: str | Path) -> SquadData:
    """Read a SQuAD file.

    Args:
        path: .json, .json.gz or .json.xz, or JSON lines; what it is compressed with is seen from
            its first bytes.

    Raises:
        InputError: it cannot be read, is damaged, holds no question, or is of another form; with
            where each problem is.
    """
    text = read_compressed(path, pipes=True)
    document = parse_json(path, text)
    reader = _Reader()
    questions = reader.read(document)
    refuse(path, "is not in SQuAD's format", reader.problems)
    if not questions:
        raise InputError(f"{path}: holds no questions")
    if questions[0].labelled:
        with_null = not all(question.answerable for question in questions)
    else:
        version = str(document.get("version", "")) if isinstance(document, dict) else ""
        with_null = not version.lstrip("vV").startswith("1")
    name = Path(os.fsdecode(path)).name
    return SquadData(name, hashlib.sha256(text).hexdigest(), questions, with_null)


def refuse(path: str | Path, what: str, problems: Problems) -> None:
    """Report all problems of a file at once, if there are any.

    Raises:
        InputError: there are.
    """
    if problems:
        told = "; ".join(problems.shown())
        raise InputError(f"{path}: {what} ({len(problems)} problems): {told}")


def read_compressed(path: str | Path, pipes: bool = False) -> bytes:
    """The content of a file, unpacked if gzip or xz made it.

    Args:
        path: of the file.
        pipes: whether a pipe is as good, because it is read only once.

    Raises:
        InputError: it cannot be read or unpacked.
    """
    text = path_text(path)
    if text is None:
        raise InputError(f"a file's name is a text, got {type(path).__name__}: {shown(path)}")
    try:
        data = read_file(expanded(text), pipes=pipes)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if data.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            return unpack(path, packed, len(data))
    if data.startswith(b"\xfd7zXZ\x00"):
        with lzma.LZMAFile(io.BytesIO(data)) as packed:
            return unpack(path, packed, len(data))
    return data


def unpack(path: str | Path, packed: gzip.GzipFile | lzma.LZMAFile, size: int) -> bytes:
    """What gzip or xz packed into a file of so many bytes.

    Raises:
        InputError: it is damaged, or becomes larger than any honest file would.
    """
    most = bound(max(UNPACKED_RATIO * size, UNPACKED_ALWAYS))
    unpacked = io.BytesIO()
    try:
        while part := packed.read(2**20):
            unpacked.write(part)
            if unpacked.tell() > most:
                raise InputError(
                    f"{path}: its {size} bytes become more than {most} when they are unpacked, "
                    f"more than {UNPACKED_RATIO} times as many. If that is meant, unpack the file "
                    f"and name what comes out; or {LIFTED_BY}."
                )
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path}: its compressed data are damaged: {error}") from None
    except MemoryError:  # xz says how much it needs, up to 4 GB
        raise InputError(f"{path}: there is not enough memory to unpack it") from None
    return unpacked.getvalue()


class Lines(dict[int, Any]):
    """The documents of a file that has one a line, by the number of the line."""


def parse_json(path: str | Path, data: bytes) -> Any:
    """Parse a JSON file.

    Returns:
        Its document; `Lines` if each line is one.

    Raises:
        InputError: it is not JSON.
    """
    try:
        text = data.decode("utf-8-sig")
        return json_value(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: byte {error.start}") from None
    except ValueError as error:
        reason = error
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    documents, problems = Lines(), Problems()
    for number, line in lines:
        try:
            documents[number] = json_value(line)
        except ValueError as error:
            if not documents:  # not even the first: one document over many lines, then
                break
            problems.append(f"line {number}: {error}")
    if not documents:
        raise InputError(f"{path}: is not JSON: {reason}")
    refuse(path, "is not JSON", problems)
    return documents


def rows_of(document: Any) -> list[tuple[str, Any]] | None:
    """Where each part of a list or of lines stands, and the part; None for other documents."""
    if isinstance(document, Lines):
        return [(f"line {n}", part) for n, part in document.items()]
    if isinstance(document, list):
        return [(f"[{n}]", part) for n, part in enumerate(document)]
    return None


# What may stand under `is_impossible`, in lower case; null says no more than its absence.
TRUTH = {"true": True, "1": True, "1.0": True}
TRUTH |= {"false": False, "0": False, "0.0": False, "none": False}


class _Reader:
    """Walks through a SQuAD document and keeps every problem and where it is."""

    def __init__(self) -> None:
        self.problems = Problems()
        self.ids: set[str] = set()
        self.unlabelled: list[str] = []  # where questions stand whose right answers are not said
        self.articles: dict[str, int] = {}  # title, or what stands for it -> number

    def read(self, document: Any) -> list[SquadQuestion]:
        """All questions, in the order of the file."""
        questions = list(self.questions(document))
        if len(self.unlabelled) < len(questions):
            for where in self.unlabelled:
                self.problems.append(f"{where} has no 'answers'")
        return questions

    def questions(self, document: Any) -> Iterator[SquadQuestion]:
        """The questions of articles, paragraphs and rows."""
        for where, item in self.items(document):
            if not isinstance(item, dict) or "paragraphs" in item:
                paragraphs = self.part(item, "paragraphs", list, where, [])
                title = str(item.get("title", "")) if isinstance(item, dict) else ""
                article = self.article(where)
                for p, paragraph in enumerate(paragraphs):
                    yield from self.paragraph(paragraph, f"{where}.paragraphs[{p}]", article, title)
            elif "qas" in item:
                yield from self.paragraph(item, where)
            elif "question" in item or "context" in item:
                context = self.part(item, "context", str, where, "")
                title = str(item.get("title") or "")
                yield self.question(item, where, context, self.article(title or context), title)
            else:
                self.part(item, "paragraphs", list, where, [])

    def items(self, document: Any) -> list[tuple[str, Any]]:
        """The articles, paragraphs or rows of a document, and where each stands."""
        if (rows := rows_of(document)) is not None:
            return rows
        if not isinstance(document, dict):
            found = type(document).__name__
            self.problems.append(f"it must hold an object or a list, found {found}")
            return []
        if "data" not in document and {"paragraphs", "qas", "question"} & document.keys():
            return [("the file", document)]
        data = self.part(document, "data", list, "the file", [])
        return [(f"data[{n}]", item) for n, item in enumerate(data)]

    def article(self, key: str) -> int:
        """The number of an article."""
        return self.articles.setdefault(key, len(self.articles))

    def paragraph(
        self, paragraph: Any, where: str, article: int | None = None, title: str = ""
    ) -> Iterator[SquadQuestion]:
        """The questions of a paragraph; one without an article is an article of its own."""
        context = self.part(paragraph, "context", str, where, "")
        number = self.article(context) if article is None else article
        for q, qa in enumerate(self.part(paragraph, "qas", list, where, [])):
            yield self.question(qa, f"{where}.qas[{q}]", context, number, title)

    def question(
        self, qa: Any, where: str, context: str, article: int, title: str
    ) -> SquadQuestion:
        """One question."""
        identifier = self.identifier(qa, where)
        question = self.part(qa, "question", str, where, "")
        answers = self.answers(qa, where)
        return SquadQuestion(
            identifier, question, context, answers or (), article, title, answers is not None
        )

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

    def answers(self, qa: Any, where: str) -> tuple[Gold, ...] | None:
        """The right answers of a question; None where they are not said.

        `is_impossible` wins over what is listed, which may be what is plausible and wrong.  An
        answer without text is none.
        """
        if isinstance(qa, dict):
            if self.is_impossible(qa, where):
                return ()
            if qa.get("answers") is None:
                self.unlabelled.append(where)
                return None
        found = qa.get("answers", []) if isinstance(qa, dict) else []
        where += ".answers"
        if isinstance(found, dict):
            found = self.rows_of_columns(found, where)
        elif not isinstance(found, list):
            self.problems.append(
                f"{where} must be a list, or an object of lists, found {type(found).__name__}"
            )
            return ()
        golds = []
        for a, answer in enumerate(found):
            text = self.part(answer, "text", str, f"{where}[{a}]", "")
            start = answer.get("answer_start") if isinstance(answer, dict) else None
            golds.append(Gold(text, start if type(start) is int and start >= 0 else None))
        return tuple(gold for gold in golds if gold.text.strip())

    def is_impossible(self, qa: dict[str, Any], where: str) -> bool:
        """Whether a question is said to have no answer; tables write 1 or "True" for it."""
        said = qa.get("is_impossible")
        value = TRUTH.get(str(said).lower())
        if value is None:
            self.problems.append(f"{where}.is_impossible must be true or false, got {said!r:.80}")
        return bool(value)

    def rows_of_columns(self, columns: dict[str, Any], where: str) -> list[dict[str, Any]]:
        """Answers as a list of each part, the way Hugging Face datasets keeps them."""
        texts = self.part(columns, "text", list, where, [])
        starts = columns.get("answer_start")
        if starts is None:
            starts = [None] * len(texts)
        elif not isinstance(starts, list) or len(starts) != len(texts):
            self.problems.append(f"{where}.answer_start must be a list as long as text is")
            return []
        rows = zip(texts, starts, strict=True)
        return [{"text": text, "answer_start": start} for text, start in rows]


def half_surrogate(text: str) -> int | None:
    """Where a text holds half of a surrogate pair, which is no character; None if nowhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
