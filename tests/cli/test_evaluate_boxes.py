"""`onnxcam evaluate` on a detector, held to the explanations of the boxes that it reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcam import models
from onnxcam.evaluation import boxes as box_files
from onnxcam.targets.detections import iou
from onnxcam.targets.scalars import Box
from tests.cli.conftest import Run, tree
from tests.support import scenes


@pytest.mark.slow
def test_the_boxes_of_a_detector(run: Run, tmp_path: Path) -> None:
    """Each number against the explanations of the boxes that the detector reports, by a pointing game of our own."""
    detector, explainer = models.path("scenes/detector.onnx"), scenes.detector()
    selected = scenes.PICTURES[:3]
    metrics = ("--metric", "pointing_game", "--metric", "energy_in_box", "--metric", "own_box", "--metric", "deletion")
    out = tmp_path / "out"
    common = ("--boxes", scenes.TRUTH, "--method", "layercam", "--preprocess", "0..1")
    result = run("evaluate", detector, *selected, *common, *metrics, "--json", "-o", out)
    assert result.code == 0, result.err
    record = result.json()
    drawn = box_files.read(scenes.TRUTH)
    expected: dict[tuple[str, int], tuple[bool, float]] = {}
    for path in selected:
        reported = explainer.boxes(str(path))
        for truth in drawn.of(str(path)):
            edges = np.array([truth.x0, truth.y0, truth.x1, truth.y1])
            same = [one for one in reported if one.label == truth.label]
            overlaps = iou(edges, np.array([one.box for one in same])) if same else np.zeros(1)
            if overlaps.max() < 0.5:
                continue
            best = same[int(overlaps.argmax())]
            heatmap = explainer.explain(str(path), Box(best.index), "layercam").heatmap
            y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
            inside = np.zeros(heatmap.shape, bool)
            (left, top), (right, bottom) = np.floor(edges[:2]).astype(int), np.ceil(edges[2:]).astype(int)
            inside[top:bottom, left:right] = True
            expected[path.name, best.index] = (bool(inside[y, x]), float(heatmap[inside].sum() / heatmap.sum()))
    assert (
        record["objects"]["pictures"] == 3 and record["objects"]["detected"] == len(record["each"]) == len(expected) > 6
    )
    for one in record["each"]:
        hit, energy = expected[Path(one["picture"]).name, one["candidate"]]
        values = one["values"]["layercam"]
        assert values["pointing_game"] == hit and values["energy_in_box"] == pytest.approx(energy, abs=0.02)
        assert values["own_box"] is None or 0 <= values["own_box"] <= 1
    assert record["methods"]["layercam"]["pointing_game"]["mean"] > 0.9
    assert tree(out) == {"evaluation.json", "evaluation.csv", "report.html"}
    visible = run("evaluate", detector, *selected, *common, *metrics[:2])
    assert visible.code == 0 and "layercam" in visible.out and "pointing" in visible.out
    refused = run("evaluate", detector, *selected, "--metric", "randomization", "--preprocess", "0..1")
    assert refused.code == 2 and "randomization" in refused.sentence
