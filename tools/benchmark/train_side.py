"""What each side of `bench.py train` does in its process: steps of training on the same batches.

A step is all that changes the weights: forward, loss, backward, clipping, AdamW.  Batches are laid
out before: minibert packs their windows, torch pads them to the longest and masks the rest.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmark.workload import pad

if TYPE_CHECKING:
    from benchmark.peers import Peer

RATE, DECAY, EPS, BETAS, CLIP = 3e-5, 0.01, 1e-8, (0.9, 0.999), 1.0
NO_DECAY = ("bias", "LayerNorm.weight")  # ends of names
DROPOUT = 0.1  # if any: of hidden states and of attention, as BERT's configs have it
MEMORY = "memory"  # what bounds steps that multiply no matrices


class Example(NamedTuple):
    """A window of S tokens with its answer."""

    ids: Sequence[int]  # [S]
    types: Sequence[int]  # [S] 0 for the question, 1 for the text
    start: int  # first token of the answer
    end: int  # its last


# ---------------------------------------------------------------- where the time of a step goes


class Meter:
    """What the parts of some steps took."""

    def __init__(self) -> None:
        # By name, as they came first: what bounds it, the dtype of its products or MEMORY; seconds;
        # calls; and operations or bytes.
        self.parts: dict[str, list[Any]] = {}
        self.tokens = self.squares = 0  # of the pass: its tokens; squares of lengths, summed up

    @contextlib.contextmanager
    def timed(self, name: str, bound: str = "", work: float = 0) -> Iterator[None]:
        """Add a call."""
        begin = time.perf_counter()
        yield
        part = self.parts.setdefault(name, [bound, 0.0, 0, 0.0])
        for i, number in enumerate((time.perf_counter() - begin, 1, work), 1):
            part[i] += number


def work_of(call: Any, size: int, meter: Meter) -> tuple[str, float]:
    """The name of a call of the training program, and its operations or bytes.

    Bytes are those that have to be read and written once if nothing stays in a cache.

    Args:
        call: of kernels/cpu/training/functions.py.
        size: bytes of a number that products read.
        meter: knows the pass.
    """
    entry, record = call.entry, call.record
    if entry.startswith("linear"):
        into, out = int(record["dense"]["into"]), int(record["dense"]["out"])
        products = 2 if entry.endswith("backward") else 1  # for the input, and for the weights
        return f"{entry}, {into} to {out}", 2 * products * meter.tokens * into * out
    if entry.startswith("attention"):
        # Scores and context; backward the scores again, and the gradients of four things.
        products = 5 if entry.endswith("backward") else 2
        return entry, 2 * products * meter.squares * int(record["hidden"])
    if entry == "pack":  # reads float32; writes panels for forward and for backward
        return entry, int(record["out"]) * int(record["into"]) * (4 + 2 * size)
    if entry in ("adamw", "sum_of_squares"):
        arrays = 7 if entry == "adamw" else 1  # it reads four and writes three
        return entry, 4 * arrays * call.arrays[0].size
    hidden = int((record["tables"] if entry == "embed" else record)["hidden"])
    arrays = {"embed": 3, "span_logits": 1, "span_logits_backward": 2, "embed_backward": 5}[entry]
    return entry, 4 * arrays * meter.tokens * hidden


def metered_kernels(dtype: str, threads: int, meter: Meter) -> Any:
    """The processor's kernels, each call timed; that takes some microseconds of each."""
    from minibert.kernels.cpu.targets import SIZES, find_target
    from minibert.kernels.cpu.training.functions import Kernels
    from minibert.kernels.training import training_table

    class Metered(Kernels):
        def _run(self, call: Any, length: int = 0, head_size: int = 0) -> None:
            name, work = work_of(call, SIZES[self.operand], meter)
            multiplies = call.entry.startswith(("linear", "attention"))
            with meter.timed(name, dtype if multiplies else MEMORY, work):
                super()._run(call, length, head_size)

    return training_table("cpu", dtype, Metered(dtype, find_target(), threads), threads)


# ---------------------------------------------------------------- the sides


class MinibertTrainer:
    """minibert, as minibert/training/trainer.py trains; with 0 threads the definition in NumPy."""

    def __init__(self, folder: Path, dtype: str, threads: int) -> None:
        from minibert.checkpoints.safetensors import open_checkpoint
        from minibert.config import BertConfig
        from minibert.kernels.training import REFERENCE
        from minibert.training.flat import flatten, zeros_like
        from minibert.training.optimizer import trained_groups
        from minibert.training.settings import TrainingSettings
        from minibert.weights import load_weights

        self.config = BertConfig.from_json(folder / "config.json")
        checkpoint = open_checkpoint(folder / "model.safetensors")
        self.weights = flatten(load_weights(checkpoint, self.config))
        self.gradient, self.first, self.second = (zeros_like(self.weights) for _ in range(3))
        self.settings = TrainingSettings(learning_rate=RATE, weight_decay=DECAY)
        self.groups = trained_groups(self.weights.parts, self.settings)
        self.meter, self.steps = Meter(), 0
        self.kernels = metered_kernels(dtype, threads, self.meter) if threads else REFERENCE
        self.prepared = self.kernels.prepare(self.weights.weights)

    def lay_out(self, examples: Sequence[Example]) -> Any:
        """A batch as `step` takes it: of each pass packed windows, right starts, right ends."""
        from minibert.batches import Batch
        from minibert.training.order import cut

        passes, most = [], self.settings.max_tokens_per_pass
        lengths = np.array([len(one.ids) for one in examples])
        for part in cut(np.arange(len(examples)), lengths, len(examples), most):
            some = [examples[i] for i in part]
            windows = [np.array([one.ids, one.types, range(len(one.ids))]) for one in some]
            bounds = np.cumsum([0, *lengths[part]], dtype=np.int32)
            batch = Batch(*np.hstack(windows).astype(np.int32), bounds)
            passes.append((batch, [[one.start] for one in some], [[one.end] for one in some]))
        return passes

    def step(self, passes: Any, dropout: bool) -> tuple[float, float]:
        """Train on a batch.

        Returns:
            The loss, a mean over windows, and the norm of its gradient before clipping.
        """
        from minibert.training.loss import span_loss
        from minibert.training.optimizer import clipping, gradient_norm, take_step
        from minibert.training.passes import Dropouts, backward, forward

        kernels, config, prepared, meter = self.kernels, self.config, self.prepared, self.meter
        flat = [each.array for each in (self.weights, self.gradient, self.first, self.second)]
        total, tokens, windows = 0.0, 0, sum(len(starts) for _, starts, _ in passes)
        self.steps += 1
        with meter.timed("gradient to zero", MEMORY, self.gradient.array.nbytes):
            self.gradient.array[:] = 0
        for batch, starts, ends in passes:
            lengths = np.diff(batch.cu_seqlens).astype(np.int64)
            meter.tokens, meter.squares = int(lengths.sum()), int((lengths**2).sum())
            dropped = Dropouts(DROPOUT, DROPOUT, 0, self.steps, tokens) if dropout else None
            kept = forward(batch, prepared, config, kernels, dropped)
            with meter.timed("span_loss, in NumPy"):
                logits = (kept.start_logits, kept.end_logits)
                loss, d_start, d_end = span_loss(*logits, batch.cu_seqlens, starts, ends)
            backward(kept, d_start, d_end, prepared, self.gradient.weights, config, kernels)
            total, tokens = total + loss, tokens + meter.tokens
        norm = gradient_norm(self.gradient.array, self.groups, kernels) / windows
        scale = clipping(norm, self.settings) / windows
        numbers = {"learning_rate": RATE, "update": self.steps, "scale": scale}
        take_step(*flat, self.groups, kernels, self.settings, **numbers)
        kernels.refresh(prepared, self.weights.weights)
        return total / windows, norm


class TorchTrainer:
    """The model of transformers with torch's fused attention and AdamW; bfloat16 by autocast."""

    def __init__(self, folder: Path, dtype: str, threads: int, compiled: bool = False) -> None:
        import torch

        from benchmark.peers import torch_model

        torch.set_num_threads(threads)
        self.model = torch_model(folder, "sdpa")
        self.half = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
        self.loss = torch.compile(self.compute_loss) if compiled else self.compute_loss
        named = list(self.model.named_parameters())
        groups = [
            {"params": [w for name, w in named if name.endswith(NO_DECAY) == kept], **settings}
            for kept, settings in ((False, {"weight_decay": DECAY}), (True, {"weight_decay": 0.0}))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS, fused=True)

    def lay_out(self, examples: Sequence[Example]) -> Any:
        """A batch as `step` takes it: ids, mask and types, padded; starts and ends."""
        import torch

        starts, ends = (torch.tensor([one[i] for one in examples]) for i in (2, 3))
        return *map(torch.from_numpy, pad(examples)), starts, ends

    def compute_loss(self, ids: Any, mask: Any, types: Any, starts: Any, ends: Any) -> Any:
        """The mean over windows."""
        from torch.nn.functional import cross_entropy

        with self.half:
            outputs = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types)
        found = (outputs.start_logits, outputs.end_logits)
        start, end = (logits.float().masked_fill(mask == 0, -1e9) for logits in found)
        return (cross_entropy(start, starts) + cross_entropy(end, ends)) / 2

    def step(self, batch: Any, dropout: bool) -> tuple[float, float]:
        """Train on a batch; see MinibertTrainer."""
        import torch

        self.model.train(dropout)
        loss = self.loss(*batch)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item(), norm.item()


class TrainSide:
    """One library in one precision, which answers messages.

    They have a `do`: "load" the model of a `folder` and take a first step without dropout, then one
    with each of the `batches` and perhaps with `dropout`, to warm up; or "time" as many of these.
    """

    def __init__(self, peer: Peer, threads: int) -> None:
        self.peer, self.threads = peer, threads

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a message says.

        Returns:
            loss and norm of the first step; or seconds, waited and cores (worker.time_runs), the
            mean loss, the megabytes rss and hwm, and the parts of the time (Meter).
        """
        from benchmark.worker import resident_memory, time_runs

        if message["do"] == "load":
            trainer = self.peer.load(Path(message["folder"]), self.peer.dtype, self.threads)
            batches = [[Example(*one) for one in batch] for batch in message["batches"]]
            self.trainer, self.dropout = trainer, message["dropout"]
            self.batches = [trainer.lay_out(batch) for batch in batches]
            loss, norm = trainer.step(self.batches[0], False)
            self.train()
            return {"loss": loss, "norm": norm}
        meter = getattr(self.trainer, "meter", Meter())
        meter.parts.clear()
        losses: list[float] = []
        found = time_runs(lambda: losses.append(self.train()), 0)
        return {**found, "mean": losses[0], **resident_memory(), "parts": meter.parts}

    def train(self) -> float:
        """One step with each batch; the mean loss."""
        return statistics.mean(self.trainer.step(one, self.dropout)[0] for one in self.batches)
