"""What a function gave, and in what it differs from what the definition gives.

Shape and dtype come before values: numbers of arrays of different shapes cannot be compared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np

from minibert.reprs import short, shown

# Largest difference that counts as equal, as a share of the array's largest number.  Right ones in
# another order of sums differ by 1e-15 and 5e-7; the library's own erf by 2e-9 from the true one.
SHORT = 70  # characters of a list that is shown as it is
LIMITS = {"float64": 1e-7, "float32": 2e-5}


@dataclass(frozen=True)
class Raised:
    """A function ended with an error; two are the same whose kind and text are."""

    kind: str
    text: str
    said: str = field(default="", compare=False)  # with its line, for the learner


@dataclass(frozen=True)
class Outcome:
    """What one call gave."""

    value: Any  # what was returned, or Raised
    changed: tuple[Any, ...] = ()  # the arguments that the function is meant to change, afterwards


def attempt(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What a call gives, and the error with which it ends.

    The one place that takes every error, SystemExit too: the code that runs here is a learner's, or
    has a mistake on purpose, and what it ends with is what is to be said.
    """
    try:
        with np.errstate(all="ignore"):
            return call(), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, error


def outcome(
    function: Callable[..., Any], arguments: Sequence[Any], changed: Sequence[int] = ()
) -> Outcome:
    """Call a function on copies.

    Args:
        function: any.
        arguments: of the call.
        changed: which of them are looked at afterwards.
    """
    given = copy.deepcopy(tuple(arguments))
    value, error = attempt(lambda: function(*given))
    if error is not None:
        value = Raised(type(error).__name__, str(error))
    return Outcome(value, tuple(given[i] for i in changed))


def members(value: Any) -> list[tuple[str, Any]] | None:
    """The parts of a tuple, list or record, each with how it is reached; None for anything else."""
    if isinstance(value, Raised):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return [(f".{each.name}", getattr(value, each.name)) for each in fields(value)]
    if isinstance(value, list | tuple):
        names = getattr(value, "_fields", None)
        return [(f".{names[i]}" if names else f"[{i}]", part) for i, part in enumerate(value)]
    return None


def is_number(value: Any) -> bool:
    """A plain number of Python's or NumPy's; no truth value."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def kind(value: Any) -> str:
    """What a value is, in a few words; short lists of numbers as they are."""
    if value is None:
        return "None"
    if isinstance(value, Raised):
        return f"{value.kind}: {value.text}"
    if isinstance(value, np.ndarray):
        return f"an array {short(value)}"
    if isinstance(value, list | tuple):
        arrays = any(isinstance(part, np.ndarray) for part in value)
        plain = not arrays and len(repr(value)) <= SHORT
        return repr(value) if plain else f"a {type(value).__name__} of {len(value)}"
    return f"{shown(value)} ({type(value).__name__})"


class Difference(NamedTuple):
    """In what two outcomes differ."""

    rung: str  # "kind", "shape", "dtype" or "value"
    text: str


def difference(
    yours: Outcome, right: Outcome, names: Sequence[str] = (), any_dtype: bool = False
) -> Difference | None:
    """The first thing in which an outcome differs from the right one; None if it is right.

    Args:
        yours: of the learner's function.
        right: of the definition.
        names: of the arguments that are changed.
        any_dtype: pass over dtypes.
    """
    values = [("result", yours.value, right.value)]
    values += zip(names, yours.changed, right.changed, strict=True)
    for name, mine, its in values:
        if found := compare(mine, its, name, any_dtype):
            return found
    return None


def compare(yours: Any, right: Any, what: str, any_dtype: bool = False) -> Difference | None:
    """As `difference`, of two values."""
    otherwise = Difference("kind", f"{what} is {kind(yours)}; it should be {kind(right)}")
    if (its := members(right)) is not None:
        mine = members(yours)
        if mine is None or is_dataclass(yours) != is_dataclass(right):
            return otherwise
        if len(mine) != len(its):
            return otherwise._replace(rung="shape")
        for (_, one), (place, other) in zip(mine, its, strict=True):
            if found := compare(one, other, what + place, any_dtype):
                return found
        return None
    if isinstance(right, np.ndarray):
        return compare_arrays(yours, right, what, any_dtype)
    if is_number(right):
        if not is_number(yours):
            return otherwise
        near = abs(float(yours) - float(right)) <= LIMITS["float64"] * max(1, abs(float(right)))
        text = f"{what} is {number(yours)}; it should be {number(right)}"
        return None if near or yours == right else Difference("value", text)
    alike = yours is right or (type(yours) is type(right) and bool(yours == right))
    return None if alike else otherwise


def compare_arrays(
    yours: Any, right: np.ndarray[Any, Any], what: str, any_dtype: bool = False
) -> Difference | None:
    """As `difference`, of arrays: shape, dtype, then values."""
    if not isinstance(yours, np.ndarray):
        return Difference("kind", f"{what} is {kind(yours)}; it should be {kind(right)}")
    if yours.shape != right.shape:
        turned = sorted(yours.shape) == sorted(right.shape)
        return Difference(
            "shape",
            f"{what} has the shape {list(yours.shape)}; it should be {list(right.shape)}"
            + (": the same lengths, in another order" if turned else ""),
        )
    if any_dtype and yours.dtype.kind in "fiub":
        yours = yours.astype(right.dtype)
    if yours.dtype != right.dtype:
        hint = ""
        if {yours.dtype, right.dtype} == {np.dtype("f4"), np.dtype("f8")}:
            hint = (
                ": float64 numbers of NumPy, such as np.sqrt(4) or an element of an array, widen "
                "an array; math.sqrt(4) and float(...) do not"
                if yours.dtype == np.dtype("f8")
                else ": a new array takes its dtype from what came in"
            )
        return Difference("dtype", f"{what} is {yours.dtype}; it should be {right.dtype}{hint}")
    wrong = np.argwhere(~close(yours, right))
    if not len(wrong):
        return None
    place = tuple(int(i) for i in wrong[0])
    share = f"{len(wrong)} of {right.size} numbers differ" if right.size > 1 else "it differs"
    at = f"{what}[{', '.join(map(str, place))}]" if right.ndim else what
    return Difference(
        "value", f"{at} is {number(yours[place])}; it should be {number(right[place])}; {share}"
    )


def close(yours: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Where two arrays of one shape and dtype are equal but for rounding."""
    if right.dtype.kind != "f":
        return np.asarray(yours == right)
    finite = np.abs(right[np.isfinite(right)])
    limit = LIMITS.get(str(right.dtype), 1e-3) * (finite.max(initial=0.0) or 1.0)
    with np.errstate(all="ignore"):
        near = np.abs(yours - right) <= limit
    return near | (yours == right) | (np.isnan(yours) & np.isnan(right))


def number(value: Any) -> str:
    """A number in as many digits as tell it from a wrong one."""
    return f"{value:.7g}" if isinstance(value, float | np.floating) else str(value)


def same(yours: Sequence[Outcome], other: Sequence[Outcome]) -> bool:
    """Whether two functions gave the same numbers on all cases, in whatever dtype."""
    return not any(
        difference(mine, its, [""] * len(its.changed), any_dtype=True)
        for mine, its in zip(yours, other, strict=True)
    )
