"""Names of files after layers and labels."""

from __future__ import annotations

import re
from collections.abc import Iterable


def stems(names: Iterable[str]) -> dict[str, str]:
    """A file stem for each name, distinct without case: what file systems do not take becomes `_`."""
    by_name: dict[str, str] = {}
    taken_stems: set[str] = set()
    for name in dict.fromkeys(names):
        stem = plain = re.sub(r"[^\w.-]+", "_", name).strip("._")[:100] or "layer"
        number = 1
        while stem.casefold() in taken_stems:
            number += 1
            stem = f"{plain}-{number}"
        taken_stems.add(stem.casefold())
        by_name[name] = stem
    return by_name
