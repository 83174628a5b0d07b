"""Several layers side by side: each map is the one of its layer alone, next to the fused one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import onnxcam
from onnxcam import image
from onnxcam.errors import InputError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.statistics import describe
from tests.cli.conftest import RAW, noise
from tests.support import models

LAYERS = ["relu1", "relu2"]


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(models.tiny_cnn(), preprocess=RAW, layers=LAYERS)


@pytest.mark.parametrize("top", [None, 2])
def test_each_layer_alone_and_all_fused(explainer: Explainer, top: int | None) -> None:
    pictures = [noise(np.random.default_rng(seed)) for seed in range(3)]
    for layer in (LAYERS, None):
        for picture, e in zip(
            pictures, explainer.explain(pictures, layer=layer, top=top, side_by_side=True), strict=True
        ):
            fused = explainer.explain(picture, layer=LAYERS, top=top)
            np.testing.assert_allclose(e.heatmap, fused.heatmap, atol=1e-5)
            assert e.layer == LAYERS and [value.layer for value in e.per_layer] == LAYERS
            for name, value in zip(LAYERS, e.per_layer, strict=True):
                alone = explainer.explain(picture, layer=name, top=top)
                assert (value.target, value.predictions[0][0]) == (alone.target, alone.predictions[0][0])
                assert len(value.maps) == (top or 1)
                for one, other in zip(value.maps, alone.maps, strict=True):
                    np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-5)
                    np.testing.assert_allclose(one.raw_map, other.raw_map, rtol=1e-4, atol=1e-6)


def test_what_is_saved(explainer: Explainer, tmp_path: Path) -> None:
    e = explainer.explain(noise(np.random.default_rng(0)), layer=LAYERS, side_by_side=True)
    files = e.save(tmp_path)
    assert {"layers.png", "panel.png", "layers/relu1/gradcam_overlay.png", "layers/relu2/gradcam_grayscale.png"} <= set(
        files.values()
    )
    assert all((tmp_path / file).is_file() for file in files.values())
    for value in e.per_layer:
        drawn = image.load(tmp_path / "layers" / value.layer / "gradcam_overlay.png").pixels
        np.testing.assert_array_equal(drawn, value.overlay())
    np.testing.assert_array_equal(image.load(tmp_path / "layers.png").pixels, e.layers_panel())
    record = json.loads((tmp_path / "explanation.json").read_text())
    assert [value["layer"] for value in record["layers"]] == LAYERS
    assert record["layers"][1]["attention"] == e.per_layer[1].statistics


def test_names_that_are_no_file_names(tmp_path: Path) -> None:
    import onnx

    model = models.tiny_cnn()
    for old, new in (("relu1", "a/../b"), ("relu2", "a/.. b")):
        for node in model.graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == old:
                        names[place] = new
    onnx.checker.check_model(model)
    explainer = Explainer(model, preprocess=RAW, layers=["a/../b", "a/.. b"])
    e = explainer.explain(noise(np.random.default_rng(0)), side_by_side=True)
    e.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "layers").iterdir()) == ["a_.._b", "a_.._b-2"]


def test_one_layer_has_nothing_next_to_it(explainer: Explainer) -> None:
    picture = noise(np.random.default_rng(0))
    with pytest.raises(InputError, match="only layer 'relu2'"):
        explainer.explain(picture, layer="relu2", side_by_side=True)
    with pytest.raises(InputError, match="side_by_side=True"):
        explainer.explain(picture, layer=LAYERS).layers_panel()


def test_attention_is_the_maps_own(explainer: Explainer) -> None:
    e = explainer.explain(noise(np.random.default_rng(0)), top=2)
    for one, entry in zip(e.to_dict()["maps"], e.maps, strict=True):
        want = describe(entry.heatmap)
        assert one["attention"].keys() == want.keys()
        for name, value in want.items():
            assert one["attention"][name] == pytest.approx(value, abs=1e-6), name
    assert e.statistics == e.to_dict()["maps"][0]["attention"]
    assert onnxcam.Explainer is Explainer
