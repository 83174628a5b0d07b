"""Exceptions that end a call from outside it, which the caller must get: those of signal handlers, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from inspect import CO_VARARGS
from types import CodeType, FrameType, TracebackType
from typing import Any

from onnxcam.errors import OnnxcamError


def interruption(error: BaseException) -> BaseException | None:
    """Return the exception that has to pass to the caller: `error` or one that it was raised from; None if none has.

    That is what is not an `Exception` (Ctrl-C, `sys.exit`, a cancelled task), and what a signal handler raised, such as
    the timeout of a request. To be called outside of `except`: what the caller itself handles is left alone.
    """
    handled = sys.exc_info()[1]
    pending, met = [error], {id(handled)}
    while pending:
        one = pending.pop()
        if id(one) in met:
            continue
        met.add(id(one))
        if not isinstance(one, Exception) or (not isinstance(one, OnnxcamError) and _of_handler(one.__traceback__)):
            return one
        pending += [other for other in (one.__context__, one.__cause__) if other is not None]
    return None


def attempt(function: Callable[[], Any]) -> Exception | None:
    """Call a function and return the error that it ended with, or None; raise what has to pass to the caller."""
    try:
        function()
        return None
    except Exception as error:
        failure = error
    if (passing := interruption(failure)) is not None:
        raise passing
    return failure


def _of_handler(traceback: TracebackType | None) -> bool:
    """Whether an exception came through a signal handler: a function called with a signal and the interrupted frame."""
    frames: list[FrameType] = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    if len(frames) < 2:
        return False
    if any(_has_interrupted(frame, frames[:place]) for place, frame in enumerate(frames) if place):
        return True
    codes = set(_handlers())
    return any(frame.f_code in codes for frame in frames[1:])


def _has_interrupted(frame: FrameType, outer: list[FrameType]) -> bool:
    """Whether the arguments of a call are a signal's number and one of the frames around it."""
    code, values = frame.f_code, frame.f_locals
    count = code.co_argcount
    arguments = [values.get(name) for name in code.co_varnames[:count]]
    if code.co_flags & CO_VARARGS:
        arguments += values.get(code.co_varnames[count + code.co_kwonlyargcount]) or ()
    interrupted = any(isinstance(value, FrameType) and value in outer for value in arguments)
    return interrupted and any(isinstance(value, int) and value in signal.valid_signals() for value in arguments)


def _handlers() -> Iterator[CodeType]:
    """The code of every signal handler in Python."""
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while hasattr(handler, "func"):  # functools.partial
            handler = handler.func
        for function in (handler, getattr(type(handler), "__call__", None)):  # noqa: B004
            code = getattr(getattr(function, "__func__", function), "__code__", None)
            if isinstance(code, CodeType):
                yield code
