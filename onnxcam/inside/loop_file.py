"""An ascent as one ONNX file: a model whose `Loop` is the ascent, for any runtime and language.

    start      float32 [C, H, W]      parameters to begin with, such as normal random numbers times 0.3
    jitter     int64 [steps, 2]       by how many pixels the picture is shifted at each step, down and to the right
    picture    uint8 [H, W, C]        the picture after the last step, red first
    parameters float32 [C, H, W]      its parameters: `start` of a further run
    history    float32 [steps]        the value before each step

Nothing in the file is random, so that every runtime arrives at the same picture from the same inputs.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcam.errors import SettingError
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph
from onnxcam.inside import differentiated
from onnxcam.inside.ascent import FIRST, SECOND, SMALLEST
from onnxcam.inside.maximization import DEVIATION, Settings
from onnxcam.inside.parametrization import Canvas, Cosine, Pixels
from onnxcam.inside.penalty import SMOOTH
from onnxcam.inside.scalar import Scalar
from onnxcam.inside.subject import Subject
from onnxcam.network.names import COTANGENT, GRADIENT

START, JITTER, PICTURE, PARAMETERS, HISTORY = "start", "jitter", "picture", "parameters", "history"
PARAMETRIZATIONS = ("cosine", "pixels")
KEY = "onnxcam.maximize"
_NETWORK = "network/"  # what the names of the network's values begin with
_FLOAT, _INT64, _UINT8, _BOOL = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.INT64,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.BOOL,
)


def loop_model(subject: Subject, scalar: Scalar, settings: Settings) -> onnx.ModelProto:
    """The model of an ascent.

    Arguments:
        settings: its parametrization is `cosine` or `pixels`; of its transformations the file has the jitter.

    Raises:
        SettingError: settings that the file cannot have.
        UnsupportedOperator: an operator on the way has no gradient.
    """
    if settings.parametrization not in PARAMETRIZATIONS:
        raise SettingError(
            f"a file cannot hold the parametrization {settings.parametrization!r}, as runtimes lack its operators; "
            "use 'cosine' (of natural amplitudes too) or 'pixels'"
        )
    if settings.transformation.scale or settings.transformation.rotation:
        raise SettingError("a file holds the jitter alone: leave scale and rotation out")
    network = differentiated.ascent(subject.network, scalar.value, subject.shape, portable=True)
    weights = scalar.weights(subject.value_shape(network, scalar))
    edit.rename(network, {name: _NETWORK + name for name in _names(network)})
    _put_gates_first(network)
    graph = Graph(network)
    writer = _Writer(subject, settings, graph, weights)
    body = writer.body(network)
    model = onnx.ModelProto()
    model.ir_version = max(network.ir_version, 8)
    model.producer_name = "onnxcam"
    model.opset_import.extend(network.opset_import)
    model.graph.name = "activation maximization"
    writer.outer(model, body)
    about = {
        "format": 1,
        "objective": scalar.describe(),
        "settings": settings.describe(),
        "start": {"distribution": "normal", "deviation": DEVIATION},
        "preprocess": subject.preprocess.to_dict(),
        "network": (subject.explainer.manifest.get("source") or {}).get("name"),
    }
    model.metadata_props.add(key=KEY, value=json.dumps(about, ensure_ascii=False))
    return model


def _put_gates_first(model: onnx.ModelProto) -> None:
    """Multiply gates by gradients, not gradients by gates.

    OpenVINO 2026.4.1 fuses `Mul(Conv(…), HardSigmoid(…))` into the convolution, and inside a Loop the gates of the
    second iteration are then silently wrong; in the other order nothing is fused and they are right.
    """
    gates = {name for node in model.graph.node if node.op_type in ("HardSigmoid", "Cast") for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Mul" and node.input[1] in gates and node.input[0] not in gates:
            node.input[0], node.input[1] = node.input[1], node.input[0]


def _names(model: onnx.ModelProto) -> set[str]:
    """Every name of a value, those inside subgraphs too."""
    names = {info.name for info in (*model.graph.input, *model.graph.output)}
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        names |= {tensor.name for tensor in graph.initializer} | {info.name for info in graph.input}
        for node in graph.node:
            names.update(name for name in (*node.input, *node.output) if name)
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    return names


class _Writer:
    """Writes the nodes around the network: parameters to its picture, and its gradient to the next parameters."""

    def __init__(self, subject: Subject, settings: Settings, graph: Graph, weights: np.ndarray) -> None:
        self._subject, self._settings = subject, settings
        canvas = Canvas(settings.parametrization, subject.channels, *subject.size, colors=subject.colors)
        self._basis = canvas.basis
        # colours in the order of the model, so that nothing is reordered inside the loop
        flipped = subject.preprocess.color == "BGR"
        self._matrix = canvas.matrix[::-1].copy() if canvas.matrix is not None and flipped else canvas.matrix
        self._flipped = flipped
        self._scale = float(np.abs(weights).max()) or 1.0
        self._weights = weights / self._scale
        self._graph = graph
        self._op = Builder(graph, prefix="ascent")
        self._op.dtype = _FLOAT

    def body(self, network: onnx.ModelProto) -> onnx.GraphProto:
        """The body of the loop: iteration, condition, parameters and Adam's two moments in; the next ones and the
        value out.
        """
        op, graph = self._op, self._graph
        steps = self._settings.steps
        step = op.Reshape("iteration", [1])
        offset = op.Reshape(op.Gather(JITTER, step, axis=0), [2])
        rows, columns = (op.Gather(offset, [axis]) for axis in (0, 1))
        height, width = self._subject.size
        places = [self._places(rows, height, -1), self._places(columns, width, -1)]
        back = [self._places(rows, height, 1), self._places(columns, width, 1)]
        picture, bases = self._picture("parameters_before", places)
        self._feed(picture)
        before, count = [*op.nodes], len(op.nodes)
        change = self._change(picture, bases, back)
        moments = []
        for name, decay, addend in (
            ("mean", FIRST, change),
            ("square", SECOND, op.Mul(change, change)),
        ):
            moments.append(op.Add(op.Mul(f"{name}_before", decay), op.Mul(addend, 1 - decay), name=f"{name}_after"))
        numbers = np.arange(1, steps + 1)
        rate = op.constant((2 * self._settings.rate / (1 - FIRST**numbers)).astype(np.float32))
        correction = op.constant((1 / (1 - SECOND**numbers)).astype(np.float32))
        square = op.Mul(moments[1], op.Gather(correction, step))
        epsilon = op.Add(op.Sqrt(op.ReduceMean(square, keepdims=0)), SMALLEST)
        size = op.Add(op.Sqrt(square), epsilon)
        move = op.Mul(op.Div(moments[0], size), op.Gather(rate, step))
        op.Add("parameters_before", move, name="parameters_after")
        op.Identity("proceed", name="proceed_after")
        op.Mul(_NETWORK + differentiated.VALUE, self._scale, name="value")
        after = op.nodes[count:]
        shape = list(self._basis.shape)
        state = ("parameters", "mean", "square")
        inputs = [edit.info("iteration", _INT64, []), edit.info("proceed", _BOOL, [])]
        inputs += [edit.info(f"{name}_before", _FLOAT, shape) for name in state]
        outputs = [edit.info("proceed_after", _BOOL, [])]
        outputs += [edit.info(f"{name}_after", _FLOAT, shape) for name in state]
        outputs += [edit.info("value", _FLOAT, [])]
        nodes = [*before, *network.graph.node, *after]
        body = helper.make_graph(nodes, "step", inputs, outputs, initializer=list(network.graph.initializer))
        kind = helper.tensor_dtype_to_np_dtype(graph.dtype(_NETWORK + COTANGENT))
        body.initializer.append(numpy_helper.from_array(self._weights.astype(kind), _NETWORK + COTANGENT))
        del op.nodes[:]
        return body

    def outer(self, model: onnx.ModelProto, body: onnx.GraphProto) -> None:
        """The model around the loop."""
        op, steps = self._op, self._settings.steps
        shape = list(self._basis.shape)
        zeros = op.constant(np.zeros(shape, np.float32))
        trips, proceed = op.constant(np.asarray(steps, np.int64)), op.constant(np.asarray(True))
        loop = helper.make_node(
            "Loop",
            [trips, proceed, START, zeros, zeros],
            [PARAMETERS, op.unique("mean"), op.unique("square"), HISTORY],
            name="ascent",
            body=body,
        )
        picture, _ = self._picture(PARAMETERS, None)
        if self._flipped:
            picture = op.Gather(picture, [2, 1, 0], axis=0)
        rounded = op.Cast(op.Round(op.Mul(picture, 255.0)), to=_UINT8)
        op.Transpose(rounded, perm=[1, 2, 0], name=PICTURE)
        height, width = self._subject.size
        model.graph.input.extend([edit.info(START, _FLOAT, shape), edit.info(JITTER, _INT64, [steps, 2])])
        model.graph.output.extend(
            [
                edit.info(PICTURE, _UINT8, [height, width, self._subject.channels]),
                edit.info(PARAMETERS, _FLOAT, shape),
                edit.info(HISTORY, _FLOAT, [steps]),
            ]
        )
        model.graph.node.extend([loop, *op.nodes])
        model.graph.initializer.extend(op.initializers)

    def _places(self, offset: str, length: int, sign: int) -> str:
        """(position + sign · offset) mod length, int64 `[length]`."""
        op = self._op
        positions = op.constant(np.arange(length, dtype=np.int64))
        moved = op.Add(positions, offset) if sign > 0 else op.Sub(positions, offset)
        return str(op.Mod(moved, length))

    def _picture(self, parameters: str, places: list[str] | None) -> tuple[str, tuple[str, str] | None]:
        """The picture `[C, H, W]` of values 0 to 1 in the model's colours, shifted; and the matrices of its basis."""
        op, basis = self._op, self._basis
        matrices = None
        if isinstance(basis, Cosine):
            rows, columns = (op.constant(matrix) for matrix in (basis.rows, basis.columns))
            if places is not None:
                rows, columns = op.Gather(rows, places[0], axis=0), op.Gather(columns, places[1], axis=0)
            scaled = op.Mul(parameters, op.constant(basis.amplitude))
            values = op.MatMul(op.MatMul(rows, scaled), op.Transpose(columns, perm=[1, 0]))
            matrices = rows, columns
        else:
            assert isinstance(basis, Pixels)
            values = parameters
            if places is not None:
                values = op.Gather(op.Gather(values, places[0], axis=1), places[1], axis=2)
        return op.Sigmoid(self._mixed(values, self._matrix)), matrices

    def _mixed(self, values: str, matrix: np.ndarray | None) -> str:
        """Channels mixed by a matrix."""
        if matrix is None:
            return values
        op, (height, width) = self._op, self._subject.size
        flat = op.Reshape(values, [len(matrix), height * width])
        return str(op.Reshape(op.MatMul(op.constant(np.ascontiguousarray(matrix)), flat), [-1, height, width]))

    def _feed(self, picture: str) -> None:
        """The picture as the network's own input."""
        op, subject = self._op, self._subject
        factor, offset = (values.astype(np.float32)[:, None, None] for values in subject.affine)
        value = op.Unsqueeze(op.Sub(op.Mul(picture, factor), offset), [0])
        if subject.channels_last:
            value = op.Transpose(value, perm=[0, 2, 3, 1])
        if subject.shape[0] > 1:
            value = op.Expand(value, [subject.shape[0], 1, 1, 1])
        name = _NETWORK + subject.network.picture.name
        kind = self._graph.dtype(name)
        op.Identity(value if kind == _FLOAT else op.Cast(value, to=kind), name=name)

    def _change(self, picture: str, matrices: tuple[str, str] | None, back: list[str]) -> str:
        """The gradient at the parameters."""
        op, subject, settings = self._op, self._subject, self._settings
        name = _NETWORK + GRADIENT
        gradient = name if self._graph.dtype(name) == _FLOAT else op.Cast(name, to=_FLOAT)
        if subject.channels_last:
            gradient = op.Transpose(gradient, perm=[0, 3, 1, 2])
        if subject.shape[0] > 1:
            gradient = op.ReduceSum(gradient, [0], keepdims=0)
        else:
            gradient = op.Squeeze(gradient, [0])
        factor = (subject.affine[0] * self._scale).astype(np.float32)[:, None, None]
        gradient = op.Mul(gradient, factor)
        size = float(np.prod([subject.channels, *subject.size]))
        if settings.penalty.l2:
            gradient = op.Sub(gradient, op.Mul(op.Sub(picture, 0.5), 2 * settings.penalty.l2 / size))
        if settings.penalty.tv:
            gradient = op.Sub(gradient, op.Mul(self._variation(picture), settings.penalty.tv / size))
        inner = op.Mul(gradient, op.Mul(picture, op.Sub(1.0, picture)))
        inner = self._mixed(inner, None if self._matrix is None else self._matrix.T)
        if matrices is None:
            return str(op.Gather(op.Gather(inner, back[0], axis=1), back[1], axis=2))
        assert isinstance(self._basis, Cosine)
        rows, columns = matrices
        inner = op.MatMul(op.MatMul(op.Transpose(rows, perm=[1, 0]), inner), columns)
        return str(op.Mul(inner, op.constant(self._basis.amplitude)))

    def _variation(self, picture: str) -> str:
        """The gradient of the sum of the lengths of all steps to the next row and column."""
        op = self._op
        steps = []
        for axis, count in ((1, self._subject.size[0]), (2, self._subject.size[1])):
            following = op.constant(np.roll(np.arange(count, dtype=np.int64), -1))
            steps.append(op.Sub(op.Gather(picture, following, axis=axis), picture))
        down, right = steps
        length = op.Sqrt(op.Add(op.Add(op.Mul(down, down), op.Mul(right, right)), SMOOTH))
        total = None
        for axis, step in ((1, down), (2, right)):
            unit = op.Div(step, length)
            preceding = op.constant(np.roll(np.arange(self._subject.size[axis - 1], dtype=np.int64), 1))
            part = op.Sub(op.Gather(unit, preceding, axis=axis), unit)
            total = part if total is None else op.Add(total, part)
        return str(total)
