"""`onnxcam calibrate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import image
from onnxcam.network import manifest as manifests
from tests.cli.conftest import LABELS, RAW, Run
from tests.support import models


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and 40 pictures in folders of their classes."""
    folder = tmp_path_factory.mktemp("calibrate")
    labels = ["cat", "tiger", "crane", "hen", "dog"]
    onnx.save(onnxcam.augment(models.tiny_cnn(), labels=labels, preprocess=RAW), folder / "model.onnx")
    onnx.save(models.tiny_cnn(), folder / "plain.onnx")
    rng = np.random.default_rng(0)
    explainer = onnxcam.Explainer(folder / "model.onnx")
    for index in range(40):
        picture = rng.integers(0, 256, (32, 32, 3), np.uint8)
        scores = explainer.batch_scores(explainer.prepare(picture)[1])[0]
        name = labels[int((scores + rng.gumbel(size=5)).argmax())]
        (folder / "pictures" / name).mkdir(parents=True, exist_ok=True)
        image.write_png(folder / "pictures" / name / f"{index}.png", picture)
    return folder


def calibration(path: Path) -> dict[str, object] | None:
    manifest = manifests.read(onnx.load(path))
    assert manifest is not None
    return manifest.get("calibration")


@pytest.mark.slow
def test_text_and_file(place: Path, run: Run, tmp_path: Path) -> None:
    result = run(
        "calibrate", place / "model.onnx", place / "pictures", "--truth", "by-folder", "-o", tmp_path / "c.onnx"
    )
    assert result.code == 0, result.err
    entry = calibration(tmp_path / "c.onnx")
    assert entry is not None and entry["n"] == 40
    assert "sets of lac contain the true class of 90 % of pictures like these (95 % interval" in result.out
    assert "temperature" in result.out and "outputs calibrated float32 and prediction_set bool" in result.out
    explained = run("explain", tmp_path / "c.onnx", place / "pictures" / "cat", "-o", tmp_path / "e", "--json")
    assert explained.code == 0, explained.err
    assert run("check", tmp_path / "c.onnx", "--samples", 1).code == 0


def test_json_raps_and_an_export_of_it(place: Path, run: Run, tmp_path: Path) -> None:
    result = run(
        "calibrate", place / "model.onnx", place / "pictures", "--by-folder", "-o", tmp_path / "c.onnx", "--json",
        "--score", "raps", "--lambda", "0.1", "--k", "2", "--alpha", "0.2", "--set-temperature", "1.5", "--never-empty",
    )  # fmt: skip
    assert result.code == 0, result.err
    record = result.json()
    entry = record["calibration"]
    assert entry == calibration(tmp_path / "c.onnx") and record["failed"] == []
    expected = {"score": "raps", "lambda": 0.1, "k": 2, "alpha": 0.2, "set_temperature": 1.5, "empty": "top", "n": 40}
    assert entry | expected == entry
    exported = run("export", tmp_path / "c.onnx", "-o", tmp_path / "d.onnx", "--target", "required", "--json")
    assert exported.code == 0 and exported.json()["outputs"][-2:] == ["calibrated", "prediction_set"]


def test_a_broken_picture_is_named_and_left_out(place: Path, run: Run, tmp_path: Path) -> None:
    broken = place / "pictures" / "cat" / "broken.png"
    broken.write_bytes(b"no picture")
    try:
        result = run("calibrate", place / "model.onnx", place / "pictures", "--by-folder", "-o", tmp_path / "c.onnx")
    finally:
        broken.unlink()
    assert result.code == 1 and "broken.png" in result.err
    entry = calibration(tmp_path / "c.onnx")
    assert entry is not None and entry["n"] == 40


def test_a_plain_model_needs_a_preprocessing(place: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(["cat", "tiger", "crane", "hen", "dog"]))
    arguments = ["calibrate", place / "plain.onnx", place / "pictures", "--by-folder", "-o", tmp_path / "c.onnx"]
    arguments += ["--labels", tmp_path / "labels.txt"]
    assert run(*arguments).code == 2 and not (tmp_path / "c.onnx").exists()
    result = run(*arguments, "--preprocess", "0..1")
    assert result.code == 0, result.err
    assert calibration(tmp_path / "c.onnx") is not None


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ([], 2, "nothing says what the PICTURES show"),
        (["--by-folder", "--alpha", "0.001"], 2, "at least 999"),
        (["--by-folder", "--alpha", "7"], 2, "between 0 and 1"),
        (["--by-folder", "--score", "raps"], 2, "at least"),
        (["--by-folder", "--k", "2"], 2, "raps"),
        (["--by-folder", "--set-temperature", "warm"], 2, "--set-temperature 'warm'"),
        (["--truth", "nowhere.csv"], 2, "nowhere.csv"),
        (["--by-folder", "--kind", "regression"], 3, "regression"),
    ],
)
def test_one_sentence_and_nothing_written(
    arguments: list[str], code: int, message: str, place: Path, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "c.onnx"
    pictures = place / "pictures"
    result = run("calibrate", place / "model.onnx", pictures, "-o", out, *arguments)
    assert result.code == code and message in result.err, result.err
    assert not list(tmp_path.iterdir())


def test_folders_that_name_no_class(place: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "zebra").mkdir(parents=True)
    image.write_png(tmp_path / "pictures" / "zebra" / "1.png", np.zeros((32, 32, 3), np.uint8))
    result = run("calibrate", place / "model.onnx", tmp_path / "pictures", "--by-folder", "-o", tmp_path / "c.onnx")
    assert result.code == 2 and "zebra" in result.sentence and LABELS and not (tmp_path / "c.onnx").exists()


@pytest.mark.parametrize("way", ["file", "below a file", "a folder in the way"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    way: str, place: Path, run: Run, tmp_path: Path
) -> None:
    folder = {"file": tmp_path / "f", "below a file": tmp_path / "f" / "r"}.get(way, tmp_path / "r")
    (tmp_path / "f").write_text("")
    (tmp_path / "r" / "calibration.json").mkdir(parents=True)
    call = ["calibrate", place / "model.onnx", place / "pictures", "--by-folder", "-o", tmp_path / "c.onnx"]
    result = run(*call, "--report", folder)
    assert result.code == 1 and str(folder) in result.sentence and not (tmp_path / "c.onnx").exists()
    assert result.sentence.endswith("with --report")


def test_shares_in_percent(place: Path, run: Run, tmp_path: Path) -> None:
    call = ["calibrate", place / "model.onnx", place / "pictures", "--by-folder", "-o", tmp_path / "c.onnx", "--json"]
    result = run(*call, "--alpha", "20%", "--split", "50%", "--score", "raps")
    assert result.code == 0, result.err
    entry = result.json()["calibration"]
    assert (entry["alpha"], entry["tuning_pictures"], entry["n"]) == (0.2, 20, 20)
    for option in ("--alpha", "--split"):
        assert "between 0 and 1" in run(*call, option, "120%").err


def test_the_model_itself_is_not_overwritten(place: Path, run: Run) -> None:
    before = (place / "model.onnx").read_bytes()
    result = run("calibrate", place / "model.onnx", place / "pictures", "--by-folder", "-o", place / "model.onnx")
    assert result.code == 2 and (place / "model.onnx").read_bytes() == before


def test_risk_and_report(place: Path, run: Run, tmp_path: Path) -> None:
    arguments = [
        "calibrate",
        place / "model.onnx",
        place / "pictures",
        "--truth",
        "by-folder",
        "-o",
        tmp_path / "c.onnx",
    ]
    result = run(*arguments, "--max-risk", "1%")
    assert result.code == 2
    assert (
        "takes 528 predictions that are let through without an error, or more with a few; got 40 pictures" in result.err
    )
    assert not (tmp_path / "c.onnx").exists()
    assert run(*arguments, "--max-risk", "0").code == 2
    result = run(*arguments, "--max-risk", "90%", "--confidence", "0.8", "--report", tmp_path / "report")
    assert result.code == 0, result.err
    assert "at confidence 0." in result.out and "at most 90 % are wrong, with 80 % confidence: " in result.out
    entry = calibration(tmp_path / "c.onnx")
    assert entry is not None
    risk, quantiles = entry["risk"], entry["quantiles"]
    assert isinstance(risk, dict) and isinstance(quantiles, dict)
    assert (risk["max"], risk["n"], quantiles["n"]) == (0.9, 40, 40)
    numbers = json.loads((tmp_path / "report" / "calibration.json").read_text())
    assert numbers["risk"] == risk
    assert numbers["before"]["n"] == numbers["after"]["n"] == 40
    assert numbers["after"]["nll"] <= numbers["before"]["nll"]
    assert entry["likelihood"] == pytest.approx([numbers["before"]["nll"], numbers["after"]["nll"]], rel=1e-6)
    pixels = image.load(tmp_path / "report" / "calibration.png").pixels
    assert pixels.shape[1] == 780
    for color in ((213, 94, 0), (0, 114, 178)):  # before and after
        assert (pixels == color).all(axis=-1).sum() > 100
    page = (tmp_path / "report" / "calibration.html").read_text()
    assert "expected calibration error" in page and "http" not in page.replace("http-equiv", "")
    # the thresholds answer conditions
    explainer = onnxcam.Explainer(tmp_path / "c.onnx")
    for when in ("risk > 90%", "top 10%", "set > 1"):
        gated = onnxcam.augment(tmp_path / "c.onnx", gate=when)
        assert manifests.read(gated) is not None
    assert explainer.manifest["calibration"]["risk"]["by"] == "confidence"
