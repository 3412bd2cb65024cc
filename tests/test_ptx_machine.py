"""The PTX machine computes what the PTX manual says, and sees what a kernel must not do."""

import numpy as np
import ptx_machine
import pytest
from ptx_arithmetic import OPERATIONS
from ptx_machine import run
from ptx_text import MachineError

NAN, INF, MAX = float("nan"), float("inf"), 2**32 - 1
DYNAMIC = ".extern .shared .align 16 .b8 buffer[];"


def entry(body, *kinds):
    """PTX text of one entry; pointers are in %rd0, %rd1, ... and numbers in %a0, %a1, ..."""
    declared = ", ".join(f".param .{kind} p_{i}" for i, kind in enumerate(kinds))
    loads = [
        f"ld.param.{kind} {'%rd' if kind == 'u64' else '%a'}{i}, [p_{i}];"
        for i, kind in enumerate(kinds)
    ]
    return f"""
.version 8.0
.target sm_80
{DYNAMIC}
.visible .entry kernel({declared})
.maxntid 96, 1, 1
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
    mov.u32 %r21, buffer;
    add.u32 %r22, %r21, %r20;  /* the thread's word
                                  in shared memory */
    {body}
    ret;
}}
"""


def launch(body, *arrays, block=32, grid=(1, 1, 1), shared=256):
    """Run a body whose parameters are arrays."""
    text = entry(body, *["u64"] * len(arrays))
    return run(text, grid, block, arrays, dynamic_shared=shared)


def fails(what, *arguments, **options):
    with pytest.raises(MachineError, match=what):
        launch(*arguments, **options)


def compute(instruction, dtype, *inputs):
    """d for each thread, where a, b, c are the elements of arrays of up to 32 numbers."""
    arrays = [np.resize(array, 32) for array in inputs]
    out = np.zeros(32, dtype)
    lines = [f".reg .b{8 * out.itemsize} d;"]
    for i, (name, array) in enumerate(zip("abc", arrays, strict=False)):
        bits = 8 * array.itemsize
        lines.append(f".reg .b{bits} {name}; mad.wide.u32 %rd10, %r0, {array.itemsize}, %rd{i};")
        lines.append(f"ld.global.b{bits} {name}, [%rd10];")
    lines.append(f"{instruction}; mad.wide.u32 %rd10, %r0, {out.itemsize}, %rd{len(arrays)};")
    lines.append(f"st.global.b{8 * out.itemsize} [%rd10], d;")
    launch("\n".join(lines), *arrays, out)
    return out[: max(map(len, inputs))]


# Arithmetic

P = "selp.u32 d, 1, 0, %p1"
BF16_TIES = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x7F800001]
CASES = [  # instruction, type of d, types and values of a, b, c, values of d
    ("div.s32 d, a, b", "i4", "i4 i4", [[7, -7, 7, -7], [2, 2, -2, -2]], [3, -3, -3, 3]),
    ("rem.s32 d, a, b", "i4", "i4 i4", [[7, -7, 7, -7], [2, 2, -2, -2]], [1, -1, 1, -1]),
    ("shl.b32 d, a, b", "u4", "u4 u4", [[MAX], [0, 31, 32, MAX]], [MAX, 2**31, 0, 0]),
    ("shr.u32 d, a, b", "u4", "u4 u4", [[MAX], [0, 31, 32, MAX]], [MAX, 1, 0, 0]),
    ("shr.s32 d, a, b", "i4", "i4 u4", [[-8], [0, 1, 31, 32, MAX]], [-8, -4, -1, -1, -1]),
    ("shf.l.wrap.b32 d, a, b, 36", "u4", "u4 u4", [[0x12345678], [0x9ABCDEF0]], [0xABCDEF01]),
    ("shf.r.wrap.b32 d, a, b, 36", "u4", "u4 u4", [[0x12345678], [0x9ABCDEF0]], [0x01234567]),
    ("bfi.b32 d, a, b, 4, 8", "u4", "u4 u4", [[0x2B, MAX], [MAX, 0]], [0xFFFFF2BF, 0xFF0]),
    ("bfi.b32 d, a, b, 28, 8", "u4", "u4 u4", [[0x2B, MAX], [MAX, 0]], [0xBFFFFFFF, 0xF0000000]),
    ("prmt.b32 d, a, b, 0x7610", "u4", "u4 u4", [[0x03020180], [0x07060504]], [0x07060180]),
    ("prmt.b32 d, a, b, 0x9898", "u4", "u4 u4", [[0x03020180], [0x07060504]], [0x00FF00FF]),
    (f"setp.lt.s32 %p1, a, b; {P}", "u4", "u4 u4", [[1, MAX], [MAX, 1]], [0, 1]),
    (f"setp.lt.u32 %p1, a, b; {P}", "u4", "u4 u4", [[1, MAX], [MAX, 1]], [1, 0]),
    (f"setp.ne.f32 %p1, a, b; {P}", "u4", "f4 f4", [[1, 2, NAN], [2, 2, 1]], [1, 0, 0]),
    (f"setp.neu.f32 %p1, a, b; {P}", "u4", "f4 f4", [[1, 2, NAN], [2, 2, 1]], [1, 0, 1]),
    (f"setp.geu.f32 %p1, a, b; {P}", "u4", "f4 f4", [[1, 2, NAN], [2, 2, 1]], [0, 1, 1]),
    ("min.f32 d, a, b", "f4", "f4 f4", [[NAN, 1, 3], [1, NAN, 2]], [1, 1, 2]),
    ("max.f32 d, a, b", "f4", "f4 f4", [[NAN, 1, 3], [1, NAN, 2]], [1, 1, 3]),
    ("fma.rn.f32 d, a, a, 0fBF800000", "f4", "f4", [[1 + 2**-12]], [2**-11 + 2**-24]),
    ("mul.f32 d, a, a; add.f32 d, d, 0fBF800000", "f4", "f4", [[1 + 2**-12]], [2**-11]),
    ("add.ftz.f32 d, a, 0f00000000", "f4", "f4", [[1e-39, -1e-39, 1e-30]], [0, 0, 1e-30]),
    ("mul.ftz.f32 d, a, 0f7F000000", "f4", "f4", [[1e-39, 2**-126]], [0, 2]),  # times 2**127
    ("mul.ftz.f32 d, a, 0f2E800000", "f4", "f4", [[1e-30, INF]], [0, INF]),  # times 2**-34
    ("mul.f32 d, a, 0f3F000000", "f4", "f4", [[2**-126, -0.0]], [2**-127, -0.0]),
    ("rcp.rn.f32 d, a", "f4", "f4", [[4, 0]], [0.25, INF]),
    ("div.full.f32 d, a, 0f40000000", "f4", "f4", [[3]], [1.5]),
    ("sqrt.approx.f32 d, a", "f4", "f4", [[2]], [np.sqrt(np.float32(2))]),
    ("rsqrt.approx.ftz.f32 d, a", "f4", "f4", [[4]], [0.5]),
    ("ex2.approx.ftz.f32 d, a", "f4", "f4", [[0.5, -1, -INF]], [np.float32(2**0.5), 0.5, 0]),
    ("cvt.rn.f16x2.f32 d, a, b", "u4", "f4 f4", [[1, 65520], [-2, 2**-25]], [0x3C00C000, 0x7C << 24]),
    ("cvt.rn.bf16x2.f32 d, a, b", "u4", "f4 f4", [[1], [-2]], [0x3F80C000]),
    ("cvt.rn.bf16.f32 d, a", "u2", "u4", [BF16_TIES], [16256, 16258, 16257, 32640, 32640, 32767]),
    ("cvt.f32.bf16 d, a", "f4", "u2", [[0x3F80, 0xC000]], [1, -2]),
    ("cvt.f32.f16 d, a", "f4", "f2", [[1.5, 2**-24, INF]], [1.5, 2**-24, INF]),
    ("cvt.u64.u32 d, a", "u8", "i4", [[300, -1]], [300, MAX]),
    ("cvt.s64.s32 d, a", "i8", "i4", [[300, -1]], [300, -1]),
    ("cvt.s16.s32 d, a", "i4", "i4", [[70000, -1]], [70000 - 65536, -1]),
    ("cvt.rn.f32.s32 d, a", "f4", "i4", [[300, -1, 2**31 - 1]], [300, -1, 2**31]),
    ("mov.b32 {%h1, %h2}, a; mov.b32 d, {%h2, %h1}", "u4", "u4", [[0x11223344]], [0x33441122]),
    ("mov.b64 d, {a, 7}", "u8", "u4", [[9]], [7 << 32 | 9]),
    ("mov.b64 {_, d}, a", "u4", "u8", [[5 << 32 | 9]], [5]),
    ("cvt.u16.u32 d, %laneid", "u2", "u4", [[0, 0, 0]], [0, 1, 2]),
]  # fmt: skip


@pytest.mark.parametrize(("instruction", "dtype", "kinds", "inputs", "expected"), CASES)
def test_instructions_compute_what_the_manual_says(instruction, dtype, kinds, inputs, expected):
    arrays = [np.array(x, kind) for x, kind in zip(inputs, kinds.split(), strict=True)]
    ours, expected = compute(instruction, dtype, *arrays), np.array(expected, dtype)
    np.testing.assert_array_equal(ours, expected)
    if ours.dtype.kind == "f":
        np.testing.assert_array_equal(
            np.signbit(ours[expected != 0]), np.signbit(expected[expected != 0])
        )


def words(seed, dtype):
    limits = np.iinfo(dtype)
    numbers = np.random.default_rng(seed).integers(limits.min, limits.max, 32, dtype, True)
    numbers[:4] = [limits.min, limits.max, 0, 1]
    return numbers


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_integers_wrap_at_their_width(kind):
    bits = int(kind[1:])
    dtype, wide = (f"{'i' if kind[0] == 's' else 'u'}{n // 8}" for n in (bits, 2 * bits))
    numbers = [words(seed, dtype) for seed in range(3)]
    exact = {
        "add": (2, lambda a, b, c: a + b),
        "sub": (2, lambda a, b, c: a - b),
        "mul.lo": (2, lambda a, b, c: a * b),
        "mul.hi": (2, lambda a, b, c: a * b >> bits),
        "mul.wide": (2, lambda a, b, c: a * b),
        "mad.lo": (3, lambda a, b, c: a * b + c),
    }
    for name, (count, function) in exact.items():
        if f"{name}.{kind}" in OPERATIONS:
            out = np.dtype(wide if name == "mul.wide" else dtype)
            text = f"{name}.{kind} d, {', '.join('abc'[:count])}"
            results = [function(*map(int, x)) for x in zip(*numbers, strict=True)]
            modulus = 2 ** (8 * out.itemsize)
            expected = np.array([x % modulus for x in results], f"u{out.itemsize}").view(out)
            assert compute(text, out, *numbers[:count]).tolist() == expected.tolist(), text


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields_are_cut_out_and_extended(kind):
    bits, rng = int(kind[1:]), np.random.default_rng(6)
    a, (position, length) = words(5, f"u{bits // 8}"), rng.integers(0, bits + 8, (2, 32), np.uint32)
    position[:3], length[:3] = [0, 0, bits - 1], [0, bits, 9]

    def field(x, p, n):
        sign = x >> min(p + n - 1, bits - 1) & 1 if kind[0] == "s" and n else 0
        bit = [x >> p + i & 1 if i < n and p + i < bits else sign for i in range(bits)]
        return sum(value << i for i, value in enumerate(bit))

    expected = [field(*map(int, x)) for x in zip(a, position, length, strict=True)]
    assert compute(f"bfe.{kind} d, a, b, c", a.dtype, a, position, length).tolist() == expected


def test_lop3_follows_its_truth_table():
    a, b, c = (words(seed, "u4") for seed in range(3))
    assert (compute("lop3.b32 d, a, b, c, 0xCA", "u4", a, b, c) == (a & b | ~a & c)).all()
    assert (compute("lop3.b32 d, a, b, c, 0x96", "u4", a, b, c) == a ^ b ^ c).all()


# Control flow


def test_blocks_have_indices_and_shared_memory_of_their_own(monkeypatch):
    text = """
    st.shared.u32 [%r22], %r0; bar.sync 0; ld.shared.u32 %r5, [%r22];
    mov.u32 %r1, %ctaid.z; mov.u32 %r2, %nctaid.y; mov.u32 %r3, %ctaid.y; mad.lo.u32 %r1, %r1, %r2, %r3;
    mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.x; mad.lo.u32 %r1, %r1, %r2, %r3;
    mov.u32 %r4, %ntid.x; mad.lo.u32 %r1, %r1, %r4, %r5;
    mad.wide.u32 %rd1, %r1, 4, %rd0; st.global.u32 [%rd1], %r1;
    """
    for together in (4096, 128, 64):  # all blocks, two rounds of which one is not full, each alone
        monkeypatch.setattr(ptx_machine, "TOGETHER", together)
        out = np.zeros(5 * 3 * 64, "u4")
        launch(text, out, grid=(5, 3, 1), block=64)
        assert out.tolist() == list(range(out.size))


def test_divergent_threads_meet_again():
    out = np.zeros(64, "u4")
    text = """
    mov.u32 %r1, 0; mov.u32 %r2, 0; and.b32 %r3, %r0, 3;
    LOOP: setp.ge.u32 %p1, %r2, %r3; @%p1 bra DONE;
    add.u32 %r1, %r1, %r0; add.u32 %r2, %r2, 1; bra.uni LOOP;
    DONE: shfl.sync.bfly.b32 %r1|%p2, %r1, 1, 31, -1;
    add.s64 %rd1, %rd0, %rd20; @%p2 st.global.u32 [%rd1], %r1;
    """
    statistics = launch(text, out, block=64)
    i = np.arange(64) ^ 1
    assert out.tolist() == (i * (i & 3)).tolist()
    assert statistics.by_opcode["shfl.sync.bfly.b32"] == 2
    assert statistics.by_opcode["bra.uni"] == 2 * 3


def test_an_endless_loop_ends(monkeypatch):
    monkeypatch.setattr(ptx_machine, "STEP_LIMIT", 100)
    fails("not ended", "LOOP: bra LOOP;")


def test_a_register_must_be_written_before_it_is_read():
    fails("register %f1 read before it was written", "add.f32 %f2, %f1, %f1;")
    text = "setp.lt.u32 %p1, %r0, 9; @%p1 mov.u32 %r1, 5; {} add.u32 %r2, %r1, 1;"
    launch(text.format("@%p1"))
    fails(r"%r1 read before .* thread 9\)", text.format(""))
    fails(r"%p1 read before .* thread 0\)", "@%p1 mov.u32 %r1, 5;")


def test_a_barrier_waits_for_the_threads_that_live():
    out = np.zeros(64, "u4")
    text = """
    setp.ge.u32 %p1, %r0, 64; @%p1 exit;
    st.shared.u32 [%r22], %r0; bar.sync 0; xor.b32 %r1, %r22, 128; ld.shared.u32 %r2, [%r1];
    add.u64 %rd4, %rd0, %rd20; st.global.u32 [%rd4], %r2;
    """
    launch(text.replace("%r22, 128", "%r22, 0"), out, block=96)
    assert out.tolist() == list(range(64))
    fails("divergent barrier", "setp.lt.u32 %p1, %r0, 9; @%p1 bar.sync 0; mov.u32 %r1, 0;")


# Global memory


def test_global_accesses_are_inside_an_array_and_aligned():
    out, table = np.zeros(32, "u4"), np.arange(40, dtype="u4")
    text = """
    add.u64 %rd2, %rd1, %rd20; ld.global.u32 %r1, [%rd2+{}];
    add.u64 %rd3, %rd0, %rd20; st.global.u32 [%rd3], %r1;
    """
    launch(text.format(32), out, table)
    assert out.tolist() == list(range(8, 40))
    fails(r"outside every array .*thread 31, address 0x", text.format(36), out, table)
    fails(r"outside every array .*thread 0,", text.format(-4), out, table)
    fails("not aligned to 4", text.format(2), out, table)
    out.flags.writeable = False
    fails("read-only", text.format(0), out, table)


def test_vectors_move_and_narrow_loads_extend():
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
    body = """
    ld.global.f32 %f1, [%rd1]; cvt.rn.f32.s32 %f2, %a2; mov.b32 %f3, %a3;
    fma.rn.f32 %f1, %f1, %f2, %f3; add.u64 %rd2, %rd0, %rd20; st.global.f32 [%rd2], %f1;
    """
    text = entry(body, "u64", "u64", "u32", "f32")
    arguments = [out, hidden.ctypes.data, -5, np.float32(0.5)]
    run(text, (1, 1, 1), 32, arguments, memory=[hidden])
    assert (out == -14.5).all()
    with pytest.raises(MachineError, match="outside every array"):
        run(text, (1, 1, 1), 32, arguments)
    with pytest.raises(ValueError, match="3 arguments for 4 parameters"):
        run(text, (1, 1, 1), 32, arguments[:3])


# Shared memory

FILL = "st.shared.u32 [%r22], 0;"
NEIGHBOUR = "sub.u32 %r1, %r22, %r21; xor.b32 %r1, %r1, {}; add.u32 %r1, %r1, %r21;"
OTHER_WARP, OTHER_LANE = NEIGHBOUR.format(128), NEIGHBOUR.format(4)  # %r1: another thread's word
READ, WRITE = "ld.shared.u32 %r2, [%r1];", "st.shared.u32 [%r22], %r0;"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("st.shared.u32 [%r22+4], %r0;", r"outside its 256 bytes .*thread 63,"),
        ("st.shared.u32 [%r22+-4], %r0;", r"outside its 256 bytes .*thread 0,"),
        ("st.shared.u32 [%r22+2], %r0;", "not aligned to 4"),
        ("ld.shared.u32 %r1, [%r22];", "never written"),
        ("st.shared.u32 [%r21], 5;", "write together with another thread"),
        (f"{OTHER_WARP} {FILL} bar.warp.sync -1; {READ}", "of what another warp wrote, no bar"),
    ],
)
def test_shared_memory_is_bounded_aligned_and_poisoned(text, what):
    fails(what, text, block=64)


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [(WRITE, READ, "read of what"), (WRITE, WRITE.replace("22", "1"), "write of what"), (READ, WRITE, "write over")],
)  # fmt: skip
@pytest.mark.parametrize(
    ("other", "sync"), [(OTHER_WARP, "bar.sync 0;"), (OTHER_LANE, "bar.warp.sync -1;")]
)
def test_two_accesses_race_unless_a_sync_is_between(first, second, what, other, sync):
    text = f"{other} {FILL} bar.sync 0; {first} {{}} {second}"
    launch(text.format(sync), block=64, grid=(2, 1, 1))
    launch(text.format("bar.sync 0;"), block=64)
    fails(f"race: {what}", text.format(""), block=64, grid=(2, 1, 1))


def test_a_write_races_with_every_lane_that_read():
    text = "setp.eq.u32 %p1, %r0, {}; {} {} bar.sync 0; {} {} @%p1 st.shared.u32 [%r21], 1;"
    together, one_by_one = "ld.shared.u32 %r2, [%r21];", "@%p1 ld.shared.u32 %r2, [%r21];"
    for lane in (0, 13, 31):
        launch(text.format(lane, "", FILL, together, "bar.warp.sync -1;"))
        launch(text.format(lane, "", FILL, one_by_one, ""))
        fails("another lane of the warp read", text.format(lane, "", FILL, together, ""))


def test_each_round_of_blocks_finds_shared_memory_poisoned(monkeypatch):
    text = "mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [%r22], 1;"
    for together in (32, 64):
        monkeypatch.setattr(ptx_machine, "TOGETHER", together)
        fails(
            r"never written \(block \(1, 0, 0\)",
            text + "ld.shared.u32 %r2, [%r22];",
            grid=(2, 1, 1),
        )


# Asynchronous copies

COPY = """
shl.b64 %rd3, %rd20, 2; add.u64 %rd3, %rd3, %rd0; shl.b32 %r3, %r20, 2; add.u32 %r3, %r3, %r21;
cp.async.cg.shared.global [%r3], [%rd3], 16;
"""
COMMIT, WAIT = "cp.async.commit_group;", "cp.async.wait_group 0;"
AGAIN = "cp.async.cg.shared.global [%r3+1024], [%rd3], 16;" + COMMIT
LATE = "mov.u32 %r5, 77; st.global.u32 [%rd3+8], %r5;"
FETCH = "ld.shared.u32 %r4, [%r3+8]; add.u64 %rd4, %rd1, %rd20; st.global.u32 [%rd4], %r4;"
OTHERS = """
sub.u32 %r5, %r3, %r21; xor.b32 %r5, %r5, 512; add.u32 %r5, %r5, %r21; ld.shared.u32 %r4, [%r5];
"""
ONE_LEFT = "cp.async.wait_group 1;"


def copied(text):
    source, out = np.arange(256, dtype="u4"), np.zeros(64, "u4")
    launch(COPY + text, source, out, block=64, shared=2048)
    return out.tolist()


def test_a_copy_arrives_with_the_wait_and_not_earlier():
    for text in (COMMIT + WAIT, "cp.async.wait_all;", COMMIT + AGAIN + ONE_LEFT):
        assert copied(text + FETCH) == list(range(2, 256, 4))
    assert copied(COMMIT + LATE + WAIT + FETCH) == [77] * 64
    copied(COMMIT + WAIT + "bar.sync 0;" + OTHERS)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        *((wait + FETCH, "not filled") for wait in ("", COMMIT, WAIT, COMMIT + ONE_LEFT)),
        (COMMIT + "bar.sync 0;" + FETCH, "not filled"),
        (COMMIT + AGAIN + ONE_LEFT + FETCH.replace("+8", "+1024"), "not filled"),
        (COMMIT + "bar.sync 0; st.shared.u32 [%r3], %r0;", "write of shared memory that a cp"),
        (COMMIT + WAIT + OTHERS, "race: read of what another warp wrote"),
        (COMMIT + WAIT + "bar.sync 0;" + OTHERS + COPY, "race: write over what another warp read"),
        (COPY.replace("3]", "3+8]"), "not aligned to 16"),
        (COPY.replace("%rd3]", "%rd3+1024]"), "outside every array"),
    ],
)
def test_a_copy_must_be_waited_for_and_seen_after_a_barrier(text, what):
    with pytest.raises(MachineError, match=what):
        copied(text)


def test_a_copy_of_no_bytes_writes_zeros_and_reads_nothing():
    source, out = np.ones(64, "u4"), np.zeros((32, 4), "u4")
    text = """
    shl.b64 %rd3, %rd20, 2; add.u64 %rd4, %rd3, %rd0; shl.b32 %r3, %r20, 2; add.u32 %r3, %r3, %r21;
    setp.lt.u32 %p1, %r0, {}; selp.u32 %r4, {}, 0, %p1;
    cp.async.cg.shared.global [%r3], [%rd4], 16, %r4; cp.async.wait_all;
    ld.shared.v4.u32 {{%r5, %r6, %r7, %r8}}, [%r3];
    add.u64 %rd5, %rd3, %rd1; st.global.v4.u32 [%rd5], {{%r5, %r6, %r7, %r8}};
    """
    launch(text.format(16, 16), source, out, shared=512)
    assert out.sum(axis=1).tolist() == [4] * 16 + [0] * 16
    fails("outside every array", text.format(17, 16), source, out, shared=512)
    fails("neither 0 nor 16", text.format(16, 8), source, out, shared=512)


# Warps


def test_shuffles_stay_in_their_segment():
    value, distance = words(3, "u4"), np.array([0, 1, 7, 8, 16, 31] * 5 + [0, 0], "u4")
    for clamp, width in ((31, 32), (0x181F, 8)):
        text = f"shfl.sync.bfly.b32 d|%p1, a, b, {clamp}, -1; @!%p1 add.u32 d, d, 1"
        for lane, ours in enumerate(compute(text, "u4", value, distance).tolist()):
            source = lane ^ int(distance[lane])
            inside = source <= lane // width * width + width - 1
            assert ours == (int(value[source]) if inside else (int(value[lane]) + 1) % 2**32)


MATRIX = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r21];"
MULTIPLY = (
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, "
    "{%r0, %r0, %r0, %r0}, {%r0, %r0}, {%f4, %f4, %f4, %f4};"
)


@pytest.mark.parametrize(
    "text", ["shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;", "bar.warp.sync -1;", MATRIX, MULTIPLY]
)
def test_a_warp_instruction_needs_all_its_lanes(text):
    text = f"mov.f32 %f4, 0f00000000; {FILL} bar.sync 0; setp.lt.u32 %p1, %r0, {{}}; @%p1 {text}"
    launch(text.format(32), block=64)
    fails("divergent collective", text.format(40), block=64)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix_gives_each_lane_its_pair(trans, count):
    tiles, out = np.arange(count * 64, dtype="u2").reshape(count, 8, 8), np.zeros((count, 32), "u4")
    names = [f"%r{i + 1}" for i in range(count)]
    text = (
        f"add.u64 %rd2, %rd0, %rd20; add.u64 %rd3, %rd1, %rd20; and.b32 %r9, %r0, {8 * count - 1};"
    )
    for i in range(count):
        text += f"ld.global.u32 %r8, [%rd2+{128 * i}]; st.shared.u32 [%r22+{128 * i}], %r8;"
    load = f"mad.lo.u32 %r9, %r9, 16, %r21; ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16"
    load += f" {{{', '.join(names)}}}, [%r9];"
    stores = "".join(f"st.global.u32 [%rd3+{128 * i}], {name};" for i, name in enumerate(names))
    statistics = launch(text + "bar.warp.sync -1;" + load + stores, tiles, out, shared=512)
    expected = tiles.swapaxes(1, 2) if trans else tiles
    assert out.view("u2").tolist() == expected.reshape(count, 64).tolist()
    assert statistics.shared_bank_conflicts == 0
    fails("race: read of what another lane", text + load + stores, tiles, out, shared=512)


def test_ldmatrix_counts_bank_conflicts():
    text = """
    mov.u32 %r1, 0;
    LOOP: mad.lo.u32 %r2, %r1, 128, %r22; st.shared.u32 [%r2], %r1; add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 8; @%p1 bra LOOP;
    bar.sync 0; and.b32 %r3, %r0, 7; mad.lo.u32 %r3, %r3, 128, %r21;
    """
    assert launch(text + MATRIX.replace("21", "3"), shared=1024).shared_bank_conflicts == 7


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mma_multiplies_the_fragments_of_the_manual(kind):
    rng, lane = np.random.default_rng(0), np.arange(32)
    a, b = rng.integers(-8, 9, (16, 16)).astype("f4"), rng.integers(-8, 9, (16, 8)).astype("f4")
    c = rng.integers(-99, 99, (16, 8)).astype("f4")
    group, place = lane // 4, lane % 4 * 2

    def pack(low, high):
        if kind == "f16":
            return np.stack([low, high], 1).astype("f2").view("u4")[:, 0]
        return low.view("u4") >> 16 | high.view("u4")

    rows, depths = [group + 8 * (i % 2) for i in range(4)], [place + 8 * (i // 2) for i in range(4)]
    numbers = [pack(a[row, k], a[row, k + 1]) for row, k in zip(rows, depths, strict=True)]
    numbers += [pack(b[place + 8 * i, group], b[place + 8 * i + 1, group]) for i in range(2)]
    numbers += [c[group + 8 * (i // 2), place + i % 2].view("u4") for i in range(4)]
    text = "add.u64 %rd2, %rd0, %rd20; add.u64 %rd3, %rd1, %rd20;"
    text += "".join(f"ld.global.u32 %r{i}, [%rd2+{128 * i}];" for i in range(10))
    text += "".join(f"mov.b32 %f{i}, %r{6 + i};" for i in range(4))
    text += f"""mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{%f0, %f1, %f2, %f3}},
        {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{%f0, %f1, %f2, %f3}};"""
    text += "".join(f"st.global.f32 [%rd3+{128 * i}], %f{i};" for i in range(4))
    out = np.zeros((4, 32), "f4")
    launch(text, np.stack(numbers), out)
    for i in range(4):
        assert out[i].tolist() == (a @ b + c)[group + 8 * (i // 2), place + i % 2].tolist()


# The text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("wgmma.fence.sync.aligned;", "unknown opcode wgmma.fence.sync.aligned"),
        ("add.sat.s32 %r1, %r0, %r0;", "unknown opcode add.sat.s32"),
        ("atom.global.add.u32 %r1, [%rd0], 2;", "unknown opcode atom.global.add.u32"),
        ("bra NOWHERE;", "cannot read the operands of bra: 'NOWHERE'"),
        ("add.u32 %r1, %r0, %r99;", "cannot read the operands of add.u32: .*%r99"),
        ("bar.sync 1;", "only barrier 0"),
        ("{ add.u32 %r1, %r0, 1; }", "cannot read `{ add.u32"),
        (".local .align 4 .b8 depot[8];", "cannot read `.local"),
    ],
)
def test_what_is_not_known_is_named(text, what):
    fails(what, text)


def test_a_fault_names_kernel_line_text_block_thread_and_address():
    body = "setp.eq.u32 %p1, %r0, 2;\n// skipped\n@%p1 ld.global.u32 %r1, [8];"
    line = 1 + entry(body)[: entry(body).index("@%p1")].count("\n")
    what = rf"^kernel, PTX line {line}, `@%p1 ld.global.u32 %r1, \[8\]`: .*"
    fails(what + r"\(block \(0, 0, 0\), thread 2, address 0x8\)$", body, grid=(1, 2, 1))


def test_a_block_has_whole_warps_and_no_more_than_declared():
    fails("128 threads, declared 96", "", block=128)
    with pytest.raises(ValueError, match="multiple of 32"):
        launch("", block=40)


def test_parameters_have_the_forms_of_newer_compilers():
    out = np.zeros(1, "f4")
    text = """.entry k(.param .u64 .ptr .global .align 16 where, .param .f32 x) .reqntid 32 {
        .reg .f32 f; .reg .b64 %rd<2>; .pragma "nounroll";
        ld.param.f32 f, [x]; ld.param.u64 %rd1, [where]; st.global.f32 [%rd1], f; }"""
    run(text, (1, 1, 1), 32, [out, 1.5])
    assert out[0] == 1.5
