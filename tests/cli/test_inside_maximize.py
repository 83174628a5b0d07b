"""`onnxcam inside maximize`: its files, its one line, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import onnxcam
from onnxcam.cli import main
from onnxcam.graph import load
from tests.support.models import tiny_cnn
from tests.support.runtime import run

LABELS = ["tabby", "tiger cat", "crane", "crane", "cow"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    load.save(onnxcam.augment(tiny_cnn(size=16), ["relu1", "relu2"], labels=LABELS, preprocess="0..1"), path)
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcdefg":
        cv2.imwrite(str(photos / f"{name}.png"), rng.integers(0, 256, (20, 20, 3)).astype(np.uint8))
    return path


def maximize(model: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, ["inside", "maximize", str(model), "--steps", "6", *flags])


def test_one_line_and_one_picture_for_each(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = maximize(model, "-o", str(out), "--layer", "relu1", "--channel", "2", "--channel", "3+5")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "mean of channel 2 of 'relu1'",
        "mean of channels 3+5 of 'relu1'",
    ]
    assert "after 6 steps; plain model" in lines[0]
    assert sorted(path.name for path in out.iterdir()) == [
        "maximize.json",
        "maximize_relu1_2.png",
        "maximize_relu1_3+5.png",
    ]
    record = json.loads((out / "maximize.json").read_text("utf-8"))
    assert [entry["files"]["picture"] for entry in record["results"]] == [
        "maximize_relu1_2.png",
        "maximize_relu1_3+5.png",
    ]
    pixels = cv2.imread(str(out / "maximize_relu1_2.png"))[..., ::-1]
    tensor = (pixels.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    exposed = onnx.load(model)
    exposed.graph.output.append(onnx.helper.make_tensor_value_info("relu1", onnx.TensorProto.FLOAT, None))
    expected = run(exposed, tensor, outputs=["relu1"])["relu1"][0, 2].mean()
    assert record["results"][0]["verified"] == pytest.approx(float(expected), rel=1e-5)
    assert len(record["results"][0]["history"]) == 6


def test_classes_of_one_name_have_files_of_their_own(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = maximize(model, "-o", str(out), "--class", "2", "--class", "3", "--class", "tiger cat", "--json")
    assert result.exit_code == 0, result.output
    names = [entry["files"]["picture"] for entry in json.loads(result.stdout)["results"]]
    assert names == ["maximize_crane.png", "maximize_crane_3.png", "maximize_tiger_cat.png"]
    assert all((out / name).is_file() for name in names)


def test_real_pictures_stand_beside_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--channel", "3", "--pictures", str(tmp_path / "photos"), "-o", str(out), "--json"]
    result = maximize(model, *flags)
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout)["results"]
    assert entry["real_pictures"] == 7
    assert entry["natural"] == entry["real"][0]
    assert [e["value"] for e in entry["real"]] == sorted((e["value"] for e in entry["real"]), reverse=True)
    assert [layer["layer"] for layer in entry["path"]] == ["relu1", "relu2"]
    assert (out / entry["files"]["sheet"]).is_file()


def test_a_file_of_the_ascent(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "ascent.onnx"
    result = maximize(model, "--class", "cow", "--as-onnx", str(file))
    assert result.exit_code == 0, result.output
    assert "logit of 'cow': 6 steps (cosine)" in result.stdout
    outputs = run(file, start=np.zeros((3, 16, 16), np.float32), jitter=np.zeros((6, 2), np.int64))
    assert outputs["history"][-1] > outputs["history"][0]


def test_ctrl_c_writes_the_best_so_far(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcam.cli.progress import Bar

    def to(self: Bar, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Bar, "to", to)
    out = tmp_path / "out"
    result = maximize(model, "-o", str(out), "--class", "cow", "--class", "tabby")
    assert result.exit_code == 130
    record = json.loads((out / "maximize.json").read_text("utf-8"))
    assert [entry["steps"] for entry in record["results"]] == [3]
    assert (out / "maximize_cow.png").is_file()
    assert "3 of 6 steps" in result.stderr


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["-o", "out"], 2, "name what to maximise"),
        (["--class", "cow"], 2, "no output was named"),
        (["-o", "out", "--class", "cow", "--channel", "1"], 2, "not both"),
        (["-o", "out", "--class", "cow", "--layer", "relu1"], 2, "belong to --channel"),
        (["-o", "out", "--class", "cwo"], 2, "'cow (4)'"),
        (["-o", "out", "--channel", "x"], 2, "expected an index"),
        (["-o", "out", "--channel", "99"], 2, "the nearest is 15"),
        (["-o", "out", "--channel", "1", "--layer", "rule1"], 2, "'relu1'"),
        (["-o", "out", "--channel", "1", "--layer", "logits"], 0, ""),
        (["-o", "out", "--channel", "1", "--place", "9,9"], 2, "8 rows and 8 columns"),
        (["-o", "out", "--channel", "1", "--place", "a,b"], 2, "expected an index"),
        (["-o", "out", "--class", "cow", "--contrast", "cow"], 2, "contrast"),
        (["-o", "out", "--class", "cow", "--learning-rate", "0"], 2, "learning_rate"),
        (["-o", "out", "--class", "cow", "--start", "nowhere.png"], 1, "does not exist"),
        (["-o", "out", "--class", "cow", "--pictures", "nowhere"], 1, "nowhere"),
        (["--class", "cow", "--class", "tabby", "--as-onnx", "f.onnx"], 2, "one ascent"),
        (["--class", "cow", "--as-onnx", "f.onnx", "--parametrization", "fourier"], 2, "cosine"),
    ],
    ids=lambda value: " ".join(value[-4:]) if isinstance(value, list) else "",
)
def test_wrong_flags(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], code: int, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = maximize(model, *flags)
    assert result.exit_code == code, result.output
    assert sentence in " ".join(result.stderr.split())


@pytest.mark.slow
def test_one_dead_channel_does_not_stop_the_others(tmp_path: Path) -> None:
    source = tiny_cnn(size=16)
    for tensor in source.graph.initializer:
        if tensor.name == "b2":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[3] = -1e4
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "b2"))
    path = tmp_path / "model.onnx"
    onnx.save(source, path)
    flags = ["-o", str(tmp_path / "out"), "--layer", "relu2", "--preprocess", "0..1"]
    result = maximize(path, *flags, "--channel", "3", "--channel", "4")
    assert result.exit_code == 1
    assert "does not change with the picture" in result.stderr
    record = json.loads((tmp_path / "out" / "maximize.json").read_text("utf-8"))
    assert len(record["results"]) == len(record["failures"]) == 1
    assert maximize(path, *flags, "--channel", "3").exit_code == 3
