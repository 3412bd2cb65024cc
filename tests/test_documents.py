"""JSON that every program reads."""

import json
import math

from minibert.documents import to_json


def no_constant(name):
    raise ValueError(name)


def test_json_holds_neither_nan_nor_infinity():
    text = to_json({"a": [math.nan, (math.inf,)], "b": {"c": -math.inf, "d": 1.5, "e": None}})
    found = json.loads(text, parse_constant=no_constant)
    assert found == {"a": [None, ["inf"]], "b": {"c": "-inf", "d": 1.5, "e": None}}


def test_json_is_what_python_writes_otherwise():
    for value in ({"a": [1, 2.5, "κ\n\x1b"], "b": True}, [], "é", 10**100):
        assert to_json(value) == json.dumps(value)
        assert to_json(value, indent=2) == json.dumps(value, indent=2)
        assert to_json(value, plain=True) == json.dumps(value, ensure_ascii=False)


def test_no_text_in_json_steers_a_terminal():
    steering = [*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
    value = "".join(map(chr, steering)) + "Ωμέγα 東京 שלום 😀"
    text = to_json(value, plain=True)
    assert json.loads(text) == value
    assert not {chr(code) for code in steering} & set(text)
    assert "Ωμέγα 東京 שלום 😀" in text
