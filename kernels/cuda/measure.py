"""How fast this GPU multiplies matrices with these kernels.

`tools/bench.py cuda` prints it beside what the GPU reaches at most.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minibert.parameters import Dense

from .detect import open_device
from .driver import Device, Event, Memory
from .launcher import Launcher
from .recipes import Built, built_kernel
from .steps import Array, Steps
from .upload import narrow, padded, upload_dense

LAUNCHES = 20  # of one graph, so that Python's launches do not count


def rate(
    dtype: str,
    shape: tuple[int, int, int],
    device: Device | None = None,
    build: Callable[..., Built] = built_kernel,
) -> float:
    """Operations per second; a multiplication with its addition counts as two.

    Args:
        dtype: 'float32', 'float16' or 'bfloat16'.
        shape: T, in and out of y [T, out] = x [T, in] @ w [in, out], with the bias added.
        device: the GPU; None: the first.
        build: gives a recipe's compiled kernel.

    Raises:
        BackendError: the GPU cannot compute in that dtype, or there is none.
    """
    tokens, into, out = shape
    device = device or open_device(0)
    memory: dict[tuple[str, int], Memory] = {}

    def room(name: str, size: int) -> Memory:
        if (name, size) not in memory:
            memory[name, size] = Memory(device, size)
        return memory[name, size]

    counts = device.upload(np.array([tokens, 0, 0, 0], np.int32))
    steps = Steps(Launcher(device, dtype, build), counts, tokens, 0, room)
    random = np.random.default_rng(0)
    weight = random.standard_normal((out, into), np.float32) * np.float32(into**-0.5)
    dense = upload_dense(device, Dense(weight, np.zeros(out, np.float32)), dtype)
    numbers = padded(random.standard_normal((tokens, into), np.float32), tokens, dense.depth)
    x = Array(device.upload(narrow(numbers, dtype)), dense.depth)

    def multiply(times: int) -> None:
        for _ in range(times):
            steps.linear(x, dense)

    multiply(1)  # loads the kernel, which cannot be recorded
    device.synchronize()
    graph = device.record(lambda: multiply(LAUNCHES))
    begin, end = Event(device, timing=True), Event(device, timing=True)
    graph.launch()  # the GPU works already when the next is launched
    begin.record()
    graph.launch()
    end.record()
    end.wait()
    return 2 * tokens * into * out * LAUNCHES / end.seconds_since(begin)
