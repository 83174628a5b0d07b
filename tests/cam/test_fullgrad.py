"""FullGrad, against pytorch-grad-cam and against its own theorem."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from onnxcam import runtime
from onnxcam.explain import view as views
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.features import run_head
from onnxcam.explain.sessions import Sessions
from onnxcam.graph.biases import biases
from onnxcam.network.names import INPUT
from onnxcam.network.network import Network
from onnxcam.targets.objectives import resolve
from tests.cam import net
from tests.cam.net import parity
from tests.support.torchvision_stub import import_torchvision

CPU = ["CPUExecutionProvider"]
TARGET = [4, 0, 2]


def test_equals_pytorch_grad_cam() -> None:
    """Its map is normalised at the end and so is ours; both resize with OpenCV's half-pixel rule."""
    import_torchvision()
    from pytorch_grad_cam import FullGrad
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = FullGrad(net.module(), [])
    want = cam(torch.from_numpy(net.pictures()).requires_grad_(), [ClassifierOutputTarget(k) for k in TARGET])
    cam.activations_and_grads.release()
    explainer = Explainer(net.model(), layers=[net.LAYER], providers=CPU)
    assert parity(explainer.attribute(net.pictures(), TARGET, "fullgrad"), want) <= 1e-3


def without_linear_biases(source: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in source.graph.initializer:
        if tensor.name in ("hidden.bias", "head.bias"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0, tensor.name))
    return source


def centred() -> onnx.ModelProto:
    """The picture is centred inside the model: constants subtracted, and one that it is subtracted from."""
    source = net.model()
    for name, value in (("mean", [0.3, -0.2, 0.1]), ("level", [0.5, 0.25, 0.0])):
        array = np.asarray(value, np.float32).reshape(3, 1, 1)
        source.graph.initializer.append(numpy_helper.from_array(array, name))
    source.graph.node[0].input[0] = "turned"
    source.graph.node.insert(0, helper.make_node("Sub", ["input", "mean"], ["centred"]))
    source.graph.node.insert(1, helper.make_node("Sub", ["level", "centred"], ["turned"]))
    return source


FORMS: dict[str, Any] = {
    "plain": net.model,
    "NHWC": lambda: net.model(nhwc=True),
    "two rows": lambda: net.model(batch=2),
    "centred": centred,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_contributions_add_up_to_the_score(form: str) -> None:
    """Completeness, proposition 1 of the paper: F(x) = x dF/dx + sum b dF/db where all is piecewise linear."""
    source = without_linear_biases(FORMS[form]())
    sessions = Sessions(source, lambda data, _: runtime.open_session(data, CPU))
    pictures = net.pictures()
    native = np.ascontiguousarray(pictures.transpose(0, 2, 3, 1)) if form == "NHWC" else pictures
    head_run = run_head(sessions, native, [], size=2 if form == "two rows" else None)
    view = views.view(head_run, INPUT, resolve(TARGET, head_run.scores, head_run.batch.readout))
    total = np.zeros(3)
    for first, last, parts_of in view.contributions():
        assert len(parts_of) == (6 if form == "centred" else 4)
        total[first:last] += sum(part.sum(axis=(1, 2, 3), dtype=np.float64) for part in parts_of)
    assert np.allclose(total, view.value(), rtol=1e-4, atol=1e-4)


def test_constants_are_found() -> None:
    terms = biases(Network(centred()).graph, "input", "logits")
    assert [term.value for term in terms] == ["centred", "turned", "stem", "bn", "down"]
    net_bn = net.module().bn
    want = net_bn.bias - net_bn.running_mean * net_bn.weight / torch.sqrt(net_bn.running_var + net_bn.eps)
    assert np.allclose(terms[3].array.ravel(), want.detach(), atol=1e-6)
    assert np.allclose(terms[0].array.ravel(), [-0.3, 0.2, -0.1])
    assert np.allclose(terms[1].array.ravel(), [0.5, 0.25, 0.0])


def test_one_picture_at_a_time() -> None:
    """The gradients of a whole network are much memory: no run has more than one picture."""
    rows = []
    sessions = Sessions(net.model(), lambda data, _: runtime.open_session(data, CPU))
    head_run = run_head(sessions, net.pictures(), [], size=None)
    for first, last, _ in views.view(
        head_run, INPUT, resolve(None, head_run.scores, head_run.batch.readout)
    ).contributions():
        rows.append(last - first)
    assert rows == [1, 1, 1]
