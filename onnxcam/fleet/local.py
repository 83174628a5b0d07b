"""The plain loop: the callable over batches, in this process.

Each engine's module has a function `run` of this form, so that callers choose one by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxcam.fleet.columns import import_pyarrow

if TYPE_CHECKING:
    from onnxcam.fleet.callable import Explain


def run(
    explain: Explain, batches: Iterable[Mapping[str, Sequence[Any]]], *, workers: int | None = None
) -> Iterator[Any]:
    """Explain batch after batch, taking the next one when it is its turn.

    Arguments:
        explain: the callable.
        batches: lists of values by column, that of the pictures among them.
        workers: processes; None for what suits the engine. This one has a single one, and threads in it.

    Returns:
        a `pyarrow.Table` for each batch, as `explain` gives it. The order is the engine's own (here that of the
        batches): a column that passes through tells which is which.

    Raises:
        what `explain` raises. DependencyError: pyarrow, or the engine, is not installed.
    """
    pyarrow = import_pyarrow()
    for batch in batches:
        yield explain(pyarrow.table(dict(batch)))
