"""Backend: which version of each kernel a device runs, as one plain table of functions."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minibert.arrays import Floats, Ints
from minibert.errors import BackendError
from minibert.weights import Dense, Norm, Tables, Weights

from . import reference

if TYPE_CHECKING:
    from minibert.batches import Batch
    from minibert.config import BertConfig


@dataclass(frozen=True)
class Backend:
    """The kernels of one device.  kernels/reference.py documents each function."""

    name: str
    dtype: str  # in which it multiplies matrices
    num_threads: int | None  # None: as many as NumPy's own libraries use
    prepare: Callable[[Weights], Weights]
    embed: Callable[[Ints, Ints, Ints, Tables, float], Floats]
    linear: Callable[[Floats, Dense], Floats]
    attention: Callable[[Floats, Ints, int], Floats]
    linear_add_norm: Callable[[Floats, Dense, Floats, Norm, float], Floats]
    linear_activation: Callable[[Floats, Dense, str], Floats]
    span_logits: Callable[[Floats, Dense], tuple[Floats, Floats]]
    # All of the above in one go, where the device can do better so: logits of a whole batch.
    forward: Callable[[Batch, Weights, BertConfig], tuple[Floats, Floats]] | None = None


REFERENCE = Backend(
    name="reference",
    dtype="float32",
    num_threads=None,
    prepare=reference.prepare,
    embed=reference.embed,
    linear=reference.linear,
    attention=reference.attention,
    linear_add_norm=reference.linear_add_norm,
    linear_activation=reference.linear_activation,
    span_logits=reference.span_logits,
)

DEVICES = ("auto", "cpu", "cuda", "reference")
DTYPES = ("float32", "bfloat16", "int8")


def cpu_backend(dtype: str, num_threads: int | None) -> Backend:
    """The processor's kernels; compiled when they first run."""
    # Here: LLVM takes a tenth of a second to import, and the reference does not need it.
    from .cpu.functions import Kernels
    from .cpu.pool import MOST_THREADS, available_cores
    from .cpu.targets import find_target

    kernels = Kernels(
        dtype, find_target(), min(int(num_threads or available_cores()), MOST_THREADS)
    )
    return Backend(
        name="cpu",
        dtype=dtype,
        num_threads=kernels.num_threads,
        prepare=kernels.prepare,
        embed=kernels.embed,
        linear=kernels.linear,
        attention=kernels.attention,
        linear_add_norm=kernels.linear_add_norm,
        linear_activation=kernels.linear_activation,
        span_logits=kernels.span_logits,
        forward=kernels.forward,
    )


def get_backend(
    device: str = "auto", dtype: str | None = None, num_threads: int | None = None
) -> Backend:
    """The kernels for a device.

    Args:
        device: 'auto', 'cpu', 'cuda' (NVIDIA) or 'reference' (plain NumPy).
        dtype: in which matrices are multiplied: 'float32', 'bfloat16' or 'int8'; None: 'float32'.
        num_threads: at most so many, and at most 256, work on one batch; None: every core that this
            process may use.

    Raises:
        BackendError: there is no such device or dtype, or it cannot run here.
    """
    if not isinstance(device, str):
        raise BackendError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" or device.startswith("cuda:"):
        raise BackendError(
            f"device {device!r}: this version of minibert has no CUDA kernels yet. "
            "Use device='cpu', or 'auto' for the best that there is."
        )
    if device not in DEVICES:
        raise BackendError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
    if dtype is not None and dtype not in DTYPES:
        raise BackendError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    if num_threads is not None and (
        isinstance(num_threads, bool)
        or not isinstance(num_threads, numbers.Integral)
        or num_threads < 1
    ):
        raise BackendError(f"num_threads must be a whole number of at least 1, got {num_threads!r}")
    if device == "reference":
        if dtype not in (None, "float32"):
            raise BackendError(
                f"device 'reference' computes in float32 only, got dtype={dtype!r}. "
                "Use device='cpu'."
            )
        if num_threads is not None:
            raise BackendError(
                "device 'reference' takes no num_threads: NumPy's libraries choose their own. "
                "Set OPENBLAS_NUM_THREADS before Python starts, or use device='cpu'."
            )
        return REFERENCE
    return cpu_backend(dtype or "float32", num_threads)
