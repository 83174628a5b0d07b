"""Explain in Daft: a data frame with the columns of `Explain`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from typing import TYPE_CHECKING, Any

from onnxcam.errors import DependencyError
from onnxcam.explain.folder import cores
from onnxcam.fleet import workers as shares
from onnxcam.fleet.columns import arrow_schema, import_pyarrow, to_arrow

if TYPE_CHECKING:
    from onnxcam.fleet.callable import Explain
    from onnxcam.fleet.columns import Row

_ROWS = 64  # in a batch: pictures are large
_BATCHES = 4  # of a query in `run`, for each worker
_STARTS = 3  # of a query whose worker ends without an answer
_PLACE = "onnxcam_batch"


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
    """Explain batches by Daft, a few of them in a query, see `onnxcam.fleet.local.run`.

    A query whose process is killed is run again; each batch gives one table.

    Arguments:
        workers: processes; None for one per core.
    """
    daft, pyarrow = _import_daft(), import_pyarrow()
    count, source = workers or cores(), iter(batches)
    while some := list(islice(source, count * _BATCHES)):
        tables = [pyarrow.table(dict(batch)) for batch in some]
        places = [pyarrow.array([place] * table.num_rows, pyarrow.int64()) for place, table in enumerate(tables)]
        joined = pyarrow.concat_tables(
            [table.append_column(_PLACE, place) for table, place in zip(tables, places, strict=True)],
            promote_options="permissive",
        )
        rows = max(1, min(_ROWS, -(-joined.num_rows // count)))
        frame = explain_frame(daft.from_arrow(joined), explain, workers=count, batch_size=rows)
        answered = _collected(frame)
        order = answered.column(_PLACE).to_numpy()
        for place in range(len(some)):
            yield answered.filter(pyarrow.array(order == place)).drop_columns([_PLACE])


def _collected(frame: Any) -> Any:
    """The Arrow table of a frame; a query that lost a process is run again."""
    for start in range(1, _STARTS + 1):
        try:
            return frame.to_arrow()
        except Exception as error:
            lost = "closed the connection" in str(error)
            if not lost or start == _STARTS:
                raise
    raise AssertionError


def _import_daft() -> Any:
    try:
        import daft
    except ImportError as error:
        raise DependencyError(f"Daft cannot be imported ({error}); install it: pip install daft") from error
    return daft
