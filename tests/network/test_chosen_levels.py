"""A detector whose layers the user has chosen: each box is explained at the one of them that its scores come from."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.network import manifest as manifests
from onnxcam.targets import Box
from tests.support import detectors
from tests.support.runtime import run

SMALL, LARGE = 17, 100  # a candidate of each level: the first 96 are of the finer one
PICTURE = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8)


@cache
def names() -> tuple[str, str]:
    """The levels' features, by default the layers of the file."""
    small, large = [entry["name"] for entry in onnxcam.Explainer(detectors.build("yolov8")).manifest["layers"]]
    return small, large


@cache
def heads() -> dict[str, str]:
    """The last convolution of each level's scores, which no box's place is computed from."""
    model = detectors.build("yolov8")
    logits = [n for n in model.graph.node if n.op_type == "Conv" and shape_of_weight(model, n)[0] == detectors.CLASSES]
    return dict(zip(("small", "large"), (node.output[0] for node in logits), strict=True))


def shape_of_weight(model: onnx.ModelProto, node: onnx.NodeProto) -> list[int]:
    return next(list(tensor.dims) for tensor in model.graph.initializer if tensor.name == node.input[1])


def exported(layers: list[str]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    model = onnxcam.augment(detectors.build("yolov8"), layers, ("layercam",), probe=False)
    record = manifests.read(model)
    assert record is not None
    return model, record


def explained(source: Any, **options: Any) -> Any:
    return onnxcam.Explainer(source, preprocess="0..1").explain(
        PICTURE, target=[Box(SMALL), Box(LARGE)], method="layercam", **options
    )


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "reversed"])
def test_the_levels_by_name_are_those_by_default(order: int) -> None:
    default = onnxcam.augment(detectors.build("yolov8"), methods=("layercam",), probe=False)
    model, record = exported(list(names()[::order]))
    assert [entry["candidates"] for entry in record["layers"]] == [[[0, 96]], [[96, 120]]][::order]
    expected, actual = explained(default), explained(model)
    assert [one.scalar.layer for one in actual.maps] == list(names())
    for one, other in zip(actual.maps, expected.maps, strict=True):
        np.testing.assert_allclose(one.raw_map, other.raw_map, rtol=1e-5, atol=1e-12)
        assert one.raw_map.any()
    assert not any("level of the feature pyramid" in text for text in actual.warnings)
    batch, boxes = detectors.pictures(1).repeat(2, axis=0), np.array([SMALL, LARGE])
    joined = record["target"]["heatmaps"]["layercam"]
    other = manifests.read(default)["target"]["heatmaps"]["layercam"]  # type: ignore[index]
    a = run(model, {"picture": batch, "box": boxes}, outputs=[joined])[joined]
    b = run(default, {"picture": batch, "box": boxes}, outputs=[other])[other]
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)
    assert a[0].any() and a[1].any()


def test_layers_of_the_class_branches_are_levels_too() -> None:
    _, record = exported([heads()["small"], heads()["large"]])
    assert [entry["candidates"] for entry in record["layers"]] == [[[0, 96]], [[96, 120]]]
    explanation = explained(
        onnxcam.augment(detectors.build("yolov8"), list(heads().values()), ("layercam",), probe=False)
    )
    assert [one.scalar.layer for one in explanation.maps] == list(heads().values())
    assert not any("level of the feature pyramid" in text for text in explanation.warnings)


@pytest.mark.parametrize("place", [0, 1], ids=["the finer", "the coarser"])
def test_a_box_of_a_level_that_is_left_out_is_told(place: int) -> None:
    """One layer of the two: the box of the other has a map at it all the same, and a sentence about it."""
    name, candidate, other = names()[place], (SMALL, LARGE)[place], (LARGE, SMALL)[place]
    model, record = exported([name])
    (entry,) = record["layers"]
    if place == 0:  # the coarser level is computed from the finer one, so that this one is of all boxes
        assert "level" not in entry
        assert not any("level of the feature pyramid" in text for text in explained(model).warnings)
        return
    assert entry["candidates"] == [[96, 120]]
    warnings = explained(model).warnings
    (sentence,) = [text for text in warnings if "level of the feature pyramid" in text]
    assert f"box {other} " in sentence and repr(name) in sentence
    assert "leave the layers out when it is exported or opened" in sentence
    alone = onnxcam.Explainer(model, preprocess="0..1").explain(PICTURE, target=Box(candidate))
    assert not any("level of the feature pyramid" in text for text in alone.warnings)


def test_a_layer_named_for_a_box_of_another_level_is_told() -> None:
    small, large = names()
    opened = onnxcam.Explainer(detectors.build("yolov8"), preprocess="0..1")
    (sentence,) = [t for t in opened.explain(PICTURE, target=Box(SMALL), layer=large).warnings if "pyramid" in t]
    assert f"or name {small!r}" in sentence
    assert not any("pyramid" in t for t in opened.explain(PICTURE, target=Box(LARGE), layer=large).warnings)


def test_augmenting_again_keeps_the_levels() -> None:
    model, _ = exported(list(names()))
    record = manifests.read(onnxcam.augment(model, [*names()[::-1]], probe=False))
    assert record is not None
    assert [entry["candidates"] for entry in record["layers"]] == [[[96, 120]], [[0, 96]]]


def test_a_classifier_has_no_levels() -> None:
    from tests.support import models

    record = manifests.read(onnxcam.augment(models.tiny_cnn(), probe=False))
    assert record is not None and "level" not in record["layers"][0]
