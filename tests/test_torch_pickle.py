"""The reader of pytorch_model.bin.  Its files are put together here byte by byte.

Only the last section uses PyTorch, and is skipped without it.
"""

import argparse
import collections
import datetime
import enum
import functools
import io
import itertools
import pathlib
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibert.checkpoints.pickles import step_through
from minibert.checkpoints.torch_pickle import read_torch_file
from minibert.errors import CheckpointError, MinibertError, ModelNotFoundError
from minibert.files import without_bounds

# --- pickles, instruction by instruction -------------------------------------------------------

NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
MAGIC = 0x1950A86A20F9469CFC6C


def named(name):
    module, attribute = name.rsplit(".", 1)
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def tuple_of(*items):
    return b"(" + b"".join(items) + b"t"


def numbers(values):
    return tuple_of(*map(number, values))


def list_of(*items):
    return b"](" + b"".join(items) + b"e"


def dict_of(items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def call(name, *arguments):
    return named(name) + tuple_of(*arguments) + b"R"


def storage(kind="Float", key="0", count=6, *more):
    device = text("cpu")
    return tuple_of(
        text("storage"), named(f"torch.{kind}Storage"), text(key), device, number(count), *more
    ) + (b"Q")


def tensor(of=None, offset=0, shape=(2, 3), strides=(3, 1), more=()):
    hooks = call("collections.OrderedDict")
    arguments = number(offset), numbers(shape), numbers(strides), FALSE, hooks, *more
    return call("torch._utils._rebuild_tensor_v2", of or storage(), *arguments)


def program(body):
    return b"\x80\x02" + body + b"."


SIX = np.arange(6, dtype="<f4").tobytes()


def zip_file(body, storages, extra=(("byteorder", b"little"),), compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program(body))
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
        for name, content in extra:
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def legacy_file(body, storages, sizes=None, little=TRUE, magic=MAGIC, protocol=1001):
    """The older format.  `sizes`: the length of an element of each storage, 4 unless told."""
    parts = [number(magic), number(protocol), dict_of({"little_endian": little}), body]
    parts.append(list_of(*map(text, storages)))
    data = [
        struct.pack("<q", len(content) // (sizes or {}).get(key, 4)) + content
        for key, content in storages.items()
    ]
    return b"".join(map(program, parts)) + b"".join(data)


FORMATS = {"zip": zip_file, "legacy": legacy_file}


@pytest.fixture(params=FORMATS)
def write(request, tmp_path):
    """Write a file of either format: write(pickle's body, storages) -> its path."""

    def write(body, storages=None, **more):
        path = tmp_path / "pytorch_model.bin"
        content = FORMATS[request.param](body, {"0": SIX} if storages is None else storages, **more)
        path.write_bytes(content)
        return path

    write.format = request.param
    return write


def write_as(folder, content):
    path = folder / "pytorch_model.bin"
    path.write_bytes(content)
    return path


def problem(path, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        read_torch_file(path)
    assert path.name in str(caught.value)
    # Without the folder, which pytest names after the test: its words would fool the tests.
    return str(caught.value).replace(str(path.parent), "")


# --- files that are fine -----------------------------------------------------------------------


def test_a_state_dict_is_read_by_name(write):
    arrays = read_torch_file(write(dict_of({"a.weight": tensor(), "n": number(3), "m": NONE})))
    assert list(arrays) == ["a.weight"]
    assert arrays["a.weight"].dtype == np.float32
    assert arrays["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Double", "f8"),
        ("Float", "f4"),
        ("Half", "f2"),
        ("Long", "i8"),
        ("Int", "i4"),
        ("Short", "i2"),
        ("Char", "i1"),
        ("Byte", "u1"),
        ("Bool", "?"),
    ],
)
def test_every_storage_type_keeps_its_dtype(tmp_path, kind, dtype):
    values = np.array([1, 0, 3], dtype)
    body = dict_of({"x": tensor(storage(kind, count=3), shape=(3,), strides=(1,))})
    for content in (
        zip_file(body, {"0": values.tobytes()}),
        legacy_file(body, {"0": values.tobytes()}, {"0": values.itemsize}),
    ):
        array = read_torch_file(write_as(tmp_path, content))["x"]
        assert array.dtype == values.dtype
        assert array.tolist() == values.tolist()


def test_bfloat16_is_widened_to_float32(tmp_path):
    values = np.array([1.5, -2, 0, 2.0**100], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    body = dict_of({"x": tensor(storage("BFloat16", count=4), 1, (3,), (1,))})
    array = read_torch_file(write_as(tmp_path, zip_file(body, {"0": bits})))["x"]
    assert array.dtype == np.float32
    assert not array.flags.writeable
    assert array.tolist() == values[1:].tolist()


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "expected"),
    [
        (0, (3, 2), (1, 3), [[0, 3], [1, 4], [2, 5]]),  # transposed
        (1, (2, 2), (3, 1), [[1, 2], [4, 5]]),  # columns
        (5, (), (), 5),
        (2, (1, 3), (2**62, 1), [[2, 3, 4]]),  # the stride along one element says nothing
        (4, (2, 2), (0, 1), [[4, 5], [4, 5]]),  # expanded
        (6, (0,), (1,), []),
        (0, (2, 0), (0, 1), [[], []]),
    ],
)
def test_offset_shape_and_strides_are_respected(write, offset, shape, strides, expected):
    array = read_torch_file(write(dict_of({"x": tensor(None, offset, shape, strides)})))["x"]
    assert array.shape == shape
    assert array.tolist() == expected


def test_tensors_that_share_a_storage_share_memory_and_are_read_only(write):
    row = tensor(offset=3, shape=(3,), strides=(1,))
    arrays = read_torch_file(write(dict_of({"a": tensor(), "tied": tensor(), "row": row})))
    assert arrays["row"].tolist() == [3, 4, 5]
    assert np.shares_memory(arrays["a"], arrays["tied"])
    assert np.shares_memory(arrays["a"], arrays["row"])
    assert not arrays["a"].flags.writeable


def test_two_storages_are_kept_apart(write):
    body = dict_of({"b": tensor(storage(key="10")), "a": tensor(storage(key="9"))})
    arrays = read_torch_file(write(body, {"9": SIX, "10": SIX[::-1]}))
    assert arrays["a"].tobytes() == SIX
    assert arrays["b"].tobytes() == SIX[::-1]


@pytest.mark.parametrize("name", ["_rebuild_parameter", "_rebuild_parameter_with_state"])
def test_a_parameter_is_its_tensor(write, name):
    parameter = call(f"torch._utils.{name}", tensor(), TRUE, call("collections.OrderedDict"))
    assert read_torch_file(write(dict_of({"x": parameter})))["x"].tobytes() == SIX


def test_the_oldest_rebuild_function_is_known(write):
    arguments = storage(), number(0), numbers((6,)), numbers((1,))
    body = dict_of({"x": call("torch._utils._rebuild_tensor", *arguments)})
    assert read_torch_file(write(body))["x"].tobytes() == SIX


def test_an_ordered_dict_may_carry_metadata(write):
    metadata = dict_of({"_metadata": call("collections.OrderedDict")})
    body = call("collections.OrderedDict") + b"(" + text("x") + tensor() + b"u" + metadata + b"b"
    assert list(read_torch_file(write(body))) == ["x"]


def test_an_ordered_dict_of_python_2_is_a_list_of_pairs(write):
    pairs = list_of(list_of(text("x"), tensor()), tuple_of(b"U\x01y", tensor()))
    assert list(read_torch_file(write(call("collections.OrderedDict", pairs)))) == ["x", "y"]


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_inside_a_training_checkpoint_is_found(write, key):
    loss = tensor(shape=(), strides=())
    options = dict_of({"lr": b"G" + struct.pack(">d", 0.1), "betas": list_of(number(1), TRUE)})
    inner = dict_of({"x": tensor()})
    body = dict_of({"best_loss": loss, "optimizer": options, key: inner})
    assert list(read_torch_file(write(body))) == ["x"]


def test_entries_that_are_no_tensors_by_name_are_skipped(write):
    entries = number(1) + tensor() + tuple_of(text("a")) + tensor() + NONE + tensor()
    more = {"dtype": named("torch.float32"), "size": call("torch.Size", numbers((2, 3)))}
    body = dict_of({"x": tensor(), **more}) + b"(" + entries + b"u"
    assert list(read_torch_file(write(body))) == ["x"]


def test_the_instructions_of_newer_pickles_are_known(tmp_path):
    def named_4(name):  # SHORT_BINUNICODE twice, STACK_GLOBAL, MEMOIZE
        parts = [part.encode() for part in name.rsplit(".", 1)]
        return b"".join(b"\x8c" + bytes([len(part)]) + part for part in parts) + b"\x93\x94"

    identity = [b"\x8c\x07storage", named_4("torch.FloatStorage"), b"\x8c\x010", NONE, number(6)]
    shape, strides = number(2) + number(3) + b"\x86", number(3) + number(1) + b"\x86"
    arguments = [tuple_of(*identity) + b"Q", number(0), shape, strides]
    value = named_4("torch._utils._rebuild_tensor_v2") + tuple_of(*arguments) + b"R"
    body = b"\x95" + bytes(8) + b"}\x8c\x01x" + value + b"s"
    arrays = read_torch_file(write_as(tmp_path, zip_file(body, {"0": SIX})))
    assert arrays["x"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_memo_gives_back_what_was_put(write):
    body = dict_of({"x": tensor() + b"q\x07", "y": b"h\x07", "z": b"h\x07r" + bytes(4)})
    assert list(read_torch_file(write(body))) == ["x", "y", "z"]


def test_a_view_of_a_storage_in_the_older_format_starts_where_the_view_does(tmp_path):
    view = tuple_of(text("view"), number(2), number(3))
    inside = tensor(storage("Float", "0", 6, view), 1, (2,), (1,))
    body = dict_of({"x": inside, "all": tensor(storage("Float", "0", 6, NONE))})
    arrays = read_torch_file(write_as(tmp_path, legacy_file(body, {"0": SIX})))
    assert arrays["x"].tolist() == [3, 4]
    outside = dict_of({"x": tensor(storage("Float", "0", 6, view), 2, (2,), (1,))})
    assert "reaches" in problem(write_as(tmp_path, legacy_file(outside, {"0": SIX})))
    view = tuple_of(text("view"), number(4), number(3))
    outside = dict_of({"x": tensor(storage("Float", "0", 6, view), 0, (2,), (1,))})
    assert "storage" in problem(write_as(tmp_path, legacy_file(outside, {"0": SIX})))


def test_an_empty_storage_is_fine(write):
    body = dict_of({"x": tensor(storage(count=0), 0, (0, 4), (4, 1))})
    assert read_torch_file(write(body, {"0": b""}))["x"].shape == (0, 4)


# --- pickles that want more than tensors -------------------------------------------------------


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    __setstate__ = None  # BUILD would call it


def hostile(function, *arguments):
    """A pickle's instructions that call a function when they are unpickled, in each known way."""
    call = pickle.dumps(Attack(function, *arguments), 2)[2:-1]
    module, name = function.__module__, function.__name__
    named = f"{module} {name}".replace(" ", "\n").encode() + b"\n"
    texts = b"".join(text(each) for each in arguments)
    return {
        "REDUCE": call,
        "NEWOBJ": b"c" + named + b"(" + texts + b"t\x81",
        "NEWOBJ_EX": b"c" + named + b"(" + texts + b"t}\x92",
        "OBJ": b"(c" + named + texts + b"o",
        "INST": b"(" + texts + b"i" + named,
        "STACK_GLOBAL": text(module) + text(name) + b"\x93(" + texts + b"tR",
    }


@pytest.mark.parametrize("way", hostile(open))
def test_what_would_run_code_beside_the_weights_is_inert(write, tmp_path, way):
    witness = tmp_path / "witness"
    attack = hostile(open, str(witness), "w")[way]
    if not way.startswith("NEWOBJ"):  # which make objects of classes alone
        pickle.loads(program(attack))  # Python itself does what the attack says
        assert witness.exists()
        witness.unlink()
    assert list(read_torch_file(write(dict_of({"x": tensor(), "extra": attack})))) == ["x"]
    assert list(read_torch_file(write(dict_of({"x": tensor(), "extra": attack + b"}b"})))) == ["x"]
    with pytest.raises(CheckpointError, match="expected a dict with tensors by name, found 'io"):
        read_torch_file(write(attack, {}))
    assert not witness.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_that_would_run_code_is_no_model_and_nothing_runs(tmp_path, protocol):
    witness = tmp_path / "witness"
    attack = pickle.dumps({"x": Attack(open, str(witness), "w")}, protocol)
    path = write_as(tmp_path, zip_file(attack[2:-1], {}))
    assert "expected a dict with tensors by name" in problem(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "__builtin__.set",
        "torch.load",
        "torch.nn.Linear",
        "numpy.core.multiarray._reconstruct",
        "collections.Counter",
    ],
)
def test_a_name_is_a_text_and_a_call_of_it_an_object_that_does_nothing(write, name):
    bare, called = named(name), call(name, text("echo"), number(1))
    unread = {}
    path = write(dict_of({"x": tensor(), "bare": bare, "called": called}))
    assert list(read_torch_file(path, unread)) == ["x"]
    assert unread == {"called": name}


class Saved:
    """Something that a training program saves beside the weights."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Colour(enum.Enum):
    RED = 1


BESIDE = {
    "options": argparse.Namespace(lr=1e-5, layers=[1, 2], inner=argparse.Namespace(a=1)),
    "loss": np.float64(0.5),
    "row": np.arange(3.0),
    "record": Saved(name="bert", tags={"a", "b"}, more=frozenset({1})),
    "slots": Slotted(3),
    "function": len,
    "method": str.lower,
    "class": OrderedDict,
    "enum": Colour.RED,
    "counter": collections.Counter("abca"),
    "default": collections.defaultdict(list, a=[1]),
    "bytes": b"abc" * 100,
    "array": bytearray(b"abc"),
    "path": pathlib.PurePosixPath("a/b"),
    "date": datetime.datetime(2026, 11, 26),
    "partial": functools.partial(int, base=2),
    "complex": 1 + 2j,
    "range": range(3),
    "error": ValueError("x"),
    "huge": 10**400,
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("what", BESIDE)
def test_objects_beside_the_weights_are_passed_over(write, what, protocol):
    beside = pickle.dumps(BESIDE[what], protocol)
    # Behind PROTO, and FRAME with its length; without STOP.
    body = beside[11 if protocol >= 4 and beside[2:3] == b"\x95" else 2 : -1]
    assert list(read_torch_file(write(dict_of({"x": tensor(), what: body})))) == ["x"]
    around = dict_of({"state_dict": dict_of({"x": tensor()}), what: body})
    assert list(read_torch_file(write(around))) == ["x"]


def test_what_stands_among_the_weights_and_is_not_read_is_named(write):
    quantised = call("torch._utils._rebuild_qtensor", storage("QInt8"), number(0))
    complex_ = tensor(storage("ComplexFloat", "1", 1), 0, (1,), (1,))
    derived = call(
        "torch._tensor._rebuild_from_type_v2",
        *(named("torch._utils._rebuild_tensor_v2"), named("custom.Tensor"), b")", b"}"),
    )
    unread = {}
    path = write(dict_of({"x": tensor(), "q": quantised, "c": complex_, "d": derived}))
    if write.format == "legacy":  # in which the types of all storages must be known
        return
    assert list(read_torch_file(path, unread)) == ["x"]
    assert unread == {
        "q": "torch._utils._rebuild_qtensor",
        "c": "torch.ComplexFloatStorage",
        "d": "torch._tensor._rebuild_from_type_v2",
    }


def test_a_tensor_with_attributes_is_a_tensor(write):
    plain = tensor()[len(named("torch._utils._rebuild_tensor_v2")) : -1]
    value = call(
        "torch._tensor._rebuild_from_type_v2",
        *(named("torch._utils._rebuild_tensor_v2"), named("torch.Tensor"), plain, b"}"),
    )
    assert read_torch_file(write(dict_of({"x": value})))["x"].tobytes() == SIX


def test_a_tensor_that_is_made_of_itself_without_end_is_none(write):
    marked = "torch._tensor._rebuild_from_type_v2"
    inner = tuple_of(named(marked), named("torch.Tensor"), b")", b"}")
    value = call(marked, named(marked), named("torch.Tensor"), inner, b"}")
    assert list(read_torch_file(write(dict_of({"x": tensor(), "y": value})))) == ["x"]


def module_of(parameters=b"}", modules=b"}", buffers=b"}"):
    """A module that was saved whole."""
    fields = {"training": TRUE, "_parameters": parameters, "_buffers": buffers, "_modules": modules}
    return named("custom.Module") + b")\x81" + dict_of(fields) + b"b"


def test_a_module_that_was_saved_whole_gives_its_tensors(write):
    inner = module_of(dict_of({"weight": tensor(), "bias": NONE}), buffers=dict_of({"n": tensor()}))
    whole = module_of(modules=dict_of({"bert": module_of(modules=dict_of({"layer": inner}))}))
    expected = ["bert.layer.weight", "bert.layer.n"]
    assert list(read_torch_file(write(whole))) == expected
    assert list(read_torch_file(write(dict_of({"model": whole, "epoch": number(1)})))) == expected


def test_modules_that_hold_themselves_or_each_other_end(write):
    fields = {"_parameters": dict_of({"w": tensor()}), "_buffers": b"}", "_modules": b"}q\x07"}
    loop = named("custom.Module") + b")\x81q\x06" + dict_of(fields) + b"b"
    loop += b"0h\x07" + text("self") + b"h\x06s" + b"0h\x06"
    assert list(read_torch_file(write(loop))) == ["w"]
    # Each of 40 modules holds the one before it under two names: 2**40 paths.
    body = module_of(dict_of({"w": tensor()})) + b"q\x00"
    for i in range(1, 40):
        before = b"h" + bytes([i - 1])
        body += b"0" + module_of(modules=dict_of({"a": before, "b": before})) + b"q" + bytes([i])
    assert len(read_torch_file(write(body))) == 1


def test_names_in_deep_modules_do_not_grow_without_end(write):
    deep = module_of(dict_of({"w": tensor()}))
    for _ in range(200):
        deep = module_of(modules=dict_of({"x" * 200: deep}))
    assert "tensors by name" in problem(write(deep, {}))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module", "mine"])
def test_the_weights_in_a_dict_of_a_training_program_are_found(write, key):
    inner = dict_of({"x": tensor()})
    optimizer = dict_of({"state": b"}" + number(0) + dict_of({"exp_avg": tensor()}) + b"s"})
    beside = {"optimizer": optimizer, "args": call("argparse.Namespace"), "epoch": number(3)}
    assert list(read_torch_file(write(dict_of({**beside, key: inner})))) == ["x"]
    if key != "mine":
        nested = dict_of({"model": dict_of({**beside, key: inner})})
        assert list(read_torch_file(write(nested))) == ["x"]


def test_several_models_in_a_file_are_told_apart_or_named(write):
    inner = dict_of({"x": tensor()})
    message = problem(write(dict_of({"student": inner, "teacher": inner.replace(b"x", b"y")})))
    assert "several sets of tensors by name: 'student', 'teacher'" in message
    both = dict_of({"teacher": inner, "model": dict_of({"y": tensor()})})
    assert list(read_torch_file(write(both))) == ["y"]


def test_a_value_used_again_and_again_takes_no_more_memory():
    state = dict_of({str(i): NONE for i in range(1000)}) + b"q\x00"
    objects = (named("a.B") + b")\x81h\x00b") * 1000
    found, _ = step_through(io.BytesIO(program(b"(" + state + objects + b"t")), 10**5)
    assert all(value.state is found[0] for value in found[1:])


@pytest.mark.parametrize(
    "instruction",
    [
        b"B\xff\xff\xff\xff",
        b"X\xff\xff\xff\xff",
        *(b + struct.pack("<Q", 2**62) for b in (b"\x8e", b"\x8d")),
    ],
)
def test_an_instruction_that_asks_for_more_than_there_is_gets_no_memory(write, instruction):
    path = write(instruction)
    tracemalloc.start()
    try:
        assert "expected" in problem(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_an_entry_that_says_it_is_packed_into_more_than_there_is_gets_no_memory(tmp_path):
    content = bytearray(zip_file(dict_of({"x": tensor()}), {"0": SIX}))
    at = content.index(b"PK\1\2")  # of the first entry, the pickle
    content[at + 20 : at + 24] = struct.pack("<I", 2**31)
    tracemalloc.start()
    try:
        problem(write_as(tmp_path, bytes(content)))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_name_is_shown_shortened(write):
    assert len(problem(write(named("os." + "x" * 100_000)))) < 1000


@pytest.mark.parametrize(
    ("instructions", "name"),
    [
        (b"(S'x'\no", "STRING"),
        (b"\x82\x01", "EXT1"),
        (b"P0\n", "PERSID"),
        (b"}2", "DUP"),
        (b"I1\n", "INT"),
        (b"\x97", "NEXT_BUFFER"),
    ],
)
def test_instructions_that_are_not_on_the_list_are_refused(write, instructions, name):
    assert name in problem(write(instructions))


@pytest.mark.parametrize(
    "body",
    [
        text("collections.OrderedDict") + b")R",  # a text is not the thing it names
        named("torch.FloatStorage") + b")R",
        named("torch.float32") + b")R",
        named("collections.OrderedDict") + b"NR",
        call("collections.OrderedDict", NONE),
        call("collections.OrderedDict", list_of(NONE)),
        call("collections.OrderedDict", list_of(list_of(NONE))),
        call("torch.Size"),
        call("torch._utils._rebuild_parameter"),
        call("torch._utils._rebuild_parameter", NONE),
        call("torch._utils._rebuild_tensor_v2"),
        call("torch._utils._rebuild_tensor_v2", NONE, NONE, NONE, NONE),
        b"}R",
    ],
)
def test_calls_with_other_arguments_are_refused(write, body):
    problem(write(body))


@pytest.mark.parametrize("target", [b"}", tensor(), named("torch.float32"), b"]"])
def test_only_an_ordered_dict_may_be_given_attributes(write, target):
    assert "attributes" in problem(write(target + b"}b"))


def test_tensors_stored_as_their_negative_are_refused(write):
    body = dict_of({"x": tensor(more=[dict_of({"neg": TRUE})])})
    assert "negative" in problem(write(body))
    assert list(read_torch_file(write(dict_of({"x": tensor(more=[b"}"])})))) == ["x"]


# --- damaged and hostile pickles ---------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"0",
        b"s",
        b"R",
        b"b",
        b"t",
        b"u",
        b"e",
        b"a",
        b"\x85",
        b"K\x01\x86",
        b"q\x00",
        b"Q",
        b"\x93",
        b"\x94",
        b"(u",
        b"(e",
        b"(q\x00",
        b"N(.",
        b"h\x01",
        b"j" + bytes(4),
        b"N)s",
        b"NNNs",
        b"}(Nu",
        b"](Nu",
        b"}(Ne",
        b"}Na",
        b"NN\x93",
        b"X\xff\xff\xff\x7fabc",
        b"\x8d" + b"\xff" * 8,
        b"\x8b\xff\xff\xff\x7f",
        b"c\xff\n\n",
        b"X\x01\x00\x00\x00\xff",
        b"\xff",
    ],
)
def test_a_pickle_that_does_not_add_up_is_an_error(write, body):
    problem(write(body))


def test_a_list_that_holds_itself_is_skipped_or_an_error(write):
    loop = b"]q\x00h\x00a"
    assert list(read_torch_file(write(dict_of({"x": tensor(), "loop": loop})))) == ["x"]
    problem(write(loop))
    problem(write(b"}q\x00" + text("state_dict") + b"h\x00s"))
    problem(write(b"]q\x00" + tuple_of(text("storage"), *[b"h\x00"] * 4) + b"Q"))
    problem(write(call("collections.OrderedDict", b"]q\x00(h\x00h\x00e")))


@pytest.mark.slow
def test_very_deep_nesting_is_skipped_or_an_error(write):
    deep = b")" + b"\x85" * 200_000
    with without_bounds():  # or it has too many instructions
        assert list(read_torch_file(write(dict_of({"x": tensor(), "deep": deep})))) == ["x"]
        problem(write(deep))
        problem(write(deep + b"Q"))
        problem(write(b"}" + deep + b"Ns"))  # to hash it would crash Python
        problem(write(b"}" + b"](" * 100_000))


def test_a_short_pickle_cannot_copy_a_long_list_again_and_again(write):
    pairs = list_of(*[tuple_of(text("x"), NONE)] * 1000) + b"q\x00"
    copies = b"(" + pairs + (named("collections.OrderedDict") + b"h\x00\x85R") * 1000 + b"t"
    assert list(read_torch_file(write(dict_of({"x": tensor(), "y": copies})))) == ["x"]
    pairs = list_of(tuple_of(text("x"), tensor())) + b"q\x00"
    first, second = (
        named("collections.OrderedDict") + value + b"\x85R" for value in (pairs, b"h\x00")
    )
    assert list(read_torch_file(write(dict_of({"first": first, "model": second})))) == ["x"]


HUGE = 2**62
HUGER = 2**2000


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (6, (), ()),
        (0, (2, 3), (4, 1)),
        (0, (2,), (HUGE,)),
        (HUGE, (1,), (1,)),
        (0, (HUGE,), (1,)),
        (0, (HUGE,), (0,)),
        (0, (HUGE, HUGE), (0, 0)),
        (0, (0, HUGE), (1, 1)),
        (0, (100, 100), (0, 0)),
        (0, (HUGER,), (0,)),
        (0, (2,), (HUGER,)),
        (HUGER, (1,), (1,)),
        (-1, (2,), (1,)),
        (0, (-1,), (1,)),
        (5, (2,), (-1,)),
        (0, (2,), (1, 1)),
        (0, (2,), ()),
        (0, (1,) * 33, (1,) * 33),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_an_error(write, offset, shape, strides):
    problem(write(dict_of({"x": tensor(None, offset, shape, strides)})))


def test_sizes_above_any_address_are_refused_before_they_are_multiplied(write):
    for size in (2**62 + 1, HUGER):
        for arguments in ((size, (1,), (1,)), (0, (size,), (1,)), (0, (1,), (size,))):
            message = problem(write(dict_of({"x": tensor(None, *arguments)})))
            assert "expected sizes" in message


@pytest.mark.parametrize("sizes", [TRUE, NONE, text("6"), tuple_of(TRUE), list_of(number(6))])
def test_sizes_that_are_no_integers_are_an_error(write, sizes):
    for arguments in ([sizes, numbers((1,))], [numbers((1,)), sizes]):
        name = "torch._utils._rebuild_tensor_v2"
        problem(write(dict_of({"x": call(name, storage(), number(0), *arguments)})))


@pytest.mark.parametrize("count", [-1, 5, 7, HUGE, HUGER])
def test_a_storage_of_another_size_than_it_says_is_an_error(write, count):
    problem(write(dict_of({"x": tensor(storage(count=count), 0, (1,), (1,))})))


def test_a_storage_described_in_two_ways_is_an_error(write):
    for other in (storage("Int"), storage(count=5)):
        problem(write(dict_of({"x": tensor(), "y": tensor(other, 0, (1,), (1,))})))


@pytest.mark.parametrize(
    "identity",
    [
        b")",
        NONE,
        text("storage"),
        tuple_of(text("module"), NONE, NONE, NONE, NONE),
        tuple_of(text("storage"), text("torch.FloatStorage"), text("0"), NONE, number(6)),
        tuple_of(text("storage"), named("torch.float32"), text("0"), NONE, number(6)),
        tuple_of(text("storage"), named("torch.FloatStorage"), number(0), NONE, number(6)),
        tuple_of(text("storage"), named("torch.FloatStorage"), text("0"), NONE, text("6")),
        tuple_of(text("storage"), named("torch.FloatStorage"), text("0"), NONE, TRUE),
        *(
            tuple_of(text("storage"), named("torch.FloatStorage"), text("0"), NONE, number(6), view)
            for view in (TRUE, b")", tuple_of(NONE, NONE, NONE))
        ),
    ],
)
def test_a_description_of_a_storage_that_is_none_is_an_error(write, identity):
    assert "storage" in problem(write(dict_of({"x": tensor(identity + b"Q", 0, (1,), (1,))})))


@pytest.mark.parametrize("body", [b"N", b"}", b"]", number(1), tensor(), dict_of({"x": NONE})])
def test_a_pickle_without_tensors_by_name_is_an_error(write, body):
    storages = {"0": SIX} if body == tensor() else {}
    assert "tensors by name" in problem(write(body, storages))


# --- damaged and hostile files -----------------------------------------------------------------

GOOD = dict_of({"x": tensor()})


def test_a_missing_file_is_not_found(tmp_path):
    problem(tmp_path / "pytorch_model.bin", ModelNotFoundError)


def test_a_folder_is_an_error(tmp_path):
    problem(tmp_path)


def test_files_of_other_kinds_are_refused_by_name(tmp_path):
    assert "empty" in problem(write_as(tmp_path, b""))
    assert "Git LFS" in problem(write_as(tmp_path, b"version https://git-lfs.github.com/spec/v1\n"))
    assert "begins with b'GARBAGE'" in problem(write_as(tmp_path, b"GARBAGE"))
    assert "not one that torch.save wrote" in problem(write_as(tmp_path, pickle.dumps(1)))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    assert "tar archive" in problem(write_as(tmp_path, stream.getvalue()))


def test_a_zip_archive_without_the_pickle_or_with_two_is_an_error(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("other", b"")
    assert "data.pkl" in problem(write_as(tmp_path, stream.getvalue()))
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", program(GOOD))
        archive.writestr("b/data.pkl", program(GOOD))
    assert "data.pkl" in problem(write_as(tmp_path, stream.getvalue()))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_an_error(tmp_path):
    content = zip_file(GOOD, {"0": SIX}, [("data/0", SIX)])
    assert "same name" in problem(write_as(tmp_path, content))


def test_a_missing_storage_is_named(tmp_path):
    assert "archive/data/0" in problem(write_as(tmp_path, zip_file(GOOD, {})))
    assert "'0'" in problem(write_as(tmp_path, legacy_file(GOOD, {})))


def test_numbers_of_a_big_endian_machine_are_refused(tmp_path):
    content = zip_file(GOOD, {"0": SIX}, [("byteorder", b"big")])
    assert "big-endian" in problem(write_as(tmp_path, content))
    assert "big-endian" in problem(write_as(tmp_path, legacy_file(GOOD, {"0": SIX}, little=FALSE)))
    assert read_torch_file(write_as(tmp_path, zip_file(GOOD, {"0": SIX}, ())))


def test_a_storage_that_unpacks_to_more_than_the_file_is_not_unpacked(tmp_path):
    bomb = storage(count=25_000_000)
    body = dict_of({"x": tensor(bomb, 0, (25_000_000,), (1,))})
    content = zip_file(body, {"0": bytes(100_000_000)}, compression=zipfile.ZIP_DEFLATED)
    assert len(content) < 1_000_000
    assert "larger than the file" in problem(write_as(tmp_path, content))


def test_a_compressed_storage_is_refused_whatever_size_it_claims(tmp_path):
    content = zip_file(GOOD, {"0": SIX}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in problem(write_as(tmp_path, content + bytes(1000)))


def test_an_encrypted_archive_is_an_error(tmp_path):
    content = bytearray(zip_file(GOOD, {"0": SIX}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    assert "password" in problem(write_as(tmp_path, content))


def test_a_storage_whose_bytes_were_changed_fails_its_checksum(tmp_path):
    content = zip_file(GOOD, {"0": SIX})
    place = content.index(SIX)
    damaged = content[:place] + b"\xff" + content[place + 1 :]
    assert "CRC" in problem(write_as(tmp_path, damaged))


def test_an_entry_shorter_than_the_archive_says_is_an_error(tmp_path):
    content = bytearray(zip_file(GOOD, {"0": SIX}))
    place = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)  # of data/0
    assert content[place + 20 : place + 28] == struct.pack("<2I", len(SIX), len(SIX))
    content[place + 16 : place + 24] = bytes(8)  # checksum and packed size of no bytes; size stays
    assert "ends after 0 bytes" in problem(write_as(tmp_path, content))


def test_a_damaged_start_of_the_older_format_is_an_error(tmp_path):
    assert "torch.save" in problem(write_as(tmp_path, legacy_file(GOOD, {"0": SIX}, magic=1)))
    assert "1001" in problem(write_as(tmp_path, legacy_file(GOOD, {"0": SIX}, protocol=1002)))


def test_a_storage_listed_twice_or_by_no_tensor_is_an_error(tmp_path):
    content = legacy_file(GOOD, {"0": SIX}).replace(list_of(text("0")), list_of(*[text("0")] * 2))
    assert "twice" in problem(write_as(tmp_path, content))
    for listed in (list_of(text("1")), list_of(number(0)), list_of(list_of(NONE)), NONE):
        content = legacy_file(GOOD, {"0": SIX}).replace(list_of(text("0")), listed)
        problem(write_as(tmp_path, content))


def test_a_truncated_older_file_is_told_how_many_bytes_are_missing(tmp_path):
    content = legacy_file(GOOD, {"0": SIX})[:-5]
    assert "5 bytes too early" in problem(write_as(tmp_path, content))


def test_a_storage_with_another_count_in_front_is_an_error(tmp_path):
    content = legacy_file(GOOD, {"0": SIX})
    damaged = content[:-32] + struct.pack("<q", 7) + SIX
    assert "7 elements, expected 6" in problem(write_as(tmp_path, damaged))


# --- properties --------------------------------------------------------------------------------

NUMBERS = itertools.count()
BODY = (
    call("collections.OrderedDict")
    + b"("
    + text("a.weight")
    + tensor()
    + text("b")
    + call("torch._utils._rebuild_parameter", tensor(storage("Half", "1", 2), 0, (2,), (1,)), TRUE)
    + text("c")
    + tensor(storage("BFloat16", "2", 1), 0, (), ())
    + b"u}b"
)
STORAGES = {"0": SIX, "1": bytes(4), "2": bytes(2)}
VALID = {"zip": zip_file(BODY, STORAGES), "legacy": legacy_file(BODY, STORAGES, {"1": 2, "2": 2})}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def outcome(folder, content):
    """The names that are read, or the message of our error; any other error passes through."""
    path = folder / f"{next(NUMBERS)}.bin"  # a new one: on Windows a mapped file stays
    path.write_bytes(content)
    try:
        arrays = read_torch_file(path)
    except MinibertError as error:
        assert path.name in str(error)
        return str(error)
    assert all(isinstance(array.sum(dtype=float).item(), float) for array in arrays.values())
    return list(arrays)


@pytest.mark.parametrize("name", VALID)
def test_a_file_cut_anywhere_is_an_error(scratch, name):
    assert outcome(scratch, VALID[name]) == ["a.weight", "b", "c"]
    for size in range(len(VALID[name])):
        assert isinstance(outcome(scratch, VALID[name][:size]), str)


@pytest.mark.filterwarnings("ignore")  # zipfile's on duplicate names, NumPy's on adding NaN
@pytest.mark.parametrize("name", VALID)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_file_gives_arrays_or_an_error_of_ours(scratch, name, data):
    damaged = bytearray(VALID[name])
    places = st.integers(0, len(damaged) - 1)
    for place, value in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)
    ):
        damaged[place] = value
    begin, length = data.draw(st.tuples(places, st.integers(0, 3)))
    del damaged[begin : begin + length]
    outcome(scratch, damaged)


INSTRUCTIONS = [
    *(b"N", b"\x88", b")", b"]", b"}", b"(", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s"),
    *(b"u", b"R", b"b", b"Q", b"q\x00", b"h\x00", b"\x93", b"\x94", b".", b"0", tensor()),
    *(storage(), text("x"), number(3), number(-1), named("collections.OrderedDict")),
    *(named("torch._utils._rebuild_tensor_v2"), named("torch._utils._rebuild_parameter")),
    *(named("torch.Size"), named("os.system"), numbers((2, 3))),
    *(b"\x81", b"\x92", b"o", b"ios\nsystem\n", b"1", b"\x8f", b"\x90", b"\x91", b"C\x01a"),
    *(b"(", b"(", text("_modules"), text("_parameters"), text("model"), named("a.B") + b")\x81"),
]


@settings(max_examples=100, deadline=None)
@given(body=st.lists(st.sampled_from(INSTRUCTIONS), max_size=20).map(b"".join))
def test_any_row_of_instructions_gives_arrays_or_an_error_of_ours(scratch, body):
    outcome(scratch, zip_file(dict_of({"x": tensor()}) + body, {"0": SIX}))


# --- files of PyTorch itself -------------------------------------------------------------------


def same(folder, saved, expected, zipped):
    """torch.save what is given, and compare what is read with the tensors expected."""
    torch = pytest.importorskip("torch")
    path = folder / f"{next(NUMBERS)}.bin"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    arrays = read_torch_file(path)
    assert list(arrays) == list(expected)
    for name, value in expected.items():
        value = value.detach()
        value = value.float() if value.dtype == torch.bfloat16 else value
        assert arrays[name].shape == tuple(value.shape)
        assert arrays[name].dtype == value.numpy().dtype
        np.testing.assert_array_equal(arrays[name], value.numpy())
    return arrays


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
class TestTorch:
    @pytest.mark.parametrize(
        "dtype",
        [
            "float64",
            "float32",
            "float16",
            "bfloat16",
            "int64",
            "int32",
            "int16",
            "int8",
            "uint8",
            "bool",
        ],
    )
    def test_every_dtype_is_read_as_torch_reads_it(self, tmp_path, zipped, dtype):
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        tensors = {
            "matrix": (torch.randn(5, 7) * 3).to(getattr(torch, dtype)),
            "scalar": torch.ones((), dtype=getattr(torch, dtype)),
            "empty": torch.ones((0, 3), dtype=getattr(torch, dtype)),
        }
        same(tmp_path, tensors, tensors, zipped)

    def test_views_and_shared_storages_are_read_as_torch_reads_them(self, tmp_path, zipped):
        torch = pytest.importorskip("torch")
        base = torch.arange(60.0).reshape(3, 4, 5)
        tensors = {
            "base": base,
            "transposed": base.permute(2, 0, 1),
            "rows": base[1:, ::2, 3],
            "diagonal": base[0].diagonal(1),
            "expanded": base[0, 0, :1].expand(4, 1),
            "last": base[2, 3, 4],
            "reversed in a copy": base.flip(0),
        }
        arrays = same(tmp_path, tensors, tensors, zipped)
        assert np.shares_memory(arrays["base"], arrays["rows"])

    def test_the_state_dict_of_a_module_is_read_with_its_metadata(self, tmp_path, zipped):
        torch = pytest.importorskip("torch")
        module = torch.nn.Sequential(
            torch.nn.Embedding(11, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 11)
        )
        module[2].weight = module[0].weight  # tied
        module.register_buffer("position_ids", torch.arange(5).expand((1, -1)))
        state = module.state_dict()
        assert state._metadata
        arrays = same(tmp_path, state, state, zipped)
        assert np.shares_memory(arrays["0.weight"], arrays["2.weight"])

    def test_parameters_are_read_as_their_tensors(self, tmp_path, zipped):
        torch = pytest.importorskip("torch")
        parameter = torch.nn.Parameter(torch.randn(3))
        marked = torch.nn.Parameter(torch.randn(3), requires_grad=False)
        marked.initialized = True  # transformers marks its parameters so
        tensors = OrderedDict(a=parameter, b=marked, tied=parameter)
        same(tmp_path, tensors, tensors, zipped)

    @pytest.mark.parametrize("key", ["state_dict", "model"])
    def test_a_training_checkpoint_is_read(self, tmp_path, zipped, key):
        torch = pytest.importorskip("torch")
        module = torch.nn.Linear(3, 2)
        optimizer = torch.optim.Adam(module.parameters())
        module(torch.ones(3)).sum().backward()
        optimizer.step()
        saved = {"epoch": 3, "loss": torch.tensor(0.5), "optimizer": optimizer.state_dict()}
        same(tmp_path, {**saved, key: module.state_dict()}, module.state_dict(), zipped)

    def test_a_whole_module_gives_its_state_dict(self, tmp_path, zipped):
        torch = pytest.importorskip("torch")
        module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        module[0].weight.mark = "with an attribute"
        same(tmp_path, module, module.state_dict(), zipped)
        same(
            tmp_path,
            {"model": torch.nn.DataParallel(module)},
            {f"module.{name}": value for name, value in module.state_dict().items()},
            zipped,
        )

    def test_objects_beside_the_weights_are_passed_over(self, tmp_path, zipped):
        torch = pytest.importorskip("torch")
        tensors = {"x": torch.ones(2)}
        beside = {name: value for name, value in BESIDE.items() if name not in ("array",)}
        saved = {
            **beside,
            "model_state_dict": tensors,
            "dtype": torch.float16,
            "device": torch.device("cpu"),
            "generator": torch.get_rng_state(),
        }
        same(tmp_path, saved, tensors, zipped)
        marked = torch.ones(2)
        marked.mark = "with an attribute"
        same(tmp_path, {"x": marked, **beside}, {"x": marked}, zipped)

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_every_pickle_protocol_is_read(self, tmp_path, zipped, protocol):
        torch = pytest.importorskip("torch")
        path = tmp_path / "protocol.bin"
        torch.save(
            OrderedDict(x=torch.arange(3), y=torch.ones(2, 2).T),
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )
        arrays = read_torch_file(path)
        assert arrays["x"].tolist() == [0, 1, 2]
        assert arrays["y"].tolist() == [[1, 1], [1, 1]]
