"""Compile the program once, keep the machine code on disk, and load it as a C function.

Numba turns program.py into LLVM's language; LLVM turns that into machine code for the target, which
goes into the cache folder.  A later process reads it back without importing Numba.

The file's name is a hash of everything that the code depends on: the sources of all kernels, the
versions of Python, Numba and llvmlite, the target, the dtype.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import platform
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from minibert.errors import BackendError
from minibert.kernels.cache import (
    PROCESSORS,
    cache_folder,
    distrusted,
    read_cache,
    sound_elf,
    write_cache,
)
from minibert.progress import notice, stages

from .records import JOBS, TRAINING_JOBS
from .targets import Target, host_arch, host_targets

# int entry(void *result, void **error, int64 job, int64 slot): Numba's way to call a function.
# A call through ctypes lets other Python threads run.
Entry = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
)

# Numba's settings, from the environment, that change the code it makes.
SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO")

STAGES = ("translating Python", "optimising", "writing machine code")


@dataclass(frozen=True)
class Program:
    """A compiled program in this process."""

    dtype: str
    target: Target
    entries: dict[str, Any]  # by the names in records.JOBS or TRAINING_JOBS
    keep: Any  # owns the machine code

    def run(self, entry: str, job: int, slot: int) -> None:
        """Take tasks of the job at this address until none is left."""
        nothing = ctypes.c_int64()
        unused = ctypes.addressof(nothing)
        self.entries[entry](unused, unused, job, slot)


# ---------------------------------------------------------------- the cache


def cache_name(dtype: str, target: Target, training: bool = False) -> str:
    """Name of the file that holds a program: the same if and only if its code would be."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    digest.update((Path(__file__).parent.parent / "reference.py").read_bytes())  # its constants
    versions = [platform.python_version(), llvm.llvm_version_info]
    versions += [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    versions += [os.environ.get(f"NUMBA_{name}") for name in SETTINGS]
    digest.update(repr((versions, llvm.get_process_triple(), target, dtype)).encode())
    kind = "-training" if training else ""
    return f"cpu-{target.name}-{dtype}{kind}-{digest.hexdigest()[:24]}.o"


# ---------------------------------------------------------------- compiling and loading


def machine(target: Target) -> Any:
    """LLVM's description of the machine to compile for."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = llvm.get_process_triple()
    if target.arch and target.arch != host_arch():
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        triple = f"{target.arch}-unknown-linux-gnu"
    features = ",".join("+" + name for name in target.features.split())
    cpu = target.cpu or ("x86-64" if triple.startswith("x86_64") else "generic")
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="small"
    )


def compile_program(dtype: str, target: Target, training: bool = False) -> bytes:
    """Machine code of a program: an object file with functions `minibert_forward` and so on.

    Raises:
        BackendError: Numba is switched off.
    """
    what = "training kernels" if training else "kernels"
    title = f"minibert: compiling the {dtype} {what} for {target.name}"
    with stages(title, STAGES) as following:
        following()
        import numba

        from .pointers import Pointer
        from .program import write_program
        from .training.program import write_training_program

        if numba.config.DISABLE_JIT:
            raise BackendError(
                "NUMBA_DISABLE_JIT is set, so the CPU kernels cannot be compiled. Unset it, or use "
                "device='reference'."
            )
        write, jobs = (write_training_program, TRAINING_JOBS) if training else (write_program, JOBS)
        entries, host = write(dtype, target), machine(target)
        module = llvm.parse_assembly(kernels_text(target))
        for name, entry in entries.items():
            signature = (Pointer(jobs[name]), numba.types.intp)
            entry.compile(signature)
            own_name = entry.overloads[signature].fndesc.llvm_func_name
            text = entry.inspect_llvm(signature).replace(own_name, f"minibert_{name}")
            module.link_in(llvm.parse_assembly(text))
        following()
        module.triple, module.data_layout = host.triple, str(host.target_data)
        following()
        return bytes(host.emit_object(module))


def kernels_text(target: Target) -> str:
    """All kernels that `write_program` has made callable, optimised by Numba, in LLVM's language.

    Numba's own engine has them from now on, and so finds them when it compiles what calls them.
    """
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    from . import simd

    library = cpu_target.target_context.codegen().create_library("kernels")
    module = library.create_ir_module("kernels")
    for name, kernel in simd.CALLABLE.items():
        simd.write(module, name, kernel, target)
    library.add_ir_module(module)
    with global_compiler_lock:
        library.finalize()
    return str(library.get_llvm_str())


def load_code(dtype: str, target: Target, code: bytes, training: bool = False) -> Program | None:
    """Bring machine code into this process; None if it is not the program's."""
    # With llvmlite's memory manager, which takes one piece of memory for all sections.  LLVM's own
    # takes each where there is some, and where that is too far apart for the code's 32-bit
    # distances, as in workers with large address spaces, it ends the process.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine(target), use_lmm=True)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    names = TRAINING_JOBS if training else JOBS
    addresses = {name: engine.get_function_address(f"minibert_{name}") for name in names}
    if not all(addresses.values()):
        return None
    return Program(dtype, target, {name: Entry(at) for name, at in addresses.items()}, engine)


class Programs:
    """The programs of this process; a lock keeps two threads from compiling the same one.

    A fork waits until nobody compiles: the child would inherit the locks of Numba and LLVM, held by
    a thread that it does not have.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.loaded: dict[tuple[str, Target, bool], Program] = {}

    def before_fork(self) -> None:
        """Wait for whoever compiles."""
        self.lock.acquire()

    def after_fork(self) -> None:
        """Let others compile again, in the parent."""
        self.lock.release()

    def after_fork_in_child(self) -> None:
        """The child keeps the programs, and gets a lock of its own."""
        self.lock = threading.RLock()


_PROGRAMS = Programs()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_PROGRAMS.before_fork,
        after_in_parent=_PROGRAMS.after_fork,
        after_in_child=_PROGRAMS.after_fork_in_child,
    )


def load_program(dtype: str, target: Target, training: bool = False) -> Program:
    """The program for a dtype and target: from this process, the cache, or newly compiled.

    Args:
        dtype: of the products.
        target: the processor.
        training: the program of training/program.py instead of that of program.py.

    Raises:
        BackendError: this machine cannot run the target.
    """
    key = (dtype, target, training)
    program = _PROGRAMS.loaded.get(key)
    if program is None:
        with _PROGRAMS.lock:
            program = _PROGRAMS.loaded.get(key) or _load_program(dtype, target, training)
            _PROGRAMS.loaded[key] = program
    return program


def _load_program(dtype: str, target: Target, training: bool) -> Program:
    if target not in host_targets():  # a model that was packed, and pickled, elsewhere
        raise BackendError(
            f"the model is packed for {target.name} processors, and this one is not one of them. "
            "Load it anew with load_model."
        )
    path = cache_folder() / cache_name(dtype, target, training)
    kept = read_cache(path)
    if kept is not None and may_be_loaded(kept):
        program = load_code(dtype, target, kept, training)
        if program is not None:
            return program
    code = compile_program(dtype, target, training)
    if not write_cache(path, code) and distrusted(path.parent) is None:
        notice(
            f"minibert: {path.parent} cannot be written, so the next process compiles again; "
            "MINIBERT_CACHE_DIR names another folder"
        )
    program = load_code(dtype, target, code, training)
    if program is None:
        raise BackendError(
            f"the kernels that were compiled for {target.name} cannot be loaded. Please report it, "
            "with what `minibert doctor` says; device='reference' needs none."
        )
    return program


def may_be_loaded(code: bytes) -> bool:
    """Whether code looks like what LLVM makes for this machine; it ends the process otherwise."""
    if sys.platform != "linux" or host_arch() not in PROCESSORS:
        return True
    return sound_elf(code, host_arch())
