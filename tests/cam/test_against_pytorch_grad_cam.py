"""Every method that pytorch-grad-cam has, number by number, after its own post-processing."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import pytest

from onnxcam.cam.methods import GRAPH, find
from onnxcam.errors import InputError
from onnxcam.explain import view as views
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.maps import fuse
from tests.support.torchvision_stub import import_torchvision

torch = pytest.importorskip("torch")

from tests.cam.nets import exported, net, pictures  # noqa: E402

pytestmark = pytest.mark.torch
CPU = ["CPUExecutionProvider"]
LAYERS = ("first", "second", "third")
# ours -> theirs, and whether its sign is arbitrary there
METHODS = {
    "gradcam": ("grad_cam", "GradCAM", False),
    "hirescam": ("hirescam", "HiResCAM", False),
    "elementwise": ("grad_cam_elementwise", "GradCAMElementWise", False),
    "gradcam++": ("grad_cam_plusplus", "GradCAMPlusPlus", False),
    "xgradcam": ("xgrad_cam", "XGradCAM", False),
    "layercam": ("layer_cam", "LayerCAM", False),
    "eigencam": ("eigen_cam", "EigenCAM", True),
    "eigengradcam": ("eigen_grad_cam", "EigenGradCAM", True),
    "kpcacam": ("kpca_cam", "KPCA_CAM", True),
    "fem": ("fem", "FEM", False),
    "ablationcam": ("ablation_cam", "AblationCAM", False),
    "scorecam": ("score_cam", "ScoreCAM", False),
    "shapleycam": ("shapley_cam", "ShapleyCAM", False),
    "finercam": ("finer_cam", "FinerCAM", False),
    "segeigencam": ("seg_eigen_cam", "SegEigenCAM", False),
}
NETS = {"pooled": {}, "deep": {"deep": True}, "smooth": {"deep": True, "smooth": True}}


@pytest.fixture(scope="module")
def explainers() -> dict[str, tuple[Any, Explainer]]:
    result = {}
    for name, options in NETS.items():
        module = net(**options)
        result[name] = (module, Explainer(exported(module, LAYERS), providers=CPU))
    return result


def theirs(module: Any, method: str, layers: tuple[str, ...], x: np.ndarray, classes: list[int]) -> np.ndarray:
    import_torchvision()
    file, name, _ = METHODS[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method_class = getattr(importlib.import_module(f"pytorch_grad_cam.{file}"), name)
        target = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        cam = method_class(model=module, target_layers=[getattr(module, layer) for layer in layers])
        tensor = torch.from_numpy(x)
        # FinerCAM finds the rivals itself only where it may choose the class
        targets = None if method == "finercam" else [target(index) for index in classes]
        return np.asarray(cam(input_tensor=tensor, targets=targets), np.float32)


def compared(method: str, network: str, layers: tuple[str, ...]) -> bool:
    """Whether there are numbers to compare with."""
    if len(layers) > 1 and (METHODS[method][2] or method == "shapleycam"):
        return False  # a sign that is arbitrary per layer; ShapleyCAM of several layers fails there
    # its authors' code takes a channel away only where no activation is negative
    return not (method == "ablationcam" and network == "smooth")


CASES = [
    (method, network, layers)
    for method in METHODS
    for network in NETS
    for layers in [("third",), ("second",), LAYERS]
    if compared(method, network, layers)
]


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    ("method", "network", "layers"), CASES, ids=lambda part: part if isinstance(part, str) else "+".join(part)
)
def test_numbers_are_the_same(
    method: str, network: str, layers: tuple[str, ...], explainers: dict[str, tuple[Any, Explainer]]
) -> None:
    module, explainer = explainers[network]
    arbitrary = METHODS[method][2]
    x = pictures()
    classes = [int(index) for index in explainer.run(x).scores.argmax(axis=1)]
    if method != "finercam":
        classes = [classes[0], (classes[1] + 1) % 6, 2]
    want = theirs(module, method, layers, x, classes)
    actual = explainer.attribute(x, classes, method, list(layers))
    if not arbitrary:
        assert np.abs(actual - want).max() <= 1e-3
        return
    # ours is ReLU of a map of one sign, theirs of the same map or of its negative
    raw = explainer.examine(x, list(layers))
    view = views.view(raw._features, layers[0], raw.objective(classes))
    maps = find(method).function(view)
    for row in range(len(x)):
        both = [fuse([np.maximum(sign * maps[row : row + 1], 0)], "minmax", x.shape[2:])[0] for sign in (1, -1)]
        assert min(np.abs(one - want[row]).max() for one in both) <= 1e-3
        assert np.allclose(both[0], actual[row], atol=1e-6)


@pytest.mark.parametrize("layers", [("third",), LAYERS], ids="+".join)
@pytest.mark.parametrize("method", ["gradcam", "layercam", "hirescam"])
def test_augmentation_smoothing_is_the_same(
    method: str, layers: tuple[str, ...], explainers: dict[str, tuple[Any, Explainer]]
) -> None:
    module, explainer = explainers["deep"]
    x, classes = pictures(), [1, 4, 2]
    import_torchvision()
    file, name, _ = METHODS[method]
    method_class = getattr(importlib.import_module(f"pytorch_grad_cam.{file}"), name)
    target = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cam = method_class(model=module, target_layers=[getattr(module, layer) for layer in layers])
        want = cam(torch.from_numpy(x), [target(index) for index in classes], aug_smooth=True)
    assert np.abs(explainer.attribute(x, classes, method, list(layers), smooth="augment") - want).max() <= 1e-3
    with pytest.raises(InputError, match="averages maps of the input's size"):
        explainer.attribute(x, classes, method, list(layers), size="layer", smooth="augment")


@pytest.mark.parametrize("method", ["gradcam", "layercam", "gradcam++", "ablationcam"])
def test_eigen_smoothing_is_the_same_up_to_its_sign(method: str, explainers: dict[str, tuple[Any, Explainer]]) -> None:
    module, explainer = explainers["deep"]
    x, classes = pictures(), [1, 4, 2]
    import_torchvision()
    file, name, _ = METHODS[method]
    method_class = getattr(importlib.import_module(f"pytorch_grad_cam.{file}"), name)
    target = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cam = method_class(model=module, target_layers=[module.third])
        want = cam(torch.from_numpy(x), [target(index) for index in classes], eigen_smooth=True)
    actual = explainer.attribute(x, classes, method, "third", smooth="eigen")
    examination = explainer.examine(x, "third")
    terms = find(method).terms
    view = views.view(examination._features, "third", examination.objective(classes))
    raw = view.first_component(view._run_maps([find(method)], True)[0] if find(method).kind == GRAPH else terms(view))
    for row in range(len(x)):
        both = [fuse([np.maximum(sign * raw[row : row + 1], 0)], "minmax", x.shape[2:])[0] for sign in (1, -1)]
        assert min(np.abs(one - want[row]).max() for one in both) <= 1e-3
        assert np.allclose(both[0], actual[row], atol=1e-6)
