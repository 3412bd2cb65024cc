"""Kernels are compiled once; a later process reads them back; nothing about the cache is an error.

What a fresh process does is tested in one, with the target that compiles fastest.
"""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from minibert.errors import BackendError
from minibert.kernels.backend import get_backend
from minibert.kernels.cache import cache_folder, read_cache, write_cache
from minibert.kernels.cpu import compiler, gemm, simd
from minibert.kernels.cpu.compiler import (
    cache_name,
    compile_program,
    load_program,
)
from minibert.kernels.cpu.packing import UNROLL
from minibert.kernels.cpu.records import JOBS
from minibert.kernels.cpu.targets import TARGETS, find_target, host_targets

PLAIN = TARGETS[-1]
NAME = cache_name("float32", PLAIN)
PATIENCE = 120  # seconds; only something that hangs takes so long

# Multiplies two matrices, and says whether Numba was needed.
MULTIPLY = """
import sys
import numpy as np
from minibert.errors import BackendError
from minibert.kernels.backend import get_backend
from minibert.parameters import Dense

x = np.arange(12, dtype=np.float32).reshape(3, 4)
layer = Dense(np.eye(4, dtype=np.float32), np.ones(4, np.float32))
try:
    cpu = get_backend("cpu")
    y = cpu.linear(x, cpu.prepare_dense(layer))
except BackendError as error:
    print(error)
else:
    assert (y == x + 1).all(), y
    print("compiled" if "numba" in sys.modules else "read")
"""

# Takes memory so that every free page is gigabytes from the next, and from where there is more.
SCATTER = """
import ctypes

PAGE, GIGABYTE = 4096, 2**30
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

def reserve(size):  # PROT_NONE; MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    return libc.mmap(None, size, 0, 0x02 | 0x20 | 0x4000, -1, 0)

blocks = sorted(reserve(4 * GIGABYTE) for _ in range(16))
while reserve(PAGE) > blocks[0]:  # the free pages between libraries, which come first
    pass
for block in blocks[1:]:
    libc.munmap(block, PAGE)
"""


def start(cache, script=MULTIPLY, **variables):
    """A process that runs MULTIPLY, or another script, with this cache folder."""
    settings = {"MINIBERT_CACHE_DIR": str(cache), "MINIBERT_CPU": "plain"} | variables
    mine = {name: os.environ[name] for name in os.environ if not name.startswith("NUMBA_")}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env=mine | settings,
        cwd=Path(sys.executable).parent,  # its folder comes first on sys.path: not ours
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    """What it printed; it must have printed nothing on standard error."""
    try:
        out, error = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, error
    assert not error
    return out.strip()


@pytest.fixture(scope="module")
def code():
    """Machine code of the plain float32 kernels."""
    load_program("float32", PLAIN)
    kept = read_cache(cache_folder() / NAME)
    return kept or compile_program("float32", PLAIN)


# ---------------------------------------------------------------- fresh processes


def test_a_later_process_reads_the_code_and_needs_no_numba(tmp_path, code):
    path = tmp_path / NAME
    write_cache(path, code)
    before = path.stat()
    assert result(start(tmp_path, NUMBA_DISABLE_JIT="1")) == "read"
    after = path.stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


@pytest.mark.skipif(
    sys.platform != "linux" or compiler.host_arch() != "x86_64",
    reason="memory is asked for as Linux does it on x86-64",
)
@pytest.mark.parametrize("found", [pytest.param("compiled", marks=pytest.mark.slow), "read"])
def test_code_is_loaded_in_one_piece_where_free_memory_lies_far_apart(tmp_path, code, found):
    # Ray's workers are such processes: LLVM's own way to find memory aborts them (RuntimeDyldELF,
    # `isInt<32>(RealOffset)`).
    if found == "read":
        write_cache(tmp_path / NAME, code)
    imports = "import minibert.kernels.cpu.functions\n" + ("import numba\n" * (found != "read"))
    assert result(start(tmp_path, imports + SCATTER + MULTIPLY)) == found


@pytest.mark.slow
def test_a_damaged_file_is_compiled_again_and_replaced(tmp_path, code):
    path = tmp_path / NAME
    write_cache(path, code)
    path.write_bytes(path.read_bytes()[:-1])
    assert result(start(tmp_path)) == "compiled"
    assert read_cache(path)


@pytest.mark.slow
def test_without_a_place_for_the_cache_the_kernels_work_all_the_same(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert result(start(file / "folder")) == "compiled"
    assert file.read_bytes() == b""


@pytest.mark.slow
def test_the_command_says_that_it_compiles_and_that_it_has_to_again(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "minibert", "answer", "Who?", "Ada wrote it."],
        env={**os.environ, "MINIBERT_CACHE_DIR": str(file / "folder")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    begin, end, again = done.stderr.splitlines()
    assert begin.startswith("minibert: compiling the float32 kernels for ")
    assert end.startswith(begin.removesuffix(" ..."))
    assert again.startswith(f"minibert: {file / 'folder'} cannot be written")


@pytest.mark.slow
def test_two_processes_that_compile_at_once_leave_one_good_file(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    assert {result(process) for process in both} <= {"compiled", "read"}
    assert [each.name for each in tmp_path.iterdir()] == [NAME]
    assert read_cache(tmp_path / NAME)


def test_with_numba_switched_off_nothing_can_be_compiled(tmp_path):
    printed = result(start(tmp_path, NUMBA_DISABLE_JIT="1"))
    assert "NUMBA_DISABLE_JIT" in printed
    assert "device='reference'" in printed
    assert not list(tmp_path.iterdir())


FOREIGN = {
    "no machine code": lambda code: b"hello",
    "another program's": lambda code: bytes(
        compiler.machine(PLAIN).emit_object(llvm.parse_assembly(""))
    ),
    "another processor's": lambda code: code[:18] + b"\x16\0" + code[20:],
    "cut off": lambda code: code[:-100],
    "sections beyond the end": lambda code: code[: len(code) // 2],
}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other formats")
@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_not_the_programs_code_is_not_run_even_with_the_right_hash(tmp_path, code, what):
    write_cache(tmp_path / NAME, FOREIGN[what](code))
    # It has to be compiled, which is forbidden here, because it takes long.
    assert "NUMBA_DISABLE_JIT" in result(start(tmp_path, NUMBA_DISABLE_JIT="1"))


def test_a_process_compiles_a_program_only_once():
    assert load_program("float32", PLAIN) is load_program("float32", PLAIN)


# ---------------------------------------------------------------- names and folders

SOURCES = sorted(each.name for each in Path(compiler.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("source", [*(f"cpu/{name}" for name in SOURCES), "reference.py"])
def test_a_changed_source_gets_a_name_of_its_own(tmp_path, monkeypatch, source):
    kernels = Path(compiler.__file__).parents[1]
    shutil.copytree(kernels, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiler, "__file__", str(tmp_path / "kernels" / "cpu" / "compiler.py"))
    assert cache_name("float32", PLAIN) == NAME
    with (tmp_path / "kernels" / source).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert cache_name("float32", PLAIN) != NAME


def test_every_target_and_dtype_has_a_name_of_its_own():
    pairs = [(d, target) for d in ("float32", "bfloat16", "int8") for target in TARGETS]
    assert len({cache_name(*pair) for pair in pairs}) == len(pairs)


def test_other_versions_have_names_of_their_own(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} of tomorrow")
    assert cache_name("float32", PLAIN) != NAME


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
def test_the_cache_lies_where_the_user_says(monkeypatch):
    monkeypatch.setenv("MINIBERT_CACHE_DIR", "~/kernels")
    monkeypatch.setenv("HOME", "/home/ada")
    assert cache_folder() == Path("/home/ada/kernels")
    monkeypatch.delenv("MINIBERT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/ada")
    assert cache_folder() == Path("/var/cache/ada/minibert")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/ada/.cache/minibert")


def test_a_home_that_nobody_knows_is_no_error(monkeypatch):
    monkeypatch.setenv("MINIBERT_CACHE_DIR", "~no-such-user/kernels")
    assert cache_folder() == Path(os.devnull, "~no-such-user/kernels")


# ---------------------------------------------------------------- targets


def test_the_best_target_is_taken_unless_another_is_named(monkeypatch):
    able = host_targets()
    assert able[-1] is PLAIN
    monkeypatch.delenv("MINIBERT_CPU", raising=False)
    assert find_target() is able[0]
    monkeypatch.setenv("MINIBERT_CPU", "")
    assert find_target() is able[0]
    for target in able:
        monkeypatch.setenv("MINIBERT_CPU", target.name)
        assert find_target() is target


def test_a_wrong_name_is_an_error_that_lists_the_choices(monkeypatch):
    foreign = next(target for target in TARGETS if target not in host_targets())
    for name in ("avx1024", foreign.name):
        monkeypatch.setenv("MINIBERT_CPU", name)
        with pytest.raises(BackendError) as error:
            get_backend("cpu")
        assert f"MINIBERT_CPU={name!r}" in str(error.value)
        assert f"({', '.join(target.name for target in host_targets())})" in str(error.value)


def test_a_program_for_another_processor_is_refused():
    foreign = next(target for target in TARGETS if target not in host_targets())
    with pytest.raises(BackendError, match=f"packed for {foreign.name} processors"):
        load_program("float32", foreign)


@pytest.mark.slow
def test_kernels_for_another_processor_compile_here():
    neon = next(target for target in TARGETS if target.name == "neon")
    code = compile_program("float32", neon)
    assert code[:6] == b"\x7fELF\x02\x01"  # 64 bits, little-endian
    assert int.from_bytes(code[18:20], "little") == 183  # AArch64
    for entry in JOBS:
        assert f"minibert_{entry}".encode() in code


TILES = [  # target, dtype, its instruction, how many a turn
    ("avx512-bf16", "float32", "vfmadd231ps", 24 * UNROLL),
    ("avx512-bf16", "bfloat16", "vdpbf16ps", 24 * UNROLL),
    ("avx512-bf16", "int8", "vpdpbusd", 24 * UNROLL),
    ("avx512-vnni", "bfloat16", "vfmadd231ps", 24 * UNROLL),
    ("avx512", "int8", "vpmaddubsw", 24 * UNROLL),
    ("avx2-vnni", "int8", "vpdpbusd", 12 * UNROLL),
    ("avx2", "int8", "vpmaddubsw", 12 * UNROLL),
    ("neon-dot", "int8", "sdot", 24 * UNROLL),
    ("neon", "int8", "sdot", 0),
]


@pytest.mark.parametrize(("name", "dtype", "instruction", "count"), TILES)
def test_a_tile_is_multiplied_by_the_best_instruction(name, dtype, instruction, count):
    target = next(target for target in TARGETS if target.name == name)
    # Without Numba, which compiles for the machine that it runs on.
    parameters = inspect.signature(gemm.tile).parameters.values()
    arguments = sum(each.kind == each.POSITIONAL_OR_KEYWORD for each in parameters) - 1
    module = ir.Module()
    kind = ir.FunctionType(ir.VoidType(), [simd.I64] * arguments)
    function = ir.Function(module, kind, "tile")
    code = simd.Code(ir.IRBuilder(function.append_basic_block()), target)
    values = (simd.Value(code, each) for each in function.args)
    gemm.tile(code, *values, rows=target.tile_rows[0], operand=target.operand(dtype))
    code.builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    chosen = compiler.machine(target)
    parsed.triple, parsed.data_layout = chosen.triple, str(chosen.target_data)
    lines = chosen.emit_assembly(parsed).splitlines()
    found = sum(instruction in line.split()[:2] for line in lines)  # some begin with {vex}
    assert found == count
