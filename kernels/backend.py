"""Backend: which version of each kernel a device runs, as one plain table of functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from minibert.arrays import Floats, Ints
from minibert.errors import BackendError
from minibert.weights import Dense, Norm, Tables, Weights

from . import reference


@dataclass(frozen=True)
class Backend:
    """The kernels of one device.  kernels/reference.py documents each function."""

    name: str
    prepare: Callable[[Weights], Weights]
    embed: Callable[[Ints, Ints, Ints, Tables, float], Floats]
    linear: Callable[[Floats, Dense], Floats]
    attention: Callable[[Floats, Ints, int], Floats]
    linear_add_norm: Callable[[Floats, Dense, Floats, Norm, float], Floats]
    linear_activation: Callable[[Floats, Dense, str], Floats]
    span_logits: Callable[[Floats, Dense], tuple[Floats, Floats]]


REFERENCE = Backend(
    name="reference",
    prepare=reference.prepare,
    embed=reference.embed,
    linear=reference.linear,
    attention=reference.attention,
    linear_add_norm=reference.linear_add_norm,
    linear_activation=reference.linear_activation,
    span_logits=reference.span_logits,
)

# The processor's own kernels take these places one by one; until then the definition runs.
CPU = replace(REFERENCE, name="cpu")

BACKENDS = {backend.name: backend for backend in (REFERENCE, CPU)}
DEVICES = ("auto", "cpu", "cuda", "reference")


def get_backend(device: str) -> Backend:
    """The kernels for a device: 'auto', 'cpu', 'cuda' (NVIDIA) or 'reference' (plain NumPy).

    Raises:
        BackendError: there is no such device, or it cannot run here.
    """
    if not isinstance(device, str):
        raise BackendError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" or device.startswith("cuda:"):
        raise BackendError(
            f"device {device!r}: this version of minibert has no CUDA kernels yet. "
            "Use device='cpu', or 'auto' for the best that there is."
        )
    if device == "auto":
        return CPU
    if device not in BACKENDS:
        raise BackendError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
    return BACKENDS[device]
