"""Explain in Spark: a data frame with the columns of `Explain`, by `mapInArrow`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from onnxcam.errors import DependencyError
from onnxcam.fleet.batches import check_names
from onnxcam.fleet.columns import import_pyarrow

if TYPE_CHECKING:
    from onnxcam.fleet.callable import Explain

_ROWS = 64  # in a batch: pictures are large
_BATCHES = 4  # of a job in `run`, for each core
_STARTS = 4  # of a task whose worker ends without an answer


def ddl(explain: Explain) -> str:
    """The columns that `explain` adds, in Spark's DDL."""
    return ", ".join(f"`{column.name}` {column.kind.spark}" for column in explain.columns)


def explain_frame(frame: Any, explain: Explain, *, batch_size: int = _ROWS) -> Any:
    """Add the columns of `explain` to a data frame by `mapInArrow`; its column of pictures is dropped unless `keep`.

    Arguments:
        frame: a `pyspark.sql.DataFrame`.
        explain: the callable.
        batch_size: rows that the model is given at a time. Spark hands over as many as the setting
            `spark.sql.execution.arrow.maxRecordsPerBatch` says (10,000), all of them in memory.

    Returns:
        a `pyspark.sql.DataFrame`, computed when an action asks for it.

    Raises:
        InputError: the frame has no column of pictures, or one that would be added. What `explain` raises, in the job.
    """
    from pyspark.sql.types import StructType

    others = check_names(frame.columns, explain.column, explain.columns, explain.keep)
    fields = [*(frame.schema[name] for name in others), *StructType.fromDDL(ddl(explain)).fields]

    def rows(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            for start in range(0, batch.num_rows, batch_size):
                yield explain(batch.slice(start, batch_size))

    return frame.mapInArrow(rows, StructType(fields))


def run(
    explain: Explain, batches: Iterable[Mapping[str, Sequence[Any]]], *, workers: int | None = None
) -> Iterator[Any]:
    """Explain batches by Spark, a few of them in a job, see `onnxcam.fleet.local.run`.

    A batch whose worker is killed is a task that Spark runs again, as often as `spark.task.maxFailures` says. Spark is
    started on this machine if there is no session.

    Arguments:
        workers: cores of a session that is started; None for all.
    """
    pyarrow = import_pyarrow()
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise DependencyError(f"Spark cannot be imported ({error}); install it: pip install pyspark") from error
    session = SparkSession.getActiveSession()
    if session is None:
        master = f"local[{workers or '*'},{_STARTS}]"
        builder = SparkSession.builder.master(master).appName("onnxcam").config("spark.ui.enabled", "false")
        session = builder.getOrCreate()
    context, source = session.sparkContext, iter(batches)

    def task(batch: Mapping[str, Sequence[Any]]) -> bytes:
        table = explain(import_pyarrow().table(dict(batch)))
        sink = import_pyarrow().BufferOutputStream()
        with import_pyarrow().ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    while some := list(islice(source, context.defaultParallelism * _BATCHES)):
        for data in context.parallelize([dict(batch) for batch in some], len(some)).map(task).collect():
            yield pyarrow.ipc.open_stream(data).read_all()
