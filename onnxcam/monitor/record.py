"""Records: one explanation as one line of JSON, built and encoded. `schema` is its formal definition."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from onnxcam import __version__
from onnxcam.errors import InputError
from onnxcam.explain import statistics
from onnxcam.monitor.redaction import MODES
from onnxcam.monitor.schema import SCHEMA, Record
from onnxcam.monitor.timestamps import timestamp
from onnxcam.targets.detections import name_of

TOP = 5  # predictions in a record
MAP_SIDE = 16  # a map is averaged down to at most this many cells per side
_LONGEST = 256  # characters of a request's or trace's name, which come from outside
_DIGITS = 7  # float32 has no more


def new_id(now: float | None = None) -> str:
    """Return a UUID of version 7 (RFC 9562): sorts by time to 0.25 µs, unique over processes and forks.

    Its 62 random bits come from the kernel each time, so that a forked process does not repeat its parent's.
    """
    nanoseconds = time.time_ns() if now is None else round(now * 1e9)
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = rest * 4096 // 1_000_000
    random = int.from_bytes(os.urandom(8), "big") >> 2
    return str(uuid.UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random))


def encode(record: Mapping[str, Any]) -> bytes:
    """Encode a record as one line of JSON, with its newline."""
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair in a label or a request's name
        return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def build(
    *,
    model: Mapping[str, Any],
    provider: str,
    trigger: Mapping[str, Any],
    probabilities: np.ndarray,
    confidence: float,
    margin: float,
    entropy: float,
    target: int,
    layer: Any,
    method: str,
    raw_map: np.ndarray,
    latency_ms: Mapping[str, float],
    labels: Sequence[str] | None = None,
    region: np.ndarray | None = None,
    observed: float | None = None,
    request: Any = None,
    trace: Any = None,
    picture: Mapping[str, Any] | None = None,
    drift: Mapping[str, Any] | None = None,
    redact: str = "heatmap_only",
    identity: str | None = None,
    covered: Sequence[float] | None = None,
    calibrated: float | None = None,
    prediction_set: Mapping[str, Any] | None = None,
    members: Mapping[str, Any] | None = None,
) -> Record:
    """Build a record of schema 1; the sink fills in its `files`.

    Arguments:
        model: `{"name": …, "sha256": …}`.
        provider: the execution provider that explained.
        trigger: `{"when": condition, "reason": "condition" | "baseline", "sample": sampling probability}`.
        probabilities: of every class, `[K]`.
        confidence, margin, entropy: as the condition evaluates them; entropy divided by its maximum, log(K).
        target, layer, method: the explained class, the target layer (a list is joined with "+") and the CAM method.
        raw_map: `[h, w]` at layer resolution, after ReLU.
        latency_ms: milliseconds, `queued` and `explain`.
        labels: class names by index.
        region: where the map should lie, `[H, W]` of any size with weights 0 to 1.
        observed: when the prediction was made, seconds since 1970; now by default.
        request, trace: the caller's ids, stored as text of at most 256 characters.
        picture: `{"sha256": …, "size": [height, width]}`, each of them None if unknown.
        drift: distances to the baseline.
        redact: `none`, `heatmap_only` or `hash`.
        identity: the record's id; a new one by default.
        covered: top, left, bottom and right of the part of the map that the layer sees, 0 to 1 of its sides; None for
            all of it. The map says nothing about the rest, whose values are 0.
        calibrated: the largest calibrated probability; None without a calibration.
        prediction_set: `{"size": classes in it, "classes": their indices, "alpha": …, "n": pictures of the
            calibration, "empty": "allowed" | "top"}`; None without one.
        members: of a detector or segmentation `task`, `target` in place of a class, `own_layer` and `boxes`.

    Numbers that are not finite become null, because JSON cannot represent them.

    Raises:
        InputError: `redact` is not one of the three modes, or the map is not `[h, w]`.
    """
    if redact not in MODES:
        raise InputError(f"redact={redact!r}; expected one of {', '.join(map(repr, MODES))}")
    heatmap = np.asarray(raw_map)
    if heatmap.ndim != 2 or 0 in heatmap.shape:
        raise InputError(f"the map has shape {list(heatmap.shape)}; expected [h, w] at layer resolution")
    now = time.time() if observed is None else observed
    classes = np.asarray(probabilities)
    best = np.argsort(-np.nan_to_num(classes, nan=-1.0), kind="stable")[:TOP]

    def named(index: Any) -> dict[str, Any]:
        return {"index": int(index), "label": str(name_of(int(index), labels))}

    return {
        "schema": SCHEMA,
        "id": identity or new_id(now),
        "ts": timestamp(now),
        "request": None if request is None else str(request)[:_LONGEST],
        "trace": None if trace is None else str(trace)[:_LONGEST],
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "model": {"name": model.get("name"), "sha256": model.get("sha256")},
        "versions": {"onnxcam": __version__, "onnxruntime": _onnxruntime()},
        "provider": provider,
        "latency_ms": {name: _number(value) for name, value in latency_ms.items()},
        "trigger": {
            "when": trigger.get("when"),
            "reason": trigger["reason"],
            "sample": unit(trigger["sample"]),
        },
        "prediction": {
            "top": [named(index) | {"probability": unit(classes[index])} for index in best],
            "confidence": unit(confidence),
            "margin": unit(margin),
            "entropy": unit(entropy),
            "target": named(target),
            "layer": "+".join(layer) if isinstance(layer, (list, tuple)) else layer,
            "method": method,
            **({} if calibrated is None else {"calibrated": unit(calibrated)}),
            **({} if prediction_set is None else _set(prediction_set)),
            **({} if members is None else rounded(members)),
        },
        "attention": rounded(_statistics(heatmap, region)),
        "map": small(heatmap) | ({} if covered is None else {"covered": [unit(side) for side in covered]}),
        "drift": None if drift is None else rounded(drift),
        "picture": {"sha256": (picture or {}).get("sha256"), "size": _size((picture or {}).get("size"))},
        "files": [],
        "redact": redact,
    }


def _statistics(heatmap: np.ndarray, region: np.ndarray | None) -> dict[str, Any]:
    if region is None:
        return statistics.describe(heatmap)
    # both are summed up on one grid, the coarser of the two on each side, which preserves the energy
    weights = np.asarray(region, np.float64)
    rows, columns = (min(a, b) for a, b in zip(heatmap.shape, weights.shape, strict=True))
    area = weights.shape[0] * weights.shape[1] / (rows * columns)
    inside = statistics.gather(weights, (rows, columns)) / area
    both = statistics.describe(statistics.gather(heatmap, (rows, columns)), inside)
    return statistics.describe(heatmap) | {"region": both["region"]}


def _set(prediction_set: Mapping[str, Any]) -> dict[str, Any]:
    size = int(prediction_set["size"])
    classes = [int(index) for index in prediction_set["classes"]]
    alpha, n = unit(prediction_set["alpha"]), int(prediction_set["n"])
    return {"set_size": size, "set": {"classes": classes, "alpha": alpha, "n": n, "empty": prediction_set["empty"]}}


def small(heatmap: np.ndarray) -> dict[str, Any]:
    """Average the map down and divide it by its maximum; values 0 to 255, row by row."""
    size = (min(heatmap.shape[0], MAP_SIDE), min(heatmap.shape[1], MAP_SIDE))
    cells = statistics.gather(heatmap, size)
    top = float(cells.max())
    levels = np.rint(cells / top * 255).astype(int) if top > 0 else np.zeros(size, int)
    return {"shape": list(size), "values": levels.ravel().tolist()}


def _size(size: Any) -> list[int] | None:
    return None if size is None else [int(size[0]), int(size[1])]


def _number(value: Any) -> float | None:
    number = float(value)
    return float(f"{number:.{_DIGITS}g}") if math.isfinite(number) else None


def unit(value: Any) -> float | None:
    """Clamp a number to 0..1, which float32 rounding may exceed."""
    number = _number(value)
    return None if number is None else min(1.0, max(0.0, number))


def rounded(value: Any) -> Any:
    """Convert to JSON types, numbers rounded to seven digits."""
    if isinstance(value, Mapping):
        return {str(name): rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return _number(value)
    return value if value is None or isinstance(value, str) else str(value)


def _onnxruntime() -> str | None:
    loaded = sys.modules.get("onnxruntime")
    return getattr(loaded, "__version__", None) or _installed_onnxruntime()


@cache
def _installed_onnxruntime() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
