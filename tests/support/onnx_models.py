"""The light models inside the onnx package: real architectures of the old zoo, with weights worth a gradient.

Their weights come as ConstantOfShape, so that all logits are equal; seeded random ones take their place. Scaled so that
activations neither vanish nor explode with depth, and batch-norm statistics away from 0 and 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)


def light(name: str, seed: int = 1234) -> onnx.ModelProto:
    """One of the light models with seeded random weights; its opset, IR and graph as they are."""
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    rng = np.random.default_rng(seed)
    readers: dict[str, tuple[onnx.NodeProto, int]] = {}
    for node in model.graph.node:
        for index, value in enumerate(node.input):
            readers.setdefault(value, (node, index))
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes, initializers = [], []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            nodes.append(node)
            continue
        shape = tuple(int(d) for d in shapes[node.input[0]])
        array = numpy_helper.to_array(node.attribute[0].t) if node.attribute else np.zeros(1, np.float32)
        if array.dtype != np.float32:
            nodes.append(node)
            continue
        initializers.append(
            numpy_helper.from_array(_weight(rng, shape, *_role(readers, node.output[0])), node.output[0])
        )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)
    if model.ir_version < 4:  # every weight has to be listed as an input as well
        model.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers)
    return model


def _role(readers: dict[str, tuple[onnx.NodeProto, int]], value: str) -> tuple[str, int]:
    """The operator that a weight is for and its position there, an Unsqueeze before it stepped over."""
    node, index = readers[value]
    return _role(readers, node.output[0]) if node.op_type == "Unsqueeze" else (node.op_type, index)


def _weight(rng: np.random.Generator, shape: tuple[int, ...], op_type: str, index: int) -> np.ndarray:
    if op_type == "BatchNormalization":
        low, high = {1: (0.7, 1.3), 2: (-0.1, 0.1), 3: (-0.1, 0.1), 4: (0.7, 1.3)}[index]
        return rng.uniform(low, high, shape).astype(np.float32)
    if op_type == "Mul":  # the scale that Caffe keeps beside its batch norms: near 0 no signal would pass many of them
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    if len(shape) >= 2:
        fan_in = int(np.prod(shape[1:])) if op_type != "Gemm" else max(shape)
        return (rng.normal(size=shape) * np.sqrt(2.0 / fan_in)).astype(np.float32)
    return rng.uniform(-0.05, 0.05, shape).astype(np.float32)
