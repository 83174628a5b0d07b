"""The decorator behind `Monitor.watch`: wraps a predict function so that the monitor observes its predictions."""

from __future__ import annotations

import functools
import inspect
import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from onnxcam.errors import SettingError, listing
from onnxcam.monitor.interruptions import attempt

_WATCHERS = "__onnxcam_watchers__"
_Function = TypeVar("_Function", bound=Callable[..., Any])


def watch_function(
    monitor: object,
    observe: Callable[[Any, Any, bool], None],
    report_error: Callable[[str, BaseException], None],
    image: int | str,
    scores: Any,
    pictures: bool | None,
) -> Callable[[_Function], _Function]:
    """Return a decorator that calls `observe(scores, inputs, inputs_are_pictures)` after each prediction.

    Raises:
        SettingError: the decorated function has no argument `image`, or `monitor` watches it already.
    """

    def decorate(function: _Function) -> _Function:
        position, name = _argument(function, image)
        # other decorators copy the attributes of the function that they wrap
        watchers = getattr(function, _WATCHERS, ())
        if any(watcher() is monitor for watcher in watchers):
            raise SettingError(
                f"{function.__qualname__} is watched by this monitor already, and every prediction would count twice; "
                "watch it once"
            )

        def observe_call(result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            def call() -> None:
                inputs = kwargs[name] if name in kwargs else args[position]
                observe(_scores(result, scores), inputs, are_pictures(inputs) if pictures is None else pictures)

            if (failure := attempt(call)) is not None:
                report_error("watch", failure)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def predict_async(*args: Any, **kwargs: Any) -> Any:
                result = await function(*args, **kwargs)
                observe_call(result, args, kwargs)
                return result

            setattr(predict_async, _WATCHERS, (*watchers, weakref.ref(monitor)))
            return predict_async  # type: ignore[return-value]

        @functools.wraps(function)
        def predict(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            observe_call(result, args, kwargs)
            return result

        setattr(predict, _WATCHERS, (*watchers, weakref.ref(monitor)))
        return predict  # type: ignore[return-value]

    return decorate


def are_pictures(value: Any) -> bool:
    """Return whether a value holds pictures (encoded bytes, paths or uint8 arrays) rather than prepared tensors."""
    if isinstance(value, (list, tuple)):
        return bool(value) and are_pictures(value[0])
    if isinstance(value, (bytes, bytearray, memoryview, str, os.PathLike)) or hasattr(value, "getbands"):
        return True
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.shape[-1] in (3, 4)


def _argument(function: Callable[..., Any], image: int | str) -> tuple[int, str]:
    """Return position and name of the argument that holds the model's input."""
    names = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if isinstance(image, str):
        if image not in names:
            raise SettingError(f"image={image!r}: {function.__qualname__} has the arguments {listing(names)}")
        return names.index(image), image
    return image, names[image] if 0 <= image < len(names) else ""


def _scores(result: Any, scores: Any) -> Any:
    if scores is None:
        return result
    return scores(result) if callable(scores) else result[scores]
