"""Pictures whose size a file leaves open: the one that fits is found, needed ones are assumed, others stay open."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.errors import InputError, ModelError
from onnxcam.explain.explainer import Explainer
from onnxcam.graph.layers import Layer
from onnxcam.graph.normalize import prepare
from onnxcam.network import manifest
from tests.graph.transformers import CLASS, FIRST, MEAN, PATCHES, block, model
from tests.support.examples import rest_slow

CPU = ["CPUExecutionProvider"]
OPEN = "N,C,H,W"
PLACED = "e = Add(p, place)"
SEATED = f"{CLASS} e = Add(t, seat)"
ON_A_PLANE = PATCHES.replace("flat = Reshape(c,", "here = Add(c, plane) flat = Reshape(here,")
BACK = "back = Transpose<perm=[0,3,1,2]>(x)"
BODIES = {
    "one token a patch": ((PATCHES, PLACED, block("e", "1"), MEAN.format("b1")), (16, 16)),
    "a class token": ((PATCHES, SEATED, block("e", "1"), block("b1", "2"), FIRST.format("b2")), (16, 16)),
    "rows and columns": ((ON_A_PLANE, block("p", "1"), MEAN.format("b1")), (16, 24)),
    "the size first tried": ((PATCHES, "e = Add(p, hall)", block("e", "1"), MEAN.format("b1")), (352, 352)),
}
RESIDUAL = (
    "c1 = Conv<pads=[1,1,1,1]>(x, kernel) r1 = Relu(c1) p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1) c2 = "
    "Conv<pads=[1,1,1,1]>(p1, deep1) r2 = Relu(c2) c3 = Conv<pads=[1,1,1,1]>(r2, deep2) side = Conv(p1, narrow) both = "
    "Add(c3, side) r3 = Relu(both) m = ReduceMean<keepdims=0>(r3, [2,3]) logits = MatMul(m, head)"
)


def default(source: onnx.ModelProto) -> Layer:
    (listed,) = [layer for layer in onnxcam.layers(source) if layer.default]
    return listed


def picture(model_proto: onnx.ModelProto) -> tuple[list[object], object]:
    header = manifest.read(model_proto)
    assert header is not None
    return header["input"]["shape"], header["input"].get("size")


SIZES = ((16, 16), (24, 40))


def as_closed(opened: onnx.ModelProto, layer: str, *body: str, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    """An explainable model of open size gives, at each size, the very numbers of models that are made for each."""
    explainer = Explainer(opened.SerializeToString(), providers=CPU)
    for height, width in sizes:
        closed = onnxcam.augment(model(*body, picture=f"N,3,{height},{width}"), [layer])
        x = np.random.default_rng(height).normal(size=(2, 3, height, width)).astype(np.float32)
        ours, theirs = explainer.run(x, [1, 4]), Explainer(closed.SerializeToString(), providers=CPU).run(x, [1, 4])
        assert np.abs(theirs.gradients).max() > 0
        np.testing.assert_allclose(ours.gradients, theirs.gradients, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(ours.activations, theirs.activations, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", rest_slow(BODIES, 3))
def test_embeddings_of_positions_tell_the_one_size(name: str) -> None:
    body, (height, width) = BODIES[name]
    opened, closed = model(*body, picture=OPEN), model(*body, picture=f"N,3,{height},{width}")
    assert onnxcam.layers(opened) == onnxcam.layers(closed)
    assert default(opened).layout == "NTC"
    explainable = onnxcam.augment(opened)
    assert picture(explainable) == (["N", 3, height, width], None)
    x = np.random.default_rng(1).normal(size=(2, 3, height, width)).astype(np.float32)
    ours, theirs = (
        Explainer(source.SerializeToString(), providers=CPU).run(x, 1)
        for source in (explainable, onnxcam.augment(closed))
    )
    np.testing.assert_array_equal(ours.gradients, theirs.gradients)
    assert np.abs(ours.gradients).max() > 0
    assert Explainer(explainable.SerializeToString(), providers=CPU).warnings == []


def test_channels_last() -> None:
    body = (BACK, PATCHES.replace("(x,", "(back,"), PLACED, block("e", "1"), MEAN.format("b1"))
    explainable = onnxcam.augment(model(*body, picture="N,H,W,C"))
    assert picture(explainable) == (["N", 16, 16, 3], None)


@pytest.mark.parametrize(
    ("declared", "place", "size"),
    [("16,W", "place", [16, 16]), ("32,W", "place", [32, 8]), ("H,24", "bench", [16, 24]), ("24,W", "bench", [24, 16])],
)
def test_the_other_dimension_may_be_known(declared: str, place: str, size: list[int]) -> None:
    body = (PATCHES, f"e = Add(p, {place})", block("e", "1"), MEAN.format("b1"))
    explainable = onnxcam.augment(model(*body, picture=f"N,3,{declared}"))
    assert picture(explainable) == (["N", 3, *size], None)
    assert manifest.read(explainable)["layers"][0]["grid"] == [side // 4 for side in size]


def test_an_oblong_picture_has_to_be_named() -> None:
    body = (PATCHES, "e = Add(p, bench)", block("e", "1"), MEAN.format("b1"))
    source = model(*body, picture=OPEN)
    with pytest.warns(UserWarning, match="nothing could be measured"):
        explainable = onnxcam.augment(source)
    # as before: what comes before the tokens
    assert picture(explainable) == (["N", 3, "H", "W"], "unknown")
    assert manifest.read(explainable)["layers"][0]["name"] == "c"
    first, second = Explainer(explainable.SerializeToString(), providers=CPU).warnings
    assert "leaves the picture's size open" in first and "--input-size" in first, first
    assert "nothing could be measured" in second, second
    named = onnxcam.augment(source, input_size=(24, 16))
    assert picture(named) == (["N", 3, 24, 16], None)
    assert manifest.read(named)["layers"][0]["grid"] == [6, 4]
    with pytest.raises(ModelError, match="pictures of 24 x 24 do not fit the model"):
        onnxcam.augment(source, input_size=(24, 24))


@pytest.mark.parametrize(
    "layer", ["f = Flatten(r) y = Gemm<transB=1>(f, w)", "f = Reshape(r, rest) y = MatMul(f, turned)"]
)
def test_flattened_maps_fit_their_weights(layer: str) -> None:
    text = f"g (float[N, 3, H, W] x) => (float[N, 5] y) {{ c = Conv<strides=[4,4]>(x, k) r = Relu(c) {layer} }}"
    source = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5, 4 * 4 * 4)).astype(np.float32)
    arrays = {"k": rng.normal(size=(4, 3, 4, 4)).astype(np.float32), "w": weights, "turned": weights.T.copy()}
    arrays["rest"] = np.int64([0, -1])
    read = {name for node in source.graph.node for name in node.input}
    source.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items() if n in read)
    assert picture(onnxcam.augment(source, input_size=(16, 16))) == (["N", 3, 16, 16], None)
    with pytest.raises(ModelError, match=r"pictures of 16 x 12 do not fit the model.*weights"):
        onnxcam.augment(source, input_size=(16, 12))


@pytest.mark.slow
def test_tokens_of_any_size_are_laid_out_for_the_usual_one_and_that_is_said() -> None:
    source = model(PATCHES, block("p", "1"), MEAN.format("b1"), picture=OPEN)
    assert (default(source).name, default(source).grid) == ("b1", (56, 56))
    explainable = onnxcam.augment(source)
    assert picture(explainable) == (["N", 3, 224, 224], "assumed")
    explainer = Explainer(explainable.SerializeToString(), providers=CPU)
    (warning,) = explainer.warnings
    assert "224 x 224 was assumed" in warning
    closed = onnxcam.augment(model(PATCHES, block("p", "1"), MEAN.format("b1"), picture="N,3,224,224"))
    x = np.random.default_rng(2).normal(size=(1, 3, 224, 224)).astype(np.float32)
    theirs = Explainer(closed.SerializeToString(), providers=CPU).attribute(x)
    assert theirs.max() == pytest.approx(1)
    np.testing.assert_array_equal(explainer.attribute(x), theirs)
    with pytest.raises(InputError, match="the model takes float32"):
        explainer.run(np.zeros((1, 3, 64, 64), np.float32))
    half = onnxcam.augment(model(PATCHES, block("p", "1"), MEAN.format("b1"), picture="N,3,32,W"))
    assert picture(half) == (["N", 3, 32, 224], "assumed")
    # it stays said in what is made of it
    assert picture(onnxcam.augment(explainable, ["a1"])) == (["N", 3, 224, 224], "assumed")


def test_a_size_that_somebody_named_is_not_doubted() -> None:
    source = model(PATCHES, block("p", "1"), MEAN.format("b1"), picture=OPEN)
    resize = {"mode": "stretch", "size": [32, 48]}
    assert picture(onnxcam.augment(source, input_size=(32, 48))) == (["N", 3, 32, 48], None)
    assert picture(onnxcam.augment(source, preprocess={"resize": resize})) == (["N", 3, 32, 48], None)
    explainer = Explainer(source.SerializeToString(), preprocess={"scale": 1 / 255, "resize": resize}, providers=CPU)
    assert explainer.warnings == []
    explanation = explainer.explain(np.full((40, 60, 3), 99, np.uint8))
    assert explanation.heatmap.shape == (40, 60)
    # what the preset says of the size gives way to what was named
    assert picture(onnxcam.augment(source, preprocess="0..1", input_size=(32, 48)))[0] == ["N", 3, 32, 48]
    for declared in ("64,W", "H,48", "64,48"):
        closed = model(PATCHES, block("p", "1"), MEAN.format("b1"), picture=f"N,3,{declared}")
        assert picture(onnxcam.augment(closed, input_size=(64, 48)))[0] == ["N", 3, 64, 48]
        with pytest.raises(ModelError, match="was asked for 32 x 32; leave the size out"):
            onnxcam.augment(closed, input_size=(32, 32))
    with pytest.raises(ModelError, match="takes 32 x 48 pictures and was asked for 64 x 64"):
        onnxcam.augment(onnxcam.augment(source, input_size=(32, 48)), input_size=(64, 64))


@pytest.mark.parametrize("size", [(224,), (0, 32), (32, -1), (3, 32, 32), (32.0, 32), "ab"])
def test_what_is_no_size_is_refused(size: object) -> None:
    source = model(PATCHES, block("p", "1"), MEAN.format("b1"), picture=OPEN)
    with pytest.raises(ModelError, match="expected height and width of the picture, such as"):
        onnxcam.augment(source, input_size=size)


@pytest.mark.slow
def test_a_convolution_next_to_tokens_leaves_the_size_open() -> None:
    body = (PATCHES, block("p", "1"), MEAN.format("b1"))
    explainable = onnxcam.augment(model(*body, picture=OPEN), ["c"])
    assert picture(explainable) == (["N", 3, "H", "W"], None)
    as_closed(explainable, "c", *body)


@pytest.mark.slow
def test_a_residual_network_of_open_size_has_the_same_default_layer() -> None:
    opened, closed = model(RESIDUAL, picture=OPEN), model(RESIDUAL, picture="N,3,16,16")
    assert [layer.name for layer in onnxcam.layers(opened)] == [layer.name for layer in onnxcam.layers(closed)]
    assert (default(closed).name, default(opened).name) == ("r3", "r3")
    assert default(opened).shape[:2] == ("N", 8) and default(opened).grid is None
    assert not any(isinstance(size, int) for size in default(opened).shape[2:])
    explainable = onnxcam.augment(opened)
    assert picture(explainable) == (["N", 3, "H", "W"], None)
    as_closed(explainable, "r3", RESIDUAL)
    # and a fixed size is to be had for it too
    assert picture(onnxcam.augment(opened, input_size=(24, 40)))[0] == ["N", 3, 24, 40]


@pytest.mark.slow
def test_a_file_whose_own_shapes_refuse_the_usual_size_is_left_as_it_is() -> None:
    source = model(RESIDUAL, picture=OPEN)
    source.graph.value_info.append(onnx.helper.make_tensor_value_info("p1", onnx.TensorProto.FLOAT, [1, 8, 8, 8]))
    assert default(source).layout == "NCHW"
    explainable = onnxcam.augment(source)
    assert picture(explainable) == (["N", 3, "H", "W"], None)
    # what a file says of itself holds: of other sizes it would not be true
    as_closed(explainable, default(source).name, RESIDUAL, sizes=((16, 16),))


def test_channels_are_those_of_the_first_convolution() -> None:
    graph = prepare(model(RESIDUAL, picture=OPEN))
    assert graph.shape("x") == ("N", 3, "H", "W")
