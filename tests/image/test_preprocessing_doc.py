"""The golden vectors of docs/reference/preprocessing.md, which other languages are checked with, hold for this code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from onnxcam.image import PRESETS, Preprocess
from onnxcam.image.preprocess import ANCHORS, COLORS, MODES
from onnxcam.image.resample import INTERPOLATIONS

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "preprocessing.md").read_text(encoding="utf-8")
VECTORS = re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]


def test_there_are_three():
    assert len(VECTORS) == 3


@pytest.mark.parametrize("section", VECTORS, ids=lambda section: section.splitlines()[0])
def test_golden_vector(section):
    height, width = map(int, re.search(r"Picture: height (\d+), width (\d+)", section).groups())
    spec = json.loads(re.search(r"```json\n(.*?)```", section, re.DOTALL).group(1))
    y, x, c = np.mgrid[:height, :width, :3]
    picture = ((7 * y + 13 * x + 29 * c) % 256).astype(np.uint8)
    tensor = Preprocess.from_dict(spec).apply(picture)[0][0]
    rows = re.findall(r"^\| (\[.*?\]|shape|sum) \| (.*?) \|$", section, flags=re.MULTILINE)
    assert len(rows) == 8
    for what, value in rows:
        if what == "shape":
            assert list(tensor.shape) == json.loads(value)
        elif what == "sum":
            np.testing.assert_allclose(tensor.sum(dtype=np.float64), float(value), rtol=1e-5)
        else:
            np.testing.assert_allclose(tensor[tuple(json.loads(what))], float(value), atol=1e-5)


@pytest.mark.parametrize("name", [*PRESETS, *COLORS, *MODES, *INTERPOLATIONS, *ANCHORS])
def test_every_choice_is_documented(name):
    assert f"`{name}`" in TEXT
