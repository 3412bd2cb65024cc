"""What PTX's arithmetic instructions compute: a table from opcodes to functions of arrays.

Results are exact, but for these: `fma` is computed in float64 and rounded once more, approximate
functions are as good as float64 makes them, `mma` adds in float64 and rounds once, min and max do
not order zeros, and a NaN keeps whatever payload NumPy gives it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Function = Callable[..., Array]

WARP = 32
F16, F32, F64, U32, U64 = map(np.dtype, ("f2", "f4", "f8", "u4", "u8"))
TINY = np.float32(2**-126)  # smaller float32 numbers are subnormal

KINDS = {"pred": np.dtype(bool), "f16": F16, "f32": F32}
KINDS |= {"bf16": np.dtype("u2"), "f16x2": U32, "bf16x2": U32}
KINDS |= {
    f"{letter}{bits}": np.dtype(f"{'i' if letter == 's' else 'u'}{bits // 8}")
    for letter in "bus"
    for bits in (8, 16, 32, 64)
}


def integer(value: int, dtype: np.dtype[Any]) -> Array:
    """A Python integer, wrapped to the width of a type, as an array without axes."""
    wrapped = value & ((1 << 8 * dtype.itemsize) - 1)
    return np.array(wrapped, f"u{dtype.itemsize}").view(dtype)


def number(text: str, kind: str) -> Array:
    """An immediate as an array without axes; float32 numbers are written as 0f and their bits.

    Raises:
        ValueError: it is not a number.
    """
    if kind == "pred":
        return np.array(int(text) != 0)
    value = int(text[2:], 16) if text.startswith(("0f", "0F")) else int(text.rstrip("U"), 0)
    return integer(value, KINDS[kind])


# Integers


def wide_product(a: Array, b: Array) -> Array:
    """The whole product, in integers of twice the width."""
    wide = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
    return a.astype(wide) * b.astype(wide)


def shift_left(a: Array, count: Array) -> Array:
    """A shift by uint32 counts; from the width on, nothing is left."""
    return np.left_shift(a, np.minimum(count, 8 * a.itemsize).astype(a.dtype))


def shift_right(a: Array, count: Array) -> Array:
    """A shift by uint32 counts; from the width on, the sign or nothing is left."""
    return np.right_shift(a, np.minimum(count, 8 * a.itemsize).astype(a.dtype))


def joined(a: Array, b: Array) -> Array:
    """Two words as one of 64 bits, a in its lower half."""
    return b.astype(U64) << np.uint64(32) | a


def extract_bits(a: Array, position: Array, length: Array) -> Array:
    """`bfe`: `length` bits from a position on; signed ones are extended."""
    spare = 8 * a.itemsize - np.minimum(length & 255, 8 * a.itemsize)
    # Shifted right first, so that bits past the end are copies of the sign, as they should be.
    return shift_right(shift_left(shift_right(a, position & 255), spare), spare)


def insert_bits(a: Array, b: Array, position: Array, length: Array) -> Array:
    """`bfi`: b with `length` bits from a position on replaced by the lowest bits of a."""
    low = ~shift_left(np.full_like(b, np.iinfo(b.dtype).max), length & 255)
    place = shift_left(low, position & 255)
    return (b & ~place) | (shift_left(a, position & 255) & place)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """`prmt`: four of the eight bytes of b:a, each chosen by a nibble, its top bit for the sign."""
    octets = np.stack([a, b], axis=1).view(np.uint8)
    nibble = selector[:, None] >> np.array([0, 4, 8, 12], U32) & 15
    chosen = np.take_along_axis(octets, (nibble & 7).astype(np.int64), 1)
    chosen = np.where(nibble & 8, np.where(chosen & 128, 255, 0), chosen)
    return np.ascontiguousarray(chosen, np.uint8).view(U32)[:, 0]


def table_logic(a: Array, b: Array, c: Array, table: Array) -> Array:
    """`lop3`: the function of three bits whose truth table is an 8-bit number."""
    result = np.zeros_like(a)
    for row in range(8):
        terms = [x if row & bit else ~x for x, bit in ((a, 4), (b, 2), (c, 1))]
        result |= np.where(table >> row & 1, terms[0] & terms[1] & terms[2], 0)
    return result


# Floats


def in_float64(function: Function) -> Function:
    """The same function, computed in float64 and rounded to float32."""
    return lambda *values: function(*(value.astype(F64) for value in values)).astype(F32)


def flush(array: Array) -> Array:
    """Subnormal float32 numbers become zero of the same sign."""
    small = np.abs(array) < TINY
    return array * ~small if np.count_nonzero(small) else array


def flushed(function: Function) -> Function:
    """The same function with `.ftz`: of float32 operands and results."""

    def outer(*values: Array) -> Array:
        result = function(*(flush(x) if x.dtype == F32 else x for x in values))
        return flush(result) if result.dtype == F32 else result

    return outer


def ordered(function: Function) -> Function:
    """A comparison of floats that is false where one of them is a NaN."""
    return lambda a, b: function(a, b) & ~(np.isnan(a) | np.isnan(b))


def unordered(function: Function) -> Function:
    """A comparison of floats that is true where one of them is a NaN."""
    return lambda a, b: function(a, b) | np.isnan(a) | np.isnan(b)


def from_f16(bits: Array) -> Array:
    """Bits of float16 as numbers."""
    return bits.view(F16)


def to_bf16(a: Array) -> Array:
    """Float32 numbers as the bits of bfloat16, rounded to nearest, ties to even."""
    bits = a.view(U32)
    rounded = bits + 0x7FFF + (bits >> 16 & 1) >> 16
    return np.where(np.isnan(a), 0x7FFF, rounded).astype("u2")


def from_bf16(bits: Array) -> Array:
    """Bits of bfloat16 as float32 numbers."""
    return (bits.astype(U32) << 16).view(F32)


def pair(half: Function) -> Function:
    """Two float32 numbers as one word; PTX names the upper half first."""
    return lambda high, low: half(high).astype(U32) << 16 | half(low)


# Instructions of a warp, whose lanes stand one after the other in an array


def multiply_fragments(widen: Function) -> Function:
    """`mma` m16n8k16: D = A B + C of every warp, from and to the lanes' fragments.

    Operands: four registers with two numbers of a row of A in each, which `widen` makes floats;
    two with numbers of a column of B; four numbers of C.
    """

    def multiply(*registers: Array) -> list[Array]:
        halves = [widen(np.ascontiguousarray(x).view("u2")).astype(F64) for x in registers[:6]]
        a0, a1, a2, a3, b0, b1 = (x.reshape(-1, 8, 8) for x in halves)  # [warps, row or column, k]
        rows = np.concatenate([np.concatenate([a0, a2], 2), np.concatenate([a1, a3], 2)], 1)
        columns = np.concatenate([b0, b1], 2)  # [warps, 8, 16]
        products = rows @ columns.swapaxes(1, 2)  # [warps, 16, 8]
        parts = products.reshape(-1, 2, WARP, 2)  # [warps, half of the rows, lane, two columns]
        c = registers[6:]
        return [(parts[:, i // 2, :, i % 2].reshape(-1) + c[i]).astype(F32) for i in range(4)]

    return multiply


def shuffle(value: Array, distance: Array, clamp: Array) -> tuple[Array, Array]:
    """`shfl.bfly`: another lane's value, or the own one if that is too far; and whether not."""
    thread, segment = np.arange(len(value)), clamp >> 8
    last = (thread & segment) | (clamp & ~segment)
    inside = (thread ^ distance) % WARP <= last % WARP
    return value[np.where(inside, thread ^ (distance % WARP), thread)], inside


# The table


@dataclass(frozen=True)
class Operation:
    """What an opcode does, and the types of its results and operands, of vectors one by one."""

    function: Callable[..., Any]  # gives an array, or several if there are several results
    results: tuple[str, ...]
    sources: tuple[str, ...]


HALVES = "u16,s16,u32,s32"  # integers that there is a type of twice the width for
INTEGERS = HALVES + ",u64,s64"
BITS = "b16,b32,b64"
MMA = "mma.sync.aligned.m16n8k16.row.col.f32.{0}.{0}.f32"
ALL = f"{BITS},{INTEGERS},f32"

COMPARISONS = {
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal},
    **{"gt": np.greater, "ge": np.greater_equal},
}

# Opcodes, with alternatives in braces; the types of results and of operands; function.
# t: the opcode's last type, d: the one before it, w: the last one with twice the width.
TABLE: list[tuple[str, str, str, Callable[..., Any]]] = [
    (f"add.{{{INTEGERS}}}", "t", "t t", np.add),
    (f"sub.{{{INTEGERS}}}", "t", "t t", np.subtract),
    (f"min.{{{INTEGERS}}}", "t", "t t", np.minimum),
    (f"max.{{{INTEGERS}}}", "t", "t t", np.maximum),
    (f"neg.{{{INTEGERS}}}", "t", "t", np.negative),
    (f"abs.{{{INTEGERS}}}", "t", "t", np.abs),
    (f"div.{{{INTEGERS}}}", "t", "t t", lambda a, b: (a - np.fmod(a, b)) // b),
    (f"rem.{{{INTEGERS}}}", "t", "t t", np.fmod),
    (f"mul.lo.{{{INTEGERS}}}", "t", "t t", np.multiply),
    (f"mul.hi.{{{HALVES}}}", "t", "t t", lambda a, b: wide_product(a, b) >> 8 * a.itemsize),
    (f"mul.wide.{{{HALVES}}}", "w", "t t", wide_product),
    (f"mad.lo.{{{INTEGERS}}}", "t", "t t t", lambda a, b, c: a * b + c),
    (f"mad.wide.{{{HALVES}}}", "w", "t t w", lambda a, b, c: wide_product(a, b) + c),
    (f"and.{{{BITS},pred}}", "t", "t t", np.bitwise_and),
    (f"or.{{{BITS},pred}}", "t", "t t", np.bitwise_or),
    (f"xor.{{{BITS},pred}}", "t", "t t", np.bitwise_xor),
    (f"not.{{{BITS},pred}}", "t", "t", np.invert),
    (f"shl.{{{BITS}}}", "t", "t u32", shift_left),
    (f"shr.{{{BITS},{INTEGERS}}}", "t", "t u32", shift_right),
    ("shf.l.wrap.b32", "t", "t t u32", lambda a, b, n: joined(a, b) << n % 32 >> 32),
    ("shf.r.wrap.b32", "t", "t t u32", lambda a, b, n: joined(a, b) >> n % 32),
    ("bfe.{u32,s32,u64,s64}", "t", "t u32 u32", extract_bits),
    ("bfi.{b32,b64}", "t", "t t u32 u32", insert_bits),
    ("prmt.b32", "t", "t t t", permute_bytes),
    ("lop3.b32", "t", "t t t u32", table_logic),
    (f"selp.{{{ALL}}}", "t", "t t pred", lambda a, b, where: np.where(where, a, b)),
    (f"mov.{{{ALL},pred}}", "t", "t", lambda a: a),
    ("cvta{,.to}.global.u64", "t", "t", lambda a: a),
    ("add{,.rn}{,.ftz}.f32", "t", "t t", np.add),
    ("sub{,.rn}{,.ftz}.f32", "t", "t t", np.subtract),
    ("mul{,.rn}{,.ftz}.f32", "t", "t t", np.multiply),
    ("fma.rn{,.ftz}.f32", "t", "t t t", in_float64(lambda a, b, c: a * b + c)),
    ("div{.approx,.full,.rn}{,.ftz}.f32", "t", "t t", np.divide),
    ("rcp{.approx,.rn}{,.ftz}.f32", "t", "t", np.reciprocal),
    ("sqrt{.approx,.rn}{,.ftz}.f32", "t", "t", np.sqrt),
    ("rsqrt.approx{,.ftz}.f32", "t", "t", in_float64(lambda a: 1 / np.sqrt(a))),
    ("ex2.approx{,.ftz}.f32", "t", "t", in_float64(np.exp2)),
    ("min{,.ftz}.f32", "t", "t t", np.fmin),
    ("max{,.ftz}.f32", "t", "t t", np.fmax),
    ("neg{,.ftz}.f32", "t", "t", np.negative),
    ("abs{,.ftz}.f32", "t", "t", np.abs),
    (f"cvt.{{{INTEGERS}}}.{{{INTEGERS}}}", "d", "t", lambda a: a),
    (f"cvt.rn.f32.{{{INTEGERS}}}", "d", "t", lambda a: a.astype(F32)),
    ("cvt{,.ftz}.f32.f16", "d", "t", lambda a: a.astype(F32)),
    ("cvt.f32.bf16", "d", "t", from_bf16),
    ("cvt.rn.f16.f32", "d", "t", lambda a: a.astype(F16)),
    ("cvt.rn.bf16.f32", "d", "t", to_bf16),
    ("cvt.rn.f16x2.f32", "d", "t t", pair(lambda a: a.astype(F16).view("u2"))),
    ("cvt.rn.bf16x2.f32", "d", "t t", pair(to_bf16)),
    ("shfl.sync.bfly.b32", "t pred", "t u32 u32", shuffle),
    (MMA.format("f16"), "f32 " * 4, "b32 " * 6 + "f32 " * 4, multiply_fragments(from_f16)),
    (MMA.format("bf16"), "f32 " * 4, "b32 " * 6 + "f32 " * 4, multiply_fragments(from_bf16)),
    *((f"setp.{x}.{{{BITS},{INTEGERS}}}", "pred", "t t", f) for x, f in COMPARISONS.items()),
    *((f"setp.{x}{{,.ftz}}.f32", "pred", "t t", ordered(f)) for x, f in COMPARISONS.items()),
    *((f"setp.{x}u{{,.ftz}}.f32", "pred", "t t", unordered(f)) for x, f in COMPARISONS.items()),
]


def spellings(pattern: str) -> list[str]:
    """The opcodes that a pattern with alternatives in braces stands for."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def operation(opcode: str, results: str, sources: str, function: Callable[..., Any]) -> Operation:
    """A row of the table for one of its opcodes."""
    *_, before, last = opcode.split(".")
    wide = re.sub(r"\d+", lambda bits: str(2 * int(bits[0])), last)
    kinds = {"t": last, "d": before, "w": wide}
    results, sources = (tuple(kinds.get(x, x) for x in text.split()) for text in (results, sources))
    return Operation(flushed(function) if ".ftz" in opcode else function, results, sources)


OPERATIONS = {
    opcode: operation(opcode, *row) for pattern, *row in TABLE for opcode in spellings(pattern)
}
