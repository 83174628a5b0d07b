"""Hugging Face models exported as they usually are, height and width open: layer, size and numbers against autograd."""

from __future__ import annotations

import functools
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import onnxcam
from onnxcam.cli import main
from onnxcam.explain.explainer import Explainer
from onnxcam.network import manifest
from tests.support.examples import rest_slow
from tests.support.torchvision_stub import import_torchvision

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch
CPU = ["CPUExecutionProvider"]
SIDE = 64
CAT = Path(__file__).parent.parent.parent / "models" / "cat.png"
VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": SIDE,
    "patch_size": 8, "num_labels": 6, "attn_implementation": "eager"
}  # fmt: skip
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_labels": 6}
# family, settings, its default layer, whether that returns tokens, whether one size only is admitted
CASES: dict[str, tuple[str, dict[str, Any], str, bool, bool]] = {
    "ViT": ("ViT", VIT, "vit.layers.1.layernorm_before", True, True),
    "DeiT": ("DeiT", VIT, "deit.layers.1.layernorm_before", True, True),
    "I-JEPA": ("IJepa", VIT, "ijepa.layernorm", True, True),
    "BEiT": ("Beit", VIT | {"use_relative_position_bias": True}, "beit.layers.1", True, False),
    "DINOv2": ("Dinov2", VIT, "dinov2.layernorm", True, False),
    "ResNet": ("ResNet", STAGES | {"embedding_size": 8}, "resnet.encoder.stages.3", False, False),
    "ConvNeXt": ("ConvNext", STAGES, "convnext.encoder.stages.3", False, False),
}


def exported(name: str, folder: Path) -> tuple[Any, Path]:
    """A small network with random weights, and its file, every dimension of the picture free as `optimum` has it."""
    path = folder / "model.onnx"
    path.write_bytes(written(name))
    return network(name), path


def network(name: str) -> Any:
    """The same weights every time."""
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    family, settings = CASES[name][:2]
    torch.manual_seed(3)
    net = getattr(transformers, f"{family}ForImageClassification")(
        getattr(transformers, f"{family}Config")(**settings)
    ).eval()
    with torch.no_grad():  # first weights are so small that all pictures look alike
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return net


@functools.cache
def written(name: str) -> bytes:
    """The network as ONNX."""
    file = io.BytesIO()
    axes = {"pixel_values": {0: "batch_size", 1: "num_channels", 2: "height", 3: "width"}, "logits": {0: "batch_size"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits(network(name)).eval(), (torch.zeros(1, 3, SIDE, SIDE),), file, dynamo=False, opset_version=18,
            input_names=["pixel_values"], output_names=["logits"], dynamic_axes=axes,
        )  # fmt: skip
    return file.getvalue()


class Logits(torch.nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Any) -> Any:
        return self.net(pixel_values).logits


def differentiated(net: Any, layer: str, x: np.ndarray, classes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """A module's output and the gradient of the scores of `classes` there, by torch autograd."""
    values: list[Any] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        values.append(output[0] if isinstance(output, tuple) else output)

    handle = net.get_submodule(layer).register_forward_hook(keep)
    scores = net(torch.from_numpy(x)).logits
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[range(len(x)), classes].sum(), values[0])
    return values[0].detach().numpy(), gradient.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", rest_slow(sorted(CASES, key=lambda name: name != "ResNet")))
def test_the_default_layer_and_its_numbers(name: str, tmp_path: Path) -> None:
    _, _, layer, tokens, fixed = CASES[name]
    net, path = exported(name, tmp_path)
    (listed,) = [candidate for candidate in onnxcam.layers(path) if candidate.default]
    input_size = None if fixed or not tokens else (SIDE, SIDE)
    source = onnxcam.augment(path, input_size=input_size)
    header = manifest.read(source)
    assert header is not None
    shape = header["input"]["shape"]
    assert shape[1] == 3 and (shape[2:] == [SIDE, SIDE]) == tokens and "size" not in header["input"]
    entry = header["layers"][0]
    assert entry["name"] == listed.name and entry["layout"] == ("NTC" if tokens else "NCHW")
    explainer = Explainer(source.SerializeToString(), providers=CPU)
    for size in (SIDE,) if tokens else (SIDE, 96):
        x = np.random.default_rng(5).normal(size=(3, 3, size, size)).astype(np.float32)
        raw = explainer.run(x, [4, 0, 2])
        values, gradients = differentiated(net, layer, x, [4, 0, 2])
        for ours, theirs in ((raw.activations, values), (raw.gradients, gradients)):
            assert ours.shape == theirs.shape and np.abs(theirs).max() > 0
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.slow
def test_a_size_nobody_named_is_assumed_and_said(tmp_path: Path) -> None:
    _, path = exported("BEiT", tmp_path)
    assert "224 x 224 was assumed" in Explainer(path, providers=CPU).warnings[0]
    hint = {"scale": 1 / 255, "resize": {"mode": "stretch", "size": [SIDE, SIDE]}}
    explainer = Explainer(path, preprocess=hint, providers=CPU)
    assert explainer.warnings == [] and explainer.manifest["layers"][0]["grid"] == [8, 8]


@pytest.mark.slow
def test_a_folder_from_hugging_face_is_explained_with_one_line(tmp_path: Path) -> None:
    net, path = exported("ViT", tmp_path)
    names = ["ant", "bee", "cat", "dog", "eel", "fox"]
    net.config.id2label = dict(enumerate(names))
    net.config.save_pretrained(tmp_path)
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE},
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    out = tmp_path / "out"
    result = CliRunner().invoke(
        main, ["explain", str(path), str(CAT), "-o", str(out), "--preprocess", f"hf:{tmp_path}"]
    )
    assert result.exit_code == 0, result.output
    document = json.loads((out / "explanation.json").read_text())
    assert {label for _, label, _ in Explainer(path, preprocess=f"hf:{tmp_path}").explain(CAT).predictions} <= set(
        names
    )
    assert document["layer"].endswith("layernorm_before/LayerNormalization_output_0")
    assert json.loads((out / "analysis_summary.json").read_text())["warnings"] == []
