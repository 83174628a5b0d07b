"""The pass behind the sweep: addition broadcasts, so what was expanded only to be added need not be."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnxcam.graph.builder import Builder


def remove_expansions(op: Builder, first: int, sums: Collection[str], results: Sequence[str]) -> None:
    """Add what was expanded as it was before, and remove each Expand that nothing reads any more.

    Arguments:
        op: the builder with the nodes of a sweep.
        first: the sweep's first node.
        sums: values in which the sweep added up the cotangents of a value.
        results: values that the sweep returns.
    """
    sources = {node.output[0]: node.input[0] for node in op.nodes if node.op_type == "Expand"}
    for node in op.nodes[first:]:
        full = [name for name in node.input if name not in sources]
        if node.output[0] in sums and full and len(full) < len(node.input):  # one summand has to have the full size
            expanded = [sources[name] for name in node.input if name in sources]
            del node.input[:]
            node.input.extend([*full, *expanded])
    read = {name for node in op.nodes for name in node.input}.union(results)
    op.nodes[first:] = [node for node in op.nodes[first:] if node.op_type != "Expand" or node.output[0] in read]
