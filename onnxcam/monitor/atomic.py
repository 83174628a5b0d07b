"""Values and events that threads and signal handlers share without locks.

A signal handler interrupts its thread between any two steps of Python and may call anything, or raise. A lock that
the interrupted code holds would never be released while the handler waits for it, and a value that it has half changed
would stay so. Here every change is one step: a call of a built-in method that takes effect as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_SUPERSEDED: Any = object()
_NEXT = "next"


class Version(Generic[T]):
    """One value that a `Cell` had or has; a change links it to the next, which can happen once."""

    __slots__ = ("link", "number", "previous", "value")

    def __init__(self, value: T, previous: Version[T] | None = None) -> None:
        self.value = value
        self.number: int = 0 if previous is None else previous.number + 1
        self.link: dict[str, Any] = {}
        self.previous = previous  # None once the change has taken effect

    @property
    def in_effect(self) -> bool:
        """Whether the cell has or had this value."""
        previous = self.previous
        return previous is None or previous.link.get(_NEXT) is self


class Receipt:
    """Tells whether a change took effect, also where an exception ended the call that made it."""

    __slots__ = ("version",)

    def __init__(self) -> None:
        self.version: Version[Any] | None = None

    @property
    def in_effect(self) -> bool:
        """Whether the change took effect."""
        return self.version is not None and self.version.in_effect


class Cell(Generic[T]):
    """An immutable value, replaced by compare and swap: a change computed from an old value is computed again."""

    def __init__(self, value: T) -> None:
        # the newest version by number; for a moment also older ones
        self._heads: dict[int, Version[T]] = {0: Version(value)}

    @property
    def value(self) -> T:
        """The present value."""
        return self._newest().value

    def update(self, change: Callable[[T], T], receipt: Receipt | None = None) -> T:
        """Replace the value by `change(value)` and return it; `change` is called again where others came first."""
        while True:
            version = self._newest()
            value = change(version.value)
            if value is version.value:
                return value
            successor = Version(value, version)
            if receipt is not None:
                receipt.version = successor
            if version.link.setdefault(_NEXT, successor) is successor:  # the change takes effect here
                self._advance(version, successor)
                return value

    def _newest(self) -> Version[T]:
        while True:
            heads = self._heads.copy()
            version = heads[max(heads)]
            while (successor := version.link.get(_NEXT)) is not None and successor is not _SUPERSEDED:
                version = successor
            if successor is None:
                return version

    def _advance(self, version: Version[T], successor: Version[T]) -> None:
        """Let reads begin at the new version, and let go of it in the old one: whoever keeps that keeps no others."""
        self._heads[successor.number] = successor
        for number in self._heads.copy():
            if number < successor.number:
                self._heads.pop(number, None)
        successor.previous = None
        version.link[_NEXT] = _SUPERSEDED


class Event:
    """A flag that threads wait for, as `threading.Event`, but a signal handler may set it while its thread sets it."""

    def __init__(self) -> None:
        self._flag = False
        self._gate = threading.Lock()  # held by nobody in particular while the flag is not set
        self._gate.acquire()

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return self._flag

    def set(self) -> None:
        """Set the flag and wake those who wait."""
        self._flag = True
        self._open()

    def clear(self) -> None:
        """Clear the flag."""
        self._flag = False
        self._gate.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set, at most `timeout` seconds; returns whether it is."""
        if not self._flag and self._gate.acquire(timeout=-1 if timeout is None else max(0.0, timeout)) and self._flag:
            self._open()  # for the next who waits
        return self._flag

    def _open(self) -> None:
        if self._gate.locked():
            with contextlib.suppress(RuntimeError):  # another thread has just opened it
                self._gate.release()


class Claim:
    """Something that at most one object has at a time; an object that is no more has lost it."""

    def __init__(self) -> None:
        self._holder: Cell[weakref.ref[Any] | None] = Cell(None)

    @property
    def holder(self) -> Any:
        """The object that has it, or None."""
        ref = self._holder.value
        return None if ref is None else ref()

    def take(self, holder: Any) -> bool:
        """Return whether `holder` has it now: no other object had it."""
        ref = weakref.ref(holder)
        return self._holder.update(lambda last: ref if last is None or last() is None else last)() is holder  # type: ignore[misc]

    def release(self, holder: Any) -> None:
        """Let the next one have it, if it is `holder` who has it."""
        self._holder.update(lambda last: None if last is not None and last() is holder else last)
