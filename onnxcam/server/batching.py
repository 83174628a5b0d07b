"""Rows of several requests in one run of a model, without waiting for any.

As databases commit in groups: while runs are under way, rows that become ready queue up; the next run takes those that
fit together. A request that finds a free place runs at once, so an idle server adds no delay.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Entry(Generic[T, R]):
    """One request's rows, and the result of their run."""

    __slots__ = ("failure", "item", "key", "leads", "ready", "result")

    def __init__(self, key: Hashable, item: T) -> None:
        self.key = key
        self.item = item
        self.leads = False
        self.result: R | None = None
        self.failure: BaseException | None = None
        self.ready = threading.Event()


class Batcher(Generic[T, R]):
    """Runs items together that have the same key.

    Arguments:
        run: takes items of one key, returns a result for each.
        places: runs side by side.
        most: items in one run.
    """

    def __init__(self, run: Callable[[Sequence[T]], Sequence[R]], places: int, most: int) -> None:
        self._run = run
        self._places = places
        self.most = most
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: deque[_Entry[T, R]] = deque()

    def __call__(self, key: Hashable, item: T) -> R:
        """Run an item, perhaps along with others; return its result or raise the error of its run."""
        entry: _Entry[T, R] = _Entry(key, item)
        with self._lock:
            leads = self._running < self._places
            if leads:
                self._running += 1
            else:
                self._waiting.append(entry)
        if not leads:
            entry.ready.wait()
            leads = entry.leads
        if leads:
            self._lead(entry)
        if entry.failure is not None:
            raise entry.failure
        return entry.result  # type: ignore[return-value]

    def _lead(self, entry: _Entry[T, R]) -> None:
        """Run this entry and those that fit to it, then hand the place on."""
        with self._lock:
            together = [entry]
            for other in list(self._waiting):
                if len(together) == self.most:
                    break
                if other.key == entry.key:
                    together.append(other)
                    self._waiting.remove(other)
        try:
            for one, result in zip(together, self._run([one.item for one in together]), strict=True):
                one.result = result
        except BaseException as error:
            for one in together:
                one.failure = error
        finally:
            with self._lock:
                heir = self._waiting.popleft() if self._waiting else None
                if heir is None:
                    self._running -= 1
            if heir is not None:
                heir.leads = True
                heir.ready.set()
            for one in together[1:]:
                one.ready.set()
