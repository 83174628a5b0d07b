"""Blame where an operator without weights was replaced, and where weights are others though the function is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcam.diagnose.shift.blame import Blame, blame_tensors
from onnxcam.explain.explainer import Explainer
from tests.diagnose.shift import planted


def explainer(model: onnx.ModelProto) -> Explainer:
    return Explainer(model.SerializeToString(), probe=False)


def blamed(old: onnx.ModelProto, new: onnx.ModelProto) -> Blame:
    return blame_tensors(explainer(old), explainer(new), [(tensor, tensor) for tensor in planted.pictures(4)])


def replaced(name: str, kind: str) -> onnx.ModelProto:
    model = copy.deepcopy(planted.network(fused=True, pooled=True))
    (node,) = (node for node in model.graph.node if node.name == name)
    node.op_type = kind
    return model


@pytest.mark.parametrize(
    ("name", "kind", "between"),
    [
        ("largest", "AveragePool", "'fwide' and 'turned'"),
        ("fpool", "GlobalMaxPool", "'flast' and 'fflat'"),
        ("fsum", "Sub", "'fstem', 'fnarrow' and 'flast'"),
    ],
)
def test_a_replaced_operator_is_named_in_place_of_the_layer_behind_it(name: str, kind: str, between: str) -> None:
    old = planted.network(fused=True, pooled=True)
    (usual,) = (node.op_type for node in old.graph.node if node.name == name)
    result = blamed(old, replaced(name, kind))
    assert result.verdict == "layer" and result.first is not None and result.first.between == between, result.sentence
    change = f"the new file has {kind} '{name}' where the old one has {usual} '{name}'"
    assert f"part between {between}: {change}; given the same values" in result.sentence
    assert result.first.describe()["apart"] == change and "more than their precision" not in result.sentence


def test_an_operator_that_was_inserted_or_dropped_is_named() -> None:
    plain = planted.network(fused=True)
    more = copy.deepcopy(plain)
    place, last = next((k, node) for k, node in enumerate(more.graph.node) if node.name == "flast")
    last.input[0] = "blurred"
    blur = helper.make_node("AveragePool", ["fsum"], ["blurred"], "blur", kernel_shape=[3, 3], pads=[1] * 4)
    more.graph.node.insert(place, blur)
    result = blamed(plain, more)
    assert "between 'fsum' and 'flast': the new file has AveragePool 'blur', which the old one has not" in (
        result.sentence
    )
    result = blamed(more, plain)
    assert "between 'fsum' and 'flast': the new file lacks AveragePool 'blur' of the old one" in result.sentence
    del last.attribute[:]  # a convolution of its own fault
    last.attribute.append(helper.make_attribute("pads", [2, 2, 0, 0]))
    last.input[0] = "fsum"
    del more.graph.node[place]
    result = blamed(plain, more)
    assert result.first is not None and result.first.between is None and "its Conv ('flast')" in result.sentence


def test_operators_behind_the_last_layer_of_both_are_named() -> None:
    plain, more = planted.network(fused=True), copy.deepcopy(planted.network(fused=True))
    more.graph.node[-1].output[0] = "dense"
    more.graph.node.append(helper.make_node("LpNormalization", ["dense"], ["logits"], "unit", axis=1, p=2))
    result = blamed(plain, more)
    assert result.verdict == "layer" and result.first is None, result.sentence
    assert "behind the last layer of both: the new file has LpNormalization 'unit'" in result.sentence


def test_another_activation_is_named_beside_its_layer() -> None:
    result = blamed(planted.network(fused=True, pooled=True), replaced("fdepthwise.relu", "Tanh"))
    assert result.first is not None and result.first.name == "fdepthwise"
    assert "its values go through Tanh where the old one's go through Relu" in result.sentence


@pytest.mark.parametrize("form", ["qoperator", "signed"])
def test_operators_between_quantized_layers_are_compared_as_floats(form: str) -> None:
    """QOperator files pool and transpose integers, which mean nothing without a scale."""
    old, new = planted.network(fused=True, pooled=True), planted.quantized(form, pooled=True)
    if form == "qoperator":
        assert {"MaxPool", "Transpose"} <= {
            node.op_type for node in new.graph.node if node.input[0].endswith("_quantized")
        }
    result = blamed(old, new)
    saturates = "products of 8-bit integers saturate" in result.sentence  # on processors without VNNI
    assert (result.verdict, result.blamed) == ("runtime" if saturates else "spread", ()), result.sentence
    pool = next(layer for layer in result.layers if layer.name == "largest")
    assert pool.local_error < (1e-6 if form == "qoperator" else 0.02) and 0 < pool.error < 0.1
    names = {tensor.name for tensor in new.graph.initializer}
    scale = min(names & {"fwide_scale", "fwide.relu_scale"})  # of what the pool reads
    wrong = planted.changed(new, scale, lambda scale: scale / 8)
    first = blamed(old, wrong).first
    assert first is not None and (first.name, first.part) == ("fwide", "activation pair")


def both(layers: tuple[str, ...], change: Callable[[str, Any], Any]) -> onnx.ModelProto:
    model = planted.network(fused=True)
    for name in layers:
        model = planted.changed(model, name, lambda array, name=name: change(name, array))
    return model


def test_weights_that_are_arranged_differently_agree() -> None:
    old = planted.network(fused=True)
    order = np.random.default_rng(0).permutation(24)
    permuted = both(
        ("flast.weight", "flast.bias", "dense.weight"), lambda name, w: w[:, order] if "dense" in name else w[order]
    )
    scaled = both(("flast.weight", "flast.bias", "dense.weight"), lambda name, w: w / 4 if "dense" in name else w * 4)
    for new in (permuted, scaled):
        result = blamed(old, new)
        assert (result.verdict, result.first, result.blamed) == ("agree", None, ()), result.sentence
        assert "From 'flast' on 2 layers differ and make up for each other" in result.notes[0]
    half = both(("flast.weight", "flast.bias"), lambda name, w: w[order])
    result = blamed(old, half)
    assert result.verdict == "layer" and result.first is not None and result.first.name == "flast"


def test_a_few_other_kernels_are_not_called_another_training() -> None:
    model = both(("fstem.weight", "fnarrow.weight"), lambda name, w: w[..., ::-1, ::-1] if "stem" in name else -w)
    result = blamed(planted.network(fused=True), model)
    assert "part at 'fstem': of the 6 layers with weights from there on 2 have others." in result.sentence


def test_scores_that_are_no_numbers_say_nothing_of_the_runtime() -> None:
    model = planted.changed(planted.network(fused=True), "fstem.weight", lambda w: np.full(w.shape, np.nan))
    result = blamed(planted.network(fused=True), model)
    assert result.verdict == "layer" and result.notes == ()


def test_a_pair_inside_a_layer_is_named() -> None:
    model = copy.deepcopy(planted.quantized())
    place, gemm = next((k, node) for k, node in enumerate(model.graph.node) if node.op_type == "Gemm")
    bias, result_name = gemm.input.pop(), gemm.output[0]
    gemm.output[0] = "product"
    grid = ["product_scale", "product_zero"]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1e-3, np.float32), grid[0]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(128, np.uint8), grid[1]))
    for k, node in enumerate(
        (
            helper.make_node("QuantizeLinear", ["product", *grid], ["whole"], "product_QuantizeLinear"),
            helper.make_node("DequantizeLinear", ["whole", *grid], ["rounded"], "product_DequantizeLinear"),
            helper.make_node("Add", ["rounded", bias], [result_name], "BiasAdd"),
        ),
        1,
    ):
        model.graph.node.insert(place + k, node)
    result = blamed(planted.network(), model)
    assert result.first is not None and result.first.name == "dense", result.sentence
    assert "the pair 'product_QuantizeLinear' inside it may be the reason" in result.sentence
