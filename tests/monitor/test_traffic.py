"""`top 5%` of recent traffic: exact, the same however calls are cut, and open on its share."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from onnxcam.errors import SettingError
from onnxcam.monitor import traffic
from onnxcam.monitor.traffic import Ranking
from onnxcam.targets.conditions import Top


def by_sorting(values: np.ndarray, share: float, window: int) -> list[bool]:
    decisions = []
    for row, value in enumerate(values):
        past = np.sort(values[max(0, row - window) : row])
        rank = math.floor(share * (len(past) + 1) + 1e-9)
        decisions.append(bool(rank >= 1 and value < past[rank - 1]))
    return decisions


@pytest.mark.parametrize("by", ["confidence", "entropy"])
def test_a_row_is_ranked_among_those_before_it(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr(traffic, "WINDOW", 99)
    values = np.random.default_rng(0).beta(5, 1, 600).round(2)  # with ties
    sign = -1 if by == "entropy" else 1
    for cut in (1, 7, 600):
        ranking = Ranking(Top(0.05, by))
        decisions = np.concatenate([ranking.decide(sign * values[k : k + cut]) for k in range(0, 600, cut)])
        assert decisions.tolist() == by_sorting(values, 0.05, 99)
    assert ranking.describe() == {
        "rows": 99, "warm_up": 19, "threshold": pytest.approx(sign * np.sort(values[-99:])[4])
    }  # fmt: skip


@pytest.mark.slow
def test_it_opens_on_its_share_of_a_stream() -> None:
    # 60 streams of 4,000 rows: the share of each lies in the binomial interval, of all of them in a narrower one
    inside, opened = 0, 0
    rows, begin = 4000, 1000
    for seed in range(60):
        values = np.random.default_rng(seed).beta(8, 1, begin + rows)
        count = int(Ranking(Top(0.05)).decide(values)[begin:].sum())
        opened += count
        inside += abs(count - 0.05 * rows) <= 1.96 * math.sqrt(0.05 * 0.95 * rows) + 1
    assert inside >= 54
    assert abs(opened / (60 * rows) - 0.05) <= 4 * math.sqrt(0.05 * 0.95 / (60 * rows))


def test_it_follows_traffic_that_changes() -> None:
    generator = np.random.default_rng(1)
    ranking = Ranking(Top(0.05))
    ranking.decide(generator.uniform(0.9, 1, 10_000))
    ranking.decide(generator.uniform(0.5, 0.6, 10_000))
    assert ranking.decide(generator.uniform(0.5, 0.6, 2000)).mean() == pytest.approx(0.05, abs=0.02)


def test_equal_rows_open_nothing_and_the_files_threshold_decides_at_first() -> None:
    assert not Ranking(Top(0.05)).decide(np.ones(500)).any()
    first = Ranking(Top(0.05), threshold=0.6)
    assert first.decide(np.array([0.5, 0.7, 0.5])).tolist() == [True, False, True]
    assert first.describe() == {"rows": 3, "warm_up": 19, "threshold": 0.6}
    assert Ranking(Top(0.01, "entropy"), threshold=0.4).decide(np.array([0.5, 0.3])).tolist() == [True, False]
    with pytest.raises(SettingError, match="less than one of the last 9,999 predictions"):
        Ranking(Top(0.00001))


def test_threads_lose_no_row() -> None:
    ranking = Ranking(Top(0.05))
    values = np.random.default_rng(2).random((4, 200))
    threads = [
        threading.Thread(target=lambda k=k: [ranking.decide(row) for row in values[k, :, None]]) for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ranking.describe()["rows"] == 800
    assert ranking.describe()["threshold"] == np.sort(values.ravel())[39]
