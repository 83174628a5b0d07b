"""The writer of a table's parts, on a thread of its own: each is whole and on the disk, or it is not there."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onnxcam import files
from onnxcam.errors import OutputError
from onnxcam.fleet.columns import OVERLAY, import_pyarrow
from onnxcam.fleet.tables import KEY, Counts, Part, part_name
from onnxcam.folders import sync_folder

_GROUP_ROWS = 4096  # of a row group, at most
_GROUP_BYTES = 16 << 20
_WAITING = 4  # tables that wait for the writer
_END = None


class Parts:
    """Writes rows that come in order; a part is complete after its last row, or at the end.

    Arguments:
        folder: of the table.
        schema: of its columns.
        describe: makes the metadata of a part of its number and counts.
        written: is called with each part that is on the disk, from the writer's thread.
    """

    def __init__(
        self, folder: Path, schema: Any, describe: Callable[[int, Counts], Part], written: Callable[[Part], None]
    ) -> None:
        self._folder = folder
        self._schema = schema
        self._describe = describe
        self._written = written
        self._queue: queue.Queue[tuple[int, Any, bool] | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._aborted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onnxcam-parts", daemon=True)

    def __enter__(self) -> Parts:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._aborted.set()
        self._hand_over(_END)
        while self._thread.is_alive():
            self._thread.join(1)
        if error is None and self._error is not None:
            raise self._error

    def add(self, number: int, rows: Any, last: bool) -> None:
        """Hand over rows of a part, a `pyarrow.Table`.

        Arguments:
            number: of the part.
            last: whether the part is complete with them.

        Raises:
            OutputError: a part could not be written.
        """
        self._hand_over((number, rows, last))
        if self._error is not None:
            raise self._error

    def _hand_over(self, value: tuple[int, Any, bool] | None) -> None:
        while self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(value, timeout=0.1)
                return

    def _take(self) -> tuple[int, Any, bool] | None:
        while True:  # rows that were handed over before the end are written: they may complete a part
            aborted = self._aborted.is_set()
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=0.0 if aborted else 0.1)
            if aborted:
                raise _Aborted

    def _run(self) -> None:
        try:
            while (rows := self._take()) is not _END:
                self._write(rows)
        except _Aborted:
            pass
        except BaseException as error:  # raised again where rows are added
            self._error = error

    def _write(self, first: tuple[int, Any, bool]) -> None:
        number, counted = first[0], [Counts()]
        path = self._folder / part_name(number)
        files.write_pieces(path, self._pieces(first, counted), sync=True)
        sync_folder(self._folder)
        self._written(self._describe(number, counted[0]))

    def _pieces(self, first: tuple[int, Any, bool], counted: list[Counts]) -> Iterator[bytes]:
        """The content of a part's file, as its rows come."""
        pyarrow = import_pyarrow()
        from pyarrow import parquet

        number, rows, last = first
        sink = _Sink()
        compression = {name: "none" if name == OVERLAY else "zstd" for name in _leaves(self._schema)}
        writer = parquet.ParquetWriter(sink, self._schema, compression=compression)
        waiting = [rows]
        while True:
            counted[0] += count(rows)
            if (
                last
                or sum(one.num_rows for one in waiting) >= _GROUP_ROWS
                or sum(one.nbytes for one in waiting) >= _GROUP_BYTES
            ):
                group = pyarrow.concat_tables(waiting)
                waiting = []
                writer.write_table(group, row_group_size=max(1, group.num_rows))
                yield sink.drain()
            if last:
                break
            following = self._take()
            if following is _END or following[0] != number:
                raise OutputError(f"{part_name(number)} ends early: rows are missing")
            _, rows, last = following
            waiting.append(rows)
        writer.add_key_value_metadata({KEY: self._describe(number, counted[0]).to_json()})
        writer.close()
        yield sink.drain()


def count(rows: Any) -> Counts:
    """The counts of some rows."""
    from pyarrow import compute

    failed = compute.sum(compute.not_equal(rows.column("error"), "")).as_py() or 0
    explained = compute.sum(compute.is_valid(rows.column("method"))).as_py() or 0
    right = wrong = 0
    if "right" in rows.schema.names:
        right = compute.sum(rows.column("right")).as_py() or 0
        wrong = (compute.sum(compute.is_valid(rows.column("right"))).as_py() or 0) - right
    return Counts(rows.num_rows, failed, explained, right, wrong)


class _Aborted(Exception):
    """The rest of the rows will not come."""


class _Sink:
    """What a Parquet file is written to, and taken out of a piece at a time."""

    closed = False

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def drain(self) -> bytes:
        """The bytes since the last call."""
        data = bytes(self._data)
        self._data.clear()
        return data

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _leaves(schema: Any) -> list[str]:
    """The columns as Parquet names them: a list's items have a path."""
    pyarrow = import_pyarrow()
    return [f"{one.name}.list.element" if pyarrow.types.is_list(one.type) else one.name for one in schema]
