"""The best classes of a row are those of a full stable sort, whatever ties there are."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcam.targets.classes import best_classes


@pytest.mark.parametrize("levels", [2, 3, 40, 10**9])
@pytest.mark.parametrize("classes", [1, 2, 5, 6, 50])
def test_the_best_are_those_of_a_full_sort(levels: int, classes: int) -> None:
    rng = np.random.default_rng(levels + classes)
    for _ in range(50):
        row = (rng.integers(0, levels, classes) / levels).astype(np.float32)
        for count in (0, 1, 5, classes, classes + 3):
            assert best_classes(row, count).tolist() == np.argsort(-row, kind="stable")[:count].tolist()


@pytest.mark.parametrize("row", [[np.nan] * 6, [0.1, np.nan, 0.3, 0.2, 0.1, 0.0], [np.inf, 0, -np.inf, 1, np.inf, 2]])
def test_numbers_that_are_not_finite_are_sorted_as_before(row: list[float]) -> None:
    values = np.array(row, np.float32)
    assert best_classes(values, 3).tolist() == np.argsort(-values, kind="stable")[:3].tolist()
