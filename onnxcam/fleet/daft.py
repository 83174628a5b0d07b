"""Explain in Daft: a data frame with the columns of `Explain`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from onnxcam.errors import DependencyError, OutputError
from onnxcam.explain.folder import cores
from onnxcam.fleet import workers as shares
from onnxcam.fleet.columns import arrow_schema, import_pyarrow, to_arrow

if TYPE_CHECKING:
    from onnxcam.fleet.callable import Explain
    from onnxcam.fleet.columns import Row

_ROWS = 64  # in a batch: pictures are large
_RUN_ROWS = 32  # in `run`: few, so that processes end together
_BATCHES = 4  # of as many rows that are on their way in `run`, for each process
_STARTS = 3  # of a query whose process ends without an answer
_PAUSE = 0.005  # seconds between looks at whether there is room for another batch
_PLACE, _ROW = "onnxcam_batch", "onnxcam_row"


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
    """Explain batches by Daft, all of them in one query, see `onnxcam.fleet.local.run`.

    The query takes batches as it goes, on a thread of its own, so that few are in memory and its processes open the
    model once. Where one of these is killed, another query goes on with the batches whose rows are not there yet. Each
    batch with rows gives one table.

    Arguments:
        workers: processes; None for one per core.
    """
    _import_daft(), import_pyarrow()
    count, starts = workers or cores(), 0
    feed = Feed(batches, _BATCHES * _RUN_ROWS * count)
    while (schema := feed.schema()) is not None:
        starts += 1
        try:
            for table in _answers(feed, schema, explain, count):
                starts = 0
                yield table
        except Exception as error:
            if starts >= _STARTS or "closed the connection" not in str(error):
                raise
        if starts >= _STARTS:
            raise OutputError("Daft ends its queries without rows; run it again")
    if feed.error is not None:
        raise feed.error


def _answers(feed: Feed, schema: Any, explain: Explain, count: int) -> Iterator[Any]:
    """The tables of one query over the batches of a schema, each once all of its rows are there."""
    pyarrow = import_pyarrow()
    over = threading.Event()
    frame = explain_frame(_source(feed, schema, over).read(), explain, workers=count, batch_size=_RUN_ROWS)
    stream = frame.to_arrow_iter()
    parts: dict[int, list[Any]] = {}
    try:
        for rows in stream:
            places = rows.column(_PLACE).to_numpy()
            for place in dict.fromkeys(places.tolist()):
                part = pyarrow.Table.from_batches([rows]).filter(pyarrow.array(places == place))
                parts.setdefault(place, []).append(part)
                if sum(one.num_rows for one in parts[place]) == feed.rows(place):
                    table = pyarrow.concat_tables(parts.pop(place)).sort_by(_ROW).drop_columns([_PLACE, _ROW])
                    feed.remove(place)
                    yield table
    finally:
        over.set()
        stream.close()


class Feed:
    """Batches on their way through a query: each stays until its rows are there, for another query if this one fails.

    Thread-safe.

    Arguments:
        batches: lists of values by column.
        most: rows that are on their way at a time; one batch at least.

    Attributes:
        error: that ended the batches early, None if none did.
    """

    def __init__(self, batches: Iterable[Mapping[str, Sequence[Any]]], most: int) -> None:
        self.error: Exception | None = None
        self._batches = iter(batches)
        self._most = most
        self._turn = threading.Lock()  # to take a batch, which may take as long as it likes
        self._lock = threading.Lock()
        self._waiting: dict[int, Any] = {}
        self._count = 0
        self._end = False

    def schema(self) -> Any:
        """The Arrow schema of the first batch that is on its way, None after the last."""
        table = self._next(())
        return None if table is None else table[1].schema

    def following(self, places: set[int], schema: Any) -> Any:
        """The next table for a query that has those of some places; None after the last, or where the schema changes.

        Arguments:
            places: the place of the table is added.
            schema: of the query.
        """
        pair = self._next(places)
        table = None if pair is None else _fitting(pair[1], schema)
        if pair is not None and table is not None:
            places.add(pair[0])
        return table

    @property
    def full(self) -> bool:
        """Whether so many rows are on their way that the next batch has to wait."""
        with self._lock:
            return sum(int(table.num_rows) for table in self._waiting.values()) >= self._most

    def rows(self, place: int) -> int:
        """The rows of a batch on its way."""
        with self._lock:
            return int(self._waiting[place].num_rows)

    def remove(self, place: int) -> None:
        """Let go of a batch whose rows are there."""
        with self._lock:
            del self._waiting[place]

    def _next(self, places: Collection[int]) -> tuple[int, Any] | None:
        """The first batch on its way at another place than these, which is taken if there is none; its place first."""
        with self._turn:
            while True:
                with self._lock:
                    pair = next((pair for pair in self._waiting.items() if pair[0] not in places), None)
                if pair is not None or self._end:
                    return pair
                self._take()

    def _take(self) -> None:
        """Take one batch; of one without rows nothing is to come."""
        pyarrow = import_pyarrow()
        try:
            table = pyarrow.table(dict(next(self._batches)))
        except StopIteration:
            self._end = True
            return
        except Exception as error:
            self.error, self._end = error, True
            return
        count = table.num_rows
        table = table.append_column(_PLACE, pyarrow.array([self._count] * count, pyarrow.int64()))
        table = table.append_column(_ROW, pyarrow.array(range(count), pyarrow.int64()))
        with self._lock:
            if count:
                self._waiting[self._count] = table
            self._count += 1


def _fitting(table: Any, schema: Any) -> Any:
    """The table in a schema; None where it has another. A column without a single value has any type."""
    pyarrow = import_pyarrow()
    if table.schema.names != schema.names:
        return None
    pairs = zip(table.schema, schema, strict=True)
    if any(one.type != other.type and not pyarrow.types.is_null(one.type) for one, other in pairs):
        return None
    return table.cast(schema)


def _source(feed: Feed, schema: Any, over: threading.Event) -> Any:
    """A `daft.io.source.DataSource` of the batches on their way, which waits while the feed is full.

    Daft takes at once all that a source gives, on the thread that delivers results too: waiting lets it deliver.

    Arguments:
        over: set when the query has ended, however it did.
    """
    from daft.io.source import DataSource, DataSourceTask
    from daft.recordbatch import RecordBatch
    from daft.schema import Schema

    fields, places = Schema.from_pyarrow_schema(schema), set[int]()

    class Task(DataSourceTask):  # type: ignore[misc]
        @property
        def schema(self) -> Any:
            return fields

        async def read(self) -> AsyncIterator[Any]:
            loop = asyncio.get_running_loop()
            while not over.is_set():
                if places and feed.full:
                    await asyncio.sleep(_PAUSE)
                    continue
                table = await loop.run_in_executor(None, feed.following, places, schema)
                if table is None:
                    return
                yield RecordBatch.from_arrow_table(table)

    class Source(DataSource):  # type: ignore[misc]
        @property
        def name(self) -> str:
            return "onnxcam"

        @property
        def schema(self) -> Any:
            return fields

        async def get_tasks(self, pushdowns: Any) -> AsyncIterator[Any]:
            yield Task()

    return Source()


def _import_daft() -> Any:
    try:
        import daft
    except ImportError as error:
        raise DependencyError(f"Daft cannot be imported ({error}); install it: pip install daft") from error
    return daft
