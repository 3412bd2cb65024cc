"""The smallest case that fails in the same way.

Parts are left out, large ones first, as long as the case still fails: values of its call, whole
files, values of JSON in them, and of other files bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from fuzzing.kinds import Case
from fuzzing.mutations import written

TRIES = 600  # cases that are run, at most
SECONDS = 60.0  # after which no more are

Items = TypeVar("Items", bytes, str, list)  # type: ignore[type-arg]


class Enough(Exception):
    """As many cases were run as may be, or for as long."""


def shrink(case: Case, fails: Callable[[Case], bool], tries: int = TRIES) -> Case:
    """Find a smaller case that fails as this one does.

    Args:
        case: one that fails.
        fails: whether a case fails in the same way.
        tries: how often that may be asked.

    Returns:
        The smallest that was found.
    """
    best, asked, begin = case, 0, time.monotonic()

    def better(files: dict[str, bytes] | None = None, call: Any = None) -> bool:
        """Whether a case with these files, or this call, fails, too; then it is the best."""
        nonlocal best, asked
        candidate = Case(case.kind, files or best.files, best.call if call is None else call)
        if candidate == best:
            return True
        if asked == tries or time.monotonic() - begin > SECONDS:
            raise Enough
        asked += 1
        if fails(candidate):
            best = candidate
            return True
        return False

    with suppress(Enough):
        for key in case.call:  # all of which are needed
            fails_with = partial(lambda key, new: better(call={**best.call, key: new}), key)
            shrink_value(best.call[key], fails_with)
        # JSON first: of what is no JSON, less can be left out, and that takes more tries.
        for name in sorted(case.files, key=lambda name: (not name.endswith(".json"), name)):
            others = {each: content for each, content in best.files.items() if each != name}
            if not better(others):
                fails_with = partial(lambda name, new: better(best.files | {name: new}), name)
                shrink_file(best.files[name], fails_with)
    return best


def shrink_file(content: bytes, fails: Callable[[bytes], bool]) -> None:
    """Leave out values of JSON, of a file that is JSON or begins with it; else bytes."""
    if (value := parsed(content)) is not None:
        shrink_value(value, lambda smaller: fails(written(smaller)))
        return
    size = int.from_bytes(content[:8], "little")
    header, data = parsed(content[8 : 8 + size]), content[8 + size :]
    if header is None:
        shrink_items(content, fails)
        return

    def with_header(smaller: Any) -> bool:
        text = written(smaller)
        return fails(len(text).to_bytes(8, "little") + text + data)

    shrink_value(header, with_header)


def parsed(content: bytes) -> Any:
    """The value of a JSON text; None if it is none, or one that cannot be written again."""
    try:
        value = json.loads(content)
        same = isinstance(value, dict | list) and json.loads(written(value)) == value
        return value if same else None
    except (ValueError, RecursionError):
        return None


def shrink_value(value: Any, fails: Callable[[Any], bool]) -> Any:
    """Leave out parts of a value of JSON.

    Args:
        value: one with which a case fails.
        fails: whether a case fails with another value.

    Returns:
        The smallest with which it still does, as far as was found.
    """
    if isinstance(value, str | list):
        value = shrink_items(value, fails)
    elif isinstance(value, dict):
        kept = value
        names = shrink_items(list(value), lambda names: fails({name: kept[name] for name in names}))
        value = {name: kept[name] for name in names}
    if isinstance(value, list | dict):
        for key in range(len(value)) if isinstance(value, list) else list(value):

            def fails_with(part: Any, whole: Any = value, key: Any = key) -> bool:
                return fails(replaced(whole, key, part))

            value = replaced(value, key, shrink_value(value[key], fails_with))
    return value


def replaced(whole: Any, key: Any, part: Any) -> Any:
    """A list or a dict with another value at one place."""
    copy = whole.copy()
    copy[key] = part
    return copy


def shrink_items(items: Items, fails: Callable[[Items], bool]) -> Items:
    """Leave out items, half of them first, then smaller and smaller runs."""
    length = len(items)
    while length:
        begin = 0
        while begin < len(items):
            fewer = items[:begin] + items[begin + length :]
            if fails(fewer):
                items = fewer
            else:
                begin += length
        length //= 2
    return items
