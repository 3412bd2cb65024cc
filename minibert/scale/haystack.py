"""A reader for Haystack's pipelines, in the place of the ExtractiveReader that left its core.

The one module of this room that needs the package it is for: `pip install 'minibert-qa[haystack]'`.
"""

# Haystack looks at the types of run's arguments, so they are no texts here: no __future__.

import os
from typing import Any

try:
    from haystack import Document, ExtractedAnswer, component, default_from_dict, default_to_dict
    from haystack.utils import Secret, deserialize_secrets_inplace
except ModuleNotFoundError as error:
    if error.name != "haystack":
        raise
    raise ModuleNotFoundError(
        "minibert's reader needs Haystack: pip install 'minibert-qa[haystack]'", name="haystack"
    ) from None

from minibert.answering import QuestionAnswerer
from minibert.options import check_count
from minibert.scale.answerer import shared_answerer, whereabouts
from minibert.spans import Answer

HUB_TOKEN = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False)
CANDIDATES = 1000  # answers that are looked at where only some of a window may stay


@component
class MinibertReader:
    """Finds the words of documents that answer a query.

    Arguments are those of Haystack's ExtractiveReader, and may also be given to `run`.  Scores are
    not: here an answer's is its probability among all spans of all documents and "no answer".

    Args:
        model: None for minibert's embedded model; a folder; a .safetensors file; a name on the
            Hugging Face Hub.
        device: 'auto' (the processor), 'cpu', 'cuda', 'cuda:1' and so on, or 'reference'.
        token: for private models on the Hub.
        top_k: at most so many answers, and "no answer".
        score_threshold: answers with a lower score are left out, "no answer" too.
        max_seq_length: longest window, in tokens.
        stride: tokens that neighbouring windows of a long document share.
        answers_per_seq: at most so many answers from one window; None for any number.
        no_answer: whether "no answer" is among the answers: one without data and document.
        overlap_threshold: of two answers that share more than this part of the shorter one, from 0
            to 1, only the better one is given; None for both.
        dtype: in which matrices are multiplied; None: 'float32'.
        num_threads: at most so many work on one batch; None: every core that the process may use.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        token: Secret | None = HUB_TOKEN,
        top_k: int = 20,
        score_threshold: float | None = None,
        max_seq_length: int | None = 384,
        stride: int | None = 128,
        answers_per_seq: int | None = None,
        no_answer: bool = True,
        overlap_threshold: float | None = 0.01,
        dtype: str | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.model = whereabouts("model", model)
        self.device = device
        self.token = token
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.max_seq_length = max_seq_length
        self.stride = stride
        self.answers_per_seq = answers_per_seq
        self.no_answer = no_answer
        self.overlap_threshold = overlap_threshold
        self.dtype = dtype
        self.num_threads = num_threads

    def to_dict(self) -> dict[str, Any]:
        """The reader as a pipeline's file holds it."""
        arguments = {**vars(self), "token": self.token.to_dict() if self.token else None}
        own = {name: arguments[name] for name in ARGUMENTS}
        return dict(default_to_dict(self, **own))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "MinibertReader":
        """The reader that a pipeline's file holds."""
        if isinstance(data["init_parameters"].get("token"), dict):
            deserialize_secrets_inplace(data["init_parameters"], keys=["token"])
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Load the model, unless this process has."""
        self._answerer()

    def _answerer(self) -> QuestionAnswerer:
        """The loaded model, which readers with the same settings share."""
        settings = {
            "model": self.model,
            "device": self.device or "auto",
            "token": self.token.resolve_value() if self.token else None,
            "dtype": self.dtype,
            "num_threads": self.num_threads,
        }
        return shared_answerer(tuple(settings.items()))

    @component.output_types(answers=list[ExtractedAnswer])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
        max_seq_length: int | None = None,
        stride: int | None = None,
        answers_per_seq: int | None = None,
        no_answer: bool | None = None,
        overlap_threshold: float | None = None,
    ) -> dict[str, list[ExtractedAnswer]]:
        """Find answers; arguments that are None are as the reader was made.

        Args:
            query: the question.
            documents: those without text are passed over.
            top_k: see the class, and so on for the others.
            score_threshold: see there.
            max_seq_length: see there.
            stride: see there.
            answers_per_seq: see there.
            no_answer: see there.
            overlap_threshold: see there.

        Returns:
            `answers`: those with the highest score first; none if no document holds a text.

        Raises:
            InputError: the query is empty, or an argument is wrong.
        """
        asked = {name: value for name, value in locals().items() if value is not None}
        chosen = {name: asked.get(name, getattr(self, name)) for name in CALL}
        check_count("top_k", chosen["top_k"], 1)
        if (limit := chosen["answers_per_seq"]) is not None:
            check_count("answers_per_seq", limit, 1)
        documents = [each for each in documents if each.content and each.content.strip()]
        if not documents:
            return {"answers": []}
        nothing, *found = self._answerer().n_best(
            query,
            [each.content for each in documents],
            1 + (chosen["top_k"] if limit is None else max(chosen["top_k"], CANDIDATES)),
            max_seq_length=chosen["max_seq_length"],
            doc_stride=chosen["stride"],
            max_overlap=chosen["overlap_threshold"],
            null_score_diff_threshold=float("-inf"),  # "no answer" first, whatever its score
        )
        if limit is not None:
            found = first_of_windows(found, limit)
        answers = [
            extracted(query, answer, documents[answer.document])
            for answer in found[: chosen["top_k"]]
        ]
        if chosen["no_answer"]:
            answers.append(ExtractedAnswer(query=query, score=nothing.probability))
        answers.sort(key=lambda answer: -answer.score)
        if (least := chosen["score_threshold"]) is not None:
            answers = [answer for answer in answers if answer.score >= least]
        return {"answers": answers}


CALL = (
    "top_k",
    "score_threshold",
    "max_seq_length",
    "stride",
    "answers_per_seq",
    "no_answer",
    "overlap_threshold",
)
ARGUMENTS = ("model", "device", "token", *CALL, "dtype", "num_threads")


def extracted(query: str, answer: Answer, document: Document) -> ExtractedAnswer:
    """An answer as Haystack's pipelines know it, with its page where the document's is known."""
    page = document.meta.get("page_number")
    meta = {}
    if isinstance(page, int):
        # Converters of paged files put a form feed between pages.
        meta["answer_page_number"] = page + document.content.count("\f", 0, answer.start)
    return ExtractedAnswer(
        query=query,
        score=answer.probability,
        data=answer.text,
        document=document,
        document_offset=ExtractedAnswer.Span(answer.start, answer.end),
        meta=meta,
    )


def first_of_windows(answers: list[Answer], limit: int) -> list[Answer]:
    """The answers without those that come after `limit` others of their window."""
    seen: dict[tuple[int, int], int] = {}
    kept = []
    for answer in answers:
        window = answer.document, answer.window
        seen[window] = seen.get(window, 0) + 1
        if seen[window] <= limit:
            kept.append(answer)
    return kept
