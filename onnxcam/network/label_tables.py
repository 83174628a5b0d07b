"""Class names that a graph holds: tables that an ArgMax is looked up in, and the labels of a ZipMap."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcam.graph.view import Graph, attributes, uses

_LOOKUPS = ("Gather", "GatherElements", "GatherND", "ArrayFeatureExtractor")
_ML = "ai.onnx.ml"


def find(graph: Graph, classes: int) -> list[str] | None:
    """Class names by index, None if the graph holds none, or several different lists.

    Arguments:
        classes: the number of classes: tables of another length name something else.
    """
    tables = {tuple(names) for node in graph.nodes for names in _names(graph, node, classes)}
    return list(tables.pop()) if len(tables) == 1 else None


def scores_behind(graph: Graph, output: str) -> str | None:
    """The scores that an output was made of which is no tensor of scores: a ZipMap, the index or the name of the best.

    None if there is none.
    """
    queue, visited = [output], set()
    while queue:
        name = queue.pop(0)
        node = graph.producer.get(name)
        if node is None or name in visited or graph.is_constant(name):
            continue
        visited.add(name)
        if node.op_type in ("ZipMap", "ArgMax", "TopK"):
            return str(node.input[0])
        if graph.is_float(name) and graph.dtype(name) != 0:
            continue  # scores, and no index
        queue += uses(node)
    return None


def _names(graph: Graph, node: onnx.NodeProto, classes: int) -> Iterator[list[str]]:
    """The class names that one node looks up."""
    if node.op_type == "ZipMap" and node.domain == _ML:
        labels = attributes(node).get("classlabels_strings") or attributes(node).get("classlabels_int64s") or []
        if len(labels) == classes and list(labels) != list(range(classes)):
            yield [_text(label) for label in labels]
    elif node.op_type in _LOOKUPS and len(node.input) > 1:
        table = _strings(graph, node.input[0])
        if table is not None and table.size == classes and _is_index(graph, node.input[1]):
            yield [_text(label) for label in table.reshape(-1)]
    elif node.op_type == "LabelEncoder" and node.domain == _ML and _is_index(graph, node.input[0]):
        pairs = _pairs(attributes(node))
        if set(range(classes)) <= pairs.keys():
            yield [pairs[index] for index in range(classes)]


def _strings(graph: Graph, value: str) -> np.ndarray | None:
    table = graph.constant(value)
    if table is None:
        node = graph.producer.get(value)
        strings = attributes(node).get("value_strings") if node is not None and node.op_type == "Constant" else None
        return None if strings is None else np.asarray([_text(entry) for entry in strings], object)
    return table if table.dtype.kind in "OSU" else None


def _pairs(attrs: dict[str, object]) -> dict[int, str]:
    """The names by number of a LabelEncoder."""
    keys, names = attrs.get("keys_int64s"), attrs.get("values_strings")
    if names is None and attrs.get("classes_strings"):
        names = attrs["classes_strings"]
        keys = range(len(names))  # type: ignore[arg-type]
    for key, attribute in (("keys_tensor", "keys"), ("values_tensor", "values")):
        tensor = attrs.get(key)
        if isinstance(tensor, onnx.TensorProto):
            array = numpy_helper.to_array(tensor).reshape(-1)
            keys, names = (array, names) if attribute == "keys" else (keys, array)
    if keys is None or names is None:
        return {}
    try:
        return {int(key): _text(name) for key, name in zip(keys, names, strict=True)}  # type: ignore[call-overload]
    except ValueError:
        return {}


def _is_index(graph: Graph, value: str) -> bool:
    """Whether a value is the index of the highest score."""
    nodes, _ = graph.upstream([value])
    integer = graph.dtype(value) in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return integer and any(node.op_type in ("ArgMax", "TopK") for node in nodes)


def _text(label: object) -> str:
    return label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
