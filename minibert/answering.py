"""Step 6 of 6, and the front door for people who start fresh: `QuestionAnswerer`.

Scores are sums of logits, as SQuAD 2.0 defines them, and "no answer" is an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from minibert.errors import InputError
from minibert.model import Model, load_model
from minibert.options import check_count, check_flag, check_number, listed, settle
from minibert.reading import Example
from minibert.reprs import changed_fields, shown
from minibert.spans import Answer, Answers, Logits, decode_answers
from minibert.tokenizer import Tokenizer
from minibert.windows import Window

if TYPE_CHECKING:
    from minibert.explaining.explanation import Explanation

# One text, or several that are searched together.
Context: TypeAlias = "str | Sequence[str]"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a QuestionAnswerer reads and decides.

    Raises:
        InputError: a value is of the wrong kind or out of range.
    """

    max_seq_length: int | None = None  # longest window, in tokens; None: 384 or the model's limit
    doc_stride: int | None = None  # tokens that neighbouring windows share; None: up to 128
    max_question_length: int | None = None  # cut questions to so many tokens; None: never
    max_answer_length: int = 30  # in tokens
    # Higher: fewer "no answer"; inf: never before an answer.  If nobody says, a QuestionAnswerer
    # takes the model's own, the null_threshold of its config, instead of 0.
    null_score_diff_threshold: float = 0.0
    align_to_words: bool = True  # only answers made of whole words, where spaces part words
    max_overlap: float | None = None  # share of the shorter of two answers that both may hold
    min_score: float | None = None  # answers below it are not given, only "no answer"

    def __post_init__(self) -> None:
        for name, least in (
            ("max_seq_length", 1),
            ("doc_stride", 0),
            ("max_question_length", 1),
            ("max_answer_length", 1),
        ):
            if (value := getattr(self, name)) is not None or name == "max_answer_length":
                settle(self, name, check_count(name, value, least))
        for name in ("null_score_diff_threshold", "max_overlap", "min_score"):
            if (value := getattr(self, name)) is not None or name == "null_score_diff_threshold":
                settle(self, name, check_number(name, value))
        if self.max_overlap is not None and not 0 <= self.max_overlap <= 1:
            raise InputError(f"max_overlap must be from 0 to 1, got {self.max_overlap!r}")
        settle(self, "align_to_words", check_flag("align_to_words", self.align_to_words))


class QuestionAnswerer:
    """Answers questions about texts with a BERT fine-tuned on SQuAD.

    Args:
        model: None or "embedded" for the embedded model; a folder; a .safetensors file; a name on
            the Hugging Face Hub; or a loaded Model.
        device: 'auto' (the processor), 'cpu', 'cuda', 'cuda:1' and so on, or 'reference'.
        dtype: in which matrices are multiplied: 'float32', 'bfloat16', 'int8' (processor) or
            'float16' (GPU); None: 'float32'.
        num_threads: at most so many work on one batch; None: every core that this process may use.
        tokenizer: another folder or name to take the tokenizer from, or a loaded Tokenizer.
        revision: branch, tag or commit on the Hub, of the tokenizer too.
        token: for private models on the Hub.
        cache_dir: where the Hub's files are kept.
        **options: the fields of `Options`, for every question; each call can set its own.

    Raises:
        MinibertError: the model cannot be loaded, or an option is wrong.

    Example:
        >>> qa = QuestionAnswerer()
        >>> text = "Ada Lovelace wrote the first program in 1843. It was never run."
        >>> answer = qa.answer("Who wrote the first program?", text)
        >>> answer.text, text[answer.start:answer.end]
        ('Ada Lovelace', 'Ada Lovelace')
        >>> qa.answer("Who paid for the first program?", text).is_null
        True
    """

    def __init__(
        self,
        model: str | Path | Model | None = None,
        *,
        device: str = "auto",
        dtype: str | None = None,
        num_threads: int | None = None,
        tokenizer: str | Path | Tokenizer | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        changed_options(Options(), options)  # before a model is loaded
        self.model = load_model(
            model,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            num_threads=num_threads,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
        )
        own = Options(null_score_diff_threshold=self.model.config.null_threshold)
        self.options = changed_options(own, options)

    def __repr__(self) -> str:
        return f"QuestionAnswerer({', '.join([repr(self.model), *changed_fields(self.options)])})"

    def answer(self, question: str, context: Context, **options: Any) -> Answer:
        """The best answer; `is_null` if "no answer" wins.

        Args:
            question: one question.
            context: a text, or several (a list, an array, a Series of pandas ...);
                `Answer.document` says which of them holds the answer.  Among several, those
                without a word (blank pages) are passed over.
            **options: fields of `Options`, for this call.

        Raises:
            InputError: empty or non-string input, or a wrong option.
        """
        return _raised(next(self._answers([(question, context)], 1, None, options)))[0]

    def n_best(self, question: str, context: Context, n: int = 20, **options: Any) -> list[Answer]:
        """Up to `n` answers, best first; "no answer" is among them.

        Probabilities are over all spans of all texts, and "no answer": with `align_to_words=False`
        they sum to 1 when n is large enough to list them all.  They depend neither on n nor on
        which spans the options leave out.
        """
        return _raised(next(self._answers([(question, context)], n, None, options)))

    def answer_many(
        self,
        examples: Iterable[tuple[str, Context]],
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> Iterator[Answer]:
        """The best answer to each of many (question, context) pairs, in their order.

        Pairs are taken from `examples` as needed and run together in packed batches; only a few
        are in memory at a time.

        Args:
            examples: any iterable of pairs, a generator too.
            batch_size: at most so many questions wait for each other; None: as many as fill a
                batch.
            **options: fields of `Options`.

        Raises:
            InputError: a pair cannot be read; after the answers to those before it.
        """
        return (answers[0] for answers in self._all_answers(examples, 1, batch_size, options))

    def n_best_many(
        self,
        examples: Iterable[tuple[str, Context]],
        n: int = 20,
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> Iterator[list[Answer]]:
        """As answer_many, with the `n` best answers to each question."""
        return self._all_answers(examples, n, batch_size, options)

    def n_best_or_error(
        self,
        examples: Iterable[tuple[str, Context] | InputError],
        n: int = 20,
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> Iterator[list[Answer] | InputError]:
        """As n_best_many, with the error in the place of the answers where a pair cannot be read.

        An InputError among the examples stands for a pair that the caller could not read, and comes
        back in its place.
        """
        return self._answers(examples, n, batch_size, options)

    def _all_answers(
        self, examples: Iterable[Any], n: int, batch_size: int | None, options: dict[str, Any]
    ) -> Iterator[list[Answer]]:
        """As `_answers`, but the first error is raised."""
        found = self._answers(examples, n, batch_size, options)
        return (_raised(answers, f"example {n}: ") for n, answers in enumerate(found, 1))

    def _answers(
        self, examples: Iterable[Any], n: int, batch_size: int | None, options: dict[str, Any]
    ) -> Iterator[list[Answer] | InputError]:
        """What all the others do."""
        n = check_count("n", n, 1)
        if batch_size is not None:
            batch_size = check_count("batch_size", batch_size, 1)
        chosen = changed_options(self.options, options)
        read = (self._read(each, chosen) for each in _all(examples))
        return (
            error or self.decode(windows, logits, n, chosen)
            for error, windows, logits in self.model.read(read, batch_size=batch_size)
        )

    def decode(
        self, windows: Sequence[Window], logits: Sequence[Logits], n: int, options: Options
    ) -> Answers:
        """The `n` best answers that the logits of a question's windows give."""
        return decode_answers(
            windows,
            logits,
            n=n,
            max_answer_length=options.max_answer_length,
            null_score_diff_threshold=options.null_score_diff_threshold,
            align_to_words=options.align_to_words,
            max_overlap=options.max_overlap,
            min_score=options.min_score,
            temperature=self.model.config.temperature,
        )

    def explain(
        self,
        question: str,
        context: Context,
        *,
        window: int | None = None,
        thorough: bool = False,
        lessons: str | Path | None = None,
        compare: str | None = None,
        **options: Any,
    ) -> Explanation:
        """How one question is answered, step by step, as a page: `.save("page.html")`.

        One window is run once more by the definition in NumPy, with its gradients, which takes
        about a second for 384 tokens of the embedded model.

        Args:
            question: one question.
            context: a text, or several.
            window: number of the window that is shown, from 0; None: that of the answer.
            thorough: add integrated gradients, words left out, and a check of the shares; it says
                how long that takes.
            lessons: a folder of `minibert lessons`, whose functions run in the definition's place;
                the page says which step departs from it first.
            compare: another question, which ends in ?, or another text: its answer stands beside.
            **options: fields of `Options`, for this call; rivals are shown whatever max_overlap and
                min_score are.

        Raises:
            InputError: empty or non-string input, or a wrong option.
        """
        from minibert.explaining.explanation import (
            explain,  # here: it needs much that others do not
        )

        return explain(
            self,
            question,
            context,
            window=window,
            thorough=thorough,
            lessons=lessons,
            compare=compare,
            **options,
        )

    def _read(self, example: Any, options: Options) -> Example[InputError | None]:
        """The windows of an example; or the error that it gives, and none."""
        if isinstance(example, InputError):
            return example, []
        try:
            example = listed(example)
            if not isinstance(example, list) or len(example) != 2:
                raise InputError(f"it must be a (question, context) pair, got {shown(example)}")
            question, context = example
            return None, self.windows(question, context, options)
        except InputError as error:  # which holds on to the frames it came through, and their texts
            return InputError(str(error)), []

    def windows(self, question: str, context: Context, options: Options) -> list[Window]:
        """Tokenise one question and its texts, and lay them out.

        Raises:
            InputError: empty or non-string input, or windows that cannot be made.
        """
        question = listed(question)
        texts = [context] if isinstance(context, str) else listed(context)
        if isinstance(texts, str):  # an array of no dimensions
            texts = [texts]
        if not isinstance(texts, list) or not texts:
            raise InputError(
                "context must be a string or a non-empty list of strings, "
                f"got {type(context).__name__}: {shown(context)}"
            )
        return self.model.windows(
            question,
            texts,
            max_seq_length=options.max_seq_length,
            doc_stride=options.doc_stride,
            max_question_length=options.max_question_length,
        )


def changed_options(
    options: Options, changes: dict[str, Any], others: Sequence[str] = ()
) -> Options:
    """`options` with some fields set anew; unknown names are refused, and `others` named too."""
    if unknown := sorted(set(changes) - set(Options.__dataclass_fields__)):
        raise InputError(
            f"unknown option {', '.join(unknown)}; "
            f"the options are {', '.join([*Options.__dataclass_fields__, *others])}"
        )
    return replace(options, **changes)


def _all(examples: Iterable[Any]) -> Iterator[Any]:
    """The examples, if there can be any."""
    try:
        pairs = iter(examples)
    except TypeError:  # an array without dimensions says that it can be iterated
        raise InputError(
            f"the examples must be (question, context) pairs, got {type(examples).__name__}"
        ) from None
    yield from pairs


def _raised(answers: list[Answer] | InputError, where: str = "") -> list[Answer]:
    """The answers, unless there is an error in their place."""
    if isinstance(answers, InputError):
        raise InputError(f"{where}{answers}")
    return answers
