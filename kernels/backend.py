"""Backend: which version of each kernel a device runs, as one plain table of functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from minibert.arrays import Floats, Ints
from minibert.errors import BackendError, InputError
from minibert.options import DEVICE_DTYPES, DEVICES, DTYPES, check_count, gpu_index, is_one_of
from minibert.parameters import Dense, Norm, Tables, Weights
from minibert.reprs import shown

from . import reference

if TYPE_CHECKING:
    from minibert.batches import Batch
    from minibert.config import BertConfig


Logits: TypeAlias = tuple[Floats, Floats]  # start and end logits, both [T]


@dataclass(frozen=True)
class Backend:
    """The kernels of one device.  kernels/reference.py documents each function.

    What `prepare` and its parts make of weights is the backend's own affair: only the functions of
    the same backend can read it.
    """

    name: str
    dtype: str  # in which it multiplies matrices
    num_threads: int | None  # None: as many as NumPy's own libraries use
    prepare: Callable[[Weights], Any]
    prepare_tables: Callable[[Tables], Any]
    prepare_dense: Callable[[Dense], Any]
    prepare_norm: Callable[[Norm], Any]
    prepare_head: Callable[[Dense], Any]
    embed: Callable[[Ints, Ints, Ints, Any, float], Floats]
    linear: Callable[[Floats, Any], Floats]
    attention: Callable[[Floats, Ints, int], Floats]
    linear_add_norm: Callable[[Floats, Any, Floats, Any, float], Floats]
    linear_activation: Callable[[Floats, Any, str], Floats]
    span_logits: Callable[[Floats, Any], Logits]
    # The logits of a whole batch in one go, where the device can do better so: (batch, weights,
    # config), the same steps.
    forward: Callable[[Batch, Any, BertConfig], Logits] | None = None
    # Begins a whole batch on a device of its own: (steps, batch, weights, config), where steps is
    # `bert` of minibert/encoder.py, which is recorded once and then replayed.  The function that
    # comes back waits for the logits.
    launch: Callable[[Any, Batch, Any, BertConfig], Callable[[], Logits]] | None = None

    def __repr__(self) -> str:
        threads = f", {self.num_threads} threads" if self.num_threads else ""
        return f"Backend({self.name}, {self.dtype}{threads})"


def table(name: str, dtype: str, kernels: Any, num_threads: int | None = None) -> Backend:
    """The table of the functions in a module or object that has them under the same names."""
    found = {
        field.name: getattr(kernels, field.name)
        for field in fields(Backend)
        if field.name not in ("name", "dtype", "num_threads") and hasattr(kernels, field.name)
    }
    return Backend(name, dtype, num_threads, **found)


REFERENCE = table("reference", "float32", reference)


def cpu_backend(dtype: str, num_threads: int | None) -> Backend:
    """The processor's kernels; compiled when they first run."""
    # Here: LLVM takes a tenth of a second to import, and the reference does not need it.
    from .cpu.functions import Kernels
    from .cpu.pool import MOST_THREADS, default_threads
    from .cpu.targets import find_target

    threads = min(int(num_threads or default_threads()), MOST_THREADS)
    return table("cpu", dtype, Kernels(dtype, find_target(), threads), threads)


def cuda_backend(dtype: str, index: int) -> Backend:
    """The kernels of an NVIDIA GPU.

    Raises:
        BackendError: there is no such GPU, or it cannot be used.
    """
    from .cuda.detect import open_device
    from .cuda.functions import Kernels

    return table(f"cuda:{index}" if index else "cuda", dtype, Kernels(open_device(index), dtype))


def check_device(device: str, dtype: str | None, num_threads: int | None) -> tuple[str, int | None]:
    """Refuse a device, dtype or number of threads that `get_backend` does not take.

    Returns:
        'cpu', 'cuda' or 'reference', and which GPU if it is one.

    Raises:
        BackendError: there is no such device or dtype, or it does not go with the others.
    """
    if not isinstance(device, str):
        raise BackendError(f"device must be one of {', '.join(DEVICES)}, got {shown(device)}")
    index = gpu_index(device)
    if index is None and device not in DEVICES:
        raise BackendError(
            f"unknown device {shown(device)}; choose one of {', '.join(DEVICES)}, or 'cuda:1' for "
            "the second GPU"
        )
    if dtype is not None and not is_one_of(dtype, DTYPES):
        raise BackendError(f"unknown dtype {shown(dtype)}; choose one of {', '.join(DTYPES)}")
    if num_threads is not None:
        try:
            check_count("num_threads", num_threads, 1)
        except InputError as error:
            raise BackendError(str(error)) from None
    kind = "cpu" if device == "auto" else "cuda" if index is not None else device
    known = DEVICE_DTYPES[kind]
    if dtype is not None and dtype not in known:
        able = [each for each, dtypes in DEVICE_DTYPES.items() if dtype in dtypes]
        raise BackendError(
            f"device {device!r} computes in {', '.join(known)} only, got dtype={dtype!r}. "
            f"Use device={' or '.join(map(repr, able))}."
        )
    if kind != "cpu" and num_threads is not None:
        own = {
            "cuda": "the GPU has its own",
            "reference": "NumPy's libraries choose their own. Set OPENBLAS_NUM_THREADS before "
            "Python starts",
        }[kind]
        raise BackendError(
            f"device {device!r} takes no num_threads: {own}. Leave it out, or use device='cpu'."
        )
    return kind, index


def get_backend(
    device: str = "auto", dtype: str | None = None, num_threads: int | None = None
) -> Backend:
    """The kernels for a device.

    Args:
        device: 'auto', 'cpu', 'cuda' (NVIDIA; 'cuda:1' is the second one) or 'reference' (plain
            NumPy).  'auto' is the processor.
        dtype: in which matrices are multiplied: 'float32'; 'bfloat16'; 'int8' on the processor;
            'float16' on a GPU; None: 'float32'.
        num_threads: at most so many, and at most 256, work on one batch; None: every core that this
            process may use, or as many as OMP_NUM_THREADS says if that is less.

    Raises:
        BackendError: there is no such device or dtype, or it cannot run here.
    """
    kind, index = check_device(device, dtype, num_threads)
    if kind == "reference":
        return REFERENCE
    if index is not None:
        return cuda_backend(dtype or "float32", index)
    return cpu_backend(dtype or "float32", num_threads)
