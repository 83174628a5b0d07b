"""D-RISE by hand: a detector of two candidates whose scores are brightnesses of known places."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcam.errors import InputError
from onnxcam.evaluation import drise
from onnxcam.targets.tasks import Detect, Slab

SIZE = (32, 48)
PLACES = (slice(4, 12), slice(6, 16)), (slice(18, 28), slice(30, 44))
BOXES = np.array([[6, 4, 16, 12], [30, 18, 44, 28]], np.float32)
TASK = Detect(Slab(0, 4, 6), Slab(4, 2, 6), 6, 2, 2)


def run(pictures: np.ndarray) -> np.ndarray:
    """Each candidate's score of its class is the brightness of its own place."""
    rows = []
    for picture in pictures:
        bright = [float(picture[0][place].mean()) for place in PLACES]
        rows.append(np.concatenate([np.r_[box, p] for box, p in zip(BOXES, np.diag(bright), strict=True)]))
    return np.array(rows, np.float32)


def test_each_object_is_explained_by_its_own_place() -> None:
    picture = np.ones((3, *SIZE), np.float32)
    objects = drise.references(TASK, run(picture[None])[0], [0, 1], SIZE)
    maps = drise.saliency(
        run, picture, lambda row: drise.similarity(TASK, row, objects, SIZE), count=600, cells=8, rows=50
    )
    for place, heatmap in zip(PLACES, maps, strict=True):
        inside = np.zeros(SIZE, bool)
        inside[place] = True
        assert inside[np.unravel_index(heatmap.argmax(), SIZE)]
        assert heatmap[inside].mean() > 5 * abs(heatmap[~inside].mean())


def test_similarity_by_hand() -> None:
    row = np.array([0, 0, 10, 10, 0.6, 0.2, 5, 0, 15, 10, 0.1, 0.9], np.float32)
    reference = drise.Reference((0.0, 0.0, 10.0, 10.0), np.array([1.0, 0.0]))
    p = np.array([[0.6, 0.2], [0.1, 0.9]])
    cosine = p[:, 0] / np.linalg.norm(p, axis=1)
    by_candidate = np.array([1.0, 50 / 150]) * cosine * np.array([0.6, 0.9])
    assert drise.similarity(TASK, row, [reference], SIZE)[0] == pytest.approx(by_candidate.max())


def test_objectness_is_the_files_and_an_index_is_one_class() -> None:
    with_objectness = Detect(Slab(0, 4, 7), Slab(5, 2, 7), 7, 2, 1, objectness=Slab(4, 1, 7))
    row = np.array([0, 0, 10, 10, 0.5, 0.8, 0.0], np.float32)
    (reference,) = drise.references(with_objectness, row, [0], SIZE)
    assert drise.similarity(with_objectness, row, [reference], SIZE)[0] == pytest.approx(0.5)
    named = Detect(Slab(0, 4, 6), Slab(4, 1, 6), 6, 9, None, labels=Slab(5, 1, 6), overlapping=False)
    row = np.array([0, 0, 10, 10, 0.7, 3], np.float32)
    (reference,) = drise.references(named, row, [0], SIZE)
    assert drise.similarity(named, row, [reference], SIZE)[0] == pytest.approx(0.7)
    assert drise.similarity(named, np.array([0, 0, 10, 10, 0.7, 4], np.float32), [reference], SIZE)[0] == 0
    assert drise.similarity(named, np.zeros(0, np.float32), [reference], SIZE)[0] == 0


def test_masks_keep_half_and_are_smooth() -> None:
    masks = np.stack(list(drise.masks(np.random.default_rng(0), 400, SIZE, 8)))
    assert masks.shape == (400, *SIZE) and masks.min() >= 0 and masks.max() <= 1
    assert abs(masks.mean() - 0.5) < 0.02
    assert np.abs(np.diff(masks, axis=1)).max() <= 1.0 / 4 + 1e-5  # a cell is four rows high
    again = np.stack(list(drise.masks(np.random.default_rng(0), 400, SIZE, 8)))
    np.testing.assert_array_equal(masks, again)


def test_masks_that_say_nothing_leave_nothing() -> None:
    picture = np.ones((3, *SIZE), np.float32)
    maps = drise.saliency(run, picture, lambda row: np.ones(1), count=64)
    assert np.abs(maps).max() < 1e-6


@pytest.mark.parametrize("options", [{"count": 0}, {"keep": 1.0}, {"cells": 0}])
def test_refused_options(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected at least one"):
        drise.saliency(run, np.ones((3, *SIZE), np.float32), lambda row: np.ones(1), **options)  # type: ignore[arg-type]
