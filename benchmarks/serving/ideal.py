"""The ideal queue that a server's waiting times are measured against."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Moments, in seconds, at which requests arrive independently of each other at this rate."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, size=int(2 * rate * seconds) + 20)
    moments = np.cumsum(gaps)
    return [float(moment) for moment in moments[moments < seconds]]


def queue(arrivals: Sequence[float], services: Sequence[float], servers: int) -> list[float]:
    """Seconds from each arrival to its answer in a queue that loses no time: first come, first served.

    Arguments:
        arrivals: moments in order.
        services: seconds that each of them is served for, by one of the servers.
        servers: how many there are.
    """
    free = [0.0] * servers
    times = []
    for arrival, service in zip(arrivals, services, strict=True):
        end = max(heapq.heappop(free), arrival) + service
        heapq.heappush(free, end)
        times.append(end - arrival)
    return times


def p99(arrivals: Sequence[float], measured: Sequence[float], servers: int, draws: int = 50, seed: int = 1234) -> float:
    """The 99th percentile of the ideal queue for these arrivals, its service times drawn from the measured ones."""
    rng = np.random.default_rng(seed)
    pool = np.asarray(measured)
    times = [queue(arrivals, rng.choice(pool, len(arrivals)).tolist(), servers) for _ in range(draws)]
    return float(np.percentile(np.concatenate(times), 99))
