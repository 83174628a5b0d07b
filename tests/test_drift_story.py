"""The drift story at its smallest: silent on new crops, and it speaks once every picture has a frame."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def story():
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("drift_story", ROOT / "benchmarks" / "drift_story.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_corruptions_leave_the_rest_as_it_was(story) -> None:
    pixels = np.full((story.SIDE, story.SIDE, 3), 90, np.uint8)
    marked, framed = story.watermark(pixels), story.frame(pixels)
    changed = (marked != pixels).any(2)
    assert not changed[: story.SIDE // 2].any() and not changed[:, : story.SIDE // 2].any() and changed.mean() > 0.05
    assert not (framed != pixels)[36:-36, 36:-36].any() and (framed[:36] != 90).all()


@pytest.mark.slow
def test_silent_before_and_speaks_after(story, tmp_path: Path) -> None:
    results = story.tell(tmp_path, records=500, names=("unchanged", "frame"))
    assert results["unchanged"]["verdict"] == "ok"
    assert results["frame"]["verdict"] == "drift"
    assert {"map", "attention.border"} <= results["frame"]["moved"].keys()
    page = (tmp_path / "frame.html").read_text(encoding="utf-8")
    assert re.search(r'src="data:image/(png|jpeg);base64,', page) and "change" in page
