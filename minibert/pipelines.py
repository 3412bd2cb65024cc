"""The other front door: `pipeline("question-answering")`, as transformers had it up to 5.2.

Same arguments, defaults, inputs and outputs, and the same answers; minibert/README.md lists the few
differences.  Scores are sums of products of probabilities; see probabilities.py.
"""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from minibert.errors import InputError
from minibert.model import Model, load_model
from minibert.options import (
    DEVICE_DTYPES,
    check_count,
    check_flag,
    gpu_index,
    is_one_of,
    listed,
    settle,
)
from minibert.probabilities import decode_probabilities
from minibert.reprs import changed_fields, shown, spelled
from minibert.tokenizer import Tokenizer
from minibert.windows import Window

Result = dict[str, Any]  # score, start, end, answer
Results = Result | list[Result]  # a single answer comes bare, as in transformers

# Arguments of transformers' pipeline that change nothing here: what is said, once, where a value
# asks for something; "" where every value is as good as another.
TAKEN = {
    "framework": "",
    "trust_remote_code": "",  # nothing that comes with a model is run
    "use_fast": "",
    "pipeline_class": "answers come from minibert's own pipeline",
    "config": "a model's shape is read from its own config.json",
    "device_map": "the whole model runs on one device, which `device` names",
    "model_kwargs": "the arguments of minibert.pipeline say how a model is loaded",
    "feature_extractor": "text needs none",
    "image_processor": "text needs none",
    "processor": "text needs none; `tokenizer` names a tokenizer",
}
# Other names that transformers has or had -> ours.
RENAMED = {"torch_dtype": "dtype", "use_auth_token": "token"}


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """The call's options, with transformers' names and defaults; lengths are in tokens."""

    top_k: int = 1
    max_answer_len: int = 15
    max_seq_len: int | None = None  # None: 384 or the model's limit
    doc_stride: int | None = None  # tokens that neighbouring windows share; None: up to 128
    max_question_len: int | None = None  # cut a question to this if it leaves no room for the text
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    batch_size: int | None = None  # questions that wait for each other; None: a full batch
    padding: object = field(default=None, repr=False)  # taken and not needed: nothing is padded
    num_workers: object = field(default=None, repr=False)  # taken and not needed

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len"):
            settle(self, name, check_count(name, getattr(self, name), 1))
        for name, least in (
            ("max_seq_len", 1),
            ("doc_stride", 0),
            ("max_question_len", 1),
            ("batch_size", 1),
        ):
            if (value := getattr(self, name)) is not None:
                settle(self, name, check_count(name, value, least))
        for name in ("handle_impossible_answer", "align_to_words"):
            settle(self, name, check_flag(name, getattr(self, name)))


def pipeline(
    task: str | None = "question-answering",
    model: str | Path | Model | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    *,
    device: object = None,
    dtype: object = None,
    num_threads: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> QuestionAnsweringPipeline:
    """Make a question-answering pipeline.

    Args:
        task: 'question-answering'.
        model: None for the embedded model; a folder; a .safetensors file; a name on the Hugging
            Face Hub; or a loaded Model.
        tokenizer: another folder or name to take the tokenizer from, or a loaded Tokenizer.
        device: None or 'auto' (the processor), 'cpu' or -1, 'cuda' or 0, 1 and so on for other
            GPUs, 'reference'; or a torch.device.  A number means the processor, with a warning,
            where no GPU can be used.
        dtype: in which matrices are multiplied: 'float32', 'bfloat16', 'int8' (processor) or
            'float16' (GPU), or torch's object for one of them; None or 'auto': 'float32'.  In
            place of a half precision in which the device cannot compute, float32 is used, with a
            warning.
        num_threads: at most so many work on one batch; None: every core that this process may use.
        revision: branch, tag or commit on the Hub, of the tokenizer too.
        token: for private models on the Hub.
        cache_dir: where the Hub's files are kept.
        **options: the call's options, to be its defaults; other names of dtype and token, in
            `RENAMED`; and what transformers takes and this has no use for, in `TAKEN`.

    Raises:
        MinibertError: the model cannot be loaded, or an argument is wrong.

    Example:
        >>> qa = pipeline("question-answering")
        >>> qa(question="Where do I live?", context="My name is Wolfgang and I live in Berlin")
        {'score': ..., 'start': 34, 'end': 40, 'answer': 'Berlin'}
    """
    if task is not None and not is_one_of(task, (QuestionAnsweringPipeline.task,)):
        raise InputError(f"the task must be 'question-answering', got {shown(task)}")
    _pass_over(options)
    renamed = {ours: options.pop(theirs, None) for theirs, ours in RENAMED.items()}
    names = ("model", "tokenizer", *(pipeline.__kwdefaults__ or ()), *TAKEN, *RENAMED)
    _changed(PipelineOptions(), options, names)  # before a model is loaded
    on = device_name(device)
    loaded = load_model(
        model,
        tokenizer=tokenizer,
        device=on,
        dtype=dtype_name(renamed["dtype"] if dtype is None else dtype, on),
        num_threads=num_threads,
        revision=revision,
        token=renamed["token"] if token is None else token,
        cache_dir=cache_dir,
    )
    return QuestionAnsweringPipeline(loaded, **options)


@functools.cache
def explain_once(text: str) -> None:
    """Warn of a thing once in this process; for functions that a public one calls."""
    warnings.warn(text, UserWarning, stacklevel=4)


def _pass_over(options: dict[str, Any]) -> None:
    """Take what is in `TAKEN` out of `options`."""
    for name, reason in TAKEN.items():
        value = options.pop(name, None)
        nothing = value is None or value is False or (isinstance(value, Mapping) and not value)
        if reason and not nothing:
            explain_once(f"{name} is ignored: {reason}")


def device_name(device: object) -> str:
    """A device as transformers' users write it -> ours.

    Example:
        >>> [device_name(d) for d in (None, -1, "cuda:0", "cpu")]
        ['auto', 'cpu', 'cuda:0', 'cpu']
    """
    if device is None:
        return "auto"
    if not isinstance(device, Integral) or isinstance(device, bool):
        return spelled(device)  # torch.device prints as its name
    if device < 0:
        return "cpu"
    device = check_count("device", device, 0)
    from minibert.kernels.cuda.detect import find_gpus, why_not

    if problem := why_not(find_gpus()):
        explain_once(f"device={device} is ignored, the processor computes: {problem}")
        return "cpu"
    return f"cuda:{device}" if device else "cuda"


def dtype_name(dtype: object, device: str) -> str | None:
    """A dtype as transformers' users write it -> ours; None for the usual one.

    Args:
        dtype: None, 'auto', a name, or an object of torch, which prints as 'torch.float16'.
        device: as `device_name` gives it.

    Example:
        >>> [dtype_name(d, "cpu") for d in (None, "auto", "torch.bfloat16", "int8")]
        [None, None, 'bfloat16', 'int8']
    """
    name = spelled(dtype).removeprefix("torch.")
    if name in ("None", "auto"):
        return None
    kind = "cpu" if device == "auto" else "cuda" if gpu_index(device) is not None else device
    if name in ("float16", "bfloat16") and name not in DEVICE_DTYPES.get(kind, (name,)):
        able = ", ".join(DEVICE_DTYPES[kind])
        explain_once(f"dtype {name} is ignored, float32 is used: {kind!r} computes in {able}")
        return None
    return name


class QuestionAnsweringPipeline:
    """Callable that answers questions; made by `pipeline`."""

    task = "question-answering"

    def __init__(self, model: Model, **options: Any) -> None:
        if not isinstance(model, Model):
            raise InputError(f"model must be a Model, as load_model gives it, got {shown(model)}")
        self.model = model
        self.tokenizer = model.tokenizer
        self.options = _changed(PipelineOptions(), options)

    def __repr__(self) -> str:
        shown = ", ".join([repr(self.model), *changed_fields(self.options)])
        return f"QuestionAnsweringPipeline({shown})"

    @property
    def device(self) -> str:
        """Name of the backend that runs."""
        return self.model.device

    def __call__(
        self, *args: Any, question: Any = None, context: Any = None, **options: Any
    ) -> Results | list[Results] | Iterator[Results]:
        """Answer one question or many.

        Args:
            *args: a question and a context; or a dict with both; or a list of such dicts; or a
                generator of them.
            question: a string or a list of strings; or an array, a tuple, a Series of pandas ...
            context: a string, for all questions, or a list with one for each.
            **options: fields of `PipelineOptions`.

        Returns:
            For one question a dict with score, start, end and answer, or a list of them if there
            is not exactly one.  For several questions a list of those; for a generator an
            iterator.  A score is no probability: as in transformers, the scores of equal texts are
            summed over all places and windows, and can exceed 1.  `QuestionAnswerer` gives a
            `probability`; minibert/README.md says more.

        Raises:
            InputError: the arguments cannot be understood.
        """
        chosen = _changed(self.options, options)
        inputs = _arguments(args, question, context)
        if isinstance(inputs, Iterator):
            return self._answers(inputs, chosen)
        results = list(self._answers(inputs, chosen, len(inputs) > 1))
        return results[0] if len(results) == 1 else results

    def _answers(
        self, inputs: Iterable[Any], options: PipelineOptions, several: bool = True
    ) -> Iterator[Results]:
        """Answers in the order of the inputs; errors say which of several it is."""
        windows = (
            (None, self._windows(item, f"example {n}: " if several else "", options))
            for n, item in enumerate(inputs, 1)
        )
        for _, parts, logits in self.model.read(windows, batch_size=options.batch_size):
            answers = decode_probabilities(
                parts,
                logits,
                cls_id=self.tokenizer.cls_id,
                top_k=options.top_k,
                max_answer_len=options.max_answer_len,
                handle_impossible_answer=options.handle_impossible_answer,
                align_to_words=options.align_to_words,
            )
            if not answers and options.top_k == 1:
                yield {"score": 0.0, "start": 0, "end": 0, "answer": ""}
            else:
                yield answers[0] if len(answers) == 1 else answers

    def _windows(self, item: Any, where: str, options: PipelineOptions) -> list[Window]:
        """Tokenise one example."""
        try:
            question, context = _question_and_context(item)
            return self.model.windows(
                question,
                [context],
                max_seq_length=options.max_seq_len,
                doc_stride=options.doc_stride,
                max_question_length=options.max_question_len,
                truncate_always=False,
            )
        except InputError as error:
            raise InputError(f"{where}{error}") from None


def _changed(
    options: PipelineOptions, changes: dict[str, Any], others: Iterable[str] = ()
) -> PipelineOptions:
    """`options` with some fields set anew; None keeps the default, as in transformers.

    Args:
        options: to begin with.
        changes: names of fields, and `topk`, which is what transformers called `top_k`.
        others: further names that one that is unknown may have been meant for.
    """
    known = PipelineOptions.__dataclass_fields__
    changes = dict(changes)
    if (count := changes.pop("topk", None)) is not None:
        explain_once("topk is deprecated; write top_k")
        if changes.get("top_k") is None:
            changes["top_k"] = count
    for name in changes:
        if name not in known:
            near = difflib.get_close_matches(name, (*known, *others), n=1)
            raise InputError(
                f"unknown option {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}")
            )
    return replace(options, **{k: v for k, v in changes.items() if v is not None})


def _arguments(args: tuple[Any, ...], question: Any, context: Any) -> list[Any] | Iterator[Any]:
    """The examples that a call's arguments stand for: a list, or an iterator to be read lazily."""
    if args:
        if question is not None or context is not None:
            raise InputError("give question and context by position or by name, not both")
        if len(args) == 2 and all(isinstance(arg, str) for arg in args):
            return [{"question": args[0], "context": args[1]}]
        inputs = args[0] if len(args) == 1 else list(args)
        if isinstance(inputs, Mapping) or hasattr(inputs, "question_text"):
            return [inputs]
        if isinstance(inputs, Iterator):
            return inputs
        if hasattr(inputs, "columns"):  # which would give the names of its columns
            raise InputError(
                "a table: give question=table['question'], context=table['context'], or take "
                "BatchAnswerer, which gives a table back"
            )
        if not isinstance(inputs, str | bytes):
            # An array without dimensions is Iterable, but cannot be read.
            if isinstance(inputs, Iterable) and getattr(inputs, "ndim", None) != 0:
                return list(inputs)
            lazily = hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")
            if lazily and not hasattr(inputs, "ndim"):  # torch's Dataset
                return (inputs[i] for i in range(len(inputs)))
        raise InputError(
            "an example must be a dict with 'question' and 'context', "
            f"got {type(inputs).__name__}: {shown(inputs)}"
        )
    if question is None or context is None:
        missing = [n for n, v in (("question", question), ("context", context)) if v is None]
        raise InputError(f"{' and '.join(missing)} missing: both question and context are needed")
    question, context = listed(question), listed(context)
    if isinstance(question, str) and isinstance(context, str):
        return [{"question": question, "context": context}]
    if isinstance(question, list) and isinstance(context, str):
        return [{"question": q, "context": context} for q in question]
    if isinstance(question, list) and isinstance(context, list):
        if len(question) != len(context):
            raise InputError(
                f"there are {len(question)} questions and {len(context)} contexts; "
                "give as many contexts as questions, or one for all"
            )
        pairs = zip(question, context, strict=True)
        return [{"question": q, "context": c} for q, c in pairs]
    if isinstance(question, str) and isinstance(context, list):
        raise InputError(
            "one question about a list of contexts: repeat the question in a list, or use "
            "QuestionAnswerer.answer, which searches several texts together"
        )
    raise InputError(
        "question and context must be strings or lists of strings, "
        f"got {type(question).__name__} and {type(context).__name__}"
    )


def _question_and_context(item: Any) -> tuple[Any, Any]:
    """Take one example apart."""
    if hasattr(item, "question_text"):  # transformers' SquadExample
        return item.question_text, item.context_text
    if not isinstance(item, Mapping):
        raise InputError(
            f"an example must be a dict with 'question' and 'context', got {shown(item)}"
        )
    if missing := [key for key in ("question", "context") if key not in item]:
        raise InputError(f"the example has no {' and no '.join(map(repr, missing))}")
    return item["question"], item["context"]
