"""A loaded model: config, tokenizer, weights and kernels.

Both faces of the library (answering.py and pipelines.py) hold one of these.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minibert.batches import pack
from minibert.checkpoints.hub import ModelFiles, find_model, find_tokenizer
from minibert.checkpoints.safetensors import open_checkpoint
from minibert.checkpoints.vocabularies import load_tokenizer
from minibert.config import BertConfig
from minibert.encoder import begin_logits, qa_logits
from minibert.errors import BackendError, InputError, TokenizerError
from minibert.kernels.backend import Backend, get_backend
from minibert.options import check_count
from minibert.parameters import Parameters
from minibert.reading import BATCH_TOKENS, GPU_BATCH_TOKENS, Example, Key, read_examples
from minibert.reprs import short, shown
from minibert.spans import Logits
from minibert.tokenizer import Pair, Tokenizer
from minibert.trace import Trace
from minibert.weights import load_weights
from minibert.windows import Window, make_windows

# No model means a logit beyond it: sums and differences of such would leave float32's range.
LARGEST_LOGIT = 1e30


@dataclass(frozen=True, eq=False)
class Model:
    """A BERT fine-tuned for question answering, ready to run."""

    name: str
    config: BertConfig
    tokenizer: Tokenizer
    kernels: Backend
    weights: Parameters[Any, Any, Any, Any]  # as `kernels.prepare` made them
    files: ModelFiles | None = None  # where it came from

    def __repr__(self) -> str:
        config, kernels = self.config, self.kernels
        shape = f"{config.num_hidden_layers} layers x {config.hidden_size}"
        threads = f", {kernels.num_threads} threads" if kernels.num_threads else ""
        return (
            f"Model({short(self.name)}, {config.family}, {shape}, {kernels.name}, "
            f"{kernels.dtype}{threads})"
        )

    @property
    def device(self) -> str:
        """Name of the backend that runs."""
        return self.kernels.name

    @property
    def dtype(self) -> str:
        """In which matrices are multiplied."""
        return self.kernels.dtype

    @property
    def pair(self) -> Pair:
        """How a question and a text are joined; types only where the model knows two."""
        pair = self.tokenizer.pair
        return pair if self.config.type_vocab_size > 1 else replace(pair, text_type=0)

    @property
    def usual_seq_length(self) -> int:
        """Tokens of a window where nobody says: 384, as SQuAD's scripts, or the model's limit."""
        positions = self.config.longest_window
        return min(384, self.tokenizer.model_max_length or 384, positions)

    def windows(
        self,
        question: str,
        texts: list[str],
        *,
        max_seq_length: int | None = None,
        doc_stride: int | None = None,
        max_question_length: int | None = None,
        truncate_always: bool = True,
    ) -> list[Window]:
        """Tokenise a question and its texts and lay them out in windows.

        Args:
            question: not empty.
            texts: one that is not empty, or several: those without a word are passed over.
            max_seq_length: longest window, in tokens; None for 384, as in SQuAD's scripts, or
                less if the model or its tokenizer says so.
            doc_stride: tokens that neighbouring windows share; None for 128, or half a window.
            max_question_length: cut the question to so many tokens; None: never.
            truncate_always: if False, cut it only if it leaves no room for the text.

        Raises:
            InputError: empty input, or windows that cannot be made.
        """
        check_text("question", question)
        if not isinstance(texts, list | tuple):
            raise InputError(f"texts must be a list of texts, got {shown(texts)}")
        for number, text in enumerate(texts):
            several = len(texts) > 1
            check_text(f"context[{number}]" if several else "context", text, may_be_empty=several)
        positions = self.config.longest_window
        if max_seq_length is None:
            max_seq_length = self.usual_seq_length
        max_seq_length = check_count("max_seq_length", max_seq_length, 1)
        if max_seq_length > positions:
            raise InputError(
                f"max_seq_length {max_seq_length} is beyond the {positions} positions of this "
                "model. Lower it."
            )
        if doc_stride is None:
            doc_stride = min(128, max_seq_length // 2)
        doc_stride = check_count("doc_stride", doc_stride, 0)
        if max_question_length is not None:
            max_question_length = check_count("max_question_length", max_question_length, 1)
        tokens = self.tokenizer.encode(question)
        room = self.pair.text_room(tokens, max_seq_length)
        windows = []
        for number, text in enumerate(texts):
            context = self.tokenizer.encode(text)
            # A blank page, which to some tokenizers is a token or two, has nothing to say.
            if len(texts) > 1 and not (len(context) and text.strip()):
                continue
            asked = tokens
            if max_question_length is not None and (truncate_always or room < min(1, len(context))):
                asked = tokens.first(max_question_length)
            windows += make_windows(
                asked,
                context,
                pair=self.pair,
                max_seq_length=max_seq_length,
                doc_stride=doc_stride,
                document=number,
            )
        if not windows:
            raise InputError(f"the context is empty: none of its {len(texts)} texts holds a word")
        return windows

    def logits(self, windows: list[Window], trace: Trace | None = None) -> list[Logits]:
        """Run one packed batch: start and end logits [S] of each window."""
        check_windows(windows)
        if not isinstance(trace, dict | None):
            raise InputError(f"trace must be a Trace, got {shown(trace)}")
        batch = pack(windows)
        logits = qa_logits(batch, self.weights, self.config, self.kernels, trace)
        return batch.split(self.checked(logits))

    def begin(self, windows: list[Window]) -> Callable[[], list[Logits]]:
        """Begin a packed batch; the function that comes back waits for what `logits` gives.

        On the processor, the batch runs when that function is called.
        """
        check_windows(windows)
        batch = pack(windows)
        wait = begin_logits(batch, self.weights, self.config, self.kernels)
        return lambda: batch.split(self.checked(wait()))

    def checked(self, logits: Logits) -> Logits:
        """The logits of a batch, which can be compared and added up.

        Raises:
            BackendError: they are not finite, or so large that their sums are not.
        """
        if not all(np.abs(part).max(initial=0.0) < LARGEST_LOGIT for part in logits):  # NaN is not
            eps = self.config.layer_norm_eps
            causes = [f"too large for {self.dtype}"]
            if not np.float32(eps):
                causes.append(f"such that a norm with layer_norm_eps {eps!r} divides by zero")
            remedy = "" if self.dtype == "float32" else "Use dtype='float32'. "
            raise BackendError(
                f"{self.name}: its logits are not finite numbers, or beyond {LARGEST_LOGIT:g}: the "
                f"weights are damaged, or {', or '.join(causes)}. {remedy}`minibert doctor` with "
                "--model says what the files hold."
            )
        return logits

    def read(
        self,
        examples: Iterable[Example[Key]],
        *,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
    ) -> Iterator[tuple[Key, list[Window], list[Logits]]]:
        """Run the windows of many examples in packed batches; see `read_examples`."""
        on_gpu = self.kernels.launch is not None
        if batch_size is not None:
            batch_size = check_count("batch_size", batch_size, 1)
        if batch_tokens is None:
            batch_tokens = GPU_BATCH_TOKENS if on_gpu else BATCH_TOKENS
        return read_examples(
            self.begin,
            checked_examples(examples),
            batch_size=batch_size,
            batch_tokens=check_count("batch_tokens", batch_tokens, 1),
            beside=on_gpu,
        )


def check_windows(windows: object) -> None:
    """Refuse what is no list of windows.

    Raises:
        InputError: saying what it is.
    """
    if not isinstance(windows, list) or not all(isinstance(each, Window) for each in windows):
        raise InputError(
            f"windows must be a list of windows, as Model.windows gives them, got {shown(windows)}"
        )


def checked_examples(examples: Iterable[Example[Key]]) -> Iterator[Example[Key]]:
    """Pairs of a key and windows as they come.

    Raises:
        InputError: something else comes.
    """
    if not isinstance(examples, Iterable):
        raise InputError(f"examples must be pairs of a key and windows, got {shown(examples)}")
    for example in examples:
        if not isinstance(example, tuple) or len(example) != 2:
            raise InputError(f"an example must be a key and windows, got {shown(example)}")
        check_windows(example[1])
        yield example


def check_text(name: str, text: object, may_be_empty: bool = False) -> None:
    """Refuse what is not a text.

    Raises:
        InputError: `text` is not a string, or is empty and may not be.
    """
    if not isinstance(text, str):
        raise InputError(f"{name} must be a string, got {type(text).__name__}: {shown(text)}")
    if not text and not may_be_empty:
        raise InputError(f"{name} cannot be empty")


def load_model(
    model: str | Path | Model | None = None,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    device: str = "auto",
    dtype: str | None = None,
    num_threads: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Model:
    """Load a model.

    Args:
        model: None or "embedded" for the embedded one; a folder; a .safetensors file; a name on
            the Hugging Face Hub; or a loaded Model, which comes back as it is, or with the
            tokenizer that is named.
        tokenizer: another folder or name to take the tokenizer from, or a loaded one.
        device: 'auto' (the processor), 'cpu', 'cuda', 'cuda:1' and so on, or 'reference'.
        dtype: in which matrices are multiplied: 'float32', 'bfloat16', 'int8' (processor) or
            'float16' (GPU); None: 'float32'.
        num_threads: at most so many work on one batch; None: every core that this process may use.
        revision: branch, tag or commit on the Hub, of the tokenizer too.
        token: for private models on the Hub.
        cache_dir: where the Hub's files are kept.

    Raises:
        ModelNotFoundError: no model or tokenizer lies there.
        ConfigError: config.json describes a model that minibert cannot run.
        CheckpointError: the weights are damaged or do not fit the config.
        TokenizerError: the tokenizer is damaged or does not fit the model.
        BackendError: the device cannot run here.
    """
    if not isinstance(tokenizer, Tokenizer | str | os.PathLike | None):
        raise InputError(
            "tokenizer must be a folder, a name or a Tokenizer of minibert, got "
            f"{type(tokenizer).__name__}: {shown(tokenizer)}"
        )

    def fitting(config: BertConfig, where: Path) -> Tokenizer:
        """The tokenizer that is asked for; where nobody says, the one in the model's folder."""
        if isinstance(tokenizer, Tokenizer):
            chosen = tokenizer
        else:
            if tokenizer is not None and tokenizer != model:
                where = find_tokenizer(
                    tokenizer, revision=revision, token=token, cache_dir=cache_dir
                )
            chosen = load_tokenizer(where, config.family)
        try:
            chosen.check_fits(config)
        except TokenizerError as error:
            raise TokenizerError(f"{where}: {error}") from None
        return chosen

    if isinstance(model, Model):
        if tokenizer is None:
            return model
        return replace(model, tokenizer=fitting(model.config, Path(model.name)))

    @functools.cache
    def small_files(folder: Path) -> tuple[BertConfig, Tokenizer]:
        """Config and tokenizer, which can refuse a model before its weights are fetched."""
        config = BertConfig.from_json(folder / "config.json")
        return config, fitting(config, folder)

    kernels = get_backend(device, dtype, num_threads)
    files = find_model(
        model, revision=revision, token=token, cache_dir=cache_dir, check=small_files
    )
    config, chosen = small_files(files.folder)
    weights = kernels.prepare(load_weights(open_checkpoint(files.weights), config))
    name = files.folder.name if model is None else str(model)
    return Model(name, config, chosen, kernels, weights, files)
