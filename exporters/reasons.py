"""What an exception says, in one line for an error message."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that is not blank; its type where there is none."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


def reason(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"
