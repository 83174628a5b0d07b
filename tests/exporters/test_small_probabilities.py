"""Probabilities next to 0 and 1, which ONNX Runtime's Sigmoid has right to a part of 1 and not of their value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcam.errors import VerificationError
from onnxcam.exporters import parity, task_scalars
from onnxcam.targets.tasks import from_entry
from tests.support.explainable import manifest_of

BOXES = {"first": 0, "size": 4, "width": 6, "before": 0, "components_first": False}
TASK = {
    "task": "detect", "boxes": BOXES, "objectness": {**BOXES, "first": 4, "size": 1},
    "scores": {**BOXES, "first": 5, "size": 1}, "width": 6, "classes": 1, "candidates": 5, "labels": None,
    "box_format": "cxcywh", "unit": "pixels", "activation": None, "background": None, "overlapping": True,
    "one_picture": False,
}  # fmt: skip


def test_resolution_is_what_rounded_probabilities_make_of_a_gradient() -> None:
    rng = np.random.default_rng(0)
    p = 1 / (1 + np.exp(-rng.uniform(-14, -3, (40, 9))))
    p[1::2] = 1 - p[1::2]
    places = np.argsort(rng.random(p.shape), axis=1)[:, :2]
    for target in (task_scalars.Sum(rng.normal(size=p.shape)), task_scalars.Product(places)):
        if isinstance(target, task_scalars.Sum):
            slopes = target.weights
        else:
            slopes = np.zeros(p.shape)
            np.put_along_axis(slopes, places, np.take_along_axis(p, places[:, ::-1], axis=1), axis=1)
        rounded = p + parity.STEP * rng.choice([-1, 1], p.shape)
        far = parity.distance(slopes * rounded * (1 - rounded), slopes * p * (1 - p))
        resolution = task_scalars.resolution(target, p, parity.STEP)
        assert (far <= resolution * 1.01).all() and (far >= 0.8 * resolution).all() and resolution.max() > 1e-4
        # other numbers than probabilities are compared as strictly as ever
        assert not task_scalars.resolution(target, p - 2, parity.STEP).any()
    assert not task_scalars.resolution(task_scalars.Cosine(p), p, parity.STEP).any()
    assert not task_scalars.resolution(np.zeros(40, np.int64), p, parity.STEP).any()


def test_gradients_are_compared_at_scores_that_are_not_next_to_0_or_1() -> None:
    task = from_entry(TASK)
    columns = np.zeros((2, 5, 6))
    columns[..., 4] = 1
    columns[0, :, 5] = [1, 1e-6, 0.4, 0.3, 0]  # the third and the fourth
    columns[1, :, 5] = [1e-6, 3e-6, 2e-6, 0, 0]  # none: the best is the second
    drawn = [task_scalars._places(task, columns.reshape(2, -1), np.random.default_rng(n)) for n in range(30)]
    assert {tuple(best) for best, _ in drawn} == {(2, 1)}
    assert {int(other[0]) for _, other in drawn} == {2, 3}
    assert {int(other[1]) for _, other in drawn} == set(range(5))


def export(bias: float, form: str) -> Any:
    """A classifier with one sigmoid, or a detector, whose probabilities are about exp(bias)."""
    torch = pytest.importorskip("torch")
    from onnxcam.exporters import pytorch
    from tests.exporters.test_torch_tasks import Net

    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net("boxes" if form == "boxes" else "regress")

        def forward(self, x: Any) -> Any:
            if form == "boxes":
                boxes, scores = self.net(x)
                return boxes, (scores.logit() + bias).sigmoid()
            return (self.net(x)[:, :1] + bias).sigmoid()

    options = {"task": "detect"} if form == "boxes" else {}
    return manifest_of(pytorch.export(Shifted(), torch.randn(1, 3, 16, 16), None, layers="net.body", **options))


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("form", ["boxes", "binary"])
def test_a_model_with_small_probabilities_is_exported(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = export(-12.0, form)["parity"]
    assert 1e-3 < record["scores"] < record["tolerance"] and record["activations"] < 1e-5
    monkeypatch.setattr(parity, "STEP", 0.0)
    with pytest.raises(VerificationError, match="scores of"):
        export(-12.0, form)
