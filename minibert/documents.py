"""JSON as every program reads it: without NaN and infinite numbers, which Python would write."""

from __future__ import annotations

import json
import math
from typing import Any

from minibert.progress import STEERING


def to_json(value: Any, indent: int | None = None, plain: bool = False) -> str:
    r"""A document as JSON.

    An infinite number, which a threshold may be, becomes the text 'inf' or '-inf', and NaN null.

    Args:
        value: what JSON can hold.
        indent: spaces for each level; None for one line.
        plain: whether letters of all scripts stand as they are, and not as \u and four digits;
            but what would steer a terminal.

    Example:
        >>> to_json({"threshold": -math.inf, "text": "κ\x9b"}, plain=True)
        '{"threshold": "-inf", "text": "κ\\u009b"}'
    """
    try:
        text = json.dumps(value, ensure_ascii=not plain, indent=indent, allow_nan=False)
    except ValueError:  # there is one, for which all of the document has to be searched
        value = without_infinity(value)
        text = json.dumps(value, ensure_ascii=not plain, indent=indent, allow_nan=False)
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text) if plain else text


def without_infinity(value: Any) -> Any:
    """A document with texts for infinite numbers, and None for NaN."""
    if isinstance(value, dict):
        return {key: without_infinity(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
