"""The safetensors reader: what a file may hold, and what is said about files that are damaged."""

import itertools
import json
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from minibert.checkpoints.safetensors import DTYPES, open_checkpoint
from minibert.errors import CheckpointError, MinibertError, ModelNotFoundError


def file_bytes(header, data=b""):
    """A safetensors file; `header` is JSON's value, or text, or bytes, taken as they are."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(folder, header, data=b"", name="model.safetensors"):
    path = folder / name
    path.write_bytes(file_bytes(header, data))
    return path


def problem(path, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        open_checkpoint(path)
    assert path.name in str(caught.value)
    # Without the folder, which pytest names after the test: its words would fool the tests.
    return str(caught.value).replace(str(path.parent), "")


# --- files that are fine ---------------------------------------------------------------------


def test_what_the_safetensors_package_writes_is_read_back(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "a.weight": random.normal(size=(3, 5)).astype(np.float32),
        "b": random.normal(size=7).astype(np.float16),
        "c": random.integers(-128, 128, (4, 3), dtype=np.int8),
        "d": np.array(3, np.int64),
        "e": np.zeros((0, 4), np.float32),
        "f": np.array([True, False]),
        "g": random.normal(size=2),
        "h": np.arange(3, dtype=np.uint16),
    }
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "np"})
    checkpoint = open_checkpoint(path)
    assert sorted(checkpoint) == sorted(checkpoint.names()) == sorted(arrays)
    assert len(checkpoint) == len(arrays)
    assert "a.weight" in checkpoint
    assert "z" not in checkpoint
    assert checkpoint.metadata == {"format": "np"}
    assert checkpoint.path == path
    for name, array in arrays.items():
        found = checkpoint.read(name)
        assert found.shape == checkpoint.shape(name) == array.shape
        floating = array.dtype.kind == "f"
        assert found.dtype == (np.float32 if floating else array.dtype)
        np.testing.assert_array_equal(found, array.astype(found.dtype))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_is_known_by_its_name(tmp_path, dtype):
    size = np.dtype(DTYPES[dtype]).itemsize
    path = write(tmp_path, {"x": entry(dtype, [2], 0, 2 * size)}, bytes(2 * size))
    checkpoint = open_checkpoint(path)
    assert checkpoint.dtype("x") == dtype
    assert checkpoint.read("x").tolist() == [0, 0]


def test_what_was_read_stays_whatever_becomes_of_the_file(tmp_path):
    path = write(tmp_path, {"x": entry("F32", [4], 0, 16)}, np.arange(4, dtype="<f4").tobytes())
    array = open_checkpoint(path).read("x")
    path.write_bytes(bytes(path.stat().st_size))
    assert array.tolist() == [0, 1, 2, 3]
    os.truncate(path, 0)
    assert array.tolist() == [0, 1, 2, 3]


def change(path, how):
    """Alter a file in place, a while after it was written."""
    content, before = path.read_bytes(), path.stat()
    if how == "shortened":
        os.truncate(path, len(content) - 1)
    elif how == "emptied":
        os.truncate(path, 0)
    elif how == "longer":
        path.write_bytes(content + b"\0")
    else:
        path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))  # clocks are coarse


@pytest.mark.parametrize("how", ["shortened", "emptied", "longer", "written anew"])
def test_a_file_that_is_changed_while_it_is_read_is_noticed(tmp_path, how):
    header = {"x": entry("F32", [4], 0, 16), "y": entry("F32", [1], 16, 20)}
    path = write(tmp_path, header, bytes(20))
    checkpoint = open_checkpoint(path)
    checkpoint.read("x")
    change(path, how)
    for name in checkpoint:
        with pytest.raises(CheckpointError, match="changed while it was read"):
            checkpoint.read(name)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace a file that is open")
def test_a_file_that_another_takes_the_place_of_is_read_to_its_end(tmp_path):
    path = write(tmp_path, {"x": entry("U8", [1], 0, 1)}, b"\1")
    checkpoint = open_checkpoint(path)
    os.replace(write(tmp_path, {}, name="other"), path)
    assert checkpoint.read("x").tolist() == [1]


@pytest.mark.parametrize("spaces", range(4))
def test_arrays_are_aligned_wherever_the_header_ends(tmp_path, spaces):
    header = json.dumps({"x": entry("F32", [2], 0, 8)}) + " " * spaces
    array = open_checkpoint(write(tmp_path, header, struct.pack("<2f", 1.5, -2))).read("x")
    assert array.flags.aligned
    assert array.tolist() == [1.5, -2]


def test_bfloat16_is_widened_exactly(tmp_path):
    values = np.array([0, -0.0, 1, -3.140625, 2.0**-126, 2.0**100, 2.0**-133], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    assert ((bits.astype(np.uint32) << 16).view(np.float32) == values).all()
    path = write(tmp_path, {"x": entry("BF16", [7, 1], 0, 14)}, bits.tobytes())
    array = open_checkpoint(path).read("x")
    assert array.dtype == np.float32
    assert array[:, 0].tobytes() == values.tobytes()  # bits, so that -0 counts


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "I32", "BOOL"])
def test_scalars_and_empty_tensors_are_fine(tmp_path, dtype):
    size = np.dtype(DTYPES[dtype]).itemsize
    header = {"scalar": entry(dtype, [], 0, size), "none": entry(dtype, [3, 0], size, size)}
    checkpoint = open_checkpoint(write(tmp_path, header, bytes(size)))
    assert checkpoint.read("scalar").shape == ()
    assert isinstance(checkpoint.read("scalar"), np.ndarray)
    assert checkpoint.read("none").shape == (3, 0)


def test_a_file_without_tensors_is_fine(tmp_path):
    assert open_checkpoint(write(tmp_path, {})).names() == []


def test_a_bool_may_be_any_byte(tmp_path):
    path = write(tmp_path, {"x": entry("BOOL", [3], 0, 3)}, b"\x00\x01\x07")
    assert open_checkpoint(path).read("x").tolist() == [False, True, True]


def test_the_order_of_the_header_need_not_be_that_of_the_data(tmp_path):
    header = {"second": entry("U8", [1], 1, 2), "first": entry("U8", [1], 0, 1)}
    checkpoint = open_checkpoint(write(tmp_path, header, b"\x01\x02"))
    assert checkpoint.names() == ["second", "first"]
    assert checkpoint.read("second").tolist() == [2]


# --- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16"])
def test_values_that_are_not_finite_are_counted_and_located(tmp_path, dtype, bad):
    array = np.ones((2, 3), DTYPES[dtype])
    array[1, 1:] = bad
    path = write(tmp_path, {"layer.bias": entry(dtype, [2, 3], 0, array.nbytes)}, array.tobytes())
    with pytest.raises(CheckpointError, match=r"(?s)'layer.bias'.* 2 of 6 .*first at \[1, 1\]"):
        open_checkpoint(path).read("layer.bias")


def test_a_bfloat16_nan_and_a_scalar_nan_are_found(tmp_path):
    header = {"x": entry("BF16", [], 0, 2)}
    with pytest.raises(CheckpointError, match=r"1 of 1 .*first at \[\]"):
        open_checkpoint(write(tmp_path, header, b"\xc0\x7f")).read("x")


@pytest.mark.filterwarnings("error")
def test_a_float64_beyond_float32_is_infinite(tmp_path):
    path = write(tmp_path, {"x": entry("F64", [1], 0, 8)}, struct.pack("<d", 1e300))
    with pytest.raises(CheckpointError, match="1 of 1"):
        open_checkpoint(path).read("x")


def test_an_unknown_name_is_an_error_that_says_what_is_there(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path, {"here": entry("U8", [0], 0, 0)}))
    for method in (checkpoint.read, checkpoint.shape, checkpoint.dtype):
        with pytest.raises(CheckpointError, match=r"no tensor 'there'.*'here'"):
            method("there")


# --- files that are no safetensors files -----------------------------------------------------


def test_a_missing_file_is_not_found(tmp_path):
    assert "no weights file" in problem(tmp_path / "model.safetensors", ModelNotFoundError)
    (tmp_path / "file").write_bytes(b"")
    problem(tmp_path / "file" / "model.safetensors", ModelNotFoundError)


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path):
    assert "a folder" in problem(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_in_place_of_the_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    assert "not a file" in problem(tmp_path / "model.safetensors")


def test_a_name_that_no_file_can_have_is_an_error(tmp_path):
    problem(tmp_path / "model\0.safetensors")
    with pytest.raises(MinibertError):
        open_checkpoint(tmp_path / ("x" * 5000))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path):
    path = write(tmp_path, {})
    path.chmod(0)
    assert "cannot open" in problem(path)


@pytest.mark.parametrize("size", range(8))
def test_a_file_shorter_than_8_bytes_is_an_error(tmp_path, size):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    assert "empty" in problem(path) if size == 0 else f"has {size} bytes" in problem(path)


def test_a_git_lfs_pointer_is_recognised(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in problem(path)


@pytest.mark.parametrize("length", [3, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_that_cannot_be_so_long_is_an_error(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert f"byte {8 + length}" in problem(path)


@pytest.mark.parametrize(
    ("size", "most"),
    [(2_000_000, 1_000_000), (100_000_000, 10_000_000), (2_000_000_000, 100_000_000)],
)
def test_a_header_that_is_longer_than_any_is_not_read(tmp_path, size, most):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", most + 1))
        file.truncate(size)  # a hole: it takes no room on most disks
    assert f"at most {most}" in problem(path)


@pytest.mark.parametrize(
    "header",
    ["", "{", "{}x", "nothing", b"\xff{}", '{"x": 1' + "0" * 5000 + "}", "\ufeff{}"],
    ids=["empty", "open", "more", "word", "latin-1", "5000 digits", "byte order mark"],
)
def test_a_header_that_is_not_json_is_an_error(tmp_path, header):
    assert "JSON" in problem(write(tmp_path, header))


@pytest.mark.parametrize("header", ["[" * 100_000, '{"x":' * 100_000])
def test_a_header_too_deep_to_parse_is_an_error(tmp_path, header):
    assert "JSON" in problem(write(tmp_path, header))


@pytest.mark.parametrize("header", ["[]", "1", '"x"', "null", "true"])
def test_a_header_that_is_not_an_object_is_an_error(tmp_path, header):
    assert "JSON object" in problem(write(tmp_path, header))


def test_a_name_that_occurs_twice_is_an_error(tmp_path):
    one = json.dumps(entry("U8", [0], 0, 0))
    message = problem(write(tmp_path, f'{{"twice": {one}, "twice": {one}}}'))
    assert "'twice' occurs more than once" in message
    message = problem(write(tmp_path, f'{{"x": {one[:-1]}, "shape": [0]}}}}'))
    assert "'shape' occurs more than once" in message


@pytest.mark.parametrize("metadata", [[], 1, 0, False, "text", ["a"]])
def test_metadata_that_is_no_object_is_an_error(tmp_path, metadata):
    assert "__metadata__" in problem(write(tmp_path, {"__metadata__": metadata}))


@pytest.mark.parametrize(
    ("metadata", "read"),
    [
        (None, {}),
        ({}, {}),
        ({"total": 1, "a": None}, {"total": "1", "a": "null"}),
        ({"a": {"b": ["c"]}}, {"a": '{"b": ["c"]}'}),
    ],
)
def test_metadata_that_is_no_text_is_kept_as_its_json(tmp_path, metadata, read):
    assert open_checkpoint(write(tmp_path, {"__metadata__": metadata})).metadata == read


# --- entries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 1, "F32", [], True])
def test_an_entry_that_is_not_an_object_is_an_error(tmp_path, value):
    assert "'x': expected an object" in problem(write(tmp_path, {"x": value}))


@pytest.mark.parametrize("field", ["dtype", "shape", "data_offsets"])
def test_an_entry_without_one_of_its_fields_is_an_error(tmp_path, field):
    broken = entry("U8", [1], 0, 1)
    del broken[field]
    assert f"{field} is None" in problem(write(tmp_path, {"x": broken}, b"1"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("dtype", value) for value in (1, ["F32"], {"a": 1}, "F8_E4M3", "f32", "")),
        *(("shape", value) for value in (1, "2", {}, [-1], [1.0], [True], ["1"], [None], [[1]])),
        *(
            ("data_offsets", value)
            for value in (1, {}, [], [0], [0, 1, 1], [-1, 0], [0.0, 1], [False, True], ["0", "1"])
        ),
    ],
)
def test_a_field_of_the_wrong_kind_is_an_error_that_shows_it(tmp_path, field, value):
    message = problem(write(tmp_path, {"x": {**entry("U8", [1], 0, 1), field: value}}, b"1"))
    assert f"'x': {field} is {value!r}" in message


def test_an_unknown_dtype_is_named_beside_the_known_ones(tmp_path):
    message = problem(write(tmp_path, {"x": entry("F4", [1], 0, 1)}, b"1"))
    assert "'F4'" in message
    assert all(dtype in message for dtype in DTYPES)


def test_the_bytes_must_fit_dtype_and_shape(tmp_path):
    message = problem(write(tmp_path, {"x": entry("F32", [2, 2], 0, 12)}, bytes(12)))
    assert "F32 [2, 2] takes 16 bytes, data_offsets give 12" in message


@pytest.mark.parametrize(
    "shape", [[2**63], [2**32, 2**32], [0, 2**63], [2**60, 0], [10**4000] * 8, [1] * 33]
)
def test_a_shape_that_no_array_can_have_is_an_error(tmp_path, shape):
    assert "larger than any array" in problem(write(tmp_path, {"x": entry("U8", shape, 0, 0)}))


def test_the_largest_shape_that_is_let_through_can_be_read(tmp_path):
    header = {"x": entry("F64", [0, 2**59], 0, 0), "y": entry("F16", [1] * 31 + [0], 0, 0)}
    checkpoint = open_checkpoint(write(tmp_path, header))
    assert checkpoint.read("x").shape == (0, 2**59)
    assert checkpoint.read("y").ndim == 32


def test_offsets_that_end_before_they_begin_are_an_error(tmp_path):
    assert "[1, 0]" in problem(write(tmp_path, {"x": entry("U8", [1], 1, 0)}, b"1"))


def test_a_truncated_file_is_told_how_many_bytes_are_missing(tmp_path):
    header = {"x": entry("F32", [4], 0, 16), "y": entry("F32", [2], 16, 24)}
    message = problem(write(tmp_path, header, bytes(10)))
    assert "14 bytes are missing" in message
    assert "download" in message


def test_offsets_of_4000_digits_are_an_error(tmp_path):
    header = {"x": entry("U8", [1], 10**4000, 10**4000 + 1)}
    assert "missing" in problem(write(tmp_path, header))


def test_tensors_that_overlap_are_named(tmp_path):
    header = {"a": entry("U8", [4], 0, 4), "b": entry("U8", [2], 1, 3), "c": entry("U8", [2], 3, 5)}
    message = problem(write(tmp_path, header, bytes(5)))
    assert "'b' overlaps 'a'" in message
    assert "'c' overlaps 'a'" in message


def test_unused_bytes_before_between_and_after_tensors_are_errors(tmp_path):
    header = {"a": entry("U8", [1], 1, 2), "b": entry("U8", [1], 4, 5)}
    message = problem(write(tmp_path, header, bytes(9)))
    assert "1 unused bytes before 'a'" in message
    assert "2 unused bytes before 'b'" in message
    assert "4 unused bytes after" in message


def test_all_problems_of_a_file_are_reported_at_once(tmp_path):
    header = {
        "__metadata__": [],
        "a": entry("F3", [-1], 1, 0),
        "b": entry("F32", [1], 0, 3),
        "c": None,
    }
    message = problem(write(tmp_path, header, bytes(3)))
    assert "6 problems" in message
    for word in ("__metadata__", "'a': dtype", "'a': shape", "'a': data_offsets", "'b'", "'c'"):
        assert word in message


def test_a_message_stays_short_whatever_the_file_holds(tmp_path):
    header = {"n" * 5_000 + str(i): {"dtype": ["d"] * 5_000} for i in range(30)}
    message = problem(write(tmp_path, header))
    assert "90 problems" in message
    assert message.count("\n") == 12  # the first line, ten problems, "...", the advice
    assert len(message) < 5000


def test_a_name_of_half_a_character_can_be_shown(tmp_path):
    message = problem(write(tmp_path, '{"\\ud800": 1}'))
    message.encode()  # a lone surrogate would not print


# --- a model in several files ----------------------------------------------------------------


def write_index(folder, files, **more):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 2}, "weight_map": files, **more}))
    return path


@pytest.fixture
def shards(tmp_path):
    one, two = {"a": entry("U8", [1], 0, 1)}, {"b": entry("U8", [1], 0, 1)}
    write(tmp_path, one | {"__metadata__": {"format": "pt"}}, b"\x01", "one.safetensors")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", two, b"\x02", "two.safetensors")
    return tmp_path


def test_the_files_of_an_index_are_one_checkpoint(shards):
    path = write_index(shards, {"a": "one.safetensors", "b": "sub/two.safetensors"})
    checkpoint = open_checkpoint(path)
    assert sorted(checkpoint) == ["a", "b"]
    assert checkpoint.read("b").tolist() == [2]
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.path == path


@pytest.mark.parametrize(
    "file",
    [
        *(
            "/etc/passwd",
            "../x",
            "a/../../x",
            "./x",
            "a//x",
            "a/../x",
            "",
            ".",
            "a\0b",
            "\ud800",
            1,
            None,
        ),
        *("..\\x", "C:\\x", "C:x", "\\x", "\\\\server\\share\\x"),
    ],
)
def test_a_file_outside_the_folder_of_the_index_is_refused(shards, file):
    assert "beside the index" in problem(write_index(shards, {"a": file}))


def test_all_missing_files_are_reported_at_once(shards):
    files = {"a": "one.safetensors", "b": "no.safetensors", "c": "nor.safetensors", "d": "x" * 5000}
    message = problem(write_index(shards, files), ModelNotFoundError)
    assert "'no.safetensors'" in message
    assert "'nor.safetensors'" in message
    assert "3 problems" in message


def test_a_tensor_that_is_not_in_its_file_is_an_error(shards):
    files = {"a": "sub/two.safetensors", "b": "sub/two.safetensors", "c": "one.safetensors"}
    message = problem(write_index(shards, files))
    assert "'a' is not in 'sub/two.safetensors'" in message
    assert "'c' is not in 'one.safetensors'" in message


def test_a_tensor_in_two_files_is_an_error(shards):
    header = {"a": entry("U8", [1], 0, 1), "c": entry("U8", [1], 1, 2)}
    write(shards, header, b"12", "three.safetensors")
    message = problem(write_index(shards, {"a": "one.safetensors", "c": "three.safetensors"}))
    assert "'a' is in two files" in message


def test_a_damaged_file_of_an_index_is_named_itself(shards):
    (shards / "one.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"one\.safetensors"):
        open_checkpoint(write_index(shards, {"a": "one.safetensors"}))


@pytest.mark.parametrize("files", [None, [], {}, "one.safetensors", 1])
def test_an_index_without_a_weight_map_is_an_error(shards, files):
    assert "weight_map" in problem(write_index(shards, files))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "version https://git-lfs.x"])
def test_an_index_that_is_not_an_object_is_an_error(tmp_path, text):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    problem(path)


def test_a_missing_index_is_not_found(tmp_path):
    problem(tmp_path / "model.safetensors.index.json", ModelNotFoundError)


# --- properties ------------------------------------------------------------------------------

NUMBERS = itertools.count()
VALID = file_bytes(
    {
        "__metadata__": {"format": "pt"},
        "a.weight": entry("F32", [2, 3], 0, 24),
        "b": entry("BF16", [3], 24, 30),
        "c": entry("I8", [2], 30, 32),
        "d": entry("BOOL", [], 32, 33),
        "e": entry("F16", [0, 4], 33, 33),
    },
    np.arange(6, dtype="<f4").tobytes() + bytes(9),
)


def read_all(path):
    checkpoint = open_checkpoint(path)
    for name in checkpoint:
        array = checkpoint.read(name)
        assert isinstance(array, np.ndarray)
        assert array.shape == checkpoint.shape(name)
        assert array.dtype.kind != "f" or np.isfinite(array).all()


def outcome(path):
    """The message of our error, or the file's name; any other error passes through."""
    try:
        read_all(path)
    except MinibertError as error:
        return str(error)
    return path.name


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def test_the_file_that_is_damaged_below_is_valid(scratch):
    (scratch / "valid.safetensors").write_bytes(VALID)
    read_all(scratch / "valid.safetensors")


def test_a_file_cut_anywhere_is_an_error(tmp_path):
    for size in range(len(VALID)):
        (tmp_path / f"{size}.safetensors").write_bytes(VALID[:size])
        problem(tmp_path / f"{size}.safetensors")


@settings(max_examples=100, deadline=None)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    size=st.integers(0, len(VALID) + 3),
)
def test_a_damaged_file_gives_arrays_or_an_error_of_ours(scratch, flips, size):
    damaged = bytearray(VALID + bytes(3))
    for place, value in flips:
        damaged[place] = value
    # A new file each time: to shorten a file that is still mapped would kill the process.
    path = scratch / f"{next(NUMBERS)}.safetensors"
    path.write_bytes(damaged[:size])
    assert path.name in outcome(path)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**70)
    | st.floats()
    | st.sampled_from(list(DTYPES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
small = st.integers(0, 8)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F16", "F32"]) | json_values,
        "shape": st.lists(small, max_size=2) | json_values,
        "data_offsets": st.lists(small, min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=100, deadline=None)
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entries | json_values),
    data=st.binary(max_size=8),
)
def test_any_json_as_header_gives_arrays_or_an_error_of_ours(scratch, header, data):
    path = write(scratch, header, data, f"{next(NUMBERS)}.safetensors")
    assert path.name in outcome(path)
