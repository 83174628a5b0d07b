"""Every model in one form: inlined, opset 18 or later, weights constant, nodes named, shapes inferred, same numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser, shape_inference

from onnxcam import gradient
from onnxcam.errors import ModelError
from onnxcam.graph import normalize
from onnxcam.graph.normalize import prepare
from onnxcam.graph.shape_inference import describe, drop_contradicted, refresh, skeleton, undeclare
from onnxcam.graph.validation import bodies
from tests.graph.text import model
from tests.support.models import tiny_cnn
from tests.support.runtime import run

rng = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def opset(model_proto: onnx.ModelProto) -> dict[str, int]:
    return {o.domain: o.version for o in model_proto.opset_import}


OLD = """g (float[2, 4] x) => (float[2, 2] y) {
  s = Softmax<axis = 1>(x)
  c = Clip<min = 0.1, max = 0.6>(s)
  u = Unsqueeze<axes = [1]>(c)
  q = Squeeze<axes = [1]>(u)
  p = Pad<pads = [0, 1, 0, 1], mode = "constant", value = 0.5>(q)
  l = Slice<starts = [1], ends = [5], axes = [1]>(p)
  m = MatMul(l, w)
  r = ReduceMean<axes = [1], keepdims = 1>(m)
  y = Sub(m, r)
}"""


def test_an_old_opset_is_upgraded_with_the_same_numbers() -> None:
    source = model(OLD, opset=8, ir=4, w=normal(4, 2))
    x = normal(2, 4)
    # opset 8 lacks neither operator nor attribute used: the runtime itself is the reference
    graph = prepare(source)
    assert opset(graph.model) == {"": 18} and graph.opset == 18 and graph.model.ir_version == 8
    onnx.checker.check_model(graph.model, full_check=True)
    np.testing.assert_allclose(run(graph.model, x=x)["y"], run(source, x=x)["y"], rtol=1e-6, atol=1e-7)
    e = np.exp(x - x.max(1, keepdims=True))
    softmax = np.clip(e / e.sum(1, keepdims=True), 0.1, 0.6)
    m = softmax @ numpy_helper.to_array(source.graph.initializer[0])
    np.testing.assert_allclose(run(graph.model, x=x)["y"], m - m.mean(1, keepdims=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("version", "ir"), [(18, 8), (19, 9), (20, 9), (21, 10)])
def test_newer_opsets_are_kept_with_the_ir_they_came_with(version: int, ir: int) -> None:
    graph = prepare(model("g (float[N] x) => (float[N] y) { y = Relu(x) }", opset=version, ir=11))
    assert graph.opset == version
    assert graph.model.ir_version == ir


def test_an_opset_from_the_future_is_refused() -> None:
    with pytest.raises(ModelError, match=r"opset 99; the newest supported is \d+: export it with opset"):
        prepare(model("g (float[N] x) => (float[N] y) { y = Relu(x) }", opset=99))


def test_what_cannot_be_upgraded_is_refused() -> None:
    text = 'g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) { y = Upsample<mode = "nearest">(x, s) }'
    source = model(text, opset=9, s=np.asarray([1, 1, 2, 2], np.float32))
    graph = None
    try:
        graph = prepare(source)
    except ModelError as error:
        assert "opset 9 cannot be upgraded to 18" in str(error) and "export it again" in str(error)
    if graph is not None:  # a converter that learns to do it must do it right
        x = normal(1, 1, 2, 2)
        np.testing.assert_array_equal(run(graph.model, x=x)["y"], run(source, x=x)["y"])


def listed(ir: int, *names: str) -> onnx.ModelProto:
    """A linear model whose initializers of these names are listed among the inputs too."""
    weights = {"w": normal(4, 2), "b": normal(2)}
    graph = model("g (float[N, 4] x) => (float[N, 2] y) { m = MatMul(x, w)  y = Add(m, b) }", ir=ir, **weights)
    for name in names:
        graph.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, weights[name].shape))
    return graph


@pytest.mark.parametrize("ir", [3, 8])
def test_weights_listed_as_inputs_are_constants(ir: int) -> None:
    source = listed(ir, "w", "b")
    if ir == 3:
        source.opset_import[0].version = 8
    graph = prepare(source)
    assert [i.name for i in graph.model.graph.input] == ["x"]
    assert graph.is_constant("w") and graph.is_constant("b")
    x = normal(3, 4)
    np.testing.assert_allclose(run(graph.model, x=x)["y"], run(source, x=x)["y"], rtol=1e-6)


def test_one_overridable_initializer_among_weights_stays_one() -> None:
    graph = prepare(listed(8, "b"))
    assert [i.name for i in graph.model.graph.input] == ["x", "b"]
    assert [i.name for i in graph.inputs] == ["x"]
    assert graph.is_constant("w") and not graph.is_constant("b")


def test_nodes_get_names_of_their_own() -> None:
    source = model("g (float[N] x) => (float[N] y) { a = Relu(x)  b = Relu(a)  c = Relu(b)  y = Relu(c) }")
    for node, name in zip(source.graph.node, ("", "same", "same", "Relu_0"), strict=True):
        node.name = name
    names = [n.name for n in prepare(source).nodes]
    assert "same" not in names  # it would mean the first, whichever was asked for
    assert [name.startswith("same_") for name in names] == [False, True, True, False]
    assert len(set(names)) == 4 and all(names)


def test_local_functions_are_inlined() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
    g (float[N] x) => (float[N] y) {
      a = local.twice(x)
      y = local.twice(a)
    }
    <domain: "local", opset_import: ["" : 18]>
    twice (v) => (w) { k = Constant<value = float {2.0}>()  w = Mul(v, k) }
    """
    graph = prepare(parser.parse_model(text))
    assert not graph.model.functions and opset(graph.model) == {"": 18}
    assert {n.op_type for n in graph.nodes} <= {"Constant", "Mul", "Identity"}
    x = normal(3)
    np.testing.assert_allclose(run(graph.model, x=x)["y"], 4 * x, rtol=1e-6)


def test_unused_imports_are_dropped_and_used_ones_kept() -> None:
    extra = ', "ai.onnx.ml" : 3, "com.microsoft" : 1'
    plain = prepare(model("g (float[N] x) => (float[N] y) { y = Relu(x) }", extra=extra))
    assert opset(plain.model) == {"": 18}
    graph = prepare(model("g (float[N] x) => (float[N] y) { y = com.microsoft.Inverse(x) }", extra=extra))
    assert opset(graph.model) == {"": 18, "com.microsoft": 1}


def test_imports_used_only_inside_a_branch_are_kept() -> None:
    text = """g (float[2] x) => (float[2] y) {
      s = ReduceSum<keepdims = 0>(x)
      yes = Cast<to = 9>(s)
      y = If(yes) <then_branch = t () => (float[2] p) { p = com.microsoft.Gelu(x) },
                   else_branch = e () => (float[2] q) { q = Neg(x) }>
    }"""
    assert "com.microsoft" in opset(prepare(model(text, extra=', "com.microsoft" : 1')).model)


def test_shapes_are_inferred_with_symbols() -> None:
    graph = prepare(tiny_cnn())
    assert graph.shape("conv1") == ("N", 8, 32, 32)
    assert graph.shape("relu2") == ("N", 16, 16, 16)
    assert graph.dtype("relu2") == TensorProto.FLOAT


def test_shapes_are_inferred_through_computed_shapes() -> None:
    """Older exporters flatten through Shape, Gather and Concat; only data propagation sees through it."""
    text = """g (float[N, 3, 2, 2] x) => (float[N, K] y) {
      shape = Shape(x)
      rows = Gather(shape, zero)
      target = Concat<axis = 0>(rows, rest)
      y = Reshape(x, target)
    }"""
    graph = prepare(model(text, zero=np.asarray([0]), rest=np.asarray([12])))
    assert graph.shape("y") == ("N", 12)  # the batch as declared
    source = model(text.replace("K]", "12]"), zero=np.asarray([0]), rest=np.asarray([12]))
    source.graph.output[0].type.tensor_type.ClearField("shape")
    shape = prepare(source).shape("y")
    assert shape is not None and shape[1] == 12


def test_whole_numbers_that_shape_inference_does_not_follow_are_computed() -> None:
    """As torch's older exporter splits the queries, keys and values of an attention."""
    text = """g (float[N, 6] x) => (float[N, 2] y) {
      rest = Mod(minus, three)
      sides = Reshape(rest, one)
      shape = Shape(x)
      first = Slice(shape, zeros, one)
      target = Concat<axis = 0>(first, sides, minus)
      parts = Reshape(x, target)
      turned = Transpose<perm = [1, 0, 2]>(parts)
      y = Gather(turned, index)
    }"""
    numbers = {"minus": [-1], "three": [3], "one": [1], "zeros": [0]}
    arrays = {name: np.asarray(value) for name, value in numbers.items()}
    source = model(text, index=np.asarray(0), **arrays)
    graph = prepare(source)
    assert [len(graph.shape(name) or ()) for name in ("parts", "turned", "y")] == [3, 3, 2]
    assert [node.op_type for node in graph.nodes].count("Mod") == 1  # the graph itself is as it was
    x = normal(3, 6)
    np.testing.assert_array_equal(run(graph.model, x=x)["y"], x.reshape(3, 2, 3)[:, 0])


def test_an_output_declared_without_a_shape_gets_one() -> None:
    source = tiny_cnn()
    source.graph.output[0].type.tensor_type.ClearField("shape")
    graph = prepare(source)
    assert graph.shape("logits") == ("N", 5)


def test_dimensions_written_as_minus_one_or_a_question_mark_are_free() -> None:
    source = tiny_cnn(size=None)
    for info, written in ((source.graph.input[0], [-1, 3, "?", "?"]), (source.graph.output[0], [-1, 5])):
        info.CopyFrom(helper.make_tensor_value_info(info.name, TensorProto.FLOAT, written))
    graph = prepare(source)
    assert graph.shape("input") == (None, 3, None, None)
    shape = graph.shape("relu2")
    assert shape is not None and shape[1] == 16 and not any(isinstance(shape[k], int) for k in (0, 2, 3))
    (plain,) = run(source, input=(x := normal(2, 3, 12, 20))).values()
    np.testing.assert_array_equal(*run(graph.model, input=x).values(), plain)


@pytest.mark.parametrize("size", [1 << 28, 1 << 40])
@pytest.mark.parametrize("node", ["ConstantOfShape(n)", "Expand(one, n)", "Tile(one, n)"])
def test_a_small_file_that_grows_when_it_is_loaded_is_refused(node: str, size: int) -> None:
    text = f"g (float[N] x) => (float[N] y) {{ z = {node}  s = ReduceSum<keepdims = 0>(z)  y = Add(x, s) }}"
    source = model(text, n=np.asarray([size]), one=np.ones(1, np.float32))
    with pytest.raises(ModelError, match=rf"computes a constant of shape \[{size}\], too large"):
        prepare(source)
    source = model(text, n=np.asarray([16]), one=np.ones(1, np.float32))
    assert prepare(source).nodes


@pytest.mark.parametrize("version", [13, 18])
def test_sizes_below_nothing_are_refused_before_anything_is_cut_out_of_them(version: int) -> None:
    """onnx 1.23 ends the process in its inference for Slice."""
    text = """g (float[1, 3, 8, 8] x) => (float[1, 3, a, b] y) {
      p = Pad(x, pads)
      y = Slice(p, one, last, axes)
    }"""
    constants = {"one": np.asarray([1]), "last": np.asarray([-1]), "axes": np.asarray([2])}
    for pads in ([0, 0, -20, 0, 0, 0, 0, 0], [0, 0, -(2**60), 0, 0, 0, -5, 0]):
        with pytest.raises(ModelError, match=r"'p' has shape \[1, 3, -\d+, 8\], with a negative dimension"):
            prepare(model(text, opset=version, pads=np.asarray(pads), **constants))
    assert prepare(model(text, opset=version, pads=np.asarray([0, 0, -2, 0, 0, 0, 0, 0]), **constants)).nodes


def test_stale_shapes_are_replaced() -> None:
    source = shape_inference.infer_shapes(tiny_cnn(batch=1))
    source.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    source.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    del source.graph.value_info[:]
    assert prepare(source).shape("relu2") == ("N", 16, 16, 16)


def test_weights_are_neither_copied_nor_serialized_to_infer_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    source = model("g (float[N, 512] x) => (float[N, 512] y) { y = MatMul(x, w) }", w=normal(512, 512))
    sizes: list[int] = []
    infer: Callable[..., onnx.ModelProto] = shape_inference.infer_shapes

    def spy(bare: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
        sizes.append(bare.ByteSize())
        return infer(bare, **options)

    monkeypatch.setattr(normalize.shape_inference, "infer_shapes", spy)
    graph = prepare(source)
    assert graph.shape("y") == ("N", 512)
    assert sizes and max(sizes) < 2000 < source.ByteSize()


def test_the_skeleton_has_the_large_weights_as_inputs_and_the_small_ones_as_they_are() -> None:
    source = model(
        "g (float[N, 64] x) => (float[N, 1] y) { a = MatMul(x, w)  y = Reshape(a, s) }",
        w=normal(64, 32),
        s=np.asarray([-1, 1]),
    )
    bare, large = skeleton(source)
    assert large == ["w"]
    assert [t.name for t in bare.graph.initializer] == ["s"]
    assert [i.name for i in bare.graph.input] == ["x", "w"]


def test_shapes_read_from_a_large_constant_are_not_lost() -> None:
    """A Resize or Reshape reads its shape from a small constant, which the skeleton must keep."""
    text = 'g (float[1, 3, 4, 4] x) => (float[1, C, H, W] y) { y = Resize<mode = "nearest">(x, , , sizes) }'
    source = model(text, sizes=np.asarray([1, 3, 8, 8]))
    source.graph.output[0].type.tensor_type.ClearField("shape")
    assert prepare(source).shape("y") == (1, 3, 8, 8)


def test_refresh_sees_an_edit() -> None:
    graph = prepare(tiny_cnn())
    graph.model.graph.node.append(helper.make_node("Flatten", ["relu2"], ["flat2"], name="more"))
    graph.model.graph.output.append(helper.make_empty_tensor_value_info("flat2"))
    graph.model.graph.output[-1].type.tensor_type.elem_type = TensorProto.FLOAT
    assert refresh(graph.model).shape("flat2") == ("N", 16 * 16 * 16)


def test_an_invalid_model_is_refused() -> None:
    source = tiny_cnn()
    source.graph.node[1].input[0] = "nobody_makes_this"
    with pytest.raises(ModelError, match=r"not valid ONNX.*nobody_makes_this"):
        prepare(source)


def test_nodes_out_of_order_are_sorted() -> None:
    source = model("g (float[N] x) => (float[N] y) { a = Relu(x)  y = Neg(a) }")
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(source.graph.node)]
    del source.graph.node[:]
    source.graph.node.extend(nodes)
    assert [n.op_type for n in prepare(source).nodes] == ["Relu", "Neg"]


def test_an_operator_that_does_not_exist_is_left_to_whoever_needs_it() -> None:
    """Only a node on the differentiated path needs a rule; elsewhere the runtime decides."""
    source = model("g (float[N] x) => (float[N] y) { a = custom.Thing(x)  y = Relu(a) }", extra=', "custom" : 1')
    assert [n.op_type for n in prepare(source).nodes] == ["Thing", "Relu"]


def test_the_source_is_left_alone() -> None:
    source = listed(8, "w", "b")
    before = source.SerializeToString()
    prepare(source)
    assert source.SerializeToString() == before


def test_preparing_twice_is_preparing_once() -> None:
    once = prepare(tiny_cnn(opset=13)).model
    assert prepare(once).model == once


def test_describe() -> None:
    assert describe(("N", 3, None, 7)) == "[N, 3, ?, 7]"
    assert describe(()) == "[]"
    assert describe(None) == "unknown"


def stale(name: str, *dims: int | str) -> onnx.ModelProto:
    """A tiny CNN with shapes of all values, of which one is that of before an optimisation."""
    declared = shape_inference.infer_shapes(tiny_cnn())
    for info in (*declared.graph.value_info, *declared.graph.output):
        if info.name == name:
            info.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    return declared


@pytest.mark.parametrize(
    ("name", "dims"),
    [("relu1", ("N", 32, 32, 8)), ("conv2", ("N", 16)), ("logits", ("N", 7)), ("relu2", ("M", 16, 5, 5))],
)
def test_declared_shapes_that_are_wrong_are_computed_anew(name: str, dims: tuple[int | str, ...]) -> None:
    right, wrong = prepare(tiny_cnn()), prepare(stale(name, *dims))
    for value in ("conv1", "relu1", "conv2", "relu2", "pooled", "logits"):
        assert wrong.shape(value) == right.shape(value)
    feeds = {"input": normal(2, 3, 32, 32), "cotangent.logits": normal(2, 5)}
    sources = tiny_cnn(), stale(name, *dims)
    gradients = [run(gradient(source, "logits", ["input"]), feeds)["grad.input"] for source in sources]
    np.testing.assert_array_equal(*gradients)


def test_an_outputs_shape_that_is_wrong_is_computed_anew_where_no_other_is_declared() -> None:
    source = stale("logits", "N", 7)
    del source.graph.value_info[:]
    assert prepare(source).shape("logits") == prepare(tiny_cnn()).shape("logits")
    assert drop_contradicted(source) == [] and len(source.graph.output[0].type.tensor_type.shape.dim) == 2


def test_to_forget_a_declared_shape_makes_no_tensor_of_a_sequence() -> None:
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    )
    for kind, remaining in (
        (maps, maps),
        (
            helper.make_tensor_type_proto(TensorProto.FLOAT, [1, "N"]),
            helper.make_tensor_type_proto(TensorProto.FLOAT, None),
        ),
        (
            helper.make_tensor_type_proto(TensorProto.FLOAT, None),
            helper.make_tensor_type_proto(TensorProto.FLOAT, None),
        ),
    ):
        info = helper.make_value_info("out", kind)
        undeclare(info)
        assert info.type == remaining


def test_declared_shapes_that_are_right_stay() -> None:
    """Also where inference alone knows less: behind an operator that is not the standard's."""
    source = stale("relu1", "N", 8, 32, 32)
    assert drop_contradicted(source) == [] and len(source.graph.value_info) == 6
    source = model(
        "g (float[N, 3] x) => (float[N, M] y) <float[N, 7] o> { o = other.Odd(x)  y = Relu(o) }", extra=', "other" : 1'
    )
    assert drop_contradicted(source) == [] and [info.name for info in source.graph.value_info] == ["o"]


def test_wrong_shapes_in_branches_are_dropped_too() -> None:
    text = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
      y = If(c) <then_branch = t () => (float[N, 3] a) <float[3, N] b> { b = Tanh(x)  a = Relu(b) },
                 else_branch = e () => (float[N, 3] d) { d = Identity(x) }>
    }"""
    source = model(text.replace("float[3, N] b", "float[3, 4, 5] b"))
    assert drop_contradicted(source) == ["b"]
    assert not [info for body in bodies([source.graph]) for info in body.value_info]
