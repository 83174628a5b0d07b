"""Cotangents of boxes, regions, embeddings and values, computed by nodes: against NumPy on the arrays themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from scipy import special

from onnxcam.autodiff import task_seed
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph
from onnxcam.targets.tasks import Detect, Embed, Segment, Slab, Values
from tests.support.runtime import run

RNG = np.random.default_rng(3)
BEYOND = r"(?i)out of (data )?(bounds|range)"  # what ONNX Runtime says of an index
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def computed(
    columns: Any, emit: Callable[[Builder], str], feeds: dict[str, np.ndarray], *, dtype: int = FLOAT
) -> np.ndarray:
    """The cotangent that nodes compute from `flat`, `[N, columns]`, and further inputs."""
    kinds = {np.dtype(np.int64): INT64, np.dtype(np.float32): FLOAT}
    inputs = [edit.info("flat", dtype, ["N", columns])]
    inputs += [edit.info(name, kinds[a.dtype], [None, *a.shape[1:]]) for name, a in feeds.items() if name != "flat"]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([], "g", inputs, []), opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8
    )
    op = Builder(Graph(model))
    op.dtype = dtype
    result = emit(op)
    edit.add(model, op)
    model.graph.output.append(edit.info(result, dtype, ["N", columns]))
    onnx.checker.check_model(model)
    return run(model, feeds)[result]


def detector(
    activation: str | None, *, first: bool, objectness: bool, background: int | None, m: int, k: int
) -> Detect:
    """Boxes in an output of their own, then objectness and scores in another."""
    width = k + objectness
    return Detect(
        Slab(0, 4, 4, 0, not first),
        Slab(objectness, k, width, 4, first),
        4 + width,
        k,
        m,
        Slab(0, 1, width, 4, first) if objectness else None,
        activation=activation,
        background=background,
    )


@pytest.mark.sample(6)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("activation", "objectness", "background"),
    [(None, False, None), (None, True, None), ("sigmoid", False, None), ("softmax", False, 3), ("softmax", False, 0)],
)
def test_a_boxs_score_is_that_of_its_best_class(
    dynamic: bool, first: bool, activation: str | None, objectness: bool, background: int | None
) -> None:
    n, m, k = 3, 7, 4
    task = detector(activation, first=first, objectness=objectness, background=background, m=m, k=k)
    numbers = RNG.uniform(0.05, 1, (n, m, k)) if activation is None else RNG.normal(size=(n, m, k))
    numbers, certain = numbers.astype(np.float32), RNG.uniform(0.1, 1, (n, m, 1)).astype(np.float32)
    if background is not None:
        numbers[:, :, background] += 2
    table = np.concatenate([certain, numbers], axis=2) if objectness else numbers
    boxes = RNG.normal(size=(n, 4 * m)).astype(np.float32)
    flat = np.concatenate([boxes, (table.swapaxes(1, 2) if first else table).reshape(n, -1)], axis=1)

    p = {None: lambda x: x, "sigmoid": special.expit, "softmax": lambda x: special.softmax(x, axis=2)}[activation](
        numbers.astype(np.float64)
    )
    p = p * certain if objectness else p
    if background is not None:
        p[:, :, background] = -1

    def expected(row: int, box: int) -> np.ndarray:
        box = int(p[row].max(axis=1).argmax()) if box < 0 else box
        best = int(p[row, box].argmax())
        dy = np.zeros_like(table[row])
        dy[box, best + objectness] = certain[row, box, 0] if objectness else 1
        if objectness:
            dy[box, 0] = numbers[row, box, best]
        return np.concatenate([np.zeros(4 * m), (dy.T if first else dy).reshape(-1)])

    task_in_file = Detect(**{**vars(task), "candidates": None}) if dynamic else task
    columns = None if dynamic else flat.shape[1]
    for box in (np.array([-1]), np.array([5]), np.array([0, -1, 6])):
        actual = computed(
            columns,
            lambda op: task_seed.box_cotangent(op, task_in_file, "flat", "box")[0],
            {"flat": flat, "box": box.astype(np.int64)},
        )
        rows = np.stack([expected(row, int(np.resize(box, n)[row])) for row in range(n)])
        np.testing.assert_allclose(actual, rows, rtol=1e-6, atol=1e-7)
    for beyond in (m, m + 1, 1000):
        with pytest.raises(Exception, match=BEYOND):
            computed(
                columns,
                lambda op: task_seed.box_cotangent(op, task_in_file, "flat", "box")[0],
                {"flat": flat, "box": np.array([beyond])},
            )


def test_a_picture_without_candidates_has_no_gradient() -> None:
    task = Detect(Slab(0, 4, 6), Slab(4, 1, 6), 6, 9, labels=Slab(5, 1, 6), overlapping=False, one_picture=True)
    emit = lambda op: task_seed.box_cotangent(op, task, "flat", "box")[0]  # noqa: E731
    for count in (0, 3):
        flat = RNG.uniform(size=(1, 6 * count)).astype(np.float32)
        actual = computed(None, emit, {"flat": flat, "box": np.array([-1])})
        expected = np.zeros((1, 6 * count))
        if count:
            expected[0, 6 * int(flat.reshape(count, 6)[:, 4].argmax()) + 4] = 1
        np.testing.assert_array_equal(actual, expected)
    with pytest.raises(Exception, match=BEYOND):
        computed(None, emit, {"flat": np.zeros((1, 0), np.float32), "box": np.array([0])})


def covered(region: np.ndarray, h: int, w: int, size: tuple[int, int]) -> np.ndarray:
    """The cells whose centres lie in a region; the one around its middle if none does."""
    cells = np.zeros((h, w), bool)
    x0, y0, x1, y1 = region
    for i in range(h):
        for j in range(w):
            y, x = (i + 0.5) * size[0] / h, (j + 0.5) * size[1] / w
            cells[i, j] = y0 <= y < y1 and x0 <= x < x1
    if not cells.any():
        cells[int((y0 + y1) / 2 * h / size[0]), int((x0 + x1) / 2 * w / size[1])] = True
    return cells


@pytest.mark.sample(3)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("channels", "activation"), [(5, "softmax"), (5, None), (1, "sigmoid"), (1, None), (2, "sigmoid")]
)
def test_a_class_is_summed_over_a_region_or_over_its_own_cells(
    last: bool, channels: int, activation: str | None
) -> None:
    n, h, w, size = 3, 6, 8, (48, 96)
    task = Segment(channels, h, w, last, activation)
    scores = RNG.normal(size=(n, channels, h, w)) if activation else RNG.uniform(size=(n, channels, h, w))
    scores = scores.astype(np.float32)
    scores[:, 0] += 0.4  # the background is the largest
    p = task.probabilities(task.flatten(scores), size)
    members = p > 0.5 if channels == 1 else p.argmax(axis=1)[:, None] == np.arange(channels)[None, :, None, None]
    flat = task.flatten(scores).astype(np.float32)
    background = (0,) if channels > 1 else ()
    regions = {
        "none": np.zeros((1, 4)),
        "one": np.array([[10.0, 5.0, 50.0, 30.0]]),
        "own": np.array([[0, 0, 96, 48], [13, 9, 14, 10], [70.5, 20, 70.5, 30]]),
    }
    for region in regions.values():
        for target in (np.array([-1]), np.array([channels - 1]), np.resize([-1, 0, channels - 1], n)):
            actual = computed(
                flat.shape[1],
                lambda op: task_seed.region_cotangent(op, task, "flat", "target", "region", size, background),
                {"flat": flat, "target": target.astype(np.int64), "region": region.astype(np.float32)},
            )
            expected = np.zeros_like(scores)
            for row in range(n):
                x0, y0, x1, y1 = part = np.resize(region, (n, 4))[row] if len(region) > 1 else region[0]
                area, index = x1 > x0 and y1 > y0, int(np.resize(target, n)[row])
                cells = covered(part, h, w, size) if area else None
                if index < 0 and cells is not None:
                    index = int(p[row][:, cells].sum(axis=1).argmax())
                elif index < 0:
                    counts = members[row].sum(axis=(1, 2)).astype(float)
                    counts[list(background)] *= 1e-4
                    index = int(counts.argmax())
                expected[row, index] = members[row, index] if cells is None else cells
            np.testing.assert_array_equal(actual, task.flatten(expected))
    with pytest.raises(Exception, match=BEYOND):
        computed(
            flat.shape[1],
            lambda op: task_seed.region_cotangent(op, task, "flat", "target", "region", size),
            {"flat": flat, "target": np.array([channels]), "region": np.zeros((1, 4), np.float32)},
        )
    bound = computed(
        flat.shape[1],
        lambda op: task_seed.region_cotangent(op, task, "flat", channels - 1, "region", size),
        {"flat": flat, "region": np.array([[0, 0, 96, 48]], np.float32)},
    )
    whole = np.zeros_like(scores)
    whole[:, -1] = 1
    np.testing.assert_array_equal(bound, task.flatten(whole))


def test_the_cosine_of_an_embedding_has_the_gradient_of_finite_differences() -> None:
    z = RNG.normal(size=(3, 6)).astype(np.float32)
    for reference in (RNG.normal(size=(3, 6)), RNG.normal(size=(1, 6)) * 40):
        v = reference.astype(np.float32)
        actual = computed(
            6, lambda op: task_seed.cosine_cotangent(op, Embed(6), "flat", "reference"), {"flat": z, "reference": v}
        )

        def cosine(x: np.ndarray, v: np.ndarray = v) -> np.ndarray:
            w = v.astype(np.float64)
            return np.asarray((x * w).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(w, axis=1))

        for k in range(6):
            step = np.zeros((3, 6))
            step[:, k] = 1e-5
            slope = (cosine(z + step) - cosine(z - step)) / 2e-5
            np.testing.assert_allclose(actual[:, k], slope, atol=1e-6)


def test_one_of_several_values() -> None:
    task, flat = Values(("depth", "pose"), (1, 3)), RNG.normal(size=(2, 4)).astype(np.float32)
    emit = lambda op: task_seed.value_cotangent(op, task, "flat", "target")  # noqa: E731
    np.testing.assert_array_equal(computed(4, emit, {"flat": flat, "target": np.array([2])}), np.eye(4)[[2, 2]])
    np.testing.assert_array_equal(computed(4, emit, {"flat": flat, "target": np.array([3, 0])}), np.eye(4)[[3, 0]])
    for wrong in (-1, 4):  # of values none is the first choice
        with pytest.raises(Exception, match=BEYOND):
            computed(4, emit, {"flat": flat, "target": np.array([wrong])})
    bound = computed(4, lambda op: task_seed.value_cotangent(op, task, "flat", 1), {"flat": flat})
    np.testing.assert_array_equal(bound, np.eye(4)[[1, 1]])
