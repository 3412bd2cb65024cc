"""BatchAnswerer: what engines call with batch after batch of a table.

It holds settings alone, so it can be sent to other processes.  A model is loaded by the process
that needs it, once, with the first batch, whoever else asks there for one with the same settings.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

from minibert.answering import Options, QuestionAnswerer
from minibert.errors import InputError
from minibert.kernels.backend import check_device
from minibert.options import check_column, check_count, expanded, is_one_of, path_text
from minibert.reprs import shown
from minibert.scale.tables import Column, table_of
from minibert.spans import Answer

# What is added to a table: names without their prefix, and types as in Spark's SQL.
FIELDS = {
    "text": "string",
    "start": "bigint",
    "end": "bigint",
    "score": "double",
    "probability": "double",
    "null_score": "double",
    "error": "string",
}
MOST_MODELS = 4  # that a process keeps; a worker may serve one table after the other

Settings: TypeAlias = tuple[tuple[str, Any], ...]  # arguments of a QuestionAnswerer


class BatchAnswerer:
    """Answers the questions of a table, a batch of its rows at a time.

    Called with a batch it gives back the same kind of batch with seven more columns: `text`,
    `start`, `end`, `score`, `probability` and `null_score` as in `Answer`, and `error`, each with
    the prefix before its name.  "No answer" is an answer: its text is empty.  A row that cannot be
    answered (a null, an empty text, a question too long) has nulls, and says why in `error`.

    It takes a mapping of columns (a dict of lists or NumPy arrays, a batch of Hugging Face
    datasets), a DataFrame of pandas or polars, a Table or RecordBatch of pyarrow; and so works
    under Ray, Spark, Dask and whatever else maps batches.  Offsets are in code points.

    Args:
        model: None or "embedded" for the embedded model; a folder; a .safetensors file; a name on
            the Hugging Face Hub.  Every process loads it from there.
        question: name of the column with the questions.
        context: name of the column with the texts.
        prefix: put before the names of the columns that are added.
        on_error: 'null' for a row of nulls where one cannot be answered; 'raise' for an error.
        num_threads: at most so many work on one batch in a process; None: OMP_NUM_THREADS, which
            Ray and Spark set for each worker, or every core that the process may use.
        **options: the other arguments of `QuestionAnswerer`.

    Raises:
        InputError: an argument is wrong.
        BackendError: there is no such device or dtype, or they do not go together.

    Example:
        >>> answerer = BatchAnswerer()
        >>> batch = {"question": ["Who is Ada?", None], "context": ["Ada is a programmer."] * 2}
        >>> answers = answerer(batch)
        >>> answers["answer_text"], answers["answer_error"]
        (['a programmer', None], [None, "'question' is null"])
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        question: str = "question",
        context: str = "context",
        prefix: str = "answer_",
        on_error: str = "null",
        num_threads: int | None = None,
        **options: Any,
    ) -> None:
        for name, value in (("question", question), ("context", context), ("prefix", prefix)):
            check_column(name, value)
        if not is_one_of(on_error, ("null", "raise")):
            raise InputError(f"on_error must be 'null' or 'raise', got {shown(on_error)}")
        if num_threads is not None:
            num_threads = check_count("num_threads", num_threads, 1)
        check_options(options)
        check_device(options.get("device", "auto"), options.get("dtype"), num_threads)
        self.question, self.context = question, context
        self.prefix, self.on_error = prefix, on_error
        options = {"num_threads": num_threads, **options}
        if "tokenizer" in options:
            options["tokenizer"] = whereabouts("tokenizer", options["tokenizer"])
        self.settings: Settings = (
            ("model", whereabouts("model", model)),
            *sorted(options.items()),
        )
        for name, value in self.settings:
            try:
                hash(value)
            except TypeError:
                raise InputError(f"{name} cannot be {shown(value)}") from None

    def __repr__(self) -> str:
        told = {name: value for name, value in self.settings if value is not None}
        told |= {name: getattr(self, name) for name in ("question", "context", "prefix")}
        told.pop("token", None)  # which is a secret
        return f"BatchAnswerer({', '.join(f'{name}={shown(told[name])}' for name in told)})"

    @property
    def spark_columns(self) -> str:
        """The columns that are added, as Spark declares them."""
        return ", ".join(f"`{self.prefix}{name}` {kind}" for name, kind in FIELDS.items())

    def __call__(self, batch: Any) -> Any:
        """Answer the questions of a batch.

        Args:
            batch: of one of the kinds that are named above, with a column of questions and one of
                texts.  A batch of some hundred rows keeps the processor busy.

        Returns:
            A batch of the same kind with the answers; the one that was given stays as it is.

        Raises:
            InputError: it is of another kind, a column is missing or would be hidden; or, with
                on_error='raise', a row cannot be answered.
            MinibertError: the model cannot be loaded.
        """
        table = table_of(batch)
        added = [self.prefix + name for name in FIELDS]
        check_names("the batch", table.names, (self.question, self.context), added)
        columns = self.answer(table.column(self.question), table.column(self.context))
        return table.extended(
            [
                Column(name, kind, values)
                for name, kind, values in zip(added, FIELDS.values(), columns, strict=True)
            ]
        )

    def answer(self, questions: list[Any], contexts: list[Any]) -> list[list[Any]]:
        """Answer columns: the values of each of `FIELDS`.

        Raises:
            InputError: they are not equally long; or, with on_error='raise', a row cannot be
                answered.
        """
        if len(questions) != len(contexts):
            raise InputError(
                f"columns of one batch must be equally long: {len(questions)} values of "
                f"{self.question!r}, {len(contexts)} of {self.context!r}"
            )
        pairs = (
            problem(self.question, pair[0]) or problem(self.context, pair[1]) or pair
            for pair in zip(questions, contexts, strict=True)
        )
        columns: list[list[Any]] = [[] for _ in FIELDS]
        if not questions:  # a batch that only shows an engine which columns there are
            return columns
        for number, answers in enumerate(shared_answerer(self.settings).n_best_or_error(pairs, 1)):
            failed = isinstance(answers, InputError)
            if failed and self.on_error == "raise":
                raise InputError(f"row {number} of the batch, counted from 0: {answers}")
            for column, value in zip(columns, values_of(answers), strict=True):
                column.append(value)
        return columns


def values_of(answers: list[Answer] | InputError) -> list[Any]:
    """The values of `FIELDS`: of the best answer, or of an error."""
    if isinstance(answers, InputError):
        return [str(answers) if name == "error" else None for name in FIELDS]
    return [getattr(answers[0], name, None) for name in FIELDS]  # an answer has no error


def problem(name: str, value: object) -> InputError | None:
    """What is wrong with a value of a column, as far as it can be seen without a model."""
    if value is None or (isinstance(value, float) and value != value):  # NaN: NumPy's null
        return InputError(f"{name!r} is null")
    if not isinstance(value, str):
        return InputError(
            f"{name!r} must hold texts, got {type(value).__name__}: {shown(value)}. Of several "
            "texts make a row each."
        )
    return None if value else InputError(f"{name!r} is empty")


def check_names(
    what: str, names: Sequence[object], needed: Sequence[str], added: Sequence[str]
) -> None:
    """Refuse a table without the columns that are needed, or with those that would be added.

    Args:
        what: it is, for messages.
        names: of its columns.
        needed: names that one column each must have.
        added: names that none may have.

    Raises:
        InputError: naming the column.
    """
    for name in needed:
        if (count := names.count(name)) != 1:
            found = ", ".join(map(str, names)) or "none"
            raise InputError(
                f"{what} has {count or 'no'} column{'s' * (count > 1)} {name!r}; its columns are "
                f"{found}"
            )
    for name in added:
        if name in names:
            raise InputError(
                f"{what} has a column {name!r} already; drop it, or choose another prefix"
            )


def check_options(options: dict[str, Any]) -> None:
    """Refuse wrong options here, and not in a worker.

    Raises:
        InputError: one is unknown or has a wrong value.
    """
    of_model = QuestionAnswerer.__init__.__kwdefaults__ or {}
    known = {*of_model, *Options.__dataclass_fields__}
    if unknown := sorted(set(options) - known):
        raise InputError(
            f"unknown option {', '.join(unknown)}; the options are {', '.join(sorted(known))}"
        )
    Options(**{name: value for name, value in options.items() if name not in of_model})


def whereabouts(name: str, where: Any) -> str | None:
    """A model's or tokenizer's folder, file or name, which means the same in every process.

    Raises:
        InputError: it is none.
    """
    if where is None:
        return None
    text = path_text(where)
    if text is None:
        raise InputError(
            f"{name} must be a folder, a file or a name, which each process loads for itself, got "
            f"{type(where).__name__}"
        )
    # A worker may be at work in another folder.
    path = expanded(text)
    return os.path.abspath(path) if where != "embedded" and os.path.exists(path) else text


class Answerers:
    """The loaded models of this process; a lock keeps two threads from loading the same one.

    A fork waits until nobody loads: the child would inherit a lock that nobody opens.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.loaded: dict[Settings, QuestionAnswerer] = {}

    def before_fork(self) -> None:
        """Wait for whoever loads."""
        self.lock.acquire()

    def after_fork(self) -> None:
        """Let others load again, in the parent and in the child, which keeps the models."""
        self.lock.release()


_ANSWERERS = Answerers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_ANSWERERS.before_fork,
        after_in_parent=_ANSWERERS.after_fork,
        after_in_child=_ANSWERERS.after_fork,
    )


def shared_answerer(settings: Settings) -> QuestionAnswerer:
    """The QuestionAnswerer of this process with these settings, loaded if it is the first time.

    Raises:
        MinibertError: it cannot be loaded.
    """
    answerer = _ANSWERERS.loaded.get(settings)
    if answerer is None:
        with _ANSWERERS.lock:
            answerer = _ANSWERERS.loaded.get(settings)
            if answerer is None:
                answerer = QuestionAnswerer(**dict(settings))
                while len(_ANSWERERS.loaded) >= MOST_MODELS:
                    _ANSWERERS.loaded.pop(next(iter(_ANSWERERS.loaded)))
                _ANSWERERS.loaded[settings] = answerer
    return answerer
