"""Prometheus metrics of a server, with a bounded number of series: no label comes from a request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnxcam.server.scheduler import Scheduler

_PREFIX = "onnxcam_server_"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# set by the parent of several workers, see `onnxcam.server.run`
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """Counters of requests and predictions; nothing is counted unless `enabled`.

    Arguments:
        enabled: whether they are exported; prometheus_client is imported only then.

    Raises:
        DependencyError: prometheus_client is not installed.
    """

    def __init__(self, enabled: bool = False) -> None:
        self.enabled = enabled
        if not enabled:
            return
        from onnxcam.monitor.metrics import import_prometheus

        client = import_prometheus()
        self.registry = client.CollectorRegistry()
        self._client = client
        arguments = {"registry": self.registry}
        self._requests = client.Counter(
            f"{_PREFIX}requests", "Requests answered, by route and status", ["route", "status"], **arguments
        )
        self._seconds = client.Histogram(
            f"{_PREFIX}request_seconds", "Time from a request to its answer", ["route"], buckets=_SECONDS, **arguments
        )
        self._predictions = client.Counter(f"{_PREFIX}predictions", "Rows predicted", ["model"], **arguments)
        self._explained = client.Counter(f"{_PREFIX}explained", "Rows explained", ["model"], **arguments)

    def watch(self, scheduler: Scheduler) -> None:
        """Export the queue of this process."""
        if self.enabled:
            self.registry.register(_Queue(scheduler))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer; `route` is the path of a route, never a path that a client made up."""
        if self.enabled:
            self._requests.labels(route=route, status=str(status)).inc()
            self._seconds.labels(route=route).observe(seconds)

    def predictions(self, model: str, fired: np.ndarray) -> None:
        """Count the predictions of one run."""
        if self.enabled:
            self._predictions.labels(model=model).inc(len(fired))
            self._explained.labels(model=model).inc(int(fired.sum()))

    def text(self) -> tuple[bytes, str]:
        """The exposition of all processes, and its content type."""
        registry = self.registry
        if os.environ.get(MULTIPROCESS):
            from prometheus_client import multiprocess

            registry = self._client.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
        return self._client.generate_latest(registry), self._client.CONTENT_TYPE_LATEST


class _Queue:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def describe(self) -> Iterator[Any]:
        """Return no metrics: registering reads none."""
        return iter(())

    def collect(self) -> Iterator[Any]:
        """Yield the state of the queue."""
        from prometheus_client.core import GaugeMetricFamily

        queue = self._scheduler
        yield GaugeMetricFamily(f"{_PREFIX}requests_waiting", "Requests in the queue", value=queue.waiting)
        yield GaugeMetricFamily(f"{_PREFIX}requests_running", "Requests that are worked on", value=queue.running)
        yield GaugeMetricFamily(f"{_PREFIX}queue_bytes", "Bytes of the bodies of both", value=queue.bytes)
