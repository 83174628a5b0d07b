"""One bad line costs itself only, wherever it is and from whichever end a segment is read."""

from __future__ import annotations

import copy
import io
import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from onnxcam.monitor import lines, reading, schema
from onnxcam.monitor.lines import Scan
from tests.monitor import damage, synthetic

KINDS = damage.lines()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_line_is_damaged(kind: str, tmp_path: Path) -> None:
    good = [synthetic.record(n) for n in range(2)]
    path = synthetic.write(tmp_path, good[:1], tail=KINDS[kind] + b"\n" + json.dumps(good[1]).encode() + b"\n")
    for read in (reading.records, reading.newest):
        scan = Scan()
        assert sorted(record["id"] for record in read(tmp_path, scan=scan)) == [record["id"] for record in good]
        assert (scan.records, scan.damaged, scan.torn, scan.newer) == (2, 1, 0, 0)
        assert scan.notes() == ["1 lines are not records and were skipped"]
    # as the last line, complete or not
    path.write_bytes(path.read_bytes() + KINDS[kind] + b"\n" + KINDS[kind])
    for read in (reading.records, reading.newest):
        scan = Scan()
        assert len(list(read(tmp_path, scan=scan))) == 2
        assert (scan.damaged, scan.torn) == (2, int(KINDS[kind] != b""))


@pytest.mark.parametrize(
    "line",
    [
        damage.whole()[:-1] + b', "new": {"deep": [[[1, 2.5e300, null]]]}}',
        damage.whole()[:-1] + b', "id": "twice"}',
        damage.whole() + b"\r",
        damage.changed("drift", to={"map": 0.5, "rank": 1, "later": "member"}),
        damage.changed("prediction", "confidence", to=None),
        damage.changed("prediction", "top", 0, "label", to="\ud83d half a pair"),
        damage.changed("ts", to="9999-12-31T23:59:59.999999Z"),
        damage.changed("ts", to="0001-01-01T00:00:00.000000Z"),
    ],
)
def test_unusual_records_are_read(line: bytes) -> None:
    scan = Scan()
    assert lines.parse(line, scan) == json.loads(line)
    assert (scan.records, scan.damaged) == (1, 0)


def members(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all members of a record and of the first items of its lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return [place] * bool(place) + [deeper for name, item in inner for deeper in members(item, (*place, name))]


@pytest.mark.slow
def test_what_is_read_is_what_the_published_schema_says() -> None:
    """Each member of a record in turn gets each of many values; jsonschema tells which of them are records."""
    published = schema.schema()
    validator = jsonschema.Draft202012Validator(published)
    whole = synthetic.record(5)
    whole["files"] = [{"kind": "heatmap", "name": "files/a.png", "sha256": "0" * 64, "bytes": 3}]
    whole["drift"] = {"baseline": "b", "comparable": True, "map": 0.5, "rank": 0.2, "furthest": None, "deviation": 1.5}
    values: list[Any] = [None, True, 3, -1, 0.5, 1.5, -2.5, 2**64, 10**400, float("inf"), "", "text", [], [1, 2], [0.5]]
    values += [[None, None], {}, {"a": 1}, {"index": 1, "label": "x", "probability": 0.5}]
    # ids, digests and names are texts of any form here; a fraction is no whole number although 3.0 is one in the schema
    patterns = ("id", "sha256", "name")
    accepted = refused = 0
    for place in members(whole):
        if place[-1] in patterns or place[0] == "ts" or "shape" in place or "values" in place:
            continue
        for value in values:
            record = copy.deepcopy(whole)
            at: Any = record
            for name in place[:-1]:
                at = at[name]
            at[place[-1]] = value
            errors = [error for error in validator.iter_errors(record) if error.path and error.path[-1] not in patterns]
            finite = not (isinstance(value, float) and value == float("inf")) and value not in (2**64, 10**400)
            expected = not errors and finite
            if not finite and not errors:
                continue  # no limits on size in the schema
            assert schema.is_record(record) == expected, (place, value, errors)
            accepted, refused = accepted + expected, refused + (not expected)
    assert accepted > 50 and refused > 500
    assert [problem for problem in schema.problems(whole) if ".id " not in problem] == []


def test_following_says_once_that_lines_are_damaged(tmp_path: Path) -> None:
    path = synthetic.write(tmp_path, [synthetic.record(0)], open_=True)
    appended = [b"[1, 2]\n", json.dumps(synthetic.record(1)).encode() + b"\n"]

    def sleep(seconds: float) -> None:
        with path.open("ab") as file:
            file.write(b"".join(appended))

    scan = Scan()
    assert next(reading.follow(tmp_path, scan=scan, sleep=sleep))["id"] == "000000000001"
    assert scan.damaged == 1


@pytest.mark.parametrize("seed", range(8))
def test_lines_are_the_same_from_both_ends(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of all lengths, also longer than a chunk and than the longest, with and without an end."""
    monkeypatch.setattr(lines, "LONGEST", 300)
    monkeypatch.setattr(lines, "_SHORT", 40)
    monkeypatch.setattr(lines, "_CHUNK", 70)
    choose = random.Random(seed)
    for _ in range(60):
        sizes = choose.choices((0, 1, 39, 40, 150, 298, 299, 300, 301, 900), k=12)
        parts = [bytes(choose.choices(b"ab", k=size)) for size in sizes]
        data = b"\n".join(parts[: choose.randrange(12)])
        expected, offset = [], 0
        for line in data.split(b"\n")[:-1]:
            if len(line) < 300:
                expected.append((offset, line + b"\n"))
            offset += len(line) + 1
        damaged = data.count(b"\n") - len(expected)
        torn = int(not data.endswith(b"\n") and data != b"")
        ahead, back = Scan(), Scan()
        assert list(lines.forwards(io.BytesIO(data), ahead)) == expected
        assert list(lines.backwards(io.BytesIO(data), back)) == expected[::-1]
        assert (ahead.damaged, ahead.torn) == (back.damaged, back.torn) == (damaged, torn)
