"""Sizes and durations as people write them."""

from __future__ import annotations

import re

from onnxcam.errors import SettingError

_BYTES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_BYTES |= {f"{unit}B": 1000**power for power, unit in enumerate("KMGT", start=1)}
_BYTES |= {f"{unit}IB": 1024**power for power, unit in enumerate("KMGT", start=1)}
_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_TEXT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(size: int | float | str, name: str = "size") -> int:
    """Bytes from a number or from `256MiB`, `1.5 GB`, `64K`.

    K, M, G, T and KiB, MiB, GiB, TiB are powers of 1024; kB, MB, GB, TB of 1000.

    Raises:
        SettingError: not such a size; `name` says which option it was.
    """
    found = _split(size)
    if found is None or found[1].upper() not in _BYTES:
        raise SettingError(f"{name}={size!r}; expected bytes, as a number or as in '256MiB' or '2GB'")
    return round(found[0] * _BYTES[found[1].upper()])


def parse_seconds(duration: int | float | str, name: str = "duration") -> float:
    """Seconds from a number or from `90s`, `15min`, `2h`, `30d`, `4w`.

    Raises:
        SettingError: not such a duration; `name` says which option it was.
    """
    found = _split(duration)
    if found is None or found[1] not in _SECONDS:
        raise SettingError(f"{name}={duration!r}; expected seconds, as a number or as in '90s', '15min', '2h' or '30d'")
    return found[0] * _SECONDS[found[1]]


def _split(value: int | float | str) -> tuple[float, str] | None:
    if isinstance(value, str):
        match = _TEXT.fullmatch(value)
        return (float(match[1]), match[2]) if match else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        return None
    return float(value), ""
