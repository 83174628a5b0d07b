"""Maps lie where the picture is: crops, flips, ensembles and transposed layouts inside the graph.

The files are described in the issue they come from: random weights, one object, and the right place known.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import Explainer
from onnxcam.errors import LayerError
from tests.support.runtime import run

CASES = Path(__file__).parent.parent / "cases"
CPU = ["CPUExecutionProvider"]
METHODS = ["gradcam", "hirescam", "layercam", "scorecam", "ablationcam", "guided_gradcam"]


def centre(heatmap: np.ndarray) -> tuple[float, float]:
    """Row and column of the centre of a map's upper half."""
    strong = np.maximum(heatmap - 0.5 * heatmap.max(), 0)
    rows, columns = np.mgrid[: heatmap.shape[0], : heatmap.shape[1]]
    return float((strong * rows).sum() / strong.sum()), float((strong * columns).sum() / strong.sum())


def change(explainer: Explainer, size: int, place: tuple[int, int], method: str) -> np.ndarray:
    """How the sum of all classes' maps changes where a bright square is put into a grey picture."""
    row, column = place
    grey = np.full((size, size, 3), 120, np.uint8)
    bright = grey.copy()
    bright[row - 2 : row + 3, column - 2 : column + 3] = 255
    classes = range(explainer.classes)
    maps = [
        sum(explainer.explain(one, target=k, method=method, normalize="none").heatmap for k in classes)
        for one in (grey, bright)
    ]
    return np.abs(maps[1] - maps[0])


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("name", "size", "places", "cell"),
    [
        ("crop_inside", 32, [(21, 21), (26, 19)], 2),
        ("mirror_inside", 32, [(16, 5), (9, 25)], 2),
        ("flip_vote", 64, [(20, 8), (40, 52)], 4),
        ("vote", 64, [(20, 8), (40, 52)], 4),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_objects_are_shown_where_they_are(
    name: str, size: int, places: list[tuple[int, int]], cell: int, method: str
) -> None:
    explainer = Explainer(CASES / f"{name}.onnx", preprocess="0..1", providers=CPU)
    for place in places:
        changed = change(explainer, size, place, method)
        assert changed.any()
        # half a cell of the layer, and what its receptive field adds to one side
        assert np.abs(np.subtract(centre(changed), place)).max() <= cell


def test_outside_a_crop_a_map_is_zero_and_its_own_grid_stays() -> None:
    explainer = Explainer(CASES / "crop_inside.onnx", preprocess="0..1", providers=CPU)
    batch = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    drawn = explainer.attribute(batch, 0, normalize="none")
    raw = explainer.attribute(batch, 0, normalize="none", size="layer")
    assert drawn.shape == (2, 32, 32) and raw.shape == (2, 8, 8)
    outside = np.ones((32, 32), bool)
    outside[16:, 16:] = False
    assert not drawn[:, outside].any() and drawn[:, ~outside].any()
    # nothing outside the crop can change the scores: finite differences agree with where the map is zero
    changed = batch.copy()
    changed[:, :, outside] = 1 - changed[:, :, outside]
    np.testing.assert_array_equal(explainer.predict(changed), explainer.predict(batch))


def test_an_exported_file_says_where_its_layer_lies(tmp_path: Path) -> None:
    plain = Explainer(CASES / "mirror_inside.onnx", preprocess="0..1", providers=CPU)
    path = tmp_path / "m.onnx"
    path.write_bytes(onnxcam.augment(CASES / "mirror_inside.onnx", preprocess="0..1").SerializeToString())
    stored = Explainer(path, providers=CPU)
    assert stored.manifest["layers"][0]["window"] == {"height": [0, 32], "width": [32, 0]}
    assert stored.manifest["layers"][0]["covers"] == "all"
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    for method in METHODS:
        a, b = (one.explain(picture, 1, method).heatmap for one in (plain, stored))
        np.testing.assert_allclose(a, b, atol=1e-6)
    # augmented again, and asked for a second layer in memory
    assert onnxcam.layers(path)[0].window == ((0, 32), (32, 0), False)
    both = Explainer(path, layers=["f", "c"], preprocess="0..1", providers=CPU)
    assert [entry.get("window") for entry in both.manifest["layers"]] == [{"height": [0, 32], "width": [32, 0]}] * 2
    apart = both.explain(picture, 1, side_by_side=True)
    np.testing.assert_allclose(apart.per_layer[0].heatmap, plain.explain(picture, 1).heatmap, atol=1e-6)


@pytest.mark.parametrize("name", ["nhwc_identity_shortcut", "nhwc_projection_shortcut"])
def test_the_default_layer_behind_transposes_is_the_sum(name: str) -> None:
    """The maps of the last value before pooling are sum_c w_c f_c, with the head's weights: against that, by NumPy."""
    source = onnx.load(CASES / f"{name}.onnx")
    (layer,) = [one for one in onnxcam.layers(source) if one.default]
    assert (layer.name, layer.layout, layer.grid, layer.covers) == ("f", "NHWC", (8, 8), "all")
    source.graph.output.append(onnx.helper.make_tensor_value_info("f", 1, ["N", 8, 8, 8]))
    batch = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    f = run(source, {"x": batch})["f"]
    gemm = source.graph.node[-1]
    weight = onnx.numpy_helper.to_array(next(t for t in source.graph.initializer if t.name == gemm.input[1]))
    transposed = any(a.name == "transB" and a.i for a in gemm.attribute)
    explainer = Explainer(CASES / f"{name}.onnx", providers=CPU)
    for k in range(4):
        of_class = weight[k] if transposed else weight[:, k]
        expected = np.maximum((f * of_class).sum(axis=3) / 64, 0)
        actual = explainer.attribute(batch, k, normalize="none", size="layer")
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize(("name", "other"), [("flip_vote", "/b/b.5_1/Relu_output_0"), ("vote", "/a/a.5/Relu_output_0")])
def test_a_member_of_an_ensemble_is_called_one(name: str, other: str) -> None:
    explainer = Explainer(CASES / f"{name}.onnx", preprocess="0..1", providers=CPU)
    (warning,) = [text for text in explainer.warnings if "parallel" in text]
    assert "one of 2 parallel parts" in warning and other in warning
    entry = explainer.manifest["layers"][0]
    assert (entry["covers"], entry["beside"], entry.get("window")) == ("part", [other], None)
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert warning in explainer.explain(picture).warnings
    # who names a layer knows which it is
    named = Explainer(CASES / f"{name}.onnx", layers=[other], preprocess="0..1", providers=CPU)
    assert named.manifest["layers"][0]["covers"] == "part"
    assert not [text for text in named.warnings if "parallel" in text]


def test_the_mirrored_member_is_drawn_unmirrored() -> None:
    """Of a symmetric vote the mirrored member's map is the other's of the mirrored picture, mirrored back."""
    explainer = Explainer(
        CASES / "flip_vote.onnx",
        layers=["/b/b.5_1/Relu_output_0", "/b/b.5/Relu_output_0"],
        preprocess="0..1",
        providers=CPU,
    )
    batch = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    mirrored = np.ascontiguousarray(batch[:, :, :, ::-1])
    for k in range(explainer.classes):
        one = explainer.attribute(batch, k, layer="/b/b.5_1/Relu_output_0", normalize="none")
        other = explainer.attribute(mirrored, k, layer="/b/b.5/Relu_output_0", normalize="none")
        np.testing.assert_allclose(one, other[:, :, ::-1], atol=1e-5)
    # both fused: the same for the picture and its mirror image
    fused = [explainer.attribute(b, 1, layer=explainer.layers, normalize="none") for b in (batch, mirrored)]
    np.testing.assert_allclose(fused[0], fused[1][:, :, ::-1], atol=1e-5)


def crops_of(size: int = 64, side: int = 48) -> list[tuple[int, int]]:
    """Top and left of five crops."""
    far, middle = size - side, (size - side) // 2
    return [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]


def by_rows(source: Path | onnx.ModelProto, picture: np.ndarray, k: int) -> np.ndarray:
    """The Grad-CAM of every crop, from the file's own activations and gradients, added up where the crops lie, in cells
    of four pixels."""
    raw = run(onnxcam.augment(source, methods=()), {"input": picture[None], "target": np.array([k])})
    weights = raw["gradients"].mean(axis=(2, 3), keepdims=True)
    maps = np.maximum((weights * raw["activations"]).sum(axis=1), 0)
    whole = np.zeros((16, 16), np.float32)
    for one, (top, left) in zip(maps, crops_of(), strict=True):
        whole[top // 4 : top // 4 + 12, left // 4 : left // 4 + 12] += one
    return whole


def concatenated() -> onnx.ModelProto:
    """The same crops joined along the rows: all pictures' first crops, then all second ones."""
    model = onnx.load(CASES / "five_crops.onnx")
    nodes = {node.output[0]: node for node in model.graph.node}
    join, split, stacked = nodes["/Concat_output_0"], nodes["/Reshape_output_0"], nodes["/Reshape_1_output_0"]
    crops = [nodes[name].input[0] for name in join.input]
    del join.input[:]
    join.input.extend(crops)
    join.attribute[0].i = 0
    model.graph.node.remove(split)
    nodes["/b/b.0/Conv_output_0"].input[0] = join.output[0]
    order = next(node for node in model.graph.node if node.output[0] == stacked.input[1])
    order.input[0], order.input[1] = order.input[1], order.input[0]  # [5, N, classes]
    next(node for node in model.graph.node if node.output[0] == "141").attribute[0].ints[:] = [0]
    return model


@pytest.mark.slow
@pytest.mark.parametrize("source", ["stacked", "concatenated"])
def test_crops_in_one_batch_are_drawn_where_they_lie(source: str) -> None:
    model = CASES / "five_crops.onnx" if source == "stacked" else concatenated()
    explainer = Explainer(model, preprocess="0..1", providers=CPU)
    entry = explainer.manifest["layers"][0]
    assert entry["covers"] == "part" and len(entry["crops"]) == 5 and explainer.batch_size == 1
    assert not any("place" in text or "parallel" in text for text in explainer.warnings)
    batch = np.random.default_rng(3).random((3, 3, 64, 64), np.float32)
    maps = explainer.attribute(batch, [0, 3, 1], normalize="none", size="layer")
    for row, k in enumerate([0, 3, 1]):
        expected = by_rows(model, batch[row], k)
        np.testing.assert_allclose(maps[row], expected, atol=1e-5 * max(1e-3, float(expected.max())))
    np.testing.assert_array_equal(maps[:1], explainer.attribute(batch[:1], [0], normalize="none", size="layer"))
    explanation = explainer.explain(np.zeros((90, 120, 3), np.uint8), target=0)
    assert explanation.heatmap.shape == (90, 120)


@pytest.mark.parametrize("place", [(52, 52), (12, 52), (52, 12), (32, 32)])
def test_an_object_in_a_crop_changes_the_map_where_it_is(place: tuple[int, int]) -> None:
    """The map of every class, within a cell of the layer, four pixels."""
    explainer = Explainer(CASES / "five_crops.onnx", preprocess="0..1", providers=CPU)
    pictures = np.zeros((2, 3, 64, 64), np.float32)
    rows, columns = slice(place[0] - 4, place[0] + 4), slice(place[1] - 4, place[1] + 4)
    pictures[1, :, rows, columns] = np.random.default_rng(1).random((3, 8, 8))
    for k in range(5):
        without, with_object = explainer.attribute(pictures, k, normalize="none")
        change = np.abs(with_object - without)
        centre = [float((axis * change).sum() / change.sum()) for axis in np.mgrid[:64, :64]]
        assert np.abs(np.subtract(centre, np.subtract(place, 0.5))).max() <= 3.5, k


def test_crops_whose_order_is_not_certain_stay_refused() -> None:
    """Rows that are moved behind the join: which is whose the graph does not tell."""
    model = concatenated()
    conv = next(node for node in model.graph.node if node.output[0] == "/b/b.0/Conv_output_0")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([4, 3, 2, 1, 0]), "backwards"))
    gather = onnx.helper.make_node("Gather", [conv.input[0], "backwards"], ["moved"], axis=0)
    model.graph.node.insert(list(model.graph.node).index(conv), gather)
    conv.input[0] = "moved"
    explainer = Explainer(model, preprocess="0..1", providers=CPU)
    assert "crops" not in explainer.manifest["layers"][0]


@pytest.mark.parametrize("method", [*METHODS, "fullgrad", "saliency", "reciprocam", "eigencam"])
def test_a_mirror_inside_changes_nothing_but_the_side(method: str) -> None:
    """The maps of a network that mirrors its picture are those of the same network without, of the mirrored picture."""
    source = onnx.load(CASES / "mirror_inside.onnx")
    without = onnx.load(CASES / "mirror_inside.onnx")
    assert without.graph.node[0].op_type == "Slice"
    without.graph.node[1].input[0] = without.graph.node[0].input[0]
    del without.graph.node[0]
    batch = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    mirrored = np.ascontiguousarray(batch[:, :, :, ::-1])
    maps = Explainer(source, providers=CPU).attribute(batch, 1, method)
    expected = Explainer(without, providers=CPU).attribute(mirrored, 1, method)
    assert expected.any()
    np.testing.assert_allclose(maps, expected[:, :, ::-1], atol=2e-5)


def test_methods_that_change_rows_are_refused_for_crops() -> None:
    explainer = onnxcam.Explainer(CASES / "five_crops.onnx")
    pictures = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    assert explainer.attribute(pictures).shape == (2, 64, 64)
    with pytest.raises(LayerError, match="10 rows for 2 pictures"):
        explainer.attribute(pictures, method="ablationcam")
    with pytest.raises(LayerError, match="5 rows for 1 pictures"):
        explainer.run(pictures)
    assert explainer.attribute(pictures, method="saliency").shape == (2, 64, 64)
