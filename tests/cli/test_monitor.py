"""`onnxcam monitor` on folders whose contents are known."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from onnxcam.monitor import counters
from onnxcam.monitor.schema import schema
from tests.cli.conftest import Run
from tests.monitor import synthetic


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """800 records of two processes, one of which was killed while it wrote."""
    folder = tmp_path_factory.mktemp("normal")
    synthetic.write(folder, [synthetic.record(n) for n in range(0, 800, 2)], pid=7)
    synthetic.write(folder, [synthetic.record(n) for n in range(1, 800, 2)], pid=8, open_=True, tail=b'{"schema"')
    counters.CountersFile(folder).write(
        {"seen": 9000, "confident": 8000, "explained": 800, "failed": 1, "dropped": {"duplicate": 199, "rate": 0}}
    )
    return folder


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 later ones that look at the border."""
    folder = tmp_path_factory.mktemp("shifted")
    synthetic.write(folder, [synthetic.record(n, attention__border=0.35) for n in range(1000, 1600)])
    return folder


@pytest.fixture
def baseline(run: Run, normal: Path, tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    result = run("monitor", "baseline", normal, "-o", path, "--json")
    assert (result.code, result.json()["records"], result.json()["classes"]) == (
        0,
        800,
        ["tabby", "beagle", "espresso"],
    )
    return path


def test_tail(run: Run, normal: Path) -> None:
    result = run("monitor", "tail", normal, "-n", 2)
    first, second = result.out.splitlines()
    assert result.code == 0
    assert first.startswith("2026-11-02 13:18:00") and first.endswith("000000000798")
    assert second.endswith("000000000799")
    assert [json.loads(line)["id"] for line in run("monitor", "tail", normal, "--json", "-n", 1).out.splitlines()] == [
        "000000000799"
    ]


def test_what_came_from_outside_cannot_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    synthetic.write(tmp_path, [synthetic.record(1, request="\x1b[2J\r\nfaked", trace="7")])
    assert "?[2J??faked" in run("monitor", "tail", tmp_path).out


@pytest.mark.slow
def test_query(run: Run, normal: Path) -> None:
    result = run("monitor", "query", normal, "--where", "confidence < 0.5 and not label == 'tabby'", "--json")
    records = [json.loads(line) for line in result.out.splitlines()]
    expected = [synthetic.record(n) for n in range(800)]
    expected = [
        r for r in expected if r["prediction"]["confidence"] < 0.5 and r["prediction"]["top"][0]["label"] != "tabby"
    ]
    assert records == expected
    assert result.err == f"{len(expected)} records\n"
    least = run("monitor", "query", normal, "--sort", "confidence", "--limit", 3, "--json").out.splitlines()
    every = sorted(synthetic.record(n)["prediction"]["confidence"] for n in range(800))
    assert [json.loads(line)["prediction"]["confidence"] for line in least] == every[:3]
    late = run(
        "monitor", "query", normal, "--since", "2026-11-02T13:00", "--class", 1, "--reason", "condition", "--json"
    )
    assert all(
        r["ts"] >= "2026-11-02T13:00"
        and r["prediction"]["target"]["index"] == 1
        and r["prediction"]["confidence"] < 0.6
        for r in map(json.loads, late.out.splitlines())
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--where", "confidence <"), "position"),
        (("--where", "__import__('os')"), "expected one of"),
        (("--since", "tomorrow"), "is not a time"),
    ],
)
def test_wrong_usage(run: Run, normal: Path, options: tuple[str, str], message: str) -> None:
    result = run("monitor", "query", normal, *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_stats(run: Run, normal: Path) -> None:
    stats = run("monitor", "stats", normal, "--json").json()
    low = sum(synthetic.record(n)["prediction"]["confidence"] < 0.6 for n in range(800))
    assert stats["records"]["reasons"] == {"condition": low, "baseline": 800 - low}
    assert (stats["counters"]["seen"], stats["counters"]["dropped"]["duplicate"]) == (9000, 199)
    text = run("monitor", "stats", normal).out
    assert "dropped    199 (duplicate 199)" in text and "records    800 from 2026-11-02T00:00:00" in text


@pytest.mark.slow
def test_drift_is_silent_and_speaks(run: Run, normal: Path, shifted: Path, baseline: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    synthetic.write(same, [synthetic.record(n) for n in range(1000, 1600)])
    result = run("monitor", "drift", same, "--baseline", baseline, "--fail-on", "drift", "--fail-on", "no-data")
    assert result.code == 0 and result.out.startswith("ok: 600 records")
    result = run("monitor", "drift", shifted, "--baseline", baseline, "--fail-on", "drift")
    assert result.code == 5 and result.out.startswith("drift: 600 records")
    assert "! attention.border" in result.out
    reply = run("monitor", "drift", shifted, "--baseline", baseline, "--json")
    assert (reply.code, reply.json()["verdict"]) == (0, "drift")
    assert reply.json()["windows"][0]["statistics"][0]["name"] == "attention.border"


def test_not_enough_data_is_an_answer(run: Run, normal: Path, baseline: Path) -> None:
    """The baseline's own records are not compared with it: none is newer."""
    result = run("monitor", "drift", normal, "--baseline", baseline, "--fail-on", "drift")
    assert (result.code, result.out) == (0, "not enough data: 0 records, no records\n")
    assert run("monitor", "drift", normal, "--baseline", baseline, "--fail-on", "no-data").code == 5


def test_drift_refuses(run: Run, normal: Path, baseline: Path, tmp_path: Path) -> None:
    assert run("monitor", "drift", normal, "--baseline", baseline, "--window", 499).code == 2
    assert run("monitor", "drift", normal, "--baseline", tmp_path / "none.json").code == 1
    assert "contains no records" in run("monitor", "drift", tmp_path, "--baseline", baseline).sentence
    few = tmp_path / "few"
    synthetic.write(few, [synthetic.record(n) for n in range(20)])
    assert "a baseline needs 500" in run("monitor", "baseline", few, "-o", tmp_path / "b.json").sentence
    assert not (tmp_path / "b.json").exists()


def test_prune(run: Run, tmp_path: Path) -> None:
    for pid in range(3):
        synthetic.write(tmp_path, [synthetic.record(1000 * pid + n) for n in range(10)], pid=pid)
    counters.CountersFile(tmp_path).write({"seen": 30})
    orphan = tmp_path / "files" / "20261102" / "00" / "0193a3c0-0000-7000-8000-000000000000-heatmap.png"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"left behind")
    os.utime(orphan, (time.time() - 7200,) * 2)
    result = run("monitor", "prune", tmp_path, "--max-records", 15, "--json").json()
    assert (result["segments_removed"], result["records"], result["pictures_removed"]) == (2, 10, 1)
    assert not orphan.exists()
    assert run("monitor", "query", tmp_path).out.count("\n") == 10
    assert run("monitor", "prune", tmp_path, "--max-bytes", "much").code == 2
    assert run("monitor", "prune", tmp_path / "files").code == 1


def test_schema(run: Run) -> None:
    assert run("monitor", "schema").json() == schema()
