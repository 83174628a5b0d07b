"""A Keras model written as plain ONNX through tf2onnx, the values of its target layers known by name."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from onnxcam.errors import DependencyError, LayerError, ModelError
from onnxcam.exporters.keras_module import Target, Watched, first_tensor, import_tensorflow, tensors, with_first
from onnxcam.exporters.keras_weights import lean
from onnxcam.exporters.reasons import first_line, reason
from onnxcam.graph import edit
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.shape_inference import refresh
from onnxcam.graph.view import Graph, attributes, shape_of
from onnxcam.runtime import open_session, run

# the newest opset that tf2onnx writes
DEFAULT_OPSET = 18
OPSETS = range(18, 22)
INPUT, BATCH = "input", "N"
RESERVED = {"target", "activations", "gradients", "heatmap", INPUT}
_RANDOM = having(Trait.RANDOM)
# looked through in search of the Softmax or Sigmoid that ends a model
_FORM = {"Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient"}
_ENDINGS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}

Tap = Callable[[int, Any], Any]


@dataclass(frozen=True)
class Captured:
    """A model as ONNX.

    Attributes:
        model: input `input`, its batch dimension called N; the outputs are the model's own.
        values: the graph value of each target layer, in the layout the layer itself has.
        outputs: the names of the model's output tensors, in order.
        endings: for each of them `softmax`, `log_softmax` or `sigmoid` where that ends it, else None.
    """

    model: onnx.ModelProto
    values: list[str]
    outputs: list[str]
    endings: list[str | None]


def capture(
    watched: Watched, picture: np.ndarray, targets: Sequence[Target], names: Sequence[str], opset: int | None
) -> Captured:
    """Write a model as ONNX.

    Arguments:
        watched: the model.
        picture: example batch `[N, H, W, C]`; its height, width and dtype become fixed.
        targets: the target layers.
        names: names for the model's output tensors.
        opset: 18 to 21, None for 18.

    Raises:
        ModelError: an opset that is not supported, or tf2onnx cannot write the model.
        LayerError: the scores do not depend on a target layer.
        DependencyError: tf2onnx is missing.
    """
    version = DEFAULT_OPSET if opset is None else opset
    if version not in OPSETS:
        raise ModelError(
            f"opset {opset} is not supported; expected {OPSETS[0]} to {OPSETS[-1]}: the gradients need 18, and above "
            "21 ONNX Runtime has no MaxPool on CUDA"
        )
    with lean():
        model, endings = _convert(watched, picture, targets)
    inner = [f"layer/{place}" for place in range(len(targets))]
    _rename(model, picture, [*names, *inner])
    if version > DEFAULT_OPSET:
        model = version_converter.convert_version(model, version)
    _require_deterministic(model)
    values = []
    for name, target in zip(inner, targets, strict=True):
        model, value = _on_every_path(model, name, list(names), target)
        values.append(value)
    del model.graph.output[len(names) :]
    edit.prune(model)
    _require_free_batch(model, picture)
    return Captured(model, values, list(names), endings[: len(names)])


def trace(watched: Watched, picture: np.ndarray, targets: Sequence[Target]) -> Any:
    """Trace the model as a TensorFlow function from a picture batch to its outputs, then the target layers' values."""
    tensorflow = import_tensorflow()

    def forward(batch: Any) -> tuple[Any, ...]:
        values: dict[int, Any] = {}

        def tap(place: int, value: Any) -> Any:
            values[place] = value
            return value

        returned = tapped(watched, targets, tap)(batch)
        return (*tensors(returned), *(values[place] for place in range(len(targets))))

    shape = (None, *picture.shape[1:])
    signature = [tensorflow.TensorSpec(shape, picture.dtype, name=INPUT)]
    first: Exception | None = None
    for autograph in (False, True):  # only a call() with if or for over tensors needs it
        function = tensorflow.function(forward, input_signature=signature, autograph=autograph)
        try:
            with tensorflow.device("/CPU:0"):
                function.get_concrete_function()
            return function
        except (LayerError, MemoryError):
            raise
        except Exception as error:
            first = first or error
    assert first is not None
    raise ModelError(f"the model cannot be traced with a free batch size: {reason(first)}") from first


def tapped(watched: Watched, targets: Sequence[Target], tap: Tap) -> Callable[[Any], Any]:
    """Return the model as a function that calls `tap` with each target layer's value and goes on with the result.

    Raises:
        LayerError: a target layer was not called.
    """
    # two names for one call share one value: each gets a tap of its own, one behind the other
    layers: dict[tuple[str, int], list[int]] = {}
    for place, target in enumerate(targets):
        layers.setdefault((target.path, target.index), []).append(place)

    def forward(batch: Any) -> Any:
        tensorflow = import_tensorflow()
        missing = dict(layers)

        def see(path: str, index: int, _: Any, output: Any) -> Any:
            places = missing.pop((path, index), None)
            if places is None:
                return None
            value = first_tensor(output)
            for place in places:
                value = tap(place, tensorflow.identity(value))
            return with_first(output, value)

        with watched.watching(see):
            returned = watched.run(batch)
        if missing:
            raise LayerError(f"layer {targets[next(iter(missing.values()))[0]].name!r} is not called in inference")
        return returned

    return forward


def _convert(
    watched: Watched, picture: np.ndarray, targets: Sequence[Target]
) -> tuple[onnx.ModelProto, list[str | None]]:
    with quiet():
        try:
            import tf2onnx
        except ImportError as error:
            raise DependencyError(
                f"exporting a Keras model needs tf2onnx ({first_line(error)}): pip install 'onnxcam[keras]'"
            ) from error
        with _without_xla():
            function = trace(watched, picture, targets)
        concrete = function.get_concrete_function()
        try:
            model, _ = tf2onnx.convert.from_function(
                function,
                input_signature=function.input_signature,
                opset=DEFAULT_OPSET,
                custom_op_handlers={"Erfc": (_erfc, [])},
            )
        except MemoryError:
            raise
        except Exception as error:
            raise ModelError(f"tf2onnx cannot write the model as ONNX: {reason(error)}") from error
    _restore_constants(model, concrete)
    foreign = {node.op_type for node in model.graph.node if node.domain or not onnx.defs.has(node.op_type)}
    if foreign:
        raise ModelError(f"tf2onnx has no standard operators for {', '.join(sorted(foreign))} in the model")
    return model, [None if end is None else end[0] for end in map(ending, concrete.outputs)]


def ending(tensor: Any) -> tuple[str, Any] | None:
    """The kind and the input of the Softmax, LogSoftmax or Sigmoid that ends a graph at this tensor, None without."""
    while tensor.op.type in _FORM:
        tensor = tensor.op.inputs[0]
    kind = _ENDINGS.get(tensor.op.type)
    return None if kind is None else (kind, tensor.op.inputs[0])


@contextlib.contextmanager
def _without_xla() -> Iterator[None]:
    """Trace functions compiled with XLA as ordinary ones.

    Keras wraps grouped convolutions in such a function, and converters cannot look into it.
    """
    tensorflow = import_tensorflow()
    original = tensorflow.function

    def function(func: Any = None, *args: Any, **options: Any) -> Any:
        if options.get("jit_compile") and not args:
            return func if func is not None else lambda inner: inner
        return original(func, *args, **options)

    tensorflow.function = function
    try:
        yield
    finally:
        tensorflow.function = original


def _erfc(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Write Erfc, as in newer TensorFlow's exact GELU, as 1 - Erf(x); tf2onnx would emit a non-standard operator."""
    data = node.input[0]
    one = ctx.make_const(f"{name}_one", np.asarray(1, helper.tensor_dtype_to_np_dtype(ctx.get_dtype(data))))
    shape, dtype = ctx.get_shape(node.output[0]), ctx.get_dtype(node.output[0])
    ctx.remove_node(node.name)
    erf = ctx.make_node("Erf", [data])
    ctx.make_node("Sub", [one.output[0], erf.output[0]], outputs=node.output, name=name, shapes=[shape], dtypes=[dtype])


def _restore_constants(model: onnx.ModelProto, concrete: Any) -> None:
    """Turn inputs back into constants: tf2onnx writes tensors that are not variables, such as the statistics of
    Normalization, as inputs."""
    constants = {inner.name: outer for outer, inner in concrete.graph.captures}
    for value in list(model.graph.input):
        if value.name in constants:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(constants[value.name]), value.name))
            model.graph.input.remove(value)


def _rename(model: onnx.ModelProto, picture: np.ndarray, names: Sequence[str]) -> None:
    """Name the picture `input` and the outputs as in `names`, and the batch dimension of all N.

    Raises:
        ModelError: the model has other inputs.
    """
    if len(model.graph.input) != 1:
        extra = ", ".join(repr(i.name) for i in model.graph.input)
        raise ModelError(f"tf2onnx wrote a model with {len(model.graph.input)} inputs ({extra}); expected the picture")
    for place in range(len(names)):
        # an output may be the input of another node, or the same value as another output: give each its own
        output = model.graph.output[place]
        model.graph.node.append(helper.make_node("Identity", [output.name], [f"output/{place}"], f"output_{place}"))
        output.name = f"output/{place}"
    outputs = {f"output/{place}": name for place, name in enumerate(names)}
    inputs = {model.graph.input[0].name: INPUT}
    values = {name for node in model.graph.node for name in (*node.input, *node.output)}
    clashes = {name: f"{name}_inner" for name in values & {*outputs.values(), INPUT} if name not in inputs}
    edit.rename(model, clashes | outputs | inputs)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_param = BATCH


def _require_deterministic(model: onnx.ModelProto) -> None:
    """Refuse a model whose predictions are random."""
    random = sorted({node.op_type for node in model.graph.node if node.op_type in _RANDOM})
    if random:
        raise ModelError(
            f"the model draws random numbers when it predicts ({', '.join(random)}): two predictions of one picture "
            "would differ; make that layer follow its `training` argument, or export the model without it"
        )


def _on_every_path(
    model: onnx.ModelProto, name: str, outputs: list[str], target: Target
) -> tuple[onnx.ModelProto, str]:
    """Return the value behind an output, with every path from the picture to the scores led through it.

    tf2onnx transposes layouts: it may compute with channels first and transpose only the exposed value back, or read
    both. All other readers of the channels-first value then read the exposed one transposed again, which the runtime
    cancels: a value off the path to the scores, or bypassed by some paths, would have no gradient or only a part of it.

    Raises:
        LayerError: the scores do not depend on the value.
    """
    graph = Graph(model)
    chain = [name]
    while (node := graph.producer.get(chain[-1])) is not None and node.op_type in ("Identity", "Transpose"):
        chain.append(node.input[0])
    origin = chain[-1]
    needed = {read for node in graph.upstream(outputs)[0] for read in node.input}
    if not needed & set(chain):
        raise LayerError(f"the scores do not depend on layer {target.name!r}; choose one between picture and scores")
    turns = [graph.producer[value] for value in chain[:-1] if graph.producer[value].op_type == "Transpose"]
    if not turns:
        return model, origin
    exposed = turns[0].output[0]
    on_chain = {value: place for place, value in enumerate(chain)}
    backs: dict[str, str] = {}
    for reader in graph.nodes:
        makes_exposed = any(output in on_chain for output in reader.output)
        for place, read in enumerate(reader.input):
            if read not in on_chain or on_chain[read] <= on_chain[exposed] or makes_exposed:
                continue
            if read not in backs:
                backs[read] = _turned_back(model, graph, chain, on_chain[exposed], on_chain[read])
            reader.input[place] = backs[read]
    _sort(model)
    return refresh(model).model, exposed


def _turned_back(model: onnx.ModelProto, graph: Graph, chain: list[str], exposed: int, place: int) -> str:
    """The value at a place of the chain, computed back from the exposed one, which is computed from it."""
    value = chain[exposed]
    for name in chain[exposed:place]:
        node = graph.producer[name]
        if node.op_type == "Transpose":
            perm = list(attributes(node)["perm"])
            back = f"{value}_back{place}"
            order = [perm.index(axis) for axis in range(len(perm))]
            model.graph.node.append(helper.make_node("Transpose", [value], [back], back, perm=order))
            value = back
    return value


def _sort(model: onnx.ModelProto) -> None:
    """Bring the nodes into topological order."""
    computed = {output for node in model.graph.node for output in node.output}
    ready: set[str] = set()
    waiting = list(model.graph.node)
    ordered: list[onnx.NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if all(name in ready or name not in computed for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ModelError("tf2onnx wrote a graph with a cycle; please report the model")
        waiting = later
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _require_free_batch(model: onnx.ModelProto, picture: np.ndarray) -> None:
    """Refuse a model that does not run on a batch of three, or does not return three rows.

    Raises:
        ModelError: the batch size is not free.
    """
    session = open_session(model.SerializeToString(), ["CPUExecutionProvider"])
    batch = np.concatenate([picture[:1]] * 3)
    names = [output.name for output in model.graph.output]
    try:
        arrays = run(session, names, {INPUT: batch})
    except Exception as error:
        raise ModelError(f"the exported model does not run on a batch of 3 pictures: {reason(error)}") from error
    for value in model.graph.output:
        if arrays[value.name].shape[:1] != (3,):
            shape = list(arrays[value.name].shape)
            raise ModelError(f"output {value.name!r} has shape {shape} for 3 pictures; the batch size is not free")
        if shape_of(value) is None:
            value.type.tensor_type.shape.dim.add().dim_param = BATCH
            for side in arrays[value.name].shape[1:]:
                value.type.tensor_type.shape.dim.add().dim_value = side


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what TensorFlow, tf2onnx and Keras log about themselves."""
    loggers = {name: logging.getLogger(name) for name in ("tf2onnx", "tensorflow", "absl")}
    levels = {name: logger.level for name, logger in loggers.items()}
    with warnings.catch_warnings():
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(keras|tf_keras|tensorflow|tf2onnx)(\.|$)")
        try:
            for logger in loggers.values():
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for name, logger in loggers.items():
                logger.setLevel(levels[name])
