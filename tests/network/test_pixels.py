"""Files that take the picture itself: the same pixels, predictions, maps and overlays as `Explainer` in Python."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxcam
from onnxcam import image, models
from onnxcam.diagnose.gradients import check
from onnxcam.diagnose.pixels import smooth
from onnxcam.errors import ModelError, PreprocessError
from onnxcam.image.resample import resize as resize_pixels
from onnxcam.network import manifest
from onnxcam.runtime import open_session
from tests.support.models import tiny_cnn

CROP = {"size": [32, 32], "anchor": "center"}
FLOOR = CROP | {"anchor": "center_floor"}
NORMALIZED = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def resize(
    mode: str, size: Any, interpolation: str = "bilinear", antialias: bool = True, **more: Any
) -> dict[str, Any]:
    return {"mode": mode, "size": size, "interpolation": interpolation, "antialias": antialias, **more}


SPECS: dict[str, dict[str, Any]] = {
    "stretch": {**NORMALIZED, "resize": resize("stretch", [32, 32])},
    "torchvision": {**NORMALIZED, "resize": resize("shortest", 37), "crop": CROP},
    "bicubic": {**NORMALIZED, "resize": resize("shortest", [40, 36], "bicubic"), "crop": FLOOR},
    "lanczos": {"color": "BGR", "mean": [104, 117, 124], "resize": resize("shortest", 33, "lanczos"), "crop": CROP},
    "area": {"scale": 1 / 127.5, "mean": 1.0, "resize": resize("stretch", [32, 32], "area")},
    "letterbox": {"color": "BGR", "resize": resize("letterbox", [32, 32], pad_value=[114, 7, 200])},
    "letterbox, cropped": {"resize": resize("letterbox", [30, 44], "bicubic", pad_value=99), "crop": CROP},
    "opencv": {**NORMALIZED, "resize": resize("stretch", [32, 32], antialias=False)},
    "opencv bicubic": {"resize": resize("stretch", [32, 32], "bicubic", False)},
    "nearest": {"resize": resize("shortest", 36, "nearest"), "crop": CROP | {"anchor": "bottom_right"}},
    "padded": {"scale": 1 / 255, "resize": resize("shortest", [20, 24]), "crop": CROP},
    "not resized": {"resize": None, "crop": CROP | {"anchor": "top_left"}},
}  # fmt: skip
SIZES = ((96, 128), (60, 33), (11, 90), (32, 32), (7, 5), (2, 300), (200, 31))


def opened(model: onnx.ModelProto) -> tuple[Any, dict[str, Any]]:
    """A session that also returns the prepared picture, and the manifest."""
    entry = manifest.read(model)
    assert entry is not None
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    copied.graph.output.append(helper.make_tensor_value_info(entry["pixels"]["resized"], TensorProto.FLOAT, None))
    return open_session(copied.SerializeToString(), ["CPUExecutionProvider"]), entry


def run(session: Any, pixels: np.ndarray, **feeds: Any) -> dict[str, Any]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"pixels": pixels, **feeds}), strict=True))


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_pixels_are_prepared_explained_and_drawn_as_in_python(name: str, nhwc: bool) -> None:
    if nhwc and name not in ("torchvision", "letterbox"):
        pytest.skip("the layout matters behind the resize alone")
    source = tiny_cnn(nhwc=nhwc, seed=3)
    model = onnxcam.augment(source, preprocess=SPECS[name], pixels=True, probe=False)
    onnx.checker.check_model(model, full_check=True)
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read, "ONNX Runtime warns of constants without use"
    session, entry = opened(model)
    explainer = onnxcam.Explainer(model)
    rng = np.random.default_rng(5)
    total = exact = 0
    for size in SIZES:
        pixels = smooth(size, rng)
        out, want = run(session, pixels), explainer.explain(pixels)
        prepared = out[entry["pixels"]["resized"]][0]
        prepared = prepared if nhwc else prepared.transpose(1, 2, 0)
        off = np.abs(prepared - explainer.preparation.preprocess.transform(pixels)[0])  # type: ignore[union-attr]
        assert (off <= 1).mean() >= 0.999, size
        total, exact = total + off.size, exact + int((off == 0).sum())
        assert int(out["target_class"][0]) == want.target
        for index, _, p in want.predictions:
            assert out["predictions"][index] == pytest.approx(p, abs=1e-2)
        assert out["picture_heatmap"].shape == size and out["picture_heatmap"].dtype == np.float32
        # a tiny net enlarges what one level of a pixel of a tiny picture changes
        np.testing.assert_allclose(out["picture_heatmap"], want.heatmap, rtol=0, atol=1e-2 if min(size) > 2 else 2e-2)
        assert out["overlay"].dtype == np.uint8 and out["overlay"].shape == (*size, 3)
        assert np.abs(out["overlay"].astype(int) - want.overlay()).max() <= 5
    assert exact / total > (0.85 if name.startswith("opencv") else 0.99)  # OpenCV's weights have 11 bits


@pytest.mark.slow
def test_forty_pictures_of_twenty_sizes_have_python_s_best_class() -> None:
    model = onnxcam.augment(models.path(models.MODEL), pixels=True)
    session, entry = opened(model)
    explainer = onnxcam.Explainer(models.path(models.MODEL))
    spec = explainer.preprocess
    assert spec is not None
    rng = np.random.default_rng(9)
    photographs = [image.load(models.path(name)).pixels for name in ("cat.png", "coffee.png", "cat_and_coffee.png")]
    sizes = [(int(h), int(w)) for h, w in rng.integers(60, 700, (20, 2))]
    for size, k in itertools.product(sizes, range(2)):
        source = photographs[k % 3]
        top, left = (int(rng.integers(0, side // 2)) for side in source.shape[:2])
        pixels = resize_pixels(source[top:, left:], size, "bicubic")
        out = run(session, pixels)
        tensor, _ = spec.apply(pixels)
        assert out["predictions"].argmax() == explainer.predict(tensor)[0].argmax()
        off = np.abs(out[entry["pixels"]["resized"]][0].transpose(1, 2, 0) - spec.transform(pixels)[0])
        assert (off <= 1).mean() >= 0.999 and (off == 0).mean() > 0.999


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("logits", "optional"),
        ("logits", "required"),
        ("logits", 2),
        ("multilabel", "required"),
        ("binary_logit", "required"),
    ],
)
def test_kinds_and_targets(kind: str, target: Any) -> None:
    source = tiny_cnn(classes=1 if kind == "binary_logit" else 5, ending={"logits": "Softmax"}.get(kind, "Sigmoid"))
    model = onnxcam.augment(source, target=target, preprocess=SPECS["stretch"], pixels=True, probe=False)
    session, _ = opened(model)
    explainer = onnxcam.Explainer(model)
    pixels = smooth((50, 40), np.random.default_rng(0))
    for index in (-1, 1) if target == "required" else (None,):
        feeds = {} if index is None else {"target": np.array([index], np.int64)}
        out = run(session, pixels, **feeds)
        want = explainer.explain(pixels, index)
        assert out["target_class"].tolist() == [want.target] and out["predictions"].shape == (explainer.classes,)
        assert out["predictions"][want.target] == pytest.approx(want.probability, abs=1e-3)
        np.testing.assert_allclose(out["picture_heatmap"], want.heatmap, rtol=0, atol=1e-2)


@pytest.mark.slow
def test_layers_and_methods_have_a_map_each_and_a_gate_stays() -> None:
    model = onnxcam.augment(
        tiny_cnn(), ["relu1", "relu2"], ("gradcam", "hirescam"), preprocess=SPECS["torchvision"], pixels=True,
        gate="confidence < 0", probe=False,
    )  # fmt: skip
    session, entry = opened(model)
    names = {output.name for output in session.get_outputs()}
    suffixes = {f"/{layer}/{method}" for layer in ("relu1", "relu2") for method in ("gradcam", "hirescam")}
    assert {name for name in names if name.startswith("overlay")} == {f"overlay{suffix}" for suffix in suffixes}
    assert len(entry["pixels"]["maps"]) == 4
    pixels = smooth((60, 90), np.random.default_rng(1))
    out = run(session, pixels)
    assert not out["fired"][0] and not out["picture_heatmap/relu2/gradcam"].any()
    opened_again = onnxcam.augment(model, methods=("gradcam", "hirescam"), gate="")
    out = run(open_session(opened_again.SerializeToString(), ["CPUExecutionProvider"]), pixels)
    want = onnxcam.Explainer(model).explain(pixels, method="hirescam", layer="relu1")
    np.testing.assert_allclose(out["picture_heatmap/relu1/hirescam"], want.heatmap, rtol=0, atol=1e-2)


def test_an_open_input_takes_pictures_as_they_are() -> None:
    model = onnxcam.augment(
        tiny_cnn(size=None), preprocess={"scale": 1 / 255, "resize": None}, pixels=True, probe=False
    )
    session, _ = opened(model)
    explainer = onnxcam.Explainer(model)
    for size in ((40, 64), (33, 21)):
        pixels = smooth(size, np.random.default_rng(2))
        want = explainer.explain(pixels)
        np.testing.assert_allclose(run(session, pixels)["picture_heatmap"], want.heatmap, rtol=0, atol=1e-3)


def test_the_model_inside_is_given_back() -> None:
    plain = onnxcam.augment(tiny_cnn(), preprocess=SPECS["stretch"], probe=False)
    model = onnxcam.augment(plain, pixels=True, probe=False)
    assert "pixels" in (manifest.read(model) or {}) and [i.name for i in model.graph.input] == ["pixels", "target"]
    again = onnxcam.augment(model, pixels=False, probe=False)
    assert manifest.read(again) == manifest.read(plain)
    assert [i.name for i in again.graph.input] == ["input", "target"]
    x = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    actual, want = (onnxcam.Explainer(source).attribute(x, [0, 1, -1]) for source in (model, plain))
    np.testing.assert_array_equal(actual, want)


@pytest.mark.slow
def test_check_compares_the_picture_that_is_prepared_and_finds_a_wrong_one() -> None:
    model = onnxcam.augment(tiny_cnn(), preprocess=SPECS["torchvision"], pixels=True, probe=False)
    (finding,) = (finding for finding in check(model, directions=2, samples=2).findings if finding.name == "pixels")
    assert finding.status == "ok" and finding.figures["equal_pixels"] > 0.999
    for tensor in model.graph.initializer:  # the mean's shift
        if tensor.name.startswith("onnxcam.pixels/") and list(tensor.dims) == [1, 3, 1, 1]:
            tensor.raw_data = (onnx.numpy_helper.to_array(tensor) * np.float32(1.5)).tobytes()
    assert "pixels" in check(model, directions=2, samples=2).failed


@pytest.mark.parametrize(
    ("source", "preprocess", "error", "sentence"),
    [
        (tiny_cnn(), None, PreprocessError, "nothing says how"),
        (tiny_cnn(channels=5), {"color": "bands", "channels": 5, "resize": None}, PreprocessError, "5 bands"),
        (tiny_cnn(), {"range": [0, 4095], "resize": resize("stretch", 32)}, PreprocessError, "range of values"),
        (tiny_cnn(), {"resize": resize("stretch", 32, "area", False)}, PreprocessError, "OpenCV's"),
        (tiny_cnn(), {"resize": resize("stretch", 40)}, PreprocessError, "40x40"),
        (tiny_cnn(), {"resize": resize("shortest", 32)}, PreprocessError, "height x width"),
        (tiny_cnn(batch=4), {"resize": resize("stretch", 32)}, ModelError, "4 pictures at a time"),
    ],
)  # fmt: skip
def test_what_it_cannot_carry_is_refused_in_a_sentence(source: Any, preprocess: Any, error: Any, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        onnxcam.augment(source, preprocess=preprocess, pixels=True, probe=False)


def test_names_that_the_model_has_are_left_to_it() -> None:
    source = tiny_cnn()
    source.graph.output[0].name = "overlay"
    source.graph.node[-1].output[0] = "overlay"
    model = onnxcam.augment(source, preprocess=SPECS["stretch"], pixels=True, probe=False)
    session, entry = opened(model)
    assert entry["pixels"]["maps"][0]["overlay"] == "onnxcam.overlay"
    out = run(session, smooth((20, 20), np.random.default_rng(0)))
    assert out["overlay"].shape == (1, 5) and out["onnxcam.overlay"].shape == (20, 20, 3)
