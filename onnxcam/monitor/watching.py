"""The decorator behind `Monitor.watch`: a predict function that shows what it predicted."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from onnxcam.errors import SettingError, listing

_Function = TypeVar("_Function", bound=Callable[..., Any])


def watched(
    observe: Callable[[Any, Any, bool], None],
    complain: Callable[[str, BaseException], None],
    image: int | str,
    scores: Any,
    pictures: bool | None,
) -> Callable[[_Function], _Function]:
    """A decorator that calls `observe(scores, what was predicted, whether that is pictures)` after each prediction.

    Raises:
        SettingError: the function has no such argument.
    """

    def decorate(function: _Function) -> _Function:
        place, name = _argument(function, image)

        def look(result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            try:
                given = kwargs[name] if name in kwargs else args[place]
                observe(_part(result, scores), given, are_pictures(given) if pictures is None else pictures)
            except Exception as error:
                complain("watch", error)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def later(*args: Any, **kwargs: Any) -> Any:
                result = await function(*args, **kwargs)
                look(result, args, kwargs)
                return result

            return later  # type: ignore[return-value]

        @functools.wraps(function)
        def now(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            look(result, args, kwargs)
            return result

        return now  # type: ignore[return-value]

    return decorate


def are_pictures(value: Any) -> bool:
    """Whether an argument holds pictures (encoded, named by paths, or uint8 arrays) and not prepared tensors."""
    if isinstance(value, (list, tuple)):
        return bool(value) and are_pictures(value[0])
    if isinstance(value, (bytes, bytearray, memoryview, str, os.PathLike)) or hasattr(value, "getbands"):
        return True
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.shape[-1] in (3, 4)


def _argument(function: Callable[..., Any], image: int | str) -> tuple[int, str]:
    """Position and name of the argument."""
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


def _part(result: Any, scores: Any) -> Any:
    if scores is None:
        return result
    return scores(result) if callable(scores) else result[scores]
