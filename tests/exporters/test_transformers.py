"""Transformers of torchvision and timm: the default layer of each, and its maps against pytorch-grad-cam's."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam.explain.explainer import Explainer
from onnxcam.network import manifest
from tests.support.torchvision_stub import import_torchvision

torch = pytest.importorskip("torch")

from onnxcam.exporters import pytorch, torch_capture  # noqa: E402
from tests.exporters.transformers import CASES, build, pictures  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]
CPU = ["CPUExecutionProvider"]
CLASSES = [4, 0, 2]
# half a minute each; timm's own, and padded windows, are like them
LONG = ("torchvision Swin", "torchvision Swin V2")


def theirs(net: Any, case: Any, layer: Any, x: Any) -> np.ndarray:
    """GradCAM as pytorch-grad-cam computes it, float32 `[N, H, W]`."""
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cam = importlib.import_module("pytorch_grad_cam").GradCAM
        target = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        with cam(model=net, target_layers=[layer], reshape_transform=case.fold) as method:
            return np.asarray(method(input_tensor=x, targets=[target(index) for index in CLASSES]), np.float32)


def differentiated(net: Any, layer: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """A module's output and the gradient of the scores of `CLASSES` there, by torch autograd."""
    values: list[Any] = []
    handle = layer.register_forward_hook(lambda _, __, output: values.append(output.clone()) or values[0].clone())
    scores = net(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[range(len(x)), CLASSES].sum(), values[0])
    return values[0].detach().numpy(), gradient.numpy()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.soak if n in LONG else ()) for n in CASES])
def test_the_default_layer_and_its_map(name: str) -> None:
    case, net, x = CASES[name], build(name), pictures(name)
    named = [case.layer, *filter(None, [case.middle])]
    exported = pytorch.export(net, x[:1], None, layers=named, verify=1)

    # what the exporter put in is taken out again before the graph is searched
    listed = next(layer for layer in onnxcam.layers(exported) if layer.default)
    assert listed.name == case.layer
    assert (listed.layout, listed.grid, listed.prefix_tokens) == (case.layout, case.grid, case.prefix)

    explainer = Explainer(exported.SerializeToString(), providers=CPU)
    modules = dict(net.named_modules())
    raw = explainer.run(x.numpy(), CLASSES, named)
    for layer, *pair in zip(named, raw.activations, raw.gradients, strict=True):
        for actual, want in zip(pair, differentiated(net, modules[layer], x), strict=True):
            far = np.linalg.norm((actual - want).reshape(3, -1), axis=1)
            assert (far <= 1e-3 * np.linalg.norm(want.reshape(3, -1), axis=1)).all()
            assert np.abs(want).reshape(3, -1).max(axis=1).min() > 0

    maps = explainer.attribute(x.numpy(), CLASSES, layer=case.layer)
    assert np.abs(maps - theirs(net, case, modules[case.layer], x)).max() <= 1e-3
    small = explainer.attribute(x.numpy(), CLASSES, "elementwise", layer=case.layer, normalize="none", size="layer")
    assert small.shape == (3, *case.grid) and (small.reshape(3, -1).max(axis=1) > 0).all()


@pytest.mark.parametrize(
    "name", ["torchvision ViT", "Swin", pytest.param("torchvision MaxViT", marks=pytest.mark.soak)]
)
def test_the_exporter_calls_the_default_layer_by_its_module(name: str) -> None:
    case = CASES[name]
    header = manifest.read(pytorch.export(build(name), pictures(name)[:1], None, verify=1))
    assert header is not None
    (entry,) = header["layers"]
    assert (entry["name"], entry["layout"], entry["grid"], entry["prefix_tokens"]) == (
        case.layer, case.layout, list(case.grid), case.prefix
    )  # fmt: skip


@pytest.mark.parametrize("name", ["Swin", "torchvision Swin", "distilled DeiT"])
def test_the_older_exporters_arithmetic_with_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and their shifts made of Slice and Concat by what Shape says."""

    def refuse(*_: Any) -> None:
        raise ValueError("not today")

    monkeypatch.setattr(torch_capture, "_by_torch_export", refuse)
    case, net, x = CASES[name], build(name), pictures(name)
    named = [case.layer, *filter(None, [case.middle])]
    exported = pytorch.export(net, x[:1], None, layers=named, verify=1)
    header = manifest.read(exported)
    assert header is not None and header["source"]["exporter"] == "torchscript"
    assert any(node.op_type == "Shape" for node in exported.graph.node)
    listed = next(layer for layer in onnxcam.layers(exported) if layer.default)
    assert (listed.name, listed.layout, listed.grid, listed.prefix_tokens) == (
        case.layer, case.layout, case.grid, case.prefix
    )  # fmt: skip
    raw = Explainer(exported.SerializeToString(), providers=CPU).run(x.numpy(), CLASSES, named)
    for layer, actual in zip(named, raw.gradients, strict=True):
        _, want = differentiated(net, dict(net.named_modules())[layer], x)
        assert np.linalg.norm(actual - want) <= 1e-3 * np.linalg.norm(want)
