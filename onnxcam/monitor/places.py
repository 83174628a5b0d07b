"""Places of records in a folder, to read many of them in another order in bounded memory."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxcam.monitor.lines import LONGEST, Scan, open_segment, parse
from onnxcam.monitor.schema import Record

Entry = tuple[Path, int, Record]  # a segment, the offset of a line, and its record
_FILES = 32  # segments that are open at a time


class Places:
    """The keys of records and where they are, 20 bytes each."""

    def __init__(self) -> None:
        self._keys = array("d")
        self._offsets = array("Q")
        self._segments = array("I")
        self._paths: list[Path] = []
        self._numbers: dict[Path, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, path: Path, offset: int, key: float) -> None:
        """Remember a record."""
        number = self._numbers.setdefault(path, len(self._paths))
        if number == len(self._paths):
            self._paths.append(path)
        self._segments.append(number)
        self._offsets.append(offset)
        self._keys.append(key)

    def order(self, descending: bool = False) -> np.ndarray:
        """Return the numbers of the records by ascending or descending key, equal ones as they were added."""
        keys = np.array(self._keys)
        return np.argsort(-keys if descending else keys, kind="stable")

    def read(self, numbers: Iterable[int], scan: Scan) -> Iterator[Record]:
        """Yield records by their numbers; those that were removed meanwhile are skipped and counted."""
        files: OrderedDict[int, BinaryIO] = OrderedDict()
        again = Scan()  # the lines were counted when they were found
        with ExitStack() as stack:
            stack.callback(lambda: [file.close() for file in files.values()])
            for number in numbers:
                segment = self._segments[number]
                if segment not in files:
                    file = open_segment(self._paths[segment], again)
                    if file is None:
                        scan.removed += 1
                        continue
                    files[segment] = file
                    if len(files) > _FILES:
                        files.popitem(last=False)[1].close()
                files.move_to_end(segment)
                files[segment].seek(self._offsets[number])
                record = parse(files[segment].readline(LONGEST + 1), again)
                if record is None:
                    scan.removed += 1
                else:
                    yield record
