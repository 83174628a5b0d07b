"""A simulated week at fifty requests a second: rate, budget and retention hold to the record, and the books balance."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcam.monitor import hook
from onnxcam.monitor.folder import Folder
from onnxcam.monitor.hook import Monitor
from tests.monitor.monitoring import CLASSES, SMALL, FakeClock, Stub, balanced, pictures
from tests.monitor.test_admission import most_over_rate

STEP, PER_SECOND = 4, 50  # rows arrive in batches of so many seconds
BUDGET = 5000


@pytest.mark.slow
@pytest.mark.parametrize(("days_long", "retain"), [(2, 2 << 20), pytest.param(7, 8 << 20, marks=pytest.mark.soak)])
def test_a_week_at_fifty_requests_a_second(
    days_long: int, retain: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = retain // 8
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    clock = FakeClock(1_799_971_200.0)  # a midnight, UTC
    folder = Folder(tmp_path, retain_bytes=retain, segment_bytes=segment, sync=False, min_free=0, clock=clock.time)
    written: list[tuple[float, str]] = []

    class Sink:
        def write(self, record: dict[str, Any], files: Any) -> None:
            folder.write(record, files)
            written.append((datetime.fromisoformat(record["ts"]).timestamp(), record["trigger"]["reason"]))

        def close(self, timeout: float) -> None:
            folder.close(timeout)

    monitor = Monitor(
        SMALL,
        sink=Sink(),
        when="confidence < 0.6",
        baseline_sample=0.01,
        rate="2/s",
        daily_budget=BUDGET,
        worker="inline",
        duplicates=0,
        clock=clock,
        seed=1,
    )
    rows = STEP * PER_SECOND
    rng = np.random.default_rng(0)
    # a batch of each: quiet traffic, usual traffic, an incident
    kinds = [rng.normal(scale=s, size=(rows, CLASSES)).astype(np.float32) for s in (12.0, 4.0, 0.5)]
    tensor = np.broadcast_to(pictures(1, 8), (rows, 3, 8, 8))
    total = heaviest = 0
    for step in range(days_long * 86400 // STEP):
        hour = step * STEP // 3600 % 24
        monitor.observe(kinds[2 if hour == 15 else int(6 <= hour < 22)], tensor=tensor)
        clock.now += STEP
        total += rows
        if step % (3600 // STEP) == 0:
            assert balanced(monitor.stats())
            heaviest = max(heaviest, sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()))
    stats = monitor.stats()
    monitor.close(5)

    assert stats["seen"] == total == days_long * 86400 * PER_SECOND
    assert balanced(stats) and stats["queued"] == stats["running"] == stats["failed"] == 0
    assert stats["explained"] == len(written)
    assert stats["baseline"] == sum(reason == "baseline" for _, reason in written)
    days = Counter(int(moment // 86400) for moment, _ in written)
    assert set(days.values()) <= set(range(BUDGET + 1)) and max(days.values()) == BUDGET
    assert most_over_rate([moment for moment, _ in written], 2.0) <= 2.0
    assert len(days) == days_long
    for day in days:  # no day without its baseline
        assert sum(int(m // 86400) == day and reason == "baseline" for m, reason in written) >= BUDGET // 10
    assert retain / 2 < heaviest <= retain + segment
    records = [json.loads(line) for path in tmp_path.glob("records/*.jsonl") for line in path.read_text().splitlines()]
    moments = sorted(datetime.fromisoformat(record["ts"]).timestamp() for record in records)
    assert moments == [moment for moment, _ in written][-len(records) :], "the newest are kept, whole"
