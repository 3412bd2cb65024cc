"""Which words made an answer: signed shares of a difference of logits.

All of it is about a fixed start and end.  A sum of logits alone says little, since a constant that
is added to all of them changes no answer; so what is explained is a difference: the answer minus
"no answer", and the answer minus its best rival.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minibert.arrays import Floats
from minibert.explaining.attention import QUESTION, TEXT, groups_of
from minibert.explaining.passes import Gradients, Passes, Target
from minibert.kernels import gradients
from minibert.progress import progress
from minibert.tokenizer import Tokens
from minibert.training.passes import Kept
from minibert.windows import Window

STEPS = 64  # of a path from a baseline, at most
CONVERGED = 0.05  # error of completeness up to which a path counts as converged
TRIALS = 16  # random removals that the words with the highest shares are compared with
REMOVED = 5  # words that are removed


@dataclass(frozen=True)
class Word:
    """A word of question or text, and which tokens of the window it is made of."""

    text: str
    group: int  # QUESTION or TEXT
    begin: int  # first token, in the window
    end: int  # one past its last


def words_of(window: Window, question: Tokens) -> list[Word]:
    """The words of a window, from left to right."""
    found = []
    text = window.context
    for group, tokens, first, last, at in (
        (QUESTION, question, 0, int(np.count_nonzero(groups_of(window) == QUESTION)), 1),
        (TEXT, text, window.begin, window.end, window.offset),
    ):
        begin = first
        for token in range(first + 1, last + 1):
            same = token < last and tokens.words[token] == tokens.words[begin] >= 0
            if not same:
                characters = tokens.offsets[begin, 0], tokens.offsets[token - 1, 1]
                place = at + begin - first, at + token - first
                found.append(Word(tokens.text[slice(*characters)].strip(), group, *place))
                begin = token
    return found


def by_word(values: NDArray[np.float64] | Floats, words: Sequence[Word]) -> NDArray[np.float64]:
    """Sums over the tokens of each word."""
    return np.array([values[word.begin : word.end].sum(dtype=np.float64) for word in words])


def gradient_x_input(kept: Kept, found: Gradients) -> NDArray[np.float64]:
    """Each token's embedding times the target's gradient there, [S].

    Source: Shrikumar et al. 2016 (arXiv:1605.01713).
    """
    return np.einsum("sd,sd->s", kept.embedded.out, found.embeddings, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Path:
    """Integrated gradients from one baseline."""

    baseline: str
    shares: NDArray[np.float64]  # [S]
    steps: int
    difference: float  # the target's value at the input minus that at the baseline

    @property
    def error(self) -> float:
        """How far the shares are from summing to the difference, as a part of it."""
        return abs(self.shares.sum() - self.difference) / max(abs(self.difference), 1e-9)

    @property
    def converged(self) -> bool:
        """Whether the shares sum to what they should, nearly."""
        return self.error <= CONVERGED


def baselines(kept: Kept, passes: Passes, window: Window, pad_id: int | None) -> dict[str, Floats]:
    """Embeddings [S, D] that say nothing: zero, or [PAD] in place of question and text."""
    found = {"zero": np.zeros_like(kept.embedded.out)}
    if pad_id is not None:
        batch = kept.batch
        ids = np.where(np.isin(groups_of(window), (QUESTION, TEXT)), pad_id, batch.input_ids)
        found["[PAD]"] = gradients.embed(
            ids.astype(np.int32),
            batch.token_type_ids,
            batch.position_ids,
            passes.weights.tables,
            passes.config.layer_norm_eps,
            None,
        ).out
    return found


def integrated_gradients(
    passes: Passes, kept: Kept, target: Target, name: str, baseline: Floats
) -> Iterator[Path]:
    """Integrated gradients along a straight line, with more and more steps until they converge.

    The middle of each of n equal parts of the line stands for it; n is doubled from 8 to `STEPS`.

    Yields:
        What was found with each n; the last is the best.

    Source: Sundararajan et al. 2017 (arXiv:1703.01365).
    """
    embedded = kept.embedded.out
    way = embedded - baseline
    start = passes.from_embeddings(kept, baseline)
    difference = passes.value(kept, target) - passes.value(start, target)
    count = 8
    while count <= STEPS:
        total = np.zeros_like(embedded, dtype=np.float64)
        for part in progress(range(count), count, f"gradients from {name}"):
            at = passes.from_embeddings(kept, baseline + np.float32((part + 0.5) / count) * way)
            total += passes.backward(at, target).embeddings
        path = Path(name, (total / count * way).sum(axis=1), count, difference)
        yield path
        if path.converged:
            return
        count *= 2


def left_out(
    passes: Passes, kept: Kept, target: Target, words: Sequence[Word], replacement: Floats
) -> NDArray[np.float64]:
    """How far the target falls when each word alone is replaced, by embeddings [S, D]: [words]."""
    whole = passes.value(kept, target)
    falls = []
    for word in progress(words, len(words), "words left out"):
        falls.append(whole - passes.value(without(passes, kept, [word], replacement), target))
    return np.array(falls)


def without(passes: Passes, kept: Kept, words: Sequence[Word], replacement: Floats) -> Kept:
    """The same window with some words replaced."""
    embedded = kept.embedded.out.copy()
    for word in words:
        embedded[word.begin : word.end] = replacement[word.begin : word.end]
    return passes.from_embeddings(kept, embedded)


@dataclass(frozen=True)
class Check:
    """Whether the words with the highest shares matter more than others."""

    removed: int  # words
    top: float  # how far the target falls without those with the highest shares
    random: list[float]  # without as many others, several times

    @property
    def passed(self) -> bool:
        """Whether the highest shares matter more than nine in ten random choices."""
        return sum(self.top > fall for fall in self.random) >= 0.9 * len(self.random)


def check(
    passes: Passes,
    kept: Kept,
    target: Target,
    words: Sequence[Word],
    shares: NDArray[np.float64],
    replacement: Floats,
    keep: Callable[[Word], bool],
    seed: int = 0,
) -> Check | None:
    """Remove the words with the highest shares, and as many random ones.

    Args:
        passes: of the model.
        kept: the window's pass.
        target: what should fall.
        words: of the window.
        shares: of each word.
        replacement: embeddings [S, D] in the place of those that are removed.
        keep: words that are never removed, such as those of the answer itself.
        seed: of the random choices.

    Returns:
        What it gave; None where there are too few words to choose from.
    """
    free = [number for number, word in enumerate(words) if not keep(word)]
    count = min(REMOVED, len(free) // 3)
    if not count:
        return None
    whole = passes.value(kept, target)

    def fall(numbers: Sequence[int]) -> float:
        chosen = [words[number] for number in numbers]
        return whole - passes.value(without(passes, kept, chosen, replacement), target)

    top = sorted(free, key=lambda number: -shares[number])[:count]
    random = np.random.default_rng(seed)
    others = [random.choice(free, count, replace=False).tolist() for _ in range(TRIALS)]
    return Check(count, fall(top), [fall(numbers) for numbers in others])
