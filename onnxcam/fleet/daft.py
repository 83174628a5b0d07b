"""Explain in Daft: a data frame with the columns of `Explain`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from onnxcam.errors import DependencyError
from onnxcam.explain.folder import cores
from onnxcam.fleet import workers as shares
from onnxcam.fleet.columns import arrow_schema, import_pyarrow, to_arrow

if TYPE_CHECKING:
    from onnxcam.fleet.callable import Explain
    from onnxcam.fleet.columns import Row

_ROWS = 64  # in a batch: pictures are large
_RUN_ROWS = 32  # in `run`: few, so that processes end together
# of a query in `run`, for each process: starting one takes about a second; and of all of them together
_QUERY_ROWS, _QUERY_BYTES = 1024, 256 << 20
_QUERY_OVERLAYS = 256  # instead, where each row comes with a picture: those of a query are held at once
_STARTS = 3  # of a query whose process ends without an answer
_ROW = "onnxcam_row"


def explain_frame(
    frame: Any, explain: Explain, *, workers: int | None = None, gpus: float = 0, batch_size: int = _ROWS
) -> Any:
    """Add the columns of `explain` to a data frame; its column of pictures is dropped unless `keep`.

    Arguments:
        frame: a `daft.DataFrame`.
        explain: the callable.
        workers: processes, which share the cores; None for one per core.
        gpus: of each process; 1 gives it a GPU of its own.
        batch_size: rows that a process is handed at a time.

    Returns:
        a `daft.DataFrame`, computed when it is collected or written.

    Raises:
        InputError: the frame has no column of pictures, or one that would be added. DependencyError: Daft or pyarrow
        is not installed. What `explain` raises, when the frame is computed.
    """
    daft, pyarrow = _import_daft(), import_pyarrow()
    from onnxcam.fleet.batches import check_names

    others = check_names(frame.column_names, explain.column, explain.columns, explain.keep)
    count = workers or cores()
    share = copy(explain)
    share.threads = explain.threads or max(1, shares.share() // count)
    schema = arrow_schema(overlay=explain.overlay, prefix=explain.prefix)
    dtype = daft.DataType.from_arrow_type(pyarrow.struct(list(schema)))

    class Explanations:
        """An instance in each process."""

        def __init__(self, explain: Explain) -> None:
            self._explain = explain

        @daft.method.batch(return_dtype=dtype, unnest=True, batch_size=batch_size)  # type: ignore[untyped-decorator]
        def rows(self, pictures: Any) -> Any:
            return structs(self._explain, pictures.to_arrow())

    processes = daft.cls(Explanations, max_concurrency=count, use_process=True, gpus=gpus)
    return frame.select(*others, processes(share).rows(frame[explain.column]))


def structs(explain: Explain, pictures: Any) -> Any:
    """The columns of `explain` for an Arrow array of pictures, as a `pyarrow.StructArray`."""
    from onnxcam.fleet.cells import cells

    rows: list[Row] = list(explain.explain(cells(pictures, explain.column)))
    arrays = [to_arrow(rows, column, column.name.removeprefix(explain.prefix)) for column in explain.columns]
    fields = list(arrow_schema(overlay=explain.overlay, prefix=explain.prefix))
    return import_pyarrow().StructArray.from_arrays(arrays, fields=fields)


def run(
    explain: Explain, batches: Iterable[Mapping[str, Sequence[Any]]], *, workers: int | None = None
) -> Iterator[Any]:
    """Explain batches by Daft, many rows in a query, see `onnxcam.fleet.local.run`.

    A query whose process is killed is run again, so that none of its rows is lost or comes twice; each batch with rows
    gives one table. The processes open the model once for each query.

    Arguments:
        workers: processes; None for one per core.
    """
    daft, pyarrow = _import_daft(), import_pyarrow()
    count = workers or cores()
    most = _QUERY_OVERLAYS if explain.overlay else _QUERY_ROWS
    for tables in grouped(batches, count * most, _QUERY_BYTES):
        joined = pyarrow.concat_tables(tables, promote_options="permissive")
        joined = joined.append_column(_ROW, pyarrow.array(range(joined.num_rows), pyarrow.int64()))
        rows = max(1, min(_RUN_ROWS, -(-joined.num_rows // count)))
        frame = explain_frame(daft.from_arrow(joined), explain, workers=count, batch_size=rows)
        answered = _collected(frame).sort_by(_ROW).drop_columns([_ROW])
        start = 0
        for table in tables:
            yield answered.slice(start, table.num_rows)
            start += table.num_rows


def grouped(batches: Iterable[Mapping[str, Sequence[Any]]], rows: int, size: int) -> Iterator[list[Any]]:
    """The Arrow tables of batches that have rows, as many together as reach a number of rows, or of bytes.

    An error of the batches is raised behind those before it.
    """
    pyarrow, source = import_pyarrow(), iter(batches)
    failure: Exception | None = None
    while failure is None:
        tables: list[Any] = []
        try:
            while sum(table.num_rows for table in tables) < rows and sum(table.nbytes for table in tables) < size:
                table = pyarrow.table(dict(next(source)))
                tables += [table] if table.num_rows else []
        except StopIteration:
            if tables:
                yield tables
            return
        except Exception as error:
            failure = error
        if tables:
            yield tables
    raise failure


def _collected(frame: Any) -> Any:
    """The Arrow table of a frame; a query that lost a process is run again."""
    for start in range(1, _STARTS + 1):
        try:
            return frame.to_arrow()
        except Exception as error:
            if start == _STARTS or "closed the connection" not in str(error):
                raise
    raise AssertionError


def _import_daft() -> Any:
    try:
        import daft
    except ImportError as error:
        raise DependencyError(f"Daft cannot be imported ({error}); install it: pip install daft") from error
    return daft
