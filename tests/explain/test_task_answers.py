"""Boxes, regions, similarities and values: attributions and maps against torch's autograd on the same small nets."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import onnxcam
from onnxcam.errors import InputError
from onnxcam.targets.difference import Difference
from onnxcam.targets.scalars import Box, Region, Similarity, Value
from onnxcam.targets.tasks import Detect, Embed, Segment, Slab, Task, Values
from tests.support import detectors
from tests.support.detectors import CLASSES, DIMENSIONS, HEIGHT, QUERIES, WIDTH

M, M2 = detectors.count(2), detectors.count(2, 2)
VECTOR = np.random.default_rng(7).normal(size=DIMENSIONS)
TASKS: dict[str, tuple[tuple[str, ...], Task]] = {
    "yolov8": (
        ("output0",),
        Detect(Slab(0, 4, 7, 0, True), Slab(4, 3, 7, 0, True), 7, 3, M, box_format="cxcywh"),
    ),
    "yolov5": (
        ("output",),
        Detect(Slab(0, 4, 8), Slab(5, 3, 8), 8, 3, M2, objectness=Slab(4, 1, 8), box_format="cxcywh"),
    ),
    "retinanet": (("boxes", "scores"), Detect(Slab(0, 4, 4), Slab(0, 3, 3, before=4), 7, 3, M2)),
    "end-to-end": (
        ("output0",),
        Detect(Slab(0, 4, 6), Slab(4, 1, 6), 6, None, QUERIES, labels=Slab(5, 1, 6), overlapping=False),
    ),
    "detr": (
        ("logits", "pred_boxes"),
        Detect(Slab(0, 4, 4, before=4), Slab(0, 4, 4), 8, 4, QUERIES, box_format="cxcywh", unit="relative",
               activation="softmax", background=CLASSES, overlapping=False),
    ),
    "torchvision": (
        ("boxes", "labels", "scores"),
        Detect(Slab(0, 4, 4), Slab(0, 1, 1, before=5), 6, None, None, labels=Slab(0, 1, 1, before=4),
               overlapping=False, one_picture=True),
    ),
    "segment": (("out",), Segment(4, HEIGHT, WIDTH, activation="softmax")),
    "segment-last": (("out",), Segment(4, HEIGHT, WIDTH, True, activation="softmax")),
    "mask-logit": (("out",), Segment(1, HEIGHT, WIDTH, activation="sigmoid")),
    "embed": (("embedding",), Embed(DIMENSIONS, True)),
    "embed-free": (("embedding",), Embed(DIMENSIONS)),
    "regress-3": (("value0",), Values(("value0",), (3,))),
    "regress-two": (("value0", "value1"), Values(("value0", "value1"), (1, 2))),
}  # fmt: skip


@pytest.fixture(scope="module")
def explainer() -> Callable[[str], onnxcam.Explainer]:
    opened: dict[str, onnxcam.Explainer] = {}

    def of(net: str) -> onnxcam.Explainer:
        if net not in opened:
            opened[net] = onnxcam.Explainer(detectors.build(net), task=TASKS[net], preprocess="0..1")
        return opened[net]

    return of


def gradient(net: str, scalar: Callable[[Any], Any], indices: Any = ()) -> np.ndarray:
    """By torch, of a function of the first picture's outputs at the picture, `[3, H, W]`."""
    x = torch.tensor(detectors.pictures(1).astype(np.float64), requires_grad=True)
    (dx,) = torch.autograd.grad(scalar(detectors.forward(net, x, indices)), x)
    return np.asarray(dx[0])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def picture() -> np.ndarray:
    return (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).round().astype(np.uint8)


def overlap(box: Any, still: Any) -> Any:
    """Of centre and size with the same box that does not move, by torch."""
    corners = torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])
    other = torch.cat([still[:2] - still[2:] / 2, still[:2] + still[2:] / 2]).detach()
    sides = torch.minimum(corners[2:], other[2:]) - torch.maximum(corners[:2], other[:2])
    inside = sides.prod()
    return inside / ((corners[2:] - corners[:2]).prod() + (other[2:] - other[:2]).prod() - inside)


SCALARS: list[tuple[str, Any, Callable[[Any], Any]]] = [
    ("yolov8", Box(17), lambda o: o["output0"][0, 4:, 17].max()),
    ("yolov8", Box(100, part="x0"), lambda o: o["output0"][0, 0, 100] - o["output0"][0, 2, 100] / 2),
    ("yolov8", Box(100, part="y1"), lambda o: o["output0"][0, 1, 100] + o["output0"][0, 3, 100] / 2),
    ("yolov8", Box(17, part="score*iou"),
     lambda o: o["output0"][0, 4:, 17].max() * overlap(o["output0"][0, :4, 17], o["output0"][0, :4, 17])),
    ("yolov8", Box(17) - Box(100), lambda o: o["output0"][0, 4:, 17].max() - o["output0"][0, 4:, 100].max()),
    ("yolov5", Box(60), lambda o: o["output"][0, 60, 4] * o["output"][0, 60, 5:].max()),
    ("retinanet", Box(215), lambda o: o["scores"][0, 215].max()),
    ("retinanet", Box(215, part="x1"), lambda o: o["boxes"][0, 215, 2]),
    ("end-to-end", Box(2), lambda o: o["output0"][0, 2, 4]),
    ("end-to-end", Box(2, part="y0"), lambda o: o["output0"][0, 2, 1]),
    ("detr", Box(3), lambda o: o["logits"][0, 3, :-1].max()),
    ("detr", Box(3, part="x0"), lambda o: (o["pred_boxes"][0, 3, 0] - o["pred_boxes"][0, 3, 2] / 2) * WIDTH),
    ("segment", Region(2, (10, 20, 70, 50)), lambda o: o["out"][0, 2, 20:50, 10:70].sum()),
    ("segment", Region(1), lambda o: (o["out"][0, 1] * (o["out"][0].argmax(0) == 1)).sum()),
    ("segment", 1, lambda o: (o["out"][0, 1] * (o["out"][0].argmax(0) == 1)).sum()),
    ("segment-last", Region(2, (10, 20, 70, 50)), lambda o: o["out"][0, 20:50, 10:70, 2].sum()),
    ("segment", Region(2, (0, 0, 48, 64)) - Region(2, (48, 0, 96, 64)),
     lambda o: o["out"][0, 2, :, :48].sum() - o["out"][0, 2, :, 48:].sum()),
    ("mask-logit", Region(0, (0, 0, 48, 32)), lambda o: o["out"][0, 0, :32, :48].sum()),
    ("embed", Similarity(VECTOR), lambda o: o["embedding"][0] @ torch.tensor(VECTOR / np.linalg.norm(VECTOR))),
    ("embed-free", Similarity(VECTOR),
     lambda o: o["embedding"][0] @ torch.tensor(VECTOR / np.linalg.norm(VECTOR)) / o["embedding"][0].norm()),
    ("embed-free", Value(index=5), lambda o: o["embedding"][0, 5]),
    ("regress-3", Value("value0", 2), lambda o: o["value0"][0, 2]),
    ("regress-3", Value("value0", 2, sign=-1), lambda o: -o["value0"][0, 2]),
    ("regress-two", Value("value1", 1) - Value("value0"), lambda o: o["value1"][0, 1] - o["value0"][0, 0]),
    ("regress-two", "value1[0]", lambda o: o["value1"][0, 0]),
]  # fmt: skip


@pytest.mark.sample(8)
@pytest.mark.parametrize(("net", "target", "scalar"), SCALARS, ids=[f"{n}-{t!r}"[:60] for n, t, _ in SCALARS])
def test_attributions_are_autograds(explainer: Any, net: str, target: Any, scalar: Any) -> None:
    actual = explainer(net).attribution(detectors.pictures(1), target, method="saliency")[0]
    assert distance(actual, gradient(net, scalar)) < 1e-5


@pytest.mark.parametrize("part", ["score", "x1"])
def test_a_box_after_an_nms_in_the_file(explainer: Any, part: str) -> None:
    """Its candidate is a constant of the picture, and so is which of all candidates it is."""
    x = detectors.pictures(1)
    boxes = explainer("torchvision").batch_scores(x)[0]
    count = len(boxes) // 6
    labels = boxes[4 * count : 5 * count].round().astype(int) - 1
    dense = np.asarray(detectors.forward("retinanet", torch.tensor(x.astype(float)))["boxes"][0])
    corners = boxes[: 4 * count].reshape(-1, 4)
    candidates = np.abs(dense[None] - corners[:, None]).sum(axis=2).argmin(axis=1)
    indices = (labels, candidates)
    expected = gradient("torchvision", lambda o: o["scores"][1] if part == "score" else o["boxes"][1, 2], indices)
    actual = explainer("torchvision").attribution(x, Box(1, part=part), method="saliency")[0]
    assert distance(actual, expected) < 1e-5


def test_rows_have_targets_of_their_own(explainer: Any) -> None:
    x = detectors.pictures(2)
    both = explainer("yolov8").attribute(x, [Box(17), Box(100)])
    for row, candidate in enumerate((17, 100)):
        alone = explainer("yolov8").attribute(x[row : row + 1], Box(candidate))
        assert np.abs(both[row] - alone[0]).max() < 1e-6


def test_each_box_is_explained_at_its_level(explainer: Any) -> None:
    opened = explainer("yolov8")
    small, large = [entry["name"] for entry in opened.manifest["layers"]]
    explanation = opened.explain(picture(), target=[Box(100), Box(17)])
    assert [one.scalar.layer for one in explanation.maps] == [large, small]
    for one, layer, candidate in zip(explanation.maps, (large, small), (100, 17), strict=True):
        alone = opened.explain(picture(), target=Box(candidate), layer=layer)
        assert np.abs(alone.heatmap - one.heatmap).max() < 1e-6
        assert one.raw_map.any()


def test_a_box_of_a_batch_examined_once_is_explained_at_its_level(explainer: Any) -> None:
    opened, x = explainer("yolov8"), detectors.pictures(2)
    examined = opened.examine(x)
    for targets in ([Box(17), Box(100)], [Box(100), Box(17)], [Box(100), Box(100)]):
        maps = examined.attribute(targets)
        assert maps.any(axis=(1, 2)).all()
        assert np.abs(maps - opened.attribute(x, targets)).max() < 1e-6
    by_method = examined.attribute(Box(100), ["layercam", "hirescam"])
    both = opened.attribute(x, Box(100), ["layercam", "hirescam"])
    assert all(np.abs(one - other).max() < 1e-6 for one, other in zip(by_method, both, strict=True))
    small, large = [entry["name"] for entry in opened.manifest["layers"]]
    named = opened.examine(x, small).attribute(Box(17))
    assert np.abs(named - opened.attribute(x, Box(17), layer=small)).max() < 1e-6
    with pytest.raises(InputError, match="different sizes; name one layer"):
        examined.attribute([Box(17), Box(100)], size="layer")
    assert examined.attribute([Box(17), Box(100)], size="layer", layer=large).shape[0] == 2


def test_a_guided_map_of_a_box_is_of_its_level(explainer: Any) -> None:
    """Guided Grad-CAM is guided backpropagation times the Grad-CAM of a layer: that of the box's own level."""
    opened, x = explainer("yolov8"), detectors.pictures(2)
    small, large = [entry["name"] for entry in opened.manifest["layers"]]
    for targets, layers in (([Box(17), Box(100)], [small, large]), ([Box(100), Box(17)], [large, small])):
        found = opened.attribution(x, targets, "guided_gradcam")
        assert np.array_equal(found, opened.examine(x).attribution(targets, "guided_gradcam"))
        for row, (target, layer) in enumerate(zip(targets, layers, strict=True)):
            named = opened.attribution(x[row : row + 1], target, "guided_gradcam", layer)
            assert named.any() and np.abs(found[row] - named[0]).max() < 1e-6 * np.abs(named).max()


def test_a_sorted_box_is_explained_at_the_level_it_comes_from(explainer: Any) -> None:
    """The same objects as those of the dense head, whose candidates' levels are known."""
    dense = explainer("retinanet").explain(picture(), top=4)
    sorted_ = explainer("torchvision").explain(picture(), top=4)
    for one, other in zip(dense.maps, sorted_.maps, strict=True):
        assert one.box.score == pytest.approx(other.box.score, rel=1e-4)
        assert np.abs(one.raw_map - other.raw_map).max() < 1e-5 * max(1e-9, np.abs(one.raw_map).max())


def test_several_boxes_have_a_map_each(explainer: Any) -> None:
    best = explainer("yolov8").boxes(picture())
    explanation = explainer("yolov8").explain(picture(), top=3)
    assert [one.box for one in explanation.maps] == best[:3]
    assert explanation.boxes == best
    for one, box in zip(explanation.maps, best, strict=False):
        alone = explainer("yolov8").explain(picture(), target=Box(box.index))
        assert np.abs(alone.heatmap - one.heatmap).max() < 1e-6


def test_texts_make_an_embedding_a_classifier() -> None:
    """Their scores are CLIP's, and so is the gradient of one."""
    texts = np.random.default_rng(3).normal(size=(4, DIMENSIONS))
    names = ["a cat", "a dog", "a hen", "a cow"]
    opened = onnxcam.Explainer(detectors.build("embed-free"), texts=texts, labels=names, preprocess="0..1")
    unit = torch.tensor(texts / np.linalg.norm(texts, axis=1, keepdims=True))
    x = detectors.pictures(1)
    z = detectors.forward("embed-free", torch.tensor(x.astype(float)))["embedding"][0]
    assert np.allclose(opened.batch_scores(x)[0], 100 * unit @ z / z.norm(), rtol=1e-4)
    expected = gradient("embed-free", lambda o: 100 * unit[1] @ o["embedding"][0] / o["embedding"][0].norm())
    for one in (opened, pickle.loads(pickle.dumps(opened))):
        assert distance(one.attribution(x, "a dog", method="saliency")[0], expected) < 1e-5
    assert [label for _, label, _ in opened.explain(picture(), top=2).predictions[:2]] == [
        one.label for one in opened.explain(picture(), top=2).maps
    ]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (np.ones((4, DIMENSIONS - 1)), rf"expected \[K, {DIMENSIONS}\]"),
        (np.eye(2, DIMENSIONS) * [[1], [0]], "text 1 is zero"),
    ],
)
def test_texts_that_are_none(texts: np.ndarray, message: str) -> None:
    with pytest.raises(onnxcam.OnnxcamError, match=message):
        onnxcam.Explainer(detectors.build("embed"), texts=texts, preprocess="0..1")


def test_what_a_file_says_of_its_boxes_needs_no_recognition_again(explainer: Any, monkeypatch: Any) -> None:
    opened = explainer("yolov8")
    monkeypatch.setattr("onnxcam.network.heads.attach", None)
    again = onnxcam.Explainer(opened.source)
    assert again.manifest == opened.manifest
    assert again.boxes(picture()) == opened.boxes(picture())
    for one, other in zip(again.explain(picture(), top=3).maps, opened.explain(picture(), top=3).maps, strict=True):
        assert np.array_equal(one.heatmap, other.heatmap)


@pytest.mark.parametrize(
    ("net", "target", "message"),
    [
        ("yolov8", Box(120), "has 120 candidates, 0 to 119"),
        ("yolov8", Box(label="kitten"), "no class is called 'kitten'"),
        ("yolov8", Box(label="hen"), "no box of hen .* its best candidate is index"),
        ("yolov8", Box(label="dog", at=(2, 2)), "the nearest is index .* pixels away"),
        ("yolov8", Box(at=(96, 5)), "outside the picture, which is 96 x 64"),
        ("yolov8", Box(rank=99), "rank 99"),
        ("yolov8", Region(0, (0, 0, 5, 5)), "is not a target of this model, a detector: name a box"),
        ("yolov8", onnxcam.Contrast(0, 1), "compares the scores of classes"),
        ("segment", Region(1, (96, 0, 120, 20)), "outside the picture, which is 96 x 64"),
        ("segment", Region(1, np.ones((3, 3))), "the mask is 3 x 3 and the picture 64 x 96"),
        ("segment", Box(0), "name a region"),
        ("embed", None, "name what the embedding is compared with"),
        ("embed", Similarity([1.0, 2.0]), "has 16"),
        ("regress-two", None, "name one of the values"),
        ("regress-two", Value("value1"), r"NAME\[index\]"),
        ("regress-two", Value("depth"), "no output of values is called 'depth'"),
    ],
)
def test_a_target_that_is_none_of_the_models(explainer: Any, net: str, target: Any, message: str) -> None:
    with pytest.raises(onnxcam.OnnxcamError, match=message):
        explainer(net).explain(picture(), target=target)


def test_a_region_that_reaches_beyond_the_picture_is_told_with_the_map(explainer: Any) -> None:
    beyond = explainer("segment").explain(picture(), target=Region(1, (60, 20, 200, 50)))
    assert any("beyond the picture, which is 96 x 64" in text for text in beyond.warnings)
    inside = explainer("segment").explain(picture(), target=Region(1, (60, 20, 96, 50)))
    assert not any("beyond" in text for text in inside.warnings)
    assert np.array_equal(beyond.heatmap, inside.heatmap)


@pytest.mark.parametrize("target", [Box(0), Box(0) - Box(1), Region(0), Similarity([1.0])])
def test_a_classifier_has_no_boxes(target: Any) -> None:
    opened = onnxcam.Explainer(detectors.build("classifier"), preprocess="0..1")
    with pytest.raises(onnxcam.OnnxcamError, match="this model is a classifier"):
        opened.explain(picture(), target=target)
    with pytest.raises(onnxcam.OnnxcamError, match="only detectors"):
        opened.boxes(picture())


def test_a_difference_of_two_classes_is_their_contrast() -> None:
    opened = onnxcam.Explainer(detectors.build("classifier"), preprocess="0..1")
    contrast = opened.attribution(detectors.pictures(1), onnxcam.Contrast(1, 3), method="saliency")
    difference = opened.attribution(detectors.pictures(1), Difference(1, 3), method="saliency")
    assert np.abs(contrast - difference).max() < 1e-6 * np.abs(contrast).max()
    halves = onnxcam.Probability(1) - onnxcam.Probability(3)
    both = [opened.attribution(detectors.pictures(1), onnxcam.Probability(k), method="saliency") for k in (1, 3)]
    actual = opened.attribution(detectors.pictures(1), halves, method="saliency")
    assert np.abs(actual - (both[0] - both[1])).max() < 1e-5 * np.abs(both[0]).max()
