"""The published JSON Schema of a record, and a validator of it without dependencies."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from onnxcam.errors import RecordError
from onnxcam.monitor.redaction import MODES

SCHEMA = 1
Record = dict[str, Any]
_SHA256 = "^[0-9a-f]{64}$"

_ID = {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"}
_TIME = {"type": "string", "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$"}
_UNIT = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_NUMBER = {"type": ["number", "null"]}
_TEXT = {"type": ["string", "null"]}
_INDEX = {"type": "integer", "minimum": 0}
_BOX = {"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4}


def _object(properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


_RECORD: dict[str, Any] = _object(
    {
        "schema": {"const": SCHEMA},
        "id": _ID | {"description": "UUID version 7: sorts by time, unique over processes and forks"},
        "ts": _TIME | {"description": "when the prediction was made, UTC"},
        "request": _TEXT | {"description": "the caller's id of the request"},
        "trace": _TEXT | {"description": "the caller's trace id"},
        "host": {"type": "string"},
        "pid": {"type": "integer", "minimum": 0},
        "model": _object({"name": _TEXT, "sha256": {"type": ["string", "null"], "pattern": _SHA256}}),
        "versions": _object({"onnxcam": {"type": "string"}, "onnxruntime": _TEXT}),
        "provider": {"type": "string", "description": "the execution provider that explained"},
        "latency_ms": {"type": "object", "additionalProperties": _NUMBER},
        "trigger": _object(
            {
                "when": _TEXT,
                "reason": {"enum": ["condition", "baseline"]},
                "sample": _UNIT | {"description": "the probability with which such a row is sampled"},
            }
        ),
        "prediction": _object(
            {
                "top": {
                    "type": "array",
                    "items": _object({"index": _INDEX, "label": {"type": "string"}, "probability": _UNIT}),
                },
                "confidence": _UNIT,
                "margin": _UNIT,
                "entropy": _UNIT | {"description": "of the prediction, divided by log(classes)"},
                "target": _object(
                    {
                        "index": _INDEX,
                        "label": {"type": "string"},
                        "score": _UNIT
                        | {"description": "of the box, or the mean probability of the class in its cells"},
                        "box": _BOX | {"description": "x0, y0, x1, y1 in pixels of the picture"},
                        "candidate": _INDEX | {"description": "index of the box in the model's own output"},
                    },
                    optional=("score", "box", "candidate"),
                )
                | {"description": "what is explained: a class; of a detector a box, of a segmentation its cells"},
                "layer": {"type": "string"},
                "method": {"type": "string"},
                "task": {"enum": ["detect", "segment"]},
                "own_layer": {
                    "type": "boolean",
                    "description": "of a detector: each box is explained at the layer that its score comes from",
                },
                "boxes": {
                    "type": "array",
                    "items": _object({"index": _INDEX, "label": {"type": "string"}, "score": _UNIT, "box": _BOX}),
                    "maxItems": 20,
                    "description": "the boxes that a detector reported, best first, in pixels of the picture; `index` "
                    "is that of the candidate in the model's own output",
                },
                "calibrated": _UNIT | {"description": "the largest calibrated probability, if the file is calibrated"},
                "set_size": _INDEX | {"description": "number of classes in the prediction set; 0: none fits"},
                "set": _object(
                    {
                        "classes": {"type": "array", "items": _INDEX},
                        "alpha": {"type": "number", "minimum": 0, "maximum": 1},
                        "n": {"type": "integer", "minimum": 1},
                        "empty": {"enum": ["allowed", "top"]},
                    },
                    optional=("empty",),
                )
                | {
                    "description": "the prediction set: its classes, the most likely first, at most 200; the share of "
                    "sets that may miss the true class, the number of pictures that it was calibrated on, and what "
                    "a set has that would be empty: nothing, or the most likely class"
                },
            },
            optional=("task", "own_layer", "boxes", "calibrated", "set_size", "set"),
        ),
        "attention": _object(
            {
                "zero": {"type": "boolean", "description": "the map is zero everywhere: the other numbers are null"},
                "centroid": {"type": ["array", "null"], "items": _UNIT, "minItems": 2, "maxItems": 2},
                "spread": _UNIT,
                "entropy": _UNIT,
                "gini": _UNIT,
                "half_area": _UNIT,
                "border": _UNIT,
                "peaks": {"type": ["integer", "null"], "minimum": 0},
                "region": _UNIT | {"description": "the share of the energy inside the reference region"},
            },
            optional=("region",),
        ),
        "map": _object(
            {
                "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
                "values": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}},
                "covered": {
                    "type": "array",
                    "items": {"type": "number", "minimum": 0, "maximum": 1},
                    "minItems": 4,
                    "maxItems": 4,
                    "description": "top, left, bottom and right of what the layer sees, in units of the map's sides, "
                    "where that is a part: the values outside are 0 and say nothing; absent where it is all",
                },
            },
            optional=("covered",),
        ),
        "drift": _object(
            {
                "baseline": {"type": "string"},
                "comparable": {"type": "boolean"},
                "attention": _NUMBER,
                "furthest": _TEXT,
                "deviation": _NUMBER,
                "map": _NUMBER,
                "rank": _NUMBER,
            },
            optional=("baseline", "comparable", "attention", "furthest", "deviation", "map", "rank"),
        )
        | {"type": ["object", "null"], "description": "distances to the baseline, if one is configured"},
        "picture": _object(
            {
                "sha256": {"type": ["string", "null"], "pattern": _SHA256},
                "size": {"type": ["array", "null"], "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
            }
        ),
        "files": {
            "type": "array",
            "items": _object(
                {
                    "kind": {"enum": sorted(MODES["none"])},
                    "name": {"type": "string", "description": "relative to the folder of the records"},
                    "sha256": {"type": "string", "pattern": _SHA256},
                    "bytes": {"type": "integer", "minimum": 0},
                }
            ),
        },
        "redact": {"enum": list(MODES)},
    }
)


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one record. Later versions may add members but change none."""
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:onnxcam:monitor:record:{SCHEMA}",
        "title": "onnxcam monitor record",
    }
    return head | copy.deepcopy(_RECORD)


def problems(record: Any) -> list[str]:
    """Return the violations of the schema, each with its path in the record; empty for a valid record."""
    return list(_violations(record, _RECORD, "record"))


def validate(record: Any) -> None:
    """Check a record against the schema.

    Raises:
        RecordError: it violates the schema; the message has the first violations.
    """
    violations = problems(record)
    if violations:
        more = f" and {len(violations) - 3} more" if len(violations) > 3 else ""
        raise RecordError(
            f"not a record of schema {SCHEMA}: {'; '.join(violations[:3])}{more}; `onnxcam monitor schema` prints the "
            "schema"
        )


def is_record(value: Any) -> bool:
    """Return whether a parsed line of JSON is a record that can be read.

    Every member is present, of its type and in its range, numbers are finite, `ts` is a time of the calendar, and `map`
    has as many values as its shape says. Ids and digests may have any form.
    """
    return _has_members(value) and _is_time(value["ts"]) and _is_map(value["map"])


def _is_time(text: str) -> bool:
    if _TIME_FORM.fullmatch(text) is None:
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:  # the 30th of February
        return False
    return True


def _is_map(cells: dict[str, Any]) -> bool:
    height, width = cells["shape"]
    return bool(height * width == len(cells["values"]))


def _compile(rule: dict[str, Any]) -> Callable[[Any], bool]:
    """Make a fast check of types, ranges and members of a rule; its patterns are not checked."""
    if "const" in rule:
        return lambda value: type(value) is int and value == rule["const"]
    if "enum" in rule:
        choices = frozenset(rule["enum"])
        return lambda value: type(value) is str and value in choices
    types = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    check = _CHECKS[types[0]](rule)
    if "null" in types:
        return lambda value: value is None or check(value)
    return check


def _object_check(rule: dict[str, Any]) -> Callable[[Any], bool]:
    members = [(name, _compile(inner)) for name, inner in rule.get("properties", {}).items()]
    required = frozenset(rule.get("required", ()))
    others = _compile(rule["additionalProperties"]) if "additionalProperties" in rule else None

    def check(value: Any) -> bool:
        if type(value) is not dict or not required <= value.keys():
            return False
        for name, member in members:
            if name in value and not member(value[name]):
                return False
        return others is None or all(map(others, value.values()))

    return check


def _array_check(rule: dict[str, Any]) -> Callable[[Any], bool]:
    inner, least, most = rule["items"], rule.get("minItems", 0), rule.get("maxItems", sys.maxsize)
    item = _compile(inner)
    of_bytes = inner.get("type") == "integer" and inner.get("maximum") == 255

    def check(value: Any) -> bool:
        if type(value) is not list or not least <= len(value) <= most:
            return False
        if of_bytes:  # some hundred values of a map
            try:
                return len(bytes(value)) == len(value)
            except (TypeError, ValueError):
                return False
        return all(map(item, value))

    return check


def _number_check(rule: dict[str, Any]) -> Callable[[Any], bool]:
    # NaN is outside; so are whole numbers that are no float64, which are exactly compared
    low, high = rule.get("minimum", -sys.float_info.max), rule.get("maximum", sys.float_info.max)
    return lambda value: (type(value) is float or type(value) is int) and low <= value <= high


def _integer_check(rule: dict[str, Any]) -> Callable[[Any], bool]:
    low, high = rule.get("minimum", -_LARGEST), rule.get("maximum", _LARGEST)
    return lambda value: type(value) is int and low <= value <= high


_LARGEST = 2**62  # of a whole number: sums of many fit into 64 bits
_TIME_FORM = re.compile(_TIME["pattern"])
_CHECKS: dict[str, Callable[[dict[str, Any]], Callable[[Any], bool]]] = {
    "object": _object_check,
    "array": _array_check,
    "number": _number_check,
    "integer": _integer_check,
    "string": lambda rule: lambda value: type(value) is str,
    "boolean": lambda rule: lambda value: type(value) is bool,
}
_has_members = _compile(_RECORD)

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": (int, float),
    "number": (int, float),
}


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name != "boolean":
        return False
    if not isinstance(value, _TYPES[name]):
        return False
    return name != "integer" or isinstance(value, int) or value.is_integer()


def _violations(value: Any, rule: dict[str, Any], place: str) -> Iterator[str]:
    """Yield violations of the JSON Schema keywords that `_RECORD` uses."""
    if "const" in rule and (isinstance(value, bool) or value != rule["const"]):
        yield f"{place} is {_short(value)}, expected {rule['const']!r}"
    if "enum" in rule and value not in rule["enum"]:
        yield f"{place} is {_short(value)}, expected one of {', '.join(map(repr, rule['enum']))}"
    if "type" in rule:
        types = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
        if not any(_is(value, name) for name in types):
            yield f"{place} is {_short(value)}, expected {' or '.join(types)}"
            return
    if isinstance(value, dict):
        yield from (f"{place}.{name} is missing" for name in rule.get("required", ()) if name not in value)
        properties = rule.get("properties", {})
        for name, member in value.items():
            inner = properties.get(name, rule.get("additionalProperties"))
            if inner is not None:
                yield from _violations(member, inner, f"{place}.{name}")
    elif isinstance(value, list):
        if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value)):
            yield f"{place} has {len(value)} items, expected {rule['minItems']}"
        if "items" in rule:
            for k, item in enumerate(value):
                yield from _violations(item, rule["items"], f"{place}[{k}]")
    elif isinstance(value, str):
        if "pattern" in rule and not re.search(rule["pattern"], value):
            yield f"{place} is {_short(value)}, expected a text like {rule['pattern']}"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = rule.get("minimum"), rule.get("maximum")
        # written so that NaN is outside
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            yield f"{place} is {value!r}, expected {low} to {'any' if high is None else high}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
