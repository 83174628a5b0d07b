"""Head and tail together compute what the whole model does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxcam
from onnxcam.errors import ModelError
from onnxcam.network.split import split
from tests.support import models
from tests.support.runtime import run


def skipping() -> onnx.ModelProto:
    """`relu1` is added again behind the target layer `relu2`: a tail from there needs both."""
    model = models.tiny_cnn()
    conv = next(node for node in model.graph.node if node.name == "last")
    for attribute in conv.attribute:
        if attribute.name == "strides":
            attribute.ints[:] = [1, 1]
    pool = next(node for node in model.graph.node if node.name == "pool")
    pool.input[0] = "joined"
    at = list(model.graph.node).index(pool)
    model.graph.node.insert(at, helper.make_node("Concat", ["relu1", "relu1"], ["wide"], axis=1))
    model.graph.node.insert(at + 1, helper.make_node("Mul", ["relu2", "wide"], ["joined"]))
    return model


@pytest.mark.parametrize(
    ("source", "layers", "cut"),
    [
        (models.tiny_cnn(), ["relu2"], {"relu2": ("relu2",)}),
        (models.tiny_cnn(ending="Softmax"), ["relu1", "relu2"], {"relu1": ("relu1",), "relu2": ("relu2",)}),
        (models.tiny_cnn(nhwc=True), ["relu2"], {"relu2": ("relu2",)}),
        (skipping(), ["relu2"], {"relu2": ("relu2", "wide")}),
        (skipping(), ["relu1"], {"relu1": ("relu1",)}),
    ],
    ids=["plain", "several layers", "NHWC", "skip", "before the skip"],
)
def test_tail_fed_by_head_equals_the_whole(
    source: onnx.ModelProto, layers: list[str], cut: dict[str, tuple[str, ...]]
) -> None:
    whole = onnxcam.augment(source, layers, ("gradcam", "hirescam"))
    shape = [3, 32, 32, 3] if source.graph.node[0].op_type == "Transpose" else [3, 3, 32, 32]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    target = np.array([4, 0, -1])
    want = run(whole, {"input": x, "target": target})
    head, tails = split(whole)
    assert {name: tail.cut for name, tail in tails.items()} == cut
    assert [i.name for i in head.graph.input] == ["input"]
    assert len(head.graph.node) <= len(source.graph.node) + 1  # nothing is differentiated
    values = run(head, {"input": x})
    originals = [o.name for o in source.graph.output]
    assert [o.name for o in head.graph.output][: len(originals)] == originals
    for name in (*originals, "logits"):
        assert np.array_equal(values[name], want[name])
    for tail in tails.values():
        assert tail.rowwise
        onnx.checker.check_model(tail.model, full_check=True)
        actual = run(tail.model, {name: values[name] for name in tail.cut} | {"target": target})
        assert set(actual) == set(tail.outputs)
        for name, value in actual.items():
            assert np.allclose(value, want[name], rtol=1e-5, atol=1e-7), name
    assert set().union(*(tail.outputs for tail in tails.values())) == {
        name for name in want if name.startswith(("gradients", "heatmap"))
    }


def test_rows_can_be_repeated_where_the_batch_is_free() -> None:
    (tail,) = split(onnxcam.augment(models.tiny_cnn()))[1].values()
    assert tail.rowwise
    (tail,) = split(onnxcam.augment(models.tiny_cnn(batch=2)))[1].values()
    assert not tail.rowwise


def test_one_layer_of_several() -> None:
    _, tails = split(onnxcam.augment(models.tiny_cnn(), ["relu1", "relu2"]), ["relu1"])
    assert list(tails) == ["relu1"]


def test_only_explainable_models() -> None:
    with pytest.raises(ModelError, match=r"onnxcam.augment"):
        split(models.tiny_cnn())
