"""Trace: a notebook in which the forward pass writes down its intermediate arrays.

Parity tests compare a trace with transformers stage by stage, so the first stage that differs is
the one with the mistake.
"""

from __future__ import annotations

from minibert.arrays import Floats


class Trace(dict[str, Floats]):
    """Arrays by the name of the step that made them, such as 'layer.0'."""

    def __repr__(self) -> str:
        names = list(self)
        ends = f", {names[0]!r} to {names[-1]!r}" if names else ""
        return f"Trace({len(names)} arrays{ends})"


def note(trace: Trace | None, name: str, array: Floats) -> Floats:
    """Write `array` under `name` if somebody asked for a trace; return it unchanged."""
    if trace is not None:
        trace[name] = array
    return array
