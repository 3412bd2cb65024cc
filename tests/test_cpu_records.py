"""Compiled code finds a record's fields where NumPy has put them."""

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from minibert.kernels.cpu.packing import address
from minibert.kernels.cpu.pointers import address_of, at
from minibert.kernels.cpu.records import JOBS, LAYER, LINE, THREAD, record

NUMBERS = record("first", ("eps", np.dtype(np.float32)), ("inner", record("a", "b")), "last")
layer_at, numbers_at = at(LAYER), at(NUMBERS)


def test_fields_of_records_in_records_are_read_by_name():
    layers = np.zeros(3, LAYER)
    layers.view(np.int64)[:] = np.arange(layers.nbytes // 8)

    @njit
    def read(layers, i):
        layer = layer_at(layers, i)
        return layer.qkv.weights, layer.attention_norm, layer.output.steps, layer.output_norm

    for i, layer in enumerate(layers):
        wanted = (
            layer["qkv"]["weights"],
            layer["attention_norm"],
            layer["output"]["steps"],
            layer["output_norm"],
        )
        assert read(address(layers), i) == wanted


def test_fields_are_set_where_they_are_read():
    numbers = np.zeros(2, NUMBERS)
    numbers["eps"] = 0.25

    @njit
    def change(numbers):
        second = numbers_at(numbers, 1)
        second.last = 7
        second.inner.b = second.last + 1
        return second.eps, address_of(second, "last") - address_of(second, "first")

    assert change(address(numbers)) == (0.25, NUMBERS.fields["last"][1])
    assert numbers[1].tolist() == (0, 0.25, (0, 8), 7)
    assert numbers[0].tolist() == (0, 0.25, (0, 0), 0)


def test_a_field_that_there_is_not_does_not_compile():
    @njit
    def read(numbers):
        return numbers_at(numbers, 0).third

    with pytest.raises(TypingError, match="third"):
        read(0)


def test_what_threads_write_at_once_shares_no_cache_line():
    assert THREAD.itemsize % LINE == 0
    for job in JOBS.values():
        offsets = sorted(offset for _, offset in (fields[:2] for fields in job.fields.values()))
        for counter in ("taken", "done"):
            begin = job.fields[counter][1]
            assert begin % LINE == 0
            assert [at for at in offsets if begin < at < begin + LINE] == []
