"""Parses sizes and durations such as `256MiB` and `15min`."""

from __future__ import annotations

import re

from onnxcam.errors import SettingError

_BYTES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_BYTES |= {f"{unit}B": 1000**power for power, unit in enumerate("KMGT", start=1)}
_BYTES |= {f"{unit}IB": 1024**power for power, unit in enumerate("KMGT", start=1)}
_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_LARGEST = 1e30  # of a number of bytes or seconds
_TEXT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(size: int | float | str, name: str = "size") -> int:
    """Parse bytes: a number, or text such as `256MiB`, `1.5 GB`, `64K`.

    K, M, G, T and KiB, MiB, GiB, TiB are powers of 1024; kB, MB, GB, TB of 1000.

    Raises:
        SettingError: not a size; `name` is the option in the message.
    """
    parts = _split(size)
    if parts is None or parts[1].upper() not in _BYTES:
        raise SettingError(f"{name}={size!r}; expected bytes, as a number or as in '256MiB' or '2GB'")
    return round(parts[0] * _BYTES[parts[1].upper()])


def parse_seconds(duration: int | float | str, name: str = "duration") -> float:
    """Parse seconds: a number, or text such as `90s`, `15min`, `2h`, `30d`, `4w`.

    Raises:
        SettingError: not a duration; `name` is the option in the message.
    """
    parts = _split(duration)
    if parts is None or parts[1] not in _SECONDS:
        raise SettingError(f"{name}={duration!r}; expected seconds, as a number or as in '90s', '15min', '2h' or '30d'")
    return parts[0] * _SECONDS[parts[1]]


def _split(value: int | float | str) -> tuple[float, str] | None:
    if isinstance(value, str):
        match = _TEXT.fullmatch(value)
        # a number of hundreds of digits is infinite
        return (float(match[1]), match[2]) if match and float(match[1]) < _LARGEST else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        return None
    return float(value), ""
