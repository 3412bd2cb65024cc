"""Odd texts, and arguments that nobody would expect.

An argument is an expression of Python, which is kept as a text: so a case can be saved, shown and
run again.  `NAMES` is what such an expression may use.
"""

from __future__ import annotations

import math
import re
from collections import UserDict, UserString
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

PIECES = [
    *("", " ", "\n", "\t", "\x00", "\x07", "\x1b[31m", "\x7f", "\x85", "\x9b", "\u2028", "a" * 300),
    *("\ufeff", "\ufffd", "\ufffe", "\u200b", "\u200d", "\u202e", "\u00ad", "\u0301", "\u0345"),
    *("\ud800", "\udfff", "\udc80", "\U0010ffff", "\U000e0001", "\uac00", "\u1100\u1161\u11a8"),
    *("e\u0301", "👨\u200d👩\u200d👧", *"ß ﬁ İ ı ǆ Σ ﷺ ㍿ é 船 東京 😀 ا ب ע ก็ ျ １２".split()),
    *"[CLS] [SEP] [UNK] <s> </s> <mask> ▁ ## ##s Ġ the Ada Lovelace 1843 . ? / \\ .. ../".split(),
    *"~ $ %s {} <script> &amp; NaN Infinity -1 1e999 0x10".split(),
]


def odd_text(random: Random) -> str:
    """A short text that is unlikely to have been thought of."""
    return "".join(random.choice(PIECES) for _ in range(random.choice([1, 1, 1, 2, 5])))


def long_text(random: Random) -> str:
    """Words and odd pieces, up to a few hundred of them."""
    words = [random.choice(PIECES) for _ in range(random.choice([1, 3, 10, 60, 250]))]
    if random.random() < 0.95:  # a lone surrogate is refused: most texts shall come further
        words = [word for word in words if not any("\ud800" <= c <= "\udfff" for c in word)]
    return random.choice(["", " ", " "]).join(words)


class Own(Exception):
    """An error of an object that is passed in, which passes through."""


class Raises:
    """Raises, whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise Own(name)

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise Own("asked for something")

    def __repr__(self) -> str:
        raise RuntimeError("cannot be shown")

    __str__ = __len__ = __iter__ = __getitem__ = __eq__ = __bool__ = _fail
    __index__ = __int__ = __float__ = __hash__ = __lt__ = __fspath__ = __contains__ = _fail


class BadRepr:
    """An object that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("cannot be shown")


class LongRepr:
    """An object that says much about itself, and no text at that."""

    def __repr__(self) -> str:
        return "x" * 10_000_000


class BytesPath:
    """A path that is given in bytes."""

    def __fspath__(self) -> bytes:
        return b"model"


class Text(str):
    """A string of another type, which claims to be something else."""

    def __str__(self) -> str:
        return "something else"

    def __len__(self) -> int:
        return 0


class Count(int):
    """An integer of another type, which compares as it likes."""

    def __lt__(self, other: object) -> bool:
        return False

    def __gt__(self, other: object) -> bool:
        return False


class Indexed:
    """No integer, but usable as one."""

    def __index__(self) -> int:
        return 3


class Column:
    """A column whose list is none."""

    def __init__(self, value: Any = 7) -> None:
        self.value = value

    def tolist(self) -> Any:
        """What it stands for."""
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Dataset:
    """Has a length and items, as torch's data sets."""

    def __init__(self, size: int = 2) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> dict[str, str]:
        return {"question": "who?", "context": "ada lee wrote it."}


def failing() -> Iterator[Any]:
    """A generator that ends in an error of its own."""
    yield ("who?", "ada")
    raise Own("the disk is gone")


# Separated by two spaces or more.
NUMBERS = re.split(
    r"\s\s+",
    """0  1  2  3  7  20  40  -1  True  False  None  1.0  2.5  -0.0  '3'  b'3'  1j  1e308  5e-324
    float('nan')  float('inf')  -float('inf')  10**400  -10**400  10**5000  2**31  2**32  2**63
    2**64  -2**63  np.uint8(200)  np.uint8(3)  np.int8(-1)  np.int8(100)  np.uint16(40)
    np.uint16(65535)  np.uint64(40)  np.int64(20)  np.int64(2**62)  np.float16(3)
    np.float32('nan')  np.float64(0.5)  np.longdouble(0.5)  np.bool_(True)  np.array(3)
    np.array([3])  np.datetime64('NaT')  Fraction(1, 3)  Fraction(10**400)  Decimal('0.5')
    Fraction(10**400, 10**400 + 1)  Decimal('NaN')  Decimal('sNaN')  Count(3)  Count(-3)
    Indexed()""",
)
OBJECTS = re.split(
    r"\s\s+",
    """Raises()  BadRepr()  LongRepr()  BytesPath()  Column()  Column('who?')  Column(Own())
    Column(Column())  Dataset()  Dataset(0)  object  lambda: 0  NotImplemented  ...  int  str
    print  failing()  iter(())  iter([1])  []  ()  {}  set()  {1: 2}  [[]]  [None]  [b'']  b''
    b'who?'  bytearray(b'a')  memoryview(b'ab')  np.array([])  np.array(['who?', 'ada'])
    np.array('who?')  np.str_('who?')  np.bytes_(b'who?')  np.array([['a', 'b'], ['c', 'd']])
    np.zeros(3)  np.array([1, 'a', None], object)  np.recarray(2, [('question', 'U3')])
    range(3)  range(10**5)  Text('who wrote it?')  Text('')  UserString('who?')  ''  ' '
    '\\ud800'  '\\x00'  'who?\\x00'  'a' * 5000  'a ' * 3000  '\\u0301' * 50  Path('.')
    UserDict(question='who?', context='ada')  dict(question='who?')
    dict(question=1, context=2)  dict(question='who?', context='ada lee')  [('who?', 'ada')]
    [('who?', 'ada'), 3]  ('who?', 'ada lee wrote it.')  ('who?', ['ada', ''])  ['who?'] * 3
    nest(2000)  loop()  'float32'  'bfloat16'  'int8'  'float16'  'cpu'  'cuda'  'cuda:1'
    'cuda:99'  'reference'  'auto'  np.dtype('float32')  np.float32
    np.array(['float32', 'int8'])""",
)


def nest(depth: int) -> list[Any]:
    """A list in a list in a list ..."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def loop() -> list[Any]:
    """A list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


def odd_expression(random: Random) -> str:
    """An argument."""
    if random.random() < 0.15:
        return ascii(odd_text(random))
    return random.choice(random.choice([NUMBERS, OBJECTS]))


NAMES = {
    **{kind.__name__: kind for kind in (Own, Raises, BadRepr, LongRepr, BytesPath, Text, Count)},
    **{kind.__name__: kind for kind in (Indexed, Column, Dataset, UserDict, UserString)},
    **{kind.__name__: kind for kind in (Decimal, Fraction, Path, failing, nest, loop)},
    "np": np,
    "math": math,
}
