"""Vectors: a small language in which the kernels of this folder are written.

Numba compiles Python loops, but leaves it to LLVM which vector instructions they become.  The
kernels here say it themselves: a kernel is a Python function that runs once, at compile time, and
writes LLVM instructions.  Its numbers are `Value`s, and arithmetic on them writes the instruction:

    def scale(code, x, y, count):               # y[i] = 2 x[i]; x and y are addresses
        def body(i, _):
            offset = i * 4                      # float32 has four bytes
            code.store(code.load(x + offset) * 2.0, y + offset)
        code.loop(0, count, code.lanes, body)

`x + offset` is one addition of integers, `code.load` one vector load, `* 2.0` one multiplication
of `lanes` numbers.  Python loops unroll, since each turn writes its instructions again.
`function` turns such a kernel into something that Numba-compiled Python can call; `jit` marks the
Python functions that Numba compiles, the loops around the kernels.
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .targets import Target

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()


jit = partial(njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, nogil=True)


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat type, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


class Value:
    """A number or a vector of the program that is being written."""

    def __init__(self, code: Code, llvm_value: Any):
        self.code, self.llvm = code, llvm_value

    @property
    def type(self) -> Any:
        """LLVM type."""
        return self.llvm.type

    @property
    def is_float(self) -> bool:
        """Float or vector of floats, not integers."""
        return getattr(self.type, "element", self.type) == F32

    def _apply(self, float_op: str, int_op: str, other: Number, swap: bool = False) -> Value:
        a, b = self, self.code.like(other, self)
        if swap:
            a, b = b, a
        op = getattr(self.code.builder, float_op if self.is_float else int_op)
        return Value(self.code, op(a.llvm, b.llvm))

    def __add__(self, other: Number) -> Value:
        return self._apply("fadd", "add", other)

    def __sub__(self, other: Number) -> Value:
        return self._apply("fsub", "sub", other)

    def __rsub__(self, other: Number) -> Value:
        return self._apply("fsub", "sub", other, swap=True)

    def __mul__(self, other: Number) -> Value:
        return self._apply("fmul", "mul", other)

    def __truediv__(self, other: Number) -> Value:
        return self._apply("fdiv", "sdiv", other)

    def __rtruediv__(self, other: Number) -> Value:
        return self._apply("fdiv", "sdiv", other, swap=True)

    __radd__, __rmul__ = __add__, __mul__

    def __and__(self, other: Number) -> Value:
        return self._apply("", "and_", other)

    def __xor__(self, other: Number) -> Value:
        return self._apply("", "xor", other)

    def __lshift__(self, bits: int) -> Value:
        return self._apply("", "shl", bits)

    def __rshift__(self, bits: int) -> Value:
        """Shift right and keep the sign."""
        return self._apply("", "ashr", bits)

    def shift_unsigned(self, bits: int) -> Value:
        """Shift right and fill with zeros."""
        return self._apply("", "lshr", bits)

    def _compare(self, op: str, other: Number) -> Value:
        builder, b = self.code.builder, self.code.like(other, self)
        compare = builder.fcmp_ordered if self.is_float else builder.icmp_signed
        return Value(self.code, compare(op, self.llvm, b.llvm))

    def __lt__(self, other: Number) -> Value:
        return self._compare("<", other)

    def __gt__(self, other: Number) -> Value:
        return self._compare(">", other)


Number = Value | int | float


class Code:
    """Writes the instructions of one kernel for one target."""

    def __init__(self, builder: ir.IRBuilder, target: Target):
        self.builder, self.target, self.lanes = builder, target, target.lanes

    # ---------------------------------------------------------------- constants and types

    def vector_type(self, element: Any) -> Any:
        """A vector of the target's lanes."""
        return ir.VectorType(element, self.lanes)

    def constant(self, number: float, of: Any) -> Value:
        """A number of LLVM type `of`, in every lane if that is a vector."""
        element = getattr(of, "element", of)
        if element == F32:
            number = struct.unpack("f", struct.pack("f", number))[0]  # the nearest float32
        value = [number] * of.count if isinstance(of, ir.VectorType) else number
        return Value(self, ir.Constant(of, value))

    def like(self, number: Number, other: Value) -> Value:
        """The number as a value of the other's type; a scalar is spread over the lanes."""
        if not isinstance(number, Value):
            return self.constant(number, other.type)
        if isinstance(other.type, ir.VectorType) and not isinstance(number.type, ir.VectorType):
            return self.splat(number)
        return number

    def vector(self, number: float) -> Value:
        """A float32 constant in every lane."""
        return self.constant(number, self.vector_type(F32))

    def integer(self, number: int | Value) -> Value:
        """An address, a count or an index."""
        return number if isinstance(number, Value) else self.constant(number, I64)

    def splat(self, number: Value) -> Value:
        """Spread a scalar over the lanes."""
        of = self.vector_type(number.type)
        one = self.builder.insert_element(ir.Constant(of, ir.Undefined), number.llvm, I32(0))
        return self.shuffle(Value(self, one), Value(self, one), [0] * self.lanes)

    def cast(self, op: str, value: Value, of: Any) -> Value:
        """Convert by LLVM's instruction `op`; `of` is the new element type."""
        if isinstance(value.type, ir.VectorType):
            of = ir.VectorType(of, value.type.count)
        return Value(self, getattr(self.builder, op)(value.llvm, of))

    def bits(self, value: Value, of: Any) -> Value:
        """The same bits as another type; `of` is the whole type."""
        return Value(self, self.builder.bitcast(value.llvm, of))

    def float_bits(self, value: Value) -> Value:
        """Bits of int32 as float32."""
        vector = isinstance(value.type, ir.VectorType)
        return self.bits(value, self.vector_type(F32) if vector else F32)

    def int_bits(self, value: Value) -> Value:
        """Bits of float32 as int32."""
        vector = isinstance(value.type, ir.VectorType)
        return self.bits(value, self.vector_type(I32) if vector else I32)

    # ---------------------------------------------------------------- memory

    def pointer(self, address: Value, of: Any) -> Any:
        """An address as a pointer to LLVM type `of`."""
        return self.builder.inttoptr(address.llvm, of.as_pointer())

    def load(self, address: Value, element: Any = F32) -> Value:
        """A vector; the address needs no alignment beyond that of one number."""
        loaded = self.builder.load(self.pointer(address, self.vector_type(element)))
        loaded.align = element_size(element)
        return Value(self, loaded)

    def load_one(self, address: Value, element: Any = F32) -> Value:
        """One number."""
        loaded = self.builder.load(self.pointer(address, element))
        loaded.align = 1  # rows of an odd number of bfloat16 begin at odd places
        return Value(self, loaded)

    def broadcast(self, address: Value, element: Any = F32) -> Value:
        """One number in every lane."""
        return self.splat(self.load_one(address, element))

    def store(self, value: Value, address: Value) -> None:
        """A vector or one number."""
        stored = self.builder.store(value.llvm, self.pointer(address, value.type))
        stored.align = element_size(getattr(value.type, "element", value.type))

    def prefetch(self, address: Value) -> None:
        """Begin to bring the cache line at an address into L2; the address need not exist."""
        pointer = self.pointer(address, I8)
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(2), I32(1))

    def mask(self, count: Value) -> Value:
        """True in the first `count` lanes."""
        lanes = ir.Constant(self.vector_type(I32), list(range(self.lanes)))
        return Value(self, lanes) < self.cast("trunc", count, I32)

    def elements(self, count: Value, body: Callable[[Value, Callable[..., Value]], None]) -> None:
        """Run over an array of any length: whole vectors, then what is left one by one.

        Args:
            count: numbers in the array.
            body: writes one turn; gets the index of the first number and what loads from there.
        """
        whole = count - (count & (self.lanes - 1))
        self.loop(0, whole, self.lanes, lambda i, _: body(i, self.load))
        self.loop(whole, count, 1, lambda i, _: body(i, self.load_one))

    # ---------------------------------------------------------------- arithmetic

    def call(self, name: str, returns: Any, *arguments: Any) -> Value:
        """Call an LLVM intrinsic."""
        values = [a.llvm if isinstance(a, Value) else a for a in arguments]
        function = self.builder.module.globals.get(name) or ir.Function(
            self.builder.module, ir.FunctionType(returns, [v.type for v in values]), name
        )
        return Value(self, self.builder.call(function, values))

    def fma(self, a: Value, b: Number, c: Number) -> Value:
        """A * b + c, rounded once where the target can."""
        if not self.target.fma:
            return a * b + c
        b, c = self.like(b, a), self.like(c, a)
        return self.call(f"llvm.fma.{mangle(a.type)}", a.type, a, b, c)

    def opaque(self, a: Value) -> Value:
        """A vector of x86, of which LLVM does not know how it came about.

        Sums of integers may be taken in any order, and LLVM does, though more registers are needed
        for it than there are.
        """
        kind = ir.FunctionType(a.type, [a.type])
        return Value(self, self.builder.asm(kind, "", "=v,0", [a.llvm], side_effect=False))

    def select(self, condition: Value, a: Number, b: Number) -> Value:
        """A where the condition holds, else b; one of them is a Value."""
        first = a if isinstance(a, Value) else self.like(a, b)  # type: ignore[arg-type]
        second = self.like(b, first)
        return Value(self, self.builder.select(condition.llvm, first.llvm, second.llvm))

    def maximum(self, a: Value, b: Number) -> Value:
        """The larger; NaN where a is NaN, and a where b is."""
        b = self.like(b, a)
        return self.select(b > a, b, a)

    def minimum(self, a: Value, b: Number) -> Value:
        """The smaller; NaN where a is NaN, and a where b is."""
        b = self.like(b, a)
        return self.select(b < a, b, a)

    def sqrt(self, a: Value) -> Value:
        """Square root."""
        return self.call(f"llvm.sqrt.{mangle(a.type)}", a.type, a)

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """The lanes of a, then of b, that `lanes` names."""
        order = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return Value(self, self.builder.shuffle_vector(a.llvm, b.llvm, order))

    def reduce(self, vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """Combine all lanes, halves first, so that the order never depends on the target's loop."""
        count = vector.type.count
        while count > 1:
            count //= 2
            low, high = range(count), range(count, 2 * count)
            a, b = (self.shuffle(vector, vector, list(half)) for half in (low, high))
            vector = combine(a, b)
        return Value(self, self.builder.extract_element(vector.llvm, I32(0)))

    # ---------------------------------------------------------------- control

    def loop(
        self,
        begin: int | Value,
        end: int | Value,
        step: int | None,
        body: Callable[..., Any],
        carried: Sequence[Value] = (),
    ) -> list[Value]:
        """For i in range(begin, end, step): carried = body(i, carried).

        Args:
            begin: first i.
            end: first number that i does not reach.
            step: positive; None: the body decides, and returns the next i before the carried
                values.
            body: writes one turn; gets i and the carried values, returns their new ones.
            carried: values before the first turn.

        Returns:
            The carried values after the last turn.
        """
        builder = self.builder
        first, last = self.integer(begin), self.integer(end)
        before = builder.block
        top, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.cbranch((first < last).llvm, top, after)
        builder.position_at_end(top)
        i = builder.phi(I64)
        i.add_incoming(first.llvm, before)
        turning = [builder.phi(value.type) for value in carried]
        for phi, value in zip(turning, carried, strict=True):
            phi.add_incoming(value.llvm, before)
        results = body(Value(self, i), [Value(self, phi) for phi in turning]) or []
        if step is None:
            following, *results = results
        else:
            following = Value(self, i) + step
        bottom = builder.block
        builder.cbranch((following < last).llvm, top, after)
        i.add_incoming(following.llvm, bottom)
        for phi, value in zip(turning, results, strict=True):
            phi.add_incoming(value.llvm, bottom)
        builder.position_at_end(after)
        final = []
        for value, result in zip(carried, results, strict=True):
            phi = builder.phi(value.type)
            phi.add_incoming(value.llvm, before)
            phi.add_incoming(result.llvm, bottom)
            final.append(Value(self, phi))
        return final

    def switch(self, number: Value, cases: Sequence[Callable[[], None]]) -> None:
        """Do the case of this number, counted from 0; the last one for all larger numbers."""
        builder = self.builder
        blocks = [builder.append_basic_block("case") for _ in cases]
        after = builder.append_basic_block("after")
        chosen = builder.switch(number.llvm, blocks[-1])
        for i, (block, case) in enumerate(zip(blocks, cases, strict=True)):
            if block is not blocks[-1]:
                chosen.add_case(I64(i), block)
            builder.position_at_end(block)
            case()
            builder.branch(after)
        builder.position_at_end(after)

    def run(self, name: str, kernel: Callable[..., None], *arguments: Number) -> None:
        """Call a kernel that stands in a function of its own; see `write`."""
        values = [self.integer(each).llvm for each in arguments]  # type: ignore[arg-type]
        self.builder.call(write(self.builder.module, name, kernel, self.target), values)


def element_size(element: Any) -> int:
    """Bytes of a number."""
    return 4 if element == F32 else int(element.width) // 8


def mangle(of: Any) -> str:
    """How LLVM writes a type in the name of an intrinsic."""
    if isinstance(of, ir.VectorType):
        return f"v{of.count}{mangle(of.element)}"
    return "f32" if of == F32 else f"i{of.width}"


def parameters(kernel: Callable[..., None]) -> list[str]:
    """Names of the numbers that a kernel takes: those before the `*`, without `code`."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = inspect.signature(kernel).parameters.values()
    return [each.name for each in found if each.kind == kind][1:]


def declare(module: Any, name: str, kernel: Callable[..., None]) -> Any:
    """The LLVM function of a kernel, for a module that calls it."""
    of = ir.FunctionType(ir.VoidType(), [I64] * len(parameters(kernel)))
    return module.globals.get(name) or ir.Function(module, of, name)


def write(module: Any, name: str, kernel: Callable[..., None], target: Target) -> Any:
    """The LLVM function of a kernel, with its instructions; written when it is first asked for."""
    found = declare(module, name, kernel)
    if found.is_declaration:
        found.attributes.add("noinline")
        code = Code(ir.IRBuilder(found.append_basic_block("entry")), target)
        kernel(code, *(Value(code, argument) for argument in found.args))
        code.builder.ret_void()
    return found


# What `function` made callable: name -> kernel.  Compiled code only names them: they are written
# once, into a module of their own (compiler.py), not optimised anew in each function that calls.
CALLABLE: dict[str, Callable[..., None]] = {}


def function(name: str, kernel: Callable[..., None]) -> Any:
    """Make a kernel callable from Numba-compiled code, as a function of integers.

    Args:
        name: of the LLVM function; one name, one kernel.
        kernel: gets a `Code`, and one `Value` for each integer that the caller passes.
    """
    CALLABLE[name] = kernel

    def typing(context: Any, *arguments: Any) -> Any:
        def generate(_: Any, builder: Any, signature: Any, values: Any) -> Any:
            builder.call(declare(builder.module, name, kernel), values)
            return ir.Constant(I8.as_pointer(), None)  # Numba's None

        return types.void(*[types.intp] * len(arguments)), generate

    names = ["context", *parameters(kernel)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    typing.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(each, kind) for each in names]
    )
    return intrinsic(typing)
