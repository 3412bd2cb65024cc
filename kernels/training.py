"""What training computes with: each step forward and its gradient, as one plain table of functions.

kernels/gradients.py is the definition and documents each function; kernels/cpu/training/ has the
same names.  minibert/training/passes.py calls them: forward as minibert/encoder.py does, backward
from the bottom up.

A step forward returns a record; its `out` is what inference would return, and the rest is what its
gradient needs.  The next step takes it as it is.  Only functions of the same table can read its
fields: a fast backend keeps arrays in its own form, and in memory that the next `begin` gives away
again.

A step `f` has the gradient `f_backward`.  It takes the gradient of the loss with respect to the
step's output, then what the step took and returned, and adds to the arrays of `gradient`, which
are laid out as the weights are.  It returns the gradient with respect to the step's input, and may
use up `d_out` and `plus` for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from minibert.arrays import Floats, Ints
from minibert.errors import BackendError
from minibert.options import gpu_index, is_one_of
from minibert.parameters import Dense, Weights

from . import gradients
from .backend import check_device


@dataclass(frozen=True)
class Dropout:
    """Which numbers a step sets to zero: the same ones forward and backward.

    A number is dropped if a hash of its place and of `key` is below `rate`; so the choice depends
    on neither threads nor on how a batch is cut.
    """

    rate: float  # chance of a number to become 0; the others are divided by 1 - rate
    key: int  # 32 bits, of the seed, the training step, the layer and the place in it
    first_token: int = 0  # number of the batch's first token in the whole training step


@dataclass(frozen=True)
class AdamW:
    """The numbers of one optimizer step, for one part of the weights."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: int  # from 1; corrects the averages' beginning at 0
    scale: float = 1.0  # of the gradient: clipping, and one over the number of windows


@dataclass(frozen=True)
class TrainingKernels:
    """The kernels that train, of one device."""

    name: str
    dtype: str  # in which it multiplies matrices
    num_threads: int | None
    # Weights as products read them, once and again after each step of the optimizer.
    prepare: Callable[[Weights], Any]
    refresh: Callable[[Any, Weights], None]
    begin: Callable[[], None]  # before each batch: what the last one kept is no longer needed

    # (input_ids, token_type_ids, position_ids, tables, eps, dropout) -> record
    embed: Callable[[Ints, Ints, Ints, Any, float, Dropout | None], Any]
    # (x, dense) -> record; what is projected are hidden states, which are residuals, too
    project: Callable[[Any, Any], Any]
    # (x, dense) -> record
    linear: Callable[[Any, Any], Any]
    # (record of qkv, cu_seqlens, num_heads, dropout) -> record
    attention: Callable[[Any, Ints, int, Dropout | None], Any]
    # (x, dense, residual, norm, eps, dropout) -> record
    linear_add_norm: Callable[[Any, Any, Any, Any, float, Dropout | None], Any]
    # (x, dense, activation) -> record
    linear_activation: Callable[[Any, Any, str], Any]
    # (x, head) -> start and end logits [T]
    span_logits: Callable[[Any, Any], tuple[Floats, Floats]]

    # (record of hidden states) -> the numbers [T, D]
    hidden_states: Callable[[Any], Floats]

    # (d_start, d_end, x, head, gradient) -> d_x [T, D]
    span_logits_backward: Callable[[Floats, Floats, Any, Any, Dense], Any]
    # (d_out, kept, x, dense, norm, gradient of dense, gradient of norm, dropout) -> d_x, d_residual
    linear_add_norm_backward: Callable[..., tuple[Any, Any]]
    # (d_out, kept, x, dense, activation, gradient, plus) -> d_x + plus
    linear_activation_backward: Callable[[Any, Any, Any, Any, str, Dense, Any], Any]
    # (d_out, kept, qkv, cu_seqlens, num_heads, dropout) -> d_qkv
    attention_backward: Callable[[Any, Any, Any, Ints, int, Dropout | None], Any]
    # (d_out, x, dense, gradient, plus) -> d_x + plus; plus may be None
    linear_backward: Callable[[Any, Any, Any, Dense, Any], Any]
    # (d_out, x, dense, gradient) -> d_x
    project_backward: Callable[[Any, Any, Any, Dense], Any]
    # (d_x, more [T, D]) -> d_x + more
    add_gradient: Callable[[Any, Floats], Any]
    # (d_out, kept, input_ids, token_type_ids, position_ids, tables, gradient, dropout)
    embed_backward: Callable[..., None]

    # (weights, gradient, first, second, settings): all [N] float32; changes all but the gradient
    adamw: Callable[[Floats, Floats, Floats, Floats, AdamW], None]
    sum_of_squares: Callable[[Floats], float]  # [N] -> float64


def training_table(
    name: str, dtype: str, kernels: Any, num_threads: int | None = None
) -> TrainingKernels:
    """The table of the functions in a module or object that has them under the same names."""
    own = ("name", "dtype", "num_threads")
    found = {f.name: getattr(kernels, f.name) for f in fields(TrainingKernels) if f.name not in own}
    return TrainingKernels(name, dtype, num_threads, **found)


REFERENCE = training_table("reference", "float32", gradients)


def get_training_kernels(
    device: str = "auto", dtype: str | None = None, num_threads: int | None = None
) -> TrainingKernels:
    """The kernels that train on a device.

    Args:
        device: 'auto', 'cpu' or 'reference' (plain NumPy, slow).  'auto' is the processor.
        dtype: in which matrices are multiplied: 'float32', or 'bfloat16' on the processor; None:
            'float32'.  Weights, sums and the optimizer are float32.
        num_threads: see `get_backend`.

    Raises:
        BackendError: there is no such device or dtype, or it does not train.
    """
    if isinstance(device, str) and gpu_index(device) is not None:
        raise BackendError(
            f"training runs on the processor for now, got device={device!r}. Use device='cpu'."
        )
    if is_one_of(dtype, ("int8",)):
        raise BackendError(
            "training multiplies in float32 or bfloat16, got dtype='int8': its steps are larger "
            "than what a weight changes by. Train in one of these, then convert."
        )
    kind, _ = check_device(device, dtype, num_threads)
    if kind == "reference":
        return REFERENCE
    # Here: LLVM takes a tenth of a second to import, and the reference does not need it.
    from .cpu.pool import MOST_THREADS, default_threads
    from .cpu.targets import find_target
    from .cpu.training.functions import Kernels

    threads = min(int(num_threads or default_threads()), MOST_THREADS)
    dtype = dtype or "float32"
    return training_table("cpu", dtype, Kernels(dtype, find_target(), threads), threads)
