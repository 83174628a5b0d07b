"""Methods of many runs: they tell how far they are, can be stopped, draw the same numbers again, and hold little."""

from __future__ import annotations

import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest

from onnxcam import runtime
from onnxcam.cam.methods import INPUT, find, methods
from onnxcam.explain.explainer import Explainer
from tests.cam import net
from tests.support import models

CPU = ["CPUExecutionProvider"]
TARGET = [4, 0, 2]
LONG: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 9},
    "smoothgrad": {"samples": 9},
    "occlusion": {"window": 7, "stride": 5},
    "rise": {"masks": 25},
}


@pytest.fixture(scope="module", params=["open", "fixed"])
def explainer(request: pytest.FixtureRequest) -> Explainer:
    return Explainer(net.model(batch=2 if request.param == "fixed" else "N"), layers=[net.LAYER], providers=CPU)


def test_the_long_ones_are_known() -> None:
    assert set(LONG) == {name for name in methods(INPUT) if find(name).long}


@pytest.mark.parametrize("name", LONG)
def test_progress_goes_up_to_one_total(explainer: Explainer, name: str) -> None:
    calls: list[tuple[int, int]] = []
    if explainer.batch_size is None:  # how many runs there are is then no matter of a clock
        explainer = Explainer(net.model(batch="N"), layers=[net.LAYER], providers=CPU, rows=2)
    explainer.attribution(
        net.pictures(), TARGET, name, progress=lambda done, total: calls.append((done, total)), **LONG[name]
    )
    done, totals = zip(*calls, strict=True)
    assert len(set(totals)) == 1 and len(done) > 3
    assert list(done) == sorted(set(done)) and done[-1] == totals[0]


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_it_stops_at_once_and_the_explainer_goes_on(
    explainer: Explainer, name: str, error: type[BaseException]
) -> None:
    before = explainer.attribution(net.pictures(), TARGET, name, **LONG[name])
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 2:
            raise error("enough")

    with pytest.raises(error, match="enough"):
        explainer.attribution(net.pictures(), TARGET, name, progress=stop, **LONG[name])
    assert len(calls) == 2
    assert np.array_equal(explainer.attribution(net.pictures(), TARGET, name, **LONG[name]), before)


@pytest.mark.parametrize("name", LONG)
def test_an_interrupted_run_leaves_the_explainer_usable(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Ctrl-C arrives while the model runs."""
    before = explainer.attribution(net.pictures(), TARGET, name, **LONG[name])
    real, runs = runtime.run, []

    def interrupted(*arguments: Any) -> Any:
        runs.append(arguments)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            explainer.attribution(net.pictures(), TARGET, name, **LONG[name])
    assert np.array_equal(explainer.attribution(net.pictures(), TARGET, name, **LONG[name]), before)


@pytest.mark.parametrize("name", ["smoothgrad", "rise"])
def test_a_seed_means_the_same_numbers_in_every_thread(explainer: Explainer, name: str) -> None:
    want = explainer.attribution(net.pictures(), TARGET, name, seed=3, **LONG[name])
    attributions: list[np.ndarray] = []

    def work() -> None:
        attributions.append(explainer.attribution(net.pictures(), TARGET, name, seed=3, **LONG[name]))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(attributions) == 3 and all(np.array_equal(one, want) for one in attributions)
    assert not np.allclose(explainer.attribution(net.pictures(), TARGET, name, seed=4, **LONG[name]), want)


MANY: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 100},
    "smoothgrad": {"samples": 100},
    "occlusion": {"window": 16, "stride": 12},
    "rise": {"masks": 100},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "smoothgrad" else ()) for n in MANY])
def test_memory_does_not_grow_with_the_variants(name: str) -> None:
    """100 copies of this picture are 60 MB; a run holds 8, the copies and what is made of them a few times over."""
    explainer = Explainer(models.tiny_cnn(size=224, width=2), providers=CPU)
    picture = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    explainer.attribution(picture, 0, "saliency")  # sessions are not counted
    explainer.attribution(picture, 0, name, **MANY[name])
    tracemalloc.start()
    explainer.attribution(picture, 0, name, **MANY[name])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 40 << 20
