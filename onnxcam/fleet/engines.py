"""The rows of a run by whichever engine, in the order of its listing, each once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam.errors import OutputError
from onnxcam.fleet.columns import columns, import_pyarrow, to_arrow, to_text
from onnxcam.fleet.run import Run

if TYPE_CHECKING:
    from onnxcam.fleet.callable import Explain
    from onnxcam.fleet.columns import Row

LOCAL = "local"
ENGINES = (LOCAL, "ray", "daft", "spark")  # modules of this package; each but the first has a function `run`
ROW, PICTURE = "row", "picture"  # the columns that engines get
_ROWS = 64  # of a batch


def answers(explain: Explain, run: Run, engine: str = LOCAL, workers: int | None = None) -> Iterator[Any]:
    """The columns of `Explain` for the rows of a run that are missing, in order, a few at a time.

    Arguments:
        explain: whose column of pictures is `picture`.
        engine: one of `ENGINES`.
        workers: of the engine; None for what suits it.

    Returns:
        `pyarrow.Table`s.

    Raises:
        what `explain` raises. DependencyError: the engine is not installed. OutputError: it lost a row.
    """
    if engine == LOCAL:
        return _local(explain, run)
    module = import_module(f"onnxcam.fleet.{engine}")
    return _in_order(explain, run, module.run(explain, _batches(run), workers=workers), engine)


def _local(explain: Explain, run: Run) -> Iterator[Any]:
    rows = explain.explain(path for _, path in run.rows())
    while some := list(islice(rows, _ROWS)):
        yield _table(explain, some)


def _table(explain: Explain, rows: Sequence[Row]) -> Any:
    pyarrow = import_pyarrow()
    added = columns(overlay=explain.overlay)
    return pyarrow.table({column.name: to_arrow(rows, column, column.name) for column in added})


def _batches(run: Run) -> Iterator[dict[str, list[Any]]]:
    """The rows that are missing, in batches for an engine; those whose path is no text are left out."""
    rows = ((row, path) for row, path in run.rows() if _is_text(path))
    while some := list(islice(rows, _ROWS)):
        yield {ROW: [row for row, _ in some], PICTURE: [path for _, path in some]}


def _is_text(path: str) -> bool:
    """Whether a path can be handed to an engine: file names may be no UTF-8."""
    return path.isascii() or not any(0xD800 <= ord(character) < 0xE000 for character in path)


@dataclass
class _Buffer:
    """Rows that came before their turn.

    Attributes:
        tables: rows in succession, by the number of the first.
        waiting: the numbers of all.
    """

    tables: dict[int, Any] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)

    def add(self, table: Any, following: int) -> None:
        """Add rows in any order, but for those before `following` and those that are there: a task may run twice."""
        numbers = np.asarray(table.column(ROW).to_numpy(), np.int64)
        numbers, places = np.unique(numbers, return_index=True)
        fresh = np.array([row >= following and row not in self.waiting for row in numbers.tolist()], bool)
        numbers, places = numbers[fresh], places[fresh]
        table = table.take(places)
        cuts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
        for begin, end in pairwise(cuts):
            if end > begin:
                self.tables[int(numbers[begin])] = table.slice(begin, end - begin)
        self.waiting.update(numbers.tolist())

    def take(self, row: int) -> Any:
        """The rows from this one on, None if they did not come yet."""
        table = self.tables.pop(row, None)
        if table is not None:
            self.waiting.difference_update(range(row, row + table.num_rows))
        return table


def _in_order(explain: Explain, run: Run, tables: Iterator[Any], engine: str) -> Iterator[Any]:
    buffer, incoming = _Buffer(), iter(tables)
    remaining = run.rows()
    names = [column.name for column in columns(overlay=explain.overlay)]
    for row, path in remaining:
        if not _is_text(path):
            yield _table(explain, list(explain.explain([path])))
            continue
        while (table := buffer.take(row)) is None:
            arrived = next(incoming, None)
            if arrived is None:
                raise OutputError(f"{engine} gave no row for {path!r} (row {row}); go on with --resume")
            buffer.add(arrived, row)
        deque(islice(remaining, table.num_rows - 1), maxlen=0)
        yield table.select(names)


class Assembly:
    """Makes the rows of a table of what an engine gives: adds paths and true classes, and cuts it into parts.

    Arguments:
        truth: the true class of a path, -1 where it is unknown; None for no such columns.
        label: the name of a class.
        failed: is called with the path and the sentence of each row with an error.
    """

    def __init__(
        self,
        run: Run,
        schema: Any,
        truth: Callable[[str], int] | None,
        label: Callable[[int], str],
        failed: Callable[[str, str], None],
    ) -> None:
        self._run = run
        self._schema = schema
        self._truth = truth
        self._label = label
        self._failed = failed
        self._rows = run.rows()

    def parts(self, table: Any) -> Iterator[tuple[int, Any, bool]]:
        """Yield rows of one part each: its number, a `pyarrow.Table`, and whether they are its last."""
        size = self._run.terms.rows_per_part
        rows = list(islice(self._rows, table.num_rows))
        full = self._full(table, [path for _, path in rows])
        begin = 0
        for place, (row, _) in enumerate(rows):
            number = row // size
            last = row + 1 == self._run.bounds(number)[1]
            if last or place + 1 == len(rows):
                yield number, full.slice(begin, place + 1 - begin), last
                begin = place + 1

    def _full(self, table: Any, paths: Sequence[str]) -> Any:
        pyarrow = import_pyarrow()
        names = [self._run.listing.relative(path) for path in paths]
        for place, error in enumerate(table.column("error").to_pylist()):
            if error:
                self._failed(names[place], error)
        added: dict[str, Any] = {"path": pyarrow.array(names, pyarrow.string())}
        if self._truth is not None:
            added |= self._true_classes(table, [self._truth(path) for path in paths])
        fields = [
            added[one.name] if one.name in added else table.column(one.name).cast(one.type) for one in self._schema
        ]
        return pyarrow.Table.from_arrays(fields, schema=self._schema)

    def _true_classes(self, table: Any, classes: Sequence[int]) -> Mapping[str, Any]:
        pyarrow = import_pyarrow()
        truth = [index if index >= 0 else None for index in classes]
        predicted = table.column("prediction").to_pylist()
        right = [
            None if index is None or prediction < 0 else prediction == index
            for index, prediction in zip(truth, predicted, strict=True)
        ]
        labels = [None if index is None else to_text(self._label(index)) for index in truth]
        return {
            "truth": pyarrow.array(truth, pyarrow.int64()),
            "truth_label": pyarrow.array(labels, pyarrow.string()),
            "right": pyarrow.array(right, pyarrow.bool_()),
        }
