"""NVIDIA's driver, called directly: memory, streams, graphs and launches of one GPU.

The driver is a library that comes with the GPU's driver software (libcuda.so.1, nvcuda.dll).  It is
called through ctypes, so running compiled kernels needs no other package and no import of
numba.cuda; a call lets other Python threads run.

Source: CUDA driver API (NVIDIA), the functions named in FUNCTIONS.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import BackendError

Address = int  # in the GPU's memory, bytes

P = ctypes.POINTER
# Every function of the driver that is used: its arguments.  All return an error code, 0 if well.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (P(c_int),),
    "cuDeviceGetCount": (P(c_int),),
    "cuDeviceGet": (P(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (P(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (P(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (P(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (P(c_void_p),),
    "cuMemAlloc_v2": (P(c_void_p), c_size_t),
    "cuMemFree_v2": (c_void_p,),
    "cuMemHostAlloc": (P(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoD_v2": (c_void_p, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_void_p, c_size_t),
    "cuMemcpyHtoDAsync_v2": (c_void_p, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_void_p, c_size_t, c_void_p),
    "cuMemsetD8_v2": (c_void_p, ctypes.c_ubyte, c_size_t),
    "cuModuleLoadData": (P(c_void_p), c_void_p),
    "cuModuleGetFunction": (P(c_void_p), c_void_p, c_char_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p),
    "cuStreamCreate": (P(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, P(c_void_p)),
    "cuGraphInstantiateWithFlags": (P(c_void_p), c_void_p, ctypes.c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuEventCreate": (P(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (P(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGetErrorName": (c_int, P(c_char_p)),
    "cuGetErrorString": (c_int, P(c_char_p)),
}

# Numbers of the driver's header.
OUT_OF_MEMORY, NO_DEVICE = 2, 100
MULTIPROCESSORS, CAPABILITY_MAJOR, CAPABILITY_MINOR = 16, 75, 76
MOST_SHARED_BYTES = 97  # of a block, when asked for
MAX_DYNAMIC_SHARED = 8  # attribute of a function
NON_BLOCKING, RELAXED, NO_TIMING = 1, 2, 2


class CudaError(BackendError):
    """A call of the driver failed."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class OutOfMemoryError(CudaError):
    """The GPU's memory does not suffice."""


def find_library() -> Any:
    """Load the driver's library.

    Raises:
        OSError: there is none.
    """
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


class Driver:
    """The driver's functions, with errors as exceptions: driver.cuInit(0).

    Args:
        library: what ctypes loaded.
    """

    def __init__(self, library: Any):
        self.library = library
        for name, arguments in FUNCTIONS.items():
            function = getattr(library, name, None)
            if function is None:
                raise BackendError(
                    f"NVIDIA's driver library lacks {name}: it is too old, or no driver at all. "
                    "Install a driver for CUDA 12 or newer."
                )
            function.argtypes, function.restype = arguments, c_int
            setattr(self, name, self._checked(name, function))
        self.pid = os.getpid()

    def _checked(self, name: str, function: Any) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if code := function(*arguments):
                self.fail(name, code)

        return call

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise AttributeError(name)  # __init__ sets those that there are

    def fail(self, name: str, code: int) -> None:
        """Raise the exception for an error code."""
        title, text = c_char_p(), c_char_p()
        self.library.cuGetErrorName(code, byref(title))
        self.library.cuGetErrorString(code, byref(text))
        said = f"{(title.value or b'unknown error').decode()}, {(text.value or b'').decode()}"
        message = f"{name} failed with CUDA error {code} ({said})"
        if code == OUT_OF_MEMORY:
            raise OutOfMemoryError(
                f"{message}. Give the GPU smaller batches, or close what else uses it.", code
            )
        raise CudaError(message + ".", code)

    def number(self, name: str, *arguments: Any, kind: Any = c_int) -> int:
        """Call a function whose first argument is where the result goes; the result."""
        result = kind()
        getattr(self, name)(byref(result), *arguments)
        return result.value or 0


@dataclass(frozen=True)
class Gpu:
    """What the driver says of a GPU."""

    index: int
    name: str
    capability: tuple[int, int]  # compute capability, e.g. (9, 0)
    memory_size: int  # bytes
    multiprocessors: int
    most_shared_bytes: int  # that a block may ask for


def describe(driver: Driver, index: int) -> Gpu:
    """Ask the driver about one GPU."""
    handle, name = driver.number("cuDeviceGet", index), ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), handle)

    def attribute(number: int) -> int:
        return driver.number("cuDeviceGetAttribute", number, handle)

    return Gpu(
        index,
        name.value.decode(errors="replace"),
        (attribute(CAPABILITY_MAJOR), attribute(CAPABILITY_MINOR)),
        driver.number("cuDeviceTotalMem_v2", handle, kind=c_size_t),
        attribute(MULTIPROCESSORS),
        attribute(MOST_SHARED_BYTES),
    )


class Memory:
    """A piece of the GPU's memory; given back when nothing refers to it.

    Args:
        device: whose.
        size: bytes; at least 16 are taken, so that every piece has an address.
    """

    def __init__(self, device: Device, size: int):
        self.size = max(16, size)
        driver = device.activate()
        address = 0
        with suppress(OutOfMemoryError):
            address = driver.number("cuMemAlloc_v2", self.size, kind=c_void_p)
        if not address:
            gc.collect()  # models and buckets refer to themselves: they may be there, but unused
            address = driver.number("cuMemAlloc_v2", self.size, kind=c_void_p)
        self.address: Address = address
        self.device = device
        device.give_back_with(self, "cuMemFree_v2", self.address)


class HostMemory:
    """Page-locked memory of the computer, which the GPU copies from and to while Python goes on."""

    def __init__(self, device: Device, size: int):
        driver = device.activate()
        self.size = max(16, size)
        self.address: Address = driver.number("cuMemHostAlloc", self.size, 0, kind=c_void_p)
        whole: Any = (ctypes.c_ubyte * self.size).from_address(self.address)
        self.bytes = np.frombuffer(whole, np.uint8)
        device.give_back_with(self, "cuMemFreeHost", self.address)

    def view(self, dtype: Any, offset: int, count: int) -> NDArray[Any]:
        """`count` numbers from a byte offset on."""
        return np.frombuffer(self.bytes.data, dtype, count, offset)


class Graph:
    """Work that was recorded once and is given to the GPU again in one call."""

    def __init__(self, device: Device, executable: int):
        self.device, self.executable = device, executable
        device.give_back_with(self, "cuGraphExecDestroy", executable)

    def launch(self) -> None:
        """Put the work on the device's stream."""
        with self.device.lock:
            self.device.activate().cuGraphLaunch(self.executable, self.device.stream)


class Function:
    """A compiled kernel, loaded.

    Args:
        device: where.
        cubin: the code.
        entry: name of the kernel in it.
        arguments: their types, as in language.Kernel.
        threads: of a block.
        shared_bytes: of a block.
    """

    def __init__(
        self,
        device: Device,
        cubin: bytes,
        entry: str,
        arguments: Sequence[str],
        threads: int,
        shared_bytes: int,
    ):
        driver = device.activate()
        self.device, self.threads, self.shared_bytes = device, threads, shared_bytes
        module = driver.number("cuModuleLoadData", cubin, kind=c_void_p)
        self.handle = driver.number("cuModuleGetFunction", module, entry.encode(), kind=c_void_p)
        if shared_bytes > 48 * 1024:  # more must be asked for
            driver.cuFuncSetAttribute(self.handle, MAX_DYNAMIC_SHARED, shared_bytes)
        kinds: dict[str, Any] = {"int32": c_int, "float32": c_float}
        # The driver reads the arguments through an array of pointers, and is done with them when
        # the call returns; only the values change between launches.
        self.cells = [kinds.get(name, c_void_p)() for name in arguments]
        pointers = [ctypes.addressof(cell) for cell in self.cells]
        self.pointers = (c_void_p * len(pointers))(*pointers)

    def launch(self, grid: tuple[int, int, int], *arguments: Any) -> None:
        """Put a launch on the device's stream; pointers are addresses or Memory."""
        device = self.device
        driver = device.activate()
        with device.lock:  # the values in the cells are those of one launch at a time
            for cell, value in zip(self.cells, arguments, strict=True):
                cell.value = value.address if isinstance(value, Memory) else value
            sizes = *grid, self.threads, 1, 1, self.shared_bytes
            driver.cuLaunchKernel(self.handle, *sizes, device.stream, self.pointers, None)


class Device:
    """One GPU and a stream of work on it.

    Args:
        driver: the driver.
        index: which GPU, from 0.
    """

    def __init__(self, driver: Driver, index: int):
        self.driver = driver
        # Held while work is put on the stream: what another thread put there while a graph is
        # recorded would become part of the graph.
        self.lock = threading.RLock()
        self.recording = False
        self.gpu = describe(driver, index)
        handle = driver.number("cuDeviceGet", index)
        # The context that the CUDA runtime, and so torch in the same process, uses as well.
        self.context = driver.number("cuDevicePrimaryCtxRetain", handle, kind=c_void_p)
        self.activate()
        self.stream = driver.number("cuStreamCreate", NON_BLOCKING, kind=c_void_p)

    def activate(self) -> Driver:
        """Make this GPU the calling thread's.

        Raises:
            BackendError: this process is a fork of the one that opened the GPU.
        """
        if os.getpid() != self.driver.pid:
            raise BackendError(
                "the GPU was opened before this process was forked, and CUDA does not survive a "
                "fork. Start processes with the 'spawn' or 'forkserver' method, and load the model "
                "in each."
            )
        # Others, torch for one, may have made another GPU the thread's: always say it again.
        self.driver.cuCtxSetCurrent(self.context)
        return self.driver

    def give_back_with(self, owner: object, function: str, handle: int) -> None:
        """Call a function of the driver with a handle when nothing refers to `owner` any more."""
        # Not at the end of the process: the driver then cleans up, or is gone already.
        weakref.finalize(owner, self._give_back, function, handle).atexit = False

    def _give_back(self, function: str, handle: int) -> None:
        # Whatever thread this happens in, it must keep the GPU that it works with; no error helps.
        if os.getpid() != self.driver.pid:
            return
        library, previous = self.driver.library, c_void_p()
        library.cuCtxPushCurrent_v2(self.context)
        if function == "cuMemFreeHost" and not self.recording:
            library.cuStreamSynchronize(self.stream)  # a copy may still be under way
        getattr(library, function)(handle)
        library.cuCtxPopCurrent_v2(byref(previous))

    def __reduce__(self) -> Any:
        raise BackendError(
            "a model on a GPU cannot be copied or sent to another process. Load it there."
        )

    def upload(self, array: NDArray[Any]) -> Memory:
        """A copy of an array in the GPU's memory."""
        array = np.ascontiguousarray(array)
        memory = Memory(self, array.nbytes)
        if array.nbytes:
            driver = self.activate()
            driver.cuMemcpyHtoD_v2(memory.address, array.ctypes.data, array.nbytes)
            # The call may return while the last bytes are under way, and our stream does not wait
            # for the default stream by itself.
            driver.cuStreamSynchronize(None)
        return memory

    def download(self, memory: Memory, dtype: Any, count: int) -> NDArray[Any]:
        """The first numbers of a piece of memory, when all work before is done."""
        array = np.empty(count, dtype)
        driver = self.activate()
        self.synchronize()
        if array.nbytes:
            driver.cuMemcpyDtoH_v2(array.ctypes.data, memory.address, array.nbytes)
        return array

    def copy_in(self, memory: Memory, host: HostMemory, size: int) -> None:
        """Put a copy of `size` bytes to the GPU on the stream."""
        with self.lock:
            self.activate().cuMemcpyHtoDAsync_v2(memory.address, host.address, size, self.stream)

    def copy_out(self, host: HostMemory, memory: Memory, size: int) -> None:
        """Put a copy of `size` bytes from the GPU on the stream."""
        with self.lock:
            self.activate().cuMemcpyDtoHAsync_v2(host.address, memory.address, size, self.stream)

    def synchronize(self) -> None:
        """Wait until all work on the stream is done."""
        with self.lock:
            self.activate().cuStreamSynchronize(self.stream)

    def record(self, work: Callable[[], None]) -> Graph:
        """Record what `work` puts on the stream, without doing it."""
        driver, graph = self.activate(), c_void_p()
        with self.lock:
            driver.cuStreamBeginCapture_v2(self.stream, RELAXED)
            self.recording = True
            try:
                work()
            except BaseException:  # Ctrl-C, too: the stream must be usable again
                driver.library.cuStreamEndCapture(self.stream, byref(graph))
                if graph:
                    driver.library.cuGraphDestroy(graph)
                raise
            finally:
                self.recording = False
            driver.cuStreamEndCapture(self.stream, byref(graph))
        try:
            executable = driver.number("cuGraphInstantiateWithFlags", graph, 0, kind=c_void_p)
        finally:
            driver.cuGraphDestroy(graph)
        return Graph(self, executable)


class Event:
    """A point on a device's stream.

    Args:
        device: whose stream.
        timing: whether `seconds` will be asked; without, the wait is cheaper.
    """

    def __init__(self, device: Device, timing: bool = False):
        self.device = device
        flags = 0 if timing else NO_TIMING
        self.handle = device.activate().number("cuEventCreate", flags, kind=c_void_p)
        device.give_back_with(self, "cuEventDestroy_v2", self.handle)

    def record(self) -> None:
        """Put the point after all work that is on the stream."""
        with self.device.lock:
            self.device.activate().cuEventRecord(self.handle, self.device.stream)

    def wait(self) -> None:
        """Wait until the GPU has come to the point."""
        self.device.activate().cuEventSynchronize(self.handle)

    def seconds_since(self, earlier: Event) -> float:
        """Time between two points that the GPU has passed."""
        milliseconds = c_float()
        driver = self.device.activate()
        driver.cuEventElapsedTime(byref(milliseconds), earlier.handle, self.handle)
        return milliseconds.value / 1000
