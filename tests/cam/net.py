"""A random CNN as ONNX file and as PyTorch module: what attributions are compared on."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

SIZE = (20, 28)
CLASSES = 6
LAYER = "layer"


class Net(nn.Module):  # type: ignore[misc]
    """Convolutions with biases, a BatchNorm, a residual Add, pooling; each ReLU a module of its own for captum."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.bare = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU()
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.relu3 = nn.ReLU()
        self.hidden = nn.Linear(12 * 5 * 7, 16)
        self.relu4 = nn.ReLU()
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.stem(x)))
        x = self.relu2(self.bn(self.bare(x)) + x)
        x = self.relu3(self.down(x))
        return self.head(self.relu4(self.hidden(x.flatten(1))))


@functools.cache
def module() -> Net:
    """In eval mode, with BatchNorm statistics away from 0 and 1."""
    torch.manual_seed(7)
    net = Net()
    with torch.no_grad():
        net.bn.weight.uniform_(0.5, 1.5)
        net.bn.bias.uniform_(-0.5, 0.5)
        net.bn.running_mean.uniform_(-0.3, 0.3)
        net.bn.running_var.uniform_(0.5, 1.5)
        net.head.weight.mul_(4)
    return net.eval()


def model(*, nhwc: bool = False, batch: int | str = "N", uint8: bool = False, ending: str | None = None) -> Any:
    """The same arithmetic as a `ModelProto`; `layer` is what `down` and its ReLU make.

    Arguments:
        nhwc, batch, uint8: of the input; integers are cast first thing.
        ending: an operator after the logits.
    """
    constants = {name: value.detach().numpy() for name, value in module().state_dict().items() if value.ndim}
    make = helper.make_node
    nodes = []
    x = "input"
    if nhwc:
        nodes.append(make("Transpose", [x], ["nchw"], perm=[0, 3, 1, 2]))
        x = "nchw"
    if uint8:
        nodes.append(make("Cast", [x], ["float"], to=TensorProto.FLOAT))
        nodes.append(make("Div", ["float", "levels"], ["scaled"]))
        constants["levels"] = np.float32(64)
        x = "scaled"
    nodes += [
        make("Conv", [x, "stem.weight", "stem.bias"], ["stem"], pads=[1] * 4),
        make("Relu", ["stem"], ["relu1"]),
        make("MaxPool", ["relu1"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["pool", "bare.weight"], ["bare"], pads=[1] * 4),
        make(
            "BatchNormalization",
            ["bare", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"],
            ["bn"],
            epsilon=1e-5,
        ),
        make("Add", ["bn", "pool"], ["sum"]),
        make("Relu", ["sum"], ["relu2"]),
        make("Conv", ["relu2", "down.weight", "down.bias"], ["down"], pads=[1] * 4, strides=[2, 2]),
        make("Relu", ["down"], [LAYER]),
        make("Flatten", [LAYER], ["flat"]),
        make("Gemm", ["flat", "hidden.weight", "hidden.bias"], ["hidden"], transB=1),
        make("Relu", ["hidden"], ["relu4"]),
        make("Gemm", ["relu4", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    if ending is not None:
        nodes.append(make(ending, ["logits"], ["probabilities"]))
    shape = [batch, *SIZE, 3] if nhwc else [batch, 3, *SIZE]
    kind = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(proto)
    return proto


def pictures(rows: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 3, *SIZE)).astype(np.float32)


def parity(actual: np.ndarray, want: Any) -> float:
    """The largest relative distance of a row, ‖a - b‖ / ‖b‖."""
    b = np.asarray(want.detach() if isinstance(want, Tensor) else want, np.float64).reshape(len(actual), -1)
    a = actual.astype(np.float64).reshape(len(actual), -1)
    assert a.shape == b.shape
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())
