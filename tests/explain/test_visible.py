"""What a model never saw of a picture: said in Python and in `explanation.json`, and drawn as such in every file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcam import Explainer, image
from onnxcam.evaluation.judge import evaluate
from tests.support.batches import CPU, RAW, explainable, picture

CASES = Path(__file__).parent.parent / "cases"
CROP = RAW | {"resize": {"mode": "shortest", "size": 40}, "crop": {"size": [32, 32]}}
LETTERBOX = RAW | {"resize": {"mode": "letterbox", "size": [32, 32]}}
BOX = image.Rectangle(12, 4, 44, 36)  # of a picture of 40 x 56


def inside(size: tuple[int, int], boxes: list[image.Rectangle] | None) -> np.ndarray:
    mask = np.full(size, boxes is None)
    for box in boxes or []:
        mask[box.y0 : box.y1, box.x0 : box.x1] = True
    return mask


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_crop_is_told_and_drawn(tmp_path: Path) -> None:
    explainer = Explainer(explainable(), preprocess=CROP, providers=CPU)
    e = explainer.explain(picture(), top=2)
    assert e.visible == [BOX]
    mask = inside((40, 56), e.visible)
    assert not e.heatmap[~mask].any()
    e.save(tmp_path)
    record = json.loads((tmp_path / "explanation.json").read_text("utf-8"))
    assert record["visible"] == [{"x0": 12, "y0": 4, "x1": 44, "y1": 36}]
    marks = image.Marks.of((40, 56), [BOX])
    hatched = marks.draw(e.picture.copy())[~mask]
    for name, one in (("gradcam_overlay.png", e.maps[0]), ("top_predictions/gradcam_top2_crane.png", None)):
        path = next(tmp_path.glob("top_predictions/gradcam_top2_*")) if one is None else tmp_path / name
        drawn = read(path)
        np.testing.assert_array_equal(drawn[~mask], hatched)
        heatmap = e.maps[1].heatmap if one is None else one.heatmap
        np.testing.assert_array_equal(drawn[mask], image.overlay(e.picture, heatmap)[mask])
    np.testing.assert_array_equal(read(tmp_path / "gradcam_overlay.png"), e.overlay())
    colors = read(tmp_path / "gradcam_heatmap.png")
    assert (colors[~mask].std(axis=1) == 0).all(), "greys, which the map's colours are not"
    high = mask & (image.grayscale(e.heatmap) >= 4)
    np.testing.assert_array_equal(colors[high], image.colorize(e.heatmap)[high])
    # the map's values are what they were, in their file too
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "gradcam_grayscale.png")), image.grayscale(e.heatmap)
    )
    np.testing.assert_array_equal(read(tmp_path / "input.png"), e.picture)
    np.testing.assert_array_equal(read(tmp_path / "panel.png"), e.panel())


@pytest.mark.parametrize("preprocess", [RAW, LETTERBOX])
def test_a_picture_that_is_seen_whole_has_no_marks(preprocess: dict, tmp_path: Path) -> None:
    e = Explainer(explainable(), preprocess=preprocess, providers=CPU).explain(picture())
    assert e.visible is None
    np.testing.assert_array_equal(e.overlay(), image.overlay(e.picture, e.heatmap))
    e.save(tmp_path)
    record = json.loads((tmp_path / "explanation.json").read_text("utf-8"))
    assert record["visible"] == [{"x0": 0, "y0": 0, "x1": 56, "y1": 40}]
    np.testing.assert_array_equal(read(tmp_path / "gradcam_heatmap.png"), image.colorize(e.heatmap))


def test_a_crop_inside_the_graph_too_of_any_picture() -> None:
    """The file cuts rows and columns 16 to 32 of 32: on a picture of 72 x 48 these are 36 to 72 and 24 to 48."""
    explainer = Explainer(CASES / "crop_inside.onnx", preprocess="0..1", providers=CPU)
    pixels = np.random.default_rng(0).integers(0, 255, (72, 48, 3), np.uint8)
    e = explainer.explain(pixels, method=["gradcam", "saliency"], normalize="max")
    assert e.visible == [image.Rectangle(24, 36, 48, 72)]
    assert not e.heatmap[~inside((72, 48), e.visible)].any()
    # an attribution covers the input: where it is 0 it was computed to be
    assert e.per_method[1].visible is None
    record = e.to_dict()
    assert [entry["visible"][0]["y0"] for entry in record["methods"]] == [36, 0]
    # what is not visible cannot change the prediction: that is what the marks say
    changed = pixels.copy()
    changed[:36], changed[:, :24] = 0, 255
    assert explainer.explain(changed).predictions == e.predictions
    assert explainer.explain(pixels, smooth="augment").visible == [
        image.Rectangle(24, 36, 48, 72),
        image.Rectangle(0, 36, 24, 72),
    ]


def test_a_mirrored_window_over_everything_has_no_marks() -> None:
    e = Explainer(CASES / "mirror_inside.onnx", preprocess="0..1", providers=CPU).explain(picture())
    assert e.visible is None


def test_an_evaluation_hatches_what_was_not_seen() -> None:
    explainer = Explainer(explainable(), preprocess=CROP, providers=CPU)
    example = evaluate(explainer, [picture()], methods=["gradcam"], metrics=["average_drop"], examples=1).examples[0]
    mask = inside((40, 56), [BOX])
    drawn = example.maps["gradcam"]
    dark = np.rint(picture() * 0.25).astype(np.uint8)  # what a map of 0 looks like
    marked = image.Marks.of((40, 56), [BOX]).draw(dark)
    np.testing.assert_array_equal(drawn[~mask], marked[~mask])
    assert np.median(drawn[~mask] - np.rint(picture() * 0.25)[~mask]) > 40, "unlike a map of 0"
