"""Any number of rows in bounded memory: in a temporary file where they are many."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxcam.errors import OutputError
from onnxcam.monitor.table import FIELDS, Rows

_IN_MEMORY = 16 << 20  # bytes
_CHUNK = 1000  # rows that are read at a time


class Spool:
    """Rows and their times, added one after the other and read by their numbers; a context manager.

    Arguments:
        grid: the shape of the maps.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        self._type = np.dtype(
            [
                ("values", "f8", len(FIELDS)),
                ("weights", "f8"),
                ("low", "?"),
                ("zero", "?"),
                ("predicted", "i8"),
                ("target", "i8"),
                ("maps", "f4", grid),
                ("time", "S32"),
            ]
        )
        # closed by `__exit__`
        self._file: Any = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, rows: Rows, times: Sequence[str]) -> None:
        """Add rows.

        Raises:
            OutputError: the temporary file cannot be written.
        """
        table = np.zeros(len(rows), self._type)
        for name in self._type.names or ():
            table[name] = [time.encode() for time in times] if name == "time" else getattr(rows, name)
        try:
            self._file.write(table.tobytes())
        except OSError as error:
            raise OutputError(
                f"the records cannot be stored in the folder of temporary files, {tempfile.gettempdir()!r} "
                f"({error.strerror}); free some space, or name another folder in TMPDIR"
            ) from error
        self._count += len(rows)

    def read(self, begin: int, end: int) -> Iterator[tuple[Rows, list[str]]]:
        """Yield the rows from `begin` to before `end` in parts."""
        self._file.seek(begin * self._type.itemsize)
        for first in range(begin, end, _CHUNK):
            count = min(_CHUNK, end - first)
            table = np.frombuffer(self._file.read(count * self._type.itemsize), self._type)
            columns = [table[name] for name in self._type.names or () if name != "time"]
            yield Rows(*columns), [time.decode() for time in table["time"].tolist()]
