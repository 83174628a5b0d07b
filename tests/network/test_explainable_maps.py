"""Maps that a file computes, against their formulas and against pytorch-grad-cam."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import onnxcam
from tests.support import models
from tests.support import torch_models as twin
from tests.support.batches import batch
from tests.support.explainable import augment, gradcam, hirescam
from tests.support.runtime import run
from tests.support.torchvision_stub import import_torchvision


@pytest.mark.torch
@pytest.mark.parametrize("pool", ["GlobalAveragePool", "Flatten"])
def test_maps_against_their_formulas(pool: str) -> None:
    source = models.tiny_cnn(size=(24, 32), pool=pool)
    x, target = batch(4, (3, 24, 32)), np.array([0, 1, 2, 3])
    explainable = augment(source, ["relu2"], ("gradcam", "hirescam"))
    actual = run(explainable, input=x, target=target)
    _, a, g = twin.gradients(source, x, target)
    assert np.abs(actual["heatmap/gradcam"] - gradcam(a, g)).max() <= 1e-5 * np.abs(gradcam(a, g)).max()
    assert np.abs(actual["heatmap/hirescam"] - hirescam(a, g)).max() <= 1e-5 * np.abs(hirescam(a, g)).max()
    same = np.allclose(actual["heatmap/gradcam"], actual["heatmap/hirescam"], rtol=1e-4, atol=1e-6)
    assert same == (pool == "GlobalAveragePool")  # with a pooled linear head the two methods are one


def test_conservation_behind_pooling_and_a_linear_layer() -> None:
    source = models.tiny_cnn(size=(24, 32))
    x, target = batch(4, (3, 24, 32)), np.array([0, 1, 2, 3])
    actual = run(augment(source), input=x, target=target)
    total = (actual["activations"].astype(np.float64) * actual["gradients"]).sum(axis=(1, 2, 3))
    assert np.allclose(total, actual["logits"][np.arange(4), target] - twin.weights(source)["b3"][target], atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize("layers", [["relu2"], ["relu1"], ["relu1", "relu2"]])
@pytest.mark.parametrize("pool", ["GlobalAveragePool", "Flatten"])
def test_maps_against_pytorch_grad_cam(method: str, layers: list[str], pool: str) -> None:
    import_torchvision()
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("pytorch_grad_cam")
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    source = models.tiny_cnn(size=(40, 56), pool=pool)
    x, target = batch(3, (3, 40, 56)), [4, 0, 2]
    module = twin.build(source)
    theirs = {"gradcam": package.GradCAM, "hirescam": package.HiResCAM}[method]
    with theirs(model=module, target_layers=[getattr(module, name) for name in layers]) as cam:
        want = cam(input_tensor=torch.from_numpy(x), targets=[ClassifierOutputTarget(t) for t in target])
    explainer = onnxcam.Explainer(source, layers=layers, methods=(method,), providers=["CPUExecutionProvider"])
    actual = explainer.attribute(x, target, method, layer=layers)
    assert actual.shape == want.shape == (3, 40, 56)
    assert np.abs(actual - want).max() <= 1e-4
    assert want.max(axis=(1, 2)).min() > 0.5  # maps with something in them
