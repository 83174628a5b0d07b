"""Files that claim to be baselines: bounded before anything is allocated, and refused in one sentence."""

from __future__ import annotations

import base64
import copy
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcam.errors import InputError
from onnxcam.monitor import baseline as baselines
from tests.cli.conftest import Run
from tests.monitor import synthetic

MIB = 1 << 20


@cache
def normal() -> dict[str, Any]:
    return baselines.build([synthetic.record(n) for n in range(520)])[0]


def changed(*path: str | int, to: Any) -> Callable[[], bytes]:
    """The baseline with another value in one place."""

    def data() -> bytes:
        document = copy.deepcopy(normal())
        at: Any = document
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = to(at[path[-1]]) if callable(to) else to
        return json.dumps(document).encode()

    return data


def bomb(size: int) -> str:
    """`size` bytes of zeros, compressed."""
    stream, packed = zlib.compressobj(1), b""
    for _ in range(size // MIB):
        packed += stream.compress(bytes(MIB))
    return base64.b64encode(packed + stream.flush()).decode()


BAD: dict[str, Callable[[], bytes]] = {
    "a compressed bomb": lambda: changed("rows", "maps", "uint16", to=bomb(64 * MIB))(),
    "maps too small": lambda: changed("rows", "maps", "uint16", to=bomb(0))(),
    "maps that are no base64": changed("rows", "maps", "uint16", to="*" * 1000),
    "maps that are no zlib": changed("rows", "maps", "uint16", to="AAAA" * 1000),
    "maps in a list": changed("rows", "maps", "uint16", to=[1, 2]),
    "maps of 2^80 cells": changed("rows", "maps", "shape", to=[2**40, 2**40]),
    "maps of no cells": changed("rows", "maps", "shape", to=[0, 7]),
    "maps of half a cell": changed("rows", "maps", "shape", to=[7.5, 7]),
    "maps of one side": changed("rows", "maps", "shape", to=[7]),
    "maps of text": changed("rows", "maps", "shape", to="77"),
    "10,000 lists": lambda: b"[" * 10_000 + b"]" * 10_000,
    "10,000 objects": lambda: b'{"rows":' * 10_000 + b"1" + b"}" * 10_000,
    "many empty lists": lambda: b'{"format":1,"rows":[' + b"[]," * (5 * MIB) + b"0]}",
    "many empty objects": lambda: b'{"format":1,"rows":[' + b"{}," * (5 * MIB) + b"0]}",
    "many keys": lambda: b"{" + b",".join(b'"%x":0' % k for k in range(400_000)) + b"}",
    "a wide text": lambda: '{{"format":1,"x":"😀{}"}}'.format("x" * (15 * MIB)).encode(),
    "Infinity": lambda: changed("rows", "weights", 3, to=float("inf"))(),
    "NaN": changed("rows", "fields", "confidence", 0, to=float("nan")),
    "1e999": lambda: changed("rows", "weights", 3, to="@")().replace(b'"@"', b"1e999"),
    "1e300": changed("rows", "fields", "confidence", 0, to=1e300),
    "a huge integer": changed("rows", "target", 0, to=10**400),
    "a huge number of records": changed("records", to=10**400),
    "a weight of 0": changed("rows", "weights", 0, to=0),
    "a weight below 0": changed("rows", "weights", 0, to=-1.0),
    "a weight of 1e300": changed("rows", "weights", 0, to=1e300),
    "too few rows": changed("rows", "weights", to=lambda values: values[:100]),
    "too many weights": changed("rows", "weights", to=lambda values: values * 100),
    "rows of several lengths": changed("rows", "target", to=lambda values: values[1:]),
    "fields of several lengths": changed("rows", "fields", "margin", to=lambda values: values[1:]),
    "a flag of 2": changed("rows", "low", 0, to=2),
    "a flag of text": changed("rows", "zero", 0, to="no"),
    "a class of text": changed("rows", "target", 0, to="7"),
    "half a class": changed("rows", "predicted", 0, to=0.5),
    "a class in a list": changed("rows", "predicted", 0, to=[1]),
    "weights in an object": changed("rows", "weights", to={str(n): 1.0 for n in range(520)}),
    "fields in a list": changed("rows", "fields", to=[["confidence", [0.5]]]),
    "labels in a list": changed("labels", to=["tabby"]),
    "a label of text": changed("labels", to={"tabby": "0"}),
    "a label of 5,000 digits": changed("labels", to={"9" * 5000: "tabby"}),
    "a model of text": changed("model", to="tiny"),
    "a sha256 in a list": changed("model", "sha256", to=["ab"]),
    "a layer in an object": changed("layer", to={"name": "layer4"}),
    "a time of the year 0": changed("since", to="0000-01-01T00:00:00.000000Z"),
    "a time of numbers": changed("until", to=1_795_617_000),
    "another format": changed("format", to=2),
    "a format in a list": changed("format", to=[1]),
    "a number": lambda: b"3",
    "null": lambda: b"null",
    "nothing": lambda: b"",
    "zeros": lambda: bytes(5000),
    "a picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10,
    "UTF-16": lambda: "{}".encode("utf-16")[:-1],
} | {
    f"without {name}": lambda name=name: json.dumps({k: v for k, v in normal().items() if k != name}).encode()  # type: ignore[misc]
    for name in ("format", "model", "when", "method", "layer", "records", "since", "until", "labels", "rows")
}


@pytest.mark.sample(11)
@pytest.mark.parametrize("kind", BAD)
def test_it_is_refused_in_a_sentence_and_little_memory(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_bytes(BAD[kind]())
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="is not a baseline") as caught:
            baselines.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 400
    assert peak < 64 * MIB


def test_files_that_are_none(tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    large.touch()
    os.truncate(large, 1 << 40)  # sparse
    for path, message in (
        (large, "is larger than 16 MiB"),
        (tmp_path, "is a folder"),
        (Path("/dev/zero"), "is larger than 16 MiB"),
        (tmp_path / "none", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            baselines.load(path)


def test_commands_say_it_in_one_sentence(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "cam"
    synthetic.write(folder, [synthetic.record(1)])
    path = tmp_path / "baseline.json"
    path.write_bytes(BAD["a compressed bomb"]())
    for command in (("drift",), ("report", "-o", tmp_path / "page.html")):
        result = run("monitor", command[0], folder, *command[1:], "--baseline", path)
        assert result.code == 1
        assert result.err.count("\n") == 1 and "more than the" in result.err and "unexpectedly" not in result.err


@pytest.mark.slow
def test_the_largest_baseline_is_read_in_little_memory(tmp_path: Path) -> None:
    """20,000 rows, the most that `onnxcam monitor baseline --rows` writes."""
    document = copy.deepcopy(normal())
    rows, count = document["rows"], 20_000
    rng = np.random.default_rng(1)
    for name in ("weights", "low", "zero", "predicted", "target"):
        rows[name] = (rows[name] * 40)[:count]
    rows["fields"] = {name: [round(x, 6) for x in rng.random(count)] for name in rows["fields"]}
    cells = rng.integers(0, 65536, (count, 8, 8)).astype("<u2")
    rows["maps"] = {
        "shape": [8, 8],
        "present": [1] * count,
        "uint16": base64.b64encode(zlib.compress(cells.tobytes(), 1)).decode(),
    }
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(document))
    del document, rows
    tracemalloc.start()
    try:
        loaded = baselines.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(loaded.rows) == count and peak < 64 * MIB
    np.testing.assert_allclose(loaded.rows.maps, cells / cells.sum((1, 2), keepdims=True), rtol=1e-6)


@pytest.mark.slow
def test_a_baseline_of_the_most_frequent_of_many_configurations() -> None:
    """More configurations than samples are drawn of; the sample is of the one that has the most records."""
    records = [synthetic.record(n, trigger__when=f"confidence < {n % 40}") for n in range(400)]
    records += [synthetic.record(n) for n in range(400, 1400)]
    records += [synthetic.record(n, trigger__when=f"confidence < {n % 40}") for n in range(1400, 1600)]
    document, notes = baselines.build(records, rows=1000)
    assert (document["records"], document["when"]) == (1000, synthetic.CONFIGURATION.when)
    assert notes == ["600 records of another model, condition, method or layer were skipped"]
    values = baselines.parse(document).rows.values[:, 0]
    np.testing.assert_allclose(values, [r["prediction"]["confidence"] for r in records[400:1400]], rtol=1e-5)
