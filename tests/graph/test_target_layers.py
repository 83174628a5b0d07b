"""The default layer and the candidates, on graphs of the usual block types; the layout found without being told."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

import onnxcam
from onnxcam.errors import LayerError, ModelError
from onnxcam.graph import layers
from onnxcam.graph.layers import resolve
from onnxcam.graph.layout import layout_of
from onnxcam.graph.normalize import prepare

HEAD = "p = GlobalAveragePool({0}) f = Flatten(p) logits = MatMul(f, head)"


def model(body: str, last: str, channels: int = 8, picture: str = "N,3,16,16", **weights: str) -> onnx.ModelProto:
    """A classifier from ONNX text: `x` is the picture, `last` is what is pooled."""
    kinds = {"w0": "8,3,3,3", "w1": "8,8,3,3", "w2": "8,8,1,1", "head": f"{channels},5"} | weights
    arguments = "".join(f", float[{shape}] {name}" for name, shape in kinds.items() if name in body + " head")
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[{picture}] x{arguments}) => (float[N,5] logits) {{'
    text += body + " " + HEAD.format(last) + "}"
    parsed = onnx.parser.parse_model(text)
    # the weights' values do not matter here: zeros of their shapes
    for info in [i for i in parsed.graph.input if i.name != "x"]:
        dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
        size = 1
        for dim in dims:
            size *= dim
        parsed.graph.initializer.append(onnx.helper.make_tensor(info.name, 1, dims, [0.0] * size))
        parsed.graph.input.remove(info)
    return parsed


def default(source: onnx.ModelProto) -> str:
    (listed,) = [layer.name for layer in onnxcam.layers(source) if layer.default]
    return listed


C0 = "c0 = Conv<pads=[1,1,1,1]>(x, w0)"
C1 = "c1 = Conv<pads=[1,1,1,1]>(r0, w1)"
SILU = "s{1} = Sigmoid({0}) r{1} = Mul({0}, s{1})"
HARD_SWISH = (
    "three{1} = Constant<value_float=3.0>() a{1} = Add({0}, three{1}) zero{1} = Constant<value_float=0.0>() six{1} = "
    "Constant<value_float=6.0>() k{1} = Clip(a{1}, zero{1}, six{1}) m{1} = Mul({0}, k{1}) r{1} = Div(m{1}, six{1})"
)
GELU_ERF = (
    "root{1} = Constant<value_float=1.4142135>() d{1} = Div({0}, root{1}) e{1} = Erf(d{1}) "
    "one{1} = Constant<value_float=1.0>() p{1} = Add(e{1}, one{1}) m{1} = Mul({0}, p{1}) "
    "half{1} = Constant<value_float=0.5>() r{1} = Mul(m{1}, half{1})"
)
GELU_TANH = (
    "three{1} = Constant<value_float=3.0>() u{1} = Pow({0}, three{1}) k{1} = Constant<value_float=0.044715>() "
    "v{1} = Mul(u{1}, k{1}) q{1} = Add({0}, v{1}) g{1} = Constant<value_float=0.7978845>() t{1} = Mul(q{1}, g{1}) "
    "h{1} = Tanh(t{1}) one{1} = Constant<value_float=1.0>() p{1} = Add(h{1}, one{1}) m{1} = Mul({0}, p{1}) "
    "half{1} = Constant<value_float=0.5>() r{1} = Mul(m{1}, half{1})"
)
MISH = "so{1} = Softplus({0}) th{1} = Tanh(so{1}) r{1} = Mul({0}, th{1})"


@pytest.mark.parametrize("activation", [SILU, HARD_SWISH, GELU_ERF, GELU_TANH, MISH])
def test_an_activation_of_several_operators_is_followed_to_its_end(activation: str) -> None:
    body = " ".join([C0, activation.format("c0", 0), C1, activation.format("c1", 1)])
    assert [layer.name for layer in onnxcam.layers(model(body, "r1"))] == ["r0", "r1"]
    assert default(model(body, "r1")) == "r1"


def test_normalisation_and_relu() -> None:
    bn = "b1 = BatchNormalization(c1, g, g, g, g) r1 = Relu(b1)"
    source = model(f"{C0} r0 = Relu(c0) {C1} {bn}", "r1", g="8")
    assert [(layer.name, layer.default) for layer in onnxcam.layers(source)] == [("r0", False), ("r1", True)]


def test_residual_add_then_relu() -> None:
    source = model(f"{C0} r0 = Relu(c0) {C1} a1 = Add(c1, r0) r1 = Relu(a1)", "r1")
    assert default(source) == "r1"


def test_the_last_block_of_pre_activation_nets() -> None:
    body = f"{C0} r0 = Relu(c0) {C1} a1 = Add(c1, c0) b = BatchNormalization(a1, g, g, g, g) r1 = Relu(b)"
    assert default(model(body, "r1", g="8")) == "r1"


def test_branches_are_followed_through_their_concat() -> None:
    body = f"{C0} r0 = Relu(c0) {C1} r1 = Relu(c1) c2 = Conv(r0, w2) r2 = Relu(c2) cat = Concat<axis=1>(r1, r2)"
    source = model(body, "cat", channels=16)
    assert default(source) == "cat"
    listing = {layer.name: layer for layer in onnxcam.layers(source)}
    assert listing["cat"].shape == ("N", 16, 16, 16) and listing["cat"].grid == (16, 16)


def test_dense_connections() -> None:
    body = f"{C0} r0 = Relu(c0) {C1} cat = Concat<axis=1>(c0, c1) b = BatchNormalization(cat, g, g, g, g) r = Relu(b)"
    assert default(model(body, "r", channels=16, g="16")) == "r"


def test_squeeze_and_excitation_convolutions_are_no_candidates() -> None:
    gate = (
        "z = GlobalAveragePool(r1) d = Conv(z, w2) dr = Relu(d) u = Conv(dr, w3) us = Sigmoid(u) scaled = Mul(r1, us)"
    )
    body = f"{C0} r0 = Relu(c0) {C1} r1 = Relu(c1) {gate}"
    source = model(body, "scaled", w3="8,8,1,1")
    names = [layer.name for layer in onnxcam.layers(source)]
    assert names == ["r0", "r1"]
    for name in ("d", "dr", "u"):
        with pytest.raises(LayerError, match=r"\[N, 8, 1, 1\]"):
            onnxcam.augment(source, [name])
    free = model(body, "scaled", picture="N,3,H,W", w3="8,8,1,1")
    assert [layer.name for layer in onnxcam.layers(free)] == ["r0", "r1"]


@pytest.mark.parametrize("pool", ["MaxPool<kernel_shape=[2,2], strides=[2,2]>", "AveragePool<kernel_shape=[2,2]>"])
def test_pooling_is_never_passed(pool: str) -> None:
    source = model(f"{C0} r0 = Relu(c0) {C1} r1 = Relu(c1) q = {pool}(r1)", "q")
    assert default(source) == "r1"
    assert onnxcam.layers(source)[-1].shape == ("N", 8, 16, 16)


def test_a_value_that_is_an_output_itself_is_not_left_behind() -> None:
    source = model(f"{C0} r0 = Relu(c0) {C1} r1 = Relu(c1)", "r1")
    source.graph.output.append(onnx.helper.make_tensor_value_info("c1", 1, ["N", 8, 16, 16]))
    assert default(source) in ("r1", "c1")
    onnxcam.augment(source)


def test_the_last_residual_add_where_no_convolution_follows() -> None:
    body = (
        f"{C0} t = Transpose<perm=[0,2,3,1]>(c0) h = MatMul(t, m) k = Relu(h) v = MatMul(k, m) "
        "b = Transpose<perm=[0,3,1,2]>(v) a1 = Add(c0, b)"
    )
    source = model(body, "a1", m="8,8")
    assert default(source) == "a1"
    graph = prepare(source)
    assert [layout_of(graph, name) for name in ("c0", "t", "h", "k", "v", "b", "a1")] == [
        "NCHW", "NHWC", "NHWC", "NHWC", "NHWC", "NCHW", "NCHW"
    ]  # fmt: skip


def test_channels_last_all_along() -> None:
    body = (
        "n = Transpose<perm=[0,3,1,2]>(x) c0 = Conv<pads=[1,1,1,1]>(n, w0) t0 = Transpose<perm=[0,2,3,1]>(c0) "
        "r0 = Relu(t0) axes = Constant<value_ints=[1,2]>() pooled = ReduceMean<keepdims=0>(r0, axes) "
    )
    text = model(body, "c0", picture="N,16,16,3")
    del text.graph.node[-3:-1]
    text.graph.node[-1].input[0] = "pooled"
    graph = prepare(text)
    for name, layout in (("x", "NHWC"), ("c0", "NCHW"), ("t0", "NHWC"), ("r0", "NHWC")):
        assert layout_of(graph, name) == layout, name
    explainable = onnxcam.augment(text, ["r0"])
    import json

    entry = json.loads(explainable.metadata_props[0].value)["layers"][0]
    assert (entry["layout"], entry["shape"], entry["grid"]) == ("NHWC", ["N", 16, 16, 8], [16, 16])


def test_names_that_do_not_exist_name_the_nearest() -> None:
    source = model(f"{C0} r0 = Relu(c0)", "r0")
    with pytest.raises(LayerError, match=r"no layer 'r9'.*'?r0"):
        onnxcam.augment(source, ["r9"])


def test_a_name_of_two_nodes_means_neither() -> None:
    source = model(f"{C0} r0 = Relu(c0)", "r0")
    first, second = source.graph.node[:2]
    first.name = second.name = "same"
    with pytest.raises(LayerError, match=r"no layer 'same'.*'?same_0'?.*'?same_1"):
        onnxcam.augment(source, ["same"])
    with pytest.raises(ModelError, match=r"'same'.*'?same_0'?.*'?same_1"):
        onnxcam.gradient(source, of="same", wrt=["x"])
    for name, value in (("same_0", "c0"), ("same_1", "r0")):  # the names in the error are those to choose from
        assert resolve(prepare(source), name, "scores").value == value


def test_tokens_lie_on_a_square() -> None:
    graph = prepare(model(f"{C0} r0 = Relu(c0)", "r0"))
    for tokens, grid, prefix in ((16, (4, 4), 0), (17, (4, 4), 1), (18, (4, 4), 2), (201, (14, 14), 5)):
        layer = layers.Layer("t", "r0", shape=("N", tokens, 8))
        description = layers.describe_layer(graph, layer)
        assert (description.layout, description.grid, description.prefix_tokens) == ("NTC", grid, prefix)
    with pytest.raises(LayerError, match="no square grid"):
        layers.describe_layer(graph, layers.Layer("t", "r0", shape=("N", 15, 8)))


def test_the_sums_inside_an_adaptive_pooling_are_no_residual_connections() -> None:
    body = f"{C0} r0 = Relu(c0) one = Constant<value_ints=[1]>() two = Constant<value_ints=[2]>() "
    body += "far = Constant<value_ints=[8]>() three = Constant<value_ints=[3]>() zero = Constant<value_ints=[0]>() "
    body += "most = Constant<value_ints=[7]>() left = Slice(r0, zero, most, three) right = Slice(r0, one, far, three) "
    body += "total = Add(left, right)"
    assert default(model(body, "total")) == "r0"
