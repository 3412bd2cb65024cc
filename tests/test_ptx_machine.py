"""The PTX machine computes what the PTX manual says, and sees what a kernel must not do."""

import struct

import numpy as np
import ptx_machine
import pytest
from ptx_machine import MachineError, run

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
NAN = float("nan")


def entry(body, *parameters, name="kernel", data="", limits=""):
    """PTX text of one entry with a few registers of each kind; pointers are in %rd0, %rd1, ..."""
    declared = ", ".join(f".param .{kind} {name}_{i}" for i, kind in enumerate(parameters))
    loads = [
        f"ld.param.{kind} {'%rd' if kind == 'u64' else '%a'}{i}, [{name}_{i}];"
        for i, kind in enumerate(parameters)
    ]
    return f"""{HEADER}{data}
.visible .entry {name}({declared})
{limits}
{{
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<32>, %a<8>;
    .reg .f32 %f<16>;
    .reg .b64 %rd<32>;
    {" ".join(loads)}
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %rd20, %r0, 4;  // byte offset of the thread's word
    cvt.u32.u64 %r20, %rd20;
    {body}
    ret;
}}
"""


def launch(body, *arrays, block=32, grid=1, data="", limits="", **options):
    """Runs a body whose parameters are arrays only."""
    text = entry(body, *["u64"] * len(arrays), data=data, limits=limits)
    return run(text, grid, block, arrays, **options)


def compute(instruction, dtype, *inputs):
    """d for each thread, where a, b, c are the elements of arrays of up to 32 numbers."""
    arrays = [np.resize(array, 32) for array in inputs]
    out = np.zeros(32, dtype)
    lines = []
    for name, array in zip("abcd", [*arrays[:3], *[None] * (3 - len(arrays)), out], strict=True):
        if array is not None:
            kind = {"f4": "f32", "f8": "f64"}.get(array.dtype.str[1:], f"b{8 * array.itemsize}")
            lines.append(f".reg .{kind} {name};")
    for i, (name, array) in enumerate(zip("abc", arrays, strict=False)):
        lines.append(f"mad.wide.u32 %rd10, %r0, {array.itemsize}, %rd{i};")
        lines.append(f"ld.global.b{8 * array.itemsize} {name}, [%rd10];")
    lines.append(instruction)
    lines.append(f"mad.wide.u32 %rd10, %r0, {out.itemsize}, %rd{len(arrays)};")
    lines.append(f"st.global.b{8 * out.itemsize} [%rd10], d;")
    launch("\n".join(lines), *arrays, out)
    return out[: max((len(array) for array in inputs), default=32)]


def check(instruction, dtype, inputs, expected):
    """`compute` gives exactly these numbers, with the sign of zeros."""
    ours = compute(instruction, dtype, *inputs)
    expected = np.array(expected, dtype)
    np.testing.assert_array_equal(ours, expected)
    if ours.dtype.kind == "f":
        there = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(ours)[there], np.signbit(expected)[there])


def words(seed, dtype, count=32):
    limits = np.iinfo(dtype)
    numbers = np.random.default_rng(seed).integers(limits.min, limits.max, count, dtype, True)
    numbers[:4] = [limits.min, limits.max, 0, 1]
    return numbers


def wrapped(numbers, dtype):
    bits = 8 * np.dtype(dtype).itemsize
    unsigned = np.array([int(n) % 2**bits for n in numbers], f"u{bits // 8}")
    return unsigned.view(dtype)


# Arithmetic


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_integer_products_and_sums_wrap_at_their_width(kind):
    bits = int(kind[1:])
    dtype = f"{'i' if kind[0] == 's' else 'u'}{bits // 8}"
    a, b, c = (words(seed, dtype) for seed in range(3))
    exact = [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    for part, product in (("lo", exact), ("hi", [n >> bits for n in exact])):
        check(f"mul.{part}.{kind} d, a, b;", dtype, (a, b), wrapped(product, dtype))
        total = [n + int(z) for n, z in zip(product, c, strict=True)]
        check(f"mad.{part}.{kind} d, a, b, c;", dtype, (a, b, c), wrapped(total, dtype))
    sums = [int(x) + int(y) for x, y in zip(a, b, strict=True)]
    check(f"add.{kind} d, a, b;", dtype, (a, b), wrapped(sums, dtype))
    differences = [int(x) - int(y) for x, y in zip(a, b, strict=True)]
    check(f"sub.{kind} d, a, b;", dtype, (a, b), wrapped(differences, dtype))
    if bits < 64:
        check(f"mul.wide.{kind} d, a, b;", f"{dtype[0]}{bits // 4}", (a, b), exact)


def test_integer_division_rounds_toward_zero():
    a, b = np.array([7, -7, 7, -7, 5], np.int32), np.array([2, 2, -2, -2, 7], np.int32)
    check("div.s32 d, a, b;", np.int32, (a, b), [3, -3, -3, 3, 0])
    check("rem.s32 d, a, b;", np.int32, (a, b), [1, -1, 1, -1, 5])
    with pytest.raises(MachineError, match=r"division by zero \(block \(0, 0, 0\), thread \(2, "):
        compute("div.u32 d, a, b;", np.uint32, *np.array([[1, 1, 1], [1, 1, 0]], np.uint32))


def test_shifts_beyond_the_width_leave_nothing_or_the_sign():
    counts = np.array([0, 1, 31, 32, 33, 2**32 - 1], np.uint32)
    a = np.full(6, 0x80000001, np.uint32)
    check("shl.b32 d, a, b;", np.uint32, (a, counts), [0x80000001, 2, 0x80000000, 0, 0, 0])
    check("shr.u32 d, a, b;", np.uint32, (a, counts), [0x80000001, 0x40000000, 1, 0, 0, 0])
    signed = [0x80000001, 0xC0000000, 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1]
    check("shr.s32 d, a, b;", np.uint32, (a, counts), signed)
    b = np.full(6, 0x12345678, np.uint32)
    wrap = [0x12345678, 0x2468ACF1, 0x40000000 | 0, 0x12345678, 0x2468ACF1, 0x40000000 | 0]
    clamp = [0x12345678, 0x2468ACF1, 0x40000000, 0x80000001, 0x80000001, 0x80000001]
    check("shf.l.wrap.b32 d, a, b, c;", np.uint32, (a, b, counts), wrap)
    check("shf.l.clamp.b32 d, a, b, c;", np.uint32, (a, b, counts), clamp)
    right = [0x80000001, 0x40000000, 0x2468ACF1, 0x12345678, 0x12345678, 0x12345678]
    check("shf.r.clamp.b32 d, a, b, c;", np.uint32, (a, b, counts), right)


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields_are_cut_out_and_extended_bit_by_bit(kind):
    bits = int(kind[1:])
    unsigned = f"u{bits // 8}"
    a = words(5, unsigned)
    position = np.random.default_rng(6).integers(0, bits + 8, 32, np.uint32)
    length = np.random.default_rng(7).integers(0, bits + 8, 32, np.uint32)
    position[:3], length[:3] = [0, 0, bits - 1], [0, bits, 9]

    def field(x, p, n):
        sign = 0
        if kind[0] == "s" and n:
            sign = x >> min(p + n - 1, bits - 1) & 1
        bit = [x >> p + i & 1 if i < n and p + i < bits else sign for i in range(bits)]
        return sum(value << i for i, value in enumerate(bit))

    expected = [field(int(x), int(p), int(n)) for x, p, n in zip(a, position, length, strict=True)]
    check(f"bfe.{kind} d, a, b, c;", unsigned, (a, position, length), np.array(expected, unsigned))


def test_bits_are_inserted_permuted_and_counted():
    a = np.array([0x2B, 0xFFFFFFFF], np.uint32)
    b = np.array([0xFFFFFFFF, 0], np.uint32)
    check("bfi.b32 d, a, b, 4, 8;", np.uint32, (a, b), [0xFFFFF2BF, 0xFF0])
    check("bfi.b32 d, a, b, 28, 8;", np.uint32, (a, b), [0xBFFFFFFF, 0xF0000000])
    wide = np.array([0x1122334455667788], np.uint64)
    check("bfi.b64 d, a, b, 32, 32;", np.uint64, (wide, ~wide), [0x55667788AA998877])
    a, b = np.array([0x03020180], np.uint32), np.array([0x07060504], np.uint32)
    check("prmt.b32 d, a, b, 0x7610;", np.uint32, (a, b), [0x07060180])
    check("prmt.b32 d, a, b, 0x9898;", np.uint32, (a, b), [0x00FF00FF])
    a = np.array([0, 1, 0x80000000, 0x00F0F000], np.uint32)
    check("popc.b32 d, a;", np.uint32, (a,), [0, 1, 1, 8])
    check("clz.b32 d, a;", np.uint32, (a,), [32, 31, 0, 8])
    check("bfind.u32 d, a;", np.uint32, (a,), [2**32 - 1, 0, 31, 23])
    check("bfind.s32 d, a;", np.uint32, (a,), [2**32 - 1, 0, 30, 23])
    check("brev.b32 d, a;", np.uint32, (a,), [0, 0x80000000, 1, 0x000F0F00])


@pytest.mark.parametrize("table", [0x80, 0xFE, 0x96, 0xE8, 0xCA])
def test_lop3_follows_its_truth_table(table):
    a, b, c = (words(seed, "u4") for seed in range(3))
    expected = [
        sum(
            (table >> ((x >> i & 1) * 4 + (y >> i & 1) * 2 + (z >> i & 1)) & 1) << i
            for i in range(32)
        )
        for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    check(f"lop3.b32 d, a, b, c, {table};", np.uint32, (a, b, c), expected)


def test_comparisons_with_a_nan_are_false_unless_unordered():
    a, b = np.array([1, 2, 2, NAN], "f4"), np.array([2, 2, 1, 1], "f4")
    answers = {
        **{"lt": "1000", "le": "1100", "gt": "0010", "ge": "0110", "eq": "0100", "ne": "1010"},
        **{"ltu": "1001", "leu": "1101", "gtu": "0011", "geu": "0111", "equ": "0101"},
        **{"neu": "1011", "num": "1110", "nan": "0001"},
    }
    for name, expected in answers.items():
        text = f"setp.{name}.f32 %p1|%p2, a, b; selp.u32 d, 1, 0, %p1; @!%p2 add.u32 d, d, 2;"
        check(text, np.uint32, (a, b), [3 * int(digit) for digit in expected])


def test_comparisons_follow_the_sign_of_the_type_and_combine():
    a, b = np.array([1, 2**32 - 1], np.uint32), np.array([2**32 - 1, 1], np.uint32)
    check("setp.lt.s32 %p1, a, b; selp.u32 d, 1, 0, %p1;", np.uint32, (a, b), [0, 1])
    check("setp.lo.u32 %p1, a, b; selp.u32 d, 1, 0, %p1;", np.uint32, (a, b), [1, 0])
    text = "setp.eq.u32 %p2, a, 1; setp.ne.or.u32 %p1, a, a, !%p2; selp.u32 d, 1, 0, %p1;"
    check(text, np.uint32, (a, b), [0, 1])
    check("slct.u32.s32 d, 5, 6, a;", np.uint32, (a,), [5, 6])


def test_min_and_max_prefer_numbers_and_order_zeros():
    a, b = np.array([NAN, 1, -0.0, 0.0, 3], "f4"), np.array([1, NAN, 0.0, -0.0, 2], "f4")
    check("min.f32 d, a, b;", "f4", (a, b), [1, 1, -0.0, -0.0, 2])
    check("max.f32 d, a, b;", "f4", (a, b), [1, 1, 0.0, 0.0, 3])
    check("max.NaN.f32 d, a, b;", "f4", (a, b), [NAN, NAN, 0.0, 0.0, 3])
    check("copysign.f32 d, a, b;", "f4", (-a[2:], b[2:]), [0.0, -0.0, -2])
    check("abs.f32 d, a;", "f4", (a[2:],), [0.0, 0.0, 3])


def test_fma_keeps_what_a_product_rounds_away():
    a = np.array([1 + 2**-12], "f4")
    check("fma.rn.f32 d, a, a, 0fBF800000;", "f4", (a,), [2**-11 + 2**-24])
    check("mul.f32 d, a, a; add.f32 d, d, 0fBF800000;", "f4", (a,), [2**-11])


def test_rounding_modes_and_saturation():
    a, b = np.array([1, -1], "f4"), np.array([2**-30, 2**-30], "f4")
    above, below = (
        np.nextafter(np.float32(1), np.float32(2)),
        np.nextafter(np.float32(-1), np.float32(0)),
    )
    for mode, expected in {
        "rn": [1, -1],
        "rz": [1, below],
        "rm": [1, -1],
        "rp": [above, below],
    }.items():
        check(f"add.{mode}.f32 d, a, b;", "f4", (a, b), expected)
    check(
        "add.sat.f32 d, a, 0f3F000000;",
        "f4",
        (np.array([1, -1, 0.25, NAN], "f4"),),
        [1, 0, 0.75, 0],
    )


def test_ftz_turns_subnormal_operands_and_results_to_zero():
    a = np.array([1e-39, -1e-39, 1e-30], "f4")
    check("add.ftz.f32 d, a, 0f00000000;", "f4", (a,), [0, 0, 1e-30])
    check("mul.ftz.f32 d, a, 0f00000001;", "f4", (a,), [0, -0.0, 0])
    check("mul.ftz.f32 d, a, 0f2EDBE6FF;", "f4", (a,), [0, -0.0, 0])  # 1e-10
    check("add.f32 d, a, 0f00000000;", "f4", (a,), a)


def test_approximate_functions():
    a = np.array([0.5, 1, 2, 7], "f4")
    for name, function in (
        ("ex2", np.exp2),
        ("lg2", np.log2),
        ("sqrt", np.sqrt),
        ("tanh", np.tanh),
    ):
        ours = compute(f"{name}.approx.f32 d, a;", "f4", a)
        np.testing.assert_allclose(ours, function(a.astype("f8")), rtol=1e-7)
    np.testing.assert_allclose(compute("rsqrt.approx.ftz.f32 d, a;", "f4", a), a**-0.5, rtol=1e-7)
    check("rcp.rn.f32 d, a;", "f4", (a,), 1 / a)
    check("div.full.f32 d, 0f40400000, a;", "f4", (a,), np.float32(3) / a)
    check("sqrt.rn.f32 d, a;", "f4", (a,), np.sqrt(a))


def test_half_precision_arithmetic():
    a, b = np.array([1, 60000], "f2"), np.array([2**-11, 60000], "f2")
    check("add.f16 d, a, b;", "f2", (a, b), [1, np.inf])
    pair = np.array([1, 2, 3, 4], "f2").view("u4")
    assert compute("fma.rn.f16x2 d, a, a, a;", "u4", pair).view("f2").tolist() == [2, 6, 12, 20]
    one, third = np.uint16(0x3F80), np.uint16(0x3EAB)
    check("add.rn.bf16 d, a, b;", "u2", (np.array([one]), np.array([third])), [0x3FAB])


# Conversions


def test_pairs_take_their_first_source_to_the_upper_half():
    a, b = np.array([1, 65520], "f4"), np.array([-2, 2**-25], "f4")
    pair = compute("cvt.rn.f16x2.f32 d, a, b;", "u4", a, b).view("f2")
    assert pair.tolist() == [-2, 1, 0, np.inf]
    pair = compute("cvt.rn.relu.bf16x2.f32 d, a, b;", "u4", a, b)
    assert pair.tolist() == [0x3F800000, 0x47803300]


def test_bf16_rounds_to_even():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x7F800001], "u4")
    expected = [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7F80, 0x7FFF]
    check("cvt.rn.bf16.f32 d, a;", "u2", (bits.view("f4"),), expected)
    check("cvt.rz.bf16.f32 d, a;", "u2", (bits[:3].view("f4"),), [0x3F80, 0x3F81, 0x3F80])
    check("cvt.f32.bf16 d, a;", "f4", (np.array([0x3F80, 0xC000], "u2"),), [1, -2])


def test_tf32_rounds_ties_away():
    bits = np.array([0x3F801000, 0x3F800FFF, 0x3F803000], "u4")
    expected = [0x3F802000, 0x3F800000, 0x3F804000]
    check("cvt.rna.tf32.f32 d, a;", "u4", (bits.view("f4"),), expected)


def test_floats_become_integers_by_mode_and_saturate():
    a = np.array([2.5, -2.5, 3.5, 1e20, -1e20, NAN], "f4")
    big, small = 2**31 - 1, -(2**31)
    check("cvt.rni.s32.f32 d, a;", "i4", (a,), [2, -2, 4, big, small, 0])
    check("cvt.rzi.s32.f32 d, a;", "i4", (a,), [2, -2, 3, big, small, 0])
    check("cvt.rmi.s32.f32 d, a;", "i4", (a,), [2, -3, 3, big, small, 0])
    check("cvt.rpi.u32.f32 d, a;", "u4", (a,), [3, 0, 4, 2**32 - 1, 0, 0])
    check("cvt.rzi.s64.f32 d, a;", "i8", (a[2:],), [3, 2**63 - 1, -(2**63), -(2**63)])
    check("cvt.rni.f32.f32 d, a;", "f4", (a[:3],), [2, -2, 4])


def test_integers_are_cut_extended_and_saturated():
    a = np.array([300, -1, -200, 2**31 - 1], "i4")
    check("cvt.u64.u32 d, a;", "u8", (a,), [300, 2**32 - 1, 2**32 - 200, 2**31 - 1])
    check("cvt.s64.s32 d, a;", "i8", (a,), a)
    check("cvt.sat.s8.s32 d, a;", "i4", (a,), [127, -1, -128, 127])
    check("cvt.u16.u32 d, a;", "u2", (a,), a.astype("u2"))
    check("cvt.s8.s32 d, a;", "i4", (a,), a.astype("i1"))
    check("cvt.rn.f32.s32 d, a;", "f4", (a,), [300, -1, -200, 2**31])
    check("cvt.rz.f32.s32 d, a;", "f4", (a,), [300, -1, -200, 2**31 - 128])
    check("cvt.rn.f16.s32 d, a;", "f2", (a[:3],), [300, -1, -200])


def test_mov_packs_and_unpacks():
    a = np.array([0x11223344], "u4")
    check("mov.b32 {%h1, %h2}, a; mov.b32 d, {%h2, %h1};", "u4", (a,), [0x33441122])
    check("mov.b64 d, {a, 7};", "u8", (a,), [7 << 32 | 0x11223344])
    wide = np.array([5 << 32 | 9], "u8")
    check("mov.b64 {_, d}, a;", "u4", (wide,), [5])


# Control flow


def test_special_registers_name_every_thread():
    out = np.zeros((2, 3, 2, 3, 4), "u4")
    text = """
    mov.u32 %r1, %ctaid.y; mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.x;
    mad.lo.u32 %r1, %r1, %r2, %r3;
    mov.u32 %r2, %tid.z; mov.u32 %r3, %ntid.y; mad.lo.u32 %r1, %r1, 2, %r2;
    mov.u32 %r2, %tid.y; mad.lo.u32 %r1, %r1, %r3, %r2; mov.u32 %r4, %ntid.x;
    mad.lo.u32 %r1, %r1, %r4, %r0;
    mad.wide.u32 %rd1, %r1, 4, %rd0;
    st.global.u32 [%rd1], %r1;
    """
    launch(text, out, grid=(3, 2), block=(4, 3, 2))
    assert out.ravel().tolist() == list(range(out.size))


def test_divergent_threads_meet_again():
    out = np.zeros(64, "u4")
    text = """
    mov.u32 %r1, 0; mov.u32 %r2, 0;
    and.b32 %r3, %r0, 3;
    LOOP:
    setp.ge.u32 %p1, %r2, %r3;
    @%p1 bra DONE;
    add.u32 %r1, %r1, %r0;
    add.u32 %r2, %r2, 1;
    bra.uni LOOP;
    DONE:
    shfl.sync.bfly.b32 %r1, %r1, 1, 31, -1;
    add.s64 %rd1, %rd0, %rd20;
    st.global.u32 [%rd1], %r1;
    """
    statistics = launch(text, out, block=64)
    i = np.arange(64) ^ 1
    assert out.tolist() == (i * (i & 3)).tolist()
    assert statistics.by_opcode["shfl.sync.bfly.b32"] == 2
    assert statistics.by_opcode["add.u32"] == 2 * 2 * 3


def test_an_endless_loop_ends(monkeypatch):
    monkeypatch.setattr(ptx_machine, "STEP_LIMIT", 100)
    with pytest.raises(MachineError, match="has not ended"):
        launch("LOOP: bra LOOP;")


def test_braces_have_registers_and_labels_of_their_own():
    out = np.zeros(32, "u4")
    part = """
    { .reg .u32 %r1; .reg .pred %p1; mov.u32 %r1, %r0; setp.lt.u32 %p1, %r1, 5; @%p1 bra END;
      add.u32 %r2, %r2, %r1; END: }
    """
    text = f"mov.u32 %r1, 7; mov.u32 %r2, 0; {part} {part} add.u32 %r2, %r2, %r1;"
    launch(text + "add.s64 %rd1, %rd0, %rd20; st.global.u32 [%rd1], %r2;", out)
    assert out.tolist() == [7 + (2 * i if i >= 5 else 0) for i in range(32)]


def test_reading_a_register_before_it_is_written_fails():
    with pytest.raises(MachineError, match="register %f1 read before it was written"):
        launch("add.f32 %f2, %f1, %f1;")
    text = "setp.lt.u32 %p1, %r0, 9; @%p1 mov.u32 %r1, 5; {0} add.u32 %r2, %r1, 1;"
    launch(text.format("@%p1"))
    with pytest.raises(MachineError, match=r"%r1 read before .* thread \(9, 0, 0\)"):
        launch(text.format(""))


def test_a_barrier_waits_for_the_threads_that_live():
    text = """
    setp.ge.u32 %p1, %r0, 64; @%p1 exit;
    mov.u64 %rd1, buffer; add.u64 %rd1, %rd1, %rd20; st.shared.u32 [%rd1], %r0;
    bar.sync 0;
    xor.b32 %r1, %r0, 32; mad.wide.u32 %rd2, %r1, 4, 0; mov.u64 %rd3, buffer;
    add.u64 %rd3, %rd3, %rd2; ld.shared.u32 %r2, [%rd3];
    add.u64 %rd4, %rd0, %rd20; st.global.u32 [%rd4], %r2;
    """
    out = np.zeros(64, "u4")
    statistics = launch(text, out, block=96, data=".shared .align 4 .b8 buffer[256];")
    assert out.tolist() == [i ^ 32 for i in range(64)]
    assert statistics.barriers == 1


def test_a_barrier_some_lanes_of_a_warp_skip_fails():
    with pytest.raises(MachineError, match="divergent barrier"):
        launch("setp.lt.u32 %p1, %r0, 9; @%p1 bar.sync 0; add.u32 %r1, %r0, 1;")


def test_threads_at_different_barriers_fail():
    with pytest.raises(MachineError, match="different barriers"):
        launch("setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 1; @!%p1 bar.sync 2;", block=64)


# Memory


def test_global_accesses_stay_inside_an_array_and_are_aligned():
    out, table = np.zeros(32, "u4"), np.arange(40, dtype="u4")
    move = "add.u64 %rd2, %rd1, %rd20; ld.global.u32 %r1, [%rd2+{}]; add.u64 %rd3, %rd0, %rd20;"
    store = "st.global.u32 [%rd3], %r1;"
    launch(move.format(32) + store, out, table)
    assert out.tolist() == list(range(8, 40))
    with pytest.raises(MachineError, match=r"outside every array .*thread \(31, 0, 0\), address"):
        launch(move.format(36) + store, out, table)
    with pytest.raises(MachineError, match=r"outside every array .*thread \(0, 0, 0\)"):
        launch(move.format(-4) + store, out, table)
    with pytest.raises(MachineError, match="not aligned to 4"):
        launch(move.format(2) + store, out, table)
    table.flags.writeable = False
    launch(move.format(0) + store, out, table)
    with pytest.raises(MachineError, match="read-only"):
        launch(move.format(0) + "st.global.u32 [%rd2], %r1;", out, table)


def test_vectors_move_and_partial_words_extend():
    source, out = np.arange(256, dtype="u1"), np.zeros((32, 4), "i4")
    text = """
    shl.b32 %r1, %r0, 3; cvt.u64.u32 %rd2, %r1; add.u64 %rd2, %rd2, %rd0;
    ld.global.nc.v2.u32 {%r1, %r2}, [%rd2]; ld.global.s8 %r3, [%rd2+7]; ld.global.u16 %r4, [%rd2+2];
    shl.b64 %rd3, %rd20, 2; add.u64 %rd3, %rd3, %rd1;
    st.global.v4.u32 [%rd3], {%r1, %r2, %r3, %r4};
    """
    launch(text, source, out)
    rows = source.reshape(32, 8)
    assert out[:, :2].tolist() == rows.view("i4").tolist()
    assert out[:, 2].tolist() == rows[:, 7].view("i1").tolist()
    assert out[:, 3].tolist() == rows[:, 2:4].copy().view("u2").ravel().tolist()


def test_arguments_are_addresses_and_numbers():
    out, hidden = np.zeros(32, "f4"), np.full(1, 3, "f4")
    text = entry(
        "ld.global.f32 %f1, [%rd1]; cvt.rn.f32.s32 %f2, %a2; mov.b32 %f3, %a3;"
        "fma.rn.f32 %f1, %f1, %f2, %f3; add.u64 %rd2, %rd0, %rd20; st.global.f32 [%rd2], %f1;",
        *("u64", "u64", "u32", "f32"),
    )
    arguments = [out, hidden.ctypes.data, -5, np.float32(0.5)]
    run(text, 1, 32, arguments, memory=[hidden])
    assert (out == -14.5).all()
    with pytest.raises(MachineError, match="outside every array"):
        run(text, 1, 32, arguments)
    with pytest.raises(ValueError, match="3 arguments for 4 parameters"):
        run(text, 1, 32, arguments[:3])
    with pytest.raises(ValueError, match="parameter of type"):
        run(text, 1, 32, [*arguments[:2], 2**32, 0.5])
    with pytest.raises(ValueError, match="contiguous"):
        run(text, 1, 32, [np.zeros((4, 64), "f4")[:, ::2], *arguments[1:]], memory=[hidden])


def test_tables_local_memory_and_generic_addresses():
    data = """
    .const .align 4 .u32 squares[4] = {0, 1, 4, 9};
    .global .align 4 .f32 halves[2] = {0f3F000000, 0f3F800000};
    .shared .align 4 .b8 buffer[128];
    """
    text = """
    .local .align 8 .b8 depot[16];
    and.b32 %r1, %r0, 3; mul.wide.u32 %rd1, %r1, 4;
    mov.u64 %rd2, squares; add.u64 %rd2, %rd2, %rd1; ld.const.u32 %r2, [%rd2];
    mov.u64 %rd3, depot; cvta.local.u64 %rd4, %rd3; st.u32 [%rd4+8], %r2;
    ld.local.u32 %r3, [%rd3+8];
    mov.u64 %rd5, buffer; add.u64 %rd5, %rd5, %rd20; cvta.shared.u64 %rd6, %rd5;
    st.u32 [%rd6], %r3; ld.shared.u32 %r4, [%rd5];
    mov.u64 %rd7, halves; cvta.to.global.u64 %rd8, %rd7; ld.global.f32 %f1, [%rd8+4];
    cvt.rzi.u32.f32 %r5, %f1; add.u32 %r4, %r4, %r5;
    add.u64 %rd9, %rd0, %rd20; st.u32 [%rd9], %r4;
    """
    out = np.zeros(32, "u4")
    launch(text, out, data=data)
    assert out.tolist() == [(i % 4) ** 2 + 1 for i in range(32)]
    with pytest.raises(MachineError, match="local access"):
        launch(text.replace("[%rd3+8]", "[%rd3+16]"), out, data=data)
    with pytest.raises(MachineError, match="read-only"):
        launch("mov.u64 %rd1, squares; st.global.u32 [%rd1], %r0;", data=data)


def test_atomics_on_global_memory_see_every_thread():
    total, out = np.zeros(1, "u4"), np.zeros(64, "u4")
    text = """
    atom.global.add.u32 %r1, [%rd0], 2;
    red.relaxed.gpu.global.max.u32 [%rd0], 10;
    add.u64 %rd2, %rd1, %rd20; st.global.u32 [%rd2], %r1;
    """
    launch(text, total, out, block=64)
    assert out.tolist() == list(range(0, 128, 2))
    assert total[0] == 128


# Shared memory

SHARED = ".extern .shared .align 16 .b8 buffer[];"
PLACE = "mov.u32 %r21, buffer; add.u32 %r22, %r21, %r20;"  # %r22: the thread's word


def shared(text, *arrays, block=64, size=256, **options):
    return launch(PLACE + text, *arrays, block=block, data=SHARED, dynamic_shared=size, **options)


NEIGHBOUR = "xor.b32 %r1, %r20, {}; add.u32 %r1, %r1, %r21;"  # %r1: another thread's word
OTHER_WARP, OTHER_LANE = NEIGHBOUR.format(128), NEIGHBOUR.format(4)


def test_shared_memory_is_bounded_aligned_and_poisoned():
    shared("st.shared.u32 [%r22], %r0;")
    with pytest.raises(MachineError, match=r"outside its .*thread \(63, 0, 0\)"):
        shared("st.shared.u32 [%r22+4], %r0;")
    with pytest.raises(MachineError, match="not aligned to 4"):
        shared("st.shared.u32 [%r22+2], %r0;", size=300)
    with pytest.raises(MachineError, match="never written"):
        shared("ld.shared.u32 %r1, [%r22];")
    with pytest.raises(MachineError, match="never written"):
        shared("st.shared.u16 [%r22], %r0; ld.shared.u32 %r1, [%r22];")


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ("st.shared.u32 [%r22], %r0;", "ld.shared.u32 %r2, [%r1];", "read of what thread"),
        ("st.shared.u32 [%r22], %r0;", "st.shared.u32 [%r1], %r0;", "write of what thread"),
        ("ld.shared.u32 %r2, [%r1];", "st.shared.u32 [%r22], %r0;", "write over what another"),
        ("st.shared.u16 [%r22], %r0;", "st.shared.u16 [%r1+2], %r0;", None),
    ],
)
@pytest.mark.parametrize(
    ("other", "sync"), [(OTHER_WARP, "bar.sync 0;"), (OTHER_LANE, "bar.warp.sync -1;")]
)
def test_two_accesses_race_unless_a_sync_is_between(first, second, what, other, sync):
    text = f"{other} st.shared.u32 [%r22], 0; bar.sync 0; {first} {{}} {second}"
    shared(text.format(sync))
    shared(text.format("bar.sync 0;"))
    if what is None:
        shared(text.format(""))
    else:
        with pytest.raises(MachineError, match=f"race: {what}"):
            shared(text.format(""))


def test_a_warp_sync_does_not_order_two_warps():
    with pytest.raises(MachineError, match="no bar.sync since"):
        shared(OTHER_WARP + "st.shared.u32 [%r22], 0; bar.warp.sync -1; ld.shared.u32 %r2, [%r1];")


def test_a_write_races_with_every_lane_that_read():
    text = "{} bar.sync 0; ld.shared.u32 %r2, [%r21]; {} setp.eq.u32 %p1, %r0, {}; @%p1 {};"
    fill, store = "st.shared.u32 [%r22], 0;", "st.shared.u32 [%r21], 1"
    shared(text.format(fill, "bar.warp.sync -1;", 31, store), block=32)
    for lane in (0, 13, 31):
        with pytest.raises(MachineError, match="another lane of the warp read"):
            shared(text.format(fill, "", lane, store), block=32)


def test_lanes_may_store_the_same_value_to_one_place():
    shared("st.shared.u32 [%r21], 5;", block=32)
    with pytest.raises(MachineError, match="different values"):
        shared("st.shared.u32 [%r21], %r0;", block=32)
    with pytest.raises(MachineError, match="together with thread"):
        shared("st.shared.u32 [%r21], 5;")


def test_each_block_finds_shared_memory_poisoned():
    text = "mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [%r22], 1;"
    with pytest.raises(MachineError, match=r"never written \(block \(1, 0, 0\)"):
        shared(text + "ld.shared.u32 %r2, [%r22];", grid=2)


# Asynchronous copies

COPY = """
shl.b64 %rd3, %rd20, 2; add.u64 %rd3, %rd3, %rd0; shl.b32 %r3, %r20, 2; add.u32 %r3, %r3, %r21;
cp.async.cg.shared.global [%r3], [%rd3], 16;
"""
COMMIT, WAIT = "cp.async.commit_group;", "cp.async.wait_group 0;"
FETCH = "ld.shared.u32 %r4, [%r3+8]; add.u64 %rd4, %rd1, %rd20; st.global.u32 [%rd4], %r4;"


def copied(text):
    source, out = np.arange(256, dtype="u4"), np.zeros(64, "u4")
    shared(COPY + text, source, out, size=2048)
    return source, out


def test_a_copy_arrives_with_the_wait():
    for wait in (COMMIT + WAIT, "cp.async.wait_all;"):
        _, out = copied(wait + FETCH)
        assert out.tolist() == list(range(2, 256, 4))


@pytest.mark.parametrize("wait", ["", COMMIT, WAIT, COMMIT + "cp.async.wait_group 1;"])
def test_reading_a_copy_without_a_wait_that_covers_it_fails(wait):
    for sync in ("", "bar.sync 0;"):
        with pytest.raises(MachineError, match="cp.async of thread 0 has not filled"):
            copied(wait + sync + FETCH)


def test_wait_group_leaves_the_last_groups_pending():
    again = "cp.async.cg.shared.global [%r3+1024], [%rd3], 16;" + COMMIT
    _, out = copied(COMMIT + again + "cp.async.wait_group 1;" + FETCH)
    assert out[1] == 6
    with pytest.raises(MachineError, match="has not filled"):
        copied(COMMIT + again + "cp.async.wait_group 1;" + FETCH.replace("+8", "+1024"))


def test_a_copy_is_as_late_as_its_wait():
    late = "mov.u32 %r5, 77; st.global.u32 [%rd3+8], %r5;"
    _, out = copied(COMMIT + late + WAIT + FETCH)
    assert (out == 77).all()


def test_another_thread_sees_a_copy_after_wait_and_barrier():
    read = """
    sub.u32 %r5, %r3, %r21; xor.b32 %r5, %r5, 512; add.u32 %r5, %r5, %r21;
    ld.shared.u32 %r4, [%r5];
    """
    copied(COMMIT + WAIT + "bar.sync 0;" + read)
    with pytest.raises(MachineError, match="race: read of what thread 32 of another warp"):
        copied(COMMIT + WAIT + read)
    with pytest.raises(MachineError, match="race: write over what another warp read"):
        copied(COMMIT + WAIT + "bar.sync 0;" + read + COPY)
    with pytest.raises(MachineError, match="write of shared memory that a cp.async"):
        copied(COMMIT + "bar.sync 0; st.shared.u32 [%r3], %r0;")


def test_missing_source_bytes_become_zeros():
    source, out = np.full(64, 0x01010101, "u4"), np.zeros((32, 4), "u4")
    text = """
    shl.b64 %rd3, %rd20, 2; add.u64 %rd4, %rd3, %rd0; shl.b32 %r3, %r20, 2; add.u32 %r3, %r3, %r21;
    and.b32 %r4, %r0, 15; setp.lt.u32 %p1, %r0, {}; selp.u32 %r4, %r4, 0, %p1;
    cp.async.cg.shared.global.L2::128B [%r3], [%rd4], 16, %r4;
    cp.async.wait_all;
    ld.shared.v4.u32 {{%r5, %r6, %r7, %r8}}, [%r3];
    add.u64 %rd5, %rd3, %rd1; st.global.v4.u32 [%rd5], {{%r5, %r6, %r7, %r8}};
    """
    shared(text.format(16), source, out, block=32, size=512)
    assert out.view("u1").sum(axis=1).tolist() == [*range(16), *[0] * 16]
    with pytest.raises(MachineError, match="outside every array"):
        shared(text.format(18), source, out, block=32, size=512)


# Warps


@pytest.mark.parametrize("clamp", [31, 0x1C1F, 0x1800 | 7, 0])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles_follow_the_manual(mode, clamp):
    distance, value = np.arange(32, dtype="u4") * 5 % 37, words(3, "u4")
    text = f"shfl.sync.{mode}.b32 d|%p1, a, b, {clamp}, 0xffffffff; @!%p1 add.u32 d, d, 1;"
    ours = compute(text, "u4", value, distance)
    for lane in range(32):
        b, c, segment = int(distance[lane]) & 31, clamp & 31, clamp >> 8 & 31
        most = (lane & segment) | (c & ~segment)
        least = lane & segment
        j = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": least | (b & ~segment)}[
            mode
        ]
        inside = j >= most if mode == "up" else j <= most
        expected = int(value[j]) if inside else int(value[lane]) + 1
        assert ours[lane] == expected % 2**32


def test_votes_count_the_lanes_of_the_mask():
    out = np.zeros((3, 32), "u4")
    text = """
    setp.lt.u32 %p1, %r0, 5; setp.lt.u32 %p2, %r0, 16;
    @%p2 vote.sync.ballot.b32 %r1, %p1, 0xffff; @!%p2 vote.sync.ballot.b32 %r1, !%p1, 0xffff0000;
    vote.sync.any.pred %p3, %p1, -1; selp.u32 %r2, 1, 0, %p3;
    vote.sync.all.pred %p3, %p1, -1; selp.u32 %r3, 1, 0, %p3;
    add.u64 %rd1, %rd0, %rd20;
    st.global.u32 [%rd1], %r1; st.global.u32 [%rd1+128], %r2; st.global.u32 [%rd1+256], %r3;
    """
    launch(text, out)
    assert out[0].tolist() == [31] * 16 + [0xFFFF0000] * 16
    assert (out[1] == 1).all()
    assert (out[2] == 0).all()


@pytest.mark.parametrize(
    "collective",
    [
        "shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;",
        "bar.warp.sync -1;",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r21];",
    ],
)
def test_a_warp_instruction_without_all_its_lanes_fails(collective):
    text = "st.shared.u32 [%r22], 0; bar.sync 0; setp.lt.u32 %p1, %r0, {}; @%p1 {}"
    shared(text.format(32, collective))
    with pytest.raises(MachineError, match="divergent collective"):
        shared(text.format(40, collective))


def matrices(trans, count):
    """Runs ldmatrix on a swizzle-free tile: the rows and the registers [count, 32 lanes, 2]."""
    tile, out = np.arange(count * 64, dtype="u2"), np.zeros((count, 32), "u4")
    names = ", ".join(f"%r{i + 1}" for i in range(count))
    text = f"""
    mov.u32 %r10, 0;
    LOOP: setp.ge.u32 %p1, %r10, {count}; @%p1 bra END;
    mad.lo.u32 %r11, %r10, 128, %r22; cvt.u64.u32 %rd2, %r10; mul.lo.u64 %rd2, %rd2, 128;
    add.u64 %rd2, %rd2, %rd20; add.u64 %rd2, %rd2, %rd0;
    ld.global.u32 %r12, [%rd2]; st.shared.u32 [%r11], %r12; add.u32 %r10, %r10, 1; bra LOOP;
    END: bar.sync 0;
    and.b32 %r11, %r0, {8 * count - 1}; mad.lo.u32 %r11, %r11, 16, %r21;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{names}}}, [%r11];
    add.u64 %rd3, %rd1, %rd20;
    """
    text += "".join(f"st.global.u32 [%rd3+{128 * i}], %r{i + 1};" for i in range(count))
    statistics = shared(text, tile, out, block=32, size=512)
    return tile.reshape(count, 8, 8), out.view("u2").reshape(count, 32, 2), statistics


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix_gives_each_lane_its_pair(trans, count):
    tile, ours, statistics = matrices(trans, count)
    for lane in range(32):
        for half in range(2):
            row, column = lane // 4, lane % 4 * 2 + half
            row, column = (column, row) if trans else (row, column)
            assert ours[:, lane, half].tolist() == tile[:, row, column].tolist()
    assert statistics.shared_bank_conflicts == 0


def test_ldmatrix_counts_bank_conflicts():
    text = """
    mov.u32 %r1, 0;
    LOOP: setp.ge.u32 %p1, %r1, 8; @%p1 bra END;
    mad.lo.u32 %r2, %r1, 128, %r22; st.shared.u32 [%r2], %r1; add.u32 %r1, %r1, 1; bra LOOP;
    END: bar.sync 0; and.b32 %r3, %r0, 7; mad.lo.u32 %r3, %r3, 128, %r21;
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r3];
    """
    assert shared(text, block=32, size=1024).shared_bank_conflicts == 7


def test_stmatrix_undoes_ldmatrix():
    out = np.zeros(32, "u4")
    text = """
    st.shared.u32 [%r22], %r0; bar.sync 0; and.b32 %r3, %r0, 7; mad.lo.u32 %r3, %r3, 16, %r21;
    ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r4}, [%r3];
    stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r3], {%r4};
    ld.shared.u32 %r5, [%r22]; add.u64 %rd1, %rd0, %rd20; st.global.u32 [%rd1], %r5;
    """
    shared(text, out, block=32)
    assert out.tolist() == list(range(32))


@pytest.mark.parametrize(
    ("kind", "k"), [("f16", 16), ("bf16", 16), ("f16", 8), ("bf16", 8), ("tf32", 8), ("tf32", 4)]
)
def test_mma_multiplies_the_fragments_of_the_manual(kind, k):
    rng = np.random.default_rng(k)
    a, b = rng.integers(-8, 9, (16, k)).astype("f4"), rng.integers(-8, 9, (k, 8)).astype("f4")
    c = rng.integers(-99, 99, (16, 8)).astype("f4")
    lane = np.arange(32)
    group, within = lane // 4, lane % 4

    def pack(low, high):
        if kind == "f16":
            return np.stack([low, high], 1).astype("f2").view("u4")[:, 0]
        return (low.view("u4") >> 16) | (high.view("u4") & np.uint32(0xFFFF0000))

    if kind == "tf32":
        a_words = [a[group + 8 * (i % 2), within + 4 * (i // 2)].view("u4") for i in range(k // 2)]
        b_words = [b[within + 4 * i, group].view("u4") for i in range(k // 4)]
    else:
        place = 2 * within
        a_words = [
            pack(*(a[group + 8 * (i % 2), place + j + 8 * (i // 2)] for j in range(2)))
            for i in range(k // 4)
        ]
        b_words = [pack(*(b[place + j + 8 * i, group] for j in range(2))) for i in range(k // 8)]
    c_words = [c[group + 8 * (i // 2), 2 * within + i % 2].view("u4") for i in range(4)]
    numbers, out = np.stack([*a_words, *b_words, *c_words]), np.zeros((4, 32), "f4")
    names = [f"%r{i + 1}" for i in range(len(a_words) + len(b_words))]
    loads = [f"ld.global.u32 {name}, [%rd2+{128 * i}];" for i, name in enumerate(names)]
    loads += [f"ld.global.f32 %f{i}, [%rd2+{128 * (len(names) + i)}];" for i in range(4)]
    text = f"""
    add.u64 %rd2, %rd0, %rd20; add.u64 %rd3, %rd1, %rd20; {" ".join(loads)}
    mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32 {{%f4, %f5, %f6, %f7}},
        {{{", ".join(names[: len(a_words)])}}}, {{{", ".join(names[len(a_words) :])}}},
        {{%f0, %f1, %f2, %f3}};
    """
    text += "".join(f"st.global.f32 [%rd3+{128 * i}], %f{4 + i};" for i in range(4))
    launch(text, numbers, out)
    expected = a @ b + c
    for i in range(4):
        assert out[i].tolist() == expected[group + 8 * (i // 2), 2 * within + i % 2].tolist()


# The text


def test_what_is_not_known_is_named():
    with pytest.raises(MachineError, match="unknown opcode wgmma.fence"):
        launch("wgmma.fence.sync.aligned;")
    with pytest.raises(MachineError, match=r"unknown modifier \.sat of add"):
        launch("add.sat.s32 %r1, %r0, %r0;")
    with pytest.raises(MachineError, match="unknown label NOWHERE"):
        launch("bra NOWHERE;")
    with pytest.raises(MachineError, match=r"unknown operand %r99"):
        launch("add.u32 %r1, %r0, %r99;")


def test_a_fault_names_kernel_line_text_block_thread_and_address():
    body = "setp.eq.u32 %p1, %r0, 2;\n// skipped\n@%p1 ld.global.u32 %r1, [8];"
    text = entry(body, name="reader")
    line = 1 + text[: text.index("@%p1")].count("\n")
    with pytest.raises(MachineError) as caught:
        run(text, (1, 2), (4, 2), [])
    message = str(caught.value)
    assert message.startswith(f"reader, PTX line {line}, `@%p1 ld.global.u32 %r1, [8]`")
    assert message.endswith("(block (0, 0, 0), thread (2, 0, 0), address 0x8)")
    run(text, (1, 2), (2, 4), [])


def test_the_entry_is_chosen_by_name():
    out = np.zeros(1, "u4")
    store = "mov.u32 %r1, {}; st.global.u32 [%rd0], %r1;"
    text = entry(store.format(1), "u64", name="one", limits=".maxntid 32, 1, 1")
    text += entry(store.format(2), "u64", name="two").removeprefix(HEADER)
    run(text, 1, 1, [out], kernel="two")
    assert out[0] == 2
    with pytest.raises(ValueError, match=r"\['one', 'two'\]"):
        run(text, 1, 1, [out])
    with pytest.raises(MachineError, match="33 threads, declared 32"):
        run(text, 1, 33, [out], kernel="one")


def test_parameters_and_limits_have_the_forms_of_ptx():
    out = np.zeros(1, "u4")
    text = f"""{HEADER}
    .entry k(.param .u64 .ptr .global .align 16 where, .param .align 4 .f32 x) .reqntid 1, 1, 1 {{
        .pragma "nounroll"; .reg .f32 f; .reg .b64 %rd<2>;
        ld.param.f32 f, [x]; ld.param.u64 %rd1, [where]; /* no
        more */ st.global.f32 [%rd1], f; ret;
    }}"""
    run(text, 1, 1, [out, 1.5])
    assert out.view("f4")[0] == 1.5
    with pytest.raises(MachineError, match="2 threads, declared 1"):
        run(text, 1, 2, [out, 1.5])


def test_numbers_have_the_forms_of_ptx():
    assert struct.pack("<f", 1.5) == ptx_machine.number("0f3FC00000", "f32").tobytes()
    assert ptx_machine.number("0d3FF8000000000000", "f64") == 1.5
    assert ptx_machine.number("-1", "u32") == 2**32 - 1
    assert ptx_machine.number("0x10", "s64") == 16
    assert ptx_machine.number("1.5", "f32") == 1.5


def test_statistics_count_warps():
    statistics = launch(
        "setp.lt.u32 %p1, %r0, 32; @%p1 bra END; add.u32 %r1, %r0, 1; END:", block=96
    )
    assert statistics.by_opcode["add.u32"] == 2
    assert statistics.by_opcode["bra"] == 3
    assert statistics.instructions == sum(statistics.by_opcode.values())
