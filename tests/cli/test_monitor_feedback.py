"""`onnxcam monitor feedback` and `drift` on folders whose contents are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxcam.monitor import baseline as baselines
from onnxcam.monitor import counters
from tests.cli.conftest import Run
from tests.monitor import synthetic
from tests.monitor.test_coverage import with_set


def test_a_coverage_that_cannot_be_tested_is_no_success(run: Run, tmp_path: Path) -> None:
    synthetic.write(tmp_path / "plain", [synthetic.record(0, request="r0")])
    nothing = run("monitor", "feedback", tmp_path / "plain", "--fail-on", "coverage")
    assert (
        nothing.code == 2 and "coverage: not tested" in nothing.out and "no record has a prediction set" in nothing.err
    )
    assert run("monitor", "feedback", tmp_path / "plain").code == 0
    folder = tmp_path / "sets"
    synthetic.write(folder, [with_set(k, [0]) for k in range(60)])
    none = run("monitor", "feedback", folder, "--fail-on", "coverage")
    assert none.code == 2 and "no record with a set has feedback" in none.err
    table = tmp_path / "truths.csv"
    table.write_text("".join(f"r{k},0\n" for k in range(60)))
    good = run("monitor", "feedback", folder, table, "--fail-on", "coverage", "--json")
    assert good.code == 0 and good.json()["stored"] == 60 and good.json()["coverage"]["covered"] == 60
    table.write_text("".join(f"r{k},1\n" for k in range(60)) + "r0,99999\n")
    bad = run("monitor", "feedback", folder, table, "--fail-on", "coverage")
    assert bad.code == 5 and "below its band" in bad.out
    assert "1 true classes are beyond the largest that records name" in bad.err and "99999 of 'r0'" in bad.err
    counters.CountersFile(folder).write({"seen": 900, "explained": 60, "dropped": {"rate": 40}})
    limited = run("monitor", "feedback", folder, "--fail-on", "coverage")
    assert limited.code == 2 and "the coverage cannot be told: rate, budget or queue dropped 40.0 %" in limited.err
    assert "low-confidence rate is underestimated" in limited.err


@pytest.mark.slow
def test_records_older_than_a_baseline_of_a_table_are_compared(run: Run, tmp_path: Path) -> None:
    synthetic.write(tmp_path / "records", [synthetic.record(n) for n in range(600)])
    document = baselines.build([synthetic.record(n) for n in range(1000, 1600)])[0]
    path = tmp_path / "baseline.json"
    for since in ("2026-11-28T00:00:00.000000Z", document["since"]):
        moment = "2026-11-29T00:00:00.000000Z"
        path.write_text(json.dumps(document | {"since": since, "until": moment}))
        cut = run("monitor", "drift", tmp_path / "records", "--baseline", path, "--json")
        assert cut.json()["verdict"] == "not enough data"
        assert any("600 records are left out" in note and "give --since" in note for note in cut.json()["notes"])
    path.write_text(json.dumps(document | {"since": moment, "until": moment}))  # a table has one time
    whole = run("monitor", "drift", tmp_path / "records", "--baseline", path, "--json")
    assert whole.json()["verdict"] == "ok" and whole.json()["windows"][0]["records"] == 600
