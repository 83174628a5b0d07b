"""Batches as engines hand them over: dicts of NumPy arrays, pandas DataFrames, Arrow tables and record batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxcam.errors import InputError, listing, nearest
from onnxcam.fleet.columns import Column, Row, to_arrow, to_numpy


def take(batch: Any, column: str, added: Sequence[Column], keep: bool) -> tuple[Any, list[Any]]:
    """The column of pictures, and the names of those that pass through.

    Arguments:
        batch: of a type above.
        column: name of the column of pictures.
        added: columns that will be added.
        keep: whether the pictures pass through too.

    Raises:
        InputError: another type, no such column, two of one name, columns that are no rows or not as many as there are
            pictures, or one of the columns added is there already.
    """
    others = check_names(_names(batch), column, added, keep)
    if isinstance(batch, Mapping):
        _check_lengths(batch, column, others)
    return batch[column], others


def _check_lengths(batch: Mapping[Any, Any], column: str, others: Sequence[Any]) -> None:
    """Refuse columns of a dict that are not a row for each picture; tables of other kinds cannot have them."""
    rows = -1
    for name in (column, *others):
        values = batch[name]
        array = not isinstance(values, (str, bytes, bytearray, memoryview, Mapping))
        if not array or not hasattr(values, "__len__") or getattr(values, "shape", (0,)) == ():
            raise InputError(
                f"the column {name!r} is a {type(values).__name__}, and no rows; give an array or a list with one "
                "value a row, such as [value]"
            )
        rows = len(values) if rows < 0 else rows
        if len(values) != rows:
            raise InputError(
                f"the column {name!r} has {len(values):,} rows, and {column!r} {rows:,}; give one value for each "
                "picture"
            )


def check_names(names: Sequence[Any], column: str, added: Sequence[Column], keep: bool) -> list[Any]:
    """The names of the columns that pass through; arguments and errors as of `take`."""
    if column not in names:
        raise InputError(
            f"the batch has no column {column!r}; it has {listing(nearest(column, list(map(str, names)), 10))}: name "
            "the one with the pictures, Explain(…, column=…)"
        )
    if len(set(names)) < len(names):
        repeated = next(name for place, name in enumerate(names) if name in names[:place])
        raise InputError(f"the batch has two columns {repeated!r}; rename one, or leave it out")
    others = [name for name in names if keep or name != column]
    twice = [one.name for one in added if one.name in others]
    if twice:
        raise InputError(
            f"the batch has a column {twice[0]!r} already, which Explain adds: rename it, or give those that are added "
            "a prefix, Explain(…, prefix='cam_')"
        )
    return others


def _names(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch)
    if hasattr(batch, "schema") and hasattr(batch, "num_rows"):
        return list(batch.schema.names)
    if hasattr(batch, "columns") and hasattr(batch, "assign"):
        return list(batch.columns)
    raise InputError(
        f"got a {type(batch).__name__}; expected a batch: a dict of arrays, a pandas DataFrame, or an Arrow table"
    )


def assemble(batch: Any, others: Sequence[Any], rows: Sequence[Row], added: Sequence[Column], prefix: str) -> Any:
    """A batch of the same type with the columns added.

    Arguments:
        others: names of the columns that pass through.
        rows: one per row of the batch.
        added, prefix: the columns, and what their names begin with.
    """
    if isinstance(batch, Mapping):
        values = {column.name: to_numpy(rows, column, column.name.removeprefix(prefix)) for column in added}
        return {name: batch[name] for name in others} | values
    if hasattr(batch, "assign"):
        values = {column.name: to_numpy(rows, column, column.name.removeprefix(prefix)) for column in added}
        return batch[list(others)].assign(**values)
    from onnxcam.fleet.columns import arrow_schema, import_pyarrow

    pyarrow = import_pyarrow()
    passed = [batch.schema.field(name) for name in others]
    arrays = [batch.column(name) for name in others]
    arrays += [to_arrow(rows, column, column.name.removeprefix(prefix)) for column in added]
    overlay = any(column.name == f"{prefix}overlay" for column in added)
    fields = [*passed, *arrow_schema(overlay=overlay, prefix=prefix)]
    schema = pyarrow.schema(fields, batch.schema.metadata)
    return type(batch).from_arrays(arrays, schema=schema)
