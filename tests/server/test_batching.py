"""Rows of several requests in one run: each gets its own answer, and it is `Explainer`'s."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam.explain.explainer import Explainer
from onnxcam.server import create_app, gain
from onnxcam.server.batching import Batcher
from onnxcam.server.models import Model
from onnxcam.server.scheduler import Scheduler
from tests.support.models import tiny_cnn


@pytest.fixture(scope="module")
def tiny() -> Explainer:
    return onnxcam.Explainer(tiny_cnn(), preprocess="raw", layers=["relu1", "relu2"], probe=False)


def rows(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(1, 3, 32, 32)).astype(np.float32) for _ in range(count)]


class Gated:
    """Runs that wait to be let go, so that others queue up."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.gate = threading.Event()
        self.sizes: list[int] = []

    def __call__(self, items: Sequence[Any]) -> Any:
        self.sizes.append(len(items))
        assert self.gate.wait(20)
        return self.inner(items)


def wait_for(condition: Any) -> None:
    for _ in range(5000):
        if condition():
            return
        threading.Event().wait(0.002)
    raise AssertionError("it did not come about")


def test_items_of_one_key_share_a_run_and_none_waits_for_company() -> None:
    work = Gated(lambda items: [item * 10 for item in items])
    batcher: Batcher[int, int] = Batcher(work, places=1, most=3)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher, "a", 1)
        wait_for(lambda: work.sizes == [1])  # alone, at once
        others = [pool.submit(batcher, "b" if item == 4 else "a", item) for item in range(2, 8)]
        wait_for(lambda: len(batcher._waiting) == 6)
        work.gate.set()
        assert [future.result(20) for future in (first, *others)] == [item * 10 for item in range(1, 8)]
    assert sorted(work.sizes) == [1, 1, 2, 3] and not batcher._waiting and batcher._running == 0


def test_a_run_that_fails_fails_for_its_items_alone() -> None:
    def fail(items: Sequence[int]) -> list[int]:
        if 2 in items:
            raise ValueError("two")
        return list(items)

    work = Gated(fail)
    batcher: Batcher[int, int] = Batcher(work, places=1, most=2)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher, 0, 1)
        wait_for(lambda: work.sizes == [1])
        second = pool.submit(batcher, 0, 2)
        wait_for(lambda: len(batcher._waiting) == 1)
        third = pool.submit(batcher, 0, 3)
        wait_for(lambda: len(batcher._waiting) == 2)
        fourth = pool.submit(batcher, 0, 4)
        wait_for(lambda: len(batcher._waiting) == 3)
        work.gate.set()
        assert first.result(20) == 1 and fourth.result(20) == 4
        for future in (second, third):
            with pytest.raises(ValueError, match="two"):
                future.result(20)
    assert batcher._running == 0


@pytest.mark.parametrize(
    "values", [{}, {"layer": "relu1", "method": "layercam"}, {"top": 2}, {"layer": ["relu1", "relu2"]}]
)
def test_answers_of_shared_runs_are_those_of_explainer(tiny: Explainer, values: dict[str, Any]) -> None:
    model = Model("tiny", tiny, "always", rows=8)
    batch = rows(6)
    targets: list[Any] = [None] * 6 if "top" in values else [None, 3, None, 1, 0, 4]
    work = Gated(model._map_together)
    model._mapped = Batcher(work, places=1, most=8)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(model.maps, model.question({**values, "target": targets[0]}), batch[0])]
        wait_for(lambda: work.sizes == [1])
        for row, target in zip(batch[1:], targets[1:], strict=True):
            futures.append(pool.submit(model.maps, model.question({**values, "target": target}), row))
        wait_for(lambda: len(model._mapped._waiting) == 5)
        work.gate.set()
        results = [future.result(20) for future in futures]
    assert work.sizes == [1, 5]
    for row, target, result in zip(batch, targets, results, strict=True):
        expected = tiny.batch_maps(model.question({**values, "target": target}), row)[0]
        mine = result.maps[0]
        assert mine.classes[result.start].tolist() == expected.classes[0].tolist()
        assert np.allclose(result.scores, expected.scores, rtol=1e-6, atol=1e-6)
        for one, other in zip(mine.maps, expected.maps, strict=True):
            assert np.abs(one[result.start] - other[0]).max() <= 1e-6 * np.abs(other).max()


def test_scores_of_shared_runs_are_those_of_explainer(tiny: Explainer) -> None:
    model = Model("tiny", tiny, "never", rows=4)
    work = Gated(model._score_together)
    model._scored = Batcher(work, places=1, most=4)
    batch = rows(5, seed=1)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(model.scores, batch[0])]
        wait_for(lambda: work.sizes == [1])
        futures += [pool.submit(model.scores, row) for row in batch[1:]]
        wait_for(lambda: len(model._scored._waiting) == 4)
        work.gate.set()
        for row, future in zip(batch, futures, strict=True):
            expected = tiny.batch_scores(row)
            assert np.abs(future.result(20) - expected).max() <= 1e-6 * np.abs(expected).max()
    assert work.sizes == [1, 4]


def test_rows_that_affect_each_other_never_share_a_run(tiny: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Explainer, "batch_size", property(lambda self: 1))
    assert Model("tiny", tiny, "always", rows=8).rows == 1


def test_a_fixed_batch_is_filled_up() -> None:
    explainer = onnxcam.Explainer(tiny_cnn(batch=4), preprocess="raw", probe=False)
    model = Model("fixed", explainer, "always")
    assert gain.pays(model) == 4
    scheduler = Scheduler(2, 4, 1000, 1.0)
    gain.apply(model, 4, scheduler)
    assert model.rows == 4 and scheduler.threads == 8


def test_what_pays_is_measured(tiny: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose run costs a constant gains by rows; one whose rows cost their number does not."""
    now = [0.0]
    monkeypatch.setattr(gain.time, "perf_counter", lambda: now[0])

    def measured(cost: Any) -> int:
        def batch_maps(self: Any, question: Any, batch: np.ndarray) -> list[Any]:
            now[0] += cost(len(batch))
            return []

        monkeypatch.setattr(Explainer, "batch_maps", batch_maps)
        return gain.pays(Model("tiny", tiny, "always"))

    assert measured(lambda rows: 0.01 * rows) == 1
    assert measured(lambda rows: 0.01 + 0.009 * rows) == 16
    assert measured(lambda rows: 0.1 + 0.1 * max(rows - 8, 0)) == 8
    assert measured(lambda rows: 1.5 * rows) == 1


def test_a_request_ends_the_measurement(tiny: Explainer) -> None:
    with pytest.raises(gain.Busy):
        gain.pays(Model("tiny", tiny, "always"), lambda: False)


def test_the_unsure_rows_of_a_batch_are_explained(tiny: Explainer) -> None:
    model = Model("tiny", tiny, "always")
    batch = np.concatenate(rows(8, seed=3))
    confidence = tiny.predict(batch).max(axis=1)
    threshold = float(np.median(confidence))
    prediction = model.predict(
        model.question({"target": [*range(5), 0, 1, 2]}), model.condition(f"confidence < {threshold}"), batch
    )
    fired = np.flatnonzero(confidence < threshold)
    assert np.flatnonzero(prediction.fired).tolist() == fired.tolist() and 0 < len(fired) < 8
    assert prediction.explained is not None
    assert prediction.explained.maps[0].classes[:, 0].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2][row] for row in fired]


def test_predictions_alone_compute_no_gradient(tiny: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a map was computed")

    model = Model("tiny", tiny, "always")
    monkeypatch.setattr(Explainer, "batch_maps", fail)
    batch = rows(1)[0]
    assert model.predict(model.question({}), model.condition("confidence < 0"), batch).explained is None
    assert model.predict(model.question({}), model.condition("never"), batch).explained is None
    assert model.predict(None, True, batch).explained is None


@pytest.mark.parametrize("when", ["always", "never"])
def test_a_model_runs_as_often_side_by_side_as_it_has_places(
    tiny: Explainer, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads beyond that read and draw meanwhile."""
    name = "batch_maps" if when == "always" else "batch_scores"
    lock, running, most, inner = threading.Lock(), [0], [0], getattr(Explainer, name)

    def run(self: Explainer, *args: Any) -> Any:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.01)
        try:
            return inner(self, *args)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr(Explainer, name, run)
    for places in (1, 2):
        model, most[0] = Model("tiny", tiny, when, places=places), 0
        with ThreadPoolExecutor(6) as pool:
            predict = functools.partial(model.predict, model.question({}), model.condition(when))
            assert len(list(pool.map(predict, rows(12)))) == 12
        assert most[0] == places


@pytest.mark.parametrize(("threads", "expected"), [(None, (4, 3)), (2, (2, 2))])
def test_one_thread_more_than_cores_by_default(
    tiny: Explainer, threads: int | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcam.server.app.cores", lambda: 3)
    scheduler = create_app(tiny, threads=threads, rows=1).state.onnxcam.scheduler
    assert (scheduler.threads, scheduler.places) == expected
