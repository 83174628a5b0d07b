"""Promise 11: rate and budget are never exceeded by more than one burst, however rows arrive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcam.errors import SettingError
from onnxcam.monitor.admission import (
    DAY,
    DailyBudget,
    Limits,
    Rate,
    RateLimiter,
    Sampler,
    TokenBucket,
    count_fitting,
    parse_rate,
)
from onnxcam.monitor.queue import Candidates, Capacity, RowQueue, Ticket
from tests.support.examples import examples


def most_over_rate(times: Sequence[float], rate: float) -> float:
    """The largest number of events beyond `rate` times its length in any stretch of time, by definition."""
    times = np.sort(np.asarray(times, np.float64))
    if not len(times):
        return 0.0
    ahead = np.arange(len(times)) - rate * times
    return float((ahead - np.minimum.accumulate(ahead)).max() + 1)


@pytest.mark.slow
@examples(60)
@given(
    seed=st.integers(0, 2**32 - 1),
    amount=st.sampled_from([1, 2, 7, 30]),
    period=st.sampled_from([1.0, 60.0]),
    burst=st.sampled_from([None, 1.0, 2.5, 20.0]),
    baseline=st.booleans(),
)
def test_one_hour_of_any_traffic(seed: int, amount: int, period: float, burst: float | None, baseline: bool) -> None:
    rng = np.random.default_rng(seed)
    rate = Rate(amount, period)
    limiter = RateLimiter.of(Limits(rate, burst, None, baseline), 0.0, 0.0)
    capacity = burst if burst is not None else float(amount)
    moments = np.cumsum(rng.exponential(rng.choice([0.01, 0.3, 5.0, 100.0]), 4000) * rng.choice([0.0, 1.0], 4000))
    times = moments[moments < 3600].tolist()
    rows = rng.integers(0, 40, (len(times), 2)).tolist()
    # in one call of five the queue has room for a part only
    parts = np.where(rng.random((len(times), 2)) < 0.2, rng.random((len(times), 2)), 1.0).tolist()
    admitted: list[float] = []
    for now, counts, rooms in zip(times, rows, parts, strict=True):
        for lane in (False, True):
            count = limiter.admit(counts[lane], now, baseline=lane and baseline).admitted
            accepted = min(count, int((count + 1) * rooms[lane]))
            limiter = limiter.spend(accepted, now, baseline=lane and baseline)
            admitted += [now] * accepted
    assert most_over_rate(admitted, rate.per_second) <= max(1.0, capacity) + 1e-6


def test_steady_overload_gets_the_whole_rate() -> None:
    for baseline in (False, True):
        limiter = RateLimiter.of(Limits(Rate(2, 1.0), None, None, baseline), 0.0, 0.0)
        admitted = 0
        for tick in range(36000):
            count = limiter.admit(5, tick / 10).admitted
            limiter = limiter.spend(count, tick / 10)
            admitted += count
        assert 7198 <= admitted <= 7202


def test_a_flood_does_not_silence_the_baseline() -> None:
    limiter = RateLimiter.of(Limits(Rate(2, 1.0), None, 5000, True), 0.0, 0.0)
    unsure = sure = 0
    for tick in range(36000):
        count = limiter.admit(5, tick / 10).admitted
        limiter = limiter.spend(count, tick / 10)
        unsure += count
        if tick % 50 == 0:  # one confident row in 5 s is in the sample
            count = limiter.admit(1, tick / 10, baseline=True).admitted
            limiter = limiter.spend(count, tick / 10, baseline=True)
            sure += count
    assert sure == 500  # a tenth of the day's budget is its own, whatever the flood took
    assert unsure == 4500


def test_a_greedy_baseline_does_not_silence_the_unsure() -> None:
    limiter = RateLimiter.of(Limits(Rate(2, 1.0), None, None, True), 0.0, 0.0)
    admitted = {False: 0, True: 0}
    for tick in range(36000):
        for baseline in (False, True):
            count = limiter.admit(50, tick / 10, baseline=baseline).admitted
            limiter = limiter.spend(count, tick / 10, baseline=baseline)
            admitted[baseline] += count
    assert sum(admitted.values()) <= 7202
    assert admitted[False] > 3000 and admitted[True] > 700


def test_the_first_day_ends_at_midnight_utc_and_each_further_one_a_day_later() -> None:
    noon = 5 * DAY + DAY / 2
    budget = DailyBudget.of(10, monotonic=1000.0, wall=noon)
    budget = budget.take(budget.left(1000.0), 1000.0)
    assert budget.left(1000.0 + DAY / 2 - 1) == 0
    assert budget.left(1000.0 + DAY / 2) == 10
    budget = budget.take(4, 1000.0 + 3.25 * DAY)  # nothing for two days
    assert budget.left(1000.0 + 3.25 * DAY) == budget.left(1000.0 + 3.5 * DAY - 1) == 6
    assert budget.left(1000.0 + 3.5 * DAY) == 10


@pytest.mark.parametrize("jump", [-400 * DAY, -DAY, -3600.0, 3600.0, DAY, 400 * DAY])
@pytest.mark.parametrize("back", [False, True])
def test_a_wall_clock_that_jumps_changes_nothing(jump: float, back: bool) -> None:
    """For an hour, or from then on: as many rows pass in every 24 hours as without it."""

    class Clock:
        def __init__(self) -> None:
            self.now, self.ahead = 0.0, 0.0

        def monotonic(self) -> float:
            return self.now

        def time(self) -> float:
            return 1_799_971_200.0 + self.now + self.ahead

    queued: list[list[int]] = []
    for distance in (0.0, jump):
        clock = Clock()
        queue = RowQueue(Limits(Rate(2, 1.0), None, 100, False), Capacity(10**9, 1 << 40, "drop_newest"), clock)
        queued.append([])
        for hour in range(96):
            clock.now = 3600.0 * hour
            clock.ahead = distance if hour == 30 or (hour > 30 and not back) else 0.0
            for _ in range(10):
                clock.now += 10
                ticket = Ticket()
                ticket.observed = 5
                queued[-1] += queue.admit(ticket, 0, [Candidates([1] * 5, False)])
                assert queue.add(ticket, [], {"error": queued[-1][-1]}) == 0
    assert queued[0] == queued[1] and sum(queued[0]) == 400


def test_bucket_ignores_a_clock_that_goes_back() -> None:
    bucket = TokenBucket.full(1.0, 5.0)
    bucket = bucket.take(bucket.level(100.0), 100.0)
    assert bucket.level(90.0) == 0
    assert bucket.level(100.0) == 0
    assert bucket.level(101.0) == pytest.approx(1.0)
    assert bucket.take(0, 90.0).level(101.0) == pytest.approx(1.0)


def test_nothing_is_spent_by_asking() -> None:
    limiter = RateLimiter.of(Limits(Rate(5, 1.0), None, 100, False), 0.0, 0.0)
    assert [limiter.admit(3, 0.0).admitted for _ in range(10)] == [3] * 10
    lane = limiter.admit(8, 0.0)
    assert lane == (5, 3, 0)
    limiter = RateLimiter.of(Limits(Rate(5, 1.0), None, 2, False), 0.0, 0.0)
    assert limiter.admit(8, 0.0) == (2, 3, 3)


def test_sample_keeps_its_share() -> None:
    sampler, rows = Sampler(1), np.arange(20000)
    sampled = sampler.sample(rows, 0.1)
    assert 1850 < len(sampled) < 2150  # 3.5 standard deviations
    assert len(set(sampled.tolist())) == len(sampled)
    assert len(sampler.sample(rows, 0.0)) == 0
    assert len(sampler.sample(rows, 1.0)) == 20000


def test_fitting_stops_at_the_first_that_does_not() -> None:
    assert count_fitting([10, 10, 10], 3, 25) == 2
    assert count_fitting([30, 1], 2, 25) == 0
    assert count_fitting([10, 10], 1, 100) == 1
    assert count_fitting([], 0, -5) == 0


@pytest.mark.parametrize(
    ("text", "per_second"),
    [("2/s", 2.0), ("30/min", 0.5), (" 500 / h ", 500 / 3600), ("1.5/second", 1.5), ("5000/day", 5000 / DAY), (3, 3.0)],
)
def test_rates(text: str | float, per_second: float) -> None:
    rate = parse_rate(text)
    assert rate is not None and rate.per_second == pytest.approx(per_second)


@pytest.mark.parametrize("text", ["", "2", "2/fortnight", "-1/s", "0/s", 0, -1, True, "two/s", float("inf"), b"2/s"])
def test_what_is_no_rate(text: object) -> None:
    with pytest.raises(SettingError, match="expected such as '2/s'"):
        parse_rate(text)  # type: ignore[arg-type]
