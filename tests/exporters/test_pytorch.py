"""PyTorch modules as explainable files: numbers, restoring, verification, real architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from onnxcam.errors import ModelError, SettingError, TargetError, VerificationError  # noqa: E402
from onnxcam.exporters import parity, torch_capture  # noqa: E402
from onnxcam.exporters.pytorch import export  # noqa: E402
from onnxcam.network import manifest  # noqa: E402
from tests.exporters.torch_nets import Binary, Functional, InPlace, Reused, Structured, seeded  # noqa: E402
from tests.exporters.torch_numbers import at, close, differentiate, picture, snapshot  # noqa: E402
from tests.support.examples import rest_slow  # noqa: E402
from tests.support.runtime import run  # noqa: E402
from tests.support.torchvision_stub import import_torchvision  # noqa: E402

pytestmark = pytest.mark.torch
nn = torch.nn
F = torch.nn.functional


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "call"), rest_slow([("conv", 0), ("bn", 0), ("relu#0", 0), ("relu", 1), ("deep", 0)])
)
def test_a_layer_is_what_its_module_returned_whatever_is_done_to_it_in_place_later(layer: str, call: int) -> None:
    net = seeded(InPlace()).eval()
    model = export(net, picture(1, 3, 8, 10), None, layers=[layer])
    batch, targets = picture(3, 3, 8, 10, seed=5), [4, 0, 2]
    module = net.get_submodule(layer.partition("#")[0])
    value, gradient, scores = differentiate(net, at(module, call), batch, targets, lambda: net(batch))
    outputs = run(model, batch, target=targets)
    assert list(outputs) == ["logits", "activations", "gradients", "heatmap"]
    close(outputs["logits"], scores)
    close(outputs["activations"], value)
    close(outputs["gradients"], gradient)


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "call"), [("block", 2), ("block#0", 0), ("block#1", 1), ("block.0#1", 1)])
def test_of_several_calls_the_last_counts_and_a_number_picks_another(layer: str, call: int) -> None:
    net = seeded(Reused()).eval()
    model = export(net, picture(2, 3, 9, 9), None, layers=[layer], target="required")
    batch, targets = picture(4, 3, 9, 9, seed=3), [0, 1, 2, 3]
    module = net.get_submodule(layer.partition("#")[0])
    value, gradient, scores = differentiate(net, at(module, call), batch, targets, lambda: net(batch))
    outputs = run(model, batch, target=targets)
    close(outputs["logits"], scores)
    close(outputs["activations"], value)
    close(outputs["gradients"], gradient)


@pytest.mark.slow
def test_several_layers_at_once_by_name_and_by_identity() -> None:
    net = seeded(Reused()).eval()
    model = export(net, picture(1, 3, 9, 9), None, layers=[net.stem, "block#0", net.block, "block.1", net.twin])
    header = manifest.read(model)
    assert header is not None
    assert [entry["name"] for entry in header["layers"]] == ["stem", "block#0", "block", "block.1", "twin"]
    batch, targets = picture(2, 3, 9, 9, seed=3), [3, 1]
    outputs = run(model, batch, target=targets)
    for name, module, call in [("stem", net.stem, 0), ("block#0", net.block, 0), ("block", net.block, 2),
                               ("block.1", net.block[1], 2), ("twin", net.twin, 0)]:  # fmt: skip
        value, gradient, _ = differentiate(net, at(module, call), batch, targets, lambda: net(batch))
        close(outputs[f"activations/{name}"], value)
        close(outputs[f"gradients/{name}"], gradient)


@pytest.mark.slow
def test_of_a_tuple_list_or_dict_the_first_tensor_counts_and_softmax_is_stepped_over() -> None:
    net = seeded(Structured()).eval()
    model = export(net, picture(1, 3, 8, 8), None, layers=["tupled", "mapped", "named"])
    header = manifest.read(model)
    assert header is not None
    assert header["scores"] == {"name": "logits", "kind": "logits", "classes": 7, "probabilities": "probabilities"}
    assert header["source"]["outputs"] == ["probabilities", "pooled"]
    assert header["parity"]["gradients"] < 1e-5
    batch, targets = picture(3, 3, 8, 8, seed=1), [6, 0, 3]
    outputs = run(model, batch, target=targets)

    def logits() -> Any:
        values: list[Any] = []
        handle = net.head.register_forward_hook(lambda m, i, o: values.append(o))
        net(batch)
        handle.remove()
        return values[0]

    rebuilt: dict[str, Callable[..., Any]] = {
        "tupled": lambda hold: lambda m, i, o: (hold(o[0]), o[1]),
        "mapped": lambda hold: lambda m, i, o: {**o, "maps": [hold(o["maps"][0]), o["maps"][1]]},
        "named": lambda hold: lambda m, i, o: o._replace(features=hold(o.features)),
    }
    for name, rebuild in rebuilt.items():
        module = net.get_submodule(name)
        pick = lambda hold, m=module, r=rebuild: [m.register_forward_hook(r(hold))]  # noqa: E731
        value, gradient, scores = differentiate(net, pick, batch, targets, logits)
        close(outputs["logits"], scores)
        close(outputs[f"activations/{name}"], value)
        close(outputs[f"gradients/{name}"], gradient)
    close(outputs["probabilities"], net(batch)["probabilities"].detach().numpy())


@pytest.mark.slow
def test_a_binary_score_is_explained_with_its_sign() -> None:
    net = seeded(Binary()).eval()
    model = export(net, picture(1, 1, 9, 9), None)
    header = manifest.read(model)
    assert header is not None
    assert header["scores"]["kind"] == "binary_logit"
    assert header["layers"][0]["name"] == "features"
    batch = picture(2, 1, 9, 9, seed=2)

    def logits() -> Any:
        x = net.features(batch)
        s = net.head(F.avg_pool2d(x, 2).square().mean((2, 3)))
        return torch.cat([-s, s], 1)

    _, gradient, _ = differentiate(net, at(net.features), batch, [1, 0], logits)
    close(run(model, batch, target=[1, 0])["gradients"], gradient)


@pytest.mark.slow
def test_a_layers_value_that_no_module_returns_is_checked_on_the_captured_program(tmp_path: Path) -> None:
    net = seeded(Functional()).eval()
    header = export(net, picture(1, 3, 8, 8), tmp_path / "m.onnx")
    assert isinstance(header, dict)
    assert header["layers"][0]["name"] == header["layers"][0]["value"]
    assert header["parity"]["samples"] == 4
    assert header["parity"]["gradients"] < 1e-5
    batch, targets = picture(2, 3, 8, 8, seed=1), [2, 0]
    x = torch.relu(net.one(batch))
    x = torch.relu(net.two(x) + x).detach().requires_grad_()
    scores = net.head(F.avg_pool2d(x, 2).square().mean((2, 3)))
    (gradient,) = torch.autograd.grad(scores[0, 2] + scores[1, 0], x)
    outputs = run(tmp_path / "m.onnx", batch, target=targets)
    close(outputs["activations"], x.detach().numpy())
    close(outputs["gradients"], gradient.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(("net", "name"), rest_slow([(InPlace, "relu"), (Reused, "twin")]))
def test_the_default_layer_has_the_shortest_name_of_a_module_that_returns_it(net: Any, name: str) -> None:
    model = export(seeded(net()), picture(1, 3, 9, 9), None, target="required")
    header = manifest.read(model)
    assert header is not None
    assert header["layers"][0]["name"] == name


@pytest.mark.slow
def test_half_precision_is_exported_as_its_float32_values() -> None:
    net = seeded(InPlace()).eval()
    half = seeded(InPlace()).eval().to(torch.bfloat16)
    for a, b in zip(net.parameters(), half.parameters(), strict=True):
        a.data = b.data.float()
    for a, b in zip(net.buffers(), half.buffers(), strict=True):
        a.data = b.data.float() if b.is_floating_point() else b.data
    before = snapshot(half)
    model = export(half, picture(1, 3, 8, 8).to(torch.bfloat16), None, layers="bn", verify=2)
    assert snapshot(half) == before
    batch = picture(2, 3, 8, 8)
    close(run(model, batch)["logits"], net(batch).detach().numpy())


# -- restoring --------------------------------------------------------------------------------------------------------


def disturbed() -> Any:
    """A module in an unusual state, all of which must survive."""
    net = seeded(InPlace()).train()
    net.bn.eval()
    net.conv.weight.requires_grad_(False)
    net(picture(2, 3, 8, 8)).sum().backward()
    net.relu.register_forward_hook(lambda *_: None)
    return net


@pytest.mark.slow
def test_everything_is_as_it_was_afterwards() -> None:
    net = disturbed()
    before = snapshot(net)
    state = torch.random.get_rng_state()
    export(net, picture(1, 3, 8, 8), None, layers=[net.bn, "relu"])
    assert snapshot(net) == before
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.sample(2)
@pytest.mark.parametrize("where", ["capture", "augment", "verify", "layer"])
def test_everything_is_as_it_was_after_a_failure(where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ModelError("on purpose")

    places = {"capture": (torch_capture, "capture"), "verify": (parity, "verify")}
    if where in places:
        monkeypatch.setattr(*places[where], fail)
    elif where == "augment":
        monkeypatch.setattr("onnxcam.exporters.export.augment", fail)
    net = disturbed().to(torch.float64)
    before = snapshot(net)
    with pytest.raises(ModelError):
        export(net, picture(1, 3, 8, 8), tmp_path / "m.onnx", layers=["nothing" if where == "layer" else "bn"])
    assert snapshot(net) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_the_gpu_stays_there() -> None:
    net = seeded(InPlace()).cuda().half()
    before = snapshot(net)
    export(net, picture(1, 3, 8, 8).cuda().half(), None, layers=["bn"])
    assert snapshot(net) == before


@pytest.mark.slow
def test_gradients_are_taken_where_the_caller_has_switched_them_off() -> None:
    net = seeded(InPlace()).requires_grad_(False)
    with torch.no_grad():
        header = manifest.read(export(net, picture(1, 3, 8, 8), None))
    assert header is not None
    assert header["parity"]["gradients"] < 1e-5


# -- what is asked for ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("capture_once")
def test_targets_bound_to_a_class() -> None:
    net = seeded(InPlace()).eval()
    model = export(net, picture(1, 3, 8, 8), None, layers=["deep"], target="c", labels=list("abcde"))
    header = manifest.read(model)
    assert header is not None
    assert header["target"]["class"] == 2
    assert header["labels"] == list("abcde")
    batch = picture(2, 3, 8, 8)
    _, gradient, _ = differentiate(net, at(net.deep), batch, [2, 2], lambda: net(batch))
    close(run(model, batch)["gradients"], gradient)
    with pytest.raises(TargetError):
        export(net, picture(1, 3, 8, 8), None, target="z", labels=list("abcde"))


@pytest.mark.slow
@pytest.mark.usefixtures("capture_once")
def test_a_gate_is_put_in_after_the_proof() -> None:
    net, x = seeded(InPlace()), picture(4, 3, 8, 8)
    plain, always, never = (export(net, picture(1, 3, 8, 8), None, gate=g) for g in (None, "margin <= 1", "margin < 0"))
    header = manifest.read(never)
    assert header is not None and header["gate"] == {"condition": "margin < 0", "output": "fired"}
    plain_header = manifest.read(plain)
    assert (
        plain_header is not None
        and header["parity"] == plain_header["parity"]
        and header["layers"] == plain_header["layers"]
    )
    want, fired, blank = (run(model, x) for model in (plain, always, never))
    assert fired["fired"].all() and not blank["fired"].any()
    for name in ("gradients", "heatmap"):
        np.testing.assert_allclose(fired[name], want[name], rtol=1e-5, atol=1e-7)
        assert want[name].any() and not blank[name].any()
    with pytest.raises(SettingError, match="expected one of"):
        export(net, picture(1, 3, 8, 8), None, gate="margin")


@pytest.mark.slow
@pytest.mark.usefixtures("capture_once")
def test_only_the_heatmap_if_so_wanted_verified_all_the_same() -> None:
    model = export(seeded(InPlace()), picture(1, 3, 8, 8), None, outputs="heatmap", methods=["gradcam", "hirescam"])
    assert [o.name for o in model.graph.output] == ["logits", "heatmap/gradcam", "heatmap/hirescam"]
    header = manifest.read(model)
    assert header is not None
    assert header["parity"]["gradients"] < 1e-5
    assert header["layers"][0]["name"] == "relu"


# -- verification -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("capture_once")
def test_the_parity_is_recorded_in_the_file(tmp_path: Path) -> None:
    header = export(seeded(InPlace()), picture(1, 3, 8, 8), tmp_path / "m.onnx", verify=6, origin={"name": "mine"})
    assert isinstance(header, dict)
    assert manifest.read(onnx.load(tmp_path / "m.onnx")) == header
    assert header["source"]["name"] == "mine"
    assert {k: v for k, v in header["parity"].items() if k in ("against", "samples", "tolerance")} == {
        "against": "torch autograd", "samples": 6, "tolerance": 1e-3}  # fmt: skip
    assert all(0 <= header["parity"][k] < 1e-5 for k in ("scores", "activations", "gradients"))


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes one of the exported model's quantities wrong by one percent."""
    honest = parity.run

    def choose(stem: str) -> None:
        def wrong(session: Any, names: Any, feeds: Any) -> Any:
            outputs = honest(session, names, feeds)
            return {k: v * np.float32(1.01) if k.startswith(stem) else v for k, v in outputs.items()}

        monkeypatch.setattr(parity, "run", wrong)

    yield choose


@pytest.mark.slow
@pytest.mark.usefixtures("capture_once")
@pytest.mark.parametrize(
    ("stem", "quantity"), rest_slow([("gradients", "gradients"), ("logits", "scores"), ("activations", "activations")])
)
def test_wrong_numbers_are_named_and_no_file_is_left(
    stem: str, quantity: str, spoil: Callable[[str], None], tmp_path: Path
) -> None:
    spoil(stem)
    with pytest.raises(VerificationError, match=rf"the {quantity} of .* differ from torch autograd by 0\.01 .*0\.001"):
        export(seeded(InPlace()), picture(1, 3, 8, 8), tmp_path / "m.onnx", layers=["bn"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("capture_once")
def test_a_wrong_gradient_rule_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from onnxcam.autodiff import registry

    def relu(op: Any, node: Any, dy: str) -> list[str]:
        return [dy]  # forgets the mask

    import onnxcam.autodiff.gradient  # noqa: F401  the rules register themselves

    assert registry.find("Relu", 20) is not None
    monkeypatch.setitem(registry._rules, "Relu", [(1, None, registry.Entry(relu, False, False))])
    with pytest.raises(VerificationError, match="gradients of 'deep'"):
        export(seeded(InPlace()), picture(1, 3, 8, 8), tmp_path / "m.onnx", layers=["deep"])
    assert list(tmp_path.iterdir()) == []


# -- real architectures -----------------------------------------------------------------------------------------------

LAST_BLOCK = "encoder.layers.encoder_layer_11"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "layers", "named"),
    [
        ("resnet18", 64, None, "layer4"),
        pytest.param("mobilenet_v2", 96, None, "features", marks=pytest.mark.soak),
        pytest.param("densenet121", 64, None, None, marks=pytest.mark.soak),
        pytest.param("googlenet", 96, None, "inception5b", marks=pytest.mark.soak),
        ("convnext_tiny", 64, ["features"], "features"),
        pytest.param("vit_b_32", 224, [LAST_BLOCK], LAST_BLOCK, marks=pytest.mark.soak),
        pytest.param("swin_t", 64, ["features.7"], "features.7", marks=pytest.mark.soak),
    ],
)
def test_torchvision_models_agree_with_autograd(name: str, size: int, layers: list[str] | None, named: str) -> None:
    models = import_torchvision().models
    torch.manual_seed(0)
    options = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    net = models.get_model(name, weights=None, num_classes=10, **options)
    before = [part.training for part in net.modules()]
    header = manifest.read(export(net, picture(1, 3, size, size), None, layers=layers))
    assert [part.training for part in net.modules()] == before
    assert header is not None
    assert header["source"]["exporter"] == "torch.export"
    assert header["layers"][0]["name"] == named or named is None
    assert max(header["parity"][quantity] for quantity in parity.QUANTITIES) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["layer3", "layer4.1.bn2", "conv1"]),
        ("mobilenet_v2", ["features.18.0", "features.14", "features.7.conv.1"]),
    ],
)
def test_torchvision_layers_deep_inside(name: str, layers: list[str]) -> None:
    models = import_torchvision().models
    net = seeded_like_trained(models.get_model(name, weights=None, num_classes=10)).eval()
    model = export(net, picture(1, 3, 64, 64), None, layers=layers)
    batch, targets = picture(2, 3, 64, 64, seed=4), [3, 9]
    outputs = run(model, batch, target=targets)
    for layer in layers:
        value, gradient, scores = differentiate(net, at(net.get_submodule(layer)), batch, targets, lambda: net(batch))
        assert parity.distance(outputs["logits"], scores).max() < 1e-4
        assert parity.distance(outputs[f"activations/{layer}"], value).max() < 1e-4
        assert parity.distance(outputs[f"gradients/{layer}"], gradient).max() < 1e-2


def seeded_like_trained(net: Any) -> Any:
    """Torch's own initial weights from a fixed seed, with batch norm statistics taken from noise."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            deviation = (2.0 / parameter[0].numel()) ** 0.5
            with torch.no_grad():
                parameter.normal_(0.0, deviation, generator=generator)
    net.train()
    with torch.no_grad():
        net(torch.randn((8, 3, 64, 64), generator=generator))
    return net


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["torch.export", "torchscript"])
def test_the_file_tells_nothing_of_the_machine_it_was_made_on(exporter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch writes a stack trace, with the paths of its own and the model's sources, onto every node."""
    if exporter == "torchscript":
        monkeypatch.setattr(torch_capture, "_by_torch_export", _fails)
    model = export(seeded(InPlace()), picture(2, 3, 16, 16), None)
    assert isinstance(model, onnx.ModelProto)
    header = manifest.read(model)
    assert header is not None and header["source"]["exporter"] == exporter
    written = model.SerializeToString()
    for folder in (Path(torch.__file__).parent, Path(__file__).parent, Path.cwd()):
        assert str(folder).encode() not in written


def _fails(*_: Any) -> Any:
    raise RuntimeError("not today")
