"""Batches of rows, whatever program they come from: a column of one, and one with more columns.

No such program is imported before it has made a batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from minibert.errors import InputError
from minibert.options import listed


class Column(NamedTuple):
    """A column to be added."""

    name: str
    kind: str  # 'string', 'bigint' or 'double', as in Spark's SQL
    values: list[Any]  # None where there is none


class Table(NamedTuple):
    """What can be done with a batch, whatever its kind."""

    names: list[Any]  # of its columns
    column: Callable[[str], list[Any]]  # the values of one; None, or NaN, where there is none
    extended: Callable[[Sequence[Column]], Any]  # a batch of the same kind with more columns


def table_of(batch: Any) -> Table:
    """What can be done with a batch.

    Args:
        batch: a DataFrame of pandas or polars, a Table or RecordBatch of pyarrow, or a mapping of
            names to columns: a dict of lists or arrays, or a batch of Hugging Face datasets.

    Raises:
        InputError: it is something else.
    """
    for module, name, read in KINDS:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and isinstance(batch, kind):
            return read(batch)
    if isinstance(batch, Mapping):
        return mapping_table(batch)
    raise InputError(
        "a batch must be a mapping of columns, a DataFrame of pandas or polars, or a Table or "
        f"RecordBatch of pyarrow, got {type(batch).__module__}.{type(batch).__qualname__}. Of an "
        "engine's own table, give its map_batches, map_partitions or mapInArrow a BatchAnswerer."
    )


def mapping_table(batch: Any) -> Table:
    """A mapping of columns: added ones are lists, or arrays where the first column is an array."""

    def column(name: str) -> list[Any]:
        values = listed(batch[name])
        if not isinstance(values, list):
            raise InputError(
                f"column {name!r} must be a list of values, got {type(values).__name__}: this is a "
                "row, not a batch of rows. Have the engine map batches (batched=True, map_batches)."
            )
        return values

    def extended(added: Sequence[Column]) -> Any:
        as_arrays = isinstance(next(iter(batch.values())), np.ndarray)
        columns = {each.name: to_array(each) if as_arrays else each.values for each in added}
        # Whoever can be joined with a dict stays what it is; datasets' batches are of that kind.
        return batch | columns if hasattr(type(batch), "__or__") else {**batch, **columns}

    return Table(list(batch), column, extended)


# NumPy has no nulls.  Numbers get a stand-in, so that a column has one dtype in all batches.
ARRAYS: dict[str, tuple[Any, Any]] = {
    "string": (np.object_, None),
    "bigint": (np.int64, -1),
    "double": (np.float64, np.nan),
}


def to_array(column: Column) -> Any:
    """A column as an array of NumPy.

    Example:
        >>> to_array(Column("start", "bigint", [3, None])).tolist()
        [3, -1]
    """
    dtype, missing = ARRAYS[column.kind]
    return np.array([missing if x is None else x for x in column.values], dtype)


def pandas_table(batch: Any) -> Table:
    """A DataFrame of pandas; added columns have dtypes that keep nulls, and the same in all."""
    import pandas

    dtypes = {"string": "string", "bigint": "Int64", "double": "float64"}

    def column(name: str) -> list[Any]:
        values = batch[name].astype(object)
        return values.where(values.notna(), None).tolist()

    def extended(added: Sequence[Column]) -> Any:
        columns = {
            each.name: pandas.Series(each.values, index=batch.index, dtype=dtypes[each.kind])
            for each in added
        }
        return batch.assign(**columns)

    return Table(list(batch.columns), column, extended)


def arrow_table(batch: Any) -> Table:
    """A Table or RecordBatch of pyarrow."""

    def column(name: str) -> list[Any]:
        try:
            found: list[Any] = batch.column(name).to_pylist()
        except UnicodeDecodeError as error:  # pyarrow does not look at texts before
            raise InputError(f"column {name!r} holds a text that is no UTF-8: {error}") from None
        return found

    def extended(added: Sequence[Column]) -> Any:
        schema, columns = batch.schema, list(batch.columns)
        for each in added:
            columns.append(arrow_array(each))
            schema = schema.append(arrow_field(each.name, each.kind))
        return type(batch).from_arrays(columns, schema=schema)

    return Table(batch.schema.names, column, extended)


def arrow_array(column: Column) -> Any:
    """A column as an array of pyarrow."""
    import pyarrow

    return pyarrow.array(column.values, arrow_field(column.name, column.kind).type)


def arrow_field(name: str, kind: str) -> Any:
    """Name and type of a column of pyarrow."""
    import pyarrow

    types = {"string": pyarrow.string(), "bigint": pyarrow.int64(), "double": pyarrow.float64()}
    return pyarrow.field(name, types[kind])


def polars_table(batch: Any) -> Table:
    """A DataFrame of polars."""
    import polars

    dtypes = {"string": polars.String, "bigint": polars.Int64, "double": polars.Float64}

    def extended(added: Sequence[Column]) -> Any:
        return batch.with_columns(
            [polars.Series(each.name, each.values, dtypes[each.kind]) for each in added]
        )

    return Table(batch.columns, lambda name: batch[name].to_list(), extended)


# The module that has a kind of batch, its name there, and what reads it.
KINDS: tuple[tuple[str, str, Callable[[Any], Table]], ...] = (
    ("pandas", "DataFrame", pandas_table),
    ("pyarrow", "Table", arrow_table),
    ("pyarrow", "RecordBatch", arrow_table),
    ("polars", "DataFrame", polars_table),
)
