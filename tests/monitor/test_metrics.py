"""Prometheus metrics, read back through the format that a server scrapes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from onnxcam.errors import DependencyError
from onnxcam.monitor import metrics
from onnxcam.monitor.sinks import open_sink
from tests.monitor import samples

STATS = {
    "seen": 100,
    "confident": 70,
    "explained": 9,
    "failed": 1,
    "queued": 3,
    "running": 1,
    "dropped": {"rate": 15, "duplicate": 1},
}


def scraped(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_are_read_when_scraped() -> None:
    registry = CollectorRegistry()
    stats = dict(STATS)
    metrics.export(lambda: stats, registry)
    actual = scraped(registry)
    assert actual[("onnxcam_monitor_rows_seen_total", ())] == 100
    assert actual[("onnxcam_monitor_rows_queued", ())] == 3
    assert actual[("onnxcam_monitor_rows_dropped_total", (("reason", "rate"),))] == 15
    named = ("confident", "explained", "failed")
    total = sum(actual[(f"onnxcam_monitor_rows_{name}_total", ())] for name in named)
    total += actual[("onnxcam_monitor_rows_queued", ())] + actual[("onnxcam_monitor_rows_running", ())]
    total += sum(value for (name, _), value in actual.items() if name == "onnxcam_monitor_rows_dropped_total")
    assert total == 100, "the accounting equation can be checked by whoever scrapes"
    stats["seen"] = 101
    assert scraped(registry)[("onnxcam_monitor_rows_seen_total", ())] == 101


def test_a_monitor_is_asked_for_its_stats() -> None:
    class Monitor:
        def stats(self) -> dict[str, Any]:
            return STATS

    registry = CollectorRegistry()
    collector = metrics.export(Monitor(), registry)
    assert scraped(registry)[("onnxcam_monitor_rows_failed_total", ())] == 1
    registry.unregister(collector)
    assert scraped(registry) == {}


def test_records_are_counted() -> None:
    registry = CollectorRegistry()
    sink = metrics.RecordMetrics(registry)
    again = metrics.RecordMetrics(registry)
    for confidence in (0.21, 0.33, 0.58):
        sink.write(samples.make(confidence=confidence), {})
    baseline = samples.make(trigger={"when": None, "reason": "baseline", "sample": 0.01}, raw_map=np.zeros((7, 7)))
    again.write(baseline, {})
    actual = scraped(registry)
    assert actual[("onnxcam_monitor_records_total", (("reason", "condition"),))] == 3
    assert actual[("onnxcam_monitor_records_total", (("reason", "baseline"),))] == 1
    assert actual[("onnxcam_monitor_zero_maps_total", ())] == 1
    assert actual[("onnxcam_monitor_confidence_ratio_bucket", (("le", "0.35"),))] == 2
    assert actual[("onnxcam_monitor_explain_seconds_sum", ())] == pytest.approx(4 * 0.017)
    assert actual[("onnxcam_monitor_border_energy_ratio_count", ())] == 3, "a map of zeros has no border"


def test_series_stay_few_whatever_requests_and_classes_are_called() -> None:
    registry = CollectorRegistry()
    sink = metrics.RecordMetrics(registry)
    sink.write(samples.make(), {})
    before = len(scraped(registry))
    for k in range(50):
        changes = {"request": f"r{k}", "labels": [f"l{k}{i}" for i in range(3)], "trace": str(k)}
        sink.write(samples.make(**changes), {})
    assert len(scraped(registry)) == before
    many = CollectorRegistry()
    metrics.export(lambda: STATS | {"dropped": {f"reason {k}": 1 for k in range(1000)}}, many)
    assert len(scraped(many)) < 60


def test_names_follow_the_convention() -> None:
    registry = CollectorRegistry()
    metrics.RecordMetrics(registry)
    metrics.export(lambda: STATS, registry)
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        assert family.name.startswith("onnxcam_monitor_") and family.documentation
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_ratio")), "base units"


def test_the_sink_by_its_name_counts_in_the_default_registry(tmp_path: Any) -> None:
    from prometheus_client import REGISTRY

    sink = open_sink([tmp_path, "prometheus:"])
    name, labels = "onnxcam_monitor_picture_bytes_total", {}
    before = REGISTRY.get_sample_value(name, labels) or 0
    sink.write(samples.make(), {"heatmap": bytes(1234)})
    sink.close(1)
    assert REGISTRY.get_sample_value(name, labels) == before + 1234


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(DependencyError, match=r"onnxcam\[prometheus\]"):
        open_sink("prometheus:")
