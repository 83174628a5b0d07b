"""Names of a folder in order: a million of them in the memory of their bytes."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator

_CHUNK = 1 << 16  # names that are sorted at a time
_REGULAR, _OTHER = b"\0r", b"\0o"  # after a name, where it changes no order


class SortedNames:
    """Names, each with whether it is known to be a regular file; yielded in the order of their bytes."""

    def __init__(self) -> None:
        self._recent: list[bytes] = []
        self._chunks: list[Iterator[bytes]] = []

    def add(self, name: str, regular: bool) -> None:
        """Add a name."""
        self._recent.append(os.fsencode(name) + (_REGULAR if regular else _OTHER))
        if len(self._recent) == _CHUNK:
            self._chunks.append(_packed(self._recent))
            self._recent = []

    def __iter__(self) -> Iterator[tuple[str, bool]]:
        """Yield the names, once."""
        for name in heapq.merge(*self._chunks, iter(sorted(self._recent))):
            yield os.fsdecode(name[:-2]), name.endswith(_REGULAR)


def _packed(names: list[bytes]) -> Iterator[bytes]:
    """Sort names, and yield them from memory of their longest one each."""
    import numpy as np

    array = np.sort(np.array(names))
    return (name for name in array)  # one object at a time
