"""Lines that are valid JSON, or nearly, and no records: what other programs, crashes and people leave in a segment."""

from __future__ import annotations

import copy
import json
from typing import Any

from tests.monitor import synthetic

HUGE = 10**400


def changed(*path: str | int, to: Any) -> bytes:
    """A record with one member of another value."""
    record = copy.deepcopy(synthetic.record(5))
    at: Any = record
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = to
    return json.dumps(record).encode()


def without(*path: str) -> bytes:
    """A record without one member."""
    record = copy.deepcopy(synthetic.record(5))
    at: Any = record
    for name in path[:-1]:
        at = at[name]
    del at[path[-1]]
    return json.dumps(record).encode()


def whole() -> bytes:
    return json.dumps(synthetic.record(5)).encode()


def lines() -> dict[str, bytes]:
    """Every kind of line by its name, without its newline."""
    confidence = b'"confidence": ' + json.dumps(synthetic.record(5)["prediction"]["confidence"]).encode()
    assert confidence in whole()
    return {
        # other values than an object
        "number": b"3",
        "fraction": b"-2.5e-3",
        "text": b'"record"',
        "null": b"null",
        "true": b"true",
        "list": b"[]",
        "list of records": b"[" + whole() + b"]",
        "empty object": b"{}",
        "empty line": b"",
        "spaces": b"   ",
        "two records": whole() + whole(),
        "half a record": whole()[:300],
        "log": b"2026-11-02 12:00:00 INFO started",
        "zeros": bytes(200),
        "not UTF-8": whole()[:-1] + b', "x": "\xff\xfe"}',
        "UTF-16": whole().decode().encode("utf-16"),
        # numbers that are none
        "NaN": whole().replace(confidence, b'"confidence": NaN'),
        "Infinity": whole().replace(confidence, b'"confidence": -Infinity'),
        "1e999": whole().replace(confidence, b'"confidence": 1e999'),
        "1e999 in a new member": whole()[:-1] + b', "new": -1e999}',
        "whole number of 5,000 digits": whole()[:-1] + b', "new": ' + b"9" * 5000 + b"}",
        # depth and size
        "100,000 lists": b"[" * 100_000 + b"]" * 100_000,
        "900 levels in a member": whole()[:-1] + b', "new": ' + b"[" * 900 + b"]" * 900 + b"}",
        "900 objects in a member": whole()[:-1] + b', "new": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
        "a line of 3 MB": whole()[:-1] + b', "new": "' + b"x" * 3_000_000 + b'"}',
        "300,000 empty lists": whole()[:-1] + b', "new": [' + b"[]," * 300_000 + b"0]}",
        # members
        "without schema": without("schema"),
        "without ts": without("ts"),
        "without id": without("id"),
        "without prediction": without("prediction"),
        "without trigger": without("trigger"),
        "without top": without("prediction", "top"),
        "without map": without("map"),
        "schema 0": changed("schema", to=0),
        "schema true": changed("schema", to=True),
        "schema text": changed("schema", to="1"),
        "schema fraction": changed("schema", to=1.5),
        "ts number": changed("ts", to=1_795_617_000),
        "ts null": changed("ts", to=None),
        "ts local": changed("ts", to="2026-11-02T00:05:00"),
        "ts that is no day": changed("ts", to="2026-02-30T00:05:00.000000Z"),
        "ts in the year 0": changed("ts", to="0000-01-01T00:00:00.000000Z"),
        "id number": changed("id", to=5),
        "prediction null": changed("prediction", to=None),
        "prediction list": changed("prediction", to=[1, 2]),
        "prediction text": changed("prediction", to="tabby"),
        "trigger number": changed("trigger", to=1),
        "reason number": changed("trigger", "reason", to=1),
        "reason list": changed("trigger", "reason", to=["condition"]),
        "sample text": changed("trigger", "sample", to="1.0"),
        "confidence text": changed("prediction", "confidence", to="0.5"),
        "confidence list": changed("prediction", "confidence", to=[0.5]),
        "confidence true": changed("prediction", "confidence", to=True),
        "confidence 2": changed("prediction", "confidence", to=2),
        "confidence huge": changed("prediction", "confidence", to=HUGE),
        "top object": changed("prediction", "top", to={}),
        "top of numbers": changed("prediction", "top", to=[1, 2]),
        "top null": changed("prediction", "top", to=None),
        "label number": changed("prediction", "top", 0, "label", to=7),
        "index text": changed("prediction", "target", "index", to="7"),
        "index huge": changed("prediction", "target", "index", to=HUGE),
        "index of 64 bits": changed("prediction", "target", "index", to=2**63),
        "target list": changed("prediction", "target", to=[0]),
        "layer list": changed("prediction", "layer", to=["layer4"]),
        "attention list": changed("attention", to=[0.1]),
        "centroid of one": changed("attention", "centroid", to=[0.5]),
        "centroid text": changed("attention", "centroid", to="middle"),
        "zero number": changed("attention", "zero", to=0),
        "map null": changed("map", to=None),
        "map list": changed("map", to=[[1, 2], [3, 4]]),
        "map of another size": changed("map", "shape", to=[7, 8]),
        "map of 2^80 cells": changed("map", "shape", to=[2**40, 2**40]),
        "map of texts": changed("map", "values", to=["1"] * 49),
        "map of 300": changed("map", "values", to=[300] * 49),
        "map of NaN": changed("map", "values", to=[float("nan")] * 49),
        "drift text": changed("drift", to="far"),
        "drift.map text": changed("drift", to={"map": "far"}),
        "drift.rank list": changed("drift", to={"rank": [1]}),
        "files object": changed("files", to={"kind": "heatmap"}),
        "files of texts": changed("files", to=["files/a.png"]),
        "files without name": changed("files", to=[{"kind": "heatmap", "sha256": "0" * 64, "bytes": 3}]),
        "bytes text": changed("files", to=[{"kind": "heatmap", "name": "a", "sha256": "0" * 64, "bytes": "3"}]),
        "model text": changed("model", to="tiny"),
        "model name number": changed("model", "name", to=3),
        "request object": changed("request", to={"id": 1}),
        "picture number": changed("picture", to=0),
        "picture size text": changed("picture", "size", to="480x640"),
        "latency list": changed("latency_ms", to=[1.0]),
        "latency text": changed("latency_ms", "queued", to="1 ms"),
        "pid text": changed("pid", to="7"),
        "redact other": changed("redact", to="all"),
    }
