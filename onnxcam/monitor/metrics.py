"""Prometheus metrics of the monitor's counters and of its records, with a bounded number of series.

    from onnxcam.monitor import metrics

    monitor = onnxcam.Monitor("model.cam.onnx", sink=["/var/log/cam", "prometheus:"], when="confidence < 0.6")
    metrics.export(monitor)        # then serve prometheus_client's registry as usual

No label comes from a request, a class or a picture: the number of series is known in advance.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxcam.errors import DependencyError

_PREFIX = "onnxcam_monitor_"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_RATIOS = tuple(k / 20 for k in range(1, 21))
_REASONS = 32  # reasons for dropping with a series of their own; more would be text from outside
_by_registry: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def import_prometheus() -> Any:
    """Import `prometheus_client`.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import prometheus_client
    except ImportError as error:
        raise DependencyError(
            f'the Prometheus client is missing ({error}); install it: pip install "onnxcam[prometheus]"'
        ) from error
    return prometheus_client


class RecordMetrics:
    """A sink that counts records and stores nothing.

    Arguments:
        registry: of `prometheus_client`; its default one by default. Sinks of the same registry share their counts.
    """

    def __init__(self, registry: Any = None) -> None:
        client = import_prometheus()
        registry = client.REGISTRY if registry is None else registry
        if registry not in _by_registry:
            _by_registry[registry] = _create_metrics(client, registry)
        self._metrics = _by_registry[registry]

    def write(self, record: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Count one explanation."""
        metrics, statistics = self._metrics, record["attention"]
        metrics["records"].labels(reason=record["trigger"]["reason"]).inc()
        metrics["zero"].inc(bool(statistics["zero"]))
        metrics["bytes"].inc(sum(entry["bytes"] for entry in record["files"]))
        for name, value in (
            ("explain", record["latency_ms"].get("explain")),
            ("queued", record["latency_ms"].get("queued")),
        ):
            if value is not None:
                metrics[name].observe(value / 1000)
        for name, value in (
            ("confidence", record["prediction"]["confidence"]),
            ("border", statistics["border"]),
            ("half_area", statistics["half_area"]),
        ):
            if value is not None:
                metrics[name].observe(value)

    def close(self, timeout: float) -> None:
        """Do nothing: the counts stay in the registry."""


def _create_metrics(client: Any, registry: Any) -> dict[str, Any]:
    def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Any:
        return client.Histogram(_PREFIX + name, text, buckets=buckets, registry=registry)

    reasons = client.Counter(_PREFIX + "records", "Explanations recorded", ["reason"], registry=registry)
    for reason in ("condition", "baseline"):
        reasons.labels(reason=reason)
    return {
        "records": reasons,
        "zero": client.Counter(_PREFIX + "zero_maps", "Maps that are zero everywhere", registry=registry),
        "bytes": client.Counter(_PREFIX + "picture_bytes", "Bytes of pictures stored with records", registry=registry),
        "explain": histogram("explain_seconds", "Time to explain one row", _SECONDS),
        "queued": histogram("queued_seconds", "Time a row waited to be explained", _SECONDS),
        "confidence": histogram("confidence_ratio", "Confidence of the predictions recorded", _RATIOS),
        "border": histogram("border_energy_ratio", "Share of the map's energy in the picture's outer tenth", _RATIOS),
        "half_area": histogram(
            "half_energy_area_ratio", "Smallest share of the picture's area with half of the map's energy", _RATIOS
        ),
    }


def export(monitor: Any, registry: Any = None) -> Any:
    """Export a monitor's counters (`monitor.stats()`) to Prometheus; they are read only when scraped.

    Arguments:
        monitor: an `onnxcam.Monitor`, or a function that returns such a dict.
        registry: of `prometheus_client`; its default one by default.

    Returns:
        the collector, for `registry.unregister`.

    Raises:
        DependencyError: `prometheus_client` is not installed.
    """
    client = import_prometheus()
    collector = _Stats(monitor if callable(monitor) else monitor.stats)
    (client.REGISTRY if registry is None else registry).register(collector)
    return collector


def export_coverage(folder: str | os.PathLike[str], registry: Any = None) -> Any:
    """Export what feedback says of a folder's records to Prometheus; read when scraped, at most once a minute.

    Arguments:
        folder: of a monitor.
        registry: of `prometheus_client`; its default one by default.

    Returns:
        the collector, for `registry.unregister`.

    Raises:
        DependencyError: `prometheus_client` is not installed.
    """
    client = import_prometheus()
    collector = _CoverageCollector(Path(folder))
    (client.REGISTRY if registry is None else registry).register(collector)
    return collector


_EVERY = 60.0  # seconds between two readings of a folder


class _CoverageCollector:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read = -math.inf
        self._values: dict[str, tuple[str, float]] = {}

    def describe(self) -> Iterator[Any]:
        """Return no metrics: registering must not read the folder."""
        return iter(())

    def collect(self) -> Iterator[Any]:
        """Yield the newest numbers."""
        from prometheus_client.core import GaugeMetricFamily

        if time.monotonic() - self._read >= _EVERY:
            self._values, self._read = _coverage_values(self._folder), time.monotonic()
        for name, (text, value) in self._values.items():
            yield GaugeMetricFamily(_PREFIX + name, text, value=value)


def _coverage_values(folder: Path) -> dict[str, tuple[str, float]]:
    from onnxcam.errors import OnnxcamError
    from onnxcam.monitor import counters, feedback, reading

    outcomes = feedback.Outcomes(feedback.read(folder))
    try:
        for _ in outcomes.watch(reading.records(folder)):
            pass
    except OnnxcamError:  # no record yet
        return {}
    coverage, _ = outcomes.coverage(counters.total(folder))
    values = {
        "feedback_matched": ("Records whose true class became known", float(outcomes.matched)),
        "feedback_right": ("Those whose prediction was right", float(outcomes.right)),
        "coverage_available": ("1 if the coverage can be tested", float(coverage is not None)),
    }
    if coverage is not None and coverage.coverage is not None:
        values["coverage_ratio"] = ("Share of prediction sets with the true class", coverage.coverage)
        values["coverage_expected_ratio"] = ("The share that they were calibrated for", 1 - coverage.alpha)
        values["coverage_pictures"] = ("Pictures that the share is of", float(coverage.pictures))
        values["coverage_alarm"] = ("1 once the coverage has left its band", float(coverage.alarm is not None))
    return values


_COUNTERS = {
    "seen": "Rows observed",
    "confident": "Rows that did not meet the condition and were not sampled",
    "explained": "Rows explained and recorded",
    "failed": "Rows whose explanation or record failed",
    "lost": "Rows whose records others than retention removed later",
}
_GAUGES = {"queued": "Rows in the queue", "running": "Rows being explained", "queue_bytes": "Bytes in the queue"}


class _Stats:
    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._stats = stats

    def describe(self) -> Iterator[Any]:
        """Return no metrics: registering must not call the monitor."""
        return iter(())

    def collect(self) -> Iterator[Any]:
        """Yield the current counters."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stats = self._stats()
        for name, text in _COUNTERS.items():
            if name in stats:
                yield CounterMetricFamily(f"{_PREFIX}rows_{name}", text, value=stats[name])
        for name, text in _GAUGES.items():
            if name in stats:
                label = name if name.endswith("bytes") else f"rows_{name}"
                yield GaugeMetricFamily(_PREFIX + label, text, value=stats[name])
        dropped = CounterMetricFamily(_PREFIX + "rows_dropped", "Rows not explained, by reason", labels=["reason"])
        reasons = dict(stats.get("dropped", {}))
        for reason in sorted(reasons)[:_REASONS]:
            dropped.add_metric([str(reason)], reasons[reason])
        yield dropped
