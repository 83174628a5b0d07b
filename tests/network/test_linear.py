"""Our own analysis of a graph grows with the number of its nodes, whatever their pattern; in steps, not in seconds.

A step is a call in Python code, of Python or of C: the same on every machine. In soaks graphs have 100,000 nodes.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import onnx
import pytest

import onnxcam
from onnxcam.graph.coverage import covering
from onnxcam.graph.normalize import prepare
from onnxcam.network.network import survey
from tests.support.large_graphs import PATTERNS, chain, diamonds

# what a normal run takes: those in which most searches once were quadratic
SAMPLE = (
    "diamonds", "residual_blocks", "sum_of_many", "sums_of_many", "many_short_branches", "ladder", "pads",
    "nested_branches",
)  # fmt: skip
# steps for four times the nodes, relative to those before: 4 where they grow with the nodes, 16 with their square
MOST = 4.4


def steps(work: Callable[[onnx.ModelProto], Any], model: onnx.ModelProto) -> int:
    count = 0

    def hook(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += 1

    before = sys.getprofile()
    gc.disable()  # collections come at times of their own
    sys.setprofile(hook)
    try:
        work(model)
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


def augment(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnxcam.augment(model, probe=False)


@pytest.mark.sample(1)
@pytest.mark.parametrize("pattern", SAMPLE)
def test_steps_grow_with_the_nodes(pattern: str) -> None:
    few, many = (steps(augment, PATTERNS[pattern](count)) for count in (100, 400))
    assert many < MOST * few


@pytest.mark.soak
@pytest.mark.parametrize("work", [survey, augment], ids=["layers", "augment"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_steps_grow_with_the_nodes_at_length(pattern: str, work: Callable[[onnx.ModelProto], Any]) -> None:
    counts = [steps(work, PATTERNS[pattern](count)) / count for count in (1_000, 10_000, 30_000)]
    assert counts[2] < 1.1 * counts[0]


@pytest.mark.soak
@pytest.mark.parametrize("pattern", ["chain", "diamonds", "residual_blocks", "nested_skips", "sum_of_many", "branches"])
def test_a_hundred_thousand_nodes(pattern: str) -> None:
    few, many = (steps(survey, PATTERNS[pattern](count)) for count in (10_000, 100_000))
    assert many < 11 * few


def test_a_path_through_everything_is_no_recursion() -> None:
    model = chain(sys.getrecursionlimit() + 100)
    augmented = onnx.load_from_string(augment(model).SerializeToString())
    assert len(augmented.graph.node) > len(model.graph.node)


def test_coverage_of_more_paths_than_can_be_counted() -> None:
    """2^500 paths, of which each passes every join."""
    graph = prepare(diamonds(1000))
    joins = {node.output[0] for node in graph.nodes if node.op_type == "Add"}
    sides = {node.output[0] for node in graph.nodes if node.op_type == "Tanh"}
    passed = covering(graph, "x", "logits")
    assert joins <= passed and not sides & passed
