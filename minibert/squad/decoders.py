"""Three ways to read a question and to decide on an answer, as `minibert evaluate` offers them.

run_squad:  as the scores on model cards are made; see run_squad.py
pipeline:   as transformers' question-answering pipeline; decode_probabilities in probabilities.py
answerer:   as minibert's QuestionAnswerer; decode_answers in spans.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from minibert.model import Model
from minibert.options import check_choice, check_count, check_flag, check_number, settle
from minibert.probabilities import decode_probabilities, rank_probabilities
from minibert.spans import Logits, decode_answers
from minibert.squad.run_squad import NBest, WordSplitter, n_best, run_squad_windows
from minibert.windows import Window

DECODERS = ("run_squad", "pipeline", "answerer")


@dataclass(frozen=True)
class SquadSettings:
    """How questions are read and answered.

    None stands for what the decoder that is copied has as its default.

    Raises:
        InputError: a value is of the wrong kind or out of range.
    """

    decoder: str = "run_squad"
    max_seq_length: int | None = None  # tokens of a window; None: 384, or the model's limit
    doc_stride: int | None = None  # tokens: of run_squad the step, of the others the overlap
    max_query_length: int | None = None  # tokens; None: 64 in run_squad, no limit in the others
    max_answer_length: int | None = None  # tokens; None: 30, in the pipeline 15
    n_best_size: int = 20
    null_threshold: float = 0.0  # "no answer" if the null odds are above it
    with_null: bool = True  # whether "no answer" is one, as in SQuAD 2.0

    def __post_init__(self) -> None:
        check_choice("decoder", self.decoder, DECODERS)
        for name, least in (
            ("max_seq_length", 1),
            ("doc_stride", 1 if self.decoder == "run_squad" else 0),
            ("max_query_length", 1),
            ("max_answer_length", 1),
            ("n_best_size", 1),
        ):
            if (value := getattr(self, name)) is not None or name == "n_best_size":
                settle(self, name, check_count(name, value, least))
        settle(self, "null_threshold", check_number("null_threshold", self.null_threshold))
        settle(self, "with_null", check_flag("with_null", self.with_null))


@dataclass(frozen=True)
class Prediction:
    """The answer to one question, and what it was chosen from."""

    text: str  # "" for "no answer"
    best_text: str  # the best that is not "no answer"
    null_odds: float | None  # how much better "no answer" is; None where it is not an answer
    probability: float  # of the text, in the decoder's sense
    span: tuple[int, int]  # start and end of the text in its context, in characters
    n_best: list[dict[str, Any]]  # text and figures of the n best, best first


class Decoder(Protocol):
    """A way to read and to decide."""

    def windows(self, question: str, context: str) -> list[Window]:
        """Lay out a question and its text."""

    def decode(
        self, context: str, windows: Sequence[Window], logits: Sequence[Logits]
    ) -> Prediction:
        """Decide on an answer."""


def make_decoder(model: Model, settings: SquadSettings) -> Decoder:
    """The decoder that the settings name."""
    kinds: dict[str, Callable[[Model, SquadSettings], Decoder]] = {
        "run_squad": RunSquad,
        "pipeline": Pipeline,
        "answerer": Answerer,
    }
    return kinds[settings.decoder](model, settings)


class RunSquad:
    """run_squad.py's way."""

    def __init__(self, model: Model, settings: SquadSettings) -> None:
        self.model = model
        self.settings = settings
        self.splitter = WordSplitter(model.tokenizer)

    def windows(self, question: str, context: str) -> list[Window]:
        """Lay out a question and its text."""
        settings = self.settings
        return run_squad_windows(
            self.model,
            question,
            context,
            max_seq_length=settings.max_seq_length or self.model.usual_seq_length,
            doc_stride=settings.doc_stride or 128,
            max_query_length=settings.max_query_length or 64,
        )

    def decode(
        self, context: str, windows: Sequence[Window], logits: Sequence[Logits]
    ) -> Prediction:
        """Decide on an answer."""
        found = self.rank(context, windows, logits)
        chosen = found.prediction(self.settings.null_threshold)
        return Prediction(
            text=chosen.text,
            best_text=found.best.text,
            null_odds=found.null_odds,
            probability=chosen.probability,
            span=(chosen.start, chosen.end),
            n_best=[
                {
                    "text": entry.text,
                    "probability": entry.probability,
                    "start_logit": entry.start_logit,
                    "end_logit": entry.end_logit,
                }
                for entry in found.entries
            ],
        )

    def rank(self, context: str, windows: Sequence[Window], logits: Sequence[Logits]) -> NBest:
        """The n best answers."""
        return n_best(
            windows,
            logits,
            self.splitter.split(context),
            self.model.tokenizer,
            n=self.settings.n_best_size,
            max_answer_length=self.settings.max_answer_length or 30,
            with_null=self.settings.with_null,
        )


class _Plain:
    """What the pipeline and the answerer share: windows that overlap by doc_stride tokens."""

    def __init__(self, model: Model, settings: SquadSettings) -> None:
        self.model = model
        self.settings = settings

    def windows(self, question: str, context: str) -> list[Window]:
        """Lay out a question and its text."""
        return self.model.windows(
            question,
            [context],
            max_seq_length=self.settings.max_seq_length,
            doc_stride=self.settings.doc_stride,
            max_question_length=self.settings.max_query_length,
        )


class Pipeline(_Plain):
    """transformers' pipeline's way; scores are probabilities, and so are the null odds."""

    def decode(
        self, context: str, windows: Sequence[Window], logits: Sequence[Logits]
    ) -> Prediction:
        """Decide on an answer."""
        settings, cls_id = self.settings, self.model.tokenizer.cls_id
        longest = settings.max_answer_length or 15
        # The pipeline's scores depend on top_k.  Its default is 1, and that decides here too; with
        # align_to_words it then looks at the 12 best spans of each window.
        ranked, null_score = rank_probabilities(
            windows, logits, cls_id=cls_id, k=12, max_answer_len=longest, align_to_words=True
        )
        nothing: dict[str, Any] = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
        best = max(ranked, key=lambda answer: answer["score"], default=nothing)
        odds = null_score - best["score"] if settings.with_null else None
        none = odds is not None and odds > settings.null_threshold
        entries = decode_probabilities(
            windows,
            logits,
            cls_id=cls_id,
            top_k=settings.n_best_size,
            max_answer_len=longest,
            handle_impossible_answer=settings.with_null,
            align_to_words=True,
        )
        return Prediction(
            text="" if none else best["answer"],
            best_text=best["answer"],
            null_odds=odds,
            probability=min(1.0, null_score if none else best["score"]),
            span=(0, 0) if none else (best["start"], best["end"]),
            n_best=[{"text": e["answer"], "probability": e["score"]} for e in entries],
        )


class Answerer(_Plain):
    """QuestionAnswerer's way; probabilities are over all spans."""

    def decode(
        self, context: str, windows: Sequence[Window], logits: Sequence[Logits]
    ) -> Prediction:
        """Decide on an answer."""
        settings = self.settings
        answers = decode_answers(
            windows,
            logits,
            n=settings.n_best_size + 1,  # "no answer" comes on top
            max_answer_length=settings.max_answer_length or 30,
            null_score_diff_threshold=settings.null_threshold
            if settings.with_null
            else float("inf"),
            align_to_words=True,
            temperature=self.model.config.temperature,
        )
        chosen = answers[0]
        best = next((answer for answer in answers if not answer.is_null), chosen)
        return Prediction(
            text=chosen.text,
            best_text=best.text,
            null_odds=chosen.null_score - best.score if settings.with_null else None,
            probability=chosen.probability,
            span=(chosen.start, chosen.end),
            n_best=[
                {"text": a.text, "probability": a.probability, "score": a.score}
                for a in answers
                if settings.with_null or not a.is_null
            ],
        )
