"""Two detectors, segmentations, embeddings or regressions on the same pictures, held to each one's explanations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcam import Explainer, files, image
from onnxcam.diagnose.shift import Shift, compare, page
from onnxcam.diagnose.shift.blame import blame
from onnxcam.diagnose.shift.conditions import Condition
from onnxcam.diagnose.shift.distance import distances, shares
from onnxcam.diagnose.shift.markdown import markdown
from onnxcam.diagnose.shift.null import Seeds
from onnxcam.diagnose.shift.objects import match
from onnxcam.diagnose.shift.result import CLASS, LOST, NEW, SAME
from onnxcam.diagnose.shift.text import lines
from onnxcam.errors import ModelError, SettingError
from onnxcam.image.preprocess import Crop, Preprocess, Resize
from onnxcam.targets.scalars import Box, Region, Similarity, Value
from onnxcam.targets.tasks import Detection
from tests.cli.conftest import Run, run  # noqa: F401 - a fixture
from tests.support import detectors

EARLY = "v3_0"  # where the map of a box has more than the one cell of its own level
TENSORS = detectors.pictures(4)
PICTURES = [(one.transpose(1, 2, 0) * 255).astype(np.uint8) for one in TENSORS]


def altered(form: str, noise: float, seed: int = 1) -> bytes:
    """A small net, its weights changed by noise relative to their own deviation; 0 for the net itself."""
    model = detectors.build(form)
    rng = np.random.default_rng(seed)
    for weights in model.graph.initializer:
        values = numpy_helper.to_array(weights)
        if noise and values.dtype == np.float32 and values.ndim == 4:
            drawn = rng.standard_normal(values.shape) * values.std() * noise
            weights.CopyFrom(numpy_helper.from_array((values + drawn).astype(np.float32), weights.name))
    return model.SerializeToString()


@cache
def explainer(form: str, noise: float = 0.0, seed: int = 1, **settings: Any) -> Explainer:
    return Explainer(altered(form, noise, seed), preprocess="0..1", probe=False, **settings)


def far(one: Any, other: Any) -> float:
    """The distance of two maps of one size at layer resolution."""
    return float(distances(shares(np.asarray(one)[None]), shares(np.asarray(other)[None]))[0])


def best_overlap(box: Any, others: Any) -> float:
    """The largest IoU of a box with others, by counting cells of a fine grid."""
    grid = (np.arange(960) + 0.5) / 10
    y, x = np.meshgrid(grid, grid, indexing="ij")

    def inside(edges: Any) -> np.ndarray:
        return (x >= edges[0]) & (x < edges[2]) & (y >= edges[1]) & (y < edges[3])

    area = inside(box)
    return max((float((area & inside(b)).sum() / max((area | inside(b)).sum(), 1)) for b in others), default=0.0)


@pytest.mark.sample(1)
@pytest.mark.parametrize("form", ["yolov8", "torchvision", "retinanet"])
def test_boxes_and_their_maps_are_those_of_each_model(form: str) -> None:
    old, new = explainer(form), explainer(form, 0.03)
    shift = compare(old, new, PICTURES, layer=EARLY)
    assert shift.task == "detect" and len(shift.pictures) == len(PICTURES)
    observed = 0
    for source, one in zip(PICTURES, shift.pictures, strict=True):
        reported = old.boxes(source), new.boxes(source)
        for side in (0, 1):
            listed = [thing.candidates[side] for thing in one.objects if thing.candidates[side] is not None]
            assert sorted(listed) == sorted(box.index for box in reported[side]), "each box is listed once"
        gaps = []
        for thing in one.objects:
            a, b = thing.candidates
            if thing.change == SAME:
                first = old.explain(source, Box(a), method="hirescam", layer=EARLY)
                second = new.explain(source, Box(b), method="hirescam", layer=EARLY)
                assert first.label == second.label and thing.overlap >= 0.5
                assert thing.distance == pytest.approx(far(first.raw_map, second.raw_map), abs=1e-5)
                observed += 1
                gaps.append(thing.distance)
            if thing.change == LOST and form != "torchvision":  # of one that was matched another box may be nearer
                free = [x.box for x in reported[1] if x.index not in {t.candidates[1] for t in one.objects}]
                assert best_overlap(thing.boxes[0], free) < 0.5
        assert one.distance == pytest.approx(np.mean(gaps) if gaps else 0.0) and one.maps == len(gaps)
    assert observed and 0 < shift.distance < 0.5
    itself = compare(old, old, PICTURES, layer=EARLY)
    assert itself.distance < 1e-6 and itself.flipped_share == 0 and {o.change for o in itself.objects} == {SAME}


def detection(index: int, class_index: int, *box: float) -> Detection:
    return Detection(index, str(class_index), class_index, 0.9 - 0.01 * index, (box[0], box[1], box[2], box[3]))


def test_each_box_is_compared_at_its_own_layer_where_none_is_named() -> None:
    """The small net's map of a box has one cell there: equal where both take one cell, on the picture where not."""
    old, new = explainer("yolov8"), explainer("yolov8", 0.03)
    shift = compare(old, new, PICTURES[:1])
    assert shift.layers == ("each box's own layer",) * 2
    for thing in shift.objects:
        a, b = thing.candidates
        if thing.change == SAME:
            layers = [side.explain(PICTURES[0], Box(k)).layer for side, k in ((old, a), (new, b))]
            assert (thing.distance < 1e-6) == (a == b) and (layers[0] == layers[1] or a != b)


def test_boxes_are_matched_by_overlap_and_of_their_class_first() -> None:
    old = [detection(0, 1, 0, 0, 10, 10), detection(1, 2, 0, 0, 10, 10), detection(2, 1, 50, 50, 60, 60)]
    new = [detection(7, 2, 0, 0, 10, 9), detection(8, 1, 0, 0, 10, 6), detection(9, 3, 50, 50, 60, 61)]
    new.append(detection(10, 1, 80, 80, 90, 90))
    pairs = [(a and a.index, b and b.index, round(o, 4)) for a, b, o in match(old, new)]
    assert pairs == [(0, 8, 0.6), (1, 7, 0.9), (2, 9, round(10 / 11, 4)), (None, 10, 0.0)]
    apart = match([detection(0, 1, 0, 0, 10, 10)], [detection(1, 1, 6, 0, 16, 10)])
    assert [(a and a.index, b and b.index) for a, b, _ in apart] == [(0, None), (None, 1)]
    assert match([], []) == []


def test_a_lost_box_does_not_take_the_partner_of_its_neighbour() -> None:
    """OLD's better box is lost; the one beside it is NEW's, whatever the scores, and whichever of the two is OLD."""
    old = [detection(0, 1, 0, 0, 10, 10), detection(1, 1, 0, 3, 10, 13)]
    new = [detection(5, 1, 0, 3, 10, 13)]
    assert [(a and a.index, b and b.index) for a, b, _ in match(old, new)] == [(0, None), (1, 5)]
    assert [(a and a.index, b and b.index) for a, b, _ in match(new, old)] == [(5, 1), (None, 0)]
    broken = detection(6, 1, np.nan, 3, 10, 13)  # a box that is no number overlaps none, and hides none
    assert [(a and a.index, b and b.index) for a, b, _ in match(old, [broken, *new])] == [(0, None), (1, 5), (None, 6)]
    rng = np.random.default_rng(5)
    for _ in range(20):
        sides = []
        for count in rng.integers(0, 6, 2):
            low, size = rng.uniform(0, 20, (count, 2)), rng.uniform(5, 20, (count, 2))
            edges = np.concatenate([low, low + size], axis=1).tolist()
            sides.append([detection(k, int(rng.integers(2)), *box) for k, box in enumerate(edges)])
        pairs = {(a and a.index, b and b.index, round(o, 9)) for a, b, o in match(*sides)}
        assert pairs == {(a and a.index, b and b.index, round(o, 9)) for b, a, o in match(sides[1], sides[0])}


def test_labels_of_another_number_are_refused_where_the_files_do_not_tell_their_classes() -> None:
    old, new = (explainer("torchvision", labels=names) for names in (("a", "b", "c"), ("a", "b", "c", "d")))
    assert old.classes == new.classes == 0
    with pytest.raises(SettingError, match="OLD has 3 labels and NEW has 4"):
        compare(old, new, PICTURES)


@cache
def flips() -> Shift:
    """Detectors that differ so much that boxes flip in every way."""
    return compare(explainer("yolov8"), explainer("yolov8", 0.4), PICTURES, names=[f"{k}.png" for k in range(4)])


@pytest.mark.slow
def test_flips_are_counted_in_boxes_everywhere(tmp_path: Path) -> None:
    shift = flips()
    counts = {change: sum(one.change == change for one in shift.objects) for change in (SAME, CLASS, LOST, NEW)}
    total = sum(counts.values())
    assert counts[SAME] and counts[LOST] + counts[NEW] + counts[CLASS] and total == len(shift.objects)
    assert shift.flipped_share == pytest.approx(1 - counts[SAME] / total)
    document = json.loads(json.dumps(shift.to_dict()))
    assert document["objects"] == counts and document["task"] == "detect"
    assert [len(one["objects"]) for one in document["each"]] == [len(one.objects) for one in shift.pictures]
    first = lines(shift)[0]
    assert f"of {total} boxes {counts[SAME]} are the same, {counts[LOST]} lost, {counts[NEW]} new" in first
    assert sum(one.pictures for one in shift.classes) == total
    assert sum(one.flipped for one in shift.classes) == total - counts[SAME]
    for of_class in shift.classes:  # of lost boxes alone no map is compared, which is not a distance of 0
        assert (of_class.distance is None) == (of_class.flipped == of_class.pictures)
    outcome = Condition.parse("predictions > 1%").decide(shift)
    assert outcome.failed and f"{shift.flipped_share:.2%} of the boxes flipped" in outcome.sentence
    text = markdown(shift)
    assert f"{counts[LOST]} lost" in text and "Boxes that are lost, new or of another class" in text
    files.write_pieces(tmp_path / "page.html", page.pieces(shift, limit=1000))
    html = (tmp_path / "page.html").read_text("utf-8")
    assert html.count('<li class="card ') == total and html.count("− lost") == counts[LOST]
    assert html.count("+ new") == counts[NEW] and "could not be drawn" not in html
    # two overlays of a box of both, one of a box that one of them does not report
    both = counts[SAME] + counts[CLASS]
    assert len(re.findall("data:image/jpeg", html)) == 2 * both + counts[LOST] + counts[NEW]


@pytest.mark.slow
def test_a_picture_without_boxes_is_no_map() -> None:
    old = explainer("torchvision")
    black = np.zeros_like(PICTURES[0])
    shift = compare(old, explainer("torchvision", 0.03), [black, black], null="augment:30")
    assert not shift.mapped and shift.distance == 0 and "no map could be compared" in lines(shift)[0]
    assert shift.verdict is None and "on no picture is there a box" in shift.undecided
    assert shift.pictures[0].old.index == -1 and shift.pictures[0].to_dict()["distance"] is None
    mixed = compare(old, old, [PICTURES[0], black], null="augment:30")
    assert [bool(one.maps) for one in mixed.pictures] == [True, False]
    assert mixed.pictures[1].p is None and mixed.pictures[0].p == 1.0 and mixed.verdict is not None


@pytest.mark.slow
@pytest.mark.parametrize("form", ["yolov8", "segment"])
def test_small_changes_of_the_pictures_are_a_null(form: str) -> None:
    old = explainer(form)
    same = compare(old, explainer(form, 1e-4), PICTURES, null="augment:9", layer=EARLY)
    assert same.verdict is not None and not same.verdict.moved
    other = compare(old, explainer(form, 0.5), PICTURES, null="augment:9", layer=EARLY)
    assert other.verdict is not None and other.verdict.distance > same.verdict.distance
    ps = [one.p for one in other.pictures if one.maps]
    assert all(p is not None and 0 < p <= 1 for p in ps) and min(ps) == pytest.approx(0.1)


@pytest.mark.slow
def test_other_trainings_are_a_null() -> None:
    """The mean distances of all pairs, held to those of the explanations of the boxes that all models report."""
    models = [explainer("yolov8", 0.02, seed) for seed in range(10, 16)]
    old, new = models[0], explainer("yolov8", 0.02, 30)
    shift = compare(old, new, PICTURES[:2], null=Seeds(models[1:]), layer=EARLY)
    assert shift.verdict is not None and shift.verdict.null == "seeds" and shift.verdict.size == 5
    apart = compare(old, explainer("yolov8", 0.3, 31), PICTURES[:2], null=Seeds(models[1:]), layer=EARLY)
    assert apart.verdict is not None and apart.verdict.p < shift.verdict.p
    assert shift.verdict.gathered is not None and min(shift.verdict.gathered) > 0


def test_areas_and_the_map_of_the_largest_class() -> None:
    old, new = explainer("segment"), explainer("segment", 0.2)
    shift = compare(old, new, PICTURES)
    assert shift.task == "segment" and not shift.objects
    for source, one in zip(PICTURES, shift.pictures, strict=True):
        masks = []
        for which, side in enumerate((old, new)):
            scores = side.batch_scores(side.prepare(source)[1]).reshape(4, *TENSORS.shape[2:])
            masks.append(scores.argmax(axis=0))
            for index in range(4):
                area = float((masks[-1] == index).mean())
                assert (one.areas or {}).get(index, (0.0, 0.0))[which] == pytest.approx(area, abs=1e-6)
        largest = [int(np.bincount(mask.ravel(), minlength=4).argmax()) for mask in masks]
        assert (one.target, one.old.index, one.new.index) == (largest[0], *largest)
        region = Region(largest[0], masks[0] == largest[0])
        maps = [side.explain(source, region, method="hirescam").raw_map for side in (old, new)]
        assert one.distance == pytest.approx(far(*maps), abs=1e-5)
    for of_class in shift.classes:
        pairs = [(one.areas or {}).get(of_class.index, (0, 0)) for one in shift.pictures]
        assert of_class.areas == pytest.approx(np.mean(pairs, axis=0))
    assert any("area" in line for line in lines(shift)) and "| class | pictures |" in markdown(shift)
    assert compare(old, old, PICTURES).distance < 1e-6


def test_cells_that_a_crop_leaves_out_are_not_compared() -> None:
    """The other pictures are: one whose largest class NEW does not see ended the comparison."""
    model = altered("segment", 0.0)
    whole = Preprocess(resize=Resize("stretch", (64, 96)))
    old, new = (
        Explainer(model, preprocess=one, probe=False) for one in (whole, Preprocess(crop=Crop((64, 96), "center")))
    )
    rng = np.random.default_rng(659)  # the colours of two classes
    edge = np.empty((64, 300, 3), np.uint8)
    edge[:] = rng.integers(0, 255, 3)
    edge[:, 88:212] = rng.integers(0, 255, 3)
    full = np.repeat(np.repeat(PICTURES[0], 2, 0), 2, 1)
    shift = compare(old, new, [edge, full])
    without, with_map = shift.pictures
    assert (without.maps, with_map.maps) == (0, 1) and without.old.index != without.new.index
    assert without.to_dict()["distance"] is None and shift.distance == with_map.distance
    (of_class,) = [one for one in shift.classes if one.index == without.old.index]
    if with_map.old.index != without.old.index:
        assert of_class.distance is None and any("no map compared" in line for line in lines(shift))
    seen = np.zeros(full.shape[:2], bool)
    seen[32:96, 48:144] = True
    assert isinstance(with_map.subject, Region) and not (np.asarray(with_map.subject.region) & ~seen).any()


def test_embeddings_and_values(tmp_path: Path) -> None:
    old, new = explainer("embed"), explainer("embed", 0.2)
    shift = compare(old, new, PICTURES, target=Similarity(PICTURES[0]))
    for source, one in zip(PICTURES, shift.pictures, strict=True):
        vectors = [
            [side.batch_scores(side.prepare(x)[1])[0].astype(float) for x in (source, PICTURES[0])]
            for side in (old, new)
        ]
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in vectors]
        assert [one.old.probability, one.new.probability] == pytest.approx(cosines, abs=1e-5)
        maps = [side.explain(source, Similarity(PICTURES[0]), method="hirescam").raw_map for side in (old, new)]
        assert one.distance == pytest.approx(far(*maps), abs=1e-4) and not one.flipped
    assert "changed by" in lines(shift)[0] and "flipped" not in "\n".join(lines(shift))
    assert Condition.parse("predictions").decide(shift).failed is None
    values = [explainer("regress-two", noise, task="regress") for noise in (0.0, 0.2)]
    shift = compare(*values, PICTURES, target=Value("value1", 1))
    scores = [side.batch_scores(side.prepare(PICTURES[2])[1])[0] for side in values]
    assert [shift.pictures[2].old.probability, shift.pictures[2].new.probability] == pytest.approx(
        [s[2] for s in scores]
    )
    files.write_pieces(tmp_path / "page.html", page.pieces(shift))
    assert "could not be drawn" not in (tmp_path / "page.html").read_text("utf-8")
    one = compare(*(explainer("regress", noise, kind="regression", scores="value0") for noise in (0.0, 0.2)), PICTURES)
    assert one.task == "regress" and not one.flipped and one.distance > 0 and "changed by" in lines(one)[0]


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: ("yolov8", "classifier"), {}, ["OLD is a detector and NEW a classifier", "--task"]),
        (lambda: ("yolov8", "segment"), {}, ["NEW a segmentation"]),
        (lambda: ("embed", "embed"), {}, ["likeness to one picture", "--like"]),
        (lambda: ("yolov8", "yolov8"), {"truth": [0, 1, 2, 0]}, ["true class", "--boxes"]),
        (lambda: ("yolov8", "yolov8"), {"regions": {"a.png": [[0, 0, 9, 9]]}}, ["one for each box"]),
        (lambda: ("yolov8", "yolov8"), {"target": Value("x")}, ["leave the target out"]),
        (lambda: ("classifier", "classifier"), {"target": Similarity([1.0, 2.0])}, ["leave the target out"]),
        (lambda: ("detr", "yolov8"), {}, ["OLD has 4 classes and NEW has 3"]),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    make: Callable[[], tuple[str, str]], options: dict[str, Any], words: list[str]
) -> None:
    old, new = (explainer(form) for form in make())
    with pytest.raises(SettingError) as caught:
        compare(old, new, PICTURES, **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_scores_that_are_no_numbers_are_refused() -> None:
    model = detectors.build("yolov8")
    (bias, *_) = (one for one in model.graph.initializer if len(one.dims) == 4)
    values = numpy_helper.to_array(bias) * np.nan
    bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), bias.name))
    task = (("output0",), explainer("yolov8").terms.readout.task)
    broken = Explainer(model.SerializeToString(), preprocess="0..1", probe=False, task=task)
    with pytest.raises(ModelError, match="NEW gives scores that are not finite for the picture 'a'"):
        compare(explainer("yolov8"), broken, PICTURES[:1], names=["a"])


def test_the_layer_in_which_two_detectors_part_is_found() -> None:
    model = detectors.build("yolov8")
    convolutions = [one for one in model.graph.initializer if len(one.dims) == 4]
    weights = convolutions[2]
    values = numpy_helper.to_array(weights).copy()
    values[0] *= 1.5
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    new = Explainer(model.SerializeToString(), preprocess="0..1", probe=False)
    result = blame(explainer("yolov8"), new, PICTURES)
    assert result.verdict == "layer" and result.first is not None and result.first.node == weights.name
    assert blame(explainer("yolov8"), explainer("yolov8"), PICTURES).verdict == "agree"


@pytest.mark.slow
def test_the_command(run: Run, tmp_path: Path) -> None:  # noqa: F811 - a fixture
    for name, noise in (("old", 0.0), ("new", 0.4)):
        (tmp_path / f"{name}.onnx").write_bytes(altered("yolov8", noise))
        (tmp_path / f"{name}_embed.onnx").write_bytes(altered("embed", noise))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, pixels in enumerate(PICTURES):
        image.write_png(folder / f"{k}.png", pixels)
    pair = [str(tmp_path / "old.onnx"), str(tmp_path / "new.onnx"), str(folder), "--preprocess", "0..1"]
    reports = [f"--{kind}={tmp_path / kind}" for kind in ("report", "junit", "markdown")]
    result = run("compare", *pair, "--json", "--fail-on", "predictions > 1%", *reports)
    assert result.code == 5, result.err
    document = json.loads(result.out)
    expected = flips().to_dict()
    assert document["objects"] == expected["objects"] and document["distance"] == pytest.approx(expected["distance"])
    assert document["layers"] == {"old": "each box's own layer", "new": "each box's own layer"}
    assert document["blame"]["verdict"] == "layer"
    assert "boxes flipped" in (tmp_path / "junit").read_text() and "lost" in (tmp_path / "markdown").read_text()
    embed = [str(tmp_path / f"{name}_embed.onnx") for name in ("old", "new")]
    visible = run("compare", *embed, str(folder), "--preprocess", "0..1", "--like", str(folder / "0.png"))
    assert visible.code == 0 and "similarity changed by" in visible.out, visible
    refused = run("compare", *embed, str(folder), "--preprocess", "0..1")
    assert refused.code == 2 and "--like" in refused.err
