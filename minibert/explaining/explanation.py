"""All that is shown about how one question was answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.answering import Context, Options, QuestionAnswerer, changed_options
from minibert.arrays import Floats
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.explaining.attention import (
    QUESTION,
    TEXT,
    Strongest,
    flow,
    groups_of,
    importance,
    shares,
    strongest,
)
from minibert.explaining.learner import Learner, Learnt
from minibert.explaining.passes import (
    Passes,
    Target,
    attention_probs,
    embedding_parts,
    similarity,
)
from minibert.explaining.spans import (
    ALLOWED,
    PART_OF_WORD,
    RULES,
    Pair,
    Seen,
    best_pair,
    see,
)
from minibert.explaining.words import (
    STEPS,
    TRIALS,
    Check,
    Path,
    Word,
    baselines,
    by_word,
    check,
    gradient_x_input,
    integrated_gradients,
    left_out,
    words_of,
)
from minibert.files import writing
from minibert.kernels.reference import span_logits
from minibert.options import check_count, check_flag, check_path, path_text
from minibert.progress import notice
from minibert.spans import Answer, Answers
from minibert.tokenizer import Tokenizer
from minibert.training.passes import Kept

LISTED = 12  # answers
MAPS = 5  # heads whose whole attention is kept: those that matter most


@dataclass(frozen=True)
class Rival:
    """Another span, and by how much the best one beats it."""

    text: str
    score: float
    start: float  # start logit of the best minus this one's
    end: float  # end logit of the best minus this one's
    rule: int = ALLOWED  # what forbids it, as a place in RULES


@dataclass(frozen=True, eq=False)
class Share:
    """What each token and word adds to a target."""

    target: Target
    value: float
    tokens: NDArray[np.float64]  # [S] gradient times input
    words: NDArray[np.float64]  # of each word
    pairs: NDArray[np.float64]  # [question words, text words] gradient times attention


@dataclass(frozen=True, eq=False)
class Thorough:
    """What --thorough adds, all for the first target."""

    paths: list[Path]
    agreement: float  # correlation of the two paths' shares of words
    left_out: NDArray[np.float64]  # of each word
    check: Check | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """How a model answered one question; a notebook shows it as the page that `html` gives.

    S is the number of tokens of the window that is shown.
    """

    model: str
    config: BertConfig
    question: str
    options: Options
    answers: Answers  # the best ones
    seen: list[Seen]  # every window
    shown: int  # number of the window that all that follows is about
    names: list[str]  # [S] of its tokens in the vocabulary
    unknown: NDArray[np.bool_]  # [S] whether the vocabulary does not know what stands there
    parts: dict[str, Floats]  # the three embeddings, [S, E] each
    kept: Kept  # every step's result
    moves: NDArray[np.float64]  # [L, S] cosine of each token before and after a layer
    early: list[Answer]  # the answer after each layer
    shares_of_heads: NDArray[np.float64]  # [L, H, kinds] see attention.KINDS
    strongest: Strongest
    maps: dict[tuple[int, int], Floats]  # (layer, head) -> [S, S]; the most important first
    importance: NDArray[np.float64]  # [L, H]
    best: Pair | None  # the best span of this window; None if there is none
    rival: Pair | None  # the best one that shares no token with it, or else the next
    picked: Pair  # the best start and the best end, each by itself
    rivals: list[Rival]  # of this window, the best one first
    words: list[Word]
    shares: list[Share]  # answer minus "no answer", answer minus rival
    thorough: Thorough | None
    seconds: float
    longest: int  # tokens of a window
    titles: list[str]  # of the texts
    learnt: Learnt | None = None  # where a learner's functions ran in the definition's place
    other: Explanation | None = None  # what it is compared with

    @property
    def window(self) -> Seen:
        """The window that is shown."""
        return self.seen[self.shown]

    def __repr__(self) -> str:
        return f"Explanation({self.question!r:.60}, {str(self.answers[0])!r:.60})"

    def html(self) -> str:
        """The whole page, which needs nothing but itself."""
        from minibert.pages.explanation import explanation_page  # here: drawing is asked for

        return explanation_page(self)

    def save(self, path: str) -> None:
        """Write the page to a file.

        Raises:
            InputError: it cannot be written.
        """
        if not (name := path_text(path)):
            raise InputError(f"a file's name is a text, got an object of {type(path).__name__}")
        with writing(name) as out:
            out.write(self.html())

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.html())}" sandbox="allow-scripts" '
            'style="width: 100%; height: 80vh; border: 1px solid #8888"></iframe>'
        )


def explain(
    qa: QuestionAnswerer,
    question: str,
    context: Context,
    *,
    window: int | None = None,
    thorough: bool = False,
    lessons: str | FilePath | None = None,
    compare: str | None = None,
    **options: Any,
) -> Explanation:
    """See `QuestionAnswerer.explain`."""
    began = time.perf_counter()
    chosen = changed_options(qa.options, options, ("window", "thorough", "lessons", "compare"))
    chosen = replace(chosen, max_overlap=None, min_score=None)  # rivals are what is to be seen
    other = None
    if compare is not None:
        other = explain(qa, *compared(question, context, compare), lessons=lessons, **options)
    model = qa.model
    windows = qa.windows(question, context, chosen)
    if window is not None:
        window = check_count("window", window, 0)
        if window >= len(windows):
            raise InputError(f"window {window}: there are {len(windows)}, counted from 0")
    passes = Passes(model)
    thorough = check_flag("thorough", thorough)
    learner = None if lessons is None else Learner(check_path("lessons", lessons))
    if learner is not None:
        learner.run(passes, passes.forward(windows[0]))  # says what fails, if anything does
        logits = [learner.logits(passes, each) for each in windows]
    else:
        [(_, _, logits)] = model.read([(None, windows)])
    answers = qa.decode(windows, logits, LISTED, chosen)
    looks = see(windows, logits)
    shown = shown_window(looks, answers) if window is None else window
    seen = looks[shown]

    kept = passes.forward(seen.window)
    config = model.config
    tokens = model.tokenizer.encode(question)
    names = model.tokenizer.names(seen.window.input_ids)
    words = words_of(seen.window, tokens)

    rules = seen.rules(chosen.max_answer_length, chosen.align_to_words)
    scores = seen.scores()
    allowed = rules == ALLOWED
    if not allowed.any():  # no word is short enough: parts of words, as the decoder has it
        allowed = (rules == ALLOWED) | (rules == PART_OF_WORD)
    best = best_pair(scores, allowed)
    rival = None if best is None else best_rival(scores, allowed, best)

    learnt = None if learner is None else learner.run(passes, kept)
    probs = attention_probs(kept, config)
    found = [share_of(passes, kept, probs, target, words) for target in targets(seen, best, rival)]
    heads = found[0][1] if found else np.zeros((len(probs), len(probs[0])))
    order = np.argsort(-heads, axis=None, kind="stable")[:MAPS]
    chosen_heads = [divmod(int(at), heads.shape[1]) for at in order]
    hidden = [kept.layers[0].x.out, *(layer.output.out for layer in kept.layers)]
    seen_probs = probs
    if learnt is not None:
        hidden = learnt.hidden(config.num_hidden_layers)
        seen_probs = learnt.probs(config.num_hidden_layers)
    early = [span_logits(x, passes.weights.qa_outputs) for x in hidden[1:]]
    deep = None
    if thorough and found:
        pad = padding_id(model.tokenizer)
        deep = look_thoroughly(passes, kept, seen, found[0][0], words, best, pad)
    return Explanation(
        model=model.name,
        config=config,
        question=question,
        options=chosen,
        answers=answers,
        seen=looks,
        shown=shown,
        names=names,
        unknown=seen.window.input_ids == model.tokenizer.unknown_id,
        parts=embedding_parts(kept.batch, passes.weights),
        kept=kept,
        moves=np.array([similarity(a, b) for a, b in pairwise(hidden)]),
        early=[qa.decode([seen.window], [each], 1, chosen)[0] for each in early],
        shares_of_heads=shares(seen_probs, groups_of(seen.window)),
        strongest=strongest(seen_probs),
        maps={(i, h): seen_probs[i][h] for i, h in chosen_heads},
        importance=heads,
        best=best,
        rival=rival,
        picked=Pair(int(seen.start.argmax()), int(seen.end.argmax())),
        rivals=[] if best is None else rivals_of(seen, scores, rules, allowed, best),
        words=words,
        shares=[share for share, _ in found],
        thorough=deep,
        seconds=time.perf_counter() - began,
        longest=chosen.max_seq_length or model.usual_seq_length,
        titles=[f"text {n}" for n in range(1 + max(w.document for w in windows))],
        learnt=learnt,
        other=other,
    )


def is_question(text: str) -> bool:
    """Whether a text ends as questions do, in whatever script.

    Example:
        >>> [is_question(text) for text in ("Who won? ", "谁写的？", "She won;")]
        [True, True, False]
    """
    return text.rstrip().endswith(("?", "？", "؟", "\u037e", "՞", "፧"))  # Greek's is U+037E


def compared(question: str, context: Context, compare: str) -> tuple[str, Context]:
    """What an answer is compared with: another question, which ends in ?, or another text.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(compare, str) or not compare.strip():
        raise InputError(
            "compare must be another question, which ends in ?, or another text, and not empty"
        )
    if is_question(compare):
        return compare, context
    return question, compare


def shown_window(looks: Sequence[Seen], answers: Sequence[Answer]) -> int:
    """The window of the best answer that is not "no answer"; without one, the first."""
    for answer in answers:
        if not answer.is_null:
            numbers = [n for n, s in enumerate(looks) if s.window.document == answer.document]
            return numbers[answer.window]
    return 0


def best_rival(scores: Floats, allowed: NDArray[np.bool_], best: Pair) -> Pair | None:
    """The best span that shares no token with the best one; if there is none, the next best."""
    tokens = np.arange(len(scores))
    apart = (tokens[:, None] > best.end) | (tokens[None, :] < best.start)
    other = allowed.copy()
    other[best] = False
    return best_pair(scores, allowed & apart) or best_pair(scores, other)


def targets(seen: Seen, best: Pair | None, rival: Pair | None) -> list[Target]:
    """What is explained: the answer minus "no answer", and minus its rival."""
    if best is None:
        return []
    pairs = [("no answer", Pair(0, 0))]
    if rival is not None:
        pairs.append((seen.characters(rival), rival))
    found = []
    for name, other in pairs:
        start, end = np.zeros_like(seen.start), np.zeros_like(seen.end)
        start[best.start] += 1
        end[best.end] += 1
        start[other.start] -= 1
        end[other.end] -= 1
        found.append(Target(name, start, end))
    return found


def share_of(
    passes: Passes, kept: Kept, probs: Sequence[Floats], target: Target, words: Sequence[Word]
) -> tuple[Share, NDArray[np.float64]]:
    """What tokens and words add to a target; and how much each head matters to it, [L, H]."""
    gradients = passes.backward(kept, target)
    tokens = gradient_x_input(kept, gradients)
    pairs = flow(probs, gradients.probs)
    of_question = [word for word in words if word.group == QUESTION]
    of_text = [word for word in words if word.group == TEXT]
    both = pairs + pairs.T  # question reads from text, and text from question
    table = np.array(
        [[both[q.begin : q.end, t.begin : t.end].sum() for t in of_text] for q in of_question]
    ).reshape(len(of_question), len(of_text))
    share = Share(target, passes.value(kept, target), tokens, by_word(tokens, words), table)
    return share, importance(probs, gradients.probs)


def rivals_of(
    seen: Seen,
    scores: Floats,
    rules: NDArray[np.uint8],
    allowed: NDArray[np.bool_],
    best: Pair,
) -> list[Rival]:
    """The best spans, and of each rule the best span that it forbids, where that has more."""

    def rival(pair: Pair, rule: int) -> Rival:
        inside = seen.text[pair.start] and seen.text[pair.end] and pair.start <= pair.end
        return Rival(
            seen.characters(pair) if inside else "",
            float(scores[pair]),
            float(seen.start[best.start] - seen.start[pair.start]),
            float(seen.end[best.end] - seen.end[pair.end]),
            rule,
        )

    found: list[Rival] = []
    left = allowed.copy()
    while len(found) < LISTED and (pair := best_pair(scores, left)) is not None:
        found.append(rival(pair, ALLOWED))
        left[pair] = False
    for rule in range(1, len(RULES)):
        pair = best_pair(scores, (rules == rule) & ~allowed)
        if pair is not None and scores[pair] > scores[best] and pair != (0, 0):
            found.append(rival(pair, rule))
    return sorted(found, key=lambda each: -each.score)


def padding_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token that says nothing, if the vocabulary has one."""
    ids = map(tokenizer.backend.token_to_id, ("[PAD]", "<pad>"))
    return next((number for number in ids if number is not None), None)


def look_thoroughly(
    passes: Passes,
    kept: Kept,
    seen: Seen,
    share: Share,
    words: Sequence[Word],
    best: Pair | None,
    pad_id: int | None,
) -> Thorough:
    """Integrated gradients, words left out, and whether the shares of words hold."""
    began = time.perf_counter()
    passes.value(passes.from_embeddings(kept, kept.embedded.out), share.target)
    forward = time.perf_counter() - began
    passes.backward(kept, share.target)
    both = time.perf_counter() - began
    against = baselines(kept, passes, seen.window, pad_id)
    most = len(against) * (2 * STEPS - 8) * both + (len(words) + TRIALS + 1) * forward
    notice(f"minibert: the thorough part takes {most:.0f} s at most")
    paths = []
    for name, baseline in against.items():
        tries = integrated_gradients(passes, kept, share.target, name, baseline)
        paths.append(list(tries)[-1])
    agreement = 1.0
    if len(paths) > 1 and len(words) > 1:
        first, second = (by_word(path.shares, words) for path in paths)
        agreement = float(np.corrcoef(first, second)[0, 1])
    blank = list(against.values())[-1]
    falls = left_out(passes, kept, share.target, words, blank)

    def in_answer(word: Word) -> bool:
        return best is not None and word.begin <= best.end and word.end > best.start

    checked = check(passes, kept, share.target, words, share.words, blank, in_answer)
    return Thorough(paths, agreement, falls, checked, time.perf_counter() - began)
