"""What may be kept of a picture. Every sink sees only what passed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# the heatmap alone is made of the map's numbers; overlay and input show the picture itself
MODES: dict[str, frozenset[str]] = {
    "none": frozenset({"heatmap", "overlay", "input"}),
    "heatmap_only": frozenset({"heatmap"}),
    "hash": frozenset(),
}


def allowed(record: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that the record's `redact` lets through; a mode nobody knows lets nothing through."""
    kinds = MODES.get(str(record.get("redact")), frozenset())
    return {kind: data for kind, data in files.items() if kind in kinds}
