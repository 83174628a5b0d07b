"""Bottom-k sketches: uniform samples that merge, of the records whose keyed hashes are the smallest.

A record's key is a hash of its identity and the seed, so that whether it belongs to the sample depends on neither the
order of the records nor on which process read them: the sketch of all records is the k smallest keys of the sketches of
any parts of them. Cohen and Kaplan, "Summarizing data using bottom-k sketches", PODC 2007.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
LARGEST_KEY = 2**64 - 1


def key_of(identity: str, seed: int) -> int:
    """The key of a record, 0 to 2^64 - 1, uniform and independent for another identity or seed."""
    text = identity.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "big")


class Sketch(Generic[T]):
    """The values of the `size` smallest keys.

    Attributes:
        values: by key, unordered.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: dict[int, T] = {}
        self._largest: list[int] = []  # the keys, negated: a heap whose first is the largest

    def add(self, key: int, make: Callable[[], T]) -> None:
        """Add a value, which is only made where it belongs to the sketch; a key that is there already stays."""
        if key in self.values:
            return
        if len(self.values) < self.size:
            heapq.heappush(self._largest, -key)
        elif key < -self._largest[0]:
            del self.values[-heapq.heapreplace(self._largest, -key)]
        else:
            return
        self.values[key] = make()


class Part(NamedTuple):
    """The keys of one sketch.

    Attributes:
        keys: uint64 `[n]`, each once.
        size: how many it may have; with fewer it has every record's.
    """

    keys: np.ndarray
    size: int

    @property
    def complete_below(self) -> int:
        """The largest key up to which no record is missing."""
        return LARGEST_KEY if len(self.keys) < self.size else int(self.keys.max())


def union(parts: Sequence[Part], size: int) -> tuple[np.ndarray, int]:
    """The sketch of all records that the parts are sketches of.

    Returns:
        the places of its keys in the concatenated keys of the parts, by ascending key, and the number of keys that
        several parts have: of records that were read more than once.
    """
    keys = np.concatenate([part.keys for part in parts])
    distinct, places = np.unique(keys, return_index=True)
    limit = np.uint64(min(part.complete_below for part in parts))
    count = min(size, int(np.searchsorted(distinct, limit, side="right")))
    return places[:count], len(keys) - len(distinct)
