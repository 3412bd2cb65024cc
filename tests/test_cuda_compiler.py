"""Compiled CUDA kernels are what was meant, and kept: no GPU is needed, but numba-cuda is.

nothing spilled to memory, nothing computed in float64, tensor cores where they belong, and
few enough registers for the blocks that shall fit; for Ampere (sm_80) and Hopper (sm_90)
the PTX of every kernel, run by an interpreter, computes what the definition computes
a compiled kernel is kept on disk, and found again until anything about it changes
"""

import importlib.metadata
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from builders import dense, elf, norm, normal
from emulated_gpu import EmulatedGpu, build, compile_for
from numba import cuda, float32, int32
from random_models import tiny_config
from unprepared import Unprepared

from minibert.errors import BackendError
from minibert.kernels import reference
from minibert.kernels.cache import read_cache, write_cache
from minibert.kernels.cpu.pool import available_cores
from minibert.kernels.cuda import attention, gemm, recipes, rows
from minibert.kernels.cuda.functions import Kernels
from minibert.kernels.cuda.language import DTYPES, Kernel, load, store
from minibert.kernels.cuda.launcher import recipes_of
from minibert.kernels.cuda.recipes import (
    Built,
    Recipe,
    built_kernel,
    cache_path,
    decode,
    encode,
    is_built,
    missing_compiler,
)
from minibert.parameters import Table, Tables

needs_compiler = pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())

ARCHITECTURES = (8, 0), (9, 0)
BASE = tiny_config(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
MINILM = tiny_config(hidden_size=384, num_attention_heads=12, intermediate_size=1536)
REGISTERS = 65536  # of a multiprocessor
# A tile that functions.py does not choose, with as many accumulators as registers allow.
WIDE = Recipe("gemm", "gemm", ("float16", "store", "gelu", 128, 256, (2, 4), 4))


def targets():
    """Recipes and architectures to look at: every kernel that runs for models of two shapes."""
    for dtype in DTYPES:
        small = [each for each in recipes_of(MINILM, dtype) if "attention" in each.module]
        for recipe in [*recipes_of(BASE, dtype), *small]:
            yield from ((recipe, capability) for capability in ARCHITECTURES)
    yield WIDE, (9, 0)
    for capability in ((8, 6), (12, 0)):  # for these, the accumulators must not be in memory either
        yield Recipe("attention", "attention", ("float16", 12, 64)), capability
        yield Recipe("gemm_float32", "gemm", ("store", "gelu", 64, 64)), capability


def named(value):
    return str(value) if isinstance(value, Recipe) else f"sm_{value[0]}{value[1]}"


@pytest.fixture(scope="module")
def compiled():
    """Function: recipe, capability -> its code, to come: two seconds each, on all cores at once."""
    with ProcessPoolExecutor(available_cores(), multiprocessing.get_context("spawn")) as pool:
        begin = cache(lambda recipe, capability: pool.submit(compile_for, recipe, capability))
        yield begin
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def all_compiled(compiled):
    """As `compiled`, with all targets begun."""
    for target in targets():
        compiled(*target)
    return compiled


# ---------------------------------------------------------------- what was meant


def problems_of(kernel, code, sass=""):
    """What is wrong with a compiled kernel."""
    found = []
    ops = Counter(re.findall(r"^\s*(?:@!?%p\d+ )?([a-z][\w.:]*)", code.ptx, re.M))
    if code.spilled:
        found.append(f"spills {code.spilled} bytes")
    if wide := [op for op in ops if "f64" in op]:
        found.append(f"float64: {wide}")
    family = kernel.name.partition("_")[0]
    half = "float32" not in kernel.name
    tensor = sum(n for op, n in ops.items() if op.startswith("mma.sync"))
    if family in ("gemm", "attention"):
        if half and not tensor:
            found.append("no tensor-core instruction")
        if half and not any(op.startswith("ldmatrix") for op in ops):
            found.append("no ldmatrix")
        if half and not any(op.startswith("cp.async.cg") for op in ops):
            found.append("no asynchronous copy")
        if not half and not sum(n for op, n in ops.items() if op == "fma.rn.ftz.f32") >= 64:
            found.append("no multiply-adds in float32")
    kind = {"float16": "f16.f16", "bfloat16": "bf16.bf16"}
    for dtype, name in kind.items():
        if f"_{dtype}_" in kernel.name and tensor:
            wrong = [op for op in ops if op.startswith("mma") and f".f32.{name}.f32" not in op]
            found += [f"wrong product: {op}" for op in wrong]
    if family != "attention" and not any(re.match(r"ld\.(global|shared)\.v4", op) for op in ops):
        found.append("no access of 16 bytes")
    registers = -(-code.registers // 8) * 8  # they are given out in eights
    if registers * kernel.threads * kernel.min_blocks > REGISTERS:
        found.append(f"{code.registers} registers: fewer than {kernel.min_blocks} blocks fit")
    if sass:
        machine = set(re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", sass))
        if slow := [op for op in machine if re.match(r"D(ADD|MUL|FMA|SETP|MNMX)|.*F64", op)]:
            found.append(f"float64 in machine code: {slow}")
        if local := [op for op in machine if re.match(r"(LDL|STL)\b", op)]:
            found.append(f"local memory in machine code: {local}")
        if tensor and not any(op.startswith("HMMA.16816.F32") for op in machine):
            found.append("no HMMA in machine code")
    return found


def disassembler():
    """NVIDIA's nvdisasm, if it is there."""
    if found := shutil.which("nvdisasm"):
        return found
    for entry in sys.path:
        for path in Path(entry).glob("nvidia/*/bin/nvdisasm"):
            return str(path)
    return None


@needs_compiler
@pytest.mark.parametrize(("recipe", "capability"), list(targets()), ids=named)
@pytest.mark.slow
def test_a_compiled_kernel_is_what_was_meant(all_compiled, recipe, capability, tmp_path):
    kernel, code = recipe.make(), all_compiled(recipe, capability).result()
    sass = ""
    if program := disassembler():
        (tmp_path / "k.cubin").write_bytes(code.cubin)
        command = [program, "-c", str(tmp_path / "k.cubin")]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "EXIT" in sass
    assert not problems_of(kernel, code, sass)


@needs_compiler
@pytest.mark.parametrize("recipe", recipes_of(MINILM, "float32")[1:3], ids=str)
@pytest.mark.slow
def test_float32_compiles_for_turing(recipe):
    from minibert.kernels.cuda.compiler import to_ptx

    ptx = to_ptx(recipe.make(), (7, 5))
    assert ".target sm_75" in ptx
    assert "cp.async" not in ptx


def planted(body, **changes):
    """A kernel with something wrong about it."""
    arguments = "float32*", "int32"
    return Kernel("rows_planted", body, arguments, threads=128, **changes)


@needs_compiler
def test_the_check_finds_float64():
    from minibert.kernels.cuda.compiler import compile_kernel

    def body(x, n):
        i = int32(cuda.threadIdx.x)
        store(x, i, load(x, i) * 0.1)  # a Python float is a float64

    kernel = planted(body)
    assert any("float64" in each for each in problems_of(kernel, compile_kernel(kernel, (9, 0))))


@needs_compiler
def test_the_check_finds_spills():
    from minibert.kernels.cuda.compiler import compile_kernel

    kernel = replace(gemm.gemm("float16"), min_blocks=4)  # 128 registers, and it needs 168
    problems = problems_of(kernel, compile_kernel(kernel, (8, 0)))
    assert any("spills" in each for each in problems)

    def body(x, n):
        a = cuda.local.array(64, float32)
        for i in range(64):
            # Which register that would be is only known later, so it must be memory.
            store(a, int32(load(x, int32(i))), load(x, int32(i + 1)))
        store(x, n, load(a, n))

    kernel = planted(body)
    assert any("spills" in each for each in problems_of(kernel, compile_kernel(kernel, (8, 0))))


@needs_compiler
@pytest.mark.slow
def test_the_check_misses_tensor_cores(compiled):
    kernel = attention.attention("float16", 12, 64)
    code = compiled(Recipe("attention", "attention", ("float16", 12, 64)), (8, 0)).result()
    for word, said in (
        ("mma.sync", "no tensor-core instruction"),
        ("ldmatrix", "no ldmatrix"),
        ("cp.async.cg", "no asynchronous copy"),
    ):
        lines = [line for line in code.ptx.splitlines() if word not in line]
        assert said in problems_of(kernel, replace(code, ptx="\n".join(lines)))
    other = replace(code, ptx=code.ptx.replace(".f16.f16.", ".bf16.bf16."))
    assert any("wrong product" in each for each in problems_of(kernel, other))


@needs_compiler
def test_what_the_assembler_refuses_is_an_error():
    from minibert.kernels.cuda.compiler import assemble

    with pytest.raises(BackendError, match=r"refused a kernel for sm_90:.*\n.*nonsense"):
        assemble(".version 8.0\n.target sm_90\n.address_size 64\nnonsense", (9, 0))


# ---------------------------------------------------------------- what is computed


class PtxGpu(EmulatedGpu):
    """An emulated GPU that runs the compiled PTX.

    Args:
        compiled: recipe, capability -> its code, to come.
        idle: run nothing, so that all that is needed is soon known.
        options: of EmulatedGpu.
    """

    def __init__(self, compiled, idle, **options):
        super().__init__(**options)
        self.compiled, self.idle = compiled, idle
        self.codes = {}  # name of a kernel -> its code, to come

    def build(self, recipe, capability):
        built = build(recipe, capability)
        self.codes[built.entry] = self.compiled(recipe, capability)
        return built

    def _launch(self, kernel, grid, values):
        import ptx_machine

        self.launches.append(kernel.name)
        if self.idle:
            return
        ptx_machine.run(
            self.codes[kernel.name].result().ptx,
            grid,
            kernel.threads,
            [float(v) if k == "float32" else int(v or 0)
             for v, k in zip(values, kernel.arguments, strict=True)],
            memory=list(self.memory.values()),
            dynamic_shared=kernel.shared_bytes,
        )  # fmt: skip


# Beside float32 inputs that are not rounded first.
LIMITS = {"float32": 5e-6, "float16": 8e-3, "bfloat16": 6e-2}


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "capability"),
    [("float32", (8, 0)), ("float16", (9, 0)), ("bfloat16", (8, 0))],
    ids=str,
)
@pytest.mark.slow
def test_compiled_kernels_compute_what_the_definition_computes(compiled, dtype, capability):
    for idle in (True, False):  # first, all compilers are set to work
        gpu = PtxGpu(compiled, idle, capability=capability)
        kernels = Unprepared(Kernels(gpu.device(), dtype, gpu.build))
        run_all(kernels, None if idle else LIMITS[dtype])
        families = {name.split("_float")[0].split("_bfloat")[0] for name in gpu.launches}
        assert families == {"gemm", "attention", "embed", "norm", "add_norm", "span_logits"}


def run_all(kernels, limit):
    """Run every step; with a limit, beside the definition."""

    def check(name, *arguments):
        ours, theirs = (getattr(each, name)(*arguments) for each in (kernels, reference))
        for mine, truth in zip(np.atleast_1d(ours), np.atleast_1d(theirs), strict=True):
            assert limit is None or np.abs(mine - truth).max() <= limit, name

    tokens = 67
    check("linear", normal(0, tokens, 160), dense(1, 72, 160))
    for activation in ("gelu", "gelu_tanh", "relu", "silu"):
        check("linear_activation", normal(0, 9, 32), dense(1, 40, 32), activation)
    for out, into in ((96, 64), (96, 512)):  # in one piece; in two parts
        args = normal(0, 21, into), dense(1, out, into), normal(3, 21, out), norm(4, out)
        check("linear_add_norm", *args, 1e-12)
    for heads, size in ((2, 32), (1, 64)):
        borders = np.array([0, 1, 140, 142], np.int32)
        check("attention", normal(0, 142, 3 * heads * size), borders, heads)
    tables = Tables(*(Table(normal(i, 9, 264)) for i in range(3)), norm(5, 264))
    ids = np.random.default_rng(0).integers(0, 9, (3, 21)).astype(np.int32)
    check("embed", *ids, tables, 1e-12)
    check("span_logits", normal(0, 21, 264), dense(1, 2, 264))


# ---------------------------------------------------------------- what is kept

NORM = Recipe("rows", "norm", ("float16", 64))
BUILT = Built(elf(190) + b"cubin\nof\x00bytes", "entry", ("int32*", "float32"), 128, 0, 4, 0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIBERT_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_what_is_kept_comes_back_as_it_was():
    assert decode(encode(BUILT)) == BUILT


def test_a_kernel_is_compiled_once(folder):
    asked = []

    def compile_(recipe, capability):
        asked.append((recipe, capability))
        return BUILT

    for capability in ((8, 0), (8, 0), (9, 0)):
        assert built_kernel(NORM, capability, compile_) == BUILT
    assert asked == [(NORM, (8, 0)), (NORM, (9, 0))]
    assert is_built(NORM, (8, 0))
    assert not is_built(NORM, (8, 6))
    path = cache_path(NORM, (8, 0))
    path.write_bytes(path.read_bytes()[:-1])  # damaged: compiled again
    assert built_kernel(NORM, (8, 0), compile_) == BUILT
    assert len(asked) == 3


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]\n", b"\xff\n", encode(replace(BUILT, cubin=b"no cubin"))]
)
def test_a_kept_file_that_holds_something_else_is_compiled_again(folder, content):
    assert write_cache(cache_path(NORM, (8, 0)), content)
    assert built_kernel(NORM, (8, 0), lambda *_: BUILT) == BUILT
    assert decode(read_cache(cache_path(NORM, (8, 0)))) == BUILT


def test_the_name_of_a_kept_kernel_changes_with_what_it_is_made_from(folder, monkeypatch):
    names = {cache_path(NORM, (8, 0))}
    names.add(cache_path(NORM, (9, 0)))
    names.add(cache_path(replace(NORM, options=("bfloat16", 64)), (8, 0)))
    names.add(cache_path(replace(NORM, factory="add_norm"), (8, 0)))
    real = importlib.metadata.version
    recipes.sources_digest.cache_clear()
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "99" if name == "numba" else real(name)
    )
    names.add(cache_path(NORM, (8, 0)))
    recipes.sources_digest.cache_clear()
    monkeypatch.undo()
    monkeypatch.setenv("MINIBERT_CACHE_DIR", str(folder))
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"changed")
    names.add(cache_path(NORM, (8, 0)))
    recipes.sources_digest.cache_clear()
    assert len({path.name for path in names}) == 6


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("MINIBERT_CACHE_DIR", str(file / "below"))
    assert built_kernel(NORM, (8, 0), lambda *_: BUILT) == BUILT


def test_without_a_compiler_the_error_says_what_to_install(folder, monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    recipes.sources_digest.cache_clear()
    try:
        with pytest.raises(BackendError, match=r"numba-cuda is missing.*numba-cuda\[cu13\]"):
            built_kernel(NORM, (8, 0))
    finally:
        recipes.sources_digest.cache_clear()


SECOND_PROCESS = """
import sys, time
begin = time.perf_counter()
from minibert.kernels.cuda.recipes import Recipe, built_kernel
built = built_kernel(Recipe("rows", "norm", ("float16", 64)), (8, 0))
print(len(built.cubin), "numba" in sys.modules, "llvmlite" in sys.modules)
"""


@needs_compiler
def test_a_second_process_neither_compiles_nor_imports_numba(folder):
    first = built_kernel(NORM, (8, 0))
    assert first.entry
    assert first.arguments == rows.norm("float16", 64).arguments
    done = subprocess.run(
        [sys.executable, "-c", SECOND_PROCESS],
        capture_output=True, text=True, check=True,
        env={**os.environ, "MINIBERT_CACHE_DIR": str(folder)},
    )  # fmt: skip
    assert done.stdout.split() == [str(len(first.cubin)), "False", "False"]
