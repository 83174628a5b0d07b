"""What `Explanation` writes and shows."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import onnxcam
from onnxcam import Explainer
from onnxcam.errors import OutputError
from tests.support.batches import CPU, explainable, picture


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(explainable(), providers=CPU)


def test_files_written(explainer: Explainer, tmp_path: Path) -> None:
    explanation = explainer.explain(picture(), top=3)
    files = explanation.save(tmp_path / "new" / "folder")
    written = {str(p.relative_to(tmp_path / "new" / "folder")) for p in (tmp_path / "new").rglob("*") if p.is_file()}
    tops = {f"top_predictions/gradcam_top{k}_{s}.png" for k, s in enumerate(stems(explanation), start=1)}
    fixed = {"input.png", "gradcam_grayscale.png", "gradcam_heatmap.png", "gradcam_overlay.png", "panel.png"}
    assert written == set(files.values()) == fixed | tops | {"explanation.json"}
    record = json.loads((tmp_path / "new" / "folder" / "explanation.json").read_text("utf-8"))
    assert set(record["files"].values()) == written - {"explanation.json"}
    assert record["target"] == {
        "index": explanation.target,
        "label": explanation.label,
        "probability": explanation.probability,
    }
    assert record["model"]["source"]["name"] == "tiny"
    pixels = np.asarray(Image.open(tmp_path / "new" / "folder" / "input.png"))
    assert np.array_equal(pixels, explanation.picture)
    over = np.asarray(Image.open(tmp_path / "new" / "folder" / "gradcam_overlay.png"))
    assert np.array_equal(over, explanation.overlay())
    single = explainer.explain(picture(), 1).save(tmp_path / "single")
    assert not (tmp_path / "single" / "top_predictions").exists() and "top1" not in single


def stems(explanation: onnxcam.Explanation) -> list[str]:
    slugs = {"cat": "cat", "tiger cat, tiger": "tiger_cat", "crane": "crane", "hen": "hen"}
    return [slugs[m.label] for m in explanation.maps]


def test_a_file_in_place_of_the_folder(explainer: Explainer, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="cannot be made"):
        explainer.explain(picture()).save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
    (tmp_path / "folder" / "panel.png").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"panel\.png"):
        explainer.explain(picture()).save(tmp_path / "folder")
    assert not (tmp_path / "folder" / "explanation.json").exists()
    assert not [p for p in (tmp_path / "folder").iterdir() if "tmp" in p.name]


def test_a_notebook_shows_the_panel(explainer: Explainer) -> None:
    explanation = explainer.explain(picture())
    drawn = np.asarray(Image.open(io.BytesIO(explanation._repr_png_())))
    assert np.array_equal(drawn, explanation.panel())
