"""What is done to files whose parts have a meaning: headers, archives, programs, compression."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import struct
import warnings
import zipfile
from random import Random

import numpy as np

from fuzzing.mutations import LIMITS, mutate_bytes, mutate_json, mutate_value, written
from fuzzing.values import odd_text

ODD_FLOATS = (np.nan, np.inf, -np.inf, 3e38, 1e20, 1e10, 1e4, 1e-38, 1e-45, 0.0)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "F4", "", "f32")


def mutate_safetensors(random: Random, content: bytes) -> bytes:
    """Change a safetensors file: the length of its header, the header, or its numbers."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    match random.randrange(8):
        case 0:
            return mutate_bytes(random, content)
        case 1:
            length = random.choice([0, 1, size - 1, size + 1, len(content), *LIMITS]) % 2**64
            return length.to_bytes(8, "little") + content[8:]
        case 2:
            header = mutate_json(random, header)
        case 3 | 4:
            header, data = change_tensor(random, header, data)
        case 5:
            header = header + b" " * random.choice([1, 8, 100_000])
        case 6:
            return change_numbers(random, content, size)
        case _:
            data = mutate_bytes(random, data)
    return len(header).to_bytes(8, "little") + header + data


def change_tensor(random: Random, header: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Describe one tensor otherwise."""
    raw = json.loads(header)
    names = sorted(name for name in raw if name != "__metadata__")
    name, other = random.choice(names), random.choice(names)
    entry = raw[name]
    match random.randrange(8):
        case 0:
            entry["dtype"] = random.choice(DTYPES)
        case 1:
            entry["shape"] = entry["shape"][::-1]
        case 2:
            entry["shape"] = [*entry["shape"], random.choice([0, 1, 2**31, -1])]
        case 3:
            entry["data_offsets"] = raw[other]["data_offsets"]
        case 4:
            entry["data_offsets"] = [n + random.choice(LIMITS) for n in entry["data_offsets"]]
        case 5:
            raw[name], raw[other] = raw[other], entry
        case 6:  # a tensor of no numbers, of any shape
            begin = entry["data_offsets"][0]
            raw[odd_text(random)] = {
                "dtype": "F32",
                "shape": [0, *(random.choice(LIMITS) for _ in range(3))],
                "data_offsets": [begin, begin],
            }
        case _:  # many numbers that are not there
            extra = random.choice([4, 4096])
            end = max(each["data_offsets"][1] for n, each in raw.items() if n != "__metadata__")
            shape = random.choice([[extra // 4], [2**40], [1] * 40, [1, extra // 4]])
            raw["extra"] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + extra]}
            data += bytes(random.choice([0, extra]))
    return written(raw), data


def change_numbers(random: Random, content: bytes, size: int) -> bytes:
    """Replace numbers of one tensor, or the scale of all of them."""
    raw = json.loads(content[8 : 8 + size])
    floats = sorted(name for name, entry in raw.items() if entry.get("dtype") == "F32")
    begin, end = raw[random.choice(floats)]["data_offsets"]
    begin, end = begin + 8 + size, end + 8 + size
    array = np.frombuffer(content[begin:end], "<f4").copy()
    value = np.float32(random.choice(ODD_FLOATS))
    with np.errstate(all="ignore"):
        match random.randrange(4):
            case 0:
                array[:] = value
            case 1:
                array *= value
            case 2:
                array[random.randrange(len(array))] = value
            case _:
                array[:: random.randrange(1, 9)] = value
    return content[:begin] + array.tobytes() + content[end:]


def mutate_zip(random: Random, content: bytes) -> bytes:
    """Change an archive of torch.save: its members, their order, how they are packed."""
    if random.random() < 0.25:
        return mutate_bytes(random, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    number = random.randrange(len(members))
    if random.random() < 0.5:
        number = 0  # the pickle
    name, inside = members[number]
    kind = zipfile.ZIP_STORED
    match random.randrange(8):
        case 0:
            del members[number]
        case 1:
            members.append((name, inside[: len(inside) // 2]))
        case 2:
            kind = zipfile.ZIP_DEFLATED
        case 3:
            members[number] = (
                random.choice(["../", "/", "", "archive/"]) + odd_text(random),
                inside,
            )
        case 4:  # a bomb
            members[number] = (name, bytes(random.choice([10**6, 2 * 10**7])))
            kind = zipfile.ZIP_DEFLATED
        case 5 if name.endswith(".pkl"):
            members[number] = (name, mutate_program(random, inside))
        case 6:
            random.shuffle(members)
        case _:
            members[number] = (name, mutate_bytes(random, inside))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name
        for name, inside in members:
            # A time that does not change, and a name that NUL or a surrogate may stand in.
            info = zipfile.ZipInfo(date_time=(1980, 1, 1, 0, 0, 0))
            info.filename, info.compress_type = name.encode("utf-8", "replace").decode(), kind
            archive.writestr(info, inside)
    return stream.getvalue()


def text(value: str) -> bytes:
    """A text as a pickle has it."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def module(part: str, content: bytes) -> bytes:
    """A module as a pickle has it whole: an object with one of its parts."""
    return b"cx\ny\n)\x81}" + text(part) + content + b"sb"


def many(count: int, value: bytes) -> bytes:
    """A dict with the same value under many names."""
    return b"}(" + b"".join(text(str(n)) + value for n in range(count)) + b"u"


# Programs, or the middle of them: those that would run something, those that would grow.
PROGRAMS = (
    many(500, b"N")
    + b"r\xff\x00\x00\x000"
    + module("_modules", many(500, module("_parameters", b"j\xff\x00\x00\x00"))),
    module("_modules", many(20, module("_parameters", many(3, b"N")))),
    b"}("
    + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(5000))
    + b"u",
    b"cos\nsystem\n" + text("touch ran") + b"\x85R",
    b"cbuiltins\nexec\n" + text("open('ran', 'w')") + b"\x85R",
    b"cbuiltins\neval\n" + text("open('ran', 'w')") + b"\x85R",
    b"(" + text("touch ran") + b"ios\nsystem\n",
    b"csubprocess\nPopen\n" + text("touch ran") + b"\x85R",
    b"cbuiltins\ngetattr\n(ctorch\nload\n" + text("ran") + b"tR",
    b"c__main__\nX\n)\x81}" + text("a") + b"K\x01sb",
    b"(lp0\n" + b"(g0\n" * 30 + b"t" * 30,
    b"]\x94" + b"(h\x00h\x00h\x00e" * 20,
    b"(" * 5000,
    b"N" * 5000,
    b"]" * 3000 + b"a" * 2999,
    b"\x8a\xff" + b"\x7f" * 255,
    b"\x8b\xff\xff\xff\x7f",
    b"B\xff\xff\xff\xff",
    b"\x8d" + b"\xff" * 8,
    b"I" + b"9" * 5000 + b"\n",
    b"\x85" * 3000,
    b"r\xff\xff\xff\xffj\xff\xff\xff\xff",
    b"\x80\x05",
    b"\x95" + b"\xff" * 8,
    b"Q",
    b"P1\n",
    b"\x82\x01",
    b"00000",
    b".",
)


def mutate_program(random: Random, content: bytes) -> bytes:
    """Change a pickle: put instructions into it, or change bytes."""
    if random.random() < 0.4:
        return mutate_bytes(random, content)
    place = random.choice([2, len(content) - 1, random.randrange(len(content))])
    return content[:place] + random.choice(PROGRAMS) + content[place:]


def mutate_legacy(random: Random, content: bytes) -> bytes:
    """Change a file of torch.save of before 1.6: several pickles, then the numbers."""
    if random.random() < 0.4:
        return mutate_bytes(random, content)
    first = [at for at in range(len(content) - 1) if content[at : at + 2] == b"\x80\x02"]
    place = random.choice(first) + 2
    if random.random() < 0.5:
        return content[:place] + random.choice(PROGRAMS) + content[place:]
    return (
        content[:place]
        + mutate_bytes(random, content[place : place + 400])
        + content[place + 400 :]
    )


def mutate_packed(random: Random, content: bytes) -> bytes:
    """Change a compressed JSON file: what is inside, how it is packed, its bytes."""
    opened, pack = (
        (lzma.decompress, lzma.compress)
        if content[:6] == b"\xfd7zXZ\x00"
        else (gzip.decompress, lambda inside: gzip.compress(inside, mtime=0))
    )
    match random.randrange(5):
        case 0:
            return mutate_bytes(random, content)
        case 1:  # a bomb
            size = random.choice([10**6, 5 * 10**7])
            return pack(random.choice([b" ", b"[", b'{"data": "']) * (size // 10))
        case 2:  # two in one file, or something behind
            return content + random.choice([content, b"\x00" * 100, b"x"])
        case 3:
            return pack(pack(opened(content)))
    return pack(mutate_json(random, opened(content)))


def mutate_rows(random: Random, content: bytes) -> bytes:
    """Change one line of JSON lines, or what lines there are."""
    lines = content.splitlines(keepends=True)
    number = random.randrange(len(lines))
    match random.randrange(6):
        case 0:
            return mutate_bytes(random, content)
        case 1:
            lines.insert(number, odd_text(random).encode("utf-8", "surrogatepass") + b"\n")
        case 2:
            lines[number] = lines[number].rstrip(b"\n") + random.choice([b"", b"\r\n", b"\x00\n"])
        case 3:
            lines.insert(number, random.choice([b"\n", b"\xef\xbb\xbf", b"[" * 5000 + b"\n"]))
        case _:
            lines[number] = written(mutate_value(random, json.loads(lines[number]))) + b"\n"
    return b"".join(lines)
