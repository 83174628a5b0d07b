"""Shape inference without a model's large weights, and shapes as text."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper, shape_inference

from onnxcam.errors import ModelError
from onnxcam.graph.constant_folding import ConstantFolder
from onnxcam.graph.validation import bodies
from onnxcam.graph.view import Graph, Shape, attributes, shape_of

SMALL = 1024  # elements of a weight whose value shape inference may need
_INTEGERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
_FOLLOWED = ("Constant", "Shape")  # whose numbers shape inference knows
_POOLS = ("AveragePool", "LpPool", "MaxPool")


def refresh(model: onnx.ModelProto) -> Graph:
    """Infer shapes again after an edit, and index the model again."""
    infer(model)
    return Graph(model)


def infer(model: onnx.ModelProto) -> None:
    """Infer shapes in place, by way of a skeleton: large weights are neither copied nor serialized."""
    bare, _ = skeleton(model)
    for output in bare.graph.output:  # inference keeps a declared shape that it contradicts
        undeclare(output)
    try:
        inferred = _inferred(bare)
    except Exception as error:
        raise ModelError(
            f"shape inference failed: {str(error).strip().splitlines()[0]}; is the file damaged? export it again"
        ) from error
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)
    outputs = {o.name: o for o in inferred.graph.output}
    for output in model.graph.output:
        undeclared = not output.type.tensor_type.HasField("shape")
        if undeclared or _contradict(shape_of(output), shape_of(outputs[output.name])):
            output.CopyFrom(outputs[output.name])
        else:
            _settle(output, outputs[output.name])


def undeclare(info: onnx.ValueInfoProto) -> None:
    """Remove a tensor's declared shape; a sequence or map has none, and to clear it would make a tensor of it."""
    if info.type.tensor_type.HasField("shape"):
        info.type.tensor_type.ClearField("shape")


def _settle(declared: onnx.ValueInfoProto, inferred: onnx.ValueInfoProto) -> None:
    """Set the sizes that a declaration leaves open where the operators give them, but for that of the batch.

    torch's older exporter names the width of a normalised embedding instead of stating it.
    """
    dims, sizes = declared.type.tensor_type.shape.dim, inferred.type.tensor_type.shape.dim
    for dim, size in list(zip(dims, sizes, strict=False))[1:]:
        if len(dims) == len(sizes) and not dim.HasField("dim_value") and size.HasField("dim_value"):
            dim.dim_value = size.dim_value


def drop_contradicted(model: onnx.ModelProto) -> list[str]:
    """Drop in place the shapes that a file declares for its values if one of them contradicts what the operators give.

    Optimizers that move Transposes leave the shapes of before behind (jax2onnx 0.17), and shape inference keeps a
    declared shape that it contradicts: what is computed from it, such as the padding of a gradient, would be wrong.
    Where one shape is wrong the others cannot be relied on either. Of outputs only those are dropped that are
    contradicted; where a file declares the shapes of its outputs alone, as many do, `infer` finds these.

    Returns:
        names of the values whose shape is contradicted; empty if nothing was dropped.
    """
    declared = [{info.name: info for info in body.value_info} for body in bodies([model.graph])]
    if not any(info.type.tensor_type.HasField("shape") for infos in declared for info in infos.values()):
        return []
    declared[0] |= {output.name: output for output in model.graph.output}
    bare, _ = skeleton(model)
    for body in bodies([bare.graph]):
        del body.value_info[:]
    for output in bare.graph.output:
        undeclare(output)
    try:
        inferred = _inferred(bare)
    except Exception:
        return []  # a later step reports what is wrong
    contradicted = [
        info.name
        for place, (infos, body) in enumerate(zip(declared, bodies([inferred.graph]), strict=True))
        for info in (*body.value_info, *(body.output if place == 0 else ()))
        if info.name in infos and _contradict(shape_of(infos[info.name]), shape_of(info))
    ]
    if contradicted:
        for body in bodies([model.graph]):
            del body.value_info[:]
        for output in model.graph.output:
            if output.name in contradicted:
                undeclare(output)
    return contradicted


def _inferred(bare: onnx.ModelProto) -> onnx.ModelProto:
    """Infer shapes, and those of pooling that rounds up as the standard and the runtime have them, see `rounded_up`.

    Whole numbers that shape inference does not follow are computed first where a rank depends on them.
    """
    inferred = shape_inference.infer_shapes(bare, data_prop=True)
    computed: list[onnx.TensorProto] = []
    while _unranked(inferred) and (more := _fold_integers(bare, inferred)):
        computed += more
        inferred = shape_inference.infer_shapes(bare, data_prop=True)
    inferred = _of_pools(bare, inferred)
    infos = [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in computed]
    inferred.graph.value_info.extend(infos)
    return inferred


def _unranked(inferred: onnx.ModelProto) -> bool:
    """Whether the rank of a value is unknown that an operator of the standard computes."""
    graph = inferred.graph
    ranked = {info.name for info in (*graph.value_info, *graph.output) if info.type.tensor_type.HasField("shape")}
    return any(
        node.domain in ("", "ai.onnx") and node.output and node.output[0] and node.output[0] not in ranked
        for node in graph.node
    )


def _fold_integers(bare: onnx.ModelProto, inferred: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Replace nodes in place by the whole numbers that they compute whatever the batch; return these.

    Of what exporters compute of shapes, onnx 1.23 does not follow Mod, Div, Reshape and others; torch's older exporter
    has them before every multi-head attention.
    """
    graph = Graph(inferred)
    folder = ConstantFolder(graph)
    outputs = {output.name for output in bare.graph.output}
    remaining, computed = [], []
    for node in bare.graph.node:
        name = node.output[0] if len(node.output) == 1 else ""
        value = None
        if node.op_type not in _FOLLOWED and name not in outputs and graph.dtype(name) in _INTEGERS:
            value = folder.value(name)
        if value is None or helper.np_dtype_to_tensor_dtype(value.dtype) != graph.dtype(name):
            remaining.append(node)
        else:
            computed.append(onnx.numpy_helper.from_array(value, name))
    if computed:
        bare.graph.initializer.extend(computed)
        del bare.graph.node[:]
        bare.graph.node.extend(remaining)
    return computed


def _of_pools(bare: onnx.ModelProto, inferred: onnx.ModelProto) -> onnx.ModelProto:
    """Correct the shapes of pooling that rounds up, and of what is computed from them."""
    pools = [node for node in bare.graph.node if _rounds_up(node)]
    for _ in pools:  # what a pool is computed from may change with one before it
        shapes = {info.name: shape_of(info) for info in (*inferred.graph.value_info, *inferred.graph.input)}
        infos = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
        wrong = {}
        for node in pools:
            right = rounded_up(node, shapes.get(node.input[0]))
            for name in node.output:
                if right is not None and name in infos and _contradict(shape_of(infos[name]), right):
                    wrong[name] = helper.make_tensor_value_info(name, infos[name].type.tensor_type.elem_type, right)
        if not wrong:
            break
        # what was inferred behind them is inferred again; what they are declared to be is kept
        remaining = [info for info in bare.graph.value_info if info.name not in wrong]
        del bare.graph.value_info[:]
        bare.graph.value_info.extend([*remaining, *wrong.values()])
        for output in bare.graph.output:
            if output.name in wrong:
                output.CopyFrom(wrong[output.name])
        inferred = shape_inference.infer_shapes(bare, data_prop=True)
    return inferred


def _rounds_up(node: onnx.NodeProto) -> bool:
    return node.op_type in _POOLS and any(a.name == "ceil_mode" and a.i for a in node.attribute)


def rounded_up(node: onnx.NodeProto, shape: Shape | None) -> Shape | None:
    """The shape of what a pool of `ceil_mode` gives, None of another node or where its input's rank is unknown.

    A window that would start in the padding behind the picture is left out, as the standard says, and as ONNX Runtime
    and PyTorch compute; the shape inference of onnx 1.23 counts it below opset 22.

    Arguments:
        shape: of the node's input.
    """
    attrs = attributes(node)
    if not _rounds_up(node) or shape is None or attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    kernel = list(attrs["kernel_shape"])
    rank = len(kernel)
    strides, dilations = (list(attrs.get(name) or [1] * rank) for name in ("strides", "dilations"))
    pads = list(attrs.get("pads") or [0] * (2 * rank))
    sides: list[int | str | None] = []
    for axis, side in enumerate(shape[2:]):
        if not isinstance(side, int):
            sides.append(None)
            continue
        extent, before = dilations[axis] * (kernel[axis] - 1) + 1, pads[axis]
        count = -(-(side + before + pads[rank + axis] - extent) // strides[axis]) + 1
        sides.append(count - 1 if (count - 1) * strides[axis] >= side + before else count)
    return (*shape[:2], *sides)


def _contradict(declared: Shape | None, inferred: Shape | None) -> bool:
    """Whether two shapes of one value cannot both be right."""
    if declared is None or inferred is None:
        return False
    return len(declared) != len(inferred) or any(
        isinstance(one, int) and isinstance(other, int) and one != other
        for one, other in zip(declared, inferred, strict=True)
    )


class NodeShapes:
    """Shapes of a graph's values and of nodes that are written one after the other, each inferred once.

    `infer` after each node that others wait for would grow with the square of their number.

    Attributes:
        constants: initializers by name, to which the nodes' own are added.
    """

    def __init__(self, graph: Graph, constants: Mapping[str, onnx.TensorProto]) -> None:
        self.constants = constants
        self._graph = graph
        self._types: dict[str, onnx.TypeProto] = {}

    def shape(self, value: str) -> Shape | None:
        """Shape of a value; None if the rank is unknown."""
        shape = self._graph.shape(value)
        if shape is None and value in self._types:
            shape = shape_of(onnx.ValueInfoProto(type=self._types[value]))
        return shape

    def add(self, node: onnx.NodeProto) -> None:
        """Infer what a node gives, where its inputs are known and it has no graphs of its own."""
        if all(self.shape(name) is not None for name in node.output if name):
            return
        names = {name for name in node.input if name}
        types = {name: type_ for name in names if (type_ := self._type(name)) is not None}
        if len(types) < len(names) or any(a.HasField("g") or a.graphs for a in node.attribute):
            return
        data = {
            name: self.constants[name]
            for name in types
            if name in self.constants and helper.tensor_dtype_to_np_dtype(self.constants[name].data_type).kind in "iu"
        }
        imports = self._graph.model.opset_import
        try:
            schema = onnx.defs.get_schema(node.op_type, self._graph.opset, "")
            inferred = shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=list(imports))
        except Exception:  # of the standard's, which has no type of its own: the value stays unknown
            return
        right = rounded_up(node, self.shape(node.input[0])) if node.input else None
        if right is not None:
            inferred = {
                name: helper.make_tensor_type_proto(kind.tensor_type.elem_type, right)
                for name, kind in inferred.items()
            }
        self._types.update(inferred)

    def _type(self, value: str) -> onnx.TypeProto | None:
        """The type of a value; None where it is unknown."""
        if value in self._types:
            return self._types[value]
        tensor = self.constants.get(value)
        if tensor is not None:
            return helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        dtype, shape = self._graph.dtype(value), self._graph.shape(value)
        return helper.make_tensor_type_proto(dtype, shape) if dtype else None


def skeleton(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Copy a model without its large weights, which become inputs: cheap to check and to infer shapes on.

    Returns:
        The copy, and the names of those weights.
    """
    bare = onnx.ModelProto()
    graph = model.graph
    bare.ir_version, bare.producer_name = model.ir_version, model.producer_name
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = graph.name or "graph"
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(graph.input)
    bare.graph.output.extend(graph.output)
    bare.graph.value_info.extend(graph.value_info)
    listed = {i.name for i in graph.input}
    large = []
    for tensor in graph.initializer:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size <= SMALL:
            bare.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            large.append(tensor.name)
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare, large


def describe(dims: tuple[object, ...] | None) -> str:
    """Format a shape for a message: `[N, 3, 224, 224]`."""
    return "unknown" if dims is None else "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
