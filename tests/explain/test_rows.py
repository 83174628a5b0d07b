"""`Explainer(rows=…)`: rows in each run of methods that run the model many times, fixed or chosen by measurement."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest

from onnxcam import runtime
from onnxcam.diagnose.shift.comparison import compare
from onnxcam.errors import ModelError, SettingError
from onnxcam.explain.explainer import Explainer
from onnxcam.fleet import Explain
from onnxcam.runtime.row_choice import RowChoice
from tests.cam import net

CPU = ["CPUExecutionProvider"]
TARGET = [4, 0, 2]
SHORT: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 9}, "smoothgrad": {"samples": 9}, "occlusion": {"window": 7, "stride": 5},
    "rise": {"masks": 25}, "scorecam": {}, "ablationcam": {"channels": 5}, "reciprocam": {},
}  # fmt: skip


def attribute(explainer: Explainer, name: str) -> np.ndarray:
    values = explainer.attribute(net.pictures(), TARGET, name, normalize="none", **SHORT[name])
    return np.asarray(values)


@cache
def explainer_of(rows: int | None) -> Explainer:
    return Explainer(net.model(), layers=[net.LAYER], providers=CPU, rows=rows)


@pytest.mark.parametrize("name", SHORT)
def test_rows_change_floats_by_rounding_alone(name: str) -> None:
    """Whatever is measured: the first calls compare numbers of rows, and go on with the one that was chosen."""
    want = attribute(explainer_of(1), name)
    scale = np.abs(want).max()
    for rows in (3, 64):
        values = attribute(explainer_of(rows), name)
        assert np.abs(values - want).max() <= 1e-5 * scale
        assert np.array_equal(attribute(explainer_of(rows), name), values), "no clock decides"
    for _ in range(3):
        assert np.abs(attribute(explainer_of(None), name) - want).max() <= 1e-5 * scale


@pytest.mark.parametrize("rows", [0, -1, 2.0, True, "4"])
def test_what_is_no_number_of_rows_is_refused(rows: Any) -> None:
    with pytest.raises(SettingError, match="expected a whole number from 1"):
        Explainer(net.model(), providers=CPU, rows=rows)


def test_a_model_that_fixes_its_rows_takes_no_other_number() -> None:
    with pytest.raises(SettingError, match="runs 2 rows at a time"):
        Explainer(net.model(batch=2), layers=[net.LAYER], providers=CPU, rows=4)
    explainer = Explainer(net.model(batch=2), layers=[net.LAYER], providers=CPU, rows=2)
    assert explainer.sessions.rows == 2


def test_the_record_states_fixed_rows() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*net.SIZE, 3), np.uint8)
    for rows in (None, 3):
        explainer = Explainer(net.model(), layers=[net.LAYER], preprocess="0..1", providers=CPU, rows=rows)
        assert explainer.explain(picture, method="saliency").to_dict()["model"].get("rows") == rows


def test_they_are_pickled() -> None:
    explainer = Explainer(net.model(), layers=[net.LAYER], providers=CPU, rows=5)
    assert pickle.loads(pickle.dumps(explainer)).sessions.rows == 5


def test_fleets_and_comparisons_take_them_from_the_file() -> None:
    """Workers would otherwise round differently, and so would two comparisons of the same models."""
    model = net.model()
    assert Explain(model.SerializeToString(), preprocess="0..1", method="saliency").explainer.sessions.rows == 1
    assert Explain(model.SerializeToString(), preprocess="0..1", rows=6).explainer.sessions.rows == 6
    pictures = [np.random.default_rng(k).integers(0, 256, (*net.SIZE, 3), np.uint8) for k in range(3)]
    opened = Explainer(model, layers=[net.LAYER], preprocess="0..1", providers=CPU)
    shift = compare(opened, net.model(batch=2), pictures, layer=net.LAYER)
    assert shift.new.sessions.rows == 2 == shift.to_dict()["rows"]
    assert opened.sessions.rows is None, "the caller's own explainer stays as it is"


def test_a_comparison_fixes_the_rows_of_the_callers_own_explainers_for_its_time_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No clock decides in it, and afterwards, or in another thread meanwhile, the rows are chosen as before."""
    pictures = [np.random.default_rng(k).integers(0, 256, (*net.SIZE, 3), np.uint8) for k in range(2)]
    pair = [Explainer(net.model(), layers=[net.LAYER], preprocess="0..1", providers=CPU) for _ in range(2)]
    within: list[tuple[int | None, int | None]] = []
    for explainer in pair:
        batch_maps = explainer.batch_maps

        def recorded(*arguments: Any, explainer: Explainer = explainer, batch_maps: Any = batch_maps) -> Any:
            with ThreadPoolExecutor(1) as pool:
                within.append((explainer.sessions.rows, pool.submit(lambda: explainer.sessions.rows).result()))
            return batch_maps(*arguments)

        monkeypatch.setattr(explainer, "batch_maps", recorded)
        monkeypatch.setattr(explainer.sessions, "row_choice", None)  # calling it would fail
    shift = compare(*pair, pictures, layer=net.LAYER, method="scorecam")
    assert within and set(within) == {(1, None)}
    assert [explainer.sessions.rows for explainer in pair] == [None, None]
    assert shift.to_dict()["rows"] == 1 and shift.distance == 0


@pytest.mark.parametrize("name", ["integrated_gradients", "rise", "ablationcam"])
def test_rows_that_do_not_fit_into_memory_are_halved(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of four rows fails, as on a device whose memory is full: fewer are run, and the map is the same."""
    run, failed = runtime.run, []

    def short(session: Any, outputs: Any, feeds: Any) -> Any:
        rows = max(len(value) for value in feeds.values())
        if rows > 3:  # the pictures themselves are three
            failed.append(rows)
            raise ModelError("Failed to allocate memory")
        return run(session, outputs, feeds)

    want = attribute(explainer_of(1), name)
    explainer = Explainer(net.model(), layers=[net.LAYER], providers=CPU)
    choices: list[RowChoice] = []

    def choice(key: Any, most: int) -> RowChoice:
        if not choices:
            choices.append(RowChoice(most))
            choices[0]._try(4)
        return choices[0]

    monkeypatch.setattr(explainer.sessions, "row_choice", choice)
    monkeypatch.setattr(runtime, "run", short)
    assert np.abs(attribute(explainer, name) - want).max() <= 1e-5 * np.abs(want).max()
    assert failed == [4] and choices[0].settled == 1
