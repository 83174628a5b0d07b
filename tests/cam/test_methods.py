"""Methods against plain references, against each other where they must agree, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam.cam.methods import GRAPH, INPUT, LAYER, find, methods
from onnxcam.cam.methods.perturbation import enlarging
from onnxcam.errors import MethodError
from onnxcam.explain import view as views
from onnxcam.explain.explainer import Explainer
from onnxcam.targets.objectives import Contrast, Probability, Weights
from tests.support import models

torch = pytest.importorskip("torch")

from tests.cam import test_against_pytorch_grad_cam as oracle  # noqa: E402
from tests.cam.nets import exported, net, pictures  # noqa: E402

pytestmark = pytest.mark.torch
CPU = ["CPUExecutionProvider"]
OF_TRANSFORMERS = {"rollout", "legrad"}  # tests/cam/test_rollout.py
AT_A_LAYER = [name for name in methods(GRAPH, LAYER) if name not in OF_TRANSFORMERS]
REFERENCES: dict[str, Callable[..., np.ndarray]] = {}


def reference(name: str) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Register a plain computation of a method in torch, from the paper's formula."""

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        REFERENCES[name] = function
        return function

    return register


@pytest.fixture(scope="module")
def deep() -> tuple[Any, Explainer]:
    module = net(deep=True)
    return module, Explainer(exported(module, ("second", "third")), providers=CPU)


@pytest.fixture(scope="module")
def pooled() -> tuple[Any, Explainer]:
    module = net()
    return module, Explainer(exported(module), providers=CPU)


def view_of(explainer: Explainer, x: np.ndarray, target: Any, layer: str = "third") -> views.LayerView:
    examination = explainer.examine(x, layer)
    return views.view(examination._features, layer, examination.objective(target))


def behind(module: Any, a: Any, layer: str = "third") -> Any:
    """The scores from the activations of a layer."""
    return module.head(a if layer == "third" else module.third(a))


def parts(module: Any, x: np.ndarray, classes: list[int]) -> tuple[Any, Any]:
    """Activations and gradients of `third`, float64."""
    module = module.double()
    a = module.third(module.second(module.first(torch.tensor(x, dtype=torch.float64)))).detach().requires_grad_()
    (g,) = torch.autograd.grad(module.head(a)[range(len(x)), classes].sum(), a)
    module.float()
    return a.detach(), g


@reference("activationmap")
def activationmap(module: Any, x: np.ndarray, classes: list[int]) -> np.ndarray:
    return parts(module, x, classes)[0].mean(dim=1).numpy()


@reference("reciprocam")
def reciprocam(module: Any, x: np.ndarray, classes: list[int]) -> np.ndarray:
    a, _ = parts(module, x, classes)
    module = module.double()
    expected = np.zeros((len(x), *a.shape[2:]))
    for row in range(len(x)):
        for i in range(a.shape[2]):
            for j in range(a.shape[3]):
                masked = torch.zeros_like(a[row : row + 1])
                masked[:, :, i, j] = a[row, :, i, j]
                expected[row, i, j] = float(module.head(masked)[0, classes[row]].detach())
    module.float()
    return expected - expected.min(axis=(1, 2), keepdims=True)


def masked_scores(module: Any, x: np.ndarray, classes: list[int], masks: Any) -> np.ndarray:
    """The score of each picture through each of its masks `[N, C, H, W]`."""
    with torch.no_grad():
        return np.stack(
            [module(torch.tensor(x[row : row + 1]) * masks[row][:, None])[:, classes[row]] for row in range(len(x))]
        )


def channel_masks(module: Any, x: np.ndarray) -> tuple[Any, Any]:
    with torch.no_grad():
        a = module.third(module.second(module.first(torch.tensor(x))))
    large = torch.nn.functional.interpolate(a, x.shape[2:], mode="bilinear", align_corners=True)
    flat = large.flatten(2)
    low, high = flat.min(2)[0][..., None, None], flat.max(2)[0][..., None, None]
    return a, (large - low) / (high - low + 1e-8)


def softmaxed(scores: np.ndarray, a: Any) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return (weights[:, :, None, None] * a.numpy()).sum(axis=1)


@reference("iscam")
def iscam(module: Any, x: np.ndarray, classes: list[int], samples: int = 10) -> np.ndarray:
    a, masks = channel_masks(module, x)
    every = [masked_scores(module, x, classes, masks * (i / samples)) for i in range(1, samples + 1)]
    return softmaxed(np.mean(every, axis=0), a)


@reference("sscam")
def sscam(module: Any, x: np.ndarray, classes: list[int], samples: int = 10, stdev: float = 0.2) -> np.ndarray:
    """Noise is drawn anew here, so the comparison is of means over many samples."""
    a, masks = channel_masks(module, x)
    rng = np.random.default_rng(77)
    every = []
    for _ in range(400):
        noise = torch.tensor(rng.normal(0, stdev, masks.shape), dtype=torch.float32)
        every.append(masked_scores(module, x, classes, masks + noise))
    return softmaxed(np.mean(every, axis=0), a)


@reference("smoothgradcam++")
def smoothgradcam(module: Any, x: np.ndarray, classes: list[int], samples: int = 10, stdev: float = 0.15) -> np.ndarray:
    """The same noise as ours: the formula is what is compared."""
    rng = np.random.default_rng(1234)
    a = parts(module, x, classes)[0].numpy()
    spread = (x.max(axis=(1, 2, 3)) - x.min(axis=(1, 2, 3))) * stdev
    gradients = []
    for _ in range(samples):
        noise = rng.normal(0, 1, x.shape) * spread[:, None, None, None]
        gradients.append(parts(module, (x + noise).astype(np.float32), classes)[1].numpy())
    one, two, three = (np.mean([g**power for g in gradients], axis=0) for power in (1, 2, 3))
    alpha = two / (2 * two + a.sum(axis=(2, 3), keepdims=True) * three + 1e-6)
    return ((alpha * np.maximum(one, 0)).sum(axis=(2, 3), keepdims=True) * a).sum(axis=1)


@reference("cam")
def cam(module: Any, x: np.ndarray, classes: list[int]) -> np.ndarray:
    a = parts(module, x, classes)[0].numpy()
    return np.einsum("nc,nchw->nhw", module.head[-1].weight.detach().double().numpy()[classes], a)


@reference("randomcam")
def randomcam(module: Any, x: np.ndarray, classes: list[int]) -> np.ndarray:
    a = parts(module, x, classes)[0].numpy()
    return np.einsum("nc,nchw->nhw", np.random.default_rng(1234).uniform(-1, 1, a.shape[:2]), a)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "sscam" else ()) for name in sorted(REFERENCES)]
)
def test_a_method_is_its_formula(name: str, deep: tuple[Any, Explainer], pooled: tuple[Any, Explainer]) -> None:
    for module, explainer in [pooled] if name == "cam" else [pooled, deep]:
        x, classes = pictures(), [1, 4, 2]
        options = {"samples": 400} if name == "sscam" else {}
        actual = explainer.attribute(x, classes, name, "third", normalize="none", size="layer", **options)
        want = np.maximum(REFERENCES[name](module, x, classes), 0)
        tolerance = 3e-2 if name == "sscam" else 1e-4
        assert np.linalg.norm(actual - want) <= tolerance * np.linalg.norm(want)


def test_every_method_is_compared_with_something() -> None:
    assert set(AT_A_LAYER) == set(REFERENCES) | set(oracle.METHODS)
    assert not set(REFERENCES) & set(oracle.METHODS)


def test_pooling_and_a_linear_layer_make_many_methods_one(pooled: tuple[Any, Explainer]) -> None:
    _, explainer = pooled
    x, target = pictures(), [0, 3, 5]
    view = view_of(explainer, x, target)
    assert (view.activations >= 0).all() and view.affine
    gradcam = view.map("gradcam")
    for name in ("hirescam", "xgradcam"):
        assert np.allclose(view.map(name), gradcam, atol=1e-5)
    size = view.activations.shape[2] * view.activations.shape[3]
    assert np.allclose(find("shapleycam").function(view), gradcam, atol=1e-6)
    assert np.allclose(find("cam").function(view) / size, gradcam, atol=1e-6)
    assert np.allclose(view.map("layercam"), view.map("elementwise"), atol=1e-5)
    drops = (view.gradients * view.activations).sum(axis=(2, 3)) / view.value()[:, None]
    ablated = np.einsum("nc,nchw->nhw", drops, view.activations)
    assert np.allclose(find("ablationcam").function(view), ablated, rtol=1e-4, atol=1e-4)
    # conservation: the map adds up to the score without the bias
    bias = views.view(explainer.examine(x)._features, "third", view.objective).variants(
        3, lambda a, b: (np.zeros((b - a, *view.activations.shape[1:]), np.float32), np.arange(a, b))
    )
    assert np.allclose(view.map("hirescam").sum(axis=(1, 2)), view.value() - bias[range(3), target], atol=1e-4)


def test_with_positive_gradients_layercam_is_hirescam(deep: tuple[Any, Explainer]) -> None:
    view = view_of(deep[1], pictures(), [0, 3, 5], "second")
    view._gradients_by_rules["plain"] = np.abs(view.gradients)
    assert np.allclose(view.map("layercam"), view.map("hirescam"), atol=1e-5)


@pytest.mark.parametrize("method", ["ablationcam", "reciprocam"])
def test_what_an_affine_tail_makes_cheap_is_what_running_it_gives(method: str, pooled: tuple[Any, Explainer]) -> None:
    for target in ([0, 3, 5], Contrast(), Weights([1, -1, 0, 0, 2, 0])):
        quick, slow = (view_of(pooled[1], pictures(), target) for _ in range(2))
        slow.affine = False
        actual, want = (find(method).function(view) for view in (quick, slow))
        assert np.linalg.norm(actual - want) <= 1e-4 * np.linalg.norm(want)


def test_a_probability_takes_the_long_way(pooled: tuple[Any, Explainer]) -> None:
    view = view_of(pooled[1], pictures(), Probability(2))
    runs = []
    real = view.values
    view.values = lambda *arguments: runs.append(1) or real(*arguments)  # type: ignore[method-assign]
    result = find("reciprocam").function(view)
    assert runs and (result.min(axis=(1, 2)) == 0).all() and (result < 1).all() and result.any()


def test_fewer_channels_are_those_of_most_energy(deep: tuple[Any, Explainer]) -> None:
    _, explainer = deep
    x = pictures()
    for method in ("ablationcam", "scorecam"):
        full = explainer.attribute(x, 1, method, "third", size="layer")
        some = explainer.attribute(x, 1, method, "third", size="layer", channels=12)
        every = explainer.attribute(x, 1, method, "third", size="layer", channels=16)
        assert np.allclose(full, every, atol=1e-6)
        assert np.corrcoef(full.ravel(), some.ravel())[0, 1] > 0.5 and not np.allclose(full, some, atol=1e-4)
    for wrong in (-1, 17, 2.5, True):
        with pytest.raises(MethodError, match=r"channels=.*expected 1 to 16"):
            explainer.attribute(x, 1, "scorecam", "third", channels=wrong)


@pytest.mark.parametrize("method", methods(GRAPH))
def test_a_map_is_the_same_inside_the_file_and_outside_it(method: str) -> None:
    source = models.tiny_cnn()
    x = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    inside = Explainer(onnxcam.augment(source, methods=(method,)), providers=CPU)
    beside = Explainer(onnxcam.augment(source, methods=("gradcam",)), providers=CPU)
    assert inside.methods == [method]
    for target in (None, [3, 0, 2]):
        a, b = (either.attribute(x, target, method, normalize="none", size="layer") for either in (inside, beside))
        assert np.allclose(a, b, atol=1e-6) and a.any()


@pytest.mark.sample(12)
@pytest.mark.parametrize("kind", ["NHWC", "one row", "binary", "multilabel"])
@pytest.mark.parametrize("method", AT_A_LAYER)
def test_every_method_takes_every_kind_of_model(method: str, kind: str) -> None:
    source = {
        "NHWC": models.tiny_cnn(nhwc=True),
        "one row": models.tiny_cnn(batch=1),
        "binary": models.tiny_cnn(classes=1, ending="Sigmoid"),
        "multilabel": models.tiny_cnn(classes=4, ending="Sigmoid"),
    }[kind]
    explainer = Explainer(source, providers=CPU)
    shape = (3, 32, 32, 3) if kind == "NHWC" else (3, 3, 32, 32)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    original = x.copy()
    if method == "finercam" and kind in ("binary", "multilabel"):
        with pytest.raises(Exception, match="use gradcam"):
            explainer.attribute(x, None, method)
        return
    maps = explainer.attribute(x, None, method)
    assert maps.shape == (3, 32, 32) and np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1
    assert np.array_equal(x, original)
    assert np.array_equal(maps, explainer.attribute(x, None, method))
    if kind == "NHWC":
        plain = Explainer(models.tiny_cnn(), providers=CPU)
        want = plain.attribute(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), None, method)
        assert np.allclose(maps, want, atol=1e-4)


def test_several_classes_by_a_layer_method_are_those_asked_for_one_by_one(deep: tuple[Any, Explainer]) -> None:
    _, explainer = deep
    examination = explainer.examine(pictures(), "third")
    classes = np.argsort(-examination.scores, axis=1)[:, :3]
    for method in ("gradcam", "ablationcam", "reciprocam", "finercam", "shapleycam"):
        ((maps,),) = examination.class_maps(examination.question(method=method, layer="third"), classes)
        for k in range(3):
            one = explainer.attribute(pictures(), list(classes[:, k]), method, "third", normalize="none", size="layer")
            assert np.allclose(maps[:, k], one, atol=1e-5)


def test_another_seed_draws_other_numbers(deep: tuple[Any, Explainer]) -> None:
    x = pictures()
    for method in ("randomcam", "smoothgradcam++"):
        first, again, other = (deep[1].attribute(x, 1, method, seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(first, again) and not np.allclose(first, other, atol=1e-4)


def test_a_method_draws_the_same_numbers_whatever_else_is_asked_for(deep: tuple[Any, Explainer]) -> None:
    options: dict[str, Any] = {"layer": "second", "normalize": "none", "size": "layer", "samples": 3}
    alone = deep[1].attribute(pictures(), 1, "smoothgradcam++", **options)
    beside = deep[1].attribute(pictures(), 1, ["randomcam", "smoothgradcam++", "smoothgradcam++"], **options)
    assert alone.any() and np.array_equal(alone, beside[1]) and np.array_equal(alone, beside[2])


@pytest.mark.parametrize("target", [Contrast(), Probability(1), Weights([1, -1, 0, 0, 2, 0]), [1, Contrast(), 2]])
def test_finercam_finds_its_rivals_itself(target: Any, deep: tuple[Any, Explainer]) -> None:
    with pytest.raises(MethodError, match=r"'finercam' finds a class's rivals itself.*gradcam"):
        deep[1].attribute(pictures(), target, "finercam", "third")


def test_what_a_method_cannot_do_it_refuses(deep: tuple[Any, Explainer], pooled: tuple[Any, Explainer]) -> None:
    x = pictures()
    with pytest.raises(MethodError, match="use gradcam"):
        deep[1].attribute(x, 1, "cam", "third")
    with pytest.raises(MethodError, match="logits"):
        deep[1].attribute(x, Probability(1), "shapleycam", "third")
    with pytest.raises(MethodError, match=r"'ablationcam' has no option 'samples'; it has 'channels'"):
        deep[1].attribute(x, 1, "ablationcam", "third", samples=3)
    with pytest.raises(MethodError, match="samples=0"):
        pooled[1].attribute(x, 1, "sscam", samples=0)
    with pytest.raises(MethodError, match=r"'scorecam' cannot be stored in an ONNX file.*gradcam"):
        onnxcam.augment(models.tiny_cnn(), methods=("scorecam",))


def test_a_zero_layer_gives_a_zero_map_by_every_method(pooled: tuple[Any, Explainer]) -> None:
    x = pictures(1)
    for method in AT_A_LAYER:
        if find(method).long:
            continue
        view = view_of(pooled[1], x, 1)
        view._values = {name: np.zeros_like(value) for name, value in view._values.items()}
        assert not np.nan_to_num(view.explain(method, {}), nan=1.0).any(), method


@pytest.mark.parametrize(("small", "large"), [(4, 9), (1, 5), (7, 224), (5, 5), (6, 3)])
def test_channels_are_enlarged_as_torch_does(small: int, large: int) -> None:
    row = torch.tensor(np.random.default_rng(0).normal(size=(1, 1, small, 1)))
    want = torch.nn.functional.interpolate(row, (large, 1), mode="bilinear", align_corners=True)[0, 0, :, 0]
    assert np.allclose(enlarging(small, large) @ row[0, 0, :, 0].numpy(), want.numpy(), atol=1e-6)


def test_docstrings_are_formulas_with_their_source() -> None:
    for name in methods():
        text = find(name).formula
        assert len(text) > 30, name
        assert (
            "http" in str(find(name).function.__doc__) or "baseline" in text or "better than" in text or "From" in text
        )
    assert methods(INPUT) == [name for name in methods() if find(name).kind == INPUT]
