"""Explanations by the page's JavaScript and onnxruntime-web in Node against `Explainer`'s."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import onnxcam
from onnxcam.graph.load import save
from tests.page.test_preprocess import rough
from tests.support import heads, misplaced, models, wrong_gradients
from tests.support.batches import distance
from tests.support.javascript import Node, array

pytestmark = pytest.mark.slow  # onnxruntime-web takes a second to start
SPEC = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def preprocess(side: int, **resize: Any) -> dict[str, Any]:
    return {**SPEC, "resize": {"mode": "stretch", "size": [side, side], **resize}}


def recipe(kind: str) -> onnx.ModelProto:
    """A head of the kind."""
    return heads.build(next(one for one in heads.RECIPES.values() if one.kinds == (kind,) and not one.loose > 1e-3))


def networks() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Models by name, with what they are augmented with."""
    tiny, plain = models.tiny_cnn(), wrong_gradients.build("plain")
    size = tiny.graph.input[0].type.tensor_type.shape.dim[2].dim_value or 32
    cropped = {**SPEC, "resize": {"mode": "shortest", "size": size + 5}, "crop": {"size": [size, size]}}
    boxed = {**SPEC, "resize": {"mode": "letterbox", "size": [size, size], "pad_value": 114}}
    return {
        "stretched": (tiny, {"preprocess": preprocess(size), "labels": None}),
        "cropped": (tiny, {"preprocess": cropped, "methods": ("gradcam", "hirescam")}),
        "letterboxed": (tiny, {"preprocess": boxed, "target": "required"}),
        "gated, open": (tiny, {"preprocess": preprocess(size), "gate": "confidence <= 1"}),
        "one class": (tiny, {"preprocess": preprocess(size), "target": 1}),
        "middle layer": (plain, {"preprocess": preprocess(16), "layers": "a"}),
        "tokens": (wrong_gradients.build("tokens"), {"preprocess": preprocess(16), "layers": "z"}),
        "channels last": (wrong_gradients.build("channels last"), {"preprocess": preprocess(16)}),
        "mirrored inside": (misplaced.mirrored(0), {}),
        "a fixed batch": (models.tiny_cnn(batch=4), {"preprocess": preprocess(size)}),
    }


def cases(folder: Path) -> list[tuple[str, Path]]:
    listed = []
    for name, (source, options) in networks().items():
        if "preprocess" not in options:
            shape = source.graph.input[0].type.tensor_type.shape.dim
            options = {**options, "preprocess": preprocess(shape[2].dim_value)}
        model = onnxcam.augment(source, on_warning=lambda text: None, **options)
        path = folder / f"{name}.onnx"
        save(model, path)
        listed.append((name, path))
    return listed


def test_explanations_are_those_of_the_explainer(node: Node, web: Path, tmp_path: Path) -> None:
    runtime = (web / "dist" / "ort.node.min.mjs").as_uri()
    pictures = [rough(45, 70, 1), rough(64, 31, 2), rough(20, 20, 3)]
    requests, expected = [], []
    for name, path in cases(tmp_path):
        explainer = onnxcam.Explainer(path)
        methods = explainer.methods
        for place, pixels in enumerate(pictures):
            targets: list[int | None] = [None] if name == "one class" else [None, 1]
            for target in targets[: 2 if place else 1]:
                method = methods[place % len(methods)]
                question = {"layer": None, "method": method, "target": target, "topK": 5}
                data = base64.b64encode(png(pixels)).decode()
                requests.append(
                    {"action": "explain", "path": str(path), "runtime": runtime, "file": data, "question": question}
                )
                expected.append((name, explainer.explain(pixels, target=target, method=method)))
    for result, (name, want) in zip(node.run(requests), expected, strict=True):
        assert "error" not in result, (name, result)
        heatmap = array(result["heatmap"]).reshape(result["size"])
        assert heatmap.shape == want.heatmap.shape
        assert distance(heatmap[None], want.heatmap[None]) < 1e-4 or not want.heatmap.any(), name
        assert result["target"]["class_index"] == want.target and result["target"]["class_name"] == want.label
        assert result["target"]["confidence"] == pytest.approx(want.probability, abs=1e-5)
        assert (result["method"], result["layer"]) == (want.method, want.layer)
        for mine, (index, label, probability) in zip(result["predictions"], want.predictions, strict=True):
            assert mine["confidence"] == pytest.approx(probability, abs=1e-5)
            assert (mine["class_index"], mine["class_name"]) == (index, label)
        inside = np.zeros(heatmap.shape, bool)
        for part in want.visible or ():
            inside[part.y0 : part.y1, part.x0 : part.x1] = True
        if want.visible is None:
            assert result["visible"] is None
        else:
            np.testing.assert_array_equal(array(result["visible"]).reshape(heatmap.shape) > 0, inside)
        values = array(result["values"]).reshape(heatmap.shape)
        np.testing.assert_array_equal(values, onnxcam.image.grayscale(heatmap))
        assert result["statistics"]["zero"] == want.statistics["zero"]
        if want.heatmap.any():
            assert result["warnings"] == want.warnings, name
    assert sum(bool(want.heatmap.any()) for _, want in expected) > len(expected) / 2


@pytest.mark.parametrize("kind", ["binary_logit", "multilabel", "probabilities", "regression"])
def test_kinds_of_scores(node: Node, web: Path, tmp_path: Path, kind: str) -> None:
    options = {"kind": "regression"} if kind == "regression" else {}
    source = models.tiny_cnn(classes=1) if kind == "regression" else recipe(kind)
    side = source.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    model = onnxcam.augment(source, preprocess=preprocess(side), on_warning=lambda text: None, **options)
    save(model, tmp_path / "model.onnx")
    explainer = onnxcam.Explainer(tmp_path / "model.onnx")
    assert explainer.manifest["scores"]["kind"] == kind
    runtime = (web / "dist" / "ort.node.min.mjs").as_uri()
    targets = [None, 0] if kind == "regression" else [None, 0, 1]
    pixels = rough(40, 50, 5)
    request = {"action": "explain", "path": str(tmp_path / "model.onnx"), "runtime": runtime}
    request["file"] = base64.b64encode(png(pixels)).decode()
    results = node.run([{**request, "question": {"target": target, "topK": 5}} for target in targets])
    for target, result in zip(targets, results, strict=True):
        want = explainer.explain(pixels, target=target)
        assert "error" not in result, result
        heatmap = array(result["heatmap"]).reshape(result["size"])
        np.testing.assert_allclose(heatmap, want.heatmap, rtol=0, atol=1e-4)
        assert result["target"]["class_index"] == want.target
        assert result["target"]["confidence"] == pytest.approx(want.probability, rel=1e-4, abs=1e-6)
        assert [row["class_index"] for row in result["predictions"]] == [index for index, *_ in want.predictions]


def test_what_a_file_cannot_be_asked_is_said(node: Node, web: Path, tmp_path: Path) -> None:
    runtime = (web / "dist" / "ort.node.min.mjs").as_uri()
    tiny = models.tiny_cnn()
    side = tiny.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    files = {
        "one": onnxcam.augment(tiny, target=1, preprocess=preprocess(side)),
        "shut": onnxcam.augment(tiny, gate="confidence < 0", preprocess=preprocess(side)),
        "silent": onnxcam.augment(tiny),
    }
    data = base64.b64encode(png(rough(40, 50))).decode()
    for name, model in files.items():
        save(model, tmp_path / f"{name}.onnx")

    def case(name: str, **question: Any) -> dict[str, Any]:
        path = str(tmp_path / f"{name}.onnx")
        return {"action": "explain", "path": path, "runtime": runtime, "file": data, "question": question}

    other, beyond, layer, method, shut, silent = node.run([
        case("one", target=0), case("one", target=99), case("one", layer="x"), case("one", method="x"), case("shut"),
        case("silent"),
    ])  # fmt: skip
    assert "one class alone" in other["error"] and "no class 99" in beyond["error"]
    assert "no layer" in layer["error"] and "no map by x" in method["error"]
    assert "does not say how pictures become tensors" in silent["error"]
    assert not array(shut["heatmap"]).any() and "there is no map" in shut["warnings"][-1]
    assert shut["entry"]["notes"] == ["This file explains predictions with confidence < 0 alone."]
