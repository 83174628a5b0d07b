"""Rows of a batch."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcam.errors import ModelError
from onnxcam.runtime.rows import joined


def test_rows_of_several_runs() -> None:
    parts = [np.arange(6).reshape(2, 3), np.arange(3).reshape(1, 3)]
    assert joined(parts).tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert joined(parts[:1]) is parts[0]


def test_pictures_with_different_numbers_of_boxes_are_no_batch() -> None:
    with pytest.raises(ModelError, match="12 and 30 numbers each"):
        joined([np.zeros((1, 12)), np.zeros((1, 30))])
