"""A model's weights, separated from its graph while TensorFlow and tf2onnx work on that.

As constants of the graph they are copied with it at every step, into functions, sessions and protobufs: 20 times.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import math
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from onnxcam.exporters.keras_module import import_tensorflow

# number of elements from which a constant is a weight and not a scale, a bound or a shape that a step may read
_LARGE = 16384
Weights = dict[str, np.ndarray]


def freeze(concrete: Any) -> tuple[Any, Weights]:
    """Freeze a function's variables into constants, the large ones without content.

    Arguments:
        concrete: a ConcreteFunction.

    Returns:
        the frozen ConcreteFunction, whose large constants have no content, and the float32 arrays by node name.
    """
    from tensorflow.python.framework import convert_to_constants

    weights: Weights = {}
    with _replaced([_frozen_into(weights)]):
        return convert_to_constants.convert_variables_to_constants_v2(concrete, lower_control_flow=False), weights


def without_content(graph: Any, weights: Weights, op: str) -> None:
    """Write the nodes of weights in a graph definition as `Placeholder`, or as `Const` without content, in place."""
    tensorflow = import_tensorflow()
    single = tensorflow.float32.as_datatype_enum
    for node in graph.node:
        if node.name not in weights:
            continue
        shape = tensorflow.TensorShape(weights[node.name].shape).as_proto()
        node.op = op
        node.ClearField("attr")
        node.attr["dtype"].type = single
        if op == "Const":
            node.attr["value"].tensor.dtype = single
            node.attr["value"].tensor.tensor_shape.CopyFrom(shape)
        else:
            node.attr["shape"].shape.CopyFrom(shape)


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """Convert with tf2onnx without its copies of the model's weights.

    The weights are taken out of the graph as it is frozen and passed to tf2onnx next to it, as tf2onnx does itself
    where a graph is too large for a protobuf. It copies its own graph before each of its optimizers: these copies share
    the weights. Garbage is collected between its steps: its graphs are reference cycles of few, large objects, which
    Python would collect late.
    """
    try:
        from tf2onnx import convert, graph, optimizer, tf_loader
        from tf2onnx.optimizer.optimizer_base import GraphOptimizerBase
    except ImportError:  # the conversion raises it
        yield
        return
    weights: Weights = {}

    def as_placeholders(step: Callable[..., Any], definition: Any) -> Any:
        definition = step(definition)
        without_content(definition, weights, "Placeholder")
        return definition

    def as_constants(step: Callable[..., Any], definition: Any, *args: Any, **options: Any) -> Any:
        without_content(definition, weights, "Const")
        return step(definition, *args, **options)

    def with_contents(step: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return step(*args, **options | {"const_node_values": _Contents(weights)})

    def shared(value: Any) -> Any:
        memo: dict[int, Any] = {}
        for node in value.get_nodes() if isinstance(value, graph.Graph) else ():
            if _is_weight(node):
                node._op = type(node._op)(name=node.name, op_type=node.type, domain=node.domain, output=node.output)
                memo[id(node._attr["value"])] = node._attr["value"]
        return copy.deepcopy(value, memo)

    def light(step: Callable[..., Any]) -> Callable[..., Any]:
        def update(node: Any, *args: Any, **options: Any) -> None:
            attributes = node._attr
            node._attr = {} if _is_weight(node) else attributes
            try:
                step(node, *args, **options)
            finally:
                node._attr = attributes

        return update

    cheap = not gc.get_freeze_count()  # frozen, the objects alive now are not traversed at each collection
    if cheap:
        gc.collect()
        gc.freeze()
    try:
        steps = (
            (tf_loader, "fix_freezing_errors_part2", _tidy(as_placeholders)),
            (tf_loader, "tf_optimize", _tidy()),
            (convert, "_convert_common", _tidy(as_constants)),
            (convert, "process_tf_graph", _tidy(with_contents)),
            (GraphOptimizerBase, "optimize", _tidy()),
            (optimizer, "copy", lambda _: SimpleNamespace(deepcopy=shared)),
            (graph.Node, "update_proto", light),
        )
        with _replaced([_frozen_into(weights), *steps]):
            yield
    finally:
        weights.clear()
        gc.collect()
        if cheap:
            gc.unfreeze()


Replacement = tuple[Any, str, Callable[[Any], Any]]


def _frozen_into(weights: Weights) -> Replacement:
    """A replacement that takes the large constants out of a frozen graph before a function is built of it."""
    from tensorflow.python.framework import convert_to_constants

    def construct(step: Callable[..., Any], function: Any, definition: Any, *args: Any) -> Any:
        weights.update(_large_constants(definition))
        without_content(definition, weights, "Const")
        # a message keeps the memory of what was cleared
        return step(function, type(definition).FromString(definition.SerializeToString()), *args)

    return convert_to_constants, "_construct_concrete_function", lambda step: functools.partial(construct, step)


def _large_constants(definition: Any) -> Weights:
    tensorflow = import_tensorflow()
    weights: Weights = {}
    for node in definition.node:
        if node.op != "Const" or node.attr["dtype"].type != tensorflow.float32.as_datatype_enum:
            continue
        tensor = node.attr["value"].tensor
        shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
        if len(tensor.tensor_content) >= 4 * max(_LARGE, math.prod(shape)):
            weights[node.name] = np.frombuffer(tensor.tensor_content, np.float32).reshape(shape)
    return weights


class _Contents(Mapping[str, bytes]):
    """The bytes of each weight, computed on access."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> bytes:
        return self._weights[name].tobytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _is_weight(node: Any) -> bool:
    """Whether a node of tf2onnx's graph holds a large constant."""
    value = node._attr.get("value")
    return value is not None and bool(value.HasField("t")) and math.prod(value.t.dims) >= _LARGE


def _tidy(instead: Callable[..., Any] = lambda step, *args, **options: step(*args, **options)) -> Callable[[Any], Any]:
    """Replace a step by one that collects garbage first."""

    def wrap(step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def tidied(*args: Any, **options: Any) -> Any:
            gc.collect()
            return instead(step, *args, **options)

        return tidied

    return wrap


@contextlib.contextmanager
def _replaced(replacements: list[Replacement]) -> Iterator[None]:
    """Replace attributes of other modules; none of them where a version lacks one."""
    if not all(hasattr(owner, name) for owner, name, _ in replacements):
        yield
        return
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    try:
        for (owner, name, original), (_, _, instead) in zip(originals, replacements, strict=True):
            setattr(owner, name, instead(original))
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
