"""Models of one picture `[3, H, W]`, as torchvision's detectors are exported, are those of a batch of one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.errors import ModelError
from onnxcam.network.network import Network
from tests.support import detectors


def single(
    name: str = "classifier", channels_last: bool = False, size: tuple[int | str, int | str] | None = None
) -> onnx.ModelProto:
    """A net of `tests.support.detectors` whose input has no batch axis."""
    model = detectors.build(name)
    (picture,) = model.graph.input
    sizes = size or (detectors.HEIGHT, detectors.WIDTH)
    shape = [*sizes, 3] if channels_last else [3, *sizes]
    nodes = [helper.make_node("Unsqueeze", ["one", "zero"], ["batch"])]
    if channels_last:
        nodes.insert(0, helper.make_node("Transpose", ["raw"], ["one"], perm=[2, 0, 1]))
    for node in model.graph.node:
        for index, value in enumerate(node.input):
            if value == picture.name:
                node.input[index] = "batch"
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
    picture.CopyFrom(helper.make_tensor_value_info("raw" if channels_last else "one", TensorProto.FLOAT, shape))
    return model


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_map_is_that_of_a_batch_of_one(channels_last: bool) -> None:
    model = single(channels_last=channels_last)
    batch = detectors.pictures(1)
    tensor = batch.transpose(0, 2, 3, 1) if channels_last else batch
    explainer = onnxcam.Explainer(model, preprocess="0..1")
    expected = onnxcam.Explainer(detectors.build("classifier"), preprocess="0..1").attribute(batch, 2, "gradcam")
    np.testing.assert_allclose(explainer.attribute(tensor, 2, "gradcam"), expected, atol=1e-6)


def test_the_explainable_file_takes_a_batch_of_one() -> None:
    file = onnxcam.augment(single(), preprocess="0..1")
    model = onnx.load_from_string(file) if isinstance(file, bytes) else file
    (picture,) = (value for value in model.graph.input if value.name == "one")
    assert [dim.dim_value for dim in picture.type.tensor_type.shape.dim] == [1, 3, detectors.HEIGHT, detectors.WIDTH]
    again = Network(model)
    assert again.graph.shape(again.picture.name) == (1, 3, detectors.HEIGHT, detectors.WIDTH)
    batch = detectors.pictures(1)
    expected = onnxcam.Explainer(single(), preprocess="0..1").attribute(batch, 1, "gradcam")
    np.testing.assert_allclose(onnxcam.Explainer(model).attribute(batch, 1, "gradcam"), expected, atol=1e-6)


def test_sizes_may_be_dynamic() -> None:
    network = Network(single(size=("height", "width")))
    assert network.graph.shape(network.picture.name) == (1, 3, "height", "width")


@pytest.mark.parametrize("rows", [1, "N", ""])
@pytest.mark.parametrize("name", ["N", "batch", ""])
def test_rows_of_another_name_are_of_a_classifier(rows: int | str, name: str) -> None:
    """As files have it whose batch was fixed afterwards, or whose shapes were inferred piece by piece."""
    model = detectors.build("classifier")
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    dimension.Clear()
    if isinstance(rows, int):
        dimension.dim_value = rows
    elif rows:
        dimension.dim_param = rows
    first = model.graph.output[0].type.tensor_type.shape.dim[0]
    first.Clear()
    if name:
        first.dim_param = name
    readout = Network(model).readout
    assert (readout.kind, readout.size, readout.task) == ("logits", 5, None)


@pytest.mark.parametrize("shape", [[1, 64, 96], [3, 4, 5], [8, 64, 96], ["a", "b", "c"], [64, 96]])
def test_other_shapes_are_refused_as_before(shape: list[int | str]) -> None:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(ModelError, match=r"expected a batch of pictures, .*or one picture of three channels"):
        Network(model)
