"""Attributions from gradients, against captum on a module of the same arithmetic.

Both sides compute in float32; the tolerance of 1e-3 leaves room for a ReLU whose input is a rounding error away from
its kink, of which these seeds have none: the differences are about 1e-6.
"""

from __future__ import annotations

from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from onnx import helper

from onnxcam import runtime
from onnxcam.cam.methods import INPUT, find, methods
from onnxcam.cam.methods.attributions import RULES
from onnxcam.errors import MethodError, ModelError
from onnxcam.explain import view as views
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.features import run_head
from onnxcam.explain.sessions import Sessions
from onnxcam.network.network import Network
from onnxcam.network.subgraphs import input_gradient
from onnxcam.targets.objectives import Contrast, Probability, Weights, resolve
from tests.cam import net
from tests.cam.net import parity
from tests.support import models
from tests.support.runtime import run

CPU = ["CPUExecutionProvider"]
# what captum says when it sets requires_grad and hooks; warnings are errors here otherwise
pytestmark = pytest.mark.filterwarnings("ignore:.*(required_grads|backward hooks|deprecated)")
TOLERANCE = 1e-3
TARGET = [4, 0, 2]
WEIGHTS = np.array([1.0, -2.0, 0.0, 0.5, 0.0, 3.0])
SHORT: dict[str, dict[str, Any]] = {"rise": {"masks": 20}, "smoothgrad": {"samples": 3}}
EVERY = methods(INPUT)


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(net.model(), layers=[net.LAYER], providers=CPU)


def x() -> torch.Tensor:
    return torch.from_numpy(net.pictures())


class Scalar(torch.nn.Module):  # type: ignore[misc]
    """One number per row that stands for a target."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        self.net, self.target = net.module(), target

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        scores = self.net(pictures)
        match self.target:
            case Contrast(target=one, other=other):
                return scores[:, one] - scores[:, other]
            case Probability(target=one):
                return scores.softmax(dim=1)[:, one]
            case Weights(weights=weights):
                return scores @ torch.from_numpy(weights).float()
        selected = scores.argmax(dim=1) if self.target is None else torch.tensor(self.target).expand(len(scores))
        # captum repeats rows: the classes repeat with them
        selected = (
            selected if len(selected) == len(scores) else selected.repeat_interleave(len(scores) // len(selected))
        )
        return scores.gather(1, selected[:, None])[:, 0]


TARGETS = {
    "class": 3,
    "contrast": Contrast(4, 1),
    "probability": Probability(2),
    "weights": Weights(WEIGHTS),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("name", ["saliency", "inputxgradient", "guided_backprop", "integrated_gradients"])
def test_equals_captum_for_any_target(explainer: Explainer, name: str, target: Any) -> None:
    scalar = Scalar(target)
    attribute = {
        "saliency": lambda: captum.attr.Saliency(scalar).attribute(x(), abs=False),
        "inputxgradient": lambda: captum.attr.InputXGradient(scalar).attribute(x()),
        "guided_backprop": lambda: captum.attr.GuidedBackprop(scalar).attribute(x()),
        "integrated_gradients": lambda: captum.attr.IntegratedGradients(scalar).attribute(x()),
    }[name]
    want = attribute()
    attribution = explainer.attribution(net.pictures(), target, name)
    assert attribution.dtype == np.float32
    assert parity(attribution, want) <= TOLERANCE
    as_map = explainer.attribute(net.pictures(), target, name, normalize="none")
    assert parity(as_map, want.abs().sum(dim=1)) <= TOLERANCE


@pytest.mark.parametrize("name", ["saliency", "guided_backprop"])
def test_each_row_has_its_class(explainer: Explainer, name: str) -> None:
    method = captum.attr.Saliency if name == "saliency" else captum.attr.GuidedBackprop
    options = {"abs": False} if name == "saliency" else {}
    for target in (TARGET, None):
        selected = torch.tensor(TARGET) if target else net.module()(x()).argmax(dim=1)
        want = method(net.module()).attribute(x(), target=selected, **options)
        assert parity(explainer.attribution(net.pictures(), target, name), want) <= TOLERANCE


def test_a_different_target_for_each_row(explainer: Explainer) -> None:
    """Rows whose objectives are of different kinds go through one scan."""
    mixed = [Contrast(4, 1), 2, Probability(0)]
    attribution = explainer.attribution(net.pictures(), mixed, "integrated_gradients", steps=8)
    for row, target in enumerate(mixed):
        alone = explainer.attribution(net.pictures()[row : row + 1], target, "integrated_gradients", steps=8)
        assert parity(attribution[row : row + 1], alone) <= 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_integrated_gradients_by_every_rule(explainer: Explainer, rule: str) -> None:
    baseline = torch.from_numpy(net.pictures(1, seed=5))
    want = captum.attr.IntegratedGradients(net.module()).attribute(
        x(), baselines=baseline, target=torch.tensor(TARGET), n_steps=7, method=rule
    )
    attribution = explainer.attribution(
        net.pictures(), TARGET, "integrated_gradients", steps=7, baseline=baseline.numpy()[0], rule=rule
    )
    assert parity(attribution, want) <= TOLERANCE


def test_integrated_gradients_add_up(explainer: Explainer) -> None:
    """Completeness, proposition 1 of the paper: the attributions add up to F(x) - F(x')."""
    attribution = explainer.attribution(
        net.pictures(), TARGET, "integrated_gradients", steps=200, baseline=[0.3, 0.0, -0.2]
    )
    start = torch.tensor([0.3, 0.0, -0.2])[None, :, None, None].expand(1, 3, *net.SIZE)
    rows = torch.arange(3)
    gained = net.module()(x())[rows, TARGET] - net.module()(start).expand(3, -1)[rows, TARGET]
    assert np.allclose(attribution.sum(axis=(1, 2, 3)), gained.detach(), atol=0.02 * float(gained.detach().abs().max()))


@pytest.mark.parametrize("absolute", [False, True])
def test_smoothgrad_equals_captum_under_the_same_noise(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    samples, stdev = 4, 0.3
    noise = np.random.default_rng(11).standard_normal((samples, 3, *net.SIZE), dtype=np.float32)

    def normal(mean: float, spread: torch.Tensor) -> torch.Tensor:
        assert spread.shape == (3 * samples, 3, *net.SIZE)
        return mean + spread * torch.from_numpy(noise).repeat(3, 1, 1, 1)

    monkeypatch.setattr(torch, "normal", normal)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(net.module()))
    want = tunnel.attribute(x(), nt_samples=samples, stdevs=stdev, target=torch.tensor(TARGET), abs=absolute)
    attribution = explainer.attribution(
        net.pictures(), TARGET, "smoothgrad", seed=11, samples=samples, stdev=stdev, absolute=absolute
    )
    assert parity(attribution, want) <= TOLERANCE


def test_smoothgrad_takes_its_noise_from_the_picture_s_range(explainer: Explainer) -> None:
    pictures = net.pictures(1) * 3
    span = float(pictures.max() - pictures.min())
    usual, explicit = (
        explainer.attribution(pictures, 1, "smoothgrad", samples=3, stdev=stdev) for stdev in (None, 0.15 * span)
    )
    assert parity(usual, explicit) <= 1e-4
    still = explainer.attribution(pictures, 1, "smoothgrad", samples=2, stdev=0)
    assert parity(still, explainer.attribution(pictures, 1, "saliency")) <= 1e-6


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_guided_gradcam_equals_captum(explainer: Explainer, interpolation: str) -> None:
    method = captum.attr.GuidedGradCam(net.module(), net.module().relu3)
    want = method.attribute(x(), target=torch.tensor(TARGET), interpolate_mode=interpolation)
    attribution = explainer.attribution(net.pictures(), TARGET, "guided_gradcam", interpolation=interpolation)
    assert parity(attribution, want) <= TOLERANCE


def test_guided_gradcam_reads_the_layer_it_is_told(explainer: Explainer) -> None:
    method = captum.attr.GuidedGradCam(net.module(), net.module().relu2)
    want = method.attribute(x(), target=torch.tensor(TARGET))
    assert parity(explainer.attribution(net.pictures(), TARGET, "guided_gradcam", "relu2"), want) <= TOLERANCE


def test_a_network_without_relu_is_not_guided() -> None:
    """Clip is no Relu to guided backpropagation, as ReLU6 is none to captum's."""
    source = models.tiny_cnn()
    for node in source.graph.node:
        if node.op_type == "Relu":
            node.op_type = "HardSwish"
    explainer = Explainer(source, providers=CPU)
    pictures = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    guided, plain = (explainer.attribution(pictures, 1, name) for name in ("guided_backprop", "saliency"))
    assert np.array_equal(guided, plain)


FORMS: dict[str, dict[str, Any]] = {"NHWC": {"nhwc": True}, "two rows": {"batch": 2}, "one row": {"batch": 1}}


@pytest.mark.sample(6)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EVERY)
def test_layout_and_fixed_rows_change_nothing(explainer: Explainer, name: str, form: str) -> None:
    other = Explainer(net.model(**FORMS[form]), layers=[net.LAYER], providers=CPU)
    pictures = net.pictures()
    native = np.ascontiguousarray(pictures.transpose(0, 2, 3, 1)) if form == "NHWC" else pictures
    options = SHORT.get(name, {})
    want = explainer.attribution(pictures, TARGET, name, **options)
    assert parity(other.attribution(native, TARGET, name, **options), want) <= 1e-4


@pytest.mark.parametrize("name", EVERY)
def test_a_picture_s_map_does_not_depend_on_its_batch(explainer: Explainer, name: str) -> None:
    options = SHORT.get(name, {})
    together = explainer.attribution(net.pictures(), TARGET, name, **options)
    alone = explainer.attribution(net.pictures()[2:], TARGET[2], name, **options)
    assert parity(alone, together[2:]) <= 1e-4


@pytest.mark.sample(5)
@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_whole_numbers_are_taken_as_floats(explainer: Explainer, name: str, nhwc: bool) -> None:
    """The gradient with respect to uint8 pictures is that at the same numbers as floats."""
    pictures = np.random.default_rng(2).integers(0, 256, size=(3, 3, *net.SIZE), dtype=np.uint8)
    other = Explainer(net.model(uint8=True, nhwc=nhwc), layers=[net.LAYER], providers=CPU)
    native = np.ascontiguousarray(pictures.transpose(0, 2, 3, 1)) if nhwc else pictures
    options = SHORT.get(name, {})
    scaled = pictures.astype(np.float32) / 64
    factor = 64 if name in ("saliency", "guided_backprop", "guided_gradcam", "smoothgrad") else 1
    want = explainer.attribution(scaled, TARGET, name, **options)
    assert parity(other.attribution(native, TARGET, name, **options) * factor, want) <= TOLERANCE


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What kinds of sessions run: for each run of one that takes the picture, its outputs."""
    runs: list[str] = []
    real = runtime.run

    def counting(session: Any, outputs: Any, feeds: Any) -> Any:
        if "input" in feeds:
            runs.append(" ".join(outputs))
        return real(session, outputs, feeds)

    monkeypatch.setattr(runtime, "run", counting)
    return runs


@pytest.mark.parametrize("target", [None, TARGET, -1])
@pytest.mark.parametrize("name", ["saliency", "inputxgradient", "guided_backprop"])
def test_one_gradient_costs_one_run_of_the_model(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch, name: str, target: Any
) -> None:
    runs = counted(monkeypatch)
    explainer.attribution(net.pictures(), target, name)
    assert runs == ["onnxcam.scores onnxcam.gradient"]
    explainer.attribute(net.pictures(), target, name)
    explainer.attribute(net.pictures(), target, [name])
    assert len(runs) == 3


def test_two_methods_of_one_gradient_share_it(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    want = [explainer.attribute(net.pictures(), TARGET, name) for name in ("saliency", "inputxgradient")]
    runs = counted(monkeypatch)
    maps = explainer.attribute(net.pictures(), TARGET, ["saliency", "inputxgradient"])
    assert len(runs) == 1
    assert np.array_equal(maps, want)


def test_the_run_computes_the_forward_pass_once() -> None:
    """The session of an input gradient holds each convolution once forward and once backward."""
    subgraph = input_gradient(Network(net.model()))
    convolutions = [node.op_type for node in subgraph.graph.node if "Conv" in node.op_type]
    assert len(convolutions) == 6
    assert [i.name for i in subgraph.graph.input] == ["input", "onnxcam.target"]
    scores, _ = run(subgraph, {"input": net.pictures(), "onnxcam.target": np.array([-1, 2, 0])}).values()
    assert parity(scores, net.module()(x())) <= 1e-5


def test_an_examination_gives_the_same(explainer: Explainer) -> None:
    examination = explainer.examine(net.pictures())
    for name in ("saliency", "guided_backprop", "guided_gradcam", "occlusion"):
        assert (
            parity(examination.attribution(TARGET, name), explainer.attribution(net.pictures(), TARGET, name)) <= 1e-5
        )
    maps = examination.attribute(TARGET, ["gradcam", "saliency"], normalize="none")
    assert np.array_equal(maps[0], explainer.attribute(net.pictures(), TARGET, "gradcam", normalize="none"))
    assert parity(maps[1], explainer.attribute(net.pictures(), TARGET, "saliency", normalize="none")) <= 1e-5


def test_an_input_method_is_computed_once_for_several_layers(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = explainer.attribute(net.pictures(), TARGET, "saliency", normalize="none")
    runs = counted(monkeypatch)
    maps = explainer.attribute(net.pictures(), TARGET, "saliency", [net.LAYER, "relu2"], normalize="none")
    assert len(runs) == 1
    assert np.allclose(maps, want)


@pytest.mark.parametrize("ending", ["Softmax", "Sigmoid"])
def test_a_file_that_ends_in_probabilities_is_explained_by_its_logits(explainer: Explainer, ending: str) -> None:
    other = Explainer(net.model(ending=ending), layers=[net.LAYER], providers=CPU)
    attribution = other.attribution(net.pictures(), TARGET, "saliency")
    assert parity(attribution, explainer.attribution(net.pictures(), TARGET, "saliency")) <= 1e-5


def test_a_single_logit_is_explained_on_either_side() -> None:
    explainer = Explainer(models.tiny_cnn(ending="Sigmoid", classes=1), providers=CPU)
    pictures = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    yes, no = (explainer.attribution(pictures, target, "saliency") for target in (1, 0))
    assert np.array_equal(yes, -no) and yes.any()
    best = explainer.predict(pictures).argmax(axis=1)
    attribution = explainer.attribution(pictures, None, "saliency")
    assert np.array_equal(attribution, np.where(best[:, None, None, None] == 1, yes, no))


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("integrated_gradients", {"steps": 0}, "steps=0; expected a whole number of at least 1"),
    ("integrated_gradients", {"rule": "simpson"}, "rule='simpson'; expected one of gausslegendre"),
    ("integrated_gradients", {"baseline": [1.0, 2.0]}, r"baseline of shape \[2\]; expected a finite number, 3 of them"),
    ("integrated_gradients", {"baseline": np.nan}, "expected a finite number"),
    ("smoothgrad", {"samples": 2.5}, "samples=2.5; expected a whole number"),
    ("smoothgrad", {"stdev": -1.0}, "stdev=-1.0; expected a number of at least 0"),
    ("guided_gradcam", {"interpolation": "cubic"}, "interpolation='cubic'; expected 'nearest' or 'bilinear'"),
    ("saliency", {"steps": 3}, "method 'saliency' has no option 'steps'; it has none"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG)
def test_wrong_options_are_refused(explainer: Explainer, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        explainer.attribution(net.pictures(), TARGET, name, **options)


def test_every_attribution_says_its_formula_and_paper() -> None:
    for name in EVERY:
        assert "https://arxiv.org/abs/" in find(name).formula


def test_arithmetic_of_whole_numbers_is_refused() -> None:
    source = net.model(uint8=True)
    source.graph.node[0].input[0] = "larger"
    source.graph.node.insert(0, helper.make_node("Max", ["input", "input"], ["larger"], name="larger"))
    explainer = Explainer(source, layers=[net.LAYER], providers=CPU)
    pictures = np.zeros((1, 3, *net.SIZE), np.uint8)
    with pytest.raises(ModelError, match=r"computes Max \('larger'\) with the whole numbers of its input 'input'"):
        explainer.attribution(pictures, 1, "saliency")
    assert explainer.attribute(pictures, 1, "gradcam").shape == (1, *net.SIZE)


def test_changed_pictures_of_whole_numbers_are_rounded() -> None:
    """Where a method looks at the layer of changed pictures, the model takes them as it takes any."""
    sessions = Sessions(net.model(uint8=True), lambda data, _: runtime.open_session(data, CPU))
    pictures = np.random.default_rng(2).integers(0, 256, size=(2, 3, *net.SIZE), dtype=np.uint8)
    head_run = run_head(sessions, pictures, [net.LAYER], size=None)
    view = views.view(head_run, net.LAYER, resolve(1, head_run.scores, head_run.batch.readout))
    same = view.at(view.input.activations + 0.3)
    assert np.array_equal(same.scores, head_run.scores)
    moved = view.at(view.input.activations + 300)
    assert np.array_equal(moved.scores, view.at(np.full(pictures.shape, 255, np.float32)).scores)


@pytest.mark.slow
def test_any_size_of_picture(explainer: Explainer) -> None:
    other = Explainer(models.tiny_cnn(size=None), providers=CPU)
    fixed = Explainer(models.tiny_cnn(size=(36, 23)), providers=CPU)
    pictures = np.random.default_rng(0).normal(size=(2, 3, 36, 23)).astype(np.float32)
    for name in EVERY:
        options = SHORT.get(name, {})
        want = fixed.attribution(pictures, 1, name, **options)
        assert parity(other.attribution(pictures, 1, name, **options), want) <= 1e-4


def test_pictures_are_explained_by_attributions_along_with_cams() -> None:
    explainer = Explainer(net.model(), layers=[net.LAYER], preprocess="0..1", providers=CPU)
    pixels = np.random.default_rng(0).integers(0, 256, size=(30, 40, 3), dtype=np.uint8)
    both = explainer.explain(pixels, 2, ["gradcam", "saliency"])
    assert [entry.method for entry in both.per_method] == ["gradcam", "saliency"]
    alone = explainer.explain(pixels, 2, "saliency")
    assert np.allclose(both.per_method[1].heatmap, alone.heatmap, atol=1e-5)
    assert alone.heatmap.shape == (30, 40) and alone.raw_map.shape == net.SIZE
    best = explainer.explain(pixels, method="saliency", top=3)
    for entry in best.maps:
        one = explainer.explain(pixels, entry.target, "saliency")
        assert np.allclose(entry.heatmap, one.heatmap, atol=1e-5)
