"""What the steps of training keep, and one call of the training program."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from minibert.kernels.training import Dropout

from ..compiler import Program
from ..packing import Record, address, aligned
from ..pool import YIELD
from ..records import TRAINING_JOBS
from .memory import Buffer

# ---------------------------------------------------------------- what steps keep


class Normal(NamedTuple):
    """What a norm keeps."""

    out: Buffer  # [T, D] float32
    operand: Buffer  # the same, as products read it
    normal: Buffer  # [T, D] before gain and bias
    deviations: Buffer  # [T] one over the deviation


class Projected(NamedTuple):
    """What a projection keeps."""

    out: Buffer  # [T, D] float32
    operand: Buffer  # the same, as products read it


class Linear(NamedTuple):
    """What a product keeps."""

    operand: Buffer

    @property
    def out(self) -> Buffer:
        """What the next step reads."""
        return self.operand


class Active(NamedTuple):
    """What an activation keeps."""

    operand: Buffer  # [T, F] as products read it
    before: Buffer  # [T, F]

    @property
    def out(self) -> Buffer:
        """What the next step reads."""
        return self.operand


class Attended(NamedTuple):
    """What attention keeps."""

    operand: Buffer  # [T, D] context, as products read it
    rows: Buffer  # [2 H, T] shifts and inverses of the softmax

    @property
    def out(self) -> Buffer:
        """What the next step reads."""
        return self.operand


# ---------------------------------------------------------------- one call


class Call:
    """One call of an entry of the training program, by so many threads at most."""

    def __init__(self, program: Program, num_threads: int, entry: str):
        self.entry, self.program, self.num_threads = entry, program, num_threads
        record = aligned((1,), TRAINING_JOBS[entry])
        self.address, self.record = address(record), record[0]
        self.record["yield_function"] = YIELD
        self.arrays: list[Any] = []
        self.tasks = 1

    def refer(self, name: str, array: NDArray[Any]) -> None:
        """Let a field point to an array, which lives as long as the call."""
        self.record[name] = address(array)
        self.arrays.append(array)

    def put(self, **buffers: Buffer) -> None:
        """Let fields point to buffers."""
        for name, buffer in buffers.items():
            self.record[name] = buffer.record
            self.arrays.append(buffer)

    def set_tasks(self, name: str, tasks: Record) -> None:
        """Set NAME_tasks and NAME_task_count."""
        self.refer(f"{name}_tasks", tasks)
        self.record[f"{name}_task_count"] = len(tasks)
        self.tasks = max(self.tasks, len(tasks))

    def set_dropout(self, dropout: Dropout | None, heads: int = 1) -> None:
        """Say what is dropped."""
        if dropout is None or not dropout.rate:
            return
        record = self.record["dropout"]
        record["on"], record["first_token"], record["heads"] = 1, dropout.first_token, heads
        record["key"], record["bound"] = dropout.key, int(dropout.rate * 2**32) - 2**31
        record["scale"] = 1 / (1 - dropout.rate)

    @property
    def threads(self) -> int:
        """How many take part, at most."""
        return max(1, min(self.num_threads, self.tasks))

    def run(self, slot: int) -> None:
        """Take tasks until none is left, as the thread of this slot."""
        self.program.run(self.entry, self.address, slot)
