"""PyTorch models that are no classifiers: exported, and their files compared with autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

from onnxcam.errors import ModelError, VerificationError
from onnxcam.exporters import parity, pytorch, task_scalars
from onnxcam.graph.load import serialize
from onnxcam.runtime import open_session, run
from tests.support.explainable import manifest_of

pytestmark = pytest.mark.torch


class Net(nn.Module):
    """Two convolutions and outputs of one form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(sum(map(ord, form)))  # `capture_once` tells networks apart by their weights
        self.form = form
        self.stem, self.relu = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU())
        self.head = nn.Conv2d(8, 4 if form == "segment" else 6, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.head(self.body(self.relu(self.stem(x))))
        if self.form == "segment":
            return {"out": nn.functional.interpolate(y, x.shape[2:], mode="bilinear")}
        if self.form == "lists":
            return [{"boxes": row.flatten(1).mT[:, :4], "scores": row.flatten(1)[4]} for row in y]
        if self.form == "decided":
            return nn.functional.interpolate(y, x.shape[2:], mode="bilinear").argmax(1)
        if self.form == "boxes":
            centres = (torch.arange(16) % 4 * 4 + 2.0, torch.arange(16) // 4 * 4 + 2.0)
            cx, cy = (centre + part.tanh() for centre, part in zip(centres, y.flatten(2)[:, :2].unbind(1), strict=True))
            w, h = (4 + 2 * part.tanh() for part in y.flatten(2)[:, 2:4].unbind(1))
            boxes = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=2)
            return boxes, (4 * y.flatten(2)[:, 4:].mT).sigmoid()
        y = y.mean((2, 3))
        return nn.functional.normalize(y, dim=1) if self.form == "embed" else y


def gradients_of(model: Any, net: Net, feeds: dict[str, np.ndarray], scalar: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of a file and of autograd, at `body`."""
    record = manifest_of(model)
    picture = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(5))
    entry = record["layers"][0]
    session = open_session(serialize(model), ["CPUExecutionProvider"])
    outputs = run(session, [entry["gradients"]], {record["input"]["name"]: picture.numpy()} | feeds)
    values: list[Tensor] = []
    handle = net.body.register_forward_hook(lambda m, i, value: values.append(value))
    total = scalar(net.eval()(picture))
    handle.remove()
    (gradient,) = torch.autograd.grad(total.sum(), values[0])
    return outputs[entry["gradients"]], gradient.numpy()


def exported(form: str, **options: Any) -> tuple[Any, Net]:
    net = Net(form)
    model = pytorch.export(net, torch.randn(1, 3, 16, 16), None, **({"layers": "body"} | options))
    record = manifest_of(model)
    assert record["parity"]["against"] == "torch autograd" and record["parity"]["samples"] == 4
    assert max(record["parity"][quantity] for quantity in parity.QUANTITIES) <= 1e-3
    return model, net


@pytest.mark.slow
def test_a_segmentation_is_exported_and_compared_with_autograd() -> None:
    model, net = exported("segment", layers=None)
    record = manifest_of(model)
    assert record["scores"]["kind"] == "segmentation" and record["scores"]["task"]["channels"] == 4
    assert record["layers"][0]["name"] == "body"
    region = np.array([[2, 4, 11, 13], [0, 0, 16, 5]], np.float32)
    feeds = {"target": np.array([1, 3]), "region": region}
    file, torchs = gradients_of(
        model, net, feeds, lambda out: out["out"][0, 1, 4:13, 2:11].sum() + out["out"][1, 3, :5].sum()
    )
    assert parity.distance(file, torchs).max() < 1e-5


@pytest.mark.slow
def test_several_values_are_exported_and_compared_with_autograd() -> None:
    model, net = exported("regress", task="regress")
    record = manifest_of(model)
    assert record["scores"]["kind"] == "regression" and record["scores"]["task"]["sizes"] == [6]
    file, torchs = gradients_of(model, net, {"target": np.array([4, 2])}, lambda out: out[0, 4] + out[1, 2])
    assert parity.distance(file, torchs).max() < 1e-5


@pytest.mark.slow
def test_an_embedding_is_exported_and_compared_with_autograd() -> None:
    model, net = exported("embed")
    assert manifest_of(model)["scores"]["task"] == {"task": "embed", "size": 6, "unit_norm": True}
    vectors = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    file, torchs = gradients_of(
        model, net, {"reference": vectors},
        lambda out: nn.functional.cosine_similarity(out, torch.from_numpy(vectors), dim=1),
    )  # fmt: skip
    assert parity.distance(file, torchs).max() < 1e-5


@pytest.mark.slow
def test_a_detector_that_returns_tensors_is_exported_and_compared_with_autograd() -> None:
    model, net = exported("boxes", task="detect", boxes_output="output:xyxy,pixels", scores="output_1")
    task = manifest_of(model)["scores"]["task"]
    assert (task["task"], task["candidates"], task["classes"]) == ("detect", 16, 2)
    file, torchs = gradients_of(
        model, net, {"box": np.array([3, 9])}, lambda out: out[1][0, 3].max() + out[1][1, 9].max()
    )
    assert parity.distance(file, torchs).max() < 1e-5


@pytest.mark.slow
def test_a_wrong_scalar_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Autograd of another value than the file's."""
    original = task_scalars.draw

    def draw(*arguments: Any) -> list[task_scalars.Question]:
        return [q._replace(target=task_scalars.Sum(np.roll(q.target.weights, 1, axis=1))) for q in original(*arguments)]

    monkeypatch.setattr(task_scalars, "draw", draw)
    with pytest.raises(VerificationError, match="gradients"):
        pytorch.export(Net("regress"), torch.randn(1, 3, 16, 16), tmp_path / "m.onnx", layers="body", task="regress")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_scores_inside_the_model_are_refused_unless_unverified(capture_once: None) -> None:
    picture = torch.randn(1, 3, 16, 16)
    with pytest.raises(ModelError, match=r"computed inside the model.*verify=False"):
        pytorch.export(Net("decided"), picture, None, layers="body", task="segment")
    record = manifest_of(pytorch.export(Net("decided"), picture, None, layers="body", task="segment", verify=False))
    assert record["scores"]["task"]["channels"] == 6 and record.get("parity") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("segment", {"target": 2}),
        ("segment", {"portable": True, "outputs": "heatmap"}),
        ("regress", {"target": 3, "task": "regress"}),
        ("regress", {"portable": True, "task": "regress"}),
        ("embed", {"portable": True}),
        ("boxes", {"portable": True, "task": "detect"}),
    ],
)
def test_bound_and_portable_files_are_compared_too(capture_once: None, form: str, options: dict[str, Any]) -> None:
    exported(form, **options)


def test_lists_of_boxes_are_told_what_to_become() -> None:
    with pytest.raises(ModelError, match=r"dict per picture \(boxes, scores\).*dynamo=False.*--task detect"):
        pytorch.export(Net("lists"), torch.randn(1, 3, 16, 16), None)
