"""Steps through a pickle, and says which tensors it describes, without running anything.

A pickle is a program for a small stack machine, and that program may call any function in Python:
to load a stranger's pickle is to run a stranger's code.  So nothing here unpickles.  `step_through`
goes through the program itself and knows only the instructions that build numbers, texts, tuples,
lists and dicts.  A function or class that the program names becomes a `Name`, which is only a text.
A call of it becomes what it would have given where that is a tensor, and otherwise an `Object`: a
record that says whose it would have been, does nothing, and is left lying beside the weights.

Source: torch/_utils.py, `_rebuild_tensor_v2`; torch/serialization.py, `persistent_id`.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from minibert.checkpoints.safetensors import MAX_DIMENSIONS, quote
from minibert.files import LIFTED_BY

# Type of a storage -> how safetensors calls what it holds.
STORAGE_DTYPES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}
TENSOR_NAMES = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETER_NAMES = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
MARKED_NAME = "torch._tensor._rebuild_from_type_v2"  # a tensor that has attributes
TENSOR_TYPES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")


@dataclass(frozen=True)
class Name:
    """A function or class that a pickle names: a text, never the thing itself."""

    name: str


@dataclass(eq=False, slots=True)
class Object:
    """What a call would have given that is not made: inert, whatever it would have been."""

    name: str  # of the function or class
    items: dict[Any, Any] = field(default_factory=dict)  # put into it, if it had been a dict
    state: Any = None  # its attributes, as the pickle has them


@dataclass(frozen=True)
class Storage:
    """A row of numbers in the file; `begin` and `size` say which part of it is meant."""

    key: str
    dtype: str  # a key of DTYPES
    count: int
    begin: int
    size: int


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's numbers lie in its storage; lengths and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def step_through(program: BinaryIO, most: int) -> tuple[Any, dict[str, Storage]]:
    """Step through one pickle, from where the file stands to behind its STOP instruction.

    Args:
        program: the file.
        most: instructions that it may have.

    Returns:
        What the pickle describes, with a `Tensor` for a tensor, and all storages by their key.

    Raises:
        ValueError: it has instructions that no file of torch.save has, or does not add up.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below each MARK
    memo: dict[Any, Any] = {}
    storages: dict[str, Storage] = {}
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(program)):
            if number >= most:
                raise ValueError(f"the pickle has more than {most} instructions; {LIFTED_BY}")
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop(), storages
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                    stack.append(argument)
                case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                    stack.append(argument)
                case "SHORT_BINSTRING" | "BINSTRING":  # texts of Python 2
                    stack.append(argument)
                case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                    stack.append(Object("builtins.bytes"))
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_SET":
                    stack.append(Object("builtins.set"))
                case "MARK":
                    outer.append(stack)
                    stack = []
                case "POP" if not stack:
                    stack = outer.pop()
                case "POP":
                    stack.pop()
                case "POP_MARK":
                    stack = outer.pop()
                case "TUPLE":
                    items, stack = stack, outer.pop()
                    stack.append(tuple(items))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                    stack.append(tuple(reversed(items)))
                case "FROZENSET":
                    stack = outer.pop()
                    stack.append(Object("builtins.frozenset"))
                case "APPEND" | "SETITEM":
                    size = 1 if opcode.name == "APPEND" else 2
                    items = [stack.pop() for _ in range(size)]
                    _fill(stack[-1], items[::-1], opcode.name)
                case "APPENDS" | "SETITEMS" | "ADDITEMS":
                    items, stack = stack, outer.pop()
                    _fill(stack[-1], items, opcode.name)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    if argument not in memo:
                        raise ValueError(f"the pickle uses memo {argument} before it is there")
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(Name(str(argument).replace(" ", ".", 1)))
                case "STACK_GLOBAL":
                    items = [stack.pop(), stack.pop()]
                    stack.append(Name(f"{_text(items[1])}.{_text(items[0])}"))
                case "BINPERSID":
                    found = _persistent(stack.pop())
                    if isinstance(found, Storage):
                        known = storages.setdefault(found.key, found)
                        if (found.dtype, found.count) != (known.dtype, known.count):
                            raise ValueError(f"storage {quote(found.key)} is described twice")
                    stack.append(found)
                case "REDUCE" | "NEWOBJ":
                    arguments = stack.pop()
                    stack.append(_call(stack.pop(), arguments))
                case "NEWOBJ_EX":
                    _, arguments = stack.pop(), stack.pop()  # arguments by name, by position
                    stack.append(_call(stack.pop(), arguments))
                case "OBJ":
                    items, stack = stack, outer.pop()
                    stack.append(_call(items[0], tuple(items[1:])))
                case "INST":
                    items, stack = stack, outer.pop()
                    stack.append(_call(Name(str(argument).replace(" ", ".", 1)), tuple(items)))
                case "BUILD":
                    state = stack.pop()
                    if isinstance(stack[-1], Object):
                        stack[-1].state = state
                    elif not isinstance(stack[-1], OrderedDict):  # whose _metadata nobody needs
                        raise ValueError(f"refuses to give attributes to {kind(stack[-1])}")
                case other:
                    raise ValueError(f"refuses the pickle instruction {other} at byte {position}")
    except IndexError:  # pop() or [-1] of an empty list
        raise ValueError("the pickle takes more from its stack than is there") from None
    raise ValueError("the pickle has no end")


def kind(value: object) -> str:
    """What a value of a pickle is, in a word or two."""
    if isinstance(value, Name | Object):
        return quote(value.name)
    return f"a {type(value).__name__}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the pickle names something with {kind(value)}, expected a text")
    return value


def _fill(target: object, items: list[Any], instruction: str) -> None:
    """Put items into a list, or keys and values in turn into a dict; what is inert takes all."""
    if isinstance(target, list) and instruction.startswith("APPEND"):
        target.extend(items)
    elif isinstance(target, Object) and not instruction.startswith("SETITEM"):
        pass
    elif (
        isinstance(target, dict | Object)
        and instruction.startswith("SETITEM")
        and (len(items) % 2 == 0)
    ):
        entries = target.items if isinstance(target, Object) else target
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Tensors are named by texts.  To hash a deep tuple overflows the C stack, and integers
            # can be chosen so that all have one hash.
            if isinstance(key, str):
                entries[key] = value
    else:
        raise ValueError(f"the pickle cannot {instruction} {len(items)} items to {kind(target)}")


def _call(function: object, arguments: object) -> object:
    """What a call would give, without calling anything: a tensor, a dict, or an inert `Object`."""
    if not isinstance(function, Name | Object) or not isinstance(arguments, tuple):
        raise ValueError(f"refuses to call {kind(function)} with {kind(arguments)}")
    name = function.name
    if isinstance(function, Name):
        if name in TENSOR_NAMES:
            return _tensor(arguments)
        if name in PARAMETER_NAMES and arguments and isinstance(arguments[0], Tensor | Object):
            return arguments[0]
        if name == MARKED_NAME and len(arguments) == 4 and _is_plain(arguments[1]):
            return Object(name) if arguments[0] == function else _call(arguments[0], arguments[2])
        if name == "torch.Size" and len(arguments) == 1 and isinstance(arguments[0], tuple):
            return arguments[0]
        if name == "collections.OrderedDict" and not arguments:
            return OrderedDict()
        if name == "collections.OrderedDict" and isinstance(arguments[0], list):
            return _ordered_dict(arguments[0])  # Python 2 wrote [[key, value], ...]
    return Object(name)


def _is_plain(of: object) -> bool:
    """Whether a class that a pickle names is a tensor's own, and not one derived from it."""
    return isinstance(of, Name) and of.name in TENSOR_TYPES


def _ordered_dict(pairs: list[Any]) -> OrderedDict[Any, Any]:
    result: OrderedDict[Any, Any] = OrderedDict()
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"expected pairs of key and value, found {kind(pair)}")
        _fill(result, list(pair), "SETITEM")
    pairs.clear()  # used up, so that a short pickle cannot copy it again and again
    return result


def _are_sizes(values: object) -> bool:
    """Whether these are integers from 0 to 2**62; True and False are none."""
    return isinstance(values, tuple) and all(type(n) is int and 0 <= n <= 2**62 for n in values)


def _persistent(identity: object) -> Storage | Name | Object:
    """What the file holds outside of its pickle: a storage, or a class with its source.

    Read ("storage", type, key, device, count), with a sixth item in the older format; and
    ("module", class, file, source).
    """
    if isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage":
        _, of, key, _, count, *rest = identity
        view = rest[0] if rest and rest[0] is not None else ("", 0, count)
        if (
            isinstance(of, Name)
            and isinstance(key, str)
            and isinstance(view, tuple)
            and len(view) == 3
            and _are_sizes((count, *view[1:]))
            and view[1] + view[2] <= count
        ):
            if of.name in STORAGE_DTYPES:
                return Storage(key, STORAGE_DTYPES[of.name], count, view[1], view[2])
            if of.name.endswith("Storage"):  # of complex numbers, for one
                return Object(of.name)
    elif isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
        _, of, _, _ = identity
        if isinstance(of, Name):
            return of
    raise ValueError(f"expected the description of a storage, found {quote(identity)}")


def _tensor(arguments: tuple[Any, ...]) -> Tensor | Object:
    """Read (storage, offset, shape, strides, ...), and check that it stays in the storage."""
    if len(arguments) < 4 or not isinstance(arguments[0], Storage | Object):
        raise ValueError("a tensor without storage, offset, shape and strides")
    storage, offset, shape, strides = arguments[:4]
    if isinstance(storage, Object):
        return storage
    if (
        not (_are_sizes((offset,)) and _are_sizes(shape) and _are_sizes(strides))
        or len(shape) != len(strides)
        or len(shape) > MAX_DIMENSIONS
    ):
        found = f"offset {quote(offset)}, shape {quote(shape)}, strides {quote(strides)}"
        raise ValueError(f"a tensor with {found}, expected sizes in elements")
    if len(arguments) > 6 and arguments[6]:
        raise ValueError("a tensor stored as the negative of its numbers is not supported")
    # A stride along a single element says nothing, and may be any number.
    strides = tuple(stride if n > 1 else 0 for n, stride in zip(shape, strides, strict=True))
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise ValueError(
            f"a tensor of shape {quote(list(shape))} reaches to element {last} of storage "
            f"{quote(storage.key)}, which has {storage.size}"
        )
    return Tensor(storage, offset, shape, strides)
