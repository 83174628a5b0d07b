"""`onnxcam check --pictures`: what is printed, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxcam
from onnxcam import image
from onnxcam.errors import LabelsError
from onnxcam.graph import load
from onnxcam.targets.truth import by_folder
from tests.cli.conftest import LABELS, Run
from tests.diagnose.test_preprocessing import templates
from tests.image.pictures import noise


@pytest.fixture
def sorted_photos(tmp_path: Path) -> tuple[Path, Path]:
    """A model that tells ten pictures apart, and these in a folder for each class."""
    model, pictures = templates(gain=0.3)
    path = tmp_path / "model.onnx"
    load.save(onnxcam.augment(model, preprocess="0..1"), path)
    for number, pixels in enumerate(pictures):
        folder = tmp_path / "photos" / str(number)
        folder.mkdir(parents=True)
        image.write_png(folder / "a.png", pixels)
    return path, tmp_path / "photos"


def test_the_right_one_in_use(run: Run, sorted_photos: tuple[Path, Path]) -> None:
    model, photos = sorted_photos
    result = run("check", model, "--pictures", photos, "--by-folder")
    assert (result.code, result.err) == (0, "")
    assert "10 pictures (labels from the folders), 20 preprocessings" in result.out
    assert result.out.splitlines()[2].startswith("0..1 RGB stretch (in use)")
    assert "is the one preferred" in result.out.splitlines()[-1]


def test_a_wrong_one_in_use(run: Run, sorted_photos: tuple[Path, Path]) -> None:
    model, photos = sorted_photos
    result = run("check", model, "--pictures", photos, "--by-folder", "--preprocess", "imagenet", "--json")
    assert result.code == 3 and "--preprocess 0..1" in result.sentence
    document = result.json()
    assert document["preferred"] == {"name": "0..1 RGB stretch", "preset": "0..1", "recorded": False}
    assert document["labelled"] and not document["passed"] and document["recorded"]["decided"]
    assert len(document["preprocessings"]) == 20 and document["preprocessings"][0]["accuracy"] == 1.0


def test_none_in_use(run: Run, plain: Path, photos: Path) -> None:
    result = run("check", plain, "--pictures", photos, "--limit", "2")
    assert result.code == 0 and result.out.startswith("2 pictures (no labels)")
    assert "undecided" in result.out
    # two pictures decide nothing, so nothing is preferred either
    last = result.out.strip().splitlines()[-1]
    assert last.split()[0] == "undecided" and "prefers" not in last
    document = run("check", plain, "--pictures", photos, "--limit", "2", "--json").json()
    assert document["undecided"]


def test_a_picture_that_cannot_be_read_is_named(run: Run, ready: Path, photos: Path) -> None:
    (photos / "bad.jpg").write_bytes(b"")
    result = run("check", ready, "--pictures", photos)
    assert result.code == 1 and "bad.jpg" in result.sentence and result.out.startswith("3 pictures")


def test_usage(run: Run, ready: Path, photos: Path, tmp_path: Path) -> None:
    assert run("check", ready, "--by-folder").code == 2
    (tmp_path / "empty").mkdir()
    assert "has no pictures" in run("check", ready, "--pictures", tmp_path / "empty").sentence
    assert "in the folder of its class" in run("check", ready, "--pictures", photos, "--by-folder").sentence


def test_classes_by_folder(tmp_path: Path) -> None:
    def paths(*names: str) -> list[Path]:
        return [tmp_path / name / "deeper" / "1.png" for name in names]

    assert by_folder(paths("hen", "TIGER", "3", "tiger_cat"), tmp_path, LABELS, 5) == [3, 1, 3, 1]
    assert by_folder(paths("1", "0"), tmp_path, None, 2) == [1, 0]
    assert by_folder(paths("dog", "cat", "dog"), tmp_path, None, 2) == [1, 0, 1], "numbered as Keras numbers folders"
    for names, labels, classes, words in (
        (("crane",), LABELS, 5, "'crane'.*no class"),
        (("dog", "cat"), None, 3, "'cat', 'dog'.*give --labels"),
        (("7",), None, 3, "'7'"),
        (("-1",), None, 3, "'-1'"),
    ):
        with pytest.raises(LabelsError, match=words):
            by_folder(paths(*names), tmp_path, labels, classes)


def test_noise_is_undecided(run: Run, ready: Path, tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    for number in range(9):
        image.write_png(tmp_path / "noise" / f"{number}.png", noise(40, 60, seed=number))
    document = run("check", ready, "--pictures", tmp_path / "noise", "--json").json()
    assert document["alike"] and document["passed"] and not any(verdict["decided"] for verdict in document["verdicts"])
