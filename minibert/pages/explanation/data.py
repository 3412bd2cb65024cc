"""What the page's script needs: numbers as base64, so that they stay exact and small."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.explaining.attention import KINDS, groups_of
from minibert.explaining.explanation import LISTED, Explanation
from minibert.explaining.spans import RULES, Seen
from minibert.probabilities import masked_softmax

GREYS = (245, 214, 184, 152, 118, 84)  # of what each of RULES forbids, but the first, which allows


def packed(array: NDArray[Any]) -> str:
    """The bytes of an array, little-endian, as base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def script_data(e: Explanation) -> str:
    """The JSON that the script reads, fit to stand in a <script> element."""
    texts = {seen.window.document: seen.window.context.text for seen in e.seen}
    value = {
        "texts": texts,
        "names": e.names,
        "rules": RULES,
        "greys": GREYS,
        "kinds": [name for name, _, _ in KINDS],
        "shown": e.shown,
        "listed": LISTED,
        "longest": e.options.max_answer_length,
        "threshold": limited(e.options.null_score_diff_threshold),
        "align": e.options.align_to_words,
        "temperature": e.config.temperature,
        "windows": [window_data(seen) for seen in e.seen],
        "layers": e.config.num_hidden_layers,
        "heads": e.config.num_attention_heads,
        "groups": packed(groups_of(e.window.window).astype(np.uint8)),
        "shares": packed(e.shares_of_heads.astype(np.float32)),
        "keys": packed(e.strongest.keys),
        "weights": packed(np.round(e.strongest.weights * 255).astype(np.uint8)),
        "strongest": e.strongest.keys.shape[-1],
        "covered": packed(e.strongest.covered.astype(np.float32)),
        "maps": [
            {"layer": layer, "head": head, "map": packed(np.round(255 * probs).astype(np.uint8))}
            for (layer, head), probs in e.maps.items()
        ],
    }
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c")  # so that no text ends the element


def window_data(seen: Seen) -> dict[str, Any]:
    """What decides about spans in one window, for both decoders."""
    window, tokens = seen.window, seen.window.context
    allowed = seen.text | (window.input_ids == window.input_ids[0])  # every [CLS]
    probabilities = [masked_softmax(logits, allowed) for logits in (seen.start, seen.end)]
    part = slice(window.offset, window.offset + window.end - window.begin)
    words = tokens.words[window.begin : window.end]
    columns = np.zeros((4, len(window)), np.int32)  # characters of tokens, and of their words
    in_word = np.zeros(len(window), bool)
    if len(words):
        offsets = tokens.offsets[window.begin : window.end]
        first = np.searchsorted(words, words, side="left")
        last = np.searchsorted(words, words, side="right") - 1
        known = words >= 0
        first, last = np.where(known, first, 0), np.where(known, last, 0)
        in_word[part] = known
        columns[:, part] = offsets[:, 0], offsets[:, 1], offsets[first, 0], offsets[last, 1]
    ends = seen.ends
    # From the lowest bit on: TEXT, MINE, MAY_START, MAY_END, BEGINS, ENDS and IN_WORD in script.js.
    flags = (seen.text, seen.mine, *ends[:4], in_word)
    return {
        "document": window.document,
        "size": len(window),
        "offset": window.offset,
        "stop": part.stop,
        "begin": window.begin,
        "start": packed(seen.start.astype(np.float32)),
        "end": packed(seen.end.astype(np.float32)),
        "startProbability": packed(probabilities[0].astype(np.float32)),
        "endProbability": packed(probabilities[1].astype(np.float32)),
        "flags": packed(np.packbits(np.array(flags), axis=0, bitorder="little")[0]),
        "starts": packed(ends.starts.astype(np.int32)),
        "ends": packed(ends.ends.astype(np.int32)),
        "characters": packed(columns),
    }


def limited(value: float) -> float:
    """A threshold as JSON can hold it: as good as infinite, where it is."""
    return float(np.clip(value, -1e30, 1e30))
