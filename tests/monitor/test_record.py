"""What a record says, and its schema, checked by an independent validator."""

from __future__ import annotations

import copy
import json
import math
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcam.errors import InputError, RecordError
from onnxcam.monitor import record, schema, timestamps
from onnxcam.monitor.redaction import MODES, allowed
from tests.monitor.samples import make

VALIDATOR = jsonschema.Draft202012Validator(schema.schema())


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema.schema())


def test_a_record_says_what_it_was_made_of() -> None:
    document = make(
        observed=1_795_615_620.123456, request=17, trace="t" * 300, redact="none", picture={"size": (480, 640)}
    )
    assert document["ts"] == "2026-11-25T14:07:00.123456Z"
    assert timestamps.seconds(document["ts"]) == 1_795_615_620.123456
    assert (document["request"], document["trace"]) == ("17", "t" * 256)
    assert document["prediction"]["top"] == [
        {"index": 1, "label": "dög", "probability": 0.5},
        {"index": 2, "label": "毛", "probability": 0.3},
        {"index": 0, "label": "cat", "probability": 0.2},
    ]
    assert document["prediction"]["target"] == {"index": 1, "label": "dög"}
    assert document["picture"] == {"sha256": None, "size": [480, 640]}
    assert document["map"] == {"shape": [3, 4], "values": [round(k / 11 * 255) for k in range(12)]}
    assert document["latency_ms"] == {"queued": 1.25, "explain": 17.0}
    assert record.encode(document).endswith(b"}\n") and record.encode(document).count(b"\n") == 1
    assert json.loads(record.encode(document)) == document
    schema.validate(document)
    VALIDATOR.validate(document)


def test_large_maps_are_averaged_down() -> None:
    raw = np.zeros((32, 48))
    raw[:16, :24] = 4.0
    raw[16:, :24] = 2.0
    small = make(raw_map=raw)["map"]
    grid = np.array(small["values"]).reshape(small["shape"])
    assert small["shape"] == [16, 16]
    want = np.kron([[255, 0], [128, 0]], np.ones((8, 8)))
    np.testing.assert_array_equal(grid, want)


@pytest.mark.parametrize("shape", [(7, 7), (14, 9), (224, 224), (5, 300)])
def test_agreement_with_a_region_of_any_size(shape: tuple[int, int]) -> None:
    """A map of four blocks and a region over the left half: the energy on the left, whatever the region's size."""
    raw = np.kron([[3.0, 1.0], [2.0, 4.0]], np.ones((14, 14)))
    region = np.zeros(shape)
    half = shape[1] / 2
    region[:, : math.floor(half)] = 1
    if shape[1] % 2:
        region[:, math.floor(half)] = 0.5
    result = make(raw_map=raw, region=region)["attention"]["region"]
    # the odd column is half inside, on cells wholly left or right: exact where columns fall together
    assert result == pytest.approx(0.5, abs=0.03 if shape[1] % 2 or 28 % shape[1] else 1e-6)


def test_what_is_not_finite_becomes_null() -> None:
    nan = float("nan")
    document = make(
        probabilities=np.array([nan, 0.4, np.inf]),
        confidence=nan,
        margin=nan,
        entropy=nan,
        raw_map=np.full((2, 2), nan),
        latency_ms={"queued": nan},
        drift={"border": nan, "deep": {"x": np.float32(0.25)}},
    )
    assert document["prediction"]["confidence"] is None
    assert document["attention"]["zero"] is True
    assert document["map"]["values"] == [0, 0, 0, 0]
    assert document["drift"] == {"border": None, "deep": {"x": 0.25}}
    json.loads(record.encode(document), parse_constant=pytest.fail)
    schema.validate(document)
    VALIDATOR.validate(document)


def test_rounding_errors_stay_within_the_unit() -> None:
    document = make(confidence=1.0000001, margin=-1e-9, raw_map=np.ones((8, 8)))
    assert (document["prediction"]["confidence"], document["prediction"]["margin"]) == (1.0, 0.0)
    VALIDATOR.validate(document)


@pytest.mark.parametrize("label", ["a\nb", "\ud800", "\u2028", '"', "\x00", "x" * 5000])
def test_any_label_makes_one_line(label: str) -> None:
    line = record.encode(make(labels=[label] * 3, request=label))
    assert line.count(b"\n") == 1
    assert json.loads(line)["prediction"]["target"]["label"] == label


def test_unknown_redaction_and_odd_maps_are_refused() -> None:
    with pytest.raises(InputError, match="redact='some'"):
        make(redact="some")
    with pytest.raises(InputError, match=r"\[2, 2, 2\]"):
        make(raw_map=np.zeros((2, 2, 2)))


# ---- identities


def test_ids_are_uuids_of_version_7_with_their_time() -> None:
    now = time.time()
    identity = uuid.UUID(record.new_id(now))
    assert (identity.version, identity.variant) == (7, uuid.RFC_4122)
    assert (identity.int >> 80) / 1000 == pytest.approx(now, abs=0.002)


def test_ids_sort_by_time() -> None:
    times = [1_795_615_620 + k * 1e-6 for k in range(2000)]
    ids = [record.new_id(now) for now in times]
    assert ids == sorted(ids)


@pytest.mark.slow
def test_ids_do_not_repeat() -> None:
    frozen = 1_795_615_620.0
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: record.new_id(frozen), range(20_000)))
    assert len(set(ids)) == len(ids)


# ---- the check without a library agrees with the one of the library


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    paths = [path]
    if isinstance(value, dict):
        for name, entry in value.items():
            paths += places(entry, (*path, name))
    elif isinstance(value, list):
        for k, entry in enumerate(value):
            paths += places(entry, (*path, k))
    return paths


WHOLE = make(region=np.ones((3, 4)), drift={"border": 0.1}, picture={"sha256": "a" * 64, "size": (3, 4)}) | {
    "files": [{"kind": "heatmap", "name": "files/20261125/14/x-heatmap.png", "sha256": "0" * 64, "bytes": 3}]
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.floats(-0.5, 1.5),
    st.text(max_size=5),
    st.lists(st.integers(0, 2), max_size=3),
    st.dictionaries(st.sampled_from(["index", "x"]), st.integers(), max_size=2),
    st.sampled_from(["condition", "none", "heatmap", "0" * 64, 1, 1.0, 255, 256]),
)


@pytest.mark.slow
@given(st.sampled_from(places(WHOLE)[1:]), st.one_of(st.just("remove"), ODD))
def test_problems_are_found_where_jsonschema_finds_them(place: tuple[Any, ...], change: Any) -> None:
    changed = copy.deepcopy(WHOLE)
    inner: Any = changed
    for step in place[:-1]:
        inner = inner[step]
    if change == "remove":
        del inner[place[-1]]
    else:
        inner[place[-1]] = change
    assert bool(schema.problems(changed)) == bool(list(VALIDATOR.iter_errors(changed)))


@pytest.mark.parametrize("value", [None, [], "x", 3, {}])
def test_what_is_no_record_is_refused(value: Any) -> None:
    assert schema.problems(value)
    with pytest.raises(RecordError, match="not a record of schema 1: record"):
        schema.validate(value)


def test_a_refusal_names_the_place() -> None:
    changed = copy.deepcopy(WHOLE)
    changed["prediction"]["top"][1]["probability"] = 1.5
    with pytest.raises(RecordError, match=r"record\.prediction\.top\[1\]\.probability is 1\.5, expected 0 to 1"):
        schema.validate(changed)


def test_members_of_later_versions_are_let_pass() -> None:
    schema.validate(WHOLE | {"new": 1})


# ---- redaction


@pytest.mark.parametrize(
    ("mode", "rest"),
    [("none", {"heatmap", "overlay", "input"}), ("heatmap_only", {"heatmap"}), ("hash", set()), ("typo", set())],
)
def test_redaction_lets_through_what_it_says(mode: str, rest: set[str]) -> None:
    files = dict.fromkeys(("heatmap", "overlay", "input", "other"), b"x")
    assert allowed({"redact": mode}, files).keys() == rest
    assert allowed({}, files) == {}
    assert mode in MODES or mode == "typo"
