"""The published receptive fields of well-known networks.

Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019
(https://distill.pub/2019/computing-receptive-fields), with the table of their library
(https://github.com/google-research/receptive_field): size, effective stride and effective padding of TF-Slim's models.
Fields do not depend on the number of channels, so the networks here are thin: a channel wherever the originals have
hundreds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxcam
from onnxcam import inside
from onnxcam.inside import receptive_fields
from tests.inside import nets

Kernel = int | tuple[int, int]


class Thin:
    """A network of one-channel convolutions."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.channels = {"input": 3}

    def _add(self, op: str, inputs: Sequence[str], channels: int, **attrs: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{name}/node", **attrs))
        self.channels[name] = channels
        return name

    def conv(self, x: str, kernel: Kernel, stride: int = 1, padding: str = "SAME_UPPER") -> str:
        """A convolution, padded as TensorFlow pads (SAME_UPPER), not (VALID), or by half the kernel (EVEN)."""
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        name = f"w{len(self.weights)}"
        self.weights[name] = nets.normal(1, self.channels[x], *sides, seed=len(self.weights))
        pads = {"pads": [side // 2 for side in sides] * 2} if padding == "EVEN" else {"auto_pad": padding}
        return self._add("Conv", [x, name], 1, strides=[stride] * 2, **pads)

    def pool(self, x: str, kernel: int, stride: int, padding: str = "VALID", op: str = "MaxPool") -> str:
        attrs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "auto_pad": padding}
        return self._add(op, [x], self.channels[x], **attrs)

    def add(self, x: str, y: str) -> str:
        return self._add("Add", [x, y], 1)

    def concat(self, *values: str) -> str:
        return self._add("Concat", values, sum(self.channels[value] for value in values), axis=1)

    def model(self, x: str, size: int) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [x], ["last"], name="last/node"))
        return nets.classifier(self.nodes, (size, size), width=self.channels[x], **self.weights)


def vgg16(size: int = 224) -> onnx.ModelProto:
    net, x = Thin(), "input"
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            x = net.conv(x, 3)
        x = net.pool(x, 2, 2)
    return net.model(x, size)


def resnet50(place: str, size: int = 224) -> onnx.ModelProto:
    """`last`: TF-Slim strides in the last unit of a block; `first`: the paper and Keras in the first 1 x 1 convolution;
    `middle`: torchvision in the first 3 x 3 one.
    """
    net = Thin()
    x = net.pool(net.conv("input", 7, 2, "EVEN"), 3, 2, "SAME_UPPER")
    for block, count in enumerate((3, 4, 6, 3)):
        for unit in range(count):
            stride = 2 if (unit == count - 1 and block < 3 and place == "last") else 1
            stride = 2 if (unit == 0 and block > 0 and place != "last") else stride
            first, second = (stride, 1) if place == "first" else (1, stride)
            y = net.conv(net.conv(net.conv(x, 1, first), 3, second, "EVEN"), 1)
            x = net.add(y, net.conv(x, 1, stride))
    return net.model(x, size)


def mobilenet_v1() -> onnx.ModelProto:
    net = Thin()
    x = net.conv("input", 3, 2)
    for stride in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1):
        x = net.conv(net.conv(x, 3, stride), 1)
    return net.model(x, 224)


def mobilenet_v2(size: int = 224) -> onnx.ModelProto:
    """Sandler et al., https://arxiv.org/abs/1801.04381, table 2."""
    net = Thin()
    x = net.conv("input", 3, 2)
    for count, stride in ((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)):
        for unit in range(count):
            y = net.conv(net.conv(net.conv(x, 1), 3, stride if unit == 0 else 1), 1)
            x = net.add(x, y) if unit else y
    return net.model(net.conv(x, 1), size)


def inception_v3(size: int = 299) -> onnx.ModelProto:
    """Szegedy et al., https://arxiv.org/abs/1512.00567, as TF-Slim has it, to Mixed_7c."""
    net = Thin()
    c = net.conv
    x = c(c(c("input", 3, 2, "VALID"), 3, 1, "VALID"), 3)
    x = net.pool(c(c(net.pool(x, 3, 2), 1), 3, 1, "VALID"), 3, 2)

    def average(value: str) -> str:
        return c(net.pool(value, 3, 1, "SAME_UPPER", "AveragePool"), 1)

    for _ in range(3):
        x = net.concat(c(x, 1), c(c(x, 1), 5), c(c(c(x, 1), 3), 3), average(x))
    x = net.concat(c(x, 3, 2, "VALID"), c(c(c(x, 1), 3), 3, 2, "VALID"), net.pool(x, 3, 2))
    for _ in range(4):
        short, long = c(c(c(x, 1), (1, 7)), (7, 1)), c(x, 1)
        for kernel in ((7, 1), (1, 7), (7, 1), (1, 7)):
            long = c(long, kernel)
        x = net.concat(c(x, 1), short, long, average(x))
    seven = c(c(c(c(x, 1), (1, 7)), (7, 1)), 3, 2, "VALID")
    x = net.concat(c(c(x, 1), 3, 2, "VALID"), seven, net.pool(x, 3, 2))
    for _ in range(2):
        two, three = c(x, 1), c(c(x, 1), 3)
        split = [c(y, kernel) for y in (two, three) for kernel in ((1, 3), (3, 1))]
        x = net.concat(c(x, 1), *split, average(x))
    return net.model(x, size)


# size, stride, padding
PUBLISHED: dict[str, tuple[Callable[[], onnx.ModelProto], int, int, int | None]] = {
    "vgg_16": (vgg16, 212, 32, 90),
    "resnet_v1_50": (lambda: resnet50("last"), 483, 32, 239),
    "mobilenet_v1": (mobilenet_v1, 315, 32, 126),
    "inception_v3": (inception_v3, 1311, 32, 618),
    # not in the table; the same recurrence, see `test_the_recurrence`
    "resnet50, strides as in Keras": (lambda: resnet50("first"), 483, 32, None),
    "resnet50, strides as in torchvision": (lambda: resnet50("middle"), 427, 32, None),
    "mobilenet_v2": (mobilenet_v2, 491, 32, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_fields_are_the_published_ones(name: str) -> None:
    make, size, stride, padding = PUBLISHED[name]
    (field,) = inside.fields(make(), "last")
    assert (field.size, field.stride) == ((size, size), (stride, stride))
    assert padding is None or field.offset == (-padding, -padding)
    assert field.mixing is None


# sides of pictures that the fields do not fill
LARGER: dict[str, tuple[Callable[[int], onnx.ModelProto], int]] = {
    "vgg_16": (vgg16, 320),
    "resnet_v1_50": (lambda size: resnet50("last", size), 640),
    "mobilenet_v2": (mobilenet_v2, 640),
    "inception_v3": (inception_v3, 1503),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_the_gradient_is_exactly_0_outside_the_published_fields(name: str) -> None:
    """At 20 cells of the last layer; inside, the effective field is there."""
    make, side = LARGER[name]
    model = make(side)
    explainer = onnxcam.Explainer(model, probe=False, providers=["CPUExecutionProvider"])
    (field,) = inside.fields(model, "last")
    assert field.size == (PUBLISHED[name][1],) * 2 and not field.whole
    tensor = nets.normal(1, 3, side, side, seed=1)
    rng = np.random.default_rng(0)
    rows, columns = field.grid
    cells = [(int(rng.integers(rows)), int(rng.integers(columns))) for _ in range(16)]
    cells += [(0, 0), (rows - 1, columns - 1), (0, columns - 1), (rows - 1, 0)]
    outside = 0
    for cell in cells:
        effect = receptive_fields.of_tensor(explainer, tensor, "last", cell)
        x0, y0, x1, y1 = field.box(cell) or (0, 0, 0, 0)
        assert effect[y0:y1, x0:x1].any()
        effect[y0:y1, x0:x1] = 0
        assert not effect.any(), cell
        outside += effect.size - (x1 - x0) * (y1 - y0)
    assert outside > 20 * side, "the fields leave something outside"


def test_the_recurrence() -> None:
    """r = 1 + sum (k - 1) prod s over the kernels that are larger than 1, in order."""
    for kernels, expected in (
        ([(3, 2), (3, 1), (3, 2), (3, 1), (3, 2), *[(3, 1)] * 2, (3, 2), *[(3, 1)] * 6, (3, 2), *[(3, 1)] * 3], 491),
        ([(7, 2), (3, 2), *[(3, 1)] * 3, (3, 2), *[(3, 1)] * 3, (3, 2), *[(3, 1)] * 5, (3, 2), *[(3, 1)] * 2], 427),
    ):
        size, jump = 1, 1
        for kernel, stride in kernels:
            size += (kernel - 1) * jump
            jump *= stride
        assert size == expected
