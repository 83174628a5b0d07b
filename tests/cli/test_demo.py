"""`onnxcam demo`: the claim it makes, the files it writes, and how it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxcam
from onnxcam import demo, image, models
from tests.cli.conftest import Run


def test_it_prints_the_best_five_and_where_each_map_lies(run: Run, tmp_path: Path) -> None:
    result = run("demo", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert sum("%  " in line for line in lines) == 10
    cat = next(line for line in lines if "'tiger cat'" in line)
    coffee = next(line for line in lines if "'espresso'" in line)
    assert float(cat.split("%")[0].split()[-1]) >= 90
    assert float(coffee.split("%")[1].split()[-1]) >= 80
    assert str(tmp_path / "out" / "demo.png") in lines[-1]


def test_the_files_it_names_are_the_files_there_are(run: Run, tmp_path: Path) -> None:
    result = run("demo", "-o", tmp_path, "--json").json()
    assert sorted(result["files"]) == sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert {"demo.png", "cat/gradcam_overlay.png", "cat_and_coffee/espresso/panel.png"} <= set(result["files"])
    assert "CPUExecutionProvider" in result["providers"]
    shares = [one["energy"] for one in result["pictures"][0]["maps"]]
    assert shares[0]["left"] >= 0.9 and shares[1]["right"] >= 0.8
    for share in shares:
        assert share["left"] + share["right"] == pytest.approx(1.0)


def test_the_combined_picture_shows_the_composite_and_both_overlays(tmp_path: Path) -> None:
    demo.run(tmp_path)
    drawn = image.load(tmp_path / "demo.png").pixels
    composite = image.load(models.path("cat_and_coffee.png")).pixels
    height, width = composite.shape[:2]
    cells = [drawn[16 : 16 + height, left : left + width] for left in range(16, drawn.shape[1] - width, width + 16)]
    assert len(cells) == 3
    np.testing.assert_array_equal(cells[0], composite)
    for cell, folder in zip(cells[1:], ("tiger_cat", "espresso"), strict=True):
        overlay = image.load(tmp_path / "cat_and_coffee" / folder / "gradcam_overlay.png").pixels
        np.testing.assert_array_equal(cell, overlay)
    below = drawn[16 + height :]
    for left in range(16, drawn.shape[1] - width, width + 16):
        assert below[:, left : left + width].min() < 100  # a caption


def test_energy_by_halves() -> None:
    heatmap = np.zeros((4, 8), np.float32)
    assert demo.halves(heatmap) == [0.0, 0.0]
    heatmap[1, 3], heatmap[2, 4] = 0.75, 0.25
    assert demo.halves(heatmap) == [0.75, 0.25]


def test_a_folder_that_cannot_be_written_to(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run("demo", "-o", tmp_path / "file" / "below")
    assert result.code == 1
    assert "below" in result.sentence


def test_an_output_that_is_a_file_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run("demo", "-o", tmp_path / "file").code == 2


def test_a_provider_that_is_not_there(run: Run, tmp_path: Path) -> None:
    result = run("demo", "-o", tmp_path, "--provider", "nonsense")
    assert result.code != 0 and "nonsense" in result.sentence.lower()
    assert list(tmp_path.iterdir()) == []


def test_the_numbers_are_the_public_explainers(tmp_path: Path) -> None:
    result = demo.run(tmp_path)
    e = onnxcam.Explainer(models.path(models.MODEL)).explain(models.path("cat.png"))
    assert result["pictures"][1]["maps"][0]["label"] == e.label == "tiger cat"
    assert result["pictures"][1]["predictions"][0]["probability"] == pytest.approx(e.probability, rel=1e-5)
