"""Class names by index: every class once, counted from 0."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from onnxcam.errors import LabelsError, listing


def ordered(pairs: Iterable[tuple[int, str]], hint: str = "") -> list[str]:
    """Sort names by index; the indices must be 0, 1, 2, ... in any order.

    Arguments:
        pairs: index and name of each class.
        hint: appended to messages.

    Raises:
        LabelsError: an index is missing or occurs twice.
    """
    names: dict[int, str] = {}
    for index, name in pairs:
        if index in names:
            raise LabelsError(
                f"index {index} occurs twice ({names[index]!r} and {name!r}); number each class once{hint}"
            )
        names[index] = name
    missing = [index for index in range(len(names)) if index not in names]
    if missing:
        if set(names) == set(range(1, len(names) + 1)):
            raise LabelsError(f"its indices run from 1 to {len(names)}; classes are counted from 0{hint}")
        raise LabelsError(
            f"its {len(names)} indices have gaps: {listing(map(str, missing), 5)} missing, {min(names)} the smallest, "
            f"{max(names)} the largest; number the classes 0, 1, 2, ... without a gap{hint}"
        )
    return [names[index] for index in range(len(names))]


def look_like_indices(numbers: Sequence[int]) -> bool:
    """Whether numbers could be an attempt to number classes: no two equal, from 0 or 1, and hardly any left out."""
    return bool(numbers) and len(set(numbers)) == len(numbers) and min(numbers) < 2 and max(numbers) <= 2 * len(numbers)


def is_index(value: Any) -> bool:
    """Whether a value is a whole number from 0, or a text of its digits."""
    return (type(value) is int and value >= 0) or (isinstance(value, str) and is_number(value))


def is_number(text: str) -> bool:
    """Whether a text is a whole number from 0 of at most nine digits."""
    return re.fullmatch(r"\s*[0-9]{1,9}\s*", text) is not None


def name_in(value: Any, where: str) -> str:
    """A class name from a value of a file, stripped.

    Raises:
        LabelsError: neither text nor a whole number, or blank.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise LabelsError(f"{where} is {str(value)[:40]!r}, a {type(value).__name__}; expected a name")
    if not str(value).strip():
        raise LabelsError(f"{where} has no name; give it one")
    return str(value).strip()
