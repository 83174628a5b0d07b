"""What detectors select may be nothing: gradients of empty selections are zeros of the data's shape, in every rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxcam
from tests.autodiff.harness import build, normal
from tests.support.runtime import run


def none(*shape: int, dtype: type = np.int64) -> np.ndarray:
    """Indices of nothing."""
    return np.zeros(shape, dtype)


BOXES = normal(5, 3)
REGIONS = {"x": normal(1, 2, 4, 4), "r": none(0, 4, dtype=np.float32), "b": none(0)}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Gather": ("y = Gather<axis=0>(x, i)", {"x": BOXES, "i": none(0)}),
    "Gather of columns": ("y = Gather<axis=1>(x, i)", {"x": BOXES, "i": none(0)}),
    "Gather by a table": ("y = Gather<axis=0>(x, i)", {"x": BOXES, "i": none(0, 2)}),
    "Gather from no rows": ("y = Gather<axis=1>(x, i)", {"x": normal(0, 3), "i": np.array([0, 2, 1])}),
    "Gather from no rows by a table": (
        "y = Gather<axis=1>(x, i)",
        {"x": normal(0, 3), "i": np.array([[0, 2], [1, 1]])},
    ),
    "Gather of one column from no rows": ("y = Gather<axis=1>(x, i)", {"x": normal(0, 3), "i": np.asarray(1)}),
    "GatherElements": ("y = GatherElements<axis=0>(x, i)", {"x": BOXES, "i": none(0, 3)}),
    "GatherND": ("y = GatherND(x, i)", {"x": BOXES, "i": none(0, 1)}),
    "ScatterND": ("y = ScatterND(x, i, u)", {"x": BOXES, "i": none(0, 1), "u": normal(0, 3)}),
    "ScatterElements": ("y = ScatterElements<axis=0>(x, i, u)", {"x": BOXES, "i": none(0, 3), "u": normal(0, 3)}),
    "TopK": ("y, w = TopK<axis=0>(x, k)", {"x": normal(5), "k": np.array([0])}),
    "TopK of nothing": ("y, w = TopK<axis=0>(x, k)", {"x": normal(0), "k": np.array([0])}),
    "TopK of no rows": ("y, w = TopK<axis=1>(x, k)", {"x": normal(0, 5), "k": np.array([2])}),
    "Compress": ("y = Compress<axis=0>(x, c)", {"x": BOXES, "c": np.zeros(5, bool)}),
    "Compress of a row": ("y = Compress(x, c)", {"x": BOXES, "c": np.zeros(2, bool)}),
    "Concat": ("y = Concat<axis=0>(x, u)", {"x": BOXES, "u": normal(0, 3)}),
    "Split": ("w, z = Split<axis=0>(x, s) a = Abs(w) y = Concat<axis=0>(a, z)", {"x": BOXES, "s": np.array([0, 5])}),
    "Tile": ("y = Tile(x, r)", {"x": normal(0, 3), "r": np.array([2, 2])}),
    "Softmax": ("y = Softmax<axis=1>(x)", {"x": normal(0, 3)}),
    "Gemm": ("y = Gemm(x, w, b)", {"x": normal(0, 3), "w": normal(3, 4), "b": normal(4)}),
    "ReduceMax": ("y = ReduceMax<keepdims=1>(x, a)", {"x": normal(0, 3), "a": np.array([1])}),
    "CumSum": ("y = CumSum(x, a)", {"x": normal(0, 3), "a": np.asarray(0)}),
    "RoiAlign": ("y = RoiAlign<output_height=2, output_width=2, sampling_ratio=2>(x, r, b)", REGIONS),
    "RoiAlign by size": ("y = RoiAlign<output_height=2, output_width=2>(x, r, b)", REGIONS),
    "MaxRoiPool": ("y = MaxRoiPool<pooled_shape=[2, 2]>(x, r)", {"x": REGIONS["x"], "r": normal(0, 5)}),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_selected(case: str) -> None:
    body, feeds = CASES[case]
    model = build(body, feeds, free="all")
    y = run(model, feeds)["y"]
    # so that a gradient of something elsewhere is not asked for
    cotangent = np.ones(y.shape, np.float32)
    gradient = run(onnxcam.gradient(model, "y", ["x"]), {**feeds, "cotangent.y": cotangent}, outputs=["grad.x"])[
        "grad.x"
    ]
    assert gradient.shape == feeds["x"].shape
    operators = {
        "ScatterND",
        "ScatterElements",
        "Concat",
        "Split",
    }  # where the data passes, and only the selection is empty
    if case in operators:
        np.testing.assert_array_equal(np.abs(gradient), np.sign(np.abs(feeds["x"])))
    else:
        assert not gradient.any()


@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.9, 9.0])
def test_boxes_above_a_threshold_after_non_maximum_suppression(threshold: float) -> None:
    """As exporters write a detector's end: of all, some or no candidates the scores' gradients go where they lie."""
    body = (
        "p = Sigmoid(x) g = Greater(p, t) n = NonZero(g) w = Transpose(n) s = GatherND(p, w) b = GatherND(boxes, w) "
        "bb = Unsqueeze(b, zero) ss = Unsqueeze(s, both) k = NonMaxSuppression(bb, ss, many, iou) "
        "j = Gather<axis=1>(k, last) c = Gather<axis=0>(s, j) q = Shape(c) m = Min(q, three) y, o = TopK(c, m)"
    )
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (30, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (30, 2))], axis=1).astype(np.float32)
    constants = {
        "t": np.float32(threshold),
        "boxes": boxes,
        "zero": np.array([0]),
        "both": np.array([0, 1]),
        "many": np.array([100]),
        "iou": np.float32([0.4]),
        "last": np.asarray(2),
        "three": np.array([3]),
    }
    x = normal(30)
    model = build(body, {"x": x}, constants, free="all")
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    order = [int(k) for k in np.argsort(-p) if p[k] > np.float32(threshold)]
    best: list[int] = []
    for k in order:
        if all(_iou(boxes[k], boxes[other]) <= 0.4 for other in best):
            best.append(k)
    best = best[:3]
    cotangent = normal(len(best))
    gradient = run(onnxcam.gradient(model, "y", ["x"]), {"x": x, "cotangent.y": cotangent})
    np.testing.assert_allclose(gradient["y"], p[best], rtol=1e-5)
    expected = np.zeros(30)
    expected[best] = cotangent * p[best] * (1 - p[best])
    np.testing.assert_allclose(gradient["grad.x"], expected, atol=1e-6)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    size = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    shared = float(size.prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared)
