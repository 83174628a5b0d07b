"""Work on a thread beside the command's own, without `concurrent.futures`, whose import takes 3 ms."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """A call on a thread of its own, which begins at once.

    Arguments:
        call: what is called with these arguments.
    """

    def __init__(self, call: Callable[..., T], *arguments: Any, **keywords: Any) -> None:
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call, arguments, keywords))
        self._thread.start()

    def _run(self, call: Callable[..., T], arguments: Any, keywords: Any) -> None:
        try:
            self._values.append(call(*arguments, **keywords))
        except BaseException as error:  # it is raised where the result is asked for
            self._error = error

    def result(self) -> T:
        """Wait for the call and return its result, or raise its error."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._values[0]
