"""Windows: where a layer's grid lies on the input, against coordinates that are sent through the graph.

A picture whose channels hold each pixel's row and column goes through crops, flips, paddings, resizings and rotations:
all linear, so every cell of the layer then holds the place on the picture that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxcam
from onnxcam.graph.layers import Layer
from onnxcam.graph.window import Window
from tests.support.runtime import run

HEIGHT, WIDTH = 48, 64


class Net:
    """A classifier that moves its picture about before the one convolution, which changes nothing."""

    def __init__(self, height: int = HEIGHT, width: int = WIDTH) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.value = "x"
        self.picture = (height, width)

    def constant(self, values: object, kind: type = np.int64) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), f"k{len(self.constants)}"))
        return self.constants[-1].name

    def add(self, kind: str, *inputs: str, outputs: int = 1, take: int = 0, **attributes: object) -> None:
        names = [f"{kind.lower()}{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, [self.value, *inputs], names, **attributes))
        self.value = names[take]

    def model(self) -> onnx.ModelProto:
        self.constants += [
            numpy_helper.from_array(np.eye(3, dtype=np.float32)[:, :, None, None], "identity"),
            numpy_helper.from_array(np.ones((3, 5), np.float32), "head"),
        ]
        self.add("Conv", "identity")
        layer = self.value
        self.add("GlobalAveragePool")
        self.add("Flatten")
        self.nodes.append(helper.make_node("MatMul", [self.value, "head"], ["logits"]))
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "g",
            [info("x", 1, ["N", 3, *self.picture])],
            [info("logits", 1, ["N", 5])],
            self.constants,
        )
        self.value = layer
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def crop(net: Net, rng: np.random.Generator, size: tuple[int, int]) -> None:
    starts = [int(rng.integers(0, side // 3)) for side in size]
    ends = [int(rng.integers(2 * side // 3, side)) for side in size]
    if rng.random() < 0.3:
        ends = [end - side for end, side in zip(ends, size, strict=True)]  # counted from the end
    net.add("Slice", net.constant(starts), net.constant(ends), net.constant([2, 3]))


def flip(net: Net, rng: np.random.Generator, size: tuple[int, int]) -> None:
    axis = int(rng.integers(2, 4))
    if rng.random() < 0.5:
        net.add("Slice", net.constant([-1]), net.constant([-9999]), net.constant([axis]), net.constant([-1]))
    else:
        net.add("Gather", net.constant(np.arange(size[axis - 2])[::-1]), axis=axis)


def rows_left_out(net: Net, rng: np.random.Generator, size: tuple[int, int]) -> None:
    start, step = int(rng.integers(0, 5)), int(rng.choice([-2, 2, 3]))
    first, last = (start, 9999) if step > 0 else (size[0] - 1 - start, -9999)
    net.add("Slice", net.constant([first]), net.constant([last]), net.constant([2]), net.constant([step]))


def rotate(net: Net, rng: np.random.Generator, size: tuple[int, int]) -> None:
    net.add("Transpose", perm=[0, 1, 3, 2])
    if rng.random() < 0.7:
        flip(net, rng, size[::-1])


def split(net: Net, rng: np.random.Generator, size: tuple[int, int]) -> None:
    axis, take = int(rng.integers(2, 4)), int(rng.integers(0, 2))
    first = size[axis - 2] // 2 - int(rng.integers(0, 4))
    parts = net.constant([first, size[axis - 2] - first])
    net.add("Split", parts, outputs=2, take=take, axis=axis)


def pad(net: Net, rng: np.random.Generator, size: tuple[int, int]) -> None:
    amounts = rng.integers(2, 9, 4).tolist()
    if rng.random() < 0.5:
        net.add("Pad", net.constant([0, 0, *amounts[:2], 0, 0, *amounts[2:]]), mode="edge")
    else:
        net.add("Pad", net.constant([amounts[0], -amounts[1]]), "", net.constant([-1]), mode="edge")


def center_crop_pad(net: Net, rng: np.random.Generator, size: tuple[int, int]) -> None:
    net.add("CenterCropPad", net.constant([size[0] - int(rng.integers(1, 9)), size[1] - 7]), axes=[2, 3])


def resize(net: Net, rng: np.random.Generator, size: tuple[int, int]) -> None:
    empty = net.constant([], np.float32)
    if rng.random() < 0.5:
        net.add("Resize", empty, empty, net.constant([1, 3, size[0] + 7, size[1] - 5]), mode="linear")
    else:  # 0.7 of the size is not a whole number of pixels: what is left over at the end is not shown
        net.add("Resize", empty, net.constant([1, 1, 0.7, 1.3], np.float32), mode="linear")


def crop_and_resize(net: Net, rng: np.random.Generator, size: tuple[int, int]) -> None:
    roi = net.constant([0, 0, 0.2, 0.1, 1, 1, 0.7, 0.8], np.float32)
    sizes = net.constant([1, 3, size[0] - 6, size[1] + 3])
    net.add(
        "Resize",
        roi,
        net.constant([], np.float32),
        sizes,
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
    )


def halves_joined(net: Net, rng: np.random.Generator, size: tuple[int, int]) -> None:
    """Cut in two and put together again, each behind a crop of the other's side."""
    whole, half = net.value, size[1] // 2
    net.add("Slice", net.constant([3]), net.constant([half]), net.constant([3]))
    left, net.value = net.value, whole
    net.add("Slice", net.constant([half]), net.constant([size[1] - 2]), net.constant([3]))
    right, net.value = net.value, left
    net.add("Concat", right, axis=3)


MOVES: dict[str, Callable[[Net, np.random.Generator, tuple[int, int]], None]] = {
    function.__name__: function
    for function in (
        *(crop, flip, rows_left_out, rotate, split, pad),
        *(center_crop_pad, resize, crop_and_resize, halves_joined),
    )
}


def coordinates(height: int, width: int) -> np.ndarray:
    """A picture `[1, 3, H, W]` of each pixel's row, column, and zero."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.stack([rows, columns, np.zeros_like(rows)])[None].astype(np.float32)


def at_layer(net: Net, model: onnx.ModelProto) -> np.ndarray:
    """Row and column on the picture of each cell of the layer, `[2, h, w]`."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.append(helper.make_tensor_value_info(net.value, 1, None))
    return run(exposed, {"x": coordinates(*net.picture)})[net.value][0, :2]


def size_so_far(net: Net) -> tuple[int, int]:
    """Height and width of the value that was moved last."""
    graph = helper.make_graph(
        net.nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, *net.picture])],
        [helper.make_tensor_value_info(net.value, 1, None)],
        net.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    shape = run(model, {"x": coordinates(*net.picture)})[net.value].shape
    return shape[2], shape[3]


def only(model: onnx.ModelProto) -> Layer:
    (layer,) = onnxcam.layers(model)
    return layer


def predicted(layer: Layer, shape: tuple[int, int]) -> np.ndarray:
    """Row and column of each cell as the window has it, `[2, h, w]`."""
    window = layer.window or Window((0, HEIGHT), (0, WIDTH))
    grid = shape[::-1] if window.transposed else shape
    rows, columns = (
        start + (np.arange(cells) + 0.5) / cells * (stop - start)
        for cells, (start, stop) in zip(grid, (window.height, window.width), strict=True)
    )
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    return places.transpose(0, 2, 1) if window.transposed else places


def agree(net: Net) -> None:
    """The window says of each cell where it lies, within half a cell; repeated edges hold another place and are out."""
    model = net.model()
    measured = at_layer(net, model)
    layer = only(model)
    expected = predicted(layer, (measured.shape[1], measured.shape[2]))
    turned = layer.window is not None and layer.window.transposed
    for axis in (0, 1):
        along = 1 - axis if turned else axis
        places = np.moveaxis(measured[axis], along, 0)[:, 0]
        answers = np.moveaxis(expected[axis], along, 0)[:, 0]
        pitch = np.median(np.diff(places))
        even = np.abs(np.diff(places) - pitch) < 0.02 * abs(pitch)
        inner = np.flatnonzero(even[1:] & even[:-1]) + 1
        assert len(inner) >= len(places) // 2
        assert np.abs(places - answers)[inner].max() <= 0.5 * max(1.0, abs(pitch)) + 1e-3


@pytest.mark.parametrize("name", MOVES)
def test_each_move(name: str) -> None:
    for seed in range(4):
        net, rng = Net(), np.random.default_rng(seed)
        MOVES[name](net, rng, (HEIGHT, WIDTH))
        agree(net)


@pytest.mark.parametrize("seed", range(20))
def test_moves_after_each_other(seed: int) -> None:
    net, rng = Net(), np.random.default_rng(seed)
    for name in rng.choice(list(MOVES), 3):
        MOVES[str(name)](net, rng, size_so_far(net))
    agree(net)
