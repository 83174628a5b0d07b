"""`onnxcam explain --truth … --page`: what the page and the summary say of right and wrong predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxcam import image
from tests.cli.conftest import LABELS, Run
from tests.image.pictures import noise


@pytest.fixture
def labelled(tmp_path: Path, run: Run, ready: Path) -> tuple[Path, dict[str, int]]:
    """Four pictures and the classes that the model predicts for them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(4):
        image.write_png(folder / f"{seed}.png", noise(40, 40, seed=seed))
    summary = run("explain", ready, folder, "-o", tmp_path / "first", "--json").json()
    return folder, {Path(entry["name"]).name: entry["index"] for entry in summary["pictures"]}


def test_right_against_wrong(labelled: tuple[Path, dict[str, int]], run: Run, ready: Path, tmp_path: Path) -> None:
    folder, predicted = labelled
    table = tmp_path / "truth.csv"
    # the first is right, the second wrong, the third is not in the table
    names = sorted(predicted)
    wrong = (predicted[names[1]] + 1) % len(LABELS)
    rows = [f"{names[0]},{predicted[names[0]]}", f"{names[1]},{wrong}", f"{names[3]},{predicted[names[3]]}"]
    table.write_text("\n".join(rows))
    out = tmp_path / "out"
    result = run("explain", ready, folder, "-o", out, "--truth", table, "--page")
    assert result.code == 0, result.err
    assert "1 of 4 pictures have no class" in result.err and "2.png" in result.err
    summary = json.loads((out / "analysis_summary.json").read_text())
    assert (summary["counts"]["right"], summary["counts"]["wrong"]) == (2, 1)
    assert [entry["truth"] for entry in summary["pictures"]] == [predicted[names[0]], wrong, None, predicted[names[3]]]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count('<li class="card') == 4 and "2 of 3" in page
    assert page.count("✗ wrong</span>") == 1 and f"true: {LABELS[wrong]}" in page
    for name in names:
        stem = Path(name).stem
        assert f'href="{stem}/panel.png"' in page and (out / stem / "panel.png").exists()


def test_by_folder(labelled: tuple[Path, dict[str, int]], run: Run, ready: Path, tmp_path: Path) -> None:
    folder, predicted = labelled
    for name, index in predicted.items():
        (folder / str(index)).mkdir(exist_ok=True)
        (folder / name).rename(folder / str(index) / name)
    out = tmp_path / "out"
    summary = run("explain", ready, folder, "-o", out, "--truth", "by-folder", "--page", "--json").json()
    assert (summary["counts"]["right"], summary["counts"]["wrong"]) == (4, 0)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "4 of 4" in page
    for name, index in predicted.items():
        assert f">{index}/{name}<" in page, "names are those below the folder"


def test_a_page_without_true_classes(
    labelled: tuple[Path, dict[str, int]], run: Run, ready: Path, tmp_path: Path
) -> None:
    folder, _ = labelled
    summary = run("explain", ready, folder, "-o", tmp_path / "out", "--page", "--json").json()
    assert "right" not in summary["counts"] and "truth" not in summary["pictures"][0]
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "✗" not in page and page.count('<li class="card') == 4


@pytest.mark.parametrize(
    ("truth", "code", "part"),
    [
        ("by-folder", 2, "lie in"),
        ("missing.csv", 2, "missing.csv"),
        ("empty.csv", 2, "no rows"),
        ("other.csv", 2, "4 of 4"),
    ],
)
def test_classes_that_nothing_gives(
    labelled: tuple[Path, dict[str, int]],
    run: Run,
    ready: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    truth: str,
    code: int,
    part: str,
) -> None:
    folder, _ = labelled
    monkeypatch.chdir(tmp_path)
    Path("empty.csv").write_text("picture,class\n")
    Path("other.csv").write_text("picture,class\nelse.png,0\n")
    result = run("explain", ready, folder, "-o", tmp_path / "out", "--truth", truth, "--page")
    assert (result.code, part in result.sentence) == (code, True), result.err
    assert not list((tmp_path / "out").glob("*/*"))


def test_one_file_has_no_folders(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    result = run("explain", ready, photo, "-o", tmp_path / "out", "--truth", "by-folder")
    assert result.code == 2 and "takes one folder" in result.err
