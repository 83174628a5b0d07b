"""A comparison of preprocessings for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from onnxcam.image.panel import percentage

if TYPE_CHECKING:
    from onnxcam.diagnose.preprocessing import Comparison, Result, Verdict

_AXES = {"values": "values", "color": "colour", "resize": "resizing"}


def lines(comparison: Comparison) -> list[str]:
    """A table, best first, and a line for each choice."""
    ranked = "labels from the folders" if comparison.labelled else "no labels"
    head = ["preprocessing", "top-1", "entropy", "information"]
    head += ["accuracy", "log-likelihood"] if comparison.labelled else []
    rows = [head, *(_row(held) for held in comparison.results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    said = [
        f"{'decided' if held.decided else 'undecided':>9}  {_AXES[held.axis]}: {_said(held)}"
        for held in comparison.verdicts
    ]
    return [
        f"{comparison.pictures} pictures ({ranked}), {len(comparison.results)} preprocessings, best first",
        *table,
        "",
        *said,
        f"{_status(comparison):>9}  {verdict(comparison)}",
    ]


def verdict(comparison: Comparison) -> str:
    """What it comes to, in a sentence."""
    best, own = comparison.best, comparison.recorded
    use = f"--preprocess {best.preset}" if best.preset else f"as a JSON file {json.dumps(best.preprocess.to_dict())}"
    if comparison.alike:
        return (
            "the pictures are too much alike for the predictions to tell: no preprocessing makes the model say "
            "different things of them; give pictures of several kinds, or sorted by class with --by-folder"
        )
    if own is None:
        return f"the model prefers {best.name}: {use}"
    if best.recorded:
        return f"the preprocessing in use, {best.name}, is the one preferred"
    if own.decided:
        return f"{best.name} does better than {own.rival}, which is in use, by {own.margin:.2f} nats a picture: {use}"
    return f"the preprocessing in use, {own.rival}, does as well as any"


def _status(comparison: Comparison) -> str:
    if comparison.alike:
        return "undecided"
    if comparison.recorded is None:
        return "note"
    if not comparison.recorded.decided:
        return "ok"
    return "failed" if comparison.labelled else "unsure"


def _said(held: Verdict) -> str:
    return f"{held.best} before {held.rival} by {held.margin:.2f} ± {held.error:.2f} nats a picture"


def _row(held: Result) -> list[str]:
    name = held.candidate.name + (" (in use)" if held.candidate.recorded else "")
    name += " (sure of everything)" if held.saturated > 0.5 else ""
    row = [name, percentage(held.probability), f"{held.entropy:.2f}", f"{held.information:.2f}"]
    if held.accuracy is not None and held.likelihood is not None:
        row += [percentage(held.accuracy), f"{held.likelihood:.2f}"]
    return row
