"""What is done to bytes and to JSON, whatever they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from fuzzing.values import odd_text

# Numbers that stand at a limit of some type.
LIMITS = (0, 1, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64)
# Stands for what json.dumps could not write: a list in a list, a hundred thousand times.
DEEP = "a hundred thousand lists"
# Values of JSON, as Python writes them.
ODD_VALUES: tuple[Callable[[Random], Any], ...] = (
    lambda random: random.choice([None, True, False, "", [], {}, "true", "0", "null"]),
    lambda random: random.choice(LIMITS) * random.choice([1, -1]),
    lambda random: random.choice([0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), 1.5]),
    lambda random: 10 ** random.choice([20, 400, 4290]),
    odd_text,
    lambda random: [random.choice(LIMITS) for _ in range(random.randrange(4))],
    lambda random: DEEP,
    lambda random: odd_text(random) * random.choice([10, 1000]),
    lambda random: {odd_text(random): random.choice(LIMITS)},
)


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Change a few places of a file that knows nothing of what stands there."""
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        size = len(changed)
        begin = random.randrange(size + 1)
        length = random.choice([1, 1, 2, 4, 8, 64, 1000])
        part = slice(begin, begin + length)
        match random.randrange(9):
            case 0 if size:  # a bit
                changed[random.randrange(size)] ^= 1 << random.randrange(8)
            case 1 if size:
                changed[random.randrange(size)] = random.choice([0, 1, 127, 128, 255])
            case 2:
                del changed[part]
            case 3:
                del changed[begin:]
            case 4:
                changed[begin:begin] = random.randbytes(length)
            case 5:  # again
                changed[begin:begin] = changed[part]
            case 6:
                other = random.randrange(size + 1)
                changed[part] = changed[other : other + length]
            case 7:  # a number at a limit
                width = random.choice([1, 2, 4, 8])
                number = (random.choice(LIMITS) + random.choice([-1, 0, 1])) % 2 ** (8 * width)
                changed[begin : begin + width] = number.to_bytes(width, "little")
            case _:
                changed += random.randbytes(length)
    return bytes(changed)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a JSON document stand: the keys that lead to each."""
    found = [path]
    if isinstance(value, dict | list) and len(path) < 20:
        keys = list(value.items() if isinstance(value, dict) else enumerate(value))
        for key, part in keys[:400]:
            found += places(part, (*path, key))
    return found


def mutate_value(random: Random, value: Any) -> Any:
    """Change one value of a JSON document, or what the document has around it."""
    found = places(value)
    # First how deep: a vocabulary has a thousand places, and all settings beside it a dozen.
    depths = sorted({len(path) for path in found})
    depth = random.choice(depths if random.random() < 0.1 else depths[1:] or depths)
    path = random.choice([path for path in found if len(path) == depth])
    if not path:
        return random.choice(ODD_VALUES)(random)
    value = json.loads(json.dumps(value))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    match random.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):  # under another name
            holder[odd_text(random)] = holder.pop(key)
        case 2 if isinstance(holder, dict) and len(holder) > 1:  # what stands elsewhere
            holder[key] = holder[random.choice(list(holder))]
        case 3 if isinstance(holder, list):  # twice
            holder.insert(random.randrange(len(holder) + 1), holder[key])
        case 4 if type(holder[key]) is int:
            holder[key] += random.choice([-1, 1, 2, 100, -holder[key], -2 * holder[key]])
        case 5 if isinstance(holder[key], str):
            holder[key] = mutate_text(random, holder[key])
        case _:
            holder[key] = random.choice(ODD_VALUES)(random)
    return value


def mutate_json(random: Random, content: bytes) -> bytes:
    """Change a JSON file: its values, or now and then its bytes."""
    if random.random() < 0.15:
        return mutate_bytes(random, content)
    value = json.loads(content)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        value = mutate_value(random, value)
        if not isinstance(value, dict | list):
            break
    return written(value)


def written(value: Any) -> bytes:
    """A JSON document as bytes."""
    deep = b"[" * 100_000 + b"]" * 100_000
    return json.dumps(value).encode().replace(json.dumps(DEEP).encode(), deep)


def for_command(text: str) -> str:
    """A text as a command line can hold it: with odd bytes in place of half characters."""
    return text.replace("\ud800", "\udcff").replace("\udfff", "\udc80")


def mutate_text(random: Random, text: str) -> str:
    """Change a few characters."""
    begin = random.randrange(len(text) + 1)
    end = min(len(text), begin + random.choice([0, 0, 1, 3]))
    return text[:begin] + odd_text(random) + text[end:]


def mutate_lines(random: Random, content: bytes) -> bytes:
    """Change the lines of a file: which there are, in which order, how they end, one of them."""
    if random.random() < 0.3:
        return mutate_bytes(random, content)
    lines = content.split(b"\n")
    number = random.randrange(len(lines))
    match random.randrange(7):
        case 0:
            del lines[number]
        case 1:
            lines.insert(number, lines[random.randrange(len(lines))])
        case 2:
            lines[number] = odd_text(random).encode("utf-8", "surrogatepass")
        case 3:
            random.shuffle(lines)
        case 4:
            return random.choice([b"\r\n", b"\r", b"\n\n", b"\x00\n"]).join(lines)
        case 5:
            lines[number] = mutate_bytes(random, lines[number])
        case _:
            lines[number] *= random.choice([2, 1000])
    return b"\n".join(lines)
