"""The PTX machine computes what the PTX manual says, and sees what a kernel must not do."""

import numpy as np
import ptx_machine
import pytest
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
.maxntid 64, 1, 1
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


def launch(body, *arrays, block=64, grid=(1, 1, 1), shared=256):
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
    launch("\n".join(lines), *arrays, out, block=32)
    return out[: max(map(len, inputs))]


# Arithmetic

P = "selp.u32 d, 1, 0, %p1"
BF16_TIES = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x7F800001]
CASES = [  # instruction, type of d, types and values of a, b, c, values of d
    ("add.u16 d, a, b", "u2", "u2 u2", [[65535], [2]], [1]),
    ("sub.s64 d, a, b", "i8", "i8 i8", [[-(2**63)], [1]], [2**63 - 1]),
    ("mul.lo.s32 d, a, b", "i4", "i4 i4", [[2**31 - 1, -3], [3, 5]], [2**31 - 3, -15]),
    ("mul.hi.s32 d, a, b", "i4", "i4 i4", [[2**31 - 1, -3], [4, 5]], [1, -1]),
    ("mul.hi.u32 d, a, b", "u4", "u4 u4", [[MAX], [MAX]], [MAX - 1]),
    ("mul.wide.s32 d, a, b", "i8", "i4 i4", [[-(2**31)], [2**31 - 1]], [-(2**62) + 2**31]),
    ("mul.wide.u16 d, a, b", "u4", "u2 u2", [[65535], [65535]], [65535**2]),
    ("mad.lo.u32 d, a, b, 9", "u4", "u4 u4", [[MAX], [3]], [6]),
    ("mad.wide.u32 d, a, b, 9", "u8", "u4 u4", [[MAX], [3]], [3 * MAX + 9]),
    ("div.s32 d, a, b", "i4", "i4 i4", [[7, -7, 7, -7], [2, 2, -2, -2]], [3, -3, -3, 3]),
    ("rem.s32 d, a, b", "i4", "i4 i4", [[7, -7, 7, -7], [2, 2, -2, -2]], [1, -1, 1, -1]),
    ("shl.b32 d, a, b", "u4", "u4 u4", [[MAX], [0, 31, 32, MAX]], [MAX, 2**31, 0, 0]),
    ("shr.u32 d, a, b", "u4", "u4 u4", [[MAX], [0, 31, 32, MAX]], [MAX, 1, 0, 0]),
    ("shr.s32 d, a, b", "i4", "i4 u4", [[-8], [0, 1, 31, 32, MAX]], [-8, -4, -1, -1, -1]),
    ("shf.l.wrap.b32 d, a, b, 36", "u4", "u4 u4", [[0x12345678], [0x9ABCDEF0]], [0xABCDEF01]),
    ("shf.r.wrap.b32 d, a, b, 36", "u4", "u4 u4", [[0x12345678], [0x9ABCDEF0]], [0x01234567]),
    ("bfi.b32 d, a, b, 4, 8", "u4", "u4 u4", [[0x2B, MAX], [MAX, 0]], [0xFFFFF2BF, 0xFF0]),
    ("bfi.b32 d, a, b, 28, 8", "u4", "u4 u4", [[0x2B, MAX], [MAX, 0]], [0xBFFFFFFF, 0xF0000000]),
    ("bfe.u32 d, a, b, 8", "u4", "u4 u4", [[0xABCDEF89], [0, 4, 28, 32]], [0x89, 0xF8, 0xA, 0]),
    ("bfe.s32 d, a, b, 8", "i4", "u4 u4", [[0xABCDEF89], [0, 4, 28, 32]], [0x89 - 256, -8, -6, -1]),
    ("bfe.s64 d, a, 60, b", "i8", "u8 u4", [[9 << 60], [0, 1, 4, 9]], [0, -1, -7, -7]),
    ("lop3.b32 d, a, b, 0xFF00, 0xCA", "u4", "u4 u4", [[0x0F0F0], [0x33333]], [0x3F30 & 0xFFFFF]),
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
    ("cvt.rn.f16x2.f32 d, a, b", "u4", "f4 f4", [[1, 65520], [-2, 0]], [0x3C00C000, 0x7C000000]),
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


# Control flow


def test_blocks_have_indices_and_shared_memory_of_their_own(monkeypatch):
    text = """
    st.shared.u32 [%r22], %r0; bar.sync 0; ld.shared.u32 %r5, [%r22];
    mov.u32 %r1, %ctaid.y; mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.x;
    mad.lo.u32 %r1, %r1, %r2, %r3; mov.u32 %r4, %ntid.x; mad.lo.u32 %r1, %r1, %r4, %r5;
    mad.wide.u32 %rd1, %r1, 4, %rd0; st.global.u32 [%rd1], %r1;
    """
    for together in (4096, 128, 64):  # all blocks, rounds of which one is not full, each alone
        monkeypatch.setattr(ptx_machine, "TOGETHER", together)
        out = np.zeros(5 * 3 * 64, "u4")
        launch(text, out, grid=(5, 3, 1))
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
    statistics = launch(text, out)
    i = np.arange(64) ^ 1
    assert out.tolist() == (i * (i & 3)).tolist()
    assert statistics.by_opcode["shfl.sync.bfly.b32"] == 2
    assert statistics.by_opcode["bra.uni"] == 2 * 3


def test_an_endless_loop_ends(monkeypatch):
    monkeypatch.setattr(ptx_machine, "STEP_LIMIT", 100)
    fails("not ended", "LOOP: bra LOOP;")


def test_a_barrier_does_not_wait_for_threads_that_have_ended():
    text = "setp.ge.u32 %p1, %r0, 32; @%p1 exit; bar.sync 0; st.global.u32 [%rd0], %r20;"
    out = np.zeros(1, "u4")
    launch(text, out)
    assert out == [4 * 31]


# Memory


def test_vectors_move_and_narrow_loads_extend():
    source, out = np.arange(256, dtype="u1"), np.zeros((32, 4), "i4")
    text = """
    shl.b64 %rd2, %rd20, 1; add.u64 %rd2, %rd2, %rd0;
    shl.b64 %rd3, %rd20, 2; add.u64 %rd3, %rd3, %rd1;
    ld.global.nc.v2.u32 {%r1, %r2}, [%rd2]; ld.global.s8 %r3, [%rd2+7]; ld.global.u16 %r4, [%rd2+2];
    st.global.v4.u32 [%rd3], {%r1, %r2, %r3, %r4};
    """
    launch(text, source, out, block=32)
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


# Pieces of kernels: %rd2 and %rd3 are the thread's 4 and 16 bytes of the source, %rd4 its word of
# the output; %r22 and %r3 its 4 and 16 bytes of shared memory, %r1 another thread's word there.
PLACES = """
add.u64 %rd2, %rd0, %rd20; add.u64 %rd4, %rd1, %rd20;
shl.b64 %rd3, %rd20, 2; add.u64 %rd3, %rd3, %rd0; shl.b32 %r3, %r20, 2; add.u32 %r3, %r3, %r21;
"""
OTHER = "sub.u32 %r1, %r22, %r21; xor.b32 %r1, %r1, {}; add.u32 %r1, %r1, %r21;"
OTHER_WARP, OTHER_LANE = OTHER.format(128), OTHER.format(4)
FILL, SYNC, SYNC_WARP = "st.shared.u32 [%r22], 0;", "bar.sync 0;", "bar.warp.sync -1;"
READ, WRITE = "ld.shared.u32 %r2, [%r1];", "st.shared.u32 [%r22], %r0;"
WRITE_OTHER, ALL_READ = "st.shared.u32 [%r1], %r0;", "ld.shared.u32 %r2, [%r21];"
ONE_WRITES = "setp.eq.u32 %p1, %r0, {}; @%p1 st.shared.u32 [%r21], 1;"
COPY, COMMIT = "cp.async.cg.shared.global [%r3], [%rd3], 16;", "cp.async.commit_group;"
AGAIN = COPY.replace("%r3", "%r3+1024") + COMMIT
WAIT, WAIT_OLDER = "cp.async.wait_group 0;", "cp.async.wait_group 1;"
FETCH = "ld.shared.u32 %r4, [%r3+8]; st.global.u32 [%rd4], %r4;"
FETCH_OTHER = "xor.b32 %r5, %r20, 128; mad.lo.u32 %r5, %r5, 4, %r21; ld.shared.u32 %r4, [%r5];"
MATRIX = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r21];"
MULTIPLY = (
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, "
    "{%r0, %r0, %r0, %r0}, {%r0, %r0}, {0f00000000, 0f00000000, 0f00000000, 0f00000000};"
)
OWN_WARP = "and.b32 %r6, %r20, 128; add.u32 %r6, %r6, %r21;"
SHUFFLE = "shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;"
SOME, GUARD = "setp.lt.u32 %p1, %r0, 40;", "@%p1 "

ONE_READS = "setp.eq.u32 %p1, %r0, {}; @%p1 " + ALL_READ
OWN_ROWS = "st.shared.v4.u32 [%r3], {%r0, %r0, %r0, %r0};"
OWN_WRITE = "@%p1 st.shared.u32 [%r21], 1;"
WARP_READS = f"{FILL} {SYNC} setp.lt.u32 %p2, %r0, 32; @%p2 {ALL_READ}"

RIGHT = [
    "ld.global.u32 %r1, [%rd2+768]; st.global.u32 [%rd4], %r1;",
    "setp.lt.u32 %p1, %r0, 9; @%p1 mov.u32 %r1, 5; @%p1 add.u32 %r2, %r1, 1;",
    "st.shared.u32 [%r22+1792], %r0;",
    *(
        f"{other} {FILL} {SYNC} {first} {sync} {second}"
        for other, sync in ((OTHER_LANE, SYNC_WARP), (OTHER_LANE, SYNC), (OTHER_WARP, SYNC))
        for first, second in ((WRITE, READ), (WRITE, WRITE_OTHER), (READ, WRITE))
    ),
    WARP_READS + SYNC + ONE_WRITES.format(9),
    f"{FILL} {SYNC} {ONE_WRITES.format(9)} @%p1 {ALL_READ} {OWN_WRITE}",
    COPY + COMMIT + WAIT + SYNC + FETCH_OTHER,
    *(f"{FILL} {SYNC} {x}" for x in (SHUFFLE, SYNC_WARP, MATRIX, MULTIPLY)),
]
WRONG = [
    ("add.f32 %f2, %f1, %f1;", "register %f1 read before it was written"),
    ("setp.lt.u32 %p1, %r0, 9; @%p1 mov.u32 %r1, 5; not.b32 %r2, %r1;", r"%r1 read .* thread 9\)"),
    ("@%p1 mov.u32 %r1, 5;", r"%p1 read before .* thread 0\)"),
    (SOME + GUARD + SYNC + "mov.u32 %r1, 0;", "divergent barrier: .* thread 40"),
    *(
        (FILL + SYNC + SOME + GUARD + x, "divergent collective: .* thread 40")
        for x in (SHUFFLE, SYNC_WARP, MATRIX, MULTIPLY)
    ),
    ("ld.global.u32 %r1, [%rd2+772];", "outside every array .*thread 63, address 0x"),
    ("ld.global.u32 %r1, [%rd2+-4];", "outside every array .*thread 0,"),
    ("ld.global.u32 %r1, [%rd2+2];", "not aligned to 4"),
    ("st.global.u32 [%rd2], %r0;", "read-only"),
    ("st.shared.u32 [%r22+1796], %r0;", "outside its 2048 bytes .*thread 63,"),
    ("st.shared.u32 [%r22+-4], %r0;", "outside its 2048 bytes .*thread 0,"),
    ("st.shared.u32 [%r22+2], %r0;", "not aligned to 4"),
    ("ld.shared.u32 %r1, [%r22];", "never written"),
    (OWN_WARP + FILL + MATRIX.replace("21", "6"), "read of what another lane of the warp wrote"),
    ("st.shared.u32 [%r21], 5;", "write together with another thread"),
    *(
        (f"{other} {FILL} {SYNC} {first} {sync} {second}", f"race: {what}")
        for other, sync in ((OTHER_LANE, ""), (OTHER_WARP, ""), (OTHER_WARP, SYNC_WARP))
        for first, second, what in (
            (WRITE, READ, "read of what another .* wrote"),
            (WRITE, WRITE_OTHER, "write of what another .* wrote"),
            (READ, WRITE, "write over what another .* read"),
        )
    ),
    *((WARP_READS + ONE_WRITES.format(lane), "another lane") for lane in (0, 13, 31)),
    (f"{FILL} {SYNC} {ONE_READS.format(9)} {ONE_READS.format(10)} {OWN_WRITE}", "another lane"),
    (OWN_ROWS + MATRIX.replace("21", "3"), "read of what another lane of the warp wrote"),
    (SHUFFLE.replace("-1", "0xffff"), "some lanes only"),
    *((COPY + x + FETCH, "cp.async has not filled") for x in ("", COMMIT, WAIT, COMMIT + SYNC)),
    (COPY + COMMIT + WAIT_OLDER + FETCH, "cp.async has not filled"),
    (COPY + COMMIT + AGAIN + WAIT_OLDER + FETCH.replace("+8", "+1032"), "cp.async has not filled"),
    (COPY + COMMIT + SYNC + FILL.replace("%r22", "%r3"), "write of shared memory that a cp.async"),
    (COPY + COMMIT + WAIT + FETCH_OTHER, "race: read of what another warp wrote"),
    (COPY + WAIT.replace("group 0", "all") + SYNC + FETCH_OTHER + COPY, "write over what another"),
    (COPY.replace("%r3", "%r3+8"), "not aligned to 16"),
    (COPY.replace("%rd3", "%rd3+16"), "outside every array .* thread 63,"),
    (COPY.replace("16;", "16, 8;"), "neither 0 nor 16"),
    ("wgmma.fence.sync.aligned;", "unknown opcode wgmma.fence.sync.aligned"),
    ("add.sat.s32 %r1, %r0, %r0;", "unknown opcode add.sat.s32"),
    ("atom.global.add.u32 %r1, [%rd0], 2;", "unknown opcode atom.global.add.u32"),
    ("bra NOWHERE;", "cannot read the operands of bra: 'NOWHERE'"),
    ("add.u32 %r1, %r0, %r99;", "cannot read the operands of add.u32: .*%r99"),
    ("bar.sync 1;", "only barrier 0"),
    ("{ add.u32 %r1, %r0, 1; }", "cannot read `{ add.u32"),
    (".local .align 4 .b8 depot[8];", "cannot read `.local"),
    ("\n// a\nst.global.u32 [8], %r0;", r"^kernel, PTX line 25, `st.global.u32 .8., %r0`: "),
    ("st.global.u32 [8], %r0;", r": .* \(block \(0, 0, 0\), thread 0, address 0x8\)$"),
]  # fmt: skip


def source_and_output():
    source, out = np.arange(256, dtype="u4"), np.zeros(64, "u4")
    source.flags.writeable = False
    return source, out


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_synchronised_and_in_bounds_passes(text):
    launch(PLACES + text, *source_and_output(), shared=2048, grid=(2, 1, 1))


@pytest.mark.parametrize(("text", "what"), WRONG)
def test_what_a_kernel_must_not_do_is_found(text, what):
    fails(what, PLACES + text, *source_and_output(), shared=2048, grid=(2, 1, 1))


@pytest.mark.parametrize("first", ["@%p1 " + FILL, "@%p1 " + COPY + "@%p1 " + COMMIT])
def test_no_block_finds_what_another_wrote_to_shared_memory(first, monkeypatch):
    text = f"{PLACES} mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; {first} @%p1 exit; {WAIT}"
    for together in (64, 128):
        monkeypatch.setattr(ptx_machine, "TOGETHER", together)
        what = r"never written \(block \(1, 0, 0\)"
        fails(
            what, text + FETCH.replace("+8", ""), *source_and_output(), shared=1024, grid=(2, 1, 1)
        )


# Asynchronous copies


@pytest.mark.parametrize("wait", [COMMIT + WAIT, "cp.async.wait_all;", COMMIT + AGAIN + WAIT_OLDER])
def test_a_copy_is_made_when_it_is_waited_for(wait):
    for late, expected in (
        ("", list(range(2, 256, 4))),
        ("st.global.u32 [%rd3+8], 77;", [77] * 64),
    ):
        source, out = np.arange(256, dtype="u4"), np.zeros(64, "u4")
        launch(PLACES + COPY + late + wait + FETCH, source, out, shared=2048)
        assert out.tolist() == expected


def test_a_copy_of_no_bytes_writes_zeros_and_reads_nothing():
    source, out = np.ones(64, "u4"), np.ones(64, "u4")
    text = PLACES + "setp.lt.u32 %p1, %r0, 16; selp.u32 %r4, 16, 0, %p1;"
    launch(text + COPY.replace("16;", "16, %r4;") + COMMIT + WAIT + FETCH, source, out, shared=1024)
    assert out.tolist() == [1] * 16 + [0] * 48


# Warps


def test_shuffles_stay_in_their_segment():
    value, distance = (
        np.arange(100, 132, dtype="u4"),
        np.array([0, 1, 7, 8, 16, 31, 3, 4] * 4, "u4"),
    )
    for clamp, width in ((31, 32), (0x181F, 8)):
        text = f"shfl.sync.bfly.b32 d|%p1, a, b, {clamp}, -1; @!%p1 add.u32 d, d, 1000"
        for lane, ours in enumerate(compute(text, "u4", value, distance).tolist()):
            source = lane ^ int(distance[lane])
            inside = source <= lane // width * width + width - 1
            assert ours == 100 + source if inside else 1100 + lane


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix_gives_each_lane_its_pair(trans, count):
    tiles, out = np.arange(count * 64, dtype="u2").reshape(count, 8, 8), np.zeros((count, 32), "u4")
    names = [f"%r{i + 1}" for i in range(count)]
    text = f"and.b32 %r9, %r0, {8 * count - 1}; mad.lo.u32 %r9, %r9, 16, %r21;" + PLACES
    for i in range(count):
        text += f"ld.global.u32 %r8, [%rd2+{128 * i}]; st.shared.u32 [%r22+{128 * i}], %r8;"
    text += (
        SYNC
        + f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{', '.join(names)}}}, [%r9];"
    )
    text += "".join(f"st.global.u32 [%rd4+{128 * i}], {name};" for i, name in enumerate(names))
    statistics = launch(text, tiles, out, block=32, shared=512)
    expected = tiles.swapaxes(1, 2) if trans else tiles
    assert out.view("u2").tolist() == expected.reshape(count, 64).tolist()
    assert statistics.shared_bank_conflicts == 0


def test_ldmatrix_counts_bank_conflicts():
    text = """
    mov.u32 %r1, 0;
    LOOP: mad.lo.u32 %r2, %r1, 128, %r22; st.shared.u32 [%r2], %r1; add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 8; @%p1 bra LOOP;
    bar.sync 0; and.b32 %r3, %r0, 7; mad.lo.u32 %r3, %r3, 128, %r21;
    """
    text += MATRIX.replace("21", "3")
    assert launch(text, block=32, shared=1024).shared_bank_conflicts == 7


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
    text = PLACES + "".join(f"ld.global.u32 %r{i}, [%rd2+{128 * i}];" for i in range(10))
    text += f"""mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{%f0, %f1, %f2, %f3}},
        {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{%r6, %r7, %r8, %r9}};"""
    text += "".join(f"st.global.f32 [%rd4+{128 * i}], %f{i};" for i in range(4))
    out = np.zeros((4, 32), "f4")
    launch(text, np.stack(numbers), out, block=32)
    for i in range(4):
        assert out[i].tolist() == (a @ b + c)[group + 8 * (i // 2), place + i % 2].tolist()


# The text


def test_a_block_has_whole_warps_and_no_more_than_declared():
    fails("128 threads, declared 64", "", block=128)
    with pytest.raises(ValueError, match="multiple of 32"):
        launch("", block=40)


def test_parameters_have_the_forms_of_newer_compilers():
    out = np.zeros(1, "f4")
    text = """.entry k(.param .u64 .ptr .global .align 16 where, .param .f32 x) .reqntid 32 {
        .reg .f32 f; .reg .b64 %rd<2>; .pragma "nounroll";
        ld.param.f32 f, [x]; ld.param.u64 %rd1, [where]; st.global.f32 [%rd1], f; }"""
    run(text, (1, 1, 1), 32, [out, 1.5])
    assert out[0] == 1.5
