"""How many rows a run has, from the times of the runs that were made: on a simulated clock."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from onnxcam.runtime.row_choice import FixedRows, RowChoice

Cost = Callable[[int], float]  # rows -> seconds of a run


def linear(rows: int) -> float:
    """A run without overhead: more rows gain nothing."""
    return 3.0 * rows


def overhead(rows: int) -> float:
    """Reading the weights costs as much as 50 rows."""
    return 50.0 + rows


def cache(rows: int) -> float:
    """Two rows fit into the cache, four do not."""
    return {1: 3.0, 2: 4.0}.get(rows, 5.0 * rows)


def work(
    choice: RowChoice, total: int, cost: Cost, noise: Callable[[], float] = lambda: 1.0
) -> tuple[list[int], float]:
    """Run `total` rows; the rows of each run, and the seconds that all took."""
    sizes, seconds, done = [], 0.0, 0
    while done < total:
        rows = choice.next(total - done)
        assert 1 <= rows <= total - done
        sizes.append(rows)
        duration = cost(rows) * noise()
        choice.record(rows, duration)
        seconds += duration
        done += rows
    return sizes, seconds


@pytest.mark.parametrize(("cost", "best"), [(linear, 1), (overhead, 256), (cache, 2)])
def test_the_number_that_pays_is_chosen(cost: Cost, best: int) -> None:
    choice = RowChoice(256)
    work(choice, 5000, cost)
    assert choice.settled == best
    assert set(work(choice, 4 * best, cost)[0]) == {best}


def test_the_bound_holds() -> None:
    choice = RowChoice(48)
    sizes, _ = work(choice, 1000, overhead)
    assert choice.settled == 48 == max(sizes)
    assert RowChoice(1).settled == 1
    assert work(RowChoice(1), 3, overhead)[0] == [1, 1, 1]


def test_measuring_costs_little() -> None:
    """Where single rows are best, no more than four rows are ever run together, and few times."""
    sizes, seconds = work(RowChoice(16), 50, lambda rows: linear(rows) * (1.0 if rows == 1 else 1.05))
    assert max(sizes) == 4 and sizes.count(2) <= 7 and sizes.count(4) <= 3
    assert seconds <= 1.03 * 50 * linear(1)
    _, first = work(RowChoice(64), 512, overhead)
    assert first <= 1.5 * 512 / 64 * overhead(64), "a tail that gains is soon at the largest number"


@pytest.mark.parametrize("seed", range(20))
def test_a_disturbed_machine_does_not_decide(seed: int) -> None:
    """Runs that other work makes up to twice as long, by chance: what is chosen is at most a little slower."""
    rng = np.random.default_rng(seed)
    choice = RowChoice(16)
    work(choice, 400, lambda rows: 3.0 * rows * (1.0 if rows == 1 else 1.3), lambda: 1.0 + rng.random() ** 2)
    assert choice.settled == 1
    choice = RowChoice(16)
    work(choice, 2000, lambda rows: 3.0 + rows, lambda: 1.0 + rng.random() ** 2)
    assert (choice.settled or 0) >= 8


def test_a_machine_that_slows_down_favours_neither() -> None:
    calls = iter(range(10**6))
    choice = RowChoice(16)
    work(choice, 200, linear, lambda: 1.1 ** min(next(calls), 40))
    assert choice.settled == 1
    calls = iter(range(10**6))
    choice = RowChoice(16)
    work(choice, 400, lambda rows: 3.0 * rows + 1.5, lambda: 0.97 ** min(next(calls), 40))
    assert (choice.settled or 0) >= 4


def test_a_run_of_fewer_rows_than_were_planned_is_not_waited_for() -> None:
    """Three rows at a time: four never fit, and the comparison stays open without harm."""
    choice = RowChoice(16)
    for _ in range(30):
        sizes, _ = work(choice, 3, overhead)
        assert max(sizes) <= 3
    assert choice.next(100) in (2, 4, 8)


def test_threads_share_a_choice() -> None:
    choice = RowChoice(64)
    threads = [threading.Thread(target=work, args=(choice, 2000, overhead)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert choice.settled == 64


def test_fixed_rows_read_no_clock() -> None:
    rows = FixedRows(5)
    rows.record(5, 1.0)
    assert rows.next(100) == rows.next(2) == 5, "the last run is padded, or cut off by its caller"


def test_what_fails_is_not_tried_again() -> None:
    choice = RowChoice(64)
    for _ in range(20):
        rows = choice.next(100)
        if rows >= 8:
            break
        choice.record(rows, 1.0)
    assert rows == 8 and choice.fail(8) and choice.settled is not None
    assert choice.settled < 8 and choice.next(100) == choice.settled
    assert choice.fail(choice.settled) and choice.next(100) == 1, "memory that was there before is not any more"
    assert not choice.fail(1), "a single row has to work"
    assert not FixedRows(4).fail(4)


def test_a_clock_that_stands_still_decides_nothing_wrong() -> None:
    choice = RowChoice(16)
    for remaining in range(100, 0, -1):
        rows = choice.next(remaining)
        assert 1 <= rows <= min(16, remaining)
        choice.record(rows, 0.0)
    assert choice.settled is not None
