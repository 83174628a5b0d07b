"""On a real network and labelled photographs the numbers rank as they must."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcam import Explainer, models
from onnxcam.cam.registry import methods
from onnxcam.evaluation.judge import evaluate
from tests.support.batches import imagenet

METHODS = ["gradcam", "activationmap", "randomcam"]


def labelled() -> tuple[list[Path], list[int]]:
    """Twenty labelled photographs, from a package that carries them, and two bundled ones."""
    paths, classes = imagenet()
    return [*paths, models.path("cat.png"), models.path("coffee.png")], [*classes, 282, 967]


@pytest.mark.slow
@pytest.mark.skipif(not set(METHODS) <= set(methods()), reason="activationmap and randomcam are not registered")
def test_gradcam_before_activations_before_chance() -> None:
    paths, classes = labelled()
    evaluation = evaluate(
        Explainer(models.path(models.MODEL)),
        paths,
        methods=METHODS,
        metrics=["insertion", "deletion", "randomization"],
        targets=classes,
        steps=16,
    )
    assert evaluation.accuracy is not None and evaluation.accuracy > 0.6
    for metric in ("insertion", "deletion"):
        assert evaluation.ranking(metric)[0] == "gradcam" and evaluation.ranking(metric)[-1] == "randomcam", metric
    # the map of activations cannot tell that the scores' own layer was redrawn; that of gradients can
    cascade = {method: evaluation.stages[method]["randomization"].mean(axis=1) for method in METHODS}
    assert cascade["activationmap"][0] > 0.999 and abs(cascade["gradcam"][0]) < 0.3
    assert abs(cascade["gradcam"]).max() < 0.3 < cascade["activationmap"].mean()
