"""Filters are the weights that the runtime applies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import inside
from onnxcam.errors import InputError, LayerError
from onnxcam.inside import filter_activity, filter_weights
from tests.cli.conftest import RAW, Run
from tests.inside import nets
from tests.inside.nets import conv, node, normal
from tests.support import models
from tests.support.batches import batch, picture


def test_a_layer_is_read_by_its_convolution_its_node_and_what_follows_it() -> None:
    model = models.tiny_cnn()
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name in ("conv2", "relu2", next(n.name for n in model.graph.node if "conv2" in n.output)):
        np.testing.assert_array_equal(inside.filters(model, name).weights, expected["w2"])
    first = inside.filters(model)
    assert first.colors == "RGB"
    np.testing.assert_array_equal(first.weights, expected["w1"])


@pytest.mark.parametrize("group", [1, 2, 4])
def test_each_filter_is_what_one_input_does_to_one_output(group: int) -> None:
    """An impulse in one input channel draws the filter, mirrored by a convolution and as it is by a transposed one."""
    for op, shape in (("Conv", (8, 4 // group, 3, 3)), ("ConvTranspose", (4, 8 // group, 3, 3))):
        nodes = [
            conv("input", "one", "wide"),
            conv("wide", "w", "last", op=op, group=group, pads=[1, 1, 1, 1]),
        ]
        one = np.eye(4, 4, dtype=np.float32)[:, :, None, None]
        model = nets.classifier(nodes, (5, 5), 4, width=8, w=normal(*shape), one=one)
        filters = inside.filters(model, "last")
        assert filters.weights.shape == (8, 4 // group, 3, 3) and filters.group == group
        for index in range(8):
            for place in range(4 // group):
                impulse = np.zeros((1, 4, 5, 5), np.float32)
                impulse[0, filters.input(index, place), 2, 2] = 1
                drawn = nets.values(model, impulse, ["last"])["last"][0, index, 1:4, 1:4]
                drawn = drawn[::-1, ::-1] if op == "Conv" else drawn
                np.testing.assert_allclose(filters.weights[index, place], drawn, atol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantised_weights_are_dequantised(per_channel: bool) -> None:
    rng = np.random.default_rng(1)
    stored = rng.integers(-128, 127, (6, 3, 3, 3), np.int8)
    scale = rng.uniform(0.01, 0.1, 6 if per_channel else ()).astype(np.float32)
    zero = np.zeros(6, np.int8) if per_channel else np.array(3, np.int8)
    axis = {"axis": 0} if per_channel else {}
    nodes = [node("DequantizeLinear", ["stored", "scale", "zero"], "w", **axis), conv("input", "w", "last")]
    model = nets.classifier(nodes, width=6, stored=stored, scale=scale, zero=zero)
    shape = (6, 1, 1, 1) if per_channel else ()
    expected = (stored.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)
    np.testing.assert_allclose(inside.filters(model, "last").weights, expected, rtol=1e-6)


def test_computed_weights_are_computed() -> None:
    nodes = [node("Mul", ["raw", "factor"], "w"), conv("input", "w", "last")]
    model = nets.classifier(nodes, width=6, raw=normal(6, 3, 3, 3), factor=normal(6, 1, 1, 1, seed=2))
    np.testing.assert_allclose(
        inside.filters(model).weights, normal(6, 3, 3, 3) * normal(6, 1, 1, 1, seed=2), rtol=1e-6
    )


def test_a_layer_without_filters_names_those_that_have_some() -> None:
    nodes = [conv("input", "w", "first"), node("MaxPool", ["first"], "smaller", kernel_shape=[2, 2], strides=[2, 2]),
             conv("smaller", "w2", "last")]  # fmt: skip
    model = nets.classifier(nodes, width=4, w=normal(6, 3, 3, 3), w2=normal(4, 6, 1, 1))
    with pytest.raises(LayerError, match=r"'smaller' has no filters: it is computed by MaxPool.*'(first|last)'"):
        inside.filters(model, "smaller")
    with pytest.raises(LayerError, match="nearest"):
        inside.filters(model, "firts")
    with pytest.raises(LayerError, match="no convolution"):
        inside.filters(models.mlp())
    with pytest.raises(InputError, match="scale"):
        inside.filters(model).grid(scale="all")


def test_colours_are_red_blue_and_white_at_0() -> None:
    weights = np.array([1.0, -1.0, 0.0, 0.5], np.float32).reshape(1, 1, 2, 2)
    pixels = filter_weights.signed(weights[0, 0])
    red, blue, white, pale = pixels.reshape(4, 3).astype(int)
    assert red[0] > 150 > 50 > red[2] and blue[2] > 150 > 50 > blue[0]
    assert white.tolist() == [255, 255, 255]
    np.testing.assert_allclose(pale, (red + 255) / 2, atol=1)


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_first_filters_are_colours(color: str) -> None:
    weights = np.zeros((2, 3, 1, 1), np.float32)
    weights[0, 0], weights[1, 2] = 1.0, -0.5
    model = nets.classifier([conv("input", "w", "last")], width=2, w=weights)
    explainable = onnxcam.augment(model, preprocess=RAW | {"color": color}, probe=False)
    filters = inside.filters(explainable, "last")
    assert filters.colors == color
    first, last = (0, 2) if color == "RGB" else (2, 0)
    assert filters.tile(0)[0, 0, first] == 255 and sorted(filters.tile(0)[0, 0]) == [128, 128, 255]
    assert filters.tile(1)[0, 0, last] == 64 and filters.tile(1, scale="filter")[0, 0, last] == 0


def test_the_filters_that_vary_most_come_with_the_picture_they_are_strongest_in() -> None:
    explainer = onnxcam.Explainer(models.tiny_cnn(), probe=False, providers=["CPUExecutionProvider"])
    filters = filter_weights.filters_of(explainer.sessions.network, "conv2")
    batches = [batch(1, seed=seed) for seed in range(3)]
    result = filter_activity.activity(explainer, filters, map(explainer.prepare, batches), 4)
    maps = np.concatenate([nets.values(models.tiny_cnn(), one, ["relu2"])["relu2"] for one in batches])
    order = np.argsort(-maps.var(axis=(2, 3)).mean(axis=0))[:4]
    assert [one.channel for one in result] == order.tolist()
    for one in result:
        assert one.maximum == pytest.approx(maps[:, one.channel].max(), rel=1e-5)
        np.testing.assert_allclose(one.values, maps[maps[:, one.channel].max((1, 2)).argmax(), one.channel], atol=1e-5)
    assert filter_activity.page(filters, result).shape[1:] == (780, 3)


@pytest.mark.parametrize(
    ("shape", "group"),
    [((8, 3, 3, 3), 1), ((70, 3, 5, 5), 1), ((3, 1, 3, 3), 3), ((16, 3, 1, 1), 1), ((6, 1, 7, 7), 3)],
)
def test_every_kind_is_drawn(shape: tuple[int, ...], group: int) -> None:
    filters = inside.Filters("name", "name", normal(*shape), group)
    assert filters.grid().shape[1:] == (780, 3)
    assert filters.grid(scale="filter").dtype == np.uint8


def test_the_command(run: Run, tmp_path: Path, plain: Path) -> None:
    onnxcam.image.write_png(tmp_path / "cat.png", picture())
    options: list[Any] = ["--preprocess", "0..1", "--pictures", tmp_path / "cat.png"]
    result = run("inside", "filters", plain, "-o", tmp_path / "out", "--layer", "relu2", "--json", *options)
    assert result.code == 0, result.err
    (entry,) = result.json()["layers"]
    assert entry["shape"] == [16, 8, 3, 3] and len(entry["responses"]) == 6
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"filters_relu2.png", "filters.json"}
    assert run("inside", "filters", plain, "-o", tmp_path / "out").code == 0
    wrong = run("inside", "filters", plain, "-o", tmp_path / "out", "--layer", "logits")
    assert wrong.code == 2 and "no filters" in wrong.err
