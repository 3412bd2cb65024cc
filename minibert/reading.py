"""How many questions share packed batches.

Examples come one by one, each with the windows of one question.  They wait until their windows
fill a batch, then all of them are run, and each is given back with its logits, in order.  On a GPU
a batch is begun and left to run: the results of the one before are used meanwhile, and the next one
is prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

from minibert.errors import MinibertError
from minibert.spans import Logits
from minibert.windows import Window

Key = TypeVar("Key")
Example: TypeAlias = tuple[Key, list[Window]]  # a key of the caller's, the windows of a question
Result: TypeAlias = tuple[Key, list[Window], list[Logits]]
Begin: TypeAlias = Callable[[list[Window]], Callable[[], list[Logits]]]

# Tokens in a packed batch: enough rows to keep the processor busy, few enough that the
# activations stay in its cache.  A GPU needs more to be busy, and has no such cache.
BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = 8192


def read_examples(
    begin: Begin,
    examples: Iterable[Example[Key]],
    *,
    batch_size: int | None,
    batch_tokens: int,
    beside: bool,
) -> Iterator[Result[Key]]:
    """Run the windows of many examples through the encoder, in packed batches.

    Examples are taken as needed and given back in the same order; at any time only about
    `batch_tokens` tokens are waiting, or twice as many with `beside`.  An example without windows
    is given back in its turn too.

    Args:
        begin: begins a packed batch; the function that comes back waits for its logits.
        examples: each a key of the caller's and the windows of one question.
        batch_size: at most so many examples wait for each other; None: as many as fill a batch.
        batch_tokens: tokens of a batch; a longer example is spread over several.
        beside: whether a group is left to run while the caller uses the results of the one before;
            never with a `batch_size`.

    Yields:
        The key, the windows, and their logits.

    Raises:
        MinibertError: `examples` raised it.  What came before is given back first.
    """
    failures: list[MinibertError] = []  # one at most

    def until_one_fails() -> Iterator[Example[Key]]:
        try:
            yield from examples
        except MinibertError as error:
            failures.append(error)

    running: list[Iterator[Result[Key]]] = []  # one group with `beside`, else none
    for group in groups(until_one_fails(), batch_size, batch_tokens):
        running.append(begin_group(begin, group, batch_tokens))
        if beside and batch_size is None and len(running) == 1:
            continue
        yield from running.pop(0)
    for results in running:
        yield from results
    for error in failures:
        raise error


def groups(
    examples: Iterable[Example[Key]], batch_size: int | None, batch_tokens: int
) -> Iterator[list[Example[Key]]]:
    """Examples in groups of at most `batch_tokens` tokens; a longer one is a group of its own."""
    group: list[Example[Key]] = []
    tokens = 0
    for key, windows in examples:
        more = sum(map(len, windows)) or 1  # or those without windows would wait without end
        if group and tokens + more > batch_tokens:
            yield group
            group, tokens = [], 0
        group.append((key, windows))
        tokens += more
        if tokens >= batch_tokens or len(group) == batch_size:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def begin_group(
    begin: Begin, group: list[Example[Key]], batch_tokens: int
) -> Iterator[Result[Key]]:
    """Begin all windows of a group now; the iterator that comes back waits for them."""
    begun = [begin(batch) for batch in batches([w for _, ws in group for w in ws], batch_tokens)]

    def results() -> Iterator[Result[Key]]:
        logits = (pair for wait in begun for pair in wait())
        for key, windows in group:
            yield key, windows, [next(logits) for _ in windows]

    return results()


def batches(windows: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows in batches of at most `batch_tokens` tokens; a longer one is a batch of its own."""
    batch: list[Window] = []
    room = batch_tokens
    for window in windows:
        if batch and len(window) > room:
            yield batch
            batch, room = [], batch_tokens
        batch.append(window)
        room -= len(window)
    if batch:
        yield batch
