"""What a parsed model must be before anything looks at it: each fault is named, and where it lies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxcam.errors import ModelError
from onnxcam.graph import validation
from onnxcam.graph.load import load
from tests.support.models import tiny_cnn


def first(model: onnx.ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def more_dims(model: onnx.ModelProto) -> None:
    first(model).dims.append(2)


def negative(model: onnx.ModelProto) -> None:
    first(model).dims[0] = -8


def deep(model: onnx.ModelProto) -> None:
    first(model).dims.extend([1] * 70)


def tebibyte(model: onnx.ModelProto) -> None:
    first(model).dims[0] = 1 << 40


def unknown_type(model: onnx.ModelProto) -> None:
    first(model).data_type = 99


def short(model: onnx.ModelProto) -> None:
    first(model).raw_data = first(model).raw_data[:-4]


def typed(model: onnx.ModelProto) -> None:
    first(model).ClearField("raw_data")
    first(model).float_data.extend([1.0] * 7)


def within(model: onnx.ModelProto) -> None:
    """A tensor in a branch within a branch."""
    initializers = numpy_helper.from_array(np.ones(4, np.float32), "inner")
    initializers.raw_data = b""
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]
    body = helper.make_graph([helper.make_node("Constant", [], ["y"], value=initializers)], "b", [], out)
    outer = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)], "o", [], out)
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=outer))


def attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].type = AttributeProto.UNDEFINED


def untyped_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 77


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "more dimensions": (more_dims, r"'w1' of shape \[8, 3, 3, 3, 2\] has 864 bytes, not 1,728"),
    "a negative dimension": (negative, r"'w1' has shape \[-8, 3, 3, 3\], with a negative dimension"),
    "very many dimensions": (deep, "'w1' has 74 dimensions"),
    "a tebibyte": (tebibyte, "has 864 bytes, not 118,7"),
    "an unknown element type": (unknown_type, "unknown element type 99"),
    "too few bytes": (short, "has 860 bytes, not 864"),
    "too few elements": (typed, "has 7 elements, not 216"),
    "within branches": (within, r"'inner' of shape \[4\] has 0 bytes, not 16"),
    "an attribute of no kind": (attribute, "attribute '.*' of Conv 'first' has the unknown type 0"),
    "an input of no type": (untyped_input, "'input' has the unknown element type 77"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_named(kind: str) -> None:
    edit, words = FAULTS[kind]
    model = tiny_cnn()
    edit(model)
    for source in (model, model.SerializeToString()):
        with pytest.raises(ModelError, match=f"not valid ONNX: .*{words}.*export it again"):
            load(source)


@pytest.mark.parametrize("place", [b"conv1", b"first", b"logits", b"w2", b"Relu"])
def test_names_that_are_no_text(place: bytes) -> None:
    data = tiny_cnn().SerializeToString()
    assert place in data
    with pytest.raises(ModelError, match="not UTF-8 text"):
        load(data.replace(place, b"\xff" + place[1:]))


@pytest.mark.parametrize("name", sorted(set(TensorProto.DataType.keys()) - {"UNDEFINED", "STRING"}))
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 5)])
@pytest.mark.parametrize("raw", [False, True])
def test_tensors_as_onnx_makes_them_are_taken(name: str, shape: tuple[int, ...], raw: bool) -> None:
    kind = TensorProto.DataType.Value(name)
    values = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind))
    tensor = numpy_helper.from_array(values, "t") if raw else helper.make_tensor("t", kind, shape, values.ravel())
    model = tiny_cnn()
    model.graph.initializer.append(tensor)
    validation.validate(model)


def test_texts_are_taken() -> None:
    model = tiny_cnn()
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [2], [b"a", b"\xff"]))
    validation.validate(model)
