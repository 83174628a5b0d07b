"""The registry of VJP rules: one decorated function per operator (or family of operators).

A rule is called with a builder, the node, and the cotangent `dy` of the node's output, and returns one cotangent per
input, None where no gradient flows:

    @vjp("Neg")
    def neg(op, node, dy):
        '''dX = -dY.'''
        return [op.Neg(dy)]

Undoing broadcasting (`broadcast=True`), accumulation at fan-out and pruning are the sweep's business, never a rule's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxcam.errors import UnsupportedOperator
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph, Shape, attributes

Cotangents = Sequence[str | None]
Rule = Callable[[Builder, "Node", Any], Cotangents]


@dataclass
class Node:
    """What a rule sees of the node it differentiates.

    Attributes:
        proto, graph: the node, and the graph it is in.
        needed: places of the inputs whose gradients are needed.
        ends: the values whose gradients are asked for in the end: no rule may pass them over.
    """

    proto: onnx.NodeProto
    graph: Graph
    needed: frozenset[int]
    ends: frozenset[str] = frozenset()
    _attrs: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self._attrs = attributes(self.proto)

    @property
    def op_type(self) -> str:
        return str(self.proto.op_type)

    @property
    def name(self) -> str:
        return str(self.proto.name)

    @property
    def opset(self) -> int:
        return self.graph.opset

    @property
    def inputs(self) -> list[str]:
        """Value names, "" for an optional input left out."""
        return list(self.proto.input)

    @property
    def outputs(self) -> list[str]:
        return list(self.proto.output)

    @property
    def output(self) -> str:
        """The first output."""
        return str(self.proto.output[0])

    def input(self, index: int) -> str | None:
        """The name of an input, None if it is left out."""
        return str(self.proto.input[index]) or None if index < len(self.proto.input) else None

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as a Python value."""
        return self._attrs.get(name, default)

    def wants(self, index: int) -> bool:
        """Whether the gradient of this input is needed; rules skip the work where it is not."""
        return index in self.needed

    def shape(self, value: str | None) -> Shape | None:
        return self.graph.shape(value) if value else None

    def rank(self, value: str) -> int:
        """Rank of a value; refused where shape inference could not find it."""
        shape = self.graph.shape(value)
        if shape is None:
            raise self.refuse(f"the rank of {value!r} is unknown after shape inference")
        return len(shape)

    def constant(self, index: int) -> np.ndarray | None:
        """An input's constant value, None if it is left out or not constant."""
        name = self.input(index)
        return self.graph.constant(name) if name else None

    def refuse(self, why: str) -> UnsupportedOperator:
        """The error to raise where a rule does not cover this node."""
        return UnsupportedOperator(
            f"{self.op_type} node {self.name!r} (opset {self.opset}) cannot be differentiated: {why}"
        )


@dataclass(frozen=True)
class Entry:
    """A registered rule: the function, and what the sweep does around it."""

    rule: Rule
    broadcast: bool
    multiple: bool


_rules: dict[str, list[tuple[int, int | None, Entry]]] = {}
_constant: set[str] = set()
_refused: dict[str, str] = {}


def vjp(
    *op_types: str, since: int = 1, until: int | None = None, broadcast: bool = False, multiple: bool = False
) -> Callable[[Rule], Rule]:
    """Register a rule for operators of the standard domain.

    Arguments:
        op_types: ONNX operator names.
        since, until: first and last opset (inclusive) the rule holds for.
        broadcast: returned cotangents have the output's shape; the sweep sums each down to its input's.
        multiple: `dy` is a list with one cotangent (or None) per output instead of the first output's.

    Raises:
        ValueError: another rule already covers one of these operators in these opsets.
    """

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            for low, high, _ in _rules.get(op_type, []):
                if since <= (high or since) and low <= (until or low):
                    raise ValueError(f"{op_type} already has a rule for opsets {low} to {high or 'now'}")
            if op_type in _constant:
                raise ValueError(f"{op_type} is already registered as having no gradient")
            _rules.setdefault(op_type, []).append((since, until, Entry(rule, broadcast, multiple)))
        return rule

    return register


def no_gradient(*op_types: str) -> None:
    """Register operators whose outputs do not vary smoothly with their inputs: nothing flows back."""
    for op_type in op_types:
        if op_type in _rules or op_type in _constant:
            raise ValueError(f"{op_type} is already registered")
        _constant.add(op_type)


def refuse(*op_types: str, why: str) -> None:
    """Register operators that are refused on purpose, and the reason to give."""
    for op_type in op_types:
        if op_type in _rules or op_type in _constant or op_type in _refused:
            raise ValueError(f"{op_type} is already registered")
        _refused[op_type] = why


def reason(op_type: str) -> str | None:
    """Why an operator is refused on purpose, None if it is not."""
    return _refused.get(op_type)


def refused() -> dict[str, str]:
    """Every operator that is refused on purpose, and why."""
    return dict(_refused)


def find(op_type: str, opset: int) -> Entry | None:
    """The rule for an operator in an opset, None if there is none."""
    for low, high, entry in _rules.get(op_type, []):
        if low <= opset and (high is None or opset <= high):
            return entry
    return None


def is_constant(op_type: str) -> bool:
    """Whether the operator is registered as having no gradient."""
    return op_type in _constant


def registered() -> frozenset[str]:
    """Every operator that has a rule."""
    return frozenset(_rules)


def without_gradient() -> frozenset[str]:
    """Every operator registered as having no gradient."""
    return frozenset(_constant)
