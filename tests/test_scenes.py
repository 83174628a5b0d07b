"""Synthetic scenes and the networks trained on them: what is drawn is what the boxes and the mask say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from models import draw_scenes as scenes
from models import train_scenes
from onnxcam import image
from tests.support.scenes import FOLDER


def test_boxes_are_tight_around_what_the_mask_shows() -> None:
    for scene in scenes.scenes(3, 12):
        assert scene.picture.shape == (scenes.SIDE, scenes.SIDE, 3) and scene.picture.dtype == np.uint8
        inside = np.zeros(scene.mask.shape, bool)
        for (x0, y0, x1, y1), label in zip(scene.boxes.astype(int), scene.labels, strict=True):
            part = scene.mask[y0:y1, x0:x1] == label + 1
            assert part.any(axis=0).all() and part.any(axis=1).all()
            inside[y0:y1, x0:x1] = True
        assert not scene.mask[~inside].any()


@pytest.mark.slow
def test_a_seed_is_a_scene_and_classes_come_in_pairs() -> None:
    first, again = (list(scenes.scenes(5, 40)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.picture, other.picture)
    far = 0
    for scene in first:
        centres = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
        pairs = [(a, b) for a in range(len(centres)) for b in range(a) if scene.labels[a] == scene.labels[b]]
        far += any(np.linalg.norm(centres[a] - centres[b]) >= scenes.SIDE / 2 for a, b in pairs)
    assert far >= 12
    assert {int(label) for scene in first for label in scene.labels} == set(range(len(scenes.LABELS)))


def test_the_bundled_scenes_are_drawn_again(tmp_path: Path) -> None:
    train_scenes.pictures(tmp_path)
    assert (tmp_path / "boxes.csv").read_text() == (FOLDER / "boxes.csv").read_text()
    for path in tmp_path.glob("*.png"):
        want = image.load(FOLDER / path.name).pixels.astype(int)
        assert (
            np.abs(image.load(path).pixels.astype(int) - want).max() <= 1
        )  # one library rounds otherwise than another


@pytest.mark.slow
def test_the_bundled_networks_do_what_the_readme_says() -> None:
    detected, objects = train_scenes.judge("detector", FOLDER / "detector.onnx", 60).split(" objects")[0].split(" of ")
    assert int(detected) >= 0.95 * int(objects) > 100
    words = train_scenes.judge("segmenter", FOLDER / "segmenter.onnx", 60)
    assert float(words.split("union ")[1].split(":")[0]) >= 0.7


@pytest.mark.parametrize("name", ["detector", "segmenter"])
def test_the_files_are_small_and_say_whose_they_are(name: str) -> None:
    path = FOLDER / f"{name}.onnx"
    assert path.stat().st_size <= 300_000
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert properties["license"] == "Apache-2.0" and "triangle" in properties["names"]
    assert "/" not in properties.get("source", "")


def test_each_object_has_cells_that_answer_for_it() -> None:
    for scene in scenes.scenes(9, 20):
        owners = train_scenes.assign(scene)
        sizes = (scene.boxes[:, 2:] - scene.boxes[:, :2]).max(axis=1)
        for number, size in enumerate(sizes):
            cells = np.flatnonzero(owners == number)
            assert len(cells) and bool((cells >= 256).all()) == (size > train_scenes.SPLIT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detector", "segmenter"])
def test_training_lowers_the_loss(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    model = train_scenes.train(name, 6, pool=16)
    batch = list(scenes.scenes(1234, 16))
    loss = {"detector": train_scenes.detector_loss, "segmenter": train_scenes.segmenter_loss}[name]
    fresh = train_scenes.network(name).train()
    assert loss(model.train(), batch).item() < loss(fresh, batch).item()
    assert "step 6 of 6" in capsys.readouterr().out
