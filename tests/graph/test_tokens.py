"""Tokens: how they lie on the picture, which of them reach the scores, and what is taken where a graph is silent."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxcam
from onnxcam.errors import LayerError
from onnxcam.graph.layers import Layer, describe_layer
from onnxcam.graph.liveness import Liveness
from onnxcam.graph.normalize import prepare
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.tokens import positions
from onnxcam.network import manifest
from onnxcam.network import readout as scores
from tests.graph.transformers import ATTENTION, CLASS, FIRST, MEAN, PATCHES, block, lost, model, vit


def default(source: onnx.ModelProto) -> Layer:
    (listed,) = [layer for layer in onnxcam.layers(source) if layer.default]
    return listed


def lies(layer: Layer) -> tuple[str, object, int]:
    return layer.name, layer.grid, layer.prefix_tokens


def test_the_class_token_is_read_the_last_attention_is_where_patches_end() -> None:
    source = vit()
    assert lies(default(source)) == ("n2", (4, 6), 1)
    # what comes behind it would give maps of zeros
    assert [layer.name for layer in onnxcam.layers(source)] == ["c", "a1", "n2"]
    explained = onnxcam.augment(source, ["n2", "b2"])
    actual = onnxcam.Explainer(explained.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        np.random.default_rng(0).normal(size=(2, 3, 16, 24)).astype(np.float32), 1, ["n2", "b2"]
    )
    assert np.abs(actual.gradients[0][:, 1:]).min(axis=(1, 2)).min() > 0
    assert actual.gradients[1][:, :1].any() and not actual.gradients[1][:, 1:].any()


def test_the_mean_is_read_everything_counts_to_the_end() -> None:
    source = model(PATCHES, block("p", "1"), MEAN.format("b1"))
    assert lies(default(source)) == ("b1", (4, 4), 0)
    normed = "y = LayerNormalization(b1, g, g)"
    assert default(model(PATCHES, block("p", "1"), normed, MEAN.format("y"))).name == "y"
    inside = "y = Slice(b1, [1], [99], [1])"
    assert lies(default(model(PATCHES, CLASS, block("t", "1"), inside, MEAN.format("y")))) == ("b1", (4, 4), 1)


def test_a_normalisation_may_be_written_out() -> None:
    written = (
        "mean = ReduceMean<axes=[-1]>(b1) d = Sub(b1, mean) dd = Mul(d, d) var = ReduceMean<axes=[-1]>(dd) "
        "sd = Sqrt(var) e = Div(d, sd) y = Mul(e, g)"
    )
    written = written.replace("<axes=[-1]>(b1)", "(b1, [-1])").replace("<axes=[-1]>(dd)", "(dd, [-1])")
    attention = ATTENTION.format("b1", "2").replace("n2 = LayerNormalization(b1, g, g)", "").replace("n2", "y")
    source = model(PATCHES, CLASS, block("t", "1"), written, attention, FIRST.format("a2"))
    assert lies(default(source)) == ("y", (4, 4), 1)


def test_post_norm_blocks() -> None:
    def after(source: str, tag: str) -> str:
        attention = ATTENTION.format(source, tag).replace(f"n{tag} = LayerNormalization({source}, g, g)", "")
        return attention.replace(f"n{tag}", source) + f" y{tag} = LayerNormalization(a{tag}, g, g)"

    source = model(PATCHES, CLASS, after("t", "1"), after("y1", "2"), FIRST.format("y2"))
    assert lies(default(source)) == ("y1", (4, 4), 1)


@pytest.mark.parametrize(
    ("read", "rows"),
    [
        ("z = Gather<axis=1>({0}, 0)", [0]),
        ("z = Gather<axis=1>({0}, -1)", [16]),
        ("s = Slice({0}, [1], [3], [1]) z = ReduceMean<keepdims=0>(s, [1])", [1, 2]),
        ("s = Slice({0}, [9], [-100], [1], [-4]) z = ReduceMean<keepdims=0>(s, [1])", [1, 5, 9]),
        ("s, rest = Split<axis=1>({0}, [2,15]) z = ReduceMax<keepdims=0>(s, [1])", [0, 1]),
        ("s = Gather<axis=1>({0}, [3,3,1]) z = ReduceSum<keepdims=0>(s, [1])", [1, 3]),
        ("s = Pad({0}, [0,-1,0,0,-13,0]) z = ReduceMean<keepdims=0>(s, [1])", range(17)),
        ("f = Reshape({0}, [0,136]) s = Slice(f, [8], [24], [1]) o = Reshape(s, [0,2,8]) "
         "z = ReduceMean<keepdims=0>(o, [1])", [1, 2]),
        ("f = Transpose<perm=[1,2,0]>({0}) s = Gather<axis=0>(f, 2) z = Transpose<perm=[1,0]>(s)", [2]),
        ("f = Einsum<equation=\"ntc,cd->tnd\">({0}, w5) s = Gather<axis=0>(f, 2) z = Relu(s)", [2]),
        ("f = Concat<axis=1>({0}, {0}) s = Gather<axis=1>(f, 20) z = Relu(s)", [3]),
        ("f = Softmax<axis=1>({0}) z = Gather<axis=1>(f, 0)", range(17)),
        ("f = Softmax<axis=2>({0}) z = Gather<axis=1>(f, 0)", [0]),
        ("f = Mul({0}, g) k = MatMul(f, w5) z = Gather<axis=1>(k, 4)", [4]),
    ],
)  # fmt: skip
def test_which_tokens_reach_the_scores(read: str, rows: object) -> None:
    """The graph's answer; and no gradient is anywhere else."""
    source = model(PATCHES, CLASS, "y = Identity(t)", read.format("y"), "logits = MatMul(z, head)")
    graph = prepare(source)
    reach = Liveness(graph, scores.find(graph, None).value, StaticShapes(graph))
    assert np.flatnonzero(reach.full("t", reach.live("t")).any(axis=(0, 2))).tolist() == list(rows)  # type: ignore[call-overload]
    gradient = onnxcam.gradient(source, "logits", ["t"])
    session = onnxcam.runtime.open_session(gradient.SerializeToString(), ["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    (slope,) = session.run(["grad.t"], {"x": x, "cotangent.logits": np.ones((2, 5), np.float32)})
    positions_reached = set(np.flatnonzero(slope.any(axis=(0, 2))).tolist())
    assert positions_reached and positions_reached <= set(rows)  # type: ignore[call-overload]


def test_windows_are_followed_there_and_back() -> None:
    cut = "h = Transpose<perm=[0,2,3,1]>(c) f = Reshape(h, [0,2,2,2,2,8]) k = Transpose<perm=[0,1,3,2,4,5]>(f) "
    cut += "four = Reshape(k, [0,4,4,8]) windows = Reshape(four, [-1,4,8])"
    back = "f2 = Reshape(b1, [-1,2,2,2,2,8]) k2 = Transpose<perm=[0,1,3,2,4,5]>(f2) y = Reshape(k2, [-1,4,4,8])"
    end = "z = ReduceMean<keepdims=0>(y, [1,2]) logits = MatMul(z, head)"
    source = model("c = Conv<strides=[4,4]>(x, patch)", cut, block("windows", "1"), back, end)
    assert lies(default(source)) == ("y", (4, 4), 0) and default(source).layout == "NHWC"
    with pytest.raises(LayerError, match=r"'four'.*windowed attention"):
        onnxcam.augment(source, ["four"])


@pytest.mark.parametrize(
    ("body", "grid", "prefix"),
    [
        (f"{PATCHES} y = Relu(p)", (4, 6), 0),
        (f"{PATCHES} {CLASS} y = Relu(t)", (4, 6), 1),
        (f"{PATCHES} {CLASS} y = Concat<axis=1>(cls, t)", (4, 6), 2),
        (f"{PATCHES} {CLASS} y = Slice(t, [1], [99], [1])", (4, 6), 0),
        (f"{PATCHES} f = Reshape(p, [0,4,6,8]) s = Slice(f, [1,0], [9,9], [1,2], [1,3]) y = Reshape(s, [0,-1,8])",
         (3, 2), 0),
        (f"{PATCHES} f = Reshape(p, [0,4,6,8]) s = Slice(f, [0,1], [9,9], [1,2], [2,3]) y = Reshape(s, [0,-1,8])",
         (2, 2), 0),
        (f"{PATCHES} f = Reshape(p, [0,4,2,3,8]) k = Reshape(f, [0,4,3,2,8]) y = Reshape(k, [0,24,8])", (4, 6), 0),
        ("f = Reshape(x, [0,3,4,4,6,4]) k = Transpose<perm=[0,2,4,3,5,1]>(f) y = Reshape(k, [0,24,48])", (4, 6), 0),
        (f"{PATCHES} k = Transpose<perm=[1,0,2]>(p) m = Reshape(k, [-1,8]) u = MatMul(m, w1) f = Reshape(u, [24,-1,8]) "
         "y = Transpose<perm=[1,0,2]>(f)", (4, 6), 0),
    ],
)  # fmt: skip
def test_the_grid_is_followed_from_the_picture(body: str, grid: object, prefix: int) -> None:
    graph = prepare(model(body, "z = ReduceMean(y) logits = Expand(z, [2,5])", picture="N,3,16,24"))
    cells = positions(graph).grid("y")
    assert cells == (None if grid is None else (grid, prefix))
    # of one of them the first row is cut off
    assert positions(graph).window("y") == (((4.0, 16.0), (0.0, 24.0), False) if grid == (3, 2) else None)


def test_columns_first_is_a_map_across() -> None:
    turned = "h = Transpose<perm=[0,1,3,2]>(c) flat = Reshape(h, [0,8,-1]) p = Transpose<perm=[0,2,1]>(flat)"
    source = model("c = Conv<strides=[4,4]>(x, patch)", turned, block("p", "1"), MEAN.format("b1"), picture="N,3,16,24")
    assert lies(default(source)) == ("b1", (6, 4), 0)
    assert default(source).window == ((0, 16), (0, 24), True)
    explainer = onnxcam.Explainer(source, providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).normal(size=(1, 3, 16, 24)).astype(np.float32)
    raw = explainer.attribute(batch, 0, normalize="none", size="layer")
    assert raw.shape == (1, 6, 4)
    np.testing.assert_allclose(
        explainer.attribute(batch, 0, normalize="none", size=(4, 6)), raw.transpose(0, 2, 1), atol=1e-7
    )


def test_tokens_in_no_order_are_no_map() -> None:
    scattered = "h = Reshape(c, [0,8,2,2,4]) k = Transpose<perm=[0,1,3,2,4]>(h) flat = Reshape(k, [0,8,-1]) "
    scattered += "p = Transpose<perm=[0,2,1]>(flat)"
    source = model("c = Conv<strides=[4,4]>(x, patch)", scattered, block("p", "1"), MEAN.format("b1"))
    assert default(source).name == "c"
    with pytest.raises(LayerError, match=r"not in the order of the picture's rows.*--grid"):
        onnxcam.augment(source, ["b1"])


def test_tokens_behind_the_patches_are_told_of() -> None:
    """Else the one square that fits would be taken, from the second patch on."""
    last = CLASS.replace("Concat<axis=1>(cls, p)", "Concat<axis=1>(p, cls)")
    source = model(PATCHES, last, block("t", "1"), MEAN.format("b1"))
    assert default(source).name == "c"
    with pytest.raises(LayerError, match="not in the order of the picture's rows"):
        onnxcam.augment(source, ["b1"])


def test_learned_queries_are_no_map() -> None:
    """What a decoder's queries take from the picture lies nowhere on it."""
    ask = "n = Shape<end=1>(x) some = Concat<axis=0>(n, [9], [8]) y = Expand(queries, some)"
    cross = "kt = Transpose<perm=[0,2,1]>(p) l = MatMul(y, kt) s = Softmax<axis=-1>(l) o = MatMul(s, p) b = Add(y, o)"
    assert default(model(PATCHES, ask, cross, MEAN.format("b"))).name == "c"


def test_a_convolution_that_all_tokens_go_through_is_the_last_layer() -> None:
    tail = "f = Transpose<perm=[0,2,1]>(b1) h = Reshape(f, [0,8,4,4]) d = Conv(h, deep) y = Relu(d)"
    end = "z = GlobalAveragePool(y) v = Flatten(z) logits = MatMul(v, head)"
    assert default(model(PATCHES, block("p", "1"), tail, end)).name == "y"


def test_a_convolution_next_to_the_stream_does_not_stand_for_the_block() -> None:
    """Positions encoded by a convolution of the values, added to what the class token takes from them."""
    beside = "f = Transpose<perm=[0,2,1]>(v2) h = Reshape(f, [0,8,4,4]) d = Conv<pads=[1,1,1,1]>(h, deep) "
    beside += "e = Reshape(d, [0,8,16]) r = Transpose<perm=[0,2,1]>(e) sum = Add(o2, r)"
    source = model(PATCHES, block("p", "1"), ATTENTION.format("b1", "2"), beside, MEAN.format("sum"))
    assert lies(default(source)) == ("n2", (4, 4), 0)


def test_shapes_written_as_arithmetic_are_worked_out() -> None:
    """As the older exporter writes them: every Reshape by what Shape says."""
    first = "n = Shape(x) one = Gather<axis=0>(n, [0]) some = Concat<axis=0>(one, [-1], [8]) "
    flat = "c = Conv<strides=[4,4]>(x, patch) h = Transpose<perm=[0,2,3,1]>(c) p = Reshape(h, some)"
    source = model(first, flat, block("p", "1"), MEAN.format("b1"), picture="N,3,16,24")
    assert default(source).shape == ("N", 24, 8) and lies(default(source)) == ("b1", (4, 6), 0)


def test_tokens_of_which_nothing_is_known_lie_on_the_one_square_that_fits() -> None:
    for count, grid, prefix in ((16, (4, 4), 0), (17, (4, 4), 1), (18, (4, 4), 2), (21, (4, 4), 5)):
        explainable = onnxcam.augment(lost(count), ["b1"])
        entry = (manifest.read(explainable) or {})["layers"][0]
        assert (entry["layout"], entry["grid"], entry["prefix_tokens"]) == ("NTC", list(grid), prefix)
    with pytest.raises(LayerError, match=r"15 tokens form no square grid; .*--grid ROWSxCOLUMNS --prefix COUNT"):
        onnxcam.augment(lost(15), ["b1"])
    with pytest.raises(LayerError, match=r"9 tokens may be 3 x 3 with prefix 0 or 2 x 2 with prefix 5; .*--grid"):
        onnxcam.augment(lost(9), ["b1"])

    def laid(count: int, **arguments: object) -> tuple[object, object]:
        entry = (manifest.read(onnxcam.augment(lost(count), ["b1"], **arguments)) or {})["layers"][0]  # type: ignore[arg-type]
        return entry["grid"], entry["prefix_tokens"]

    assert laid(15, grid=(3, 5)) == ([3, 5], 0)
    assert laid(15, grid=(2, 7), prefix_tokens=1) == ([2, 7], 1) == laid(15, grid=(2, 7))
    assert laid(9, prefix_tokens=5) == ([2, 2], 5)
    with pytest.raises(LayerError, match=r"15 tokens, but a grid of 4 x 4 and 0 prefix tokens make 16"):
        laid(15, grid=(4, 4))
    with pytest.raises(LayerError, match="15 tokens, but"):
        laid(15, prefix_tokens=3)
    with pytest.raises(LayerError, match="'c' is not a layer of tokens"):
        onnxcam.augment(vit(), ["c"], grid=(4, 6))


def test_a_file_keeps_what_it_was_told() -> None:
    source = model(PATCHES, block("p", "1"), MEAN.format("b1"))
    first = onnxcam.augment(source, ["b1"], grid=(2, 8))
    again = onnxcam.augment(first, methods=["hirescam"])
    for result in (first, again):
        assert (manifest.read(result) or {})["layers"][0]["grid"] == [2, 8]
        assert lies(default(result)) == ("b1", (2, 8), 0)
    x = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    explainer = onnxcam.Explainer(first.SerializeToString(), providers=["CPUExecutionProvider"])
    assert explainer.attribute(x, 1, normalize="none", size="layer").shape == (2, 2, 8)


def test_a_fixed_batch_makes_no_difference() -> None:
    for rows in (1, 2):
        source = model(PATCHES.replace("[0,8,-1]", f"[{rows},8,-1]"), block("p", "1"), MEAN.format("b1"),
                       picture=f"{rows},3,16,24")  # fmt: skip
        source.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", 1, [rows, 5]))
        assert lies(default(source)) == ("b1", (4, 6), 0)


def test_rank_four_layers_keep_their_check() -> None:
    graph = prepare(model(PATCHES, block("p", "1"), MEAN.format("b1")))
    assert describe_layer(graph, Layer("c", "c")).layout == "NCHW"
