"""Records in compiled code: pointers, through which fields are read and set by name.

`at(LAYER)(address, i)` points to record i of those that lie at an address; `layer.output.steps` is
then one load, since Numba asks the dtype, while it compiles, where the field lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    lower_setattr_generic,
    models,
    register_model,
)

from .simd import F32, I64


class Pointer(types.Type):  # type: ignore[misc]
    """Numba's type of a pointer to a record; in LLVM an int64, as every address here."""

    def __init__(self, record: np.dtype):
        self.record = record
        super().__init__(name=f"Pointer({record})")

    def field(self, name: str) -> tuple[np.dtype, int]:
        """Dtype of a field, and the bytes before it."""
        return self.record.fields[name][:2]  # type: ignore[index]

    def at(self, builder: Any, pointer: Any, name: str) -> Any:
        """Address of a field, in LLVM's language."""
        return builder.add(pointer, I64(self.field(name)[1]))


@register_model(Pointer)
class _PointerModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any):
        super().__init__(manager, kind, I64)


@infer_getattr
class _PointerFields(AttributeTemplate):  # type: ignore[misc]
    key = Pointer

    def generic_resolve(self, pointer: Pointer, name: str) -> Any:
        if name not in (pointer.record.names or ()):
            return None
        kind = pointer.field(name)[0]
        if kind.names:
            return Pointer(kind)
        return types.float32 if kind == np.float32 else types.intp


@lower_getattr_generic(Pointer)
def _get_field(context: Any, builder: Any, pointer: Pointer, value: Any, name: str) -> Any:
    kind, address = pointer.field(name)[0], pointer.at(builder, value, name)
    if kind.names:
        return address
    of = F32 if kind == np.float32 else I64
    return builder.load(builder.inttoptr(address, of.as_pointer()))


@lower_setattr_generic(Pointer)
def _set_field(context: Any, builder: Any, signature: Any, values: Any, name: str) -> None:
    address = signature.args[0].at(builder, values[0], name)
    value = context.cast(builder, values[1], signature.args[1], types.intp)
    builder.store(value, builder.inttoptr(address, I64.as_pointer()))


def at(record: np.dtype) -> Any:
    """For compiled code: pointer(address, i) to record i of those that lie at an address."""
    kind = Pointer(record)

    @intrinsic
    def pointer(context: Any, address: Any, i: Any) -> Any:
        def generate(_: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.add(values[0], builder.mul(values[1], I64(record.itemsize)))

        return kind(types.intp, types.intp), generate

    return pointer


@intrinsic(prefer_literal=True)
def address_of(context: Any, pointer: Any, name: Any) -> Any:
    """Where a field lies."""

    def generate(_: Any, builder: Any, signature: Any, values: Any) -> Any:
        return pointer.at(builder, values[0], name.literal_value)

    return types.intp(pointer, name), generate
