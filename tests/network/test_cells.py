"""The head cut out around cells, against the whole head differentiated: the same gradient, also at the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcam.cam.registry import find
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.normalize import normalize
from onnxcam.graph.view import Graph
from onnxcam.network import columns, subgraphs
from onnxcam.network.cells import CHANNEL, COLUMN, CROP, NUMBER, ROW, NotLocal, cut_cells, local
from onnxcam.network.elements import Expression, NotElementwise, follow
from onnxcam.network.names import COTANGENT, GRADIENT
from onnxcam.network.network import Network
from onnxcam.runtime import open_session
from onnxcam.targets.tasks import Detect, Slab

HEIGHT, WIDTH, CLASSES = 7, 9, 3
COUNT = HEIGHT * WIDTH
CPU = ["CPUExecutionProvider"]


def head(kind: str = "plain", seed: int = 0) -> onnx.ModelProto:
    """A detector of one level: `[N, 4 + 3, 63]`; `kind` names what the branch of the classes goes through."""
    rng = np.random.default_rng(seed)
    model = onnx.ModelProto()
    model.ir_version = 9
    model.opset_import.add(domain="", version=18)
    model.graph.name = kind
    model.graph.input.append(edit.info("x", onnx.TensorProto.FLOAT, ["N", 3, HEIGHT, WIDTH]))
    op = Builder(Graph(model), prefix="head")

    def convolve(value: str, inputs: int, outputs: int, kernel: int = 3, **settings: Any) -> str:
        weight = rng.normal(size=(outputs, inputs // settings.get("group", 1), kernel, kernel)).astype(np.float32)
        bias = rng.normal(size=outputs).astype(np.float32)
        reach = (kernel - 1) * settings.get("dilations", [1])[0] // 2
        settings = {"pads": [reach] * 4} | settings
        return str(op.Conv(value, weight / np.float32(3), bias, kernel_shape=[kernel, kernel], **settings))

    level = op.Tanh(convolve("x", 3, 6), name="level")
    y = op.Mul(convolve(level, 6, 6), op.Sigmoid(convolve(level, 6, 6)))
    if kind == "dilated":
        y = convolve(y, 6, 6, dilations=[2, 2])
    elif kind == "grouped":
        y = op.Add(convolve(op.Relu(y), 6, 6, group=3), y)
    elif kind == "uneven":
        y = op.Exp(convolve(y, 6, 6, kernel=2, pads=[0, 1, 1, 0]))
    elif kind == "same":
        y = convolve(y, 6, 6, pads=None, auto_pad="SAME_UPPER")
    elif kind == "pooled":
        y = op.MaxPool(y, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
    elif kind == "split":
        left, right = op.call("Split", [convolve(y, 6, 6), [2, 4]], outputs=2, axis=1)
        y = op.Concat(right, op.Slice(convolve(level, 6, 6), [1], [3], [1]), left, axis=1)
        y = convolve(y, 8, 6)
    elif kind == "averaged":
        y = op.AveragePool(y, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
    elif kind == "attending":
        y = op.Mul(y, op.Sigmoid(op.GlobalAveragePool(y)))
    elif kind == "normalised":
        y = op.InstanceNormalization(y, np.ones(6, np.float32), np.zeros(6, np.float32))
    logits = op.Reshape(convolve(y, 6, CLASSES, kernel=1), [0, CLASSES, -1])
    sides = op.Exp(op.Reshape(convolve(convolve(level, 6, 6), 6, 4, kernel=1), [0, 4, -1]))
    scores = op.Sigmoid(logits)
    if kind == "softmax":
        scores = op.Softmax(logits, axis=1)
    op.Concat(op.Mul(sides, rng.uniform(1, 2, (1, 1, COUNT)).astype(np.float32)), scores, axis=1, name="output0")
    edit.add(model, op)
    model.graph.output.append(edit.info("output0", onnx.TensorProto.FLOAT, ["N", 4 + CLASSES, COUNT]))
    return model


def network_of(model: onnx.ModelProto) -> Network:
    """The network of a detector's file whose task is known."""
    task = Detect(Slab(0, 4, 7, 0, True), Slab(4, CLASSES, 7, 0, True), 7, CLASSES, COUNT)
    graph, readout = columns.attach(normalize(model), ["output0"], task)
    network = Network.__new__(Network)
    network.graph, network.readout, network.picture = graph, readout, graph.inputs[0]
    network.layers, network._cuts, network._floating = {}, {}, None
    return network


def dense(network: Network, layer: str, column: int, picture: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The values that pass the cut, and the gradient of one column at the layer, by the whole head."""
    first = open_session(subgraphs.head(network, [layer]).SerializeToString(), CPU)
    values = dict(zip([o.name for o in first.get_outputs()], first.run(None, {"x": picture}), strict=True))
    cotangent = np.zeros((len(picture), 7 * COUNT), np.float32)
    cotangent[:, column] = 1
    second = open_session(subgraphs.backward(network, layer).SerializeToString(), CPU)
    values["x"] = picture
    feeds = {name: values[name] for name in network.cut(layer).values} | {COTANGENT: cotangent}
    return values, second.run([GRADIENT], feeds)[0]


def cut(network: Network, layer: str, expression: Expression, values: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The gradient or a map by the cells around a box, in the middle of zeros."""
    cells = cut_cells(network, layer, expression, [] if name == GRADIENT else [name])
    ((row, column),) = {leaf.element[2:] for k, leaf in enumerate(expression.leaves) if k in cells.channels}
    feeds = {ROW: np.array([row]), COLUMN: np.array([column]), f"{COTANGENT}0": np.ones(1, np.float32)}

    def place(array: np.ndarray, patch: Any) -> tuple[np.ndarray, tuple[Any, ...]]:
        wide = np.pad(array, [(0, 0)] * (array.ndim - 2) + [(9, 9), (9, 9)])
        rows = slice(9 + row + patch.top, 10 + row + patch.bottom)
        return wide, (..., rows, slice(9 + column + patch.left, 10 + column + patch.right))

    for value, patch in cells.crops.items():
        wide, where = place(values[value], patch)
        feeds[CROP + value] = wide[where]
    for k, leaf in enumerate(expression.leaves):
        if k in cells.channels:
            feeds[f"{CHANNEL}{k}"] = np.eye(cells.channels[k], dtype=np.float32)[[leaf.element[1]]]
        else:
            feeds[f"{NUMBER}{leaf.value}.{k}"] = values[leaf.value][(slice(None), *leaf.element[1:])]
    feeds |= {f"{NUMBER}{k}": np.array([number], np.float32) for k, number in enumerate(expression.constants)}
    session = open_session(cells.model.SerializeToString(), CPU)
    (result,) = session.run(None, feeds)
    whole = np.zeros((*result.shape[:-2], HEIGHT, WIDTH), np.float32)
    wide, where = place(whole, cells.crops[cells.layer])
    wide[where] = result
    return wide[..., 9:-9, 9:-9]


KINDS = ["plain", "dilated", "grouped", "uneven", "same", "pooled", "split"]
CELLS = [(0, 0), (0, WIDTH - 1), (HEIGHT - 1, 0), (HEIGHT - 1, WIDTH - 1), (3, 4), (1, 7)]


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", KINDS)
def test_the_cells_have_the_gradient_of_the_whole_head(kind: str) -> None:
    network = network_of(head(kind))
    picture = np.random.default_rng(1).normal(size=(1, 3, HEIGHT, WIDTH)).astype(np.float32)
    layer = "level"
    stop = set(network.cut(layer).values) - {layer}
    for number, (row, column) in enumerate(CELLS):
        part = (4 + number % CLASSES, 0)[number == 4]  # of one cell an edge instead of a score
        place = part * COUNT + row * WIDTH + column
        values, gradient = dense(network, layer, place, picture)
        expression = follow(network.graph, network.readout.value, [(0, place)], stop)
        near = cut(network, layer, expression, values, GRADIENT)
        assert np.abs(near - gradient).max() <= 1e-5 * np.abs(gradient).max() > 0
        hirescam = cut(network, layer, expression, values, "hirescam")
        want = (gradient * values[layer]).sum(axis=1)
        assert np.abs(hirescam - want).max() <= 1e-5 * np.abs(want).max()
        assert np.count_nonzero(np.abs(near).sum(axis=1)) < COUNT  # some cells are out of reach


@pytest.mark.parametrize("kind", ["averaged", "attending", "normalised"])
def test_what_needs_more_than_cells_around_is_not_cut(kind: str) -> None:
    network = network_of(head(kind))
    expression = follow(network.graph, network.readout.value, [(0, 4 * COUNT + 30)])
    with pytest.raises(NotLocal):
        cut_cells(network, "level", expression, [])


def test_what_mixes_elements_is_not_followed() -> None:
    network = network_of(head("softmax"))
    with pytest.raises(NotElementwise):
        follow(network.graph, network.readout.value, [(0, 4 * COUNT + 30)])
    follow(network.graph, network.readout.value, [(0, 30)])


def test_several_boxes_are_the_rows_of_one_run() -> None:
    network = network_of(head())
    forms = {
        follow(network.graph, network.readout.value, [(0, (4 + k) * COUNT + place)]).form
        for k in range(CLASSES)
        for place in (0, 31, 62)
    }
    assert len(forms) == 1
    edge = follow(network.graph, network.readout.value, [(0, 31)])
    assert edge.form not in forms and edge.constants


def test_methods_that_work_on_each_cell_alone() -> None:
    names = ("gradcam", "gradcam++", "hirescam", "layercam", "elementwise", "xgradcam", "ablationcam", "activationmap")
    assert {name for name in names if local(find(name))} == {"hirescam", "layercam", "elementwise"}


@pytest.mark.parametrize(
    ("node", "element", "source"),
    [
        ("y = Transpose<perm=[0, 2, 1]>(x)", (0, 3, 1), (0, 1, 3)),
        ("y = Slice(x, starts, ends, axes, steps)", (0, 1, 1), (0, 1, 3)),
        ("y = Gather<axis=2>(x, indices)", (0, 1, 0), (0, 1, 4)),
        ("z, y = Split<axis=2, num_outputs=2>(x)", (0, 1, 1), (0, 1, 4)),
        ("y = Concat<axis=1>(x, x)", (0, 3, 2), (0, 1, 2)),
        ("y = Unsqueeze(x, axes)", (0, 1, 0, 2), (0, 1, 2)),
        ("y = Reshape(x, shape)", (0, 2, 1), (0, 0, 5)),
    ],
)
def test_elements_are_followed_through_what_moves_them(
    node: str, element: tuple[int, ...], source: tuple[int, ...]
) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    net (float[N, 2, 6] x) => (float[N, A, B] out)
    <int64[1] starts = {{5}}, int64[1] ends = {{-7}}, int64[1] axes = {{2}}, int64[1] steps = {{-2}},
     int64[2] indices = {{-2, 0}}, int64[3] shape = {{0, 6, 2}}>
    {{
        {node}
        out = Neg(y)
    }}"""
    graph = normalize(onnx.parser.parse_model(text))
    expression = follow(graph, "out", [element])
    assert [leaf.value for leaf in expression.leaves] == ["x"]
    assert expression.leaves[0].element == source
    session = open_session(graph.model.SerializeToString(), CPU)
    x = np.random.default_rng(0).normal(size=(1, 2, 6)).astype(np.float32)
    assert session.run(None, {"x": x})[0][element] == -x[source]
