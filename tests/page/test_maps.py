"""Maps, probabilities and statistics of the page's JavaScript against Python's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcam.explain.batch_maps import PictureMap
from onnxcam.explain.maps import visible_parts
from onnxcam.explain.statistics import describe
from onnxcam.graph.window import Window
from onnxcam.image import Geometry
from onnxcam.targets.readout import KINDS, Readout
from tests.support.javascript import Node, array, encode

# picture, resized, offset, input: whole, cropped, letterboxed, small in large, large in small, thin
GEOMETRIES = [
    Geometry((60, 80), (64, 64), (0, 0), (64, 64)),
    Geometry((60, 80), (64, 85), (0, -11), (64, 64)),
    Geometry((90, 50), (64, 36), (0, 14), (64, 64)),
    Geometry((3, 200), (64, 4266), (0, -2101), (64, 64)),
    Geometry((300, 7), (40, 40), (5, -9), (48, 24)),
    Geometry((20, 20), (64, 64), (-70, 0), (64, 64)),
    Geometry((2, 2), (640, 640), (-300, -300), (8, 8)),
]
WINDOWS: list[dict[str, Any] | None] = [
    None,
    {"height": [8, 40], "width": [4, 60]},
    {"height": [-10, 80], "width": [50, 3]},
    {"height": [0, 64], "width": [0, 64], "transposed": True},
    {"height": [20.2, 20.4], "width": [0, 30]},
]


def test_maps_lie_on_the_picture_where_python_puts_them(node: Node) -> None:
    rng = np.random.default_rng(0)
    cases, want = [], []
    for geometry in GEOMETRIES:
        for entry in WINDOWS:
            for size in ((7, 7), (1, 5), (14, 9)):
                raw = np.maximum(rng.normal(size=size), 0).astype(np.float32)
                windows = [] if entry is None else [Window.of(entry)]
                visible = visible_parts(geometry, windows)
                marked = visible if windows else None
                heatmap = PictureMap([raw], "minmax", geometry.input_size, "mean", windows, geometry, marked)()
                want.append((heatmap, visible))
                names = dict(zip(("picture", "resized", "offset", "input"), geometry, strict=True))
                cases.append(
                    {"action": "heatmap", "map": encode(raw), "size": size, "window": entry, "geometry": names}
                )
    some = 0
    for case, result, (heatmap, visible) in zip(cases, node.run(cases), want, strict=True):
        actual = array(result["heatmap"]).reshape(heatmap.shape)
        np.testing.assert_allclose(actual, heatmap, rtol=0, atol=2e-6, err_msg=str(case["window"]))
        some += heatmap.max() > 0.9
        height, width = heatmap.shape
        box = result["visible"]
        if visible is None:
            assert box is None
        elif visible:
            assert box == list(visible[0])
        else:
            assert box == [0, 0, 0, 0]
        assert height and width
    assert some > 30


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_and_the_best_classes(node: Node, kind: str) -> None:
    rng = np.random.default_rng(2)
    columns = 1 if kind in ("binary_logit", "regression") else 11
    size = {"binary_logit": 2, "regression": 1}.get(kind, columns)
    readout = Readout("scores", kind, size)
    rows = [scale * rng.normal(size=columns).astype(np.float32) for scale in (1, 1, 30, 1000)]
    rows += [np.zeros(columns, np.float32), np.full(columns, -3.5, np.float32)]
    rows = [-np.abs(row) if kind == "probabilities" else row for row in rows]
    results = node.run([{"action": "readout", "scores": encode(row), "kind": kind, "count": size} for row in rows])
    for row, result in zip(rows, results, strict=True):
        p = readout.probabilities(row[None])[0]
        np.testing.assert_allclose(array(result["p"]), p, rtol=1e-6, atol=1e-12)
        assert result["top"] == int(readout.top1(row[None])[0])
        assert result["best"] == np.argsort(-p, kind="stable").tolist()


def test_statistics(node: Node) -> None:
    rng = np.random.default_rng(3)
    maps = [
        rng.random(size).astype(np.float32) ** 4 for size in ((60, 80), (32, 32), (5, 7), (1, 1), (100, 33), (256, 64))
    ]
    y, x = np.mgrid[:70, :90]
    blobs = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / 60) for a, b in ((10, 10), (50, 70), (60, 8))]
    maps += [np.max(blobs, axis=0).astype(np.float32), np.zeros((9, 9), np.float32), np.eye(40, dtype=np.float32)]
    results = node.run([{"action": "statistics", "map": encode(one), "size": one.shape} for one in maps])
    for one, actual in zip(maps, results, strict=True):
        want = describe(one)
        assert actual.keys() == want.keys()
        for name, value in want.items():
            assert actual[name] == (value if value is None else pytest.approx(value, rel=2e-5, abs=2e-6)), name
    assert results[-3]["peaks"] == 3
