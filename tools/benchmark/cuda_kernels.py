"""Single kernels of device "cuda", timed by the GPU's own clock.

A kernel is launched many times from one recorded graph, so that Python's launches do not count,
and over several sets of inputs and outputs in turn, together larger than the GPU's second cache.
Before it is timed, its result is compared with kernels/reference.py for some rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmark.cuda_sums import window_split
from benchmark.workload import SEED, Floats

if TYPE_CHECKING:
    from minibert.kernels.cuda.driver import Device, Graph, Memory
    from minibert.kernels.cuda.recipes import Built

WIDTH, HEADS = 768, 12  # of the base model, whose kernels are timed
TOKENS = 8192
# in, out, how it ends, activation: the four products of a layer.
PRODUCTS = (
    (WIDTH, 3 * WIDTH, "store", ""),
    (WIDTH, WIDTH, "residual", ""),
    (WIDTH, 4 * WIDTH, "store", "gelu"),
    (4 * WIDTH, WIDTH, "residual", ""),
)
WINDOWS = (128, 384, 512)  # tokens
ROWS = ("embed", "norm", "add_norm", "span_logits")
SPLITS = 2  # that add_norm adds up
HALF_TILES = ((128, 256, (2, 4), 4), (128, 128, (2, 4), 4), (128, 128, (2, 2), 3))
CANDIDATES: dict[str, tuple[tuple[Any, ...], ...]] = {  # besides functions.TILES
    "float32": ((128, 64), (64, 128)),
    "float16": HALF_TILES,
    "bfloat16": HALF_TILES,
}

LAUNCHES = 20  # of a graph, about
CACHE = 1 << 27  # bytes: sets of arrays are together at least so large, twice the second cache
TABLE_ROWS = 100_000  # words of embed's table: so many that it does not fit in the cache either
SAMPLE = 61  # every so many rows are checked, and the first and last ones
EDGE = 64
BLOCK = 1_000_003  # random numbers that all arrays are made of; a prime, so that no rows are equal
EPS = 1e-12


def tile_name(tile: Sequence[Any]) -> str:
    """A tile as the head of a column.

    Example:
        >>> tile_name((128, 256, (2, 4), 4)), tile_name((64, 64))
        ('128x256, 2x4 warps, 4 stages', '64x64')
    """
    rows, columns, *options = tile
    name = f"{rows}x{columns}"
    if options:
        (down, across), stages = options
        name += f", {down}x{across} warps, {stages} stages"
    return name


def as_tuple(value: Any) -> Any:
    """JSON's lists as the tuples that they were.

    Example:
        >>> as_tuple([128, [2, 4]])
        (128, (2, 4))
    """
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


def tiles_of(dtype: str) -> list[tuple[Any, ...]]:
    """The tiles that are timed: minibert's own, and the candidates that it does not have yet."""
    from minibert.kernels.cuda.functions import TILES

    return list(dict.fromkeys((*TILES[dtype], *CANDIDATES[dtype])))


@dataclass
class Ready:
    """A recorded kernel."""

    graph: Graph
    launches: int
    difference: float | None  # relative error of the rows that were checked
    kept: Any  # the graph holds addresses only

    def seconds(self) -> float:
        """Time of one launch: of a graph that follows another, so that the GPU never waits."""
        from minibert.kernels.cuda.driver import Event

        device = self.graph.device
        begin, end = Event(device, timing=True), Event(device, timing=True)
        self.graph.launch()
        begin.record()
        self.graph.launch()
        end.record()
        end.wait()
        return end.seconds_since(begin) / self.launches


class Singles:
    """Makes and times kernels, as messages ask for them.

    Args:
        device: the GPU.
        build: gives a recipe's compiled kernel.
        cache: bytes that the sets of arrays are together.
    """

    def __init__(self, device: Device, build: Callable[..., Built], cache: int = CACHE):
        self.device, self.build, self.cache = device, build, cache
        self.ready: dict[str, Ready] = {}
        self.arrays: dict[tuple[Any, ...], Any] = {}  # on the GPU, shared by all tiles
        random = np.random.default_rng(SEED)
        self.block, self.other = random.standard_normal((2, BLOCK), np.float32)

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Time a kernel: {"do": "time", "kernel": {...}}; or forget all: {"do": "clear"}."""
        if question["do"] == "clear":
            self.ready.clear()
            self.arrays.clear()
            return {}
        kernel = question["kernel"]
        key = json.dumps(kernel, sort_keys=True)
        if key not in self.ready:
            make: dict[str, Callable[..., Ready]] = {
                "gemm": self.gemm,
                "attention": self.attention,
                "rows": self.rows,
            }
            self.ready[key] = make[kernel["kind"]](**as_tuples(kernel))
        ready = self.ready[key]
        return {"seconds": ready.seconds(), "difference": ready.difference}

    # ------------------------------------------------------------ arrays

    def host(self, rows: int, columns: int, dtype: str) -> NDArray[Any]:
        """Random numbers as they lie in the GPU's memory, [rows, columns]."""
        from minibert.kernels.cuda.upload import narrow

        return np.resize(narrow(self.block, dtype), (rows, columns))

    def weight(self, out: int, into: int, dtype: str) -> NDArray[Any]:
        """A random matrix as it lies in the GPU's memory: other numbers, and of its size."""
        from minibert.kernels.cuda.upload import narrow

        return np.resize(narrow(self.other * np.float32(into**-0.5), dtype), (out, into))

    def memory(self, size: int) -> Memory:
        """A piece of the GPU's memory that holds NaNs: what is not written shows."""
        from minibert.kernels.cuda.driver import Memory

        memory = Memory(self.device, size)
        driver = self.device.activate()
        driver.cuMemsetD8_v2(memory.address, 0xFF, memory.size)
        driver.cuStreamSynchronize(None)
        return memory

    def sets(self, size: int) -> int:
        """How many sets of arrays of `size` bytes are used in turn."""
        return min(LAUNCHES, max(2, -(-self.cache // size)))

    def rows_of(self, y: Memory, dtype: str, tokens: int, width: int) -> tuple[Any, Floats]:
        """Numbers of the rows that are checked, and the rows as float32."""
        from minibert.kernels.cuda.upload import STORED, widen

        whole = self.device.download(y, STORED[dtype], tokens * width).reshape(tokens, width)
        numbers = np.arange(tokens)
        edge = (numbers < EDGE) | (numbers >= tokens - EDGE)
        sample = numbers[edge | (numbers % SAMPLE == 0)]
        return sample, widen(whole[sample], dtype)

    def record(
        self, works: Sequence[Callable[[], None]], check: Callable[[], float] | None, kept: Any
    ) -> Ready:
        """Run each once, check the first, and record them all in turn."""
        works[0]()
        difference = check() if check else None
        for work in works[1:]:
            work()
        self.device.synchronize()
        times = -(-LAUNCHES // len(works))

        def all_of_them() -> None:
            for _ in range(times):
                for work in works:
                    work()

        graph = self.device.record(all_of_them)
        return Ready(graph, times * len(works), difference, (works, kept))

    # ------------------------------------------------------------ kernels

    def gemm(
        self,
        dtype: str,
        tile: tuple[Any, ...],
        tokens: int,
        into: int,
        out: int,
        end: str,
        activation: str,
    ) -> Ready:
        """A product of one layer with one tile."""
        from minibert.kernels import reference
        from minibert.kernels.cuda.functions import Steps, gemm_recipe
        from minibert.kernels.cuda.upload import DeviceDense, widen
        from minibert.kernels.numbers import round_up
        from minibert.parameters import Dense

        steps = Steps(self.device, dtype, self.build)
        width, depth = round_up(out, 8), round_up(into, 32)
        x_host = self.host(tokens, depth, dtype)
        w_host = self.weight(width, depth, dtype)
        b_host = np.resize(self.block[7:], width)
        key = (dtype, tokens, into, out, end)
        if key not in self.arrays:
            upload: Any = self.device.upload
            self.arrays.clear()
            dense = DeviceDense(upload(w_host), upload(b_host), width, width, depth)
            counts = upload(np.array([tokens, 0, 0, 0], np.int32))
            count = self.sets(tokens * (depth + width) * steps.bytes)
            room = tokens * width * steps.bytes
            inputs = [upload(x_host) for _ in range(count)]
            outputs = [self.memory(room) for _ in range(count)]
            residual = upload(self.host(tokens, width, dtype)) if end == "residual" else None
            self.arrays[key] = dense, counts, inputs, outputs, residual
        dense, counts, inputs, outputs, residual = self.arrays[key]
        recipe = gemm_recipe(dtype, end, activation, tile)
        driver = self.device.activate()
        driver.cuMemsetD8_v2(outputs[0].address, 0xFF, outputs[0].size)
        driver.cuStreamSynchronize(None)

        def work(x: Memory, y: Memory) -> Callable[[], None]:
            return lambda: steps._product(recipe, counts.address, x, dense, residual, y, tokens, 1)

        def check() -> float:
            sample, found = self.rows_of(outputs[0], dtype, tokens, width)
            layer = Dense(widen(w_host, dtype), b_host)
            x = widen(x_host[sample], dtype)
            if activation:
                truth = reference.linear_activation(x, layer, activation)
            else:
                truth = reference.linear(x, layer)
            if end == "residual":
                truth = truth + widen(self.host(tokens, width, dtype)[sample], dtype)
            return relative_error(found, truth)

        works = [work(x, y) for x, y in zip(inputs, outputs, strict=True)]
        return self.record(works, check, (steps, self.arrays[key]))

    def attention(self, dtype: str, tokens: int, length: int, heads: int, size: int) -> Ready:
        """Attention over windows of one length, and a shorter one for the rest."""
        from minibert.kernels import reference
        from minibert.kernels.cuda.functions import Steps, attention_tiles
        from minibert.kernels.cuda.upload import widen

        steps = Steps(self.device, dtype, self.build)
        width = heads * size
        lengths = window_split(tokens, length)
        borders = np.cumsum([0, *lengths], dtype=np.int32)
        tiles = attention_tiles(borders)
        host = self.host(tokens, 3 * width, dtype)
        upload = self.device.upload
        counts, places = upload(np.array([tokens, len(tiles), 0, 0], np.int32)), upload(tiles)
        count = self.sets(4 * tokens * width * steps.bytes)
        inputs = [upload(host) for _ in range(count)]
        outputs = [self.memory(tokens * width * steps.bytes) for _ in range(count)]

        def work(qkv: Memory, y: Memory) -> Callable[[], None]:
            return lambda: steps.attention(
                counts.address, places.address, qkv, y, heads, size, len(tiles)
            )

        def check() -> float:
            sample, found = self.rows_of(outputs[0], dtype, tokens, width)
            last = int(borders[-2])  # the first window and the last one
            if np.isnan(found).any():
                return float("nan")
            errors = []
            for begin, end in ((0, lengths[0]), (last, tokens)):
                inside = (sample >= begin) & (sample < end)
                window = np.array([0, end - begin], np.int32)
                qkv = widen(host[begin:end], dtype)
                truth = reference.attention(qkv, window, heads)[sample[inside] - begin]
                errors.append(relative_error(found[inside], truth))
            return max(errors)

        works = [work(x, y) for x, y in zip(inputs, outputs, strict=True)]
        return self.record(works, check, (steps, counts, places, inputs, outputs))

    def rows(self, dtype: str, name: str, tokens: int, width: int, table: int) -> Ready:
        """A kernel of rows.py; `table` is the number of words that embed looks up in."""
        from minibert.kernels.cuda.functions import Steps, rows_recipe
        from minibert.kernels.cuda.upload import DeviceDense, DeviceNorm, DeviceTables

        steps = Steps(self.device, dtype, self.build)
        upload: Any = self.device.upload
        counts = upload(np.array([tokens, 0, 0, 0], np.int32))
        gain, bias = (upload(np.resize(self.block[i:], width)) for i in (0, 9))
        norm = DeviceNorm(gain, bias)
        bytes_ = steps.bytes
        row = tokens * width * bytes_
        works: list[Callable[[], None]] = []
        kept: list[Any] = [counts, norm]
        eps = np.float32(EPS)

        if name == "embed":
            words = upload(self.host(table, width, dtype))
            types, places = (upload(self.host(n, width, dtype)) for n in (2, 512))
            tables = DeviceTables(words, places, types, norm, width)
            kept.append(tables)
            order = np.random.default_rng(SEED).permutation(table).astype(np.int32)
            count = self.sets(2 * row)
            for i in range(count):
                ids = upload(np.resize(np.roll(order, -i * tokens), tokens))
                kinds = upload(np.arange(tokens, dtype=np.int32) % 2)
                positions = upload(np.arange(tokens, dtype=np.int32) % 512)
                y = self.memory(row)
                addresses = ids.address, kinds.address, positions.address
                kept.append((ids, kinds, positions, y))
                works.append(
                    partial(steps.embed, counts.address, addresses, tables, y, eps, tokens)
                )
        elif name == "norm":
            recipe = rows_recipe("norm", dtype, width)
            for _ in range(self.sets(2 * row)):
                x, y = upload(self.host(tokens, width, dtype)), self.memory(row)
                kept.append((x, y))
                works.append(
                    partial(steps._rows, recipe, tokens, counts.address, x, gain, bias, y, eps)
                )
        elif name == "add_norm":
            recipe = rows_recipe("add_norm", dtype, width)
            for _ in range(self.sets(2 * row + 4 * SPLITS * tokens * width)):
                parts = upload(self.host(SPLITS * tokens, width, "float32"))
                x, y = upload(self.host(tokens, width, dtype)), self.memory(row)
                kept.append((parts, x, y))
                arguments = (parts, SPLITS, tokens, bias, x, gain, bias, y, eps)
                works.append(partial(steps._rows, recipe, tokens, counts.address, *arguments))
        else:
            head = DeviceDense(
                upload(self.host(2, width, "float32")), upload(np.zeros(2, np.float32)), 2, 2, width
            )
            kept.append(head)
            for _ in range(self.sets(row)):
                x, y = upload(self.host(tokens, width, dtype)), self.memory(8 * tokens)
                kept.append((x, y))
                works.append(partial(steps.span_logits, counts.address, x, head, y, tokens))
        return self.record(works, None, (steps, kept))


def as_tuples(kernel: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a kernel in a message."""
    return {name: as_tuple(value) for name, value in kernel.items() if name != "kind"}


def relative_error(found: Floats, truth: Floats) -> float:
    """The size of the difference over the size of the truth.

    Example:
        >>> round(relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0])), 3)
        0.1
    """
    wide = truth.astype(np.float64)
    return float(np.linalg.norm(found - wide) / np.linalg.norm(wide))
