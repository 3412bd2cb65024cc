"""Runs PTX text on NumPy arrays, to test compiled CUDA kernels without a GPU.

One block runs at a time and a register is an array over all threads of the block. Threads have
their own program counters; the smallest one among the threads that can run is executed next, for
all threads that are there, which brings divergent threads together again at the end of a branch.

What a GPU would let pass is an error here: reading a register or shared memory never written, an
address outside the arrays given or not aligned, a warp instruction without all its lanes, and a
race in shared memory. A race is two accesses to a byte, one of them a write, by threads of two
warps without a `bar.sync` between them, or by two lanes of a warp without a `.sync` instruction
between them. A copy of `cp.async` is made when its thread waits for it, never earlier. Not seen:
races in global memory, between blocks or not, and an address that strays into another array.

Arithmetic is exact with these exceptions: `fma` on f32 is computed in float64 and rounded once
more, f64 `fma` is rounded twice, approximate functions are as good as float64 makes them, `mma`
adds in float64 and rounds once, and a NaN keeps whatever payload NumPy gives it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

WARP = 32
SHARED_START = 1024  # sm_90 keeps the first KiB to itself, so address 0 is never the right one
LOCAL_START = 4096
SHARED_WINDOW, LOCAL_WINDOW = 1 << 56, 1 << 57  # generic addresses no process has arrays at
STEP_LIMIT = 5_000_000  # jumps and waits of one block; beyond it the kernel is taken to hang

Array = np.ndarray
Mask = Any  # None: every thread; else a boolean array [threads]
Execute = Callable[[Mask], None]


class MachineError(AssertionError):
    """A kernel did what it must not, or uses PTX this machine does not know."""


@dataclass
class Statistics:
    """What a launch executed.

    Attributes:
        instructions: instructions times the warps that executed them.
        by_opcode: the same for each opcode with its modifiers, as in "ld.shared.v4.f32".
        barriers: block-wide barriers, each counted once a block.
        shared_bank_conflicts: extra cycles of `ldmatrix`, over all blocks.
    """

    instructions: int = 0
    by_opcode: Counter[str] = field(default_factory=Counter)
    barriers: int = 0
    shared_bank_conflicts: int = 0


# Text ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Instruction:
    """A statement: its place in the text, guard predicate, opcode, operands and scopes."""

    line: int
    text: str
    guard: str
    opcode: str
    operands: list[str]
    scope: tuple[Scope, ...]


@dataclass(slots=True)
class Scope:
    """What a pair of braces declares: registers (name, or prefix with a count) and labels."""

    registers: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, tuple[str, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Data:
    """A variable: state space, alignment and size in bytes, initial bytes."""

    space: str
    align: int
    size: int
    content: bytes


@dataclass(slots=True)
class Kernel:
    """An entry: parameters (name, type, bytes), thread limits, code, variables by name."""

    name: str
    parameters: list[tuple[str, str, int]]
    max_threads: int
    exact_threads: bool
    code: list[Instruction] = field(default_factory=list)
    data: dict[str, Data] = field(default_factory=dict)


COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
LINE_DIRECTIVE = re.compile(r"^[ \t]*\.(version|target|address_size|loc|file)\b[^\n]*$", re.M)
DELIMITER = re.compile(r"[;{}]")
LABEL = re.compile(r"\s*([A-Za-z_$%][\w$]*)\s*:(?!:)")
VARIABLE = re.compile(
    r"\.(global|const|shared|local)\s+(?:\.align\s+(\d+)\s+)?(?:\.v(\d)\s+)?\.([a-z]+)(\d+)\s+"
    r"([\w$%]+)\s*((?:\[\s*\d*\s*\]\s*)*)(?:=\s*(.*))?$",
    re.S,
)
PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.([a-z]+\d+)\s+(?:\.ptr\b[\s.\w]*?\s)?([\w$%]+)\s*(?:\[(\d+)\])?$"
)
ENTRY = re.compile(r"\.entry\s+([\w$%]+)\s*(?:\((.*?)\))?(.*)$", re.S)


@lru_cache(maxsize=32)
def parse(ptx: str) -> dict[str, Kernel]:
    """Reads all entries of a PTX text.

    Raises:
        MachineError: the text has a form this machine does not read.
    """
    return _Reader(ptx).kernels


class _Reader:
    """Splits PTX text into statements and collects what each entry declares and executes."""

    def __init__(self, ptx: str) -> None:
        text = COMMENT.sub(lambda found: " " + "\n" * found.group().count("\n"), ptx)
        self.text = LINE_DIRECTIVE.sub("", text)
        self.lines = [found.start() for found in re.finditer("\n", self.text)]
        self.kernels: dict[str, Kernel] = {}
        self.data: dict[str, Data] = {}
        self._read_module()

    def _fail(self, at: int, what: str) -> NoReturn:
        raise MachineError(f"PTX line {self._line(at)}: {what}")

    def _line(self, at: int) -> int:
        return bisect_right(self.lines, at - 1) + 1

    def _next(self, at: int) -> tuple[int, str]:
        """Position and character of the next end of a statement or brace at or after `at`."""
        found = DELIMITER.search(self.text, at)
        return (found.start(), found.group()) if found else (len(self.text), "")

    def _read_module(self) -> None:
        at = 0
        while True:
            end, mark = self._next(at)
            head = self.text[at:end].strip()
            if not mark:
                return
            if mark == "{" and "=" in head:  # the values of an array
                end, _ = self._next(self.text.index(";", end))
                head = self.text[at:end].strip()
                mark = ";"
            if mark == ";":
                self._declare(at, head, self.data)
                at = end + 1
            elif ".entry" in head:
                at = self._read_entry(at, head, end + 1)
            else:
                at = self._skip_body(end + 1)

    def _skip_body(self, at: int) -> int:
        """The end of a `.func`, which is an error only when something calls it."""
        depth = 1
        while depth:
            at, mark = self._next(at)
            depth += {"{": 1, "}": -1, ";": 0, "": -depth}[mark]
            at += 1
        return at

    def _declare(self, at: int, head: str, into: dict[str, Data]) -> None:
        found = VARIABLE.search(head)
        if not found:
            if re.search(r"\.(global|const|shared|local)\b", head):
                self._fail(at, f"cannot read the variable {head!r}")
            return
        space, align, vector, kind, bits, name, sizes, values = found.groups()
        width = int(bits) // 8
        size = width * int(vector or 1)
        for count in re.findall(r"\[\s*(\d*)\s*\]", sizes):
            size *= int(count or 0)
        content = self._initial(at, values, kind, width)
        into[name] = Data(space, int(align or width), size, content.ljust(size, b"\0"))

    def _initial(self, at: int, values: str | None, kind: str, width: int) -> bytes:
        if not values:
            return b""
        words = re.sub(r"[{}\s]", "", values).split(",")
        try:
            numbers = [number(word, f"{kind}{width * 8}") for word in words]
        except ValueError:
            self._fail(at, f"cannot read the initial value {values[:60]!r}")
        return b"".join(value.tobytes() for value in numbers)

    def _read_entry(self, at: int, head: str, body: int) -> int:
        found = ENTRY.search(head)
        if not found:
            self._fail(at, f"cannot read the entry {head[:60]!r}")
        name, parameters, limits = found.groups()
        bound = re.search(r"\.(maxntid|reqntid)\s+([\d\s,]+)", limits)
        threads = int(np.prod([int(n) for n in bound[2].split(",")])) if bound else 1024
        exact = bool(bound) and bound[1] == "reqntid"
        kernel = Kernel(name, self._parameters(at, parameters), threads, exact)
        self.kernels[name] = kernel
        kernel.data = dict(self.data)
        return self._read_body(kernel, body)

    def _parameters(self, at: int, text: str | None) -> list[tuple[str, str, int]]:
        result = []
        for word in filter(None, (part.strip() for part in (text or "").split(","))):
            found = PARAMETER.match(word)
            if not found:
                self._fail(at, f"cannot read the parameter {word!r}")
            kind, name, count = found.groups()
            result.append((name, kind, DTYPES[kind].itemsize * int(count or 1)))
        return result

    def _read_body(self, kernel: Kernel, at: int) -> int:
        scopes = [Scope()]
        while scopes:
            found = LABEL.match(self.text, at)
            if found:
                scopes[-1].labels[found[1]] = len(kernel.code)
                at = found.end()
                continue
            end, mark = self._next(at)
            while mark == "{" and self.text[at:end].strip():  # a vector operand
                end, mark = self._next(self.text.index("}", end) + 1)
            statement = self.text[at:end].strip()
            if mark == "{":
                scopes.append(Scope())
            elif mark == "}":
                scopes.pop()
            elif mark == ";":
                start = at + len(self.text[at:end]) - len(self.text[at:end].lstrip())
                self._read_statement(kernel, start, statement, tuple(reversed(scopes)))
            else:
                self._fail(at, "the text ends inside an entry")
            at = end + 1
        return at

    def _read_statement(
        self, kernel: Kernel, at: int, statement: str, scope: tuple[Scope, ...]
    ) -> None:
        if not statement or statement.startswith(".pragma"):
            return
        if statement.startswith(".reg"):
            self._registers(at, statement, scope[0])
        elif statement.startswith("."):
            self._declare(at, statement, kernel.data)
        else:
            kernel.code.append(_instruction(self._line(at), statement, scope))

    def _registers(self, at: int, statement: str, scope: Scope) -> None:
        found = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement, re.S)
        if not found or found[1] not in DTYPES:
            self._fail(at, f"cannot read the registers {statement!r}")
        for name in (part.strip() for part in found[2].split(",")):
            many = re.match(r"([\w$%]+)<(\d+)>$", name)
            if many:
                scope.ranges[many[1]] = (found[1], int(many[2]))
            else:
                scope.registers[name] = found[1]


def _instruction(line: int, statement: str, scope: tuple[Scope, ...]) -> Instruction:
    text = re.sub(r"\s+", " ", statement)
    found = re.match(r"(?:@(!?\s*[\w$%]+)\s*)?([\w.:]+)\s*(.*)$", text)
    if not found:
        raise MachineError(f"PTX line {line}: {text}: not an instruction")
    guard, opcode, rest = found.groups()
    operands = [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", rest)] if rest else []
    return Instruction(line, text, (guard or "").replace(" ", ""), opcode, operands, scope)


# Types and numbers --------------------------------------------------------------------------------

DTYPES: dict[str, np.dtype] = {"pred": np.dtype(bool)}
for _bits in (8, 16, 32, 64):
    DTYPES[f"b{_bits}"] = DTYPES[f"u{_bits}"] = np.dtype(f"u{_bits // 8}")
    DTYPES[f"s{_bits}"] = np.dtype(f"i{_bits // 8}")
DTYPES |= {"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8")}
DTYPES |= {"bf16": np.dtype("u2"), "f16x2": np.dtype("u4"), "bf16x2": np.dtype("u4")}
DTYPES |= {"tf32": np.dtype("u4")}

FLOATS = ("f16", "f32", "f64", "bf16", "f16x2", "bf16x2", "tf32")


def number(text: str, kind: str) -> np.ndarray:
    """An immediate as an array without axes, of the type `kind`.

    Raises:
        ValueError: it is not a number.
    """
    dtype = DTYPES[kind]
    if re.match(r"0[fF][0-9a-fA-F]{8}$", text):
        value = np.array(int(text[2:], 16), np.uint32).view(np.float32)
    elif re.match(r"0[dD][0-9a-fA-F]{16}$", text):
        value = np.array(int(text[2:], 16), np.uint64).view(np.float64)
    elif re.match(r"-?[0-9]*\.[0-9]*([eE][+-]?[0-9]+)?$", text):
        value = np.array(float(text))
    else:
        return _integer(text, dtype)
    if dtype.kind == "f":
        return value.astype(dtype)
    if value.itemsize != dtype.itemsize:
        raise ValueError(text)
    return value.view(dtype)


def _integer(text: str, dtype: np.dtype) -> np.ndarray:
    value = int(text.rstrip("uU"), 0)
    if dtype.kind == "b":
        return np.array(value != 0)
    bits = 8 * dtype.itemsize
    return np.array(value & ((1 << bits) - 1), f"u{dtype.itemsize}").view(dtype)


def widen(array: Array, kind: str) -> Array:
    """The numbers of type `kind` as float64: [n], or [n, 2] with the lower half first."""
    if kind == "f16x2":
        array = array.view(np.float16).reshape(-1, 2)
    elif kind == "bf16x2":
        array = array.view(np.uint16).reshape(-1, 2)
    if kind.startswith("bf16"):
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind == "tf32":
        return (array & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def narrow(array: Array, kind: str, mode: str = "rn") -> Array:
    """The inverse of `widen`, rounded by `mode`: rn, rz, rm, rp, and rna for tf32."""
    if kind.startswith("bf16"):
        result = _narrow_bits(array, 16, mode).astype(np.uint16)
    elif kind == "tf32":
        result = _narrow_bits(array, 13, mode) << np.uint32(13)
    else:
        result = _narrow_float(array, DTYPES["f16" if kind == "f16x2" else kind], mode)
    return result.reshape(-1).view(np.uint32) if kind.endswith("x2") else result


def _narrow_float(array: Array, dtype: np.dtype, mode: str) -> Array:
    near = array.astype(dtype)
    if mode == "rn" or dtype == array.dtype:
        return near
    wide = near.astype(np.float64)
    wrong = {"rz": abs(wide) > abs(array), "rm": wide > array, "rp": wide < array}[mode]
    toward = np.array({"rz": 0, "rm": -np.inf, "rp": np.inf}[mode], dtype)
    return np.where(wrong, np.nextafter(near, toward), near)


def _narrow_bits(array: Array, drop: int, mode: str) -> Array:
    """The upper 32 - drop bits of the numbers in float32, rounded."""
    single = _narrow_float(array, np.dtype(np.float32), "rz")
    sticky = (single.astype(np.float64) != array) & np.isfinite(array)
    bits = single.view(np.uint32) | sticky.astype(np.uint32)  # rounding to odd keeps ties right
    kept = bits >> np.uint32(drop)
    rest, half = bits & np.uint32((1 << drop) - 1), np.uint32(1 << (drop - 1))
    up = {
        "rn": (rest > half) | ((rest == half) & (kept & np.uint32(1) == 1)),
        "rna": rest >= half,
        "rz": np.zeros(rest.shape, bool),
    }[mode]
    rounded = kept + (up & np.isfinite(array))
    nan = np.uint32(0x7FFFFFFF >> drop)
    return np.where(np.isnan(array), nan, rounded.astype(np.uint32))


def flush(array: Array) -> Array:
    """Subnormal float32 numbers become zero of the same sign."""
    small = np.abs(array) < np.float32(1.17549435e-38)
    return np.where(small, np.copysign(np.float32(0), array), array) if small.any() else array


def repeat(value: np.ndarray, threads: int) -> Array:
    """An immediate for every thread."""
    return np.full(threads, value, value.dtype)


# Arithmetic ---------------------------------------------------------------------------------------


def low_number(a: Array, b: Array) -> Array:
    """Min: a NaN loses against a number, -0 is less than +0."""
    return np.where(a == b, np.where(np.signbit(a), a, b), np.fmin(a, b))


def high_number(a: Array, b: Array) -> Array:
    """Max: a NaN loses against a number, -0 is less than +0."""
    return np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b))


FLOAT_FUNCTIONS: dict[str, Callable] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "fma": lambda a, b, c: a * b + c,
    "div": np.divide,
    "min": low_number,
    "max": high_number,
    "neg": np.negative,
    "abs": np.abs,
    "copysign": lambda a, b: np.copysign(b, a),
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "rcp": lambda a: 1 / a,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}
EXACT_IN_FLOAT32 = ("add", "sub", "mul", "div", "min", "max", "neg", "abs", "copysign", "sqrt")


def quotient(a: Array, b: Array) -> Array:
    """Integer division, rounded toward zero."""
    return (a - np.fmod(a, b)) // b


def high_product(a: Array, b: Array) -> Array:
    """The upper half of the product of two integers of one type."""
    if a.itemsize < 8:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(8 * a.itemsize)).astype(a.dtype)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    u, v = a.view(np.uint64), b.view(np.uint64)
    u0, u1, v0, v1 = u & low, u >> half, v & low, v >> half
    middle = u1 * v0 + ((u0 * v0) >> half)
    other = u0 * v1 + (middle & low)
    high = u1 * v1 + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, v, np.uint64(0)) - np.where(b < 0, u, np.uint64(0))
    return high.view(a.dtype)


def wide_product(a: Array, b: Array) -> Array:
    """The whole product, in integers of twice the width."""
    wide = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
    return a.astype(wide) * b.astype(wide)


def shift_left(a: Array, count: Array) -> Array:
    """A shift by uint32 counts; from the width on, nothing is left."""
    return np.left_shift(a, np.minimum(count, 8 * a.itemsize).astype(a.dtype))


def shift_right(a: Array, count: Array) -> Array:
    """A shift by uint32 counts; from the width on, the sign or nothing is left."""
    if a.dtype.kind == "i":
        return np.right_shift(a, np.minimum(count, 8 * a.itemsize - 1).astype(a.dtype))
    return np.right_shift(a, np.minimum(count, 8 * a.itemsize).astype(a.dtype))


def _low_bits(count: Array, dtype: np.dtype) -> Array:
    """Masks of the `count` lowest bits."""
    return ~shift_left(np.full(count.shape, -1).astype(dtype), count)


def extract_bits(a: Array, position: Array, length: Array) -> Array:
    """`bfe`: length bits of a from a position on, extended by their sign if a is signed."""
    bits = np.uint32(8 * a.itemsize)
    position, length = position & np.uint32(255), length & np.uint32(255)
    unsigned = a.view(f"u{a.itemsize}")
    keep = _low_bits(length, unsigned.dtype)
    field_bits = shift_right(unsigned, position) & keep
    if a.dtype.kind == "u":
        return field_bits
    last = np.minimum(position + length - np.uint32(1), bits - np.uint32(1))
    sign = (shift_right(unsigned, last) & unsigned.dtype.type(1)).astype(bool)
    reach = _low_bits(np.where(position < bits, bits - position, 0), unsigned.dtype)
    signed = np.where(sign, field_bits | ~(keep & reach), field_bits)
    return np.where(length == 0, unsigned.dtype.type(0), signed).view(a.dtype)


def insert_bits(a: Array, b: Array, position: Array, length: Array) -> Array:
    """`bfi`: b with length bits from a position on replaced by the lowest bits of a."""
    position, length = position & np.uint32(255), length & np.uint32(255)
    place = shift_left(_low_bits(length, b.dtype), position)
    return (b & ~place) | (shift_left(a, position) & place)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """`prmt`: four bytes of the eight of b:a, each chosen by a nibble of the selector."""
    octets = np.stack([a, b], axis=1).view(np.uint8)
    nibble = (selector[:, None] >> np.array([0, 4, 8, 12], np.uint32)) & np.uint32(15)
    chosen = np.take_along_axis(octets, (nibble & np.uint32(7)).astype(np.int64), 1)
    signs = np.where(chosen & 128, np.uint8(255), np.uint8(0))
    chosen = np.where(nibble & np.uint32(8), signs, chosen)
    return np.ascontiguousarray(chosen).view(np.uint32)[:, 0]


def funnel(a: Array, b: Array, count: Array, left: bool, wrap: bool) -> Array:
    """`shf`: 32 bits of b:a shifted by count."""
    count = count & np.uint32(31) if wrap else np.minimum(count, np.uint32(32))
    both = (b.astype(np.uint64) << np.uint64(32)) | a
    shifted = both << count.astype(np.uint64) if left else both >> count.astype(np.uint64)
    return (shifted >> np.uint64(32) if left else shifted).astype(np.uint32)


def table_logic(a: Array, b: Array, c: Array, table: int) -> Array:
    """`lop3`: the function of three bits whose truth table is an 8-bit number."""
    result = np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            terms = [x if row & bit else ~x for x, bit in ((a, 4), (b, 2), (c, 1))]
            result |= terms[0] & terms[1] & terms[2]
    return result


def _octets(a: Array) -> Array:
    return np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1)


def count_bits(a: Array) -> Array:
    """`popc`, as uint32."""
    bits = np.unpackbits(_octets(a), axis=1)
    return bits.sum(axis=1, dtype=np.uint32)


def leading_zeros(a: Array) -> Array:
    """`clz`, as uint32."""
    bits = np.unpackbits(_octets(a)[:, ::-1], axis=1)
    return np.where(bits.any(axis=1), bits.argmax(axis=1), bits.shape[1]).astype(np.uint32)


def find_bit(a: Array) -> Array:
    """`bfind`: the highest bit that is not a copy of the sign; all ones without any."""
    bits = a.view(f"u{a.itemsize}")
    if a.dtype.kind == "i":
        bits = np.where(a < 0, ~bits, bits)
    return np.uint32(8 * a.itemsize - 1) - leading_zeros(bits)


def reverse_bits(a: Array) -> Array:
    """`brev`."""
    bits = np.unpackbits(_octets(a), axis=1, bitorder="little")
    return np.ascontiguousarray(np.packbits(bits, axis=1)[:, ::-1]).view(a.dtype)[:, 0]


INTEGER_FUNCTIONS: dict[str, Callable] = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "cnot": lambda a: (a == 0).astype(a.dtype),
    "brev": reverse_bits,
}


def compare(operation: str, a: Array, b: Array) -> Array:
    """`setp`: ordered comparisons are false for a NaN, those ending in u are true."""
    unsigned = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
    operation = unsigned.get(operation, operation)
    if operation in ("num", "nan"):
        nan = np.isnan(a) | np.isnan(b)
        return nan if operation == "nan" else ~nan
    if operation in ("equ", "ltu", "leu", "gtu", "geu"):
        return COMPARISONS[operation[:2]](a, b) | np.isnan(a) | np.isnan(b)
    if operation == "ne" and a.dtype.kind == "f":
        return (a != b) & ~np.isnan(a) & ~np.isnan(b)
    return COMPARISONS[operation[:2]](a, b)


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
COMPARISON_NAMES = (
    *COMPARISONS,
    *(f"{name}u" for name in COMPARISONS),
    *("lo", "ls", "hi", "hs", "num", "nan"),
)


def to_integer(array: Array, kind: str, from_double: bool) -> Array:
    """Float64 numbers without fraction as integers, saturated.

    A NaN gives 0, or only the highest bit from f64 or to 64 bits.
    """
    dtype = DTYPES[kind]
    limits = np.iinfo(dtype)
    safe = np.where(np.isnan(array), 0, array)
    above, below = safe >= float(limits.max), safe <= float(limits.min)
    whole = np.where(above | below, 0, safe).astype(dtype)
    result = np.where(above, limits.max, np.where(below, limits.min, whole)).astype(dtype)
    if from_double or dtype.itemsize == 8:
        result[np.isnan(array)] = limits.min if dtype.kind == "i" else limits.max // 2 + 1
    return result


# Memory -------------------------------------------------------------------------------------------


class GlobalMemory:
    """The arrays a kernel may touch, at their real addresses."""

    def __init__(self, fail: Callable, arrays: Sequence[Array]) -> None:
        self.fail = fail
        self.regions = []
        for array in arrays:
            if array.nbytes:
                self.add(array)

    def add(self, array: Array) -> None:
        """Makes one more array valid memory."""
        if not array.flags.c_contiguous:
            raise ValueError("an array given to a kernel must be C-contiguous")
        octets = array.reshape(-1).view(np.uint8)
        start = octets.ctypes.data
        region = (start, start + octets.nbytes, octets)
        if all(region[:2] != other[:2] for other in self.regions):
            self.regions.append(region)

    def check(
        self, threads: Array, address: Array, size: int, align: int
    ) -> Iterator[tuple[Any, int, Array]]:
        """Yields, for each array that is met: which accesses, the array's address, its bytes."""
        wrong = address % align != 0
        if wrong.any():
            at = int(wrong.argmax())
            self.fail(f"address not aligned to {align} bytes", threads[at], address[at])
        low, high = int(address.min()), int(address.max()) + size
        for start, end, octets in self.regions:
            if start <= low and high <= end:
                yield slice(None), start, octets
                return
        left = np.ones(address.shape, bool)
        found = []
        for start, end, octets in self.regions:
            inside = left & (address >= start) & (address + size <= end)
            if inside.any():
                found.append((inside, start, octets))
                left &= ~inside
        if left.any():
            at = int(left.argmax())
            what = f"global access of {size} bytes outside every array"
            self.fail(what, threads[at], address[at])
        yield from found

    def _elements(self, octets: Array, start: int, address: Array, width: int, count: int):
        skip = -start % width
        elements = octets[skip : skip + (octets.nbytes - skip) // width * width]
        index = (address - (start + skip)) // width
        return elements.view(f"u{width}"), index[:, None] + np.arange(count)

    def load(self, threads: Array, address: Array, width: int, count: int, align: int = 0) -> Array:
        """Reads [n, count] unsigned integers of `width` bytes, aligned to their size or `align`."""
        result = np.empty((len(address), count), f"u{width}")
        size = width * count
        for select, start, octets in self.check(threads, address, size, align or size):
            elements, index = self._elements(octets, start, address[select], width, count)
            result[select] = elements[index]
        return result

    def store(self, threads: Array, address: Array, values: Array) -> None:
        """Writes [n, count] unsigned integers; of lanes with one address the last one wins."""
        width, count = values.itemsize, values.shape[1]
        size = width * count
        for select, start, octets in self.check(threads, address, size, size):
            if not octets.flags.writeable:
                at = 0 if isinstance(select, slice) else int(select.argmax())
                self.fail("store to a read-only array", threads[at], address[at])
            elements, index = self._elements(octets, start, address[select], width, count)
            elements[index] = values[select]


class SharedMemory:
    """Shared memory of a block, and who read and wrote each granule since when.

    A tick numbers the synchronisations. `epoch` is the tick of the last barrier, `warp_tick` that
    of each warp's last one. An access is stamped with its warp's tick: from `epoch` on no barrier
    lies between it and now, and at `warp_tick` no synchronisation of its warp does.
    """

    NEVER, PENDING = -1, 2**31 - 1
    MANY = -1  # lanes of a warp

    def __init__(self, fail: Callable, size: int, granule: int, warps: int) -> None:
        self.fail, self.size, self.granule, self.warps = fail, size, granule, warps
        granules = -(-size // granule)
        self.granules = granules
        self.octets = np.zeros(-(-size // 16) * 16, np.uint8)
        self.write_tick = np.zeros(granules, np.int32)
        self.write_thread = np.zeros(granules, np.int32)
        self.read_tick = np.zeros((warps, granules), np.int32)
        self.read_lane = np.zeros((warps, granules), np.int32)
        self.warp_tick = np.zeros(warps, np.int32)
        self.reset()

    def reset(self) -> None:
        """Poison, as a new block finds it."""
        self.octets[:] = 0xFF
        self.write_tick[:] = self.NEVER
        self.read_tick[:] = self.NEVER
        self.tick = self.epoch = 0
        self.warp_tick[:] = 0

    def barrier(self) -> None:
        """All threads of the block have met."""
        self.tick += 1
        self.epoch = self.tick
        self.warp_tick[:] = self.tick

    def warp_sync(self, mask: Mask) -> None:
        """The lanes of each active warp have met."""
        self.tick += 1
        if mask is None:
            self.warp_tick[:] = self.tick
        else:
            self.warp_tick[mask.reshape(-1, WARP).any(axis=1)] = self.tick

    def places(self, threads: Array, address: Array, size: int) -> Array:
        """Checked offsets in bytes."""
        wrong = address % size != 0
        if wrong.any():
            at = int(wrong.argmax())
            self.fail(f"shared address not aligned to {size} bytes", threads[at], address[at])
        offset = address - SHARED_START
        if int(offset.min()) < 0 or int(offset.max()) + size > self.size:
            at = int(((offset < 0) | (offset + size > self.size)).argmax())
            what = f"shared access of {size} bytes outside its {self.size} bytes"
            self.fail(what, threads[at], address[at])
        return offset

    def granules_of(self, offset: Array, size: int) -> Array:
        """The granules of accesses at checked offsets: [n, k]."""
        return (offset // self.granule)[:, None] + np.arange(size // self.granule)

    def _blame(self, wrong: Array, threads: Array, granules: Array, what: str) -> None:
        """Raises for the first wrong granule; `what` may name the other thread as {other}."""
        at = np.unravel_index(int(wrong.argmax()), wrong.shape)
        granule = int(granules[at])
        other = int(self.write_thread[granule])
        address = granule * self.granule + SHARED_START
        self.fail(what.format(other=other), threads[at[0]], address)

    def _check_writer(
        self, threads: Array, granules: Array, ticks: Array, verb: str, whole_warp: bool = False
    ) -> None:
        """The last write must be the thread's own or come before a synchronisation."""
        pending = ticks == self.PENDING
        if pending.any():
            what = verb + " of shared memory that a cp.async of thread {other} has not filled yet"
            self._blame(pending, threads, granules, what)
        other, mine = self.write_thread[granules], threads[:, None]
        recent = (ticks >= self.epoch) & (whole_warp | (other != mine))
        apart = recent & (other // WARP != mine // WARP)
        if apart.any():
            what = f"race: {verb} of what thread {{other}} of another warp wrote, no bar.sync since"
            self._blame(apart, threads, granules, what)
        near = recent & (ticks == self.warp_tick[mine // WARP])
        if near.any():
            what = f"race: {verb} of what thread {{other}} of this warp wrote, no warp sync since"
            self._blame(near, threads, granules, what)

    def _check_readers(self, threads: Array, granules: Array) -> None:
        ticks = self.read_tick[:, granules]  # [warps, n, k]
        if int(ticks.max()) < self.epoch:
            return
        warp = threads[:, None] // WARP
        same = np.arange(self.warps)[:, None, None] == warp
        apart = ((ticks >= self.epoch) & ~same).any(axis=0)
        if apart.any():
            what = "race: write over what another warp read, no bar.sync since"
            self._blame(apart, threads, granules, what)
        lane = self.read_lane[warp, granules]
        unsynced = self.read_tick[warp, granules] == self.warp_tick[warp]
        near = unsynced & (lane != threads[:, None] % WARP)
        if near.any():
            what = "race: write over what another lane of the warp read, no warp sync since"
            self._blame(near, threads, granules, what)

    def check_read(self, threads: Array, offset: Array, size: int, whole_warp: bool) -> None:
        """Checks and notes a read; by `whole_warp` every lane is a reader, as in ldmatrix."""
        granules = self.granules_of(offset, size)
        ticks = self.write_tick[granules]
        if int(ticks.min()) == self.NEVER:
            what = "read of shared memory never written"
            self._blame(ticks == self.NEVER, threads, granules, what)
        if int(ticks.max()) >= self.epoch:
            self._check_writer(threads, granules, ticks, "read", whole_warp)
        self._note_read(threads, granules, whole_warp)

    def _note_read(self, threads: Array, granules: Array, whole_warp: bool) -> None:
        warp = threads[:, None] // WARP
        place = warp * self.granules + granules
        ticks, lanes = self.read_tick.reshape(-1), self.read_lane.reshape(-1)
        now = self.warp_tick[warp]
        if whole_warp:
            lanes[place] = self.MANY
        else:
            lane = threads[:, None] % WARP
            lane = np.where((ticks[place] == now) & (lanes[place] != lane), self.MANY, lane)
            lanes[place] = lane
            shared = lanes[place] != lane
            if shared.any():
                lanes[place[shared]] = self.MANY
        ticks[place] = now

    def check_write(self, threads: Array, offset: Array, size: int, until: int | None) -> Array:
        """Checks and notes a write; returns which threads share a granule with another one.

        `until` is the tick to stamp it with if it is not the warp's own.
        """
        granules = self.granules_of(offset, size)
        ticks = self.write_tick[granules]
        if int(ticks.max()) >= self.epoch:
            self._check_writer(threads, granules, ticks, "write")
        self._check_readers(threads, granules)
        mine = np.broadcast_to(threads[:, None], granules.shape)
        self.write_thread[granules] = mine
        last = self.write_thread[granules]
        clash = last != mine
        if clash.any():
            apart = last // WARP != mine // WARP
            if apart.any():
                what = "race: write together with thread {other} of another warp"
                self._blame(apart, threads, granules, what)
        self.write_tick[granules] = self.warp_tick[mine // WARP] if until is None else until
        return clash.any(axis=1)

    def load(
        self, threads: Array, address: Array, width: int, count: int, whole_warp: bool = False
    ) -> Array:
        """Reads [n, count] unsigned integers of `width` bytes."""
        offset = self.places(threads, address, width * count)
        self.check_read(threads, offset, width * count, whole_warp)
        return self.octets.view(f"u{width}")[(offset // width)[:, None] + np.arange(count)]

    def store(self, threads: Array, address: Array, values: Array) -> None:
        """Writes [n, count] unsigned integers; lanes with one address must agree."""
        width, count = values.itemsize, values.shape[1]
        offset = self.places(threads, address, width * count)
        clash = self.check_write(threads, offset, width * count, None)
        elements = self.octets.view(f"u{width}")
        index = (offset // width)[:, None] + np.arange(count)
        elements[index] = values
        if clash.any():
            differ = (elements[index] != values).any(axis=1)
            if differ.any():
                at = int(differ.argmax())
                what = "race: lanes of a warp store different values together"
                self.fail(what, threads[at], address[at])


class LocalMemory:
    """Each thread's own bytes, poisoned with 0xFF."""

    def __init__(self, fail: Callable, size: int, threads: int) -> None:
        self.fail, self.size = fail, size
        self.octets = np.full((threads, max(16, -(-size // 16) * 16)), 0xFF, np.uint8)

    def reset(self) -> None:
        """Poison, as a new block finds it."""
        self.octets[:] = 0xFF

    def _index(self, threads: Array, address: Array, width: int, count: int) -> tuple:
        offset, size = address - LOCAL_START, width * count
        wrong = (address % size != 0) | (offset < 0) | (offset + size > self.size)
        if wrong.any():
            at = int(wrong.argmax())
            what = f"local access of {size} bytes, not aligned or outside {self.size} bytes"
            self.fail(what, threads[at], address[at])
        return threads[:, None], (offset // width)[:, None] + np.arange(count)

    def load(self, threads: Array, address: Array, width: int, count: int) -> Array:
        """Reads [n, count] unsigned integers of `width` bytes."""
        return self.octets.view(f"u{width}")[self._index(threads, address, width, count)]

    def store(self, threads: Array, address: Array, values: Array) -> None:
        """Writes [n, count] unsigned integers."""
        index = self._index(threads, address, values.itemsize, values.shape[1])
        self.octets.view(f"u{values.itemsize}")[index] = values


class AsyncCopies:
    """The copies of `cp.async` that no thread has waited for."""

    def __init__(self, memory: GlobalMemory, shared: SharedMemory, threads: int) -> None:
        self.memory, self.shared = memory, shared
        self.groups = np.zeros(threads, np.int64)  # groups each thread has committed
        self.pending: list[tuple[int, tuple[Array, ...]]] = []

    def reset(self) -> None:
        """Drops what is pending."""
        self.groups[:] = 0
        self.pending.clear()

    def issue(self, threads: Array, target: Array, source: Array, size: int, used: Array) -> None:
        """Starts copies of `used` bytes, zeros up to `size`, in each thread's open group."""
        offset = self.shared.places(threads, target, size)
        for length in np.unique(used[used > 0]):
            now = used == length
            for _ in self.memory.check(threads[now], source[now], int(length), size):
                pass
        clash = self.shared.check_write(threads, offset, size, SharedMemory.PENDING)
        if clash.any():
            at = int(clash.argmax())
            self.shared.fail("race: two copies to one place", threads[at], target[at])
        groups = self.groups[threads]
        self.pending.append((size, (threads, offset, source, used, groups)))

    def commit(self, threads: Array) -> None:
        """Closes each thread's open group."""
        self.groups[threads] += 1

    def wait(self, active: Array, limit: Array) -> None:
        """Makes the copies of the active threads whose group is below their limit."""
        left = []
        for size, copies in self.pending:
            threads, *_, groups = copies
            due = active[threads] & (groups < limit[threads])
            if due.any():
                self._apply(size, *(part[due] for part in copies[:4]))
            if not due.all():
                left.append((size, tuple(part[~due] for part in copies)))
        self.pending = left

    def _apply(self, size: int, threads: Array, offset: Array, source: Array, used: Array) -> None:
        for length in np.unique(used):
            now = used == length
            octets = np.zeros((int(now.sum()), size), np.uint8)
            if length:
                octets[:, :length] = self.memory.load(threads[now], source[now], 1, int(length), 1)
            self.shared.octets[offset[now][:, None] + np.arange(size)] = octets
        granules = self.shared.granules_of(offset, size)
        self.shared.write_tick[granules] = self.shared.warp_tick[threads // WARP][:, None]


class GenericMemory:
    """Addresses without a state space: the windows of shared and local memory, else arrays."""

    def __init__(self, memory: GlobalMemory, shared: SharedMemory, local: LocalMemory) -> None:
        self.memory, self.shared, self.local = memory, shared, local

    def _parts(self, address: Array) -> Iterator[tuple[Any, Array, Any]]:
        in_local = address >= LOCAL_WINDOW
        in_shared = (address >= SHARED_WINDOW) & ~in_local
        if in_local.any():
            yield in_local, address[in_local] - LOCAL_WINDOW, self.local
        if in_shared.any():
            yield in_shared, address[in_shared] - SHARED_WINDOW, self.shared
        rest = ~(in_local | in_shared)
        if rest.any():
            yield rest, address[rest], self.memory

    def load(self, threads: Array, address: Array, width: int, count: int) -> Array:
        """Reads [n, count] unsigned integers of `width` bytes."""
        result = np.empty((len(address), count), f"u{width}")
        for select, there, space in self._parts(address):
            result[select] = space.load(threads[select], there, width, count)
        return result

    def store(self, threads: Array, address: Array, values: Array) -> None:
        """Writes [n, count] unsigned integers."""
        for select, there, space in self._parts(address):
            space.store(threads[select], there, values[select])


# Decoding -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Register:
    """A value for every thread, and its place in the record of which were written."""

    array: Array
    slot: int


@dataclass(slots=True)
class Step:
    """A decoded instruction. `control` says what else than `execute` happens, if anything."""

    execute: Execute
    reads: list[int]
    writes: list[int]
    guard: Register | None = None
    negate: bool = False
    control: str = ""
    target: int = 0
    aligned: bool = False


HANDLERS: dict[str, Callable[[Decoder], Execute]] = {}


def handles(*names: str) -> Callable:
    """Registers a function that decodes the opcodes with these first words."""

    def register(function: Callable) -> Callable:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return register


class Decoder:
    """One instruction on its way to a function of the active mask.

    Handlers take the modifiers they know out of `modifiers`; one that is left is an error.
    """

    def __init__(self, machine: Machine, instruction: Instruction) -> None:
        self.machine, self.instruction = machine, instruction
        self.name, *self.modifiers = instruction.opcode.split(".")
        self.operands = instruction.operands
        self.reads: list[int] = []
        self.writes: list[int] = []
        self.step = Step(lambda mask: None, self.reads, self.writes)

    def decode(self) -> Step:
        """The step of this instruction."""
        handler = HANDLERS.get(self.name)
        if handler is None:
            self.machine.fail(f"unknown opcode {self.instruction.opcode}")
        guard = self.instruction.guard
        if guard:
            self.step.negate = guard.startswith("!")
            self.step.guard = self._register(guard.lstrip("!"))
            if self.step.guard is None or self.step.guard.array.dtype.kind != "b":
                self.machine.fail(f"unknown predicate {guard}")
        try:
            self.step.execute = handler(self)
        except (IndexError, KeyError, ValueError) as error:
            self.machine.fail(f"cannot decode {self.instruction.opcode}: {error!r}")
        if self.modifiers:
            self.machine.fail(f"unknown modifier .{self.modifiers[0]} of {self.name}")
        return self.step

    def flag(self, *names: str) -> bool:
        """Whether one of these modifiers was there; takes them out."""
        there = [name for name in names if name in self.modifiers]
        for name in there:
            self.modifiers.remove(name)
        return bool(there)

    def choice(self, names: Sequence[str], default: str = "") -> str:
        """The first of these modifiers that was there; takes it out."""
        for name in self.modifiers:
            if name in names:
                self.modifiers.remove(name)
                return name
        return default

    def type(self) -> str:
        """The last modifier, a type; takes it out."""
        if not self.modifiers or self.modifiers[-1] not in DTYPES:
            self.machine.fail(f"{self.instruction.opcode} does not end in a type")
        return self.modifiers.pop()

    def drop_cache_hints(self) -> None:
        """Takes out the modifiers that change speed or visibility to other blocks only."""
        self.modifiers = [
            m for m in self.modifiers if m not in HINTS and not m.startswith(("L1", "L2"))
        ]

    def _register(self, name: str) -> Register | None:
        return self.machine.register(self.instruction.scope, name)

    def source(self, text: str, kind: str) -> Array:
        """The array a register operand lives in, or an immediate or address for every thread."""
        register = self._register(text)
        if register is not None:
            self.reads.append(register.slot)
            return _view(register.array, DTYPES[kind])
        if text in self.machine.special:
            return _view(self.machine.special[text], DTYPES[kind])
        try:
            return self.machine.constant(number(text, kind))
        except ValueError:
            address = self.machine.symbol(text)
        return self.machine.constant(np.array(address).astype(DTYPES[kind]))

    def sources(self, kind: str, *texts: str) -> list[Array]:
        """Several operands of one type."""
        return [self.source(text, kind) for text in texts]

    def predicate(self, text: str) -> Callable[[], Array]:
        """A function that gives a predicate operand, which may be negated."""
        array = self.source(text.lstrip("! "), "pred")
        return (lambda: ~array) if text.startswith("!") else (lambda: array)

    def target(self, text: str, kind: str) -> Array:
        """The array to assign results of a type to; a wider register extends them."""
        dtype = DTYPES[kind]
        if text == "_":
            return np.empty(self.machine.threads, dtype)
        register = self._register(text)
        if register is None:
            self.machine.fail(f"unknown register {text}")
        self.writes.append(register.slot)
        if register.array.itemsize > dtype.itemsize:
            dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{register.array.itemsize}")
        elif register.array.itemsize < dtype.itemsize:
            raise ValueError(f"register {text} is narrower than the type")
        if (register.array.dtype.kind == "b") != (kind == "pred"):
            raise ValueError("a predicate instead of a number, or the reverse")
        return register.array.view(dtype)

    def address(self, text: str) -> Callable[[Array], Array]:
        """A function from thread numbers to their addresses, int64."""
        found = re.match(r"\[\s*([\w$%.]+)\s*(?:([+-])\s*(-?\w+)\s*)?\]$", text)
        if not found:
            self.machine.fail(f"cannot read the address {text}")
        name, sign, offset = found.groups()
        step = int(offset, 0) * (-1 if sign == "-" else 1) if offset else 0
        register = self._register(name)
        if register is None:
            base = int(name, 0) if re.match(r"\d", name) else self.machine.symbol(name)
            return lambda threads: np.full(threads.shape, base + step, np.int64)
        self.reads.append(register.slot)
        array = register.array
        return lambda threads: array[threads].astype(np.int64) + step


HINTS = (
    *("volatile", "nc", "weak", "relaxed", "acquire", "release", "acq_rel", "cta", "cluster"),
    *("gpu", "sys", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "unified"),
)


def _view(array: Array, dtype: np.dtype) -> Array:
    """The array seen as a type, or its lower part seen as a narrower one."""
    if (array.dtype.kind == "b") != (dtype.kind == "b"):
        raise ValueError("a predicate instead of a number, or the reverse")
    if array.itemsize < dtype.itemsize:
        raise ValueError("a register narrower than the type")
    return array.view(dtype)[:: array.itemsize // dtype.itemsize]


def vector(text: str) -> list[str]:
    """The names in braces, or the one name without."""
    return [part.strip() for part in text.strip("{}").split(",")]


def elementwise(d: Decoder, function: Callable, kind: str, *sources: Array) -> Execute:
    """A step that assigns function(*sources) to the first operand, of type `kind`."""
    return _assign(d.target(d.operands[0], kind), lambda: function(*sources))


def _assign(out: Array, value: Callable[[], Array]) -> Execute:
    def execute(mask: Mask) -> None:
        if mask is None:
            out[...] = value()
        else:
            np.copyto(out, value(), where=mask, casting="unsafe")

    return execute


ROUNDINGS = ("rn", "rz", "rm", "rp", "rna")


def float_function(d: Decoder, kind: str) -> Callable:
    """The function of a float instruction on stored values, with its modifiers."""
    flushed, saturated = d.flag("ftz"), d.flag("sat")
    relu, poison = d.flag("relu"), d.flag("NaN")
    mode = d.choice(ROUNDINGS, "rn")
    d.flag("approx", "full")  # computed as well as float64 allows
    base = FLOAT_FUNCTIONS[d.name]
    native = mode == "rn" and (kind == "f64" or (kind == "f32" and d.name in EXACT_IN_FLOAT32))
    native = native or (d.name in ("neg", "abs", "copysign") and kind in ("f16", "f32", "f64"))

    def function(*values: Array) -> Array:
        if flushed and kind == "f32":
            values = tuple(flush(value) for value in values)
        wide = values if native else [widen(value, kind) for value in values]
        result = base(*wide)
        if poison:
            result = np.where(np.isnan(wide[0]) | np.isnan(wide[1]), np.nan, result)
        if saturated:
            result = np.where(np.isnan(result), 0, np.clip(result, 0, 1))
        if relu:
            result = np.where(result < 0, 0, result)
        result = result.astype(DTYPES[kind]) if native else narrow(result, kind, mode)
        return flush(result) if flushed and kind == "f32" else result

    return function


@handles("add", "sub", "min", "max", "neg", "abs", "and", "or", "xor", "not", "cnot", "copysign")
def _arithmetic(d: Decoder) -> Execute:
    kind = d.type()
    if kind in FLOATS:
        return elementwise(d, float_function(d, kind), kind, *d.sources(kind, *d.operands[1:]))
    if kind == "pred":
        values = [d.predicate(text) for text in d.operands[1:]]
        function = INTEGER_FUNCTIONS[d.name]
        out = d.target(d.operands[0], kind)
        return _assign(out, lambda: function(*(value() for value in values)))
    return elementwise(d, INTEGER_FUNCTIONS[d.name], kind, *d.sources(kind, *d.operands[1:]))


@handles("sqrt", "rsqrt", "rcp", "ex2", "lg2", "sin", "cos", "tanh")
def _float_unary(d: Decoder) -> Execute:
    kind = d.type()
    return elementwise(d, float_function(d, kind), kind, d.source(d.operands[1], kind))


@handles("fma")
def _fma(d: Decoder) -> Execute:
    kind = d.type()
    return elementwise(d, float_function(d, kind), kind, *d.sources(kind, *d.operands[1:]))


@handles("mul", "mad")
def _multiply(d: Decoder) -> Execute:
    kind = d.type()
    if kind in FLOATS:
        d.name = "fma" if d.name == "mad" else d.name
        return elementwise(d, float_function(d, kind), kind, *d.sources(kind, *d.operands[1:]))
    part = d.choice(("lo", "hi", "wide"), "lo")
    product = {"lo": np.multiply, "hi": high_product, "wide": wide_product}[part]
    out = f"{kind[0]}{2 * int(kind[1:])}" if part == "wide" else kind
    a, b = d.sources(kind, *d.operands[1:3])
    if d.name == "mul":
        return elementwise(d, product, out, a, b)
    c = d.source(d.operands[3], out)
    return elementwise(d, lambda a, b, c: product(a, b) + c, out, a, b, c)


@handles("div", "rem")
def _divide(d: Decoder) -> Execute:
    kind = d.type()
    if kind in FLOATS:
        return elementwise(d, float_function(d, kind), kind, *d.sources(kind, *d.operands[1:]))
    a, b = d.sources(kind, *d.operands[1:])
    assign = elementwise(d, quotient if d.name == "div" else np.fmod, kind, a, b)

    def execute(mask: Mask) -> None:
        d.machine.forbid(b == 0, mask, "integer division by zero")
        assign(mask)

    return execute


@handles("shl", "shr")
def _shift(d: Decoder) -> Execute:
    kind = d.type()
    function = shift_left if d.name == "shl" else shift_right
    return elementwise(
        d, function, kind, d.source(d.operands[1], kind), d.source(d.operands[2], "u32")
    )


@handles("shf")
def _funnel(d: Decoder) -> Execute:
    d.type()
    left, wrap = d.choice(("l", "r")) == "l", d.choice(("wrap", "clamp")) == "wrap"
    sources = d.sources("b32", *d.operands[1:])
    return elementwise(d, lambda a, b, c: funnel(a, b, c, left, wrap), "b32", *sources)


@handles("bfe", "bfi")
def _bit_field(d: Decoder) -> Execute:
    kind = d.type()
    values = d.sources(kind, *d.operands[1:-2])
    places = d.sources("u32", *d.operands[-2:])
    function = extract_bits if d.name == "bfe" else insert_bits
    return elementwise(d, function, kind, *values, *places)


@handles("prmt")
def _permute(d: Decoder) -> Execute:
    d.type()
    return elementwise(d, permute_bytes, "b32", *d.sources("b32", *d.operands[1:]))


@handles("lop3")
def _table_logic(d: Decoder) -> Execute:
    d.type()
    table = int(d.operands[4], 0)
    sources = d.sources("b32", *d.operands[1:4])
    return elementwise(d, lambda a, b, c: table_logic(a, b, c, table), "b32", *sources)


@handles("popc", "clz", "bfind", "brev")
def _count(d: Decoder) -> Execute:
    kind = d.type()
    functions = {"popc": count_bits, "clz": leading_zeros, "bfind": find_bit, "brev": reverse_bits}
    out = kind if d.name == "brev" else "u32"
    return elementwise(d, functions[d.name], out, d.source(d.operands[1], kind))


@handles("setp", "set")
def _compare(d: Decoder) -> Execute:
    kind = d.type()
    operation = d.choice(COMPARISON_NAMES)
    combine = d.choice(("and", "or", "xor"))
    flushed = d.flag("ftz") and kind == "f32"
    a, b = d.sources(kind, *d.operands[1:3])
    other = d.predicate(d.operands[3]) if combine else None
    logic = INTEGER_FUNCTIONS.get(combine)

    def value(wanted: bool = True) -> Array:
        x, y = (flush(a), flush(b)) if flushed else (a, b)
        if kind.startswith("bf"):
            x, y = widen(x, kind), widen(y, kind)
        result = compare(operation, x, y) == wanted
        return logic(result, other()) if logic else result

    if d.name == "set":
        return _set(d, value)
    first, *second = (name.strip() for name in d.operands[0].split("|"))
    out, opposite = d.target(first, "pred"), d.target(second[0] if second else "_", "pred")
    if not second:
        return _assign(out, value)

    def execute(mask: Mask) -> None:
        results = value(), value(False)
        for array, result in zip((out, opposite), results, strict=True):
            np.copyto(array, result, where=True if mask is None else mask)

    return execute


def _set(d: Decoder, value: Callable[[], Array]) -> Execute:
    kind = d.type()
    true = number("1.0" if kind == "f32" else "-1", kind)
    out = d.target(d.operands[0], kind)
    return _assign(out, lambda: np.where(value(), true, DTYPES[kind].type(0)))


@handles("selp", "slct")
def _select(d: Decoder) -> Execute:
    if d.name == "selp":
        kind = d.type()
        condition = d.source(d.operands[3], "pred")
    else:
        by, kind = d.type(), d.type()
        d.flag("ftz")
        tested = d.source(d.operands[3], by)
    a, b = d.sources(kind, *d.operands[1:3])
    if d.name == "selp":
        return elementwise(d, np.where, kind, condition, a, b)
    return elementwise(d, lambda c, a, b: np.where(c >= 0, a, b), kind, tested, a, b)


@handles("mov")
def _move(d: Decoder) -> Execute:
    kind = d.type()
    out, value = d.operands
    if out.startswith("{"):
        return _unpack(d, vector(out), d.source(value, kind))
    if value.startswith("{"):
        parts = vector(value)
        sources = d.sources(f"b{8 * DTYPES[kind].itemsize // len(parts)}", *parts)
        return elementwise(d, lambda *a: np.stack(a, 1).view(DTYPES[kind])[:, 0], kind, *sources)
    return elementwise(d, lambda a: a, kind, d.source(value, kind))


def _unpack(d: Decoder, names: list[str], value: Array) -> Execute:
    part = f"b{8 * value.itemsize // len(names)}"
    pieces = np.ascontiguousarray(value).view(DTYPES[part]).reshape(-1, len(names))
    if not np.shares_memory(pieces, value):
        raise ValueError("mov from a part of a register")
    outs = [d.target(name, part) for name in names]

    def execute(mask: Mask) -> None:
        now = pieces.copy()
        for k, out in enumerate(outs):
            np.copyto(out, now[:, k], where=True if mask is None else mask)

    return execute


WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@handles("cvt")
def _convert(d: Decoder) -> Execute:
    kind, out = d.type(), d.type()
    whole = WHOLE.get(d.choice(tuple(WHOLE)))
    if out.endswith("x2"):
        return _convert_pair(d, kind, out)
    value = d.source(d.operands[1], kind)
    if kind in FLOATS:
        return elementwise(d, _from_float(d, kind, out, whole), out, value)
    return elementwise(d, _from_integer(d, kind, out), out, value)


def _convert_pair(d: Decoder, kind: str, out: str) -> Execute:
    mode, relu = d.choice(ROUNDINGS, "rn"), d.flag("relu")
    high, low = d.sources(kind, *d.operands[1:])

    def pack(high: Array, low: Array) -> Array:
        both = np.stack([low, high], axis=1).astype(np.float64)
        return narrow(np.where(both < 0, 0, both) if relu else both, out, mode)

    return elementwise(d, pack, out, high, low)


def _from_float(d: Decoder, kind: str, out: str, whole: Callable | None) -> Callable:
    flushed, saturated, relu = d.flag("ftz"), d.flag("sat"), d.flag("relu")
    mode = d.choice(ROUNDINGS, "rn")

    def function(value: Array) -> Array:
        wide = widen(flush(value) if flushed and kind == "f32" else value, kind)
        wide = whole(wide) if whole else wide
        if out not in FLOATS:
            return to_integer(wide, out, kind == "f64")
        if saturated:
            wide = np.where(np.isnan(wide), 0, np.clip(wide, 0, 1))
        result = narrow(np.where(wide < 0, 0, wide) if relu else wide, out, mode)
        return flush(result) if flushed and out == "f32" else result

    return function


def _from_integer(d: Decoder, kind: str, out: str) -> Callable:
    saturated, mode = d.flag("sat"), d.choice(ROUNDINGS, "rn")
    dtype = DTYPES[out]
    if out in FLOATS:
        if mode == "rn" and out in ("f32", "f64"):
            return lambda value: value.astype(dtype)
        return lambda value: narrow(value.astype(np.float64), out, mode)
    if not saturated:
        return lambda value: value.astype(dtype)
    source, limits = np.iinfo(DTYPES[kind]), np.iinfo(dtype)
    low, high = max(source.min, limits.min), min(source.max, limits.max)
    return lambda value: np.clip(value, low, high).astype(dtype)


@handles("cvta")
def _convert_address(d: Decoder) -> Execute:
    kind = d.type()
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "global": 0, "const": 0}
    inward = d.flag("to")
    base = np.uint64(window[d.choice(tuple(window))])
    value = d.source(d.operands[1], kind)
    return elementwise(d, (lambda a: a - base) if inward else (lambda a: a + base), kind, value)


def _space(d: Decoder) -> Any:
    """The memory an instruction names, or the generic one."""
    machine = d.machine
    name = d.choice(("global", "shared", "shared::cta", "local", "const"), "generic")
    shared = machine.shared
    return {"shared::cta": shared, "shared": shared, "local": machine.local}.get(
        name, machine.generic if name == "generic" else machine.memory
    )


@handles("ld", "ldu")
def _load(d: Decoder) -> Execute:
    d.drop_cache_hints()
    kind = d.type()
    count = int(d.choice(("v2", "v4", "v8"), "v1")[1:])
    if d.flag("param"):
        return _load_parameter(d, kind, count)
    space, dtype = _space(d), DTYPES[kind]
    outs = [d.target(name, kind) for name in vector(d.operands[0])]
    address = d.address(d.operands[1])
    if len(outs) != count:
        raise ValueError("operands do not match the vector size")

    def execute(mask: Mask) -> None:
        threads = d.machine.lanes(mask)
        values = space.load(threads, address(threads), dtype.itemsize, count)
        for k, out in enumerate(outs):
            out[threads] = values[:, k].view(dtype)

    return execute


def _load_parameter(d: Decoder, kind: str, count: int) -> Execute:
    found = re.match(r"\[\s*([\w$%]+)\s*(?:\+\s*(\d+)\s*)?\]$", d.operands[1])
    if not found or found[1] not in d.machine.parameters:
        d.machine.fail(f"unknown parameter {d.operands[1]}")
    content, start = d.machine.parameters[found[1]], int(found[2] or 0)
    values = np.frombuffer(content, DTYPES[kind], count, start)
    outs = [d.target(name, kind) for name in vector(d.operands[0])]

    def execute(mask: Mask) -> None:
        for out, value in zip(outs, values, strict=True):
            np.copyto(out, value, where=True if mask is None else mask, casting="unsafe")

    return execute


@handles("st")
def _store(d: Decoder) -> Execute:
    d.drop_cache_hints()
    kind = d.type()
    count = int(d.choice(("v2", "v4", "v8"), "v1")[1:])
    space = _space(d)
    values = d.sources(f"b{8 * DTYPES[kind].itemsize}", *vector(d.operands[1]))
    address = d.address(d.operands[0])
    if len(values) != count:
        raise ValueError("operands do not match the vector size")

    def execute(mask: Mask) -> None:
        threads = d.machine.lanes(mask)
        space.store(threads, address(threads), np.stack([v[threads] for v in values], axis=1))

    return execute


@handles("atom", "red")
def _atomic(d: Decoder) -> Execute:
    d.drop_cache_hints()
    kind = d.type()
    d.flag("noftz")
    operation = d.choice(("add", "min", "max", "and", "or", "xor", "exch", "cas"))
    space, dtype = _space(d), DTYPES[kind]
    if not isinstance(space, GlobalMemory):
        if space is not d.machine.generic:
            raise ValueError("atomics are known on global memory only")
        space = d.machine.memory
    place, *texts = d.operands[1:] if d.name == "atom" else d.operands
    address, values = d.address(place), d.sources(kind, *texts)
    out = d.target(d.operands[0] if d.name == "atom" else "_", kind)
    function = ATOMIC_FUNCTIONS[operation]

    def execute(mask: Mask) -> None:
        for thread in d.machine.lanes(mask):
            one = np.array([thread])
            at = address(one)
            old = space.load(one, at, dtype.itemsize, 1).view(dtype)[:, 0]
            new = function(old, *(value[one] for value in values))
            space.store(one, at, new.astype(dtype).view(f"u{dtype.itemsize}")[:, None])
            out[thread] = old[0]

    return execute


ATOMIC_FUNCTIONS: dict[str, Callable] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: np.where(old == expected, new, old),
}


@handles("membar", "fence", "prefetch", "prefetchu", "nanosleep", "griddepcontrol")
def _nothing(d: Decoder) -> Execute:
    d.modifiers = []
    return lambda mask: None


@handles("trap")
def _trap(d: Decoder) -> Execute:
    return lambda mask: d.machine.forbid(np.ones(d.machine.threads, bool), mask, "trap")


@handles("bra")
def _branch(d: Decoder) -> Execute:
    d.step.control = "jump"
    d.step.aligned = d.flag("uni")
    label = d.operands[0]
    scope = next((scope for scope in d.instruction.scope if label in scope.labels), None)
    if scope is None:
        raise ValueError(f"unknown label {label}")
    d.step.target = scope.labels[label]
    return lambda mask: None


@handles("ret", "exit")
def _end(d: Decoder) -> Execute:
    d.step.control = "end"
    d.flag("uni")
    return lambda mask: None


# Instructions of a warp ---------------------------------------------------------------------------


@handles("bar", "barrier")
def _barrier(d: Decoder) -> Execute:
    if d.flag("warp"):
        d.flag("sync")
        members = d.source(d.operands[0], "b32")
        return lambda mask: d.machine.sync_members(mask, members)
    d.flag("cta")
    d.step.aligned = d.flag("aligned") or d.name == "bar"
    if not d.flag("sync"):
        raise ValueError("only bar.sync is known")
    d.step.control = "barrier"
    d.step.target = int(d.operands[0], 0)
    if len(d.operands) > 1 and int(d.operands[1], 0) != d.machine.block_threads:
        raise ValueError("a barrier of some of the block's threads")
    return lambda mask: None


@handles("cp")
def _copy_async(d: Decoder) -> Execute:
    machine, copies = d.machine, d.machine.copies
    if not d.flag("async"):
        raise ValueError("only cp.async is known")
    if d.flag("commit_group"):
        return lambda mask: copies.commit(machine.lanes(mask))
    if d.flag("wait_all"):
        return lambda mask: copies.wait(machine.active(mask), copies.groups + 1)
    if d.flag("wait_group"):
        kept = int(d.operands[0], 0)
        return lambda mask: copies.wait(machine.active(mask), copies.groups - kept)
    return _copy(d)


def _copy(d: Decoder) -> Execute:
    cached = d.choice(("ca", "cg"))
    d.drop_cache_hints()
    d.flag("shared", "shared::cta")
    d.flag("global")
    target, source = d.address(d.operands[0]), d.address(d.operands[1])
    size = int(d.operands[2], 0)
    if size not in ((16,) if cached == "cg" else (4, 8, 16)):
        raise ValueError(f"cp.async.{cached} of {size} bytes")
    used = d.source(d.operands[3] if len(d.operands) > 3 else str(size), "u32")

    def execute(mask: Mask) -> None:
        threads = d.machine.lanes(mask)
        d.machine.forbid(used > size, mask, "cp.async of more source bytes than it copies")
        now = used[threads].astype(np.int64)
        d.machine.copies.issue(threads, target(threads), source(threads), size, now)

    return execute


@handles("shfl")
def _shuffle(d: Decoder) -> Execute:
    kind = d.type()
    d.flag("sync")
    mode = d.choice(("up", "down", "bfly", "idx"))
    first, *second = (name.strip() for name in d.operands[0].split("|"))
    out = d.target(first, kind)
    inside = d.target(second[0] if second else "_", "pred")
    value = d.source(d.operands[1], kind)
    distance, clamp, members = d.sources("u32", *d.operands[2:5])

    def execute(mask: Mask) -> None:
        machine = d.machine
        machine.sync_members(mask, members)
        lane, valid = shuffle_lanes(mode, machine.lane, distance, clamp)
        origin = machine.thread - machine.lane + lane
        if mask is not None:
            machine.forbid(~mask[origin], mask, "shfl from a lane that is not there")
        result = value[origin]
        where = True if mask is None else mask
        np.copyto(out, result, where=where)
        np.copyto(inside, valid, where=where)

    return execute


def shuffle_lanes(mode: str, lane: Array, distance: Array, clamp: Array) -> tuple[Array, Array]:
    """The source lane of each lane, its own where that is out of range; and whether it is not."""
    lane = lane.astype(np.int64)
    b, c = distance.astype(np.int64) & 31, clamp.astype(np.int64)
    segment = c >> 8 & 31
    highest = (lane & segment) | (c & 31 & ~segment)
    source = {
        "up": lane - b,
        "down": lane + b,
        "bfly": lane ^ b,
        "idx": (lane & segment) | (b & ~segment & 31),
    }[mode]
    valid = source >= highest if mode == "up" else source <= highest
    return np.where(valid, source, lane), valid


@handles("vote")
def _vote(d: Decoder) -> Execute:
    kind = d.type()
    d.flag("sync")
    mode = d.choice(("all", "any", "uni", "ballot"))
    machine, value = d.machine, d.predicate(d.operands[1])
    members = d.source(d.operands[2], "b32")
    out = d.target(d.operands[0], kind)

    def result() -> Array:
        bits = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
        votes = np.repeat((value().reshape(-1, WARP) * bits).sum(1, dtype=np.uint32), WARP)
        yes = votes & members
        every = {"any": yes != 0, "all": yes == members, "ballot": yes}
        every["uni"] = (yes == 0) | (yes == members)
        return every[mode]

    def execute(mask: Mask) -> None:
        machine.sync_members(mask, members)
        _assign(out, result)(mask)

    return execute


@handles("activemask")
def _active_mask(d: Decoder) -> Execute:
    out = d.target(d.operands[0], d.type())
    return lambda mask: _assign(out, lambda: d.machine.active_bits(mask))(mask)


@handles("ldmatrix", "stmatrix")
def _matrix(d: Decoder) -> Execute:
    d.type()
    d.flag("sync")
    d.flag("aligned")
    d.flag("shared", "shared::cta")
    if not d.flag("m8n8"):
        raise ValueError("only m8n8 is known")
    count = int(d.choice(("x1", "x2", "x4"))[1:])
    transposed = d.flag("trans")
    place, names = d.operands if d.name == "stmatrix" else d.operands[::-1]
    address, names = d.address(place), vector(names)
    if len(names) != count:
        raise ValueError("operands do not match the number of matrices")
    if d.name == "stmatrix":
        return _store_matrix(d, d.sources("b32", *names), address, transposed)
    return _load_matrix(d, [d.target(name, "b32") for name in names], address, transposed)


def _load_matrix(d: Decoder, outs: list[Array], address: Callable, transposed: bool) -> Execute:
    machine, count = d.machine, len(outs)

    def execute(mask: Mask) -> None:
        machine.whole_warps(mask)
        threads = machine.lanes(mask)
        rows = threads if count == 4 else threads[threads % WARP < 8 * count]
        places = address(rows)
        machine.count_conflicts(places)
        loaded = machine.shared.load(rows, places, 2, 8, whole_warp=True)
        tiles = loaded.reshape(-1, count, 8, 8)  # [warps, matrices, row, column]
        if transposed:
            tiles = tiles.swapaxes(2, 3)
        words = np.ascontiguousarray(tiles).view(np.uint32)  # [warps, matrices, 8, 4]
        for k, out in enumerate(outs):
            out[threads] = words[:, k].reshape(-1)
        machine.shared.warp_sync(mask)

    return execute


def _store_matrix(d: Decoder, values: list[Array], address: Callable, transposed: bool) -> Execute:
    machine, count = d.machine, len(values)

    def execute(mask: Mask) -> None:
        machine.whole_warps(mask)
        threads = machine.lanes(mask)
        rows = threads if count == 4 else threads[threads % WARP < 8 * count]
        places = address(rows)
        machine.count_conflicts(places)
        words = np.stack([v[threads].reshape(-1, 8, 4) for v in values], axis=1)
        tiles = words.view(np.uint16)  # [warps, matrices, row, column]
        if transposed:
            tiles = tiles.swapaxes(2, 3)
        machine.shared.store(rows, places, np.ascontiguousarray(tiles).reshape(-1, 8))
        machine.shared.warp_sync(mask)

    return execute


SHAPES = {  # a registers, b registers for (shape, type)
    ("m16n8k16", "f16"): (4, 2),
    ("m16n8k16", "bf16"): (4, 2),
    ("m16n8k8", "f16"): (2, 1),
    ("m16n8k8", "bf16"): (2, 1),
    ("m16n8k8", "tf32"): (4, 2),
    ("m16n8k4", "tf32"): (2, 1),
}


@handles("mma")
def _multiply_matrices(d: Decoder) -> Execute:
    accumulator, b_kind, kind, out_kind = d.type(), d.type(), d.type(), d.type()
    for word in ("sync", "aligned", "row", "col"):
        if not d.flag(word):
            raise ValueError(f"without .{word}")
    shape = d.choice([name for name, _ in SHAPES])
    if kind != b_kind or (accumulator, out_kind) != ("f32", "f32"):
        raise ValueError("only equal input types and f32 results are known")
    names = [vector(text) for text in d.operands]
    if (len(names[1]), len(names[2])) != SHAPES[shape, kind] or len(names[0]) != 4:
        raise ValueError("wrong number of registers")
    outs = [d.target(name, "f32") for name in names[0]]
    a, b = d.sources("b32", *names[1]), d.sources("b32", *names[2])
    c = d.sources("f32", *names[3])
    machine = d.machine

    def execute(mask: Mask) -> None:
        machine.whole_warps(mask)
        results = multiply_fragments(kind, a, b, c)
        for out, value in zip(outs, results, strict=True):
            np.copyto(out, value, where=True if mask is None else mask)
        machine.shared.warp_sync(mask)

    return execute


def multiply_fragments(kind: str, a: list[Array], b: list[Array], c: list[Array]) -> list[Array]:
    """D = A B + C of every warp, from and to the fragments of `mma` with 16 rows, 8 columns."""
    packed = kind if kind == "tf32" else f"{kind}x2"
    pieces = [widen(x, packed).reshape(len(x) // WARP, 8, -1) for x in (*a, *b)]
    a_pieces, b_pieces = pieces[: len(a)], pieces[len(a) :]
    upper = np.concatenate(a_pieces[0::2], axis=2)  # [warps, 8, k], rows 0..7
    lower = np.concatenate(a_pieces[1::2], axis=2)  # rows 8..15
    columns = np.concatenate(b_pieces, axis=2).swapaxes(1, 2)  # [warps, k, 8]
    products = np.concatenate([upper, lower], axis=1) @ columns  # [warps, 16, 8]
    pairs = products.reshape(-1, 2, WARP, 2)  # [warps, half, lane, column of two]
    sums = [pairs[:, i // 2, :, i % 2].reshape(-1) + c[i] for i in range(4)]
    return [x.astype(np.float32) for x in sums]


# Execution ----------------------------------------------------------------------------------------

RUNNING, WAITING, DONE = 0, 1, 2


class Machine:
    """A launch: registers, memories and the decoded code of one kernel."""

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        dynamic_shared: int,
        arrays: Sequence[Array],
        parameters: dict[str, bytes],
    ) -> None:
        self.kernel, self.grid, self.block, self.parameters = kernel, grid, block, parameters
        self.block_threads = int(np.prod(block))
        warps = -(-self.block_threads // WARP)
        self.threads = warps * WARP
        self.thread = np.arange(self.threads)
        self.lane = self.thread % WARP
        self.at, self.index = 0, (0, 0, 0)
        self.statistics = Statistics()
        self.registers: dict[tuple[int, str], Register] = {}
        self.constants: dict[tuple[bytes, str], Array] = {}
        self.memory = GlobalMemory(self.fail, arrays)
        self._place_variables(dynamic_shared)
        self.shared = SharedMemory(self.fail, self.shared_size, self._granule(), warps)
        self.local = LocalMemory(self.fail, self.local_size, self.threads)
        self.generic = GenericMemory(self.memory, self.shared, self.local)
        self.copies = AsyncCopies(self.memory, self.shared, self.threads)
        self.special = self._special_registers(dynamic_shared)
        self._decode()

    def fail(self, what: str, thread: int | None = None, address: int | None = None) -> NoReturn:
        """Raises MachineError with the kernel, the instruction and where it happened."""
        code = self.kernel.code
        text = self.kernel.name[:60]
        if self.at < len(code):
            text += f", PTX line {code[self.at].line}, `{code[self.at].text[:160]}`"
        text += f": {what}"
        if thread is not None:
            text += f" (block {self.index}, thread {self._coordinates(int(thread))}"
            text += f", address {int(address):#x})" if address is not None else ")"
        raise MachineError(text)

    def _coordinates(self, thread: int) -> tuple[int, int, int]:
        x, y, _ = self.block
        return thread % x, thread // x % y, thread // (x * y)

    # Setting up

    def _granule(self) -> int:
        """The bytes that share a record in shared memory: the smallest element accessed."""
        smallest = 4
        for instruction in self.kernel.code:
            name, *modifiers = instruction.opcode.split(".")
            kind = modifiers[-1] if modifiers else ""
            elsewhere = {"param", "global", "const", "local"} & set(modifiers)
            if name in ("ld", "st") and kind in DTYPES and not elsewhere:
                smallest = min(smallest, DTYPES[kind].itemsize)
        return smallest

    def _place_variables(self, dynamic_shared: int) -> None:
        """Gives each variable the code mentions an address aligned as declared and not better."""
        words = {word for i in self.kernel.code for word in re.findall(r"[\w$%]+", i.text)}
        used = {n: data for n, data in self.kernel.data.items() if n in words}
        self.addresses: dict[str, int] = {}
        tops = {"shared": SHARED_START, "local": LOCAL_START}
        for name, data in used.items():
            if data.space in tops and data.size:
                place = _aligned(tops[data.space], data.align)
                self.addresses[name], tops[data.space] = place, place + data.size
            elif data.space not in tops:
                self.addresses[name] = self._add_global(data)
        unsized = {
            n: data.align for n, data in used.items() if data.space == "shared" and not data.size
        }
        place = _aligned(tops["shared"], max([16, *unsized.values()]))
        self.addresses |= dict.fromkeys(unsized, place)
        end = place + dynamic_shared if dynamic_shared else tops["shared"]
        self.shared_size, self.local_size = end - SHARED_START, tops["local"] - LOCAL_START

    def _add_global(self, data: Data) -> int:
        room = np.zeros(data.size + data.align, np.uint8)
        skip = -room.ctypes.data % data.align
        place = room[skip : skip + data.size]
        place[:] = np.frombuffer(data.content, np.uint8)
        place.flags.writeable = data.space != "const"
        self.memory.add(place)
        return place.ctypes.data

    def _special_registers(self, dynamic_shared: int) -> dict[str, Array]:
        x, y, _ = self.block
        lane, one = self.lane.astype(np.uint32), np.uint32(1)
        bit = one << lane
        places = {"x": self.thread % x, "y": self.thread // x % y, "z": self.thread // (x * y)}
        arrays = {
            "%laneid": lane,
            "%warpid": self.thread // WARP,
            "%lanemask_eq": bit,
            "%lanemask_lt": bit - one,
            "%lanemask_le": bit - one | bit,
            "%lanemask_gt": ~(bit - one | bit),
            "%lanemask_ge": ~(bit - one),
        }
        values = {"%dynamic_smem_size": dynamic_shared, "%total_smem_size": self.shared_size}
        values |= {"%nwarpid": self.threads // WARP, "%clock": 0, "%smid": 0, "%nsmid": 1}
        for i, axis in enumerate("xyz"):
            arrays[f"%tid.{axis}"] = places[axis]
            values |= {f"%ntid.{axis}": self.block[i], f"%nctaid.{axis}": self.grid[i]}
            values[f"%ctaid.{axis}"] = 0
        arrays |= {n: np.full(self.threads, value) for n, value in values.items()}
        result = {n: array.astype(np.uint32) for n, array in arrays.items()}
        clocks = {n: np.zeros(self.threads, np.uint64) for n in ("%clock64", "%globaltimer")}
        return result | clocks

    def _decode(self) -> None:
        self.steps = []
        for at, instruction in enumerate(self.kernel.code):
            self.at = at
            self.steps.append(Decoder(self, instruction).decode())
        self.at = len(self.kernel.code)
        self.steps.append(Step(lambda mask: None, [], [], control="end"))
        self.counts = [0] * len(self.steps)
        self.full = [False] * len(self.registers)
        self.written = np.zeros((len(self.registers), self.threads), bool)

    def register(self, scopes: tuple[Scope, ...], name: str) -> Register | None:
        """The register a name means in these scopes, innermost first."""
        for scope in scopes:
            kind = scope.registers.get(name) or _in_range(scope, name)
            if kind:
                key = (id(scope), name)
                if key not in self.registers:
                    dtype = DTYPES[kind]
                    dtype = dtype if kind == "pred" else np.dtype(f"u{dtype.itemsize}")
                    array = np.zeros(self.threads, dtype)
                    self.registers[key] = Register(array, len(self.registers))
                return self.registers[key]
        return None

    def constant(self, value: np.ndarray) -> Array:
        """A number for every thread."""
        key = (value.tobytes(), value.dtype.str)
        if key not in self.constants:
            self.constants[key] = repeat(value, self.threads)
        return self.constants[key]

    def symbol(self, text: str) -> int:
        """The address of a variable, or of a place in it."""
        name, _, offset = text.partition("+")
        if name.strip() not in self.addresses:
            self.fail(f"unknown operand {text}")
        return self.addresses[name.strip()] + int(offset or 0)

    # What instructions ask

    def lanes(self, mask: Mask) -> Array:
        """The numbers of the active threads."""
        return self.thread if mask is None else np.flatnonzero(mask)

    def active(self, mask: Mask) -> Array:
        """The mask as an array."""
        return np.ones(self.threads, bool) if mask is None else mask

    def forbid(self, wrong: Array, mask: Mask, what: str) -> None:
        """Fails if an active thread is wrong."""
        bad = wrong if mask is None else wrong & mask
        if bad.any():
            self.fail(what, int(bad.argmax()))

    def whole_warps(self, mask: Mask) -> None:
        """Fails unless the active threads are whole warps."""
        if mask is not None:
            warps = mask.reshape(-1, WARP)
            missing = np.broadcast_to(warps.any(1)[:, None], warps.shape) & ~warps
            if missing.any():
                self.fail("divergent collective: lane is missing", int(missing.argmax()))

    def active_bits(self, mask: Mask) -> Array:
        """For each thread, the active lanes of its warp as bits."""
        rows = self.active(mask).reshape(-1, WARP)
        bits = (rows * (np.uint32(1) << np.arange(WARP, dtype=np.uint32))).sum(1)
        return np.repeat(bits.astype(np.uint32), WARP)

    def sync_members(self, mask: Mask, members: Array) -> None:
        """Synchronises the lanes of a member mask, all of which must be active."""
        if mask is not None or not (members == 0xFFFFFFFF).all():
            missing = members & ~self.active_bits(mask)
            self.forbid(missing != 0, mask, "divergent collective: lanes of the mask are missing")
            own = members >> self.lane.astype(np.uint32) & np.uint32(1)
            self.forbid(own == 0, mask, "divergent collective: the lane is not in its mask")
        self.shared.warp_sync(mask)

    def count_conflicts(self, address: Array) -> None:
        """Counts the cycles a matrix access needs beyond one for eight rows of 16 bytes."""
        rows = np.sort(address.reshape(-1, 8) // 16, axis=1)
        fresh = np.ones(rows.shape, bool)
        fresh[:, 1:] = rows[:, 1:] != rows[:, :-1]
        banks = (rows[:, :, None] % 8 == np.arange(8)) & fresh[:, :, None]
        self.statistics.shared_bank_conflicts += int((banks.sum(1).max(1) - 1).sum())

    # Running

    def run(self) -> Statistics:
        """Executes all blocks, one after the other."""
        nx, ny, nz = self.grid
        with np.errstate(all="ignore"):
            for z in range(nz):
                for y in range(ny):
                    for x in range(nx):
                        self._run_block((x, y, z))
        for count, instruction in zip(self.counts, self.kernel.code, strict=False):
            if count:
                self.statistics.instructions += count
                self.statistics.by_opcode[instruction.opcode] += count
        return self.statistics

    def _run_block(self, index: tuple[int, int, int]) -> None:
        self.index = index
        for i, axis in enumerate("xyz"):
            self.special[f"%ctaid.{axis}"][:] = index[i]
        self.shared.reset()
        self.local.reset()
        self.copies.reset()
        self.full[:] = [False] * len(self.full)
        self.written[:] = False
        self.counter = np.zeros(self.threads, np.int64)
        self.state = np.where(self.thread < self.block_threads, RUNNING, DONE)
        self.barrier_name = np.full(self.threads, -1)
        self.jumps = 0
        while self._advance():
            pass

    def _advance(self) -> bool:
        """Executes from the smallest program counter until threads part or meet."""
        running = self.state == RUNNING
        if not running.any():
            return self._release()
        counters = self.counter[running]
        first = int(counters.min())
        later = counters[counters > first]
        mask = running & (self.counter == first)
        stop = int(later.min()) if later.size else len(self.steps)
        self._execute(first, None if mask.all() else mask, stop)
        return True

    def _release(self) -> bool:
        """Lets the threads at a barrier go on; false when the block has ended."""
        waiting = self.state == WAITING
        if not waiting.any():
            return False
        names = np.unique(self.barrier_name[waiting])
        if len(names) > 1:
            self.fail(f"threads wait at different barriers {names.tolist()}", int(waiting.argmax()))
        self.state[waiting] = RUNNING
        self.shared.barrier()
        self.statistics.barriers += 1
        return True

    def _execute(self, pc: int, mask: Mask, stop: int) -> None:
        """Executes from `pc` on until `stop` or until the active threads part or wait."""
        warps = self.threads // WARP if mask is None else int(mask.reshape(-1, WARP).any(1).sum())
        steps, counts, full = self.steps, self.counts, self.full
        while True:
            step = steps[pc]
            self.at = pc
            counts[pc] += warps
            now, some = mask, True
            if step.guard is not None:
                now, some = self._guarded(step, mask)
            if not step.control:
                if some:
                    for slot in step.reads:
                        if not full[slot]:
                            self._check_written(slot, now)
                    step.execute(now)
                    for slot in step.writes:
                        if not full[slot]:
                            self._mark_written(slot, now)
                pc += 1
            else:
                pc = self._control(step, pc, mask, now, some)
                if pc < 0:
                    return
            if pc >= stop:
                self.counter[self.active(mask)] = pc
                return

    def _guarded(self, step: Step, mask: Mask) -> tuple[Mask, bool]:
        """The mask of the threads whose guard holds, and whether there are any."""
        if not self.full[step.guard.slot]:
            self._check_written(step.guard.slot, mask)
        holds = ~step.guard.array if step.negate else step.guard.array
        if mask is None:
            return (None, True) if holds.all() else (holds.copy(), bool(holds.any()))
        holds = holds & mask
        return holds, bool(holds.any())

    def _check_written(self, slot: int, mask: Mask) -> None:
        unwritten = ~self.written[slot] if mask is None else mask & ~self.written[slot]
        if unwritten.any():
            name = next(key[1] for key, r in self.registers.items() if r.slot == slot)
            self.fail(f"register {name} read before it was written", int(unwritten.argmax()))

    def _mark_written(self, slot: int, mask: Mask) -> None:
        if mask is None:
            self.full[slot] = True
        else:
            self.written[slot] |= mask
            self.full[slot] = bool(self.written[slot].all())

    def _control(self, step: Step, pc: int, mask: Mask, now: Mask, some: bool) -> int:
        """The next program counter of all active threads, or -1 when they part or wait."""
        self.jumps += 1
        if self.jumps > STEP_LIMIT:
            self.fail(f"the block has not ended after {STEP_LIMIT} jumps and waits", 0)
        if not some:
            return pc + 1
        if step.control == "jump":
            return self._jump(step, pc, mask, now)
        taken = self.active(now)
        self.counter[self.active(mask)] = pc + 1
        if step.control == "barrier":
            if step.aligned:
                self._check_aligned(taken)
            self.barrier_name[taken] = step.target
            self.state[taken] = WAITING
        else:
            self.state[taken] = DONE
        return -1

    def _jump(self, step: Step, pc: int, mask: Mask, now: Mask) -> int:
        everyone = now is None or (mask is not None and bool((now == mask).all()))
        if everyone:
            return step.target
        if step.aligned:
            there, stay = self.active(now), self.active(mask) & ~self.active(now)
            split = there.reshape(-1, WARP).any(1) & stay.reshape(-1, WARP).any(1)
            if split.any():
                self.fail("bra.uni diverges in a warp", int(split.argmax()) * WARP)
        self.counter[self.active(mask)] = pc + 1
        self.counter[now] = step.target
        return -1

    def _check_aligned(self, taken: Array) -> None:
        """At an aligned barrier the lanes of a warp that have not ended must be together."""
        warps = taken.reshape(-1, WARP).any(1)[:, None]
        missing = warps & ((self.state != DONE) & ~taken).reshape(-1, WARP)
        if missing.any():
            self.fail("divergent barrier: lane is missing", int(missing.argmax()))


def _aligned(place: int, align: int) -> int:
    """The first multiple of `align` from `place` on that is not one of 2 * align."""
    place = -(-place // align) * align
    return place if place // align % 2 else place + align


def _in_range(scope: Scope, name: str) -> str | None:
    """The type of a register declared as one of many, as in %r<10>."""
    for prefix, (kind, count) in scope.ranges.items():
        rest = name[len(prefix) :]
        if name.startswith(prefix) and rest.isdigit() and int(rest) < count:
            return kind
    return None


# Launching ----------------------------------------------------------------------------------------


def _three(size: int | Sequence[int]) -> tuple[int, int, int]:
    numbers = (size,) if isinstance(size, int | np.integer) else tuple(size)
    return tuple(int(n) for n in (*numbers, 1, 1)[:3])


def _parameter_bytes(kind: str, size: int, value: Any) -> bytes:
    """An argument as the bytes of a parameter: an array gives its address."""
    dtype = DTYPES[kind]
    if isinstance(value, np.ndarray):
        if dtype.itemsize != 8:
            raise ValueError(f"an array is given for a parameter of type .{kind}")
        value = value.ctypes.data
    if dtype.kind == "f":
        content = np.array(value, dtype)
    else:
        bits = 8 * dtype.itemsize
        if not -(1 << (bits - 1)) <= int(value) < 1 << bits or int(value) != value:
            raise ValueError(f"{value!r} is given for a parameter of type .{kind}")
        content = np.array(int(value) & ((1 << bits) - 1), f"u{dtype.itemsize}")
    if content.nbytes != size:
        raise ValueError("parameters that are arrays are not known")
    return content.tobytes()


def run(
    ptx: str,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    arguments: Sequence[Any],
    *,
    memory: Sequence[np.ndarray] = (),
    dynamic_shared: int = 0,
    kernel: str | None = None,
) -> Statistics:
    """Executes an entry of a PTX text.

    Args:
        ptx: the text.
        grid: blocks, up to three numbers.
        block: threads of a block, up to three numbers.
        arguments: one for each parameter: an array, whose address the kernel gets, or a number. A
            number for a 64-bit parameter may be an address in one of `memory`. Arrays are
            C-contiguous, and read-only for the kernel if they are for NumPy.
        memory: further arrays the kernel may touch.
        dynamic_shared: bytes of shared memory beyond what the text declares.
        kernel: name of the entry; None where the text has only one.

    Returns:
        What was executed.

    Raises:
        MachineError: the kernel did something wrong, or uses PTX this machine does not know.
        ValueError: the arguments do not fit the entry.
    """
    kernels = parse(ptx)
    if kernel is None and len(kernels) != 1:
        raise ValueError(f"name one of the entries {sorted(kernels)}")
    entry = kernels[kernel] if kernel is not None else next(iter(kernels.values()))
    sizes = _three(grid), _three(block)
    threads = int(np.prod(sizes[1]))
    if threads > entry.max_threads or (entry.exact_threads and threads != entry.max_threads):
        raise MachineError(f"{entry.name[:60]}: {threads} threads, declared {entry.max_threads}")
    if len(arguments) != len(entry.parameters):
        raise ValueError(f"{len(arguments)} arguments for {len(entry.parameters)} parameters")
    parameters = {
        name: _parameter_bytes(kind, size, value)
        for (name, kind, size), value in zip(entry.parameters, arguments, strict=True)
    }
    arrays = [value for value in arguments if isinstance(value, np.ndarray)]
    return Machine(entry, *sizes, dynamic_shared, [*arrays, *memory], parameters).run()
