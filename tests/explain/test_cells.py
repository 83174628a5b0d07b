"""Maps of boxes from the cells around each, against the whole head differentiated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxcam
import onnxcam.network.manifest
from onnxcam.explain import cells
from onnxcam.targets.scalars import Box
from onnxcam.targets.tasks import Detect, Slab
from tests.support import detectors, scenes
from tests.support.detectors import CLASSES

METHODS = ["hirescam", "layercam", "elementwise", "gradcam", "gradcam++", "xgradcam"]
SCENE = scenes.PICTURES[0]
# corners, edges and the middle of both levels: 16 x 16 and 8 x 8 cells
CANDIDATES = [0, 15, 240, 255, 7, 137, 256, 263, 312, 319, 290]


@pytest.fixture(scope="module")
def detector() -> onnxcam.Explainer:
    return scenes.detector()


def explained(
    explainer: onnxcam.Explainer, picture: Any, monkeypatch: pytest.MonkeyPatch, targets: list[Any], **settings: Any
) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]], list[bool]]:
    """Per method the raw maps of the targets as they come, and by the whole head; and whether cells were enough."""
    answers: list[bool] = []
    several = cells.several

    def noting(*arguments: Any) -> Any:
        maps = several(*arguments)
        answers.append(maps is not None)
        return maps

    both = []
    for stand_in in (noting, lambda *arguments: None):
        monkeypatch.setattr(cells, "several", stand_in)
        explanation = explainer.explain([picture], target=[targets], **settings)[0]
        both.append([[one.raw_map for one in each.maps] for each in explanation.per_method or [explanation]])
    return both[0], both[1], answers


@pytest.mark.slow
def test_every_method_has_the_map_of_the_whole_head(
    detector: onnxcam.Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [Box(index) for index in CANDIDATES] + [Box(137, part="x1"), Box(290, part="y0")]
    near, dense, answers = explained(detector, SCENE, monkeypatch, targets, method=METHODS)
    assert answers and all(answers)
    for method, first, second in zip(METHODS, near, dense, strict=True):
        for one, other in zip(first, second, strict=True):
            assert one.shape == other.shape
            assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max(), method
    assert sum(bool(one.any()) for one in dense[0]) > len(targets) // 2


def test_a_score_is_the_product_with_objectness(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Detect(Slab(0, 4, 8), Slab(5, CLASSES, 8), 8, CLASSES, detectors.count(2, 2), objectness=Slab(4, 1, 8),
                  box_format="cxcywh")  # fmt: skip
    explainer = onnxcam.Explainer(
        detectors.build("yolov5"), task=(("output",), task), preprocess="0..1", probe=False
    )  # fmt: skip
    picture = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).round().astype(np.uint8)
    near, dense, answers = explained(explainer, picture, monkeypatch, [Box(60), Box(215)], method="elementwise")
    assert answers and all(answers)
    for one, other in zip(near[0], dense[0], strict=True):
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max() > 0


@pytest.mark.parametrize(
    ("targets", "settings"),
    [
        ([Box(137) - Box(0)], {}),  # of two cells
        ([Box(137)], {"method": "activationmap"}),
        ([Box(137)], {"method": "shapleycam"}),
        ([Box(137)], {"smooth": "eigen"}),
        ([Box(137, part="score*iou")], {}),
    ],
)
def test_what_needs_the_whole_head_has_it(
    detector: onnxcam.Explainer, monkeypatch: pytest.MonkeyPatch, targets: list[Any], settings: dict[str, Any]
) -> None:
    near, dense, answers = explained(detector, SCENE, monkeypatch, targets, **({"method": "hirescam"} | settings))
    assert not any(answers)
    np.testing.assert_array_equal(near, dense)


def test_a_layer_whose_score_steps_over_cells_is_differentiated_whole(
    detector: onnxcam.Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = "silu_5"  # a stride of 2 lies between it and both levels
    near, dense, answers = explained(detector, SCENE, monkeypatch, [Box(137)], method="hirescam", layer=fine)
    assert answers == [False]
    np.testing.assert_array_equal(near, dense)


def test_a_box_is_explained_by_layercam_where_no_method_is_named(detector: onnxcam.Explainer) -> None:
    assert detector.explain(SCENE).method == "layercam"
    assert detector.question(target=Box(137)).methods[0].name == "layercam"
    manifest = onnxcam.network.manifest.read(onnxcam.augment(scenes.FOLDER / "detector.onnx", probe=False))
    assert manifest is not None and list(manifest["layers"][0]["heatmaps"]) == ["layercam"]
