"""What the compiler makes of each instruction of language.py: all PTX stands in this file.

Each function below returns a numba.cuda intrinsic: a function that, when a kernel that calls it is
compiled, writes LLVM's language in place of the call.  Loops over tiles are unrolled here, so that
every index into a local array is a constant and LLVM keeps the array in registers.

Only the compiler imports this file.  Source: PTX ISA 8.0 (NVIDIA), the sections named below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic
from numba.cuda.typing import signature

from .language import Instruction

I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
V2F32, V4F32, V4I32 = ir.VectorType(F32, 2), ir.VectorType(F32, 4), ir.VectorType(I32, 4)
SHARED, GLOBAL = 3, 1  # address spaces

SHORT = {"float16": "f16", "bfloat16": "bf16"}  # PTX's names


def assembly(
    builder: Any, result: Any, operands: Sequence[Any], text: str, constraints: str, pure: bool
) -> Any:
    """One inline assembly instruction; `pure`: it only depends on its operands."""
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    call = ir.InlineAsm(kind, text, constraints, side_effect=not pure)
    return builder.call(call, list(operands))


def constant(number: int) -> Any:
    """A 32-bit integer."""
    return ir.Constant(I32, number)


def pointer(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Where the numbers of an array or CPointer argument lie."""
    if isinstance(kind, types.CPointer):
        return value
    return context.make_array(kind)(context, builder, value=value).data


def element(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    """Pointer to array[i], from the first two operands."""
    start, index = pointer(context, builder, kinds[0], values[0]), values[1]
    if index.type.width < 64:
        widen = builder.sext if kinds[1].signed else builder.zext
        index = widen(index, I64)
    return builder.gep(start, [index], inbounds=True)


def at(builder: Any, start: Any, index: int) -> Any:
    """Pointer to the number at a constant index."""
    return builder.gep(start, [constant(index)], inbounds=True)


def is_buffer(kind: Any) -> bool:
    """Whether a type has numbers behind a pointer."""
    return isinstance(kind, types.Array | types.CPointer)


def void(write: Callable[..., None], *operands: Any) -> Any:
    """Signature and code of an intrinsic that returns nothing."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        write(context, builder, sig.args, args)
        return context.get_dummy_value()

    return signature(types.void, *operands), code


# ---------------------------------------------------------------- memory


def load() -> Any:
    """See language.load."""

    @intrinsic
    def load(typing, array, index):
        if not is_buffer(array):
            return None

        def code(context, builder, sig, args):
            item = element(context, builder, sig.args, args)
            return context.unpack_value(builder, sig.args[0].dtype, item)

        return signature(array.dtype, array, index), code

    return load


def store() -> Any:
    """See language.store."""

    @intrinsic
    def store(typing, array, index, value):
        if not is_buffer(array):
            return None

        def write(context, builder, kinds, args):
            item = element(context, builder, kinds, args)
            context.pack_value(builder, kinds[0].dtype, args[2], item)

        return void(write, array, index, array.dtype)

    return store


def load4() -> Any:
    """See language.load4."""

    @intrinsic
    def load4(typing, array, index):
        if not is_buffer(array):
            return None
        vector = V4F32 if array.dtype == types.float32 else V4I32

        def code(context, builder, sig, args):
            item = element(context, builder, sig.args, args)
            four = builder.load(builder.bitcast(item, vector.as_pointer()), align=16)
            parts = [builder.extract_element(four, constant(i)) for i in range(4)]
            return cgutils.pack_array(builder, parts)

        return signature(types.UniTuple(array.dtype, 4), array, index), code

    return load4


def store4() -> Any:
    """See language.store4."""

    @intrinsic
    def store4(typing, array, index, values):
        if not is_buffer(array):
            return None
        vector = V4F32 if array.dtype == types.float32 else V4I32

        def write(context, builder, kinds, args):
            item = element(context, builder, kinds, args)
            four = ir.Constant(vector, ir.Undefined)
            for i in range(4):
                part = builder.extract_value(args[2], i)
                four = builder.insert_element(four, part, constant(i))
            builder.store(four, builder.bitcast(item, vector.as_pointer()), align=16)

        return void(write, array, index, types.UniTuple(array.dtype, 4))

    return store4


def address(space: int, kind: Any, width: Any) -> Any:
    """See language.shared_address and global_address."""

    @intrinsic
    def address(typing, array, index):
        if not is_buffer(array):
            return None

        def code(context, builder, sig, args):
            item = element(context, builder, sig.args, args)
            inside = builder.addrspacecast(item, ir.PointerType(item.type.pointee, space))
            return builder.ptrtoint(inside, width)

        return signature(kind, array, index), code

    return address


def fill(count: int) -> Any:
    """See language.fill."""

    @intrinsic
    def fill(typing, array, value):
        def write(context, builder, kinds, args):
            start = pointer(context, builder, kinds[0], args[0])
            for i in range(count):
                builder.store(args[1], at(builder, start, i))

        return void(write, array, array.dtype)

    return fill


# ---------------------------------------------------------------- copies (cp.async, sm_80)


def copy16() -> Any:
    """See language.copy16."""

    @intrinsic
    def copy16(typing, shared, source, count):
        def write(context, builder, kinds, args):
            text = "cp.async.cg.shared.global [$0], [$1], 16, $2;"
            assembly(builder, ir.VoidType(), args, text, "r,l,r,~{memory}", pure=False)

        return void(write, types.uint32, types.uint64, types.uint32)

    return copy16


def bare(text: str) -> Any:
    """An instruction without operands."""

    @intrinsic
    def bare(typing):
        def write(context, builder, kinds, args):
            assembly(builder, ir.VoidType(), [], text, "~{memory}", pure=False)

        return void(write)

    return bare


def commit_copies() -> Any:
    """See language.commit_copies."""
    return bare("cp.async.commit_group;")


def wait_copies(pending: int) -> Any:
    """See language.wait_copies."""
    return bare(f"cp.async.wait_group {pending};")


# ---------------------------------------------------------------- tensor cores (mma.sync, sm_80)


def load_fragments(tiles: int, step: int, xor: bool, transposed: bool) -> Any:
    """See language.load_fragments."""
    order = ".trans" if transposed else ""
    text = f"ldmatrix.sync.aligned.m8n8.x4{order}.shared.b16 {{$0,$1,$2,$3}}, [$4];"

    @intrinsic
    def load_fragments(typing, fragments, base):
        def write(context, builder, kinds, args):
            start = pointer(context, builder, kinds[0], args[0])
            combine = builder.xor if xor else builder.add
            for tile in range(tiles):
                address = combine(args[1], constant(tile * step))
                four = ir.LiteralStructType([I32] * 4)
                words = assembly(builder, four, [address], text, "=r,=r,=r,=r,r,~{memory}", False)
                for i in range(4):
                    builder.store(builder.extract_value(words, i), at(builder, start, 4 * tile + i))

        return void(write, fragments, types.uint32)

    return load_fragments


def multiply_fragments(m_tiles: int, n_tiles: int, dtype: str, first_word: int) -> Any:
    """See language.multiply_fragments."""
    kind = SHORT[dtype]
    text = (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
        "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
    )
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

    @intrinsic
    def multiply_fragments(typing, accumulators, a, b):
        def write(context, builder, kinds, args):
            c, a, b = (pointer(context, builder, k, x) for k, x in zip(kinds, args, strict=True))

            def words(start, first, count):
                return [builder.load(at(builder, start, first + i)) for i in range(count)]

            left = [words(a, first_word + 4 * m, 4) for m in range(m_tiles)]
            right = [words(b, 2 * n, 2) for n in range(n_tiles)]
            for m in range(m_tiles):
                # There and back again, so that neighbours share an operand's registers.
                for n in range(n_tiles) if m % 2 == 0 else reversed(range(n_tiles)):
                    first = 4 * (m * n_tiles + n)
                    operands = left[m] + right[n] + words(c, first, 4)
                    four = ir.LiteralStructType([F32] * 4)
                    total = assembly(builder, four, operands, text, constraints, pure=False)
                    for i in range(4):
                        builder.store(builder.extract_value(total, i), at(builder, c, first + i))

        return void(write, accumulators, a, b)

    return multiply_fragments


def store_fragments(m_tiles: int, n_tiles: int) -> Any:
    """See language.store_fragments."""

    @intrinsic
    def store_fragments(typing, accumulators, shared, base, stride, lane):
        def write(context, builder, kinds, args):
            source = pointer(context, builder, kinds[0], args[0])
            target = pointer(context, builder, kinds[1], args[1])
            target = builder.addrspacecast(target, ir.PointerType(F32, SHARED))
            base, stride, lane = args[2:]
            group = builder.lshr(lane, constant(2))
            column = builder.shl(builder.and_(lane, constant(3)), constant(1))
            for m in range(m_tiles):
                for half in range(2):
                    row = builder.add(group, constant(16 * m + 8 * half))
                    start = builder.add(builder.add(base, builder.mul(row, stride)), column)
                    for n in range(n_tiles):
                        pair = ir.Constant(V2F32, ir.Undefined)
                        for i in range(2):
                            index = 4 * (m * n_tiles + n) + 2 * half + i
                            part = builder.load(at(builder, source, index))
                            pair = builder.insert_element(pair, part, constant(i))
                        item = builder.gep(
                            target, [builder.add(start, constant(8 * n))], inbounds=True
                        )
                        item = builder.bitcast(item, ir.PointerType(V2F32, SHARED))
                        builder.store(pair, item, align=8)

        return void(write, accumulators, shared, types.int32, types.int32, types.int32)

    return store_fragments


def rounded_pair(builder: Any, dtype: str, low: Any, high: Any) -> Any:
    """Two float32 as one word; PTX names the upper half first."""
    text = f"cvt.rn.{SHORT[dtype]}x2.f32 $0, $1, $2;"
    return assembly(builder, I32, [high, low], text, "=r,f,f", pure=True)


def pack_fragments(n_tiles: int, dtype: str) -> Any:
    """See language.pack_fragments."""

    @intrinsic
    def pack_fragments(typing, accumulators, a):
        def write(context, builder, kinds, args):
            source, target = (
                pointer(context, builder, k, x) for k, x in zip(kinds, args, strict=True)
            )
            for word in range(2 * n_tiles):
                # Words 0 and 1 of a matrix A are one tile's rows g and g + 8, 2 and 3 the next's.
                low, high = (builder.load(at(builder, source, 2 * word + i)) for i in range(2))
                builder.store(rounded_pair(builder, dtype, low, high), at(builder, target, word))

        return void(write, accumulators, a)

    return pack_fragments


# ---------------------------------------------------------------- float32 tiles (fma.rn.f32)


def multiply_tile(depth: int, rows: int, columns: int, strides: tuple[int, int, int, int]) -> Any:
    """See language.multiply_tile."""
    stride_a, stride_b, group_a, group_b = strides

    @intrinsic
    def multiply_tile(typing, accumulators, shared, a, b):
        def write(context, builder, kinds, args):
            c = pointer(context, builder, kinds[0], args[0])
            start = pointer(context, builder, kinds[1], args[1])
            start = builder.addrspacecast(start, ir.PointerType(F32, SHARED))
            sums = [builder.load(at(builder, c, i)) for i in range(rows * columns)]
            first_a = builder.gep(start, [args[2]], inbounds=True)
            first_b = builder.gep(start, [args[3]], inbounds=True)

            def numbers(first, offset):
                item = builder.bitcast(at(builder, first, offset), ir.PointerType(V4F32, SHARED))
                four = builder.load(item, align=16)
                return [builder.extract_element(four, constant(i)) for i in range(4)]

            for k in range(depth):
                left: list[Any] = []
                for group in range(rows // 4):
                    left += numbers(first_a, k * stride_a + group * group_a)
                right: list[Any] = []
                for group in range(columns // 4):
                    right += numbers(first_b, k * stride_b + group * group_b)
                for i, x in enumerate(left):
                    for j, y in enumerate(right):
                        index = i * columns + j
                        sums[index] = builder.fma(x, y, sums[index])
            for i, total in enumerate(sums):
                builder.store(total, at(builder, c, i))

        return void(write, accumulators, shared, types.int32, types.int32)

    return multiply_tile


def store_tile(columns: int, first_row: int, rows: int, group: int) -> Any:
    """See language.store_tile."""

    @intrinsic
    def store_tile(typing, accumulators, shared, base, stride):
        def write(context, builder, kinds, args):
            c = pointer(context, builder, kinds[0], args[0])
            target = pointer(context, builder, kinds[1], args[1])
            target = builder.addrspacecast(target, ir.PointerType(F32, SHARED))
            for row in range(rows):
                start = builder.add(args[2], builder.mul(args[3], constant(row)))
                for four in range(columns // 4):
                    vector = ir.Constant(V4F32, ir.Undefined)
                    for i in range(4):
                        index = (first_row + row) * columns + 4 * four + i
                        part = builder.load(at(builder, c, index))
                        vector = builder.insert_element(vector, part, constant(i))
                    item = builder.gep(
                        target, [builder.add(start, constant(four * group))], inbounds=True
                    )
                    item = builder.bitcast(item, ir.PointerType(V4F32, SHARED))
                    builder.store(vector, item, align=16)

        return void(write, accumulators, shared, types.int32, types.int32)

    return store_tile


# ---------------------------------------------------------------- numbers


def pack2(dtype: str) -> Any:
    """See language.pack2."""

    @intrinsic
    def pack2(typing, low, high):
        def code(context, builder, sig, args):
            return rounded_pair(builder, dtype, *args)

        return signature(types.uint32, types.float32, types.float32), code

    return pack2


def unpack2(dtype: str) -> Any:
    """See language.unpack2."""

    @intrinsic
    def unpack2(typing, word):
        def code(context, builder, sig, args):
            if dtype == "float16":
                halves = [args[0], builder.lshr(args[0], constant(16))]
                numbers = [
                    assembly(
                        builder,
                        F32,
                        [builder.trunc(half, I16)],
                        "cvt.f32.f16 $0, $1;",
                        "=f,h",
                        True,
                    )
                    for half in halves
                ]
            else:  # a bfloat16 is the upper half of a float32
                bits = [
                    builder.shl(args[0], constant(16)),
                    builder.and_(args[0], constant(0xFFFF0000)),
                ]
                numbers = [builder.bitcast(each, F32) for each in bits]
            return cgutils.pack_array(builder, numbers)

        return signature(types.UniTuple(types.float32, 2), types.uint32), code

    return unpack2


def exp2() -> Any:
    """See language.exp2."""

    @intrinsic
    def exp2(typing, x):
        def code(context, builder, sig, args):
            return assembly(builder, F32, args, "ex2.approx.ftz.f32 $0, $1;", "=f,f", pure=True)

        return signature(types.float32, types.float32), code

    return exp2


# ---------------------------------------------------------------- the table

INTRINSICS: dict[str, Callable[..., Any]] = {
    "load": load,
    "store": store,
    "load4": load4,
    "store4": store4,
    "shared_address": lambda: address(SHARED, types.uint32, I32),
    "global_address": lambda: address(GLOBAL, types.uint64, I64),
    "fill": fill,
    "copy16": copy16,
    "commit_copies": commit_copies,
    "wait_copies": wait_copies,
    "load_fragments": load_fragments,
    "multiply_fragments": multiply_fragments,
    "store_fragments": store_fragments,
    "pack_fragments": pack_fragments,
    "multiply_tile": multiply_tile,
    "store_tile": store_tile,
    "pack2": pack2,
    "unpack2": unpack2,
    "exp2": exp2,
}


def intrinsic_for(instruction: Instruction) -> Any:
    """The numba.cuda intrinsic of an instruction."""
    return INTRINSICS[instruction.name](*instruction.parameters)
