"""A GPU that is not there: NVIDIA's driver as far as minibert calls it, on the CPU.

Everything of kernels/cuda runs on it as on a real GPU, but for the compiler.  It is stricter than
a driver: wrong addresses, sizes and handles are errors at once, memory begins as NaN, work on a
stream is done as late as a program may rely on, and while a graph is recorded nothing is done.
Kernels run in the emulator (cuda_emulator.py).
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda_emulator import launch

from minibert.kernels.cuda.driver import FUNCTIONS, Device, Driver
from minibert.kernels.cuda.recipes import Built, Recipe

KINDS = {"float32": np.float32, "int32": np.int32, "uint16": np.uint16, "uint32": np.uint32}
ERRORS = {2: (b"CUDA_ERROR_OUT_OF_MEMORY", b"out of memory")}


class Call:
    """A function of the library: takes what ctypes would take for its argtypes."""

    def __init__(self, function: Callable[..., int | None]):
        self.function = function
        self.argtypes: tuple[Any, ...] = ()
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int:
        assert len(arguments) == len(self.argtypes), self.function.__name__
        plain = [as_passed(*each) for each in zip(self.argtypes, arguments, strict=True)]
        return self.function(*plain) or 0


def as_passed(kind: Any, argument: Any) -> Any:
    """An argument as the C function gets it: an address or a number cut to its type's size."""
    kind.from_param(argument)  # raises what ctypes would raise
    if isinstance(argument, ctypes.c_void_p):
        argument = argument.value
    return kind(argument).value if isinstance(argument, int) else argument


def build(recipe: Recipe, capability: tuple[int, int]) -> Built:
    """Instead of compiling: a cubin that names the recipe."""
    kernel = recipe.make()
    cubin = json.dumps([recipe.module, recipe.factory, recipe.options]).encode()
    return Built(
        cubin, kernel.name, kernel.arguments, kernel.threads, kernel.shared_bytes,
        kernel.rows, kernel.columns,
    )  # fmt: skip


def compile_for(recipe: Recipe, capability: tuple[int, int]) -> Any:
    """A recipe's compiled code; for worker processes, which can import this module but no test."""
    from minibert.kernels.cuda.compiler import compile_kernel

    return compile_kernel(recipe.make(), capability)


def from_json(value: Any) -> Any:
    return tuple(map(from_json, value)) if isinstance(value, list) else value


class EmulatedGpu:
    """The library.  Pass it to `Driver`, or call `device`.

    Args:
        memory_size: bytes; more is an out-of-memory error.
        capability: compute capability.
        multiprocessors: how many; changes which kernels are chosen.
        reverse: run warps and blocks in reverse order.
        races: look for races between threads; takes a quarter longer.
        count: GPUs.
    """

    def __init__(
        self,
        memory_size: int = 1 << 30,
        capability: tuple[int, int] = (9, 0),
        multiprocessors: int = 4,
        reverse: bool = False,
        races: bool = True,
        count: int = 1,
    ):
        self.memory_size, self.count, self.capability = memory_size, count, capability
        self.options = {"reverse": reverse, "races": races}
        self.attributes = {16: multiprocessors, 75: capability[0], 76: capability[1], 97: 232448}
        self.memory: dict[int, np.ndarray] = {}
        self.host: dict[int, Any] = {}
        self.modules: dict[int, Any] = {}
        self.functions: dict[int, tuple[Any, int]] = {}  # kernel, shared bytes allowed
        self.queue: list[Callable[[], None]] = []  # work on the stream, not yet done
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.executables: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[int, int] = {}  # handle -> how much work was put before it
        self.put, self.finished = 0, 0
        self.handles = 1000
        self.launches: list[str] = []  # names of all kernels that ran
        self.lock, self.working = threading.RLock(), False
        self.allocations = 0  # of the GPU's memory, refused ones too
        self.current = threading.local()  # whether this thread has a context
        self.stream = 0
        self.uploads: list[Callable[[], None]] = []  # copies that may still be under way
        for name in FUNCTIONS:
            setattr(self, name, Call(getattr(self, "_" + name)))

    def device(self) -> Device:
        driver = Driver(self)
        driver.cuInit(0)
        return Device(driver, 0)

    # ------------------------------------------------------------ helpers

    def handle(self) -> int:
        self.handles += 1
        return self.handles

    def find(self, address: int, size: int) -> np.ndarray:
        """The bytes at an address."""
        for start, block in self.memory.items():
            if start <= address and address + size <= start + len(block):
                return block[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not the GPU's")

    def rest(self, address: int) -> np.ndarray:
        """The bytes from an address to the end of its piece of memory."""
        for start, block in self.memory.items():
            if start <= address < start + len(block):
                return block[address - start :]
        raise AssertionError(f"{address:#x} is not the GPU's")

    def enqueue(self, work: Callable[[], None], stream: int) -> None:
        assert getattr(self.current, "context", None) == 7, "this thread has no context"
        assert stream == self.stream, "not our stream"
        if self.recording is not None:
            self.recording.append(work)
        else:
            self.queue.append(work)
            self.put += 1

    def run_until(self, number: int) -> None:
        """Do the work on the stream up to a point."""
        with self.lock:
            if self.working:
                return  # called by a finalizer, from within the work
            self.working = True
            try:
                while self.finished < number:
                    self.finished += 1
                    self.queue.pop(0)()
            finally:
                self.working = False

    # ------------------------------------------------------------ the driver's functions

    def _cuInit(self, flags):
        return None

    def _cuDriverGetVersion(self, out):
        out._obj.value = 13000

    def _cuDeviceGetCount(self, out):
        out._obj.value = self.count

    def _cuDeviceGet(self, out, index):
        out._obj.value = index

    def _cuDeviceGetName(self, buffer, size, handle):
        buffer.value = b"Emulated GPU"

    def _cuDeviceGetAttribute(self, out, number, handle):
        out._obj.value = self.attributes[number]

    def _cuDeviceTotalMem_v2(self, out, handle):
        out._obj.value = self.memory_size

    def _cuDevicePrimaryCtxRetain(self, out, handle):
        out._obj.value = 7

    def _cuCtxSetCurrent(self, context):
        assert context == 7
        self.current.context = context

    def _cuCtxPushCurrent_v2(self, context):
        assert context == 7
        self.current.before = getattr(self.current, "context", None)
        self.current.context = context

    def _cuCtxPopCurrent_v2(self, out):
        self.current.context = self.current.before

    def _used(self):
        return sum(map(len, self.memory.values()))

    def _cuMemAlloc_v2(self, out, size):
        assert self.recording is None, "allocation while recording"
        self.allocations += 1
        if self._used() + size > self.memory_size:
            return 2
        whole = np.full(size + 512, 0xFF, np.uint8)
        start = -whole.ctypes.data % 256
        block = whole[start : start + size]
        self.memory[block.ctypes.data] = block
        out._obj.value = block.ctypes.data
        return None

    def _cuMemFree_v2(self, address):
        self.run_until(self.put)
        del self.memory[address]

    def _cuMemHostAlloc(self, out, size, flags):
        block = ctypes.create_string_buffer(size)
        self.host[ctypes.addressof(block)] = block
        out._obj.value = ctypes.addressof(block)

    def _cuMemFreeHost(self, address):
        self.run_until(self.put)
        del self.host[address]

    def _copy(self, to, source, size):
        ctypes.memmove(to, source, size)

    def _cuMemcpyHtoD_v2(self, to, source, size):
        kept = ctypes.string_at(
            source, size
        )  # staged, and written when the default stream is waited for
        self.uploads.append(lambda: self._copy(self.find(to, size).ctypes.data, kept, size))

    def _cuMemcpyDtoH_v2(self, to, source, size):
        assert self.finished == self.put, "the stream still works"
        self._copy(to, self.find(source, size).ctypes.data, size)

    def _host_range(self, address, size):
        assert any(a <= address and address + size <= a + len(b) for a, b in self.host.items())

    def _cuMemcpyHtoDAsync_v2(self, to, source, size, stream):
        self._host_range(source, size)
        self.enqueue(lambda: self._copy(self.find(to, size).ctypes.data, source, size), stream)

    def _cuMemcpyDtoHAsync_v2(self, to, source, size, stream):
        self._host_range(to, size)
        self.enqueue(lambda: self._copy(to, self.find(source, size).ctypes.data, size), stream)

    def _cuMemsetD8_v2(self, address, value, size):
        self.find(address, size)[:] = value

    def _cuModuleLoadData(self, out, cubin):
        assert self.recording is None, "loading while recording"
        module, factory, options = json.loads(cubin)
        handle = out._obj.value = self.handle()
        self.modules[handle] = Recipe(module, factory, from_json(options)).make()

    def _cuModuleGetFunction(self, out, module, name):
        kernel = self.modules[module]
        assert kernel.name == name.decode()
        out._obj.value = handle = self.handle()
        self.functions[handle] = kernel, 48 * 1024

    def _cuFuncSetAttribute(self, function, attribute, value):
        assert attribute == 8
        if value > self.attributes[97]:
            return 1
        self.functions[function] = self.functions[function][0], value
        return None

    def _cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, places, extra):
        kernel, allowed = self.functions[function]
        assert (bx, by, bz) == (kernel.threads, 1, 1)
        assert kernel.shared_bytes == shared <= allowed
        assert gx > 0
        assert 0 < gy < 65536
        assert 0 < gz < 65536
        values = []
        for place, name in zip(places, kernel.arguments, strict=True):
            kind = {"int32": ctypes.c_int32, "float32": ctypes.c_float}.get(name, ctypes.c_void_p)
            values.append(kind.from_address(place).value)
        self.enqueue(lambda: self._launch(kernel, (gx, gy, gz), values), stream)

    def _launch(self, kernel, grid, values):
        self.launches.append(kernel.name)
        arguments = []
        for value, name in zip(values, kernel.arguments, strict=True):
            if name.endswith("*"):
                kind = KINDS[name[:-1]]
                if value:
                    rest = self.rest(value)
                    size = np.dtype(kind).itemsize
                    value = rest[: len(rest) // size * size].view(kind)
                else:
                    value = None
            arguments.append(value)
        launch(kernel, grid, arguments, **self.options)

    def _cuStreamCreate(self, out, flags):
        assert flags == 1
        out._obj.value = self.stream = self.handle()

    def _cuStreamSynchronize(self, stream):
        assert self.recording is None
        if stream is None:
            while self.uploads:
                self.uploads.pop(0)()
        else:
            assert stream == self.stream
            self.run_until(self.put)

    def _cuStreamBeginCapture_v2(self, stream, mode):
        assert self.recording is None
        assert (stream, mode) == (self.stream, 2)
        self.recording = []

    def _cuStreamEndCapture(self, stream, out):
        assert self.recording is not None
        out._obj.value = handle = self.handle()
        self.graphs[handle], self.recording = self.recording, None

    def _cuGraphInstantiateWithFlags(self, out, graph, flags):
        out._obj.value = handle = self.handle()
        self.executables[handle] = list(self.graphs[graph])

    def _cuGraphLaunch(self, executable, stream):
        for work in self.executables[executable]:
            self.enqueue(work, stream)

    def _cuGraphDestroy(self, graph):
        del self.graphs[graph]

    def _cuGraphExecDestroy(self, executable):
        self.run_until(self.put)
        del self.executables[executable]

    def _cuEventCreate(self, out, flags):
        out._obj.value = handle = self.handle()
        self.events[handle] = 0

    def _cuEventRecord(self, event, stream):
        assert stream == self.stream
        assert self.recording is None, "an event while recording"
        self.events[event] = self.put

    def _cuEventSynchronize(self, event):
        self.run_until(self.events[event])

    def _cuEventElapsedTime(self, out, first, second):
        out._obj.value = float(self.events[second] - self.events[first])

    def _cuEventDestroy_v2(self, event):
        del self.events[event]

    def _cuGetErrorName(self, code, out):
        out._obj.value = ERRORS.get(code, (b"CUDA_ERROR_INVALID_VALUE", b""))[0]

    def _cuGetErrorString(self, code, out):
        out._obj.value = ERRORS.get(code, (b"", b"invalid argument"))[1]
