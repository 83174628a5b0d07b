"""The work of a run: what an engine gives becomes parts of a table on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from onnxcam.fleet import tables
from onnxcam.fleet.engines import Assembly, answers
from onnxcam.fleet.parts import Parts
from onnxcam.fleet.run import Run
from onnxcam.fleet.tables import Part

if TYPE_CHECKING:
    from onnxcam.fleet.callable import Explain


def write(
    run: Run,
    explain: Explain,
    *,
    engine: str,
    workers: int | None = None,
    truth: Callable[[str], int] | None = None,
    label: Callable[[int], str] = str,
    failed: Callable[[str, str], None] = lambda path, error: None,
    done: Callable[[int], None] = lambda rows: None,
) -> None:
    """Write the parts of a run that are missing. An error or an interruption leaves those that are complete.

    Arguments:
        engine, workers: as of `answers`.
        truth, label, failed: as of `Assembly`.
        done: is called with the number of rows that an engine has given.

    Raises:
        OutputError: a part cannot be written. What `answers` raises.
    """

    def written(part: Part) -> None:
        run.parts[part.part] = part

    schema = tables.schema(overlay=explain.overlay, truth=truth is not None)
    assembly = Assembly(run, schema, truth, label, failed)
    stream = answers(explain, run, engine, workers)
    with Parts(run.folder, schema, run.describe, written) as parts:
        try:
            for table in stream:
                for number, rows, last in assembly.parts(table):
                    parts.add(number, rows, last)
                done(table.num_rows)
        finally:
            close: Callable[[], None] | None = getattr(stream, "close", None)
            if close is not None:
                close()


def failures(run: Run, limit: int) -> Iterator[dict[str, Any]]:
    """Path and error of the first rows that failed, at most `limit`."""
    for number in sorted(run.parts):
        if not run.parts[number].counts.failed:
            continue
        for some in tables.read(run.folder / tables.part_name(number), ["path", "error"]):
            for path, error in zip(some["path"], some["error"], strict=True):
                if error:
                    if not limit:
                        return
                    limit -= 1
                    yield {"path": path, "error": error}
