"""What `bench.py cuda` runs in processes of their own, so that no failure spoils what follows.

    python -m benchmark.cuda_side minibert     whole models
    python -m benchmark.cuda_side torch DEVICE the same models in torch, its ceilings, its kernels
    python -m benchmark.cuda_side kernels      single kernels of minibert
    python -m benchmark.cuda_side build        compiles kernels of minibert into its cache

Each answers JSON lines on stdin with one on stdout; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from benchmark.cuda_kernels import Singles, as_tuple
from benchmark.cuda_results import COMPILED, EAGER, READ, SDPA
from benchmark.peers import torch_model
from benchmark.worker import Answer, answer_lines, time_runs
from benchmark.workload import Floats, Window, make_windows, pack_in_order, pad

if TYPE_CHECKING:
    from minibert import windows as minibert_windows
    from minibert.model import Model

Run: TypeAlias = "Callable[[], list[Floats]]"  # logits [2, S] of each window

# How torch's batches are made: in which order, and how many windows.
BATCHES = {
    "sorted by 32": (True, 32),
    "unsorted by 32": (False, 32),
    "sorted by 128": (True, 128),
}
WARM_UPS = 3  # runs before anything of torch is timed: compiled graphs are recorded at the second


def is_one(work: str) -> bool:
    """Whether a piece of work is one window."""
    return work.isdigit()


class Models:
    """Answers about models: {"do": "load" | "check" | "time"}; one folder at a time."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.runs: dict[tuple[str, ...], Run] = {}

    def load(self, folder: Path) -> None:
        """Forget the model before."""
        self.runs.clear()
        self.folder = folder
        gc.collect()

    def make(self, kind: str, dtype: str, work: str, batches: str) -> Run:
        """What runs a piece of work; the model is loaded when it is first asked for."""
        raise NotImplementedError

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one message.

        "check" runs once and writes logits [2, T] to `save`; "time" runs for `budget` seconds.
        """
        if question["do"] == "load":
            self.load(Path(question["folder"]))
            return {}
        key = tuple(question[name] for name in ("kind", "dtype", "work", "batches"))
        if key not in self.runs:
            self.runs[key] = self.make(*key)
        run = self.runs[key]
        if question["do"] == "check":
            np.save(question["save"], np.hstack(run()))
            return {}
        return time_runs(run, question["budget"])


# ---------------------------------------------------------------- minibert


def as_windows(work: str) -> list[minibert_windows.Window]:
    """The windows of a piece of work as minibert has them."""
    from minibert.tokenizer import Tokens
    from minibert.windows import Window as Ours

    nothing = Tokens("", *(np.zeros(0, np.int32),) * 3)
    return [Ours(one.ids, one.types, nothing, 0, 0, 0) for one in make_windows(work)]


def packed(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Which windows go into which batch: in order, each filled up to a number of tokens.

    Example:
        >>> packed([3, 2, 4, 1], 5)
        [[0, 1], [2, 3]]
    """
    batches: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if length > room:
            batches.append([])
            room = max(most, length)
        batches[-1].append(i)
        room -= length
    return batches


class Ours(Models):
    """minibert's models.

    Args:
        open_model: loads a folder in a dtype.
    """

    def __init__(self, open_model: Callable[[Path, str], Model]):
        super().__init__()
        self.open_model = open_model
        self.models: dict[str, Model] = {}

    def load(self, folder: Path) -> None:
        """See `Models`."""
        self.models.clear()
        super().load(folder)

    def make(self, kind: str, dtype: str, work: str, batches: str) -> Run:
        """See `Models`."""
        from minibert.encoder import qa_logits
        from minibert.reading import GPU_BATCH_TOKENS

        assert_loaded(self.folder)
        if dtype not in self.models:
            self.models[dtype] = self.open_model(self.folder, dtype)  # type: ignore[arg-type]
        model = self.models[dtype]
        if is_one(work):
            [(_, batch)] = pack_in_order(make_windows(work))
            return lambda: [np.stack(qa_logits(batch, model.weights, model.config, model.kernels))]
        windows = as_windows(work)
        if kind == READ:
            examples = [(i, [window]) for i, window in enumerate(windows)]
            return lambda: [np.stack(pair) for _, _, [pair] in model.read(examples)]
        rows = packed([len(window) for window in windows], GPU_BATCH_TOKENS)
        groups = [[windows[i] for i in row] for row in rows]
        return lambda: [np.stack(pair) for pair in two_in_flight(model.begin, groups)]


def two_in_flight(begin: Callable[[Any], Callable[[], list[Any]]], groups: list[Any]) -> list[Any]:
    """The results of all batches; each is begun before the one before it is waited for."""
    found: list[Any] = []
    waiting: Callable[[], list[Any]] = list
    for group in groups:
        begun = begin(group)
        found += waiting()
        waiting = begun
    return found + waiting()


def assert_loaded(folder: Path | None) -> None:
    """Refuse to run nothing.

    Raises:
        ValueError: no model is loaded.
    """
    if folder is None:
        raise ValueError("no model is loaded")


# ---------------------------------------------------------------- torch


class Peers(Models):
    """The same models in torch: attention written out, torch's fused one, or compiled.

    Args:
        device: torch's name of it.
    """

    def __init__(self, device: str = "cuda"):
        super().__init__()
        import torch

        self.device = torch.device(device)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.models: dict[tuple[str, str], Any] = {}
        self.singles: dict[str, Callable[[], object]] = {}

    def load(self, folder: Path) -> None:
        """See `Models`."""
        import torch

        self.models.clear()
        super().load(folder)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def model(self, attention: str, dtype: str) -> Any:
        """The model with one kind of attention; read from the file once for all precisions."""
        import torch

        assert_loaded(self.folder)
        if (attention, "") not in self.models:
            self.models[attention, ""] = torch_model(self.folder, attention)  # type: ignore[arg-type]
        if (attention, dtype) not in self.models:
            model = copy.deepcopy(self.models[attention, ""])
            self.models[attention, dtype] = model.to(self.device, getattr(torch, dtype))
        return self.models[attention, dtype]

    def make(self, kind: str, dtype: str, work: str, batches: str) -> Run:
        """See `Models`."""
        import torch

        model = self.model(EAGER if kind == EAGER else SDPA, dtype)

        def forward(ids: Any, types: Any, mask: Any = None) -> Any:
            outputs = model(input_ids=ids, token_type_ids=types, attention_mask=mask)
            return torch.stack((outputs.start_logits, outputs.end_logits)).float()  # [2, B, S]

        windows = make_windows(work)
        if not is_one(work):
            return self.many(forward, windows, *BATCHES[batches])
        if kind == COMPILED:
            forward = torch.compile(forward, mode="reduce-overhead", dynamic=False)
        [window] = windows
        inputs = np.stack([window.ids, window.types]).astype(np.int64)[:, None]  # [2, 1, S]

        def run() -> list[Floats]:
            with torch.no_grad():
                ids, types = torch.from_numpy(inputs).to(self.device)
                return [forward(ids, types).cpu().numpy()[:, 0]]

        for _ in range(WARM_UPS):
            run()
        return run

    def many(
        self, forward: Callable[..., Any], windows: list[Window], ordered: bool, size: int
    ) -> Run:
        """Windows in padded batches; the processor prepares the next while the GPU works."""
        import torch

        lengths = [len(window.ids) for window in windows]

        def run() -> list[Floats]:
            order = list(range(len(windows)))
            if ordered:
                order.sort(key=lambda i: lengths[i], reverse=True)
            parts = [order[i : i + size] for i in range(0, len(order), size)]
            found: dict[int, Floats] = {}
            with torch.inference_mode():
                outputs = []
                for part in parts:
                    ids, mask, types = pad([windows[i] for i in part])
                    batch = torch.from_numpy(np.stack([ids, types, mask]))
                    outputs.append(forward(*batch.to(self.device, non_blocking=True)))
                for part, output in zip(parts, outputs, strict=True):
                    logits = output.cpu().numpy()
                    found |= {i: logits[:, row, : lengths[i]] for row, i in enumerate(part)}
            return [found[i] for i in range(len(windows))]

        return run

    # ------------------------------------------------------------ ceilings and single kernels

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """As `Models`, and {"do": "single"}: seconds of a copy, a product or attention."""
        if question["do"] == "clear":
            self.singles.clear()
            return {}
        if question["do"] != "single":
            return super().answer(question)
        key = json.dumps(question["kernel"], sort_keys=True)
        if key not in self.singles:
            self.singles[key] = self.single(**question["kernel"])
            self.seconds(self.singles[key], WARM_UPS)
        return {"seconds": self.seconds(self.singles[key], question["times"])}

    def single(self, kind: str, dtype: str, sizes: Sequence[int], sets: int) -> Callable[[], Any]:
        """Something to time, on several sets of random arrays in turn.

        Args:
            kind: 'copy' of sizes [n] numbers; 'product' and 'linear' of [tokens, in, out];
                'attention' of [windows, heads, tokens, head size].
            dtype: precision.
            sizes: see `kind`.
            sets: how many.
        """
        import torch
        from torch.nn import functional

        def random(*shape: int) -> Any:
            return torch.randn(*shape, device=self.device, dtype=getattr(torch, dtype))

        works: list[Callable[[], Any]]
        if kind == "product":
            tokens, into, out = sizes
            pairs = [(random(tokens, into), random(into, out)) for _ in range(sets)]
            works = [partial(torch.matmul, x, y) for x, y in pairs]
        elif kind == "linear":
            tokens, into, out = sizes
            weight, bias = random(out, into) * into**-0.5, random(out)
            inputs = [random(tokens, into) for _ in range(sets)]
            works = [partial(functional.linear, x, weight, bias) for x in inputs]
        elif kind == "attention":
            inputs = [random(3, *sizes) for _ in range(sets)]
            works = [partial(functional.scaled_dot_product_attention, *x) for x in inputs]
        else:
            pairs = [(random(*sizes), random(*sizes)) for _ in range(sets)]
            works = [partial(y.copy_, x) for x, y in pairs]
        turn = iter_forever(works)
        return lambda: next(turn)()

    def seconds(self, work: Callable[[], object], times: int) -> float:
        """Time of one of many calls in a row, by the GPU's clock where there is one."""
        import torch

        with torch.inference_mode():
            if self.device.type != "cuda":
                begin = time.perf_counter()
                for _ in range(times):
                    work()
                return (time.perf_counter() - begin) / times
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            work()  # runs while the next ones are launched
            first.record()
            for _ in range(times):
                work()
            last.record()
            last.synchronize()
            return first.elapsed_time(last) / 1000 / times


def iter_forever(works: Sequence[Callable[[], Any]]) -> Iterator[Callable[[], Any]]:
    """One after the other, again and again."""
    while True:
        yield from works


# ---------------------------------------------------------------- processes


def build(question: Mapping[str, Any]) -> dict[str, Any]:
    """Compile a kernel into minibert's cache."""
    from minibert.kernels.cuda.recipes import Recipe, built_kernel

    recipe = Recipe(*as_tuple(question["recipe"]))
    begin = time.perf_counter()
    built_kernel(recipe, as_tuple(question["capability"]))
    return {"seconds": time.perf_counter() - begin}


def start_side(name: str, *more: str) -> Callable[[dict[str, Any]], Answer]:
    """What answers the messages of a process."""
    if name == "build":
        return build
    if name == "torch":
        return Peers(*more).answer
    if name == "kernels":
        from minibert.kernels.cuda.detect import open_device
        from minibert.kernels.cuda.recipes import built_kernel

        return Singles(open_device(0), built_kernel).answer
    from minibert.model import load_model

    return Ours(lambda folder, dtype: load_model(folder, device="cuda", dtype=dtype)).answer


def main(arguments: list[str]) -> None:
    """Answer until stdin ends; the reason of a failure also goes to stderr, with its traceback."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to file 1 as they like
    side: Callable[[dict[str, Any]], Answer] | None = None

    def answer(question: dict[str, Any]) -> Answer:
        nonlocal side
        try:
            if side is None:  # here: a failure to begin is an answer as well
                side = start_side(*arguments)
            return side(question)
        except Exception:
            traceback.print_exc()
            raise

    answer_lines(lambda said: print(json.dumps(said), file=answers, flush=True), answer)


if __name__ == "__main__":
    main(sys.argv[1:])
