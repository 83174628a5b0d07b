"""The reverse sweep: from the cotangent of one value to the cotangents of others.

Only nodes between `wrt` and `of` are visited. Contributions to a value that fans out are added here, and broadcasting
is undone here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

import onnxcam.autodiff.rules  # noqa: F401  (registers the rules)
from onnxcam.autodiff import registry
from onnxcam.autodiff.passes import silu
from onnxcam.autodiff.passes.blocked_layout import blocked
from onnxcam.autodiff.passes.expansions import remove_expansions
from onnxcam.autodiff.registry import Entry, Node
from onnxcam.autodiff.unreached import NO_GRADIENT, OURS, unreached
from onnxcam.errors import ModelError, UnsupportedOperator
from onnxcam.graph.builder import Builder
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import FLOATS, Graph, uses

QUANTIZED = frozenset(
    {
        onnx.TensorProto.INT8,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.INT16,
        onnx.TensorProto.UINT16,
        onnx.TensorProto.INT4,
        onnx.TensorProto.UINT4,
    }
)
# integers that stand for floats: quantized ones, and sums of their products
INTEGERS = QUANTIZED | {onnx.TensorProto.INT32}
_SUMMING = ("ConvInteger", "MatMulInteger")
_QUANTIZING = ("DynamicQuantizeLinear", "QuantizeLinear")
_BLOCKED = having(Trait.BLOCKED)
_MOVES = having(Trait.MOVES) | {"MaxPool"}


def path(graph: Graph, of: str, wrt: Iterable[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes between `wrt` and `of` in topological order, and the values of them that carry gradients."""
    forward = set(wrt)
    for node in graph.nodes:
        if _flows(node) and any(name in forward for name in _feeding(node)):
            forward.update(name for name in node.output if name and _carries(graph, node, name, forward))
    nodes: list[onnx.NodeProto] = []
    backward = {of}
    for node in reversed(graph.nodes):
        if not _flows(node) or not any(name in backward and name in forward for name in node.output):
            continue
        inputs = [name for name in _feeding(node) if name in forward]
        if inputs:
            nodes.append(node)
            backward.update(inputs)
    return nodes[::-1], forward & backward


def sweep(
    op: Builder, of: str, cotangent: str, wrt: Sequence[str], *, replaced: Mapping[str, Entry] | None = None
) -> list[str]:
    """Emit the vector-Jacobian product of `of` with respect to each of `wrt`.

    Arguments:
        op: receives the new nodes; `op.graph` must have inferred shapes.
        of: the differentiated value.
        cotangent: a value of the shape of `of`.
        wrt: float values that `of` depends on.
        replaced: rules by operator to be used instead of the registered ones.

    Returns:
        one value name per `wrt`, each of its `wrt`'s shape and element type.

    Raises:
        UnsupportedOperator: a node on the way has no rule; nothing has been emitted then.
        ModelError: a `wrt` does not reach `of`.
    """
    graph = op.graph
    nodes, carrying, entries = _rules(graph, of, wrt, replaced or {})
    first, ends = len(op.nodes), frozenset(wrt)
    pending: dict[str, list[str]] = {of: [cotangent]}
    total: dict[str, str] = {}
    sums: set[str] = set()

    def settle(value: str) -> str | None:
        """Add up what arrived at a value: every consumer on the path has been visited by now."""
        if value not in total and value in pending:
            parts = pending.pop(value)
            op.dtype = _real(graph.dtype(value)) or op.dtype
            total[value] = parts[0] if len(parts) == 1 else op.Add(*parts) if len(parts) == 2 else op.Sum(*parts)
            if len(parts) > 1:
                sums.add(total[value])
            if graph.dtype(value) not in INTEGERS:  # whose cotangent is a float
                op.declare(total[value], value)
        return total.get(value)

    for proto, entry in zip(reversed(nodes), reversed(entries), strict=True):
        arrived = [settle(name) if name else None for name in proto.output]
        if all(dy is None for dy in arrived):
            continue
        needed = frozenset(i for i, name in enumerate(proto.input) if name in carrying)
        node = Node(proto, graph, needed, ends)
        op.dtype = _real(graph.dtype(proto.output[0])) or onnx.TensorProto.FLOAT
        if not entry.multiple and any(dy is not None for dy in arrived[1:]):
            raise node.refuse("a gradient is needed through one of its further outputs")
        if proto.op_type in _BLOCKED and arrived[0] is not None and op.spread_source(arrived[0])[1]:
            arrived[0] = blocked(op, arrived[0], proto.output[0])
        entry = silu.entry(node) or entry
        try:
            returned = entry.rule(op, node, arrived if entry.multiple else arrived[0])
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ModelError(
                f"the gradient of {proto.op_type} (node {proto.name!r}, opset {graph.opset}) cannot be written out "
                f"({type(error).__name__}: {error}); is the node valid ONNX?"
            ) from error
        for index in sorted(needed):
            dx = returned[index] if index < len(returned) else None
            if dx is None:
                continue
            name = proto.input[index]
            pending.setdefault(name, []).append(op.sum_to(dx, proto.output[0], name) if entry.broadcast else dx)

    gradients = []
    for name in wrt:
        dx = settle(name)
        if dx is None:
            raise unreached(graph, name, of, NO_GRADIENT)
        gradients.append(dx)
    remove_expansions(op, first, sums, gradients)
    return gradients


def require_path(graph: Graph, of: str, wrt: Sequence[str]) -> None:
    """Refuse what `sweep` would refuse, before anything in the graph is renamed.

    Raises:
        UnsupportedOperator, ModelError: as of `sweep`.
    """
    _rules(graph, of, wrt, {})


def _rules(
    graph: Graph, of: str, wrt: Sequence[str], replaced: Mapping[str, Entry]
) -> tuple[list[onnx.NodeProto], set[str], list[Entry]]:
    """The nodes and values of `path`, and each node's rule."""
    nodes, carrying = path(graph, of, wrt)
    apart = [name for name in wrt if name not in carrying]
    if apart:
        raise unreached(graph, apart[0], of)
    return nodes, carrying, [replaced.get(node.op_type) or _rule_for(graph, node, of, wrt) for node in nodes]


def _carries(graph: Graph, node: onnx.NodeProto, value: str, forward: set[str]) -> bool:
    """Whether a value can carry gradients: floating point, or integers that stand for a quantized float."""
    if graph.is_float(value):
        # the scale of a dynamic quantization depends on the data, and the numbers that are meant do not depend on it
        return node.op_type != "DynamicQuantizeLinear"
    if graph.dtype(value) == onnx.TensorProto.INT32:
        return node.op_type in _SUMMING
    if graph.dtype(value) not in QUANTIZED:
        return False
    # what only moves quantized values is quantized the same way
    return node.op_type in _QUANTIZING or (node.op_type in _MOVES and node.input[0] in forward)


def _real(dtype: int) -> int:
    """The element type in which a value's cotangent is computed, 0 for the usual one."""
    return 0 if dtype in INTEGERS else dtype


def _flows(node: onnx.NodeProto) -> bool:
    return node.domain not in ("", "ai.onnx") or not registry.is_constant(node.op_type)


def _feeding(node: onnx.NodeProto) -> list[str]:
    """The values whose gradients a node may pass on; the second input of CastLike gives a type, not a value."""
    return list(node.input[:1]) if node.op_type == "CastLike" else list(uses(node))


def _rule_for(graph: Graph, node: onnx.NodeProto, of: str, wrt: Sequence[str]) -> Entry:
    """The rule for a node.

    Raises:
        UnsupportedOperator: there is none; the message names operator, node, opset and the path through it.
    """
    standard = node.domain in ("", "ai.onnx")
    entry = registry.find(node.op_type, graph.opset) if standard else None
    if entry is not None:
        return entry
    name = node.op_type if standard else f"{node.domain}::{node.op_type}"
    way = " -> ".join(_way(graph, node, of, wrt))
    why = registry.reason(node.op_type) if standard else None
    lies = f"it lies between the target layer and the scores: {way}"
    lacks = f"cannot be differentiated: {why}; {lies}" if why else f"has no gradient rule, and {lies}"
    raise UnsupportedOperator(
        f"operator {name} (node {node.name!r}, opset {graph.opset}) {lacks}. Choose a target layer after it, or export "
        f"the model without it{_value_before(graph, node, wrt)}"
    )


def _value_before(graph: Graph, node: onnx.NodeProto, wrt: Sequence[str]) -> str:
    """Advice to explain what a node reads: the first of its values that vary with a `wrt` and have gradients."""
    varying = graph.downstream(wrt)
    reads = [value for value in uses(node) if value in varying and graph.is_float(value) and value not in wrt]
    reads = [value for value in reads if not value.startswith(OURS)]
    return (
        f"; or explain a value before it (scores={reads[0]!r}; on the command line --scores {reads[0]})"
        if reads
        else ""
    )


def _way(graph: Graph, node: onnx.NodeProto, of: str, wrt: Sequence[str]) -> list[str]:
    """A shortest way from a `wrt` through the node to `of`, as names, with a long middle left out."""
    before = _shortest(graph, set(wrt), set(uses(node)))
    after = _shortest(graph, set(node.output), {of})

    def brief(names: list[str]) -> list[str]:
        return names if len(names) <= 4 else [*names[:2], "...", *names[-2:]]

    head = [repr(before[0])] if before else []
    hops = [f"{graph.producer[v].op_type} {graph.producer[v].name!r}" for v in before[1:] if v in graph.producer]
    tail = [f"{graph.producer[v].op_type} {graph.producer[v].name!r}" for v in after[1:] if v in graph.producer]
    return [*head, *brief(hops), f"[{node.op_type} {node.name!r}]", *brief(tail), repr(of)]


def _shortest(graph: Graph, start: set[str], goal: set[str]) -> list[str]:
    came: dict[str, str | None] = dict.fromkeys(sorted(start))
    queue = list(came)
    for value in queue:
        if value in goal:
            trail: list[str] = []
            step: str | None = value
            while step is not None:
                trail.append(step)
                step = came[step]
            return trail[::-1]
        for node in graph.consumers.get(value, []):
            for name in node.output:
                if name and name not in came:
                    came[name] = value
                    queue.append(name)
    return []


def differentiable(graph: Graph, value: str) -> bool:
    """Whether a gradient with respect to the value makes sense: floating point, not integer or boolean."""
    return graph.dtype(value) in FLOATS
