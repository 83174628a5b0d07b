"""Checks of a monitor's settings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnxcam.errors import SettingError, listing


def check_choice(name: str, value: Any, allowed: Any) -> None:
    """Check that a setting has one of the allowed values.

    Raises:
        SettingError: it has not.
    """
    if value not in allowed:
        raise SettingError(f"{name}={value!r}; expected one of {listing(allowed)}")


def check_number(
    name: str, value: Any, low: float, high: float, *, optional: bool = False, whole: bool = False
) -> None:
    """Check that a setting is a number within bounds.

    Raises:
        SettingError: it is not.
    """
    if optional and value is None:
        return
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        what = "a whole number" if whole else "a number"
        bounds = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
        raise SettingError(f"{name}={value!r}; expected {what} {bounds}{', or None for no limit' if optional else ''}")
