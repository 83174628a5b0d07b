"""Feature maps are the framework's activations, and their order is NumPy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import inside
from onnxcam.errors import InputError, LayerError
from onnxcam.image.stack import encode_stack
from tests.cli.conftest import RAW, Run
from tests.inside import nets
from tests.support import models, torch_models
from tests.support.batches import batch, picture

CLOSE = 1e-5


def explainer(model: onnx.ModelProto, **options: Any) -> onnxcam.Explainer:
    return onnxcam.Explainer(model, probe=False, providers=["CPUExecutionProvider"], **options)


@pytest.mark.torch
@pytest.mark.parametrize("nhwc", [False, True])
def test_maps_are_those_of_torch(nhwc: bool) -> None:
    torch = pytest.importorskip("torch")
    model = models.tiny_cnn(nhwc=nhwc)
    tensor = batch(1)
    twin = torch_models.build(model)
    hooked: dict[str, np.ndarray] = {}
    for name in ("conv1", "relu1", "conv2", "relu2"):
        getattr(twin, name).register_forward_hook(lambda m, i, o, name=name: hooked.update({name: o.clone().numpy()}))
    with torch.no_grad():
        twin(torch.from_numpy(tensor))
    maps = inside.features(explainer(model), tensor.transpose(0, 2, 3, 1) if nhwc else tensor, list(hooked))
    assert [one.layer for one in maps] == list(hooked)
    for one in maps:
        np.testing.assert_allclose(one.values, hooked[one.layer][0], rtol=CLOSE, atol=CLOSE)
        np.testing.assert_array_equal(one.zero_share, (one.values == 0).mean(axis=(1, 2)))


@pytest.mark.keras
@pytest.mark.slow
def test_maps_are_those_of_keras() -> None:
    keras = pytest.importorskip("keras")
    folder = Path(__file__).parents[2] / "models" / "classroom"
    net = keras.models.load_model(folder / "mnist.keras")
    opened = onnxcam.Explainer(folder / "mnist.onnx", providers=["CPUExecutionProvider"])
    _, tensor, _ = opened.prepare(folder / "mnist" / "right_2.png")
    expected = keras.Model(net.inputs, net.get_layer("conv2").output).predict(tensor, verbose=0)
    (maps,) = inside.features(opened, folder / "mnist" / "right_2.png", "conv2")
    np.testing.assert_allclose(maps.values, expected[0].transpose(2, 0, 1), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("order", ["variance", "mean", "max", "index"])
def test_channels_are_ordered_as_numpy_orders_them(order: str) -> None:
    (maps,) = inside.features(explainer(models.tiny_cnn()), batch(1), "relu2", order=order, max_channels=5)
    by_order = {
        "variance": maps.values.var(axis=(1, 2)),
        "mean": maps.values.mean(axis=(1, 2)),
        "max": maps.values.max(axis=(1, 2)),
        "index": -np.arange(16),
    }
    assert list(maps.channels) == np.argsort(-by_order[order], kind="stable")[:5].tolist()
    np.testing.assert_array_equal(maps.variance, by_order["variance"])


def test_tokens_lie_on_their_grid() -> None:
    model, tensor = nets.transformer(), batch(1)
    (maps,) = inside.features(explainer(model), tensor, "block")
    tokens = nets.values(model, tensor, ["block"])["block"][0]
    np.testing.assert_allclose(maps.values, tokens[1:].T.reshape(8, 4, 4), rtol=CLOSE, atol=CLOSE)


def test_an_early_a_middle_and_a_deep_layer_by_default() -> None:
    assert [one.layer for one in inside.features(explainer(models.tiny_cnn()), batch(1))] == ["relu1", "relu2"]


def test_the_grid_shows_the_map_on_its_scale() -> None:
    nodes = [nets.conv("input", "w", "last")]
    weights = np.stack([np.full((1, 1, 1), 1.0), np.full((1, 1, 1), 0.5)]).astype(np.float32)
    model = nets.classifier(nodes, (4, 4), 1, width=2, w=weights)
    tensor = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    (maps,) = inside.features(explainer(model), tensor, "last", order="index")
    ramp = np.rint(np.arange(16).reshape(4, 4) / 15 * 255)
    by_channel, by_layer = ([cell.pixels[..., 0] for cell in maps.cells(None, s, "gray")] for s in ("channel", "layer"))
    np.testing.assert_array_equal(by_channel, [ramp, ramp])
    np.testing.assert_array_equal(by_layer, [ramp, np.rint(np.arange(16).reshape(4, 4) / 30 * 255)])
    page = maps.grid()
    assert page.dtype == np.uint8 and page.shape[1:] == (780, 3)


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [("relu3", "the nearest are 'relu"), ("logits", "expected a spatial map"), ("pooled", "expected a spatial map")],
)
def test_what_is_no_map_is_refused(layer: str, sentence: str) -> None:
    with pytest.raises(LayerError, match=sentence):
        inside.features(explainer(models.tiny_cnn()), batch(1), layer)


@pytest.mark.parametrize("settings", [{"order": "size"}, {"max_channels": 0}])
def test_what_cannot_be_shown_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        inside.features(explainer(models.tiny_cnn()), batch(1), "relu1", **settings)


def test_a_stack_is_read_by_others(tmp_path: Path) -> None:
    maps = nets.normal(5, 7, 9)
    (tmp_path / "maps.tiff").write_bytes(encode_stack(maps))
    read, pages = cv2.imreadmulti(str(tmp_path / "maps.tiff"), flags=cv2.IMREAD_UNCHANGED)
    assert read
    np.testing.assert_array_equal(np.stack(pages), maps)


def test_the_command_writes_pages_numbers_and_values(run: Run, tmp_path: Path) -> None:
    model, cat = tmp_path / "model.onnx", tmp_path / "cat.png"
    onnx.save(onnxcam.augment(models.tiny_cnn(), preprocess=RAW, probe=False), model)
    onnxcam.image.write_png(cat, picture())
    arguments = ("inside", "features", model, cat, "-o", tmp_path / "out", "--activation-layers", "relu1,conv2")
    result = run(*arguments, "--json", "--values", "npy", "--max-channels", 3, "--order", "max")
    assert result.code == 0, result.err
    (entry,) = result.json()["pictures"]
    assert [layer["layer"] for layer in entry["layers"]] == ["relu1", "conv2"]
    opened = onnxcam.Explainer(str(model), providers=["CPUExecutionProvider"])
    for maps, layer in zip(inside.features(opened, cat, ["relu1", "conv2"]), entry["layers"], strict=True):
        np.testing.assert_array_equal(np.load(tmp_path / "out" / layer["values"]), maps.values)
        assert layer["channels"] == np.argsort(-maps.values.max(axis=(1, 2)), kind="stable")[:3].tolist()
        assert (tmp_path / "out" / layer["file"]).stat().st_size
    assert {"features.png", "features.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_the_command_ends_with_one_sentence(run: Run, tmp_path: Path, plain: Path) -> None:
    result = run("inside", "features", plain, "-o", tmp_path)
    assert result.code == 2 and "no PICTURE" in result.err
    onnxcam.image.write_png(tmp_path / "cat.png", picture())
    wrong = run(
        "inside", "features", plain, tmp_path / "cat.png", "-o", tmp_path, "--preprocess", "0..1", "--layer", "relu9"
    )
    assert wrong.code == 2 and "nearest" in wrong.err.splitlines()[-1]


def test_explain_writes_the_same_files_beside_its_own(run: Run, tmp_path: Path) -> None:
    model, cat = tmp_path / "model.onnx", tmp_path / "cat.png"
    onnx.save(onnxcam.augment(models.tiny_cnn(), preprocess=RAW, probe=False), model)
    onnxcam.image.write_png(cat, picture())
    result = run("explain", model, cat, "-o", tmp_path / "a", "--activation-layers", "relu1,conv2", "--max-channels", 4)
    assert result.code == 0, result.err
    layers = ("--layer", "relu1", "--layer", "conv2", "--max-channels", 4)
    again = run("inside", "features", model, cat, "-o", tmp_path / "b", *layers)
    assert again.code == 0, again.err
    written = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert written == ["features.json", "features.png", "features_conv2.png", "features_relu1.png"]
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "panel.png").exists()
    wrong = run("explain", model, cat, "-o", tmp_path / "c", "--activation-layers", "relu9")
    assert wrong.code == 2 and "nearest" in wrong.sentence and not (tmp_path / "c").exists()
    assert run("explain", model, cat, "-o", tmp_path / "c", "--activation-layers", ",").code == 2
