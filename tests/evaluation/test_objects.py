"""Methods judged on objects: the numbers by hand, on the bundled detector and on nets of every form."""

from __future__ import annotations

import csv
import io
import zlib
from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam import image, models
from onnxcam.errors import InputError, MethodError
from onnxcam.evaluation import boxes as box_files
from onnxcam.evaluation import objects, report
from onnxcam.evaluation.judge import evaluate
from onnxcam.evaluation.metrics.causal import area, background
from onnxcam.runtime import open_session
from onnxcam.targets.detections import iou
from onnxcam.targets.scalars import Box, Several
from onnxcam.targets.tasks import Detect, Segment, Slab
from tests.support import detectors, scenes

PICTURES, TRUTH = scenes.PICTURES[:3], scenes.TRUTH
SETTINGS: dict[str, Any] = {"preprocess": "0..1", "probe": False}
END_TO_END = Detect(
    Slab(0, 4, 6), Slab(4, 1, 6), 6, None, detectors.QUERIES, labels=Slab(5, 1, 6), overlapping=False
)  # fmt: skip


@pytest.fixture(scope="module")
def detector() -> onnxcam.Explainer:
    return scenes.detector()


@pytest.fixture(scope="module")
def judged(detector: onnxcam.Explainer) -> Any:
    return evaluate(
        detector, PICTURES, methods=["layercam", "eigencam"], boxes=TRUTH, names=[path.name for path in PICTURES],
        metrics=["pointing_game", "own_box", "energy_in_box", "insertion", "drise"], masks=40, steps=4, examples=2,
    )  # fmt: skip


def drawn(name: str) -> list[tuple[np.ndarray, str]]:
    rows = [row for row in csv.DictReader(TRUTH.read_text().splitlines()) if row["picture"] == name]
    return [(np.array([float(row[side]) for side in ("x0", "y0", "x1", "y1")]), row["label"]) for row in rows]


@pytest.mark.slow
def test_each_drawn_object_that_is_detected_is_judged_once(detector: onnxcam.Explainer, judged: Any) -> None:
    matched = 0
    for path in PICTURES:
        reported = detector.boxes(path)
        for box, label in drawn(path.name):
            matched += any(one.label == label and iou(box, np.array([one.box]))[0] >= 0.5 for one in reported)
    assert len(judged.places) == judged.objects["detected"] == matched
    assert judged.objects["drawn"] == sum(len(drawn(path.name)) for path in PICTURES)
    assert judged.objects["pictures"] == 3 and judged.accuracy == 1.0


def test_the_map_of_a_box_is_its_own_and_eigencam_s_is_not(judged: Any) -> None:
    assert judged.mean("layercam", "pointing_game") >= 0.95
    assert judged.mean("layercam", "own_box") > 0.75 > judged.mean("eigencam", "own_box")
    alone = [len([k for k, other in zip(judged.classes, judged.names, strict=True) if (k, other) == pair]) == 1
             for pair in zip(judged.classes, judged.names, strict=True)]  # fmt: skip
    assert np.isnan(judged.values["layercam"]["own_box"]).tolist() == alone
    assert judged.mean("layercam", "drise") > judged.mean("eigencam", "drise")


def test_insertion_follows_the_score_of_the_box(detector: onnxcam.Explainer, judged: Any) -> None:
    """By the file alone: the candidate's score as its most important pixels are shown."""
    row = 0
    entry = judged.to_dict()["each"][row]
    tensor = detector.prepare(scenes.FOLDER / entry["picture"])[1]
    question = detector.question(rows=1, target=[Several([Box(entry["candidate"])])], method=["layercam"])
    geometry = image.Geometry((128, 128), (128, 128), (0, 0), (128, 128))
    heatmap = objects.maps(detector, question, tensor, geometry)[0][0]
    ties = np.random.default_rng([1234, row, zlib.crc32(b"ties")]).permutation(heatmap.size)
    order = np.lexsort((ties, -heatmap.ravel()))
    session = open_session(models.path("scenes/detector.onnx").read_bytes(), ["CPUExecutionProvider"])
    blurred, scores = background(tensor, "blur"), []
    for count in np.rint(np.linspace(0, heatmap.size, 5)).astype(int):
        mask = np.zeros(heatmap.size, bool)
        mask[order[:count]] = True
        changed = np.where(mask.reshape(heatmap.shape), tensor, blurred)
        scores.append(session.run(None, {"images": changed})[0][0, 4 + entry["class"], entry["candidate"]])
    assert judged.values["layercam"]["insertion"][row] == pytest.approx(float(area(np.array([scores]))[0]), rel=1e-4)


def test_what_the_results_say(judged: Any) -> None:
    record = judged.to_dict()
    assert record["objects"] == judged.objects and record["each"][0]["detected"]
    assert iou(np.array(record["each"][0]["box"]), np.array([drawn("scene0.png")[0][0]]))[0] >= 0.5
    rows = list(csv.DictReader(io.StringIO(judged.to_csv())))
    assert rows[0]["picture"] == "scene0.png" and float(rows[0]["x1"]) > float(rows[0]["x0"])
    assert rows[-1]["picture"] == "mean" and rows[-1]["x0"] == ""
    first = report.lines(judged)[0]
    assert f"{len(judged.places)} objects of 3 pictures" in first and "labelled" in first
    page = report.render(judged)
    assert page.count("<h3>") == 2 and "Likeness to the map of random masks" not in page


def test_without_boxes_the_detector_s_own_are_judged(detector: onnxcam.Explainer) -> None:
    evaluation = evaluate(detector, PICTURES[:1], methods=["layercam"], metrics=["pointing_game", "deletion"], steps=2)
    assert len(evaluation.places) == len(detector.boxes(PICTURES[0])) and not evaluation.labelled
    assert "as the model reports them" in report.lines(evaluation)[0]


def test_an_object_that_is_missed_is_explained_where_that_is_asked(detector: onnxcam.Explainer) -> None:
    boxes = box_files.Boxes({"scene0.png": [box_files.Box(19, 12, 35, 29, "disc")]})  # it is a star
    settings: dict[str, Any] = {"methods": ["layercam"], "metrics": ["pointing_game"], "names": ["scene0.png"]}
    evaluation = evaluate(detector, PICTURES[:1], boxes=boxes, missed=True, **settings)
    assert evaluation.right == [False] and evaluation.to_dict()["each"][0]["label"] == "disc"
    with pytest.raises(InputError, match="no box that was given"):
        evaluate(detector, PICTURES[:1], boxes=boxes, **settings)


def test_maps_are_made_again_on_changed_pictures(detector: onnxcam.Explainer) -> None:
    evaluation = evaluate(
        detector, PICTURES[1:2], methods=["hirescam"], metrics=["coherency", "sensitivity"], repeats=1, radius=1e-4
    )
    assert evaluation.mean("hirescam", "coherency") > 0.5
    assert 0 < evaluation.mean("hirescam", "sensitivity") < 0.1


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"targets": [0]}, InputError, "explains objects"),
        ({"metrics": ["randomization"]}, MethodError, "no such objects"),
        ({"nonsense": 1}, InputError, "no.* option 'nonsense'|has an option"),
        ({"methods": []}, MethodError, "nothing to judge"),
    ],
)
def test_refused(detector: onnxcam.Explainer, changes: dict[str, Any], error: type[Exception], match: str) -> None:
    settings = {"methods": ["hirescam"], "metrics": ["pointing_game"]} | changes
    with pytest.raises(error, match=match):
        evaluate(detector, PICTURES[:1], **settings)


def test_a_classifier_has_no_objects() -> None:
    explainer = onnxcam.Explainer(models.path("classroom/mnist.onnx"))
    picture = models.path("classroom/mnist/right_0.png")
    with pytest.raises(MethodError, match="judges objects"):
        evaluate(explainer, [picture], methods=["gradcam"], metrics=["own_box"])


def picture() -> np.ndarray:
    return (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).round().astype(np.uint8)


def test_candidates_that_are_sorted_are_matched_on_changed_pictures() -> None:
    explainer = onnxcam.Explainer(detectors.build("end-to-end"), task=(("output0",), END_TO_END), **SETTINGS)
    _, tensor, geometry = explainer.prepare(picture())
    row = explainer.batch_scores(tensor)[0]
    (thing, *_) = objects.things(explainer, row, geometry, None, objects.Tally()) or [None]
    if thing is None:  # random weights report nothing: the best candidate
        thing = objects._box(END_TO_END, row, geometry, 0, int(row[5]), box_files.Box(0, 0, 96, 64), {})
    table = row.reshape(-1, 6)
    assert thing.measure(row) == pytest.approx(table[thing.candidate, 4], rel=1e-5)
    again = table[::-1].reshape(-1)  # the same candidates in another order
    assert thing.measure(again) == pytest.approx(thing.measure(row))
    assert thing.again(again).index == len(table) - 1 - thing.candidate


def test_regions_of_a_segmentation() -> None:
    task = Segment(4, detectors.HEIGHT, detectors.WIDTH, activation="softmax")
    explainer = onnxcam.Explainer(detectors.build("segment"), task=(("out",), task), labels=list("abcd"), **SETTINGS)
    boxes = box_files.Boxes({"p": [box_files.Box(8, 8, 40, 40, "b"), box_files.Box(50, 20, 90, 60, "b")]})
    evaluation = evaluate(
        explainer, [picture()], methods=["gradcam"], metrics=["pointing_game", "own_box", "deletion", "drise"],
        boxes=boxes, names=["p"], steps=2, masks=8,
    )  # fmt: skip
    p = task.probabilities(explainer.batch_scores(explainer.prepare(picture())[1])[0], (64, 96))
    assert evaluation.probabilities == pytest.approx([p[1, 8:40, 8:40].mean(), p[1, 20:60, 50:90].mean()])
    assert evaluation.labelled and np.isfinite(evaluation.values["gradcam"]["own_box"]).all()
    usual = evaluate(explainer, [picture()], methods=["gradcam"], metrics=["insertion"], steps=2)
    assert len(usual.places) == 1 and usual.classes[0] == int(np.bincount(p.argmax(axis=0).ravel()).argmax())
    with pytest.raises(MethodError, match="where the objects are"):
        evaluate(explainer, [picture()], methods=["gradcam"], metrics=["pointing_game"])
