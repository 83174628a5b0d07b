"""Maximised pictures beside real ones: what reaches more, and whether it takes the same path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from onnxcam import Explainer, inside
from onnxcam.inside.natural import Comparison, PathLayer, _correlation, _ranks
from tests.inside.graphs import text


class TestRealPictures:
    """Of a filter that is a vertical edge, beside pictures that have one or not."""

    MODEL = text(
        """(float[N,1,16,16] input) => (float[N,2] logits) {
        a = Conv<pads = [1, 1, 1, 1]>(input, w)  r = Relu(a)  b = Conv<pads = [1, 1, 1, 1]>(r, v)
        p = GlobalAveragePool(b)  logits = Flatten(p) }""",
        w=np.stack([np.tile([-1.0, 0, 1], (3, 1)), np.tile([[-1.0], [0], [1]], (1, 3)), -np.ones((3, 3)),
                    np.ones((3, 3))])[:, None].astype(np.float32),
        v=np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype(np.float32),
    )  # fmt: skip
    SPEC: ClassVar[dict[str, Any]] = {"color": "L", "scale": 1 / 255, "mean": [0.0], "std": [1.0],
            "resize": {"mode": "stretch", "size": [16, 16], "interpolation": "nearest"}}  # fmt: skip

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name, (x, y, side) in {"edge": (20, 8, 4), "small": (4, 20, 2), "dark": (0, 0, 0)}.items():
            pixels = np.zeros((32, 32), np.uint8)
            pixels[y : y + 2 * side, x : x + 2 * side] = 250
            cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        (tmp_path / "broken.png").write_bytes(b"no picture")
        return tmp_path

    def test_the_best_comes_first_with_the_part_that_is_seen(self, folder: Path) -> None:
        explainer = Explainer(self.MODEL, preprocess=self.SPEC, probe=False)
        pictures = [folder / f"{name}.png" for name in ("dark", "small", "edge", "broken")]
        result = inside.maximize(explainer, layer="r", channel=0, steps=20, pictures=pictures)
        assert result.comparison is not None
        assert result.natural is not None
        assert [entry.name for entry in result.comparison.best] == ["edge.png", "small.png", "dark.png"]
        pixels = cv2.imread(str(folder / "edge.png"), cv2.IMREAD_GRAYSCALE)[::2, ::2].astype(np.float32) / 255
        padded = np.pad(pixels, 1)
        edge = sum(padded[k : k + 16, 2:] - padded[k : k + 16, :-2] for k in range(3))
        assert result.natural.value == pytest.approx(np.maximum(edge, 0).mean(), rel=1e-4)
        # the field of 3 x 3 cells is 6 x 6 pixels of the picture; the middle column of the filter is 0
        assert result.natural.part is not None
        x0, y0, x1, y1 = result.natural.part
        assert (x1 - x0, y1 - y0) == (6, 6)
        assert x0 < 20 < x1
        assert 8 <= y0 < y1 <= 16
        assert result.reached > result.natural.value
        assert [warning for warning in result.warnings if "broken" in warning]
        assert result.sheet().ndim == 3

    def test_files_are_the_picture_itself_and_a_sheet(self, folder: Path) -> None:
        explainer = Explainer(self.MODEL, preprocess=self.SPEC, probe=False)
        result = inside.maximize(explainer, layer="r", channel=1, steps=3, pictures=[folder / "edge.png"])
        files = result.save(folder)
        assert files == {"picture": "maximize_r_1.png", "sheet": "maximize_r_1_real.png"}
        pixels = cv2.imread(str(folder / files["picture"]), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(pixels[..., None], result.picture)
        json.dumps(result.describe())


def test_rank_correlations_are_spearmans() -> None:
    # ranks 0, 1.5, 1.5, 3, 4 and 1, 0, 2, 3.5, 3.5: sums of squares 9.5 each, of products 7.5
    a, b = _ranks(np.array([-5.0, 2, 2, 7, 30])), _ranks(np.array([1.0, 0, 3, 9, 9]))
    assert a.tolist() == [0, 1.5, 1.5, 3, 4]
    assert b.tolist() == [1, 0, 2, 3.5, 3.5]
    assert _correlation(a, b) == pytest.approx(7.5 / 9.5)
    assert _correlation(a, _ranks(np.ones(5))) == 0.0


def test_another_path_is_doubted() -> None:
    usual = [PathLayer(f"l{k}", 0.6, 0.8, 0.3) for k in range(3)]
    strange = [PathLayer(f"s{k}", -0.2, 0.8, 0.3 + k / 10) for k in range(4)]
    assert Comparison(path=usual).doubt is None
    assert Comparison(path=[]).doubt is None
    assert Comparison(path=[PathLayer("l", -1.0, 0.5, None)]).doubt is None
    doubt = Comparison(path=[*usual, *strange]).doubt
    assert doubt is not None
    assert "in 4 of 7 layers" in doubt
    assert "'s3'" in doubt


def test_a_network_that_is_fooled_takes_another_path() -> None:
    """As in the source: what is no photograph is told apart, and another circuit answers with a picture of its own."""
    rng = np.random.default_rng(0)
    natural = rng.uniform(0.3, 0.7, (6, 1, 1)) + np.zeros((6, 16, 16))  # flat pictures count as photographs here
    vertical = np.tile([-1.0, 0, 1], (3, 1))
    w = np.concatenate([
        np.stack([np.ones((3, 3)) / 9 * k for k in (1.0, 0.9, 0.8, 0.7)]),  # bright
        np.stack([vertical * k for k in (2.0, 2.2, 2.4, 2.6)]),  # only where there are edges
    ])[:, None].astype(np.float32)  # fmt: skip
    v = np.zeros((2, 8, 1, 1), np.float32)
    v[0, :4], v[0, 4:], v[1] = 0.05, 3.0, 0.1
    model = text(
        """(float[N,1,16,16] input) => (float[N,2] logits) {
        a = Conv<pads = [1, 1, 1, 1]>(input, w)  r = Relu(a)  b = Conv(r, v)
        p = GlobalAveragePool(b)  logits = Flatten(p) }""",
        w=w,
        v=v,
    )
    spec = {"color": "L", "scale": 1 / 255, "mean": [0.0], "std": [1.0], "resize": None}
    result = inside.maximize(
        Explainer(model, preprocess=spec, probe=False), target=0, steps=60, jitter=0,
        pictures=[(picture * 255).astype(np.uint8) for picture in natural],
    )  # fmt: skip
    assert result.comparison is not None
    assert result.comparison.doubt in result.warnings
    assert "another path" in (result.comparison.doubt or "")
