"""`check` on small files of the kinds that people bring: it passes, refuses, or says what it cannot compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcam.diagnose import gradients
from onnxcam.errors import ModelError

CASES = Path(__file__).parent.parent / "cases"
SEVERAL_CANDIDATES = {"age_and_gender", "logits_and_embedding"}


@pytest.mark.sample(5)
@pytest.mark.parametrize("path", sorted(CASES.glob("*.onnx")), ids=lambda path: path.stem)
def test_check_says_what_is_right_and_what_is_not(path: Path) -> None:
    if path.stem in SEVERAL_CANDIDATES:
        with pytest.raises(ModelError, match="several outputs"):
            gradients.check(path, samples=2)
        return
    report = gradients.check(path, samples=2)
    assert not report.failed
    if path.stem == "five_crops":  # its rows are crops, drawn where the graph says
        assert any(f.name.startswith("place") and f.status == "unsure" for f in report.findings)
        assert any(f.status == "unsure" and "10 rows for 2 pictures" in f.detail for f in report.findings)
    else:
        assert any(f.name.startswith("gradients") and f.status == "ok" for f in report.findings)
