"""`onnxcam compare`: conditions, exit codes, and a sentence for what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import files, image
from tests.cli.conftest import RAW, Run, noise
from tests.support.models import tiny_cnn


def call(workshop: Path, _: Path) -> list[Path]:
    """For `tests.cli.calls`."""
    return [workshop / "ready.onnx", workshop / "ready.onnx", workshop / "pictures"]


@pytest.fixture(scope="module")
def files_of_models() -> dict[str, bytes]:
    """OLD, NEW and a model of other classes."""
    options: dict[str, dict[str, Any]] = {"old": {}, "new": {"seed": 7}, "four": {"classes": 4}}
    models = {name: onnxcam.augment(tiny_cnn(**settings), preprocess=RAW) for name, settings in options.items()}
    return {name: model.SerializeToString() for name, model in models.items()}


@pytest.fixture
def folder(tmp_path: Path, files_of_models: dict[str, bytes]) -> Path:
    """The three models, and pictures of one class each."""
    for name, data in files_of_models.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
    for k in range(6):
        (tmp_path / "photos" / str(k % 2)).mkdir(parents=True, exist_ok=True)
        image.write_png(tmp_path / "photos" / str(k % 2) / f"{k}.png", noise(np.random.default_rng(k), 40, 40))
    return tmp_path


def test_effect_sizes_and_conditions(run: Run, folder: Path) -> None:
    old, new, photos = folder / "old.onnx", folder / "new.onnx", folder / "photos"
    result = run("compare", old, new, photos, "--json", "--truth", "by-folder")
    assert result.code == 0
    record = json.loads(result.out)
    assert record["verdict"] is None and record["pictures"] == 6 and record["target"] == "truth"
    flipped = record["flipped"]["share"]
    assert record["conditions"] == [] and flipped == np.mean([one["flipped"] for one in record["each"]])
    assert run("compare", old, old, photos, "--fail-on", "predictions").code == 0
    result = run("compare", old, new, photos, "--fail-on", "predictions > 1%")
    assert result.code == (5 if flipped > 0.01 else 0)
    assert run("compare", old, new, photos, "--fail-on", "predictions > 100%").code == 0
    result = run("compare", old, new, photos, "--null", "augment:4", "--fail-on", "attention")
    assert result.code == 5 and result.err.startswith("Failed: the attention moved more than")
    result = run("compare", old, old, photos, "--null", "augment:4", "--fail-on", "attention")
    assert result.code == 0 and "no more than" in result.out


def test_what_cannot_be_decided_is_a_sentence(run: Run, folder: Path) -> None:
    old, new, photos = folder / "old.onnx", folder / "new.onnx", folder / "photos"
    for options, part in (
        (["--fail-on", "attention"], "name a null"),
        (["--fail-on", "accuracy"], "--truth"),
        (["--fail-on", "region > 5%"], "--regions"),
        (["--fail-on", "luck"], "the condition 'luck' is none"),
        (["--null", f"seeds:{new}"], "has 1 other trainings of OLD"),
        (["--null", "seeds:none*.onnx"], "where there is no model"),
        (["--null", "augment:many"], "is none; expected seeds:"),
        (["--regions", folder / "none.csv"], "none.csv"),
    ):
        result = run("compare", old, new, photos, *options)
        assert result.code == 2 and part in result.sentence and result.out == "", options
    result = run("compare", old, folder / "four.onnx", photos)
    assert result.code == 2 and "OLD has 5 classes and NEW has 4" in result.sentence
    one = photos / "0" / "0.png"
    result = run("compare", old, new, one, "--null", "augment:4")
    assert result.code == 2 and "on 1 picture can never give" in result.sentence


@pytest.mark.slow
def test_pictures_that_are_prepared_differently_can_fail(run: Run, folder: Path) -> None:
    old, photos = folder / "old.onnx", folder / "photos"
    same = run("compare", old, old, photos, "--fail-on", "preprocessing", "--json")
    assert same.code == 0 and json.loads(same.out)["preparation"] == {"differing": 0, "largest": 0.0, "sentence": ""}
    for change, part in (
        ({"color": "BGR"}, "the colours are in the other order"),
        ({"scale": RAW["scale"] / 2}, "the old times 0.5 plus 0"),
        ({"mean": [10.0, 10.0, 10.0]}, "the old times 1 plus -10"),
    ):
        other = folder / "other.onnx"
        onnx.save(onnxcam.augment(tiny_cnn(), preprocess=RAW | change), other)
        result = run("compare", old, other, photos, "--fail-on", "preprocessing")
        assert result.code == 5 and "prepare 6 of 6 pictures differently" in result.err and part in result.err, (
            result.err
        )
        record = json.loads(run("compare", old, other, photos, "--json").out)
        assert record["preparation"]["differing"] == 6 and record["preparation"]["largest"] > 0.01


def test_reports_do_not_replace_what_is_read(run: Run, folder: Path) -> None:
    old, new, photos = folder / "old.onnx", folder / "new.onnx", folder / "photos"
    boxes, truth = folder / "boxes.csv", folder / "truth.csv"
    boxes.write_text("picture,x0,y0,x1,y1\n0.png,1,1,9,9\n")
    truth.write_text("picture,class\n0.png,0\n")
    (folder / "link.xml").symlink_to(new)
    picture = photos / "0" / "0.png"
    options = ("--regions", boxes, "--truth", truth)
    for option, path, what in (
        ("--markdown", old, "OLD"),
        ("--junit", folder / "link.xml", "NEW"),
        ("--markdown", boxes, "the regions"),
        ("--report", truth, "the truth"),
        ("--report", picture, "a picture"),
    ):
        before = path.read_bytes()
        result = run("compare", old, new, photos, *options, option, path)
        assert result.code == 1 and f"would replace {what} " in result.sentence and result.out == "", result.err
        assert path.read_bytes() == before
    masks = folder / "masks"
    (masks / "0").mkdir(parents=True)
    image.write_png(masks / "0" / "0.png", np.full((40, 40), 255, np.uint8))
    result = run("compare", old, new, photos, "--regions", masks, "--junit", masks / "0" / "0.png")
    assert "would replace the regions" in result.sentence
    (folder / "link.md").symlink_to(folder / "one.md")
    result = run("compare", old, new, photos, "--markdown", folder / "link.md", "--report", folder / "one.md")
    assert "name the same file" in result.sentence


def test_a_report_and_the_json_do_not_mix(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "is_standard_output", lambda path: Path(path).name == "stdout")
    models, report = (folder / "old.onnx", folder / "new.onnx", folder / "photos"), folder / "stdout"
    result = run("compare", *models, "--json", "--markdown", report)
    assert result.code == 2 and "both go to standard output" in result.err and not report.exists()
    result = run("compare", *models, "--json", "--markdown", folder / "report.md")
    assert result.code == 0 and json.loads(result.out)["pictures"] == 6 and (folder / "report.md").exists()


def test_what_turns_out_undecided_is_written_into_the_reports(run: Run, folder: Path) -> None:
    """A model without attention: the condition is skipped in the report, and one that can be decided is there."""
    model = tiny_cnn()
    for weights in model.graph.initializer:
        if weights.name == "w3":
            weights.raw_data = bytes(len(weights.raw_data))
    onnx.save(onnxcam.augment(model, preprocess=RAW), folder / "blank.onnx")
    blank, photos, report = folder / "blank.onnx", folder / "photos", folder / "report.xml"
    report.write_text("of yesterday")
    options = ["--null", "augment:4", "--fail-on", "attention", "--fail-on", "predictions", "--junit", report]
    result = run("compare", blank, blank, photos, *options, "--no-blame", "--json")
    assert result.code == 2 and "Error: no verdict on the attention can be given" in result.err
    text = report.read_text()
    assert 'skipped="1"' in text and "<skipped message=" in text and "of yesterday" not in text
    record = json.loads(result.out)
    assert record["conditions"] == [] and record["verdict"] is None and record["undecided"]
    assert [(one["name"], one["failed"]) for one in record["outcomes"]] == [("attention", None), ("predictions", False)]
    assert record["outcomes"][1]["sentence"].startswith("0.00% of the predictions flipped")
    result = run("compare", blank, folder / "old.onnx", photos, *options, "--no-blame")
    assert result.code == 5  # predictions flip, whatever else is undecided


def test_a_training_named_twice_is_one(run: Run, folder: Path) -> None:
    old, new, photos = folder / "old.onnx", folder / "new.onnx", folder / "photos"
    again = folder / "photos" / ".." / "new.onnx"
    result = run("compare", old, new, photos, "--null", f"seeds:{new},{again},{folder}/new*.onnx,{new},{new}")
    assert result.code == 2 and "has 1 other trainings of OLD" in result.sentence


def test_a_plain_file_is_prepared_as_old_and_named_where_it_cannot_be(run: Run, folder: Path) -> None:
    plain, photos = folder / "plain.onnx", folder / "photos"
    onnx.save(tiny_cnn(), plain)
    result = run("compare", folder / "old.onnx", plain, photos, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record["distance"] < 1e-5 and "they are prepared as for OLD" in record["notes"][0]
    result = run("compare", plain, folder / "old.onnx", photos)
    assert result.code == 2 and f"OLD {str(plain)!r}: the model does not say" in result.sentence


def test_a_picture_from_standard_input_has_no_true_class(run: Run, folder: Path) -> None:
    old, photos = folder / "old.onnx", folder / "photos"
    (folder / "truth.csv").write_text("picture,class\n" + "".join(f"{k % 2}/{k}.png,{k % 2}\n" for k in range(6)))
    data = (photos / "0" / "0.png").read_bytes()
    result = run("compare", old, old, "-", photos, "--truth", folder / "truth.csv", "--json", stdin=data)
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert sorted(str(one["truth"]) for one in record["each"]) == ["0", "0", "0", "1", "1", "1", "None"]
    assert any("are copies of others" in note for note in record["notes"])


def test_an_error_is_in_the_reports_and_not_what_an_earlier_run_found(run: Run, folder: Path) -> None:
    xml, comment = folder / "report.xml", folder / "report.md"
    photos, reports = folder / "photos", ["--junit", xml, "--markdown", comment]
    assert run("compare", folder / "old.onnx", folder / "old.onnx", photos, *reports).code == 0
    assert ElementTree.parse(xml).getroot().get("errors") == "0"
    result = run("compare", folder / "old.onnx", folder / "four.onnx", photos, *reports)
    assert result.code == 2
    suites = ElementTree.parse(xml).getroot()
    (error,) = suites.iter("error")
    assert suites.get("errors") == "1" and error.get("message") in result.err
    assert suites.get("tests") == str(len(list(suites.iter("testcase"))))
    text = comment.read_text(encoding="utf-8")
    assert text.count("\n") == 3 and "could not be made" in text


def test_a_region_of_every_pixel_is_told(run: Run, folder: Path) -> None:
    masks = folder / "masks"
    for k in range(6):
        (masks / str(k % 2)).mkdir(parents=True, exist_ok=True)
        image.write_png(masks / str(k % 2) / f"{k}.png", np.full((40, 40, 3), 255, np.uint8))
    result = run("compare", folder / "old.onnx", folder / "new.onnx", folder / "photos", "--regions", masks, "--json")
    record = json.loads(result.out)
    assert result.code == 0 and record["regions"][0]["old"] == 1
    assert any("covers every pixel of 6 pictures" in note for note in record["notes"])
