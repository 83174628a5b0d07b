"""Findings about measured facts: scores, rows, determinism, and where layers lie on the picture."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from onnxcam.diagnose.report import Finding
from onnxcam.network.manifest import COUPLED

_NOT_MEASURED = "not measured: the file was made without; export it again, or see `onnxcam.probe`"


def of_file(manifest: dict[str, Any]) -> list[Finding]:
    """Report what was measured of a whole file, from its manifest."""
    measured = manifest.get("measured")
    if measured is None:
        return [Finding("facts", "note", _NOT_MEASURED)]
    reasons = measured.get("unmeasured") or {}
    findings = [_scores(manifest, measured)]
    rows = measured.get("rows")
    if rows is None:
        findings.append(Finding("rows", "note", f"not measured: {reasons.get('rows', 'no reason is recorded')}"))
    elif rows == COUPLED:
        detail = (
            "a picture's results depend on the others in its batch; onnxcam runs the pictures one by one, other "
            "clients have to as well"
        )
        findings.append(Finding("rows", "note", detail))
    else:
        findings.append(Finding("rows", "ok", "a picture's results are the same alone and among others"))
    deterministic = measured.get("deterministic")
    if deterministic is None:
        reason = reasons.get("deterministic", "no reason is recorded")
        findings.append(Finding("determinism", "note", f"not measured: {reason}"))
    elif deterministic:
        findings.append(Finding("determinism", "ok", "two runs on the same picture agree"))
    else:
        findings.append(Finding("determinism", "note", "two runs on the same picture differ: maps hold for one run"))
    return findings


def of_layers(manifest: dict[str, Any], strict: Collection[str] = ()) -> list[Finding]:
    """Report where layers lie on the picture.

    Arguments:
        manifest: a manifest, or what `Probe.to_dict` says of layers.
        strict: names or values of the layers for which it is a failure to lie elsewhere; for others it is a note.
    """
    findings = []
    for entry in manifest["layers"]:
        title, place, covers = f"place of {entry['name']}", entry.get("place"), entry.get("covers")
        if place is None:
            if manifest.get("measured") is not None:
                findings.append(Finding(title, "note", "not measured"))
            continue
        verdict, correlation = place["verdict"], float(place["correlation"])
        reason = f": {place['reason']}" if place.get("reason") else ""
        part = "; a part of the paths to the scores passes it" if covers == "part" else ""
        figures = {"correlation": correlation}
        if verdict == "direct" or place.get("drawn"):
            how = "directly" if verdict == "direct" else f"{verdict}, as its maps are drawn,"
            detail = f"it lies {how} on the picture (correlation {correlation:.2f}){reason}{part}"
            findings.append(Finding(title, "ok", detail, figures))
        elif verdict == "unsettled":
            findings.append(Finding(title, "unsure", f"not settled{reason}{part}", figures))
        else:
            what = "it has no place on the picture" if verdict == "none" else f"it lies {verdict} on the picture"
            detail = f"{what}{reason}; its maps are drawn in the wrong place{part}"
            remedy = "choose another layer (`onnxcam layers` lists them)"
            findings.append(Finding(title, "failed" if entry["name"] in strict else "note", detail, figures, remedy))
    return findings


def _scores(manifest: dict[str, Any], measured: dict[str, Any]) -> Finding:
    """What the scores are, and the range they take."""
    scores, entry = measured.get("scores") or {}, manifest["scores"]
    if "range" not in scores:
        reason = (measured.get("unmeasured") or {}).get("scores", "no score was finite")
        return Finding("scores", "note", f"{entry['kind']}; not measured: {reason}")
    low, high = scores["range"]
    detail = f"{entry['kind']}, from {low:.3g} to {high:.3g} on {scores['rows']} pictures"
    if scores.get("masked"):
        detail += f", {scores['masked']} of {entry['classes']} classes masked (-inf)"
    if entry.get("scale", 1) != 1:
        detail += f", of the model's own probabilities in 0..{entry['scale']:g}"
    if entry.get("stepped_over"):
        detail += f", before {', '.join(entry['stepped_over'])}"
    if entry.get("warnings"):
        return Finding("scores", "unsure", "; ".join([detail, *entry["warnings"]]))
    if not scores.get("finite", True):
        return Finding("scores", "unsure", f"{detail}; some are not finite")
    if scores.get("constant"):
        return Finding("scores", "unsure", f"{detail}; the same on every picture")
    return Finding("scores", "ok", detail)
